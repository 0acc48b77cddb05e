"""The polynomial on the detector, and which of its patterns dithers show."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import legendre

from miri_steps.algorithms.detector_background import DetectorPolynomial, visible_terms

SETTINGS = settings(deadline=None, derandomize=True, max_examples=30)
CENTER, HALF = (700.0, 500.0), (320.0, 480.0)
ORDERS = st.integers(1, 6)


def polynomial(order):
    return DetectorPolynomial(order, CENTER, HALF)


def box(n=24):
    """Positions in the box and weights with which polynomials are averaged exactly."""
    node, weight = legendre.leggauss(n)
    x, y = np.meshgrid(CENTER[0] + HALF[0] * node, CENTER[1] + HALF[1] * node)
    return x, y, np.outer(weight, weight) / 4


def information(order, views):
    """
    Sum the covariances that pairs of views of one box of sky have.

    A view is a shift (dx, dy) [pixel] and a roll [deg] about the middle of the box.
    """
    x, y, weight = box()
    seen = []
    for dx, dy, roll in views:
        c, s = np.cos(np.radians(roll)), np.sin(np.radians(roll))
        u, v = x - CENTER[0], y - CENTER[1]
        x_there, y_there = CENTER[0] + c * u - s * v + dx, CENTER[1] + s * u + c * v + dy
        seen.append(polynomial(order).evaluate(x_there, y_there))
    total, pairs = 0.0, 0
    for i in range(len(seen)):
        for j in range(i):
            step = (seen[i] - seen[j]).astype(float)
            step -= np.sum(weight * step, axis=(1, 2), keepdims=True)
            total = total + np.einsum("yx,kyx,lyx->kl", weight, step, step)
            pairs += 1
    return total, float(pairs)


def n_planes_in(patterns):
    """How much of the space of planes the patterns span, 0 to 2."""
    return float(np.sum(patterns[:2] ** 2))


@SETTINGS
@given(order=ORDERS)
def test_terms_are_a_yardstick_over_the_box(order):
    x, y, weight = box()
    terms = polynomial(order).evaluate(x, y).astype(float)
    assert terms.shape == (order * (order + 3) // 2, 24, 24)
    np.testing.assert_allclose(np.sum(weight * terms, axis=(1, 2)), 0, atol=2e-5)
    products = np.einsum("yx,kyx,lyx->kl", weight, terms, terms)
    np.testing.assert_allclose(products, np.eye(len(terms)), atol=5e-5)


@SETTINGS
@given(order=ORDERS, seed=st.integers(0, 1000))
def test_coefficients_are_the_rms_of_the_background(order, seed):
    x, y, weight = box()
    p = polynomial(order)
    coefficients = np.random.default_rng(seed).normal(size=len(p.degrees))
    background = np.tensordot(coefficients, p.evaluate(x, y), axes=1)
    assert np.sqrt(np.sum(weight * background**2)) == pytest.approx(np.linalg.norm(coefficients), rel=1e-4)


def test_first_terms_are_planes_in_x_and_in_y():
    p = polynomial(1)
    assert p.degrees == [(1, 0), (0, 1)]
    corner = p.evaluate(np.array([CENTER[0] + HALF[0]]), np.array([CENTER[1] - HALF[1]]))
    np.testing.assert_allclose(corner[:, 0], [np.sqrt(3), -np.sqrt(3)], rtol=1e-6)


def test_evaluate_keeps_the_shape_and_the_input():
    x, y = np.full((2, 3, 4), 700.0), np.full((2, 3, 4), 500.0)
    terms = polynomial(3).evaluate(x, y)
    assert terms.shape == (9, 2, 3, 4)
    assert terms.dtype == np.float32
    assert np.all(x == 700.0)
    assert np.all(y == 500.0)


@SETTINGS
@given(x=st.integers(0, 100), y=st.integers(0, 100), nx=st.integers(1, 40), ny=st.integers(1, 40))
def test_a_frame_shows_its_part_of_the_detector(x, y, nx, ny):
    p = DetectorPolynomial(3, (70.0, 60.0), (64.0, 48.0))
    coefficients = np.random.default_rng(1).normal(size=9)
    full = p.image(coefficients, (160, 160))
    np.testing.assert_array_equal(p.image(coefficients, (ny, nx), (x, y)), full[y : y + ny, x : x + nx])


@pytest.mark.parametrize("origin", [(0, 0), (356, 20)])
def test_image_is_the_sum_of_the_terms(origin):
    p = polynomial(4)
    coefficients = np.random.default_rng(2).normal(size=14)
    row, column = np.indices((30, 50))
    terms = p.evaluate(column + origin[0], row + origin[1]).astype(float)
    expected = np.einsum("k,kyx->yx", coefficients, terms)
    image = p.image(coefficients, (30, 50), origin)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, expected, rtol=1e-5, atol=1e-4)


def test_order_zero_has_no_terms():
    p = polynomial(0)
    assert p.degrees == []
    assert p.evaluate(np.zeros((3, 4)), np.zeros((3, 4))).shape == (0, 3, 4)
    np.testing.assert_array_equal(p.image(np.zeros(0), (3, 4)), np.zeros((3, 4)))
    assert visible_terms(np.zeros((0, 0)), 1.0, min_visibility=0.05).shape == (0, 0)


def test_wrong_parameters_are_named():
    with pytest.raises(ValueError, match="order must be at least 0, got -1"):
        DetectorPolynomial(-1, CENTER, HALF)
    with pytest.raises(ValueError, match=r"half must be positive, got \(5.0, 0.0\)"):
        DetectorPolynomial(2, CENTER, (5.0, 0.0))


def test_coefficients_must_be_as_many_as_terms():
    with pytest.raises(ValueError, match="zip"):
        polynomial(2).image(np.ones(4), (3, 3))


# --- what dithers show ---------------------------------------------------------------------------

DITHERS = [(0, 0, 0), (60, 0, 0), (0, 80, 0), (-50, 40, 0), (90, 70, 0)]


@pytest.mark.parametrize(("order", "n_visible"), [(1, 0), (2, 3), (3, 7), (4, 12)])
def test_pure_shifts_show_all_but_planes(order, n_visible):
    patterns = visible_terms(*information(order, DITHERS), min_visibility=0.05)
    assert patterns.shape == (order * (order + 3) // 2, n_visible)
    assert n_planes_in(patterns) < 1e-6
    np.testing.assert_allclose(patterns.T @ patterns, np.eye(n_visible), atol=1e-10)


def test_rolled_exposures_show_planes():
    patterns = visible_terms(*information(2, [*DITHERS, (0, 0, 40)]), min_visibility=0.05)
    assert patterns.shape == (5, 5)
    assert n_planes_in(patterns) == pytest.approx(2, abs=1e-6)


def test_tiny_shifts_show_nothing():
    views = [(dx / 200, dy / 200, roll) for dx, dy, roll in DITHERS]
    assert visible_terms(*information(4, views), min_visibility=0.05).shape == (14, 0)


def test_a_small_roll_shows_no_planes():
    # A roll by t leaves 2 sin(t / 2) of a plane in a square box: 0.0175 for 1 degree.
    patterns = visible_terms(*information(1, [(0, 0, 0), (0, 0, 1)]), min_visibility=0.05)
    assert patterns.shape == (2, 0)


def test_visibility_is_what_is_left_over_what_is_there():
    # (x + d)^2 - x^2 = 2 d x + ...: the term 5 ** 0.5 * (3 u^2 - 1) / 2 leaves 15 ** 0.5 * d of rms.
    d = 0.1
    total, weight = information(2, [(0, 0, 0), (d * HALF[0], 0, 0)])
    left = np.sqrt(total[2, 2] / weight)
    assert left == pytest.approx(np.sqrt(15) * d, rel=1e-4)
    for threshold, expected in ((0.99, 1), (1.01, 0)):
        patterns = visible_terms(total[2:3, 2:3], weight, min_visibility=threshold * left)
        assert patterns.shape == (1, expected)


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_without_pairs_nothing_is_seen(weight):
    assert visible_terms(np.eye(5), weight, min_visibility=0.05).shape == (5, 0)
