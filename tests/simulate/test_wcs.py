"""The gWCS is the pipeline's own."""

from importlib.resources import files

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from miri_steps import detector
from miri_steps.simulate import Pointing, Scene, observe, sphere, wcs

POINTING = Pointing(83.6, -69.1, 123.0)


def positions(subarray: str) -> tuple[np.ndarray, np.ndarray]:
    ny, nx = detector.SUBARRAYS[subarray].shape
    return tuple(v.ravel() for v in np.meshgrid(np.linspace(0, nx - 1, 9), np.linspace(0, ny - 1, 9)))


@pytest.mark.parametrize(("filter_name", "subarray"), [("F770W", "FULL"), ("F1500W", "SUB256")])
def test_agrees_with_assign_wcs(filter_name, subarray):
    from jwst.assign_wcs.assign_wcs import load_wcs

    model = observe(Scene(83.6, -69.1), [POINTING], filter_name, subarray=subarray)[0]
    ours, s_region = model.meta.wcs, model.meta.wcsinfo.s_region
    data = files("miri_steps.simulate") / "data"
    references = {
        "distortion": str(data / "jwst_miri_imager_distortion_flt9.asdf"),
        "filteroffset": str(data / "jwst_miri_filteroffset_full_flt9.asdf"),
    }
    result = load_wcs(model, references)
    theirs = result.meta.wcs
    x, y = positions(subarray)
    # 1e-3 pixel is 3e-8 deg.
    np.testing.assert_allclose(ours(x, y), theirs(x, y), rtol=0, atol=1e-9)
    assert theirs.available_frames == ours.available_frames
    assert theirs.bounding_box.bounding_box() == ours.bounding_box.bounding_box()
    assert result.meta.wcsinfo.s_region == s_region


@pytest.mark.parametrize("subarray", ["FULL", "SUB256", "MASK1140"])
def test_arrays_agree_with_the_gwcs(subarray):
    x, y = (np.round(v) for v in positions(subarray))
    sky = np.stack(wcs.build(POINTING, "F1000W", subarray)(x, y))
    vectors = wcs.pixel_vectors("F1000W", subarray, POINTING.va_scale)
    ours = vectors[y.astype(int), x.astype(int)] @ wcs.attitude(POINTING, subarray).T
    np.testing.assert_allclose(np.stack(sphere.lon_lat(ours)), sky, atol=1e-10)
    back = wcs.sky_to_pixels(sphere.unit_vectors(*sky), POINTING, "F1000W", subarray)
    np.testing.assert_allclose(back, [x, y], atol=1e-5)


@pytest.mark.parametrize("subarray", ["FULL", "SUB128"])
def test_fits_keywords_approximate_the_gwcs(subarray):
    exact = wcs.build(POINTING, "F770W", subarray)
    header = fits.Header({key.upper(): value for key, value in wcs.fits_wcs(exact).items()})
    x, y = positions(subarray)
    back = WCS(header).all_world2pix(*exact(x, y), 0)
    np.testing.assert_allclose(back, [x, y], atol=0.02)


def test_aperture_looks_where_the_pointing_says():
    # The middle of the full-frame aperture of MIRI, as the observatory's aperture file has it.
    assert wcs.reference_point("FULL") == pytest.approx((-453.5, -373.8), abs=0.3)
    ra, dec = wcs.build(POINTING, "F770W")(692.5, 511.5)
    assert (ra, dec) == pytest.approx((POINTING.ra, POINTING.dec), abs=1e-9)


def test_pixel_areas_are_those_of_the_sky():
    build = wcs.build(Pointing(10.0, 0.0, 20.0, va_scale=1.0), "F770W")
    ra, dec = build(np.array([499.5, 500.5, 499.5]), np.array([499.5, 499.5, 500.5]))
    (ax, ay), (bx, by) = ((np.array([ra, dec]) - [[ra[0]], [dec[0]]])[:, 1:] * 3600).T
    assert wcs.pixel_areas("F770W")[500, 500] == pytest.approx(abs(ax * by - ay * bx), rel=1e-3)
    assert wcs.nominal_pixel_area("F770W") == pytest.approx(0.012172, rel=1e-3)
