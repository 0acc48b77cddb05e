"""How `RateFromRateintsStep` combines the integrations of one exposure, in whatever process."""

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from miri_steps import exposures, whole_files
from miri_steps.algorithms import integrations
from miri_steps.algorithms.integrations import Combined
from miri_steps.steps import integration_planes
from miri_steps.steps.integration_planes import Samples

__all__ = ["Job", "Rebuilt", "collect", "combine"]


@dataclass(frozen=True)
class Job:
    """
    Integrations to be combined, and how.

    Parameters
    ----------
    name : str
        File name of the exposure.
    integrations : Path or Samples
        Their file, or their arrays where there is none.
    method : str
        See `miri_steps.algorithms.integrations.combine`.
    sigma : float
        Clipping limit [standard deviations].
    min_integrations : int
        Pixels with fewer valid samples are averaged unclipped.
    result : Path, optional
        File for the result, where that is not to be kept in memory.
    """

    name: str
    integrations: Path | Samples
    method: str
    sigma: float
    min_integrations: int
    result: Path | None = None


@dataclass(frozen=True)
class Rebuilt:
    """
    What the integrations of an exposure give.

    Parameters
    ----------
    found : Combined
        Their average.
    flags : ndarray
        Their flags, shape (ny, nx).
    known : frozenset of str
        Names of the variances that they have.
    """

    found: Combined
    flags: np.ndarray
    known: frozenset[str]


def combine(job: Job) -> Rebuilt | Path:
    """
    Combine the integrations of an exposure.

    Parameters
    ----------
    job : Job
        The exposure.

    Returns
    -------
    Rebuilt or Path
        The result, or the file it was written to.

    Raises
    ------
    FileNotFoundError, OSError
        If the file of the integrations cannot be read.
    """
    if isinstance(job.integrations, Path):
        with exposures.open_file(job.integrations) as cube:
            rebuilt = _combine(integration_planes.take(cube), job)
    else:
        rebuilt = _combine(job.integrations, job)
    if job.result is None:
        return rebuilt
    whole = pickle.dumps(rebuilt, pickle.HIGHEST_PROTOCOL)
    whole_files.replace_scratch(job.result, lambda path: path.write_bytes(whole))
    return job.result


def _combine(samples, job):
    valid = integration_planes.valid_samples(samples)
    found = integrations.combine(
        samples.data,
        valid,
        method=job.method,
        sigma=job.sigma,
        min_integrations=job.min_integrations,
        **integration_planes.variances(samples),
    )
    flags = integration_planes.combined_flags(samples, valid, found.rejected > 0)
    return Rebuilt(found, flags, integration_planes.known_variances(samples))


def collect(rebuilt: Rebuilt | Path) -> Rebuilt:
    """
    Take what `combine` returned, and its file away.

    Parameters
    ----------
    rebuilt : Rebuilt or Path
        The result, or its file.

    Returns
    -------
    Rebuilt
        The result.
    """
    if isinstance(rebuilt, Rebuilt):
        return rebuilt
    with rebuilt.open("rb") as file:
        found = pickle.load(file)
    rebuilt.unlink()
    return found
