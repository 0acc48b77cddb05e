"""Repair or flag hot and dead pixels where no source is."""

import logging

import numpy as np
from jwst.datamodels import ModelContainer
from stdatamodels.jwst.datamodels import JwstDataModel

from miri_steps import detector, workers
from miri_steps.algorithms import neighbours, pixel_repair
from miri_steps.steps import hot_pixel_look, hot_pixel_planes, hot_pixel_sources
from miri_steps.steps.base import SpreadStep, as_library, check_exposures, file_of, list_exposures
from miri_steps.steps.hot_pixel_look import Look
from miri_steps.steps.hot_pixel_members import Member, group_by_frame

__all__ = ["MedianHotPixelStep"]

# Only loggers below "stpipe" are heard inside the stock pipelines.
log = logging.getLogger(f"stpipe.{__name__}")

# Parameters that change the numbers, for the HISTORY entry.
_RECORDED = (
    *("mode", "sigma", "min_exposures", "window", "min_good", "max_cluster", "fill_nan"),
    *("source_sigma", "source_mask", "source_catalog", "source_radius"),
)
# Side of the square from which a pixel beside a source is replaced [pixel], and the good neighbours it needs.
_EDGE_WINDOW = 3, 5


class MedianHotPixelStep(SpreadStep):
    """
    Replace or flag pixels that are hot or dead, where no source is.

    Think of a starry sky seen through a dirty window: stars are round and move when you do,
    specks are sharp and stay. A pixel is bad if it stands out of its surroundings, is sharper than a
    star can be, and, where there are several exposures of the same pixels, does so in several of
    them.

    Notes
    -----
    Bad pixels inside sources are left as they are, in every mode. So are bad pixels that touch
    too many others.
    """

    class_alias = "median_hot_pixel"

    spec = """
        mode = option('replace', 'flag', default='replace') # Replace bad pixels by the median of their neighbours, or only flag them
        sigma = float(min=0.5, default=5.0) # How far a pixel must stand out of its surroundings [standard deviations]
        min_exposures = integer(min=1, default=None) # Exposures of the same pixels in which a bad pixel must stand out; by default a third of those that can tell, at least 2

        # How pixels are replaced:
        window = integer(min=3, default=5) # Side of the square whose median replaces a pixel, odd [pixel]
        min_good = integer(min=1, default=8) # Good neighbours inside the window that a pixel must have to be replaced
        max_cluster = integer(min=1, default=9) # Largest group of touching bad pixels that is replaced [pixel]
        fill_nan = boolean(default=True) # Fill holes (NaN or DO_NOT_USE) inside the imager field too?

        # What is protected:
        source_sigma = float(min=0.5, default=5.0) # Smoothed light above which a pixel belongs to a source [standard deviations of the pixel]
        source_mask = string(default=None) # FITS image that is not 0 on sources, on the sky or in the frame of the exposures, to use instead
        source_catalog = string(default=None) # Table of sources with sky_centroid or RA and Dec, to use instead
        source_radius = float(min=0, default=1.0) # Radius around each source of the table [arcsec]

        # Results and resources:
        save_mask = boolean(default=False) # Save a map of the bad pixels of each detector and subarray?
        in_memory = boolean(default=True) # Keep all exposures in memory?
    """  # noqa: E501

    def process(self, input_models):
        """
        Find bad pixels, and replace or flag them.

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
            If a parameter makes no sense, or an exposure is not MIRI imaging, has no usable pixel or
            is not whole.
        """
        cores = workers.count(self.maximum_cores)
        named = self._check_parameters()
        opened = self.open_input(input_models)
        library = as_library(opened, in_memory=self.in_memory)
        members = list_exposures(library, Member)
        check_exposures(members)
        self.name_products([member.path for member in members])
        todo = [member for member in members if not member.is_done]
        for member in members:
            if member.is_done:
                log.warning("Nothing is done to %s: it was done before. It takes no part.", member.name)
        groups = group_by_frame(todo, self.min_exposures)
        for group in groups:
            self._warn_of_small_dithers(group)
        with workers.open_map(min(cores, max(1, len(todo))), self.executor) as run:
            self._look(library, groups, named, run)
        self._write_back(library, groups)
        self._save_masks(library, groups)
        return opened if isinstance(opened, JwstDataModel | ModelContainer) else library

    def _check_parameters(self):
        """Refuse what makes no sense, and read the sources that are given."""
        if self.window % 2 == 0:
            raise ValueError(f"window must be odd, got {self.window}")
        if self.min_good > self.window**2 - 1:
            raise ValueError(
                f"min_good must be at most the {self.window**2 - 1} neighbours in a window of {self.window}, "
                f"got {self.min_good}"
            )
        named = hot_pixel_sources.name(self.source_mask, self.source_catalog, self.source_radius)
        hot_pixel_sources.read(named)
        return named

    def _warn_of_small_dithers(self, group):
        """Say when sources stay where they are from exposure to exposure."""
        reach, width = group.dither_reach(), max(detector.FWHM[member.band] for member in group.members)
        if len(group.members) > 1 and reach is not None and reach < width * detector.PIXEL_SCALE:
            log.warning(
                "%d exposures (%s ...) are dithered by %.2f arcsec at the most, less than the width of a "
                "star: sources stay on their pixels, and only their shape tells them from bad pixels.",
                *(len(group.members), group.members[0].name, reach),
            )

    def _look(self, library, groups, named, run):
        """Read every exposure once, and keep what stands out in it."""
        todo = [(group, member) for group in groups for member in group.members]
        tasks = (self._task(library, member, named) for _, member in todo)
        with library:
            for number, ((group, member), seen) in enumerate(
                zip(todo, run(hot_pixel_look.look, tasks), strict=True), start=1
            ):
                found, protected = seen.outstanding(), seen.protected.mask()
                free = seen.usable.mask() & ~protected
                group.add(member, found, free)
                member.protected, member.usable, member.hole = seen.protected, seen.usable, seen.hole
                log.info(
                    "%d/%d %s: %d pixels stand out alone above, %d below; sources cover %.1f%%",
                    *(number, len(todo), member.name, (found.hot & free).sum(), (found.dead & free).sum()),
                    100 * protected.mean(),
                )

    def _task(self, library, member, named):
        """Describe what is to be done to one exposure: by its file where it has one."""
        exposure, covered = file_of(library, member), None
        if exposure is None:
            model = library.borrow(member.index)
            try:
                exposure, covered = hot_pixel_look.read(model, named)
            finally:
                library.shelve(model, member.index, modify=False)
        return Look(
            *(member.name, exposure, covered, named),
            fwhm=detector.FWHM[member.band],
            sigma=self.sigma,
            source_sigma=self.source_sigma,
            window=self.window,
        )

    def _write_back(self, library, groups):
        with library:
            for group in groups:
                for member in group.members:
                    model = library.borrow(member.index)
                    if self.mode == "flag":
                        self._flag(model, member, group)
                    else:
                        self._replace(model, member, group)
                    self._record(model)
                    library.shelve(model, member.index)

    def _flag(self, model, member, group):
        hot, dead = group.bad(member)
        free = member.usable.mask() & ~member.protected.mask()
        hot_pixel_planes.flag(model, hot & free, dead & free)
        log.info(
            "%s: %d hot and %d dead pixels found, %d flagged, %d left in sources",
            *(member.name, hot.sum(), dead.sum(), ((hot | dead) & free).sum(), ((hot | dead) & ~free).sum()),
        )

    def _replace(self, model, member, group):
        hot, dead = group.bad(member)
        usable, protected = member.usable.mask(), member.protected.mask()
        hot, dead = hot & usable, dead & usable
        hole = member.hole.mask() & self.fill_nan
        bad = hot | dead | hole
        free = pixel_repair.small_clusters(bad, self.max_cluster) & ~protected
        # What stands out in this exposure alone (a cosmic ray) says nothing about its neighbours.
        valid = usable & ~bad & ~member.hot.mask() & ~member.dead.mask()
        # Beside a source the light of the nearest pixels is the better guess.
        edge = neighbours.with_touching(protected, corners=True)
        replaced = np.zeros_like(free)
        for part, good, window, min_good in (
            (free & ~edge, valid & ~protected, self.window, self.min_good),
            (free & edge, valid, *_EDGE_WINDOW),
        ):
            replaced |= hot_pixel_planes.repair(
                model, hot & part, dead & part, hole & part, good, window=window, min_good=min_good
            )
        log.info(
            "%s: %d hot and %d dead pixels and %d holes found, %d repaired, %d left (%d in sources, %d in "
            "large clusters, %d without enough good neighbours)",
            *(member.name, hot.sum(), dead.sum(), hole.sum(), replaced.sum(), (bad & ~replaced).sum()),
            *((bad & protected).sum(), (bad & ~protected & ~free).sum(), (free & ~replaced).sum()),
        )

    def _record(self, model):
        model.meta.cal_step.median_hot_pixel = "COMPLETE"
        self.write_history(model, _RECORDED)

    def _save_masks(self, library, groups):
        if not self.save_mask or not groups:
            return
        first = groups[0].members[0].path.stem
        product = library.asn["products"][0].get("name") or self.remove_suffix(first)[0]
        for group in groups:
            window = group.members[0].meta.get("meta.subarray.name") or "frame"
            name = f"{product}_{group.members[0].frame[0]}_{window}".lower()
            path = self.make_output_path(basepath=name, suffix="hot_pixels", ext="fits")
            hot_pixel_planes.map_model(group).save(path)
            log.info("Saved %s", path)
