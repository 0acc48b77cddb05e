"""PixelSkyMatchStep against truth, inside the real pipeline, and beside the stock step."""

import itertools
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable
from jwst import datamodels
from jwst.datamodels import ModelLibrary
from jwst.pipeline import Image3Pipeline
from jwst.skymatch import SkyMatchStep
from stcal.skymatch import SkyStats
from stpipe.config_parser import load_spec_file

from miri_steps import PixelSkyMatchStep, cli, detector
from miri_steps.simulate import Scene, grid, mosaic, observe

# Five times the standard error of a level of these fields [MJy/sr]; the stock step is off by 0.03.
CLOSE = 0.002
STATISTICS = ("median", "midpt", "mean", "mode")
FLAT = {"detector_order": 0}


def assert_levels(found, expected, *, within=CLOSE):
    assert list(found) == list(expected)
    assert list(found.values()) == pytest.approx(list(expected.values()), abs=within)


def stem(name):
    """Exposure from the name of any of its products."""
    return f"{name.partition('_mirimage')[0]}_mirimage_cal.fits"


def levels_in(paths):
    """Levels in the headers of files, by exposure."""
    return {stem(path.name): fits.getval(path, "BKGLEVEL") for path in sorted(paths)}


# Every way of use


def test_levels_are_true_for_an_association(nebula, levels_of, status_of):
    result = PixelSkyMatchStep.call(str(nebula.association))

    assert_levels(levels_of(result), nebula.level())
    assert min(levels_of(result).values()) == 0
    assert set(status_of(result).values()) == {("COMPLETE", "COMPLETE")}


def test_the_field_is_a_test(nebula, opened, levels_of):
    """The stock step cannot pass what is asked of ours, not even in one visit."""
    found = levels_of(SkyMatchStep.call(ModelLibrary(opened(nebula.files[:3]))))

    error = np.array(list(found.values())) - list(nebula.level(nebula.names[:3]).values())
    assert np.std(error) > 5 * CLOSE


@pytest.fixture(scope="module")
def levels(row, levels_of):
    """Levels that the Step finds by itself."""
    return levels_of(PixelSkyMatchStep.call(str(row.association)))


@pytest.mark.parametrize(
    "way",
    [lambda field, opened: tuple(field.files), lambda field, opened: ModelLibrary(opened(field.files))],
    ids=["tuple of files", "library of models"],
)
def test_what_the_contract_does_not_hand_over_has_the_same_levels(way, row, opened, levels, levels_of):
    assert levels_of(PixelSkyMatchStep.call(way(row, opened))) == levels


def test_an_instance_can_be_run_again_and_again(ring, pieces, loaded, levels_of):
    step = PixelSkyMatchStep(detector_order=0)

    for field, count in ((pieces, 2), (ring, 4)):
        found = levels_of(step.run(loaded(field.files[:count])))
        assert_levels(found, field.level(field.names[:count]))


def test_strun_by_name(ring, strun, tmp_cwd):
    said = strun("miri_steps.PixelSkyMatchStep", ring.association)

    assert "Matched 4 exposures through 6 overlaps" in said
    files = sorted(tmp_cwd.iterdir())
    assert [path.name for path in files] == [
        name.replace("_cal.fits", "_pixel_skymatch.fits") for name in ring.names
    ]
    assert_levels(levels_in(files), ring.level())
    header = fits.getheader(files[0])
    assert header["S_SKYMAT"] == "COMPLETE"
    assert header["BKGMETH"] == "match"
    assert header["BKGSUB"] is False


def test_strun_by_alias(row, strun, tmp_cwd):
    said = strun("pixel_skymatch", row.files[1], "--subtract=false", "--output_dir=again")

    assert "nothing to match" in said
    assert [path.name for path in (tmp_cwd / "again").iterdir()] == [
        row.names[1].replace("_cal.fits", "_pixel_skymatch.fits")
    ]


def test_strun_skymatch_is_still_the_stock_step(row, strun, opened, tmp_cwd, levels_of):
    said = strun("skymatch", row.association)

    assert "stcal.skymatch" in said
    assert "miri_steps" not in said
    found = [fits.getval(path, "BKGLEVEL") for path in sorted(tmp_cwd.glob("*.fits"))]
    assert found == list(levels_of(SkyMatchStep.call(ModelLibrary(opened(row.files)))).values())


# Inside calwebb_image3

STEPS = {step: {"skip": True} for step in ("tweakreg", "source_catalog")}
FAST = STEPS | {"outlier_detection": {"skip": True}}
OPTIONS = ["--steps.tweakreg.skip=true", "--steps.source_catalog.skip=true"]


@pytest.fixture
def assert_mosaic(row, loaded, tmp_cwd):
    """Hold the mosaic to each exposure with its true sky at the common level."""

    def check(sky):
        with datamodels.open(tmp_cwd / "field_i2d.fits") as mosaic:
            assert mosaic.meta.cal_step.skymatch == "COMPLETE"
            assert mosaic.meta.cal_step.resample == "COMPLETE"
            for model, own in zip(loaded(row.files), row.sky, strict=True):
                shape = model.data.shape
                box = tuple(slice(n // 2 - 10, n // 2 + 10) for n in shape)
                x, y = mosaic.meta.wcs.invert(*model.meta.wcs(*np.indices(shape)[::-1]))
                x, y = (np.rint(value[box]).astype(int) for value in (x, y))
                true = np.nanmedian(model.data[box]) - own + sky
                assert np.nanmedian(mosaic.data[y, x]) == pytest.approx(true, abs=0.05)

    return check


def assert_as_alone(said, levels):
    """Hold what a hook did to what the Step does by itself."""
    found = dict(re.findall(r"(\S+_cal\.fits): (?:sky )?level ([-+.e\d]+) \+-", said))
    assert {name: float(value) for name, value in found.items()} == pytest.approx(levels, rel=1e-4)


def test_hook_on_the_command_line(row, shell, levels, assert_mosaic):
    """In a process of its own, as from a shell; the other commands are run in that of the tests."""
    said = shell(
        "strun",
        "calwebb_image3",
        row.association,
        "--steps.skymatch.skip=true",
        "--steps.skymatch.post_hooks=miri_steps.PixelSkyMatchStep,",
        "--steps.outlier_detection.skip=true",
        *OPTIONS,
    )

    assert_as_alone(said, levels)
    assert_mosaic(min(row.sky))


def test_packaged_parameter_file(row, strun, levels, assert_mosaic, tmp_cwd):
    """What the hook has found reaches outlier_detection."""
    cli.main(["parameters", "image3_pixel_skymatch"])

    said = strun("miri_image3_pixel_skymatch.asdf", row.association, *OPTIONS)

    assert_as_alone(said, levels)
    assert_mosaic(min(row.sky))
    flagged = levels_in(tmp_cwd.glob("*_crf.fits"))
    assert flagged == pytest.approx(levels)


def test_hooks_in_python(row, levels, assert_mosaic, caplog):
    """By name and as a class; without subtraction the second finds what the first has found."""
    hooks = ["miri_steps.PixelSkyMatchStep", PixelSkyMatchStep]
    steps = FAST | {"skymatch": {"skip": True, "post_hooks": hooks}}

    Image3Pipeline.call(str(row.association), steps=steps, save_results=True)

    *each, _ = caplog.text.split("Matched 3 exposures")
    assert len(each) == 2
    for said in each:
        assert_as_alone(said, levels)
    assert_mosaic(min(row.sky))


def test_parameters_reach_the_hook(row, levels, assert_mosaic, tmp_cwd):
    hook = (
        "miri_steps.PixelSkyMatchStep(subtract=True, match_down=False, save_levels=True, output_dir='tables')"
    )
    steps = FAST | {"skymatch": {"skip": True, "post_hooks": [hook]}}

    Image3Pipeline.call(str(row.association), steps=steps, save_results=True)

    table = QTable.read(tmp_cwd / "tables" / "field_sky_levels.ecsv")
    values = np.array(list(levels.values()))
    assert table["level"].value == pytest.approx(values - values.max(), abs=1e-4)
    assert_mosaic(max(row.sky))
    assert sorted(path.name for path in tmp_cwd.iterdir()) == ["field_i2d.fits", "tables"]


def test_the_pipelines_own_step_can_be_replaced(row, levels, assert_mosaic, caplog):
    caplog.set_level(logging.INFO, logger="stpipe")
    pipeline = Image3Pipeline(steps=FAST)
    pipeline.skymatch = PixelSkyMatchStep()
    pipeline.skymatch.subtract = True
    pipeline.save_results = True

    pipeline.run(str(row.association))

    assert_as_alone(caplog.text, levels)
    assert_mosaic(min(row.sky))


def test_the_mosaic_has_no_steps(ring, opened, tmp_cwd):
    """Level by level the same scene: with the sky at one level for all, the mosaic is the same."""
    hook = {"skymatch": {"skip": True, "post_hooks": ["miri_steps.PixelSkyMatchStep"]}}
    lowered = opened(ring.files)
    for model, value in zip(lowered, ring.level().values(), strict=True):
        model.data = model.data - np.float32(value)
    for folder, given, steps in (
        ("matched", opened(ring.files), hook),
        ("true", lowered, {"skymatch": {"skip": True}}),
    ):
        Image3Pipeline.call(ModelLibrary(given), steps=FAST | steps, output_dir=folder, save_results=True)

    matched, true = (fits.getdata(next((tmp_cwd / name).glob("*_i2d.fits"))) for name in ("matched", "true"))
    assert np.isfinite(matched).sum() > 100_000
    np.testing.assert_allclose(matched, true, atol=CLOSE)


# Beside the stock step


def test_shared_parameters_have_the_stock_defaults_and_limits():
    ours, stock = load_spec_file(PixelSkyMatchStep), load_spec_file(SkyMatchStep)

    assert {"skymethod", "match_down", "subtract", "skylist", "skystat", "dqbits", "in_memory"} <= set(stock)
    from_configuration = PixelSkyMatchStep()
    from_stock = SkyMatchStep()
    for name in stock:
        own = ours.get(name, stock[name])
        assert own == stock[name]
        assert getattr(from_configuration, name) == getattr(from_stock, name), name


@pytest.fixture
def beside(opened):
    """Run both steps on libraries of their own."""

    def run_both(files, **parameters):
        return [
            step.call(ModelLibrary(opened(files)), **parameters) for step in (SkyMatchStep, PixelSkyMatchStep)
        ]

    return run_both


@pytest.mark.parametrize(
    ("skymethod", "skystat"),
    [("local", name) for name in STATISTICS] + [("global", "mean"), ("global", "mode")],
)
def test_local_and_global_are_the_stock_step(
    skymethod, skystat, row, beside, levels_of, planes_of, status_of
):
    subtract = skystat in ("median", "mode")

    stock, ours = beside(row.files[:2], skymethod=skymethod, skystat=skystat, subtract=subtract)

    levels = levels_of(stock)
    assert len(set(levels.values())) == (2 if skymethod == "local" else 1)
    assert levels_of(ours) == levels
    assert set(status_of(ours).values()) == {("COMPLETE", "COMPLETE")}
    after = planes_of(ours)
    for name, planes in planes_of(stock).items():
        np.testing.assert_array_equal(after[name]["data"], planes["data"])


def test_local_takes_all_stock_parameters(row, beside, loaded, levels_of):
    parameters = {
        "skymethod": "local",
        "lower": 4.0,
        "upper": 8.0,
        "nclip": 2,
        "lsigma": 2.0,
        "usigma": 1.5,
        "binwidth": 0.3,
        "dqbits": "HOT",
        "stepsize": 20,
    }
    files = row.files[:2]

    stock, ours = beside(files, **parameters)

    assert levels_of(ours) == levels_of(stock)
    assert levels_of(ours) != levels_of(PixelSkyMatchStep.call(loaded(files), skymethod="local"))


def skylist(path, entries):
    path.write_text("".join(f"{name} {value}\n" for name, value in entries))
    return str(path)


@pytest.mark.parametrize("subtract", [True, False])
def test_user_is_the_stock_step(subtract, row, beside, loaded, tmp_cwd, levels_of, planes_of):
    entries = list(zip(reversed(row.names), (0.25, 1.5, -0.75), strict=True))
    listed = skylist(tmp_cwd / "sky.txt", entries)

    stock, ours = beside(row.files, skymethod="user", skylist=listed, subtract=subtract)

    assert levels_of(ours) == levels_of(stock) == dict(reversed(entries))
    after, before = planes_of(ours), planes_of(loaded(row.files))
    for name, planes in planes_of(stock).items():
        np.testing.assert_array_equal(after[name]["data"], planes["data"])
        changed = before[name]["data"] - after[name]["data"]
        inside = np.isfinite(changed)
        np.testing.assert_allclose(changed[inside], dict(entries)[name] * subtract, atol=1e-5)


def test_user_works_for_one_exposure(row, tmp_cwd):
    listed = skylist(tmp_cwd / "sky.txt", [(row.names[0], 2.5)])

    with PixelSkyMatchStep.call(row.files[0], skymethod="user", skylist=listed) as model:
        assert model.meta.background.level == 2.5


WRONG_SKYLISTS = [
    (["{0} 1", "{1} 2"], "once, got 2 entries; missing: .*mirimage"),
    (["{0} 1", "{1} 2", "{2} 3", "other_cal.fits 4"], "unknown: .*other"),
    (["{0} 1", "{1} 2", "{2} 3", "{2} 3"], "once, got 4 entries"),
    (["{0} 1", "{1} 2", "{1} 4"], "once, got 3 entries; missing: .*mirimage"),
    (["{0} 1", "{1} 2", "{2} bright"], "a name and a number, got .*bright"),
    (["{0} 1", "{1} 2", "{2} nan"], "a name and a number, got .*nan"),
    (["{0} 1", "{1} 2", "{2}"], "a name and a number"),
]


def test_a_wrong_skylist_is_refused_before_any_work(row, tmp_cwd, opened, planes_of):
    listed = tmp_cwd / "sky.txt"
    library = ModelLibrary(opened(row.files))
    before = planes_of(library)

    for lines, message in WRONG_SKYLISTS:
        listed.write_text("\n".join(lines).format(*row.names))
        with pytest.raises(ValueError, match=message):
            PixelSkyMatchStep.call(library, skymethod="user", skylist=str(listed), subtract=True)

    after = planes_of(library)
    assert all(np.array_equal(after[name]["data"], before[name]["data"], equal_nan=True) for name in before)


def test_a_missing_skylist_is_refused(row, loaded):
    with pytest.raises(FileNotFoundError, match="nowhere.txt"):
        PixelSkyMatchStep.call(loaded(row.files), skymethod="user", skylist="nowhere.txt")
    with pytest.raises(ValueError, match="no sky value file"):
        PixelSkyMatchStep.call(loaded(row.files), skymethod="user")


def test_match_down_sets_the_free_constant(ring, loaded, levels_of):
    """True, which gives the lowest level 0, is how levels are found above."""
    found = levels_of(PixelSkyMatchStep.call(loaded(ring.files), match_down=False))

    assert max(found.values()) == 0
    assert_levels(found, dict(zip(ring.names, ring.sky - ring.sky.max(), strict=True)))


@pytest.mark.parametrize("match_down", [True, False])
def test_global_match_leaves_the_lowest_statistic_at_zero(match_down, ring, loaded, levels_of):
    """The stock rule for global+match: after it, the lowest sky of all images is zero."""
    result = PixelSkyMatchStep.call(
        loaded(ring.files), skymethod="global+match", match_down=match_down, subtract=True
    )

    assert_levels(
        {name: value - min(levels_of(result).values()) for name, value in levels_of(result).items()},
        ring.level(),
    )
    statistic = SkyStats("mode", None, None, 5, 4.0, 4.0, 0.1)
    left = []
    for model in result:
        good = np.isfinite(model.data) & (model.dq & datamodels.dqflags.pixel["DO_NOT_USE"] == 0)
        left.append(statistic(model.data[good])[0])
    assert min(left) == pytest.approx(0, abs=0.01)
    assert max(left) > 0.1


def test_global_match_agrees_with_the_stock_step_where_that_is_right(levels_of):
    """On an empty sky both find the same levels to the noise of the stock step."""
    plan = grid(10.0, 5.0, n=(2, 1), step=4.0)
    models = list(observe(Scene(10.0, 5.0), plan, "F770W", sky=[4.0, 4.3], subarray="SUB128"))
    for match_down in (True, False):
        stock, ours = (
            levels_of(
                step.call(
                    ModelLibrary([model.copy() for model in models]),
                    skymethod="global+match",
                    match_down=match_down,
                )
            )
            for step in (SkyMatchStep, PixelSkyMatchStep)
        )
        assert list(ours.values()) == pytest.approx(list(stock.values()), abs=0.02)
        assert list(ours.values()) == pytest.approx([4.0, 4.3], abs=0.02)


def test_subtract_takes_exactly_the_level_off_the_data_and_nothing_else(row, loaded, planes_of, levels_of):
    before = planes_of(loaded(row.files))
    kept = PixelSkyMatchStep.call(loaded(row.files))
    taken = PixelSkyMatchStep.call(loaded(row.files), subtract=True)

    assert levels_of(taken) == levels_of(kept)
    for result, factor in ((kept, 0), (taken, 1)):
        levels = levels_of(result)
        for name, planes in planes_of(result).items():
            expected = before[name]["data"] - np.float32(factor * levels[name])
            np.testing.assert_array_equal(planes["data"], expected)
            for other in ("err", "dq", "var_poisson", "var_rnoise", "var_flat"):
                np.testing.assert_array_equal(planes[other], before[name][other])


def test_what_comes_without_subtraction_can_be_matched_again(row, loaded, levels_of):
    result = PixelSkyMatchStep.call(loaded(row.files))

    assert levels_of(PixelSkyMatchStep.call(result)) == levels_of(result)


@pytest.mark.parametrize(
    ("background", "subtract", "message"),
    [
        ({"level": 1.0, "subtracted": None}, False, "set to 1.0 but the 'subtracted' property is undefined"),
        ({"level": None, "subtracted": True}, True, "but the 'level' property is undefined"),
        ({"level": 1.0, "subtracted": True}, False, "inconsistent with background info already"),
        ({"level": 1.0, "subtracted": False}, True, "inconsistent with background info already"),
    ],
)
def test_stock_checks_on_matched_input_hold(background, subtract, message, row, opened):
    models = opened(row.files[:2])
    for name, value in background.items():
        setattr(models[1].meta.background, name, value)

    for skymethod in ("match", "local"):
        with pytest.raises(ValueError, match=message) as error:
            PixelSkyMatchStep.call(models, subtract=subtract, skymethod=skymethod)
        assert row.names[1] in str(error.value)
    # What the stock step checks does not depend on the method.
    with pytest.raises(ValueError, match=message.rpartition("but the ")[2]):
        SkyMatchStep.call(models, subtract=subtract)


def test_levels_add_up_on_what_another_step_subtracted(ring, opened, loaded, levels_of, planes_of):
    """Our levels go on top of those the stock step has taken off."""
    library = ModelLibrary(opened(ring.files))
    stock = SkyMatchStep.call(library, subtract=True)

    result = PixelSkyMatchStep.call(stock, subtract=True, **FLAT)

    found = levels_of(result)
    lowest = min(found.values())
    assert_levels({name: value - lowest for name, value in found.items()}, ring.level())
    before = planes_of(loaded(ring.files))
    for name, planes in planes_of(result).items():
        np.testing.assert_allclose(planes["data"], before[name]["data"] - found[name], atol=2e-5)


# Statistics


# Those found with the mean are in the tables below.
@pytest.mark.parametrize("skystat", sorted({*STATISTICS} - {"mean"}))
def test_every_statistic_finds_the_levels(skystat, nebula, loaded, levels_of):
    found = levels_of(PixelSkyMatchStep.call(loaded(nebula.files), skystat=skystat, **FLAT))

    assert_levels(found, nebula.level())


def test_statistics_are_four(row, loaded, levels_of):
    found = [
        tuple(levels_of(PixelSkyMatchStep.call(loaded(row.files[:2]), skystat=name, **FLAT)).values())
        for name in STATISTICS
    ]

    # midpt is the median read off a histogram
    assert len({found[0], found[2], found[3]}) == 3
    assert found[1] == pytest.approx(found[0], abs=2e-4)


def test_parameters_change_what_is_measured(nebula, opened, levels_of):
    models = opened(nebula.files[:2])
    models[1].data[0:40, 0:40] += 0.5

    def found(skystat, **parameters):
        return levels_of(PixelSkyMatchStep.call(models, skystat=skystat, **FLAT, **parameters))

    plain, unclipped = found("mean"), found("mean", nclip=0)
    # nothing is clipped: the lit corner draws the mean by its share of the overlap
    assert unclipped[nebula.names[1]] - plain[nebula.names[1]] == pytest.approx(0.5 * 0.03, rel=0.7)
    assert found("mean", grid_scale=1.5) != plain
    assert found("midpt", binwidth=2.0) != found("midpt")


def test_clipping_is_on_the_side_it_names(nebula, loaded, levels_of):
    """A hard limit below the difference raises its mean, one above lowers it."""
    models = loaded(nebula.files[:2])

    def difference(**parameters):
        found = levels_of(PixelSkyMatchStep.call(models, skystat="mean", **FLAT, **parameters))
        return found[nebula.names[0]] - found[nebula.names[1]]

    assert difference(lsigma=0.5) > difference() + 0.001
    assert difference(usigma=0.5) < difference() - 0.001


def test_lower_and_upper_leave_pixels_out(ring, opened, levels_of):
    """A lit part of one exposure draws the mean; the limit takes it away."""
    models = opened(ring.files)
    models[0].data[:, 230:] += 500.0
    off, right = (
        levels_of(PixelSkyMatchStep.call(models, skystat="mean", nclip=0, **FLAT, **limit))
        for limit in ({}, {"upper": 100.0})
    )

    assert_levels(right, ring.level(), within=2 * CLOSE)
    assert abs(off[ring.names[0]] - ring.level()[ring.names[0]]) > 1

    models[0].data[:, 230:] -= 1000.0
    right = levels_of(PixelSkyMatchStep.call(models, skystat="mean", nclip=0, **FLAT, lower=-100.0))
    assert_levels(right, ring.level(), within=2 * CLOSE)


def test_dqbits_say_which_flags_are_good(ring, opened, levels_of):
    models = opened(ring.files)
    models[0].data[:, 230:] += 500.0
    models[0].dq[:, 230:] |= datamodels.dqflags.pixel["SATURATED"] | datamodels.dqflags.pixel["DO_NOT_USE"]

    def found(dqbits):
        return levels_of(PixelSkyMatchStep.call(models, skystat="mean", nclip=0, dqbits=dqbits, **FLAT))

    assert_levels(found("~DO_NOT_USE+NON_SCIENCE"), ring.level(), within=2 * CLOSE)
    used = found("DO_NOT_USE, SATURATED")
    assert abs(used[ring.names[0]] - ring.level()[ring.names[0]]) > 1
    assert found(None) == used


# Grouping


def test_grouping_by_visit_finds_the_levels(nebula, loaded, levels_of):
    found = levels_of(PixelSkyMatchStep.call(loaded(nebula.files), grouping="visit"))

    assert_levels(found, nebula.level(), within=2 * CLOSE)


def test_grouping_by_visit_solves_visits_first(nebula, loaded, opened, levels_of):
    """Wrong overlaps with another visit do not reach the levels inside a visit."""
    # Two of each visit.
    clean, spoiled = loaded(nebula.files[1:5]), opened(nebula.files[1:5])
    spoiled[2].data[:, :100] += 0.02

    def inside(models, grouping):
        found = levels_of(PixelSkyMatchStep.call(models, skystat="mean", grouping=grouping, **FLAT))
        values = np.array(list(found.values()))[:2]
        return values - values[0]

    torn = {name: np.ptp(inside(spoiled, name) - inside(clean, name)) for name in ("exposure", "visit")}
    assert torn["exposure"] > 1e-4
    assert torn["visit"] < 0.2 * torn["exposure"]


def test_grouping_by_visit_needs_visits(row, opened):
    models = opened(row.files)
    models[2].meta.observation.visit_id = None

    with pytest.raises(ValueError, match=f"needs VISIT_ID, but {row.names[2]} has none"):
        PixelSkyMatchStep.call(models, grouping="visit")


# Detector background


def test_detector_background_is_recovered(glow, loaded, tmp_cwd, levels_of, planes_of, caplog):
    before = planes_of(loaded(glow.files))

    result = PixelSkyMatchStep.call(
        loaded(glow.files),
        save_detector_background=True,
        subtract_detector_background=True,
        output_dir="tables",
    )

    assert_levels(levels_of(result), glow.level())
    assert re.search(r"[Dd]etector background\D*\d", caplog.text)
    files = [path.name for path in (tmp_cwd / "tables").iterdir()]
    assert files == [glow.names[0].replace("_cal.fits", "_detector_background.fits")]
    with datamodels.open(tmp_cwd / "tables" / files[0]) as saved:
        assert saved.data.shape == detector.SHAPE
        assert saved.meta.bunit_data == "MJy/sr"
        assert saved.meta.instrument.filter == "F770W"
        background, error = np.array(saved.data), np.array(saved.err)
    window = detector.SUBARRAYS["SUB256"].slices
    truth = glow.pattern[window] - glow.pattern[window].mean()
    found = background[window]
    assert np.std(truth) > 0.05
    assert np.std(found - truth) < 0.005
    assert abs(np.mean(found)) < 0.01
    assert np.all(error[window] >= 0)
    assert np.median(error[window]) < 0.02
    for name, planes in planes_of(result).items():
        inside = np.isfinite(planes["data"])
        np.testing.assert_allclose((before[name]["data"] - planes["data"])[inside], found[inside], atol=1e-5)


def test_detector_background_of_the_whole_imager(fullframe, tmp_cwd, levels_of, caplog):
    result = PixelSkyMatchStep.call(
        str(fullframe.association), save_detector_background=True, save_levels=True
    )

    assert_levels(levels_of(result), fullframe.level())
    imager = detector.region_mask("imager")
    truth = fullframe.pattern - fullframe.pattern[imager].mean()
    background = fits.getdata(tmp_cwd / "field_detector_background.fits", "SCI")
    # the sky changes from exposure to exposure, and so a plane cannot be told
    y, x = np.nonzero(imager)
    plane = np.stack([np.ones(len(x)), x, y], axis=-1).astype(float)
    left = (background - truth)[imager]
    left -= plane @ np.linalg.lstsq(plane, left, rcond=None)[0]
    assert np.std(truth[imager]) > 0.05
    assert np.std(left) < 0.005


def test_detector_background_matters(glow, loaded, levels_of):
    """Without it the levels follow the dithers over the hill."""
    found = levels_of(PixelSkyMatchStep.call(loaded(glow.files), **FLAT))

    error = np.array(list(found.values())) - list(glow.level().values())
    assert np.std(error) > 3 * CLOSE


def test_subtracting_background_and_level_twice_is_found_out(row, loaded, planes_of, caplog):
    result = PixelSkyMatchStep.call(loaded(row.files), subtract_detector_background=True)
    first = planes_of(result)
    caplog.clear()

    second = planes_of(PixelSkyMatchStep.call(result, subtract_detector_background=True))

    assert "matched and subtracted before" in caplog.text
    for name in first:
        np.testing.assert_array_equal(second[name]["data"], first[name]["data"])


def test_tiny_dithers_turn_the_detector_background_off(tmp_cwd, levels_of, planes_of, caplog):
    """Three exposures within a tenth of an arcsec; a background that was off was not subtracted."""
    plan = mosaic(10.0, 5.0, tiles=(1, 1), dithers=3, dither_step=0.05)
    models = list(observe(Scene(10.0, 5.0), plan, "F770W", sky=[1.0, 1.5, 1.2], subarray="SUB256"))
    before = planes_of(models)

    result = PixelSkyMatchStep.call(
        models, save_detector_background=True, subtract_detector_background=True, skystat="mean"
    )

    assert re.search("detector background is off: .*shifts between exposures are too small", caplog.text)
    assert "no detector background to save" in caplog.text
    assert not list(tmp_cwd.iterdir())
    assert list(levels_of(result).values()) == pytest.approx([0, 0.5, 0.2], abs=CLOSE)
    for name, planes in planes_of(result).items():
        np.testing.assert_array_equal(planes["data"], before[name]["data"])
    caplog.clear()

    PixelSkyMatchStep.call(result, subtract_detector_background=True)

    assert "Matched 3 exposures" in caplog.text
    assert "matched and subtracted before" not in caplog.text


# Tables


@pytest.fixture(scope="module")
def tables(nebula, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    settings = {"skystat": "mean", "save_levels": True, "output_dir": str(folder)}
    PixelSkyMatchStep.call(str(nebula.association), **settings, **FLAT)
    return folder


def test_table_of_levels(tables, nebula):
    assert sorted(path.name for path in tables.iterdir()) == ["field_sky_levels.ecsv", "field_sky_pairs.ecsv"]
    table = QTable.read(tables / "field_sky_levels.ecsv")

    assert table.colnames == ["exposure", "visit", "group", "component", "level", "error", "overlaps"]
    assert list(table["exposure"]) == nebula.names
    assert list(table["visit"]) == list(nebula.visit)
    assert len(set(table["group"])) == 6
    assert set(table["component"]) == {0}
    assert list(table["overlaps"]) == [5] * 6
    assert table["level"].unit == table["error"].unit == "MJy / sr"
    assert table["level"].value == pytest.approx(nebula.sky - nebula.sky.min(), abs=CLOSE)
    assert np.all(table["error"].value > 1e-5)
    assert np.all(table["error"].value < CLOSE)


def test_table_of_pairs(tables, nebula):
    levels = QTable.read(tables / "field_sky_levels.ecsv")
    table = QTable.read(tables / "field_sky_pairs.ecsv")

    assert set(table.colnames) >= {"i", "j", "difference", "error", "residual", "weight"}
    assert {"pixels", "cells"} & set(table.colnames)
    assert list(zip(table["i"], table["j"], strict=True)) == list(itertools.combinations(nebula.names, 2))
    for name in ("difference", "error", "residual"):
        assert table[name].unit == "MJy / sr"
    level = dict(zip(levels["exposure"], levels["level"].value, strict=True))
    sky = dict(zip(nebula.names, nebula.sky, strict=True))
    for row in table:
        difference = row["difference"].value
        assert difference == pytest.approx(sky[row["i"]] - sky[row["j"]], abs=5 * row["error"].value)
        assert difference - level[row["i"]] + level[row["j"]] == pytest.approx(
            row["residual"].value, abs=1e-9
        )
        assert 0 <= row["weight"] <= 1


def test_errors_are_honest(nebula, ring, pieces, loaded, tables, tmp_cwd):
    """Errors against the truth are as large as the tables say."""
    pulls, pair_pulls = [], []
    for folder, field in ((tables, nebula), (tmp_cwd / "ring", ring), (tmp_cwd / "pieces", pieces)):
        if folder != tables:
            settings = {"skystat": "mean", "save_levels": True, "output_dir": str(folder)}
            PixelSkyMatchStep.call(loaded(field.files), **settings, **FLAT)
        table = QTable.read(next(folder.glob("*_sky_levels.ecsv")))
        for piece in set(table["component"]) - {-1}:
            inside = table["component"] == piece
            off = table["level"].value[inside] - field.sky[inside]
            # n levels and their mean taken off have n - 1 degrees of freedom
            off = (off - off.mean()) * np.sqrt(inside.sum() / (inside.sum() - 1))
            pulls.extend(off / table["error"].value[inside] * np.sqrt((inside.sum() - 1) / inside.sum()))
        sky = dict(zip(field.names, field.sky, strict=True))
        for row in QTable.read(next(folder.glob("*_sky_pairs.ecsv"))):
            true = sky[row["i"]] - sky[row["j"]]
            pair_pulls.append((row["difference"].value - true) / row["error"].value)

    assert len(pulls) == 14
    assert 0.5 < np.sqrt(np.mean(np.square(pulls))) < 2
    assert len(pair_pulls) == 23
    assert 0.5 < np.sqrt(np.mean(np.square(pair_pulls))) < 1.6


def test_tables_without_an_association_are_named_after_an_exposure(row, loaded, tmp_cwd):
    PixelSkyMatchStep.call(loaded(row.files), save_levels=True, output_dir="here")

    name = row.names[0].removesuffix("_cal.fits")
    assert sorted(path.name for path in tmp_cwd.glob("*/*")) == [
        f"{name}_sky_levels.ecsv",
        f"{name}_sky_pairs.ecsv",
    ]


# Parts of the detector


def test_excluded_regions_have_no_say(fullframe, loaded, opened, levels_of):
    """A glow of 0.02 MJy/sr in the coronagraphs of one exposure: too faint to be clipped."""
    clean, lit = loaded(fullframe.files[:2]), opened(fullframe.files[:2])
    lit[1].data[detector.region_mask(["lyot", "4qpm"])] += 0.02

    def found(models, **parameters):
        return list(levels_of(PixelSkyMatchStep.call(models, skystat="mean", **FLAT, **parameters)).values())

    assert found(lit)[1] - found(clean)[1] > 0.002
    expected = found(clean, exclude_regions=["lyot", "4qpm"])
    for regions in (["lyot", "4qpm"], ["lyot", "4qpm_1065", "4qpm_1140", "4qpm_1550"]):
        assert found(lit, exclude_regions=regions) == expected


def test_a_single_region_may_be_named(fullframe, loaded, caplog):
    models = loaded(fullframe.files[:2])
    PixelSkyMatchStep.call(models, exclude_regions="imager", **FLAT)
    coronagraphs = caplog.text
    caplog.clear()
    PixelSkyMatchStep.call(models, **FLAT)

    assert "Matched 2 exposures" in coronagraphs
    counts = [
        int(text.partition("cells of")[0].split()[-1])
        for text in (coronagraphs.split("1/2 ")[1], caplog.text.split("1/2 ")[1])
    ]
    share = (
        detector.region_mask(["lyot", "4qpm"]).sum() / detector.region_mask(["imager", "lyot", "4qpm"]).sum()
    )
    assert counts[0] / counts[1] == pytest.approx(share, rel=0.1)


def test_a_wrong_region_is_refused(row, loaded):
    with pytest.raises(ValueError, match="regions must be among .*lyot.*got .*'mrs'"):
        PixelSkyMatchStep.call(loaded(row.files), exclude_regions=["lyot", "mrs"])


def test_nothing_left_of_the_detector_is_said(ring, loaded, status_of, caplog):
    result = PixelSkyMatchStep.call(loaded(ring.files[:2]), exclude_regions=["imager"])

    assert set(status_of(result).values()) == {("SKIPPED", "SKIPPED")}
    assert f"{ring.names[0]} has no usable pixel" in caplog.text


# Fields that are not one piece, exposures that cannot be used


def warnings_in(caplog):
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)


def test_pieces_are_levelled_each_by_itself(pieces, loaded, levels_of, status_of, planes_of, caplog):
    before = planes_of(loaded(pieces.files))

    result = PixelSkyMatchStep.call(str(pieces.association), subtract=True)

    found, status = levels_of(result), status_of(result)
    assert found[pieces.names[4]] is None
    values = [found[name] for name in pieces.names[:4]]
    assert values == pytest.approx([0, 0.5, 0, 0.2], abs=CLOSE)
    assert values[0] == values[2] == 0
    assert list(status.values()) == [("COMPLETE", "COMPLETE")] * 4 + [("SKIPPED", "SKIPPED")]
    alone = pieces.names[4]
    for plane, value in planes_of(result)[alone].items():
        np.testing.assert_array_equal(value, before[alone][plane])
    told = caplog.text
    first, second = told.index("Piece 1 of 2"), told.index("Piece 2 of 2")
    for name in pieces.names[:2]:
        assert re.search(f"{name}: (sky )?level", told[first:second])
    for name in pieces.names[2:4]:
        assert re.search(f"{name}: (sky )?level", told[second:])
    assert f"{alone} overlaps no other exposure: it is left as it is" in warnings_in(caplog)


def test_pieces_are_levelled_as_if_the_others_were_not_there_and_told_apart_in_tables(
    pieces, loaded, levels_of, tmp_cwd
):
    together = levels_of(PixelSkyMatchStep.call(loaded(pieces.files), save_levels=True, **FLAT))
    alone = levels_of(PixelSkyMatchStep.call(loaded(pieces.files[2:4]), **FLAT))

    for name, value in alone.items():
        assert together[name] == pytest.approx(value, abs=5e-4)
    table = QTable.read(next(tmp_cwd.glob("*_sky_levels.ecsv")))
    assert list(table["component"]) == [0, 0, 1, 1, -1]
    assert list(table["overlaps"]) == [1, 1, 1, 1, 0]
    assert list(np.isnan(table["level"].value)) == [False] * 4 + [True]


@pytest.mark.parametrize("parameters", [{"subtract": True}, {"subtract_detector_background": True}])
def test_a_second_run_is_found_out_where_one_exposure_was_skipped(
    parameters, pieces, opened, planes_of, caplog
):
    """It changes nothing and says so, or is refused."""
    library = PixelSkyMatchStep.call(ModelLibrary(opened(pieces.files[2:])), **parameters)
    first = planes_of(library)
    caplog.clear()

    try:
        PixelSkyMatchStep.call(library, **parameters)
    except ValueError as error:
        assert "subtracted" in str(error)
    else:
        assert "matched and subtracted before" in caplog.text

    for name, planes in planes_of(library).items():
        np.testing.assert_array_equal(planes["data"], first[name]["data"], err_msg=name)


@pytest.mark.parametrize("grouping", ["exposure", "visit"])
@pytest.mark.parametrize("subtract", [True, False])
def test_one_exposure_has_nothing_to_match(subtract, grouping, row, opened, caplog):
    given = opened(row.files[:1])[0]

    with PixelSkyMatchStep.call(given, subtract=subtract, grouping=grouping) as result:
        assert result.meta.cal_step.skymatch == result.meta.cal_step.pixel_skymatch == "SKIPPED"
        assert result.meta.background.level is None
        np.testing.assert_array_equal(result.data, given.data)

    assert "nothing to match" in warnings_in(caplog)
    assert row.names[0] in warnings_in(caplog)
    assert given.meta.cal_step.skymatch is None


@pytest.mark.parametrize("skymethod", ["match", "global+match"])
def test_exposures_that_cannot_be_used_are_skipped_and_named(
    skymethod, nebula, opened, levels_of, status_of, caplog
):
    """One without a WCS, one without a good pixel; the others are matched."""
    models = opened(nebula.files[:4])
    models[0].meta.wcs = None
    models[1].data[:] = np.nan

    result = PixelSkyMatchStep.call(models, skymethod=skymethod)

    status, found = status_of(result), levels_of(result)
    for name, words in zip(nebula.names, ("has no WCS", "has no usable pixel"), strict=False):
        assert status.pop(name) == ("SKIPPED", "SKIPPED")
        assert found.pop(name) is None
        assert f"{name} {words}" in warnings_in(caplog)
    assert set(status.values()) == {("COMPLETE", "COMPLETE")}
    lowest = min(found.values())
    assert_levels({name: value - lowest for name, value in found.items()}, nebula.level(status))


@pytest.mark.parametrize("skymethod", ["match", "global+match"])
def test_nothing_but_empty_exposures(skymethod, row, opened, status_of, tmp_cwd, caplog):
    models = opened(row.files)
    for model in models:
        model.data[:] = np.nan

    result = PixelSkyMatchStep.call(
        models, skymethod=skymethod, save_levels=True, save_detector_background=True, output_dir="tables"
    )

    assert set(status_of(result).values()) == {("SKIPPED", "SKIPPED")}
    for name in row.names:
        assert f"{name} has no usable pixel" in warnings_in(caplog)


def test_a_missing_wcs_is_named_by_the_stock_methods_too(row, opened):
    models = opened(row.files[:2])
    models[0].meta.wcs = None

    with pytest.raises(ValueError, match=f"{row.names[0]}.*WCS"):
        PixelSkyMatchStep.call(models, skymethod="local")


def test_the_field_can_be_found_without_s_region(ring, opened, levels_of):
    models = opened(ring.files)
    for model in models:
        model.meta.wcsinfo.s_region = None

    assert_levels(levels_of(PixelSkyMatchStep.call(models, **FLAT)), ring.level())


def test_mixed_filters_are_refused(row, opened):
    models = opened(row.files)
    models[2].meta.instrument.filter = "F1000W"

    with pytest.raises(ValueError, match=f"one filter, got 2 of F770W .*, 1 of F1000W .{row.names[2]}"):
        PixelSkyMatchStep.call(models)


def test_a_ruined_overlap_is_named_and_has_no_say(ring, opened, levels_of, caplog):
    """An artefact fills the corner that the first exposure shares with the one across."""
    models = opened(ring.files)
    across = models[3]
    y, x = np.indices(models[0].data.shape)
    there = across.meta.wcs.invert(
        *models[0].meta.wcs(x, y, with_bounding_box=False), with_bounding_box=False
    )
    corner = (np.abs(there[0] - 127.5) < 130) & (np.abs(there[1] - 127.5) < 130)
    assert 0.02 < corner.mean() < 0.15
    models[0].data[corner] += 1.0

    result = PixelSkyMatchStep.call(models, **FLAT)

    assert_levels(levels_of(result), ring.level(), within=2 * CLOSE)
    assert re.search(f"{ring.names[0]} and {ring.names[3]} (is|are) off", warnings_in(caplog))
    assert len(re.findall("(is|are) off", warnings_in(caplog))) == 1


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="at least 1 science exposure, got 0"):
        PixelSkyMatchStep.call([])


# Cores


def test_wrong_words_for_cores_are_refused(row, loaded):
    for word in ("several", "0", "-1", "1.5", ""):
        with pytest.raises(ValueError, match="maximum_cores must be a number of at least 1 or one of"):
            PixelSkyMatchStep.call(loaded(row.files), maximum_cores=word)


def test_two_processes_give_the_answer_of_one(row, planes_of, levels_of, tmp_cwd):
    one, two = (
        PixelSkyMatchStep.call(
            row.dictionary(),
            maximum_cores=cores,
            subtract=True,
            subtract_detector_background=True,
            save_levels=True,
            output_dir=cores,
        )
        for cores in ("1", "2")
    )

    assert levels_of(one) == levels_of(two)
    first, second = planes_of(one), planes_of(two)
    for name in first:
        np.testing.assert_array_equal(first[name]["data"], second[name]["data"])
    for table in ("field_sky_levels.ecsv", "field_sky_pairs.ecsv"):
        assert (tmp_cwd / "1" / table).read_text() == (tmp_cwd / "2" / table).read_text()


# Real exposures


@pytest.fixture(scope="module")
def coronagraph(shared_data):
    folder = shared_data / "miri_4qpm_dithers"
    if not folder.is_dir():
        pytest.skip("needs the nine real 4QPM exposures in ../shared/data/miri_4qpm_dithers")
    return folder


def median_and_error(image):
    """Median of the pixels of an image, and its error from the scatter of the medians of blocks of 8 x 8."""
    ny, nx = (n // 8 * 8 for n in image.shape)
    blocks = image[:ny, :nx].reshape(ny // 8, 8, nx // 8, 8).swapaxes(1, 2).reshape(-1, 64)
    blocks = blocks[np.isfinite(blocks).sum(axis=1) > 32]
    middles = np.nanmedian(blocks, axis=1)
    scatter = 1.4826 * np.median(np.abs(middles - np.median(middles)))
    return np.nanmedian(image), 1.2533 * scatter / np.sqrt(len(middles))


@pytest.mark.parametrize(("skystat", "limit"), [("mode", 3.5), ("median", 3.0)])
def test_real_exposures_of_one_scene(
    skystat, limit, coronagraph, loaded, tmp_cwd, levels_of, planes_of, caplog
):
    """
    Nine exposures within 10 mas: what is left between any two is noise, for the Step and pixel by pixel.

    The pixels are asked for their median: the mode of their slightly skewed differences may lie elsewhere.
    """
    models = loaded(sorted(coronagraph.glob("*_cal.fits")))

    result = PixelSkyMatchStep.call(models, skystat=skystat, save_levels=True)

    assert "detector background is off" in caplog.text
    pairs = QTable.read(next(tmp_cwd.glob("*_sky_pairs.ecsv")))
    assert len(pairs) == 36
    pull = (pairs["residual"] / pairs["error"]).value
    assert np.abs(pull).max() < 3
    levels, images = levels_of(result), {}
    assert np.ptp(list(levels.values())) > 3 * np.median(pairs["error"].value)
    for name, planes in planes_of(result).items():
        good = planes["dq"] & datamodels.dqflags.pixel["DO_NOT_USE"] == 0
        images[name] = np.where(good, planes["data"] - levels[name], np.nan)
    pull = []
    for first, second in itertools.combinations(images.values(), 2):
        middle, error = median_and_error(first - second)
        pull.append(middle / error)
    assert np.abs(pull).max() < limit


def test_a_real_full_frame_file_is_read(shared_data, tmp_cwd, caplog):
    import gzip

    packed = next((shared_data / "fullframe_cal").glob("*.fits.gz"))
    path = tmp_cwd / packed.name.removesuffix(".gz")
    path.write_bytes(gzip.decompress(packed.read_bytes()))

    with PixelSkyMatchStep.call(str(path)) as result:
        assert result.meta.cal_step.pixel_skymatch == "SKIPPED"
    assert "nothing to match" in caplog.text
    assert [Path(name).name for name in tmp_cwd.iterdir()] == [path.name]
