"""What logs say of exposures."""

from miri_steps.report import logs

TIME = "2026-01-01 00:00:00,000"
LINES = [
    "2026-01-01T00:00:00.000 - stpipe.miri_steps.steps.median_hot_pixel - INFO - a_1_cal.fits: 108 hot and "
    "37 dead pixels and 345 holes found, 489 repaired, 1 left",
    f"{TIME} - stpipe.miri_steps.steps.tile_astrometry - WARNING - a_1_cal.fits is left as it is: x - y.",
    f"{TIME} - stpipe.step - INFO - a_2_cal.fits is fine.",
    f"{TIME} - stpipe.step - ERROR - a_12_cal.fits and a_2_cal.fits are lost",
    "    something else",
    "",
]


def test_lines_are_read_and_the_rest_is_left_out():
    found = logs.read_lines(LINES)

    assert [line.level for line in found] == ["INFO", "WARNING", "INFO", "ERROR"]
    assert found[1].step == "tile_astrometry" and found[1].text == "a_1_cal.fits is left as it is: x - y."
    assert logs.unique(found + found) == found


def test_exposures_get_the_lines_that_name_them_and_not_one_with_a_longer_name():
    found = logs.assign(logs.read_lines(LINES), ["a_1", "a_2", "a_12"])

    assert [line.level for line in found["a_1"]] == ["INFO", "WARNING"]
    assert [line.level for line in found["a_2"]] == ["ERROR"]
    assert [line.level for line in found["a_12"]] == ["ERROR"]


def test_repaired_pixels_are_counted_by_the_last_line_that_says_so():
    again = f"{TIME} - x - INFO - a_1_cal.fits: 5 hot and 6 dead pixels found, 7 flagged, 4 left in sources"

    assert logs.repaired(logs.read_lines(LINES)) == {"hot": 108, "dead": 37, "holes": 345, "repaired": 489}
    assert logs.repaired(logs.read_lines([*LINES, again])) == {"hot": 5, "dead": 6, "holes": 0, "repaired": 7}
    assert logs.repaired(logs.read_lines(LINES[1:])) is None


def test_files_in_a_folder_are_read(tmp_path):
    (tmp_path / "a.log").write_text("\n".join(LINES))
    (tmp_path / "b.log").write_bytes(b"\xff\xfe broken\n")
    (tmp_path / "c.txt").write_text(LINES[1])

    assert logs.read_files(tmp_path) == logs.read_lines(LINES)
