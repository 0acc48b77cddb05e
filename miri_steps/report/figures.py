"""Figures of a report: arrays and tables in, a matplotlib figure out."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from astropy.table import Table
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm, Normalize
from matplotlib.figure import Figure

from miri_steps.report.svg import SHADE, STYLE

__all__ = ["difference", "hot_pixels", "levels", "picture", "residuals", "scatter", "stretch"]

# Colours of Okabe and Ito, which colour-blind people tell apart, and which are seen on white and on black.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_MARKERS = "osD^vPX*"
_HOT, _DEAD, _LIMIT = "#D55E00", "#56B4E9", "#D55E00"
# Width of a figure [inch]: its text is still read on a phone.
_WIDTH = 4.4
# What stands beside and below an image [inch].
_BESIDE, _BELOW = 0.75, 1.0
# Steps of a colour bar: fewer make a smaller file, and are not seen.
_STEPS = 64
# More names than this make a legend that is larger than the figure.
_MOST_NAMES = 9
# More points than this are drawn as an image.
_MOST_POINTS = 1500


def stretch(image: np.ndarray) -> tuple[float, float]:
    """
    Choose the limits of a picture of the sky.

    Parameters
    ----------
    image : ndarray
        The image.

    Returns
    -------
    low, high : float
        A little below the sky, and where half a percent of all is brighter.
    """
    values = image[np.isfinite(image)]
    if not values.size:
        return 0.0, 1.0
    low, middle, high = np.percentile(values, [1.0, 50.0, 99.5])
    low = min(float(low), float(middle)) - 0.02 * float(high - low)
    return low, float(high) if high > low else low + 1.0


def picture(
    image: np.ndarray,
    *,
    label: str,
    limits: tuple[float, float] | None = None,
    scale: float | None = None,
    corner: tuple[float, float] = (0.0, 0.0),
    cmap: str = "viridis",
    linear: bool = False,
    block: int = 1,
    north: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> Figure:
    """
    Show an image.

    Parameters
    ----------
    image : ndarray
        Shape (ny, nx); NaN is left blank.
    label : str
        Of its colour bar, with the unit.
    limits : tuple of float, optional
        Range of the colours; by default `stretch`.
    scale : float, optional
        Side of a pixel on the sky [arcsec]; without it, axes count pixels.
    corner : tuple of float, optional
        Outer corner of the first pixel, East and North [arcsec], or position of that pixel (x, y).
    cmap : str, optional
        Colours.
    linear : bool, optional
        Whether colours follow values evenly, not their asinh.
    block : int, optional
        Pixels along a side that were averaged into one, where axes count pixels.
    north : tuple, optional
        Directions of North and East in the image, as (x, y), where North is not up.

    Returns
    -------
    Figure
        The figure.
    """
    with mpl.rc_context(STYLE):
        low, high = limits or stretch(image)
        width = (high - low) or 1.0
        norm = Normalize(low, high) if linear else AsinhNorm(0.15 * width, low, high)
        figure, axis, drawn = _image(image, scale, cmap, norm, corner, block)
        bar = _add_bar(figure, axis, drawn, label)
        if not linear:
            values = norm.inverse(np.linspace(0, 1, 5))
            bar.set_ticks(values, labels=[f"{value:.2g}".replace("-", "\N{MINUS SIGN}") for value in values])
            bar.minorticks_off()
        if north:
            _draw_compass(axis, *north)
        return figure


def difference(
    image: np.ndarray, *, limit: float, label: str, scale: float, corner: tuple[float, float] = (0.0, 0.0)
) -> Figure:
    """
    Show a map of differences about zero.

    Parameters
    ----------
    image : ndarray
        Shape (ny, nx); NaN where nothing was compared.
    limit : float
        Largest difference that is told from larger ones.
    label : str
        Of the colour bar, with the unit.
    scale : float
        Side of a pixel on the sky [arcsec].
    corner : tuple of float, optional
        Outer corner of the first pixel, East and North [arcsec].

    Returns
    -------
    Figure
        The figure.
    """
    with mpl.rc_context(STYLE):
        figure, axis, drawn = _image(image, scale, "RdBu_r", Normalize(-limit, limit), corner)
        _add_bar(figure, axis, drawn, label)
        # White is no difference; where there is nothing to compare, there is a shade.
        axis.set_facecolor(SHADE)
        return figure


def _image(image, scale, cmap, norm, corner=(0.0, 0.0), block=1):
    ny, nx = image.shape
    height = min((_WIDTH - _BESIDE) * ny / nx, 1.5 * _WIDTH) + _BELOW
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axis = figure.subplots()
    colours = mpl.colormaps[cmap].resampled(_STEPS).with_extremes(bad=(0, 0, 0, 0))
    side = block if scale is None else scale
    (x, y), towards = corner, 1 if scale is None else -1
    if scale is None:
        x, y = x - 0.5, y - 0.5
    extent = (x, x + towards * nx * side, y, y + ny * side)
    drawn = axis.imshow(
        image, cmap=colours, norm=norm, origin="lower", interpolation="none", extent=extent, aspect="equal"
    )
    if scale is None:
        axis.set(xlabel="x [pixel]", ylabel="y [pixel]")
    else:
        axis.set(xlabel="East [arcsec]", ylabel="North [arcsec]")
    axis.locator_params(nbins=6)
    return figure, axis, drawn


def _add_bar(figure, axis, drawn, label):
    bar = figure.colorbar(drawn, ax=axis, orientation="horizontal", extend="both", pad=0.03, aspect=35)
    bar.set_label(label)
    return bar


def _draw_compass(axis: Axes, north, east) -> None:
    """Draw arrows to North and East into the upper right corner of an image."""
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    length = 0.11 * min(right - left, top - bottom)
    begin = np.array([right - 2.1 * length, top - 2.1 * length])
    line = {"arrowstyle": "-|>", "color": "white", "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
    edge = [patheffects.withStroke(linewidth=3.2, foreground="black")]
    for direction, letter in ((north, "N"), (east, "E")):
        step = np.array(direction) / np.hypot(*direction) * length
        drawn = axis.annotate("", begin + step, begin, arrowprops=line, zorder=5)
        drawn.arrow_patch.set_path_effects(edge)
        place = begin + 1.5 * step
        axis.text(
            *place,
            letter,
            ha="center",
            va="center",
            color="white",
            weight="bold",
            path_effects=edge,
            zorder=6,
        )


def levels(table: Table, unit: str) -> Figure:
    """
    Show the level of each exposure with its error, visit by visit.

    Parameters
    ----------
    table : Table
        Columns visit, level and error, a row per exposure; NaN where there is no level.
    unit : str
        Unit of the levels.

    Returns
    -------
    Figure
        The figure.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.2), layout="constrained")
        axis = figure.subplots()
        visits = list(dict.fromkeys(str(visit) for visit in table["visit"]))
        number = np.arange(1, len(table) + 1)
        size = 5 if len(table) < 100 else 3
        for k, visit in enumerate(visits):
            inside = np.array([str(each) == visit for each in table["visit"]])
            axis.errorbar(
                number[inside],
                np.asarray(table["level"], float)[inside],
                np.asarray(table["error"], float)[inside],
                **{"fmt": _MARKERS[k % len(_MARKERS)], "ms": size, "color": _COLOURS[k % len(_COLOURS)]},
                **{"capsize": 2, "lw": 1, "label": visit},
            )
        axis.set(xlabel="exposure", ylabel=f"level [{unit}]")
        axis.xaxis.get_major_locator().set_params(integer=True)
        if len(visits) <= _MOST_NAMES:
            columns = 2 if len(visits) > 1 else 1
            figure.legend(loc="outside lower center", ncols=columns, frameon=False, title="visit")
        return figure


def residuals(ratio: np.ndarray) -> Figure:
    """
    Show how far pairs are from the solution, in units of their errors.

    Parameters
    ----------
    ratio : ndarray
        Residual over error of each pair.

    Returns
    -------
    Figure
        A histogram, and the bell curve that it follows where errors are what they say.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.2), layout="constrained")
        axis = figure.subplots()
        ratio = ratio[np.isfinite(ratio)]
        reach = float(np.clip(np.percentile(np.abs(ratio), 99) if ratio.size else 4, 4, 12))
        edges = np.linspace(-reach, reach, int(np.clip(2 * np.sqrt(ratio.size), 8, 48)) // 2 * 2 + 1)
        width = edges[1] - edges[0]
        inside = np.clip(ratio, -reach + width / 2, reach - width / 2)
        axis.hist(inside, edges, color=_COLOURS[5], edgecolor=_COLOURS[0], linewidth=0.6, label="pairs")
        x = np.linspace(-reach, reach, 241)
        bell = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi) * ratio.size * width
        axis.plot(x, bell, "--", color=_COLOURS[4], lw=1.6, label="expected: N(0, 1)")
        axis.set(xlabel="residual / error", ylabel="pairs", xlim=(-reach, reach))
        axis.yaxis.get_major_locator().set_params(integer=True)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return figure


def hot_pixels(hot: np.ndarray, dead: np.ndarray) -> Figure:
    """
    Show where hot and dead pixels are.

    Parameters
    ----------
    hot, dead : ndarray
        True on the pixels, shape (ny, nx).

    Returns
    -------
    Figure
        The figure.
    """
    with mpl.rc_context(STYLE):
        ny, nx = hot.shape
        figure = Figure(figsize=(_WIDTH, (_WIDTH - _BESIDE) * ny / nx + _BELOW), layout="constrained")
        axis = figure.subplots()
        many = int(hot.sum() + dead.sum()) > _MOST_POINTS
        for mask, marker, colour, name in ((hot, "+", _HOT, "hot"), (dead, "o", _DEAD, "dead")):
            y, x = np.nonzero(mask)
            style = {"ms": 2.5 if many else 4, "mew": 0.7, "ls": "none", "rasterized": many}
            axis.plot(x, y, marker, color=colour, mfc="none", label=f"{name} ({mask.sum()})", **style)
        axis.set(xlim=(-0.5, nx - 0.5), ylim=(-0.5, ny - 0.5), aspect="equal")
        axis.set(xlabel="x [pixel]", ylabel="y [pixel]")
        axis.locator_params(nbins=6)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, markerscale=2)
        return figure


def scatter(names: Sequence[str], values: np.ndarray, *, limit: float) -> Figure:
    """
    Show how well the exposures of each tile agree.

    Parameters
    ----------
    names : sequence of str
        The tiles.
    values : ndarray
        Scatter along an axis [mas]; NaN where there is none.
    limit : float
        More than this is not good [mas].

    Returns
    -------
    Figure
        The figure.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(_WIDTH, float(np.clip(0.24 * len(names) + 1.1, 1.7, 9))), layout="constrained"
        )
        axis = figure.subplots()
        place = np.arange(len(names))[::-1]
        values = np.asarray(values, float)
        over = values > limit
        axis.hlines(place, 0, np.nan_to_num(values), color=_COLOURS[0], lw=1.5)
        axis.plot(values[~over], place[~over], "o", color=_COLOURS[0], ms=5)
        axis.plot(values[over], place[over], "X", color=_LIMIT, ms=7)
        axis.axvline(limit, color=_LIMIT, ls="--", lw=1.2)
        for y in place[~np.isfinite(values)]:
            axis.text(0.02 * limit, y, " not known", va="center", fontsize=8)
        known = values[np.isfinite(values)]
        axis.set(xlabel="scatter along an axis [mas]", xlim=(0, 1.15 * max(limit, known.max(initial=0.0))))
        few = len(names) <= 40
        axis.set_yticks(place if few else [], list(names) if few else [])
        axis.set_ylim(-0.7, len(names) - 0.3)
        return figure
