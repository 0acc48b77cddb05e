"""Averages of the integrations of one exposure that a hit in one of them does not pull along."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import log_ndtr, ndtr, ndtri

__all__ = ["METHODS", "Combined", "combine", "clip_factor", "median_factor"]

METHODS = ("mean", "ivar", "median", "clip")

# Samples worked on at a time: temporaries stay in the processor's cache however many integrations there are.
_BLOCK = 1 << 17

# Samples, spread over the frame, that tell what the integrations have in common: of 8 integrations offsets
# are known to 1.25 / sqrt(62500) or 0.005 sigma, of 100 to 0.02 sigma.
_PROBE = 500_000

# A frame of fewer pixels says little: the common offset of an integration would be known to 0.1 sigma only.
_PROBE_MIN = 256

# A smaller offset [standard errors] may be chance, and is not worth moving a sample for.
_SIGNIFICANT = 5.0

# Median absolute value of a normal deviate.
_HALF = ndtri(0.75)

# Up to as many integrations are sorted by comparing whole planes, which is faster than pixel by pixel.
_FEW = 32

# Each round of clipping makes the misfit smaller, so that it ends by itself; nearly all pixels need two.
_ROUNDS = 20


@dataclass(frozen=True)
class Combined:
    """
    An exposure made of its integrations.

    Parameters
    ----------
    data : ndarray
        Average, NaN where no sample is valid, shape (ny, nx), float32.
    var_poisson, var_rnoise, var_flat : ndarray or None
        Its variances, NaN where no sample is valid; None for those that were not given.
    used, rejected : ndarray
        Integrations that went into the average and that were clipped, shape (ny, nx), uint16.
    noise_factor : float
        Measured scatter over the one that the variances state, at least 1; 1 where nothing is clipped.
    offset : ndarray
        What each integration has in common above the others, shape (n,) [unit of the data]. It
        is taken into account when samples are judged, and stays in the data.
    """

    data: np.ndarray
    var_poisson: np.ndarray | None
    var_rnoise: np.ndarray | None
    var_flat: np.ndarray | None
    used: np.ndarray
    rejected: np.ndarray
    noise_factor: float
    offset: np.ndarray


@dataclass(frozen=True)
class _Clipping:
    """How far a sample may lie from the centre, and what is known of all samples before it is judged."""

    sigma: float
    min_integrations: int
    noise_factor: float
    offset: np.ndarray


def combine(
    data: np.ndarray,
    valid: np.ndarray,
    *,
    method: str = "clip",
    var_poisson: np.ndarray | None = None,
    var_rnoise: np.ndarray | None = None,
    var_flat: np.ndarray | None = None,
    sigma: float = 3.0,
    min_integrations: int = 3,
) -> Combined:
    r"""
    Average the integrations of an exposure pixel by pixel.

    Think of several witnesses of one event: the mean believes them all, the weighted mean
    those most who saw best, the median the one in the middle. Clipping listens to all, sends
    out who contradicts the others by more than can be explained, and averages the rest.

    Parameters
    ----------
    data : ndarray
        Integrations, shape (n, ny, nx).
    valid : ndarray of bool
        True where a sample is to be used, same shape. Zero is a value like any other.
    method : {'clip', 'mean', 'ivar', 'median'}, optional
        Plain mean, mean with weights 1 / `var_rnoise`, median, or the mean with the weights of
        'ivar' (equal ones if there is no `var_rnoise`) of the samples that are left after clipping.
    var_poisson, var_rnoise, var_flat : ndarray, optional
        Variances, same shape [squared unit of the data].
    sigma : float, optional
        Clipping limit [standard deviation of the sample].
    min_integrations : int, optional
        Pixels with fewer valid samples are averaged unclipped.

    Returns
    -------
    Combined
        The average, its variances and counts.

    Raises
    ------
    ValueError
        If a shape or a parameter is wrong, or a method lacks the variances that it needs.

    Notes
    -----
    A sample without a positive finite `var_rnoise` has no weight in 'ivar' and 'clip'; a pixel
    of which no sample has any is averaged with equal weights.

    Clipping measures deviations in units of the known noise :math:`s_i` of each sample, the root of
    its Poisson and read noise variances, and not of the scatter of the few samples of a pixel, to
    which a hit itself contributes. It starts at the lower median, because cosmic rays only add
    light, and moves to the mean of the samples that lie within the limit until that set
    stays the same. With weights :math:`1/s_i^2` each round lowers :math:`\sum_i \min((x_i - c)^2/s_i^2,
    k^2)`, so that it always ends and never with an empty set. Where less than half are left it
    starts once more at the sample that most others support.

    Two properties of the exposure as a whole are no reason to reject a sample: an offset common to all
    pixels of an integration (a drift of the background, effects of the first integration), and
    errors that are stated too small. Offsets are medians over the frame; a pixel gets its share of
    them also from the integrations that were rejected in it, so that it stays level with its
    neighbours. The scatter is measured in the differences of successive integrations; where it exceeds
    the errors, all grow by one factor.

    The variances are those of a linear estimate with normalised weights :math:`w_i`,
    :math:`f \sum_i w_i^2 v_i`, for Poisson and read noise each. The median has the weights with which
    samples pull at it, :math:`1/s_i` if there are many, and `median_factor`; clipping has `clip_factor`. The
    flat is the same in all integrations and does not average down: :math:`(\sum_i w_i
    \sqrt{v_i})^2`.

    It fails where a pixel really changes between integrations: a source that varies or moves, a
    telescope that drifts. What is seen in fewer integrations is then clipped.

    Examples
    --------
    >>> import numpy as np
    >>> data = np.array([1.0, 1.1, 9.0, 0.9]).reshape(4, 1, 1)
    >>> found = combine(data, np.isfinite(data), var_rnoise=np.full(data.shape, 0.01))
    >>> found.data.item(), found.rejected.item()
    (1.0, 1)
    """
    variances = {"var_poisson": var_poisson, "var_rnoise": var_rnoise, "var_flat": var_flat}
    _check(data, valid, method, variances, sigma, min_integrations)
    clipping = None
    if method == "clip":
        clipping = _probe(data, valid, var_poisson, var_rnoise, sigma, min_integrations)
    n, *frame = data.shape
    planes = {name: np.empty(frame, np.float32) for name, plane in variances.items() if plane is not None}
    planes |= {"data": np.empty(frame, np.float32)}
    planes |= {name: np.empty(frame, np.uint16) for name in ("used", "rejected")}
    height = max(1, _BLOCK // max(1, n * frame[1]))
    for start in range(0, frame[0], height):
        rows = slice(start, start + height)
        part = {name: _known(_flat(plane, rows)) for name, plane in variances.items() if plane is not None}
        found = _combine_block(_flat(data, rows), valid[:, rows].reshape(n, -1), method, part, clipping)
        for name, values in found.items():
            planes[name][rows] = values.reshape(-1, frame[1])
    noise_factor = 1.0 if clipping is None else clipping.noise_factor
    offset = np.zeros(n) if clipping is None else clipping.offset
    return Combined(**(dict.fromkeys(variances) | planes), noise_factor=noise_factor, offset=offset)


@lru_cache
def median_factor(n: int) -> float:
    """
    Compare the variance of the median of normal samples with that of their mean.

    Parameters
    ----------
    n : int
        Number of samples.

    Returns
    -------
    float
        n times the variance of the median of n samples of unit variance; 1 for 1 and 2, pi / 2 for many.

    Examples
    --------
    >>> [round(median_factor(n), 3) for n in (1, 2, 3, 4, 5)]
    [1.0, 1.0, 1.346, 1.193, 1.434]
    """
    if n <= 2:
        return 1.0
    if n > 60:
        # Odd and even have different second terms in 1/n; the last exact value fixes each.
        last = 60 - n % 2
        return np.pi / 2 + (median_factor(last) - np.pi / 2) * last / n
    # Density of the middle x of the sorted samples: of one of them, or of two that lie a gap apart.
    x = np.linspace(-5.0, 5.0, 501)
    gap = np.zeros(1) if n % 2 else np.arange(0.01, 8.0, 0.02)
    low, high = x - gap[:, np.newaxis] / 2, x + gap[:, np.newaxis] / 2
    outside = (n - 1) // 2
    logarithm = outside * (log_ndtr(low) + log_ndtr(-high)) - low**2 / 2
    if n % 2 == 0:
        logarithm -= high**2 / 2
    density = np.exp(logarithm - logarithm.max())
    return float(n * np.sum(x**2 * density) / np.sum(density))


@lru_cache
def clip_factor(n: int, sigma: float) -> float:
    """
    Compare the variance of the clipped mean of normal samples with the one stated for the samples kept.

    Clipping throws out honest samples too, and with them more than their share of information. How much
    is found by clipping normal samples from a seeded generator.

    Parameters
    ----------
    n : int
        Number of samples before clipping.
    sigma : float
        Clipping limit [standard deviation].

    Returns
    -------
    float
        Mean of the squared error times the number of samples kept, to 1 %. For many samples it tends to
        P / (P - 2 k p), with P the probability of a deviation below k = `sigma` and p the density at k.

    Examples
    --------
    >>> round(clip_factor(8, 3.0), 2), round(clip_factor(8, 5.0), 2)
    (1.03, 1.0)
    """
    if n < 3:
        return 1.0
    if n > 10:
        # The next term of the series is one in 1/n.
        few, many = clip_factor(10, sigma), _simulate_clipping(40, sigma)
        return many + (few - many) * (1 / n - 1 / 40) / (1 / 10 - 1 / 40)
    return _simulate_clipping(n, sigma)


@lru_cache
def _simulate_clipping(n, sigma):
    x = np.random.default_rng(n).standard_normal((n, 20_000))
    kept = _settle(x, np.ones(x.shape, bool), np.full(x.shape, sigma))
    squared = np.sum(x * kept, axis=0) ** 2 / np.count_nonzero(kept, axis=0)
    # Against the mean of the same samples the luck of the draw cancels.
    return float(np.mean(squared) / np.mean(np.sum(x, axis=0) ** 2 / n))


def _check(data, valid, method, variances, sigma, min_integrations):
    given = {name: plane for name, plane in variances.items() if plane is not None}
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if data.ndim != 3:
        raise ValueError(f"data must have the shape (n, ny, nx), got {data.shape}")
    for name, plane in {"valid": valid, **given}.items():
        if plane.shape != data.shape:
            raise ValueError(f"{name} must have the shape of data {data.shape}, got {plane.shape}")
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}")
    if min_integrations < 3:
        raise ValueError(f"min_integrations must be at least 3, got {min_integrations}")
    if method == "ivar" and "var_rnoise" not in given:
        raise ValueError("method 'ivar' needs var_rnoise, got None")
    if method == "clip" and not {"var_poisson", "var_rnoise"} & set(given):
        raise ValueError("method 'clip' needs var_poisson or var_rnoise, got None for both")


def _flat(plane, rows):
    """Take rows of a cube as float64, shape (n, pixels)."""
    return plane[:, rows].reshape(len(plane), -1).astype(float)


def _known(variance):
    """Put 0 where a variance is not known, in place."""
    _masked(variance, variance > 0)
    if np.isinf(variance.max(initial=0.0)):
        variance[np.isinf(variance)] = 0.0
    return variance


def _masked(x, mask):
    """Put 0 where a mask is False, in place."""
    np.copyto(x, 0.0, where=~mask)
    return x


def _count(mask):
    """Count what is True along the first axis: numpy's way takes several times as long for a mask."""
    count = np.zeros(mask.shape[1], np.uint16)
    for plane in mask:
        count += plane
    return count.astype(int)


def _with_weight(valid, var_rnoise):
    """Find the samples with weight, and all samples of the pixels that have none."""
    weighted = var_rnoise > 0
    return weighted | ~(weighted & valid).any(axis=0)


def _combine_block(x, valid, method, variances, clipping):
    """Average a block of pixels, arrays of shape (n, pixels); variances are 0 where not known."""
    if method in ("ivar", "clip") and "var_rnoise" in variances:
        valid = valid & _with_weight(valid, variances["var_rnoise"])
    noise = None
    if method in ("median", "clip"):
        noise = _noise(variances.get("var_poisson"), variances.get("var_rnoise"))
    _masked(x, valid)
    kept, factor = valid, 1.0
    if method == "clip":
        kept, factor = _clip(x, valid, noise, clipping)
    count = _count(kept)
    weights = _weights(kept, count, method, noise, variances.get("var_rnoise"))
    if method == "median":
        value = _median(x, kept, count)
        factor = np.array([median_factor(n) for n in range(len(x) + 1)])[count]
    else:
        value = np.sum(weights * x, axis=0)
    if method == "clip" and clipping.offset.any():
        # What a whole integration has in common stays in the pixels in which it was rejected.
        every = _weights(valid, count, method, noise, variances.get("var_rnoise"))
        value += np.sum((every - weights) * clipping.offset[:, np.newaxis], axis=0)
    nothing = count == 0
    found = {"data": value} | _propagate(weights, factor, variances)
    for plane in found.values():
        plane[nothing] = np.nan
    return found | {"used": count, "rejected": _count(valid) - count}


def _noise(var_poisson, var_rnoise):
    """Find the standard deviation of samples, NaN where it is not known; None without any variance."""
    given = [plane for plane in (var_poisson, var_rnoise) if plane is not None]
    if not given:
        return None
    total = given[0] + given[1] if len(given) == 2 else given[0].copy()
    total[total == 0] = np.nan
    return np.sqrt(total, out=total)


def _weights(kept, count, method, noise, var_rnoise):
    """Give the samples their weights, whose sum over a pixel is 1."""
    if method in ("ivar", "clip") and var_rnoise is not None:
        known = var_rnoise > 0
        weights = _masked(1 / np.where(known, var_rnoise, 1.0), kept & known)
    elif method == "median" and noise is not None:
        # Of many samples each pulls at the median as 1/s, of two the median is the mean. The power between is
        # measured: it gives errors to 3 % for variances that differ up to 4 times, to 9 % for 8 times.
        power = np.where(count > 2, 1 - 1 / np.maximum(count, 1), 0.0)
        weights = np.where(kept & (noise > 0), np.where(noise > 0, noise, 1.0) ** -power, 0.0)
    else:
        weights = kept.astype(float)
    total = weights.sum(axis=0)
    none = total == 0
    if none.any():
        weights[:, none] = kept[:, none]
        total[none] = np.maximum(_count(kept[:, none]), 1)
    return np.divide(weights, total, out=weights)


def _propagate(weights, factor, variances):
    """Carry the variances through a linear estimate."""
    found, squares = {}, weights**2
    for name, plane in variances.items():
        if name == "var_flat":
            found[name] = np.sum(weights * np.sqrt(plane), axis=0) ** 2
        else:
            found[name] = factor * np.sum(squares * plane, axis=0)
    return found


def _median(x, kept, count, *, lower=False):
    """Find the median of the samples kept, or the lower of two in the middle; infinite if there are none."""
    ordered = _ordered(np.where(kept, x, np.inf))
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0)[np.newaxis] // 2, axis=0)[0]
    if lower:
        return low
    high = np.take_along_axis(ordered, np.minimum(count // 2, len(x) - 1)[np.newaxis], axis=0)[0]
    return 0.5 * (low + high)


def _ordered(x):
    """Sort along the first axis, in place as far as that is possible."""
    if len(x) > _FEW:
        return np.sort(x, axis=0)
    for low, high in _comparisons(len(x)):
        smaller = np.minimum(x[low], x[high])
        np.maximum(x[low], x[high], out=x[high])
        x[low] = smaller
    return x


@lru_cache
def _comparisons(n):
    """List the pairs to be put in order, one after the other, to sort n values: Batcher 1968."""
    pairs = []
    for size in (1 << k for k in range(n.bit_length())):
        step = size
        while step:
            for first in range(step % size, n - step, 2 * step):
                for low in range(first, min(first + step, n - step)):
                    if low // (2 * size) == (low + step) // (2 * size):
                        pairs.append((low, low + step))
            step //= 2
    return pairs


def _probe(data, valid, var_poisson, var_rnoise, sigma, min_integrations):
    """Measure on pixels all over the frame what the integrations have in common."""
    n, ny, nx = data.shape
    step = max(1, n * ny * nx // _PROBE)
    while np.gcd(step, nx) > 1:  # or some columns would never be looked at
        step += 1
    x = _every(data, step).astype(float)
    variances = (None if plane is None else _every(plane, step) for plane in (var_poisson, var_rnoise))
    noise = _noise(*(None if plane is None else _known(plane.astype(float)) for plane in variances))
    seen = _every(valid, step) & np.isfinite(noise)
    enough = _count(seen) >= min_integrations
    x, noise, seen = x[:, enough], noise[:, enough], seen[:, enough]
    offset = _common_offset(x, seen)
    x -= offset[:, np.newaxis]
    return _Clipping(sigma, min_integrations, _noise_factor(x, noise, seen, sigma), offset)


def _every(plane, step):
    """Take every so many pixels of a cube, shape (n, pixels)."""
    return plane.reshape(len(plane), -1)[:, ::step]


def _common_offset(x, seen):
    """Find what all pixels of an integration have in common above the others."""
    offset, scatter = np.zeros((2, len(x)))
    enough = np.count_nonzero(seen, axis=1) >= _PROBE_MIN
    count = _count(seen)
    if not enough.any():
        return offset
    for _ in range(2):  # offsets decide which sample is in the middle
        shifted = x - offset[:, np.newaxis]
        centre = _median(shifted, seen, count)
        for i in np.flatnonzero(enough):
            deviation = (shifted[i] - centre)[seen[i]]
            offset[i] += np.median(deviation)
            scatter[i] = np.median(np.abs(deviation)) / _HALF / np.sqrt(len(deviation))
    return np.where(np.abs(offset) > _SIGNIFICANT * scatter, offset, 0.0)


def _noise_factor(x, noise, seen, sigma):
    """Compare the scatter of samples with their stated errors, without the samples that will be clipped."""
    factor, kept = 1.0, seen
    for expected in (_HALF, _half_within(sigma)):
        pairs = kept[1:] & kept[:-1]
        if np.count_nonzero(pairs) < _PROBE_MIN:
            return 1.0
        difference = np.abs(np.diff(x, axis=0)) / np.hypot(noise[1:], noise[:-1])
        factor = max(1.0, np.median(difference[pairs]) / expected)
        kept = _settle(x, seen, sigma * factor * noise)
    return factor


@lru_cache
def _half_within(sigma):
    """Find the median absolute difference of two normal deviates that lie within a limit, over root 2."""
    share = (np.arange(300) + 0.5) / 300
    deviate = ndtri(ndtr(-sigma) + share * (1 - 2 * ndtr(-sigma)))
    return float(np.median(np.abs(np.subtract.outer(deviate, deviate)))) / np.sqrt(2)


def _clip(x, valid, noise, clipping):
    """Find the samples to keep, and the factor by which clipping widens the variance of each pixel."""
    count = _count(valid)
    judged = count >= clipping.min_integrations
    shifted = x - clipping.offset[:, np.newaxis]
    scale = noise * clipping.noise_factor
    unknown = np.isnan(scale)
    unknown &= valid
    if unknown.any():
        scale = np.where(unknown, _scatter(shifted, valid, count), scale)
    kept = valid & (_settle(shifted, valid, clipping.sigma * scale) | ~judged)
    factor = np.array([clip_factor(n, clipping.sigma) for n in range(len(x) + 1)])[count]
    return kept, np.where(judged, factor, 1.0)


def _scatter(x, valid, count):
    """Estimate the standard deviation of samples from the scatter in their pixel."""
    deviation = np.abs(x - _median(x, valid, count, lower=True))
    # Few samples scatter less about their own median: Croux & Rousseeuw 1992.
    small = np.maximum(count, 1) / np.maximum(count - 0.8, 0.2)
    return small * _median(deviation, valid, count) / _HALF


def _settle(x, valid, limit):
    """Find the samples that lie together: those within the limit of their own mean."""
    # A limit of 0, of equal samples without known noise, would weigh infinitely much.
    limit = np.where(valid, np.maximum(limit, 1e-30), 1.0)
    count = _count(valid)
    start = _median(x, valid, count, lower=True)
    kept = _converge(x, valid, limit, start)
    # Where most samples are hit the median is one of the hits, and hits seldom agree with each other.
    few = 2 * _count(kept) < count
    if few.any():
        again = (x[:, few], valid[:, few], limit[:, few])
        crowd = _most_supported(*again)
        found = _converge(*again, crowd)
        size = _count(found)
        # Hits only add light: a crowd above the median must be a majority.
        larger = size > _count(kept[:, few])
        better = larger & ((crowd < start[few]) | (2 * size > count[few]))
        kept[:, few] = np.where(better, found, kept[:, few])
    return kept


def _most_supported(x, valid, limit):
    """Find the sample that most others lie close to, the lowest of several."""
    best, most = np.full(x.shape[1], np.inf), np.zeros(x.shape[1], int)
    for sample, usable in zip(x, valid, strict=True):
        support = np.count_nonzero(valid & (np.abs(x - sample) <= limit), axis=0) * usable
        better = (support > most) | ((support == most) & usable & (sample < best))
        best, most = np.where(better, sample, best), np.maximum(most, support)
    return best


def _converge(x, valid, limit, centre):
    """Move from a centre to the mean of the samples within the limit, until they stay the same."""
    weight = _masked(1 / np.square(limit), valid)
    kept = valid & _within(x, centre, limit)
    moving = np.arange(x.shape[1])
    now = kept
    for _ in range(_ROUNDS):
        share = np.where(now, weight, 0.0)
        total = share.sum(axis=0)
        centre = np.divide(np.sum(share * x, axis=0), total, out=np.zeros_like(total), where=total > 0)
        near = valid & _within(x, centre, limit)
        moved = (near != now).any(axis=0)
        moving = moving[moved]
        if not len(moving):
            break
        x, valid, limit, weight = x[:, moved], valid[:, moved], limit[:, moved], weight[:, moved]
        now = near[:, moved]
        kept[:, moving] = now
    return kept


def _within(x, centre, limit):
    """Tell which samples are not farther from the centre than their limits."""
    distance = x - centre
    return np.abs(distance, out=distance) <= limit
