"""Rates: the stock calwebb_image2 makes the exposures of them that are known to be true."""

import json

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable, Table
from numpy.testing import assert_allclose, assert_array_equal
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps import detector, simulate
from miri_steps.simulate import metadata

RA, DEC = 83.6, -69.1
SCENE = simulate.Scene(RA, DEC).with_stars(15, radius=8, seed=1).with_emission(5.0, radius=10, seed=2)
# The telescope looks beside the place that the file believes in.
OFF = [[0.3, -0.2], [-0.1, 0.4]]


def observe(filter_name="F770W", n=2, **parameters):
    """Observe stars and a nebula with a small subarray; stars look alike in all filters, to save time."""
    parameters = {"sky": 3.0, "subarray": "SUB64", "pointing_error": OFF[:n]} | parameters
    plan = simulate.grid(RA, DEC, n=(n, 1), step=2.0, pa=33.0)
    psf = simulate.psf("F770W", half_size=40)
    return simulate.observe(SCENE, plan, filter_name, psf=psf, **parameters)


def slope():
    """Make a response that falls by a third across the subarray, and differs from pixel to pixel."""
    response = np.random.default_rng(1).normal(1.0, 0.02, detector.SHAPE)
    return response * np.linspace(1.1, -5.0, detector.SHAPE[1]).clip(0.5)


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Make a folder for reference files, and set CRDS up to answer without a network."""
    folder = tmp_path_factory.mktemp("references")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in simulate.offline_crds(folder).items():
            patch.setenv(name, value)
        yield folder


@pytest.fixture(scope="module")
def calibrate(references):
    """Run calwebb_image2 with the simulator's reference files."""
    from jwst.pipeline import Image2Pipeline

    def run(rate, **given):
        steps = simulate.calibration_files(references, **given)
        (cal,) = Image2Pipeline.call(rate, steps=steps, configure_log=False)
        return cal

    return run


def unusable(model):
    """Where DO_NOT_USE is set."""
    return (model.dq & pixel["DO_NOT_USE"]) > 0


def looks(model):
    """Where a grid of pixels looks [deg]."""
    ny, nx = model.shape
    y, x = np.mgrid[: ny - 1 : 9j, : nx - 1 : 9j].reshape(2, -1)
    sky = np.array(model.meta.wcs(x, y))
    assert np.isfinite(sky).all()
    return sky


def test_calibrated_rates_are_the_truth(calibrate, tmp_path):
    observation = observe()
    made = simulate.integrate(observation, 1, nints=4)
    cal = calibrate(str(made.write(tmp_path)))
    good = ~unusable(cal)
    truth = made.truth * metadata.CONVERSION
    assert_allclose(truth, observation.signal(1) + 3.0, rtol=1e-12)
    pull = ((cal.data - truth) / cal.err)[good]
    assert pull.mean() == pytest.approx(0.0, abs=4 / np.sqrt(pull.size))
    assert pull.std() == pytest.approx(1.0, abs=0.05)
    # Nothing but the factor has been done to the numbers.
    assert_allclose(cal.data, made.rate.data * metadata.CONVERSION, rtol=1e-6)
    simulated = observation[1]
    assert_array_equal(cal.dq, simulated.dq)
    for name in ("err", "var_poisson", "var_rnoise", "area"):
        assert_allclose(getattr(cal, name)[good], getattr(simulated, name)[good], rtol=3e-4)
    assert_allclose(looks(cal), looks(simulated), rtol=0, atol=1e-9)
    assert cal.meta.wcsinfo.s_region == simulated.meta.wcsinfo.s_region
    assert cal.meta.bunit_data == simulated.meta.bunit_data
    for name in ("conversion_megajanskys", "conversion_microjanskys", "pixelarea_arcsecsq"):
        ours, theirs = (getattr(model.meta.photometry, name) for model in (simulated, cal))
        assert theirs == pytest.approx(ours, rel=1e-4), name


def test_a_flat_is_divided_out(calibrate):
    response = slope()
    observation = observe(hot_pixels=0.02, hot_sigma=(200.0, 400.0), bad_pixels=0.0)
    made, plain = (simulate.integrate(observation, 0, nints=4, flat=flat) for flat in (response, None))
    window = response[detector.SUBARRAYS["SUB64"].slices]
    hot = observation.hot > 0
    assert_allclose(made.truth[~hot], (plain.truth * window)[~hot], rtol=1e-12)
    # Heat is no light.
    assert_allclose(
        (made.truth - window * plain.truth)[hot] * metadata.CONVERSION,
        ((1 - window) * observation.hot * observation.noise)[hot],
    )
    pull = (made.rate.data - made.truth) / np.where(unusable(made.rate), np.nan, made.rate.err)
    assert np.nanstd(pull) == pytest.approx(1.0, abs=0.05)
    cal = calibrate(made.rate, flat=response)
    assert_array_equal(cal.dq, observation.flags)
    pull = ((cal.data - observation.expect(0)[0]) / cal.err)[~unusable(cal) & ~hot]
    assert pull.mean() == pytest.approx(0.0, abs=4 / np.sqrt(pull.size))
    assert pull.std() == pytest.approx(1.0, abs=0.05)


def test_ramps_become_the_truth(calibrate, references):
    """Take four integrations from raw data through both stages, as a user does."""
    from jwst.pipeline import Detector1Pipeline

    observation = observe("F1800W", sky=300.0, n=1)
    rate = simulate.integrate(observation, 0, nints=4).truth
    raw = simulate.ramp(
        rate, nints=4, ngroups=40, subarray="SUB64", filter="F1800W", pointing=observation.pointings[0]
    )
    raw.save(raw.meta.filename)
    steps = simulate.reference_files(references)
    Detector1Pipeline.call(raw.meta.filename, steps=steps, save_results=True, configure_log=False)
    cal = calibrate(raw.meta.filename.replace("uncal", "rate"))
    good = ~unusable(cal)
    assert good.mean() > 0.7
    pull = ((cal.data - rate * metadata.CONVERSION) / cal.err)[good]
    assert np.median(pull) == pytest.approx(0.0, abs=0.05)
    assert 1.4826 * np.median(np.abs(pull)) == pytest.approx(1.0, abs=0.1)
    assert_allclose(looks(cal), looks(observation[0]), rtol=0, atol=1e-9)
    # The filter looks 0.39 and -0.73 pixels beside F770W.
    offset = (looks(cal) - looks(observe(n=1)[0])).mean(axis=1)
    apart = 3600.0 * np.hypot(offset[0] * np.cos(np.radians(DEC)), offset[1])
    assert apart == pytest.approx(np.hypot(0.39, 0.73) * detector.PIXEL_SCALE, rel=0.02)


def test_a_whole_observation_is_written_as_rates(tmp_path):
    pattern, given = simulate.dome(1.0), {"nints": 3, "cosmic_rays": 0.05, "seed": 5}
    observation = observe(pattern=pattern, hot_pixels=0.01)
    paths = simulate.write_rates(observation, tmp_path / "new", "field", **given)
    assert [path.name for path in paths] == [f"{p.name}_rate.fits" for p in observation.pointings]
    made = simulate.integrate(observation, 1, **given)
    for suffix, model in (("rate", made.rate), ("rateints", made.rateints)):
        with fits.open(str(paths[1]).replace("rate", suffix)) as hdus:
            assert_array_equal(hdus["SCI"].data, model.data)
    assert made.hit.any()
    folder = tmp_path / "new"
    assert_allclose(QTable.read(folder / "field_truth.ecsv")["error_east"].value, np.array(OFF)[:, 0])
    assert_allclose(Table.read(folder / "field_refcat.ecsv")["RA"], SCENE.stars["ra"])
    assert_array_equal(fits.getdata(folder / "field_pattern.fits"), pattern)
    assert_allclose(fits.getdata(folder / "field_hot.fits", "HOT"), observation.hot, rtol=1e-6)
    assert not list(folder.glob("*_asn.json"))
    assert len(list(folder.iterdir())) == 4 + 4


def test_rates_are_not_overwritten(tmp_path):
    observation = observe()
    there = tmp_path / f"{observation.pointings[1].name}_rateints.fits"
    there.touch()
    with pytest.raises(FileExistsError, match="00002_mirimage_rateints.fits is there already"):
        simulate.write_rates(observation, tmp_path, nints=2)
    assert [path.name for path in tmp_path.iterdir()] == [there.name]


# At the edges of the full frame SIP polynomials do not get as good as assign_wcs asks for.
@pytest.mark.filterwarnings("ignore:Failed to achieve requested SIP")
def test_full_frames_go_through_the_second_stage_and_into_an_association(calibrate, tmp_path):
    from jwst.associations.asn_from_list import asn_from_list
    from jwst.datamodels import ModelLibrary

    observation = observe(n=1, subarray="FULL")
    (path,) = simulate.write_rates(observation, tmp_path, nints=1)
    cal = calibrate(str(path))
    simulated = observation[0]
    assert_allclose(looks(cal), looks(simulated), rtol=0, atol=1e-9)
    assert cal.meta.wcs.bounding_box.bounding_box() == simulated.meta.wcs.bounding_box.bounding_box()
    assert_array_equal(cal.dq, simulated.dq)
    cal.save(cal.meta.filename)
    _, text = asn_from_list([cal.meta.filename], product_name="field").dump()
    association = tmp_path / "field_asn.json"
    association.write_text(text)
    assert json.loads(text)["products"][0]["members"][0]["expname"] == simulated.meta.filename
    library = ModelLibrary(association, on_disk=True)
    assert library.group_names == {"jw01234001001_02101_1"}
    # What a simulated cal says and that made of its rate does not.
    ours, theirs = (fits.getheader(name) for name in (simulated.save("simulated.fits"), cal.meta.filename))
    assert set(ours) - set(theirs) == set()


@pytest.mark.parametrize(
    ("flat", "words"),
    [
        (np.ones((64, 72)), r"flat must have the full frame's shape \(1024, 1032\), got \(64, 72\)"),
        (np.zeros(detector.SHAPE), "flat must be above 0 everywhere, got 0.0"),
        (np.full(detector.SHAPE, np.nan), "flat must be finite everywhere, got 1056768 others"),
    ],
)
def test_wrong_flats_are_refused(tmp_path, flat, words):
    with pytest.raises(ValueError, match=words):
        simulate.calibration_files(tmp_path / "new", flat=flat)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match=words):
        simulate.integrate(observe(), 0, flat=flat)
