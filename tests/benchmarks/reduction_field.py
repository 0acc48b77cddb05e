"""The field of reduction.py: tiles in two filters, with all that the Steps repair. Its size can be chosen."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy.table import Table

from miri_steps import detector, simulate
from miri_steps.simulate import sphere

CENTER, PA = (83.6, -69.1), 20.0
# Pointing errors of the tiles, East and North [arcsec], and scatter of the exposures within a tile.
TILE_ERRORS = np.array([[0.21, -0.24], [-0.29, 0.11], [0.12, 0.27]])
JITTER = 0.005
# Noise of an exposure, sky of the visits, and what is fixed to the detector [MJy/sr].
NOISE = {"F770W": 0.05, "F1800W": 0.3}
SKY = {"F770W": (7.20, 7.22, 6.02), "F1800W": (60.0, 60.8, 57.5)}
DOME, COLUMNS = {"F770W": 0.3, "F1800W": 3.0}, {"F770W": 0.03, "F1800W": 0.3}
# Faintest and brightest star in F770W [mJy], and exponent of the number per flux interval; they are on the
# tail of a black body.
FLUX, SLOPE = (3e-3, 1.0), -1.5
# Galaxies: peak [MJy/sr] and scale length [arcsec], and the pixel of the picture that they are drawn on.
PEAKS, LENGTHS, PIXEL = (0.5, 5.0), (1.0, 3.0), 0.25


@dataclass(frozen=True)
class Field:
    """
    A row of tiles; each is a visit with its own guide star, sky and pointing error, in all filters.

    Parameters
    ----------
    subarray : str
        Part of the detector that is read.
    tiles, dithers : int
        Tiles, at most 3, and exposures of each.
    tile_step, dither_step : float
        Distance between tiles and, typically, between neighbouring dithers [arcsec].
    stars, galaxies : int
        Sources within ``radius``.
    radius : float
        Radius of the disc that holds the sources [arcsec].
    nints : int
        Integrations per exposure.
    cosmic_rays : float
        Fraction of the samples that a cosmic ray hit without a flag.
    seed : int
        Seed of everything.
    """

    subarray: str = "FULL"
    tiles: int = 3
    dithers: int = 6
    tile_step: float = 60.0
    dither_step: float = 6.0
    stars: int = 600
    galaxies: int = 8
    radius: float = 120.0
    nints: int = 4
    cosmic_rays: float = 0.05
    seed: int = 1

    def observe(self, band: str, *, true: bool = False) -> simulate.Observation:
        """
        Plan the field in a filter.

        Parameters
        ----------
        band : str
            "F770W" or "F1800W".
        true : bool
            Whether to leave out the sky, the detector's background, its defects and the noise, and to look
            where the telescope did and know it.
        """
        plan, errors = self._plan(band)
        if true:
            looks = [sphere.offset(p.ra, p.dec, *e) for p, e in zip(plan, errors, strict=True)]
            plan = [replace(p, ra=ra, dec=dec) for p, (ra, dec) in zip(plan, looks, strict=True)]
            # Without any noise the pipeline would have no weights to work with.
            given = {"noise": 1e-6, "poisson": False, "bad_pixels": 0.0}
        else:
            tile = np.array([pointing.tile for pointing in plan])
            given = {
                "sky": np.array(SKY[band])[tile - 1],
                "pattern": simulate.dome(DOME[band]) + simulate.columns(COLUMNS[band], seed=3),
                "noise": NOISE[band],
                "pointing_error": errors,
                "hot_pixels": 0.005,
            }
        return simulate.observe(self.scene(band), plan, band, subarray=self.subarray, seed=self.seed, **given)

    def write(self, band: str, folder: Path) -> simulate.Observation:
        """Write the rates of a filter, with the truth under the name <folder>_<filter>."""
        observation = self.observe(band)
        simulate.write_rates(observation, folder, f"{folder.name}_{band.lower()}", **self.readout())
        return observation

    def readout(self) -> dict:
        """Give what `simulate.integrate` was given."""
        return {"nints": self.nints, "cosmic_rays": self.cosmic_rays}

    def scene(self, band: str) -> simulate.Scene:
        """Scatter stars and galaxies; the light of all falls with the square of the wavelength."""
        dimmer = (detector.BANDS["F770W"].wavelength / detector.BANDS[band].wavelength) ** 2
        stars = simulate.Scene(*CENTER).with_stars(
            self.stars, radius=self.radius, flux=FLUX, slope=SLOPE, seed=self.seed
        )
        table = stars.stars
        catalog = Table([table["ra"], table["dec"], dimmer * table["flux"]], names=("ra", "dec", "flux_mjy"))
        return (
            simulate.Scene(*CENTER)
            .with_catalog(catalog)
            .with_image(dimmer * self._galaxies(), pixel_scale=PIXEL)
        )

    def _plan(self, band: str) -> tuple[list[simulate.Pointing], np.ndarray]:
        plan = simulate.mosaic(
            *CENTER,
            tiles=(self.tiles, 1),
            dithers=self.dithers,
            tile_step=self.tile_step,
            dither_step=self.dither_step,
            pa=PA,
        )
        tile = np.array([pointing.tile for pointing in plan])
        number = list(NOISE).index(band)
        rng = np.random.default_rng([self.seed, number])
        errors = TILE_ERRORS[tile - 1] + JITTER * rng.standard_normal((len(plan), 2))
        # The filters follow one another in a visit.
        later = number * self.dithers * 180.0 / 86400.0
        return [
            replace(p, activity=f"{2 * number + 1:02d}", start_time=p.start_time + later) for p in plan
        ], errors

    def _galaxies(self) -> np.ndarray:
        """Draw exponential discs."""
        rng = np.random.default_rng([self.seed, 9])
        axis = np.arange(-1.2 * self.radius, 1.2 * self.radius, PIXEL)
        image = np.zeros((len(axis), len(axis)))
        for _ in range(self.galaxies):
            distance, angle, tilt = self.radius * np.sqrt(rng.random()), *(2 * np.pi * rng.random(2))
            peak, length = (low * (high / low) ** rng.random() for low, high in (PEAKS, LENGTHS))
            x, y = axis[None] - distance * np.cos(angle), axis[:, None] - distance * np.sin(angle)
            major, minor = x * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - x * np.sin(tilt)
            image += peak * np.exp(-np.sqrt(major**2 + (minor / 0.5) ** 2 + 0.25) / length)
        return image


def small(**given: object) -> Field:
    """Give a field of 28 arcsec per exposure, for tests."""
    settings = {
        "subarray": "SUB256",
        "dithers": 3,
        "tile_step": 18.0,
        "dither_step": 3.0,
        # With 150, some 20 in an exposure, tweakreg did not match the exposures with one another.
        "stars": 450,
        "galaxies": 2,
        "radius": 40.0,
    }
    return Field(**(settings | given))


def overrides(folder: Path) -> dict[str, dict]:
    """Set CRDS up to answer offline, and give what calwebb_image2 needs."""
    os.environ |= simulate.offline_crds(folder)
    return simulate.calibration_files(folder)
