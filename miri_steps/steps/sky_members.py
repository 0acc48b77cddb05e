"""The exposures of a library as `PixelSkyMatchStep` keeps them while it reads one after the other."""

import logging
from dataclasses import dataclass

import numpy as np

from miri_steps import exposures
from miri_steps.algorithms.sky_cells import CutOut
from miri_steps.steps.base import Exposure

__all__ = ["Member", "corners"]

log = logging.getLogger(f"stpipe.{__name__}")

# What is read of the metadata.
_USED = tuple(
    f"meta.{name}"
    for name in (
        "background",
        "bunit_data",
        "cal_step",
        "exposure.type",
        "instrument.filter",
        "observation",
        "wcsinfo",
    )
)


@dataclass
class Member(Exposure):
    """
    An exposure while the sky is matched.

    Parameters
    ----------
    cells : CutOut, optional
        The exposure on the sky grid, until it is matched.
    cell_size : float, optional
        Side of its cells [detector pixel].
    sky : float, optional
        Statistic of the whole image, where the method needs it.
    level : float, optional
        The level found; None when there is none.
    problem : str, optional
        Why there is none.
    """

    used = _USED

    cells: CutOut | None = None
    cell_size: float = 0.0
    sky: float | None = None
    level: float | None = None
    problem: str = "overlaps no other exposure"

    @property
    def unit(self) -> str:
        """Unit of the data."""
        return self.meta.get("meta.bunit_data") or ""

    @property
    def visit(self) -> str:
        """VISIT_ID; an exposure that has none is a visit of its own."""
        return self.meta.get("meta.observation.visit_id") or self.name


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
        Corners from S_REGION, or the reference point where that cannot be read, shape (n, 2) [deg].

    Raises
    ------
    ValueError
        If no exposure says where it points.
    """
    found = []
    for member in members:
        region = member.meta.get("meta.wcsinfo.s_region")
        reference = [member.meta.get(f"meta.wcsinfo.{key}") for key in ("ra_ref", "dec_ref")]
        try:
            found.append(exposures.parse_s_region(region or ""))
        except ValueError as error:
            log.warning("%s: %s; its reference point is used", member.name, error)
            found += [np.array([reference], float)] if None not in reference else []
    if not found:
        raise ValueError(f"S_REGION or RA_REF and DEC_REF must be set, but {members[0].name} has neither")
    return np.concatenate(found)
