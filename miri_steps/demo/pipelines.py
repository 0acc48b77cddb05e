"""Run the stock pipeline as a user does: ``strun`` in a process of its own, timed and weighed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from miri_steps.demo.field import PRODUCT

_ASSOCIATION = f"exposures/{PRODUCT}_asn.json"
# The pointing is perfect here; the catalogue would need reference files from the network.
_ALWAYS = ("--disable-crds-steppars", "--steps.tweakreg.skip=true", "--steps.source_catalog.skip=true")


@dataclass(frozen=True)
class Run:
    """A run of a pipeline.

    Parameters
    ----------
    name : str
        Name of its folder and of its log.
    title : str
        What it is, in words.
    pipeline : str
        Pipeline or parameter file, as `strun` takes it.
    options : tuple of str
        More of the command line.
    """

    name: str
    title: str
    pipeline: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Parameters
    ----------
    run : Run
        The run.
    mosaic : Path
        Its mosaic.
    seconds : float
        Time from start to end [s].
    memory : float
        Largest memory in use at any time [GB]; not less than that of the demo itself.
    """

    run: Run
    mosaic: Path
    seconds: float
    memory: float


def run(planned: Run, folder: Path, association: str = _ASSOCIATION) -> Result:
    """
    Run a pipeline in the folder of the demo.

    Parameters
    ----------
    planned : Run
        What to run.
    folder : Path
        Where; the products go to a folder in it, named like the run.
    association : str
        The exposures, seen from the folder.

    Returns
    -------
    Result
        The mosaic, and what it took.

    Raises
    ------
    RuntimeError
        If the pipeline fails or leaves no mosaic.
    """
    products = folder / planned.name
    products.mkdir(exist_ok=True)
    words = [planned.pipeline, association, f"--output_dir={planned.name}", *_ALWAYS, *planned.options]
    log = folder / f"{planned.name}.log"
    code, seconds, memory = _time(words, folder, log)
    mosaic = products / f"{PRODUCT}_i2d.fits"
    if code or not mosaic.exists():
        raise RuntimeError(f"{planned.title} failed with exit code {code}, see {log}: {_last_line(log)}")
    return Result(planned, mosaic, seconds, memory)


def _time(words: list[str], folder: Path, log: Path) -> tuple[int, float, float]:
    """Run strun in a folder; give exit code, time [s] and largest memory [GB]."""
    # CRDS is asked for step parameters even by sub-steps that hear nothing of the option.
    environment = os.environ | {"STPIPE_DISABLE_CRDS_STEPPARS": "true"}
    begun = time.monotonic()
    with open(log, "w", encoding="utf-8") as out:
        out.write(f"$ strun {shlex.join(words)}\n")
        out.flush()
        child = subprocess.Popen(
            [_strun(), *words],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            # Only wait4 tells the memory of this child and of no other. A child starts with the peak of the
            # process it was forked from: no run can show less than the demo's own half GB.
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            child.wait()
            raise
    child.returncode = os.waitstatus_to_exitcode(status)
    # Kilobytes on Linux, bytes on macOS.
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return child.returncode, time.monotonic() - begun, usage.ru_maxrss * unit / 1e9


def _strun() -> str:
    beside = Path(sys.executable).with_name("strun")
    found = str(beside) if beside.exists() else shutil.which("strun")
    if found is None:
        raise RuntimeError(f"strun, which comes with jwst, is not in {beside.parent} nor in the PATH")
    return found


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it is empty")
