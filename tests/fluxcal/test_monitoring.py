"""The loss of sensitivity in tables: which stars tell it, and which of their observations."""

import numpy as np
import pytest
from astropy import units as u
from astropy.table import QTable

from miri_steps.fluxcal import monitoring, time_loss
from miri_steps.fluxcal.time_loss import T0

TRUTH = 0.01, 0.1, 220.0


def observe(seed, *, scatter=1.0):
    """Look at two stars; errors of 0.3 % are stated."""
    random = np.random.default_rng(seed)
    table = QTable({"name": np.repeat(["BD+60 1753", "del UMi"], [30, 10])})
    table["filter"], table["subarray"] = "F1280W", random.choice(["SUB256", "FULL"], 40)
    table["timemid"] = (T0 + random.uniform(5, 1400, 40)) * u.day
    light = time_loss.sensitivity(table["timemid"].value, *TRUTH) * np.repeat([3e-10, 2e-9], [30, 10])
    light *= np.where(table["subarray"] == "FULL", 1.02, 1.0)
    table["light"] = light * (1 + 0.003 * scatter * random.normal(size=40)) * u.DN * u.sr / u.s
    table["relative_error"] = 0.003
    return table


def pulls(fit):
    found = fit.loss.loss, fit.loss.amplitude, fit.loss.tau
    return np.subtract(found, TRUTH) / fit.loss.errors


def test_epochs_count_and_dithers_do_not():
    names = np.repeat(["a", "b", "c"], [4, 4, 20])
    mjd = np.concatenate([T0 + 30 * np.arange(4), T0 + 30 * np.arange(4), T0 + 0.1 * np.arange(20)])
    assert monitoring.seen_again(names, mjd).tolist() == [True] * 8 + [False] * 20
    assert not monitoring.seen_again(names[1:], mjd[1:]).any()


@pytest.mark.parametrize(("step", "epochs"), [(7, 79), (9, 61), (10.5, 105)])
def test_stars_that_are_seen_every_week_are_seen_again(step, epochs):
    """Three years without a gap of more than ten days."""
    mjd = T0 + np.arange(0, 3 * 365, step)
    assert monitoring.seen_again(np.repeat("a", len(mjd)), mjd).all()
    # As many epochs as the first day of each, and that after it, tell.
    assert monitoring._count_epochs(mjd[::-1]) == epochs
    # Seven epochs are not enough, however many observations there are.
    few = mjd[mjd < T0 + 7 * step * (2 if step < 10 else 1) - 0.1]
    assert not monitoring.seen_again(np.repeat("a", len(few)), few).any()


def test_a_wrong_observation_does_not_decide():
    table = observe(1)
    before = monitoring.fit(table, by_subarray=True)
    table["light"][4] *= 0.5
    table["light"][33] *= 1.06
    with pytest.warns(UserWarning, match="is not used for the loss") as warned:
        found = monitoring.fit(table, by_subarray=True)

    assert sorted(str(one.message)[:24] for one in warned) == [
        *("BD+60 1753 in F1280W at ", "del UMi in F1280W at MJD"),
    ]
    assert len(found.residual) == 38
    assert (np.abs(pulls(found)) < 2.5).all()
    assert found.factor["FULL"] == pytest.approx(before.factor["FULL"], abs=2 * before.factor_error["FULL"])
    assert found.factor_error["FULL"] == pytest.approx(before.factor_error["FULL"], rel=0.1)


def test_without_the_wrong_observations_errors_are_honest():
    found = []
    for seed in range(40):
        table, random = observe(seed), np.random.default_rng(100 + seed)
        for row in random.choice(40, 2, replace=False):
            table["light"][row] *= 1 + random.choice([-1, 1]) * random.uniform(0.04, 0.5)
        with pytest.warns(UserWarning, match="is not used for the loss"):
            found.append(pulls(monitoring.fit(table, by_subarray=True)))
    width = np.std(found, axis=0)
    # The error of a width of 40 is a ninth.
    assert (width > 0.75).all() and (width < 1.25).all()


def test_scatter_of_all_is_no_reason_to_leave_one_out():
    """Errors are five times what is stated: they are widened, and nothing is left out."""
    for seed in range(5):
        table = observe(seed, scatter=5.0)
        found = monitoring.fit(table, by_subarray=True)
        assert len(found.residual) == 40
        assert found.chi2 / found.dof == pytest.approx(25, rel=0.5)


def test_if_many_are_wrong_none_is_left_out():
    """All ten observations of a star are wrong, a quarter of the table: so may be anything else."""
    table = observe(2)
    for row, wrong in enumerate(np.linspace(0.5, 1.6, 10), start=30):
        table["light"][row] *= wrong
    found = monitoring.fit(table)
    assert found is None or len(found.residual) == 40


def test_what_is_not_identifiable_is_no_fit():
    assert monitoring.fit(observe(3)[:2]) is None
