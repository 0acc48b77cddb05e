"""Write the page, and beside it the numbers."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from miri_steps import __version__, whole_files
from miri_steps.report import coarse, collect, logs, numbers, parts
from miri_steps.report.collect import Mosaic
from miri_steps.report.views import Part, TableView

__all__ = ["write"]

log = logging.getLogger(f"stpipe.{__name__}")

#: Every file of a report says that it is one, so that it may be replaced.
MARK = f"miri_steps report {__version__}"
_MARK_BEGINS = b"miri_steps report"
# Where a file says so [byte].
_HEAD = 4096


@dataclass(frozen=True)
class Article:
    """
    What the page says of one mosaic.

    Parameters
    ----------
    id, title, facts : str
        Its place, its name, and a line about it.
    verdicts : list of Verdict
        What is as it should be, and what is not.
    cards : list of Card
        The few numbers.
    parts : list of Part
        Everything else.
    numbers : dict
        The same for scripts.
    """

    id: str
    title: str
    facts: str
    verdicts: list[numbers.Verdict]
    cards: list[parts.Card]
    parts: list[Part]
    numbers: dict = field(default_factory=dict)

    @property
    def bad(self) -> int:
        """Number of things to look at."""
        return sum(not verdict.good for verdict in self.verdicts)


def write(source: Path, output: Path | None) -> Path:
    """
    Write the report of a mosaic or a folder: see `miri_steps.report.write`.

    Parameters
    ----------
    source : Path
        The mosaic or the folder.
    output : Path or None
        The page.

    Returns
    -------
    Path
        The page.
    """
    paths = collect.find_mosaics(source)
    output = output or _default_output(source)
    files = _files(output)
    mosaics, articles = [], []
    for number, path in enumerate(paths, start=1):
        log.info("%d/%d %s", number, len(paths), path)
        mosaic = collect.read_mosaic(path)
        articles.append(_describe(mosaic, f"m{number}"))
        mosaics.append(mosaic)
        # Only the numbers of its exposures are needed from here on.
        mosaic.image = np.zeros((0, 0))
    overview = collect.read_table(source / "reduction.ecsv")
    content = {
        "report": MARK,
        "made": _now(),
        "software": numbers.software(),
        "reduction": numbers.records(overview),
        "mosaics": [article.numbers for article in articles],
    }
    page = _render(source, articles, parts.overview_table(overview))
    table = numbers.exposure_table(mosaics)
    table.meta["report"] = MARK
    text = json.dumps(content, indent=1, allow_nan=False)
    whole_files.replace(files["json"], lambda temporary: temporary.write_text(text, encoding="utf-8"))
    whole_files.replace(files["table"], lambda temporary: table.write(temporary, format="ascii.ecsv"))
    whole_files.replace(files["page"], lambda temporary: temporary.write_text(page, encoding="utf-8"))
    log.info("Saved %s", output)
    return output


def _default_output(source):
    if source.is_dir():
        return source / "report.html"
    return source.with_name(f"{source.stem.removesuffix('_i2d')}_report.html")


def _files(output):
    """Name the files to write, and refuse what cannot end well before any work is done."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"output must be the name of a page and end in .html, got {output}")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"the folder of {output} must exist, but there is no {output.parent}")
    files = {
        "page": output,
        "json": output.with_suffix(".json"),
        "table": output.with_name(f"{output.stem}_exposures.ecsv"),
    }
    for path in files.values():
        if path.exists() and not _is_report(path):
            raise FileExistsError(f"{path} is no report and is not overwritten: name another output")
    return files


def _is_report(path):
    if not path.is_file():
        return False
    with open(path, "rb") as stream:
        return _MARK_BEGINS in stream.read(_HEAD)


def _now():
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _describe(mosaic: Mosaic, name: str) -> Article:
    """Read the exposures of a mosaic, and say everything about it."""
    grid = coarse.Grid.around(_corners(mosaic))
    before = coarse.read_side(mosaic, grid, "before")
    after = coarse.read_side(mosaic, grid, "after")
    assigned = logs.assign(mosaic.log, [exposure.key for exposure in mosaic.exposures])
    for exposure in mosaic.exposures:
        exposure.lines = logs.unique([*exposure.lines, *assigned[exposure.key]])
    differences = numbers.compare(before, after)
    summary = numbers.summarize(mosaic, differences)
    listed = [
        parts.images(mosaic, before, after, grid),
        parts.overlaps(mosaic, before, after, grid, differences),
        parts.sky_levels(mosaic),
        parts.detector_background(mosaic),
        parts.super_background(mosaic),
        parts.hot_pixels(mosaic),
        parts.astrometry(mosaic),
        parts.steps(mosaic),
        parts.provenance(mosaic),
    ]
    for part in listed:
        part.place(name)
    verdicts = numbers.judge(summary)
    values = {
        "summary": summary,
        "verdicts": [asdict(verdict) for verdict in verdicts],
        **{key: numbers.records(table) for key, table in mosaic.tables.items()},
        "visits": numbers.records(numbers.visit_table(mosaic)),
        "versions": mosaic.versions,
        "references": mosaic.references,
        "history": [entry for entry, _ in numbers.settings(mosaic)],
    }
    title = f"{mosaic.product} ({mosaic.band})" if mosaic.band not in mosaic.product else mosaic.product
    return Article(name, title, parts.facts(mosaic), verdicts, parts.cards(summary), listed, values)


def _corners(mosaic):
    ny, nx = mosaic.image.shape
    x, y = np.meshgrid(np.linspace(0, nx - 1, 5), np.linspace(0, ny - 1, 5))
    return np.column_stack([axis.ravel() for axis in mosaic.wcs.wcs_pix2world(x, y, 0)]).reshape(-1, 2)


def _render(source, articles: list[Article], overview: TableView) -> str:
    environment = Environment(
        loader=PackageLoader("miri_steps.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    title = articles[0].title if len(articles) == 1 else source.resolve().name
    bad = sum(article.bad for article in articles)
    looked = f"{bad} to look at" if bad else "nothing out of its limits"
    count = "1 mosaic" if len(articles) == 1 else f"{len(articles)} mosaics"
    return environment.get_template("page.html.j2").render(
        mark=MARK,
        title=f"Report on {title}",
        subtitle=f"{count}: {looked}. Made {_now()} by miri_steps {__version__}.",
        overview=overview,
        mosaics=articles,
        footer="The same numbers are in the files .json and _exposures.ecsv beside this page.",
    )
