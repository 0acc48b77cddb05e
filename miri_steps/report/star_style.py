"""How figures of the flux calibration look."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np

from miri_steps.report import svg

__all__ = ["INK", "STYLE", "WIDE", "WIDTH", "in_order", "with_error"]

#: These stand in papers as well as in pages: on white, where no page says otherwise.
STYLE = svg.STYLE | {"figure.facecolor": "white", "axes.facecolor": "none", "figure.dpi": 150.0}
#: Colour of text and lines.
INK = STYLE["text.color"]
#: Width of a figure with one panel, and of one with several [inch].
WIDTH, WIDE = 5.2, 7.2


def in_order(number: int) -> list[tuple[float, ...]]:
    """
    Choose colours from dark to bright, none too bright for white paper.

    Parameters
    ----------
    number : int
        How many.

    Returns
    -------
    list of tuple
        Red, green, blue and opacity of each.
    """
    return [mpl.colormaps["plasma"](part) for part in np.linspace(0, 0.78, number)]


def with_error(value: float, error: float) -> str:
    """
    Write a number to two digits of its error.

    Parameters
    ----------
    value, error : float
        The number and its standard deviation; 0 or NaN where there is none.

    Returns
    -------
    str
        Both.

    Examples
    --------
    >>> with_error(0.40123, 0.002)
    '0.4012 \u00b1 0.0020'
    """
    if not (np.isfinite(error) and error > 0):
        return f"{value:.5g}"
    digits = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:.{digits}f} \N{PLUS-MINUS SIGN} {error:.{digits}f}"
