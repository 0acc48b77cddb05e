"""Mosaics against the truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import QTable
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps.demo.field import PRODUCT
from miri_steps.demo.pipelines import Result

#: Side of the blocks in which a mosaic is compared with the truth [pixel]: 2 arcsec.
BLOCK = 18


@dataclass(frozen=True, eq=False)
class Comparison:
    """A mosaic and how far it is from the truth.

    Parameters
    ----------
    result : Result
        The run that made it.
    image : ndarray
        The mosaic [MJy/sr].
    difference : ndarray
        Mosaic minus truth, the median removed [MJy/sr].
    level_error, tile_step, background_error : float
        See `level_error`, `tile_step` and `background_error` [MJy/sr].
    n_outliers : int
        Pixels that outlier detection flagged, in all exposures.
    """

    result: Result
    image: np.ndarray
    difference: np.ndarray
    level_error: float
    tile_step: float
    background_error: float
    n_outliers: int


def level_error(measured: np.ndarray, true: np.ndarray) -> float:
    """
    Compare sky levels.

    Parameters
    ----------
    measured, true : ndarray
        Level of each exposure [MJy/sr].

    Returns
    -------
    float
        Rms of measured minus true level, the offset common to all exposures removed [MJy/sr].

    Examples
    --------
    >>> level_error([1.0, 2.0, 3.1], [5.0, 6.0, 7.0]) < 0.05
    True
    """
    return float(np.std(np.subtract(measured, true)))


def difference(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """
    Subtract the truth from a mosaic.

    Parameters
    ----------
    image, truth : ndarray
        On the same pixels [MJy/sr].

    Returns
    -------
    ndarray
        The difference, less its median: a sky match leaves one constant free.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if image.shape != truth.shape:
        raise ValueError(f"mosaic and truth must have one shape, got {image.shape} and {truth.shape}")
    remainder = image - truth
    return remainder - np.nanmedian(remainder)


def tile_areas(context: np.ndarray, tile: np.ndarray) -> list[np.ndarray]:
    """
    Find what each tile sees alone.

    Parameters
    ----------
    context : ndarray
        Context image of the mosaic, shape (planes, ny, nx): bit i of plane p is set where exposure
        32 p + i contributes.
    tile : ndarray
        Tile of each exposure.

    Returns
    -------
    list of ndarray
        Masks (ny, nx), one per tile, True where no other tile contributes.
    """
    bits = context.astype(np.uint32)
    tile = np.asarray(tile)
    seen = []
    for number in np.unique(tile):
        members = np.flatnonzero(tile == number)
        seen.append(np.any([bits[i // 32] >> np.uint32(i % 32) & 1 for i in members], axis=0))
    alone = np.sum(seen, axis=0) == 1
    return [area & alone for area in seen]


def tile_step(remainder: np.ndarray, areas: list[np.ndarray]) -> float:
    """
    Measure how much the tiles of a mosaic differ in level.

    Parameters
    ----------
    remainder : ndarray
        Mosaic minus truth [MJy/sr].
    areas : list of ndarray
        Mask of what each tile sees alone, from `tile_areas`.

    Returns
    -------
    float
        Highest minus lowest of the tiles' medians [MJy/sr].
    """
    medians = [np.nanmedian(remainder[area]) for area in areas if np.isfinite(remainder[area]).any()]
    return float(np.ptp(medians))


def background_error(remainder: np.ndarray, block: int = BLOCK) -> float:
    """
    Measure what is wrong with the background of a mosaic.

    Parameters
    ----------
    remainder : ndarray
        Mosaic minus truth [MJy/sr].
    block : int
        Side of the blocks that average the noise out [pixel].

    Returns
    -------
    float
        Rms of the medians of the blocks that are full, around their mean [MJy/sr].
    """
    ny, nx = (n // block for n in remainder.shape)
    blocks = remainder[: ny * block, : nx * block].reshape(ny, block, nx, block).swapaxes(1, 2)
    full = blocks[np.isfinite(blocks).all(axis=(2, 3))]
    medians = np.median(full, axis=(1, 2))
    return float(np.std(medians))


def compare(results: list[Result], folder: Path) -> list[Comparison]:
    """
    Compare the mosaics of the demo with the truth.

    Parameters
    ----------
    results : list of Result
        The runs.
    folder : Path
        Folder of the demo.

    Returns
    -------
    list of Comparison
        One per run.
    """
    truth = fits.getdata(folder / "truth" / f"{PRODUCT}_i2d.fits", "SCI")
    exposures = QTable.read(folder / "exposures" / f"{PRODUCT}_truth.ecsv")
    return [_compare(result, truth, exposures) for result in results]


def _compare(result: Result, truth: np.ndarray, exposures: QTable) -> Comparison:
    with fits.open(result.mosaic) as hdus:
        image = hdus["SCI"].data.astype(np.float32)
        areas = tile_areas(hdus["CON"].data, exposures["tile"])
    remainder = difference(image, truth)
    levels, flagged = _read_exposures(result.mosaic.parent, exposures["exposure"])
    return Comparison(
        result=result,
        image=image,
        difference=remainder,
        level_error=level_error(levels, exposures["sky"].value),
        tile_step=tile_step(remainder, areas),
        background_error=background_error(remainder),
        n_outliers=flagged,
    )


def _read_exposures(folder: Path, names: list[str]) -> tuple[list[float], int]:
    """Level of each exposure [MJy/sr], and how many pixels of all were flagged as outliers."""
    levels, flagged = [], 0
    for name in names:
        (path,) = folder.glob(f"{name.removesuffix('_cal.fits')}_*crf.fits")
        with fits.open(path) as hdus:
            levels.append(hdus[0].header["BKGLEVEL"])
            flagged += np.count_nonzero(hdus["DQ"].data & pixel["OUTLIER"])
    return levels, flagged
