"""The linear equations of levels and of patterns fixed to the detector."""

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu

from miri_steps.algorithms.sky_network import Network

__all__ = ["Design", "Normal", "centered", "less_mean"]

# Columns of the inverse that are worked out at a time.
_COLUMNS = 64


class Normal:
    """
    Normal equations of levels and patterns, factored.

    An exposure has few neighbours, so that the equations of the levels are sparse, and stay so when
    they are factored; the few patterns, which are in all of them, are eliminated apart (Schur
    complement). Memory grows with the number of exposures, not with its square.

    Parameters
    ----------
    weight : ndarray
        Weight of each pair, shape (p,).
    levels : sparse array
        Equations of the levels, shape (n, n).
    mixed : ndarray
        What the patterns add to them, shape (n, m).
    patterns : ndarray
        Equations of the patterns, shape (m, m).

    Attributes
    ----------
    carried : ndarray
        Levels that patterns of strength 1 are mistaken for, shape (n, m).
    covariance : ndarray
        Covariance of the strengths of the patterns, shape (m, m).
    """

    def __init__(self, weight, levels, mixed, patterns):
        self.weight, self.mixed = weight, mixed
        # Symmetric and positive: no pivoting is needed, and an order that is made for such equations.
        self.factor = splu(
            levels, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        )
        self.carried = self.factor.solve(mixed) if mixed.shape[1] else mixed
        self.covariance = np.linalg.inv(patterns - mixed.T @ self.carried)

    def solve(self, level: np.ndarray, pattern: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Solve for right sides.

        Parameters
        ----------
        level, pattern : ndarray
            Right sides of the levels, shape (n,), and of the patterns, shape (m,).

        Returns
        -------
        level, strength : ndarray
            Levels, shape (n,), and strengths of the patterns, shape (m,).
        """
        alone = self.factor.solve(level)
        strength = self.covariance @ (pattern - self.mixed.T @ alone)
        return alone - self.carried @ strength, strength

    def variances(self, component: np.ndarray) -> np.ndarray:
        """
        Find the variances of the levels without patterns: the diagonal of an inverse.

        The whole inverse would be as large as exposures squared; a few of its columns are worked out
        at a time, and one column serves an exposure of each piece.

        Parameters
        ----------
        component : ndarray
            Piece of each level, shape (n,).

        Returns
        -------
        ndarray
            Shape (n,).
        """
        place = _places(component)
        found = np.empty(len(place))
        for start in range(0, place.max() + 1, _COLUMNS):
            member = np.flatnonzero((place >= start) & (place < start + _COLUMNS))
            column = place[member] - start
            asked = np.zeros((len(place), column.max() + 1))
            asked[member, column] = 1
            found[member] = self.factor.solve(asked)[member, column]
        return found


class Design:
    """
    The linear model: free levels, of which the first of each piece is held at 0, then patterns.

    Parameters
    ----------
    network : Network
        The pairs, at least one.
    patterns : ndarray
        Background patterns, as columns of coefficients, shape (k, m).
    component : ndarray
        Piece of each exposure, -1 for one without a pair, shape (size,).

    Attributes
    ----------
    piece : ndarray
        Piece of each pair, shape (p,).
    """

    def __init__(self, network: Network, patterns: np.ndarray, component: np.ndarray):
        self.network, self.patterns, self.component = network, patterns, component
        held = np.unique(component, return_index=True)[1]
        self.free = np.setdiff1d(np.flatnonzero(component >= 0), held)
        self.levels, self.tilt = self._level_columns(), network.terms @ patterns
        self.piece = component[network.first]
        self.count = np.bincount(component[component >= 0])
        # Levels use up pairs; patterns live on how differences vary inside them.
        self.freedom = 1 - (self.count - 1) / np.bincount(self.piece)

    def _level_columns(self):
        pair, network = np.arange(len(self.network.first)), self.network
        ends = np.concatenate([network.first, network.second])
        signs = np.repeat([1.0, -1.0], len(pair))
        whole = sparse.coo_array((signs, (np.tile(pair, 2), ends)), shape=(len(pair), network.size))
        return whole.tocsc()[:, self.free].tocsr()

    def normal(self, share: np.ndarray) -> Normal:
        """
        Set up the normal equations.

        Parameters
        ----------
        share : ndarray
            Share of its weight that each pair is left, shape (p,).

        Returns
        -------
        Normal
            The equations.
        """
        weight = self.network.weight * share
        levels = self.levels.T @ sparse.diags_array(weight) @ self.levels
        weighted = weight[:, np.newaxis] * self.tilt
        inside = self.patterns.T @ self.network.information(weight) @ self.patterns
        return Normal(weight, levels.tocsc(), self.levels.T @ weighted, self.tilt.T @ weighted + inside)

    def explain(
        self, normal: Normal, difference: np.ndarray, slope: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Find what explains differences, and how they vary within overlaps, best.

        Parameters
        ----------
        normal : Normal
            The equations.
        difference : ndarray
            Shape (p,).
        slope : ndarray
            Sum over the pairs of weight times covariance of terms and differences, shape (k,).

        Returns
        -------
        level, strength : ndarray
            Free levels and strengths of the patterns.
        """
        weighted = normal.weight * difference
        return normal.solve(self.levels.T @ weighted, self.tilt.T @ weighted + self.patterns.T @ slope)

    def fit(self, normal: Normal) -> tuple[np.ndarray, np.ndarray]:
        """
        Explain the differences of the network.

        Parameters
        ----------
        normal : Normal
            The equations.

        Returns
        -------
        level, strength : ndarray
            Free levels and strengths of the patterns.
        """
        return self.explain(normal, self.network.difference, normal.weight @ self.network.slope)

    def residual(self, level: np.ndarray, strength: np.ndarray) -> np.ndarray:
        """
        Subtract a solution from the differences of the network.

        Parameters
        ----------
        level, strength : ndarray
            Free levels and strengths of the patterns.

        Returns
        -------
        ndarray
            Shape (p,).
        """
        return self.network.difference - self.levels @ level - self.tilt @ strength

    def scatter(self, residual: np.ndarray) -> np.ndarray:
        """
        Find the robust ratio of residuals to their errors in each piece.

        Parameters
        ----------
        residual : ndarray
            Shape (p,).

        Returns
        -------
        ndarray
            At least 1, below which there is only noise; shape (number of pieces,).
        """
        found = np.ones(len(self.freedom))
        # Where every pair is needed, none is left to check the others.
        checked = self.freedom > 0
        ratio = _medians(np.abs(residual) / self.network.error, self.piece)[checked]
        found[checked] = np.maximum(1.0, 1.4826 * ratio / np.sqrt(self.freedom[checked]))
        return found

    def centered(self, level: np.ndarray) -> np.ndarray:
        """
        Measure levels from the mean of each piece instead of its first exposure.

        Parameters
        ----------
        level : ndarray
            Free levels, shape (n, ...).

        Returns
        -------
        ndarray
            Levels of all exposures, shape (size, ...); NaN for one without a pair.
        """
        return centered(self._padded(level), self.component)

    def errors(self, normal: Normal) -> np.ndarray:
        """
        Take the standard errors of the centered levels from the normal equations.

        Parameters
        ----------
        normal : Normal
            The equations.

        Returns
        -------
        ndarray
            Errors of all exposures, shape (size,); NaN for one without a pair.
        """
        inside = self.component >= 0
        piece = self.component[inside]
        variance = self._padded(normal.variances(self.component[self.free]))[inside]
        # Covariances reach from one piece to another only through the patterns, so that one right
        # side of ones sums those of every exposure with its piece.
        mean = self._padded(normal.factor.solve(np.ones(len(self.free))))[inside] / self.count[piece]
        variance += (np.bincount(piece, mean) / self.count)[piece] - 2 * mean
        carried = self.centered(normal.carried)[inside]
        variance += np.einsum("nm,ml,nl->n", carried, normal.covariance, carried)
        error = np.full(len(self.component), np.nan)
        error[inside] = np.sqrt(np.maximum(variance, 0))
        return error

    def _padded(self, free):
        """Fill in the levels that are held."""
        values = np.zeros((len(self.component), *free.shape[1:]))
        values[self.free] = free
        return values


def _places(group):
    """Count the members of each group from 0."""
    order = np.argsort(group, kind="stable")
    count = np.bincount(group)
    place = np.empty(len(group), int)
    place[order] = np.arange(len(group)) - np.repeat(np.cumsum(count) - count, count)
    return place


def _medians(values, group):
    """Find the median of each group; groups are counted from 0, and none is empty."""
    ordered = values[np.lexsort((values, group))]
    count = np.bincount(group)
    start = np.cumsum(count) - count
    return (ordered[start + (count - 1) // 2] + ordered[start + count // 2]) / 2


def centered(values: np.ndarray, component: np.ndarray) -> np.ndarray:
    """
    Subtract the mean of each piece.

    Parameters
    ----------
    values : ndarray
        Shape (n, ...).
    component : ndarray
        Piece of each value, -1 for none, shape (n,).

    Returns
    -------
    ndarray
        Shape (n, ...); NaN where there is no piece.
    """
    found = np.full(values.shape, np.nan)
    inside = component >= 0
    found[inside] = less_mean(values[inside], component[inside])
    return found


def less_mean(values: np.ndarray, body: np.ndarray) -> np.ndarray:
    """
    Subtract the mean of each body of values.

    Parameters
    ----------
    values : ndarray
        Shape (n,) or (n, m).
    body : ndarray
        Number of each value's body, shape (n,).

    Returns
    -------
    ndarray
        Shape of `values`.
    """
    if not len(body):
        return values
    members = sparse.csr_array((np.ones(len(body)), (body, np.arange(len(body)))))
    return values - ((members @ values).T / np.bincount(body)).T[body]
