"""SuperBackgroundStep on many exposures: out of core, over processes, and without squares of their number."""

import pickle
from contextlib import contextmanager

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from jwst import datamodels
from jwst.datamodels import ModelContainer
from scipy import ndimage
from scipy.sparse.csgraph import connected_components

from miri_steps import SuperBackgroundStep, detector, workers
from miri_steps.algorithms import discs, leave_out
from miri_steps.simulate import Scene, dome, grid, observe, write
from miri_steps.steps import shared, super_background_masks
from miri_steps.steps.image_stack import ImageStack
from miri_steps.steps.super_background_members import Group, Member

RA, DEC = 83.6, -69.1
PLANES = ("data", "err", "dq", "var_poisson", "var_rnoise")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Five exposures of a few stars, 2 arcsec from one another, with a hill of light on the detector."""
    scene = Scene(RA, DEC).with_stars(8, radius=8, seed=2)
    pattern = dome(0.5, center=(530, 230), radius=40)
    settings = {"sky": [3.0, 3.4, 2.7, 3.9, 3.1], "pattern": pattern, "subarray": "SUB64"}
    observation = observe(scene, grid(RA, DEC, n=(5, 1), step=2.0), "F770W", **settings)
    folder = tmp_path_factory.mktemp("files")
    write(observation, folder)
    return sorted(str(path) for path in folder.glob("*_cal.fits"))


@pytest.fixture(scope="module")
def planes(files):
    """What comes out of one process that keeps all in memory."""
    return run(files, passes=2)


def run(files, **parameters):
    result = SuperBackgroundStep.call(files, configure_log=False, **parameters)
    found = []
    with result:
        for k, model in enumerate(result):
            found.append([np.array(getattr(model, name)) for name in PLANES])
            assert model.meta.cal_step.super_background == "COMPLETE"
            result.shelve(model, k, modify=False)
    return found


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        for plane, expectation in zip(one, other, strict=True):
            np.testing.assert_array_equal(plane, expectation)


def test_the_answer_is_that_of_one_process_bit_for_bit(files, planes):
    assert np.isfinite(planes[0][0]).any()
    assert_same(run(files, passes=2, in_memory=False, maximum_cores="2"), planes)


@pytest.fixture
def tasks(monkeypatch):
    """Do every task twice, as after the death of a process, with what would travel to another."""
    seen = []

    def travel(function, given):
        for task in given:
            sent = pickle.dumps(task)
            seen.append((function.__name__, task.name, len(sent)))
            function(pickle.loads(sent))
            yield pickle.loads(pickle.dumps(function(pickle.loads(sent))))

    @contextmanager
    def open_map(cores, executor=None):
        yield travel

    monkeypatch.setattr(workers, "open_map", open_map)
    return seen


def test_only_paths_travel_and_a_task_may_be_done_twice(files, planes, tasks):
    assert_same(run(files, passes=2, in_memory=False), planes)

    # An image has 64 x 72 pixels of 4 bytes.
    assert max(size for *_, size in tasks) < 3000
    kinds = {kind for kind, *_ in tasks}
    assert kinds == {"read", "grow", "_combine", "search", "resample", "mark"}
    assert {name for kind, name, _ in tasks if kind == "read"} == {file.rpartition("/")[2] for file in files}
    assert any(name.startswith("rows 0 to 63 of F770W") for kind, name, _ in tasks if kind == "_combine")


def test_tasks_of_exposures_in_memory_give_the_same(files, planes, tasks):
    assert_same(run(files, passes=2), planes)


def test_open_models_may_be_worked_on_in_scratch_files_which_are_gone_then(
    files, planes, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    models = ModelContainer([datamodels.open(file) for file in files])

    result = SuperBackgroundStep.call(models, configure_log=False, passes=2, in_memory=False)

    assert_same([[getattr(model, name) for name in PLANES] for model in result], planes)
    assert not list(tmp_path.glob(".super_background*"))
    assert not shared._unpickle.cache_info().currsize


# ---- nothing grows with the square of the number


def member(number, pointing, dead=False):
    meta = {"meta.instrument.filter": "F770W"}
    return Member(number, None, "", meta, pointing=pointing, is_dead=dead)


@pytest.mark.parametrize(("ra", "dec"), [(83.6, -69.1), (0.0, 10.0), (40.0, 89.9999)])
def test_close_pointings_are_those_of_every_pair(ra, dec):
    rng, limit = np.random.default_rng(1), 1.5 * detector.FWHM["F770W"] * detector.PIXEL_SCALE
    away = rng.uniform(-3, 3, (60, 2)) / 3600
    pointings = [((ra + x / np.cos(np.radians(dec))) % 360, min(dec + y, 90.0)) for x, y in away]
    pointings[7] = pointings[30] = None
    group = Group([member(k, pointing, dead=k == 11) for k, pointing in enumerate(pointings)])

    group.leave_out(leave_one_out=True, min_separation=1.5)

    there = SkyCoord([pointing or (0.0, -90.0) for pointing in pointings], unit="deg")
    close = there[:, np.newaxis].separation(there).arcsec < limit
    close[[7, 30]] = close[:, [7, 30]] = False
    close |= np.eye(60, dtype=bool)
    close[:, 11] = True
    assert [each.left_out for each in group.members] == [tuple(np.flatnonzero(row)) for row in close]
    assert 100 < close.sum() < 1000


def test_exposures_that_leave_out_the_same_share_it():
    group = Group([member(k, (RA, DEC + 0.01 * (k % 2))) for k in range(40)])

    group.leave_out(leave_one_out=True, min_separation=1.5)

    assert len({id(each.left_out) for each in group.members}) == 2


def test_without_a_separation_only_the_exposure_itself_is_left_out():
    group = Group([member(k, (RA, DEC)) for k in range(4)])

    group.leave_out(leave_one_out=True, min_separation=0.0)

    assert [each.left_out for each in group.members] == [(0,), (1,), (2,), (3,)]


@pytest.mark.parametrize("seed", range(3))
def test_pieces_hang_together_by_windows_that_touch(seed):
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 400, (50, 2))
    windows = [(corner, (30, 40)) for corner in low]

    pieces = list(super_background_masks._pieces(windows))

    high = low + (40, 30)
    touch = np.all((low[:, np.newaxis] < high) & (low < high[:, np.newaxis]), axis=-1)
    number, labels = connected_components(touch, directed=False)
    assert 1 < number < 50
    expected = [np.flatnonzero(labels == label).tolist() for label in range(number)]
    assert sorted(piece.numbers for piece in pieces) == sorted(expected)


# ---- parts


def test_rows_of_a_stack_are_written_by_whoever_has_its_path(tmp_path):
    cube = np.random.default_rng(0).normal(size=(5, 70, 40)).astype(np.float32)
    stack = ImageStack(5, (70, 40), np.float32, tmp_path / "stack", step=32)
    sent = pickle.dumps(stack)

    for start in (64, 0, 32):
        rows = slice(start, min(start + 32, 70))
        pickle.loads(sent).write_all(rows, cube[:, rows])

    assert len(sent) < 500
    np.testing.assert_array_equal(stack.rows(slice(20, 70)), cube[:, 20:])
    for k in range(5):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(stack.lend(k))).load(), cube[k])
    # What is written by different processes is never on one page.
    assert stack._set % 4096 == 0


@pytest.mark.parametrize("radius", [0.0, 0.9, 1.0, 2**0.5, 3.7, 5.0, 13.2, 30.0, 254.9, 300.0])
def test_discs_reach_as_far_as_they_say(radius):
    mask = np.random.default_rng(3).random((61, 83)) > 0.995
    mask[0, 0] = mask[60, 82] = True

    np.testing.assert_array_equal(discs.grow(mask, radius), ndimage.distance_transform_edt(~mask) <= radius)
    assert not discs.grow(np.zeros((3, 4), bool), radius).any()


def test_a_median_of_all_is_that_of_the_others_too():
    samples = np.random.default_rng(4).normal(size=(9, 500)).astype(np.float32)
    samples[np.random.default_rng(5).random(samples.shape) > 0.6] = np.nan
    samples[:, 0] = np.nan

    alone = leave_out.combine(samples, np.ones(500), [(), ()], statistic="median")
    among = leave_out.combine(samples, np.ones(500), [(), (1,)], statistic="median")

    for k in range(2):
        np.testing.assert_array_equal(alone.value[k], among.value[0])
        np.testing.assert_array_equal(alone.count[k], among.count[0])
    np.testing.assert_allclose(alone.value[0, 1:], np.nanmedian(samples[:, 1:], axis=0), rtol=1e-6)
