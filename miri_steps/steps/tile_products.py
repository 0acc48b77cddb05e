"""What `TileAstrometryStep` tells its user."""

import logging

import numpy as np
from astropy import units as u
from astropy.table import Table

from miri_steps.steps.tile_corrections import BY_TWEAKREG, TileCorrection, tile_table
from miri_steps.steps.tile_members import Tile

__all__ = ["draw", "exposure_table", "log_tile"]

log = logging.getLogger(f"stpipe.{__name__}")


def log_tile(rows: list[TileCorrection], max_scatter: float) -> None:
    """
    Log the corrections of a tile, and what was left out of them.

    Parameters
    ----------
    rows : list of TileCorrection
        Its corrections in one or several filters.
    max_scatter : float
        Distance between filters that is named [arcsec].
    """
    for row in rows:
        _log_row(row)
    known = [row for row in rows if row.correction]
    for row in known[1:]:
        apart = np.hypot(*np.subtract(row.correction.shift, known[0].correction.shift))
        if apart > max_scatter:
            log.warning(
                "Tile %s: %s and %s disagree by %.3f arcsec.", row.tile, known[0].band, row.band, apart
            )


def _log_row(row):
    if row.correction is None:
        log.warning("Tile %s %s: no good correction: %s.", row.tile, row.band, row.problem)
    else:
        log.info(
            "Tile %s %s: %+.4f %+.4f arcsec (East, North) +- %.1f mas, rotation %+.1f arcsec; "
            "scatter %.1f mas; %s stars; %d of %d exposures; by %s",
            *(row.tile, row.band, *row.correction.shift, 1e3 * max(row.error)),
            *((row.correction.rotation * u.rad).to_value(u.arcsec), 1e3 * row.scatter),
            *(row.stars or "unknown", len(row.used), len(row.used) + len(row.rejected), row.method),
        )
    for name in row.rejected:
        log.warning("Tile %s %s: rejected %s.", row.tile, row.band, name)


def draw(tiles: list[Tile], rows: list[TileCorrection], group_by: str) -> object:
    """
    Draw the corrections of tiles, and of the exposures that gave them, as arrows on the sky.

    Parameters
    ----------
    tiles : list of Tile
        The tiles.
    rows : list of TileCorrection
        Their corrections.
    group_by : str
        What makes a tile.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    # matplotlib is imported where a figure is asked for, and only there.
    from miri_steps.report import tile_shifts

    return tile_shifts.draw(tile_table(rows, group_by), exposure_table(tiles, rows))


def exposure_table(tiles: list[Tile], rows: list[TileCorrection]) -> Table:
    """
    List where exposures are and what tweakreg found for them, as far as it was averaged or rejected.

    Parameters
    ----------
    tiles : list of Tile
        The tiles.
    rows : list of TileCorrection
        Their corrections.

    Returns
    -------
    Table
        Columns exposure, tile, filter, ra, dec [deg], shift_east, shift_north [arcsec], NaN where there is
        no fit of its own, and used.
    """
    used = {name for row in rows for name in row.used}
    averaged = {row.tile for row in rows if row.method == BY_TWEAKREG}
    lines = [
        (
            member.name,
            tile.name,
            member.band,
            *_place(member),
            *_fit(member, tile.name in averaged),
            member.name in used,
        )
        for tile in tiles
        for member in tile.members
    ]
    names = "exposure", "tile", "filter", "ra", "dec", "shift_east", "shift_north", "used"
    units = {"ra": u.deg, "dec": u.deg, "shift_east": u.arcsec, "shift_north": u.arcsec}
    return Table(rows=lines, names=names, units=units)


def _place(member):
    return (np.nan, np.nan) if None in member.position else member.position


def _fit(member, averaged):
    return member.found.shift if averaged and member.found and not member.stored else (np.nan, np.nan)
