"""Calibration factors: from the rates of stars and the fluxes of their models to one number per filter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from astropy.stats import sigma_clip
from scipy import stats

__all__ = ["Average", "average", "average_by_type", "average_published", "factor"]

# Rounds of clipping: it has long ended by then; and those of the published procedure.
_ROUNDS, _PUBLISHED_ROUNDS = 20, 5
# Factors are the same where they differ by less than this part.
_ROUNDING = 1e-6
# Standard deviation of normal values in units of their median absolute deviation.
_NORMAL = 1.4826


def factor(
    flux: np.ndarray, rate: np.ndarray, apcorr: np.ndarray | float, pixel_area: np.ndarray | float
) -> np.ndarray:
    """
    Compute the calibration factor that a star asks for.

    Parameters
    ----------
    flux : ndarray
        Flux density of the model at the pivot wavelength, shape (n,) [Jy].
    rate : ndarray
        Light in the aperture above the background, shape (n,) [DN/s], without the loss of sensitivity
        with time and at the transmission of the reference subarray.
    apcorr : ndarray or float
        Aperture correction.
    pixel_area : ndarray or float
        Solid angle of a pixel [sr].

    Returns
    -------
    ndarray
        1e-6 flux / (rate apcorr pixel_area), shape (n,) [(MJy/sr) / (DN/s)].

    Examples
    --------
    >>> f = factor(np.array([0.05]), np.array([8000.0]), 1.5, 2.86e-13)
    >>> round(float(f[0]), 3)
    14.569
    """
    return 1e-6 * np.asarray(flux, float) / (np.asarray(rate, float) * apcorr * pixel_area)


@dataclass(frozen=True)
class Average:
    """
    The calibration factor of a filter.

    Parameters
    ----------
    value : float
        Weighted mean [unit of the factors].
    scatter : float
        Weighted standard deviation of single observations about it; NaN with fewer than two stars.
    error : float
        Of the mean: the scatter over the root of the number of stars that it rests on; NaN with fewer than
        two.
    stars : int
        That number.
    kept : ndarray
        True for observations that were not clipped, shape (n,).
    weight : ndarray
        Of each observation, 0 where it was clipped, shape (n,).
    """

    value: float
    scatter: float
    error: float
    stars: int
    kept: np.ndarray
    weight: np.ndarray


def average(factors: np.ndarray, star: Sequence[str], *, sigma: float = 3.5) -> Average:
    """
    Average calibration factors so that each star has one vote.

    A star with k observations that are kept gives each of them the weight w = 1/k. Observations farther from
    the weighted mean than ``sigma`` weighted standard deviations are left out, until none is. The first round
    takes the median and the median absolute deviation, which no outlier moves. The scatter is that of S
    stars,

        scatter^2 = sum w (C - mean)^2 / (S - 1),   error = scatter / sqrt(S):

    what makes stars differ is mostly their models, so that more observations of a star are no more stars.

    The limit that is applied is wider than ``sigma``: 4.3 for 19 stars and 8 for 6, where ``sigma`` is 3.5.
    The scatter of few stars is not well known, so that stars as good as the others lie beyond 3.5 estimated
    standard deviations much more often than beyond 3.5 true ones; leaving them out makes the stated error too
    small. The limit is the quantile of Student's t, of S - 1 degrees of freedom, that is as rare as ``sigma``
    is in a normal distribution. `average_published` clips at ``sigma`` itself.

    It fails where stars are few: of three, it cannot be known which one is wrong.

    Parameters
    ----------
    factors : ndarray
        Calibration factors, shape (n,), finite and positive.
    star : sequence of str
        Name of the star of each.
    sigma : float, optional
        Clipping limit [weighted standard deviations].

    Returns
    -------
    Average
        The mean, its error and scatter.

    Raises
    ------
    ValueError
        If there are none, or one is not finite or not positive.

    References
    ----------
    Gordon et al. 2025, AJ 169, 6 (doi:10.3847/1538-3881/ad8cd4).
    """
    factors, star = np.asarray(factors, float), np.asarray(star)
    _check(factors, star)
    kept = _clip(factors, star, sigma)
    weight = _weights(star, kept)
    value, scatter, stars = _statistics(factors, star, weight)
    return Average(value, scatter, scatter / np.sqrt(stars), stars, kept, weight)


def average_published(factors: np.ndarray, star: Sequence[str], *, sigma: float = 3.5) -> Average:
    """
    Average calibration factors as the published procedure does; for comparison only.

    Observations farther from the median than ``sigma`` standard deviations are left out, in five rounds; all
    observations count alike in both. The weight of an observation in the mean is then one over the number of
    observations of its star, those that were left out included, and with the sum W of these weights

        scatter^2 = sum w (C - mean)^2 / (W - 1),   error = scatter / sqrt(W).

    Stars that were left out by name in the publication are not left out here.

    Parameters
    ----------
    factors, star
        As in `average`.
    sigma : float, optional
        Clipping limit [standard deviations].

    Returns
    -------
    Average
        The mean, its error and scatter, NaN where the weights do not exceed 1.

    Raises
    ------
    ValueError
        As in `average`.

    References
    ----------
    Gordon et al. 2025, AJ 169, 6 (doi:10.3847/1538-3881/ad8cd4).
    """
    factors, star = np.asarray(factors, float), np.asarray(star)
    _check(factors, star)
    kept = ~sigma_clip(factors, sigma=sigma, maxiters=_PUBLISHED_ROUNDS).mask
    weight = kept * _weights(star, np.ones(len(factors), bool))
    total = weight.sum()
    value = float((weight * factors).sum() / total)
    scatter = float("nan")
    if total > 1 + _ROUNDING:
        scatter = float(np.sqrt((weight * (factors - value) ** 2).sum() / (total - 1)))
    stars = len(np.unique(star[kept]))
    return Average(value, scatter, scatter / float(np.sqrt(total)), stars, kept, weight)


def average_by_type(
    factors: np.ndarray,
    star: Sequence[str],
    kind: Sequence[str],
    *,
    sigma: float = 3.5,
    average: Callable[..., Average] = average,
) -> dict[str, Average]:
    """
    Average the factors of each type of star by itself.

    Parameters
    ----------
    factors, star, sigma
        As in `average`.
    kind : sequence of str
        Type of the star of each observation.
    average : callable, optional
        `average` or `average_published`.

    Returns
    -------
    dict
        The average of each type, by its name.

    Raises
    ------
    ValueError
        As in `average`.
    """
    factors, star, kind = np.asarray(factors, float), np.asarray(star), np.asarray(kind)
    return {
        str(name): average(factors[kind == name], star[kind == name], sigma=sigma) for name in np.unique(kind)
    }


def _check(factors, star):
    if factors.shape != star.shape or not len(factors):
        raise ValueError(
            f"there must be factors and a star for each, got shapes {factors.shape} and {star.shape}"
        )
    bad = np.flatnonzero(~(np.isfinite(factors) & (factors > 0)))
    if len(bad):
        raise ValueError(f"factors must be finite and above 0, got {factors[bad[0]]} of {star[bad[0]]}")


def _clip(factors, star, sigma):
    """Leave out what is far from the weighted mean, again and again; shape (n,), True where kept."""
    # One far away widens the deviation of a few so much that it is never out: begin with what it cannot move.
    weight = _weights(star, np.ones(len(factors), bool))
    middle = _weighted_median(factors, weight)
    deviation = _NORMAL * _weighted_median(np.abs(factors - middle), weight)
    stars = len(np.unique(star))
    kept = np.abs(factors - middle) <= max(_limit(sigma, stars) * deviation, _ROUNDING * middle)
    for _ in range(_ROUNDS):
        value, scatter, stars = _statistics(factors, star, _weights(star, kept))
        # All are looked at each time: the mean may have moved towards one that was left out.
        again = ~(np.abs(factors - value) > max(_limit(sigma, stars) * scatter, _ROUNDING * value))
        if not again.any() or np.array_equal(again, kept):
            break
        kept = again
    return kept


def _limit(sigma, stars):
    """Widen a limit to what is as rare in units of a scatter that is known from few stars itself."""
    return stats.t.isf(stats.norm.sf(sigma), max(1.0, stars - 1))


def _weighted_median(values, weight):
    order = np.argsort(values, kind="stable")
    return values[order][np.searchsorted(np.cumsum(weight[order]), weight.sum() / 2)]


def _weights(star, kept):
    """Give each star one vote, which those of its observations share that are kept."""
    number = np.unique(star, return_inverse=True)[1]
    count = np.bincount(number, kept)
    return kept / np.maximum(count, 1)[number]


def _statistics(factors, star, weight):
    """Weighted mean, scatter of a star, and number of stars."""
    stars = len(np.unique(star[weight > 0]))
    value = float((weight * factors).sum() / weight.sum())
    if stars < 2:
        return value, float("nan"), stars
    # Each star has the weight 1.
    variance = (weight * (factors - value) ** 2).sum() / (stars - 1)
    return value, float(np.sqrt(variance)), stars
