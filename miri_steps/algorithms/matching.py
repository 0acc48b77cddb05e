"""Match the sky of many exposures: from cells to levels."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from miri_steps.algorithms import sky_cells, sky_levels
from miri_steps.algorithms.detector_background import DetectorPolynomial, visible_terms
from miri_steps.algorithms.differences import Clipping, PairDifference, compare
from miri_steps.algorithms.sky_cells import SkyCells
from miri_steps.algorithms.sky_levels import Levels, Network

__all__ = ["MIN_VISIBILITY", "Match", "background_box", "match"]

# A pattern that leaves less than this part of itself in the differences is not solved for: an error
# of the differences, from a flat field say, would come back twenty times as large.
MIN_VISIBILITY = 0.05

# Exposures are handed to workers in blocks, so that each travels, and has its terms evaluated, a few
# times and not once per pair.
_BLOCK = 16

Pairs = dict[tuple[int, int], PairDifference]
Map = Callable[[Callable, Iterable], Iterator]


@dataclass(frozen=True)
class Match:
    """
    What matching found.

    Parameters
    ----------
    levels : Levels
        The solution; its pairs are in the order of `pairs`.
    pairs : dict
        Differences by the indices (i, j) of the exposures, i < j.
    n_patterns : int
        Number of patterns of the detector background that the dithers made visible.
    settled : float
        By how much levels moved (rms) as the others followed from the steadiness of the sky within
        visits; 0 where they are taken to be zero.
    """

    levels: Levels
    pairs: Pairs
    n_patterns: int
    settled: float


def match(
    cells: list[SkyCells],
    *,
    visit: np.ndarray,
    polynomial: DetectorPolynomial,
    clipping: Clipping,
    by_visit: bool = False,
    run: Map = map,
) -> Match:
    """
    Find one level per exposure, and the background fixed to the detector, from all overlaps.

    Every pair is compared twice when there is a background to find: the first time to find it,
    the second time around it, so that clipping and location see the noise and not the pattern.

    Parameters
    ----------
    cells : list of SkyCells
        The exposures on one grid.
    visit : ndarray
        Visit number of each exposure, shape (n,).
    polynomial : DetectorPolynomial
        Terms of the detector background; order 0 for none.
    clipping : Clipping
        How the location of a difference is measured.
    by_visit : bool, optional
        Find levels inside each visit first, then shift whole visits.
    run : callable, optional
        Used like `map`; it may spread the work over processes.

    Returns
    -------
    Match
        Levels, pairs and how much of the background could be solved for.
    """
    touching = [
        (i, j) for i, j in combinations(range(len(cells)), 2) if sky_cells.overlap(cells[i], cells[j])
    ]
    shared = sky_cells.shared_by(cells, touching)
    background = np.zeros(len(polynomial.degrees))
    pairs = _compare_all(cells, shared, touching, polynomial, background, clipping, run)
    touching = list(pairs)
    network = Network.from_pairs(len(cells), pairs, terms=len(background))
    patterns = visible_terms(
        network.information(network.weight), network.weight.sum(), min_visibility=MIN_VISIBILITY
    )
    if patterns.shape[1]:
        background = sky_levels.solve(network, patterns).background
        del pairs, network  # ten thousand pairs are large; the new ones take their place
        pairs = _compare_all(cells, shared, touching, polynomial, background, clipping, run)
        network = Network.from_pairs(len(cells), pairs, terms=len(background))
    solved = sky_levels.solve(network, patterns)
    levels = sky_levels.settle_unseen(solved, network, patterns, visit)
    settled = float(np.sqrt(np.nanmean((levels.level - solved.level) ** 2))) if pairs else 0.0
    if by_visit:
        levels = sky_levels.solve_by_group(levels, network, visit)
    return Match(levels, pairs, patterns.shape[1], settled)


def background_box(
    cells: list[SkyCells], *, within: tuple[tuple[float, float], tuple[float, float]]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """
    Find the part of the detector over which the background is to have no part left undecided.

    Parameters
    ----------
    cells : list of SkyCells
        The exposures.
    within : tuple
        First and last pixel (x, y) of the field that matters most.

    Returns
    -------
    center, half : tuple of float
        Middle and half the sides (x, y) of what the exposures use of that field, or of all they
        use where they use nothing of it [pixel].
    """
    used = [[(z[c.seen].min(), z[c.seen].max()) for z in c.detector_positions()] for c in cells]
    low, high = np.array(within, float)
    if used:
        first, last = np.min(used, axis=0)[:, 0], np.max(used, axis=0)[:, 1]
        low, high = np.maximum(low, first), np.minimum(high, last)
        if np.any(low >= high):
            low, high = first, last
    middle, half = (low + high) / 2, np.maximum((high - low) / 2, 1)
    return tuple(middle.tolist()), tuple(half.tolist())


def _compare_all(cells, shared, pairs, polynomial, background, clipping, run) -> Pairs:
    blocks = {}
    for i, j in pairs:
        blocks.setdefault((i // _BLOCK, j // _BLOCK), []).append((i, j))
    tasks = (
        (
            {k: cells[k] for pair in block for k in pair},
            {i: shared[i] for i, _ in block},
            block,
            (polynomial, background, clipping),
        )
        for block in blocks.values()
    )
    found = {pair: result for block in run(_compare_block, tasks) for pair, result in block.items()}
    return {pair: found[pair] for pair in sorted(found)}


def _compare_block(task) -> Pairs:
    cells, shared, pairs, (polynomial, background, clipping) = task
    terms = {k: polynomial.evaluate(*exposure.detector_positions()) for k, exposure in cells.items()}
    found = {}
    for i, j in pairs:
        result = compare(
            cells[i],
            cells[j],
            shared[i],
            terms=(terms[i], terms[j]),
            background=background,
            clipping=clipping,
        )
        if result is not None:
            found[i, j] = result
    return found
