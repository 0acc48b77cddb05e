"""The parts of `SuperBackgroundStep` that may run in other processes, exposure by exposure."""

import pickle
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from astropy.wcs import WCS
from scipy import ndimage
from stdatamodels.jwst.datamodels import JwstDataModel

from miri_steps import exposures, whole_files
from miri_steps.algorithms import sky_cells, source_masks, sources
from miri_steps.algorithms.sky_cells import Held, Kept, PixelMap, SkyCells
from miri_steps.steps.image_stack import ImageStack
from miri_steps.steps.pixel_set import PixelSet
from miri_steps.steps.super_background_rules import MaskRules, find_sources, usable_pixels

__all__ = [
    "FOUND",
    "GIVEN",
    "KNOWN",
    "SOURCE",
    "USABLE",
    "Cleaning",
    "Grown",
    "Growing",
    "Look",
    "Marking",
    "Planes",
    "Reading",
    "Resampling",
    "Searching",
    "Seen",
    "Shared",
    "Stacks",
    "forget",
    "grow",
    "look",
    "mark",
    "pointing_of",
    "read",
    "resample",
    "search",
    "share",
    "take",
]

# What is known of a pixel of an exposure: it may be used, is left out as the user says, the mask image says
# all about sources there, it is plainly bright, and that is no light of the detector.
USABLE, GIVEN, KNOWN, FOUND, SOURCE = (np.uint8(1 << bit) for bit in range(5))

# Of a source that moves, only a smaller part than this stays.
_MOSTLY = 0.5
# Wings reach this many radii beyond what is bright.
_WINGS = 2.0


# ---- what many tasks need


@dataclass(frozen=True)
class Shared:
    """
    Something in a scratch file that many tasks need.

    Parameters
    ----------
    path : Path
        The file.
    """

    path: Path

    def load(self) -> object:
        """Get it back; each process reads it once for tasks that follow one another."""
        return _unpickle(self.path)


def share(thing: object, folder: Path | None, name: str) -> Kept:
    """
    Put away what many tasks need, so that it does not travel with each.

    Parameters
    ----------
    thing : object
        What they need.
    folder : Path or None
        Folder for scratch files; None keeps it in memory.
    name : str
        Name of its file, which no other has.

    Returns
    -------
    Held or Shared
        With a method ``load``.
    """
    if folder is None:
        return Held(thing)
    path = folder / name
    whole_files.replace_scratch(path, lambda part: part.write_bytes(pickle.dumps(thing)))
    return Shared(path)


def forget() -> None:
    """Forget in this process what was read for tasks."""
    _unpickle.cache_clear()


@lru_cache(maxsize=4)
def _unpickle(path):
    return pickle.loads(path.read_bytes())


# ---- reading


@dataclass(frozen=True)
class Look:
    """
    What is wanted of the exposures of a group.

    Parameters
    ----------
    rules : MaskRules
        What is left out.
    fwhm : float
        Width of a star [pixel].
    first : str
        Name of the first exposure.
    shape : tuple of int
        Its shape (ny, nx).
    has_level : bool
        Whether the exposures must have their full level, for it is scaled.
    center : tuple of float, optional
        Where the grid of a mosaic touches the sky, where one is made [deg].
    cell : float
        Side of its cells [arcsec].
    """

    rules: MaskRules
    fwhm: float
    first: str
    shape: tuple[int, int]
    has_level: bool
    center: tuple[float, float] | None
    cell: float

    @property
    def grid(self) -> WCS | None:
        """The grid; made here, for a WCS that travels loses its last digits."""
        return None if self.center is None else exposures.sky_grid(np.array([self.center]), self.cell)


@dataclass(frozen=True)
class Seen:
    """
    What is kept of an exposure that was read.

    Parameters
    ----------
    pointing : tuple of float, optional
        Where the middle of its frame looks, RA and Dec [deg].
    covered : float, optional
        Part of its usable pixels that the mask image shows; None where it has none.
    scale : float
        About the factor by which it follows the background.
    pixel_map : Kept, optional
        Where its pixels fall on the grid.
    marks : ndarray, optional
        What is known of its pixels, where this is not in a file.
    """

    pointing: tuple[float, float] | None
    covered: float | None
    scale: float
    pixel_map: Kept | None = None
    marks: np.ndarray | None = None


@dataclass(frozen=True)
class Planes:
    """The pixels of an exposure, NaN where they must not be used, and what is known of them."""

    image: np.ndarray
    err: np.ndarray
    marks: np.ndarray
    pointing: tuple[float, float] | None
    covered: float | None
    scale: float
    pixel_map: PixelMap | None


@dataclass(frozen=True)
class Stacks:
    """Where the images of the exposures are put."""

    data: ImageStack
    err: ImageStack
    marks: ImageStack


@dataclass(frozen=True)
class Reading:
    """
    An exposure to be read.

    Parameters
    ----------
    name : str
        Its name.
    k : int
        Its place among the exposures of its group.
    source : Path or Planes
        Its file, or its pixels where it is in memory.
    look : Kept
        What is wanted of it.
    stacks : Stacks, optional
        Where its images go, if it is in a file.
    maps : Path, optional
        Folder for the maps of exposures.
    """

    name: str
    k: int
    source: Path | Planes
    look: Kept
    stacks: Stacks | None = None
    maps: Path | None = None


def read(reading: Reading) -> Seen:
    """
    Read an exposure, and find what is plainly a source.

    Parameters
    ----------
    reading : Reading
        The exposure.

    Returns
    -------
    Seen
        What is kept of it.
    """
    wanted, planes = reading.look.load(), reading.source
    if isinstance(planes, Path):
        with exposures.open_file(planes) as model:
            planes = look(model, wanted, reading.name)
    found = source_masks.bright_job((planes.image, planes.err, wanted.fwhm))
    marks = planes.marks | found * FOUND
    if reading.stacks is not None:
        reading.stacks.data.write(reading.k, planes.image)
        reading.stacks.err.write(reading.k, planes.err)
        reading.stacks.marks.write(reading.k, marks)
        marks = None
    pixel_map = planes.pixel_map and share(planes.pixel_map, reading.maps, f"map{reading.k}")
    return Seen(planes.pointing, planes.covered, planes.scale, pixel_map, marks)


def look(model: JwstDataModel, wanted: Look, name: str) -> Planes:
    """
    Take what is wanted from an exposure.

    Parameters
    ----------
    model : ImageModel
        The exposure.
    wanted : Look
        What is wanted of it.
    name : str
        Its name.

    Returns
    -------
    Planes
        Its pixels.

    Raises
    ------
    ValueError
        If it differs in shape from the first, or lacks what is needed.
    """
    if model.data.shape != wanted.shape:
        raise ValueError(
            f"exposures of one background must have one shape, but {wanted.first} has "
            f"{wanted.shape} and {name} has {model.data.shape}"
        )
    grid = wanted.grid
    pixel_map = None if grid is None else _map(model, grid, name)
    if model.err is None:
        raise ValueError(f"{name} must have an array ERR, but has none")
    usable = usable_pixels(model)
    given, known = wanted.rules.given(model, usable, wanted.fwhm)
    image = np.where(usable, model.data, np.nan).astype(np.float32)
    return Planes(
        image=image,
        err=np.where(usable, model.err, np.nan).astype(np.float32),
        marks=usable * USABLE | given * GIVEN | known * KNOWN,
        pointing=pointing_of(model),
        covered=float(known[usable].mean()) if usable.any() else None,
        scale=_scale(image[usable & ~given], name) if wanted.has_level else 1.0,
        pixel_map=pixel_map,
    )


def pointing_of(model: JwstDataModel) -> tuple[float, float] | None:
    """
    Find where the middle of a frame looks.

    Parameters
    ----------
    model : ImageModel
        The exposure.

    Returns
    -------
    tuple of float or None
        RA and Dec from the WCS, or those of the reference point [deg]; None if it has neither.
    """
    wcs = getattr(model.meta, "wcs", None)
    if wcs is not None:
        ny, nx = model.data.shape
        ra, dec = wcs((nx - 1) / 2, (ny - 1) / 2, with_bounding_box=False)
    else:
        ra, dec = model.meta.wcsinfo.ra_ref, model.meta.wcsinfo.dec_ref
    return None if ra is None or dec is None else (float(ra), float(dec))


def _scale(values, name):
    """Guess by which factor an exposure follows the background."""
    if not len(values):
        return 1.0
    level = float(np.median(values))
    if level <= 0:
        raise ValueError(
            f"scaling='multiplicative' needs exposures with their background, above 0, but the level of "
            f"{name} is {level:.4g}"
        )
    return level


def _map(model, grid, name):
    if getattr(model.meta, "wcs", None) is None:
        raise ValueError(f"passes=2 makes a mosaic, but {name} has no WCS (was assign_wcs run?)")
    return PixelMap(*exposures.pixel_mesh(model, grid), exposures.frame_origin(model))


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
