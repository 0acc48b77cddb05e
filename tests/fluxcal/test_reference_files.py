"""Reference files: what is written, and what the pipeline makes of it."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from jwst.photom.time_dependence import get_correction_table
from stdatamodels.jwst import datamodels

from miri_steps.fluxcal import config, reference_files
from miri_steps.fluxcal.encircled import EncircledEnergy, corrections
from miri_steps.fluxcal.reference_files import About, Calibration
from miri_steps.fluxcal.time_loss import T0, TimeLoss

SHARED = Path(__file__).parents[3] / "shared" / "data" / "reference" / "jwst_miri_apcorr_0014.fits"
ABOUT = About("A. Stronomer", "2022-05-25", "2026-01-01", history=("From simulated stars.",))
AREA = 2.86e-13


@pytest.fixture(scope="module")
def calibrations():
    """A factor and a loss of its own for each filter."""
    return {
        name: Calibration(0.3 + 0.01 * k, 0.001, TimeLoss(0.002 * k, 0.02 * k, 150.0 + k, np.zeros((3, 3))))
        for k, name in enumerate(config.bands())
    }


@pytest.fixture(scope="module")
def photom(calibrations):
    return reference_files.photom(calibrations, AREA, ABOUT)


@pytest.fixture(scope="module")
def apertures():
    radius = np.geomspace(0.2, 20, 200)
    return {
        name: corrections(EncircledEnergy(radius, 1 - np.exp(-(radius**2) / 8))) for name in config.bands()
    }


def test_all_tables_match_row_by_row(photom):
    for table in (photom.timecoeff_linear, photom.timecoeff_exponential):
        for column in ("filter", "subarray"):
            assert table[column].tolist() == photom.phot_table[column].tolist()
    rows = set(zip(photom.phot_table["filter"].tolist(), photom.phot_table["subarray"].tolist(), strict=True))
    assert len(rows) == len(photom.phot_table)
    assert {(b"F770W".decode(), "SUB64_IP"), ("F770W", "SUB128_IP"), ("F1140C", "MASK1140")} <= rows


def test_subarrays_have_the_factors_of_their_transmission(photom, calibrations):
    table = photom.phot_table
    for subarray, transmission in (config.transmissions() | {"SUB64_IP": 0.985, "SUB128_IP": 1.02}).items():
        (row,) = table[(table["filter"] == "F1000W") & (table["subarray"] == subarray)]
        assert row["photmjsr"] == pytest.approx(calibrations["F1000W"].factor / transmission, rel=1e-6)
        assert row["uncertainty"] == pytest.approx(0.001 / transmission, rel=1e-6)
    assert photom.meta.photometry.pixelarea_arcsecsq == pytest.approx(AREA * (180 / np.pi * 3600) ** 2)


@pytest.mark.parametrize("mjd", [59720.0, 59800.5, 60500.0, 62000.25])
def test_the_pipeline_corrects_by_the_model_at_any_date(photom, calibrations, mjd):
    found = get_correction_table(photom, mjd)
    expected = [calibrations[name].loss.sensitivity(mjd) for name in photom.phot_table["filter"]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_files_are_read_back(photom, tmp_path):
    path = reference_files.save(photom, tmp_path / "photom.fits")
    with datamodels.open(path) as model:
        assert isinstance(model, datamodels.MirImgPhotomModel)
        assert model.phot_table.tolist() == photom.phot_table.tolist()
        assert model.timecoeff_linear["t0"][0] == T0
        assert model.meta.pedigree == "INFLIGHT 2022-05-25 2026-01-01"
        assert model.meta.author == "A. Stronomer"
    with pytest.raises(FileExistsError, match=r"photom\.fits exists; overwrite must be True"):
        reference_files.save(photom, path)
    assert "From simulated stars." in str(fits.getheader(path)["HISTORY"])


def test_aperture_corrections_have_the_structure_of_the_flight_file(apertures, tmp_path):
    path = reference_files.save(reference_files.apcorr(apertures, ABOUT), tmp_path / "apcorr.fits")
    table, header = fits.getdata(path, 1), fits.getheader(path)

    assert len(table) == 59 * 7
    assert header["CHANNEL"] == "N/A"
    first = table[(table["filter"] == "FND") & (table["subarray"] == "SLITLESSPRISM")]
    np.testing.assert_allclose(first["eefraction"], [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    if SHARED.exists():
        flight = fits.getdata(SHARED, 1)
        assert table.columns.names == flight.columns.names
        assert [c.format[-1] for c in table.columns] == [c.format[-1] for c in flight.columns]
        # The flight file cuts SLITLESSPRISM short.
        rows = [
            {(row["filter"], row["subarray"].removesuffix("RISM")) for row in rows}
            for rows in (table, flight)
        ]
        assert rows[0] == rows[1]
        assert len(flight) == len(table)
        assert fits.getheader(SHARED)["P_EXP_TY"] == header["P_EXP_TY"]


def test_errors_are_in_a_table_of_their_own(apertures):
    table = reference_files.apcorr_errors({"F770W": apertures["F770W"]})
    assert table["apcorr_scatter"].tolist() == [0.0] * 7
    assert str(table["radius"].unit) == "pix"


def test_bad_input_is_named(calibrations, apertures):
    with pytest.raises(ValueError, match="filter must be one of .*, got F444W"):
        reference_files.photom({"F444W": calibrations["F560W"]}, AREA, ABOUT)
    with pytest.raises(ValueError, match="at least one filter, got none"):
        reference_files.apcorr({}, ABOUT)
    with pytest.raises(ValueError, match="pixel_area must be finite and above 0, got nan"):
        reference_files.photom(calibrations, float("nan"), ABOUT)
    wrong = Calibration(-1.0, 0.1, calibrations["F560W"].loss)
    with pytest.raises(ValueError, match="factor and tau of F560W must be finite and above 0"):
        reference_files.photom({"F560W": wrong}, AREA, ABOUT)
    with pytest.raises(ValueError, match="Invalid isoformat"):
        reference_files.photom(calibrations, AREA, About("me", "yesterday", "today"))
