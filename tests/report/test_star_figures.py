"""Figures of the flux calibration: what is drawn is what was given."""

from dataclasses import replace

import numpy as np
import pytest
from astropy import units as u
from astropy.table import QTable, vstack
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.patches import Circle, Rectangle

from miri_steps.fluxcal.calibration import FilterCalibration
from miri_steps.fluxcal.encircled import EncircledEnergy, corrections
from miri_steps.fluxcal.factors import average, average_by_type
from miri_steps.fluxcal.photometry import Aperture, Measurement
from miri_steps.fluxcal.time_loss import T0, Fit, TimeLoss
from miri_steps.report import star_figures, svg

RATE, FACTOR = u.DN / u.s, u.MJy / u.sr / (u.DN / u.s)
LOSS = TimeLoss(0.03, 0.2, 200.0, np.zeros((3, 3)))
#: Single observations: the sixth is twice too large.
VALUES = np.array([0.40, 0.404, 0.396, 0.402, 0.398, 0.8, 0.401, 0.399])
STARS = ["10 Lac", "mu Col", "HD 2811", "del UMi", "18 Sco", "16 Cyg B", "HD 2811", "HD 2811"]
TYPES = ["hot", "hot", "A dwarf", "A dwarf", "solar analogue", "solar analogue", "A dwarf", "A dwarf"]
DAYS = np.array([10.0, 200, 30, 600, 900, 1000, 500, 1300])
SCALE = 50.0


def calibrate(band="F1000W", loss=LOSS, values=VALUES, fit=True):
    """Make the calibration of a filter, with one star seen three times; residuals of 0.1 %."""
    table = QTable({"name": STARS, "type": TYPES, "filter": [band] * len(STARS)})
    table["subarray"] = ["FULL", "SUB256", "SUB64", "FULL", "FULL", "SUB64", "SUB256", "NEW"]
    table["timemid"] = (T0 + DAYS) * u.day
    table["sensitivity"] = loss.sensitivity(T0 + DAYS)
    wrong = 1 + 1e-3 * np.array([0, 0, 1, 0, 0, 0, -1, 1])
    table["reference_rate"] = SCALE * table["sensitivity"] * wrong * RATE
    table["rate"], table["flux"] = table["reference_rate"], np.geomspace(0.01, 1, 8) * u.Jy
    table["background"], table["well_depth"] = np.arange(8) * RATE, 1000 * np.arange(8) * u.DN
    table["ngroups"], table["tgroup"] = 10, [2.0, 3, 4, 5, 6, 7, 0, np.nan] * u.s
    found = average(values, STARS)
    table["factor"], table["factor_error"] = values * FACTOR, 0.001 * values * FACTOR
    table["kept"], table["weight"] = found.kept, found.weight
    table["light"] = table["reference_rate"] * 1.3 * (2e-13 * u.sr)
    told = Fit(loss, {"HD 2811": 1.3 * 2e-13 * SCALE}, {}, {}, np.zeros(3), 1.0, 1) if fit else None
    kinds = average_by_type(values, STARS, TYPES)
    return FilterCalibration(band, found.value, found.error, loss, told, found, kinds, table)


def points_of(axis):
    """Points with error bars, of all groups."""
    return np.concatenate([np.column_stack(bars.lines[0].get_data()) for bars in axis.containers])


def rings_of(axis):
    found = [one for one in axis.collections if one.get_label() == "left out"]
    return np.concatenate([one.get_offsets() for one in found])


@pytest.fixture
def star():
    image = np.random.default_rng(1).normal(5, 0.1, (60, 80))
    y, x = np.indices(image.shape)
    image += 1000 * np.exp(-((x - 30.3) ** 2 + (y - 20.6) ** 2) / 4)
    image[:, :3] = np.nan
    found = Measurement(30.3, 20.6, 12345.678, 12.3, 12500.0, 5.0, 0.01, 0.1, 1000.0, 38.5, 0)
    return image, found, Aperture(3.5, (5.0, 7.0), 2.9)


def test_a_star_has_its_apertures_around_it(star):
    figure = star_figures.photometry(*star, title="star_i2d.fits")
    whole, near, _ = figure.axes

    circles = [patch for patch in near.patches if isinstance(patch, Circle)]
    assert sorted(circle.radius for circle in circles) == [3.5, 5.0, 7.0]
    assert {circle.center for circle in circles} == {(30.3, 20.6)}
    square = next(patch for patch in whole.patches if isinstance(patch, Rectangle))
    assert (*near.get_xlim(), *near.get_ylim()) == pytest.approx((21.55, 39.05, 11.85, 29.35))
    assert square.get_bbox().bounds == pytest.approx((21.55, 11.85, 17.5, 17.5))
    assert near.lines[-1].get_data() == ([30.3], [20.6])
    assert near.get_title() == "12346 \N{PLUS-MINUS SIGN} 12 DN/s"
    assert figure.get_suptitle() == "star_i2d.fits"


def test_the_cut_out_is_the_same_sky_as_the_image(star):
    image = star[0]
    whole, near, _ = star_figures.photometry(*star).axes

    left, right, low, high = (round(edge + 0.5) for edge in near.images[0].get_extent())
    np.testing.assert_array_equal(near.images[0].get_array(), image[low:high, left:right])
    assert near.images[0].norm is whole.images[0].norm
    assert near.images[0].norm.vmax == 1000.0


def test_of_a_large_image_every_few_pixels_are_drawn(star):
    image, found, aperture = star
    large = np.zeros((1600, 3200), np.float32)
    large[: image.shape[0], : image.shape[1]] = image
    whole, near, _ = star_figures.photometry(large, found, aperture).axes
    np.testing.assert_array_equal(whole.images[0].get_array(), large[::3, ::3])
    assert whole.images[0].get_extent() == [-0.5, 3200.5, -0.5, 1601.5]
    assert near.images[0].get_array().shape == (20, 20)


def test_a_star_at_the_edge_is_drawn_too(star):
    image, found, aperture = star
    figure = star_figures.photometry(image[18:, 28:], replace(found, x=2.3, y=2.6), aperture)
    near = figure.axes[1]
    assert near.get_xlim()[0] == pytest.approx(2.3 - 8.75)
    assert near.images[0].get_extent()[0] == -0.5
    assert svg.render(figure, "a")


@pytest.mark.parametrize(
    ("against", "expected"),
    [
        ("flux", np.geomspace(0.01, 1, 8)),
        ("time", 2000 + (T0 + DAYS - 51544.5) / 365.25),
        ("background", np.arange(8)),
        ("well depth", 1000 * np.arange(8)),
        ("rate", SCALE * LOSS.sensitivity(T0 + DAYS) * (1 + 1e-3 * np.array([0, 0, 1, 0, 0, 0, -1, 1]))),
        ("integration time", [20.0, 30, 40, 50, 60, 70]),
    ],
)
def test_factors_stand_where_their_quantity_is(against, expected):
    axis = star_figures.factors(calibrate(), against).axes[0]

    points = points_of(axis)
    points = points[np.argsort(points[:, 0])]
    np.testing.assert_allclose(points[:, 0], np.sort(expected), rtol=1e-6)
    order = np.argsort(expected)
    inside = VALUES[: len(expected)][order] < 0.5
    np.testing.assert_allclose(points[inside, 1], VALUES[: len(expected)][order][inside])
    # The one that is twice too large stands at the edge, and says so.
    assert 0.404 < points[~inside, 1][0] < axis.get_ylim()[1] < 0.42
    assert [text.get_text() for text in axis.texts] == ["+100 %"]
    assert rings_of(axis)[:, 1] == pytest.approx(points[~inside, 1])


def test_what_has_no_such_quantity_is_counted():
    axis = star_figures.factors(calibrate(), "integration time").axes[0]
    assert axis.get_xlabel() == "integration time [s]; not known of 2"
    assert len(points_of(axis)) == 6


@pytest.mark.parametrize(
    ("against", "classes", "number"),
    [
        ("type", ["hot", "A dwarf", "solar analogue"], [2, 4, 2]),
        ("subarray", ["FULL", "SUB256", "SUB64", "NEW"], [3, 2, 2, 1]),
    ],
)
def test_points_of_a_class_stand_beside_each_other(against, classes, number):
    axis = star_figures.factors(calibrate(), against).axes[0]

    assert [label.get_text() for label in axis.get_xticklabels()] == classes
    place = points_of(axis)[:, 0]
    assert len(np.unique(place)) == 8
    assert np.bincount(np.rint(place).astype(int)).tolist() == number
    assert np.abs(place - np.rint(place)).max() <= 0.3


def test_averages_are_lines():
    one = calibrate()
    axis = star_figures.factors(one, "type", published=0.41).axes[0]
    lines = {line.get_label(): line.get_ydata()[0] for line in axis.lines if len(line.get_ydata())}

    assert lines["average"] == one.factor == pytest.approx(0.4, rel=0.002)
    assert lines["its scatter"] == pytest.approx(one.factor - one.average.scatter)
    assert lines["published"] == 0.41
    segments = [
        one for lines in axis.collections if isinstance(lines, LineCollection) for one in lines.get_segments()
    ]
    level = {segment[0, 1] for segment in segments if len(segment) == 2 and np.ptp(segment[:, 0]) > 0.5}
    assert level == {average.value for average in one.by_type.values()}


def test_the_second_axis_is_in_percent():
    one = calibrate()
    figure = star_figures.factors(one, "flux")
    axis = figure.axes[0]
    figure.draw_without_rendering()

    expected = 100 * (np.array(axis.get_ylim()) / one.factor - 1)
    assert axis.child_axes[0].get_ylim() == pytest.approx(expected)


def test_a_summary_stands_above():
    one = calibrate()
    title = star_figures.factors(one, "flux").axes[0].get_title()
    error, scatter = f"{one.error:.4f}", 100 * one.average.scatter / one.factor
    # Of six stars that whose only observation is twice too large is left out.
    assert title == f"F1000W: {one.factor:.4f} \N{PLUS-MINUS SIGN} {error}, scatter {scatter:.2f} %, 5 stars"


def test_types_have_colours_and_subarrays_marks_of_their_own():
    bars = star_figures.factors(calibrate(), "time").axes[0].containers
    assert len({to_hex(one.lines[0].get_color()) for one in bars}) == 3
    assert len({one.lines[0].get_marker() for one in bars}) == 4


def test_equal_values_and_one_star_are_drawn():
    one = calibrate(values=np.full(8, 0.4))
    assert svg.render(star_figures.factors(one, "type"), "a")
    alone = replace(
        one,
        average=average([0.4], ["a"]),
        error=np.nan,
        observations=one.observations[:1],
        by_type=average_by_type([0.4], ["a"], ["hot"]),
    )
    figure = star_figures.factors(alone, "flux")
    assert figure.axes[0].get_title() == "F1000W: 0.4, 1 star"
    assert svg.render(figure, "a")


def test_what_factors_cannot_be_drawn_against_is_named():
    one = calibrate()
    with pytest.raises(ValueError, match="against must be one of flux, time, .*, subarray, got airmass"):
        star_figures.factors(one, "airmass")
    one.observations.remove_columns(["tgroup", "background"])
    with pytest.raises(
        ValueError, match="against integration time, .* F1000W .* ngroups, tgroup, but tgroup is"
    ):
        star_figures.factors(one, "integration time")
    with pytest.raises(ValueError, match="must have the columns background, but background is not there"):
        star_figures.factors(one, "background")
    one.observations["well_depth"] = np.nan * u.DN
    with pytest.raises(ValueError, match="the well depth of no observation of F1000W is known"):
        star_figures.factors(one, "well depth")


def test_repeated_stars_follow_the_loss_filter_below_filter():
    flat = TimeLoss(0.001, 0.0, 200.0, np.zeros((3, 3)))
    both = {"F770W": calibrate("F770W", flat), "F1000W": calibrate()}
    above, below = star_figures.repeatability(both).axes

    (first, points, second, lower) = above.lines
    again = np.array([2, 6, 7])
    wrong = np.array([1e-3, -1e-3, 1e-3])
    expected = flat.sensitivity(T0 + DAYS[again]) * (1 + wrong)
    np.testing.assert_allclose(points.get_ydata(), expected, rtol=1e-12)
    np.testing.assert_allclose(points.get_xdata(), 2000 + (T0 + DAYS[again] - 51544.5) / 365.25)
    # The curve of the other begins and ends at the same days, all of it below.
    expected = LOSS.sensitivity(T0 + DAYS[again]) * (1 + wrong)
    offset = (lower.get_ydata() - expected)[0]
    np.testing.assert_allclose(lower.get_ydata(), expected + offset, rtol=1e-12)
    ends = LOSS.sensitivity(T0 + np.array([30.0, 1300.0])) + offset
    np.testing.assert_allclose(second.get_ydata()[[0, -1]], ends)
    assert max(second.get_ydata().max(), lower.get_ydata().max()) < first.get_ydata().min()
    assert above.texts[1].get_text().strip().startswith(f"F1000W \N{MINUS SIGN} {-offset:.2f}\n")
    for line in below.lines[:2]:
        np.testing.assert_allclose(line.get_ydata(), 100 * wrong, rtol=1e-9)


def test_a_loss_that_was_given_is_drawn_at_the_mean_of_each_star():
    above, below = star_figures.repeatability({"F1000W": calibrate(fit=False)}).axes

    # 0.1, -0.1 and 0.1 % above the scale, whose mean is 0.0333 % above.
    expected = 100 * (np.array([1.001, 0.999, 1.001]) / (1 + 1e-3 / 3) - 1)
    np.testing.assert_allclose(below.lines[0].get_ydata(), expected, rtol=1e-9)


def test_a_star_that_was_only_dithered_is_drawn_at_its_mean():
    """It is not in the fit."""
    one = calibrate()
    other = one.observations[2:4].copy()
    other["name"] = ["mu Col"] * 2
    one = replace(one, observations=vstack([one.observations, other]))
    _, below = star_figures.repeatability({"F1000W": one}).axes

    dithered, fitted = (line.get_ydata() for line in below.lines[:2])
    np.testing.assert_allclose(fitted, [0.1, -0.1, 0.1], rtol=1e-9)
    # Residuals of 0, 0.1 and 0 % about their mean.
    np.testing.assert_allclose(dithered, 100 * (np.array([1, 1.001, 1]) / (1 + 1e-3 / 3) - 1), rtol=1e-9)


def test_filters_without_a_repeated_star_are_left_out():
    one = calibrate()
    single = replace(one, observations=one.observations[:4])
    figure = star_figures.repeatability({"F770W": single, "F1000W": one})
    assert [text.get_text().split()[0] for text in figure.axes[0].texts] == ["F1000W"]
    with pytest.raises(ValueError, match="a star that was seen again, but there is none in F770W"):
        star_figures.repeatability({"F770W": single})
    with pytest.raises(ValueError, match="none in no filter"):
        star_figures.repeatability({})
    one.observations.remove_column("sensitivity")
    with pytest.raises(ValueError, match="the observations of F1000W must have the column sensitivity"):
        star_figures.repeatability({"F1000W": one})


@pytest.fixture
def gaussian():
    radius = np.geomspace(0.2, 20, 100)
    return EncircledEnergy(radius, 1 - np.exp(-(radius**2) / 8))


def test_growth_curves_have_their_apertures_on_them(gaussian):
    found = corrections(gaussian)
    wide = EncircledEnergy(2 * gaussian.radius, gaussian.energy)
    figure = star_figures.encircled_energy({"narrow": gaussian, "wide": wide}, found)
    axis = figure.axes[0]

    np.testing.assert_array_equal(axis.lines[1].get_xdata(), wide.radius)
    np.testing.assert_array_equal(axis.lines[1].get_ydata(), wide.energy)
    x, y = axis.containers[0].lines[0].get_data()
    np.testing.assert_allclose(y, 1 - np.exp(-(x**2) / 8), atol=1e-4)
    ring = next(patch for patch in axis.patches if patch.get_label() == "background")
    assert (ring.get_x(), ring.get_x() + ring.get_width()) == pytest.approx(found.sky)
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels[:2] == ["narrow", "wide"] and "apertures, 1 data set" in labels
    figure.draw_without_rendering()
    arcsec = np.array(axis.get_xlim()) * 0.11
    assert axis.child_axes[0].get_xlim() == pytest.approx(arcsec)


def test_curves_need_no_apertures_but_there_must_be_one(gaussian):
    assert not star_figures.encircled_energy({"a": gaussian}).axes[0].patches
    with pytest.raises(ValueError, match="at least one growth curve, got none"):
        star_figures.encircled_energy({})


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["F560W", "F770W"], 2),
        (["jw01234001001_02101_00001_mirimage_cal.fits", "model"], 1),
        ([f"2MASS J17571324+6703409 {k}" for k in range(30)], 2),
    ],
)
def test_names_of_curves_have_room(gaussian, names, columns):
    figure = star_figures.encircled_energy(dict.fromkeys(names, gaussian), corrections(gaussian))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, page = legend.get_window_extent(), figure.bbox

    assert legend._ncols == columns
    assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0
    # The curves keep their place above.
    assert box.y1 < figure.axes[0].get_window_extent().y0
    labels = [text.get_text() for text in legend.get_texts()]
    expected = names if len(names) < 12 else [*names[:12], "18 more"]
    assert labels == [*expected, "background", "apertures, 1 data set"]


def test_apertures_say_what_they_come_from(gaussian):
    for number, words in ((0, "of the model"), (1, "1 data set"), (7, "7 data sets")):
        found = replace(corrections(gaussian), number=number)
        (legend,) = star_figures.encircled_energy({"a": gaussian}, found).legends
        assert legend.get_texts()[-1].get_text() == f"apertures, {words}"


def test_psfs_are_relative_to_their_peaks():
    image = np.array([[0.0, 1.0, np.nan], [2.0, 40.0, 2.0], [-1.0, 1.0, 0.001]])
    figure = star_figures.psfs({"F560W": image, "F770W": 10 * image, "F1000W": image})

    first, second, third, bar = figure.axes
    assert [axis.get_title() for axis in (first, second, third)] == ["F560W", "F770W", "F1000W"]
    assert second.get_xlabel() == "3 \N{MULTIPLICATION SIGN} 3 pixel"
    shown = first.images[0].get_array()
    expected = np.array([[1e-4, 0.025, 0], [0.05, 1, 0.05], [1e-4, 0.025, 1e-4]])
    np.testing.assert_allclose(np.ma.filled(shown, 0), expected)
    np.testing.assert_allclose(second.images[0].get_array(), shown)
    assert {(axis.images[0].norm.vmin, axis.images[0].norm.vmax) for axis in figure.axes[:3]} == {(1e-4, 1)}


@pytest.mark.parametrize(("number", "columns"), [(1, 1), (2, 2), (4, 4), (6, 3), (9, 3), (12, 4), (14, 5)])
def test_a_montage_leaves_little_empty(number, columns):
    figure = star_figures.psfs({str(k): np.eye(3) for k in range(number)})
    assert len(figure.axes) == number + 1
    assert figure.axes[0].get_gridspec().ncols == columns


def test_what_is_no_psf_is_named():
    with pytest.raises(ValueError, match="at least one PSF, got none"):
        star_figures.psfs({})
    with pytest.raises(ValueError, match="the PSF of F560W must have 2 dimensions, got 3"):
        star_figures.psfs({"F560W": np.ones((2, 3, 3))})
    for image, peak in ((np.zeros((3, 3)), "0.0"), (np.full((3, 3), np.nan), "nan")):
        with pytest.raises(ValueError, match=f"the peak of the PSF of F770W must be above 0, got {peak}"):
            star_figures.psfs({"F560W": np.eye(3), "F770W": image})


def test_figures_are_drawn_the_same_again_and_follow_the_page(gaussian, star):
    def draw():
        return [
            star_figures.photometry(*star),
            star_figures.factors(calibrate(), "type"),
            star_figures.repeatability({"F1000W": calibrate()}),
            star_figures.encircled_energy({"a": gaussian}, corrections(gaussian)),
        ]

    first, second = ([svg.render(figure, "a") for figure in draw()] for _ in range(2))
    assert first == second
    for text in first:
        assert "currentColor" in text and "#010203" not in text
