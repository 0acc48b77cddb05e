"""Bring exposures of one background to a common level."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

__all__ = ["CELL", "SCALINGS", "Levels", "fit", "fit_one", "to_cells"]

#: How an exposure may follow the common background: by an offset, a factor, both or not at all.
SCALINGS = ("additive", "multiplicative", "both", "none")
#: Side of a cell [pixel]: 64 pixels average the noise, so that faint light stands out and is left out.
CELL = 8

_MOST_ROUNDS = 30
# A level is settled when it moves by less than this part of the noise of a pixel: the levels themselves are
# not known better from 16 000 cells.
_TOLERANCE = 1e-3
# Tukey's biweight: 95 % efficient for normal residuals.
_TUKEY = 4.685
_WEIGHTED_ROUNDS = 20
# A weight that moves by less changes nothing that could be seen.
_WEIGHT_TOLERANCE = 1e-3
# A factor that the structure of the background does not determine to this is taken for 1, ...
_LARGEST_FACTOR_ERROR = 0.1
# ... and one that rests on fewer cells, ...
_LEAST_CELLS = 5
# ... or on a background of which more than this part of what is seen in the means of cells is noise.
_LARGEST_NOISE_SHARE = 0.5
# No lamp changes by more while a background is built.
_LARGEST_FACTOR = 5.0
# Exposures that hang together by a smaller part of their pixels are not connected.
_LEAST_CONNECTION = 1e-6
# Each round improves on the last: its equations need not be solved to all digits.
_SOLVER_TOLERANCE = 1e-6
# Pixels farther from the median of the exposures are left out [standard deviation of a pixel].
_OUTLIER = 5.0
# Sums of weights are less than this only where there are none.
_TINY = 1e-9


@dataclass(frozen=True)
class Levels:
    """
    How exposures follow their common background B: as ``factor * B + level``.

    Parameters
    ----------
    factor : ndarray
        One per exposure, shape (n,), with mean 1.
    level : ndarray
        One per exposure, shape (n,), with mean 0 where there is one [unit of the data].
    rounds : int
        Rounds over all pixels that it took, 0 where nothing was to be found.
    converged : bool
        Whether they had settled by then.
    """

    factor: np.ndarray
    level: np.ndarray
    rounds: int
    converged: bool


def to_cells(image: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """
    Cut square cells out of an image.

    Parameters
    ----------
    image : ndarray
        Shape (ny, nx).
    cells : ndarray
        Cells wanted, counted row by row over the image cut to whole cells, shape (c,).

    Returns
    -------
    ndarray
        Their pixels, shape (c, `CELL` ** 2).
    """
    ny, nx = (n // CELL for n in image.shape)
    squares = image[: ny * CELL, : nx * CELL].reshape(ny, CELL, nx, CELL).swapaxes(1, 2)
    return squares.reshape(ny * nx, CELL**2)[cells]


def fit(samples: np.ndarray, scaling: str) -> Levels:
    r"""
    Find how each exposure follows the background that all of them share.

    Think of photographs of one wall under a lamp that is turned up and down: the wall is found
    from all of them once their brightness is known, and their brightness from the wall. Either
    follows from the other until nothing changes.

    Factors, levels and background are those of weighted least squares. Pixels that are far from the
    median of the exposures take no part, and cells of 8 x 8 pixels that stand out in the residuals of
    an exposure take less or none (Tukey's biweight), as where a star was not masked.

    Parameters
    ----------
    samples : ndarray
        Pixels of the exposures by cell, shape (n, c, pixels of a cell); NaN where masked.
    scaling : {"additive", "multiplicative", "both", "none"}
        What may differ from exposure to exposure.

    Returns
    -------
    Levels
        Factors and levels; NaN for an exposure without any pixel, unless `scaling` is "none".

    Raises
    ------
    ValueError
        If `scaling` is none of the four, or "multiplicative" for an exposure whose level is not above 0.

    Notes
    -----
    Taken in turn, two sets of exposures that share a hundredth of their pixels would need hundreds of rounds
    to find each other. So each round solves for the levels at which nothing would move any more: levels that
    are changed by :math:`d_k` move the background of a pixel by the mean of :math:`d` over the exposures that
    see it, and the residuals of exposure k by

    .. math:: r_k = \langle \langle d \rangle_\mathrm{exposures} - d_k \rangle_{\mathrm{pixels\ of\ } k}.

    These are n equations, solved for means of cells first and then once or twice for pixels, whose masks
    differ. Exposures that no pixel connects keep the distance of their medians.

    With "both", a factor is 1 where the background has not the structure to show it; all are, if
    exposures share so little that factors run away.

    The order of the exposures changes nothing, bit for bit, unless two have the same median.

    Light that stays on the same detector pixels in all exposures is background to this function.
    With "multiplicative" the data must hold their full level: nothing may have been subtracted.
    """
    _check(scaling)
    n = len(samples)
    seen = [np.isfinite(each) for each in samples]
    middle = np.array([_median(each, known) for each, known in zip(samples, seen, strict=True)])
    factor, level = (np.where(np.isnan(middle), np.nan, value) for value in (1.0, 0.0))
    usable = np.flatnonzero(~np.isnan(middle))
    if scaling == "multiplicative":
        for k in usable:
            _check_level(middle[k], f"exposure {k}")
    if scaling == "none":
        return Levels(np.ones(n), np.zeros(n), 0, True)
    # One order, whatever the order they came in: sums depend on it in their last digits.
    usable = usable[np.argsort(middle[usable], kind="stable")]
    if len(usable) < 2:
        return Levels(factor, level, 0, True)
    group = _Group([samples[k] for k in usable], [seen[k] for k in usable], middle[usable], scaling)
    rounds, converged = group.settle()
    factor[usable], level[usable] = group.factor, group.level
    return Levels(factor, level, rounds, converged)


def fit_one(samples: np.ndarray, background: np.ndarray, scaling: str) -> tuple[float, float]:
    """
    Find how one exposure follows a known background.

    Parameters
    ----------
    samples : ndarray
        Pixels of the exposure by cell, shape (c, pixels of a cell); NaN where masked.
    background : ndarray
        The same pixels of the background; NaN where it is not known.
    scaling : {"additive", "multiplicative", "both", "none"}
        What may differ.

    Returns
    -------
    factor, level : float
        1 and 0 where nothing may differ; NaN if the two share no pixel.

    Raises
    ------
    ValueError
        If `scaling` is none of the four, or "multiplicative" where the level of either is not above 0.
    """
    _check(scaling)
    if scaling == "none":
        return 1.0, 0.0
    both = np.isfinite(samples) & np.isfinite(background)
    if not both.any():
        return np.nan, np.nan
    if scaling == "multiplicative":
        _check_level(_median(background, both), "the background")
        _check_level(_median(samples, both), "the exposure")
    some = both.any(axis=1)
    samples, background, both = samples[some], background[some], both[some]
    weight = _counts(both)
    x, y = (_means(plane, both, weight) for plane in (background, samples))
    if scaling == "additive":
        return 1.0, _height(y - x, weight)
    if scaling == "multiplicative":
        return float(_robust(x[:, np.newaxis], y, weight, [np.median(y) / np.median(x)])[0]), 0.0
    return _line(x, y, weight, _halves(background))


def _check(scaling):
    if scaling not in SCALINGS:
        raise ValueError(f"scaling must be one of {', '.join(SCALINGS)}, got {scaling!r}")


def _check_level(middle, name):
    if not middle > 0:
        raise ValueError(f"with scaling='multiplicative' levels must be above 0, got {middle:.4g} for {name}")


def _median(values, known):
    return float(np.median(values[known])) if known.any() else np.nan


# ---- cells


def _counts(known):
    return np.count_nonzero(known, axis=1).astype(float)


def _means(plane, known, weight):
    """Average the known pixels of each cell; 0 where there is none."""
    return np.sum(np.where(known, plane, 0), axis=1, dtype=float) / np.maximum(weight, 1)


def _halves(background):
    """Average the black and the white squares of the chessboard that each cell is."""
    place = np.arange(background.shape[1])
    white = (place + place // CELL) % 2 == 0
    halves = background[:, white], background[:, ~white]
    return [_means(half, known, _counts(known)) for half in halves for known in [np.isfinite(half)]]


# ---- one exposure


def _line(x, y, weight, halves):
    """Fit factor and level; the factor only as far as the background has structure to show it."""
    middle = np.average(x, weights=weight)
    level = _height(y - x, weight)
    terms = np.stack([x - middle, np.ones_like(x)], axis=1)
    slope, height = _robust(terms, y, weight, [1.0, middle + level])
    noise = _scatter(y - terms @ [slope, height], weight)
    if not _shows_factor(x, weight, halves, noise):
        return 1.0, level
    return float(slope), float(height - slope * middle)


def _height(difference, weight):
    return float(_robust(np.ones((len(difference), 1)), difference, weight, [np.median(difference)])[0])


def _robust(terms, y, weight, start):
    """Solve weighted least squares without outliers."""
    solution, limit = np.asarray(start, float), 0
    for _ in range(_WEIGHTED_ROUNDS):
        former, limit = limit, _limit(y - terms @ solution, weight, y)
        total = terms * (weight * limit)[:, np.newaxis]
        solution = np.linalg.lstsq(total.T @ terms, total.T @ y, rcond=None)[0]
        if np.max(np.abs(limit - former)) < _WEIGHT_TOLERANCE:
            break
    return solution


def _limit(residual, weight, y):
    """Weigh by Tukey's biweight."""
    # Values that agree to rounding have no scatter.
    least = np.finfo(np.float32).eps * np.max(np.abs(y) * np.sqrt(weight)) + np.finfo(float).tiny
    reach = _TUKEY * max(_scatter(residual, weight), least)
    return np.maximum(0, 1 - (residual * np.sqrt(weight) / reach) ** 2) ** 2


def _scatter(residual, weight):
    """Find the noise of one pixel from the means of cells."""
    some = weight > 0
    return 1.4826 * np.median((np.abs(residual) * np.sqrt(weight))[some]) if some.any() else 0.0


def _shows_factor(x, weight, halves, noise):
    """Tell whether the background has enough structure in the cells of an exposure."""
    if np.count_nonzero(weight) < _LEAST_CELLS:
        return False
    # The noise of two halves has nothing in common, their structure has.
    x, first, second = (plane - np.average(plane, weights=weight) for plane in (x, *halves))
    structure = np.sum(weight * first * second)
    if structure <= (1 - _LARGEST_NOISE_SHARE) * np.sum(weight * x**2):
        return False
    return noise <= _LARGEST_FACTOR_ERROR * np.sqrt(structure)


# ---- all exposures


class _Group:
    """Exposures that each have a pixel, as they are found to follow their background."""

    def __init__(self, samples, seen, middle, scaling):
        n = len(samples)
        self.samples, self.seen, self.scaling = samples, list(seen), scaling
        self._take(seen)
        # Which of factor and level may differ.
        self.free = np.zeros((2, n), bool)
        self.free[int(scaling != "multiplicative")] = True
        self.factor, self.level = np.ones(n), middle - np.mean(middle)
        if scaling == "multiplicative":
            self.factor, self.level = middle / np.mean(middle), np.zeros(n)

    def _take(self, seen):
        """Take the pixels that at least two exposures see: the others say nothing about levels."""
        number = sum(known.astype(np.uint16) for known in seen)
        self.seen = [known & (number > 1) for known in seen]
        self.weight = np.array([_counts(known) for known in self.seen])
        self.y = np.array([_means(*each) for each in zip(self.samples, self.seen, self.weight, strict=True)])

    def settle(self):
        """Go from cells to pixels, until nothing moves; give the rounds it took and whether it did."""
        self._settle_cells()
        background = self._median()
        noise = self._leave_out(background)
        if self.scaling == "both":
            self._free_factors(background, noise)
        rounds, moved = 0, np.inf
        while moved > _TOLERANCE * noise and rounds < _MOST_ROUNDS:
            background = self._background()
            means = [_means(background, *each) for each in zip(self.seen, self.weight, strict=True)]
            moved, rounds = self._improve(np.array(means)), rounds + 1
            self._weigh(np.array(means))
        return rounds, bool(moved <= _TOLERANCE * noise)

    def _free_factors(self, background, noise):
        """Let the factors differ that show; none if they run away, as their connection is too weak."""
        halves, x = _halves(background), self._cells()
        level = self.level
        self.free[0] = [_shows_factor(x, weight, halves, noise) for weight in self.weight]
        self._settle_cells()
        if not self._is_credible():
            self.factor, self.level, self.free[0] = np.ones_like(level), level, False
            self._settle_cells()

    def _is_credible(self):
        return np.all((self.factor > 1 / _LARGEST_FACTOR) & (self.factor < _LARGEST_FACTOR))

    def _settle_cells(self):
        """Solve for all at once with the means of cells as they are, outliers included first."""
        self.limit, x = np.ones_like(self.weight), None
        for robust in (False, True):
            for _ in range(_MOST_ROUNDS):
                if robust:
                    # By the residuals from the last background.
                    self._weigh(x)
                x = np.broadcast_to(self._cells(), self.y.shape)
                moved = self._improve(x)
                scatter = [_scatter(*each) for each in zip(self._residual(x), self.weight, strict=True)]
                runs_away = self.scaling == "both" and not self._is_credible()
                if runs_away or moved <= _TOLERANCE * np.median(scatter):
                    break

    def _cells(self):
        """Average the exposures at the common level, cell by cell."""
        weight = self.weight * self.limit * self.factor[:, np.newaxis]
        total = np.sum(weight * (self.y - self.level[:, np.newaxis]), axis=0)
        return total / np.maximum(np.sum(weight * self.factor[:, np.newaxis], axis=0), _TINY)

    def _background(self):
        """Average the exposures at the common level, pixel by pixel."""
        total, norm = np.zeros(self.samples[0].shape), np.zeros(self.samples[0].shape)
        for k, (each, known) in enumerate(zip(self.samples, self.seen, strict=True)):
            weight = known * (self.factor[k] * self.limit[k][:, np.newaxis])
            total += (np.where(known, each, 0) - self.level[k]) * weight
            norm += self.factor[k] * weight
        return total / np.maximum(norm, _TINY)

    def _median(self):
        """Take the median of the exposures at the common level, pixel by pixel."""
        stack = np.empty((len(self.samples), *self.samples[0].shape), np.float32)
        for k, (each, known) in enumerate(zip(self.samples, self.seen, strict=True)):
            common = (each - np.float32(self.level[k])) / np.float32(self.factor[k])
            stack[k] = np.where(known, common, np.inf)
        stack.sort(axis=0)
        number = np.count_nonzero(self.seen, axis=0)[np.newaxis]
        places = np.maximum(number - 1, 0) // 2, number // 2
        low, high = (np.take_along_axis(stack, at, axis=0)[0] for at in places)
        return np.where(number[0] > 0, (low + high) / 2, np.float32(np.nan))

    def _leave_out(self, background):
        """Leave out the pixels that stand out alone; give the noise of the others."""
        away = [
            np.abs(each - np.float32(f) * background - np.float32(b))
            for each, f, b in zip(self.samples, self.factor, self.level, strict=True)
        ]
        pairs = zip(away, self.seen, strict=True)
        scatter = [np.median(each[known]) for each, known in pairs if known.any()]
        noise = 1.4826 * float(np.median(scatter)) if scatter else 0.0
        self._take([known & (each <= _OUTLIER * noise) for each, known in zip(away, self.seen, strict=True)])
        return noise

    def _residual(self, x):
        return self.y - self.factor[:, np.newaxis] * x - self.level[:, np.newaxis]

    def _weigh(self, x):
        """Leave out the cells that stand out."""
        rest = zip(self._residual(x), self.weight, self.y, strict=True)
        self.limit = np.array([_limit(*each) for each in rest])

    def _improve(self, x):
        """Move factors and levels to where the background, once it has followed, leaves no residual."""
        # The same weights as in the background: then what all have in common is no residual.
        weight = self.weight * self.limit
        shape = np.sum(weight * x, axis=0) / np.maximum(np.sum(weight, axis=0), _TINY)
        # Level and factor are least entangled where the background has its mean.
        middle = np.sum(weight * shape) / max(np.sum(weight), _TINY) if self.scaling == "both" else 0.0
        terms = np.stack([shape - middle, np.ones_like(shape)])
        step = self._step(terms, weight, np.einsum("kc,ac,kc->ak", weight, terms, self._residual(x)))
        factor, level = self.factor + step[0], self.level + step[1] - step[0] * middle
        factor, level = _normalise(factor, level, self.free)
        moved = np.outer(factor - self.factor, shape) + (level - self.level)[:, np.newaxis]
        self.factor, self.level = factor, level
        return np.max(np.abs(moved))

    def _step(self, terms, weight, known):
        """Solve the normal equations of all exposures, from which the background has been eliminated."""
        followed = weight * self.factor[:, np.newaxis]
        norm = np.maximum(np.einsum("kc,k->c", followed, self.factor), _TINY)
        own = np.einsum("kc,ac->ak", weight, terms**2)
        size = np.divide(1, np.sqrt(own), out=np.zeros_like(own), where=self.free & (own > 0))

        def apply(step):
            step = step.reshape(size.shape)
            moved = np.einsum("ak,ac->kc", size * step, terms)
            left = weight * moved - followed * (np.einsum("kc,kc->c", followed, moved) / norm)
            return (size * np.einsum("kc,ac->ak", left, terms) + _LEAST_CONNECTION * step).ravel()

        # A direct solver would ask for many threads for little work.
        operator = LinearOperator((size.size, size.size), matvec=apply, dtype=float)
        step, _ = cg(operator, (size * known).ravel(), rtol=_SOLVER_TOLERANCE, maxiter=10 * size.size)
        return size * step.reshape(size.shape)


def _normalise(factor, level, free):
    """Give what all exposures have in common to the background."""
    if free[0].all():
        factor = factor / np.mean(factor)
    if free[1].all():
        # d = f B + l = f (B + m) + l - f m, where m is such that what is left of l has mean 0.
        level = level - factor * (np.mean(level) / np.mean(factor))
    return factor, level
