"""Figures of the flux calibration: images, tables and results in, a matplotlib figure out."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.colors import AsinhNorm, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Annulus, Circle, Rectangle

from miri_steps import detector
from miri_steps.fluxcal.encircled import Corrections, EncircledEnergy
from miri_steps.fluxcal.photometry import Aperture, Measurement
from miri_steps.report.star_factors import AGAINST, factors
from miri_steps.report.star_repeatability import repeatability
from miri_steps.report.star_style import INK, STYLE, WIDE, WIDTH, in_order, with_error

__all__ = ["AGAINST", "encircled_energy", "factors", "photometry", "psfs", "repeatability"]

# Colours of Okabe and Ito, which colour-blind people tell apart.
_APERTURE, _RING, _CENTROID = "#0072B2", "#E69F00", "#D55E00"
# The cut-out is larger than the ring by this part.
_AROUND = 1.25
# Colours follow values evenly up to so much above the background [its scatter].
_EVEN = 4.0
# Of a larger image not every pixel is drawn: a page has no room for more.
_LARGEST_IMAGE = 1500
# Side of the image of a PSF where there are few [inch].
_LARGEST_SIDE = 2.8
# A legend names so many curves at most, in lines of so many characters, mark and all.
_NAMED, _LINE, _MARK = 12, 72, 8


def photometry(
    image: np.ndarray, found: Measurement, aperture: Aperture, *, title: str = "", unit: str = "DN/s"
) -> Figure:
    """
    Show a star, and where its light and its background were measured.

    Parameters
    ----------
    image : ndarray
        Shape (ny, nx); NaN is left blank.
    found : Measurement
        The star.
    aperture : Aperture
        Where it was measured.
    title : str, optional
        Name of the image.
    unit : str, optional
        Of its pixels.

    Returns
    -------
    Figure
        The whole image with a square about the star, and that square.
    """
    with mpl.rc_context(STYLE):
        ny, nx = image.shape
        figure = Figure(figsize=(WIDE, 3.2 * float(np.clip(ny / nx, 1, 2)) + 1.7), layout="constrained")
        whole, near = figure.subplots(1, 2)
        step = -(-max(image.shape) // _LARGEST_IMAGE)
        thinned = image[::step, ::step]
        norm = _norm_about(thinned, found)
        half = _AROUND * aperture.sky[1]
        square = (found.x - half, found.x + half), (found.y - half, found.y + half)
        _show(whole, thinned, norm, step=step)
        whole.add_patch(
            Rectangle((found.x - half, found.y - half), 2 * half, 2 * half, fc="none", ec=_CENTROID)
        )
        rows, columns = (slice(max(0, int(low)), int(high) + 2) for low, high in (square[1], square[0]))
        drawn = _show(near, image[rows, columns], norm, (columns.start, rows.start))
        near.set(xlim=square[0], ylim=square[1])
        _draw_aperture(near, found, aperture)
        _add_stretched_bar(figure, drawn, [whole, near], f"brightness [{unit}]")
        near.set_title(f"{with_error(found.light, found.light_error)} {unit}")
        figure.suptitle(title, fontsize=10)
        figure.legend(*near.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        return figure


def _norm_about(image, found):
    """Stretch from below the background to the peak, evenly within the noise."""
    noise = max(found.background_scatter, 1e-4 * abs(found.peak - found.background), 1e-30)
    seen = image[np.isfinite(image)]
    low = min(float(np.percentile(seen, 1)), found.background - _EVEN * noise)
    return AsinhNorm(_EVEN * noise, low, max(found.peak, found.background + _EVEN * noise))


def _show(axis, image, norm, corner=(0, 0), step=1):
    (ny, nx), (x, y) = image.shape, corner
    extent = (x - 0.5, x + step * nx - 0.5, y - 0.5, y + step * ny - 0.5)
    axis.set(xlabel="x [pixel]", ylabel="y [pixel]")
    axis.locator_params(nbins=5)
    return axis.imshow(image, cmap="gray_r", norm=norm, origin="lower", extent=extent)


def _draw_aperture(axis, found, aperture):
    center, (inner, outer) = (found.x, found.y), aperture.sky
    label = f"background: {inner:.2f} to {outer:.2f} pixel"
    # The ring is drawn as two: its colour must not change that of the pixels much.
    axis.add_patch(Annulus(center, outer, outer - inner, fc=_RING, ec="none", alpha=0.25))
    for radius in aperture.sky:
        axis.add_patch(Circle(center, radius, fc="none", ec=_RING, lw=1.2))
    axis.add_patch(Circle(center, aperture.radius, fc="none", ec=_APERTURE, lw=1.6))
    radius = f"aperture: {aperture.radius:.2f} pixel"
    axis.plot([], [], color=_APERTURE, lw=1.6, label=radius)
    axis.plot([], [], color=_RING, lw=6, alpha=0.6, label=label)
    place = f"centroid: ({found.x:.2f}, {found.y:.2f})"
    axis.plot(*center, "+", color=_CENTROID, ms=11, mew=1.6, ls="none", label=place)


def _add_stretched_bar(figure, drawn, axes, label):
    bar = figure.colorbar(drawn, ax=axes, extend="both", aspect=50, pad=0.03, orientation="horizontal")
    bar.set_label(label)
    values = drawn.norm.inverse(np.linspace(0, 1, 6))
    bar.set_ticks(values, labels=[_short(value) for value in values])
    bar.minorticks_off()


def _short(value):
    """Write a number of three digits, and no power of ten for what a person reads without."""
    text = f"{value:.3g}"
    return (f"{float(text):.0f}" if "e+0" in text else text).replace("-", "\N{MINUS SIGN}")


def encircled_energy(curves: Mapping[str, EncircledEnergy], found: Corrections | None = None) -> Figure:
    """
    Show growth curves.

    Parameters
    ----------
    curves : mapping
        Curves by name.
    found : Corrections, optional
        Apertures made from them.

    Returns
    -------
    Figure
        The curves; and the apertures as points on them, the background's ring as a shade. Of many curves the
        legend names the first.

    Raises
    ------
    ValueError
        If there is no curve.
    """
    if not curves:
        raise ValueError("there must be at least one growth curve, got none")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axis = figure.subplots()
        for (name, curve), colour in zip(curves.items(), in_order(len(curves)), strict=True):
            axis.plot(curve.radius, curve.energy, color=colour, lw=1.3, label=name)
        if found is not None:
            _draw_levels(axis, found)
        axis.set(xscale="log", ylim=(0, 1.03), xlabel="radius [native pixel]", ylabel="part of all light")
        axis.xaxis.set_major_formatter("{x:g}")
        scale = detector.PIXEL_SCALE
        top = axis.secondary_xaxis("top", functions=(lambda r: r * scale, lambda r: r / scale))
        top.xaxis.set_major_formatter("{x:g}")
        top.set_xlabel("radius [arcsec]")
        _add_legend(figure, axis, len(curves))
        return figure


def _add_legend(figure, axis, number):
    """Name the curves below the axis, in as many columns as their names leave room for."""
    marks, names = axis.get_legend_handles_labels()
    if number > _NAMED:
        marks[_NAMED:number], names[_NAMED:number] = [Line2D([], [], ls="none")], [f"{number - _NAMED} more"]
    columns = int(np.clip(_LINE // (_MARK + max(len(name) for name in names)), 1, 4))
    figure.set_figheight(figure.get_figheight() + 0.25 * -(-len(names) // columns))
    figure.legend(marks, names, loc="outside lower center", ncols=columns, frameon=False)


def _draw_levels(axis, found):
    axis.hlines(found.level, 0, 1, transform=axis.get_yaxis_transform(), color=INK, lw=0.4, alpha=0.4)
    axis.vlines(found.radius, 0, found.level, color=INK, lw=0.7, ls=":")
    axis.errorbar(
        *(found.radius, found.level),
        **{"xerr": found.radius_scatter, "fmt": "o", "ms": 5, "color": INK, "mfc": "none", "zorder": 4},
        label=f"apertures, {_sources(found.number)}",
    )
    axis.axvspan(*found.sky, color=_RING, alpha=0.3, lw=0, label="background")


def _sources(number):
    return {0: "of the model", 1: "1 data set"}.get(number, f"{number} data sets")


def psfs(images: Mapping[str, np.ndarray], *, floor: float = 1e-4) -> Figure:
    """
    Show PSFs beside each other.

    Parameters
    ----------
    images : mapping
        Image of each, shape (ny, nx), background subtracted, by the name of its filter. Sizes may differ, and
        are written below.
    floor : float, optional
        What is fainter than this part of the peak is not told apart.

    Returns
    -------
    Figure
        All on one logarithmic stretch from ``floor`` to the peak.

    Raises
    ------
    ValueError
        If there is none, or one of them is no image of a star.
    """
    if not images:
        raise ValueError("there must be at least one PSF, got none")
    relative = {name: _over_peak(name, np.asarray(image, float)) for name, image in images.items()}
    columns = _columns(len(images))
    rows = -(-len(images) // columns)
    with mpl.rc_context(STYLE):
        side = min((WIDE - 0.7) / columns, _LARGEST_SIDE)
        figure = Figure(figsize=(columns * side + 0.7, rows * (side + 0.35)), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        norm = LogNorm(floor, 1.0)
        for axis, (name, image) in zip(axes, relative.items(), strict=False):
            # Noise below zero is as dark as can be, not blank.
            drawn = axis.imshow(np.maximum(image, floor), cmap="inferno", norm=norm, origin="lower")
            ny, nx = image.shape
            axis.set(xticks=[], yticks=[], title=name, xlabel=f"{nx} \N{MULTIPLICATION SIGN} {ny} pixel")
        for axis in axes[len(images) :]:
            axis.remove()
        shown = list(axes[: len(images)])
        figure.colorbar(drawn, ax=shown, label="brightness over that of the peak", aspect=35, pad=0.02)
        return figure


def _over_peak(name, image):
    if image.ndim != 2:
        raise ValueError(f"the PSF of {name} must have 2 dimensions, got {image.ndim}")
    peak = np.nanmax(image) if np.isfinite(image).any() else np.nan
    if not peak > 0:
        raise ValueError(f"the peak of the PSF of {name} must be above 0, got {peak}")
    return image / peak


def _columns(number):
    """Choose the columns that leave least empty."""
    return number if number <= 3 else min((3, 4, 5), key=lambda columns: (-number % columns, -columns))
