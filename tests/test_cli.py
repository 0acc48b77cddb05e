import sys
from types import ModuleType

import pytest
from stpipe import config_parser

from miri_steps import __version__, cli, parameters


def test_parameters_without_a_name_lists_each_file_with_its_first_comment(capsys):
    cli.main(["parameters"])

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == parameters.names()
    assert "image3" in parameters.names()
    assert "PixelSkyMatchStep in the place of skymatch" in lines[parameters.names().index("image3")]


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
    path = parameters.copy(name)

    config = config_parser.load_config_file(str(path))

    assert config["class"].startswith("jwst.pipeline.")


def test_image3_parameters_replace_skymatch_and_nothing_else():
    config = config_parser.load_config_file(str(parameters.copy("image3")))

    assert set(config) == {"class", "name", "steps"}
    assert set(config["steps"]) == {"skymatch"}
    skymatch = {key: config["steps"]["skymatch"][key] for key in ("skip", "post_hooks")}
    assert skymatch == {"skip": True, "post_hooks": ["miri_steps.PixelSkyMatchStep"]}


def test_each_file_says_what_its_pipeline_works_on(tmp_cwd, capsys):
    cli.main(["parameters", "detector1"])

    assert "strun miri_detector1.asdf uncal.fits" in capsys.readouterr().out
    assert {parameters.input_of(name) for name in parameters.names()} == {"asn.json", "uncal.fits"}


def test_image3_hot_pixels_adds_its_hook_to_those_of_image3():
    both, image3 = (
        config_parser.load_config_file(str(parameters.copy(name))) for name in ("image3_hot_pixels", "image3")
    )

    assert both["steps"]["skymatch"] == image3["steps"]["skymatch"]
    assert both["steps"]["tweakreg"]["pre_hooks"] == ["miri_steps.MedianHotPixelStep"]


def test_image3_super_background_takes_the_background_before_the_sky_is_matched():
    background, image3 = (
        config_parser.load_config_file(str(parameters.copy(name)))
        for name in ("image3_super_background", "image3")
    )

    assert set(background["steps"]) == {"skymatch"}
    skymatch = background["steps"]["skymatch"]
    assert skymatch["pre_hooks"] == ["miri_steps.SuperBackgroundStep"]
    assert {key: skymatch[key] for key in ("skip", "post_hooks")} == {
        key: image3["steps"]["skymatch"][key] for key in ("skip", "post_hooks")
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


def test_image3_tile_astrometry_averages_behind_tweakreg():
    tiles, image3 = (
        config_parser.load_config_file(str(parameters.copy(name)))
        for name in ("image3_tile_astrometry", "image3")
    )

    assert set(tiles["steps"]) == {"tweakreg", "skymatch"}
    hooks = ["miri_steps.TileAstrometryStep(save_corrections=True)"]
    assert tiles["steps"]["tweakreg"]["post_hooks"] == hooks
    assert tiles["steps"]["skymatch"] == image3["steps"]["skymatch"]
