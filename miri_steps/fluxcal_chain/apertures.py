"""Growth curves of bright stars in images, and the aperture corrections that follow."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from stdatamodels.jwst import datamodels

from miri_steps.fluxcal import config, encircled, photometry
from miri_steps.fluxcal.encircled import Corrections, EncircledEnergy
from miri_steps.fluxcal.photometry import Aperture
from miri_steps.fluxcal_chain.inputs import Image
from miri_steps.steps import star_images

__all__ = ["Growth", "check_bright", "measure"]

log = logging.getLogger(f"stpipe.{__name__}")

# Until the apertures are known a star is looked for with these [FWHM].
_RADIUS, _RING = 2.0, (5.0, 6.0)
# How far from its target it is looked for [arcsec].
_WITHIN = 2.0


@dataclass(frozen=True)
class Growth:
    """
    Growth curves of a filter.

    Parameters
    ----------
    model : EncircledEnergy
        That of the model PSF.
    stars : dict
        Those of stars, joined to it, by the name of the image.
    corrections : Corrections
        What follows from the stars, or, without any, from the model.
    """

    model: EncircledEnergy
    stars: dict[str, EncircledEnergy]
    corrections: Corrections


def measure(images: Iterable[Image], psfs: Mapping[str, Path], bright: Iterable[str]) -> dict[str, Growth]:
    """
    Measure growth curves.

    Parameters
    ----------
    images : iterable of Image
        Mosaics or exposures, drizzled alike.
    psfs : mapping
        File of the model PSF of each filter.
    bright : iterable of str
        Names of the stars whose growth curves are joined to the models. In filters without any the model
        alone is taken.

    Returns
    -------
    dict
        `Growth` of each filter that there is a PSF for.

    Raises
    ------
    ValueError
        If there is no image of a bright star.
    """
    images = list(images)
    names = check_bright(images, bright)
    resampling = images[0].resampling
    models = {band: encircled.read_psf(path, resampling=resampling) for band, path in psfs.items()}
    stars = {band: {} for band in models}
    for image in images:
        if image.star in names and image.band in models:
            stars[image.band] |= _join(image.path, models[image.band])
    return {band: _average(band, model, stars[band]) for band, model in models.items()}


def check_bright(images: Iterable[Image], bright: Iterable[str]) -> set[str]:
    """
    Look bright stars up among the targets.

    Parameters
    ----------
    images : iterable of Image
        Mosaics or exposures.
    bright : iterable of str
        Names of stars.

    Returns
    -------
    set of str
        Their names, as in `config.star`.

    Raises
    ------
    ValueError
        If there is no image of one of them.
    """
    names, targets = {config.star(name).name for name in bright}, {image.star for image in images}
    if names - targets:
        raise ValueError(
            f"bright stars must be targets of the images, but {', '.join(sorted(names - targets))} is not of "
            f"{', '.join(sorted(targets))}"
        )
    return names


def _average(band, model, stars):
    if not stars:
        log.warning("apertures of %s are those of the model PSF: no star was joined to it", band)
        return Growth(model, stars, replace(encircled.corrections(model), number=0))
    return Growth(model, stars, encircled.average([encircled.corrections(one) for one in stars.values()]))


def _join(path, psf):
    """Join a star to its model, by the name of its image; none where that cannot be."""
    with datamodels.open(path) as model:
        band = config.band(model.meta.instrument.filter)
        try:
            seen = star_images.read(model)
            pixel = star_images.native_pixel(model, seen)
            center = _find(seen, band.fwhm / pixel, model.meta.target)
            curve = encircled.join(seen.image, center, psf, band.join, mask=seen.mask, pixel=pixel)
        except ValueError as error:
            log.warning("%s: its growth curve is not used: %s", path, error)
            return {}
    return {path.name: curve}


def _find(seen, fwhm, target):
    if target.ra is None or target.dec is None:
        raise ValueError(f"{seen.name} does not say where its target is")
    aperture = Aperture(_RADIUS * fwhm, (_RING[0] * fwhm, _RING[1] * fwhm), fwhm)
    expected = seen.pixel_of(target.ra, target.dec)
    within = _WITHIN / seen.pixel_scale
    start = photometry.find(seen.image, expected, fwhm=fwhm, within=within, mask=seen.mask)
    star = photometry.measure(seen.image, seen.err, start, aperture, mask=seen.mask)
    return star.x, star.y
