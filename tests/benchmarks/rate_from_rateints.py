"""
Measure RateFromRateintsStep on simulated truth, beside jwst's own rate, and its cost.

    python tests/benchmarks/rate_from_rateints.py [--folder DIR] [CASE ...]

Prints tables ready for docs/benchmarks.rst. Files go to a fresh folder inside DIR and are deleted.
"""

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps import RateFromRateintsStep, detector, simulate
from miri_steps.algorithms import integrations
from miri_steps.steps import integration_planes

CENTER = 80.0, -69.5
FILTER, NOISE, SKY = "F770W", 0.05, 4.0
N_INTEGRATIONS = 8
METHODS = {
    "mean": {"combine": "mean"},
    "ivar": {"combine": "ivar"},
    "median": {"combine": "median"},
    **{f"clip, {sigma}": {"combine": "clip", "sigma": sigma} for sigma in (2.5, 2.7, 3.0, 4.0, 5.0)},
}
# Those that are shown where there is no room for all.
SHOWN = "mean", "ivar", "median", f"clip, {RateFromRateintsStep().sigma}"
HEIGHTS = 3.0, 4.0, 5.0, 7.0, 10.0, 30.0
COUNTS = 2, 3, 4, 5, 8, 16

COST = """
from jwst import datamodels
start = time.perf_counter()
if given["combine"]:
    from miri_steps import RateFromRateintsStep
    start = time.perf_counter()
    RateFromRateintsStep.call(given["rate"], combine=given["combine"], configure_log=False)
else:
    rate, cube = (datamodels.open(given["rate"].replace("_rate.", name)) for name in ("_rate.", "_rateints."))
    planes = [[getattr(m, p) for p in ("data", "dq", "var_poisson", "var_rnoise")] for m in (rate, cube)]
found["seconds"] = time.perf_counter() - start
"""


def integrate(
    subarray: str = "BRIGHTSKY", nints: int = N_INTEGRATIONS, **parameters
) -> simulate.Integrations:
    """Take an exposure of a field of stars."""
    scene = simulate.Scene(*CENTER).with_stars(200, radius=90.0, flux=(1e-4, 0.5), seed=3)
    plan = simulate.mosaic(*CENTER, tiles=(1, 1), dithers=1)
    observation = simulate.observe(scene, plan, FILTER, sky=SKY, noise=NOISE, subarray=subarray)
    return simulate.integrate(observation, 0, nints=nints, **parameters)


def rebuild(made: simulate.Integrations, **parameters):
    """Run the Step as a post-hook of ramp_fit would."""
    return RateFromRateintsStep(**parameters).run((made.rate.copy(), made.rateints))[0]


# ---- truth ----------------------------------------------------------------------------------------------


def ideal(made: simulate.Integrations) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the samples that were not hit, and its standard deviation; NaN where there is none."""
    kept = ~made.hit & ((made.rateints.dq & pixel["DO_NOT_USE"]) == 0)
    count = kept.sum(axis=0)
    sigma = np.sqrt(np.max(made.rateints.var_poisson + made.rateints.var_rnoise, axis=0))
    total = np.where(kept, made.rateints.data.astype(float), 0).sum(axis=0)
    some = np.where(count > 0, count, np.nan)
    return total / some, sigma / np.sqrt(some)


def compare(made: simulate.Integrations, value: np.ndarray) -> tuple[float, float, float]:
    """Bias and noise in units of the ideal's standard deviation, and share of pixels beyond 5."""
    best, sigma = ideal(made)
    known = np.isfinite(best)
    off, goal = (((v - made.truth) / sigma)[known] for v in (value, best))
    return np.mean(off) - np.mean(goal), np.std(off) / np.std(goal), np.mean(np.abs(off) > 5)


def hits(folder: Path) -> None:
    """Bias and noise with 5 % of the samples hit."""
    made = integrate(cosmic_rays=0.05)
    rows = []
    for label, parameters in METHODS.items():
        bias, noise, far = compare(made, rebuild(made, **parameters).data)
        rows.append((label, f"{bias:+.3f}", f"{noise:.3f}", f"{far:.1e}"))
    common.table(
        "5 % of samples hit, 10 sigma and a tail of 40", ("combine", "bias", "noise", "beyond 5 sigma"), rows
    )
    rows = []
    for height in HEIGHTS:
        made = integrate(cosmic_rays=0.05, cosmic_ray_sigma=(height, 0.0))
        cells = []
        for parameters in METHODS.values():
            bias, noise, _ = compare(made, rebuild(made, **parameters).data)
            cells.append(f"{bias:+.3f}, {noise:.3f}")
        rows.append((f"{height:g}", *cells))
    common.table("5 % of samples hit, all by the same: bias, noise", ("hits [sigma]", *METHODS), rows)


def errors(folder: Path) -> None:
    """Stated error over scatter for numbers of integrations."""
    kinds = {"equal": {}, "20 % jumped": {"jumps": 0.2}, "5 % hit": {"cosmic_rays": 0.05}}
    rows = []
    for kind, parameters in kinds.items():
        made = {n: integrate(nints=n, **parameters) for n in COUNTS}
        for label in SHOWN:
            cells = (f"{error_over_scatter(made[n], METHODS[label]):.3f}" for n in COUNTS)
            rows.append((kind, label, *cells))
    common.table("Stated error over scatter", ("samples", "combine", *map(str, COUNTS)), rows)


def error_over_scatter(made: simulate.Integrations, how: dict) -> float:
    """Scatter about the truth is the robust one: hits that no one could find are another matter."""
    model = rebuild(made, **how)
    pull = ((model.data - made.truth) / model.err)[(model.dq & pixel["DO_NOT_USE"]) == 0]
    low, high = np.percentile(pull, [15.865, 84.135])
    return 2 / (high - low)


# ---- jwst's own rate ------------------------------------------------------------------------------------


def ramp_fit(folder: Path) -> None:
    """Put the Step beside the rate of jwst's ramp_fit."""
    os.environ |= simulate.offline_crds(folder)
    from jwst.jump import JumpStep
    from jwst.ramp_fitting import RampFitStep

    shape = detector.SUBARRAYS["SUB256"].shape
    bright = np.full(shape, 500.0)
    bright[100:140, 100:140] = np.geomspace(2e3, 2e5, 1600).reshape(40, 40)
    cases = {
        "quiet": (np.full(shape, 500.0), 0.0, False),
        "some pixels saturate": (bright, 0.0, False),
        "2 % of ramps hit": (np.full(shape, 500.0), 0.02, False),
        "2 % hit, jump skipped": (np.full(shape, 500.0), 0.02, True),
    }
    references = simulate.reference_files(folder, "SUB256")
    agreement, gain = [], []
    for label, (rate, cosmic_rays, skip) in cases.items():
        ramp = simulate.ramp(
            rate, nints=5, ngroups=20, subarray="SUB256", cosmic_rays=cosmic_rays, level="ramp"
        )
        jumped = ramp if skip else JumpStep.call(ramp, configure_log=False, **references["jump"])
        own, cube = RampFitStep.call(jumped, configure_log=False, **references["ramp_fit"])
        made = simulate.Integrations(own, cube, rate, None)
        found = {name: rebuild(made, **METHODS[name]) for name in SHOWN}
        agreement.append((label, *agree(own, found["ivar"])))
        for name, model in {"jwst ramp_fit": own, **found}.items():
            off = (model.data - rate)[(own.dq & pixel["DO_NOT_USE"]) == 0]
            err = model.err[(own.dq & pixel["DO_NOT_USE"]) == 0]
            gain.append(
                (
                    *(label, name),
                    *(f"{value:.3f}" for value in (np.mean(off / err), np.std(off / err))),
                    f"{np.std(off):.2f}",
                    f"{np.mean(np.abs(off) > 5 * err):.1e}",
                )
            )
    head = ("data, largest [err]", "data, relative", "err, median", "err, largest", "same NaN", "same dq")
    common.table("combine='ivar' and the rate of ramp_fit", ("ramp", *head), agreement)
    head = ("bias [err]", "scatter [err]", "scatter [DN/s]", "beyond 5 err")
    common.table("Rates against truth", ("ramp", "rate", *head), gain)


def agree(own, found) -> tuple[str, ...]:
    """Largest differences of two rates."""
    good = (own.dq & pixel["DO_NOT_USE"]) == 0
    difference = np.abs(found.data - own.data)[good]
    ratio = (found.err / own.err)[good]
    return (
        f"{np.nanmax(difference / own.err[good]):.1e}",
        f"{np.nanmax(difference / np.abs(own.data[good])):.1e}",
        f"{np.nanmedian(ratio) - 1:+.1e}",
        f"{np.nanmax(np.abs(ratio - 1)):.1e}",
        f"{np.mean(np.isnan(found.data) == np.isnan(own.data)):.4f}",
        f"{np.mean(found.dq == own.dq):.4f}",
    )


# ---- cost -----------------------------------------------------------------------------------------------


def cost(folder: Path) -> None:
    """Time and memory of a full frame of 8 integrations."""
    made = integrate("FULL", cosmic_rays=0.05)
    path = made.write(folder)
    size = sum(file.stat().st_size for file in folder.glob("*.fits")) / 1024**2
    valid = integration_planes.valid_samples(made.rateints)
    planes = integration_planes.variances(made.rateints)
    rows = []
    for method in (None, *integrations.METHODS):
        runs = [common.run_apart(COST, rate=str(path), combine=method) for _ in range(3)]
        took = []
        for _ in range(5 if method else 0):
            start = time.perf_counter()
            integrations.combine(made.rateints.data, valid, method=method, **planes)
            took.append(time.perf_counter() - start)
        computing = (f"{min(took):.2f}", f"{np.median(took):.2f}") if took else ("-", "-")
        seconds = [run["seconds"] for run in runs]
        rows.append(
            (
                method or "reading only",
                *computing,
                *(f"{value:.2f}" for value in (min(seconds), np.median(seconds))),
                f"{max(run['peak'] for run in runs) / 1024:.2f}",
            )
        )
    head = (
        "combine",
        "computing, best [s]",
        "median [s]",
        "file to file, best [s]",
        "median [s]",
        "peak memory [GB]",
    )
    common.table(f"A full frame of 8 integrations, files of {size:.0f} MB", head, rows)


def apart(case: Callable[[Path], None]) -> Callable[[Path], None]:
    """Give a case a folder of its own that is deleted."""

    def run(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            case(Path(fresh))

    return run


CASES = {case.__name__: apart(case) for case in (hits, errors, ramp_fit, cost)}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    common.main(__doc__.splitlines()[1], CASES)
