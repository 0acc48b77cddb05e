"""What the benchmarks share: tables for the docs, cases by name, runs in a process of their own."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

# Put before the code of a run, and after it.
_BEFORE = """
import json, os, sys, time, warnings
warnings.simplefilter("ignore")
os.environ["STPIPE_DISABLE_CRDS_STEPPARS"] = "true"
given = json.loads(sys.argv[1])
found = {}
"""
_AFTER = """
# ru_maxrss is handed down by the process that started this one; VmHWM is our own.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
found["peak"] = int(status["VmHWM"].split()[0]) / 1024
print(json.dumps(found))
"""


def run_apart(code: str, timeout: float | None = None, **given: object) -> dict:
    """
    Run code in a process of its own, in a fresh folder.

    Parameters
    ----------
    code : str
        Reads the dictionary ``given`` and fills the dictionary ``found``.
    timeout : float, optional
        How long it may take [s].
    **given : object
        What it reads.

    Returns
    -------
    dict
        What it found, and the peak memory of the process, ``peak`` [MB].
    """
    command = [sys.executable, "-c", _BEFORE + code + _AFTER, json.dumps(given)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=folder, check=False, timeout=timeout
        )
    if done.returncode:
        raise RuntimeError(f"a run of {given} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def strun(folder: Path, *words: str) -> None:
    """
    Run strun as a user does, in a folder.

    Parameters
    ----------
    folder : Path
        Where it runs.
    *words : str
        Its command line.
    """
    command = [str(Path(sys.executable).with_name("strun")), "--disable-crds-steppars", *words]
    # CRDS is asked for step parameters even by sub-steps that hear nothing of the option.
    environment = os.environ | {"STPIPE_DISABLE_CRDS_STEPPARS": "true"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """
    Print an RST table of comma-separated values.

    Parameters
    ----------
    title : str
        Its title; may be empty.
    head : sequence of str
        First row.
    rows : sequence of sequences of str
        The others.
    """
    print(f"\n.. csv-table:: {title}".rstrip() + "\n   :header-rows: 1\n")
    for line in (head, *rows):
        print("   " + ", ".join(f'"{cell}"' if "," in cell or not cell else cell for cell in line))
    sys.stdout.flush()


def main(description: str, cases: dict[str, Callable[[Path], None]]) -> None:
    """
    Run the cases asked for on the command line.

    Parameters
    ----------
    description : str
        What is measured.
    cases : dict
        Functions of the folder for files, by name.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(cases)}; all when not given")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "miri_steps_benchmarks")
    given = parser.parse_args()
    unknown = set(given.cases) - set(cases)
    if unknown:
        parser.error(f"cases must be of {', '.join(cases)}, got {', '.join(sorted(unknown))}")
    given.folder.mkdir(parents=True, exist_ok=True)
    print(f".. jwst {version('jwst')}, python {platform.python_version()}, {os.cpu_count()} cores")
    for case in given.cases or cases:
        cases[case](given.folder)
