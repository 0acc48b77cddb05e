"""Stars are found where they are, and nothing else is taken for one."""

import numpy as np
import pytest
from scipy import ndimage

from miri_steps import detector, simulate
from miri_steps.algorithms import star_finding

# Milliarcseconds per pixel.
MAS = 1000 * detector.PIXEL_SCALE
STEP = 48


def starry(band, snr, *, n=8, seed=0, level=4.0):
    """Put n x n stars at random phases on a lattice, noise 1: image, error and positions (n^2, 2)."""
    rng = np.random.default_rng(seed)
    psf = simulate.psf(band, oversample=3, half_size=40)
    image = np.zeros((n * STEP, n * STEP))
    y, x = (STEP / 2 + STEP * np.indices((n, n)) + rng.uniform(-0.5, 0.5, (2, n, n))).reshape(2, -1)
    # The noise of pixels weighted with a Gaussian, which covers sqrt(4 pi) sigma in the mean.
    flux = snr * 1.5 * psf.fwhm
    for column, row in zip(x, y, strict=True):
        i, j = round(row), round(column)
        image[i - 20 : i + 21, j - 20 : j + 21] += flux * psf.stamp(column - j, row - i, 20)
    err = np.sqrt(1 + image / 40)
    return level + image + err * rng.standard_normal(image.shape), err, np.stack([x, y], axis=-1)


def find(data, err, band="F770W", **kwargs):
    return star_finding.find(data, err, fwhm=detector.FWHM[band], **kwargs)


def compare(found, truth):
    """Return offsets (n, 2) [pixel] from the nearest truth, and the index of that."""
    xy = np.stack([found.x, found.y], axis=-1)
    distance = np.hypot(*(xy[:, None] - truth).transpose(2, 0, 1))
    nearest = distance.argmin(axis=1)
    return xy - truth[nearest], nearest


# Limits [mas] are 1.2 times what 100 stars gave.
@pytest.mark.parametrize(
    ("band", "faint", "bright"),
    [("F560W", 8.0, 0.6), ("F770W", 8.0, 0.6), ("F2550W", 26.0, 1.2)],
)
def test_positions_are_as_good_as_the_noise_allows(band, faint, bright):
    for snr, limit in ((30, faint), (1000, bright)):
        data, err, truth = starry(band, snr, n=7)

        found = find(data, err, band)
        offset, nearest = compare(found, truth)

        real = np.hypot(*offset.T) < 1
        # Wings of the brightest may hold a bump; faint ones may fall below the limit.
        assert len(np.unique(nearest[real])) >= 0.97 * len(truth)
        assert (~real).sum() <= 2
        assert np.sqrt(np.mean(offset[real] ** 2)) * MAS < limit


@pytest.mark.parametrize("band", ["F560W", "F2550W"])
def test_errors_of_positions_are_what_positions_scatter_by(band):
    data, err, truth = starry(band, 50, n=10)

    found = find(data, err, band)
    offset, _ = compare(found, truth)

    assert np.sqrt(np.mean((offset / found.sigma[:, None]) ** 2)) == pytest.approx(1, abs=0.15)
    # The light's own noise takes a part of the 50.
    assert 25 < np.median(found.snr) < 45


@pytest.mark.parametrize("band", ["F560W", "F2550W"])
def test_positions_do_not_depend_on_the_phase(band):
    data, err, truth = starry(band, 1000, n=10, seed=3)
    found = find(data, err, band)
    offset, nearest = compare(found, truth)
    near = np.hypot(*offset.T) < 1
    offset, phase = offset[near], truth[nearest[near]] % 1

    slope = np.mean(2 * offset * np.sin(2 * np.pi * phase), axis=0)

    assert np.abs(slope).max() * MAS < 0.5
    assert np.abs(offset.mean(axis=0)).max() * MAS < 0.3


@pytest.mark.parametrize("band", ["F560W", "F2550W"])
def test_noise_holds_no_stars(band):
    for seed in range(4):
        noise = np.random.default_rng(seed).normal(7, 1, (300, 300))
        assert len(find(noise, np.ones_like(noise), band, snr=6)) == 0


@pytest.mark.parametrize("height", [30, 300, 30000])
def test_hot_pixels_and_cosmic_rays_are_no_stars(height):
    rng = np.random.default_rng(1)
    data = rng.normal(4, 1, (256, 256))
    rows, columns = rng.integers(20, 236, (2, 30))
    data[rows, columns] += height

    for band in ("F560W", "F770W", "F2550W"):
        assert len(find(data, np.ones_like(data), band)) == 0


def test_emission_is_no_star():
    rng = np.random.default_rng(2)
    cloud = ndimage.gaussian_filter(rng.standard_normal((320, 320)), 6)
    data = 50 * cloud / cloud.std() + rng.normal(0, 1, (320, 320))

    assert len(find(data, np.ones_like(data), "F560W")) <= 2
    assert len(find(data, np.ones_like(data), "F770W")) <= 2


def test_errors_that_are_too_small_do_not_flood_the_list():
    data = np.random.default_rng(3).normal(4, 1, (256, 256))

    assert len(find(data, 0.01 * np.ones_like(data), snr=6)) == 0


def test_masked_and_missing_pixels_make_no_stars_and_lose_only_their_own():
    data, err, truth = starry("F560W", 200)
    x, y = np.rint(truth).astype(int).T
    mask = np.zeros(data.shape, bool)
    # Cores of the first are missing, of the next masked; in the others there is a pixel beside.
    data[y[:8], x[:8]] = np.nan
    mask[y[8:16], x[8:16]] = True
    mask[y[16:], x[16:] + 4] = True
    mask[:, 180:200] = True
    data[mask] = 1e5
    hidden = (np.arange(len(truth)) < 16) | (np.abs(truth[:, 0] - 189.5) < 11.5)

    found = find(data, err, "F560W", mask=mask)
    offset, nearest = compare(found, truth)

    assert np.hypot(*offset.T).max() < 0.1
    assert sorted(nearest) == list(np.flatnonzero(~hidden))


def test_a_missing_pixel_beside_the_core_moves_no_star_of_a_wide_band():
    data, err, truth = starry("F2550W", 200)
    x, y = np.rint(truth).astype(int).T
    data[y, x + 3] = np.nan

    offset, _ = compare(find(data, err, "F2550W"), truth)

    assert len(offset) == len(truth)
    assert np.sqrt(np.mean(offset**2)) * MAS < 6


def test_stars_at_the_edge_are_dropped_and_their_neighbours_stay():
    data, err, truth = starry("F770W", 100)
    cut = np.s_[:, 24:]

    found = find(data[cut], err[cut])

    offset, _ = compare(found, truth - [24, 0])
    assert np.hypot(*offset.T).max() < 0.3
    assert len(found) == 56


def test_the_brightest_come_first_and_are_kept():
    data, err, _ = starry("F770W", 100)

    every, three = find(data, err, brightest=None), find(data, err, brightest=3)

    assert len(every) == 64
    assert (np.diff(every.flux) <= 0).all()
    np.testing.assert_array_equal(three.x, every.x[:3])


def test_a_level_and_a_unit_change_nothing():
    data, err, _ = starry("F770W", 100)

    one, other = find(data, err), find(1e-6 * (data + 100), 1e-6 * err)

    assert len(one) == len(other)
    np.testing.assert_allclose(other.x, one.x, atol=1e-6)
    np.testing.assert_allclose(other.sigma, one.sigma, rtol=1e-5)
    np.testing.assert_allclose(other.flux, 1e-6 * one.flux, rtol=1e-5)


def test_inputs_are_not_changed():
    data, err, _ = starry("F770W", 100, n=3)
    data[5, 5] = np.nan
    mask = np.zeros(data.shape, bool)
    before = data.copy(), err.copy()

    find(data, err, mask=mask)

    np.testing.assert_array_equal(data, before[0])
    np.testing.assert_array_equal(err, before[1])
    assert not mask.any()


def test_an_image_without_noise_has_stars():
    data, _, truth = starry("F770W", 1e6, n=4, level=0)
    offset, _ = compare(find(data, np.zeros_like(data)), truth)

    near = np.hypot(*offset.T) < 1
    assert near.sum() == 16
    assert np.abs(offset[near]).max() * MAS < 2


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_an_image_without_anything_has_no_stars(value):
    image = np.full((64, 72), value)

    assert len(find(image, np.ones_like(image))) == 0
    assert len(find(image, image)) == 0


def test_wrong_parameters_are_told():
    image = np.zeros((20, 20))
    with pytest.raises(ValueError, match=r"err must have the shape \(20, 20\) of data, got \(2, 2\)"):
        star_finding.find(image, np.ones((2, 2)), fwhm=2)
    with pytest.raises(ValueError, match="fwhm must be above 0, got 0"):
        star_finding.find(image, image, fwhm=0)
    with pytest.raises(ValueError, match="snr must be above 0, got -1"):
        star_finding.find(image, image, fwhm=2, snr=-1)
