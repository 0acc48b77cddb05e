"""From a figure of matplotlib to a picture inside a page."""

from __future__ import annotations

import io
import re

import matplotlib as mpl
from matplotlib.figure import Figure

__all__ = ["SHADE", "STYLE", "render"]

# Colours that stand for those of the page, which is light or dark, and are not used for anything else.
_INK, _PAPER = "#010203", "#fdfcfb"
#: Colour of what is not known.
SHADE = "#dbdcdd"

#: Settings that figures are made with: ink and paper are those of the page.
STYLE = {
    **{"svg.fonttype": "none", "svg.hashsalt": "miri_steps", "font.family": "sans-serif", "font.size": 9.0},
    **{"text.color": _INK, "axes.edgecolor": _INK, "axes.labelcolor": _INK, "axes.titlecolor": _INK},
    **{"xtick.color": _INK, "ytick.color": _INK, "axes.facecolor": _PAPER, "figure.facecolor": "none"},
    **{"legend.facecolor": _PAPER, "legend.edgecolor": _INK, "savefig.facecolor": "none"},
    **{"axes.titlesize": 9.0, "axes.labelsize": 9.0, "xtick.labelsize": 8.0, "ytick.labelsize": 8.0},
    **{"axes.linewidth": 0.7, "legend.fontsize": 8.0, "axes.formatter.useoffset": False},
}


def render(figure: Figure, name: str) -> str:
    """
    Draw a figure as SVG to stand in a page among others.

    Parameters
    ----------
    figure : Figure
        Made with the settings `STYLE`.
    name : str
        What its ids begin with.

    Returns
    -------
    str
        An ``<svg>`` element as wide as what it stands in; text is text, and lines have its colour.
    """
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=False, dpi=150)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    return (
        text.replace(_INK, "currentColor")
        .replace(_PAPER, "var(--paper)")
        .replace(SHADE, "var(--shade)")
        .strip()
    )
