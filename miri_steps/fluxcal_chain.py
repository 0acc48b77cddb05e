"""The whole flux calibration: from a folder of standard stars to reference files, figures and tables."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.table import QTable
from astropy.time import Time
from stdatamodels.jwst import datamodels

from miri_steps import detector
from miri_steps.fluxcal import band_fluxes, config, encircled, photometry, reference_files, tables
from miri_steps.fluxcal.calibration import FilterCalibration, calibrate
from miri_steps.fluxcal.encircled import Corrections
from miri_steps.fluxcal.photometry import Aperture
from miri_steps.fluxcal.reference_files import About, Calibration
from miri_steps.steps import star_images
from miri_steps.steps.star_photometry import StarPhotometryStep

__all__ = [
    "find_by_filter",
    "find_spectra",
    "images_of",
    "measure",
    "measure_apertures",
    "run",
    "write_apertures",
    "write_factors",
    "write_fluxes",
    "write_photometry",
]

log = logging.getLogger(f"stpipe.{__name__}")

# Images of stars, of which mosaics are taken where there are both.
_KINDS = "_i2d.fits", "_cal.fits"
_TABLES = ".ecsv", ".fits", ".dat", ".txt"
# Until the apertures are known a star is looked for with these [FWHM].
_RADIUS, _RING = 2.0, (5.0, 6.0)
# Tells stpipe to ask CRDS for no parameters.
_NO_PARAMETERS = "STPIPE_DISABLE_CRDS_STEPPARS"
# How far from its target a star is looked for [arcsec].
_WITHIN = 2.0
# Nominal solid angle of a pixel of the detector [sr].
_PIXEL_AREA = float(np.radians(detector.PIXEL_SCALE / 3600) ** 2)


def images_of(folder: str | Path) -> list[Path]:
    """
    Find the images of standard stars in a folder and those in it.

    Parameters
    ----------
    folder : str or Path
        Where they are.

    Returns
    -------
    list of Path
        All mosaics (``_i2d``), or, without any, all exposures (``_cal``), by name.

    Raises
    ------
    FileNotFoundError
        If there is neither.
    """
    for kind in _KINDS:
        found = sorted(Path(folder).rglob(f"*{kind}"))
        if found:
            return found
    raise FileNotFoundError(
        f"there must be files {' or '.join('*' + kind for kind in _KINDS)} in {folder}, got none"
    )


def find_by_filter(folder: str | Path, endings: Iterable[str] = _TABLES) -> dict[str, Path]:
    """
    Find files that are named after filters, as throughput curves and model PSFs are.

    Parameters
    ----------
    folder : str or Path
        Where they are.
    endings : iterable of str, optional
        Of their names.

    Returns
    -------
    dict
        Each filter's file.

    Raises
    ------
    ValueError
        If there is none, or two for one filter.
    """
    found: dict[str, Path] = {}
    for path in sorted(Path(folder).iterdir()):
        words = path.stem.upper().replace("-", "_").split("_")
        for band in set(words) & set(config.bands()) if path.suffix in endings else ():
            if band in found:
                raise ValueError(f"there must be one file for {band}, got {found[band]} and {path}")
            found[band] = path
    if not found:
        raise ValueError(f"there must be files named after filters in {folder}, such as F770W.ecsv, got none")
    return found


def find_spectra(folder: str | Path) -> dict[str, Path]:
    """
    Find spectra of standard stars that are named after them, as those of CALSPEC are.

    Parameters
    ----------
    folder : str or Path
        Where they are; ``p330e_mod_008.fits`` is one of them.

    Returns
    -------
    dict
        The file of each star; where there are several, the last by name of those with ``_mod_`` in it,
        because observed spectra end in the near infrared.

    Raises
    ------
    ValueError
        If there is none.
    """
    found = {}
    for path in sorted(Path(folder).iterdir(), key=lambda path: ("_mod_" in path.name, path.name)):
        star = config.star(path.stem.split("_")[0])
        if path.suffix in _TABLES and star.type != "other":
            found[star.name] = path
    if not found:
        raise ValueError(
            f"there must be spectra named after stars in {folder}, such as p330e_mod_008.fits, got none"
        )
    return found


def measure(images: Iterable[Path], apertures: str | Path) -> QTable:
    """
    Measure the stars in all images.

    Parameters
    ----------
    images : iterable of Path
        Mosaics or exposures.
    apertures : str or Path
        Aperture correction reference file.

    Returns
    -------
    QTable
        Rows of `StarPhotometryStep`.

    Raises
    ------
    ValueError
        If no star could be measured.
    """
    # Nothing is asked of CRDS: neither the reference file nor parameters.
    before = os.environ.get(_NO_PARAMETERS)
    os.environ[_NO_PARAMETERS] = "true"
    try:
        return StarPhotometryStep.call(
            [str(path) for path in images], override_apcorr=str(apertures), configure_log=False
        )
    finally:
        if before is None:
            del os.environ[_NO_PARAMETERS]
        else:
            os.environ[_NO_PARAMETERS] = before


def measure_apertures(
    images: Iterable[Path], psfs: Mapping[str, Path], stars: Iterable[str]
) -> dict[str, Corrections]:
    """
    Measure encircled energies, and the aperture corrections that follow.

    Parameters
    ----------
    images : iterable of Path
        Mosaics or exposures; those of other stars are left out.
    psfs : mapping
        File of the model PSF of each filter.
    stars : iterable of str
        Names of the bright stars whose growth curves are joined to the models. In filters without any the
        model alone is taken.

    Returns
    -------
    dict
        `Corrections` of each filter that there is a PSF for.
    """
    names = {config.star(name).name for name in stars}
    unknown = sorted(name for name in names if config.star(name).type == "other")
    if unknown:
        raise ValueError(f"bright stars must be known standards, got {', '.join(unknown)}")
    models = {band: encircled.read_psf(path) for band, path in psfs.items()}
    found: dict[str, list[Corrections]] = {band: [] for band in models}
    for path in images:
        with datamodels.open(path) as model:
            band, name = model.meta.instrument.filter, config.star(model.meta.target.catalog_name or "").name
            if name in names and band in models:
                found[band] += _corrections(model, models[band])
    return {
        band: encircled.average(several)
        if several
        else replace(encircled.corrections(models[band]), number=0)
        for band, several in found.items()
    }


def _corrections(model, psf):
    """Join a star to its model; none where that cannot be."""
    band = config.band(model.meta.instrument.filter)
    try:
        seen = star_images.read(model)
        fwhm = band.fwhm / star_images.native_pixel(model, seen)
        aperture = Aperture(_RADIUS * fwhm, (_RING[0] * fwhm, _RING[1] * fwhm), fwhm)
        expected = seen.pixel_of(model.meta.target.ra, model.meta.target.dec)
        within = _WITHIN / seen.pixel_scale
        start = photometry.find(seen.image, expected, fwhm=fwhm, within=within, mask=seen.mask)
        star = photometry.measure(seen.image, seen.err, start, aperture, mask=seen.mask)
        center = star.x, star.y
        curve = encircled.join(
            seen.image, center, psf, band.join, mask=seen.mask, pixel_scale=seen.pixel_scale
        )
    except ValueError as error:
        log.warning("%s: its growth curve is not used: %s", model.meta.filename, error)
        return []
    return [encircled.corrections(curve)]


def run(
    folder: str | Path,
    output: str | Path,
    *,
    spectra: str | Path,
    throughputs: str | Path,
    apertures: str | Path | None = None,
    psfs: str | Path | None = None,
    bright: Iterable[str] = (),
    author: str = "unknown",
) -> dict[str, FilterCalibration]:
    """
    Calibrate all filters from a folder of reduced standard stars.

    The output folder then holds ``photometry.ecsv``, ``fluxes.ecsv``, what `write_factors` writes, and, with
    ``psfs``, ``apcorr.fits`` and ``apcorr_errors.ecsv``.

    Parameters
    ----------
    folder : str or Path
        Mosaics (``_i2d``) or exposures (``_cal``) of standard stars.
    output : str or Path
        Folder for the results, new or empty.
    spectra : str or Path
        Folder of model spectra named after stars.
    throughputs : str or Path
        Folder of throughput curves named after filters.
    apertures : str or Path, optional
        Aperture correction reference file.
    psfs : str or Path, optional
        Folder of model PSFs named after filters, to make such a file.
    bright : iterable of str, optional
        Stars whose growth curves are joined to them.
    author : str, optional
        Name for the reference files.

    Returns
    -------
    dict
        The calibration of each filter.

    Raises
    ------
    FileExistsError
        If the output folder is not empty.
    FileNotFoundError, ValueError
        If something is missing.
    """
    if (apertures is None) == (psfs is None):
        raise ValueError(f"either apertures or psfs must be given, got {apertures} and {psfs}")
    images = images_of(folder)
    find_by_filter(throughputs)
    find_spectra(spectra)
    output = _new_folder(output)
    fluxes = write_fluxes(spectra, throughputs, output / "fluxes.ecsv")
    if psfs is not None:
        apertures = write_apertures(images, psfs, output / "apcorr.fits", bright=bright, author=author)
    stars = write_photometry(images, apertures, output / "photometry.ecsv")
    return _write_factors(stars, fluxes, output, author=author)


def write_apertures(
    images: Iterable[Path],
    psfs: str | Path,
    path: str | Path,
    *,
    bright: Iterable[str] = (),
    author: str = "unknown",
) -> Path:
    """
    Make an aperture correction reference file, and a table of its errors beside it.

    Parameters
    ----------
    images, bright
        As in `measure_apertures`.
    psfs : str or Path
        Folder of model PSFs named after filters.
    path : str or Path
        The file, which must not exist; ``_errors.ecsv`` takes the place of its ending in the other name.
    author : str, optional
        Name for the file.

    Returns
    -------
    Path
        The reference file.
    """
    path, images = Path(path), list(images)
    _refuse(path)
    corrections = measure_apertures(images, find_by_filter(psfs), bright)
    about = _about([_date(image) for image in images], author)
    tables.write(reference_files.apcorr_errors(corrections), path.with_name(f"{path.stem}_errors.ecsv"))
    return reference_files.save(reference_files.apcorr(corrections, about), path)


def write_photometry(images: Iterable[Path], apertures: str | Path, path: str | Path) -> Path:
    """
    Write a table of the light of stars.

    Parameters
    ----------
    images, apertures
        As in `measure`.
    path : str or Path
        The table, which must not exist.

    Returns
    -------
    Path
        The table.
    """
    _refuse(path)
    tables.write(measure(images, apertures), path)
    return Path(path)


def write_fluxes(spectra: str | Path, throughputs: str | Path, path: str | Path) -> Path:
    """
    Write a table of the fluxes of model spectra in filters.

    Parameters
    ----------
    spectra, throughputs : str or Path
        Folders of spectra named after stars, and of throughput curves named after filters.
    path : str or Path
        The table, which must not exist.

    Returns
    -------
    Path
        The table.
    """
    _refuse(path)
    tables.write(band_fluxes.tabulate(find_spectra(spectra), find_by_filter(throughputs)), path)
    return Path(path)


def write_factors(
    photometry: str | Path,
    fluxes: str | Path,
    output: str | Path,
    *,
    author: str = "unknown",
    legacy: bool = False,
) -> dict[str, FilterCalibration]:
    """
    Calibrate all filters, and write what comes out.

    The folder then holds ``factors`` and ``losses`` as ECSV and LaTeX, ``observations.ecsv``,
    ``photom.fits``, and figures where matplotlib is.

    Parameters
    ----------
    photometry, fluxes : str or Path
        Tables of `write_photometry` and `write_fluxes`.
    output : str or Path
        Folder for the results, new or empty.
    author : str, optional
        Name for the reference file.
    legacy : bool, optional
        As in `calibrate`.

    Returns
    -------
    dict
        The calibration of each filter.
    """
    return _write_factors(photometry, fluxes, _new_folder(output), author=author, legacy=legacy)


def _write_factors(photometry, fluxes, output, *, author, legacy=False):
    stars = QTable.read(photometry)
    calibrations = calibrate(stars, QTable.read(fluxes), legacy=legacy)
    for name, table in (("factors", tables.factors(calibrations)), ("losses", tables.losses(calibrations))):
        for ending in ("ecsv", "tex"):
            tables.write(table, output / f"{name}.{ending}")
    tables.write(tables.by_type(calibrations), output / "types.ecsv")
    tables.write(tables.observations(calibrations), output / "observations.ecsv")
    rows = {band: Calibration(one.factor, one.error, one.loss) for band, one in calibrations.items()}
    model = reference_files.photom(rows, _PIXEL_AREA, _about(stars["timemid"].to_value(u.day), author))
    reference_files.save(model, output / "photom.fits")
    if find_spec("matplotlib"):
        _draw(calibrations, output)
    return calibrations


def _draw(calibrations, output):
    from miri_steps.report import star_figures

    for band, calibration in calibrations.items():
        for against in star_figures.AGAINST:
            name = f"{band}_{against.replace(' ', '_')}.png"
            try:
                figure = star_figures.factors(calibration, against)
            except ValueError as error:
                log.warning("%s is not drawn: %s", name, error)
                continue
            figure.savefig(output / name, dpi=150)
    monitored = {band: one for band, one in calibrations.items() if one.fit}
    if monitored:
        star_figures.repeatability(monitored).savefig(output / "repeatability.png", dpi=150)


def _refuse(path):
    """Refuse what could not be written, before the work."""
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists")
    if path.suffix not in (".fits", ".ecsv", ".tex"):
        raise ValueError(f"{path} must end in .fits (reference files), .ecsv or .tex (tables)")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.absolute().parent}")


def _new_folder(output):
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not an empty folder")
    output.mkdir(parents=True, exist_ok=True)
    return output


def _date(path):
    with datamodels.open(path) as model:
        return model.meta.exposure.mid_time


def _about(dates, author):
    """Say when the first and the last image was taken."""
    first, last = (
        Time(date, format="mjd").to_value("iso", subfmt="date") for date in (min(dates), max(dates))
    )
    return About(author, first, last, history=(f"From {len(dates)} images of standard stars.",))
