"""The chain from a folder of exposures to mosaics."""

from __future__ import annotations

import json
import os
import re
import time
import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import QTable, Table
from jwst.associations.asn_from_list import asn_from_list

from miri_steps import detector, whole_files, workers
from miri_steps.reduction import running, settings, summary
from miri_steps.reduction.jobs import Job
from miri_steps.reduction.ledger import Ledger
from miri_steps.reduction.settings import Hook, Stage
from miri_steps.reduction.sources import Source, find
from miri_steps.reduction.summary import DONE, FAILED, KEPT, SKIPPED, Row
from miri_steps.steps.tile_members import tile_name

__all__ = ["reduce"]

# What the Steps save beside the exposures, for the report and for other filters.
_SAVED = {
    "median_hot_pixel": {"save_mask": True},
    "tile_astrometry": {"save_corrections": True},
    "super_background": {"save_background": True},
    "pixel_skymatch": {"save_levels": True, "save_detector_background": True},
}


def reduce(
    folder: str | Path,
    output: str | Path | None = None,
    *,
    parameters: Sequence[str | Path] = (),
    changes: Mapping[str, object] | None = None,
    start: str | None = None,
    maximum_cores: str = "1",
    executor: str | None = None,
    save_report: bool = True,
) -> QTable:
    """
    Reduce a folder of exposures: stages 1 to 3 for every filter in it, and a report.

    Think of a kitchen with a recipe for each course: whatever comes in, raw or half done, goes through
    what it still needs, and a pot that burns stops nobody else. The shortest filter is served first,
    because its tile corrections are carried over to the others.

    What is finished is not made again: the same call after an interruption goes on where it stopped,
    and one with other parameters makes anew what they change. Results depend neither on the order of
    files nor on the number of processes, nor on where they are.

    Parameters
    ----------
    folder : str or Path
        Where the ``_uncal``, ``_rate`` (with ``_rateints``) or ``_cal`` files of one field are, in it or
        in folders inside it.
    output : str or Path, optional
        Where ``stage1``, ``stage2``, ``stage3`` and the rest go; by default a folder in the current one,
        named like `folder` with ``_reduced`` behind.
    parameters : sequence of str or Path
        Parameter files for the stock pipelines, or names of those that come with the package. Stages
        without one get ``detector1``, ``image2`` and ``image3``.
    changes : dict, optional
        Parameters to change, by ``"step.parameter"``: ``{"pixel_skymatch.grouping": "visit"}``.
    start : str, optional
        Kind of files to start from, "uncal", "rate" or "cal"; by default the rawest of each exposure.
    maximum_cores : str
        Processes: a number, or "quarter", "half", "all". Stages 1 and 2 do as many exposures at a time.
        Not used with an `executor`: each of its workers does one exposure or mosaic at a time, in one
        process.
    executor : str, optional
        Scheduler of a Dask cluster that does the work instead of this machine: its address, or the file
        that it has written. Exposures, and mosaics, are spread over its workers, of which each must have
        one thread, the same packages, and the input and the output folder on a shared disk.
    save_report : bool
        Whether to write ``report.html``.

    Returns
    -------
    QTable
        What became of each exposure and mosaic: stage, name, filter, status (done, up to date, skipped,
        failed), reason, seconds. It is also in ``reduction.ecsv``.

    Raises
    ------
    NotADirectoryError, FileNotFoundError
        If the folder, a parameter file or the file of a scheduler is missing.
    ValueError
        If there is nothing to reduce, a parameter makes no sense, or workers have several threads.
    OSError
        If the output folder cannot be written to, or no scheduler answers.
    ModuleNotFoundError
        If `executor` is given without ``dask.distributed``.
    RuntimeError
        If another reduction is at work in it. Also, later, if the cluster is lost.

    Notes
    -----
    All of this but the last is found before any work is done. What fails afterwards, an exposure that is
    broken or a filter whose pipeline stops, is in the table with its reason, and stops nothing else.
    """
    folder = Path(folder)
    cores = workers.count(maximum_cores)
    stages = settings.read(parameters, changes)
    output = Path(f"{folder.resolve().name}_reduced") if output is None else Path(output)
    ledger = Ledger(output)
    sources = find(folder, start, leave_out=[ledger.folder_of(stage) for stage in stages])
    with _opened(executor) as cluster, ledger.opened():
        chain = _Chain(ledger, stages, cores, cluster)
        try:
            chain.reduce(sources, _product_name(folder))
        finally:
            # Also after an interruption, and where no table can be written.
            print(summary.describe(chain.rows), flush=True)
            chain.write_table()
            if cluster:
                # Nothing is begun any more once the folders of jobs go; what a worker is at it goes on with.
                cluster.shutdown(wait=False)
        if save_report:
            chain.report()
    return summary.to_table(chain.rows)


@contextmanager
def _opened(executor):
    """Connect to the cluster, if there is one."""
    if not (executor or "").strip():
        yield None
        return
    with workers.open_cluster(executor) as (cluster, _):
        yield cluster


def _product_name(folder):
    """Name mosaics after their folder, as far as file names, and the pipeline, stand it."""
    name = unicodedata.normalize("NFKD", folder.resolve().name).encode("ascii", "ignore").decode()
    # The pipeline takes what is behind a dot for the kind of a file.
    return re.sub(r"[^A-Za-z0-9+-]+", "-", name).strip("-") or "field"


@dataclass(frozen=True)
class _Mosaic:
    """A mosaic to be made, and the exposures that should be in it."""

    product: str
    band: str
    members: list[Source]

    def there(self, cals: dict[str, Path]) -> list[Source]:
        """List the exposures that got through the stages before."""
        return [member for member in self.members if member.name in cals]


class _Chain:
    """A reduction under way."""

    def __init__(self, ledger: Ledger, stages: dict[str, Stage], cores: int, cluster: Executor | None = None):
        self.ledger = ledger
        self.stages = stages
        self.cores = cores
        self.cluster = cluster
        self.rows = []
        # Tile corrections that longer filters can have, and the filter that should have given some.
        self._tables, self._waits_for, self._unknown = [], "", []
        self._begun = time.monotonic()

    # ---- what is done, stage by stage

    def reduce(self, sources: list[Source], name: str) -> None:
        """Bring every exposure through stages 1 and 2, and make a mosaic of each filter."""
        for source in sources:
            if source.problem:
                status = FAILED if source.is_broken else SKIPPED
                self._note(Row("input", source.name, source.band, status, source.problem))
        usable = [source for source in sources if not source.problem]
        cals = self._calibrate(usable, self._make_rates(usable))
        wanted = [source for source in sources if not source.problem or source.is_broken]
        # Of a file without a readable header nobody knows which mosaic it is missing from.
        self._unknown = [source for source in wanted if source.band not in detector.BANDS]
        bands = dict.fromkeys(source.band for source in wanted if source.band in detector.BANDS)
        self._make_mosaics(
            [
                _Mosaic(f"{name}_{band.lower()}", band, [source for source in wanted if source.band == band])
                for band in bands
            ],
            cals,
        )

    def _make_rates(self, sources):
        """Do stage 1; list the rates by name of the exposure."""
        jobs = [job for source in sources if (job := self._rate_job(source))]
        mended = {job.name for job in jobs}
        as_they_are = {
            source.name: source.path
            for source in sources
            if source.kind == "rate" and source.name not in mended
        }
        if as_they_are and self.stages["detector1"].hooks():
            self._tell(f"{len(as_they_are)} rates have no rateints beside them and go on as they are")
        return as_they_are | self._run(jobs)

    def _rate_job(self, source):
        stage = self.stages["detector1"]
        if source.kind == "uncal":
            return Job(source.name, source.band, stage, source.path, (source.path,))
        hook = stage.hooks().get("rate_from_rateints")
        if hook and source.rateints:
            hook = Hook(hook.alias, hook.parameters | {"rateints": str(source.rateints)})
            return Job(source.name, source.band, stage, source.path, (source.path, source.rateints), hook)
        return None

    def _calibrate(self, sources, rates):
        """Do stage 2; list the calibrated exposures by name."""
        stage = self.stages["image2"]
        jobs = [
            Job(source.name, source.band, stage, rates[source.name], (rates[source.name],))
            for source in sources
            if source.name in rates
        ]
        given = {source.name: source.path for source in sources if source.kind == "cal"}
        return given | self._run(jobs)

    def _make_mosaics(self, mosaics: list[_Mosaic], cals: dict[str, Path]) -> None:
        """Do stage 3, filter after filter; on a cluster those at a time that do not wait for another."""
        left, known = mosaics, len(self.rows)
        while left:
            now = self._ready(left, cals) if self.cluster else left[:1]
            jobs, remarks = [], {}
            for mosaic in now:
                jobs += self._or_note([mosaic], self._mosaic_job, mosaic, cals, remarks)
            self._or_note(now, self._run, jobs, remarks)
            for mosaic in now:
                self._look_for_table(mosaic.product)
            left = [mosaic for mosaic in left if mosaic not in now]
        # The shortest filter first, whatever ended first.
        order = [mosaic.product for mosaic in mosaics]
        self.rows[known:] = sorted(self.rows[known:], key=lambda row: order.index(row.name))

    def _or_note(self, mosaics, work, *given):
        """Do something for mosaics, or note of those of which nothing has been said why it cannot be done."""
        try:
            return work(*given)
        except (OSError, ValueError, KeyError) as error:
            told = {row.name for row in self.rows}
            for mosaic in mosaics:
                if mosaic.product not in told:
                    self._note_mosaic(mosaic, f"{type(error).__name__}: {error}")
            return []

    def _ready(self, mosaics, cals):
        """Pick those that wait for nobody's corrections, and the first of the rest, which may have some."""
        waiting = [mosaic for mosaic in mosaics if self._waits(mosaic.there(cals))]
        return [mosaic for mosaic in mosaics if mosaic not in waiting[1:]]

    def _waits(self, members):
        """Tell whether a shorter filter, not yet done, may have corrections for a filter."""
        hook = self.stages["image3"].hooks().get("tile_astrometry")
        if hook is None or "corrections" in hook.parameters:
            return False
        try:
            return self._table_for(members, hook) is None
        except (OSError, ValueError, KeyError):
            # It is noted where the same happens to its job.
            return False

    def _mosaic_job(self, mosaic, cals, remarks):
        """Make the job of one filter, if there is anything to do; add what is to be said of it."""
        there = mosaic.there(cals)
        stage, carried = self._with_table(self.stages["image3"].with_defaults(_SAVED), there)
        paths = sorted((cals[member.name] for member in there), key=lambda path: path.name)
        association = _associate(mosaic.product, paths, self.ledger) if there else {}
        job = Job(mosaic.product, mosaic.band, stage, association, tuple(paths))
        lost = [member for member in mosaic.members if member.name not in cals]
        missing = f"{len(lost)} of its {len(mosaic.members)} exposures have failed" if lost else ""
        kept = self._why_kept(job, lost)
        if not there or kept:
            self._note_mosaic(mosaic, kept if there else missing)
            return []
        remarks[mosaic.product] = "; ".join(filter(None, [carried, missing]))
        return [job]

    def _note_mosaic(self, mosaic, reason):
        self._note(Row("stage3", mosaic.product, mosaic.band, FAILED, reason))

    def _look_for_table(self, product):
        """Keep the corrections that a filter has for longer ones, or in mind that it should have had some."""
        table = self.ledger.folder_of("image3") / f"{product}_tiles.ecsv"
        if table.exists():
            self._tables.append(table)
        elif any(row.name == product and row.status == FAILED for row in self.rows):
            self._waits_for = self._waits_for or product

    def _why_kept(self, job, lost):
        """Say why the mosaic of an earlier run is better than the one that could be made now."""
        former = self.ledger.former_inputs(job)
        had = {f"{member.name}_cal.fits" for member in [*lost, *self._unknown]} & former
        if had:
            return (
                f"{len(had)} of the {len(former)} files its mosaic was made of have failed: it is kept as it "
                "was; mend them, or take them out of the folder to go without"
            )
        carried, given = (
            any("tile_astrometry.corrections" in name for name in names)
            for names in (former, job.stage.named_files())
        )
        if carried and not given and self._waits_for:
            return f"{self._waits_for} has failed, whose tile corrections it had: it is kept as it was"
        return ""

    def _with_table(self, stage, members):
        """Let the tiles have the corrections of a shorter filter, where one has them all; say of which."""
        hook = stage.hooks().get("tile_astrometry")
        if hook is None or "corrections" in hook.parameters:
            return stage, ""
        if "reference_catalog" in hook.parameters:
            # The tiles are measured without it, from the pointing that the telescope gave.
            stage = stage.changed("tweakreg", skip=True)
        table = self._table_for(members, hook)
        if table is None:
            return stage, ""
        given = {"corrections": str(table), "reference_catalog": None, "save_corrections": False}
        stage = stage.changed("tile_astrometry", **given).changed("tweakreg", skip=True)
        return stage, f"tile corrections of {table.name}"

    def _table_for(self, members, hook):
        """Find the corrections of a shorter filter that has the tiles of all members, if there is one."""
        group_by = hook.parameters.get("group_by", "visit_guide_star")
        tiles = {tile_name(group_by, member.visit_id, member.gs_id) for member in members}
        return next((table for table in self._tables if tiles <= _tiles_in(table)), None)

    def write_table(self) -> None:
        """Write the table of what was done, and say so if that fails."""
        path = self.ledger.folder / "reduction.ecsv"
        try:
            table = summary.to_table(self.rows)
            whole_files.replace(path, lambda temporary: table.write(temporary, format="ascii.ecsv"))
        except OSError as error:
            self._note(Row("table", path.name, "", FAILED, f"{path}: {error}"))

    def report(self) -> None:
        """Write the report, unless there is nothing new; the mosaics are there also if that fails."""
        from miri_steps import report

        page, note = self.ledger.folder / "report.html", self.ledger.folder / ".reduction" / "reported"
        told = [(row.name, row.status, row.reason) for row in self.rows if row.reason and row.status != DONE]
        digest = f"{self.ledger.digest()} {told}"
        if page.exists() and note.exists() and note.read_text() == digest:
            return
        try:
            self._tell(f"report: {report.write(self.ledger.folder)}")
            note.write_text(digest)
        except ModuleNotFoundError as error:
            self._note(Row("report", page.name, "", SKIPPED, str(error)))
        except Exception as error:
            self._note(Row("report", page.name, "", FAILED, f"{type(error).__name__}: {error}"))
            self.write_table()

    # ---- how jobs are run

    def _run(self, jobs: list[Job], remarks: Mapping[str, str] | None = None) -> dict[str, Path]:
        """Run jobs as far as they are not finished; list the products of those that are."""
        todo, made, known = [], {}, len(self.rows)
        for job in jobs:
            try:
                finished = self.ledger.is_finished(job)
            except (OSError, ValueError) as error:
                self._end(job, FAILED, str(error))
                continue
            if finished:
                edited = ", ".join(path.name for path in self.ledger.edited(job))
                self._end(job, KEPT, f"used as it is now: {edited} was changed by hand" if edited else "")
                made[job.name] = self.ledger.product_of(job)
            else:
                todo.append(job)
        where = {"cluster": self.cluster} if self.cluster else {}
        ends = running.run(todo, self.ledger, self.cores, self._tell, **where)
        for number, (job, outcome) in enumerate(ends, start=1):
            count = f"{number}/{len(todo)} " if len(todo) > 1 else ""
            if self._settle(job, outcome, (remarks or {}).get(job.name, ""), count):
                made[job.name] = self.ledger.product_of(job)
        # Not in the order in which they happened to end.
        self.rows[known:] = sorted(self.rows[known:], key=lambda row: row.name)
        return dict(sorted(made.items()))

    def _settle(self, job, outcome, remark, count):
        """Publish what a job has made."""
        problem, log = outcome.problem, self.ledger.log_of(job)
        if problem:
            problem = f"{problem} [log: {log}]"
        else:
            problem = self._publish(job, outcome.inputs)
        self.ledger.clear(job)
        said = problem or "; ".join(filter(None, (remark, outcome.remark)))
        self._end(job, FAILED if problem else DONE, said, outcome.seconds, count)
        return not problem

    def _publish(self, job, inputs):
        """Move what a job has made to its place; say why where that cannot be."""
        try:
            self.ledger.publish(job, inputs)
        except OSError as error:
            problem = f"{type(error).__name__}: {error}"
            try:
                return f"{problem}; what was made is in {self.ledger.keep(job)}"
            except OSError:
                return f"{problem}; what was made could not be kept"
        return ""

    def _end(self, job, status, reason="", seconds=0.0, count=""):
        stage = self.ledger.folder_of(job.stage.name).name
        self._note(Row(stage, job.name, job.band, status, reason, seconds), count)

    def _note(self, row, count=""):
        self.rows.append(row)
        if row.status != KEPT:
            took = f" in {row.seconds:.0f} s" if row.seconds else ""
            self._tell(
                f"{count}{row.stage} {row.name} {row.status}{took}{': ' * bool(row.reason)}{row.reason}"
            )

    def _tell(self, text):
        print(f"{time.monotonic() - self._begun:5.0f} s  {text}", flush=True)


def _associate(product, paths, ledger):
    """Make the association of a mosaic, with the files as they are seen from its folder."""
    made = asn_from_list([path.name for path in paths], product_name=product)
    program = fits.getheader(paths[0]).get("PROGRAM", "noprogram")
    association = json.loads(made.dump()[1]) | {"asn_type": "image3", "program": program}
    folder = ledger.folder_of("image3")
    for member, path in zip(association["products"][0]["members"], paths, strict=True):
        # A link to a file keeps its name; where the folder itself is a link, nothing is near it.
        file = path.parent.resolve() / path.name
        member["expname"] = str(file) if folder.is_symlink() else os.path.relpath(file, folder.resolve())
    return association


def _tiles_in(path):
    """Name the tiles of a table of corrections; one that has none stays where it is in all filters."""
    table = Table.read(path)
    return set(table["tile"]) if np.isfinite(table["shift_east"]).any() else set()
