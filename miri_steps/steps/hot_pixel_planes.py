"""What `MedianHotPixelStep` reads from an exposure and writes back."""

from dataclasses import dataclass

import numpy as np
from stdatamodels.jwst.datamodels import ImageModel, JwstDataModel
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps import exposures
from miri_steps.algorithms import pixel_repair
from miri_steps.steps.hot_pixel_members import Group

__all__ = ["Planes", "flag", "map_model", "repair"]

_DO_NOT_USE, _HOT, _DEAD, _ESTIMATED, _SATURATED, _REFERENCE, _NON_SCIENCE, _OTHER = (
    np.uint32(pixel[name])
    for name in (
        "DO_NOT_USE",
        "HOT",
        "DEAD",
        "FLUX_ESTIMATED",
        "SATURATED",
        "REFERENCE_PIXEL",
        "NON_SCIENCE",
        "OTHER_BAD_PIXEL",
    )
)
_VARIANCES = ("var_poisson", "var_rnoise", "var_flat")


@dataclass(frozen=True)
class Planes:
    """
    An exposure as arrays, all of shape (ny, nx).

    Parameters
    ----------
    data, err : ndarray
        Image, NaN where there is nothing to judge, and its standard deviation.
    usable : ndarray
        True where a pixel is finite, not DO_NOT_USE, and in a field that sees the sky.
    hole : ndarray
        True on unusable pixels inside the imager field that may be filled.
    """

    data: np.ndarray
    err: np.ndarray
    usable: np.ndarray
    hole: np.ndarray

    @classmethod
    def of(cls, model: JwstDataModel) -> "Planes":
        """
        Read an exposure.

        Parameters
        ----------
        model : ImageModel
            The exposure.

        Returns
        -------
        Planes
            Its arrays.

        Raises
        ------
        ValueError
            If it is no image, or no pixel is usable.
        """
        if model.data.ndim != 2:
            raise ValueError(
                f"{model.meta.filename} must be an image of two dimensions, got shape {model.data.shape}"
            )
        dq = _flags(model)
        science = (dq & _NON_SCIENCE) == 0
        valid = np.isfinite(model.data) & ((dq & _DO_NOT_USE) == 0)
        usable = valid & science & exposures.region_pixels(model, ["imager", "lyot", "4qpm"])
        if not usable.any():
            raise ValueError(
                f"{model.meta.filename} must have at least 1 pixel that is finite, not DO_NOT_USE and in a "
                f"field that sees the sky, got 0 of {usable.size}"
            )
        imager = science & exposures.region_pixels(model, ["imager"])
        # Where a star saturates there is light, not background; reference pixels see neither.
        hole = pixel_repair.holes(~valid, imager) & ((dq & (_SATURATED | _REFERENCE)) == 0)
        data = np.where(usable, model.data, np.float32(np.nan)).astype(np.float32)
        return cls(data, _plane(model, "err"), usable, hole)


def _flags(model):
    """Read the flags, which may be absent."""
    return np.zeros(model.data.shape, np.uint32) if model.dq is None else model.dq


def _plane(model, name):
    """Read a plane that may be absent."""
    plane = getattr(model, name) if _has(model, name) else np.zeros(model.data.shape)
    return np.asarray(plane, np.float32)


def flag(model: JwstDataModel, hot: np.ndarray, dead: np.ndarray) -> None:
    """
    Flag bad pixels and leave the data as they are.

    Parameters
    ----------
    model : ImageModel
        Changed in place.
    hot, dead : ndarray
        True on the pixels, shape (ny, nx).
    """
    model.dq = _mark(_flags(model), hot, dead) | _DO_NOT_USE * (hot | dead).astype(np.uint32)


def repair(
    model: JwstDataModel,
    hot: np.ndarray,
    dead: np.ndarray,
    hole: np.ndarray,
    good: np.ndarray,
    *,
    window: int,
    min_good: int,
) -> np.ndarray:
    """
    Replace bad pixels by the median of the good ones around them.

    Parameters
    ----------
    model : ImageModel
        Changed in place.
    hot, dead, hole : ndarray
        True on the pixels to replace, shape (ny, nx).
    good : ndarray
        True on the pixels that may be used.
    window : int
        Side of the square around each pixel, odd.
    min_good : int
        Good neighbours that a pixel must have.

    Returns
    -------
    ndarray
        True on the pixels that were replaced, shape (ny, nx).
    """
    names = [name for name in _VARIANCES if _has(model, name)]
    found = pixel_repair.fill(
        np.asarray(model.data, np.float32),
        _plane(model, "err"),
        [_plane(model, name) for name in names],
        hot | dead | hole,
        good,
        window=window,
        min_good=min_good,
    )
    filled = np.zeros(model.data.shape, bool)
    filled[found.y, found.x] = True
    model.data[filled] = found.data
    if _has(model, "err"):
        model.err[filled] = found.err
    for name, variance in zip(names, found.variances, strict=True):
        getattr(model, name)[filled] = variance
    before = _flags(model)
    unknown = hole & ((before & ~_DO_NOT_USE) == 0)
    dq = _mark(before, hot, dead) | _OTHER * unknown.astype(np.uint32)
    model.dq = np.where(filled, (dq | _ESTIMATED) & ~_DO_NOT_USE, before)
    return filled


def _has(model, name):
    plane = getattr(model, name, None)
    return plane is not None and plane.shape == model.data.shape


def _mark(dq, hot, dead):
    """Add the cause."""
    return dq | _HOT * hot.astype(np.uint32) | _DEAD * dead.astype(np.uint32)


def map_model(group: Group) -> ImageModel:
    """
    Draw a map of the bad pixels of a set of exposures.

    Parameters
    ----------
    group : Group
        Exposures of the same pixels.

    Returns
    -------
    ImageModel
        ``data`` counts the exposures in which a pixel stands out, ``dq`` says HOT or DEAD where these
        are enough.
    """
    model = ImageModel(group.count.astype(np.float32))
    model.dq = _mark(np.zeros(model.data.shape, np.uint32), group.is_hot, group.is_dead)
    first = group.members[0]
    for key, value in first.meta.items():
        if key.startswith(("meta.instrument.detector", "meta.subarray")):
            model[key] = value
    model.meta.telescope, model.meta.instrument.name = "JWST", "MIRI"
    return model
