"""Transmission of subarrays: what stars were observed with comes back, with honest errors."""

import numpy as np
import pytest
from astropy import units as u
from astropy.table import QTable, vstack

from miri_steps.fluxcal import calibration, config, subarrays, time_loss
from miri_steps.fluxcal.time_loss import T0

#: Other than those that are known beforehand.
TRUTH = {"SUB256": 1.0, "FULL": 1.013, "SUB64": 0.975}
LOSSES = {"F770W": (0.005, 0.03, 220.0), "F1280W": (0.01, 0.1, 200.0), "F2550W": (0.03, 0.22, 200.0)}
#: Brightness of stars [DN/s], and how often they are observed.
STARS = {"BD+60 1753": (1000.0, 30), "HD 37962": (300.0, 6), "del UMi": (5000.0, 4), "10 Lac": (800.0, 1)}


def observe(seed, band="F1280W", *, noise=0.003, truth=TRUTH):
    """Look at three stars again and again and at one once, each time in one of the subarrays."""
    random = np.random.default_rng(seed)
    star = np.repeat(list(STARS), [times for _, times in STARS.values()])
    mjd = T0 + random.uniform(5, 1400, len(star))
    subarray = random.choice(list(truth), len(star))
    level = np.array([STARS[name][0] for name in star]) * [truth[name] for name in subarray]
    rate = level * time_loss.sensitivity(mjd, *LOSSES[band])
    table = QTable({"name": star, "subarray": subarray})
    table["type"], table["filter"] = "A dwarf", band
    table["timemid"], table["rate_error"] = mjd * u.day, noise * rate * u.DN / u.s
    table["rate"] = rate * (1 + noise * random.normal(size=len(star))) * u.DN / u.s
    table["apcorr"], table["pixel_area"] = 1.5, 2.84e-13 * u.sr
    return table


def rows_of(found):
    return {row["subarray"]: row for row in found}


def pulls(found):
    return [
        (row["transmission"] - TRUTH[row["subarray"]]) / row["transmission_error"]
        for row in found
        if row["solved"] and row["subarray"] != "SUB256"
    ]


@pytest.fixture(scope="module")
def three():
    return vstack([observe(seed, band) for seed, band in enumerate(LOSSES)])


def test_transmissions_come_back(three):
    found = rows_of(subarrays.solve(three, repeatability=0.0))

    assert list(found) == list(config.transmissions())
    for name in ("FULL", "SUB64"):
        assert found[name]["transmission"] == pytest.approx(TRUTH[name], abs=0.0025)
        assert abs(found[name]["transmission"] - TRUTH[name]) < 2 * found[name]["transmission_error"]
        assert found[name]["filters"] == 3
        # 0.3 % in a third each of 120 observations.
        assert found[name]["transmission_error"] == pytest.approx(0.003 * np.sqrt(2 / 40), rel=0.25)
    # One of the stars was observed once.
    used = three[three["name"] != "10 Lac"]
    for name in TRUTH:
        assert found[name]["observations"] == (used["subarray"] == name).sum()


def test_the_reference_and_what_was_not_observed_are_as_known(three):
    found = rows_of(subarrays.solve(three))

    assert found["SUB256"]["transmission"] == 1.0
    assert found["SUB256"]["transmission_error"] == 0.0
    assert found["SUB128"]["transmission"] == 1.02
    assert [bool(found[name]["solved"]) for name in ("SUB256", "FULL", "SUB128", "BRIGHTSKY")] == [
        *(True, True, False, False),
    ]


def test_errors_are_honest():
    width = np.std([pulls(subarrays.solve(observe(seed), repeatability=0.0)) for seed in range(150)], axis=0)
    assert (width > 0.9).all() and (width < 1.1).all()


def test_without_noise_the_truth_comes_back():
    table = vstack([observe(9, band, noise=0.0) for band in LOSSES])
    found = rows_of(subarrays.solve(table, repeatability=1e-6))
    for name, truth in TRUTH.items():
        assert found[name]["transmission"] == pytest.approx(truth, abs=1e-6)


def test_filters_that_disagree_widen_the_error():
    values = 0.99, 1.0, 1.03
    table = vstack(
        [
            observe(k, band, noise=1e-4, truth={"SUB256": 1.0, "FULL": value})
            for k, (band, value) in enumerate(zip(LOSSES, values, strict=True))
        ]
    )
    full = rows_of(subarrays.solve(table, repeatability=0.0))["FULL"]
    # The error of the mean of three values with this scatter, whatever their own errors are.
    assert full["transmission_error"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(3), rel=0.1)
    assert full["transmission"] == pytest.approx(np.mean(values), abs=0.005)


def test_a_wrong_observation_does_not_decide(three):
    wrong = three.copy()
    (row, *_) = np.flatnonzero((three["filter"] == "F1280W") & (three["subarray"] == "FULL"))
    wrong["rate"][row] *= 0.7
    with pytest.warns(UserWarning, match="in F1280W at MJD .* is not used"):
        found = rows_of(subarrays.solve(wrong, repeatability=0.0))
    for name in ("FULL", "SUB64"):
        assert abs(pulls([found[name]])[0]) < 2
        assert found[name]["filters"] == 3


def test_a_subarray_is_tied_by_stars_and_subarrays_between():
    """SUB64 was used for one star only, and that star never in the reference."""
    table = observe(3)
    first, second = table["name"] == "BD+60 1753", table["name"] == "HD 37962"
    random = np.random.default_rng(5)
    chosen = np.where(first, random.choice(["SUB256", "FULL"], len(table)), "SUB256")
    chosen = np.where(second, random.choice(["SUB64", "FULL"], len(table)), chosen)
    ratio = [TRUTH[new] / TRUTH[old] for new, old in zip(chosen, table["subarray"], strict=True)]
    table["rate"] *= np.array(ratio)
    table["subarray"] = chosen
    found = rows_of(subarrays.solve(table, repeatability=0.0))
    assert found["SUB64"]["solved"]
    assert abs(pulls([found["SUB64"]])[0]) < 2

    # Without FULL nothing leads from one to the other.
    apart = rows_of(subarrays.solve(vstack([table[~second], table[second & (chosen == "SUB64")]])))
    assert not apart["SUB64"]["solved"]
    assert apart["SUB64"]["transmission"] == config.transmissions()["SUB64"]


def test_in_pixel_mode_and_coronagraphs():
    table = observe(4)
    again = table.copy()
    again["subarray"] = [f"{name}_IP" if name == "SUB64" else name for name in table["subarray"]]
    mask = observe(4)[:3]
    mask["subarray"] = ["MASK1550"] * 3
    first, second = (subarrays.solve(given) for given in (table, vstack([again, mask])))
    assert second["transmission"].tolist() == pytest.approx(first["transmission"].tolist(), rel=1e-12)
    assert "MASK1550" not in second["subarray"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"subarray": "SUB256"}, "must have been observed in SUB256 and another .*; got F1280W: SUB256"),
        ({"subarray": "FULL"}, "must have been observed in SUB256 and another .*; got F1280W: FULL"),
        ({"subarray": "MASK1550"}, "got none of the imager"),
        ({"timemid": (T0 + 100) * u.day}, "eight epochs or more unless .*; got F1280W: FULL, SUB256, SUB64"),
        ({"subarray": "SUB99"}, "subarray must be one of FULL, .*, got SUB99"),
    ],
)
def test_what_cannot_be_solved_is_said(change, words):
    table = observe(1)
    for name, value in change.items():
        table[name] = np.repeat(value, len(table)) if isinstance(value, str) else value
    with pytest.raises(ValueError, match=words):
        subarrays.solve(table)


def test_calibration_takes_what_was_solved(three):
    """With true fluxes, true factors come back, which those known beforehand would miss by 1 %."""
    found = subarrays.solve(three, repeatability=0.0)
    flux = QTable({"name": list(STARS)})
    for band in LOSSES:
        flux[band] = [0.4e6 * level * 1.5 * 2.84e-13 for level, _ in STARS.values()] * u.Jy
    columns = found["subarray"].tolist(), found["transmission"].tolist(), found["transmission_error"].tolist()
    names, values, errors = columns
    calibrations = calibration.calibrate(
        three,
        flux,
        transmissions=dict(zip(names, values, strict=True)),
        transmission_errors=dict(zip(names, errors, strict=True)),
        repeatability=0.0,
    )
    for one in calibrations.values():
        assert one.factor == pytest.approx(0.4, rel=0.005)
        assert abs(one.factor - 0.4) < 3 * one.error


def test_pairs_of_one_night_are_enough_where_the_loss_is_given():
    """Even of a loss that is wrong: it cancels."""
    stars = [f"star {k}" for k in range(6)]
    wrong = {"f1280w": time_loss.TimeLoss(0.0, 0.0, 200.0, np.zeros((3, 3)))}
    found = []
    for seed in range(60):
        random = np.random.default_rng(seed)
        table = observe(seed)[:12]
        table["name"], table["subarray"] = np.repeat(stars, 2), np.tile(["SUB256", "FULL"], 6)
        table["timemid"] = (T0 + np.repeat(random.uniform(5, 1400, 6), 2) + np.tile([0, 0.02], 6)) * u.day
        sensitivity = time_loss.sensitivity(table["timemid"].value, *LOSSES["F1280W"])
        rate = 1000 * np.tile([1.0, TRUTH["FULL"]], 6) * sensitivity
        table["rate"] = rate * (1 + 0.003 * random.normal(size=12)) * u.DN / u.s
        table["rate_error"] = 0.003 * rate * u.DN / u.s
        found.append(rows_of(subarrays.solve(table, losses=wrong, repeatability=0.0))["FULL"])
    # Six ratios of two rates; by chance the scatter is beyond the errors in 1 %.
    assert np.median([row["transmission_error"] for row in found]) == pytest.approx(
        TRUTH["FULL"] * 0.003 / np.sqrt(3), rel=0.01
    )
    assert 0.8 < np.std(pulls(found)) < 1.2
    assert abs(np.mean(pulls(found))) < 0.4
    with pytest.raises(ValueError, match="at eight epochs or more unless its loss is given; got F1280W"):
        subarrays.solve(table[:6])
    with pytest.raises(ValueError, match="filter must be one of F560W, .*, got F444W"):
        subarrays.solve(table, losses={"F444W": wrong["f1280w"]})
