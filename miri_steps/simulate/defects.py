"""Pixels that are wrong in every exposure: the flagged ones, and those that nobody flagged."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps import detector


@lru_cache(maxsize=4)
def flags(subarray: str, regions: tuple[str, ...], bad_pixels: float, seed: int) -> np.ndarray:
    """Flag what no exposure can use: the same pixels in all of them.

    Parameters
    ----------
    subarray : str
        Value of SUBARRAY.
    regions : tuple of str
        Fields that see the sky.
    bad_pixels : float
        Fraction of dead and hot pixels.
    seed : int
        Seed of their places.

    Returns
    -------
    ndarray of uint32
        DQ of the subarray's frame; shared, not to be changed.
    """
    dq = np.zeros(detector.SHAPE, np.uint32)
    draw = np.random.default_rng([seed, 1]).random(detector.SHAPE)
    dead, hot = draw < bad_pixels / 2, (draw >= bad_pixels / 2) & (draw < bad_pixels)
    dq[dead] |= pixel["DO_NOT_USE"] | pixel["DEAD"]
    dq[hot] |= pixel["DO_NOT_USE"] | pixel["HOT"]
    dq[~detector.region_mask(regions)] |= pixel["DO_NOT_USE"] | pixel["NON_SCIENCE"]
    dq[detector.reference_pixel_mask()] |= pixel["REFERENCE_PIXEL"]
    return dq[detector.SUBARRAYS[subarray].slices]


def hot(dq: np.ndarray, subarray: str, fraction: float, sigma: tuple[float, float], seed: int) -> np.ndarray:
    """Heat pixels that no flag tells of.

    Parameters
    ----------
    dq : ndarray of uint32
        Flags of the subarray's frame: only pixels without any become hot.
    subarray : str
        Value of SUBARRAY.
    fraction : float
        Fraction of those pixels.
    sigma : tuple of float
        Lowest and highest height, evenly spread in the logarithm.
    seed : int
        Seed of places and heights.

    Returns
    -------
    ndarray
        Height, in units of ``sigma``; 0 where a pixel is not hot.
    """
    draw, rng = _draw(subarray, seed)
    low, high = np.log(sigma)
    # Drawn for the full frame, so that a pixel is as hot in every subarray.
    height = np.exp(rng.uniform(low, high, detector.SHAPE))[detector.SUBARRAYS[subarray].slices]
    return np.where((dq == 0) & (draw < fraction), height, 0.0)


def dead(dq: np.ndarray, subarray: str, fraction: float, seed: int) -> np.ndarray:
    """Kill pixels that no flag tells of.

    Parameters
    ----------
    dq : ndarray of uint32
        Flags of the subarray's frame: only pixels without any become dead.
    subarray : str
        Value of SUBARRAY.
    fraction : float
        Fraction of those pixels; together with that of `hot` at most 1, then none is both.
    seed : int
        Seed of the places.

    Returns
    -------
    ndarray of bool
        True on dead pixels.
    """
    draw, _ = _draw(subarray, seed)
    return (dq == 0) & (draw >= 1.0 - fraction)


def _draw(subarray: str, seed: int) -> tuple[np.ndarray, np.random.Generator]:
    """Lots of the subarray's pixels, low ones hot and high ones dead, and the generator after them."""
    rng = np.random.default_rng([seed, 2])
    return rng.random(detector.SHAPE)[detector.SUBARRAYS[subarray].slices], rng
