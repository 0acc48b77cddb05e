"""The packaged parameter files, run as they come on a small field."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from jwst import datamodels
from jwst.datamodels import ModelLibrary
from jwst.pipeline import Image3Pipeline
from jwst.stpipe import Step

from miri_steps import parameters, simulate

# What takes time and is the same for all.
QUICK = {name: {"skip": True} for name in ("outlier_detection", "source_catalog")}
SHIFT = 0.1, -0.2  # East, North [arcsec]


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """Dithers of a few stars on a dome, all in one tile."""
    folder = tmp_path_factory.mktemp("variants")
    plan = simulate.mosaic(339.0, 33.96, tiles=(1, 1), dithers=5, dither_step=2.5)
    scene = simulate.Scene(339.0, 33.96).with_stars(30, radius=10, flux=(0.01, 1.0), seed=1)
    psf = simulate.psf("F1800W", half_size=32)
    settings = {"sky": 5.0, "noise": 0.05, "pattern": simulate.dome(0.3), "psf": psf}
    observation = simulate.observe(scene, plan, "F1800W", subarray="SUB128", seed=7, **settings)
    association, models = simulate.write(observation, folder, product="field"), []
    for path in sorted(folder.glob("*_cal.fits")):
        with datamodels.open(path) as model:
            models.append(model.copy())
    return association, models


@pytest.fixture
def run(field, tmp_cwd):
    """
    Run a packaged file on some exposures up to the mosaic; tell what they have been through.

    Without tweakreg's own work, which is the same in all files: its hooks run all the same.
    """

    def up_to_resample(name, count):
        caught = Look.caught = []
        models = [model.copy() for model in field[1][:count]]
        steps = QUICK | {"tweakreg": {"skip": True}, "resample": {"skip": True, "pre_hooks": [Look]}}
        Image3Pipeline.call(ModelLibrary(models), config_file=str(parameters.copy(name)), steps=steps)
        return caught

    return up_to_resample


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


def test_image3_does_it_all(field, tmp_cwd):
    caught = Look.caught = []
    Image3Pipeline.call(
        str(field[0]),
        config_file=str(parameters.copy("image3")),
        steps=QUICK | {"resample": {"pre_hooks": [Look]}},
        save_results=True,
    )
    mosaic = fits.getdata("field_i2d.fits", "SCI")

    for alias in ("median_hot_pixel", "super_background", "pixel_skymatch"):
        assert status(caught, alias) == {"COMPLETE"}
    assert status(caught, "tweakreg") <= {"COMPLETE", "SKIPPED"}
    assert status(caught, "tile_astrometry") <= {"COMPLETE", "SKIPPED"}
    assert abs(np.nanmedian(mosaic)) < 0.02


def test_nebular_takes_the_background_from_the_overlaps(run):
    caught = run("image3_nebular", 3)

    assert status(caught, "super_background") == {None}
    assert {background.get("detector_subtracted") for _, background, *_ in caught} == {True}


def test_deep_takes_two_passes(run):
    caught = run("image3_deep", 5)

    assert status(caught, "super_background") == {"COMPLETE"}
    assert all("passes=2" in history for *_, history in caught)


def test_long_carries_corrections_over(run, field):
    models = field[1][:2]
    visit, star = models[0].meta.observation.visit_id, models[0].meta.guidestar.gs_id
    table = Table({"visit_id": [visit], "gs_id": [star]})
    table["shift_east"], table["shift_north"] = [SHIFT[0]], [SHIFT[1]]
    table["shift_east"].unit = table["shift_north"].unit = "arcsec"
    table.write("F770W_tiles.ecsv")

    caught = run("image3_long", 2)

    assert status(caught, "tile_astrometry") == {"COMPLETE"}
    for model, (_, _, (ra, dec), _) in zip(models, caught, strict=True):
        before = model.meta.wcs(64.0, 64.0)
        moved = 3600 * (ra - before[0]) * np.cos(np.radians(dec)), 3600 * (dec - before[1])
        np.testing.assert_allclose(moved, SHIFT, atol=1e-3)
