"""Whole reductions of a small field, from what is found in a folder to mosaics and a report."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable, Table
from stdatamodels.jwst import datamodels

from miri_steps import simulate
from miri_steps.reduction import reduce
from miri_steps.simulate.metadata import CONVERSION

RA, DEC = 339.0, 33.96
SUBARRAY = "SUB128"
# Of the ramps [DN/s].
RATE = 40.0
# Of the tiles, East and North [arcsec].
ERRORS = np.array([[0.3, -0.2], [-0.5, 0.4]])
# The catalogue would need more reference files; a handful of stars is best measured tile by tile.
QUICK = {"source_catalog.skip": True, "tweakreg.skip": True}
STEPS = "median_hot_pixel", "tile_astrometry", "super_background", "pixel_skymatch"
ALONE = {f"{step}.maximum_cores": "1" for step in STEPS}
# A mosaic and nothing else.
BARE = {f"{step}.skip": "true" for step in ("tweakreg", "outlier_detection", "source_catalog", *STEPS)}


def plan(activity, tiles=(1, 2)):
    """Point at each tile once."""
    pointings = simulate.mosaic(RA, DEC, tiles=(2, 1), dithers=1, tile_step=(8.0, 0.0), dither_step=2.0)
    return [
        dataclasses.replace(pointing, activity=activity) for pointing in pointings if pointing.tile in tiles
    ]


def observe(band, activity, tiles=(1, 2)):
    scene = simulate.Scene(RA, DEC).with_stars(60, radius=12, flux=(0.01, 1.0), seed=1)
    pointings = plan(activity, tiles)
    # Stars are to be found: their faint wings are not missed.
    psf = simulate.psf(band, half_size=32)
    settings = {"sky": 5.0, "noise": 0.05, "pattern": simulate.dome(0.3), "psf": psf}
    errors = ERRORS[[pointing.tile - 1 for pointing in pointings]]
    return simulate.observe(
        scene, pointings, band, subarray=SUBARRAY, seed=7, pointing_error=errors, **settings
    )


def direct(field):
    """Measure tiles against the catalogue of the simulated stars."""
    (catalogue,) = (field / "rates").glob("*_refcat.ecsv")
    return QUICK | {"tile_astrometry.reference_catalog": str(catalogue)}


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Provide reference files for all stages, and no CRDS."""
    folder = tmp_path_factory.mktemp("references")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in simulate.offline_crds(folder).items():
            patch.setenv(name, value)
        files = simulate.reference_files(folder, SUBARRAY) | simulate.calibration_files(folder)
        yield {
            f"{step}.{parameter}": value
            for step, values in files.items()
            for parameter, value in values.items()
            if step != "resample"
        }


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """
    Fill a folder with rates of one filter, a ramp and a calibrated exposure of another, and more.

    Two exposures of each filter: what happens to an exposure takes long and is the same for all.
    """
    folder = tmp_path_factory.mktemp("field") / "ngc1"
    simulate.write_rates(observe("F770W", "01"), folder / "rates", nints=4, cosmic_rays=0.05)
    (pointing,) = plan("03", tiles=(1,))
    rate = np.full((128, 136), RATE)
    uncal = simulate.ramp(
        rate, nints=4, ngroups=10, subarray=SUBARRAY, filter="F1800W", pointing=pointing, cosmic_rays=0.02
    )
    simulate.write(observe("F1800W", "02", tiles=(2,)), folder / "cals")
    uncal.save(folder / f"{pointing.name}_uncal.fits")
    cal = next(folder.rglob("*_cal.fits"))
    cut = folder / cal.name.replace("01234", "01235")
    cut.write_bytes(cal.read_bytes()[:-1000])
    acquisition = folder / cal.name.replace("01234", "01236")
    shutil.copy(cal, acquisition)
    fits.setval(acquisition, "EXP_TYPE", value="MIR_TACQ")
    return folder


@pytest.fixture(scope="module")
def reduced(field, offline, tmp_path_factory):
    """Reduce it once: two exposures at a time, but each Step in one process."""
    output = tmp_path_factory.mktemp("reduced") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(output.parent)
        changes = offline | direct(field) | ALONE
        table = reduce(field, output, changes=changes, maximum_cores="2", save_report=False)
    return output, table


def products(folder):
    return {path.name: path for path in folder.iterdir() if not path.name.startswith(".")}


def test_every_exposure_goes_through_what_it_still_needs(reduced, field):
    output, table = reduced
    ends = {(row["stage"], row["filter"]): [] for row in table}
    for row in table:
        ends[row["stage"], row["filter"]].append(row["status"])

    assert ends == {
        ("input", "F1800W"): ["failed", "skipped"],
        ("stage1", "F770W"): ["done"] * 2,
        ("stage1", "F1800W"): ["done"],
        ("stage2", "F770W"): ["done"] * 2,
        ("stage2", "F1800W"): ["done"],
        ("stage3", "F770W"): ["done"],
        ("stage3", "F1800W"): ["done"],
    }
    reasons = " ".join(table["reason"][table["stage"] == "input"])
    assert "truncated" in reasons
    assert "EXP_TYPE must be MIR_IMAGE, got MIR_TACQ" in reasons
    assert table["reason"][-1].startswith("tile corrections of ngc1_f770w_tiles.ecsv; 1 of its 3 exposures")
    written = QTable.read(output / "reduction.ecsv")
    assert list(written["name"]) == list(table["name"])
    assert written["seconds"].unit == "s"


def test_products_are_where_they_belong_and_nothing_else_is_anywhere(reduced):
    output, _ = reduced

    assert {path.name for path in output.parent.iterdir()} == {"out"}
    assert {"stage1", "stage2", "stage3", "logs", "reduction.ecsv"} <= set(products(output))
    assert len(list((output / "stage1").glob("*_rate.fits"))) == 3
    assert len(list((output / "stage2").iterdir())) == 3
    mosaics = {path.name for path in (output / "stage3").glob("*_i2d.fits")}
    assert mosaics == {"ngc1_f770w_i2d.fits", "ngc1_f1800w_i2d.fits"}
    beside = {"sky_levels.ecsv", "sky_pairs.ecsv", "tiles.ecsv", "asn.json"}
    assert {f"ngc1_f770w_{name}" for name in beside} <= set(products(output / "stage3"))
    assert not list(output.glob(".work*"))


def test_associations_are_sorted_and_name_files_from_where_they_are(reduced, field):
    """Also where one is in the folder of the field, and the other was made here."""
    folder = reduced[0] / "stage3"
    for band, places in (("f770w", ["stage2"] * 2), ("f1800w", ["stage2", "cals"])):
        association = json.loads((folder / f"ngc1_{band}_asn.json").read_text())
        (product,) = association["products"]
        paths = [Path(member["expname"]) for member in product["members"]]

        assert association["program"] == "01234"
        assert product["name"] == f"ngc1_{band}"
        assert [path.parent.name for path in paths] == places
        assert paths == sorted(paths, key=lambda path: path.name)
        assert all((folder / path).is_file() for path in paths)


def test_rates_are_rebuilt_without_cosmic_rays(reduced, field):
    """One sample in twenty is hit: the old rates are too high in the mean, the new ones are not."""
    truth = observe("F770W", "01")
    for i, path in enumerate(sorted((reduced[0] / "stage1").glob("*_02101_*_rate.fits"))):
        expected = simulate.integrate(truth, i, nints=4).truth
        before = fits.getdata(field / "rates" / path.name, "SCI")
        after, good = fits.getdata(path, "SCI"), (fits.getdata(path, "DQ") & 1) == 0
        assert path.name == f"{truth.pointings[i].name}_rate.fits"
        noise = np.nanmedian(fits.getdata(path, "ERR"))

        assert np.mean((before - expected)[good]) > 0.3 * noise
        assert abs(np.median((after - expected)[good])) < 0.1 * noise
        assert np.std((after - expected)[good]) < 0.6 * np.std((before - expected)[good])


def test_a_ramp_comes_out_at_its_true_rate(reduced):
    (path,) = (reduced[0] / "stage2").glob("*_02103_*_cal.fits")
    data, dq = fits.getdata(path, "SCI"), fits.getdata(path, "DQ")
    level = np.mean(data[(dq & 1) == 0])
    assert level == pytest.approx(RATE * CONVERSION, rel=0.01)


def test_another_filter_gets_the_corrections_of_the_shortest(reduced):
    """Tiles are right to a few mas in both filters, though only the first was measured."""
    folder = reduced[0] / "stage3"
    assert [path.name for path in folder.glob("*_tiles.ecsv")] == ["ngc1_f770w_tiles.ecsv"]
    moved = {}
    for path in folder.glob("*_crf.fits"):
        with datamodels.open(path) as model:
            record = model.meta.tile_astrometry.instance
            tile = int(model.meta.observation.visit_number)
            moved.setdefault(model.meta.instrument.filter, {})[tile] = record

    assert {band: set(tiles) for band, tiles in moved.items()} == {"F770W": {1, 2}, "F1800W": {1, 2}}
    for band, tiles in moved.items():
        for tile, record in tiles.items():
            shift = record["east"], record["north"]
            np.testing.assert_allclose(shift, ERRORS[tile - 1], atol=0.01, err_msg=f"{band} {tile}")


def test_a_second_run_does_nothing_and_says_so(reduced, field, offline, capsys):
    output, table = reduced
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.fits")}

    again = reduce(field, output, changes=offline | direct(field), save_report=False)

    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.fits")} == before
    assert set(again["status"][again["stage"] != "input"]) == {"up to date"}
    assert sorted(again["name"]) == sorted(table["name"])
    assert "stage2     3 up to date" in capsys.readouterr().out


def planes(path):
    with fits.open(path) as hdus:
        return {hdu.name: hdu.data for hdu in hdus if hdu.is_image and hdu.data is not None}


def assert_same_products(first, second):
    """Hold two stage 3 folders to be equal bit for bit where there are pixels, and in what tables say."""
    assert list(products(first)) and set(products(first)) == set(products(second))
    for name, path in products(first).items():
        if path.suffix == ".fits":
            one, other = planes(path), planes(second / name)
            assert one.keys() == other.keys()
            for plane, values in one.items():
                np.testing.assert_array_equal(values, other[plane], err_msg=f"{name} {plane}")
        elif path.suffix == ".ecsv":
            assert path.read_text() == (second / name).read_text()


def command(arguments, folder, limit=None, **changes):
    """Start miri-steps in a process of its own."""
    options = [f"--set={key}={value}" for key, value in changes.items()]

    def begin():
        # A job in the background may be started with SIGINT ignored, and hands that on.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if limit:
            limit()

    return subprocess.Popen(
        [Path(sys.executable).with_name("miri-steps"), *map(str, arguments), *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=begin,
    )


def watch(run, output, moment, signal_number):
    """Wait until a run has made something, and send a signal to all its processes; return what it said."""
    deadline = time.monotonic() + 240
    while not list(output.glob(moment)) and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    # As a terminal does: all processes hear it.
    os.killpg(run.pid, signal_number)
    said = run.communicate(timeout=30)[0]
    assert list(output.glob(moment)), said
    return said


def test_a_stopped_run_goes_on_where_it_stopped_and_ends_the_same(field, offline, reduced, tmp_cwd, capsys):
    """
    Stop it with the keyboard in stage 2, and kill it in stage 3.

    Another order of files, two processes in each Step and one exposure at a time change nothing.
    """
    rates = tmp_cwd / "ngc1"
    shutil.copytree(field / "rates", rates / "z")
    for path in sorted(rates.rglob("jw01234001002_*")):
        (rates / "a").mkdir(exist_ok=True)
        path.rename(rates / "a" / path.name)
    arguments = ["reduce", rates, "-o", "out", "--no-report"]
    output = tmp_cwd / "out"

    run = command(arguments, tmp_cwd, **offline, **direct(field))
    said = watch(run, output, "stage2/jw01234001001_*_cal.fits", signal.SIGINT)

    assert run.returncode == 130
    assert said.rstrip().endswith("miri-steps reduce: stopped; the same command goes on from here")
    assert "Traceback" not in said
    assert not list(output.glob(".work*"))
    assert len(list((output / "stage2").iterdir())) == 1

    run = command(arguments, tmp_cwd, **offline, **direct(field))
    watch(run, output, ".work_*image3*/*_tiles.ecsv", signal.SIGKILL)

    assert not list(output.glob("stage3/*_i2d.fits"))
    made = {path: path.stat().st_mtime_ns for path in (output / "stage2").iterdir()}
    assert len(made) == 2

    reduce(rates, "out", changes=offline | direct(field), maximum_cores="2")

    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert "stage2     2 up to date" in capsys.readouterr().out
    assert not list(output.glob(".work*"))
    assert "ngc1_f770w" in (output / "report.html").read_text()
    first = tmp_cwd / "first"
    first.mkdir()
    for name in products(output / "stage3"):
        shutil.copy(reduced[0] / "stage3" / name, first)
    assert_same_products(first, output / "stage3")


def test_a_full_disk_fails_with_the_reason_and_leaves_nothing_half_done(field, tmp_cwd):
    """Files that cannot grow beyond a limit stand for a disk without room for the mosaic."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    arguments = ["reduce", field / "cals", "-o", "out", "--no-report"]
    run = command(arguments, tmp_cwd, limit, **BARE)
    said = run.communicate(timeout=240)[0]

    assert run.returncode == 1
    assert "stage3 cals_f1800w failed" in said
    assert "stage3 cals_f1800w failed: OSError: " in said
    assert not list(tmp_cwd.glob("out/stage3/*"))
    (row,) = Table.read(tmp_cwd / "out" / "reduction.ecsv")
    assert row["status"] == "failed"

    reduce(field / "cals", "out", changes=BARE, save_report=False)

    assert (tmp_cwd / "out" / "stage3" / "cals_f1800w_i2d.fits").exists()
