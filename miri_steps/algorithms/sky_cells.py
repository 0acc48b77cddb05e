"""Resample exposures onto the cells of one common sky grid."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from drizzle.resample import Drizzle
from scipy.interpolate import RectBivariateSpline

__all__ = [
    "CutOut",
    "DetectorPosition",
    "Held",
    "Keep",
    "Kept",
    "PixelMap",
    "SkyCells",
    "noise_correlation",
    "overlap",
    "resample",
    "shared_by",
]

# Degree of the polynomial that carries cells back to the detector. MIRI's distortion is itself
# a polynomial of degree 4, so this leaves less than 0.01 pixel.
_INVERSE_DEGREE = 5

# Drizzle sums weights in float32; a cell covered in full may miss it by this much.
_WEIGHT_ROUNDING = 1 - 1e-3


@dataclass(frozen=True)
class PixelMap:
    """
    Where the pixels of a detector fall on the sky grid, known at a coarse mesh of pixels.

    Think of a rubber sheet with a mesh drawn on it: the mesh points are measured, everything
    between them follows smoothly.

    Parameters
    ----------
    x : ndarray
        Detector columns of the mesh, shape (mx,) [pixel].
    y : ndarray
        Detector rows of the mesh, shape (my,) [pixel].
    column : ndarray
        Grid column of every mesh point, shape (my, mx) [cell].
    row : ndarray
        Grid row of every mesh point, shape (my, mx) [cell].
    origin : tuple of int, optional
        Position (x, y) of the frame's first pixel on the full detector [pixel].
    """

    x: np.ndarray
    y: np.ndarray
    column: np.ndarray
    row: np.ndarray
    origin: tuple[int, int] = (0, 0)

    @cached_property
    def cell_size(self) -> float:
        """Mean side of a grid cell [detector pixel]."""
        column_y, column_x = np.gradient(self.column, self.y, self.x)
        row_y, row_x = np.gradient(self.row, self.y, self.x)
        return float(1 / np.sqrt(np.mean(np.abs(column_x * row_y - column_y * row_x))))

    def at_pixels(self, shape: tuple[int, int]) -> np.ndarray:
        """
        Spread the mesh over every pixel of a detector.

        Parameters
        ----------
        shape : tuple of int
            Detector shape (ny, nx).

        Returns
        -------
        ndarray
            Grid column and row of every pixel, shape (ny, nx, 2) [cell].
        """
        spread = np.empty((*shape, 2))
        for axis, mesh in enumerate((self.column, self.row)):
            spread[..., axis] = RectBivariateSpline(self.y, self.x, mesh)(*map(np.arange, shape))
        return spread

    def window(self) -> tuple[np.ndarray, tuple[int, int]]:
        """
        Find the part of the grid that the mesh covers.

        Returns
        -------
        corner : ndarray
            Grid column and row of its first cell, shape (2,).
        shape : tuple of int
            Its shape (ny, nx) [cell].
        """
        first = np.array([np.floor(z.min() - 0.5) for z in (self.column, self.row)], int)
        last = np.array([np.ceil(z.max() + 0.5) for z in (self.column, self.row)], int)
        nx, ny = last - first + 1
        return first, (int(ny), int(nx))

    def moved(self, corner: np.ndarray) -> "PixelMap":
        """Count the cells of the grid from another corner (column, row)."""
        return replace(self, column=self.column - corner[0], row=self.row - corner[1])

    def inverse(self) -> "DetectorPosition":
        """
        Fit a polynomial that leads from the grid back to the detector.

        Returns
        -------
        DetectorPosition
            The polynomial.
        """
        center = float(self.column.mean()), float(self.row.mean())
        half = float(max(np.ptp(self.column), np.ptp(self.row)) / 2)
        degree = min(_INVERSE_DEGREE, min(self.column.shape) - 1)
        u, v = (self.column - center[0]) / half, (self.row - center[1]) / half
        powers = np.polynomial.polynomial.polyvander2d(u, v, [degree, degree]).reshape(self.column.size, -1)
        mesh = np.stack(np.meshgrid(self.x + self.origin[0], self.y + self.origin[1]), axis=-1).reshape(-1, 2)
        coefficients = np.linalg.lstsq(powers, mesh, rcond=None)[0]
        return DetectorPosition(center, half, coefficients.reshape(degree + 1, degree + 1, 2))


@dataclass(frozen=True)
class DetectorPosition:
    """
    The way from the sky grid to the detector, as a polynomial.

    Parameters
    ----------
    center : tuple of float
        Grid column and row from which positions are counted [cell].
    half : float
        Unit in which they are counted [cell].
    coefficients : ndarray
        Factors of column^a row^b for detector x and y, shape (a, b, 2) [pixel].
    """

    center: tuple[float, float]
    half: float
    coefficients: np.ndarray

    def on_grid(self, columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Find the detector positions of a rectangle of cells.

        Parameters
        ----------
        columns, rows : ndarray
            Grid columns, shape (nx,), and rows, shape (ny,) [cell].

        Returns
        -------
        x, y : ndarray
            Positions on the full detector, shape (ny, nx) [pixel].
        """
        u, v = (columns - self.center[0]) / self.half, (rows - self.center[1]) / self.half
        x, y = np.polynomial.polynomial.polygrid2d(u, v, self.coefficients)
        return x.T, y.T


@dataclass(frozen=True)
class SkyCells:
    """
    One exposure on its own cut-out of the common sky grid.

    Parameters
    ----------
    data : ndarray
        Mean surface brightness in each cell, float32, shape (ny, nx); NaN where the exposure
        does not see enough of the cell.
    position : DetectorPosition
        Where cells lie on the detector.
    corner : tuple of int
        Grid column and row of the cell ``[0, 0]``.
    cell_size : float
        Side of a cell [detector pixel].
    """

    data: np.ndarray
    position: DetectorPosition
    corner: tuple[int, int]
    cell_size: float

    def detector_positions(self) -> tuple[np.ndarray, np.ndarray]:
        """
        Find where the centres of the cells lie on the full detector.

        Returns
        -------
        x, y : ndarray
            Positions, float32, shape (ny, nx) [pixel].
        """
        ny, nx = self.data.shape
        x, y = self.position.on_grid(self.corner[0] + np.arange(nx), self.corner[1] + np.arange(ny))
        return x.astype(np.float32), y.astype(np.float32)

    @cached_property
    def seen(self) -> np.ndarray:
        """True where the exposure sees a cell, shape (ny, nx)."""
        return np.isfinite(self.data)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the cut-out (ny, nx)."""
        return self.data.shape


class Kept(Protocol):
    """An array that was put away."""

    def load(self) -> np.ndarray:
        """Get it back."""


Keep = Callable[[str, np.ndarray], Kept]


@dataclass(frozen=True)
class Held:
    """
    An array that is simply held in memory.

    Parameters
    ----------
    array : ndarray
        The array.
    """

    array: np.ndarray

    @classmethod
    def keep(cls, _name: str, array: np.ndarray) -> "Held":
        """Hold an array, whatever its name."""
        return cls(array)

    def load(self) -> np.ndarray:
        """Get it back."""
        return self.array


@dataclass(frozen=True)
class CutOut:
    """
    What is needed of an exposure's cells all the time; how bright they are may be in a file.

    Parameters
    ----------
    brightness : Kept
        The data of the cells, put away.
    bits : ndarray
        Which of the cells the exposure sees, eight to a byte.
    reach : tuple
        First and last position on the full detector, in x and in y, of the cells seen [pixel].
    shape : tuple of int
        Shape of the cut-out (ny, nx).
    position, corner, cell_size
        As in `SkyCells`.
    """

    brightness: Kept
    bits: np.ndarray
    reach: tuple[tuple[float, float], tuple[float, float]]
    shape: tuple[int, int]
    position: DetectorPosition
    corner: tuple[int, int]
    cell_size: float

    @classmethod
    def of(cls, cells: SkyCells, *, keep: Keep = Held.keep, name: str = "") -> "CutOut":
        """Put the data of cells away under a name, with `keep`."""
        seen = cells.seen
        reach = tuple((float(z[seen].min()), float(z[seen].max())) for z in cells.detector_positions())
        return cls(
            brightness=keep(name, cells.data),
            bits=np.packbits(seen),
            reach=reach,
            shape=seen.shape,
            position=cells.position,
            corner=cells.corner,
            cell_size=cells.cell_size,
        )

    @property
    def seen(self) -> np.ndarray:
        """True where the exposure sees a cell, shape (ny, nx)."""
        size = self.shape[0] * self.shape[1]
        return np.unpackbits(self.bits, count=size).view(bool).reshape(self.shape)

    def load(self) -> SkyCells:
        """Get the cells back."""
        return SkyCells(self.brightness.load(), self.position, self.corner, self.cell_size)


def resample(image: np.ndarray, pixel_map: PixelMap, *, min_coverage: float = 0.9) -> SkyCells | None:
    """
    Average an image over the cells of the sky grid.

    Think of a tiled floor laid over the image: every pixel gives each tile as much as it covers
    of it (drizzle with a drop of the pixel's own size, kernel "turbo"), so a tile shows the mean
    brightness of the sky below it whatever the pixel raster, and two exposures of the same sky
    agree tile by tile.

    Tiles that the exposure sees only in part are left out: what they show depends on which part.

    Parameters
    ----------
    image : ndarray
        Surface brightness, shape (ny, nx); NaN where a pixel is not to be used.
    pixel_map : PixelMap
        Where the pixels fall on the grid.
    min_coverage : float, optional
        Smallest part of a cell that has to be covered by good pixels.

    Returns
    -------
    SkyCells or None
        The cells, or None when no cell is covered.

    References
    ----------
    Fruchter & Hook 2002, PASP 114, 144, doi:10.1086/338393
    """
    good = np.isfinite(image)
    if not good.any():
        return None
    # A float32 mean of values far from zero loses digits; the level is added back in the end.
    zero = np.float32(np.median(image[good][::16]))
    corner, shape = pixel_map.window()
    cell_size = pixel_map.cell_size
    drizzle = Drizzle(kernel="turbo", out_shape=shape, disable_ctx=True, fillval="NaN")
    drizzle.add_image(
        np.where(good, image - zero, np.float32(0)).astype(np.float32, copy=False),
        exptime=1.0,
        pixmap=pixel_map.moved(corner).at_pixels(image.shape),
        weight_map=good.astype(np.float32),
        pixel_scale_ratio=cell_size,
    )
    position = pixel_map.inverse()
    areas = _cell_areas(*position.on_grid(corner[0] + np.arange(shape[1]), corner[1] + np.arange(shape[0])))
    covered = drizzle.out_wht >= min_coverage * areas * _WEIGHT_ROUNDING
    if not covered.any():
        return None
    window = _bounding_window(covered)
    first = int(corner[0]) + window[1].start, int(corner[1]) + window[0].start
    data = np.where(covered, drizzle.out_img + zero, np.nan)[window].astype(np.float32)
    return SkyCells(data, position, first, cell_size)


def _cell_areas(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Measure the detector pixels below each cell from the positions of the cells."""
    (x_row, x_column), (y_row, y_column) = np.gradient(x), np.gradient(y)
    return np.abs(x_column * y_row - x_row * y_column)


def _bounding_window(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def overlap(
    first: SkyCells | CutOut, second: SkyCells | CutOut
) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """
    Find the rectangle of the grid that two cut-outs share.

    Parameters
    ----------
    first, second : SkyCells or CutOut
        Two cut-outs of one grid.

    Returns
    -------
    tuple of tuple of slice, or None
        The rectangle as (rows, columns) of each cut-out; None when they do not touch.
    """
    windows = ([], [])
    for axis in (1, 0):
        start = max(first.corner[axis], second.corner[axis])
        stop = min(c.corner[axis] + c.shape[1 - axis] for c in (first, second))
        if start >= stop:
            return None
        for window, cells in zip(windows, (first, second), strict=True):
            window.append(slice(start - cells.corner[axis], stop - cells.corner[axis]))
    return tuple(windows[0]), tuple(windows[1])


def shared_by(cells: SkyCells | CutOut, neighbours: Iterable[SkyCells | CutOut]) -> np.ndarray:
    """
    Count for every cell of an exposure how many exposures see it.

    Parameters
    ----------
    cells : SkyCells or CutOut
        The exposure.
    neighbours : iterable of SkyCells or CutOut
        All others that touch it.

    Returns
    -------
    ndarray
        Counts in the shape of the cut-out, uint16; at least 1.
    """
    counts = np.ones(cells.shape, np.uint16)
    for other in neighbours:
        here, there = overlap(cells, other)
        counts[here] += other.seen[there]
    return counts


def noise_correlation(cell_size: float) -> float:
    """
    Tell by how much the scatter from cell to cell understates the noise of their mean.

    Pixels on the border of two cells give a part of their noise to both. For drops of the
    pixel's size this is R = 1 / (1 - 1 / (3 s)) with s the cell's side in pixels.

    Parameters
    ----------
    cell_size : float
        Side of a cell, at least 1 [pixel].

    Returns
    -------
    float
        The ratio R of Fruchter & Hook 2002, doi:10.1086/338393, equation 10.
    """
    return 1 / (1 - 1 / (3 * cell_size))
