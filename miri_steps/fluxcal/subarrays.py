"""Transmission of subarrays, from stars that were observed in several of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from astropy import units as u
from astropy.table import QTable

from miri_steps.fluxcal import config, monitoring, observations, time_loss
from miri_steps.fluxcal.config import REFERENCE_SUBARRAY
from miri_steps.fluxcal.time_loss import TimeLoss

__all__ = ["solve"]


def solve(
    photometry: QTable, *, losses: Mapping[str, TimeLoss] | None = None, repeatability: float = 0.003
) -> QTable:
    """
    Solve for the transmission of subarrays.

    A star gives another rate in another subarray, and another one later, when sensitivity was lost. In each
    imaging filter both are found together by `monitoring.fit`, with the brightness of all stars that were
    observed more than once. A subarray is tied to the reference by a star that was seen in both, or by stars
    and other subarrays between them. Its transmission is the weighted mean of what the filters give; the
    error of the mean is widened where filters scatter by more than their errors (see `time_loss.inflation`).

    It fails where too few stars were seen again for the loss of sensitivity: see `time_loss.fit`. Where the
    loss is given, pairs of exposures of one night are enough; its error is then left out of those of
    transmissions, which is right for such pairs, and no observation is looked upon as wrong.

    Parameters
    ----------
    photometry : QTable
        Rows of `StarPhotometryStep`.
    losses : mapping, optional
        Loss of filters where it is known, by their names.
    repeatability : float, optional
        Relative error of a rate beside its noise, as in `calibrate`.

    Returns
    -------
    QTable
        Row by subarray of `config.transmissions`, those of coronagraphs left out: ``subarray``,
        ``transmission`` in units of that of `config.REFERENCE_SUBARRAY`, ``transmission_error``, number of
        ``filters`` and ``observations`` it comes from, and ``solved``. Where that is False the
        transmission is the one known beforehand, and its error 0.

    Raises
    ------
    ValueError
        If none can be solved for, or as in `observations.usable`.
    """
    known = config.transmissions()
    table = observations.usable(photometry, dict.fromkeys(known, 1.0), repeatability=repeatability)
    table["subarray"] = [config.subarray(str(name)) for name in table["subarray"]]
    table = table[np.isin(table["subarray"], list(known))]
    groups = [_tied(table[table["filter"] == band]) for band in np.unique(table["filter"])]
    given = config.by_band("losses", losses or {})
    fits = [(group["subarray"], fit) for group in groups if (fit := _fit(group, given))]
    if not fits:
        raise ValueError(
            f"to solve for transmissions stars must have been observed in {REFERENCE_SUBARRAY} and another "
            "subarray of the imager, in one filter, and at eight epochs or more unless its loss is given; "
            f"got {_used(table) or 'none of the imager'}"
        )
    return QTable(rows=[_row(name, value, fits) for name, value in known.items()])


def _tied(table):
    """Take the observations of several of one star that stars tie to the reference."""
    star, subarray = np.asarray(table["name"]), np.asarray(table["subarray"])
    tied, before = subarray == REFERENCE_SUBARRAY, None
    while not np.array_equal(tied, before):
        before, tied = tied, np.isin(subarray, subarray[np.isin(star, star[tied])])
    _, number, count = np.unique(star, return_inverse=True, return_counts=True)
    return table[tied & (count[number] > 1)]


def _fit(table, losses):
    """Fit brightness and transmissions in a filter, and its loss if not given; None where that cannot be."""
    if len(set(table["subarray"])) < 2:
        return None
    mjd, light = table["timemid"].to_value(u.day), table["light"].value
    if table["filter"][0] in losses:
        return time_loss.fit_known(
            mjd,
            light,
            light * table["relative_error"],
            losses[table["filter"][0]],
            star=table["name"],
            subarray=table["subarray"],
            reference=REFERENCE_SUBARRAY,
        )
    again = monitoring.seen_again(table["name"], mjd)
    return monitoring.fit(table, by_subarray=True) if again.any() else None


def _row(name, known, fits):
    used = [fit for _, fit in fits if name in fit.factor]
    value, error = known, 0.0
    if used and name != REFERENCE_SUBARRAY:
        value, error = _mean([fit.factor[name] for fit in used], [fit.factor_error[name] for fit in used])
    return {
        "subarray": name,
        "transmission": value,
        "transmission_error": error,
        "filters": len(used),
        "observations": sum(int((subarray == name).sum()) for subarray, _ in fits),
        "solved": bool(used),
    }


def _mean(values, errors):
    """Weighted mean, and its error, widened to the scatter where this is larger."""
    values, weights = np.array(values), 1 / np.array(errors) ** 2
    mean = np.average(values, weights=weights)
    chi2 = (weights * (values - mean) ** 2).sum()
    variance = time_loss.inflation(chi2, len(values) - 1) / weights.sum()
    return float(mean), float(np.sqrt(variance))


def _used(table):
    """List which subarrays were used in which filter."""
    bands = np.asarray(table["filter"])
    return "; ".join(
        f"{band}: {', '.join(np.unique(table['subarray'][bands == band]))}" for band in np.unique(bands)
    )
