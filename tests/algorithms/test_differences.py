"""The difference of two exposures: truth recovered, sky cancelled, outliers ignored."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miri_steps.algorithms import location, sky_cells
from miri_steps.algorithms.detector_background import DetectorPolynomial
from miri_steps.algorithms.differences import Clipping, compare
from miri_steps.algorithms.sky_cells import DetectorPosition, PixelMap, SkyCells

SETTINGS = settings(deadline=None, derandomize=True, max_examples=25)
N, SIDE = 128, 4.0
POLYNOMIAL = DetectorPolynomial(2, ((N - 1) / 2, (N - 1) / 2), (N / 2, N / 2))
FLAT = DetectorPolynomial(0, (0.0, 0.0), (1.0, 1.0))
NONE, ZERO = np.zeros(0), np.zeros(5)
EVERY = pytest.mark.parametrize("statistic", list(location.STATISTICS))


def on_sky(shift, roll=0.0):
    """Sky position [pixel] of every detector pixel, and the map to cells."""
    c, s = np.cos(np.radians(roll)), np.sin(np.radians(roll))

    def position(x, y):
        u, v = x - (N - 1) / 2, y - (N - 1) / 2
        return c * u - s * v + shift[0], s * u + c * v + shift[1]

    mesh = np.linspace(0, N - 1, 9)
    column, row = position(*np.meshgrid(mesh, mesh))
    row_y, column_x = np.indices((N, N), float)
    return position(column_x, row_y), PixelMap(mesh, mesh, column / SIDE, row / SIDE)


def smooth(u, v):
    return 5 * np.sin(u / 19) + 4 * np.cos((u - 2 * v) / 37)


def seen(shift=(0.0, 0.0), roll=0.0, *, level=0.0, sky=None, background=ZERO, noise=0.0, seed=0):
    """One exposure on its cells: sky + level + background + white noise."""
    (u, v), m = on_sky(shift, roll)
    image = level + POLYNOMIAL.image(background, (N, N))
    image = image + np.random.default_rng(seed).normal(0, 1, (N, N)) * noise
    return sky_cells.resample(image if sky is None else image + sky(u, v), m)


def lay(values, corner=(0, 0)):
    """Make cells of an array; their detector positions are those of an exposure not dithered."""
    values = np.asarray(values, np.float32)
    coefficients = np.zeros((2, 2, 2))
    coefficients[0, 0] = -SIDE * np.array(corner)
    coefficients[1, 0, 0] = coefficients[0, 1, 1] = SIDE
    return SkyCells(values, DetectorPosition((0.0, 0.0), 1.0, coefficients), corner, SIDE)


def subtract(first, second, *, polynomial=FLAT, background=NONE, shared=None, **clipping):
    if shared is None:
        shared = np.full(first.data.shape, 2, np.uint16)
    return compare(
        first,
        second,
        shared,
        terms=tuple(polynomial.evaluate(*cells.detector_positions()) for cells in (first, second)),
        background=background,
        clipping=Clipping(**clipping),
    )


# --- the difference ----------------------------------------------------------------------------


@EVERY
def test_the_difference_is_first_minus_second(statistic):
    first, second = seen(level=7.25, sky=smooth), seen((23.3, -11.7), 5, level=4.0, sky=smooth)
    found = subtract(first, second, statistic=statistic)
    assert found.difference == pytest.approx(3.25, abs=2e-3)
    assert subtract(second, first, statistic=statistic).difference == pytest.approx(-3.25, abs=2e-3)


@pytest.fixture(scope="module")
def noisy_pairs():
    """Pairs of exposures of a dark sky at random dithers and rolls, the first brighter by 0.3."""
    pairs = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        pairs.append(
            [
                seen(rng.uniform(-15, 15, 2), rng.uniform(0, 360), level=level, noise=0.5, seed=(seed, k))
                for k, level in enumerate((1.3, 1.0))
            ]
        )
    return pairs


@EVERY
def test_the_truth_lies_within_the_stated_error(noisy_pairs, statistic):
    found = [subtract(*pair, statistic=statistic) for pair in noisy_pairs]
    pulls = [(pair.difference - 0.3) / pair.error for pair in found]
    assert abs(np.mean(pulls)) < 0.15
    assert 0.9 < np.std(pulls) < 1.1


def test_noise_is_told_by_the_cells_that_are_shared():
    noise = 0.5
    first, second = seen(noise=noise, seed=1), seen((33, 9), 20, noise=noise, seed=2)
    few = subtract(first, second, statistic="mean")
    # Two images of white noise over an area of n cells of 16 pixels.
    assert few.error == pytest.approx(noise * np.sqrt(2 / (16 * few.n_cells)), rel=0.05)
    here, there = sky_cells.overlap(first, second)
    assert few.n_cells == pytest.approx(np.count_nonzero(first.seen[here] & second.seen[there]), abs=3)


def test_a_rugged_sky_cancels():
    def rugged(u, v):
        return 40 * np.exp(-((u - 10) ** 2 + v**2) / 300) + smooth(u, v)

    same = seen((5.1, 2.2), 0, level=1.0, sky=rugged), seen((17.9, -8.3), 30, level=0.5, sky=rugged)
    found = subtract(*same)
    assert found.difference == pytest.approx(0.5, abs=3e-3)
    # What is left of the sky is far below what was there.
    assert found.error * np.sqrt(found.n_cells) < 0.1 < 0.02 * np.std(rugged(*on_sky((0, 0))[0]))


@EVERY
@pytest.mark.parametrize("side", [-1, 1])
def test_outliers_do_not_move_the_difference(statistic, side):
    first = seen(level=2.0, noise=0.5, seed=3)
    second = seen((9.7, 4.4), 12, noise=0.5, seed=4)
    clean = subtract(first, second, statistic=statistic)
    sigma = clean.error * np.sqrt(clean.n_cells)
    hit = np.random.default_rng(5).random(first.data.shape) < 0.05
    struck = replace(first, data=np.where(hit, first.data + np.float32(side * 100 * sigma), first.data))
    found = subtract(struck, second, statistic=statistic)
    assert abs(found.difference - clean.difference) < clean.error
    assert found.difference == pytest.approx(2, abs=4 * clean.error)
    assert found.n_cells == pytest.approx(0.95 * clean.n_cells, rel=0.03)
    assert found.error == pytest.approx(clean.error / np.sqrt(0.95), rel=0.05)


@SETTINGS
@given(seed=st.integers(0, 1000), statistic=st.sampled_from(list(location.STATISTICS)))
def test_exchanging_the_exposures_changes_signs_alone(seed, statistic):
    rng = np.random.default_rng(seed)
    shape = (20, 22)
    first = lay(rng.normal(size=shape))
    second = lay(rng.normal(size=shape), (int(rng.integers(-5, 6)), int(rng.integers(-5, 6))))
    background = rng.normal(size=5)
    one, other = (
        subtract(a, b, polynomial=POLYNOMIAL, background=background, statistic=statistic)
        for a, b in ((first, second), (second, first))
    )
    # The mode and the midpoint are read from bins that start at the lowest value.
    assert other.difference == pytest.approx(-one.difference, abs=1e-3 * one.error)
    np.testing.assert_allclose(other.terms, -one.terms, atol=1e-6)
    np.testing.assert_allclose(other.covariance, one.covariance, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(other.slope, one.slope, rtol=1e-4, atol=1e-4)
    assert other.error == pytest.approx(one.error, rel=1e-5)
    assert other.n_cells == one.n_cells


@SETTINGS
@given(a=st.floats(-100, 100), b=st.floats(-100, 100))
def test_levels_add_up(a, b):
    rng = np.random.default_rng(6)
    one, two = rng.normal(size=(2, 20, 20))
    still, raised = subtract(lay(one), lay(two)), subtract(lay(one + a), lay(two + b))
    assert raised.difference - still.difference == pytest.approx(a - b, abs=1e-3)
    assert raised.error == pytest.approx(still.error, rel=1e-3)


def test_inputs_are_left_alone():
    rng = np.random.default_rng(7)
    first, second = lay(rng.normal(size=(12, 12))), lay(rng.normal(size=(12, 12)))
    shared = np.full((12, 12), 2, np.uint16)
    before = [a.copy() for a in (first.data, second.data, shared)]
    subtract(first, second, shared=shared, polynomial=POLYNOMIAL, background=np.ones(5))
    for kept, now in zip(before, (first.data, second.data, shared), strict=True):
        np.testing.assert_array_equal(kept, now)


# --- which cells -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 9, 10, 11, 40])
def test_ten_cells_are_needed(n):
    values = np.full((7, 8), np.nan)
    values.flat[:n] = 1.0
    found = subtract(lay(values), lay(np.arange(56.0).reshape(7, 8)), nclip=0)
    if n < 10:
        assert found is None
    else:
        assert found.n_cells == n
        assert found.difference == pytest.approx(1 - (n - 1) / 2, abs=1.5)


def test_exposures_apart_have_no_difference():
    assert subtract(lay(np.zeros((9, 9))), lay(np.zeros((9, 9)), (9, 0))) is None


def test_only_cells_seen_by_both_count():
    rng = np.random.default_rng(8)
    first, second = rng.normal(3, 1, (2, 20, 20))
    first[:, :5], second[:8] = np.nan, np.nan
    found = subtract(lay(first), lay(second, (2, 0)), nclip=0, statistic="mean")
    # Columns 5 to 19 of the first meet columns 3 to 17 of the second, in rows 8 to 19.
    assert found.n_cells == 15 * 12
    expected = first[8:, 5:20] - second[8:, 3:18]
    assert found.difference == pytest.approx(expected.mean(), abs=1e-5)


@pytest.mark.parametrize("m", [2, 3, 7])
def test_identical_exposures_share_their_information(m):
    rng = np.random.default_rng(9)
    cells = [lay(rng.normal(size=(15, 15))) for _ in range(m)]
    pairs = [(i, j) for j in range(m) for i in range(j)]
    shared = [sky_cells.shared_by(c, cells[:k] + cells[k + 1 :]) for k, c in enumerate(cells)]
    found = [subtract(cells[i], cells[j], shared=shared[i]) for i, j in pairs]
    assert [pair.independence for pair in found] == pytest.approx([2 / m] * len(pairs))
    # All pairs together carry what m - 1 independent differences carry.
    weight = sum(pair.independence * pair.error**-2 for pair in found)
    assert weight == pytest.approx((m - 1) * np.mean([pair.error for pair in found]) ** -2, rel=0.05)


def test_independence_is_the_mean_over_the_cells_used():
    shared = np.full((10, 10), 2, np.uint16)
    shared[:, 5:] = 4
    first = np.zeros((10, 10))
    first[0, 5:] = np.nan
    found = subtract(lay(first), lay(np.ones((10, 10))), shared=shared)
    assert found.n_cells == 95
    assert found.independence == pytest.approx((50 * 1.0 + 45 * 0.5) / 95)


# --- the background fixed to the detector ------------------------------------------------------

TRUTH = np.array([0.0, 0.0, 2.0, -1.5, 1.0])


def bent(noise=0.0, background=TRUTH):
    return [
        seen((17.2, -21.5), level=3.0, sky=smooth, background=background, noise=noise, seed=10),
        seen((-14.1, 8.3), 25, level=1.0, sky=smooth, background=background, noise=noise, seed=11),
    ]


def test_terms_describe_the_difference_of_the_background():
    found = subtract(*bent(), polynomial=POLYNOMIAL, background=TRUTH, statistic="mean")
    assert found.difference == pytest.approx(2.0 + found.terms @ TRUTH, abs=0.01)
    np.testing.assert_allclose(found.slope, found.covariance @ TRUTH, atol=0.02)
    assert np.linalg.norm(found.slope) > 1


@EVERY
def test_a_background_known_is_put_back(statistic):
    noise = 0.3
    known, unknown = (
        subtract(*bent(noise), polynomial=POLYNOMIAL, background=b, statistic=statistic, nclip=0)
        for b in (TRUTH, ZERO)
    )
    np.testing.assert_allclose(known.terms, unknown.terms, atol=1e-6)
    np.testing.assert_allclose(known.covariance, unknown.covariance, atol=1e-5)
    np.testing.assert_allclose(known.slope, unknown.slope, rtol=1e-4, atol=1e-3)
    # Without it the location is that of a bent difference image, which has no one location.
    tolerance = 1e-3 if statistic == "mean" else 2 * unknown.error
    assert known.difference == pytest.approx(unknown.difference, abs=tolerance)
    assert known.error < 0.6 * unknown.error
    assert known.difference == pytest.approx(2.0 + known.terms @ TRUTH, abs=4 * known.error + 0.01)


def test_slopes_give_the_background_back():
    # A roll about one point hides what is round about that point: two pairs are needed.
    noise = 0.05
    first, second = bent(noise)
    third = seen((3.3, 30.2), -70, level=2.0, sky=smooth, background=TRUTH, noise=noise, seed=14)
    pairs = [subtract(first, other, polynomial=POLYNOMIAL, background=ZERO) for other in (second, third)]
    found = np.linalg.solve(sum(p.covariance for p in pairs), sum(p.slope for p in pairs))
    np.testing.assert_allclose(found, TRUTH, rtol=0, atol=0.03)


def test_outliers_are_told_around_the_background():
    # 4 sigma of the bent difference image hide a cell that is 8 sigma off around the background.
    first, second = bent(0.3)
    hit = np.random.default_rng(12).random(first.data.shape) < 0.03
    struck = replace(first, data=np.where(hit, first.data + np.float32(1.0), first.data))
    clean = subtract(first, second, polynomial=POLYNOMIAL, background=TRUTH, statistic="mean")
    around = subtract(struck, second, polynomial=POLYNOMIAL, background=TRUTH, statistic="mean")
    blind = subtract(struck, second, polynomial=POLYNOMIAL, background=ZERO, statistic="mean")
    assert around.n_cells < 0.99 * clean.n_cells
    # The terms are those of the cells that are left.
    moved = around.difference - around.terms @ TRUTH - (clean.difference - clean.terms @ TRUTH)
    assert abs(moved) < clean.error
    assert blind.n_cells > around.n_cells


def test_covariance_is_that_of_the_cells():
    rng = np.random.default_rng(13)
    data = rng.normal(size=(2, 18, 18))
    first, second = lay(data[0]), lay(data[1], (3, 2))
    found = subtract(first, second, polynomial=POLYNOMIAL, background=ZERO, nclip=0, statistic="mean")
    window, other = np.s_[2:, 3:], np.s_[:16, :15]
    x, y = (z[window] for z in first.detector_positions())
    terms = (POLYNOMIAL.evaluate(x, y) - POLYNOMIAL.evaluate(x - 12, y - 8)).reshape(5, -1).astype(float)
    brightness = (data[0][window] - data[1][other]).ravel()
    table = np.cov(np.vstack([terms, brightness]), bias=True)
    np.testing.assert_allclose(found.terms, terms.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(found.covariance, table[:5, :5], atol=1e-5)
    np.testing.assert_allclose(found.slope, table[:5, 5], atol=1e-5)
    assert found.error == pytest.approx(
        brightness.std() / np.sqrt(brightness.size) * sky_cells.noise_correlation(SIDE), rel=1e-5
    )
