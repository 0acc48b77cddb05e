"""The pixels that `SuperBackgroundStep` builds a background from, and how they are combined."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from miri_steps.algorithms import exposure_levels, leave_out
from miri_steps.algorithms.exposure_levels import Levels
from miri_steps.steps.image_stack import ImageStack

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

    def close(self) -> None:
        """Close its files."""
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
        self._stacks = []
        self.data, self.masks = self._stack("data", number, np.float32), self._stack("masks", number, bool)
        self._variance, self._quiet = np.zeros(shape), np.zeros(shape, np.uint16)
        self._least, self._scales = np.full(shape, np.nan), []

    def close(self) -> None:
        """Close the files, those of backgrounds too."""
        for stack in self._stacks:
            stack.close()

    def add_noise(self, err: np.ndarray, quiet: np.ndarray, scale: float) -> None:
        """
        Take up the noise of an exposure.

        Parameters
        ----------
        err : ndarray
            Standard deviation of its pixels, shape (ny, nx), NaN where not usable.
        quiet : ndarray
            True where no source adds to it.
        scale : float
            About the factor by which the exposure follows the background.
        """
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
        self, levels: Levels, left_out: list[tuple[int, ...]], run: Callable, *, statistic: str, sigma: float
    ) -> Background:
        """
        Combine the exposures at their common level.

        Parameters
        ----------
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
        models = self._stack("models", len(left_out), np.float32)
        counts = self._stack("counts", len(left_out), np.uint16)
        noise = self.noise

        def tasks():
            for rows in self._blocks():
                yield self._at_common_level(rows, levels), noise[rows], left_out, statistic, sigma

        for rows, found in zip(self._blocks(), run(_combine_job, tasks()), strict=True):
            for slot in range(len(left_out)):
                models.write_rows(slot, rows, found.value[slot])
                counts.write_rows(slot, rows, found.count[slot])
        factors = leave_out.variance_factors(statistic, sigma, self.number)
        return Background(models, counts, noise, factors, {out: slot for slot, out in enumerate(left_out)})

    def _blocks(self) -> Iterator[slice]:
        """Cut the frame into rows that can be worked on at once."""
        ny, nx = self.shape
        step = max(1, _BLOCK // (self.number * nx))
        return (slice(start, min(start + step, ny)) for start in range(0, ny, step))

    def _at_common_level(self, rows, levels):
        block = np.where(self.masks.rows(rows), np.float32(np.nan), self.data.rows(rows))
        factor, level = (
            each.astype(np.float32)[:, np.newaxis, np.newaxis] for each in (levels.factor, levels.level)
        )
        return (block - level) / factor

    def _stack(self, name, number, dtype):
        stack = ImageStack(number, self.shape, dtype, None if self.folder is None else self.folder / name)
        self._stacks.append(stack)
        return stack


def _combine_job(job):
    samples, noise, left_out, statistic, sigma = job
    return leave_out.combine(samples, noise, left_out, statistic=statistic, sigma=sigma)
