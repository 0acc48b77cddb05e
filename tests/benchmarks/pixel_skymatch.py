"""
Measure PixelSkyMatchStep beside the stock skymatch: level errors on truth, time and peak memory.

    python tests/benchmarks/pixel_skymatch.py [--folder DIR] [CASE ...]

Every run is a process of its own, and both steps of a case run one after the other, so that their
ratio means something on a noisy machine. Prints one table per case, ready for docs/benchmarks.rst.
The fields (30 MB per exposure) are kept in the folder and used again.
"""

from pathlib import Path

import common
import numpy as np
from astropy.table import Table

from miri_steps import simulate

FOOTPRINTS = Path(__file__).parents[3] / "shared/data/exposure_footprints.ecsv"
CENTER = 80.0, -69.5

RUN = """
if given["step"] == "stock":
    from jwst.skymatch import SkyMatchStep as Step
else:
    from miri_steps import PixelSkyMatchStep as Step
start = time.perf_counter()
library = Step.call(given["association"], configure_log=False, **given["parameters"])
found["seconds"] = time.perf_counter() - start
members = library.asn["products"][0]["members"]
found["levels"] = {
    m["expname"]: library.read_metadata(i)["meta.background.level"] for i, m in enumerate(members)
}
"""


def run(step: str, association: Path, **parameters) -> dict:
    """Run one step on a field in a process of its own; level error against truth added [MJy/sr]."""
    result = common.run_apart(RUN, step=step, association=str(association), parameters=parameters)
    truth = Table.read(str(association).replace("_asn.json", "_truth.ecsv"))
    levels = result.pop("levels")
    off = np.array([levels[name] for name in truth["exposure"]], float) - truth["sky"]
    result["error"] = float(np.std(off))
    return result


def table(title: str, rows: list[tuple[str, dict]]) -> None:
    """Print measured rows as an RST list table, ratios to the first row."""
    first = rows[0][1]
    head = ("run", "level error [MJy/sr]", "time [s]", "ratio", "peak memory [GB]", "ratio")
    lines = [
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
    common.table(title, head, lines)


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


if __name__ == "__main__":
    common.main(__doc__.splitlines()[1], CASES)
