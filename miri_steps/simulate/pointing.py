"""Where the telescope looks, exposure by exposure, and what the exposures are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from miri_steps.simulate import sphere

#: Angle from V3 to the detector's columns [deg] and sense of the detector's axes, as in the real headers.
V3_IDEAL_ANGLE, V_IDEAL_PARITY = 4.83544897, -1

# Typical spacing of the clock [day]: between exposures of a visit, and from visit to visit.
EXPOSURE_STEP, VISIT_STEP = 180.0 / 86400.0, 3600.0 / 86400.0
FIRST_DAY = 60000.0


@dataclass(frozen=True)
class Pointing:
    """One exposure of a plan.

    Parameters
    ----------
    ra, dec : float
        Sky position of the aperture's reference point [deg].
    pa_v3 : float
        Position angle of the telescope's V3 axis at that point, North through East [deg] (ROLL_REF).
    visit_id : str
        Program (5 digits), observation (3) and visit (3), as in VISIT_ID.
    visit_group, sequence, activity : str
        The middle part of a file name: two, one and two characters.
    exposure : int
        Number of the exposure.
    dither : int
        Position in the dither pattern, from 1.
    n_dithers : int
        Positions of the pattern.
    tile : int
        Tile of the mosaic, from 1.
    gs_id : str
        Guide star.
    start_time : float
        Start of the exposure, UTC [MJD].
    va_scale : float
        Velocity aberration: true over apparent plate scale (VA_SCALE).
    """

    ra: float
    dec: float
    pa_v3: float = 0.0
    visit_id: str = "01234001001"
    visit_group: str = "02"
    sequence: str = "1"
    activity: str = "01"
    exposure: int = 1
    dither: int = 1
    n_dithers: int = 1
    tile: int = 1
    gs_id: str = "N000000001"
    start_time: float = FIRST_DAY
    va_scale: float = 0.99995

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if len(self.visit_id) != 11 or not self.visit_id.isdigit():
            raise ValueError(f"visit_id must have 11 digits, got {self.visit_id!r}")
        if not -90.0 <= self.dec <= 90.0:
            raise ValueError(f"dec must be between -90 and 90 deg, got {self.dec}")

    @property
    def program(self) -> str:
        """Program, 5 digits."""
        return self.visit_id[:5]

    @property
    def observation(self) -> str:
        """Observation, 3 digits."""
        return self.visit_id[5:8]

    @property
    def visit(self) -> str:
        """Visit, 3 digits."""
        return self.visit_id[8:]

    @property
    def name(self) -> str:
        """Name of the exposure, as the real ones are built: jw01234001001_02101_00001_mirimage."""
        group = f"{self.visit_group}{self.sequence}{self.activity}"
        return f"jw{self.visit_id}_{group}_{self.exposure:05d}_mirimage"


def mosaic(
    ra: float,
    dec: float,
    *,
    tiles: tuple[int, int] = (2, 2),
    dithers: int | tuple[int, int] = 4,
    tile_step: float | tuple[float, float] = (64.0, 100.0),
    dither_step: float = 2.5,
    pa: float = 0.0,
    program: int = 1234,
    observation: int = 1,
    start_time: float = FIRST_DAY,
) -> list[Pointing]:
    """Plan a mosaic: each tile is a visit of its own, with its own guide star.

    Parameters
    ----------
    ra, dec : float
        Centre of the mosaic [deg].
    tiles : tuple of int
        Tiles along the detector's x and y.
    dithers : int or tuple of int
        Exposures per tile: a number puts them on a spiral, a pair (nx, ny) on a grid.
    tile_step : float or tuple of float
        Distance between tiles along x and y [arcsec]; the imager sees 74 x 113 arcsec.
    dither_step : float
        Typical distance between neighbouring dithers [arcsec].
    pa : float
        Position angle of V3 [deg].
    program, observation : int
        Numbers of the program and the observation.
    start_time : float
        Start of the first exposure [MJD].

    Returns
    -------
    list of Pointing
        Tile by tile, in the order of observation.

    Examples
    --------
    >>> plan = mosaic(339.0, 33.96, tiles=(2, 1), dithers=4)
    >>> len(plan), plan[4].visit_id
    (8, '01234001002')
    """
    centres = _grid_offsets(tiles, _pair(tile_step))
    pattern = _dither_offsets(dithers, dither_step)
    groups = [[centre + dither for dither in pattern] for centre in centres]
    return _plan(ra, dec, groups, pa, program, observation, start_time)


def grid(
    ra: float,
    dec: float,
    *,
    n: tuple[int, int] = (4, 4),
    step: float | tuple[float, float] = 10.0,
    per_visit: int = 4,
    pa: float = 0.0,
    program: int = 1234,
    observation: int = 1,
    start_time: float = FIRST_DAY,
) -> list[Pointing]:
    """Plan a plain grid of exposures, cut into visits.

    Parameters
    ----------
    ra, dec : float
        Centre of the grid [deg].
    n : tuple of int
        Exposures along the detector's x and y.
    step : float or tuple of float
        Distance between neighbours along x and y [arcsec].
    per_visit : int
        Exposures of a visit; they follow one another along x.
    pa, program, observation, start_time
        As for `mosaic`.

    Returns
    -------
    list of Pointing
        Row by row.
    """
    if per_visit < 1:
        raise ValueError(f"per_visit must be at least 1, got {per_visit}")
    offsets = _grid_offsets(n, _pair(step))
    groups = [offsets[i : i + per_visit] for i in range(0, len(offsets), per_visit)]
    return _plan(ra, dec, groups, pa, program, observation, start_time)


def _plan(
    ra: float,
    dec: float,
    groups: Sequence[Sequence[np.ndarray]],
    pa: float,
    program: int,
    observation: int,
    start_time: float,
) -> list[Pointing]:
    """Turn offsets along the detector's axes [arcsec], visit by visit, into pointings."""
    columns = np.radians(pa + V3_IDEAL_ANGLE)
    plan = []
    for tile, offsets in enumerate(groups, start=1):
        visit_id = f"{program:05d}{observation:03d}{tile:03d}"
        for dither, (x, y) in enumerate(offsets, start=1):
            # On the sky, x runs to the West when the columns point North.
            east = -x * np.cos(columns) + y * np.sin(columns)
            north = x * np.sin(columns) + y * np.cos(columns)
            new_ra, new_dec = sphere.offset(ra, dec, east, north)
            plan.append(
                Pointing(
                    ra=new_ra,
                    dec=new_dec,
                    pa_v3=pa,
                    visit_id=visit_id,
                    exposure=dither,
                    dither=dither,
                    n_dithers=len(offsets),
                    tile=tile,
                    gs_id=guide_star(visit_id),
                    start_time=start_time + (tile - 1) * VISIT_STEP + (dither - 1) * EXPOSURE_STEP,
                )
            )
    return plan


def guide_star(visit_id: str) -> str:
    """Make up the guide star of a visit."""
    return f"S1HP{crc32(visit_id.encode()) % 1000000:06d}"


def _pair(value: float | tuple[float, float]) -> tuple[float, float]:
    return (value, value) if np.isscalar(value) else tuple(value)


def _grid_offsets(n: tuple[int, int], step: tuple[float, float]) -> np.ndarray:
    if min(n) < 1:
        raise ValueError(f"a grid must have at least 1 x 1 positions, got {n[0]} x {n[1]}")
    x, y = ((np.arange(count) - (count - 1) / 2) * size for count, size in zip(n, step, strict=True))
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _dither_offsets(dithers: int | tuple[int, int], step: float) -> np.ndarray:
    if not np.isscalar(dithers):
        return _grid_offsets(dithers, (step, step))
    if dithers < 1:
        raise ValueError(f"dithers must be at least 1, got {dithers}")
    # A sunflower: no two positions share a row or a column, and sub-pixel phases differ.
    i = np.arange(dithers)
    radius, angle = step * np.sqrt(i / 2.0), i * np.radians(137.507764)
    offsets = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return offsets - offsets.mean(axis=0)
