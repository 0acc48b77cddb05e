"""Ramps: the stock pipeline gets the rate back that was put in."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from stdatamodels.jwst.datamodels.dqflags import group, pixel

from miri_steps import detector
from miri_steps.simulate import offline_crds, ramp, ramps, reference_files

SHAPE = detector.SUBARRAYS["SUB64"].shape
SEES = detector.region_mask(["lyot"], shape=SHAPE, ystart=detector.SUBARRAYS["SUB64"].ystart)
# A bright spot is full after a few groups.
RATE = np.full(SHAPE, 300.0)
BRIGHT = (slice(30, 34), slice(10, 14))
RATE[BRIGHT] = 60000.0


def near(where):
    """Grow a mask by the neighbours that the pipeline flags too."""
    mask = np.zeros(SHAPE, bool)
    mask[slice(where[0].start - 1, where[0].stop + 1), slice(where[1].start - 1, where[1].stop + 1)] = True
    return mask


def test_groups_grow_with_the_noise_of_electrons():
    model = ramp(np.full(SHAPE, 2000.0), nints=4, ngroups=20, gain=4.0, read_noise=5.0)
    step = np.diff(model.data.astype(float), axis=1)[..., detector.N_REFERENCE_COLUMNS :]
    mean = 2000.0 * model.meta.exposure.group_time
    assert step.mean() == pytest.approx(mean, rel=1e-3)
    # Rounding to whole numbers adds 1/12 to the variance of each readout.
    assert step.var() == pytest.approx(mean / 4 + 2 * (25 + 1 / 12), rel=0.02)
    # What electrons do between two readouts is their own; the readout noise is shared by both steps.
    neighbours = np.mean((step[:, 1:] - mean) * (step[:, :-1] - mean))
    assert neighbours == pytest.approx(-25, rel=0.1)
    blind = model.data[..., : detector.N_REFERENCE_COLUMNS].astype(float)
    assert blind.mean() == pytest.approx(ramps.PEDESTAL, abs=0.2)
    assert blind.std() == pytest.approx(5, rel=0.05)


def test_cosmic_rays_stay_in_all_later_groups():
    quiet, made = (
        ramp(RATE, cosmic_rays=f, cosmic_ray_dn=(1000.0, 100.0), level="ramp").data for f in (0.0, 0.05)
    )
    full = (quiet == ramps.SATURATION) | (made == ramps.SATURATION)
    extra = np.where(full, 0, made - quiet)
    assert (extra[:, -1] > 0).mean() == pytest.approx(0.05, rel=0.1)
    assert (extra[:, 0] == 0).all()
    assert (np.diff(extra, axis=1)[..., :10, :] > -2).all()
    assert extra[extra > 0].min() >= 999
    assert extra[:, -1][extra[:, -1] > 0].mean() == pytest.approx(1100, rel=0.01)


def test_full_pixels_are_clipped_and_flagged():
    model = ramp(RATE, level="ramp")
    saturated = (model.groupdq & group["SATURATED"]) > 0
    assert model.data.max() == ramps.SATURATION
    assert_array_equal(saturated, model.data == ramps.SATURATION)
    assert saturated[:, -1][:, *BRIGHT].all()
    assert not saturated[:, 0].any()
    unseen = (model.pixeldq & pixel["DO_NOT_USE"]) > 0
    assert_array_equal(unseen, ~SEES)
    assert_array_equal((model.groupdq & group["DO_NOT_USE"])[0, 0] > 0, unseen)


def test_raw_data_are_those_of_the_ramp():
    raw, fitted = (ramp(RATE, nints=2, cosmic_rays=0.01, level=level, seed=4) for level in ("uncal", "ramp"))
    assert raw.data.dtype == np.uint16
    assert_array_equal(raw.data, fitted.data)
    other = ramp(RATE, nints=2, cosmic_rays=0.01, seed=5)
    assert (raw.data != other.data).mean() > 0.9
    assert raw.meta.filename == "jw01234001001_02101_00001_mirimage_uncal.fits"
    exposure = raw.meta.exposure
    assert (exposure.nints, exposure.ngroups, exposure.readpatt) == (2, 20, "FASTR1")
    assert exposure.exposure_time == pytest.approx(40 * 0.085)


def test_ramp_fitting_returns_the_rate(tmp_path, monkeypatch):
    for name, value in offline_crds(tmp_path).items():
        monkeypatch.setenv(name, value)
    from jwst.ramp_fitting import RampFitStep

    model = ramp(RATE, nints=5, level="ramp")
    rate, rateints = RampFitStep.call(model, **reference_files(tmp_path)["ramp_fit"])
    for result in (rate, rateints):
        usable = (result.dq & pixel["DO_NOT_USE"]) == 0
        pull = ((result.data - RATE) / np.where(usable, result.err, np.nan))[usable & SEES]
        assert pull.mean() == pytest.approx(0, abs=0.05)
        assert pull.std() == pytest.approx(1, abs=0.1)


def test_stock_pipeline_returns_the_rate(tmp_path, monkeypatch):
    """Do what the command strun does with calwebb_detector1 for a user without a network."""
    made = ramp(RATE, cosmic_rays=0.01)
    made.save(str(tmp_path / made.meta.filename))
    steps = reference_files(tmp_path / "references")
    for name, value in offline_crds(tmp_path).items():
        monkeypatch.setenv(name, value)
    from jwst import datamodels
    from jwst.stpipe import Step

    options = [
        f"--steps.{step}.{name}={value}" for step, pars in steps.items() for name, value in pars.items()
    ]
    Step.from_cmdline(["--disable-crds-steppars", "calwebb_detector1", made.meta.filename, *options])

    stem = made.meta.filename.removesuffix("_uncal.fits")
    for suffix in ("rate", "rateints"):
        with datamodels.open(tmp_path / f"{stem}_{suffix}.fits") as result:
            usable = (result.dq & pixel["DO_NOT_USE"]) == 0
            pull = (result.data - RATE) / np.where(usable, result.err, np.nan)
            assert np.broadcast_to(SEES, usable.shape)[usable].all()
            assert usable[..., SEES].all()
            assert np.nanmean(pull) == pytest.approx(0, abs=0.1)
            # Jumps that are too small to be found, and those found where there are none, add a little.
            assert 1.4826 * np.nanmedian(np.abs(pull)) == pytest.approx(1, abs=0.1)
            flags = result.dq if result.dq.ndim == 2 else result.dq[0]
            assert_array_equal((flags & pixel["SATURATED"]) > 0, near(BRIGHT))
            assert result.meta.cal_step.jump == "COMPLETE"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"subarray": "SUB1"}, "subarray must be one of .*SUB64.*, got SUB1"),
        ({"filter": "F200W"}, "filter must be one of .*F770W.*, got 'F200W'"),
        ({"subarray": "SUB256"}, r"shape \(256, 256\) of SUB256, got \(64, 72\)"),
        ({"rate": -RATE}, "rate must be at least 0 DN/s everywhere, got -60000"),
        ({"rate": RATE * np.nan}, "rate must be at least 0 DN/s everywhere, got nan"),
        ({"nints": 0}, "nints must be at least 1, got 0"),
        ({"ngroups": 1}, "ngroups must be at least 2, got 1"),
        ({"gain": 0.0}, "gain must be above 0 electrons per DN, got 0.0"),
        ({"read_noise": -1.0}, "read_noise must be at least 0 DN, got -1.0"),
        ({"cosmic_rays": 2.0}, "cosmic_rays must be a fraction of 0 to 1, got 2.0"),
        ({"cosmic_ray_dn": (1.0,)}, r"cosmic_ray_dn must be .* got \(1.0,\)"),
        ({"saturation": 70000}, "saturation must be a whole number above 10000 and at most 65535 DN, got 7"),
        ({"level": "rate"}, r"level must be one of \['uncal', 'ramp'\], got 'rate'"),
    ],
)
def test_wrong_parameters_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        ramp(**({"rate": RATE} | wrong))


def test_reference_files_of_no_subarray_are_refused(tmp_path):
    with pytest.raises(ValueError, match="subarray must be one of .*SUB64.*, got SUB1"):
        reference_files(tmp_path / "new", "SUB1")
    assert not (tmp_path / "new").exists()


def test_reference_files_of_a_subarray_hold_the_noise_of_two_readouts(tmp_path):
    from jwst import datamodels

    fit = reference_files(tmp_path, "SUB256", gain=3.0, read_noise=2.0)["ramp_fit"]
    with datamodels.open(fit["override_readnoise"]) as noise, datamodels.open(fit["override_gain"]) as gain:
        assert_allclose(noise.data, np.full((256, 256), 2 * np.sqrt(2)), rtol=1e-6)
        assert_allclose(gain.data, np.full((256, 256), 3.0))
        assert (noise.meta.subarray.xstart, noise.meta.subarray.name) == (413, "SUB256")
