import sys
from importlib.resources import as_file, files
from types import ModuleType

import pytest
from stpipe import config_parser

from miri_steps import __version__, cli, parameters


def test_parameters_without_a_name_lists_each_file_with_its_first_comment(capsys):
    cli.main(["parameters"])

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == parameters.names()
    assert "image3" in parameters.names()
    assert "with all steps" in lines[parameters.names().index("image3")]


def test_parameters_writes_the_packaged_file_here(tmp_cwd, capsys):
    cli.main(["parameters", "image3"])

    assert (tmp_cwd / "miri_image3.asdf").read_text() == parameters.read("image3")
    assert "strun miri_image3.asdf asn.json" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["image3", "miri_image3", "miri_image3.asdf"])
def test_parameters_takes_the_short_name_and_the_file_name(name, tmp_cwd):
    cli.main(["parameters", name, "-o", "mine.asdf"])

    assert [path.name for path in tmp_cwd.iterdir()] == ["mine.asdf"]


def test_parameters_never_overwrites(tmp_cwd):
    (tmp_cwd / "miri_image3.asdf").write_text("edited by hand")

    with pytest.raises(SystemExit, match="miri_image3.asdf exists and is not overwritten"):
        cli.main(["parameters", "image3"])

    assert (tmp_cwd / "miri_image3.asdf").read_text() == "edited by hand"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["image4"], "no parameter file named 'image4'; there are: .*image3"),
        (["image3", "-o", "nowhere/mine.asdf"], "nowhere/mine.asdf"),
        (["-o", "mine.asdf"], "needs the NAME"),
    ],
)
def test_parameters_says_why_it_writes_nothing(arguments, message, tmp_cwd):
    with pytest.raises(SystemExit, match=message):
        cli.main(["parameters", *arguments])

    assert not list(tmp_cwd.iterdir())


@pytest.mark.parametrize("name", parameters.names())
def test_stpipe_reads_the_parameter_files(name):
    assert config_of(name)["class"].startswith("jwst.pipeline.")


def config_of(name):
    with as_file(files(parameters) / parameters.file_name(name)) as path:
        return config_parser.load_config_file(str(path))


def test_a_file_for_one_step_hooks_it_in_and_matches_the_sky():
    alone = config_of("image3_pixel_skymatch")

    assert set(alone) == {"class", "name", "steps"}
    assert set(alone["steps"]) == {"skymatch"}
    skymatch = {key: alone["steps"]["skymatch"][key] for key in ("skip", "post_hooks")}
    assert skymatch == {"skip": True, "post_hooks": ["miri_steps.PixelSkyMatchStep"]}
    for name, step, kind, hook in (
        ("median_hot_pixel", "tweakreg", "pre_hooks", "miri_steps.MedianHotPixelStep"),
        ("super_background", "skymatch", "pre_hooks", "miri_steps.SuperBackgroundStep"),
        ("tile_astrometry", "tweakreg", "post_hooks", "miri_steps.TileAstrometryStep(save_corrections=True)"),
    ):
        steps = config_of(f"image3_{name}")["steps"]
        assert set(steps) <= {"tweakreg", "skymatch"}
        assert steps[step][kind] == [hook]
        assert {key: steps["skymatch"][key] for key in skymatch} == skymatch


def test_the_variants_of_image3_differ_in_what_they_are_for():
    hooks = {
        name: [
            (
                step,
                kind,
                hook.partition("(")[0].removeprefix("miri_steps."),
                hook.partition("(")[2].rstrip(")"),
            )
            for step, values in config_of(name)["steps"].items()
            for kind in ("pre_hooks", "post_hooks")
            for hook in values.get(kind, ())
        ]
        for name in ("image3", "image3_nebular", "image3_deep", "image3_long")
    }

    assert hooks["image3"] == [
        ("tweakreg", "pre_hooks", "MedianHotPixelStep", ""),
        ("tweakreg", "post_hooks", "TileAstrometryStep", "save_corrections=True"),
        ("skymatch", "pre_hooks", "SuperBackgroundStep", ""),
        ("skymatch", "post_hooks", "PixelSkyMatchStep", ""),
    ]
    changed = {
        name: [hook[2:] for hook in sorted(set(listed) ^ set(hooks["image3"]))]
        for name, listed in hooks.items()
    }
    assert changed["image3_nebular"] == [
        ("PixelSkyMatchStep", ""),
        ("PixelSkyMatchStep", "subtract_detector_background=True"),
        ("SuperBackgroundStep", ""),
    ]
    assert changed["image3_deep"] == [("SuperBackgroundStep", ""), ("SuperBackgroundStep", "passes=2")]
    assert changed["image3_long"] == [
        ("TileAstrometryStep", "corrections='F770W_tiles'"),
        ("TileAstrometryStep", "save_corrections=True"),
    ]
    assert config_of("image3_long")["steps"]["tweakreg"]["skip"] is True


def test_each_file_says_what_its_pipeline_works_on(tmp_cwd, capsys):
    cli.main(["parameters", "detector1"])

    assert "strun miri_detector1.asdf uncal.fits" in capsys.readouterr().out
    assert {parameters.input_of(name) for name in parameters.names()} == {
        "asn.json",
        "rate.fits",
        "uncal.fits",
    }


def test_demo_runs_in_the_folder_it_is_given(monkeypatch, tmp_cwd):
    folders = []
    fake = ModuleType("miri_steps.demo")
    fake.run = folders.append
    monkeypatch.setitem(sys.modules, "miri_steps.demo", fake)
    monkeypatch.setattr("miri_steps.demo", fake, raising=False)

    cli.main(["demo"])
    cli.main(["demo", str(tmp_cwd / "elsewhere")])

    assert [folder.name for folder in folders] == ["miri_demo", "elsewhere"]


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])

    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"miri_steps {__version__}\n"


def test_without_a_command_the_usage_is_shown(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([])

    assert stopped.value.code == 2
    assert "usage: miri-steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere must be a folder of exposures"),
        ([".", "--set", "resample"], "--set must be STEP.PARAMETER=VALUE, got 'resample'"),
        ([".", "--set", "resample.pixel_scale=tiny"], 'resample.pixel_scale=tiny cannot be: .*"tiny"'),
        (
            [".", "--set", "skymatc.skip=true"],
            "the step of a change must be one of .*skymatch.*, got 'skymatc",
        ),
        ([".", "-p", "image4"], "image4 must be a parameter file.*there are: detector1, image2, image3"),
        ([".", "--cores", "0"], "maximum_cores must be a number of at least 1 .*, got '0'"),
        ([".", "--from", "x1d"], "must be one of uncal, rate, cal, got 'x1d'"),
        (["."], "must hold exposures, but no file in it ends with _uncal.fits or _rate.fits"),
    ],
)
def test_reduce_says_why_it_does_nothing(arguments, message, tmp_cwd):
    with pytest.raises(SystemExit, match=message) as stopped:
        cli.main(["reduce", *arguments])

    assert str(stopped.value).startswith("miri-steps reduce: ")
    assert not list(tmp_cwd.iterdir())


def test_commas_part_the_items_of_a_list():
    assert cli._parse_change("super_background.background_files=a_cal.fits, b_cal.fits,") == (
        "super_background.background_files",
        ["a_cal.fits", "b_cal.fits"],
    )
    assert cli._parse_change("tweakreg.abs_refcat=gaia=3.ecsv") == ("tweakreg.abs_refcat", "gaia=3.ecsv")
