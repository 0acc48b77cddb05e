"""Real observations, repeated: from footprints back to where the telescope looked."""

from __future__ import annotations

import numpy as np
from astropy.table import Row, Table

from miri_steps import detector
from miri_steps.simulate import sphere, wcs
from miri_steps.simulate.pointing import EXPOSURE_STEP, FIRST_DAY, VISIT_STEP, Pointing, guide_star


def from_footprints(table: Table, *, tolerance: float = 0.5) -> list[Pointing]:
    """Repeat real observations: find the pointings that give the footprints of a table.

    Parameters
    ----------
    table : astropy.table.Table
        Columns ``exposure``, ``visit_id``, ``filter`` and ``ra1``, ``dec1`` ... ``ra4``, ``dec4`` [deg]: the
        corners of the full frame in the order of S_REGION. A column ``gs_id`` is used when there is one.
    tolerance : float
        Largest misfit of a corner that is accepted [arcsec].

    Returns
    -------
    list of Pointing
        In the order of the rows; the exposures keep their real names.

    Raises
    ------
    ValueError
        If a footprint is not that of a full-frame MIRI exposure.
    """
    visits = list(dict.fromkeys(str(row["visit_id"]) for row in table))
    return [_from_footprint(row, visits, i, tolerance) for i, row in enumerate(table)]


def _from_footprint(row: Row, visits: list[str], index: int, tolerance: float) -> Pointing:
    ny, nx = detector.SHAPE
    x = np.array([0, 0, nx, nx]) - 0.5
    y = np.array([0, ny, ny, 0]) - 0.5
    reference, scale = wcs.reference_point("FULL"), Pointing.va_scale
    before = wcs.v2v3_vectors(*wcs.pixels_to_v2v3(x, y, str(row["filter"])), scale, reference)
    after = sphere.unit_vectors(
        np.array([row[f"ra{i}"] for i in range(1, 5)], float),
        np.array([row[f"dec{i}"] for i in range(1, 5)], float),
    )
    turn = sphere.fit_rotation(before, after)
    misfit = np.linalg.norm(before @ turn.T - after, axis=1).max() / sphere.ARCSEC
    if misfit > tolerance:
        raise ValueError(
            f"{row['exposure']}: the corners must be those of a full frame to within {tolerance} arcsec, "
            f"the best fit is {misfit:.2f} arcsec off"
        )
    ra, dec, roll = sphere.decompose(turn, *reference)
    visit_id, tile = str(row["visit_id"]), visits.index(str(row["visit_id"])) + 1
    group, number = str(row["exposure"]).removeprefix(f"jw{visit_id}_").split("_")[:2]
    return Pointing(
        ra=ra,
        dec=dec,
        pa_v3=roll,
        visit_id=visit_id,
        visit_group=group[:2],
        sequence=group[2],
        activity=group[3:],
        exposure=int(number),
        dither=int(number),
        tile=tile,
        gs_id=str(row["gs_id"]) if "gs_id" in row.colnames else guide_star(visit_id),
        start_time=FIRST_DAY + tile * VISIT_STEP + index * EXPOSURE_STEP,
    )
