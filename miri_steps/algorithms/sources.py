"""Find the pixels that sources cover."""

import warnings

import numpy as np
from astropy.stats import gaussian_fwhm_to_sigma
from photutils.background import Background2D, MedianBackground
from photutils.segmentation import detect_sources
from photutils.utils.exceptions import NoDetectionsWarning
from scipy import ndimage

from miri_steps.algorithms import background_mesh, location, neighbours

__all__ = ["grow_by_width", "segment", "with_margin"]

# Side of a box of the background: wider than any star [FWHM], and not too small for statistics [pixel].
_BOX, _LEAST_BOX = 12, 64
# Smoothing that joins the pixels of a source and does not spill over its edges [FWHM].
_SMOOTHING = 0.5
# A source covers at least half of a star's area above half maximum, and more than a pair of pixels.
_AREA, _LEAST_AREA = 0.5, 3


def segment(data: np.ndarray, err: np.ndarray, *, fwhm: float, sigma: float) -> np.ndarray:
    """
    Find the pixels that sources cover.

    The background is a mesh of medians. What is left is smoothed with half a star's width and cut at
    `sigma` times the noise of a pixel: its error, or the roughness of the background, whichever is
    larger. What is fainter than a pixel's noise cannot change what one says of the pixel.

    Parameters
    ----------
    data : ndarray
        Image, shape (ny, nx), NaN where a pixel must not be used. Hot pixels must have been taken
        out: smoothing makes stars of them.
    err : ndarray
        Standard deviation of each pixel, same shape and unit.
    fwhm : float
        Width of a star at half maximum [pixel].
    sigma : float
        Limit of the smoothed light [standard deviations of a pixel].

    Returns
    -------
    ndarray
        True on sources, holes in them included, shape (ny, nx).

    Notes
    -----
    Emission smoother than the mesh (12 FWHM, at least 64 pixels) belongs to the background.
    """
    unknown = ~np.isfinite(data)
    if unknown.all():
        return np.zeros(data.shape, bool)
    level, rough = _background(data, unknown, fwhm)
    width = _SMOOTHING * fwhm * gaussian_fwhm_to_sigma
    smooth = ndimage.gaussian_filter(np.where(unknown, 0, data - level), width)
    noise = np.fmax(err, rough)
    area = max(_LEAST_AREA, round(_AREA * fwhm**2))
    with warnings.catch_warnings():
        # An empty sky is nothing to be warned of.
        warnings.simplefilter("ignore", NoDetectionsWarning)
        segments = detect_sources(smooth, sigma * noise, area, mask=unknown)
    if segments is None:
        return np.zeros(data.shape, bool)
    return _without_holes(segments.data > 0)


def _without_holes(mask):
    """Add what a mask surrounds, as `scipy.ndimage.binary_fill_holes` in a fifth of the time."""
    label, number = ndimage.label(~mask)
    open_to_edge = np.zeros(number + 1, bool)
    for edge in (label[0], label[-1], label[:, 0], label[:, -1]):
        open_to_edge[edge] = True
    open_to_edge[0] = False
    return ~open_to_edge[label]


def _background(data, unknown, fwhm):
    """Find the level and the roughness of the background around every pixel."""
    box = tuple(min(max(_LEAST_BOX, round(_BOX * fwhm)), n) for n in data.shape)
    try:
        mesh = Background2D(
            data,
            box,
            mask=unknown,
            # A box with a tenth of its pixels is enough: bars cut through many.
            exclude_percentile=90,
            bkg_estimator=MedianBackground(),
        )
    except ValueError:
        # No box has them: then one level must do.
        _, level, rough = location.clip(data[~unknown])
        return np.float32(level), np.float32(rough)
    # One roughness per box will do; splines between them would take longer than all the rest.
    rough = np.kron(mesh.background_rms_mesh, np.ones(box, np.float32))[: data.shape[0], : data.shape[1]]
    return background_mesh.interpolate(mesh.background_mesh, box, data.shape), rough


def with_margin(inside: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """
    Add the pixels beside sources to them.

    Parameters
    ----------
    inside : ndarray
        True on sources, shape (ny, nx).
    alone : ndarray
        True on pixels that stand out alone, same shape: beside a source they are not its edge.

    Returns
    -------
    ndarray
        The sources and their margin of one pixel.
    """
    return inside | (neighbours.with_touching(inside, corners=False) & ~alone)


def grow_by_width(mask: np.ndarray, times: float, most: float) -> np.ndarray:
    """
    Add the surroundings of each connected part of a mask, wider where it is wide.

    The brighter a star, the wider what is seen of it, and the farther its wings reach.

    Parameters
    ----------
    mask : ndarray
        Shape (ny, nx).
    times : float
        Width of the surroundings [radius of the largest disc that the part holds].
    most : float
        Largest width [pixel].

    Returns
    -------
    ndarray
        The larger mask.
    """
    if not mask.any():
        return mask.copy()
    labels, number = ndimage.label(mask, np.ones((3, 3), bool))
    radius = ndimage.maximum(ndimage.distance_transform_edt(mask), labels, np.arange(number + 1))
    away, (row, column) = ndimage.distance_transform_edt(~mask, return_indices=True)
    return away <= np.minimum(times * radius, most)[labels[row, column]]
