"""The exposures of a library as `MedianHotPixelStep` keeps them between its two rounds."""

from dataclasses import dataclass, field

import numpy as np
from astropy.coordinates import SkyCoord

from miri_steps.algorithms.hot_pixels import Outstanding
from miri_steps.steps.base import Exposure
from miri_steps.steps.pixel_set import PixelSet

__all__ = ["Group", "Member", "group_by_frame"]

# What is read of the metadata.
_USED = tuple(
    f"meta.{name}"
    for name in (
        "cal_step",
        "exposure.type",
        "instrument.detector",
        "instrument.filter",
        "subarray",
        "wcsinfo",
    )
)
_FRAME = ("instrument.detector", *(f"subarray.{key}" for key in ("xstart", "ystart", "xsize", "ysize")))


@dataclass
class Member(Exposure):
    """
    An exposure between the two rounds.

    Parameters
    ----------
    hot, dead : PixelSet, optional
        What stands out in it and is no source.
    protected : PixelSet, optional
        Its sources.
    usable, hole : PixelSet, optional
        Pixels that see the sky, and those that may be filled.
    """

    used = _USED

    hot: PixelSet | None = None
    dead: PixelSet | None = None
    protected: PixelSet | None = None
    usable: PixelSet | None = None
    hole: PixelSet | None = None

    @property
    def frame(self) -> tuple:
        """Detector and readout window: exposures that agree in them see the same pixels."""
        return tuple(self.meta.get(f"meta.{key}") for key in _FRAME)

    @property
    def band(self) -> str | None:
        """Name of the filter."""
        return self.meta.get("meta.instrument.filter")

    @property
    def is_done(self) -> bool:
        """Whether it is a product of this Step."""
        return self.meta.get("meta.cal_step.median_hot_pixel") == "COMPLETE"


@dataclass
class Group:
    """
    Exposures of the same pixels, and in how many of them each pixel stands out.

    Parameters
    ----------
    members : list of Member
        The exposures.
    min_exposures : int or None
        Number of them in which a bad pixel must stand out; None for a third of those in which it
        could be judged, and two at least if there are two.
    """

    members: list[Member]
    min_exposures: int | None
    _judged: np.ndarray | int = field(init=False, default=0)
    _above: np.ndarray | int = field(init=False, default=0)
    _below: np.ndarray | int = field(init=False, default=0)
    _hot: np.ndarray | bool = field(init=False, default=False)
    _dead: np.ndarray | bool = field(init=False, default=False)

    def add(self, member: Member, found: Outstanding, free: np.ndarray) -> None:
        """
        Count what stands out in one more exposure.

        Parameters
        ----------
        member : Member
            The exposure; it keeps what stands out alone.
        found : Outstanding
            What stands out.
        free : ndarray
            True where that counts, shape (ny, nx): on usable pixels outside sources.

        Raises
        ------
        ValueError
            If the exposure has not the shape of those before.
        """
        if np.ndim(self._judged) and self._judged.shape != free.shape:
            raise ValueError(
                f"exposures of one detector and subarray must have one shape, but {self.members[0].name} has "
                f"{self._judged.shape} and {member.name} has {free.shape}"
            )
        hot, dead = found.hot & free, found.dead & free
        member.hot, member.dead = PixelSet.of(hot), PixelSet.of(dead)
        self._judged = self._judged + free.astype(np.uint16)
        self._above = self._above + (found.above & free).astype(np.uint16)
        self._below = self._below + (found.below & free).astype(np.uint16)
        self._hot, self._dead = self._hot | hot, self._dead | dead

    @property
    def _needed(self):
        if self.min_exposures:
            return self.min_exposures
        # Where sources cover a pixel in all exposures but one, that one judges it alone.
        return np.maximum((self._judged + 2) // 3, np.minimum(self._judged, 2))

    @property
    def is_hot(self) -> np.ndarray:
        """True on pixels that stand out above in enough exposures, in one of them alone, shape (ny, nx)."""
        return self._hot & (self._above >= self._needed) & (self._above >= self._below)

    @property
    def is_dead(self) -> np.ndarray:
        """True on pixels that stand out below in enough exposures, in one of them alone, shape (ny, nx)."""
        return self._dead & (self._below >= self._needed) & (self._below > self._above)

    @property
    def count(self) -> np.ndarray:
        """Number of exposures in which a pixel stands out that does so alone in any, shape (ny, nx)."""
        return self._above * self._hot + self._below * self._dead

    def bad(self, member: Member) -> tuple[np.ndarray, np.ndarray]:
        """Tell which pixels of an exposure are hot and which are dead."""
        if self.min_exposures == 1 or len(self.members) == 1:
            return member.hot.mask(), member.dead.mask()
        return self.is_hot, self.is_dead

    def dither_reach(self) -> float | None:
        """Find the largest move from the first pointing [arcsec]; None where a pointing is not known."""
        keys = ("meta.wcsinfo.ra_ref", "meta.wcsinfo.dec_ref")
        pointings = [[member.meta.get(key) for key in keys] for member in self.members]
        if any(None in pointing for pointing in pointings):
            return None
        there = SkyCoord(pointings, unit="deg")
        return float(there.separation(there[0]).arcsec.max())


def group_by_frame(members: list[Member], min_exposures: int | None) -> list[Group]:
    """
    Put the exposures of the same pixels together.

    Parameters
    ----------
    members : list of Member
        The exposures.
    min_exposures : int or None
        Number of exposures in which a bad pixel must stand out, see `Group`. An exposure that has no
        other beside it is judged alone.

    Returns
    -------
    list of Group
        In the order in which the first of each is listed.

    Raises
    ------
    ValueError
        If a group has fewer exposures than `min_exposures`.
    """
    together = {}
    for member in members:
        together.setdefault(member.frame, []).append(member)
    for frame, inside in together.items():
        if min_exposures and 1 < len(inside) < min_exposures:
            raise ValueError(
                f"min_exposures must be at most the number of exposures of the same pixels, {len(inside)} "
                f"({inside[0].name} ..., {frame[0]} {frame[3]}x{frame[4]}), got {min_exposures}"
            )
    return [Group(inside, min_exposures) for inside in together.values()]
