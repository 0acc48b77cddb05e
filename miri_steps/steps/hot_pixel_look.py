"""How `MedianHotPixelStep` looks at one exposure, in whatever process."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from stdatamodels.jwst.datamodels import JwstDataModel

from miri_steps import exposures
from miri_steps.algorithms import hot_pixels, sources
from miri_steps.algorithms.hot_pixels import Outstanding
from miri_steps.steps import hot_pixel_sources
from miri_steps.steps.hot_pixel_planes import Planes
from miri_steps.steps.hot_pixel_sources import NamedSources
from miri_steps.steps.pixel_set import PixelSet

__all__ = ["Look", "Seen", "look", "read"]


@dataclass(frozen=True)
class Look:
    """
    An exposure to look at, and how.

    Parameters
    ----------
    name : str
        Its file name.
    exposure : Path or Planes
        Its file, or its arrays where there is none.
    covered : ndarray or None
        With arrays: pixels that the user's sources cover, None without such sources.
    named : NamedSources
        With a file: the user's sources.
    fwhm : float
        Width of a star at half maximum [pixel].
    sigma, source_sigma : float
        Limits for pixels and for sources [standard deviations].
    window : int
        Side of the square that must fit into the frame [pixel].
    """

    name: str
    exposure: Path | Planes
    covered: np.ndarray | None
    named: NamedSources
    fwhm: float
    sigma: float
    source_sigma: float
    window: int


@dataclass(frozen=True)
class Seen:
    """
    What is to be known of an exposure once it was looked at, packed.

    Parameters
    ----------
    above, below, hot, dead : PixelSet
        See `miri_steps.algorithms.hot_pixels.Outstanding`.
    usable, hole : PixelSet
        See `Planes`.
    protected : PixelSet
        Sources.
    """

    above: PixelSet
    below: PixelSet
    hot: PixelSet
    dead: PixelSet
    usable: PixelSet
    hole: PixelSet
    protected: PixelSet

    def outstanding(self) -> Outstanding:
        """Unpack what stands out."""
        return Outstanding(*(part.mask() for part in (self.above, self.below, self.hot, self.dead)))


def read(model: JwstDataModel, named: NamedSources) -> tuple[Planes, np.ndarray | None]:
    """
    Take from an exposure what is looked at.

    Parameters
    ----------
    model : ImageModel
        The exposure.
    named : NamedSources
        Sources that the user names.

    Returns
    -------
    Planes, ndarray or None
        Its arrays, and the pixels that those sources cover; None where the sources are to be found.
    """
    given = hot_pixel_sources.read(named)
    return Planes.of(model), np.logical_or.reduce([each.covers(model) for each in given]) if given else None


def look(task: Look) -> Seen:
    """
    Find what stands out of one exposure, and its sources.

    Parameters
    ----------
    task : Look
        The exposure.

    Returns
    -------
    Seen
        What was found.

    Raises
    ------
    FileNotFoundError, OSError
        If its file cannot be read.
    ValueError
        If its frame is smaller than the window, or no pixel is usable.
    """
    planes, protected = task.exposure, task.covered
    if isinstance(planes, Path):
        with exposures.open_file(planes) as model:
            planes, protected = read(model, task.named)
    if min(planes.data.shape) < task.window:
        raise ValueError(
            f"window must be at most the frame, but {task.name} has shape {planes.data.shape}, "
            f"got {task.window}"
        )
    found = hot_pixels.find(planes.data, planes.err, fwhm=task.fwhm, sigma=task.sigma)
    if protected is None:
        alone = found.hot | found.dead
        clean = np.where(alone, found.surroundings, planes.data)
        inside = sources.segment(clean, planes.err, fwhm=task.fwhm, sigma=task.source_sigma)
        protected = sources.with_margin(inside, alone)
    masks = found.above, found.below, found.hot, found.dead, planes.usable, planes.hole, protected
    return Seen(*map(PixelSet.of, masks))
