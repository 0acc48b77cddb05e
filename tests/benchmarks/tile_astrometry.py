"""
Measure TileAstrometryStep on simulated truth beside the stock tweakreg, on real shifts, and its cost.

    python tests/benchmarks/tile_astrometry.py [--folder DIR] [CASE ...]

Prints tables ready for docs/benchmarks.rst. Files go to a fresh folder inside DIR and are deleted. Needs
the real data in ../shared/data: Gaia stars and published shifts.

The field: a row of five tiles on real Gaia stars, with pointing errors as real guide stars have them. The
stars are where Gaia's motions bring them on the day of the exposures, within Gaia's own errors; they
have the colours of cool stars, and are bright in MIRI as on the tail of a black body. Gaia stars
alone are too few for tweakreg, so there are fainter ones in between, as in the outskirts of the LMC,
and some galaxies. Stars alone are found so well, to a few hundredths of a pixel, that tweakreg would
scatter exposures by less than 1 mas. In real data it scatters them more, because not all that it finds
are stars: so bright giants are added, around which it takes diffraction rings for stars and matches them,
within its tolerance of 0.7 arcsec, with others. There are as many as it takes to scatter exposures by
15 to 25 mas.
"""

import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import common
import numpy as np
from astropy.table import Table
from astropy.time import Time
from jwst import datamodels
from photutils.detection import DAOStarFinder
from tweakwcs.correctors import JWSTWCSCorrector

from miri_steps import TileAstrometryStep, detector, simulate
from miri_steps.simulate import sphere, wcs

DATA = Path(__file__).parents[3] / "shared/data"
CENTER, FIRST_DAY = (339.014, 33.948), 60000.0

# Tile errors, East and North [arcsec]: LMC visits 001 and (signs changed) 005, Carina 002, and two between.
TILE_ERRORS = np.array([[0.106, -0.118], [1.050, -0.980], [-0.350, 0.420], [0.185, -0.037], [-0.620, 0.150]])
# One exposure more per tile than the 10 that are usual: up to 50 exposures tweakreg takes the exact union of
# their outlines, which was not done after many minutes; above 50 it takes the hull, in a second.
DITHERS = 11
STEP = 60.0, 100.0  # of tiles along x and y [arcsec]

GAIA_COLUMNS = ("ra", "dec", "ra_error", "dec_error", "pmra", "pmdec", "pmra_error", "pmdec_error")
GAIA_COLUMNS += ("ref_epoch", "phot_g_mean_mag")
MAS = 3.6e6  # in a degree
# Error of a motion that Gaia does not give, for the faintest [mas/yr].
UNKNOWN_MOTION = 3.0
# Brightness of a K star of G = 0 in F560W [mJy]: G - K = 2, and K = 0 is 113 Jy there.
GAIA_ZERO = 1.13e5 * 10 ** (0.4 * 2.0)
# Sources that Gaia does not have: how many per square arcmin, faintest and brightest in F560W [mJy], and
# exponent of the number per flux interval. The bright ones are dusty giants; galaxies are clusters of knots.
FAINT, BRIGHT, GALAXIES = (50.0, 1e-3, 0.02, -1.6), (8.0, 0.3, 3.0, -1.0), (5.0, 1e-3, 0.02, -1.0)
KNOTS = 12
BOX = 420.0, 200.0  # [arcsec]
# An exposure of 2 minutes [MJy/sr].
NOISE = {"F560W": 0.05, "F770W": 0.1, "F1800W": 1.5, "F2550W": 8.0}
SKY = {"F560W": 3.0, "F770W": 8.0, "F1800W": 80.0, "F2550W": 300.0}

# Where the WCS of an exposure is held against the truth [pixel]: the imager.
GRID = np.meshgrid(np.linspace(370, 1015, 6), np.linspace(8, 1015, 8))

SKIPPED = ("skymatch", "outlier_detection", "source_catalog")

# Centre [deg] and position angle of V3 [deg] of the real fields, and the published tile averages [arcsec].
REAL = {"LMC": ((80.5, -69.5), 73.0), "Carina": ((159.2, -58.6), 118.0)}
PUBLISHED = {
    "LMC": (
        (0.10637643, -0.11768223),
        (0.10700657, -0.13107962),
        (0.10163924, -0.12152159),
        (0.09065353, -0.12144904),
        (-0.97575431, 1.04564991),
    ),
    "Carina": (
        (0.18453315, -0.03236585),
        (0.18538585, -0.03966800),
        (1.75057508, -1.82668333),
        (0.18747005, -0.03952807),
        (0.18938012, -0.03749062),
    ),
}

COST = """
from miri_steps import TileAstrometryStep
start = time.perf_counter()
TileAstrometryStep.call(given["association"], configure_log=False, in_memory=False)
found["seconds"] = time.perf_counter() - start
"""


# ---- the field ------------------------------------------------------------------------------------------


def gaia(seed: int = 1) -> tuple[Table, Table, Table]:
    """Gaia's table, what it says of the day of the exposures, and where the stars really are then."""
    given = Table.read(DATA / "gaia/Gaia_DR3_NGC7320.fits")
    table = Table({name: np.ma.filled(given[name].astype(float), np.nan) for name in GAIA_COLUMNS})
    rng = np.random.default_rng(seed)
    years = Time(FIRST_DAY, format="mjd").jyear - table["ref_epoch"]
    predicted, true = Table(), Table()
    for axis, scale in (("ra", np.cos(np.radians(table["dec"]))), ("dec", 1.0)):
        motion, unknown = np.array(table[f"pm{axis}"]), np.isnan(table[f"pm{axis}"])
        error = np.where(unknown, UNKNOWN_MOTION, table[f"pm{axis}_error"])
        moved = table[axis] + np.where(unknown, 0, motion) * years / MAS / scale
        predicted[axis.upper()] = moved
        sigma = np.hypot(table[f"{axis}_error"], error * years)
        true[axis] = moved + sigma * rng.standard_normal(len(table)) / MAS / scale
    true["flux_mjy"] = GAIA_ZERO * 10 ** (-0.4 * table["phot_g_mean_mag"])
    for name in ("ra", "dec"):
        table[name].unit = "deg"
    for name in ("pmra", "pmdec"):
        table[name].unit = "mas/yr"
    table["ref_epoch"].unit = "yr"
    return table, predicted, true


def other_sources(seed: int = 1) -> Table:
    """Stars that Gaia does not have, and galaxies, over the whole mosaic."""
    rng = np.random.default_rng([seed, 7])
    parts = []
    for density, low, high, slope in (FAINT, BRIGHT, GALAXIES):
        n = rng.poisson(density * BOX[0] * BOX[1] / 3600)
        place, share = (rng.random((n, 2)) - 0.5) * BOX, rng.random(n)
        power = slope + 1
        flux = (
            (low**power + share * (high**power - low**power)) ** (1 / power)
            if power
            else low * (high / low) ** share
        )
        parts.append(np.column_stack([place, flux]))
    galaxies = np.repeat(parts.pop(), KNOTS, axis=0)
    galaxies[:, :2] += 0.3 * rng.standard_normal((len(galaxies), 2))
    galaxies[:, 2] /= KNOTS
    east, north, flux = np.concatenate([*parts, galaxies]).T
    ra, dec = sphere.lon_lat(sphere.from_tangent(east, north, *CENTER))
    return Table([ra, dec, flux], names=("ra", "dec", "flux_mjy"))


def observe(band: str, dithers: int = DITHERS, seed: int = 1) -> simulate.Observation:
    """Plan the field in a filter."""
    # All on the tail of a black body.
    dimmer = (detector.BANDS["F560W"].wavelength / detector.BANDS[band].wavelength) ** 2
    scene = simulate.Scene(*CENTER)
    for catalog in (gaia(seed)[2], other_sources(seed)):
        catalog["flux_mjy"] *= dimmer
        scene = scene.with_catalog(catalog)
    plan = simulate.mosaic(*CENTER, tiles=(len(TILE_ERRORS), 1), dithers=dithers, tile_step=STEP)
    errors = TILE_ERRORS[[pointing.tile - 1 for pointing in plan]]
    return simulate.observe(
        scene, plan, band, sky=SKY[band], noise=NOISE[band], pointing_error=errors, seed=seed
    )


def write(observation: simulate.Observation, folder: Path) -> Path:
    """Write the exposures and both tables of Gaia stars."""
    association = simulate.write(observation, folder, product=observation.filter.lower())
    table, predicted, _ = gaia(observation.seed)
    table.write(folder / "gaia_dr3.ecsv")
    predicted.write(folder / "gaia_that_day.ecsv")
    return association


# ---- runs and what they leave ---------------------------------------------------------------------------


def look(library):
    """As a hook: write down where the WCS of every exposure puts the pixels of the grid, and the time."""
    now, names, sky = time.time(), [], []
    with library:
        for model in library:
            names.append(model.meta.filename.rsplit("_", 1)[0])
            sky.append(model.meta.wcs(*GRID))
            library.shelve(model, modify=False)
    number = len(list(Path().glob("seen*.npz")))
    np.savez(f"seen{number}.npz", names=names, sky=sky, start=now, end=time.time())
    return library


def image3(folder: Path, association: Path, hooks: list[str], *options: str) -> list[dict]:
    """Run calwebb_image3 and give what its hooks `look` saw, the first of them before tweakreg."""
    place = folder / f"run{len(list(folder.glob('run*')))}"
    place.mkdir()
    for table in association.parent.glob("*.ecsv"):
        (place / table.name).symlink_to(table)
    skipped = [f"--steps.{step}.skip=true" for step in SKIPPED]
    # In quotes, or the commas between its parameters would end a hook.
    post = "--steps.tweakreg.post_hooks=" + "".join(f'"{hook}",' for hook in hooks)
    before = "--steps.tweakreg.pre_hooks=tile_astrometry.look,"
    common.strun(place, "calwebb_image3", str(association), before, post, *skipped, *options)
    seen = [np.load(path) for path in sorted(place.glob("seen*.npz"))]
    return [{key: each[key] for key in each} | {"folder": place} for each in seen]


def errors(seen: dict, observation: simulate.Observation) -> np.ndarray:
    """Mean error of each exposure, East and North, and rms of what is left within it [mas]."""
    found = []
    for i, pointing in enumerate(observation.pointings):
        here = seen["sky"][list(seen["names"]).index(pointing.name)]
        ra, dec = sphere.offset(pointing.ra, pointing.dec, *observation.pointing_error[i])
        truth = wcs.build(replace(pointing, ra=ra, dec=dec), observation.filter)(*GRID)
        is_at, should_be = (
            np.stack(sphere.to_tangent(sphere.unit_vectors(*sky), *CENTER)) for sky in (here, truth)
        )
        off = 1e3 * (is_at - should_be).reshape(2, -1)
        mean = off.mean(axis=1)
        found.append([*mean, np.sqrt(((off - mean[:, None]) ** 2).sum(axis=0).mean())])
    return np.array(found)


def summary(seen: dict, observation: simulate.Observation) -> tuple[str, ...]:
    """Put the errors of a run into cells."""
    off = errors(seen, observation)
    numbers = np.array([pointing.tile for pointing in observation.pointings])
    tiles = np.array([off[numbers == tile, :2].mean(axis=0) for tile in np.unique(numbers)])
    relative = off[:, :2] - tiles[numbers - 1]
    # Each tile gives away one mean.
    within = np.sqrt((relative**2).sum() / 2 / (len(off) - len(tiles)))
    common_part = tiles.mean(axis=0)
    cells = (
        np.sqrt((tiles**2).mean()),
        np.hypot(*tiles.T).max(),
        np.hypot(*common_part),
        np.sqrt(((tiles - common_part) ** 2).sum() / 2 / (len(tiles) - 1)),
        within,
        np.hypot(*relative.T).max(),
        np.median(off[:, 2]),
    )
    return tuple(f"{cell:.1f}" if cell >= 0.95 else f"{cell:.2f}" for cell in cells)


HEAD = (
    "run",
    "tile error, rms per axis",
    "largest",
    "mean of field",
    "rms without it",
    "within tiles, rms per axis",
    "largest",
    "rotation and distortion",
)


def tweakreg(band: str) -> list[str]:
    """Parameters of the stock tweakreg."""
    given = {"kernel_fwhm": detector.FWHM[band], "abs_refcat": "gaia_that_day.ecsv"}
    return [f"--steps.tweakreg.{name}={value}" for name, value in given.items()]


def step(**parameters: object) -> list[str]:
    """Give the Step as a hook, with a look after it; a hook must not have a dot in its parameters."""
    given = ",".join(f"{name}={value!r}" for name, value in parameters.items())
    return [f"miri_steps.TileAstrometryStep({given})", "tile_astrometry.look"]


NO_TWEAKREG = "--steps.tweakreg.skip=true"
NO_MOSAIC = "--steps.resample.skip=true"


def mosaic(folder: Path) -> None:
    """Run calwebb_image3 with the stock tweakreg, the Step behind it, and the Step alone against Gaia."""
    observation = observe("F560W")
    association = write(observation, folder / "cal")
    hooks = ["tile_astrometry.look", *step(save_corrections=True)]
    before, stock, ours = image3(folder, association, hooks, *tweakreg("F560W"), NO_MOSAIC)
    direct = image3(folder, association, step(reference_catalog="gaia_dr3"), NO_TWEAKREG, NO_MOSAIC)
    rows = [
        ("as it came", *summary(before, observation)),
        ("stock tweakreg", *summary(stock, observation)),
        ("TileAstrometryStep after it", *summary(ours, observation)),
        ("TileAstrometryStep, reference_catalog", *summary(direct[-1], observation)),
    ]
    common.table("A mosaic of 5 tiles in F560W: errors [mas]", HEAD, rows)
    took = [f"{after['start'] - begin['end']:.0f}" for begin, after in ((before, stock), (stock, ours))]
    took.append(f"{direct[-1]['start'] - direct[0]['end']:.0f}")
    head = ("exposures", "stock tweakreg", "TileAstrometryStep after it", "with reference_catalog")
    common.table("Time [s]", head, [(f"{len(observation)}", *took)])


def filters(folder: Path) -> None:
    """Reduce filters in which tweakreg finds too few stars, with what was measured in F560W."""
    first = observe("F560W", dithers=4)
    association = write(first, folder / "F560W")
    hooks = step(reference_catalog="gaia_dr3", save_corrections=True)
    measured = image3(folder, association, hooks, NO_TWEAKREG)[-1]
    corrections = next(measured["folder"].glob("*tiles.ecsv"))
    stars = catalogue(next(measured["folder"].glob("*_i2d.fits")))
    rows = [("F560W", "reference_catalog: Gaia", *summary(measured, first))]
    empty_folder(folder / "F560W")
    for band in ("F770W", "F1800W", "F2550W"):
        observation = observe(band, dithers=4)
        place = folder / band
        association = write(observation, place)
        (place / "f560w_tiles.ecsv").write_bytes(corrections.read_bytes())
        stars.write(place / "f560w_stars.ecsv")
        if band != "F770W":
            stock = image3(folder, association, ["tile_astrometry.look"], *tweakreg(band), NO_MOSAIC)[-1]
            rows.append((band, "stock tweakreg", *summary(stock, observation)))
        for label, given in (
            ("corrections of F560W", {"corrections": "f560w_tiles"}),
            ("reference_catalog: stars of the F560W mosaic", {"reference_catalog": "f560w_stars"}),
        ):
            seen = image3(folder, association, step(**given), NO_TWEAKREG, NO_MOSAIC)[-1]
            rows.append((band, label, *summary(seen, observation)))
        empty_folder(place)
    common.table("Other filters: errors [mas]", ("filter", *HEAD), rows)


def empty_folder(folder: Path) -> None:
    """Delete exposures that are not needed any more: 30 MB each."""
    for path in folder.glob("*_cal.fits"):
        path.unlink()


def catalogue(path: Path) -> Table:
    """Make a catalogue of the stars of a mosaic, as a user would."""
    with datamodels.open(path) as model:
        middle = np.nanmedian(model.data)
        noise = 1.4826 * np.nanmedian(np.abs(model.data - middle))
        # Diffraction rings are no stars: one source within an arcsec.
        finder = DAOStarFinder(10 * noise, detector.FWHM["F560W"], min_separation=9)
        found = finder(np.nan_to_num(model.data - middle), mask=~np.isfinite(model.data))
        x, y = (
            found[[name for name in found.colnames if re.fullmatch(f"{axis}_?centroid", name)][0]]
            for axis in "xy"
        )
        return Table(model.meta.wcs(np.array(x), np.array(y)), names=("RA", "DEC"), units=("deg", "deg"))


def real_exposures(field: str) -> tuple[list, Table]:
    """Simulate exposures with the visits and guide stars of a real field, and give them its real fits."""
    table = Table.read(DATA / "tweakreg_shifts.ecsv")
    table = table[table["field"] == field]
    (ra, dec), roll = REAL[field]
    visits = list(dict.fromkeys(table["visit_id"]))
    plan = simulate.mosaic(ra, dec, tiles=(len(visits), 1), dithers=10, tile_step=STEP, pa=roll)
    used = dict.fromkeys(visits, 0)
    pointings = []
    for row in table:
        at = plan[10 * visits.index(row["visit_id"]) + used[row["visit_id"]]]
        used[row["visit_id"]] += 1
        _, group, exposure, _ = row["exposure"].split("_")
        names = {"visit_group": group[:2], "sequence": group[2], "activity": group[3:]}
        given = {"visit_id": row["visit_id"], "gs_id": row["gs_id"], "exposure": int(exposure)}
        pointings.append(replace(at, **names, **given))
    observation = simulate.observe(
        simulate.Scene(ra, dec), pointings, str(table["filter"][0]), subarray="SUB64"
    )
    models = list(observation)
    for model, row in zip(models, table, strict=True):
        pretend_fit(model, (row["shift_east"], row["shift_north"]))
    return models, table


def pretend_fit(model: datamodels.ImageModel, shift: tuple[float, float]) -> None:
    """Leave in an exposure what tweakreg leaves that found a shift, East and North [arcsec]."""
    info = {name: getattr(model.meta.wcsinfo, name) for name in ("v2_ref", "v3_ref", "roll_ref")}
    corrector = JWSTWCSCorrector(model.meta.wcs, info)
    corrector.set_correction(shift=shift)
    model.meta.wcs = corrector.wcs
    model.meta.cal_step.tweakreg = "COMPLETE"


def real(folder: Path) -> None:
    """Average real fits, and hold the averages against the published ones."""
    rows = []
    for field, published in PUBLISHED.items():
        models, table = real_exposures(field)
        place = folder / field
        place.mkdir()
        TileAstrometryStep.call(
            datamodels.ModelContainer(models),
            save_corrections=True,
            output_dir=str(place),
            configure_log=False,
        )
        found = Table.read(next(place.glob("*tiles.ecsv")))
        found.sort("visit_id")
        # Empty cells come back masked.
        found["rejected"] = np.ma.filled(found["rejected"].astype(str), "")
        for row, expected in zip(found, published, strict=True):
            ours = np.array([row["shift_east"], row["shift_north"]])
            rejected = [entry.split(":")[0] for entry in row["rejected"].split("; ") if entry]
            rows.append(
                (
                    *(field, row["visit_id"], f"{ours[0]:+.4f} {ours[1]:+.4f}"),
                    " ".join(f"{value:+.4f}" for value in expected),
                    f"{1e3 * np.hypot(*(ours - expected)):.2f}",
                    f"{row['scatter']:.1f}",
                    f"{row['exposures'] - len(rejected)} of {row['exposures']}",
                    " ".join(rejected) or "-",
                )
            )
    head = ("field", "visit", "shift [arcsec]", "published [arcsec]", "difference [mas]", "scatter [mas]")
    common.table("Real tweakreg shifts", (*head, "exposures used", "rejected"), rows)


def many(folder: Path) -> None:
    """Time and peak memory of sets on disk with in_memory=False."""
    plan = simulate.mosaic(*CENTER, tiles=(1, 1), dithers=10)
    models = list(simulate.observe(simulate.Scene(*CENTER), plan, "F560W", subarray="SUB256"))
    nominal = [model.meta.wcs for model in models]
    rng, rows = np.random.default_rng(1), []
    for count in (50, 200):
        place = folder / f"set{count}"
        place.mkdir()
        members = []
        for tile in range(1, count // len(models) + 1):
            centre = rng.uniform(-1, 1, 2)
            for model, gwcs in zip(models, nominal, strict=True):
                model.meta.wcs = gwcs
                pretend_fit(model, centre + rng.normal(0, 0.01, 2))
                visit = f"01234001{tile:03d}"
                name = f"jw{visit}{model.meta.filename[13:]}"
                model.meta.observation.visit_id, model.meta.observation.visit_number = visit, visit[-3:]
                model.meta.guidestar.gs_id = f"S1HP{tile:06d}"
                model.save(str(place / name))
                members.append({"expname": name, "exptype": "science"})
        association = place / "set_asn.json"
        products = [{"name": "set", "members": members}]
        association.write_text(json.dumps({"asn_id": "a3001", "products": products}))
        found = common.run_apart(COST, association=str(association))
        seconds = found["seconds"]
        rows.append((f"{count}", f"{seconds:.0f}", f"{seconds / count:.2f}", f"{found['peak'] / 1024:.2f}"))
    head = ("exposures", "time [s]", "per exposure [s]", "peak memory [GB]")
    common.table("Sets with in_memory=False", head, rows)


def apart(case: Callable[[Path], None]) -> Callable[[Path], None]:
    """Give a case a folder of its own that is deleted."""

    def run(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            case(Path(fresh))

    return run


CASES = {case.__name__: apart(case) for case in (mosaic, filters, real, many)}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ["STPIPE_DISABLE_CRDS_STEPPARS"] = "true"
    # The hooks of this file are found by the pipeline under its name.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    )
    common.main(__doc__.splitlines()[1], CASES)
