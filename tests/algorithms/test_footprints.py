"""Neighbours are found without looking at everyone, and none is missed."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miri_steps.algorithms import footprints

SETTINGS = settings(deadline=None, derandomize=True, max_examples=80)
# Corner and sides of a rectangle: subarrays among full frames, on both sides of the grid's origin.
RECTANGLES = st.lists(
    st.tuples(
        st.integers(-60, 60),
        st.integers(-60, 60),
        st.sampled_from([1, 7, 8, 40]),
        st.sampled_from([1, 8, 33]),
    ),
    max_size=40,
)


def as_arrays(rectangles):
    low, side = np.array(rectangles, int).reshape(-1, 2, 2).swapaxes(0, 1)
    return low, low + side


def brute_force(low, high):
    """All pairs that share a cell, one by one."""
    return [
        (i, j)
        for i, j in combinations(range(len(low)), 2)
        if np.all(np.maximum(low[i], low[j]) < np.minimum(high[i], high[j]))
    ]


def found(low, high):
    return [pair for pair in zip(*(ends.tolist() for ends in footprints.touching(low, high)), strict=True)]


@SETTINGS
@given(rectangles=RECTANGLES)
def test_pairs_are_those_of_brute_force(rectangles):
    low, high = as_arrays(rectangles)
    assert found(low, high) == brute_force(low, high)


@pytest.mark.parametrize("n", [0, 1])
def test_it_takes_two_to_touch(n):
    low = np.zeros((n, 2), int)
    assert found(low, low + 5) == []
    np.testing.assert_array_equal(footprints.compact_groups(low, low + 5, largest=4), np.zeros(n))


def test_a_pile_is_all_pairs():
    low = np.zeros((30, 2), int)
    assert found(low, low + 3) == list(combinations(range(30), 2))


@pytest.mark.parametrize("n", [1000, 4000])
def test_only_neighbours_are_compared(n, monkeypatch):
    """Comparisons per exposure of a field of given depth are as many in a large field as in a small one."""
    side = 100
    rng = np.random.default_rng(1)
    low = rng.integers(0, int(side * np.sqrt(n / 5)), (n, 2))
    compared, pairs_in = [], footprints._pairs_in

    def counted(low, high, inside, *square):
        compared.append(len(inside) ** 2)
        return pairs_in(low, high, inside, *square)

    monkeypatch.setattr(footprints, "_pairs_in", counted)
    first, _ = footprints.touching(low, low + side)
    # Each of 5 deep meets 20 others; four squares hold each, with 20 in each of them.
    assert 8 < len(first) / n < 11
    assert sum(compared) / n < 110


@SETTINGS
@given(rectangles=RECTANGLES, largest=st.integers(1, 9))
def test_groups_hold_everyone_and_are_no_larger_than_asked(rectangles, largest):
    low, high = as_arrays(rectangles)
    group = footprints.compact_groups(low, high, largest=largest)
    count = np.bincount(group)
    assert len(group) == len(low)
    assert np.all((count > 0) & (count <= largest))
    # None is divided that need not be.
    assert np.all(count > largest // 2) or len(low) <= largest


def test_groups_are_compact():
    """Groups of 16 of a square of 64 x 64 exposures lie within a few steps of each other."""
    low = np.stack(np.meshgrid(np.arange(64), np.arange(64)), axis=-1).reshape(-1, 2)
    low = low[np.random.default_rng(2).permutation(len(low))]
    group = footprints.compact_groups(low, low + 1, largest=16)
    for number in range(group.max() + 1):
        np.testing.assert_array_equal(np.ptp(low[group == number], axis=0), [3, 3])
    following = [np.abs(low[group == k].mean(0) - low[group == k + 1].mean(0)).max() for k in range(255)]
    assert np.median(following) == 4
