"""The catalogue of stars that `TileAstrometryStep` measures tiles against."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy import units
from astropy.io.registry import IORegistryError
from astropy.table import Table
from astropy.time import Time
from astropy.utils.exceptions import AstropyWarning

from miri_steps.algorithms import directions

__all__ = ["MAGNITUDE_COLUMNS", "ReferenceStars", "read"]

#: Columns that hold the magnitude of a star: Gaia, plain tables, the pipeline's ``source_catalog``.
MAGNITUDE_COLUMNS = (
    "phot_g_mean_mag",
    "mag",
    "magnitude",
    "gmag",
    "g_mag",
    "abmag",
    "aper_total_abmag",
    "isophotal_abmag",
)

# Names of Gaia's columns in VizieR.
_VIZIER = {"ra_icrs": "ra", "de_icrs": "dec", "pmde": "pmdec"}
# Columns, or entries of the table's meta, that hold the epoch of the positions.
_EPOCHS = ("ref_epoch", "epoch")
# No catalogue of accurate positions is of another time [Julian year].
_FIRST_EPOCH, _LAST_EPOCH = 1850.0, 2150.0
_J2000_MJD, _YEAR = 51544.5, 365.25

log = logging.getLogger(f"stpipe.{__name__}")


@dataclass(frozen=True)
class ReferenceStars:
    """
    Stars of a catalogue.

    Parameters
    ----------
    path : Path
        The catalogue.
    ra, dec : ndarray
        Positions at `epoch`, ICRS, shape (n,) [deg].
    pmra, pmdec : ndarray
        Proper motions, East (times cos dec) and North, 0 where unknown [mas/yr].
    epoch : ndarray
        Julian years of the positions, NaN where nothing moves.
    """

    path: Path
    ra: np.ndarray
    dec: np.ndarray
    pmra: np.ndarray
    pmdec: np.ndarray
    epoch: np.ndarray

    def __len__(self) -> int:
        """Count the stars."""
        return len(self.ra)

    def at(self, date: float | Time) -> tuple[np.ndarray, np.ndarray]:
        """
        Find where the stars are at a date.

        They move along straight lines in space, so that poles and fast stars need no care. Parallax,
        at most a few milliarcseconds for all but the nearest stars, is left out.

        Parameters
        ----------
        date : float or astropy.time.Time
            The date [MJD].

        Returns
        -------
        ra, dec : ndarray
            Positions, ICRS, shape (n,) [deg].

        Raises
        ------
        ValueError
            If the date is not finite.
        """
        mjd = float(date.mjd if isinstance(date, Time) else date)
        if not np.isfinite(mjd):
            raise ValueError(f"date must be a finite MJD, got {date}")
        years = np.nan_to_num(2000.0 + (mjd - _J2000_MJD) / _YEAR - self.epoch)
        moved = np.radians(np.stack([self.pmra, self.pmdec]) / 3.6e6) * years
        east, north, outward = directions.local_axes(np.stack([self.ra, self.dec], axis=-1))
        x, y, z = (outward + moved[0][:, None] * east + moved[1][:, None] * north).T
        return np.degrees(np.arctan2(y, x)) % 360.0, np.degrees(np.arctan2(z, np.hypot(x, y)))


def read(
    path: str | Path,
    *,
    epoch: float | str | Time | None = None,
    max_magnitude: float | None = None,
    magnitude_column: str | None = None,
) -> ReferenceStars:
    """
    Read a catalogue of stars.

    Parameters
    ----------
    path : str or Path
        Table that astropy can read, with columns ``ra`` and ``dec`` [deg unless they have units] or
        ``sky_centroid``; optional are ``pmra`` (times cos dec, as in Gaia) and ``pmdec`` [mas/yr unless they
        have units], and ``ref_epoch`` or ``epoch`` [Julian year], a column or in the table's meta. Small and
        capital letters are the same, and so are VizieR's names (``RA_ICRS``, ``DE_ICRS``, ``pmDE``).
    epoch : float, str or Time, optional
        Julian year of the positions; comes before what the table says.
    max_magnitude : float, optional
        Faintest magnitude to keep. Stars without a magnitude are not kept.
    magnitude_column : str, optional
        Column with the magnitude. Not given, the one that has a well-known name (`MAGNITUDE_COLUMNS`).

    Returns
    -------
    ReferenceStars
        The stars.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no table, columns are missing or cannot be understood, stars move but there is no
        epoch, or no star is left.
    """
    name = f"reference_catalog {path}"
    table = _read_table(Path(path), name)
    columns = _Columns(table, name)
    ra, dec = _positions(columns)
    pmra, pmdec = _motions(columns)
    moves = (pmra != 0) | (pmdec != 0)
    epochs = _epochs(columns, epoch, moves.any())
    kept = np.isfinite(ra) & np.isfinite(dec) & ~(moves & np.isnan(epochs))
    if not kept.all():
        log.info("%s: %d of %d stars have no position and are left out", name, (~kept).sum(), len(kept))
    _check_range(name, ra[kept], dec[kept])
    if max_magnitude is not None or magnitude_column is not None:
        kept &= _bright(columns, max_magnitude, magnitude_column)
    if not kept.any():
        cut = "" if max_magnitude is None else f" with a magnitude up to {max_magnitude:g}"
        raise ValueError(f"{name} must have stars{cut}, got none of {len(kept)}")
    return ReferenceStars(Path(path), *(v[kept] for v in (ra % 360.0, dec, pmra, pmdec, epochs)))


def _read_table(path, name):
    if not path.is_file():
        raise FileNotFoundError(f"reference_catalog must be a file, got {path}")
    with warnings.catch_warnings():
        # Units that are not understood belong to columns that are not read, or are told of below.
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            return Table.read(path)
        except (IORegistryError, OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{name} must be a table that astropy can read, got: {error}") from error


class _Columns:
    """Columns of a table by name, whatever the case and the archive they come from."""

    def __init__(self, table, name):
        self.table, self.name = table, name

    def _named(self, wanted):
        small = {column: column.lower() for column in self.table.colnames}
        return [column for column, name in small.items() if _VIZIER.get(name, name) == wanted]

    def __contains__(self, wanted):
        return bool(self._named(wanted))

    def find(self, wanted):
        """Return the column; its name is given in small letters."""
        found = self._named(wanted)
        if len(found) > 1:
            raise ValueError(f"{self.name} must have one column {wanted}, got {found}")
        return self.table[found[0]]

    def values(self, wanted, unit=None):
        """Return the numbers of a column in a unit, NaN where masked."""
        column = self.find(wanted)
        given = getattr(column, "unit", None)
        mask = getattr(column, "mask", False)
        plain = getattr(column, "unmasked", column)
        try:
            values = np.where(mask, np.nan, np.asarray(getattr(plain, "value", plain), float))
            factor = 1.0 if unit is None or given is None else units.Unit(given).to(unit)
        except (units.UnitConversionError, TypeError, ValueError) as error:
            wish = "numbers" if unit is None else f"numbers in {unit} or the like"
            raise ValueError(
                f"column {wanted} of {self.name} must be {wish}, got unit {given}: {error}"
            ) from error
        return values * factor


def _positions(columns):
    if "ra" in columns and "dec" in columns:
        return columns.values("ra", units.deg), columns.values("dec", units.deg)
    if "sky_centroid" in columns:
        centroid = columns.find("sky_centroid").icrs
        mask = getattr(centroid, "mask", False)
        return tuple(np.where(mask, np.nan, _plain(v)) for v in (centroid.ra.deg, centroid.dec.deg))
    raise ValueError(
        f"{columns.name} must have columns RA and Dec, or sky_centroid, got {columns.table.colnames}"
    )


def _plain(values):
    return np.asarray(getattr(values, "unmasked", values), float)


def _motions(columns):
    """Read proper motions; stars without one stay where they are."""
    given = [name for name in ("pmra", "pmdec") if name in columns]
    if len(given) == 1:
        raise ValueError(f"{columns.name} must have both pmra and pmdec or none of them, got {given[0]} only")
    if not given:
        return np.zeros((2, len(columns.table)))
    motions = np.stack([columns.values(name, units.mas / units.yr) for name in given])
    return np.where(np.isfinite(motions).all(axis=0), motions, 0.0)


def _epochs(columns, epoch, needed):
    """Find the Julian year of each position: what the user says, a column, or the table's meta."""
    n = len(columns.table)
    meta = {str(key).lower(): value for key, value in columns.table.meta.items()}
    if epoch is not None:
        years = np.full(n, _julian_year(epoch, "epoch"))
    elif any(name in columns for name in _EPOCHS):
        name = next(name for name in _EPOCHS if name in columns)
        years = columns.values(name, units.yr)
    elif any(name in meta for name in _EPOCHS):
        name = next(name for name in _EPOCHS if name in meta)
        years = np.full(n, _julian_year(meta[name], f"{name} of {columns.name}"))
    elif needed:
        raise ValueError(
            f"{columns.name} has proper motions: epoch must be given, or a column or meta entry ref_epoch "
            "[Julian year]"
        )
    else:
        return np.full(n, np.nan)
    known = years[np.isfinite(years)]
    wrong = known[(known < _FIRST_EPOCH) | (known > _LAST_EPOCH)]
    if len(wrong):
        raise ValueError(
            f"epoch of {columns.name} must be a Julian year between {_FIRST_EPOCH:g} and {_LAST_EPOCH:g}, "
            f"got {wrong[0]:g}"
        )
    return years


def _julian_year(value, name):
    if isinstance(value, Time):
        return float(value.jyear)
    if isinstance(value, units.Quantity):
        value = value.to_value(units.yr)
    try:
        return float(str(value).strip().upper().removeprefix("J"))
    except ValueError as error:
        raise ValueError(f"{name} must be a Julian year, as 2016.0, got {value!r}") from error


def _check_range(name, ra, dec):
    for what, values, low, high in (("RA", ra, -180.0, 360.0), ("Dec", dec, -90.0, 90.0)):
        wrong = values[(values < low) | (values > high)]
        if len(wrong):
            raise ValueError(f"{what} of {name} must be {low:g} to {high:g} deg, got {wrong[0]:g}")


def _bright(columns, limit, column):
    """Find the stars that are not fainter than a limit."""
    if column is None:
        found = [name for name in MAGNITUDE_COLUMNS if name in columns]
        if len(found) != 1:
            raise ValueError(
                f"magnitude_column must be given for max_magnitude: {columns.name} has {found or 'none'} of "
                f"the well-known columns; its columns are {columns.table.colnames}"
            )
        column = found[0]
    elif column.lower() not in columns:
        raise ValueError(
            f"magnitude_column must be a column of {columns.name}, got {column!r}; "
            f"its columns are {columns.table.colnames}"
        )
    magnitudes = columns.values(column.lower())
    if limit is None:
        return np.ones(len(magnitudes), bool)
    # NaN is not bright.
    return magnitudes <= limit
