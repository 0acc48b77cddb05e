"""
Measure the flux calibration on simulated standard stars with known truth, from pixels to factors.

    python tests/benchmarks/fluxcal.py [--filters F560W,F2550W] [--folder DIR] [CASE ...]

Prints tables ready for docs/benchmarks.rst. Files go to a fresh folder inside DIR and are deleted.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

os.environ["STPIPE_DISABLE_CRDS_STEPPARS"] = "true"
os.environ["MPLBACKEND"] = "Agg"
# Hundreds of small files: half of the time would go to checking their metadata, item by item.
os.environ["VALIDATE_ON_ASSIGNMENT"] = "false"

import asdf.schema
import common
import fluxcal_world
import numpy as np
from astropy import units as u
from astropy.table import QTable
from fluxcal_world import BRIGHT, DAYS, MONITORED, ONE, T0, TAU, TRUTH, Look, Truth, World
from jwst.datamodels import ModelContainer
from jwst.resample import ResampleStep
from stdatamodels.jwst import datamodels

from miri_steps import detector, fluxcal_chain, simulate
from miri_steps.fluxcal import config
from miri_steps.fluxcal.calibration import FilterCalibration, calibrate

BANDS = list(TRUTH)
# Which of the levels photometry takes: 0.7.
_LEVEL = 5
# Images of narrower stars are undersampled [pixel].
_SAMPLED = 2.5

# ---- noise-free and real stars ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What a run gave, and the world it was of."""

    world: World
    calibrations: Mapping[str, FilterCalibration]
    output: Path
    seconds: tuple[float, float]


def run(folder: Path, bands: Sequence[str], real: bool) -> Result:
    """Simulate a world and calibrate it."""
    start = time.perf_counter()
    world = World(real, seed=11 + real)
    stars = folder / "stars"
    stars.mkdir()
    for band in bands:
        for look in fluxcal_world.plan(world.random, band, MONITORED if real else ONE):
            for model in world.expose(look, band, dithers_of(look, band, real)):
                model.save(str(stars / model.meta.filename))
    models = fluxcal_world.write_models(folder, bands, simulate.psf)
    made = time.perf_counter()
    found = fluxcal_chain.run(stars, folder / "out", bright=BRIGHT, **models)
    return Result(world, found, folder / "out", (made - start, time.perf_counter() - made))


def dithers_of(look: Look, band: str, real: bool) -> tuple[int, int]:
    """Dither stars that much hangs on where their light depends on the place on a pixel, as it is done."""
    undersampled = detector.FWHM[band] < _SAMPLED
    return (2, 2) if undersampled and not real and look.star in (*BRIGHT, *ONE) else (1, 1)


def centroids(result: Result, band: str) -> tuple[float, float]:
    """Distance of centroids from the truth: rms and largest [pixel]."""
    rows = QTable.read(result.output / "photometry.ecsv")
    rows = rows[(rows["filter"] == band) & np.isfinite(rows["rate"].value)]
    place = np.array([result.world.places[name] for name in rows["file"]])
    off = np.hypot(*(np.stack([rows["x"].value, rows["y"].value], axis=1) - place).T)
    return float(np.sqrt(np.mean(off**2))), float(off.max())


def correction_errors(output: Path, band: str) -> np.ndarray:
    """Corrections over the true ones of the same radii, less 1 [%], by level."""
    with datamodels.open(output / "apcorr.fits") as model:
        table = np.array(model.apcorr_table)
    names, windows = (np.char.strip(table[column].astype(str)) for column in ("filter", "subarray"))
    rows = table[(names == band) & (windows == "SUB256")]
    return 100 * (rows["apcorr"] / fluxcal_world.true_corrections(band, rows) - 1)


def closed_loop(result: Result, title: str) -> None:
    """Put what came out beside the truth."""
    rows = []
    for band, found in result.calibrations.items():
        off, error = 100 * (found.factor / TRUTH[band].factor - 1), 100 * found.error / found.factor
        apcorr = correction_errors(result.output, band)
        rows.append(
            (
                *(band, f"{off:+.3f}", f"{error:.3f}"),
                *(f"{apcorr[_LEVEL]:+.3f}", f"{apcorr[np.argmax(np.abs(apcorr))]:+.3f}"),
                *(f"{value:.4f}" for value in centroids(result, band)),
                f"{len(found.observations)} of {len(result.world.seen_in(band))}",
            )
        )
    head = "filter", "factor [%]", "its error [%]", "correction of 0.7 [%]", "largest of all levels [%]"
    head += "centroid, rms [pixel]", "largest [pixel]", "used"
    common.table(title, head, rows)
    print(f"\n.. simulated in {result.seconds[0]:.0f} s, calibrated in {result.seconds[1]:.0f} s")


def losses(result: Result, title: str) -> None:
    """Put losses beside the truth."""
    rows = []
    for band, found in result.calibrations.items():
        truth, errors = TRUTH[band], found.loss.errors
        mjd = found.observations["timemid"].to_value(u.day)
        off = np.abs(found.loss.sensitivity(mjd) / truth.sensitivity(mjd) - 1).max()
        pulls = pull(found, truth, TAU)[1:3]
        rows.append(
            (
                band,
                *(f"{100 * truth.loss:.1f}", f"{100 * found.loss.loss:.2f} +- {100 * errors[0]:.2f}"),
                *(f"{truth.amplitude:.2f}", f"{found.loss.amplitude:.3f} +- {errors[1]:.3f}"),
                f"{found.loss.tau:.0f} +- {errors[2]:.0f}",
                *(f"{pull:+.1f}" for pull in pulls),
                f"{100 * off:.2f}",
            )
        )
    head = "filter", "loss, true [%/yr]", "found [%/yr]", "amplitude, true", "found", "tau [d]"
    head += "loss [sigma]", "amplitude [sigma]", "sensitivity, largest error [%]"
    common.table(title, head, rows)


def published(result: Result, title: str) -> None:
    """Put the published procedure beside ours, on the same photometry."""
    stars, fluxes = (QTable.read(result.output / f"{name}.ecsv") for name in ("photometry", "fluxes"))
    rows = []
    for band, ours in result.calibrations.items():
        truth = TRUTH[band]
        try:
            legacy = calibrate(stars[stars["filter"] == band], fluxes, legacy=True)[band]
        except ValueError as error:
            rows.append((band, *[""] * 6, str(error)))
            continue
        cells = []
        for one in (ours, legacy):
            last = one.loss.sensitivity(T0 + DAYS) / truth.sensitivity(T0 + DAYS) - 1
            cells.append((one.factor / truth.factor - 1, one.loss.loss, last))
        percent = [[f"{100 * value:+.2f}" for value in cell] for cell in cells]
        rows.append(
            (band, f"{100 * truth.loss:.1f}", *(v for pair in zip(*percent, strict=True) for v in pair))
        )
    head = "filter", "loss, true [%/yr]", "factor: ours [%]", "published [%]", "loss: ours [%/yr]"
    head += "published [%/yr]", "sensitivity after 1400 d: ours [%]", "published [%]"
    common.table(title, head, rows)


def transmissions(result: Result, title: str) -> None:
    """Solve for the transmissions of subarrays."""
    path = result.output / "subarrays.ecsv"
    fluxcal_chain.write_subarrays(result.output / "photometry.ecsv", path)
    rows = [
        (
            row["subarray"],
            f"{config.transmissions()[row['subarray']]:.3f}",
            f"{row['transmission']:.4f} +- {row['transmission_error']:.4f}",
            str(row["observations"]),
        )
        for row in QTable.read(path)
        if row["observations"]
    ]
    common.table(title, ("subarray", "true", "found", "observations"), rows)


def noise_free(folder: Path) -> None:
    """Stars without noise, whose models are right."""
    result = run(folder, BANDS, real=False)
    closed_loop(result, "Noise-free stars")
    losses(result, "Loss of sensitivity, noise-free stars")
    published(result, "Ours and the published procedure, noise-free stars")


def real(folder: Path) -> None:
    """Stars as they are."""
    result = run(folder, BANDS, real=True)
    closed_loop(result, "Stars with noise, and models that are wrong by 1 %")
    losses(result, "Loss of sensitivity, stars with noise")
    published(result, "Ours and the published procedure, stars with noise")
    transmissions(result, "Transmissions of subarrays, solved for")


# ---- many draws -------------------------------------------------------------------------------------------

DRAWS = 200


def pull(found: FilterCalibration, truth: Truth, tau: float) -> tuple[float, ...]:
    """Errors in units of those stated: factor, loss, amplitude, and sensitivity at the end."""
    end, errors = T0 + DAYS, found.loss.errors
    return (
        (found.factor - truth.factor) / found.error,
        (found.loss.loss - truth.loss) / errors[0],
        (found.loss.amplitude - truth.amplitude) / errors[1],
        (found.loss.sensitivity(end) - truth.sensitivity(end, tau)) / found.loss.sensitivity_error(end),
    )


def draws(folder: Path) -> None:
    """Whether errors are honest: pulls of many surveys."""
    for title, spread in (("tau is 200 d", 0.0), ("ln(tau / 200 d) has a width of 0.5", 0.5)):
        random = np.random.default_rng(5)
        pulls: dict[str, list] = {band: [] for band in BANDS}
        for _ in range(DRAWS):
            taus = {band: TAU * np.exp(spread * random.normal()) for band in BANDS}
            for band, found in calibrate(*fluxcal_world.draw(random, BANDS, taus)).items():
                pulls[band].append(pull(found, TRUTH[band], taus[band]))
        rows = [(band, *describe(np.array(values))) for band, values in pulls.items()]
        rows.append(("all", *describe(np.concatenate(list(pulls.values())))))
        head = "filter", "factor", "loss", "amplitude", "sensitivity after 1400 d"
        common.table(f"{DRAWS} draws, {title}: width of pulls, mean, within 2 sigma [%]", head, rows)


def describe(pulls: np.ndarray) -> list[str]:
    """Width, mean, and share within 2 sigma of each column."""
    within = 100 * np.mean(np.abs(pulls) < 2, axis=0)
    numbers = zip(pulls.std(axis=0), pulls.mean(axis=0), within, strict=True)
    return [f"{width:.2f}, {mean:+.2f}, {share:.0f}" for width, mean, share in numbers]


# ---- mosaics ----------------------------------------------------------------------------------------------

MOSAIC_BANDS = "F560W", "F770W"
EPOCHS = 10


def mosaics(folder: Path) -> None:
    """Four dithers of each star as mosaics, and the same exposures one by one."""
    rows = []
    for band in [band for band in MOSAIC_BANDS if band in BANDS]:
        place = folder / band
        kinds = expose_mosaics(place, band)
        sharp, true = (
            fluxcal_world.write_models(place / name, [band], psf)
            for name, psf in (("model", simulate.psf), ("true", fluxcal_world.true_psf))
        )
        for kind, stars in kinds.items():
            for label, models, bright in (("joined", sharp, BRIGHT), ("true PSF", true, ())):
                found = fluxcal_chain.run(stars, place / f"{kind} {label}", bright=bright, **models)[band]
                off = 100 * (found.factor / TRUTH[band].factor - 1)
                rows.append((band, kind, label, f"{off:+.2f}", f"{100 * found.error / found.factor:.2f}"))
    common.table("Mosaics", ("filter", "images", "corrections", "factor [%]", "its error [%]"), rows)


def expose_mosaics(folder: Path, band: str) -> dict[str, Path]:
    """Write exposures and mosaics of a star at ten epochs and of the bright at one."""
    world = World(False, seed=21)
    monitored = next(iter(MONITORED))
    looks = [Look(monitored, "SUB256", T0 + day, k) for k, day in enumerate(np.linspace(10, DAYS, EPOCHS), 1)]
    looks += [Look(star, "SUB256", T0 + 30 + 300 * k, 50 + k) for k, star in enumerate(BRIGHT)]
    kinds = {"exposures": None, "mosaic, ratio 1": 1.0, "mosaic, ratio 0.5": 0.5}
    folders = {kind: folder / kind for kind in kinds}
    for path in folders.values():
        path.mkdir(parents=True)
    for look in looks:
        models = list(world.expose(look, band, dithers=(2, 2)))
        for kind, ratio in kinds.items():
            if ratio is None:
                for model in models:
                    model.copy().save(str(folders[kind] / model.meta.filename))
                continue
            several = ModelContainer([model.copy() for model in models])
            mosaic = ResampleStep.call(several, pixel_scale_ratio=ratio, configure_log=False)
            mosaic.save(str(folders[kind] / f"look{look.number}_i2d.fits"))
    return folders


def apart(case: Callable[[Path], None]) -> Callable[[Path], None]:
    """Give a case a folder of its own that is deleted."""

    def in_fresh_folder(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            case(Path(fresh))

    return in_fresh_folder


CASES = {case.__name__: apart(case) for case in (noise_free, real, draws, mosaics)}


def chosen_bands() -> list[str]:
    """Take the filters from the command line; the rest is for `common.main`."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--filters", default=",".join(TRUTH))
    given, sys.argv[1:] = parser.parse_known_args()
    return [band for band in TRUTH if band in given.filters.split(",")]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    # As the tests do: each schema is parsed once.
    loader = cache(asdf.schema._make_schema_loader())
    asdf.schema._make_schema_loader = lambda: loader
    BANDS = chosen_bands()
    common.main(__doc__.splitlines()[1], CASES)
