"""Which ``_rateints`` belongs to which ``_rate``: found, and checked before any pixel is combined."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy.io import fits
from jwst.datamodels import ModelLibrary
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels import JwstDataModel, read_metadata
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps import exposures
from miri_steps.steps.base import check_file, library_folder, remove_suffix

__all__ = [
    "Pair",
    "Product",
    "check_pair",
    "check_samples",
    "pair_up",
    "product_of",
    "products_of",
    "read_product",
]

# What both products of an exposure say alike, as far as both say it.
_IDENTITY = (
    *(
        f"meta.observation.{name}"
        for name in (
            *("obs_id", "visit_id", "program_number", "observation_number", "visit_number", "visit_group"),
            *("sequence_id", "activity_id", "exposure_number"),
        )
    ),
    *("meta.instrument.detector", "meta.instrument.filter"),
    *("meta.subarray.name", "meta.subarray.xstart", "meta.subarray.ystart"),
    *("meta.exposure.segment_number", "meta.exposure.ngroups", "meta.bunit_data"),
)

# What else is read of the metadata; the rest, logs above all, would pile up over a thousand exposures.
_USED = (*_IDENTITY, "meta.exposure.", "meta.cal_step.")


@dataclass(frozen=True)
class Product:
    """
    A ``_rate`` or ``_rateints`` as far as it is known before its pixels are read.

    Parameters
    ----------
    path : Path
        Its file; for an open model its file name alone.
    meta : dict
        Its metadata as far as they are used, keyed ``meta.a.b``.
    shape : tuple of int
        Shape of its data; two dimensions are a rate, three are integrations.
    model : JwstDataModel, optional
        The open model, if that was given.
    """

    path: Path
    meta: dict
    shape: tuple[int, ...]
    model: JwstDataModel | None = None

    @property
    def name(self) -> str:
        """File name."""
        return self.path.name

    @property
    def base(self) -> str:
        """Its name without suffix."""
        return remove_suffix(self.path.stem)[0]

    @property
    def suffix(self) -> str:
        """Its suffix, without the separator."""
        return self.path.stem.removeprefix(self.base)[1:]

    @property
    def rate_name(self) -> str:
        """File name of the rate that belongs to integrations."""
        return f"{self.base}_{'cal' if self.suffix == 'calints' else 'rate'}.fits"

    @property
    def ints_name(self) -> str:
        """File name of the integrations; inside ``calwebb_detector1`` they still have that of the ramp."""
        return self.name if self.suffix.endswith("ints") else f"{self.base}_rateints.fits"

    @property
    def has_integrations(self) -> bool:
        """Whether it is a ``_rateints``."""
        return len(self.shape) == 3

    @property
    def done(self) -> bool:
        """Whether it was made by this Step."""
        return self.meta.get("meta.cal_step.rate_from_rateints") == "COMPLETE"

    @property
    def integrations(self) -> int | None:
        """Number of integrations it says it has, in this segment of the exposure."""
        first, last = (self.meta.get(f"meta.exposure.integration_{end}") for end in ("start", "end"))
        return self.meta.get("meta.exposure.nints") if None in (first, last) else last - first + 1


@dataclass(frozen=True)
class Pair:
    """
    An exposure to be made of its integrations.

    Parameters
    ----------
    index : int
        Place of the exposure in what was given.
    rate, rateints : Product or None
        A rate alone is left as it is; integrations alone become a new rate.
    """

    index: int
    rate: Product | None
    rateints: Product | None

    @property
    def exposure(self) -> Product:
        """The product that stands for the exposure."""
        return self.rate or self.rateints

    @property
    def single(self) -> bool:
        """Whether there is nothing to combine."""
        if self.rateints is None:
            return self.rate.integrations == 1
        return self.rateints.shape[0] == 1

    @property
    def combines(self) -> bool:
        """Whether a rate is to be made; others stay as they are."""
        return self.rate is None or not (self.rate.done or self.single)


def read_product(path: Path) -> Product:
    """
    Look at the headers of a file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    Product
        What it is.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file is missing, truncated, or neither a rate nor integrations.
    """
    check_file(path)
    if path.suffix.lower() != ".fits":
        with datamodels.open(path) as model:
            meta, shape = model.to_flat_dict(include_arrays=False), model.data.shape
        return _product(path, meta, shape)
    with fits.open(path) as hdus:
        if "SCI" not in hdus or "ASDF" not in hdus:
            found = ", ".join(hdu.name for hdu in hdus)
            raise ValueError(f"{path} must be a file of jwst with SCI and ASDF extensions, but has {found}")
        shape = hdus["SCI"].shape
    return _product(path, read_metadata(path), shape)


def product_of(model: JwstDataModel) -> Product:
    """
    Look at an open model.

    Parameters
    ----------
    model : JwstDataModel
        The model.

    Returns
    -------
    Product
        What it is; its path is the file name that the model knows, which has no folder.
    """
    meta = model.to_flat_dict(include_arrays=False)
    return _product(Path(model.meta.filename or "exposure.fits"), meta, model.data.shape, model)


def _product(path, meta, shape, model=None):
    if len(shape) not in (2, 3):
        raise ValueError(
            f"{path.name} must be a rate of 2 dimensions or integrations of 3, got shape {tuple(shape)}"
        )
    exposures.check_imaging(path.name, meta.get("meta.exposure.type"))
    exposures.check_unresampled(path.name, meta.get("meta.cal_step.resample"))
    meta = {key: value for key, value in meta.items() if key.startswith(_USED)}
    return Product(path, meta, tuple(shape), model)


def products_of(library: ModelLibrary, method: str) -> list[Product | None]:
    """
    Look at the members of a library, one at a time.

    Parameters
    ----------
    library : ModelLibrary
        The exposures.
    method : str
        How integrations will be combined, see `check_samples`.

    Returns
    -------
    list of Product or None
        None for members of other types.
    """
    folder = library_folder(library)
    listed = []
    with library:
        for index, member in enumerate(library.asn["products"][0]["members"]):
            if member["exptype"].lower() != "science":
                listed.append(None)
                continue
            model = library.borrow(index)
            try:
                product = product_of(model)
                if product.has_integrations:
                    check_samples(product, method)
            finally:
                library.shelve(model, index, modify=False)
            listed.append(replace(product, path=folder / member["expname"], model=None))
    return listed


def pair_up(products: list[Product | None], places: list[Path]) -> list[Pair]:
    """
    Give each rate its integrations.

    Parameters
    ----------
    products : list of Product or None
        What was given. Integrations whose rate is there too are no exposures of their own.
    places : list of Path
        Files of integrations, or folders of such files, in which to look first.

    Returns
    -------
    list of Pair
        The exposures, in the order given.

    Raises
    ------
    FileNotFoundError
        If integrations are missing.
    """
    given = [product for product in products if product is not None]
    cubes = {product.base: product for product in given if product.has_integrations}
    rates = {product.base for product in given if not product.has_integrations}
    # The one file for the one exposure may have any name.
    named = len(rates) == len(places) == 1 and not places[0].is_dir()
    # Sorted once: a thousand files are not gone through for each of a thousand rates.
    folders = [place for place in places if place.is_dir()]
    files = {}
    for place in places:
        files.setdefault(place.name, []).append(place)
    pairs = []
    for index, product in enumerate(products):
        if product is None or (product.has_integrations and product.base in rates):
            continue
        if product.has_integrations:
            pairs.append(Pair(index, None, product))
        elif product.done:
            pairs.append(Pair(index, product, None))
        else:
            found = read_product(places[0]) if named else _find(product, cubes, folders, files)
            pairs.append(Pair(index, product, found))
    return pairs


def _find(rate, cubes, folders, files):
    """Look for the integrations of a rate where they were said to be, among those given, and beside it."""
    # By the suffix alone: folders may have "rate" in their names too.
    suffixes = ["calints", "rateints"] if rate.suffix == "cal" else ["rateints"]
    names = [f"{rate.base}_{suffix}{rate.path.suffix}" for suffix in suffixes]
    said = [folder / name for folder in folders for name in names]
    said += [place for name in names for place in files.get(name, ())]
    beside = [rate.path.with_name(name) for name in names]
    for path in said:
        if path.is_file():
            return read_product(path)
    if rate.base in cubes:
        return cubes[rate.base]
    for path in beside:
        if path.is_file():
            return read_product(path)
    if rate.integrations == 1:
        return None
    raise FileNotFoundError(
        f"the integrations of {rate.name} must be beside it, among the exposures given, or where 'rateints'"
        f" says, but there is no {' and no '.join(map(str, [*said, *beside]))}"
    )


def check_pair(pair: Pair) -> None:
    """
    Refuse a rate and integrations that are not of one exposure.

    Parameters
    ----------
    pair : Pair
        The two.

    Raises
    ------
    ValueError
        If shape, identity or number of integrations disagree.
    """
    rate, rateints = pair.rate, pair.rateints
    if rate is None or rateints is None:
        return
    if not rateints.has_integrations:
        raise ValueError(
            f"the integrations of {rate.name} must have 3 dimensions, but {rateints.name} has shape"
            f" {rateints.shape}"
        )
    _check_same("frame", rate, rate.shape, rateints, rateints.shape[1:])
    for key in _IDENTITY:
        values = [product.meta.get(key) for product in (rate, rateints)]
        if None not in values:
            first, second = (str(value).strip() for value in values)
            _check_same(key.removeprefix("meta."), rate, first, rateints, second)
    for step in ("flat_field", "photom"):
        done = [product.meta.get(f"meta.cal_step.{step}") == "COMPLETE" for product in (rate, rateints)]
        _check_same(f"{step} done", rate, done[0], rateints, done[1])
    if rate.integrations is not None:
        _check_same("number of integrations", rate, rate.integrations, rateints, rateints.shape[0])


def _check_same(what, rate, first, rateints, second):
    if first != second:
        raise ValueError(
            f"a rate and its integrations must have the same {what}, but {rate.name} has {first}"
            f" and {rateints.name} has {second}"
        )


def check_samples(rateints: Product, method: str) -> None:
    """
    Refuse integrations of which no sample can be used, or without the variances that a method needs.

    Parameters
    ----------
    rateints : Product
        The integrations; of a file only as much is read as it takes to be sure.
    method : str
        How they will be combined.

    Raises
    ------
    ValueError
        If there is no valid sample, or no variance.
    """
    needed = {"ivar": ["var_rnoise"], "clip": ["var_rnoise", "var_poisson"]}.get(method, [])
    valid, known = False, not needed
    for planes in _planes(rateints, ["data", "dq", *needed]):
        usable = np.isfinite(planes["data"])
        if planes["dq"] is not None:
            usable &= (planes["dq"] & np.uint32(pixel["DO_NOT_USE"])) == 0
        valid = valid or bool(usable.any())
        given = [planes[name] for name in needed if planes[name] is not None]
        known = known or any(bool((plane[usable] > 0).any()) for plane in given)
        if valid and known:
            return
    if not valid:
        raise ValueError(
            f"{rateints.name} must have a sample that is finite and not DO_NOT_USE, but of"
            f" {np.prod(rateints.shape)} there is none"
        )
    planes = " or ".join(name.upper() for name in needed)
    raise ValueError(f"combine='{method}' needs {planes}, but {rateints.name} has no positive value of it")


def _planes(rateints: Product, names: list[str]) -> Iterator[dict]:
    """Go through the integrations; a plane that is not there is None."""
    if rateints.model is None and rateints.path.suffix.lower() == ".fits":
        with fits.open(rateints.path, memmap=False) as hdus:
            stored = {name: {"data": "SCI"}.get(name, name.upper()) for name in names}
            for k in range(rateints.shape[0]):
                yield {name: hdus[key].section[k] if key in hdus else None for name, key in stored.items()}
        return
    with datamodels.open(rateints.model or rateints.path) as model:
        cubes = {name: getattr(model, name) for name in names}
        for k in range(rateints.shape[0]):
            yield {name: None if cube is None else cube[k] for name, cube in cubes.items()}
