"""Corrections of pointings: from place to place on the sky, and from exposures to tiles."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from miri_steps.algorithms import directions

__all__ = ["Average", "average", "carry", "shared"]

_ARCSEC = np.pi / 180 / 3600
# The median distance from the centre of a normal distribution in two dimensions [sigma].
_MEDIAN_DISTANCE = np.sqrt(2 * np.log(2))
# Fits of tweakreg to MIRI exposures scatter by up to 15 to 25 mas. Where a handful happens to agree better
# than that, the scatter is no measure of what is too far away [arcsec].
_LEAST_SCATTER = 0.025
# Two fits that move no point of the imager apart by this are one fit [arcsec] ...
_SAME = 1e-4
# ... where the imager reaches this far from its middle [arcsec].
_REACH = 65.0


@dataclass(frozen=True)
class Average:
    """
    The correction of a tile.

    Parameters
    ----------
    shift : ndarray
        Shift to the East (in cos(dec)) and to the North of the tile's middle, shape (2,) [arcsec].
    error : ndarray
        Its standard error, from the scatter, shape (2,) [arcsec]; NaN for one exposure.
    rotation, rotation_error : float
        Rotation from East to North, and its standard error [rad].
    scatter : float
        Standard deviation of the exposures along an axis [arcsec]; NaN for one exposure.
    used : ndarray
        True for exposures that were averaged, shape (n,).
    """

    shift: np.ndarray
    error: np.ndarray
    rotation: float
    rotation_error: float
    scatter: float
    used: np.ndarray

    def agrees(self, max_scatter: float) -> bool:
        """
        Tell whether a majority lies together.

        Parameters
        ----------
        max_scatter : float
            Largest scatter [arcsec].

        Returns
        -------
        bool
            True also for one exposure, which nothing contradicts.
        """
        return bool(2 * self.used.sum() > len(self.used) and not self.scatter > max_scatter)


def carry(
    shift: np.ndarray, rotation: np.ndarray | float, here: np.ndarray, there: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    r"""
    Carry a correction from one place on the sky to another.

    Think of a sheet of glass with stars painted on it, pushed and turned a little on a globe: what
    moves one star to the East moves one a quarter of the way round to the North. Corrections of a
    pointing are such turns of the whole sphere,

    .. math:: \omega = p \times s + \theta p, \quad s' = \omega \times p', \quad \theta' = \omega \cdot p',

    for a shift s and a rotation theta at the direction p.

    Parameters
    ----------
    shift : ndarray
        Shifts East (in cos(dec)) and North, shape (..., 2) [arcsec].
    rotation : ndarray or float
        Rotations from East to North about `here`, shape (...) [rad].
    here, there : ndarray
        Positions, shapes (..., 2) [deg].

    Returns
    -------
    shift : ndarray
        Shifts East and North at `there`, shape (..., 2) [arcsec].
    rotation : ndarray
        Rotations about `there`, shape (...) [rad].

    Notes
    -----
    Holds for small corrections: the square of the shift is left out (1e-5 arcsec for 2 arcsec). At the
    poles themselves there is no East.

    Examples
    --------
    >>> import numpy as np
    >>> carry(np.array([0.0, 1.0]), 0.0, np.array([10.0, 0.0]), np.array([10.0, 60.0]))[0].round(6)
    array([0., 1.])
    """
    shift = np.asarray(shift, float)
    east, north, up = directions.local_axes(here)
    moved = shift[..., :1] * east + shift[..., 1:] * north
    turn = np.cross(up, moved) + (np.asarray(rotation, float) / _ARCSEC)[..., None] * up
    east, north, up = directions.local_axes(there)
    moved = np.cross(turn, up)
    carried = np.stack([(moved * east).sum(-1), (moved * north).sum(-1)], axis=-1)
    return carried, (turn * up).sum(-1) * _ARCSEC


def average(
    shift: np.ndarray,
    rotation: np.ndarray | None = None,
    *,
    offset: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    sigma: float = 3.0,
) -> Average:
    """
    Average the corrections of the exposures of a tile, but for those far from the others.

    Begins with the majority that lies closest together and takes in whatever is within `sigma`
    standard deviations of its mean, in both axes jointly, until nothing changes. The answer does not
    depend on the directions of the axes.

    Parameters
    ----------
    shift : ndarray
        Shifts East and North, shape (n, 2) [arcsec]; n is at least 1.
    rotation : ndarray, optional
        Rotations from East to North, each about the exposure's own position, shape (n,) [rad]. Without
        it the correction is a shift.
    offset : ndarray, optional
        Positions of the exposures, East and North of the tile's middle, shape (n, 2) [arcsec]; needed
        for rotations.
    weight : ndarray, optional
        Weights, such as numbers of matched stars, shape (n,), above 0.
    sigma : float, optional
        Limit [standard deviations along an axis]. They are taken from the median distance, and never
        below 25 mas.

    Returns
    -------
    Average
        The mean and what is known of it.

    Raises
    ------
    ValueError
        If there is no shift, a shape does not fit, a value is not finite or a weight is not above 0.

    Notes
    -----
    Fails where no majority agrees: the scatter is large then, and the mean means nothing. Errors of the
    reference catalogue that all exposures share are in no scatter.
    """
    shift, rotation, offset, weight = _checked(shift, rotation, offset, weight)
    used, seen = _closest_majority(shift), set()
    while True:
        mean, turn, middle = (
            np.average(x[used], axis=0, weights=weight[used]) for x in (shift, rotation, offset)
        )
        left = shift - mean - turn * _quarter_turn(offset - middle)
        # An exposure with few stars may be farther off.
        distance = np.hypot(*left.T) * np.sqrt(weight / weight.mean())
        near = distance <= sigma * max(np.median(distance) / _MEDIAN_DISTANCE, _LEAST_SCATTER)
        # Where two sets lead to each other, either will do.
        if np.array_equal(near, used) or used.tobytes() in seen:
            break
        seen.add(used.tobytes())
        used = near
    n = int(used.sum())
    alone = n == 1
    return Average(
        shift=mean - turn * _quarter_turn(middle),
        error=np.full(2, np.nan) if alone else _error(left, weight, used),
        rotation=float(turn),
        rotation_error=np.nan if alone else float(_error(rotation - turn, weight, used)),
        scatter=np.nan if alone else float(np.sqrt((left[used] ** 2).sum() / (2 * (n - 1)))),
        used=used,
    )


def shared(shift: np.ndarray, rotation: np.ndarray, guide_star: np.ndarray) -> np.ndarray:
    """
    Find exposures on different guide stars that have one and the same correction.

    Every fit of its own has errors of its own. Where the corrections of exposures on different guide
    stars agree to 0.1 mas, there was one fit for all of them, and none that knew their differences.

    Parameters
    ----------
    shift : ndarray
        Shifts East and North, carried to one position, shape (n, 2) [arcsec].
    rotation : ndarray
        Rotations there, shape (n,) [rad].
    guide_star : ndarray
        Guide star of each exposure, shape (n,), of any type that compares.

    Returns
    -------
    ndarray
        True for such exposures, shape (n,).

    Notes
    -----
    Two fits without rotation that scatter by 10 mas agree by chance once in 40 000 pairs.
    """
    n = len(shift)
    points = np.column_stack([shift, np.asarray(rotation) * _REACH])
    pairs = KDTree(points).query_pairs(_SAME, output_type="ndarray")
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    group = connected_components(graph, directed=False)[1]
    _, star = np.unique(np.asarray(guide_star), return_inverse=True)
    kinds = np.unique(np.column_stack([group, star]), axis=0)[:, 0]
    return np.bincount(kinds, minlength=n)[group] > 1


def _checked(shift, rotation, offset, weight):
    """All inputs as arrays of their shapes, zeros and ones for those not given."""
    shift = np.asarray(shift, float)
    n = len(shift)
    if not n:
        raise ValueError("shift must hold at least 1 exposure, got 0")
    if rotation is not None and offset is None:
        raise ValueError("offset must be given with rotation")
    rotation, offset, weight = (
        np.full(shape, fill) if value is None else np.asarray(value, float)
        for value, shape, fill in ((rotation, n, 0.0), (offset, (n, 2), 0.0), (weight, n, 1.0))
    )
    for name, value, shape in (
        ("shift", shift, (n, 2)),
        ("rotation", rotation, (n,)),
        ("offset", offset, (n, 2)),
        ("weight", weight, (n,)),
    ):
        if value.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
        if not np.isfinite(value).all():
            raise ValueError(f"{name} must be finite, got {value}")
    if (weight <= 0).any():
        raise ValueError(f"weight must be above 0, got {weight.min()}")
    return shift, rotation, offset, weight


def _closest_majority(shift):
    """More than half of the exposures: those nearest to the one around which they lie closest."""
    distance = np.linalg.norm(shift[:, None] - shift, axis=-1)
    n = len(shift) // 2 + 1
    reach = np.sort(distance, axis=1)[:, n - 1]
    middle = np.argmin(reach)
    return distance[middle] <= reach[middle]


def _quarter_turn(position):
    """How far a rotation of one radian from East to North moves positions, shape (..., 2)."""
    return position[..., ::-1] * [-1, 1]


def _error(left, weight, used):
    """Estimate the error of a weighted mean from the scatter; variances go with 1 / weight."""
    weight = weight[used]
    return np.sqrt(weight @ left[used] ** 2 / (weight.sum() * (len(weight) - 1)))
