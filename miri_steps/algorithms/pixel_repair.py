"""Repair single pixels from their neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from miri_steps.algorithms import neighbours

__all__ = ["Filling", "fill", "holes", "small_clusters"]

_TOUCHING = np.ones((3, 3), bool)
# Variance of a median in units of that of the mean, for many values.
_MEDIAN_VARIANCE = np.pi / 2


def small_clusters(bad: np.ndarray, most: int) -> np.ndarray:
    """
    Keep the pixels whose cluster is small.

    Parameters
    ----------
    bad : ndarray
        Mask, shape (ny, nx). Pixels that touch, corners included, are a cluster.
    most : int
        Largest size of a cluster [pixel].

    Returns
    -------
    ndarray
        The mask without the large clusters.
    """
    label, _ = ndimage.label(bad, _TOUCHING)
    return bad & (np.bincount(label.ravel()) <= most)[label]


def holes(unusable: np.ndarray, field: np.ndarray) -> np.ndarray:
    """
    Find the unusable pixels that lie inside a field.

    Parameters
    ----------
    unusable : ndarray
        Mask, shape (ny, nx).
    field : ndarray
        True inside the field, same shape.

    Returns
    -------
    ndarray
        True on unusable pixels of the field from which no chain of such pixels leads out of it.
    """
    label, _ = ndimage.label(unusable | ~field, _TOUCHING)
    outside = np.unique(label[~field])
    return unusable & field & ~np.isin(label, outside)


@dataclass(frozen=True)
class Filling:
    """
    Estimates of pixels.

    Parameters
    ----------
    y, x : ndarray
        Rows and columns of the pixels that could be filled, shape (n,).
    data, err : ndarray
        Their values and standard deviations, shape (n,).
    variances : list of ndarray
        Their variances in the order of those given, shapes (n,).
    """

    y: np.ndarray
    x: np.ndarray
    data: np.ndarray
    err: np.ndarray
    variances: list[np.ndarray]


def fill(
    data: np.ndarray,
    err: np.ndarray,
    variances: Sequence[np.ndarray],
    bad: np.ndarray,
    good: np.ndarray,
    *,
    window: int,
    min_good: int,
) -> Filling:
    """
    Estimate pixels from the good pixels around them.

    The value is the median of the good neighbours as they were before anything was filled. The
    variances are the median of theirs, grown to what a measurement would scatter by around this
    estimate: by 1 + pi / (2 n) for the noise of the median of n values, and by as much as the neighbours
    scatter more than their errors say.

    Parameters
    ----------
    data, err : ndarray
        Image and its standard deviation, shape (ny, nx).
    variances : sequence of ndarray
        Parts of the variance, same shape.
    bad : ndarray
        True on the pixels to fill.
    good : ndarray
        True on the pixels that may be used.
    window : int
        Side of the square around each pixel, odd.
    min_good : int
        Good neighbours that a pixel must have.

    Returns
    -------
    Filling
        The pixels with enough neighbours and their estimates.

    Notes
    -----
    On the slope of a star the median of the neighbours is not the light that is missing; keep sources
    out of `bad`.
    """
    y, x = np.nonzero(bad)
    usable = neighbours.gather(np.where(good, np.float32(1), np.float32(np.nan)), y, x, window)
    count = np.count_nonzero(usable == 1, axis=1)
    enough = count >= min_good
    y, x, usable, count = y[enough], x[enough], usable[enough], count[enough]

    def around(plane):
        return neighbours.gather(plane, y, x, window) * usable

    values = around(data)
    value = neighbours.median(values)
    scatter = neighbours.scatter(values - value[:, None])
    expected = neighbours.median(around(err))
    real = np.fmax(expected, scatter)
    ratio = np.divide(real, expected, out=np.ones_like(real), where=expected > 0)
    growth = 1 + _MEDIAN_VARIANCE / count
    grown = [neighbours.median(around(plane)) * growth * ratio**2 for plane in variances]
    return Filling(y, x, value, real * np.sqrt(growth), grown)
