"""Encircled energy and aperture corrections, from models and from stars joined to them."""

from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from miri_steps import simulate
from miri_steps.fluxcal import config, encircled
from miri_steps.fluxcal.encircled import LEVELS, EncircledEnergy

SHARED = Path(__file__).parents[3] / "shared" / "data"
REFERENCE = SHARED / "reference" / "jwst_miri_apcorr_0014.fits"
needs_shared = pytest.mark.skipif(not REFERENCE.exists(), reason="needs ../shared/data")


@pytest.fixture
def gaussian():
    """Growth curve of a Gaussian of 2 pixels: 1 - exp(-r^2 / 8)."""
    radius = np.geomspace(0.2, 20, 200)
    return EncircledEnergy(radius, 1 - np.exp(-(radius**2) / 8))


def test_radii_and_parts_of_light_are_inverse(gaussian):
    level = np.array(LEVELS)
    np.testing.assert_allclose(gaussian.radius_of(level), np.sqrt(-8 * np.log(1 - level)), rtol=1e-4)
    np.testing.assert_allclose(gaussian.within(gaussian.radius_of(level)), level, atol=1e-5)
    with pytest.raises(ValueError, match=r"level must be between 0 and 1.0000, the end .*, got 1.1"):
        gaussian.radius_of(1.1)


def test_noise_does_not_break_the_curve(gaussian):
    noisy = EncircledEnergy(
        gaussian.radius,
        gaussian.energy + np.random.default_rng(1).normal(0, 1e-3, 200) * (gaussian.energy > 0.1),
    )
    np.testing.assert_allclose(noisy.radius_of(0.7), gaussian.radius_of(0.7), rtol=5e-3)


def test_corrections_count_the_light_in_the_ring(gaussian):
    found = encircled.corrections(gaussian)

    r80, r85 = gaussian.radius_of([0.8, 0.85])
    for level, radius, apcorr in zip(found.level, found.radius, found.apcorr, strict=True):
        in_ring = 0.05 / (np.pi * (r85**2 - r80**2))
        assert apcorr == pytest.approx(1 / (level - in_ring * np.pi * radius**2))
    assert found.sky == pytest.approx((r80, r85))
    # As a user of the table works: the background of the ring is subtracted, the rest corrected.
    inside, ring = 0.7, 0.05 / (r85**2 - r80**2)
    assert (inside - ring * found.radius[5] ** 2) * found.apcorr[5] == pytest.approx(1)


@pytest.mark.parametrize("band", ["F770W", "F1500W", "F2550W"])
def test_a_star_joined_to_the_model_gives_the_corrections_of_truth(band):
    """The centroid is not the middle of a pixel, and the background is not zero."""
    psf = simulate.psf(band)
    truth = encircled.psf_curve(psf.data, 0.11 / psf.oversample)
    half = psf.half_size
    random = np.random.default_rng(5)
    image = psf.stamp(0.2, -0.3, half) * 1e7 + 50 + random.normal(0, 1, (2 * half + 1,) * 2)
    radius = min(config.band(band).join, (half - 2) / 1.4)

    joined = encircled.join(image, (half + 0.2, half - 0.3), truth, radius)

    found, expected = encircled.corrections(joined), encircled.corrections(truth)
    np.testing.assert_allclose(found.apcorr, expected.apcorr, rtol=2e-3)
    np.testing.assert_allclose(found.radius[3:], expected.radius[3:], rtol=1e-2)
    # Beyond the join it is the model.
    assert joined.energy[-1] == truth.energy[-1]


def test_the_background_is_told_from_the_wings():
    psf = simulate.psf("F2550W")
    truth = encircled.psf_curve(psf.data, 0.11 / psf.oversample)
    half = psf.half_size
    image = psf.stamp(0, 0, half) * 1e6
    curves = [encircled.join(image + sky, (half, half), truth, 30.0).energy for sky in (0.0, 1e4)]
    np.testing.assert_allclose(*curves, atol=1e-6)


def test_masked_pixels_are_taken_from_across_the_centre():
    psf = simulate.psf("F1500W")
    truth = encircled.psf_curve(psf.data, 0.11 / psf.oversample)
    half = psf.half_size
    image = psf.stamp(0, 0, half) * 1e6 + 50
    mask = np.random.default_rng(2).random(image.shape) < 0.005
    mask &= ~mask[::-1, ::-1]
    holed = np.where(mask, np.nan, image)
    whole, filled = (encircled.join(one, (half, half), truth, 30.0) for one in (image, holed))
    np.testing.assert_allclose(filled.energy, whole.energy, atol=1e-6)
    with pytest.raises(ValueError, match="at most 5 % of the pixels may be masked"):
        encircled.join(image, (half, half), truth, 30.0, mask=np.ones(image.shape, bool))


def test_what_is_too_small_is_refused(gaussian):
    with pytest.raises(
        ValueError, match=r"must be 14.0 pixels from the edges of the image, but 10.0 are left"
    ):
        encircled.join(np.zeros((41, 41)), (10, 20), gaussian, 10.0)
    with pytest.raises(ValueError, match=r"the model PSF must reach 1.0 native pixels farther"):
        encircled.join(np.zeros((81, 81)), (40, 40), gaussian, 15.0)
    with pytest.raises(ValueError, match="light of a model PSF must be 1 out to infinity, but 100"):
        encircled.psf_curve(np.ones((10, 10)), 0.11)


def test_data_sets_are_averaged(gaussian):
    wider = EncircledEnergy(gaussian.radius * 1.02, gaussian.energy)
    single = [encircled.corrections(curve) for curve in (gaussian, wider)]
    found = encircled.average(single)

    np.testing.assert_allclose(found.radius, single[0].radius * 1.01)
    np.testing.assert_allclose(found.radius_scatter, single[0].radius * 0.02 / np.sqrt(2), rtol=1e-6)
    assert found.number == 2
    assert encircled.average(single[:1]).apcorr_scatter.tolist() == [0.0] * 7
    with pytest.raises(ValueError, match="at least one data set"):
        encircled.average([])


@needs_shared
@pytest.mark.parametrize("band", ["F560W", "F1000W", "F1500W", "F2100W", "F2550W"])
def test_models_without_wavefront_errors_are_a_little_sharper_than_flight(band):
    curve = encircled.read_psf(SHARED / "psf" / f"miri_{band.lower()}_os4.fits")
    found = encircled.corrections(curve)
    table = Table.read(REFERENCE)
    flight = table[(table["filter"] == band) & (table["subarray"] == "FULL")]

    np.testing.assert_allclose(found.apcorr, flight["apcorr"], rtol=0.012)
    assert (found.radius[1:5] < 1.06 * flight["radius"][1:5]).all()
