"""Combinations of a stack of exposures, each of them without some of its exposures."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import ndtri

from miri_steps.algorithms import integrations

__all__ = ["STATISTICS", "Combined", "combine", "variance_factors"]

STATISTICS = ("median", "clip")

# Samples worked on at a time: temporaries stay at some tens of MB however many exposures there are.
_BLOCK = 1 << 21

# The quartiles of fewer samples happen to lie close together too often: a tenth of normal ones is clipped.
_FEW = 5

# Sums are counted in units of this part of the noise: a rounding no one sees, and integers add up exactly.
_UNIT_BITS = 22

# Sorting a sample takes as long as leaving out this many: where less remains it is sorted by itself.
_SORTING = 8

# Integers below 2**53 are exact in float64; one bit is kept for differences.
_EXACT_BITS = 52

# Numbers of samples are counted in uint16.
_MOST = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class Combined:
    """
    Combinations of one stack.

    Parameters
    ----------
    value : ndarray
        Combination of the samples that are not left out, NaN where there is none, shape (m, ...), float32.
    count : ndarray
        Samples that it is made of: all for the median, those kept by clipping; shape (m, ...), uint16.
    """

    value: np.ndarray
    count: np.ndarray


@dataclass(frozen=True)
class _Stack:
    """
    The samples of some pixels in ascending order.

    Of the samples (n, pixels) `number` are valid in each pixel. `ordered` (pixels * n,) are their values with
    what is no sample last, `start` is where each pixel begins in them, and `rank` (n, pixels) the place of
    each sample in the order of its pixel. `total` (pixels, n + 1) is the sum of all samples before a place:
    integers in `unit` that are good for samples up to `largest` units, where the noise is known.
    """

    samples: np.ndarray
    ordered: np.ndarray
    start: np.ndarray
    rank: np.ndarray
    number: np.ndarray
    noise: np.ndarray
    unit: np.ndarray
    largest: float
    total: np.ndarray | None


def combine(
    samples: np.ndarray,
    noise: np.ndarray,
    left_out: Sequence[tuple[int, ...]],
    *,
    statistic: str,
    sigma: float = 3.0,
) -> Combined:
    r"""
    Combine a stack pixel by pixel as often as asked, each time without some of its exposures.

    Think of a jury in which nobody judges their own case: for each case the others vote, and
    those who are related to the accused leave the room. All votes are put in order once; for each case only
    the few who left are looked at.

    Parameters
    ----------
    samples : ndarray
        Exposures, shape (n, ...). What is not finite is no sample.
    noise : ndarray
        Standard deviation of one sample of each pixel, shape (...) [unit of the samples]. Zero,
        negative or not finite: not known.
    left_out : sequence of tuple of int
        For each of m combinations the exposures that are not in it. An empty tuple means that all are.
    statistic : {'median', 'clip'}
        Median, or the mean of the samples near the median.
    sigma : float, optional
        Half width of the window of 'clip' [standard deviation].

    Returns
    -------
    Combined
        Combinations and their numbers of samples.

    Raises
    ------
    ValueError
        If a shape, an index or a parameter is wrong.

    Notes
    -----
    'clip' averages the samples that lie within :math:`k s` of the median :math:`c` of the same samples,

    .. math:: |x_i - c| \le k s, \qquad s = \max(\mathrm{noise}, \min(c - q_1, q_3 - c) / d_r),

    with the quartiles of the r samples that take part and :math:`d_r` the mean of this distance for normal
    samples of unit variance, 0.674 for many. The nearer quartile is taken because sources and cosmic rays
    lie on one side: where three of nine samples are hit, the upper quartile is one of the hits. The window is
    symmetric, so that clipping does not move the mean of symmetric noise. Quartiles of fewer than 5 samples
    say little: these are judged by the noise alone, and all kept where it is not known. The sample in
    the middle, or the two there, are always kept.

    The samples that are left out have no influence whatever, on the centre, on the width or through
    rounding: whatever their values, the result is the same bit for bit. Nor do the order of the exposures
    or the other pixels matter. For this the samples are added up in integers of noise / 2**22, 2e-7 of the
    noise, whose sums are exact.

    Per pixel one sort is needed, then for each combination one step for each exposure left out and two
    binary searches, instead of n steps. Two exceptions take n steps: combinations of the few exposures that
    remain where nearly all are left out are made of these directly; and 'clip' adds up anew, in floating
    point, where the noise is not known or the window reaches beyond 2**29 / n times the noise.

    It fails where more than half of the samples that take part are wrong in the same way: a
    source that was not masked, in exposures that were hardly moved.

    Examples
    --------
    >>> import numpy as np
    >>> samples = np.array([1.0, 2.0, 3.0, 90.0], np.float32).reshape(4, 1)
    >>> found = combine(samples, np.ones(1), [(), (0,), (3,)], statistic="clip")
    >>> found.value.ravel(), found.count.ravel()
    (array([2. , 2.5, 2. ], dtype=float32), array([3, 2, 3], dtype=uint16))
    """
    samples, noise = np.asarray(samples), np.asarray(noise, float)
    left_out = [tuple(sorted(set(left))) for left in left_out]
    _check(samples, noise, left_out, statistic, sigma)
    n, *shape = samples.shape
    samples, noise = samples.reshape(n, -1), _known(noise).ravel()
    value = np.empty((len(left_out), noise.size), np.float32)
    count = np.empty(value.shape, np.uint16)
    size = max(1, _BLOCK // n)
    for first in range(0, noise.size, size):
        block = slice(first, first + size)
        found = _combine_block(samples[:, block], noise[block], left_out, statistic, sigma)
        for k, (values, counts) in enumerate(found):
            value[k, block], count[k, block] = values, counts
    return Combined(value.reshape(len(left_out), *shape), count.reshape(len(left_out), *shape))


def variance_factors(statistic: str, sigma: float, most: int) -> np.ndarray:
    """
    Tabulate the variance of a combination by the number of samples it is made of.

    Parameters
    ----------
    statistic : {'median', 'clip'}
        How samples are combined.
    sigma : float
        Half width of the window of 'clip' [standard deviation].
    most : int
        Largest number of samples.

    Returns
    -------
    ndarray
        Variance in units of the variance of one sample, shape (most + 1,). NaN for no sample, as its value.

    Raises
    ------
    ValueError
        If a parameter is wrong.

    Notes
    -----
    For normal samples true to 3 % at `sigma` 3 and above where the noise is known; at 2 up to 13 % too large,
    for the window is wider where the quartiles are. Where it is not known up to 8 % too small at 3.

    Examples
    --------
    >>> variance_factors("median", 3.0, 4).round(3)
    array([  nan, 1.   , 0.5  , 0.449, 0.298])
    """
    _check_statistic(statistic, sigma)
    if most < 0:
        raise ValueError(f"most must be at least 0, got {most}")
    if statistic == "median":
        factors = [integrations.median_factor(n) / n for n in range(1, most + 1)]
    else:
        factors = [integrations.clip_factor(n, sigma) / n for n in range(1, most + 1)]
    return np.array([np.nan, *factors])


def _check_statistic(statistic, sigma):
    if statistic not in STATISTICS:
        raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}, got {statistic!r}")
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}")


def _check(samples, noise, left_out, statistic, sigma):
    _check_statistic(statistic, sigma)
    if samples.ndim < 2 or not 1 <= len(samples) <= _MOST:
        raise ValueError(f"samples must have the shape (n, ...), n from 1 to {_MOST}, got {samples.shape}")
    if noise.shape != samples.shape[1:]:
        raise ValueError(f"noise must have the shape of one exposure {samples.shape[1:]}, got {noise.shape}")
    for k, left in enumerate(left_out):
        wrong = [index for index in left if not 0 <= index < len(samples)]
        if wrong:
            raise ValueError(f"left_out[{k}] must hold indices from 0 to {len(samples) - 1}, got {wrong[0]}")


def _known(noise):
    """Set the noise to zero where it is not known, or no standard deviation of float32 values."""
    single = np.finfo(np.float32)
    return np.where((noise >= single.tiny) & (noise <= single.max), noise, 0.0)


def _combine_block(samples, noise, left_out, statistic, sigma):
    """Yield the combinations of a block of pixels and their counts, samples of shape (n, pixels)."""
    n = len(samples)
    whole = None
    if statistic == "median" and not any(left_out):
        found = _median_of_all(samples)
        yield from (found for _ in left_out)
        return
    for left in left_out:
        if len(left) == n:
            yield np.nan, 0
            continue
        if _SORTING * (n - len(left)) < len(left):
            stack, left = _sort(np.delete(samples, left, axis=0), noise, statistic), ()
        else:
            # Sorted when first needed: it may be that nearly all are left out of each.
            stack = whole = whole or _sort(samples, noise, statistic)
        yield _median(stack, left) if statistic == "median" else _clip(stack, left, sigma)


def _median_of_all(samples):
    """Take the median of all samples of each pixel: no one has to know whose sample is where."""
    values = _numbers(samples)
    values.sort(axis=1)
    number = np.count_nonzero(~np.isnan(values), axis=1).astype(np.uint16)
    pixel = np.arange(len(values))
    low, high = (values[pixel, place].astype(float) for place in _middles(number))
    return np.where(number > 0, (low + high) / 2, np.nan), number


def _numbers(samples):
    """Put the samples of each pixel together, shape (pixels, n); NaN where there is none."""
    # Adding zero makes -0 a 0: of equal samples it must not matter which comes first.
    values = samples.T.astype(np.float32, order="C") + np.float32(0)
    values[~np.isfinite(values)] = np.nan
    return values


def _sort(samples, noise, statistic):
    """Sort the samples of each pixel."""
    n, pixels = samples.shape
    values = _numbers(samples)
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    rank = np.empty((pixels, n), np.uint16)
    np.put_along_axis(rank, order, np.arange(n, dtype=np.uint16)[np.newaxis], axis=1)
    unit = np.ldexp(1.0, np.frexp(noise)[1] - _UNIT_BITS)
    largest = 2.0 ** (_EXACT_BITS - n.bit_length())
    return _Stack(
        samples=samples,
        ordered=ordered.ravel(),
        start=np.arange(pixels) * n,
        rank=np.ascontiguousarray(rank.T),
        number=np.count_nonzero(~np.isnan(values), axis=1).astype(np.uint16),
        noise=noise,
        unit=unit,
        largest=largest,
        total=_sums(ordered, unit[:, np.newaxis], largest) if statistic == "clip" else None,
    )


def _integers(values, unit, largest):
    """Count values in units. What is larger than the sums are good for is never asked for."""
    return np.clip(np.rint(values / unit), -largest, largest)


def _sums(ordered, unit, largest):
    """Add up what comes before each place of a pixel, shape (pixels, n + 1)."""
    total = np.zeros((len(ordered), ordered.shape[1] + 1))
    total[:, 1:] = _integers(ordered, unit, largest)
    total[np.isnan(total)] = 0.0
    return np.cumsum(total, axis=1, out=total)


def _remaining(stack, left):
    """Count the samples that take part in each pixel, and put the ranks of the others in order."""
    ranks = np.sort(stack.rank[list(left)], axis=0)
    gone = np.count_nonzero(ranks < stack.number, axis=0).astype(np.uint16)
    return stack.number - gone, ranks


def _middles(number):
    """Find the ranks of the middle two of so many samples, or twice that of the middle one."""
    return (np.maximum(number, 1) - 1) // 2, number // 2


def _pick(stack, ranks, targets):
    """Find the samples that have the target ranks among those that take part, shape (targets, pixels)."""
    place = np.stack(targets)
    for rank in ranks:
        # In ascending order each that was before the place moves it by one.
        place += rank <= place
    return stack.ordered[stack.start + place]


def _median(stack, left):
    """Take the median of what takes part in each pixel."""
    number, ranks = _remaining(stack, left)
    low, high = _pick(stack, ranks, _middles(number)).astype(float)
    return np.where(number > 0, (low + high) / 2, np.nan), number


def _clip(stack, left, sigma):
    """Average what takes part in each pixel near its median."""
    number, ranks = _remaining(stack, left)
    low, high = _window(stack, number, ranks, sigma)
    first, end = _place(stack, low, np.less), _place(stack, high, np.less_equal)
    pixel = np.arange(len(number))
    total, kept = stack.total[pixel, end] - stack.total[pixel, first], end - first
    for exposure in left:
        inside = (stack.rank[exposure] >= first) & (stack.rank[exposure] < end)
        kept -= inside
        total -= np.where(inside, _integers(stack.samples[exposure], stack.unit, stack.largest), 0.0)
    total *= stack.unit
    limit = np.where(stack.noise > 0, stack.largest * stack.unit, -1.0)
    inexact = np.flatnonzero(np.maximum(high, -low) > limit)
    total[inexact] = _sum_anew(stack, left, inexact, first, end)
    kept[number == 0] = 0
    return np.divide(total, kept, out=np.full(total.shape, np.nan), where=kept > 0), kept


def _window(stack, number, ranks, sigma):
    """Find how far the samples that are averaged reach below and above the median."""
    quarter = number // 4
    targets = [*_middles(number), quarter, np.maximum(number, 1) - 1 - quarter]
    low, high, first, third = _pick(stack, ranks, targets)
    centre = (low.astype(float) + high) / 2
    scatter = np.minimum(centre - first, third - centre) / _quartile_distances(len(stack.rank))[number]
    # Of huge values the window may be beyond float32: then all are inside.
    with np.errstate(over="ignore"):
        reach = sigma * np.maximum(stack.noise, scatter)
        reach[(stack.noise == 0) & (number < _FEW)] = np.inf
        below, above = (centre - reach).astype(np.float32), (centre + reach).astype(np.float32)
    # Of an even number the median itself is no sample, and may be far from all.
    return np.minimum(below, low), np.maximum(above, high)


@lru_cache
def _quartile_distances(most):
    """
    Tabulate how far the nearer quartile of normal samples is from the median by their number [sigma].

    Expected order statistics as Blom (1958) approximates them; that the nearer of two is nearer by
    1.1 / sqrt(n) is measured, and gives 5 and more samples their standard deviation to 10 %, but 6 to 20 %.
    """
    number = np.arange(_FEW, most + 1)
    mean = -ndtri((number // 4 + 1 - 0.375) / (number + 0.25))
    few = np.full(min(_FEW, most + 1), np.inf)
    return np.concatenate([few, mean * (1 - 1.1 / np.sqrt(number))])


def _place(stack, bound, before):
    """Count the samples of each pixel that come before a bound, by halving intervals."""
    place, length = np.zeros(len(bound), np.intp), len(stack.rank)
    while length > 1:
        half = length // 2
        # What is no sample is NaN, comes last, and is before nothing.
        place += half * before(stack.ordered[stack.start + place + (half - 1)], bound)
        length -= half
    return place + before(stack.ordered[stack.start + place], bound)


def _sum_anew(stack, left, pixels, first, end):
    """Add up the samples of some pixels between two places one after the other."""
    n = len(stack.rank)
    ordered = stack.ordered.reshape(-1, n)[pixels].astype(float)
    place = np.arange(n)
    inside = (place >= first[pixels, np.newaxis]) & (place < end[pixels, np.newaxis])
    for exposure in left:
        inside[np.arange(len(pixels)), stack.rank[exposure, pixels]] = False
    # A plain sum would group the samples by their places, which those that are left out change.
    return np.cumsum(np.where(inside, ordered, 0.0), axis=1)[:, -1]
