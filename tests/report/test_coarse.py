"""The mosaic before and after on a coarse grid."""

from types import SimpleNamespace

import numpy as np
import pytest

from miri_steps.report import coarse
from miri_steps.report.coarse import Grid


def a_grid(shape=(20, 30), block_scale=1.0):
    return Grid(None, block_scale, (-10, -5), shape)


def exposures(*tiles):
    return [SimpleNamespace(key=f"e{k}", tile=tile) for k, tile in enumerate(tiles)]


def cells(value, corner=(-10, -5), shape=(20, 30)):
    return SimpleNamespace(data=np.full(shape, value, np.float32), corner=corner)


def test_later_tiles_are_compared_with_what_they_come_to_lie_on():
    known = {
        "e0": cells(1.0, (-10, -5), (20, 10)),
        "e1": cells(3.0, (-10, -5), (20, 10)),
        "e2": cells(5.0, (-4, -5), (20, 10)),
        "e3": cells(6.0, (2, -5), (20, 10)),
    }

    found = coarse.accumulate(exposures("A", "A", "B", "C"), a_grid(), lambda each: known[each.key])

    assert found.between == "tiles" and found.n_exposures == 4
    np.testing.assert_allclose(found.difference[:, 6:10], 5.0 - 2.0)
    np.testing.assert_allclose(found.difference[:, 12:16], 6.0 - 5.0)
    assert np.isnan(found.difference[:, :6]).all() and np.isnan(found.difference[:, 16:]).all()
    np.testing.assert_allclose(found.image[:, 0], 2.0)
    np.testing.assert_allclose(found.image[:, 7], (1 + 3 + 5) / 3)
    assert set(found.count[:, 7]) == {3} and np.isnan(found.image[:, 29]).all()


def test_exposures_of_one_tile_are_compared_with_each_other():
    known = {"e0": cells(1.0), "e1": cells(1.5), "e2": None}

    found = coarse.accumulate(exposures("A", "A", "A"), a_grid(), lambda each: known[each.key])

    assert found.between == "exposures" and found.n_exposures == 2
    np.testing.assert_allclose(found.difference, 0.5)


def test_what_lies_beyond_the_window_is_cut_off():
    known = {"e0": cells(1.0, (-15, -8), (6, 8)), "e1": cells(2.0, (100, 100), (5, 5))}

    found = coarse.accumulate(exposures("A", "B"), a_grid(), lambda each: known[each.key])

    assert np.isfinite(found.image).sum() == 3 * 3
    assert np.isfinite(found.image[:3, :3]).all()


def test_there_is_nothing_without_cells():
    assert coarse.accumulate(exposures("A", "B"), a_grid(), lambda each: None) is None
    assert coarse.accumulate([], a_grid(), lambda each: None) is None


def test_blocks_are_means_of_what_is_known():
    image = np.arange(12.0).reshape(3, 4)
    image[0, 0] = np.nan
    image[2, :2] = np.nan

    binned = coarse.bin_image(image, 2)

    np.testing.assert_allclose(binned[0], [(1 + 4 + 5) / 3, (2 + 3 + 6 + 7) / 4])
    # The last row is half outside.
    assert np.isnan(binned[1, 0]) and binned[1, 1] == 10.5
    np.testing.assert_array_equal(coarse.bin_image(image, 1), image.astype(np.float32))


@pytest.mark.parametrize("side", [0.005, 0.3])
def test_a_window_holds_the_field_in_800_cells(side):
    corners = np.array([[83.6, -69.1], [83.6 + side / np.cos(np.radians(69.1)), -69.1 + side]])

    grid = Grid.around(corners)

    column, row = grid.wcs.wcs_world2pix(corners, 0).T
    assert (column >= grid.corner[0]).all() and (column <= grid.corner[0] + grid.shape[1] - 1).all()
    assert (row >= grid.corner[1]).all() and (row <= grid.corner[1] + grid.shape[0] - 1).all()
    assert max(grid.shape) <= 803 and grid.scale >= 0.33
    # East is to the left of the middle, North above.
    east, north = grid.edge
    assert east == pytest.approx(grid.shape[1] * grid.scale / 2, abs=2 * grid.scale)
    assert north == pytest.approx(-grid.shape[0] * grid.scale / 2, abs=2 * grid.scale)
