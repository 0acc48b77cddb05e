"""The table that a reduction ends with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from astropy import units as u
from astropy.table import QTable

__all__ = ["DONE", "FAILED", "KEPT", "SKIPPED", "Row", "describe", "to_table"]

#: How a piece of work ended: done in this run, done by an earlier one, left out, or failed.
DONE, KEPT, SKIPPED, FAILED = "done", "up to date", "skipped", "failed"


@dataclass(frozen=True)
class Row:
    """
    What became of an exposure or a mosaic in one stage.

    Parameters
    ----------
    stage : str
        The stage, or "input".
    name : str
        Exposure or mosaic.
    band : str
        Name of the filter.
    status : str
        One of `DONE`, `KEPT`, `SKIPPED`, `FAILED`.
    reason : str
        Why it was skipped or failed, or what else is to be said.
    seconds : float
        How long it took [s].
    """

    stage: str
    name: str
    band: str
    status: str
    reason: str = ""
    seconds: float = 0.0


def to_table(rows: Sequence[Row]) -> QTable:
    """
    Put rows into a table.

    Parameters
    ----------
    rows : sequence of Row
        The rows.

    Returns
    -------
    QTable
        With the columns stage, name, filter, status, reason and seconds.
    """
    columns = "stage", "name", "filter", "status", "reason", "seconds"
    cells = [(row.stage, row.name, row.band, row.status, row.reason, round(row.seconds, 1)) for row in rows]
    table = QTable(rows=cells or None, names=columns, dtype=(*[str] * 5, float))
    table["seconds"].unit = u.s
    return table


def describe(rows: Sequence[Row]) -> str:
    """
    Say what was done, and name what was not.

    Parameters
    ----------
    rows : sequence of Row
        The rows.

    Returns
    -------
    str
        A line per stage, and one per piece of work of which there is something to say.
    """
    stages = list(dict.fromkeys(row.stage for row in rows))
    lines = []
    for stage in stages:
        counts = Counter(row.status for row in rows if row.stage == stage)
        told = ", ".join(
            f"{counts[status]} {status}" for status in (DONE, KEPT, SKIPPED, FAILED) if counts[status]
        )
        lines.append(f"{stage:10s} {told}")
    named = [row for row in rows if row.reason]
    lines += [f"  {row.stage} {row.name} {row.status}: {row.reason}" for row in named]
    return "\n".join(lines)
