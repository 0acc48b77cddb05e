"""Parts of the page where there is little to show."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from miri_steps.report import parts
from miri_steps.report.coarse import Coarse, Grid
from miri_steps.report.collect import Exposure, Plane
from miri_steps.report.numbers import Differences


def a_mosaic(**known):
    nothing = {"exposures": [], "unit": "MJy/sr", "tables": {}, "log": [], "versions": {}, "references": {}}
    planes = {"detector_background": None, "super_backgrounds": [], "hot_pixels": []}
    return SimpleNamespace(**nothing | planes | known)


@pytest.mark.parametrize(
    "draw, word",
    [
        (parts.sky_levels, "save_levels"),
        (parts.detector_background, "save_detector_background"),
        (parts.super_background, "save_background"),
        (parts.hot_pixels, "save_mask"),
        (parts.astrometry, "save_corrections"),
        (parts.steps, "no exposure"),
        (parts.provenance, "none of its steps was run"),
    ],
)
def test_a_part_without_files_says_what_would_have_saved_them(draw, word):
    part = draw(a_mosaic())

    assert not part.figures and word in " ".join(part.notes)


def test_empty_images_are_named_and_not_drawn():
    empty = Plane(Path("a_background.fits"), np.full((1024, 1032), np.nan), count=np.zeros((1024, 1032)))

    for part in (
        parts.detector_background(a_mosaic(detector_background=empty)),
        parts.super_background(a_mosaic(super_backgrounds=[empty])),
    ):
        assert not part.figures and part.notes == ["a_background.fits is empty."]


def test_the_detector_background_is_shown_where_exposures_were_read():
    image = np.arange(1024 * 1032, dtype=float).reshape(1024, 1032)
    exposures = [Exposure("a", frame=(412, 50, 256, 256)), Exposure("b", frame=(400, 50, 256, 256))]

    window, corner = parts._matched_window(a_mosaic(exposures=exposures), image.shape)

    assert corner == (400, 50) and image[window].shape == (256, 268)
    # The imager begins right of the coronagraphs.
    (_, columns), (left, _) = parts._matched_window(a_mosaic(), image.shape)
    assert left > 300 and columns.stop <= 1032


def test_steps_tell_what_was_not_done_and_why():
    exposure = Exposure("a", status={"tweakreg": "SKIPPED", "super_background": "FAILED"})
    exposure.problems = ["a_cal.fits has no WCS"]

    part = parts.steps(a_mosaic(exposures=[exposure]))

    assert part.tables[0].head == ["exposure", "tweakreg", "super_background"]
    assert part.tables[0].rows == [["a", "○ SKIPPED", "✗ FAILED"]]
    assert part.tables[1].rows == [("a", "a_cal.fits has no WCS")]


def test_maps_of_differences_are_cut_to_the_overlap_and_stay_in_place():
    difference = np.full((50, 60), np.nan)
    difference[20:25, 30:40] = 0.1
    grid = Grid(None, 0.5, (-60, -50), (100, 120))
    side = Coarse(np.zeros((100, 120)), np.ones((100, 120), int), difference, 2, 3, "tiles")
    numbers = {"after": Differences(0.1, 0.1, 50)}

    part = parts.overlaps(a_mosaic(), None, side, grid, numbers)

    axis = part.figures[0].figure.axes[0]
    # Cells of 1 arcsec, two cells of margin; the window begins at 30.25 arcsec East, 25.25 South.
    assert axis.get_xlim() == pytest.approx((30.25 - 28, 30.25 - 42))
    assert axis.get_ylim() == pytest.approx((-25.25 + 18, -25.25 + 27))
    assert part.tables[0].rows == [("after", "0.1", "0.1", "50")]
