"""Backgrounds that stay on the detector while the sky moves."""

from __future__ import annotations

import numpy as np

from miri_steps import detector


def dome(amplitude: float, *, center: tuple[float, float] | None = None, radius: float = 400.0) -> np.ndarray:
    """Draw a smooth glow, like a Gaussian hill.

    Parameters
    ----------
    amplitude : float
        Height of the hill [MJy/sr].
    center : tuple of float, optional
        Its top (x, y) [pixel]; the middle of the imager's field when not given.
    radius : float
        Distance at which it has fallen to exp(-1/2) of its height [pixel].

    Returns
    -------
    ndarray
        Full frame [MJy/sr].
    """
    x0, y0 = (692.5, 511.5) if center is None else center
    y, x = np.ogrid[: detector.SHAPE[0], : detector.SHAPE[1]]
    return amplitude * np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (2.0 * radius**2))


def columns(amplitude: float, seed: int = 0) -> np.ndarray:
    """Draw stripes: every column has its own level.

    Parameters
    ----------
    amplitude : float
        Standard deviation of the levels [MJy/sr].
    seed : int
        Seed of the random numbers.

    Returns
    -------
    ndarray
        Full frame [MJy/sr]; the mean level is zero.
    """
    levels = np.random.default_rng(seed).standard_normal(detector.SHAPE[1])
    return np.tile(amplitude * (levels - levels.mean()), (detector.SHAPE[0], 1))
