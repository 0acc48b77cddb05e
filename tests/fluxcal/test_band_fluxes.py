"""Fluxes of models in filters, against integrals done by hand."""

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import Table

from miri_steps.fluxcal import band_fluxes

LIGHT = 2.99792458e18  # [Angstrom/s]


@pytest.fixture
def rayleigh_jeans(tmp_path):
    """Write the spectrum of a hot star: 0.05 Jy at 10 micron."""
    wavelength = np.geomspace(5e4, 30e4, 3000)
    flux = 1e-23 * 0.05 * (wavelength / 1e5) ** -2 * LIGHT / wavelength**2
    columns = [
        fits.Column("WAVELENGTH", "D", array=wavelength, unit="ANGSTROMS"),
        fits.Column("FLUX", "D", array=flux, unit="FLAM"),
    ]
    path = tmp_path / "star_mod_001.fits"
    fits.BinTableHDU.from_columns(columns).writeto(path)
    return path


@pytest.fixture
def box(tmp_path):
    """Write a filter that lets light through between 9.2 and 10.7 micron."""
    wavelength = np.linspace(9.0, 11.0, 201)
    throughput = np.where((wavelength > 9.2) & (wavelength < 10.7), 0.3, 0.0)
    path = tmp_path / "F1000W.ecsv"
    Table({"wavelength": wavelength * u.um, "throughput": throughput}).write(path)
    return path


def test_a_spectrum_is_averaged_over_photons(rayleigh_jeans, box):
    found = band_fluxes.band_flux(band_fluxes.read_spectrum(rayleigh_jeans), band_fluxes.read_throughput(box))

    table = Table.read(box)
    wavelength = np.linspace(9.0, 11.0, 2_000_001)
    throughput = np.interp(wavelength, table["wavelength"], table["throughput"])
    flux = 0.05 * (wavelength / 10) ** -2
    expected = np.trapezoid(flux * throughput / wavelength, wavelength)
    expected /= np.trapezoid(throughput / wavelength, wavelength)
    assert found.unit == u.Jy
    assert found.value == pytest.approx(expected, rel=2e-6)


def test_curves_of_few_points_are_as_good(tmp_path, rayleigh_jeans):
    path = tmp_path / "F1000W.ecsv"
    Table({"wavelength": [9.0, 9.1, 10.9, 11.0] * u.um, "throughput": [0.0, 0.3, 0.3, 0.0]}).write(path)
    found = band_fluxes.band_flux(
        band_fluxes.read_spectrum(rayleigh_jeans), band_fluxes.read_throughput(path)
    )

    wavelength = np.linspace(9.0, 11.0, 2_000_001)
    throughput = np.interp(wavelength, [9.0, 9.1, 10.9, 11.0], [0.0, 0.3, 0.3, 0.0])
    flux = 0.05 * (wavelength / 10) ** -2
    expected = np.trapezoid(flux * throughput / wavelength, wavelength)
    expected /= np.trapezoid(throughput / wavelength, wavelength)
    assert found.value == pytest.approx(expected, rel=1e-5)


def test_tables_name_stars_filters_and_files(rayleigh_jeans, box):
    table = band_fluxes.tabulate({"G 191-B2B": rayleigh_jeans}, {"F1000W": box})

    assert table.colnames == ["name", "F1000W"]
    assert table["F1000W"].unit == u.Jy
    assert table["F1000W"][0].value == pytest.approx(0.051, rel=0.01)
    assert table.meta["files"] == {"G 191-B2B": str(rayleigh_jeans), "F1000W": str(box)}


def write_text(path, unit):
    """Write a triangle about 10 micron without a unit."""
    rows = "".join(f"{w * unit:.10g} {t}\n" for w, t in ((9, 0), (10, 0.3), (11, 0)))
    path.write_text(f"wave throughput\n{rows}")
    return path


@pytest.mark.parametrize("unit", [1.0, 1e4], ids=["micron", "Angstrom"])
def test_wavelengths_without_a_unit_are_those_of_miri(tmp_path, unit):
    curve = band_fluxes.read_throughput(write_text(tmp_path / "f1000w.txt", unit))
    assert curve.pivot().to_value(u.um) == pytest.approx(9.99, abs=0.02)
    np.testing.assert_allclose(curve.waveset[[0, -1]].to_value(u.um), [9, 11])


@pytest.mark.parametrize(
    ("unit", "range"), [(1e3, "9000 to 1.1e.04"), (1e-6, "9e-06 to 1.1e-05"), (10, "90 to 110")]
)
def test_wavelengths_in_no_known_unit_are_refused(tmp_path, unit, range):
    path = write_text(tmp_path / "f1000w.txt", unit)
    words = rf"wavelengths in .*f1000w.txt must have a unit, or be 1 to 60 \(micron\) or .*, but are {range}"
    with pytest.raises(ValueError, match=words):
        band_fluxes.read_throughput(path)


def test_spectra_in_micron_are_refused(tmp_path):
    path = tmp_path / "star.txt"
    path.write_text("".join(f"{w} 1e-15\n" for w in (0.1, 1, 10, 32)))
    with pytest.raises(ValueError, match=r"wavelengths in .*star.txt must be in Angstrom, but end at 32"):
        band_fluxes.read_spectrum(path)
    path.write_text("".join(f"{w} 1e-15\n" for w in (1e3, 1e4, 1e5, 3.2e5)))
    assert band_fluxes.read_spectrum(path).waveset[-1].to_value(u.um) == pytest.approx(32)


def test_a_spectrum_that_ends_within_the_filter_is_refused(tmp_path, rayleigh_jeans, box):
    wavelength = np.linspace(5e4, 10e4, 100)
    path = tmp_path / "short.fits"
    columns = [
        fits.Column("WAVELENGTH", "D", array=wavelength, unit="ANGSTROMS"),
        fits.Column("FLUX", "D", array=np.full(100, 1e-15), unit="FLAM"),
    ]
    fits.BinTableHDU.from_columns(columns).writeto(path)
    with pytest.raises(
        ValueError, match=r"must cover the filter, 9.2\d+ to 10.\d+ micron, but goes from 5.000 to 10.000"
    ):
        band_fluxes.band_flux(band_fluxes.read_spectrum(path), band_fluxes.read_throughput(box))
    words = (
        "no flux of GD 71 in F1000W: the spectrum must cover the filter, 9.2.* but goes from 5.000 to 10.000"
    )
    with pytest.warns(UserWarning, match=words):
        table = band_fluxes.tabulate({"GD 71": path, "18 Sco": rayleigh_jeans}, {"F1000W": box})
    assert np.isnan(table["F1000W"][0])
    assert table["F1000W"][1].value == pytest.approx(0.051, rel=0.01)


def test_a_table_of_nothing_is_refused(box):
    with pytest.raises(ValueError, match="there must be spectra of stars and throughputs .*, got 0 and 1"):
        band_fluxes.tabulate({}, {"F1000W": box})


def test_files_that_are_something_else_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere\.fits"):
        band_fluxes.read_spectrum(tmp_path / "nowhere.fits")
    path = tmp_path / "x.ecsv"
    Table({"a": [1.0], "b": [2.0]}).write(path)
    with pytest.raises(ValueError, match="must have a column wavelength or .*, got a, b"):
        band_fluxes.read_throughput(path)
    image = tmp_path / "image.fits"
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(image)
    with pytest.raises(ValueError, match=r"image\.fits must be a spectrum"):
        band_fluxes.read_spectrum(image)
