"""The correction of a pointing inside a gWCS: read it, take it out, put another in."""

import logging
import warnings
from dataclasses import asdict, dataclass

import gwcs
import numpy as np
from astropy.modeling import Model
from jwst.assign_wcs.util import update_fits_wcsinfo, update_s_region_imaging
from scipy.linalg import LinAlgWarning
from stdatamodels.jwst.datamodels import JwstDataModel
from tweakwcs.correctors import JWSTWCSCorrector

from miri_steps.algorithms import tile_shifts

__all__ = [
    "Correction",
    "correct",
    "has_telescope_frame",
    "read",
    "read_record",
    "uncorrected",
    "write_record",
]

log = logging.getLogger(f"stpipe.{__name__}")

_ARCSEC = np.pi / 180 / 3600
# tweakreg puts its correction behind the telescope's frame.
_CORRECTED = "v2v3corr"
# How well the polynomials in the header must follow the gWCS [pixel]: the stock step's own limits.
_SIP_ERROR = 0.01


@dataclass(frozen=True)
class Correction:
    """
    The correction of a pointing, to be added to positions on the sky.

    Parameters
    ----------
    ra, dec : float
        Where it holds [deg]; NaN if it is to hold as it is wherever it is used.
    east, north : float
        Shift to the East (in cos(dec)) and to the North [arcsec].
    rotation : float
        Rotation from East to North about `ra`, `dec` [rad].
    """

    ra: float
    dec: float
    east: float
    north: float
    rotation: float = 0.0

    @property
    def shift(self) -> tuple[float, float]:
        """East and North [arcsec]."""
        return self.east, self.north

    @property
    def position(self) -> tuple[float, float]:
        """Right ascension and declination [deg]."""
        return self.ra, self.dec

    def at(self, ra: float, dec: float) -> "Correction":
        """
        Carry the correction to another place on the sky.

        Parameters
        ----------
        ra, dec : float
            The place [deg].

        Returns
        -------
        Correction
            What the same turn of the sphere does there.
        """
        if not np.isfinite(self.position).all():
            return Correction(ra, dec, self.east, self.north, self.rotation)
        shift, rotation = tile_shifts.carry(self.shift, self.rotation, self.position, (ra, dec))
        return Correction(ra, dec, float(shift[0]), float(shift[1]), float(rotation))

    def is_close(self, other: "Correction | None") -> bool:
        """Tell whether it moves no pixel of the imager 1 microarcsec away from where the other does."""
        if other is None:
            return False
        there = other.at(self.ra, self.dec)
        return bool(
            np.allclose(self.shift, there.shift, rtol=0, atol=1e-6)
            and abs(self.rotation - there.rotation) < 1e-8
        )


def has_telescope_frame(wcs: gwcs.WCS | None) -> bool:
    """
    Tell whether a WCS goes through the telescope's frame, where corrections belong.

    Parameters
    ----------
    wcs : gwcs.WCS or None
        WCS of an exposure.

    Returns
    -------
    bool
        False for a mosaic, a WCS built by hand, or none.
    """
    return isinstance(wcs, gwcs.WCS) and "v2v3" in wcs.available_frames[1:-1]


def read(wcs: gwcs.WCS) -> Correction | None:
    """
    Read the correction that tweakreg, or this package, left in a gWCS.

    Parameters
    ----------
    wcs : gwcs.WCS
        WCS of an exposure.

    Returns
    -------
    Correction or None
        At the position of the reference point; None where there is none.

    Notes
    -----
    The affine transformation ``tp_affine`` acts in the tangent plane at the reference point, with its axes
    to the East and North. Changes of scale and skew in it are not read.
    """
    if _CORRECTED not in wcs.available_frames:
        return None
    transform = _transform_to_corrected(wcs)
    affine = transform["tp_affine"]
    (a, b), (c, d) = affine.matrix.value
    east, north = affine.translation.value / _ARCSEC
    v2, v3, _ = transform["det_to_optic_axis"].angles.value
    ra, dec = wcs.get_transform(_CORRECTED, "world")(v2 * 3600, -v3 * 3600)
    return Correction(float(ra), float(dec), float(east), float(north), float(np.arctan2(c - b, a + d)))


def uncorrected(wcs: gwcs.WCS) -> gwcs.WCS:
    """
    Take the correction out of a gWCS.

    Parameters
    ----------
    wcs : gwcs.WCS
        WCS of an exposure.

    Returns
    -------
    gwcs.WCS
        As ``assign_wcs`` made it; the same object where there is nothing to take out.
    """
    if _CORRECTED not in wcs.available_frames:
        return wcs
    frames = wcs.available_frames
    index = frames.index(_CORRECTED)
    steps = [(step.frame, step.transform) for step in wcs.pipeline]
    (before, _), (_, onwards) = steps[index - 1 : index + 1]
    return _like(gwcs.WCS([*steps[: index - 1], (before, onwards), *steps[index + 1 :]]), wcs)


def correct(model: JwstDataModel, correction: Correction | None) -> None:
    """
    Give an exposure a correction instead of any it has, in all that says where it looks.

    Parameters
    ----------
    model : JwstDataModel
        Changed in place: gWCS, S_REGION, and the FITS keywords that approximate the gWCS.
    correction : Correction or None
        At any place near the exposure; None takes the old one away.
    """
    wcs = uncorrected(model.meta.wcs)
    if correction is not None:
        wcs = _like(_corrected(wcs, model.meta.wcsinfo.instance, correction), wcs)
    model.meta.wcs = wcs
    update_s_region_imaging(model)
    _update_header(model)


def write_record(model: JwstDataModel, correction: Correction) -> None:
    """
    Store in an exposure which correction it was given.

    Parameters
    ----------
    model : JwstDataModel
        Changed in place.
    correction : Correction
        At any place near the exposure.
    """
    model.meta.tile_astrometry = asdict(correction)


def read_record(model: JwstDataModel) -> Correction | None:
    """
    Read which correction an exposure was given, if it still has it.

    Parameters
    ----------
    model : JwstDataModel
        The exposure.

    Returns
    -------
    Correction or None
        None where there is none, or where its gWCS was changed since, by tweakreg for instance.
    """
    record = getattr(model.meta, "tile_astrometry", None)
    found = read(model.meta.wcs)
    if record is None or found is None:
        return None
    stored = Correction(**{key: float(value) for key, value in record.instance.items()})
    return stored if found.is_close(stored) else None


def _corrected(wcs, wcsinfo, correction):
    corrector = JWSTWCSCorrector(wcs, wcsinfo)
    frame = "v2v3vacorr" if "v2v3vacorr" in wcs.available_frames else "v2v3"
    ra, dec = wcs.get_transform(frame, "world")(wcsinfo["v2_ref"], wcsinfo["v3_ref"])
    here = correction.at(float(ra), float(dec))
    c, s = np.cos(here.rotation), np.sin(here.rotation)
    corrector.set_correction(matrix=[[c, -s], [s, c]], shift=here.shift)
    return corrector.wcs


def _transform_to_corrected(wcs) -> Model:
    return wcs.pipeline[wcs.available_frames.index(_CORRECTED) - 1].transform


def _like(fresh, wcs):
    """Hand on what a gWCS says of itself."""
    fresh.name = wcs.name
    fresh.array_shape = wcs.array_shape
    return fresh


def _update_header(model):
    """Approximate the gWCS by FITS keywords, as tweakreg does."""
    try:
        with warnings.catch_warnings():
            # Over the full frame the inverse polynomials stay a little above the limit, as in stock products.
            warnings.simplefilter("ignore", LinAlgWarning)
            update_fits_wcsinfo(model, max_pix_error=_SIP_ERROR, max_inv_pix_error=_SIP_ERROR)
    except (ValueError, RuntimeError) as error:
        log.warning(
            "FITS keywords of %s still describe its old WCS, for its gWCS cannot be approximated: %s",
            *(model.meta.filename, error),
        )
