"""Calibration factors of single observations, drawn against what they must not depend on."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from astropy import units as u
from astropy.table import QTable
from astropy.time import Time
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from miri_steps.fluxcal.calibration import FilterCalibration
from miri_steps.report.star_style import INK, STYLE, WIDTH, with_error

__all__ = ["AGAINST", "factors"]

# Colours of Okabe and Ito, which colour-blind people tell apart.
_TYPES = {"hot": "#0072B2", "A dwarf": "#009E73", "solar analogue": "#E69F00", "other": "#CC79A7"}
_PUBLISHED = "#D55E00"
_SUBARRAYS = {
    **{"FULL": "o", "BRIGHTSKY": "s", "SUB256": "D", "SUB128": "^", "SUB64": "v"},
    **{"MASK1065": "P", "MASK1140": "X", "MASK1550": "*", "MASKLYOT": "h"},
}
_OTHER_SUBARRAY = "p"

_UNIT = "(MJy/sr) / (DN/s)"
# Factors are shown this far from their average [scatter, farthest that was kept]; others at the edge.
_SHOWN_SCATTER, _SHOWN_KEPT = 2.0, 1.2
# Part of the place of a class that its points take.
_SPREAD = 0.6
# Where values do not differ by the first, a logarithmic axis would have no numbers; where they differ by more
# than the second, it has those of powers of ten only.
_LEAST_FOR_LOG, _MOST_FOR_NUMBERS = 6.0, 300.0
# More points than this are drawn smaller.
_MANY = 150


@dataclass(frozen=True)
class _Quantity:
    """What factors are drawn against."""

    label: str
    columns: tuple[str, ...]
    log: bool = False


_AGAINST = {
    "flux": _Quantity("flux of the model [Jy]", ("flux",), log=True),
    "time": _Quantity("date [year]", ("timemid",)),
    "type": _Quantity("type of the star", ("type",)),
    "background": _Quantity("background [DN/s in a pixel]", ("background",)),
    "well depth": _Quantity("brightest pixel at the end of the ramp [DN]", ("well_depth",)),
    "rate": _Quantity("light in the aperture [DN/s]", ("rate",), log=True),
    "integration time": _Quantity("integration time [s]", ("ngroups", "tgroup"), log=True),
    "subarray": _Quantity("subarray", ("subarray",)),
}
#: What factors can be drawn against.
AGAINST = tuple(_AGAINST)


def factors(calibration: FilterCalibration, against: str, *, published: float | None = None) -> Figure:
    """
    Show the calibration factors of single observations against what they must not depend on.

    Parameters
    ----------
    calibration : FilterCalibration
        Of the filter.
    against : str
        "flux", "time", "type", "background", "well depth", "rate", "integration time" or "subarray".
    published : float, optional
        A factor to compare with [(MJy/sr) / (DN/s)].

    Returns
    -------
    Figure
        Types of stars have colours, subarrays have marks; what was left out has a ring around it, and stands
        at the edge with its difference from the average where it is far from it.

    Raises
    ------
    ValueError
        If there is no such quantity, or the observations do not have it.
    """
    table = calibration.observations
    place, classes = _places(calibration.band, table, against)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.3), layout="constrained")
        axis = figure.subplots()
        low, high = _limits(calibration, published)
        _draw_averages(axis, calibration, published)
        if against == "type":
            _draw_averages_of_types(axis, calibration, classes)
        _draw_factors(axis, table, place, low, high)
        # What is clipped to an edge stands on it whole.
        margin = 0.05 * (high - low)
        axis.set(ylim=(low - margin, high + margin), ylabel=f"calibration factor [{_UNIT}]")
        _label_x(axis, _AGAINST[against], place, classes)
        _tell_far_ones(axis, calibration, place, low, high)
        _add_percent(axis, calibration.factor)
        axis.set_title(_summary(calibration))
        _add_key(figure, axis, table)
        return figure


def _places(band: str, table: QTable, against: str) -> tuple[np.ndarray, list[str]]:
    """Place observations along the axis, NaN where that is not known; and name its classes, if any."""
    if against not in _AGAINST:
        raise ValueError(f"against must be one of {', '.join(_AGAINST)}, got {against}")
    needed = _AGAINST[against].columns
    missing = [name for name in needed if name not in table.colnames]
    if missing:
        raise ValueError(
            f"to draw factors against {against}, the observations of {band} must have the columns "
            f"{', '.join(needed)}, but {', '.join(missing)} is not there"
        )
    if against in ("type", "subarray"):
        return _class_places(table[against], _TYPES if against == "type" else _SUBARRAYS)
    values = _values(table, against)
    known = np.isfinite(values) & ((values > 0) | (not _AGAINST[against].log))
    if not known.any():
        raise ValueError(f"the {against} of no observation of {band} is known")
    return np.where(known, values, np.nan), []


def _values(table, against):
    if against == "time":
        return Time(table["timemid"].to_value(u.day), format="mjd", scale="tt").jyear
    values = 1.0
    for name in _AGAINST[against].columns:
        values = values * np.asarray(getattr(table[name], "value", table[name]), float)
    return values


def _class_places(column, known):
    """Spread the points of a class evenly in their order."""
    column = np.asarray(column).astype(str)
    present = set(column.tolist())
    classes = [name for name in known if name in present] + sorted(present - set(known))
    place = np.empty(len(column))
    for k, name in enumerate(classes):
        inside = column == name
        number = int(inside.sum())
        place[inside] = k + _SPREAD * ((np.arange(number) + 0.5) / number - 0.5)
    return place, classes


def _limits(calibration, published):
    """Show all that were kept, and what they are compared with."""
    table, value = calibration.observations, calibration.factor
    kept = np.asarray(table["kept"], bool)
    factor, error = (table[name].value[kept] for name in ("factor", "factor_error"))
    least = max(_SHOWN_SCATTER * np.nan_to_num(calibration.average.scatter), 1e-4 * value)
    below = max(least, _SHOWN_KEPT * (value - (factor - error).min()))
    above = max(least, _SHOWN_KEPT * ((factor + error).max() - value))
    if published is not None:
        below, above = max(below, 1.1 * (value - published)), max(above, 1.1 * (published - value))
    return value - below, value + above


def _draw_averages(axis, calibration, published):
    value, scatter = calibration.factor, calibration.average.scatter
    axis.axhline(value, color=INK, lw=1.2, label="average", zorder=1)
    for side, label in ((-1, "its scatter"), (1, None)):
        if np.isfinite(scatter):
            axis.axhline(value + side * scatter, color=INK, lw=0.9, ls="--", label=label, zorder=1)
    if published is not None:
        axis.axhline(published, color=_PUBLISHED, lw=1.2, ls=":", label="published", zorder=1)


def _draw_averages_of_types(axis, calibration, classes):
    axis.plot([], [], color="0.4", lw=2, label="average of a type")
    for k, name in enumerate(classes):
        one = calibration.by_type[name]
        colour = _colour_of(name)
        axis.hlines(one.value, k - 0.42, k + 0.42, color=colour, lw=2, alpha=0.8, zorder=1.5)
        if np.isfinite(one.error):
            axis.fill_between(
                [k - 0.42, k + 0.42],
                *(one.value + s * one.error for s in (-1, 1)),
                color=colour,
                alpha=0.2,
                lw=0,
                zorder=0.5,
            )


def _draw_factors(axis: Axes, table: QTable, place: np.ndarray, low: float, high: float) -> None:
    """Draw the points, each group of a type and a subarray as one; those far away at the edge."""
    kinds, subarrays = (np.asarray(table[name]).astype(str) for name in ("type", "subarray"))
    factor = np.clip(table["factor"].value, low, high)
    error = np.where(factor == table["factor"].value, table["factor_error"].value, 0.0)
    size = 5 if len(table) < _MANY else 3.5
    for kind, subarray in sorted(set(zip(kinds.tolist(), subarrays.tolist(), strict=True))):
        inside = (kinds == kind) & (subarrays == subarray) & np.isfinite(place)
        axis.errorbar(
            *(place[inside], factor[inside], error[inside]),
            **{"fmt": _SUBARRAYS.get(subarray, _OTHER_SUBARRAY), "color": _colour_of(kind), "ms": size},
            **{"mew": 0, "elinewidth": 0.6, "alpha": 0.85, "zorder": 2},
        )
    out = ~np.asarray(table["kept"], bool) & np.isfinite(place)
    if out.any():
        ring = {"s": 110, "facecolors": "none", "edgecolors": INK, "linewidths": 0.9, "zorder": 3}
        axis.scatter(place[out], factor[out], label="left out", **ring)


def _tell_far_ones(axis, calibration, place, low, high):
    """Write how far those at the edge are away."""
    middle = axis.transData.inverted().transform(axis.transAxes.transform((0.5, 0.5)))[0]
    for x, y in zip(place, calibration.observations["factor"].value, strict=True):
        if np.isfinite(x) and not low <= y <= high:
            text = f"{100 * (y / calibration.factor - 1):+.0f} %".replace("-", "\N{MINUS SIGN}")
            side, away = ("left", 9) if x < middle else ("right", -9)
            where = {"xytext": (away, 0), "textcoords": "offset points", "ha": side, "va": "center"}
            axis.annotate(text, (x, low if y < low else high), fontsize=8, **where)


def _colour_of(kind):
    return _TYPES.get(kind, _TYPES["other"])


def _label_x(axis, quantity, place, classes):
    unknown = int(np.isnan(place).sum())
    axis.set_xlabel(quantity.label + (f"; not known of {unknown}" if unknown else ""))
    ratio = np.nanmax(place) / np.nanmin(place) if quantity.log else 1.0
    if ratio > _LEAST_FOR_LOG:
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
        if ratio < _MOST_FOR_NUMBERS:
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.xaxis.set_major_formatter("{x:g}")
    if classes:
        axis.set_xticks(range(len(classes)), classes)
        axis.set_xlim(-0.6, len(classes) - 0.4)


def _add_percent(axis, value):
    def to_percent(factor):
        return 100 * (np.asarray(factor) / value - 1)

    def from_percent(percent):
        return value * (1 + np.asarray(percent) / 100)

    axis.secondary_yaxis("right", functions=(to_percent, from_percent)).set_ylabel("from the average [%]")


def _summary(calibration):
    table, average = calibration.observations, calibration.average
    stars = len(set(np.asarray(table["name"])[average.kept].tolist()))
    text = f"{calibration.band}: {with_error(calibration.factor, calibration.error)}"
    if np.isfinite(average.scatter):
        text += f", scatter {100 * average.scatter / calibration.factor:.2f} %"
    return f"{text}, {stars} {'star' if stars == 1 else 'stars'}"


def _add_key(figure, axis, table):
    handles, labels = axis.get_legend_handles_labels()
    present = {name: set(np.asarray(table[name]).astype(str).tolist()) for name in ("type", "subarray")}
    kinds = [name for name in _TYPES if name in present["type"]] + sorted(present["type"] - set(_TYPES))
    keys = [Line2D([], [], marker="o", ms=6, ls="none", mew=0, color=_colour_of(name)) for name in kinds]
    windows = [name for name in _SUBARRAYS if name in present["subarray"]]
    windows += sorted(present["subarray"] - set(_SUBARRAYS))
    keys += [
        Line2D([], [], marker=_SUBARRAYS.get(name, _OTHER_SUBARRAY), ms=5, ls="none", mfc="none", color=INK)
        for name in windows
    ]
    figure.legend(
        keys + handles, kinds + windows + labels, loc="outside lower center", ncols=4, frameon=False
    )
