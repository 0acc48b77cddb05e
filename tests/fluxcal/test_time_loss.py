"""The loss of sensitivity with time: what is put in comes back, with honest errors."""

import numpy as np
import pytest

from miri_steps.fluxcal import time_loss
from miri_steps.fluxcal.time_loss import T0, YEAR, TimeLoss

TRUTH = 0.03, 0.2, 200.0


def observe(seed, *, truth=TRUTH, error=0.004, noise=True):
    """Look at one star monthly for four years, at two others now and then; a third of it in full frames."""
    random = np.random.default_rng(seed)
    mjd = T0 + np.concatenate([np.linspace(10, 1500, 30), random.uniform(10, 1500, 20)])
    star = np.concatenate([np.zeros(30, int), random.integers(1, 3, 20)])
    subarray = np.where(random.random(50) < 0.3, "FULL", "SUB256")
    level = np.array([1000.0, 300.0, 5000.0])[star] * np.where(subarray == "FULL", 1.02, 1.0)
    rate = level * time_loss.sensitivity(mjd, *truth)
    sigma = error * rate
    return {
        "mjd": mjd,
        "rate": rate + noise * random.normal(0, sigma),
        "error": sigma,
        "star": np.array(["BD+60 1753", "HD 2811", "del UMi"])[star],
        "subarray": subarray,
    }


def found(fit):
    return fit.loss.loss, fit.loss.amplitude, fit.loss.tau


def test_the_sensitivity_is_a_product():
    assert time_loss.sensitivity(T0, *TRUTH) == 1.0
    late = time_loss.sensitivity(T0 + 20 * YEAR, *TRUTH)
    assert late == pytest.approx((1 - 0.6) * 0.8, abs=1e-12)
    assert TimeLoss(*TRUTH, np.zeros((3, 3))).sensitivity(T0 + 200) == pytest.approx(
        (1 - 0.03 * 200 / 365) * (0.2 / np.e + 0.8)
    )


def test_without_noise_all_comes_back():
    fit = time_loss.fit(**observe(1, noise=False))

    np.testing.assert_allclose(found(fit), TRUTH, rtol=1e-6)
    assert fit.factor == {"SUB256": 1.0, "FULL": pytest.approx(1.02, rel=1e-8)}
    assert fit.scale == {
        "BD+60 1753": pytest.approx(1000, rel=1e-8),
        "HD 2811": pytest.approx(300, rel=1e-8),
        "del UMi": pytest.approx(5000, rel=1e-8),
    }
    np.testing.assert_allclose(fit.residual, 0, atol=1e-8)
    assert fit.dof == 50 - 3 - 1 - 3


@pytest.fixture(scope="module", params=[(TRUTH, 0.004), ((0.01, 0.08, 250.0), 0.002)], ids=["long", "short"])
def draws(request):
    truth, error = request.param
    return truth, [time_loss.fit(**observe(seed, truth=truth, error=error)) for seed in range(200)]


def test_errors_are_honest(draws):
    truth, fits = draws
    pulls = [
        [
            *(np.subtract(found(fit), truth) / fit.loss.errors),
            (fit.factor["FULL"] - 1.02) / fit.factor_error["FULL"],
        ]
        for fit in fits
    ]

    width, middle = np.std(pulls, axis=0), np.mean(pulls, axis=0)
    assert (width > 0.9).all() and (width < 1.1).all()
    # The error of a mean of 200 is 0.07; the skewness of tau adds a little.
    assert (np.abs(middle) < 0.25).all()


def test_the_error_of_the_sensitivity_is_its_scatter(draws):
    _, fits = draws
    mjd = T0 + np.array([100.0, 1000.0, 2000.0])
    scatter = np.std([fit.loss.sensitivity(mjd) for fit in fits], axis=0)
    stated = np.mean([fit.loss.sensitivity_error(mjd) for fit in fits], axis=0)
    np.testing.assert_allclose(stated, scatter, rtol=0.15)


def test_scatter_beyond_the_errors_widens_them():
    given = observe(3)
    honest = time_loss.fit(**given)
    small = time_loss.fit(**given | {"error": given["error"] / 3})

    assert small.chi2 == pytest.approx(9 * honest.chi2)
    np.testing.assert_allclose(
        small.loss.errors, honest.loss.errors * np.sqrt(honest.chi2 / honest.dof), rtol=1e-4
    )


def test_a_known_tau_is_kept():
    fit = time_loss.fit(**observe(2, truth=(0.005, 0.02, 200.0)), tau=200.0)

    assert fit.loss.tau == 200.0
    assert fit.loss.errors[2] == 0
    assert abs(fit.loss.loss - 0.005) < 3 * fit.loss.errors[0]


def test_order_and_unit_do_not_matter():
    given = observe(4)
    order = np.random.default_rng(0).permutation(50)
    again = {name: values[order] for name, values in given.items()}
    again |= {"rate": 1e3 * again["rate"], "error": 1e3 * again["error"]}

    np.testing.assert_allclose(found(time_loss.fit(**again)), found(time_loss.fit(**given)), rtol=1e-6)


def fit_without_errors(mjd, rate, error, *, star=None, subarray=None):
    return time_loss.fit_sum(mjd, rate, star=star)


@pytest.mark.parametrize("fit", [time_loss.fit, fit_without_errors])
def test_what_is_not_identifiable_is_refused(fit):
    words = "loss, amplitude and tau are not identifiable from these dates"
    given = observe(1, noise=False)
    late = given["mjd"] > T0 + 1200
    with pytest.raises(ValueError, match=words):
        fit(**{name: values[late][:5] for name, values in given.items()})
    with pytest.raises(ValueError, match=words):
        fit(given["mjd"][:2], given["rate"][:2], given["error"][:2])


@pytest.mark.parametrize("fit", [time_loss.fit, fit_without_errors])
def test_minutes_are_not_years(fit):
    """Four dithers of each of six stars, within a quarter of an hour."""
    random = np.random.default_rng(3)
    mjd = np.repeat(T0 + 100 * np.arange(1, 7), 4) + np.tile(0.003 * np.arange(4), 6)
    star = np.repeat([f"star {k}" for k in range(6)], 4)
    rate = 100 * (1 + 0.002 * random.normal(size=24))
    with pytest.raises(ValueError, match="not identifiable"):
        fit(mjd, rate, 0.002 * rate, star=star)


# As at 5.6 micron, where little is lost exponentially, in a time that is not identifiable.
@pytest.mark.parametrize("truth", [(0.005, 0.01, 300.0), (0.005, 0.02, 400.0), (0.005, 0.03, 500.0)])
def test_little_exponential_loss_leaves_honest_errors(truth):
    days = np.array([100.0, 500.0, 1000.0, 1400.0])
    pulls = []
    for seed in range(40):
        given = observe(seed, truth=truth, error=0.002)
        loss = time_loss.fit(**given, around=time_loss.TAU).loss
        miss = loss.sensitivity(T0 + days) - time_loss.sensitivity(T0 + days, *truth)
        pulls.append(miss / loss.sensitivity_error(T0 + days))
    # What is known of tau beforehand pulls it to 200 days, by less than the errors say.
    assert (np.abs(np.mean(pulls, axis=0)) < 1).all()
    assert (np.std(pulls, axis=0) < 1.1).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rate": -1.0}, r"rate must be finite and above 0, got -1.0 in observation 7"),
        ({"error": 0.0}, r"error must be finite and above 0, got 0.0 in observation 7"),
        ({"mjd": np.nan}, r"mjd must be finite and above 0, got nan in observation 7"),
    ],
)
def test_bad_numbers_are_named(change, words):
    given = observe(1)
    for name, value in change.items():
        given[name] = given[name].copy()
        given[name][7] = value
    with pytest.raises(ValueError, match=words):
        time_loss.fit(**given)
    if "error" not in change:
        with pytest.raises(ValueError, match=words):
            fit_without_errors(**given)


def test_the_reference_must_have_been_used():
    with pytest.raises(
        ValueError, match="reference must be a subarray that was used, of FULL, SUB256, got SUB64"
    ):
        time_loss.fit(**observe(1), reference="SUB64")


def test_filters_between_are_interpolated_with_their_errors():
    short = TimeLoss(0.0, 0.02, 200.0, np.diag([1e-6, 4e-6, 100.0]))
    long = TimeLoss(0.04, 0.22, 240.0, np.diag([4e-6, 1e-6, 400.0]))
    middle = time_loss.interpolate({20.0: long, 10.0: short}, 12.5)

    assert (middle.loss, middle.amplitude, middle.tau) == pytest.approx((0.01, 0.07, 210.0))
    half = np.array([0.02, 0.1, 20.0])
    expected = 0.75 * short.covariance + 0.25 * long.covariance + np.outer(half, half)
    np.testing.assert_allclose(middle.covariance, expected)
    assert time_loss.interpolate({20.0: long, 10.0: short}, 10.0) is short
    with pytest.raises(
        ValueError, match=r"between those of monitored filters, \[10.0, 20.0\] micron, got 25"
    ):
        time_loss.interpolate({20.0: long, 10.0: short}, 25.0)


def test_an_interpolation_is_no_better_than_its_neighbours():
    """Of two that are alike it has their error, and half their difference besides where they differ."""
    mjd = T0 + np.array([100.0, 700.0, 2000.0])
    one = time_loss.fit(**observe(6)).loss
    same = time_loss.interpolate({10.0: one, 12.0: one}, 11.0)
    np.testing.assert_allclose(same.sensitivity_error(mjd), one.sensitivity_error(mjd), rtol=1e-12)

    other = TimeLoss(one.loss + 0.002, one.amplitude, one.tau, one.covariance)
    between = time_loss.interpolate({10.0: one, 12.0: other}, 11.0)
    half = (one.sensitivity(mjd) - other.sensitivity(mjd)) / 2
    np.testing.assert_allclose(
        between.sensitivity_error(mjd), np.hypot(one.sensitivity_error(mjd), half), rtol=0.01
    )


def test_a_sum_tells_too_small_a_loss_and_the_product_the_true_one():
    """3 % a year behind an exponential loss of 23 %, as it might be at 25.5 micron."""
    given = observe(5, truth=(0.03, 0.233, 200.0), error=0.002)
    given["rate"] = np.where(given["subarray"] == "FULL", given["rate"] / 1.02, given["rate"])
    summed = time_loss.fit_sum(given["mjd"], given["rate"], star=given["star"])
    product = time_loss.fit(given["mjd"], given["rate"], given["error"], star=given["star"])

    assert 100 * summed.loss.loss == pytest.approx(2.3, abs=0.15)
    assert 100 * product.loss.loss == pytest.approx(3.0, abs=0.1)
    # What that makes of the sensitivity after four years.
    truth = time_loss.sensitivity(T0 + 4 * YEAR, 0.03, 0.233, 200.0)
    assert summed.loss.sensitivity(T0 + 4 * YEAR) / truth - 1 > 0.015
    assert abs(product.loss.sensitivity(T0 + 4 * YEAR) / truth - 1) < 0.003


def test_a_sum_is_fitted_as_it_is_written():
    """Without noise, of two stars, on the curve that it says."""
    days = np.linspace(10, 1500, 40)
    star = np.where(np.arange(40) % 3 == 0, "a", "b")
    curve = 1 - 0.02 * days / YEAR + 0.15 * (np.exp(-days / 250) - 1)
    found = time_loss.fit_sum(T0 + days, np.where(star == "a", 7.0, 400.0) * curve, star=star)

    assert (found.loss.loss, found.loss.amplitude, found.loss.tau) == pytest.approx(
        (0.02, 0.15, 250), rel=1e-5
    )
    assert found.scale == pytest.approx({"a": 7.0, "b": 400.0}, rel=1e-6)
    assert np.abs(found.residual).max() < 1e-6
    assert found.dof == 40 - 5
    assert np.isnan(found.loss.errors).all()
    given = time_loss.fit_sum(T0 + days, np.where(star == "a", 7.0, 400.0) * curve, star=star, tau=250.0)
    assert given.loss.tau == 250.0
    assert given.loss.loss == pytest.approx(0.02, rel=1e-5)


def test_variances_grow_only_beyond_chance():
    # 1 % of the values of chi square of ten degrees of freedom lie above 23.2.
    assert time_loss.inflation(23.0, 10) == 1.0
    assert time_loss.inflation(23.5, 10) == pytest.approx(2.35)
    assert time_loss.inflation(9.0, 0) == 1.0
