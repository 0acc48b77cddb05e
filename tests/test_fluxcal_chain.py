"""From a folder of simulated standard stars to reference files: all parts of the calibration together."""

import numpy as np
import pytest
from astropy import units as u
from astropy.table import QTable
from stdatamodels.jwst import datamodels

from miri_steps import cli, fluxcal_chain
from miri_steps.fluxcal import config, encircled
from miri_steps.fluxcal.time_loss import T0
from miri_steps.simulate.metadata import CONVERSION


@pytest.fixture(scope="module")
def output(standards):
    """Run the command."""
    night = standards.folder
    folder = night / "out"
    arguments = [f"--{kind}={night / kind}" for kind in ("spectra", "throughputs", "psfs")]
    arguments = ["fluxcal", "all", str(night / "stars"), *arguments, "--author", "A. Stronomer"]
    cli.main([*arguments, "-o", str(folder)])
    return folder


def test_the_calibration_comes_back(output, standards):
    (factor,), (loss,) = (QTable.read(output / f"{name}.ecsv") for name in ("factors", "losses"))

    # Measured in SUB64, told for the reference subarray.
    truth = CONVERSION * config.transmissions()["SUB64"]
    assert factor["filter"] == standards.band
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
        assert decline["lossperyear"] == pytest.approx(standards.loss[0], abs=0.006)
        assert model.meta.pedigree == "INFLIGHT 2022-06-10 2026-03-21"


def test_everything_is_there(output, standards):
    names = {path.name for path in output.iterdir()}
    assert {"photometry.ecsv", "fluxes.ecsv", "apcorr.fits", "apcorr_errors.ecsv", "photom.fits"} <= names
    assert {"factors.tex", "losses.tex", "repeatability.png", f"{standards.band}_time.png"} <= names
    assert QTable.read(output / "fluxes.ecsv")[standards.band].to_value(u.mJy).max() == pytest.approx(
        90.0, rel=1e-3
    )


def test_growth_curves_of_bright_stars_are_joined_to_models(standards, tmp_path):
    """In a window that holds the ring around the star."""
    path = tmp_path / "bright_cal.fits"
    standards.look("10LAC", T0 + 100, 77, subarray="SUB256").save(str(path))
    psfs = fluxcal_chain.find_by_filter(standards.folder / "psfs", (".fits",))
    joined, model = (
        fluxcal_chain.measure_apertures([path], psfs, stars)[standards.band] for stars in (["10 Lac"], [])
    )

    assert (joined.number, model.number) == (1, 0)
    np.testing.assert_allclose(joined.apcorr, model.apcorr, rtol=5e-3)
    assert not np.array_equal(joined.apcorr, model.apcorr)
    expected = encircled.corrections(encircled.read_psf(psfs[standards.band]))
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
def test_what_is_missing_is_named(standards, change, words):
    night = standards.folder
    given = {"directory": "stars", "output": "fresh"}
    given |= {"spectra": "spectra", "throughputs": "throughputs"} | change
    folders = {name: str(night / folder) for name, folder in given.items()}
    arguments = ["fluxcal", "all", folders["directory"], "-o", folders["output"], f"--psfs={night / 'psfs'}"]
    arguments += [f"--{name}={folders[name]}" for name in ("spectra", "throughputs")]
    with pytest.raises(SystemExit, match=words):
        cli.main(arguments)
    assert not (night / "fresh").exists()
