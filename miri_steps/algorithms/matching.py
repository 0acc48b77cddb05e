"""Match the sky of many exposures: from cells to levels."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from miri_steps.algorithms import footprints, sky_cells, sky_levels, sky_network
from miri_steps.algorithms.detector_background import DetectorPolynomial, visible_terms
from miri_steps.algorithms.differences import Clipping, compare
from miri_steps.algorithms.sky_cells import CutOut, Held, Keep, Kept
from miri_steps.algorithms.sky_levels import Levels
from miri_steps.algorithms.sky_network import Network

__all__ = ["MIN_VISIBILITY", "Match", "background_box", "match"]

# A pattern that leaves less than this part of itself in the differences is not solved for: an error
# of the differences, from a flat field say, would come back twenty times as large.
MIN_VISIBILITY = 0.05

# Neighbours are handed to workers together, so that each is loaded, and has its terms evaluated, a few
# times and not once per pair: so many exposures to a group, and in all the groups of one piece of work.
_GROUP, _BLOCK = 16, 64

Map = Callable[[Callable, Iterable], Iterator]


@dataclass(frozen=True)
class Match:
    """
    What matching found.

    Parameters
    ----------
    levels : Levels
        The solution; its pairs are in the order of `network`.
    network : Network
        Differences of pairs, in the order of their first and second exposures, first < second.
    n_cells : ndarray
        Number of cells that each difference was taken from, shape (p,).
    n_patterns : int
        Number of patterns of the detector background that the dithers made visible.
    settled : float
        By how much levels moved (rms) as the others followed from the steadiness of the sky within
        visits; 0 where they are taken to be zero.
    """

    levels: Levels
    network: Network
    n_cells: np.ndarray
    n_patterns: int
    settled: float


@dataclass(frozen=True)
class _Block:
    """Pairs to be compared, with the exposures they are of."""

    name: str
    pairs: list[tuple[int, int]]
    cells: dict[int, CutOut]
    shared: dict[int, Kept]
    polynomial: DetectorPolynomial
    background: np.ndarray
    clipping: Clipping


@dataclass(frozen=True)
class _Counting:
    """Exposures whose cells are to be counted, with their numbers, and all neighbours of each."""

    name: str
    wanted: list[tuple[int, list[int]]]
    cells: dict[int, CutOut]
    keep: Keep


def match(
    cells: list[CutOut],
    *,
    visit: np.ndarray,
    polynomial: DetectorPolynomial,
    clipping: Clipping,
    by_visit: bool = False,
    names: Sequence[str] | None = None,
    keep: Keep = Held.keep,
    run: Map = map,
) -> Match:
    """
    Find one level per exposure, and the background fixed to the detector, from all overlaps.

    Every pair is compared twice when there is a background to find: the first time to find it,
    the second time around it, so that clipping and location see the noise and not the pattern.

    Only neighbours are ever looked at together. Time grows with the number of overlaps, and
    memory with a few numbers for each, wherever `keep` puts the images.

    Parameters
    ----------
    cells : list of CutOut
        The exposures on one grid.
    visit : ndarray
        Visit number of each exposure, shape (n,).
    polynomial : DetectorPolynomial
        Terms of the detector background; order 0 for none.
    clipping : Clipping
        How the location of a difference is measured.
    by_visit : bool, optional
        Find levels inside each visit first, then shift whole visits.
    names : sequence of str, optional
        Names of the exposures, for messages.
    keep : callable, optional
        Puts an array away under a name, and returns what loads it again.
    run : callable, optional
        Used like `map`; it may spread the work over processes.

    Returns
    -------
    Match
        Levels, pairs and how much of the background could be solved for.
    """
    names = [f"exposure {k}" for k in range(len(cells))] if names is None else names
    low = np.array([c.corner for c in cells], int).reshape(-1, 2)
    high = low + np.array([c.shape[::-1] for c in cells], int).reshape(-1, 2)
    pairs = np.stack(footprints.touching(low, high), axis=1)
    group = footprints.compact_groups(low, high, largest=_GROUP)
    shared = _count_shared(cells, pairs, group, names, keep, run)

    def compared(pairs, background):
        how = {"polynomial": polynomial, "background": background, "clipping": clipping}
        return _compare_all(cells, shared, pairs, group, names, how, run)

    background = np.zeros(len(polynomial.degrees))
    network, n_cells = compared(pairs, background)
    patterns = visible_terms(
        network.information(network.weight), network.weight.sum(), min_visibility=MIN_VISIBILITY
    )
    if patterns.shape[1]:
        background = sky_levels.solve(network, patterns).background
        pairs = np.stack([network.first, network.second], axis=1)
        del network  # of a hundred thousand pairs it is large; the new one takes its place
        network, n_cells = compared(pairs, background)
    solved = sky_levels.solve(network, patterns)
    levels = sky_levels.settle_unseen(solved, network, patterns, visit)
    settled = float(np.sqrt(np.nanmean((levels.level - solved.level) ** 2))) if len(n_cells) else 0.0
    if by_visit:
        levels = sky_levels.solve_by_group(levels, network, visit)
    return Match(levels, network, n_cells, patterns.shape[1], settled)


def background_box(
    cells: list[CutOut], *, within: tuple[tuple[float, float], tuple[float, float]]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """
    Find the part of the detector over which the background is to have no part left undecided.

    Parameters
    ----------
    cells : list of CutOut
        The exposures.
    within : tuple
        First and last pixel (x, y) of the field that matters most.

    Returns
    -------
    center, half : tuple of float
        Middle and half the sides (x, y) of what the exposures use of that field, or of all they
        use where they use nothing of it [pixel].
    """
    used = [c.reach for c in cells]
    low, high = np.array(within, float)
    if used:
        first, last = np.min(used, axis=0)[:, 0], np.max(used, axis=0)[:, 1]
        low, high = np.maximum(low, first), np.minimum(high, last)
        if np.any(low >= high):
            low, high = first, last
    middle, half = (low + high) / 2, np.maximum((high - low) / 2, 1)
    return tuple(middle.tolist()), tuple(half.tolist())


def _count_shared(cells, pairs, group, names, keep, run) -> list[Kept]:
    """Count how many exposures see each cell of each exposure."""
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    ends = np.searchsorted(both[:, 0], np.arange(len(cells) + 1))
    order = np.argsort(group, kind="stable")

    def tasks():
        for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
            wanted = [(k, both[ends[k] : ends[k + 1], 1].tolist()) for k in members.tolist()]
            needed = {k for member, others in wanted for k in (member, *others)}
            yield _Counting(_called(names, wanted[0][0]), wanted, {k: cells[k] for k in needed}, keep)

    counted = [found for block in run(_count_block, tasks()) for found in block] if cells else []
    return [kept for _, kept in sorted(zip(order.tolist(), counted, strict=True), key=lambda found: found[0])]


def _count_block(task) -> list[Kept]:
    return [
        task.keep(f"{k}_shared", sky_cells.shared_by(task.cells[k], [task.cells[other] for other in others]))
        for k, others in task.wanted
    ]


def _called(names, k):
    return f"{names[k]} with its neighbours"


def _blocks(pairs, group) -> Iterator[np.ndarray]:
    """Divide pairs so that those of one block are of few exposures."""
    ends = np.sort(group[pairs], axis=1)
    order = np.lexsort((ends[:, 1], ends[:, 0]))
    block, members = [], set()
    starts = np.flatnonzero(np.any(np.diff(ends[order], axis=0), axis=1)) + 1
    for part in np.split(order, starts):
        own = set(pairs[part].ravel().tolist())
        if block and len(members | own) > _BLOCK:
            yield np.sort(np.concatenate(block))
            block, members = [], set()
        block.append(part)
        members |= own
    if block:
        yield np.sort(np.concatenate(block))


def _compare_all(cells, shared, pairs, group, names, how, run) -> tuple[Network, np.ndarray]:
    blocks = list(_blocks(pairs, group)) if len(pairs) else []
    tasks = (
        _Block(
            _called(names, pairs[block[0], 0]),
            pairs[block].tolist(),
            {k: cells[k] for k in np.unique(pairs[block]).tolist()},
            {k: shared[k] for k in np.unique(pairs[block, 0]).tolist()},
            **how,
        )
        for block in blocks
    )
    found = np.zeros(len(pairs), _row(len(how["background"])))
    for block, rows in zip(blocks, run(_compare_block, tasks), strict=True):
        found[block] = rows
    compared = found["n_cells"] > 0
    if not compared.all():
        found, pairs = found[compared], pairs[compared]
    columns = {name: found[name] for name in ("difference", "terms", "covariance", "slope", "independence")}
    error = sky_network.floored(found["error"])
    return Network(len(cells), pairs[:, 0], pairs[:, 1], error=error, **columns), found["n_cells"]


def _row(k):
    """Numbers that are kept of a pair; with a background of order 4 these are 700 bytes."""
    half = k * (k + 1) // 2
    numbers = [(name, float) for name in ("difference", "error", "independence")]
    return np.dtype(
        [
            *numbers,
            ("n_cells", int),
            ("terms", float, k),
            ("slope", float, k),
            ("covariance", np.float32, half),
        ]
    )


def _compare_block(task) -> np.ndarray:
    cells = {k: cut_out.load() for k, cut_out in task.cells.items()}
    terms = {k: task.polynomial.evaluate(*exposure.detector_positions()) for k, exposure in cells.items()}
    shared = {k: kept.load() for k, kept in task.shared.items()}
    rows = np.zeros(len(task.pairs), _row(len(task.background)))
    for row, (i, j) in zip(rows, task.pairs, strict=True):
        found = compare(
            cells[i],
            cells[j],
            shared[i],
            terms=(terms[i], terms[j]),
            background=task.background,
            clipping=task.clipping,
        )
        if found is not None:
            for name in ("difference", "error", "independence", "n_cells", "terms", "slope"):
                row[name] = getattr(found, name)
            row["covariance"] = sky_network.pack(found.covariance)
    return rows
