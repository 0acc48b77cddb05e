"""The image of a star without aberrations is symmetric about its centre."""

import numpy as np
from scipy import ndimage

__all__ = ["across", "fill"]


def across(image: np.ndarray, center: tuple[float, float], *, order: int = 3) -> np.ndarray:
    """
    Show at each pixel what is across the centre.

    Parameters
    ----------
    image : ndarray
        Shape (ny, nx), all finite.
    center : tuple of float
        Centre of the star (x, y) [pixel].
    order : int, optional
        Of the spline that goes between pixels; 0 takes the nearest.

    Returns
    -------
    ndarray
        Shape (ny, nx), NaN where that is outside the image.
    """
    twice = 2 * np.array(center[::-1], float)
    return ndimage.affine_transform(
        np.asarray(image, float), [-1.0, -1.0], offset=twice, order=order, cval=np.nan
    )


def fill(
    image: np.ndarray, bad: np.ndarray, center: tuple[float, float], reach: float
) -> tuple[np.ndarray, int, int]:
    """
    Fill the pixels about a centre that must not be used from across it.

    Parameters
    ----------
    image : ndarray
        Shape (ny, nx).
    bad : ndarray
        True where pixels must not be used, shape (ny, nx).
    center : tuple of float
        Centre of the star (x, y) [pixel].
    reach : float
        How far from there pixels matter [pixel].

    Returns
    -------
    filled : ndarray
        The image, as it was where nothing is across.
    holes, lost : int
        Number of pixels that were to be filled, and of those among them that could not be.
    """
    rows, columns = np.nonzero(bad)
    near = np.hypot(columns - center[0], rows - center[1]) <= reach + 0.5
    rows, columns = rows[near], columns[near]
    across_x, across_y = (
        np.rint(2 * c - at).astype(int) for c, at in zip(center, (columns, rows), strict=True)
    )
    inside = (across_x >= 0) & (across_x < image.shape[1]) & (across_y >= 0) & (across_y < image.shape[0])
    across_x, across_y = np.where(inside, across_x, 0), np.where(inside, across_y, 0)
    there = inside & ~bad[across_y, across_x]
    filled = image.copy()
    filled[rows[there], columns[there]] = image[across_y[there], across_x[there]]
    return filled, len(rows), int((~there).sum())
