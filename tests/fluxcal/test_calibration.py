"""The closed loop: simulated photometry of standard stars gives back the calibration it was made with."""

import numpy as np
import pytest
from astropy import units as u
from astropy.stats import sigma_clip
from astropy.table import QTable, vstack

from miri_steps.fluxcal import calibration, config, tables, time_loss
from miri_steps.fluxcal.time_loss import T0, TimeLoss

IMAGING = [name for name, band in config.bands().items() if name.endswith("W")]
AREA = 2.84e-13
APCORR = 1.5
#: True factor, loss, amplitude and tau of each filter: as in flight, the losses grow with wavelength.
TRUTH = {
    name: (0.3 + 0.05 * k, 0.002 + 0.0035 * k, 0.02 + 0.025 * k, 180.0 + 10 * k)
    for k, name in enumerate(IMAGING)
}
STARS = [
    *("10 Lac", "mu Col", "G 191-B2B", "GD 71", "BD+60 1753", "del UMi", "HD 2811", "HD 163466", "HD 180609"),
    *("2MASS J17430448+6655015", "2MASS J17571324+6703409", "2MASS J18022716+6043356", "16 Cyg B", "18 Sco"),
    *("GSPC P177-D", "GSPC P330-E", "HD 37962", "HD 106252", "HD 167060"),
]  # fmt: skip


def survey(seed, *, noise=0.002, scatter=0.015, bands=tuple(IMAGING)):
    """
    Observe 19 stars in all filters; one of them monthly, two more now and then, in four subarrays.

    Models of stars are wrong by ``scatter``; rates have ``noise``.
    """
    random = np.random.default_rng(seed)
    flux = QTable({"name": STARS})
    rows = []
    for band in bands:
        factor, loss, amplitude, tau = TRUTH[band]
        true = np.geomspace(0.005, 3.0, len(STARS))
        flux[band] = true * (1 + scatter * random.normal(size=len(STARS))) * u.Jy
        for k, star in enumerate(STARS):
            times = {"BD+60 1753": 30, "HD 37962": 6, "del UMi": 4}.get(star, 1)
            for mjd in T0 + np.sort(random.uniform(5, 1400, times)):
                subarray = random.choice(["FULL", "BRIGHTSKY", "SUB256", "SUB64"])
                rate = 1e-6 * true[k] / (factor * APCORR * AREA) * config.transmissions()[subarray]
                rate *= time_loss.sensitivity(mjd, loss, amplitude, tau)
                rows.append(
                    (
                        star,
                        config.star(star).type,
                        band,
                        subarray,
                        mjd,
                        rate * (1 + noise * random.normal()),
                        rate,
                    )
                )
    columns = list(zip(*rows, strict=True))
    table = QTable(dict(zip(("name", "type", "filter", "subarray"), map(list, columns[:4]), strict=True)))
    table["timemid"] = columns[4] * u.day
    table["rate"] = np.array(columns[5]) * u.DN / u.s
    table["rate_error"] = noise * np.array(columns[6]) * u.DN / u.s
    table["apcorr"], table["pixel_area"] = APCORR, AREA * u.sr
    return table, flux


@pytest.fixture(scope="module")
def noise_free():
    return calibration.calibrate(*survey(1, noise=0.0, scatter=0.0), repeatability=1e-5)


def test_without_noise_every_number_comes_back(noise_free):
    assert list(noise_free) == IMAGING
    for band, found in noise_free.items():
        factor, *shape = TRUTH[band]
        assert found.factor == pytest.approx(factor, rel=1e-6)
        np.testing.assert_allclose((found.loss.loss, found.loss.amplitude, found.loss.tau), shape, rtol=1e-4)
        assert found.average.kept.all()
        assert set(found.by_type) == {"hot", "A dwarf", "solar analogue"}
        assert [one.value for one in found.by_type.values()] == pytest.approx([factor] * 3, rel=1e-6)


def test_with_noise_all_is_within_its_errors():
    pulls = {name: [] for name in ("factor", "loss", "amplitude", "tau")}
    for seed in range(24):
        for band, found in calibration.calibrate(*survey(seed), repeatability=0.0).items():
            factor, *shape = TRUTH[band]
            # Where all filters are well monitored none is better known from others.
            assert found.fit is not None
            pulls["factor"].append((found.factor - factor) / found.error)
            values = found.loss.loss, found.loss.amplitude, found.loss.tau
            for name, value, error, true in zip(
                list(pulls)[1:], values, found.loss.errors, shape, strict=True
            ):
                pulls[name].append((value - true) / error)

    # 24 surveys in nine filters: widths to a twentieth.
    assert 0.9 < np.std(pulls["factor"]) < 1.1
    for name, values in pulls.items():
        assert len(values) == 216
        # True taus lie nearer to 200 days than what is known of them beforehand allows for.
        assert 0.85 < np.std(values) < 1.1, name
        assert np.mean(np.abs(values) < 2) > 0.92, name


def test_coronagraphs_take_the_loss_between_imaging_filters():
    table, flux = survey(2, noise=0.0, scatter=0.0, bands=("F1000W", "F1130W", "F1280W"))
    more = table[(table["filter"] == "F1000W") & (table["subarray"] == "FULL")][:5]
    more["filter"], more["subarray"] = "F1065C", "MASK1065"
    flux["F1065C"] = flux["F1000W"]
    both = calibration.calibrate(vstack([table, more]), flux)

    part = (10.563 - 9.953) / (11.309 - 9.953)
    expected = (1 - part) * TRUTH["F1000W"][1] + part * TRUTH["F1130W"][1]
    assert both["F1065C"].loss.loss == pytest.approx(expected, rel=0.01)
    assert both["F1065C"].fit is None
    words = (
        "the loss of F1065C must be given: its stars were not observed often enough, and neither were those"
    )
    with pytest.raises(ValueError, match=words):
        calibration.calibrate(more, flux)
    given = calibration.calibrate(more, flux, losses={"F1065C": TimeLoss(0.0, 0.0, 200.0, np.zeros((3, 3)))})
    assert given["F1065C"].observations["sensitivity"].tolist() == [1.0] * 5


def test_dithers_are_no_epochs():
    """Four exposures within minutes tell nothing of years: the loss is that between other filters."""
    table, flux = survey(7, bands=("F770W", "F1000W", "F1130W"))
    middle = table[table["filter"] == "F1000W"][:0]
    for star in STARS:
        (row, *_) = np.flatnonzero((table["filter"] == "F1000W") & (table["name"] == star))
        dithers = vstack([table[row : row + 1]] * 4)
        dithers["timemid"] += np.arange(4) * 0.003 * u.day
        middle = vstack([middle, dithers])
    found = calibration.calibrate(vstack([table[table["filter"] != "F1000W"], middle]), flux)["F1000W"]

    assert found.fit is None
    assert found.factor == pytest.approx(TRUTH["F1000W"][0], rel=0.03)
    assert found.average.stars == 19


def test_pixels_and_apertures_may_differ():
    """Half of the stars as mosaics of half the pixel scale show them."""
    table, flux = survey(8, noise=0.0, scatter=0.0, bands=("F1000W",))
    before = calibration.calibrate(table, flux)["F1000W"]
    half = np.arange(len(table)) % 2 == 0
    table["rate"][half] *= 4
    table["pixel_area"][half] /= 4
    after = calibration.calibrate(table, flux)["F1000W"]
    assert after.factor == pytest.approx(before.factor, rel=1e-9)
    assert after.loss.loss == pytest.approx(before.loss.loss, rel=1e-6)


def test_unknown_subarrays_are_named():
    table, flux = survey(9, bands=("F1000W",))
    table["subarray"] = "SUB99"
    with pytest.raises(ValueError, match="subarray must be one of FULL, .*, or of a coronagraph, got SUB99"):
        calibration.calibrate(table, flux)


def test_one_bad_observation_changes_little():
    table, flux = survey(3, bands=("F770W",))
    before = calibration.calibrate(table, flux)["F770W"]
    table["rate"][table["name"] == "10 Lac"] *= 0.5
    after = calibration.calibrate(table, flux)["F770W"]

    assert not after.average.kept[table["name"] == "10 Lac"].any()
    assert after.average.kept.sum() >= before.average.kept.sum() - 2
    assert after.factor == pytest.approx(before.factor, rel=0.006)


def test_one_bad_exposure_of_a_monitored_star_changes_little():
    table, flux = survey(15, bands=("F1000W",))
    (row, *_) = np.flatnonzero(table["name"] == "BD+60 1753")
    before = calibration.calibrate(table, flux)["F1000W"]
    table["rate"][row] *= 0.5
    with pytest.warns(UserWarning, match=r"BD\+60 1753 in F1000W at MJD 59\d+\.\d is not used for the loss"):
        after = calibration.calibrate(table, flux)["F1000W"]

    assert not after.observations["kept"][row]
    assert after.factor == pytest.approx(before.factor, abs=before.error / 3)
    assert after.loss.loss == pytest.approx(before.loss.loss, abs=before.loss.errors[0])


def test_the_published_loss_is_too_small():
    """Of 3 % a year behind an exponential loss of 22 % the sum makes 2.3."""
    table, flux = survey(4, noise=0.0, scatter=0.0, bands=("F2550W",))
    ours, legacy = (calibration.calibrate(table, flux, legacy=flag)["F2550W"] for flag in (False, True))

    assert TRUTH["F2550W"][1:3] == pytest.approx((0.03, 0.22))
    assert 100 * ours.loss.loss == pytest.approx(3.0, abs=0.1)
    assert 100 * legacy.loss.loss == pytest.approx(2.3, abs=0.1)
    assert ours.factor == pytest.approx(TRUTH["F2550W"][0], rel=1e-3)
    assert legacy.factor > 1.003 * ours.factor


def test_the_published_average_follows_from_the_published_loss():
    """All of it by hand, from rates as they came."""
    table, flux = survey(10, bands=("F2550W",))
    one = calibration.calibrate(table, flux, legacy=True)["F2550W"]

    days = table["timemid"].value - T0
    sensitivity = (1 - one.loss.loss * days / 365) * (
        1 + one.loss.amplitude * (np.exp(-days / one.loss.tau) - 1)
    )
    rate = table["rate"].value / [config.transmissions()[name] for name in table["subarray"]] / sensitivity
    model = [flux["F2550W"][STARS.index(name)].value for name in table["name"]]
    factor = 1e-6 * np.array(model) / (rate * APCORR * AREA)
    kept = ~sigma_clip(factor, sigma=3.5, maxiters=5).mask
    weight = np.array([1 / np.sum(table["name"] == name) for name in table["name"]])[kept]
    mean = np.average(factor[kept], weights=weight)
    error = np.sqrt((weight * (factor[kept] - mean) ** 2).sum() / (weight.sum() - 1) / weight.sum())
    np.testing.assert_array_equal(one.observations["kept"], kept)
    assert one.factor == pytest.approx(mean, rel=1e-12)
    # Neither the loss nor the subarrays add to it.
    assert one.error == pytest.approx(error, rel=1e-10)
    assert set(one.by_type) == {"hot", "A dwarf", "solar analogue"}


def test_the_published_fit_is_that_of_its_filter():
    table, flux = survey(4, noise=0.0, scatter=0.0, bands=("F2550W",))
    calibrations = calibration.calibrate(table, flux, legacy=True)
    fit = calibrations["F2550W"].fit

    assert tables.losses(calibrations)["fitted"].tolist() == [True]
    assert np.isnan(tables.losses(calibrations)["loss_error"].value).all()
    # Light at the first day, of stars that were seen again.
    expected = 1e-6 * np.geomspace(0.005, 3.0, len(STARS)) / TRUTH["F2550W"][0]
    for star in ("BD+60 1753", "HD 37962", "del UMi"):
        assert fit.scale[star] == pytest.approx(expected[STARS.index(star)], rel=0.01)
    assert set(fit.scale) == {"BD+60 1753", "HD 37962", "del UMi"}
    assert np.abs(fit.residual).max() < 0.01


def test_a_straight_loss_is_published_with_200_days(monkeypatch):
    monkeypatch.setitem(TRUTH, "F560W", (0.3, 0.02, 0.0, 200.0))
    one = calibration.calibrate(*survey(11, noise=0.0, bands=("F560W",)), legacy=True)["F560W"]
    assert one.loss.tau == 200.0
    assert one.loss.loss == pytest.approx(0.02, rel=1e-3)
    assert one.loss.amplitude == pytest.approx(0.0, abs=1e-4)


def test_errors_of_transmissions_are_those_of_the_factor_when_they_change():
    """A transmission that is wrong by its error shifts the factor by what is added to its error."""
    table, flux = survey(12, bands=("F1000W",))
    known, errors = dict(config.transmissions()), {"FULL": 0.02, "SUB64": 0.01, "SUB128": 0.5}
    loss = {"F1000W": TimeLoss(*TRUTH["F1000W"][1:], np.zeros((3, 3)))}

    def solve(**changes):
        return calibration.calibrate(table, flux, losses=loss, **changes)["F1000W"]

    before, after = solve(), solve(transmission_errors=errors)
    shifts = [
        solve(transmissions=known | {name: known[name] + 1e-4 * error}).factor - before.factor
        for name, error in errors.items()
    ]
    assert after.factor == before.factor
    # SUB128 was not used.
    assert shifts[2] == 0
    expected = np.sqrt(before.error**2 + np.sum(np.square(1e4 * np.array(shifts))))
    assert after.error == pytest.approx(expected, rel=2e-3)
    assert after.error > 2 * before.error
    with pytest.raises(ValueError, match="error of the transmission of FULL must be finite and .*, got nan"):
        solve(transmission_errors={"FULL": np.nan})


def test_an_error_that_all_stars_share_does_not_average_out():
    table, flux = survey(13, noise=0.0, scatter=0.0, bands=("F1000W",))
    table["rate"] *= 1.02 / np.array([config.transmissions()[name] for name in table["subarray"]])
    table["subarray"] = np.repeat("FULL", len(table))
    one = calibration.calibrate(table, flux, transmission_errors={"full": 0.0102}, repeatability=1e-6)
    assert one["F1000W"].error == pytest.approx(0.01 * TRUTH["F1000W"][0], rel=1e-3)


def test_a_new_star_and_a_filter_with_one_star():
    """Its factor is told; an error cannot be."""
    table, flux = survey(14, bands=("F1000W",))
    table = table[table["name"] == "BD+60 1753"]
    table["name"], table["type"] = np.repeat("My standard", len(table)), np.repeat("other", len(table))
    flux = flux[flux["name"] == "BD+60 1753"]
    flux["name"] = ["My standard"]
    one = calibration.calibrate(table, flux)["F1000W"]
    assert one.factor == pytest.approx(TRUTH["F1000W"][0], rel=0.05)
    assert np.isnan(one.error)
    assert list(one.by_type) == ["other"]
    assert one.average.stars == 1


def test_order_of_rows_does_not_matter():
    table, flux = survey(5, bands=("F1000W",))
    order = np.random.default_rng(0).permutation(len(table))
    first, second = (calibration.calibrate(rows, flux)["F1000W"] for rows in (table, table[order]))
    assert second.factor == pytest.approx(first.factor, rel=1e-9)


def test_a_star_without_a_model_tells_the_loss_but_no_factor():
    table, flux = survey(6, bands=("F1000W",))
    before = calibration.calibrate(table, flux)["F1000W"]
    words = r"no model flux is known of BD\+60 1753 in F1000W: it is left out of the factor"
    bad = flux.copy()
    bad["F1000W"][STARS.index("BD+60 1753")] = np.nan * u.Jy
    for given in (flux[flux["name"] != "BD+60 1753"], bad):
        with pytest.warns(UserWarning, match=words) as warned:
            after = calibration.calibrate(table, given)["F1000W"]
        assert len(warned) == 1
        # Thirty of the observations that the loss is from are of this star.
        assert (after.loss.loss, after.loss.tau) == (before.loss.loss, before.loss.tau)
        assert "BD+60 1753" in after.fit.scale
        assert len(after.observations) == len(before.observations) - 30
        assert after.average.stars == 18
        assert after.factor == pytest.approx(before.factor, abs=before.error)


def test_a_filter_without_models_does_not_stop_the_others():
    table, flux = survey(16, bands=("F770W", "F1000W", "F1130W"))
    whole = calibration.calibrate(table, flux)
    with pytest.warns(UserWarning) as warned:
        found = calibration.calibrate(table, flux["name", "F770W", "F1130W"])
    words = [str(one.message) for one in warned]
    assert words[-1] == "F1000W is left out: no model flux is known of its stars"
    assert len(words) == 1 + len(STARS)
    assert {band: one.factor for band, one in found.items()} == {
        band: whole[band].factor for band in ("F770W", "F1130W")
    }
    with (
        pytest.warns(UserWarning, match="no model flux is known of"),
        pytest.raises(ValueError, match="fluxes must hold a star observed in F770W, F1000W, F1130W, but"),
    ):
        calibration.calibrate(table, flux["name",])


def test_stars_match_by_any_of_their_names():
    table, flux = survey(17, bands=("F1000W",))
    before = calibration.calibrate(table, flux)["F1000W"]
    other = {"BD+60 1753": "BD60 1753", "GSPC P330-E": "P330E ", "HD 37962": " hd-37962"}
    flux["name"] = [other.get(name, name) for name in STARS]
    after = calibration.calibrate(table, flux)["F1000W"]
    assert after.factor == before.factor
    assert set(after.observations["name"]) == set(STARS)


def test_a_date_that_is_not_known_does_not_stop_the_others():
    table, flux = survey(18, bands=("F1000W",))
    table["timemid"][0] = np.nan * u.day
    with pytest.warns(UserWarning, match="10 Lac in F1000W is left out: its date is not known"):
        found = calibration.calibrate(table, flux)["F1000W"]
    assert found.average.stars == 18


def test_keys_may_be_in_small_letters():
    table, flux = survey(19, bands=("F1000W",))
    loss = TimeLoss(*TRUTH["F1000W"][1:], np.zeros((3, 3)))
    known = {"FULL": 1.03, "BRIGHTSKY": 1.0, "SUB256": 1.0, "SUB64": 0.97}
    errors = {"FULL": 0.01, "SUB64": 0.02}
    large, small = (
        calibration.calibrate(
            table,
            flux,
            losses={name("F1000W"): loss},
            transmissions={name(key): value for key, value in known.items()},
            transmission_errors={name(key): value for key, value in errors.items()},
        )["F1000W"]
        for name in (str.upper, str.lower)
    )
    assert small.loss is large.loss is loss
    assert (small.factor, small.error) == (large.factor, large.error)
    with pytest.raises(ValueError, match="filter must be one of F560W, .*, got F444W"):
        calibration.calibrate(table, flux, losses={"F444W": loss})
    with pytest.raises(ValueError, match="losses must hold F1000W once, got F1000W, f1000w"):
        calibration.calibrate(table, flux, losses={"F1000W": loss, "f1000w": loss})


def test_a_poor_fit_gives_way_to_a_good_interpolation(monkeypatch):
    """Stars of one filter were monitored for two years, and others were seen two years later."""
    for k, band in enumerate(("F770W", "F1000W", "F1130W")):
        monkeypatch.setitem(TRUTH, band, (0.4, 0.01 + 0.001 * k, 0.07 + 0.005 * k, 200.0))
    table, flux = survey(20, bands=("F770W", "F1000W", "F1130W"))
    again = np.isin(table["name"], ["BD+60 1753", "HD 37962", "del UMi"])
    middle = table["filter"] == "F1000W"
    kept = ~middle | ~again | (table["timemid"].value < T0 + 700)
    both, alone = (calibration.calibrate(table[here], flux)["F1000W"] for here in (kept, kept & middle))

    mjd = table["timemid"][kept & middle].value
    truth = time_loss.sensitivity(mjd, *TRUTH["F1000W"][1:])
    error = both.loss.sensitivity_error(mjd)
    assert both.fit is None
    assert (np.abs(both.loss.sensitivity(mjd) - truth) < 2 * error).all()
    # Where there is nothing to interpolate between, its own fit is all there is.
    assert alone.fit is not None
    assert alone.loss.sensitivity_error(mjd).max() > 2 * error.max()


def test_bad_tables_are_named():
    table, flux = survey(6, bands=("F1000W",))
    with pytest.raises(ValueError, match="fluxes must have a column name, got F1000W"):
        calibration.calibrate(table, flux["F1000W",])
    for name in ("name", "filter"):
        without = table.copy()
        without.remove_column(name)
        with pytest.raises(ValueError, match=f"photometry must have the columns {name}, got"):
            calibration.calibrate(without, flux)
    plain = flux.copy()
    plain["F1000W"] = plain["F1000W"].value
    with pytest.raises(ValueError, match="fluxes must have the column F1000W in Jy, got no unit"):
        calibration.calibrate(table, plain)
    again = vstack([flux, flux[:1]])
    assert calibration.calibrate(table, again)["F1000W"].average.stars == 19
    again["name"][-1], again["F1000W"][-1] = "10LAC", 2.5 * u.Jy
    with pytest.raises(ValueError, match=r"fluxes must hold one of 10 Lac in F1000W, got 0.0\d+ and 2.5 Jy"):
        calibration.calibrate(table, again)
    with pytest.raises(ValueError, match="repeatability must be finite and 0 or more, got -0.1"):
        calibration.calibrate(table, flux, repeatability=-0.1)
    other = table[:3].copy()
    other["filter"] = "F444W"
    with pytest.raises(ValueError, match="filters must be of F560W, .*, got F444W"):
        calibration.calibrate(other, flux)
