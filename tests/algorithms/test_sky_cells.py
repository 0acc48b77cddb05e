"""Cells of the sky grid: where they are, what they show, who shares them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miri_steps.algorithms import sky_cells
from miri_steps.algorithms.sky_cells import CutOut, DetectorPosition, Held, PixelMap, SkyCells

SETTINGS = settings(deadline=None, derandomize=True, max_examples=30)
N = 128
# The whole of a cell, as far as float32 can tell.
ALL = 0.99999
ROLLS = st.floats(0, 360)
SHIFTS = st.tuples(st.floats(-200, 200), st.floats(-200, 200))


def forward(*, side=4.0, roll=0.0, shift=(0.0, 0.0), distortion=0.0, flip=1):
    """Exact map from pixels to cells: a distortion of some pixels at the corners, a roll, a shift [pixel]."""
    c, s = np.cos(np.radians(roll)), np.sin(np.radians(roll))

    def to_grid(x, y):
        u, v = flip * (x - (N - 1) / 2), y - (N - 1) / 2
        a = u + distortion * (u**2 - u * v / 3) / N + distortion * u**3 / N**2
        b = v + distortion * (v**2 / 2 + u * v) / N - distortion * u * v**2 / N**2
        return (c * a - s * b + shift[0]) / side, (s * a + c * b + shift[1]) / side

    return to_grid


def pixel_map(origin=(0, 0), **how):
    mesh = np.linspace(0, N - 1, 9)
    return PixelMap(mesh, mesh, *forward(**how)(*np.meshgrid(mesh, mesh)), origin)


def aligned():
    """Cells of exactly 4 x 4 pixels; cell [0, 0] holds pixels 0 to 3."""
    mesh = np.linspace(0, N - 1, 9)
    return PixelMap(mesh, mesh, *np.meshgrid((mesh - 1.5) / 4, (mesh - 1.5) / 4))


def pixels():
    row, column = np.indices((N, N), float)
    return column, row


def at(position, column, row):
    """Evaluate a way back to the detector at single positions."""
    u, v = (column - position.center[0]) / position.half, (row - position.center[1]) / position.half
    return np.polynomial.polynomial.polyval2d(u, v, position.coefficients)


def scene(x, y):
    """Sky that changes little over a cell."""
    return np.sin(x / 17 + 0.3) + np.cos(y / 23) * np.sin((x + y) / 31)


# --- PixelMap ----------------------------------------------------------------------------------


@pytest.mark.parametrize("distortion", [0.0, 0.01, 0.03])
@pytest.mark.parametrize(("roll", "flip"), [(0, 1), (33, 1), (200, -1)])
def test_every_pixel_falls_where_it_should(distortion, roll, flip):
    how = {"roll": roll, "flip": flip, "distortion": distortion, "shift": (41.3, -17.9)}
    found = pixel_map(**how).at_pixels((N, N))
    assert found.shape == (N, N, 2)
    for axis, expected in enumerate(forward(**how)(*pixels())):
        np.testing.assert_allclose(found[..., axis] * 4, expected * 4, rtol=0, atol=1e-3)


@pytest.mark.parametrize("origin", [(0, 0), (356, 20)])
@pytest.mark.parametrize("distortion", [0.0, 0.01, 0.03])
@pytest.mark.parametrize(("roll", "flip"), [(0, 1), (33, 1), (200, -1)])
def test_cells_are_carried_back_to_their_pixels(distortion, roll, flip, origin):
    how = {"roll": roll, "flip": flip, "distortion": distortion, "shift": (41.3, -17.9)}
    x, y = at(pixel_map(origin, **how).inverse(), *forward(**how)(*pixels()))
    column, row = pixels()
    np.testing.assert_allclose(x, column + origin[0], rtol=0, atol=0.01)
    np.testing.assert_allclose(y, row + origin[1], rtol=0, atol=0.01)


@SETTINGS
@given(roll=ROLLS, shift=SHIFTS, side=st.floats(1.5, 9), flip=st.sampled_from([-1, 1]))
def test_cell_size_is_the_side_of_a_cell(roll, shift, side, flip):
    m = pixel_map(roll=roll, shift=shift, side=side, flip=flip)
    assert m.cell_size == pytest.approx(side, rel=1e-9)


def test_cell_size_of_a_distorted_map_is_the_mean_one():
    a, b = np.gradient(np.stack(forward(distortion=0.03)(*pixels())), axis=(1, 2))
    area = np.abs(a[0] * b[1] - a[1] * b[0]).mean()
    assert pixel_map(distortion=0.03).cell_size == pytest.approx(area**-0.5, rel=0.005)


@SETTINGS
@given(roll=ROLLS, shift=SHIFTS)
def test_window_holds_every_pixel(roll, shift):
    m = pixel_map(roll=roll, shift=shift)
    corner, (ny, nx) = m.window()
    at = m.at_pixels((N, N))
    # Half a pixel is an eighth of a cell on each side.
    assert np.all(at.min(axis=(0, 1)) - 0.125 >= corner - 0.5)
    assert np.all(at.max(axis=(0, 1)) + 0.125 <= corner + (nx, ny) - 0.5)
    assert nx * ny <= (np.ptp(at[..., 0]) + 4) * (np.ptp(at[..., 1]) + 4)


def test_a_moved_map_counts_from_another_corner():
    m = pixel_map(roll=20, origin=(5, 6))
    moved = m.moved(np.array([-10, 7]))
    np.testing.assert_allclose(moved.at_pixels((N, N)), m.at_pixels((N, N)) - [-10, 7], atol=1e-12)
    column, row = m.column[3], m.row[3]
    np.testing.assert_allclose(
        at(moved.inverse(), column + 10, row - 7), at(m.inverse(), column, row), atol=1e-9
    )


# --- resample ----------------------------------------------------------------------------------


@SETTINGS
@given(roll=ROLLS, shift=SHIFTS, value=st.floats(-1e5, 1e5, width=32), bad=st.floats(0, 0.3))
def test_a_constant_image_is_constant_and_nan_never_leaks(roll, shift, value, bad):
    image = np.full((N, N), value, np.float32)
    image[np.random.default_rng(1).random((N, N)) < bad] = np.nan
    before = image.copy()
    cells = sky_cells.resample(image, pixel_map(roll=roll, shift=shift), min_coverage=0.5)
    assert cells.data.dtype == np.float32
    assert np.all(cells.data[cells.seen] == np.float32(value))
    # Cells wholly inside the frame: 1024 less those on its outline.
    assert 880 < np.count_nonzero(cells.seen) < 1150
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("roll", [0, 90, 180, 270])
@SETTINGS
@given(shift=SHIFTS)
def test_a_ramp_is_exact_on_cells_of_whole_pixels(roll, shift):
    column, row = pixels()
    m = pixel_map(roll=roll, shift=shift)
    cells = sky_cells.resample(0.7 * column - 0.4 * row, m, min_coverage=ALL)
    x, y = cells.detector_positions()
    expected = 0.7 * x - 0.4 * y
    np.testing.assert_allclose(cells.data[cells.seen], expected[cells.seen], rtol=0, atol=1e-3)


@SETTINGS
@given(roll=ROLLS, shift=SHIFTS, side=st.floats(2, 8))
def test_a_ramp_is_unbiased_on_any_cells(roll, shift, side):
    column, _ = pixels()
    cells = sky_cells.resample(column, pixel_map(roll=roll, shift=shift, side=side), min_coverage=0.999)
    off = (cells.data - cells.detector_positions()[0])[cells.seen]
    assert abs(off.mean()) < 0.01
    # A pixel between two cells shows both the brightness of its middle.
    assert off.std() < 0.06
    assert np.abs(off).max() < 0.25


@SETTINGS
@given(roll=ROLLS, shift=SHIFTS, flip=st.sampled_from([-1, 1]))
def test_cells_show_the_sky_below_them(roll, shift, flip):
    how = {"roll": roll, "shift": shift, "flip": flip}
    to_grid = forward(**how)
    cells = sky_cells.resample(scene(*to_grid(*pixels())), pixel_map(**how), min_coverage=0.999)
    row, column = np.indices(cells.data.shape)
    truth = scene(column + cells.corner[0], row + cells.corner[1])
    off = (cells.data - truth)[cells.seen]
    assert np.abs(off).max() < 0.02
    assert abs(off.mean()) < 1e-3


def test_two_views_of_one_sky_agree():
    first, second = (
        sky_cells.resample(scene(*forward(**how)(*pixels())), pixel_map(**how))
        for how in ({"roll": 10, "shift": (3.3, 0)}, {"roll": 75, "shift": (-20.1, 14.7), "distortion": 0.02})
    )
    here, there = sky_cells.overlap(first, second)
    off = first.data[here] - second.data[there]
    assert np.count_nonzero(np.isfinite(off)) > 500
    assert np.nanmedian(np.abs(off)) < 0.002
    assert abs(np.nanmean(off)) < 0.001


def test_brightness_is_conserved():
    image = np.random.default_rng(2).normal(3, 1, (N, N))
    cells = sky_cells.resample(image, aligned())
    assert cells.data.shape == (32, 32)
    assert cells.corner == (0, 0)
    np.testing.assert_allclose(cells.data, image.reshape(32, 4, 32, 4).mean(axis=(1, 3)), rtol=0, atol=2e-6)
    assert cells.data.mean(dtype=float) == pytest.approx(image.mean(), abs=1e-6)


@pytest.mark.parametrize("background", [1e3, -1e3])
def test_a_small_signal_survives_a_large_background(background):
    signal = 1e-3 * scene(*pixels())
    m = pixel_map(roll=15)
    plain = sky_cells.resample(signal, m)
    raised = sky_cells.resample(signal + background, m)
    np.testing.assert_allclose(raised.data.astype(float) - background, plain.data, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(raised.seen, plain.seen)


@SETTINGS
@given(min_coverage=st.floats(0.1, 1), seed=st.integers(0, 1000), bad=st.floats(0, 0.6))
def test_cells_seen_in_part_are_left_out(min_coverage, seed, bad):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(N, N))
    image[rng.random((N, N)) < bad] = np.nan
    image[:40, :40] = np.nan
    covered = np.isfinite(image).reshape(32, 4, 32, 4).mean(axis=(1, 3))
    # A sixteenth is a pixel: thresholds between two counts of pixels tell the same for any rounding.
    threshold = (np.ceil(min_coverage * 16) - 0.5) / 16
    cells = sky_cells.resample(image, aligned(), min_coverage=threshold)
    if cells is None:
        assert not (covered > threshold).any()
        return
    whole = np.zeros((32, 32), bool)
    left, bottom = cells.corner
    whole[bottom : bottom + cells.data.shape[0], left : left + cells.data.shape[1]] = cells.seen
    np.testing.assert_array_equal(whole, covered > threshold)
    # The cut-out is as small as can be.
    assert all(cells.seen[edge].any() for edge in (0, -1))
    assert all(cells.seen[:, edge].any() for edge in (0, -1))


def test_whole_coverage_is_reached_by_whole_cells():
    image = np.ones((N, N))
    m = pixel_map(shift=(0.3, 0.3))
    assert np.count_nonzero(sky_cells.resample(image, m, min_coverage=ALL).seen) > 900
    cells = sky_cells.resample(image, m, min_coverage=1.0)
    assert cells is not None
    assert np.count_nonzero(cells.seen) > 900


def test_zeros_are_data():
    cells = sky_cells.resample(np.zeros((N, N), np.float32), aligned())
    assert cells.seen.all()
    np.testing.assert_array_equal(cells.data, np.zeros((32, 32)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_image_without_good_pixels_has_no_cells(bad):
    assert sky_cells.resample(np.full((N, N), bad), aligned()) is None


def test_an_image_of_scattered_pixels_has_no_cells():
    image = np.full((N, N), np.nan)
    image[::3, ::3] = 1.0
    assert sky_cells.resample(image, aligned()) is None


def test_infinite_pixels_are_not_used():
    image = np.full((N, N), 2.0)
    image[64, 64] = np.inf
    cells = sky_cells.resample(image, aligned())
    assert np.all(cells.data == 2.0)


@pytest.mark.parametrize("origin", [(0, 0), (356, 20)])
def test_cells_know_their_place_on_the_detector(origin):
    column, row = pixels()
    m = pixel_map(origin, roll=90, shift=(77, -31), distortion=0.02)
    for axis, image in enumerate((column + origin[0], row + origin[1])):
        cells = sky_cells.resample(image, m, min_coverage=0.999)
        off = (cells.data - cells.detector_positions()[axis])[cells.seen]
        assert abs(np.mean(off)) < 0.005
        assert np.max(np.abs(off)) < 0.1
    assert cells.cell_size == m.cell_size


# --- overlap and shared_by ---------------------------------------------------------------------

CUT_OUTS = st.tuples(st.integers(-8, 8), st.integers(-8, 8), st.integers(1, 9), st.integers(1, 9))


def cut_out(left, bottom, nx, ny, rng=None):
    data = np.zeros((ny, nx), np.float32)
    if rng is not None:
        data[rng.random(data.shape) < 0.3] = np.nan
    return SkyCells(data, DetectorPosition((0.0, 0.0), 1.0, np.zeros((1, 1, 2))), (left, bottom), 4.0)


def on_common_grid(cells, values):
    """Lay a cut-out on a grid that holds all of them."""
    grid = np.zeros((40, 40), np.asarray(values).dtype)
    left, bottom = cells.corner[0] + 10, cells.corner[1] + 10
    grid[bottom : bottom + cells.data.shape[0], left : left + cells.data.shape[1]] = values
    return grid


@SETTINGS
@given(a=CUT_OUTS, b=CUT_OUTS)
def test_overlap_is_what_both_cover(a, b):
    first, second = cut_out(*a), cut_out(*b)
    windows, exchanged = sky_cells.overlap(first, second), sky_cells.overlap(second, first)
    both = on_common_grid(first, True) & on_common_grid(second, True)
    if not both.any():
        assert windows is None
        assert exchanged is None
        return
    assert exchanged == windows[::-1]
    for cells, window in zip((first, second), windows, strict=True):
        marked = np.zeros(cells.data.shape, bool)
        marked[window] = True
        np.testing.assert_array_equal(on_common_grid(cells, marked), both)


def test_neighbours_that_only_touch_do_not_overlap():
    assert sky_cells.overlap(cut_out(0, 0, 4, 4), cut_out(4, 0, 4, 4)) is None
    assert sky_cells.overlap(cut_out(0, 0, 4, 4), cut_out(0, 4, 4, 4)) is None
    assert sky_cells.overlap(cut_out(0, 0, 4, 4), cut_out(3, 3, 4, 4)) is not None


@SETTINGS
@given(places=st.lists(CUT_OUTS, min_size=1, max_size=7), seed=st.integers(0, 1000))
def test_cells_are_shared_by_as_many_as_a_common_array_counts(places, seed):
    rng = np.random.default_rng(seed)
    cells = [cut_out(*place, rng) for place in places]
    everywhere = sum(on_common_grid(c, c.seen).astype(int) for c in cells)
    for k, c in enumerate(cells):
        others = [other for j, other in enumerate(cells) if j != k and sky_cells.overlap(c, other)]
        count = sky_cells.shared_by(c, others)
        assert count.min() >= 1
        here = on_common_grid(c, c.seen)
        np.testing.assert_array_equal(on_common_grid(c, count) * here, everywhere * here)


# --- CutOut ------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", [(0, 0), (356, 20)])
def test_a_cut_out_knows_its_cells_without_their_brightness(origin):
    image = np.random.default_rng(4).normal(size=(N, N))
    image[:30] = image[:, 90:] = np.nan
    cells = sky_cells.resample(image, pixel_map(origin, roll=33, distortion=0.02))
    found = CutOut.of(cells)
    np.testing.assert_array_equal(found.seen, cells.seen)
    assert found.shape == cells.shape == cells.data.shape
    # What is used lies between these columns and rows of pixels, to the cell.
    np.testing.assert_allclose(
        found.reach, [(origin[0], origin[0] + 89), (origin[1] + 30, origin[1] + 127)], atol=4
    )
    again = found.load()
    np.testing.assert_array_equal(again.data, cells.data)
    assert again == cells
    assert sky_cells.overlap(found, cut_out(0, 0, 4, 4)) == sky_cells.overlap(cells, cut_out(0, 0, 4, 4))


def test_brightness_is_put_away_under_its_name():
    away = {}

    def keep(name, array):
        away[name] = array
        return Held(array)

    cells = sky_cells.resample(np.ones((N, N)), aligned())
    assert CutOut.of(cells, keep=keep, name="first").load() == cells
    assert list(away) == ["first"]
    np.testing.assert_array_equal(away["first"], cells.data)


# --- noise -------------------------------------------------------------------------------------


# What is told does not depend on the roll: small and large cells are tried along the pixels and across them.
@pytest.mark.parametrize(("side", "roll"), [(2.0, 0.0), (2.0, 45.0), (4.0, 25.0), (8.0, 0.0), (8.0, 45.0)])
def test_noise_of_the_mean_is_as_told(side, roll):
    m = pixel_map(side=side, roll=roll, shift=(1.3, 0.4))
    rng = np.random.default_rng(3)
    means, naive = [], []
    for _ in range(300):
        cells = sky_cells.resample(rng.normal(size=(N, N)), m)
        values = cells.data[cells.seen]
        means.append(values.mean(dtype=float))
        naive.append(values.std() / np.sqrt(values.size))
    measured = np.std(means) / np.mean(naive)
    assert measured == pytest.approx(sky_cells.noise_correlation(side), rel=0.1)


@SETTINGS
@given(side=st.floats(1, 50))
def test_correlation_fades_with_larger_cells(side):
    assert 1 < sky_cells.noise_correlation(side + 1) < sky_cells.noise_correlation(side) <= 1.5
