"""The mosaic before and after on a coarse grid, one exposure at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from astropy.wcs import WCS

from miri_steps import exposures
from miri_steps.algorithms import sky_cells
from miri_steps.algorithms.sky_cells import PixelMap, SkyCells
from miri_steps.report import logs
from miri_steps.report.collect import Exposure, Mosaic

__all__ = ["Coarse", "Grid", "accumulate", "bin_image", "read_side"]

log = logging.getLogger(f"stpipe.{__name__}")

# A picture has at most so many cells along a side ...
_MOST_CELLS = 800
# ... and its cells are at least so large [arcsec]: three pixels.
_LEAST_CELL = 0.33
# Cells of the maps of differences are at least so large [arcsec]: noise averages out, steps stay.
_DIFFERENCE_CELL = 1.0
# Exposures may have been moved by this much [arcsec].
_MARGIN = 4.0
# Pipelines of single exposures, whose logs stay in the files.
_EARLIER = ("calwebb_detector1", "calwebb_image2")
# A picture may show a cell of which a few pixels are missing.
_COVERAGE = 0.5


@dataclass(frozen=True)
class Grid:
    """
    A window on a sky grid.

    Parameters
    ----------
    wcs : WCS
        The grid.
    scale : float
        Side of a cell [arcsec].
    corner : tuple of int
        Column and row of the first cell.
    shape : tuple of int
        Rows and columns.
    """

    wcs: WCS
    scale: float
    corner: tuple[int, int]
    shape: tuple[int, int]

    @classmethod
    def around(cls, corners: np.ndarray) -> Grid:
        """
        Lay a window around a field.

        Parameters
        ----------
        corners : ndarray
            Positions at its rim, shape (n, 2) [deg].

        Returns
        -------
        Grid
            North up, East to the left.
        """
        arcsec = exposures.sky_grid(corners, 1.0).wcs_world2pix(corners, 0)
        side = np.ptp(arcsec, axis=0).max() + 2 * _MARGIN
        scale = max(_LEAST_CELL, side / _MOST_CELLS)
        wcs = exposures.sky_grid(corners, scale)
        cells = wcs.wcs_world2pix(corners, 0)
        low = np.floor(cells.min(axis=0) - _MARGIN / scale).astype(int)
        high = np.ceil(cells.max(axis=0) + _MARGIN / scale).astype(int)
        width, height = map(int, high - low + 1)
        return cls(wcs, float(scale), (int(low[0]), int(low[1])), (height, width))

    @property
    def edge(self) -> tuple[float, float]:
        """Outer corner of the first cell, East and North of the middle of the field [arcsec]."""
        column, row = self.corner
        return -(column - 0.5) * self.scale, (row - 0.5) * self.scale

    @property
    def block(self) -> int:
        """Cells that one of the difference maps has along a side."""
        return max(1, round(_DIFFERENCE_CELL / self.scale))


@dataclass(frozen=True)
class Coarse:
    """
    A mosaic on a coarse grid.

    Parameters
    ----------
    image : ndarray
        Mean of all exposures; NaN where there is none.
    count : ndarray
        Number of exposures.
    difference : ndarray
        Later minus earlier tile where two overlap, in blocks of cells; NaN elsewhere.
    block : int
        Cells along the side of a block.
    n_exposures : int
        Exposures that were used.
    between : str
        What was compared: ``tiles``, or ``exposures`` where there is one tile alone.
    """

    image: np.ndarray
    count: np.ndarray
    difference: np.ndarray
    block: int
    n_exposures: int
    between: str


class _Sums:
    """Running sums over the cells of a window."""

    def __init__(self, grid):
        self.grid = grid
        self.total, self.count = np.zeros(grid.shape), np.zeros(grid.shape, np.uint16)

    def add(self, cells: SkyCells) -> None:
        column, row = (cells.corner[k] - self.grid.corner[k] for k in (0, 1))
        inside = []
        for start, size, limit in zip((row, column), cells.data.shape, self.grid.shape, strict=True):
            inside.append((slice(max(start, 0), min(start + size, limit)), start))
        here = tuple(window for window, _ in inside)
        if any(window.start >= window.stop for window in here):
            return
        data = cells.data[tuple(slice(window.start - at, window.stop - at) for window, at in inside)]
        seen = np.isfinite(data)
        self.total[here][seen] += data[seen]
        self.count[here] += seen

    def mean(self) -> np.ndarray:
        return np.where(self.count > 0, self.total / np.maximum(self.count, 1), np.nan)


def accumulate(
    listed: Iterable[Exposure], grid: Grid, resample: Callable[[Exposure], SkyCells | None]
) -> Coarse | None:
    """
    Average exposures on a grid, and subtract tile from tile.

    Think of prints dealt out on a table, tile after tile: each is compared with what it comes to lie on.

    Parameters
    ----------
    listed : iterable of Exposure
        The exposures, sorted by tile.
    grid : Grid
        The grid.
    resample : callable
        Gives the cells of an exposure, or None; called once for each.

    Returns
    -------
    Coarse or None
        None when no exposure has a cell.
    """
    listed = list(listed)
    by_tile = len({exposure.tile for exposure in listed}) > 1
    everything, n = _Sums(grid), 0
    latest, difference = np.full(grid.shape, np.nan), np.full(grid.shape, np.nan)
    for _, group in groupby(listed, key=lambda exposure: exposure.tile if by_tile else exposure.key):
        sums = _Sums(grid)
        for cells in map(resample, group):
            if cells is not None:
                sums.add(cells)
                n += 1
        mean = sums.mean()
        apart = mean - latest
        difference = np.where(np.isfinite(apart), apart, difference)
        latest = np.where(np.isfinite(mean), mean, latest)
        everything.total += sums.total
        everything.count += sums.count
    if not n:
        return None
    between = "tiles" if by_tile else "exposures"
    binned = bin_image(difference, grid.block)
    return Coarse(everything.mean(), everything.count, binned, grid.block, n, between)


def bin_image(image: np.ndarray, block: int) -> np.ndarray:
    """
    Average an image over blocks of pixels.

    Parameters
    ----------
    image : ndarray
        Shape (ny, nx), NaN where there is nothing.
    block : int
        Side of a block [pixel].

    Returns
    -------
    ndarray
        Shape (ceil(ny / block), ceil(nx / block)); NaN where less than half of a block is known.
    """
    if block == 1:
        return np.array(image, np.float32)
    ny, nx = (-(-n // block) for n in image.shape)
    binned = np.full((ny, nx), np.nan, np.float32)
    # Row by row: a mosaic of many tiles is large.
    for k in range(ny):
        strip = image[k * block : (k + 1) * block]
        known = np.isfinite(strip)
        starts = np.arange(0, image.shape[1], block)
        total = np.add.reduceat(np.where(known, strip, 0).sum(axis=0, dtype=float), starts)
        count = np.add.reduceat(known.sum(axis=0), starts)
        half = block * block / 2
        binned[k] = np.where(count >= half, total / np.maximum(count, 1), np.nan)
    return binned


def read_side(mosaic: Mosaic, grid: Grid, side: str) -> Coarse | None:
    """
    Read all exposures of one side, and what their metadata say.

    Parameters
    ----------
    mosaic : Mosaic
        The mosaic; status, level and HISTORY of its exposures are filled in.
    grid : Grid
        The grid.
    side : {"before", "after"}
        Which of their files.

    Returns
    -------
    Coarse or None
        None when there is no such file that can be used.
    """
    listed = [exposure for exposure in mosaic.exposures if getattr(exposure, side)]

    def resample(exposure):
        try:
            return _read(exposure, getattr(exposure, side), grid, is_after=side == "after")
        except (OSError, ValueError, KeyError, AttributeError) as error:
            log.warning("%s cannot be read: %s", getattr(exposure, side), error)
            exposure.problems.append(f"{getattr(exposure, side).name} cannot be read: {error}")
            return None

    return accumulate(listed, grid, resample)


def _read(exposure, path, grid, *, is_after):
    log.info("Reading %s", path)
    with exposures.open_file(path) as model:
        if is_after or not exposure.status:
            _note_metadata(exposure, model, is_after)
        if getattr(model.meta, "wcs", None) is None:
            exposure.problems.append(f"{path.name} has no WCS")
            return None
        excluded = exposures.excluded_pixels(model, dqbits="~DO_NOT_USE+NON_SCIENCE")
        image = np.where(excluded, np.nan, model.data).astype(np.float32)
        background = model.meta.background
        if is_after and background.level is not None and not background.subtracted:
            image -= np.float32(background.level)
        pixel_map = PixelMap(*exposures.pixel_mesh(model, grid.wcs), exposures.frame_origin(model))
        return sky_cells.resample(image, pixel_map, min_coverage=_COVERAGE)


def _own_warnings(model):
    """Find what our steps warned of in the pipelines of one exposure, which may not name it."""
    kept = exposures.read_logs(model)
    lines = [line for name in _EARLIER for line in logs.read_lines(kept.get(name, ()))]
    return [line for line in lines if line.is_warning and "miri_steps" in line.logger]


def _note_metadata(exposure, model, is_after):
    meta = model.meta
    exposure.status = {name: str(value) for name, value in meta.cal_step.instance.items() if value}
    exposure.history = exposures.read_history(model)
    exposure.lines = _own_warnings(model)
    exposure.visit = exposure.visit or meta.observation.visit_id or ""
    exposure.band = exposure.band or meta.instrument.filter or ""
    if is_after and not np.isfinite(exposure.level) and meta.background.level is not None:
        exposure.level = float(meta.background.level)
