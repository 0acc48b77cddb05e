"""How `SuperBackgroundStep` takes the background from an exposure."""

from dataclasses import dataclass

import numpy as np
from stdatamodels.jwst.datamodels import JwstDataModel
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps.algorithms import smooth_fill

__all__ = ["Model", "subtract", "whole"]

_FLAGS = np.uint32(pixel["DO_NOT_USE"]) | np.uint32(pixel["OTHER_BAD_PIXEL"])
# The variances that noise of pixels is part of.
_NOISE = ("var_poisson", "var_rnoise")


@dataclass(frozen=True)
class Model:
    """
    The background of one exposure, all arrays of shape (ny, nx).

    Parameters
    ----------
    value, variance : ndarray
        Background and its variance [unit of the data, and squared]; NaN where it is not known.
    few : ndarray
        True where it has too few samples.
    """

    value: np.ndarray
    variance: np.ndarray
    few: np.ndarray

    def followed(self, factor: float, level: float) -> "Model":
        """Find the background of an exposure that follows this one."""
        return Model(factor * self.value + level, factor**2 * self.variance, self.few)


def whole(
    value: np.ndarray,
    variance: np.ndarray,
    count: np.ndarray,
    needed: np.ndarray,
    *,
    min_samples: int,
    smooth: bool,
) -> Model:
    """
    Complete a background where it has too few samples.

    Parameters
    ----------
    value, variance : ndarray
        Background and its variance, shape (ny, nx), NaN where there is no sample.
    count : ndarray
        Number of samples.
    needed : ndarray
        True on the pixels from which it will be subtracted.
    min_samples : int
        Samples it needs.
    smooth : bool
        Whether to put the smooth value of the surroundings there, or nothing.

    Returns
    -------
    Model
        The background. The variance of a smooth value is the squared scatter of its surroundings.
    """
    few = count < min_samples
    if not smooth or few.all() or not (few & needed).any():
        return Model(np.where(few, np.nan, value), np.where(few, np.nan, variance), few)
    filled = smooth_fill.fill(value, ~few)
    return Model(filled.value, np.where(few, filled.scatter**2, variance), few)


def subtract(model: JwstDataModel, background: Model, *, keep: float) -> int:
    """
    Subtract a background from an exposure.

    Parameters
    ----------
    model : ImageModel
        The exposure, changed in place: data, err and variances. A pixel without a background is
        flagged DO_NOT_USE.
    background : Model
        Its background.
    keep : float
        Level that stays in the data [unit of the data].

    Returns
    -------
    int
        Number of pixels flagged.
    """
    known = np.isfinite(background.value)
    lost = ~known & np.isfinite(model.data)
    value = np.where(known, background.value - keep, np.where(lost, np.nan, 0))
    added = np.where(known, np.nan_to_num(background.variance), np.where(lost, np.nan, 0))
    shares = _shares(model)
    _replace(model, "data", model.data - value)
    _replace(model, "err", np.sqrt(model.err.astype(float) ** 2 + added))
    for name in (*_NOISE, "var_flat"):
        plane = getattr(model, name)
        if plane is not None:
            # 0 times NaN is NaN: a pixel without data has no variance either.
            _replace(model, name, plane + shares.get(name, 0.0) * added)
    if lost.any():
        flags = np.zeros(lost.shape, np.uint32) if model.dq is None else model.dq
        model.dq = np.where(lost, flags | _FLAGS, flags).astype(np.uint32)
    return int(lost.sum())


def _replace(model, name, values):
    """Give a plane of an exposure new values, its type stays."""
    plane = getattr(model, name)
    if plane.flags.writeable:
        # A plane that is put into a model is held against schemas, which are read anew each time.
        plane[...] = values
    else:
        setattr(model, name, values.astype(plane.dtype))


def _shares(model):
    """Split the noise of an empty pixel among the variances, as the exposure does itself."""
    planes = {name: getattr(model, name) for name in _NOISE}
    typical = {
        name: float(np.nanmedian(plane)) if plane is not None and np.isfinite(plane).any() else 0.0
        for name, plane in planes.items()
    }
    total = sum(typical.values())
    return {name: value / total for name, value in typical.items() if value > 0} if total > 0 else {}
