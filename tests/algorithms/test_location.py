"""Location of a sample: the truth, its scatter, and what outliers do to it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miri_steps.algorithms import location

SETTINGS = settings(deadline=None, derandomize=True, max_examples=40)
EVERY = pytest.mark.parametrize("statistic", list(location.STATISTICS))
SEEDS = st.integers(0, 10_000)


def normal(seed, size):
    return np.random.default_rng(seed).normal(size=size)


# --- clip --------------------------------------------------------------------------------------


def test_without_rounds_nothing_is_clipped():
    values = np.append(normal(1, 50), 1e6)
    keep, mean, sigma = location.clip(values, nclip=0)
    assert keep.all()
    assert (mean, sigma) == pytest.approx((values.mean(), values.std()), rel=1e-12)


@pytest.mark.parametrize("size", [1, 2, 30])
def test_a_constant_sample_is_kept_whole(size):
    keep, mean, sigma = location.clip(np.full(size, 3.25, np.float32))
    assert keep.all()
    assert (mean, sigma) == (3.25, 0.0)


def test_limits_are_different_below_and_above():
    values = normal(2, 20_000)
    keep, mean, sigma = location.clip(values, nclip=50, lsigma=1.5, usigma=6.0)
    assert values[keep].max() == values.max()
    # The fixed point of clipping a normal distribution at 1.5 sigma below alone, from its truncated moments:
    # cut = mean - 1.5 sigma with mean and sigma of what lies above the cut.
    assert values[keep].min() == pytest.approx(mean - 1.5 * sigma, abs=0.005)
    assert np.all(values[~keep] < values[keep].min())
    assert mean > 0.1


def test_first_round_measures_in_sigma_of_the_bulk():
    values = normal(14, 40_000)
    keep, *_ = location.clip(values, nclip=1, lsigma=1.0, usigma=2.0)
    assert (values[keep].min(), values[keep].max()) == pytest.approx((-1, 2), abs=0.04)


@SETTINGS
@given(seed=SEEDS, lsigma=st.floats(1, 5), usigma=st.floats(1, 5), nclip=st.integers(1, 8))
def test_clipping_a_mirrored_sample_mirrors_the_result(seed, lsigma, usigma, nclip):
    values = np.concatenate([normal(seed, 300), normal(seed + 1, 30) * 20])
    keep, mean, sigma = location.clip(values, nclip=nclip, lsigma=lsigma, usigma=usigma)
    mirrored = location.clip(-values, nclip=nclip, lsigma=usigma, usigma=lsigma)
    np.testing.assert_array_equal(mirrored[0], keep)
    assert mirrored[1:] == pytest.approx((-mean, sigma), rel=1e-9, abs=1e-12)


@SETTINGS
@given(seed=SEEDS, lsigma=st.floats(2, 5), usigma=st.floats(2, 5))
def test_what_is_reported_belongs_to_what_is_kept(seed, lsigma, usigma):
    values = np.concatenate([normal(seed, 300), 30 + normal(seed + 1, 40)])
    before = values.copy()
    keep, mean, sigma = location.clip(values, lsigma=lsigma, usigma=usigma)
    assert (mean, sigma) == pytest.approx((values[keep].mean(), values[keep].std()), rel=1e-12)
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("part", [0.05, 0.2, 0.45])
def test_gross_outliers_are_all_left_out(side, part):
    n = 4000
    bad = int(part * n)
    values = normal(3, n)
    values[:bad] = side * np.random.default_rng(4).uniform(30, 3000, bad)
    keep, mean, sigma = location.clip(values)
    assert not keep[:bad].any()
    assert keep[bad:].mean() > 0.999
    assert abs(mean) < 4 / np.sqrt(n - bad)
    assert sigma == pytest.approx(1, abs=0.04)


def test_when_the_limits_leave_nothing_the_sample_stays():
    values = np.array([-1.0, -1.0, 1.0, 1.0])
    keep, mean, sigma = location.clip(values, lsigma=0.1, usigma=0.1)
    assert keep.all()
    assert mean == 0.0
    assert sigma > 0


# --- locate ------------------------------------------------------------------------------------


@EVERY
def test_location_is_unbiased_and_scatters_as_stated(statistic):
    draws, n, center, spread = 2000, 400, 5.0, 2.0
    samples = center + spread * normal(5, (draws, n))
    found = np.array([location.locate(sample, statistic, sigma=sample.std()) for sample in samples])
    stated = location.STATISTICS[statistic] * spread / np.sqrt(n)
    assert abs(found.mean() - center) < 4 * stated / np.sqrt(draws)
    assert found.std() == pytest.approx(stated, rel=0.06)


def test_statistics_are_independent_measures_of_one_thing():
    values = normal(6, 100_000) * 3 - 7
    found = {name: location.locate(values, name, sigma=values.std()) for name in location.STATISTICS}
    assert found["mean"] == values.mean()
    assert found["median"] == np.median(values)
    assert found["midpt"] == pytest.approx(np.median(values), abs=0.01)
    assert found["mode"] == pytest.approx(-7, abs=0.05)


@EVERY
@SETTINGS
@given(seed=SEEDS, shift=st.floats(-1e4, 1e4), scale=st.floats(1e-3, 1e3))
def test_location_follows_shift_and_scale(statistic, seed, shift, scale):
    values = normal(seed, 200)
    sigma = values.std()
    expected = location.locate(values, statistic, sigma=sigma)
    moved = location.locate(scale * values + shift, statistic, sigma=scale * sigma)
    assert moved == pytest.approx(scale * expected + shift, abs=1e-6 * scale + 1e-9 * abs(shift))


@EVERY
@SETTINGS
@given(seed=SEEDS)
def test_location_ignores_the_order_and_lies_inside_the_sample(statistic, seed):
    values = normal(seed, 50)
    found = location.locate(values, statistic, sigma=values.std())
    shuffled = np.random.default_rng(seed).permutation(values)
    assert location.locate(shuffled, statistic, sigma=values.std()) == pytest.approx(found, abs=1e-12)
    assert values.min() <= found <= values.max()


@EVERY
@pytest.mark.parametrize("size", [1, 12])
def test_location_of_a_constant_sample_is_its_value(statistic, size):
    assert location.locate(np.full(size, -2.5), statistic, sigma=0.0) == -2.5


def contaminated(part, add):
    """Locations of a clipped normal sample, some of which faint sources lie upon."""
    n = 100_000
    values = normal(7, n)
    values[: int(part * n)] += add(np.random.default_rng(8), int(part * n))
    keep, _, sigma = location.clip(values)
    return {name: location.locate(values[keep], name, sigma=sigma) for name in location.STATISTICS}


@pytest.mark.parametrize("low_high", [(1, 4), (1, 6), (2, 8)])
def test_mode_follows_the_peak_of_a_contaminated_sample(low_high):
    found = contaminated(0.3, lambda rng, n: rng.uniform(*low_high, n))
    assert found["mean"] > 0.7
    assert found["median"] == pytest.approx(found["midpt"], abs=0.02)
    assert 0 < found["mode"] < found["median"] < 0.75 * found["mean"]
    assert found["mode"] < 0.6 * found["mean"]


def test_mode_follows_the_peak_beside_a_wide_tail():
    found = contaminated(0.3, lambda rng, n: rng.uniform(3, 12, n))
    assert abs(found["mode"]) < 0.5 * found["median"]


@pytest.mark.parametrize("part", [0.05, 0.1, 0.2])
def test_mode_is_moved_least_by_faint_sources(part):
    found = contaminated(part, lambda rng, n: rng.exponential(3, n))
    assert 0 < found["mode"] < 0.7 * found["median"]
    assert found["mode"] < 0.5 * found["mean"]


def test_mode_mirrors_with_the_sample():
    values = np.concatenate([normal(12, 5000), np.random.default_rng(13).uniform(1, 6, 1500)])
    found = location.locate(values, "mode", sigma=1.0)
    assert location.locate(-values, "mode", sigma=1.0) == pytest.approx(-found, abs=0.005)


@pytest.mark.parametrize("binwidth", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("statistic", ["mode", "midpt"])
def test_width_of_the_bins_hardly_matters(statistic, binwidth):
    values = normal(9, 10_000)
    fine = location.locate(values, statistic, sigma=1.0, binwidth=0.005)
    assert location.locate(values, statistic, sigma=1.0, binwidth=binwidth) == pytest.approx(fine, abs=0.004)


@pytest.mark.parametrize("statistic", ["mode", "midpt"])
def test_no_bin_width_means_the_usual_one(statistic):
    values = normal(10, 500)
    usual = location.locate(values, statistic, sigma=1.0, binwidth=0.1)
    assert location.locate(values, statistic, sigma=1.0, binwidth=0.0) == usual


def test_midpt_halves_the_counts():
    # Bins are counted from the mean: 2 values in the one below it, 4 in the one above it, and half of
    # six is passed a quarter into the second.
    values = np.array([0.0, 0.5, 1.1, 1.2, 1.3, 1.4])
    assert location.locate(values, "midpt", sigma=1.0, binwidth=1.0) == pytest.approx(values.mean() + 0.25)


def test_unknown_statistic_is_named():
    with pytest.raises(ValueError, match="statistic must be one of mean, median, midpt, mode, got 'modus'"):
        location.locate(normal(11, 20), "modus", sigma=1.0)
