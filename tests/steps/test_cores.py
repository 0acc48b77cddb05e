"""Steps give the same in one process and in two, from files and from memory."""

import gc
import pickle
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from jwst.datamodels import ModelContainer

from miri_steps import MedianHotPixelStep, RateFromRateintsStep, TileAstrometryStep, workers
from miri_steps.simulate import Scene, grid, observe, write
from miri_steps.steps import hot_pixel_look, hot_pixel_sources

RA, DEC = 83.6, -69.1


@pytest.fixture(scope="module")
def starry(tmp_path_factory):
    """Three exposures in two tiles with hot pixels, and the catalogue of their stars."""
    folder = tmp_path_factory.mktemp("starry")
    # Every star is seen in the middle of all exposures.
    scene = Scene(RA, DEC).with_stars(12, radius=10, flux=(0.05, 0.3), seed=3)
    plan = grid(RA, DEC, n=(3, 1), step=2.0, per_visit=2)
    truth = np.array([[0.3, -0.2], [0.3, -0.2], [-0.4, 0.1]])
    association = write(
        observe(scene, plan, "F770W", sky=3.0, pointing_error=truth, subarray="SUB256", hot_pixels=0.005),
        folder,
        product="field",
    )
    return association, truth


def files_of(association):
    return sorted(association.parent.glob("*_cal.fits"))


def stars_of(association):
    """Name the catalogue that lies beside an association."""
    return {"reference_catalog": str(association.parent / "field_refcat.ecsv")}


def run(step, association, **parameters):
    return step.call(str(association), configure_log=False, **parameters)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, planes in first.items():
        assert planes.keys() == second[name].keys()
        for plane, values in planes.items():
            np.testing.assert_array_equal(values, second[name][plane], err_msg=f"{name} {plane}")


@contextmanager
def pickled(monkeypatch, cores):
    """
    Do in this process what travels between processes, whose start takes longer than the work.

    In real ones all Steps run with a cluster, see test_common.
    """

    @contextmanager
    def open_map(asked, executor=None):
        assert asked == cores

        def run(function, tasks):
            for task in tasks:
                here = pickle.loads(pickle.dumps((function, task)))
                yield pickle.loads(pickle.dumps(here[0](here[1])))

        yield run

    with monkeypatch.context() as patch:
        patch.setattr(workers, "open_map", open_map)
        yield


@pytest.fixture(scope="module")
def alone(planes_of):
    """Run a Step on one core in memory, once for all tests."""
    done = {}

    def find(step, association, **parameters):
        if step not in done:
            done[step] = planes_of(run(step, association, maximum_cores="1", **parameters))
        return done[step]

    return find


@pytest.fixture
def same_in_two_processes(alone, planes_of, monkeypatch):
    """Compare what one core finds in memory with what two find from files; return it."""
    # The machine of the tests may have a single core.
    monkeypatch.setattr("miri_steps.workers.os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr("miri_steps.workers.os.cpu_count", lambda: 2)

    def compare(step, association, given=None, **saving):
        given = given or {}
        with pickled(monkeypatch, 2):
            shared = planes_of(run(step, association, maximum_cores="2", in_memory=False, **given, **saving))
        assert_same(alone(step, association, **given), shared)
        return shared

    return compare


def pixels_changed(found, models):
    """Count the pixels of each exposure that are no longer what they were."""
    return [(found[model.meta.filename]["data"] != model.data).sum() for model in models]


def test_hot_pixels_are_the_same(starry, same_in_two_processes, loaded, tmp_cwd):
    found = same_in_two_processes(MedianHotPixelStep, starry[0])

    assert min(pixels_changed(found, loaded(files_of(starry[0])))) > 100
    assert not list(tmp_cwd.iterdir())


def test_stars_and_corrections_are_the_same(starry, same_in_two_processes, tmp_cwd):
    association, truth = starry

    saving = {"save_corrections": True, "output_dir": "."}
    same_in_two_processes(TileAstrometryStep, association, stars_of(association), **saving)

    measured = Table.read("field_tiles.ecsv")
    for axis, name in enumerate(("shift_east", "shift_north")):
        np.testing.assert_allclose(measured[name], truth[[0, 2], axis], atol=0.01)


def test_rates_are_the_same(integrated, same_in_two_processes, planes_of, tmp_cwd):
    found = same_in_two_processes(RateFromRateintsStep, integrated.association)

    mean = planes_of(run(RateFromRateintsStep, integrated.association, combine="mean"))
    assert all((found[name]["data"] != mean[name]["data"]).sum() > 10 for name in found)
    assert not list(tmp_cwd.iterdir())


def test_arrays_of_open_models_give_the_same(starry, integrated, alone, opened, planes_of, monkeypatch):
    """What has no file is sent as arrays."""

    def here(step, files, **given):
        return planes_of(step.call(ModelContainer(opened(files)), configure_log=False, **given))

    def there(step, files, **given):
        with pickled(monkeypatch, 1):
            return here(step, files, **given)

    association, files, stars = starry[0], files_of(starry[0]), stars_of(starry[0])
    assert_same(alone(MedianHotPixelStep, association), there(MedianHotPixelStep, files))
    assert_same(alone(TileAstrometryStep, association, **stars), there(TileAstrometryStep, files, **stars))
    named = {"source_catalog": stars["reference_catalog"]}
    assert_same(here(MedianHotPixelStep, files, **named), there(MedianHotPixelStep, files, **named))
    cubes = [path.replace("_rate.", "_rateints.") for path in integrated.files]
    assert_same(here(RateFromRateintsStep, cubes), there(RateFromRateintsStep, cubes))


@pytest.mark.parametrize("step", [MedianHotPixelStep, RateFromRateintsStep, TileAstrometryStep])
def test_wrong_cores_are_refused_before_any_work(step):
    with pytest.raises(ValueError, match="maximum_cores must be a number of at least 1 .* got 'many'"):
        step.call("no_such_asn.json", configure_log=False, maximum_cores="many")


def test_a_file_that_goes_away_is_named(starry, tmp_cwd, monkeypatch):
    """It was there when the headers were checked, and is not when its pixels are read."""
    copies = [shutil.copy(path, tmp_cwd) for path in files_of(starry[0])]
    check = MedianHotPixelStep.name_products

    def check_and_remove(self, *given):
        check(self, *given)
        Path(copies[1]).unlink()

    monkeypatch.setattr(MedianHotPixelStep, "name_products", check_and_remove)

    with pytest.raises(FileNotFoundError) as caught:
        MedianHotPixelStep.call(copies, configure_log=False, in_memory=False)

    assert caught.value.__notes__ == [f"This was {Path(copies[1]).name}."]
    # The library, which the error holds on to, takes its folder away.
    del caught
    gc.collect()


def test_named_sources_are_read_once(starry, tmp_cwd):
    """What is sent to other processes is the name of the file, and it is read again when it has changed."""
    path = tmp_cwd / "sources.ecsv"
    Table({"RA": [RA], "Dec": [DEC]}).write(path)
    named = hot_pixel_sources.name(None, str(path), 1.0)
    assert hot_pixel_sources.read(named) is hot_pixel_sources.read(named)
    assert len(hot_pixel_sources.read(named)[0].positions) == 1

    Table({"RA": [RA, RA + 1], "Dec": [DEC, DEC]}).write(path, overwrite=True)
    changed = hot_pixel_sources.name(None, str(path), 1.0)
    assert len(hot_pixel_sources.read(changed)[0].positions) == 2


def test_what_is_kept_of_an_exposure_is_small(starry):
    """A thousand exposures must fit beside each other."""
    path = next(starry[0].parent.glob("*_cal.fits"))
    seen = hot_pixel_look.look(
        hot_pixel_look.Look(path.name, path, None, hot_pixel_sources.name(None, None, 1.0), 2.5, 5.0, 5.0, 5)
    )
    kept = [getattr(seen, name) for name in ("hot", "dead", "protected", "usable", "hole")]
    # 256 x 256 pixels; a sixteenth of the frame.
    assert sum(len(part.packed) for part in kept) < 8000
