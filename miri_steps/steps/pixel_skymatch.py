"""Level the sky of a mosaic by comparing the same sky pixels."""

import logging
from pathlib import Path

import numpy as np
from jwst.datamodels import ModelContainer
from jwst.skymatch import SkyMatchStep
from stdatamodels.jwst.datamodels import JwstDataModel

from miri_steps import detector, exposures, workers
from miri_steps.algorithms import matching
from miri_steps.algorithms.detector_background import DetectorPolynomial
from miri_steps.algorithms.differences import Clipping
from miri_steps.steps import sky_checks, sky_products, sky_reading
from miri_steps.steps.base import SpreadStep, as_library, list_exposures
from miri_steps.steps.sky_members import Member, corners
from miri_steps.steps.sky_reading import Rules

__all__ = ["PixelSkyMatchStep"]

# Only loggers below "stpipe" are heard inside the stock pipelines.
log = logging.getLogger(f"stpipe.{__name__}")

# Parameters that change the numbers, for the HISTORY entry.
_RECORDED = (
    *("skymethod", "match_down", "subtract", "skylist"),
    *("skystat", "dqbits", "lower", "upper", "nclip", "lsigma", "usigma", "binwidth"),
    *("grouping", "grid_scale", "exclude_regions", "detector_order", "subtract_detector_background"),
)


class PixelSkyMatchStep(SpreadStep, SkyMatchStep):
    """
    Match the sky background of exposures on the pixels of the sky they share.

    Think of two photographs of one hillside laid on each other: subtract them and the hill is
    gone, only the difference of the prints is left. The stock step compares one number of each
    image over their common outline, in which the emission does not cancel.

    Every exposure is resampled once to a coarse common grid; the robust location of each pair's
    difference image ties the levels of the two; all levels, and a smooth background fixed to
    the detector, follow from one weighted robust least-squares solution. Parameters of
    ``skymatch`` keep their names and meaning; ``local``, ``global`` and ``user`` are that step's.

    Notes
    -----
    Levels have one free constant per connected piece of the field. A plane fixed to the detector
    cannot be told from levels that follow the dithers, unless exposures are rolled against each
    other. It is then zero over the imager, or follows from the steadiness of the sky within
    visits where that is evident; the log says which.
    """

    class_alias = "pixel_skymatch"

    spec = """
        # How exposures are matched:
        grouping = option('exposure', 'visit', default='exposure') # Match each exposure by itself, or inside visits first and then whole visits
        grid_scale = float(min=0.11, default=0.88) # Side of a cell of the common sky grid [arcsec]
        exclude_regions = force_list(default=list()) # Parts of the detector left out of the match: imager, lyot, 4qpm, 4qpm_1065, 4qpm_1140, 4qpm_1550

        # Background fixed to the detector:
        detector_order = integer(min=0, max=8, default=4) # Order of the polynomial solved together with the levels, 0 for none
        save_detector_background = boolean(default=False) # Save the polynomial as an image?
        subtract_detector_background = boolean(default=False) # Subtract the polynomial from the image data?

        # Results and resources:
        save_levels = boolean(default=False) # Save tables of the levels and of the pairs?
    """  # noqa: E501

    def process(self, input_models):
        """
        Match the sky.

        Parameters
        ----------
        input_models : str, Path, dict, list, ImageModel, ModelContainer or ModelLibrary
            An association, exposures, or their file names.

        Returns
        -------
        ModelLibrary, ModelContainer or ImageModel
            Open models in the container they came in, copied; a library for everything else.
            ``meta.background`` and ``meta.cal_step`` are set.

        Raises
        ------
        ValueError
            If exposures are not MIRI imaging, are of different filters, or have been matched
            before in a way that does not fit the parameters.
        """
        cores = workers.count(self.maximum_cores)
        detector.check_regions(self.exclude_regions)
        opened = self.open_input(input_models)
        library = as_library(opened, in_memory=self.in_memory)
        members = list_exposures(library, Member)
        matches = self.skymethod in ("match", "global+match")
        by_visit = matches and self.grouping == "visit"
        sky_checks.check_members(members, subtract=self.subtract, by_visit=by_visit)
        self.name_products([member.path for member in members])
        if not matches and (self.save_levels or self.save_detector_background):
            log.warning("There are no tables and no detector background with skymethod='%s'.", self.skymethod)
        if sky_checks.already_subtracted(members):
            log.warning("Nothing is done: the sky of all exposures was matched and subtracted before.")
        elif self.skymethod == "user":
            self._set_levels(library, members)
        elif self.skymethod in ("local", "global"):
            self._run_stock(library, members)
        else:
            self._match(library, members, cores)
        return opened if isinstance(opened, JwstDataModel | ModelContainer) else library

    def _set_levels(self, library, members):
        for member, level in zip(members, sky_checks.read_skylist(self.skylist, members), strict=True):
            member.level = level
        self._write_back(library, members)

    def _run_stock(self, library, members):
        """Let ``skymatch`` do what it does with one statistic per image."""
        with library:
            for member in members:
                model = library.borrow(member.index)
                has_wcs = model.meta.wcs is not None
                library.shelve(model, member.index, modify=False)
                if not has_wcs:
                    raise ValueError(f"{member.name} has no WCS, which skymethod='{self.skymethod}' needs")
        super().process(library)
        with library:
            for member in members:
                model = library.borrow(member.index)
                self._record(model, model.meta.cal_step.skymatch)
                library.shelve(model, member.index)

    def _match(self, library, members, cores):
        with self.scratch(library) as folder, workers.open_map(cores, self.executor) as run:
            keep = sky_reading.keeper(folder)
            self._read(library, members, keep, run)
            matched = [member for member in members if member.cells is not None]
            polynomial, found = self._solve(matched, keep, run)
        for member in matched:
            member.cell_size, member.cells = member.cells.cell_size, None  # written back one at a time
        self._assign_levels(members, matched, found.levels)
        sky_products.log_match(matched, found, self.detector_order, self.subtract_detector_background)
        take = self.subtract_detector_background and found.n_patterns
        self._write_back(library, members, polynomial if take else None, found.levels.background)
        self._save_products(library, members, matched, polynomial, found)

    def _read(self, library, members, keep, run):
        """Read every exposure once and keep its cells."""
        above_zero = self.skymethod == "global+match"
        clipping = self.nclip, self.lsigma, self.usigma, self.binwidth
        rules = Rules(
            center=exposures.sky_middle(corners(members)),
            scale=self.grid_scale,
            keep=keep,
            dqbits=self.dqbits,
            lower=self.lower,
            upper=self.upper,
            regions=tuple(self.exclude_regions),
            statistic=(self.skystat, self.lower, self.upper, *clipping) if above_zero else None,
        )
        with library:
            seen = run(sky_reading.read, sky_reading.readings(library, members, rules))
            for number, (member, found) in enumerate(zip(members, seen, strict=True), start=1):
                member.cells, member.sky = found.cells, found.sky
                member.problem = found.problem or member.problem
                count = 0 if found.cells is None else np.count_nonzero(found.cells.seen)
                log.info("%d/%d %s: sees %d cells of the sky", number, len(members), member.name, count)

    def _solve(self, matched, keep, run):
        cells = [member.cells for member in matched]
        box = matching.background_box(cells, within=detector.bounding_box("imager"))
        polynomial = DetectorPolynomial(self.detector_order, *box)
        found = matching.match(
            cells,
            visit=np.unique([member.visit for member in matched], return_inverse=True)[1],
            by_visit=self.grouping == "visit",
            polynomial=polynomial,
            clipping=Clipping(self.skystat, self.nclip, self.lsigma, self.usigma, self.binwidth),
            names=[member.name for member in matched],
            keep=keep,
            run=run,
        )
        return polynomial, found

    def _assign_levels(self, members, matched, levels):
        """Set the free constant of each piece, and with it the level of every exposure."""
        joined = np.flatnonzero(levels.component >= 0)
        piece, level = levels.component[joined], levels.level[joined]
        zero = np.full(piece.max(initial=-1) + 1, np.inf if self.match_down else -np.inf)
        (np.minimum if self.match_down else np.maximum).at(zero, piece, level)
        for k, value in zip(joined.tolist(), (level - zero[piece]).tolist(), strict=True):
            matched[k].level = value
        seen = [member for member in members if member.sky is not None]
        if self.skymethod == "global+match" and seen:
            lowest = min(member.sky - (member.level or 0.0) for member in seen)
            for member in seen:
                if member.level is None:
                    log.warning("%s %s and gets the global level alone.", member.name, member.problem)
                member.level = (member.level or 0.0) + lowest

    def _write_back(self, library, members, polynomial=None, background=None):
        """Set or subtract the levels, and subtract the detector background if its terms are given."""
        drawn = {}
        with library:
            for member in members:
                model = library.borrow(member.index)
                if member.level is None:
                    log.warning("%s %s: it is left as it is.", member.name, member.problem)
                    self._record(model, "SKIPPED")
                else:
                    self._set_level(model, member.level)
                    if polynomial is not None:
                        self._subtract_background(model, polynomial, background, drawn)
                    self._record(model, "COMPLETE")
                library.shelve(model, member.index)

    def _set_level(self, model, level):
        before = model.meta.background.level if model.meta.background.subtracted else 0.0
        model.meta.background.method = self.skymethod
        model.meta.background.level = before + level
        model.meta.background.subtracted = self.subtract
        if self.subtract:
            model.data = model.data - np.float32(level)

    def _subtract_background(self, model, polynomial, background, drawn):
        """Subtract the detector background, drawn once for all frames of one size and place."""
        frame = model.data.shape, exposures.frame_origin(model)
        if frame not in drawn:
            # Nothing is known of the background where nothing was matched.
            unknown = exposures.region_pixels(model, self.exclude_regions)
            drawn[frame] = np.where(unknown, np.float32(0), polynomial.image(background, *frame))
        model.data = model.data - drawn[frame]
        model.meta.background.detector_subtracted = True

    def _record(self, model, status):
        model.meta.cal_step.skymatch = status
        model.meta.cal_step.pixel_skymatch = status
        if status == "COMPLETE":
            self.write_history(model, _RECORDED, f"level={model.meta.background.level}")

    def _save_products(self, library, members, matched, polynomial, found):
        product = library.asn["products"][0].get("name") or Path(members[0].name).stem
        if self.save_levels:
            for suffix, table in (
                ("sky_levels", sky_products.level_table(members, matched, found)),
                ("sky_pairs", sky_products.pair_table(matched, found)),
            ):
                path = self.make_output_path(basepath=product, suffix=suffix, ext="ecsv")
                table.write(path, format="ascii.ecsv", overwrite=True)
                log.info("Saved %s", path)
        if self.save_detector_background and not found.n_patterns:
            log.warning("There is no detector background to save.")
        elif self.save_detector_background:
            path = self.make_output_path(basepath=product, suffix="detector_background", ext="fits")
            sky_products.background_model(members[0], polynomial, found, self.exclude_regions).save(path)
            log.info("Saved %s", path)
