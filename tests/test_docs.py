"""The code of README.rst and of the documentation is run, page by page, on exposures of a few pixels."""

import glob
import importlib
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
import tomllib
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from astropy.table import QTable, Table
from jwst import datamodels
from jwst.outlier_detection import OutlierDetectionStep
from jwst.resample import ResampleStep
from jwst.source_catalog import SourceCatalogStep
from jwst.stpipe import Step
from jwst.tweakreg import TweakRegStep
from tweakwcs.correctors import JWSTWCSCorrector

from miri_steps import StarPhotometryStep, cli, exposures, parameters, plugin, report, simulate
from miri_steps.reduction import jobs, running

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
# What sphinx makes has no code of its own.
PAGES = [REPOSITORY / "README.rst", *sorted(DOCS.glob("*.rst")), *sorted((DOCS / "steps").glob("*.rst"))]
NAMES = [page.relative_to(REPOSITORY).as_posix() for page in PAGES]
STEP_PAGES = {alias: name.rpartition(".")[2] for name, alias, _ in plugin.get_steps()}

NOT_RUN = "not-run"
# Only what nobody can run without a network may say that it is not run.
NETWORK = re.compile(r"astroquery|pip install")
# Words that a line of the shell can begin with.
PROGRAMS = ("strun", "miri-steps", "python", "pip", "export", "dask")
LANGUAGES = {"python", "shell", "bash", "text", "toml"}

RA, DEC = 339.0, 33.96
# By how much the exposures of each visit are off, East and North [arcsec].
SHIFTS = {"01234001001": [0.2, -0.1], "01234001002": [-0.6, 0.5]}


# ---- what a page holds


@dataclass(frozen=True)
class Block:
    """A piece of code on a page."""

    line: int
    language: str
    options: dict
    text: str


def read_blocks(text):
    """Find code-block directives and literal blocks, with the number of the line that each begins with."""
    lines, blocks = text.splitlines(), []
    for number, line in enumerate(lines):
        bare = line.strip()
        if not bare.endswith("::") and not bare.startswith(".. code-block::"):
            continue
        is_directive = bare.startswith(".. ")
        if is_directive and not bare.startswith(".. code-block::"):
            continue
        options, first, body = _body(lines[number + 1 :], len(line) - len(line.lstrip()))
        language = bare.removeprefix(".. code-block::").strip() if is_directive else _guess(body)
        blocks.append(Block(number + 2 + first, language, options if is_directive else {}, body))
    return blocks


def _body(lines, indent):
    """Take the lines that are indented further: options first, then the text."""
    inside = []
    for line in lines:
        if line.strip() and len(line) - len(line.lstrip()) <= indent:
            break
        inside.append(line)
    options, first = {}, 0
    while first < len(inside) and (found := re.fullmatch(r"\s+:([\w-]+):\s*(.*)", inside[first])):
        options[found[1]] = found[2]
        first += 1
    return options, first, textwrap.dedent("\n".join(inside[first:])).strip("\n") + "\n"


def _guess(body):
    return "shell" if body.split()[0] in PROGRAMS else "unknown"


def read_commands(text):
    """Join the lines of a shell block that a backslash continues, and cut them into words."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def is_run(page, block):
    """Tell whether a block is run here: .ci/run runs the bash blocks of README.rst, word for word."""
    if page.name == "README.rst" and block.language == "bash":
        return False
    return block.options.get("class") != NOT_RUN


# ---- where it is run: a folder with files of the names that the pages use


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """Write small exposures once, under the names that the pages use."""
    folder = tmp_path_factory.mktemp("kit")
    write_kit(folder)
    return folder


def write_kit(folder):
    observation = observe()
    simulate.write(observation, folder, product="F770W")
    for number, band in ((2, "F560W"), (3, "F1800W")):
        write_again(folder, band, number)
    shutil.copytree(folder, folder / "ngc3132")
    shutil.copytree(folder / "ngc3132", folder / "quintet")
    shutil.copy(folder / "F770W_asn.json", folder / "asn.json")
    stars = Table.read(folder / "F770W_refcat.ecsv")
    stars["phot_g_mean_mag"] = 18.0
    stars.write(folder / "gaia.ecsv")
    write_tweaked(observation, folder)
    write_rates(observation, folder)


def observe():
    """Look at a few stars in two visits that are off by up to an arcsecond."""
    scene = simulate.Scene(RA, DEC).with_stars(40, radius=7, flux=(0.01, 1.0), seed=1)
    plan = simulate.mosaic(RA, DEC, tiles=(2, 1), dithers=1, tile_step=(3.0, 0.0))
    error = np.array(list(SHIFTS.values()))
    return simulate.observe(scene, plan, "F770W", sky=4.0, subarray="SUB64", pointing_error=error)


def write_again(folder, band, number):
    """Write the exposures and their association as if they were of another filter."""
    names = {}
    for path in sorted(folder.glob("*_02101_*_cal.fits")):
        names[path.name] = path.name.replace("_02101_", f"_0210{number}_")
        with datamodels.open(path) as model:
            model.meta.instrument.filter = band
            model.meta.observation.activity_id = f"0{number}"
            model.save(str(folder / names[path.name]))
    text = (folder / "F770W_asn.json").read_text().replace("F770W", band)
    for name, other in names.items():
        text = text.replace(name, other)
    (folder / f"{band}_asn.json").write_text(text)


def write_tweaked(observation, folder):
    """Write exposures as tweakreg leaves them, with their association."""
    association = json.loads((folder / "asn.json").read_text())
    members = association["products"][0]["members"]
    for model, member in zip(observation, members, strict=True):
        move(model)
        member["expname"] = member["expname"].replace("_cal", "_tweakreg")
        model.save(str(folder / member["expname"]))
        model.close()
    (folder / "tweakreg_asn.json").write_text(json.dumps(association))


def write_rates(observation, folder):
    """Write an exposure in three integrations under several names, and a ramp."""
    integrations = simulate.integrate(observation, 0, nints=3, cosmic_rays=0.05)
    for stem in ("", "jw01040001001_03101_00001_mirimage_"):
        integrations.rate.save(str(folder / f"{stem}rate.fits"))
        integrations.rateints.save(str(folder / f"{stem}rateints.fits"))
    simulate.ramp(np.full((64, 72), 300.0), nints=2, ngroups=5).save(str(folder / "uncal.fits"))


@pytest.fixture
def workshop(kit, tmp_cwd, monkeypatch):
    """Go to a folder with these files, without a network, where everything is small and nothing slow."""
    folder = tmp_cwd / "F770W"
    shutil.copytree(kit, folder)
    # Another filter has its own folder.
    (tmp_cwd / "F560W").symlink_to(folder)
    monkeypatch.chdir(folder)
    for name, value in simulate.offline_crds(tmp_cwd / "nowhere").items():
        monkeypatch.setenv(name, value)
    # It would need reference files, and with no network there are none.
    monkeypatch.setattr(SourceCatalogStep, "process", lambda step, model: None)
    monkeypatch.setattr(SourceCatalogStep, "reference_file_types", [])
    monkeypatch.setattr(simulate, "observe", make_small(simulate.observe))
    demo = ModuleType("miri_steps.demo")
    demo.run = lambda folder: Path(folder).mkdir()
    monkeypatch.setitem(sys.modules, "miri_steps.demo", demo)
    monkeypatch.setattr("miri_steps.demo", demo, raising=False)
    return folder


@pytest.fixture
def shortened(monkeypatch):
    """End pipelines behind the last hook; let tweakreg, to which three stars tell nothing, do nothing."""
    monkeypatch.setattr(TweakRegStep, "process", lambda step, models: models)
    monkeypatch.setattr(TweakRegStep, "save_model", lambda step, *given, **options: None)
    for step in (OutlierDetectionStep, ResampleStep):
        monkeypatch.setattr(step, "run", lambda step, models: models)


def align(step, library):
    """Do what tweakreg does to exposures, from the truth."""
    with library:
        for index in range(len(library)):
            model = library.borrow(index)
            move(model)
            library.shelve(model, index)
    return library


def move(model):
    """Leave in an exposure what tweakreg does."""
    corrector = JWSTWCSCorrector(model.meta.wcs, model.meta.wcsinfo.instance)
    corrector.set_correction(shift=SHIFTS[model.meta.observation.visit_id])
    model.meta.wcs = corrector.wcs
    model.meta.cal_step.tweakreg = "COMPLETE"


def make_small(observe):
    """Let exposures be small, and two where the page has more that differ in the pointing alone."""

    def observe_small(scene, plan, band, **given):
        given["subarray"] = given.get("subarray", "SUB64")
        if np.ndim(given.get("sky", 0.0)) == 0:
            step = max(1, len(plan) // 2)
            plan = plan[::step]
            if "pointing_error" in given:
                given["pointing_error"] = given["pointing_error"][::step]
        return observe(scene, plan, band, **given)

    return observe_small


def run_here(todo, ledger, cores, tell):
    """Stand in for the processes of a reduction, whose starts would take longer than their work."""
    for job in todo:
        yield job, jobs.execute(job, ledger.work_of(job), ledger.log_of(job), "1")


def run_nothing(todo, ledger, cores, tell, cluster=None):
    """Stand in for the pipelines of a reduction: what is asked of them is looked at, and that is all."""
    for job in todo:
        ledger.work_of(job).mkdir()
        shutil.copy(job.inputs[0], ledger.work_of(job) / job.product)
        yield job, jobs.Outcome(0.1)


def write_nothing(source, output=None):
    """Stand in for the report."""
    return output or Path(source) / "report.html"


# ---- how it is run


def run_python(page, block, names):
    """Run a block in the namespace of its page; one with a file name as its caption is that file."""
    if "caption" in block.options:
        write_file(block)
        return
    source = "\n" * (block.line - 1) + fill_in(block.text)
    exec(compile(source, str(page), "exec"), names)


def write_file(block):
    path = Path(block.options["caption"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text)


def fill_in(text):
    """Put a name that is there in the place of one with three points in it, as a reader would."""
    return re.sub(r'"([^"\n]*\w\.\.\.[^"\n]*)"', lambda found: f'"{find_file(found[1])}"', text)


def find_file(word):
    if "..." not in word:
        return word
    found = sorted(glob.glob(word.replace("...", "*")))
    assert found, f"no file is named {word}"
    return found[0]


def run_command(words, monkeypatch):
    """Run a line of the shell in this process: a fresh one would import jwst again."""
    program, *arguments = map(find_file, words)
    RUN[program](arguments, monkeypatch)


def run_strun(arguments, monkeypatch):
    if any("detector1" in argument for argument in arguments) and "override" not in str(arguments):
        # They would come from CRDS.
        files = simulate.reference_files("references", "SUB64")
        arguments = arguments + [
            f"--steps.{step}.{name}={value}" for step, given in files.items() for name, value in given.items()
        ]
    if "--help" in arguments:
        with pytest.raises(SystemExit) as stopped:
            Step.from_cmdline(arguments)
        assert stopped.value.code == 0
    else:
        Step.from_cmdline(arguments)


def run_miri_steps(arguments, monkeypatch):
    cli.main(arguments)


def run_export(arguments, monkeypatch):
    for argument in arguments:
        name, _, value = argument.partition("=")
        monkeypatch.setenv(name, os.path.expandvars(value))


def check_python(arguments, monkeypatch):
    """Benchmarks take minutes: that they are there is enough here."""
    script, *cases = arguments
    source = (REPOSITORY / script).read_text()
    assert all(f'"{case}"' in source or f"def {case}(" in source for case in cases)


def check_pip(arguments, monkeypatch):
    """Extras must be those of the package."""
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert arguments[0] == "install"
    named, asked = re.fullmatch(r"(\.|miri-steps)(?:\[(\w+)\])?", arguments[1]).groups()
    assert asked is None or asked in extras


RUN = {
    "strun": run_strun,
    "miri-steps": run_miri_steps,
    "export": run_export,
    "python": check_python,
    "pip": check_pip,
}


def run_page(page, monkeypatch):
    """Run all blocks of a page, from top to bottom."""
    names = {"__name__": "__main__"}
    for block in read_blocks(page.read_text()):
        if not is_run(page, block):
            continue
        try:
            with warnings.catch_warnings():
                # Those of jwst are not the reader's business here; those of our own code have their tests.
                warnings.simplefilter("ignore")
                if block.language == "python":
                    run_python(page, block, names)
                elif block.language in ("shell", "bash"):
                    for words in read_commands(block.text):
                        run_command(words, monkeypatch)
                elif block.options.get("caption"):
                    write_file(block)
        except BaseException as error:
            error.add_note(f"in {page.name}, line {block.line}")
            raise
    return names


# ---- tests


def test_blocks_are_found():
    text = (
        "One::\n\n    strun a b\n    strun c\n\nText.\n\n.. code-block:: python\n   :class: not-run\n\n"
        "   import astroquery\n\n   x = 1\n\n* item:\n\n"
        "  .. code-block:: shell\n\n      strun d\n\n.. csv-table::\n\n   1"
    )

    first, second, third = read_blocks(text)

    assert (first.language, first.text, first.line) == ("shell", "strun a b\nstrun c\n", 2)
    assert (second.language, second.options) == ("python", {"class": NOT_RUN})
    assert second.text == "import astroquery\n\nx = 1\n"
    assert third.text == "strun d\n"
    assert read_commands("a 'b c' \\\n   d # e\n\n# f\ng\n") == [["a", "b c", "d"], ["g"]]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_code_is_run_unless_it_needs_a_network(page):
    for block in read_blocks(page.read_text()):
        where = f"{page.name}, line {block.line}"
        assert block.language in LANGUAGES, f"{where}: say with .. code-block:: what it is"
        if block.options.get("class") == NOT_RUN:
            assert NETWORK.search(block.text), f"{where} needs no network: why is it not run?"
        if block.language == "text":
            begins = {line.split()[0] for line in block.text.splitlines() if line.strip()}
            assert not begins & {*PROGRAMS, "import", "from"}, f"{where} can be run"


# Pages that are run in a way of their own; all others with code are run alike.
OWN_WAY = {
    *("fluxcal", "getting_started", "large_fields", "reduce", "report", "star_photometry", "write_a_step"),
}
ALIKE = [page for page in PAGES if page.stem not in OWN_WAY and read_blocks(page.read_text())]
# Reductions that are not run, so that there is nothing to report.
FAKE = {"quintet_reduced", "reduction"}


@pytest.mark.parametrize("page", ALIKE, ids=lambda page: page.stem)
def test_code_runs(page, workshop, shortened, monkeypatch):
    monkeypatch.setattr(running, "run", run_nothing)
    monkeypatch.setattr(report, "write", write_nothing)
    if page.stem == "tile_astrometry":
        monkeypatch.setattr(TweakRegStep, "process", align)

    run_page(page, monkeypatch)


def test_a_field_is_reduced_as_getting_started_says_and_reported(workshop, monkeypatch):
    def run(todo, ledger, cores, tell):
        return (run_here if ledger.folder.name == "field_reduced" else run_nothing)(todo, ledger, cores, tell)

    reported, write_report = {}, report.write

    def write(source, output=None):
        """Write a report once: what it shows has its own tests."""
        name = Path(source).name
        if name not in reported:
            reported[name] = write_nothing(source, output) if name in FAKE else write_report(source, output)
        return reported[name]

    monkeypatch.setattr(running, "run", run)
    monkeypatch.setattr(report, "write", write)

    names = run_page(DOCS / "getting_started.rst", monkeypatch)

    assert set(names["table"]["status"]) == {"done"}
    assert "</html>" in (workshop / "field_reduced" / "report.html").read_text()
    for tile, error in zip(names["tiles"], [[0.2, -0.1], [-0.9, 0.8]], strict=True):
        found = [tile["shift_east"].value, tile["shift_north"].value]
        np.testing.assert_allclose(found, error, atol=0.002)
    # The mosaic that the page about reports speaks of.
    shutil.copytree("field_reduced/stage3", "stage3")
    shutil.copytree("field_reduced/stage2", "stage2")
    shutil.move("stage3/field_f770w_i2d.fits", "stage3/field_i2d.fits")

    names = run_page(DOCS / "report.rst", monkeypatch)

    assert len(names["table"]) == 2


def test_reductions_take_what_their_page_says(workshop, monkeypatch):
    seen, todo_of = [], run_nothing

    def run(todo, ledger, cores, tell):
        seen.extend(todo)
        return todo_of(todo, ledger, cores, tell)

    monkeypatch.setattr(running, "run", run)
    monkeypatch.setattr(report, "write", write_nothing)

    names = run_page(DOCS / "reduce.rst", monkeypatch)

    assert set(names["table"]["status"]) <= {"done", "up to date"}
    assert {job.name for job in seen} == {f"ngc3132_{band}" for band in ("f560w", "f770w", "f1800w")}
    ratios = [job.stage.steps.get("resample", {}).get("pixel_scale_ratio") for job in seen]
    assert "0.5" in map(str, ratios)
    assert any("super_background" not in job.stage.hooks() for job in seen)


def test_a_cluster_is_used_as_its_page_says(workshop, shortened, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="needs miri-steps[dask]")
    monkeypatch.setattr(running, "run", run_nothing)
    monkeypatch.setattr(report, "write", write_nothing)
    # The page starts one from the shell; this one is gone when the test is over, and has its worker here:
    # a process of its own would import jwst again.
    monkeypatch.setitem(RUN, "dask", lambda arguments, monkeypatch: None)
    settings = {"dashboard_address": "127.0.0.1:0", "local_directory": str(workshop / "dask")}
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, **settings) as cluster:
        (workshop / "scheduler.json").write_text(json.dumps({"address": cluster.scheduler_address}))
        run_page(DOCS / "large_fields.rst", monkeypatch)

    assert "SLURMCluster" in (workshop / "survey.py").read_text()


def test_stars_are_calibrated_as_their_pages_say(standards, tmp_cwd, monkeypatch):
    for kind, name in (("spectra", "calspec"), ("throughputs",) * 2, ("psfs",) * 2):
        shutil.copytree(standards.folder / kind, name)
    images = sorted((standards.folder / "stars").iterdir())
    Path("stars").mkdir()
    # As few epochs as tell a loss, and the star that the page calls bright.
    for path in (*images[:8], images[12]):
        shutil.copy(path, "stars")
    # Figures take longer than all else, and are drawn where there is matplotlib: their tests have it.
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    run_page(DOCS / "fluxcal.rst", monkeypatch)

    # In one go and part by part.
    both = [QTable.read(f"{folder}/factors.ecsv") for folder in ("stars_fluxcal", "calibration")]
    assert both[0]["factor"] == both[1]["factor"]
    first, second, *_ = sorted(Path("stars").iterdir())
    for name, path in (("i2d", first), ("first_i2d", first), ("second_i2d", second)):
        shutil.copy(path, f"{name}.fits")
    # It would come from CRDS.
    monkeypatch.setattr(StarPhotometryStep, "get_reference_file", lambda *_: "apcorr.fits")
    names = run_page(DOCS / "steps" / "star_photometry.rst", monkeypatch)

    assert len(names["table"]) == 2
    assert Path("i2d_star_photometry.ecsv").exists()


def test_a_step_can_be_written_as_its_page_says(workshop, shortened, monkeypatch):
    page = DOCS / "write_a_step.rst"
    for block in read_blocks(page.read_text()):
        if "caption" in block.options:
            write_file(block)
    install(workshop, monkeypatch)
    test = importlib.import_module("test_row_level")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        test.test_stripes_are_taken_out()
        test.test_the_input_stays_as_it_is_and_a_second_run_changes_nothing()
    run_page(page, monkeypatch)

    levelled = sorted(Path("levelled").glob("*_row_level.fits"))
    assert len(levelled) == 2
    with datamodels.open(levelled[0]) as model:
        assert model.meta.cal_step.instance["row_level"] == "COMPLETE"
        assert "RowLevelStep: sigma=2.5" in exposures.read_history(model)[-1]


def install(folder, monkeypatch):
    """Do to a package what pip does, as far as Python and stpipe see it."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / "my_steps-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    for group, points in project["entry-points"].items():
        lines = "\n".join(f"{name} = {value}" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}\n")
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize("alias", STEP_PAGES)
def test_the_page_of_a_step_has_all_its_parts(alias):
    text = (DOCS / "steps" / f"{alias}.rst").read_text()
    titles = re.findall(r"^(.+)\n-+$", text, re.MULTILINE)

    assert {"Why", "How it works", "Parameters", "References"} <= set(titles)
    assert {"Limits", "When it fails"} & set(titles)
    assert f".. step-parameters:: miri_steps.{STEP_PAGES[alias]}" in text
    assert "doi.org" in text[text.index("References") :]
    figures = re.findall(r"^\.\. figure:: (.+)$", text, re.MULTILINE)
    assert figures
    assert all((DOCS / "steps" / figure).resolve().is_file() for figure in figures)


def test_every_parameter_file_is_shown_and_has_a_line():
    text = (DOCS / "parameters.rst").read_text()

    for name in parameters.names():
        assert f"`{name}`_" in text
        assert f".. literalinclude:: ../miri_steps/parameters/{parameters.file_name(name)}\n" in text
