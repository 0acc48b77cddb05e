"""Calibration factors and their averages."""

import numpy as np
import pytest

from miri_steps.fluxcal import factors

STARS = 19


def survey(seed, scatter=0.02):
    """Observe 19 stars one to seven times; what makes them differ is the star."""
    random = np.random.default_rng(seed)
    times = random.integers(1, 8, STARS)
    star = np.repeat([f"star {k}" for k in range(STARS)], times)
    value = np.repeat(0.5 * (1 + random.normal(0, scatter, STARS)), times)
    return value * (1 + random.normal(0, 0.002, times.sum())), star


def test_a_factor_turns_the_rate_into_the_flux_of_the_model():
    # 0.05 Jy in 1.5 x 8000 DN/s, on pixels of 2.86e-13 sr: in MJy.
    assert factors.factor(0.05, 8000.0, 1.5, 2.86e-13) == pytest.approx(1e-6 * 0.05 / 12000 / 2.86e-13)


def test_each_star_has_one_vote():
    found = factors.average([1.0, 1.0, 1.0, 2.0], ["a", "a", "a", "b"])

    assert found.value == pytest.approx(1.5)
    assert found.stars == pytest.approx(2.0)
    # Two stars at 1.5 -+ 0.5.
    assert found.scatter == pytest.approx(np.sqrt(0.5))
    assert found.error == pytest.approx(0.5)


def test_the_error_is_that_of_stars():
    pulls = [(found.value - 0.5) / found.error for found in (factors.average(*survey(s)) for s in range(400))]
    # Student's t of 18 degrees of freedom has a width of 1.06, and what is clipped by chance adds a little.
    assert abs(np.mean(pulls)) < 0.15
    assert 0.95 < np.std(pulls) < 1.18


def test_an_outlier_is_left_out_even_of_few():
    values = np.array([0.50, 0.51, 0.49, 0.505, 0.495, 0.9])
    found = factors.average(values, list("abcdef"))

    assert found.kept.tolist() == [True] * 5 + [False]
    assert found.value == pytest.approx(0.5)
    assert found.weight[-1] == 0
    assert factors.average(values, list("abcdef"), sigma=1e3).kept.all()


def test_a_star_that_was_seen_often_does_not_push_the_others_out():
    """Its observations agree better with each other than stars do."""
    random = np.random.default_rng(4)
    for _ in range(50):
        value = np.concatenate([np.full(40, 1 + random.normal(0, 0.02)), 1 + random.normal(0, 0.02, 18)])
        value *= 1 + random.normal(0, 0.001, len(value))
        found = factors.average(value, ["monitored"] * 40 + [f"star {k}" for k in range(18)])
        assert found.stars > 16


def test_order_does_not_matter():
    value, star = survey(1)
    order = np.random.default_rng(2).permutation(len(value))
    first, second = factors.average(value, star), factors.average(value[order], star[order])

    assert second.value == pytest.approx(first.value, rel=1e-14)
    assert second.error == pytest.approx(first.error, rel=1e-12)


def test_equal_values_have_no_scatter():
    found = factors.average([0.5, 0.5, 0.5], list("abc"))
    assert (found.value, found.scatter, found.error) == (0.5, 0.0, 0.0)
    for number in range(2, 50):
        alone = factors.average(np.linspace(0.5, 0.6, number), ["a"] * number)
        assert alone.value == pytest.approx(0.55)
        assert np.isnan(alone.error)


def by_hand(factors, star, sigma):
    """Clip about the median in five rounds, and average with one over the number of observations."""
    kept = np.ones(len(factors), bool)
    for _ in range(5):
        middle, scatter = np.median(factors[kept]), np.std(factors[kept])
        kept &= np.abs(factors - middle) <= sigma * scatter
    weight = np.array([1 / star.count(name) for name in star])[kept]
    values = factors[kept]
    mean = sum(weight * values) / sum(weight)
    deviation = np.sqrt(sum(weight * (values - mean) ** 2) / (sum(weight) - 1))
    return kept, mean, deviation, deviation / np.sqrt(sum(weight))


@pytest.mark.parametrize("sigma", [3.5, 3.0])
def test_the_published_average_is_that_by_hand(sigma):
    clipped = 0
    for seed in range(20):
        value, star = survey(seed)
        # Of a star that was seen often some observations are wrong, one of them a little.
        value[star == "star 3"] *= np.linspace(0.93, 1.3, (star == "star 3").sum())
        kept, mean, deviation, error = by_hand(value, star.tolist(), sigma)
        found = factors.average_published(value, star, sigma=sigma)
        np.testing.assert_array_equal(found.kept, kept)
        assert found.value == pytest.approx(mean, rel=1e-12)
        assert found.scatter == pytest.approx(deviation, rel=1e-10)
        assert found.error == pytest.approx(error, rel=1e-10)
        assert found.stars == len(set(star[kept]))
        clipped += (~kept).sum()
    assert clipped > 20


def test_the_published_average_loses_the_vote_of_what_was_clipped():
    """Half of the observations of a star are wrong: it has half a vote."""
    value, star = [1.0, 1.02, 0.98, 1.01, 0.99, 1.0, 1.03, 9.0, 1.03, 9.0], [*"abcdef", *"gggg"]
    found = factors.average_published(value, star, sigma=2.0)
    assert found.kept.tolist() == [*[True] * 7, False, True, False]
    assert found.value == pytest.approx((6.0 + 0.5 * 1.03) / 6.5)
    ours = factors.average(value, star)
    assert ours.value == pytest.approx((6.0 + 1.03) / 7)


def test_the_published_error_of_one_star_is_not_known():
    found = factors.average_published([0.5, 0.6, 0.7], ["a", "a", "a"])
    assert found.value == pytest.approx(0.6)
    assert np.isnan(found.error)
    with pytest.raises(ValueError, match="factors must be finite and above 0, got -1.0 of a"):
        factors.average_published([-1.0], ["a"])


def test_types_are_averaged_each_by_itself():
    found = factors.average_by_type(
        [0.5, 0.52, 0.6, 0.62], list("abcd"), ["hot", "hot", "A dwarf", "A dwarf"]
    )
    assert {name: one.value for name, one in found.items()} == pytest.approx({"hot": 0.51, "A dwarf": 0.61})
    published = factors.average_by_type(
        [1.0, 1.1, 1.4], list("aab"), ["hot"] * 3, average=factors.average_published
    )
    assert published["hot"].error == factors.average_published([1.0, 1.1, 1.4], list("aab")).error


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match="factors must be finite and above 0, got nan of b"):
        factors.average([0.5, np.nan], ["a", "b"])
    with pytest.raises(ValueError, match="there must be factors"):
        factors.average([], [])
