"""Rows of photometry that can be used, and words for those that cannot."""

import numpy as np
import pytest
from astropy import units as u
from astropy.table import QTable, Table

from miri_steps.fluxcal import observations
from miri_steps.fluxcal.time_loss import T0


@pytest.fixture
def table():
    """Three stars in two filters and three subarrays."""
    found = QTable({"name": ["GD71", "HD-2811", "A new star"], "type": ["hot", "A dwarf", "other"]})
    found["file"] = ["first_cal.fits", "second_cal.fits", "third_cal.fits"]
    found["filter"], found["subarray"] = ["F770W", "F770W", "F1550C"], ["FULL", "SUB64_IP", "MASK1550"]
    found["timemid"] = (T0 + np.array([1.0, 2.0, 3.0])) * u.day
    found["rate"] = [102.0, 98.5, 50.0] * u.DN / u.s
    found["rate_error"] = [1.02, 0.985, 0.0] * u.DN / u.s
    found["apcorr"], found["pixel_area"] = [1.5, 1.4, 1.3], [2e-13, 3e-13, 4e-13] * u.sr
    return found


def test_rates_are_put_on_one_scale(table):
    found = observations.usable(table, repeatability=0.003)

    assert found["name"].tolist() == ["GD 71", "HD 2811", "A new star"]
    np.testing.assert_allclose(found["reference_rate"].to_value(u.DN / u.s), [100, 100, 50])
    light = found["light"].to_value(u.DN / u.s * u.sr)
    np.testing.assert_allclose(light, [100 * 1.5 * 2e-13, 100 * 1.4 * 3e-13, 50 * 1.3 * 4e-13])
    np.testing.assert_allclose(found["relative_error"], [np.hypot(0.01, 0.003)] * 2 + [0.003])


def test_the_table_that_was_given_is_as_before(table):
    before = table.copy()
    observations.usable(table)
    assert table.colnames == before.colnames
    assert all((table[name] == before[name]).all() for name in table.colnames)


def test_units_are_converted(table):
    other = Table(table)
    other["timemid"] = (table["timemid"].to(u.s)).value
    other["timemid"].unit = u.s
    other["pixel_area"] = table["pixel_area"].to(u.arcsec**2).value
    other["pixel_area"].unit = u.arcsec**2
    found, expected = observations.usable(other), observations.usable(table)
    np.testing.assert_allclose(found["light"].to_value(u.DN * u.sr / u.s), expected["light"].value)
    np.testing.assert_allclose(found["timemid"].to_value(u.day), expected["timemid"].value)


def test_stars_without_a_rate_are_left_out(table):
    table["rate"][0] = np.nan * u.DN / u.s
    assert observations.usable(table)["name"].tolist() == ["HD 2811", "A new star"]


def test_a_negative_rate_does_not_stop_the_others(table):
    table["rate"][1] = -3.0 * u.DN / u.s
    words = r"HD-2811 in F770W \(second_cal.fits\) is left out: its rate must be above 0, got -3 DN / s"
    with pytest.warns(UserWarning, match=words):
        found = observations.usable(table)
    assert found["name"].tolist() == ["GD 71", "A new star"]
    # Nor does one that is the only one in its filter.
    table["rate"][2] = 0.0 * u.DN / u.s
    with pytest.warns(UserWarning, match="is left out"):
        assert observations.usable(table)["name"].tolist() == ["GD 71"]
    table["rate"] = -table["rate"]
    with (
        pytest.warns(UserWarning, match="is left out"),
        pytest.raises(ValueError, match="must be a star with a date and a rate above 0, got none"),
    ):
        observations.usable(table[::2])


def test_stars_without_a_date_are_left_out(table):
    table["timemid"][1] = np.nan * u.day
    words = r"HD-2811 in F770W \(second_cal.fits\) is left out: its date is not known"
    with pytest.warns(UserWarning, match=words):
        assert observations.usable(table)["name"].tolist() == ["GD 71", "A new star"]


def test_blank_cells_are_not_measured(table, tmp_path):
    """Masked, in a table of this kind or the other, and as they are read from a file."""
    plain = Table(table, masked=True)
    plain["rate"].mask[0] = True
    QTable(plain).write(tmp_path / "stars.ecsv")
    for given in (plain, QTable(plain), QTable.read(tmp_path / "stars.ecsv")):
        assert observations.usable(given)["name"].tolist() == ["HD 2811", "A new star"]
    plain["timemid"].mask[1] = True
    with pytest.warns(UserWarning, match="HD-2811 in F770W .* is left out: its date is not known"):
        assert observations.usable(plain)["name"].tolist() == ["A new star"]
    plain["apcorr"].mask[2] = True
    with (
        pytest.warns(UserWarning, match="its date is not known"),
        pytest.raises(ValueError, match="apcorr must be finite and above 0, got nan of A new star"),
    ):
        observations.usable(plain)


@pytest.mark.parametrize("repeatability", [-0.003, np.nan])
def test_repeatabilities_that_make_no_sense_are_refused(table, repeatability):
    with pytest.raises(ValueError, match=f"repeatability must be finite and 0 .*, got {repeatability}"):
        observations.usable(table, repeatability=repeatability)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("timemid", 0 * u.day, r"timemid must be .*, got 0.0 d of GD71 in F770W \(first_cal.fits\)"),
        ("apcorr", 0.0, r"apcorr must be finite and above 0, got 0.0 of GD71 in F770W"),
        ("pixel_area", np.nan * u.sr, "pixel_area must be finite and above 0, got nan sr of GD71"),
        ("rate_error", -1 * u.DN / u.s, "rate_error must be finite and 0 or more, got -1.0 DN / s of GD71"),
        ("rate_error", np.nan * u.DN / u.s, "rate_error must be finite and 0 or more, got nan DN / s of GD"),
    ],
)
def test_values_that_make_no_sense_are_named_with_their_star(table, column, value, words):
    table[column][0] = value
    with pytest.raises(ValueError, match=words):
        observations.usable(table)


@pytest.mark.parametrize(
    ("column", "unit"), [("timemid", "d"), ("rate", "DN / s"), ("rate_error", "DN / s"), ("pixel_area", "sr")]
)
def test_columns_without_units_are_named(table, column, unit):
    table[column] = table[column].value
    with pytest.raises(ValueError, match=f"photometry must have the column {column} in {unit}, got no unit"):
        observations.usable(table)
    table[column] = table[column] * u.Jy
    with pytest.raises(ValueError, match=f"photometry must have the column {column} in {unit}, got Jy"):
        observations.usable(table)


def test_empty_tables_and_missing_columns_are_named(table):
    with pytest.raises(ValueError, match="at least one star that was measured, got none"):
        observations.usable(table[:0])
    table.remove_column("apcorr")
    with pytest.raises(ValueError, match="photometry must have the columns apcorr, got name, type"):
        observations.usable(table)
    with pytest.raises(ValueError, match="photometry must have the columns name, type, filter"):
        observations.usable(QTable())


def test_observations_without_any_error_are_refused(table):
    with pytest.raises(
        ValueError, match="relative_error must be .* from rate_error or repeatability, got 0.0 of A"
    ):
        observations.usable(table, repeatability=0.0)


def test_transmissions_are_checked(table):
    with pytest.raises(ValueError, match="subarray must be one of FULL, or of a coronagraph, got SUB64_IP"):
        observations.usable(table, {"FULL": 1.0})
    with pytest.raises(ValueError, match="the transmission of FULL must be finite and above 0, got 0"):
        observations.usable(table, {"FULL": 0, "SUB64": 1.0})
