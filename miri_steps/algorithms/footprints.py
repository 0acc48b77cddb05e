"""Which rectangles of a grid touch, and which lie near each other."""

from collections.abc import Iterator

import numpy as np

__all__ = ["compact_groups", "touching"]


def touching(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Find all pairs of rectangles that share a cell of their grid.

    Think of a city map: who wants to know whose gardens meet looks at each square of the map by
    itself and never compares houses of different ends of the town. Squares are as large as most
    rectangles, so that the work grows with the number of rectangles and of pairs.

    Parameters
    ----------
    low : ndarray
        First column and row of each rectangle, integers, shape (n, 2).
    high : ndarray
        Column and row behind its last ones, shape (n, 2).

    Returns
    -------
    first, second : ndarray
        Indices of each pair, first < second, in the order of first and second, shape (p,).
    """
    found = [np.zeros((0, 2), int)]
    if len(low):
        side = np.maximum(np.median(high - low, axis=0).astype(int), 1)
        for square, inside in _squares(low // side, (high - 1) // side):
            found.append(_pairs_in(low, high, inside, square * side, side))
    pairs = np.concatenate(found)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    return pairs[:, 0], pairs[:, 1]


def _squares(first: np.ndarray, last: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Go through the squares (column, row) of the map, each with the rectangles that reach into it."""
    across = last - first + 1
    count = across.prod(axis=1)
    rectangle = np.repeat(np.arange(len(first)), count)
    step = np.arange(len(rectangle)) - np.repeat(np.cumsum(count) - count, count)
    width = across[rectangle, 0]
    square = first[rectangle] + np.stack([step % width, step // width], axis=1)
    order = np.lexsort((square[:, 1], square[:, 0]))
    square, rectangle = square[order], rectangle[order]
    ends = np.flatnonzero(np.any(np.diff(square, axis=0), axis=1)) + 1
    for inside in np.split(np.arange(len(order)), ends):
        if len(inside) > 1:
            yield square[inside[0]], np.sort(rectangle[inside])


def _pairs_in(low, high, inside, corner, side):
    """Pairs whose shared rectangle begins in a square: each pair is found in one square only."""
    begin = np.maximum(low[inside, np.newaxis], low[inside])
    end = np.minimum(high[inside, np.newaxis], high[inside])
    here = np.all((begin < end) & (begin >= corner) & (begin < corner + side), axis=-1)
    return inside[np.argwhere(np.triu(here, 1))]


def compact_groups(low: np.ndarray, high: np.ndarray, *, largest: int) -> np.ndarray:
    """
    Divide rectangles into groups of neighbours.

    The field is cut in halves of as many rectangles each, across its longer side, again and again.

    Parameters
    ----------
    low, high : ndarray
        The rectangles, as in `touching`, shape (n, 2).
    largest : int
        Most members of a group.

    Returns
    -------
    ndarray
        Number of each rectangle's group, shape (n,); groups that follow each other lie near each other.
    """
    middle = low + high
    group, number = np.zeros(len(low), int), 0
    waiting = [np.arange(len(low))]
    while waiting:
        members = waiting.pop()
        if len(members) <= largest:
            group[members] = number
            number += 1
            continue
        axis = np.argmax(np.ptp(middle[members], axis=0))
        members = members[np.argsort(middle[members, axis], kind="stable")]
        waiting += [members[len(members) // 2 :], members[: len(members) // 2]]
    return group
