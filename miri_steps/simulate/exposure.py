"""From a scene and a plan to exposures, as the second stage of the pipeline leaves them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np
from astropy import units
from astropy.table import QTable
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps import detector
from miri_steps.simulate import defects, metadata, render, sphere, wcs
from miri_steps.simulate.diffraction import Psf
from miri_steps.simulate.diffraction import psf as compute_psf
from miri_steps.simulate.pointing import Pointing
from miri_steps.simulate.scene import Scene

# Photon noise of a source: brightness / (electrons that 1 MJy/sr gives), with 4 electrons per DN.
_VARIANCE_PER_BRIGHTNESS = metadata.CONVERSION / (4.0 * metadata.EXPOSURE_TIME)
# In a background-limited exposure the detector adds this part of the variance.
_READ_NOISE_SHARE = 0.1
# Cosmic rays: 10 sigma and an exponential tail of this many more.
_COSMIC_RAY_FLOOR, _COSMIC_RAY_TAIL = 10.0, 40.0


@dataclass(frozen=True, eq=False)
class Observation:
    """A planned set of exposures, made when asked for: iterate over it, or take one by number.

    Made by `observe`, which explains the fields. Each exposure is rendered anew every time, always the same.
    """

    scene: Scene
    pointings: tuple[Pointing, ...]
    filter: str
    sky: np.ndarray
    pattern: np.ndarray | None
    pattern_scale: np.ndarray
    noise: float
    poisson: bool
    pointing_error: np.ndarray
    bad_pixels: float
    hot_pixels: float
    hot_sigma: tuple[float, float]
    dead_pixels: float
    cosmic_rays: float
    subarray: str
    exptype: str
    regions: tuple[str, ...]
    psf: Psf
    seed: int

    def __len__(self) -> int:
        """Count the exposures."""
        return len(self.pointings)

    def __iter__(self) -> Iterator[datamodels.ImageModel]:
        """Make the exposures one at a time."""
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> datamodels.ImageModel:
        """Make one exposure."""
        return _to_model(self, self._fill(i), self.pointings[i])

    @property
    def truth(self) -> QTable:
        """What is true of each exposure: names, pointing as the file has it, background, pointing error."""
        plan = self.pointings
        table = QTable()
        table["exposure"] = [f"{p.name}_cal.fits" for p in plan]
        table["visit"] = [p.visit_id for p in plan]
        table["gs_id"] = [p.gs_id for p in plan]
        table["tile"] = [p.tile for p in plan]
        table["dither"] = [p.dither for p in plan]
        for name, key in (("ra", "ra"), ("dec", "dec"), ("roll", "pa_v3")):
            table[name] = np.array([getattr(p, key) for p in plan]) * units.deg
        table["sky"] = self.sky * units.Unit("MJy/sr")
        table["pattern_scale"] = self.pattern_scale
        table["error_east"] = self.pointing_error[:, 0] * units.arcsec
        table["error_north"] = self.pointing_error[:, 1] * units.arcsec
        return table

    @property
    def flags(self) -> np.ndarray:
        """DQ that all exposures have, shape (ny, nx)."""
        return defects.flags(self.subarray, self.regions, self.bad_pixels, self.seed).copy()

    @property
    def hot(self) -> np.ndarray:
        """Height of the unflagged hot pixels in units of ``noise``, 0 on all others, shape (ny, nx)."""
        if not self.hot_pixels:
            return np.zeros(self.flags.shape)
        return defects.hot(self.flags, self.subarray, self.hot_pixels, self.hot_sigma, self.seed)

    @property
    def dead(self) -> np.ndarray:
        """True on the unflagged dead pixels, shape (ny, nx)."""
        if not self.dead_pixels:
            return np.zeros(self.flags.shape, bool)
        return defects.dead(self.flags, self.subarray, self.dead_pixels, self.seed)

    def signal(self, i: int) -> np.ndarray:
        """Light of the scene alone in one exposure [MJy/sr]: no background, no noise."""
        inside, seen = self._inside(), self._seen(i)
        image = render.emission(self.scene, seen, self.filter, self.subarray, inside)
        return image + render.stars(self.scene, seen, self.filter, self.subarray, self.psf) * inside

    def background(self, i: int) -> np.ndarray:
        """Light that is not the scene's in one exposure [MJy/sr]: sky and pattern, no noise.

        Parameters
        ----------
        i : int
            Number of the exposure.

        Returns
        -------
        ndarray
            ``sky[i] + pattern_scale[i] * pattern`` in the subarray's frame, shape (ny, nx), as if no pixel
            were hot or dead.
        """
        window = detector.SUBARRAYS[self.subarray]
        background = np.full(window.shape, self.sky[i])
        if self.pattern is not None:
            background += self.pattern_scale[i] * self.pattern[window.slices]
        return background

    def expect(self, i: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Find what an exposure would show without noise, and what noise it has.

        Parameters
        ----------
        i : int
            Number of the exposure.

        Returns
        -------
        expected : ndarray
            Scene, sky, pattern, hot and dead pixels [MJy/sr].
        variances : dict
            Arrays ``var_poisson`` and ``var_rnoise`` [MJy^2/sr^2].
        """
        dead = self.dead
        signal = np.where(dead, 0.0, self.signal(i))
        background = np.where(dead, 0.0, self.background(i))
        return signal + background + self.hot * self.noise, self._variances(signal)

    def _seen(self, i: int) -> Pointing:
        """Where the telescope really looked."""
        nominal = self.pointings[i]
        ra, dec = sphere.offset(nominal.ra, nominal.dec, *self.pointing_error[i])
        return replace(nominal, ra=ra, dec=dec)

    def _inside(self) -> np.ndarray:
        window = detector.SUBARRAYS[self.subarray]
        return detector.region_mask(
            self.regions, shape=window.shape, xstart=window.xstart, ystart=window.ystart
        )

    def _fill(self, i: int) -> dict[str, np.ndarray]:
        """Arrays of one exposure."""
        rng = np.random.default_rng([self.seed, crc32(self.pointings[i].name.encode())])
        expected, planes = self.expect(i)
        sigma = np.sqrt(planes["var_poisson"] + planes["var_rnoise"])
        data = expected + sigma * rng.standard_normal(sigma.shape)
        data += _cosmic_rays(rng, sigma, self.cosmic_rays)
        dq = self.flags
        planes |= {"data": data, "err": sigma, "var_flat": np.zeros_like(data)}
        unusable = (dq & pixel["DO_NOT_USE"]) > 0
        planes = {name: np.where(unusable, np.nan, plane) for name, plane in planes.items()}
        window = detector.SUBARRAYS[self.subarray].slices
        area = wcs.pixel_areas(self.filter)[window] / wcs.nominal_pixel_area(self.filter)
        return planes | {"dq": dq, "area": area}

    def _variances(self, signal: np.ndarray) -> dict[str, np.ndarray]:
        variance = self.noise**2
        source = _VARIANCE_PER_BRIGHTNESS * np.maximum(signal, 0.0) * (self.poisson and self.noise > 0)
        return {
            "var_poisson": (1 - _READ_NOISE_SHARE) * variance + source,
            "var_rnoise": np.full(signal.shape, _READ_NOISE_SHARE * variance),
        }


def observe(
    scene: Scene,
    pointings: Sequence[Pointing],
    filter: str,
    *,
    sky: float | np.ndarray = 0.0,
    pattern: np.ndarray | None = None,
    pattern_scale: float | np.ndarray = 1.0,
    noise: float = 0.05,
    poisson: bool = True,
    pointing_error: np.ndarray | None = None,
    bad_pixels: float = 0.005,
    hot_pixels: float = 0.0,
    hot_sigma: tuple[float, float] = (5.0, 500.0),
    dead_pixels: float = 0.0,
    cosmic_rays: float = 0.0,
    subarray: str = "FULL",
    exptype: str = "MIR_IMAGE",
    regions: Sequence[str] = ("imager", "lyot", "4qpm"),
    psf: Psf | None = None,
    seed: int = 0,
) -> Observation:
    """Take exposures of a scene.

    Nothing is rendered yet: iterate over the result for the exposures, or hand it to `write`.

    Parameters
    ----------
    scene : Scene
        The sky.
    pointings : sequence of Pointing
        The plan.
    filter : str
        Name of the filter.
    sky : float or array
        Level of the background, one for all or one per exposure [MJy/sr].
    pattern : ndarray, optional
        Full-frame background that is fixed to the detector [MJy/sr].
    pattern_scale : float or array
        Factor on ``pattern``, one for all or one per exposure: a thermal background has structure that
        brightens with its level.
    noise : float
        Standard deviation of an empty pixel [MJy/sr]. At 0 nothing is drawn and err is 0: the pipeline gives
        such exposures no weight; for a noise-free mosaic use 1e-6 with ``poisson=False``.
    poisson : bool
        Whether the light of the scene adds its photon noise.
    pointing_error : array, optional
        Shape (n, 2): East (times cos dec) and North [arcsec]. The file says the nominal pointing, the
        telescope looked at nominal plus error; tweakreg has to find a shift of plus error.
    bad_pixels : float
        Fraction of dead and hot pixels, at fixed places of the detector, flagged and NaN.
    hot_pixels : float
        Fraction of the remaining pixels that are hot without a flag: each adds the same to all exposures.
    hot_sigma : tuple of float
        Lowest and highest height of those, in units of ``noise``, evenly spread in the logarithm.
    dead_pixels : float
        Fraction of the remaining pixels that see no light, without a flag: their data are noise around 0.
    cosmic_rays : float
        Fraction of pixels per exposure that are hit, and not flagged.
    subarray, exptype : str
        Values of SUBARRAY and EXP_TYPE.
    regions : sequence of str
        Fields that see the sky, see `miri_steps.detector.region_mask`.
    psf : Psf, optional
        Image of a star; computed for the filter when not given.
    seed : int
        Seed of noise, cosmic rays and bad, hot and dead pixels. The noise of an exposure depends on the seed
        and its name only, not on the others.

    Returns
    -------
    Observation
        The exposures to be.

    Raises
    ------
    ValueError
        If names are not known, exposures share a name, or shapes do not fit.
    """
    n = len(pointings)
    observation = Observation(
        scene=scene,
        pointings=tuple(pointings),
        filter=filter,
        sky=_per_exposure(sky, n),
        pattern=None if pattern is None else np.array(pattern, float),
        pattern_scale=_per_exposure(pattern_scale, n),
        noise=float(noise),
        poisson=poisson,
        pointing_error=np.zeros((n, 2)) if pointing_error is None else np.array(pointing_error, float),
        bad_pixels=bad_pixels,
        hot_pixels=hot_pixels,
        hot_sigma=tuple(float(height) for height in hot_sigma),
        dead_pixels=dead_pixels,
        cosmic_rays=cosmic_rays,
        subarray=subarray,
        exptype=exptype,
        regions=tuple([regions] if isinstance(regions, str) else regions),
        psf=psf or compute_psf(filter),
        seed=seed,
    )
    _check(observation)
    return observation


def _per_exposure(value: float | np.ndarray, n: int) -> np.ndarray:
    return np.array(np.broadcast_to(np.asarray(value, float), np.shape(value) or (n,)))


def _check(o: Observation) -> None:
    names = [pointing.name for pointing in o.pointings]
    twice = sorted({name for name in names if names.count(name) > 1})
    detector.region_mask(o.regions, shape=(1, 1))
    fractions = ("bad_pixels", "hot_pixels", "dead_pixels", "cosmic_rays")
    each = (("sky", "level", o.sky), ("pattern_scale", "factor", o.pattern_scale))
    rules = (
        (o.subarray in detector.SUBARRAYS, f"subarray must be one of {list(detector.SUBARRAYS)}", o.subarray),
        (not twice, "every exposure must have a name of its own", twice),
        *(
            (v.shape == (len(o),), f"{name} must be one {what} or one per exposure ({len(o)})", v.shape)
            for name, what, v in each
        ),
        *((np.isfinite(v).all(), f"{name} must be finite", v) for name, _, v in each),
        (
            o.pointing_error.shape == (len(o), 2),
            f"pointing_error must have shape ({len(o)}, 2)",
            o.pointing_error.shape,
        ),
        (
            o.pattern is None or o.pattern.shape == detector.SHAPE,
            f"pattern must have the full frame's shape {detector.SHAPE}",
            np.shape(o.pattern),
        ),
        (o.noise >= 0, "noise must be at least 0 MJy/sr", o.noise),
        *((0 <= getattr(o, n) < 1, f"{n} must be a fraction of 0 to 1", getattr(o, n)) for n in fractions),
        (
            o.hot_pixels + o.dead_pixels <= 1,
            "hot_pixels and dead_pixels must be at most 1 together",
            o.hot_pixels + o.dead_pixels,
        ),
        (
            len(o.hot_sigma) == 2 and 0 < o.hot_sigma[0] <= o.hot_sigma[-1] < np.inf,
            "hot_sigma must be 0 < lowest <= highest",
            o.hot_sigma,
        ),
    )
    for holds, rule, value in rules:
        if not holds:
            raise ValueError(f"{rule}, got {value}")


def _cosmic_rays(rng: np.random.Generator, sigma: np.ndarray, fraction: float) -> np.ndarray:
    hits = rng.random(sigma.shape) < fraction
    height = _COSMIC_RAY_FLOOR + _COSMIC_RAY_TAIL * rng.standard_exponential(sigma.shape)
    return np.where(hits, sigma * height, 0.0)


def _to_model(o: Observation, planes: dict[str, np.ndarray], pointing: Pointing) -> datamodels.ImageModel:
    model = datamodels.ImageModel()
    model.data = planes["data"].astype(np.float32)
    model.dq = planes["dq"]
    for name in ("err", "area", "var_poisson", "var_rnoise", "var_flat"):
        setattr(model, name, planes[name].astype(np.float32))
    metadata.describe(
        model,
        pointing,
        filter_name=o.filter,
        subarray=o.subarray,
        exptype=o.exptype,
        target=(o.scene.ra, o.scene.dec),
    )
    return model
