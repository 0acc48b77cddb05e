"""What `PixelSkyMatchStep` wants of its input, checked before any work is done."""

from pathlib import Path

import numpy as np
from jwst.lib.suffix import remove_suffix

from miri_steps import exposures
from miri_steps.steps.sky_members import Member

__all__ = ["already_subtracted", "check_members", "read_skylist"]


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
        True when all have been through this Step and something was subtracted from any of them.

    Raises
    ------
    ValueError
        If the detector background was subtracted from some, and others have not been through.
    """
    new = [member for member in members if not member.meta.get("meta.cal_step.pixel_skymatch")]
    flat = [member for member in members if member.meta.get("meta.background.detector_subtracted")]
    if flat and new:
        raise ValueError(
            f"the detector background was subtracted from {len(flat)} of {len(members)} exposures "
            f"({flat[0].name} ...) and cannot be found in them together with others ({new[0].name} ...)"
        )
    return not new and (
        bool(flat) or any(member.meta.get("meta.background.subtracted") for member in members)
    )


def read_skylist(path: str | None, members: list[Member]) -> list[float]:
    """
    Read a list of sky values that names every exposure once.

    Parameters
    ----------
    path : str or None
        Text file with a file name and a level per line.
    members : list of Member
        The exposures.

    Returns
    -------
    list of float
        Level of each exposure, in single precision as ``skymatch`` reads it.

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
    listed = [_stem(name) for name, _ in entries]
    wanted = [_stem(member.name) for member in members]
    if sorted(listed) != sorted(wanted):
        raise ValueError(
            f"skylist {path} must name each of the {len(wanted)} exposures once, got {len(listed)} entries; "
            f"missing: {sorted(set(wanted) - set(listed))}, unknown: {sorted(set(listed) - set(wanted))}"
        )
    values = dict(zip(listed, (float(np.float32(value)) for _, value in entries), strict=True))
    return [values[stem] for stem in wanted]


def _stem(name):
    return remove_suffix(Path(name).stem)[0]


def _is_number(text):
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False
