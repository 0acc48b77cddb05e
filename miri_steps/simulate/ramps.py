"""Ramps read up the way the detector does it."""

from __future__ import annotations

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
_LEVELS = ("uncal", "ramp")


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
    blind = (blind_pixels(subarray) & pixel["REFERENCE_PIXEL"]) > 0
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


def blind_pixels(subarray: str) -> np.ndarray:
    """Give the DQ of pixels that see no light: reference pixels and the frame between the fields."""
    return defects.flags(subarray, _FIELDS, 0.0, 0).copy()


def _flagged(data: np.ndarray, saturation: int, subarray: str) -> datamodels.RampModel:
    model = datamodels.RampModel(data=data.astype(np.float32))
    model.pixeldq = blind_pixels(subarray)
    # Charge does not leave: after its first saturated group a pixel stays so.
    saturated = np.logical_or.accumulate(data >= saturation, axis=1)
    lost = np.broadcast_to(model.pixeldq & pixel["DO_NOT_USE"], data.shape)
    model.groupdq = np.where(saturated, lost | group["SATURATED"], lost).astype(np.uint8)
    return model
