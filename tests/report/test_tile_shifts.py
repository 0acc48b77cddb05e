"""The figure of tile corrections: what is drawn where, and how it is called."""

import numpy as np
import pytest
from astropy import units as u
from astropy.table import Table

pytest.importorskip("matplotlib")

from matplotlib.patches import Circle, FancyArrowPatch  # noqa: E402
from matplotlib.quiver import Quiver  # noqa: E402

from miri_steps.report import tile_shifts  # noqa: E402

TILES = {"ra": u.deg, "dec": u.deg, "shift_east": u.arcsec, "shift_north": u.arcsec, "rotation": u.arcsec}
EXPOSURES = {"ra": u.deg, "dec": u.deg, "shift_east": u.arcsec, "shift_north": u.arcsec}
SHIFTS = np.array([[0.10, -0.12], [-0.97, 1.05], [0.18, 0.03]])


def name(tile, exposure):
    return f"jw02731001{tile:03d}_02101_{exposure:05d}_mirimage"


def tables(shifts=SHIFTS, per_tile=4, *, ra=80.0, dec=-69.5, scatter=0.01, step=70.0, band="F560W"):
    """Make tiles in a row towards the East, each with exposures around it."""
    rng = np.random.default_rng(1)
    tiles, exposures = [], []
    for number, shift in enumerate(np.atleast_2d(shifts), start=1):
        tile = f"02731001{number:03d} N{number:09d}"
        there = (ra + (number - 1) * step / 3600 / np.cos(np.radians(dec))) % 360, dec
        tiles.append((tile, band, *there, *shift, 0.0, 1e3 * scatter))
        for k in range(1, per_tile + 1):
            place = (there[0] + rng.normal(0, 1e-3)) % 360, dec + rng.normal(0, 1e-3)
            own = shift + rng.normal(0, scatter, 2)
            exposures.append((name(number, k), tile, band, *place, *own, True))
    tiles = Table(rows=tiles, names=["tile", "filter", *TILES, "scatter"], units={**TILES, "scatter": u.mas})
    names = ["exposure", "tile", "filter", *EXPOSURES, "used"]
    return tiles, Table(rows=exposures, names=names, units=EXPOSURES)


def drawn(figure):
    """Return the axes that can be seen: the sky, and the target of each tile."""
    figure.draw_without_rendering()
    sky, *targets = [axis for axis in figure.axes if axis.get_visible()]
    return sky, targets


def quiver(sky, label):
    return next(
        artist for artist in sky.collections if isinstance(artist, Quiver) and artist.get_label() == label
    )


def vectors(arrows):
    return np.column_stack([arrows.U, arrows.V])


def texts(axis):
    return [text.get_text() for text in axis.texts]


def test_arrows_of_tiles_point_along_their_shifts_all_to_the_scale_of_the_key():
    tiles, exposures = tables()

    sky, _ = drawn(tile_shifts.draw(tiles, exposures))

    arrows, key = vectors(quiver(sky, "tiles")), vectors(quiver(sky, "key"))[0]
    scale = np.hypot(*arrows.T) / np.hypot(*SHIFTS.T)
    np.testing.assert_allclose(scale, scale[0], rtol=1e-6)
    # The field is small, but its tiles lie at RA of their own: North there is not quite up here.
    np.testing.assert_allclose(arrows / scale[0], SHIFTS, atol=2e-3)
    assert "1 arcsec" in texts(sky)
    assert np.hypot(*key) == pytest.approx(scale[0] * 1.0)


def test_east_is_to_the_left_and_tiles_are_where_they_are():
    tiles, exposures = tables()

    sky, targets = drawn(tile_shifts.draw(tiles, exposures))

    x, y = quiver(sky, "tiles").XY.T
    np.testing.assert_allclose(np.diff(x), 70.0, rtol=1e-4)
    np.testing.assert_allclose(y, y.mean(), atol=0.1)
    for axis in (sky, *targets):
        assert axis.get_xlim()[0] > axis.get_xlim()[1]
        assert axis.get_ylim()[0] < axis.get_ylim()[1]
        assert axis.get_aspect() == 1.0


def test_thin_arrows_are_the_fits_of_the_exposures_that_were_used():
    tiles, exposures = tables()
    exposures["used"][5] = False

    sky, _ = drawn(tile_shifts.draw(tiles, exposures))

    thin, bold = quiver(sky, "used"), quiver(sky, "tiles")
    own = np.column_stack([exposures["shift_east"], exposures["shift_north"]])[exposures["used"]]
    scale = np.hypot(*vectors(bold)[0]) / np.hypot(*SHIFTS[0])
    np.testing.assert_allclose(vectors(thin) / scale, own, atol=2e-3)
    assert thin.width < bold.width
    assert not np.array_equal(thin.get_facecolor(), bold.get_facecolor())


def test_rejected_exposures_are_dashed_named_and_cut_inside_the_sky():
    tiles, exposures = tables()
    exposures["used"][[1, 6]] = False
    exposures["shift_east"][1] += 40.0

    sky, targets = drawn(tile_shifts.draw(tiles, exposures))

    dashed = [patch for patch in sky.patches if isinstance(patch, FancyArrowPatch)]
    assert len(dashed) == 2
    assert all(patch.get_linestyle() != "-" for patch in dashed)
    assert {"02101_00002", "02101_00003"} <= set(texts(sky))
    box = sky.get_window_extent()
    for patch in dashed:
        x, y = sky.transData.transform(patch.get_path().vertices).T
        assert box.x0 <= x.min() and x.max() <= box.x1 and box.y0 <= y.min() and y.max() <= box.y1
    # In its target it is too far away to be seen: an arrow at the rim says how far.
    assert "02101_00002 40 arcsec" in texts(targets[0])
    assert any(text.startswith("02101_00003") for text in texts(targets[1]))
    assert len(targets[2].texts) == 0


def test_targets_show_differences_from_the_tile_in_mas_with_the_scatter_as_a_circle():
    tiles, exposures = tables()

    _, targets = drawn(tile_shifts.draw(tiles, exposures))

    own = np.column_stack([exposures["shift_east"], exposures["shift_north"]]).reshape(3, 4, 2)
    assert len(targets) == 3
    for k, axis in enumerate(targets):
        shots = next(line for line in axis.lines if line.get_marker() == "o").get_xydata()
        np.testing.assert_allclose(shots, 1e3 * (own[k] - SHIFTS[k]), atol=0.05)
        circle = next(patch for patch in axis.patches if isinstance(patch, Circle))
        assert circle.radius == pytest.approx(10.0)
        assert axis.get_xlim()[0] > np.abs(shots).max()
        assert axis.get_title() == f"{k + 1}: {tiles['tile'][k]}\nF560W, 4 of 4 used, scatter 10.0 mas"


def test_a_rotation_of_the_tile_is_no_scatter():
    tiles, exposures = tables(SHIFTS[:1], scatter=0.0)
    rotation = 1e-3
    tiles["rotation"] = (rotation * u.rad).to(u.arcsec)
    east = (exposures["ra"] - 80.0) * 3600 * np.cos(np.radians(-69.5))
    north = (exposures["dec"] + 69.5) * 3600
    exposures["shift_east"] -= rotation * north
    exposures["shift_north"] += rotation * east

    _, (target,) = drawn(tile_shifts.draw(tiles, exposures))

    shots = next(line for line in target.lines if line.get_marker() == "o").get_xydata()
    np.testing.assert_allclose(shots, 0.0, atol=0.05)


def test_a_tile_without_a_correction_is_marked_and_its_fits_are_seen_about_their_median():
    tiles, exposures = tables()
    for column in (*TILES, "scatter"):
        tiles[column][1] = np.nan
    exposures["used"][4:8] = False

    sky, targets = drawn(tile_shifts.draw(tiles, exposures))

    square = next(line for line in sky.lines if line.get_marker() == "s").get_xydata()
    np.testing.assert_allclose(square[0], quiver(sky, "tiles").XY[1], atol=1e-6)
    middle = np.mean(quiver(sky, "tiles").XY[[0, 2]], axis=0)
    np.testing.assert_allclose(square[0], middle, atol=5.0)
    assert targets[1].get_title().endswith("F560W, 0 of 4 used, no correction")
    crosses = np.array([line.get_xydata()[0] for line in targets[1].lines if line.get_marker() == "x"])
    np.testing.assert_allclose(np.median(crosses, axis=0), 0.0, atol=1e-9)
    assert not any(isinstance(patch, Circle) for patch in targets[1].patches)


@pytest.mark.parametrize("dec", [0.0, 85.0, -89.0])
def test_a_field_across_ra_0_near_a_pole_is_one_field(dec):
    tiles, exposures = tables(ra=359.999, dec=dec)

    sky, _ = drawn(tile_shifts.draw(tiles, exposures))

    x, y = quiver(sky, "tiles").XY.T
    # Arcs of a small circle of constant declination, not chords across the sky.
    np.testing.assert_allclose(np.hypot(np.diff(x), np.diff(y)), 70.0, rtol=1e-2)
    assert np.ptp(sky.get_xlim()) < 400


@pytest.mark.parametrize("n", [5, 20])
def test_labels_of_many_tiles_do_not_overlap(n):
    rng = np.random.default_rng(2)
    tiles, exposures = tables(rng.normal(0.1, 0.05, (n, 2)))
    # In rows of five.
    for table in (tiles, exposures):
        number = np.array([int(tile[8:11]) - 1 for tile in table["tile"]])
        table["ra"] -= (number - number % 5) * 70 / 3600 / np.cos(np.radians(-69.5))
        table["dec"] += (number // 5) * 100 / 3600

    figure = tile_shifts.draw(tiles, exposures)
    sky, targets = drawn(figure)

    numbers = [text for text in sky.texts if text.get_text().isdigit()]
    assert [text.get_text() for text in numbers] == [str(k) for k in range(1, n + 1)]
    assert not overlaps([text.get_window_extent() for text in numbers])
    assert not overlaps([axis.title.get_window_extent() for axis in targets])
    assert not overlaps([axis.get_window_extent() for axis in targets])


def overlaps(boxes):
    return [(a, b) for k, a in enumerate(boxes) for b in boxes[:k] if a.overlaps(b)]


def test_where_no_tile_has_a_correction_the_fits_set_the_scale():
    tiles, exposures = tables()
    tiles["shift_east"] = np.nan
    exposures["used"] = False

    sky, _ = drawn(tile_shifts.draw(tiles, exposures))

    longest = np.hypot(exposures["shift_east"], exposures["shift_north"]).max()
    scale = quiver(sky, "key").U[0] / -1.0
    assert "1 arcsec" in texts(sky)
    assert scale * longest == pytest.approx(0.9 * 70.0, rel=1e-3)


def test_tiles_at_one_place_share_their_label():
    tiles, exposures = tables(SHIFTS, step=0.5)

    sky, targets = drawn(tile_shifts.draw(tiles, exposures))

    assert "1,2,3" in texts(sky)
    assert len(targets) == 3


def test_a_tile_seen_in_two_filters_has_one_number_and_two_targets():
    both = [tables(SHIFTS, band=band) for band in ("F560W", "F770W")]
    tiles, exposures = (np.concatenate([np.asarray(pair[k]) for pair in both]) for k in (0, 1))

    sky, targets = drawn(tile_shifts.draw(Table(tiles), Table(exposures)))

    assert sorted(text for text in texts(sky) if text.isdigit()) == ["1", "2", "3"]
    assert [axis.get_title().split("\n")[1][:15] for axis in targets[2:4]] == [
        "F560W, 4 of 4 u",
        "F770W, 4 of 4 u",
    ]


def test_one_exposure_in_one_tile():
    tiles, exposures = tables(SHIFTS[:1], per_tile=1)
    tiles["scatter"] = np.nan

    sky, (target,) = drawn(tile_shifts.draw(tiles, exposures))

    assert quiver(sky, "tiles").N == quiver(sky, "used").N == 1
    assert target.get_title().endswith("F560W, 1 of 1 used")


def test_exposures_without_fits_and_tables_without_rows_can_be_drawn():
    tiles, exposures = tables()
    exposures["shift_east"] = exposures["shift_north"] = np.nan
    exposures["used"][0] = False

    # Measured directly: exposures were used, but not fitted one by one.
    _, targets = drawn(tile_shifts.draw(tiles, exposures))
    assert targets[0].get_title().split("\n")[1] == "F560W, 3 of 4 used, scatter 10.0 mas"
    assert any(isinstance(patch, Circle) for patch in targets[0].patches)

    sky, targets = drawn(tile_shifts.draw(tiles[:0], exposures))
    assert not targets
    assert quiver(sky, "tiles").N == 0

    _, targets = drawn(tile_shifts.draw(tiles, exposures[:0]))
    assert targets[0].get_title().split("\n")[1] == "F560W, scatter 10.0 mas"


def test_the_saved_table_gives_the_same_figure_and_a_picture(tmp_path):
    tiles, exposures = tables()
    tiles["filter"][1] = ""
    tiles["shift_east"][2] = np.nan
    for table, stem in ((tiles, "tiles"), (exposures, "exposures")):
        table.write(tmp_path / f"{stem}.ecsv", format="ascii.ecsv")
    read = [Table.read(tmp_path / f"{stem}.ecsv") for stem in ("tiles", "exposures")]

    direct, saved = tile_shifts.draw(tiles, exposures), tile_shifts.draw(*read)

    (sky, targets), (sky_again, targets_again) = drawn(direct), drawn(saved)
    for first, second in zip(targets, targets_again, strict=True):
        assert first.get_title() == second.get_title()
    expected, found = (vectors(quiver(axis, "tiles")) for axis in (sky, sky_again))
    np.testing.assert_allclose(found[:2], expected[:2])
    saved.savefig(tmp_path / "tiles.png")
    assert (tmp_path / "tiles.png").read_bytes().startswith(b"\x89PNG")


def test_inputs_stay_as_they_are():
    tiles, exposures = tables()
    tiles["ra"][0] = np.nan
    before = tiles.copy(), exposures.copy()

    tile_shifts.draw(tiles, exposures)

    for table, copy in zip((tiles, exposures), before, strict=True):
        assert table.colnames == copy.colnames
        for column in table.colnames:
            np.testing.assert_array_equal(table[column], copy[column])


def test_missing_columns_are_named():
    tiles, exposures = tables()

    with pytest.raises(ValueError, match="tiles must have the columns tile, .*, but scatter is missing"):
        tile_shifts.draw(tiles["tile", "filter", *TILES], exposures)
    with pytest.raises(ValueError, match="exposures must have the columns .*, but used is missing"):
        tile_shifts.draw(tiles, exposures["exposure", "tile", "filter", *EXPOSURES])
