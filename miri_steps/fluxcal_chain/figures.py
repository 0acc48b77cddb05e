"""Figures of a flux calibration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.table import QTable
from stdatamodels.jwst import datamodels

from miri_steps.fluxcal.calibration import FilterCalibration
from miri_steps.fluxcal.photometry import Aperture, Measurement
from miri_steps.fluxcal_chain.apertures import Growth
from miri_steps.report import star_figures
from miri_steps.steps import star_images

__all__ = ["draw_apertures", "draw_calibration", "draw_stars"]

log = logging.getLogger(f"stpipe.{__name__}")

_DOTS_PER_INCH = 150
# A PSF is shown out to so many radii of its aperture.
_SHOWN = 6
# Columns of the photometry, and what they are called in a `Measurement`.
_COLUMNS = {
    **{name: name for name in ("x", "y", "background", "background_error", "background_scatter")},
    **{name: name for name in ("peak", "area", "interpolated")},
    **{"rate": "light", "rate_error": "light_error", "aperture_sum": "total"},
}


def draw_apertures(growth: Mapping[str, Growth], stem: Path) -> None:
    """
    Draw the growth curves of each filter.

    Parameters
    ----------
    growth : mapping
        `Growth` by the name of the filter.
    stem : Path
        What names of files begin with.
    """
    for band, one in growth.items():
        curves = {"model PSF": one.model} | one.stars
        _save(f"{stem}_{band}.png", partial(star_figures.encircled_energy, curves, one.corrections))


def draw_stars(table: QTable, paths: Iterable[Path], stem: Path) -> None:
    """
    Draw the brightest star of each filter with its apertures, and these stars beside each other.

    Parameters
    ----------
    table : QTable
        Rows of `StarPhotometryStep`, one for each path.
    paths : iterable of Path
        The images.
    stem : Path
        What names of files begin with.
    """
    rates, paths = table["rate"].value, list(paths)
    shown = {}
    for band in dict.fromkeys(table["filter"].tolist()):
        here = np.flatnonzero((table["filter"] == band) & np.isfinite(rates))
        if len(here):
            k = here[np.argmax(rates[here])]
            with datamodels.open(paths[k]) as model:
                shown[band] = _draw_star(star_images.read(model), table[k], f"{stem}_{band}.png")
    if shown:
        _save(f"{stem}_psfs.png", partial(star_figures.psfs, shown))


def _draw_star(seen, row, name):
    """Draw a star, and return a square about it."""
    found, aperture = _measurement(row), _aperture(row)
    image, title = np.where(seen.mask, np.nan, seen.image), f"{row['name']} in {seen.name}"
    _save(name, partial(star_figures.photometry, image, found, aperture, title=title))
    half = _SHOWN * aperture.radius
    low_x, low_y = (max(0, int(at - half)) for at in (found.x, found.y))
    square = image[low_y : int(found.y + half) + 1, low_x : int(found.x + half) + 1]
    return square - found.background


def _measurement(row):
    value = {name: float(u.Quantity(row[name]).value) for name in row.colnames if name in _COLUMNS}
    return Measurement(**{_COLUMNS[name]: one for name, one in value.items()})


def _aperture(row):
    radius, inner, outer = (row[name].to_value(u.pix) for name in ("radius", "skyin", "skyout"))
    # The width is not drawn.
    return Aperture(radius, (inner, outer), fwhm=1.0)


def draw_calibration(calibrations: Mapping[str, FilterCalibration], folder: Path) -> None:
    """
    Draw factors against all that they could depend on, and the loss of sensitivity.

    Parameters
    ----------
    calibrations : mapping
        `FilterCalibration` by the name of the filter.
    folder : Path
        Where to.
    """
    for band, one in calibrations.items():
        for against in star_figures.AGAINST:
            name = folder / f"{band}_{against.replace(' ', '_')}.png"
            _save(name, partial(star_figures.factors, one, against))
    monitored = {band: one for band, one in calibrations.items() if one.fit}
    if monitored:
        _save(folder / "repeatability.png", partial(star_figures.repeatability, monitored))


def _save(name: str | Path, draw: Callable) -> None:
    """Save a figure; one that cannot be drawn is no reason to lose what was measured."""
    try:
        draw().savefig(name, dpi=_DOTS_PER_INCH)
    except ValueError as error:
        log.warning("%s is not drawn: %s", name, error)
