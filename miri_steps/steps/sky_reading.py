"""Read exposures onto the cells of the sky grid, in this process or in others."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.wcs import WCS
from jwst.datamodels import ModelLibrary
from stcal.skymatch import SkyStats
from stdatamodels.jwst.datamodels import JwstDataModel

from miri_steps import exposures, whole_files
from miri_steps.algorithms import sky_cells
from miri_steps.algorithms.sky_cells import CutOut, Held, Keep, PixelMap
from miri_steps.steps.base import file_of
from miri_steps.steps.sky_members import Member

__all__ = ["Reading", "Rules", "Seen", "keeper", "read", "readings"]


@dataclass(frozen=True)
class Rules:
    """
    What is used of every exposure, and how.

    Parameters
    ----------
    center : tuple of float
        Where the sky grid touches the sky [deg].
    scale : float
        Side of its cells [arcsec].
    keep : callable
        Puts the cells away.
    dqbits, lower, upper, regions
        As in `exposures.excluded_pixels`.
    statistic : tuple, optional
        What `SkyStats` is made from, where a statistic of the whole image is wanted.
    """

    center: tuple[float, float]
    scale: float
    keep: Keep
    dqbits: str | None
    lower: float | None
    upper: float | None
    regions: tuple[str, ...]
    statistic: tuple | None = None

    @property
    def grid(self) -> WCS:
        """The sky grid; made here, for a WCS that travels loses its last digits."""
        return exposures.sky_grid(np.array([self.center]), self.scale)


@dataclass(frozen=True)
class Seen:
    """
    What is left of an exposure that was read.

    Parameters
    ----------
    cells : CutOut, optional
        Its cells, if it has any.
    sky : float, optional
        Statistic of the whole image, where it is wanted.
    problem : str, optional
        Why it cannot be used.
    """

    cells: CutOut | None = None
    sky: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class _Used:
    """The pixels used of an exposure, float32 and NaN elsewhere, and where they are."""

    image: np.ndarray
    pixel_map: PixelMap
    sky: float | None


@dataclass(frozen=True)
class Reading:
    """
    An exposure to be read.

    Parameters
    ----------
    name : str
        Its name.
    key : str
        What its cells are put away under.
    source : Path, _Used or Seen
        Its file, or what was made of it already where it is in memory.
    rules : Rules
        What is used of it.
    """

    name: str
    key: str
    source: "Path | _Used | Seen"
    rules: Rules


@dataclass(frozen=True)
class _Filed:
    """An array in a scratch file."""

    path: Path

    def load(self) -> np.ndarray:
        return np.load(self.path)


@dataclass(frozen=True)
class _Folder:
    """A folder for scratch files, which all processes see."""

    path: Path

    def keep(self, name: str, array: np.ndarray) -> _Filed:
        path = self.path / f"{name}.npy"

        def fill(part):
            with open(part, "wb") as file:
                np.save(file, array)

        whole_files.replace_scratch(path, fill)
        return _Filed(path)


def keeper(folder: Path | None) -> Keep:
    """
    Choose where cells are put away.

    Parameters
    ----------
    folder : Path or None
        Folder for scratch files; None keeps all in memory.

    Returns
    -------
    callable
        Puts an array away under a name.
    """
    return Held.keep if folder is None else _Folder(folder).keep


def readings(library: ModelLibrary, members: list[Member], rules: Rules) -> Iterator[Reading]:
    """
    Go through the exposures of an open library.

    Parameters
    ----------
    library : ModelLibrary
        The exposures.
    members : list of Member
        Those to be read.
    rules : Rules
        What is used of them.

    Yields
    ------
    Reading
        For `read`: with a path where the exposure is in a file, with its pixels where it is in memory.
    """
    for number, member in enumerate(members):
        source = file_of(library, member)
        if source is None:
            model = library.borrow(member.index)
            try:
                source = _use(model, rules)
            finally:
                library.shelve(model, member.index, modify=False)
        yield Reading(member.name, f"{number}_cells", source, rules)


def read(reading: Reading) -> Seen:
    """
    Read an exposure and average it over the cells of the sky grid.

    Parameters
    ----------
    reading : Reading
        The exposure.

    Returns
    -------
    Seen
        What is left of it.
    """
    used = reading.source
    if isinstance(used, Path):
        with exposures.open_file(used) as model:
            used = _use(model, reading.rules)
    if isinstance(used, Seen):
        return used
    cells = sky_cells.resample(used.image, used.pixel_map)
    if cells is not None:
        cells = CutOut.of(cells, keep=reading.rules.keep, name=reading.key)
    return Seen(cells, used.sky)


def _use(model: JwstDataModel, rules: Rules) -> _Used | Seen:
    # jwst 2.0.0 raises an error where there is none.
    if getattr(model.meta, "wcs", None) is None:
        return Seen(problem="has no WCS (was assign_wcs run?)")
    excluded = exposures.excluded_pixels(
        model, dqbits=rules.dqbits, lower=rules.lower, upper=rules.upper, regions=rules.regions
    )
    if excluded.all():
        return Seen(problem="has no usable pixel")
    sky = SkyStats(*rules.statistic)(model.data[~excluded])[0] if rules.statistic else None
    image = np.where(excluded, np.nan, model.data).astype(np.float32)
    mesh = exposures.pixel_mesh(model, rules.grid)
    return _Used(image, PixelMap(*mesh, exposures.frame_origin(model)), sky)
