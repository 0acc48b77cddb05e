"""What the calibration knows beforehand: filters, subarrays, stars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from astropy.table import Table

from miri_steps import detector

__all__ = [
    "REFERENCE_SUBARRAY",
    "Band",
    "Star",
    "band",
    "bands",
    "by_band",
    "by_subarray",
    "star",
    "subarray",
    "transmissions",
]

#: The transmission of a subarray is the rate of a star in it over that in this one.
REFERENCE_SUBARRAY = "SUB256"

_DATA = Path(__file__).with_name("data")


@dataclass(frozen=True)
class Band:
    """
    A filter.

    Parameters
    ----------
    name : str
        Value of FILTER.
    pivot : float
        Pivot wavelength [micron].
    fwhm : float
        Width of a star at half maximum [native pixel].
    join : float
        Radius where observed growth curves are joined to the model PSF [native pixel].
    sigma : float
        Clipping limit of calibration factors [weighted standard deviation].
    subarrays : tuple of str
        Subarrays that reference files have rows for.
    """

    name: str
    pivot: float
    fwhm: float
    join: float
    sigma: float
    subarrays: tuple[str, ...]

    @property
    def is_coronagraphic(self) -> bool:
        """Whether it is a filter of a coronagraph."""
        return self.name.endswith("C")


@dataclass(frozen=True)
class Star:
    """A flux standard, and its type: "hot", "A dwarf" or "solar analogue"; "other" where it is not listed."""

    name: str
    type: str


@cache
def bands() -> Mapping[str, Band]:
    """
    List the filters.

    Returns
    -------
    mapping
        `Band` by the name of the filter.
    """
    rows = Table.read(_DATA / "filters.ecsv")
    return MappingProxyType(
        {
            str(row["filter"]): Band(
                name=str(row["filter"]),
                pivot=detector.wavelength(row["filter"]),
                fwhm=detector.FWHM[row["filter"]],
                join=row["join"] * detector.FWHM[row["filter"]],
                sigma=row["sigma"],
                subarrays=tuple(row["subarrays"].split()),
            )
            for row in rows
        }
    )


def band(name: str) -> Band:
    """
    Look up a filter.

    Parameters
    ----------
    name : str
        Its name, in capitals or not.

    Returns
    -------
    Band
        The filter.

    Raises
    ------
    ValueError
        If MIRI's imager has none of this name.
    """
    known = bands()
    if name.upper() not in known:
        raise ValueError(f"filter must be one of {', '.join(known)}, got {name}")
    return known[name.upper()]


@cache
def transmissions() -> Mapping[str, float]:
    """
    List the rates that a star has in subarrays.

    Returns
    -------
    mapping
        Rate in units of that in `REFERENCE_SUBARRAY`, by the name of the subarray; what is not listed, as the
        subarrays of coronagraphs, was not compared with it.
    """
    rows = Table.read(_DATA / "subarrays.ecsv")
    return MappingProxyType(dict(zip(rows["subarray"].tolist(), rows["transmission"].tolist(), strict=True)))


def subarray(name: str) -> str:
    """
    Name the subarray whose reference data one has.

    Parameters
    ----------
    name : str
        Value of SUBARRAY, in capitals or not.

    Returns
    -------
    str
        In capitals; that in in-pixel mode is a copy of the one without ``_IP``.

    Examples
    --------
    >>> subarray("SUB64_IP")
    'SUB64'
    """
    return name.upper().removesuffix("_IP")


def by_band(what: str, given: Mapping[str, object]) -> dict[str, object]:
    """
    Put what is given by filter under their names here.

    Parameters
    ----------
    what : str
        What it is, for words.
    given : mapping
        By the name of the filter, in capitals or not.

    Returns
    -------
    dict
        The same by `Band.name`.

    Raises
    ------
    ValueError
        If a filter is not known, or is there twice.
    """
    return _renamed(what, given, lambda name: band(name).name)


def by_subarray(what: str, given: Mapping[str, object]) -> dict[str, object]:
    """
    Put what is given by subarray under the names of `subarray`.

    Parameters
    ----------
    what : str
        What it is, for words.
    given : mapping
        By the name of the subarray, in capitals or not, with ``_IP`` or without.

    Returns
    -------
    dict
        The same by `subarray`.

    Raises
    ------
    ValueError
        If two names are those of one subarray.

    Examples
    --------
    >>> by_subarray("transmissions", {"sub64_ip": 0.97})
    {'SUB64': 0.97}
    """
    return _renamed(what, given, subarray)


def _renamed(what, given, rename):
    found = {}
    for name, value in given.items():
        if rename(name) in found:
            raise ValueError(f"{what} must hold {rename(name)} once, got {', '.join(given)}")
        found[rename(name)] = value
    return found


def star(name: str) -> Star:
    """
    Find a flux standard by any of its names.

    Parameters
    ----------
    name : str
        Name, as in TARGNAME; capitals, blanks, hyphens and underscores make no difference to those listed.

    Returns
    -------
    Star
        Its name and type; a star that is not listed keeps its name, without blanks around it, and has
        the type "other".

    Examples
    --------
    >>> star("J1757132").name
    '2MASS J17571324+6703409'
    """
    return _stars().get(_plain(name), Star(name.strip(), "other"))


@cache
def _stars():
    found = {}
    for row in Table.read(_DATA / "stars.ecsv").filled(""):
        known = Star(str(row["name"]), str(row["type"]))
        for name in (known.name, *str(row["aliases"]).split("|")):
            if name:
                found[_plain(name)] = known
    return found


def _plain(name):
    # Proposals have hyphens where names have blanks.
    return "".join(name.upper().translate(str.maketrans("_-*", "   ")).split())
