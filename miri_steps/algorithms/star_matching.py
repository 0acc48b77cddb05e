"""Make one position of several of the same star, and match stars with a catalogue."""

from dataclasses import dataclass

import numpy as np
from astropy.table import Table
from scipy import sparse, spatial, stats
from tweakwcs.linearfit import iter_linear_fit
from tweakwcs.matchutils import MatchSourceConfusionError, XYXYMatch

__all__ = ["Fit", "Stars", "fit", "fixed_to_detector", "merge"]

# Weights do not grow beyond this accuracy [arcsec]: no catalogue, no distortion is better.
_FLOOR = 0.003
# Stars are matched again within this many times the median distance from their entries: of a normal
# distribution of errors 1 in 10^7 lies beyond.
_TOLERANCE = 4.8
# Matches may always be this far apart [arcsec].
_LEAST_TOLERANCE = 0.03
# Rotations need as many stars: tweakreg's rule.
_LEAST_STARS_FOR_ROTATION = 15
# Fits that chance gives in more cases than this are refused.
_LARGEST_CHANCE = 1e-3
# Rounds of matching and fitting, and of clipping in each fit.
_ROUNDS, _CLIPPING_ROUNDS = 5, 3


@dataclass(frozen=True)
class Stars:
    """
    Stars on a tangent plane, each once.

    Parameters
    ----------
    x, y : ndarray
        Positions, East and North, shape (n,) [arcsec].
    sigma : ndarray
        Standard error along each axis [arcsec].
    n_exposures : ndarray of int
        Number of exposures that each was seen in.
    """

    x: np.ndarray
    y: np.ndarray
    sigma: np.ndarray
    n_exposures: np.ndarray

    def __len__(self) -> int:
        """Count the stars."""
        return len(self.x)


@dataclass(frozen=True)
class Fit:
    """
    What carries stars to their positions in a catalogue, or why nothing does.

    Parameters
    ----------
    shift : ndarray
        East and North, to be added to the positions of the stars after the rotation [arcsec]; NaN without
        a fit.
    rotation : float
        Angle about the origin of the tangent plane, from East towards North [rad].
    shift_error : ndarray
        Standard errors of `shift` [arcsec].
    rotation_error : float
        Standard error of `rotation`, 0 if none was fitted [rad].
    rms : float
        Scatter of the stars about the fit, along each axis [arcsec].
    n_stars : int
        Stars used; without a fit, those that matched best.
    fitgeometry : str
        "shift" or "rshift": what was fitted.
    chance : float
        Number of fits as good as this that are expected of a catalogue that has nothing in common
        with the stars.
    reason : str
        Why there is no fit; empty if there is one.
    """

    shift: np.ndarray
    rotation: float
    shift_error: np.ndarray
    rotation_error: float
    rms: float
    n_stars: int
    fitgeometry: str
    chance: float
    reason: str = ""

    @property
    def found(self) -> bool:
        """Whether there is a fit."""
        return not self.reason


# ---- several exposures ------------------------------------------------------------------------------------


def fixed_to_detector(
    pixels: np.ndarray,
    positions: np.ndarray,
    exposure: np.ndarray,
    *,
    radius: float,
    pixel_radius: float = 0.5,
) -> np.ndarray:
    """
    Find detections that move with the detector and not with the sky.

    A hot pixel is seen on the same pixel in all exposures, a star on the same spot of the sky.

    Parameters
    ----------
    pixels : ndarray
        Positions on the detector, shape (n, 2) [pixel].
    positions : ndarray
        Positions on the tangent plane, shape (n, 2) [arcsec].
    exposure : ndarray
        Number of the exposure that each belongs to, shape (n,).
    radius : float
        Largest distance between positions of one star [arcsec].
    pixel_radius : float, optional
        Largest distance between positions of one hot pixel [pixel].

    Returns
    -------
    ndarray of bool
        True on what is no star, shape (n,).
    """
    fixed = np.zeros(len(pixels), bool)
    pairs = _pairs(pixels, pixel_radius)
    moved = np.hypot(*(positions[pairs[:, 0]] - positions[pairs[:, 1]]).T) > radius
    apart = exposure[pairs[:, 0]] != exposure[pairs[:, 1]]
    fixed[pairs[moved & apart].ravel()] = True
    return fixed


def _pairs(points, radius):
    if len(points) < 2:
        return np.zeros((0, 2), int)
    return spatial.KDTree(points).query_pairs(radius, output_type="ndarray")


def merge(
    positions: np.ndarray,
    sigma: np.ndarray,
    exposure: np.ndarray,
    *,
    radius: float,
    n_covering: np.ndarray | None = None,
) -> Stars:
    """
    Make one position of the positions of a star in several exposures.

    Positions within `radius` of each other, also through others, belong to one star, each exposure giving
    its best one. They are averaged with the inverse of their variances. Where three or more exposures look,
    what only one of them shows is a cosmic ray and no star.

    Parameters
    ----------
    positions : ndarray
        Detections of all exposures, East and North on a tangent plane, shape (n, 2) [arcsec].
    sigma : ndarray
        Their standard errors along each axis, shape (n,) [arcsec].
    exposure : ndarray
        Number of the exposure that each belongs to, shape (n,).
    radius : float
        Largest distance between positions of one star: a few standard errors of the faintest, less than the
        distance of stars that can be told apart [arcsec].
    n_covering : ndarray, optional
        Number of exposures that see the place of each detection, shape (n,). Not given, all of them do.

    Returns
    -------
    Stars
        One position per star, from South to North. The order of detections and exposures does not matter.
    """
    # Sorted by position: sums are then the same to the last bit whatever the order.
    order = np.lexsort((positions[:, 0], positions[:, 1]))
    positions, sigma, exposure = positions[order], sigma[order], exposure[order]
    n = len(positions)
    if n_covering is None:
        n_covering = np.full(n, len(np.unique(exposure)))
    n_covering = n_covering[order]
    first, second = _pairs(positions, radius).T
    links = sparse.coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    _, star = sparse.csgraph.connected_components(links, directed=False)
    best = _best_of_each(star, exposure, sigma)
    star, positions, n_covering = star[best], positions[best], n_covering[best]
    weight = 1 / sigma[best] ** 2
    count = np.bincount(star)
    total = np.bincount(star, weight)
    x, y = (np.bincount(star, weight * v) / total for v in positions.T)
    scatter = np.bincount(star, weight * ((positions - np.stack([x, y], 1)[star]) ** 2).sum(1))
    # Positions that differ by more than their errors say are not better than their differences.
    inflation = np.maximum(1.0, scatter / np.maximum(2 * (count - 1), 1))
    covering = np.zeros(len(count), int)
    np.maximum.at(covering, star, n_covering)
    kept = count >= np.where(covering >= 3, 2, 1)
    stars = x, y, np.sqrt(inflation / total), count
    chosen = np.flatnonzero(kept)
    chosen = chosen[np.lexsort((x[chosen], y[chosen]))]
    return Stars(*(column[chosen] for column in stars))


def _best_of_each(star, exposure, sigma):
    """Find the most accurate detection of each star in each exposure."""
    order = np.lexsort((sigma, exposure, star))
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(star[order]) != 0) | (np.diff(exposure[order]) != 0)
    return np.sort(order[first])


# ---- stars and a catalogue --------------------------------------------------------------------------------


def fit(
    stars: Stars,
    reference: np.ndarray,
    *,
    search_radius: float = 2.0,
    tolerance: float = 0.2,
    min_stars: int = 3,
    fitgeometry: str = "shift",
    sigma: float = 3.0,
) -> Fit:
    r"""
    Find the shift, and the rotation, that carries stars to their positions in a catalogue.

    Lay a transparency with the stars over the catalogue and push it about until most of them lie on an
    entry. Each pair of a star and an entry not farther apart than `search_radius` votes for one shift; the
    shift with most votes within `tolerance` is the first guess. Stars are then matched (`tweakwcs`) and the
    shift is fitted with clipping, again and again with a tolerance that follows the scatter.

    Parameters
    ----------
    stars : Stars
        The stars, each once.
    reference : ndarray
        Catalogue on the same tangent plane, East and North, shape (m, 2) [arcsec].
    search_radius : float, optional
        Largest shift [arcsec].
    tolerance : float, optional
        Largest distance between a star and its entry after the first guess [arcsec].
    min_stars : int, optional
        Least number of matched stars.
    fitgeometry : {"shift", "rshift"}, optional
        "rshift" fits a rotation too, if there are at least 15 matched stars.
    sigma : float, optional
        Clipping limit [rms of the residuals].

    Returns
    -------
    Fit
        The fit, or the reason why there is none.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    Chance gives matches too. A fit with residuals up to r has all its k matches within 2 r of the shift
    that any one of its pairs votes for. Let q be the mean number of entries within 2 r of a place where
    there should be none, and P the number of pairs that vote; a catalogue that has nothing in common with
    the n stars gives

    .. math:: P \; \mathrm{Pr}[\\mathrm{Binomial}(n - 1, 1 - e^{-q}) \ge k - 1]

    such fits on average. Fits for which that is above 0.001 are refused, and so are fits for which
    another shift, farther than the tolerance, has as many votes.
    """
    _check_fit(search_radius, tolerance, min_stars, fitgeometry, sigma)
    xy = np.stack([stars.x, stars.y], axis=-1)
    reference = np.asarray(reference, float).reshape(-1, 2)
    for number, what in ((len(xy), "stars"), (len(reference), "reference stars")):
        if number < min_stars:
            return _no_fit(f"{number} {what} are fewer than min_stars={min_stars}", number)
    votes = _votes(xy, reference, search_radius)
    if len(votes) < min_stars:
        return _no_fit(f"{len(votes)} stars have a reference star within {search_radius:g} arcsec")
    guess, most, rival = _first_guess(votes, tolerance)
    if most < min_stars:
        return _no_fit(f"only {most} stars agree on a shift, fewer than min_stars={min_stars}", most)
    if rival >= most:
        return _no_fit(f"{most} stars agree on a shift, and {rival} on another", most)
    matched = _match_and_fit(stars, xy, reference, guess, tolerance, fitgeometry, sigma)
    if matched is None:
        return _no_fit("stars could not be told apart; a smaller tolerance may help")
    return _judge(*matched, stars, votes, search_radius, min_stars)


def _check_fit(search_radius, tolerance, min_stars, fitgeometry, sigma):
    rules = (
        (0 < search_radius < np.inf, "search_radius must be above 0 arcsec", search_radius),
        (0 < tolerance < np.inf, "tolerance must be above 0 arcsec", tolerance),
        (min_stars >= 2, "min_stars must be at least 2", min_stars),
        (fitgeometry in ("shift", "rshift"), "fitgeometry must be 'shift' or 'rshift'", fitgeometry),
        (sigma > 0, "sigma must be above 0", sigma),
    )
    for holds, rule, value in rules:
        if not holds:
            raise ValueError(f"{rule}, got {value!r}")


def _no_fit(reason, n_stars=0, chance=np.nan):
    nothing = np.full(2, np.nan)
    return Fit(nothing, np.nan, nothing.copy(), np.nan, np.nan, n_stars, "shift", chance, reason)


def _votes(xy, reference, radius):
    """List the shifts that carry a star to an entry of the catalogue."""
    near = spatial.KDTree(reference).query_ball_point(xy, radius)
    star = np.repeat(np.arange(len(xy)), [len(entries) for entries in near])
    entry = np.concatenate([*near, []]).astype(int)
    return reference[entry] - xy[star]


def _first_guess(votes, tolerance):
    """Find the shift with most votes, and how many it and the best one elsewhere have."""
    tree = spatial.KDTree(votes)
    count = tree.query_ball_point(votes, tolerance, return_length=True)
    leaders = votes[count == count.max()]
    # Of equals the one in the middle of its voters, whatever the order.
    spread = [np.sum((votes[tree.query_ball_point(v, tolerance)] - v) ** 2) for v in leaders]
    leader = leaders[np.lexsort((leaders[:, 0], leaders[:, 1], spread))[0]]
    far = np.hypot(*(votes - leader).T) > 2 * tolerance
    guess = votes[tree.query_ball_point(leader, tolerance)].mean(axis=0)
    return guess, int(count.max()), int(count[far].max(initial=0))


def _match_and_fit(stars, xy, reference, guess, tolerance, fitgeometry, sigma):
    """Match and fit until the matches stay: the fit, and the stars that it used."""
    weight = 1 / (stars.sigma**2 + _FLOOR**2)
    centre, before = np.array([*guess, 0.0]), None
    for _ in range(_ROUNDS):
        pairs = _match(_moved(xy, centre), reference, tolerance)
        if pairs.shape[1] < 2:
            return None
        if before is not None and np.array_equal(pairs, before):
            break
        before = pairs
        entry, star = pairs
        enough = len(star) >= _LEAST_STARS_FOR_ROTATION
        geometry = "rshift" if fitgeometry == "rshift" and enough else "shift"
        parameters, used = _linear_fit(reference[entry], xy[star], weight[star], geometry, sigma)
        residual = reference[entry] - _moved(xy[star], parameters)
        # A false match pulls a mean, and hardly a median.
        middle = np.median(residual, axis=0)
        scatter = np.median(np.hypot(*(residual - middle).T))
        centre = parameters + [*middle, 0.0]
        tolerance = max(_LEAST_TOLERANCE, min(_TOLERANCE * scatter, tolerance))
    star, residual = star[used], residual[used]
    return parameters, geometry, xy[star], weight[star], stars.sigma[star], residual


def _moved(xy, parameters):
    x, y, angle = parameters
    c, s = np.cos(angle), np.sin(angle)
    return xy @ np.array([[c, s], [-s, c]]) + [x, y]


def _match(at, reference, tolerance):
    """Pair entries of the catalogue with stars, each not more than once: indices, shape (2, n)."""
    match = XYXYMatch(
        searchrad=1.0,
        # Of what is closer together than this only one is used.
        separation=1.5 * tolerance,
        tolerance=tolerance,
        use2dhist=False,
    )
    catalogues = (
        Table(xy, names=("TPx", "TPy"), meta={"name": name})
        for xy, name in ((reference, "reference"), (at, "stars"))
    )
    try:
        return np.array([np.asarray(index, int) for index in match(*catalogues)])
    except MatchSourceConfusionError:
        return np.zeros((2, 0), int)


def _linear_fit(reference, xy, weight, geometry, sigma):
    found = iter_linear_fit(
        reference,
        xy,
        wuv=weight,
        fitgeom=geometry,
        center=(0.0, 0.0),
        nclip=_CLIPPING_ROUNDS,
        sigma=(sigma, "rmse"),
    )
    matrix = found["matrix"]
    angle = np.arctan2(matrix[1, 0], matrix[0, 0]) if geometry == "rshift" else 0.0
    return np.array([*found["shift"], angle]), found["fitmask"]


def _judge(parameters, geometry, xy, weight, sigma, residual, stars, votes, search_radius, min_stars):
    """Refuse a fit that chance gives too, and say how good the others are."""
    n = len(residual)
    if n < min_stars:
        return _no_fit(f"{n} stars match, fewer than min_stars={min_stars}", n)
    distance = np.hypot(*parameters[:2])
    if geometry == "shift" and distance > search_radius:
        return _no_fit(f"the shift of {distance:.2f} arcsec is above search_radius={search_radius:g}", n)
    chance = _chance(n, residual, geometry, len(stars), len(votes), search_radius)
    if chance > _LARGEST_CHANCE:
        return _no_fit(f"{n} of {len(stars)} stars match, but chance may match as many", n, chance)
    errors = _errors(geometry, xy, weight, sigma, residual)
    rms = np.sqrt((residual**2).sum() / max(2 * n - len(errors), 1))
    rotation_error = errors[2] if geometry == "rshift" else 0.0
    return Fit(
        parameters[:2],
        float(parameters[2]),
        errors[:2],
        float(rotation_error),
        float(rms),
        n,
        geometry,
        chance,
    )


def _chance(n_matched, residual, geometry, n_stars, n_votes, search_radius):
    """Count the fits like this one that an unrelated catalogue gives."""
    largest = max(np.hypot(*residual.T).max(), _LEAST_TOLERANCE / 2)
    entries = n_votes / n_stars * (2 * largest / search_radius) ** 2
    # Every parameter that is fitted makes one match.
    given = 2 if geometry == "rshift" else 1
    each = -np.expm1(-entries)
    return float(n_votes**given * stats.binom.sf(n_matched - given - 1, n_stars - given, each))


def _errors(geometry, xy, weight, sigma, residual):
    """Find standard errors from the scatter, and not below what the stars' own errors give."""
    zero, one = np.zeros(len(xy)), np.ones(len(xy))
    slopes = np.stack([np.stack([one, zero, -xy[:, 1]], -1), np.stack([zero, one, xy[:, 0]], -1)])
    A = slopes[..., : 3 if geometry == "rshift" else 2].reshape(2 * len(xy), -1)
    w = np.tile(weight, 2)
    inverse = np.linalg.inv(A.T @ (A * w[:, None]))
    chi2 = (weight * (residual**2).sum(axis=1)).sum() / max(A.shape[0] - A.shape[1], 1)
    own = inverse @ (A.T @ (A * (w**2 * np.tile(sigma, 2) ** 2)[:, None])) @ inverse
    return np.sqrt(np.maximum(np.diag(inverse) * chi2, np.diag(own)))
