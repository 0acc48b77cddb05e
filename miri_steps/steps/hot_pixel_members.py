"""The exposures of a library as `MedianHotPixelStep` keeps them between its two rounds."""

import zlib
from dataclasses import dataclass

import numpy as np
from astropy.coordinates import SkyCoord
from jwst.datamodels import ModelLibrary

from miri_steps.steps.base import Exposure, list_exposures

__all__ = ["Group", "Member", "PixelSet", "group_by_frame", "list_members"]

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


@dataclass(frozen=True)
class PixelSet:
    """A mask that takes kilobytes where the array takes a megabyte."""

    packed: bytes
    shape: tuple[int, int]

    @classmethod
    def of(cls, mask: np.ndarray) -> "PixelSet":
        """Pack a mask, shape (ny, nx)."""
        return cls(zlib.compress(np.packbits(mask).tobytes(), level=1), mask.shape)

    def mask(self) -> np.ndarray:
        """Unpack the mask, shape (ny, nx)."""
        bits = np.frombuffer(zlib.decompress(self.packed), np.uint8)
        return np.unpackbits(bits, count=self.shape[0] * self.shape[1]).reshape(self.shape).astype(bool)


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
    """

    hot: PixelSet | None = None
    dead: PixelSet | None = None
    protected: PixelSet | None = None

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
    Exposures of the same pixels.

    Parameters
    ----------
    members : list of Member
        The exposures.
    needed : int
        Number of them in which a bad pixel must stand out.
    hot, dead : ndarray or int
        Number of them in which each pixel does, shape (ny, nx); 0 before the first.
    """

    members: list[Member]
    needed: int
    hot: np.ndarray | int = 0
    dead: np.ndarray | int = 0

    def add(self, hot: np.ndarray, dead: np.ndarray) -> None:
        """Count what stands out in one more exposure."""
        self.hot = self.hot + hot.astype(np.uint16)
        self.dead = self.dead + dead.astype(np.uint16)

    def dither_reach(self) -> float | None:
        """Find the largest move from the first pointing [arcsec]; None where a pointing is not known."""
        keys = ("meta.wcsinfo.ra_ref", "meta.wcsinfo.dec_ref")
        pointings = [[member.meta.get(key) for key in keys] for member in self.members]
        if any(None in pointing for pointing in pointings):
            return None
        there = SkyCoord(pointings, unit="deg")
        return float(there.separation(there[0]).arcsec.max())

    @property
    def is_hot(self) -> np.ndarray:
        """True on pixels that stand out above in enough exposures, shape (ny, nx)."""
        return (self.hot >= self.needed) & (self.hot >= self.dead)

    @property
    def is_dead(self) -> np.ndarray:
        """True on pixels that stand out below in enough exposures, shape (ny, nx)."""
        return (self.dead >= self.needed) & (self.dead > self.hot)

    def bad(self, member: Member) -> tuple[np.ndarray, np.ndarray]:
        """Tell which pixels of an exposure are hot and which are dead."""
        if self.needed == 1:
            return member.hot.mask(), member.dead.mask()
        return self.is_hot, self.is_dead


def list_members(library: ModelLibrary) -> list[Member]:
    """
    List the science exposures in the order of their names.

    Parameters
    ----------
    library : ModelLibrary
        The exposures; only their headers are read.

    Returns
    -------
    list of Member
        The exposures.
    """
    return [Member(**vars(exposure)) for exposure in list_exposures(library, _USED)]


def group_by_frame(members: list[Member], min_exposures: int | None) -> list[Group]:
    """
    Put the exposures of the same pixels together.

    Parameters
    ----------
    members : list of Member
        The exposures.
    min_exposures : int or None
        Number of exposures in which a bad pixel must stand out; by default a third of them, and two
        at least. An exposure that has no other beside it is judged alone.

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
    groups = []
    for frame, inside in together.items():
        count = len(inside)
        needed = min_exposures or max(2, -(-count // 3))
        if min_exposures and 1 < count < needed:
            raise ValueError(
                f"min_exposures must be at most the number of exposures of the same pixels, {count} "
                f"({inside[0].name} ..., {frame[0]} {frame[3]}x{frame[4]}), got {min_exposures}"
            )
        groups.append(Group(inside, 1 if count == 1 else needed))
    return groups
