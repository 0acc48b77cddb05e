"""Lines of logs: who warned of which exposure, and what the steps counted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LogLine", "assign", "read_files", "read_lines", "repaired", "unique"]

_LINE = re.compile(r".*? - (?P<logger>[\w.]+) - (?P<level>[A-Z]+) - (?P<text>.*)", re.DOTALL)
_REPAIRED = re.compile(
    r"(\d+) hot and (\d+) dead pixels (?:and (\d+) holes )?found, (\d+) (?:repaired|flagged)"
)
# A log is text of a few MB. What is larger is something else.
_LARGEST = 64e6


@dataclass(frozen=True)
class LogLine:
    """
    A line of a log.

    Parameters
    ----------
    logger : str
        Who wrote it.
    level : str
        ``INFO``, ``WARNING`` and so on.
    text : str
        What it says.
    """

    logger: str
    level: str
    text: str

    @property
    def is_warning(self) -> bool:
        """Whether somebody should read it."""
        return self.level in ("WARNING", "ERROR", "CRITICAL")

    @property
    def step(self) -> str:
        """Module that wrote it, in short."""
        return self.logger.rpartition(".")[2]


def read_lines(lines: Iterable[str]) -> list[LogLine]:
    """
    Read the lines of a log.

    Parameters
    ----------
    lines : iterable of str
        As jwst writes them: time, logger, level, text. Others are left out.

    Returns
    -------
    list of LogLine
        In their order.
    """
    found = (_LINE.fullmatch(line.rstrip()) for line in lines)
    return [LogLine(each["logger"], each["level"], each["text"]) for each in found if each]


def read_files(folder: Path) -> list[LogLine]:
    """
    Read all logs in a folder.

    Parameters
    ----------
    folder : Path
        Where the files ``*.log`` are.

    Returns
    -------
    list of LogLine
        File by file, in the order of their names.
    """
    lines = []
    for path in sorted(folder.glob("*.log")):
        if path.is_file() and path.stat().st_size < _LARGEST:
            lines += read_lines(path.read_text(encoding="utf-8", errors="replace").splitlines())
    return lines


def unique(lines: Iterable[LogLine]) -> list[LogLine]:
    """
    Leave out what was said before: a log is kept by several files.

    Parameters
    ----------
    lines : iterable of LogLine
        The lines.

    Returns
    -------
    list of LogLine
        In the order in which they first came.
    """
    return list(dict.fromkeys(lines))


def assign(lines: Iterable[LogLine], keys: Iterable[str]) -> dict[str, list[LogLine]]:
    """
    Find the lines that name exposures.

    Parameters
    ----------
    lines : iterable of LogLine
        The lines.
    keys : iterable of str
        Names of the exposures without suffix.

    Returns
    -------
    dict
        Lines by key; a line may name several.
    """
    named = {key: [] for key in keys}
    for line in lines:
        if line.is_warning or _REPAIRED.search(line.text):
            for key in named:
                if _names(line.text, key):
                    named[key].append(line)
    return named


def _names(text, key):
    """Tell whether a text names an exposure, and not one whose name is longer."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(key)}(?![A-Za-z0-9])", text) is not None


def repaired(lines: Iterable[LogLine]) -> dict[str, int] | None:
    """
    Read what MedianHotPixelStep did to an exposure.

    Parameters
    ----------
    lines : iterable of LogLine
        Lines that name it.

    Returns
    -------
    dict or None
        Numbers of pixels ``hot``, ``dead``, ``holes`` and ``repaired``, of the last run; None if the log
        does not say.
    """
    found = [match for line in lines if (match := _REPAIRED.search(line.text))]
    if not found:
        return None
    return dict(
        zip(("hot", "dead", "holes", "repaired"), (int(n or 0) for n in found[-1].groups()), strict=True)
    )
