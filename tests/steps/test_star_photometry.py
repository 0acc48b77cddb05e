"""`StarPhotometryStep` on simulated stars: from pixels to a calibration, and back through the pipeline."""

import asdf
import numpy as np
import pytest
from astropy import units as u
from astropy.table import QTable, Table
from jwst.datamodels import ModelContainer
from jwst.photom import PhotomStep
from jwst.resample import ResampleStep
from jwst.source_catalog import SourceCatalogStep

from miri_steps import StarPhotometryStep, simulate
from miri_steps.fluxcal import encircled, factors, reference_files
from miri_steps.fluxcal.reference_files import About, Calibration
from miri_steps.fluxcal.time_loss import TimeLoss
from miri_steps.simulate import Scene, grid, observe
from miri_steps.simulate.metadata import CONVERSION

RA, DEC = 269.0, 67.0
BAND, SUBARRAY = "F1000W", "SUB128"
# Of the star [mJy].
FLUX = 40.0
ABOUT = About("A. Stronomer", "2022-05-25", "2026-01-01")


@pytest.fixture(scope="module")
def apertures(tmp_path_factory):
    """Make the aperture correction file of the simulated PSF."""
    psf = simulate.psf(BAND)
    curve = encircled.psf_curve(psf.data, 0.11 / psf.oversample)
    model = reference_files.apcorr({BAND: encircled.corrections(curve)}, ABOUT)
    return str(reference_files.save(model, tmp_path_factory.mktemp("apcorr") / "apcorr.fits"))


@pytest.fixture(scope="module")
def star():
    """Look four times at a star, a fainter one 4.5 arcsec beside it."""
    near = DEC - 4.5 / 3600
    scene = Scene(RA, DEC).with_catalog(
        Table({"ra": [RA, RA], "dec": [DEC, near], "flux_mjy": [FLUX, FLUX / 10]})
    )
    plan = grid(RA, DEC, n=(2, 2), step=1.35, per_visit=4, pa=20.0)
    observation = observe(
        scene, plan, BAND, sky=5.0, noise=0.05, subarray=SUBARRAY, psf=simulate.psf(BAND), seed=3
    )
    models = list(observation)
    for model in models:
        model.meta.target.catalog_name = "J1757132"
    return models


@pytest.fixture(scope="module")
def mosaic(star):
    return ResampleStep.call(ModelContainer([model.copy() for model in star]), configure_log=False)


def measure(images, apertures, **given):
    return StarPhotometryStep.call(images, override_apcorr=apertures, configure_log=False, **given)


def factor_of(table):
    rate = table["rate"].to_value(u.DN / u.s)
    return factors.factor(FLUX / 1e3, rate, table["apcorr"], table["pixel_area"].to_value(u.sr))


def test_exposures_and_mosaic_give_the_calibration_they_were_made_with(star, mosaic, apertures):
    exposures, both = measure(star, apertures), measure(mosaic, apertures)

    assert len(exposures) == 4
    # Light of one exposure depends on the place on a pixel by some 0.2 %.
    np.testing.assert_allclose(factor_of(exposures), CONVERSION, rtol=6e-3)
    assert np.mean(factor_of(exposures)) == pytest.approx(CONVERSION, rel=3e-3)
    assert factor_of(both)[0] == pytest.approx(CONVERSION, rel=1e-2)
    sky = np.hypot((exposures["ra"] - RA * u.deg) * np.cos(np.radians(DEC)), exposures["dec"] - DEC * u.deg)
    assert sky.to_value(u.arcsec).max() < 0.02 * 0.11


def test_the_table_says_all_a_calibrator_needs(star, apertures):
    (row,) = measure(star[0], apertures)

    assert (row["name"], row["type"]) == ("2MASS J17571324+6703409", "A dwarf")
    assert (row["filter"], row["subarray"], row["problem"]) == (BAND, SUBARRAY, "")
    assert row["file"] == star[0].meta.filename
    assert row["timemid"].to_value(u.day) == star[0].meta.exposure.mid_time
    # The sky, and a twentieth of the star in the ring.
    light = FLUX * 1e-9 / (CONVERSION * row["pixel_area"].to_value(u.sr))
    ring = np.pi * (row["skyout"].value ** 2 - row["skyin"].value ** 2)
    assert row["background"].to_value(u.DN / u.s) == pytest.approx(
        5.0 / CONVERSION + 0.05 * light / ring, rel=0.05
    )
    ramp = star[0].meta.exposure.ngroups * star[0].meta.exposure.group_time
    assert row["well_depth"].to_value(u.DN) == pytest.approx(row["peak"].value * ramp)
    assert 0 < row["rate_error"] < 0.01 * row["rate"]
    assert abs(row["x_offset"].value) < 0.02


def test_units_do_not_matter(star, apertures):
    counts = star[0].copy()
    for plane in ("data", "err"):
        setattr(counts, plane, getattr(counts, plane) / CONVERSION)
    counts.meta.bunit_data = "DN/s"
    first, second = measure(star[0], apertures), measure(counts, apertures)
    assert second["rate"][0].value == pytest.approx(first["rate"][0].value, rel=1e-5)

    counts.meta.bunit_data = "mJy"
    with pytest.raises(ValueError, match=r"the unit of .* must be MJy/sr or DN/s, got mJy"):
        measure(counts, apertures)


def test_another_place_can_be_chosen(star, apertures):
    """The fainter star, and a place without any."""
    beside = measure(star[0], apertures, ra=RA, dec=DEC - 4.5 / 3600, within=1.0)
    whole = measure(star[0], apertures)["rate"][0].value
    assert beside["rate"][0].value == pytest.approx(0.1 * whole, rel=0.05)
    nothing = {"ra": RA, "dec": DEC + 3 / 3600, "within": 0.3}
    with pytest.raises(
        ValueError, match=r"no star could be measured: .*mirimage.*: there is no star within 2\.7 pixels"
    ):
        measure(star[0], apertures, **nothing)
    forced = measure(star[0], apertures, **nothing, forced=True)
    assert abs(forced["rate"][0].value) < 0.02 * whole


def test_a_star_that_cannot_be_measured_does_not_stop_the_others(star, apertures):
    saturated = star[1].copy()
    place = [int(round(value)) for value in star[1].meta.wcs.invert(RA, DEC)]
    saturated.data[place[1] - 1 : place[1] + 2, place[0] - 1 : place[0] + 2] = np.nan
    unitless = star[2].copy()
    unitless.meta.bunit_data = "mJy"
    table = measure([star[0], saturated, star[2], unitless], apertures)

    assert "must be MJy/sr or DN/s, got mJy" in table["problem"][3]
    assert np.isnan(table["pixel_area"][3].value)
    table = table[:3]
    assert ["" if not problem else "masked" for problem in table["problem"]] == ["", "masked", ""]
    assert "are masked: is it saturated?" in table["problem"][1]
    assert np.isfinite(table["rate"].value).tolist() == [True, False, True]


def test_tables_are_saved_where_they_are_asked_for(star, apertures, tmp_cwd):
    measure(star[0], apertures)
    assert not list(tmp_cwd.iterdir())
    name = star[0].meta.filename
    star[0].save(name)
    table = measure(name, apertures, save_results=True)
    (path,) = tmp_cwd.glob("*.ecsv")
    assert path.name == name.replace("_cal.fits", "_star_photometry.ecsv")
    saved = QTable.read(path)
    assert saved["rate"][0] == table["rate"][0]
    assert saved["rate"].unit == u.DN / u.s


def test_in_pixel_mode_has_the_apertures_of_its_subarray(star, apertures):
    model = star[0].copy()
    model.meta.subarray.name = "SUB128_IP"
    (found,), (expected,) = measure(model, apertures), measure(star[0], apertures)
    assert found["subarray"] == "SUB128_IP"
    assert found["rate"] == expected["rate"]


def test_another_reference_file_is_named(star, tmp_path):
    path = reference_files.save(
        reference_files.photom(
            {BAND: Calibration(0.5, 0.002, TimeLoss(0, 0, 200, np.zeros((3, 3))))}, 2.8e-13, ABOUT
        ),
        tmp_path / "photom.fits",
    )
    with pytest.raises(ValueError, match=r"photom\.fits must be an aperture correction reference file"):
        measure(star[0], str(path))


def test_parameters_that_make_no_sense_are_named(star, apertures):
    with pytest.raises(ValueError, match="ra and dec must be given together, got ra=3.0 and dec=None"):
        measure(star[0], apertures, ra=3.0)
    with pytest.raises(
        ValueError, match=r"must have one aperture with ee=0.65 for F1000W and SUB128 .*, got 0.20, 0.30"
    ):
        measure(star[0], apertures, ee=0.65)


@pytest.mark.parametrize("mjd", [59750.0, 61000.0])
def test_the_pipeline_applies_our_calibration(star, tmp_path, monkeypatch, mjd):
    """The factor, the subarray's transmission and the loss of sensitivity, in one number."""
    for name, value in simulate.offline_crds(tmp_path / "crds").items():
        monkeypatch.setenv(name, value)
    loss = TimeLoss(0.03, 0.2, 200.0, np.zeros((3, 3)))
    path = reference_files.save(
        reference_files.photom({BAND: Calibration(0.5, 0.002, loss)}, 2.84e-13, ABOUT),
        tmp_path / "photom.fits",
    )
    area = simulate.calibration_files(tmp_path / "files")["photom"]["override_area"]
    rate = star[0].copy()
    rate.meta.exposure.mid_time = mjd
    rate.meta.bunit_data = "DN/s"
    before = rate.data.copy()
    cal = PhotomStep.call(rate, override_photom=str(path), override_area=area, configure_log=False)

    expected = 0.5 / 1.02 / loss.sensitivity(mjd)
    assert cal.meta.photometry.conversion_megajanskys == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(cal.data, before * np.float32(expected), rtol=1e-5)


def test_the_source_catalogue_takes_our_apertures(mosaic, apertures, tmp_path, monkeypatch):
    for name, value in simulate.offline_crds(tmp_path / "crds").items():
        monkeypatch.setenv(name, value)
    meta = {"telescope": "JWST", "reftype": "abvegaoffset", "instrument": {"name": "MIRI"}}
    meta |= {"description": "-", "author": "-", "pedigree": "DUMMY", "useafter": "2022-01-01T00:00:00"}
    offsets = Table({"filter": [BAND], "abvega_offset": [-1.3]})
    asdf.AsdfFile({"meta": meta, "abvega_offset": offsets}).write_to(tmp_path / "abvega.asdf")
    catalogue = SourceCatalogStep.call(
        mosaic.copy(), override_apcorr=apertures, override_abvegaoffset=str(tmp_path / "abvega.asdf"),
        snr_threshold=20, bkg_boxsize=40, kernel_fwhm=2.9, npixels=9, configure_log=False,
    )  # fmt: skip

    brightest = catalogue[np.argmax(catalogue["aper_total_flux"])]
    assert u.Quantity(brightest["aper_total_flux"]).to_value(u.Jy) == pytest.approx(FLUX / 1e3, rel=0.03)
