"""From fits of exposures to corrections of tiles, without files."""

from types import SimpleNamespace

import numpy as np
import pytest

from miri_steps.steps import tile_measure
from miri_steps.steps.tile_members import Member, into_tiles
from miri_steps.steps.tile_wcs import Correction

PLACE = 83.6, -69.1


def member(visit, number, shift=(0.1, -0.2), *, star=None, band="F770W", place=PLACE, rotation=0.0, **given):
    ra, dec = place[0] + 0.002 * number, place[1] + 0.001 * (number % 2)
    meta = {
        "meta.observation.visit_id": visit if visit is None else f"01234001{visit:03d}",
        "meta.guidestar.gs_id": f"S{visit}" if star is None else star,
        "meta.instrument.filter": band,
        "meta.wcsinfo.ra_ref": ra,
        "meta.wcsinfo.dec_ref": dec,
    }
    found = Correction(ra, dec, *shift, rotation) if shift is not None else None
    path = SimpleNamespace(name=f"{visit}-{number}-{band}")
    return Member(number, path, "", meta, found=found, **given)


def tiles(members, group_by="visit_guide_star"):
    return into_tiles(members, group_by)


def measured(members, **given):
    (tile,) = tiles(members)
    given = {"rotates": False, "sigma": 3.0, "max_scatter": 0.1} | given
    return tile_measure.average_fits(tile, members[0].band, members, **given)


def scattered(truth, n, scatter=0.005, seed=1):
    return np.asarray(truth) + np.random.default_rng(seed).normal(0, scatter, (n, 2))


# ---- into tiles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "group_by, names",
    [
        ("visit_guide_star", ["01234001001 A", "01234001001 B", "01234001002 B"]),
        ("visit", ["01234001001", "01234001002"]),
        ("guide_star", ["A", "B"]),
        ("observation", ["01234001"]),
    ],
)
def test_the_user_says_what_makes_a_tile(group_by, names):
    members = [member(1, 0, star="A"), member(2, 1, star="B"), member(1, 2, star="A"), member(1, 3, star="B")]

    found = tiles(members, group_by)

    assert [tile.name for tile in found] == names
    assert sorted(m.index for tile in found for m in tile.members) == [0, 1, 2, 3]


def test_filters_of_a_tile_come_shortest_first():
    (tile,) = tiles([member(1, 0, band="F2550W"), member(1, 1, band="F560W"), member(1, 2, band="F1000W")])

    assert list(tile.by_filter()) == ["F560W", "F1000W", "F2550W"]


def test_the_middle_of_a_tile_is_that_of_its_exposures_also_across_the_zero():
    (tile,) = tiles([member(1, 0, place=(359.999, 10.0)), member(1, 0, place=(0.003, 10.0))])

    assert tile.position[0] == pytest.approx(0.001, abs=1e-6)
    assert tile.position[1] == pytest.approx(10.0, abs=1e-6)


@pytest.mark.parametrize(
    "group_by, lost, message",
    [
        (
            "guide_star",
            {"star": ""},
            "group_by='guide_star' needs GDSTARID of each exposure, but None-1.* has none",
        ),
        ("visit", {}, "needs VISIT_ID of each exposure, but None-1-F770W has none"),
        ("visit_guide_star", {}, "needs VISIT_ID of each exposure"),
        ("visit_guide_star", {"star": ""}, "needs VISIT_ID of each exposure"),
        ("observation", {}, "needs VISIT_ID of each exposure"),
    ],
)
def test_exposures_that_do_not_say_which_tile_they_are_of_are_refused(group_by, lost, message):
    with pytest.raises(ValueError, match=message):
        tiles([member(1, 0), member(None, 1, **lost)], group_by)


def test_without_a_guide_star_the_visit_is_the_tile(caplog):
    (tile,) = tiles([member(1, 0, star=""), member(1, 1, star="")])

    assert tile.name == "01234001001"
    assert "1-0-F770W has no GDSTARID: its tile is its visit, 01234001001" in caplog.text


# ---- averages ----------------------------------------------------------------------------------------------


def test_a_tile_is_measured_at_its_middle_with_all_that_is_known_of_it():
    shift = scattered([0.5, -0.3], 4)
    members = [member(1, k, s, stars=20 + k) for k, s in enumerate(shift)]

    row = measured(members)

    weight = np.arange(20, 24) / np.arange(30, 34)
    np.testing.assert_allclose(row.correction.shift, np.average(shift, axis=0, weights=weight), atol=1e-4)
    assert row.correction.position == tiles(members)[0].position
    assert (row.tile, row.band, row.visit_ids, row.gs_ids) == (
        "01234001001 S1",
        "F770W",
        ["01234001001"],
        ["S1"],
    )
    assert (row.stars, row.method, row.problem) == (86, "tweakreg", "")
    assert row.used == [m.name for m in members]
    assert row.scatter == pytest.approx(0.005, rel=0.5)
    assert max(row.error) == pytest.approx(0.0025, rel=0.8)


def test_where_stars_were_not_counted_exposures_count_the_same():
    shift = scattered([0.5, -0.3], 4)

    row = measured([member(1, k, s) for k, s in enumerate(shift)])

    np.testing.assert_allclose(row.correction.shift, shift.mean(axis=0), atol=1e-4)
    assert row.stars is None


def test_the_reference_of_tweakreg_counts_as_the_mean_of_the_others():
    shift = scattered([0.5, -0.3], 3)

    row = measured(
        [member(1, k, s, stars=n) for k, (s, n) in enumerate(zip(shift, (None, 10, 30), strict=True))]
    )

    np.testing.assert_allclose(
        row.correction.shift, np.average(shift, axis=0, weights=[20 / 30, 10 / 20, 30 / 40]), atol=1e-4
    )
    assert row.stars == 40


def test_one_good_fit_of_many_is_not_believed():
    members = [member(1, k, problem="tweakreg is FAILED" if k else "") for k in range(3)]

    row = measured(members)

    assert row.correction is None
    assert row.problem == "only 1 of its 3 exposures has a good fit, and nothing confirms that"
    assert measured(members[:2]).correction is not None
    assert measured([member(1, 0)]).correction is not None


def test_an_outlier_is_named_with_its_distance():
    shift = scattered([0.5, -0.3], 5)
    shift[2] += [0.6, 0.8]
    members = [member(1, k, s) for k, s in enumerate(shift)]

    row = measured(members)

    assert row.rejected == [f"1-2-F770W ({members[2].problem})"]
    assert members[2].problem.startswith("its fit is 1.0")
    assert len(row.used) == 4
    np.testing.assert_allclose(row.correction.shift, [0.5, -0.3], atol=0.008)


def test_what_has_a_problem_takes_no_part():
    members = [member(1, k, s) for k, s in enumerate(scattered([0.5, -0.3], 3))]
    members += [member(1, 3, (9.0, 9.0), problem="tweakreg is SKIPPED"), member(1, 4, None, problem="no fit")]

    row = measured(members)

    np.testing.assert_allclose(row.correction.shift, [0.5, -0.3], atol=0.01)
    assert row.rejected == ["1-3-F770W (tweakreg is SKIPPED)", "1-4-F770W (no fit)"]


def test_where_exposures_disagree_there_is_no_number():
    members = [member(1, k, s) for k, s in enumerate([(0, 0), (0.5, 0.5), (1.0, -1.0)])]

    row = measured(members)

    assert row.correction is None
    assert row.problem.startswith("its exposures disagree (scatter 0.354")
    assert not row.used
    assert row.rejected == [m.name for m in members]
    assert measured(members, max_scatter=2.0).correction is not None


def test_without_a_fit_there_is_no_number():
    row = measured([member(1, 0, None, problem="tweakreg is not done")])

    assert row.correction is None
    assert row.problem == "no exposure has a good fit"
    assert row.rejected == ["1-0-F770W (tweakreg is not done)"]


def test_rotations_about_each_dither_are_one_of_the_tile():
    whole = Correction(*PLACE, 0.5, -0.3, 3e-4)
    members = []
    for k in range(6):
        each = member(1, k)
        each.found = whole.at(*each.position)
        members.append(each)

    row = measured(members, rotates=True)

    assert row.correction.rotation == pytest.approx(3e-4, rel=1e-4)
    assert row.scatter < 1e-4
    assert np.allclose(row.correction.shift, whole.at(*row.correction.position).shift, atol=1e-4)
    assert measured(members).correction.rotation == 0
    assert measured(members).scatter > 1e-3


# ---- one fit for all ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_numbers", [True, False])
def test_exposures_that_only_the_absolute_fit_moved_are_rejected(as_numbers):
    """Over 2 arcmin at this declination East turns by 0.2 per cent: more than 0.1 mas of this shift."""
    whole = Correction(*PLACE, 0.31, -0.22)
    members = [member(visit, 3 * visit + k, (0.31, -0.22)) for visit in (1, 2, 3) for k in range(3)]
    if not as_numbers:
        for each in members:
            each.found = whole.at(*each.position)
    members += [member(4, k, s) for k, s in enumerate(scattered([0.5, 0.4], 3))]

    tile_measure.reject_shared(members)

    assert [("only the absolute fit" in each.problem) for each in members] == [True] * 9 + [False] * 3


def test_one_shift_of_one_guide_star_is_a_good_one():
    members = [member(visit, k, (0.31, -0.22), star="S") for visit in (1, 2) for k in range(3)]

    tile_measure.reject_shared(members)

    assert not any(each.problem for each in members)


def test_exposures_without_a_guide_star_or_a_fit_are_not_judged():
    members = [
        member(1, 0, None),
        member(1, 1, star=""),
        member(2, 2, problem="tweakreg is SKIPPED"),
        member(3, 3),
    ]

    tile_measure.reject_shared(members)

    assert [each.problem for each in members] == ["", "", "tweakreg is SKIPPED", ""]


def test_the_last_run_of_tweakreg_in_the_log_counts():
    logs = [
        "Computed 'rshift' fit for 'GROUP ID: a_1':",
        "Final solution based on 12 objects.",
        "Computed 'shift' fit for 'GROUP ID: a_1':",
        "FIT RMSE: 0.1",
        "Final solution based on 31 objects.",
        "Computed 'rshift' fit for 'GROUP ID: a_11':",
        "Final solution based on 50 objects.",
    ]

    assert tile_measure.matched_stars(logs, "a_1") == 31
    assert tile_measure.matched_stars(logs, "a_2") is None
