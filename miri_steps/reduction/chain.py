"""The chain from a folder of exposures to mosaics."""

from __future__ import annotations

import json
import os
import re
import time
import unicodedata
from collections.abc import Mapping, Sequence
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
    save_report: bool = True,
) -> QTable:
    """
    Reduce a folder of exposures: stages 1 to 3 for every filter in it, and a report.

    Think of a kitchen with a recipe for each course: whatever comes in, raw or half done, goes through
    what it still needs, and a pot that burns stops nobody else. The shortest filter is served first,
    because its tile corrections are carried over to the others.

    What is finished is not made again: the same call after an interruption goes on where it stopped,
    and one with other parameters makes anew what they change. Results depend neither on the order of
    files nor on the number of processes.

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
        If the folder or a parameter file is missing.
    ValueError
        If there is nothing to reduce, or a parameter makes no sense.
    OSError
        If the output folder cannot be written to.
    RuntimeError
        If another reduction is at work in it.

    Notes
    -----
    All of the above is found before any work is done. What fails afterwards, an exposure that is
    broken or a filter whose pipeline stops, is in the table with its reason, and stops nothing else.
    """
    folder = Path(folder)
    cores = workers.count(maximum_cores)
    stages = settings.read(parameters, changes)
    output = Path(f"{folder.resolve().name}_reduced") if output is None else Path(output)
    ledger = Ledger(output)
    sources = find(folder, start, leave_out=[ledger.folder_of(stage) for stage in stages])
    with ledger.opened():
        chain = _Chain(ledger, stages, cores)
        try:
            chain.reduce(sources, _product_name(folder))
        finally:
            # Also after an interruption, and where no table can be written.
            print(summary.describe(chain.rows), flush=True)
            chain.write_table()
        if save_report:
            chain.report()
    return summary.to_table(chain.rows)


def _product_name(folder):
    """Name mosaics after their folder, as far as file names, and the pipeline, stand it."""
    name = unicodedata.normalize("NFKD", folder.resolve().name).encode("ascii", "ignore").decode()
    # The pipeline takes what is behind a dot for the kind of a file.
    return re.sub(r"[^A-Za-z0-9+-]+", "-", name).strip("-") or "field"


class _Chain:
    """A reduction under way."""

    def __init__(self, ledger: Ledger, stages: dict[str, Stage], cores: int):
        self.ledger = ledger
        self.stages = stages
        self.cores = cores
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
        for band in dict.fromkeys(source.band for source in wanted if source.band in detector.BANDS):
            members = [source for source in wanted if source.band == band]
            product = f"{name}_{band.lower()}"
            try:
                self._make_mosaic(product, band, members, cals)
            except (OSError, ValueError, KeyError) as error:
                self._note(Row("stage3", product, band, FAILED, f"{type(error).__name__}: {error}"))
            self._look_for_table(product)

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
        return as_they_are | self._run(jobs, self.cores)

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
        return given | self._run(jobs, self.cores)

    def _make_mosaic(self, product, band, members, cals):
        """Do stage 3 for one filter."""
        there = [member for member in members if member.name in cals]
        stage, carried = self._with_table(self.stages["image3"].with_defaults(_SAVED), there)
        paths = sorted((cals[member.name] for member in there), key=lambda path: path.name)
        association = _associate(product, paths, self.ledger) if there else {}
        job = Job(product, band, stage, association, tuple(paths))
        lost = [member for member in members if member.name not in cals]
        missing = f"{len(lost)} of its {len(members)} exposures have failed" if lost else ""
        kept = self._why_kept(job, lost)
        if not there:
            self._note(Row("stage3", product, band, FAILED, missing))
        elif kept:
            self._note(Row("stage3", product, band, FAILED, kept))
        else:
            self._run([job], self.cores, "; ".join(filter(None, [carried, missing])))

    def _look_for_table(self, product):
        """Keep the corrections that a filter has for longer ones, or in mind that it should have had some."""
        table = self.ledger.folder_of("image3") / f"{product}_tiles.ecsv"
        if table.exists():
            self._tables.append(table)
        elif self.rows[-1].status == FAILED:
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
        group_by = hook.parameters.get("group_by", "visit_guide_star")
        tiles = {tile_name(group_by, member.visit_id, member.gs_id) for member in members}
        for table in self._tables:
            if tiles <= _tiles_in(table):
                given = {"corrections": str(table), "reference_catalog": None, "save_corrections": False}
                stage = stage.changed("tile_astrometry", **given).changed("tweakreg", skip=True)
                return stage, f"tile corrections of {table.name}"
        return stage, ""

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

    def _run(self, jobs: list[Job], cores: int, remark: str = "") -> dict[str, Path]:
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
        for number, (job, outcome) in enumerate(running.run(todo, self.ledger, cores, self._tell), start=1):
            count = f"{number}/{len(todo)} " if len(todo) > 1 else ""
            if self._settle(job, outcome, remark, count):
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
