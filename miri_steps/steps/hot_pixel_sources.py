"""Sources that the user of `MedianHotPixelStep` names: a mask, or a catalogue."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from stdatamodels.jwst.datamodels import JwstDataModel

from miri_steps import detector
from miri_steps.algorithms import discs
from miri_steps.steps.sky_masks import SkyMask, first_image, read_wcs, wcs_of

__all__ = ["Catalogue", "DetectorMask", "NamedSources", "name", "read", "read_catalogue", "read_mask"]


@dataclass(frozen=True)
class DetectorMask:
    """A mask in the frame of the exposures, True on sources."""

    path: Path
    mask: np.ndarray

    def covers(self, model: JwstDataModel) -> np.ndarray:
        """Find the pixels of an exposure that sources cover, shape (ny, nx)."""
        if model.data.shape != self.mask.shape:
            raise ValueError(
                f"source_mask {self.path} must have a WCS or the shape of the exposures, but it has shape "
                f"{self.mask.shape} and {model.meta.filename} has {model.data.shape}"
            )
        return self.mask


@dataclass(frozen=True)
class Catalogue:
    """Positions of sources, each with a disc around it."""

    path: Path
    positions: SkyCoord
    radius: float

    def covers(self, model: JwstDataModel) -> np.ndarray:
        """Find the pixels of an exposure that sources cover, shape (ny, nx)."""
        wcs = wcs_of(model, f"source_catalog {self.path}")
        ny, nx = model.data.shape
        radius = self.radius / detector.PIXEL_SCALE
        middle = SkyCoord(*wcs((nx - 1) / 2, (ny - 1) / 2, with_bounding_box=False), unit="deg")
        # Far from the detector the way back from the sky is not defined.
        reach = (np.hypot(ny, nx) / 2 + radius) * detector.PIXEL_SCALE
        near = self.positions[self.positions.separation(middle).arcsec < 1.1 * reach]
        x, y = (np.atleast_1d(v) for v in wcs.invert(near.ra.deg, near.dec.deg, with_bounding_box=False))
        # Sources beyond an edge reach into the frame.
        margin = int(np.ceil(radius)) + 1
        points = np.zeros((ny + 2 * margin, nx + 2 * margin), bool)
        column, row = np.rint(x + margin).astype(int), np.rint(y + margin).astype(int)
        inside = (column >= 0) & (column < points.shape[1]) & (row >= 0) & (row < points.shape[0])
        points[row[inside], column[inside]] = True
        return discs.grow(points, radius)[margin:-margin, margin:-margin]


@dataclass(frozen=True)
class NamedSources:
    """
    The files that say where sources are: what is sent to other processes instead of what is in them.

    Parameters
    ----------
    mask, catalogue : Path or None
        The files, as far as they are given.
    radius : float
        Radius around each source of the catalogue [arcsec].
    changed : tuple of int
        When each was changed.
    """

    mask: Path | None
    catalogue: Path | None
    radius: float
    changed: tuple[int, ...]


def name(mask: str | None, catalogue: str | None, radius: float) -> NamedSources:
    """
    Name the files of sources.

    Parameters
    ----------
    mask, catalogue : str or None
        The files, as far as they are given.
    radius : float
        Radius around each source of the catalogue [arcsec].

    Returns
    -------
    NamedSources
        The same wherever the work is done.
    """
    paths = [Path(path).resolve() if path else None for path in (mask, catalogue)]
    changed = tuple(path.stat().st_mtime_ns for path in paths if path is not None and path.exists())
    return NamedSources(*paths, radius, changed)


# A process that looks at many exposures reads them once.
@lru_cache(maxsize=1)
def read(named: NamedSources) -> list[DetectorMask | Catalogue | SkyMask]:
    """
    Read the sources that the user names.

    Parameters
    ----------
    named : NamedSources
        Their files.

    Returns
    -------
    list of DetectorMask, SkyMask or Catalogue
        The sources; none where no file is named.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing or holds no sources.
    """
    given = [read_mask(named.mask)] if named.mask else []
    return [*given, read_catalogue(named.catalogue, named.radius)] if named.catalogue else given


def read_mask(path: str | Path) -> DetectorMask | SkyMask:
    """
    Read a mask of sources.

    Parameters
    ----------
    path : str or Path
        FITS file; its first two-dimensional image is not 0 on sources. With a celestial WCS it
        is on the sky, without in the frame of the exposures.

    Returns
    -------
    DetectorMask or SkyMask
        The mask.

    Raises
    ------
    ValueError
        If there is no such image.
    """
    path = Path(path)
    with fits.open(path) as hdus:
        image = first_image(hdus, f"source_mask {path}")
        mask = np.nan_to_num(image.data) != 0
        wcs = read_wcs(image.header)
    if not wcs.has_celestial:
        return DetectorMask(path, mask)
    return SkyMask(f"source_mask {path}", mask, np.broadcast_to(True, mask.shape), wcs)


def read_catalogue(path: str | Path, radius: float) -> Catalogue:
    """
    Read a catalogue of sources.

    Parameters
    ----------
    path : str or Path
        Table with ``sky_centroid``, as the pipeline's catalogues have it, or RA and Dec [deg].
    radius : float
        Radius of the disc around each source [arcsec].

    Returns
    -------
    Catalogue
        The sources.

    Raises
    ------
    ValueError
        If there are no such columns.
    """
    table = Table.read(path)
    columns = {name.lower(): name for name in table.colnames}
    if "sky_centroid" in columns:
        positions = SkyCoord(table[columns["sky_centroid"]])
    elif {"ra", "dec"} <= columns.keys():
        ra, dec = (np.asarray(table[columns[key]], float) for key in ("ra", "dec"))
        positions = SkyCoord(ra, dec, unit="deg")
    else:
        raise ValueError(
            f"source_catalog {path} must have a column sky_centroid, or RA and Dec, got {table.colnames}"
        )
    return Catalogue(Path(path), positions.icrs, radius)
