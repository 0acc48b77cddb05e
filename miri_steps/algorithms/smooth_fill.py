"""Smooth values for the pixels of an image of which nothing is known."""

from dataclasses import dataclass

import numpy as np
from numpy.polynomial import legendre
from scipy import ndimage

__all__ = ["Filled", "fill"]

# Gaussians are cut off at this many widths: 1 % of the weight lies beyond.
_TRUNCATE = 3.0

# Where less than this part of the weight of a Gaussian is on known pixels, wider ones say more: that is some
# 2.3 widths away from the edge of a large hole.
_LITTLE = 0.01
# Stripes are averaged over this width: many pixels, and farther than most holes reach [pixel].
_STRIPE = 64.0
# So wide a Gaussian sees no difference between pixels that are bundled in such numbers.
_BUNDLE = 8

# A polynomial of this order follows a glow under holes, if more than this part of the image is known: carried
# far beyond what is known it would be noise. It is fitted to means of squares, halved so many times.
_ORDER, _MOST, _HALVINGS = 4, 0.52, 3

# The image is halved until it is less than this many widths across: a Gaussian then reaches all of it.
_ACROSS = _TRUNCATE

# A slope is believed in a direction in which known pixels spread [standard deviation, size of the image] by a
# third of what they would if all were known; from a narrow strip it would be noise, carried far.
_SPREAD = 1 / 3 / np.sqrt(12)


@dataclass(frozen=True)
class Filled:
    """
    An image without holes.

    Parameters
    ----------
    value : ndarray
        The image with a smooth value where it was not known, shape (ny, nx).
    scatter : ndarray
        At the pixels that were not known, standard deviation of known pixels nearby about the smooth value; 0
        elsewhere. Same shape.
    """

    value: np.ndarray
    scatter: np.ndarray


def fill(image: np.ndarray, known: np.ndarray, *, scale: float = 4.0) -> Filled:
    r"""
    Give the pixels that are not known the smooth value of their surroundings.

    Think of a painter who restores a landscape with holes: first the slope of the whole with the broadest
    brush, then with finer and finer ones what the broader have left on the canvas around the holes. Each
    brush reaches as far into a hole as it is wide, so that the rim fits and the middle follows from afar.

    Parameters
    ----------
    image : ndarray
        Image, shape (ny, nx).
    known : ndarray of bool
        True on the pixels to trust, same shape. What is not finite is not known either.
    scale : float, optional
        Standard deviation of the narrowest Gaussian, at least 1 [pixel].

    Returns
    -------
    Filled
        The image without holes, and how far a pixel of it may be off; both NaN where not known if nothing is.

    Raises
    ------
    ValueError
        If a shape or `scale` is wrong.

    Notes
    -----
    From a plane through all known pixels on, and a polynomial of order 4 where they are more than half of the
    image, each width from the image's down to `scale` adds the
    mean of what is left, :math:`G * (w r) / (G * w + 0.01)`, with w 1 on known pixels and 0 elsewhere
    and r the residual of the wider ones (normalised convolution, Knutsson & Westin 1993,
    doi:10.1109/CVPR.1993.341081). Widths grow by factors of two, and the image is binned with them.
    Columns and rows of their own level are carried on through holes: the mean of what is left along each,
    with a Gaussian of 64 pixels.

    A constant is exact, and a plane is so to rounding wherever the holes are. A surface that curves is filled
    as by a soap film on the rim of the hole, off by up to r**2 / 4 times its Laplacian in the middle of a
    hole of radius r; by more at the edges of the image, where the rim is open, and in holes that take a large
    part of it. The scatter is that of single pixels about their surroundings, and knows nothing of this. It
    fails where structure in a hole does not show outside of it.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.full((40, 40), 3.0)
    >>> known = np.ones(image.shape, bool)
    >>> image[10:20, 15:30], known[10:20, 15:30] = np.nan, False
    >>> bool((fill(image, known).value == 3).all())
    True
    """
    _check(image, known, scale)
    image = np.asarray(image, dtype=np.result_type(image, np.float32))
    known = known & np.isfinite(image)
    if not known.any():
        nothing = np.full_like(image, np.nan)
        return Filled(nothing, nothing.copy())
    if known.all():
        return Filled(image.copy(), np.zeros_like(image))
    weight = known.astype(float)
    level = np.median(image[known]).astype(float)
    rest = np.where(known, image, level) - level
    plane = _plane(rest, known)
    plane += _curves(np.where(known, rest - plane, 0.0), known)
    rest = np.where(known, rest - plane, 0.0)
    smooth = _smooth(rest, weight, scale, carry=True)
    left = weight * (rest - smooth)
    # Columns and rows of the detector cross a hole, and their neighbours say nothing of them.
    smooth += _stripes(left, weight, 0) + _stripes(left, weight, 1)
    # Squares of twice the width: the standard deviation is known to a few percent.
    squares = _smooth(weight * (rest - smooth) ** 2, weight, scale, carry=False, first=1)
    # Rounding may leave less than nothing of zero.
    scatter = np.sqrt(np.maximum(squares, 0) / _left(scale))
    value = level + plane + smooth
    return Filled(
        np.where(known, image, value.astype(image.dtype)),
        np.where(known, 0, scatter.astype(image.dtype)),
    )


def _check(image, known, scale):
    if image.ndim != 2:
        raise ValueError(f"image must have the shape (ny, nx), got {image.shape}")
    if known.shape != image.shape:
        raise ValueError(f"known must have the shape of the image {image.shape}, got {known.shape}")
    if not scale >= 1:
        raise ValueError(f"scale must be at least 1 pixel, got {scale}")


def _plane(values, known):
    """Fit a plane to the known pixels, level in directions in which these say nothing of a slope."""
    size = max(values.shape)
    y, x = (axis / size for axis in np.nonzero(known))
    where, z = np.stack([y - y.mean(), x - x.mean()]), values[known]
    spread, directions = np.linalg.eigh(where @ where.T / len(z))
    slopes = directions.T @ (where @ (z - z.mean())) / len(z)
    slopes = np.divide(slopes, spread, out=np.zeros(2), where=spread > _SPREAD**2)
    gradient = directions @ slopes
    rows, columns = (np.arange(n) / size for n in values.shape)
    return (z.mean() + gradient[0] * (rows - y.mean()))[:, np.newaxis] + gradient[1] * (columns - x.mean())


def _curves(values, known):
    """Fit a polynomial to the known pixels, where these are most of the image; nothing elsewhere."""
    cells, weight = values, known.astype(float)
    for _ in range(_HALVINGS):
        cells, weight = _bin(cells), _bin(weight)
    if known.mean() <= _MOST or min(cells.shape) <= _ORDER:
        return np.zeros(values.shape)
    # Squares of 8 x 8 pixels: counted from the middle of the first one.
    size = 2**_HALVINGS
    axes = [(np.arange(n) + 0.5) * size - 0.5 for n in cells.shape]
    y, x = (2 * axis / (n - 1) - 1 for axis, n in zip(axes, values.shape, strict=True))
    degrees = [(a, b) for a in range(_ORDER + 1) for b in range(_ORDER + 1 - a)]
    tables = [legendre.legvander(axis, _ORDER) for axis in (y, x)]
    terms = np.stack([np.outer(tables[0][:, a], tables[1][:, b])[weight > 0] for a, b in degrees], axis=1)
    share = np.sqrt(weight[weight > 0])
    means = cells[weight > 0] / share
    coefficients = np.linalg.lstsq(terms * share[:, np.newaxis], means, rcond=None)[0]
    table = np.zeros((_ORDER + 1, _ORDER + 1))
    table[tuple(np.transpose(degrees))] = coefficients
    rows, columns = (np.linspace(-1, 1, n) for n in values.shape)
    return legendre.leggrid2d(rows, columns, table)


def _smooth(values, weight, scale, *, carry, first=0):
    """
    Smooth values with ever narrower Gaussians, from the width of the image down to that of a first layer.

    What the narrow ones do not reach is as the wide ones say. With `carry` it is what those leave at the
    known pixels that is smoothed, so that slopes go on into holes; without, means of positive values are
    positive.
    """
    layers = [(weight * values, weight)]
    while max(layers[-1][1].shape) > _ACROSS * scale:
        layers.append(tuple(_bin(plane) for plane in layers[-1]))
    last = len(layers) - 1
    smooth = np.zeros_like(layers[last][1])
    for number in range(last, -1, -1):
        total, weight = layers[number]
        if number < last:
            smooth = _expand(smooth, weight.shape)
        if number >= min(first, last):
            near = _blur(weight, scale)
            left = _blur(total - weight * smooth, scale) if carry else _blur(total, scale) - near * smooth
            # The widest reaches everything, and there is nothing before it.
            smooth += left / (near + _LITTLE if number < last else near)
    return smooth


def _blur(plane, scale):
    # Beyond the edges nothing is known.
    return ndimage.gaussian_filter(plane, scale, mode="constant", truncate=_TRUNCATE)


def _stripes(rest, weight, axis):
    """Average what is left along one axis, and carry it on through holes."""
    size = rest.shape[axis]
    total, near = (
        ndimage.gaussian_filter1d(
            _bundle(plane, axis), _STRIPE / _BUNDLE, axis=axis, mode="constant", truncate=_TRUNCATE
        )
        for plane in (rest, weight)
    )
    along = np.repeat(total / (near + _LITTLE * _BUNDLE), _BUNDLE, axis=axis)
    return np.take(along, np.arange(size), axis=axis)


def _bundle(plane, axis):
    """Add up pixels in bundles along one axis; those beyond an edge count as 0."""
    starts = np.arange(0, plane.shape[axis], _BUNDLE)
    return np.add.reduceat(plane, starts, axis=axis)


def _bin(plane):
    """Average squares of 2 x 2 pixels; those beyond an odd edge count as 0."""
    ny, nx = plane.shape
    even = np.pad(plane, ((0, ny % 2), (0, nx % 2)))
    return (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4


def _expand(plane, shape):
    """Interpolate between the centres of squares of 2 x 2 pixels, level at the edges."""
    for axis, size in enumerate(shape):
        plane = np.moveaxis(plane, axis, 0)
        wide = np.pad(plane, ((1, 1), (0, 0)), mode="edge")
        finer = np.empty((2 * len(plane), plane.shape[1]))
        finer[::2] = 0.75 * plane + 0.25 * wide[:-2]
        finer[1::2] = 0.75 * plane + 0.25 * wide[2:]
        plane = np.moveaxis(finer[:size], 0, axis)
    return np.ascontiguousarray(plane)


def _left(scale):
    """Find the part of the variance of white noise that is left when its own smooth is taken off."""
    x = np.arange(-int(_TRUNCATE * scale + 0.5), int(_TRUNCATE * scale + 0.5) + 1)
    kernel = np.exp(-0.5 * (x / scale) ** 2)
    kernel /= kernel.sum()
    return 1 - 2 * kernel.max() ** 2 + np.sum(kernel**2) ** 2
