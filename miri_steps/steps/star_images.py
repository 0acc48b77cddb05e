"""What `StarPhotometryStep` takes from an image, and the row that it makes of it."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.table import QTable
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels import JwstDataModel

from miri_steps import detector, exposures
from miri_steps.fluxcal import config
from miri_steps.fluxcal.encircled import Resampling
from miri_steps.fluxcal.photometry import Aperture, Measurement
from miri_steps.steps.base import check_file

__all__ = [
    "Apertures",
    "CorrectedAperture",
    "StarImage",
    "UnusableAperturesError",
    "drizzled_alike",
    "find_aperture",
    "made_for",
    "native_pixel",
    "read",
    "read_apertures",
    "resampling",
    "row",
]

log = logging.getLogger(f"stpipe.{__name__}")

_RATE = u.DN / u.s
_PIXEL = u.pix
_SURFACE_BRIGHTNESS, _COUNTS = "MJy/sr", "DN/s"
_DO_NOT_USE = datamodels.dqflags.pixel["DO_NOT_USE"]
# The sensitivity falls by a few percent a year: a mosaic of more than this needs more than one date [d].
_LONGEST_SPAN = 30.0
# What `made_for` says.
_MADE_FOR = re.compile(
    r"For (?:Resampling\(pixfrac=([\d.e-]+), pixel_scale_ratio=([\d.e-]+)\)|exposures, as they are)\."
)
# Mosaics are drizzled alike where pixels and what is dropped differ by less than this part.
_ALIKE = 1e-3


class UnusableAperturesError(ValueError):
    """An aperture correction reference file is of no use, whatever the image is."""


@dataclass(frozen=True)
class StarImage:
    """
    An image as photometry wants it.

    Parameters
    ----------
    name : str
        Its file.
    image, err : ndarray
        Rates and their standard deviations, shape (ny, nx) [DN/s in a pixel].
    mask : ndarray
        True where pixels must not be used.
    wcs : gwcs.WCS
        Where pixels are on the sky.
    pixel_scale : float
        Side of a pixel [arcsec].
    pixel_area : float
        Its solid angle, for which the rates are meant [sr].
    relative_area : ndarray or None
        Areas of the pixels in units of that, shape (ny, nx); None where they are not known.
    """

    name: str
    image: np.ndarray
    err: np.ndarray
    mask: np.ndarray
    wcs: object
    pixel_scale: float
    pixel_area: float
    relative_area: np.ndarray | None

    def area_at(self, x: float, y: float) -> float:
        """
        Tell the area of a pixel.

        Parameters
        ----------
        x, y : float
            Position in the image [pixel].

        Returns
        -------
        float
            In units of ``pixel_area``, 1 where it is not known.
        """
        return 1.0 if self.relative_area is None else float(self.relative_area[round(y), round(x)])

    def pixel_of(self, ra: float, dec: float) -> tuple[float, float]:
        """
        Find a position in the image.

        Parameters
        ----------
        ra, dec : float
            Position [deg].

        Returns
        -------
        tuple of float
            Pixel (x, y), also outside the image.
        """
        x, y = self.wcs.invert(ra, dec, with_bounding_box=False)
        return float(x), float(y)


@dataclass(frozen=True)
class CorrectedAperture:
    """
    An aperture of the reference file.

    Parameters
    ----------
    aperture : Aperture
        Where light and background are measured [pixel of the image].
    ee : float
        Part of the light that it holds.
    apcorr : float
        What brings the light in it to all light.
    """

    aperture: Aperture
    ee: float
    apcorr: float


def read(model: JwstDataModel) -> StarImage:
    """
    Take what photometry needs from a mosaic or an exposure.

    Light is put back from surface brightness to counts by the factor that was applied, PHOTMJSR, so that the
    calibration does not depend on an older one; of a mosaic this is the factor of its first exposure, and a
    mosaic that spans more than 30 days is named in the log. The pixels of an exposure are not equally large;
    one without AREA is named in the log. They stay as they are, for a sky that is flat would not be so in
    counts: the light of a star is multiplied by the area where it is.

    Parameters
    ----------
    model : ImageModel
        The image.

    Returns
    -------
    StarImage
        Rates and mask.

    Raises
    ------
    ValueError
        If it is no MIRI image, lacks what is needed, or has other units.
    """
    name = model.meta.filename
    exposures.check_imaging(name, model.meta.exposure.type)
    if getattr(model.meta, "wcs", None) is None:
        raise ValueError(f"{name} has no WCS: was assign_wcs run?")
    scale = _pixel_scale(model)
    conversion = _conversion(model, name)
    _check_span(model)
    return StarImage(
        name=name,
        image=model.data / conversion,
        err=model.err / conversion,
        mask=_mask(model),
        wcs=model.meta.wcs,
        pixel_scale=scale,
        pixel_area=float(model.meta.photometry.pixelarea_steradians),
        relative_area=_relative_area(model),
    )


def _pixel_scale(model):
    """Side of a pixel [arcsec]."""
    area = model.meta.photometry.pixelarea_steradians
    if not area:
        raise ValueError(f"{model.meta.filename} does not say how large its pixels are (PIXAR_SR)")
    return float(np.degrees(np.sqrt(area)) * 3600)


def _is_mosaic(model):
    return model.meta.cal_step.resample == "COMPLETE" or model.hasattr("wht")


def _relative_area(model):
    """Areas of pixels over that of PIXAR_SR, None where they are not known."""
    if _is_mosaic(model):
        return np.broadcast_to(1.0, model.data.shape)
    area = model.area if model.hasattr("area") else None
    if area is not None and area.shape == model.data.shape:
        return np.array(area)
    log.warning(
        "AREA of %s must have the shape %s, got %s: light is off by the relative area of a pixel, up to 1 %%",
        *(model.meta.filename, model.data.shape, "none" if area is None else area.shape),
    )
    return None


def _check_span(model):
    first, last = model.meta.exposure.start_time, model.meta.exposure.end_time
    if first and last and last - first > _LONGEST_SPAN:
        log.warning(
            "%s spans %.0f days: its rates are put back with PHOTMJSR of the first exposure, and its date is "
            "the mean",
            *(model.meta.filename, last - first),
        )


def _conversion(model, name):
    """Tell what the rates were multiplied by."""
    unit = model.meta.bunit_data
    if unit == _COUNTS:
        return 1.0
    if unit != _SURFACE_BRIGHTNESS:
        raise ValueError(f"the unit of {name} must be {_SURFACE_BRIGHTNESS} or {_COUNTS}, got {unit}")
    conversion = model.meta.photometry.conversion_megajanskys
    if not conversion:
        raise ValueError(f"{name} is in {unit}, but does not say by which factor (PHOTMJSR)")
    return conversion


def _mask(model):
    mask = ~(np.isfinite(model.data) & np.isfinite(model.err))
    # Mosaics have no flags, but weights.
    if model.hasattr("wht") and model.wht is not None:
        return mask | (model.wht == 0)
    if model.hasattr("dq") and model.dq is not None:
        return mask | (np.bitwise_and(model.dq, _DO_NOT_USE) > 0)
    return mask


@dataclass(frozen=True)
class Apertures:
    """
    Content of an aperture correction reference file.

    Parameters
    ----------
    path : str or Path
        The file.
    table : ndarray
        Its rows, with named fields.
    history : str
        What it says of its making.
    """

    path: str | Path
    table: np.ndarray
    history: str


def read_apertures(path: str | Path) -> Apertures:
    """
    Read an aperture correction reference file.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    Apertures
        Its content.

    Raises
    ------
    UnusableAperturesError
        If it cannot be read, or is not of this kind.
    """
    try:
        check_file(path)
        with datamodels.open(path) as file:
            if isinstance(file, datamodels.MirImgApcorrModel):
                entries = file.instance.get("history", {}).get("entries", ())
                # FITS breaks what is longer than a card.
                history = "".join(entry["description"] for entry in entries)
                return Apertures(path, np.array(file.apcorr_table), history)
    except (OSError, ValueError) as error:
        raise UnusableAperturesError(f"the apertures cannot be read: {error}") from error
    raise UnusableAperturesError(f"{path} must be an aperture correction reference file of MIRI imaging")


def find_aperture(
    model: JwstDataModel, seen: StarImage, apertures: Apertures, ee: float
) -> CorrectedAperture:
    """
    Look an aperture up, and put it from native pixels to those of the image.

    A file of this package says in its history what it was made for; for an image that was drizzled otherwise,
    both are named in the log.

    Parameters
    ----------
    model : ImageModel
        The image.
    seen : StarImage
        What was taken from it.
    apertures : Apertures
        Content of an aperture correction reference file.
    ee : float
        Part of the light that the aperture is to hold.

    Returns
    -------
    CorrectedAperture
        The aperture, and its correction.

    Raises
    ------
    UnusableAperturesError
        If the file holds ``ee`` for no filter.
    ValueError
        If it has no such aperture for this image.
    """
    table = apertures.table
    if not np.isclose(table["eefraction"], ee, atol=1e-4).any():
        known = ", ".join(f"{level:.2f}" for level in np.unique(table["eefraction"]))
        raise UnusableAperturesError(f"ee must be one of {known} in {apertures.path}, got {ee}")
    rows = _rows(model, apertures)
    _check_kind(model, apertures)
    chosen = rows[np.isclose(rows["eefraction"], ee, atol=1e-4)]
    if len(chosen) != 1:
        known = ", ".join(f"{level:.2f}" for level in rows["eefraction"])
        raise ValueError(f"ee must be one of {known} in {apertures.path}, got {ee}")
    pixel = native_pixel(model, seen)
    radius, inner, outer = (float(chosen[name][0]) / pixel for name in ("radius", "skyin", "skyout"))
    fwhm = config.band(model.meta.instrument.filter).fwhm / pixel
    return CorrectedAperture(Aperture(radius, (inner, outer), fwhm), ee, float(chosen["apcorr"][0]))


def made_for(images: Resampling | None) -> str:
    """
    Say in the history of apertures for what kind of image they are.

    Parameters
    ----------
    images : Resampling or None
        How mosaics were drizzled; None for exposures.

    Returns
    -------
    str
        A sentence, which `find_aperture` understands.
    """
    return f"For {images}." if images else "For exposures, as they are."


def _check_kind(model, apertures):
    """Warn of apertures that were made for another kind of image."""
    made = _MADE_FOR.search(apertures.history)
    if not made:
        return
    values = [float(value) for value in made.groups() if value]
    wanted, own = resampling(model), Resampling(*values) if values else None
    if not drizzled_alike(wanted, own):
        log.warning(
            "%s was made %s, but %s is %s: light may be off by some percent",
            *(apertures.path, f"f{made[0][1:-1]}", model.meta.filename, wanted or "an exposure"),
        )


def _rows(model, apertures):
    """Look up the apertures for the filter and subarray of an image."""
    band, subarray = model.meta.instrument.filter, model.meta.subarray.name
    if not (band and subarray):
        raise ValueError(f"{model.meta.filename} must have FILTER and SUBARRAY, got {band} and {subarray}")
    table = apertures.table
    bands, subarrays = (np.char.strip(table[column].astype(str)) for column in ("filter", "subarray"))
    # In-pixel mode is read out like the subarray itself.
    rows = table[(bands == band) & (subarrays == subarray.removesuffix("_IP"))]
    if not len(rows):
        raise ValueError(f"{apertures.path} has no apertures for {band} in {subarray}")
    return rows


def native_pixel(model: JwstDataModel, seen: StarImage) -> float:
    """
    Tell how large pixels of an image are.

    Parameters
    ----------
    model : ImageModel
        The image.
    seen : StarImage
        What was taken from it.

    Returns
    -------
    float
        Their side in units of that of the detector's pixels.
    """
    return _scale_ratio(model, seen.pixel_scale)


def _scale_ratio(model, pixel_scale):
    # Pixels of exposures are those of the detector, whatever their area is taken to be.
    if not _is_mosaic(model):
        return 1.0
    return model.meta.resample.pixel_scale_ratio or pixel_scale / detector.PIXEL_SCALE


def resampling(model: JwstDataModel) -> Resampling | None:
    """
    Tell how a mosaic was drizzled, so that apertures can be made for images like it.

    Parameters
    ----------
    model : ImageModel
        The image.

    Returns
    -------
    Resampling or None
        Of a mosaic; None for an exposure.

    Raises
    ------
    ValueError
        If a mosaic does not say how large its pixels are.
    """
    if not _is_mosaic(model):
        return None
    pixfrac = model.meta.resample.pixfrac
    return Resampling(
        pixfrac=1.0 if pixfrac is None else pixfrac,
        pixel_scale_ratio=_scale_ratio(model, _pixel_scale(model)),
    )


def drizzled_alike(one: Resampling | None, other: Resampling | None) -> bool:
    """
    Tell whether the same apertures are right for two images.

    Parameters
    ----------
    one, other : Resampling or None
        How each was drizzled; None for an exposure.

    Returns
    -------
    bool
        Whether both are exposures, or mosaics that were drizzled alike.
    """
    if one is None or other is None:
        return one is other
    values = [(each.pixfrac, each.pixel_scale_ratio) for each in (one, other)]
    return np.allclose(*values, rtol=_ALIKE)


def row(
    model: JwstDataModel,
    seen: StarImage | None,
    chosen: CorrectedAperture | None,
    found: Measurement | None,
    expected: tuple[float, float] | None,
    problem: str,
) -> QTable:
    """
    Make the row of an image.

    Parameters
    ----------
    model : ImageModel
        The image.
    seen : StarImage or None
        What was taken from it.
    chosen : CorrectedAperture or None
        Where the star was measured.
    found : Measurement or None
        The star.
    expected : tuple of float or None
        Where it should be (x, y) [pixel].
    problem : str
        Why there is none of these.

    Returns
    -------
    QTable
        One row.
    """
    meta = model.meta
    star = config.star(meta.target.catalog_name or meta.target.proposer_name or "")
    columns = {
        "file": meta.filename or "",
        "name": star.name,
        "type": star.type,
        "filter": meta.instrument.filter or "",
        "subarray": meta.subarray.name or "",
        "readpattern": meta.exposure.readpatt or "",
        "ngroups": meta.exposure.ngroups or 0,
        "tgroup": (meta.exposure.group_time or np.nan) * u.s,
        "timemid": (meta.exposure.mid_time or np.nan) * u.day,
        **_apertures(chosen),
        "pixel_area": (seen.pixel_area if seen else np.nan) * u.sr,
        "area_corrected": seen is not None and seen.relative_area is not None,
        **_measured(seen, found, expected, meta.exposure),
        "problem": problem,
    }
    return QTable({name: np.atleast_1d(value) for name, value in columns.items()})


def _apertures(chosen):
    """Columns of the aperture, NaN where none was found."""
    radius, inner, outer, ee, apcorr = [np.nan] * 5
    if chosen:
        radius, (inner, outer) = chosen.aperture.radius, chosen.aperture.sky
        ee, apcorr = chosen.ee, chosen.apcorr
    return {
        "ee": ee,
        "radius": radius * _PIXEL,
        "skyin": inner * _PIXEL,
        "skyout": outer * _PIXEL,
        "apcorr": apcorr,
    }


def _measured(seen, found, expected, exposure):
    """Columns of the measurement, NaN where there is none."""
    nothing = float("nan")
    get = (lambda name: getattr(found, name)) if found else (lambda _: nothing)
    ra, dec = seen.wcs(found.x, found.y, with_bounding_box=False) if found else (nothing, nothing)
    ramp = (exposure.ngroups or nothing) * (exposure.group_time or nothing)
    return {
        "x": get("x") * _PIXEL,
        "y": get("y") * _PIXEL,
        "ra": float(ra) * u.deg,
        "dec": float(dec) * u.deg,
        "x_offset": (get("x") - (expected[0] if expected else nothing)) * _PIXEL,
        "y_offset": (get("y") - (expected[1] if expected else nothing)) * _PIXEL,
        "rate": get("light") * _RATE,
        "rate_error": get("light_error") * _RATE,
        "aperture_sum": get("total") * _RATE,
        "area": get("area") * _PIXEL**2,
        "background": get("background") * _RATE,
        "background_error": get("background_error") * _RATE,
        "background_scatter": get("background_scatter") * _RATE,
        "peak": get("peak") * _RATE,
        "well_depth": get("peak") * ramp * u.DN,
        "interpolated": found.interpolated if found else 0,
    }
