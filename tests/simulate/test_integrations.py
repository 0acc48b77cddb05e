"""Integrations: their scatter is what their variances say, and every defect is where it is said to be."""

from importlib.resources import files

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps.simulate import Pointing, Scene, integrate, metadata, observe

RA, DEC = 83.6, -69.1
PLAN = [Pointing(RA, DEC, 33.0)]
SCENE = Scene(RA, DEC).with_emission(5.0, radius=40, seed=1)


def field(**parameters):
    """Observe a nebula with SUB256."""
    return observe(SCENE, PLAN, "F770W", sky=3.0, subarray="SUB256", **parameters)


def flagged(model, name):
    """Where a flag is set."""
    return (model.dq & pixel[name]) > 0


def test_scatter_is_that_of_the_variances():
    made = integrate(field(), 0, jumps=0.2)
    for model in (made.rateints, made.rate):
        pull = (model.data - made.truth) / np.where(model.err > 0, model.err, np.nan)
        assert np.nanmean(pull**2) == pytest.approx(1.0, abs=0.02)
        assert np.nanmean(pull) == pytest.approx(0.0, abs=0.02)
        assert_allclose(model.err**2, model.var_poisson + model.var_rnoise, rtol=1e-5)
    jumped = flagged(made.rateints, "JUMP_DET")
    pull = ((made.rateints.data - made.truth) / made.rateints.err)[jumped]
    assert np.mean(pull**2) == pytest.approx(1.0, abs=0.03)


def test_the_mean_has_the_noise_of_the_exposure():
    observation = field(bad_pixels=0.0)
    exposure = observation[0]
    for nints in (1, 3, 8):
        made = integrate(observation, 0, nints=nints)
        assert made.rateints.shape == (nints, 256, 256)
        for name in ("var_poisson", "var_rnoise"):
            whole = getattr(exposure, name) / metadata.CONVERSION**2
            assert_allclose(getattr(made.rate, name), whole, rtol=1e-5)
            assert_allclose(getattr(made.rateints, name)[0], nints * whole, rtol=1e-5)
        assert_allclose(made.rate.data, made.rateints.data.mean(axis=0), rtol=1e-5)
    assert_allclose(made.truth * metadata.CONVERSION, observation.signal(0) + 3.0, rtol=1e-12)


def test_cosmic_rays_are_where_they_are_said_to_be():
    quiet, made = (integrate(field(), 0, cosmic_rays=f, cosmic_ray_sigma=(8.0, 20.0)) for f in (0.0, 0.05))
    unusable = flagged(made.rateints, "DO_NOT_USE")
    assert not (made.hit & unusable).any()
    assert made.hit[~unusable].mean() == pytest.approx(0.05, rel=0.03)
    height = (made.rateints.data - quiet.rateints.data) / quiet.rateints.err
    assert_array_equal(height[~made.hit & ~unusable], 0)
    assert height[made.hit].min() > 7.99
    assert height[made.hit].mean() == pytest.approx(28.0, rel=0.03)
    assert_array_equal(made.rateints.dq, quiet.rateints.dq)


def test_jumps_are_flagged_and_noisier():
    made = integrate(field(bad_pixels=0.0), 0, jumps=0.1)
    jumped = flagged(made.rateints, "JUMP_DET")
    assert jumped.mean() == pytest.approx(0.1, rel=0.03)
    assert_array_equal(flagged(made.rate, "JUMP_DET"), jumped.any(axis=0))
    whole = integrate(field(bad_pixels=0.0), 0).rateints
    assert_allclose(made.rateints.var_poisson / whole.var_poisson, np.where(jumped, 2, 1), rtol=1e-5)
    assert_allclose(made.rateints.var_rnoise / whole.var_rnoise, np.where(jumped, 8, 1), rtol=1e-5)
    assert np.isfinite(made.rateints.data).all()


def test_saturated_integrations_are_lost_first():
    level = np.quantile(integrate(field(bad_pixels=0.0), 0).truth, 0.9)
    made = integrate(field(bad_pixels=0.0), 0, saturation=level)
    saturated = flagged(made.rateints, "SATURATED")
    bright = made.truth > level
    assert_array_equal(saturated[0], bright)
    assert (np.diff(saturated.astype(int), axis=0) <= 0).all()
    # Every number of lost integrations, 1 to 8, is as frequent.
    counts = np.bincount(saturated.sum(axis=0)[bright], minlength=9)[1:] / bright.sum()
    assert_allclose(counts, 1 / 8, atol=0.015)
    assert_array_equal(flagged(made.rateints, "DO_NOT_USE"), saturated)
    assert_array_equal(flagged(made.rate, "SATURATED"), bright)
    assert_array_equal(flagged(made.rate, "DO_NOT_USE"), saturated.all(axis=0))
    assert_array_equal(np.isnan(made.rate.data), saturated.all(axis=0))
    for name in ("err", "var_poisson", "var_rnoise"):
        assert (getattr(made.rateints, name)[saturated] == 0).all()
    kept = bright & ~saturated.all(axis=0)
    pull = ((made.rate.data - made.truth) / made.rate.err)[kept]
    assert np.mean(pull**2) == pytest.approx(1.0, abs=0.05)


def test_pixels_that_no_exposure_can_use_are_lost_in_all():
    observation = observe(SCENE, PLAN, "F770W", bad_pixels=0.01, subarray="SUB64")
    made = integrate(observation, 0, nints=3)
    unusable = (observation.flags & pixel["DO_NOT_USE"]) > 0
    for plane in (made.rate, *made.rateints.data):
        assert_array_equal(np.isnan(getattr(plane, "data", plane)), unusable)
    assert_array_equal(made.rateints.dq, np.repeat(observation.flags[None], 3, axis=0))
    assert_array_equal(made.rate.dq, observation.flags)


def test_hot_and_dead_pixels_are_in_every_integration():
    parameters = {"bad_pixels": 0.0, "hot_pixels": 0.02, "dead_pixels": 0.02}
    observation, plain = field(**parameters), field(bad_pixels=0.0)
    made = integrate(observation, 0, nints=2)
    light = np.where(observation.dead, 0.0, plain.expect(0)[0]) + observation.hot * observation.noise
    assert_allclose(made.truth * metadata.CONVERSION, light, rtol=1e-12)
    pull = ((made.rateints.data - made.truth) / made.rateints.err)[:, observation.dead]
    assert np.mean(pull**2) == pytest.approx(1.0, abs=0.06)


def test_the_same_seed_gives_the_same_integrations():
    first, again, other = (integrate(field(), 0, cosmic_rays=0.01, seed=seed) for seed in (1, 1, 2))
    assert_array_equal(first.rateints.data, again.rateints.data)
    assert_array_equal(first.hit, again.hit)
    usable = ~flagged(first.rateints, "DO_NOT_USE")
    assert (first.rateints.data != other.rateints.data)[usable].mean() > 0.999


def test_files_are_those_of_ramp_fitting(tmp_path):
    from jwst import datamodels

    made = integrate(field(), 0, nints=4)
    path = made.write(tmp_path / "new")
    name = PLAN[0].name
    assert path == tmp_path / "new" / f"{name}_rate.fits"
    for model, kind, suffix in (
        (made.rate, datamodels.ImageModel, "rate"),
        (made.rateints, datamodels.CubeModel, "rateints"),
    ):
        with datamodels.open(path.with_name(f"{name}_{suffix}.fits")) as read:
            assert isinstance(read, kind)
            assert read.meta.filename == f"{name}_{suffix}.fits"
            for plane in ("data", "err", "dq", "var_poisson", "var_rnoise"):
                assert_array_equal(getattr(read, plane), getattr(model, plane))
            assert read.meta.bunit_data == "DN/s"
            assert read.meta.exposure.nints == 4
            assert read.meta.exposure.exposure_time == pytest.approx(metadata.EXPOSURE_TIME)
            assert read.meta.cal_step.ramp_fit == "COMPLETE"
            assert read.meta.cal_step.assign_wcs is None
            assert getattr(read.meta, "wcs", None) is None
            read.validate()
    with pytest.raises(FileExistsError, match="is there already"):
        made.write(tmp_path / "new")


def test_assign_wcs_gives_the_wcs_of_the_exposure():
    from jwst.assign_wcs.assign_wcs import load_wcs

    data = files("miri_steps.simulate") / "data"
    references = {
        "distortion": str(data / "jwst_miri_imager_distortion_flt9.asdf"),
        "filteroffset": str(data / "jwst_miri_filteroffset_full_flt9.asdf"),
    }
    observation = field()
    found = load_wcs(integrate(observation, 0, nints=2).rate, references).meta
    true = observation[0].meta
    assert_allclose(found.wcs(20.0, 200.0), true.wcs(20.0, 200.0), rtol=0, atol=1e-9)
    assert found.wcsinfo.s_region == true.wcsinfo.s_region


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"nints": 0}, "nints must be at least 1, got 0"),
        ({"cosmic_rays": 1.5}, "cosmic_rays must be a fraction of 0 to 1, got 1.5"),
        ({"cosmic_ray_sigma": (-1.0, 4.0)}, r"cosmic_ray_sigma must be .* got \(-1.0, 4.0\)"),
        ({"jumps": -0.1}, "jumps must be a fraction of 0 to 1, got -0.1"),
        ({"saturation": 0.0}, "saturation must be above 0 DN/s, got 0.0"),
    ],
)
def test_wrong_parameters_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        integrate(field(), 0, **wrong)
