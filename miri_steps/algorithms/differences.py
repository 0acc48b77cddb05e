"""What two exposures of the same sky differ by."""

from dataclasses import dataclass

import numpy as np

from miri_steps.algorithms import location, sky_cells
from miri_steps.algorithms.detector_background import DetectorPolynomial
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
        Covariance over the cells of the differences of the terms, shape (k, k).
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
    polynomial: DetectorPolynomial,
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
    polynomial : DetectorPolynomial
        Terms of the background fixed to the detector.
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
    both = first.seen[here] & second.seen[there]
    if np.count_nonzero(both) < MIN_CELLS:
        return None
    brightness = first.data[here][both] - second.data[there][both]
    terms = _term_differences(first, second, windows, both, polynomial)
    residual = brightness - background.astype(np.float32) @ terms
    keep, mean, sigma = location.clip(
        residual, nclip=clipping.nclip, lsigma=clipping.lsigma, usigma=clipping.usigma
    )
    n = int(np.count_nonzero(keep))
    residual, terms = residual[keep], terms[:, keep]
    middle = location.locate(residual, clipping.statistic, sigma=sigma, binwidth=clipping.binwidth)
    term_means = terms.mean(axis=1, dtype=float)
    terms = terms - term_means[:, np.newaxis].astype(np.float32)
    covariance = (terms @ terms.T).astype(float) / n
    noise = location.STATISTICS[clipping.statistic] * sky_cells.noise_correlation(first.cell_size)
    return PairDifference(
        difference=middle + float(background @ term_means),
        error=noise * sigma / np.sqrt(n),
        n_cells=n,
        independence=float(np.mean(2 / shared[here][both][keep])),
        terms=term_means,
        covariance=covariance,
        slope=(terms @ (residual - np.float32(mean))).astype(float) / n + covariance @ background,
    )


def _term_differences(first, second, windows, both, polynomial):
    positions = [
        (cells.x[window][both], cells.y[window][both])
        for cells, window in zip((first, second), windows, strict=True)
    ]
    return polynomial.evaluate(*positions[0]) - polynomial.evaluate(*positions[1])
