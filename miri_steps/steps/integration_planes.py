"""The pixels of integrations, taken from data models and written back."""

import numpy as np
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps.algorithms.integrations import Combined

__all__ = ["combined_flags", "empty_rate", "valid_samples", "variances", "write_back"]

_UNUSABLE = np.uint32(pixel["DO_NOT_USE"])
_JUMP = np.uint32(pixel["JUMP_DET"])
# A rate has these flags if any of its integrations has them (stcal's slope_fitter.c).
_PASSED_ON = np.uint32(pixel["JUMP_DET"] | pixel["SATURATED"] | pixel["PERSISTENCE"])
_ALL = ~np.uint32(0)


def valid_samples(cube: datamodels.CubeModel) -> np.ndarray:
    """
    Find the samples to combine.

    Parameters
    ----------
    cube : CubeModel
        The integrations.

    Returns
    -------
    ndarray of bool
        True where a sample is finite and not DO_NOT_USE, shape (n, ny, nx). Zero is data; but where
        ``ramp_fit`` found no group to fit it writes 0 with variances of 0, which is none if
        another integration of the pixel has a variance.
    """
    valid = np.isfinite(cube.data)
    if cube.dq is not None:
        valid &= (cube.dq & _UNUSABLE) == 0
    planes = [plane for plane in (cube.var_poisson, cube.var_rnoise) if plane is not None]
    if planes:
        known = np.logical_or.reduce([plane > 0 for plane in planes])
        valid &= known | (cube.data != 0) | ~known.any(axis=0)
    return valid


def combined_flags(
    cube: datamodels.CubeModel, valid: np.ndarray, rejected: np.ndarray, rate_flags: np.ndarray | None
) -> np.ndarray:
    """
    Combine the flags of integrations by the rules of ``ramp_fit`` of jwst 3.0.

    Parameters
    ----------
    cube : CubeModel
        The integrations.
    valid : ndarray of bool
        Samples that are combined, shape (n, ny, nx).
    rejected : ndarray of bool
        Pixels of which a sample was rejected, shape (ny, nx). A hit that was found now is what
        ``ramp_fit`` calls a jump.
    rate_flags : ndarray or None
        Flags of the rate that there was, shape (ny, nx).

    Returns
    -------
    ndarray
        What all valid integrations share (all integrations where none is valid); JUMP_DET, SATURATED and
        PERSISTENCE of any; JUMP_DET where one was rejected; those of the old rate; DO_NOT_USE
        exactly where no integration is valid.
    """
    shape = valid.shape[1:]
    dq = np.zeros(valid.shape, np.uint32) if cube.dq is None else cube.dq
    shared, always, ever = np.full(shape, _ALL), np.full(shape, _ALL), np.zeros(shape, np.uint32)
    for plane, usable in zip(dq, valid, strict=True):
        shared &= np.where(usable, plane, _ALL)
        always &= plane
        ever |= plane
    some = valid.any(axis=0)
    flags = np.where(some, shared, always) | (ever & _PASSED_ON)
    flags |= np.where(rejected, _JUMP, np.uint32(0))
    if rate_flags is not None:
        flags |= rate_flags
    return (flags & ~_UNUSABLE) | np.where(some, np.uint32(0), _UNUSABLE)


def empty_rate(cube: datamodels.CubeModel, name: str) -> datamodels.ImageModel:
    """
    Make a rate without pixels for integrations that have none.

    Parameters
    ----------
    cube : CubeModel
        The integrations.
    name : str
        File name of the rate.

    Returns
    -------
    ImageModel
        With the metadata of the integrations.
    """
    rate = datamodels.ImageModel(cube.data.shape[1:])
    rate.update(cube)
    if cube.meta.hasattr("wcs"):
        rate.meta.wcs = cube.meta.wcs
    rate.meta.filename = name
    return rate


def variances(cube: datamodels.CubeModel) -> dict[str, np.ndarray | None]:
    """
    Take the variances of integrations.

    Parameters
    ----------
    cube : CubeModel
        The integrations.

    Returns
    -------
    dict
        ``var_poisson``, ``var_rnoise`` and ``var_flat``, None for what is not there. Without the first two
        the square of ``err`` stands in for ``var_poisson``.
    """
    planes = {name: getattr(cube, name) for name in ("var_poisson", "var_rnoise", "var_flat")}
    if planes["var_poisson"] is None and planes["var_rnoise"] is None and cube.err is not None:
        planes["var_poisson"] = np.square(cube.err)
    return planes


def write_back(
    rate: datamodels.ImageModel, cube: datamodels.CubeModel, found: Combined, flags: np.ndarray
) -> None:
    """
    Write the average of integrations into a rate.

    Parameters
    ----------
    rate : ImageModel
        Changed in place.
    cube : CubeModel
        The integrations.
    found : Combined
        Their average.
    flags : ndarray
        Its flags.
    """
    unknown = np.full(flags.shape, np.nan, np.float32)
    planes = {name: getattr(found, name) for name in ("var_poisson", "var_rnoise", "var_flat")}
    known = [plane for plane in planes.values() if plane is not None]
    rate.data, rate.dq = found.data, flags
    rate.err = np.sqrt(sum(known)) if known else unknown
    for name, plane in planes.items():
        # What the old rate had and the integrations have not would be that of another average.
        if getattr(cube, name) is not None or getattr(rate, name) is not None:
            setattr(rate, name, plane if getattr(cube, name) is not None else unknown)
