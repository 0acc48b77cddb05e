"""`TileAstrometryStep` on starry fields, in the real pipelines, against the truth."""

import contextlib
import logging
from pathlib import Path

import asdf
import numpy as np
import pytest
from astropy.table import QTable, Table
from jwst import datamodels
from jwst.datamodels import ModelLibrary
from jwst.stpipe import Step

from miri_steps import TileAstrometryStep, simulate
from miri_steps.simulate import Scene, mosaic, observe, pointing, write
from miri_steps.steps import tile_wcs

SHARED = Path(__file__).parents[3] / "shared" / "data"
APERTURES = SHARED / "reference" / "jwst_miri_apcorr_0014.fits"
RA, DEC = 83.6, -69.1
TRUTH = np.repeat([[0.2, -0.1], [-0.5, 0.6]], 2, axis=0)
MAS = 1e-3
# So close together are stars in so small a field that the stock values would mix them up.
TWEAKREG = {
    "kernel_fwhm": 1.6,
    "tolerance": 0.3,
    "separation": 0.6,
    "abs_tolerance": 0.3,
    "abs_separation": 0.6,
}


@pytest.fixture(scope="module")
def starry(tmp_path_factory):
    """Two tiles of two dithers, 0.2 and 0.8 arcsec off, in a short and a long filter."""
    folder = tmp_path_factory.mktemp("starry")
    scene = Scene(RA, DEC).with_stars(150, radius=32, flux=(0.003, 0.3), seed=21)
    plan = mosaic(RA, DEC, tiles=(2, 1), dithers=2, tile_step=(14.0, 0.0), dither_step=2.5, pa=20)
    for band, noise in (("F560W", 0.05), ("F1800W", 0.5)):
        observation = observe(
            scene, plan, band, sky=3.0, noise=noise, pointing_error=TRUTH, subarray="SUB256"
        )
        write(observation, folder / band, product=band)
    return folder


def association(folder, band):
    return str(folder / band / f"{band}_asn.json")


def shifts_of(result):
    """Corrections in the gWCS of exposures, by their order."""
    if isinstance(result, ModelLibrary):
        with result:
            models = [result.borrow(k) for k in range(len(result))]
            shifts = [tile_wcs.read(model.meta.wcs).shift for model in models]
            for k, model in enumerate(models):
                result.shelve(model, k, modify=False)
        return np.array(shifts)
    shifts = []
    for path in sorted(result):
        with datamodels.open(path) as model:
            assert model.meta.cal_step.tile_astrometry == "COMPLETE"
            shifts.append(tile_wcs.read(model.meta.wcs).shift)
    return np.array(shifts)


def assert_true(shifts, within):
    """Hold tiles to be right [arcsec], and exposures of a tile to agree to 0.1 mas."""
    assert np.abs(shifts - TRUTH).max() < within
    for tile in np.split(shifts, 2):
        assert np.ptp(tile, axis=0).max() < 0.1 * MAS


# ---- directly, against a catalogue -------------------------------------------------------------------------


@pytest.mark.parametrize("band, within", [("F560W", 1 * MAS), ("F1800W", 8 * MAS)])
def test_stars_of_a_tile_give_its_correction_once(starry, band, within, tmp_path, caplog):
    settings = {"reference_catalog": str(starry / "F560W" / "F560W_refcat.ecsv")}

    result = TileAstrometryStep.call(
        association(starry, band), save_corrections=True, output_dir=str(tmp_path), **settings
    )

    shifts = shifts_of(result)
    assert_true(shifts, within)
    table = QTable.read(tmp_path / f"{band}_tiles.ecsv")
    assert list(table["method"]) == ["F560W_refcat.ecsv"] * 2
    assert (table["stars"] >= 8).all()
    off = np.column_stack([table["shift_east"].value, table["shift_north"].value]) - TRUTH[::2]
    stated = np.column_stack([table["error_east"].value, table["error_north"].value])
    assert (np.abs(off) < 5 * stated + 0.5 * MAS).all()
    assert stated.max() < within
    caplog.clear()

    again = TileAstrometryStep.call(result, **settings)

    np.testing.assert_array_equal(shifts_of(again), shifts)
    assert caplog.text.count("Nothing is done to") == 4


def test_stars_that_move_are_looked_for_where_they_are_at_the_date(starry, tmp_path):
    stars = Table.read(starry / "F560W" / "F560W_refcat.ecsv")
    years = pointing.FIRST_DAY / 365.25 + 1858.876 - 2016.0
    stars["pmra"], stars["pmdec"] = 50.0, -80.0
    stars["RA"] -= stars["pmra"] * years / 3.6e6 / np.cos(np.radians(stars["DEC"]))
    stars["DEC"] -= stars["pmdec"] * years / 3.6e6
    stars.write(tmp_path / "gaia.ecsv")

    result = TileAstrometryStep.call(
        association(starry, "F560W"), reference_catalog=str(tmp_path / "gaia"), epoch=2016.0
    )

    assert_true(shifts_of(result), 2 * MAS)


def test_a_catalogue_of_another_field_gives_nothing(starry, tmp_path, caplog):
    stars = Table.read(starry / "F560W" / "F560W_refcat.ecsv")
    rng = np.random.default_rng(5)
    stars["RA"] += rng.uniform(-30, 30, len(stars)) / 3600
    stars["DEC"] += rng.uniform(-10, 10, len(stars)) / 3600
    stars.write(tmp_path / "wrong.ecsv")

    result = TileAstrometryStep.call(
        association(starry, "F560W"), reference_catalog=str(tmp_path / "wrong.ecsv")
    )

    with result:
        for k in range(len(result)):
            model = result.borrow(k)
            assert model.meta.cal_step.tile_astrometry == "SKIPPED"
            assert tile_wcs.read(model.meta.wcs) is None
            result.shelve(model, k, modify=False)
    assert caplog.text.count("no good correction") == 2


# ---- in the stock pipelines --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reduced(starry, tmp_path_factory):
    """Run calwebb_image3 as strun does, with the Step behind tweakreg."""
    folder = tmp_path_factory.mktemp("reduced")
    words = [
        *("--disable-crds-steppars", "calwebb_image3", association(starry, "F560W"), "--output_dir=out"),
        f"--steps.tweakreg.abs_refcat={starry / 'F560W' / 'F560W_refcat.ecsv'}",
        *(f"--steps.tweakreg.{name}={value}" for name, value in TWEAKREG.items()),
        "--steps.tweakreg.post_hooks=miri_steps.TileAstrometryStep(save_corrections=True),",
        "--steps.tweakreg.save_results=true",
        *(f"--steps.{name}.skip=true" for name in ("skymatch", "outlier_detection", "source_catalog")),
    ]
    # The file of the log hears what stpipe shows to the user, and no more.
    heard = logging.FileHandler(folder / "log")
    heard.setFormatter(logging.Formatter("%(name)s - %(levelname)s - %(message)s"))
    logging.getLogger("stpipe").addHandler(heard)
    try:
        with contextlib.chdir(folder):
            Step.from_cmdline(words)
    finally:
        logging.getLogger("stpipe").removeHandler(heard)
        heard.close()
    return folder


def test_behind_tweakreg_tiles_keep_together(reduced):
    shifts = shifts_of((reduced / "out").glob("*_tweakreg.fits"))

    # Stock tweakreg is as good as this in a field of perfect stars; the tiles are ours.
    assert_true(shifts, 8 * MAS)
    log = (reduced / "log").read_text()
    assert "stpipe.miri_steps.steps.tile_products - INFO - Tile 01234001001" in log
    assert "2 of 2 exposures" in log
    assert (reduced / "out" / "F560W_i2d.fits").exists()
    assert len(QTable.read(reduced / "F560W_tiles.ecsv")) == 2


def test_the_table_corrects_the_long_filter_in_the_pipeline_without_tweakreg(starry, reduced, strun, tmp_cwd):
    (tmp_cwd / "F560W_tiles.ecsv").write_text((reduced / "F560W_tiles.ecsv").read_text())

    said = strun(
        *("--disable-crds-steppars", "calwebb_image3", association(starry, "F1800W")),
        "--steps.tweakreg.skip=true",
        "--steps.tweakreg.post_hooks=miri_steps.TileAstrometryStep(corrections='F560W_tiles'),",
        "--steps.skymatch.save_results=true",
        *(f"--steps.{name}.skip=true" for name in ("outlier_detection", "source_catalog")),
    )

    assert "moved by +0.20" in said
    assert_true(shifts_of(tmp_cwd.glob("*_skymatch.fits")), 8 * MAS)
    assert (tmp_cwd / "F1800W_i2d.fits").exists()


@pytest.mark.skipif(not APERTURES.exists(), reason="the aperture corrections for source_catalog are not here")
def test_the_catalogue_of_the_short_filters_mosaic_measures_the_long_one(
    starry, reduced, strun, tmp_cwd, monkeypatch
):
    for name, value in simulate.offline_crds(tmp_cwd).items():
        monkeypatch.setenv(name, value)
    meta = {"telescope": "JWST", "reftype": "abvegaoffset", "instrument": {"name": "MIRI"}}
    meta |= {"description": "-", "author": "-", "pedigree": "DUMMY", "useafter": "2022-01-01T00:00:00"}
    offsets = Table({"filter": ["F560W"], "abvega_offset": [-1.3]})
    asdf.AsdfFile({"meta": meta, "abvega_offset": offsets}).write_to(tmp_cwd / "abvega.asdf")
    strun(
        *("--disable-crds-steppars", "source_catalog", reduced / "out" / "F560W_i2d.fits"),
        *(f"--override_apcorr={APERTURES}", "--override_abvegaoffset=abvega.asdf"),
        *("--snr_threshold=10", "--bkg_boxsize=64", "--kernel_fwhm=1.6", "--npixels=5", "--output_dir=cat"),
    )
    (catalogue,) = (tmp_cwd / "cat").glob("*_cat.ecsv")

    result = TileAstrometryStep.call(association(starry, "F1800W"), reference_catalog=str(catalogue))

    assert_true(shifts_of(result), 8 * MAS)
