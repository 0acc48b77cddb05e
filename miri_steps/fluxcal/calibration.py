"""From the photometry of standard stars and the fluxes of their models to the calibration of each filter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from astropy import units as u
from astropy.table import QTable

from miri_steps.fluxcal import config, factors, time_loss
from miri_steps.fluxcal.factors import Average
from miri_steps.fluxcal.time_loss import Fit, TimeLoss

__all__ = ["FilterCalibration", "calibrate"]

_RATE = u.DN / u.s
_FACTOR = u.MJy / u.sr / _RATE
# Each star that is seen again tells the loss; from so many epochs of such stars on it is fitted. Dithers,
# which lie closer together than this, are one epoch [d].
_LEAST_REPEATS, _EPOCH = 8, 10.0
# What is known of tau beforehand [d], and of its logarithm: where little is lost exponentially it cannot be
# told; Gordon et al. 2025.
_TAU = 200.0, 0.5
# The loss of a filter is known where the sensitivity at all dates is known to this.
_KNOWN = 0.03


@dataclass(frozen=True)
class FilterCalibration:
    """
    The calibration of a filter, and what it rests on.

    Parameters
    ----------
    band : str
        The filter.
    factor, error : float
        At `time_loss.T0` in the reference subarray [(MJy/sr) / (DN/s)].
    loss : TimeLoss
        How its sensitivity falls.
    fit : Fit or None
        Where that came from; None where it was given or interpolated.
    average : Average
        Over all observations.
    by_type : dict
        Averages of each type of star.
    observations : QTable
        Rows of the photometry that were used, with ``flux`` of the model, ``sensitivity``, ``transmission``,
        and ``factor``, ``factor_error``, ``kept`` and ``weight``.
    """

    band: str
    factor: float
    error: float
    loss: TimeLoss
    fit: Fit | None
    average: Average
    by_type: dict[str, Average]
    observations: QTable


def calibrate(
    photometry: QTable,
    fluxes: QTable,
    *,
    transmissions: Mapping[str, float] | None = None,
    losses: Mapping[str, TimeLoss] | None = None,
    repeatability: float = 0.003,
    legacy: bool = False,
) -> dict[str, FilterCalibration]:
    """
    Calibrate all filters in which standard stars were observed.

    The loss of sensitivity of a filter is that of stars that were seen again; in coronagraphic filters,
    which are seldom used for that, it is interpolated in pivot wavelength between those of imaging filters.
    Rates are put to the sensitivity at `time_loss.T0` and the transmission of the reference subarray,
    factors follow from the fluxes of models, and each star has one vote in their average.

    Parameters
    ----------
    photometry : QTable
        Rows of `StarPhotometryStep`.
    fluxes : QTable
        Column ``name``, and one for each filter [Jy]; see `band_fluxes.tabulate`.
    transmissions : mapping, optional
        Rates in subarrays in units of that in the reference; `config.transmissions` if not given.
    losses : mapping, optional
        Loss of filters where it is known.
    repeatability : float, optional
        Relative error of a rate beside its noise, from the flat field and the place of the star on a pixel.
        Without it the few brightest observations decide alone.
    legacy : bool, optional
        Fit the loss by a sum and without weights, as the published procedure does, to compare with it.

    Returns
    -------
    dict
        `FilterCalibration` by the name of the filter, in order of `config.bands`.

    Raises
    ------
    ValueError
        If a column or a flux is missing, or a loss is neither given nor told by the observations.
    """
    transmissions = config.transmissions() if transmissions is None else transmissions
    table = _usable(photometry, transmissions, repeatability)
    present = set(table["filter"].tolist())
    bands = [name for name in config.bands() if name in present]
    if len(bands) < len(present):
        raise ValueError(f"filters must be of {', '.join(config.bands())}, got {', '.join(sorted(present))}")
    fits = {band: _fit_loss(table[table["filter"] == band], band, losses or {}, legacy) for band in bands}
    known = {band: loss for band, (loss, _) in fits.items() if loss} | dict(losses or {})
    return {
        band: _calibrate(
            table[table["filter"] == band], fluxes, band, _loss_of(band, known), fits[band][1], legacy
        )
        for band in bands
    }


def _usable(photometry, transmissions, repeatability):
    """Take the rows that were measured, and put rates to the reference subarray."""
    needed = {"name", "type", "filter", "subarray", "timemid", "rate", "rate_error", "apcorr", "pixel_area"}
    missing = sorted(needed - set(photometry.colnames))
    if missing:
        raise ValueError(
            f"photometry must have the columns {', '.join(missing)}, got {', '.join(photometry.colnames)}"
        )
    table = photometry[np.isfinite(photometry["rate"].value)].copy()
    if not len(table):
        raise ValueError("photometry must hold at least one star that was measured, got none")
    table["transmission"] = [_transmission(str(subarray), transmissions) for subarray in table["subarray"]]
    table["name"] = [config.star(str(name)).name for name in table["name"]]
    table["reference_rate"] = table["rate"].to(_RATE) / table["transmission"]
    noise = (table["rate_error"] / table["rate"]).to_value(u.one)
    table["relative_error"] = np.hypot(noise, repeatability)
    return table


def _transmission(subarray, known):
    """Tell the rate in a subarray; those of coronagraphs were not compared with others."""
    name = subarray.upper().removesuffix("_IP")
    if name not in known and not name.startswith(("MASK", "SLITLESS")):
        raise ValueError(f"subarray must be one of {', '.join(known)}, or of a coronagraph, got {subarray}")
    return known.get(name, 1.0)


def _fit_loss(table, band, given, legacy):
    """Fit the loss of a filter to the stars that were seen again, if they tell it; loss and fit."""
    if band in given or config.band(band).is_coronagraphic:
        return given.get(band), None
    mjd = table["timemid"].to_value(u.day)
    again = _seen_again(table["name"], mjd)
    if not again.any():
        return None, None
    # Light, whatever the pixels and apertures it was measured in.
    light = (table["reference_rate"].value * table["apcorr"] * table["pixel_area"].to_value(u.sr))[again]
    mjd, star = mjd[again], table["name"][again]
    if legacy:
        return time_loss.fit_sum(mjd, light, star=star), None
    try:
        fit = time_loss.fit(mjd, light, light * table["relative_error"][again], star=star, around=_TAU)
    except ValueError:
        return None, None
    return (fit.loss, fit) if fit.loss.sensitivity_error(mjd).max() < _KNOWN else (None, None)


def _seen_again(names, mjd):
    """Find the observations of stars that were seen at several epochs, if there are enough of them."""
    again, epochs = np.zeros(len(mjd), bool), 0
    for name in np.unique(names):
        here = names == name
        number = 1 + int((np.diff(np.sort(mjd[here])) > _EPOCH).sum())
        if number > 1:
            again |= here
            epochs += number
    return again if epochs >= _LEAST_REPEATS else np.zeros(len(mjd), bool)


def _loss_of(band, known):
    """Look the loss of a filter up, or interpolate it."""
    if band in known:
        return known[band]
    monitored = {
        config.band(name).pivot: loss
        for name, loss in known.items()
        if not config.band(name).is_coronagraphic
    }
    try:
        return time_loss.interpolate(monitored, config.band(band).pivot)
    except ValueError as error:
        raise ValueError(
            f"the loss of {band} must be given: its stars were not observed often enough, and filters on "
            "both sides were not either"
        ) from error


def _calibrate(table, fluxes, band, loss, fit, legacy):
    sigma = config.band(band).sigma
    table = table.copy()
    table["flux"] = _model_fluxes(table["name"], fluxes, band)
    mjd = table["timemid"].to_value(u.day)
    table["sensitivity"] = loss.sensitivity(mjd)
    rate = table["reference_rate"].value / table["sensitivity"]
    area = table["pixel_area"].to_value(u.sr)
    values = factors.factor(table["flux"].to_value(u.Jy), rate, table["apcorr"], area)
    average = factors.average(values, table["name"], sigma=sigma)
    table["factor"] = values * _FACTOR
    table["factor_error"] = values * table["relative_error"] * _FACTOR
    table["kept"], table["weight"] = average.kept, average.weight
    from_loss = (
        0.0
        if legacy
        else float(np.average(loss.sensitivity_error(mjd) / loss.sensitivity(mjd), weights=average.weight))
    )
    return FilterCalibration(
        band=band,
        factor=average.value,
        error=float(np.hypot(average.error, average.value * from_loss)),
        loss=loss,
        fit=fit,
        average=average,
        by_type=factors.average_by_type(values, table["name"], table["type"], sigma=sigma),
        observations=table,
    )


def _model_fluxes(names, fluxes, band):
    if band not in fluxes.colnames:
        raise ValueError(f"fluxes must have a column {band}, got {', '.join(fluxes.colnames)}")
    known = {
        config.star(str(name)).name: flux for name, flux in zip(fluxes["name"], fluxes[band], strict=True)
    }
    stars = [config.star(str(name)).name for name in names]
    unknown = sorted(star for star in set(stars) if star not in known or not np.isfinite(known[star]))
    if unknown:
        raise ValueError(f"fluxes in {band} must hold all stars observed, but not {', '.join(unknown)}")
    return u.Quantity([known[star] for star in stars])
