"""Corrections over the sphere, and their averages, against known truth and the real shifts of tweakreg."""

from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from miri_steps.algorithms import tile_shifts

REAL = Path(__file__).parents[3] / "shared" / "data" / "tweakreg_shifts.ecsv"
# Averages published with the real shifts: clipped means, East and North [arcsec].
PUBLISHED = {
    "01040001001": (0.10637643, -0.11768223),
    "01040001002": (0.10700657, -0.13107962),
    "01040001003": (0.10163924, -0.12152159),
    "01040001004": (0.09065353, -0.12144904),
    "01040001005": (-0.97575431, 1.04564991),
    "02731002001": (0.18453315, -0.03236585),
    "02731002002": (0.18538585, -0.03966800),
    "02731002003": (1.75057508, -1.82668333),
    "02731002004": (0.18747005, -0.03952807),
    "02731002005": (0.18938012, -0.03749062),
}
needs_real = pytest.mark.skipif(not REAL.exists(), reason="the real shifts are not here")


def rng(seed=1):
    return np.random.default_rng(seed)


def turned(shift, angle):
    c, s = np.cos(angle), np.sin(angle)
    return shift @ [[c, s], [-s, c]]


# ---- over the sphere --------------------------------------------------------------------------------------


def moved(position, shift, rotation, points):
    """Move points by a shift and a rotation about a position, in its tangent frame [deg]."""
    middle = SkyCoord(*position, unit="deg").skyoffset_frame()
    frame = SkyCoord(*np.transpose(points), unit="deg").transform_to(middle)
    lon, lat = frame.lon.wrap_at("180d").arcsec, frame.lat.arcsec
    lon, lat = lon - rotation * lat + shift[0], lat + rotation * lon + shift[1]
    there = SkyCoord(lon, lat, unit="arcsec", frame=middle).icrs
    return np.column_stack([there.ra.deg, there.dec.deg])


@pytest.mark.parametrize("dec", [-89.0, -69.0, 0.0, 34.0, 80.0])
def test_a_carried_correction_moves_the_sky_as_the_first_one_does(dec):
    here, there = np.array([83.0, dec]), np.array([83.0 + 0.05 / np.cos(np.radians(dec)), dec + 0.04])
    shift, rotation = np.array([1.2, -0.7]), 3e-4
    stars = there + np.array([[0.0, 0.0], [0.01 / np.cos(np.radians(dec)), 0.0], [0.0, 0.01]])

    carried, turn = tile_shifts.carry(shift, rotation, here, there)

    first, second = moved(here, shift, rotation, stars), moved(there, carried, turn, stars)
    apart = SkyCoord(*first.T, unit="deg").separation(SkyCoord(*second.T, unit="deg"))
    assert apart.arcsec.max() < 2e-4
    # What it takes: the shift alone would be off by the lever arm of the rotation.
    assert np.hypot(*(carried - shift)) > 0.05


def test_a_correction_comes_back_as_it_was_and_is_its_own_at_its_own_place():
    here, there = rng().uniform([0, -80], [360, 80], (2, 50, 2))
    shift, rotation = rng(2).normal(size=(50, 2)), rng(3).normal(0, 1e-3, 50)

    same = tile_shifts.carry(shift, rotation, here, here)
    back = tile_shifts.carry(*tile_shifts.carry(shift, rotation, here, there), there, here)

    for result in (same, back):
        np.testing.assert_allclose(result[0], shift, atol=1e-9)
        np.testing.assert_allclose(result[1], rotation, atol=1e-13)


def test_across_the_zero_of_right_ascension_nothing_happens():
    shift, _ = tile_shifts.carry([0.3, -0.2], 0.0, [359.999, 10.0], [0.001, 10.0])

    np.testing.assert_allclose(shift, [0.3, -0.2], atol=1e-5)


# ---- averages ---------------------------------------------------------------------------------------------


@needs_real
@pytest.mark.parametrize("angle", [0.0, 0.7, 2.5])
def test_real_tiles_have_their_published_averages_and_the_failed_fit_is_out(angle):
    real = Table.read(REAL)
    for visit, published in PUBLISHED.items():
        rows = real[real["visit_id"] == visit]
        shift = np.column_stack([rows["shift_east"], rows["shift_north"]])

        found = tile_shifts.average(turned(shift, angle))

        assert np.hypot(*(turned(found.shift, -angle) - published)) < 0.003
        rejected = [name.split("_")[2] for name in rows["exposure"][~found.used]]
        assert rejected == (["00002"] if visit == "02731002003" else [])


def test_the_mean_its_error_and_the_scatter_are_those_of_the_sample():
    shift = np.array([[0.10, -0.20], [0.11, -0.21], [0.12, -0.19], [0.10, -0.22]])

    found = tile_shifts.average(shift)

    np.testing.assert_allclose(found.shift, shift.mean(axis=0))
    np.testing.assert_allclose(found.error, shift.std(axis=0, ddof=1) / 2)
    assert found.scatter == pytest.approx(np.sqrt(shift.var(axis=0, ddof=1).mean()))
    assert found.used.all()
    assert found.rotation == 0


def test_stated_errors_are_those_of_many_tiles():
    truth = np.array([1.1, -0.6])
    found = [tile_shifts.average(truth + rng(k).normal(0, 0.02, (10, 2))) for k in range(500)]
    off = np.array([each.shift - truth for each in found])

    assert off.std() == pytest.approx(0.02 / np.sqrt(10), rel=0.1)
    assert np.abs(off.mean(axis=0)).max() < 0.001
    assert np.sqrt(np.mean([each.error**2 for each in found])) == pytest.approx(off.std(), rel=0.1)
    assert np.mean([each.used.mean() for each in found]) > 0.96


def test_four_of_nine_failed_fits_change_nothing():
    good = [0.2, -0.1] + rng(4).normal(0, 0.008, (5, 2))
    bad = [[1.7, 0.3], [-2.0, 1.0], [1.7, 0.31], [0.2, -0.5]]

    found = tile_shifts.average(np.concatenate([bad, good]))

    assert found.used.tolist() == [False] * 4 + [True] * 5
    np.testing.assert_allclose(found.shift, good.mean(axis=0))


def test_an_outlier_that_hides_in_each_axis_is_found_in_both_jointly():
    """In each axis alone it is at 2.8 standard deviations."""
    ring = np.exp(1j * np.arange(20) * np.pi / 10) * 0.02 * np.sqrt(2)
    shift = np.column_stack([ring.real, ring.imag])
    shift = np.concatenate([shift, [[0.067, 0.067]]])

    assert tile_shifts.average(shift).used.tolist() == [True] * 20 + [False]


def test_a_handful_that_agrees_by_chance_rejects_no_good_exposure():
    shift = np.array([[0.1, 0.1], [0.1, 0.1001], [0.1001, 0.1], [0.13, 0.12]])

    assert tile_shifts.average(shift).used.all()


@pytest.mark.parametrize(
    "shift, agrees",
    [
        ([[0.0, 0.0], [0.0, 0.05]], True),
        ([[0.0, 0.0], [0.0, 0.5]], False),
        ([[0.0, 0.0], [0.0, 0.01], [1.0, 1.0], [1.0, 1.01]], False),
        ([[0.0, 0.0], [0.5, 0.5], [1.0, -1.0]], False),
        ([[0.0, 0.0], [0.0, 0.01], [1.0, -1.0]], True),
        ([[3.0, 1.0]], True),
    ],
)
def test_where_no_majority_agrees_it_says_so(shift, agrees):
    assert tile_shifts.average(np.array(shift)).agrees(0.1) is agrees


def test_the_mean_is_that_of_the_exposures_it_says_it_used():
    """Also where two sets of exposures lead to each other."""
    for seed in range(400):
        shift = rng(seed).normal(0, 0.06, (3 + seed % 9, 2))

        found = tile_shifts.average(shift, sigma=1.5)

        np.testing.assert_allclose(found.shift, shift[found.used].mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_stated_errors_hold_for_few_exposures_too(n):
    found = [tile_shifts.average(rng(k).normal(0, 0.02, (n, 2))) for k in range(400)]
    off = np.array([each.shift for each in found])

    assert np.sqrt(np.mean([each.error**2 for each in found])) == pytest.approx(off.std(), rel=0.15)
    assert off.std() < 1.1 * 0.02 / np.sqrt(n)


def test_one_exposure_has_no_scatter_and_no_error():
    found = tile_shifts.average(np.array([[0.3, 0.4]]))

    np.testing.assert_array_equal(found.shift, [0.3, 0.4])
    assert np.isnan([*found.error, found.scatter, found.rotation_error]).all()


def test_weights_count_stars():
    truth, stars = np.array([0.3, -0.2]), np.repeat([5, 5, 10, 80], 3)
    noise = [rng(k).normal(0, 0.05 / np.sqrt(stars)[:, None], (12, 2)) for k in range(300)]
    off = {}
    for name, weight in (("stars", stars), ("none", None)):
        means = [tile_shifts.average(truth + each, weight=weight) for each in noise]
        off[name] = np.array([mean.shift - truth for mean in means])
        stated = np.sqrt(np.mean([mean.error**2 for mean in means]))
        assert stated == pytest.approx(off[name].std(), rel=0.1)

    assert off["stars"].std() == pytest.approx(0.05 / np.sqrt(stars.sum()), rel=0.1)
    assert off["stars"].std() < 0.7 * off["none"].std()


def test_a_rotation_about_the_tile_is_found_whatever_the_dithers():
    turn, truth = 4e-4, np.array([0.5, -0.3])
    offset = rng(5).uniform(-30, 30, (12, 2))
    shift = truth + turn * np.column_stack([-offset[:, 1], offset[:, 0]]) + rng(6).normal(0, 1e-4, (12, 2))
    rotation = turn + rng(7).normal(0, 1e-5, 12)
    shift[3] += 0.2

    found = tile_shifts.average(shift, rotation, offset=offset)

    assert np.flatnonzero(~found.used).tolist() == [3]
    np.testing.assert_allclose(found.shift, truth, atol=5e-4)
    assert found.rotation == pytest.approx(turn, abs=1e-5)
    assert found.rotation_error == pytest.approx(1e-5 / np.sqrt(11), rel=0.5)
    # Without rotation the turn is scatter.
    assert tile_shifts.average(shift).scatter > 10 * found.scatter


shifts = st.lists(
    st.tuples(*[st.floats(-2, 2, allow_subnormal=False)] * 2).map(lambda pair: np.round(pair, 4)),
    min_size=1,
    max_size=12,
).map(np.array)


@settings(deadline=None, max_examples=100)
@given(shift=shifts, angle=st.floats(0, 6.3), move=st.tuples(st.floats(-5, 5), st.floats(-5, 5)))
def test_a_turn_of_the_axes_and_a_common_shift_change_nothing_else(shift, angle, move):
    found = tile_shifts.average(shift)
    other = tile_shifts.average(turned(shift, angle) + move)

    apart = np.sort(np.linalg.norm(shift[:, None] - shift, axis=-1), axis=1)
    nearest, *others = np.sort(apart[:, len(shift) // 2])
    if others and others[0] - nearest < 1e-9:
        return  # two exposures are equally well in the middle: either may be the first guess
    np.testing.assert_array_equal(other.used, found.used)
    np.testing.assert_allclose(other.shift, turned(found.shift, angle) + move, atol=1e-9)


def test_inputs_stay_as_they_were():
    given = [rng(k).normal(size=shape) for k, shape in enumerate([(5, 2), 5, (5, 2)])]
    before = [each.copy() for each in given]

    tile_shifts.average(given[0], given[1], offset=given[2], weight=np.ones(5))
    tile_shifts.carry(given[0], given[1], given[2], given[2] + 1)

    for now, then in zip(given, before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"shift": np.zeros((0, 2))}, "at least 1 exposure, got 0"),
        ({"shift": np.zeros((3, 3))}, r"shift must have shape \(3, 2\), got \(3, 3\)"),
        ({"shift": [[0.0, np.nan]]}, "shift must be finite"),
        ({"weight": np.zeros(2)}, "weight must be above 0, got 0.0"),
        ({"weight": np.ones(3)}, r"weight must have shape \(2,\), got \(3,\)"),
        ({"rotation": np.zeros(2)}, "offset must be given with rotation"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tile_shifts.average(**{"shift": np.zeros((2, 2)), **settings})


# ---- one fit for all --------------------------------------------------------------------------------------


@needs_real
def test_the_real_exposures_that_only_the_absolute_fit_moved_are_found():
    """Three of 40 share one shift to 0.1 mas: the failed fit among them."""
    real = Table.read(REAL)
    real = real[real["field"] == "Carina"]
    shift = np.column_stack([real["shift_east"], real["shift_north"]])

    alike = tile_shifts.shared(shift, np.zeros(len(real)), np.array(real["gs_id"]))

    names = [f"{row['visit_id'][-3:]}-{row['exposure'].split('_')[2][-1]}" for row in real[alike]]
    assert names == ["001-7", "003-2", "005-7"]


def test_fits_of_their_own_are_not_shared():
    shift, star = rng(8).normal(0, 0.01, (60, 2)), np.repeat(np.arange(6), 10)

    assert not tile_shifts.shared(shift, rng(9).normal(0, 1e-4, 60), star).any()


def test_one_shift_on_one_guide_star_is_no_failure():
    shift = np.zeros((6, 2))
    shift[3:] = 0.5

    assert not tile_shifts.shared(shift, np.zeros(6), np.repeat(["a", "b"], 3)).any()
    assert tile_shifts.shared(shift, np.zeros(6), np.tile(["a", "b"], 3)).all()


def test_the_same_shift_with_another_rotation_is_another_fit():
    rotation = np.array([1e-4, -1e-4])

    assert not tile_shifts.shared(np.zeros((2, 2)), rotation, np.array(["a", "b"])).any()
    assert tile_shifts.shared(np.zeros((2, 2)), rotation[[0, 0]], np.array(["a", "b"])).all()
