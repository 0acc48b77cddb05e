"""Reference files for what is simulated, so that the stock pipelines run on it without a network."""

from __future__ import annotations

from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import numpy as np
from stdatamodels.jwst import datamodels

from miri_steps import detector
from miri_steps.simulate import integrations, metadata, ramps, sphere, wcs

# Files that come with the package, by reference type.
_SHIPPED = {
    "distortion": "jwst_miri_imager_distortion_flt9.asdf",
    "filteroffset": "jwst_miri_filteroffset_full_flt9.asdf",
}
# Steps that would ask CRDS for what these ramps do not have: nonlinearity, dark current, drifts and so on.
_NOT_SIMULATED = ("emicorr", "ipc", "reset", "linearity", "rscd", "dark_current", "refpix", "persistence")
# Reference types that an image of MIRI has no use for but its steps ask for.
_NOT_FOR_IMAGES = {
    "assign_wcs": (
        "camera collimator disperser fore fpa ifufore ifupost ifuslicer msa ote "
        "regions specwcs wavelengthrange"
    ).split(),
    "flat_field": ["dflat", "fflat", "sflat"],
}
# A context that never was.
_CONTEXT = "jwst_0000.pmap"


def reference_files(
    folder: str | Path,
    subarray: str = "SUB64",
    *,
    gain: float = ramps.GAIN,
    read_noise: float = ramps.READ_NOISE,
    saturation: int = ramps.SATURATION,
) -> dict[str, dict]:
    """Write the reference files that tell ``calwebb_detector1`` about a simulated ramp.

    They are GAIN, READNOISE, SATURATION and MASK; give the numbers that `ramp` was given. What is not
    simulated is skipped, so that no reference file is asked of CRDS. CRDS itself must still be there, to be
    asked for its context: without a network, `offline_crds` makes do.

    Parameters
    ----------
    folder : str or Path
        Made when it does not exist; files of the same names are replaced.
    subarray : str
        Value of SUBARRAY.
    gain : float
        Electrons per DN.
    read_noise : float
        Noise of one readout [DN].
    saturation : int
        Highest value a pixel reaches [DN].

    Returns
    -------
    dict
        Parameters by step: the argument ``steps`` of ``Detector1Pipeline.call``; each item is
        ``--steps.<step>.<parameter>=<value>`` of ``strun``, and those of one step are the arguments of its
        own ``call``.

    Examples
    --------
    >>> from jwst.pipeline import Detector1Pipeline  # doctest: +SKIP
    >>> os.environ |= simulate.offline_crds("references")  # doctest: +SKIP
    >>> steps = simulate.reference_files("references")  # doctest: +SKIP
    >>> Detector1Pipeline.call("uncal.fits", steps=steps)  # doctest: +SKIP
    """
    if subarray not in detector.SUBARRAYS:
        raise ValueError(f"subarray must be one of {list(detector.SUBARRAYS)}, got {subarray}")
    shape = detector.SUBARRAYS[subarray].shape
    flat = {"gain": gain, "readnoise": np.sqrt(2.0) * read_noise, "saturation": saturation}
    kinds = (datamodels.GainModel, datamodels.ReadnoiseModel, datamodels.SaturationModel)
    models = {
        name: kind(data=np.full(shape, value, np.float32))
        for (name, value), kind in zip(flat.items(), kinds, strict=True)
    }
    models["mask"] = datamodels.MaskModel(dq=ramps.blind_pixels(subarray))
    paths = {name: _write_reference(model, name, subarray, Path(folder)) for name, model in models.items()}
    fit = {"override_gain": paths["gain"], "override_readnoise": paths["readnoise"]}
    return {
        "dq_init": {"override_mask": paths["mask"]},
        # MIRI has no superbias, but the step asks for it.
        "saturation": {"override_saturation": paths["saturation"], "override_superbias": "N/A"},
        "jump": dict(fit),
        "ramp_fit": dict(fit),
        "gain_scale": {"override_gain": paths["gain"]},
    } | {step: {"skip": True} for step in _NOT_SIMULATED}


def calibration_files(folder: str | Path, *, flat: np.ndarray | None = None) -> dict[str, dict]:
    """Write the reference files that tell ``calwebb_image2`` about simulated rates.

    They are DISTORTION and FILTEROFFSET (those of this package, which the simulator itself uses), FLAT,
    PHOTOM and AREA, and serve all filters and subarrays. Types that MIRI does not have are given as "N/A", so
    that no reference file is asked of CRDS. CRDS itself must still be there, to be asked for its context:
    without a network, `offline_crds` makes do. The exposures are not resampled one by one.

    Parameters
    ----------
    folder : str or Path
        Made when it does not exist; files of the same names are replaced.
    flat : ndarray, optional
        Full-frame response, about 1: the one that `integrate` was given; 1 everywhere when not given.

    Returns
    -------
    dict
        Parameters by step: the argument ``steps`` of ``Image2Pipeline.call``; each item is
        ``--steps.<step>.<parameter>=<value>`` of ``strun``.

    Raises
    ------
    ValueError
        If the flat has another shape, or is not above 0 everywhere; nothing has been written then.

    Examples
    --------
    >>> from jwst.pipeline import Image2Pipeline  # doctest: +SKIP
    >>> os.environ |= simulate.offline_crds("references")  # doctest: +SKIP
    >>> steps = simulate.calibration_files("references")  # doctest: +SKIP
    >>> Image2Pipeline.call("rate.fits", steps=steps)  # doctest: +SKIP
    """
    folder = Path(folder)
    response = integrations.check_flat(np.ones(detector.SHAPE) if flat is None else flat).astype(np.float32)
    models = {
        # The flat is known exactly: it adds no error.
        "flat": datamodels.FlatModel(data=response, err=np.zeros_like(response)),
        "photom": datamodels.MirImgPhotomModel(phot_table=_conversions()),
        "area": _area_map(),
    }
    paths = {name: _write_reference(model, name, "FULL", folder) for name, model in models.items()}
    paths |= {name: _copy_shipped(name, folder) for name in _SHIPPED}
    kinds = {"assign_wcs": _SHIPPED, "flat_field": ("flat",), "photom": ("photom", "area")}
    steps = {step: {f"override_{kind}": paths[kind] for kind in named} for step, named in kinds.items()}
    for step, named in _not_for_images().items():
        steps[step] |= {f"override_{kind}": "N/A" for kind in named}
    return steps | {step: {"skip": True} for step in ("bkg_subtract", "resample")}


def offline_crds(folder: str | Path) -> dict[str, str]:
    """Make an empty CRDS cache, for steps that get all their reference files as overrides.

    A step that used any reference file writes the name of the CRDS context into its result; without a cache
    and a network CRDS ends the program then.

    Parameters
    ----------
    folder : str or Path
        Made when it does not exist.

    Returns
    -------
    dict
        Variables to set in the environment before CRDS is first used.
    """
    config = Path(folder).absolute() / "crds" / "config" / "jwst"
    config.mkdir(parents=True, exist_ok=True)
    # What CRDS reads of it when it has no server.
    server = {"observatory": "jwst", "operational_context": _CONTEXT, "last_synced": "never"}
    (config / "server_config").write_text(repr(server))
    return {
        "CRDS_PATH": str(config.parents[1]),
        "CRDS_SERVER_URL": "https://crds-serverless-mode.stsci.edu",
        "CRDS_CONTEXT": _CONTEXT,
        "STPIPE_DISABLE_CRDS_STEPPARS": "true",
    }


def _not_for_images() -> dict[str, list[str]]:
    """List reference types by step; the list is that of the jwst that is installed."""
    since_3 = ["chromcorr"] if int(version("jwst").split(".")[0]) >= 3 else []
    return _NOT_FOR_IMAGES | {"assign_wcs": _NOT_FOR_IMAGES["assign_wcs"] + since_3}


def _conversions() -> np.ndarray:
    """Tabulate the factor from DN/s to MJy/sr: one for all filters and subarrays."""
    kinds = [("filter", "S12"), ("subarray", "S15"), ("photmjsr", "f4"), ("uncertainty", "f4")]
    rows = [(band, name, metadata.CONVERSION, 0.0) for band in detector.BANDS for name in detector.SUBARRAYS]
    return np.array(rows, dtype=kinds)


def _area_map() -> datamodels.PixelAreaModel:
    """Draw the size of the pixels; the filters' offsets change it by less than 0.03 %."""
    nominal = wcs.nominal_pixel_area("F770W")
    model = datamodels.PixelAreaModel(data=(wcs.pixel_areas("F770W") / nominal).astype(np.float32))
    model.meta.photometry.pixelarea_arcsecsq = nominal
    model.meta.photometry.pixelarea_steradians = nominal * sphere.ARCSEC**2
    return model


def _copy_shipped(kind: str, folder: Path) -> str:
    path = folder / f"full_{kind}.asdf"
    path.write_bytes((files("miri_steps.simulate") / "data" / _SHIPPED[kind]).read_bytes())
    return str(path.absolute())


def _write_reference(model: datamodels.JwstDataModel, kind: str, subarray: str, folder: Path) -> str:
    meta = {
        "reftype": kind.upper(),
        "instrument": {"name": "MIRI", "detector": "MIRIMAGE"},
        "subarray": metadata.readout_window(subarray),
        "author": "miri_steps.simulate",
        "description": "Simulated",
        "pedigree": "DUMMY",
        "useafter": "2022-01-01T00:00:00",
        "telescope": "JWST",
    }
    model.update({"meta": meta})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{subarray.lower()}_{kind}.fits"
    model.save(str(path))
    return str(path.absolute())
