"""Discs around the pixels of a mask."""

import numpy as np
from scipy import ndimage

__all__ = ["grow"]

# Distances along a row are counted in bytes; more is farther than any disc reaches.
_FAR = 255


def grow(mask: np.ndarray, radius: float) -> np.ndarray:
    """
    Add all pixels within a distance to a mask.

    Think of stamping a disc on every pixel of the mask. The distance to the mask along each row is
    found once; a disc is then as many rows, each of them with a limit of its own.

    Parameters
    ----------
    mask : ndarray
        Shape (ny, nx).
    radius : float
        Distance between the middles of pixels [pixel].

    Returns
    -------
    ndarray
        The larger mask.
    """
    if not mask.any():
        return mask.copy()
    if radius >= _FAR:
        return ndimage.distance_transform_edt(~mask) <= radius
    # Only rows that a disc reaches.
    rows = np.flatnonzero(mask.any(axis=1))
    along, larger = _along_rows(mask), np.zeros(mask.shape, bool)
    ny, reach = len(mask), int(max(radius, 0))
    for away in range(-reach, reach + 1):
        limit = _half_width(radius, away)
        first, last = max(rows[0], -away), min(rows[-1] + 1, ny - away)
        if first < last and limit >= 0:
            larger[first + away : last + away] |= along[first:last] <= limit
    return larger


def _half_width(radius, away):
    """Find how far a disc reaches in a row, as distances are compared with the radius; -1 if not at all."""
    inside = np.hypot(np.arange(int(max(radius, 0)) + 2), away) <= radius
    return int(np.count_nonzero(inside)) - 1


def _along_rows(mask):
    """Find the distance of each pixel to the next one of the mask in its row [pixel]."""
    size = mask.shape[1]
    place = np.arange(size, dtype=np.int16 if size + _FAR <= np.iinfo(np.int16).max else np.int32)
    far = place.dtype.type(_FAR)
    left = np.maximum.accumulate(np.where(mask, place, -far), axis=1)
    right = np.minimum.accumulate(np.where(mask, place, place[-1] + far)[:, ::-1], axis=1)[:, ::-1]
    return np.minimum(np.minimum(place - left, right - place), far).astype(np.uint8)
