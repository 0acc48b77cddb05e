"""From exposures to levels: a small survey whose sky, levels and background are known."""

import pickle
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pytest

from miri_steps import workers
from miri_steps.algorithms import matching, sky_cells
from miri_steps.algorithms.detector_background import DetectorPolynomial
from miri_steps.algorithms.differences import Clipping
from miri_steps.algorithms.sky_cells import CutOut, DetectorPosition, PixelMap, SkyCells

N, SIDE = 128, 4.0
MIDDLE = (N - 1) / 2
POLYNOMIAL = DetectorPolynomial(2, (MIDDLE, MIDDLE), (N / 2, N / 2))
FLAT = DetectorPolynomial(0, (MIDDLE, MIDDLE), (N / 2, N / 2))
BENT = np.array([0.0, 0.0, 0.6, -0.4, 0.5])


def rugged(u, v):
    """Sky with structure of tens of pixels, much brighter than any level."""
    rng = np.random.default_rng(99)
    total = 20 * np.exp(-((u - 20) ** 2 + (v + 15) ** 2) / 900)
    for _ in range(12):
        (a, b), phase = rng.normal(0, 1 / 25, 2), rng.uniform(0, 2 * np.pi)
        total = total + rng.normal(0, 2) * np.cos(a * u + b * v + phase)
    return total


@dataclass
class Survey:
    """Exposures to be made: where they point, and what is added to the sky."""

    shift: np.ndarray
    level: np.ndarray
    roll: np.ndarray | None = None
    sky: object = None
    background: np.ndarray = field(default_factory=lambda: np.zeros(5))
    noise: float = 0.0
    seed: int = 0

    def cells(self):
        rng = np.random.default_rng(self.seed)
        roll = np.zeros(len(self.shift)) if self.roll is None else self.roll
        mesh = np.linspace(0, N - 1, 9)
        row, column = np.indices((N, N), float)
        fixed = POLYNOMIAL.image(self.background, (N, N))
        made = []
        for shift, angle, level in zip(self.shift, np.radians(roll), self.level, strict=True):

            def place(x, y, angle=angle, shift=shift):
                c, s, u, v = np.cos(angle), np.sin(angle), x - MIDDLE, y - MIDDLE
                return c * u - s * v + shift[0], s * u + c * v + shift[1]

            a, b = place(*np.meshgrid(mesh, mesh))
            image = level + fixed + self.noise * rng.normal(size=(N, N))
            if self.sky is not None:
                image = image + self.sky(*place(column, row))
            made.append(sky_cells.resample(image, PixelMap(mesh, mesh, a / SIDE, b / SIDE)))
        return made


def dithered(n, seed, reach=40):
    return np.random.default_rng(seed).uniform(-reach, reach, (n, 2))


def solve(cells, *, visit=None, polynomial=FLAT, statistic="mode", **how):
    visit = np.arange(len(cells)) if visit is None else visit
    return matching.match(
        [CutOut.of(c) for c in cells],
        visit=visit,
        polynomial=polynomial,
        clipping=Clipping(statistic=statistic),
        **how,
    )


def pairs(found):
    return list(zip(found.network.first.tolist(), found.network.second.tolist(), strict=True))


def centered(level):
    return level - np.mean(level)


def test_levels_are_recovered_under_a_rugged_sky():
    level = np.random.default_rng(1).normal(size=10)
    survey = Survey(dithered(10, 2), level, sky=rugged, noise=0.2, roll=np.arange(10) * 37.0)
    found = solve(survey.cells())
    np.testing.assert_allclose(found.levels.level, centered(level), atol=0.02)
    assert np.all(found.levels.error < 0.02)
    assert pairs(found) == list(combinations(range(10), 2))
    assert np.all(found.n_cells > 100)
    assert found.n_patterns == 0
    assert not found.settled


@pytest.fixture(scope="module", params=[6, 45])
def many(request):
    """Draw sixty small surveys with dithers of so many pixels: their levels and cells."""
    made = []
    for seed in range(60):
        level, shift = np.random.default_rng(seed).normal(size=6), dithered(6, seed + 100, request.param)
        made.append((level, Survey(shift, level, noise=0.5, seed=seed, roll=np.full(6, 17.0)).cells()))
    return made


# Averages of the medians or modes of many pairs scatter less than one of them: their errors are upper limits.
@pytest.mark.parametrize(
    ("statistic", "draws", "low", "high"),
    [("mean", 60, 0.9, 1.1), ("median", 40, 0.75, 1.05), ("mode", 40, 0.75, 1.05)],
)
def test_errors_are_honest_where_cells_are_shared_by_many(many, statistic, draws, low, high):
    # All pairs of a tight dither see the same cells: they are far from independent.
    # With five free levels per draw the width is known to 1 / sqrt(600), or 4 %, and to 5 % of 40.
    pulls = []
    for level, cells in many[:draws]:
        found = solve(cells, statistic=statistic)
        pulls.append((found.levels.level - centered(level)) / found.levels.error)
    assert low < np.sqrt(np.mean(np.square(pulls))) < high


def test_levels_and_pattern_are_recovered_together():
    level = np.random.default_rng(3).normal(size=12)
    survey = Survey(dithered(12, 4), level, sky=rugged, background=BENT, noise=0.2)
    found = solve(survey.cells(), polynomial=POLYNOMIAL)
    assert found.n_patterns == 3
    np.testing.assert_allclose(found.levels.background, BENT, atol=0.02)
    np.testing.assert_allclose(found.levels.level, centered(level), atol=0.04)
    assert np.all(np.abs(found.levels.level - centered(level)) < 5 * found.levels.error)


def test_pulls_of_levels_and_pattern():
    level_pulls, chi2 = [], []
    for seed in range(25):
        level = np.random.default_rng(seed).normal(size=8)
        survey = Survey(dithered(8, seed + 300), level, background=BENT, noise=0.4, seed=seed)
        found = solve(survey.cells(), polynomial=POLYNOMIAL, statistic="mean")
        assert found.n_patterns == 3
        level_pulls.append((found.levels.level - centered(level)) / found.levels.error)
        off = (found.levels.background - BENT)[2:]
        chi2.append(off @ np.linalg.solve(found.levels.background_covariance[2:, 2:], off))
    assert 0.85 < np.sqrt(np.mean(np.square(level_pulls))) < 1.15
    assert 3 * 0.6 < np.mean(chi2) < 3 * 1.5


def test_rolled_exposures_show_the_plane_as_well():
    background = np.array([0.8, -0.5, 0.6, -0.4, 0.5])
    level = np.random.default_rng(5).normal(size=12)
    roll = np.arange(12) * 30.0
    survey = Survey(dithered(12, 6), level, roll=roll, sky=rugged, background=background, noise=0.2)
    found = solve(survey.cells(), polynomial=POLYNOMIAL)
    assert found.n_patterns == 5
    np.testing.assert_allclose(found.levels.background, background, atol=0.02)
    np.testing.assert_allclose(found.levels.level, centered(level), atol=0.04)


def test_tiny_dithers_show_no_pattern():
    level = np.random.default_rng(7).normal(size=6)
    survey = Survey(dithered(6, 8, reach=0.5), level, background=BENT, noise=0.2)
    found = solve(survey.cells(), polynomial=POLYNOMIAL)
    assert found.n_patterns == 0
    np.testing.assert_array_equal(found.levels.background, np.zeros(5))
    np.testing.assert_allclose(found.levels.level, centered(level), atol=0.03)


VISIT = np.repeat([0, 1, 2], 6)


def visits(background=BENT, seed=9):
    tile = np.array([(0, 0), (60, 10), (10, 60)], float)[VISIT]
    level = np.array([0.0, 1.0, -0.5])[VISIT]
    shift = tile + dithered(18, seed, 30)
    survey = Survey(shift, level, sky=rugged, background=background, noise=0.2, seed=seed)
    return level, survey.cells()


def test_a_plane_is_settled_by_the_steadiness_of_visits():
    background = np.array([0.8, -0.5, 0.6, -0.4, 0.5])
    level, cells = visits(background)
    steady = solve(cells, visit=VISIT, polynomial=POLYNOMIAL)
    assert steady.settled
    assert steady.n_patterns == 3
    np.testing.assert_allclose(steady.levels.background, background, atol=0.06)
    np.testing.assert_allclose(steady.levels.level, centered(level), atol=0.06)
    free = solve(cells, visit=np.arange(18), polynomial=POLYNOMIAL)
    assert not free.settled
    np.testing.assert_allclose(free.levels.background[:2], 0, atol=0.02)
    assert np.abs(free.levels.level - centered(level)).max() > 0.3


@pytest.mark.parametrize("polynomial", [FLAT, POLYNOMIAL])
def test_by_visit_agrees_where_nothing_is_wrong(polynomial):
    level, cells = visits(np.zeros(5) if polynomial is FLAT else BENT)
    found = solve(cells, visit=VISIT, polynomial=polynomial, by_visit=True)
    np.testing.assert_allclose(found.levels.level, centered(level), atol=0.06)
    assert len(found.levels.residual) == len(found.levels.pair_weight) == len(pairs(found))


def test_a_constant_on_all_exposures_changes_nothing():
    level = np.random.default_rng(10).normal(size=8)
    survey = Survey(dithered(8, 11), level, sky=rugged, background=BENT, noise=0.2)
    raised = Survey(survey.shift, level + 50, sky=rugged, background=BENT, noise=0.2)
    one, other = (solve(s.cells(), polynomial=POLYNOMIAL) for s in (survey, raised))
    np.testing.assert_allclose(other.levels.level, one.levels.level, atol=2e-4)
    np.testing.assert_allclose(other.levels.background, one.levels.background, atol=2e-4)


def test_the_order_of_exposures_hardly_matters():
    level = np.random.default_rng(12).normal(size=18)
    survey = Survey(dithered(18, 13), level, sky=rugged, background=BENT, noise=0.2)
    cells = survey.cells()
    place = np.random.default_rng(14).permutation(18)

    for statistic, tolerance in (("mean", 1e-6), ("median", 1e-6), ("mode", 1e-4)):
        one, other = (
            solve(given, polynomial=POLYNOMIAL, statistic=statistic).levels
            for given in (cells, [cells[k] for k in place])
        )
        np.testing.assert_allclose(other.level, one.level[place], atol=tolerance)
        np.testing.assert_allclose(other.background, one.background, atol=tolerance)


def test_processes_change_no_bit():
    # More exposures than one block of work holds.
    level = np.random.default_rng(15).normal(size=20)
    survey = Survey(dithered(20, 16, 60), level, sky=rugged, background=BENT, noise=0.2)
    cells = survey.cells()
    alone = solve(cells, polynomial=POLYNOMIAL)
    with workers.open_map(2) as run:
        spread = solve(cells, polynomial=POLYNOMIAL, run=run)
    assert pairs(alone) == pairs(spread)
    for name in ("level", "error", "background", "background_covariance", "residual", "pair_weight"):
        np.testing.assert_array_equal(getattr(spread.levels, name), getattr(alone.levels, name))
    for name in ("difference", "error", "terms", "covariance", "slope", "independence"):
        np.testing.assert_array_equal(getattr(spread.network, name), getattr(alone.network, name))
    np.testing.assert_array_equal(spread.n_cells, alone.n_cells)


def test_blocks_of_work_change_no_bit(monkeypatch):
    survey = Survey(dithered(9, 17), np.zeros(9), background=BENT, noise=0.2)
    cells = survey.cells()
    one = solve(cells, polynomial=POLYNOMIAL)
    monkeypatch.setattr(matching, "_GROUP", 1)
    monkeypatch.setattr(matching, "_BLOCK", 2)
    np.testing.assert_array_equal(solve(cells, polynomial=POLYNOMIAL).levels.level, one.levels.level)


def test_a_struck_exposure_pair_is_left_out():
    # A third of one exposure is a bright streak: its differences are clipped, not believed.
    level = np.random.default_rng(18).normal(size=8)
    survey = Survey(dithered(8, 19, 15), level, noise=0.2)
    cells = survey.cells()
    cells[3].data[:10] += 30.0
    found = solve(cells)
    np.testing.assert_allclose(found.levels.level, centered(level), atol=0.03)


def test_pieces_and_exposures_alone():
    far = np.array([(0, 0), (20, 5), (1000, 0), (1015, -20), (1030, 7), (0, 5000)], float)
    level = np.array([1.0, 2.0, -1.0, 4.0, 0.0, 7.0])
    found = solve(Survey(far, level, sky=rugged, noise=0.1).cells())
    np.testing.assert_array_equal(found.levels.component, [0, 0, 1, 1, 1, -1])
    np.testing.assert_allclose(found.levels.level[:2], [-0.5, 0.5], atol=0.02)
    np.testing.assert_allclose(found.levels.level[2:5], [-2, 3, -1], atol=0.02)
    assert np.isnan(found.levels.level[5])


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("polynomial", [FLAT, POLYNOMIAL])
@pytest.mark.parametrize("by_visit", [False, True])
def test_exposures_apart_have_no_levels(n, polynomial, by_visit):
    shift = np.array([(0, 0), (2000, 0)], float)[:n]
    cells = Survey(shift, np.ones(n), noise=0.1).cells()
    found = solve(cells, polynomial=polynomial, by_visit=by_visit)
    assert pairs(found) == []
    assert np.all(np.isnan(found.levels.level))
    assert found.levels.background.shape == (len(polynomial.degrees),)
    assert not found.settled


def test_images_of_zeros_are_matched_as_zeros():
    found = solve(Survey(dithered(4, 21), np.zeros(4)).cells())
    np.testing.assert_array_equal(found.levels.level, np.zeros(4))


def test_levels_without_noise_are_exact():
    level = np.arange(4.0)
    found = solve(Survey(dithered(4, 21), level).cells(), polynomial=POLYNOMIAL)
    np.testing.assert_allclose(found.levels.level, centered(level), atol=1e-5)


def test_an_exposure_listed_twice_has_its_level_twice():
    level = np.random.default_rng(22).normal(size=5)
    cells = Survey(dithered(5, 23), level, noise=0.2).cells()
    found = solve([*cells, cells[2]]).levels
    assert found.level[5] == pytest.approx(found.level[2], abs=1e-3)
    np.testing.assert_allclose(centered(found.level[:5]), centered(level), atol=0.03)


def test_inputs_are_left_alone():
    cells = Survey(dithered(4, 20), np.arange(4.0), background=BENT, noise=0.1).cells()
    before = [c.data.copy() for c in cells]
    solve(cells, polynomial=POLYNOMIAL)
    for kept, now in zip(before, cells, strict=True):
        np.testing.assert_array_equal(kept, now.data)


# --- large surveys -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Away:
    """An array that was put away under a name in a shelf that all tests of a process see."""

    name: str

    def load(self):
        return SHELF[self.name]


SHELF = {}


def put_away(name, array):
    assert name not in SHELF
    SHELF[name] = array
    return Away(name)


def wide(n, seed):
    """Cut-outs of 20 x 20 cells, five deep over a field whose size grows with their number."""
    rng = np.random.default_rng(seed)
    level = rng.normal(size=n)
    corner = rng.integers(0, int(20 * np.sqrt(n / 5)), (n, 2))
    back = np.zeros((2, 2, 2))
    back[1, 0, 0] = back[0, 1, 1] = SIDE
    cells = [
        SkyCells(
            (value + 0.1 * rng.normal(size=(20, 20))).astype(np.float32),
            DetectorPosition((float(x), float(y)), 1.0, back),
            (int(x), int(y)),
            SIDE,
        )
        for value, (x, y) in zip(level, corner, strict=True)
    ]
    return level, cells


def test_a_wide_survey_is_matched_piece_of_work_by_piece_of_work():
    level, cells = wide(600, 24)
    loaded, sizes = [], []

    def run(function, tasks):
        for task in tasks:
            sizes.append(len(pickle.dumps(task)))
            if hasattr(task, "pairs"):
                loaded.append(len(task.cells))
            yield function(task)

    SHELF.clear()
    cut_outs = [CutOut.of(c, keep=put_away, name=f"{k}_cells") for k, c in enumerate(cells)]
    found = matching.match(
        cut_outs,
        visit=np.arange(600),
        polynomial=FLAT,
        clipping=Clipping(statistic="mean"),
        keep=put_away,
        run=run,
    )
    np.testing.assert_array_equal(found.levels.component, np.zeros(600))
    off = found.levels.level - centered(level)
    assert np.std(off / found.levels.error) < 1.2
    assert np.std(off) < 0.02
    assert np.all(found.n_cells > 5)
    # However wide the field, a piece of work is of few exposures, and each is in few of them.
    assert max(loaded) <= 64
    assert sum(loaded) < 4 * 600
    # None of the cells travel: an exposure's are 1600 bytes, and its counts 800.
    assert sum(sizes) < 600 * 4000
    held = solve(cells, statistic="mean")
    np.testing.assert_array_equal(held.levels.level, found.levels.level)


def test_a_piece_of_work_bears_the_name_of_an_exposure():
    _, cells = wide(5, 25)
    names = []

    def run(function, tasks):
        for task in tasks:
            names.append(task.name)
            yield function(task)

    solve(cells, names=[f"{k}.fits" for k in range(5)], run=run)
    assert names
    assert all(name.endswith(".fits with its neighbours") for name in names)
