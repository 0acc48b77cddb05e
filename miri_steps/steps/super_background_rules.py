"""What `SuperBackgroundStep` takes for a source in an exposure."""

from dataclasses import dataclass

import numpy as np
from stdatamodels.jwst.datamodels import JwstDataModel

from miri_steps import exposures
from miri_steps.algorithms import discs, source_masks
from miri_steps.steps.sky_masks import RegionMask, SkyMask

__all__ = ["MaskRules", "find_sources", "usable_pixels"]

# Side of the boxes of the mesh that takes up what the background found so far misses: many stars wide.
_BOX, _LEAST_BOX = 16, 128  # [FWHM], [pixel]
# Pixels that may be used: neither DO_NOT_USE nor NON_SCIENCE.
_DQ_BITS = "~DO_NOT_USE+NON_SCIENCE"


@dataclass(frozen=True)
class MaskRules:
    """
    What counts as source.

    Parameters
    ----------
    sigma : float
        Limit of what is found in images [scatter of the smoothed image].
    small_source : int
        Pixels below which a source stays in the background.
    dilate : float
        How far masks reach beyond the light that is seen [width of the kernel that saw it].
    above, delta : float, optional
        Brightness above which a pixel is left out, and the same above the level of the exposure
        [unit of the data].
    image : SkyMask, optional
        Sources on the sky.
    regions : RegionMask, optional
        Parts of the sky to leave out.
    """

    sigma: float
    small_source: int
    dilate: float
    above: float | None = None
    delta: float | None = None
    image: SkyMask | None = None
    regions: RegionMask | None = None

    def given(self, model: JwstDataModel, usable: np.ndarray, fwhm: float) -> tuple[np.ndarray, np.ndarray]:
        """
        Find what the user wants to be left out of an exposure.

        Parameters
        ----------
        model : ImageModel
            The exposure.
        usable : ndarray
            True on its usable pixels, shape (ny, nx).
        fwhm : float
            Width of a star [pixel].

        Returns
        -------
        mask, known : ndarray
            True where a pixel is left out, and where the mask image says all about sources.
        """
        mask, known = np.zeros(usable.shape, bool), np.zeros(usable.shape, bool)
        if self.image is not None:
            covered, known = self.image.project(model)
            mask |= discs.grow(covered, self.dilate * fwhm)
        if self.regions is not None:
            mask |= self.regions.covers(model)
        if self.above is not None:
            mask |= model.data > self.above
        if self.delta is not None and (usable & ~mask).any():
            mask |= model.data > np.median(model.data[usable & ~mask]) + self.delta
        return mask, known

    def as_job(self, image: np.ndarray, noise: np.ndarray, fwhm: float) -> dict:
        """
        Say what `source_masks.find` is to look for in an image.

        Parameters
        ----------
        image, noise : ndarray
            Image and the standard deviation of its pixels, shape (ny, nx).
        fwhm : float
            Width of a star [pixel].

        Returns
        -------
        dict
            Its arguments.
        """
        return {
            "image": image,
            "noise": noise,
            "fwhm": fwhm,
            "sigma": self.sigma,
            "least_area": self.small_source,
            "dilate": self.dilate,
        }


def usable_pixels(model: JwstDataModel) -> np.ndarray:
    """
    Find the pixels of an exposure that show the sky.

    Parameters
    ----------
    model : ImageModel
        The exposure.

    Returns
    -------
    ndarray
        True where a pixel is finite and neither DO_NOT_USE nor NON_SCIENCE, shape (ny, nx).
    """
    return ~exposures.excluded_pixels(model, dqbits=_DQ_BITS)


def find_sources(image: np.ndarray, noise: np.ndarray, fwhm: float, rules: MaskRules) -> np.ndarray:
    """
    Find the sources of one exposure whose background has been taken away.

    Parameters
    ----------
    image, noise : ndarray
        Image and the standard deviation of its pixels, shape (ny, nx), NaN where nothing is known.
    fwhm : float
        Width of a star [pixel].
    rules : MaskRules
        What counts as source.

    Returns
    -------
    ndarray
        True on sources.
    """
    return source_masks.find(**rules.as_job(image, noise, fwhm), box=max(_LEAST_BOX, round(_BOX * fwhm)))
