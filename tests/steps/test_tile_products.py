"""The table of exposures that goes with the corrections of tiles."""

import numpy as np
import pytest
from astropy import units as u
from astropy.table import QTable

from miri_steps import TileAstrometryStep
from miri_steps.report import tile_shifts


@pytest.fixture(scope="module")
def saved(askew, tmp_path_factory):
    """Save both tables of a field of two tiles that are off by 0.2 and 1.2 arcsec."""
    folder = tmp_path_factory.mktemp("saved")
    TileAstrometryStep.call(str(askew.association), save_corrections=True, output_dir=str(folder))
    return folder


def test_exposures_are_saved_with_what_tweakreg_found(saved, askew):
    table = QTable.read(saved / "field_tile_exposures.ecsv")

    assert list(table["exposure"]) == askew.names
    assert table.colnames == [
        *("exposure", "tile", "filter", "ra", "dec", "shift_east", "shift_north", "used")
    ]
    assert [name[:11] for name in table["tile"]] == list(askew.visit)
    found = np.column_stack([table[name].to_value(u.arcsec) for name in ("shift_east", "shift_north")])
    np.testing.assert_allclose(found, [[0.2, -0.1], [0.2, -0.1], [-0.9, 0.8]], atol=0.06)
    assert table["used"].all()


def test_a_figure_can_be_drawn_from_the_saved_tables(saved):
    tables = [QTable.read(saved / f"field_{name}.ecsv") for name in ("tiles", "tile_exposures")]

    figure = tile_shifts.draw(*tables)

    titles = [axis.get_title() for axis in figure.subfigs[1].axes if axis.get_visible()]
    assert len(titles) == 2 and "2 of 2 used" in titles[0]


def test_where_no_corrections_are_saved_no_exposures_are(saved, askew, tmp_path, caplog):
    TileAstrometryStep.call(
        str(askew.association),
        corrections=str(saved / "field_tiles.ecsv"),
        save_corrections=True,
        output_dir=str(tmp_path),
    )

    assert not list(tmp_path.iterdir())
    assert "No corrections are saved: none were measured" in caplog.text
