"""The pixels of integrations, taken from data models and written back."""

from dataclasses import dataclass, fields

import numpy as np
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps.algorithms.integrations import Combined

__all__ = [
    "Samples",
    "combined_flags",
    "empty_rate",
    "known_variances",
    "merged_flags",
    "take",
    "valid_samples",
    "variances",
    "write_back",
]

_UNUSABLE = np.uint32(pixel["DO_NOT_USE"])
_JUMP = np.uint32(pixel["JUMP_DET"])
# A rate has these flags if any of its integrations has them (stcal's slope_fitter.c).
_PASSED_ON = np.uint32(pixel["JUMP_DET"] | pixel["SATURATED"] | pixel["PERSISTENCE"])
_ALL = ~np.uint32(0)


_VARIANCES = ("var_poisson", "var_rnoise", "var_flat")


@dataclass(frozen=True)
class Samples:
    """
    Integrations as arrays, all of shape (n, ny, nx).

    Parameters
    ----------
    data : ndarray
        The samples.
    dq, err, var_poisson, var_rnoise, var_flat : ndarray or None
        Their flags, standard deviations and variances, as far as they are known. Standard deviations
        are left out where there are variances.
    """

    data: np.ndarray
    dq: np.ndarray | None
    var_poisson: np.ndarray | None
    var_rnoise: np.ndarray | None
    var_flat: np.ndarray | None
    err: np.ndarray | None = None


def take(cube: datamodels.CubeModel) -> Samples:
    """
    Take the arrays of integrations.

    Parameters
    ----------
    cube : CubeModel
        The integrations.

    Returns
    -------
    Samples
        Their arrays, as long as the model is open.
    """
    samples = Samples(*(getattr(cube, field.name) for field in fields(Samples)[:-1]))
    if samples.var_poisson is None and samples.var_rnoise is None:
        return Samples(*(getattr(cube, field.name) for field in fields(Samples)))
    return samples


def valid_samples(cube: Samples) -> np.ndarray:
    """
    Find the samples to combine.

    Parameters
    ----------
    cube : Samples
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
    zero = cube.data == 0
    some = zero.any(axis=0)
    if planes and some.any():
        known = np.logical_or.reduce([plane[:, some] > 0 for plane in planes])
        valid[:, some] &= known | ~zero[:, some] | ~known.any(axis=0)
    return valid


def combined_flags(cube: Samples, valid: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """
    Combine the flags of integrations by the rules of ``ramp_fit`` of jwst 3.0.

    Parameters
    ----------
    cube : Samples
        The integrations.
    valid : ndarray of bool
        Samples that are combined, shape (n, ny, nx).
    rejected : ndarray of bool
        Pixels of which a sample was rejected, shape (ny, nx). A hit that was found now is what
        ``ramp_fit`` calls a jump.

    Returns
    -------
    ndarray
        What all valid integrations share (all integrations where none is valid); JUMP_DET, SATURATED and
        PERSISTENCE of any; JUMP_DET where one was rejected; DO_NOT_USE exactly where no integration
        is valid.
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
    return (flags & ~_UNUSABLE) | np.where(some, np.uint32(0), _UNUSABLE)


def merged_flags(flags: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """
    Add the flags of the rate that there was.

    Parameters
    ----------
    flags : ndarray
        Those of its integrations, shape (ny, nx).
    before : ndarray or None
        Those of the rate.

    Returns
    -------
    ndarray
        All of them but DO_NOT_USE of the rate, for only the integrations know that.
    """
    return flags if before is None else flags | (before & ~_UNUSABLE)


def empty_rate(cube: datamodels.CubeModel, shape: tuple[int, int, int], name: str) -> datamodels.ImageModel:
    """
    Make a rate without pixels for integrations that have none.

    Parameters
    ----------
    cube : CubeModel
        The integrations.
    shape : tuple of int
        Their shape: their pixels are not read.
    name : str
        File name of the rate.

    Returns
    -------
    ImageModel
        With the metadata of the integrations.
    """
    rate = datamodels.ImageModel(shape[1:])
    rate.update(cube)
    if cube.meta.hasattr("wcs"):
        rate.meta.wcs = cube.meta.wcs
    rate.meta.filename = name
    return rate


def known_variances(cube: Samples) -> frozenset[str]:
    """
    Tell which variances integrations have.

    Parameters
    ----------
    cube : Samples
        The integrations.

    Returns
    -------
    frozenset of str
        Their names.
    """
    return frozenset(name for name in _VARIANCES if getattr(cube, name) is not None)


def variances(cube: Samples) -> dict[str, np.ndarray | None]:
    """
    Take the variances of integrations.

    Parameters
    ----------
    cube : Samples
        The integrations.

    Returns
    -------
    dict
        ``var_poisson``, ``var_rnoise`` and ``var_flat``, None for what is not there. Without the first two
        the square of ``err`` stands in for ``var_poisson``.
    """
    planes = {name: getattr(cube, name) for name in _VARIANCES}
    if planes["var_poisson"] is None and planes["var_rnoise"] is None and cube.err is not None:
        planes["var_poisson"] = np.square(cube.err)
    return planes


def write_back(
    rate: datamodels.ImageModel, found: Combined, flags: np.ndarray, known: frozenset[str]
) -> None:
    """
    Write the average of integrations into a rate.

    Parameters
    ----------
    rate : ImageModel
        Changed in place.
    found : Combined
        Their average.
    flags : ndarray
        Its flags.
    known : frozenset of str
        Variances that the integrations have.
    """
    unknown = np.full(flags.shape, np.nan, np.float32)
    planes = {name: getattr(found, name) for name in _VARIANCES}
    parts = [plane for plane in planes.values() if plane is not None]
    rate.data, rate.dq = found.data, flags
    rate.err = np.sqrt(sum(parts)) if parts else unknown
    for name, plane in planes.items():
        # What the old rate had and the integrations have not would be that of another average.
        if name in known or getattr(rate, name) is not None:
            setattr(rate, name, plane if name in known else unknown)
