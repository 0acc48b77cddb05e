"""PSFs of stpsf: what is asked of it, what is written, and, where it is installed, that it runs."""

import sys
from types import ModuleType

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from miri_steps.fluxcal import config, encircled, model_psfs

# Side of a sample [arcsec].
SAMPLE = 0.11 / 4


class Miri:
    """What stpsf's class does with a Gaussian of 2 pixels."""

    def __init__(self):
        self.options, self.filter, self.image_mask = {}, None, None
        self.asked = []

    def calc_psf(self, fov_arcsec, oversample, normalize):
        self.asked.append(
            (self.filter, self.image_mask, self.options["coron_shift_x"], self.options["coron_shift_y"])
        )
        n = 2 * int(round(fov_arcsec / SAMPLE / 2)) + 1
        axis = np.exp(-0.5 * ((np.arange(n) - n // 2) / 8) ** 2)
        image = fits.ImageHDU(np.outer(axis, axis) / (2 * np.pi * 64) * 0.99, name="OVERDIST")
        image.header.update(PIXELSCL=SAMPLE, OVERSAMP=oversample, NORMALIZ=normalize, AUTHOR="user@host")
        if self.image_mask:
            image.header["CORONMSK"] = self.image_mask
        return fits.HDUList([fits.PrimaryHDU(), image])


@pytest.fixture
def miri(monkeypatch, tmp_path):
    """Install it, with data."""
    stpsf, instrument = ModuleType("stpsf"), Miri()
    stpsf.MIRI = lambda: instrument
    monkeypatch.setitem(sys.modules, "stpsf", stpsf)
    (tmp_path / "version.txt").write_text("2.2.0")
    monkeypatch.setenv("STPSF_PATH", str(tmp_path))
    return instrument


def test_growth_curves_of_the_files_reach_as_far_as_stars_are_compared_with_them(miri, tmp_path):
    found = model_psfs.compute(["F560W", "f1140c"], tmp_path)

    assert found == {name: tmp_path / f"{name}.fits" for name in ("F560W", "F1140C")}
    for name, path in found.items():
        curve = encircled.read_psf(path)
        assert curve.radius[-1] > 1.4 * config.band(name).join
        # Its light is 0.99; two boxes of a pixel widen the variance of 4 by a sixth.
        assert curve.radius_of(0.5) == pytest.approx(
            np.sqrt(-2 * (4 + 1 / 6) * np.log(1 - 0.5 / 0.99)), rel=2e-3
        )
    header = fits.getheader(found["F1140C"])
    assert (header["PIXELSCL"], header["OVERSAMP"], header["CORONMSK"]) == (SAMPLE, 4, "FQPM1140")
    assert header["NORMALIZ"] == "exit_pupil"
    assert "AUTHOR" not in header


def test_stars_are_beside_the_masks_of_coronagraphs(miri, tmp_path):
    model_psfs.compute(["F1065C", "F770W", "F2300C"], tmp_path)
    assert miri.asked == [
        ("F1065C", "FQPM1065", 6, 6),
        ("F770W", None, 0, 0),
        ("F2300C", "LYOT2300", 7.5, 7.5),
    ]


def test_the_folder_is_made(miri, tmp_path):
    found = model_psfs.compute(["F770W"], tmp_path / "new" / "psfs")
    assert found["F770W"] == tmp_path / "new" / "psfs" / "F770W.fits"
    assert found["F770W"].is_file()


def test_a_file_is_whole_or_as_it_was(miri, tmp_path, monkeypatch):
    (tmp_path / "F770W.fits").write_text("older")
    monkeypatch.setattr(fits.PrimaryHDU, "writeto", lambda self, path: path.write_text("half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model_psfs.compute(["F770W"], tmp_path)
    assert (tmp_path / "F770W.fits").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["F770W.fits", "version.txt"]


def test_what_is_missing_is_named(miri, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="filter must be one of F560W.*, got F200W"):
        model_psfs.compute(["F200W"], tmp_path)
    with pytest.raises(NotADirectoryError, match="folder for PSFs must not be a file, got .*version.txt"):
        model_psfs.compute(["F770W"], tmp_path / "version.txt")
    monkeypatch.setenv("STPSF_PATH", "nowhere")
    with pytest.raises(FileNotFoundError, match="must name the folder of stpsf's data, got 'nowhere'"):
        model_psfs.compute(["F770W"], tmp_path)
    monkeypatch.setitem(sys.modules, "stpsf", None)
    with pytest.raises(ImportError, match=r"not installed: pip install 'miri-steps\[stpsf\]'"):
        model_psfs.compute(["F770W"], tmp_path)


def _optic(path, image):
    hdu = fits.PrimaryHDU(image.astype("f4"))
    # Size of a sample of the pupil [m].
    hdu.header.update(PUPLSCAL=6.603464 / len(image), VERSION="test", BUNIT="micron")
    path.parent.mkdir(parents=True, exist_ok=True)
    hdu.writeto(path)


@pytest.fixture
def round_telescope(tmp_path, monkeypatch):
    """Make data of stpsf for a round mirror of 6.4 m without errors, with round stops of 5.8 m."""
    pytest.importorskip("stpsf", reason="needs stpsf, an optional extra")
    y, x = (np.indices((1024, 1024)) - 511.5) * 6.603464 / 1024
    mirror, stop = (np.hypot(x, y) < diameter / 2 for diameter in (6.4, 5.8))
    for name in ("jwst_pupil_RevW", "JWpupil_segments_RevW"):
        _optic(tmp_path / f"{name}_npix1024.fits.gz", mirror)
    _optic(tmp_path / "JWST_OTE_OPD_cycle1_example_2022-07-30.fits", 0 * x)
    _optic(tmp_path / "MIRI" / "optics" / "MIRI_tricontagon_oversized_rotated.fits.gz", 0 * x + 1)
    _optic(tmp_path / "MIRI" / "optics" / "MIRI_FQPMLyotStop.fits.gz", stop)
    errors = {f"Zernike_{i}": np.zeros(4) for i in range(1, 37)}
    field = {"V2": [-9.0, -9, -5, -5], "V3": [-8.0, -4, -8, -4], "field_point_name": list("abcd")}
    Table({"instrument": ["MIRI"] * 4, **field, **errors}).write(tmp_path / "si_zernikes_isim_cv3.fits")
    (tmp_path / "version.txt").write_text("2.2.0")
    (tmp_path / "MIRI" / "filters.tsv").write_text("filter\tnlambda\nF1000W\t1\nF1065C\t1\n")
    for name, wavelength in (("F1000W", 10.0), ("F1065C", 10.575)):
        angstrom = np.linspace(wavelength - 0.5, wavelength + 0.5, 21) * 1e4
        table = fits.BinTableHDU(Table({"WAVELENGTH": angstrom, "THROUGHPUT": np.bartlett(21)}))
        table.header["WAVEUNIT"] = "angstrom"
        (tmp_path / "MIRI" / "filters").mkdir(exist_ok=True)
        table.writeto(tmp_path / "MIRI" / "filters" / f"{name}_throughput.fits")
    monkeypatch.setenv("STPSF_PATH", str(tmp_path))
    return tmp_path


@pytest.mark.filterwarnings("ignore")
def test_stpsf_computes_round_telescopes(round_telescope):
    found = model_psfs.compute(["F1000W", "F1065C"], round_telescope)

    for band, wavelength, diameter in (("F1000W", 10.0, 6.4), ("F1065C", 10.575, 5.8)):
        image, header = fits.getdata(found[band], header=True)
        assert np.unravel_index(np.argmax(image), image.shape) == pytest.approx(
            np.array(image.shape) / 2, abs=1
        )
        curve = encircled.read_psf(found[band])
        # An Airy pattern has half its light within 0.535 wavelength / diameter; pixels and detector widen it.
        pixel = header["PIXELSCL"] * header["OVERSAMP"]
        half = 0.535 * wavelength * 1e-6 / diameter * 206264.8 / pixel
        assert half < curve.radius_of(0.5) < 1.15 * half
        assert 0.97 < curve.energy[-1] < 0.998
        assert (header["FILTER"], header["NORMALIZ"], header["OVERSAMP"]) == (band, "exit_pupil", 4)
