"""How `SuperBackgroundStep` gets from a group of exposures to its background."""

import logging
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from astropy.coordinates import SkyCoord

from miri_steps import detector, exposures
from miri_steps.algorithms import smooth_fill
from miri_steps.algorithms.exposure_levels import Levels
from miri_steps.steps import shared
from miri_steps.steps import super_background_masks as masks
from miri_steps.steps import super_background_reading as reading
from miri_steps.steps.super_background_members import Group, Member
from miri_steps.steps.super_background_rules import MaskRules
from miri_steps.steps.super_background_samples import Background, Samples

__all__ = ["Builder", "Recipe", "Source", "imager_pixels"]

log = logging.getLogger(f"stpipe.{__name__}")

# A mask image that shows this part of an exposure shows it all: mosaics have holes.
_WHOLE = 0.99
# Side of a cell of the internal mosaic [FWHM of a star], [arcsec]: halos are wider.
_CELL, _LEAST_CELL = 1.0, 0.22

# Wings that must not get into the first guess of the background reach no farther than this [FWHM]: extended
# emission has no wings of that kind.
_HALO = 8.0


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

    rules: MaskRules
    scaling: str
    statistic: str
    sigma: float
    passes: int


class Source(Protocol):
    """Where exposures are."""

    def file_of(self, member: Member) -> Path | None:
        """Find the file of a member; None if it is in memory."""

    def opened(self, member: Member) -> AbstractContextManager:
        """Open the model of a member to be read."""


class Builder:
    """
    The exposures of a group on their way to its background.

    Parameters
    ----------
    group : Group
        The exposures.
    recipe : Recipe
        What to do with them.
    source : Source
        Where they are.
    run : callable
        A ``map``, over processes or not.
    folder : Path or None
        Folder for scratch files; None to keep all in memory.
    """

    def __init__(
        self,
        group: Group,
        recipe: Recipe,
        source: Source,
        run: Callable,
        folder: Path | None,
    ):
        self.group, self.recipe, self.source, self.run = group, recipe, source, run
        # Each group has a folder of its own: no name is used twice.
        self.folder = folder and Path(tempfile.mkdtemp(dir=folder))
        self.members = group.builders
        self.names = [member.name for member in self.members]
        self.samples = None
        self._maps, self._covered, self._imager = [], [], None

    def close(self) -> None:
        """Remove the scratch files."""
        if self.samples is not None:
            self.samples.close()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        shared.forget()

    def read(self, corners: np.ndarray | None) -> None:
        """
        Read every exposure once, and mask what is plainly a source.

        Parameters
        ----------
        corners : ndarray or None
            Positions all over the field, shape (n, 2) [deg]; needed for two passes.

        Raises
        ------
        ValueError
            If exposures differ in shape or lack what is needed.
        """
        self._look = shared.share(self._make_room(corners), self.folder, "look")
        for k, seen in enumerate(self.run(reading.read, self._readings())):
            member = self.members[k]
            if seen.marks is not None:
                self.samples.marks.write(k, seen.marks)
            self.samples.take(k, seen.scale)
            member.pointing, member.is_dead = seen.pointing, seen.covered is None
            self._covered.append(seen.covered)
            if seen.pixel_map is not None:
                self._maps.append(seen.pixel_map)
            log.info("%d/%d %s read", k + 1, len(self.members), member.name)
        self.samples.err.close()

    def _make_room(self, corners):
        """Look at the first exposure, and say what is wanted of all."""
        with self.source.opened(self.members[0]) as model:
            shape, self._imager = model.data.shape, imager_pixels(model)
        self.samples = Samples(len(self.members), shape, self.folder)
        return reading.Look(
            rules=self.recipe.rules,
            fwhm=self.group.fwhm,
            first=self.names[0],
            shape=shape,
            has_level=self.recipe.scaling == "multiplicative",
            center=exposures.sky_middle(corners) if self.recipe.passes == 2 else None,
            cell=max(_LEAST_CELL, _CELL * self.group.fwhm * detector.PIXEL_SCALE),
        )

    def _readings(self):
        """Hand out files; of exposures that are kept in memory, their pixels."""
        samples, wanted = self.samples, self._look.load()
        stacks = reading.Stacks(samples.data, samples.err, samples.marks) if self.folder else None
        for k, member in enumerate(self.members):
            planes = self.source.file_of(member)
            if planes is None:
                with self.source.opened(member) as model:
                    planes = reading.look(model, wanted, member.name)
                samples.data.write(k, planes.image)
                samples.err.write(k, planes.err)
            yield reading.Reading(member.name, k, planes, self._look, stacks, self.folder)

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
            known = set(wanted)
            outs = [member.left_out if member.left_out in known else wanted[0] for member in self.members]
            masks.mask_by_mosaic(
                *(self.samples, self.names, levels, background, outs, self._maps),
                *(self.group.fwhm, self.recipe.rules, self.run),
            )
            for k in range(len(self.members)):
                self._tell(k, self.samples.masks.image(k), self.samples.marks.image(k))
            background.close()
            levels = self._find_levels()
            background = self._combine(levels, wanted)
        return background, levels

    def _mask(self):
        """Mask sources: those of the mask image, and elsewhere those that show without the background."""
        fwhm = self.group.fwhm
        light = masks.detector_light(self.samples, fwhm=fwhm, reach=self._reach())
        covered = min((share for share in self._covered if share is not None), default=0.0) >= _WHOLE
        masks.mask_bright(self.samples, self.names, light, None if covered else _HALO * fwhm, self.run)
        if not covered:
            levels = self._find_levels()
            median = self._combine(levels, [()], "median")
            guess, _, _ = median.read(())
            median.close()
            guess = smooth_fill.fill(guess, np.isfinite(guess)).value
            masks.mask_residuals(self.samples, self.names, levels, guess, self._look, self.run)
        self._tell_all()

    def _tell_all(self):
        """Tell how much of each exposure is masked."""
        count = np.zeros(self.samples.shape, np.uint16)
        for k in range(len(self.members)):
            mask, marks = self.samples.masks.image(k), self.samples.marks.image(k)
            self._tell(k, mask, marks)
            count += mask & ((marks & (reading.USABLE | reading.GIVEN)) == reading.USABLE)
        self._warn_of_staying(count)

    def _tell(self, k, mask, marks):
        inside = mask[(marks & reading.USABLE) > 0]
        said = f"{100 * inside.mean():.1f}% of its pixels are masked" if len(inside) else "no usable pixel"
        log.info("%d/%d %s: %s", k + 1, len(self.members), self.members[k].name, said)

    def _find_levels(self):
        region = self._imager & (self.samples.valid > 0)
        return self.samples.find_levels(
            region if region.any() else self.samples.valid > 0, self.recipe.scaling
        )

    def _combine(self, levels, wanted, statistic=None):
        return self.samples.combine(
            *(self.group.name, levels, wanted, self.run),
            statistic=statistic or self.recipe.statistic,
            sigma=self.recipe.sigma,
        )

    def _reach(self):
        """Find the largest move of the sky from the first exposure [pixel]."""
        known = [member.pointing for member in self.members if member.pointing is not None]
        if len(known) < 2:
            return 0.0
        there = SkyCoord(known, unit="deg")
        return float(there.separation(there[0]).arcsec.max()) / detector.PIXEL_SCALE

    def _warn_of_staying(self, count):
        wide = masks.staying_wide(count, self.samples.valid, fwhm=self.group.fwhm, reach=self._reach())
        if wide.any():
            log.warning(
                "%s: light stays on %d pixels (%.2f%%) in most of the exposures and is wide: it is taken for "
                "sources larger than the dithers, and their faint outskirts may be in the background. Wider "
                "dithers, mask_image or a sky set help; if it is the detector's light, mask_image does.",
                *(self.group.name, wide.sum(), 100 * wide.sum() / max(1, (self.samples.valid > 0).sum())),
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
