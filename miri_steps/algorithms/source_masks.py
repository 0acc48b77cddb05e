"""Find all light that is not background, down to what no single pixel shows."""

import warnings

import numpy as np
from astropy.stats import gaussian_fwhm_to_sigma
from photutils.background import Background2D, MedianBackground
from photutils.segmentation import detect_sources
from photutils.utils.exceptions import NoDetectionsWarning
from scipy import ndimage

from miri_steps.algorithms import background_mesh, discs, sources

__all__ = ["bright_job", "find", "wide_parts"]

# Widths of the kernels that light is looked for with [FWHM of a star]: stars, their halos, fainter halos.
_SCALES = (0.7, 1.7, 4.2)
# Kernels before which the mesh is made: before the last one it would be the same again.
_MESHES = (0, 1)
# A mean over fewer pixels than this part of the kernel says too little.
_LEAST_WEIGHT = 0.1
# Kernels end at this many standard deviations.
_TRUNCATE = 3.0
# What is masked before there is any background is bright [standard deviations of a pixel].
_BRIGHT = 5.0
# As many values tell the level and the scatter of an image to a hundredth of the scatter.
_LEVEL_SAMPLES = 200_000
# Rounds in which the level of an image that is full of sources is found.
_LEVEL_ROUNDS = 20


def find(
    image: np.ndarray,
    noise: np.ndarray,
    *,
    fwhm: float,
    sigma: float,
    least_area: int,
    dilate: float = 0.7,
    box: int | None = None,
) -> np.ndarray:
    """
    Find the pixels that get light from sources, faint wings and halos included.

    Think of looking at a picture sharply, then through half-closed eyes: blurred, the noise is
    gone, and light shows that is fainter than the grain. The image is smoothed with three
    kernels, from narrower to wider than a star. What stands `sigma` times the scatter of the
    smoothed image out of its level is light; it is taken out before the next, wider look, and
    each find is grown by a part of the kernel's width, because light does not end where it sinks
    into the noise.

    Parameters
    ----------
    image : ndarray
        Image, shape (ny, nx), NaN where nothing is known.
    noise : ndarray
        Standard deviation of each pixel, same shape; only its changes over the image count.
    fwhm : float
        Width of a star at half maximum [pixel].
    sigma : float
        Limit [scatter of the smoothed image].
    least_area : int
        Connected pixels that a source has at least.
    dilate : float, optional
        How far a source reaches beyond what is seen of it [width of the kernel that saw it].
    box : int, optional
        Side of the boxes of a background mesh [pixel]. Not given, the whole image has one level,
        and emission of any size is found.

    Returns
    -------
    ndarray
        True on sources, shape (ny, nx).

    Notes
    -----
    The level and the scatter of a smoothed image are those of the lower part of its values, in which no
    source is: without `box`, emission on up to about 60 % of an image is found. Where it covers more, it
    is the level, and hardly anything is masked.

    At `sigma` 3 about 1.5 % of an image without any source is masked, most of it by the widest kernel, whose
    noise has few but large peaks; its mean moves by less than 0.004 standard deviations of a pixel. Larger
    `least_area` for wider kernels would leave less of that, and as much more of the real halos.
    """
    known = np.isfinite(image)
    mask = np.zeros(image.shape, bool)
    if not known.any():
        return mask
    # The level goes before the noise is evened out: where the noise changes, it would be left as a step.
    rest = np.where(known, image - _lower_part(image[known])[0], 0).astype(np.float32)
    relative, level = _relative(noise, known), np.float32(0)
    for number, scale in enumerate(_SCALES):
        free = known & ~mask
        if not free.any():
            break
        if box is not None and number in _MESHES:
            level = _mesh(rest, free, box)
        smooth, weight = _blur((rest - level) / relative, free, scale * fwhm * gaussian_fwhm_to_sigma)
        seen = free & (weight > _LEAST_WEIGHT)
        if not seen.any():
            continue
        middle, scatter = _lower_part(smooth[seen])
        found = _segments(smooth - middle, sigma * scatter, least_area, seen)
        mask |= discs.grow(found, dilate * scale * fwhm)
    return mask & known


def bright_job(job: tuple) -> np.ndarray:
    """
    Find what is plainly a source in one image of a series, whatever pattern the detector adds.

    Parameters
    ----------
    job : tuple
        Image and the standard deviation of its pixels, NaN where nothing is known, and the width of a
        star [pixel].

    Returns
    -------
    ndarray
        True on sources.
    """
    image, err, fwhm = job
    return sources.segment(image, err, fwhm=fwhm, sigma=_BRIGHT)


def wide_parts(mask: np.ndarray, least_width: float) -> np.ndarray:
    """
    Keep those connected parts of a mask that are wide somewhere.

    Parameters
    ----------
    mask : ndarray
        Shape (ny, nx).
    least_width : float
        Diameter of the largest disc that a part must hold [pixel].

    Returns
    -------
    ndarray
        The mask without its narrow parts.
    """
    if not mask.any():
        return mask.copy()
    labels, number = ndimage.label(mask, np.ones((3, 3), bool))
    # Pixels beyond the edge are no edge of a part.
    depth = ndimage.distance_transform_edt(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1]
    widest = ndimage.maximum(depth, labels, np.arange(number + 1))
    return (2 * widest >= least_width)[labels] & mask


def _relative(noise, known):
    """Tell how the noise changes over an image; 1 where it is not known."""
    usable = known & np.isfinite(noise) & (noise > 0)
    if not usable.any():
        return np.float32(1)
    return np.where(usable, noise / np.median(noise[usable]), 1).astype(np.float32)


def _mesh(image, free, box):
    sides = tuple(min(box, n) for n in image.shape)
    try:
        # A box with a tenth of its pixels is enough.
        mesh = Background2D(
            image, sides, mask=~free, exclude_percentile=90, bkg_estimator=MedianBackground(), filter_size=3
        )
    except ValueError:
        # No box has them: then one level must do.
        return np.float32(np.median(image[free]))
    return background_mesh.interpolate(mesh.background_mesh, sides, image.shape)


def _blur(image, free, width):
    """Average the free pixels around each pixel, and say what part of the kernel they fill."""
    weight, total = (
        ndimage.gaussian_filter(plane.astype(np.float32), width, mode="constant", truncate=_TRUNCATE)
        for plane in (free, np.where(free, image, 0))
    )
    return total / np.maximum(weight, np.float32(1e-6)), weight


def _lower_part(values):
    """Find the level and the scatter of the values that no source lifts."""
    if len(values) > _LEVEL_SAMPLES:
        # At random: a regular choice would see some of the columns of the detector, and others not.
        values = values[np.random.default_rng(0).integers(len(values), size=_LEVEL_SAMPLES)]
    # Sorted once: what is kept of them in each round is their beginning.
    values = np.sort(values)
    for _ in range(_LEVEL_ROUNDS):
        middle = _middle(values)
        below = values[: np.searchsorted(values, middle, side="right")]
        scatter = 1.4826 * _middle(middle - below)
        kept = values[: np.searchsorted(values, middle + 3 * scatter, side="right")]
        if len(kept) == len(values):
            break
        values = kept
    return middle, scatter


def _middle(ordered):
    """Take the median of values in order."""
    n = len(ordered)
    return np.mean(ordered[(n - 1) // 2 : n // 2 + 1])


def _segments(image, limit, least_area, seen):
    with warnings.catch_warnings():
        # An empty sky is nothing to be warned of.
        warnings.simplefilter("ignore", NoDetectionsWarning)
        found = detect_sources(np.where(seen, image, 0), limit, least_area, mask=~seen)
    return np.zeros(image.shape, bool) if found is None else found.data > 0
