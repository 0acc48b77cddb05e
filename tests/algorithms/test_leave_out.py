"""Combinations without some exposures, against the others combined pixel by pixel, and against the truth."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import norm

from miri_steps.algorithms import leave_out

SETTINGS = settings(deadline=None, derandomize=True, max_examples=60)
EVERY = pytest.mark.parametrize("statistic", leave_out.STATISTICS)
MANY = 40_000


def stack(n, pixels=200, *, seed=1, empty=0.2):
    """Samples around 5 of unit noise, some of them missing and some hit."""
    rng = np.random.default_rng(seed)
    samples = rng.normal(5, 1, (n, pixels)).astype(np.float32)
    samples[rng.random(samples.shape) < 0.1] += 30
    samples[rng.random(samples.shape) < empty] = np.nan
    return samples


def others(n):
    return [(k,) for k in range(n)]


def combine(samples, left_out=((),), statistic="clip", *, noise=1.0, **options):
    noise = np.broadcast_to(np.asarray(noise, float), samples.shape[1:])
    return leave_out.combine(samples, noise, left_out, statistic=statistic, **options)


def same(first, second):
    np.testing.assert_array_equal(first.value, second.value)
    np.testing.assert_array_equal(first.count, second.count)


def plainly(values, statistic, noise, sigma):
    """Combine the samples of one pixel; the value and what went into it."""
    values = np.sort(values[np.isfinite(values)].astype(float))
    r = len(values)
    if r == 0:
        return np.nan, 0
    centre = np.median(values)
    if statistic == "median":
        return centre, r
    scatter = 0.0
    if r >= 5:
        expected = norm.ppf(1 - (r // 4 + 0.625) / (r + 0.25)) * (1 - 1.1 / np.sqrt(r))
        scatter = min(centre - values[r // 4], values[r - 1 - r // 4] - centre) / expected
    reach = sigma * max(noise, scatter) if noise > 0 or r >= 5 else np.inf
    reach = max(reach, np.abs(values - centre).min())
    kept = values[np.abs(values - centre) <= reach + 1e-12]
    return kept.mean(), len(kept)


# What it is


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 13])
def test_median_is_the_nanmedian_of_the_others(n):
    samples = stack(n)

    found = combine(samples, others(n), "median")

    for k in range(n):
        rest = np.delete(samples, k, axis=0)
        some = np.isfinite(rest).any(axis=0)
        np.testing.assert_allclose(found.value[k, some], np.nanmedian(rest[:, some], axis=0), rtol=1e-6)
        assert np.isnan(found.value[k, ~some]).all()
        np.testing.assert_array_equal(found.count[k], np.isfinite(rest).sum(axis=0))


@EVERY
@pytest.mark.parametrize("noise", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("sigma", [1.3, 3.0])
@pytest.mark.parametrize(
    "left", [(), (2,), (0, 1), (9, 3, 4), (0, 1, 2, 3, 4), (0, 1, 2, 5, 6, 7, 8), tuple(range(11))]
)
def test_each_is_made_of_the_others_alone(statistic, noise, sigma, left):
    samples = stack(12, 120, empty=0.0)
    samples[:2, ::3] = np.nan
    samples[:, 5] = np.nan

    found = combine(samples, [left], statistic, noise=noise, sigma=sigma)

    rest = np.delete(samples, left, axis=0)
    expected = np.array([plainly(column, statistic, noise, sigma) for column in rest.T])
    np.testing.assert_array_equal(found.count[0], expected[:, 1])
    np.testing.assert_allclose(found.value[0], expected[:, 0], rtol=1e-6)
    assert np.isnan(found.value[0, 5])
    assert found.count[0, 5] == 0


def test_what_is_further_than_sigma_is_clipped_on_both_sides():
    samples = np.array([-3.1, -2.9, 0, 0, 0, 0, 0, 2.9, 3.1], np.float32)[:, np.newaxis]

    found = combine(samples, [(), (0,)], sigma=3.0)

    # With quartiles of 0 it is the noise that counts.
    np.testing.assert_array_equal(found.count.ravel(), [7, 7])
    np.testing.assert_allclose(found.value.ravel(), [0, 0], atol=1e-6)


def test_few_samples_are_judged_by_the_noise_and_all_kept_where_it_is_not_known():
    samples = np.array([0, 1, 2, 100], np.float32)[:, np.newaxis] * np.ones(4, np.float32)

    found = combine(samples, noise=[1.0, 0.0, np.nan, np.inf])

    np.testing.assert_array_equal(found.count, [[3, 4, 4, 4]])
    np.testing.assert_array_equal(found.value, [[1, 25.75, 25.75, 25.75]])


def test_noise_that_is_stated_too_small_clips_no_honest_sample():
    samples = np.random.default_rng(4).normal(0, 1, (50, 5000)).astype(np.float32)

    assert combine(samples, noise=0.01).count.mean() > 0.98 * 50


def test_the_median_is_kept_however_narrow_the_window():
    samples = np.array([0, 10, 30, 70], np.float32)[:, np.newaxis]

    found = combine(samples, [(), (0,), (0, 1), (0, 1, 2)], noise=1e-6, sigma=0.1)

    np.testing.assert_array_equal(found.value.ravel(), [20, 30, 50, 70])
    np.testing.assert_array_equal(found.count.ravel(), [2, 1, 2, 1])


@EVERY
def test_all_left_out_is_nothing(statistic):
    found = combine(stack(3), [(0, 1, 2), ()], statistic)

    assert np.isnan(found.value[0]).all()
    assert not found.count[0].any()
    assert np.isfinite(found.value[1]).any()


@EVERY
@pytest.mark.parametrize("shape", [(0,), (4, 5), (2, 3, 4)])
@pytest.mark.parametrize("m", [0, 1, 3])
def test_shapes_and_types(statistic, shape, m):
    found = combine(np.ones((4, *shape), np.float32), others(m), statistic)

    assert found.value.shape == found.count.shape == (m, *shape)
    assert (found.value.dtype, found.count.dtype) == (np.float32, np.uint16)
    assert (found.value == 1).all()


# Properties

numbers = st.floats(-1000, 1000, width=32) | st.sampled_from([0.0, -0.0, 1.0, np.nan])
anything = st.floats(width=32) | st.sampled_from([-1e30, 1e30, np.inf, np.nan, 0.0])
noises = st.sampled_from([0.0, 0.01, 1.0, 1e4, np.nan])
statistics = st.sampled_from(leave_out.STATISTICS)


@st.composite
def stacks(draw):
    n = draw(st.integers(1, 9))
    samples = draw(hnp.arrays(np.float32, (n, 3), elements=numbers))
    left = draw(st.sets(st.integers(0, n - 1), max_size=n))
    return samples, tuple(sorted(left))


@SETTINGS
@given(stacks(), st.data(), noises, statistics, st.sampled_from([0.5, 3.0]))
def test_values_of_exposures_left_out_change_nothing(case, data, noise, statistic, sigma):
    samples, left = case
    found = combine(samples, [left], statistic, noise=noise, sigma=sigma)
    other = samples.copy()
    other[list(left)] = data.draw(hnp.arrays(np.float32, (len(left), 3), elements=anything))

    same(combine(other, [left], statistic, noise=noise, sigma=sigma), found)


@SETTINGS
@given(stacks(), st.data(), noises, statistics)
def test_order_changes_nothing(case, data, noise, statistic):
    samples, left = case
    order = data.draw(st.permutations(range(len(samples))))
    moved = tuple(order.index(k) for k in left)

    same(
        combine(samples[list(order)], [moved], statistic, noise=noise),
        combine(samples, [left], statistic, noise=noise),
    )


@SETTINGS
@given(stacks(), statistics, noises)
def test_leaving_out_is_the_same_as_not_having(case, statistic, noise):
    samples, left = case
    without = samples.copy()
    without[list(left)] = np.nan
    found = combine(samples, [left], statistic, noise=noise)

    gone = combine(without, [()], statistic, noise=noise)

    # Leaving out more than half, or sums in other units, is the same to rounding.
    np.testing.assert_array_equal(gone.count, found.count)
    np.testing.assert_allclose(gone.value, found.value, rtol=1e-6, atol=1e-6 * np.nan_to_num(noise))


@SETTINGS
@given(stacks(), statistics, st.integers(-1000, 1000))
def test_a_constant_shifts_the_result(case, statistic, constant):
    samples, left = case
    # Eighths: so that the shifted samples are exact.
    samples = np.round(samples * 8) / 8
    found = combine(samples, [left], statistic)

    moved = combine(samples + np.float32(constant), [left], statistic)

    np.testing.assert_allclose(moved.value, found.value + constant, rtol=1e-6, atol=1e-3)
    np.testing.assert_array_equal(moved.count, found.count)


@SETTINGS
@given(stacks(), statistics, noises)
def test_one_sample_at_least_is_used_and_the_result_lies_among_them(case, statistic, noise):
    samples, left = case
    before = samples.copy()

    found = combine(samples, [left], statistic, noise=noise)

    rest = np.delete(before, left, axis=0)
    number = np.isfinite(rest).sum(axis=0)
    np.testing.assert_array_equal(found.count[0] > 0, number > 0)
    assert (found.count[0] <= number).all()
    np.testing.assert_array_equal(np.isnan(found.value[0]), number == 0)
    for value, column in zip(found.value[0], rest.T, strict=True):
        valid = column[np.isfinite(column)]
        margin = 1e-6 * max(np.nan_to_num(noise), abs(value))
        assert not valid.size or valid.min() - margin <= value <= valid.max() + margin
    np.testing.assert_array_equal(samples, before)


@EVERY
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_blocks_leave_no_trace(statistic, noise, monkeypatch):
    samples = stack(9, 60)
    left = [(), (3,), (1, 2, 3, 8), (0, 1, 2, 3, 4, 5)]
    whole = combine(samples, left, statistic, noise=noise)

    for block in (1, 9 * 7, 9 * 59):
        monkeypatch.setattr(leave_out, "_BLOCK", block)
        same(combine(samples, left, statistic, noise=noise), whole)
    one = combine(samples[:, 17:18], left, statistic, noise=noise)
    np.testing.assert_array_equal(one.value[:, 0], whole.value[:, 17])


@EVERY
@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_walking_past_what_is_left_out_is_the_same_as_sorting_the_others(statistic, noise, monkeypatch):
    samples = stack(11)
    left = [(3,), (0, 4), (1, 2, 3, 8), (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5, 7, 8, 9, 10)]

    monkeypatch.setattr(leave_out, "_SORTING", 100)
    walked = combine(samples, left, statistic, noise=noise)

    monkeypatch.setattr(leave_out, "_SORTING", 0)
    same(combine(samples, left, statistic, noise=noise), walked)


@EVERY
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_no_sample(statistic, value):
    samples = stack(6, empty=0.0)
    samples[2] = value

    same(combine(samples, [()], statistic), combine(np.delete(samples, 2, axis=0), [()], statistic))


@EVERY
def test_huge_values_do_no_harm(statistic):
    samples = np.array([-3e38, 1, 2, 3, 3e38, 3e38, 3e38], np.float32)[:, np.newaxis]

    left_out = [(4, 5), (4, 5, 6), (0, 4, 5), (), (0, 1, 2, 3), (1, 2, 3)]
    found = combine(samples, left_out, statistic, noise=0.5)

    expected = [2, 1.5, 2.5, 3, 3e38, 3e38] if statistic == "median" else [2, 2, 2, 2, 3e38, 3e38]
    np.testing.assert_allclose(found.value.ravel(), expected, rtol=1e-6)


@pytest.mark.parametrize("noise", [1e-30, 1e-6, 1e30])
def test_any_noise_gives_the_mean_of_what_is_kept(noise):
    samples = 1e4 + np.random.default_rng(3).normal(0, 1, (9, 500)).astype(np.float32)

    found = combine(samples, [(), (4,)], noise=noise, sigma=100.0)

    if noise < 1e10:
        np.testing.assert_allclose(found.value[0], samples.mean(axis=0, dtype=float), rtol=1e-7)
    assert (found.count == [[9], [8]]).all()


# Truth


def hit(samples, part, side):
    rng = np.random.default_rng(6)
    struck = rng.random(samples.shape) < part
    return samples + struck * rng.choice(side, samples.shape) * rng.uniform(8, 80, samples.shape)


def spread(values):
    return 1.4826 * np.median(np.abs(values - np.median(values)))


@pytest.mark.parametrize(("statistic", "worse"), [("clip", 1.01), ("median", 1.22)])
@pytest.mark.parametrize("side", [[1], [-1, 1]], ids=["one side", "both sides"])
def test_noise_of_the_model_of_ten_exposures_with_a_tenth_of_outliers(statistic, worse, side):
    samples = np.random.default_rng(5).normal(0, 1, (10, MANY))

    clean = combine(samples.astype(np.float32), others(10)[:2], statistic).value
    found = combine(hit(samples, 0.1, side).astype(np.float32), others(10)[:2], statistic).value

    assert clean.std() == pytest.approx(worse / 3, rel=0.01)
    assert abs(clean.mean()) < 0.01
    # A tenth of the samples is lost; in one pixel of a thousand most are hit, which no one can tell.
    lost = 1.06 if statistic == "clip" else 1.12
    assert spread(found) == pytest.approx(worse * lost / 3, rel=0.02)
    if statistic == "clip":
        assert abs(np.median(found)) < 0.01
        assert abs(found.mean()) < 0.05
    if len(side) == 2:
        assert abs(found.mean()) < 0.01


@pytest.mark.parametrize(("statistic", "worse"), [("clip", 1.01), ("median", 1.25)])
def test_noise_of_the_model_of_many_exposures(statistic, worse):
    samples = np.random.default_rng(7).normal(100, 0.1, (60, MANY // 10)).astype(np.float32)

    found = combine(samples, others(60)[:3], statistic, noise=0.1)

    assert found.value.std() == pytest.approx(worse * 0.1 / np.sqrt(59), rel=0.03)
    assert abs(found.value.mean() - 100) < 0.001


@EVERY
@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("n", [4, 5, 8, 15, 45])
def test_symmetric_noise_is_not_biased(statistic, noise, n):
    samples = np.random.default_rng(n).normal(0, 1, (n, MANY)).astype(np.float32)

    assert abs(combine(samples, [(0,)], statistic, noise=noise).value.mean()) < 0.01


def test_own_source_is_not_in_the_own_background():
    samples = np.random.default_rng(8).normal(0, 1, (8, MANY)).astype(np.float32)
    samples[3] += 2

    found = combine(samples, [(), (3,)])

    assert found.value[0].mean() > 0.15
    assert abs(found.value[1].mean()) < 0.01


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 9, 10, 16, 40])
@pytest.mark.parametrize("statistic, sigma", [("median", 3), ("clip", 2), ("clip", 3), ("clip", 5)])
def test_variance_factors_are_the_variance(statistic, sigma, n):
    samples = np.random.default_rng(9).normal(0, 1, (n, MANY)).astype(np.float32)
    found = combine(samples, [()], statistic, sigma=sigma)

    factors = leave_out.variance_factors(statistic, sigma, n)

    assert factors.shape == (n + 1,)
    pull = found.value[0] / np.sqrt(factors[found.count[0]])
    assert np.mean(pull**2) == pytest.approx(1, abs=0.03 if sigma > 2 else 0.15)


def test_variance_factors_of_no_sample_and_of_many():
    for statistic, last in (("median", np.pi / 2), ("clip", 1.03)):
        factors = leave_out.variance_factors(statistic, 3.0, 1500)
        assert np.isnan(factors[0])
        assert (factors[1:3] == [1, 0.5]).all()
        assert (np.diff(factors[1:]) < 0).all()
        assert factors[1500] * 1500 == pytest.approx(last, rel=0.01)
    np.testing.assert_array_equal(leave_out.variance_factors("clip", 3.0, 0), [np.nan])


def test_memory_does_not_grow_with_the_number_of_combinations():
    samples = stack(40, 100_000)
    tracemalloc.start()
    try:
        combine(samples, others(40)[:10])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    # Outputs, and some tens of bytes for each sample of a block.
    assert peak < 10 * 100_000 * 6 + 50 * leave_out._BLOCK


# Errors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"statistic": "mean"}, "statistic must be one of median, clip, got 'mean'"),
        ({"sigma": 0.0}, r"sigma must be above 0, got 0\.0"),
        ({"sigma": np.nan}, "sigma must be above 0, got nan"),
        ({"left_out": [(), (1, 4)]}, r"left_out\[1\] must hold indices from 0 to 3, got 4"),
        ({"left_out": [(-1,)]}, r"left_out\[0\] must hold indices from 0 to 3, got -1"),
        ({"noise": np.ones(4)}, r"noise must have the shape of one exposure \(5,\), got \(4,\)"),
        ({"samples": np.ones((0, 5))}, r"samples must have the shape \(n, \.\.\.\), .* got \(0, 5\)"),
    ],
)
def test_wrong_input_is_named(change, words):
    given = {"samples": stack(4, 5), "noise": np.ones(5), "left_out": [()], "statistic": "clip"} | change

    with pytest.raises(ValueError, match=words):
        leave_out.combine(given.pop("samples"), given.pop("noise"), given.pop("left_out"), **given)


def test_wrong_parameters_of_variance_factors_are_named():
    with pytest.raises(ValueError, match="statistic must be one of median, clip, got 'mode'"):
        leave_out.variance_factors("mode", 3.0, 5)
    with pytest.raises(ValueError, match="sigma must be above 0, got -1"):
        leave_out.variance_factors("clip", -1, 5)
    with pytest.raises(ValueError, match="most must be at least 0, got -1"):
        leave_out.variance_factors("clip", 3.0, -1)
