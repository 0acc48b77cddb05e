"""What the page says of a mosaic, part by part: the numbers of `numbers` and the pictures of `figures`."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from astropy.table import Table

from miri_steps import detector
from miri_steps.report import collect, figures, logs, numbers, tile_shifts
from miri_steps.report.coarse import Coarse, Grid, bin_image
from miri_steps.report.collect import Mosaic
from miri_steps.report.numbers import Differences
from miri_steps.report.svg import STYLE
from miri_steps.report.views import Card, Drawing, Part, TableView, show

__all__ = [
    "astrometry",
    "cards",
    "detector_background",
    "facts",
    "hot_pixels",
    "images",
    "overlaps",
    "overview_table",
    "provenance",
    "sky_levels",
    "steps",
    "super_background",
]

# Pixels along the side of a picture, at most.
_MOST_PIXELS = 800
_MARKS = {"COMPLETE": "✓ COMPLETE", "SKIPPED": "○ SKIPPED", "FAILED": "✗ FAILED"}
# Reasons that are shown for one exposure; the files have them all.
_MOST_REASONS = 4


def facts(mosaic: Mosaic) -> str:
    """
    Say in a line what a mosaic is.

    Parameters
    ----------
    mosaic : Mosaic
        The mosaic.

    Returns
    -------
    str
        The line.
    """
    ny, nx = mosaic.image.shape
    target = str(mosaic.header.get("TARGNAME") or mosaic.header.get("TARGPROP") or "").strip()
    words = [
        mosaic.path.name,
        f"target {target}" if target else "",
        f"program {mosaic.header['PROGRAM']}" if mosaic.header.get("PROGRAM") else "",
        f"{nx} by {ny} pixels of {collect.pixel_side(mosaic):.3f} arcsec",
        mosaic.association.name if mosaic.association else "",
    ]
    return ", ".join(filter(None, words))


def cards(summary: dict[str, object]) -> list[Card]:
    """
    Choose the numbers on top.

    Parameters
    ----------
    summary : dict
        As `numbers.summarize` gives it.

    Returns
    -------
    list of Card
        Those that are known.
    """
    unit = str(summary["unit"])
    wanted = (
        ("filter", "filter", ""),
        ("exposures", "exposures", ""),
        ("visits", "visits", ""),
        ("area", "area_arcmin2", "arcmin²"),
        ("exposure time, all exposures", "exposure_time_s", "s"),
        ("difference of tiles, before", "difference_clipped_before", unit),
        ("difference of tiles, after", "difference_clipped_after", unit),
        ("median |residual| / error of pairs", "pair_ratio_median", ""),
        ("largest error of a level", "level_error_largest", unit),
        ("largest scatter of a tile", "tile_scatter_largest_mas", "mas"),
        ("pixels repaired, all exposures", "pixels_repaired", ""),
        ("hot pixels in the map", "hot_pixels_in_map", ""),
        ("exposures with something not done", "exposures_not_done", ""),
    )
    return [Card(name, show(summary[key]), unit) for name, key, unit in wanted if summary[key] is not None]


def images(mosaic: Mosaic, before: Coarse | None, after: Coarse | None, grid: Grid) -> Part:
    """
    Show the mosaic, and what its exposures look like before and after the pipeline.

    Parameters
    ----------
    mosaic : Mosaic
        The mosaic.
    before, after : Coarse or None
        The exposures on a coarse grid.
    grid : Grid
        The grid.

    Returns
    -------
    Part
        For the page.
    """
    part = Part("Mosaic")
    sides = {"before": before, "after": after}
    shown = {name: _centred(side.image) for name, side in sides.items() if side is not None}
    limits = figures.stretch(shown.get("after", shown.get("before", (mosaic.image, 0.0)))[0])
    for name, (image, middle) in shown.items():
        part.figures.append(_side(mosaic, name, sides[name].n_exposures, image, middle, limits, grid))
    part.figures.append(_final(mosaic))
    deepest = shown and (after or before)
    if deepest:
        part.figures.append(_depth(deepest, grid))
    part.notes += _missing_sides(mosaic, sides)
    return part


def _side(mosaic, name, n, image, middle, limits, grid):
    words = (
        f"The {n} exposures as they came into calwebb_image3, averaged."
        if name == "before"
        else f"The {n} exposures as they went into the mosaic, their levels subtracted."
    )
    good = "" if name == "before" else " Good: no edge of a tile is left to see."
    return Drawing(
        f"{name.capitalize()}.",
        f"{words} The median, {show(middle)} {mosaic.unit}, is taken off; both have one stretch.{good}",
        figures.picture(
            *(image,),
            **{"label": f"above the median [{mosaic.unit}]", "limits": limits},
            **{"scale": grid.scale, "corner": grid.edge},
        ),
        f"Mosaic of the exposures {name} the pipeline, North up",
    )


def _depth(coarse, grid):
    count = np.where(coarse.count > 0, coarse.count, np.nan).astype(float)
    most = int(coarse.count.max())
    return Drawing(
        "Depth.",
        f"Exposures that see a place, {most} at the most.",
        figures.picture(
            *(count,),
            **{"label": "exposures", "limits": (0.0, float(most)), "cmap": "cividis", "linear": True},
            **{"scale": grid.scale, "corner": grid.edge},
        ),
        f"Map of the number of exposures, up to {most}",
    )


def _centred(image):
    known = image[np.isfinite(image)]
    middle = float(np.median(known)) if known.size else 0.0
    return image - middle, middle


def _final(mosaic):
    factor = max(1, -(-max(mosaic.image.shape) // _MOST_PIXELS))
    small = bin_image(mosaic.image, factor)
    reduced = f", {factor} by {factor} pixels in one" if factor > 1 else ""
    return Drawing(
        "The product.",
        f"{mosaic.path.name}{reduced}, in the orientation of the file.",
        figures.picture(
            small, label=f"surface brightness [{mosaic.unit}]", north=_compass(mosaic), block=factor
        ),
        "The final mosaic, with arrows to North and East",
    )


def _compass(mosaic):
    """Find the directions of North and East in the image."""
    matrix = mosaic.wcs.pixel_scale_matrix
    inverse = np.linalg.inv(matrix)
    return tuple(inverse @ (0, 1)), tuple(inverse @ (1, 0))


def _missing_sides(mosaic, sides):
    total, notes = len(mosaic.exposures), []
    if sides["before"] is None:
        notes.append(
            "The exposures before are not shown: their association, or the files that it names, are not "
            "beside the mosaic nor in a folder next to its own."
        )
    if sides["after"] is None:
        notes.append(
            "The exposures after are not shown: there is no ..._crf.fits beside the mosaic. "
            "outlier_detection writes them with save_results of calwebb_image3."
        )
    for name, side in sides.items():
        if side is not None and side.n_exposures < total:
            notes.append(
                f"{total - side.n_exposures} of {total} exposures are missing in the picture {name}."
            )
    return notes


def overlaps(
    mosaic: Mosaic,
    before: Coarse | None,
    after: Coarse | None,
    grid: Grid,
    differences: dict[str, Differences],
) -> Part:
    """
    Show how tiles differ where they overlap.

    Parameters
    ----------
    mosaic : Mosaic
        The mosaic.
    before, after : Coarse or None
        The exposures on a coarse grid.
    grid : Grid
        The grid.
    differences : dict
        The differences as numbers.

    Returns
    -------
    Part
        For the page.
    """
    part = Part("Overlaps")
    sides = {"before": before, "after": after}
    if not differences:
        part.notes.append("Nothing overlaps, or there are no exposures to compare.")
        return part
    side = grid.scale * grid.block
    limit = 2 * max(found.clipped for found in differences.values()) or 1.0
    between = next(each.between for each in sides.values() if each is not None)
    window, corner = _window([sides[name].difference for name in differences], grid)
    for name, found in differences.items():
        good = " Good: noise without steps; bright stars may stand out." if name == "after" else ""
        part.figures.append(
            Drawing(
                f"{name.capitalize()}: {found.clipped:.3g} {mosaic.unit}.",
                f"The later minus the earlier of the {between} that overlap, in cells of {side:.2g} arcsec."
                + good,
                figures.difference(
                    sides[name].difference[window],
                    **{"limit": limit, "label": f"later minus earlier [{mosaic.unit}]"},
                    **{"scale": side, "corner": corner},
                ),
                f"Map of the differences of overlapping {between} {name} the pipeline, "
                f"{found.clipped:.3g} {mosaic.unit} rms",
            )
        )
    rows = [
        (name, show(found.clipped), show(found.rms), show(found.cells)) for name, found in differences.items()
    ]
    head = "", f"rms without outliers [{mosaic.unit}]", f"rms [{mosaic.unit}]", "cells"
    part.tables.append(
        TableView(f"Differences of {between}, on the same cells", head, rows, frozenset({1, 2, 3}))
    )
    part.texts.append(
        "Numbers are rms without what is beyond 5 standard deviations: stars that are too bright, or not on "
        "their place."
    )
    return part


def _window(maps, grid):
    """Cut out where there is something to see; give the outer corner of the first cell, too."""
    known = np.logical_or.reduce([np.isfinite(each) for each in maps])
    rows, columns = (np.flatnonzero(known.any(axis=axis)) for axis in (1, 0))
    first, last = (
        (max(int(each[0]) - 2, 0) for each in (rows, columns)),
        (int(each[-1]) + 3 for each in (rows, columns)),
    )
    window = tuple(map(slice, first, last))
    side, (east, north) = grid.scale * grid.block, grid.edge
    return window, (east - window[1].start * side, north + window[0].start * side)


def sky_levels(mosaic: Mosaic) -> Part:
    """
    Show the levels of the sky, and how well they explain the pairs.

    Parameters
    ----------
    mosaic : Mosaic
        The mosaic.

    Returns
    -------
    Part
        For the page.
    """
    part = Part("Sky levels")
    listed = mosaic.exposures
    if any(np.isfinite(exposure.level) for exposure in listed):
        columns = [(each.visit or "unknown", each.level, each.level_error) for each in listed]
        table = Table(rows=columns, names=("visit", "level", "error"))
        part.figures.append(
            Drawing(
                "Levels.",
                "One point per exposure with its standard error, in the order of visits and names. "
                "Good: exposures of a visit are alike, and errors are small against steps between visits.",
                figures.levels(table, mosaic.unit),
                "Level of the sky of each exposure, by visit",
            )
        )
        part.tables.append(_visits_view(mosaic))
    if "sky_levels" not in mosaic.tables:
        part.notes.append(
            "Errors of the levels are not known: PixelSkyMatchStep saves them with save_levels."
        )
    ratios = numbers.pair_ratios(mosaic.tables.get("sky_pairs"))
    if ratios.size:
        part.figures.insert(
            1,
            Drawing(
                "Residuals of pairs.",
                f"What is left of the difference of each of {ratios.size} pairs, over its error; "
                f"median {np.median(np.abs(ratios)):.2g}. Good: as wide as the curve. Wider: the sky is not "
                "flat within the exposures, or errors are too small. The outermost bars count all beyond.",
                figures.residuals(ratios),
                f"Histogram of the residuals of {ratios.size} pairs over their errors",
            ),
        )
    elif "sky_pairs" not in mosaic.tables:
        part.notes.append("Pairs are not known: PixelSkyMatchStep saves them with save_levels.")
    return part


def _visits_view(mosaic):
    unit = mosaic.unit
    rows = [
        (str(row["visit"]), *(show(row[name]) for name in ("exposures", "level", "scatter", "error")))
        for row in numbers.visit_table(mosaic)
    ]
    head = "visit", "exposures", f"mean level [{unit}]", f"scatter [{unit}]", f"largest error [{unit}]"
    return TableView("Levels by visit", head, rows, frozenset({1, 2, 3, 4}))


def detector_background(mosaic: Mosaic) -> Part:
    """
    Show the background that is fixed to the detector.

    Parameters
    ----------
    mosaic : Mosaic
        The mosaic.

    Returns
    -------
    Part
        For the page.
    """
    part = Part("Detector background")
    plane = mosaic.detector_background
    if plane is None:
        part.notes.append(
            "It is not there: PixelSkyMatchStep saves one that dithers show with save_detector_background."
        )
        return part
    window, (x, y) = _matched_window(mosaic, plane.data.shape)
    data = plane.data[window]
    if not np.isfinite(data).any():
        part.notes.append(f"{plane.path.name} is empty.")
        return part
    reach = float(np.nanpercentile(np.abs(data), 99.5)) or 1.0
    part.figures.append(
        Drawing(
            "Smooth background.",
            "What PixelSkyMatchStep found to stay on the detector while the sky moves, from "
            f"{show(np.nanmin(data))} to {show(np.nanmax(data))} {plane.unit}, in the part of the detector "
            "that was matched. Good: smooth, and small against the sky.",
            figures.picture(
                *(data,),
                **{"label": f"background [{plane.unit}]", "limits": (-reach, reach), "corner": (x, y)},
                **{"cmap": "RdBu_r", "linear": True},
            ),
            "Image of the smooth background fixed to the detector",
        )
    )
    return part


def _matched_window(mosaic, shape):
    """Find the part of the imager that the exposures read; beyond it a polynomial means nothing."""
    (left, low), (right, high) = detector.bounding_box("imager")
    frames = np.array([each.frame for each in mosaic.exposures if each.frame[2] > 0]).reshape(-1, 4)
    if len(frames):
        left, low = max(left, frames[:, 0].min()), max(low, frames[:, 1].min())
        right = min(right, (frames[:, 0] + frames[:, 2]).max() - 1)
        high = min(high, (frames[:, 1] + frames[:, 3]).max() - 1)
    if left >= right or low >= high:
        left, low, right, high = 0, 0, shape[1] - 1, shape[0] - 1
    return (slice(low, high + 1), slice(left, right + 1)), (left, low)


def super_background(mosaic: Mosaic) -> Part:
    """
    Show the super-backgrounds, and what they are made of.

    Parameters
    ----------
    mosaic : Mosaic
        The mosaic.

    Returns
    -------
    Part
        For the page.
    """
    part = Part("Super-background")
    if not mosaic.super_backgrounds:
        part.notes.append(
            "It is not there: SuperBackgroundStep saves it with save_background, if it can build one."
        )
    for plane in mosaic.super_backgrounds:
        if not np.isfinite(plane.data).any():
            part.notes.append(f"{plane.path.name} is empty.")
            continue
        factor = 2 if max(plane.data.shape) > 512 else 1
        low, high = np.nanpercentile(plane.data, [1, 99])
        part.figures.append(
            Drawing(
                "Super-background.",
                f"{plane.note}. Good: no star and no ghost of one.",
                figures.picture(
                    bin_image(plane.data, factor),
                    **{"label": f"background [{plane.unit}]", "limits": (float(low), float(high))},
                    **{"cmap": "cividis", "linear": True, "block": factor},
                ),
                f"Image of the super-background, {plane.note}",
            )
        )
        if plane.count is not None:
            count = np.where(np.isfinite(plane.data), plane.count, np.nan)
            part.figures.append(
                Drawing(
                    "Samples.",
                    f"Exposures that each pixel is made of, median {np.nanmedian(count):g}. "
                    "Good: nearly all of them; few where sources were masked.",
                    figures.picture(
                        bin_image(count, factor),
                        **{"label": "samples", "limits": (0.0, float(np.nanmax(count)) or 1.0)},
                        **{"cmap": "viridis", "linear": True, "block": factor},
                    ),
                    "Map of the number of exposures behind each pixel of the super-background",
                )
            )
    return part


def hot_pixels(mosaic: Mosaic) -> Part:
    """
    Show where pixels were found hot or dead, and how many were repaired.

    Parameters
    ----------
    mosaic : Mosaic
        The mosaic.

    Returns
    -------
    Part
        For the page.
    """
    part = Part("Hot pixels")
    if not mosaic.hot_pixels:
        part.notes.append("There is no map: MedianHotPixelStep saves it with save_mask.")
    for plane in mosaic.hot_pixels:
        hot, dead = plane.flagged("HOT"), plane.flagged("DEAD")
        part.figures.append(
            Drawing(
                "Hot and dead pixels.",
                f"{plane.note}: {hot.sum()} hot ({100 * hot.mean():.2g} %) and {dead.sum()} dead pixels. "
                "Good: evenly spread; a cluster at the place of a star is a star.",
                figures.hot_pixels(hot, dead),
                f"Map of {hot.sum()} hot and {dead.sum()} dead pixels",
            )
        )
    counted = [(each.key, counts) for each in mosaic.exposures if (counts := logs.repaired(each.lines))]
    if counted:
        rows = [(key, *map(str, counts.values())) for key, counts in counted]
        head = "exposure", "hot", "dead", "holes", "repaired or flagged"
        part.tables.append(TableView("Pixels by exposure, from the log", head, rows, frozenset({1, 2, 3, 4})))
    else:
        part.notes.append(
            "The log that counts them by exposure is not in the mosaic, nor beside it as a file .log."
        )
    return part


def astrometry(mosaic: Mosaic) -> Part:
    """
    Show how tiles were moved, and how well their exposures agree.

    Parameters
    ----------
    mosaic : Mosaic
        The mosaic.

    Returns
    -------
    Part
        For the page.
    """
    part = Part("Astrometry")
    tiles, listed = mosaic.tables.get("tiles"), mosaic.tables.get("tile_exposures")
    if tiles is None:
        part.notes.append(
            "Shifts of tiles are not known: TileAstrometryStep saves them with save_corrections."
        )
        return part
    if listed is None:
        part.notes.append(
            "Arrows are not drawn: ..._tile_exposures.ecsv, which TileAstrometryStep saves with "
            "save_corrections, is missing."
        )
    else:
        part.figures.append(_shifts(tiles, listed))
    scatter = numbers.tile_scatter(tiles)
    names = [str(name) for name in tiles["tile"]]
    part.figures.append(
        Drawing(
            "Scatter of tiles.",
            "How well the fits for the exposures of a tile agree, along an axis. Good: left of the line, "
            f"{numbers.MAX_SCATTER:.3g} mas, a quarter of a pixel.",
            figures.scatter(names, scatter, limit=numbers.MAX_SCATTER),
            "Scatter of the exposures of each tile",
        )
    )
    part.tables.append(_tiles_view(tiles))
    return part


def _shifts(tiles, listed):
    with mpl.rc_context(STYLE):
        figure = tile_shifts.draw(tiles, listed)
    return Drawing(
        "Shifts.",
        "What tweakreg found for exposures, and the correction that each tile got: on the sky, and about "
        "that correction. Good: shots close to the bull's-eye, and tiles on one guide star with one arrow.",
        figure,
        "Arrows of the corrections of tiles on the sky, and the fits of exposures about them",
        wide=True,
    )


def _tiles_view(tiles):
    wanted = (
        *("tile", "filter", "shift_east", "shift_north", "error_east", "error_north", "rotation", "scatter"),
        *("stars", "exposures", "method", "problem"),
    )
    names = [name for name in wanted if name in tiles.colnames]
    head = [f"{name.replace('_', ' ')} [{tiles[name].unit}]" if tiles[name].unit else name for name in names]
    rows = []
    for row in tiles:
        rows.append([_tile_cell(name, row[name]) for name in names])
    numeric = frozenset(k for k, name in enumerate(names) if tiles[name].dtype.kind in "if")
    return TableView("Corrections of tiles", head, rows, numeric)


def _tile_cell(name, value):
    if value is np.ma.masked:
        return ""
    if name == "stars" and value < 0:
        return "–"
    return show(value, 4)


def steps(mosaic: Mosaic) -> Part:
    """
    List what each step did to each exposure, and why not.

    Parameters
    ----------
    mosaic : Mosaic
        The mosaic.

    Returns
    -------
    Part
        For the page.
    """
    part = Part("Steps")
    ran = [name for name in numbers.STEPS if any(name in exposure.status for exposure in mosaic.exposures)]
    if not ran:
        part.notes.append("There is no exposure to read what was done to it.")
        return part
    rows = []
    for exposure in mosaic.exposures:
        marks = [_MARKS.get(exposure.status.get(name), exposure.status.get(name, "")) for name in ran]
        rows.append([exposure.key, *marks])
    part.tables.append(TableView("What each step did to each exposure", ["exposure", *ran], rows))
    part.texts.append("✓ COMPLETE, ○ SKIPPED, ✗ FAILED. Good: COMPLETE, or SKIPPED where you wanted that.")
    why = [(exposure.key, _reasons(exposure)) for exposure in mosaic.exposures if numbers.reasons(exposure)]
    part.tables.append(
        TableView("Why: warnings of the log that name an exposure", ("exposure", "warnings"), why)
    )
    if not why:
        quiet = "No warning of the log names an exposure." if mosaic.log else "There is no log to say why."
        part.notes.append(quiet)
    return part


def _reasons(exposure):
    found = numbers.reasons(exposure)
    more = len(found) - _MOST_REASONS
    return "; ".join([*found[:_MOST_REASONS], *([f"and {more} more"] if more > 0 else [])])


def provenance(mosaic: Mosaic) -> Part:
    """
    List versions, reference files and parameters.

    Parameters
    ----------
    mosaic : Mosaic
        The mosaic.

    Returns
    -------
    Part
        For the page.
    """
    part = Part("Provenance")
    rows = [(f"{name}, made the mosaic", version) for name, version in mosaic.versions.items()]
    rows += [(f"{name}, made this page", version) for name, version in numbers.software().items()]
    part.tables.append(TableView("Versions", ("software", "version"), rows))
    if mosaic.references:
        part.tables.append(TableView("Reference files", ("type", "file"), list(mosaic.references.items())))
    else:
        part.notes.append("The mosaic names no reference files.")
    entries = numbers.settings(mosaic)
    if entries:
        part.tables.append(_history_view(entries))
    else:
        part.notes.append("No exposure has a HISTORY entry of miri_steps: none of its steps was run.")
    return part


def _history_view(entries):
    rows = []
    for entry, n in entries:
        name, _, words = entry.partition(": ")
        rows.append((name.removeprefix("miri_steps "), str(n), words))
    return TableView(
        "Parameters of our steps (HISTORY)", ("step", "exposures", "parameters"), rows, frozenset({1})
    )


def overview_table(table: Table | None) -> TableView:
    """
    Show the table of a whole reduction.

    Parameters
    ----------
    table : Table or None
        As the chain writes it.

    Returns
    -------
    TableView
        Without rows where there is none.
    """
    if table is None:
        return TableView("", (), ())
    head = [f"{name} [{table[name].unit}]" if table[name].unit else name for name in table.colnames]
    rows = [[_overview_cell(row[name]) for name in table.colnames] for row in table]
    numeric = frozenset(k for k, name in enumerate(table.colnames) if table[name].dtype.kind in "if")
    return TableView("What was done", head, rows, numeric)


def _overview_cell(value):
    text = "" if value is np.ma.masked else show(value, 4)
    mark = {"done": "✓", "complete": "✓", "skipped": "○", "failed": "✗"}.get(text.lower())
    return f"{mark} {text}" if mark else text
