"""From the corrections that tweakreg left in exposures, or from their stars, to those of tiles."""

import re
from collections.abc import Iterable

import numpy as np
from astropy.coordinates import SkyCoord

from miri_steps import exposures
from miri_steps.algorithms import tile_shifts
from miri_steps.steps import tile_direct
from miri_steps.steps.reference_stars import ReferenceStars
from miri_steps.steps.tile_corrections import BY_TWEAKREG, TileCorrection
from miri_steps.steps.tile_members import Member, Tile
from miri_steps.steps.tile_wcs import Correction

__all__ = ["average_fits", "fit_stars", "matched_stars", "recall", "reject_shared"]

# Stars with which an exposure has half the weight of one with very many: false matches, and what exposures
# of a tile share, do not become smaller with more stars.
_HALF_WEIGHT = 10


def matched_stars(logs: Iterable[str], group: str) -> int | None:
    """
    Find in the log of tweakreg how many stars gave the fit of an exposure to the others.

    Parameters
    ----------
    logs : iterable of str
        Its lines, as jwst keeps them in the files that it saves.
    group : str
        Group of the exposure.

    Returns
    -------
    int or None
        None where the log does not say, as inside a pipeline that is still running.
    """
    inside, stars = False, None
    for line in logs:
        if " fit for '" in line:
            inside = f"'GROUP ID: {group}'" in line
        elif inside and (found := re.search(r"Final solution based on (\d+) objects", line)):
            # The last run of several counts.
            stars = int(found[1])
    return stars


def reject_shared(members: list[Member]) -> None:
    """
    Reject the exposures on different guide stars that have one and the same correction.

    That is what tweakreg leaves where the fits of exposures to each other failed, or were not needed
    (its reference), and only the one fit of all to the catalogue gave anything.

    Parameters
    ----------
    members : list of Member
        The exposures; the problem of those found is set.
    """
    fitted = [member for member in members if member.found and not member.problem and member.gs_id]
    if len({member.gs_id for member in fitted}) < 2:
        return
    middle = exposures.sky_middle([member.position for member in fitted])
    star = np.array([member.gs_id for member in fitted])
    # One turn of the sphere, or the same numbers in the tangent plane of each exposure.
    alike = np.zeros(len(fitted), bool)
    for each in ([member.found.at(*middle) for member in fitted], [member.found for member in fitted]):
        alike |= tile_shifts.shared(
            np.array([c.shift for c in each]), np.array([c.rotation for c in each]), star
        )
    for member, same in zip(fitted, alike, strict=True):
        if same:
            member.problem = "only the absolute fit: exposures on other guide stars have the same, to 0.1 mas"


def average_fits(
    tile: Tile, band: str, members: list[Member], *, rotates: bool, sigma: float, max_scatter: float
) -> TileCorrection:
    """
    Average the corrections that tweakreg found for the exposures of a tile.

    Parameters
    ----------
    tile : Tile
        The tile.
    band : str
        Filter.
    members : list of Member
        Its exposures in that filter; the problem of those that are rejected is set.
    rotates : bool
        Whether to average rotations, too.
    sigma : float
        Clipping limit [standard deviations].
    max_scatter : float
        Scatter above which the mean is not good [arcsec].

    Returns
    -------
    TileCorrection
        At the middle of the tile.
    """
    fitted = [member for member in members if member.found and not member.problem]
    known = _known(tile, band, BY_TWEAKREG)
    if not fitted:
        return _unknown(known, members, "no exposure has a good fit")
    if len(fitted) == 1 and len(members) > 2:
        problem = f"only 1 of its {len(members)} exposures has a good fit, and nothing confirms that"
        return _unknown(known, members, problem)
    middle = tile.position
    # Each shift about the exposure's own position, but along the axes of the tile's middle.
    straight = [Correction(*member.found.position, *member.found.shift) for member in fitted]
    shift = np.array([each.at(*middle).shift for each in straight])
    mean = _average(middle, fitted, shift, rotates, sigma)
    if not mean.agrees(max_scatter):
        return _unknown(known, members, f"its exposures disagree (scatter {mean.scatter:.3f} arcsec)")
    for member, used, distance in zip(fitted, mean.used, np.hypot(*(shift - mean.shift).T), strict=True):
        if not used:
            member.problem = f"its fit is {distance:.3f} arcsec from that of its tile"
    used = [member for member in fitted if not member.problem]
    return TileCorrection(
        **known,
        correction=Correction(*middle, *map(float, mean.shift), mean.rotation),
        error=tuple(map(float, mean.error)),
        rotation_error=mean.rotation_error,
        scatter=mean.scatter,
        stars=sum(member.stars or 0 for member in used) or None,
        used=[member.name for member in used],
        rejected=_named([member for member in members if member.problem]),
    )


def recall(tile: Tile, members: list[Member]) -> TileCorrection:
    """
    Recall the correction that exposures of a tile were given by an earlier run.

    Parameters
    ----------
    tile : Tile
        The tile.
    members : list of Member
        Those of its exposures that have one.

    Returns
    -------
    TileCorrection
        That of the first of them, for the others of the tile must have the same.
    """
    known = _known(tile, members[0].band, "an earlier run")
    correction = members[0].stored.at(*tile.position)
    return TileCorrection(**known, correction=correction, used=[member.name for member in members])


def fit_stars(
    tile: Tile, band: str, members: list[Member], reference: ReferenceStars, **parameters: object
) -> TileCorrection:
    """
    Measure a tile against a catalogue, with the stars of all its exposures at once.

    Parameters
    ----------
    tile : Tile
        The tile.
    band : str
        Filter.
    members : list of Member
        Its exposures in that filter, with their stars.
    reference : ReferenceStars
        The catalogue.
    **parameters : object
        For `miri_steps.steps.tile_direct.measure`.

    Returns
    -------
    TileCorrection
        At the middle of the tile.
    """
    used = [member for member in members if member.detected is not None]
    known = _known(tile, band, reference.path.name)
    if not used:
        return _unknown(known, members, "no exposure can be used")
    date = np.mean([member.mjd for member in used])
    found = tile_direct.measure([member.detected for member in used], reference, date=date, **parameters)
    fit = found.fit
    correction = None
    if fit.found:
        correction = Correction(found.ra, found.dec, *map(float, fit.shift), fit.rotation).at(*tile.position)
    return TileCorrection(
        **known,
        correction=correction,
        problem=fit.reason
        and f"{fit.reason} ({found.n_detected} stars seen, {found.n_reference} in the catalogue)",
        error=tuple(map(float, fit.shift_error)),
        rotation_error=fit.rotation_error,
        scatter=fit.rms,
        stars=fit.n_stars,
        used=[member.name for member in used],
        rejected=_named([member for member in members if member.detected is None]),
    )


def _known(tile, band, method):
    """Say what is known of a tile before it is measured."""
    return {
        "tile": tile.name,
        "visit_ids": tile.visit_ids,
        "gs_ids": tile.gs_ids,
        "band": band,
        "method": method,
    }


def _unknown(known, members, problem):
    """Say why a tile has no correction."""
    return TileCorrection(**known, correction=None, problem=problem, rejected=_named(members))


def _average(middle, fitted, shift, rotates, sigma):
    weight = _weights([member.stars for member in fitted])
    if not rotates:
        return tile_shifts.average(shift, weight=weight, sigma=sigma)
    rotation = np.array([member.found.rotation for member in fitted])
    there = SkyCoord([member.found.position for member in fitted], unit="deg")
    offset = SkyCoord(*middle, unit="deg").spherical_offsets_to(there)
    offset = np.column_stack([each.arcsec for each in offset])
    return tile_shifts.average(shift, rotation, offset=offset, weight=weight, sigma=sigma)


def _weights(stars):
    """Weigh exposures by their stars, as far as more stars make a better fit."""
    known = [number for number in stars if number]
    if not known:
        return None
    # The reference of tweakreg has no fit to others of its own: it counts as the mean.
    number = np.array([each or np.mean(known) for each in stars])
    return number / (number + _HALF_WEIGHT)


def _named(members):
    return [f"{member.name} ({member.problem})" if member.problem else member.name for member in members]
