"""What surrounds a pixel, against windows cut out one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from miri_steps.algorithms import neighbours

SETTINGS = settings(deadline=None, derandomize=True, max_examples=60)
WINDOWS = pytest.mark.parametrize("window", [3, 5, 7])
VALUES = st.one_of(st.just(np.nan), st.floats(-1e6, 1e6, width=32))


def cut(data, y, x, window):
    """Take the values around one pixel that are inside the image and are numbers."""
    half = window // 2
    box = data[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1].astype(float).copy()
    box[min(y, half), min(x, half)] = np.nan
    return box[~np.isnan(box)]


def median_of(values):
    return np.median(values) if len(values) else np.nan


def patchy(shape, seed=0, empty=0.2):
    rng = np.random.default_rng(seed)
    data = rng.normal(100, 10, shape).astype(np.float32)
    data[rng.random(shape) < empty] = np.nan
    return data


@WINDOWS
def test_gather_takes_all_but_the_pixel_itself_row_by_row(window):
    data = np.arange(180.0).reshape(12, 15)
    y, x = np.array([6, 5]), np.array([7, 4])

    around = neighbours.gather(data, y, x, window)

    half = window // 2
    for k in range(2):
        box = data[y[k] - half : y[k] + half + 1, x[k] - half : x[k] + half + 1].ravel()
        np.testing.assert_array_equal(around[k], np.delete(box, window**2 // 2))


@WINDOWS
def test_gather_finds_nothing_beyond_the_edges(window):
    data = patchy((9, 10), empty=0.1)
    y, x = (v.ravel() for v in np.indices(data.shape))

    around = neighbours.gather(data, y, x, window)

    assert around.shape == (90, window**2 - 1)
    assert around.dtype == data.dtype
    for k in range(90):
        found = around[k][~np.isnan(around[k])]
        np.testing.assert_array_equal(found, cut(data, y[k], x[k], window).astype(np.float32))


def test_gather_of_no_pixels_is_empty():
    none = np.zeros(0, int)

    assert neighbours.gather(np.ones((4, 4)), none, none, 3).shape == (0, 8)
    assert neighbours.median(np.zeros((0, 8))).shape == (0,)


@SETTINGS
@given(arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=VALUES))
def test_median_leaves_nan_out(values):
    kept = values.copy()

    found = neighbours.median(values)

    expected = [median_of(row[~np.isnan(row)].astype(float)) for row in values]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(values, kept)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([5.0], 5.0),
        ([np.nan], np.nan),
        ([np.nan, 7.0, np.nan], 7.0),
        ([4.0, 1.0], 2.5),
        ([np.nan, 1.0, 9.0, 4.0], 4.0),
        ([3.0, 2.0, 1.0, 10.0], 2.5),
        ([np.nan] * 8, np.nan),
    ],
)
def test_median_of_odd_even_one_and_none(row, expected):
    np.testing.assert_array_equal(neighbours.median(np.array([row])), [expected])


@WINDOWS
@pytest.mark.parametrize("shape", [(20, 23), (1, 40), (40, 1), (2, 2)])
def test_surroundings_are_the_median_of_each_window(window, shape):
    data = patchy(shape)
    kept = data.copy()

    found = neighbours.surroundings(data, window)

    expected = [[median_of(cut(data, y, x, window)) for x in range(shape[1])] for y in range(shape[0])]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == data.dtype
    np.testing.assert_array_equal(data, kept)


@SETTINGS
@given(
    arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=VALUES),
    st.sampled_from([3, 5]),
)
def test_surroundings_of_anything(data, window):
    found = neighbours.surroundings(data, window)

    for (y, x), value in np.ndenumerate(found):
        np.testing.assert_allclose(value, median_of(cut(data, y, x, window)), rtol=1e-6, atol=1e-6)


def test_the_pixel_itself_does_not_count():
    data = patchy((11, 11))
    other = data.copy()
    other[5, 5] = 1e6

    found, now = neighbours.surroundings(data, 5), neighbours.surroundings(other, 5)

    assert found[5, 5] == now[5, 5]


def test_blocks_leave_no_seams(monkeypatch):
    data = patchy((60, 40))
    whole = neighbours.surroundings(data, 5)

    for block in (1, 40 * 24 * 7, 40 * 24 * 59):
        monkeypatch.setattr(neighbours, "_BLOCK", block)
        np.testing.assert_array_equal(neighbours.surroundings(data, 5), whole)


@pytest.mark.parametrize("turn", [np.flipud, np.fliplr, np.transpose, np.rot90])
def test_all_edges_are_alike(turn):
    data = patchy((13, 17))

    found = neighbours.surroundings(np.ascontiguousarray(turn(data)), 5)

    np.testing.assert_array_equal(found, turn(neighbours.surroundings(data, 5)))


def test_an_empty_window_gives_nan():
    data = np.full((20, 20), np.nan)
    data[:, 15:] = 3.0

    found = neighbours.surroundings(data, 5)

    assert np.isnan(found[:, :13]).all()
    np.testing.assert_array_equal(found[:, 13:], 3.0)
