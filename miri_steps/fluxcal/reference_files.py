"""Reference files of the pipeline: calibration factors and aperture corrections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from astropy.table import QTable
from astropy.time import Time
from stdatamodels.jwst.datamodels import JwstDataModel, MirImgApcorrModel, MirImgPhotomModel

from miri_steps import __version__, whole_files
from miri_steps.fluxcal import config
from miri_steps.fluxcal.calibration import FilterCalibration
from miri_steps.fluxcal.encircled import Corrections
from miri_steps.fluxcal.time_loss import T0

__all__ = ["About", "apcorr", "apcorr_errors", "photom", "save"]

_ARCSEC2_PER_SR = (np.degrees(1) * 3600) ** 2
# Of the imager and its coronagraphs, and the forms of target acquisition.
_EXPOSURES = "MIR_IMAGE|MIR_4QPM|MIR_LYOT|MIR_TACQ|MIR_TACONFIRM|"
# Subarrays that are read out like others, in in-pixel mode.
_COPIES = {"SUB128": ("SUB128_IP",), "SUB64": ("SUB64_IP",)}
# The tables of the format have no columns for these.
_ERRORS = (
    "Standard deviations of radii and corrections over data sets are in the table of the same name with "
    "_errors.ecsv, a row for each filter and eefraction."
)


@dataclass(frozen=True)
class About:
    """
    The provenance of reference files.

    Parameters
    ----------
    author : str
        Who made them.
    first, last : str
        Days of the first and the last observation, as 2022-05-25.
    useafter : str
        From when on they are valid.
    description : str
        One line.
    history : tuple of str
        How they were made, line by line; the version of miri_steps is added.
    """

    author: str
    first: str
    last: str
    useafter: str = "2022-04-01T00:00:00"
    description: str = "Made by miri_steps.fluxcal"
    history: tuple[str, ...] = ()


def photom(
    calibrations: Mapping[str, FilterCalibration],
    pixel_area: float,
    about: About,
    *,
    transmissions: Mapping[str, float] | None = None,
) -> MirImgPhotomModel:
    """
    Make a photom reference file.

    The pipeline divides its factor by S(t), the product of both time terms, so that the row of a subarray
    with the transmission f holds the factor at `T0` over f.

    Parameters
    ----------
    calibrations : mapping
        `FilterCalibration` by the name of the filter, or anything else with ``factor``, ``error`` and
        ``loss``.
    pixel_area : float
        Nominal solid angle of a pixel [sr].
    about : About
        Its provenance.
    transmissions : mapping, optional
        Rates in subarrays in units of that in the reference; `config.transmissions` if not given. Subarrays
        that are not listed, as those of coronagraphs, have 1.

    Returns
    -------
    MirImgPhotomModel
        With PHOTOM, TIMECOEFF_LINEAR and TIMECOEFF_EXPONENTIAL, row by row the same.

    Raises
    ------
    ValueError
        If a filter is not known, a number is not finite and positive, or there is none.
    """
    known = config.transmissions() if transmissions is None else transmissions
    given = config.by_subarray("transmissions", known)
    _check_calibrations(calibrations, pixel_area)
    rows = [
        (band, subarray, calibration, given.get(config.subarray(subarray), 1.0))
        for band, calibration in calibrations.items()
        for subarray in _subarrays(config.band(band))
    ]
    model = MirImgPhotomModel(
        phot_table=_table(
            MirImgPhotomModel, "phot_table", [(b, s, c.factor / f, c.error / f) for b, s, c, f in rows]
        ),
        timecoeff_linear=_table(
            MirImgPhotomModel, "timecoeff_linear", [(b, s, T0, c.loss.loss) for b, s, c, _ in rows]
        ),
        timecoeff_exponential=_table(
            MirImgPhotomModel,
            "timecoeff_exponential",
            [(b, s, T0, c.loss.amplitude, c.loss.tau, 1 - c.loss.amplitude) for b, s, c, _ in rows],
        ),
    )
    model.meta.photometry.pixelarea_steradians = float(pixel_area)
    model.meta.photometry.pixelarea_arcsecsq = float(pixel_area * _ARCSEC2_PER_SR)
    return _with_provenance(model, "PHOTOM", about)


def apcorr(corrections: Mapping[str, Corrections], about: About) -> MirImgApcorrModel:
    """
    Make an aperture correction reference file.

    Parameters
    ----------
    corrections : mapping
        `Corrections` by the name of the filter.
    about : About
        Its provenance.

    Returns
    -------
    MirImgApcorrModel
        Seven rows for each filter and subarray; radii in native pixels.

    Raises
    ------
    ValueError
        If a filter is not known, or there is none.
    """
    _check_filters(corrections)
    rows = [
        (band, subarray, level, radius, correction, *found.sky)
        for band, found in corrections.items()
        for subarray in config.band(band).subarrays
        for level, radius, correction in zip(found.level, found.radius, found.apcorr, strict=True)
    ]
    model = MirImgApcorrModel(apcorr_table=_table(MirImgApcorrModel, "apcorr_table", rows))
    model.meta.instrument.channel = "N/A"
    model.add_history_entry(_ERRORS)
    return _with_provenance(model, "APCORR", about)


def apcorr_errors(corrections: Mapping[str, Corrections]) -> QTable:
    """
    Tabulate how well aperture corrections are known.

    Parameters
    ----------
    corrections : mapping
        `Corrections` by the name of the filter.

    Returns
    -------
    QTable
        Row by filter and level: ``filter``, ``eefraction``, ``radius``, ``apcorr``, ``skyin`` and ``skyout``
        with their standard deviations over data sets (``radius_scatter``, ...), and the number of these,
        ``data_sets``; radii in native pixels.

    Raises
    ------
    ValueError
        If a filter is not known, or there is none.
    """
    _check_filters(corrections)
    rows = [
        (band, level, *values, *found.sky, *found.sky_scatter, found.number)
        for band, found in corrections.items()
        for level, *values in zip(
            found.level, found.radius, found.radius_scatter, found.apcorr, found.apcorr_scatter, strict=True
        )
    ]
    names = "filter", "eefraction", "radius", "radius_scatter", "apcorr", "apcorr_scatter"
    names += "skyin", "skyout", "skyin_scatter", "skyout_scatter", "data_sets"
    table = QTable(rows=rows, names=names)
    for name in names:
        if name.startswith(("radius", "sky")):
            table[name].unit = "pix"
    return table


def save(model: JwstDataModel, path: str | Path, *, overwrite: bool = False) -> Path:
    """
    Write a reference file, whole or not at all.

    Parameters
    ----------
    model : MirImgPhotomModel or MirImgApcorrModel
        Its content.
    path : str or Path
        Where to; ends in ``.fits``.
    overwrite : bool, optional
        Whether a file there may be replaced.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    FileExistsError
        If there is one that must not be replaced.
    ValueError
        If the name does not end in ``.fits``.
    """
    path = Path(path)
    if path.suffix != ".fits":
        raise ValueError(f"the name of a reference file must end in .fits, got {path.name}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; overwrite must be True to replace it")
    # The model takes the name of a file from a string only: the temporary one must not stay in its header.
    model.meta.filename = path.name
    whole_files.replace(path, lambda part: model.to_fits(Path(part), overwrite=True))
    return path


def _subarrays(band):
    return [name for subarray in band.subarrays for name in (subarray, *_COPIES.get(subarray, ()))]


def _table(kind, name, rows):
    return np.array(rows, dtype=kind().get_dtype(name))


def _check_filters(given):
    if not given:
        raise ValueError("there must be at least one filter, got none")
    for name in given:
        config.band(name)


def _check_calibrations(calibrations, pixel_area):
    _check_filters(calibrations)
    if not (np.isfinite(pixel_area) and pixel_area > 0):
        raise ValueError(f"pixel_area must be finite and above 0, got {pixel_area}")
    for band, found in calibrations.items():
        numbers = found.factor, found.loss.tau
        if not (np.isfinite(numbers).all() and min(numbers) > 0):
            raise ValueError(f"factor and tau of {band} must be finite and above 0, got {numbers}")
        # The error of a single star is not known: NaN.
        if not np.isfinite([found.loss.loss, found.loss.amplitude]).all():
            raise ValueError(f"loss and amplitude of {band} must be finite")


def _with_provenance(model, kind, about):
    """Fill in what every reference file must have."""
    first, last = (date.fromisoformat(day).isoformat() for day in (about.first, about.last))
    model.meta.date = Time.now().isot
    model.meta.telescope = "JWST"
    model.meta.instrument.name = "MIRI"
    model.meta.instrument.detector = "MIRIMAGE"
    model.meta.exposure.type = "MIR_IMAGE"
    model.meta.exposure.p_exptype = _EXPOSURES
    model.meta.reftype = kind
    model.meta.author = about.author
    model.meta.pedigree = f"INFLIGHT {first} {last}"
    model.meta.useafter = about.useafter
    model.meta.description = about.description
    for entry in (*about.history, f"Made by miri_steps {__version__}."):
        model.add_history_entry(entry)
    return model
