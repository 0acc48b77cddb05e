"""Jobs in processes, or on a cluster: one that dies takes nobody with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext

from miri_steps import workers
from miri_steps.reduction.jobs import Job, Outcome, attempt, execute, surroundings
from miri_steps.reduction.ledger import Ledger

__all__ = ["run"]

# How often the log of a running job is looked at [s].
_GLANCE = 2.0
_STEP_LINE = re.compile(rb"Step (\w+) running with args")
_DIED = "its process was killed: was there enough memory?"
_NOT_BEGUN = (
    "no process could be started; a script that calls reduce must do so under if __name__ == '__main__'"
)
_NOT_BEGUN_THERE = "workers of the cluster die before they begin anything: their own logs may say why"
_NOT_HERE = "a worker has made it, but there is no {} here: all workers must share the disk of the output"
_LOST = "the cluster has dropped its work: does its scheduler still run? The same call goes on from here"


def run(
    jobs: Sequence[Job],
    ledger: Ledger,
    cores: int,
    tell: Callable[[str], None],
    cluster: Executor | None = None,
) -> Iterator[tuple[Job, Outcome]]:
    """
    Run jobs in processes, or on a cluster.

    Where a process dies, all jobs that were under way are tried once more, each alone and with as little
    memory as it can do with, so that only the one that killed it has failed. A cluster tries them again
    by itself, and as often as it is told to; those that it gives up are tried here in the same way.

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
    cluster : Executor, optional
        Cluster to use instead, from `workers.open_cluster`. It decides how many jobs run at a time.

    Yields
    ------
    Job, Outcome
        As they end.

    Raises
    ------
    RuntimeError
        If no process can be started, or the cluster is lost or cannot do the work.
    """
    left, suspects, has_begun = list(jobs), [], False
    while left:
        unfinished = []
        for job, outcome in _pooled(left, ledger, cores, tell, cluster):
            if outcome is None:
                unfinished.append(job)
            else:
                has_begun = True
                yield job, outcome
        begun = [job for job in unfinished if ledger.has_begun(job)]
        has_begun = has_begun or bool(begun)
        # One that died before it began anything: the first is as good a guess as any.
        suspects += begun or unfinished[:1]
        left = [job for job in unfinished if job not in suspects]
        if len(suspects) > 1 and not has_begun:
            raise RuntimeError(_NOT_BEGUN_THERE if cluster else _NOT_BEGUN)
    for job in suspects:
        tell(f"a process was killed: {job.name} is tried once more, alone")
        ledger.clear(job)
        ((_, outcome),) = _pooled([job], ledger, 1, tell, cluster, frugal=True)
        advice = "Workers with more may do" if cluster else "Fewer cores need less"
        yield job, outcome or Outcome(0.0, f"{_DIED} {advice}")


def _pooled(
    jobs: Sequence[Job],
    ledger: Ledger,
    cores: int,
    tell: Callable[[str], None],
    cluster: Executor | None = None,
    frugal: bool = False,
) -> Iterator[tuple[Job, Outcome | None]]:
    """Run jobs in one pool; None for those that it did not live to end."""
    at_once = min(cores, len(jobs))
    with nullcontext(cluster) if cluster else workers.open_pool(at_once) as pool:
        futures, lost = {}, []
        for job in jobs:
            try:
                work = _work(job, ledger, str(max(1, cores // at_once)), frugal, cluster)
                futures[pool.submit(*work)] = job
            except BrokenProcessPool:
                lost.append(job)
        for job, outcome in _as_completed(futures, ledger, cluster, tell):
            yield job, _adopted(job, outcome, ledger)
    yield from ((job, None) for job in lost)


def _work(job, ledger, cores, frugal, cluster):
    """Say what is to be done, here or on a worker that finds files by absolute paths alone."""
    work, log = ledger.work_of(job), ledger.log_of(job)
    if cluster:
        return attempt, job.elsewhere(), work.absolute(), log.absolute(), surroundings(), frugal
    return execute, job, work, log, cores, frugal


def _outcome(future, cluster):
    """Find how a job has ended; None if that was the end of its process."""
    try:
        return future.result()
    except _deaths(cluster):
        return None
    except CancelledError as error:
        raise RuntimeError(_LOST) from error
    except Exception as error:
        # Jobs raise nothing: others would fare no better.
        raise RuntimeError(f"work could not be begun: {error}") from error


def _deaths(cluster):
    if cluster is None:
        return BrokenProcessPool
    from distributed import KilledWorker

    return KilledWorker


def _adopted(job, outcome, ledger):
    """Take over what an attempt on a cluster has made."""
    if outcome is None or outcome.work is None or outcome.problem:
        return outcome
    try:
        ledger.adopt(job, outcome.work)
    except OSError:
        return Outcome(outcome.seconds, _NOT_HERE.format(outcome.work))
    return outcome


def _as_completed(
    futures: dict[Future, Job], ledger: Ledger, cluster: Executor | None, tell: Callable[[str], None]
) -> Iterator[tuple[Job, Outcome | None]]:
    """Take what ends next, and tell meanwhile where the making of a mosaic has got to."""
    told = {}
    while futures:
        ended = wait(futures, timeout=_GLANCE, return_when=FIRST_COMPLETED).done
        outcomes = [(futures.pop(future), _outcome(future, cluster)) for future in ended]
        # As long as it is kept here a cluster keeps it too, and makes it again if a worker takes it away.
        ended.clear()
        yield from sorted(outcomes, key=lambda pair: pair[0].name)
        for job in sorted(futures.values(), key=lambda job: job.name):
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
