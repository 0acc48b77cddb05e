"""
Measure MedianHotPixelStep on simulated truth, beside the loop it replaces, in mosaics, and its cost.

    python tests/benchmarks/median_hot_pixel.py [--folder DIR] [CASE ...]

Prints tables ready for docs/benchmarks.rst. Files go to a fresh folder inside DIR and are deleted.
"""

import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import common
import numpy as np
from jwst import datamodels
from scipy.spatial import cKDTree
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps import MedianHotPixelStep, detector, simulate
from miri_steps.simulate import sphere, wcs

CENTER = 80.0, -69.5
FILTERS = ("F560W", "F770W", "F1000W", "F1500W", "F2550W")
NOISE, SKY = 0.05, 4.0
# Number of stars within 90 arcsec of the centre.
DENSITIES = {"sparse": 200, "crowded": 3000, "dense": 20_000}
# Brightest pixel of the faintest and of the brightest star [sigma of an empty pixel].
PEAKS = 0.5, 5000.0
FAR, SEEN = 2.0, 5.0  # off sources, stricter: this many FWHM from stars with such a peak [sigma]
WINDOW = 5

COST = """
from miri_steps import MedianHotPixelStep
start = time.perf_counter()
MedianHotPixelStep.call(given["association"], configure_log=False, in_memory=False)
found["seconds"] = time.perf_counter() - start
"""


class WatchedStep(MedianHotPixelStep):
    """The Step, which remembers what it took for sources, and its time after reading."""

    def process(self, given):
        self.protected, self.seconds = {}, {"find": 0.0, "repair": 0.0}
        return super().process(given)

    def _look(self, *given):
        start = time.perf_counter()
        super()._look(*given)
        self.seconds["find"] += time.perf_counter() - start

    def _write_back(self, library, groups):
        self.protected = {
            member.name: member.protected.mask() for group in groups for member in group.members
        }
        super()._write_back(library, groups)

    def _replace(self, model, member, group):
        start = time.perf_counter()
        super()._replace(model, member, group)
        self.seconds["repair"] += time.perf_counter() - start


@dataclass
class Field:
    """An observation, and what is true of one of its exposures."""

    observation: simulate.Observation
    number: int

    def __post_init__(self):
        o, i = self.observation, self.number
        expected, variances = o.expect(i)
        stars_alone = replace(o, scene=replace(o.scene, _components=()))
        self.light = stars_alone.signal(i)
        self.sigma = np.sqrt(variances["var_poisson"] + variances["var_rnoise"])
        self.hot = o.hot > 0
        self.height = o.hot * o.noise / self.sigma
        self.expected = expected - o.hot * o.noise
        self.usable = o.flags == 0
        stars = o.scene.stars
        sky = sphere.unit_vectors(np.array(stars["ra"]), np.array(stars["dec"]))
        self.x, self.y = wcs.sky_to_pixels(sky, o.pointings[i], o.filter, o.subarray)
        self.peak = np.array(stars["flux"]) / flux_of_peak(o.filter)
        self.fwhm = detector.FWHM[o.filter]

    @property
    def off_sources(self) -> np.ndarray:
        """True where stars give less than one sigma."""
        return self.light < self.sigma

    @property
    def far_from_stars(self) -> np.ndarray:
        """True where no star that can be seen is near."""
        seen = self.peak > SEEN
        tree = cKDTree(np.column_stack([self.y[seen], self.x[seen]]))
        pixels = np.indices(self.sigma.shape).reshape(2, -1).T
        away, _ = tree.query(pixels, distance_upper_bound=FAR * self.fwhm)
        return np.isinf(away).reshape(self.sigma.shape)


def flux_of_peak(filter_name: str) -> float:
    """Flux of the star whose brightest pixel is one sigma, when it is in the middle of it [mJy]."""
    share = simulate.psf(filter_name).stamp(0.0, 0.0, 10).max()
    return NOISE * detector.PIXEL_SCALE**2 * sphere.ARCSEC**2 * 1e9 / share


def observe(filter_name, stars, dithers=4, emission=0.0, hot_pixels=0.005, **parameters):
    """Plan dithers of a field of stars."""
    faintest, brightest = (peak * flux_of_peak(filter_name) for peak in PEAKS)
    scene = simulate.Scene(*CENTER).with_stars(stars, radius=90.0, flux=(faintest, brightest), seed=3)
    if emission:
        scene = scene.with_emission(emission, seed=1)
    plan = simulate.mosaic(*CENTER, tiles=(1, 1), dithers=dithers)
    return simulate.observe(
        scene, plan, filter_name, **({"sky": SKY, "noise": NOISE, "hot_pixels": hot_pixels} | parameters)
    )


# ---- truth ----------------------------------------------------------------------------------------------


def compare(field: Field, before, after, protected) -> dict:
    """Hold one exposure against its truth: counts, which can be added up, and lists."""
    done = (after.dq & pixel["FLUX_ESTIMATED"]) > 0
    done &= field.usable
    found = {"field": field.usable.sum(), "protected": (protected & field.usable).sum()}
    off, far = field.off_sources, field.far_from_stars
    for name, where in (("off", off), ("far", far), ("both", off & far)):
        bright = field.hot & where & (field.height >= 10)
        faint = field.hot & where & (field.height >= 5) & (field.height < 10)
        for label, those in (("bright", bright), ("faint", faint)):
            found[f"{name}_{label}"], found[f"{name}_{label}_done"] = those.sum(), (those & done).sum()
    false = done & ~field.hot
    found |= {"false": false.sum()}
    right = done & field.hot
    error = (after.data - field.expected)[right]
    found |= {"error": error / field.sigma[right], "pull": error / after.err[right]}
    found["error_off"] = found["error"][off[right]]
    return found | star_changes(field, before, after)


def star_changes(field: Field, before, after) -> dict:
    """Relative change of the light of every star that holds no bad pixel, and how bright these are."""
    radius = max(1.5, field.fwhm)
    reach = int(np.ceil(radius)) + 1
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, 1, -1)
    row, column = (np.rint(v).astype(int)[:, None] for v in (field.y, field.x))
    inside = (row >= reach) & (row < before.shape[0] - reach)
    inside &= (column >= reach) & (column < before.shape[1] - reach)
    row, column = row * inside + reach * ~inside, column * inside + reach * ~inside
    aperture = np.hypot(row + dy - field.y[:, None], column + dx - field.x[:, None]) <= radius

    def around(plane):
        return plane[row + dy, column + dx]

    whole = inside[:, 0] & ~(aperture & around(~field.usable | field.hot)).any(axis=1)
    light = np.sum(np.where(aperture, around(field.light), 0), axis=1)
    difference = np.nan_to_num(after.data.astype(float) - before.data)
    change = np.abs(np.sum(np.where(aperture, around(difference), 0), axis=1)) / light
    return {"change": change[whole], "peak": field.peak[whole]}


def pool(parts: list[dict]) -> dict:
    """Add up counts and join lists."""
    return {
        key: np.concatenate([part[key] for part in parts])
        if np.ndim(parts[0][key])
        else sum(part[key] for part in parts)
        for key in parts[0]
    }


def repair(models: list) -> tuple[list, dict]:
    """Run the Step on copies; what it took for sources by name."""
    step = WatchedStep()
    given = datamodels.ModelContainer([model.copy() for model in models])
    return list(step.run(given)), step.protected


def alone_and_together(observation) -> dict[str, dict]:
    """Compare the exposures of a field with the truth, repaired one by one and as a set."""
    models, fields = list(observation), [Field(observation, i) for i in range(len(observation))]
    found = {}
    for label, groups in (("1", [[k] for k in range(len(models))]), (str(len(models)), [range(len(models))])):
        parts = []
        for group in groups:
            after, protected = repair([models[k] for k in group])
            for k, model in zip(group, after, strict=True):
                parts.append(compare(fields[k], models[k], model, protected[model.meta.filename]))
        found[label] = pool(parts)
    return found


def share(found: dict, name: str) -> str:
    return f"{found[f'{name}_done'] / max(1, found[name]):.4f}"


def truth(folder: Path) -> None:
    """Completeness, false detections, stars and repaired pixels against the truth."""
    detection, changes = [], []
    fields = [(name, density, 4, 0.0) for name in FILTERS for density in ("sparse", "crowded")]
    fields += [("F560W", "crowded", 2, 0.0), ("F2550W", "crowded", 2, 0.0), ("F560W", "dense", 4, 0.0)]
    fields.append(("F770W", "sparse", 4, 5.0))
    for name, density, dithers, emission in fields:
        observation = observe(name, DENSITIES[density], dithers=dithers, emission=emission)
        for number, found in alone_and_together(observation).items():
            label = (name, density + (", emission" if emission else ""), number)
            detection.append(
                (
                    *label,
                    *(share(found, f"{key}_bright") for key in ("off", "far", "both")),
                    share(found, "off_faint"),
                    f"{found['off_bright'] - found['off_bright_done']} of {found['off_bright']}",
                    f"{found['false']}: {found['false'] / found['field']:.1e}",
                    f"{found['protected'] / found['field']:.1%}",
                )
            )
            changed = found["change"] > 1e-3
            brightest = f"{found['peak'][changed].max():.1f}" if changed.any() else "-"
            changes.append(
                (
                    *label,
                    f"{changed.sum()} of {len(changed)}",
                    f"{found['change'].max():.1%}",
                    brightest,
                    *(f"{np.mean(found[key]):+.3f}" for key in ("error", "pull")),
                    *(f"{np.std(found[key]):.3f}" for key in ("error", "pull", "error_off")),
                    f"{np.abs(found['error']).max():.1f}",
                )
            )
    label = ("filter", "stars", "exposures")
    head = ("off sources", "far from stars", "both", "off sources, 5 to 10 sigma", "missed off sources")
    head += ("false detections, of field", "protected")
    common.table("Completeness above 10 sigma, and false detections", (*label, *head), detection)
    head = ("stars changed by 0.1 %", "largest change", "brightest of these [sigma]")
    head += (
        "bias [sigma]",
        "bias [err]",
        "scatter [sigma]",
        "scatter [err]",
        "off sources [sigma]",
        "worst [sigma]",
    )
    common.table("Stars and repaired pixels", (*label, *head), changes)


# ---- mosaics --------------------------------------------------------------------------------------------


def mosaic(folder: Path, association: Path, name: str, *options: str):
    """Run calwebb_image3 and open its mosaic."""
    steps = [f"--steps.{step}.skip=true" for step in ("tweakreg", "skymatch", "source_catalog")]
    common.strun(folder, "calwebb_image3", str(association), f"--output_dir={name}", *steps, *options)
    return datamodels.open(next((folder / name).glob("*_i2d.fits")))


def old_loop(data: np.ndarray) -> np.ndarray:
    """Fill NaN as the script did: reads what it just filled, leaves out the first rows and columns."""
    data, half = data.copy(), WINDOW // 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for y in range(half, data.shape[0]):
            for x in range(half, data.shape[1]):
                if np.isnan(data[y, x]):
                    data[y, x] = np.nanmedian(data[y - half : y + half + 1, x - half : x + half + 1])
    return data


def nearest(model, drizzled, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the mosaic nearest to pixels of an exposure; those beside it are left out."""
    sky = model.meta.wcs(x, y, with_bounding_box=False)
    column, row = (np.rint(v).astype(int) for v in drizzled.meta.wcs.invert(*sky, with_bounding_box=False))
    ny, nx = drizzled.shape
    within = (row >= 0) & (row < ny) & (column >= 0) & (column < nx)
    return row[within], column[within]


def old(folder: Path) -> None:
    """Put the loop that is replaced beside the Step."""
    observation = observe("F770W", DENSITIES["sparse"], dithers=1)
    association = simulate.write(observation, folder, product="old")
    path = next(folder.glob("*_cal.fits"))
    rows, field, before = [], Field(observation, 0), observation[0]
    imager = detector.region_mask(["imager"])
    opaque = ~detector.region_mask(["imager", "lyot", "4qpm"])
    empty = np.isnan(before.data)
    for name in ("untouched", "old loop", "MedianHotPixelStep"):
        after = before.copy()
        start = time.perf_counter()
        if name == "old loop":
            after.data = old_loop(before.data)
        elif name == "MedianHotPixelStep":
            after = MedianHotPixelStep().run(after)
        seconds = time.perf_counter() - start
        filled = empty & np.isfinite(after.data)
        hot = field.hot & (np.nan_to_num(after.data) != np.nan_to_num(before.data))
        after.save(str(path))
        # Three times finer than the detector: the middle of a pixel is covered by that pixel alone.
        fine = mosaic(
            folder, association, name.replace(" ", "_"), f"--steps.resample.pixel_scale_ratio={1 / 3}"
        )
        weight = fine.wht[nearest(before, fine, *np.nonzero(empty & imager))]
        rows.append(
            (
                name,
                f"{hot.sum()} of {field.hot.sum()}",
                f"{(filled & imager).sum()} of {(empty & imager).sum()}",
                f"{np.count_nonzero(weight)}",
                f"{(filled & opaque).sum()}",
                f"{seconds:.2f}",
            )
        )
        fine.close()
    head = ("", "hot repaired", "holes filled", "holes with weight", "opaque pixels filled", "time [s]")
    common.table("Beside the old loop", head, rows)


def residue(folder: Path) -> None:
    """Hold mosaics with and without the hook against one without noise and bad pixels."""
    rows = []
    for dithers in (4, 1):
        place = folder / f"dithers{dithers}"
        kinds = {
            "truth": {"noise": 1e-6, "poisson": False, "bad_pixels": 0.0, "hot_pixels": 0.0},
            "clean": {"bad_pixels": 0.0, "hot_pixels": 0.0},
            "hot": {},
        }
        observations = {
            kind: observe("F770W", DENSITIES["sparse"], dithers=dithers, regions=("imager",), **given)
            for kind, given in kinds.items()
        }
        files = {kind: simulate.write(o, place / kind, product=kind) for kind, o in observations.items()}
        hook = "--steps.tweakreg.pre_hooks=miri_steps.MedianHotPixelStep,"
        runs = {
            "truth": ("truth", "--steps.outlier_detection.skip=true"),
            "no bad pixels at all": ("clean",),
            "stock": ("hot",),
            "with MedianHotPixelStep": ("hot", hook),
        }
        results = {
            label: mosaic(place, files[kind], f"run{k}", *options)
            for k, (label, (kind, *options)) in enumerate(runs.items())
        }
        goal = results.pop("truth")
        inside = goal.wht > 0
        hot = hot_on_mosaic(observations["hot"], goal) & inside
        dark = inside & (goal.data - SKY < NOISE)
        clean = results["no bad pixels at all"]
        noise = 1.4826 * np.nanmedian(np.abs(clean.data - goal.data)[dark])
        # Weights are inverse variances, and the truth has next to none.
        full = goal.wht * np.median(clean.wht[inside] / goal.wht[inside])
        for label, drizzled in results.items():
            error = np.where(drizzled.wht > 0, drizzled.data - goal.data, np.nan)
            rows.append(
                (
                    f"{dithers}",
                    label,
                    *(f"{np.count_nonzero(inside & (drizzled.wht <= part * full))}" for part in (0, 0.5)),
                    *(
                        f"{np.sqrt(np.nanmean(error[where] ** 2)) / noise:.2f}"
                        for where in (dark, dark & hot)
                    ),
                    f"{np.nanmean(error[dark]) / noise:+.3f}",
                    f"{np.count_nonzero(np.abs(error[dark]) > 5 * noise)}",
                )
            )
    head = ("exposures", "run", "no weight", "half or less", "rms", "rms at hot pixels", "mean")
    head += ("beyond 5 sigma",)
    common.table("Mosaics of calwebb_image3", head, rows)


def hot_on_mosaic(observation, drizzled) -> np.ndarray:
    """True on the mosaic pixels nearest to hot pixels of any exposure."""
    y, x = np.nonzero(observation.hot)
    found = np.zeros(drizzled.shape, bool)
    for model in observation:
        found[nearest(model, drizzled, y, x)] = True
    return found


# ---- cost -----------------------------------------------------------------------------------------------


def seconds(folder: Path) -> None:
    """Computing per full frame, and the whole Step on an open exposure."""
    rows = []
    for name in ("F560W", "F770W", "F2550W"):
        for density, stars in DENSITIES.items():
            model = observe(name, stars, dithers=1)[0]
            parts, whole = [], []
            for _ in range(9):
                given, step = model.copy(), WatchedStep()
                start = time.perf_counter()
                step.run(given)
                whole.append(time.perf_counter() - start)
                parts.append([*step.seconds.values(), sum(step.seconds.values())])
            best, middle = np.min(parts, axis=0), np.median(parts, axis=0)
            rows.append(
                (
                    *(name, density),
                    *(f"{value:.2f}" for value in (*best, middle[-1], min(whole), np.median(whole))),
                )
            )
    head = ("filter", "stars", "find", "repair", "both, best", "median", "step, best", "median")
    common.table("Seconds per full frame", head, rows)


def memory(folder: Path) -> None:
    """Time and peak memory of sets on disk with in_memory=False."""
    simulate.write(observe("F770W", DENSITIES["crowded"]), folder / "seen", product="seen")
    seen = sorted((folder / "seen").glob("*_cal.fits"))
    rows = []
    for count in (25, 100):
        place = folder / f"set{count}"
        place.mkdir()
        members = []
        for number in range(1, count + 1):
            with datamodels.open(seen[number % len(seen)]) as model:
                name = model.meta.filename.replace(
                    f"_{int(model.meta.observation.exposure_number):05d}_", f"_{number:05d}_"
                )
                model.meta.observation.exposure_number = str(number)
                model.save(str(place / name))
            members.append({"expname": name, "exptype": "science"})
        association = place / "set_asn.json"
        association.write_text(
            json.dumps({"asn_id": "a3001", "products": [{"name": "set", "members": members}]})
        )
        found = common.run_apart(COST, association=str(association))
        rows.append(
            (
                f"{count}",
                f"{found['seconds']:.0f}",
                f"{found['seconds'] / count:.2f}",
                f"{found['peak'] / 1024:.2f}",
            )
        )
    common.table(
        "Sets with in_memory=False", ("exposures", "time [s]", "per exposure [s]", "peak memory [GB]"), rows
    )


def apart(case: Callable[[Path], None]) -> Callable[[Path], None]:
    """Give a case a folder of its own that is deleted."""

    def run(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            case(Path(fresh))

    return run


CASES = {case.__name__: apart(case) for case in (truth, old, residue, seconds, memory)}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    common.main(__doc__.splitlines()[1], CASES)
