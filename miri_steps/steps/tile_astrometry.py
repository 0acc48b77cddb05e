"""Give all exposures of a tile one correction of their pointing."""

import logging
from dataclasses import replace
from importlib.util import find_spec

from jwst.datamodels import ModelContainer
from stdatamodels.jwst.datamodels import JwstDataModel

from miri_steps import workers
from miri_steps.steps import (
    reference_stars,
    tile_corrections,
    tile_direct,
    tile_look,
    tile_measure,
    tile_products,
    tile_wcs,
)
from miri_steps.steps.base import (
    SpreadStep,
    as_library,
    check_exposures,
    file_of,
    list_exposures,
    table_path,
)
from miri_steps.steps.tile_look import Look
from miri_steps.steps.tile_members import Member, into_tiles

__all__ = ["TileAstrometryStep"]

# Only loggers below "stpipe" are heard inside the stock pipelines.
log = logging.getLogger(f"stpipe.{__name__}")

# Parameters that change the numbers, for the HISTORY entry.
_RECORDED = (
    *("corrections", "reference_catalog", "group_by", "fitgeometry", "fallback", "sigma", "max_scatter"),
    *("epoch", "max_magnitude", "magnitude_column", "snr_threshold", "search_radius", "tolerance"),
    "min_stars",
)


class TileAstrometryStep(SpreadStep):
    """
    Move all exposures of a tile together, by one correction that was measured well.

    Think of slides in a frame: the telescope puts the exposures taken on one guide star into the frame to a
    few milliarcseconds, and it is the frames that hang askew. ``tweakreg`` takes every slide out and
    pins it where its few stars say. This Step puts the slides back and moves the frames.

    Notes
    -----
    The corrections are those that ``tweakreg`` left in the exposures, averaged; or those of a table
    (``corrections``), made from another filter; or measured anew against a catalogue
    (``reference_catalog``). A tile that none of these knows well keeps the WCS it came with.
    """

    class_alias = "tile_astrometry"

    spec = """
        corrections = string(default=None) # Table of tile corrections, as save_corrections writes it, to apply instead of measuring
        reference_catalog = string(default=None) # Table of stars with RA and Dec to measure the tiles against, instead of averaging what tweakreg found
        group_by = option('visit_guide_star', 'guide_star', 'visit', 'observation', default='visit_guide_star') # What the exposures of a tile have in common
        fitgeometry = option('shift', 'rshift', default='shift') # Correct tiles by a shift, or by a shift and a rotation where there are enough stars
        fallback = option('observation', 'guide_star', 'none', default='observation') # Where to look for a correction if a tile has none: other tiles on its guide star, then those of its observation

        # How exposures are averaged:
        sigma = float(min=1, default=3.0) # How far the fit of an exposure may be from those of its tile, in both axes jointly [standard deviations]
        max_scatter = float(min=0, default=0.1) # Scatter of the exposures of a tile above which their mean means nothing [arcsec]

        # How tiles are measured against reference_catalog:
        epoch = float(default=None) # Epoch of its positions [Julian year]; by default what the table says
        max_magnitude = float(default=None) # Faintest magnitude of its stars to use [mag]
        magnitude_column = string(default=None) # Its column with the magnitude; by default one of the usual names
        snr_threshold = float(min=3, default=10.0) # How bright a star in an exposure must be [signal to noise]
        search_radius = float(min=0.01, default=2.5) # Largest shift to look for [arcsec]
        tolerance = float(min=0.01, default=0.2) # How far a star may be from its reference once shifted [arcsec]
        min_stars = integer(min=2, default=3) # Matched stars that a tile must have

        # Results and resources:
        save_corrections = boolean(default=False) # Save the table of corrections?
        save_figure = boolean(default=False) # Save a figure of the corrections?
        in_memory = boolean(default=True) # Keep all exposures in memory?
    """  # noqa: E501

    def process(self, input_models):
        """
        Find the correction of each tile, and apply it to its exposures.

        Parameters
        ----------
        input_models : str, Path, dict, list, ImageModel, ModelContainer or ModelLibrary
            An association, exposures, or their file names.

        Returns
        -------
        ModelLibrary, ModelContainer or ImageModel
            Open models in the container they came in, copied; a library for everything else.

        Raises
        ------
        FileNotFoundError
            If a file is missing.
        ValueError
            If a parameter makes no sense, a table lacks what it needs, or an exposure is not MIRI imaging
            or does not say to which tile it belongs.
        """
        cores = workers.count(self.maximum_cores)
        rows, reference = self._read_tables()
        opened = self.open_input(input_models)
        library = as_library(opened, in_memory=self.in_memory)
        members = list_exposures(library, Member)
        check_exposures(members)
        self.name_products([member.path for member in members])
        tiles = into_tiles(members, self.group_by)
        self._look(library, members, reference, cores)
        if rows is None:
            rows = self._measure(tiles, reference)
        self._choose(tiles, rows)
        self._write_back(library, members)
        self._save(library, tiles, rows)
        return opened if isinstance(opened, JwstDataModel | ModelContainer) else library

    def _read_tables(self):
        """Read the corrections or the reference stars, if there are any, and refuse what cannot end well."""
        if self.save_figure and not find_spec("matplotlib"):
            raise ModuleNotFoundError("save_figure needs matplotlib: pip install miri-steps[report]")
        if self.corrections and self.reference_catalog:
            raise ValueError("corrections and reference_catalog must not be given together")
        if self.corrections:
            return tile_corrections.read_table(table_path(self.corrections), self.group_by), None
        if self.reference_catalog:
            return None, reference_stars.read(
                table_path(self.reference_catalog),
                epoch=self.epoch,
                max_magnitude=self.max_magnitude,
                magnitude_column=self.magnitude_column,
            )
        return None, None

    def _look(self, library, members, reference, cores):
        """Read the correction that every exposure has, or its stars."""
        # What is in memory and whose stars are not wanted has nothing for others to do.
        executor = self.executor
        if not reference and not library.on_disk:
            cores, executor = 1, None
        tasks = (self._task(library, member, reference) for member in members)
        with library, workers.open_map(min(cores, len(members)), executor) as run:
            for number, (member, seen) in enumerate(
                zip(members, run(tile_look.look, tasks), strict=True), start=1
            ):
                pointing, stars = seen
                if pointing is not None:
                    self._note(member, pointing)
                    member.detected = stars
                elif stars is not None:
                    member.detected = self._locate(library, member, stars)
                log.info("%d/%d %s: %s", number, len(members), member.name, member.summary())

    def _task(self, library, member, reference):
        """Describe what is to be done to one exposure: by its file where it has one."""
        task = Look(
            *(member.name, file_of(library, member), member.group, member.lacks_reference),
            averages=not (self.corrections or reference),
            snr=self.snr_threshold if reference else None,
        )
        if task.exposure is not None:
            return task
        model = library.borrow(member.index)
        try:
            pointing = tile_look.read(model, task)
            self._note(member, pointing)
            return replace(task, exposure=tile_direct.take(model)) if reference and pointing.is_open else task
        finally:
            library.shelve(model, member.index, modify=False)

    def _locate(self, library, member, found):
        """Say where on the sky the stars of an exposure in memory are."""
        model = library.borrow(member.index)
        try:
            return tile_direct.locate(model, found, wcs=tile_wcs.uncorrected(model.meta.wcs))
        finally:
            library.shelve(model, member.index, modify=False)

    def _note(self, member, pointing):
        """Keep what an exposure says of its pointing, and why its own correction does not count."""
        member.is_fixed, member.found = pointing.is_fixed, pointing.found
        member.stored, member.stars = pointing.stored, pointing.stars
        if pointing.is_fixed:
            member.problem = "it lacks a WCS with a v2v3 frame, or RA_REF, DEC_REF, V2_REF, V3_REF, ROLL_REF"
        elif pointing.stored:
            member.problem = "it was done before"
        elif not (self.corrections or self.reference_catalog):
            member.problem = _fit_problem(member)

    def _measure(self, tiles, reference):
        """Find the correction of each tile, filter by filter."""
        if not reference:
            tile_measure.reject_shared([member for tile in tiles for member in tile.members])
        rows = []
        for tile in tiles:
            done = [member for member in tile.members if member.stored]
            if done:
                # The others of the tile must stay with those that were done before.
                found = [tile_measure.recall(tile, done)] if len(done) < len(tile.members) else []
            else:
                found = [self._measure_one(tile, *each, reference) for each in tile.by_filter().items()]
            tile_products.log_tile(found, self.max_scatter)
            rows += found
        return rows

    def _measure_one(self, tile, band, members, reference):
        if reference is None:
            return tile_measure.average_fits(
                *(tile, band, members),
                rotates=self.fitgeometry == "rshift",
                sigma=self.sigma,
                max_scatter=self.max_scatter,
            )
        return tile_measure.fit_stars(
            *(tile, band, members, reference),
            search_radius=self.search_radius,
            tolerance=self.tolerance,
            min_stars=self.min_stars,
            fitgeometry=self.fitgeometry,
            sigma=self.sigma,
        )

    def _choose(self, tiles, rows):
        """Give every exposure that needs one the correction of its tile."""
        for tile in tiles:
            todo = [member for member in tile.members if not member.is_fixed]
            if not self.corrections:
                todo = [member for member in todo if not member.stored]
            if not todo:
                continue
            chosen, source = tile_corrections.choose(
                tile, rows, fallback=self.fallback, sigma=self.sigma, max_scatter=self.max_scatter
            )
            if chosen and source != tile_corrections.OWN:
                log.warning(
                    "Tile %s has no good correction of its own and gets that of the %s.", tile.name, source
                )
            for member in todo:
                member.chosen, member.source = chosen, source

    def _write_back(self, library, members):
        with library:
            for member in members:
                if member.stored and (member.chosen is None or member.stored.is_close(member.chosen)):
                    log.warning("Nothing is done to %s: it was done before.", member.name)
                    continue
                model = library.borrow(member.index)
                if member.chosen is None:
                    log.warning("%s is left as it is: %s.", member.name, member.source or member.problem)
                    model.meta.cal_step.tile_astrometry = "SKIPPED"
                else:
                    self._apply(model, member)
                library.shelve(model, member.index)
        corrected = sum(member.chosen is not None or member.stored is not None for member in members)
        level = logging.INFO if corrected == len(members) else logging.WARNING
        log.log(level, "%d of %d exposures have the correction of a tile.", corrected, len(members))

    def _apply(self, model, member):
        tile_wcs.correct(model, member.chosen)
        tile_wcs.write_record(model, member.chosen)
        model.meta.cal_step.tile_astrometry = "COMPLETE"
        east, north = member.chosen.shift
        found = f"shift_east={east:.6f}", f"shift_north={north:.6f}", f"rotation={member.chosen.rotation:.3e}"
        self.write_history(model, _RECORDED, *found, f"source={member.source}")
        log.info("%s: moved by %+.4f %+.4f arcsec (East, North): %s", member.name, east, north, member.source)

    def _save(self, library, tiles, rows):
        first = tiles[0].members[0].path.stem
        product = library.asn["products"][0].get("name") or self.remove_suffix(first)[0]
        done = [member.name for tile in tiles for member in tile.members if member.stored]
        if self.save_corrections and (self.corrections or done):
            # A table of what is left would take the place of the one of all.
            why = f"{len(done)} exposures were done before" if done else "none were measured"
            log.warning("No corrections are saved: %s.", why)
        elif self.save_corrections:
            for suffix, table in (
                ("tiles", tile_corrections.tile_table(rows, self.group_by)),
                ("tile_exposures", tile_products.exposure_table(tiles, rows)),
            ):
                path = self.make_output_path(basepath=product, suffix=suffix, ext="ecsv")
                table.write(path, format="ascii.ecsv", overwrite=True)
                log.info("Saved %s", path)
        if self.save_figure:
            path = self.make_output_path(basepath=product, suffix="tiles", ext="png")
            tile_products.draw(tiles, rows, self.group_by).savefig(path)
            log.info("Saved %s", path)


def _fit_problem(member):
    """Say why the correction that tweakreg left in an exposure does not count."""
    tweakreg = member.meta.get("meta.cal_step.tweakreg")
    if tweakreg != "COMPLETE":
        return f"tweakreg is {tweakreg or 'not done'}"
    return "" if member.found else "tweakreg left it as it was: its reference, or a failed fit"
