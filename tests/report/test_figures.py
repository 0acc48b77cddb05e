"""Figures of a report, and how they stand in the page."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from astropy.table import Table
from matplotlib.image import imread

from miri_steps.report import figures, svg

RNG = np.random.default_rng(1)
IMAGE = RNG.normal(5, 1, (40, 60))
IMAGE[:, :10] = np.nan


def picture():
    return figures.picture(IMAGE, label="sky [MJy/sr]", north=((0.3, 1.0), (-1.0, 0.3)))


def difference():
    return figures.difference(IMAGE, limit=2.0, label="later minus earlier", scale=0.5, corner=(10.0, -5.0))


def levels():
    visits = ["01234001001"] * 3 + ["01234001002"] * 3
    table = Table({"visit": visits, "level": [1, 1.1, 1, 2, np.nan, 2.1], "error": [0.1] * 5 + [np.nan]})
    return figures.levels(table, "MJy/sr")


def residuals():
    return figures.residuals(np.append(RNG.normal(0, 1, 500), [50.0, np.nan]))


def hot_pixels():
    return figures.hot_pixels(IMAGE > 7, IMAGE < 3)


def scatter():
    return figures.scatter(["tile A", "tile B", "tile C"], np.array([5.0, 40.0, np.nan]), limit=27.5)


ALL = [picture, difference, levels, residuals, hot_pixels, scatter]


@pytest.mark.parametrize("draw", ALL, ids=lambda draw: draw.__name__)
def test_a_figure_follows_the_colours_of_the_page(draw):
    text = svg.render(draw(), "a-1")

    assert text.startswith("<svg ") and text.endswith("</svg>")
    assert "currentColor" in text and "#010203" not in text and "#fdfcfb" not in text
    assert "<text" in text and "<metadata" not in text
    root = ElementTree.fromstring(text)
    assert "width" not in root.attrib and root.attrib["viewBox"]


@pytest.mark.parametrize("draw", ALL, ids=lambda draw: draw.__name__)
def test_ids_of_two_figures_are_different_and_all_are_found(draw):
    one, two = svg.render(draw(), "m1-a-1"), svg.render(draw(), "m1-a-2")

    first, second = (re.findall(r'\bid="([^"]+)"', text) for text in (one, two))
    assert len(set(first)) == len(first) and not set(first) & set(second)
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', one))
    assert {name for pair in used for name in pair if name} <= set(first)


def test_a_figure_is_drawn_the_same_again():
    assert svg.render(levels(), "a") == svg.render(levels(), "a")


def test_what_is_not_known_is_transparent_and_pixels_are_as_given():
    text = svg.render(figures.picture(IMAGE, label="sky", limits=(0, 10), linear=True), "a")

    images = [imread(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)\"", text)]
    shown = next(image for image in images if image.shape[:2] == IMAGE.shape)
    # matplotlib hands rows over from the top.
    np.testing.assert_array_equal(shown[::-1][..., 3] == 0, np.isnan(IMAGE))


def test_the_stretch_begins_below_the_sky_and_ends_below_the_stars():
    image = RNG.normal(5, 0.1, (200, 200))
    image[:3, :3] = 1e4
    image[50] = np.nan

    low, high = figures.stretch(image)

    assert 4.7 < low < 4.8 and 5.2 < high < 5.4
    assert figures.stretch(np.full((3, 3), np.nan)) == (0.0, 1.0)
    low, high = figures.stretch(np.ones((3, 3)))
    assert low <= 1 < high


def test_residuals_count_every_pair():
    axis = residuals().axes[0]

    assert sum(bar.get_height() for bar in axis.patches) == 501
    bell = axis.lines[0]
    width = axis.patches[0].get_width()
    area = np.sum(bell.get_ydata()[1:] * np.diff(bell.get_xdata()))
    assert area == pytest.approx(501 * width, rel=0.01)


def test_levels_of_visits_have_marks_of_their_own():
    axis = levels().axes[0]

    marks = {line.get_marker() for line in axis.lines if line.get_marker() not in ("None", "_", "|")}
    assert len(marks) == 2
    assert [text.get_text() for text in axis.figure.legends[0].texts] == ["01234001001", "01234001002"]


def test_no_number_of_tiles_or_pixels_makes_a_figure_huge():
    many = np.ones((256, 256), bool)
    assert len(svg.render(figures.hot_pixels(many, ~many), "a")) < 4e5
    names = [str(number) for number in range(300)]
    assert len(svg.render(figures.scatter(names, np.full(300, 5.0), limit=27.5), "a")) < 4e5


def test_no_figure_fails_where_there_is_nothing_to_show():
    nothing = np.full((5, 5), np.nan)
    table = Table({"visit": ["a"], "level": [np.nan], "error": [np.nan]})
    for figure in (
        figures.picture(nothing, label="sky"),
        figures.residuals(np.array([])),
        figures.levels(table, ""),
        figures.hot_pixels(nothing > 0, nothing > 0),
        figures.scatter([], np.array([]), limit=27.5),
    ):
        assert svg.render(figure, "a")
