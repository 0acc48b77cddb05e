"""Stacks of images: the same in memory and in a file."""

import numpy as np
import pytest

from miri_steps.steps.image_stack import ImageStack


@pytest.fixture(params=["memory", "file"])
def path(request, tmp_path):
    return tmp_path / "stack" if request.param == "file" else None


@pytest.fixture
def stack(path):
    made = ImageStack(3, (5, 4), np.float32, path)
    yield made
    made.close()


@pytest.mark.parametrize("dtype", [np.float32, bool, np.uint16])
def test_images_and_rows_come_back_as_they_were_written(dtype, path):
    stack = ImageStack(3, (5, 4), dtype, path)
    cube = np.random.default_rng(0).integers(0, 2, (3, 5, 4)).astype(dtype)
    for k in (2, 0, 1):
        stack.write(k, cube[k])

    for k in range(3):
        assert stack.image(k).dtype == dtype
        np.testing.assert_array_equal(stack.image(k), cube[k])
    for rows in (slice(0, 5), slice(1, 3), slice(4, 5), slice(2, 2)):
        assert stack.rows(rows).dtype == dtype
        np.testing.assert_array_equal(stack.rows(rows), cube[:, rows])
    stack.close()


def test_rows_may_be_written_by_themselves(stack):
    cube = np.random.default_rng(1).normal(size=(3, 5, 4)).astype(np.float32)
    for rows in (slice(3, 5), slice(0, 3)):
        for k in range(3):
            stack.write_rows(k, rows, cube[k, rows])

    np.testing.assert_array_equal(stack.rows(slice(0, 5)), cube)


def test_what_was_not_written_is_zero(stack):
    stack.write(1, np.ones((5, 4)))

    np.testing.assert_array_equal(stack.rows(slice(0, 5)).sum(axis=(1, 2)), [0, 20, 0])


def test_values_are_converted_and_nan_stays(stack):
    """Also of an array that is not contiguous."""
    image = np.arange(40, dtype=float).reshape(4, 10).T[::2]
    image[2, 2] = np.nan

    stack.write(0, image)

    np.testing.assert_array_equal(stack.image(0), image.astype(np.float32))


def test_what_was_read_may_be_changed(stack):
    stack.write(0, np.ones((5, 4)))
    stack.image(0)[:] = 7
    stack.rows(slice(0, 5))[:] = 7

    np.testing.assert_array_equal(stack.image(0), 1)


def test_a_file_that_is_there_is_made_anew(tmp_path):
    path = tmp_path / "stack"
    path.write_bytes(b"\xff" * 1000)
    stack = ImageStack(2, (5, 4), np.float32, path)

    np.testing.assert_array_equal(stack.rows(slice(0, 5)), 0)
    assert path.stat().st_size == 2 * 5 * 4 * 4
    stack.close()
    stack.close()
