"""Whole reductions on a Dask cluster: the same answer, whoever dies."""

import asyncio
import contextlib
import dataclasses
import importlib
import os
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from miri_steps import cli, simulate, workers
from miri_steps.reduction import chain, jobs, reduce, running, settings
from miri_steps.reduction.jobs import Job
from miri_steps.reduction.ledger import Ledger
from miri_steps.reduction.settings import Stage
from miri_steps.reduction.sources import Source
from miri_steps.reduction.summary import DONE, Row

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed", reason="needs miri-steps[dask]")

RA, DEC = 339.0, 33.96
SUBARRAY = "SUB64"
# What is left is a flat field and units in stage 2, and tiles measured and levels matched in stage 3.
QUICK = {
    f"{step}.skip": "true"
    for step in ("tweakreg", "outlier_detection", "source_catalog", "median_hot_pixel", "super_background")
}
# Workers import it by name; it leaves a mark of each death beside itself.
DEADLY = """
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace


def die():
    number = len(list(Path(__file__).parent.glob("death*")))
    Path(__file__).with_name(f"death{number}").touch()
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Chore:
    # Stands in for a job, of which a process need not know the pipeline.
    name: str
    stage: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(name="image2"))

    @property
    def key(self):
        return f"image2_{self.name}"

    def elsewhere(self):
        return self


def attempt(chore, work, log, expected, frugal):
    own = work.with_name(f"{work.name}~{os.getpid():08d}")
    own.mkdir()
    (own / "frugal").write_text(str(frugal))
    if chore.name == "killer":
        die()
    if chore.name == "sleeper":
        time.sleep(60)
    return SimpleNamespace(problem="", work=own, seconds=0.1)
"""
ONCE = """
from jwst.stpipe import Step
from miri_test_deadly import Path, die


class DieOnce(Step):
    def process(self, model):
        if not list(Path(__file__).parent.glob("death*")):
            die()
        return model
"""


@pytest.fixture(scope="module")
def deadly(tmp_path_factory):
    """Write the modules that workers import."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "miri_test_deadly.py").write_text(DEADLY)
    (folder / "miri_test_once.py").write_text(ONCE)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("miri_test_deadly")
    sys.path.remove(str(folder))


@pytest.fixture(autouse=True)
def nobody_died(deadly):
    yield
    for mark in Path(deadly.__file__).parent.glob("death*"):
        mark.unlink()


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Provide reference files, and no CRDS; workers get the same environment."""
    folder = tmp_path_factory.mktemp("references")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in simulate.offline_crds(folder).items():
            patch.setenv(name, value)
        yield {
            f"{step}.{parameter}": value
            for step, values in simulate.calibration_files(folder).items()
            for parameter, value in values.items()
            if step != "resample"
        }


@contextlib.contextmanager
def start_cluster(folder, n_workers):
    """Start workers in a folder of their own; work over which two of them have died is given up."""
    folder.mkdir()
    patience = {"distributed.scheduler.allowed-failures": 1}
    where = {"dashboard_address": "127.0.0.1:0", "local_directory": str(folder)}
    with contextlib.chdir(folder), dask.config.set(patience):
        cluster = distributed.LocalCluster(n_workers=n_workers, threads_per_worker=1, **where)
    with cluster:
        yield cluster


@pytest.fixture(scope="module")
def cluster(deadly, offline, tmp_path_factory):
    with start_cluster(tmp_path_factory.mktemp("dask") / "workers", 2) as running_cluster:
        yield running_cluster


# ---- the same answer


def observe(band, activity, sky):
    scene = simulate.Scene(RA, DEC).with_stars(30, radius=6, flux=(0.05, 1.0), seed=1)
    dithers = simulate.mosaic(RA, DEC, tiles=(1, 1), dithers=2, dither_step=1.0)[: len(sky)]
    pointings = [dataclasses.replace(pointing, activity=activity) for pointing in dithers]
    settings = {"noise": 0.05, "pattern": simulate.dome(0.3), "psf": simulate.psf(band, half_size=32)}
    return simulate.observe(scene, pointings, band, subarray=SUBARRAY, seed=7, sky=sky, **settings)


@pytest.fixture(scope="module")
def home(offline, tmp_path_factory):
    """Make a folder with two rates of one filter and a calibrated exposure of another."""
    folder = tmp_path_factory.mktemp("home")
    simulate.write_rates(observe("F770W", "01", sky=(5.0, 6.0)), folder / "ngc1", nints=2)
    simulate.write(observe("F1800W", "02", sky=(5.0,)), folder / "ngc1")
    return folder


@pytest.fixture(scope="module")
def told(home, offline):
    """Tell it with paths that hold in its folder alone, and ask for processes that a worker cannot have."""
    files = {
        key: os.path.relpath(value, home) if Path(str(value)).is_absolute() else value
        for key, value in offline.items()
    }
    return QUICK | files | {"pixel_skymatch.maximum_cores": "2"}


def run_here(todo, ledger, cores, tell):
    """Stand in for processes, whose starts would take longer than their work."""
    for job in todo:
        with warnings.catch_warnings():
            # jwst warns of associations with folders in them; in processes no test hears it.
            warnings.simplefilter("ignore")
            outcome = jobs.execute(job, ledger.work_of(job), ledger.log_of(job), "1")
        yield job, outcome


@pytest.fixture(scope="module")
def expected(home, told):
    """Reduce it without a cluster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr(chain.running, "run", run_here)
        changes = told | {"pixel_skymatch.maximum_cores": "1"}
        table = reduce("ngc1", "here", changes=changes, save_report=False)
    assert set(table["status"]) == {"done"}, table
    return home / "here"


def planes(path):
    with fits.open(path) as hdus:
        return {hdu.name: hdu.data for hdu in hdus if hdu.is_image and hdu.data is not None}


def assert_same(output, expected):
    """Hold exposures and mosaics to be what they were, bit for bit."""
    paths = [path for stage in ("stage1", "stage2", "stage3") for path in (output / stage).glob("*.fits")]
    assert {"rate", "cal", "i2d"} <= {path.stem.rpartition("_")[2] for path in paths}
    for path in paths:
        ours, theirs = planes(path), planes(expected / path.relative_to(output))
        assert ours.keys() == theirs.keys() >= {"SCI", "ERR"}
        for name, values in theirs.items():
            np.testing.assert_array_equal(ours[name], values, err_msg=f"{path.name} {name}")


DIE_ONCE = """#ASDF 1.0.0
#ASDF_STANDARD 1.5.0
%YAML 1.1
%TAG ! tag:stsci.edu:asdf/
--- !core/asdf-1.1.0
class: jwst.pipeline.Image2Pipeline
name: calwebb_image2
parameters: {}
steps:
- class: jwst.step.PhotomStep
  name: photom
  parameters: {pre_hooks: [miri_test_once.DieOnce]}
- class: jwst.step.ResampleStep
  name: resample
  parameters: {skip: true}
...
"""


def test_a_cluster_gives_the_same_answer_though_a_worker_is_killed_in_the_middle(
    cluster, deadly, home, told, expected, monkeypatch
):
    monkeypatch.chdir(home)
    Path("once.asdf").write_text(DIE_ONCE)
    given = {"parameters": ["once.asdf"], "save_report": False}

    table = reduce("ngc1", "there", changes=told, executor=cluster.scheduler_address, **given)

    assert len(list(Path(deadly.__file__).parent.glob("death*"))) == 1
    assert list(table["status"]) == ["done"] * 6, table
    assert list(table["name"][table["stage"] == "stage3"]) == ["ngc1_f770w", "ngc1_f1800w"]
    assert_same(home / "there", expected)
    # No folder of the work is left either.
    assert {path.name for path in (home / "there").iterdir() if path.name != ".reduction"} == {
        *("stage1", "stage2", "stage3", "logs", "reduction.ecsv"),
    }
    assert "Step photom running" in next((home / "there" / "logs").glob("stage2_*.log")).read_text()
    monkeypatch.setattr(chain.running, "run", lambda todo, *_: [pytest.fail(job.name) for job in todo])
    again = reduce("ngc1", "there", changes=told | {"pixel_skymatch.executor": "elsewhere"}, **given)
    assert list(again["status"]) == ["up to date"] * 6


# ---- deaths, with work that takes no time


@pytest.fixture
def chores(deadly, tmp_cwd, monkeypatch):
    """Run chores on a cluster; give back how they ended, and what was told."""
    monkeypatch.setattr(running, "attempt", deadly.attempt)
    ledger, told = Ledger(Path("out")), []

    def run(names, address):
        todo = [deadly.Chore(name) for name in names]
        with workers.open_cluster(address) as (pool, _), ledger.opened():
            ends = list(running.run(todo, ledger, 1, told.append, pool))
            made = {job.name: ledger.work_of(job) / "frugal" for job in todo}
            found = {name: path.read_text() for name, path in made.items() if path.exists()}
        return {job.name: outcome.problem for job, outcome in ends}, found, told

    return run


def test_what_kills_every_worker_fails_and_stops_nobody_else(cluster, chores, deadly):
    problems, made, told = chores(["a", "killer", "c", "d"], cluster.scheduler_address)

    death = "its process was killed: was there enough memory? Workers with more may do"
    assert problems == {"a": "", "c": "", "d": "", "killer": death}
    assert set(made) == {"a", "c", "d"}
    assert "a process was killed: killer is tried once more, alone" in told
    # Twice by what the cluster is told, and the same again.
    assert len(list(Path(deadly.__file__).parent.glob("death*"))) == 4


def test_a_cluster_that_ends_is_not_waited_for(chores, tmp_path):
    # Beyond that it is not hoped for any more; 30 s by default.
    patience = dask.config.set({"distributed.comm.timeouts.connect": "1s"})
    with patience, start_cluster(tmp_path / "workers", 1) as ending:
        work = tmp_path / "out"

        def end():
            while not list(work.glob(".work*sleeper*")):
                time.sleep(0.02)
            asyncio.run_coroutine_threadsafe(ending.scheduler.close(), ending.loop.asyncio_loop)

        threading.Thread(target=end, daemon=True).start()
        begun = time.monotonic()
        with pytest.raises(RuntimeError, match="has dropped its work.*The same call goes on from here"):
            chores(["sleeper", "never"], ending.scheduler_address)
    assert time.monotonic() - begun < 20
    assert not list(work.glob(".work*"))


# ---- what is asked of a worker


@pytest.fixture
def job(tmp_cwd):
    Path("jw1_rate.fits").write_text("an exposure")
    return Job("jw1", "F770W", Stage("image2", {}, {}), Path("jw1_rate.fits"), (Path("jw1_rate.fits"),))


def test_each_attempt_has_a_folder_of_its_own(job, monkeypatch):
    """The first is cut off and writes on; what the second has made is whole all the same."""
    ledger, written = Ledger(Path("out")), []

    def run(job, work, log, cores, frugal):
        written.append((work, frugal))
        (work / job.product).write_text(f"attempt {len(written)}")

    monkeypatch.setattr(jobs, "_run_and_tell", lambda *given: run(*given) or "")
    monkeypatch.setattr(jobs, "_remark", lambda *_: "")
    with ledger.opened():
        work, log, _, *_ = ledger.work_of(job), ledger.log_of(job), None
        first, second = (jobs.attempt(job, work, log, jobs.surroundings()) for _ in range(2))
        (first.work / job.product).write_text("half")

        running._adopted(job, second, ledger)

        assert (work / job.product).read_text() == "attempt 2"
        assert [frugal for _, frugal in written] == [False, True]
        ledger.clear(job)
        assert not list(Path("out").glob(".work*"))
        assert "all workers must share the disk" in running._adopted(job, first, ledger).problem


def test_a_worker_that_has_other_packages_or_disks_does_nothing(job, monkeypatch):
    monkeypatch.setenv("CRDS_CONTEXT", "jwst_0000.pmap")
    ledger = Ledger(Path("out"))
    with ledger.opened():
        where = ledger.work_of(job), ledger.log_of(job)
        other = jobs.surroundings() | {"jwst": "0.1", "CRDS_CONTEXT": "jwst_0001.pmap"}
        reason = "instead of 0.1, CRDS_CONTEXT jwst_0000.pmap instead of jwst_0001.pmap"
        with pytest.raises(RuntimeError, match=reason):
            jobs.attempt(job, *where, other)

    with pytest.raises(RuntimeError, match="gone must be on a disk that all workers of the cluster share"):
        jobs.attempt(job, Path("gone/.work_1"), where[1], jobs.surroundings())
    assert not list(Path("out").glob(".work*"))


def test_a_worker_is_told_absolute_paths_and_no_processes(tmp_cwd):
    for name in ("mask.reg", "gaia.ecsv", "a_cal.fits", "flat.fits", "grid.asdf"):
        Path(name).write_text("content")
    changes = {
        "super_background.regions": "mask.reg",
        "super_background.background_files": ["a_cal.fits"],
        "tile_astrometry.reference_catalog": "gaia",
        "tweakreg.abs_refcat": "GAIADR3",
        "resample.output_wcs": "grid.asdf",
        "image2.flat_field.override_flat": "flat.fits",
        "pixel_skymatch.maximum_cores": "half",
        "pixel_skymatch.executor": "tcp://host:1",
        "jump.maximum_cores": "half",
        "rate_from_rateints.rateints": "more",
    }
    stages = {name: stage.elsewhere() for name, stage in settings.read(changes=changes).items()}

    hooks = stages["image3"].hooks()
    assert hooks["super_background"].parameters["regions"] == str(tmp_cwd / "mask.reg")
    assert hooks["super_background"].parameters["background_files"] == [str(tmp_cwd / "a_cal.fits")]
    assert hooks["tile_astrometry"].parameters["reference_catalog"] == str(tmp_cwd / "gaia")
    assert not {"maximum_cores", "executor"} & set(hooks["pixel_skymatch"].parameters)
    assert stages["image3"].steps["tweakreg"]["abs_refcat"] == "GAIADR3"
    assert stages["image3"].steps["resample"]["output_wcs"] == str(tmp_cwd / "grid.asdf")
    assert stages["image2"].steps["flat_field"]["override_flat"] == str(tmp_cwd / "flat.fits")
    assert "maximum_cores" not in stages["detector1"].steps["jump"]
    rateints = stages["detector1"].hooks()["rate_from_rateints"].parameters["rateints"]
    assert rateints in ([str(tmp_cwd / "more")], str(tmp_cwd / "more"))


def test_a_worker_has_the_memory_it_is_granted(cluster):
    with workers.open_cluster(cluster.scheduler_address) as (pool, _):
        granted = pool.submit(jobs._memory).result()
    # Workers that died have left, and those in their places bear other names.
    limits = [worker.memory_manager.memory_limit for worker in cluster.workers.values()]
    assert granted <= min(limits)
    assert granted < jobs._memory() or len(limits) == 1


# ---- before any work


@pytest.mark.parametrize(
    ("executor", "why"),
    [("nowhere.json", "no file nowhere.json"), ("tcp://127.0.0.1:1", "nothing answers at tcp://127.0.0.1:1")],
)
def test_a_cluster_that_is_not_there_is_found_before_any_work(home, executor, why, tmp_cwd, monkeypatch):
    monkeypatch.setattr(workers, "_PATIENCE", 0.5)

    with pytest.raises(SystemExit, match=rf"miri-steps reduce: .*{why}"):
        cli.main(["reduce", str(home / "ngc1"), "-o", "out", "--executor", executor])

    assert not list(tmp_cwd.iterdir())


def test_without_dask_the_extra_is_named(home, tmp_cwd, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)

    with pytest.raises(SystemExit, match=r"miri-steps reduce: .*pip install miri-steps\[dask\]"):
        cli.main(["reduce", str(home / "ngc1"), "-o", "out", "--executor", "tcp://127.0.0.1:8786"])

    assert not list(tmp_cwd.iterdir())


# ---- which mosaics are made at the same time


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # The second has a tile that the first has not: it is measured, and the last waits for it.
        ({}, [["a"], ["b", "c"], ["d"]]),
        ({"tile_astrometry.skip": True}, [["a", "b", "c", "d"]]),
    ],
)
def test_mosaics_wait_for_those_whose_corrections_they_may_have(changes, expected, tmp_cwd, monkeypatch):
    tiles = {"a": "12", "b": "123", "c": "12", "d": "13"}
    made = chain._Chain(Ledger(Path("out")), settings.read(changes=changes), 1, cluster=object())
    together = []

    def run(jobs, remarks):
        together.append([job.name for job in jobs])
        for job in jobs:
            measured = "corrections" not in getattr(
                job.stage.hooks().get("tile_astrometry"), "parameters", {}
            )
            if measured:
                table = Path("out/stage3") / f"{job.name}_tiles.ecsv"
                table.parent.mkdir(parents=True, exist_ok=True)
                names = [f"{tile} S1" for tile in tiles[job.name]]
                Table({"tile": names, "shift_east": [0.1] * len(names)}).write(table)
            made.rows.append(Row("stage3", job.name, job.band, DONE))

    monkeypatch.setattr(made, "_run", run)
    monkeypatch.setattr(chain, "_associate", lambda *_: {})
    mosaics = [
        chain._Mosaic(
            name, "F770W", [Source(tile, "cal", Path(tile), visit_id=tile, gs_id="S1") for tile in listed]
        )
        for name, listed in tiles.items()
    ]

    made._make_mosaics(mosaics, {tile: Path(tile) for tile in "123"})

    assert together == expected
    assert [row.name for row in made.rows] == list(tiles)
