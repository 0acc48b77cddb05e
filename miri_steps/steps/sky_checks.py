"""What `PixelSkyMatchStep` wants of its input, checked before any work is done."""

from pathlib import Path

import numpy as np
from jwst.lib.suffix import remove_suffix

from miri_steps import exposures
from miri_steps.steps.sky_products import Member

__all__ = ["already_subtracted", "check_members", "check_skylist", "corners"]


def check_members(members: list[Member], *, subtract: bool, by_visit: bool) -> None:
    """
    Refuse exposures that cannot be matched with each other.

    Parameters
    ----------
    members : list of Member
        The exposures.
    subtract : bool
        Whether levels are to be subtracted.
    by_visit : bool
        Whether visits are to be matched.

    Raises
    ------
    ValueError
        If there is no exposure, one is not MIRI imaging, filters differ, a VISIT_ID is missing,
        or what a former run left in ``meta.background`` does not fit `subtract`.
    """
    if not members:
        raise ValueError("the input must hold at least 1 science exposure, got 0")
    filters = {}
    for member in members:
        exposures.check_imaging(member.name, member.meta.get("meta.exposure.type"))
        _check_background(member, subtract)
        if by_visit and not member.meta.get("meta.observation.visit_id"):
            raise ValueError(f"grouping='visit' needs VISIT_ID, but {member.name} has none")
        filters.setdefault(member.meta.get("meta.instrument.filter"), []).append(member.name)
    if len(filters) > 1:
        counted = ", ".join(f"{len(names)} of {band} ({names[0]} ...)" for band, names in filters.items())
        raise ValueError(f"exposures matched with each other must be of one filter, got {counted}")


def _check_background(member, subtract):
    """Hold the rules of ``skymatch`` for exposures that have been through it."""
    level, subtracted = (member.meta.get(f"meta.background.{key}") for key in ("level", "subtracted"))
    if subtracted is None and level is not None:
        raise ValueError(
            f"Background level of {member.name} was set to {level} but the 'subtracted' property is "
            "undefined (None)."
        )
    if subtracted is None:
        return
    if level is None:
        raise ValueError(
            f"Background level of {member.name} was subtracted but the 'level' property is undefined (None)."
        )
    if bool(subtracted) != subtract:
        raise ValueError(
            f"'subtract' step's specification ({subtract}) is inconsistent with background info already "
            f"present in image '{member.name}' meta ({bool(subtracted)})."
        )


def already_subtracted(members: list[Member]) -> bool:
    """
    Tell whether the data are a product of this Step that cannot be made twice.

    Parameters
    ----------
    members : list of Member
        The exposures.

    Returns
    -------
    bool
        True when levels or the detector background were subtracted from all of them.

    Raises
    ------
    ValueError
        If the detector background was subtracted from some of them only.
    """
    flat = [member for member in members if member.meta.get("meta.background.detector_subtracted")]
    if flat and len(flat) < len(members):
        raise ValueError(
            "the detector background must be in all exposures or in none: it was subtracted from "
            f"{len(flat)} of {len(members)} ({flat[0].name} ...)"
        )
    return bool(flat) or all(
        member.meta.get("meta.cal_step.pixel_skymatch") == "COMPLETE"
        and member.meta.get("meta.background.subtracted")
        for member in members
    )


def check_skylist(path: str | None, members: list[Member]) -> None:
    """
    Refuse a list of sky values that does not name every exposure once.

    Parameters
    ----------
    path : str or None
        Text file with a file name and a level per line.
    members : list of Member
        The exposures.

    Raises
    ------
    ValueError
        If there is no list, a line cannot be read, or names are missing, unknown or doubled.
    """
    if path is None:
        raise ValueError('skymethod set to "user", but no sky value file provided.')
    lines = [line.split("#")[0].split() for line in Path(path).read_text().splitlines()]
    entries = [line for line in lines if line]
    for entry in entries:
        if len(entry) != 2 or not _is_number(entry[1]):
            raise ValueError(
                f"each line of skylist {path} must be a name and a number, got {' '.join(entry)!r}"
            )
    listed = sorted(_stem(name) for name, _ in entries)
    wanted = sorted(_stem(member.name) for member in members)
    if listed != wanted:
        raise ValueError(
            f"skylist {path} must name each of the {len(wanted)} exposures once, got {len(listed)} entries; "
            f"missing: {sorted(set(wanted) - set(listed))}, unknown: {sorted(set(listed) - set(wanted))}"
        )


def _stem(name):
    return remove_suffix(Path(name).stem)[0]


def _is_number(text):
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def corners(members: list[Member]) -> np.ndarray:
    """
    Gather positions all over the field from headers alone.

    Parameters
    ----------
    members : list of Member
        The exposures.

    Returns
    -------
    ndarray
        Corners from S_REGION, or the reference point where that is missing, shape (n, 2) [deg].

    Raises
    ------
    ValueError
        If no exposure says where it points.
    """
    found = []
    for member in members:
        region = member.meta.get("meta.wcsinfo.s_region")
        reference = [member.meta.get(f"meta.wcsinfo.{key}") for key in ("ra_ref", "dec_ref")]
        if region:
            found.append(exposures.parse_s_region(region))
        elif None not in reference:
            found.append(np.array([reference], float))
    if not found:
        raise ValueError(f"S_REGION or RA_REF and DEC_REF must be set, but {members[0].name} has neither")
    return np.concatenate(found)
