"""Masks and mosaics of `SuperBackgroundStep`, exposure by exposure, here or in other processes."""

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from miri_steps import whole_files
from miri_steps.algorithms import sky_cells, sources
from miri_steps.algorithms.sky_cells import Kept, SkyCells
from miri_steps.steps.image_stack import ImageStack
from miri_steps.steps.pixel_set import PixelSet
from miri_steps.steps.super_background_reading import FOUND, GIVEN, KNOWN, SOURCE
from miri_steps.steps.super_background_rules import find_sources

__all__ = [
    "Cleaning",
    "Grown",
    "Growing",
    "Marking",
    "Resampling",
    "Searching",
    "grow",
    "mark",
    "resample",
    "search",
    "take",
]

# Of a source that moves, only a smaller part than this stays.
_MOSTLY = 0.5
# Wings reach this many radii beyond what is bright.
_WINGS = 2.0


# ---- masks


@dataclass(frozen=True)
class Growing:
    """
    An exposure in which the light of the detector is to be told from sources.

    Parameters
    ----------
    name : str
        Its name.
    marks : Kept
        What is known of its pixels.
    detector : PixelSet
        Narrow light that stays on the detector.
    halo : float, optional
        How far wings reach at most, if they are to be masked [pixel].
    into : tuple, optional
        Stacks of the marks and the masks, and its place in them, where these are in files.
    """

    name: str
    marks: Kept
    detector: PixelSet
    halo: float | None
    into: tuple[ImageStack, ImageStack, int] | None = None


@dataclass(frozen=True)
class Grown:
    """What is known of the pixels of an exposure, and its mask; None where they are in files."""

    marks: np.ndarray | None
    mask: np.ndarray | None


def grow(task: Growing) -> Grown:
    """
    Mask what is plainly a source, and its wings.

    Parameters
    ----------
    task : Growing
        The exposure.

    Returns
    -------
    Grown
        What was found.
    """
    marks = task.marks.load()
    bright = (marks & (FOUND | KNOWN)) == FOUND
    found = _mostly_outside(bright, task.detector.mask())
    marks = (marks & ~SOURCE) | found * SOURCE
    if task.halo is not None:
        found = sources.grow_by_width(found, _WINGS, task.halo)
    mask = found | (marks & GIVEN > 0)
    if task.into is None:
        return Grown(marks, mask)
    all_marks, masks, k = task.into
    all_marks.write(k, marks)
    masks.write(k, mask)
    return Grown(None, None)


def _mostly_outside(mask, other):
    """Keep the connected parts of a mask of which less than half lies in another."""
    if not (mask & other).any():
        return mask
    labels, number = ndimage.label(mask, np.ones((3, 3), bool))
    whole, inside = (np.bincount(labels[plane], minlength=number + 1) for plane in (mask, mask & other))
    return (inside < _MOSTLY * whole)[labels] & mask


@dataclass(frozen=True)
class Cleaning:
    """
    An exposure whose background is to be taken away.

    Parameters
    ----------
    image, background : Kept
        Its pixels, and the background that it follows.
    factor, level : float32
        How it does.
    """

    image: Kept
    background: Kept
    factor: np.float32
    level: np.float32

    def clean(self) -> np.ndarray:
        """Take the background away."""
        return self.image.load() - self.factor * self.background.load() - self.level


@dataclass(frozen=True)
class Searching:
    """
    An exposure in which sources are looked for.

    Parameters
    ----------
    name : str
        Its name.
    exposure : Cleaning
        Its pixels.
    marks : Kept
        What is known of them.
    noise : Kept
        Their standard deviation.
    look : Kept
        What counts as source.
    into : tuple, optional
        Stack of masks and its place there, where that is in a file.
    """

    name: str
    exposure: Cleaning
    marks: Kept
    noise: Kept
    look: Kept
    into: tuple[ImageStack, int] | None = None


def search(task: Searching) -> np.ndarray | None:
    """
    Mask the sources of an exposure, once a background is known.

    Parameters
    ----------
    task : Searching
        The exposure.

    Returns
    -------
    ndarray or None
        The mask, if it is not in a file.
    """
    wanted, marks = task.look.load(), task.marks.load()
    found = find_sources(task.exposure.clean(), task.noise.load(), wanted.fwhm, wanted.rules)
    mask = (found & (marks & KNOWN == 0)) | (marks & (SOURCE | GIVEN) > 0)
    return _put(mask, task.into)


def _put(mask, into):
    """Write a mask where it is to be in a file, or hand it back."""
    if into is None:
        return mask
    stack, k = into
    stack.write(k, mask)
    return None


# ---- the mosaic of the second pass


@dataclass(frozen=True)
class Resampling:
    """
    An exposure that becomes part of a mosaic.

    Parameters
    ----------
    name : str
        Its name.
    exposure : Cleaning
        Its pixels.
    pixel_map : Kept
        Where they fall on the grid of the mosaic.
    path : Path, optional
        File for its cells.
    """

    name: str
    exposure: Cleaning
    pixel_map: Kept
    path: Path | None = None


def resample(task: Resampling) -> SkyCells | Path | None:
    """
    Resample an exposure without its background.

    Parameters
    ----------
    task : Resampling
        The exposure.

    Returns
    -------
    SkyCells, Path or None
        Its cells, or the file that holds them; None if there are none.
    """
    cells = sky_cells.resample(task.exposure.clean(), task.pixel_map.load())
    if cells is None or task.path is None:
        return cells
    whole_files.replace_scratch(task.path, lambda part: part.write_bytes(pickle.dumps(cells)))
    return task.path


def take(path: Path) -> SkyCells:
    """
    Take cells from their file, which is removed.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    SkyCells
        The cells.
    """
    cells = pickle.loads(path.read_bytes())
    path.unlink()
    return cells


@dataclass(frozen=True)
class Marking:
    """
    An exposure whose mask grows by the sources of a mosaic.

    Parameters
    ----------
    name : str
        Its name.
    mask : Kept
        Its mask.
    found : Kept
        Sources on the mosaic, packed.
    first : ndarray
        First cell of the mosaic (column, row).
    pixel_map : Kept
        Where its pixels fall on the grid.
    into : tuple, optional
        Stack of masks and its place there, where that is in a file.
    """

    name: str
    mask: Kept
    found: Kept
    first: np.ndarray
    pixel_map: Kept
    into: tuple[ImageStack, int] | None = None


def mark(task: Marking) -> np.ndarray | None:
    """
    Mask the sources that a mosaic shows.

    Parameters
    ----------
    task : Marking
        The exposure.

    Returns
    -------
    ndarray or None
        The mask, if it is not in a file.
    """
    mask, found = task.mask.load(), task.found.load().mask()
    position = np.rint(task.pixel_map.load().moved(task.first).at_pixels(mask.shape)).astype(int)
    column, row = (np.clip(position[..., axis], 0, found.shape[1 - axis] - 1) for axis in (0, 1))
    return _put(mask | found[row, column], task.into)
