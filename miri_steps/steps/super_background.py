"""Build the background fixed to the detector out of dithered exposures, and subtract it."""

import logging
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from jwst.datamodels import ModelContainer, ModelLibrary
from stdatamodels.jwst.datamodels import JwstDataModel

from miri_steps import detector, workers
from miri_steps.algorithms import exposure_levels
from miri_steps.steps import super_background_products as products
from miri_steps.steps.base import (
    SpreadStep,
    as_library,
    check_exposures,
    file_of,
    is_exposure_file,
    library_folder,
    list_exposures,
    read_association,
)
from miri_steps.steps.sky_masks import read_mask_image, read_regions
from miri_steps.steps.sky_members import corners
from miri_steps.steps.super_background_build import Builder, Recipe, imager_pixels
from miri_steps.steps.super_background_members import Member, group_by_background
from miri_steps.steps.super_background_rules import MaskRules, find_sources, usable_pixels
from miri_steps.steps.super_background_subtract import subtract, whole

__all__ = ["SuperBackgroundStep"]

# Only loggers below "stpipe" are heard inside the stock pipelines.
log = logging.getLogger(f"stpipe.{__name__}")

# Where more of an exposure has no background of its own, the log warns.
_MOST_FILLED = 0.25

# Parameters that change the numbers, for the HISTORY entry.
_RECORDED = (
    *("scaling", "statistic", "clip_sigma", "leave_one_out", "min_separation"),
    *("min_exposures", "min_samples", "fallback"),
    *("preserve_level", "passes", "max_days", "background_files", "background_file"),
    *("source_sigma", "small_source", "dilate", "mask_image", "regions", "exclude_above", "exclude_delta"),
)


class SuperBackgroundStep(SpreadStep):
    """
    Subtract the background that is fixed to the detector, built from the exposures themselves.

    Think of looking out through a dirty window while you walk: the view moves, the dirt stays. The
    median of many looks, with everything bright outside painted over, is a picture of the dirt
    alone.

    Exposures of one filter, detector, subarray, readout pattern and exposure time are a group.
    Their sources are masked, their levels found on the unmasked pixels, and for each exposure
    the others are combined pixel by pixel and subtracted.

    Notes
    -----
    Light that stays on the same pixels in all exposures cannot be told from background: dithers
    must move the sky by more than the sources are wide, or a mask or a separate sky set must help.
    """

    class_alias = "super_background"

    spec = """
        # Which exposures share a background:
        min_exposures = integer(min=2, default=5) # Exposures that a background is built from at least; smaller groups are left as they are
        max_days = float(min=0, default=None) # Longest time between the first and the last exposure of a group [d]; no limit by default
        leave_one_out = boolean(default=True) # Build the background of each exposure from the others only?
        min_separation = float(min=0, default=1.5) # Others pointed closer than this are left out too [FWHM of a star]
        background_files = force_list(default=list()) # Exposures of empty sky to build the background from, as members of exptype background do
        background_file = force_list(default=list()) # Backgrounds saved by another run, to use instead of building one

        # How it is built:
        scaling = option('additive', 'multiplicative', 'both', 'none', default='additive') # What differs from exposure to exposure: a level that is added, a factor, both, or nothing
        statistic = option('clip', 'median', default='clip') # How exposures are combined: mean of what lies within clip_sigma of the median, or median
        clip_sigma = float(min=1, default=3.0) # Clipping limit on both sides [standard deviation]
        min_samples = integer(min=1, default=3) # Samples that a pixel needs, unmasked and not clipped
        fallback = option('smooth', 'flag', default='smooth') # Pixels with fewer get the smooth background around them, or are flagged DO_NOT_USE
        passes = integer(min=1, max=2, default=1) # 2 looks for faint halos in a mosaic of the first result, and builds the background again

        # What is masked:
        source_sigma = float(min=1, default=3.0) # Smoothed light above which a pixel belongs to a source [scatter of the smoothed image]
        small_source = integer(min=1, default=5) # Sources of fewer connected pixels stay in the background
        dilate = float(min=0, default=0.7) # How far masks reach beyond the light that is seen [width of the smoothing kernel]
        mask_image = string(default=None) # Mosaic of the field (i2d), or map of its sources (segm), to take the sources from
        regions = string(default=None) # DS9 region file in sky coordinates: what it covers is masked too
        exclude_above = float(default=None) # Pixels brighter than this are masked too [unit of the data]
        exclude_delta = float(min=0, default=None) # Pixels brighter than this above the level of their exposure are masked too [unit of the data]

        # Results and resources:
        preserve_level = boolean(default=False) # Keep the mean level of each exposure in its data?
        save_background = boolean(default=False) # Save the background of each group, with error and number of samples?
        in_memory = boolean(default=True) # Keep all exposures in memory?
    """  # noqa: E501

    def process(self, input_models):
        """
        Build and subtract the background.

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
            If a parameter makes no sense, or an exposure is not MIRI imaging or not whole.
        """
        cores = workers.count(self.maximum_cores)
        recipe, saved = self._read_parameters()
        skies = self._sky_files(input_models)
        opened = self.open_input(input_models)
        library = as_library(opened, in_memory=self.in_memory, read_apart=("background",))
        sky_library = as_library(skies, in_memory=self.in_memory) if skies else None
        members = self._list(library, sky_library)
        groups = self._group(members, saved)
        source = _Libraries(library, sky_library)
        with self.scratch(library) as folder, workers.open_map(cores, self.executor) as run:
            built = [self._correct(group, library, source, recipe, saved, run, folder) for group in groups]
        # All of them or none: an error in one group must not leave files of another.
        for found in filter(None, built):
            self._save_background(library, *found)
        return opened if isinstance(opened, JwstDataModel | ModelContainer) else library

    # ---- before any work is done

    def _read_parameters(self):
        """Read the files that are named, and put what a background is built by together."""
        if self.background_files and self.background_file:
            raise ValueError(
                "background_files (exposures of empty sky) and background_file (saved backgrounds) must not "
                f"be given together, got {self.background_files} and {self.background_file}"
            )
        image = regions = None
        if self.mask_image:
            image = read_mask_image(self.mask_image, sigma=self.source_sigma, least_area=self.small_source)
        if self.regions:
            regions = read_regions(self.regions)
        rules = MaskRules(
            sigma=self.source_sigma,
            small_source=self.small_source,
            dilate=self.dilate,
            above=self.exclude_above,
            delta=self.exclude_delta,
            image=image,
            regions=regions,
        )
        recipe = Recipe(rules, self.scaling, self.statistic, self.clip_sigma, self.passes)
        return recipe, [products.read_background(path) for path in self.background_file]

    def _sky_files(self, given):
        """Gather the exposures of the sky set: parameter, and members of exptype background."""
        for path in self.background_files:
            if not is_exposure_file(path):
                raise ValueError(f"background_files must be FITS files of exposures, got {path}")
        files = [Path(path) for path in self.background_files]
        if isinstance(given, ModelLibrary):
            association, folder = given.asn, library_folder(given)
        elif isinstance(given, str | Path | dict) and not is_exposure_file(given):
            association, folder = read_association(given)
        else:
            return files
        listed = association["products"][0]["members"]
        files += [folder / entry["expname"] for entry in listed if entry["exptype"] == "background"]
        if files and self.background_file:
            raise ValueError(
                "a sky set and background_file must not be given together, but the association has "
                f"{len(files)} members of exptype background"
            )
        return files

    def _list(self, library, sky_library):
        """List all exposures, and refuse what is none of ours."""
        members = list_exposures(library, Member)
        skies = [] if sky_library is None else list_exposures(sky_library, Member)
        for member in skies:
            member.is_sky = True
        check_exposures(members)
        if sky_library is not None:
            check_exposures(skies)
        self.name_products([member.path for member in members], [member.path for member in skies])
        return members + skies

    def _group(self, members, saved):
        """Group what is to be done, and say of each exposure that cannot be helped why."""
        todo = [member for member in members if not member.is_done]
        for member in members:
            if member.is_done:
                log.warning("Nothing is done to %s: it was done before. It takes no part.", member.name)
        has_skies = any(member.is_sky for member in members)
        groups = [group for group in group_by_background(todo, self.max_days) if group.targets]
        for group in groups:
            group.is_only = len(groups) == 1
        names = [group.file_name for group in groups]
        for k, group in enumerate(groups):
            # Epochs, for instance: one background must not be written over another.
            group.number = names[: k + 1].count(names[k]) if names.count(names[k]) > 1 else None
        for group in groups:
            problem = self._problem(group, has_skies, saved)
            for member in group.targets:
                member.problem = problem
            count = f"{len(group.targets)} exposures"
            if has_skies:
                count += f", {len(group.members) - len(group.targets)} of the sky set"
            log.info("%s: %s%s", group.name, count, f"; {problem}" if problem else "")
        return groups

    def _problem(self, group, has_skies, saved):
        if saved:
            fitting = any(each.fits(group) for each in saved)
            return None if fitting else f"no background_file is of {group.name}"
        n = sum(member.is_sky for member in group.members) if has_skies else len(group.members)
        if n < self.min_exposures:
            kind = "of the sky set " if has_skies else ""
            return f"min_exposures is {self.min_exposures}, but {n} {kind}are of {group.name}"
        return None

    # ---- the work

    def _correct(self, group, library, source, recipe, saved, run, folder):
        """Find the background of a group, and take it from its exposures; return what is to be saved."""
        built = ()
        if group.targets[0].problem is None and saved:
            known = next(each for each in saved if each.fits(group))
            self._warn_of_itself(group, known)

            def model_of(member, opened):
                model = self._whole(known.value, known.variance, known.count, opened)
                return len(known.exposures), *self._follow(model, member, opened, recipe, group)

            self._write_back(library, group, model_of)
        elif group.targets[0].problem is None:
            with closing(Builder(group, recipe, source, run, folder)) as builder:
                built = self._build_and_subtract(group, builder, library)
        for member in group.targets:
            if member.problem is not None:
                self._skip(library, member)
        return built

    def _build_and_subtract(self, group, builder, library):
        builder.read(corners(group.builders) if self.passes == 2 else None)
        uncovered = builder.uncovered()
        if uncovered and group.is_only:
            raise ValueError(uncovered)
        group.leave_out(leave_one_out=self.leave_one_out, min_separation=self.min_separation)
        self._find_lonely(group)
        for member in group.targets:
            member.problem = member.problem or uncovered
        todo = [member for member in group.targets if member.problem is None]
        if not todo:
            return ()
        wanted = {member.left_out for member in todo} | ({()} if self.save_background else set())
        background, levels = builder.build(sorted(wanted))
        numbers = {id(member): k for k, member in enumerate(group.builders)}

        def model_of(member, opened):
            model = self._whole(*background.read(member.left_out), opened)
            used = len(group.builders) - len(member.left_out)
            if id(member) not in numbers:
                return used, *self._follow(model, member, opened, builder.recipe, group)
            k = numbers[id(member)]
            return used, model, levels.factor[k], levels.level[k]

        self._write_back(library, group, model_of)
        return (group, background.read(()), levels) if self.save_background else ()

    def _find_lonely(self, group):
        """Say which exposures have too few others far enough away."""
        n, far = len(group.builders), self.min_separation * group.fwhm * detector.PIXEL_SCALE
        alive = n - sum(member.is_dead for member in group.builders)
        for member in group.targets:
            left = n - len(member.left_out)
            if member.is_dead:
                member.problem = "it has no usable pixel"
            elif alive < self.min_exposures:
                member.problem = f"min_exposures is {self.min_exposures}, but only {alive} have usable pixels"
            elif left < self.min_samples:
                member.problem = (
                    f"min_samples is {self.min_samples}, but of the {alive - 1} others only {left} are "
                    f"pointed {far:.2f} arcsec away or more"
                )

    def _whole(self, value, variance, count, opened):
        if opened.data.shape != value.shape:
            raise ValueError(
                f"the background must have the shape of {opened.meta.filename}, {opened.data.shape}, got "
                f"{value.shape}"
            )
        smooth, needed = self.fallback == "smooth", usable_pixels(opened)
        return whole(value, variance, count, needed, min_samples=self.min_samples, smooth=smooth)

    def _follow(self, model, member, opened, recipe, group):
        """Find how an exposure follows a background that it has no part in."""
        usable = usable_pixels(opened)
        given, known = recipe.rules.given(opened, usable, group.fwhm)
        if recipe.rules.image is not None and usable.any():
            log.log(
                logging.INFO if known[usable].mean() > 0.99 else logging.WARNING,
                *("%s: %s covers %.1f%% of it", member.name, recipe.rules.image.name),
                100 * known[usable].mean(),
            )
        residual = np.where(usable, opened.data - model.value, np.nan)
        noise = np.sqrt(opened.err.astype(float) ** 2 + model.variance)
        mask = given | (find_sources(residual, noise, group.fwhm, recipe.rules) & ~known)
        region = usable & ~mask & imager_pixels(opened)
        samples, background = (
            exposure_levels.to_cells(np.where(region, plane, np.nan), slice(None))
            for plane in (opened.data, model.value)
        )
        try:
            return model, *exposure_levels.fit_one(samples, background, self.scaling)
        except ValueError as error:
            log.warning("%s: %s", opened.meta.filename, error)
            return model, np.nan, np.nan

    def _write_back(self, library, group, model_of):
        """Subtract its background from each exposure, one at a time."""
        for member in group.targets:
            if member.problem is not None:
                continue
            with library:
                opened = library.borrow(member.index)
                used, model, factor, level = model_of(member, opened)
                if not (usable_pixels(opened) & ~model.few).any():
                    member.problem = f"none of its pixels has min_samples={self.min_samples} samples"
                elif not np.isfinite(level):
                    member.problem = "its level cannot be found on the pixels outside sources"
                else:
                    self._subtract(opened, member, model.followed(factor, level), used)
                library.shelve(opened, member.index, modify=member.problem is None)

    def _subtract(self, opened, member, model, used):
        usable = usable_pixels(opened)
        few = (model.few & usable).sum()
        height = float(np.mean(model.value[imager_pixels(opened) & np.isfinite(model.value)]))
        flagged = subtract(opened, model, keep=height if self.preserve_level else 0.0)
        background = opened.meta.background
        if not self.preserve_level:
            background.super_background_level = height
            if background.subtracted is False and background.level is not None:
                # The level that a sky match left to be subtracted is gone with the background.
                background.level = 0.0
        opened.meta.cal_step.super_background = "COMPLETE"
        self.write_history(opened, _RECORDED, f"exposures={used}", f"background={height:.6g}")
        log.log(
            logging.WARNING if few > _MOST_FILLED * usable.sum() else logging.INFO,
            "%s: background of %d exposures %s, level %.4g, too few samples on %.1f%% of it, %d flagged",
            *(member.name, used, "levelled and subtracted" if self.preserve_level else "subtracted", height),
            *(100 * few / usable.sum(), flagged),
        )

    def _skip(self, library, member):
        log.warning("%s is left as it is: %s.", member.name, member.problem)
        with library:
            opened = library.borrow(member.index)
            opened.meta.cal_step.super_background = "SKIPPED"
            library.shelve(opened, member.index)

    def _warn_of_itself(self, group, saved):
        inside = [member.name for member in group.targets if member.name in saved.exposures]
        if inside and self.leave_one_out:
            log.warning(
                "%s was built from %d of the exposures that it is subtracted from (%s ...): they are part of "
                "their own background.",
                *(saved.path, len(inside), inside[0]),
            )

    # ---- results

    def _save_background(self, library, group, read, levels):
        first = group.members[0]
        product = library.asn["products"][0].get("name") or self.remove_suffix(first.path.stem)[0]
        name = f"{product}_{group.file_name}"
        path = self.make_output_path(basepath=name, suffix="background", ext="fits")
        products.save_background(path, group, *read, levels)
        log.info("Saved %s", path)

    def save_model(self, model, *args, **kwargs):
        """
        Save exposures, and an association of them.

        Parameters
        ----------
        model : JwstDataModel, ModelContainer or ModelLibrary
            What to save.
        *args, **kwargs
            As in every Step.

        Returns
        -------
        str or list of str
            The files of the exposures.
        """
        saved = super().save_model(model, *args, **kwargs)
        if isinstance(model, ModelLibrary) and saved:
            former = model.asn
            members = former["products"][0]["members"]
            first = Path(members[0]["expname"]).stem
            product = former["products"][0].get("name") or self.remove_suffix(first)[0]
            path = self.make_output_path(basepath=product, suffix=f"{self.class_alias}_asn", ext="json")
            pairs = zip(saved, members, strict=True)
            science = [file for file, entry in pairs if entry["exptype"].lower() == "science"]
            products.write_association(path, product, science, former)
            log.info("Saved association %s", path)
        return saved


class _Libraries:
    """The exposures and those of the sky set, wherever they are."""

    def __init__(self, library, sky_library):
        self._libraries = {False: library, True: sky_library}

    def file_of(self, member):
        return file_of(self._libraries[member.is_sky], member)

    @contextmanager
    def opened(self, member):
        library = self._libraries[member.is_sky]
        with library:
            model = library.borrow(member.index)
            try:
                yield model
            finally:
                library.shelve(model, member.index, modify=False)
