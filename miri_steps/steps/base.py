"""What all Steps of this package share."""

from pathlib import Path

from jwst.datamodels import ModelContainer, ModelLibrary
from jwst.stpipe import Step
from stdatamodels.jwst.datamodels import JwstDataModel

from miri_steps.plugin import get_steps

__all__ = ["MiriStep", "as_library", "is_exposure_file"]


class MiriStep(Step):
    """A Step whose products carry its alias as their one suffix, however often it runs."""

    spec = """
        output_use_model = boolean(default=True) # Name each product after its exposure?
    """

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

    def refuse_overwriting(self, inputs: list[Path]) -> None:
        """
        Stop before a product would take the place of an input.

        Parameters
        ----------
        inputs : list of Path
            Files that are read.

        Raises
        ------
        ValueError
            If a product of this run would be written to one of them.
        """
        if not self.save_results:
            return
        for path in inputs:
            product = Path(self.make_output_path(basepath=path.name))
            if path.exists() and product.resolve() == path.resolve():
                raise ValueError(
                    f"a product must not overwrite its input, but {path} would be both: give output_dir"
                )


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
    """
    on_disk = not in_memory
    if isinstance(opened, ModelLibrary):
        return opened
    if isinstance(opened, ModelContainer):
        opened, on_disk = list(opened), False
    elif isinstance(opened, JwstDataModel):
        opened, on_disk = [opened], False
    elif isinstance(opened, list | tuple):
        files = [{"expname": str(Path(name).resolve()), "exptype": "science"} for name in opened]
        opened = {"products": [{"members": files}]}
    return ModelLibrary(opened, asn_exptypes=["science"], on_disk=on_disk)
