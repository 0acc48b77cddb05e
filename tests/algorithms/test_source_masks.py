"""Light that is masked, against the light that was put in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from miri_steps import detector, simulate
from miri_steps.algorithms import source_masks, sources

SETTINGS = settings(deadline=None, derandomize=True, max_examples=10)
BANDS = pytest.mark.parametrize("band", ["F560W", "F1500W", "F2550W"])
BOXES = pytest.mark.parametrize("box", [None, 128])
N = 300


def grain(shape=(N, N), seed=0):
    """Noise of 1 in each pixel: all light is in units of sigma."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def find(image, noise=1.0, *, band="F770W", sigma=3.0, least_area=5, **options):
    noise = np.broadcast_to(np.float32(noise), image.shape)
    fwhm = detector.FWHM[band]
    return source_masks.find(image, noise, fwhm=fwhm, sigma=sigma, least_area=least_area, **options)


def starlight(band, places, peaks, shape=(N, N), seed=0):
    """Light of stars with their wings, at random phases."""
    half = 48
    light = np.zeros((shape[0] + 2 * half, shape[1] + 2 * half))
    psf = simulate.psf(band, oversample=3, half_size=half + 1)
    rng = np.random.default_rng(seed)
    for (y, x), peak in zip(places, peaks, strict=True):
        stamp = psf.stamp(*rng.uniform(-0.5, 0.5, 2), half)
        light[y : y + 2 * half + 1, x : x + 2 * half + 1] += stamp * (peak / stamp.max())
    return light[half:-half, half:-half].astype(np.float32)


def starfield(band, shape=(400, 400), seed=0):
    """As many stars per area as 400 on a full frame; in F770W with peaks from 3 to 3000, half below 12."""
    rng = np.random.default_rng(seed)
    number = round(2.4e-4 * shape[0] * shape[1])
    # The same flux on more pixels.
    faintest = 3 * (detector.FWHM["F770W"] / detector.FWHM[band]) ** 2
    places = np.stack([rng.integers(0, size, number) for size in shape], axis=-1)
    return starlight(band, places, faintest * np.minimum((1 - rng.random(number)) ** -2, 1000), shape, seed)


# Noise


@BANDS
@BOXES
def test_noise_is_hardly_masked_and_keeps_its_mean(band, box):
    masked, mean = [], []
    for seed in range(3):
        image = grain((400, 400), seed)
        mask = find(image, band=band, box=box)
        masked.append(mask.mean())
        # Only the mask can move the mean of what is left from the mean of all.
        mean.append(image[~mask].mean() - image.mean())

    assert np.mean(masked) < 0.035
    assert abs(np.mean(mean)) < 0.01


def test_a_higher_limit_masks_no_noise():
    assert not find(grain((400, 400)), sigma=6.0).any()


@BOXES
@pytest.mark.parametrize("level", [0.0, 100.0])
def test_noise_that_changes_over_the_image_is_no_source(box, level):
    noise = np.ones((400, 400), np.float32)
    noise[:, 200:] = 2
    image = level + noise * grain((400, 400))

    mask = find(image, noise, box=box)

    for half in np.s_[:, :200], np.s_[:, 200:]:
        assert mask[half].mean() < 0.04
    assert abs((image - level)[~mask].mean()) < 0.02


# Stars


@pytest.mark.parametrize("band", ["F770W", "F2550W"])
@BOXES
@pytest.mark.parametrize("peak", [10, 100, 3000])
def test_stars_are_masked_and_their_wings(band, box, peak):
    places = [(75, 80), (230, 90), (150, 225)]
    light = starlight(band, places, [peak] * 3, seed=peak)

    mask = find(grain() + light, band=band, box=box)

    # What makes a pixel 1 sigma brighter is masked, but for spikes.
    assert mask[light > 0.6 * peak].all()
    assert mask[light > 1].mean() > 0.9
    assert light[~mask].mean() < max(0.06, 0.04 * light.mean())
    if peak == 10:
        assert mask.mean() < 0.1


def test_the_brighter_the_star_the_larger_its_mask():
    stars = [starlight("F770W", [(150, 150)], [peak]) for peak in (10, 100, 1000)]
    areas = [find(grain() + light, sigma=5.0).sum() for light in stars]

    assert areas[0] * 1.5 < areas[1]
    assert areas[1] * 1.5 < areas[2]


@pytest.mark.parametrize(("band", "left", "masked"), [("F770W", 0.02, 0.07), ("F1500W", 0.02, 0.1)])
@BOXES
def test_a_starfield_leaves_little_light(band, left, masked, box):
    found, share, before = [], [], []
    for seed in range(3):
        light = starfield(band, seed=seed)
        mask = find(grain(light.shape, seed) + light, band=band, box=box)
        found.append(light[~mask].mean())
        share.append(mask.mean())
        before.append(light.mean())

    assert np.mean(before) > 0.2
    assert np.mean(found) < left
    assert np.mean(share) < masked


def test_dilation_leaves_less_light():
    light = starfield("F770W")
    image = grain(light.shape) + light

    masks = [find(image, dilate=dilate) for dilate in (0.0, 0.7, 1.4)]

    left = [light[~mask].mean() for mask in masks]
    assert left[0] > left[1] > left[2]


def test_pixels_that_stand_out_alone_are_no_source_where_sources_are_larger():
    image = grain()
    image[40:260:20, 40:260:20] += 6

    assert find(image, least_area=30).mean() < 0.05


# Extended light


def nebula(cover, amplitude, size=400, seed=1):
    scene = simulate.Scene(80.0, -69.0).with_emission(amplitude, radius=30.0, seed=seed, cover=cover)
    east, north = np.meshgrid(*[(np.arange(size) - size / 2) * detector.PIXEL_SCALE] * 2)
    return scene.brightness(east, north, detector.FWHM["F770W"] * detector.PIXEL_SCALE).astype(np.float32)


@pytest.mark.parametrize("amplitude", [5.0, 50.0])
@pytest.mark.parametrize("cover", [0.1, 0.3, 0.6])
def test_emission_of_any_size_is_found_without_a_mesh(cover, amplitude):
    light = nebula(cover, amplitude)

    mask = find(grain(light.shape) + light)

    assert mask[light > 0.5].mean() > 0.95
    # The mask goes on beyond the shore; away from it only noise is masked.
    far = ndimage.distance_transform_edt(light < 0.1) > 15
    assert mask[far].mean() < 0.05
    assert light[~mask].mean() < 0.1


def test_emission_nearly_everywhere_is_taken_for_the_level():
    light = nebula(0.9, 10.0)

    assert find(grain(light.shape) + light).mean() < 0.1


def test_a_hill_is_background_where_there_is_a_mesh():
    y, x = np.indices((400, 400))
    hill = 5 * np.exp(-((x - 180) ** 2 + (y - 220) ** 2) / (2 * 130**2))
    image = (grain((400, 400)) + hill).astype(np.float32)

    assert find(image, box=128).mean() < 0.05
    # Without one it is light, as long as it leaves half of the image free.
    narrow = (grain((400, 400)) + hill**4 / 125).astype(np.float32)
    assert find(narrow)[hill**4 / 125 > 0.5].mean() > 0.95


def test_a_star_on_a_hill_is_found():
    y, x = np.indices((400, 400))
    hill = 5 * np.exp(-((x - 180) ** 2 + (y - 220) ** 2) / (2 * 130**2))
    light = starlight("F770W", [(220, 180), (100, 300)], [30, 30], (400, 400))

    mask = find((grain((400, 400)) + hill + light).astype(np.float32), box=128)

    assert mask[light > 3].all()
    assert mask.mean() < 0.05


# What is not known, and images of nothing


@BOXES
def test_unknown_pixels_are_not_masked_and_do_not_spread(box):
    light = starlight("F770W", [(75, 80), (230, 90), (150, 225)], [100] * 3)
    image = grain() + light
    whole = find(image, box=box)
    unknown = np.random.default_rng(3).random(image.shape) < 0.05
    unknown[:, :60] = unknown[140:150, 210:240] = True

    mask = find(np.where(unknown, np.float32(np.nan), image), box=box)

    assert not mask[unknown].any()
    assert mask[~unknown & (light > 1)].mean() > 0.9
    # Where nothing is missing nearby nothing changes but faint noise.
    assert (mask ^ whole)[~unknown].mean() < 0.03


@BOXES
@pytest.mark.parametrize("value", [np.nan, 0.0, 3.7, 1e5])
@pytest.mark.parametrize("shape", [(N, N), (20, 30)])
def test_an_image_of_nothing_holds_no_source(value, shape, box):
    assert not find(np.full(shape, value, np.float32), box=box).any()


@BOXES
def test_one_known_pixel_is_no_source(box):
    image = np.full((50, 60), np.nan, np.float32)
    image[20, 30] = 5

    assert not find(image, box=box).any()


@pytest.mark.parametrize("noise", [0.0, np.nan, -1.0])
def test_noise_that_is_not_known_is_even(noise):
    image = grain() + starlight("F770W", [(150, 150)], [100])

    np.testing.assert_array_equal(find(image, noise), find(image))


def test_all_of_a_bright_image_can_be_masked():
    mask = find(grain((12, 12)) + starlight("F2550W", [(6, 6)], [1e5], (12, 12)), band="F2550W")

    assert mask.shape == (12, 12)


# Properties


@SETTINGS
@given(st.integers(-4000, 4000), st.sampled_from([None, 64]))
def test_a_constant_changes_nothing(constant, box):
    image = np.round((grain((150, 160)) + starlight("F770W", [(70, 80)], [40], (150, 160))) * 64) / 64

    moved = find(image + np.float32(constant), box=box)

    assert (moved ^ find(image, box=box)).mean() < 0.002


@SETTINGS
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.sampled_from([None, 64]))
def test_units_do_not_matter(unit, other, box):
    image = grain((150, 160)) + starlight("F770W", [(70, 80)], [40], (150, 160))

    scaled = find(image * np.float32(unit), other, box=box)

    assert (scaled ^ find(image, box=box)).mean() < 0.002


def test_inputs_are_left_alone():
    image, noise = grain(), np.ones((N, N), np.float32)
    image[5, 5] = noise[7, 7] = np.nan
    kept = image.copy(), noise.copy()

    find(image, noise)
    find(image, noise, box=128)

    np.testing.assert_array_equal(image, kept[0])
    np.testing.assert_array_equal(noise, kept[1])


def test_a_large_image_is_masked_as_its_parts():
    """The level of a large image is found from some of its pixels."""
    image = np.tile(grain((400, 300)) + starlight("F770W", [(200, 150)], [100], (400, 300)), (2, 2))

    whole, part = find(image), find(image[:400, :300])

    assert image.size > source_masks._LEVEL_SAMPLES > 400 * 300
    assert (whole[:400, :300] ^ part)[20:-20, 20:-20].mean() < 0.01


# Jobs


def test_a_job_is_the_function():
    image, noise = grain() + starlight("F770W", [(150, 150)], [100]), np.ones((N, N), np.float32)

    np.testing.assert_array_equal(
        source_masks.bright_job((image, noise, 2.2)), sources.segment(image, noise, fwhm=2.2, sigma=5.0)
    )


# Wide parts


def disc(y, x, radius, shape=(60, 70)):
    rows, columns = np.indices(shape)
    return np.hypot(rows - y, columns - x) <= radius


def test_discs_are_kept_by_their_diameter():
    small, large = disc(15, 15, 3), disc(40, 45, 8)

    kept = source_masks.wide_parts(small | large, 10)

    np.testing.assert_array_equal(kept, large)
    np.testing.assert_array_equal(source_masks.wide_parts(small | large, 5), small | large)
    assert not source_masks.wide_parts(small | large, 20).any()


def test_a_line_is_narrow_however_long():
    mask = np.zeros((60, 70), bool)
    mask[:, 30:33] = mask[20] = True

    assert not source_masks.wide_parts(mask, 6).any()
    np.testing.assert_array_equal(source_masks.wide_parts(mask, 3), mask)


def test_all_of_a_part_is_kept_that_is_wide_somewhere():
    mask = disc(30, 20, 8)
    mask[30, 20:60] = True

    np.testing.assert_array_equal(source_masks.wide_parts(mask, 12), mask)


def test_parts_that_touch_at_a_corner_are_one():
    mask = np.zeros((40, 40), bool)
    mask[5:20, 5:20] = mask[20:22, 20:22] = True

    np.testing.assert_array_equal(source_masks.wide_parts(mask, 10), mask)
    apart = mask.copy()
    apart[20, 20] = False
    apart[20:22, 20:22] = False
    apart[21:23, 21:23] = True
    assert source_masks.wide_parts(apart, 10)[21:23, 21:23].sum() == 0


def test_the_edge_of_the_image_is_no_edge_of_a_part():
    half = disc(30, 0, 8)

    np.testing.assert_array_equal(source_masks.wide_parts(half, 14), half)
    # A strip of 5 along the edge may be a part of something wide.
    strip = np.zeros((60, 70), bool)
    strip[:, :5] = True
    assert source_masks.wide_parts(strip, 9).any()


@pytest.mark.parametrize("value", [False, True])
def test_nothing_and_everything(value):
    mask = np.full((30, 40), value)

    kept = source_masks.wide_parts(mask, 5)

    np.testing.assert_array_equal(kept, mask)
    assert kept is not mask
