"""
Measure whole reductions on simulated truth: the stock chain, and miri_steps.reduction beside it.

    python tests/benchmarks/reduction.py [--folder DIR] [CASE ...]

Prints tables ready for docs/benchmarks.rst. Files go to a fresh folder inside DIR and are deleted. The case
``full`` needs 20 GB of disk; ``small`` is a field of 28 arcsec per exposure, to try things on. With
``keep`` in the environment variable REDUCTION_FILES the folder stays, and what is in it is used again.

The field, see reduction_field.py: three tiles of six dithers in F770W and F1800W, stars and galaxies, errors
of the guide stars, a sky level per visit, a dome and columns fixed to the detector, hot pixels that
nobody flagged, and cosmic rays in 5 % of all integrations that ramp fitting missed. Everything begins with
``_rate`` and ``_rateints``.

The measuring functions take a folder with ``stage2`` and ``stage3`` as miri_steps.reduction leaves it.
"""

import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import asdf
import common
import numpy as np
from astropy.io import fits
from jwst import datamodels
from jwst.associations.asn_from_list import asn_from_list
from jwst.pipeline import Image2Pipeline, Image3Pipeline
from jwst.resample import ResampleStep
from reduction_field import NOISE, Field, overrides, small
from scipy import ndimage
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps import detector, simulate
from miri_steps.demo import measure as demo
from miri_steps.simulate import metadata, sphere, wcs

# Side of the cells in which mosaics are compared [pixel], 2 arcsec, and how much of one must be sky.
CELL, FILLED = 18, 0.5
# The brighter stars, from this quantile of their fluxes on, tell where an exposure looks.
BRIGHT = 0.7
# Half side of the box whose median is what a hot pixel should be [pixel].
AROUND = 3
HOT = 5.0  # sigma

ROWS = (
    # quantity, key, target, unit, format
    ("tile steps, rms", "steps", "0.015", "MJy/sr", ".4f"),
    ("background of the mosaic, rms", "background", "", "MJy/sr", ".4f"),
    ("astrometry of tiles, rms per axis", "absolute", "8", "mas", ".1f"),
    ("between tiles, rms per axis", "relative", "8", "mas", ".1f"),
    ("exposures within tiles, rms per axis", "within", "", "mas", ".1f"),
    ("hot pixels gone", "hot", "99", "%", ".2f"),
    ("detector background left, rms over limit", "detector", "1.15", "", ".2f"),
    ("its bias", "bias", "0.05", "sigma", "+.3f"),
    ("noise of the rates over ideal", "rates", "1.1", "", ".2f"),
    ("time", "seconds", "", "s", ".0f"),
)


@dataclass(frozen=True)
class Truth:
    """What was observed in a filter, and exposures of the scene alone that know where they look."""

    field: Field
    observation: simulate.Observation
    association: Path

    @property
    def band(self) -> str:
        return self.observation.filter

    @property
    def tile(self) -> np.ndarray:
        return np.array([pointing.tile for pointing in self.observation.pointings])

    def number(self, name: str) -> int:
        """Find which exposure a file is of."""
        names = [pointing.name for pointing in self.observation.pointings]
        return names.index(name[: len(names[0])])


# ---- the runs -------------------------------------------------------------------------------------------


def run_stock(rates: Path, place: Path, truths: Sequence[Truth]) -> dict[str, float]:
    """Run the stock chain and give the time of each filter [s]; a filter that is there is not made again."""
    steps, took = overrides(place / "references"), {}
    for folder in ("stage2", "stage3"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    for truth in truths:
        begun, product = time.monotonic(), f"{rates.name}_{truth.band.lower()}"
        took[truth.band] = np.nan
        if (place / "stage3" / f"{product}_i2d.fits").exists():
            continue
        cals = [calibrate(rates, place / "stage2", p.name, steps) for p in truth.observation.pointings]
        association = associate(sorted(cals), product, place / "stage3")
        run_image3(association, truth.band, rates / f"{product}_refcat.ecsv")
        took[truth.band] = time.monotonic() - begun
    return took


def calibrate(rates: Path, folder: Path, name: str, steps: dict) -> Path:
    """Run calwebb_image2 on one exposure."""
    given = {"steps": steps, "save_results": True, "output_dir": str(folder), "configure_log": False}
    for model in Image2Pipeline.call(str(rates / f"{name}_rate.fits"), **given):
        model.close()
    return folder / f"{name}_cal.fits"


def associate(members: Sequence[Path], product: str, folder: Path) -> Path:
    """Name the members of a mosaic in a file, as jwst itself does."""
    _, text = asn_from_list([os.path.relpath(path, folder) for path in members], product_name=product).dump()
    path = folder / f"{product}_asn.json"
    path.write_text(text)
    return path


def run_image3(association: Path, band: str, catalog: Path) -> None:
    """Run calwebb_image3 as it comes; kernel_fwhm is what CRDS would give for the filter."""
    steps = {
        "tweakreg": {"abs_refcat": str(catalog), "kernel_fwhm": detector.FWHM[band]},
        "source_catalog": {"skip": True},
    }
    given = {"save_results": True, "output_dir": str(association.parent)}
    Image3Pipeline.call(str(association), steps=steps, configure_log=False, **given)


def run_ours(rates: Path, place: Path, truths: Sequence[Truth]) -> dict[str, float] | None:
    """Run miri_steps.reduction on the same rates and give the time of each filter [s]; None without it."""
    try:
        from miri_steps.reduction import reduce
    except ImportError:
        return None
    changes = {
        f"image2.{step}.{name}": value
        for step, pars in overrides(place.parent / "references").items()
        for name, value in pars.items()
    }
    catalog = rates / f"{rates.name}_{truths[0].band.lower()}_refcat.ecsv"
    changes |= {"tile_astrometry.reference_catalog": str(catalog), "source_catalog.skip": True}
    begun = time.monotonic()
    print(reduce(rates, place, changes=changes))
    # The filters are reduced in one run.
    return dict.fromkeys((truth.band for truth in truths), (time.monotonic() - begun) / len(truths))


# ---- measures -------------------------------------------------------------------------------------------


def measure(stage3: Path, product: str, truth: Truth) -> dict[str, float]:
    """
    Hold a mosaic and its exposures against the truth.

    Parameters
    ----------
    stage3 : Path
        Folder with ``<product>_i2d.fits`` and the ``_crf.fits`` of its exposures; ``stage2`` lies beside.
    product : str
        Name of the mosaic.
    truth : Truth
        What is true.

    Returns
    -------
    dict
        Numbers by their names in ``ROWS``; NaN where there is nothing to measure.
    """
    crfs = {truth.number(path.name): path for path in find_crfs(stage3, truth)}
    if not crfs:
        raise FileNotFoundError(f"there is no _crf.fits of {product} in {stage3}")
    return {
        **mosaic_errors(stage3 / f"{product}_i2d.fits", truth),
        **pointing_errors(crfs, truth),
        "hot": hot_pixels_gone(crfs, truth),
        **detector_errors(crfs, stage3.parent / "stage2", truth),
        "rates": rate_noise(stage3.parent / "stage2", truth),
    }


def find_crfs(stage3: Path, truth: Truth) -> list[Path]:
    names = [pointing.name for pointing in truth.observation.pointings]
    return [path for name in names for path in sorted(stage3.glob(f"{name}*_crf.fits"))[:1]]


def mosaic_errors(path: Path, truth: Truth) -> dict[str, float]:
    """Steps between what only one tile sees, and rms of the cells of sky, of mosaic minus truth [MJy/sr]."""
    true = true_mosaic(path, truth)
    with fits.open(path) as hdus:
        image = hdus["SCI"].data.astype(float)
        members = [truth.number(name) for name in hdus["HDRTAB"].data["FILENAME"]]
        areas = demo.tile_areas(hdus["CON"].data, truth.tile[members])
    sources = ndimage.binary_dilation(true > NOISE[truth.band], iterations=3)
    remainder = np.where(sources, np.nan, demo.difference(image, true))
    tiles = [np.nanmedian(cells(np.where(area, remainder, np.nan))) for area in areas]
    return {"steps": float(np.std(tiles)), "background": float(np.nanstd(cells(remainder)))}


def true_mosaic(path: Path, truth: Truth) -> np.ndarray:
    """Drizzle the scene alone, from where the telescope really looked, onto the pixels of a mosaic."""
    with datamodels.open(path) as model, tempfile.TemporaryDirectory() as folder:
        gwcs = model.meta.wcs
        gwcs.array_shape = model.data.shape
        asdf.AsdfFile({"wcs": gwcs}).write_to(f"{folder}/wcs.asdf")
        given = {"output_wcs": f"{folder}/wcs.asdf", "in_memory": False, "configure_log": False}
        result = ResampleStep.call(str(truth.association), **given)
        return np.array(result.data, float)


def cells(image: np.ndarray) -> np.ndarray:
    """Medians of the cells of an image that have enough sky."""
    ny, nx = (n // CELL for n in image.shape)
    blocks = image[: ny * CELL, : nx * CELL].reshape(ny, CELL, nx, CELL).swapaxes(1, 2).reshape(-1, CELL**2)
    return np.nanmedian(blocks[np.isfinite(blocks).mean(axis=1) > FILLED], axis=1)


def pointing_errors(crfs: dict[int, Path], truth: Truth) -> dict[str, float]:
    """Say where the WCS of the exposures puts their bright stars: errors of the tiles, rms per axis [mas]."""
    errors = np.array([pointing_error(path, i, truth) for i, path in crfs.items()])
    number = truth.tile[list(crfs)]
    tiles = np.array([errors[number == tile].mean(axis=0) for tile in np.unique(number)])
    within = [errors[number == tile] - errors[number == tile].mean(axis=0) for tile in np.unique(number)]
    return {
        "absolute": rms(tiles),
        # One mean is given away.
        "relative": rms(tiles - tiles.mean(axis=0)) * (len(tiles) / max(len(tiles) - 1, 1)) ** 0.5,
        "within": rms(np.concatenate(within)),
    }


def pointing_error(path: Path, i: int, truth: Truth) -> np.ndarray:
    """Mean over the bright stars of an exposure of where its WCS puts them less where they are [mas]."""
    o = truth.observation
    nominal = o.pointings[i]
    ra, dec = sphere.offset(nominal.ra, nominal.dec, *o.pointing_error[i])
    stars = o.scene.stars
    sky = sphere.unit_vectors(np.array(stars["ra"]), np.array(stars["dec"]))
    x, y = wcs.sky_to_pixels(sky, replace(nominal, ra=ra, dec=dec), o.filter, o.subarray)
    window = detector.SUBARRAYS[o.subarray]
    inside = (x > 5) & (x < window.xsize - 6) & (y > 5) & (y < window.ysize - 6)
    inside[inside] = imager(o.subarray)[np.round(y[inside]).astype(int), np.round(x[inside]).astype(int)]
    bright = inside & (np.array(stars["flux"]) > np.quantile(stars["flux"], BRIGHT))
    with datamodels.open(path) as model:
        found = sphere.unit_vectors(*model.meta.wcs(x[bright], y[bright]))
    is_at, should_be = (
        np.stack(sphere.to_tangent(vectors, nominal.ra, nominal.dec)) for vectors in (found, sky[bright])
    )
    return 1e3 * (is_at - should_be).mean(axis=1)


def hot_pixels_gone(crfs: dict[int, Path], truth: Truth) -> float:
    """Share of the imager's hot pixels that reach the mosaic no more, or deviate by less than 5 sigma [%]."""
    hot, left = (truth.observation.hot > HOT) & imager(truth.observation.subarray), 0
    for i, path in crfs.items():
        with fits.open(path) as hdus:
            data, dq = hdus["SCI"].data.astype(float), hdus["DQ"].data
            sigma = np.sqrt(hdus["VAR_POISSON"].data + hdus["VAR_RNOISE"].data)
        lost = (dq & pixel["DO_NOT_USE"]) > 0
        remainder = np.where(lost, np.nan, data - truth.observation.signal(i))
        off = remainder[hot] - medians_around(np.where(hot, np.nan, remainder), hot)
        left += int(np.sum(np.abs(off) > HOT * sigma[hot]))
    return 100.0 * (1.0 - left / (int(hot.sum()) * len(crfs)))


def medians_around(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Medians of the boxes around some pixels."""
    y, x = np.nonzero(where)
    padded = np.pad(image, AROUND, constant_values=np.nan)
    size = 2 * AROUND + 1
    boxes = np.lib.stride_tricks.sliding_window_view(padded, (size, size))[y, x]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(boxes.reshape(len(y), -1), axis=1)


def detector_errors(crfs: dict[int, Path], stage2: Path, truth: Truth) -> dict[str, float]:
    """
    Compare what was removed from the exposures with the true background.

    Rms of the errors, their median removed, over noise / sqrt(n - 1), the limit of an average of all other
    exposures; and the median over the noise where anything has been removed. Means of the exposures.
    """
    o, found = truth.observation, []
    good = imager(o.subarray) & (o.flags == 0) & (o.hot == 0)
    for i, path in crfs.items():
        cal = fits.getdata(stage2 / f"{o.pointings[i].name}_cal.fits", "SCI").astype(float)
        removed = (cal - fits.getdata(path, "SCI"))[good]
        error = (o.background(i)[good] - removed)[np.isfinite(removed)]
        middle = np.median(error)
        limit = o.noise / np.sqrt(len(o) - 1)
        bias = middle / o.noise if np.nanstd(removed) > 0 else np.nan
        found.append((rms(error - middle) / limit, bias))
    size, bias = np.mean(found, axis=0)
    return {"detector": float(size), "bias": float(bias)}


def rate_noise(stage2: Path, truth: Truth) -> float:
    """Rms of calibrated rate minus truth, relative to that of the mean of the samples that were not hit."""
    o, ratios = truth.observation, []
    # One exposure of each tile: they are all alike.
    for i in np.unique(truth.tile, return_index=True)[1]:
        made = simulate.integrate(o, int(i), **truth.field.readout())
        clean = np.where(made.hit, np.nan, made.rateints.data)
        cal = fits.getdata(stage2 / f"{o.pointings[i].name}_cal.fits", "SCI") / metadata.CONVERSION
        good = np.isfinite(cal) & np.isfinite(clean).any(axis=0)
        ideal = np.nanmean(clean[:, good], axis=0) - made.truth[good]
        ratios.append(rms(cal[good] - made.truth[good]) / rms(ideal))
    return float(np.mean(ratios))


def imager(subarray: str) -> np.ndarray:
    """True on the imager's field in the frame of a subarray."""
    window = detector.SUBARRAYS[subarray]
    return detector.region_mask("imager", shape=window.shape, xstart=window.xstart, ystart=window.ystart)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


# ---- cases ----------------------------------------------------------------------------------------------


def prepare(field: Field, folder: Path) -> tuple[Path, list[Truth]]:
    """Write the rates of both filters into one folder, and the scene alone into others."""
    rates, truths = folder / "field", []
    for band in NOISE:
        place = folder / f"true_{band.lower()}"
        association = place / "true_asn.json"
        observation = field.observe(band)
        if not association.exists():
            field.write(band, rates)
            association = simulate.write(field.observe(band, true=True), place, "true")
        truths.append(Truth(field, observation, association))
    return rates, truths


def compare(field: Field, folder: Path) -> None:
    """Run both chains on a field and print their errors side by side."""
    rates, truths = prepare(field, folder)
    runs = {"stock": run_stock, "ours": run_ours}
    found = {}
    for name, run in runs.items():
        place = folder / name
        took = run(rates, place, truths)
        if took is None:
            continue
        for truth in truths:
            product = f"{rates.name}_{truth.band.lower()}"
            numbers = measure(place / "stage3", product, truth) | {"seconds": took[truth.band]}
            found[name, truth.band] = numbers
            # The other chain takes its time.
            print(f".. {name} {truth.band}: {numbers}", flush=True)
    for truth in truths:
        columns = [found.get((name, truth.band), {}) for name in runs]
        rows = [
            (quantity, target, *(cell(numbers.get(key), form) for numbers in columns), unit)
            for quantity, key, target, unit, form in ROWS
        ]
        title = f"{truth.band}: {field.tiles} tiles of {field.dithers} dithers, {field.subarray}"
        common.table(title, ("quantity", "target", *runs, "unit"), rows)


def cell(value: float | None, form: str) -> str:
    return "" if value is None or np.isnan(value) else f"{value:{form}}"


def full(folder: Path) -> None:
    """Three tiles of six full frames in two filters."""
    compare(Field(), folder)


def small_field(folder: Path) -> None:
    """The same with a subarray: some minutes."""
    compare(small(), folder)


def apart(case: Callable[[Path], None]) -> Callable[[Path], None]:
    """Give a case a folder of its own that is deleted."""

    def run(folder: Path) -> None:
        place = folder / f"reduction_{case.__name__}"
        place.mkdir(exist_ok=True)
        try:
            case(place)
        finally:
            if os.environ.get("REDUCTION_FILES") != "keep":
                shutil.rmtree(place)

    return run


CASES = {"full": apart(full), "small": apart(small_field)}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ["STPIPE_DISABLE_CRDS_STEPPARS"] = "true"
    common.main(__doc__.splitlines()[1], CASES)
