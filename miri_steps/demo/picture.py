"""Mosaics side by side, and below each what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from miri_steps import detector
from miri_steps.demo.measure import Comparison

# Of one panel [inch].
_WIDTH = 5.0
_TITLES = {
    "stock": "stock calwebb_image3",
    "miri_steps": "with PixelSkyMatchStep",
    "miri_steps_subtracted": "+ its detector background subtracted",
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
    size = (_WIDTH * len(compared) + 1.2, 2 * _WIDTH * ny / nx + 1.0)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(2, len(compared), sharex=True, sharey=True, squeeze=False)
    figure.suptitle("The same exposures, processed in different ways", fontsize=17)
    low, high = np.nanpercentile(_centred(compared[0].image), [0.5, 99.0])
    limit = _limit(compared)
    for (above, below), item in zip(axes.T, compared, strict=True):
        mosaic = _show(above, _centred(item.image), vmin=low, vmax=high, cmap="inferno")
        error = _show(below, item.difference, vmin=-limit, vmax=limit, cmap="RdBu_r")
        above.set_title(_TITLES.get(item.result.run.name, item.result.run.title), fontsize=15)
        below.set_title(_numbers(item), fontsize=12)
        below.set_xlabel("x [arcsec]")
    for axis in axes[:, 0]:
        axis.set_ylabel("y [arcsec]")
    style = {"aspect": 30, "extend": "both", "pad": 0.01}
    figure.colorbar(mosaic, ax=list(axes[0]), **style).set_label("mosaic [MJy/sr above its median]", size=13)
    figure.colorbar(error, ax=list(axes[1]), **style).set_label("mosaic - truth [MJy/sr]", size=13)
    figure.savefig(path, dpi=100)
    return path


def _show(axis: Axes, image: np.ndarray, **style):
    ny, nx = (n * detector.PIXEL_SCALE for n in image.shape)
    axis.set_facecolor("0.85")
    return axis.imshow(image, origin="lower", extent=(0, nx, 0, ny), interpolation="none", **style)


def _centred(image: np.ndarray) -> np.ndarray:
    return image - np.nanmedian(image)


def _limit(compared: Sequence[Comparison]) -> float:
    """Take one symmetric colour scale for all, wide enough for the worst."""
    return max(float(np.nanpercentile(np.abs(item.difference), 99)) for item in compared)


def _numbers(item: Comparison) -> str:
    return (
        f"mosaic - truth: step between tiles {item.tile_step:.4f} MJy/sr\n"
        f"sky level error {item.level_error:.4f}, background error {item.background_error:.4f}"
    )
