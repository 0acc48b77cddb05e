"""From a folder of simulated standard stars to reference files: pixels, losses, models and tables
together."""

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import QTable, Table
from stdatamodels.jwst import datamodels

from miri_steps import cli, fluxcal_chain, simulate
from miri_steps.fluxcal import config, encircled, time_loss
from miri_steps.fluxcal.time_loss import T0
from miri_steps.simulate import Scene, grid, observe
from miri_steps.simulate.metadata import CONVERSION

BAND = "F1000W"
LOSS = 0.03, 0.2, 200.0
#: True fluxes [mJy]; the first is observed again and again.
STARS = {"J1757132": 60.0, "BD+60 1753": 40.0, "P330E": 30.0, "10LAC": 90.0}
SPECTRA = {
    "1757132_mod_005": "J1757132",
    "bd60d1753_mod_005": "BD+60 1753",
    "p330e_mod_008": "P330E",
    "10lac_mod_004": "10LAC",
}
LIGHT = 2.99792458e18  # [Angstrom/s]


def look(name, mjd, number, subarray="SUB64"):
    """Look at a star that has faded as the sensitivity has."""
    ra, dec = 10.0 * (1 + list(STARS).index(name)), 60.0
    flux = STARS[name] * float(time_loss.sensitivity(mjd, *LOSS))
    scene = Scene(ra, dec).with_catalog(Table({"ra": [ra], "dec": [dec], "flux_mjy": [flux]}))
    plan = grid(ra, dec, n=(1, 1), step=1.0, per_visit=1, start_time=mjd, observation=number)
    settings = {"sky": 5.0, "noise": 0.05, "bad_pixels": 0.0, "psf": simulate.psf(BAND)}
    (model,) = observe(scene, plan, BAND, subarray=subarray, seed=number, **settings)
    model.meta.target.catalog_name = name
    return model


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Make folders of exposures, spectra, throughput curves and PSFs."""
    folder = tmp_path_factory.mktemp("night")
    for kind in ("stars", "spectra", "throughputs", "psfs"):
        (folder / kind).mkdir()
    dates = [("J1757132", T0 + days) for days in np.linspace(20, 1400, 12)]
    dates += [(name, T0 + 300.0 + 100 * k) for k, name in enumerate(list(STARS)[1:])]
    for number, (name, mjd) in enumerate(dates, start=1):
        model = look(name, mjd, number)
        model.save(str(folder / "stars" / model.meta.filename))
    wavelength = np.linspace(8e4, 12e4, 300)
    for file, name in SPECTRA.items():
        flux = STARS[name] * 1e-26 * LIGHT / wavelength**2
        columns = [
            fits.Column("WAVELENGTH", "D", array=wavelength, unit="ANGSTROMS"),
            fits.Column("FLUX", "D", array=flux, unit="FLAM"),
        ]
        fits.BinTableHDU.from_columns(columns).writeto(folder / "spectra" / f"{file}.fits")
    curve = {"wavelength": np.array([9.0, 9.1, 10.9, 11.0]) * u.um, "throughput": [0.0, 0.3, 0.3, 0.0]}
    Table(curve).write(folder / "throughputs" / f"{BAND}.ecsv")
    psf = simulate.psf(BAND)
    header = fits.Header({"PIXELSCL": 0.11 / psf.oversample})
    fits.PrimaryHDU(psf.data, header).writeto(folder / "psfs" / f"miri_{BAND}_psf.fits")
    return folder


@pytest.fixture(scope="module")
def output(night):
    """Run the command."""
    folder = night / "out"
    arguments = [f"--{kind}={night / kind}" for kind in ("spectra", "throughputs", "psfs")]
    cli.main(["fluxcal", str(night / "stars"), "-o", str(folder), *arguments, "--author", "A. Stronomer"])
    return folder


def test_the_calibration_comes_back(output):
    (factor,), (loss,) = (QTable.read(output / f"{name}.ecsv") for name in ("factors", "losses"))

    # Measured in SUB64, told for the reference subarray.
    truth = CONVERSION * config.transmissions()["SUB64"]
    assert factor["filter"] == BAND
    assert factor["factor"].value == pytest.approx(truth, rel=0.01)
    assert abs(factor["factor"].value - truth) < 3 * factor["factor_error"].value
    found = QTable.read(output / "observations.ecsv")
    assert len(found) == 15
    assert set(found["type"]) == {"hot", "A dwarf", "solar analogue"}
    with datamodels.open(output / "photom.fits") as model:
        (row,) = model.phot_table[(model.phot_table["subarray"] == "SUB64")]
        # The pipeline's factor for the exposures as they are.
        assert row["photmjsr"] == pytest.approx(CONVERSION, rel=0.01)
        (decline,) = model.timecoeff_linear[model.timecoeff_linear["subarray"] == "SUB64"]
        assert decline["lossperyear"] == pytest.approx(LOSS[0], abs=0.006)
        assert model.meta.pedigree == "INFLIGHT 2022-06-10 2026-03-21"


def test_everything_is_there(output):
    names = {path.name for path in output.iterdir()}
    assert {"photometry.ecsv", "fluxes.ecsv", "apcorr.fits", "apertures.ecsv", "photom.fits"} <= names
    assert {"factors.tex", "losses.tex", "repeatability.png", f"{BAND}_time.png"} <= names
    assert QTable.read(output / "fluxes.ecsv")[BAND].to_value(u.mJy).max() == pytest.approx(90.0, rel=1e-3)


def test_growth_curves_of_bright_stars_are_joined_to_models(night, tmp_path):
    """In a window that holds the ring around the star."""
    path = tmp_path / "bright_cal.fits"
    look("10LAC", T0 + 100, 77, subarray="SUB256").save(str(path))
    psfs = fluxcal_chain.find_by_filter(night / "psfs", (".fits",))
    joined, model = (fluxcal_chain.measure_apertures([path], psfs, stars)[BAND] for stars in (["10 Lac"], []))

    assert (joined.number, model.number) == (1, 1)
    np.testing.assert_allclose(joined.apcorr, model.apcorr, rtol=5e-3)
    assert not np.array_equal(joined.apcorr, model.apcorr)
    expected = encircled.corrections(encircled.read_psf(psfs[BAND]))
    np.testing.assert_array_equal(model.apcorr, expected.apcorr)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spectra": "psfs"}, "there must be spectra named after stars in"),
        ({"throughputs": "spectra"}, "there must be files named after filters in"),
        ({"directory": "psfs"}, r"there must be files \*_i2d.fits or \*_cal.fits in"),
        ({"output": "stars"}, "exists and is not an empty folder"),
    ],
)
def test_what_is_missing_is_named(night, change, words):
    given = {"directory": "stars", "output": "fresh"}
    given |= {"spectra": "spectra", "throughputs": "throughputs"} | change
    folders = {name: str(night / folder) for name, folder in given.items()}
    arguments = ["fluxcal", folders["directory"], "-o", folders["output"], f"--psfs={night / 'psfs'}"]
    arguments += [f"--{name}={folders[name]}" for name in ("spectra", "throughputs")]
    with pytest.raises(SystemExit, match=words):
        cli.main(arguments)
    assert not (night / "fresh").exists()
