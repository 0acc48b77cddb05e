"""
Measure SuperBackgroundStep on simulated truth, beside the recipes it replaces, and its cost.

    python tests/benchmarks/super_background.py [--folder DIR] [CASE ...]

Prints tables ready for docs/benchmarks.rst. Files go to a fresh folder inside DIR and are deleted. The case
``large`` (200 exposures, 6 GB of disk) runs only when it is named.
"""

import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
from astropy.io import fits
from astropy.stats import sigma_clip
from jwst.datamodels import ModelContainer
from photutils.aperture import ApertureStats, CircularAnnulus, CircularAperture, aperture_photometry
from photutils.background import Background2D, MedianBackground
from photutils.segmentation import detect_sources
from scipy.spatial import cKDTree

from miri_steps import SuperBackgroundStep, detector, simulate
from miri_steps.simulate import sphere, wcs

CENTER = 80.0, -69.5
NOISE, SKY, DITHERS = 0.05, 4.0, 10
# Stars within 80 arcsec of the centre, and their fluxes [mJy].
STARS, FLUX = 400, (1e-3, 1.0)
# Typical distance of neighbouring dithers [arcsec]: the sky moves by up to 3.9 times this.
STEP = 6.0
DOME, COLUMNS = 0.5, 0.05

COST = """
import resource
from miri_steps import SuperBackgroundStep
start, before = time.perf_counter(), sum(os.times()[:4])
SuperBackgroundStep.call(given["association"], configure_log=False, in_memory=False, **given["parameters"])
found["seconds"], found["cpu"] = time.perf_counter() - start, sum(os.times()[:4]) - before
found["worker"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
"""
READ_TWICE = """
from jwst import datamodels
start, before = time.perf_counter(), sum(os.times()[:4])
for _ in range(2):
    for path in given["paths"]:
        with datamodels.open(path) as model:
            model.data.sum(), model.err.sum()
found["seconds"], found["cpu"] = time.perf_counter() - start, sum(os.times()[:4]) - before
"""


@dataclass(frozen=True)
class Found:
    """The background that was found for one exposure, and the error stated of it."""

    background: np.ndarray
    error: np.ndarray | None = None


def field(stars: int = STARS, seed: int = 3) -> simulate.Scene:
    """Scatter stars."""
    return simulate.Scene(*CENTER).with_stars(stars, radius=80.0, flux=FLUX, seed=seed)


def observe(filter_name: str, scene: simulate.Scene | None = None, plan: Sequence | None = None, **given):
    """Dither over a field of stars with dome and columns; sky levels differ by 0.3 rms."""
    plan = plan or dithered(STEP)
    levels = SKY + 0.3 * np.random.default_rng(1).standard_normal(len(plan))
    given = {"sky": levels, "pattern": pattern(), "noise": NOISE, "seed": 3} | given
    return simulate.observe(scene or field(), plan, filter_name, **given)


def dithered(step: float, number: int | tuple[int, int] = DITHERS) -> list:
    """Plan dithers [arcsec]."""
    return simulate.mosaic(*CENTER, tiles=(1, 1), dithers=number, dither_step=step)


def pattern(factor: float = 1.0) -> np.ndarray:
    """Dome and columns fixed to the detector [MJy/sr]."""
    return factor * (simulate.dome(DOME) + simulate.columns(COLUMNS))


def usable(observation) -> np.ndarray:
    """True on the good pixels of the imager."""
    return detector.region_mask(["imager"]) & (observation.flags == 0)


# ---- ours, and the older recipes -------------------------------------------------------------------------


def run_step(models: Sequence, **parameters) -> list[Found]:
    """Find backgrounds by the Step."""
    results = SuperBackgroundStep(**parameters).run(ModelContainer(list(models)))
    found = []
    for before, after in zip(models, results, strict=True):
        if after.meta.cal_step.super_background != "COMPLETE":
            raise RuntimeError(f"{before.meta.filename}: {after.meta.cal_step.super_background}")
        added = after.err.astype(float) ** 2 - before.err.astype(float) ** 2
        found.append(Found(before.data.astype(float) - after.data, np.sqrt(np.maximum(added, 0))))
    return found


def run_older(models: Sequence, *, statistic: str) -> list[Found]:
    """
    Find backgrounds as the older scripts did, written anew from their description.

    Sources above 3 sigma with 5 connected pixels are masked, exposures are scaled by the ratio of the medians
    of all their pixels, sources included, and each is part of its own background.
    """
    levels = np.array([np.nanmedian(model.data) for model in models])
    stack = np.array([threshold(model.data) / level for model, level in zip(models, levels, strict=True)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if statistic == "clip":
            stack = sigma_clip(stack, sigma_lower=3, sigma_upper=1, axis=0, masked=False, copy=False)
        combined = {"clip": np.nanmean, "median": np.nanmedian}[statistic](stack, axis=0)
    return [Found(level * combined) for level in levels]


def threshold(image: np.ndarray) -> np.ndarray:
    """Set the sources of one exposure to NaN: one threshold, and nothing around what is above it."""
    empty = ~np.isfinite(image)
    mesh = Background2D(
        image, 64, mask=empty, filter_size=3, bkg_estimator=MedianBackground(), exclude_percentile=90
    )
    found = detect_sources(image - mesh.background, 3 * mesh.background_rms, 5, mask=empty)
    return np.where(found.data > 0, np.nan, image)


RECIPES = {
    "3 sigma masks, ratio of medians, clip 3 low 1 high": lambda m: run_older(m, statistic="clip"),
    "3 sigma masks, ratio of medians, median": lambda m: run_older(m, statistic="median"),
    "``leave_one_out=false``": lambda m: run_step(m, leave_one_out=False),
    "default": run_step,
}


# ---- accuracy --------------------------------------------------------------------------------------------

ACCURACY = ("rms / limit", "bias [sigma]", "pull")


def accuracy(observation, found: Sequence[Found]) -> tuple[str, ...]:
    """Hold backgrounds against the truth: rms over noise limit, bias, error over stated error."""
    good, limit = usable(observation), observation.noise / np.sqrt(len(observation) - 1)
    rows = []
    for i, each in enumerate(found):
        error = (each.background - observation.background(i))[good]
        known = np.isfinite(error)
        error = error[known]
        pull = np.nan if each.error is None else rms(error / each.error[good][known])
        rows.append((rms(error) / limit, error.mean() / observation.noise, pull))
    size, bias, pull = np.mean(rows, axis=0)
    return f"{size:.3f}", f"{bias:+.3f}", "-" if np.isnan(pull) else f"{pull:.3f}"


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def truth(folder: Path) -> None:
    """Both statistics and one or two passes in four filters."""
    rows = []
    for name in ("F560W", "F770W", "F1500W", "F2100W"):
        observation = observe(name)
        models = list(observation)
        for statistic in ("clip", "median"):
            for passes in (1, 2):
                found = run_step(models, statistic=statistic, passes=passes)
                rows.append((name, statistic, str(passes), *accuracy(observation, found)))
    common.table("Ten dithers of 400 stars", ("filter", "statistic", "passes", *ACCURACY), rows)


def recipes(folder: Path) -> None:
    """The older recipes and ours on the same exposures."""
    observation = observe("F770W")
    models = list(observation)
    rows = [(name, *accuracy(observation, recipe(models))) for name, recipe in RECIPES.items()]
    common.table("Beside the older recipes", ("recipe", *ACCURACY), rows)


def varying(folder: Path) -> None:
    """Backgrounds of which level and structure vary by 25 %, and the same without."""
    factors = np.random.default_rng(1).permutation(np.linspace(0.75, 1.25, DITHERS))
    rows = []
    for sky, height in ((SKY, 1.0), (60.0, 12.0)):
        for label, scale in (("constant", np.ones(DITHERS)), ("varying", factors)):
            observation = observe("F1800W", sky=sky * scale, pattern=pattern(height), pattern_scale=scale)
            models = list(observation)
            for scaling in ("additive", "multiplicative", "both"):
                found = accuracy(observation, run_step(models, scaling=scaling))
                rows.append((f"{sky:g}", f"{height * DOME:g}", label, scaling, *found))
    head = ("sky [MJy/sr]", "dome [MJy/sr]", "background", "scaling", *ACCURACY)
    common.table("F1800W, backgrounds from 75 to 125 %", head, rows)


# ---- extended emission -----------------------------------------------------------------------------------


def emission(folder: Path) -> None:
    """Emission over 30 % of the field, with masks from a mosaic, from the truth, and without."""
    scene = field().with_emission(2.0, cover=0.3, seed=4)
    rows = []
    for step in (8.0, 2.5):
        observation = observe("F770W", scene, dithered(step))
        models, images = list(observation), mask_images(observation, folder / f"step{step:g}")
        for label, image in images.items():
            for given in ({}, {"passes": 2}, {"fallback": "flag"}):
                named = given | ({} if image is None else {"mask_image": str(image)})
                found = run_step(models, **named)
                parameters = ", ".join(f"``{name}={value}``" for name, value in given.items())
                row = (label, parameters, lost(observation, found), *accuracy(observation, found))
                rows.append((f"{step:g}", covered(observation), *row))
    head = ("dither_step [arcsec]", "covered", "mask image", "parameters", "no background", *ACCURACY)
    common.table("Emission of 2 MJy/sr", head, rows)


def lost(observation, found: Sequence[Found]) -> str:
    """Say how many of the usable pixels have no background."""
    good = usable(observation)
    return f"{100 * np.mean([~np.isfinite(each.background[good]) for each in found]):.1f} %"


def covered(observation) -> str:
    """Say how much of the imager the emission covers by more than a tenth of the noise."""
    alone = simulate.observe(
        simulate.Scene(*CENTER, _components=observation.scene._components),
        *(observation.pointings, observation.filter),
    )
    good = usable(observation)
    shares = [np.mean(alone.signal(i)[good] > 0.1 * NOISE) for i in range(len(alone))]
    return f"{100 * np.mean(shares):.0f} %"


def mask_images(observation, folder: Path) -> dict[str, Path | None]:
    """Make mosaics of the field: from the exposures as they are, and from the scene alone."""
    hook = "miri_steps.PixelSkyMatchStep(subtract_detector_background=True),"
    seen = mosaic(observation, folder / "seen", f"--steps.skymatch.post_hooks={hook}")
    alone = simulate.observe(
        *(observation.scene, observation.pointings, observation.filter),
        **{"noise": 1e-6, "poisson": False, "bad_pixels": 0.0},
    )
    light = mosaic(alone, folder / "light", "--steps.outlier_detection.skip=true")
    with fits.open(light) as hdus:
        sources = (hdus["SCI"].data > 0.1 * NOISE).astype(np.uint8)
        known = fits.ImageHDU(sources, hdus["SCI"].header, name="SCI")
    path = folder / "truth_segm.fits"
    fits.HDUList([fits.PrimaryHDU(), known]).writeto(path)
    return {"none": None, "mosaic of the exposures": seen, "truth, above 0.1 sigma": path}


def mosaic(observation, folder: Path, *options: str) -> Path:
    """Write exposures and run the stock calwebb_image3 on them."""
    association = simulate.write(observation, folder, product="field")
    steps = [f"--steps.{step}.skip=true" for step in ("tweakreg", "skymatch", "source_catalog")]
    common.strun(folder, "calwebb_image3", str(association), *steps, *options)
    return next(folder.glob("*_i2d.fits"))


# ---- stars -----------------------------------------------------------------------------------------------

# Radius of apertures, limits of their annuli, and how far away the next star of any weight is [FWHM].
APERTURE, ANNULUS, LONELY = 2.5, (3.5, 5.0), 6.0
CLASSES = {"above 100 sigma": (100.0, np.inf), "20 to 100": (20.0, 100.0), "5 to 20": (5.0, 20.0)}


def stars(folder: Path) -> None:
    """Error of the light of stars that the background leaves, with close dithers and with wide ones."""
    close = 2 * detector.FWHM["F770W"] * detector.PIXEL_SCALE
    plans = {"5 x 2, 2 FWHM apart": dithered(close, (5, 2)), f"spiral of {STEP:g} arcsec": dithered(STEP)}
    trials = RECIPES | {"``passes=2``": lambda models: run_step(models, passes=2)}
    rows = []
    for label, plan in plans.items():
        observation = observe("F770W", field(), plan)
        models = list(observation)
        for name, recipe in trials.items():
            rows += [(label, name, *row) for row in star_rows(star_errors(observation, recipe(models)))]
    head = (
        "dithers",
        "recipe",
        "brightest pixel",
        "measurements",
        *("median [%]", "all light [%]", "error") * 2,
    )
    common.table("Light of stars: in the aperture, and less that of the annulus", head, rows)


def star_rows(parts: list[np.ndarray]) -> list[tuple[str, ...]]:
    """Sum up the measurements of stars by their brightness."""
    peak, light, error, local = np.concatenate(parts, axis=1)
    rows = []
    for label, (low, high) in CLASSES.items():
        inside = (peak >= low) & (peak < high)
        plain, level_off = (summary(light[inside], each[inside]) for each in (error, local))
        rows.append((label, f"{inside.sum()}", *plain, *level_off))
    return rows


def star_errors(observation, found: Sequence[Found]) -> list[np.ndarray]:
    """
    Measure lonely stars in each exposure.

    Brightest pixel [sigma], light, its error, and the same less the median error in an annulus; shape (4, n).
    """
    fwhm, good = detector.FWHM[observation.filter], usable(observation)
    catalog, parts = observation.scene.stars, []
    sky = sphere.unit_vectors(np.array(catalog["ra"]), np.array(catalog["dec"]))
    flux = np.array(catalog["flux"])
    for i, each in enumerate(found):
        x, y = wcs.sky_to_pixels(sky, observation.pointings[i], observation.filter, observation.subarray)
        kept = lonely(x, y, flux, LONELY * fwhm) & within(x, y, APERTURE * fwhm)
        positions = np.column_stack([x, y])[kept]
        apertures = CircularAperture(positions, APERTURE * fwhm)
        annuli = CircularAnnulus(positions, *(radius * fwhm for radius in ANNULUS))
        error = observation.background(i) - each.background
        bad = ~good | ~np.isfinite(error)
        sums = (
            np.array(aperture_photometry(np.where(bad, 0, plane), apertures)["aperture_sum"])
            for plane in (observation.signal(i), error, ~bad)
        )
        light, wrong, area = sums
        nearby = np.nan_to_num(ApertureStats(error, annuli, mask=bad).median)
        peak = flux[kept] / flux_of_peak(observation.filter)
        parts.append(np.array([peak, light, wrong, wrong - area * nearby]))
    return parts


def lonely(x: np.ndarray, y: np.ndarray, flux: np.ndarray, reach: float) -> np.ndarray:
    """True for stars without a neighbour of a tenth of their light or more."""
    pairs = cKDTree(np.column_stack([x, y])).query_pairs(reach, output_type="ndarray")
    crowded = np.zeros(len(x), bool)
    for one, other in (pairs.T, pairs.T[::-1]):
        crowded[one[flux[other] > 0.1 * flux[one]]] = True
    return ~crowded


def within(x: np.ndarray, y: np.ndarray, margin: float) -> np.ndarray:
    """True for positions in the imager, away from its edges."""
    (left, bottom), (right, top) = detector.bounding_box(["imager"])
    # The left edge leans by four columns.
    inside = (x > left + 4 + margin) & (x < right - margin)
    return inside & (y > bottom + margin) & (y < top - margin)


def flux_of_peak(filter_name: str) -> float:
    """Flux of the star whose brightest pixel is one sigma, when it is in the middle of it [mJy]."""
    share = simulate.psf(filter_name).stamp(0.0, 0.0, 10).max()
    return NOISE * detector.PIXEL_SCALE**2 * sphere.ARCSEC**2 * 1e9 / share


def summary(light: np.ndarray, error: np.ndarray) -> tuple[str, ...]:
    """Median of the relative errors, error of the light of all stars together, and its uncertainty."""
    mean = error.sum() / light.sum()
    uncertain = np.sqrt(np.sum((error - mean * light) ** 2)) / light.sum()
    return tuple(
        f"{100 * value:{form}}"
        for value, form in ((np.median(error / light), "+.2f"), (mean, "+.3f"), (uncertain, ".3f"))
    )


# ---- cost ------------------------------------------------------------------------------------------------


RUNS = {"default": {}, "``maximum_cores='2'``": {"maximum_cores": "2"}, "``passes=2``": {"passes": 2}}


def cost(folder: Path, numbers: Sequence[int] = (10, 50), runs: Sequence[str] = tuple(RUNS)) -> None:
    """Time and peak memory of sets on disk, beside reading them twice."""
    rows = []
    for number in numbers:
        association = write_set(folder / f"set{number}", number)
        paths = [str(path) for path in sorted(association.parent.glob("*_cal.fits"))]
        twice = common.run_apart(READ_TWICE, paths=paths)
        rows.append(cost_row(number, "reading twice", twice, twice))
        for label in runs:
            done = common.run_apart(COST, association=str(association), parameters=RUNS[label])
            rows.append(cost_row(number, label, done, twice))
        for path in paths:
            Path(path).unlink()
    head = ("exposures", "run", "time [s]", "ratio", "of the cores [s]", "ratio", "peak memory [GB]")
    common.table("Sets with in_memory=False", (*head, "of a worker"), rows)


def cost_row(number: int, label: str, done: dict, first: dict) -> tuple[str, ...]:
    worker = done.get("worker", 0)
    return (
        f"{number}",
        label,
        f"{done['seconds']:.0f}",
        f"{done['seconds'] / first['seconds']:.2f}",
        f"{done['cpu']:.0f}",
        f"{done['cpu'] / first['cpu']:.2f}",
        f"{done['peak'] / 1024:.2f}",
        f"{worker / 1024:.2f}" if worker else "",
    )


def write_set(folder: Path, number: int) -> Path:
    """Write dithers of a field."""
    # The spiral grows with their number: as wide as that of ten.
    plan = dithered(STEP * np.sqrt(DITHERS / number), number)
    return simulate.write(observe("F770W", plan=plan), folder, product="set")


def large(folder: Path) -> None:
    """Time and peak memory of 200 exposures."""
    cost(folder, (200,), ("default",))


def apart(case: Callable[[Path], None]) -> Callable[[Path], None]:
    """Give a case a folder of its own that is deleted."""

    def run(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            case(Path(fresh))

    return run


CASES = {case.__name__: apart(case) for case in (truth, recipes, varying, emission, stars, cost)}
ON_REQUEST = {case.__name__: apart(case) for case in (large,)}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    named = {name: case for name, case in ON_REQUEST.items() if name in sys.argv}
    common.main(__doc__.splitlines()[1], CASES | named)
