"""Encircled energy: how much of the light of a star an aperture holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from photutils.profiles import CurveOfGrowth
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import uniform_filter

from miri_steps import detector
from miri_steps.fluxcal import symmetry

__all__ = [
    "LEVELS",
    "Corrections",
    "EncircledEnergy",
    "average",
    "corrections",
    "join",
    "read_psf",
]

#: Parts of the light that apertures are made for; the background is measured between the last two.
LEVELS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85)

# Radii of a growth curve, from a fraction of a pixel on, evenly spaced in the logarithm.
_SMALLEST, _NUMBER = 0.3, 160
# Where an observed star is compared with the model beyond the join, in units of its radius.
_ANNULUS = 1.0, 1.4
# So much of what is summed may be masked.
_MOST_MASKED = 0.05


@dataclass(frozen=True)
class EncircledEnergy:
    """
    A growth curve.

    Parameters
    ----------
    radius : ndarray
        Radii, increasing, shape (n,) [native pixel].
    energy : ndarray
        Part of all light within them, shape (n,).
    """

    radius: np.ndarray
    energy: np.ndarray

    def within(self, radius: np.ndarray | float) -> np.ndarray:
        """Part of the light within a radius [native pixel], no farther than the curve goes."""
        x, y = np.concatenate([[0.0], self.radius]), np.concatenate([[0.0], self.energy])
        return PchipInterpolator(x, y, extrapolate=False)(radius)

    def radius_of(self, level: np.ndarray | float) -> np.ndarray:
        """
        Find the radius that holds a part of the light.

        Parameters
        ----------
        level : ndarray or float
            The part.

        Returns
        -------
        ndarray
            The radius [native pixel].

        Raises
        ------
        ValueError
            If the curve does not reach that far.
        """
        # Noise may take light away again: only what is above all before is a step of the curve.
        rising = np.diff(np.maximum.accumulate(np.concatenate([[0.0], self.energy]))) > 0
        y = np.concatenate([[0.0], self.energy[rising]])
        x = np.concatenate([[0.0], self.radius[rising]])
        if np.min(level) <= 0 or np.max(level) > y[-1]:
            raise ValueError(
                f"level must be between 0 and {y[-1]:.4f}, the end of the growth curve, got {level}"
            )
        return PchipInterpolator(y, x)(level)


def read_psf(path: str | Path, *, extension: int | str = 0) -> EncircledEnergy:
    """
    Read the growth curve of a model PSF, as pixels of the detector see it.

    Parameters
    ----------
    path : str or Path
        FITS image of stpsf (webbpsf) or of anything else that is centred, with PIXELSCL [arcsec per sample]
        and, unless it is sampled as the detector, OVERSAMP (or DET_SAMP). The light of the whole PSF, out to
        infinity, is 1: coronagraphs are normalised at the exit pupil.
    extension : int or str, optional
        Where the image is.

    Returns
    -------
    EncircledEnergy
        The curve, in native pixels of `detector.PIXEL_SCALE`.

    Raises
    ------
    ValueError
        If a keyword or the image is missing, or the PSF is not normalised.
    """
    with fits.open(path) as hdus:
        header, image = hdus[extension].header, hdus[extension].data
    if image is None or "PIXELSCL" not in header:
        raise ValueError(f"{path} must hold an image with PIXELSCL in extension {extension}")
    return psf_curve(np.asarray(image, float), header["PIXELSCL"])


def psf_curve(image: np.ndarray, sampling: float) -> EncircledEnergy:
    """
    Make the growth curve of a model PSF.

    Parameters
    ----------
    image : ndarray
        PSF in its middle, shape (ny, nx); all its light, to infinity, is 1.
    sampling : float
        Side of a sample [arcsec].

    Returns
    -------
    EncircledEnergy
        The curve.

    Raises
    ------
    ValueError
        If the light in the image is not between 0.3 and 1.
    """
    total = float(image.sum())
    if not 0.3 < total < 1.001:
        raise ValueError(
            f"the light of a model PSF must be 1 out to infinity, but {total:.4g} is in the image"
        )
    samples = detector.PIXEL_SCALE / sampling
    # A pixel of the detector collects light over its area, and a sum over parts of pixels takes this for
    # evenly spread: on the average over all places on a pixel both blur alike.
    seen = _boxcar(_boxcar(image, samples), samples)
    ny, nx = image.shape
    radii = np.geomspace(_SMALLEST, (min(ny, nx) / 2 - 1) / samples, _NUMBER)
    return EncircledEnergy(radii, _growth(seen, ((nx - 1) / 2, (ny - 1) / 2), radii * samples))


def _boxcar(image, samples):
    """Average over the square of a pixel, whose side need not be a whole number of samples."""
    low, part = int(samples), samples - int(samples)
    if low < 1 or (low == 1 and part < 0.5):
        return image
    small, large = (uniform_filter(image, size, mode="constant") for size in _odd_sizes(samples))
    first, second = _odd_sizes(samples)
    # The variance of a box goes with its size squared: so does what the mixture blurs.
    share = (samples**2 - first**2) / (second**2 - first**2)
    return (1 - share) * small + share * large


def _odd_sizes(samples):
    first = max(1, 2 * int((samples - 1) // 2) + 1)
    return first, first + 2


def _growth(image, center, radii, mask=None):
    return np.asarray(CurveOfGrowth(image, center, radii, mask=mask).profile, float)


def join(
    image: np.ndarray,
    center: tuple[float, float],
    model: EncircledEnergy,
    radius: float,
    *,
    mask: np.ndarray | None = None,
    pixel_scale: float = detector.PIXEL_SCALE,
) -> EncircledEnergy:
    """
    Measure the growth curve of a star, and go on with that of a model.

    Within ``radius`` the star says how its light is spread, beyond it the model. The star's background and
    all of its light, N, follow from two sums of the image, that within ``radius`` and that in a ring beyond
    it:

        F = N E(radius) + b A,    F_ring = N [E(r2) - E(r1)] + b A_ring

    so that the wings in the ring are not taken for background.

    Parameters
    ----------
    image : ndarray
        A bright star, shape (ny, nx), background included.
    center : tuple of float
        Where it is (x, y) [pixel].
    model : EncircledEnergy
        Of the model PSF.
    radius : float
        Where they are joined [native pixel].
    mask : ndarray, optional
        True where pixels must not be used. They are taken from across the centre: without aberrations a PSF
        is symmetric about it.
    pixel_scale : float, optional
        Side of a pixel of the image [arcsec].

    Returns
    -------
    EncircledEnergy
        The joined curve.

    Raises
    ------
    ValueError
        If the image does not hold the ring around the star, too much of it is masked, or the model does not
        reach so far.
    """
    native = detector.PIXEL_SCALE / pixel_scale
    ring = np.array(_ANNULUS) * radius
    _check_reach(image.shape, center, ring[1] * native, model.radius[-1] - ring[1])
    radii = np.geomspace(_SMALLEST, radius, _NUMBER)
    edges = np.concatenate([radii, [ring[1]]])
    whole = _mirror(np.asarray(image, float), mask, center, ring[1] * native)
    sums = _growth(whole, center, edges * native)
    area = np.pi * (edges * native) ** 2
    inside, outside = float(model.within(radius)), float(model.within(ring[1]) - model.within(radius))
    terms = np.array([[inside, area[-2]], [outside, area[-1] - area[-2]]])
    light, background = np.linalg.solve(terms, [sums[-2], sums[-1] - sums[-2]])
    beyond = model.radius > radius
    return EncircledEnergy(
        radius=np.concatenate([radii, model.radius[beyond]]),
        energy=np.concatenate([(sums[:-1] - background * area[:-1]) / light, model.energy[beyond]]),
    )


def _mirror(image, mask, center, reach):
    """Fill masked pixels from across the centre."""
    bad = ~np.isfinite(image) if mask is None else mask | ~np.isfinite(image)
    filled, holes, lost = symmetry.fill(image, bad, center, reach)
    if holes > _MOST_MASKED * np.pi * reach**2 or lost:
        raise ValueError(
            f"around the star at most {100 * _MOST_MASKED:.0f} % of the pixels may be masked, and none "
            f"across from another, but {holes} are, {lost} of them so"
        )
    # Beyond the ring nothing is summed.
    return np.where(np.isfinite(filled), filled, 0.0)


def _check_reach(shape, center, reach, left):
    edges = center[0], center[1], shape[1] - 1 - center[0], shape[0] - 1 - center[1]
    if min(edges) < reach:
        raise ValueError(
            f"the star must be {reach:.1f} pixels from the edges of the image, but {min(edges):.1f} are left"
        )
    if left < 0:
        raise ValueError(f"the model PSF must reach {-left:.1f} native pixels farther")


@dataclass(frozen=True)
class Corrections:
    """
    Apertures of a filter, and what brings the light in them to all light.

    Parameters
    ----------
    level : ndarray
        Part of the light in each aperture, shape (7,).
    radius : ndarray
        Its radius [native pixel].
    apcorr : ndarray
        Aperture correction for light above the background of the ring.
    sky : tuple of float
        Inner and outer radius of that ring [native pixel].
    radius_scatter, apcorr_scatter : ndarray
        Standard deviations over data sets, 0 for one.
    sky_scatter : tuple of float
        Those of the ring's radii.
    number : int
        Number of data sets.
    """

    level: np.ndarray
    radius: np.ndarray
    apcorr: np.ndarray
    sky: tuple[float, float]
    radius_scatter: np.ndarray
    apcorr_scatter: np.ndarray
    sky_scatter: tuple[float, float]
    number: int


def corrections(curve: EncircledEnergy) -> Corrections:
    """
    Turn a growth curve into aperture corrections.

    The ring between the radii of 0.80 and 0.85 holds light of the star, which is subtracted with the
    background:

        apcorr = 1 / (L - b pi r_L^2),    b = 0.05 / (pi (r_85^2 - r_80^2))

    Parameters
    ----------
    curve : EncircledEnergy
        Growth curve of the filter.

    Returns
    -------
    Corrections
        For all of `LEVELS` but the last.

    References
    ----------
    Gordon et al. 2025, AJ 169, 6 (doi:10.3847/1538-3881/ad8cd4).
    """
    level = np.array(LEVELS)
    radius = curve.radius_of(level)
    in_ring = (level[-1] - level[-2]) / (radius[-1] ** 2 - radius[-2] ** 2)
    none = np.zeros(len(level) - 1)
    return Corrections(
        level=level[:-1],
        radius=radius[:-1],
        apcorr=1 / (level[:-1] - in_ring * radius[:-1] ** 2),
        sky=(float(radius[-2]), float(radius[-1])),
        radius_scatter=none,
        apcorr_scatter=none,
        sky_scatter=(0.0, 0.0),
        number=1,
    )


def average(several: Sequence[Corrections]) -> Corrections:
    """
    Average the corrections of several data sets of a filter.

    Parameters
    ----------
    several : sequence of Corrections
        One or more.

    Returns
    -------
    Corrections
        Means, and standard deviations of single data sets about them.

    Raises
    ------
    ValueError
        If there is none.
    """
    if not several:
        raise ValueError("there must be at least one data set to average, got none")
    radius, apcorr, sky = (
        np.array([getattr(one, name) for one in several]) for name in ("radius", "apcorr", "sky")
    )
    spread = [_scatter(values) for values in (radius, apcorr, sky)]
    return Corrections(
        level=several[0].level,
        radius=radius.mean(axis=0),
        apcorr=apcorr.mean(axis=0),
        sky=tuple(sky.mean(axis=0).tolist()),
        radius_scatter=spread[0],
        apcorr_scatter=spread[1],
        sky_scatter=tuple(spread[2].tolist()),
        number=len(several),
    )


def _scatter(values):
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
