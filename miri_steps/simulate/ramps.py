"""Ramps read up the way the detector does it, and the reference files to fit them without CRDS."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

import numpy as np
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels.dqflags import group, pixel

from miri_steps import detector
from miri_steps.simulate import defects, metadata
from miri_steps.simulate.pointing import Pointing

#: Electrons per DN.
GAIN = 4.0
#: Noise of one readout [DN]; a READNOISE file holds that of the difference of two.
READ_NOISE = 5.0
#: Value of a pixel just after its reset, and the one at which it counts no more [DN].
PEDESTAL, SATURATION = 10000, 55000
# Raw data have 16 bits.
_HIGHEST = 65535

# Time between two FASTR1 groups by subarray [s].
_GROUP_TIMES = {
    "FULL": metadata.GROUP_TIME,
    "BRIGHTSKY": 0.86528,
    "SUB256": 0.29952,
    "SUB128": 0.11904,
    "SUB64": 0.08500,
    "MASK1065": 0.23968,
    "MASK1140": 0.23968,
    "MASK1550": 0.23968,
    "MASKLYOT": 0.32384,
}
_FIELDS = ("imager", "lyot", "4qpm")
# A context that never was.
_CONTEXT = "jwst_0000.pmap"
_LEVELS = ("uncal", "ramp")
# Steps that would ask CRDS for what these ramps do not have: nonlinearity, dark current, drifts and so on.
_NOT_SIMULATED = ("emicorr", "ipc", "reset", "linearity", "rscd", "dark_current", "refpix", "persistence")


def ramp(
    rate: np.ndarray,
    *,
    nints: int = 3,
    ngroups: int = 20,
    subarray: str = "SUB64",
    filter: str = "F770W",
    gain: float = GAIN,
    read_noise: float = READ_NOISE,
    cosmic_rays: float = 0.0,
    cosmic_ray_dn: tuple[float, float] = (100.0, 400.0),
    saturation: int = SATURATION,
    level: str = "uncal",
    pointing: Pointing | None = None,
    seed: int = 0,
) -> datamodels.Level1bModel | datamodels.RampModel:
    """Expose the detector to a known count rate and read it group by group.

    Electrons gather with the noise of their number, each readout adds its own, cosmic rays put charge in one
    group and all later ones, and what exceeds saturation is clipped. The ramps are straight and the
    reference pixels see nothing.

    Parameters
    ----------
    rate : ndarray
        True count rate, shape (ny, nx) of the subarray [DN/s].
    nints, ngroups : int
        Integrations, and groups of each.
    subarray, filter : str
        Names as in SUBARRAY and FILTER.
    gain : float
        Electrons per DN.
    read_noise : float
        Noise of one readout [DN].
    cosmic_rays : float
        Fraction of the ramps (one pixel in one integration) that are hit, at a random group after the first.
    cosmic_ray_dn : tuple of float
        Least height of the step, and mean of the exponential tail above it [DN].
    saturation : int
        Highest value a pixel reaches [DN].
    level : str
        "uncal" for raw data, which the stock ``calwebb_detector1`` takes; "ramp" for what its jump step
        takes: saturated groups are flagged, cosmic rays are not.
    pointing : Pointing, optional
        Gives the exposure its name and place on the sky.
    seed : int
        Seed, beside the name of the exposure.

    Returns
    -------
    Level1bModel or RampModel
        Shape (nints, ngroups, ny, nx) [DN]; the raw data are whole numbers.

    Raises
    ------
    ValueError
        If a name is not known, a number out of its range, or the rate has another shape than the subarray.

    Examples
    --------
    >>> import numpy as np
    >>> from miri_steps import simulate
    >>> simulate.ramp(np.full((64, 72), 200.0), nints=2, ngroups=10).shape
    (2, 10, 64, 72)
    """
    rate = np.asarray(rate, float)
    _check_names(subarray, filter, level)
    _check_numbers(rate, nints, ngroups, subarray, gain, read_noise, cosmic_rays, cosmic_ray_dn, saturation)
    pointing = pointing or Pointing(0.0, 0.0)
    readout = metadata.Readout(nints, ngroups, _GROUP_TIMES[subarray])
    rng = np.random.default_rng([crc32(pointing.name.encode()), seed, 3])
    blind = (_mask(subarray) & pixel["REFERENCE_PIXEL"]) > 0
    electrons = np.where(blind, 0.0, rate) * gain * readout.group_time
    charge = np.cumsum(rng.poisson(electrons, (nints, ngroups, *rate.shape)), axis=1) / gain
    charge += _cosmic_rays(rng, charge.shape, cosmic_rays, cosmic_ray_dn)
    values = PEDESTAL + charge + read_noise * rng.standard_normal(charge.shape)
    data = np.round(np.clip(values, 0.0, saturation))
    if level == "uncal":
        model = datamodels.Level1bModel(data=data.astype(np.uint16))
    else:
        model = _flagged(data, saturation, subarray)
    metadata.describe_counts(
        model,
        pointing,
        suffix=level,
        readout=readout,
        filter_name=filter,
        subarray=subarray,
        exptype="MIR_IMAGE",
        target=(pointing.ra, pointing.dec),
    )
    return model


def reference_files(
    folder: str | Path,
    subarray: str = "SUB64",
    *,
    gain: float = GAIN,
    read_noise: float = READ_NOISE,
    saturation: int = SATURATION,
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
    models["mask"] = datamodels.MaskModel(dq=_mask(subarray))
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


def _check_names(subarray: str, filter: str, level: str) -> None:
    rules = (
        (subarray in detector.SUBARRAYS, f"subarray must be one of {list(detector.SUBARRAYS)}", subarray),
        (filter in detector.BANDS, f"filter must be one of {list(detector.BANDS)}", repr(filter)),
        (level in _LEVELS, f"level must be one of {list(_LEVELS)}", repr(level)),
    )
    _refuse(rules)


def _check_numbers(
    rate: np.ndarray,
    nints: int,
    ngroups: int,
    subarray: str,
    gain: float,
    read_noise: float,
    cosmic_rays: float,
    cosmic_ray_dn: tuple[float, float],
    saturation: int,
) -> None:
    shape, lowest = detector.SUBARRAYS[subarray].shape, np.min(rate, initial=0.0)
    rules = (
        (rate.shape == shape, f"rate must have the shape {shape} of {subarray}", rate.shape),
        (lowest >= 0, "rate must be at least 0 DN/s everywhere", lowest),
        (nints >= 1, "nints must be at least 1", nints),
        (ngroups >= 2, "ngroups must be at least 2", ngroups),
        (gain > 0, "gain must be above 0 electrons per DN", gain),
        (read_noise >= 0, "read_noise must be at least 0 DN", read_noise),
        (0 <= cosmic_rays < 1, "cosmic_rays must be a fraction of 0 to 1", cosmic_rays),
        (
            len(cosmic_ray_dn) == 2 and min(cosmic_ray_dn) >= 0,
            "cosmic_ray_dn must be a least height and a tail of at least 0 DN",
            cosmic_ray_dn,
        ),
        (
            PEDESTAL < saturation <= _HIGHEST and saturation == int(saturation),
            f"saturation must be a whole number above {PEDESTAL} and at most {_HIGHEST} DN",
            saturation,
        ),
    )
    _refuse(rules)


def _refuse(rules: tuple[tuple[bool, str, object], ...]) -> None:
    for holds, rule, value in rules:
        if not holds:
            raise ValueError(f"{rule}, got {value}")


def _cosmic_rays(
    rng: np.random.Generator, shape: tuple[int, ...], fraction: float, dn: tuple[float, float]
) -> np.ndarray:
    """Charge that cosmic rays left in each group [DN]."""
    nints, ngroups, *frame = shape
    hit = rng.random((nints, 1, *frame)) < fraction
    when = rng.integers(1, ngroups, hit.shape)
    height = dn[0] + dn[1] * rng.standard_exponential(hit.shape)
    return np.where(hit & (np.arange(ngroups)[:, None, None] >= when), height, 0.0)


def _mask(subarray: str) -> np.ndarray:
    """Flag reference pixels and the frame between the fields."""
    return defects.flags(subarray, _FIELDS, 0.0, 0).copy()


def _flagged(data: np.ndarray, saturation: int, subarray: str) -> datamodels.RampModel:
    model = datamodels.RampModel(data=data.astype(np.float32))
    model.pixeldq = _mask(subarray)
    # Charge does not leave: after its first saturated group a pixel stays so.
    saturated = np.logical_or.accumulate(data >= saturation, axis=1)
    lost = np.broadcast_to(model.pixeldq & pixel["DO_NOT_USE"], data.shape)
    model.groupdq = np.where(saturated, lost | group["SATURATED"], lost).astype(np.uint8)
    return model


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
