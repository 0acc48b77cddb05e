"""How the sensitivity of the imager falls with time, from stars that are observed again and again.

The sensitivity is a product, as the photom reference file and the pipeline have it:

    S(t) = [1 - loss (t - T0) / 365] [amplitude exp(-(t - T0) / tau) + 1 - amplitude]

with S = 1 at `T0`. It is fitted in this form. A sum of the same terms, fitted and then applied as a product,
gives too small a loss: beyond the exponential part the product falls with loss times (1 - amplitude).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

__all__ = [
    "T0",
    "TAU",
    "YEAR",
    "Fit",
    "TimeLoss",
    "fit",
    "fit_known",
    "fit_sum",
    "inflation",
    "interpolate",
    "sensitivity",
]

#: Day at which the sensitivity is 1 [MJD]; Gordon et al. 2025, AJ 169, 6.
T0 = 59720.0
#: Days of a year in the linear term, as the pipeline counts them.
YEAR = 365.0
#: What is known of tau beforehand [d], and the standard deviation of its natural logarithm; for filters in
#: which little is lost exponentially, where it is not identifiable. Gordon et al. 2025.
TAU = 200.0, 0.5

# Where a fit of tau begins, unless something is known of it [d]: its chi square may have several minima.
_FIRST_TAUS = (100.0, 500.0)
# Beyond these the exponential is the same as a constant or a straight line [d].
_LEAST_TAU, _LARGEST_TAU = 5.0, 5000.0
# Of a fit, which takes 10 to 30 where the parameters are identifiable.
_MOST_STEPS = 200
# A sum that loses less exponentially has no tau.
_LEAST_AMPLITUDE = 1e-4
# Errors are scaled by the scatter where chi square would by chance be larger in fewer cases than this.
_CHANCE = 0.01
# Of singular values, the parameters in units of what each alone would change. It is 0.01 and more where stars
# were seen again over years, 1e-5 where all was within minutes.
_LEAST_RATIO = 1e-4
_NOT_IDENTIFIABLE = (
    "loss, amplitude and tau are not identifiable from these dates: more observations, or earlier ones, are "
    "needed; or give tau"
)


@dataclass(frozen=True)
class TimeLoss:
    """
    How the sensitivity falls.

    Parameters
    ----------
    loss : float
        Of the linear term [1/yr], positive where sensitivity is lost.
    amplitude : float
        Part of the sensitivity at `T0` that is lost exponentially.
    tau : float
        Time in which that part falls by a factor e [d].
    covariance : ndarray
        Of loss, amplitude and tau, shape (3, 3); 0 where one of them was given.
    """

    loss: float
    amplitude: float
    tau: float
    covariance: np.ndarray

    @property
    def errors(self) -> np.ndarray:
        """Standard deviations of loss [1/yr], amplitude and tau [d]."""
        return np.sqrt(np.diag(self.covariance))

    def sensitivity(self, mjd: np.ndarray | float) -> np.ndarray:
        """Compute the sensitivity at a date [MJD] in units of that at `T0`."""
        return sensitivity(mjd, self.loss, self.amplitude, self.tau)

    def sensitivity_error(self, mjd: np.ndarray | float) -> np.ndarray:
        """Compute the standard deviation of the sensitivity at a date [MJD]."""
        slopes = _slopes(np.asarray(mjd, float), self.loss, self.amplitude, self.tau)
        return np.sqrt(np.einsum("i...,ij,j...->...", slopes, self.covariance, slopes))


def sensitivity(mjd: np.ndarray | float, loss: float, amplitude: float, tau: float) -> np.ndarray:
    """
    Compute the sensitivity at a date.

    Parameters
    ----------
    mjd : ndarray or float
        Date [MJD].
    loss : float
        Loss per year of the linear term [1/yr].
    amplitude : float
        Part that is lost exponentially.
    tau : float
        Its time constant [d].

    Returns
    -------
    ndarray
        Sensitivity in units of that at `T0`, shape of ``mjd``.

    Examples
    --------
    >>> float(sensitivity(59720.0, loss=0.03, amplitude=0.2, tau=200.0))
    1.0
    >>> round(float(sensitivity(59720.0 + 10 * 365, loss=0.03, amplitude=0.2, tau=200.0)), 6)
    0.56
    """
    days = np.asarray(mjd, float) - T0
    return (1 - loss * days / YEAR) * (amplitude * np.exp(-days / tau) + 1 - amplitude)


def _slopes(mjd, loss, amplitude, tau):
    """Take the derivatives of the sensitivity by loss, amplitude and tau, shape (3, ...)."""
    days = mjd - T0
    fall = np.exp(-days / tau)
    linear, exponential = 1 - loss * days / YEAR, amplitude * fall + 1 - amplitude
    return np.stack(
        [-days / YEAR * exponential, linear * (fall - 1), linear * amplitude * fall * days / tau**2]
    )


@dataclass(frozen=True)
class Fit:
    """
    The loss of sensitivity that repeated observations of stars follow.

    Errors grow with the scatter, but do not shrink with it: where ``chi2`` is far below ``dof`` the errors
    that were given are too large, and so are those of all that was fitted, by the root of dof / chi2. Nothing
    warns of that.

    Parameters
    ----------
    loss : TimeLoss
        How the sensitivity falls.
    scale : dict
        Rate of each star at `T0` in the reference subarray [unit of the rates].
    factor : dict
        Transmission of each subarray, in units of that of the reference.
    factor_error : dict
        Its standard deviation; 0 for the reference.
    residual : ndarray
        Rate over the function that was fitted, less 1, shape (n,).
    chi2 : float
        Sum of the squares of the residuals in units of the errors that were given; NaN without errors.
    dof : int
        Observations less parameters.
    """

    loss: TimeLoss
    scale: dict[str, float]
    factor: dict[str, float]
    factor_error: dict[str, float]
    residual: np.ndarray
    chi2: float
    dof: int


def fit(
    mjd: np.ndarray,
    rate: np.ndarray,
    error: np.ndarray,
    *,
    star: Sequence[str] | None = None,
    subarray: Sequence[str] | None = None,
    reference: str = "SUB256",
    tau: float | None = None,
    around: tuple[float, float] | None = None,
) -> Fit:
    """
    Fit the loss of sensitivity to repeated observations of stars, each with a brightness of its own.

    Think of each star as a lamp of constant light: all its lines on the plot of rate against time have one
    shape and differ in height. Shape, heights and, where there are several, transmissions of subarrays are
    found together by weighted least squares. Their covariance is that of the linear problem about the
    solution; where the scatter is beyond the stated errors, by more than chance (1 %) allows, it is scaled
    up to it.

    It fails where the parameters are not identifiable: with all observations within a fraction of ``tau``, or
    later than a few ``tau``.

    Parameters
    ----------
    mjd, rate, error : ndarray
        Date [MJD], rate in the aperture and its standard deviation [any unit], shape (n,).
    star : sequence of str, optional
        Name of the star of each observation; one star if not given.
    subarray : sequence of str, optional
        Subarray of each; one for all if not given.
    reference : str, optional
        Subarray whose transmission is 1.
    tau : float, optional
        Time constant, where it is known [d].
    around : tuple of float, optional
        What is known of it otherwise: a value [d], and the standard deviation of its natural logarithm. It
        counts as one more observation.

    Returns
    -------
    Fit
        Loss, brightness of stars, transmission of subarrays.

    Raises
    ------
    ValueError
        If values are not finite or not positive, are too few, lack the reference, or do not determine all
        parameters.
    """
    mjd, rate, error = (np.asarray(values, float) for values in (mjd, rate, error))
    _check_values(mjd=mjd, rate=rate, error=error)
    groups = _Groups.of(len(mjd), star, subarray, reference)
    problem = _Problem(mjd, rate, error, groups, tau, around)
    found = problem.solve()
    dof = len(mjd) + (around is not None) - len(found.x)
    chi2 = 2 * found.cost
    covariance = _covariance(found.jac) * inflation(chi2, dof)
    loss, amplitude, tau, slopes = problem.physical(found.x)
    inner = slopes @ covariance[-problem.shape_size :, -problem.shape_size :] @ slopes.T
    return Fit(
        loss=TimeLoss(loss, amplitude, tau, inner),
        **groups.named(found.x, covariance),
        residual=rate / problem.model(found.x) - 1,
        chi2=chi2,
        dof=dof,
    )


def fit_known(
    mjd: np.ndarray,
    rate: np.ndarray,
    error: np.ndarray,
    loss: TimeLoss,
    *,
    star: Sequence[str],
    subarray: Sequence[str],
    reference: str = "SUB256",
) -> Fit:
    """
    Fit the brightness of stars and the transmission of subarrays, where the loss of sensitivity is known.

    In logarithms this is linear. The error of the loss is left out, which is right for observations of one
    night.

    Parameters
    ----------
    mjd, rate, error, star, subarray, reference
        As in `fit`.
    loss : TimeLoss
        The loss.

    Returns
    -------
    Fit
        Brightness of stars, transmission of subarrays, and the loss as it was given.

    Raises
    ------
    ValueError
        If values are not finite or not positive, lack the reference, or do not tie a subarray to it.
    """
    mjd, rate, error = (np.asarray(values, float) for values in (mjd, rate, error))
    _check_values(mjd=mjd, rate=rate, error=error)
    groups = _Groups.of(len(mjd), star, subarray, reference)
    relative = error / rate
    design, light = groups.design / relative[:, None], np.log(rate / loss.sensitivity(mjd)) / relative
    solution = np.linalg.lstsq(design, light, rcond=None)[0]
    residual = light - design @ solution
    chi2, dof = float(residual @ residual), len(mjd) - len(solution)
    covariance = _covariance(design) * inflation(chi2, dof)
    return Fit(
        loss=loss,
        **groups.named(solution, covariance),
        residual=np.expm1(residual * relative),
        chi2=chi2,
        dof=dof,
    )


@dataclass(frozen=True)
class _Groups:
    """Stars and subarrays of observations: stars have a brightness, subarrays but one a transmission."""

    stars: list[str]
    others: list[str]
    reference: str
    design: np.ndarray

    @classmethod
    def of(cls, number, star, subarray, reference):
        stars, of_star = np.unique(["star"] * number if star is None else star, return_inverse=True)
        names, window = np.unique([reference] * number if subarray is None else subarray, return_inverse=True)
        if reference not in names:
            raise ValueError(
                f"reference must be a subarray that was used, of {', '.join(names)}, got {reference}"
            )
        others = np.flatnonzero(names != reference)
        marks = [of_star[:, None] == np.arange(len(stars)), window[:, None] == others]
        return cls(stars.tolist(), names[others].tolist(), reference, np.hstack(marks).astype(float))

    def named(self, logarithms, covariance):
        """Name brightness and transmissions, of which the first unknowns are the logarithms."""
        number = self.design.shape[1]
        scale, factors = np.split(np.exp(logarithms[:number]), [len(self.stars)])
        errors = factors * np.sqrt(np.diag(covariance)[len(self.stars) : number])
        return {
            "scale": dict(zip(self.stars, scale.tolist(), strict=True)),
            "factor": {self.reference: 1.0} | dict(zip(self.others, factors.tolist(), strict=True)),
            "factor_error": {self.reference: 0.0} | dict(zip(self.others, errors.tolist(), strict=True)),
        }


def _check_values(**given):
    for name, values in given.items():
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise ValueError(
                f"{name} must be finite and above 0, got {values[bad[0]]} in observation {bad[0]}"
            )


def inflation(chi2: float, dof: int) -> float:
    """
    Compute by how much a variance has to grow, where the scatter is beyond the stated errors.

    Parameters
    ----------
    chi2 : float
        Sum of the squares of residuals in units of the stated errors.
    dof : int
        Degrees of freedom.

    Returns
    -------
    float
        chi2 / dof where that much would by chance be found in fewer than 1 % of cases; otherwise 1.

    Examples
    --------
    >>> inflation(12.0, 10), inflation(40.0, 10)
    (1.0, 4.0)
    """
    return chi2 / dof if dof > 0 and stats.chi2.sf(chi2, dof) < _CHANCE else 1.0


def _covariance(jacobian):
    """Invert the normal equations, whose unknowns may differ much in size."""
    size = np.linalg.norm(jacobian, axis=0)
    if jacobian.shape[0] < jacobian.shape[1] or not size.all():
        raise ValueError(_NOT_IDENTIFIABLE)
    _, values, vectors = np.linalg.svd(jacobian / size, full_matrices=False)
    if values[-1] < _LEAST_RATIO * values[0]:
        raise ValueError(_NOT_IDENTIFIABLE)
    inverse = vectors.T / values / size[:, None]
    return inverse @ inverse.T


def _is_bounded(tau):
    return 1.01 * _LEAST_TAU < tau < 0.99 * _LARGEST_TAU


class _Problem:
    """Least squares in logarithms of brightness, transmission and tau, and in loss and amplitude."""

    def __init__(self, mjd, rate, error, groups, tau, around):
        self.mjd, self.rate, self.error, self.tau, self.around = mjd, rate, error, tau, around
        self.linear = groups.design
        self.members = self.linear[:, : len(groups.stars)]
        self.shape_size = 2 if tau else 3

    def shape(self, x):
        loss, amplitude, *rest = x[-self.shape_size :]
        return loss, amplitude, self.tau or float(np.exp(rest[0]))

    def physical(self, x):
        """Loss, amplitude, tau, and their slopes by the unknowns, shape (3, number of these)."""
        loss, amplitude, tau = self.shape(x)
        slopes = np.diag([1.0, 1.0, tau])
        return float(loss), float(amplitude), float(tau), slopes[:, : self.shape_size]

    def model(self, x):
        return np.exp(self.linear @ x[: self.linear.shape[1]]) * sensitivity(self.mjd, *self.shape(x))

    def residual(self, x):
        found = (self.model(x) - self.rate) / self.error
        if self.around is None:
            return found
        return np.append(found, (x[-1] - np.log(self.around[0])) / self.around[1])

    def jacobian(self, x):
        loss, amplitude, tau = self.shape(x)
        level = np.exp(self.linear @ x[: self.linear.shape[1]])
        slopes = _slopes(self.mjd, loss, amplitude, tau)
        slopes[2] *= tau
        columns = [self.linear * self.model(x)[:, None], (level * slopes[: self.shape_size]).T]
        found = np.hstack(columns) / self.error[:, None]
        if self.around is None:
            return found
        return np.vstack([found, np.eye(1, len(x), len(x) - 1) / self.around[1]])

    def solve(self):
        found = [self._solve_from(tau) for tau in self._starts()]
        best = min(found, key=lambda one: one.cost)
        if not self.tau and not _is_bounded(np.exp(best.x[-1])):
            raise ValueError(_NOT_IDENTIFIABLE)
        return best

    def _starts(self):
        if self.tau:
            return (self.tau,)
        return (self.around[0],) if self.around else _FIRST_TAUS

    def _solve_from(self, tau):
        weights = (self.rate / self.error) ** 2
        scale = np.log(self.members.T @ (self.rate * weights) / (self.members.T @ weights))
        windows = np.zeros(self.linear.shape[1] - len(scale))
        shape = [0.0, 0.05, np.log(tau)][: self.shape_size]
        limit = np.full(len(scale) + len(windows) + self.shape_size, np.inf)
        low, high = -limit, limit
        high[len(scale) + len(windows) + 1] = 1.0
        if not self.tau:
            low[-1], high[-1] = np.log([_LEAST_TAU, _LARGEST_TAU])
        start = np.concatenate([scale, windows, shape])
        return optimize.least_squares(
            self.residual,
            start,
            self.jacobian,
            bounds=(low, high),
            x_scale="jac",
            xtol=1e-12,
            ftol=1e-12,
            gtol=1e-12,
            max_nfev=_MOST_STEPS,
        )


def fit_sum(
    mjd: np.ndarray, rate: np.ndarray, *, star: Sequence[str] | None = None, tau: float | None = None
) -> Fit:
    """
    Fit a sum in the place of the product, as the published procedure does; for comparison only.

    What is fitted, without weights, is

        1 - loss (t - T0) / 365 + amplitude [exp(-(t - T0) / tau) - 1]

    and what is applied is the product, with the same numbers.

    Parameters
    ----------
    mjd, rate, star, tau
        As in `fit`.

    Returns
    -------
    Fit
        Loss without a covariance (NaN), and brightness of stars; ``residual`` is that of the sum.

    Raises
    ------
    ValueError
        As in `fit`.
    """
    mjd, rate = np.asarray(mjd, float), np.asarray(rate, float)
    stars, star = np.unique(["star"] * len(mjd) if star is None else star, return_inverse=True)
    _check_values(mjd=mjd, rate=rate)
    found = _solve_sum(mjd, rate, star, tau)
    loss, amplitude, *rest = found.x[len(stars) :].tolist()
    _covariance(found.jac)  # raises where there is none
    if rest and not (amplitude > _LEAST_AMPLITUDE and _is_bounded(np.exp(rest[0]))):
        raise ValueError(_NOT_IDENTIFIABLE)
    return Fit(
        loss=TimeLoss(loss, amplitude, tau or float(np.exp(rest[0])), np.full((3, 3), np.nan)),
        scale=dict(zip(stars.tolist(), np.exp(found.x[: len(stars)]).tolist(), strict=True)),
        factor={},
        factor_error={},
        residual=1 / (1 + found.fun) - 1,
        chi2=float("nan"),
        dof=len(mjd) - len(found.x),
    )


def _solve_sum(mjd, rate, star, tau):
    """Least squares in logarithms of brightness and tau, and in loss and amplitude."""
    days, number = mjd - T0, star.max() + 1

    def residual(x):
        loss, amplitude, *rest = x[number:]
        fall = np.expm1(-days / (tau or np.exp(rest[0])))
        return np.exp(x[star]) * (1 - loss * days / YEAR + amplitude * fall) / rate - 1

    first = np.log(np.bincount(star, rate) / np.bincount(star))
    starts = [[*first, 0.0, 0.05, np.log(begin)] for begin in _FIRST_TAUS]
    bounds = [(-np.inf, np.inf)] * (number + 1) + [(0, 1), np.log([_LEAST_TAU, _LARGEST_TAU])]
    size = number + (2 if tau else 3)
    found = [
        optimize.least_squares(
            residual, start[:size], bounds=np.transpose(bounds[:size]), max_nfev=_MOST_STEPS
        )
        for start in starts
    ]
    return min(found, key=lambda one: one.cost)


def interpolate(losses: Mapping[float, TimeLoss], wavelength: float) -> TimeLoss:
    """
    Interpolate the loss between filters that were monitored, for one that was not.

    Parameters
    ----------
    losses : mapping
        Loss by the pivot wavelength of its filter [micron], two or more.
    wavelength : float
        Pivot wavelength of the other [micron], between those.

    Returns
    -------
    TimeLoss
        Linear in wavelength between the nearest on each side, and so is its covariance: errors of neighbours
        may have one cause, and do not average out. To that is added the error of the interpolation itself,
        for which half the difference between the two is taken.

    Raises
    ------
    ValueError
        If the wavelength does not lie between two of these.
    """
    known = sorted(losses)
    if not known or not known[0] <= wavelength <= known[-1]:
        raise ValueError(
            f"wavelength must lie between those of monitored filters, {known} micron, got {wavelength}"
        )
    if wavelength in losses:
        return losses[wavelength]
    after = int(np.searchsorted(known, wavelength))
    left, right = losses[known[after - 1]], losses[known[after]]
    part = (wavelength - known[after - 1]) / (known[after] - known[after - 1])
    first, last = (np.array([one.loss, one.amplitude, one.tau]) for one in (left, right))
    half = (last - first) / 2
    return TimeLoss(
        *((1 - part) * first + part * last).tolist(),
        covariance=(1 - part) * left.covariance + part * right.covariance + np.outer(half, half),
    )
