"""A figure of tile corrections: what was averaged, and how well it agrees."""

from __future__ import annotations

import re

import numpy as np
from astropy import units as u
from astropy.table import Table
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch

from miri_steps.algorithms import directions, tile_shifts
from miri_steps.exposures import sky_middle

__all__ = ["draw"]

# Colours of Okabe and Ito, which colour-blind people tell apart; light, dark and dashed when printed in grey.
_USED, _REJECTED = "#56B4E9", "#D55E00"
# Units that the numbers are drawn from; None for words.
_TILE_COLUMNS = {
    **{"tile": None, "filter": None, "ra": u.deg, "dec": u.deg},
    **{"shift_east": u.arcsec, "shift_north": u.arcsec, "rotation": u.rad, "scatter": u.mas},
}
_EXPOSURE_COLUMNS = {
    **{"exposure": None, "tile": None, "filter": None, "ra": u.deg, "dec": u.deg},
    **{"shift_east": u.arcsec, "shift_north": u.arcsec, "used": None},
}
# Smallest and largest sizes of the sky, and of a target [inch].
_SKY, _PANEL = (7.0, 11.0), (1.9, 3.2)
# The longest arrow, in units of the distance between tiles: long enough to be seen, too short for a tangle.
_LONGEST = 0.9
# The field is never drawn smaller than this [arcsec] ...
_LEAST_FIELD = 120.0
# ... nor a panel of shifts, from its middle to its rim [mas].
_LEAST_RIM = 20.0
# Tiles nearer than this to each other are drawn as one place [arcsec].
_ONE_PLACE = 10.0
# More names than this cannot be read.
_MOST_NAMES = 3
_NAME = re.compile(r"jw\d{11}_(\d{2}\w{3}_\d{5})_mirimage.*")


def draw(tiles: Table, exposures: Table) -> Figure:
    """
    Draw the corrections of exposures and tiles, on the sky and against each other.

    On the left the sky, East to the left: a thin arrow for the fit of each exposure, a bold one for the
    correction of its tile, all to one scale. On the right a target for each tile: its correction is the
    bull's-eye, and the fits of its exposures are the shots, with their scatter as a circle. What was
    rejected is orange and dashed, and named.

    Parameters
    ----------
    tiles : Table
        As `TileAstrometryStep` saves it, with columns tile, filter, ra, dec, shift_east, shift_north,
        rotation and scatter; NaN where a tile has no correction. Columns without a unit are in deg,
        arcsec, rad and mas.
    exposures : Table
        One row per exposure: exposure, tile, filter, ra, dec, shift_east, shift_north and used; its shift is
        NaN where there is no fit of its own.

    Returns
    -------
    Figure
        To be saved with its ``savefig``; pyplot knows nothing of it.

    Raises
    ------
    ValueError
        If a column is missing.

    Notes
    -----
    Differences from the tile are those from its correction carried to the exposure, rotation included.
    """
    tiles = _plain(tiles, _TILE_COLUMNS, "tiles")
    exposures = _plain(exposures, _EXPOSURE_COLUMNS, "exposures")
    tiles["members"] = [_members(row, tiles, exposures) for row in tiles]
    _place(tiles, exposures)
    columns = int(np.ceil(np.sqrt(len(tiles))))
    rows = -(-len(tiles) // max(columns, 1))
    panel = float(np.clip((_SKY[0] - 1.0) / max(rows, 1) - 0.5, *_PANEL))
    height = max(_SKY[0], (panel + 0.5) * rows + 1.0)
    sky, width = min(height, _SKY[1]), (panel + 0.25) * columns
    figure = Figure(figsize=(sky + width, height), layout="constrained")
    if not columns:
        _draw_sky(figure.subplots(), tiles, exposures)
        return figure
    left, right = figure.subfigures(1, 2, width_ratios=(sky, width))
    _draw_sky(left.subplots(), tiles, exposures)
    _draw_targets(right.subplots(rows, columns, squeeze=False), tiles, exposures)
    right.suptitle("Fits of exposures about\nthe correction of their tile")
    return figure


def _ink():
    """Tiles have the colour of text, which is black unless matplotlib's settings say otherwise."""
    return rcParams["text.color"]


def _plain(table, columns, name):
    """Copy the columns that are needed, as numbers in known units."""
    missing = sorted(set(columns) - set(table.colnames))
    if missing:
        raise ValueError(
            f"{name} must have the columns {', '.join(columns)}, but {', '.join(missing)} is missing"
        )
    plain = Table()
    for column, unit in columns.items():
        values = table[column]
        if unit is None:
            # Empty words are masked in a table that was saved.
            kind, nothing = (bool, False) if column == "used" else (str, "")
            plain[column] = np.asarray(np.ma.filled(values, nothing), kind)
        else:
            values = u.Quantity(np.ma.filled(values, np.nan), values.unit or unit)
            plain[column] = values.to_value(unit).astype(float)
    return plain


def _members(row, tiles, exposures):
    """Find the exposures that a row is about; a row without a filter is about all of its tile."""
    of_band = (row["filter"] == "") | (exposures["filter"] == row["filter"])
    return np.asarray((exposures["tile"] == row["tile"]) & of_band)


def _place(tiles, exposures):
    """Put tiles that have no position into the middle of their exposures."""
    places = _places(exposures)
    for row in tiles:
        middle = _middle(places[np.asarray(exposures["tile"] == row["tile"])])
        if middle and not np.isfinite([row["ra"], row["dec"]]).all():
            row["ra"], row["dec"] = middle


def _places(table):
    """List where the rows are, shape (n, 2) [deg]; NaN where that is not known."""
    return np.column_stack([table["ra"], table["dec"]])


def _middle(places):
    """Find the middle of the places that are known; None if there are none."""
    places = places[np.isfinite(places).all(axis=1)]
    return sky_middle(places) if len(places) else None


class _Map:
    """The plane of the drawing: East and North of the middle of the field [arcsec]."""

    def __init__(self, *tables):
        self.middle = _middle(np.concatenate([_places(table) for table in tables])) or (0.0, 0.0)
        self.axes = np.degrees(np.column_stack(directions.local_axes(self.middle)[:2])) * 3600

    def positions(self, table):
        """Where the rows are, shape (n, 2)."""
        return directions.local_axes(_places(table))[2] @ self.axes

    def arrows(self, table):
        """Where their shifts point, each along its own East and North, shape (n, 2)."""
        east, north, _ = directions.local_axes(_places(table))
        shift = np.radians(np.column_stack([table["shift_east"], table["shift_north"]]) / 3600)
        return (shift[:, :1] * east + shift[:, 1:] * north) @ self.axes


def _draw_sky(axis: Axes, tiles: Table, exposures: Table) -> None:
    plane = _Map(tiles, exposures)
    here, arrow = plane.positions(tiles), plane.arrows(tiles)
    there, own = plane.positions(exposures), plane.arrows(exposures)
    used = np.asarray(exposures["used"])
    scale, longest = _scale(here, arrow, own, used)
    style = {"angles": "xy", "scale_units": "xy", "scale": 1.0, "units": "inches", "minshaft": 1.5}
    axis.scatter(*there.T, s=4, color="0.6", zorder=1)
    axis.quiver(
        *there[used].T, *scale * own[used].T, color=_USED, width=0.012, zorder=2, label="used", **style
    )
    axis.quiver(*here.T, *scale * arrow.T, color=_ink(), width=0.03, zorder=4, label="tiles", **style)
    tips = _draw_rejected(axis, there, scale * own, scale * longest, exposures)
    lost = ~np.isfinite(arrow).all(axis=1)
    axis.plot(*here[lost].T, "s", ms=9, mfc="none", mec=_ink(), mew=1.5, zorder=4)
    _write_numbers(axis, here, scale * arrow, tiles)
    _frame(axis, np.concatenate([here, there, here + scale * arrow, there[used] + scale * own[used], tips]))
    _draw_key(axis, _round(0.7 * longest), scale, style)
    _describe_sky(axis, plane.middle, lost.any(), len(tips) > 0)


def _draw_key(axis, length, scale, style):
    """Draw an arrow of a round length in the lower left corner, and say how long it is."""
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    begin = left + 0.04 * (right - left), bottom + 0.04 * (top - bottom)
    axis.quiver(*begin, -scale * length, 0.0, color=_ink(), width=0.03, label="key", **style)
    end = begin[0] - scale * length, begin[1]
    axis.annotate(_angle(length), end, (5, 0), textcoords="offset points", va="center", fontsize=9)


def _scale(here, arrow, own, used):
    """Choose how much arrows are enlarged, so that the longest of what is used fits between tiles."""
    lengths = np.hypot(*np.concatenate([arrow, own[used]]).T)
    if not np.isfinite(lengths).any():
        lengths = np.hypot(*own.T)
    longest = np.max(lengths, initial=0.0, where=np.isfinite(lengths)) or 0.001
    return _LONGEST * _spacing(here) / longest, longest


def _spacing(here):
    """Find the typical distance of a tile from its neighbour; tiles at one place are no neighbours."""
    here = here[np.isfinite(here).all(axis=1)]
    distance = np.hypot(*(here[:, None] - here).T)
    nearest = np.min(distance, axis=0, initial=np.inf, where=distance > _ONE_PLACE)
    nearest = nearest[np.isfinite(nearest)]
    return np.median(nearest) if len(nearest) else 0.5 * _LEAST_FIELD


def _draw_rejected(axis, there, own, limit, exposures):
    """Draw dashed arrows, those longer than all others cut, with an open head; return their tips."""
    shown = np.flatnonzero(~exposures["used"] & np.isfinite(own).all(axis=1) & np.isfinite(there).all(axis=1))
    length = np.hypot(*own[shown].T)
    cut = own[shown] * np.minimum(1.0, 1.2 * limit / np.maximum(length, 1e-9))[:, None]
    tips = there[shown] + cut
    for begin, end in zip(there[shown], tips, strict=True):
        style = {"color": _REJECTED, "ls": (0, (3, 2)), "lw": 1.2, "shrinkA": 0, "shrinkB": 0, "zorder": 3}
        axis.add_patch(FancyArrowPatch(begin, end, arrowstyle="->", mutation_scale=9, **style))
    if len(shown) <= 2 * _MOST_NAMES:
        for k, tip in zip(shown, tips, strict=True):
            axis.annotate(
                _short(exposures["exposure"][k]), tip, **_beside(own[k]), color=_REJECTED, fontsize=7
            )
    return tips


def _beside(arrow):
    """Place a text beyond the tip of an arrow; East is to the left."""
    side = "right" if arrow[0] > 0 else "left"
    return {
        "xytext": (-3 if side == "right" else 3, 0),
        "textcoords": "offset points",
        "ha": side,
        "va": "center",
    }


def _write_numbers(axis, here, arrow, tiles):
    """Write numbers to tiles, where their arrows do not point; tiles at one place share a label."""
    names = _numbers(tiles)
    left = {names[name]: k for k, name in enumerate(tiles["tile"]) if np.isfinite(here[k]).all()}
    left = dict(sorted(left.items()))
    while left:
        k = next(iter(left.values()))
        near = [n for n, other in left.items() if np.hypot(*(here[other] - here[k])) <= _ONE_PLACE]
        away = np.nan_to_num(arrow[k])
        length = np.hypot(*away)
        side = -away / length if length else np.array([0.0, -1.0])
        # On the screen East is to the left.
        place = {"xytext": (-11 * side[0], 11 * side[1]), "textcoords": "offset points"}
        shape = "circle" if len(near) == 1 else "round"
        box = {"boxstyle": f"{shape},pad=0.15", "ec": "0.4", "lw": 0.6, "alpha": 0.85}
        box["fc"] = rcParams["axes.facecolor"]
        text = ",".join(map(str, near))
        axis.annotate(text, here[k], **place, ha="center", va="center", fontsize=8, bbox=box, zorder=5)
        for n in near:
            left.pop(n)


def _numbers(tiles):
    """Give each tile a number; it may have a row per filter."""
    return {name: number for number, name in enumerate(dict.fromkeys(tiles["tile"]), start=1)}


def _frame(axis, points):
    """Show all points, and the sky as it is seen: East to the left, the same scale both ways."""
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        points = np.zeros((1, 2))
    low, high = points.min(axis=0), points.max(axis=0)
    half = max(0.62 * np.max(high - low), _LEAST_FIELD / 2)
    middle = (low + high) / 2
    axis.set_xlim(middle[0] + half, middle[0] - half)
    # The lowest part is for the key.
    axis.set_ylim(middle[1] - 1.1 * half, middle[1] + 0.9 * half)
    axis.set_aspect("equal")


def _describe_sky(axis, middle, any_lost, any_rejected):
    axis.set_xlabel(f"East of RA {middle[0]:.5f} deg [arcsec]")
    axis.set_ylabel(f"North of Dec {middle[1]:+.5f} deg [arcsec]")
    axis.set_title("Corrections on the sky (arrows are enlarged)")
    lines = [
        Line2D([], [], color=_ink(), lw=3, label="correction of a tile"),
        Line2D([], [], color=_USED, lw=1.2, label="fit of an exposure"),
    ]
    if any_rejected:
        lines.append(
            Line2D([], [], color=_REJECTED, lw=1.2, ls=(0, (3, 2)), label="rejected (long ones are cut)")
        )
    if any_lost:
        style = {"marker": "s", "ms": 9, "mfc": "none", "mec": _ink(), "mew": 1.5, "ls": "none"}
        lines.append(Line2D([], [], **style, label="tile without a correction"))
    axis.figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False, fontsize=9)


def _draw_targets(panels: np.ndarray, tiles: Table, exposures: Table) -> None:
    numbers = _numbers(tiles)
    away = [_deviations(row, exposures) for row in tiles]
    rim = _rim(tiles, away, np.asarray(exposures["used"]))
    for axis, row, deviation in zip(panels.flat, tiles, away, strict=False):
        used = row["members"] & exposures["used"] & np.isfinite(deviation).all(axis=1)
        rejected = row["members"] & ~exposures["used"] & np.isfinite(deviation).all(axis=1)
        axis.axhline(0, color="0.85", lw=0.8, zorder=0)
        axis.axvline(0, color="0.85", lw=0.8, zorder=0)
        axis.plot(*deviation[used].T, "o", ms=4, color=_USED, mec="#0072B2", mew=0.7, clip_on=True)
        if np.isfinite(row["scatter"]):
            axis.add_patch(Circle((0, 0), row["scatter"], fill=False, color=_ink(), lw=1.2))
        names = exposures["exposure"][rejected] if _is_corrected(row) else [""] * int(rejected.sum())
        _mark_rejected(axis, deviation[rejected], names, rim)
        axis.set_title(_heading(row, numbers, np.sum(row["members"] & exposures["used"])), fontsize=6.5)
        axis.set(xlim=(rim, -rim), ylim=(-rim, rim), aspect="equal")
    _label_axes(panels, len(tiles))


def _label_axes(panels, n):
    """Write the axes at the left of each row and below each column, whose last panel may be missing."""
    columns = panels.shape[1]
    for k, axis in enumerate(panels.flat):
        axis.set_visible(k < n)
        is_left, is_lowest = k % columns == 0, k + columns >= n
        axis.locator_params(nbins=5)
        axis.tick_params(labelsize=7, labelleft=is_left, labelbottom=is_lowest)
        axis.set_ylabel("North [mas]" if is_left else "", fontsize=8)
        axis.set_xlabel("East [mas]" if is_lowest else "", fontsize=8)


def _deviations(row, exposures):
    """How far the fits of exposures are from the correction of their tile, or from their own median [mas]."""
    own = np.column_stack([exposures["shift_east"], exposures["shift_north"]])
    shift = np.array([row["shift_east"], row["shift_north"]])
    if not _is_corrected(row):
        fitted = own[row["members"] & np.isfinite(own).all(axis=1)]
        return 1e3 * (own - (np.median(fitted, axis=0) if len(fitted) else 0.0))
    there = _places(exposures)
    rotation = np.nan_to_num(row["rotation"])
    return 1e3 * (own - tile_shifts.carry(shift, rotation, np.array([row["ra"], row["dec"]]), there)[0])


def _rim(tiles, away, used):
    """Choose one size for all targets: all that was used lies inside."""
    inside = [each[row["members"] & used].ravel() for row, each in zip(tiles, away, strict=True)]
    values = np.abs(np.concatenate([*inside, tiles["scatter"]]))
    return _round_up(1.15 * max(np.max(values, initial=0.0, where=np.isfinite(values)), _LEAST_RIM))


def _mark_rejected(axis, deviation, names, rim):
    """Mark rejected exposures by name, those beyond the rim by an arrow at it with their distance."""
    for k, (point, name) in enumerate(zip(deviation, names, strict=True)):
        reach = np.abs(point).max()
        text = _short(name)
        if reach < 0.97 * rim:
            axis.plot(*point, "x", ms=6, mew=1.5, color=_REJECTED)
        else:
            tip = point * 0.97 * rim / reach
            style = {
                "arrowstyle": "->",
                "color": _REJECTED,
                "ls": (0, (2, 1.5)),
                "lw": 1.2,
                "shrinkA": 0,
                "shrinkB": 0,
            }
            axis.annotate("", tip, 0.72 * tip, arrowprops=style)
            text, point = f"{text} {_angle(np.hypot(*point) / 1e3)}".strip(), 0.72 * tip
        if k < _MOST_NAMES:
            # Towards the middle, where there is room.
            above = -1 if point[1] > 0 else 1
            side = "left" if point[0] > 0.3 * rim else "right" if point[0] < -0.3 * rim else "center"
            place = {"xytext": (0, 9 * above), "textcoords": "offset points", "ha": side, "va": "center"}
            axis.annotate(text, point, **place, fontsize=6, color=_REJECTED)


def _heading(row, numbers, n_used):
    if not _is_corrected(row):
        remark = "no correction"
    else:
        remark = f"scatter {row['scatter']:.1f} mas" if np.isfinite(row["scatter"]) else ""
    # A table of another run is about exposures that are not here.
    counted = f"{n_used} of {np.sum(row['members'])} used" if row["members"].any() else ""
    parts = row["filter"], counted, remark
    return f"{numbers[row['tile']]}: {row['tile']}\n{', '.join(filter(None, parts))}"


def _is_corrected(row):
    return bool(np.isfinite([row["shift_east"], row["shift_north"]]).all())


def _short(name):
    """Leave out of the name of an exposure what its tile says."""
    found = _NAME.fullmatch(str(name))
    return found[1] if found else str(name)


def _angle(arcsec):
    return f"{arcsec:.3g} arcsec" if arcsec >= 0.9995 else f"{1e3 * arcsec:.3g} mas"


def _round(value):
    """Round to 1, 2 or 5 times a power of ten, downwards."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(power * max(digit for digit in (1, 2, 5) if digit <= value / power * (1 + 1e-9)))


def _round_up(value):
    power = 10.0 ** np.floor(np.log10(value))
    return float(
        power * min(digit for digit in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if digit >= value / power * (1 - 1e-9))
    )
