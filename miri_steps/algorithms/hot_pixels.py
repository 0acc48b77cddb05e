"""Find pixels that stand out of what surrounds them and are sharper than a star can be."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from miri_steps.algorithms import neighbours

__all__ = ["Outstanding", "find", "star_templates"]

# Side of the square in which a pixel's surroundings are measured: wide enough to look past the core
# of a star, narrow enough to follow nebulae.
_WINDOW = 7
# Positions of a star within its pixel that are tried, per axis.
_PHASES = 7
# How well the image of a star is known, in units of itself.
_STAR_TOLERANCE = 0.15
# What one neighbour can say for or against a star [sigma]: it may be hot too.
_NEIGHBOUR_LIMIT = 4.0
# By how much chi square must prefer a lone pixel to the best star.
_EVIDENCE = 10.0
# Hot pixels that touch are found one after the other, the highest first.
_ROUNDS = 8


@dataclass(frozen=True)
class Outstanding:
    """
    What stands out in an image.

    Parameters
    ----------
    above, below : ndarray
        True where a pixel is above or below its surroundings, whatever its shape, shape (ny, nx).
    hot, dead : ndarray
        True where it is sharper than a star too.
    surroundings : ndarray or None
        The image with the median of what surrounds it in place of each pixel that stands out, shape
        (ny, nx); None where that is not kept.
    """

    above: np.ndarray
    below: np.ndarray
    hot: np.ndarray
    dead: np.ndarray
    surroundings: np.ndarray | None = None


def find(data: np.ndarray, err: np.ndarray, *, fwhm: float, sigma: float) -> Outstanding:
    """
    Find pixels that stand out and are sharper than a star can be.

    Think of the image as a landscape: a star, however faint, is a hill with slopes; a hot pixel is
    a pole. A pixel stands out if it differs from the median of the 48 pixels around it by `sigma`
    times its noise, which is its own error or the scatter of those pixels, whichever is larger. Its
    eight neighbours then tell what it is. They are compared with those of a star at 49 positions
    within the pixel, and with no light at all; chi square must prefer the latter by 10. A neighbour counts
    for 4 sigma at the most, so that a few hot ones do not hide a hot pixel.

    Parameters
    ----------
    data : ndarray
        Image, shape (ny, nx), NaN where a pixel must not be used.
    err : ndarray
        Standard deviation of each pixel, same shape and unit; where it is not positive the scatter
        stands in for it.
    fwhm : float
        Width of a star at half maximum [pixel].
    sigma : float
        How far a pixel must stand out [standard deviations].

    Returns
    -------
    Outstanding
        What was found.

    Notes
    -----
    Squares of two by two hot pixels look like a star between four pixels unless they are
    bright. Faint stars narrower than `fwhm` are taken for hot pixels.
    """
    limit = sigma * np.where(err > 0, err, 0)
    far = neighbours.far_from_most(data, limit, _WINDOW)
    middle = neighbours.surroundings(data, _WINDOW, far)
    excess = data - middle
    with np.errstate(invalid="ignore"):
        y, x = np.nonzero(np.abs(excess) > limit)
    around = neighbours.gather(data, y, x, _WINDOW) - middle[y, x, None]
    noise = np.fmax(err[y, x], neighbours.scatter(around))
    # In an image without noise and without errors anything stands out.
    noise = np.fmax(noise, np.finfo(np.float32).eps * np.abs(excess[y, x]))
    strong = np.abs(excess[y, x]) > sigma * noise
    y, x, noise = y[strong], x[strong], noise[strong]
    ring = neighbours.gather(data, y, x, 3) - middle[y, x, None]
    sign = np.sign(excess[y, x, None])
    bad = _peel(y, x, excess[y, x] / noise * sign[:, 0], ring * sign / noise[:, None], data.shape, fwhm)
    above, below = np.zeros((2, *data.shape), bool)
    above[y, x], below[y, x] = excess[y, x] > 0, excess[y, x] < 0
    surroundings = np.where(above | below, middle, data)
    return Outstanding(above, below, bad & above, bad & below, surroundings)


def _peel(
    y: np.ndarray,
    x: np.ndarray,
    height: np.ndarray,
    ring: np.ndarray,
    shape: tuple[int, int],
    fwhm: float,
) -> np.ndarray:
    """Judge the highest pixel of each group first, and the others when it is out of the way."""
    bad = np.zeros(shape, bool)
    fresh = np.ones(len(y), bool)
    for _ in range(_ROUNDS):
        # The flank of a star is not a pixel of its own: something higher is beside it.
        top = np.flatnonzero(fresh & ~bad[y, x] & ~np.any(ring > height[:, None], axis=1))
        found = top[_is_sharp(height[top], ring[top], fwhm)]
        if not len(found):
            break
        bad[y[found], x[found]] = True
        beside = neighbours.gather(bad.astype(np.float32), y, x, 3) == 1
        # What is said of a pixel changes with its neighbours alone.
        fresh = (beside & ~np.isnan(ring)).any(axis=1)
        ring[beside] = np.nan
    return bad


def _is_sharp(height: np.ndarray, ring: np.ndarray, fwhm: float) -> np.ndarray:
    """Tell where chi square prefers a lone pixel to every star; all in units of the noise."""
    sharp = np.zeros(len(height), bool)
    # The middle of a star may lie beyond an edge, or on a pixel that is not used.
    edge = np.isnan(ring).any(axis=1)
    for where, reach in ((~edge, 0.5), (edge, 1.5)):
        left = np.flatnonzero(where)
        h, r, lone = height[left, None], ring[left], _robust_sum(ring[left] ** 2)
        for template in star_templates(fwhm, reach):
            expected = h * template
            # The height is measured too, with noise of its own.
            variance = 1 + template**2 + (_STAR_TOLERANCE * expected) ** 2
            kept = _robust_sum((r - expected) ** 2 / variance) - lone > _EVIDENCE
            # One star that will do is enough.
            if not kept.all():
                left, h, r, lone = left[kept], h[kept], r[kept], lone[kept]
        sharp[left] = True
    return sharp


def _robust_sum(squares: np.ndarray) -> np.ndarray:
    return np.nansum(np.minimum(squares, _NEIGHBOUR_LIMIT**2), axis=1)


@lru_cache
def star_templates(fwhm: float, reach: float = 0.5) -> np.ndarray:
    """
    Tell how bright the neighbours of a star's brightest pixel are.

    Parameters
    ----------
    fwhm : float
        Width of the star, a Gaussian, at half maximum [pixel].
    reach : float, optional
        Largest distance of the star from the middle of the pixel, in x and in y [pixel].

    Returns
    -------
    ndarray
        Height of the eight neighbours above the surroundings in units of that of the pixel,
        row by row, for stars on a grid of positions, shape (n, 8); n is 49 for stars within the pixel.
    """
    center = np.array([_WINDOW // 2])
    y, x = np.indices((_WINDOW, _WINDOW)) - _WINDOW // 2
    found = []
    phases = np.linspace(-reach, reach, round(_PHASES * 2 * reach))
    for dy in phases:
        for dx in phases:
            star = np.exp(-4 * np.log(2) * ((y - dy) ** 2 + (x - dx) ** 2) / fwhm**2)
            base = neighbours.median(neighbours.gather(star, center, center, _WINDOW))
            ring = neighbours.gather(star, center, center, 3)[0] - base
            found.append(ring / (star[center, center] - base))
    return np.array(found, np.float32)
