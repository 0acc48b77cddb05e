"""What `PixelSkyMatchStep` tells its user: log lines, tables and the detector background."""

import logging

import numpy as np
from astropy import units as u
from astropy.table import QTable
from stdatamodels.jwst.datamodels import ImageModel
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps import detector
from miri_steps.algorithms.detector_background import DetectorPolynomial
from miri_steps.algorithms.matching import MIN_VISIBILITY, Match
from miri_steps.steps.sky_members import Member

__all__ = ["background_model", "level_table", "log_match", "pair_table"]

log = logging.getLogger(f"stpipe.{__name__}")

# A pair that was left less than this share of its weight is named.
_DOUBTFUL = 0.25


def log_match(matched: list[Member], found: Match, order: int, subtracted: bool) -> None:
    """
    Log the numbers a person would check.

    Parameters
    ----------
    matched : list of Member
        The exposures matched, in the order of the solution.
    found : Match
        The solution.
    order : int
        Order of the detector background asked for.
    subtracted : bool
        Whether it is going to be subtracted.
    """
    if not len(found.n_cells):
        why = "no two of them overlap" if len(matched) > 1 else "it takes two to overlap"
        log.warning("%d exposures can be used and %s: there is nothing to match.", len(matched), why)
        return
    _log_background(matched[0].unit, found, order, subtracted)
    _log_levels(matched, found.levels)
    _log_pairs(matched, found)


def _log_background(unit, found, order, subtracted):
    if order and not found.n_patterns:
        log.warning(
            "The detector background is off: the shifts between exposures are too small to show it. Any "
            "pattern would leave less than %g %% of itself in the differences.",
            100 * MIN_VISIBILITY,
        )
    if not found.n_patterns:
        return
    total = len(found.levels.background)
    rms = np.sqrt(np.sum(found.levels.background**2))
    log.info("Detector background of order %d: rms %.4g %s over the field", order, rms, unit)
    if found.n_patterns < total:
        how = "are taken to be zero"
        if found.settled:
            how = f"follow from steady skies within visits and move levels by {found.settled:.3g} rms"
        log.info(
            "   The dithers show %d of its %d patterns; the others (planes) %s.", found.n_patterns, total, how
        )
    if not subtracted:
        left = found.network.terms @ found.levels.background
        log.info(
            "   It stays in the data, where it makes steps of %.3g %s rms in overlaps; "
            "subtract_detector_background=True takes it away.",
            np.sqrt(np.mean(np.square(left))),
            unit,
        )


def _log_levels(matched, levels):
    pieces = levels.component.max() + 1
    order = np.argsort(levels.component, kind="stable")
    ends = np.searchsorted(levels.component[order], np.arange(pieces + 1))
    for piece in range(pieces):
        if pieces > 1:
            log.warning("Piece %d of %d overlaps no other and is levelled by itself:", piece + 1, pieces)
        for k in order[ends[piece] : ends[piece + 1]]:
            member = matched[k]
            log.info("   %s: level %.6g +- %.2g %s", member.name, member.level, levels.error[k], member.unit)


def _log_pairs(matched, found):
    levels, network, unit = found.levels, found.network, matched[0].unit
    log.info(
        "Matched %d exposures through %d overlaps; residuals: rms %.3g %s, %.2g times their errors",
        np.count_nonzero(levels.component >= 0),
        len(found.n_cells),
        np.sqrt(np.mean(levels.residual**2)),
        unit,
        np.median(np.abs(levels.residual) / network.error) * 1.4826,
    )
    for pair in np.flatnonzero(levels.pair_weight < _DOUBTFUL):
        log.warning(
            "%s and %s are off each other by %.3g %s; their overlap counts %.2g %% of its weight.",
            matched[network.first[pair]].name,
            matched[network.second[pair]].name,
            levels.residual[pair],
            unit,
            100 * levels.pair_weight[pair],
        )


def level_table(members: list[Member], matched: list[Member], found: Match) -> QTable:
    """
    Tabulate the levels.

    Parameters
    ----------
    members : list of Member
        All exposures.
    matched : list of Member
        Those that were matched, in the order of the solution.
    found : Match
        The solution.

    Returns
    -------
    QTable
        Columns exposure, visit, group, component, level, error, overlaps; a row per exposure.
        An exposure without a level has component -1 and NaN.
    """
    ends = np.concatenate([found.network.first, found.network.second])
    partners = np.bincount(ends, minlength=len(matched))
    solved = {
        member.index: (found.levels.component[k], found.levels.error[k], partners[k])
        for k, member in enumerate(matched)
    }
    rows = []
    for member in members:
        component, error, overlaps = solved.get(member.index, (-1, np.nan, 0))
        level = np.nan if member.level is None else member.level
        rows.append((member.name, member.visit, member.group, component, level, error, overlaps))
    names = ("exposure", "visit", "group", "component", "level", "error", "overlaps")
    unit = u.Unit(members[0].unit, parse_strict="silent")
    return QTable(rows=rows, names=names, units={"level": unit, "error": unit})


def pair_table(matched: list[Member], found: Match) -> QTable:
    """
    Tabulate the pairs.

    Parameters
    ----------
    matched : list of Member
        The exposures matched, in the order of the solution.
    found : Match
        The solution.

    Returns
    -------
    QTable
        Columns i, j (exposure names), difference (i minus j), error, cells, pixels (detector
        pixels in these cells), residual (difference minus solution) and weight (share of its
        weight that the pair was left); a row per pair.
    """
    unit = u.Unit(matched[0].unit if matched else "", parse_strict="silent")
    network = found.network
    name = np.array([member.name for member in matched], str)
    area = np.array([member.cell_size**2 for member in matched], float)[network.first]
    return QTable(
        {
            "i": name[network.first],
            "j": name[network.second],
            "difference": network.difference * unit,
            "error": network.error * unit,
            "cells": found.n_cells,
            "pixels": np.rint(found.n_cells * area).astype(int),
            "residual": found.levels.residual * unit,
            "weight": found.levels.pair_weight,
        }
    )


def background_model(
    member: Member, polynomial: DetectorPolynomial, found: Match, regions: list[str]
) -> ImageModel:
    """
    Draw the detector background and its standard error over the full frame.

    Parameters
    ----------
    member : Member
        An exposure, for filter and unit.
    polynomial : DetectorPolynomial
        The terms.
    found : Match
        The solution.
    regions : list of str
        Parts of the detector that were left out, of which nothing is known.

    Returns
    -------
    ImageModel
        ``data`` and ``err`` [unit of the exposures]; NaN with DO_NOT_USE in `regions`.
    """
    row, column = np.indices(detector.SHAPE, np.float32)
    terms = polynomial.evaluate(column, row).reshape(len(polynomial.degrees), -1)
    carried = found.levels.background_covariance.astype(np.float32) @ terms
    variance = np.einsum("kp,kp->p", terms, carried).reshape(detector.SHAPE)
    unknown = detector.region_mask(regions)
    model = ImageModel(
        data=np.where(unknown, np.nan, polynomial.image(found.levels.background, detector.SHAPE)),
        err=np.where(unknown, np.nan, np.sqrt(np.maximum(variance, 0))),
        dq=np.where(unknown, pixel["DO_NOT_USE"], 0).astype(np.uint32),
    )
    model.meta.instrument.name = "MIRI"
    model.meta.instrument.detector = "MIRIMAGE"
    model.meta.instrument.filter = member.meta.get("meta.instrument.filter")
    model.meta.bunit_data = model.meta.bunit_err = member.unit
    return model
