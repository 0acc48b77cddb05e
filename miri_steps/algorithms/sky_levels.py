"""Sky levels and detector background from the differences of pairs of exposures."""

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph
from scipy.sparse.linalg import splu

from miri_steps.algorithms.differences import PairDifference

__all__ = ["Levels", "Network", "components", "settle_unseen", "solve", "solve_by_group"]

# Tuning constants in units of the error, each 95 % efficient for normal residuals
# (Holland & Welsch 1977, doi:10.1080/03610927708827533).
_HUBER, _CAUCHY = 1.345, 2.385
_MAX_ITERATIONS = 100
# Bayes factor from which evidence counts as positive
# (Kass & Raftery 1995, doi:10.1080/01621459.1995.10476572).
_MIN_ODDS = 3.0
# A background is seen when it exceeds its noise by this many standard deviations of the noise.
_SIGNIFICANT = 3.0


@dataclass(frozen=True)
class Network:
    """
    Differences between exposures, as arrays over pairs.

    Parameters
    ----------
    size : int
        Number of exposures.
    first, second : ndarray
        Indices of the exposures of each pair, shape (p,).
    difference : ndarray
        First minus second, shape (p,).
    error : ndarray
        Its standard error, as if the pair stood alone, shape (p,).
    terms : ndarray
        Mean difference of the background terms in each pair, shape (p, k).
    covariance : ndarray
        Covariance of the differences of the terms within each pair, shape (p, k, k).
    slope : ndarray
        Covariance of the terms with the brightness within each pair, shape (p, k).
    independence : ndarray or float, optional
        Part of its information that each pair has for itself, shape (p,).
    """

    size: int
    first: np.ndarray
    second: np.ndarray
    difference: np.ndarray
    error: np.ndarray
    terms: np.ndarray
    covariance: np.ndarray
    slope: np.ndarray
    independence: np.ndarray | float = 1.0

    @classmethod
    def from_pairs(cls, size: int, pairs: dict[tuple[int, int], PairDifference], *, terms: int) -> "Network":
        """Gather the differences of pairs (i, j) of `size` exposures, with `terms` background terms."""
        index = np.array(list(pairs), int).reshape(-1, 2)
        found = list(pairs.values())

        def column(name, *shape, dtype=float):
            return np.array([getattr(pair, name) for pair in found], dtype).reshape(len(found), *shape)

        return cls(
            size=size,
            first=index[:, 0],
            second=index[:, 1],
            difference=column("difference"),
            error=_floored(column("error")),
            terms=column("terms", terms),
            covariance=column("covariance", terms, terms, dtype=np.float32),
            slope=column("slope", terms),
            independence=column("independence"),
        )

    @property
    def weight(self) -> np.ndarray:
        """Inverse variance of each pair that counts each cell's noise once, shape (p,)."""
        return self.independence * self.error**-2.0

    def information(self, weight: np.ndarray) -> np.ndarray:
        """Sum what the pairs know of the terms from inside their overlaps, shape (k, k)."""
        return np.einsum("p,pkl->kl", weight, self.covariance)

    def select(self, pairs: np.ndarray) -> "Network":
        """Keep some of the pairs (mask or indices)."""
        names = ("first", "second", "difference", "error", "terms", "covariance", "slope")
        kept = {name: getattr(self, name)[pairs] for name in names}
        return replace(self, **kept, independence=np.broadcast_to(self.independence, self.error.shape)[pairs])


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


def _floored(error):
    """Keep pairs without scatter (an exposure listed twice, images of zeros) from outweighing all others."""
    positive = error[error > 0]
    return np.maximum(error, 0.1 * np.median(positive)) if positive.size else np.full_like(error, 1e-12)


def components(size: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """
    Find the connected pieces of a field.

    Parameters
    ----------
    size : int
        Number of exposures.
    first, second : ndarray
        Exposures of each pair, shape (p,).

    Returns
    -------
    ndarray
        Piece of each exposure, counted from 0 in the order of their first exposures; -1 for an
        exposure without a pair, shape (size,).
    """
    links = sparse.coo_array((np.ones(len(first)), (first, second)), shape=(size, size))
    label = csgraph.connected_components(links, directed=False)[1]
    paired = np.isin(np.arange(size), np.concatenate([first, second]))
    label = np.where(paired, label, -1)
    order = {old: new for new, old in enumerate(dict.fromkeys(label[paired].tolist()))}
    return np.array([order.get(value, -1) for value in label.tolist()], int)


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
    design = _Design(network, patterns, component)
    share = np.ones(len(network.first))
    for reweight in (_huber, _cauchy):
        share = _iterate(design, share, reweight)
    unknowns, covariance = design.solve(share), design.covariance(share)
    residual = design.residual(unknowns)
    scatter = design.scatter(residual)
    widest = scatter.max()
    seen = slice(design.n_free, None)
    return Levels(
        level=design.centered(unknowns),
        error=design.errors(covariance) * scatter[component],
        component=component,
        background=patterns @ unknowns[seen],
        background_covariance=patterns @ covariance[seen, seen] @ patterns.T * widest**2,
        residual=residual,
        pair_weight=share,
        scatter=float(widest),
    )


class _Design:
    """The linear model: free levels (the first exposure of each piece is held at 0), then patterns."""

    def __init__(self, network, patterns, component):
        self.network, self.component = network, component
        held = np.unique(component, return_index=True)[1]
        free = np.setdiff1d(np.flatnonzero(component >= 0), held)
        self.column = np.full(network.size, -1)
        self.column[free] = np.arange(len(free))
        self.n_free = len(free)
        self.matrix = sparse.hstack(
            [self._level_columns(), sparse.csc_array(network.terms @ patterns)], format="csc"
        )
        self.patterns = patterns

    def _level_columns(self):
        pair = np.arange(len(self.network.first))
        rows, columns, values = [], [], []
        for exposure, sign in ((self.network.first, 1.0), (self.network.second, -1.0)):
            kept = self.column[exposure] >= 0
            rows.append(pair[kept])
            columns.append(self.column[exposure[kept]])
            values.append(np.full(kept.sum(), sign))
        entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
        return sparse.coo_array(entries, shape=(len(pair), self.n_free)).tocsc()

    def _normal(self, weight):
        normal = self.matrix.T @ sparse.diags_array(weight) @ self.matrix
        inside = self.patterns.T @ self.network.information(weight) @ self.patterns
        normal = normal + sparse.block_diag([sparse.csc_array((self.n_free,) * 2), sparse.csc_array(inside)])
        return splu(normal.tocsc())

    def solve(self, share):
        return self.explain(share, self.network.difference, self.network.slope)

    def explain(self, share, difference, slope):
        """Unknowns that explain differences (p,) and their variation within overlaps (p, k) best."""
        weight = self.network.weight * share
        right = self.matrix.T @ (weight * difference)
        right[self.n_free :] += self.patterns.T @ (weight @ slope)
        return self._normal(weight).solve(right)

    def covariance(self, share):
        return self._normal(self.network.weight * share).solve(np.eye(self.matrix.shape[1]))

    def residual(self, unknowns):
        return self.network.difference - self.matrix @ unknowns

    def scatter(self, residual):
        """Find the robust ratio of residuals to their errors in each piece; below 1 there is only noise."""
        found = np.ones(self.component.max() + 1)
        ratio = np.abs(residual) / self.network.error
        for piece in range(len(found)):
            inside = ratio[self.component[self.network.first] == piece]
            # Levels use up pairs; patterns live on how differences vary inside them.
            freedom = 1 - (np.count_nonzero(self.component == piece) - 1) / len(inside)
            if freedom > 0:  # else every pair is needed, and none is left to check the others
                found[piece] = max(1.0, 1.4826 * float(np.median(inside)) / np.sqrt(freedom))
        return found

    def centered(self, unknowns):
        """Measure levels from the mean of each piece instead of its first exposure."""
        values = np.append(unknowns[: self.n_free], 0.0)[self.column]
        return _center(values, self.component)

    def errors(self, covariance):
        """Take the standard errors of the centered levels from the covariance."""
        error = np.full(len(self.column), np.nan)
        padded = np.zeros((self.n_free + 1,) * 2)
        padded[:-1, :-1] = covariance[: self.n_free, : self.n_free]
        for piece in range(self.component.max() + 1):
            member = np.flatnonzero(self.component == piece)
            block = padded[np.ix_(self.column[member], self.column[member])]
            mean = block.mean(axis=0)
            error[member] = np.sqrt(np.maximum(np.diag(block) - 2 * mean + mean.mean(), 0))
        return error


def _huber(z):
    return np.minimum(1, _HUBER / np.maximum(np.abs(z), 1e-300))


def _cauchy(z):
    return 1 / (1 + (z / _CAUCHY) ** 2)


def _iterate(design, share, reweight):
    for _ in range(_MAX_ITERATIONS):
        residual = design.residual(design.solve(share))
        piece = design.component[design.network.first]
        z = residual / design.network.error / design.scatter(residual)[piece]
        previous, share = share, reweight(z)
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
    design = _Design(network, patterns, levels.component)
    followed, mixed = np.empty((network.size, unseen.shape[1])), unseen.copy()
    for column, pattern in enumerate(unseen.T):
        unknowns = design.explain(levels.pair_weight, network.terms @ pattern, network.covariance @ pattern)
        followed[:, column] = design.centered(unknowns)
        mixed[:, column] -= patterns @ unknowns[design.n_free :]
    body = _bodies(visit, levels.component)
    steady, moving = (_within(values, body) for values in (levels.level, followed))
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


def _within(values, body):
    """Values minus their mean over each body; 0 where there is none."""
    values = np.nan_to_num(values)
    count = np.bincount(body)
    sums = np.zeros((len(count), *values.shape[1:]))
    np.add.at(sums, body, values)
    return values - (sums.T / count).T[body]


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
    flat = replace(network, difference=network.difference - network.terms @ together.background)
    no_patterns = np.zeros((len(together.background), 0))
    inside = group[network.first] == group[network.second]
    within = solve(flat.select(inside), no_patterns)
    body = _bodies(group, within.component)
    offset, offset_error = np.nan_to_num(within.level), np.nan_to_num(within.error)
    apart = body[network.first] != body[network.second]
    shifted = flat.difference - offset[network.first] + offset[network.second]
    bodies = replace(
        replace(flat, difference=shifted).select(apart),
        size=int(body.max()) + 1,
        first=body[network.first[apart]],
        second=body[network.second[apart]],
    )
    between = solve(bodies, no_patterns)
    level = _center(offset + np.nan_to_num(between.level)[body], together.component)
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


def _center(level, component):
    centered = np.full(level.shape, np.nan)
    for piece in range(component.max(initial=-1) + 1):
        member = component == piece
        centered[member] = level[member] - level[member].mean()
    return centered
