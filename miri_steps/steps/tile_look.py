"""How `TileAstrometryStep` looks at one exposure, in whatever process."""

from dataclasses import dataclass
from pathlib import Path

from stdatamodels.jwst.datamodels import JwstDataModel

from miri_steps import exposures
from miri_steps.algorithms.star_finding import Detections
from miri_steps.steps import tile_direct, tile_measure, tile_wcs
from miri_steps.steps.tile_direct import ExposureStars, Image
from miri_steps.steps.tile_wcs import Correction

__all__ = ["Look", "Pointing", "look", "read"]


@dataclass(frozen=True)
class Look:
    """
    An exposure to look at, and how.

    Parameters
    ----------
    name : str
        Its file name.
    exposure : Path, Image or None
        Its file; where there is none the image in which stars are wanted, if they are.
    group : str
        Its group in the log of tweakreg.
    lacks_reference : bool
        Whether the point that a correction refers to is not known.
    averages : bool
        Whether it matters how many stars gave its own correction.
    snr : float or None
        Least signal-to-noise ratio of its stars, None where they are not wanted.
    """

    name: str
    exposure: Path | Image | None
    group: str
    lacks_reference: bool
    averages: bool
    snr: float | None


@dataclass(frozen=True)
class Pointing:
    """
    What an exposure says of its pointing.

    Parameters
    ----------
    is_fixed : bool
        Whether its WCS leaves no place for a correction.
    found : Correction, optional
        The correction in its gWCS.
    stored : Correction, optional
        What an earlier run gave it, if its gWCS is still as that run left it.
    stars : int, optional
        Number of stars that gave `found`, where that is known and matters.
    """

    is_fixed: bool = False
    found: Correction | None = None
    stored: Correction | None = None
    stars: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether a correction may be measured."""
        return not self.is_fixed and self.stored is None


def read(model: JwstDataModel, task: Look) -> Pointing:
    """
    Read what an exposure says of its pointing.

    Parameters
    ----------
    model : ImageModel
        The exposure.
    task : Look
        What is wanted.

    Returns
    -------
    Pointing
        What was found.
    """
    wcs = getattr(model.meta, "wcs", None)
    if not tile_wcs.has_telescope_frame(wcs) or task.lacks_reference:
        return Pointing(is_fixed=True)
    found, stored = tile_wcs.read(wcs), tile_wcs.read_record(model)
    if stored or not task.averages:
        return Pointing(found=found, stored=stored)
    lines = [line for log in exposures.read_logs(model).values() for line in log]
    return Pointing(found=found, stars=tile_measure.matched_stars(lines, task.group))


def look(task: Look) -> tuple[Pointing | None, ExposureStars | Detections | None]:
    """
    Read the correction that an exposure has, and find its stars where they are wanted.

    Parameters
    ----------
    task : Look
        The exposure.

    Returns
    -------
    pointing : Pointing or None
        What the file says; None where there is none.
    stars : ExposureStars, Detections or None
        Stars of the file, or of the image: on the detector alone.
    """
    if not isinstance(task.exposure, Path):
        return None, task.exposure and tile_direct.search(task.exposure, task.snr)
    with exposures.open_file(task.exposure) as model:
        pointing = read(model, task)
        if task.snr is None or not pointing.is_open:
            return pointing, None
        return pointing, tile_direct.detect(model, wcs=tile_wcs.uncorrected(model.meta.wcs), snr=task.snr)
