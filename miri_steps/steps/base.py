"""What all Steps of this package share."""

import json
import logging
from pathlib import Path

from jwst.datamodels import ModelContainer, ModelLibrary
from jwst.stpipe import Step
from stdatamodels.jwst.datamodels import JwstDataModel

from miri_steps.plugin import get_steps

__all__ = ["MiriStep", "as_library", "is_exposure_file"]

log = logging.getLogger(f"stpipe.{__name__}")


class MiriStep(Step):
    """A Step whose products carry its alias as their one suffix, however often it runs."""

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
        Remove a suffix of this package or of jwst from a file name.

        Parameters
        ----------
        name : str
            File name without extension.

        Returns
        -------
        str, str
            Name without the suffix, and the separator before it.
        """
        for _, alias, _ in get_steps():
            if name.endswith(f"_{alias}"):
                return name.removesuffix(f"_{alias}"), "_"
        return super().remove_suffix(name)

    def name_products(self, inputs: list[Path]) -> None:
        """
        Name each product after its exposure, and stop before one would take the place of another.

        A name given as ``output_file`` comes first, as in every Step.

        Parameters
        ----------
        inputs : list of Path
            Files that are read.

        Raises
        ------
        ValueError
            If a file is read twice, or a product of this run would be written over an input or
            over another product.
        """
        read = [path.resolve() for path in inputs if path.exists()]
        for path in read:
            if read.count(path) > 1:
                raise ValueError(
                    f"each exposure must be given once, but {path} is listed {read.count(path)} times"
                )
        if not self.save_results or self.output_file is not None:
            return
        self.output_use_model = True
        products = [Path(self.make_output_path(basepath=path.name)).resolve() for path in inputs]
        for path, product in zip(inputs, products, strict=True):
            if product in read:
                raise ValueError(
                    f"a product must not overwrite an input, but {product} is both: give output_dir"
                )
            if products.count(product) > 1:
                raise ValueError(f"products must have different names, but {path} and another give {product}")


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
        True for the name of a FITS or ASDF file.
    """
    return isinstance(given, str | Path) and Path(given).suffix.lower() in (".fits", ".asdf")


def as_library(opened: object, *, in_memory: bool) -> ModelLibrary:
    """
    Put whatever a Step was given into a library.

    Parameters
    ----------
    opened : ModelLibrary, ModelContainer, JwstDataModel, list of file names, association
        Input after ``Step.prepare_output``.
    in_memory : bool
        Whether the library may hold all exposures at once; open models are held anyway.

    Returns
    -------
    ModelLibrary
        The science exposures.

    Raises
    ------
    ValueError
        If an association writes an ``exptype`` in capitals: its exposures would be left out.
    """
    on_disk = not in_memory
    if isinstance(opened, ModelLibrary):
        return opened
    if isinstance(opened, str | Path | dict):
        _name_left_out(opened)
    if isinstance(opened, ModelContainer):
        opened, on_disk = list(opened), False
    elif isinstance(opened, JwstDataModel):
        opened, on_disk = [opened], False
    elif isinstance(opened, list | tuple):
        files = [{"expname": str(Path(name).resolve()), "exptype": "science"} for name in opened]
        opened = {"products": [{"members": files}]}
    return ModelLibrary(opened, asn_exptypes=["science"], on_disk=on_disk)


def _name_left_out(association):
    """Log the members that are no science exposures; they need not be images."""
    if not isinstance(association, dict):
        association = json.loads(Path(association).read_text())
    for product in association["products"][:1]:
        for member in product["members"]:
            if member["exptype"] != member["exptype"].lower():
                raise ValueError(
                    f"exptype of {member['expname']} must be in lower case, got {member['exptype']!r}"
                )
            if member["exptype"] != "science":
                log.info("%s is of type %s and takes no part.", member["expname"], member["exptype"])
