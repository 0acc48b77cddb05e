"""Images of known shape get holes; what is filled in must be the shape again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from miri_steps.algorithms import smooth_fill

SETTINGS = settings(deadline=None, derandomize=True, max_examples=60)
SHAPE = (500, 516)
Y, X = np.indices(SHAPE)
PLANE = 100 + 0.01 * X - 0.02 * Y
DOME = 5 * np.exp(-((Y - 250) ** 2 + (X - 230) ** 2) / (2 * 200.0**2))
NOISE = 0.3


def disk(y, x, radius):
    return (Y - y) ** 2 + (X - x) ** 2 < radius**2


def stars():
    rng = np.random.default_rng(1)
    found = np.zeros(SHAPE, bool)
    for _ in range(120):
        found |= disk(rng.uniform(0, SHAPE[0]), rng.uniform(0, SHAPE[1]), rng.uniform(1, 10))
    return found


HOLES = {
    "stars": stars(),
    "middle": disk(250, 260, 100),
    "edge": (X < 120) & (np.abs(Y - 250) < 60),
    "corner": (X > 400) & (Y > 400),
    "half": X > 258,
    "frame": (X < 3) | (Y < 3) | (X > 510) | (Y > 495),
}


def noisy(truth, seed=2):
    return (truth + np.random.default_rng(seed).normal(0, NOISE, truth.shape)).astype(np.float32)


def filled(image, hole, **options):
    """Fill holes that hold something misleading; the result there."""
    spoilt = np.where(hole, 1e5, image).astype(image.dtype)
    return smooth_fill.fill(spoilt, ~hole, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("hole", HOLES)
def test_a_constant_is_exact(hole, dtype):
    image = np.full(SHAPE, 0.1, dtype)

    found = filled(image, HOLES[hole])

    np.testing.assert_array_equal(found.value, image)
    np.testing.assert_array_equal(found.scatter, 0)
    assert found.value.dtype == found.scatter.dtype == dtype


@pytest.mark.parametrize("hole", HOLES)
def test_a_plane_is_exact_to_rounding(hole):
    found = filled(PLANE, HOLES[hole])

    np.testing.assert_allclose(found.value, PLANE, atol=1e-9)
    np.testing.assert_allclose(found.scatter, 0, atol=1e-9)


@pytest.mark.parametrize("hole", HOLES)
def test_known_pixels_stay_as_they_are_and_so_do_inputs(hole):
    image, known = noisy(PLANE), ~HOLES[hole]
    image[~known] = np.nan
    before = image.copy(), known.copy()

    found = smooth_fill.fill(image, known)

    np.testing.assert_array_equal(found.value[known], image[known])
    assert np.isfinite(found.value).all()
    assert (found.scatter[known] == 0).all()
    assert (found.scatter[~known] > 0).all()
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(known, before[1])


# The dome is 5 high, and a soap film over the middle lies 100**2 / 4 * 2 * 5 / 200**2 or 0.63 below it.
@pytest.mark.parametrize(
    ("hole", "largest"), [("stars", 0.05), ("middle", 0.65), ("edge", 0.5), ("corner", 1.2)]
)
def test_a_dome_is_followed_into_holes(hole, largest):
    truth = PLANE + DOME

    error = (filled(truth, HOLES[hole]).value - truth)[HOLES[hole]]

    assert np.abs(error).max() < largest


@pytest.mark.parametrize("hole", HOLES)
def test_noise_of_the_filling_is_far_below_that_of_a_pixel(hole):
    error = (filled(noisy(PLANE), HOLES[hole]).value - PLANE)[HOLES[hole]]

    assert abs(error.mean()) < 0.1 * NOISE
    assert np.sqrt(np.mean(error**2)) < 0.3 * NOISE
    assert np.abs(error).max() < NOISE


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("hole", "share"), [("stars", 0.4), ("middle", 0.45), ("edge", 0.45)])
def test_stripes_go_on_through_holes(hole, share, axis):
    """Of white stripes what a Gaussian of 4 pixels keeps, 7 % of the variance, is not carried on."""
    levels = np.random.default_rng(7).standard_normal(PLANE.shape[1 - axis])
    stripes = PLANE + 3 * (levels[np.newaxis, :] if axis == 0 else levels[:, np.newaxis])

    error = (filled(stripes, HOLES[hole]).value - stripes)[HOLES[hole]]

    assert np.sqrt(np.mean(error**2)) < share * 3


@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("hole", ["stars", "middle", "edge"])
def test_scatter_is_the_noise(hole, scale):
    scatter = filled(noisy(PLANE + DOME), HOLES[hole], scale=scale).scatter[HOLES[hole]]

    assert np.mean(scatter) == pytest.approx(NOISE, rel=0.05 if scale == 1 else 0.03)
    # Of some 16 pi scale**2 pixels.
    assert np.std(scatter) < NOISE / scale * 0.15


def test_scatter_is_that_of_the_surroundings():
    noise = np.where(X < 258, 0.1, 1.0)
    image = 50 + noise * np.random.default_rng(3).standard_normal(SHAPE)
    left, right = disk(250, 100, 20), disk(250, 400, 20)

    scatter = filled(image, left | right).scatter

    assert scatter[left].mean() == pytest.approx(0.1, rel=0.1)
    assert scatter[right].mean() == pytest.approx(1.0, rel=0.1)


def test_the_rim_of_a_hole_fits():
    truth = PLANE + DOME + 3 * np.sin(X / 30) * np.cos(Y / 40)
    hole = disk(250, 260, 80)
    image = truth.copy()

    found = filled(image, hole).value

    rim = hole & ~disk(250, 260, 77)
    assert np.abs(found - truth)[rim].max() < 0.5
    # No seams: neighbours differ by no more than in the truth.
    steps = [np.abs(np.diff(plane, axis=axis)).max() for plane in (found, truth) for axis in (0, 1)]
    assert max(steps[:2]) < 3 * max(steps[2:])


def test_a_slope_is_not_read_from_a_narrow_strip():
    known = np.zeros(SHAPE, bool)
    known[200:300, :8] = True

    found = smooth_fill.fill(noisy(np.full(SHAPE, 7.0)), known)

    assert np.abs(found.value - 7)[~known].max() < NOISE


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (7, 5), (64, 64), (33, 200)])
def test_any_shape(shape):
    image = noisy(np.full(shape, 20.0))
    known = np.ones(shape, bool)
    known[-1, -1] = shape == (1, 1)

    found = smooth_fill.fill(image, known)

    assert found.value.shape == found.scatter.shape == shape
    assert abs(found.value[-1, -1] - 20) < 3 * NOISE


def test_one_known_pixel_is_what_there_is():
    known = np.zeros((60, 80), bool)
    known[50, 3] = True

    found = smooth_fill.fill(np.where(known, 5.5, np.nan), known)

    np.testing.assert_allclose(found.value, 5.5)
    np.testing.assert_array_equal(found.scatter, 0)


def test_nothing_known_stays_nan():
    found = smooth_fill.fill(np.ones((20, 30), np.float32), np.zeros((20, 30), bool))

    assert np.isnan(found.value).all()
    assert np.isnan(found.scatter).all()


def test_all_known_stays():
    image = noisy(PLANE)

    found = smooth_fill.fill(image, np.ones(SHAPE, bool))

    np.testing.assert_array_equal(found.value, image)
    assert not found.scatter.any()
    assert found.value is not image


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_known(value):
    image = noisy(PLANE)
    image[40:50, 40:50] = value

    found = smooth_fill.fill(image, np.ones(SHAPE, bool))

    np.testing.assert_allclose(found.value[40:50, 40:50], PLANE[40:50, 40:50], atol=NOISE)


images = hnp.arrays(np.float64, (9, 14), elements=st.floats(-100, 100))
masks = hnp.arrays(bool, (9, 14))


@SETTINGS
@given(images, masks, st.floats(-1000, 1000), st.floats(0.01, 100))
def test_shift_and_factor_go_through(image, known, shift, factor):
    found = smooth_fill.fill(image, known)

    moved = smooth_fill.fill(image * factor + shift, known)

    np.testing.assert_allclose(moved.value, found.value * factor + shift, atol=1e-7 * (factor + 1))
    np.testing.assert_allclose(moved.scatter, found.scatter * factor, atol=1e-5 * (factor + 1))


@SETTINGS
@given(images, masks, st.floats(-1e6, 1e6) | st.just(np.nan))
def test_what_is_not_known_is_not_looked_at(image, known, value):
    found = smooth_fill.fill(image, known)

    other = smooth_fill.fill(np.where(known, image, value), known)

    np.testing.assert_array_equal(other.value, found.value)
    np.testing.assert_array_equal(other.scatter, found.scatter)


@pytest.mark.parametrize("turn", [np.flipud, np.fliplr, np.transpose, np.rot90])
def test_all_edges_are_alike(turn):
    # A size that is halved without rest: bins count from the first pixel.
    image, hole = noisy(PLANE + DOME)[:256, :256], (stars() | HOLES["edge"])[:256, :256]

    found = filled(image, hole).value

    turned = filled(np.ascontiguousarray(turn(image)), turn(hole)).value
    np.testing.assert_allclose(turned, turn(found), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": np.ones(5)}, r"image must have the shape \(ny, nx\), got \(5,\)"),
        ({"known": np.ones((4, 5), bool)}, r"known must have the shape of the image \(4, 4\), got \(4, 5\)"),
        ({"scale": 0.5}, r"scale must be at least 1 pixel, got 0\.5"),
        ({"scale": np.nan}, "scale must be at least 1 pixel, got nan"),
    ],
)
def test_wrong_input_is_named(change, words):
    given = {"image": np.ones((4, 4)), "known": np.ones((4, 4), bool)} | change

    with pytest.raises(ValueError, match=words):
        smooth_fill.fill(**given)
