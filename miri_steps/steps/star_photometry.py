"""`StarPhotometryStep`: the light of a standard star in mosaics and exposures."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from astropy.table import QTable, vstack
from jwst.datamodels import ModelContainer, ModelLibrary
from stdatamodels.jwst.datamodels import JwstDataModel

from miri_steps import exposures, whole_files
from miri_steps.fluxcal import photometry
from miri_steps.steps import star_images
from miri_steps.steps.base import MiriStep, check_file, is_exposure_file, read_association

__all__ = ["StarPhotometryStep"]

log = logging.getLogger(f"stpipe.{__name__}")


class StarPhotometryStep(MiriStep):
    """
    Measure the light of one star, as flux calibration needs it.

    In each mosaic or exposure the brightest star near the target is found, and its light is measured in the
    aperture that holds ``ee`` of it, by the aperture correction reference file. What comes out is a table,
    with a row for each image in the order given; where a star could not be measured, the column ``problem``
    says why.
    """

    class_alias = "star_photometry"

    spec = """
        ee = float(min=0.01, max=0.99, default=0.7) # Part of the light that the aperture holds, one of the reference file's
        ra = float(default=None) # Right ascension of the star, if it is not the target [deg]
        dec = float(default=None) # Declination of the star, if it is not the target [deg]
        within = float(min=0.0, default=2.0) # How far from there it is looked for [arcsec]
        forced = boolean(default=False) # Measure right there, whether there is a star or not?
        save_figure = boolean(default=False) # Save a figure of each star and its apertures?
        suffix = string(default='star_photometry') # Suffix of the table
    """  # noqa: E501

    reference_file_types: ClassVar[list[str]] = ["apcorr"]

    def process(self, input_data):
        """
        Measure the star in all images.

        Parameters
        ----------
        input_data : str, Path, dict, list, JwstDataModel, ModelContainer or ModelLibrary
            A mosaic (``_i2d``) or an exposure (``_cal``), or several.

        Returns
        -------
        QTable
            A row for each.

        Raises
        ------
        ValueError
            If parameters make no sense, or no star could be measured.
        """
        if (self.ra is None) != (self.dec is None):
            raise ValueError(f"ra and dec must be given together, got ra={self.ra} and dec={self.dec}")
        table = vstack([self._measure(model) for model in _images(input_data)], metadata_conflicts="silent")
        if all(table["problem"] != ""):
            raise ValueError("no star could be measured: " + "; ".join(table["problem"]))
        if self.save_results:
            path = Path(self.make_output_path(ext=".ecsv"))
            whole_files.replace(path, lambda part: table.write(part, format="ascii.ecsv"))
            log.info("Table of %d measurements: %s", len(table), path)
        return table

    def _measure(self, model) -> QTable:
        """Measure the star in one image."""
        seen = chosen = found = expected = None
        problem = ""
        try:
            seen = star_images.read(model)
            chosen = star_images.find_aperture(model, seen, self.get_reference_file(model, "apcorr"), self.ee)
            expected = seen.pixel_of(*self._position(model))
            found = self._find_and_measure(seen, chosen.aperture, expected)
        except ValueError as error:
            problem = f"{model.meta.filename}: {error}"
            log.warning("%s", problem)
        if found:
            log.info(
                "%s: star at (%.2f, %.2f), %.6g +- %.2g DN/s",
                *(seen.name, found.x, found.y, found.light, found.light_error),
            )
            if self.save_figure:
                self._draw(seen, chosen.aperture, found)
        return star_images.row(model, seen, chosen, found, expected, problem)

    def _find_and_measure(self, seen, aperture, expected):
        start = expected
        if not self.forced:
            within = self.within / seen.pixel_scale
            start = photometry.find(seen.image, expected, fwhm=aperture.fwhm, within=within, mask=seen.mask)
        return photometry.measure(seen.image, seen.err, start, aperture, mask=seen.mask, forced=self.forced)

    def _position(self, model):
        """Where the star should be: TARG_RA and TARG_DEC are those at the time of the exposure."""
        ra, dec = (
            (self.ra, self.dec) if self.ra is not None else (model.meta.target.ra, model.meta.target.dec)
        )
        if ra is None or dec is None:
            raise ValueError(f"{model.meta.filename} does not say where its target is: give ra and dec")
        return ra, dec

    def _draw(self, seen, aperture, found):
        from miri_steps.report import star_figures

        path = self.make_output_path(basepath=seen.name, suffix="star", ext="png")
        star_figures.photometry(seen.image, found, aperture, title=seen.name).savefig(path)
        log.info("Saved %s", path)


def _images(given) -> Iterator[JwstDataModel]:
    """Open one image after the other; mosaics do not fit into a library."""
    if isinstance(given, ModelLibrary):
        with given:
            for k in range(len(given)):
                model = given.borrow(k)
                yield model
                given.shelve(model, k, modify=False)
    elif isinstance(given, JwstDataModel):
        yield given
    elif is_exposure_file(given):
        check_file(given)
        with exposures.open_file(given) as model:
            yield model
    elif isinstance(given, list | tuple | ModelContainer):
        for one in given:
            yield from _images(one)
    else:
        association, folder = read_association(given)
        members = [member for product in association["products"] for member in product["members"]]
        for member in members:
            if member["exptype"].lower() == "science":
                yield from _images(str(Path(folder) / member["expname"]))
