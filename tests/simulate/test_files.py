"""Files: what the real ones have, what the stock pipeline reads."""

import json
import re

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable, Table

from miri_steps.simulate import Scene, dome, grid, mosaic, observe, wcs, write

RA, DEC = 83.6, -69.1
# What a real exposure has and no later step of an image reads: ephemeris, engineering, target's motion.
NOT_SIMULATED = (
    "ASNPOOL ASNTABLE BARTDELT BENDTIME BMIDTIME BSCALE BSTRTIME BZERO COMPRESS CORONMSK CRDS_CTX "
    "CRDS_VER CROWDFLD DATAMODE DRPFRMS1 DRPFRMS3 ENG_QUAL EPH_TIME EPH_TYPE EXP_ONLY EXTNCRS "
    "FILETYPE FPE_SIDE GSENDTIM GSSTRTTM GS_DEC GS_MAG GS_RA GS_UDEC GS_UMAG GS_URA GS_V3_PA "
    "HELIDELT HENDTIME HGA_MOVE HMIDTIME HSTRTIME ICE_SIDE INT1BORS INT1SKIP INT1UGP1 INT2BORS "
    "INT2SKIP INT2UGP1 JWST_DX JWST_DY JWST_DZ JWST_X JWST_Y JWST_Z MU_DEC MU_EPOCH MU_RA NWFSEST "
    "OBSFOLDR OBSGEO-X OBSGEO-Y OBSGEO-Z OBSGEODX OBSGEODY OBSGEODZ OSF_FILE OSS_VER PRD_VER "
    "PRIMECRS PWFSEET REFFRAME SCA_NUM SCICAT SCTARATE SDP_VER SELFREF TARGCAT TARGDESC TARGOOPP "
    "TARGUDEC TARGURA VISITEND VSTSTART XOFFSET YOFFSET"
).split()
# The SIP polynomials' order is that of the field; reference files and steps are those that were run.
NOT_COMPARED = re.compile(r"(A|B|AP|BP)_(\d_\d|ORDER)$|R_|S_(?!REGION)")


def missing_keywords(ours, theirs):
    """List what a real header has and ours lacks."""
    missing = set(theirs) - set(ours) - set(NOT_SIMULATED)
    return sorted(key for key in missing if key and not NOT_COMPARED.match(key))


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """Write two small exposures."""
    folder = tmp_path_factory.mktemp("field")
    scene = Scene(RA, DEC).with_stars(30, radius=15, seed=1)
    observation = observe(
        scene,
        grid(RA, DEC, n=(2, 1), step=5),
        "F770W",
        sky=[1.0, 2.0],
        pattern=dome(1.0),
        pattern_scale=[1.0, 1.25],
        pointing_error=[[0.1, -0.2], [0.0, 0.0]],
        subarray="SUB256",
    )
    return observation, write(observation, folder, product="field")


def test_files_open_as_what_was_written(field):
    from jwst import datamodels

    observation, association = field
    for made, path in zip(observation, sorted(association.parent.glob("*_cal.fits")), strict=True):
        with datamodels.open(path) as model:
            assert isinstance(model, datamodels.ImageModel)
            for name in ("data", "err", "dq", "area", "var_poisson", "var_rnoise", "var_flat"):
                np.testing.assert_array_equal(getattr(model, name), getattr(made, name))
            assert model.meta.filename == path.name
            assert model.meta.wcs(100.0, 50.0) == pytest.approx(made.meta.wcs(100.0, 50.0))
            model.validate()


def test_library_groups_the_exposures(field):
    from jwst.datamodels import ModelLibrary

    observation, association = field
    library = ModelLibrary(association, on_disk=True)
    assert len(library) == 2
    assert len(library.group_names) == 2
    with library:
        model = library.borrow(0)
        assert model.meta.wcsinfo.s_region.startswith("POLYGON ICRS")
        assert model.meta.guidestar.gs_id == observation.pointings[0].gs_id
        library.shelve(model, 0, modify=False)


def test_truth_is_told(field):
    observation, association = field
    truth = QTable.read(association.parent / "field_truth.ecsv")
    assert list(truth["exposure"]) == [
        m["expname"] for m in json.loads(association.read_text())["products"][0]["members"]
    ]
    assert truth["sky"].unit == "MJy / sr"
    assert list(truth["sky"].value) == [1.0, 2.0]
    assert list(truth["pattern_scale"]) == [1.0, 1.25]
    assert truth["error_north"].to_value("arcsec")[0] == -0.2
    assert list(truth["visit"]) == [p.visit_id for p in observation.pointings]
    np.testing.assert_array_equal(
        fits.getdata(association.parent / "field_pattern.fits"), observation.pattern
    )
    assert not (association.parent / "field_hot.fits").exists()
    stars = Table.read(association.parent / "field_refcat.ecsv")
    np.testing.assert_allclose(stars["RA"], observation.scene.stars["ra"])


def test_nothing_is_overwritten(field):
    observation, association = field
    with pytest.raises(FileExistsError, match="is there already"):
        write(observation, association.parent, product="field")


def test_unflagged_pixels_are_told(tmp_path):
    parameters = {"hot_pixels": 0.02, "dead_pixels": 0.01, "subarray": "SUB64", "regions": "lyot"}
    observation = observe(Scene(RA, DEC), grid(RA, DEC, n=(1, 1)), "F770W", **parameters)
    folder = write(observation, tmp_path, product="field").parent
    with fits.open(folder / "field_hot.fits") as hdus:
        np.testing.assert_allclose(hdus["HOT"].data, observation.hot, rtol=1e-6)
        np.testing.assert_array_equal(hdus["DEAD"].data > 0, observation.dead)
    assert observation.hot.any()
    assert observation.dead.any()


def test_layout_is_that_of_a_real_file(shared_data, tmp_path):
    observation = observe(Scene(RA, DEC), mosaic(RA, DEC, tiles=(1, 1), dithers=1), "F770W")
    path = write(observation, tmp_path).parent / f"{observation.pointings[0].name}_cal.fits"
    real = next((shared_data / "fullframe_cal").glob("*.fits.gz"))
    with fits.open(path) as ours, fits.open(real) as theirs:
        assert [hdu.name for hdu in ours] == [hdu.name for hdu in theirs]
        assert [hdu.shape for hdu in ours[1:8]] == [hdu.shape for hdu in theirs[1:8]]
        assert missing_keywords(ours[0].header, theirs[0].header) == []
        assert missing_keywords(ours["SCI"].header, theirs["SCI"].header) == []


def test_keywords_are_those_of_a_real_file(field, shared_data):
    _, association = field
    real = sorted((shared_data / "miri_4qpm_dithers").glob("*_cal.fits"))[0]
    with fits.open(sorted(association.parent.glob("*_cal.fits"))[0]) as ours, fits.open(real) as theirs:
        for name in ("PRIMARY", "SCI"):
            assert missing_keywords(ours[name].header, theirs[name].header) == []
        for name in ("SCI", "ERR", "DQ", "VAR_POISSON"):
            kinds = [hdus[name].data.dtype.name for hdus in (ours, theirs)]
            assert kinds[0] == kinds[1]
        # What the mosaic depends on has the same kind of value.
        for key in (
            "VISIT_ID",
            "GDSTARID",
            "EXPOSURE",
            "VISITGRP",
            "ACT_ID",
            "EXP_TYPE",
            "EXPMID",
            "SUBSTRT1",
        ):
            assert type(ours[0].header[key]) is type(theirs[0].header[key]), key


def test_stock_pipeline_recovers_a_pointing_error(tmp_cwd):
    """Run calwebb_image3 as a user does; its tweakreg has to find the errors that went in."""
    from jwst.pipeline import Image3Pipeline

    rng = np.random.default_rng(1)
    errors = rng.uniform(-0.3, 0.3, (2, 2))
    scene = Scene(RA, DEC).with_stars(120, radius=28, flux=(0.01, 0.04), seed=1)
    observation = observe(
        scene,
        mosaic(RA, DEC, tiles=(2, 1), dithers=1, tile_step=12.0, pa=70.0),
        "F770W",
        sky=[3.0, 3.2],
        pointing_error=errors,
        subarray="SUB256",
    )
    association = write(observation, tmp_cwd, product="field")
    tweakreg = {
        "abs_refcat": "field_refcat.ecsv",
        "abs_searchrad": 1.0,
        "abs_tolerance": 0.3,
        "abs_separation": 0.6,
        "abs_minobj": 10,
        "abs_fitgeometry": "shift",
        "fitgeometry": "shift",
        "save_results": True,
    }
    skipped = {name: {"skip": True} for name in ("outlier_detection", "source_catalog")}
    Image3Pipeline.call(association.name, steps={"tweakreg": tweakreg, **skipped}, save_results=True)
    mosaic_data = fits.getdata(tmp_cwd / "field_i2d.fits", "SCI")
    assert np.nanmedian(mosaic_data) == pytest.approx(3.0, abs=0.05)
    from jwst import datamodels

    for pointing, error in zip(observation.pointings, errors, strict=True):
        with datamodels.open(tmp_cwd / f"{pointing.name}_tweakreg.fits") as model:
            ra, dec = model.meta.wcs(128.0, 128.0)
        ra0, dec0 = wcs.build(pointing, "F770W", "SUB256")(128.0, 128.0)
        found = (ra - ra0) * np.cos(np.radians(dec0)) * 3600, (dec - dec0) * 3600
        assert found == pytest.approx(tuple(error), abs=0.01)
