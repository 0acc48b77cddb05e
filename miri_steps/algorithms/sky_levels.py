"""Sky levels and detector background from the differences of pairs of exposures."""

from dataclasses import dataclass, replace

import numpy as np

from miri_steps.algorithms.sky_equations import Design, centered, less_mean
from miri_steps.algorithms.sky_network import Network, components

__all__ = ["Levels", "settle_unseen", "solve", "solve_by_group"]

# Tuning constants in units of the error, each 95 % efficient for normal residuals
# (Holland & Welsch 1977, doi:10.1080/03610927708827533).
_HUBER, _CAUCHY = 1.345, 2.385
_MAX_ITERATIONS = 100
# What is left to a pair at least: pairs without any weight could leave a level undecided.
_LEAST_SHARE = 1e-12
# Bayes factor from which evidence counts as positive
# (Kass & Raftery 1995, doi:10.1080/01621459.1995.10476572).
_MIN_ODDS = 3.0
# A background is seen when it exceeds its noise by this many standard deviations of the noise.
_SIGNIFICANT = 3.0


@dataclass(frozen=True)
class Levels:
    """
    Solution of a network of differences.

    Parameters
    ----------
    level : ndarray
        Level of each exposure, with mean 0 in each connected piece; NaN for an exposure without
        a pair, shape (n,).
    error : ndarray
        Standard error of each level against the mean of its piece, shape (n,).
    component : ndarray
        Number of the connected piece, -1 for an exposure without a pair, shape (n,).
    background : ndarray
        Coefficients of the detector background, shape (k,).
    background_covariance : ndarray
        Their covariance, shape (k, k).
    residual : ndarray
        What each pair's difference is off from the solution, shape (p,).
    pair_weight : ndarray
        Share of its weight that each pair was left, 0 to 1, shape (p,).
    scatter : float
        Factor by which residuals exceed their errors, at least 1, in the piece where it is
        largest. `error` contains that of its own piece.
    """

    level: np.ndarray
    error: np.ndarray
    component: np.ndarray
    background: np.ndarray
    background_covariance: np.ndarray
    residual: np.ndarray
    pair_weight: np.ndarray
    scatter: float


def solve(network: Network, patterns: np.ndarray) -> Levels:
    """
    Find the levels, and the background fixed to the detector, that explain the differences.

    Think of surveyors' stakes: height differences are known between many pairs of stakes, each
    with its error, and the heights follow by least squares; a stake read wrong is recognised by
    all the others. In the same breath the shape of the surveying rod's bend is found, from how
    readings change along it.

    Minimises the sum over pairs of ::

        (d - (L_i - L_j) - t.b)^2 / e^2  +  (b C b - 2 s.b) / e^2

    in the levels L and the background b = patterns @ q: the first part ties means, the second
    uses how differences vary within each overlap. Pairs far off are down-weighted (iteratively
    reweighted least squares; Huber weights, then Cauchy's, which no single pair can bend).

    Each connected piece has a free constant, set here to mean level 0. Two exposures joined to
    the rest only through one wrong pair cannot be recognised.

    Parameters
    ----------
    network : Network
        The pairs.
    patterns : ndarray
        Background patterns to solve for, as columns of coefficients, shape (k, m); m may be 0.

    Returns
    -------
    Levels
        The solution.
    """
    component = components(network.size, network.first, network.second)
    if not len(network.first):
        empty, k = np.full(network.size, np.nan), len(patterns)
        return Levels(empty, empty, component, np.zeros(k), np.zeros((k, k)), empty[:0], empty[:0], 1.0)
    design = Design(network, patterns, component)
    share = np.ones(len(network.first))
    for reweight in (_huber, _cauchy):
        share = _iterate(design, share, reweight)
    normal = design.normal(share)
    level, strength = design.fit(normal)
    residual = design.residual(level, strength)
    scatter = design.scatter(residual)
    widest = float(scatter.max())
    return Levels(
        level=design.centered(level),
        error=design.errors(normal) * scatter[component],
        component=component,
        background=patterns @ strength,
        background_covariance=patterns @ normal.covariance @ patterns.T * widest**2,
        residual=residual,
        pair_weight=share,
        scatter=widest,
    )


def _huber(z):
    return np.minimum(1, _HUBER / np.maximum(np.abs(z), 1e-300))


def _cauchy(z):
    return 1 / (1 + (z / _CAUCHY) ** 2)


def _iterate(design, share, reweight):
    for _ in range(_MAX_ITERATIONS):
        residual = design.residual(*design.fit(design.normal(share)))
        z = residual / design.network.error / design.scatter(residual)[design.piece]
        previous, share = share, np.maximum(reweight(z), _LEAST_SHARE)
        if np.max(np.abs(share - previous)) < 1e-6:
            break
    return share


def settle_unseen(levels: Levels, network: Network, patterns: np.ndarray, visit: np.ndarray) -> Levels:
    """
    Choose the patterns that the dithers do not show by the steadiness of the sky within visits.

    A plane fixed to the detector leaves every overlap flat: the differences are those of levels
    that follow the dithers. No overlap can tell the two apart, but the sky knows nothing of the
    dithers. Two hypotheses about the levels within visits are weighed: they scatter at random,
    or they scatter and follow a plane whose strength is that of the background seen (a normal
    prior with the rms of the seen patterns above their noise). The plane is taken to be there
    only if the second is at least three times as likely (Bayes factor of two linear models).

    Fails when the sky itself followed the dithers while a background was there.

    Parameters
    ----------
    levels : Levels
        Solution of `network` for `patterns`, in which the unseen patterns are zero.
    network : Network
        The pairs.
    patterns : ndarray
        Patterns that were solved for, orthonormal columns, shape (k, m).
    visit : ndarray
        Visit number of each exposure, shape (n,).

    Returns
    -------
    Levels
        The same fit to the differences with other levels and background; errors contain what is
        left of the ambiguity.
    """
    unseen = _complement(patterns)
    excess = np.sum(levels.background**2) - np.trace(levels.background_covariance)
    chance = np.sqrt(2 * np.sum(levels.background_covariance**2))
    if not patterns.shape[1] or not unseen.shape[1] or excess <= _SIGNIFICANT * chance:
        return levels
    design = Design(network, patterns, levels.component)
    normal = design.normal(levels.pair_weight)
    information = network.information(normal.weight)
    followed, mixed = np.empty((network.size, unseen.shape[1])), unseen.copy()
    for column, pattern in enumerate(unseen.T):
        level, strength = design.explain(normal, network.terms @ pattern, information @ pattern)
        followed[:, column] = design.centered(level)
        mixed[:, column] -= patterns @ strength
    body = _bodies(visit, levels.component)
    steady, moving = (less_mean(np.nan_to_num(values), body) for values in (levels.level, followed))
    strength, covariance, odds = _weigh(steady, moving, network.size - int(body.max()) - 1, excess)
    if odds < _MIN_ODDS:
        return levels
    return replace(
        levels,
        level=levels.level - followed @ strength,
        error=np.sqrt(levels.error**2 + np.einsum("nk,kl,nl->n", followed, covariance, followed)),
        background=levels.background + mixed @ strength,
        background_covariance=levels.background_covariance + mixed @ covariance @ mixed.T,
    )


def _weigh(steady, moving, freedom, prior):
    """
    Fit ``steady = moving @ strength`` against ``steady = 0``, both with scatter of unknown size.

    Returns the strength, its covariance, and the Bayes factor of the fit. The prior of the
    strength is normal with variance `prior`.
    """
    alone = float(steady @ steady)
    if freedom < 1 or alone == 0:
        return np.zeros(moving.shape[1]), np.zeros((moving.shape[1],) * 2), 0.0
    left = alone
    for _ in range(_MAX_ITERATIONS):
        ridge = max(left / freedom / prior, np.finfo(float).tiny)
        inverse = np.linalg.inv(moving.T @ moving + ridge * np.eye(moving.shape[1]))
        strength = inverse @ (moving.T @ steady)
        previous, left = left, float(steady @ (steady - moving @ strength))
        if abs(left - previous) <= 1e-9 * previous:
            break
    occam = np.linalg.slogdet(inverse * ridge)[1]
    log_odds = 0.5 * freedom * np.log(alone / max(left, np.finfo(float).tiny)) + 0.5 * occam
    return strength, inverse * left / freedom, float(np.exp(min(log_odds, 700.0)))


def _complement(patterns):
    """Orthonormal columns that complete those given to a basis."""
    return np.linalg.svd(patterns)[0][:, patterns.shape[1] :]


def solve_by_group(together: Levels, network: Network, group: np.ndarray) -> Levels:
    """
    Find levels inside each group first, then shift whole groups against each other.

    Overlaps inside a visit are large and many, those between visits small and few. A bad overlap
    between two visits can then shift a whole visit but not tear it apart. The background fixed
    to the detector is taken from the solution of all pairs together.

    Parameters
    ----------
    together : Levels
        Solution of `network`.
    network : Network
        The pairs.
    group : ndarray
        Group number of each exposure, shape (n,).

    Returns
    -------
    Levels
        The solution. An error is that of both stages added in squares, or that of all pairs
        together where it is larger: only there the uncertainty of the background is counted.
    """
    flat, no_patterns = network.without(together.background), np.zeros((0, 0))
    inside = group[network.first] == group[network.second]
    within = solve(flat.select(inside), no_patterns)
    body = _bodies(group, within.component)
    offset, offset_error = np.nan_to_num(within.level), np.nan_to_num(within.error)
    apart = body[network.first] != body[network.second]
    shifted = flat.difference - offset[network.first] + offset[network.second]
    bodies = replace(
        replace(flat, difference=shifted).select(apart),
        size=int(body.max(initial=-1)) + 1,
        first=body[network.first[apart]],
        second=body[network.second[apart]],
    )
    between = solve(bodies, no_patterns)
    level = centered(offset + np.nan_to_num(between.level)[body], together.component)
    share = np.ones(len(network.first))
    share[inside], share[apart] = within.pair_weight, between.pair_weight
    return replace(
        together,
        level=level,
        error=np.maximum(together.error, np.hypot(offset_error, np.nan_to_num(between.error)[body])),
        residual=flat.difference - level[network.first] + level[network.second],
        pair_weight=share,
        scatter=max(within.scatter, between.scatter),
    )


def _bodies(group, piece):
    """Label the sets of exposures that a group's own pairs hold together."""
    alone = np.arange(len(group)) + piece.max(initial=-1) + 1
    keys = np.stack([group, np.where(piece >= 0, piece, alone)], axis=1)
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
