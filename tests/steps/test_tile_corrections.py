"""The table of tile corrections: written, read back, made by hand, and what stands in for what is missing."""

import numpy as np
import pytest
from astropy import units as u
from astropy.table import QTable, Table

from miri_steps.steps import tile_corrections
from miri_steps.steps.tile_corrections import TileCorrection
from miri_steps.steps.tile_members import Member, Tile
from miri_steps.steps.tile_wcs import Correction

PLACE = 83.6, -69.1
VISITS = {
    "01234001001": "S1",
    "01234001002": "S2",
    "01234001003": "S2",
    "01234002001": "S4",
    "05555001001": "S5",
}


def row(visit, shift=(0.1, -0.2), band="F560W", place=PLACE, **given):
    star = VISITS[visit]
    correction = Correction(*place, *shift) if shift else None
    return TileCorrection(f"{visit} {star}", [visit], [star], band, correction, **given)


def tile(visit, star=None, place=PLACE):
    star = VISITS[visit] if star is None else star
    meta = {
        "meta.observation.visit_id": visit,
        "meta.guidestar.gs_id": star,
        "meta.wcsinfo.ra_ref": place[0],
        "meta.wcsinfo.dec_ref": place[1],
    }
    return Tile(f"{visit} {star}".strip(), [Member(0, None, "", meta)])


def choose(of, rows, fallback="observation", **given):
    return tile_corrections.choose(
        of, rows, fallback=fallback, **({"sigma": 3.0, "max_scatter": 0.1} | given)
    )


# ---- there and back ---------------------------------------------------------------------------------------


def test_what_is_written_is_read_with_its_units(tmp_path):
    rows = [
        row(
            "01234001001",
            (0.1063764, -0.1176822),
            error=(0.001, 0.002),
            scatter=0.0044,
            stars=90,
            used=["a", "b"],
        ),
        row("01234001002", (-0.9757543, 1.0456499), band="F770W", rejected=["c (tweakreg is SKIPPED)"]),
        row("01234001003", None, problem="no exposure has a good fit"),
    ]
    path = tmp_path / "tiles.ecsv"

    table = tile_corrections.tile_table(rows, "visit_guide_star")
    table.write(path)
    found = tile_corrections.read_table(path, "visit_guide_star")

    assert [each.tile for each in found] == [each.tile for each in rows[:2]]
    for each, original in zip(found, rows, strict=False):
        assert each.correction.is_close(original.correction)
        assert (each.visit_ids, each.gs_ids, each.band) == (
            original.visit_ids,
            original.gs_ids,
            original.band,
        )
    again = QTable.read(path)
    assert again["shift_east"].unit == again["error_north"].unit == u.arcsec
    assert again["scatter"][0] == 4.4 * u.mas
    assert list(again["stars"]) == [90, -1, -1]
    assert list(again["exposures"]) == [2, 1, 0]
    assert again["used"][0] == "a b"
    assert again["rejected"][1] == "c (tweakreg is SKIPPED)"
    assert again["problem"][2] == "no exposure has a good fit"
    assert np.isnan(again["shift_east"][2])
    assert again.meta["group_by"] == "visit_guide_star"


def test_a_table_made_by_hand_will_do(tmp_path):
    """In other units, without places, filters and rotations; numbers have lost their leading zeros."""
    table = QTable({"visit_id": [1234001001], "gs_id": ["S1"], "shift_east": [100] * u.mas})
    table["shift_north"] = [-2e-4] * u.deg
    table.write(tmp_path / "mine.ecsv")

    (found,) = tile_corrections.read_table(tmp_path / "mine.ecsv", "visit_guide_star")

    assert found.tile == "01234001001 S1"
    at = found.correction.at(*PLACE)
    np.testing.assert_allclose(at.shift, [0.1, -0.72])
    assert at.rotation == 0


def test_fits_tables_are_read_too(tmp_path):
    tile_corrections.tile_table([row("01234001001")], "visit_guide_star").write(tmp_path / "t.fits")

    (found,) = tile_corrections.read_table(tmp_path / "t.fits", "visit_guide_star")

    assert found.correction.is_close(Correction(*PLACE, 0.1, -0.2))
    assert found.tile == "01234001001 S1"


@pytest.mark.parametrize(
    "group_by, name", [("guide_star", "S1"), ("visit", "01234001001"), ("observation", "01234001")]
)
def test_tiles_are_told_apart_by_what_the_user_says(group_by, name, tmp_path):
    tile_corrections.tile_table([row("01234001001")], group_by).write(tmp_path / "t.ecsv")

    (found,) = tile_corrections.read_table(tmp_path / "t.ecsv", group_by)

    assert found.tile == name


# ---- what is refused --------------------------------------------------------------------------------------


def made(tmp_path, change):
    table = tile_corrections.tile_table([row("01234001001"), row("01234001002")], "visit_guide_star")
    change(table)
    table.write(tmp_path / "bad.ecsv")
    return tmp_path / "bad.ecsv"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.remove_column("gs_id"), "must have the columns .*gs_id.* lacks gs_id"),
        (lambda t: t.remove_columns(["shift_east", "visit_id"]), "lacks shift_east, visit_id"),
        (
            lambda t: setattr(t["shift_north"], "unit", None),
            "shift_north must have a unit of angle.*it has None",
        ),
        (lambda t: setattr(t["shift_east"], "unit", "m"), "shift_east must have a unit of angle.*it has m"),
        (lambda t: t["shift_east"].fill(11.0), "at most 10 arcsec.*that of 01234001001 S1 is 11, -0.2"),
        (lambda t: t["shift_east"].fill(np.nan), "at least 1 tile with a shift, got none in .*bad.ecsv"),
        (lambda t: t.meta.update(group_by="visit"), "made with group_by='visit'.*got 'visit_guide_star'"),
        (lambda t: t.add_row(t[0]), "one row per tile and filter, but has several of 01234001001 S1 F560W"),
    ],
)
def test_bad_tables_are_refused_by_name(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tile_corrections.read_table(made(tmp_path, change), "visit_guide_star")


def test_a_missing_table_and_what_is_none_are_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"corrections must be a table, but there is no file .*gone.ecsv"
    ):
        tile_corrections.read_table(tmp_path / "gone.ecsv", "visit")
    (tmp_path / "text.ecsv").write_text("no table at all\n")
    with pytest.raises(ValueError, match=r"text.ecsv cannot be read"):
        tile_corrections.read_table(tmp_path / "text.ecsv", "visit")


# ---- what stands in ---------------------------------------------------------------------------------------


def test_a_tile_gets_its_own_correction_at_its_own_place():
    there = PLACE[0] + 0.1, PLACE[1]

    found, source = choose(
        tile("01234001001", place=there), [row("01234001001", (0.5, 0.3)), row("01234001002")]
    )

    assert source == tile_corrections.OWN
    # East has turned by 0.1 deg * sin(dec).
    turn = np.radians(0.1 * np.sin(np.radians(PLACE[1])))
    np.testing.assert_allclose(found.shift, [0.5 + 0.3 * turn, 0.3 - 0.5 * turn], atol=2e-6)


def test_the_shortest_filter_counts():
    rows = [row("01234001001", (9.0, 9.0), "F2550W"), row("01234001001", (0.5, 0.3), "F560W")]

    found, _ = choose(tile("01234001001"), rows)

    np.testing.assert_allclose(found.shift, [0.5, 0.3], atol=1e-9)


def test_one_exposure_alone_does_not_speak_for_the_tile_if_others_can():
    rows = [row("01234001001", (1.5, 0.1), "F560W", used=["a"], method="tweakreg")]
    rows.append(row("01234001001", (0.2, 0.1), "F770W", used=["b", "c"], method="tweakreg"))

    assert choose(tile("01234001001"), rows)[0].shift == pytest.approx((0.2, 0.1))
    assert choose(tile("01234001001"), rows[:1])[0].shift == pytest.approx((1.5, 0.1))


def test_a_correction_measured_elsewhere_on_the_sky_is_refused():
    with pytest.raises(ValueError, match=r"tile 01234001001 S1 must .* within 1 deg .* are 2.0 deg apart"):
        choose(tile("01234001001"), [row("01234001001", place=(PLACE[0], PLACE[1] + 2))])


def test_where_the_shortest_filter_failed_the_next_counts():
    rows = [row("01234001001", None, "F560W"), row("01234001001", (0.5, 0.3), "F770W")]

    assert choose(tile("01234001001"), rows)[0].shift == pytest.approx((0.5, 0.3))


def test_first_the_guide_star_stands_in_then_the_observation():
    rows = [
        row("01234001001", (0.10, -0.20)),
        row("01234001002", (0.12, -0.22)),
        row("05555001001", (7.0, 7.0)),
    ]
    missing = tile("01234001003")

    found, source = choose(missing, rows)
    assert found.shift == pytest.approx((0.12, -0.22))
    assert source == "tiles on its guide star: 01234001002 S2"

    found, source = choose(tile("01234001003", "other"), rows)
    assert found.shift == pytest.approx((0.11, -0.21))
    assert source == "tiles of its observation: 01234001001 S1, 01234001002 S2"


@pytest.mark.parametrize(
    "fallback, shift", [("none", None), ("guide_star", None), ("observation", (0.1, -0.2))]
)
def test_the_user_says_how_far_to_look(fallback, shift):
    found, _ = choose(tile("01234001003", "other"), [row("01234001001"), row("01234001002")], fallback)

    assert (found and found.shift) == (pytest.approx(shift) if shift else None)


def test_no_number_is_made_up():
    """Nobody of kin, or kin that disagree: nothing is better than a guess."""
    assert choose(tile("01234002001"), [row("01234001001")]) == (None, "no other tile stands in for it")
    apart = [row("01234001001", (0.1, 0.1)), row("01234001002", (1.6, -1.8))]
    found, why = choose(tile("01234001003", "other"), apart)
    assert found is None
    assert why == "the tiles of its observation disagree"
    assert choose(tile("01234001003", ""), [row("05555001001")])[0] is None
    found, why = choose(tile("01234001003", "other"), [row("01234001001", (1.7, -1.8))])
    assert found is None
    assert why.startswith("one other tile of its observation, 01234001001 S1, cannot tell its own error")


def test_one_of_three_that_is_far_off_is_left_out():
    rows = [row("01234001001", (0.10, -0.20)), row("01234001002", (1.75, -1.83))]
    rows.append(
        TileCorrection("01234001009 S9", ["01234001009"], ["S9"], "F560W", Correction(*PLACE, 0.12, -0.2))
    )

    found, source = choose(tile("01234001003", "other"), rows)

    assert found.shift == pytest.approx((0.11, -0.2))
    assert source == "tiles of its observation: 01234001001 S1, 01234001009 S9"


def test_tables_have_plain_columns():
    assert type(tile_corrections.tile_table([row("01234001001")], "visit_guide_star")) is Table
