"""The sky: stars and extended emission, as functions of position.

A `Scene` knows nothing of detectors. Its emission is tabulated once, on a tangent plane, and read off with a
cubic spline wherever a pixel looks, so that all exposures see the same sky.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from astropy.table import Table, vstack
from scipy import ndimage

from miri_steps import detector
from miri_steps.simulate import sphere

# The table of the emission is as fine as the detector, unless that made it larger than this [samples].
_LARGEST_TABLE = 4096
# A spline follows the table to 1e-4 where the finest structure spans this many samples (FWHM).
_SMOOTH_SAMPLES = 3.0
_SIGMA_PER_FWHM = 1.0 / np.sqrt(8.0 * np.log(2.0))


class _Component(Protocol):
    def brightness(self, east: np.ndarray, north: np.ndarray, fwhm: float) -> np.ndarray:
        """Surface brightness [MJy/sr] at East, North [arcsec], seen at a resolution ``fwhm`` [arcsec]."""


@dataclass(frozen=True)
class Emission:
    """A random nebula with the power spectrum of interstellar clouds; it repeats beyond its box.

    Parameters
    ----------
    amplitude : float
        Range from the 0.5 percentile over the box to the 99.5 percentile over what is covered [MJy/sr]; the
        minimum is zero.
    radius : float
        Half size of the box [arcsec]: the largest structure is of that size.
    slope : float
        Exponent of the power spectrum: power per mode ~ k^slope.
    seed : int
        Seed of the random numbers.
    style : str
        "cloud", or "filaments" for ridges and sheets.
    cover : float
        Fraction of the box with any emission.
    """

    amplitude: float
    radius: float
    slope: float
    seed: int
    style: str
    cover: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if self.style not in ("cloud", "filaments"):
            raise ValueError(f"style must be 'cloud' or 'filaments', got {self.style!r}")
        if self.radius <= 0:
            raise ValueError(f"radius must be above 0 arcsec, got {self.radius}")
        if not 0 < self.cover <= 1:
            raise ValueError(f"cover must be a fraction above 0 and at most 1, got {self.cover}")

    @property
    def samples(self) -> int:
        """Number of samples along a side of the table."""
        wanted = int(np.ceil(2 * self.radius / detector.PIXEL_SCALE / 2) * 2)
        return int(np.clip(wanted, 64, _LARGEST_TABLE))

    def brightness(self, east: np.ndarray, north: np.ndarray, fwhm: float) -> np.ndarray:
        """Surface brightness [MJy/sr] at East, North [arcsec], seen at a resolution ``fwhm`` [arcsec]."""
        scale = self.samples / (2 * self.radius)
        where = [(north + self.radius) * scale, (east + self.radius) * scale]
        return ndimage.map_coordinates(
            _emission_table(self, fwhm), where, order=3, mode="grid-wrap", prefilter=False
        )


@lru_cache(maxsize=4)
def _emission_table(emission: Emission, fwhm: float) -> np.ndarray:
    """Spline coefficients of the emission at a resolution ``fwhm`` [arcsec]."""
    field = _raw_emission(emission)
    sample = 2 * emission.radius / emission.samples
    sigma = max(fwhm / sample, _SMOOTH_SAMPLES) * _SIGMA_PER_FWHM
    k = _wave_numbers(emission.samples)
    spectrum = np.fft.rfft2(field) * np.exp(-2 * (np.pi * k * sigma) ** 2)
    smooth = np.fft.irfft2(spectrum, s=field.shape)
    return ndimage.spline_filter(smooth, order=3, mode="grid-wrap").astype(np.float32)


def _raw_emission(emission: Emission) -> np.ndarray:
    rng = np.random.default_rng(emission.seed)
    field = _random_field(emission.samples, emission.slope, rng)
    if emission.style == "filaments":
        # Ridges lie where a smooth field crosses zero; a second field makes them come and go.
        ridge = np.exp(-np.abs(field) / 0.35)
        field = ridge * np.exp(0.7 * _random_field(emission.samples, emission.slope, rng))
    floor = np.quantile(field, 1.0 - emission.cover)
    low = np.percentile(np.maximum(field, floor), 0.5)
    high = np.percentile(field[field >= floor], 99.5)
    return np.maximum(field - floor, 0.0) * (emission.amplitude / (high - low))


def _random_field(n: int, slope: float, rng: np.random.Generator) -> np.ndarray:
    k = _wave_numbers(n)
    k[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((n, n))) * k ** (slope / 2)
    field = np.fft.irfft2(spectrum, s=(n, n))
    return field / field.std()


def _wave_numbers(n: int) -> np.ndarray:
    return np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :])


@dataclass(frozen=True, eq=False)
class SkyImage:
    """A picture on the sky. Beyond its edges it goes on as its mirror image.

    Parameters
    ----------
    data : ndarray
        Surface brightness [MJy/sr].
    to_pixel : ndarray
        Coefficients (6, 2) of x and y [pixel] in 1, E, N, E^2, E N, N^2 [arcsec].
    """

    data: np.ndarray
    to_pixel: np.ndarray

    @cached_property
    def _coefficients(self) -> np.ndarray:
        return ndimage.spline_filter(self.data, order=3, mode="mirror")

    def brightness(self, east: np.ndarray, north: np.ndarray, fwhm: float) -> np.ndarray:
        """Surface brightness [MJy/sr] at East, North [arcsec]; the picture has its own resolution."""
        x, y = (_quadratic(east, north) @ self.to_pixel).T
        return ndimage.map_coordinates(self._coefficients, [y, x], order=3, mode="mirror", prefilter=False)


def _quadratic(east: np.ndarray, north: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(east), east, north, east**2, east * north, north**2], axis=-1)


@dataclass(frozen=True, eq=False)
class Scene:
    """A simulated field of sky. Every ``with_`` method returns a new scene and leaves the old one alone.

    Parameters
    ----------
    ra, dec : float
        Centre of the field [deg].

    Examples
    --------
    >>> empty = Scene(339.0, 33.96)
    >>> scene = empty.with_stars(n=20, seed=1).with_emission(amplitude=3.0)
    >>> len(scene.stars), len(empty.stars)
    (20, 0)
    """

    ra: float
    dec: float
    _catalogs: tuple[Table, ...] = ()
    _components: tuple[_Component, ...] = ()

    @property
    def stars(self) -> Table:
        """Stars of the scene: ra, dec [deg] and flux [mJy]. A copy, free to change."""
        return vstack([_star_table(*np.zeros((3, 0))), *self._catalogs])

    def with_stars(
        self,
        n: int = 100,
        *,
        radius: float = 100.0,
        flux: tuple[float, float] = (0.01, 1.0),
        slope: float = -1.5,
        seed: int = 0,
    ) -> Scene:
        """Add stars at random places.

        Parameters
        ----------
        n : int
            Number of stars.
        radius : float
            Radius of the disc that they fill evenly [arcsec].
        flux : tuple of float
            Faintest and brightest [mJy].
        slope : float
            Exponent of the number of stars per flux interval, dN/dF ~ F^slope.
        seed : int
            Seed of the random numbers.

        Returns
        -------
        Scene
            With the stars added.
        """
        if not 0 < flux[0] <= flux[1]:
            raise ValueError(f"flux must be 0 < min <= max mJy, got {flux}")
        rng = np.random.default_rng(seed)
        distance, angle = radius * np.sqrt(rng.random(n)), 2 * np.pi * rng.random(n)
        east, north = distance * np.sin(angle), distance * np.cos(angle)
        ra, dec = sphere.lon_lat(sphere.from_tangent(east, north, self.ra, self.dec))
        return self._add_stars(ra, dec, _power_law(rng.random(n), *flux, slope))

    def with_catalog(self, catalog: Table) -> Scene:
        """Add known stars.

        Parameters
        ----------
        catalog : astropy.table.Table
            Columns ``ra``, ``dec`` [deg] and ``flux_mjy`` [mJy]; others are not read.

        Returns
        -------
        Scene
            With the stars added.
        """
        missing = {"ra", "dec", "flux_mjy"} - set(catalog.colnames)
        if missing:
            raise ValueError(f"the catalog must have columns ra, dec and flux_mjy, {sorted(missing)} missing")
        return self._add_stars(*(np.array(catalog[name], float) for name in ("ra", "dec", "flux_mjy")))

    def with_emission(
        self,
        amplitude: float = 5.0,
        *,
        radius: float = 150.0,
        slope: float = -2.8,
        seed: int = 0,
        style: str = "cloud",
        cover: float = 1.0,
    ) -> Scene:
        """Add a random nebula.

        Parameters
        ----------
        amplitude : float
            Range from the 0.5 percentile of the brightness over the box (zero when ``cover`` leaves some
            of it empty) to the 99.5 percentile over what is covered, before the telescope blurs it [MJy/sr].
            The minimum is zero.
        radius : float
            Half size of the box [arcsec]. Beyond it the nebula repeats, without a seam. A box of more than
            450 arcsec in total is tabulated coarser than the detector.
        slope : float
            Exponent of the power spectrum: -2.8 is that of interstellar clouds, more negative is smoother.
        seed : int
            Seed of the random numbers.
        style : {"cloud", "filaments"}
            Billows, or ridges and sheets.
        cover : float
            Fraction of the box that the nebula covers, above 0 and at most 1. Think of a landscape flooded up
            to the (1 - ``cover``) quantile of its heights: what stands above the water shines by its height
            over it, and all the rest is empty. The brightness is nowhere below -1e-5 of ``amplitude``. But
            the telescope's blur carries light over the shores, the more the rougher they are: where
            ``cover=0.3`` leaves 70 % of the box empty, some 65 % of it stay below 1e-3 of ``amplitude`` at
            the resolution of F770W and 62 % at that of F2550W (a cloud of the default slope and radius;
            filaments and smaller boxes have more shore). With ``slope=-3.5`` it is 69 % in both.

        Returns
        -------
        Scene
            With the nebula added.
        """
        return self._add_component(Emission(amplitude, radius, slope, seed, style, cover))

    def with_image(
        self,
        image: np.ndarray | str | Path,
        wcs: object | None = None,
        *,
        scale: float = 1.0,
        pixel_scale: float | None = None,
    ) -> Scene:
        """Add a picture: a real mosaic, or any array.

        Parameters
        ----------
        image : ndarray or str or Path
            Surface brightness [MJy/sr], or a FITS file with an extension SCI (an ``_i2d``).
        wcs : object, optional
            WCS of the picture, with ``pixel_to_world_values``; read from the file when not given.
        scale : float
            Factor on the brightness.
        pixel_scale : float, optional
            When given, the picture's own place is forgotten: it lies on the centre of the scene, North up,
            with pixels of this size [arcsec].

        Returns
        -------
        Scene
            With the picture added. Gaps (NaN) are filled with the nearest value.
        """
        data, wcs = _read_image(image, wcs)
        if wcs is None and pixel_scale is None:
            raise ValueError("an array needs a wcs or a pixel_scale, got neither")
        to_pixel = (
            _fit_plane(wcs, data.shape, self.ra, self.dec)
            if pixel_scale is None
            else _centred_plane(data.shape, pixel_scale)
        )
        return self._add_component(SkyImage(scale * _fill_gaps(data), to_pixel))

    def brightness(self, east: np.ndarray, north: np.ndarray, fwhm: float) -> np.ndarray:
        """Add up the extended emission.

        Parameters
        ----------
        east, north : ndarray
            Positions in the tangent plane at the centre of the scene [arcsec].
        fwhm : float
            Resolution [arcsec].

        Returns
        -------
        ndarray
            Surface brightness [MJy/sr], stars left out.
        """
        total = np.zeros(np.shape(east))
        for component in self._components:
            total += component.brightness(east, north, fwhm)
        return total

    def _add_stars(self, ra: np.ndarray, dec: np.ndarray, flux: np.ndarray) -> Scene:
        table = _star_table(ra, dec, flux)
        return replace(self, _catalogs=(*self._catalogs, table))

    def _add_component(self, component: _Component) -> Scene:
        return replace(self, _components=(*self._components, component))


def _star_table(ra: np.ndarray, dec: np.ndarray, flux: np.ndarray) -> Table:
    return Table([ra, dec, flux], names=("ra", "dec", "flux"), units=("deg", "deg", "mJy"))


def _power_law(uniform: np.ndarray, low: float, high: float, slope: float) -> np.ndarray:
    """Turn uniform numbers into fluxes with dN/dF ~ F^slope."""
    if np.isclose(slope, -1.0):
        return low * (high / low) ** uniform
    power = slope + 1.0
    return (low**power + uniform * (high**power - low**power)) ** (1.0 / power)


def _read_image(image: np.ndarray | str | Path, wcs: object | None) -> tuple[np.ndarray, object | None]:
    if isinstance(image, np.ndarray):
        return image.astype(float), wcs
    from astropy.io import fits
    from astropy.wcs import WCS

    with fits.open(image) as hdus:
        return hdus["SCI"].data.astype(float), wcs or WCS(hdus["SCI"].header, hdus, fix=False)


def _fill_gaps(data: np.ndarray) -> np.ndarray:
    gaps = ~np.isfinite(data)
    if not gaps.any():
        return data.copy()
    nearest = ndimage.distance_transform_edt(gaps, return_distances=False, return_indices=True)
    return data[tuple(nearest)]


def _centred_plane(shape: tuple[int, int], pixel_scale: float) -> np.ndarray:
    plane = np.zeros((6, 2))
    plane[0] = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    plane[1, 0], plane[2, 1] = -1 / pixel_scale, 1 / pixel_scale
    return plane


def _fit_plane(wcs: object, shape: tuple[int, int], ra: float, dec: float) -> np.ndarray:
    """Describe a picture's WCS by second-order polynomials in the scene's tangent plane."""
    # Between two tangent planes a few arcmin apart the second order is exact to 1e-3 pixel.
    x, y = (v.ravel() for v in np.meshgrid(*(np.linspace(0, n - 1, 15) for n in shape[::-1])))
    sky = sphere.unit_vectors(*wcs.pixel_to_world_values(x, y))
    terms = _quadratic(*sphere.to_tangent(sky, ra, dec))
    size = np.abs(terms).max(axis=0)
    return np.linalg.lstsq(terms / size, np.stack([x, y], axis=-1), rcond=None)[0] / size[:, None]
