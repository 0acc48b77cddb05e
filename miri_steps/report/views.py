"""What a page is made of: parts with texts, figures and tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure

from miri_steps.report import svg

__all__ = ["Card", "Drawing", "Part", "TableView", "show"]

# Words of this length are wrapped.
_LONG = 44


@dataclass(frozen=True)
class Card:
    """
    A number on top.

    Parameters
    ----------
    name, value, unit : str
        As they are shown.
    """

    name: str
    value: str
    unit: str = ""


@dataclass
class Drawing:
    """
    A figure with its words.

    Parameters
    ----------
    title, caption : str
        What it shows, and what good looks like.
    figure : Figure
        The figure.
    label : str
        What it shows for those who do not see it.
    wide : bool
        Whether it takes the whole width.
    """

    title: str
    caption: str
    figure: Figure
    label: str
    wide: bool = False
    svg: str = ""


@dataclass(frozen=True)
class TableView:
    """
    A table as it is shown.

    Parameters
    ----------
    caption : str
        What it lists.
    head : sequence of str
        Names of the columns, with units.
    rows : sequence of sequence of str
        Its cells.
    numeric : frozenset of int
        Columns of numbers.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()

    @staticmethod
    def kind(cell: str) -> str:
        """Choose how a cell looks."""
        if cell.startswith("✓"):
            return "done"
        if cell.startswith("○"):
            return "skipped"
        if cell.startswith("✗"):
            return "failed"
        return "long" if len(cell) > _LONG else "word"


@dataclass
class Part:
    """
    A part of a page.

    Parameters
    ----------
    title : str
        Its heading.
    texts, notes : list of str
        Sentences above, and quiet ones below.
    figures : list of Drawing
        Its figures.
    tables : list of TableView
        Its tables.
    """

    title: str
    texts: list[str] = field(default_factory=list)
    figures: list[Drawing] = field(default_factory=list)
    tables: list[TableView] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    id: str = ""

    def place(self, prefix: str) -> None:
        """
        Draw its figures, and give everything an id that no other has.

        Parameters
        ----------
        prefix : str
            What ids begin with.
        """
        self.id = f"{prefix}-{re.sub(r'[^a-z]+', '-', self.title.lower())}"
        for number, drawing in enumerate(self.figures, start=1):
            drawing.svg = svg.render(drawing.figure, f"{self.id}-{number}")


def show(value: object, digits: int = 3) -> str:
    """
    Write a number for people.

    Parameters
    ----------
    value : object
        A number, a word, or None.
    digits : int, optional
        Digits that count.

    Returns
    -------
    str
        A dash where nothing is known.
    """
    if value is None or value is np.ma.masked:
        return "–"
    if isinstance(value, int | np.integer):
        return f"{value:d}".replace("-", "\N{MINUS SIGN}")
    if isinstance(value, float | np.floating) and 1e3 <= abs(value) < 1e7:
        return f"{value:.0f}".replace("-", "\N{MINUS SIGN}")
    if isinstance(value, float | np.floating):
        return f"{value:.{digits}g}".replace("-", "\N{MINUS SIGN}") if np.isfinite(value) else "–"
    return str(value)
