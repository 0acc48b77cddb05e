"""The exposures of a library as `SuperBackgroundStep` groups and keeps them."""

from dataclasses import dataclass, field

import numpy as np
from astropy.coordinates import angular_separation
from scipy.spatial import cKDTree

from miri_steps import detector
from miri_steps.steps.base import Exposure

__all__ = ["Group", "Member", "group_by_background", "same_background"]

# What is read of the metadata.
_USED = tuple(
    f"meta.{name}"
    for name in (
        "background",
        "bunit_data",
        "cal_step",
        "exposure.exposure_time",
        "exposure.mid_time",
        "exposure.readpatt",
        "exposure.start_time",
        "exposure.type",
        "instrument.detector",
        "instrument.filter",
        "subarray",
        "wcsinfo",
    )
)
# Exposures that agree in these have one background; the last two tell what was already taken from it.
_KEYS = (
    "instrument.filter",
    "instrument.detector",
    "subarray.name",
    *(f"subarray.{key}" for key in ("xstart", "ystart", "xsize", "ysize")),
    "exposure.readpatt",
    "bunit_data",
    "cal_step.bkg_sub",
    "background.detector_subtracted",
)
# Exposure times of one readout differ in the last digits of their headers, never by this part.
_TIME_TOLERANCE = 1e-3


@dataclass
class Member(Exposure):
    """
    An exposure whose background is built, or that helps to build one.

    Parameters
    ----------
    is_sky : bool
        Whether it shows nothing but background, of the separate sky set.
    pointing : tuple of float, optional
        Where the middle of its frame looks, RA and Dec [deg].
    is_dead : bool
        Whether it has no usable pixel.
    left_out : tuple of int
        Members of the group that take no part in its background.
    problem : str, optional
        Why nothing is done to it.
    """

    used = _USED

    is_sky: bool = False
    pointing: tuple[float, float] | None = None
    is_dead: bool = False
    left_out: tuple[int, ...] = ()
    problem: str | None = None

    @property
    def key(self) -> tuple:
        """What exposures of one background have in common."""
        return tuple(self.meta.get(f"meta.{key}") for key in _KEYS)

    @property
    def band(self) -> str | None:
        """Name of the filter."""
        return self.meta.get("meta.instrument.filter")

    @property
    def seconds(self) -> float:
        """Exposure time [s]; 0 where it is not known."""
        return self.meta.get("meta.exposure.exposure_time") or 0.0

    @property
    def time(self) -> float | None:
        """Middle or start of the exposure [d]."""
        return self.meta.get("meta.exposure.mid_time") or self.meta.get("meta.exposure.start_time")

    @property
    def is_done(self) -> bool:
        """Whether it is a product of this Step."""
        return self.meta.get("meta.cal_step.super_background") == "COMPLETE"


@dataclass
class Group:
    """
    Exposures that have one background.

    Parameters
    ----------
    members : list of Member
        All of them, sky set included.
    is_only : bool
        Whether there is no other group.
    number : int, optional
        Tells it from other groups of the same file name.
    """

    members: list[Member] = field(default_factory=list)
    is_only: bool = False
    number: int | None = None

    @property
    def builders(self) -> list[Member]:
        """Those that the background is built from: the sky set if there is one."""
        return [member for member in self.members if member.is_sky] or self.members

    @property
    def targets(self) -> list[Member]:
        """Those it is subtracted from."""
        return [member for member in self.members if not member.is_sky]

    @property
    def name(self) -> str:
        """Say what they have in common."""
        first = self.members[0]
        state = dict(zip(_KEYS, first.key, strict=True))
        said = (
            *(*first.key[:3], state["exposure.readpatt"], f"{first.seconds:g} s"),
            *(state["bunit_data"] or "without BUNIT",),
            "after background subtraction" if state["cal_step.bkg_sub"] == "COMPLETE" else None,
            "without detector background" if state["background.detector_subtracted"] else None,
        )
        return " ".join(str(part) for part in said if part)

    @property
    def file_name(self) -> str:
        """Say the same as a part of a file name, with the time of the first exposure in seconds."""
        first = self.members[0]
        said = (*first.key[:3], f"{first.seconds:.0f}s", self.number)
        return "_".join(str(part).lower() for part in said if part)

    @property
    def fwhm(self) -> float:
        """Width of a star [pixel]."""
        return detector.FWHM[self.members[0].band]

    def leave_out(self, *, leave_one_out: bool, min_separation: float) -> None:
        """
        Tell for every target which builders take no part in its background.

        Parameters
        ----------
        leave_one_out : bool
            Whether an exposure and those close to it are left out of its own background.
        min_separation : float
            What is close [FWHM of a star].
        """
        builders, targets = self.builders, self.targets
        dead = tuple(k for k, builder in enumerate(builders) if builder.is_dead)
        if not leave_one_out or builders[0].is_sky:
            for target in targets:
                target.left_out = dead
            return
        place = {id(builder): k for k, builder in enumerate(builders)}
        reach = min_separation * self.fwhm * detector.PIXEL_SCALE
        # Exposures of one pointing leave out the same: kept once.
        known = {}
        for target, near in zip(targets, _near(targets, builders, reach), strict=True):
            left = tuple(sorted({*near, *dead, place[id(target)]}))
            target.left_out = known.setdefault(left, left)


def _near(targets, builders, reach):
    """Find for each target the builders that are pointed closer to it than so much [arcsec]."""
    where = np.array([k for k, builder in enumerate(builders) if builder.pointing is not None], int)
    if not len(where) or reach <= 0:
        return [[] for _ in targets]
    there = np.radians([builders[k].pointing for k in where])
    # A little farther, for the distances of the few candidates are found again below.
    chord = 2 * np.sin(np.radians(min(reach / 3600 * (1 + 1e-6), 180)) / 2) + 1e-12
    tree = cKDTree(_directions(there))
    found = []
    for target in targets:
        if target.pointing is None:
            found.append([])
            continue
        here = np.radians(target.pointing)
        few = np.array(tree.query_ball_point(_directions(here), chord), int)
        away = np.degrees(angular_separation(*here, *there[few].T)) * 3600
        found.append(where[few[away < reach]].tolist())
    return found


def _directions(positions):
    """Turn right ascension and declination [rad] into unit vectors."""
    ra, dec = np.moveaxis(np.asarray(positions), -1, 0)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def same_background(first: dict, second: dict) -> bool:
    """
    Tell from metadata whether a background is that of other exposures too.

    Parameters
    ----------
    first, second : dict
        Metadata, keyed ``meta.a.b``. What the first does not know is not compared.

    Returns
    -------
    bool
        True if they agree in filter, detector, subarray, readout and exposure time.
    """
    known = [key for key in _KEYS if f"meta.{key}" in first]
    times = [meta.get("meta.exposure.exposure_time") or 0.0 for meta in (first, second)]
    return all(first[f"meta.{key}"] == second.get(f"meta.{key}") for key in known) and (
        abs(times[0] - times[1]) <= _TIME_TOLERANCE * min(times)
    )


def group_by_background(members: list[Member], max_days: float | None) -> list[Group]:
    """
    Put the exposures of one background together.

    Parameters
    ----------
    members : list of Member
        The exposures.
    max_days : float or None
        Longest time from the first exposure of a group to its last [d]; None for no limit.

    Returns
    -------
    list of Group
        In the order of their keys.

    Raises
    ------
    ValueError
        If there is a limit and an exposure does not say when it was taken.
    """
    together = {}
    for member in members:
        together.setdefault(member.key, []).append(member)
    groups = []
    for key in sorted(together, key=str):
        for same_length in _chains(together[key], lambda m: m.seconds, lambda first: first * _TIME_TOLERANCE):
            if max_days is None:
                groups.append(same_length)
                continue
            for member in same_length:
                if member.time is None:
                    raise ValueError(f"max_days needs EXPMID or EXPSTART, but {member.name} has neither")
            groups += _chains(same_length, lambda m: m.time, lambda first: max_days)
    return [Group(sorted(group, key=lambda m: (m.name, m.index))) for group in groups]


def _chains(members, value, reach):
    """Cut the sorted exposures where one is further from the first of its group than it may be."""
    groups = []
    for member in sorted(members, key=lambda m: (value(m), m.name, m.index)):
        if groups and value(member) - value(groups[-1][0]) <= reach(value(groups[-1][0])):
            groups[-1].append(member)
        else:
            groups.append([member])
    return groups
