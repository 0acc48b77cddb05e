"""`StarPhotometryStep`: the light of a standard star in mosaics and exposures."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import ClassVar

from astropy.table import QTable, Table, vstack
from jwst.datamodels import ModelContainer, ModelLibrary
from stdatamodels.jwst import datamodels
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
    says why. It is saved under the name of the image, of the product of an association, or of the first image
    of a list; a table of other images is not overwritten.
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
        FileExistsError, FileNotFoundError
            If the table would be written over that of other images, or a file is missing.
        ValueError
            If parameters make no sense, a file is not whole, the apertures are of no use, or no star could be
            measured.
        """
        if (self.ra is None) != (self.dec is None):
            raise ValueError(f"ra and dec must be given together, got ra={self.ra} and dec={self.dec}")
        images = _list_images(input_data)
        names = _names(images)
        if not names:
            raise ValueError("the input must hold at least 1 image, got 0")
        path = self._table_path(input_data, names) if self.save_results else None
        figures = self._figure_paths(names)
        # Most often one file serves all images.
        read = cache(star_images.read_apertures)
        rows = [
            self._measure(*one, figure, read)
            for one, figure in zip(_opened(images, names), figures, strict=True)
        ]
        table = vstack(rows, metadata_conflicts="silent")
        if all(table["problem"] != ""):
            raise ValueError("no star could be measured: " + "; ".join(table["problem"]))
        if path:
            whole_files.replace(path, lambda part: table.write(part, format="ascii.ecsv"))
            log.info("Table of %d measurements: %s", len(table), path)
        return table

    def _table_path(self, given, names) -> Path:
        """Name the table, and stop before it would take the place of one of other images."""
        named = self.search_attr("output_file")
        path = Path(self.make_output_path(basepath=named or _product(given, names), ext=".ecsv"))
        if not named and path.exists() and _names_in(path) != sorted(names):
            raise FileExistsError(f"{path} exists and is not of these images: give output_file or output_dir")
        return path

    def _figure_paths(self, names) -> list[str]:
        """Name the figures; those that would share a name are numbered by their rows."""

        def path(name, number=None):
            return self.make_output_path(basepath=_base(name), suffix="star", ext="png", number=number)

        times = Counter(path(name) for name in names)
        return [path(name, k if times[path(name)] > 1 else None) for k, name in enumerate(names, start=1)]

    def _measure(self, model, problem, figure, read_apertures) -> QTable:
        """Measure the star in one image, unless there is a problem with it."""
        seen = chosen = found = expected = None
        try:
            if problem:
                raise ValueError(problem)
            seen = star_images.read(model)
            apertures = read_apertures(self.get_reference_file(model, "apcorr"))
            chosen = star_images.find_aperture(model, seen, apertures, self.ee)
            expected = self._expected(model, seen)
            found = self._find_and_measure(seen, chosen.aperture, expected)
        except star_images.UnusableAperturesError:
            raise
        except ValueError as error:
            problem = f"{model.meta.filename}: {error}"
            log.warning("%s", problem)
        if found:
            log.info(
                "%s: star at (%.2f, %.2f), %.6g +- %.2g DN/s",
                *(seen.name, found.x, found.y, found.light, found.light_error),
            )
            if self.save_figure:
                _draw(seen, chosen.aperture, found, figure)
        return star_images.row(model, seen, chosen, found, expected, problem)

    def _find_and_measure(self, seen, aperture, expected):
        start = expected
        if not self.forced:
            within = self.within / seen.pixel_scale
            start = photometry.find(seen.image, expected, fwhm=aperture.fwhm, within=within, mask=seen.mask)
        found = photometry.measure(seen.image, seen.err, start, aperture, mask=seen.mask, forced=self.forced)
        area = seen.area_at(found.x, found.y)
        return replace(found, light=found.light * area, light_error=found.light_error * area)

    def _expected(self, model, seen):
        """Tell the pixel where the star should be."""
        ra, dec = self._position(model)
        expected = seen.pixel_of(ra, dec)
        beyond = 0.5 + self.within / seen.pixel_scale
        ny, nx = seen.image.shape
        # Far away a WCS gives anything, also what is not finite.
        if not all(-beyond <= at <= n - 1 + beyond for at, n in zip(expected, (nx, ny), strict=True)):
            raise ValueError(f"the target is not in the image: it is at ra={ra:.6f}, dec={dec:.6f}")
        return expected

    def _position(self, model):
        """Where the star should be: TARG_RA and TARG_DEC are those at the time of the exposure."""
        ra, dec = (
            (self.ra, self.dec) if self.ra is not None else (model.meta.target.ra, model.meta.target.dec)
        )
        if ra is None or dec is None:
            raise ValueError(f"{model.meta.filename} does not say where its target is: give ra and dec")
        return ra, dec


def _draw(seen, aperture, found, path):
    from miri_steps.report import star_figures

    star_figures.photometry(seen.image, found, aperture, title=seen.name).savefig(path)
    log.info("Saved %s", path)


def _list_images(given) -> list[Path | JwstDataModel] | ModelLibrary:
    """List files, which must be there, and open models; a library stays what it is."""
    if isinstance(given, ModelLibrary):
        return given
    if isinstance(given, JwstDataModel):
        return [given]
    if is_exposure_file(given):
        check_file(given)
        return [Path(given)]
    if not isinstance(given, list | tuple | ModelContainer):
        association, folder = read_association(given)
        members = [member for product in association["products"] for member in product["members"]]
        given = [
            str(Path(folder) / member["expname"])
            for member in members
            if member["exptype"].lower() == "science"
        ]
    return [image for one in given for image in _list_images(one)]


def _names(images) -> list[str]:
    if isinstance(images, ModelLibrary):
        return [Path(member["expname"]).name for member in images.asn["products"][0]["members"]]
    return [one.name if isinstance(one, Path) else one.meta.filename or "" for one in images]


def _opened(images, names) -> Iterator[tuple[JwstDataModel, str]]:
    """Open one image after the other, and say what the problem is; mosaics do not fit into a library."""
    if isinstance(images, ModelLibrary):
        with images:
            for k, name in enumerate(names):
                model, problem = _open(images.borrow, k, name)
                yield model, problem
                if not problem:
                    images.shelve(model, k, modify=False)
        return
    for one, name in zip(images, names, strict=True):
        if isinstance(one, Path):
            model, problem = _open(exposures.open_file, one, name)
            with model:
                yield model, problem
        else:
            yield one, ""


def _open(how, which, name) -> tuple[JwstDataModel, str]:
    """Open an image; of one that cannot be opened there is but the name, and what the problem is."""
    try:
        return how(which), ""
    # A file that is broken inside fails with any error, and the other images must not be lost.
    except Exception as error:
        model = datamodels.ImageModel()
        model.meta.filename = name
        return model, f"it cannot be opened: {error}"


def _product(given, names) -> str | None:
    """Name what comes out: as the product of an association, or the first image."""
    name = None
    if isinstance(given, ModelLibrary):
        name = given.asn["products"][0].get("name")
    elif isinstance(given, str | Path | dict) and not is_exposure_file(given):
        name = read_association(given)[0]["products"][0].get("name")
    return name or _base(names[0])


def _base(name) -> str | None:
    """Name of an image that stpipe can put a suffix to."""
    return name.removesuffix(".gz") or None


def _names_in(path) -> list[str] | None:
    """Sorted names of the images that a table is of; None if it is no such table."""
    try:
        return sorted(Table.read(path, format="ascii.ecsv")["file"])
    except (KeyError, OSError, ValueError):
        return None
