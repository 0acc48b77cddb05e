"""Mosaics side by side, and below each what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure

from miri_steps import detector
from miri_steps.demo.measure import Comparison

_TITLES = {
    "stock": "stock calwebb_image3",
    "miri_steps": "with PixelSkyMatchStep",
    "miri_steps_subtracted": "... and its detector background subtracted",
}


def draw(compared: Sequence[Comparison], path: Path) -> Path:
    """
    Draw the picture of the demo.

    Parameters
    ----------
    compared : sequence of Comparison
        The runs.
    path : Path
        Picture to write.

    Returns
    -------
    Path
        The picture.
    """
    ny, nx = compared[0].image.shape
    width = 5.0
    figure = Figure(figsize=(width * len(compared) + 1.0, 2 * width * ny / nx + 1.6), layout="constrained")
    axes = figure.subplots(2, len(compared), sharex=True, sharey=True, squeeze=False)
    figure.suptitle("The same exposures, three ways: mosaics (top) and their errors (bottom)", fontsize=17)
    limit = _limit(compared)
    for (above, below), item in zip(axes.T, compared, strict=True):
        mosaic = _show(above, item.image - np.nanmedian(item.image), norm=_stretch(compared), cmap="cividis")
        error = _show(below, item.difference, vmin=-limit, vmax=limit, cmap="RdBu_r")
        above.set_title(_TITLES.get(item.result.run.name, item.result.run.title), fontsize=15)
        below.set_title(_numbers(item), fontsize=12)
        below.set_xlabel("x [arcsec]")
    for axis in axes[:, 0]:
        axis.set_ylabel("y [arcsec]")
    figure.colorbar(mosaic, ax=list(axes[0]), label="mosaic - its median [MJy/sr]", aspect=30, extend="both")
    figure.colorbar(error, ax=list(axes[1]), label="mosaic - truth [MJy/sr]", aspect=30, extend="both")
    figure.savefig(path, dpi=100)
    return path


def _show(axis: Axes, image: np.ndarray, **style):
    ny, nx = (n * detector.PIXEL_SCALE for n in image.shape)
    axis.set_facecolor("0.85")
    return axis.imshow(image, origin="lower", extent=(0, nx, 0, ny), interpolation="none", **style)


def _stretch(compared: Sequence[Comparison]) -> AsinhNorm:
    image = compared[0].image
    low, high = np.nanpercentile(image, [0.5, 99.7]) - np.nanmedian(image)
    return AsinhNorm(linear_width=(high - low) / 10, vmin=low, vmax=high)


def _limit(compared: Sequence[Comparison]) -> float:
    """Take one symmetric colour scale for all, wide enough for the worst."""
    return max(float(np.nanpercentile(np.abs(item.difference), 99)) for item in compared)


def _numbers(item: Comparison) -> str:
    return (
        f"sky levels {item.level_error:.4f}, tile steps {item.tile_step:.4f},\n"
        f"background {item.background_error:.4f} MJy/sr"
    )
