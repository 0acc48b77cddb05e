"""The border between data models and arrays."""

from pathlib import Path

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.nddata.bitmask import bitfield_to_boolean_mask, interpret_bit_flags
from astropy.wcs import WCS
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels import JwstDataModel
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps import __version__, detector

__all__ = [
    "IMAGING_TYPES",
    "add_history",
    "check_imaging",
    "check_unresampled",
    "excluded_pixels",
    "flagged_pixels",
    "frame_origin",
    "open_file",
    "parse_s_region",
    "pixel_mesh",
    "read_history",
    "read_logs",
    "region_pixels",
    "sky_grid",
    "sky_middle",
]

# Exposures through the imager's optics, coronagraph fields included.
IMAGING_TYPES = ("MIR_IMAGE", "MIR_4QPM", "MIR_LYOT", "MIR_CORONCAL", "MIR_TACQ", "MIR_TACONFIRM")

# The distortion is smooth on this scale [pixel].
_MESH_STEP = 16
# Length of a line of HISTORY in a FITS header.
_CARD = 72


def check_imaging(name: str, exp_type: str | None) -> None:
    """
    Refuse an exposure that is not MIRI imaging.

    Parameters
    ----------
    name : str
        Exposure name, for the message.
    exp_type : str or None
        Its EXP_TYPE.

    Raises
    ------
    ValueError
        If `exp_type` is not one of `IMAGING_TYPES`.
    """
    if exp_type not in IMAGING_TYPES:
        raise ValueError(
            f"EXP_TYPE of {name} must be MIRI imaging ({', '.join(IMAGING_TYPES)}), got {exp_type}"
        )


def check_unresampled(name: str, resample: str | None) -> None:
    """
    Refuse a mosaic where exposures are wanted.

    Parameters
    ----------
    name : str
        Exposure name, for the message.
    resample : str or None
        Its status of the ``resample`` step.

    Raises
    ------
    ValueError
        If it has been resampled.
    """
    if resample == "COMPLETE":
        raise ValueError(f"the input must be exposures before resample, but {name} has been through it")


def excluded_pixels(
    model: JwstDataModel,
    *,
    dqbits: str | None,
    lower: float | None = None,
    upper: float | None = None,
    regions: list[str] = (),
) -> np.ndarray:
    """
    Mask the pixels of an exposure that are not to be used.

    Parameters
    ----------
    model : ImageModel
        The exposure.
    dqbits : str or None
        Flags of pixels that are good all the same, as astropy's ``interpret_bit_flags`` reads
        them; None ignores the flags.
    lower, upper : float, optional
        Range of good values [unit of the data].
    regions : list of str, optional
        Parts of the detector to leave out (`miri_steps.detector.REGIONS`).

    Returns
    -------
    ndarray
        True where a pixel is excluded, shape (ny, nx).
    """
    data = model.data
    mask = ~np.isfinite(data)
    good_bits = interpret_bit_flags(dqbits, flag_name_map=pixel)
    if good_bits is not None and model.dq is not None:
        mask |= bitfield_to_boolean_mask(model.dq, good_bits, dtype=bool)
    if lower is not None:
        mask |= data < lower
    if upper is not None:
        mask |= data > upper
    return mask | region_pixels(model, regions)


def flagged_pixels(dq: np.ndarray, flag: str) -> np.ndarray:
    """
    Find the pixels that have a flag.

    Parameters
    ----------
    dq : ndarray
        Flags of the pixels.
    flag : str
        Name of the flag, as jwst has it.

    Returns
    -------
    ndarray
        True where it is set, shape of `dq`.
    """
    return (np.asarray(dq).astype(np.uint32) & np.uint32(pixel[flag])) > 0


def region_pixels(model: JwstDataModel, regions: list[str]) -> np.ndarray:
    """
    Find parts of the detector in the frame of an exposure.

    Parameters
    ----------
    model : ImageModel
        The exposure.
    regions : list of str
        Names of the parts (`miri_steps.detector.REGIONS`).

    Returns
    -------
    ndarray
        True inside any of them, shape (ny, nx).
    """
    x, y = frame_origin(model)
    return detector.region_mask(regions, shape=model.data.shape, xstart=x + 1, ystart=y + 1)


def parse_s_region(text: str) -> np.ndarray:
    """
    Read the corners from an S_REGION keyword.

    Parameters
    ----------
    text : str
        ``POLYGON ICRS ra dec ra dec ...`` [deg].

    Returns
    -------
    ndarray
        Corners, shape (n, 2) [deg].

    Raises
    ------
    ValueError
        If there are fewer than 3 corners or a number cannot be read.
    """
    numbers = text.upper().replace("POLYGON", "").replace("ICRS", "").split()
    try:
        corners = np.array(numbers, float)
    except ValueError:
        corners = np.array([])
    if len(corners) < 6 or len(corners) % 2 or not np.isfinite(corners).all():
        raise ValueError(f"S_REGION must be a POLYGON of at least 3 corners, got {text!r}")
    return corners.reshape(-1, 2)


def sky_middle(positions: np.ndarray) -> tuple[float, float]:
    """
    Find the middle of positions on the sky, wherever right ascension begins.

    Parameters
    ----------
    positions : ndarray
        Right ascensions and declinations, shape (n, 2) [deg].

    Returns
    -------
    ra, dec : float
        Direction of their mean [deg].
    """
    x, y, z = SkyCoord(*np.transpose(positions), unit="deg").cartesian.xyz.value.mean(axis=1)
    return float(np.degrees(np.arctan2(y, x) % (2 * np.pi))), float(np.degrees(np.arctan2(z, np.hypot(x, y))))


def sky_grid(corners: np.ndarray, scale: float) -> WCS:
    """
    Lay a north-up tangent plane through the middle of a field.

    The grid has no edges: cells are counted from the tangent point in all directions.

    Parameters
    ----------
    corners : ndarray
        Positions spread over the field, shape (n, 2) [deg].
    scale : float
        Side of a cell [arcsec].

    Returns
    -------
    astropy.wcs.WCS
        The grid.
    """
    grid = WCS(naxis=2)
    grid.wcs.ctype = "RA---TAN", "DEC--TAN"
    grid.wcs.crval = sky_middle(corners)
    grid.wcs.crpix = 1, 1
    grid.wcs.cdelt = -scale / 3600, scale / 3600
    return grid


def frame_origin(model: JwstDataModel) -> tuple[int, int]:
    """
    Find where a readout frame lies on the full detector.

    Parameters
    ----------
    model : JwstDataModel
        The exposure.

    Returns
    -------
    tuple of int
        Position (x, y) of the frame's first pixel, 0-indexed [pixel].
    """
    return (model.meta.subarray.xstart or 1) - 1, (model.meta.subarray.ystart or 1) - 1


def pixel_mesh(model: JwstDataModel, grid: WCS) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Find where a mesh of detector pixels falls on a sky grid.

    Parameters
    ----------
    model : ImageModel
        The exposure, with a gWCS to the sky (ICRS).
    grid : astropy.wcs.WCS
        The grid.

    Returns
    -------
    x, y : ndarray
        Columns and rows of the mesh, about every 16 pixels, shapes (mx,) and (my,) [pixel].
    column, row : ndarray
        Its positions on the grid, shape (my, mx) [cell].
    """
    y, x = (np.linspace(0, n - 1, max(6, n // _MESH_STEP + 1)) for n in model.data.shape)
    ra, dec = model.meta.wcs(*np.meshgrid(x, y), with_bounding_box=False)
    return x, y, *grid.wcs_world2pix(ra, dec, 0)


def add_history(model: JwstDataModel, description: str) -> None:
    """
    Add a HISTORY entry in the name of this package.

    Parameters
    ----------
    model : JwstDataModel
        Changed in place.
    description : str
        What was done, with its parameters.
    """
    software = {"name": "miri_steps", "version": __version__}
    # FITS keeps the text only.
    model.add_history_entry(f"miri_steps {__version__} {description}", software)


def open_file(path: str | Path) -> JwstDataModel:
    """
    Open the file of an exposure or a mosaic to read it.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    JwstDataModel
        To be closed, or used in a ``with`` statement.
    """
    return datamodels.open(str(path))


def read_history(model: JwstDataModel) -> list[str]:
    """
    Read the HISTORY entries of this package, each on one line again.

    Parameters
    ----------
    model : JwstDataModel
        The exposure.

    Returns
    -------
    list of str
        In the order they were written. FITS does not tell where an entry ends: one by others right behind
        a full line is taken for more of it.
    """
    found, is_open = [], False
    for entry in model.instance.get("history", {}).get("entries", ()):
        text = entry["description"]
        if text.startswith("miri_steps "):
            found.append(text)
        elif is_open:
            # A card of FITS holds 72 characters, and loses a blank at its end.
            found[-1] += text if len(found[-1]) % _CARD == 0 else f" {text}"
        else:
            continue
        is_open = len(text) in (_CARD - 1, _CARD)
    return found


def read_logs(model: JwstDataModel) -> dict[str, list[str]]:
    """
    Read the logs that jwst keeps in the files it saves.

    Parameters
    ----------
    model : JwstDataModel
        The exposure or mosaic.

    Returns
    -------
    dict
        Lines by the pipeline or Step that wrote them; empty where none are kept.
    """
    logs = getattr(model, "cal_logs", None)
    return {name: [str(line) for line in lines] for name, lines in logs.instance.items()} if logs else {}
