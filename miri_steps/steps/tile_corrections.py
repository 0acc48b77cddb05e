"""The table of tile corrections: what was measured, and what stands in where nothing was."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Column, QTable, Table

from miri_steps.algorithms import tile_shifts
from miri_steps.steps.tile_members import GROUPINGS, Tile, filter_order
from miri_steps.steps.tile_wcs import Correction

__all__ = ["BY_TWEAKREG", "OWN", "TileCorrection", "choose", "read_table", "tile_table"]

#: The source of a correction that was measured on the tile itself.
OWN = "tile itself"
#: The method of a correction that averages those that tweakreg found for exposures.
BY_TWEAKREG = "tweakreg"

_OBSERVATION = "of its observation"
# Guide stars taken for others put the pointing off by up to some 2 arcsec.
_LARGEST_SHIFT = 10.0
# No tile is as large [deg].
_SAME_FIELD = 1.0
_SHIFTS = ("shift_east", "shift_north")
_DESCRIPTIONS = {
    "shift_east": "to be added to positions, in cos(dec)",
    "shift_north": "to be added to positions",
    "rotation": "from East to North, about ra, dec",
    "scatter": "of exposures, or of stars in a direct measurement, along an axis",
    "stars": "matched stars, summed over exposures where each was fitted; -1 where not known",
}
# Far below a milliarcsecond, in degrees too.
_DIGITS = 9
_NOTHING = Correction(*[np.nan] * 5)
_FIELDS = {"ra": "ra", "dec": "dec", "shift_east": "east", "shift_north": "north", "rotation": "rotation"}
_UNITS = {"ra": u.deg, "dec": u.deg, "shift_east": u.arcsec, "shift_north": u.arcsec, "rotation": u.rad}


@dataclass(frozen=True)
class TileCorrection:
    """
    The correction of a tile as measured in one filter: a row of the table.

    Parameters
    ----------
    tile : str
        What its exposures have in common.
    visit_ids, gs_ids : list of str
        Their visits and guide stars.
    band : str
        Filter.
    correction : Correction or None
        The correction; None where there is no good measurement.
    problem : str
        Why there is none.
    error : tuple of float
        Standard errors of the shift, East and North [arcsec].
    rotation_error : float
        That of the rotation [rad].
    scatter : float
        Standard deviation of exposures, or of stars in a direct measurement, along an axis [arcsec].
    stars : int, optional
        Number of stars matched, where that is known.
    used, rejected : list of str
        Exposures that were averaged, and those that were not, with the reason.
    method : str
        `BY_TWEAKREG`, or the name of the reference catalogue.
    """

    tile: str
    visit_ids: list[str]
    gs_ids: list[str]
    band: str
    correction: Correction | None
    problem: str = ""
    error: tuple[float, float] = (np.nan, np.nan)
    rotation_error: float = np.nan
    scatter: float = np.nan
    stars: int | None = None
    used: Sequence[str] = ()
    rejected: Sequence[str] = ()
    method: str = ""

    @property
    def is_unchecked(self) -> bool:
        """Whether it rests on one exposure, which nothing confirms."""
        return self.method == BY_TWEAKREG and len(self.used) == 1

    @property
    def observations(self) -> list[str]:
        """Program and observation of its visits, 8 digits."""
        return sorted({visit[:8] for visit in self.visit_ids})


def tile_table(rows: list[TileCorrection], group_by: str) -> Table:
    """
    Write corrections down.

    Parameters
    ----------
    rows : list of TileCorrection
        The corrections; those without a good measurement are written as NaN, with the reason.
    group_by : str
        What makes a tile.

    Returns
    -------
    Table
        One row per tile and filter, with units.
    """
    given = [row.correction or _NOTHING for row in rows]
    columns = {
        "tile": [row.tile for row in rows],
        "visit_id": [",".join(row.visit_ids) for row in rows],
        "gs_id": [",".join(row.gs_ids) for row in rows],
        "filter": [row.band for row in rows],
        "ra": [each.ra for each in given] * u.deg,
        "dec": [each.dec for each in given] * u.deg,
        "shift_east": [each.east for each in given] * u.arcsec,
        "shift_north": [each.north for each in given] * u.arcsec,
        "error_east": [row.error[0] for row in rows] * u.arcsec,
        "error_north": [row.error[1] for row in rows] * u.arcsec,
        "rotation": ([each.rotation for each in given] * u.rad).to(u.arcsec),
        "error_rotation": ([row.rotation_error for row in rows] * u.rad).to(u.arcsec),
        "scatter": ([row.scatter for row in rows] * u.arcsec).to(u.mas),
        "stars": [-1 if row.stars is None else row.stars for row in rows],
        "exposures": [len(row.used) + len(row.rejected) for row in rows],
        "used": [" ".join(row.used) for row in rows],
        "rejected": ["; ".join(row.rejected) for row in rows],
        "method": [row.method for row in rows],
        "problem": [row.problem for row in rows],
    }
    table = Table(meta={"group_by": group_by})
    for name, values in columns.items():
        # Plain columns with units: their header can be read, and written by hand.
        unit, description = getattr(values, "unit", None), _DESCRIPTIONS.get(name)
        values = values if unit is None else np.round(values.value, _DIGITS)
        table[name] = Column(values, unit=unit, description=description)
    return table


def read_table(path: str | Path, group_by: str) -> list[TileCorrection]:
    """
    Read a table of corrections.

    Parameters
    ----------
    path : str or Path
        As this Step saves it, or made by hand: shift_east and shift_north with units, and visit_id and
        gs_id as far as they tell tiles apart. Columns filter, ra, dec and rotation are used where they are
        there.
    group_by : str
        What makes a tile.

    Returns
    -------
    list of TileCorrection
        Rows without a shift are left out.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no table, a column or a unit is missing, or two rows are for one tile and filter.
    """
    path = Path(path)
    table = _open_table(path)
    _check_columns(table, group_by, path)
    values = {name: _angles(table, name, unit, path) for name, unit in _UNITS.items()}
    rows = [
        TileCorrection(
            tile=_tile_name(entry, group_by),
            visit_ids=_listed(entry, "visit_id"),
            gs_ids=_listed(entry, "gs_id"),
            band=next(iter(_listed(entry, "filter")), ""),
            correction=Correction(**{key: float(values[name][k]) for name, key in _FIELDS.items()}),
            used=str(entry["used"]).split() if "used" in table.colnames else (),
            method=next(iter(_listed(entry, "method")), ""),
        )
        for k, entry in enumerate(table)
        if np.isfinite([values[name][k] for name in _SHIFTS]).all()
    ]
    _check_rows(rows, path)
    return rows


def choose(
    tile: Tile, rows: list[TileCorrection], *, fallback: str, sigma: float, max_scatter: float
) -> tuple[Correction | None, str]:
    """
    Choose the correction of a tile: its own, or that of the nearest of kin.

    Parameters
    ----------
    tile : Tile
        The tile.
    rows : list of TileCorrection
        What is known; of several filters the shortest counts that does not rest on one exposure.
    fallback : str
        How far to look beyond the tile itself: "none", "guide_star", or "observation" after that.
    sigma, max_scatter : float
        Limits to how far others may disagree, as for exposures of a tile.

    Returns
    -------
    correction : Correction or None
        At the middle of the tile.
    source : str
        Where it comes from, or why there is none.
    """
    middle = tile.position
    own = _best_of_each([row for row in rows if row.tile == tile.name])
    if own:
        return _nearby(own[tile.name], middle), OWN
    known = _best_of_each(rows)
    observations = {visit[:8] for visit in tile.visit_ids}
    steps = {
        "on its guide star": [row for row in known.values() if {*row.gs_ids} & {*tile.gs_ids}],
        _OBSERVATION: [row for row in known.values() if {*row.observations} & observations],
    }
    reason = "no other tile stands in for it"
    for step in list(steps)[: {"none": 0, "guide_star": 1, "observation": 2}[fallback]]:
        kin = steps[step]
        if not kin:
            continue
        if step == _OBSERVATION and len(kin) < 2:
            reason = f"one other tile {step}, {kin[0].tile}, cannot tell its own error from that of all"
            continue
        there = [row.correction.at(*middle) for row in kin]
        mean = tile_shifts.average(
            np.array([each.shift for each in there]),
            np.array([each.rotation for each in there]),
            offset=np.zeros((len(there), 2)),
            sigma=sigma,
        )
        if mean.agrees(max_scatter):
            names = ", ".join(row.tile for row, used in zip(kin, mean.used, strict=True) if used)
            east, north = map(float, mean.shift)
            return Correction(*middle, east, north, mean.rotation), f"tiles {step}: {names}"
        reason = f"the tiles {step} disagree"
    return None, reason


def _nearby(row, middle):
    """Carry a tile's own correction to its exposures, which must be where it was measured."""
    correction = row.correction
    if np.isfinite(correction.position).all():
        apart = SkyCoord(*correction.position, unit="deg").separation(SkyCoord(*middle, unit="deg"))
        if apart.deg > _SAME_FIELD:
            raise ValueError(
                f"the correction of tile {row.tile} must have been measured within {_SAME_FIELD:g} deg "
                f"of its exposures, but they are {apart.deg:.1f} deg apart"
            )
    return correction.at(*middle)


def _best_of_each(rows):
    """Find the measurement of each tile in its shortest filter; one exposure alone comes last."""
    best = {}
    for row in sorted(rows, key=lambda row: (row.is_unchecked, filter_order(row.band))):
        if row.correction is not None:
            best.setdefault(row.tile, row)
    return dict(sorted(best.items()))


def _open_table(path):
    if not path.is_file():
        raise FileNotFoundError(f"corrections must be a table, but there is no file {path}")
    try:
        return QTable.read(path)
    except Exception as error:
        # Readers of astropy raise all kinds of errors, none that names the file, and some a page long.
        why = str(error).partition("\n")[0]
        raise ValueError(
            f"corrections must be a table that astropy reads, but {path} cannot be read: {why}"
        ) from error


def _check_columns(table, group_by, path):
    made_by = table.meta.get("group_by", group_by)
    if made_by != group_by:
        raise ValueError(
            f"{path} was made with group_by='{made_by}', which must be given again, got '{group_by}'"
        )
    needed = {"visit_id" if name == "observation" else name for name in GROUPINGS[group_by]} | {*_SHIFTS}
    missing = sorted(needed - set(table.colnames))
    if missing:
        raise ValueError(
            f"corrections must have the columns {', '.join(sorted(needed))}, "
            f"but {path} lacks {', '.join(missing)}"
        )


def _check_rows(rows, path):
    if not rows:
        raise ValueError(f"corrections must hold at least 1 tile with a shift, got none in {path}")
    for row in rows:
        if max(map(abs, row.correction.shift)) > _LARGEST_SHIFT:
            raise ValueError(
                f"shifts must be at most {_LARGEST_SHIFT:g} arcsec, the pointing is never so far off, "
                f"but in {path} that of {row.tile} is {row.correction.east:g}, {row.correction.north:g}"
            )
    for (tile, band), number in Counter((row.tile, row.band) for row in rows).items():
        if number > 1:
            raise ValueError(
                f"{path} must have one row per tile and filter, but has several of {tile} {band}".rstrip()
            )


def _angles(table, name, unit, path):
    """Take a column as plain numbers; what is left out holds everywhere, or turns nothing."""
    if name not in table.colnames:
        return np.full(len(table), 0.0 if name == "rotation" else np.nan)
    column = table[name]
    given = getattr(column, "unit", None)
    if given is None or not given.is_equivalent(unit):
        raise ValueError(f"{name} must have a unit of angle, such as {unit}, but in {path} it has {given}")
    values = getattr(column, "unmasked", column).to_value(unit)
    values = np.where(getattr(column, "mask", False) | ~np.isfinite(values), np.nan, values)
    return np.nan_to_num(values) if name == "rotation" else values


def _listed(entry, name):
    """List the identifiers in a cell; numbers have lost their leading zeros."""
    if name not in entry.colnames or np.ma.is_masked(entry[name]):
        return []
    value = entry[name]
    if name == "visit_id" and isinstance(value, int | np.integer):
        value = f"{value:011d}"
    return [part.strip() for part in str(value).split(",") if part.strip()]


def _tile_name(entry, group_by):
    """Name a tile as `into_tiles` does."""
    parts = {
        "visit_id": ",".join(_listed(entry, "visit_id")),
        "gs_id": ",".join(_listed(entry, "gs_id")),
        "observation": ",".join(sorted({visit[:8] for visit in _listed(entry, "visit_id")})),
    }
    return " ".join(filter(None, (parts[name] for name in GROUPINGS[group_by])))
