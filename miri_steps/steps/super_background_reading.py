"""`SuperBackgroundStep` reads an exposure, here or in another process."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.wcs import WCS
from stdatamodels.jwst.datamodels import JwstDataModel

from miri_steps import exposures
from miri_steps.algorithms import source_masks
from miri_steps.algorithms.sky_cells import Kept, PixelMap
from miri_steps.steps import shared
from miri_steps.steps.image_stack import ImageStack
from miri_steps.steps.super_background_rules import MaskRules, usable_pixels

__all__ = [
    "FOUND",
    "GIVEN",
    "KNOWN",
    "SOURCE",
    "USABLE",
    "Look",
    "Planes",
    "Reading",
    "Seen",
    "Stacks",
    "look",
    "read",
]

# What is known of a pixel of an exposure: it may be used, is left out as the user says, the mask image says
# all about sources there, it is plainly bright, and that is no light of the detector.
USABLE, GIVEN, KNOWN, FOUND, SOURCE = (np.uint8(1 << bit) for bit in range(5))


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
    pixel_map = planes.pixel_map and shared.share(planes.pixel_map, reading.maps, f"map{reading.k}")
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
        pointing=_pointing(model),
        covered=float(known[usable].mean()) if usable.any() else None,
        scale=_scale(image[usable & ~given], name) if wanted.has_level else 1.0,
        pixel_map=pixel_map,
    )


def _pointing(model):
    """Find where the middle of a frame looks, by the WCS or the reference point [deg]; None without both."""
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
