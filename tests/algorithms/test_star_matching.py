"""Shifts of stars are found where they are true, and refused where chance made them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miri_steps.algorithms import star_matching
from miri_steps.algorithms.star_matching import Stars

# Half sides of a tile, and of the catalogue around it [arcsec].
TILE, AROUND = (37, 56), (42, 61)


def scatter(rng, n, half=TILE):
    return rng.uniform(-np.array(half), half, (n, 2))


def turn(xy, angle):
    c, s = np.cos(angle), np.sin(angle)
    return xy @ np.array([[c, s], [-s, c]])


def stars_at(xy, sigma=0.008):
    n = len(xy)
    return Stars(xy[:, 0], xy[:, 1], np.full(n, sigma), np.full(n, 4))


def offset(rng, length):
    angle = rng.uniform(0, 2 * np.pi)
    return length * np.array([np.cos(angle), np.sin(angle)])


def field(rng, n, *, shift, others=0, density=0.003, sigma=0.008, angle=0.0):
    """Make stars, `others` of which are in no catalogue, and a catalogue with more per square arcsec."""
    xy = scatter(rng, n)
    more = scatter(rng, rng.poisson(density * 4 * np.prod(AROUND)), AROUND)
    seen = np.concatenate([xy + sigma * rng.standard_normal(xy.shape), scatter(rng, others)])
    return stars_at(seen, sigma), np.concatenate([turn(xy, angle) + shift, more])


# ---- shifts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "others", "density"),
    [
        (3, 0, 0.001),
        (5, 0, 0.003),
        (5, 5, 0.01),
        (10, 10, 0.05),
        (10, 10, 0.2),
        (15, 0, 0.003),
        (150, 150, 0.1),
    ],
)
@pytest.mark.parametrize("length", [0.1, 0.7, 1.9])
def test_true_shifts_are_found(n, others, density, length):
    rng = np.random.default_rng([n, others, int(10 * length)])
    errors, pulls = [], []
    for _ in range(20):
        shift = offset(rng, length)
        stars, reference = field(rng, n, shift=shift, others=others, density=density)

        fit = star_matching.fit(stars, reference)

        assert fit.found, fit.reason
        assert fit.rotation == 0.0
        assert fit.fitgeometry == "shift"
        assert n - 2 <= fit.n_stars <= n + 2 + 0.1 * others
        assert fit.chance < 1e-3
        errors.append(fit.shift - shift)
        pulls.append(errors[-1] / fit.shift_error)

    # 40 numbers: their rms is good to 11 percent.
    assert np.sqrt(np.mean(np.square(errors))) < 1.45 * 0.008 / np.sqrt(n)
    assert 0.6 < np.sqrt(np.mean(np.square(pulls))) < 1.5


@pytest.mark.parametrize("angle", [-1e-3, 2e-4, 1e-3])
def test_rotations_are_found_where_there_are_enough_stars(angle):
    rng = np.random.default_rng(7)
    errors = []
    for _ in range(10):
        stars, reference = field(rng, 30, shift=[0.3, -0.4], angle=angle, density=0.01)

        fit = star_matching.fit(stars, reference, fitgeometry="rshift")

        assert fit.found, fit.reason
        assert fit.fitgeometry == "rshift"
        np.testing.assert_allclose(fit.shift, [0.3, -0.4], atol=0.007)
        errors.append((fit.rotation - angle) / fit.rotation_error)
        assert fit.rotation_error == pytest.approx(0.008 / np.sqrt(30) / 39, rel=0.5)

    assert 0.4 < np.sqrt(np.mean(np.square(errors))) < 1.7


def test_the_correction_is_added_to_positions_after_the_rotation():
    rng = np.random.default_rng(8)
    stars, reference = field(rng, 40, shift=[0.3, -0.4], angle=1e-3, density=0, sigma=1e-6)

    fit = star_matching.fit(stars, reference, fitgeometry="rshift")

    corrected = turn(np.stack([stars.x, stars.y], axis=-1), fit.rotation) + fit.shift
    np.testing.assert_allclose(corrected, reference, atol=1e-5)
    # Counter-clockwise: what lies in the East moves to the North.
    assert fit.rotation == pytest.approx(1e-3, abs=1e-7)
    assert turn(np.array([[1.0, 0.0]]), fit.rotation)[0, 1] > 0
    assert fit.rms < 1e-5


def test_few_stars_give_a_shift_where_a_rotation_was_wanted():
    stars, reference = field(np.random.default_rng(9), 14, shift=[0.3, -0.4])

    fit = star_matching.fit(stars, reference, fitgeometry="rshift")

    assert fit.fitgeometry == "shift"
    assert fit.rotation == fit.rotation_error == 0.0
    np.testing.assert_allclose(fit.shift, [0.3, -0.4], atol=0.008)


def test_stars_count_by_their_accuracy():
    rng = np.random.default_rng(10)
    good, poor = scatter(rng, 8), scatter(rng, 8)
    sigma = np.repeat([0.003, 0.06], 8)
    errors = []
    for _ in range(20):
        seen = np.concatenate([good, poor]) + sigma[:, None] * rng.standard_normal((16, 2))
        stars = Stars(*seen.T, sigma, np.full(16, 4))
        fit = star_matching.fit(stars, np.concatenate([good, poor]) + 0.5)
        errors.append(fit.shift - 0.5)

    assert np.sqrt(np.mean(np.square(errors))) < 0.0022


def test_one_false_match_does_not_pull_the_fit():
    rng = np.random.default_rng(11)
    stars, reference = field(rng, 6, shift=[0.5, 0.5], density=0, sigma=0.002)
    reference[0] += [0.09, 0.0]

    fit = star_matching.fit(stars, reference)

    assert fit.n_stars == 5
    np.testing.assert_allclose(fit.shift, 0.5, atol=0.004)


# ---- chance -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 4, 5, 8, 15, 60])
def test_chance_is_no_fit(n):
    """Stars and catalogues that have nothing in common: not one of 900 is taken for a match."""
    rng = np.random.default_rng(n)
    for density, trials in ((0.001, 60), (0.03, 60), (0.2, 30)):
        for _ in range(trials):
            reference = scatter(rng, rng.poisson(density * 4 * np.prod(AROUND)), AROUND)

            fit = star_matching.fit(stars_at(scatter(rng, n)), reference)

            assert not fit.found
            assert fit.reason
            assert np.isnan([*fit.shift, fit.rotation, *fit.shift_error, fit.rms]).all()


def test_chance_is_no_fit_where_stars_come_in_clumps():
    rng = np.random.default_rng(2)
    centres = rng.uniform(-150, 150, (100, 2))
    everywhere = np.concatenate([centres + rng.normal(0, 2, centres.shape) for _ in range(15)])
    for _ in range(60):
        away = offset(rng, rng.uniform(60, 100))
        seen = everywhere[(np.abs(everywhere - away) < TILE).all(axis=1)] - away
        reference = everywhere[(np.abs(everywhere) < AROUND).all(axis=1)]

        assert not star_matching.fit(stars_at(seen[:60]), reference, search_radius=3.0).found


def test_shifts_beyond_the_search_radius_are_not_made_up():
    rng = np.random.default_rng(3)
    for _ in range(20):
        stars, reference = field(rng, 12, shift=offset(rng, 3.0), density=0.03)
        assert not star_matching.fit(stars, reference, search_radius=2.0).found


def test_two_shifts_that_fit_alike_are_refused():
    rng = np.random.default_rng(4)
    xy = scatter(rng, 10)

    fit = star_matching.fit(stars_at(xy), np.concatenate([xy + [1.0, 0.0], xy + [-1.0, 0.0]]))

    assert fit.reason == "10 stars agree on a shift, and 10 on another"


# ---- what there is no fit for -----------------------------------------------------------------------------


def test_why_there_is_no_fit():
    rng = np.random.default_rng(5)
    xy = scatter(rng, 10)

    def why(stars, reference, **kwargs):
        return star_matching.fit(stars_at(stars), reference, **kwargs).reason

    assert why(xy[:2], xy) == "2 stars are fewer than min_stars=3"
    assert why(xy[:0], xy) == "0 stars are fewer than min_stars=3"
    assert why(xy, xy[:1]) == "1 reference stars are fewer than min_stars=3"
    assert why(xy, xy + 200) == "0 stars have a reference star within 2 arcsec"
    assert why(xy, xy, min_stars=11) == "10 stars are fewer than min_stars=11"


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("search_radius", 0.0, "search_radius must be above 0 arcsec, got 0.0"),
        ("tolerance", -1.0, "tolerance must be above 0 arcsec, got -1.0"),
        ("min_stars", 1, "min_stars must be at least 2, got 1"),
        ("fitgeometry", "general", "fitgeometry must be 'shift' or 'rshift', got 'general'"),
        ("sigma", 0.0, "sigma must be above 0, got 0.0"),
    ],
)
def test_wrong_parameters_are_told(name, value, rule):
    with pytest.raises(ValueError, match=rule):
        star_matching.fit(stars_at(np.zeros((5, 2))), np.zeros((5, 2)), **{name: value})


# ---- what changes nothing ---------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), x=st.floats(-50, 50), y=st.floats(-50, 50))
def test_moving_stars_and_catalogue_together_changes_no_shift(seed, x, y):
    stars, reference = field(np.random.default_rng(seed), 8, shift=[0.4, -0.7], others=4)
    moved = Stars(stars.x + x, stars.y + y, stars.sigma, stars.n_exposures)

    one, other = star_matching.fit(stars, reference), star_matching.fit(moved, reference + [x, y])

    np.testing.assert_allclose(other.shift, one.shift, atol=1e-9)
    assert one.n_stars == other.n_stars


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_order_of_stars_and_catalogue_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    stars, reference = field(rng, 8, shift=[0.4, -0.7], others=4, density=0.02)
    order = rng.permutation(len(stars))
    mixed = Stars(*(column[order] for column in (stars.x, stars.y, stars.sigma, stars.n_exposures)))

    one, other = star_matching.fit(stars, reference), star_matching.fit(mixed, rng.permutation(reference))

    np.testing.assert_allclose(other.shift, one.shift, atol=1e-12)
    assert one.n_stars == other.n_stars


def test_a_shifted_catalogue_shifts_the_result():
    stars, reference = field(np.random.default_rng(6), 8, shift=[0.1, 0.2])

    one, other = star_matching.fit(stars, reference), star_matching.fit(stars, reference + [0.5, -1.0])

    np.testing.assert_allclose(other.shift - one.shift, [0.5, -1.0], atol=1e-12)


# ---- several exposures ------------------------------------------------------------------------------------


def dithered(rng, n=20, exposures=4, sigma=0.01, missing=0.0):
    """Detect n stars in several exposures: positions, errors, exposures, and the truth."""
    truth = scatter(rng, n)
    star, exposure = (v.ravel() for v in np.indices((n, exposures)))
    kept = rng.random(n * exposures) >= missing
    star, exposure = star[kept], exposure[kept]
    errors = sigma * rng.uniform(0.5, 2, len(star))
    return truth[star] + errors[:, None] * rng.standard_normal((len(star), 2)), errors, exposure, truth


def test_a_star_counts_once_and_gains_by_every_exposure():
    rng = np.random.default_rng(0)
    positions, sigma, exposure, truth = dithered(rng, n=60, exposures=10)

    stars = star_matching.merge(positions, sigma, exposure, radius=0.15)

    assert len(stars) == 60
    assert (stars.n_exposures == 10).all()
    difference = np.stack([stars.x, stars.y], 1) - truth[np.argsort(truth[:, 1])]
    assert np.sqrt(np.mean((difference / stars.sigma[:, None]) ** 2)) == pytest.approx(0.95, abs=0.15)
    assert np.median(stars.sigma) < 0.011 / np.sqrt(10)


def test_positions_are_means_weighted_with_the_inverse_variance():
    positions = np.array([[0.0, 0.0], [0.05, 0.0]])

    stars = star_matching.merge(positions, np.array([0.1, 0.2]), np.array([0, 1]), radius=0.2)

    assert stars.x == pytest.approx([0.01])
    assert stars.sigma == pytest.approx([np.sqrt(1 / 125)])


def test_positions_that_disagree_are_not_called_accurate():
    positions = np.array([[0.0, 0.0], [0.1, 0.0]])

    stars = star_matching.merge(positions, np.full(2, 0.001), np.array([0, 1]), radius=0.2)

    assert stars.sigma == pytest.approx([0.05 / np.sqrt(2)])


def test_what_only_one_of_many_exposures_shows_is_no_star():
    positions = np.array([[0.0, 0.0], [0.0, 0.0], [9.0, 9.0]])
    exposure, sigma = np.array([0, 1, 2]), np.full(3, 0.01)

    def count(n_covering=None):
        return len(star_matching.merge(positions, sigma, exposure, radius=0.1, n_covering=n_covering))

    assert count() == 1
    # At the edge of a tile few exposures look.
    assert count(np.array([3, 3, 2])) == 2
    assert count(np.array([3, 3, 3])) == 1
    assert len(star_matching.merge(positions[1:], sigma[1:], exposure[1:], radius=0.1)) == 2


def test_an_exposure_counts_once_in_a_star():
    positions = np.array([[0.0, 0.0], [0.01, 0.0], [0.08, 0.0]])

    stars = star_matching.merge(positions, np.array([0.01, 0.01, 0.05]), np.array([0, 1, 1]), radius=0.1)

    assert stars.n_exposures == [2]
    assert stars.x == pytest.approx([0.005])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_order_of_exposures_changes_no_bit(seed):
    rng = np.random.default_rng(seed)
    positions, sigma, exposure, _ = dithered(rng, missing=0.3)
    order, names = rng.permutation(len(sigma)), rng.permutation(4)

    one = star_matching.merge(positions, sigma, exposure, radius=0.1)
    other = star_matching.merge(positions[order], sigma[order], names[exposure[order]], radius=0.1)

    for name in ("x", "y", "sigma", "n_exposures"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_no_detections_make_no_stars():
    nothing = star_matching.merge(np.zeros((0, 2)), np.zeros(0), np.zeros(0, int), radius=0.1)

    assert len(nothing) == 0
    assert len(star_matching.merge(np.zeros((1, 2)), np.ones(1), np.zeros(1, int), radius=0.1)) == 1


def test_what_moves_with_the_detector_is_told_from_stars():
    rng = np.random.default_rng(1)
    pixels = rng.uniform(0, 1000, (12, 2))
    dither = rng.uniform(20, 40, (3, 1, 2))
    # The first 10 stay on the sky, the last 2 on the detector.
    seen = np.concatenate([pixels[:10] - dither, np.broadcast_to(pixels[10:], (3, 2, 2))], axis=1)
    sky = 0.11 * (seen + dither)
    exposure = np.repeat(np.arange(3), 12)

    fixed = star_matching.fixed_to_detector(seen.reshape(-1, 2), sky.reshape(-1, 2), exposure, radius=0.1)

    np.testing.assert_array_equal(fixed.reshape(3, 12), np.arange(12) >= 10 + np.zeros((3, 1)))


def test_stars_of_exposures_without_dither_are_no_hot_pixels():
    pixels = np.random.default_rng(1).uniform(0, 1000, (10, 2))
    twice = np.concatenate([pixels, pixels + 0.05])

    fixed = star_matching.fixed_to_detector(twice, 0.11 * twice, np.repeat([0, 1], 10), radius=0.1)

    assert not fixed.any()
