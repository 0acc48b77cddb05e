"""Exposures with known truth, noise and hits go in; the truth and the scatter must come out."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import norm

from miri_steps.algorithms import integrations

FRAME, SMALL = (120, 300), (80, 150)
SETTINGS = settings(deadline=None, derandomize=True, max_examples=60)


def noise(n, frame=FRAME, *, seed=1, variance=1.0):
    """Samples around 5, and their variances in two parts."""
    total = np.broadcast_to(variance, (n, *frame)).astype(np.float32)
    data = 5 + np.random.default_rng(seed).standard_normal(total.shape) * np.sqrt(total)
    return data.astype(np.float32), {"var_poisson": 0.3 * total, "var_rnoise": 0.7 * total}


def everywhere(data):
    return np.ones(data.shape, bool)


def error(found):
    return np.sqrt(found.var_poisson + found.var_rnoise)


# What each method is


def test_mean_is_the_plain_mean_of_the_valid_samples():
    data, variances = noise(4, (3, 5))
    valid = everywhere(data)
    valid[0] = False

    found = integrations.combine(data, valid, method="mean", **variances)

    np.testing.assert_allclose(found.data, data[1:].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.var_rnoise, 0.7 / 3, rtol=1e-6)
    assert (found.used == 3).all()
    assert not found.rejected.any()


def test_ivar_is_the_sum_that_ramp_fit_makes():
    data, variances = noise(6, variance=np.array([1, 2, 4, 0.5, 1, 8])[:, None, None])

    found = integrations.combine(data, everywhere(data), method="ivar", **variances)

    weights = 1 / variances["var_rnoise"].astype(float)
    expected = np.sum(data * weights, axis=0) / np.sum(weights, axis=0)
    np.testing.assert_allclose(found.data, expected, rtol=2e-7)
    np.testing.assert_allclose(found.var_rnoise, 1 / np.sum(weights, axis=0), rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_median_is_the_median_of_the_valid_samples(n):
    data, variances = noise(n)
    valid = np.random.default_rng(2).random(data.shape) < 0.8
    valid[0] = True

    found = integrations.combine(data, valid, method="median", **variances)

    expected = np.nanmedian(np.where(valid, data, np.nan), axis=0)
    np.testing.assert_allclose(found.data, expected, rtol=1e-6)


def test_clip_is_ivar_without_the_hits():
    data, variances = noise(6, variance=np.array([1, 2, 4, 1, 1, 1])[:, None, None])
    without = everywhere(data)
    without[3, 10, 10:20] = without[0, 10, 15:25] = False
    hit = np.where(without, data, data + 1000)

    found = integrations.combine(hit, everywhere(data), method="clip", sigma=8.0, **variances)

    expected = integrations.combine(data, without, method="ivar", **variances)
    np.testing.assert_array_equal(found.data, expected.data)
    np.testing.assert_array_equal(found.used, expected.used)
    np.testing.assert_array_equal(found.rejected, 6 - expected.used)


def test_zero_is_data_and_a_pixel_without_a_valid_sample_is_nan():
    data = np.zeros((3, 2, 2), np.float32)
    data[:, 0, 0] = [0, 6, 0]
    valid = everywhere(data)
    valid[:, 1, 1] = False
    one = np.ones(data.shape, np.float32)

    for method in integrations.METHODS:
        found = integrations.combine(data, valid, method=method, var_rnoise=one, var_flat=one)

        assert found.data[0, 0] == (0 if method in ("median", "clip") else 2)
        assert found.data[0, 1] == 0
        assert np.isnan([found.data[1, 1], found.var_rnoise[1, 1], found.var_flat[1, 1]]).all()
        assert found.used[1, 1] == 0
        assert found.var_poisson is None


@pytest.mark.parametrize("method", ["ivar", "clip"])
@pytest.mark.parametrize("unknown", [0.0, -1.0, np.nan, np.inf])
def test_samples_without_read_noise_variance_have_no_weight(method, unknown):
    data = np.array([1, 2, 9], np.float32)[:, None, None] * np.ones((1, 1, 2), np.float32)
    var_rnoise = np.ones_like(data)
    var_rnoise[2, 0, 0] = var_rnoise[:, 0, 1] = unknown

    found = integrations.combine(data, everywhere(data), method=method, var_rnoise=var_rnoise, sigma=100.0)

    np.testing.assert_allclose(found.data, [[1.5, 4.0]])
    np.testing.assert_array_equal(found.used, [[2, 3]])
    np.testing.assert_allclose(found.var_rnoise, [[0.5, 0.0]])


# Errors against the scatter

SPREAD = {
    "equal": lambda n: 1.0,
    "unequal": lambda n: np.linspace(0.6, 2.4, n)[:, None, None],
    "jumps": lambda n: np.random.default_rng(7).choice([1.0, 1.0, 1.0, 4.0], (n, *SMALL)),
}


@pytest.mark.parametrize("spread", SPREAD)
@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize(
    "method, sigma", [("mean", 3), ("ivar", 3), ("median", 3), ("clip", 2), ("clip", 3), ("clip", 5)]
)
def test_errors_are_the_scatter(method, sigma, n, spread):
    data, variances = noise(n, SMALL, variance=SPREAD[spread](n), seed=n)
    valid = np.random.default_rng(4).random(data.shape) < 0.95
    valid[0] = True

    found = integrations.combine(data, valid, method=method, sigma=sigma, **variances)

    # 12 000 pixels: the scatter is known to 0.6 %.
    assert np.std((found.data - 5) / error(found)) == pytest.approx(1, abs=0.03)


def test_poisson_and_read_noise_keep_their_shares():
    data, variances = noise(5)

    for method in integrations.METHODS:
        found = integrations.combine(data, everywhere(data), method=method, **variances)

        np.testing.assert_allclose(found.var_poisson * 7, found.var_rnoise * 3, rtol=1e-5)


def test_the_error_of_the_flat_does_not_average_down():
    data, variances = noise(5)
    flat = np.full(data.shape, 0.04, np.float32)

    for method in integrations.METHODS:
        found = integrations.combine(data, everywhere(data), method=method, var_flat=flat, **variances)

        np.testing.assert_allclose(found.var_flat, 0.04, rtol=1e-5)


def test_median_factor_is_known():
    # 1 - sqrt(3) / pi and so on: Hojo 1931; simulation for 16.
    assert integrations.median_factor(3) == pytest.approx(3 * 0.448671, rel=1e-4)
    assert integrations.median_factor(5) == pytest.approx(5 * 0.286834, rel=1e-4)
    simulated = np.median(np.random.default_rng(5).standard_normal((16, 200_000)), axis=0)
    assert integrations.median_factor(16) == pytest.approx(16 * simulated.var(), rel=0.01)
    assert integrations.median_factor(10_001) == pytest.approx(np.pi / 2, rel=1e-3)
    steps = np.diff([integrations.median_factor(n) for n in range(57, 66, 2)])
    assert (steps > 0).all()
    assert np.ptp(steps) < 1e-4


@pytest.mark.parametrize("sigma", [2.0, 3.0, 4.0])
def test_clip_factor_tends_to_that_of_a_skipped_mean(sigma):
    inside = 2 * norm.cdf(sigma) - 1

    assert integrations.clip_factor(1000, sigma) == pytest.approx(
        inside / (inside - 2 * sigma * norm.pdf(sigma)), rel=0.03
    )
    assert integrations.clip_factor(2, sigma) == 1


# Hits

HITS = {
    "4 sigma": lambda rng, n: np.full(n, 4.0),
    "5 sigma": lambda rng, n: np.full(n, 5.0),
    "10 sigma": lambda rng, n: np.full(n, 10.0),
    "50 sigma": lambda rng, n: np.full(n, 50.0),
    "exponential of 10 sigma": lambda rng, n: rng.exponential(10.0, n),
}


@pytest.mark.parametrize("height", HITS)
def test_a_twentieth_of_eight_integrations_may_be_hit(height):
    data, variances = noise(8, (250, 400), seed=11)
    rng = np.random.default_rng(12)
    hit = rng.random(data.shape) < 0.05
    # Where most of a pixel's samples are hit nobody can tell.
    hit[:, np.count_nonzero(hit, axis=0) > 4] = False
    ideal = np.sum(np.where(hit, 0, data), axis=0) / np.count_nonzero(~hit, axis=0) - 5
    struck = data.copy()
    struck[hit] += HITS[height](rng, hit.sum())

    found = integrations.combine(struck, everywhere(data), method="clip", **variances)
    stock = integrations.combine(struck, everywhere(data), method="ivar", **variances)

    assert abs(np.mean(found.data - 5)) < 0.05
    # Four sigma is hardly above the limit.
    assert np.std(found.data) < (1.12 if height == "4 sigma" else 1.08) * np.std(ideal)
    assert np.mean(stock.data - 5) > 0.19
    assert np.std(stock.data) > 1.25 * np.std(ideal)


def test_two_hits_of_four_are_recognised():
    data, variances = noise(4)
    struck = data.copy()
    struck[1:3, ::4, ::4] += 100

    found = integrations.combine(struck, everywhere(data), method="clip", sigma=8.0, **variances)

    # Hits in a sixteenth of its pixels move the level of an integration by a little.
    np.testing.assert_allclose(found.data[::4, ::4], data[[0, 3], ::4, ::4].mean(axis=0), atol=0.1)
    assert (found.rejected[::4, ::4] == 2).all()
    assert found.rejected.sum() == 2 * found.rejected[::4, ::4].size


def test_hits_in_most_integrations_are_recognised_where_they_disagree():
    data, variances = noise(8)
    struck = data.copy()
    heights = np.array([15, 90, 41, 200, 66], np.float32)[:, None, None]
    struck[2:7, ::4, ::4] += heights

    found = integrations.combine(struck, everywhere(data), method="clip", sigma=8.0, **variances)

    np.testing.assert_allclose(found.data[::4, ::4], data[[0, 1, 7], ::4, ::4].mean(axis=0), atol=0.1)
    # Five that agree are the truth, and three below them are not.
    struck[2:7, ::4, ::4] += 100 - heights
    found = integrations.combine(struck, everywhere(data), method="clip", sigma=8.0, **variances)
    np.testing.assert_allclose(found.data[::4, ::4], struck[2:7, ::4, ::4].mean(axis=0), atol=0.1)


def test_an_offset_of_a_whole_integration_is_no_reason_to_reject():
    data, variances = noise(5)
    plain = integrations.combine(data, everywhere(data), **variances)
    drifted = data + np.array([40, 0, -3, 0.5, 8], np.float32)[:, None, None]

    found = integrations.combine(drifted, everywhere(data), **variances)

    assert np.ptp(found.offset) == pytest.approx(43, abs=0.1)
    assert found.rejected.mean() == pytest.approx(plain.rejected.mean(), rel=0.1)
    assert np.mean(found.data) - 5 == pytest.approx(9.1, abs=0.02)


@pytest.mark.parametrize("level", [[3, 0, 0, 0, 0, 0, 0, 0], np.arange(8) * 0.5], ids=["first", "drift"])
def test_pixels_that_lost_a_sample_stay_level_with_the_others(level):
    """The level of the whole integration is in all other pixels, so it must be in these."""
    data, variances = noise(8, (300, 300), seed=21)
    hit = np.random.default_rng(22).random(data.shape) < 0.05
    drifted = data + np.asarray(level, np.float32)[:, None, None]

    found = integrations.combine(np.where(hit, drifted + 20, drifted), everywhere(data), **variances)

    pull = (found.data - 5 - np.mean(level)) / np.sqrt(found.var_poisson + found.var_rnoise)
    struck = (found.rejected > 0) & (hit.sum(axis=0) < 4)
    first = hit[0] & (hit.sum(axis=0) == 1)
    assert np.std(pull[struck]) == pytest.approx(1, abs=0.06)
    assert abs(np.mean(pull[first])) < 0.1
    assert abs(np.mean(pull[struck]) - np.mean(pull[found.rejected == 0])) < 0.1


def test_errors_stated_too_small_are_no_reason_to_reject():
    data, variances = noise(6)
    plain = integrations.combine(data, everywhere(data), **variances)
    small = {name: plane / 1.5**2 for name, plane in variances.items()}

    found = integrations.combine(data, everywhere(data), **small)

    assert plain.noise_factor == pytest.approx(1, abs=0.02)
    assert found.noise_factor == pytest.approx(1.5, rel=0.02)
    assert found.rejected.mean() == pytest.approx(plain.rejected.mean(), rel=0.15)


def test_hits_hardly_widen_the_noise():
    data, variances = noise(8)
    struck = data + 50 * (np.random.default_rng(3).random(data.shape) < 0.1)

    assert integrations.combine(struck, everywhere(data), **variances).noise_factor < 1.03


def test_pixels_with_few_samples_are_averaged_unclipped():
    data, variances = noise(4, (2, 2))
    data[0] += 500
    valid = everywhere(data)
    valid[1:3, 0] = False

    found = integrations.combine(data, valid, min_integrations=3, **variances)

    np.testing.assert_allclose(found.data[0], data[[0, 3], 0].mean(axis=0))
    np.testing.assert_array_equal(found.rejected, [[0, 0], [1, 1]])
    np.testing.assert_allclose(found.var_rnoise[0], 0.35)


def test_a_sample_without_known_noise_is_judged_by_the_scatter_of_its_pixel():
    data = np.array([1.0, 1.1, 0.9, 1.0, 30.0])[:, None, None]
    variance = np.array([0.01, 0.01, 0.01, 0.01, 0.0])[:, None, None]

    found = integrations.combine(data, everywhere(data), var_poisson=variance, sigma=5.0)
    unknown = integrations.combine(data, everywhere(data), var_poisson=0 * variance, sigma=5.0)

    assert found.rejected.item() == unknown.rejected.item() == 1
    assert found.data.item() == pytest.approx(1)


# Properties

samples = hnp.arrays(np.float32, (5, 2, 3), elements=st.integers(-50, 50))
valid_samples = hnp.arrays(bool, (5, 2, 3))
methods = st.sampled_from(integrations.METHODS)


def run(data, valid, method):
    return integrations.combine(data, valid, method=method, var_rnoise=np.full(data.shape, 4.0, np.float32))


@SETTINGS
@given(samples, valid_samples, methods)
def test_every_valid_sample_is_used_or_rejected_and_one_at_least_is_used(data, valid, method):
    found = run(data, valid, method)

    np.testing.assert_array_equal(found.used + found.rejected, np.count_nonzero(valid, axis=0))
    np.testing.assert_array_equal(found.used > 0, valid.any(axis=0))
    np.testing.assert_array_equal(np.isnan(found.data), ~valid.any(axis=0))
    low, high = (edge(np.where(valid, data, fill), axis=0) for edge, fill in ((np.min, 99), (np.max, -99)))
    inside = (found.data >= low - 1e-5) & (found.data <= high + 1e-5)
    assert (inside | ~valid.any(axis=0)).all()


@SETTINGS
@given(samples, valid_samples, methods, st.permutations(range(5)), st.integers(-1000, 1000))
def test_order_and_a_constant_change_nothing(data, valid, method, order, constant):
    first, second = run(data, valid, method), run(data[order] + np.float32(constant), valid[order], method)

    np.testing.assert_allclose(second.data, first.data + constant, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(second.used, first.used)
    np.testing.assert_allclose(second.var_rnoise, first.var_rnoise, rtol=1e-5)


@SETTINGS
@given(samples, valid_samples, methods)
def test_what_is_not_valid_is_never_looked_at_and_inputs_stay_as_they_were(data, valid, method):
    spoilt = np.where(valid, data, np.nan).astype(np.float32)
    before = spoilt.copy(), valid.copy()

    found = run(spoilt, valid, method)

    np.testing.assert_array_equal(found.data, run(data, valid, method).data)
    np.testing.assert_array_equal(spoilt, before[0])
    np.testing.assert_array_equal(valid, before[1])


@pytest.mark.parametrize("method", integrations.METHODS)
def test_blocks_of_rows_leave_no_trace(method, monkeypatch):
    data, variances = noise(4, (37, 50))
    data[2, ::3, ::5] += 100
    whole = integrations.combine(data, everywhere(data), method=method, **variances)
    monkeypatch.setattr(integrations, "_BLOCK", 4 * 50 * 5)

    parts = integrations.combine(data, everywhere(data), method=method, **variances)

    for name in ("data", "var_poisson", "var_rnoise", "used", "rejected"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_many_integrations_need_little_memory(monkeypatch):
    data, variances = noise(60, (100, 300))
    valid = everywhere(data)
    monkeypatch.setattr(integrations, "_BLOCK", 1 << 15)
    monkeypatch.setattr(integrations, "_PROBE", 1 << 15)
    integrations.combine(data, valid, **variances)  # fills the tables of factors
    tracemalloc.start()

    integrations.combine(data, valid, **variances)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < data.nbytes


def test_big_endian_arrays_of_fits_files_do():
    data, variances = noise(3, (4, 5))
    swapped = {name: plane.astype(">f4") for name, plane in variances.items()}

    found = integrations.combine(data.astype(">f4"), everywhere(data), **swapped)

    expected = integrations.combine(data, everywhere(data), **variances)
    np.testing.assert_array_equal(found.data, expected.data)
    assert found.data.dtype == np.float32
    assert found.used.dtype == np.uint16


# What it refuses


@pytest.mark.parametrize(
    "change, message",
    [
        ({"method": "mode"}, "method must be one of mean, ivar, median, clip, got 'mode'"),
        ({"sigma": 0.0}, "sigma must be above 0, got 0.0"),
        ({"min_integrations": 2}, "min_integrations must be at least 3, got 2"),
        (
            {"var_rnoise": np.ones((2, 4, 4))},
            r"var_rnoise must have the shape of data \(3, .*got \(2, 4, 4\)",
        ),
        ({"method": "ivar"}, "'ivar' needs var_rnoise"),
        ({"method": "clip"}, "'clip' needs var_poisson or var_rnoise"),
    ],
)
def test_wrong_input_is_named(change, message):
    data = np.ones((3, 4, 4), np.float32)

    with pytest.raises(ValueError, match=message):
        integrations.combine(data, everywhere(data), **change)


def test_a_frame_is_no_cube():
    with pytest.raises(ValueError, match=r"data must have the shape \(n, ny, nx\), got \(4, 4\)"):
        integrations.combine(np.ones((4, 4)), np.ones((4, 4), bool))
