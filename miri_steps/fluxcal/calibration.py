"""From the photometry of standard stars and the fluxes of their models to the calibration of each filter."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from astropy import units as u
from astropy.table import QTable

from miri_steps.fluxcal import config, factors, monitoring, observations, time_loss
from miri_steps.fluxcal.factors import Average
from miri_steps.fluxcal.time_loss import Fit, TimeLoss

__all__ = ["FilterCalibration", "calibrate"]

_FACTOR = u.MJy / u.sr / (u.DN / u.s)
# Stars tell the loss of a filter if the sensitivity at the dates of their observations is known to this.
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
        At `time_loss.T0` in the reference subarray, and its standard deviation [(MJy/sr) / (DN/s)].
    loss : TimeLoss
        How its sensitivity falls.
    fit : Fit or None
        What that is from; None where it was given or interpolated.
    average : Average
        Over all observations.
    by_type : dict
        Averages of each type of star.
    observations : QTable
        Rows of `observations.usable`, with ``flux`` of the model, ``sensitivity``, and ``factor``,
        ``factor_error``, ``kept`` and ``weight``.
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
    transmission_errors: Mapping[str, float] | None = None,
    losses: Mapping[str, TimeLoss] | None = None,
    repeatability: float = 0.003,
    legacy: bool = False,
) -> dict[str, FilterCalibration]:
    """
    Calibrate all filters in which standard stars were observed.

    The loss of sensitivity of a filter is that of stars that were seen again (see `monitoring.fit`); in
    coronagraphic filters, which are seldom used for that, it is interpolated in pivot wavelength between
    those of imaging filters. So is that of an imaging filter whose stars were not seen often enough, or tell
    it with a larger error than the interpolation has. A loss needs no model of a star: all that were measured
    count. Where errors of the loss are large, as in a filter that was last monitored long ago, so is that of
    the factor.

    Rates are put to the sensitivity at `time_loss.T0` and the transmission of the reference subarray,
    factors follow from the fluxes of models, and each star has one vote in their average. The error of the
    factor is that of this average, of the loss, and of the transmissions, those of each subarray in
    proportion to the weight of observations in it.

    Parameters
    ----------
    photometry : QTable
        Rows of `StarPhotometryStep`. Those of stars that were not measured are left out; so are, with a
        warning, those whose rate is not above 0 or whose date is not known.
    fluxes : QTable
        Column ``name``, and one for each filter [Jy]; see `band_fluxes.tabulate`. Stars that `config.star`
        does not know go by the names that they have in both tables. Stars without a finite flux above 0 are
        left out of the factor, and filters without any such star are left out, with a warning.
    transmissions : mapping, optional
        Rates in subarrays in units of that in the reference; `config.transmissions` if not given. They can be
        solved for with `subarrays.solve`.
    transmission_errors : mapping, optional
        Their standard deviations; 0 where not given.
    losses : mapping, optional
        Loss of filters where it is known, by their names.
    repeatability : float, optional
        Relative error of a rate beside its noise, from the flat field and the place of the star on a pixel.
        Without it the few brightest observations decide alone.
    legacy : bool, optional
        Do what the published procedure does, to compare with it: `time_loss.fit_sum` for the loss, with 200
        days for tau where it is not identifiable, and `factors.average_published`. Errors are those of the
        average alone.

    Returns
    -------
    dict
        `FilterCalibration` by the name of the filter, in order of `config.bands`.

    Raises
    ------
    ValueError
        If a column, its unit or a value is missing or makes no sense, a filter or subarray is not known, no
        row is left, fluxes of a star differ, or a loss is neither given nor identifiable from the
        observations.
    """
    table = observations.usable(photometry, transmissions, repeatability=repeatability)
    errors = config.by_subarray("transmission_errors", transmission_errors or {})
    _check_errors(errors)
    rows = {str(band): table[table["filter"] == band] for band in np.unique(table["filter"])}
    if set(rows) - set(config.bands()):
        raise ValueError(f"filters must be of {', '.join(config.bands())}, got {', '.join(rows)}")
    rows = {band: rows[band] for band in config.bands() if band in rows}
    given = config.by_band("losses", losses or {})
    fits = _fit_losses(rows, given, legacy)
    known = {band: fit.loss for band, fit in fits.items()} | given
    calibrations = {}
    for band, group in _with_models(rows, fluxes).items():
        loss = _loss_of(band, known)
        group = _with_factors(group, loss)
        calibrations[band] = _calibrate(group, band, loss, fits.get(band), errors, legacy)
    return calibrations


def _check_errors(errors):
    for name, error in errors.items():
        if not (np.isfinite(error) and error >= 0):
            raise ValueError(
                f"the error of the transmission of {name} must be finite and 0 or more, got {error}"
            )


def _fit_losses(rows, given, legacy):
    """Fit losses that are not given, and leave those out that are better known from other filters."""
    fits = {band: _fit_loss(group, band, legacy) for band, group in rows.items() if band not in given}
    fits = {band: fit for band, fit in fits.items() if fit}
    # The worst first: what is left for those that follow is better than they are.
    for band in sorted(fits, key=lambda band: _largest_error(fits[band].loss, rows[band]), reverse=True):
        others = given | {other: fit.loss for other, fit in fits.items() if other != band}
        try:
            between = _loss_of(band, others)
        except ValueError:
            continue
        if _largest_error(between, rows[band]) < _largest_error(fits[band].loss, rows[band]):
            del fits[band]
    return fits


def _largest_error(loss, table):
    return loss.sensitivity_error(table["timemid"].to_value(u.day)).max()


def _fit_loss(table, band, legacy):
    """Fit the loss of a filter to the stars that were seen again; None where it is not identifiable."""
    again = monitoring.seen_again(table["name"], table["timemid"].to_value(u.day))
    if config.band(band).is_coronagraphic or not again.any():
        return None
    table = table[again]
    if legacy:
        return _fit_published(table)
    fit = monitoring.fit(table)
    if fit is None:
        return None
    return fit if _largest_error(fit.loss, table) < _KNOWN else None


def _fit_published(table):
    """Fit the sum, with a given tau where none is identifiable; None where nothing is."""
    for tau in (None, time_loss.TAU[0]):
        try:
            mjd = table["timemid"].to_value(u.day)
            return time_loss.fit_sum(mjd, table["light"].value, star=table["name"], tau=tau)
        except ValueError:
            continue
    return None


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
            f"the loss of {band} must be given: its stars were not observed often enough, and neither were "
            "those of filters on both sides of it"
        ) from error


def _with_factors(table, loss):
    """Add sensitivity and calibration factor to each observation."""
    table = table.copy()
    table["sensitivity"] = loss.sensitivity(table["timemid"].to_value(u.day))
    rate = table["reference_rate"].value / table["sensitivity"]
    area = table["pixel_area"].to_value(u.sr)
    table["factor"] = factors.factor(table["flux"].value, rate, table["apcorr"], area) * _FACTOR
    table["factor_error"] = table["factor"] * table["relative_error"]
    return table


def _calibrate(table, band, loss, fit, errors, legacy):
    """Average the factors of a filter."""
    values, star, sigma = table["factor"].value, table["name"], config.band(band).sigma
    method = factors.average_published if legacy else factors.average
    average = method(values, star, sigma=sigma)
    table["kept"], table["weight"] = average.kept, average.weight
    relative = 0.0 if legacy else np.hypot(_loss_error(table, loss), _transmission_error(table, errors))
    return FilterCalibration(
        band=band,
        factor=average.value,
        error=float(np.hypot(average.error, average.value * relative)),
        loss=loss,
        fit=fit,
        average=average,
        by_type=factors.average_by_type(values, star, table["type"], sigma=sigma, average=method),
        observations=table,
    )


def _loss_error(table, loss):
    """Relative error of the factor from that of the sensitivity, which all observations share."""
    error = loss.sensitivity_error(table["timemid"].to_value(u.day)) / table["sensitivity"]
    return float(np.average(error, weights=table["weight"]))


def _transmission_error(table, errors):
    """Relative error of the factor from those of transmissions, each shared by a subarray's observations."""
    names, number = np.unique([config.subarray(str(name)) for name in table["subarray"]], return_inverse=True)
    error = np.array([errors.get(str(name), 0.0) for name in names])[number] / table["transmission"]
    part = table["weight"] * table["factor"].value
    return float(np.linalg.norm(np.bincount(number, part * error)) / part.sum())


def _with_models(rows, fluxes):
    """Add the fluxes of models, and leave out stars and filters without any."""
    if "name" not in fluxes.colnames:
        raise ValueError(f"fluxes must have a column name, got {', '.join(fluxes.colnames) or 'none'}")
    found = {}
    for band, table in rows.items():
        known = _model_fluxes(fluxes, band)
        here = np.array([str(star) in known for star in table["name"]], bool)
        for star in np.unique(table["name"][~here]):
            words = f"no model flux is known of {star} in {band}: it is left out of the factor"
            warnings.warn(words, stacklevel=3)
        if here.any():
            found[band] = table[here]
            found[band]["flux"] = [known[str(star)] for star in found[band]["name"]] * u.Jy
        else:
            warnings.warn(f"{band} is left out: no model flux is known of its stars", stacklevel=3)
    if not found:
        raise ValueError(f"fluxes must hold a star observed in {', '.join(rows)}, but they hold none")
    return found


def _model_fluxes(fluxes, band):
    """List the fluxes of stars in a filter [Jy], those that are finite and above 0."""
    if band not in fluxes.colnames:
        return {}
    given = getattr(fluxes[band], "unit", None)
    if given is None or not given.is_equivalent(u.Jy):
        raise ValueError(f"fluxes must have the column {band} in Jy, got {given or 'no unit'}")
    column = fluxes[band].filled(np.nan) if hasattr(fluxes[band], "filled") else fluxes[band]
    known = {}
    for name, flux in zip(fluxes["name"], u.Quantity(column).to_value(u.Jy), strict=True):
        star = config.star(str(name)).name
        if 0 < flux < np.inf and known.setdefault(star, flux) != flux:
            raise ValueError(f"fluxes must hold one of {star} in {band}, got {known[star]} and {flux} Jy")
    return known
