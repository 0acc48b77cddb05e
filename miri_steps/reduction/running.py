"""Jobs in processes: one that dies takes nobody with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool

from miri_steps import workers
from miri_steps.reduction.jobs import Job, Outcome, execute
from miri_steps.reduction.ledger import Ledger

__all__ = ["run"]

# How often the log of a running job is looked at [s].
_GLANCE = 2.0
_STEP_LINE = re.compile(rb"Step (\w+) running with args")
_DIED = Outcome(0.0, "its process was killed: was there enough memory? Fewer cores need less")


def run(
    jobs: Sequence[Job], ledger: Ledger, cores: int, tell: Callable[[str], None]
) -> Iterator[tuple[Job, Outcome]]:
    """
    Run jobs in processes.

    Where a process dies, all jobs that were under way are tried once more, each alone and with as little
    memory as it can do with, so that only the one that killed it has failed.

    Parameters
    ----------
    jobs : sequence of Job
        The jobs.
    ledger : Ledger
        Says where they write to.
    cores : int
        Processor cores: so many jobs at a time, and what is left over for the Steps inside each.
    tell : callable
        Called with a line where long work has got on.

    Yields
    ------
    Job, Outcome
        As they end.

    Raises
    ------
    RuntimeError
        If no process can be started.
    """
    left, suspects, has_begun = list(jobs), [], False
    while left:
        unfinished = []
        for job, outcome in _pooled(left, ledger, cores, tell):
            if outcome is None:
                unfinished.append(job)
            else:
                has_begun = True
                yield job, outcome
        begun = [job for job in unfinished if ledger.work_of(job).exists()]
        has_begun = has_begun or bool(begun)
        # One that died before it began anything: the first is as good a guess as any.
        suspects += begun or unfinished[:1]
        left = [job for job in unfinished if job not in suspects]
        if len(suspects) > 1 and not has_begun:
            raise RuntimeError(
                "no process could be started; a script that calls reduce must do so under "
                "if __name__ == '__main__'"
            )
    for job in suspects:
        tell(f"a process was killed: {job.name} is tried once more, alone")
        ledger.clear(job)
        ((_, outcome),) = _pooled([job], ledger, 1, tell, frugal=True)
        yield job, outcome or _DIED


def _pooled(
    jobs: Sequence[Job], ledger: Ledger, cores: int, tell: Callable[[str], None], frugal: bool = False
) -> Iterator[tuple[Job, Outcome | None]]:
    """Run jobs in one pool; None for those that it did not live to end."""
    at_once = min(cores, len(jobs))
    with workers.open_pool(at_once) as pool:
        futures, lost = {}, []
        for job in jobs:
            try:
                where = ledger.work_of(job), ledger.log_of(job)
                futures[pool.submit(execute, job, *where, str(max(1, cores // at_once)), frugal)] = job
            except BrokenProcessPool:
                lost.append(job)
        for future in _as_completed(futures, ledger, tell):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool:
                lost.append(futures[future])
    yield from ((job, None) for job in lost)


def _as_completed(
    futures: dict[Future, Job], ledger: Ledger, tell: Callable[[str], None]
) -> Iterator[Future]:
    """Wait for what ends next, and tell meanwhile where the making of a mosaic has got to."""
    waiting, told = set(futures), {}
    while waiting:
        ended, waiting = wait(waiting, timeout=_GLANCE, return_when=FIRST_COMPLETED)
        yield from sorted(ended, key=lambda future: futures[future].name)
        for job in sorted((futures[future] for future in waiting), key=lambda job: job.name):
            step = _latest_step(ledger.log_of(job)) if job.stage.name == "image3" else None
            if step and told.get(job.key) != step:
                told[job.key] = step
                tell(f"stage3 {job.name}: {step} ...")


def _latest_step(log):
    """Find which Step a log says is running."""
    try:
        found = _STEP_LINE.findall(log.read_bytes())
    except OSError:
        return None
    return found[-1].decode() if found else None
