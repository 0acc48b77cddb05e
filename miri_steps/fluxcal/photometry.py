"""Aperture photometry of one star in one image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from astropy.stats import SigmaClip, sigma_clipped_stats
from photutils.aperture import ApertureStats, CircularAnnulus, CircularAperture
from photutils.centroids import centroid_2dg
from scipy import ndimage

from miri_steps.fluxcal import symmetry

__all__ = ["Aperture", "Measurement", "find", "measure"]

_SIGMA_TO_FWHM = 2.3548
# What is looked for must stand out of the noise of the smoothed image by this [standard deviation].
_DETECTED = 7.0
# It is compared with an average over so many times its width.
_WIDER = 3.0
# What is looked at reaches so far beyond the circle searched [FWHM]: the wider average needs 5.1.
_SURROUNDINGS = 10.0
# From anywhere on a pixel its middle is no farther than this [pixel].
_HALF_DIAGONAL = 0.7072
# Standard deviation of normal values in units of their median absolute deviation.
_NORMAL = 1.4826
# A centroid is that of a square of this side about it [FWHM], at least so many pixels.
_BOX, _LEAST_BOX = 2.5, 5
# The square stays where the centroid is so near its middle [pixel]; it has failed after so many rounds.
_BETWEEN, _ROUNDS = 0.6, 50
# So many masked pixels in an aperture may be filled, as a part of it, but none so near the middle
# [FWHM].
_MOST_MASKED, _CORE = 0.05, 1.0
# So much of the ring must be seen.
_LEAST_RING = 0.5
# Its noise is told from at least so many of its pixels that are seen on both sides.
_LEAST_ACROSS = 20
# Around a star so much is looked at [outer radius of the ring], and what its centroid may travel.
_REACH = 2.0


@dataclass(frozen=True)
class Aperture:
    """
    Where light and background are measured.

    Parameters
    ----------
    radius : float
        Of the aperture [pixel of the image].
    sky : tuple of float
        Inner and outer radius of the ring for the background [pixel of the image].
    fwhm : float
        Width of a star at half maximum [pixel of the image].
    """

    radius: float
    sky: tuple[float, float]
    fwhm: float

    def __post_init__(self) -> None:
        """Refuse what is not in this order."""
        if not 0 < self.radius <= self.sky[0] < self.sky[1] or self.fwhm <= 0:
            raise ValueError(
                "radius, inner and outer radius of the background must be above 0 and in this order, got "
                f"{self.radius}, {self.sky[0]}, {self.sky[1]}, and fwhm above 0, got {self.fwhm}"
            )


@dataclass(frozen=True)
class Measurement:
    """
    The light of a star.

    Parameters
    ----------
    x, y : float
        Its centroid [pixel of the image, 0 in the middle of the first].
    light, light_error : float
        Sum in the aperture above the background, and its standard deviation [unit of the image].
    total : float
        Sum in the aperture [unit of the image].
    background, background_error : float
        Of a pixel, and its standard deviation [unit of the image].
    background_scatter : float
        Noise of a pixel in the ring, a standard deviation without the structure of the star's PSF there
        [unit of the image].
    peak : float
        Brightest pixel in the aperture [unit of the image].
    area : float
        Of the aperture [pixel].
    interpolated : int
        Number of masked pixels in the aperture that were interpolated.
    """

    x: float
    y: float
    light: float
    light_error: float
    total: float
    background: float
    background_error: float
    background_scatter: float
    peak: float
    area: float
    interpolated: int


def find(
    image: np.ndarray,
    expected: tuple[float, float],
    *,
    fwhm: float,
    within: float,
    mask: np.ndarray | None = None,
) -> tuple[float, float]:
    """
    Find the brightest star about an expected position.

    The image is smoothed to the width of a star, less what is smooth on three times that width, so that
    neither a hot pixel nor noise nor emission is taken for one. The noise is that of a square about it, which
    reaches 10 ``fwhm`` beyond the circle: the rest of a mosaic is not looked at.

    Parameters
    ----------
    image : ndarray
        Shape (ny, nx).
    expected : tuple of float
        Where it should be (x, y) [pixel].
    fwhm : float
        Width of a star at half maximum [pixel].
    within : float
        How far from there it may be [pixel]; that pixel itself is always looked at.
    mask : ndarray, optional
        True where pixels must not be used.

    Returns
    -------
    tuple of float
        Its brightest pixel (x, y).

    Raises
    ------
    ValueError
        If that circle lies outside the image, or nothing stands out.
    """
    box = _square(image.shape, expected, within + _SURROUNDINGS * fwhm)
    here, bad = _cut_out(image, mask, box)
    y, x = np.ogrid[box]
    distance = np.hypot(x - expected[0], y - expected[1])
    usable = (distance <= max(within, _HALF_DIAGONAL)) & ~bad
    where = f"within {within:.1f} pixels of ({expected[0]:.1f}, {expected[1]:.1f})"
    if not usable.any():
        raise ValueError(
            f"there is no usable pixel {where}; the image has {image.shape[1]} x {image.shape[0]}"
        )
    # What a star has more than its surroundings: emission is smooth on this scale.
    excess = _smooth(here, bad, fwhm / _SIGMA_TO_FWHM) - _smooth(here, bad, _WIDER * fwhm / _SIGMA_TO_FWHM)
    row, column = np.unravel_index(np.argmax(np.where(usable, excess, -np.inf)), here.shape)
    noise = _NORMAL * float(np.median(np.abs(excess[~bad])))
    if not excess[row, column] > _DETECTED * noise:
        raise ValueError(
            f"there is no star {where}: the brightest spot must be more than {_DETECTED:.0f} sigma above its "
            f"surroundings, with sigma {noise:.3g}, got {excess[row, column]:.3g}"
        )
    return float(column + box[1].start), float(row + box[0].start)


def measure(
    image: np.ndarray,
    err: np.ndarray,
    start: tuple[float, float],
    aperture: Aperture,
    *,
    mask: np.ndarray | None = None,
    forced: bool = False,
) -> Measurement:
    """
    Measure the light of a star.

    The centroid is that of a Gaussian fitted in a small square, which moves with it until it stays. The
    background is the clipped mean of the ring, whose clipping at 3 sigma leaves it unbiased where the ring is
    free of sources. The error counts all noise of the pixels once, by their ``err``, and that of the
    background's mean:

        error^2 = sum err^2 + (area sigma_ring)^2 / n_ring

    The ring of a bright star is full of the structure of its PSF. That is much the same across the centre,
    and noise is not: sigma_ring is the clipped standard deviation of the differences across it, over the
    square root of the number of pixels whose noise is in them. It is not more than the scatter of the ring
    itself, for what is not symmetric counts twice in differences, and not less than ``err`` says, which is
    all there is where fewer than 20 pixels of the ring are seen on both sides. It fails for bright stars
    where pixels are too wide for interpolation, in F560W and less in F770W: errors are too large.

    Masked pixels in the aperture, few of them and none near the middle, are taken from across the centre. In
    a drizzled image neighbours share their noise, and errors of sums are larger than these. Of a large image
    only a square about the star is looked at.

    Parameters
    ----------
    image, err : ndarray
        Image and its standard deviation, shape (ny, nx).
    start : tuple of float
        Where the star is about (x, y) [pixel].
    aperture : Aperture
        Where light and background are measured.
    mask : ndarray, optional
        True where pixels must not be used; those that are not finite are not used either.
    forced : bool, optional
        Whether the place is known, and no centroid is sought.

    Returns
    -------
    Measurement
        Position and light.

    Raises
    ------
    ValueError
        If the aperture leaves the image, the core is masked (as saturated stars are), too much of the
        aperture or the ring is, or the centroid is lost.
    """
    reach = _REACH * aperture.sky[1] + 3 * _half_box(aperture.fwhm)
    box = _square(image.shape, start, reach)
    here, bad = _cut_out(image, mask, box)
    left, low = box[1].start, box[0].start
    try:
        center = start[0] - left, start[1] - low
        if bad.all():
            raise ValueError("no pixel about it can be used")
        if not forced:
            _, middle, _ = sigma_clipped_stats(here, mask=bad, sigma=3.0, maxiters=10)
            center = _centroid(here - middle, bad, center, aperture.fwhm)
        found = _measure(here, err[box].astype(float), bad, center, aperture)
    except ValueError as error:
        raise ValueError(
            f"the star at ({start[0]:.1f}, {start[1]:.1f}) cannot be measured: {error}"
        ) from error
    return replace(found, x=found.x + left, y=found.y + low)


def _square(shape, center, half):
    """Name rows and columns of a square, as far as the image goes."""
    if not np.isfinite(center).all():
        raise ValueError(f"the position of a star must be finite, got {center[0]}, {center[1]}")
    ranges = (
        np.clip([np.floor(c - half), np.ceil(c + half) + 1], 0, n)
        for c, n in zip(center[::-1], shape, strict=True)
    )
    return tuple(slice(int(first), int(end)) for first, end in ranges)


def _cut_out(image, mask, box):
    """Copy a part of an image, and say what must not be used of it."""
    here = image[box].astype(float)
    bad = ~np.isfinite(here)
    return here, bad if mask is None else bad | mask[box]


def _measure(image, err, bad, center, aperture):
    """Measure about a centre."""
    filled, filled_err, number = _fill(image, err, bad, center, aperture)
    inside = CircularAperture(center, aperture.radius)
    stats = ApertureStats(filled, inside, error=filled_err)
    background, scatter, pixels = _background(image, err, bad, center, aperture)
    error = scatter / pixels**0.5
    area = float(inside.area)
    return Measurement(
        x=center[0],
        y=center[1],
        light=float(stats.sum) - background * area,
        light_error=float(np.hypot(stats.sum_err, area * error)),
        total=float(stats.sum),
        background=background,
        background_error=error,
        background_scatter=scatter,
        peak=float(stats.max),
        area=area,
        interpolated=number,
    )


def _smooth(image, bad, width):
    """Average with a Gaussian, over what is seen."""
    light, seen = (ndimage.gaussian_filter(plane, width) for plane in (np.where(bad, 0.0, image), 1.0 - bad))
    return np.divide(light, seen, out=np.zeros(image.shape), where=seen > 0)


def _half_box(fwhm):
    return max(_LEAST_BOX, 2 * int(_BOX * fwhm / 2) + 1) // 2


def _centroid(image, bad, start, fwhm):
    """Fit a Gaussian in a square that follows it, until it stays."""
    half = _half_box(fwhm)
    middle = np.rint(start).astype(int)
    for _ in range(_ROUNDS):
        left, low = middle - half
        box = slice(low, low + 2 * half + 1), slice(left, left + 2 * half + 1)
        if min(left, low) < 0 or box[0].stop > image.shape[0] or box[1].stop > image.shape[1]:
            raise ValueError("it is at the edge of the image")
        _check_core(bad, *middle, fwhm)
        found = centroid_2dg(np.where(bad[box], 0.0, image[box]), mask=bad[box]) + [left, low]
        if not np.isfinite(found).all() or np.hypot(*(found - start)) > 2 * half:
            break
        # A star between two pixels must not send the square to and fro.
        far = np.abs(found - middle) > _BETWEEN
        if not far.any():
            return float(found[0]), float(found[1])
        middle = np.where(far, np.rint(found), middle).astype(int)
    raise ValueError("its centroid does not stay in one place")


def _check_core(bad, x, y, fwhm):
    rows, columns = np.indices(bad.shape)
    core = bad & (np.hypot(columns - x, rows - y) <= _CORE * fwhm)
    if core.any():
        raise ValueError(f"{int(core.sum())} pixels in its core are masked: is it saturated?")


def _fill(image, err, bad, center, aperture):
    """Take the few masked pixels of an aperture from across its centre."""
    x, y = center
    ny, nx = image.shape
    if min(x, y, nx - 1 - x, ny - 1 - y) < aperture.radius:
        raise ValueError(f"its aperture of {aperture.radius:.1f} pixels leaves the image")
    whole, number, lost = symmetry.fill(image, bad, center, aperture.radius)
    if not number:
        return image, err, 0
    _check_core(bad, x, y, aperture.fwhm)
    if lost or number > max(1.0, _MOST_MASKED * np.pi * aperture.radius**2):
        raise ValueError(
            f"at most {100 * _MOST_MASKED:.0f} % of its aperture may be masked, and none across from "
            f"another, but {number} of its pixels are"
        )
    return whole, symmetry.fill(err, bad, center, aperture.radius)[0], number


def _background(image, err, bad, center, aperture):
    """Mean of the ring, noise of a pixel there, and number of pixels."""
    ring = CircularAnnulus(center, *aperture.sky)
    # Each pixel counts by what the ring has of it: near a star whole pixels more or less make a difference.
    weight = ring.to_mask(method="exact").to_image(image.shape)
    weight = np.zeros(image.shape) if weight is None else np.where(bad, 0.0, weight)
    if weight.sum() < _LEAST_RING * ring.area:
        raise ValueError(
            f"at least {100 * _LEAST_RING:.0f} % of the ring of {aperture.sky[0]:.1f} to "
            f"{aperture.sky[1]:.1f} pixels must be seen, but {100 * weight.sum() / ring.area:.0f} % is"
        )
    used = weight > 0
    values, weight = image[used], weight[used]
    kept = ~np.ma.getmaskarray(_clip(values))
    values, weight, known = values[kept], weight[kept], err[used][kept]
    mean = np.average(values, weights=weight)
    scatter = np.sqrt(np.average((values - mean) ** 2, weights=weight))
    # What is masked must not spoil what is interpolated beside it.
    whole, *_ = symmetry.fill(np.where(bad, mean, image), bad, center, aperture.sky[1])
    noise = min(scatter, _noise(whole, used & _seen_across(bad, center), center))
    noise = max(noise, np.sqrt(np.mean(known**2)))
    return float(mean), float(noise), float(weight.sum() ** 2 / (weight**2).sum())


def _clip(values):
    return SigmaClip(sigma=3.0, maxiters=10)(values)


def _seen_across(bad, center):
    """Say where nothing that is masked takes part in what is across."""
    return symmetry.across(bad, center, order=1) == 0


def _noise(image, pixels, center):
    """Tell the noise of a pixel from differences across the centre; 0 where there are too few."""
    if pixels.sum() < _LEAST_ACROSS:
        return 0.0
    # Interpolation averages: what is across has only a part of the variance of a pixel.
    one = np.zeros(image.shape)
    one[tuple(np.rint(center[::-1]).astype(int))] = 1.0
    part = np.nansum(symmetry.across(one, center) ** 2)
    return np.std(_clip((image - symmetry.across(image, center))[pixels])) / np.sqrt(1 + part)
