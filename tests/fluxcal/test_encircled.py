"""Encircled energy and aperture corrections, from models and from stars joined to them."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from drizzle.resample import Drizzle
from photutils.aperture import CircularAnnulus, CircularAperture

from miri_steps import simulate
from miri_steps.fluxcal import config, encircled
from miri_steps.fluxcal.encircled import LEVELS, EncircledEnergy, Resampling

SHARED = Path(__file__).parents[3] / "shared" / "data"
REFERENCE = SHARED / "reference" / "jwst_miri_apcorr_0014.fits"
needs_shared = pytest.mark.skipif(not REFERENCE.exists(), reason="needs ../shared/data")
# Filters with models there.
MODELS = "F560W", "F770W", "F1000W", "F1130W", "F1280W", "F1500W", "F1800W", "F2100W", "F2550W"
# Of stars [counts], and of their images on each side of the central pixel.
LIGHT, HALF = 1e7, 62


@pytest.fixture
def gaussian():
    """Growth curve of a Gaussian of 2 pixels: 1 - exp(-r^2 / 8)."""
    radius = np.geomspace(0.2, 20, 200)
    return EncircledEnergy(radius, 1 - np.exp(-(radius**2) / 8))


@lru_cache
def model(band, resampling=None):
    """Make the PSF of a filter, and its growth curve."""
    psf = simulate.psf(band, half_size=72)
    return psf, encircled.psf_curve(psf.data, 0.11 / psf.oversample, resampling)


def field(band, center, neighbours=(), noise=0.0):
    """Put a star on a background of 50, neighbours beside it: (x, y from it, part of its light)."""
    psf, _ = model(band)
    image = np.random.default_rng(7).normal(50, noise, (2 * HALF + 1,) * 2)
    for x, y, share in ((0, 0, 1), *neighbours):
        place = np.array([y, x]) + center[::-1]
        whole = np.rint(place).astype(int)
        stamp = psf.stamp(*(place - whole)[::-1], psf.half_size)
        # The middle of the stamp is this far from the first pixel of the image.
        first = HALF + whole - psf.half_size
        low, high = np.maximum(first, 0), np.minimum(first + len(stamp), len(image))
        box, part = (
            tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))
            for origin in ((0, 0), first)
        )
        image[box] += share * LIGHT * stamp[part]
    return image, (HALF + center[0], HALF + center[1])


def radius_of_join(band):
    return min(config.band(band).join, (HALF - 2) / 1.4)


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


@pytest.mark.parametrize("samples", [2.0, 2.7, 4.0, 5.5])
@pytest.mark.parametrize(
    ("resampling", "variance"), [(None, 2), (Resampling(), 4), (Resampling(0.6, 0.5), 1 + 0.36 + 0.5)]
)
def test_pixels_blur_by_their_size_however_a_model_is_sampled(samples, resampling, variance):
    """The variance of a box is a twelfth of its side squared: a Gaussian of 2 pixels stays one, nearly."""
    n = 2 * int(14 * samples) + 1
    axis = np.exp(-0.5 * ((np.arange(n) - n // 2) / (2 * samples)) ** 2)
    curve = encircled.psf_curve(np.outer(axis, axis) / axis.sum() ** 2, 0.11 / samples, resampling)

    radius = np.array([0.5, 1.0, 2.0, 3.0, 5.0])
    np.testing.assert_allclose(
        curve.within(radius), 1 - np.exp(-(radius**2) / (2 * (4 + variance / 12))), rtol=4e-3
    )


def _light(image, center, found, pixel):
    """Measure a star with the last three apertures."""
    ring = CircularAnnulus(center, *np.array(found.sky) / pixel)
    background = ring.do_photometry(image)[0][0] / ring.area
    apertures = [CircularAperture(center, radius / pixel) for radius in found.radius[4:]]
    return found.apcorr[4:] * [one.do_photometry(image - background)[0][0] for one in apertures]


def _mosaic(psf, ratio, random, half=24):
    """Drizzle four dithers of a star; the mosaic, and where the star is."""
    n = int((2 * half + 1) / ratio)
    center = (n - 1) / 2 + random.uniform(-0.5, 0.5, 2)
    mosaic = Drizzle(kernel="square", out_shape=(n, n))
    y, x = np.indices((2 * half + 1,) * 2, float)
    for dx, dy in random.uniform(-0.5, 0.5, (4, 2)):
        to = np.dstack([(x - half - dx) / ratio + center[0], (y - half - dy) / ratio + center[1]])
        mosaic.add_image(psf.stamp(dx, dy, half), 1.0, to)
    # A mosaic has surface brightness: of the light of a pixel, its pixels have what their area gives them.
    return mosaic.out_img * ratio**2, center


@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize("band", ["F560W", "F770W"])
def test_apertures_for_mosaics_measure_stars_in_mosaics(band, ratio):
    psf, exposures = model(band)
    _, mosaics = model(band, Resampling(pixel_scale_ratio=ratio))
    random = np.random.default_rng(3)
    images = [_mosaic(psf, ratio, random) for _ in range(16)]
    right, wrong = (
        np.mean([_light(*one, encircled.corrections(curve), ratio) for one in images], axis=0)
        for curve in (mosaics, exposures)
    )

    # Of one mosaic the light depends on where on a pixel the star was, by 0.3 % in the aperture of 70 %.
    np.testing.assert_allclose(right, 1, atol=0.005)
    # In apertures for exposures it is too little, the more, the coarser the mosaic.
    assert wrong[1] < (0.988 if ratio == 1 else 0.998)


@pytest.mark.parametrize("band", ["F770W", "F1500W", "F2550W"])
def test_a_star_joined_to_the_model_gives_the_corrections_of_truth(band):
    """The centroid is not the middle of a pixel, and the background is not zero."""
    _, truth = model(band)
    image, center = field(band, (0.2, -0.3), noise=1)

    joined = encircled.join(image, center, truth, radius_of_join(band))

    found, expected = encircled.corrections(joined), encircled.corrections(truth)
    np.testing.assert_allclose(found.apcorr, expected.apcorr, rtol=2e-3)
    np.testing.assert_allclose(found.radius[3:], expected.radius[3:], rtol=1e-2)
    # Beyond the join it is the model.
    assert joined.energy[-1] == truth.energy[-1]


def test_radii_are_in_native_pixels_whatever_the_image_has():
    """A mosaic of half the pixels: the same samples of a star, called twice as wide."""
    psf, truth = model("F1500W")
    wide = EncircledEnergy(truth.radius / 2, truth.energy)
    image, center = field("F1500W", (0.2, -0.3))
    native = encircled.join(image, center, truth, 40.0)
    half = encircled.join(image, center, wide, 20.0, pixel=0.5)
    np.testing.assert_allclose(half.radius_of(0.7), native.radius_of(0.7) / 2, rtol=2e-4)


def test_the_background_is_told_from_the_wings():
    _, truth = model("F2550W")
    image, center = field("F2550W", (0, 0))
    curves = [encircled.join(image + sky, center, truth, 30.0).energy for sky in (0.0, 1e4)]
    np.testing.assert_allclose(*curves, atol=1e-6)


def test_masked_pixels_are_taken_from_across_the_centre():
    _, truth = model("F1500W")
    image, center = field("F1500W", (0, 0))
    mask = np.random.default_rng(2).random(image.shape) < 0.03
    near = np.hypot(*(np.indices(image.shape) - HALF)) < 12
    mask &= ~(near & mask[::-1, ::-1])
    assert (mask & mask[::-1, ::-1]).any()
    holed = np.where(mask, np.nan, image)
    whole, filled = (encircled.join(one, center, truth, 30.0) for one in (image, holed))
    # Where both sides are masked, those beside them tell.
    np.testing.assert_allclose(filled.energy, whole.energy, atol=2e-4)
    with pytest.raises(ValueError, match="at most 5 % of the pixels around the star may be masked, but"):
        encircled.join(image, center, truth, 30.0, mask=np.ones(image.shape, bool))
    mask[HALF + 3, HALF] = mask[HALF - 3, HALF] = True
    with pytest.raises(ValueError, match=r"10.\d pixels of the star none may be masked on both .* but 2 are"):
        encircled.join(image, center, truth, 30.0, mask=mask)


@pytest.mark.parametrize("noise", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("band", ["F560W", "F1500W"])
def test_without_neighbours_nothing_is_taken_out(band, noise, monkeypatch):
    _, truth = model(band)
    image, center = field(band, (0.2, -0.3), noise=noise)
    found = encircled.join(image, center, truth, radius_of_join(band))

    monkeypatch.setattr(encircled.neighbours, "remove", lambda image, bad, *_: (image, 0 * image, bad))
    untouched = encircled.join(image, center, truth, radius_of_join(band))
    np.testing.assert_allclose(found.energy, untouched.energy, rtol=5e-4)


@pytest.mark.parametrize(
    "neighbours",
    [
        pytest.param([(46.0, 9.0, 0.01)], id="1 % in the ring"),
        pytest.param([(-21.0, 41.0, 0.03)], id="3 % in the ring"),
        pytest.param([(-18.0, 16.3, 0.01)], id="1 % inside"),
        pytest.param([(9.0, -22.6, 0.03)], id="3 % inside"),
        pytest.param([(-30.2, 20.5, 0.03), (10.5, -30.0, 0.01)], id="two"),
    ],
)
@pytest.mark.parametrize("band", ["F560W", "F1500W"])
def test_neighbours_are_neither_light_nor_background(band, neighbours):
    _, truth = model(band)
    alone, crowded = (
        encircled.corrections(
            encircled.join(*field(band, (0.2, -0.3), beside, 10), truth, radius_of_join(band))
        )
        for beside in ((), neighbours)
    )

    np.testing.assert_allclose(crowded.radius[5], alone.radius[5], rtol=5e-3)
    np.testing.assert_allclose(crowded.apcorr, alone.apcorr, rtol=2e-3)


def test_neighbours_are_taken_out_of_images_with_masked_pixels():
    _, truth = model("F1500W")
    image, center = field("F1500W", (0.2, -0.3), [(-30.2, 20.5, 0.03)], noise=10)
    mask = np.random.default_rng(3).random(image.shape) < 0.01
    # What is across from the core of the neighbour is not known.
    mask[41:44, 91:94] = True
    alone = encircled.join(*field("F1500W", (0.2, -0.3), noise=10), truth, 42.0)
    found = encircled.join(np.where(mask, np.nan, image), center, truth, 42.0)
    np.testing.assert_allclose(found.radius_of(0.7), alone.radius_of(0.7), rtol=5e-3)


@pytest.mark.parametrize("band", ["F560W", "F1500W"])
def test_hot_pixels_are_no_neighbours(band):
    """Thirty, each with a thousandth of the star's light."""
    _, truth = model(band)
    image, center = field(band, (0.2, -0.3), noise=10)
    alone = encircled.join(image, center, truth, radius_of_join(band))
    far = np.hypot(*(np.indices(image.shape) - HALF)) > 5 * truth.radius_of(0.5)
    hot = np.random.default_rng(6).choice(np.flatnonzero(far), 30, replace=False)
    image.flat[hot] += 1e-3 * LIGHT
    found = encircled.join(image, center, truth, radius_of_join(band))
    np.testing.assert_allclose(found.radius_of(0.7), alone.radius_of(0.7), rtol=1e-3)


def test_neighbours_that_spoil_a_star_are_refused():
    _, truth = model("F1500W")
    with pytest.raises(
        ValueError, match=r"at most 0.1 of the star's light, but that 31.\d pixels away has 0.2"
    ):
        encircled.join(*field("F1500W", (0, 0), [(-24.0, 20.0, 0.2)]), truth, 40.0)


@pytest.mark.parametrize(
    ("band", "words"),
    [
        ("F770W", "correction of 70 % .* 0.95 to 1.05 .* 1.05"),
        ("F1500W", "radius of 70 % .* 0.85 to 1.3 .* 1.35"),
    ],
)
def test_neighbours_within_three_fwhm_are_refused_if_bright(band, words):
    """None is looked for there."""
    near = 2 * config.band(band).fwhm * np.array([0.8, 0.6])
    _, truth = model(band)
    with pytest.raises(ValueError, match=words):
        encircled.join(*field(band, (0.2, -0.3), [(*near, 0.09)], 10), truth, radius_of_join(band))


@pytest.mark.parametrize(
    ("rise", "words"),
    [
        (300, "radius of 70 % .*, got 0.6"),
        (100, "radius of 70 % .*, got 0.8"),
        (-100, "radius of 85 % .*, got 1.7"),
    ],
)
def test_backgrounds_with_a_hollow_or_a_top_at_the_star_are_refused(rise, words):
    """By so much from there to the join; of 300 the corrections are off by 3 %, and the radii by half."""
    _, truth = model("F560W")
    image, center = field("F560W", (0.2, -0.3), noise=10)
    y, x = np.indices(image.shape)
    join = radius_of_join("F560W")
    image += rise * ((x - center[0]) ** 2 + (y - center[1]) ** 2) / join**2
    with pytest.raises(ValueError, match=words):
        encircled.join(image, center, truth, join)


def _round(curve, half):
    """Draw a round star with a growth curve, in its middle."""
    fine = (np.arange(4 * (2 * half + 1)) + 0.5) / 4 - half - 0.5
    edges = np.linspace(0.01, 1.5 * half, 4000)
    brightness = np.diff(curve.within(edges)) / (np.pi * np.diff(edges**2))
    shown = np.interp(np.hypot(fine, fine[:, None]), (edges[1:] + edges[:-1]) / 2, brightness)
    return shown.reshape(2 * half + 1, 4, 2 * half + 1, 4).mean(axis=(1, 3))


@needs_shared
@pytest.mark.parametrize("band", MODELS)
def test_stars_of_the_telescope_are_joined_to_models_without_wavefront_errors(band):
    """These differ from it more than any others: in F1130W by 32 % in the radius of 0.85."""
    table = Table.read(REFERENCE)
    table = table[(table["subarray"] == "FULL") & (table["filter"] == band)]
    path = SHARED / "psf" / f"miri_{band.lower()}_os4.fits"
    truth = encircled.read_psf(path, resampling=Resampling())
    beyond = truth.radius > 27
    flight = EncircledEnergy(
        np.concatenate([table["radius"], table["skyout"][:1], truth.radius[beyond]]),
        np.concatenate([table["eefraction"], [0.85], truth.energy[beyond]]),
    )
    image = LIGHT * np.nan_to_num(_round(flight, 40)) + 50
    joined = encircled.join(image, (40, 40), truth, 27.0)
    found = encircled.corrections(joined)
    # Drawn in pixels it is a little wider in its core.
    np.testing.assert_allclose(found.radius[5:], table["radius"][5:], rtol=0.04)
    assert found.sky[1] == pytest.approx(table["skyout"][0], rel=0.03)


def test_what_is_too_small_is_refused(gaussian):
    with pytest.raises(
        ValueError, match=r"must be 14.0 pixels from the edges of the image, but 10.0 are left"
    ):
        encircled.join(np.zeros((41, 41)), (10, 20), gaussian, 10.0)
    with pytest.raises(ValueError, match=r"the model PSF must reach 1.0 native pixels farther"):
        encircled.join(np.zeros((81, 81)), (40, 40), gaussian, 15.0)
    with pytest.raises(ValueError, match="light of a model PSF must be 1 out to infinity, but 100"):
        encircled.psf_curve(np.ones((10, 10)), 0.11)
    with pytest.raises(ValueError, match=r"at least 1.5 samples per native pixel, got 1.00"):
        encircled.psf_curve(np.full((10, 10), 0.009), 0.11)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pixfrac": 0.0}, "pixfrac must be above 0 and at most 1, got 0.0"),
        ({"pixfrac": 1.2}, "pixfrac must be above 0 and at most 1, got 1.2"),
        ({"pixel_scale_ratio": 0.0}, "pixel_scale_ratio must be above 0, got 0.0"),
        ({"pixel_scale_ratio": np.nan}, "pixel_scale_ratio must be above 0, got nan"),
    ],
)
def test_mosaics_that_cannot_be_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Resampling(**given)


def _file(path, total, **header):
    axis = np.exp(-0.5 * ((np.arange(81) - 40) / 8) ** 2)
    hdu = fits.PrimaryHDU(total * np.outer(axis, axis) / axis.sum() ** 2)
    hdu.header.update({"PIXELSCL": 0.11 / 4, **header})
    hdu.writeto(path)
    return path


@pytest.mark.parametrize(
    ("header", "samples"),
    [
        ({"PIXELSCL": 0.0277, "OVERSAMP": 4}, 4),
        ({"PIXELSCL": 0.0277, "DET_SAMP": 4}, 4),
        # The first is that of the pupil.
        ({"PIXELSCL": 0.0277, "OVERSAMP": 2, "DET_SAMP": 4}, 4),
        ({"PIXELSCL": 0.0277}, 0.11 / 0.0277),
        # Rebinned by who did not say so.
        ({"PIXELSCL": 0.0554, "OVERSAMP": 4}, 0.11 / 0.0554),
    ],
)
def test_native_pixels_of_models_are_those_they_were_made_for(header, samples, tmp_path):
    """As stars are measured in pixels of their image; a Gaussian of 8 samples, and two boxes of a pixel."""
    curve = encircled.read_psf(_file(tmp_path / "psf.fits", 0.97, **header))
    variance = (8 / samples) ** 2 + 1 / 6
    assert curve.radius_of(0.5) == pytest.approx(np.sqrt(-2 * variance * np.log(1 - 0.5 / 0.97)), rel=1e-3)


def test_psfs_without_the_light_outside_their_image_are_refused(tmp_path):
    for number, header in enumerate(
        ({}, {"NORMALIZ": "first"}, {"NORMALIZ": "exit_pupil", "CORONMSK": "4QPM"})
    ):
        curve = encircled.read_psf(_file(tmp_path / f"{number}.fits", 0.97, **header))
        assert curve.energy[-1] == pytest.approx(0.97, abs=1e-3)
    with pytest.raises(ValueError, match="last.fits must be 'first' or 'exit_pupil', got 'last'"):
        encircled.read_psf(_file(tmp_path / "last.fits", 0.97, NORMALIZ="last"))
    with pytest.raises(ValueError, match="must be 'exit_pupil', as 4QPM is a coronagraph, got 'first'"):
        encircled.read_psf(_file(tmp_path / "stop.fits", 0.97, NORMALIZ="first", CORONMSK="4QPM"))
    with pytest.warns(UserWarning, match=r"all light of the PSF in .*all.fits is in its image \(sum 1.0000"):
        encircled.read_psf(_file(tmp_path / "all.fits", 1.0))


def test_data_sets_are_averaged(gaussian):
    wider = EncircledEnergy(gaussian.radius * 1.02, gaussian.energy)
    single = [encircled.corrections(curve) for curve in (gaussian, wider)]
    found = encircled.average(single)

    np.testing.assert_allclose(found.radius, single[0].radius * 1.01)
    np.testing.assert_allclose(found.radius_scatter, single[0].radius * 0.02 / np.sqrt(2), rtol=1e-6)
    assert found.number == 2
    assert encircled.average(single[:1]).number == 1
    assert np.isnan(encircled.average(single[:1]).apcorr_scatter).all()
    with pytest.raises(ValueError, match="at least one data set"):
        encircled.average([])


def test_a_data_set_that_is_off_is_left_out(gaussian):
    """Eight that scatter by half a per cent, and one with a neighbour, say."""
    scale = 1 + 0.005 * np.random.default_rng(4).normal(size=8)
    good = [encircled.corrections(EncircledEnergy(gaussian.radius * one, gaussian.energy)) for one in scale]
    bad = encircled.corrections(EncircledEnergy(gaussian.radius * 0.92, gaussian.energy))
    found = encircled.average([*good[:3], bad, *good[3:]])

    assert found.number == 8
    expected = encircled.average(good)
    np.testing.assert_allclose(found.radius, expected.radius)
    np.testing.assert_allclose(found.radius_scatter / found.radius, np.std(scale, ddof=1), rtol=0.02)
    np.testing.assert_allclose(found.sky_scatter, expected.sky_scatter)


@needs_shared
def test_models_without_wavefront_errors_are_a_little_sharper_than_flight():
    """Bounds are what was measured, widened by a thousandth: see the table in the documentation."""
    table = Table.read(REFERENCE)
    table = table[table["subarray"] == "FULL"]
    radius, apcorr, outer = [], [], []
    for band in MODELS:
        path = SHARED / "psf" / f"miri_{band.lower()}_os4.fits"
        found = encircled.corrections(encircled.read_psf(path, resampling=Resampling()))
        flight = table[table["filter"] == band]
        radius.append(found.radius / flight["radius"])
        apcorr.append(found.apcorr / flight["apcorr"])
        outer.append(found.sky[1] / flight["skyout"][0])

    def check(ratios, low, high):
        np.testing.assert_allclose(np.min(ratios, axis=0), low, atol=2e-3)
        np.testing.assert_allclose(np.max(ratios, axis=0), high, atol=2e-3)

    check(
        radius,
        [0.853, 0.849, 0.885, 0.882, 0.896, 0.875, 0.805],
        [1.009, 1.011, 1.014, 1.006, 1.012, 1.050, 1.000],
    )
    check(
        apcorr,
        [0.997, 0.997, 0.996, 0.996, 0.994, 0.997, 0.980],
        [1.006, 1.006, 1.007, 1.008, 1.010, 1.020, 1.044],
    )
    check(outer, 0.756, 1.027)
