"""An exposure by integration: ``_rateints`` and ``_rate``, as ramp fitting leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps import detector
from miri_steps.simulate import metadata
from miri_steps.simulate.exposure import Observation

# Half of a ramp: photons arrive for half the time, and the slope's error by read noise goes as length^-3.
_JUMP_POISSON, _JUMP_READ_NOISE = 2.0, 8.0
_UNUSABLE = np.uint32(pixel["DO_NOT_USE"])


@dataclass(frozen=True, eq=False)
class Integrations:
    """One exposure by integration, and the truth about it. Made by `integrate`.

    Parameters
    ----------
    rate : ImageModel
        Plain mean of the integrations that are not DO_NOT_USE, cosmic rays and all [DN/s].
    rateints : CubeModel
        The integrations, shape (nints, ny, nx) [DN/s].
    truth : ndarray
        What each integration would be without noise, hot and dead pixels included, shape (ny, nx) [DN/s].
    hit : ndarray of bool
        Samples that a cosmic ray changed without a flag, shape (nints, ny, nx).
    """

    rate: datamodels.ImageModel
    rateints: datamodels.CubeModel
    truth: np.ndarray
    hit: np.ndarray

    def write(self, folder: str | Path) -> Path:
        """Write ``_rate.fits`` and ``_rateints.fits``.

        Parameters
        ----------
        folder : str or Path
            Made when it does not exist.

        Returns
        -------
        Path
            The ``_rate`` file.

        Raises
        ------
        FileExistsError
            If a file is there already; nothing has been written then.
        """
        folder = Path(folder)
        paths = [folder / model.meta.filename for model in (self.rate, self.rateints)]
        there = [path for path in paths if path.exists()]
        if there:
            raise FileExistsError(f"{there[0]} is there already; simulated files go to a fresh folder")
        folder.mkdir(parents=True, exist_ok=True)
        for path, model in zip(paths, (self.rate, self.rateints), strict=True):
            model.save(str(path))
        return paths[0]


def integrate(
    observation: Observation,
    i: int,
    *,
    nints: int = 8,
    cosmic_rays: float = 0.0,
    cosmic_ray_sigma: tuple[float, float] = (10.0, 40.0),
    jumps: float = 0.0,
    saturation: float | None = None,
    flat: np.ndarray | None = None,
    seed: int = 0,
) -> Integrations:
    """Take an exposure in several integrations.

    The mean of them all has the noise of the exposure that ``observation[i]`` gives, drawn anew; the
    observation's own ``cosmic_rays`` play no part. The variances are those of the truth, not of the sample.
    Where the detector responds less, there is less light and less noise of it, as much noise of the readout,
    and hot pixels are as hot.

    Parameters
    ----------
    observation : Observation
        Made by `observe`.
    i : int
        Number of the exposure.
    nints : int
        Number of integrations.
    cosmic_rays : float
        Fraction of the samples (one pixel in one integration) that a cosmic ray hits without a flag, as when
        ramp fitting misses a jump. Only usable samples are hit.
    cosmic_ray_sigma : tuple of float
        Least height, and mean of the exponential tail above it, in units of the sample's error.
    jumps : float
        Fraction of the usable samples that lost half of their ramp to a jump that was found: they have
        JUMP_DET and more noise.
    saturation : float, optional
        Pixels with a higher true rate [DN/s] are saturated from the start in their first integrations, 1 to
        ``nints`` of them at random: NaN with DO_NOT_USE and SATURATED.
    flat : ndarray, optional
        Full-frame response, about 1, by which the light is multiplied; give the same to
        `calibration_files`.
    seed : int
        Seed, beside that of the observation and the name of the exposure.

    Returns
    -------
    Integrations
        The models ``rate`` and ``rateints``, and the arrays ``truth`` and ``hit``.

    Raises
    ------
    ValueError
        If a number is out of its range.

    Examples
    --------
    >>> from miri_steps import simulate
    >>> plan = [simulate.Pointing(339.0, 33.96)]
    >>> observation = simulate.observe(simulate.Scene(339.0, 33.96), plan, "F770W", subarray="SUB64")
    >>> integrations = simulate.integrate(observation, 0, nints=4, cosmic_rays=0.05)
    >>> integrations.rateints.shape
    (4, 64, 72)
    """
    _check(nints, cosmic_rays, cosmic_ray_sigma, jumps, saturation)
    # The 2 keeps this stream apart from the observation's; a seed of 0 at the end would change nothing.
    name = observation.pointings[i].name
    rng = np.random.default_rng([observation.seed, crc32(name.encode()), seed, 2])
    expected, variances = observation.expect(i)
    if flat is not None:
        expected, variances = _respond(observation, expected, variances, check_flat(flat))
    truth = expected / metadata.CONVERSION
    bright = np.zeros(truth.shape, bool) if saturation is None else truth > saturation
    dq = _flags(rng, observation.flags, bright, jumps, nints)
    planes = _variances(variances, dq)
    sigma = np.sqrt(planes["var_poisson"] + planes["var_rnoise"])
    usable = (dq & _UNUSABLE) == 0
    hit = (rng.random(dq.shape) < cosmic_rays) & usable
    floor, tail = cosmic_ray_sigma
    height = np.where(hit, floor + tail * rng.standard_exponential(dq.shape), 0.0)
    data = truth + sigma * (rng.standard_normal(dq.shape) + height)
    planes |= {"data": np.where(usable, data, np.nan), "dq": dq}
    # As long an exposure as that of the cal file, so that its photon noise holds.
    ngroups = max(2, metadata.N_GROUPS // nints)
    readout = metadata.Readout(nints, ngroups, metadata.EXPOSURE_TIME / (nints * ngroups))
    rate = _to_model(datamodels.ImageModel(), "rate", _average(planes), observation, i, readout)
    rateints = _to_model(datamodels.CubeModel(), "rateints", planes, observation, i, readout)
    return Integrations(rate=rate, rateints=rateints, truth=truth, hit=hit)


def check_flat(flat: np.ndarray) -> np.ndarray:
    """Refuse a flat that no detector has, and give the others as an array of numbers."""
    flat = np.asarray(flat, float)
    rules = (
        (flat.shape == detector.SHAPE, f"have the full frame's shape {detector.SHAPE}", flat.shape),
        (np.isfinite(flat).all(), "be finite everywhere", f"{np.count_nonzero(~np.isfinite(flat))} others"),
        (np.min(flat, initial=1.0) > 0, "be above 0 everywhere", np.min(flat, initial=1.0)),
    )
    for holds, rule, value in rules:
        if not holds:
            raise ValueError(f"flat must {rule}, got {value}")
    return flat


def _respond(
    o: Observation, expected: np.ndarray, variances: Mapping[str, np.ndarray], flat: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Multiply the light of an exposure by the response; what heats a pixel is no light."""
    response, heat = flat[detector.SUBARRAYS[o.subarray].slices], o.hot * o.noise
    dimmed = {"var_poisson": variances["var_poisson"] * response}
    return (expected - heat) * response + heat, {**variances, **dimmed}


def _check(
    nints: int, cosmic_rays: float, sigma: tuple[float, float], jumps: float, saturation: float | None
) -> None:
    rules = (
        (nints >= 1, "nints must be at least 1", nints),
        (0 <= cosmic_rays < 1, "cosmic_rays must be a fraction of 0 to 1", cosmic_rays),
        (
            len(sigma) == 2 and min(sigma) >= 0,
            "cosmic_ray_sigma must be a least height and a tail of at least 0",
            sigma,
        ),
        (0 <= jumps < 1, "jumps must be a fraction of 0 to 1", jumps),
        (saturation is None or saturation > 0, "saturation must be above 0 DN/s", saturation),
    )
    for holds, rule, value in rules:
        if not holds:
            raise ValueError(f"{rule}, got {value}")


def _flags(
    rng: np.random.Generator, always: np.ndarray, bright: np.ndarray, jumps: float, nints: int
) -> np.ndarray:
    """DQ of every sample: what all have, saturation of bright pixels, jumps where there is a ramp left."""
    dq = np.repeat(always[None], nints, axis=0)
    lost = np.where(bright, rng.integers(1, nints + 1, bright.shape), 0)
    dq[np.arange(nints)[:, None, None] < lost] |= _UNUSABLE | np.uint32(pixel["SATURATED"])
    jumped = (rng.random(dq.shape) < jumps) & ((dq & _UNUSABLE) == 0)
    dq[jumped] |= np.uint32(pixel["JUMP_DET"])
    return dq


def _variances(exposure: Mapping[str, np.ndarray], dq: np.ndarray) -> dict[str, np.ndarray]:
    """Variances of every sample [DN^2/s^2] from those of the exposure [MJy^2/sr^2]; 0 where unusable."""
    jumped, unusable = (dq & pixel["JUMP_DET"]) > 0, (dq & _UNUSABLE) > 0
    planes = {}
    for name, worse in (("var_poisson", _JUMP_POISSON), ("var_rnoise", _JUMP_READ_NOISE)):
        whole = exposure[name] * len(dq) / metadata.CONVERSION**2
        planes[name] = np.where(unusable, 0.0, whole * np.where(jumped, worse, 1.0))
    return planes


def _average(planes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mean over the usable integrations; flags of any of them, DO_NOT_USE where all have it."""
    unusable = (planes["dq"] & _UNUSABLE) > 0
    n = (~unusable).sum(axis=0)
    rate = {name: planes[name].sum(axis=0) / np.maximum(n, 1) ** 2 for name in ("var_poisson", "var_rnoise")}
    total = np.where(unusable, 0.0, planes["data"]).sum(axis=0)
    dq = np.bitwise_or.reduce(planes["dq"], axis=0) & ~_UNUSABLE
    return rate | {
        "data": np.where(n > 0, total / np.maximum(n, 1), np.nan),
        "dq": dq | np.where(n == 0, _UNUSABLE, np.uint32(0)),
    }


def _to_model(
    model: datamodels.JwstDataModel,
    suffix: str,
    planes: Mapping[str, np.ndarray],
    o: Observation,
    i: int,
    readout: metadata.Readout,
) -> datamodels.JwstDataModel:
    for name in ("data", "var_poisson", "var_rnoise"):
        setattr(model, name, planes[name].astype(np.float32))
    model.err = np.sqrt(model.var_poisson + model.var_rnoise)
    model.dq = planes["dq"]
    metadata.describe_counts(
        model,
        o.pointings[i],
        suffix=suffix,
        readout=readout,
        filter_name=o.filter,
        subarray=o.subarray,
        exptype=o.exptype,
        target=(o.scene.ra, o.scene.dec),
    )
    return model
