"""One run of a pipeline: what it needs, and the run itself, in a process or on a worker of a cluster."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

from threadpoolctl import threadpool_limits

from miri_steps.plugin import get_steps
from miri_steps.reduction.settings import Hook, Stage

__all__ = ["Job", "Outcome", "attempt", "attempts", "execute", "fingerprint", "surroundings"]

# What a stage leaves of an exposure, or of a mosaic.
_SUFFIXES = {"detector1": "rate", "image2": "cal", "image3": "i2d"}
# Exposures of one integration, which rate_from_rateints skips, need no remark.
_ALIASES = [alias for _, alias, _ in get_steps() if alias != "rate_from_rateints"]
# Share of the machine's memory that exposures may take; pipelines need some more for their own work.
_MOST_MEMORY = 0.25
# They change how long a run takes, and nothing else.
_WITHOUT_EFFECT = {"maximum_cores", "executor", "in_memory"}
# What a job prints goes to its log by way of the process, which therefore has one job at a time.
_ALONE = threading.Lock()
# What must be the same on a worker: the packages, and the environment as far as it decides about results.
_PACKAGES = "jwst", "miri-steps"
_ENVIRONMENT = "CRDS_CONTEXT", "STPIPE_DISABLE_CRDS_STEPPARS"
# Random part of the name of the folder of an attempt.
_DIGITS = 8


@dataclass(frozen=True)
class Job:
    """
    A run of a pipeline, or of a Step alone.

    Parameters
    ----------
    name : str
        Exposure or mosaic.
    band : str
        Name of the filter.
    stage : Stage
        The pipeline and its parameters.
    given : Path or dict
        What it is given: a file, or an association that names files as they are seen from its folder.
    inputs : tuple of Path
        The files whose content decides about the result.
    hook : Hook, optional
        The Step that is run alone, in the place of the pipeline.
    """

    name: str
    band: str
    stage: Stage
    given: Path | dict
    inputs: tuple[Path, ...]
    hook: Hook | None = None

    @property
    def key(self) -> str:
        """Name that no other job has."""
        return f"{self.stage.name}_{self.name}"

    @property
    def product(self) -> str:
        """Name of the file without which it has failed."""
        return f"{self.name}_{_SUFFIXES[self.stage.name]}.fits"

    def settings(self) -> dict:
        """List what decides about the result beside the inputs, as JSON can hold it."""
        told = self.hook or [self.stage.parameters, self.stage.steps]
        files = {str(path): path.name for path in self.files().values()}
        return {
            # Files by name alone: folders may move, and the content is looked at.
            "parameters": _as_json(told, files),
            "packages": {name: version(name) for name in _PACKAGES},
            "crds_context": os.environ.get("CRDS_CONTEXT"),
        }

    def elsewhere(self) -> Job:
        """
        Say the same to a worker of a cluster.

        Returns
        -------
        Job
            One that names files by absolute paths and keeps to one process.
        """
        given = self.given if isinstance(self.given, dict) else self.given.absolute()
        hook = self.hook and self.hook.elsewhere()
        inputs = tuple(path.absolute() for path in self.inputs)
        return Job(self.name, self.band, self.stage.elsewhere(), given, inputs, hook)

    def files(self) -> dict[str, Path]:
        """List the files whose content decides about the result, those that parameters name among them."""
        return {path.name: path for path in self.inputs} | self._named_files()

    def fingerprints(self) -> dict[str, dict]:
        """Look at the size, date and content of each of them."""
        return {name: fingerprint(path) for name, path in self.files().items()}

    def _named_files(self):
        return {} if self.hook else self.stage.named_files()


@dataclass(frozen=True)
class Outcome:
    """
    How a job ended.

    Parameters
    ----------
    seconds : float
        How long it took [s].
    problem : str
        Why it failed; empty if it did not.
    remark : str
        What is to be said of one that did not fail.
    inputs : dict, optional
        What it was made from, by `Job.fingerprints`, as it was at the beginning.
    work : Path, optional
        Folder that it has written to, where it is not the one that it was told.
    """

    seconds: float
    problem: str = ""
    remark: str = ""
    inputs: dict[str, dict] | None = None
    work: Path | None = None


def fingerprint(path: Path) -> dict:
    """
    Look at a file, to know it again.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    dict
        Its size, date and content.
    """
    status = path.stat()
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": status.st_size, "mtime": status.st_mtime_ns, "sha256": digest}


def surroundings() -> dict[str, str | None]:
    """
    Look at what decides about results and does not come with a job.

    Returns
    -------
    dict
        Versions of packages, and variables of the environment.
    """
    packages = {name: version(name) for name in _PACKAGES}
    return packages | {name: os.environ.get(name) for name in _ENVIRONMENT}


def attempt(
    job: Job, work: Path, log: Path, expected: dict[str, str | None], frugal: bool = False
) -> Outcome:
    """
    Run a job on a worker of a cluster, perhaps not for the first time.

    Of a worker that is lost nobody knows whether it is still writing, so that each attempt has a folder
    of its own. One that comes after another does with as little memory as it can.

    Parameters
    ----------
    job : Job
        The job, with absolute paths.
    work, log : Path
        As in `execute`; the folder's name is the beginning of that of the attempt.
    expected : dict
        What the worker must have, by `surroundings`.
    frugal : bool
        As in `execute`.

    Returns
    -------
    Outcome
        Its end, with the folder of the attempt.

    Raises
    ------
    RuntimeError
        If this worker must not do any job: something else would come out, or not be seen.
    """
    _check_worker(work.parent, expected)
    own = work.with_name(f"{work.name}~{uuid4().hex[:_DIGITS]}")
    # Numerical sums with several threads end in other digits.
    with threadpool_limits(1):
        outcome = execute(job, own, log, "1", frugal or bool(attempts(work)))
    return replace(outcome, work=own)


def attempts(work: Path) -> list[Path]:
    """
    List the folders that attempts at a job have left.

    Parameters
    ----------
    work : Path
        As in `attempt`.

    Returns
    -------
    list of Path
        The folders.
    """
    beginning, length = f"{work.name}~", len(work.name) + 1 + _DIGITS
    names = (name for name in os.listdir(work.parent) if name.startswith(beginning) and len(name) == length)
    return [work.with_name(name) for name in names]


def _check_worker(folder, expected):
    """Stop a worker that does not see the folder, or has not what the reduction has."""
    host, here = socket.gethostname(), surroundings()
    if not folder.is_dir():
        raise RuntimeError(
            f"{folder} must be on a disk that all workers of the cluster share, but is not there on {host}"
        )
    other = [
        f"{name} {here[name]} instead of {value}" for name, value in expected.items() if here[name] != value
    ]
    if other:
        raise RuntimeError(f"workers must have what the reduction has, but {host} has {', '.join(other)}")


def execute(job: Job, work: Path, log: Path, cores: str, frugal: bool = False) -> Outcome:
    """
    Run a job.

    Parameters
    ----------
    job : Job
        The job.
    work : Path
        Folder for everything that it writes; it must not exist.
    log : Path
        File for everything that it says.
    cores : str
        Processes that each Step may use.
    frugal : bool
        Whether to keep exposures on the disk, because there was not enough memory before.

    Returns
    -------
    Outcome
        Its end; what goes wrong is said there and not raised.
    """
    with _ALONE:
        return _execute(job, work, log, cores, frugal)


def _execute(job, work, log, cores, frugal):
    begun = time.monotonic()
    problem, remark, inputs = "", "", None
    try:
        work.mkdir()
        inputs = job.fingerprints()
        with _said_in(log):
            problem = _run_and_tell(job, work, log, cores, frugal)
        if not problem and not (work / job.product).is_file():
            problem = f"it ended without {job.product}"
        remark = "" if problem else _remark(work, log)
    except Exception as error:
        problem = _first_line(error)
    return Outcome(time.monotonic() - begun, problem, remark, inputs)


def _run_and_tell(job, work, log, cores, frugal):
    """Run a job, and say why it failed if it did."""
    try:
        _run(job, work, cores, frugal)
    except SystemExit as error:
        # CRDS ends the program where it finds no reference file.
        traceback.print_exc()
        return f"the pipeline ended the program: {_last_error(log) or error}"
    except Exception as error:
        traceback.print_exc()
        return _first_line(error)
    return ""


def _run(job, work, cores, frugal=False):
    given = job.given
    if isinstance(given, dict):
        given = work / f"{job.name}_asn.json"
        given.write_text(json.dumps(job.given, indent=4), encoding="utf-8")
    if job.hook:
        job.hook.step.call(str(given), **job.hook.parameters).save(str(work / job.product))
        return
    steps = {name: _with_instances(values, work, cores) for name, values in job.stage.steps.items()}
    own = {"in_memory": not frugal and _fits_in_memory(job.inputs)} if job.stage.name == "image3" else {}
    pipeline = own | job.stage.parameters | {"output_dir": str(work), "save_results": True}
    job.stage.pipeline.call(str(given), steps=steps, **pipeline)


def _fits_in_memory(paths):
    """Tell whether exposures may be held in memory all at once."""
    return sum(path.stat().st_size for path in paths) < _MOST_MEMORY * _memory()


def _memory():
    """Find how much memory this process may use [byte]: the machine's, or what it is granted of it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_memory_of_worker()]
    try:
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        pass
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min(limits if soft == resource.RLIM_INFINITY else [*limits, soft])


def _memory_of_worker():
    """Find what this worker of a cluster is killed for [byte], if it is one."""
    distributed = sys.modules.get("distributed")
    try:
        limit = distributed.get_worker().memory_manager.memory_limit
    except (AttributeError, ValueError):
        return []
    return [limit] if limit else []


def _with_instances(values, work, cores):
    """Make the hooks: as instances they take any parameter, and know where to write."""
    told = dict(values)
    for kind in ("pre_hooks", "post_hooks"):
        if kind in told:
            told[kind] = [_instance(hook, work, cores) for hook in told[kind]]
    return told


def _instance(hook, work, cores):
    if not isinstance(hook, Hook):
        return hook
    step = hook.step(**({"output_dir": str(work)} | hook.parameters))
    if "maximum_cores" not in hook.parameters and hasattr(step, "maximum_cores"):
        step.maximum_cores = cores
    return step


def _remark(work, log):
    """Say which Steps left exposures as they were, and why most of them."""
    from stdatamodels.jwst import datamodels

    skipped, paths = Counter(), sorted(work.glob("*_crf.fits"))
    for path in paths:
        with datamodels.open(path) as model:
            status = model.meta.cal_step.instance
        skipped.update(alias for alias in _ALIASES if status.get(alias) not in (None, "COMPLETE"))
    said = _read(log)
    remarks = []
    for alias, count in sorted(skipped.items()):
        reasons = Counter(re.findall(rf"miri_steps\.steps\.{alias} .*left as it is: (.*)", said))
        why = "".join(f": {reason}" for reason, _ in reasons.most_common(1))
        remarks.append(f"{alias} left {count} of {len(paths)} exposures as they were{why}")
    return "; ".join(remarks)


@contextmanager
def _said_in(log: Path) -> Iterator[None]:
    """Send all that this process prints to a file, whoever prints it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    # A new file: a lost worker of a cluster may still be writing into the old one.
    log.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)


def _last_error(log):
    """Find the last that a log says has gone wrong."""
    return "".join(re.findall(r" (?:ERROR|CRITICAL) -\s*(.*)", _read(log))[-1:])


def _read(log):
    return log.read_text(encoding="utf-8", errors="replace")


def _first_line(error):
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _as_json(value, files):
    """Write nested parameters as JSON holds them, files by name, without what changes no number."""
    if isinstance(value, Hook):
        return [value.alias, _as_json(value.parameters, files)]
    if isinstance(value, dict):
        return {str(key): _as_json(item, files) for key, item in value.items() if key not in _WITHOUT_EFFECT}
    if isinstance(value, list | tuple):
        return [_as_json(item, files) for item in value]
    return files.get(value, value) if isinstance(value, str) else value
