"""What all Steps of this package share."""

import gzip
import json
import logging
import os
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning
from jwst.datamodels import ModelContainer, ModelLibrary
from jwst.lib import suffix
from jwst.stpipe import Step
from stdatamodels.jwst.datamodels import JwstDataModel

from miri_steps import detector, exposures
from miri_steps.plugin import get_steps

__all__ = [
    "Exposure",
    "MiriStep",
    "SpreadStep",
    "as_library",
    "check_exposures",
    "check_file",
    "file_of",
    "is_exposure_file",
    "library_folder",
    "list_exposures",
    "read_association",
    "remove_suffix",
    "table_path",
]

log = logging.getLogger(f"stpipe.{__name__}")

# What a file that was compressed begins with.
_GZIP = b"\x1f\x8b"


@dataclass
class Exposure:
    """
    What is kept of an exposure while the others are read.

    Parameters
    ----------
    index : int
        Its place in the library.
    path : Path
        Its file, as far as it has one.
    group : str
        Its ``group_id``.
    meta : dict
        Its metadata as far as they are used, keyed ``meta.a.b``.
    """

    #: Beginnings of the metadata to keep. The rest, logs above all, would pile up over a thousand exposures.
    used: ClassVar[tuple[str, ...]] = ()

    index: int
    path: Path
    group: str
    meta: dict

    @property
    def name(self) -> str:
        """File name."""
        return self.path.name


class MiriStep(Step):
    """A Step whose products carry its alias as their one suffix, however often it runs."""

    @classmethod
    def build_config(cls, input, **kwargs):  # noqa: A002
        """
        Read parameters, once the first file to be worked on has been looked at.

        Before any Step runs, jwst asks that file for the parameters that CRDS keeps, and fails on
        one that is not whole without naming it.

        Parameters
        ----------
        input : str, Path, list, dict, JwstDataModel, ModelContainer or ModelLibrary
            Input of the Step.
        **kwargs
            As in every Step.

        Returns
        -------
        ConfigObj, str
            The parameters, and the file they came from.
        """
        first = next(iter(input), None) if isinstance(input, list | tuple) else input
        if is_exposure_file(first):
            check_file(first)
        return super().build_config(input, **kwargs)

    def default_suffix(self):
        """
        Name the suffix of this Step's products.

        Returns
        -------
        str
            The alias.
        """
        return self.class_alias

    def remove_suffix(self, name):
        """
        Remove the suffix of this Step, of this package or of jwst from a file name.

        Parameters
        ----------
        name : str
            File name without extension.

        Returns
        -------
        str, str
            Name without the suffix, and the separator before it.
        """
        own = f"_{self.class_alias}"
        # A Step of another package is not among those that this one lists.
        return (name.removesuffix(own), "_") if name.endswith(own) else remove_suffix(name)

    def open_input(self, given):
        """
        Open what a Step was given, as a copy where it is an open model.

        Parameters
        ----------
        given : str, Path, dict, list, tuple, JwstDataModel, ModelContainer or ModelLibrary
            Input of the Step.

        Returns
        -------
        JwstDataModel, ModelContainer, ModelLibrary, str, Path, dict or list
            A file of one exposure is opened; associations and lists of names stay as they are.

        Raises
        ------
        FileNotFoundError, ValueError
            If the file of one exposure is missing or truncated.
        """
        if is_exposure_file(given):
            check_file(given)
        if isinstance(given, tuple):
            given = list(given)
        return self.prepare_output(given, open_models=is_exposure_file(given))

    def write_history(self, model: JwstDataModel, parameters: Sequence[str], *found: str) -> None:
        """
        Add a HISTORY entry with what changed the numbers.

        Parameters
        ----------
        model : JwstDataModel
            Changed in place.
        parameters : sequence of str
            Names of parameters of this Step.
        *found : str
            What else there is to say, ``name=value``.
        """
        listed = [f"{name}={getattr(self, name)}" for name in parameters]
        exposures.add_history(model, " ".join([f"{type(self).__name__}:", *listed, *found]))

    def name_products(self, inputs: list[Path], others: Sequence[Path] = ()) -> None:
        """
        Name each product after its exposure, and stop before one would take the place of another.

        A name given as ``output_file`` comes first, as in every Step.

        Parameters
        ----------
        inputs : list of Path
            Files of the exposures.
        others : sequence of Path, optional
            Other files that are read.

        Raises
        ------
        ValueError
            If a file is read twice, or a product of this run would be written over an input or
            over another product.
        """
        read = Counter(path.resolve() for path in (*inputs, *others) if path.exists())
        for path, times in read.items():
            if times > 1:
                raise ValueError(f"each exposure must be given once, but {path} is listed {times} times")
        if not self.save_results or self.output_file is not None:
            return
        self.output_use_model = True
        products = [Path(self.make_output_path(basepath=path.name)).resolve() for path in inputs]
        times = Counter(products)
        for path, product in zip(inputs, products, strict=True):
            if product in read:
                raise ValueError(
                    f"a product must not overwrite an input, but {product} is both: give output_dir"
                )
            if times[product] > 1:
                raise ValueError(f"products must have different names, but {path} and another give {product}")


class SpreadStep(MiriStep):
    """A Step whose work can be spread over processes, or over a cluster."""

    spec = """
        # Where the work is done:
        maximum_cores = string(default='1') # Processes to use: '1', '2' and so on, 'quarter', 'half' or 'all'
        executor = string(default=None) # Scheduler of a Dask cluster to use instead: its address, or the file that it has written
    """  # noqa: E501

    @contextmanager
    def scratch(self, library: ModelLibrary) -> Iterator[Path | None]:
        """
        Make a folder for scratch files where exposures are not to be kept in memory.

        Parameters
        ----------
        library : ModelLibrary
            The exposures.

        Yields
        ------
        Path or None
            The folder, which is gone afterwards, whatever happens; None where all may stay in memory.
        """
        if self.in_memory and not library.on_disk:
            yield None
            return
        # Workers of a cluster see what is beside the products, not the temporary folder of this machine.
        where = (self.output_dir or ".") if self.executor else None
        with tempfile.TemporaryDirectory(
            prefix=f".{self.class_alias}_", dir=where, ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder).resolve()


def remove_suffix(name: str) -> tuple[str, str | None]:
    """
    Remove a suffix of this package or of jwst from a file name.

    Parameters
    ----------
    name : str
        File name without extension; of a compressed file ``.fits`` may be left.

    Returns
    -------
    str, str or None
        Name without the suffix, and the separator before it.
    """
    name = name.removesuffix(".fits")
    for _, alias, _ in get_steps():
        if name.endswith(f"_{alias}"):
            return name.removesuffix(f"_{alias}"), "_"
    return suffix.remove_suffix(name)


def is_exposure_file(given: object) -> bool:
    """
    Tell the file of one exposure from an association.

    Parameters
    ----------
    given : object
        What a Step was given.

    Returns
    -------
    bool
        True for the name of a FITS file, compressed or not, or of an ASDF file.
    """
    return isinstance(given, str | Path) and str(given).lower().endswith((".fits", ".fits.gz", ".asdf"))


def table_path(name: str | Path) -> Path:
    """
    Find a table; the end of its name may be left out, for a hook must not have a dot in its parameters.

    Parameters
    ----------
    name : str or Path
        Its name.

    Returns
    -------
    Path
        Its file, ``.ecsv`` where no end is given and none of that name is there.
    """
    path = Path(name)
    return path if path.suffix or path.exists() else path.with_suffix(".ecsv")


def check_file(path: str | Path) -> None:
    """
    Refuse a file that is missing or not whole, from its headers alone.

    Parameters
    ----------
    path : str or Path
        File of an exposure.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is a FITS file in name only, or its size is not what its headers say.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be the file of an exposure, but there is no such file")
    if path.suffix.lower() == ".asdf":
        return
    try:
        with warnings.catch_warnings():
            # The error below says it with both sizes.
            warnings.simplefilter("ignore", AstropyUserWarning)
            with fits.open(path) as hdus:
                end = max(info["datLoc"] + info["datSpan"] for info in (hdu.fileinfo() for hdu in hdus))
            size = _size(path)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} must be a FITS file, but cannot be read: {error}") from error
    # Of a file that is cut inside a header astropy lists what comes before, so that bytes are left over.
    if size != end:
        raise ValueError(f"{path} is truncated: it must have {end} bytes by its headers, got {size}")


def _size(path):
    """Count the bytes of a file as astropy reads it: what is compressed may be named as if it were not."""
    with path.open("rb") as file:
        if file.read(len(_GZIP)) != _GZIP:
            return path.stat().st_size
    with gzip.open(path) as file:
        return file.seek(0, os.SEEK_END)


def check_exposures(listed: Sequence[Exposure]) -> None:
    """
    Refuse what is no exposure of the imager in a filter that is known.

    Parameters
    ----------
    listed : sequence of Exposure
        The exposures.

    Raises
    ------
    ValueError
        If there is none, or one is not MIRI imaging, not of a known filter, or a mosaic.
    """
    if not listed:
        raise ValueError("the input must hold at least 1 science exposure, got 0")
    for exposure in listed:
        exposures.check_imaging(exposure.name, exposure.meta.get("meta.exposure.type"))
        band = exposure.meta.get("meta.instrument.filter")
        if band not in detector.FWHM:
            raise ValueError(
                f"FILTER of {exposure.name} must be one of {', '.join(detector.FWHM)}, got {band}"
            )
        exposures.check_unresampled(exposure.name, exposure.meta.get("meta.cal_step.resample"))


def as_library(opened: object, *, in_memory: bool, read_apart: Sequence[str] = ()) -> ModelLibrary:
    """
    Put whatever a Step was given into a library.

    Parameters
    ----------
    opened : ModelLibrary, ModelContainer, JwstDataModel, list of file names, association
        Input after ``Step.prepare_output``.
    in_memory : bool
        Whether the library may hold all exposures at once; open models are held anyway.
    read_apart : sequence of str, optional
        Types of members that the caller reads by itself.

    Returns
    -------
    ModelLibrary
        The science exposures.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is truncated, or an association writes an ``exptype`` in capitals: its exposures
        would be left out.
    """
    on_disk = not in_memory
    if isinstance(opened, ModelLibrary):
        return opened
    if isinstance(opened, ModelContainer):
        opened, on_disk = list(opened), False
    elif isinstance(opened, JwstDataModel):
        opened, on_disk = [opened], False
    elif isinstance(opened, list | tuple):
        for name in opened:
            check_file(name)
        files = [{"expname": str(Path(name).resolve()), "exptype": "science"} for name in opened]
        opened = {"products": [{"members": files}]}
    else:
        _check_members(*read_association(opened), read_apart)
    return ModelLibrary(opened, asn_exptypes=["science"], on_disk=on_disk)


def file_of(library: ModelLibrary, exposure: Exposure) -> Path | None:
    """
    Find the file that stands for an exposure at the moment, so that another process can read it.

    Parameters
    ----------
    library : ModelLibrary
        The exposures.
    exposure : Exposure
        One of them.

    Returns
    -------
    Path or None
        Its file as it came, or the one that the library has written since; None where the exposure
        is kept in memory.
    """
    # stpipe has no public name for the files that a library writes. Where it calls them otherwise,
    # exposures are read in this process.
    written = getattr(library, "_temp_filenames", None)
    if not library.on_disk or written is None:
        return None
    return Path(written.get(exposure.index, exposure.path)).resolve()


def library_folder(library: ModelLibrary) -> Path:
    """
    Say which folder the names in a library start from.

    Parameters
    ----------
    library : ModelLibrary
        The exposures.

    Returns
    -------
    Path
        That of the association's file, where it came from one.
    """
    return Path(library.asn_dir) if library.asn.get("table_name") else Path()


def list_exposures(library: ModelLibrary, kind: type[Exposure]) -> list[Exposure]:
    """
    List the science exposures in the order of their names, so that the order given changes nothing.

    Parameters
    ----------
    library : ModelLibrary
        The exposures; only their headers are read.
    kind : type
        What a Step keeps of an exposure.

    Returns
    -------
    list of `kind`
        Members of other types are left out and named in the log.
    """
    folder = library_folder(library)
    listed = []
    for index, entry in enumerate(library.asn["products"][0]["members"]):
        path = folder / entry["expname"]
        if entry["exptype"].lower() != "science":
            log.info("%s is of type %s: it is left as it is.", path.name, entry["exptype"])
            continue
        known = library.read_metadata(index)
        meta = {key: value for key, value in known.items() if key.startswith(kind.used)}
        listed.append(kind(index, path, entry["group_id"], meta))
    return sorted(listed, key=lambda exposure: (exposure.name, exposure.index))


def read_association(given: str | Path | dict) -> tuple[dict, Path]:
    """
    Read an association, unless it is one already.

    Parameters
    ----------
    given : str, Path or dict
        Its file, or what such a file holds.

    Returns
    -------
    dict, Path
        The association, and the folder that its names start from.

    Raises
    ------
    TypeError
        If it is none of these.
    ValueError
        If the file is no JSON, or has no product with members.
    """
    if not isinstance(given, str | Path | dict):
        raise TypeError(
            "the input must be a file name, a model, a list of either, a library or an association, "
            f"got {type(given).__name__}"
        )
    association, folder = given, Path()
    if not isinstance(given, dict):
        association, folder = _read_json(given), Path(given).parent
    products = association.get("products")
    if not products or "members" not in products[0]:
        raise ValueError(f"an association must have a product with members, got the keys {list(association)}")
    return association, folder


def _read_json(path):
    try:
        return json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} must be an exposure (FITS) or an association (JSON): {error}") from error


def _check_members(association, folder, read_apart):
    """Look at the files of the science exposures, and log the other members; they need not be images."""
    for product in association["products"][:1]:
        for member in product["members"]:
            if member["exptype"] != member["exptype"].lower():
                raise ValueError(
                    f"exptype of {member['expname']} must be in lower case, got {member['exptype']!r}"
                )
            if member["exptype"] == "science":
                check_file(folder / member["expname"])
            elif member["exptype"] not in read_apart:
                log.info("%s is of type %s and takes no part.", member["expname"], member["exptype"])
