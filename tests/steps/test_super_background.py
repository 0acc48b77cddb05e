"""SuperBackgroundStep against truth: what is found, what it is built from, and what is left alone."""

import gc
import json
import re
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from jwst import datamodels
from jwst.datamodels import ModelContainer, ModelLibrary
from jwst.skymatch import SkyMatchStep
from stdatamodels import asdf_in_fits
from stdatamodels.jwst.datamodels import ImageModel
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps import PixelSkyMatchStep, SuperBackgroundStep, detector
from miri_steps.simulate import Scene, columns, dome, grid, observe, psf, sphere, wcs
from miri_steps.steps import super_background_masks

RA, DEC = 83.6, -69.1
DO_NOT_USE, OTHER_BAD_PIXEL = pixel["DO_NOT_USE"], pixel["OTHER_BAD_PIXEL"]
NOISE = 0.05
PLANES = ("data", "err", "dq", "var_poisson", "var_rnoise")
# Where empty frames are on the detector: inside the imager, 0-indexed.
ROWS, COLUMNS = slice(199, 263), slice(499, 563)
PATTERN = (dome(0.5, center=(530, 230), radius=40) + columns(0.1))[ROWS, COLUMNS]
FWHM = detector.FWHM["F770W"] * detector.PIXEL_SCALE
# Read from the log.
BUILT = re.compile(r"(\S+_cal\.fits): background of (\d+) exposures")
SKIPPED = re.compile(r"(\S+_cal\.fits) is left as it is: (.*)\.")


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory, monkeypatch):
    """Give scratch files a place of their own, and see that none is left there."""
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


def name(number):
    return f"jw01234001001_02101_{number:05d}_mirimage_cal.fits"


@lru_cache
def template(shape):
    """Make an exposure without data once for each shape: checking metadata takes longer than all else."""
    model = ImageModel(shape)
    for plane in ("data", "err", "var_poisson", "var_rnoise"):
        setattr(model, plane, np.zeros(shape, np.float32))
    model.dq = np.zeros(shape, np.uint32)
    model.meta.bunit_data = "MJy/sr"
    model.meta.exposure.instance.update(type="MIR_IMAGE", exposure_time=111.0, readpatt="FASTR1")
    model.meta.instrument.instance.update(name="MIRI", detector="MIRIMAGE")
    model.meta.subarray.instance.update(
        name="SUB64", xstart=COLUMNS.start + 1, ystart=ROWS.start + 1, xsize=shape[1], ysize=shape[0]
    )
    return model


def blank(number=1, *, level=None, pattern=PATTERN, factor=1.0, noise=NOISE, band="F770W", away=None):
    """Make an exposure of an empty sky, without a WCS; each looks 5 arcsec from the one before."""
    model, rng = template(pattern.shape).copy(), np.random.default_rng(number)
    level = 4 + 0.4 * np.sin(number) if level is None else level
    model.data[:] = level + factor * pattern + rng.normal(0, noise, pattern.shape)
    model.err[:] = noise
    model.var_poisson[:] = 0.75 * noise**2
    model.var_rnoise[:] = 0.25 * noise**2
    model.meta.filename = name(number)
    model.meta.exposure.instance.update(mid_time=60000 + number / 480)
    model.meta.instrument.instance.update(filter=band)
    away = 5.0 * number if away is None else away
    model.meta.wcsinfo.instance.update(ra_ref=RA, dec_ref=DEC + away / 3600)
    return model


def blanks(count=7, first=1, **settings):
    return [blank(number, **settings) for number in range(first, first + count)]


def put(model, place, value=np.nan, flags=DO_NOT_USE):
    """Make a hole, or whatever else."""
    model.data[place] = value
    model.dq[place] |= np.uint32(flags)


def call(given, **parameters):
    """Run the Step; a list of models comes back as a list."""
    result = SuperBackgroundStep.call(given, **parameters)
    return list(result) if isinstance(result, ModelContainer) else result


def status(result):
    return [getattr(model.meta.cal_step, "super_background", None) for model in result]


def level_of(model):
    return model.to_flat_dict(include_arrays=False).get("meta.background.super_background_level")


def found(before, after):
    """Background that was taken away."""
    return before.data.astype(float) - after.data


def added(before, after):
    """Error that was added to that of the pixels."""
    return np.sqrt(after.err.astype(float) ** 2 - before.err.astype(float) ** 2)


def assert_untouched(before, after):
    for plane in PLANES:
        np.testing.assert_array_equal(getattr(after, plane), getattr(before, plane))


def assert_equal(first, second, planes=PLANES):
    for one, other in zip(first, second, strict=True):
        for plane in planes:
            np.testing.assert_array_equal(getattr(one, plane), getattr(other, plane))


def save(models, folder):
    folder.mkdir(exist_ok=True)
    for model in models:
        model.save(folder / model.meta.filename)
    return [str(folder / model.meta.filename) for model in models]


def association(folder, science, background=()):
    """Name files of a folder in an association beside them."""
    members = [{"expname": Path(file).name, "exptype": "science"} for file in science]
    members += [{"expname": Path(file).name, "exptype": "background"} for file in background]
    asn = {"asn_type": "image3", "asn_id": "a3001", "products": [{"name": "field", "members": members}]}
    (folder / "asn.json").write_text(json.dumps(asn))
    return str(folder / "asn.json")


# What it must reach


@lru_cache(maxsize=1)
def star():
    return psf("F770W", oversample=3, half_size=60)


def watch(plan, *, stars=40, flux=(1e-3, 0.3), **settings):
    """Observe stars through a hill of light and stripes fixed to the detector."""
    pattern = dome(0.5, center=(540, 180), radius=150) + columns(0.1)
    sky = 4 + 0.3 * np.random.default_rng(1).standard_normal(len(plan))
    settings = {"sky": sky, "pattern": pattern, "noise": NOISE, "subarray": "SUB256"} | settings
    scene = settings.pop("scene", Scene(RA, DEC).with_stars(stars, radius=25, flux=flux, seed=2))
    observation = observe(scene, plan, "F770W", psf=star(), **settings)
    return observation, list(observation)


def dithered(n, step):
    return grid(RA, DEC, n=n, step=step, per_visit=n[0] * n[1])


@pytest.fixture(scope="module")
def watched():
    """Six dithers, all imager, and their truth."""
    return watch(dithered((3, 2), 5.0))


@pytest.fixture(scope="module")
def cleaned(watched):
    """Give what the Step makes of them."""
    return call(watched[1])


@pytest.fixture(scope="module")
def close():
    """Dithers two widths of a star apart, and a hill without stripes, which no filling can know."""
    return watch(dithered((3, 2), 2 * FWHM), stars=10, flux=(0.01, 0.3), pattern=dome(0.5))


@pytest.fixture(scope="module")
def faint():
    """A nebula of 2 sigma that covers part of the field, and a hill."""
    scene = (
        Scene(RA, DEC)
        .with_stars(10, radius=25, seed=2)
        .with_emission(2 * NOISE, radius=25, cover=0.3, seed=4)
    )
    return watch(dithered((3, 2), 4.0), scene=scene)


def errors(observation, before, after):
    """How far the background is from the truth, for each exposure, NaN where there are no data."""
    return [
        found(*pair) - observation.background(k) for k, pair in enumerate(zip(before, after, strict=True))
    ]


@pytest.mark.parametrize(("statistic", "limit"), [("clip", 1.15), ("median", 1.30)])
def test_the_background_is_that_of_truth(statistic, limit, watched, cleaned):
    observation, models = watched

    # It clips where it is not told otherwise.
    result = cleaned if statistic == "clip" else call(models, statistic=statistic)

    least = NOISE / np.sqrt(len(models) - 1)
    wrong = errors(observation, models, result)
    for before, after, error in zip(models, result, wrong, strict=True):
        known = np.isfinite(error)
        np.testing.assert_array_equal(known, np.isfinite(before.data))
        assert abs(error[known].mean()) < 0.05 * NOISE
        assert np.sqrt(np.mean(error[known] ** 2)) < limit * least
        stated = added(before, after)[known]
        assert 0.93 < np.std(error[known] / stated) < 1.07
        variance = sum((getattr(after, p) - getattr(before, p))[known] for p in ("var_poisson", "var_rnoise"))
        np.testing.assert_allclose(variance, stated**2, rtol=1e-3)
        # Shared as the exposure's own noise is: photons to 90 %.
        share = (after.var_poisson - before.var_poisson)[known] / variance
        np.testing.assert_allclose(share, 0.9, atol=0.01)
    assert abs(np.nanmean(wrong)) < 0.02 * NOISE


def test_levels_are_found_and_kept_in_the_metadata(watched, cleaned):
    observation, models = watched

    for k, (before, after) in enumerate(zip(models, cleaned, strict=True)):
        true, known = observation.background(k), np.isfinite(before.data)
        assert level_of(after) == pytest.approx(true[known].mean(), abs=0.02 * NOISE)
        assert found(before, after)[known].mean() == pytest.approx(level_of(after), abs=1e-3 * NOISE)
        assert np.nanmedian(after.data) == pytest.approx(0, abs=0.2 * NOISE)


@pytest.mark.parametrize("passes", [1, 2])
def test_stars_keep_their_light_where_dithers_are_two_widths_apart(passes, close):
    observation, models = close
    stars = observation.scene.stars
    sky = sphere.unit_vectors(np.array(stars["ra"]), np.array(stars["dec"]))

    wrong = errors(observation, models, call(models, passes=passes))

    light = lost = 0.0
    for k, error in enumerate(wrong):
        x, y = wcs.sky_to_pixels(sky, observation.pointings[k], "F770W", "SUB256")
        inside = (np.minimum(x, y) > 20) & (np.maximum(x, y) < 235)
        rows, cols = np.mgrid[:256, :256]
        for column, row in zip(x[inside], y[inside], strict=True):
            away = np.hypot(cols - column, rows - row)
            aperture, ring = away < 4, (away > 12) & (away < 18)
            light += observation.signal(k)[aperture].sum()
            lost += np.nansum(error[aperture] - np.nanmedian(error[ring]))
    assert light > 1000 * NOISE
    assert abs(lost) < 0.003 * light


# Who takes part


def test_an_exposure_is_no_part_of_its_own_background():
    """A blob too faint for any mask, in one exposure."""
    models = blanks(level=4.0)
    blob = np.zeros(PATTERN.shape, bool)
    blob[20:40, 20:40] = True
    settings = {"source_sigma": 50.0, "scaling": "none"}
    for one in (True, False):
        before = [
            found(*pair) for pair in zip(models, call(models, leave_one_out=one, **settings), strict=True)
        ]
        changed = [model.copy() for model in models]
        changed[2].data[blob] += 0.5 * NOISE
        after = [
            found(*pair) for pair in zip(changed, call(changed, leave_one_out=one, **settings), strict=True)
        ]

        count = len(models) - one
        for k, (first, second) in enumerate(zip(before, after, strict=True)):
            share = 0.0 if one and k == 2 else 1 / count
            if share == 0:
                np.testing.assert_allclose(second, first, atol=1e-6)
            # Clipping lets go of a sample now and then.
            assert (second - first)[blob].mean() == pytest.approx(share * 0.5 * NOISE, rel=0.2, abs=1e-6)


def test_a_source_hardly_moves_its_own_background():
    """It helps to find the sources of the others: their masks may change by a few pixels."""
    models = blanks()
    before = found(models[2], call(models)[2])
    blob = np.s_[20:40, 20:40]
    models[2].data[blob] += 2 * NOISE
    models[2].data[50, 50] += 500 * NOISE

    difference = found(models[2], call(models)[2]) - before

    assert abs(np.median(difference)) < 0.02 * NOISE
    assert (np.abs(difference - np.median(difference)) > 1e-4 * NOISE).mean() < 0.2
    assert abs(difference[blob].mean()) < 0.03 * 2 * NOISE / 6
    assert difference[50, 50] == pytest.approx(0, abs=NOISE)


@pytest.mark.parametrize(("separation", "count"), [(0.0, 7), (1.5, 6), (1.51 * 2, 4)])
def test_exposures_pointed_close_by_are_left_out_too(separation, count, caplog, tmp_cwd):
    """Pairs 1 FWHM apart, pairs of pairs 3 FWHM apart, the rest far away."""
    places = [FWHM * at for at in (0, 1, 3, 4)]
    models = [blank(k + 1, away=places[k % 4] + 10 * (k // 4)) for k in range(8)]

    result = call(models, min_separation=separation)

    expected = {0.0: [7] * 8, 1.5: [6] * 8, 3.02: [5, 4, 4, 5] * 2}[separation]
    assert [int(number) for _, number in BUILT.findall(caplog.text)] == expected
    result[1].save("out.fits")
    with asdf_in_fits.open("out.fits") as file:
        (entry,) = file.get_history_entries()
    assert f" exposures={expected[1]} " in entry["description"]
    assert f"min_separation={separation} " in entry["description"]
    assert expected[1] == count


def test_exposures_of_one_pointing_are_left_as_they_are(caplog):
    models = blanks(away=0.0)

    result = call(models)

    assert status(result) == ["SKIPPED"] * 7
    assert len(SKIPPED.findall(caplog.text)) == 7
    assert "min_samples is 3, but of the 6 others only 0 are pointed 0.36 arcsec away or more" in caplog.text
    for pair in zip(models, result, strict=True):
        assert_untouched(*pair)
        assert level_of(pair[1]) is None
    assert status(call(models, min_separation=0.0)) == ["COMPLETE"] * 7


def test_a_lonely_exposure_among_others_is_left_as_it_is(caplog):
    """Three at one place, three elsewhere: the first three have 3 others, with min_samples=4 too few."""
    models = [blank(k, away=0.0 if k < 4 else 10.0 * k) for k in range(1, 7)]

    result = call(models, min_samples=4)

    assert status(result) == ["SKIPPED"] * 3 + ["COMPLETE"] * 3
    assert "min_samples is 4, but of the 5 others only 3 are pointed" in caplog.text
    for pair in zip(models[:3], result[:3], strict=True):
        assert_untouched(*pair)


def test_real_dithers_closer_than_a_star_are_left_as_they_are(shared_data, opened, caplog):
    """Six exposures within 15 mas; all others of each are closer than 1.5 FWHM."""
    files = sorted((shared_data / "miri_4qpm_dithers").glob("*_cal.fits"))[:6]
    if not files:
        pytest.skip("needs ../shared/data/miri_4qpm_dithers")
    models = opened(files)

    result = call(models)

    assert status(result) == ["SKIPPED"] * 6
    assert len(re.findall("min_samples is 3, but of the 5 others only 0 are pointed", caplog.text)) == 6
    for pair in zip(models, result, strict=True):
        assert_untouched(*pair)

    result = call(models, min_separation=0.0)

    assert status(result) == ["COMPLETE"] * 6
    assert {int(number) for _, number in BUILT.findall(caplog.text)} == {5}


# Groups


# So that three exposures make a background.
FEW = {"min_exposures": 3, "min_samples": 2}


@pytest.fixture(scope="module")
def alone():
    """Three exposures, and what comes of them."""
    models = blanks(3)
    return models, call(models, **FEW)


def changes(key, value):
    def change(models):
        for model in models:
            model[f"meta.{key}"] = value

    return change


def smaller(models):
    for model in models:
        for plane in PLANES:
            setattr(model, plane, getattr(model, plane)[:32, :48].copy())
        model.meta.subarray.instance.update(name="SUB32", xsize=48, ysize=32)


# What makes a group of its own, and what the group is called then.
CHANGES = {
    "filter": (changes("instrument.filter", "F560W"), "F560W MIRIMAGE SUB64 FASTR1 111 s"),
    "shape": (smaller, "F770W MIRIMAGE SUB32 FASTR1 111 s"),
    "xstart": (changes("subarray.xstart", 540), "F770W MIRIMAGE SUB64 FASTR1 111 s"),
    "readpatt": (changes("exposure.readpatt", "SLOWR1"), "F770W MIRIMAGE SUB64 SLOWR1 111 s"),
    "twice as long": (changes("exposure.exposure_time", 222.0), "F770W MIRIMAGE SUB64 FASTR1 222 s"),
    "longer": (changes("exposure.exposure_time", 111.3), "F770W MIRIMAGE SUB64 FASTR1 111.3 s"),
    "unit": (changes("bunit_data", "DN/s"), "F770W MIRIMAGE SUB64 FASTR1 111 s"),
    "bkg_sub": (changes("cal_step.bkg_sub", "COMPLETE"), "F770W MIRIMAGE SUB64 FASTR1 111 s"),
    "days": (changes("exposure.mid_time", 60010.0), "F770W MIRIMAGE SUB64 FASTR1 111 s"),
}


def test_only_exposures_that_share_a_background_are_combined(alone, caplog):
    """Each kind of exposure differs from the first three in one thing, and has a background of its own."""
    first, expected = alone
    others = []
    for k, (change, _) in enumerate(CHANGES.values()):
        others.append(blanks(3, first=6 + 3 * k))
        change(others[-1])

    both = call([*first, *(model for group in others for model in group)], **FEW, max_days=2.0)

    assert [int(number) for _, number in BUILT.findall(caplog.text)] == [2] * 30
    assert status(both) == ["COMPLETE"] * 30
    assert_equal(both[:3], expected)
    caplog.clear()

    pairs = [model for group in others for model in group[:2]]
    few = call([*pairs, *first], **FEW, max_days=2.0)

    assert status(few) == ["SKIPPED"] * 18 + ["COMPLETE"] * 3
    reasons = dict(SKIPPED.findall(caplog.text))
    for group, (_, label) in zip(others, CHANGES.values(), strict=True):
        for model in group[:2]:
            assert f"min_exposures is 3, but 2 are of {label}" in reasons.pop(model.meta.filename)
    assert not reasons
    for pair in zip(pairs, few, strict=False):
        assert_untouched(*pair)
    assert_equal(few[18:], expected)


def test_exposure_times_are_compared_as_numbers(caplog):
    models = blanks(6)
    for k, model in enumerate(models):
        model.meta.exposure.exposure_time = 111.0021 + 0.0002 * (k % 2)

    call(models)

    assert {int(number) for _, number in BUILT.findall(caplog.text)} == {5}


def test_time_makes_groups_only_where_asked(caplog):
    models = blanks(6)
    for k, model in enumerate(models):
        model.meta.exposure.mid_time = 60000.0 + k

    call(models)
    call(models, max_days=2.0)

    assert [int(number) for _, number in BUILT.findall(caplog.text)] == [5] * 6
    assert "3 are of" in caplog.text
    models[3].meta.exposure.mid_time = None
    with pytest.raises(ValueError, match=f"max_days needs EXPMID or EXPSTART, but {models[3].meta.filename}"):
        call(models, max_days=2.0)


# A separate sky set


@pytest.fixture(scope="module")
def nebulous():
    """Science exposures full of light that stays on its pixels, and exposures of empty sky."""
    y, x = np.mgrid[:64, :64]
    light = 2 + np.sin(x / 7) * np.cos(y / 9)
    science = blanks(3, level=4.0)
    for model in science:
        model.data += light.astype(np.float32)
    return science, blanks(6, first=11, level=4.0, away=600.0), light


@pytest.fixture(scope="module")
def nebulous_files(nebulous, tmp_path_factory):
    """Write them, and an association of all; give the files of both kinds."""
    folder = tmp_path_factory.mktemp("nebulous")
    files, sky_files = (save(models, folder) for models in nebulous[:2])
    return files, sky_files, association(folder, files, sky_files)


@pytest.mark.parametrize("way", ["parameter", "association"])
def test_a_sky_set_shows_the_background_of_crowded_exposures(
    way, nebulous, nebulous_files, caplog, planes_of
):
    science = nebulous[0]
    files, sky_files, asn = nebulous_files
    before = {path: Path(path).read_bytes() for path in sky_files}
    settings = {"scaling": "none", "source_sigma": 4.0}
    if way == "parameter":
        result = call(science, background_files=sky_files, **settings)
    else:
        library = call(asn, in_memory=False, **settings)
        assert list(planes_of(library)) == [Path(path).name for path in files]
        with library:
            result = [library.borrow(k) for k in range(3)]
            for k, model in enumerate(result):
                library.shelve(model, k, modify=False)

    assert BUILT.findall(caplog.text) == [(model.meta.filename, "6") for model in science]
    for before_model, after in zip(science, result, strict=True):
        assert after.meta.cal_step.super_background == "COMPLETE"
        error = found(before_model, after) - (4 + PATTERN)
        assert abs(error.mean()) < 0.05 * NOISE
        assert error.std() < 1.15 * NOISE / np.sqrt(6)
        assert np.std(error / added(before_model, after)) == pytest.approx(1, abs=0.07)
    assert {path: Path(path).read_bytes() for path in sky_files} == before


def test_an_open_library_may_hold_the_sky_set(nebulous, nebulous_files):
    """It is handed on whole; only the science exposures are changed and listed."""
    science, skies, _ = nebulous

    SuperBackgroundStep.call(ModelLibrary(nebulous_files[2]), save_results=True, scaling="none")

    listed = json.loads(Path("field_super_background_asn.json").read_text())["products"][0]["members"]
    names = [each.meta.filename.replace("_cal", "_super_background") for each in science]
    assert [member["expname"] for member in listed] == names
    for sky in skies:
        with datamodels.open(sky.meta.filename.replace("_cal", "_super_background")) as saved:
            assert_untouched(sky, saved)
            assert status([saved]) != ["COMPLETE"]


def test_the_level_over_a_sky_set_is_fitted_where_it_may_differ(nebulous, nebulous_files):
    """Level and emission cannot be told apart where there is no empty pixel: the structure is right."""
    science = nebulous[0]

    result = call(science, background_files=nebulous_files[1], source_sigma=4.0)

    for before, after in zip(science, result, strict=True):
        assert (found(before, after) - PATTERN).std() < 1.15 * NOISE / np.sqrt(6)


def test_a_sky_set_that_cannot_be_used_is_refused_or_named(nebulous, nebulous_files, tmp_cwd, caplog):
    science, skies, _ = nebulous
    files, sky_files, _ = nebulous_files

    with pytest.raises(ValueError, match="each exposure must be given once, but .*00012.* is listed 2 times"):
        call([*files, sky_files[1]], background_files=sky_files)
    with pytest.raises(FileNotFoundError, match="gone_cal.fits"):
        call(science, background_files=["gone_cal.fits"])
    with pytest.raises(ValueError, match="background_files must be FITS files of exposures, got x.json"):
        call(science, background_files=["x.json"])
    others = [sky.copy() for sky in skies[:2]]
    for sky in others:
        sky.meta.exposure.type = "NRC_IMAGE"
    with pytest.raises(ValueError, match=f"{name(11)}.*got NRC_IMAGE"):
        call(science, background_files=save(others, tmp_cwd / "nircam"))

    result = call(science, background_files=sky_files[:4])

    assert status(result) == ["SKIPPED"] * 3
    assert "min_exposures is 5, but 4 of the sky set are of F770W" in caplog.text
    for sky in others:
        sky.meta.exposure.type = "MIR_IMAGE"
        sky.meta.instrument.filter = "F1000W"

    result = call(science, background_files=save(others, tmp_cwd / "f1000w"))

    assert status(result) == ["SKIPPED"] * 3
    assert "min_exposures is 5, but 0 of the sky set are of F770W MIRIMAGE SUB64" in caplog.text
    for pair in zip(science, result, strict=True):
        assert_untouched(*pair)


# Levels


def test_the_level_stays_where_asked():
    models = blanks()

    kept, gone = call(models, preserve_level=True), call(models)

    for before, with_level, without in zip(models, kept, gone, strict=True):
        taken = found(before, with_level)
        assert taken.mean() == pytest.approx(0, abs=1e-6)
        assert with_level.data.std() == pytest.approx(NOISE * np.sqrt(7 / 6), rel=0.05)
        assert level_of(with_level) is None
        level = level_of(without)
        assert level == pytest.approx(found(before, without).mean(), abs=1e-6)
        np.testing.assert_allclose(found(before, without) - taken, level, atol=2e-6)
        for plane in PLANES[1:]:
            np.testing.assert_array_equal(getattr(with_level, plane), getattr(without, plane))


@pytest.mark.parametrize(
    ("preserve", "level", "subtracted"),
    [(False, 4.2, False), (False, 4.2, True), (False, None, None), (True, 4.2, False)],
)
def test_a_level_that_a_sky_match_left_goes_with_the_background(preserve, level, subtracted):
    models = blanks(5)
    for model in models:
        model.meta.background.level, model.meta.background.subtracted = level, subtracted

    for model in call(models, preserve_level=preserve):
        left = 0.0 if subtracted is False and not preserve else level
        assert (model.meta.background.level, model.meta.background.subtracted) == (left, subtracted)


@pytest.mark.parametrize("preserve", [True, False])
def test_skies_are_matched_after_it(preserve, dusty, opened, levels_of):
    cleaned = list(SuperBackgroundStep.call(opened(dusty.files), preserve_level=preserve))

    for step in (SkyMatchStep, PixelSkyMatchStep):
        matched = step.call(cleaned, skymethod="match", subtract=True)

        levels = levels_of(matched)
        for exposure, true in dusty.level().items():
            level = levels[exposure] - min(levels.values())
            # The histogram's peak that the stock step takes scatters by more than ours.
            limit = 0.3 if step is PixelSkyMatchStep else 0.5
            assert level == pytest.approx(true if preserve else 0.0, abs=limit * NOISE)


# Scaling


FACTORS = 1 + 0.25 * np.array([-1, 1, 0.3, -0.6, 0.8, -0.2, -0.3])


def scaled():
    """Structure of 20 sigma that brightens with the level."""
    return [
        blank(k + 1, level=4 * factor, factor=2 * factor, noise=NOISE) for k, factor in enumerate(FACTORS)
    ]


def test_structure_that_brightens_with_the_level_is_scaled():
    constant = [blank(k + 1, level=4.0, factor=2.0) for k in range(7)]

    def residual(models, scaling):
        """Rms over the exposures of what is left of the background, each about its own."""
        result = call(models, scaling=scaling)
        truth = [f * (4 + 2 * PATTERN) for f in (FACTORS if models is not constant else np.ones(7))]
        each = [found(*p) - t for *p, t in zip(models, result, truth, strict=True)]
        return np.sqrt(np.mean(np.square(each)))

    best = residual(constant, "additive")
    models = scaled()
    assert best < 1.15 * NOISE / np.sqrt(6)
    for scaling in ("multiplicative", "both"):
        assert residual(models, scaling) < 1.1 * best
        assert residual(constant, scaling) < 1.1 * best
    assert residual(models, "additive") > 2 * best
    assert residual(models, "none") > 10 * best


def test_a_level_that_differs_needs_no_factor():
    models = blanks()
    for scaling in ("additive", "both"):
        for k, (before, after) in enumerate(zip(models, call(models, scaling=scaling), strict=True), start=1):
            assert (found(before, after) - PATTERN - 4 - 0.4 * np.sin(k)).std() < 1.15 * NOISE / np.sqrt(6)


@pytest.mark.parametrize("level", [0.0, -1.0])
def test_factors_of_nothing_are_refused_by_name(level, tmp_cwd):
    models = blanks(5)
    models[3].data += np.float32(level - np.median(models[3].data)) - np.float32(0.01)

    for in_memory in (True, False):
        with pytest.raises(ValueError, match=f"multiplicative.*{models[3].meta.filename} is -"):
            call(models, scaling="multiplicative", save_results=True, in_memory=in_memory)

    assert not list(tmp_cwd.iterdir())


# Masks


BLOCK = np.s_[40:70, 50:80]


@lru_cache(maxsize=12)
def place(k):
    """Where exposure k of 0.6 arcsec dithers looks."""
    return wcs.build(dithered((3, 2), 0.6)[k], "F770W", "SUB128")


@lru_cache
def on_sky(number=6, *, light=12 * NOISE):
    """Make exposures with a WCS, and light that stays on the same pixels in all; change copies alone."""
    shape = detector.SUBARRAYS["SUB128"].shape
    pattern = columns(0.1)[: shape[0], : shape[1]]
    models = []
    for k in range(number):
        model = blank(k + 1, level=4.0, pattern=pattern)
        model.meta.subarray.instance.update(name="SUB128", xstart=1, ystart=889)
        model.meta.wcs = place(k)
        model.data[BLOCK] += np.float32(light)
        models.append(model)
    return models, pattern


def block_error(models, result, pattern):
    """How much of the light is in the background [noise]."""
    error = [found(*pair) - pattern for pair in zip(models, result, strict=True)]
    outside = np.ones(pattern.shape, bool)
    outside[35:75, 45:85] = False
    return np.mean([np.nanmedian(each[BLOCK]) - np.nanmedian(each[outside]) for each in error]) / NOISE


def sky_header(scale=0.11, size=300, ra=RA, dec=DEC):
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": ra, "CRVAL2": dec})
    header.update({"CRPIX1": (size + 1) / 2, "CRPIX2": (size + 1) / 2})
    header.update({"CDELT1": -scale / 3600, "CDELT2": scale / 3600, "CUNIT1": "deg", "CUNIT2": "deg"})
    return header


def block_on_sky(margin):
    """Corners of the block as all dithers see it."""
    y, x = BLOCK
    x, y = np.meshgrid([x.start - margin, x.stop + margin], [y.start - margin, y.stop + margin])
    corners = [np.ravel(place(k)(x, y, with_bounding_box=False)[i]) for k in range(6) for i in (0, 1)]
    return np.concatenate(corners[::2]), np.concatenate(corners[1::2])


def middle_of_block():
    ra, dec = block_on_sky(0)
    return ra.mean(), dec.mean()


def as_segm(path):
    mask = np.zeros((300, 300), np.int32)
    x, y = np.rint(WCS(sky_header()).wcs_world2pix(*block_on_sky(2), 0)).astype(int)
    mask[y.min() : y.max() + 1, x.min() : x.max() + 1] = 3
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(mask, sky_header(), name="SCI")]).writeto(path)


def as_i2d(path):
    """A mosaic with a bright block; all of it is known."""
    rng = np.random.default_rng(5)
    data = rng.normal(4, 0.02, (300, 300)).astype(np.float32)
    x, y = np.rint(WCS(sky_header()).wcs_world2pix(*block_on_sky(2), 0)).astype(int)
    data[y.min() : y.max() + 1, x.min() : x.max() + 1] += 0.5
    planes = {"SCI": data, "ERR": np.full_like(data, 0.02), "WHT": np.ones_like(data)}
    hdus = [fits.ImageHDU(plane, sky_header(), name=key) for key, plane in planes.items()]
    fits.HDUList([fits.PrimaryHDU(header=fits.Header({"FILTER": "F770W"})), *hdus]).writeto(path)


def as_regions(path):
    ra, dec = middle_of_block()
    Path(path).write_text(f'icrs\ncircle({ra:.8f},{dec:.8f},3.4")\n')


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (as_segm, {"mask_image": "mask.file"}),
        (as_i2d, {"mask_image": "mask.file"}),
        (as_regions, {"regions": "mask.file"}),
        (None, {"exclude_above": 4.4}),
        (None, {"exclude_delta": 0.4}),
        (None, {}),
    ],
    ids=["segm", "i2d", "regions", "exclude_above", "exclude_delta", "nothing"],
)
def test_light_that_stays_where_it_is_is_masked(make, parameters, caplog, tmp_cwd):
    models, pattern = on_sky()
    if make:
        make("mask.file")
        assert "mask.file" in {path.name for path in tmp_cwd.iterdir()}

    result = call(models, fallback="flag", **parameters)

    lost = np.mean([np.isnan(model.data[BLOCK]).mean() for model in result])
    assert lost > 0.95
    # Limits of brightness leave some pixels of the block.
    if "exclude_above" not in parameters and "exclude_delta" not in parameters:
        assert ("light stays on" in caplog.text) == (not parameters)
    outside = [found(*pair)[80:, 90:] - pattern[80:, 90:] for pair in zip(models, result, strict=True)]
    assert np.mean([each.std() for each in outside]) < 1.15 * NOISE / np.sqrt(5)


def test_faint_light_that_stays_needs_a_mask(tmp_cwd):
    """At 3 sigma nobody can tell it from background; with a mask it is smoothed over."""
    models, pattern = on_sky(light=3 * NOISE)
    as_segm("segm.fits")

    without, masked = call(models), call(models, mask_image="segm.fits")

    assert block_error(models, without, pattern) > 2.0
    assert abs(block_error(models, masked, pattern)) < 0.3
    assert status(masked) == ["COMPLETE"] * 6


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_mask_image_of_another_field_is_refused(in_memory, tmp_cwd):
    models, _ = on_sky()
    header = sky_header(dec=DEC + 1)
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.ones((300, 300), np.int32), header)]).writeto(
        "segm.fits"
    )

    with pytest.raises(
        ValueError, match=r"mask_image segm.fits must .*covers none of F770W .*RA 83\.\d+ and Dec -69\.\d+"
    ):
        call(models, mask_image="segm.fits", save_results=True, in_memory=in_memory)

    assert [path.name for path in tmp_cwd.iterdir()] == ["segm.fits"]


def test_a_mask_image_of_part_of_the_field_is_told(caplog, tmp_cwd):
    """The map ends in the middle of the frames: there it says nothing."""
    models, _ = on_sky(light=0)
    mask = np.zeros((300, 150), np.int32)
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(mask, sky_header())]).writeto("segm.fits")

    result = call(models, mask_image="segm.fits")

    told = re.findall(r"(\S+_cal.fits): mask_image segm.fits covers (\d+\.\d)% of it", caplog.text)
    assert [each for each, _ in told] == [model.meta.filename for model in models]
    assert all(35 < float(share) < 65 for _, share in told)
    assert status(result) == ["COMPLETE"] * 6


def test_a_sky_set_may_lie_outside_the_mask_image(caplog, tmp_cwd):
    models, pattern = on_sky()
    models = models[:5]
    as_segm("segm.fits")
    skies = [model.copy() for model in on_sky(light=0)[0]]
    for k, sky in enumerate(skies):
        sky.meta.wcs = wcs.build(dithered((6, 1), 20.0)[k], "F770W", "SUB128")
        sky.meta.filename = name(k + 11)

    result = call(models, mask_image="segm.fits", background_files=save(skies, tmp_cwd / "sky"))

    assert status(result) == ["COMPLETE"] * 5
    assert abs(block_error(models, result, pattern)) < 0.1


def test_masks_need_a_wcs(tmp_cwd):
    as_segm("segm.fits")
    as_regions("sky.reg")

    for parameters in ({"mask_image": "segm.fits"}, {"regions": "sky.reg"}, {"passes": 2}):
        with pytest.raises(ValueError, match=f"{name(1)} has no WCS"):
            call(blanks(), **parameters)


@pytest.mark.parametrize(
    ("parameters", "kind", "message"),
    [
        ({"mask_image": "gone.fits"}, FileNotFoundError, "mask_image gone.fits does not exist"),
        ({"regions": "gone.reg"}, FileNotFoundError, "regions gone.reg does not exist"),
        ({"background_file": ["gone.fits"]}, FileNotFoundError, "background_file gone.fits.*no such file"),
        (
            {"background_file": ["text.fits"]},
            ValueError,
            "text.fits must be a background that SuperBackground",
        ),
        (
            {"background_file": ["image.fits"]},
            ValueError,
            "image.fits must be a background that SuperBackgro",
        ),
        (
            {"background_file": ["a"], "background_files": ["b"]},
            ValueError,
            "must not be given together.*b.*a",
        ),
        ({"maximum_cores": "many"}, ValueError, "maximum_cores must be .* got 'many'"),
    ],
)
def test_wrong_files_and_parameters_are_refused_before_any_work(parameters, kind, message, tmp_cwd):
    Path("text.fits").write_text("nothing")
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.zeros((64, 64)), name="SCI")]).writeto("image.fits")
    models = blanks(5)

    with pytest.raises(kind, match=message):
        call(models, save_results=True, **parameters)

    assert sorted(path.name for path in tmp_cwd.iterdir()) == ["image.fits", "text.fits"]


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("min_exposures", 1), ("clip_sigma", 0.5), ("min_samples", 0), ("passes", 3), ("scaling", "linear")],
)
def test_parameters_out_of_range_are_refused_by_name(parameter, value):
    with pytest.raises(Exception, match=parameter):
        call(blanks(1), **{parameter: value})


# Pixels with too few samples


def holes():
    """Two of six see a square, none a line."""
    models = blanks(6)
    for model in models[:4]:
        put(model, np.s_[20:26, 30:36])
    for model in models:
        put(model, np.s_[50, 10:20])
    return models


def test_pixels_with_few_samples_get_the_smooth_background():
    models = holes()

    result = call(models)

    for k, (before, after) in enumerate(zip(models, result, strict=True), start=1):
        np.testing.assert_array_equal(after.dq, before.dq)
        np.testing.assert_array_equal(np.isnan(after.data), np.isnan(before.data))
        if k > 4:
            error = (found(before, after) - PATTERN - 4 - 0.4 * np.sin(k))[20:26, 30:36]
            # The stripes are 2 sigma, and cannot be seen from outside.
            assert abs(error.mean()) < 3 * NOISE
            assert 0.4 < np.sqrt(np.mean((error / added(before, after)[20:26, 30:36]) ** 2)) < 1.6
        np.testing.assert_array_equal(np.isnan(after.err), np.isnan(before.err))


def test_pixels_with_few_samples_are_flagged_where_asked():
    models = holes()

    smooth, flagged = call(models), call(models, fallback="flag")

    for before, other, after in zip(models, smooth, flagged, strict=True):
        lost = np.isnan(after.data) & np.isfinite(before.data)
        expected = np.zeros(lost.shape, bool)
        expected[20:26, 30:36] = np.isfinite(before.data[20:26, 30:36])
        np.testing.assert_array_equal(lost, expected)
        np.testing.assert_array_equal(after.dq[lost], DO_NOT_USE | OTHER_BAD_PIXEL)
        np.testing.assert_array_equal(after.dq[~lost], before.dq[~lost])
        kept = np.isfinite(after.data)
        for plane in PLANES:
            np.testing.assert_array_equal(getattr(after, plane)[kept], getattr(other, plane)[kept])
            if plane != "dq":
                assert np.isnan(getattr(after, plane)[lost]).all()


@pytest.mark.parametrize(("least", "few"), [(1, 0), (2, 0), (3, 36)])
def test_the_number_of_samples_is_a_parameter(least, few, caplog):
    """Of the six, three see the square: each of them has two others, the rest three."""
    models = blanks(6)
    for model in models[:3]:
        put(model, np.s_[20:26, 30:36])

    result = call(models, min_samples=least, fallback="flag")

    lost = [
        int((np.isnan(after.data) & np.isfinite(before.data)).sum())
        for before, after in zip(models, result, strict=True)
    ]
    assert lost == [0, 0, 0, few, few, few]


# Saved backgrounds


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Save the background of eight exposures; give the folder."""
    folder = tmp_path_factory.mktemp("saved")
    call(blanks(8), save_background=True, output_dir=str(folder))
    return folder


def test_a_saved_background_serves_other_exposures(saved, caplog):
    (path,) = saved.iterdir()
    assert path.name.endswith("_f770w_mirimage_sub64_111s_background.fits")
    with fits.open(path) as hdus:
        assert [hdu.name for hdu in hdus[1:]] == ["SCI", "ERR", "NSAMPLE", "EXPOSURES"]
        background, error = hdus["SCI"].data.astype(float), hdus["ERR"].data.astype(float)
        assert list(hdus["EXPOSURES"].data["exposure"]) == [name(k) for k in range(1, 9)]
        assert (hdus["NSAMPLE"].data <= 8).all()
        assert np.median(hdus["NSAMPLE"].data) == 8
        assert hdus[0].header["FILTER"] == "F770W"
        assert hdus["SCI"].header["BUNIT"] == "MJy/sr"
        levels = hdus["EXPOSURES"].data["level"]
    truth = 0.4 * np.sin(np.arange(1, 9))
    np.testing.assert_allclose(levels, truth - truth.mean(), atol=0.1 * NOISE)
    assert np.std((background - background.mean()) - (PATTERN - PATTERN.mean())) < 1.15 * NOISE / np.sqrt(8)
    # One is enough, there is nothing to build.
    fresh = blanks(2, first=21)

    result = call(fresh, background_file=[str(path)])

    assert status(result) == ["COMPLETE"] * 2
    assert "own background" not in caplog.text
    assert caplog.text.count("background of 8 exposures subtracted") == 2
    for k, (before, after) in enumerate(zip(fresh, result, strict=True), start=21):
        taken = found(before, after)
        np.testing.assert_allclose(taken - taken.mean(), background - background.mean(), atol=2e-6)
        assert taken.mean() == pytest.approx((4 + 0.4 * np.sin(k) + PATTERN).mean(), abs=0.1 * NOISE)
        np.testing.assert_allclose(added(before, after), error, rtol=2e-3)


def test_a_saved_background_says_when_it_does_not_fit(tmp_cwd, caplog):
    call(blanks(6), save_background=True)
    (path,) = tmp_cwd.iterdir()
    caplog.clear()

    call(blanks(7), background_file=[str(path)])

    assert f"built from 6 of the exposures that it is subtracted from ({name(1)} ...)" in caplog.text
    others = blanks(2, first=21, band="F1000W")

    result = call([*others, *blanks(1, first=31)], background_file=[str(path)])

    assert status(result) == ["SKIPPED", "SKIPPED", "COMPLETE"]
    assert "no background_file is of F1000W MIRIMAGE SUB64" in caplog.text
    for pair in zip(others, result, strict=False):
        assert_untouched(*pair)
    files = save([*blanks(2, first=41), *blanks(1, first=51)], tmp_cwd / "in")
    asn = association(tmp_cwd / "in", files[2:], files[:2])
    with pytest.raises(
        ValueError, match="a sky set and background_file must not be given together.* 2 members"
    ):
        call(asn, background_file=[str(path)])


def test_no_saved_background_is_written_over_another(tmp_cwd):
    """Two epochs of one product."""
    models = [*blanks(3), *blanks(3, first=6)]
    for model in models[3:]:
        model.meta.exposure.mid_time = 60010.0
    asn = association(tmp_cwd / "in", save(models, tmp_cwd / "in"))

    call(asn, max_days=2.0, save_background=True, output_dir="out", **FEW)

    files = sorted((tmp_cwd / "out").iterdir())
    assert [path.name for path in files] == [
        f"field_f770w_mirimage_sub64_111s_{number}_background.fits" for number in (1, 2)
    ]
    built = [list(fits.getdata(path, "EXPOSURES")["exposure"]) for path in files]
    assert built == [[name(k) for k in range(first, first + 3)] for first in (1, 6)]


def test_each_group_takes_its_own_saved_background(tmp_cwd):
    other = PATTERN[::-1]
    both = [*blanks(5), *blanks(5, first=11, band="F560W", pattern=other)]
    call(both, save_background=True)
    files = sorted(map(str, tmp_cwd.iterdir()))
    assert len(files) == 2

    fresh = [blank(21), blank(22, band="F560W", pattern=other)]
    result = call(fresh, background_file=files)

    for before, after, pattern in zip(fresh, result, (PATTERN, other), strict=True):
        assert (found(before, after) - pattern).std() < 1.2 * NOISE / np.sqrt(5)


# The second pass


def test_a_second_pass_takes_faint_light_out_of_the_background(faint):
    observation, models = faint
    bias = {}
    for passes in (1, 2):
        wrong = errors(observation, models, call(models, passes=passes))
        # Where the light of the nebula is, and where it is not.
        lit = np.mean([observation.signal(k) for k in range(len(models))], axis=0)
        lit = lit > np.percentile(lit, 70)
        mean = np.mean(wrong, axis=0)
        bias[passes] = (np.nanmean(mean[lit]) - np.nanmean(mean[~lit])) / NOISE, np.nanmean(mean) / NOISE

    assert bias[2][0] < 0.8 * bias[1][0]
    assert bias[2][1] < bias[1][1]


# Every way of use


def test_scratch_files_are_gone_after_an_error(scratch, tmp_cwd):
    """The shape of one is not what its header says: this is noticed late."""
    models = blanks(6)
    for plane in PLANES:
        setattr(models[4], plane, getattr(models[4], plane)[:32].copy())
    files = save(models, tmp_cwd / "in")

    with pytest.raises(
        ValueError, match=rf"one shape, but {name(1)} has \(64, 64\) and {name(5)} has \(32, 64\)"
    ):
        call(files, in_memory=False)

    gc.collect()
    assert not list(scratch.iterdir())


def test_an_exposure_without_data_is_left_out(caplog):
    models = blanks(7)
    put(models[3], np.s_[:])

    result = call(models)

    assert status(result) == ["COMPLETE"] * 3 + ["SKIPPED"] + ["COMPLETE"] * 3
    (skipped,) = SKIPPED.findall(caplog.text)
    assert skipped[0] == name(4)
    assert_untouched(models[3], result[3])
    alone = call([*models[:3], *models[4:]])
    assert_equal([*result[:3], *result[4:]], alone)


def test_an_association_with_only_dead_exposures_comes_back():
    models = blanks(5)
    for model in models:
        put(model, np.s_[:])

    result = call(models)

    assert status(result) == ["SKIPPED"] * 5
    for pair in zip(models, result, strict=True):
        assert_untouched(*pair)


def test_zero_is_a_value():
    """Exposures from which someone took the level, one of them exactly 0 at its middle."""
    models = blanks(level=0.0)
    models[2].data -= np.median(models[2].data)
    for model in models:
        model.data[10, 10] = 0.0

    result = call(models)

    assert status(result) == ["COMPLETE"] * 7
    for k, (before, after) in enumerate(zip(models, result, strict=True)):
        error = found(before, after) - PATTERN
        error[10, 10] = np.nan
        assert np.nanstd(error) < 1.15 * NOISE / np.sqrt(6)
        if k != 2:
            assert abs(np.nanmean(error)) < 0.1 * NOISE
            assert found(before, after)[10, 10] == pytest.approx(0, abs=0.3 * NOISE)


def test_a_mosaic_is_refused(tmp_cwd):
    models = blanks(5)
    models[2].meta.cal_step.resample = "COMPLETE"

    with pytest.raises(ValueError, match=f"before resample, but {name(3)} has been through it"):
        call(models, save_results=True)

    assert not list(tmp_cwd.iterdir())


def test_a_filter_that_is_none_is_refused():
    models = blanks(5)
    models[2].meta.instrument.filter = None

    with pytest.raises(ValueError, match=f"FILTER of {name(3)} must be one of F560W.* got None"):
        call(models)


def test_done_and_new_exposures_may_be_mixed(caplog):
    models = blanks(6)
    done = call(models)
    fresh = blanks(5, first=11)
    alone = call(fresh)
    caplog.clear()

    result = call([*done, *fresh])

    assert caplog.text.count("it was done before") == 6
    assert_equal(result[:6], done)
    assert_equal(result[6:], alone)


def test_planes_that_are_not_there_stay_away():
    """Exposures of data and errors alone."""
    models = []
    for full in blanks(6):
        model = ImageModel(full.data)
        model.update(full)
        model.err = full.err
        models.append(model)

    result = call(models)

    for before, after in zip(models, result, strict=True):
        assert after.meta.cal_step.super_background == "COMPLETE"
        assert np.median(added(before, after)) == pytest.approx(NOISE / np.sqrt(5), rel=0.1)


def test_a_frame_without_imager_is_corrected_too():
    """A subarray in the coronagraph's field."""
    models = blanks(6)
    for model in models:
        model.meta.subarray.instance.update(xstart=1, ystart=779)

    for k, (before, after) in enumerate(zip(models, call(models), strict=True), start=1):
        assert np.std(found(before, after) - PATTERN) < 1.15 * NOISE / np.sqrt(5)
        assert level_of(after) == pytest.approx(4 + 0.4 * np.sin(k) + PATTERN.mean(), abs=0.1 * NOISE)


STOCK = [
    f"--steps.{step}.skip=true"
    for step in ("assign_mtwcs", "tweakreg", "outlier_detection", "source_catalog")
]


def test_strun_and_on_with_what_it_wrote(striped, strun, tmp_cwd):
    options = "--min_exposures=4", "--save_results=true"
    said = strun("miri_steps.SuperBackgroundStep", striped.association, *options)

    assert said.count("background of 3 exposures subtracted") == 4
    written = json.loads(Path("field_super_background_asn.json").read_text())
    (product,) = written["products"]
    names = [each.replace("_cal.fits", "_super_background.fits") for each in striped.names]
    assert [member["expname"] for member in product["members"]] == names
    assert product["name"] == "field"
    assert sorted(path.name for path in tmp_cwd.iterdir()) == sorted(
        [*names, "field_super_background_asn.json"]
    )

    strun("calwebb_image3", "field_super_background_asn.json", *STOCK)

    with datamodels.open("field_i2d.fits") as mosaic:
        assert mosaic.meta.cal_step.skymatch == "COMPLETE"
        assert flatness(mosaic.data) < 0.8 * NOISE


def test_strun_with_the_hook_before_the_sky_is_matched(striped, strun):
    # In quotes: a comma ends a hook.
    hook = "miri_steps.SuperBackgroundStep(preserve_level=True, min_exposures=4)"

    said = strun("calwebb_image3", striped.association, *STOCK, f'--steps.skymatch.pre_hooks="{hook}",')

    assert said.count("background of 3 exposures levelled and subtracted") == 4
    with datamodels.open("field_i2d.fits") as mosaic:
        assert mosaic.meta.cal_step.skymatch == "COMPLETE"
        assert flatness(mosaic.data) < 0.8 * NOISE


def flatness(data):
    """Scatter of a mosaic without its stars; stripes are 2 sigma, the hill 10."""
    middle = np.nanmedian(data)
    return 1.4826 * np.nanmedian(np.abs(data - middle))


# What must never cost data


def test_exposures_of_which_all_is_masked_are_left_as_they_are(caplog):
    models = blanks(level=4.5)

    result = call(models, exclude_above=3.0, scaling="none")

    assert status(result) == ["SKIPPED"] * 7
    for before, after in zip(models, result, strict=True):
        assert_untouched(before, after)
    assert "none of its pixels has min_samples=3 samples" in caplog.text


def test_a_saved_background_is_not_taken_from_exposures_that_lost_theirs(saved, caplog):
    (path,) = saved.iterdir()
    models = blanks(3, first=20)
    for model in models:
        model.meta.cal_step.bkg_sub = "COMPLETE"

    result = call(models, background_file=[str(path)])

    assert status(result) == ["SKIPPED"] * 3
    assert "after background subtraction" in caplog.text


def test_far_tiles_have_mosaics_of_their_own():
    windows = [(np.array([x, 0]), (50, 40)) for x in (0, 30, 9000)]

    pieces = list(super_background_masks._pieces(windows))

    assert [piece.numbers for piece in pieces] == [[0, 1], [2]]
    assert [piece.shape for piece in pieces] == [(50, 70), (50, 40)]
