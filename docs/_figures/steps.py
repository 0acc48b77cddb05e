"""
Draw the before and after pictures of the pages of the Steps.

    python docs/_figures/steps.py                    # all of them
    python docs/_figures/steps.py super_background   # one of them

The fields are simulated, the mosaics are made by strun calwebb_image3; it takes minutes.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
# jwst asks CRDS for parameters on every Step it builds unless told not to.
os.environ["STPIPE_DISABLE_CRDS_STEPPARS"] = "true"
import matplotlib.pyplot as plt
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from jwst import datamodels

from miri_steps import StarPhotometryStep, simulate
from miri_steps.fluxcal import encircled, reference_files

STATIC = Path(__file__).parents[1] / "_static"
SKY = 4.0
# What the MIRI team chose for these filters (jwst issue 7076), also for the fit to the catalogue.
TWEAKREG = {
    "F560W": {"kernel_fwhm": 1.63},
    "F1130W": {"kernel_fwhm": 3.32, "fitgeometry": "shift", "abs_fitgeometry": "shift"},
}


def strun(folder: Path, *arguments: str) -> None:
    """Run strun in a folder."""
    program = Path(sys.executable).with_name("strun")
    subprocess.run([program, *arguments], cwd=folder, check=True)


def mosaic(folder: Path, association: Path, name: str, *arguments: str) -> np.ndarray:
    """Make a mosaic of an association by calwebb_image3."""
    skipped = [f"--steps.{step}.skip=true" for step in ("tweakreg", "skymatch", "source_catalog")]
    strun(folder, "calwebb_image3", str(association), f"--output_file={name}", *skipped, *arguments)
    return fits.getdata(folder / f"{name}_i2d.fits", "SCI")


def tweakreg(folder: Path, association: Path, band: str, *arguments: str) -> None:
    """Align exposures to the catalogue of the scene by tweakreg inside calwebb_image3, and nothing else."""
    others = "skymatch", "outlier_detection", "resample", "source_catalog"
    settings = {
        **TWEAKREG[band],
        "minobj": 5,
        "abs_minobj": 5,
        "expand_refcat": True,
        "abs_refcat": association.with_name(f"{band}_refcat.ecsv"),
        "save_results": True,
    }
    options = [f"--steps.{step}.skip=true" for step in others]
    options += [f"--steps.tweakreg.{name}={value}" for name, value in settings.items()]
    strun(folder, "calwebb_image3", str(association), *options, *arguments)


def displacements(plan: list, folder: Path, suffix: str, nominal: Path) -> np.ndarray:
    """Find how far the middle of each exposure is from its nominal place, East and North [arcsec]."""
    moved = []
    for pointing in plan:
        places = []
        for path in (nominal / f"{pointing.name}_cal.fits", folder / f"{pointing.name}_{suffix}.fits"):
            with datamodels.open(path) as model:
                places.append(SkyCoord(*model.meta.wcs(512.0, 512.0), unit="deg"))
        moved.append([offset.arcsec for offset in places[0].spherical_offsets_to(places[1])])
    return np.array(moved)


def show(axis: plt.Axes, image: np.ndarray, title: str, low: float, high: float) -> None:
    """Draw an image without axes, blue where there is nothing."""
    axis.set_facecolor("tab:blue")
    axis.imshow(image, origin="lower", cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    axis.set(title=title, xticks=[], yticks=[])


def show_errors(axis: plt.Axes, errors: np.ndarray, tile: np.ndarray, title: str) -> None:
    """Draw errors of positions, a mark for each tile, and a circle of a tenth of a pixel."""
    axis.add_patch(plt.Circle((0, 0), 11.0, fill=False, color="0.6", ls="--"))
    axis.axhline(0, color="0.85", zorder=0)
    axis.axvline(0, color="0.85", zorder=0)
    for number, style in ((1, {"marker": "o", "color": "#0072B2"}), (2, {"marker": "^", "color": "#D55E00"})):
        axis.scatter(*errors[tile == number].T, s=60, alpha=0.8, label=f"tile {number}", **style)
    rms = np.sqrt((errors**2).mean())
    print(f"{title}: rms {rms:.1f} mas, within tiles {within(errors, tile):.2f} mas")
    axis.set(xlim=(30, -30), ylim=(-30, 30), aspect="equal", title=title)
    axis.set(xlabel="error to the East [mas]", ylabel="error to the North [mas]")
    axis.legend(loc="lower left")


def within(errors: np.ndarray, tile: np.ndarray) -> float:
    """Find the rms of errors about those of their tiles, along an axis."""
    means = np.array([errors[tile == number].mean(axis=0) for number in tile])
    return float(np.sqrt(((errors - means) ** 2).mean()))


def median_hot_pixel() -> None:
    """Show what hot pixels and holes leave in the mosaic of two dithers, and what the Step makes of them."""
    scene = simulate.Scene(80.0, -69.5).with_stars(800, radius=60.0, flux=(0.0005, 0.1), seed=2)
    plan = simulate.mosaic(80.0, -69.5, tiles=(1, 1), dithers=2, dither_step=5.0)
    field = simulate.observe(
        scene, plan, "F560W", sky=SKY, hot_pixels=0.005, dead_pixels=0.001, subarray="BRIGHTSKY"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        association = simulate.write(field, folder / "field", product="field").resolve()
        before = mosaic(folder, association, "stock")
        hook = "--steps.tweakreg.pre_hooks=miri_steps.MedianHotPixelStep,"
        after = mosaic(folder, association, "repaired", hook)
    middle = tuple(slice(n // 2 - 100, n // 2 + 100) for n in before.shape)
    figure, axes = plt.subplots(1, 2, figsize=(10, 5.3), layout="constrained")
    for axis, image, title in zip(axes, (before, after), ("stock", "median_hot_pixel"), strict=True):
        show(axis, image[middle], title, SKY - 0.2, SKY + 0.8)
    figure.savefig(STATIC / "median_hot_pixel.png", dpi=100)


def rate_from_rateints() -> None:
    """Show eight integrations of which cosmic rays hit 5 %, averaged by ramp_fit's rule and by the Step."""
    from miri_steps import RateFromRateintsStep

    scene = simulate.Scene(80.0, -69.5).with_stars(150, radius=20.0, flux=(0.0005, 0.1), seed=2)
    plan = simulate.mosaic(80.0, -69.5, tiles=(1, 1), dithers=1)
    field = simulate.observe(scene, plan, "F770W", sky=SKY, subarray="SUB256")
    exposure = simulate.integrate(field, 0, nints=8, cosmic_rays=0.05, seed=1)
    images = [RateFromRateintsStep.call(exposure.rateints, combine=how).data for how in ("ivar", "clip")]
    low, high = (np.nanpercentile(exposure.truth, 50) + shift for shift in (-0.5, 3.0))
    figure, axes = plt.subplots(1, 2, figsize=(10, 5.3), layout="constrained")
    titles = ("weighted mean, as jwst 3.0 does", "combine = clip")
    for axis, image, title in zip(axes, images, titles, strict=True):
        show(axis, image, title, low, high)
    figure.savefig(STATIC / "rate_from_rateints.png", dpi=100)


def super_background() -> None:
    """Show the mosaic of ten dithers with glow and columns fixed to the detector, and without them."""
    scene = simulate.Scene(80.0, -69.5).with_stars(400, radius=80.0, flux=(0.001, 1.0), seed=3)
    plan = simulate.mosaic(80.0, -69.5, tiles=(1, 1), dithers=10, dither_step=6.0)
    pattern = simulate.dome(0.5) + simulate.columns(0.05)
    sky = SKY + 0.3 * np.random.default_rng(1).standard_normal(len(plan))
    field = simulate.observe(scene, plan, "F770W", sky=sky, pattern=pattern)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        association = simulate.write(field, folder / "field", product="field").resolve()
        # The stock step that levels the sky stays on.
        before, after = (
            mosaic(folder, association, name, "--steps.skymatch.skip=false", *hook)
            for name, hook in (
                ("stock", ()),
                ("flat", ("--steps.skymatch.pre_hooks=miri_steps.SuperBackgroundStep,",)),
            )
        )
    figure, axes = plt.subplots(1, 2, figsize=(10, 5.3), layout="constrained")
    for axis, image, title in zip(axes, (before, after), ("stock", "super_background"), strict=True):
        show(axis, image - np.nanmedian(image), title, -0.15, 0.3)
    figure.savefig(STATIC / "super_background.png", dpi=100)


def tile_astrometry() -> None:
    """Show how far exposures are off after tweakreg, and with the corrections of another filter."""
    scene = simulate.Scene(80.0, -69.5).with_stars(50, radius=85.0, flux=(0.003, 0.05), seed=3)
    short = simulate.mosaic(80.0, -69.5, tiles=(2, 1), dithers=6, tile_step=45.0, dither_step=4.0)
    long = [replace(pointing, sequence="3") for pointing in short]
    error = np.array([[0.11, -0.12], [-0.95, 1.02]])[[pointing.tile - 1 for pointing in short]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        associations = [
            simulate.write(
                simulate.observe(scene, plan, band, sky=SKY, noise=0.1, pointing_error=error),
                *(folder / band, band),
            ).resolve()
            for plan, band in ((short, "F560W"), (long, "F1130W"))
        ]
        hook = "--steps.tweakreg.post_hooks=miri_steps.TileAstrometryStep(save_corrections=True),"
        tweakreg(folder, associations[0], "F560W", hook)
        tweakreg(folder, associations[1], "F1130W")
        nominal = associations[1].parent
        before = displacements(long, folder, "tweakreg", nominal) - error
        corrections = "--corrections=F560W_tiles.ecsv"
        strun(folder, "tile_astrometry", str(associations[1]), corrections, "--save_results=true")
        after = displacements(long, folder, "tile_astrometry", nominal) - error
    figure, axes = plt.subplots(1, 2, figsize=(10, 5.3), layout="constrained", sharex=True, sharey=True)
    titles = "F1130W, stock tweakreg", "F1130W, tile_astrometry with the table of F560W"
    for axis, errors, title in zip(axes, (before, after), titles, strict=True):
        show_errors(axis, 1e3 * errors, np.array([pointing.tile for pointing in long]), title)
    figure.savefig(STATIC / "tile_astrometry.png", dpi=100)


def star_photometry() -> None:
    """Show a standard star and its apertures."""
    band, (ra, dec) = "F1000W", (269.0, 67.0)
    psf = simulate.psf(band)
    curve = encircled.psf_curve(psf.data, 0.11 / psf.oversample)
    about = reference_files.About("simulated", "2022-07-01", "2022-07-01")
    scene = simulate.Scene(ra, dec).with_stars(40, radius=15, flux=(0.01, 0.5), seed=5)
    scene = scene.with_catalog(Table({"ra": [ra], "dec": [dec], "flux_mjy": [20.0]}))
    plan = simulate.grid(ra, dec, n=(1, 1), per_visit=1)
    observation = simulate.observe(
        scene, plan, band, sky=SKY, noise=0.5, subarray="SUB256", bad_pixels=0.0, psf=psf
    )
    (model,) = observation
    with tempfile.TemporaryDirectory() as name:
        apertures = reference_files.apcorr({band: encircled.corrections(curve)}, about)
        path = reference_files.save(apertures, Path(name) / "apcorr.fits")
        StarPhotometryStep.call(
            model, override_apcorr=str(path), save_figure=True, output_dir=name, configure_log=False
        )
        (drawn,) = Path(name).glob("*.png")
        (STATIC / "star_photometry.png").write_bytes(drawn.read_bytes())


FIGURES = {
    draw.__name__: draw
    for draw in (median_hot_pixel, rate_from_rateints, super_background, tile_astrometry, star_photometry)
}

if __name__ == "__main__":
    for chosen in sys.argv[1:] or FIGURES:
        FIGURES[chosen]()
