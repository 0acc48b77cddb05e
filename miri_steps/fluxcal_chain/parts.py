"""The parts of a flux calibration, each from files to files, and all of them in one go."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.time import Time

from miri_steps import detector
from miri_steps.fluxcal import band_fluxes, config, encircled, reference_files, subarrays, tables
from miri_steps.fluxcal.calibration import FilterCalibration, calibrate
from miri_steps.fluxcal.reference_files import About
from miri_steps.fluxcal_chain import apertures as growth_curves
from miri_steps.fluxcal_chain import inputs
from miri_steps.steps import star_images
from miri_steps.steps.base import check_file
from miri_steps.steps.star_photometry import StarPhotometryStep

__all__ = ["run", "write_apertures", "write_factors", "write_fluxes", "write_photometry", "write_subarrays"]

_TABLES = ".ecsv", ".tex"
# Tells stpipe to ask CRDS for no parameters.
_NO_PARAMETERS = "STPIPE_DISABLE_CRDS_STEPPARS"
# Nominal solid angle of a pixel of the detector [sr].
_PIXEL_AREA = float(np.radians(detector.PIXEL_SCALE / 3600) ** 2)


def run(
    folder: str | Path,
    output: str | Path,
    *,
    spectra: str | Path,
    throughputs: str | Path,
    apertures: str | Path | None = None,
    psfs: str | Path | None = None,
    bright: Iterable[str] = (),
    ee: float = 0.7,
    solve_subarrays: bool = False,
    losses: str | Path | None = None,
    repeatability: float = 0.003,
    legacy: bool = False,
    author: str = "unknown",
) -> dict[str, FilterCalibration]:
    """
    Calibrate all filters from a folder of reduced standard stars.

    The output folder then holds ``photometry.ecsv``, ``fluxes.ecsv``, what `write_factors` writes, with
    ``psfs`` what `write_apertures` writes as ``apcorr.fits``, and with ``solve_subarrays``
    ``subarrays.ecsv``.

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
    ee : float, optional
        Part of the light that apertures hold.
    solve_subarrays : bool, optional
        Solve for the transmissions of subarrays, instead of taking those known?
    losses, repeatability, legacy
        As in `write_factors`.
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
    images, bright = inputs.find_images(folder), list(bright)
    given = inputs.read_losses(losses) if losses else None
    looked_at = _check_inputs(images, spectra, throughputs, apertures, psfs, bright, ee)
    output = inputs.new_folder(output)
    fluxes = write_fluxes(spectra, throughputs, output / "fluxes.ecsv")
    if looked_at:
        apertures = _write_apertures(*looked_at, output / "apcorr.fits", bright, author)
    stars = write_photometry(images, apertures, output / "photometry.ecsv", ee=ee)
    known = _known(write_subarrays(stars, output / "subarrays.ecsv") if solve_subarrays else None)
    settings = {"losses": given, "repeatability": repeatability, "legacy": legacy}
    calibrations = _calibrate(stars, fluxes, known, **settings)
    _write_calibration(calibrations, output, known[0], author)
    return calibrations


def _check_inputs(images, spectra, throughputs, apertures, psfs, bright, ee):
    """Refuse what would stop the work in its middle; give images and PSFs of which apertures are made."""
    inputs.find_by_filter(throughputs)
    inputs.find_spectra(spectra)
    if apertures is not None:
        check_file(apertures)
        return None
    models = inputs.find_by_filter(psfs, (".fits",))
    if not any(np.isclose(ee, level) for level in encircled.LEVELS[:-1]):
        raise ValueError(f"ee must be one of {', '.join(map(str, encircled.LEVELS[:-1]))}, got {ee}")
    seen = inputs.survey(images)
    growth_curves.check_bright(seen, bright)
    return seen, models


def write_apertures(
    images: Iterable[Path],
    psfs: str | Path,
    path: str | Path,
    *,
    bright: Iterable[str] = (),
    author: str = "unknown",
) -> Path:
    """
    Make an aperture correction reference file, a table of its errors, and figures of the growth curves.

    Parameters
    ----------
    images : iterable of Path
        Mosaics or exposures, drizzled alike; those of other stars than the bright ones are left out, but say
        for what kind of image apertures are wanted.
    psfs : str or Path
        Folder of model PSFs named after filters.
    path : str or Path
        The file, which must not exist; in the names of the others ``_errors.ecsv`` and ``_F770W.png`` take
        the place of its ending.
    bright : iterable of str, optional
        Names of the stars whose growth curves are joined to the models. In filters without any the model
        alone is taken.
    author : str, optional
        Name for the file.

    Returns
    -------
    Path
        The reference file.

    Raises
    ------
    FileExistsError
        If a file is there.
    ValueError
        If there are no PSFs or images, or images were not drizzled alike.
    """
    path = inputs.new_file(path, (".fits",))
    inputs.new_file(_errors_of(path), _TABLES)
    models = inputs.find_by_filter(psfs, (".fits",))
    return _write_apertures(inputs.survey(images), models, path, bright, author)


def _errors_of(path):
    return path.with_name(f"{path.stem}_errors.ecsv")


def _write_apertures(seen, models, path, bright, author):
    found = growth_curves.measure(seen, models, bright)
    corrections = {band: one.corrections for band, one in found.items()}
    kind = star_images.made_for(seen[0].resampling)
    used = sorted({name for one in found.values() for name in one.stars})
    about = _about([one.mjd for one in seen], author, kind, f"Growth curves: {', '.join(used) or 'none'}.")
    tables.write(reference_files.apcorr_errors(corrections), _errors_of(path))
    reference_files.save(reference_files.apcorr(corrections, about), path)
    _draw("apertures", found, path.with_suffix(""))
    return path


def write_photometry(
    images: Iterable[Path], apertures: str | Path, path: str | Path, *, ee: float = 0.7
) -> Path:
    """
    Write a table of the light of stars, and figures of the brightest.

    Parameters
    ----------
    images : iterable of Path
        Mosaics or exposures.
    apertures : str or Path
        Aperture correction reference file.
    path : str or Path
        The table, which must not exist; ``_F770W.png`` and ``_psfs.png`` take the place of its ending in the
        names of the figures.
    ee : float, optional
        Part of the light that apertures hold.

    Returns
    -------
    Path
        The table.

    Raises
    ------
    FileExistsError
        If the table exists.
    ValueError
        If no star could be measured.
    """
    path, images = inputs.new_file(path, _TABLES), list(images)
    with _without_crds():
        found = StarPhotometryStep.call(
            [str(image) for image in images], override_apcorr=str(apertures), ee=ee, configure_log=False
        )
    tables.write(found, path)
    _draw("stars", found, images, path.with_suffix(""))
    return path


@contextmanager
def _without_crds() -> Iterator[None]:
    """Ask nothing of CRDS: the reference file is given, and no parameters are wanted."""
    before = os.environ.get(_NO_PARAMETERS)
    os.environ[_NO_PARAMETERS] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_PARAMETERS]
        else:
            os.environ[_NO_PARAMETERS] = before


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

    Raises
    ------
    FileExistsError
        If the table exists.
    ValueError
        If there are no spectra or curves, or one of them is none.
    """
    path = inputs.new_file(path, _TABLES)
    tables.write(band_fluxes.tabulate(inputs.find_spectra(spectra), inputs.find_by_filter(throughputs)), path)
    return path


def write_subarrays(photometry: str | Path, path: str | Path) -> Path:
    """
    Solve for the transmissions of subarrays, and write them.

    Parameters
    ----------
    photometry : str or Path
        Table of `write_photometry`.
    path : str or Path
        The table, which must not exist.

    Returns
    -------
    Path
        The table.

    Raises
    ------
    FileExistsError
        If the table exists.
    ValueError
        If the observations do not tell them.
    """
    path = inputs.new_file(path, _TABLES)
    tables.write(subarrays.solve(inputs.read_table(photometry)), path)
    return path


def write_factors(
    photometry: str | Path,
    fluxes: str | Path,
    output: str | Path,
    *,
    transmissions: str | Path | None = None,
    losses: str | Path | None = None,
    repeatability: float = 0.003,
    legacy: bool = False,
    author: str = "unknown",
) -> dict[str, FilterCalibration]:
    """
    Calibrate all filters, and write what comes out.

    The folder then holds ``factors`` and ``losses`` as ECSV and LaTeX, ``types.ecsv``,
    ``observations.ecsv``, ``photom.fits``, and figures where matplotlib is. Stars without a model, and
    filters without any, are left out with a warning.

    Parameters
    ----------
    photometry, fluxes : str or Path
        Tables of `write_photometry` and `write_fluxes`.
    output : str or Path
        Folder for the results, new or empty.
    transmissions : str or Path, optional
        Table of `write_subarrays`; those known are taken if it is not given.
    losses : str or Path, optional
        Table of losses that are known, as ``losses.ecsv``.
    repeatability, legacy
        As in `calibrate`.
    author : str, optional
        Name for the reference file.

    Returns
    -------
    dict
        The calibration of each filter.

    Raises
    ------
    FileExistsError
        If the folder is not empty.
    FileNotFoundError, ValueError
        If a table is missing or lacks something.
    """
    known = _known(transmissions)
    settings = {"losses": inputs.read_losses(losses) if losses else None, "legacy": legacy}
    calibrations = _calibrate(photometry, fluxes, known, repeatability=repeatability, **settings)
    _write_calibration(calibrations, inputs.new_folder(output), known[0], author)
    return calibrations


def _known(transmissions):
    """Read transmissions of subarrays and their errors; those that are not told are the known ones."""
    told, errors = inputs.read_transmissions(transmissions) if transmissions else ({}, {})
    return dict(config.transmissions()) | told, errors


def _calibrate(photometry, fluxes, known, **settings):
    transmissions, errors = known
    return calibrate(
        inputs.read_table(photometry),
        inputs.read_table(fluxes),
        transmissions=transmissions,
        transmission_errors=errors,
        **settings,
    )


def _write_calibration(calibrations, output, transmissions, author):
    for name, listed in (("factors", tables.factors(calibrations)), ("losses", tables.losses(calibrations))):
        for ending in _TABLES:
            tables.write(listed, output / f"{name}{ending}")
    observations = tables.observations(calibrations)
    for name, listed in (("types", tables.by_type(calibrations)), ("observations", observations)):
        tables.write(listed, output / f"{name}.ecsv")
    files = observations["file"].tolist() if "file" in observations.colnames else ["a table without files"]
    history = f"Images: {', '.join(dict.fromkeys(files))}."
    about = _about(observations["timemid"].to_value(u.day), author, history)
    model = reference_files.photom(calibrations, _PIXEL_AREA, about, transmissions=transmissions)
    reference_files.save(model, output / "photom.fits")
    _draw("calibration", calibrations, output)


def _draw(what, *given):
    if find_spec("matplotlib"):
        from miri_steps.fluxcal_chain import figures

        getattr(figures, f"draw_{what}")(*given)


def _about(dates: Sequence[float], author: str, *history: str) -> About:
    """Say when the first and the last image was taken, and what else there is to say."""
    dates = np.asarray(dates)[np.isfinite(dates)]
    if not len(dates):
        raise ValueError("the date of at least one image must be known (EXPMID), but none is")
    first, last = (
        Time(date, format="mjd").to_value("iso", subfmt="date") for date in (dates.min(), dates.max())
    )
    return About(author, first, last, history=(f"From {len(dates)} images of standard stars.", *history))
