"""Levels and factors of exposures of one background, against the truth they were made from."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miri_steps.algorithms import exposure_levels
from miri_steps.algorithms.exposure_levels import CELL, SCALINGS

SETTINGS = settings(deadline=None, derandomize=True, max_examples=20)
SCALED = pytest.mark.parametrize("scaling", ["additive", "multiplicative", "both"])
S = 0.05


class Field:
    """Exposures of one background, as factor * background + level, with noise `S` in each pixel."""

    def __init__(self, scaling, n=10, cells=500, *, seed=0, structure=0.3, height=4.0, noise=S):
        rng = np.random.default_rng(seed)
        shape = (cells, CELL**2)
        self.background = height + structure * np.sin(np.linspace(0, 6, cells))[:, np.newaxis]
        # Columns as strong as the noise: within a cell it matters which pixels are masked.
        self.background = self.background + (structure > 0) * noise * rng.normal(size=shape)
        self.factor, self.level = np.ones(n), np.zeros(n)
        if scaling in ("multiplicative", "both"):
            self.factor = 1 + rng.uniform(-0.25, 0.25, n)
            self.factor /= self.factor.mean()
        if scaling in ("additive", "both"):
            self.level = rng.normal(0, 0.5, n)
            self.level -= self.level.mean()
        truth = self.factor[:, np.newaxis, np.newaxis] * self.background
        truth = truth + self.level[:, np.newaxis, np.newaxis]
        self.samples = (truth + noise * rng.normal(size=(n, *shape))).astype(np.float32)

    def mask(self, where):
        self.samples = np.where(where, np.float32(np.nan), self.samples)
        return self

    def mask_at_random(self, part=0.3, seed=1):
        return self.mask(np.random.default_rng(seed).random(self.samples.shape) < part)

    def error(self, found):
        """Difference from the truth at the mean of the background, but for what all have in common [S]."""
        middle = self.background.mean()
        # The background may be stretched and moved if all factors and levels are.
        shift = np.mean(found.factor * middle + found.level - self.factor * middle - self.level)
        true = self.factor * middle + self.level + shift * found.factor / found.factor.mean()
        return (found.factor * middle + found.level - true) / S


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


def limit(cells, part=1.0):
    """Error of the mean of so many cells [S]."""
    return 1 / np.sqrt(CELL**2 * cells * part)


# Truth


@SCALED
@pytest.mark.parametrize(("n", "cells"), [(5, 200), (10, 500), (60, 200)])
def test_levels_are_as_good_as_the_noise_allows(scaling, n, cells):
    errors = []
    for seed in range(max(2, 100 // n)):
        field = Field(scaling, n, cells, seed=seed)
        found = exposure_levels.fit(field.samples, scaling)
        assert found.converged
        assert found.rounds <= 5
        errors.append(rms(field.error(found)))

    assert rms(errors) < 1.1 * limit(cells)


@SCALED
def test_a_third_of_the_pixels_masked_costs_no_more_than_their_noise(scaling):
    field = Field(scaling, cells=2000).mask_at_random(0.3)

    found = exposure_levels.fit(field.samples, scaling)

    assert found.rounds <= 4
    assert rms(field.error(found)) < 1.1 * limit(2000, 0.7)
    assert found.factor.mean() == pytest.approx(1)
    assert found.level.mean() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("scaling", ["multiplicative", "both"])
def test_factors_are_found(scaling):
    field = Field(scaling, cells=2000, structure=0.5)

    found = exposure_levels.fit(field.samples, scaling)

    # The level shows a factor by its height, structure by its rms.
    height = 4.0 if scaling == "multiplicative" else 0.5 / np.sqrt(2)
    assert rms(found.factor - field.factor) < 1.3 * S * limit(2000) / height


def test_without_scaling_nothing_differs():
    found = exposure_levels.fit(Field("both").samples, "none")

    assert (found.factor == 1).all()
    assert (found.level == 0).all()
    assert found.converged


def test_both_works_for_data_without_a_level():
    field = Field("both", cells=1000, height=0.0, structure=0.5)

    found = exposure_levels.fit(field.samples, "both")

    assert found.converged
    assert rms(found.factor - field.factor) < 0.003
    assert rms(field.error(found)) < 1.1 * limit(1000)


def test_noise_is_no_structure():
    """Where the background is flat, factors stay 1 and levels follow."""
    for scaling, n, cells in (("additive", 10, 1000), ("multiplicative", 10, 1000), ("additive", 50, 100)):
        field = Field(scaling, n, cells, structure=0.0)
        found = exposure_levels.fit(field.samples, "both")

        assert (found.factor == 1).all()
        assert rms(field.error(found)) < 1.1 * limit(cells)


# Masks that differ


def other_half(shape, kind):
    """Mask half of the cells, another one in each exposure."""
    n, cells, _ = shape
    rng = np.random.default_rng(2)
    cell, number = np.arange(cells), np.arange(n)[:, np.newaxis]
    if kind == "scattered":
        masked = rng.random((n, cells)) < 0.5
    elif kind == "blocks":
        masked = (cell - cells * rng.random((n, 1))) % cells < cells / 2
    else:
        # Even exposures see one side, odd ones the other, both a strip of 3 %.
        masked = np.where(number % 2 == 0, cell > 0.515 * cells, cell < 0.485 * cells)
    return masked[..., np.newaxis]


@SCALED
@pytest.mark.parametrize(("kind", "worse"), [("scattered", 1.3), ("blocks", 1.5), ("sides", 4.0)])
@pytest.mark.parametrize("n", [10, 40])
def test_each_exposure_sees_another_half(scaling, kind, worse, n):
    field = Field(scaling, n, 1000)
    field.mask(other_half(field.samples.shape, kind))

    found = exposure_levels.fit(field.samples, scaling)

    assert found.converged
    assert found.rounds <= 8
    # Factors that hang on little of the background are less well known than levels.
    worse *= 2.5 if scaling == "both" and kind != "scattered" else 1
    assert rms(field.error(found)) < worse * limit(1000, 0.5)


def test_a_chain_of_exposures_is_followed_from_end_to_end():
    field = Field("additive", 10, 1100)
    cell, number = np.arange(1100), np.arange(10)[:, np.newaxis]
    field.mask(((cell < 100 * number) | (cell >= 100 * (number + 2)))[..., np.newaxis])

    found = exposure_levels.fit(field.samples, "additive")

    assert found.converged
    # Nine steps, each over 100 cells.
    assert rms(field.error(found)) < 3 * np.sqrt(2) * limit(100)


def test_two_sets_without_a_common_pixel_keep_the_distance_of_their_medians():
    field = Field("additive", 6, 400, structure=0.0)
    masked = np.zeros(field.samples.shape, bool)
    masked[::2, :200] = masked[1::2, 200:] = True
    field.mask(masked)

    found = exposure_levels.fit(field.samples, "additive")

    assert found.converged
    # Within a set the mean decides, between them medians.
    assert rms(field.error(found)) < 1.5 * limit(200)


def test_both_does_not_run_away_where_exposures_share_too_little():
    field = Field("both", 10, 2000)
    cell, number = np.arange(2000), np.arange(10)[:, np.newaxis]
    field.mask(((cell < 180 * number) | (cell >= 180 * (number + 2)))[..., np.newaxis])

    found = exposure_levels.fit(field.samples, "both")

    assert np.abs(np.log(found.factor)).max() < np.log(5)
    # No worse than factors that are not seen: a quarter of the structure.
    assert rms(field.error(found)) < 0.25 * 0.3 / S


# What does not belong to the background


@SCALED
@pytest.mark.parametrize("light", [0.5, 2, 10, 1000])
@pytest.mark.parametrize("n", [5, 10])
def test_stars_in_a_twentieth_of_the_cells_of_one_exposure_move_no_level(scaling, light, n):
    field = Field(scaling, n, 1000)
    before = exposure_levels.fit(field.samples, scaling)
    rng = np.random.default_rng(5)
    hit = rng.random(1000) < 0.05
    field.samples[0, hit] += 2 * light * S * rng.random((hit.sum(), CELL**2))

    after = exposure_levels.fit(field.samples, scaling)

    assert np.abs(field.error(after) - field.error(before)).max() < 0.01


def test_cosmic_rays_move_no_level():
    field = Field("additive", 10, 1000)
    rng = np.random.default_rng(6)
    field.samples[rng.random(field.samples.shape) < 0.01] += 100 * S

    found = exposure_levels.fit(field.samples, "additive")

    assert rms(field.error(found)) < 1.1 * limit(1000)


# Edges


@pytest.mark.parametrize("scaling", SCALINGS)
def test_an_exposure_without_a_pixel_has_no_level_and_changes_no_other(scaling):
    field = Field(scaling, 6, 300)
    others = exposure_levels.fit(np.delete(field.samples, 2, axis=0), scaling)
    field.samples[2] = np.nan

    found = exposure_levels.fit(field.samples, scaling)

    np.testing.assert_array_equal(np.delete(found.factor, 2), others.factor)
    np.testing.assert_array_equal(np.delete(found.level, 2), others.level)
    if scaling != "none":
        assert np.isnan(found.factor[2])
        assert np.isnan(found.level[2])


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("shape", [(3, 10, 64), (3, 0, 64), (1, 10, 64)])
def test_nothing_known_is_nothing_found(scaling, shape):
    found = exposure_levels.fit(np.full(shape, np.nan, np.float32), scaling)

    expected = (1.0, 0.0) if scaling == "none" else (np.nan, np.nan)
    np.testing.assert_array_equal([found.factor, found.level], np.transpose([expected] * shape[0]))


@pytest.mark.parametrize("scaling", SCALINGS)
def test_one_exposure_is_the_background(scaling):
    found = exposure_levels.fit(Field("additive", 1, 50).samples, scaling)

    assert (found.factor[0], found.level[0], found.converged) == (1, 0, True)


@SCALED
@pytest.mark.parametrize("cells", [1, 2, 4])
def test_a_few_cells_are_enough(scaling, cells):
    field = Field("multiplicative" if scaling == "multiplicative" else "additive", 8, cells)

    found = exposure_levels.fit(field.samples, scaling)

    assert rms(field.error(found)) < 1.5 * limit(cells)
    if scaling == "both":
        assert (found.factor == 1).all()


@SCALED
def test_an_exposure_alone_on_its_pixels_keeps_its_median(scaling):
    field = Field(scaling, 5, 300)
    field.samples[:4, 200:] = field.samples[4, :200] = np.nan

    found = exposure_levels.fit(field.samples, scaling)

    assert found.converged
    assert np.isfinite(found.factor).all()
    assert np.isfinite(found.level).all()
    assert np.abs(field.error(found)).max() < 0.6 / S


@SCALED
@pytest.mark.parametrize("value", [3.0, 1e-3, 1e6])
def test_exposures_that_are_all_alike(scaling, value):
    found = exposure_levels.fit(np.full((4, 30, CELL**2), value, np.float32), scaling)

    np.testing.assert_array_equal(found.factor, 1)
    np.testing.assert_allclose(found.level, 0, atol=1e-7 * value)
    assert found.converged


@SCALED
def test_data_without_noise_give_the_truth(scaling):
    field = Field(scaling, 5, 200, noise=0.0)

    found = exposure_levels.fit(field.samples, scaling)

    assert np.abs(field.error(found)).max() < 1e-4


# Properties


@cache
def solved(scaling, n, cells, uneven=False):
    """Samples of a field with masks, and what is found of them: examples have it in common."""
    field = Field(scaling, n, cells)
    field.mask(other_half(field.samples.shape, "blocks")) if uneven else field.mask_at_random()
    return field.samples, exposure_levels.fit(field.samples, scaling)


@SETTINGS
@given(st.permutations(range(7)), st.sampled_from(SCALINGS), st.booleans())
def test_order_changes_nothing_bit_for_bit(order, scaling, uneven):
    samples, found = solved(scaling, 7, 60, uneven)

    moved = exposure_levels.fit(samples[list(order)], scaling)

    np.testing.assert_array_equal(moved.factor, found.factor[list(order)])
    np.testing.assert_array_equal(moved.level, found.level[list(order)])
    assert moved.rounds == found.rounds


@SETTINGS
@given(st.integers(-1000, 1000), st.sampled_from(["additive", "both", "none"]))
def test_a_constant_added_to_all_changes_only_the_background(constant, scaling):
    samples, found = solved(scaling, 6, 100)

    moved = exposure_levels.fit(samples + np.float32(constant), scaling)

    # A factor acts on the constant too: f (B + c) + l - (f - 1) c = f B + l + c.
    level = moved.level + (moved.factor - 1) * constant
    np.testing.assert_allclose(moved.factor, found.factor, atol=1e-4)
    np.testing.assert_allclose(moved.factor * 4 + level, found.factor * 4 + found.level, atol=0.01 * S)


@SETTINGS
@given(st.floats(0.01, 100), st.sampled_from(SCALINGS))
def test_units_do_not_matter(unit, scaling):
    samples, found = solved(scaling, 6, 100)

    scaled = exposure_levels.fit(samples * np.float32(unit), scaling)

    np.testing.assert_allclose(scaled.factor, found.factor, rtol=1e-4)
    np.testing.assert_allclose(scaled.level, found.level * unit, atol=0.005 * S * unit)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_inputs_are_left_alone(scaling):
    samples = Field(scaling, 5, 50).mask_at_random().samples
    kept = samples.copy()

    exposure_levels.fit(samples, scaling)
    exposure_levels.fit_one(samples[0], samples[1], scaling)

    np.testing.assert_array_equal(samples, kept)


# One exposure


@pytest.mark.parametrize("scaling", SCALINGS)
def test_one_exposure_follows_a_known_background(scaling):
    field = Field(scaling, 3, 500).mask_at_random()
    unknown = np.random.default_rng(3).random(field.background.shape) < 0.1
    background = np.where(unknown, np.nan, field.background)

    for k in range(3):
        factor, level = exposure_levels.fit_one(field.samples[k], background, scaling)

        wrong = (factor - field.factor[k]) * 4 + level - field.level[k]
        assert abs(wrong) < 3 * S * limit(500, 0.63)
        if scaling == "none":
            assert (factor, level) == (1, 0)


@SCALED
def test_one_exposure_with_stars(scaling):
    field = Field(scaling, 1, 1000)
    before = exposure_levels.fit_one(field.samples[0], field.background, scaling)
    hit = np.random.default_rng(5).random(1000) < 0.05
    field.samples[0, hit] += 300 * S * np.random.default_rng(6).random((hit.sum(), CELL**2))

    after = exposure_levels.fit_one(field.samples[0], field.background, scaling)

    assert abs((after[0] - before[0]) * 4 + after[1] - before[1]) < 0.01 * S


def test_the_noise_of_a_background_is_no_structure():
    """A flat background with noise of its own has no say on the factor."""
    rng = np.random.default_rng(4)
    background = 4 + S / 3 * rng.normal(size=(1000, CELL**2))
    samples = 5 + S * rng.normal(size=background.shape)

    factor, level = exposure_levels.fit_one(samples, background, "both")

    assert factor == 1
    assert level == pytest.approx(1, abs=4 * S * limit(1000))


@pytest.mark.parametrize("scaling", ["additive", "multiplicative", "both"])
def test_no_common_pixel_is_no_level(scaling):
    samples, background = np.ones((2, 5, CELL**2))
    samples[:3] = background[3:] = np.nan

    assert np.isnan(exposure_levels.fit_one(samples, background, scaling)).all()


# Cells


def test_cells_are_squares_counted_row_by_row():
    image = np.arange(20 * 27).reshape(20, 27)

    cells = exposure_levels.to_cells(image, np.array([0, 4]))

    np.testing.assert_array_equal(cells[0], image[:8, :8].ravel())
    np.testing.assert_array_equal(cells[1], image[8:16, 8:16].ravel())
    assert exposure_levels.to_cells(image, slice(None)).shape == (6, CELL**2)
    assert exposure_levels.to_cells(image[:7], slice(None)).shape == (0, CELL**2)


# Errors


def test_unknown_scaling_is_named():
    samples = np.ones((2, 5, CELL**2), np.float32)
    words = "scaling must be one of additive, multiplicative, both, none, got 'log'"

    with pytest.raises(ValueError, match=words):
        exposure_levels.fit(samples, "log")
    with pytest.raises(ValueError, match=words):
        exposure_levels.fit_one(samples[0], samples[1], "log")


@pytest.mark.parametrize("value", [-0.25, 0.0])
def test_a_factor_needs_a_level(value):
    samples = np.ones((3, 5, CELL**2), np.float32)
    samples[1] = value

    with pytest.raises(ValueError, match=f"levels must be above 0, got {value:g} for exposure 1"):
        exposure_levels.fit(samples, "multiplicative")
    with pytest.raises(ValueError, match=f"levels must be above 0, got {value:g} for the background"):
        exposure_levels.fit_one(samples[0], samples[1], "multiplicative")
    with pytest.raises(ValueError, match=f"levels must be above 0, got {value:g} for the exposure"):
        exposure_levels.fit_one(samples[1], samples[0], "multiplicative")
