"""What `SuperBackgroundStep` leaves out of the background of an exposure."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.sparse.csgraph import connected_components
from stdatamodels.jwst.datamodels import JwstDataModel

from miri_steps import exposures
from miri_steps.algorithms import sky_cells, source_masks, sources
from miri_steps.algorithms.exposure_levels import Levels
from miri_steps.algorithms.sky_cells import PixelMap
from miri_steps.steps.pixel_set import PixelSet
from miri_steps.steps.sky_masks import RegionMask, SkyMask
from miri_steps.steps.super_background_samples import Background, Samples

__all__ = [
    "MaskRules",
    "find_residuals",
    "find_sources",
    "mask_by_mosaic",
    "staying_wide",
    "usable_pixels",
    "without_detector_light",
]

# Side of the boxes of the mesh that takes up what the background found so far misses: many stars wide.
_BOX, _LEAST_BOX = 16, 128  # [FWHM], [pixel]
# Light on the same pixels in at least this part of the exposures stays where it is.
_STAYS = 0.5
# Light that stays is the detector's where it is narrower than this or than a star [pixel], or than this part
# of what the dithers move the sky: a source that stays has to be wide.
_NARROW, _REACH_SHARE = 3.0, 0.25
# Of a source that moves, only a smaller part than this stays.
_MOSTLY = 0.5

log = logging.getLogger(f"stpipe.{__name__}")

# Cells of the largest mosaic that is made: some 50 bytes each are in use at once.
_LARGEST_MOSAIC = 30_000_000
# Pixels that may be used: neither DO_NOT_USE nor NON_SCIENCE.
_DQ_BITS = "~DO_NOT_USE+NON_SCIENCE"


@dataclass(frozen=True)
class MaskRules:
    """
    What counts as source.

    Parameters
    ----------
    sigma : float
        Limit of what is found in images [scatter of the smoothed image].
    small_source : int
        Pixels below which a source stays in the background.
    dilate : float
        How far masks reach beyond the light that is seen [width of the kernel that saw it].
    above, delta : float, optional
        Brightness above which a pixel is left out, and the same above the level of the exposure
        [unit of the data].
    image : SkyMask, optional
        Sources on the sky.
    regions : RegionMask, optional
        Parts of the sky to leave out.
    """

    sigma: float
    small_source: int
    dilate: float
    above: float | None = None
    delta: float | None = None
    image: SkyMask | None = None
    regions: RegionMask | None = None

    def given(
        self, model: JwstDataModel, usable: np.ndarray, fwhm: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Find what the user wants to be left out of an exposure.

        Parameters
        ----------
        model : ImageModel
            The exposure.
        usable : ndarray
            True on its usable pixels, shape (ny, nx).
        fwhm : float
            Width of a star [pixel].

        Returns
        -------
        mask, known : ndarray
            True where a pixel is left out, and where the mask image says all about sources.
        """
        mask, known = np.zeros(usable.shape, bool), np.zeros(usable.shape, bool)
        if self.image is not None:
            covered, known = self.image.project(model)
            mask |= sources.grow(covered, self.dilate * fwhm)
        if self.regions is not None:
            mask |= self.regions.covers(model)
        if self.above is not None:
            mask |= model.data > self.above
        if self.delta is not None and (usable & ~mask).any():
            mask |= model.data > np.median(model.data[usable & ~mask]) + self.delta
        return mask, known

    def as_job(self, image: np.ndarray, noise: np.ndarray, fwhm: float) -> dict:
        """
        Say what `source_masks.find` is to look for in an image.

        Parameters
        ----------
        image, noise : ndarray
            Image and the standard deviation of its pixels, shape (ny, nx).
        fwhm : float
            Width of a star [pixel].

        Returns
        -------
        dict
            Its arguments.
        """
        return {
            "image": image,
            "noise": noise,
            "fwhm": fwhm,
            "sigma": self.sigma,
            "least_area": self.small_source,
            "dilate": self.dilate,
        }


def usable_pixels(model: JwstDataModel) -> np.ndarray:
    """
    Find the pixels of an exposure that show the sky.

    Parameters
    ----------
    model : ImageModel
        The exposure.

    Returns
    -------
    ndarray
        True where a pixel is finite and neither DO_NOT_USE nor NON_SCIENCE, shape (ny, nx).
    """
    return ~exposures.excluded_pixels(model, dqbits=_DQ_BITS)


def without_detector_light(
    bright: list[PixelSet], valid: np.ndarray, *, fwhm: float, reach: float
) -> list[PixelSet]:
    """
    Take the light of the detector from what is bright in each exposure.

    The detector's light stays on its pixels while the sky moves with the dithers. So does a source
    that is larger than the dithers, but it is wide; and of a smaller one only the middle stays.

    Parameters
    ----------
    bright : list of PixelSet
        Bright pixels of each exposure.
    valid : ndarray
        Number of exposures in which a pixel is usable, shape (ny, nx).
    fwhm : float
        Width of a star [pixel].
    reach : float
        Largest move of the sky between two exposures [pixel].

    Returns
    -------
    list of PixelSet
        What is left: connected parts of which less than half is narrow light that stays.
    """
    count = np.zeros(valid.shape, np.uint16)
    for each in bright:
        count += each.mask()
    narrow = _staying(count, valid) & ~staying_wide(count, valid, fwhm=fwhm, reach=reach)
    return [PixelSet.of(_mostly_outside(each.mask(), narrow)) for each in bright]


def staying_wide(count: np.ndarray, valid: np.ndarray, *, fwhm: float, reach: float) -> np.ndarray:
    """
    Find light that stays on its pixels and is wide.

    Parameters
    ----------
    count, valid : ndarray
        Numbers of exposures in which a pixel is masked and usable, shape (ny, nx).
    fwhm : float
        Width of a star [pixel].
    reach : float
        Largest move of the sky between two exposures [pixel].

    Returns
    -------
    ndarray
        True there.
    """
    return source_masks.wide_parts(_staying(count, valid), max(_NARROW, fwhm, _REACH_SHARE * reach))


def _staying(count, valid):
    return (count >= _STAYS * valid) & (count > 0)


def _mostly_outside(mask, other):
    """Keep the connected parts of a mask of which less than half lies in another."""
    labels, number = ndimage.label(mask, np.ones((3, 3), bool))
    share = ndimage.mean(other, labels, np.arange(number + 1))
    return (share < _MOSTLY)[labels] & mask


def find_residuals(
    samples: Samples, levels: Levels, background: np.ndarray, fwhm: float, rules: MaskRules, run: Callable
):
    """
    Find sources where a first guess of the background has been taken away.

    Parameters
    ----------
    samples : Samples
        The exposures; their masks are not looked at.
    levels : Levels
        How they follow the background.
    background : ndarray
        The guess, shape (ny, nx).
    fwhm : float
        Width of a star [pixel].
    rules : MaskRules
        What counts as source.
    run : callable
        A ``map``, over processes or not.

    Returns
    -------
    iterator of ndarray
        True on the sources of each exposure.
    """
    noise = samples.noise.astype(np.float32)

    def tasks():
        for k in range(samples.number):
            factor, level = np.float32(levels.factor[k]), np.float32(levels.level[k])
            image = samples.data.image(k) - factor * background - level
            yield rules.as_job(image, noise, fwhm) | {"box": _box(fwhm)}

    return run(source_masks.find_job, tasks())


def find_sources(image: np.ndarray, noise: np.ndarray, fwhm: float, rules: MaskRules) -> np.ndarray:
    """
    Find the sources of one exposure whose background has been taken away.

    Parameters
    ----------
    image, noise : ndarray
        Image and the standard deviation of its pixels, shape (ny, nx), NaN where nothing is known.
    fwhm : float
        Width of a star [pixel].
    rules : MaskRules
        What counts as source.

    Returns
    -------
    ndarray
        True on sources.
    """
    return source_masks.find(**rules.as_job(image, noise, fwhm), box=_box(fwhm))


def _box(fwhm):
    return max(_LEAST_BOX, round(_BOX * fwhm))


def mask_by_mosaic(
    samples: Samples,
    levels: Levels,
    background: Background,
    left_out: list[tuple[int, ...]],
    maps: list[PixelMap],
    fwhm: float,
    rules: MaskRules,
    run: Callable,
) -> None:
    """
    Add the sources to the masks that a mosaic of the exposures without their background shows.

    Parameters
    ----------
    samples : Samples
        The exposures; their masks grow.
    levels : Levels
        How they follow the background.
    background : Background
        Models of the background.
    left_out : list of tuple of int
        Which of them belongs to each exposure.
    maps : list of PixelMap
        Where the pixels of each exposure fall on the grid of the mosaic.
    fwhm : float
        Width of a star [pixel].
    rules : MaskRules
        What counts as source.
    run : callable
        A ``map``, over processes or not.
    """
    for piece in _pieces([pixel_map.window() for pixel_map in maps]):
        first, shape = piece.first, piece.shape
        if shape[0] * shape[1] > _LARGEST_MOSAIC:
            log.warning(
                "A mosaic of %d exposures would have %d x %d cells, %d at most: they get no second pass.",
                *(len(piece.numbers), *shape, _LARGEST_MOSAIC),
            )
            continue
        found = _mosaic_sources(samples, levels, background, left_out, maps, piece, fwhm, rules, run)
        for k in piece.numbers:
            position = np.rint(maps[k].moved(first).at_pixels(samples.shape)).astype(int)
            column, row = (np.clip(position[..., axis], 0, shape[1 - axis] - 1) for axis in (0, 1))
            samples.masks.write(k, samples.masks.image(k) | found[row, column])


@dataclass(frozen=True)
class _Piece:
    """Exposures whose windows on the grid hang together, and the window that holds them all."""

    numbers: list[int]
    first: np.ndarray
    shape: tuple[int, int]


def _pieces(windows):
    """Put windows together that touch; far tiles must not share one mosaic."""
    low = np.array([corner for corner, _ in windows])
    high = low + np.array([shape[::-1] for _, shape in windows])
    touch = np.all((low[:, np.newaxis] < high) & (low < high[:, np.newaxis]), axis=-1)
    number, labels = connected_components(touch, directed=False)
    for label in range(number):
        inside = labels == label
        first = low[inside].min(axis=0)
        nx, ny = high[inside].max(axis=0) - first
        yield _Piece(np.flatnonzero(inside).tolist(), first, (int(ny), int(nx)))


def _mosaic_sources(samples, levels, background, left_out, maps, piece, fwhm, rules, run):
    """Average the exposures of a piece without their background, and find the sources."""
    first = piece.first
    total, count = np.zeros(piece.shape, np.float32), np.zeros(piece.shape, np.uint16)

    def tasks():
        for k in piece.numbers:
            model = background.read(left_out[k])[0]
            factor, level = np.float32(levels.factor[k]), np.float32(levels.level[k])
            clean = samples.data.image(k) - factor * model - level
            yield (clean, maps[k]) if np.isfinite(clean).any() else None

    for cells in run(sky_cells.resample_job, tasks()):
        if cells is not None:
            x, y = cells.corner - first
            window = slice(y, y + cells.data.shape[0]), slice(x, x + cells.data.shape[1])
            total[window] += np.where(cells.seen, cells.data, 0)
            count[window] += cells.seen
    with np.errstate(invalid="ignore", divide="ignore"):
        mosaic, noise = total / np.where(count, count, np.nan), 1 / np.sqrt(count)
    job = rules.as_job(mosaic, noise, fwhm / maps[0].cell_size)
    # The mosaic sees deeper than an exposure: less is left beyond what it shows.
    return source_masks.find(**job | {"dilate": rules.dilate / 2})
