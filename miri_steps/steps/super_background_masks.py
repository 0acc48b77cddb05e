"""The masks of the exposures that `SuperBackgroundStep` builds a background from."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from miri_steps.algorithms import source_masks
from miri_steps.algorithms.exposure_levels import Levels
from miri_steps.algorithms.sky_cells import Kept
from miri_steps.steps import shared
from miri_steps.steps import super_background_jobs as jobs
from miri_steps.steps.pixel_set import PixelSet
from miri_steps.steps.super_background_reading import FOUND, KNOWN
from miri_steps.steps.super_background_rules import MaskRules
from miri_steps.steps.super_background_samples import Background, Samples

__all__ = ["detector_light", "mask_bright", "mask_by_mosaic", "mask_residuals", "staying_wide"]

# Light on the same pixels in at least this part of the exposures stays where it is.
_STAYS = 0.5
# Light that stays is the detector's where it is narrower than this or than a star [pixel], or than this part
# of what the dithers move the sky: a source that stays has to be wide.
_NARROW, _REACH_SHARE = 3.0, 0.25

log = logging.getLogger(f"stpipe.{__name__}")

# Cells of the largest mosaic that is made: some 50 bytes each are in use at once.
_LARGEST_MOSAIC = 30_000_000


def detector_light(samples: Samples, *, fwhm: float, reach: float) -> np.ndarray:
    """
    Find the light of the detector in what is bright in the exposures.

    The detector's light stays on its pixels while the sky moves with the dithers. So does a source
    that is larger than the dithers, but it is wide; and of a smaller one only the middle stays.

    Parameters
    ----------
    samples : Samples
        The exposures.
    fwhm : float
        Width of a star [pixel].
    reach : float
        Largest move of the sky between two exposures [pixel].

    Returns
    -------
    ndarray
        True on narrow light that stays, shape (ny, nx).
    """
    count = np.zeros(samples.shape, np.uint16)
    for k in range(samples.number):
        count += (samples.marks.image(k) & (FOUND | KNOWN)) == FOUND
    wide = staying_wide(count, samples.valid, fwhm=fwhm, reach=reach)
    return _staying(count, samples.valid) & ~wide


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


def mask_bright(
    samples: Samples, names: list[str], detector: np.ndarray, halo: float | None, run: Callable
) -> None:
    """
    Mask what is plainly a source: bright, and no light of the detector.

    Parameters
    ----------
    samples : Samples
        The exposures; their masks are written.
    names : list of str
        Their names.
    detector : ndarray
        True on the light of the detector, shape (ny, nx).
    halo : float or None
        How far wings reach at most [pixel]; None masks only what is seen.
    run : callable
        A ``map``, over processes or not.
    """
    narrow = PixelSet.of(detector)
    into = [(samples.marks, samples.masks, k) if samples.folder else None for k in range(samples.number)]
    tasks = (
        jobs.Growing(names[k], samples.marks.lend(k), narrow, halo, into[k]) for k in range(samples.number)
    )
    for k, grown in enumerate(run(jobs.grow, tasks)):
        if grown.mask is not None:
            samples.marks.write(k, grown.marks)
            samples.masks.write(k, grown.mask)


def mask_residuals(
    samples: Samples, names: list[str], levels: Levels, background: np.ndarray, look: Kept, run: Callable
) -> None:
    """
    Mask the sources that show where a first guess of the background has been taken away.

    Parameters
    ----------
    samples : Samples
        The exposures; their masks are written.
    names : list of str
        Their names.
    levels : Levels
        How they follow the background.
    background : ndarray
        The guess, shape (ny, nx).
    look : Kept
        What counts as source, a `Look`.
    run : callable
        A ``map``, over processes or not.
    """
    planes = samples.stack("guess", 2, np.float32)
    planes.write(0, background)
    planes.write(1, samples.noise)

    def tasks():
        for k, name in enumerate(names):
            exposure = jobs.Cleaning(samples.data.lend(k), planes.lend(0), *_follows(levels, k))
            yield jobs.Searching(
                *(name, exposure, samples.marks.lend(k), planes.lend(1), look, _into(samples, k))
            )

    _write(samples, range(samples.number), run(jobs.search, tasks()))
    planes.close()


def _follows(levels, k):
    return np.float32(levels.factor[k]), np.float32(levels.level[k])


def _into(samples, k):
    """Say where a mask goes that another process may write."""
    return (samples.masks, k) if samples.folder else None


def _write(samples, numbers, found):
    """Write the masks that come back, because they are kept in memory."""
    for k, mask in zip(numbers, found, strict=True):
        if mask is not None:
            samples.masks.write(k, mask)


def mask_by_mosaic(
    samples: Samples,
    names: list[str],
    levels: Levels,
    background: Background,
    left_out: list[tuple[int, ...]],
    maps: list[Kept],
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
    names : list of str
        Their names.
    levels : Levels
        How they follow the background.
    background : Background
        Models of the background.
    left_out : list of tuple of int
        Which of them belongs to each exposure.
    maps : list of Kept
        Where the pixels of each exposure fall on the grid of the mosaic.
    fwhm : float
        Width of a star [pixel].
    rules : MaskRules
        What counts as source.
    run : callable
        A ``map``, over processes or not.
    """
    for number, piece in enumerate(_pieces([pixel_map.load().window() for pixel_map in maps])):
        shape = piece.shape
        if shape[0] * shape[1] > _LARGEST_MOSAIC:
            log.warning(
                "A mosaic of %d exposures would have %d x %d cells, %d at most: they get no second pass.",
                *(len(piece.numbers), *shape, _LARGEST_MOSAIC),
            )
            continue
        exposures = (
            jobs.Resampling(names[k], _clean(samples, k, levels, background, left_out[k]), maps[k], path)
            for k, path in ((k, samples.folder and samples.folder / f"cells{k}") for k in piece.numbers)
        )
        size = maps[piece.numbers[0]].load().cell_size
        found = _mosaic_sources(piece, run(jobs.resample, exposures), fwhm / size, rules)
        found = shared.share(PixelSet.of(found), samples.folder, f"mosaic{number}")
        tasks = (
            jobs.Marking(
                *(names[k], samples.masks.lend(k), found, piece.first, maps[k], _into(samples, k)),
            )
            for k in piece.numbers
        )
        _write(samples, piece.numbers, run(jobs.mark, tasks))


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
    others = np.arange(len(windows))
    while len(others):
        inside, reached, others = [], others[:1], others[1:]
        while len(reached):
            k, reached = reached[0], reached[1:]
            inside.append(k)
            touch = np.all((low[others] < high[k]) & (low[k] < high[others]), axis=1)
            reached, others = np.concatenate([reached, others[touch]]), others[~touch]
        inside = np.sort(inside)
        first = low[inside].min(axis=0)
        nx, ny = high[inside].max(axis=0) - first
        yield _Piece(inside.tolist(), first, (int(ny), int(nx)))


def _clean(samples, k, levels, background, left_out):
    return jobs.Cleaning(samples.data.lend(k), background.lend(left_out), *_follows(levels, k))


def _mosaic_sources(piece, resampled, fwhm, rules):
    """Average the exposures of a piece without their background, and find the sources."""
    total, count = np.zeros(piece.shape, np.float32), np.zeros(piece.shape, np.uint16)
    for cells in resampled:
        if isinstance(cells, Path):
            cells = jobs.take(cells)
        if cells is not None:
            x, y = cells.corner - piece.first
            window = slice(y, y + cells.data.shape[0]), slice(x, x + cells.data.shape[1])
            total[window] += np.where(cells.seen, cells.data, 0)
            count[window] += cells.seen
    with np.errstate(invalid="ignore", divide="ignore"):
        mosaic, noise = total / np.where(count, count, np.nan), 1 / np.sqrt(count)
    job = rules.as_job(mosaic, noise, fwhm)
    # The mosaic sees deeper than an exposure: less is left beyond what it shows.
    return source_masks.find(**job | {"dilate": rules.dilate / 2})
