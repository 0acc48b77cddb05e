"""What two exposures of the same sky differ by."""

from dataclasses import dataclass

import numpy as np

from miri_steps.algorithms import location, sky_cells
from miri_steps.algorithms.sky_cells import SkyCells

__all__ = ["Clipping", "PairDifference", "compare"]

# A location of fewer cells than this is not robust.
MIN_CELLS = 10


@dataclass(frozen=True)
class Clipping:
    """
    How the location of a difference image is measured.

    Parameters
    ----------
    statistic : {"mode", "median", "midpt", "mean"}
        Location of the cells kept.
    nclip : int
        Rounds of clipping.
    lsigma, usigma : float
        Clipping limits below and above [sigma].
    binwidth : float
        Bin width of ``mode`` and ``midpt`` [sigma].
    """

    statistic: str = "mode"
    nclip: int = 5
    lsigma: float = 4.0
    usigma: float = 4.0
    binwidth: float = 0.1


@dataclass(frozen=True)
class PairDifference:
    """
    The difference image of two exposures, boiled down to what levels and background need.

    Differences are first minus second. Brightness is in the unit of the cells; k is the number
    of terms of the detector background.

    Parameters
    ----------
    difference : float
        Robust location of the difference image.
    error : float
        Its standard error, as if the pair stood alone.
    n_cells : int
        Number of cells used.
    independence : float
        Part of these cells' information that this pair has for itself: m exposures of one cell
        make m (m - 1) / 2 pairs but only m - 1 independent differences, so each pair counts
        2 / m.
    terms : ndarray
        Mean difference of the background terms over the cells, shape (k,).
    covariance : ndarray
        Covariance over the cells of the differences of the terms, float32, shape (k, k).
    slope : ndarray
        Covariance over the cells of the differences of the terms with the brightness, shape (k,).
    """

    difference: float
    error: float
    n_cells: int
    independence: float
    terms: np.ndarray
    covariance: np.ndarray
    slope: np.ndarray


def compare(
    first: SkyCells,
    second: SkyCells,
    shared: np.ndarray,
    *,
    terms: tuple[np.ndarray, np.ndarray],
    background: np.ndarray,
    clipping: Clipping,
) -> PairDifference | None:
    """
    Measure by how much one exposure is brighter than another on the sky both see.

    Think of two photographs of one hillside, one printed darker: laid on each other and
    subtracted, the hill is gone and a flat grey is left, however rugged the hill was. The grey
    is the difference of the levels; a gentle slope in it is the work of something that moved
    with the camera.

    Parameters
    ----------
    first, second : SkyCells
        The exposures on their cut-outs of the grid.
    shared : ndarray
        How many exposures see each cell of `first` (`sky_cells.shared_by`).
    terms : tuple of ndarray
        Terms of the detector background on the cells of `first` and `second`, shapes (k, ny, nx).
    background : ndarray
        Coefficients of the background known so far, shape (k,): outliers are clipped and the
        location is measured around it, and it is put back into `difference` and `slope`.
    clipping : Clipping
        How the location is measured.

    Returns
    -------
    PairDifference or None
        None when the exposures share too few cells (fewer than 10).
    """
    windows = sky_cells.overlap(first, second)
    if windows is None:
        return None
    here, there = windows
    seen = first.seen[here] & second.seen[there]
    both = np.flatnonzero(seen)
    if len(both) < MIN_CELLS:
        return None
    brightness = (first.data[here] - second.data[there]).ravel()[both]
    steps = (terms[0][:, *here] - terms[1][:, *there]).reshape(len(background), seen.size)[:, both]
    residual = brightness - background.astype(np.float32) @ steps
    keep, mean, sigma = location.clip(
        residual, nclip=clipping.nclip, lsigma=clipping.lsigma, usigma=clipping.usigma
    )
    n = int(np.count_nonzero(keep))
    residual, steps = residual[keep], steps[:, keep]
    middle = location.locate(residual, clipping.statistic, sigma=sigma, binwidth=clipping.binwidth)
    means = steps.mean(axis=1, dtype=float)
    steps -= means[:, np.newaxis].astype(np.float32)
    covariance = steps @ steps.T / np.float32(n)
    noise = location.STATISTICS[clipping.statistic] * sky_cells.noise_correlation(first.cell_size)
    return PairDifference(
        difference=middle + float(background @ means),
        error=noise * sigma / np.sqrt(n),
        n_cells=n,
        independence=float(np.mean(2 / shared[here].ravel()[both][keep])),
        terms=means,
        covariance=covariance,
        slope=steps @ (residual - np.float32(mean)) / n + covariance @ background,
    )
