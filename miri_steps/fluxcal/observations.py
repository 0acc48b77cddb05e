"""Rows of photometry: which of them can be used, and what they are on one scale."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
from astropy import units as u
from astropy.table import QTable

from miri_steps.fluxcal import config

__all__ = ["usable"]

_RATE = u.DN / u.s
_UNITS = {"timemid": u.day, "rate": _RATE, "rate_error": _RATE, "pixel_area": u.sr}
_COLUMNS = "name", "type", "filter", "subarray", "timemid", "rate", "rate_error", "apcorr", "pixel_area"


def usable(
    photometry: QTable, transmissions: Mapping[str, float] | None = None, *, repeatability: float = 0.003
) -> QTable:
    """
    Take the rows that were measured, and put them on one scale.

    Rows without a rate are left out; so are, with a warning, those whose rate is not above 0, and those
    without a date.

    Parameters
    ----------
    photometry : QTable
        Rows of `StarPhotometryStep`; a blank cell is a value that is missing.
    transmissions : mapping, optional
        Rates in subarrays in units of that in the reference; `config.transmissions` if not given.
    repeatability : float, optional
        Relative error of a rate beside its noise.

    Returns
    -------
    QTable
        A copy, with the names of `config.star`, and ``transmission``; ``reference_rate``, the rate in the
        reference subarray [DN/s]; ``light``, the same as surface brightness times solid angle, whatever the
        aperture and the pixels [DN sr / s]; and ``relative_error`` of both.

    Raises
    ------
    ValueError
        If a column, its unit or a value is missing or makes no sense, or no row is left.
    """
    if not (np.isfinite(repeatability) and repeatability >= 0):
        raise ValueError(f"repeatability must be finite and 0 or more, got {repeatability}")
    table = _measured(_with_units(photometry))
    _check_values(table)
    known = config.transmissions() if transmissions is None else transmissions
    known = config.by_subarray("transmissions", known)
    table["name"] = [config.star(str(name)).name for name in table["name"]]
    table["transmission"] = [_transmission(str(subarray), known) for subarray in table["subarray"]]
    table["reference_rate"] = table["rate"].to(_RATE) / table["transmission"]
    table["light"] = table["reference_rate"] * table["apcorr"] * table["pixel_area"].to(u.sr)
    noise = (table["rate_error"] / table["rate"]).to_value(u.one)
    table["relative_error"] = np.hypot(noise, repeatability)
    _check(table, "relative_error", "above 0, from rate_error or repeatability", table["relative_error"] > 0)
    return table


def _with_units(photometry):
    missing = [name for name in _COLUMNS if name not in photometry.colnames]
    if missing:
        raise ValueError(
            f"photometry must have the columns {', '.join(missing)}, got {', '.join(photometry.colnames)}"
        )
    for name, unit in _UNITS.items():
        given = getattr(photometry[name], "unit", None)
        if given is None or not given.is_equivalent(unit):
            raise ValueError(f"photometry must have the column {name} in {unit}, got {given or 'no unit'}")
    table = QTable(photometry)
    for name in (*_UNITS, "apcorr"):
        if hasattr(table[name], "filled"):
            table[name] = table[name].filled(np.nan)
    return table


def _measured(table):
    table = table[np.isfinite(table["rate"].value)]
    if not len(table):
        raise ValueError("photometry must hold at least one star that was measured, got none")
    positive, dated = table["rate"].value > 0, np.isfinite(table["timemid"].value)
    for row in np.flatnonzero(~(positive & dated)):
        words = "its date is not known"
        if not positive[row]:
            words = f"its rate must be above 0, got {table['rate'][row]:.4g}"
        warnings.warn(f"{_origin(table, row)} is left out: {words}", stacklevel=3)
    if not (positive & dated).any():
        raise ValueError("there must be a star with a date and a rate above 0, got none")
    return table[positive & dated]


def _check_values(table):
    for name, rule in (("timemid", "above 0"), ("apcorr", "above 0"), ("pixel_area", "above 0")):
        _check(table, name, rule, table[name].value > 0)
    _check(table, "rate_error", "0 or more", table["rate_error"].value >= 0)


def _check(table, name, rule, good):
    bad = np.flatnonzero(~(good & np.isfinite(table[name].value)))
    if len(bad):
        value = table[name][bad[0]]
        raise ValueError(f"{name} must be finite and {rule}, got {value} of {_origin(table, bad[0])}")


def _origin(table, row):
    """Name star, filter and file of a row."""
    file = f" ({table['file'][row]})" if "file" in table.colnames else ""
    return f"{table['name'][row]} in {table['filter'][row]}{file}"


def _transmission(subarray, known):
    """Look up the rate in a subarray; those of coronagraphs were not compared with others."""
    name = config.subarray(subarray)
    if name not in known and not name.startswith(("MASK", "SLITLESS")):
        raise ValueError(f"subarray must be one of {', '.join(known)}, or of a coronagraph, got {subarray}")
    found = known.get(name, 1.0)
    if not (np.isfinite(found) and found > 0):
        raise ValueError(f"the transmission of {name} must be finite and above 0, got {found}")
    return found
