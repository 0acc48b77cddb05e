"""Sources are covered, and what is no source is not."""

import numpy as np
import pytest

from miri_steps import detector, simulate
from miri_steps.algorithms import sources

N = 192
BANDS = pytest.mark.parametrize("band", ["F560W", "F1130W", "F2550W"])


def sky(seed=0, level=5.0):
    return np.random.default_rng(seed).normal(level, 1, (N, N)).astype(np.float32)


def starry(band, peaks, seed=0):
    """Put stars of these peaks [sigma] at random phases on a diagonal; also where they are."""
    rng = np.random.default_rng(seed)
    image = sky(seed)
    places = np.linspace(40, N - 41, len(peaks)).astype(int) if len(peaks) > 1 else [N // 2]
    for place, peak in zip(places, peaks, strict=True):
        stamp = simulate.psf(band, oversample=3, half_size=40).stamp(*rng.uniform(-0.5, 0.5, 2), 40)
        image[place - 40 : place + 41, place - 40 : place + 41] += stamp * peak / stamp.max()
    return image, places


def segment(image, band="F770W", *, sigma=5.0, err=1.0):
    return sources.segment(image, np.full_like(image, err), fwhm=detector.FWHM[band], sigma=sigma)


@BANDS
@pytest.mark.parametrize("peak", [20, 100, 5000])
def test_the_core_of_a_star_is_covered(band, peak):
    image, places = starry(band, [peak] * 3, seed=peak)

    covered = segment(image, band)

    for place in places:
        near = np.s_[place - 4 : place + 5, place - 4 : place + 5]
        # The noise adds to the light of the faint ones.
        assert covered[near][image[near] - 5 > 0.6 * peak].all()
        assert covered[place, place]
    assert not covered[:30, -30:].any()
    assert covered.mean() < 0.5


@BANDS
def test_empty_noise_holds_no_source(band):
    for seed in range(5):
        assert segment(sky(seed), band).mean() < 1e-4


@BANDS
def test_a_smooth_gradient_is_no_source(band):
    y, x = np.indices((N, N))
    slope = 0.1 * x + 0.05 * y

    assert segment(sky() + slope.astype(np.float32), band).mean() < 1e-3


def test_a_constant_changes_nothing():
    image, _ = starry("F770W", [50, 200])

    np.testing.assert_array_equal(segment(image + np.float32(64)), segment(image))


def test_unknown_pixels_are_no_sources_and_hide_none_beside_them():
    image, places = starry("F770W", [200, 200])
    whole = segment(image)
    image[:, :30] = np.nan
    image[places[0] + 3, places[0] + 3] = np.nan
    image[places[1] - 20 : places[1] + 20, places[1] + 5 :] = np.nan

    covered = segment(image)

    assert not covered[:, :30].any()
    for place in places:
        core = np.s_[place - 1 : place + 2, place - 1 : place + 2]
        assert whole[core].all()
        assert covered[core].all()


def test_nothing_known_is_nothing_covered():
    assert not segment(np.full((N, N), np.nan, np.float32)).any()


def test_a_small_frame_is_enough():
    image, _ = starry("F770W", [200])
    cutout = np.ascontiguousarray(image[N // 2 - 36 : N // 2 + 36, N // 2 - 32 : N // 2 + 32])

    covered = segment(cutout)

    middle = np.argwhere(covered).mean(axis=0)
    assert covered.any()
    assert np.abs(middle - (36, 32)).max() < 30


def test_a_higher_limit_covers_less():
    image, _ = starry("F770W", [100, 300])

    low, high = (segment(image, sigma=sigma) for sigma in (3.0, 30.0))

    assert 0 < high.sum() < low.sum()
    assert not (high & ~low).any()


def test_the_roughness_of_the_background_counts_where_errors_are_too_small():
    assert segment(sky(), err=0.01).mean() < 1e-3


def test_inputs_are_left_alone():
    image, _ = starry("F770W", [100])
    err = np.ones_like(image)
    image[5, 5] = np.nan
    kept = image.copy()

    sources.segment(image, err, fwhm=2.0, sigma=5.0)

    np.testing.assert_array_equal(image, kept)
    assert (err == 1).all()


