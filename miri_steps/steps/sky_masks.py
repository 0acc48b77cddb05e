"""Masks that the user draws on the sky, carried to the pixels of each exposure."""

import logging
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import gwcs
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning
from astropy.wcs import WCS, FITSFixedWarning
from astropy.wcs.utils import proj_plane_pixel_area
from scipy import ndimage
from stdatamodels.jwst.datamodels import JwstDataModel

from miri_steps import detector, exposures
from miri_steps.algorithms import discs, location, source_masks
from miri_steps.algorithms.sky_cells import PixelMap

__all__ = ["RegionMask", "SkyMask", "first_image", "read_mask_image", "read_regions", "read_wcs", "wcs_of"]

# Only loggers below "stpipe" are heard inside the stock pipelines.
log = logging.getLogger(f"stpipe.{__name__}")

# What lies farther from an exposure cannot reach into it, and the tangent plane ends at 90 [deg].
_FAR = 60.0
# Warnings of the parser of regions that no region is lost by: what has no area, how things are drawn,
# and frames that it does not know, as each region in one of those brings a warning of its own.
_HARMLESS = re.compile(
    r'^"(vector|ruler|compass|projection|linear|amplifier|detector|physical|tile|wcs\w?)" frame or shape'
    r"|duplicate metadata|will be ignored"
)


def wcs_of(model: JwstDataModel, what: str) -> gwcs.WCS:
    """
    Take the WCS of an exposure that is compared with something on the sky.

    Parameters
    ----------
    model : JwstDataModel
        The exposure.
    what : str
        What is on the sky, for the message.

    Returns
    -------
    gwcs.WCS
        Its WCS.

    Raises
    ------
    ValueError
        If it has none.
    """
    if getattr(model.meta, "wcs", None) is None:
        raise ValueError(f"{what} is on the sky, but {model.meta.filename} has no WCS (was assign_wcs run?)")
    return model.meta.wcs


def first_image(hdus: fits.HDUList, what: str) -> fits.ImageHDU:
    """
    Find the first two-dimensional image of a file.

    Parameters
    ----------
    hdus : HDUList
        The file.
    what : str
        Its parameter and path, for the message.

    Returns
    -------
    ImageHDU
        The image.

    Raises
    ------
    ValueError
        If there is none.
    """
    image = next((hdu for hdu in hdus if hdu.is_image and hdu.header.get("NAXIS") == 2), None)
    if image is None:
        raise ValueError(f"{what} must hold a two-dimensional image, but has none")
    return image


def read_wcs(header: fits.Header) -> WCS:
    """
    Read the WCS of an image without a word about the dates beside it.

    Parameters
    ----------
    header : Header
        Header of the image.

    Returns
    -------
    astropy.wcs.WCS
        The WCS.
    """
    with warnings.catch_warnings():
        # The pipeline's headers give dates twice; where they are completed nothing moves on the sky.
        warnings.simplefilter("ignore", FITSFixedWarning)
        return WCS(header)


@dataclass(frozen=True)
class SkyMask:
    """
    A mask on the sky, for instance the ``_segm`` of the pipeline.

    Parameters
    ----------
    name : str
        Its parameter and path, for messages.
    mask : ndarray
        True on sources, shape (ny, nx).
    known : ndarray
        True where there are data to tell, same shape.
    wcs : astropy.wcs.WCS
        Where its pixels are, in right ascension and declination.
    """

    name: str
    mask: np.ndarray
    known: np.ndarray
    wcs: WCS

    def project(self, model: JwstDataModel) -> tuple[np.ndarray, np.ndarray]:
        """
        Look up every pixel of an exposure in the mask.

        Parameters
        ----------
        model : ImageModel
            The exposure, with a gWCS.

        Returns
        -------
        covered : ndarray
            True on sources and a margin of one pixel, shape (ny, nx).
        known : ndarray
            True where the mask can tell, shape (ny, nx); all False beside the mask.

        Raises
        ------
        ValueError
            If the exposure has no WCS.
        """
        wcs_of(model, self.name)
        covered, known = (np.zeros(model.data.shape, bool) for _ in range(2))
        pixels = PixelMap(*exposures.pixel_mesh(model, self.wcs))
        if not np.isfinite([pixels.column, pixels.row]).all():
            # On the other side of the sky.
            return covered, known
        column, row = np.moveaxis(np.rint(pixels.at_pixels(model.data.shape)).astype(int), -1, 0)
        inside = (column >= 0) & (column < self.mask.shape[1]) & (row >= 0) & (row < self.mask.shape[0])
        at = row[inside], column[inside]
        covered[inside], known[inside] = self.mask[at], self.known[at]
        # A pixel of the mask may be smaller than one of the detector.
        return discs.grow(covered, 1), known

    def covers(self, model: JwstDataModel) -> np.ndarray:
        """Find the pixels of an exposure that sources cover, shape (ny, nx)."""
        return self.project(model)[0]


def read_mask_image(path: str | Path, *, sigma: float, least_area: int) -> SkyMask:
    """
    Read where sources are from a mosaic of the field, or from a map of its sources.

    An image of integers is taken for a map: not 0 on sources, and right everywhere inside. In any
    other the sources are found, and what has no data is not known.

    Parameters
    ----------
    path : str or Path
        FITS file with its WCS, for instance an ``_i2d`` or a ``_segm``; its first two-dimensional
        image counts.
    sigma : float
        Limit above which light is a source in a mosaic [standard deviations].
    least_area : int
        Smallest source in a mosaic [detector pixel].

    Returns
    -------
    SkyMask
        The mask.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no such image, or a mosaic whose FILTER is not known.
    """
    path = Path(path)
    name = f"mask_image {path}"
    if not path.is_file():
        raise FileNotFoundError(f"{name} does not exist")
    try:
        opened = fits.open(path)
    except OSError as error:
        raise ValueError(f"{name} must be a FITS file, but cannot be read: {error}") from error
    with opened as hdus:
        image = first_image(hdus, name)
        wcs = _read_sky_wcs(image.header, name)
        scale = float(3600 * np.sqrt(proj_plane_pixel_area(wcs)) / detector.PIXEL_SCALE)
        if image.data.dtype.kind in "iu":
            mask, known = image.data != 0, np.broadcast_to(True, image.data.shape)
        else:
            mask, known = _find_sources(hdus, image, name, scale, sigma=sigma, least_area=least_area)
    log.info("%s: sources cover %.1f%% of it", name, 100 * mask[known].mean())
    return SkyMask(name, _widened(mask, scale), known, wcs)


def _read_sky_wcs(header, name):
    wcs = read_wcs(header)
    if not wcs.has_celestial:
        raise ValueError(f"{name} must be on the sky, but its image has no WCS with RA and Dec")
    if wcs.wcs.lng != 0 or wcs.wcs.lngtyp != "RA" or wcs.has_distortion:
        raise ValueError(
            f"{name} must be a mosaic in RA and Dec without distortion, got CTYPE {' '.join(wcs.wcs.ctype)}"
        )
    return wcs


def _find_sources(hdus, image, name, scale, *, sigma, least_area):
    """Find the sources in a mosaic, and where it has data; its pixels are `scale` detector pixels wide."""
    band = hdus[0].header.get("FILTER")
    if band not in detector.FWHM:
        raise ValueError(
            f"FILTER of {name} must be one of {', '.join(detector.FWHM)}, or its image a map of sources in "
            f"integers, got {band} and {image.data.dtype.name}"
        )
    data = image.data.astype(np.float32)
    known = np.isfinite(data) & (_plane(hdus, "WHT", data.shape, 1) > 0)
    if not known.any():
        raise ValueError(f"{name} must show something, but has no pixel with data")
    noise = _plane(hdus, "ERR", data.shape, np.nan)
    untold = known & ~(noise > 0)
    if untold.any():
        noise[untold] = location.clip(data[known])[2]
    data[~known] = np.nan
    area = max(1, round(least_area / scale**2))
    fwhm = detector.FWHM[band] / scale
    return source_masks.find(data, noise, fwhm=fwhm, sigma=sigma, least_area=area) & known, known


def _plane(hdus, name, shape, otherwise):
    """Copy a plane that goes with the image, where the file has one."""
    if name in hdus and hdus[name].shape == shape:
        return hdus[name].data.astype(np.float32)
    return np.full(shape, otherwise, np.float32)


def _widened(mask, scale):
    """Widen sources where the mask is finer than the detector, whose pixels would step over them."""
    # To the diagonal of a detector pixel: then there is the middle of one in it, however it is turned.
    reach = round((np.sqrt(2) / scale - 1) / 2)
    return ndimage.maximum_filter(mask, 2 * reach + 1) if reach else mask


@dataclass(frozen=True)
class RegionMask:
    """
    Regions on the sky.

    Parameters
    ----------
    name : str
        Their parameter and path, for messages.
    included, excluded : list of SkyRegion
        What is in the mask, and what is cut out of it.

    Notes
    -----
    Regions are drawn on a tangent plane that touches the sky within a degree. A circle of 1 arcmin is
    right to 0.001 arcsec there, one of 30 arcmin to about a pixel; far larger ones are not round.
    """

    name: str
    included: list
    excluded: list
    _planes: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def covers(self, model: JwstDataModel) -> np.ndarray:
        """
        Find the pixels of an exposure whose middle lies in a region.

        Parameters
        ----------
        model : ImageModel
            The exposure, with a gWCS.

        Returns
        -------
        ndarray
            True inside any region and outside of all excluded ones, shape (ny, nx).

        Raises
        ------
        ValueError
            If the exposure has no WCS.
        """
        ny, nx = model.data.shape
        middle = wcs_of(model, self.name)((nx - 1) / 2, (ny - 1) / 2, with_bounding_box=False)
        grid, included, excluded = self._on_plane(_near_grid_point(*map(float, middle)))
        pixels = PixelMap(*exposures.pixel_mesh(model, grid))
        covered = _inside(included, pixels, (ny, nx))
        if covered.any():
            covered &= ~_inside(excluded, pixels, (ny, nx))
        return covered

    def _on_plane(self, point):
        """Draw the regions on the plane that touches the sky at a point: slow, so that it is done once."""
        if point not in self._planes:
            grid = exposures.sky_grid(np.array([point]), detector.PIXEL_SCALE)
            drawn = (_draw(regions, grid, SkyCoord(*point, unit="deg")) for regions in self._both())
            self._planes[point] = grid, *drawn
        return self._planes[point]

    def _both(self):
        return self.included, self.excluded


def _near_grid_point(ra, dec):
    """Round a position to about a degree, so that exposures of one field share a tangent plane."""
    dec = round(dec)
    number = max(1, round(360 * np.cos(np.radians(dec))))
    return round(ra * number / 360) % number * 360 / number, float(dec)


def _draw(regions, grid, point):
    """Draw regions on a grid; what is far away is left out."""
    drawn = []
    for region in regions:
        place = region.vertices if hasattr(region, "vertices") else region.center
        if np.max(place.separation(point).deg) < _FAR:
            drawn.append(region.to_pixel(grid))
    boxes = [(box.ixmin, box.ixmax, box.iymin, box.iymax) for box in (r.bounding_box for r in drawn)]
    return drawn, np.array(boxes, float).reshape(-1, 4)


def _inside(drawn, pixels, shape):
    """Find the pixels inside any region; each is asked for the pixels around it alone."""
    from regions import PixCoord

    covered = np.zeros(shape, bool)
    regions, boxes = drawn
    (west, east), (low, high) = (_mesh_limits(mesh) for mesh in (pixels.column, pixels.row))
    left, right, bottom, top = boxes.T
    near = (right >= west.min()) & (left <= east.max()) & (top >= low.min()) & (bottom <= high.max())
    if not near.any():
        return covered
    x, y = pixels.x, pixels.y
    positions = pixels.at_pixels(shape)
    for number in np.flatnonzero(near):
        left, right, bottom, top = boxes[number]
        touched = (right >= west) & (left <= east) & (top >= low) & (bottom <= high)
        rows, columns = (np.flatnonzero(touched.any(axis=axis)) for axis in (1, 0))
        if len(rows):
            window = _between(y, rows), _between(x, columns)
            covered[window] |= regions[number].contains(PixCoord(*np.moveaxis(positions[window], -1, 0)))
    return covered


def _mesh_limits(mesh):
    """Find the least and the largest value in each cell of a mesh, and half a pixel around."""
    corners = mesh[:-1, :-1], mesh[:-1, 1:], mesh[1:, :-1], mesh[1:, 1:]
    return np.min(corners, axis=0) - 0.5, np.max(corners, axis=0) + 0.5


def _between(edges, cells):
    """Give the pixels of a row of mesh cells, from the first to the last."""
    return slice(int(edges[cells[0]]), int(np.ceil(edges[cells[-1] + 1])) + 1)


def read_regions(path: str | Path) -> RegionMask:
    """
    Read the regions of a DS9 file in sky coordinates.

    A region with a minus sign is cut out of all others, whatever their order. Lines, points and texts
    have no area: they are left out, with a word in the log.

    Parameters
    ----------
    path : str or Path
        The region file.

    Returns
    -------
    RegionMask
        The regions.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read, a region is not in sky coordinates or of a kind that is not supported,
        or there is none with an area to mask.
    """
    path = Path(path)
    name = f"regions {path}"
    if not path.is_file():
        raise FileNotFoundError(f"{name} does not exist")
    found = _parse(path, name)
    regions = [region for region in found if _has_area(region)]
    for region in regions:
        if hasattr(region, "to_sky"):
            raise ValueError(_not_on_the_sky(name, " ".join(repr(region).split())))
    if len(found) > len(regions):
        log.warning(
            "%s: %d of %d regions are lines, points or texts and cover nothing; they are ignored.",
            *(name, len(found) - len(regions), len(found)),
        )
    included, excluded = [], []
    for region in regions:
        # Excluded regions answer the other way round when they are asked what they contain.
        (included if region.meta.pop("include", True) else excluded).append(region)
    if not included:
        raise ValueError(
            f"{name} must hold at least 1 region with an area that is not excluded, got 0 of {len(found)}"
        )
    log.info("%s: %d regions, %d cut out of them", name, len(included), len(excluded))
    return RegionMask(name, included, excluded)


def _parse(path, name) -> list:
    """Read a region file, and raise where the parser would go on without a region."""
    # Brings matplotlib along: not for those who have no regions.
    from regions import Regions

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = list(Regions.parse(path.read_text(encoding="utf-8"), format="ds9"))
    # The parser raises whatever it stumbles over.
    except Exception as error:
        raise ValueError(f"{name} cannot be read as a DS9 region file: {error}") from error
    _check_warnings(name, (str(w.message) for w in caught if issubclass(w.category, AstropyUserWarning)))
    return found


def _check_warnings(name: str, messages: Iterable[str]):
    for message in messages:
        if "frame was not found" in message:
            raise ValueError(_not_on_the_sky(name, message.partition(': "')[2].removesuffix('", skipping.')))
        if not _HARMLESS.search(message):
            raise ValueError(f"{name} has a region that cannot be used: {message}")


def _not_on_the_sky(name, region):
    return f"{name} must be in sky coordinates (save them as fk5 or icrs), got {region}"


def _has_area(region):
    # A text is a kind of point.
    return not type(region).__name__.startswith(("Line", "Point", "Text"))
