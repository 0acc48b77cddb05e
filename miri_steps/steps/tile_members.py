"""The exposures of a library as `TileAstrometryStep` sorts them into tiles."""

import logging
from dataclasses import dataclass

from astropy.time import Time

from miri_steps import detector, exposures
from miri_steps.steps.base import Exposure
from miri_steps.steps.tile_direct import ExposureStars
from miri_steps.steps.tile_wcs import Correction

__all__ = ["GROUPINGS", "Member", "Tile", "filter_order", "into_tiles", "tile_name"]

log = logging.getLogger(f"stpipe.{__name__}")

#: What exposures of one tile have in common.
GROUPINGS = {
    "visit_guide_star": ("visit_id", "gs_id"),
    "guide_star": ("gs_id",),
    "visit": ("visit_id",),
    "observation": ("observation",),
}

# The point that a correction refers to, on the sky and in the telescope.
_REFERENCE = tuple(f"wcsinfo.{name}_ref" for name in ("ra", "dec", "v2", "v3", "roll"))
# What is read of the metadata.
_USED = tuple(
    f"meta.{name}"
    for name in (
        *("cal_step", "exposure.type", "instrument.filter", "observation.visit_id", "guidestar.gs_id"),
        *("observation.date", *_REFERENCE),
    )
)
_KEYWORDS = {"visit_id": "VISIT_ID", "gs_id": "GDSTARID", "observation": "VISIT_ID"}


@dataclass
class Member(Exposure):
    """
    An exposure and what is known of its pointing.

    Parameters
    ----------
    found : Correction, optional
        The correction in its gWCS.
    stars : int, optional
        Number of stars that gave it, where that is known.
    detected : ExposureStars, optional
        Its stars, where they are wanted.
    problem : str
        Why its own correction does not count.
    is_fixed : bool
        Whether its WCS leaves no place for a correction.
    stored : Correction, optional
        What an earlier run of this Step gave it, if its gWCS is still as that run left it.
    chosen : Correction, optional
        The correction it gets.
    source : str
        Where that comes from, or why there is none.
    """

    used = _USED

    found: Correction | None = None
    stars: int | None = None
    detected: ExposureStars | None = None
    problem: str = ""
    is_fixed: bool = False
    stored: Correction | None = None
    chosen: Correction | None = None
    source: str = ""

    @property
    def band(self) -> str:
        """Name of the filter."""
        return self.meta["meta.instrument.filter"]

    @property
    def visit_id(self) -> str:
        """Program, observation and visit, 11 digits; empty where not known."""
        return self.meta.get("meta.observation.visit_id") or ""

    @property
    def observation(self) -> str:
        """Program and observation, 8 digits; empty where not known."""
        return self.visit_id[:8]

    @property
    def gs_id(self) -> str:
        """Guide star; empty where not known."""
        return self.meta.get("meta.guidestar.gs_id") or ""

    @property
    def position(self) -> tuple[float | None, float | None]:
        """Where the telescope was told to look [deg]."""
        return self.meta.get("meta.wcsinfo.ra_ref"), self.meta.get("meta.wcsinfo.dec_ref")

    @property
    def lacks_reference(self) -> bool:
        """Whether the point that a correction refers to is not known."""
        return any(self.meta.get(f"meta.{name}") is None for name in _REFERENCE)

    @property
    def mjd(self) -> float:
        """When it was taken [MJD]."""
        date = self.meta.get("meta.observation.date")
        if date is None:
            raise ValueError(
                f"DATE-OBS of {self.name} must say when to look for the reference stars, got None"
            )
        return Time(date).mjd

    def summary(self) -> str:
        """Say what was found in it."""
        words = [self.problem] if self.problem else []
        if self.detected is not None:
            words.append(f"it has {len(self.detected)} stars")
        elif self.found:
            words.append("it is moved by {:+.4f} {:+.4f} arcsec (East, North)".format(*self.found.shift))
        return "; ".join(words) or "it has no correction"


@dataclass(frozen=True)
class Tile:
    """
    Exposures that share the error of their pointing.

    Parameters
    ----------
    name : str
        What they have in common.
    members : list of Member
        The exposures.
    """

    name: str
    members: list[Member]

    @property
    def visit_ids(self) -> list[str]:
        """Visits of the exposures."""
        return _different(member.visit_id for member in self.members)

    @property
    def gs_ids(self) -> list[str]:
        """Guide stars of the exposures."""
        return _different(member.gs_id for member in self.members)

    @property
    def position(self) -> tuple[float, float]:
        """Its middle: where the telescope was told to look, on average [deg]."""
        return exposures.sky_middle([member.position for member in self.members if not member.is_fixed])

    def by_filter(self) -> dict[str, list[Member]]:
        """Sort the exposures into filters, shortest wavelength first."""
        bands = sorted({member.band for member in self.members}, key=filter_order)
        return {band: [member for member in self.members if member.band == band] for band in bands}


def filter_order(band: str) -> float:
    """
    Tell how narrow stars are in a filter: the narrower, the better they are measured.

    Parameters
    ----------
    band : str
        Its name.

    Returns
    -------
    float
        Width of a star [pixel]; infinite for a filter that is not known.
    """
    return detector.FWHM.get(band, float("inf"))


def tile_name(group_by: str, visit_id: str, gs_id: str) -> str:
    """
    Name the tile of an exposure.

    Parameters
    ----------
    group_by : str
        One of `GROUPINGS`.
    visit_id, gs_id : str
        Its visit and guide star, empty where not known.

    Returns
    -------
    str
        What the exposures of the tile have in common.
    """
    known = {"visit_id": visit_id, "gs_id": gs_id, "observation": visit_id[:8]}
    return " ".join(filter(None, (known[name] for name in GROUPINGS[group_by])))


def into_tiles(members: list[Member], group_by: str) -> list[Tile]:
    """
    Put exposures that share the error of their pointing together.

    Parameters
    ----------
    members : list of Member
        The exposures.
    group_by : str
        One of `GROUPINGS`.

    Returns
    -------
    list of Tile
        In the order of their names.

    Raises
    ------
    ValueError
        If the keyword that tells tiles apart is missing. A missing guide star is no error where visits
        tell them apart as well.
    """
    together = {}
    for member in members:
        key = {name: getattr(member, name) for name in GROUPINGS[group_by]}
        missing = [name for name, value in key.items() if not value]
        if missing == ["gs_id"] and len(key) > 1:
            log.warning("%s has no GDSTARID: its tile is its visit, %s.", member.name, member.visit_id)
        elif missing:
            raise ValueError(
                f"group_by='{group_by}' needs {_KEYWORDS[missing[0]]} of each exposure, "
                f"but {member.name} has none"
            )
        together.setdefault(tile_name(group_by, member.visit_id, member.gs_id), []).append(member)
    return [Tile(name, inside) for name, inside in sorted(together.items())]


def _different(values):
    return sorted(set(filter(None, values)))
