"""MedianHotPixelStep against truth: what is found, repaired and left, and what reaches the mosaic."""

import logging
import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import QTable, Table
from jwst import datamodels
from jwst.datamodels import ModelContainer, ModelLibrary
from jwst.pipeline import Image3Pipeline
from stdatamodels.jwst.datamodels import CubeModel, ImageModel
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps import MedianHotPixelStep, detector
from miri_steps.algorithms.hot_pixels import Outstanding
from miri_steps.simulate import Scene, mosaic, observe, psf, sphere, wcs, write
from miri_steps.steps.hot_pixel_members import Group, Member

RA, DEC = 83.6, -69.1
DO_NOT_USE, HOT, DEAD, ESTIMATED = (pixel[n] for n in ("DO_NOT_USE", "HOT", "DEAD", "FLUX_ESTIMATED"))
ALONE = {"min_exposures": 1}
# Read from the log.
REPAIRED = re.compile(
    r"(\S+): (\d+) hot and (\d+) dead pixels and (\d+) holes found, (\d+) repaired, (\d+) left \((\d+) in "
    r"sources, (\d+) in large clusters, (\d+) without enough good neighbours\)"
)


@cache
def template(shape):
    """Make an exposure without data once for each shape: checking metadata takes longer than all else."""
    model = ImageModel(shape)
    for plane in ("data", "err", "var_poisson", "var_rnoise"):
        setattr(model, plane, np.zeros(shape, np.float32))
    model.dq = np.zeros(shape, np.uint32)
    model.meta.exposure.type = "MIR_IMAGE"
    model.meta.instrument.instance.update(name="MIRI", detector="MIRIMAGE")
    model.meta.subarray.instance.update(name="SUB64", xsize=shape[1], ysize=shape[0])
    return model


def blank(number=1, *, seed=None, shape=(64, 64), level=10.0, band="F770W", corner=(500, 200), noise=1.0):
    """Make an exposure of an empty sky, far inside the imager, without a WCS."""
    model = template(shape).copy()
    model.data[:] = np.random.default_rng(number if seed is None else seed).normal(level, noise, shape)
    model.err[:] = noise
    model.var_poisson[:] = 0.75 * noise**2
    model.var_rnoise[:] = 0.25 * noise**2
    model.meta.filename = f"jw01234001001_02101_{number:05d}_mirimage_cal.fits"
    model.meta.instrument.instance.update(filter=band)
    model.meta.subarray.instance.update(xstart=corner[0], ystart=corner[1])
    return model


def blanks(count=4, **settings):
    return [blank(number, **settings) for number in range(1, count + 1)]


def put(model, place, value=np.nan, flags=DO_NOT_USE):
    """Make a hole, or whatever else."""
    model.data[place] = value
    model.dq[place] |= np.uint32(flags)


def call(given, **parameters):
    """Run the Step; a list of models comes back as a list."""
    result = MedianHotPixelStep.call(given, **parameters)
    return list(result) if isinstance(result, ModelContainer) else result


def changed(before, after):
    """Pixels of which anything is different."""
    different = np.zeros(before.data.shape, bool)
    for name in ("data", "dq", "err", "var_poisson", "var_rnoise"):
        first, second = getattr(before, name), getattr(after, name)
        different |= (first != second) & ~(np.isnan(first) & np.isnan(second))
    return different


def at(mask):
    return [tuple(map(int, place)) for place in np.argwhere(mask)]


# What it must reach


@cache
def watch(band, stars, **settings):
    """Four dithers of a field of stars with 0.5 % hot pixels that nobody flagged."""
    scene = Scene(RA, DEC).with_stars(stars, radius=25, flux=(0.002, 1.0), seed=2)
    plan = mosaic(RA, DEC, tiles=(1, 1), dithers=4, dither_step=2.5)
    settings = {"hot_pixels": 0.005, "dead_pixels": 0.001, "sky": 3.0, "subarray": "SUB256"} | settings
    return observe(scene, plan, band, psf=psf(band, oversample=3, half_size=60), **settings)


def star_pixels(observation, number):
    """Where the stars of an exposure are, to the next pixel: x and y."""
    stars = observation.scene.stars
    sky = sphere.unit_vectors(np.array(stars["ra"]), np.array(stars["dec"]))
    x, y = wcs.sky_to_pixels(sky, observation.pointings[number], observation.filter, observation.subarray)
    return np.rint(x).astype(int), np.rint(y).astype(int)


@cache
def expose(band, stars):
    """Make the exposures once: no test changes them."""
    return list(watch(band, stars))


# Stars as sharp and as wide as they come crowd the field, or hardly any is in it.
@pytest.mark.parametrize(("band", "stars"), [("F560W", 300), ("F770W", 30), ("F2550W", 300)])
def test_hot_pixels_are_repaired_and_stars_are_not_touched(band, stars):
    observation, models = watch(band, stars), expose(band, stars)

    result = call(models)

    hot, dead, flagged = observation.hot, observation.dead, observation.flags > 0
    counts, compared = np.zeros((2, 2), int), 0
    false = 0
    for number, (before, after) in enumerate(zip(models, result, strict=True)):
        found = changed(before, after) & ~flagged
        light = observation.signal(number)
        # Off sources: no pixel around is brightened by more than its noise.
        off = light < observation.noise
        for row, true in enumerate(((hot > 10) & off, dead & off)):
            counts[row] += (found & true).sum(), true.sum()
        false += (found & (hot == 0) & ~dead).sum()
        repaired = found & off & ((hot > 10) | dead)
        pull = (after.data - 3.0 - light)[repaired] / after.err[repaired]
        assert np.std(pull) < 1.1
        assert abs(np.mean(pull)) < 0.3
        for x, y in zip(*star_pixels(observation, number), strict=True):
            core = np.s_[y - 2 : y + 3, x - 2 : x + 3]
            if (
                min(x, y) < 2
                or max(x, y) > 253
                or (hot[core] > 0).any()
                or dead[core].any()
                or flagged[core].any()
            ):
                continue
            was, now = ((model.data[core] - 3.0).sum() for model in (before, after))
            assert now == pytest.approx(was, rel=1e-3)
            compared += 1
    assert counts[0, 1] > 100
    assert counts[0, 0] / counts[0, 1] >= 0.99
    assert counts[1, 0] / counts[1, 1] >= 0.99
    assert false <= 4 * 256**2 * 1e-5
    assert compared > stars / 3


def test_a_single_exposure_is_repaired_too():
    observation, model = watch("F770W", 30), expose("F770W", 30)[0]

    with call(model) as result:
        found = changed(model, result) & (observation.flags == 0)
    off = observation.signal(0) < observation.noise
    assert found[(observation.hot > 10) & off].mean() >= 0.99
    assert (found & (observation.hot == 0) & ~observation.dead).sum() <= 1


# Several exposures of the same pixels


def with_hits(count, hits, place=(20, 30), height=50.0, **settings):
    models = blanks(count, **settings)
    for number in hits:
        models[number].data[place] += height
    return models


@pytest.mark.parametrize(
    ("count", "hits", "parameters", "repaired"),
    [
        (4, [1], {}, []),
        (4, [1, 3], {}, [0, 1, 2, 3]),
        (4, [0, 1, 2, 3], {}, [0, 1, 2, 3]),
        (4, [1, 3], {"min_exposures": 3}, []),
        (4, [0, 1, 3], {"min_exposures": 3}, [0, 1, 2, 3]),
        (4, [1], {"min_exposures": 1}, [1]),
        (4, [1, 3], {"min_exposures": 1}, [1, 3]),
        (2, [0], {}, []),
        (2, [0, 1], {}, [0, 1]),
        (7, [0, 1], {}, []),
        (7, [0, 1, 6], {}, [*range(7)]),
        (1, [0], {}, [0]),
        (1, [0], {"min_exposures": 2}, [0]),
    ],
)
def test_a_pixel_must_be_hot_in_enough_exposures(count, hits, parameters, repaired):
    models = with_hits(count, hits)

    result = call(models, **parameters)

    found = [number for number in range(count) if changed(models[number], result[number])[20, 30]]
    assert found == repaired
    assert sum(changed(*pair).sum() for pair in zip(models, result, strict=True)) == len(repaired)


def test_cosmic_rays_stay_and_do_not_spoil_what_is_repaired_beside_them():
    models = with_hits(4, [0, 1, 2, 3])
    clean = call(models)[2].data[20, 30]
    models[2].data[20, 31] += 1000.0

    result = call(models)

    assert at(changed(models[2], result[2])) == [(20, 30)]
    assert abs(result[2].data[20, 30] - clean) < 0.5
    assert result[2].data[20, 31] == models[2].data[20, 31]


def test_more_exposures_than_there_are_are_refused(tmp_cwd):
    with pytest.raises(ValueError, match=r"min_exposures must be at most .* 4 .*got 5"):
        call(blanks(4), min_exposures=5, save_results=True)

    assert not list(tmp_cwd.iterdir())


def test_exposures_of_other_pixels_are_judged_apart():
    """Two frames that overlap on the detector are two groups; each needs its own two exposures."""
    models = [*with_hits(2, [0, 1]), *with_hits(2, [0], corner=(540, 200))]
    for number, model in enumerate(models):
        model.meta.filename = f"jw01234001001_02101_{number + 1:05d}_mirimage_cal.fits"

    result = call(models)

    found = [bool(changed(*pair)[20, 30]) for pair in zip(models, result, strict=True)]
    assert found == [True, True, False, False]


def test_filters_may_be_mixed():
    models = with_hits(3, [0, 1, 2])
    for model, band in zip(models, ("F560W", "F770W", "F2550W"), strict=True):
        model.meta.instrument.filter = band

    result = call(models)

    assert [at(changed(*pair)) for pair in zip(models, result, strict=True)] == [[(20, 30)]] * 3


def test_a_star_that_stays_on_its_pixels_is_told_by_its_shape():
    """Nothing dithered: the star is where it was in all exposures."""
    models = blanks(4)
    stamp = psf("F770W", oversample=3, half_size=40).stamp(0.1, -0.2, 20)
    for model in models:
        model.data[12:53, 12:53] += (stamp * 400 / stamp.max()).astype(np.float32)
        model.data[50, 5] += 60.0

    result = call(models)

    assert [at(changed(*pair)) for pair in zip(models, result, strict=True)] == [[(50, 5)]] * 4


def test_the_limit_is_a_parameter():
    models = with_hits(2, [0, 1], height=9.0)

    assert at(changed(models[0], call(models, sigma=5.0)[0])) == [(20, 30)]
    assert not changed(models[0], call(models, sigma=15.0)[0]).any()


# Modes


def test_flag_leaves_the_data_bit_for_bit_and_adds_flags():
    models = blanks(3)
    for model in models:
        model.data[20, 30] += 50.0
        model.data[40, 10] -= 50.0
        model.dq[20, 30] |= pixel["NO_FLAT_FIELD"]
        model.dq[5, 5] |= pixel["JUMP_DET"]
        put(model, (50, 50))

    result = call(models, mode="flag")

    for before, after in zip(models, result, strict=True):
        for name in ("data", "err", "var_poisson", "var_rnoise"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
        added = after.dq ^ before.dq
        assert at(added) == [(20, 30), (40, 10)]
        assert added[20, 30] == DO_NOT_USE | HOT
        assert added[40, 10] == DO_NOT_USE | DEAD
        assert after.dq[20, 30] & pixel["NO_FLAT_FIELD"]
        assert after.dq.dtype == np.uint32


def test_replace_says_what_was_wrong_and_that_the_pixel_may_be_used():
    models = blanks(3)
    cases = {
        # place: value added, flags before, flags after
        (10, 10): (50.0, 0, HOT | ESTIMATED),
        (10, 30): (-50.0, 0, DEAD | ESTIMATED),
        (30, 10): (50.0, pixel["NO_FLAT_FIELD"], pixel["NO_FLAT_FIELD"] | HOT | ESTIMATED),
        (30, 30): (np.nan, DO_NOT_USE | HOT, HOT | ESTIMATED),
        (30, 50): (np.nan, DO_NOT_USE | DEAD, DEAD | ESTIMATED),
        (50, 10): (np.nan, DO_NOT_USE | pixel["JUMP_DET"], pixel["JUMP_DET"] | ESTIMATED),
        (50, 30): (np.nan, DO_NOT_USE, pixel["OTHER_BAD_PIXEL"] | ESTIMATED),
        # Flagged, with a number in it.
        (50, 50): (7.0, DO_NOT_USE | HOT, HOT | ESTIMATED),
    }
    for model in models:
        for place, (value, flags, _) in cases.items():
            put(model, place, model.data[place] + value, flags)
            if np.isnan(value):
                for name in ("err", "var_poisson", "var_rnoise"):
                    getattr(model, name)[place] = np.nan

    for before, after in zip(models, call(models), strict=True):
        assert at(changed(before, after)) == sorted(cases)
        assert after.dq.dtype == np.uint32
        for place, (_, _, flags) in cases.items():
            assert after.dq[place] == flags, place
            assert abs(after.data[place] - 10) < 1.2
            box = np.s_[place[0] - 2 : place[0] + 3, place[1] - 2 : place[1] + 3]
            for name in ("err", "var_poisson", "var_rnoise"):
                plane = getattr(after, name)
                assert np.isfinite(plane[place])
                assert plane[place] > np.nanmedian(getattr(before, name)[box])
            total = after.var_poisson[place] + after.var_rnoise[place]
            assert after.err[place] ** 2 == pytest.approx(total, rel=1e-5)


def test_the_estimate_is_the_median_of_the_original_neighbours():
    model = blank()
    for place in ((20, 30), (20, 31), (21, 32)):
        model.data[place] += 500.0
    bad = np.zeros(model.data.shape, bool)
    bad[20, 30:32] = bad[21, 32] = True

    for window in (3, 5, 7):
        with call(model, window=window, min_good=3) as result:
            assert at(changed(model, result)) == at(bad)
            clean, half = np.where(bad, np.nan, model.data), window // 2
            for y, x in at(bad):
                box = clean[y - half : y + half + 1, x - half : x + half + 1]
                assert result.data[y, x] == pytest.approx(np.nanmedian(box), rel=1e-6)


# Holes, and what is never filled


@pytest.mark.parametrize("mode", ["replace", "flag"])
def test_holes_are_filled_where_asked(mode):
    model = blank()
    put(model, (20, 30))
    put(model, (40, 10), 5.0)

    for fill_nan in (True, False):
        with call(model, mode=mode, fill_nan=fill_nan) as result:
            filled = [(20, 30), (40, 10)] if fill_nan and mode == "replace" else []
            assert at(changed(model, result)) == filled


@pytest.mark.parametrize("flag", ["NON_SCIENCE", "SATURATED"])
def test_some_holes_are_never_filled(flag):
    model = blank()
    put(model, (20, 30), flags=DO_NOT_USE | pixel[flag])
    put(model, (40, 40))

    with call(model) as result:
        assert at(changed(model, result)) == [(40, 40)]


def test_nothing_is_filled_outside_the_imager_and_at_the_edge_of_its_field():
    """A frame of the full detector's left half: Lyot, phase masks, the bars between, the imager's edge."""
    model = blank(shape=(256, 512), corner=(1, 700))
    light = detector.region_mask(["imager", "lyot", "4qpm"], shape=(256, 512), xstart=1, ystart=700)
    imager = detector.region_mask("imager", shape=(256, 512), xstart=1, ystart=700)
    put(model, ~light, flags=DO_NOT_USE | pixel["NON_SCIENCE"])
    edge = int(np.argmax(imager[100]))
    # In the Lyot field; at the imager's edge; hanging on that by a corner; and in the imager.
    for place in ((100, 60), (100, edge), (150, edge), (151, edge + 1), (200, edge + 1), (220, 480)):
        put(model, place)
    # A frame that nobody flagged: NaN and nothing else.
    model.dq[:, 300:320] = 0
    # The upper edge of the frame is no edge of the field.
    put(model, (255, 450))

    with call(model) as result:
        done = at(changed(model, result))

    assert (220, 480) in done
    assert (200, edge + 1) in done
    assert set(done) <= {(220, 480), (200, edge + 1), (255, 450)}


def test_large_clusters_are_left():
    model = blank()
    for size, corner in ((2, (5, 5)), (3, (20, 20)), (4, (40, 40))):
        put(model, np.s_[corner[0] : corner[0] + size, corner[1] : corner[1] + size])

    for most, filled in ((3, 0), (4, 4), (9, 13), (16, 29)):
        with call(model, max_cluster=most, window=7) as result:
            assert changed(model, result).sum() == filled


@pytest.mark.parametrize(("min_good", "filled"), [(15, 1), (16, 1), (17, 0)])
def test_enough_good_neighbours_are_needed(min_good, filled):
    model = blank()
    put(model, np.s_[19:22, 29:32])

    with call(model, min_good=min_good, max_cluster=9) as result:
        assert changed(model, result)[20, 30] == filled


def test_min_good_is_counted_inside_the_window():
    model = blank()
    put(model, (0, 0))

    for window, most in ((3, 3), (5, 8), (7, 15)):
        for min_good in (most, most + 1):
            with call(model, window=window, min_good=min_good) as result:
                assert changed(model, result).any() == (min_good <= most)


# Sources


def with_a_star(**settings):
    """An exposure with a WCS, a star in the middle and a hot pixel in its wing."""
    catalog = Table({"ra": [RA], "dec": [DEC], "flux_mjy": [0.3]})
    scene = Scene(RA, DEC).with_catalog(catalog)
    plan = mosaic(RA, DEC, tiles=(1, 1), dithers=1)
    settings = {"sky": 3.0, "subarray": "SUB256", "bad_pixels": 0.0} | settings
    return observe(scene, plan, "F770W", psf=psf("F770W", oversample=3, half_size=60), **settings)


@pytest.fixture(scope="module")
def lonely():
    """An empty sky with a WCS, and a grid of hot pixels."""
    observation = observe(
        Scene(RA, DEC),
        mosaic(RA, DEC, tiles=(1, 1), dithers=1),
        "F770W",
        psf=psf("F770W", oversample=3, half_size=40),
        sky=3.0,
        subarray="SUB256",
        bad_pixels=0.0,
    )
    model = observation[0]
    model.data[8::16, 8::16] += 5.0
    return model


def test_hot_pixels_in_a_star_are_left_bit_for_bit():
    observation = with_a_star()
    model = observation[0]
    (x,), (y,) = star_pixels(observation, 0)
    model.data[y + 1, x + 1] += 100.0
    model.data[y - 1, x] = np.nan
    model.dq[y - 1, x] |= DO_NOT_USE
    model.data[30, 30] += 100.0

    for mode in ("replace", "flag"):
        with call(model, mode=mode) as result:
            assert at(changed(model, result)) == [(30, 30)]


def covered(model, result):
    """Which hot pixels of the grid were left."""
    return ~changed(model, result)[8::16, 8::16]


@pytest.mark.parametrize("mode", ["replace", "flag"])
def test_a_mask_in_the_frame_of_the_exposures(mode, lonely, tmp_cwd):
    mask = np.zeros((256, 256), np.uint8)
    mask[:, 100:] = 1
    fits.writeto("mask.fits", mask)

    with call(lonely, source_mask="mask.fits", mode=mode) as result:
        np.testing.assert_array_equal(covered(lonely, result), mask[8::16, 8::16] > 0)


def test_a_mask_on_the_sky(lonely, tmp_cwd):
    """North up, half the pixel size, only the part East of the middle."""
    mask = np.zeros((1000, 1000), np.float32)
    mask[:, :480] = 7.0
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": RA, "CRVAL2": DEC})
    header.update({"CRPIX1": 500.5, "CRPIX2": 500.5, "CDELT1": -0.055 / 3600, "CDELT2": 0.055 / 3600})
    hdus = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(mask, header)])
    hdus.writeto("mask.fits")

    with call(lonely, source_mask="mask.fits") as result:
        left = covered(lonely, result)

    y, x = np.mgrid[8:256:16, 8:256:16]
    ra, dec = lonely.meta.wcs(x, y)
    east = (ra - RA) * 3600 * np.cos(np.radians(DEC))
    clear = np.abs(east - 1.1) > 0.2
    np.testing.assert_array_equal(left[clear], (east > 1.1)[clear])
    assert 50 < left.sum() < 200


@pytest.mark.parametrize("columns", ["sky_centroid", "RA DEC", "ra dec"])
def test_a_catalogue(columns, lonely, tmp_cwd):
    y, x = np.array([40, 40, 200]), np.array([40, 56, 120])
    ra, dec = lonely.meta.wcs(x, y)
    # Another, far away.
    ra, dec = np.append(ra, RA + 90), np.append(dec, DEC + 60)
    if columns == "sky_centroid":
        QTable({"label": [1, 2, 3, 4], columns: SkyCoord(ra, dec, unit="deg")}).write("sources.ecsv")
    else:
        Table([ra, dec], names=columns.split()).write("sources.ecsv")

    for radius, number in ((0.5, 3), (1.9, 9)):
        with call(lonely, source_catalog="sources.ecsv", source_radius=radius) as result:
            left = covered(lonely, result)
        distance = np.min(
            [np.hypot(*(np.mgrid[8:256:16, 8:256:16] - [[[b]], [[a]]])) for a, b in zip(x, y, strict=True)], 0
        )
        np.testing.assert_array_equal(left, distance < radius / detector.PIXEL_SCALE)
        assert left.sum() >= number


def test_a_mask_and_a_catalogue_add_up(lonely, tmp_cwd):
    mask = np.zeros((256, 256), np.uint8)
    mask[:50] = 1
    fits.writeto("mask.fits", mask)
    ra, dec = lonely.meta.wcs(120.0, 200.0)
    Table({"ra": [ra], "dec": [dec]}).write("sources.ecsv")

    with call(lonely, source_mask="mask.fits", source_catalog="sources.ecsv") as result:
        left = covered(lonely, result)

    assert left[:3].all()
    assert left[12, 7]
    assert left.sum() == 3 * 16 + 1


def no_image(path):
    fits.HDUList([fits.PrimaryHDU()]).writeto(path)


def wrong_shape(path):
    fits.writeto(path, np.zeros((20, 30)))


def on_the_sky(path):
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": RA, "CRVAL2": DEC})
    fits.writeto(path, np.zeros((64, 64)), header)


def no_columns(path):
    Table({"x": [1.0], "y": [2.0]}).write(path)


def positions(path):
    Table({"ra": [RA], "dec": [DEC]}).write(path)


@pytest.mark.parametrize(
    ("parameter", "name", "make", "message"),
    [
        ("source_mask", "m.fits", no_image, r"source_mask .*m.fits must hold a two-dimensional image"),
        (
            "source_mask",
            "m.fits",
            wrong_shape,
            r"m.fits must have .* shape \(20, 30\) and .*_cal.fits has \(64, 64\)",
        ),
        ("source_mask", "m.fits", on_the_sky, r"m.fits is on the sky, but .*_cal.fits has no WCS"),
        (
            "source_catalog",
            "c.ecsv",
            no_columns,
            r"c.ecsv must have a column sky_centroid, or RA and Dec, got .*x",
        ),
        ("source_catalog", "c.ecsv", positions, r"c.ecsv is on the sky, but .*_cal.fits has no WCS"),
    ],
)
def test_sources_that_cannot_be_used_are_refused(parameter, name, make, message, tmp_cwd):
    make(name)

    with pytest.raises(ValueError, match=message):
        call(blank(), **{parameter: name}, save_results=True, save_mask=True)

    assert [path.name for path in tmp_cwd.iterdir()] == [name]


@pytest.mark.parametrize("parameter", ["source_mask", "source_catalog"])
def test_missing_files_of_sources_are_named(parameter, tmp_cwd):
    with pytest.raises(FileNotFoundError, match="nowhere.fits"):
        call(blank(), **{parameter: "nowhere.fits"})


# What is said and saved


def test_numbers_in_the_log_add_up(caplog):
    models = blanks(3)
    for model in models:
        model.data[10, 10:60:10] += 50.0
        model.data[30, 10:40:10] -= 50.0
        put(model, np.s_[50:54, 50:54])
        put(model, (40, 40))
        put(model, np.s_[62:64, 0:2])

    result = call(models, min_good=12)

    found = REPAIRED.findall(caplog.text)
    assert [line[0] for line in found] == [model.meta.filename for model in models]
    for before, after, line in zip(models, result, found, strict=True):
        hot, dead, holes, repaired, left, inside, large, few = map(int, line[1:])
        assert (hot, dead, holes) == (5, 3, 16 + 1 + 4)
        assert hot + dead + holes == repaired + left
        assert left == inside + large + few
        # One of the four in the corner of the frame has neighbours enough.
        assert (inside, large, few) == (0, 16, 3)
        assert repaired == changed(before, after).sum() == 10


def test_numbers_in_the_log_of_flags(caplog):
    models = with_hits(2, [0, 1])

    call(models, mode="flag")

    assert caplog.text.count("1 hot and 0 dead pixels found, 1 flagged, 0 left in sources") == 2


def test_the_map_of_a_set(tmp_cwd):
    models = with_hits(4, [0, 1, 2])
    models[1].data[5, 6] += 50.0
    for model in models:
        model.data[40, 50] -= 50.0

    call(models, save_mask=True)

    (path,) = tmp_cwd.iterdir()
    assert path.name.endswith("_mirimage_sub64_hot_pixels.fits")
    with datamodels.open(path) as saved:
        expected = np.zeros((64, 64))
        expected[20, 30], expected[5, 6], expected[40, 50] = 3, 1, 4
        np.testing.assert_array_equal(saved.data, expected)
        assert at(saved.dq) == [(20, 30), (40, 50)]
        assert (saved.dq[20, 30], saved.dq[40, 50]) == (HOT, DEAD)
        assert saved.meta.subarray.xstart == 500
        assert saved.meta.instrument.detector == "MIRIMAGE"


def test_one_map_per_frame_where_it_is_asked_for(tmp_cwd):
    models = [*with_hits(2, [0, 1]), blank(3, corner=(540, 200))]
    models[2].meta.subarray.name = "SUB128"

    call(models, save_mask=True, output_dir="maps")

    names = sorted(path.name for path in (tmp_cwd / "maps").iterdir())
    assert [name.rpartition("mirimage_")[2] for name in names] == [
        "sub128_hot_pixels.fits",
        "sub64_hot_pixels.fits",
    ]
    assert [path.name for path in tmp_cwd.iterdir()] == ["maps"]


# What it refuses


def spoil(model, **values):
    for name, value in values.items():
        model[f"meta.{name.replace('__', '.')}"] = value


def empty(model):
    model.data[:] = np.nan
    model.dq[:] |= DO_NOT_USE


@pytest.mark.parametrize(
    ("change", "parameters", "message"),
    [
        (lambda m: spoil(m, exposure__type="MIR_MRS"), {}, "EXP_TYPE of .*00002.*MIR_IMAGE.*got MIR_MRS"),
        (lambda m: spoil(m, instrument__filter=None), {}, "FILTER of .*00002.* F560W.*got None"),
        (empty, {}, r".*00002.* must have at least 1 pixel .*got 0 of 4096"),
        (lambda m: None, {"window": 4}, "window must be odd, got 4"),
        (lambda m: None, {"window": 65, "min_good": 8}, r"window must be at most .*\(64, 64\).*got 65"),
        (lambda m: None, {"min_good": 25}, "min_good must be at most the 24 .*window of 5.*got 25"),
        (lambda m: None, {"window": 3, "min_good": 9}, "min_good must be at most the 8 .*window of 3.*got 9"),
    ],
    ids=["EXP_TYPE", "FILTER", "all NaN", "even", "larger than the frame", "min_good", "min_good of 3"],
)
def test_bad_input_is_refused_and_nothing_is_written(change, parameters, message, tmp_cwd):
    models = blanks(2)
    change(models[1])

    with pytest.raises(ValueError, match=message):
        call(models, **parameters, save_results=True, save_mask=True)

    assert not list(tmp_cwd.iterdir())


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("window", 1),
        ("min_good", 0),
        ("max_cluster", 0),
        ("min_exposures", 0),
        ("sigma", -1),
        ("mode", "mend"),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(parameter, value):
    with pytest.raises(Exception, match=parameter):
        call(blank(), **{parameter: value})


@pytest.fixture(scope="module")
def two_files(tmp_path_factory):
    """Write two exposures."""
    folder = tmp_path_factory.mktemp("two")
    for model in blanks(2):
        model.save(folder / model.meta.filename)
    return sorted(folder.iterdir())


# stpipe looks for the file's metadata before the Step can.
@pytest.mark.filterwarnings("ignore:File may have been truncated", "ignore:Error validating header")
@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("kind", ["truncated", "shortened", "missing", "not FITS"])
def test_bad_files_are_named_before_anything_is_written(kind, in_memory, two_files, tmp_cwd):
    folder = tmp_cwd / "in"
    folder.mkdir()
    files = [Path(shutil.copy(path, folder)) for path in two_files]
    whole = files[1].read_bytes()
    files[1].unlink()
    # Cut in the middle of an image, or in the header of the last extension.
    kept = {"truncated": whole[: len(whole) // 2], "shortened": whole[:-4000], "not FITS": b"no image at all"}
    if kind in kept:
        files[1].write_bytes(kept[kind])
    listed = {path: path.stat().st_mtime_ns for path in folder.iterdir()}

    for given in ([str(path) for path in files], [str(path) for path in files[::-1]], str(files[1])):
        with pytest.raises((ValueError, FileNotFoundError), match=files[1].name):
            call(given, save_results=True, save_mask=True, in_memory=in_memory, output_dir=str(tmp_cwd))

    assert [path.name for path in tmp_cwd.iterdir()] == ["in"]
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == listed


def test_a_cube_is_refused_by_name(tmp_cwd):
    cube = CubeModel((2, 64, 64))
    cube.update(blank())
    cube.dq = np.zeros((2, 64, 64), np.uint32)

    with pytest.raises(ValueError, match=r"must be an image of two dimensions, got shape \(2, 64, 64\)"):
        call(cube, save_results=True)

    assert not list(tmp_cwd.iterdir())


def test_planes_that_are_not_there_stay_away():
    """An exposure of data alone."""
    model = ImageModel(blank().data)
    model.update(blank())
    model.data[20, 30] += 50.0

    with call(model) as result:
        assert result.data[20, 30] == pytest.approx(10, abs=1.2)
        assert result.dq[20, 30] == HOT | ESTIMATED


# Every way of use


@pytest.fixture(scope="module")
def field(folder):
    """Four exposures on disk with hot pixels, holes, cosmic rays and a few stars."""
    observation = watch("F770W", 20, subarray="SUB256", cosmic_rays=1e-3)
    return write(observation, folder / "hot", product="field"), observation


def test_cosmic_rays_are_not_mistaken_for_hot_pixels(field, opened):
    association, observation = field
    models = opened(sorted(map(str, association.parent.glob("*_cal.fits"))))

    result = call(models)

    known = (observation.hot > 0) | observation.dead | (observation.flags > 0)
    repaired = sum((changed(*pair) & ~known).sum() for pair in zip(models, result, strict=True))
    # 65 hits in each exposure: chance brings two on one pixel in 0.4 of such sets.
    assert repaired <= 4 * 3


def test_strun_by_alias(field, strun, tmp_cwd):
    association, _ = field
    first = next(iter(sorted(association.parent.glob("*_cal.fits"))))

    said = strun("median_hot_pixel", first)

    assert "repaired" in said
    (product,) = tmp_cwd.iterdir()
    assert product.name == first.name.replace("_cal.fits", "_median_hot_pixel.fits")
    with datamodels.open(product) as saved, call(str(first)) as expected:
        np.testing.assert_array_equal(saved.data, expected.data)
        np.testing.assert_array_equal(saved.dq, expected.dq)


def test_strun_by_name(field, strun, tmp_cwd):
    association, _ = field

    said = strun("miri_steps.MedianHotPixelStep", association, "--save_mask=true", "--output_dir=set")

    assert len(REPAIRED.findall(said)) == 4
    names = sorted(path.name for path in (tmp_cwd / "set").iterdir())
    assert len(names) == 5
    assert names[0] == "field_mirimage_sub256_hot_pixels.fits"
    assert all(name.endswith("_median_hot_pixel.fits") for name in names[1:])


SKIPPED = ("assign_mtwcs", "tweakreg", "skymatch", "outlier_detection", "source_catalog")


def drizzle(given, tmp_cwd, hooks=()):
    """Run calwebb_image3 and open its mosaic."""
    steps = {name: {"skip": True} for name in SKIPPED}
    steps["skymatch"]["post_hooks"] = list(hooks)
    steps["resample"] = {"weight_type": "exptime"}
    Image3Pipeline.call(given, steps=steps, save_results=True)
    (path,) = tmp_cwd.glob("*_i2d.fits")
    with datamodels.open(path) as model:
        mosaic = model.copy()
    path.unlink()
    return mosaic


def test_repaired_pixels_reach_the_mosaic(tmp_cwd):
    """Nine flagged pixels of one exposure leave no weight, a hot one a spike; repaired, neither."""
    model = with_a_star()[0]
    holes, hot = np.s_[24:240:24, 24:80:24], np.s_[24:240:24, 180:240:24]
    for dy, dx in np.ndindex(3, 3):
        put(model, np.s_[23 + dy : 240 : 24, 23 + dx : 80 : 24], flags=DO_NOT_USE | DEAD)
    model.data[hot] += 20.0
    y, x = (np.concatenate([v[holes].ravel(), v[hot].ravel()]) for v in np.indices((256, 256)))
    number = len(y) - model.data[hot].size

    without = drizzle(ModelLibrary([model.copy()]), tmp_cwd)
    repaired = drizzle(ModelLibrary([model.copy()]), tmp_cwd, ["miri_steps.MedianHotPixelStep"])

    column, row = (np.rint(v).astype(int) for v in without.meta.wcs.invert(*model.meta.wcs(x, y)))
    typical = np.nanmedian(repaired.wht)
    assert typical > 0
    assert (without.wht[row, column][:number] == 0).all()
    assert np.isnan(without.data[row, column][:number]).all()
    assert (without.data[row, column][number:] > 8.0).all()
    assert (repaired.wht[row, column] > 0.9 * typical).all()
    np.testing.assert_allclose(repaired.data[row, column], 3.0, atol=0.3)


def test_hook_in_python_gives_the_same_as_before(field, opened, tmp_cwd, caplog):
    caplog.set_level(logging.INFO, logger="stpipe")
    association, _ = field
    models = opened(sorted(map(str, association.parent.glob("*_cal.fits")))[:2])

    mosaic = drizzle(
        ModelLibrary(models), tmp_cwd, ["miri_steps.MedianHotPixelStep(sigma=6)", MedianHotPixelStep]
    )

    assert len(REPAIRED.findall(caplog.text)) == 2
    assert caplog.text.count("was done before") == 2
    assert np.isfinite(mosaic.data).mean() > 0.5


# Real exposures


def test_real_exposures_of_a_phase_mask(shared_data, planes_of, tmp_cwd, caplog):
    folder = shared_data / "miri_4qpm_dithers"
    files = sorted(folder.glob("*_cal.fits"))
    models = [datamodels.open(path) for path in files]
    try:
        result = call(models)
        for before, after in zip(models, result, strict=True):
            touched = changed(before, after)
            # The star that the mask hides, and the speckles around it.
            y, x = np.unravel_index(np.nanargmax(before.data), before.data.shape)
            assert not touched[y - 4 : y + 5, x - 4 : x + 5].any()
            assert touched.sum() < 0.003 * touched.size
            assert np.isfinite(after.data[touched]).all()
            assert not (after.dq[touched] & DO_NOT_USE).any()
    finally:
        for model in models:
            model.close()
    assert len(REPAIRED.findall(caplog.text)) == 9
    assert Path(files[0]).exists()


# Who has a say


@pytest.mark.parametrize(
    "free, above, sharp, bad",
    [
        ((1, 1, 1, 1), (1, 1, 0, 0), (1, 1, 0, 0), True),
        ((1, 1, 1, 1), (1, 1, 0, 0), (1, 0, 0, 0), True),  # sharp once is enough
        ((1, 1, 1, 1), (1, 1, 1, 1), (0, 0, 0, 0), False),  # never sharp: part of something
        ((1, 1, 1, 1), (1, 0, 0, 0), (1, 0, 0, 0), False),  # came once: a cosmic ray
        ((1, 0, 0, 0), (1, 1, 1, 1), (1, 1, 1, 1), True),  # sources cover it in the others
        ((1, 1, 0, 0), (1, 1, 1, 1), (1, 1, 1, 1), True),
        ((1, 1, 0, 0), (1, 0, 1, 1), (1, 0, 1, 1), False),
        ((0, 0, 0, 0), (1, 1, 1, 1), (1, 1, 1, 1), False),
        ((1,) * 7, (1, 1) + (0,) * 5, (1, 1) + (0,) * 5, False),  # a third of seven are three
        ((1,) * 7, (1, 1, 1) + (0,) * 4, (1,) + (0,) * 6, True),
    ],
)
def test_exposures_outside_sources_decide(free, above, sharp, bad):
    members = [Member(k, Path(f"e{k}_cal.fits"), "", {}) for k in range(len(free))]
    for turned in (False, True):
        group = Group(members, None)
        for member, is_free, stands, alone in zip(members, free, above, sharp, strict=True):
            plane, none = (np.full((2, 2), bool(value)) for value in (True, False))
            shown = (plane & bool(stands), none, plane & bool(alone), none)
            if turned:
                shown = shown[1::-1] + shown[:1:-1]
            group.add(member, Outstanding(*shown, np.zeros((2, 2))), plane & bool(is_free))

        assert (group.is_dead if turned else group.is_hot).all() == bad
        assert not (group.is_hot if turned else group.is_dead).any()


def test_exposures_of_other_shapes_are_refused():
    members = [Member(k, Path(f"e{k}_cal.fits"), "", {}) for k in range(2)]
    group = Group(members, None)

    def show(member, shape):
        none = np.zeros(shape, bool)
        group.add(member, Outstanding(none, none, none, none, none), ~none)

    show(members[0], (4, 5))
    with pytest.raises(ValueError, match=r"one shape, but e0.* has \(4, 5\) and e1.* has \(4, 6\)"):
        show(members[1], (4, 6))
