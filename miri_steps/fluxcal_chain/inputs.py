"""What the flux calibration is given: images of stars, spectra, throughput curves, tables."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.table import QTable
from stdatamodels.jwst import datamodels

from miri_steps.fluxcal import config
from miri_steps.fluxcal.encircled import Resampling
from miri_steps.fluxcal.time_loss import TimeLoss
from miri_steps.steps import star_images
from miri_steps.steps.base import check_file

__all__ = [
    "Image",
    "find_by_filter",
    "find_images",
    "find_spectra",
    "new_file",
    "new_folder",
    "read_losses",
    "read_table",
    "read_transmissions",
    "survey",
]

log = logging.getLogger(f"stpipe.{__name__}")

# Images of stars, of which mosaics are taken where there are both.
_KINDS = "_i2d", "_cal"
_FITS = ".fits", ".fits.gz"
_TABLES = ".ecsv", ".fits", ".dat", ".txt"
# As CALSPEC names its files: p330e_mod_008.fits, wd1057_719_mod_009.fits.
_CALSPEC = re.compile(r"(.+)_([a-z]+)_(\d+)")
# The columns of losses.
_LOSS = {"loss": 1 / u.yr, "amplitude": u.one, "tau": u.day}


@dataclass(frozen=True)
class Image:
    """
    What the header of an image says.

    Parameters
    ----------
    path : Path
        The file.
    band : str
        Its filter.
    star : str
        Name of its target, as in `config.star`.
    mjd : float
        Middle of the exposure [MJD], NaN where it is not known.
    resampling : Resampling or None
        How it was drizzled; None for an exposure.
    """

    path: Path
    band: str
    star: str
    mjd: float
    resampling: Resampling | None


def find_images(folder: str | Path) -> list[Path]:
    """
    Find the images of standard stars in a folder and those in it.

    Parameters
    ----------
    folder : str or Path
        Where they are.

    Returns
    -------
    list of Path
        All mosaics (``_i2d``), or, without any, all exposures (``_cal``), by name.

    Raises
    ------
    FileNotFoundError
        If there is neither.
    """
    found = {kind: [] for kind in _KINDS}
    for path in sorted(Path(folder).rglob("*.fits*")):
        for kind in _KINDS:
            if path.name.endswith(tuple(kind + ending for ending in _FITS)):
                found[kind].append(path)
    mosaics, single = found.values()
    if mosaics and single:
        log.warning("%d mosaics are taken, and %d exposures left, in %s", len(mosaics), len(single), folder)
    if not (mosaics or single):
        names = " or ".join(f"*{kind}.fits" for kind in _KINDS)
        raise FileNotFoundError(f"there must be files {names} in {folder}, got none")
    return mosaics or single


def survey(paths: Iterable[Path]) -> list[Image]:
    """
    Read the headers of images.

    Parameters
    ----------
    paths : iterable of Path
        Mosaics or exposures.

    Returns
    -------
    list of Image
        What they say, in the same order.

    Raises
    ------
    FileNotFoundError
        If one is missing.
    ValueError
        If there is none, one of them is not whole, or not all were drizzled alike: the light in an aperture
        depends on it.
    """
    paths = list(paths)
    for path in paths:
        check_file(path)
    images = [_look(path) for path in paths]
    if not images:
        raise ValueError("there must be at least one image, got none")
    for one in images[1:]:
        if not star_images.drizzled_alike(images[0].resampling, one.resampling):
            raise ValueError(
                f"all images must be exposures, or mosaics with the same pixels, got {images[0].path} with "
                f"{images[0].resampling} and {one.path} with {one.resampling}"
            )
    return images


def _look(path):
    with datamodels.open(path) as model:
        meta = model.meta
        return Image(
            path=path,
            band=meta.instrument.filter or "",
            star=config.star(meta.target.catalog_name or meta.target.proposer_name or "").name,
            mjd=meta.exposure.mid_time or np.nan,
            resampling=star_images.resampling(model),
        )


def find_by_filter(folder: str | Path, endings: Iterable[str] = _TABLES) -> dict[str, Path]:
    """
    Find files that are named after filters, as throughput curves and model PSFs are.

    Parameters
    ----------
    folder : str or Path
        Where they are.
    endings : iterable of str, optional
        Of their names.

    Returns
    -------
    dict
        Each filter's file.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If there is none, or two for one filter.
    """
    found: dict[str, Path] = {}
    for path in _files(folder, endings):
        for band in set(re.split("[^A-Z0-9]+", path.name.upper())) & set(config.bands()):
            if band in found:
                raise ValueError(f"there must be one file for {band}, got {found[band]} and {path}")
            found[band] = path
    if not found:
        raise ValueError(f"there must be files named after filters in {folder}, such as F770W.ecsv, got none")
    return found


def find_spectra(folder: str | Path) -> dict[str, Path]:
    """
    Find spectra of standard stars that are named after them, as those of CALSPEC are.

    Parameters
    ----------
    folder : str or Path
        Where they are; ``p330e_mod_008.fits`` is one of them.

    Returns
    -------
    dict
        The file of each star; where there are several, the last by name of those with ``_mod_`` in it,
        because observed spectra end in the near infrared. Files that are named after no known standard count
        if their name has the form of CALSPEC.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If there is none.
    """
    found = {}
    for path in sorted(_files(folder, _TABLES), key=lambda path: ("_mod_" in path.name, path.name)):
        calspec = _CALSPEC.fullmatch(path.stem.lower())
        star = config.star(calspec[1] if calspec else path.stem)
        if calspec or star.type != "other":
            found[star.name] = path
        else:
            log.warning("%s is not taken for a spectrum: no star is named so", path)
    if not found:
        raise ValueError(
            f"there must be spectra named after stars in {folder}, such as p330e_mod_008.fits, got none"
        )
    return found


def _files(folder, endings):
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    return [path for path in sorted(Path(folder).iterdir()) if path.suffix.lower() in endings]


def read_table(path: str | Path) -> QTable:
    """
    Read a table that this package wrote.

    Parameters
    ----------
    path : str or Path
        ECSV file.

    Returns
    -------
    QTable
        Its content.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix != ".ecsv":
        raise ValueError(f"the table must be an .ecsv file, got {path}")
    return QTable.read(path)


def read_losses(path: str | Path) -> dict[str, TimeLoss]:
    """
    Read losses of sensitivity, as `tables.losses` lists them.

    Parameters
    ----------
    path : str or Path
        ECSV table with ``filter``, ``loss`` [percent/yr], ``amplitude`` and ``tau`` [d].

    Returns
    -------
    dict
        Loss by filter. Its covariance is that in the metadata of the table, or else that of columns of
        errors; what is not known is 0.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a column is missing, or has no unit or another.
    """
    table = _with_columns(path, {"filter": None, **_LOSS})
    known = table.meta.get("covariance", {})
    return {
        str(row["filter"]): TimeLoss(
            *(_value(row[name], unit) for name, unit in _LOSS.items()),
            covariance=_covariance(row, known.get(str(row["filter"]))),
        )
        for row in table
    }


def _covariance(row, known):
    if known is None:
        named = ((f"{name}_error", unit) for name, unit in _LOSS.items())
        known = np.diag(
            [_value(row[name], unit) ** 2 if name in row.colnames else 0.0 for name, unit in named]
        )
    # The published procedure knows no errors: NaN.
    return np.nan_to_num(np.array(known, float))


def _value(cell, unit):
    return float(u.Quantity(cell).to_value(unit))


def read_transmissions(path: str | Path) -> tuple[dict[str, float], dict[str, float]]:
    """
    Read the transmissions of subarrays, as `subarrays.solve` lists them.

    Parameters
    ----------
    path : str or Path
        ECSV table with ``subarray``, ``transmission`` and, where they are known, ``transmission_error``.

    Returns
    -------
    transmissions, errors : dict
        By subarray.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a column is missing.
    """
    table = _with_columns(path, {"subarray": None, "transmission": u.one})
    names = [config.subarray(str(name)) for name in table["subarray"]]
    errors = table["transmission_error"] if "transmission_error" in table.colnames else np.zeros(len(table))
    return tuple(
        dict(zip(names, map(float, column), strict=True)) for column in (table["transmission"], errors)
    )


def _with_columns(path, units):
    table = read_table(path)
    missing = [name for name in units if name not in table.colnames]
    if missing:
        raise ValueError(f"{path} must have the columns {', '.join(units)}, but not {', '.join(missing)}")
    for name, unit in units.items():
        given = getattr(table[name], "unit", None) or u.one
        if unit is not None and not given.is_equivalent(unit):
            raise ValueError(f"the column {name} of {path} must be in {unit}, got {given or 'no unit'}")
    return table


def new_file(path: str | Path, endings: tuple[str, ...]) -> Path:
    """
    Refuse what could not be written, before the work.

    Parameters
    ----------
    path : str or Path
        File to be.
    endings : tuple of str
        What its name may end in.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    FileExistsError
        If it exists.
    FileNotFoundError
        If its folder does not.
    ValueError
        If it has another ending.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists")
    if path.suffix not in endings:
        raise ValueError(f"the name must end in {' or '.join(endings)}, got {path}")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.absolute().parent}")
    return path


def new_folder(path: str | Path) -> Path:
    """
    Make a folder.

    Parameters
    ----------
    path : str or Path
        Folder to be; it may exist, if it is empty.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    FileExistsError
        If something is there.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not an empty folder")
    path.mkdir(parents=True, exist_ok=True)
    return path
