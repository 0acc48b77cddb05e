"""Encircled energy: how much of the light of a star an aperture holds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from photutils.profiles import CurveOfGrowth
from scipy import fft, ndimage
from scipy.interpolate import PchipInterpolator

from miri_steps import detector
from miri_steps.fluxcal import factors, neighbours, symmetry

__all__ = [
    "LEVELS",
    "Corrections",
    "EncircledEnergy",
    "Resampling",
    "average",
    "corrections",
    "join",
    "psf_curve",
    "read_psf",
]

#: Parts of the light that apertures are made for; the background is measured between the last two.
LEVELS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85)

# Radii of a growth curve, from a fraction of a pixel on, evenly spaced in the logarithm.
_SMALLEST, _NUMBER = 0.3, 160
# Samples in a native pixel: with fewer, what a PSF looks like depends on where its samples are.
_LEAST_SAMPLES = 1.5
# So well the size of samples must agree with their number in a pixel: some models have
# pixels of 0.1108 arcsec.
_ALIKE = 0.05
# No image holds all light of a telescope but for so much: a thousandth is 15 arcsec away and farther.
_ALL_LIGHT = 1e-4
# Where an observed star is compared with the model beyond the join, in units of its radius.
_ANNULUS = 1.0, 1.4
# A star is like its model if its radii of 70 and 85 % of the light, and its correction of 70 %, are so many
# times the model's. The telescope's (reference file 0014) are 0.95 to 1.14, 0.97 to 1.32 and 0.981 to 1.003
# times those of models without wavefront errors.
_RADIUS, _OUTER, _CORRECTION = (0.85, 1.3), (0.85, 1.4), (0.95, 1.05)
# So much of what is summed may be masked.
_MOST_MASKED = 0.05
# Data sets are compared by the radius of this part of the light, and left out beyond this limit [standard
# deviation].
_TYPICAL, _SIGMA = 0.7, 3.5


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


@dataclass(frozen=True)
class Resampling:
    """
    How a mosaic was drizzled.

    Parameters
    ----------
    pixfrac : float
        Side that pixels were shrunk to before they were dropped on the mosaic [native pixel].
    pixel_scale_ratio : float
        Side of the mosaic's pixels [native pixel].
    """

    pixfrac: float = 1.0
    pixel_scale_ratio: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what drizzling cannot do."""
        if not 0 < self.pixfrac <= 1:
            raise ValueError(f"pixfrac must be above 0 and at most 1, got {self.pixfrac}")
        if not 0 < self.pixel_scale_ratio < np.inf:
            raise ValueError(f"pixel_scale_ratio must be above 0, got {self.pixel_scale_ratio}")


def read_psf(
    path: str | Path, *, extension: int | str = 0, resampling: Resampling | None = None
) -> EncircledEnergy:
    """
    Read the growth curve of a model PSF, as pixels of exposures or of a mosaic see it.

    Parameters
    ----------
    path : str or Path
        FITS image of stpsf (webbpsf) or of anything else that is centred, with PIXELSCL [arcsec per sample].
        A native pixel has as many samples as OVERSAMP or DET_SAMP says, whichever agrees with PIXELSCL within
        5 %: models may have pixels of another size than the mean, and stars are measured in those of their
        image. Without such a keyword it is `detector.PIXEL_SCALE` wide. The light of the whole PSF, out to
        infinity, is 1. NORMALIZ, if there, says how that was reached: "first" or, as coronagraphs need it,
        whose stops lose light, "exit_pupil".
    extension : int or str, optional
        Where the image is.
    resampling : Resampling, optional
        Of the mosaics that the curve is for. Without it, it is for exposures.

    Returns
    -------
    EncircledEnergy
        The curve, in native pixels.

    Raises
    ------
    ValueError
        If the keyword or the image is missing, or the PSF is not normalised so.

    Warns
    -----
    UserWarning
        If all light is in the image: that outside was likely left out.
    """
    with fits.open(path) as hdus:
        header, image = hdus[extension].header, hdus[extension].data
    if image is None or "PIXELSCL" not in header:
        raise ValueError(f"{path} must hold an image with PIXELSCL in extension {extension}")
    _check_normalisation(path, header, float(image.sum()))
    sampling = detector.PIXEL_SCALE / _samples(header)
    return psf_curve(np.asarray(image, float), sampling, resampling)


def _samples(header):
    """Count samples along a native pixel; one keyword may be that of the pupil, or of before a rebinning."""
    expected = detector.PIXEL_SCALE / header["PIXELSCL"]
    told = [float(header[name]) for name in ("OVERSAMP", "DET_SAMP") if name in header]
    return next((number for number in told if abs(number / expected - 1) < _ALIKE), expected)


def _check_normalisation(path, header, total):
    """Refuse or doubt a PSF whose light outside the image was left out."""
    how = str(header.get("NORMALIZ", "")).strip().lower()
    if how == "last":
        raise ValueError(
            f"NORMALIZ of {path} must be 'first' or 'exit_pupil', got 'last': the light outside the image "
            "was left out"
        )
    if how == "first" and "CORONMSK" in header:
        raise ValueError(
            f"NORMALIZ of {path} must be 'exit_pupil', as {header['CORONMSK']} is a coronagraph, got 'first'"
        )
    if abs(total - 1) < _ALL_LIGHT:
        warnings.warn(
            f"all light of the PSF in {path} is in its image (sum {total:.6f}): was that outside left out of "
            "the normalisation?",
            stacklevel=3,
        )


def psf_curve(image: np.ndarray, sampling: float, resampling: Resampling | None = None) -> EncircledEnergy:
    """
    Make the growth curve of a model PSF.

    A pixel of the detector collects light over its area, and a sum over parts of pixels takes this for evenly
    spread: on the average over all places on a pixel both blur alike, by the square of a pixel. In a mosaic
    the pixel of the detector, shrunk by ``pixfrac``, is dropped on pixels of the mosaic, whose parts are
    summed:

        exposure:  PSF * box(1) * box(1)
        mosaic:    PSF * box(1) * box(pixfrac) * box(ratio) * box(ratio)

    Parameters
    ----------
    image : ndarray
        PSF in its middle, shape (ny, nx); all its light, to infinity, is 1.
    sampling : float
        Side of a sample [arcsec], with native pixels of `detector.PIXEL_SCALE`: at most two thirds of that.
    resampling : Resampling, optional
        Of the mosaics that the curve is for. Without it, it is for exposures.

    Returns
    -------
    EncircledEnergy
        The curve.

    Raises
    ------
    ValueError
        If the light in the image is not between 0.3 and 1, or the samples are too coarse.
    """
    total = float(image.sum())
    if not 0.3 < total < 1.001:
        raise ValueError(
            f"the light of a model PSF must be 1 out to infinity, but {total:.4g} is in the image"
        )
    samples = detector.PIXEL_SCALE / sampling
    if samples < _LEAST_SAMPLES:
        raise ValueError(
            f"a model PSF must have at least {_LEAST_SAMPLES} samples per native pixel, got {samples:.2f}"
        )
    boxes = [1.0, 1.0]
    if resampling is not None:
        boxes = [1.0, resampling.pixfrac, resampling.pixel_scale_ratio, resampling.pixel_scale_ratio]
    seen = _blur(image, samples * np.array(boxes))
    ny, nx = image.shape
    radii = np.geomspace(_SMALLEST, (min(ny, nx) / 2 - 1) / samples, _NUMBER)
    return EncircledEnergy(radii, _growth(seen, ((nx - 1) / 2, (ny - 1) / 2), radii * samples))


def _blur(image, sides):
    """Average over squares [sample], one after the other; in Fourier space any side is exact."""
    # The sums over parts of samples that follow blur by one more sample: so much less is left to do.
    *others, last = sides
    waves = fft.rfft2(image)
    for side in (*others, np.sqrt(max(last**2 - 1, 1e-4))):
        waves = ndimage.fourier_uniform(waves, side, n=image.shape[1])
    return fft.irfft2(waves, image.shape)


def _growth(image, center, radii, mask=None):
    return np.asarray(CurveOfGrowth(image, center, radii, mask=mask).profile, float)


def join(
    image: np.ndarray,
    center: tuple[float, float],
    model: EncircledEnergy,
    radius: float,
    *,
    mask: np.ndarray | None = None,
    pixel: float = 1.0,
) -> EncircledEnergy:
    """
    Measure the growth curve of a star, and go on with that of a model.

    Within ``radius`` the star says how its light is spread, beyond it the model. The star's background and
    all of its light, N, follow from two sums of the image, that within ``radius`` and that in a ring beyond
    it:

        F = N E(radius) + b A,    F_ring = N [E(r2) - E(r1)] + b A_ring

    so that the wings in the ring are not taken for background. Neighbours of the star are taken out first by
    `neighbours.remove`.

    A curve that differs from the model by more than telescopes do is refused. What spoils it less stays
    undetected; simulated, the correction of 70 % of the light was off by

    * 0.7 % (F560W) to 4.1 % (F2550W) for a neighbour of 3 % of the star's light at 2 FWHM, and 1.7 % for one
      of 9 % in F560W;
    * -3.1 to +0.8 % for two of 1 % across from each other at 4 or 6 FWHM (radius of 85 %: up to +35 %);
    * -2.3 to -1.8 % for a galaxy of 2 % at 3.5 FWHM that is 7 FWHM wide, up to -1.0 % at 2.5 FWHM and 3 FWHM
      wide;
    * -2.5 to +1.4 % for a background that bends, from the star to the join, by 3e-6 of its light per pixel;
    * up to 0.4 % where the noise of a pixel is 3e-5 of the star's light.

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
        is symmetric about it. Far from it, where that is masked too, those beside them tell.
    pixel : float, optional
        Side of a pixel of the image [native pixel].

    Returns
    -------
    EncircledEnergy
        The joined curve.

    Raises
    ------
    ValueError
        If the image does not hold the ring around the star, too much of it is masked, neighbours are too
        bright or too many, the model does not reach so far, or the curve is not like the model's: the radius
        of 70 % of the light is not 0.85 to 1.3 times, that of 85 % not 0.85 to 1.4 times, or the correction
        of 70 % not 0.95 to 1.05 times that of the model.
    """
    native = 1 / pixel
    ring = np.array(_ANNULUS) * radius
    _check_reach(image.shape, center, ring[1] * native, model.radius[-1] - ring[1])
    radii = np.geomspace(_SMALLEST, radius, _NUMBER)
    edges = np.concatenate([radii, [ring[1]]])
    scaled = EncircledEnergy(model.radius * native, model.energy)
    sums = _growth(*_clean(image, mask, center, scaled, ring[1] * native), edges * native)
    area = np.pi * (edges * native) ** 2
    inside, outside = float(model.within(radius)), float(model.within(ring[1]) - model.within(radius))
    terms = np.array([[inside, area[-2]], [outside, area[-1] - area[-2]]])
    light, background = np.linalg.solve(terms, [sums[-2], sums[-1] - sums[-2]])
    beyond = model.radius > radius
    curve = EncircledEnergy(
        radius=np.concatenate([radii, model.radius[beyond]]),
        energy=np.concatenate([(sums[:-1] - background * area[:-1]) / light, model.energy[beyond]]),
    )
    _check_alike(corrections(curve), corrections(model))
    return curve


def _check_alike(found, expected):
    """Refuse a star that differs from its model by more than telescopes do."""
    typical = LEVELS.index(_TYPICAL)
    for name, (low, high), ratio in (
        ("radius of 70 % of the light", _RADIUS, found.radius[typical] / expected.radius[typical]),
        ("radius of 85 % of the light", _OUTER, found.sky[1] / expected.sky[1]),
        ("correction of 70 % of the light", _CORRECTION, found.apcorr[typical] / expected.apcorr[typical]),
    ):
        if not low < ratio < high:
            raise ValueError(
                f"the star's {name} must be {low} to {high} times that of the model, got {ratio:.3f}: it may "
                "have neighbours or an uneven background"
            )


def _clean(image, mask, center, model, reach):
    """Cut a star out, without its neighbours and with masked pixels filled; the image, and its new centre."""
    box, center = _box(image.shape, center, reach + float(model.radius_of(LEVELS[-1])))
    image = np.asarray(image[box], float)
    bad = ~np.isfinite(image) if mask is None else mask[box] | ~np.isfinite(image)
    y, x = np.indices(image.shape)
    distance = np.hypot(x - center[0], y - center[1])
    _check_masked(bad[distance <= reach], reach, "masked")
    image, wings, spoilt = neighbours.remove(image, bad, center, model, reach)
    unusable = bad | spoilt
    lost = unusable & ~(symmetry.across(unusable, center, order=0) == 0)
    _check_masked(lost[distance <= reach], reach, "masked or beside a neighbour on both sides of it")
    core = float(model.radius_of(LEVELS[-1]))
    if lost[distance <= core].any():
        raise ValueError(
            f"within {core:.1f} pixels of the star none may be masked on both sides of its centre, but "
            f"{np.count_nonzero(lost[distance <= core])} are"
        )
    # Where both sides are spoilt the one is better that a neighbour is farther from.
    taken = unusable & (~lost | (symmetry.across(wings, center, order=0) < wings))
    return np.where(taken, symmetry.across(image, center), image), center


def _box(shape, center, size):
    """Cut what is within a distance of a place; the slices, and where it is in them."""
    low = np.maximum(np.floor(np.array(center) - size), 0).astype(int)
    high = np.ceil(np.array(center) + size).astype(int) + 1
    box = np.s_[low[1] : min(high[1], shape[0]), low[0] : min(high[0], shape[1])]
    return box, (center[0] - low[0], center[1] - low[1])


def _check_masked(bad, reach, how):
    if np.count_nonzero(bad) > _MOST_MASKED * np.pi * reach**2:
        raise ValueError(
            f"at most {100 * _MOST_MASKED:.0f} % of the pixels around the star may be {how}, but "
            f"{np.count_nonzero(bad)} of {np.pi * reach**2:.0f} are"
        )


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
        Standard deviations over data sets, NaN for one.
    sky_scatter : tuple of float
        Those of the ring's radii.
    number : int
        Number of data sets that were averaged.
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
    none = np.full(len(level) - 1, np.nan)
    return Corrections(
        level=level[:-1],
        radius=radius[:-1],
        apcorr=1 / (level[:-1] - in_ring * radius[:-1] ** 2),
        sky=(float(radius[-2]), float(radius[-1])),
        radius_scatter=none,
        apcorr_scatter=none,
        sky_scatter=(np.nan, np.nan),
        number=1,
    )


def average(several: Sequence[Corrections]) -> Corrections:
    """
    Average the corrections of several data sets of a filter.

    A data set is left out if its radius of 70 % is farther from the mean than 3.5 standard deviations, as
    `factors.average` clips: of three, one that is wrong cannot be told.

    Parameters
    ----------
    several : sequence of Corrections
        One or more.

    Returns
    -------
    Corrections
        Means, and standard deviations of single data sets about them, NaN for one; ``number`` counts those
        that were kept.

    Raises
    ------
    ValueError
        If there is none.
    """
    if not several:
        raise ValueError("there must be at least one data set to average, got none")
    usual = [one.radius[LEVELS.index(_TYPICAL)] for one in several]
    kept = factors.average(usual, range(len(several)), sigma=_SIGMA).kept
    several = [one for one, keep in zip(several, kept, strict=True) if keep]
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
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.full(values.shape[1], np.nan)
