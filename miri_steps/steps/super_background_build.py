"""How `SuperBackgroundStep` gets from a group of exposures to its background."""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.coordinates import SkyCoord

from miri_steps import detector, exposures
from miri_steps.algorithms import smooth_fill, source_masks
from miri_steps.algorithms.exposure_levels import Levels
from miri_steps.algorithms.sky_cells import PixelMap
from miri_steps.algorithms.sources import grow_by_width
from miri_steps.steps import super_background_masks as masks
from miri_steps.steps.pixel_set import PixelSet
from miri_steps.steps.super_background_members import Group, Member
from miri_steps.steps.super_background_samples import Background, Samples

__all__ = ["Builder", "Recipe", "imager_pixels", "pointing_of"]

log = logging.getLogger(f"stpipe.{__name__}")

# A mask image that shows this part of an exposure shows it all: mosaics have holes.
_WHOLE = 0.99
# Side of a cell of the internal mosaic [FWHM of a star], [arcsec]: halos are wider.
_CELL, _LEAST_CELL = 1.0, 0.22

# Wings that must not get into the first guess of the background reach this many radii beyond what is bright,
# but no farther than this many FWHM: extended emission has no wings of that kind.
_WINGS, _HALO = 2.0, 8.0


@dataclass(frozen=True)
class Recipe:
    """
    How a background is built.

    Parameters
    ----------
    rules : MaskRules
        What is left out.
    scaling : str
        How exposures follow the background (`miri_steps.algorithms.exposure_levels.SCALINGS`).
    statistic : str
        How samples are combined, "median" or "clip".
    sigma : float
        Clipping limit [standard deviation].
    passes : int
        2 to look for sources again in a mosaic of the first result.
    """

    rules: masks.MaskRules
    scaling: str
    statistic: str
    sigma: float
    passes: int


class Builder:
    """
    The exposures of a group on their way to its background.

    Parameters
    ----------
    group : Group
        The exposures.
    recipe : Recipe
        What to do with them.
    opened : callable
        Context manager that opens the model of a member to be read.
    run : callable
        A ``map``, over processes or not.
    folder : Path or None
        Folder for scratch files; None to keep all in memory.
    """

    def __init__(
        self,
        group: Group,
        recipe: Recipe,
        opened: Callable[[Member], AbstractContextManager],
        run: Callable,
        folder: Path | None,
    ):
        self.group, self.recipe, self.opened, self.run, self.folder = group, recipe, opened, run, folder
        self.members = group.builders
        self.samples = None
        self._given, self._known, self._bright, self._maps = [], [], [], []
        self._valid, self._imager, self._covered = 0, None, []

    def close(self) -> None:
        """Close the scratch files."""
        if self.samples is not None:
            self.samples.close()

    def read(self, corners: np.ndarray | None) -> None:
        """
        Read every exposure once, one at a time, and mask what is plainly a source.

        Parameters
        ----------
        corners : ndarray or None
            Positions all over the field, shape (n, 2) [deg]; needed for two passes.

        Raises
        ------
        ValueError
            If exposures differ in shape or lack what is needed.
        """
        cell = max(_LEAST_CELL, _CELL * self.group.fwhm * detector.PIXEL_SCALE)
        self._grid = exposures.sky_grid(corners, cell) if self.recipe.passes == 2 else None
        for found in self.run(source_masks.bright_job, self._look()):
            k, known, err, scale = self._looked.popleft()
            self._bright.append(PixelSet.of(found & ~known))
            self._known.append(PixelSet.of(known))
            self.samples.add_noise(err, ~found & ~self._given[k].mask(), scale)

    def uncovered(self) -> str | None:
        """
        Say whether the mask image shows another field, and warn of exposures that it shows in part.

        Returns
        -------
        str or None
            What is wrong, if it covers none of the exposures that it was made for.
        """
        image = self.recipe.rules.image
        shown = [share for share in self._covered if share is not None]
        if image is None or not shown or any(member.is_sky for member in self.members):
            return None
        if max(shown) == 0:
            ra, dec = self.members[0].pointing
            return (
                f"{image.name} must show the field of the exposures, but covers none of {self.group.name}, "
                f"at RA {ra:.5f} and Dec {dec:.5f}"
            )
        for member, share in zip(self.members, self._covered, strict=True):
            if share is not None and share < _WHOLE:
                log.warning(
                    "%s: %s covers %.1f%% of it; elsewhere sources are looked for in the exposure.",
                    *(member.name, image.name, 100 * share),
                )
        return None

    def build(self, wanted: list[tuple[int, ...]]) -> tuple[Background, Levels]:
        """
        Mask the sources, find the levels and combine the exposures.

        Parameters
        ----------
        wanted : list of tuple of int
            Exposures to leave out, a tuple for each model.

        Returns
        -------
        Background, Levels
            The models, and how each exposure follows them.
        """
        self._mask()
        levels = self._find_levels()
        background = self._combine(levels, wanted)
        if self.recipe.passes == 2:
            log.info("%s: second pass, sources from a mosaic of the first result", self.group.name)
            outs = [member.left_out if member.left_out in wanted else wanted[0] for member in self.members]
            masks.mask_by_mosaic(
                *(self.samples, levels, background, outs, self._maps),
                *(self.group.fwhm, self.recipe.rules, self.run),
            )
            for k in range(len(self.members)):
                self._tell(k, self.samples.masks.image(k))
            background.close()
            levels = self._find_levels()
            background = self._combine(levels, wanted)
        return background, levels

    def _look(self) -> Iterator[tuple]:
        """Read the exposures, and hand out the images in which bright sources are to be found."""
        self._looked = deque()
        for k, member in enumerate(self.members):
            with self.opened(member) as model:
                self._make_room(member, model)
                member.pointing = pointing_of(model)
                if self._grid is not None:
                    self._maps.append(self._map(member, model))
                if model.err is None:
                    raise ValueError(f"{member.name} must have an array ERR, but has none")
                usable = masks.usable_pixels(model)
                member.is_dead = not usable.any()
                given, known = self.recipe.rules.given(model, usable, self.group.fwhm)
                image = np.where(usable, model.data, np.nan).astype(np.float32)
                err = np.where(usable, model.err, np.nan).astype(np.float32)
            self._covered.append(known[usable].mean() if usable.any() else None)
            self.samples.data.write(k, image)
            self._given.append(PixelSet.of(given))
            self._looked.append((k, known, err, self._scale(member, image[usable & ~given])))
            self._valid = self._valid + usable.astype(np.uint16)
            log.info("%d/%d %s read", k + 1, len(self.members), member.name)
            yield image, err, self.group.fwhm

    def _make_room(self, member, model):
        if self.samples is None:
            self.samples = Samples(len(self.members), model.data.shape, self.folder)
            self._imager = imager_pixels(model)
        elif model.data.shape != self.samples.shape:
            raise ValueError(
                f"exposures of one background must have one shape, but {self.members[0].name} has "
                f"{self.samples.shape} and {member.name} has {model.data.shape}"
            )

    def _scale(self, member, values):
        """Guess by which factor an exposure follows the background."""
        if self.recipe.scaling != "multiplicative" or not len(values):
            return 1.0
        level = float(np.median(values))
        if level <= 0:
            raise ValueError(
                f"scaling='multiplicative' needs exposures with their background, above 0, but the level of "
                f"{member.name} is {level:.4g}"
            )
        return level

    def _map(self, member, model):
        if getattr(model.meta, "wcs", None) is None:
            raise ValueError(f"passes=2 makes a mosaic, but {member.name} has no WCS (was assign_wcs run?)")
        return PixelMap(*exposures.pixel_mesh(model, self._grid), exposures.frame_origin(model))

    def _mask(self):
        """Mask sources: those of the mask image, and elsewhere those that show without the background."""
        sources = masks.without_detector_light(
            self._bright, self._valid, fwhm=self.group.fwhm, reach=self._reach()
        )
        covered = min((share for share in self._covered if share is not None), default=0.0) >= _WHOLE
        if covered:
            self._write_masks(each.mask() for each in sources)
            return
        halo = _HALO * self.group.fwhm
        self._write_masks((grow_by_width(each.mask(), _WINGS, halo) for each in sources), told=False)
        levels = self._find_levels()
        median = self._combine(levels, [()], "median")
        guess, _, _ = median.read(())
        median.close()
        guess = smooth_fill.fill(guess, np.isfinite(guess)).value
        found = masks.find_residuals(
            self.samples, levels, guess, self.group.fwhm, self.recipe.rules, self.run
        )
        self._write_masks(
            (each & ~known.mask()) | bright.mask()
            for each, known, bright in zip(found, self._known, sources, strict=True)
        )

    def _write_masks(self, found, *, told=True):
        """Write masks, and tell of them where they are the last ones."""
        count = np.zeros(self.samples.shape, np.uint16)
        for k, (given, each) in enumerate(zip(self._given, found, strict=True)):
            mask = given.mask() | each
            self.samples.masks.write(k, mask)
            if told:
                self._tell(k, mask)
                count += each & ~given.mask() & np.isfinite(self.samples.data.image(k))
        if told:
            self._warn_of_staying(count)

    def _tell(self, k, mask):
        inside = mask[np.isfinite(self.samples.data.image(k))]
        said = f"{100 * inside.mean():.1f}% of its pixels are masked" if len(inside) else "no usable pixel"
        log.info("%d/%d %s: %s", k + 1, len(self.members), self.members[k].name, said)

    def _find_levels(self):
        region = self._imager & (self._valid > 0)
        return self.samples.find_levels(region if region.any() else self._valid > 0, self.recipe.scaling)

    def _combine(self, levels, wanted, statistic=None):
        return self.samples.combine(
            levels, wanted, self.run, statistic=statistic or self.recipe.statistic, sigma=self.recipe.sigma
        )

    def _reach(self):
        """Find the largest move of the sky from the first exposure [pixel]."""
        known = [member.pointing for member in self.members if member.pointing is not None]
        if len(known) < 2:
            return 0.0
        there = SkyCoord(known, unit="deg")
        return float(there.separation(there[0]).arcsec.max()) / detector.PIXEL_SCALE

    def _warn_of_staying(self, count):
        wide = masks.staying_wide(count, self._valid, fwhm=self.group.fwhm, reach=self._reach())
        if wide.any():
            log.warning(
                "%s: light stays on %d pixels (%.2f%%) in most of the exposures and is wide: it is taken for "
                "sources larger than the dithers, and their faint outskirts may be in the background. Wider "
                "dithers, mask_image or a sky set help; if it is the detector's light, mask_image does.",
                *(self.group.name, wide.sum(), 100 * wide.sum() / max(1, (self._valid > 0).sum())),
            )


def imager_pixels(model) -> np.ndarray:
    """
    Find the imager's field in the frame of an exposure.

    Parameters
    ----------
    model : ImageModel
        The exposure.

    Returns
    -------
    ndarray
        True inside; everywhere if the frame holds nothing of it.
    """
    inside = exposures.region_pixels(model, ["imager"])
    return inside if inside.any() else np.ones_like(inside)


def pointing_of(model) -> tuple[float, float] | None:
    """
    Find where the middle of a frame looks.

    Parameters
    ----------
    model : ImageModel
        The exposure.

    Returns
    -------
    tuple of float or None
        RA and Dec from the WCS, or those of the reference point [deg]; None if it has neither.
    """
    wcs = getattr(model.meta, "wcs", None)
    if wcs is not None:
        ny, nx = model.data.shape
        ra, dec = wcs((nx - 1) / 2, (ny - 1) / 2, with_bounding_box=False)
    else:
        ra, dec = model.meta.wcsinfo.ra_ref, model.meta.wcsinfo.dec_ref
    return None if ra is None or dec is None else (float(ra), float(dec))
