"""
Measure PixelSkyMatchStep beside the stock skymatch: level errors on truth, time and peak memory.

    python tests/benchmarks/pixel_skymatch.py [--folder DIR] [CASE ...]

Every run is a process of its own, and both steps of a case run one after the other, so that their
ratio means something on a noisy machine. Prints one table per case, ready for docs/benchmarks.rst.
The fields (30 MB per exposure) are kept in the folder and used again.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from astropy.table import Table

from miri_steps import simulate

FOOTPRINTS = Path(__file__).parents[3] / "shared/data/exposure_footprints.ecsv"
CENTER = 80.0, -69.5

RUN = """
import json, os, sys, time, warnings
warnings.simplefilter("ignore")
os.environ["STPIPE_DISABLE_CRDS_STEPPARS"] = "true"
name, association, parameters = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
if name == "stock":
    from jwst.skymatch import SkyMatchStep as Step
else:
    from miri_steps import PixelSkyMatchStep as Step
start = time.perf_counter()
library = Step.call(association, configure_log=False, **parameters)
seconds = time.perf_counter() - start
# ru_maxrss is handed down by the process that started this one; VmHWM is our own.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) / 1024
members = library.asn["products"][0]["members"]
levels = {m["expname"]: library.read_metadata(i)["meta.background.level"] for i, m in enumerate(members)}
print(json.dumps({"seconds": seconds, "peak": peak, "levels": levels}))
"""


def run(step: str, association: Path, **parameters) -> dict:
    """Run one step on a field in a process of its own; level error against truth added [MJy/sr]."""
    command = [sys.executable, "-c", RUN, step, str(association), json.dumps(parameters)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"{step} on {association} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    truth = Table.read(str(association).replace("_asn.json", "_truth.ecsv"))
    levels = result.pop("levels")
    off = np.array([levels[name] for name in truth["exposure"]], float) - truth["sky"]
    result["error"] = float(np.std(off))
    return result


def table(title: str, rows: list[tuple[str, dict]]) -> None:
    """Print measured rows as an RST list table, ratios to the first row."""
    first = rows[0][1]
    print(f"\n.. list-table:: {title}\n   :header-rows: 1\n")
    head = ("run", "level error [MJy/sr]", "time [s]", "ratio", "peak memory [GB]", "ratio")
    lines = [head] + [
        (
            label,
            f"{r['error']:.5f}",
            f"{r['seconds']:.1f}",
            f"{r['seconds'] / first['seconds']:.2f}",
            f"{r['peak'] / 1024:.2f}",
            f"{r['peak'] / first['peak']:.2f}",
        )
        for label, r in rows
    ]
    for line in lines:
        print("\n".join(f"   {'* -' if k == 0 else '  -'} {cell}" for k, cell in enumerate(line)))
    sys.stdout.flush()


def grid_field(folder: Path, name: str, side: int, step: float, pattern: np.ndarray | None = None) -> Path:
    """Simulate side x side dithers over emission of 5 MJy/sr; visits are rows, sky levels scatter."""
    target = folder / name / f"{name}_asn.json"
    if target.exists():
        return target
    scene = (
        simulate.Scene(*CENTER)
        .with_stars(300, radius=190.0, flux=(0.005, 1.0), seed=3)
        .with_emission(5.0, radius=190.0, seed=1)
    )
    plan = simulate.grid(*CENTER, n=(side, side), step=step, per_visit=side, pa=30.0)
    random = np.random.default_rng(5)
    sky = 3 + np.repeat(random.normal(0, 0.5, side), side) + random.normal(0, 0.05, side**2)
    field = simulate.observe(scene, plan, "F770W", sky=sky, pattern=pattern, noise=0.05, poisson=False)
    return simulate.write(field, folder / name, product=name)


def stephans_quintet(folder: Path) -> Path:
    """Simulate the 32 real F770W footprints with the sky levels and the pattern of the issue."""
    target = folder / "quintet" / "quintet_asn.json"
    if target.exists():
        return target
    rows = Table.read(FOOTPRINTS)
    plan = simulate.from_footprints(rows[(rows["field"] == "SQ") & (rows["filter"] == "F770W")])
    center = [np.mean([getattr(pointing, axis) for pointing in plan]) for axis in ("ra", "dec")]
    scene = (
        simulate.Scene(*center)
        .with_stars(400, radius=200.0, flux=(0.003, 0.5), seed=3)
        .with_emission(5.0, radius=220.0, seed=2, style="filaments")
    )
    visits = sorted({pointing.visit_id for pointing in plan})
    levels = dict(zip(visits, (7.20, 7.22, 6.02, 6.06), strict=True))
    field = simulate.observe(
        scene,
        plan,
        "F770W",
        sky=np.array([levels[pointing.visit_id] for pointing in plan]),
        pattern=simulate.dome(0.15) + simulate.columns(0.03, seed=1),
        noise=0.05,
    )
    return simulate.write(field, folder / "quintet", product="quintet")


def accuracy(title: str, field: Path) -> None:
    """Measure level errors of the stock step and of the ways to run ours."""
    runs = [
        ("stock skymatch (mode)", "stock", {}),
        ("order 0", "ours", {"detector_order": 0}),
        ("default", "ours", {}),
        ("default, by visit", "ours", {"grouping": "visit"}),
        ("default, imager only", "ours", {"exclude_regions": ["lyot", "4qpm"]}),
    ]
    table(title, [(label, run(step, field, **parameters)) for label, step, parameters in runs])


def cost(folder: Path, side: int, step: float, stock: bool = True) -> None:
    """Measure time and memory on side x side exposures."""
    field = grid_field(folder, f"grid{side**2}", side, step)
    runs = [("stock skymatch", "stock", {})] if stock else []
    runs += [
        ("default", "ours", {}),
        ("maximum_cores='all'", "ours", {"maximum_cores": "all"}),
        ("in_memory=False", "ours", {"in_memory": False}),
    ]
    if not stock:
        runs = runs[-1:]
    rows = [(label, run(name, field, **parameters)) for label, name, parameters in runs]
    table(f"{side**2} exposures", rows)


CASES = {
    "plain": lambda d: accuracy(
        "4x4 dithers, emission of 5 MJy/sr, no pattern", grid_field(d, "plain", 4, 20.0)
    ),
    "dome": lambda d: accuracy(
        "the same with a dome of 0.5 MJy/sr on the imager field",
        grid_field(d, "dome", 4, 20.0, simulate.dome(0.5)),
    ),
    "dome-aside": lambda d: accuracy(
        "the same with the dome on the middle of the array, so that the imager sees a slope",
        grid_field(d, "dome_aside", 4, 20.0, simulate.dome(0.5, center=(516.0, 512.0))),
    ),
    "quintet": lambda d: accuracy(
        "Stephan's Quintet: 32 real footprints, filaments, dome 0.15, columns 0.03", stephans_quintet(d)
    ),
    "cost16": lambda d: cost(d, 4, 20.0),
    "cost36": lambda d: cost(d, 6, 15.0),
    "cost64": lambda d: cost(d, 8, 12.0),
    "cost144": lambda d: cost(d, 12, 10.0, stock=False),
}


def main() -> None:
    """Run the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all when not given")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "miri_steps_benchmarks")
    given = parser.parse_args()
    unknown = set(given.cases) - set(CASES)
    if unknown:
        parser.error(f"cases must be of {', '.join(CASES)}, got {', '.join(sorted(unknown))}")
    given.folder.mkdir(parents=True, exist_ok=True)
    print(f".. jwst {version('jwst')}, python {platform.python_version()}, {os.cpu_count()} cores")
    for case in given.cases or CASES:
        CASES[case](given.folder)


if __name__ == "__main__":
    main()
