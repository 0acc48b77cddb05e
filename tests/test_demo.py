"""The demo: what it measures, what it refuses, and one run of it on a small field."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable
from jwst.stpipe import Step

from miri_steps import cli, demo
from miri_steps.demo import measure, numbers, pipelines
from miri_steps.demo.pipelines import Run

SMALL = demo.Field(tiles=(2, 1), dithers=2, tile_step=(18.0, 0.0), subarray="SUB256", radius=40.0)


def test_level_error_knows_no_common_offset():
    true = np.array([7.20, 7.22, 6.02, 6.06])

    assert measure.level_error(true - 5.0, true) == pytest.approx(0.0, abs=1e-12)
    assert measure.level_error(true + [0.1, -0.1, 0.1, -0.1], true) == pytest.approx(0.1)


def test_difference_has_no_median_and_keeps_gaps():
    truth = np.linspace(0, 9, 100).reshape(10, 10)
    image = truth + 3.0
    image[0, 0] = np.nan

    found = measure.difference(image, truth)

    assert np.isnan(found[0, 0])
    np.testing.assert_allclose(found.ravel()[1:], 0.0, atol=1e-12)


def test_difference_refuses_other_grids():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 2\) and \(3, 2\)"):
        measure.difference(np.zeros((2, 2)), np.zeros((3, 2)))


def test_tile_areas_leave_out_what_two_tiles_see_and_read_every_plane():
    # 40 exposures in two tiles: bits beyond the 32nd are in the second plane.
    tile = np.repeat([1, 2], 20)
    context = np.zeros((2, 1, 4), np.int32)
    context[0, 0, :2] = 1 << 3
    context[0, 0, 2] = np.uint32(1 << 31).astype(np.int32)
    context[1, 0, 1] = 1 << 7

    first, second = measure.tile_areas(context, tile)

    assert first.tolist() == [[True, False, False, False]]
    assert second.tolist() == [[False, False, True, False]]


def test_tile_step_is_the_range_of_the_tiles():
    remainder = np.random.default_rng(1).normal(0, 0.05, (300, 300))
    remainder[:, 150:] += 0.2
    remainder[0] = np.nan
    left = np.zeros(remainder.shape, bool)
    left[:, :140] = True

    assert measure.tile_step(remainder, [left, left[:, ::-1]]) == pytest.approx(0.2, abs=0.002)


def test_background_error_sees_structure_and_no_noise():
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 0.05, (360, 361))
    noise[100, 100] = np.nan
    noise[200, 200] = 1e3
    steps = np.kron(rng.choice([-0.1, 0.1], (20, 20)), np.ones((18, 18)))
    steps = np.pad(steps, ((0, 0), (0, 1)))

    assert measure.background_error(noise) < 0.005
    assert measure.background_error(noise + steps + 4.0) == pytest.approx(0.1, rel=0.1)


def test_a_folder_in_use_is_refused_and_left_alone(tmp_cwd):
    (tmp_cwd / "mine").mkdir()
    (tmp_cwd / "mine" / "paper.tex").write_text("precious")

    with pytest.raises(SystemExit, match="mine exists and is not an empty folder") as stopped:
        cli.main(["demo", "mine"])

    assert str(stopped.value).startswith("miri-steps demo: ")
    assert [path.name for path in (tmp_cwd / "mine").iterdir()] == ["paper.tex"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_cwd):
    (tmp_cwd / "mine").write_text("precious")

    with pytest.raises(FileExistsError, match="not an empty folder"):
        demo.run("mine")

    assert (tmp_cwd / "mine").read_text() == "precious"


def test_a_pipeline_that_fails_names_its_log(tmp_cwd):
    with pytest.raises(
        RuntimeError, match=r"the broken one failed with exit code [1-9]\d*, see .*broken\.log: ."
    ):
        pipelines.run(Run("broken", "the broken one", "nowhere.asdf"), tmp_cwd, association="asn.json")

    log = (tmp_cwd / "broken.log").read_text()
    assert log.startswith("$ strun nowhere.asdf asn.json ")
    assert "nowhere.asdf" in log.split("\n", 1)[1]


def test_ctrl_c_stops_the_pipeline_too(tmp_cwd):
    script = tmp_cwd / "strun"
    script.write_text(
        f"#!{sys.executable}\nimport os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n"
    )
    script.chmod(0o755)
    code = (
        # A job in the background may be started with SIGINT ignored, and hands that on.
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path\n"
        "from miri_steps.demo import pipelines\n"
        f"pipelines._strun = lambda: {str(script)!r}\n"
        "pipelines.run(pipelines.Run('slow', 'slow', 'slow'), Path('.'))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    log = tmp_cwd / "slow.log"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") == 2):
        time.sleep(0.05)
    parent.send_signal(signal.SIGINT)

    assert "KeyboardInterrupt" in parent.communicate(timeout=30)[1]
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text().split("\n")[1]), 0)


@pytest.mark.parametrize(
    ("raised", "code"),
    [(RuntimeError("see stock.log"), "miri-steps demo: see stock.log"), (KeyboardInterrupt(), 130)],
)
def test_the_command_ends_with_a_word(raised, code, monkeypatch, capsys):
    def fail(folder):
        raise raised

    monkeypatch.setattr(demo, "run", fail)

    with pytest.raises(SystemExit) as stopped:
        cli.main(["demo", "here"])

    assert stopped.value.code == code
    assert ("what was made so far is in here" in capsys.readouterr().err) == (code == 130)


# The pipeline that the demo starts as a process: it is told the most.
STARTED = "miri_steps_subtracted"


def strun_here(words, folder, log):
    """Do in this process what the command does, and say the same of it."""
    begun = time.monotonic()
    with open(log, "w") as out, contextlib.redirect_stderr(out), contextlib.chdir(folder):
        with warnings.catch_warnings():
            # In a process of its own no test hears them.
            warnings.simplefilter("ignore")
            Step.from_cmdline(words)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 0, time.monotonic() - begun, memory * (1.0 if sys.platform == "darwin" else 1024.0) / 1e9


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run the demo, with one of its pipelines in a process of its own: each takes seconds to start."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    start = pipelines._time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pipelines,
            "_time",
            lambda words, folder, log: (start if log.stem == STARTED else strun_here)(words, folder, log),
        )
        table = demo.run(folder, SMALL)
    return folder, table


def test_the_demo_finds_our_levels_right_and_the_stock_ones_worse(finished):
    _, table = finished
    stock, ours, subtracted = table

    # The stripes move with the exposures: that much of them, at the most, is taken for sky.
    for row in (ours, subtracted):
        assert row["level_error"].value < SMALL.stripes
        assert row["level_error"] < 0.2 * stock["level_error"]
    assert ours["tile_step"] < stock["tile_step"]
    assert subtracted["run"] == STARTED
    assert subtracted["time"].value > 1
    assert 0.1 < subtracted["memory"].value < 4


def test_the_demo_leaves_what_it_promises(finished):
    folder, table = finished

    for name in table["run"]:
        assert fits.getdata(folder / name / "demo_i2d.fits").ndim == 2
        assert "Step resample done" in (folder / f"{name}.log").read_text()
    written = QTable.read(folder / "demo_numbers.ecsv")
    assert written["level_error"].unit == "MJy / sr"
    np.testing.assert_allclose(written["level_error"].value, table["level_error"].value)
    assert (folder / "miri_image3_pixel_skymatch.asdf").exists()
    assert not list((folder / "truth").glob("*_cal.fits"))


def test_the_demo_draws_where_matplotlib_is(finished):
    pytest.importorskip("matplotlib")

    assert (finished[0] / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_demo_says_so(monkeypatch):
    monkeypatch.delitem(sys.modules, "miri_steps.demo.picture", raising=False)
    monkeypatch.delattr(demo, "picture", raising=False)
    for name in ("matplotlib", "matplotlib.axes"):
        monkeypatch.setitem(sys.modules, name, None)
    told = []

    assert demo._load_picture(told.append) is None
    assert "matplotlib is not installed" in told[0]


def test_the_report_shows_every_number_with_its_unit(finished):
    folder, table = finished

    text = numbers.report(table, 4, folder, None)

    for row in table:
        assert f"{row['level_error'].value:.4f}" in text
        assert f"{row['memory'].value:.2f}" in text
    assert "rms over the 4 exposures" in text
    assert text.count("MJy/sr") >= 3
