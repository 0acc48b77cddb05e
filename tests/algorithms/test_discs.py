"""Discs around the pixels of a mask."""

import numpy as np
import pytest
from scipy import ndimage

from miri_steps.algorithms import discs


@pytest.mark.parametrize("radius", [0, 1, 1.5, 4, 300])
def test_grow_adds_a_disc(radius):
    mask = np.zeros((21, 25), bool)
    mask[10, 12] = True
    y, x = np.indices(mask.shape)

    np.testing.assert_array_equal(discs.grow(mask, radius), np.hypot(y - 10, x - 12) <= radius)


def test_grow_at_an_edge_and_of_nothing():
    mask = np.zeros((5, 6), bool)
    assert not discs.grow(mask, 3).any()

    mask[0, 0] = True
    grown = discs.grow(mask, 1)
    assert list(zip(*np.nonzero(grown), strict=True)) == [(0, 0), (0, 1), (1, 0)]
    assert mask.sum() == 1


@pytest.mark.parametrize("radius", [0.5, 2.0, 7.3, 40.0, 260.0])
def test_grow_is_what_the_distance_to_the_mask_says(radius):
    mask = np.random.default_rng(3).random((90, 300)) < 1e-3
    expected = ndimage.distance_transform_edt(~mask) <= radius
    np.testing.assert_array_equal(discs.grow(mask, radius), expected)
