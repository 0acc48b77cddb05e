"""Stars beside the one whose growth curve is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from miri_steps.fluxcal import symmetry

if TYPE_CHECKING:
    from miri_steps.fluxcal.encircled import EncircledEnergy

__all__ = ["remove"]

# Nearer to the star than this, some 3 FWHM, none is looked for [radius of half the light].
_NEAR = 4.5
# What is across is compared after smoothing with the core of a star: a Gaussian of this standard deviation
# [radius of half the light].
_CORE = 0.6
# So much of this Gaussian must not be masked.
_SEEN = 0.05
# A neighbour is brighter than what is across by so many times the scatter of such differences, and by so much
# of what is there.
_SIGMA, _UNLIKE = 6.0, 0.3
# A hot pixel is brighter than the eight around it by this factor, above the background; a star's brightest
# pixel is by 2.3 at most, at 5.6 micron.
_SHARP, _AROUND = 4.0, [[1, 1, 1], [1, 0, 1], [1, 1, 1]]
# Standard deviation of normal values in units of their median absolute deviation.
_NORMAL = 1.4826
# The light of two stars is compared within this [radius of half the light].
_APERTURE = 2.5
# Fainter ones do not matter [light of the star].
_FAINTEST = 1e-4
# Wings are not round: in their spikes and rings are so many times what the mean PSF has there.
_UNEVEN = 2.0
# The disc that is not used holds so much of a neighbour's light, or leaves so much of the star's light beyond
# it, but reaches no farther than this part of the way to the star.
_DISC, _LEFT, _FARTHEST = 0.85, 1.5e-3, 0.5
# Of more stars than that, or brighter ones [light of the star], too much would be left.
_MOST, _BRIGHTEST = 50, 0.1


def remove(
    image: np.ndarray, bad: np.ndarray, center: tuple[float, float], curve: EncircledEnergy, reach: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Take the neighbours of a star out of its image.

    Without aberrations the image of a star is symmetric about its centre: its rings and spikes are the same
    on both sides, but a neighbour is on one. What is brighter than the place across, both smoothed to the
    width of a star, by much more than such differences scatter at that distance is taken for a neighbour. The
    brightest comes first: wings as the growth curve has them, round and with its light, are subtracted. Its
    core is not known so well, and a disc about it must be filled from across. Pixels that are sharper than
    any star are hot, and spoil only themselves.

    It fails within 3 FWHM of the star, where neighbours are across from each other, and for what is much
    wider than a star.

    Parameters
    ----------
    image : ndarray
        The star, shape (ny, nx), background included.
    bad : ndarray
        True where pixels must not be used; those beside them are taken instead.
    center : tuple of float
        Where it is (x, y) [pixel].
    curve : EncircledEnergy
        How its light is spread, with radii in pixels of the image.
    reach : float
        How far from the star light matters [pixel].

    Returns
    -------
    image : ndarray
        Without the wings of neighbours, and all finite.
    wings : ndarray
        What was subtracted.
    spoilt : ndarray
        True in the discs about them, and in hot pixels.

    Raises
    ------
    ValueError
        If a neighbour has more than a tenth of the star's light, or there are too many.
    """
    half = float(curve.radius_of(0.5))
    hot = _hot(np.where(bad, np.nan, image), center, _NEAR * half)
    bad = bad | hot
    smooth, clear = _smooth(image, bad, _CORE * half)
    search = _Search(smooth, clear, center, curve, reach)
    for _ in range(_MOST):
        place = search.brightest()
        if place is None:
            return np.where(bad, smooth, image) - search.wings, search.wings, search.spoilt | hot
        search.take_out(*place)
    raise ValueError(f"at most {_MOST - 1} stars may be beside the star, but there are more")


def _hot(image, center, near):
    """Tell which pixels outstand all around them by more than the brightest pixel of a star does."""
    y, x = np.indices(image.shape)
    above = image - np.nanmedian(image)
    scatter = _NORMAL * np.nanmedian(np.abs(above))
    around = ndimage.maximum_filter(np.nan_to_num(above), footprint=_AROUND, mode="constant")
    sharp = above > np.maximum(_SHARP * around, _SIGMA * scatter)
    return sharp & (np.hypot(x - center[0], y - center[1]) > near)


def _smooth(image, bad, width):
    """Average with a Gaussian over what is seen, and tell where enough is."""
    light, seen = (ndimage.gaussian_filter(plane, width) for plane in (np.where(bad, 0.0, image), 1.0 - bad))
    clear = seen > _SEEN
    return np.divide(light, seen, out=np.full(image.shape, np.median(image[~bad])), where=clear), clear


class _Search:
    """What is across from each pixel, and what was found so far."""

    def __init__(self, smooth, clear, center, curve, reach):
        self.half = float(curve.radius_of(0.5))
        self.center, self.curve = center, curve
        self.y, self.x = np.indices(smooth.shape)
        self.distance = self._from(*center)
        across = symmetry.across(smooth, center)
        ring = (self.distance > reach / 2) & (self.distance <= reach)
        above = smooth - np.median(smooth[ring])
        self.light = above[self.distance <= _APERTURE * self.half].sum()
        self.difference = smooth - across
        # Unlike what is across by so much it may be without a neighbour that matters.
        self.floor = _UNLIKE * np.maximum(above - self.difference, 0) + _FAINTEST * above.max()
        self.open = clear & (symmetry.across(clear, center, order=0) == 1)
        self.open &= (self.distance > _NEAR * self.half) & np.isfinite(across)
        self.open &= self.distance <= reach + float(curve.radius_of(_DISC))
        self.rings = np.where(self.open, (self.distance / self.half).astype(int), 0)
        self.wings, self.spoilt = np.zeros(smooth.shape), np.zeros(smooth.shape, bool)

    def _from(self, x, y):
        return np.hypot(self.x - x, self.y - y)

    def brightest(self):
        """Row and column of the neighbour that stands out most, None without any."""
        scatter = ndimage.median(np.abs(self.difference), self.rings, np.arange(self.rings.max() + 1))
        limit = self.floor + _SIGMA * _NORMAL * np.asarray(scatter)[self.rings]
        excess = np.where(self.open, self.difference - limit, -np.inf)
        place = np.unravel_index(np.argmax(excess), excess.shape)
        return place if excess[place] > 0 else None

    def take_out(self, row, column):
        """Subtract its wings, and do not look in its disc again."""
        here = self._from(column, row)
        there = self._from(2 * self.center[0] - column, 2 * self.center[1] - row)
        share = float(np.nansum(self.difference[here <= _APERTURE * self.half]) / self.light)
        if share > _BRIGHTEST:
            raise ValueError(
                f"neighbours may have at most {_BRIGHTEST} of the star's light, but that "
                f"{self.distance[row, column]:.1f} pixels away has {share:.2f}"
            )
        # What is narrower than a star may have a dark side.
        share = max(share, _FAINTEST)
        light = share * self.light / float(self.curve.within(_APERTURE * self.half))
        wings, echo = (light * self._brightness(distance) for distance in (here, there))
        self.wings += wings
        self.difference -= wings - echo
        self.floor += _UNEVEN * (wings + echo)
        radius = self._disc(share, self.distance[row, column])
        self.spoilt |= (here <= radius) & (self.distance > self.curve.radius_of(_DISC))
        self.open &= here > radius

    def _brightness(self, distance):
        """Mean light of a pixel, as a part of all."""
        edges = np.geomspace(0.25, self.curve.radius[-1], 200)
        mean = np.diff(self.curve.within(edges)) / (np.pi * np.diff(edges**2))
        return np.interp(distance, np.sqrt(edges[1:] * edges[:-1]), mean)

    def _disc(self, share, distance):
        level = min(max(_DISC, 1 - _LEFT / share), 0.999 * self.curve.energy.max())
        radius = float(self.curve.radius_of(level))
        return max(float(self.curve.radius_of(_DISC)), min(radius, _FARTHEST * distance))
