"""What the MIRI imager is: its shape, fields, filters and subarrays.

Numbers only, and the one function that draws them: `region_mask`. Everything is in detector pixels of the
full frame; arrays are (y, x) and pixel indices start at 0, except ``xstart`` and ``ystart``, which follow the
FITS keywords SUBSTRT1 and SUBSTRT2 and start at 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

__all__ = [
    "BANDS",
    "FWHM",
    "N_REFERENCE_COLUMNS",
    "PIXEL_SCALE",
    "REGIONS",
    "SHAPE",
    "SUBARRAYS",
    "Band",
    "Subarray",
    "bounding_box",
    "check_regions",
    "reference_pixel_mask",
    "region_mask",
    "wavelength",
]

#: Full frame (ny, nx), reference pixels included.
SHAPE = (1024, 1032)

#: Mean size of a pixel on the sky [arcsec].
PIXEL_SCALE = 0.11

#: Reference pixels: this many columns at the left and at the right edge of the full frame.
N_REFERENCE_COLUMNS = 4

#: Width of a point source at half maximum [pixel]; Gordon et al. 2025, AJ 169, 6.
FWHM = {
    "F560W": 1.636,
    "F770W": 2.187,
    "F1000W": 2.888,
    "F1065C": 2.910,
    "F1130W": 3.318,
    "F1140C": 3.270,
    "F1280W": 3.713,
    "F1500W": 4.354,
    "F1550C": 4.360,
    "F1800W": 5.224,
    "F2100W": 5.989,
    "F2300C": 6.090,
    "F2550W": 7.312,
    "FND": 3.7,
}


class Band(NamedTuple):
    """A filter: central wavelength and width [micron]."""

    wavelength: float
    width: float


#: Central wavelength and approximate width of the imager's filters [micron].
BANDS = {
    "F560W": Band(5.635, 1.00),
    "F770W": Band(7.639, 1.95),
    "F1000W": Band(9.953, 1.80),
    "F1065C": Band(10.563, 0.57),
    "F1130W": Band(11.309, 0.73),
    "F1140C": Band(11.310, 0.60),
    "F1280W": Band(12.810, 2.47),
    "F1500W": Band(15.064, 2.92),
    "F1550C": Band(15.517, 0.70),
    "F1800W": Band(17.984, 2.95),
    "F2100W": Band(20.795, 4.58),
    "F2300C": Band(22.650, 4.64),
    "F2550W": Band(25.365, 3.67),
    "FND": Band(12.900, 5.00),
}


def wavelength(band: str) -> float:
    """
    Give the central wavelength of a filter.

    Parameters
    ----------
    band : str
        Its name.

    Returns
    -------
    float
        Wavelength [micron]; infinite for a filter that is not known, so that it comes last.
    """
    return BANDS[band].wavelength if band in BANDS else float("inf")


class Subarray(NamedTuple):
    """A readout window: 1-indexed first pixel on the full frame, and size [pixel]."""

    xstart: int
    ystart: int
    xsize: int
    ysize: int

    @property
    def shape(self) -> tuple[int, int]:
        """Array shape (ny, nx)."""
        return self.ysize, self.xsize

    @property
    def slices(self) -> tuple[slice, slice]:
        """Where the window lies in a full-frame array."""
        y, x = self.ystart - 1, self.xstart - 1
        return slice(y, y + self.ysize), slice(x, x + self.xsize)


#: Readout windows by the name in SUBARRAY.
SUBARRAYS = {
    "FULL": Subarray(1, 1, 1032, 1024),
    "BRIGHTSKY": Subarray(457, 51, 512, 512),
    "SUB256": Subarray(413, 51, 256, 256),
    "SUB128": Subarray(1, 889, 136, 128),
    "SUB64": Subarray(1, 779, 72, 64),
    "MASK1065": Subarray(1, 19, 288, 224),
    "MASK1140": Subarray(1, 245, 288, 224),
    "MASK1550": Subarray(1, 467, 288, 224),
    "MASKLYOT": Subarray(1, 717, 320, 304),
}

# The imager is a slightly tilted window: its left edge leans by 4 columns over the full height, its right
# edge ends at the last light-sensitive column before the opaque border.
_IMAGER_LEFT, _IMAGER_LEAN, _IMAGER_RIGHT = 358.0, 4.0, 1023
# Coronagraph fields: centre (x, y) 0-indexed, and half size. 24 arcsec and 30 arcsec fields.
_QUADRANT_CENTRES = {"4qpm_1065": (119, 130), "4qpm_1140": (119, 356), "4qpm_1550": (119, 578)}
_QUADRANT_HALF = 12.0 / PIXEL_SCALE
# Phase steps between the quadrants scatter the light of about three pixel columns and rows.
_QUADRANT_CROSS = 1.5
_LYOT_CENTRE, _LYOT_HALF = (144, 865), 15.0 / PIXEL_SCALE
# Occulting spot: 3.3 lambda/D at 23 micron; it hangs from a bar across the field.
_LYOT_SPOT, _LYOT_BAR_HALF = 2.16 / PIXEL_SCALE, 0.36 / PIXEL_SCALE


def _square(x: np.ndarray, y: np.ndarray, centre: tuple[int, int], half: float) -> np.ndarray:
    return (np.abs(x - centre[0]) <= half) & (np.abs(y - centre[1]) <= half)


def _imager(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    left = _IMAGER_LEFT + _IMAGER_LEAN * y / (SHAPE[0] - 1)
    return (x >= left) & (x <= _IMAGER_RIGHT) & (y >= 0) & (y < SHAPE[0])


def _lyot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    dx, dy = x - _LYOT_CENTRE[0], y - _LYOT_CENTRE[1]
    occulted = (np.hypot(dx, dy) <= _LYOT_SPOT) | (np.abs(dx) <= _LYOT_BAR_HALF)
    return _square(x, y, _LYOT_CENTRE, _LYOT_HALF) & ~occulted


def _quadrants(name: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    centre = _QUADRANT_CENTRES[name]

    def field(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        away = np.minimum(np.abs(x - centre[0]), np.abs(y - centre[1])) > _QUADRANT_CROSS
        return _square(x, y, centre, _QUADRANT_HALF) & away

    return field


_FIELDS = {"imager": (_imager,), "lyot": (_lyot,)}
_FIELDS["4qpm"] = tuple(_quadrants(name) for name in _QUADRANT_CENTRES)
_FIELDS.update({name: (_quadrants(name),) for name in _QUADRANT_CENTRES})

#: Names that `region_mask` knows.
REGIONS = tuple(_FIELDS)


def check_regions(names: str | Iterable[str]) -> list[str]:
    """Refuse names of regions that are not known.

    Parameters
    ----------
    names : str or iterable of str
        Regions, see `region_mask`.

    Returns
    -------
    list of str
        The names.

    Raises
    ------
    ValueError
        If a name is not known; the message gives the known ones.
    """
    names = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in names if name not in _FIELDS]
    if unknown:
        raise ValueError(f"regions must be among {list(REGIONS)}, got {unknown}")
    return names


def region_mask(
    names: str | Iterable[str],
    *,
    shape: tuple[int, int] = SHAPE,
    xstart: int = 1,
    ystart: int = 1,
) -> np.ndarray:
    """Draw the fields of the imager: True inside any of the named regions.

    Light reaches the detector through five windows: the imager, the Lyot coronagraph (upper left, with the
    spot and the bar that hide the star) and three four-quadrant phase masks below it (each a square cut by a
    cross). The frame between them is opaque and belongs to no region; so do the occulted parts.

    Parameters
    ----------
    names : str or iterable of str
        Regions, of "imager", "lyot", "4qpm" (the three together), "4qpm_1065", "4qpm_1140", "4qpm_1550".
    shape : tuple of int
        Shape (ny, nx) of the frame [pixel].
    xstart, ystart : int
        First column and row of the frame on the full frame, 1-indexed as SUBSTRT1 and SUBSTRT2.

    Returns
    -------
    ndarray of bool
        Mask of the given shape.

    Raises
    ------
    ValueError
        If a name is not known; the message gives the known ones.

    Examples
    --------
    >>> mask = region_mask(["imager", "lyot"])
    >>> bool(mask[500, 700]), bool(mask[500, 330])
    (True, False)
    """
    return _draw(tuple(check_regions(names)), tuple(map(int, shape)), int(xstart), int(ystart)).copy()


@lru_cache(maxsize=8)
def _draw(names, shape, xstart, ystart):
    # Exposures by the hundred ask for the same few.
    y, x = np.ogrid[: shape[0], : shape[1]]
    x, y = x + (xstart - 1), y + (ystart - 1)
    mask = np.zeros(shape, bool)
    for field in (field for name in names for field in _FIELDS[name]):
        mask |= field(x, y)
    return mask & ~reference_pixel_mask(shape=shape, xstart=xstart)


def bounding_box(names: str | Iterable[str]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Find the rectangle of the full frame that holds the named regions.

    Parameters
    ----------
    names : str or iterable of str
        Regions, see `region_mask`.

    Returns
    -------
    low, high : tuple of int
        First and last pixel (x, y), 0-indexed.
    """
    y, x = np.nonzero(region_mask(names))
    return (int(x.min()), int(y.min())), (int(x.max()), int(y.max()))


def reference_pixel_mask(*, shape: tuple[int, int] = SHAPE, xstart: int = 1) -> np.ndarray:
    """Find the columns that see no light: True on reference pixels.

    Parameters
    ----------
    shape : tuple of int
        Shape (ny, nx) of the frame [pixel].
    xstart : int
        First column of the frame on the full frame, 1-indexed.

    Returns
    -------
    ndarray of bool
        Mask of the given shape.
    """
    x = np.arange(shape[1]) + (xstart - 1)
    columns = (x < N_REFERENCE_COLUMNS) | (x >= SHAPE[1] - N_REFERENCE_COLUMNS)
    return np.broadcast_to(columns, shape).copy()
