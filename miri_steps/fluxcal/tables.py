"""Tables of a calibration, and the files they are kept in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.table import Column, QTable, Table, vstack

from miri_steps import whole_files
from miri_steps.fluxcal import config
from miri_steps.fluxcal.calibration import FilterCalibration
from miri_steps.fluxcal.factors import Average

__all__ = ["by_type", "factors", "losses", "observations", "write"]

_FACTOR = u.MJy / u.sr / (u.DN / u.s)
# Digits in LaTeX of what has no error of its own: wavelengths and parts [percent], and dates and positions.
_FORMATS = {
    **dict.fromkeys(("pivot", "timemid", "transmission", "radius", "skyin", "skyout", "x", "y"), ".3f"),
    **dict.fromkeys(("scatter", "difference"), ".2f"),
    **dict.fromkeys(("ra", "dec"), ".6f"),
}
_FORMAT = ".4g"
# Digits of an error that are significant.
_SIGNIFICANT = 2
_ESCAPES = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


def factors(calibrations: Mapping[str, FilterCalibration]) -> QTable:
    """
    List the calibration factor of each filter.

    Parameters
    ----------
    calibrations : mapping
        `FilterCalibration` by the name of the filter.

    Returns
    -------
    QTable
        Row by filter: ``filter``, ``pivot`` [micron], ``factor`` and ``factor_error``
        [(MJy/sr) / (DN/s)], ``scatter`` of single observations [percent], ``stars`` that it rests on,
        ``observations`` of them, and how many of these were ``clipped``.

    Raises
    ------
    ValueError
        If there is no filter.
    """
    _check(calibrations)
    rows = [
        {
            "filter": band,
            "pivot": config.band(band).pivot * u.um,
            "factor": one.factor * _FACTOR,
            "factor_error": one.error * _FACTOR,
            **_counts(one.average, one.observations["name"]),
        }
        for band, one in calibrations.items()
    ]
    return _describe(
        QTable(rows),
        pivot="pivot wavelength",
        factor="calibration factor at MJD 59720, in the reference subarray",
        factor_error="standard deviation of the factor",
    )


def losses(calibrations: Mapping[str, FilterCalibration]) -> QTable:
    """
    List how the sensitivity of each filter falls.

    Parameters
    ----------
    calibrations : mapping
        `FilterCalibration` by the name of the filter.

    Returns
    -------
    QTable
        Row by filter: ``filter``, ``pivot`` [micron], ``loss`` [percent per 365 days], ``amplitude``, ``tau``
        [d], each followed by its error, 0 where it was given and NaN where it is not known (as in the
        published procedure); ``fitted``, False where they were given or interpolated. In the metadata
        ``covariance`` of loss [1/yr], amplitude and tau [d], by filter.

    Raises
    ------
    ValueError
        If there is no filter.
    """
    _check(calibrations)
    rows = []
    for band, one in calibrations.items():
        loss, amplitude, tau = (float(error) for error in one.loss.errors)
        rows.append(
            {
                "filter": band,
                "pivot": config.band(band).pivot * u.um,
                "loss": 100 * one.loss.loss * u.percent / u.yr,
                "loss_error": 100 * loss * u.percent / u.yr,
                "amplitude": one.loss.amplitude,
                "amplitude_error": amplitude,
                "tau": one.loss.tau * u.day,
                "tau_error": tau * u.day,
                "fitted": one.fit is not None,
            }
        )
    covariance = {band: one.loss.covariance.tolist() for band, one in calibrations.items()}
    return _describe(
        QTable(rows, meta={"covariance": covariance}),
        pivot="pivot wavelength",
        loss="linear loss of sensitivity, in a year of 365 days",
        amplitude="part of the sensitivity at MJD 59720 that is lost exponentially",
        tau="time in which that part falls by a factor e",
        fitted="whether they were fitted to stars that were seen again in this filter",
    )


def by_type(calibrations: Mapping[str, FilterCalibration]) -> QTable:
    """
    List the calibration factors that the types of stars ask for.

    Parameters
    ----------
    calibrations : mapping
        `FilterCalibration` by the name of the filter.

    Returns
    -------
    QTable
        Row by filter and type: as `factors`, and the ``difference`` from the factor of all stars [percent].

    Raises
    ------
    ValueError
        If there is no filter.
    """
    _check(calibrations)
    rows = [
        {
            "filter": band,
            "type": kind,
            "factor": average.value * _FACTOR,
            "factor_error": average.error * _FACTOR,
            "difference": 100 * (average.value / one.factor - 1) * u.percent,
            **_counts(average, one.observations["name"][np.asarray(one.observations["type"]) == kind]),
        }
        for band, one in calibrations.items()
        for kind, average in one.by_type.items()
    ]
    return _describe(
        QTable(rows),
        factor="calibration factor of stars of this type",
        factor_error="standard deviation of the factor",
        difference="from the factor of all stars of the filter",
    )


def observations(calibrations: Mapping[str, FilterCalibration]) -> QTable:
    """
    Stack all observations, with the factors that they ask for and their weights.

    Parameters
    ----------
    calibrations : mapping
        `FilterCalibration` by the name of the filter.

    Returns
    -------
    QTable
        The rows of `FilterCalibration.observations`, filter by filter.

    Raises
    ------
    ValueError
        If there is no filter.
    """
    _check(calibrations)
    return vstack([one.observations for one in calibrations.values()], metadata_conflicts="silent")


def write(table: Table, path: str | Path, *, overwrite: bool = False) -> Path:
    """
    Write a table, whole or not at all.

    In LaTeX a value that has an error beside it (``tau`` and ``tau_error``) gets the digits that the error
    leaves; ECSV holds all digits.

    Parameters
    ----------
    table : Table
        What to write.
    path : str or Path
        File, whose ending says how: ``.ecsv`` or ``.tex``.
    overwrite : bool, optional
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If it has another ending.
    FileExistsError
        If the file exists.
    """
    path = Path(path)
    fill = {".ecsv": _write_ecsv, ".tex": _write_latex}.get(path.suffix)
    if fill is None:
        raise ValueError(f"the name of a table must end in .ecsv or .tex, got {path}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; overwrite must be True to replace it")
    whole_files.replace(path, lambda part: fill(table, part))
    return path


def _check(calibrations):
    if not calibrations:
        raise ValueError("there must be at least one filter that was calibrated, got none")


def _counts(average: Average, star: Iterable[str]) -> dict:
    return {
        "scatter": 100 * average.scatter / average.value * u.percent,
        "stars": len(set(np.asarray(star)[average.kept])),
        "observations": len(average.kept),
        "clipped": int((~average.kept).sum()),
    }


def _describe(table, **descriptions):
    known = {
        "scatter": "weighted standard deviation of single observations",
        "stars": "stars with observations that were not clipped",
        "clipped": "observations that were left out",
    }
    for name, text in (known | descriptions).items():
        if name in table.colnames:
            table[name].info.description = text
    return table


def _write_ecsv(table, path):
    table.write(path, format="ascii.ecsv")


def _write_latex(table, path):
    words = Table()
    for name in table.colnames:
        words[name.replace("_", " ")] = Column(_in_words(table, name), unit=table[name].unit)
    words.write(path, format="ascii.latex")


def _in_words(table, name):
    """Write the values of a column, those with errors to the digits that these leave."""
    values = _plain(table[name])
    if values.dtype.kind != "f":
        return [str(value).translate(_ESCAPES) for value in values]
    error = name if name.endswith("_error") else f"{name}_error"
    if error not in table.colnames:
        return [_number(value, _FORMATS.get(name, _FORMAT)) for value in values]
    return [
        _number(value, _digits(spread)) for value, spread in zip(values, _plain(table[error]), strict=True)
    ]


def _plain(column):
    return np.asarray(getattr(column, "value", column))


def _digits(error):
    if not (np.isfinite(error) and error > 0):
        return _FORMAT
    return f".{max(0, _SIGNIFICANT - 1 - int(np.floor(np.log10(error))))}f"


def _number(value, form):
    if not np.isfinite(value):
        return r"$\cdots$"
    text = f"{value:{form}}"
    if "e" in text:
        mantissa, _, power = text.partition("e")
        return f"{value:.0f}" if value >= 1 else rf"${mantissa} \times 10^{{{int(power)}}}$"
    return f"${text}$" if text.startswith("-") else text
