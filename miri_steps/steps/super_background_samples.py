"""The pixels that `SuperBackgroundStep` builds a background from, and how they are combined."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from miri_steps.algorithms import exposure_levels, leave_out
from miri_steps.algorithms.exposure_levels import Levels
from miri_steps.algorithms.sky_cells import Held, Kept
from miri_steps.steps import shared
from miri_steps.steps.image_stack import FiledImage, ImageStack
from miri_steps.steps.super_background_reading import FOUND, GIVEN, USABLE

__all__ = ["Background", "Samples"]

# Samples that are combined at once, and those that levels are found from.
_BLOCK, _LEVEL_SAMPLES = 4_000_000, 20_000_000


@dataclass
class Background:
    """
    The background of a group: one model for each choice of exposures that are left out.

    Parameters
    ----------
    models : ImageStack
        Models, NaN where there is no sample [unit of the data].
    counts : ImageStack
        Samples in them.
    noise : ndarray
        Standard deviation of one sample, shape (ny, nx); NaN where there is none.
    factors : ndarray
        Variance of a model in units of that of one sample, by number of samples.
    slots : dict
        Place of a model by what is left out of it.
    """

    models: ImageStack
    counts: ImageStack
    noise: np.ndarray
    factors: np.ndarray
    slots: dict[tuple[int, ...], int]

    def read(self, left_out: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read a model: values, variance and number of samples, each of shape (ny, nx)."""
        slot = self.slots[left_out]
        count = self.counts.image(slot)
        return self.models.image(slot), self.noise**2 * self.factors[count], count

    def lend(self, left_out: tuple[int, ...]) -> Held | FiledImage:
        """Say where another process finds a model, or send it along where it is in memory."""
        return self.models.lend(self.slots[left_out])

    def close(self) -> None:
        """Remove its files."""
        self.models.close()
        self.counts.close()


class Samples:
    """
    Images of the exposures that a background is built from, with masks.

    Parameters
    ----------
    number : int
        How many there are.
    shape : tuple of int
        Shape of each (ny, nx).
    folder : Path or None
        Folder for scratch files; None to keep all in memory.
    """

    def __init__(self, number: int, shape: tuple[int, int], folder: Path | None):
        self.number, self.shape, self.folder = number, shape, folder
        self._stacks, self._made = [], 0
        self.data, self.err = (self.stack(name, number, np.float32) for name in ("data", "err"))
        self.marks, self.masks = self.stack("marks", number, np.uint8), self.stack("masks", number, bool)
        self.valid = np.zeros(shape, np.uint16)
        self._variance, self._quiet = np.zeros(shape), np.zeros(shape, np.uint16)
        self._least, self._scales = np.full(shape, np.nan), []

    def close(self) -> None:
        """Remove the files, those of backgrounds too."""
        for stack in self._stacks:
            stack.close()

    def take(self, k: int, scale: float) -> None:
        """
        Take up an exposure whose images are written: where it is usable, and its noise.

        Parameters
        ----------
        k : int
            Which one.
        scale : float
            About the factor by which it follows the background.
        """
        marks = self.marks.image(k)
        self.valid += (marks & USABLE) > 0
        self._add_noise(self.err.image(k), (marks & (FOUND | GIVEN)) == 0, scale)

    def _add_noise(self, err, quiet, scale):
        """Take up the noise of an exposure, where no source adds to it."""
        variance = (err / scale).astype(float) ** 2
        quiet = quiet & np.isfinite(variance)
        self._variance += np.where(quiet, variance, 0)
        self._quiet += quiet
        self._least = np.fmin(self._least, variance)
        self._scales.append(scale)

    @property
    def noise(self) -> np.ndarray:
        """Standard deviation of one sample, shape (ny, nx); NaN where there is none.

        It is the rms over the exposures in which a pixel lies outside sources, or the least of all.
        """
        mean = self._variance / np.maximum(self._quiet, 1)
        return np.mean(self._scales) * np.sqrt(np.where(self._quiet > 0, mean, self._least))

    def masked(self, k: int) -> np.ndarray:
        """Read an exposure, NaN where it is masked, shape (ny, nx)."""
        return np.where(self.masks.image(k), np.float32(np.nan), self.data.image(k))

    def find_levels(self, region: np.ndarray, scaling: str) -> Levels:
        """
        Find how the exposures follow their background.

        Parameters
        ----------
        region : ndarray
            True where they are compared, shape (ny, nx).
        scaling : str
            What may differ (`exposure_levels.SCALINGS`).

        Returns
        -------
        Levels
            Factors and levels.
        """
        inside = exposure_levels.to_cells(region, slice(None)).any(axis=1)
        cells = np.flatnonzero(inside)
        most = max(1, _LEVEL_SAMPLES // (self.number * exposure_levels.CELL**2))
        if len(cells) > most:
            cells = np.sort(np.random.default_rng(0).choice(cells, most, replace=False))
        pixels = np.empty((self.number, len(cells), exposure_levels.CELL**2), np.float32)
        for k in range(self.number):
            pixels[k] = exposure_levels.to_cells(np.where(region, self.masked(k), np.nan), cells)
        return exposure_levels.fit(pixels, scaling)

    def combine(
        self,
        name: str,
        levels: Levels,
        left_out: list[tuple[int, ...]],
        run: Callable,
        *,
        statistic: str,
        sigma: float,
    ) -> Background:
        """
        Combine the exposures at their common level.

        Parameters
        ----------
        name : str
            What they are called together.
        levels : Levels
            How they follow the background.
        left_out : list of tuple of int
            Exposures to leave out, a tuple for each model.
        run : callable
            A ``map``, over processes or not.
        statistic : str
            "median" or "clip".
        sigma : float
            Clipping limit [standard deviation].

        Returns
        -------
        Background
            The models.
        """
        step = max(1, _BLOCK // (self.number * self.shape[1]))
        models = self.stack("models", len(left_out), np.float32, step=step)
        counts = self.stack("counts", len(left_out), np.uint16, step=step)
        self._made += 1
        plan = shared.share(_Plan(levels, left_out, statistic, sigma), self.folder, f"plan{self._made}")
        into = (models, counts) if self.folder else None

        noise = self.stack("noise", 1, float)
        noise.write(0, self.noise)

        def tasks():
            for rows in self._blocks(step):
                samples = _Rows(self.data, self.masks, noise, rows)
                said = f"rows {rows.start} to {rows.stop - 1} of {name}"
                yield _Combining(said, samples if self.folder else Held(samples.load()), plan, rows, into)

        for rows, found in zip(self._blocks(step), run(_combine, tasks()), strict=True):
            if found is not None:
                models.write_all(rows, found.value)
                counts.write_all(rows, found.count)
        factors = leave_out.variance_factors(statistic, sigma, self.number)
        return Background(models, counts, noise.image(0), factors, {out: k for k, out in enumerate(left_out)})

    def stack(self, name: str, number: int, dtype, *, step: int | None = None) -> ImageStack:
        """
        Make room for more images of the same shape.

        Parameters
        ----------
        name : str
            Name of their file.
        number, dtype, step
            As in `ImageStack`.

        Returns
        -------
        ImageStack
            The images, removed with the samples at the latest.
        """
        path = None if self.folder is None else self.folder / name
        stack = ImageStack(number, self.shape, dtype, path, step=step)
        self._stacks.append(stack)
        return stack

    def _blocks(self, step) -> Iterator[slice]:
        """Cut the frame into rows that can be worked on at once."""
        ny = self.shape[0]
        return (slice(start, min(start + step, ny)) for start in range(0, ny, step))


@dataclass(frozen=True)
class _Plan:
    """How samples are combined."""

    levels: Levels
    left_out: list[tuple[int, ...]]
    statistic: str
    sigma: float


@dataclass(frozen=True)
class _Rows:
    """The same rows of all exposures, and of their noise."""

    data: ImageStack
    masks: ImageStack
    noise: ImageStack
    rows: slice

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Read samples, NaN where they are masked, and noise."""
        samples = self.data.rows(self.rows)
        samples[self.masks.rows(self.rows)] = np.nan
        return samples, self.noise.rows(self.rows)[0]


@dataclass(frozen=True)
class _Combining:
    """Rows to be combined; `into` are stacks of models and counts, where these are in files."""

    name: str
    samples: Kept
    plan: Kept
    rows: slice
    into: tuple[ImageStack, ImageStack] | None


def _combine(task):
    plan, (samples, noise) = task.plan.load(), task.samples.load()
    factor, level = (
        each.astype(np.float32)[:, np.newaxis, np.newaxis] for each in (plan.levels.factor, plan.levels.level)
    )
    samples = (samples - level) / factor
    found = leave_out.combine(samples, noise, plan.left_out, statistic=plan.statistic, sigma=plan.sigma)
    if task.into is None:
        return found
    models, counts = task.into
    models.write_all(task.rows, found.value)
    counts.write_all(task.rows, found.count)
    return None
