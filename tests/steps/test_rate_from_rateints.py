"""Rates rebuilt from integrations: with simulated truth, against ramp_fit itself, and on real data."""

import json
import os
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.stats import mad_std
from jwst import datamodels
from jwst.datamodels import ModelContainer, ModelLibrary
from jwst.pipeline import Detector1Pipeline
from jwst.ramp_fitting import RampFitStep
from jwst.stpipe import Step
from stdatamodels.jwst.datamodels.dqflags import group, pixel

from miri_steps import RateFromRateintsStep, simulate

RA, DEC = 83.6, -69.1
UNUSABLE = pixel["DO_NOT_USE"]
PLANES = ("data", "err", "dq", "var_poisson", "var_rnoise")
STEM = "jw01234001001_02101_00001_mirimage"


@cache
def observe(count=1):
    plan = simulate.grid(RA, DEC, n=(count, 1), step=5.0)
    scene = simulate.Scene(RA, DEC).with_emission(2.0, radius=40, seed=8)
    return simulate.observe(scene, plan, "F770W", sky=3.0, subarray="SUB64")


@cache
def take(number=0, count=1, **settings):
    return simulate.integrate(observe(count), number, **settings)


def integrate(number=0, count=1, **settings):
    """Take an exposure once, and hand out copies of it."""
    made = take(number, count, **settings)
    return replace(made, rate=made.rate.copy(), rateints=made.rateints.copy())


@pytest.fixture
def exposure():
    """One exposure of eight integrations, a twentieth of the samples hit."""
    return integrate(nints=8, cosmic_rays=0.05, jumps=0.05)


@pytest.fixture
def rate(exposure, tmp_path):
    """Its rate on disk, the integrations beside it, in a folder with "rate" in its name."""
    return exposure.write(tmp_path / "first_rate")


def partner(rate):
    return rate.with_name(rate.name.replace("_rate.", "_rateints."))


def planes(model):
    return {name: np.array(getattr(model, name)) for name in PLANES}


def assert_same(first, second):
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


# Truth


def test_clip_finds_the_truth_where_the_mean_does_not(exposure, rate):
    stock = RateFromRateintsStep.call(rate, combine="ivar")
    found = RateFromRateintsStep.call(rate)

    seen = np.isfinite(found.data)
    hit = exposure.hit.any(axis=0)[seen]
    for model, bias, scatter in ((found, 0.05, 1.1), (stock, np.inf, np.inf)):
        deviation = ((model.data - exposure.truth) / model.err)[seen]
        assert abs(deviation.mean()) < bias
        assert deviation.std() < scatter
    assert deviation[hit].mean() > 5
    assert (found.dq[seen][hit] & pixel["JUMP_DET"] > 0).mean() > 0.99
    np.testing.assert_allclose(found.err, np.sqrt(found.var_poisson + found.var_rnoise), rtol=1e-6)


@pytest.mark.parametrize("combine", ["mean", "ivar", "median", "clip"])
def test_errors_are_the_scatter_whatever_the_method(combine):
    exposure = integrate(nints=5, jumps=0.1)

    found = RateFromRateintsStep.call((exposure.rate, exposure.rateints), combine=combine)[0]

    deviation = ((found.data - exposure.truth) / found.err)[np.isfinite(found.data)]
    # 4000 pixels: known to 1.1 %.
    assert deviation.std() == pytest.approx(1, abs=0.04)


# Where the integrations are


def test_rate_file_finds_its_integrations_beside_it(exposure, rate, tmp_cwd):
    found = RateFromRateintsStep.call(str(rate))

    expected = RateFromRateintsStep.call((exposure.rate, exposure.rateints))[0]
    assert_same(planes(found), planes(expected))
    assert type(found) is datamodels.ImageModel
    assert found.meta.filename == f"{STEM}_rate.fits"


@pytest.mark.parametrize("given", ["file", "folder", "renamed"])
def test_integrations_may_be_elsewhere(given, rate, tmp_cwd):
    expected = planes(RateFromRateintsStep.call(rate))
    (tmp_cwd / "elsewhere").mkdir()
    moved = tmp_cwd / "elsewhere" / ("other.fits" if given == "renamed" else partner(rate).name)
    partner(rate).rename(moved)

    found = RateFromRateintsStep.call(rate, rateints="elsewhere" if given == "folder" else str(moved))

    assert_same(planes(found), expected)


@pytest.mark.filterwarnings("ignore:Input association file contains path information")
def test_integrations_in_the_association_are_no_exposures_of_their_own(tmp_cwd):
    files = []
    for number in range(2):
        exposure = integrate(number, 2, nints=3)
        files.append(exposure.write(tmp_cwd / "rates"))
    (tmp_cwd / "ints").mkdir()
    cubes = [Path(shutil.move(partner(path), tmp_cwd / "ints")) for path in files]
    members = [files[0], cubes[1], cubes[0], files[1]]
    listed = [{"expname": str(path.relative_to(tmp_cwd)), "exptype": "science"} for path in members]
    listed.insert(1, {"expname": "stars.ecsv", "exptype": "sourcecat"})
    association = {"asn_id": "a3001", "products": [{"name": "field", "members": listed}]}
    Path("asn.json").write_text(json.dumps(association))
    expected = [planes(RateFromRateintsStep.call(path, rateints="ints")) for path in files]

    for given in (association, "asn.json", [str(path) for path in members], members):
        result = RateFromRateintsStep.call(given, in_memory=given is not association)

        assert isinstance(result, ModelLibrary)
        assert len(result) == 2
        with result:
            for index in range(2):
                model = result.borrow(index)
                assert model.meta.filename == files[index].name
                assert_same(planes(model), expected[index])
                result.shelve(model, index, modify=False)

    models = [datamodels.open(path) for path in members]
    result = RateFromRateintsStep.call(models)
    assert isinstance(result, ModelContainer)
    assert [model.meta.filename for model in result] == [path.name for path in files]
    for model, planes_of in zip(result, expected, strict=True):
        assert_same(planes(model), planes_of)
    for model in models:
        model.close()


def test_integrations_alone_become_a_rate(exposure, rate, tmp_cwd):
    expected = RateFromRateintsStep.call(rate)
    rate.unlink()

    for given in (partner(rate), exposure.rateints):
        found = RateFromRateintsStep.call(given)

        assert type(found) is datamodels.ImageModel
        assert found.meta.filename == f"{STEM}_rate.fits"
        assert found.meta.exposure.nints == 8
        assert found.meta.observation.visit_id == exposure.rateints.meta.observation.visit_id
        for name in ("data", "err", "var_poisson", "var_rnoise"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for given in ([str(partner(rate))], [exposure.rateints]):
        result = RateFromRateintsStep.call(given, save_results=True)
        assert len(result) == 1
        assert [path.name for path in tmp_cwd.glob("*.fits")] == [f"{STEM}_rate_from_rateints.fits"]


def test_a_library_of_integrations_becomes_one_of_rates(rate):
    association = {
        "products": [{"name": "a", "members": [{"expname": str(partner(rate)), "exptype": "science"}]}]
    }
    library = ModelLibrary(association, on_disk=True)

    result = RateFromRateintsStep.call(library)

    assert result is library
    with result:
        model = result.borrow(0)
        assert model.data.ndim == 2
        assert model.meta.cal_step.rate_from_rateints == "COMPLETE"
        result.shelve(model, 0, modify=False)


# The pair


def test_a_pair_comes_back_with_a_new_rate_and_the_same_integrations(exposure, tmp_cwd):
    before = planes(exposure.rate), planes(exposure.rateints)

    rate, rateints = RateFromRateintsStep.call((exposure.rate, exposure.rateints), save_results=True)

    assert rateints is exposure.rateints
    assert rate is not exposure.rate
    assert_same(planes(exposure.rate), before[0])
    assert_same(planes(rateints), before[1])
    assert [path.name for path in tmp_cwd.iterdir()] == [f"{STEM}_rate_from_rateints.fits"]


def test_a_pair_may_be_incomplete(exposure, caplog):
    step = RateFromRateintsStep()

    assert step.run((None, None)) == (None, None)
    assert step.run((exposure.rate, None)) == (exposure.rate, None)
    assert "left as it is" in caplog.text
    rate, rateints = step.run((None, exposure.rateints))
    assert rate.meta.filename == f"{STEM}_rate.fits"
    assert rateints is exposure.rateints


# Against ramp_fit


def fit(ramp, folder):
    """Fit a ramp as ramp_fit does, without the words to CRDS that follow when it is called."""
    references = simulate.reference_files(folder, ramp.meta.subarray.name)["ramp_fit"]
    return RampFitStep(**references).process(ramp)


def hurt_ramp():
    """Make a ramp of every kind of flag that ramp_fit has a rule for."""
    y, x = np.mgrid[:64, :72]
    bright = 200 + 60000 * np.exp(-((x - 40) ** 2 + (y - 30) ** 2) / 30)
    ramp = simulate.ramp(bright, nints=5, ngroups=15, level="ramp")
    rng = np.random.default_rng(3)
    for name, share in (("JUMP_DET", 0.01), ("DO_NOT_USE", 0.02), ("SATURATED", 0.002)):
        ramp.groupdq[rng.random(ramp.groupdq.shape) < share] |= np.uint8(group[name])
    whole = rng.random((5, 64, 72)) < 0.02
    ramp.groupdq[np.broadcast_to(whole[:, None], ramp.groupdq.shape)] |= np.uint8(group["DO_NOT_USE"])
    ramp.groupdq[:, :, 10, 10:14] |= np.uint8(group["SATURATED"])
    ramp.groupdq[:4, :, 12, 10:14] |= np.uint8(group["SATURATED"])
    ramp.groupdq[2, :, 14, 10:14] = group["JUMP_DET"]
    ramp.groupdq[1, 3, 16, 10:14] |= np.uint8(pixel["PERSISTENCE"])
    ramp.pixeldq[20, 10:14] |= np.uint32(pixel["HOT"])
    ramp.pixeldq[22, 10:14] |= np.uint32(pixel["DO_NOT_USE"] | pixel["DEAD"])
    return ramp


def test_ivar_is_the_rate_of_ramp_fit_and_so_are_all_flags(tmp_cwd):
    rate, rateints = fit(hurt_ramp(), tmp_cwd)

    found = RateFromRateintsStep.call(rateints, combine="ivar")

    np.testing.assert_array_equal(found.dq, rate.dq)
    np.testing.assert_allclose(found.data, rate.data, rtol=3e-7)
    seen = np.isfinite(rate.data)
    assert 0.5 < seen.mean() < 1
    np.testing.assert_allclose(found.var_rnoise[seen], rate.var_rnoise[seen], rtol=5e-7)
    for name in ("JUMP_DET", "SATURATED", "DO_NOT_USE", "PERSISTENCE", "HOT", "DEAD"):
        assert (found.dq & pixel[name]).any(), name


@pytest.mark.parametrize("combine", ["mean", "median", "clip"])
def test_every_method_has_the_pixels_of_ramp_fit(combine, tmp_cwd):
    rate, rateints = fit(hurt_ramp(), tmp_cwd)

    found = RateFromRateintsStep.call(rateints, combine=combine)

    np.testing.assert_array_equal(np.isfinite(found.data), np.isfinite(rate.data))
    assert set(np.unique(found.dq ^ rate.dq)) <= {0, pixel["JUMP_DET"]}
    # What ramp_fit wrote as 0 because there was no group to fit is no data.
    np.testing.assert_allclose(found.data[14, 10:14], rate.data[14, 10:14], rtol=0.2)


def test_as_post_hook_of_ramp_fit_on_the_command_line(strun, tmp_cwd, monkeypatch):
    for name, value in simulate.offline_crds(tmp_cwd).items():
        monkeypatch.setitem(os.environ, name, value)
    raw = simulate.ramp(np.full((64, 72), 400.0), nints=4, ngroups=12, cosmic_rays=0.05)
    raw.save("raw_uncal.fits")
    steps = simulate.reference_files("references")
    options = [f"--steps.{step}.{key}={value}" for step, pars in steps.items() for key, value in pars.items()]

    said = strun(
        "calwebb_detector1",
        "raw_uncal.fits",
        *options,
        "--steps.ramp_fit.post_hooks=miri_steps.RateFromRateintsStep,",
    )

    assert "raw_uncal.fits: 4 integrations by clip" in said
    assert "rateints=raw_rateints.fits" in "".join(fits.getheader("raw_rate.fits")["HISTORY"])
    with datamodels.open("raw_rate.fits") as rate, datamodels.open("raw_rateints.fits") as rateints:
        assert rate.meta.cal_step.rate_from_rateints == "COMPLETE"
        assert rate.meta.cal_step.gain_scale is not None
        again = RateFromRateintsStep.call(rateints)
        np.testing.assert_array_equal(rate.data, again.data)
        assert rate.meta.model_type == "ImageModel"


@pytest.mark.parametrize(
    "hook", ["miri_steps.RateFromRateintsStep(combine='median')", RateFromRateintsStep(combine="median")]
)
def test_as_post_hook_in_python(hook, tmp_cwd):
    """A hook is given one argument, whatever way it is named."""
    ramp = simulate.ramp(np.full((64, 72), 400.0), nints=4, ngroups=12, level="ramp")
    rate, rateints = fit(ramp, tmp_cwd)

    class Fit(Step):
        spec = ""

        def process(self, given):
            return rate, rateints

    pair = Fit(post_hooks=[hook]).run(ramp)

    assert pair[1] is rateints
    assert pair[0].meta.cal_step.rate_from_rateints == "COMPLETE"
    known = np.isfinite(rate.data)
    np.testing.assert_allclose(pair[0].data[known], np.median(rateints.data, axis=0)[known], rtol=1e-6)


def test_in_a_pipeline_the_instance_is_a_hook_too():
    pipeline = Detector1Pipeline(steps={"ramp_fit": {"post_hooks": [RateFromRateintsStep()]}})

    assert isinstance(pipeline.ramp_fit._post_hooks[0], RateFromRateintsStep)


# Flags and pixels


def test_what_any_integration_says_of_an_old_rate(exposure):
    """A pixel is unusable exactly where all integrations are, and nothing else of the old rate is lost."""
    rate, rateints = exposure.rate, exposure.rateints
    y, x = np.argwhere(np.isfinite(rate.data))[[100, 200, 300, 400]].T
    rate.dq[y[0], x[0]] |= np.uint32(UNUSABLE | pixel["HOT"])
    rate.data[y[0], x[0]] = np.nan
    rateints.dq[:, y[1], x[1]] |= np.uint32(UNUSABLE | pixel["DEAD"])
    rateints.dq[3, y[2], x[2]] |= np.uint32(UNUSABLE | pixel["SATURATED"] | pixel["DEAD"])
    rateints.data[:, y[3], x[3]] = np.nan

    found = RateFromRateintsStep.call((rate, rateints))[0]

    flags, data = found.dq[y, x], found.data[y, x]
    assert found.dq.dtype == np.uint32
    assert flags[0] & pixel["HOT"] and not flags[0] & UNUSABLE and np.isfinite(data[0])
    assert flags[1] & pixel["DEAD"] and flags[1] & UNUSABLE and np.isnan(data[1])
    assert (
        flags[2] & pixel["SATURATED"] and not flags[2] & (UNUSABLE | pixel["DEAD"]) and np.isfinite(data[2])
    )
    assert flags[3] & UNUSABLE and np.isnan(data[3])
    np.testing.assert_array_equal(np.isnan(found.data), (found.dq & UNUSABLE) > 0)
    for name in ("err", "var_poisson", "var_rnoise"):
        np.testing.assert_array_equal(np.isnan(found.data), np.isnan(getattr(found, name)))


def test_true_zeros_are_data(exposure):
    rateints = exposure.rateints
    y, x = np.argwhere(np.isfinite(exposure.rate.data))[500]
    rateints.data[:, y, x] = [0, 1, 0, 1, 0, 1, 0, 1]
    rateints.dq[:, y, x] = 0

    found = RateFromRateintsStep.call(rateints, combine="mean")

    assert found.data[y, x] == 0.5


def test_variances_that_are_not_there_are_not_made_up(exposure):
    rateints = exposure.rateints.copy()
    rateints.var_poisson = rateints.var_rnoise = None

    found = RateFromRateintsStep.call(rateints, combine="mean")

    expected = RateFromRateintsStep.call(exposure.rateints, combine="mean")
    assert found.var_poisson is None and found.var_rnoise is None
    np.testing.assert_allclose(found.err, expected.err, rtol=1e-5)


def test_the_error_of_a_flat_is_carried(exposure):
    rate, rateints = exposure.rate, exposure.rateints
    for model in (rate, rateints):
        model.meta.cal_step.flat_field = "COMPLETE"
        model.var_flat = np.full(model.data.shape, 0.25, np.float32)

    found = RateFromRateintsStep.call((rate, rateints))[0]

    seen = np.isfinite(found.data)
    np.testing.assert_allclose(found.var_flat[seen], 0.25, rtol=1e-5)
    total = found.var_poisson + found.var_rnoise + found.var_flat
    np.testing.assert_allclose(found.err, np.sqrt(total), rtol=1e-6)


def test_counts_are_saved(exposure, rate, tmp_cwd):
    RateFromRateintsStep.call(rate, save_counts=True, output_dir="counts")

    (path,) = (tmp_cwd / "counts").iterdir()
    assert path.name == f"{STEM}_integration_counts.fits"
    with fits.open(path) as hdus:
        used, rejected = hdus["USED"].data, hdus["REJECTED"].data
    valid = np.isfinite(exposure.rateints.data).sum(axis=0)
    np.testing.assert_array_equal(used + rejected, valid)
    assert rejected.sum() / valid.sum() == pytest.approx(0.055, abs=0.01)


# One integration, two runs


def test_one_integration_is_left_as_it_is_but_marked(tmp_cwd, caplog):
    exposure = integrate(nints=1)
    path = exposure.write(tmp_cwd / "single")

    rate = RateFromRateintsStep.call(path)
    alone = RateFromRateintsStep.call(exposure.rateints, save_counts=True)
    partner(path).unlink()
    without = RateFromRateintsStep.call(path)

    assert_same(planes(rate), planes(exposure.rate))
    assert_same(planes(without), planes(exposure.rate))
    np.testing.assert_array_equal(alone.data, exposure.rateints.data[0])
    np.testing.assert_array_equal(alone.dq, exposure.rateints.dq[0])
    for model in (rate, alone, without):
        assert model.meta.cal_step.rate_from_rateints == "SKIPPED"
    assert "has one integration" in caplog.text
    assert [item.name for item in tmp_cwd.iterdir()] == ["single"]


def test_a_pair_done_before_is_left_as_it_is(exposure, caplog):
    first = RateFromRateintsStep.call((exposure.rate, exposure.rateints))

    second = RateFromRateintsStep.call(first, combine="median")

    assert_same(planes(second[0]), planes(first[0]))
    assert "done before" in caplog.text


# What it refuses


def test_missing_integrations_are_named_with_the_files_looked_for(rate, tmp_cwd):
    cube = partner(rate)
    cube.unlink()

    with pytest.raises(FileNotFoundError, match=rf"integrations of {rate.name} .*{cube}"):
        RateFromRateintsStep.call(rate, save_results=True, save_counts=True, output_dir="out")
    with pytest.raises(FileNotFoundError, match="there is no nowhere"):
        RateFromRateintsStep.call(rate, rateints="nowhere")

    assert not list(Path("out").glob("*"))


def nints(rate):
    rate.meta.exposure.nints = 4


def segment(rate):
    rate.meta.exposure.integration_start = 1
    rate.meta.exposure.integration_end = 5


def shape(rate):
    rate.data = rate.data[:60]


def exposure_number(rate):
    rate.meta.observation.exposure_number = "7"


def units(rate):
    rate.meta.bunit_data = "MJy/sr"


def calibrated(rate):
    rate.meta.cal_step.photom = "COMPLETE"


@pytest.mark.parametrize(
    "change, words",
    [
        (nints, "number of integrations, but .*_rate.fits has 4 and .*_rateints.fits has 8"),
        (segment, "number of integrations, but .*_rate.fits has 5 and .*_rateints.fits has 8"),
        (shape, r"frame, but .*_rate.fits has \(60, 72\) and .*_rateints.fits has \(64, 72\)"),
        (
            exposure_number,
            "observation.exposure_number, but .*_rate.fits has 7 and .*_rateints.fits has 1",
        ),
        (units, "bunit_data, but .*_rate.fits has MJy/sr and .*_rateints.fits has DN/s"),
        (calibrated, "photom done, but .*_rate.fits has True and .*_rateints.fits has False"),
    ],
    ids=lambda item: getattr(item, "__name__", ""),
)
def test_what_does_not_belong_together_is_refused(change, words, exposure, tmp_cwd):
    rate = exposure.rate
    change(rate)

    with pytest.raises(ValueError, match=words):
        RateFromRateintsStep.call((rate, exposure.rateints), save_results=True)

    assert not list(tmp_cwd.iterdir())


def test_integrations_of_a_segment_belong_to_its_rate(exposure):
    for model in (exposure.rate, exposure.rateints):
        model.meta.exposure.nints = 100
        model.meta.exposure.integration_start = 9
        model.meta.exposure.integration_end = 16

    found = RateFromRateintsStep.call((exposure.rate, exposure.rateints))[0]

    assert found.meta.cal_step.rate_from_rateints == "COMPLETE"


def test_a_truncated_file_is_refused(rate, tmp_cwd):
    cube = partner(rate)
    cube.write_bytes(cube.read_bytes()[:-100_000])

    with pytest.raises(ValueError, match=f"{cube} is truncated"):
        RateFromRateintsStep.call(rate, save_results=True)

    assert not list(tmp_cwd.glob("*.fits"))


def test_a_file_of_something_else_is_refused(tmp_cwd):
    fits.PrimaryHDU(np.zeros((4, 4))).writeto("a_rate.fits")

    with pytest.raises(ValueError, match="a_rate.fits must be a file of jwst with SCI and ASDF extensions"):
        RateFromRateintsStep().run("a_rate.fits")


def test_a_ramp_is_refused(tmp_cwd):
    ramp = simulate.ramp(np.ones((64, 72)), nints=2, ngroups=3, level="ramp")

    with pytest.raises(
        ValueError, match=r"must be a rate of 2 dimensions or integrations of 3, got shape \(2, 3"
    ):
        RateFromRateintsStep.call(ramp)


@pytest.mark.parametrize("in_memory", [True, False])
def test_integrations_without_a_valid_sample_are_refused_before_anything_is_written(in_memory, tmp_cwd):
    files = []
    for number in range(2):
        exposure = integrate(number, 2, nints=3)
        if number:
            exposure.rateints.data[:] = np.nan
        files.append(exposure.write(tmp_cwd / "rates"))

    with pytest.raises(ValueError, match=f"{partner(files[1]).name} must have a sample that is finite"):
        RateFromRateintsStep.call(files, in_memory=in_memory, save_counts=True, save_results=True)

    assert [path.name for path in tmp_cwd.iterdir()] == ["rates"]


@pytest.mark.parametrize("combine, needs", [("ivar", "VAR_RNOISE"), ("clip", "VAR_RNOISE or VAR_POISSON")])
@pytest.mark.parametrize("gone", ["none", "zero"])
def test_variances_that_a_method_needs_must_be_there(combine, needs, gone, exposure, tmp_cwd):
    for name in ("var_rnoise", "var_poisson"):
        plane = None if gone == "none" else np.zeros_like(exposure.rateints.data)
        setattr(exposure.rateints, name, plane)
    path = exposure.write(tmp_cwd / "bare")

    for given in (path, exposure.rateints):
        with pytest.raises(ValueError, match=f"combine='{combine}' needs {needs}, but .*_rateints.fits"):
            RateFromRateintsStep.call(given, combine=combine)


def test_a_library_of_both_is_refused(exposure):
    library = ModelLibrary([exposure.rate, exposure.rateints])

    with pytest.raises(
        ValueError, match=f"ModelLibrary must hold rates or integrations, .*{STEM}_rateints.fits"
    ):
        RateFromRateintsStep.call(library)


def test_other_modes_are_refused_also_of_integrations(exposure):
    exposure.rateints.meta.exposure.type = "MIR_MRS"

    with pytest.raises(ValueError, match=f"{STEM}_rateints.fits must be MIRI imaging .*got MIR_MRS"):
        RateFromRateintsStep.call((exposure.rate, exposure.rateints))


# Real data


@pytest.fixture
def ground_test(shared_data):
    """Ramp and integrations of a SUB64 exposure of the ground test of 2018."""
    folder = shared_data / "groundtest_rateints"
    name = "MIRI_5582_89_S_20180308-010230_SCE1_pipe"
    with (
        datamodels.RampModel(folder / f"{name}.fits") as ramp,
        datamodels.CubeModel(folder / f"{name}_rateints.fits") as rateints,
    ):
        for model in (ramp, rateints):
            model.meta.exposure.type = "MIR_IMAGE"
            model.meta.instrument.filter = "F770W"
            model.meta.instrument.name = "MIRI"
        yield ramp, rateints


@pytest.mark.filterwarnings("ignore")  # of what files of 2018 and 2020 hold
def test_ivar_is_the_rate_of_ramp_fit_on_a_real_ramp(ground_test, tmp_cwd):
    ramp = ground_test[0].copy()
    ramp.groupdq = np.zeros(ramp.data.shape, np.uint8)
    ramp.pixeldq = np.zeros(ramp.data.shape[2:], np.uint32)
    # Drop the first and the last group, as detector1 does for MIRI.
    ramp.groupdq[:, [0, -1]] = group["DO_NOT_USE"]
    ramp.data = ramp.data.astype(np.float32)
    rate, rateints = fit(ramp, tmp_cwd)

    found = RateFromRateintsStep.call(rateints, combine="ivar")
    clipped = RateFromRateintsStep.call(rateints)

    np.testing.assert_array_equal(found.dq, rate.dq)
    np.testing.assert_allclose(found.data, rate.data, rtol=3e-7, atol=1e-6)
    assert np.isfinite(clipped.data).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("combine", ["mean", "ivar", "median", "clip"])
def test_real_integrations_of_an_old_pipeline(combine, ground_test):
    rateints = ground_test[1]

    found = RateFromRateintsStep.call(rateints, combine=combine)

    valid = ((rateints.dq & UNUSABLE) == 0).any(axis=0)
    np.testing.assert_array_equal(np.isfinite(found.data), valid)
    np.testing.assert_array_equal((found.dq & UNUSABLE) == 0, valid)
    if combine != "clip":
        low, high = rateints.data.min(axis=0), rateints.data.max(axis=0)
        assert ((found.data >= low - 1e-3) & (found.data <= high + 1e-3))[valid].all()


@pytest.mark.filterwarnings("ignore")
def test_real_pixels_that_lost_an_integration_stay_level_with_the_others(ground_test):
    """The first of the real integrations lies 15 DN/s above the others, in half of the pixels too far."""
    rateints = ground_test[1]

    clipped = RateFromRateintsStep.call(rateints)
    weighted = RateFromRateintsStep.call(rateints, combine="ivar")

    known = np.isfinite(clipped.data)
    change = (clipped.data - weighted.data)[known]
    lost = np.abs(change) > 1e-3
    assert 0.2 < lost.mean() < 0.6
    # A fifth of 15 DN/s would be missing.
    assert abs(np.median(change[lost])) < 1.0
    assert mad_std(clipped.data[known]) < mad_std(weighted.data[known])


# What it must not do


def test_a_product_never_takes_the_place_of_the_integrations(rate):
    before = partner(rate).read_bytes()

    with pytest.raises(ValueError, match="must not overwrite an input.*rateints.fits"):
        RateFromRateintsStep.call(rate, save_results=True, output_dir=str(rate.parent), suffix="rateints")

    assert partner(rate).read_bytes() == before


@pytest.mark.parametrize("given", [[], {"products": [{"name": "none", "members": []}]}])
def test_nothing_to_do_is_said(given):
    with pytest.raises(ValueError, match="at least 1 science exposure, got 0"):
        RateFromRateintsStep().run(given)


def test_a_mosaic_is_refused(exposure):
    exposure.rate.meta.cal_step.resample = "COMPLETE"

    with pytest.raises(ValueError, match="before resample, but .*_rate.fits"):
        RateFromRateintsStep.call((exposure.rate, exposure.rateints))
