"""Corrections inside a gWCS: what tweakreg's own machinery puts in, and where pixels then look."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from jwst import datamodels
from tweakwcs.correctors import JWSTWCSCorrector

from miri_steps.exposures import parse_s_region
from miri_steps.simulate import Pointing, sphere, wcs
from miri_steps.steps import tile_wcs
from miri_steps.steps.tile_wcs import Correction

CORNERS = np.array([[10.0, 1000.0, 10.0, 1000.0, 500.0], [10.0, 10.0, 1000.0, 1000.0, 500.0]])


def pointing(pa=0.0, ra=83.6, dec=-69.1):
    return Pointing(ra, dec, pa_v3=pa)


def exposure(pa=0.0, band="F770W", **place):
    """Make an exposure of which only the WCS counts."""
    nominal = pointing(pa, **place)
    model = datamodels.ImageModel((1024, 1032))
    model.meta.wcs = wcs.build(nominal, band)
    v2, v3 = wcs.reference_point("FULL")
    model.meta.wcsinfo.instance.update(
        {"ra_ref": nominal.ra, "dec_ref": nominal.dec, "roll_ref": pa, "v2_ref": v2, "v3_ref": v3}
    )
    model.meta.wcsinfo.s_region = wcs.s_region(model.meta.wcs)
    return model


def apart(first, second, x=CORNERS[0], y=CORNERS[1]):
    """Largest distance between where two WCS look [arcsec]."""
    there = [SkyCoord(*each(x, y), unit="deg") for each in (first, second)]
    return there[0].separation(there[1]).arcsec.max()


def as_seen(pa, band, shift, place):
    """Build the WCS of a telescope that looks that much to the East and North."""
    nominal = pointing(pa, **place)
    ra, dec = sphere.offset(nominal.ra, nominal.dec, *shift)
    return wcs.build(replace(nominal, ra=ra, dec=dec), band, "FULL")


@pytest.mark.parametrize("pa, band", [(0.0, "F560W"), (70.0, "F1800W"), (163.0, "F2550W"), (290.0, "F770W")])
@pytest.mark.parametrize("place", [{}, {"ra": 0.0001, "dec": 34.0}, {"ra": 200.0, "dec": 84.0}], ids=str)
def test_the_translation_is_east_and_north_for_any_roll_and_filter(pa, band, place):
    """The convention itself, with tweakwcs as it is and no code of ours."""
    model, shift = exposure(pa, band, **place), (1.0, -0.6)
    corrector = JWSTWCSCorrector(model.meta.wcs, model.meta.wcsinfo.instance)
    corrector.set_correction(shift=shift)

    # The telescope keeps its roll, while East turns on the way: 6 mas at the corners at 84 degrees.
    assert apart(corrector.wcs, as_seen(pa, band, shift, place)) < 8e-3
    x, y = (value for value in corrector.wcs.invert(*reference(model)))
    assert apart(corrector.wcs, as_seen(pa, band, shift, place), x, y) < 1e-4
    found = tile_wcs.read(corrector.wcs)
    np.testing.assert_allclose(found.shift, shift, atol=1e-9)
    assert found.rotation == pytest.approx(0, abs=1e-12)


def reference(model):
    return model.meta.wcsinfo.ra_ref, model.meta.wcsinfo.dec_ref


@pytest.mark.parametrize("pa, band", [(0.0, "F560W"), (123.0, "F2550W"), (290.0, "F1140C")])
def test_a_corrected_exposure_looks_where_the_telescope_did(pa, band):
    model, shift = exposure(pa, band), (1.3, -0.9)

    tile_wcs.correct(model, Correction(*reference(model), *shift))

    # 1.6 arcsec turn East by 2e-5 at this declination: 1 mas at the corners.
    assert apart(model.meta.wcs, as_seen(pa, band, shift, {})) < 2e-3
    found = tile_wcs.read(model.meta.wcs)
    np.testing.assert_allclose(found.shift, shift, atol=1e-6)


def test_a_correction_takes_the_place_of_the_old_one_and_goes_without_a_trace():
    model = exposure(40.0)
    before, region = model.meta.wcs, model.meta.wcsinfo.s_region
    corrector = JWSTWCSCorrector(before, model.meta.wcsinfo.instance)
    corrector.set_correction(shift=(2.0, 2.0), matrix=[[1, -1e-4], [1e-4, 1]])
    model.meta.wcs = corrector.wcs

    tile_wcs.correct(model, Correction(*reference(model), 0.5, -0.4))
    once = model.meta.wcs
    tile_wcs.correct(model, Correction(*reference(model), 0.5, -0.4))

    assert apart(once, model.meta.wcs) == 0
    fresh = exposure(40.0)
    tile_wcs.correct(fresh, Correction(*reference(fresh), 0.5, -0.4))
    assert apart(once, fresh.meta.wcs) == 0
    assert once.available_frames == ["detector", "v2v3", "v2v3vacorr", "v2v3corr", "world"]

    tile_wcs.correct(model, None)
    assert apart(before, model.meta.wcs) == 0
    assert model.meta.wcs.available_frames == before.available_frames
    assert model.meta.wcsinfo.s_region == region


def test_the_bounding_box_the_name_and_the_shape_of_a_wcs_stay():
    model = exposure()
    model.meta.wcs.name, model.meta.wcs.array_shape = "FIT-LVL3-gaia.ecsv", (1024, 1032)

    tile_wcs.correct(model, Correction(*reference(model), 0.5, -0.4))

    assert model.meta.wcs.bounding_box.bounding_box(order="F") == ((-0.5, 1031.5), (-0.5, 1023.5))
    assert model.meta.wcs.name == "FIT-LVL3-gaia.ecsv"
    assert model.meta.wcs.array_shape == (1024, 1032)
    assert np.isnan(model.meta.wcs(-5, 10)).all()


def test_a_rotation_turns_the_frame_from_east_to_north():
    model, turn = exposure(75.0), 1e-3
    before = model.meta.wcs
    middle = SkyCoord(*reference(model), unit="deg").skyoffset_frame()

    tile_wcs.correct(model, Correction(*reference(model), 0.0, 0.0, turn))

    east, north = (
        (frame.lon.wrap_at("180d").arcsec, frame.lat.arcsec)
        for frame in (
            SkyCoord(*each(*CORNERS), unit="deg").transform_to(middle) for each in (before, model.meta.wcs)
        )
    )
    (x0, y0), (x1, y1) = east, north
    np.testing.assert_allclose(x1 - x0, -turn * y0, atol=1e-4)
    np.testing.assert_allclose(y1 - y0, turn * x0, atol=1e-4)
    assert tile_wcs.read(model.meta.wcs).rotation == pytest.approx(turn)


def test_header_and_footprint_say_the_same_as_the_gwcs():
    model = exposure(30.0)
    before = parse_s_region(model.meta.wcsinfo.s_region)

    tile_wcs.correct(model, Correction(*reference(model), 1.5, -0.7))

    corners = model.meta.wcs.footprint(center=False)
    np.testing.assert_allclose(parse_s_region(model.meta.wcsinfo.s_region), corners, atol=2e-9)
    assert np.abs(corners - before).max() * 3600 > 0.5
    header = {key: value for key, value in model.meta.wcsinfo.instance.items() if not isinstance(value, dict)}
    fits = WCS({**header, "NAXIS": 2, "WCSAXES": 2}, relax=True)
    from_header = fits.all_pix2world(*CORNERS, 0)
    there = [SkyCoord(*each, unit="deg") for each in (from_header, model.meta.wcs(*CORNERS))]
    # The polynomials are good to 0.01 pixel.
    assert there[0].separation(there[1]).arcsec.max() < 2e-3


def test_a_record_is_read_from_the_file_and_knows_when_the_wcs_was_changed_since(tmp_path):
    model = exposure()
    given = Correction(*reference(model), 0.5, -0.4, 1e-5)
    assert tile_wcs.read_record(model) is None
    tile_wcs.correct(model, given)
    tile_wcs.write_record(model, given)
    model.save(str(tmp_path / "x_cal.fits"))

    with datamodels.open(tmp_path / "x_cal.fits") as again:
        assert tile_wcs.read_record(again) == given
        corrector = JWSTWCSCorrector(again.meta.wcs, again.meta.wcsinfo.instance)
        corrector.set_correction(shift=(0.001, 0.0))
        again.meta.wcs = corrector.wcs
        assert tile_wcs.read_record(again) is None


def test_what_has_no_telescope_frame_is_told():
    model = exposure()

    assert tile_wcs.has_telescope_frame(model.meta.wcs)
    assert not tile_wcs.has_telescope_frame(None)
    assert not tile_wcs.has_telescope_frame(WCS(naxis=2))
