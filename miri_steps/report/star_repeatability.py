"""How the sensitivity falls, and how well stars that are seen again follow it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from astropy import units as u
from astropy.time import Time
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from miri_steps.fluxcal.calibration import FilterCalibration
from miri_steps.report.star_style import INK, STYLE, WIDE, in_order

__all__ = ["repeatability"]

_MARKERS = "osD^vPX*"
_COLUMNS = "name", "timemid", "light", "sensitivity"
# Offsets of filters are whole numbers of this, and leave this part of the panel between them.
_OFFSET, _ROOM = 0.01, 0.04
# More stars than this make a legend that is larger than the figure.
_MOST_NAMES = 9


@dataclass(frozen=True)
class _Series:
    """Stars of a filter that were seen again: dates [year], their light over scales, and what is expected."""

    band: str
    star: np.ndarray
    year: np.ndarray
    ratio: np.ndarray
    model: np.ndarray
    curve: tuple[np.ndarray, np.ndarray]

    @property
    def residual(self):
        return 100 * (self.ratio / self.model - 1)

    @property
    def range(self):
        values = np.concatenate([self.ratio, self.curve[1]])
        return float(values.min()), float(values.max())


def repeatability(calibrations: Mapping[str, FilterCalibration]) -> Figure:
    """
    Show how the sensitivity falls, and how well stars that are seen again follow it.

    Parameters
    ----------
    calibrations : mapping
        `FilterCalibration` by the name of the filter; those without a star that was seen twice are left
        out.

    Returns
    -------
    Figure
        Light over the scale of each star with S(t), one filter below the other, and the residuals.

    Raises
    ------
    ValueError
        If no star was seen twice, or a column is missing.
    """
    series = [one for one in (_series(band, c) for band, c in calibrations.items()) if one]
    if not series:
        raise ValueError(
            "there must be a filter with a star that was seen again, but there is none in "
            f"{', '.join(calibrations) or 'no filter'}"
        )
    with mpl.rc_context(STYLE):
        height = 2.6 + 0.5 * len(series)
        figure = Figure(figsize=(WIDE, height + 1.4), layout="constrained")
        above, below = figure.subplots(2, sharex=True, height_ratios=(height - 1.0, 1.4))
        stars = list(dict.fromkeys(name for one in series for name in one.star.tolist()))
        marks = {name: _MARKERS[k % len(_MARKERS)] for k, name in enumerate(stars)}
        for one, offset, colour in zip(series, _offsets(series), in_order(len(series)), strict=True):
            _draw_series(above, below, one, offset, colour, marks)
        below.axhline(0, color=INK, lw=0.8, zorder=1)
        below.set(xlabel="date [year]", ylabel="residual [%]")
        reach = 1.15 * max(np.abs(one.residual).max() for one in series) or 1.0
        below.set_ylim(-reach, reach)
        above.set_ylabel("light / scale of its star + offset")
        if len(stars) <= _MOST_NAMES:
            keys = [Line2D([], [], marker=mark, ls="none", ms=5, color=INK) for mark in marks.values()]
            figure.legend(keys, stars, loc="outside lower center", ncols=3, frameon=False)
        return figure


def _series(band: str, calibration: FilterCalibration) -> _Series | None:
    table, loss = calibration.observations, calibration.loss
    missing = [name for name in _COLUMNS if name not in table.colnames]
    if missing:
        raise ValueError(f"the observations of {band} must have the column {', '.join(missing)}")
    names, number, count = np.unique(table["name"], return_inverse=True, return_counts=True)
    again = count[number] > 1
    if not again.any():
        return None
    light, model = table["light"].value, np.asarray(table["sensitivity"])
    scale = np.bincount(number, light / model) / count
    if calibration.fit:
        # Stars whose images are all of one epoch are not in the fit.
        fitted = calibration.fit.scale
        scale = np.array([fitted.get(str(name), mean) for name, mean in zip(names, scale, strict=True)])
    mjd = table["timemid"].to_value(u.day)[again]
    dates = np.linspace(mjd.min(), mjd.max(), 200)
    year, years = (Time(days, format="mjd", scale="tt").jyear for days in (mjd, dates))
    ratio = (light / scale[number])[again]
    star = names[number[again]].astype(str)
    return _Series(band, star, year, ratio, model[again], (years, loss.sensitivity(dates)))


def _offsets(series):
    """Put each filter below the one before, by as little as leaves room between them."""
    room = _ROOM * max(sum(one.range[1] - one.range[0] for one in series), _OFFSET * len(series))
    offsets, lowest = [], 1 + room
    for one in series:
        low, high = one.range
        offset = 0.0 if not offsets else np.floor((lowest - room - high) / _OFFSET) * _OFFSET
        offsets.append(float(offset))
        lowest = low + offset
    return offsets


def _draw_series(above, below, one, offset, colour, marks):
    years, curve = one.curve
    above.plot(years, curve + offset, color=colour, lw=1.2, zorder=3)
    for name, mark in marks.items():
        here = one.star == name
        if here.any():
            style = {"ls": "none", "marker": mark, "ms": 3.5, "mew": 0, "color": colour, "alpha": 0.8}
            above.plot(one.year[here], one.ratio[here] + offset, **style)
            below.plot(one.year[here], one.residual[here], **style)
    text = f" {one.band}" + (f" \N{MINUS SIGN} {-offset:.2f}" if offset else "")
    text += f"\n scatter {one.residual.std():.2f} %"
    at = (1.0, float(curve[-1]) + offset)
    style = {"va": "center", "fontsize": 8, "annotation_clip": False}
    above.annotate(text, at, xycoords=above.get_yaxis_transform(), **style)
