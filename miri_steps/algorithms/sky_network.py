"""Differences between exposures as arrays over pairs."""

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

__all__ = ["Network", "components", "floored", "pack", "unpack"]


@dataclass(frozen=True)
class Network:
    """
    Differences between exposures, as arrays over pairs.

    Parameters
    ----------
    size : int
        Number of exposures.
    first, second : ndarray
        Indices of the exposures of each pair, shape (p,).
    difference : ndarray
        First minus second, shape (p,).
    error : ndarray
        Its standard error, as if the pair stood alone, shape (p,).
    terms : ndarray
        Mean difference of the background terms in each pair, shape (p, k).
    covariance : ndarray
        Covariance of the differences of the terms within each pair, each half of it once (`pack`),
        shape (p, k (k + 1) / 2).
    slope : ndarray
        Covariance of the terms with the brightness within each pair, shape (p, k).
    independence : ndarray or float, optional
        Part of its information that each pair has for itself, shape (p,).
    """

    size: int
    first: np.ndarray
    second: np.ndarray
    difference: np.ndarray
    error: np.ndarray
    terms: np.ndarray
    covariance: np.ndarray
    slope: np.ndarray
    independence: np.ndarray | float = 1.0

    @property
    def weight(self) -> np.ndarray:
        """Inverse variance of each pair that counts each cell's noise once, shape (p,)."""
        return self.independence * self.error**-2.0

    def information(self, weight: np.ndarray) -> np.ndarray:
        """Sum what the pairs know of the terms from inside their overlaps, shape (k, k)."""
        return unpack(np.einsum("p,pm->m", weight, self.covariance), self.terms.shape[1])

    def select(self, pairs: np.ndarray) -> "Network":
        """Keep some of the pairs (mask or indices)."""
        names = ("first", "second", "difference", "error", "terms", "covariance", "slope")
        kept = {name: getattr(self, name)[pairs] for name in names}
        return replace(self, **kept, independence=np.broadcast_to(self.independence, self.error.shape)[pairs])

    def without(self, background: np.ndarray) -> "Network":
        """Take a background (k,) out of the differences, and its terms with it."""
        none = np.zeros((len(self.first), 0))
        return replace(
            self,
            difference=self.difference - self.terms @ background,
            terms=none,
            covariance=none,
            slope=none,
        )


def pack(matrix: np.ndarray) -> np.ndarray:
    """
    Keep the upper half of symmetric matrices, the diagonal with it.

    Parameters
    ----------
    matrix : ndarray
        Shape (..., k, k).

    Returns
    -------
    ndarray
        Row after row, shape (..., k (k + 1) / 2).
    """
    rows, columns = np.triu_indices(matrix.shape[-1])
    return matrix[..., rows, columns]


def unpack(half: np.ndarray, k: int) -> np.ndarray:
    """
    Complete a symmetric matrix that `pack` has halved.

    Parameters
    ----------
    half : ndarray
        Shape (k (k + 1) / 2,).
    k : int
        Side of the matrix.

    Returns
    -------
    ndarray
        Shape (k, k).
    """
    matrix = np.zeros((k, k))
    rows, columns = np.triu_indices(k)
    matrix[rows, columns] = matrix[columns, rows] = half
    return matrix


def floored(error: np.ndarray) -> np.ndarray:
    """
    Keep pairs without scatter (an exposure listed twice, images of zeros) from outweighing all others.

    Parameters
    ----------
    error : ndarray
        Standard error of each pair, shape (p,).

    Returns
    -------
    ndarray
        At least a tenth of the median of the positive ones, shape (p,).
    """
    positive = error[error > 0]
    return np.maximum(error, 0.1 * np.median(positive)) if positive.size else np.full_like(error, 1e-12)


def components(size: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """
    Find the connected pieces of a field.

    Parameters
    ----------
    size : int
        Number of exposures.
    first, second : ndarray
        Exposures of each pair, shape (p,).

    Returns
    -------
    ndarray
        Piece of each exposure, counted from 0 in the order of their first exposures; -1 for an
        exposure without a pair, shape (size,).
    """
    links = sparse.coo_array((np.ones(len(first)), (first, second)), shape=(size, size))
    label = csgraph.connected_components(links, directed=False)[1]
    paired = np.flatnonzero(np.bincount(np.concatenate([first, second]), minlength=size))
    start, number = np.unique(label[paired], return_index=True, return_inverse=True)[1:]
    found = np.full(size, -1)
    found[paired] = np.argsort(np.argsort(start))[number.reshape(-1)]
    return found
