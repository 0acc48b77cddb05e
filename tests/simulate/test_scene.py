"""The sky: immutable, normalised, the same from everywhere."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import distance_transform_edt

from miri_steps.simulate import Scene, sphere
from miri_steps.simulate import scene as emission_module

RA, DEC = 83.6, -69.1


def test_methods_return_new_scenes():
    empty = Scene(RA, DEC)
    full = empty.with_stars(5).with_emission(1.0, radius=20).with_stars(3, seed=1)
    assert len(empty.stars) == 0
    assert len(full.stars) == 8
    assert empty.brightness(np.zeros(1), np.zeros(1), 0.3) == 0
    stars = full.stars
    stars["flux"][:] = -1
    assert (full.stars["flux"] > 0).all()


def test_stars_fill_the_disc_and_the_flux_range():
    stars = Scene(RA, DEC).with_stars(2000, radius=60, flux=(0.1, 10), slope=-1, seed=3).stars
    east = (stars["ra"] - RA) * np.cos(np.radians(stars["dec"])) * 3600
    distance = np.hypot(east, (stars["dec"] - DEC) * 3600)
    assert distance.max() <= 60.1
    # An even disc has half its stars within 1/sqrt(2) of the radius.
    assert np.mean(distance < 60 / np.sqrt(2)) == pytest.approx(0.5, abs=0.04)
    assert stars["flux"].min() >= 0.1
    assert stars["flux"].max() <= 10
    # Slope -1: as many stars in every decade.
    assert np.mean(stars["flux"] < 1) == pytest.approx(0.5, abs=0.04)


def test_catalog_is_kept():
    table = Table({"ra": [RA, RA + 0.01], "dec": [DEC, DEC], "flux_mjy": [1.0, 2.0]})
    stars = Scene(RA, DEC).with_catalog(table).stars
    np.testing.assert_array_equal(stars["flux"], [1, 2])
    with pytest.raises(ValueError, match="flux_mjy"):
        Scene(RA, DEC).with_catalog(table["ra", "dec"])


@pytest.mark.parametrize("style", ["cloud", "filaments"])
def test_emission_has_the_amplitude_asked(style):
    scene = Scene(RA, DEC).with_emission(5.0, radius=30, style=style, seed=2)
    y, x = np.mgrid[-30:30:0.11, -30:30:0.11]
    image = scene.brightness(x, y, 0.2)
    low, high = np.percentile(image, [0.5, 99.5])
    assert high - low == pytest.approx(5.0, rel=0.15)
    assert -0.05 < image.min() < low + 1.0


@pytest.mark.parametrize("style", ["cloud", "filaments"])
@pytest.mark.parametrize("cover", [0.1, 0.3, 0.7])
def test_emission_covers_the_fraction_asked(cover, style):
    # At smooth shores the blur adds little to what is covered, and there are few islets.
    amplitude, settings = 5.0, {"radius": 60, "slope": -6.0, "style": style, "seed": 1}
    y, x = np.mgrid[-60:60:0.17, -60:60:0.17]
    whole, part = (
        Scene(RA, DEC).with_emission(amplitude, cover=c, **settings).brightness(x, y, 0.27)
        for c in (1.0, cover)
    )
    assert np.mean(part > 1e-4 * amplitude) == pytest.approx(cover, abs=0.01)
    assert part.min() > -1e-5 * amplitude
    floor = np.quantile(whole, 1 - cover)
    land, sea = (distance_transform_edt(side) * 0.17 > 1.0 for side in (whole > floor, whole < floor))
    assert min(land.mean() / cover, sea.mean() / (1 - cover)) > 0.5
    assert np.abs(part[sea]).max() < 1e-4 * amplitude
    # What stands out is the whole nebula above the floor, at a scale that gives the amplitude asked.
    slope, zero = np.polyfit(whole[land], part[land], 1)
    assert_allclose(part[land], slope * whole[land] + zero, rtol=0, atol=1e-4 * amplitude)
    assert -zero / slope == pytest.approx(floor, abs=0.01 * amplitude)
    assert np.percentile(part[part > 1e-4 * amplitude], 99.5) == pytest.approx(amplitude, rel=0.1)


@pytest.mark.parametrize("style", ["cloud", "filaments"])
def test_rough_emission_leaves_the_rest_empty_too(style):
    scene = Scene(RA, DEC).with_emission(5.0, radius=60, style=style, seed=2, cover=0.3)
    y, x = np.mgrid[-60:60:0.17, -60:60:0.17]
    image = scene.brightness(x, y, 0.27)
    assert image.min() > -5e-5
    assert np.mean(image < 5e-3) > 0.55


@pytest.mark.parametrize("style", ["cloud", "filaments"])
def test_full_cover_is_the_whole_nebula(style):
    made = emission_module.Emission(5.0, 30.0, -2.8, 2, style)
    assert made == emission_module.Emission(5.0, 30.0, -2.8, 2, style, cover=1.0)
    rng = np.random.default_rng(2)
    field = emission_module._random_field(made.samples, -2.8, rng)
    if style == "filaments":
        ridge = np.exp(-np.abs(field) / 0.35)
        field = ridge * np.exp(0.7 * emission_module._random_field(made.samples, -2.8, rng))
    low, high = np.percentile(field, [0.5, 99.5])
    assert_array_equal(emission_module._raw_emission(made), (field - field.min()) * (5.0 / (high - low)))


def test_emission_has_no_seam():
    scene = Scene(RA, DEC).with_emission(5.0, radius=30, seed=2)
    here = np.linspace(29.9, 30.1, 41)
    image = scene.brightness(here, np.zeros_like(here), 0.3)
    assert np.abs(np.diff(image, 2)).max() < 1e-3
    np.testing.assert_allclose(scene.brightness(here - 60, np.zeros_like(here), 0.3), image, atol=1e-5)


def test_image_lies_where_its_wcs_says(tmp_path):
    y, x = np.indices((60, 50))
    image = np.exp(-((x - 20.0) ** 2 + (y - 40.0) ** 2) / 18)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [RA + 0.02, DEC + 0.01]
    wcs.wcs.crpix, wcs.wcs.cdelt = [25, 30], [-1 / 3600, 1 / 3600]
    path = tmp_path / "x_i2d.fits"
    image[0, 0] = np.nan
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image, wcs.to_header(), name="SCI")]).writeto(path)
    scene = Scene(RA, DEC).with_image(path, scale=2.0)
    ra, dec = wcs.pixel_to_world_values(20.0, 40.0)
    east, north = sphere.to_tangent(sphere.unit_vectors(ra, dec), RA, DEC)
    grid = np.linspace(-1, 1, 41)
    cut = scene.brightness(east + grid, np.full(41, north), 0.3)
    assert grid[cut.argmax()] == pytest.approx(0, abs=0.06)
    assert cut.max() == pytest.approx(2.0, rel=1e-3)
    centred = Scene(RA, DEC).with_image(np.pad(np.ones((1, 1)), 10), pixel_scale=0.5)
    assert centred.brightness(np.zeros(1), np.zeros(1), 0.3)[0] == pytest.approx(1.0)


def test_real_mosaics_can_be_a_scene(shared_data):
    path = sorted((shared_data / "orion_bar_i2d").glob("*_i2d.fits"))[0]
    with fits.open(path) as hdus:
        data, wcs = hdus["SCI"].data, WCS(hdus["SCI"].header, fix=False)
    scene = Scene(*wcs.wcs.crval).with_image(path)
    sky = sphere.unit_vectors(*wcs.pixel_to_world_values([60.0, 80.0], [50.0, 70.0]))
    seen = scene.brightness(*sphere.to_tangent(sky, scene.ra, scene.dec), 0.3)
    np.testing.assert_allclose(seen, [data[50, 60], data[70, 80]], rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda s: s.with_emission(style="soup"), "style must be 'cloud' or 'filaments', got 'soup'"),
        (lambda s: s.with_emission(radius=0), "radius must be above 0 arcsec, got 0"),
        (lambda s: s.with_emission(cover=0), "cover must be a fraction above 0 and at most 1, got 0"),
        (lambda s: s.with_emission(cover=1.2), "cover must be a fraction above 0 and at most 1, got 1.2"),
        (lambda s: s.with_emission(cover=np.nan), "cover must be a fraction above 0 .* got nan"),
        (lambda s: s.with_stars(flux=(2, 1)), "flux must be 0 < min <= max"),
        (lambda s: s.with_image(np.ones((5, 5))), "needs a wcs or a pixel_scale"),
    ],
)
def test_wrong_parameters_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make(Scene(RA, DEC))
