"""The numbers that tell whether a reduction worked, for people and for scripts."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass

import numpy as np
from astropy import units as u
from astropy.table import Column, Table

from miri_steps import __version__, detector
from miri_steps.report import logs
from miri_steps.report.coarse import Coarse
from miri_steps.report.collect import Mosaic, Plane, exposure_key, pixel_side

__all__ = [
    "MAX_RATIO",
    "MAX_SCATTER",
    "STEPS",
    "Differences",
    "Verdict",
    "compare",
    "exposure_table",
    "judge",
    "not_done",
    "pair_ratios",
    "reasons",
    "records",
    "settings",
    "software",
    "summarize",
    "tile_scatter",
    "visit_table",
]

#: Median of absolute residual over error of pairs above which errors do not explain them; 0.67 where they do.
MAX_RATIO = 2.0
#: Scatter of the exposures of a tile above which they blur the mosaic: a quarter of a pixel [mas].
MAX_SCATTER = 1000 * detector.PIXEL_SCALE / 4
# Differences beyond 5 standard deviations are left out, in units of the median of their absolute values.
_OUTLIER = 5 * 1.4826
# Differences that are larger by this factor than before are worse.
_WORSE = 1.1
# Samples that a super-background should have.
_MIN_SAMPLES = 3
# Statuses that need no explanation.
_DONE = ("COMPLETE", "SKIPPED")
#: Steps whose status is shown, in the order in which they run.
STEPS = (
    *("assign_wcs", "flat_field", "photom", "rate_from_rateints", "median_hot_pixel", "tweakreg"),
    *("tile_astrometry", "super_background", "skymatch", "pixel_skymatch", "outlier_detection", "resample"),
)
# Of these SKIPPED is worth a look. rate_from_rateints skips every exposure of one integration, as it should.
_OURS = ("median_hot_pixel", "tile_astrometry", "super_background", "pixel_skymatch")
# What a HISTORY entry says of one exposure alone comes last.
_FOUND = re.compile(r" (?:level|shift_east|exposures|background|integrations|rejected|samples)=\S.*$")


@dataclass(frozen=True)
class Differences:
    """
    How far tiles are from each other where they overlap.

    Parameters
    ----------
    rms : float
        Root mean square over the cells [unit of the data].
    clipped : float
        The same without the largest ones, more than 5 times what is typical: stars, above all.
    cells : int
        Number of cells.
    """

    rms: float
    clipped: float
    cells: int


@dataclass(frozen=True)
class Verdict:
    """
    A sentence on what was found.

    Parameters
    ----------
    good : bool
        Whether it is as it should be.
    text : str
        The sentence, with the number and its limit.
    """

    good: bool
    text: str


def compare(before: Coarse | None, after: Coarse | None) -> dict[str, Differences]:
    """
    Measure the differences of tiles, before and after on the same cells.

    Parameters
    ----------
    before, after : Coarse or None
        The mosaics.

    Returns
    -------
    dict
        ``before`` and ``after``, as far as there are overlaps.
    """
    sides = {"before": before, "after": after}
    maps = {name: side.difference for name, side in sides.items() if side is not None}
    if before is not None and after is not None and _scope(before) != _scope(after):
        # Part of the files is missing: they would be differences of other things.
        return {}
    known = np.logical_and.reduce([np.isfinite(each) for each in maps.values()]) if maps else np.array(False)
    if not known.any():
        return {}
    return {name: _differences(each[known]) for name, each in maps.items()}


def _scope(side):
    return side.between, side.n_exposures


def _differences(values):
    values = np.asarray(values, float)
    inside = np.abs(values) <= _OUTLIER * np.median(np.abs(values))
    rms, clipped = (float(np.sqrt(np.mean(each**2))) for each in (values, values[inside]))
    return Differences(rms, clipped, values.size)


def pair_ratios(pairs: Table | None) -> np.ndarray:
    """
    Divide the residuals of pairs by their errors.

    Parameters
    ----------
    pairs : Table or None
        As `PixelSkyMatchStep` saves it.

    Returns
    -------
    ndarray
        A value per pair.
    """
    if pairs is None or not {"residual", "error"} <= set(pairs.colnames):
        return np.array([])
    residual, error = (np.ma.filled(pairs[name], np.nan).astype(float) for name in ("residual", "error"))
    ratio = np.full(residual.shape, np.nan)
    np.divide(residual, error, out=ratio, where=error > 0)
    return ratio[np.isfinite(ratio)]


def summarize(mosaic: Mosaic, differences: dict[str, Differences]) -> dict[str, object]:
    """
    Gather the few numbers that tell what a mosaic is and whether it worked.

    Parameters
    ----------
    mosaic : Mosaic
        The mosaic.
    differences : dict
        Those of its tiles.

    Returns
    -------
    dict
        Plain numbers and words; None where a number is not known.
    """
    listed = mosaic.exposures
    errors = [exposure.level_error for exposure in listed if np.isfinite(exposure.level_error)]
    levels = [exposure.level for exposure in listed if np.isfinite(exposure.level)]
    ratios, table = pair_ratios(mosaic.tables.get("sky_pairs")), mosaic.tables.get("sky_levels")
    pieces = (
        len(set(table["component"]) - {-1}) if table is not None and "component" in table.colnames else None
    )
    return {
        "product": mosaic.product,
        "filter": mosaic.band,
        "unit": mosaic.unit,
        "exposures": len(listed),
        "visits": len({exposure.visit for exposure in listed if exposure.visit}),
        "tiles": len({exposure.tile for exposure in listed}),
        "area_arcmin2": float(np.isfinite(mosaic.image).sum() * pixel_side(mosaic) ** 2 / 3600),
        "exposure_time_s": _number(mosaic.header.get("XPOSURE", mosaic.header.get("EFFEXPTM"))),
        **{
            f"difference_{name}_{side}": getattr(found, name) if found else None
            for side in ("before", "after")
            for found in [differences.get(side)]
            for name in ("rms", "clipped", "cells")
        },
        "pair_ratio_median": float(np.median(np.abs(ratios))) if ratios.size else None,
        "pairs": int(ratios.size),
        "level_range": float(np.ptp(levels)) if levels else None,
        "level_error_largest": float(max(errors)) if errors else None,
        "pieces": pieces,
        **_summarize_tiles(mosaic.tables.get("tiles")),
        **_summarize_pixels(mosaic),
        "super_background_samples_median": _samples(mosaic.super_backgrounds),
        "exposures_not_done": sum(bool(not_done(exposure.status)) for exposure in listed),
        "steps_not_done": _count(name for exposure in listed for name in not_done(exposure.status)),
    }


def _count(names):
    names = list(names)
    return {name: names.count(name) for name in dict.fromkeys(names)}


def _number(value):
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _summarize_tiles(tiles):
    if tiles is None or "scatter" not in tiles.colnames:
        return {"tile_scatter_largest_mas": None, "tiles_without_correction": None}
    scatter = tile_scatter(tiles)
    known = scatter[np.isfinite(scatter)]
    lost = ~np.isfinite(np.ma.filled(tiles["shift_east"], np.nan).astype(float))
    return {
        "tile_scatter_largest_mas": float(known.max()) if known.size else None,
        "tiles_without_correction": int(lost.sum()),
    }


def tile_scatter(tiles: Table) -> np.ndarray:
    """
    Read the scatter of tiles.

    Parameters
    ----------
    tiles : Table
        As `TileAstrometryStep` saves it.

    Returns
    -------
    ndarray
        Along an axis; NaN where there is none [mas].
    """
    values = np.ma.filled(tiles["scatter"], np.nan)
    return u.Quantity(values, tiles["scatter"].unit or u.mas).to_value(u.mas)


def _summarize_pixels(mosaic):
    counts = [count for exposure in mosaic.exposures if (count := logs.repaired(exposure.lines))]
    return {
        "hot_pixels_in_map": _count_flagged(mosaic.hot_pixels, "HOT"),
        "dead_pixels_in_map": _count_flagged(mosaic.hot_pixels, "DEAD"),
        "pixels_repaired": sum(count["repaired"] for count in counts) if counts else None,
    }


def _count_flagged(planes: list[Plane], flag):
    return sum(int(plane.flagged(flag).sum()) for plane in planes) if planes else None


def _samples(planes: list[Plane]):
    counts = [plane.count[np.isfinite(plane.data)] for plane in planes if plane.count is not None]
    counts = np.concatenate(counts) if counts else np.array([])
    return float(np.median(counts)) if counts.size else None


def not_done(status: dict[str, str]) -> dict[str, str]:
    """
    Find the steps that did not do to an exposure what they were run for.

    Parameters
    ----------
    status : dict
        What each step did.

    Returns
    -------
    dict
        Steps of this package that are not COMPLETE, and others that failed. A skipped stock step is a choice.
    """
    return {
        name: value
        for name, value in status.items()
        if value not in _DONE or (value == "SKIPPED" and name in _OURS)
    }


def judge(numbers: dict[str, object]) -> list[Verdict]:
    """
    Say in sentences what is as it should be, and what is not.

    Parameters
    ----------
    numbers : dict
        As `summarize` gives it.

    Returns
    -------
    list of Verdict
        A sentence for each number that is known; those that are out of their limits first.
    """
    rules = (_judge_steps, _judge_differences, _judge_pairs, _judge_levels, _judge_tiles, _judge_samples)
    found = [verdict for rule in rules for verdict in rule(numbers)]
    return sorted(found, key=lambda verdict: verdict.good)


def _judge_steps(numbers):
    total = numbers["exposures"]
    for name, n in numbers["steps_not_done"].items():
        yield Verdict(False, f"{name} was skipped or failed for {n} of {total} exposures: see Steps.")


def _judge_differences(numbers):
    before, after = (numbers[f"difference_clipped_{side}"] for side in ("before", "after"))
    if before is None or after is None:
        return
    unit = numbers["unit"]
    if after > _WORSE * before:
        yield Verdict(
            False,
            f"Overlaps differ by {after:.3g} {unit} after the pipeline and by {before:.3g} before: it made "
            "them worse, and should not.",
        )
    else:
        text = f"Overlaps differ by {after:.3g} {unit}, by {before:.3g} before the pipeline."
        yield Verdict(True, text)


def _judge_pairs(numbers):
    value = numbers["pair_ratio_median"]
    if value is None:
        return
    text = (
        f"Pairs of exposures are {value:.3g} times their errors from the solution (median; 0.67 is expected"
    )
    good = value <= MAX_RATIO
    yield Verdict(
        good, f"{text})." if good else f"{text}, the limit is {MAX_RATIO:g}): their errors do not explain it."
    )


def _judge_levels(numbers):
    error, spread, unit = (numbers[name] for name in ("level_error_largest", "level_range", "unit"))
    if error is not None and numbers["exposures"] > 1:
        good = error <= spread
        text = f"Levels are known to {error:.2g} {unit} or better, and range over {spread:.3g}"
        yield Verdict(good, f"{text}." if good else f"{text}: the errors are larger than what is corrected.")
    if (numbers["pieces"] or 0) > 1:
        yield Verdict(
            False,
            f"The field falls into {numbers['pieces']} pieces that do not overlap: "
            "their levels cannot be compared.",
        )


def _judge_tiles(numbers):
    scatter, lost = numbers["tile_scatter_largest_mas"], numbers["tiles_without_correction"]
    if scatter is not None:
        good = scatter <= MAX_SCATTER
        text = f"Exposures of a tile agree to {scatter:.2g} mas along an axis"
        limit = f"the limit is {MAX_SCATTER:.3g} mas, a quarter of a pixel"
        yield Verdict(good, f"{text}." if good else f"{text}; {limit}.")
    if lost:
        yield Verdict(False, f"{lost} of the tiles have no good correction of their pointing.")


def _judge_samples(numbers):
    value = numbers["super_background_samples_median"]
    if value is not None:
        good = value >= _MIN_SAMPLES
        text = f"A pixel of the super-background is made of {value:g} exposures (median)"
        yield Verdict(good, f"{text}." if good else f"{text}; fewer than {_MIN_SAMPLES} say little.")


def visit_table(mosaic: Mosaic) -> Table:
    """
    Sum up the levels of each visit.

    Parameters
    ----------
    mosaic : Mosaic
        The mosaic.

    Returns
    -------
    Table
        Columns visit, exposures, level (mean), scatter (standard deviation) and error (largest).
    """
    rows = []
    for visit in dict.fromkeys(exposure.visit for exposure in mosaic.exposures):
        inside = [exposure for exposure in mosaic.exposures if exposure.visit == visit]
        level = np.array([exposure.level for exposure in inside])
        error = np.array([exposure.level_error for exposure in inside])
        level, error = level[np.isfinite(level)], error[np.isfinite(error)]
        rows.append(
            (
                visit or "unknown",
                len(inside),
                float(level.mean()) if level.size else np.nan,
                float(level.std(ddof=1)) if level.size > 1 else np.nan,
                float(error.max()) if error.size else np.nan,
            )
        )
    names = "visit", "exposures", "level", "scatter", "error"
    return Table(rows=rows, names=names, dtype=(str, int, float, float, float))


def exposure_table(mosaics: list[Mosaic]) -> Table:
    """
    List all exposures of all mosaics.

    Parameters
    ----------
    mosaics : list of Mosaic
        The mosaics.

    Returns
    -------
    Table
        A row per exposure; -1 and NaN where a number is not known.
    """
    rows = []
    for mosaic in mosaics:
        shifts = _shifts(mosaic.tables.get("tile_exposures"))
        rows += [_exposure_row(mosaic, exposure, shifts) for exposure in mosaic.exposures]
    units = {mosaic.unit for mosaic in mosaics}
    unit = u.Unit(units.pop() if len(units) == 1 else "", parse_strict="silent")
    kinds = _EXPOSURE_COLUMNS | {"level": (float, unit), "level_error": (float, unit)}
    table = Table()
    for name, (kind, each) in kinds.items():
        table[name] = Column([row[name] for row in rows], dtype=kind, unit=each)
    return table


_EXPOSURE_COLUMNS = {
    **{name: (str, None) for name in ("product", "exposure", "filter", "visit_id", "gs_id", "file")},
    **{"seconds": (float, u.s), "level": (float, None), "level_error": (float, None)},
    **{"shift_east": (float, u.arcsec), "shift_north": (float, u.arcsec)},
    **{name: (int, None) for name in ("hot", "dead", "holes", "repaired")},
    **{name: (str, None) for name in (*STEPS, "why")},
}


def _exposure_row(mosaic, exposure, shifts):
    counts = logs.repaired(exposure.lines) or dict.fromkeys(("hot", "dead", "holes", "repaired"), -1)
    east, north = shifts.get(exposure.key, (np.nan, np.nan))
    file = exposure.after or exposure.before
    return {
        **{"product": mosaic.product, "exposure": exposure.key, "filter": exposure.band or mosaic.band},
        **{"visit_id": exposure.visit, "gs_id": exposure.guide_star, "file": file.name if file else ""},
        **{"seconds": exposure.seconds, "level": exposure.level, "level_error": exposure.level_error},
        **{"shift_east": east, "shift_north": north, **counts},
        **{name: exposure.status.get(name, "") for name in STEPS},
        "why": "; ".join(reasons(exposure)),
    }


def _shifts(table):
    """Find what tweakreg found for each exposure."""
    if table is None:
        return {}
    columns = [np.ma.filled(table[name], np.nan).astype(float) for name in ("shift_east", "shift_north")]
    return dict(zip(map(exposure_key, map(str, table["exposure"])), zip(*columns, strict=True), strict=True))


def reasons(exposure) -> list[str]:
    """
    Say why something was not done to an exposure.

    Parameters
    ----------
    exposure : Exposure
        The exposure.

    Returns
    -------
    list of str
        The warnings that name it, each once.
    """
    warned = [f"{line.step}: {line.text.rstrip('.')}" for line in exposure.lines if line.is_warning]
    return list(dict.fromkeys([*exposure.problems, *warned]))


def settings(mosaic: Mosaic) -> list[tuple[str, int]]:
    """
    List the parameters of our steps, without what they found for single exposures.

    Parameters
    ----------
    mosaic : Mosaic
        The mosaic.

    Returns
    -------
    list of tuple
        HISTORY entries, and the number of exposures that have each.
    """
    counted: dict[str, int] = {}
    for exposure in mosaic.exposures:
        for entry in dict.fromkeys(_FOUND.sub("", entry) for entry in exposure.history):
            counted[entry] = counted.get(entry, 0) + 1
    return list(counted.items())


def software() -> dict[str, str]:
    """
    List the versions of the software that made the report.

    Returns
    -------
    dict
        Versions by package.
    """
    versions = {"miri_steps": __version__}
    for name in ("jwst", "stpipe", "stcal", "numpy", "scipy", "astropy", "matplotlib"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return versions


def records(table: Table | None) -> list[dict[str, object]]:
    """
    Write a table as plain values for JSON.

    Parameters
    ----------
    table : Table or None
        The table.

    Returns
    -------
    list of dict
        A dictionary per row; None where a number is not known.
    """
    if table is None:
        return []
    return [{name: _plain(row[name]) for name in table.colnames} for row in table]


def _plain(value):
    if value is np.ma.masked:
        return None
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
