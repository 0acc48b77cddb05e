"""Spread work over processes or a cluster, with the same answer for any number of them."""

import json
import logging
import os
import re
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from importlib.metadata import version
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from threadpoolctl import threadpool_limits

__all__ = ["count", "open_cluster", "open_map", "open_pool"]

# Only loggers below "stpipe" are heard inside the stock pipelines.
log = logging.getLogger(f"stpipe.{__name__}")

# How long a process that is to end may take over it, and a cluster to answer [s].
_GRACE, _PATIENCE = 5.0, 30.0
_FRACTIONS = {"none": 0, "one": 0, "quarter": 1 / 4, "half": 1 / 2, "all": 1}
# Tasks that are handed out ahead, for each process.
_AHEAD = 2
# Threads of numerical libraries, which read these when they are loaded.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# What the digits of an answer depend on.
_PACKAGES = "miri-steps", "jwst", "numpy", "scipy"
_LOST = "the cluster has dropped the work: does its scheduler still run?"

Map = Callable[[Callable, Iterable], Iterator]


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
def open_map(cores: int, executor: str | None = None) -> Iterator[Map]:
    """
    Provide a ``map`` that yields results in order and takes tasks only as they are needed.

    Tasks run in this process, in fresh ones, or on a cluster. At most two per process are under
    way, so that a long series of big tasks never piles up in memory. Numerical libraries have one thread
    everywhere, in this process as long as the block lasts: with more their sums end in other digits.

    What goes wrong in a task that has a ``name`` is told with this name. A task whose process dies is
    tried once more, by itself.

    Parameters
    ----------
    cores : int
        Number of processes; 1 stays in this one.
    executor : str, optional
        Scheduler of a Dask cluster to use instead: its address, or the file that it has written.

    Yields
    ------
    callable
        Used like `map`.

    Raises
    ------
    OSError, ValueError
        If there is no such cluster, or it cannot be used; see `open_cluster`.
    RuntimeError
        From a task, if its worker has other versions of packages.
    """
    with threadpool_limits(1), _terminated_politely(), ExitStack() as opened:
        if (executor or "").strip():
            pool, count_workers = opened.enter_context(open_cluster(executor))
            yield _map_over(partial(pool.submit, _on_worker, _versions()), count_workers)
        elif cores == 1:
            yield _map_here
        else:
            processes = opened.enter_context(_Processes(cores))
            yield _map_over(processes.submit, lambda: cores)


def _map_here(function, tasks):
    for task in tasks:
        with _named(task):
            result = function(task)
        yield result


def _map_over(submit, count_processes):
    def run(function, tasks):
        tasks = iter(tasks)
        under_way, has_worked = deque(), False

        def hand_out():
            # Counted anew each time: workers of a cluster come and go.
            free = max(1, _AHEAD * count_processes() - len(under_way))
            under_way.extend((task, submit(function, task)) for task in islice(tasks, free))

        hand_out()
        while under_way:
            task, future = under_way.popleft()
            with _named(task):
                try:
                    result = future.result()
                except CancelledError as error:
                    raise RuntimeError(_LOST) from error
                except BrokenProcessPool:
                    # Whoever has killed it: the first goes alone, and the others go on behind it.
                    result = _alone(function, task, has_worked)
                    under_way = deque(_again(function, submit, under_way))
            has_worked = True
            hand_out()
            yield result

    return run


def _alone(function, task, has_worked):
    """Try a task once more, in a process of its own."""
    log.warning("A process died: %s is tried again.", getattr(task, "name", "its work"))
    try:
        with open_pool(1) as pool:
            return pool.submit(function, task).result()
    except BrokenProcessPool as error:
        if has_worked:
            raise RuntimeError(
                "a process was killed twice over the same work: was there enough memory? Fewer cores "
                "need less"
            ) from error
        raise RuntimeError(
            "processes died before any work was done: a script must keep its calls under "
            "if __name__ == '__main__', and there must be enough memory"
        ) from error


def _again(function, submit, under_way):
    """Hand out again what was lost with a process."""
    for task, future in under_way:
        is_lost = isinstance(future.exception(), BrokenProcessPool)
        yield task, submit(function, task) if is_lost else future


def _on_worker(expected, function, task):
    """Do a task on a worker of a cluster, which may be another installation."""
    here = _versions()
    other = [
        f"{name} {here[name]} instead of {wanted}"
        for name, wanted in expected.items()
        if here[name] != wanted
    ]
    if other:
        raise RuntimeError(
            "workers must have the packages in the same versions, but "
            f"{socket.gethostname()} has {', '.join(other)}"
        )
    # Workers under a nanny are told so by their environment; others are not.
    with threadpool_limits(1):
        return function(task)


@cache
def _versions():
    return {name: version(name) for name in _PACKAGES}


@contextmanager
def _terminated_politely():
    """Let a batch system that ends this process leave time to remove scratch files."""
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _named(task):
    """Say of an error which task it came from."""
    try:
        yield
    except Exception as error:
        if getattr(task, "name", None):
            error.add_note(f"This was {task.name}.")
        raise


class _Processes:
    """Processes that are started when they are first needed, and anew after one of them has died."""

    def __init__(self, cores):
        self.cores, self._pool, self._open = cores, None, ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        return self._open.__exit__(*problem)

    def submit(self, function, task) -> Future:
        for _ in range(2):
            try:
                self._pool = self._pool or self._open.enter_context(open_pool(self.cores))
                return self._pool.submit(function, task)
            except BrokenProcessPool as error:
                died = error
                self._open.close()
                self._pool = None
        # It died again at once: told where the result is asked for.
        failed = Future()
        failed.set_exception(died)
        return failed


@contextmanager
def open_pool(cores: int) -> Iterator[ProcessPoolExecutor]:
    """
    Open a pool of fresh processes that never outlives this one.

    Processes end within seconds when the block is left, or this process is killed, whatever they are at.
    Each has one thread for numerical work.

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
        with _single_threads():
            yield executor
    except BaseException:
        near_end.close()
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        near_end.close()
        far_end.close()


@contextmanager
def _single_threads():
    """Let processes that are started meanwhile have one thread for numerical work; this one keeps its own."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _end_with(far_end):
    # The keyboard interrupts the process that all others belong to; they end when it tells them to.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_wait_and_end, args=(far_end,), daemon=True).start()


def _interrupt(number, _):
    # As a shell tells of a process that a signal has ended.
    raise SystemExit(128 + number)


def _wait_and_end(far_end):
    try:
        far_end.recv_bytes()
    except (EOFError, OSError):
        # Politely first, so that what the work has opened is closed.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE)
        os._exit(1)


@contextmanager
def open_cluster(executor: str) -> Iterator[tuple[Executor, Callable[[], int]]]:
    """
    Connect to a Dask cluster.

    Dask itself tries work again whose worker has died. When the block is left, what is still under way
    is cancelled; the cluster stays.

    Parameters
    ----------
    executor : str
        Address of its scheduler, or the file that the scheduler has written (``--scheduler-file``), whose
        ending ``.json`` may be left out: a hook must not have a dot in its parameters.

    Yields
    ------
    Executor, callable
        The cluster as an executor of `concurrent.futures`, and what counts its workers, at least 1.

    Raises
    ------
    FileNotFoundError, OSError
        If there is no such file, or no scheduler answers.
    ModuleNotFoundError
        If ``dask.distributed`` is not installed.
    ValueError
        If workers have several threads: jwst does not work in threads.
    """
    address = _address(executor.strip())
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("executor needs dask.distributed: pip install miri-steps[dask]") from error
    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise OSError(
            f"executor must be the scheduler of a running Dask cluster, but nothing answers at {address}"
        ) from error
    with client:
        number = _count_workers(client)
        log.info("Work goes to %d workers of %s", number, executor)
        if not number:
            log.warning("The cluster has no worker yet: work waits for the first.")
        pool = client.get_executor(pure=False)
        try:
            yield pool, lambda: max(1, _count_workers(client))
        finally:
            pool.shutdown(wait=False)


def _address(executor):
    """Tell the address of a scheduler, from its file or as it was given."""
    if re.fullmatch(r"inproc://.+|(\w+://)?[\w.\-\[\]:]+:\d+", executor):
        return executor
    file = Path(executor).expanduser()
    for path in (file, Path(f"{file}.json")):
        if path.is_file():
            return _address_in(path)
    raise FileNotFoundError(
        "executor must be the address of a Dask scheduler (tcp://host:port) or its scheduler file, but there "
        f"is no file {executor}"
    )


def _address_in(path):
    try:
        return json.loads(path.read_text())["address"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"executor must be the file that a Dask scheduler has written, with its address, got {path}"
        ) from error


def _count_workers(client):
    try:
        threads = client.nthreads()
    except OSError as error:
        raise RuntimeError(_LOST) from error
    for worker, number in threads.items():
        if number != 1:
            raise ValueError(
                f"workers of the cluster must have 1 thread each (--nthreads 1), but {worker} has {number}"
            )
    return len(threads)
