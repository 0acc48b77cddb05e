"""The packaged parameter files, run as they come on a small field."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from jwst.pipeline import Image3Pipeline
from jwst.stpipe import Step
from stdatamodels.jwst import datamodels

from miri_steps import parameters, simulate

# What takes time and is the same for all.
QUICK = {name: {"skip": True} for name in ("outlier_detection", "source_catalog")}
SHIFT = 0.1, -0.2  # East, North [arcsec]


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """Dithers of a few stars on a dome, all in one tile."""
    folder = tmp_path_factory.mktemp("variants")
    plan = simulate.mosaic(339.0, 33.96, tiles=(1, 1), dithers=6, dither_step=2.5)
    scene = simulate.Scene(339.0, 33.96).with_stars(30, radius=10, flux=(0.01, 1.0), seed=1)
    settings = {"sky": 5.0, "noise": 0.05, "pattern": simulate.dome(0.3)}
    observation = simulate.observe(scene, plan, "F1800W", subarray="SUB128", seed=7, **settings)
    return simulate.write(observation, folder, product="field"), observation


@pytest.fixture
def run(field, tmp_cwd):
    """Run a packaged file; give back the mosaic and what the exposures in it have been through."""

    def strun(name):
        caught = Look.caught = []
        hooks = {"pre_hooks": [Look]}
        steps = QUICK | {"resample": hooks}
        Image3Pipeline.call(
            str(field[0]), config_file=str(parameters.copy(name)), steps=steps, save_results=True
        )
        return fits.getdata("field_i2d.fits", "SCI"), caught

    return strun


class Look(Step):
    """Keep what exposures have been through."""

    def process(self, library):
        self.caught.extend(look_at(library))


def look_at(library):
    with library:
        for model in library:
            origin = [float(value) for value in model.meta.wcs(64.0, 64.0)]
            history = "".join(entry["description"] for entry in model.instance["history"]["entries"])
            yield model.meta.cal_step.instance, model.meta.background.instance, origin, history
            library.shelve(model, modify=False)


def status(caught, alias):
    return {steps.get(alias) for steps, *_ in caught}


def test_image3_does_it_all(run):
    mosaic, caught = run("image3")

    for alias in ("median_hot_pixel", "super_background", "pixel_skymatch"):
        assert status(caught, alias) == {"COMPLETE"}
    assert status(caught, "tweakreg") <= {"COMPLETE", "SKIPPED"}
    assert status(caught, "tile_astrometry") <= {"COMPLETE", "SKIPPED"}
    assert abs(np.nanmedian(mosaic)) < 0.02


def test_nebular_takes_the_background_from_the_overlaps(run):
    _, caught = run("image3_nebular")

    assert status(caught, "super_background") == {None}
    assert {background.get("detector_subtracted") for _, background, *_ in caught} == {True}


def test_deep_takes_two_passes(run):
    _, caught = run("image3_deep")

    assert status(caught, "super_background") == {"COMPLETE"}
    assert all("passes=2" in history for *_, history in caught)


def test_long_carries_corrections_over(run, field):
    pointing = field[1].pointings[0]
    table = Table({"visit_id": [pointing.visit_id], "gs_id": [pointing.gs_id]})
    table["shift_east"], table["shift_north"] = [SHIFT[0]], [SHIFT[1]]
    table["shift_east"].unit = table["shift_north"].unit = "arcsec"
    table.write("F770W_tiles.ecsv")

    _, caught = run("image3_long")

    assert status(caught, "tile_astrometry") == {"COMPLETE"}
    for path, (_, _, (ra, dec), _) in zip(sorted(field[0].parent.glob("*_cal.fits")), caught, strict=True):
        with datamodels.open(path) as model:
            before = model.meta.wcs(64.0, 64.0)
        moved = 3600 * (ra - before[0]) * np.cos(np.radians(dec)), 3600 * (dec - before[1])
        np.testing.assert_allclose(moved, SHIFT, atol=1e-3)
