"""Level the sky of a mosaic by comparing the same sky pixels."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.table import QTable
from jwst.datamodels import ModelContainer, ModelLibrary
from jwst.lib.suffix import remove_suffix
from jwst.skymatch import SkyMatchStep
from stcal.skymatch import SkyStats
from stdatamodels.jwst.datamodels import ImageModel, JwstDataModel

from miri_steps import detector, exposures, workers
from miri_steps.algorithms import matching, sky_cells
from miri_steps.algorithms.detector_background import DetectorPolynomial
from miri_steps.algorithms.differences import Clipping
from miri_steps.algorithms.sky_cells import PixelMap
from miri_steps.steps.base import MiriStep

__all__ = ["PixelSkyMatchStep"]

# Only loggers below "stpipe" are heard inside the stock pipelines.
log = logging.getLogger(f"stpipe.{__name__}")

# A pair that was left less than this share of its weight is named.
_DOUBTFUL = 0.1


@dataclass
class _Member:
    """What is kept of an exposure while the others are read."""

    index: int
    name: str
    group: str
    meta: dict
    cells: sky_cells.SkyCells | None = None
    sky: float | None = None
    level: float | None = None
    problem: str = "overlaps no other exposure"


class PixelSkyMatchStep(MiriStep, SkyMatchStep):
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
    other; where it cannot be told it is taken to be zero over the imager.
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
        maximum_cores = string(default='1') # Processes to use: a number, 'quarter', 'half' or 'all'
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
        detector.region_mask(self.exclude_regions, shape=(1, 1))  # raises for a name it does not know
        opened = self.prepare_output(input_models, open_models=_is_exposure_file(input_models))
        library = self._as_library(opened)
        members = _members(library)
        self._check(members)
        if _already_subtracted(members):
            log.info("The sky of all %d exposures has been matched and subtracted before.", len(members))
            log.info("Nothing is done.")
        elif self.skymethod in ("match", "global+match"):
            self._match(library, members, cores)
        else:
            self._run_stock(library, members)
        return library if not isinstance(opened, JwstDataModel | ModelContainer) else opened

    def _as_library(self, opened):
        if isinstance(opened, ModelLibrary):
            return opened
        on_disk = not self.in_memory
        if isinstance(opened, ModelContainer):
            opened, on_disk = list(opened), False
        elif isinstance(opened, JwstDataModel):
            opened, on_disk = [opened], False
        elif isinstance(opened, list | tuple):
            files = [{"expname": str(Path(name).resolve()), "exptype": "science"} for name in opened]
            opened = {"products": [{"members": files}]}
        return ModelLibrary(opened, asn_exptypes=["science"], on_disk=on_disk)

    def _check(self, members):
        if not members:
            raise ValueError("the input must hold at least 1 science exposure, got 0")
        for member in members:
            exposures.check_imaging(member.name, member.meta.get("meta.exposure.type"))
            self._check_background(member)
        filters = {}
        for member in members:
            filters.setdefault(member.meta.get("meta.instrument.filter"), []).append(member.name)
        if len(filters) > 1:
            counted = ", ".join(f"{len(names)} of {band} ({names[0]})" for band, names in filters.items())
            raise ValueError(f"exposures matched with each other must be of one filter, got {counted}")
        if self.grouping == "visit":
            for member in members:
                if not member.meta.get("meta.observation.visit_id"):
                    raise ValueError(f"grouping='visit' needs VISIT_ID, but {member.name} has none")
        if self.skymethod == "user":
            _check_skylist(self.skylist, members)

    def _check_background(self, member):
        level, subtracted = (member.meta.get(f"meta.background.{key}") for key in ("level", "subtracted"))
        if subtracted is None and level is not None:
            raise ValueError(
                f"Background level of {member.name} was set to {level} but the 'subtracted' property is "
                "undefined (None)."
            )
        if subtracted is not None and level is None:
            raise ValueError(
                f"Background level of {member.name} was subtracted but the 'level' property is undefined "
                "(None)."
            )
        if subtracted is not None and bool(subtracted) != self.subtract:
            raise ValueError(
                f"'subtract' step's specification ({self.subtract}) is inconsistent with background info "
                f"already present in image '{member.name}' meta ({subtracted})."
            )

    def _run_stock(self, library, members):
        """Let ``skymatch`` do what it does with one statistic per image."""
        super().process(library)
        with library:
            for member in members:
                model = library.borrow(member.index)
                self._record(model, model.meta.cal_step.skymatch)
                library.shelve(model, member.index)

    def _match(self, library, members, cores):
        if len(members) == 1:
            log.warning("There is 1 exposure, %s: nothing to match its sky with.", members[0].name)
        with workers.open_map(cores) as run:
            self._resample(library, members, run)
            matched = [member for member in members if member.cells is not None]
            polynomial = self._polynomial(matched)
            found = matching.match(
                [member.cells for member in matched],
                polynomial=polynomial,
                clipping=Clipping(self.skystat, self.nclip, self.lsigma, self.usigma, self.binwidth),
                visit=_visit_numbers(matched),
                by_visit=self.grouping == "visit",
                run=run,
            )
        self._assign_levels(members, matched, found.levels)
        self._report(matched, found)
        self._write_back(library, members, polynomial, found)
        self._save_products(library, members, matched, polynomial, found)

    def _resample(self, library, members, run):
        """Read every exposure once, one at a time, and keep its cells."""
        grid = exposures.sky_grid(_corners(members), self.grid_scale)

        def tasks():
            for member in members:
                model = library.borrow(member.index)
                try:
                    yield self._task(member, model, grid)
                finally:
                    library.shelve(model, member.index, modify=False)

        with library:
            for number, (member, cells) in enumerate(
                zip(members, run(_resample_task, tasks()), strict=True), start=1
            ):
                member.cells = cells
                count = 0 if cells is None else np.count_nonzero(cells.seen)
                log.info("%d/%d %s: %d cells of the sky", number, len(members), member.name, count)

    def _task(self, member, model, grid):
        if model.meta.wcs is None:
            member.problem = "has no WCS (was assign_wcs run?)"
            return None
        excluded = exposures.excluded_pixels(
            model, dqbits=self.dqbits, lower=self.lower, upper=self.upper, regions=self.exclude_regions
        )
        if excluded.all():
            member.problem = "has no usable pixel"
            return None
        if self.skymethod == "global+match":
            statistics = SkyStats(
                self.skystat, self.lower, self.upper, self.nclip, self.lsigma, self.usigma, self.binwidth
            )
            member.sky = statistics(model.data[~excluded])[0]
        image = np.where(excluded, np.nan, model.data).astype(np.float32)
        return image, PixelMap(*exposures.pixel_mesh(model, grid), exposures.frame_origin(model))

    def _polynomial(self, matched):
        """Span the polynomial over the part of the imager that is used, or over what else there is."""
        low, high = np.full(2, np.inf), np.full(2, -np.inf)
        for member in matched:
            for axis, position in enumerate((member.cells.x, member.cells.y)):
                low[axis] = min(low[axis], position[member.cells.seen].min())
                high[axis] = max(high[axis], position[member.cells.seen].max())
        rows, columns = np.nonzero(detector.region_mask("imager"))
        imager = np.array([[columns.min(), rows.min()], [columns.max(), rows.max()]], float)
        inside = np.maximum(low, imager[0]), np.minimum(high, imager[1])
        if np.all(inside[0] < inside[1]):
            low, high = inside
        elif not matched:
            low, high = imager
        return DetectorPolynomial(self.detector_order, tuple((low + high) / 2), tuple((high - low) / 2))

    def _assign_levels(self, members, matched, levels):
        """Set the free constant of each piece, and with it every member's level."""
        reference = np.min if self.match_down else np.max
        for piece in range(levels.component.max(initial=-1) + 1):
            inside = np.flatnonzero(levels.component == piece)
            zero = reference(levels.level[inside])
            for k in inside:
                matched[k].level = float(levels.level[k] - zero)
        if self.skymethod == "global+match":
            lowest = min(m.sky - (m.level or 0.0) for m in members if m.sky is not None)
            for member in members:
                member.level = (member.level or 0.0) + lowest

    def _write_back(self, library, members, polynomial, found):
        background = found.levels.background if self.subtract_detector_background else None
        with library:
            for member in members:
                model = library.borrow(member.index)
                if member.level is None:
                    log.warning("%s %s: it is left as it is.", member.name, member.problem)
                    self._record(model, "SKIPPED")
                else:
                    self._apply(model, member, polynomial, background)
                    self._record(model, "COMPLETE")
                library.shelve(model, member.index)

    def _apply(self, model, member, polynomial, background):
        before = model.meta.background.level if model.meta.background.subtracted else 0.0
        model.meta.background.method = self.skymethod
        model.meta.background.level = before + member.level
        model.meta.background.subtracted = self.subtract
        if self.subtract:
            model.data = model.data - np.float32(member.level)
        if background is not None:
            image = polynomial.image(background, model.data.shape, exposures.frame_origin(model))
            model.data = model.data - image
            model.meta.background.detector_subtracted = True

    def _record(self, model, status):
        model.meta.cal_step.skymatch = status
        model.meta.cal_step.pixel_skymatch = status
        if status == "COMPLETE":
            exposures.add_history(
                model,
                f"PixelSkyMatchStep: skymethod={self.skymethod} grouping={self.grouping} "
                f"subtract={self.subtract} detector_order={self.detector_order} "
                f"subtract_detector_background={self.subtract_detector_background} "
                f"skystat={self.skystat} grid_scale={self.grid_scale} "
                f"level={model.meta.background.level}",
            )

    def _report(self, matched, found):
        levels, order = found.levels, self.detector_order
        unit = matched[0].meta.get("meta.bunit_data", "") if matched else ""
        pieces = levels.component.max(initial=-1) + 1
        if order and len(found.pairs) and not found.n_patterns:
            log.warning(
                "The detector background is off: shifts between exposures are too small to show it "
                "(any pattern would leave less than %g %% of itself in the differences).",
                100 * matching.MIN_VISIBILITY,
            )
        elif found.n_patterns:
            log.info(
                "Detector background: %d of %d patterns of order %d are seen through the dithers; rms %.4g %s",
                found.n_patterns,
                len(levels.background),
                order,
                np.sqrt(np.sum(levels.background**2)),
                unit,
            )
        for piece in range(pieces):
            inside = np.flatnonzero(levels.component == piece)
            if pieces > 1:
                log.warning("Piece %d of %d overlaps no other; its level is its own:", piece + 1, pieces)
            for k in inside:
                log.info(
                    "   %s: sky level %.6g +- %.2g %s", matched[k].name, matched[k].level, levels.error[k], unit
                )
        log.info(
            "Matched %d exposures through %d overlaps; residuals are %.2g times their errors (rms %.3g %s)",
            np.count_nonzero(levels.component >= 0),
            len(found.pairs),
            levels.scatter,
            np.sqrt(np.mean(levels.residual**2)) if len(levels.residual) else 0.0,
            unit,
        )
        for (i, j), residual, share in zip(found.pairs, levels.residual, levels.pair_weight, strict=True):
            if share < _DOUBTFUL:
                log.warning(
                    "The overlap of %s and %s is off by %.3g %s and counts %.2g %% of its weight.",
                    matched[i].name,
                    matched[j].name,
                    residual,
                    unit,
                    100 * share,
                )

    def _save_products(self, library, members, matched, polynomial, found):
        product = library.asn["products"][0].get("name") or Path(members[0].name).stem
        if self.save_levels:
            for suffix, table in (
                ("sky_levels", _level_table(members, matched, found)),
                ("sky_pairs", _pair_table(matched, found)),
            ):
                path = self.make_output_path(basepath=product, suffix=suffix, ext="ecsv")
                table.write(path, format="ascii.ecsv", overwrite=True)
                log.info("Saved %s", path)
        if self.save_detector_background:
            if not found.n_patterns:
                log.warning("There is no detector background to save.")
                return
            path = self.make_output_path(basepath=product, suffix="detector_background", ext="fits")
            _background_model(members[0].meta, polynomial, found.levels).save(path)
            log.info("Saved %s", path)


def _is_exposure_file(given):
    return isinstance(given, str | Path) and Path(given).suffix.lower() in (".fits", ".asdf")


def _members(library):
    """List the exposures in the order of their names, so that the order given changes nothing."""
    listed = []
    for index, entry in enumerate(library.asn["products"][0]["members"]):
        meta = library.read_metadata(index)
        listed.append(_Member(index, Path(entry["expname"]).name, entry["group_id"], meta))
    return sorted(listed, key=lambda member: (member.name, member.index))


def _already_subtracted(members):
    def subtracted(meta):
        touched = meta.get("meta.background.subtracted") or meta.get("meta.background.detector_subtracted")
        return meta.get("meta.cal_step.pixel_skymatch") == "COMPLETE" and touched

    return all(subtracted(member.meta) for member in members)


def _corners(members):
    """Corners of all exposures from S_REGION, or their reference points where that is missing."""
    corners = []
    for member in members:
        region = member.meta.get("meta.wcsinfo.s_region")
        reference = [member.meta.get(f"meta.wcsinfo.{key}") for key in ("ra_ref", "dec_ref")]
        if region:
            corners.append(exposures.parse_s_region(region))
        elif None not in reference:
            corners.append(np.array([reference], float))
    if not corners:
        raise ValueError(f"S_REGION or RA_REF and DEC_REF are needed, but {members[0].name} has none")
    return np.concatenate(corners)


def _visit_numbers(matched):
    """Number the visits; an exposure without VISIT_ID is a visit of its own."""
    visits = [member.meta.get("meta.observation.visit_id") or member.name for member in matched]
    return np.unique(visits, return_inverse=True)[1]


def _resample_task(task):
    return None if task is None else sky_cells.resample(*task)


def _check_skylist(path, members):
    """Refuse a list of sky values that does not name every exposure once."""
    if path is None:
        raise ValueError('skymethod set to "user", but no sky value file provided.')
    lines = [line.split("#")[0].split() for line in Path(path).read_text().splitlines()]
    entries = [line for line in lines if line]
    wrong = [" ".join(line) for line in entries if len(line) != 2 or not _is_number(line[1])]
    if wrong:
        raise ValueError(f"each line of skylist {path} must be a name and a number, got {wrong[0]!r}")
    listed = sorted(remove_suffix(Path(name).stem)[0] for name, _ in entries)
    wanted = sorted(remove_suffix(Path(member.name).stem)[0] for member in members)
    if listed != wanted:
        missing, extra = sorted(set(wanted) - set(listed)), sorted(set(listed) - set(wanted))
        raise ValueError(
            f"skylist {path} must name each of the {len(wanted)} exposures once, got {len(listed)} "
            f"entries; missing: {missing}, unknown: {extra}"
        )


def _is_number(text):
    try:
        return np.isfinite(float(text))
    except ValueError:
        return False


def _level_table(members, matched, found):
    place = {member.index: k for k, member in enumerate(matched)}
    partners = np.bincount(np.array(list(found.pairs), int).ravel(), minlength=len(matched))
    unit = u.Unit(members[0].meta.get("meta.bunit_data") or "")
    rows = []
    for member in members:
        k = place.get(member.index)
        solved = k is not None and found.levels.component[k] >= 0
        rows.append(
            (
                member.name,
                member.meta.get("meta.observation.visit_id") or "",
                member.group,
                found.levels.component[k] if solved else -1,
                np.nan if member.level is None else member.level,
                found.levels.error[k] if solved else np.nan,
                partners[k] if solved else 0,
            )
        )
    names = ("exposure", "visit", "group", "component", "level", "error", "overlaps")
    return QTable(rows=rows, names=names, units={"level": unit, "error": unit})


def _pair_table(matched, found):
    unit = u.Unit(matched[0].meta.get("meta.bunit_data") or "") if matched else u.Unit("")
    pairs = list(found.pairs.items())
    columns = {
        "i": [matched[i].name for (i, _), _ in pairs],
        "j": [matched[j].name for (_, j), _ in pairs],
        "difference": [pair.difference for _, pair in pairs] * unit,
        "error": [pair.error for _, pair in pairs] * unit,
        "cells": [pair.n_cells for _, pair in pairs],
        "residual": found.levels.residual * unit,
        "weight": found.levels.pair_weight,
    }
    return QTable(columns)


def _background_model(meta, polynomial, levels):
    terms = polynomial.evaluate(*np.indices(detector.SHAPE, np.float32)[::-1]).reshape(len(levels.background), -1)
    variance = np.einsum("kp,kl,lp->p", terms, levels.background_covariance, terms, optimize=True)
    model = ImageModel(
        data=polynomial.image(levels.background, detector.SHAPE),
        err=np.sqrt(variance).reshape(detector.SHAPE).astype(np.float32),
    )
    model.meta.instrument.name = "MIRI"
    model.meta.instrument.detector = "MIRIMAGE"
    model.meta.instrument.filter = meta.get("meta.instrument.filter")
    model.meta.bunit_data = model.meta.bunit_err = meta.get("meta.bunit_data")
    return model
