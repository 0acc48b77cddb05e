"""The exposures in a folder, and where each of them enters the chain."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning

from miri_steps import detector
from miri_steps.steps.base import check_file

__all__ = ["KINDS", "Source", "find"]

#: What files an exposure can start from, the rawest first.
KINDS = ("uncal", "rate", "cal")
# The imager's own field: coronagraphs and target acquisitions make no mosaic.
_EXP_TYPE = "MIR_IMAGE"


@dataclass(frozen=True)
class Source:
    """
    An exposure as it was found.

    Parameters
    ----------
    name : str
        Its name, the file name without ``_uncal.fits``.
    kind : str
        What it starts from, one of `KINDS`.
    path : Path
        That file.
    rateints : Path, optional
        The integrations of a rate.
    band : str
        Name of the filter.
    visit_id, gs_id : str
        Visit and guide star, empty where not known.
    problem : str
        Why it takes no part.
    is_broken : bool
        Whether that is because its file cannot be read.
    """

    name: str
    kind: str
    path: Path
    rateints: Path | None = None
    band: str = ""
    visit_id: str = ""
    gs_id: str = ""
    problem: str = ""
    is_broken: bool = False


def find(folder: Path, start: str | None = None, leave_out: Sequence[Path] = ()) -> list[Source]:
    """
    Find the exposures in a folder and the folders in it.

    Parameters
    ----------
    folder : Path
        Where files named ``_uncal.fits``, ``_rate.fits``, ``_rateints.fits`` and ``_cal.fits`` are.
    start : str, optional
        Which of them to start from; by default the rawest that each exposure has.
    leave_out : sequence of Path
        Folders that are not searched, as hidden ones never are.

    Returns
    -------
    list of Source
        By filter, shortest first, and name. Those that can take no part have a `problem`.

    Raises
    ------
    NotADirectoryError
        If there is no such folder.
    ValueError
        If `start` is not known, no exposure is there, or two files of one name are.
    """
    if start is not None and start not in KINDS:
        raise ValueError(f"the kind of file to start from must be one of {', '.join(KINDS)}, got {start!r}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} must be a folder of exposures, but there is no such folder")
    files = _list_files(folder, leave_out)
    kinds = (start,) if start else KINDS
    names = sorted({name for kind in kinds for name in files[kind]})
    if not names:
        wanted = " or ".join(f"_{kind}.fits" for kind in kinds)
        raise ValueError(f"{folder} must hold exposures, but no file in it ends with {wanted}")
    sources = []
    for name in names:
        kind = next(kind for kind in kinds if name in files[kind])
        path = _the_only(files[kind][name])
        rateints = _the_only(files["rateints"].get(name, [])) if kind == "rate" else None
        sources.append(_look_at(name, kind, path, rateints))
    return sorted(sources, key=lambda source: (detector.wavelength(source.band), source.name))


def _list_files(folder: Path, leave_out: Sequence[Path]) -> dict[str, dict[str, list[Path]]]:
    """List files by kind and name of the exposure."""
    files = {kind: {} for kind in (*KINDS, "rateints")}
    for path in _visible(folder, leave_out):
        name, _, kind = path.stem.rpartition("_")
        if kind in files and name:
            files[kind].setdefault(name, []).append(path)
    return files


def _visible(folder: Path, leave_out: Sequence[Path]) -> Iterable[Path]:
    """List FITS files, also behind links; not those in hidden folders and in those of other reductions."""
    elsewhere, seen = {path.resolve() for path in leave_out}, set()
    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place).resolve()
        if here in elsewhere or here in seen:
            folders.clear()
            continue
        # A link may lead back to where it is.
        seen.add(here)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not Path(place, name, ".reduction").exists()
        )
        yield from (Path(place, name) for name in sorted(names) if _is_fits(name))


def _is_fits(name):
    return name.endswith(".fits") and not name.startswith(".")


def _the_only(paths):
    if len(paths) > 1:
        raise ValueError(
            f"each exposure must be there once, but {paths[0].name} is there {len(paths)} times: "
            f"{', '.join(map(str, paths))}"
        )
    return paths[0] if paths else None


def _look_at(name: str, kind: str, path: Path, rateints: Path | None) -> Source:
    """Read what decides what is done with an exposure."""
    try:
        for file in filter(None, (path, rateints)):
            check_file(file)
        header = fits.getheader(path)
    except (OSError, ValueError) as error:
        return Source(name, kind, path, band=_band_of(path), problem=str(error), is_broken=True)
    band = str(header.get("FILTER", ""))
    return Source(
        name,
        kind,
        path,
        rateints=rateints,
        band=band,
        visit_id=str(header.get("VISIT_ID", "")),
        gs_id=str(header.get("GDSTARID", "")),
        problem=_why_not(header, band),
    )


def _band_of(path):
    """Read the filter of a file that is not whole, as far as its first header is."""
    try:
        with warnings.catch_warnings():
            # What is wrong with it is known.
            warnings.simplefilter("ignore", AstropyUserWarning)
            return str(fits.getheader(path).get("FILTER", ""))
    except (OSError, ValueError):
        return ""


def _why_not(header: fits.Header, band: str) -> str:
    exp_type = header.get("EXP_TYPE")
    if exp_type != _EXP_TYPE:
        return f"EXP_TYPE must be {_EXP_TYPE}, got {exp_type}"
    if band not in detector.BANDS:
        return f"FILTER must be one of {', '.join(detector.BANDS)}, got {band or None}"
    if header.get("BKGDTARG"):
        return "it is a background exposure: name it in super_background.background_files"
    return ""
