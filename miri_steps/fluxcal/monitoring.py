"""Stars that are observed again and again, and the loss of sensitivity that they follow."""

from __future__ import annotations

import warnings

import numpy as np
from astropy import units as u
from astropy.table import QTable

from miri_steps.fluxcal import config, time_loss
from miri_steps.fluxcal.time_loss import Fit

__all__ = ["fit", "seen_again"]

# A loss is fitted to stars that were seen again if these have so many epochs or more. What is within this
# time of the first observation of an epoch, as dithers are, belongs to it [d].
_LEAST_REPEATS, _EPOCH = 8, 10.0
# An observation is wrong that deviates by so many standard deviations, stated or those of the scatter; if
# more than this part of the observations does, something else is wrong.
_WRONG, _MOST_WRONG = 5.0, 0.2
# Exponentials that together are close to any between them [d].
_TAUS = 100.0, 400.0
_ROUNDS = 40
# Standard deviation of normal values in units of their median absolute deviation.
_NORMAL = 1.4826


def seen_again(names: np.ndarray, mjd: np.ndarray) -> np.ndarray:
    """
    Find the observations of stars that were seen at several epochs.

    Parameters
    ----------
    names : ndarray
        Star of each observation, shape (n,).
    mjd : ndarray
        Its date, shape (n,) [MJD].

    Returns
    -------
    ndarray
        True for these, shape (n,); nowhere if there are fewer than eight epochs of such stars. An epoch lasts
        ten days from its first observation: a star that is observed every week has one every two weeks.
    """
    again, epochs = np.zeros(len(mjd), bool), 0
    for name in np.unique(names):
        here = names == name
        number = _count_epochs(mjd[here])
        if number > 1:
            again |= here
            epochs += number
    return again if epochs >= _LEAST_REPEATS else np.zeros(len(mjd), bool)


def _count_epochs(mjd):
    number, start = 0, -np.inf
    for day in np.sort(mjd):
        if day - start > _EPOCH:
            number, start = number + 1, day
    return number


def fit(table: QTable, *, by_subarray: bool = False) -> Fit | None:
    """
    Fit the loss of sensitivity in a filter, without observations that are wrong.

    Where the scatter is beyond the errors, by more than chance allows, observations that deviate by more than
    five standard deviations are left out, with a warning for each: a star that was partly out of its
    aperture would otherwise decide alone. They are found by a robust fit, in which those far off count
    little (Huber weights). It fails for stars that were seen two or three times, of which no observation
    can be said to be the wrong one.

    Parameters
    ----------
    table : QTable
        Rows of `observations.usable` of one filter.
    by_subarray : bool, optional
        Solve for the transmissions of the subarrays as well.

    Returns
    -------
    Fit or None
        That of `time_loss.fit`, with `time_loss.TAU` known beforehand; None where loss, amplitude and tau
        are not identifiable.
    """
    found = _fit(table, by_subarray)
    if found and time_loss.inflation(found.chi2, found.dof) == 1:
        return found
    deviation = _deviation(table, by_subarray)
    scatter = max(1.0, _NORMAL * np.median(np.abs(deviation)))
    wrong = np.abs(deviation) > _WRONG * scatter
    if not 0 < wrong.mean() <= _MOST_WRONG:
        return found
    for row in table[wrong]:
        date = row["timemid"].to_value(u.day)
        words = f"{row['name']} in {row['filter']} at MJD {date:.1f} is not used for the loss of sensitivity"
        warnings.warn(f"{words}: it is far from its other observations", stacklevel=3)
    return _fit(table[~wrong], by_subarray)


def _fit(table, by_subarray):
    light = table["light"].value
    try:
        return time_loss.fit(
            table["timemid"].to_value(u.day),
            light,
            light * table["relative_error"],
            star=table["name"],
            subarray=table["subarray"] if by_subarray else None,
            reference=config.REFERENCE_SUBARRAY,
            around=time_loss.TAU,
        )
    except ValueError:
        return None


def _deviation(table, by_subarray):
    """Compute residuals of a robust fit in units of their errors: linear in the logarithm of the light."""
    days = table["timemid"].to_value(u.day) - time_loss.T0
    groups = [table["name"], table["subarray"]] if by_subarray else [table["name"]]
    members = [(np.asarray(group)[:, None] == np.unique(group)).astype(float) for group in groups]
    design = np.column_stack([*members, days / time_loss.YEAR, *(np.expm1(-days / tau) for tau in _TAUS)])
    design = design / np.asarray(table["relative_error"])[:, None]
    target = np.log(table["light"].value) / table["relative_error"]
    weight = np.ones(len(table))
    for _ in range(_ROUNDS):
        solution = np.linalg.lstsq(design * weight[:, None], target * weight, rcond=None)[0]
        deviation = target - design @ solution
        scatter = max(1.0, _NORMAL * np.median(np.abs(deviation)))
        weight = 1 / np.sqrt(np.maximum(1.0, np.abs(deviation) / scatter))
    return np.asarray(deviation)
