"""What the detector sees: a scene through the telescope, before any noise."""

from __future__ import annotations

import numpy as np

from miri_steps import detector
from miri_steps.simulate import sphere, wcs
from miri_steps.simulate.diffraction import Psf
from miri_steps.simulate.pointing import Pointing
from miri_steps.simulate.scene import Scene

# The wings of a star are drawn as far out as they add this much to a pixel [MJy/sr].
_FAINTEST_WING = 1e-3
_MJY_SR_PER_MJY = 1e-9
_SR_PER_ARCSEC2 = sphere.ARCSEC**2


def emission(
    scene: Scene, pointing: Pointing, filter_name: str, subarray: str, inside: np.ndarray
) -> np.ndarray:
    """Look at the extended emission with every pixel.

    Parameters
    ----------
    scene : Scene
        The sky.
    pointing : Pointing
        Where the telescope really looks.
    filter_name, subarray : str
        Names as in FILTER and SUBARRAY.
    inside : ndarray of bool
        Pixels that see the sky.

    Returns
    -------
    ndarray
        Surface brightness [MJy/sr], zero outside.
    """
    vectors = wcs.pixel_vectors(filter_name, subarray, pointing.va_scale)[inside]
    turn = sphere.tangent_basis(scene.ra, scene.dec) @ wcs.attitude(pointing, subarray)
    depth, east, north = turn @ vectors.T
    fwhm = detector.FWHM[filter_name] * detector.PIXEL_SCALE
    image = np.zeros(inside.shape)
    image[inside] = scene.brightness(east / depth / sphere.ARCSEC, north / depth / sphere.ARCSEC, fwhm)
    return image


def stars(scene: Scene, pointing: Pointing, filter_name: str, subarray: str, psf: Psf) -> np.ndarray:
    """Put the stars on the detector.

    The flux of a star is the sum over its pixels of surface brightness times the pixel's own area, so that a
    mosaic conserves it although pixels differ in size by a few percent.

    Parameters
    ----------
    scene : Scene
        The sky.
    pointing : Pointing
        Where the telescope really looks.
    filter_name, subarray : str
        Names as in FILTER and SUBARRAY.
    psf : Psf
        Image of a star.

    Returns
    -------
    ndarray
        Surface brightness [MJy/sr].
    """
    window = detector.SUBARRAYS[subarray]
    areas = wcs.pixel_areas(filter_name)[window.slices] * _SR_PER_ARCSEC2
    flux_image = np.zeros(window.shape)
    table = scene.stars
    sky = sphere.unit_vectors(np.array(table["ra"]), np.array(table["dec"]))
    x, y = wcs.sky_to_pixels(sky, pointing, filter_name, subarray)
    mean_area = detector.PIXEL_SCALE**2 * _SR_PER_ARCSEC2
    for flux, x_star, y_star in zip(np.array(table["flux"]) * _MJY_SR_PER_MJY, x, y, strict=True):
        half_size = psf.radius(_FAINTEST_WING * mean_area / flux)
        _add_star(flux_image, flux, x_star, y_star, psf, half_size)
    return flux_image / areas


def _add_star(image: np.ndarray, flux: float, x: float, y: float, psf: Psf, half_size: int) -> None:
    ny, nx = image.shape
    column, row = round(x), round(y)
    if not (-half_size <= column < nx + half_size and -half_size <= row < ny + half_size):
        return
    stamp = psf.stamp(x - column, y - row, half_size)
    left, bottom = column - half_size, row - half_size
    into = slice(max(0, bottom), bottom + stamp.shape[0]), slice(max(0, left), left + stamp.shape[1])
    target = image[into]
    y0, x0 = into[0].start - bottom, into[1].start - left
    target += flux * stamp[y0 : y0 + target.shape[0], x0 : x0 + target.shape[1]]
