"""Rebuild the rate of an exposure from its integrations."""

import logging
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from astropy.io import fits
from jwst.datamodels import ModelContainer, ModelLibrary
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels import JwstDataModel
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps import workers
from miri_steps.steps import integration_job, integration_pairs, integration_planes
from miri_steps.steps.base import (
    Exposure,
    SpreadStep,
    as_library,
    file_of,
    is_exposure_file,
    read_association,
)
from miri_steps.steps.integration_job import Job
from miri_steps.steps.integration_pairs import Pair

__all__ = ["RateFromRateintsStep"]

# Only loggers below "stpipe" are heard inside the stock pipelines.
log = logging.getLogger(f"stpipe.{__name__}")

# Parameters that change the numbers, for the HISTORY entry.
_RECORDED = ("combine", "sigma", "min_integrations")

_UNUSABLE = np.uint32(pixel["DO_NOT_USE"])


class RateFromRateintsStep(SpreadStep):
    """
    Rebuild the rate of an exposure from its integrations, without what hit only one of them.

    Think of one photograph taken several times over: a bird that flew through one of them is
    in no other, and there is no need to keep it.

    Each pixel of the rate becomes the average of the integrations that are valid there, by default
    a sigma-clipped one with the weights that ``ramp_fit`` of jwst 3.0 gives them. Errors, variances
    and flags follow. As a post-hook of ``ramp_fit`` it takes and returns the pair of rate and integrations.

    Notes
    -----
    A sample is valid when it is finite and not DO_NOT_USE in its integration. Zero is data; only what
    ``ramp_fit`` writes where it found nothing to fit, 0 with variances of 0, is none.

    It fails where the sky or the telescope changes between integrations: what is seen in the
    fewer of them is taken for a hit.
    """

    class_alias = "rate_from_rateints"

    spec = """
        # How integrations are combined:
        combine = option('mean', 'ivar', 'median', 'clip', default='clip') # Plain mean, mean with weights 1/VAR_RNOISE, median, or such a weighted mean after sigma clipping
        sigma = float(min=0.5, default=3.0) # Clipping limit [standard deviation of the sample]
        min_integrations = integer(min=3, default=3) # Pixels with fewer valid integrations are averaged unclipped

        # Where integrations are, and what else is saved:
        rateints = force_list(default=list()) # Files of integrations, or folders that hold them, where they are not beside the rate
        save_counts = boolean(default=False) # Save the number of integrations used and rejected in each pixel?
        in_memory = boolean(default=True) # Keep all exposures in memory, or only one at a time?
    """  # noqa: E501

    def process(self, input_models):
        """
        Rebuild rates.

        Parameters
        ----------
        input_models : str, Path, dict, list, tuple, ImageModel, CubeModel, ModelContainer or ModelLibrary
            Rates or integrations: exposures, their file names, an association; or the pair of the two
            that ``ramp_fit`` returns.

        Returns
        -------
        ImageModel, ModelContainer, ModelLibrary or tuple
            Open models in the container they came in, copied; a library for associations and lists of
            names; the pair with a new rate for a pair.

        Raises
        ------
        FileNotFoundError
            If a file or the integrations of a rate are missing.
        ValueError
            If exposures are not MIRI imaging, a rate and its integrations do not belong together,
            or they hold nothing to combine.
        """
        workers.count(self.maximum_cores)
        if _is_pair(input_models):
            return self._rebuild_pair(*input_models)
        if isinstance(input_models, ModelLibrary):
            return self._rebuild_library(input_models)
        if isinstance(input_models, JwstDataModel) or is_exposure_file(input_models):
            return self._rebuild_models([input_models])[0]
        if isinstance(input_models, ModelContainer) or _are_models(input_models):
            return ModelContainer(self._rebuild_models(list(input_models)))
        return self._rebuild_association(input_models)

    def save_model(self, model, *args, **kwargs):
        """
        Save a product; of a pair only the rate, the integrations are as they were.

        Parameters
        ----------
        model : JwstDataModel or ModelLibrary
            What to save.
        *args, **kwargs
            As in every Step.

        Returns
        -------
        list of str or None
            Files written.
        """
        if isinstance(model, datamodels.CubeModel):
            return None
        return super().save_model(model, *args, **kwargs)

    def _rebuild_pair(self, rate, rateints):
        """Do what a post-hook of ``ramp_fit`` is to do: the integrations are handed on untouched."""
        if rateints is None:
            log.warning("There are no integrations to combine: the rate is left as it is.")
            return rate, rateints
        cube = integration_pairs.product_of(rateints)
        pair = Pair(0, None, cube) if rate is None else Pair(0, integration_pairs.product_of(rate), cube)
        self._check([pair])
        # In memory, and alone: nothing is gained by sending it elsewhere.
        results = map(integration_job.combine, [self._job(pair)] if pair.combines else [])
        return self._rebuild(pair, "1/1", next(results, None)), rateints

    def _rebuild_models(self, given):
        pairs = self._pair_up(_product(item) for item in given)
        self._check(pairs)
        with self._open_map(pairs) as run:
            results = run(integration_job.combine, (self._job(pair) for pair in pairs if pair.combines))
            return [
                self._rebuild(pair, f"{k}/{len(pairs)}", next(results) if pair.combines else None)
                for k, pair in enumerate(pairs, start=1)
            ]

    def _rebuild_association(self, given):
        products = [_product(path) for path in _science_members(given)]
        pairs = self._pair_up(products)
        self._check(pairs)
        partners = set(range(len(products))) - {pair.index for pair in pairs}
        library = as_library(_without(given, partners), in_memory=self.in_memory)
        return self._run(library, pairs, range(len(pairs)))

    def _rebuild_library(self, library):
        products = integration_pairs.products_of(library, self.combine)
        pairs = self._pair_up(products)
        places = {pair.index for pair in pairs}
        for index, product in enumerate(products):
            if product is not None and index not in places:
                raise ValueError(
                    f"a ModelLibrary must hold rates or integrations, but has {product.name} beside its rate:"
                    " give the association"
                )
        self._check(pairs, seen=True)
        return self._run(library, pairs, [pair.index for pair in pairs], source=library)

    def _pair_up(self, products):
        places = [Path(place).expanduser() for place in self.rateints]
        for place in places:
            if not place.exists():
                raise FileNotFoundError(f"'rateints' must name files or folders, but there is no {place}")
        return integration_pairs.pair_up(list(products), places)

    def _check(self, pairs, *, seen=False):
        """Refuse what cannot be done before anything is; members of a library have been looked at."""
        if not pairs:
            raise ValueError("the input must hold at least 1 science exposure, got 0")
        for pair in pairs:
            integration_pairs.check_pair(pair)
            if pair.rateints is not None and not (seen and pair.rate is None):
                integration_pairs.check_samples(pair.rateints, self._method(pair))
        partners = [pair.rateints for pair in pairs if pair.rate is not None and pair.rateints is not None]
        files = [partner.path for partner in partners if partner.model is None]
        self.name_products([pair.exposure.path for pair in pairs], files)

    def _method(self, pair):
        return "mean" if pair.single else self.combine

    def _open_map(self, pairs):
        """Start as many processes as there is work for."""
        cores = min(workers.count(self.maximum_cores), sum(pair.combines for pair in pairs))
        return workers.open_map(max(1, cores), self.executor)

    def _run(self, library, pairs, places, *, source=None):
        """Rebuild the rates in a library, which may be the source of integrations, too."""
        with library, self.scratch(library) as folder, self._open_map(pairs) as run:
            here = self.executor is None and workers.count(self.maximum_cores) == 1
            jobs = (
                self._job(pair, index, source, None if here or folder is None else folder / f"{index}")
                for pair, index in zip(pairs, places, strict=True)
                if pair.combines
            )
            results = run(integration_job.combine, jobs)
            for number, (pair, index) in enumerate(zip(pairs, places, strict=True), start=1):
                rebuilt = next(results) if pair.combines else None
                model = library.borrow(index)
                result = self._rebuild(pair, f"{number}/{len(pairs)}", rebuilt, member=model)
                library.shelve(result, index, modify=not pair.exposure.done)
        return library

    def _job(self, pair, index=None, source=None, result=None):
        """Describe the work on one exposure: by the file of its integrations where there is one."""
        given = pair.rateints.path.resolve()
        if pair.rateints.model is not None:
            given = integration_planes.take(pair.rateints.model)
        elif pair.rate is None and source is not None:
            given = file_of(source, Exposure(index, given, "", {})) or _borrow_samples(source, index)
        return Job(pair.exposure.name, given, self._method(pair), self.sigma, self.min_integrations, result)

    def _rebuild(self, pair, number, rebuilt, *, member=None):
        """Make the rate of one exposure; a member of a library is changed in place."""
        if pair.rate is None:
            with _open(member or pair.rateints) as cube:
                rate = integration_planes.empty_rate(cube, pair.rateints.shape, pair.rateints.rate_name)
        else:
            rate = member or self.prepare_output(pair.rate.model or pair.rate.path)
        if not pair.combines:
            return self._leave(rate, pair, number)
        return self._finish(rate, integration_job.collect(rebuilt), pair, number)

    def _leave(self, rate, pair, number):
        if pair.rate.done:
            log.warning("%s %s: nothing is done, this was done before.", number, pair.rate.name)
        else:
            log.info("%s %s: has one integration and is left as it is.", number, pair.rate.name)
            rate.meta.cal_step.rate_from_rateints = "SKIPPED"
        return rate

    def _finish(self, rate, rebuilt, pair, number):
        found = rebuilt.found
        before = rate.dq if pair.rate is not None else None
        flags = integration_planes.merged_flags(rebuilt.flags, before)
        _log_result(f"{number} {pair.exposure.name}", self._method(pair), found, before, flags)
        integration_planes.write_back(rate, found, flags, rebuilt.known)
        self._record(rate, pair)
        if self.save_counts and not pair.single:
            self._save_counts(found, pair)
        return rate

    def _record(self, rate, pair):
        rate.meta.cal_step.rate_from_rateints = "SKIPPED" if pair.single else "COMPLETE"
        if not pair.single:
            count, name = pair.rateints.shape[0], pair.rateints.ints_name
            self.write_history(rate, _RECORDED, f"integrations={count}", f"rateints={name}")

    def _save_counts(self, found, pair):
        path = self.make_output_path(basepath=pair.exposure.name, suffix="integration_counts", ext="fits")
        planes = [fits.ImageHDU(getattr(found, name), name=name.upper()) for name in ("used", "rejected")]
        fits.HDUList([fits.PrimaryHDU(), *planes]).writeto(path, overwrite=True)
        log.info("Saved %s", path)


def _is_pair(given):
    """Tell what ``ramp_fit`` returns from a tuple of exposures."""
    if not isinstance(given, tuple) or len(given) != 2 or any(isinstance(item, str | Path) for item in given):
        return False
    rate, rateints = given
    return (rateints is None or rateints.data.ndim == 3) and (rate is None or rate.data.ndim == 2)


def _borrow_samples(library, index):
    """Take the arrays of integrations that are kept in memory."""
    model = library.borrow(index)
    try:
        return integration_planes.take(model)
    finally:
        library.shelve(model, index, modify=False)


def _are_models(given):
    return isinstance(given, list | tuple) and any(isinstance(item, JwstDataModel) for item in given)


def _product(given):
    if isinstance(given, JwstDataModel):
        return integration_pairs.product_of(given)
    return integration_pairs.read_product(Path(given))


def _science_members(given):
    """List the files of the science exposures in an association or a list of names."""
    if isinstance(given, list | tuple):
        return [Path(name) for name in given]
    association, folder = read_association(given)
    members = association["products"][0]["members"]
    return [folder / member["expname"] for member in members if member["exptype"].lower() == "science"]


def _without(given, places):
    """Leave science exposures out of an association or a list of names."""
    if not places:
        return given
    if isinstance(given, list | tuple):
        return [name for k, name in enumerate(given) if k not in places]
    association, folder = read_association(given)
    product, *others = association["products"]
    named = [(member, (folder / member["expname"]).resolve()) for member in product["members"]]
    members = [member | {"expname": str(path)} for member, path in named]
    science = [member for member in members if member["exptype"].lower() == "science"]
    dropped = {id(science[k]) for k in places}
    kept = [member for member in members if id(member) not in dropped]
    return association | {"products": [product | {"members": kept}, *others]}


@contextmanager
def _open(item):
    """Open a product, and close it again if it is a file."""
    model = item if isinstance(item, JwstDataModel) else item.model
    if model is not None:
        yield model
        return
    with datamodels.open(item.path) as opened:
        yield opened


def _log_result(name, method, found, before, flags):
    lost = (flags & _UNUSABLE) > 0
    log.info(
        "%s: %d integrations by %s, %d samples rejected, %d pixels without any",
        name,
        len(found.offset),
        method,
        found.rejected.sum(dtype=np.int64),
        np.count_nonzero(lost),
    )
    if method == "clip":
        log.info(
            "%s: samples scatter %.3f times as much as stated (at least 1), frames differ by up to %.3g",
            name,
            found.noise_factor,
            np.ptp(found.offset),
        )
    if before is not None:
        old = (before & _UNUSABLE) > 0
        log.info(
            "%s: DO_NOT_USE of the old rate taken from %d pixels and added to %d",
            name,
            np.count_nonzero(old & ~lost),
            np.count_nonzero(lost & ~old),
        )
