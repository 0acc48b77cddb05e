"""Photometry of simulated stars of known light and place."""

from functools import cache

import numpy as np
import pytest

from miri_steps import simulate
from miri_steps.fluxcal import config, encircled, photometry
from miri_steps.fluxcal.photometry import Aperture

LIGHT, SKY = 1e5, 7.0
HALF = 60


@cache
def make(band):
    """Make the PSF of a filter, the aperture of 70 % of its light, and its correction."""
    psf = simulate.psf(band, half_size=64)
    found = encircled.corrections(encircled.psf_curve(psf.data, 0.11 / psf.oversample))
    aperture = Aperture(float(found.radius[5]), found.sky, config.band(band).fwhm)
    return psf, aperture, float(found.apcorr[5])


@pytest.fixture(scope="module", params=["F560W", "F1000W", "F2550W"])
def optics(request):
    return request.param, *make(request.param)


@pytest.fixture(scope="module")
def tenth():
    return make("F1000W")


def image_of(psf, dx=0.2, dy=-0.3, light=LIGHT):
    return psf.stamp(dx, dy, HALF) * light + SKY


def test_place_and_light_are_right_wherever_the_star_falls_on_a_pixel(optics):
    band, psf, aperture, apcorr = optics
    off, light = [], []
    for dx in np.linspace(-0.5, 0.5, 5):
        for dy in (-0.4, -0.1, 0.3):
            image = image_of(psf, dx, dy)
            start = photometry.find(image, (HALF + 2, HALF - 1), fwhm=aperture.fwhm, within=5)
            found = photometry.measure(image, np.ones(image.shape), start, aperture)
            off.append([found.x - HALF - dx, found.y - HALF - dy])
            light.append(found.light * apcorr / LIGHT)

    assert np.abs(off).max() < 0.02
    # Light of an undersampled star depends on where on a pixel it falls.
    spread = {"F560W": 0.0025, "F1000W": 0.001, "F2550W": 0.0002}[band]
    assert abs(np.mean(light) - 1) < 0.001
    assert np.std(light) < spread


def test_errors_are_those_of_many_draws():
    """At the longest wavelength, where the background counts most."""
    psf, aperture, _ = make("F2550W")
    random, truth = np.random.default_rng(1), image_of(psf, light=3000.0)
    err = np.sqrt(truth / 5)
    found = [
        photometry.measure(truth + random.normal(0, err), err, (HALF, HALF), aperture) for _ in range(150)
    ]

    scatter = np.std([one.light for one in found])
    assert np.mean([one.light_error for one in found]) == pytest.approx(scatter, rel=0.12)
    # The mean of the background has its part, and it is that of its own scatter.
    assert np.std([one.background for one in found]) == pytest.approx(found[0].background_error, rel=0.2)
    expected = np.sqrt(np.pi * aperture.radius**2 * SKY / 5 + 0.7 * 3000 / 5)
    assert found[0].light_error == pytest.approx(
        np.hypot(expected, found[0].area * found[0].background_error), rel=0.1
    )


@pytest.mark.parametrize(("band", "light"), [("F1000W", 1e6), ("F1500W", 3e6), ("F1500W", 3e3)])
def test_structure_of_the_psf_is_not_taken_for_noise(band, light):
    """The scatter of the ring of a bright star is a hundred times its noise."""
    psf, aperture, _ = make(band)
    random, truth = np.random.default_rng(5), image_of(psf, light=light)
    err = np.sqrt(truth / 5)
    found = [
        photometry.measure(truth + random.normal(0, err), err, (HALF, HALF), aperture) for _ in range(60)
    ]
    lights, errors = (np.array([getattr(one, name) for one in found]) for name in ("light", "light_error"))

    assert 0.8 < np.std((lights - lights.mean()) / errors) < 1.2
    noise = np.sqrt((0.7 * light + found[0].area * SKY) / 5)
    assert errors == pytest.approx(noise, rel=0.3 if light > 1e4 else 0.5)
    assert errors.mean() == pytest.approx(noise, rel=0.15)


def ring_of(image, aperture):
    y, x = np.indices(image.shape)
    distance = np.hypot(x - HALF, y - HALF)
    # Also pixels of which only a part is in the ring.
    return x, (distance > aperture.sky[0] - 1) & (distance < aperture.sky[1] + 1)


def test_noise_of_the_background_where_its_ring_is_not_like_a_star(tenth):
    """Noise that ERR does not know counts, a gradient does not count twice, and ERR is the least."""
    _, aperture, _ = tenth
    random, err = np.random.default_rng(7), np.full((2 * HALF + 1,) * 2, 0.5)

    def scatter(image, mask=None):
        found = photometry.measure(image, err, (HALF, HALF), aperture, mask=mask, forced=True)
        return found.background_scatter

    noisy = SKY + random.normal(0, 2.0, err.shape)
    x, ring = ring_of(noisy, aperture)
    assert scatter(noisy) == pytest.approx(2.0, rel=0.2)
    assert scatter(np.full(err.shape, SKY)) == pytest.approx(0.5)
    slope = SKY + 0.5 * (x - HALF)
    assert scatter(slope) == pytest.approx(np.std(slope[ring]), rel=0.1)
    # Where one side is masked there is nothing across.
    assert scatter(noisy, mask=ring & (x < HALF)) == pytest.approx(0.5)


def test_masked_pixels_do_not_spoil_the_noise(tenth):
    psf, aperture, _ = tenth
    truth = image_of(psf, 0, 0, light=1e6)
    err = np.sqrt(truth / 5)
    image = truth + np.random.default_rng(8).normal(0, err)
    _, ring = ring_of(image, aperture)
    holed = image.copy()
    holed[np.where(ring, np.random.default_rng(9).random(ring.shape) < 0.1, False)] = 1e7
    found, expected = (
        photometry.measure(one, err, (HALF, HALF), aperture, mask=one == 1e7) for one in (holed, image)
    )
    assert found.background_scatter == pytest.approx(expected.background_scatter, rel=0.25)


def test_the_brightest_star_near_the_place_is_taken_and_no_hot_pixel(tenth):
    psf, aperture, _ = tenth
    random = np.random.default_rng(3)
    image = SKY + random.normal(0, 0.5, (200, 200))
    for x, y, light in ((100, 90, 3000), (105, 96, 300), (40, 40, 30000)):
        image[y - 30 : y + 31, x - 30 : x + 31] += psf.stamp(0, 0, 30) * light
    image[95, 97] = 150.0

    found = photometry.find(image, (102, 93), fwhm=aperture.fwhm, within=10)
    assert found == (100, 90)


def test_where_there_is_no_star_that_is_said(tenth):
    _, aperture, _ = tenth
    image = SKY + np.random.default_rng(3).normal(0, 0.5, (100, 100))
    with pytest.raises(ValueError, match=r"there is no star within 10.0 pixels of \(50.0, 50.0\): .* sigma"):
        photometry.find(image, (50, 50), fwhm=aperture.fwhm, within=10)
    with pytest.raises(
        ValueError, match=r"no usable pixel within 5.0 pixels of \(150.0, 50.0\); .* 100 x 100"
    ):
        photometry.find(image, (150, 50), fwhm=aperture.fwhm, within=5)


def test_a_few_masked_pixels_are_interpolated(tenth):
    psf, aperture, _ = tenth
    image = image_of(psf)
    err = np.ones(image.shape)
    whole = photometry.measure(image, err, (HALF, HALF), aperture)
    holed = image.copy()
    holed[HALF + 3, HALF] = np.nan
    found = photometry.measure(holed, err, (HALF, HALF), aperture)

    assert (whole.interpolated, found.interpolated) == (0, 1)
    assert found.light == pytest.approx(whole.light, rel=0.002)
    assert np.isnan(holed[HALF + 3, HALF])


def test_too_many_are_not(tenth):
    psf, aperture, _ = tenth
    image, err = image_of(psf), np.ones((2 * HALF + 1,) * 2)
    many = image.copy()
    many[HALF + 3, HALF - 2 : HALF + 3] = np.nan
    with pytest.raises(
        ValueError, match=r"at most 5 % of its aperture may be masked, .* but \d of its pixels are"
    ):
        photometry.measure(many, err, (HALF, HALF), aperture)
    saturated = image.copy()
    saturated[HALF, HALF] = np.nan
    with pytest.raises(
        ValueError, match=r"star at \(60.0, 60.0\) .*: 1 pixels in its core are masked: is it saturated\?"
    ):
        photometry.measure(saturated, err, (HALF, HALF), aperture)
    blind = image.copy()
    y, x = np.indices(image.shape)
    blind[np.hypot(x - HALF, y - HALF) > aperture.radius + 2] = np.nan
    with pytest.raises(ValueError, match=r"at least 50 % of the ring of .* must be seen, but \d+ % is"):
        photometry.measure(blind, err, (HALF, HALF), aperture)


def test_a_star_at_the_edge_is_refused(tenth):
    psf, aperture, _ = tenth
    image = image_of(psf)[HALF - 2 :]
    with pytest.raises(ValueError, match="at the edge of the image"):
        photometry.measure(image, np.ones(image.shape), (HALF, 2), aperture)
    image = image_of(psf)[HALF - 4 :]
    wide = Aperture(8.0, (9.0, 12.0), aperture.fwhm)
    with pytest.raises(
        ValueError,
        match=r"star at \(60.0, 4.0\) cannot be measured: its aperture of 8.0 pixels leaves the image",
    ):
        photometry.measure(image, np.ones(image.shape), (HALF, 4), wide)
    with pytest.raises(ValueError, match=r"star at \(-40.0, 4.0\) cannot be measured: no pixel about it"):
        photometry.measure(image, np.ones(image.shape), (-40, 4), wide)


@pytest.mark.parametrize("level", [0.0, 7.3, 1e6])
def test_where_all_is_equal_there_is_no_star(level):
    with pytest.raises(ValueError, match=r"there is no star within 3.0 pixels .*: the brightest spot must"):
        photometry.find(np.full((50, 60), level, np.float32), (30, 20), fwhm=2.9, within=3)
    with pytest.raises(ValueError, match=r"cannot be measured: "):
        photometry.measure(np.full((50, 60), level), np.ones((50, 60)), (30, 20), Aperture(3, (4, 6), 2.9))


def test_what_is_nowhere_is_named():
    blind = np.full((50, 60), np.nan)
    with pytest.raises(ValueError, match=r"no usable pixel within 3.0 pixels of \(30.0, 20.0\)"):
        photometry.find(blind, (30, 20), fwhm=2.9, within=3)
    with pytest.raises(ValueError, match="no pixel about it can be used"):
        photometry.measure(blind, blind, (30, 20), Aperture(3, (4, 6), 2.9))
    with pytest.raises(ValueError, match="position of a star must be finite, got nan, 20"):
        photometry.find(blind, (np.nan, 20), fwhm=2.9, within=3)


def test_the_rest_of_a_mosaic_changes_nothing(tenth):
    """Position and light are those of a small image, and what is far away is not looked at."""
    psf, aperture, _ = tenth
    small = image_of(psf).astype(np.float32)
    large = np.full((700, 900), np.nan, np.float32)
    x, y = 500, 300
    large[y : y + 2 * HALF + 1, x : x + 2 * HALF + 1] = small
    large[0, 0] = 1e9
    results = []
    for image, left, low in ((small, 0, 0), (large, x, y)):
        near = left + HALF + 2, low + HALF - 1
        found = photometry.find(image, near, fwhm=aperture.fwhm, within=5)
        star = photometry.measure(image, np.ones_like(image), found, aperture)
        forced = photometry.measure(image, np.ones_like(image), near, aperture, forced=True)
        assert (forced.x, forced.y) == near
        results.append(
            (found[0] - left, found[1] - low, star.x - left, star.y - low, star.light, forced.light)
        )
    assert results[0][:2] == (HALF, HALF)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-9)


def test_the_pixel_of_the_place_is_looked_at_however_small_the_circle(tenth):
    psf, aperture, _ = tenth
    image = image_of(psf)
    assert photometry.find(image, (HALF + 0.4, HALF - 0.4), fwhm=aperture.fwhm, within=0) == (HALF, HALF)


def test_apertures_make_sense():
    with pytest.raises(ValueError, match="must be above 0 and in this order, got 5, 4, 6"):
        Aperture(5, (4, 6), 2.0)
