"""The numbers of the demo, as a table and in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from astropy import units
from astropy.table import QTable

from miri_steps import __version__
from miri_steps.demo.measure import Comparison

_SKY = units.MJy / units.sr
# Column, format, what is printed before and after the numbers.
_LINES = (
    ("level_error", ".4f", "sky level error", "MJy/sr"),
    ("tile_step", ".4f", "step between tiles", "MJy/sr"),
    ("background_error", ".4f", "background error", "MJy/sr"),
    ("outliers", "d", "flagged as outliers", "pixels"),
    ("time", ".0f", "time", "s"),
    ("memory", ".2f", "peak memory", "GB"),
)
_MEANING = """\
sky level error: rms over the {n} exposures of measured - true sky, their common offset removed
step between tiles: highest - lowest median of (mosaic - truth) over the area that only one tile sees
background error: rms of (mosaic - truth) in blocks of 2 arcsec, the common offset removed
flagged as outliers: in all exposures; each one is a false alarm, there are no cosmic rays here
The detector's glow is part of every tile: levels cannot take it away, subtracting it does (last column)."""


def table(compared: Sequence[Comparison], jwst: str) -> QTable:
    """
    Collect the numbers.

    Parameters
    ----------
    compared : sequence of Comparison
        The runs.
    jwst : str
        Version of the pipeline.

    Returns
    -------
    QTable
        One row per run.
    """
    rows = QTable()
    rows["run"] = [item.result.run.name for item in compared]
    for name in ("level_error", "tile_step", "background_error"):
        rows[name] = [getattr(item, name) for item in compared] * _SKY
    rows["outliers"] = [item.n_outliers for item in compared]
    rows["time"] = [item.result.seconds for item in compared] * units.s
    rows["memory"] = [item.result.memory for item in compared] * units.Gbyte
    rows.meta |= {"jwst": jwst, "miri_steps": __version__}
    return rows


def report(rows: QTable, n_exposures: int, folder: Path, picture: Path | None) -> str:
    """
    Put the numbers in words.

    Parameters
    ----------
    rows : QTable
        From `table`.
    n_exposures : int
        Exposures of a run.
    folder : Path
        Folder of the demo.
    picture : Path or None
        The picture, if there is one.

    Returns
    -------
    str
        Lines to print.
    """
    width = max(len(name) for name in rows["run"]) + 2
    lines = ["", " " * 22 + "".join(f"{name:>{width}s}" for name in rows["run"])]
    for column, form, label, unit in _LINES:
        values = (getattr(value, "value", value) for value in rows[column])
        lines.append(f"{label:22s}" + "".join(f"{value:{width}{form}}" for value in values) + f"  {unit}")
    mosaics = ", ".join(f"{name}/demo_i2d.fits" for name in rows["run"])
    lines += ["", _MEANING.format(n=n_exposures), "", f"In {folder}: {mosaics}, demo_numbers.ecsv"]
    if picture:
        lines.append(f"Look at {picture}")
    lines.append("With your data: miri-steps reduce DIR (or strun with a file of miri-steps parameters)")
    return "\n".join(lines)
