"""Reference files: what is written, and what the pipeline makes of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from jwst.photom import PhotomStep
from jwst.photom.photom import find_row
from jwst.photom.time_dependence import get_correction_table
from stdatamodels.jwst import datamodels

import miri_steps
from miri_steps import simulate
from miri_steps.fluxcal import config, reference_files
from miri_steps.fluxcal.encircled import EncircledEnergy, corrections
from miri_steps.fluxcal.reference_files import About
from miri_steps.fluxcal.time_loss import T0, TimeLoss

SHARED = Path(__file__).parents[3] / "shared" / "data" / "reference" / "jwst_miri_apcorr_0014.fits"
ABOUT = About("A. Stronomer", "2022-05-25", "2026-01-01", history=("From simulated stars.",))
AREA = 2.86e-13
#: What the reference subarray's factor is divided by.
TRANSMISSIONS = {"FULL": 1.02, "BRIGHTSKY": 1.025, "SUB256": 1.0, "SUB128": 1.02, "SUB64": 0.985}
TRANSMISSIONS |= {"SUB128_IP": 1.02, "SUB64_IP": 0.985, "MASK1140": 1.0, "MASKLYOT": 1.0}
#: Before the first light of the imager, and until long after the fuel will be spent.
DATES = [59690.0, T0, T0 + 1e-3, 59800.5, 60000.0, 60500.123456, 61000.0, 62000.25, 63500.0, 65000.0]
PLACES = [
    *(("F560W", "SUB256"), ("F770W", "SUB64_IP"), ("F1000W", "FULL"), ("F1280W", "BRIGHTSKY")),
    *(("F1140C", "MASK1140"), ("F2300C", "MASKLYOT"), ("F2300C", "FULL"), ("F2550W", "SUB128_IP")),
]


@dataclass(frozen=True)
class Calibration:
    """What `reference_files.photom` needs of `FilterCalibration`."""

    factor: float
    error: float
    loss: TimeLoss


def factor_at(mjd, calibration, subarray):
    """Divide the factor by transmission and sensitivity, written out."""
    loss, days = calibration.loss, mjd - 59720
    exponential = loss.amplitude * np.exp(-days / loss.tau) + 1 - loss.amplitude
    return calibration.factor / TRANSMISSIONS[subarray] / ((1 - loss.loss * days / 365) * exponential)


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
    for subarray, transmission in list(TRANSMISSIONS.items())[:7]:
        (row,) = table[(table["filter"] == "F1000W") & (table["subarray"] == subarray)]
        assert row["photmjsr"] == pytest.approx(calibrations["F1000W"].factor / transmission, rel=1e-6)
        assert row["uncertainty"] == pytest.approx(0.001 / transmission, rel=1e-6)
    assert photom.meta.photometry.pixelarea_arcsecsq == pytest.approx(AREA * (180 / np.pi * 3600) ** 2)


@pytest.mark.parametrize(("band", "subarray"), PLACES)
def test_the_pipeline_finds_the_factor_of_the_model_at_any_date(photom, calibrations, band, subarray):
    """By the functions of `PhotomStep`, from the row that it takes."""
    row = find_row(photom.phot_table, {"subarray": subarray, "filter": band})
    found = [photom.phot_table[row]["photmjsr"] / get_correction_table(photom, mjd)[row] for mjd in DATES]
    # It rounds dates to single precision, which is 1/256 of a day.
    expected = [factor_at(float(np.float32(mjd)), calibrations[band], subarray) for mjd in DATES]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    expected = [factor_at(mjd, calibrations[band], subarray) for mjd in DATES]
    np.testing.assert_allclose(found, expected, rtol=4e-6)


@pytest.mark.parametrize(("band", "subarray"), [("F770W", "SUB64_IP"), ("F1140C", "MASK1140")])
@pytest.mark.parametrize("mjd", [59750.25, 63500.0])
def test_the_step_applies_the_model(photom, calibrations, tmp_path, monkeypatch, band, subarray, mjd):
    for name, value in simulate.offline_crds(tmp_path / "crds").items():
        monkeypatch.setenv(name, value)
    path = reference_files.save(photom, tmp_path / "photom.fits")
    rate = datamodels.ImageModel(np.full((4, 4), 2.0, np.float32))
    rate.err = np.full((4, 4), 0.1, np.float32)
    rate.meta.telescope = "JWST"
    rate.meta.instrument.name, rate.meta.instrument.detector = "MIRI", "MIRIMAGE"
    rate.meta.instrument.filter, rate.meta.subarray.name = band, subarray
    rate.meta.exposure.type = "MIR_4QPM" if subarray.startswith("MASK") else "MIR_IMAGE"
    rate.meta.exposure.mid_time = mjd
    rate.meta.observation.date, rate.meta.observation.time = "2026-01-01", "00:00:00"
    cal = PhotomStep.call(rate, override_photom=str(path), override_area="N/A", configure_log=False)

    expected = factor_at(mjd, calibrations[band], subarray)
    assert cal.meta.photometry.conversion_megajanskys == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(cal.data, 2 * expected, rtol=1e-6)
    assert cal.meta.photometry.pixelarea_steradians == pytest.approx(AREA, rel=1e-9)
    assert cal.meta.photometry.pixelarea_arcsecsq == pytest.approx(AREA * (180 / np.pi * 3600) ** 2, rel=1e-9)


def test_transmissions_that_were_solved_for_are_taken(calibrations):
    model = reference_files.photom(
        calibrations, AREA, ABOUT, transmissions={"FULL": 1.02, "sub64": 0.97, "SUB128_IP": 1.02}
    )
    table = model.phot_table
    for subarray, transmission in (("SUB64", 0.97), ("SUB64_IP", 0.97), ("SUB128", 1.02)):
        row = find_row(table, {"subarray": subarray, "filter": "F770W"})
        assert table[row]["photmjsr"] == pytest.approx(calibrations["F770W"].factor / transmission, rel=1e-6)


def test_the_error_of_a_single_star_may_be_unknown(calibrations, tmp_path):
    one = Calibration(0.4, float("nan"), calibrations["F560W"].loss)
    path = reference_files.save(reference_files.photom({"F560W": one}, AREA, ABOUT), tmp_path / "photom.fits")
    table = fits.getdata(path, 1)
    assert np.isnan(table["uncertainty"]).all()
    assert table["photmjsr"][table["subarray"] == "SUB256"] == pytest.approx(0.4)


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
    history = str(fits.getheader(path)["HISTORY"]).splitlines()
    assert history[:2] == ["From simulated stars.", f"Made by miri_steps {miri_steps.__version__}."]


def test_files_are_written_whole_or_not_at_all(photom, tmp_path, monkeypatch):
    path = reference_files.save(photom, tmp_path / "photom.fits")
    assert fits.getheader(path)["FILENAME"] == "photom.fits"
    before = path.read_bytes()

    def fail(hdus, target, **_):
        Path(target).write_bytes(b"SIMPLE")
        raise OSError("disk full")

    monkeypatch.setattr(fits.HDUList, "writeto", fail)
    with pytest.raises(OSError, match="disk full"):
        reference_files.save(photom, path, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"name of a reference file must end in \.fits, got photom\.dat"):
        reference_files.save(photom, tmp_path / "photom.dat")


def test_aperture_corrections_have_the_structure_of_the_flight_file(apertures, tmp_path):
    path = reference_files.save(reference_files.apcorr(apertures, ABOUT), tmp_path / "apcorr.fits")
    table, header = fits.getdata(path, 1), fits.getheader(path)

    assert "in the table of the same name with _errors.ecsv" in str(header["HISTORY"]).replace("\n", "")
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
    # The scatter of a single data set is not known.
    assert np.isnan(table["apcorr_scatter"]).all()
    assert len(table) == 7
    assert table["apcorr"].tolist() == apertures["F770W"].apcorr.tolist()
    assert table["skyin"].value.tolist() == [apertures["F770W"].sky[0]] * 7
    assert str(table["radius"].unit) == "pix"
    with pytest.raises(ValueError, match="at least one filter, got none"):
        reference_files.apcorr_errors({})


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
