"""Tables of a calibration: their numbers, and files."""

import numpy as np
import pytest
from astropy import units as u
from astropy.table import QTable, Table

from miri_steps.fluxcal import calibration, config, tables, time_loss
from miri_steps.fluxcal.time_loss import T0, TimeLoss

FACTOR = u.MJy / u.sr / (u.DN / u.s)
STARS = ("10 Lac", "mu Col", "HD 2811", "HD 163466", "del UMi", "16 Cyg B", "18 Sco")
#: What models of these stars are wrong by: the last one is an outlier.
WRONG = np.array([-0.01, 0.01, -0.01, 0.01, 0.0, 0.0, 0.5])
#: True factor and loss of each filter.
TRUTH = {"F770W": (0.4, TimeLoss(0.01, 0.05, 200.0, np.zeros((3, 3)))), "F1065C": (2.0, None)}
KNOWN = TimeLoss(0.02, 0.1, 150.0, np.diag([0.001, 0.004, 20.0]) ** 2)


@pytest.fixture(scope="module")
def calibrations():
    """Observe seven stars once, and one of them again in F770W; the loss in F1065C is given."""
    rows, flux = [], QTable({"name": STARS})
    for band, (factor, loss) in TRUTH.items():
        loss = loss or KNOWN
        true = np.geomspace(0.05, 1.0, len(STARS))
        flux[band] = true * (1 + WRONG) * u.Jy
        again = ["HD 2811"] * 10 if band == "F770W" else []
        for k, star in enumerate([*STARS, *again]):
            mjd = T0 + 10 + 100 * k
            rate = 1e-6 * true[STARS.index(star)] / (factor * 1.5 * 3e-13) * loss.sensitivity(mjd)
            kind = config.star(star).type
            rows.append((star, kind, band, "SUB256", mjd * u.day, rate * u.DN / u.s))
    table = QTable(rows=rows, names=("name", "type", "filter", "subarray", "timemid", "rate"))
    table["rate_error"] = 1e-4 * table["rate"]
    table["apcorr"], table["pixel_area"] = 1.5, 3e-13 * u.sr
    return calibration.calibrate(table, flux, losses={"F1065C": KNOWN})


def test_factors_are_those_of_the_filters(calibrations):
    table = tables.factors(calibrations)

    assert table["filter"].tolist() == ["F770W", "F1065C"]
    assert table["pivot"].to_value(u.um) == pytest.approx([7.639, 10.563])
    # Of the six stars that are left two are wrong by +1 %, two by -1 %.
    assert table["factor"].to_value(FACTOR) == pytest.approx([0.4, 2.0], rel=1e-3)
    assert table["scatter"].to_value(u.percent) == pytest.approx([100 * np.sqrt(4 / 5) * 0.01] * 2, rel=0.1)
    assert table["stars"].tolist() == [6, 6]
    assert table["observations"].tolist() == [17, 7]
    assert table["clipped"].tolist() == [1, 1]
    expected = [one.error for one in calibrations.values()]
    assert table["factor_error"].to_value(FACTOR) == pytest.approx(expected)


def test_losses_are_told_per_year_with_their_errors(calibrations):
    table = tables.losses(calibrations)

    assert table["loss"].unit == u.percent / u.yr
    assert table["loss"].value == pytest.approx([1.0, 2.0], rel=1e-3)
    assert table["amplitude"] == pytest.approx([0.05, 0.1], rel=1e-3)
    assert table["tau"].to_value(u.day) == pytest.approx([200.0, 150.0], rel=1e-3)
    assert table["loss_error"][1].value == pytest.approx(0.1)
    assert table["amplitude_error"][1] == pytest.approx(0.004)
    assert table["tau_error"][1].to_value(u.day) == pytest.approx(20.0)
    assert table["fitted"].tolist() == [True, False]


def test_types_stand_beside_the_factor_of_all(calibrations):
    table = tables.by_type(calibrations)
    coronagraph = table[table["filter"] == "F1065C"]

    assert coronagraph["type"].tolist() == ["A dwarf", "hot", "solar analogue"]
    assert coronagraph["stars"].tolist()[:2] == [3, 2]
    assert coronagraph["factor"].value[:2] == pytest.approx([2.0, 2.0], rel=1e-6)
    # Of two solar analogues, of which one is 50 % wrong, none is left out.
    assert coronagraph["difference"].to_value(u.percent) == pytest.approx([0, 0, 25], abs=1e-6)
    assert table[table["filter"] == "F770W"]["observations"].tolist() == [13, 2, 2]


def test_all_observations_are_kept_for_archives(calibrations, tmp_path):
    table = tables.observations(calibrations)
    read = QTable.read(tables.write(table, tmp_path / "all.ecsv"))

    assert len(table) == 17 + 7
    assert (~table["kept"]).sum() == 2
    assert read.colnames == table.colnames
    for name in table.colnames:
        assert getattr(read[name], "unit", None) == getattr(table[name], "unit", None)
        assert np.array_equal(read[name], table[name])
    again = 1e6 * 1.5 * 3e-13 * read["factor"].value * read["rate"].value / read["sensitivity"]
    np.testing.assert_allclose(again, read["flux"].to_value(u.Jy), rtol=1e-12)


def test_latex_has_the_digits_that_errors_leave(tmp_path):
    table = QTable({"filter": ["F560W", "SUB128_IP"], "rate": [12345.678, 0.5] * u.DN / u.s})
    table["rate_error"] = [23.456, np.nan] * u.DN / u.s
    table["tau"], table["tau_error"] = [200.0, 213.37] * u.day, [0.0, 0.0337] * u.day
    table["scatter"], table["area"] = [1.2345, np.nan] * u.percent, [2.84e-13, 56789.1]
    table["offset"] = [-0.25, 0.25]
    path = tables.write(table, tmp_path / "table.tex")

    lines = [[cell.strip(" \\") for cell in line.split("&")] for line in path.read_text().splitlines()]
    head, units, first, second = (line for line in lines if len(line) == 8)
    assert head == ["filter", "rate", "rate error", "tau", "tau error", "scatter", "area", "offset"]
    assert units[1] == r"$\mathrm{DN\,s^{-1}}$"
    assert first == [
        *("F560W", "12346", "23", "200", "0", "1.23", r"$2.84 \times 10^{-13}$", "$-0.25$"),
    ]
    assert second == [r"SUB128\_IP", "0.5", r"$\cdots$", "213.370", "0.034", r"$\cdots$", "56789", "0.25"]


@pytest.mark.parametrize("make", [tables.factors, tables.losses, tables.by_type, tables.observations])
def test_every_table_is_written_in_both_ways(calibrations, make, tmp_path):
    table = make(calibrations)

    read = QTable.read(tables.write(table, tmp_path / "table.ecsv"))
    assert read.colnames == table.colnames
    latex = Table.read(tables.write(table, tmp_path / "table.tex"), format="ascii.latex")
    # Its first row are the units.
    assert len(latex) == len(table) + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.ecsv", "table.tex"]


def test_a_table_is_not_lost(calibrations, tmp_path, monkeypatch):
    table = tables.factors(calibrations)
    path = tables.write(table, tmp_path / "factors.ecsv")
    before = path.read_text()

    with pytest.raises(FileExistsError, match=r"factors\.ecsv exists; overwrite must be True to replace it"):
        tables.write(table, path)
    monkeypatch.setattr(QTable, "write", lambda self, to, **_: to.write_text("half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tables.write(table, path, overwrite=True)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    tables.write(table[:1], path, overwrite=True)
    assert len(QTable.read(path)) == 1


def test_what_cannot_be_made_is_named(calibrations, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.ecsv or \.tex, got .*factors\.csv"):
        tables.write(tables.factors(calibrations), tmp_path / "factors.csv")
    for make in (tables.factors, tables.losses, tables.by_type, tables.observations):
        with pytest.raises(
            ValueError, match="there must be at least one filter that was calibrated, got none"
        ):
            make({})
    assert time_loss.YEAR == 365, "the description of the column loss says so"
