"""Numbers that tell whether a reduction worked."""

from types import SimpleNamespace

import numpy as np
import pytest
from astropy import units as u
from astropy.table import QTable, Table

from miri_steps.report import numbers

GOOD = {
    **{"unit": "MJy/sr", "exposures": 6, "steps_not_done": {}, "pieces": 1},
    **{"difference_clipped_before": 0.5, "difference_clipped_after": 0.01, "pair_ratio_median": 0.7},
    **{"level_error_largest": 0.01, "level_range": 0.5, "tile_scatter_largest_mas": 5.0},
    **{"tiles_without_correction": 0, "super_background_samples_median": 6.0},
}


def side(values, between="tiles", n_exposures=6):
    return SimpleNamespace(difference=np.array(values, np.float32), between=between, n_exposures=n_exposures)


def test_sides_of_other_exposures_are_not_compared():
    values = np.ones((4, 4))

    assert numbers.compare(side(values), side(values))
    assert numbers.compare(side(values), side(values, n_exposures=3)) == {}
    assert numbers.compare(side(values), side(values, between="exposures")) == {}


def test_differences_are_measured_on_the_same_cells():
    rng = np.random.default_rng(1)
    after = rng.normal(0, 0.1, (100, 100))
    before = after + 0.5
    before[0, 0], after[0, 1], after[5, 5] = np.nan, np.nan, 50.0

    found = numbers.compare(side(before), side(after))

    assert found["before"].cells == found["after"].cells == 9998
    assert found["before"].clipped == pytest.approx(np.hypot(0.5, 0.1), rel=0.02)
    assert found["after"].clipped == pytest.approx(0.1, rel=0.03)
    assert found["after"].rms == pytest.approx(np.hypot(0.1, 0.5), rel=0.03)


def test_without_overlaps_there_are_no_differences():
    assert numbers.compare(None, None) == {}
    assert numbers.compare(side([[np.nan]]), side([[1.0]])) == {}
    assert set(numbers.compare(None, side([[1.0]]))) == {"after"}


def test_residuals_are_divided_by_their_errors():
    pairs = QTable({"residual": [1.0, -4.0, 3.0] * u.mJy, "error": [2.0, 2.0, 0.0] * u.mJy})

    np.testing.assert_allclose(numbers.pair_ratios(pairs), [0.5, -2.0])
    assert numbers.pair_ratios(None).size == numbers.pair_ratios(Table({"a": [1]})).size == 0


def test_a_good_reduction_is_called_good():
    found = numbers.judge(GOOD)

    assert len(found) == 5 and all(verdict.good for verdict in found)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"difference_clipped_after": 0.6}, "made them worse"),
        ({"pair_ratio_median": 2.1}, "the limit is 2"),
        ({"level_error_largest": 0.6}, "errors are larger than what is corrected"),
        ({"pieces": 2}, "2 pieces"),
        ({"tile_scatter_largest_mas": 28.0}, "27.5 mas, a quarter of a pixel"),
        ({"tiles_without_correction": 1}, "1 of the tiles"),
        ({"super_background_samples_median": 2.0}, "fewer than 3"),
        ({"steps_not_done": {"super_background": 2}}, "super_background was skipped or failed for 2 of 6"),
    ],
)
def test_what_is_out_of_its_limits_is_said_first(change, text):
    found = numbers.judge(GOOD | change)

    assert [verdict.good for verdict in found].count(False) == 1
    assert not found[0].good and text in found[0].text


def test_nothing_is_said_of_what_is_not_known():
    assert numbers.judge(dict.fromkeys(GOOD) | {"unit": "", "exposures": 0, "steps_not_done": {}}) == []


def test_a_stock_step_that_is_skipped_was_a_choice():
    status = {"tweakreg": "SKIPPED", "outlier_detection": "FAILED", "super_background": "SKIPPED"}

    assert numbers.not_done(status) == {"outlier_detection": "FAILED", "super_background": "SKIPPED"}
    assert numbers.not_done({"pixel_skymatch": "COMPLETE"}) == {}


def test_scatter_of_tiles_is_read_in_its_unit():
    assert numbers.tile_scatter(Table({"scatter": [0.005] * u.arcsec})) == pytest.approx([5.0])
    assert numbers.tile_scatter(Table({"scatter": [5.0]})) == pytest.approx([5.0])


def test_tables_are_written_as_plain_values():
    table = Table({"a": [1.0, np.nan], "b": ["x", "y"], "c": [1, 2]}, masked=True)
    table["c"].mask = [True, False]

    assert numbers.records(table) == [{"a": 1.0, "b": "x", "c": None}, {"a": None, "b": "y", "c": 2}]
    assert numbers.records(None) == []
