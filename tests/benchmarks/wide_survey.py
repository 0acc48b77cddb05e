"""
Measure how PixelSkyMatchStep grows with the field: time, memory and level error from 16 to 1536 exposures.

    python tests/benchmarks/wide_survey.py [--folder DIR] [CASE ...]

The field is a wide survey: 16 x 12 tiles of four dithers, seen in two epochs at the rolls of a real survey
in two visits, 230 and 242 deg. Exposures have the footprint of the full frame, but pixels eight times as
large, so that 1536 of them take 0.4 GB and not 30. Smaller fields are blocks of tiles around the middle.

Every run is a process of its own. The files are kept in the folder and used again, and so are the results,
from which the case ``figure`` draws docs/_static/wide_survey.png. The case ``levels`` solves for the levels
of simulated differences alone, up to 10 000 exposures. The case ``memory`` measures the other steps, on tiles
of SUB64 whose pixels are those of the detector.
"""

import json
import subprocess
import time
from pathlib import Path

import common
import numpy as np
from astropy import wcs as fits_wcs
from astropy.modeling.models import Scale, Shift
from gwcs import WCS
from scipy.spatial import cKDTree
from stdatamodels.jwst import datamodels

from miri_steps import detector, simulate
from miri_steps.algorithms import sky_levels, sky_network
from miri_steps.simulate import metadata

CENTER = 80.0, -69.5
SCENE = simulate.Scene(*CENTER).with_emission(5.0, radius=900.0, seed=1)
# East and North of the middle [arcsec].
TAN = fits_wcs.WCS({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": CENTER[0], "CRVAL2": CENTER[1],
               "CRPIX1": 1, "CRPIX2": 1, "CDELT1": 1 / 3600, "CDELT2": 1 / 3600})  # fmt: skip
NOISE = 0.05
ROLLS = 230.0, 242.0
TILES, DITHERS, BIN = (16, 12), 4, 8
# Blocks of tiles around the middle, by the number of their exposures in both epochs.
BLOCKS = {16: (2, 1), 64: (4, 2), 128: (4, 4), 256: (8, 4), 1024: (16, 8), 1536: (16, 12)}
# The stock step is stopped after this [s].
PATIENCE = 1500
# Numbers on the axes of the figure.
TICKS = 16, 64, 256, 1024
# The other steps: tiles of four SUB64 dithers [arcsec], stars enough for all, integrations of a rate.
SMALL_TILES, SMALL_STEP, SMALL_STARS, NINTS = (25, 10), (6.0, 6.0), 3000, 4
BAD = datamodels.dqflags.pixel["DO_NOT_USE"] | datamodels.dqflags.pixel["NON_SCIENCE"]

# Seconds of the cores, children included: a machine that does other work has other seconds of the clock.
CLOCK = """
import resource
def of_cores():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
"""

RUN = CLOCK + """
if given["step"] == "stock":
    from jwst.skymatch import SkyMatchStep as Step
else:
    from miri_steps import PixelSkyMatchStep as Step
start, begun = time.perf_counter(), of_cores()
library = Step.call(given["association"], configure_log=False, **given["parameters"])
found["seconds"], found["cpu"] = time.perf_counter() - start, of_cores() - begun
members = library.asn["products"][0]["members"]
found["levels"] = [library.read_metadata(i)["meta.background.level"] for i in range(len(members))]
del library
"""

# Buffers of fixed size are as full of small frames as they are of full ones.
OTHERS = """
import miri_steps
if given["step"] == "SuperBackgroundStep":
    from miri_steps.steps import super_background_samples as samples
    for name in ("_BLOCK", "_LEVEL_SAMPLES"):
        setattr(samples, name, int(getattr(samples, name) * given["part"]))
start = time.perf_counter()
step = getattr(miri_steps, given["step"])
library = step.call(given["association"], configure_log=False, in_memory=False, **given["parameters"])
found["seconds"] = time.perf_counter() - start
del library
"""

# What cannot be avoided: each file opened, all of it read, and written, once.
FLOOR = CLOCK + """
from stdatamodels.jwst import datamodels
begun = of_cores()
for name in given["files"]:
    with datamodels.open(name) as model:
        model.data, model.err, model.dq, model.meta.wcs
        model.save("once.fits")
found["cpu"] = of_cores() - begun
"""


def survey(folder: Path, number: int) -> Path:
    """Write what is not there yet of the exposures of a block, and an association of them."""
    plan, sky = _plan()
    exposures = folder / "exposures"
    exposures.mkdir(parents=True, exist_ok=True)
    wanted = np.flatnonzero(_in_block(*BLOCKS[number])).tolist()
    names = [f"{plan[k].name}_cal.fits" for k in wanted]
    for k, name in zip(wanted, names, strict=True):
        if not (exposures / name).exists():
            _exposure(plan[k], sky[k], seed=k).save(exposures / name)
    members = [{"expname": str(exposures / name), "exptype": "science"} for name in names]
    path = folder / f"survey_{number}_asn.json"
    product = {"name": f"survey_{number}", "members": members}
    path.write_text(json.dumps({"asn_type": "image3", "asn_id": "a3001", "products": [product]}))
    return path


def _plan():
    """Plan the whole survey, and draw the level of the sky in each of its exposures."""
    plan = [
        pointing
        for epoch, roll in enumerate(ROLLS, start=1)
        for pointing in simulate.mosaic(
            *CENTER, tiles=TILES, dithers=DITHERS, pa=roll, observation=epoch, start_time=6e4 + 180 * epoch
        )
    ]
    random = np.random.default_rng(7)
    visits = np.repeat(random.normal(0, 0.5, len(plan) // DITHERS), DITHERS)
    return plan, 5 + visits + random.normal(0, 0.05, len(plan))


def _in_block(columns, rows):
    """Tell the exposures of the tiles around the middle."""
    column, row = np.meshgrid(np.arange(TILES[0]), np.arange(TILES[1]))
    left, low = (TILES[0] - columns) // 2, (TILES[1] - rows) // 2
    inside = (column >= left) & (column < left + columns) & (row >= low) & (row < low + rows)
    return np.tile(np.repeat(inside.ravel(), DITHERS), len(ROLLS))


def _exposure(pointing, sky, seed):
    """Look at the scene with large pixels; NOISE is that of a pixel of the detector."""
    shape = tuple(size // BIN for size in detector.SHAPE)
    model = datamodels.ImageModel(shape)
    describe = {"filter_name": "F770W", "subarray": "FULL", "exptype": "MIR_IMAGE", "target": CENTER}
    metadata.describe(model, pointing, **describe)
    model.meta.wcs = _binned_wcs(model.meta.wcs)
    model.meta.subarray.ysize, model.meta.subarray.xsize = shape
    plane = TAN.wcs_world2pix(
        np.stack(model.meta.wcs(*np.meshgrid(*map(np.arange, shape[::-1]))), -1).reshape(-1, 2), 0
    )
    light = SCENE.brightness(*plane.T, BIN * detector.PIXEL_SCALE).reshape(shape)
    noise = np.random.default_rng(seed).normal(0, NOISE / BIN, shape)
    blind = ~detector.region_mask(["imager", "lyot", "4qpm"])[BIN // 2 :: BIN, BIN // 2 :: BIN][
        : shape[0], : shape[1]
    ]
    model.data = np.where(blind, np.nan, light + sky + noise).astype(np.float32)
    model.err = np.where(blind, np.nan, NOISE / BIN).astype(np.float32)
    model.dq = np.where(blind, BAD, 0).astype(np.uint32)
    return model


def _binned_wcs(wcs):
    first, *others = wcs.pipeline
    middle = (BIN - 1) / 2
    to_pixels = (Scale(BIN) & Scale(BIN)) | (Shift(middle) & Shift(middle))
    return WCS(
        [(first.frame, to_pixels | first.transform), *((step.frame, step.transform) for step in others)]
    )


def measure(folder: Path, number: int, label: str) -> dict:
    """Run one of the steps on a block, unless that was done before."""
    path = folder / f"result_{number}_{label}.json"
    if path.exists():
        return json.loads(path.read_text())
    association = survey(folder, number)
    step, parameters = RUNS[label]
    found = common.run_apart(
        RUN, timeout=PATIENCE if step == "stock" else None, step=step, association=str(association),
        parameters=parameters,
    )  # fmt: skip
    sky = _plan()[1][_in_block(*BLOCKS[number])]
    found["error"] = float(np.std(np.array(found.pop("levels"), float) - sky))
    path.write_text(json.dumps(found))
    return found


RUNS = {
    "in_memory=False": ("ours", {"in_memory": False}),
    "in_memory=False, two processes": ("ours", {"in_memory": False, "maximum_cores": "2"}),
    "stock": ("stock", {"in_memory": False}),
}


def grow(folder: Path, numbers: list[int]) -> None:
    """Measure the blocks, smallest first; a step that ran out of time is not asked again."""
    rows, late = [], set()
    for number in numbers:
        once = floor(folder, number)
        for label in RUNS:
            if label in late:
                continue
            try:
                found = measure(folder, number, label)
            except subprocess.TimeoutExpired:
                late.add(label)
                rows.append((str(number), label, f"above {PATIENCE}", "", "", "", ""))
                continue
            each = found["cpu"] / number
            rows.append(
                (str(number), label, f"{found['seconds']:.0f}", f"{each:.2f}", f"{each / once:.1f}",
                 f"{found['peak'] / 1024:.3f}", f"{found['error']:.5f}")
            )  # fmt: skip
    head = "exposures", "run", "time [s]", "cores, per exposure [s]", "over reading and writing once"
    common.table("wide survey", (*head, "peak memory [GB]", "level error [MJy/sr]"), rows)


def floor(folder: Path, number: int) -> float:
    """Measure what opening, reading and writing a file once takes [s of a core]."""
    members = json.loads(survey(folder, number).read_text())["products"][0]["members"]
    files = [member["expname"] for member in members[:32]]
    return common.run_apart(FLOOR, files=files)["cpu"] / len(files)


def remember(folder: Path, numbers: list[int]) -> None:
    """Measure the peak memory of the other steps against the number of their exposures."""
    small_frames(folder)
    rows = []
    for step, suffix in (
        ("RateFromRateintsStep", "rateints"),
        ("MedianHotPixelStep", "cal"),
        ("TileAstrometryStep", "cal"),
        ("SuperBackgroundStep", "cal"),
    ):
        for number in numbers:
            found = measure_other(folder, step, suffix, number)
            rows.append(
                (step, str(number), f"{found['seconds']:.0f}", f"{found['seconds'] / number:.2f}",
                 f"{found['peak'] / 1024:.3f}")
            )  # fmt: skip
    head = "step", "exposures", "time [s]", "per exposure [s]", "peak memory [GB]"
    common.table("memory of the other steps", head, rows)


def small_frames(folder: Path) -> None:
    """Write tiles of small exposures, and what their rates are made of, unless they are there."""
    if folder.exists():
        return
    plan = simulate.mosaic(*CENTER, tiles=SMALL_TILES, dithers=DITHERS, tile_step=SMALL_STEP, dither_step=1.0)
    width = max(size * step for size, step in zip(SMALL_TILES, SMALL_STEP, strict=True))
    scene = simulate.Scene(*CENTER).with_stars(n=SMALL_STARS, radius=width / 2, seed=1)
    observation = simulate.observe(
        scene, plan, "F770W", sky=4.0, noise=NOISE, subarray="SUB64", hot_pixels=0.005
    )
    simulate.write(observation, folder)
    simulate.write_rates(observation, folder, "rates", nints=NINTS)


def measure_other(folder: Path, step: str, suffix: str, number: int) -> dict:
    """Run a step on the first exposures, tile by tile, unless that was done before."""
    path = folder / f"result_{number}_{step}.json"
    if path.exists():
        return json.loads(path.read_text())
    files = sorted(folder.glob(f"jw*_{suffix}.fits"))[:number]
    members = [{"expname": str(file), "exptype": "science"} for file in files]
    association = folder / f"{suffix}_{number}_asn.json"
    products = [{"name": f"{suffix}_{number}", "members": members}]
    association.write_text(json.dumps({"asn_type": "image3", "asn_id": "a3001", "products": products}))
    parameters = {}
    if step == "TileAstrometryStep":
        parameters["reference_catalog"] = str(folder / "rates_refcat.ecsv")
    part = np.prod(detector.SUBARRAYS["SUB64"].shape) / np.prod(detector.SHAPE)
    found = common.run_apart(
        OTHERS, step=step, association=str(association), parameters=parameters, part=float(part)
    )
    path.write_text(json.dumps(found))
    return found


def solve_levels(numbers: list[int]) -> None:
    """Measure what the levels of a wide survey take, from differences with outliers."""
    rows = []
    for number in numbers:
        network, truth, visit = _differences(number)
        start = time.process_time()
        levels = sky_levels.solve(network, np.zeros((0, 0)))
        middle = time.process_time()
        sky_levels.solve_by_group(levels, network, visit)
        end = time.process_time()
        off = np.std(levels.level - truth)
        rows.append(
            (str(number), str(len(network.first)), f"{middle - start:.2f}", f"{end - middle:.2f}",
             f"{off:.5f}", f"{np.median(levels.error):.5f}")
        )  # fmt: skip
    head = "exposures", "pairs", "all pairs [CPU s]", "by visit [CPU s]", "level error", "stated error"
    common.table("levels alone", head, rows)


def _differences(number):
    """Make up the differences of neighbours in a square of tiles of four dithers; one in 50 is wrong."""
    random = np.random.default_rng(3)
    side = int(np.sqrt(number / DITHERS))
    tile = np.repeat(np.arange(side**2), DITHERS)
    place = np.stack(np.divmod(tile, side), -1) + random.normal(0, 0.03, (len(tile), 2))
    first, second = cKDTree(place).query_pairs(1.25, output_type="ndarray").T
    truth = random.normal(0, 1, len(tile))
    error = random.uniform(0.001, 0.01, len(first))
    difference = truth[first] - truth[second] + random.normal(0, error)
    wrong = random.random(len(first)) < 0.02
    difference[wrong] += random.normal(0, 0.2, wrong.sum())
    no_terms = np.zeros((len(first), 0))
    network = sky_network.Network(
        size=len(tile), first=first, second=second, difference=difference, error=error, terms=no_terms,
        covariance=no_terms, slope=no_terms,
    )  # fmt: skip
    return network, truth - truth.mean(), tile


def draw(folder: Path) -> None:
    """Draw time, memory and error against the number of exposures from what was measured before."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    quantities = (
        ("cpu", "time of the cores [s]", 1),
        ("peak", "peak memory [GB]", 1024),
        ("error", "level error [MJy/sr]", 1),
    )
    for label, colour, mark in zip(RUNS, ("C0", "C2", "C1"), "os^", strict=True):
        measured = [
            (number, json.loads(path.read_text()))
            for number in BLOCKS
            if (path := folder / f"result_{number}_{label}.json").exists()
        ]
        for axis, (name, title, unit) in zip(axes, quantities, strict=True):
            numbers = [number for number, _ in measured]
            axis.loglog(
                numbers, [found[name] / unit for _, found in measured], mark + "-", color=colour, label=label
            )
            axis.set(title=title, xlabel="exposures", xticks=TICKS, xticklabels=TICKS)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    axes[1].set_ylim(0.05, 10)
    axes[0].legend(loc="lower right")
    path = Path(__file__).parents[2] / "docs/_static/wide_survey.png"
    figure.savefig(path, dpi=110)
    print(f"drawn: {path}")


CASES = {
    "small": lambda d: grow(d / "wide_survey", [16, 64]),
    "survey": lambda d: grow(d / "wide_survey", [16, 64, 128, 256, 1024]),
    "levels": lambda d: solve_levels([100, 1024, 1600, 10000]),
    "memory": lambda d: remember(d / "small_frames", [100, 1000]),
    "figure": lambda d: draw(d / "wide_survey"),
}

if __name__ == "__main__":
    common.main(__doc__.splitlines()[1], CASES)
