"""Pixels filled from their neighbours: the estimate, its error, and what is never filled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from miri_steps.algorithms import pixel_repair

SETTINGS = settings(deadline=None, derandomize=True, max_examples=60)
MASKS = arrays(bool, st.tuples(st.integers(1, 10), st.integers(1, 10)))


def draw(*rows):
    """Make a mask of a picture: # is True."""
    return np.array([[character == "#" for character in row] for row in rows])


# --- clusters ----------------------------------------------------------------------------------


def test_pixels_that_touch_at_corners_are_one_cluster():
    bad = draw("#....#", ".#....", "..#..#", "......", "##....", "##....")

    np.testing.assert_array_equal(
        pixel_repair.small_clusters(bad, 3), draw("#....#", ".#....", "..#..#", "......", "......", "......")
    )
    np.testing.assert_array_equal(
        pixel_repair.small_clusters(bad, 1), draw(".....#", "......", ".....#", "......", "......", "......")
    )
    np.testing.assert_array_equal(pixel_repair.small_clusters(bad, 4), bad)


@SETTINGS
@given(MASKS, st.integers(1, 12))
def test_a_cluster_stays_whole_or_goes_whole(bad, most):
    kept = pixel_repair.small_clusters(bad, most)

    label, number = ndimage.label(bad, np.ones((3, 3)))
    for k in range(1, number + 1):
        inside = label == k
        assert kept[inside].all() == (inside.sum() <= most)
        assert kept[inside].any() == (inside.sum() <= most)
    assert not kept[~bad].any()


@pytest.mark.parametrize("bad", [np.zeros((5, 5), bool), np.ones((5, 5), bool)])
def test_all_or_nothing_bad(bad):
    assert not pixel_repair.small_clusters(bad, 24).any()


# --- holes -------------------------------------------------------------------------------------


def test_holes_are_filled_and_chains_to_the_outside_are_not():
    field = draw("........", ".######.", ".######.", ".######.", ".######.", "........")
    unusable = draw("####....", "##......", "..#...#.", "....#...", "....#...", "########")

    found = pixel_repair.holes(unusable, field)

    # (1, 1) and (2, 2) hang on the upper edge by a corner, (2, 6) and (4, 4) touch the outside.
    assert not found.any()

    unusable[:2, :2], unusable[4, 4], unusable[2, 6] = False, False, False
    expected = np.zeros_like(field)
    expected[2, 2] = expected[3, 4] = True
    np.testing.assert_array_equal(pixel_repair.holes(unusable, field), expected)


def test_the_edge_of_the_array_is_inside_the_field():
    """The frame of a subarray ends, the field of the imager goes on."""
    unusable = draw("#..#", "....", "#...", "...#")

    found = pixel_repair.holes(unusable, np.ones((4, 4), bool))

    np.testing.assert_array_equal(found, unusable)


def test_one_chain_is_outside_along_all_its_length():
    field = np.ones((9, 12), bool)
    field[:, 0] = False
    unusable = np.zeros((9, 12), bool)
    unusable[np.arange(1, 8), np.arange(1, 8)] = True
    assert not pixel_repair.holes(unusable, field).any()

    unusable[1, 1] = False
    np.testing.assert_array_equal(pixel_repair.holes(unusable, field), unusable)


def test_usable_pixels_outside_the_field_join_nothing_to_it():
    field = draw("..###", "..###", "..###")
    unusable = draw(".....", "..#..", ".....")

    assert not pixel_repair.holes(unusable, field).any()


@SETTINGS
@given(MASKS, st.integers(0, 100))
def test_holes_touch_nothing_outside(unusable, seed):
    field = np.random.default_rng(seed).random(unusable.shape) < 0.9

    found = pixel_repair.holes(unusable, field)

    assert not (found & ~(unusable & field)).any()
    grown = ndimage.binary_dilation(found, np.ones((3, 3)))
    assert not (grown & ~field).any()
    # What a hole touches is a hole, or usable.
    assert not (grown & unusable & ~found).any()


# --- filling -----------------------------------------------------------------------------------


def fill(data, bad, *, err=None, variances=(), good=None, window=5, min_good=1):
    err = np.ones_like(data) if err is None else err
    good = ~bad & np.isfinite(data) if good is None else good
    return pixel_repair.fill(data, err, variances, bad, good, window=window, min_good=min_good)


def noisy(shape=(40, 50), seed=1, fraction=0.05):
    rng = np.random.default_rng(seed)
    return rng.normal(10, 1, shape).astype(np.float32), rng.random(shape) < fraction


@pytest.mark.parametrize("window", [3, 5, 7])
def test_the_value_is_the_median_of_the_good_neighbours(window):
    data, bad = noisy()
    data[bad] += 1e6

    found = fill(data, bad, window=window)

    half = window // 2
    np.testing.assert_array_equal(np.stack([found.y, found.x]), np.nonzero(bad))
    clean = np.where(bad, np.nan, data)
    for y, x, value in zip(found.y, found.x, found.data, strict=True):
        box = clean[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
        assert value == pytest.approx(np.nanmedian(box), rel=1e-6)


def test_filled_pixels_are_not_read():
    """A chain of bad pixels: each estimate comes from good ones alone, as if filled by itself."""
    data, _ = noisy()
    bad = np.zeros(data.shape, bool)
    bad[20, 5:45] = True
    data[bad] = 1e9
    together = fill(data, bad)

    for k in range(40):
        only = np.zeros_like(bad)
        only[20, 5 + k] = True
        alone = fill(data, only, good=~bad)
        assert alone.data == together.data[k]
        assert alone.err == together.err[k]


def test_what_bad_pixels_hold_does_not_matter():
    data, bad = noisy()
    err, variances = np.ones_like(data), [np.ones_like(data)]
    expected = fill(data, bad, err=err, variances=variances)

    for value in (np.nan, np.inf, -1e30):
        planes = [np.where(bad, np.float32(value), plane) for plane in (data, err, *variances)]
        found = fill(planes[0], bad, err=planes[1], variances=planes[2:], good=~bad)
        np.testing.assert_array_equal(found.data, expected.data)
        np.testing.assert_array_equal(found.err, expected.err)
        np.testing.assert_array_equal(found.variances[0], expected.variances[0])


@pytest.mark.parametrize("min_good", [1, 5, 8, 24])
def test_too_few_good_neighbours_leave_a_pixel(min_good):
    data, bad = noisy(fraction=0.5)

    found = fill(data, bad, min_good=min_good)

    count = np.rint(ndimage.convolve((~bad).astype(float), np.ones((5, 5)), mode="constant"))
    np.testing.assert_array_equal(np.stack([found.y, found.x]), np.nonzero(bad & (count >= min_good)))
    assert (min_good == 1) == (len(found.y) == bad.sum())


def test_nothing_to_fill():
    data, bad = noisy(fraction=0.0)

    found = fill(data, bad, variances=[data])

    assert len(found.y) == len(found.x) == len(found.data) == len(found.err) == len(found.variances[0]) == 0


def test_no_good_pixel_at_all():
    data, bad = noisy()

    assert len(fill(data, bad, good=np.zeros_like(bad)).y) == 0


def test_inputs_are_left_alone():
    data, bad = noisy()
    planes = [data, np.ones_like(data), data**2, bad, ~bad]
    kept = [plane.copy() for plane in planes]

    pixel_repair.fill(data, planes[1], [planes[2]], bad, planes[4], window=5, min_good=1)

    for plane, before in zip(planes, kept, strict=True):
        np.testing.assert_array_equal(plane, before)


@pytest.mark.parametrize("window", [3, 5, 7])
def test_the_error_is_what_a_measurement_scatters_by_around_the_estimate(window):
    """Every tenth pixel of a noisy image is estimated, and was measured too."""
    rng = np.random.default_rng(3)
    truth = rng.normal(0, 2.0, (1500, 1500)).astype(np.float32)
    bad = np.zeros(truth.shape, bool)
    bad[8:-8:10, 8:-8:10] = True

    found = fill(truth, bad, err=np.full_like(truth, 2.0), window=window)

    scatter = np.std(truth[found.y, found.x] - found.data)
    # The typical error: the neighbours that happen to scatter more raise some.
    assert np.median(found.err) == pytest.approx(scatter, rel=0.03)
    quiet = np.min(found.err)
    assert quiet == pytest.approx(2.0 * np.sqrt(1 + np.pi / 2 / (window**2 - 1)), rel=1e-5)


def test_the_error_grows_where_neighbours_scatter_more_than_their_errors():
    rng = np.random.default_rng(4)
    truth = rng.normal(0, 6.0, (1500, 1500)).astype(np.float32)
    bad = np.zeros(truth.shape, bool)
    bad[8:-8:10, 8:-8:10] = True

    found = fill(truth, bad, err=np.full_like(truth, 2.0), window=7)

    scatter = np.std(truth[found.y, found.x] - found.data)
    assert np.median(found.err) == pytest.approx(scatter, rel=0.05)


def test_parts_of_the_variance_grow_alike():
    data, bad = noisy()
    parts = [np.full_like(data, 0.75), np.full_like(data, 0.25), np.zeros_like(data)]

    found = fill(data, bad, variances=parts)

    np.testing.assert_allclose(found.err**2, sum(found.variances), rtol=1e-5)
    np.testing.assert_allclose(found.variances[0], 3 * found.variances[1], rtol=1e-5)
    assert not found.variances[2].any()


@pytest.mark.parametrize("err", [0.0, np.nan])
def test_without_errors_the_scatter_of_the_neighbours_stands_in(err):
    data, bad = noisy()

    found = fill(data, bad, err=np.full_like(data, err), variances=[np.ones_like(data)], min_good=8)

    np.testing.assert_array_equal(found.data, fill(data, bad, min_good=8).data)
    assert np.median(found.err) == pytest.approx(1.0, abs=0.15)
    assert np.isfinite(found.variances[0]).all()


@SETTINGS
@given(st.floats(-1e3, 1e3, width=32), st.integers(0, 1000))
def test_a_constant_is_added_to_the_estimate_and_changes_nothing_else(constant, seed):
    data, bad = noisy((12, 12), seed, fraction=0.2)

    plain, raised = fill(data, bad), fill(data + np.float32(constant), bad)

    np.testing.assert_allclose(raised.data - np.float32(constant), plain.data, atol=5e-4)
    np.testing.assert_allclose(raised.err, plain.err, rtol=2e-3)


@pytest.mark.parametrize("turn", [np.flipud, np.fliplr, np.transpose])
def test_edges_are_as_the_middle(turn):
    data, bad = noisy(fraction=0.2)
    turned, mirror = (np.ascontiguousarray(turn(plane)) for plane in (data, bad))

    images = []
    for image, mask in ((data, bad), (turned, mirror)):
        found = fill(image, mask)
        images.append(image.copy())
        images[-1][found.y, found.x] = found.data

    np.testing.assert_array_equal(images[1], turn(images[0]))
