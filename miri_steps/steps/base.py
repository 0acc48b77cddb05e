"""What all Steps of this package share."""

from jwst.stpipe import Step

from miri_steps.plugin import get_steps

__all__ = ["MiriStep"]


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
