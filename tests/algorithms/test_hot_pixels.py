"""Pixels that stand out alone are found, stars never are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miri_steps import detector, simulate
from miri_steps.algorithms import hot_pixels

SETTINGS = settings(deadline=None, derandomize=True, max_examples=8)
STARS = {band: width for band, width in detector.FWHM.items() if band != "FND"}
NARROW, MIDDLE, WIDE = (detector.FWHM[band] for band in ("F560W", "F770W", "F2550W"))
WIDTHS = pytest.mark.parametrize("fwhm", [NARROW, MIDDLE, WIDE])
# A pair of pixels, three in a corner and a short row: offsets (y, x).
GROUPS = {"pair": ((0, 1),), "diagonal": ((1, 1),), "corner": ((0, 1), (1, 0)), "row": ((0, 1), (0, 2))}


def noise(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def find(data, err=None, *, fwhm=MIDDLE, sigma=5.0):
    err = np.ones_like(data) if err is None else err
    return hot_pixels.find(data, err, fwhm=fwhm, sigma=sigma)


def assert_same(first, second):
    np.testing.assert_array_equal(first.hot, second.hot)
    np.testing.assert_array_equal(first.dead, second.dead)


def sprinkled(seed=1, shape=(200, 200), height=60.0):
    """Noise with hot and dead pixels; the neighbours of some are hot too."""
    data = noise(shape, seed)
    lots = np.random.default_rng((seed, 1)).random(shape)
    data[lots < 0.01] += height
    data[lots > 0.995] -= height
    return data, lots < 0.01, lots > 0.995


# --- completeness ------------------------------------------------------------------------------


@WIDTHS
def test_hot_pixels_above_ten_sigma_are_found_and_noise_is_not(fwhm):
    data, rng = noise((1000, 1000), seed=2), np.random.default_rng(3)
    height = np.where(
        rng.random(data.shape) < 0.005, np.exp(rng.uniform(np.log(5), np.log(500), data.shape)), 0
    )

    found = find(data + height.astype(np.float32), fwhm=fwhm)

    assert found.hot[height > 10].mean() > 0.99
    assert found.hot[height > 0].mean() > 0.9
    assert (found.hot & (height == 0)).mean() + found.dead.mean() < 5e-6


def test_the_limit_is_in_units_of_the_noise():
    """About half of the pixels at the limit are above it; the scatter of some surroundings is larger."""
    data = noise((400, 400), seed=4)
    places = np.s_[8:-8:8, 8:-8:8]
    for sigma in (5.0, 8.0, 20.0):
        for height, least, most in ((sigma - 3, 0.0, 0.02), (sigma, 0.2, 0.6), (1.3 * sigma + 2, 0.95, 1.0)):
            image = data.copy()
            image[places] += height
            assert least <= find(image, fwhm=WIDE, sigma=sigma).hot[places].mean() <= most


@WIDTHS
@pytest.mark.parametrize("heights", [(100.0, 100.0, 100.0), (300.0, 30.0, 100.0)], ids=["equal", "unequal"])
def test_hot_pixels_that_touch_are_all_found(heights, fwhm):
    data = noise((4 * 160, 320), seed=5)
    hot = {}
    # Two hundred groups of each kind, one kind below the other.
    for k, (kind, offsets) in enumerate(GROUPS.items()):
        hot[kind] = np.zeros(data.shape, bool)
        for (dy, dx), height in zip(((0, 0), *offsets), heights, strict=False):
            places = np.s_[160 * k + 8 + dy : 160 * (k + 1) : 16, 8 + dx :: 16]
            data[places] += height
            hot[kind][places] = True

    found = find(data, fwhm=fwhm)

    for kind, places in hot.items():
        assert found.hot[places].mean() > 0.98, kind
    assert not (found.hot & ~np.any(list(hot.values()), axis=0)).any()
    assert not found.dead.any()


def test_a_bright_square_of_four_is_found():
    data = noise((320, 320), seed=6)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        data[8 + dy :: 16, 8 + dx :: 16] += 300.0

    assert find(data, fwhm=MIDDLE).hot.sum() > 0.98 * 4 * 400


# A narrow star may lie beyond an edge and light one pixel of the frame: there it takes more to tell.
@pytest.mark.parametrize(("fwhm", "height"), [(WIDE, 20.0), (MIDDLE, 30.0), (NARROW, 100.0)])
@pytest.mark.parametrize(
    "turn", [np.array, np.flipud, np.transpose, np.rot90], ids=lambda turn: turn.__name__
)
def test_hot_pixels_on_every_edge_are_found(turn, fwhm, height):
    data = noise((16, 4800), 7)
    data[0, 8::16] += height

    found = find(np.ascontiguousarray(turn(data)), fwhm=fwhm)

    places = turn(np.where(data >= height / 2, True, False))
    assert found.hot[places].mean() > 0.98
    assert not (found.hot & ~places).any()
    assert not found.dead.any()


@pytest.mark.parametrize(("fwhm", "height"), [(WIDE, 30.0), (MIDDLE, 200.0), (NARROW, 600.0)])
def test_hot_pixels_in_every_corner_are_found(fwhm, height):
    count = np.zeros((2, 2))
    for seed in range(12):
        data = noise((16, 16), (seed, 7))
        data[::15, ::15] += height
        found = find(data, fwhm=fwhm)
        count += found.hot[::15, ::15]
        assert found.hot.sum() == found.hot[::15, ::15].sum()
    assert count.min() == 12


@pytest.mark.parametrize("missing", [[(0, 1)], [(-1, 0), (1, 0)], [(-1, 0), (1, 1)]])
def test_hot_pixels_beside_pixels_that_are_not_used_are_found(missing):
    data = noise((320, 320), seed=8)
    data[8::16, 8::16] += 50.0
    for dy, dx in missing:
        data[8 + dy :: 16, 8 + dx :: 16] = np.nan

    found = find(data)

    assert found.hot[8::16, 8::16].mean() > 0.99
    assert found.hot.sum() - found.hot[8::16, 8::16].sum() + found.dead.sum() == 0


@pytest.mark.parametrize("depth", [15.0, 100.0])
def test_dead_pixels_are_below(depth):
    data = noise((320, 320), seed=9) + 200
    data[8::16, 8::16] -= depth

    found = find(data)

    assert found.dead[8::16, 8::16].mean() > 0.99
    assert found.dead.sum() - found.dead[8::16, 8::16].sum() + found.hot.sum() == 0


def test_nan_is_neither_hot_nor_dead():
    data, hot, _ = sprinkled()
    data[hot] = np.nan
    data[50:70, 50:70] = np.nan

    found = find(data)

    assert not (found.hot | found.dead)[np.isnan(data)].any()
    assert np.isfinite(found.surroundings[~np.isnan(data)]).all()


def test_nothing_is_found_where_there_is_nothing():
    for data in (np.full((9, 9), np.nan, np.float32), np.zeros((9, 9), np.float32)):
        found = find(data)
        assert not (found.hot | found.dead).any()


# --- stars -------------------------------------------------------------------------------------

_STEP, _MARGIN, _SIDE = 32, 40, 6


def image_of(band):
    return simulate.psf(band, oversample=3, half_size=_MARGIN)


def star_field(band, peak, rng, photon_noise):
    """Put 36 stars of one peak [sigma] at random phases; image, its error, its light."""
    light = np.zeros((_SIDE * _STEP + 2 * _MARGIN,) * 2)
    for y in range(_SIDE):
        for x in range(_SIDE):
            stamp = image_of(band).stamp(*rng.uniform(-0.5, 0.5, 2), _MARGIN)
            into = np.s_[y * _STEP : y * _STEP + 2 * _MARGIN + 1, x * _STEP : x * _STEP + 2 * _MARGIN + 1]
            light[into] += stamp * (peak / stamp.max())
    err = np.sqrt(1 + photon_noise * light)
    planes = light + err * rng.standard_normal(light.shape), err, light
    return [plane[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN].astype(np.float32) for plane in planes]


@pytest.mark.parametrize("band", STARS)
def test_stars_are_never_taken_for_hot(band):
    """216 stars for each of 13 filters: peaks from below the noise to 5000 times above it."""
    rng = np.random.default_rng(10)
    elsewhere = 0
    for peak, photon_noise in ((3, 0.0), (8, 0.1), (30, 0.0), (300, 0.1), (5000, 0.0), (5000, 0.1)):
        data, err, light = star_field(band, peak, rng, photon_noise)
        found = find(data, err, fwhm=STARS[band])
        bad = found.hot | found.dead
        assert not (bad & (light > 0.1 * peak)).any(), f"peak {peak}"
        elsewhere += bad.sum()
    # Out of 220 000 pixels, most of them on the rings and spikes of some star.
    assert elsewhere < 5


def star_row(band, peak, rng, cut):
    """Put 12 stars in a row; the cut goes through them or beside their middles. Image, error and light."""
    light = np.zeros((81, 12 * _STEP + 49))
    for k in range(12):
        stamp = image_of(band).stamp(*rng.uniform(-0.5, 0.5, 2), _MARGIN)
        light[:, k * _STEP : k * _STEP + 81] += stamp * (peak / stamp.max())
    err = np.sqrt(1 + 0.1 * light)
    data = light + err * rng.standard_normal(light.shape)
    first = _MARGIN + rng.integers(-2, 3)
    if cut == "edge":
        # As high, wherever the edge is.
        data, err, light = (plane[first : first + 38] for plane in (data, err, light))
    elif cut == "bar":
        data[:first] = np.nan
    else:
        data[first] = np.nan
    return data, err, light


@pytest.mark.parametrize("band", ["F560W", "F1130W", "F2550W"])
@pytest.mark.parametrize("cut", ["edge", "bar", "row"])
def test_stars_cut_by_an_edge_or_a_bar_are_not_taken_for_hot(cut, band):
    rng = np.random.default_rng(17)
    for peak in (3.0, 8.0, 30.0, 300.0, 5000.0):
        # Four rows end to end, each cut at a place of its own.
        rows = [star_row(band, peak, rng, cut) for _ in range(4)]
        data, err, light = (
            np.concatenate(planes, axis=1, dtype=np.float32) for planes in zip(*rows, strict=True)
        )
        found = find(data, err, fwhm=STARS[band])
        assert not ((found.hot | found.dead) & (light > 0.1 * peak)).any(), f"peak {peak}"


@pytest.mark.parametrize("band", ["F560W", "F2550W"])
def test_stars_in_a_corner_are_not_taken_for_hot(band):
    rng = np.random.default_rng(18)
    for peak in np.repeat([8.0, 100.0, 5000.0], 8):
        stamp = image_of(band).stamp(*rng.uniform(-0.5, 0.5, 2), _MARGIN)
        y, x = _MARGIN + rng.integers(-2, 3, 2)
        light = stamp[y : y + 20, x : x + 20] * (peak / stamp.max())
        err = np.sqrt(1 + 0.1 * light)
        data = light + err * rng.standard_normal(light.shape)
        found = find(data.astype(np.float32), err.astype(np.float32), fwhm=STARS[band])
        assert not (found.hot | found.dead)[:4, :4].any(), f"peak {peak}"


def test_hot_pixels_beside_stars_are_found():
    """A hot pixel six pixels from a star of 300 sigma is one all the same."""
    rng = np.random.default_rng(11)
    data, err, light = star_field("F770W", 300.0, rng, 0.1)
    places = np.s_[6::_STEP, ::_STEP]
    assert light[places].max() < 10
    data[places] += 60.0

    assert find(data, err).hot[places].mean() > 0.95


def test_the_core_of_the_narrowest_star_survives():
    """A star of F560W in the middle of a pixel is all but a hot pixel."""
    stamp = image_of("F560W").stamp(0.0, 0.0, 15)
    assert np.partition(stamp.ravel(), -2)[-2] < 0.5 * stamp.max()
    stars = np.tile(stamp / stamp.max(), (10, 10)).astype(np.float32)
    for peak in (6.0, 20.0, 100.0, 2000.0):
        found = find(noise(stars.shape, 12) + peak * stars, fwhm=NARROW)
        assert not (found.hot & (stars > 0.1)).any(), f"peak {peak}"


@pytest.mark.parametrize("fwhm", [1.6, 3.0, 7.3])
def test_templates_are_stars(fwhm):
    for reach in (0.5, 1.5):
        templates = hot_pixels.star_templates(fwhm, reach)
        assert templates.shape[1] == 8
        assert np.isfinite(templates).all()
        # Whatever a star can look like, its mirror image is one too.
        mirrored = templates[:, ::-1]
        distance = np.abs(templates[:, None] - mirrored).max(axis=-1)
        assert distance.min(axis=1).max() < 1e-4
    inside = hot_pixels.star_templates(fwhm, 0.5)
    assert len(inside) == 49
    assert inside.max() <= 1 + 1e-5


# --- emission ----------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.3, 3.0, 30.0])
def test_steep_emission_is_not_hot(slope):
    y, x = np.indices((256, 256))
    for surface in (slope * x, slope * (x - y), 100 * slope * np.sin(x / 12) * np.cos(y / 15)):
        found = find(noise((256, 256), 14) + surface.astype(np.float32), fwhm=NARROW)
        assert not (found.hot | found.dead).any()


def test_edges_of_clouds_are_not_hot():
    y, x = np.indices((256, 256))
    for cliff in (x > 128, x + y > 256, x + 3 * y > 500):
        found = find(noise((256, 256), 15) + np.where(cliff, 50, 0).astype(np.float32), fwhm=NARROW)
        assert not (found.hot | found.dead).any()


def test_hot_pixels_on_emission_are_found():
    x = np.indices((256, 256))[1]
    data = noise((256, 256), 16) + (2.0 * x).astype(np.float32)
    data[8::16, 8::16] += 100.0

    assert find(data).hot[8::16, 8::16].mean() > 0.99


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("err", [0.0, np.nan, -1.0, 1e-3])
def test_the_scatter_stands_in_for_errors_that_say_nothing(err):
    data, hot, dead = sprinkled()

    found = find(data, np.full_like(data, err))

    assert found.hot[hot].mean() > 0.99
    assert found.dead[dead].mean() > 0.98
    assert ((found.hot & ~hot) | (found.dead & ~dead)).mean() < 3e-4


def test_a_large_error_keeps_a_pixel():
    data, hot, _ = sprinkled()

    assert find(data, np.where(hot, np.float32(100), np.float32(1))).hot.sum() == 0


def test_a_lone_pixel_on_a_flat_image_without_errors_is_found():
    data = np.zeros((20, 20), np.float32)
    data[7, 8] = 1.0

    found = find(data, np.zeros_like(data))

    assert np.argwhere(found.hot).tolist() == [[7, 8]]
    assert not found.dead.any()


# --- what changes nothing ----------------------------------------------------------------------


@SETTINGS
@given(st.integers(0, 500), st.integers(-1000, 1000))
def test_a_constant_changes_nothing(seed, constant):
    data, _, _ = sprinkled(seed, (40, 40))

    assert_same(find(data + np.float32(constant)), find(data))


@SETTINGS
@given(st.integers(0, 500), st.integers(-60, 60))
def test_the_unit_changes_nothing(seed, power):
    data, _, _ = sprinkled(seed, (40, 40))
    unit = np.float32(2.0**power)

    assert_same(find(data * unit, np.full_like(data, unit)), find(data))


@SETTINGS
@given(st.integers(0, 500))
def test_hot_and_dead_change_places_with_the_sign(seed):
    data, _, _ = sprinkled(seed, (40, 40))

    plain, negative = find(data), find(-data)

    np.testing.assert_array_equal(negative.dead, plain.hot)
    np.testing.assert_array_equal(negative.hot, plain.dead)


@pytest.mark.parametrize("turn", [np.flipud, np.fliplr, np.transpose, np.rot90])
def test_edges_are_alike(turn):
    data, _, _ = sprinkled(20)

    plain, turned = find(data), find(np.ascontiguousarray(turn(data)))

    np.testing.assert_array_equal(turned.hot, turn(plain.hot))
    np.testing.assert_array_equal(turned.dead, turn(plain.dead))


def test_inputs_are_left_alone():
    data, hot, _ = sprinkled()
    data[5, 5] = np.nan
    err = np.ones_like(data)
    kept = data.copy()

    found = find(data, err)

    np.testing.assert_array_equal(data, kept)
    assert (err == 1).all()
    assert found.hot.sum() > 0.9 * hot.sum()
