"""Spread work over processes, with the same answer for any number of them."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context

__all__ = ["count", "open_map", "open_pool"]

# How long a process that is to end may take over it [s].
_GRACE = 5.0
_FRACTIONS = {"none": 0, "one": 0, "quarter": 1 / 4, "half": 1 / 2, "all": 1}


def count(maximum_cores: str) -> int:
    """
    Translate ``maximum_cores`` to a number of processes.

    Parameters
    ----------
    maximum_cores : str
        A whole number of at least 1, or "none", "one", "quarter", "half", "all" of the cores
        this process may use.

    Returns
    -------
    int
        At least 1 and at most the number of cores.

    Raises
    ------
    ValueError
        If `maximum_cores` is none of these.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = str(maximum_cores).strip().lower()
    if asked in _FRACTIONS:
        return max(1, int(available * _FRACTIONS[asked]))
    if not asked.isdecimal() or int(asked) < 1:
        raise ValueError(
            f"maximum_cores must be a number of at least 1 or one of {', '.join(_FRACTIONS)}, "
            f"got {maximum_cores!r}"
        )
    return min(int(asked), available)


@contextmanager
def open_map(cores: int) -> Iterator[Callable[[Callable, Iterable], Iterator]]:
    """
    Provide a ``map`` that yields results in order and takes tasks only as they are needed.

    With more than one core, tasks run in fresh processes and at most two per process are under
    way, so that a long series of big tasks never piles up in memory.

    Parameters
    ----------
    cores : int
        Number of processes; 1 stays in this one.

    Yields
    ------
    callable
        Used like `map`.
    """
    if cores == 1:
        yield map
        return
    with open_pool(cores) as executor:

        def run(function, tasks):
            tasks = iter(tasks)
            under_way = deque(executor.submit(function, task) for task in islice(tasks, 2 * cores))
            while under_way:
                result = under_way.popleft().result()
                under_way.extend(executor.submit(function, task) for task in islice(tasks, 1))
                yield result

        yield run


@contextmanager
def open_pool(cores: int) -> Iterator[ProcessPoolExecutor]:
    """
    Open a pool of fresh processes that never outlives this one.

    Processes end within seconds when the block is left, or this process is killed, whatever they are at.

    Parameters
    ----------
    cores : int
        Number of processes.

    Yields
    ------
    ProcessPoolExecutor
        The pool.
    """
    context = get_context("spawn")
    # Nothing is ever sent: the far end is closed when this process ends, and that is heard.
    far_end, near_end = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(cores, mp_context=context, initializer=_end_with, initargs=(far_end,))
    try:
        yield executor
    except BaseException:
        near_end.close()
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        near_end.close()
        far_end.close()


def _end_with(far_end):
    # The keyboard interrupts the process that all others belong to; they end when it tells them to.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_wait_and_end, args=(far_end,), daemon=True).start()


def _interrupt(*_):
    raise SystemExit


def _wait_and_end(far_end):
    try:
        far_end.recv_bytes()
    except (EOFError, OSError):
        # Politely first, so that what the work has opened is closed.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE)
        os._exit(1)
