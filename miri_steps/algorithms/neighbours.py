"""What surrounds a pixel."""

import numpy as np

__all__ = ["gather", "median", "scatter", "surroundings"]

# Windows are looked at in blocks of this many values: they stay in the processor's cache.
_BLOCK = 1 << 20


def gather(data: np.ndarray, y: np.ndarray, x: np.ndarray, window: int) -> np.ndarray:
    """
    Gather the pixels around pixels.

    Parameters
    ----------
    data : ndarray
        Image, shape (ny, nx).
    y, x : ndarray
        Rows and columns, shape (n,).
    window : int
        Side of the square around each pixel, odd.

    Returns
    -------
    ndarray
        Values row by row without the pixel itself, shape (n, window**2 - 1); NaN outside the image.
    """
    padded = np.pad(data, window // 2, constant_values=np.nan)
    offsets = np.arange(window)[:, None] * padded.shape[1] + np.arange(window)
    offsets = np.delete(offsets.ravel(), window**2 // 2)
    return padded.ravel()[(y * padded.shape[1] + x)[:, None] + offsets]


def median(values: np.ndarray) -> np.ndarray:
    """
    Take the median of each row, NaN left out.

    Parameters
    ----------
    values : ndarray
        Shape (n, m).

    Returns
    -------
    ndarray
        Shape (n,); NaN where a row holds no number.
    """
    # Sorting puts NaN last; for short rows it takes a tenth of the time of numpy's nanmedian.
    values = np.sort(values, axis=1)
    count = np.count_nonzero(~np.isnan(values), axis=1)
    row = np.arange(len(values))
    low, high = values[row, np.maximum(count - 1, 0) // 2], values[row, count // 2]
    return (low + high) / 2


def scatter(deviations: np.ndarray) -> np.ndarray:
    """
    Estimate the standard deviation of each row from the median of its deviations, NaN left out.

    Parameters
    ----------
    deviations : ndarray
        Values minus the median of their row, shape (n, m).

    Returns
    -------
    ndarray
        Shape (n,); NaN where a row holds no number.
    """
    # Turns a median absolute deviation into a standard deviation for normal values.
    return 1.4826 * median(np.abs(deviations))


def surroundings(data: np.ndarray, window: int) -> np.ndarray:
    """
    Find the median of what surrounds each pixel of an image.

    Parameters
    ----------
    data : ndarray
        Image, shape (ny, nx), NaN where there is nothing.
    window : int
        Side of the square around each pixel, odd. The pixel itself is left out.

    Returns
    -------
    ndarray
        Shape (ny, nx); NaN where a window holds no number.
    """
    ny, nx = data.shape
    half = window // 2
    padded = np.pad(data, half, constant_values=np.nan)
    shifts = [(dy, dx) for dy in range(window) for dx in range(window) if (dy, dx) != (half, half)]
    found = np.empty_like(data)
    rows = max(1, _BLOCK // (nx * len(shifts)))
    for first in range(0, ny, rows):
        last = min(first + rows, ny)
        around = np.stack([padded[first + dy : last + dy, dx : dx + nx] for dy, dx in shifts], axis=-1)
        found[first:last] = median(around.reshape(-1, len(shifts))).reshape(-1, nx)
    return found
