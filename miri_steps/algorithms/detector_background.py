"""A smooth background fixed to the detector, as a polynomial in detector position."""

from dataclasses import dataclass

import numpy as np
from numpy.polynomial import legendre

__all__ = ["DetectorPolynomial", "visible_terms"]


@dataclass(frozen=True)
class DetectorPolynomial:
    """
    Products of Legendre polynomials in x and y up to a total degree, without the constant.

    Over the box `center` +- `half` every term has mean 0 and rms 1 and no two terms are
    correlated, so a coefficient is the rms of its part of the background there [same unit as
    the background].

    Parameters
    ----------
    order : int
        Highest total degree, 0 for no terms.
    center : tuple of float
        Middle of the box (x, y) [pixel].
    half : tuple of float
        Half the sides of the box (x, y) [pixel].

    Raises
    ------
    ValueError
        If `order` is negative or a side of the box is not positive.
    """

    order: int
    center: tuple[float, float]
    half: tuple[float, float]

    def __post_init__(self):
        """Check the values."""
        if self.order < 0:
            raise ValueError(f"order must be at least 0, got {self.order}")
        if min(self.half) <= 0:
            raise ValueError(f"half must be positive, got {self.half}")

    @property
    def degrees(self) -> list[tuple[int, int]]:
        """Degree in x and y of every term."""
        return [(total - b, b) for total in range(1, self.order + 1) for b in range(total + 1)]

    def evaluate(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """
        Evaluate all terms at detector positions.

        Parameters
        ----------
        x, y : ndarray
            Positions, one shape [pixel].

        Returns
        -------
        ndarray
            Terms, float32, shape ``(number of terms, *x.shape)``.
        """
        tables = [
            legendre.legvander((np.asarray(z, np.float32) - c) / h, self.order)
            for z, c, h in zip((x, y), self.center, self.half, strict=True)
        ]
        terms = [
            np.sqrt((2 * a + 1) * (2 * b + 1)) * tables[0][..., a] * tables[1][..., b]
            for a, b in self.degrees
        ]
        return np.array(terms, np.float32).reshape(len(terms), *np.shape(x))

    def image(
        self, coefficients: np.ndarray, shape: tuple[int, int], origin: tuple[int, int] = (0, 0)
    ) -> np.ndarray:
        """
        Draw the background over a readout frame.

        Parameters
        ----------
        coefficients : ndarray
            One value per term.
        shape : tuple of int
            Shape of the frame (ny, nx).
        origin : tuple of int, optional
            Position (x, y) of its first pixel on the detector [pixel].

        Returns
        -------
        ndarray
            Background, float32, shape (ny, nx) [unit of the coefficients].
        """
        row, column = np.indices(shape, np.float32)
        total = np.zeros(shape, np.float32)
        terms = self.evaluate(column + origin[0], row + origin[1])
        for coefficient, term in zip(coefficients, terms, strict=True):
            total += np.float32(coefficient) * term
        return total


def visible_terms(information: np.ndarray, weight: float, *, min_visibility: float) -> np.ndarray:
    """
    Pick the patterns that the dithers make visible.

    A pattern fixed to the detector shows in the difference of two exposures only as far as it
    changes over the shift between them. Shift a plane and it comes back as itself plus a
    constant, which is a level: planes are invisible unless the exposures are rolled against
    each other. The visibility of a pattern is the rms of what it leaves in the differences
    over its own rms on the detector.

    Parameters
    ----------
    information : ndarray
        Sum over pairs of weight times covariance of the differences of the terms, (k, k).
    weight : float
        Sum of the weights.
    min_visibility : float
        Smallest visibility of a pattern that is kept.

    Returns
    -------
    ndarray
        Patterns kept, as orthonormal columns of coefficients, shape (k, m), m <= k.
    """
    if not len(information) or weight <= 0:
        return np.zeros((len(information), 0))
    squared, patterns = np.linalg.eigh(information / weight)
    return patterns[:, squared > min_visibility**2]
