"""The image of a star: diffraction at JWST's segmented mirror.

`psf` computes it from the shape of the pupil alone: 18 hexagons, the gaps between them and the three struts
of the secondary mirror. It has the six bright spikes and the faint pair beside them, and rings that repeat
nothing of a Gaussian's kindness to the faint star next door. It knows no mirror errors, no detector glow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from miri_steps import detector

# Segments: flat to flat, and what is left free between two of them [m].
_FLAT_TO_FLAT, _GAP = 1.32, 0.007
# Struts of the secondary mirror: width [m] and direction [deg] from the pupil's top.
_STRUT_WIDTH, _STRUT_ANGLES = 0.12, (0.0, 150.0, 210.0)
# The telescope's V3 axis lies 4.8 deg clockwise from the detector's columns.
_PUPIL_TURN = 4.835
_PUPIL_DIAMETER = 6.8
_PUPIL_SAMPLES = 512
_WAVELENGTHS_PER_BAND = 5


@dataclass(frozen=True, eq=False)
class Psf:
    """A sampled point source.

    Parameters
    ----------
    data : ndarray
        Image of the source, finer than the detector, its centre on the middle of the array; its sum is the
        fraction of the light that it holds.
    oversample : int
        Samples per detector pixel.
    """

    data: np.ndarray
    oversample: int

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if self.data.ndim != 2 or self.oversample < 1:
            raise ValueError(
                f"a PSF must be a 2-D array with oversample of at least 1, got shape {self.data.shape} "
                f"and oversample {self.oversample}"
            )

    @classmethod
    def from_file(cls, path: str | Path, oversample: int | None = None) -> Psf:
        """Read a PSF from the first image of a FITS file.

        Parameters
        ----------
        path : str or Path
            FITS file.
        oversample : int, optional
            Samples per detector pixel; taken from the keyword OVERSAMP when not given.

        Returns
        -------
        Psf
            The image as it is in the file, not normalised.
        """
        from astropy.io import fits

        with fits.open(path) as hdus:
            hdu = next(hdu for hdu in hdus if hdu.data is not None)
            oversample = oversample or hdu.header.get("OVERSAMP")
            if oversample is None:
                raise ValueError(f"oversample must be given, {path} has no keyword OVERSAMP")
            return cls(hdu.data.astype(float), int(oversample))

    @property
    def half_size(self) -> int:
        """Largest stamp: pixels on each side of the central one."""
        return (min(self.data.shape) // self.oversample - 3) // 2

    @property
    def fwhm(self) -> float:
        """Full width at half maximum [pixel], from the area above half maximum."""
        fine = ndimage.zoom(self._core, 4, order=3)
        return 2.0 * np.sqrt((fine > 0.5 * fine.max()).sum() / np.pi) / (4 * self.oversample)

    @property
    def _core(self) -> np.ndarray:
        y, x = (n // 2 for n in self.data.shape)
        half = 12 * self.oversample
        return self.data[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]

    @cached_property
    def _coefficients(self) -> np.ndarray:
        """Spline coefficients of the light that falls on a pixel centred anywhere."""
        # An even number of samples has no middle: the two half samples at the ends centre it.
        kernel = np.ones(self.oversample + (self.oversample + 1) % 2)
        if self.oversample % 2 == 0:
            kernel[[0, -1]] = 0.5
        pixel = self.data.astype(float)
        for axis in (0, 1):
            pixel = ndimage.convolve1d(pixel, kernel, axis=axis, mode="constant")
        return ndimage.spline_filter(pixel, order=3, mode="mirror")

    @cached_property
    def _profile(self) -> np.ndarray:
        """Light per pixel, the mean at each whole-pixel radius, never rising outwards."""
        y, x = np.indices(self.data.shape)
        centre = [(n - 1) / 2 for n in self.data.shape]
        radius = np.hypot(y - centre[0], x - centre[1]) / self.oversample
        bins = radius.astype(int).ravel()
        mean = np.bincount(bins, self.data.ravel()) / np.bincount(bins) * self.oversample**2
        return np.maximum.accumulate(mean[::-1])[::-1]

    def radius(self, threshold: float) -> int:
        """Half size of the stamp [pixel] beyond which a pixel gets less than ``threshold`` of the light."""
        return int(np.clip((self._profile > threshold).sum(), 8, self.half_size))

    def stamp(self, dx: float, dy: float, half_size: int) -> np.ndarray:
        """Put the source on pixels.

        Parameters
        ----------
        dx, dy : float
            Position of the source from the centre of the stamp's central pixel, -0.5..0.5 [pixel].
        half_size : int
            Pixels on each side of the central one.

        Returns
        -------
        ndarray
            Light per pixel, shape (2 half_size + 1, 2 half_size + 1).
        """
        # On a regular grid the fraction of a sample is the same for every pixel: four strided slices per
        # axis replace a general interpolation.
        half_size = min(half_size, self.half_size)
        out = self._coefficients
        for axis, shift in ((0, dy), (1, dx)):
            first = (self.data.shape[axis] - 1) / 2 - (half_size + shift) * self.oversample
            out = _strided(out, first, self.oversample, 2 * half_size + 1, axis)
        return out


def _strided(coefficients: np.ndarray, first: float, step: int, n: int, axis: int) -> np.ndarray:
    start = int(np.floor(first))
    t = first - start
    weights = (
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    )
    parts = np.moveaxis(coefficients, axis, 0)
    total = sum(
        w * parts[start - 1 + i : start - 1 + i + step * (n - 1) + 1 : step] for i, w in enumerate(weights)
    )
    return np.moveaxis(total, 0, axis)


@lru_cache(maxsize=1)
def _pupil(n: int = _PUPIL_SAMPLES, supersample: int = 3) -> np.ndarray:
    """Transmission of the telescope's pupil on n x n samples, grey where an edge crosses a sample."""
    fine = n * supersample
    axis = ((np.arange(fine) + 0.5) / fine - 0.5) * _PUPIL_DIAMETER
    turn = np.radians(_PUPIL_TURN)
    u = axis[None, :] * np.cos(turn) - axis[:, None] * np.sin(turn)
    v = axis[None, :] * np.sin(turn) + axis[:, None] * np.cos(turn)
    light = np.zeros((fine, fine), bool)
    for u0, v0 in _segment_centres():
        light |= _hexagon(u - u0, v - v0)
    for angle in np.radians(_STRUT_ANGLES):
        along = u * np.sin(angle) + v * np.cos(angle)
        across = u * np.cos(angle) - v * np.sin(angle)
        light &= ~((np.abs(across) < _STRUT_WIDTH / 2) & (along > 0))
    return light.reshape(n, supersample, n, supersample).mean(axis=(1, 3))


def _segment_centres() -> list[tuple[float, float]]:
    pitch = _FLAT_TO_FLAT + _GAP
    rings = [(pitch, 30), (2 * pitch, 30), (np.sqrt(3) * pitch, 0)]
    angles = [(r, np.radians(start + 60 * i)) for r, start in rings for i in range(6)]
    return [(r * np.cos(a), r * np.sin(a)) for r, a in angles]


def _hexagon(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    inside = np.ones(u.shape, bool)
    for angle in np.radians([30, 90, 150]):
        inside &= np.abs(u * np.cos(angle) + v * np.sin(angle)) <= _FLAT_TO_FLAT / 2
    return inside


def _diffract(pupil: np.ndarray, wavelength: float, step: float, n: int) -> np.ndarray:
    """Intensity on n x n samples of ``step`` radian; a full plane would sum to one."""
    sample = _PUPIL_DIAMETER / pupil.shape[0]
    position = (np.arange(pupil.shape[0]) - (pupil.shape[0] - 1) / 2) * sample
    angle = (np.arange(n) - (n - 1) / 2) * step
    wave = np.exp(-2j * np.pi / wavelength * np.outer(angle, position))
    field = wave @ pupil @ wave.T
    # Parseval: the whole plane holds sum(pupil^2) (wavelength / (sample * step))^2.
    return np.abs(field) ** 2 * (sample * step / wavelength) ** 2 / (pupil**2).sum()


@lru_cache(maxsize=16)
def psf(filter: str, oversample: int = 5, half_size: int = 128) -> Psf:
    """Compute the image of a star through a filter.

    The pupil is Fourier transformed at five wavelengths over the band. The result is cached.

    Parameters
    ----------
    filter : str
        Name of the filter.
    oversample : int
        Samples per detector pixel, at least 3.
    half_size : int
        Pixels on each side of the central one.

    Returns
    -------
    Psf
        Samples of the intensity, not yet averaged over a pixel; the sum is the fraction of light inside.

    Raises
    ------
    ValueError
        If the filter is not one of the imager's.
    """
    if filter not in detector.BANDS:
        raise ValueError(f"filter must be one of {list(detector.BANDS)}, got {filter!r}")
    band = detector.BANDS[filter]
    fractions = (np.arange(_WAVELENGTHS_PER_BAND) + 0.5) / _WAVELENGTHS_PER_BAND - 0.5
    step = np.radians(detector.PIXEL_SCALE / 3600.0) / oversample
    n = 2 * (half_size + 3) * oversample + oversample // 2 * 2 + 1
    pupil = _pupil()
    images = [_diffract(pupil, (band.wavelength + f * band.width) * 1e-6, step, n) for f in fractions]
    return Psf(np.mean(images, axis=0), oversample)
