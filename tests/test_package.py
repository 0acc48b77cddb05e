"""The house rules that hold for the package as a whole."""

import ast
import importlib
import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from jwst.stpipe import Step
from stpipe import entry_points, utilities
from stpipe.config_parser import load_spec_file

import miri_steps
from miri_steps import plugin

PACKAGE = Path(miri_steps.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
STEPS = [class_name.rpartition(".")[2] for class_name, _, _ in plugin.get_steps()]

# Who may import whom. The standard library is open to all, a room may always
# import itself; names without a dot below are rooms of miri_steps where there
# is such a room. What is not listed is not allowed.
SCIENCE = {"numpy", "scipy", "astropy"}
PIPELINE = {"jwst", "stpipe", "stdatamodels", "stcal", "gwcs", "asdf", "tweakwcs"}
MAY_IMPORT = {
    "": set(),  # miri_steps/__init__.py itself
    "plugin": set(),
    "parameters": set(),
    "workers": {"distributed", "threadpoolctl"},
    "whole_files": set(),
    "algorithms": SCIENCE | {"drizzle", "photutils", "tweakwcs"},
    "detector": SCIENCE,
    "exposures": SCIENCE | PIPELINE - {"stpipe"} | {"detector"},
    # Steps may save a figure with report, but import it only then: see the test of the start-up below.
    "steps": SCIENCE
    | PIPELINE
    | {"regions", "exposures", "algorithms", "detector", "report", "workers", "whole_files", "plugin"}
    # Only the Step of flux calibration.
    | {"fluxcal"},
    "simulate": SCIENCE | {"stdatamodels", "gwcs", "asdf", "detector"},
    "fluxcal": SCIENCE
    | {"photutils", "synphot", "stpsf", "jwst", "stdatamodels", "stpipe"}
    | {"algorithms", "detector", "whole_files"},
    "report": SCIENCE
    | {"jinja2", "matplotlib", "exposures", "algorithms", "fluxcal", "detector", "whole_files"},
    "cli": {"parameters", "simulate", "report", "demo", "reduction", "fluxcal_chain"},
    # The whole flux calibration is a user of the package too.
    "fluxcal_chain": SCIENCE | {"stdatamodels", "fluxcal", "steps", "report", "detector"},
    # Whole reductions are users of the package too; the report is imported when it is written.
    "reduction": SCIENCE
    | {"jwst", "stpipe", "stdatamodels", "distributed", "threadpoolctl"}
    | {"detector", "parameters", "plugin", "steps", "report", "workers", "whole_files"},
    # The demo is a user of the package: it runs everything, nothing imports it but cli.
    "demo": SCIENCE | PIPELINE | {"matplotlib", "simulate", "steps", "exposures", "detector", "parameters"},
}
# Only these files of fluxcal touch the pipeline.
FLUXCAL_PIPELINE_FILES = {"reference_files", "steps"}


def room_of(path):
    """Return the room a source file belongs to: its folder, or its own name at the top."""
    relative = path.relative_to(PACKAGE).with_suffix("")
    return "" if relative.name == "__init__" and len(relative.parts) == 1 else relative.parts[0]


def imported_by(path):
    """Return what a source file imports: rooms of miri_steps, and top-level names of others."""
    inside = {"", *MAY_IMPORT}
    module = ["miri_steps", *path.relative_to(PACKAGE).with_suffix("").parts]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module[: -node.level], *filter(None, [base])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    found = set()
    for name in names:
        first, *rest = name.split(".")
        if first != "miri_steps":
            found.add(first)
        elif rest and rest[0] in inside:
            found.add(rest[0])
        elif rest and rest[0] in STEPS:
            found.add("steps")
    return found - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_room_imports_only_what_the_design_allows(path):
    room = room_of(path)
    assert room in MAY_IMPORT, f"{room!r} is a new room: say in MAY_IMPORT what it may import"

    forbidden = imported_by(path) - MAY_IMPORT[room] - {room}
    assert not forbidden, f"{path.relative_to(PACKAGE)} imports {sorted(forbidden)}"


def test_only_the_border_of_fluxcal_touches_the_pipeline():
    for path in MODULES:
        if room_of(path) == "fluxcal" and not FLUXCAL_PIPELINE_FILES & {path.stem, path.parent.name}:
            assert not imported_by(path) & {"jwst", "stdatamodels", "stpipe"}, path


def test_the_import_table_is_read_correctly(monkeypatch, tmp_path):
    source = (
        "import numpy as np, os.path\n"
        "from miri_steps import algorithms, __version__, PixelSkyMatchStep\n"
        "from miri_steps.simulate.scene import Scene\n"
        "from ..exposures import mask\n"
        "def late():\n    from . import neighbour\n    import jwst.pipeline\n"
    )
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "report").mkdir()
    path = tmp_path / "report" / "page.py"
    path.write_text(source)

    assert imported_by(path) == {"numpy", "algorithms", "steps", "simulate", "exposures", "report", "jwst"}


def loaded_after(statement):
    """Return the names of all modules a fresh Python holds after a statement."""
    code = f"{statement}; import sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "statement", ["import miri_steps", "import miri_steps.plugin", "import miri_steps.cli"]
)
def test_strun_and_the_command_start_without_loading_the_pipeline(statement):
    loaded = loaded_after(statement)

    heavy = {"jwst", "stpipe", "stdatamodels", "astropy", "numpy", "scipy", "photutils", "matplotlib"}
    assert "miri_steps" in loaded
    assert not heavy & loaded


def test_no_step_loads_the_report_before_it_is_asked_for_one():
    """What is loaded stays loaded: one process tells it of all Steps."""
    loaded = loaded_after(f"from miri_steps import {', '.join(STEPS)}")

    assert {f"miri_steps.steps.{alias}" for _, alias, _ in plugin.get_steps()} <= loaded
    assert not {"miri_steps.report", "miri_steps.simulate"} & loaded


def test_version_is_the_one_in_the_metadata():
    assert miri_steps.__version__ == importlib.metadata.version("miri-steps")


def test_the_installed_version_is_the_one_in_pyproject():
    pyproject = Path(__file__).resolve().parents[1] / "pyproject.toml"

    assert tomllib.loads(pyproject.read_text())["project"]["version"] == miri_steps.__version__


def test_the_tests_see_the_installed_package_and_not_the_folder_they_run_in():
    distribution = importlib.metadata.distribution("miri-steps")
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        pytest.skip("installed with pip install -e: the checkout is the installed package")

    assert PACKAGE == Path(distribution.locate_file("miri_steps"))


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'miri_steps' has no attribute 'SkyMatch'"):
        miri_steps.SkyMatch  # noqa: B018


def test_exported_names_are_the_steps_and_the_version():
    assert sorted(miri_steps.__all__) == sorted([*STEPS, "__version__"])
    assert set(miri_steps.__all__) <= set(dir(miri_steps))


def step_classes():
    """Return the classes the plugin names, with what it says about them."""
    from stpipe import Step

    return [
        (utilities.import_class(class_name, subclassof=Step), alias, is_pipeline)
        for class_name, alias, is_pipeline in plugin.get_steps()
    ]


def test_the_plugin_says_what_the_classes_say():
    from stpipe import Pipeline

    for step_class, alias, is_pipeline in step_classes():
        assert step_class.class_alias == alias
        assert issubclass(step_class, Pipeline) == is_pipeline
        assert step_class is getattr(miri_steps, step_class.__name__)


def test_one_stem_serves_a_step_everywhere():
    for step_class, alias, _ in step_classes():
        assert step_class.__module__ == f"miri_steps.steps.{alias}"


def test_every_step_in_the_steps_room_is_in_the_plugin():
    from stpipe import Step

    named = {step_class for step_class, _, _ in step_classes()}
    for path in (PACKAGE / "steps").glob("[!_]*.py"):
        module = importlib.import_module(f"miri_steps.steps.{path.stem}")
        defined = {
            item
            for item in vars(module).values()
            if isinstance(item, type) and issubclass(item, Step) and item.__module__ == module.__name__
        }
        assert {step_class for step_class in defined if step_class.class_alias} <= named


def test_every_parameter_is_explained_for_strun_and_the_docs():
    for step_class, _, _ in step_classes():
        spec = load_spec_file(step_class)
        for name in spec.scalars:
            comment = (spec.inline_comments[name] or "").lstrip("# ")
            assert comment, f"{step_class.__name__}.{name} has no comment in its spec"
            # strun hands the comment to argparse as help, which formats it with %.
            assert "%" not in comment.replace("%%", ""), f"{step_class.__name__}.{name}: write 'percent'"


@pytest.mark.parametrize("step", plugin.get_steps(), ids=lambda step: step[1])
def test_strun_finds_our_step_by_alias_and_by_name(step):
    class_name, alias, _ = step

    assert utilities.resolve_step_class_alias(alias) == class_name
    assert utilities.resolve_step_class_alias(f"miri-steps::{alias}") == class_name


def test_no_alias_of_another_package_is_taken():
    ours = {info.class_alias for info in entry_points.get_steps() if info.package_name == "miri-steps"}
    others = {info.class_alias for info in entry_points.get_steps() if info.package_name != "miri-steps"}

    assert ours == {alias for _, alias, _ in plugin.get_steps()}
    assert "skymatch" in others
    assert not ours & others


def test_strun_skymatch_is_still_the_one_of_jwst():
    assert utilities.resolve_step_class_alias("skymatch") == "jwst.step.SkyMatchStep"


# What is saved, how much is kept in memory, and what HISTORY tells in other words.
NOT_RECORDED = {
    *("in_memory", "maximum_cores", "executor", "rateints", "stepsize"),
    *("save_background", "save_corrections", "save_counts", "save_detector_background"),
    *("save_figure", "save_levels", "save_mask"),
}


# What measures and changes nothing has no HISTORY to write.
MEASURES = {"star_photometry"}


@pytest.mark.parametrize(
    ("class_name", "alias"), [step[:2] for step in plugin.get_steps() if step[1] not in MEASURES]
)
def test_history_records_every_parameter_that_changes_numbers(class_name, alias):
    module = importlib.import_module(f"miri_steps.steps.{alias}")
    step = getattr(miri_steps, class_name.rpartition(".")[2])
    parameters = set(step.load_spec_file()) - set(Step.load_spec_file())

    assert parameters - NOT_RECORDED == set(module._RECORDED)
