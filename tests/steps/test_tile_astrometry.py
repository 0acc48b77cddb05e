"""`TileAstrometryStep` on exposures that look elsewhere than their files say, against the truth."""

import shutil
from functools import cache
from pathlib import Path

import gwcs
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import QTable, Table
from jwst import datamodels
from jwst.datamodels import ModelContainer

from miri_steps import TileAstrometryStep
from miri_steps.simulate import Pointing, wcs
from miri_steps.steps import tile_wcs

REAL = Path(__file__).parents[3] / "shared" / "data" / "tweakreg_shifts.ecsv"
needs_real = pytest.mark.skipif(not REAL.exists(), reason="the real shifts are not here")
# Averages published with the real shifts: clipped means, East and North [arcsec].
PUBLISHED = {
    "LMC": [
        (0.10637643, -0.11768223),
        (0.10700657, -0.13107962),
        (0.10163924, -0.12152159),
        (0.09065353, -0.12144904),
        (-0.97575431, 1.04564991),
    ],
    "Carina": [
        (0.18453315, -0.03236585),
        (0.18538585, -0.03966800),
        (1.75057508, -1.82668333),
        (0.18747005, -0.03952807),
        (0.18938012, -0.03749062),
    ],
}
PLACES = {"LMC": (80.5, -69.5), "Carina": (159.2, -58.6)}
MAS = 1e-3


def pointed(*, visits=(1, 2), dithers=3, pa=30.0, ra=83.6, dec=-69.1, stars=None, **given):
    """Plan dithers in visits 40 arcsec apart; visit n is on guide star Sn unless `stars` says otherwise."""
    plan = []
    for place, visit in enumerate(visits):
        for k in range(dithers):
            offset = np.array([place * 40.0 + 3 * k, 4.0 * (k % 2)]) / 3600
            plan.append(
                Pointing(
                    *(ra + offset[0] / np.cos(np.radians(dec)), dec + offset[1], pa),
                    visit_id=f"01234001{visit:03d}",
                    gs_id=(stars or {}).get(visit, f"S{visit}"),
                    **{"exposure": k + 1, "dither": k + 1, "tile": visit} | given,
                )
            )
    return plan


@cache
def take(pointing, band):
    """Take an exposure of which only the WCS counts."""
    v2, v3 = wcs.reference_point("FULL")
    model = datamodels.ImageModel((32, 32))
    model.update(
        {
            "meta": {
                "filename": f"{pointing.name}_cal.fits",
                "exposure": {"type": "MIR_IMAGE"},
                "instrument": {"name": "MIRI", "detector": "MIRIMAGE", "filter": band},
                "observation": {"visit_id": pointing.visit_id, "date": "2023-02-25"},
                "guidestar": {"gs_id": pointing.gs_id},
            }
        }
    )
    model.meta.wcs = wcs.build(pointing, band)
    model.meta.wcsinfo.instance.update(
        {
            "ra_ref": pointing.ra,
            "dec_ref": pointing.dec,
            "roll_ref": pointing.pa_v3,
            "v2_ref": v2,
            "v3_ref": v3,
        }
    )
    return model


def taken(plan, band="F770W"):
    """Take exposures, each once for all tests: who wants to change one must copy it."""
    return [take(pointing, band) for pointing in plan]


@pytest.fixture(scope="module")
def fitted(tweaked):
    """Take exposures, and leave in each what tweakreg does; for these, too, change copies alone."""

    @cache
    def fit(pointing, band, shift, rotation):
        return tweaked(take(pointing, band).copy(), shift, rotation)

    def make(plan, shifts, band="F770W", rotation=0.0):
        return [fit(each, band, tuple(shift), rotation) for each, shift in zip(plan, shifts, strict=True)]

    return make


def reference(model):
    return model.meta.wcsinfo.ra_ref, model.meta.wcsinfo.dec_ref


def run(models, **parameters):
    return list(TileAstrometryStep.call(ModelContainer(models), **parameters))


def shifts_of(models):
    return np.array([tile_wcs.read(model.meta.wcs).shift for model in models])


def statuses(models):
    return [model.meta.cal_step.tile_astrometry for model in models]


def rows_of(folder):
    (path,) = folder.glob("*_tiles.ecsv")
    return QTable.read(path)


def scattered(truth, scatter=0.02, seed=1):
    return np.asarray(truth) + np.random.default_rng(seed).normal(0, scatter, np.shape(truth))


TILES = np.array([[0.2, -0.1], [-0.9, 0.8]])
TRUTH = np.repeat(TILES, 3, axis=0)
# What tweakreg found, 5 mas off; the same for all tests, so that exposures are made once.
SCATTER = 5 * MAS
FITS = scattered(TRUTH, SCATTER)


# ---- real shifts ------------------------------------------------------------------------------------------


@needs_real
@pytest.mark.parametrize("field, pa, visits", [("LMC", 0.0, "5"), ("Carina", 137.0, "3")])
def test_real_shifts_give_the_published_corrections(fitted, field, pa, visits, tmp_path, caplog):
    """All tiles are in the benchmarks, and in the tests of the averages."""
    real = Table.read(REAL)
    real = real[(real["field"] == field) & np.isin([visit[-1] for visit in real["visit_id"]], list(visits))]
    ra, dec = PLACES[field]
    plan = [
        Pointing(
            *(ra + 0.03 * int(row["visit_id"][-1]) + 2e-3 * k, dec, pa),
            visit_id=row["visit_id"],
            gs_id=row["gs_id"],
            visit_group=row["exposure"].split("_")[1][:2],
            activity=row["exposure"].split("_")[1][3:],
            exposure=int(row["exposure"].split("_")[2]),
        )
        for k, row in enumerate(real)
    ]
    shifts = np.column_stack([real["shift_east"], real["shift_north"]])

    results = run(fitted(plan, shifts, real["filter"][0]), save_corrections=True, output_dir=str(tmp_path))

    table = rows_of(tmp_path)
    found = np.column_stack([table["shift_east"].value, table["shift_north"].value])
    published = np.array([PUBLISHED[field][int(visit) - 1] for visit in visits])
    assert np.hypot(*(found - published).T).max() < 3 * MAS
    for model in results:
        published = PUBLISHED[field][int(model.meta.observation.visit_id[-1]) - 1]
        assert np.hypot(*(shifts_of([model])[0] - published)) < 4 * MAS
    assert statuses(results) == ["COMPLETE"] * len(plan)
    if field == "Carina":
        failed = "jw02731002003_02103_00002_mirimage_cal.fits"
        assert failed in table["rejected"][0]
        assert f"rejected {failed}" in caplog.text
        assert failed not in table["used"][0]
        names = [model.meta.filename for model in results]
        assert np.hypot(*(shifts_of(results)[names.index(failed)] - PUBLISHED[field][2])) < 3 * MAS


# ---- measured from tweakreg -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short(fitted, tmp_path_factory):
    """Correct the exposures of a filter; give them, and the folder with the corrections and their figure."""
    folder = tmp_path_factory.mktemp("short")
    models = fitted(pointed(), FITS)
    return run(models, save_corrections=True, save_figure=True, output_dir=str(folder)), folder


def test_exposures_of_a_tile_look_where_the_telescope_did_to_a_fraction_of_the_scatter(short):
    off = shifts_of(short[0]) - TRUTH

    # The scatter of a mean of three.
    expected = SCATTER / np.sqrt(3)
    for tile, fits in zip(np.split(off, 2), np.split(FITS - TRUTH, 2), strict=True):
        assert np.hypot(*tile.mean(axis=0)) < 2.2 * expected
        np.testing.assert_allclose(tile, np.tile(fits.mean(axis=0), (3, 1)), atol=0.04 * SCATTER)
    assert off.std() < 1.3 * expected


def test_every_pixel_moves_with_its_tile(fitted):
    plan = pointed(pa=111.0, dithers=1)
    models = fitted(plan, TILES)
    x, y = np.array([20.0, 1000.0]), np.array([10.0, 1000.0])

    for model, pointing, truth in zip(run(models), plan, TILES, strict=True):
        nominal = SkyCoord(*wcs.build(pointing, "F770W")(x, y), unit="deg")
        looks = SkyCoord(*model.meta.wcs(x, y), unit="deg")
        east, north = nominal.spherical_offsets_to(looks)
        # 80 arcsec from where corrections hold, East turns by 1 mas per arcsec of shift.
        np.testing.assert_allclose(east.arcsec, truth[0], atol=4 * MAS)
        np.testing.assert_allclose(north.arcsec, truth[1], atol=4 * MAS)


def test_a_failed_fit_is_named_and_gets_the_correction_of_its_tile(fitted, caplog, tmp_path):
    shifts = FITS.copy()
    shifts[4] += 1.5
    results = run(fitted(pointed(), shifts), save_corrections=True, output_dir=str(tmp_path))

    name = results[4].meta.filename
    assert f"rejected {name} (its fit is 2.1" in caplog.text
    np.testing.assert_allclose(shifts_of(results)[4], shifts_of(results)[3], atol=1e-4)
    table = rows_of(tmp_path)
    assert list(table["exposures"]) == [3, 3]
    assert [len(used.split()) for used in table["used"]] == [3, 2]
    assert name in table["rejected"][1]


def test_what_is_no_measurement_is_named_and_corrected(fitted, caplog):
    """COMPLETE says nothing of the reference exposure of tweakreg, or of one whose fit failed."""
    models = fitted(pointed(), FITS)
    for k in (0, 3):
        models[k] = models[k].copy()
        tile_wcs.correct(models[k], None)
    models[0].meta.cal_step.tweakreg = "SKIPPED"

    results = run(models)

    assert f"rejected {models[0].meta.filename} (tweakreg is SKIPPED)" in caplog.text
    assert f"rejected {models[3].meta.filename} (tweakreg left it as it was" in caplog.text
    for tile in np.split(shifts_of(results), 2):
        np.testing.assert_allclose(tile, np.tile(tile[1], (3, 1)), atol=1e-4)
    np.testing.assert_allclose(shifts_of(results), TRUTH, atol=10 * MAS)
    assert statuses(results) == ["COMPLETE"] * 6


def test_tiles_that_share_one_shift_were_not_measured(fitted, caplog):
    """Only the absolute fit succeeded: it says nothing of any tile."""
    models = fitted(pointed(visits=(1, 2), dithers=2), np.tile([[0.31, -0.22]], (4, 1)))
    before = shifts_of(models)

    results = run(models)

    np.testing.assert_array_equal(shifts_of(results), before)
    assert statuses(results) == ["SKIPPED"] * 4
    assert "only the absolute fit" in caplog.text
    assert caplog.text.count("is left as it is") == 4


def test_one_guide_star_and_one_shift_are_a_good_measurement(fitted):
    models = fitted(pointed(visits=(1,), dithers=2), np.tile([[0.31, -0.22]], (2, 1)))

    results = run(models)

    np.testing.assert_allclose(shifts_of(results), shifts_of(models), atol=0.1 * MAS)
    assert statuses(results) == ["COMPLETE"] * 2


def test_without_anything_to_measure_nothing_is_done_and_the_reason_is_named(caplog):
    models = taken(pointed(visits=(1,)))

    results = run(models)

    assert statuses(results) == ["SKIPPED"] * 3
    assert all(tile_wcs.read(model.meta.wcs) is None for model in results)
    assert "tweakreg is not done" in caplog.text


def test_rotations_are_averaged_where_the_user_wants_them(fitted):
    models = fitted(pointed(visits=(1,), dithers=2), TRUTH[:2], rotation=2e-4)

    turned = [tile_wcs.read(model.meta.wcs).rotation for model in run(models, fitgeometry="rshift")]
    straight = [tile_wcs.read(model.meta.wcs).rotation for model in run(models)]

    np.testing.assert_allclose(turned, 2e-4, rtol=1e-6)
    np.testing.assert_allclose(straight, 0, atol=1e-8)


def test_the_shortest_filter_corrects_all_filters(fitted):
    short, long = pointed(dithers=1), pointed(activity="02", dithers=1)
    models = fitted(short, TILES, "F560W") + fitted(long, TILES + 0.05, "F1800W")

    found = shifts_of(run(models))

    np.testing.assert_allclose(found[:2], TILES, atol=0.1 * MAS)
    np.testing.assert_allclose(found[2:], TILES, atol=0.1 * MAS)


# ---- carried over -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(short):
    (path,) = short[1].glob("*_tiles.ecsv")
    return path


@pytest.fixture(scope="module")
def corrected(table):
    """
    Correct exposures of another filter from the table.

    The end of its name is left out: a hook's parameters must not have a dot.
    """
    return run(taken(pointed(activity="05", dithers=1), "F2550W"), corrections=str(table.with_suffix("")))


def test_another_filter_takes_the_corrections_of_the_table_without_tweakreg(corrected):
    np.testing.assert_allclose(shifts_of(corrected), TILES, atol=10 * MAS)
    assert statuses(corrected) == ["COMPLETE"] * 2
    assert [model.meta.cal_step.tweakreg for model in corrected] == [None] * 2


def test_the_same_table_twice_does_nothing_and_another_takes_its_place(table, corrected, tmp_path, caplog):
    twice = run(corrected, corrections=str(table))
    np.testing.assert_array_equal(shifts_of(twice), shifts_of(corrected))
    assert caplog.text.count("it was done before") >= 2

    other = QTable.read(table)
    other["shift_east"] += other["shift_east"].unit * 0.3
    other.write(tmp_path / "other.ecsv")
    again = run(twice, corrections=str(tmp_path / "other.ecsv"))

    np.testing.assert_allclose(shifts_of(again), shifts_of(corrected) + [0.3, 0.0], atol=0.05 * MAS)
    assert statuses(again) == ["COMPLETE"] * 2


def test_a_table_replaces_what_tweakreg_left(fitted, table):
    results = run(fitted(pointed(dithers=1), TILES + 3.0), corrections=str(table))

    np.testing.assert_allclose(shifts_of(results), TILES, atol=10 * MAS)


def test_tweakreg_on_top_of_a_correction_is_a_new_measurement(corrected):
    """The file says COMPLETE, its gWCS says that something has changed since."""
    models = [model.copy() for model in corrected]
    moved = TILES + [0.1, 0.0]
    for model, shift in zip(models, moved, strict=True):
        tile_wcs.correct(model, tile_wcs.Correction(*reference(model), *shift))
        model.meta.cal_step.tweakreg = "COMPLETE"

    results = run(models)

    np.testing.assert_allclose(shifts_of(results), moved, atol=0.1 * MAS)


def test_a_table_that_does_not_know_a_tile_leaves_its_old_correction(table, corrected, tmp_path, caplog):
    other = QTable.read(table)[:1]
    other.write(tmp_path / "one.ecsv")

    again = run(corrected, corrections=str(tmp_path / "one.ecsv"), fallback="none")

    np.testing.assert_array_equal(shifts_of(again), shifts_of(corrected))
    assert statuses(again) == ["COMPLETE"] * 2
    assert caplog.text.count("it was done before") >= 2


def test_a_table_is_not_written_over_by_a_run_that_measures_nothing(table, tmp_path, caplog):
    given = Path(shutil.copy(table, tmp_path))
    before = given.read_bytes()
    product = {"save_corrections": True, "output_dir": str(tmp_path)}

    once = run(taken(pointed(dithers=1)), corrections=str(given), **product)
    run(once, **product)

    assert [path.read_bytes() for path in tmp_path.glob("*_tiles.ecsv")] == [before]
    assert "No corrections are saved: none were measured." in caplog.text
    assert "No corrections are saved: 2 exposures were done before." in caplog.text
    assert "has no good correction" not in caplog.text


def test_an_exposure_that_comes_late_gets_the_correction_that_its_tile_has(fitted, caplog):
    models = fitted(pointed(visits=(1,)), FITS[:3])
    first = run(models[:2])

    whole = run([*first, models[2]])

    np.testing.assert_allclose(shifts_of(whole)[2], shifts_of(first)[0], atol=0.1 * MAS)
    assert statuses(whole) == ["COMPLETE"] * 3
    assert "by an earlier run" in caplog.text


def test_filters_that_disagree_are_named(fitted, caplog):
    models = fitted(pointed(visits=(1,), dithers=1), TILES[:1], "F560W")
    models += fitted(pointed(visits=(1,), activity="02", dithers=1), TILES[:1] + [0.5, 0.0], "F770W")

    run(models)

    assert "Tile 01234001001 S1: F560W and F770W disagree by 0.500 arcsec" in caplog.text


def test_exposures_that_do_not_know_where_they_look_stay_as_they_are(fitted, caplog):
    models = fitted(pointed(), FITS)
    blind = {1: "ra_ref", 3: "v2_ref", 4: "roll_ref", 5: "a place for a correction"}
    for k in blind:
        models[k] = models[k].copy()
    for k in (1, 3, 4):
        setattr(models[k].meta.wcsinfo, blind[k], None)
    pipeline, direct = models[5].meta.wcs.pipeline, models[5].meta.wcs.forward_transform
    models[5].meta.wcs = gwcs.WCS([(pipeline[0].frame, direct), (pipeline[-1].frame, None)])

    results = run(models)

    assert statuses(results) == ["SKIPPED" if k in blind else "COMPLETE" for k in range(6)]
    for k in blind:
        name = models[k].meta.filename
        assert f"{name} is left as it is: it lacks a WCS with a v2v3 frame, or" in caplog.text
        np.testing.assert_array_equal(results[k].meta.wcs(5, 5), models[k].meta.wcs(5, 5))


def test_tiles_missing_from_the_table_get_what_is_next_of_kin_or_nothing(table, caplog):
    plan = pointed(visits=(1, 2, 7, 8), stars={7: "S2"}, dithers=1)

    results = run(taken(plan), corrections=str(table))

    found = shifts_of(results[:3])
    np.testing.assert_allclose(found[2], TILES[1], atol=10 * MAS)
    assert "Tile 01234001007 S2 has no good correction of its own" in caplog.text
    assert "tiles on its guide star: 01234001002 S2" in caplog.text
    # Two tiles of the observation that are 1.4 arcsec apart say nothing of a third.
    assert statuses(results) == ["COMPLETE"] * 3 + ["SKIPPED"]
    assert tile_wcs.read(results[3].meta.wcs) is None


# ---- what a tired astronomer gives ------------------------------------------------------------------------


def test_two_sources_of_corrections_at_once_are_refused(table):
    with pytest.raises(ValueError, match="corrections and reference_catalog must not be given together"):
        run(taken(pointed(dithers=1)), corrections=str(table), reference_catalog="gaia.ecsv")


def test_a_missing_table_stops_before_any_work(tmp_cwd):
    with pytest.raises(
        FileNotFoundError, match="corrections must be a table, but there is no file gone.ecsv"
    ):
        TileAstrometryStep.call("also_gone_asn.json", corrections="gone", save_results=True)
    assert not list(tmp_cwd.iterdir())


# ---- what it leaves in the files --------------------------------------------------------------------------


def test_a_file_tells_its_correction_and_where_that_came_from(fitted, tmp_cwd):
    models = fitted(pointed(dithers=1), TILES)
    TileAstrometryStep.call(ModelContainer(models), save_results=True, save_corrections=True)

    products = sorted(tmp_cwd.glob("*_tile_astrometry.fits"))
    assert len(products) == 2
    with datamodels.open(products[1]) as model:
        assert tile_wcs.read_record(model).shift == pytest.approx(TILES[1], abs=1e-4)
        assert model.meta.cal_step.tweakreg == "COMPLETE"
    assert len(list(tmp_cwd.glob("*_tiles.ecsv"))) == 1


def test_the_number_of_stars_is_read_from_the_log_in_a_file(fitted, tmp_path):
    """As jwst 3.0.0 keeps it; the fit of all exposures to the catalogue comes after."""
    models = fitted(pointed(visits=(1,)), TRUTH[:3] + [[0.0, 0.0], [0.01, 0.0], [0.02, 0.0]])
    models = [model.copy() for model in models]
    for k, model in enumerate(models):
        group = f"jw01234001001_02101_{k + 1}"
        model.meta.group_id = group
        model.cal_logs = {
            "tweakreg": [
                "tweakwcs.wcsimage - INFO - Computed 'rshift' fit for 'GROUP ID: jw01234001001_02101_9':",
                "tweakwcs.wcsimage - INFO - Final solution based on 99 objects.",
                f"tweakwcs.wcsimage - INFO - Computed 'rshift' fit for 'GROUP ID: {group}':",
                "tweakwcs.wcsimage - INFO - FIT RMSE: 0.0048   FIT MAE: 0.0043",
                f"tweakwcs.wcsimage - INFO - Final solution based on {[10, 10, 20][k]} objects.",
                "tweakwcs.wcsimage - INFO - Computed 'rshift' fit for 'GROUP ID: 987654':",
                "tweakwcs.wcsimage - INFO - Final solution based on 47 objects.",
            ]
        }

    results = run(models, save_corrections=True, output_dir=str(tmp_path))

    assert list(rows_of(tmp_path)["stars"]) == [40]
    np.testing.assert_allclose(
        shifts_of(results)[:, 0], TRUTH[0, 0] + (0.01 * 0.5 + 0.02 * 2 / 3) / (0.5 + 0.5 + 2 / 3), atol=1e-4
    )


def test_a_figure_shows_the_corrections(short):
    (path,) = short[1].glob("*_tiles.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 20_000
