"""Exposures to disk, with the association that names them and the truth about them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table

from miri_steps.simulate.exposure import Observation
from miri_steps.simulate.integrations import integrate


def write(observation: Observation, folder: str | Path, product: str | None = None) -> Path:
    """Write an observation, one exposure at a time.

    The folder then holds the ``_cal.fits`` files, ``<product>_asn.json``, ``<product>_truth.ecsv``,
    ``<product>_refcat.ecsv`` (RA and DEC of the stars, as tweakreg's ``abs_refcat`` wants them, when there
    are any), ``<product>_pattern.fits`` (when a pattern was given; ``pattern_scale`` is in the truth) and
    ``<product>_hot.fits`` (when there are unflagged hot or dead pixels: image HOT, the height in units of the
    noise, and image DEAD, 1 where dead).

    Parameters
    ----------
    observation : Observation
        Made by `observe`.
    folder : str or Path
        Made when it does not exist.
    product : str, optional
        Name of the mosaic; built like a real one when not given.

    Returns
    -------
    Path
        The association.

    Raises
    ------
    FileExistsError
        If a file is there already; nothing has been written then.
    """
    folder = Path(folder)
    product = product or _product_name(observation)
    paths = _exposures(observation, folder, "cal")
    association = folder / f"{product}_asn.json"
    _begin(folder, (association, *paths))
    for path, model in zip(paths, observation, strict=True):
        model.save(str(path))
        model.close()
    _write_truth(observation, folder, product)
    association.write_text(json.dumps(_association(observation, product), indent=4))
    return association


def write_rates(
    observation: Observation, folder: str | Path, product: str | None = None, **given: object
) -> list[Path]:
    """Write an observation as it is before its second stage, one exposure at a time.

    The folder then holds ``_rate.fits`` and ``_rateints.fits`` of each exposure and, as `write` leaves them,
    the truth, the catalogue of the stars, the pattern, and the hot and dead pixels. There is no association:
    it would name files that are still to be made.

    Parameters
    ----------
    observation : Observation
        Made by `observe`.
    folder : str or Path
        Made when it does not exist.
    product : str, optional
        First part of the names of what is true; built like that of a real mosaic when not given.
    **given : object
        As for `integrate`: ``nints``, ``cosmic_rays``, ``jumps``, ``saturation``, ``flat``, ``seed`` and so
        on, the same for all exposures.

    Returns
    -------
    list of Path
        The ``_rate`` files, in the order of the exposures.

    Raises
    ------
    FileExistsError
        If a file is there already; nothing has been written then.

    Examples
    --------
    >>> simulate.write_rates(observation, "counts", nints=4, cosmic_rays=0.05)  # doctest: +SKIP
    """
    folder = Path(folder)
    product = product or _product_name(observation)
    paths = _exposures(observation, folder, "rate")
    _begin(folder, (*paths, *_exposures(observation, folder, "rateints")))
    for i in range(len(observation)):
        integrations = integrate(observation, i, **given)
        integrations.write(folder)
        for model in (integrations.rate, integrations.rateints):
            model.close()
    _write_truth(observation, folder, product)
    return paths


def _exposures(observation: Observation, folder: Path, suffix: str) -> list[Path]:
    return [folder / f"{pointing.name}_{suffix}.fits" for pointing in observation.pointings]


def _begin(folder: Path, paths: Iterable[Path]) -> None:
    """Make the folder, unless one of the files is there already."""
    there = [path for path in paths if path.exists()]
    if there:
        raise FileExistsError(f"{there[0]} is there already; simulated files go to a fresh folder")
    folder.mkdir(parents=True, exist_ok=True)


def _write_truth(observation: Observation, folder: Path, product: str) -> None:
    observation.truth.write(folder / f"{product}_truth.ecsv", overwrite=True)
    if len(observation.scene.stars):
        _reference_catalog(observation.scene.stars).write(folder / f"{product}_refcat.ecsv", overwrite=True)
    if observation.pattern is not None:
        fits.writeto(folder / f"{product}_pattern.fits", observation.pattern, overwrite=True)
    if observation.hot_pixels or observation.dead_pixels:
        _defects(observation).writeto(folder / f"{product}_hot.fits", overwrite=True)


def _product_name(observation: Observation) -> str:
    first = observation.pointings[0]
    return f"jw{first.program}-o{first.observation}_t001_miri_{observation.filter.lower()}"


def _reference_catalog(stars: Table) -> Table:
    catalog = Table(stars)
    catalog.rename_columns(["ra", "dec"], ["RA", "DEC"])
    return catalog


def _defects(observation: Observation) -> fits.HDUList:
    hot = fits.ImageHDU(observation.hot.astype(np.float32), name="HOT")
    dead = fits.ImageHDU(observation.dead.astype(np.uint8), name="DEAD")
    return fits.HDUList([fits.PrimaryHDU(), hot, dead])


def _association(observation: Observation, product: str) -> dict:
    members = [
        {"expname": f"{pointing.name}_cal.fits", "exptype": "science"} for pointing in observation.pointings
    ]
    return {
        "asn_type": "image3",
        "asn_rule": "DMS_Level3_Base",
        "asn_id": "a3001",
        "asn_pool": "none",
        "program": observation.pointings[0].program,
        "version_id": None,
        "code_version": "1.20.2",
        "degraded_status": "No known degraded exposures in association.",
        "constraints": "none",
        "target": "1",
        "products": [{"name": product, "members": members}],
    }
