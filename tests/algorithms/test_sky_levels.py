"""Levels and background from networks of differences whose truth is known."""

import functools
import itertools
import time
import tracemalloc
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miri_steps.algorithms import sky_levels, sky_network
from miri_steps.algorithms.detector_background import DetectorPolynomial, visible_terms
from miri_steps.algorithms.sky_network import Network

SETTINGS = settings(deadline=None, derandomize=True, max_examples=30)
# Where noise asks for many rounds of weights, and each example for two solutions.
DEAR = settings(SETTINGS, max_examples=12)
SEEDS = st.integers(0, 10_000)
NO_PATTERNS = np.zeros((0, 0))
N = 128
POLYNOMIAL = DetectorPolynomial(2, ((N - 1) / 2, (N - 1) / 2), (N / 2, N / 2))


def plain_network(level, pairs, *, noise=0.0, error=0.1, rng=None):
    """Differences of levels alone, with normal noise in units of their errors."""
    first, second = np.array(pairs, int).reshape(-1, 2).T
    error = np.broadcast_to(np.asarray(error, float), first.shape).copy()
    difference = level[first] - level[second]
    if rng is not None:
        difference = difference + noise * error * rng.normal(size=first.shape)
    p = len(first)
    return Network(
        len(level), first, second, difference, error, np.zeros((p, 0)), np.zeros((p, 0)), np.zeros((p, 0))
    )


def some_pairs(n, rng, part=0.5):
    """Pairs that hold n exposures together."""
    chain = [(k, k + 1) for k in range(n - 1)]
    more = [pair for pair in combinations(range(n), 2) if pair not in chain and rng.random() < part]
    return sorted(chain + more)


def dithered_network(shift, level, background, *, sigma=0.0, roll=None, rng=None):
    """
    Network of exposures of a flat sky, from the cells of 4 pixels that each pair shares.

    The noise of a cell difference is `sigma`; a pair's difference and slope have the noise that
    follows from it. Without noise the errors are those of sigma 1.
    """
    roll = np.zeros(len(shift)) if roll is None else roll
    u, v = np.meshgrid(np.arange(-120.0, N + 120, 4), np.arange(-120.0, N + 120, 4))
    middle = (N - 1) / 2
    terms, seen = [], []
    for (dx, dy), angle in zip(shift, np.radians(roll), strict=True):
        x = np.cos(angle) * (u - middle - dx) + np.sin(angle) * (v - middle - dy) + middle
        y = -np.sin(angle) * (u - middle - dx) + np.cos(angle) * (v - middle - dy) + middle
        terms.append(POLYNOMIAL.evaluate(x, y).astype(float).reshape(5, -1))
        seen.append(((np.abs(x - middle) <= N / 2) & (np.abs(y - middle) <= N / 2)).ravel())
    # Most cells of the field are outside of an exposure.
    inside = [np.flatnonzero(each) for each in seen]
    names = ("first", "second", "difference", "error", "terms", "covariance", "slope")
    columns = {name: [] for name in names}
    for i, j in combinations(range(len(shift)), 2):
        both = inside[i][seen[j][inside[i]]]
        n = len(both)
        if n < 10:
            continue
        step = terms[i][:, both] - terms[j][:, both]
        mean = step.mean(axis=1)
        covariance = np.cov(step, bias=True)
        error = (sigma or 1.0) / np.sqrt(n)
        difference, slope = level[i] - level[j] + mean @ background, covariance @ background
        if sigma:
            difference += error * rng.normal()
            spread = covariance * error**2
            slope = slope + rng.multivariate_normal(np.zeros(5), spread, method="eigh", tol=1e-6)
        found = (i, j, difference, error, mean, sky_network.pack(covariance), slope)
        for column, value in zip(columns.values(), found, strict=True):
            column.append(value)
    return Network(len(shift), **{name: np.array(column) for name, column in columns.items()})


def visible(network):
    return visible_terms(network.information(network.weight), network.weight.sum(), min_visibility=0.05)


# --- components --------------------------------------------------------------------------------


def test_pieces_are_numbered_by_their_first_exposures():
    # 1-4-6 and 2-3 hang together; 0 and 5 are alone.
    first, second = np.array([4, 3, 1]), np.array([6, 2, 4])
    np.testing.assert_array_equal(sky_network.components(7, first, second), [-1, 0, 1, 1, 0, -1, 0])


def test_without_pairs_every_exposure_is_alone():
    empty = np.zeros(0, int)
    np.testing.assert_array_equal(sky_network.components(3, empty, empty), [-1, -1, -1])


@SETTINGS
@given(seed=SEEDS, n=st.integers(1, 12), p=st.integers(0, 14))
def test_pieces_are_what_pairs_hold_together(seed, n, p):
    rng = np.random.default_rng(seed)
    pairs = [(i, j) for i, j in rng.integers(0, n, (p, 2)) if i != j]
    first, second = np.array(pairs, int).reshape(-1, 2).T
    found = sky_network.components(n, first, second)
    reach = np.eye(n, dtype=int)
    reach[first, second] = reach[second, first] = 1
    reach = np.linalg.matrix_power(reach, n) > 0
    alone = reach.sum(axis=1) == 1
    np.testing.assert_array_equal(found == -1, alone)
    together = (found[:, np.newaxis] == found) & ~alone & ~alone[:, np.newaxis]
    np.testing.assert_array_equal(together, reach & ~alone & ~alone[:, np.newaxis])
    starts = [np.flatnonzero(found == piece)[0] for piece in range(found.max() + 1)]
    assert starts == sorted(starts)


# --- solve: levels -----------------------------------------------------------------------------


@SETTINGS
@given(seed=SEEDS, n=st.integers(2, 20), constant=st.floats(-1e3, 1e3))
def test_levels_are_exact_without_noise(seed, n, constant):
    rng = np.random.default_rng(seed)
    level = rng.normal(size=n) * 10
    pairs = some_pairs(n, rng, 0.3)
    network = plain_network(level + constant, pairs, error=rng.uniform(0.01, 1, len(pairs)))
    found = sky_levels.solve(network, NO_PATTERNS)
    np.testing.assert_allclose(found.level, level - level.mean(), atol=1e-7)
    np.testing.assert_allclose(found.residual, 0, atol=1e-7)
    np.testing.assert_allclose(found.pair_weight, 1)
    np.testing.assert_array_equal(found.component, np.zeros(n))
    assert found.scatter == 1
    assert found.background.shape == (0,)


def test_one_pair_shares_its_difference_and_its_error():
    found = sky_levels.solve(plain_network(np.array([4.0, 1.0]), [(0, 1)], error=0.2), NO_PATTERNS)
    np.testing.assert_allclose(found.level, [1.5, -1.5])
    # Against their mean each is off by half of what the difference is off.
    np.testing.assert_allclose(found.error, [0.1, 0.1])


def test_errors_of_a_star_are_known():
    # n exposures against one: the level of the hub against the mean is off by error * sqrt(n) / (n + 1).
    n, error = 5, 0.3
    star = plain_network(np.zeros(n + 1), [(0, k + 1) for k in range(n)], error=error)
    found = sky_levels.solve(star, NO_PATTERNS)
    assert found.error[0] == pytest.approx(error * np.sqrt(n) / (n + 1), rel=1e-9)
    leaf = np.sqrt((1 - 1 / (n + 1)) ** 2 + (n - 1) / (n + 1) ** 2) * error
    np.testing.assert_allclose(found.error[1:], leaf, rtol=1e-9)


@DEAR
@given(seed=SEEDS)
def test_the_order_of_exposures_and_pairs_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    n = 12
    network = plain_network(rng.normal(size=n), some_pairs(n, rng), noise=1.0, rng=rng)
    place = rng.permutation(n)
    shuffle = rng.permutation(len(network.first))
    flip = rng.choice([-1, 1], len(network.first))
    first, second = place[network.first], place[network.second]
    other = replace(
        network,
        first=np.where(flip > 0, first, second),
        second=np.where(flip > 0, second, first),
        difference=flip * network.difference,
    ).select(shuffle)
    one, two = sky_levels.solve(network, NO_PATTERNS), sky_levels.solve(other, NO_PATTERNS)
    np.testing.assert_allclose(two.level[place], one.level, atol=1e-6)
    np.testing.assert_allclose(two.error[place], one.error, rtol=1e-4)
    np.testing.assert_allclose(two.pair_weight, one.pair_weight[shuffle], atol=1e-4)


@DEAR
@given(seed=SEEDS, scale=st.floats(1e-3, 1e3))
def test_the_unit_does_not_matter(seed, scale):
    rng = np.random.default_rng(seed)
    network = plain_network(rng.normal(size=9), some_pairs(9, rng), noise=2.0, rng=rng)
    scaled = replace(network, difference=scale * network.difference, error=scale * network.error)
    one, other = sky_levels.solve(network, NO_PATTERNS), sky_levels.solve(scaled, NO_PATTERNS)
    np.testing.assert_allclose(other.level, scale * one.level, atol=1e-7 * scale)
    np.testing.assert_allclose(other.error, scale * one.error, rtol=1e-6)
    assert other.scatter == pytest.approx(one.scatter, rel=1e-6)


@pytest.mark.parametrize("part", [0.1, 0.5, 1.0])
def test_errors_are_honest(part):
    rng = np.random.default_rng(1)
    level = rng.normal(size=16)
    pulls = []
    for _ in range(60):
        pairs = some_pairs(16, rng, part)
        network = plain_network(level, pairs, noise=1.0, error=rng.uniform(0.05, 0.5, len(pairs)), rng=rng)
        found = sky_levels.solve(network, NO_PATTERNS)
        pulls.append((found.level - level + level.mean()) / found.error)
    assert abs(np.mean(pulls)) < 0.05
    assert 0.9 < np.std(pulls) < 1.1


@pytest.mark.parametrize("excess", [3.0, 10.0])
def test_scatter_beyond_the_errors_is_found_and_carried(excess):
    rng = np.random.default_rng(2)
    pulls, scatter = [], []
    for _ in range(20):
        network = plain_network(np.zeros(16), some_pairs(16, rng, 0.7), noise=excess, rng=rng)
        found = sky_levels.solve(network, NO_PATTERNS)
        pulls.append(found.level / found.error)
        scatter.append(found.scatter)
    # Of 20 draws of 15 free levels the width is known to 1 / sqrt(2 * 300), or 4 %.
    assert 0.85 < np.std(pulls) < 1.15
    # Part of the scatter is taken up by the levels: 15 of them for about 87 pairs.
    assert 0.8 * excess < np.mean(scatter) < 1.05 * excess


@DEAR
@given(seed=SEEDS, size=st.sampled_from([-1e5, -1e3, 1e3, 1e5]))
def test_one_pair_far_off_is_left_out(seed, size):
    rng = np.random.default_rng(seed)
    n = 12
    network = plain_network(rng.normal(size=n), some_pairs(n, rng, 0.6), noise=1.0, rng=rng)
    wrong = int(rng.integers(len(network.first)))
    # A pair that the others can check.
    clean = sky_levels.solve(network.select(np.arange(len(network.first)) != wrong), NO_PATTERNS)
    if np.any(clean.component < 0):
        return
    difference = network.difference.copy()
    difference[wrong] += size * network.error[wrong]
    found = sky_levels.solve(replace(network, difference=difference), NO_PATTERNS)
    assert found.pair_weight[wrong] < 1e-3
    assert np.all(np.abs(found.level - clean.level) < clean.error)
    assert found.residual[wrong] / network.error[wrong] == pytest.approx(size, rel=0.02)
    np.testing.assert_array_equal(np.argmin(found.pair_weight), wrong)


def test_pieces_each_have_mean_zero():
    rng = np.random.default_rng(3)
    level = rng.normal(size=11) * 5
    pieces = [[0, 3, 5, 9], [1, 2, 8], [4, 10]]
    pairs = [pair for piece in pieces for pair in combinations(piece, 2)]
    found = sky_levels.solve(plain_network(level, pairs), NO_PATTERNS)
    for number, piece in enumerate(pieces):
        assert set(found.component[piece]) == {number}
        np.testing.assert_allclose(found.level[piece], level[piece] - level[piece].mean(), atol=1e-9)
        assert np.all(found.error[piece] > 0)
    alone = [6, 7]
    assert np.all(found.component[alone] == -1)
    assert np.all(np.isnan(found.level[alone]))
    assert np.all(np.isnan(found.error[alone]))


def test_pieces_do_not_feel_each_other():
    rng = np.random.default_rng(4)
    pairs = [*combinations(range(5), 2), *combinations(range(5, 12), 2)]
    network = plain_network(rng.normal(size=12), pairs, noise=1.0, error=0.1, rng=rng)
    alone = network.select(network.second < 5)
    both, one = sky_levels.solve(network, NO_PATTERNS), sky_levels.solve(replace(alone, size=5), NO_PATTERNS)
    # Only the common scatter ties them, through the weights.
    np.testing.assert_allclose(both.level[:5], one.level, atol=0.02)


def test_without_pairs_nothing_is_known():
    index, number = np.zeros(0, int), np.zeros(0)
    network = Network(3, index, index, number, number, np.zeros((0, 5)), np.zeros((0, 15)), np.zeros((0, 5)))
    found = sky_levels.solve(network, np.zeros((5, 0)))
    assert np.all(np.isnan(found.level))
    np.testing.assert_array_equal(found.component, [-1, -1, -1])
    np.testing.assert_array_equal(found.background, np.zeros(5))
    assert found.residual.shape == found.pair_weight.shape == (0,)


def test_weight_counts_what_a_pair_has_for_itself():
    network = plain_network(np.zeros(3), [(0, 1), (1, 2), (0, 2)], error=[0.1, 0.2, 0.5])
    np.testing.assert_allclose(network.weight, [100, 25, 4])
    shared = replace(network, independence=np.array([1.0, 0.5, 0.25]))
    np.testing.assert_allclose(shared.weight, [100, 12.5, 1])
    np.testing.assert_allclose(shared.select(np.array([2, 0])).weight, [1, 100])
    np.testing.assert_allclose(network.select(network.first == 0).weight, [100, 4])


def test_pairs_that_share_their_cells_know_no_more():
    # The best there is for m exposures: each is off its mean by sigma (1 - 1 / m)^0.5.
    m, sigma = 6, 0.1
    pairs = list(combinations(range(m), 2))
    network = plain_network(np.zeros(m), pairs, error=sigma * np.sqrt(2))
    found = sky_levels.solve(replace(network, independence=np.full(len(pairs), 2 / m)), NO_PATTERNS)
    np.testing.assert_allclose(found.error, sigma * np.sqrt(1 - 1 / m), rtol=1e-9)


# --- solve: patterns ---------------------------------------------------------------------------

DITHERS = np.array([(0, 0), (31, 4), (-12, 40), (25, -33), (-38, -20), (60, 22), (-7, -57)], float)
BACKGROUND = np.array([0.0, 0.0, 0.7, -0.4, 0.5])


def test_patterns_and_levels_are_exact_without_noise():
    level = np.random.default_rng(5).normal(size=7)
    network = dithered_network(DITHERS, level, BACKGROUND)
    patterns = visible(network)
    assert patterns.shape == (5, 3)
    found = sky_levels.solve(network, patterns)
    np.testing.assert_allclose(found.background, BACKGROUND, atol=1e-5)
    np.testing.assert_allclose(found.level, level - level.mean(), atol=1e-5)


def test_rolled_exposures_give_planes_back():
    level = np.random.default_rng(6).normal(size=7)
    background = np.array([1.5, -0.8, 0.7, -0.4, 0.5])
    network = dithered_network(DITHERS, level, background, roll=np.arange(7) * 25.0)
    patterns = visible(network)
    assert patterns.shape == (5, 5)
    found = sky_levels.solve(network, patterns)
    np.testing.assert_allclose(found.background, background, atol=1e-5)
    np.testing.assert_allclose(found.level, level - level.mean(), atol=1e-5)


def test_errors_of_levels_and_patterns_are_honest_together():
    rng = np.random.default_rng(7)
    level_pulls, chi2 = [], []
    for _ in range(100):
        level = rng.normal(size=7)
        network = dithered_network(DITHERS, level, BACKGROUND, sigma=0.5, rng=rng)
        patterns = visible(network)
        found = sky_levels.solve(network, patterns)
        level_pulls.append((found.level - level + level.mean()) / found.error)
        off = patterns.T @ (found.background - BACKGROUND)
        covariance = patterns.T @ found.background_covariance @ patterns
        chi2.append(off @ np.linalg.solve(covariance, off))
    assert 0.9 < np.std(level_pulls) < 1.1
    # Scatter is at least 1, so that chance only ever widens the errors of a small network.
    assert 1.8 < np.mean(chi2) < 3.75


def test_a_pair_far_off_does_not_bend_the_patterns():
    rng = np.random.default_rng(8)
    network = dithered_network(DITHERS, np.zeros(7), BACKGROUND, sigma=0.5, rng=rng)
    patterns = visible(network)
    clean = sky_levels.solve(network, patterns)
    difference, slope = network.difference.copy(), network.slope.copy()
    difference[4] += 1000 * network.error[4]
    slope[4] += 3.0
    found = sky_levels.solve(replace(network, difference=difference, slope=slope), patterns)
    assert found.pair_weight[4] < 1e-3
    assert np.all(np.abs(found.level - clean.level) < clean.error)
    np.testing.assert_allclose(found.background, clean.background, atol=0.02)


def test_errors_are_those_of_the_whole_inverse():
    """Worked out column by column and with the patterns apart, they are those of the dense equations."""
    rng = np.random.default_rng(18)
    network = dithered_network(np.concatenate([DITHERS, DITHERS[:5] + 3]), rng.normal(size=12), BACKGROUND)
    network = network.select((network.first < 7) == (network.second < 7))
    patterns = visible(network)
    found = sky_levels.solve(network, patterns)
    rows = np.arange(len(network.first))
    levels = np.zeros((len(rows), 12))
    levels[rows, network.first], levels[rows, network.second] = 1, -1
    design = np.concatenate([levels, network.terms @ patterns], axis=1)
    normal = design.T @ (network.weight[:, np.newaxis] * design)
    normal[12:, 12:] += patterns.T @ network.information(network.weight) @ patterns
    # The smallest solution has mean 0 in each piece, so that its covariance is that of the centered levels.
    covariance = np.linalg.pinv(normal, hermitian=True)
    np.testing.assert_allclose(found.error, np.sqrt(np.diag(covariance)[:12]), rtol=1e-6)
    np.testing.assert_allclose(
        found.background_covariance, patterns @ covariance[12:, 12:] @ patterns.T, rtol=1e-5, atol=1e-12
    )
    np.testing.assert_array_equal(found.component, np.repeat([0, 1], [7, 5]))


# --- solve: large fields -----------------------------------------------------------------------


def chain(n, rng, noise=0.0):
    """Exposures in a row, each tied to the next only; where they stand in it, and the network."""
    order = rng.permutation(n)
    level = rng.normal(size=n) * 5 + np.linspace(0, 100, n)
    network = plain_network(
        level, list(itertools.pairwise(order)), noise=noise, error=0.01, rng=rng if noise else None
    )
    return np.argsort(order), level - level.mean(), network


def test_a_chain_of_thousands_is_exact_without_noise():
    _, level, network = chain(3000, np.random.default_rng(19))
    np.testing.assert_allclose(sky_levels.solve(network, NO_PATTERNS).level, level, rtol=0, atol=1e-8)


def test_errors_along_a_chain_are_known():
    # Every link before an exposure is off the mean by the part of all that comes before it, and so on.
    n = 3000
    place, level, network = chain(n, np.random.default_rng(20), noise=1.0)
    found = sky_levels.solve(network, NO_PATTERNS)
    before, after = place, n - 1 - place
    squares = [k * (k + 1) * (2 * k + 1) / 6 for k in (before, after)]
    expected = 0.01 * np.sqrt(sum(squares)) / n
    np.testing.assert_allclose(found.error, expected, rtol=1e-9)
    assert np.abs((found.level - level) / found.error).max() < 4


def test_memory_does_not_grow_with_exposures_squared():
    _, _, network = chain(3000, np.random.default_rng(21))
    tracemalloc.start()
    sky_levels.solve(network, NO_PATTERNS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A matrix of exposures against exposures would be 72 MB.
    assert peak < 8e6


def test_many_pieces_are_each_solved_by_themselves():
    rng = np.random.default_rng(22)
    pairs = [(3 * k + i, 3 * k + j) for k in range(2000) for i, j in combinations(range(3), 2)]
    level = rng.normal(size=6000)
    found = sky_levels.solve(plain_network(level, pairs, error=0.3), NO_PATTERNS)
    np.testing.assert_array_equal(found.component, np.repeat(np.arange(2000), 3))
    truth = level.reshape(-1, 3) - level.reshape(-1, 3).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found.level, truth.ravel(), atol=1e-9)
    # The best there is for three exposures and three differences.
    np.testing.assert_allclose(found.error, 0.3 * np.sqrt(2) / 3, rtol=1e-9)


def test_a_survey_of_1500_exposures_is_solved_within_seconds():
    rng = np.random.default_rng(23)
    visit = np.repeat(np.arange(150), 10)
    tile = np.stack(np.meshgrid(np.arange(15), np.arange(10)), axis=-1).reshape(-1, 2) * 90.0
    place = tile[visit] + rng.uniform(-20, 20, (1500, 2))
    near = np.max(np.abs(place[:, np.newaxis] - place), axis=-1) < 110
    first, second = np.nonzero(np.triu(near, 1))
    assert len(first) > 15_000
    level, error, background = rng.normal(size=1500), rng.uniform(0.01, 0.03, len(first)), rng.normal(size=14)
    steps = rng.normal(0, 0.3, (len(first), 14, 20)).astype(np.float32)
    covariance = steps @ steps.transpose(0, 2, 1) / 20
    terms = rng.normal(0, 0.1, (len(first), 14))
    difference = level[first] - level[second] + terms @ background + error * rng.normal(size=len(first))
    wrong = rng.random(len(first)) < 0.02
    difference[wrong] += rng.normal(0, 1, wrong.sum())
    packed = sky_network.pack(covariance)
    network = Network(1500, first, second, difference, error, terms, packed, covariance @ background)
    start = time.process_time()
    together = sky_levels.solve(network, visible(network))
    settled = sky_levels.settle_unseen(together, network, visible(network), visit)
    found = sky_levels.solve_by_group(settled, network, visit)
    assert time.process_time() - start < 10
    np.testing.assert_allclose(together.background, background, atol=1e-3)
    for solved in (together, found):
        off = solved.level - level
        off -= off.mean()
        assert np.std(off) < 0.01
        assert np.abs(off / solved.error).max() < 5


# --- settle_unseen -----------------------------------------------------------------------------

# Three visits of nine dithers each.
VISIT = np.repeat([0, 1, 2], 9)


def dithered_field(rng):
    tile = np.array([(0, 0), (70, 10), (15, 75)], float)[VISIT]
    return tile + rng.uniform(-35, 35, (27, 2))


def settled(level, background, visit=VISIT, seed=9, sigma=0.2):
    rng = np.random.default_rng(seed)
    network = dithered_network(dithered_field(rng), level, background, sigma=sigma, rng=rng)
    patterns = visible(network)
    assert patterns.shape == (5, 3)
    solved = sky_levels.solve(network, patterns)
    return solved, sky_levels.settle_unseen(solved, network, patterns, visit), network, patterns


PLANE = np.array([0.6, -0.4, 0.7, -0.4, 0.5])
STEADY = np.array([1.0, -2.0, 0.5])[VISIT]


def test_a_plane_is_recovered_where_the_sky_is_steady():
    solved, found, *_ = settled(STEADY, PLANE)
    truth = STEADY - STEADY.mean()
    # Before, the plane is in the levels.
    assert np.abs(solved.level - truth).max() > 0.2
    np.testing.assert_allclose(found.background, PLANE, atol=0.08)
    np.testing.assert_allclose(found.level, truth, atol=0.06)
    sigma = np.sqrt(np.diag(found.background_covariance))
    assert np.all(np.abs(found.background - PLANE) < 5 * sigma)
    assert np.all(np.abs(found.level - truth) < 5 * found.error)
    assert np.all(found.error >= solved.error)


def test_small_jumps_of_the_sky_are_borne():
    jumps = np.random.default_rng(10).normal(0, 0.05, 27)
    level = STEADY + jumps
    _, found, *_ = settled(level, PLANE)
    np.testing.assert_allclose(found.background, PLANE, atol=0.25)
    off = found.level - level + level.mean()
    assert np.std(off / found.error) < 1.8


def test_settling_leaves_the_fit_of_the_differences():
    solved, found, network, _ = settled(STEADY, PLANE)

    def residual(levels):
        step = levels.level[network.first] - levels.level[network.second]
        return network.difference - step - network.terms @ levels.background

    np.testing.assert_allclose(residual(found), residual(solved), atol=1e-4)
    np.testing.assert_allclose(found.residual, solved.residual)


@functools.cache
def unsteady(seed):
    """Levels at random, and those that are found before and after they are settled."""
    level = np.random.default_rng(seed).normal(size=27)
    return level, *settled(level, BACKGROUND, seed=200 + seed)[:2]


@pytest.mark.parametrize("seed", range(5))
def test_random_levels_ask_for_no_plane(seed):
    level, solved, found = unsteady(seed)
    assert np.abs(found.level - solved.level).max() < 0.1 * np.std(level)
    np.testing.assert_allclose(found.background, BACKGROUND, atol=0.3)


def test_random_levels_seldom_fake_a_plane():
    kept = [found is solved for _, solved, found in map(unsteady, range(20))]
    assert sum(kept) >= 18


def test_nothing_is_settled_when_no_background_is_seen():
    # The sky follows the dithers, as a plane would have it, but nothing else speaks for a background.
    plane = np.array([0.6, -0.4, 0, 0, 0])
    solved, found, *_ = settled(STEADY, plane)
    excess = np.sum(solved.background**2) - np.trace(solved.background_covariance)
    assert excess <= 0
    assert found is solved


def test_visits_of_single_exposures_settle_nothing():
    solved, found, *_ = settled(STEADY, PLANE, visit=np.arange(27))
    assert found is solved


def test_nothing_is_left_to_settle_when_all_is_seen_or_none():
    rng = np.random.default_rng(11)
    network = dithered_network(dithered_field(rng), STEADY, PLANE, sigma=0.2, rng=rng)
    for patterns in (np.eye(5), np.zeros((5, 0))):
        solved = sky_levels.solve(network, visible(network))
        assert sky_levels.settle_unseen(solved, network, patterns, VISIT) is solved


def test_names_of_visits_do_not_matter():
    _, found, network, patterns = settled(STEADY, PLANE)
    other = sky_levels.settle_unseen(sky_levels.solve(network, patterns), network, patterns, 2 - VISIT)
    np.testing.assert_allclose(other.level, found.level, atol=1e-9)


# --- solve_by_group ----------------------------------------------------------------------------


@DEAR
@given(seed=SEEDS)
def test_groups_change_nothing_where_all_agrees(seed):
    rng = np.random.default_rng(seed)
    n = 12
    level = rng.normal(size=n)
    group = rng.integers(0, 3, n)
    network = plain_network(level, some_pairs(n, rng, 0.4))
    together = sky_levels.solve(network, NO_PATTERNS)
    found = sky_levels.solve_by_group(together, network, group)
    np.testing.assert_allclose(found.level, together.level, atol=1e-7)
    np.testing.assert_allclose(found.residual, 0, atol=1e-7)
    np.testing.assert_array_equal(found.component, together.component)
    assert np.all(found.error > 0)


def test_groups_keep_the_background():
    level = STEADY + np.random.default_rng(12).normal(0, 0.3, 27)
    rng = np.random.default_rng(13)
    network = dithered_network(dithered_field(rng), level, BACKGROUND)
    together = sky_levels.solve(network, visible(network))
    found = sky_levels.solve_by_group(together, network, VISIT)
    np.testing.assert_array_equal(found.background, together.background)
    np.testing.assert_allclose(found.level, level - level.mean(), atol=1e-5)


def test_a_wrong_pair_between_visits_moves_a_whole_visit():
    rng = np.random.default_rng(14)
    level, group = rng.normal(size=10), np.repeat([0, 1], 5)
    pairs = [*combinations(range(5), 2), *combinations(range(5, 10), 2), (4, 5)]
    network = plain_network(level, pairs, noise=1.0, error=0.01, rng=rng)
    wrong = 3.0
    difference = network.difference.copy()
    difference[-1] += wrong
    off = [
        sky_levels.solve_by_group(sky_levels.solve(n, NO_PATTERNS), n, group).level
        for n in (network, replace(network, difference=difference))
    ]
    moved = off[1] - off[0]
    np.testing.assert_allclose(moved[:5], wrong / 2, atol=1e-9)
    np.testing.assert_allclose(moved[5:], -wrong / 2, atol=1e-9)


def test_wrong_pairs_between_visits_do_not_tear_them():
    rng = np.random.default_rng(15)
    level, group = rng.normal(size=12), np.repeat([0, 1], 6)
    inside = [*combinations(range(6), 2), *combinations(range(6, 12), 2)]
    between = [(4, 6), (5, 7), (3, 8)]
    network = plain_network(level, inside + between, noise=1.0, error=0.01, rng=rng)
    difference = network.difference.copy()
    difference[-3:] += [2.0, -1.0, 0.5]
    broken = replace(network, difference=difference)
    found = sky_levels.solve_by_group(sky_levels.solve(broken, NO_PATTERNS), broken, group)
    for visit in range(2):
        member = group == visit
        off = (found.level - level)[member]
        np.testing.assert_allclose(off - off.mean(), 0, atol=0.04)


def test_errors_by_group_are_honest():
    rng = np.random.default_rng(16)
    group = np.repeat([0, 1, 2], 5)
    pulls = []
    for _ in range(25):
        pairs = some_pairs(15, rng, 0.5)
        network = plain_network(np.zeros(15), pairs, noise=1.0, rng=rng)
        found = sky_levels.solve_by_group(sky_levels.solve(network, NO_PATTERNS), network, group)
        pulls.append(found.level / found.error)
    # Of 25 draws of 14 free levels the width is known to 1 / sqrt(2 * 350), or 4 %.
    assert 0.8 < np.std(pulls) < 1.15


def test_groups_of_one_are_the_plain_solution():
    rng = np.random.default_rng(17)
    network = plain_network(rng.normal(size=9), some_pairs(9, rng), noise=1.0, rng=rng)
    together = sky_levels.solve(network, NO_PATTERNS)
    for group in (np.arange(9), np.zeros(9, int)):
        found = sky_levels.solve_by_group(together, network, group)
        np.testing.assert_allclose(found.level, together.level, atol=1e-9)
        np.testing.assert_allclose(found.error, together.error, rtol=1e-6)


def test_exposures_alone_stay_alone_by_group():
    level = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    network = plain_network(level, [(0, 1), (1, 3)])
    together = sky_levels.solve(network, NO_PATTERNS)
    found = sky_levels.solve_by_group(together, network, np.array([0, 0, 0, 1, 1]))
    np.testing.assert_allclose(found.level[[0, 1, 3]], np.array([1, 2, 8]) - 11 / 3, atol=1e-9)
    assert np.all(np.isnan(found.level[[2, 4]]))
    assert np.all(np.isnan(found.error[[2, 4]]))
