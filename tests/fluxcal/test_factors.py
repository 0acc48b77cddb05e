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
    pulls = [
        (found.value - 0.5) / found.error for found in (factors.average(*survey(s)) for s in range(1000))
    ]
    # Student's t of 18 degrees of freedom has a width of 1.06, and what is clipped by chance adds a little.
    assert abs(np.mean(pulls)) < 0.12
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


def test_types_are_averaged_each_by_itself():
    found = factors.average_by_type(
        [0.5, 0.52, 0.6, 0.62], list("abcd"), ["hot", "hot", "A dwarf", "A dwarf"]
    )
    assert {name: one.value for name, one in found.items()} == pytest.approx({"hot": 0.51, "A dwarf": 0.61})


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match="factors must be finite and above 0, got nan of b"):
        factors.average([0.5, np.nan], ["a", "b"])
    with pytest.raises(ValueError, match="there must be factors"):
        factors.average([], [])
