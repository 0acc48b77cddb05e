"""A small reduction as calwebb_image3 leaves it, made once, and its report."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from tweakwcs.correctors import JWSTWCSCorrector

#: Sky of the two tiles [MJy/sr], and the shifts that tweakreg found for them [arcsec].
SKY = (3.0, 3.5)
SHIFTS = ((0.2, -0.1), (-0.9, 0.8))


@dataclass(frozen=True)
class Reduction:
    """Folders of a reduction: ``cal`` with the association, ``stage3`` with the mosaic."""

    folder: Path
    hot: int

    @property
    def mosaic(self):
        return self.folder / "stage3" / "field_i2d.fits"


def tweak(model, shift):
    """Leave in an exposure what tweakreg does: a correction [arcsec] and its status."""
    corrector = JWSTWCSCorrector(model.meta.wcs, model.meta.wcsinfo.instance)
    corrector.set_correction(shift=shift)
    model.meta.wcs = corrector.wcs
    model.meta.cal_step.tweakreg = "COMPLETE"
    return model


def simulate_exposures(folder):
    """Write two tiles of two dithers each, off by `SHIFTS`, that tweakreg put right to 5 mas."""
    from miri_steps import simulate

    plan = simulate.mosaic(
        83.6, -69.1, tiles=(2, 1), dithers=2, tile_step=(18.0, 0.0), dither_step=4.0, pa=20
    )
    tile = np.array([pointing.tile for pointing in plan]) - 1
    shifts = np.array(SHIFTS)[tile]
    observation = simulate.observe(
        simulate.Scene(83.6, -69.1).with_stars(30, radius=40, flux=(0.002, 0.1), seed=2),
        plan,
        "F770W",
        **{"sky": np.array(SKY)[tile], "pointing_error": shifts, "subarray": "SUB256"},
        **{"hot_pixels": 0.002, "noise": 0.03},
    )
    folder.mkdir()
    scatter = np.random.default_rng(3).normal(0, 0.005, shifts.shape)
    members = []
    for model, shift in zip(observation, shifts + scatter, strict=True):
        tweak(model, shift).save(str(folder / model.meta.filename))
        members.append({"expname": model.meta.filename, "exptype": "science"})
    association = folder / "field_asn.json"
    association.write_text(
        json.dumps({"asn_id": "a3001", "products": [{"name": "field", "members": members}]})
    )
    return association


@pytest.fixture(scope="session")
def reduction(tmp_path_factory):
    """Run calwebb_image3 with all our steps, all of which save what they can."""
    from jwst.pipeline import Image3Pipeline

    from miri_steps import MedianHotPixelStep, PixelSkyMatchStep, SuperBackgroundStep, TileAstrometryStep

    folder = tmp_path_factory.mktemp("reduction")
    association = simulate_exposures(folder / "cal")
    stage3 = folder / "stage3"
    stage3.mkdir()
    place = {"output_dir": str(stage3)}
    Image3Pipeline.call(
        str(association),
        steps={
            "tweakreg": {"skip": True, "pre_hooks": [TileAstrometryStep(save_corrections=True, **place)]},
            "skymatch": {
                "skip": True,
                "pre_hooks": [
                    MedianHotPixelStep(save_mask=True, **place),
                    SuperBackgroundStep(save_background=True, min_exposures=4, **place),
                ],
                "post_hooks": [PixelSkyMatchStep(save_levels=True, save_detector_background=True, **place)],
            },
            "source_catalog": {"skip": True},
        },
        save_results=True,
        **place,
    )
    (found,) = stage3.glob("*_hot_pixels.fits")
    hot = int((fits.getdata(found, "DQ") & 2048 > 0).sum())
    return Reduction(folder, hot)


@dataclass(frozen=True)
class Written:
    """A report: the page, and the numbers of its one mosaic."""

    path: Path
    text: str
    content: dict

    @property
    def mosaic(self):
        return self.content["mosaics"][0]


@pytest.fixture(scope="session")
def written(reduction):
    """Write the report of the whole reduction."""
    from miri_steps import report

    path = report.write(reduction.folder)
    content = json.loads(path.with_suffix(".json").read_text())
    return Written(path, path.read_text(encoding="utf-8"), content)


@pytest.fixture
def fake_mosaic():
    """Write the least that is taken for a mosaic."""

    def write(path, band="F770W", **cards):
        path.parent.mkdir(parents=True, exist_ok=True)
        primary = fits.PrimaryHDU()
        primary.header.update({"DATAMODL": "ImageModel", "INSTRUME": "MIRI"})
        primary.header.update({"FILTER": band, "S_RESAMP": "COMPLETE"} | cards)
        image = fits.ImageHDU(np.ones((20, 30), np.float32), name="SCI")
        image.header.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 83.6, "CRVAL2": -69.1})
        image.header.update({"CDELT1": -0.11 / 3600, "CDELT2": 0.11 / 3600, "CRPIX1": 15.0, "CRPIX2": 10.0})
        image.header.update({"CUNIT1": "deg", "CUNIT2": "deg", "BUNIT": "MJy/sr"})
        fits.HDUList([primary, image]).writeto(path)
        return path

    return write
