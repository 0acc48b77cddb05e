"""Exposures: the truth that went in comes out."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.table import Table
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import map_coordinates
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps import detector
from miri_steps.simulate import Pointing, Psf, Scene, columns, dome, grid, observe, sphere, wcs

RA, DEC = 83.6, -69.1
EMPTY = Scene(RA, DEC)
POINTING = Pointing(RA, DEC, 33.0)
QUIET = {"noise": 0.0, "bad_pixels": 0.0, "subarray": "SUB256"}


def five_stars(flux=1.0):
    """Place five stars on a cross of 8 arcsec arms."""
    east, north = np.array([[0, 0], [8, 1], [-8, 2], [1, 8], [-2, -8]]).T
    ra, dec = sphere.lon_lat(sphere.from_tangent(east, north, RA, DEC))
    return EMPTY.with_catalog(Table({"ra": ra, "dec": dec, "flux_mjy": np.full(5, flux)}))


def round_psf():
    """Build a star without wings, whose centroid is easy to measure."""
    axis = (np.arange(200) - 99.5) / 5
    line = np.exp(-(axis**2) / 2)
    return Psf(np.outer(line, line) / line.sum() ** 2, 5)


def misplaced(model, stars, half=7):
    """Measure where stars are on the sky by the file's WCS, minus where they are in truth [arcsec]."""
    ra, dec = np.array(stars["ra"]), np.array(stars["dec"])
    image, found = model.data.astype(float), []
    for column, row in np.round(np.transpose(model.meta.wcs.invert(ra, dec))).astype(int):
        box = image[row - half : row + half + 1, column - half : column + half + 1]
        dy, dx = np.indices(box.shape) - half
        found.append((column + (box * dx).sum() / box.sum(), row + (box * dy).sum() / box.sum()))
    seen = sphere.unit_vectors(*model.meta.wcs(*np.transpose(found)))
    return np.subtract(
        sphere.to_tangent(seen, RA, DEC), sphere.to_tangent(sphere.unit_vectors(ra, dec), RA, DEC)
    )


def test_stars_are_where_the_wcs_says_with_the_flux_asked():
    scene = five_stars(2.0)
    model = observe(scene, [POINTING], "F770W", psf=round_psf(), **QUIET)[0]
    assert np.abs(misplaced(model, scene.stars)).max() < 0.02 * detector.PIXEL_SCALE
    area = model.area * model.meta.photometry.pixelarea_steradians
    assert np.nansum(model.data * area) * 1e9 == pytest.approx(10.0, rel=0.001)


def test_diffraction_keeps_the_flux():
    model = observe(five_stars(2.0), [POINTING], "F770W", **QUIET)[0]
    area = model.area * model.meta.photometry.pixelarea_steradians
    assert np.nansum(model.data * area) * 1e9 == pytest.approx(10.0, rel=0.02)


@pytest.mark.parametrize(("error", "roll"), [((0.4, 0.0), 33.0), ((0.0, 0.4), 250.0)])
def test_pointing_error_is_what_the_wcs_must_be_shifted_by(error, roll):
    scene = five_stars()
    plan = [replace(POINTING, pa_v3=roll)]
    model = observe(scene, plan, "F770W", psf=round_psf(), pointing_error=[error], **QUIET)[0]
    # The file's WCS says too little by the error: adding it puts the stars right.
    assert_allclose(-misplaced(model, scene.stars).mean(axis=1), error, atol=0.003)


def test_noise_is_that_of_err():
    scene = EMPTY.with_emission(5.0, radius=40, seed=1)
    observation = observe(scene, [POINTING], "F770W", sky=3.0, noise=0.1, subarray="BRIGHTSKY")
    model = observation[0]
    pull = (model.data - observation.signal(0) - 3.0) / model.err
    assert np.nanmean(pull**2) == pytest.approx(1.0, abs=0.01)
    assert np.nanmean(pull) == pytest.approx(0.0, abs=0.01)
    total = model.var_poisson + model.var_rnoise + model.var_flat
    assert_allclose(model.err**2, total, rtol=1e-5)
    assert np.nanmin(model.err) >= 0.0999


def test_same_sky_gives_the_same_value_in_every_exposure():
    amplitude = 5.0
    scene = EMPTY.with_emission(amplitude, radius=40, seed=1)
    plan = [POINTING, Pointing(*sphere.offset(RA, DEC, 3.3, -2.1), 123.4, exposure=2)]
    fwhm = detector.FWHM["F770W"] * detector.PIXEL_SCALE
    for model in observe(scene, plan, "F770W", **QUIET):
        y, x = np.mgrid[0:256:3, 0:256:3]
        sky = sphere.unit_vectors(*model.meta.wcs(x.astype(float), y.astype(float)))
        truth = scene.brightness(*sphere.to_tangent(sky, RA, DEC), fwhm)
        assert_allclose(model.data[y, x], truth, rtol=0, atol=1e-4 * amplitude)


def test_two_rolls_agree_between_pixels():
    amplitude = 5.0
    scene = EMPTY.with_emission(amplitude, radius=40, seed=1)
    plan = [POINTING, Pointing(*sphere.offset(RA, DEC, 3.3, -2.1), 123.4, exposure=2)]
    # There are no stars in it.
    first, second = observe(scene, plan, "F1500W", psf=round_psf(), **QUIET)
    x, y = np.random.default_rng(1).integers(90, 166, (2, 300))
    sky = sphere.unit_vectors(*first.meta.wcs(x.astype(float), y.astype(float)))
    there = wcs.sky_to_pixels(sky, plan[1], "F1500W", "SUB256")
    value = map_coordinates(second.data.astype(float), there[::-1], order=5)
    assert_allclose(value, first.data[y, x], rtol=0, atol=1e-3 * amplitude)


def test_sky_and_pattern_are_added_on_the_detector():
    pattern = dome(2.0) + columns(0.1, seed=4)
    models = list(observe(EMPTY, grid(RA, DEC, n=(2, 1)), "F770W", sky=[1.0, 3.0], pattern=pattern, **QUIET))
    window = detector.SUBARRAYS["SUB256"].slices
    for model, level in zip(models, (1.0, 3.0), strict=True):
        assert_allclose(model.data, pattern[window] + level, rtol=1e-6)


def test_pattern_brightens_by_its_factor():
    pattern, plan, factors = dome(2.0) + columns(0.1, seed=4), grid(RA, DEC, n=(3, 1)), [1.0, 1.25, -0.5]
    observation = observe(
        EMPTY, plan, "F770W", sky=[1.0, 3.0, 2.0], pattern=pattern, pattern_scale=factors, **QUIET
    )
    window = detector.SUBARRAYS["SUB256"].slices
    for i, (level, factor) in enumerate(zip((1.0, 3.0, 2.0), factors, strict=True)):
        truth = level + factor * pattern[window]
        assert_array_equal(observation.background(i), truth)
        assert_array_equal(observation.expect(i)[0], truth)
        assert_allclose(observation[i].data, truth, rtol=1e-6)
    assert list(observation.truth["pattern_scale"]) == factors


def test_one_factor_is_for_all_and_needs_a_pattern():
    plan, settings = grid(RA, DEC, n=(2, 1)), {"sky": 3.0, "subarray": "SUB64"}
    plain = observe(EMPTY, plan, "F770W", pattern=dome(2.0), **settings)
    twice = observe(EMPTY, plan, "F770W", pattern=dome(2.0), pattern_scale=2, **settings)
    assert list(plain.truth["pattern_scale"]) == [1.0, 1.0]
    assert list(twice.truth["pattern_scale"]) == [2.0, 2.0]
    assert_allclose(twice.background(1) - 3.0, 2 * (plain.background(1) - 3.0), rtol=1e-12)
    bare = observe(EMPTY, plan, "F770W", pattern_scale=2, **settings)
    assert_array_equal(bare.background(1), np.full((64, 72), 3.0))


def test_background_is_what_is_expected_without_the_scene():
    observation = observe(
        five_stars(2.0).with_emission(5.0, radius=40),
        grid(RA, DEC, n=(2, 1)),
        "F770W",
        sky=[5.0, 7.0],
        pattern=dome(1.0),
        pattern_scale=[1.0, 1.5],
        hot_pixels=0.05,
        dead_pixels=0.03,
        subarray="SUB256",
    )
    alive = ~observation.dead
    for i in range(2):
        rest = observation.expect(i)[0] - observation.signal(i) - observation.hot * observation.noise
        assert_allclose(rest[alive], observation.background(i)[alive], rtol=0, atol=1e-9)
        # Where a pixel is dead the light is there all the same.
        assert observation.background(i).min() > 5


def test_unusable_pixels_are_nan_everywhere():
    model = observe(EMPTY, [POINTING], "F770W", bad_pixels=0.01)[0]
    unusable = (model.dq & pixel["DO_NOT_USE"]) > 0
    for name in ("data", "err", "var_poisson", "var_rnoise", "var_flat"):
        assert_array_equal(np.isnan(getattr(model, name)), unusable)
    assert np.isfinite(model.area).all()
    inside = detector.region_mask(["imager", "lyot", "4qpm"])
    assert_array_equal((model.dq & pixel["NON_SCIENCE"]) > 0, ~inside)
    assert_array_equal((model.dq & pixel["REFERENCE_PIXEL"]) > 0, detector.reference_pixel_mask())
    bad = (model.dq & (pixel["DEAD"] | pixel["HOT"])) > 0
    assert bad.mean() == pytest.approx(0.01, rel=0.05)
    assert unusable[bad].all()
    assert unusable[inside].mean() == pytest.approx(0.01, rel=0.05)


def test_noise_belongs_to_the_exposure_and_bad_pixels_to_the_detector():
    plan = grid(RA, DEC, n=(3, 1))
    together = observe(EMPTY, plan, "F770W", subarray="SUB256", cosmic_rays=0.01, seed=5)
    alone = observe(EMPTY, plan[2:], "F770W", subarray="SUB256", cosmic_rays=0.01, seed=5)
    first, second, third = together
    assert_array_equal(third.data, alone[0].data)
    assert_array_equal(third.data, together[2].data)
    assert_array_equal(first.dq, second.dq)
    assert (first.data != second.data).mean() > 0.9
    other = observe(EMPTY, plan, "F770W", subarray="SUB256", seed=6)
    assert (other[0].dq != first.dq).any()


def test_cosmic_rays_hit_without_a_flag():
    model = observe(EMPTY, [POINTING], "F770W", cosmic_rays=0.02, bad_pixels=0, subarray="SUB256")[0]
    assert np.mean(model.data > 5 * model.err) == pytest.approx(0.02, rel=0.15)
    assert (model.dq == 0).all()


def test_hot_pixels_add_the_same_to_every_exposure():
    plan = grid(RA, DEC, n=(2, 1))
    settings = {"subarray": "SUB256", "noise": 0.1, "cosmic_rays": 0.01, "seed": 3}
    plain, warm = (observe(EMPTY, plan, "F770W", sky=2.0, hot_pixels=f, **settings) for f in (0.0, 0.02))
    usable = plain.flags == 0
    assert (plain.hot == 0).all()
    assert (warm.hot > 0)[usable].mean() == pytest.approx(0.02, rel=0.1)
    assert (warm.hot[~usable] == 0).all()
    for before, after in zip(plain, warm, strict=True):
        assert_array_equal(after.dq, before.dq)
        assert_array_equal(after.err, before.err)
        assert_allclose((after.data - before.data)[usable], 0.1 * warm.hot[usable], rtol=0, atol=1e-5)
        cold = usable & (warm.hot == 0)
        assert_array_equal(after.data[cold], before.data[cold])


def test_heights_of_hot_pixels_are_even_in_the_logarithm():
    height = observe(EMPTY, [POINTING], "F770W", hot_pixels=0.05, hot_sigma=(2.0, 200.0)).hot
    height = height[height > 0]
    assert height.min() >= 2
    assert height.max() <= 200
    assert_allclose(np.histogram(np.log10(height / 2), 4, (0, 2))[0] / height.size, 0.25, atol=0.01)


def test_dead_pixels_see_no_light():
    parameters = {"sky": 5.0, "pattern": dome(1.0), "subarray": "SUB256", "hot_pixels": 0.05}
    observation = observe(five_stars(2.0), [POINTING], "F770W", dead_pixels=0.03, **parameters)
    model, dead = observation[0], observation.dead
    assert dead[observation.flags == 0].mean() == pytest.approx(0.03, rel=0.1)
    assert not (dead & (observation.hot > 0)).any()
    assert not (dead & (observation.flags != 0)).any()
    assert (model.dq[dead] == 0).all()
    assert np.mean((model.data / model.err)[dead] ** 2) == pytest.approx(1.0, abs=0.1)
    alive = observe(five_stars(2.0), [POINTING], "F770W", **parameters)
    assert not alive.dead.any()
    assert_array_equal(alive.hot, observation.hot)
    assert_array_equal(alive[0].data[~dead], model.data[~dead])


def test_hot_pixels_belong_to_the_detector():
    parameters = {"hot_pixels": 0.01, "dead_pixels": 0.01, "bad_pixels": 0.0}
    full, part = (
        observe(EMPTY, [POINTING], "F770W", subarray=subarray, **parameters)
        for subarray in ("FULL", "BRIGHTSKY")
    )
    window = detector.SUBARRAYS["BRIGHTSKY"].slices
    assert_array_equal(part.hot, full.hot[window])
    assert_array_equal(part.dead, full.dead[window])
    outside = ~detector.region_mask(["imager", "lyot", "4qpm"])
    assert not full.hot[outside].any()
    assert not full.dead[outside].any()
    other = observe(EMPTY, [POINTING], "F770W", seed=1, **parameters)
    assert (other.hot != full.hot).any()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"subarray": "SUB1"}, "subarray must be one of .*FULL.*, got SUB1"),
        ({"sky": [1.0, 2.0]}, r"one per exposure \(1\), got \(2,\)"),
        ({"sky": np.nan}, r"sky must be finite, got \[nan\]"),
        (
            {"pattern_scale": [1.0, 2.0]},
            r"pattern_scale must be one factor or one per exposure \(1\), got \(2,\)",
        ),
        ({"pattern_scale": np.inf}, r"pattern_scale must be finite, got \[inf\]"),
        ({"pointing_error": np.zeros((2, 2))}, r"shape \(1, 2\), got \(2, 2\)"),
        ({"pattern": np.zeros((4, 4))}, r"\(1024, 1032\), got \(4, 4\)"),
        ({"noise": -1}, "noise must be at least 0 MJy/sr, got -1"),
        ({"bad_pixels": 1.5}, "bad_pixels must be a fraction"),
        ({"hot_pixels": -0.1}, "hot_pixels must be a fraction of 0 to 1, got -0.1"),
        ({"hot_sigma": (5.0, 1.0)}, r"hot_sigma must be 0 < lowest <= highest, got \(5.0, 1.0\)"),
        ({"dead_pixels": 1.0}, "dead_pixels must be a fraction of 0 to 1, got 1.0"),
        ({"hot_pixels": 0.75, "dead_pixels": 0.5}, "at most 1 together, got 1.25"),
        ({"regions": "moon"}, "regions must be among"),
    ],
)
def test_wrong_parameters_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        observe(EMPTY, [POINTING], "F770W", **wrong)


def test_unknown_filters_and_shared_names_are_refused():
    with pytest.raises(ValueError, match="filter must be one of .*F770W.*, got 'F200W'"):
        observe(EMPTY, [POINTING], "F200W")
    with pytest.raises(ValueError, match="name of its own, got .*_02101_00001_"):
        observe(EMPTY, [POINTING, POINTING], "F770W")
