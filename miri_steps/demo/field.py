"""What the demo observes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from miri_steps import simulate

#: Name of the mosaics, and of the association.
PRODUCT = "demo"
FILTER = "F770W"
_RA, _DEC = 83.6, -69.1
# The detector's columns point North: the picture needs no compass.
_PA = -4.835


@dataclass(frozen=True)
class Field:
    """
    A mosaic of a nebula, each tile a visit with its own sky.

    Parameters
    ----------
    tiles : tuple of int
        Tiles along the detector's x and y.
    dithers : int
        Exposures per tile.
    tile_step : tuple of float
        Distance between tiles along x and y [arcsec].
    subarray : str
        Part of the detector that is read.
    sky : tuple of float
        Sky level of the tiles [MJy/sr], used in turn; those of the F770W visits to Stephan's Quintet.
    nebula : float
        Contrast of the nebula [MJy/sr].
    radius : float
        Size of the largest structures [arcsec].
    glow : float
        Height of a hill of light fixed to the detector [MJy/sr].
    stripes : float
        Standard deviation of the detector's columns [MJy/sr].
    noise : float
        Standard deviation of an empty pixel [MJy/sr].
    """

    tiles: tuple[int, int] = (2, 2)
    dithers: int = 4
    tile_step: tuple[float, float] = (64.0, 100.0)
    subarray: str = "FULL"
    sky: tuple[float, ...] = (7.20, 7.22, 6.02, 6.06)
    nebula: float = 20.0
    radius: float = 120.0
    glow: float = 0.15
    stripes: float = 0.02
    noise: float = 0.05

    def plan(self) -> list[simulate.Pointing]:
        """Point the telescope, tile by tile."""
        settings = {"tiles": self.tiles, "dithers": self.dithers, "tile_step": self.tile_step}
        return simulate.mosaic(_RA, _DEC, dither_step=4.0, pa=_PA, **settings)

    def write(self, folder: Path, *, true: bool = False) -> Path:
        """
        Write the exposures.

        Parameters
        ----------
        folder : Path
            Where to.
        true : bool
            Whether to leave out the sky, the detector's background and the noise.

        Returns
        -------
        Path
            The association.
        """
        plan = self.plan()
        tile = np.array([pointing.tile for pointing in plan])
        if true:
            # Without any noise the pipeline would have no weights to work with.
            settings = {"noise": 1e-6, "poisson": False}
        else:
            settings = {
                "sky": np.resize(self.sky, tile.max())[tile - 1],
                "pattern": simulate.dome(self.glow) + simulate.columns(self.stripes, seed=3),
                "noise": self.noise,
            }
        observation = simulate.observe(
            self._scene(), plan, FILTER, subarray=self.subarray, seed=1, **settings
        )
        return simulate.write(observation, folder, product=PRODUCT)

    def describe(self) -> str:
        """Say what is observed."""
        n = len(self.plan())
        return (
            f"simulating {n} exposures: {FILTER}, {self.tiles[0]}x{self.tiles[1]} tiles with "
            f"{self.dithers} dithers, a nebula of {self.nebula:g} MJy/sr, noise {self.noise:g}"
        )

    def _scene(self) -> simulate.Scene:
        stars = simulate.Scene(_RA, _DEC).with_stars(150, radius=self.radius, flux=(0.005, 0.5), seed=2)
        filaments = stars.with_emission(0.6 * self.nebula, radius=self.radius, seed=3, style="filaments")
        return filaments.with_emission(0.4 * self.nebula, radius=self.radius, seed=4)
