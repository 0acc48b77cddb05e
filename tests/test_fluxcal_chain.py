"""From a folder of simulated standard stars to reference files: all parts of the calibration together."""

import shutil
import sys

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import QTable, vstack
from stdatamodels.jwst import datamodels

from miri_steps import cli, fluxcal_chain
from miri_steps.fluxcal import config, encircled
from miri_steps.fluxcal.time_loss import T0
from miri_steps.fluxcal_chain import apertures, inputs
from miri_steps.report import star_figures, star_repeatability
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


@pytest.fixture
def undrawn(monkeypatch):
    """Do without matplotlib: to draw takes longer than all else, and the command has drawn everything."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def tables(output, tmp_path):
    """Copy the tables that factors are made of."""
    names = tmp_path / "photometry.ecsv", tmp_path / "fluxes.ecsv"
    for name in names:
        shutil.copy(output / name.name, name)
    return names


def test_the_calibration_comes_back(output, standards):
    (factor,), (loss,) = (QTable.read(output / f"{name}.ecsv") for name in ("factors", "losses"))

    # That of the reference subarray.
    assert factor["filter"] == standards.band
    assert factor["factor"].value == pytest.approx(CONVERSION, rel=0.005)
    assert abs(factor["factor"].value - CONVERSION) < 2 * factor["factor_error"].value
    assert abs(loss["loss"].to_value(u.percent / u.yr) - 3.0) < 2 * loss["loss_error"].value
    found = QTable.read(output / "observations.ecsv")
    assert len(found) == 15
    assert set(found["type"]) == {"hot", "A dwarf", "solar analogue"}
    with datamodels.open(output / "photom.fits") as model:
        (row,) = model.phot_table[(model.phot_table["subarray"] == "SUB64")]
        assert row["photmjsr"] == pytest.approx(CONVERSION / 0.985, rel=0.005)
        (decline,) = model.timecoeff_linear[model.timecoeff_linear["subarray"] == "SUB64"]
        assert decline["lossperyear"] == pytest.approx(standards.loss[0], abs=0.006)
        assert model.meta.pedigree == "INFLIGHT 2022-06-10 2026-03-21"
    history = "".join(fits.getheader(output / "photom.fits")["HISTORY"])
    assert all(file in history for file in found["file"])


def test_everything_is_there(output, standards):
    names = {path.name for path in output.iterdir()}
    assert {"photometry.ecsv", "fluxes.ecsv", "apcorr.fits", "apcorr_errors.ecsv", "photom.fits"} <= names
    assert {"factors.tex", "losses.tex", "types.ecsv", "observations.ecsv", "repeatability.png"} <= names
    band = standards.band
    assert {f"{band}_time.png", f"apcorr_{band}.png", f"photometry_{band}.png"} <= names
    assert "photometry_psfs.png" in names
    assert QTable.read(output / "fluxes.ecsv")[band].to_value(u.mJy).max() == pytest.approx(90.0, rel=1e-3)


@pytest.fixture(scope="module")
def calibrations(output, tmp_path_factory):
    """Calibrate once more from the tables, without matplotlib."""
    folder = tmp_path_factory.mktemp("again") / "out"
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "matplotlib", None)
        found = fluxcal_chain.write_factors(output / "photometry.ecsv", output / "fluxes.ecsv", folder)
    names = {path.name for path in folder.iterdir()}
    assert "photom.fits" in names
    assert not any(name.endswith(".png") for name in names)
    return found


def test_stars_lie_on_the_line_of_the_figure(calibrations):
    """What is drawn has the scale of what was fitted."""
    above, below = star_repeatability.repeatability(calibrations).axes

    assert np.abs(below.lines[0].get_ydata()).max() < 1.0
    assert 0.6 < above.lines[1].get_ydata().min() < above.lines[1].get_ydata().max() < 1.0


def test_tables_of_an_earlier_run_can_be_given(output, tables, calibrations, tmp_path, monkeypatch):
    (before,) = calibrations.values()
    # Each of these figures has its own test.
    monkeypatch.setattr(star_figures, "AGAINST", ("time",))
    wider = QTable({"subarray": ["SUB64", "SUB256"], "transmission": [0.985 * 1.02, 1.02]})
    wider.write(tmp_path / "subarrays.ecsv")
    given = {"losses": output / "losses.ecsv", "transmissions": tmp_path / "subarrays.ecsv"}
    (found,) = fluxcal_chain.write_factors(*tables, tmp_path / "second", **given).values()

    # Rates in the reference subarray are smaller by 2 %.
    assert found.factor == pytest.approx(1.02 * before.factor, rel=1e-9)
    assert found.fit is None
    np.testing.assert_allclose(found.loss.covariance, before.loss.covariance, rtol=1e-6)
    assert found.error == pytest.approx(1.02 * before.error, rel=1e-6)
    # No loss was fitted: there is none to draw.
    assert [path.name for path in (tmp_path / "second").glob("*.png")] == ["F1000W_time.png"]


def test_subarrays_are_solved_for(tables, tmp_path):
    photometry, _ = tables
    cli.main(["fluxcal", "subarrays", str(photometry), "-o", str(tmp_path / "subarrays.ecsv")])
    found, errors = inputs.read_transmissions(tmp_path / "subarrays.ecsv")

    assert found["SUB256"] == 1.0
    assert abs(found["SUB64"] - 0.985) < 2 * errors["SUB64"] < 0.01


def test_what_has_no_model_is_left_out(tables, tmp_path, undrawn):
    photometry, fluxes = tables
    table = QTable.read(photometry)
    other = table[-2:].copy()
    other["name"], other["filter"] = ["HD 1", "10 Lac"], ["F1000W", "F1000W"]
    other["timemid"][1] = np.nan * u.day
    vstack([table, other]).write(photometry, overwrite=True)
    with pytest.warns(UserWarning) as warned:
        (found,) = fluxcal_chain.write_factors(photometry, fluxes, tmp_path / "out").values()

    assert len(found.observations) == len(table)
    words = " ".join(str(warning.message) for warning in warned)
    assert "HD 1 in F1000W" in words and "10 Lac in F1000W" in words


def test_losses_have_errors_from_columns_too(output, tmp_path):
    table = QTable.read(output / "losses.ecsv")
    del table.meta["covariance"]
    table.write(tmp_path / "losses.ecsv")
    (found,) = inputs.read_losses(tmp_path / "losses.ecsv").values()

    assert found.loss == pytest.approx(table["loss"][0].to_value(1 / u.yr))
    np.testing.assert_allclose(found.errors[0], table["loss_error"][0].to_value(1 / u.yr))
    np.testing.assert_allclose(found.errors[2], table["tau_error"][0].to_value(u.day))
    table.remove_columns(["loss_error", "amplitude_error", "tau_error"])
    table["tau"] = table["tau"].value
    table.write(tmp_path / "losses.ecsv", overwrite=True)
    with pytest.raises(ValueError, match="the column tau of .*losses.ecsv must be in d, got"):
        inputs.read_losses(tmp_path / "losses.ecsv")


def test_images_that_are_not_whole_are_refused_by_name(standards, tmp_path):
    (first, *_) = sorted((standards.folder / "stars").iterdir())
    (tmp_path / "half_cal.fits").write_bytes(first.read_bytes()[:50000])
    with pytest.raises(ValueError, match="half_cal.fits is truncated"):
        inputs.survey([first, tmp_path / "half_cal.fits"])


def test_growth_curves_of_bright_stars_are_joined_to_models(standards, tmp_path):
    """In a window that holds the ring around the star."""
    path = tmp_path / "bright_cal.fits"
    standards.look("10LAC", T0 + 100, 77, subarray="SUB256").save(str(path))
    psfs = inputs.find_by_filter(standards.folder / "psfs", (".fits",))
    images = inputs.survey([path])
    joined, model = (apertures.measure(images, psfs, stars)[standards.band] for stars in (["10 Lac"], []))

    assert (joined.corrections.number, model.corrections.number) == (1, 0)
    assert list(joined.stars) == ["bright_cal.fits"]
    np.testing.assert_allclose(joined.corrections.apcorr, model.corrections.apcorr, rtol=5e-3)
    assert not np.array_equal(joined.corrections.apcorr, model.corrections.apcorr)
    expected = encircled.corrections(encircled.read_psf(psfs[standards.band]))
    np.testing.assert_array_equal(model.corrections.apcorr, expected.apcorr)
    with pytest.raises(ValueError, match="bright stars must be targets of the images, but mu Col is not"):
        apertures.measure(images, psfs, ["mu Col"])


def test_images_that_were_drizzled_otherwise_are_refused(standards, tmp_path):
    (first, *_) = sorted((standards.folder / "stars").iterdir())
    with datamodels.open(first) as model:
        model.meta.resample.pixel_scale_ratio, model.meta.resample.pixfrac = 0.5, 1.0
        model.wht = np.ones(model.data.shape, np.float32)
        model.save(str(tmp_path / "star_i2d.fits"))
    with pytest.raises(
        ValueError, match=r"all images must be exposures, or mosaics .* pixel_scale_ratio=0.5"
    ):
        inputs.survey([first, tmp_path / "star_i2d.fits"])


def test_images_are_found(tmp_path, caplog):
    for name in ("a_cal.fits", "sub/b_cal.fits.gz", "c_rate.fits", "d_cal.fits.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in inputs.find_images(tmp_path)] == ["a_cal.fits", "b_cal.fits.gz"]
    (tmp_path / "sub" / "e_i2d.fits").touch()
    assert [path.name for path in inputs.find_images(tmp_path)] == ["e_i2d.fits"]
    assert "1 mosaics are taken, and 2 exposures left" in caplog.text


def test_spectra_and_curves_are_found_by_name(tmp_path, caplog):
    names = (
        "p330e_mod_008.fits",
        "p330e_stiswfcnic_007.fits",
        "wd1057_719_mod_009.fits",
        "hd38949_mod_005.fits",
    )
    for name in (*names, "README.txt", "picture.png"):
        (tmp_path / name).touch()
    found = inputs.find_spectra(tmp_path)
    assert {path.name for path in found.values()} == set(names) - {"p330e_stiswfcnic_007.fits"}
    assert found[config.star("P330E").name].name == "p330e_mod_008.fits"
    assert "README.txt is not taken for a spectrum" in caplog.text

    for name in ("JWST_MIRI.F560W.dat", "miri_f770w_psf.FITS"):
        (tmp_path / name).touch()
    curves = inputs.find_by_filter(tmp_path)
    assert {band: path.name for band, path in curves.items()} == {
        "F560W": "JWST_MIRI.F560W.dat",
        "F770W": "miri_f770w_psf.FITS",
    }
    (tmp_path / "F560W.ecsv").touch()
    with pytest.raises(ValueError, match="there must be one file for F560W, got"):
        inputs.find_by_filter(tmp_path)


@pytest.fixture(scope="module")
def pair(standards, tmp_path_factory):
    """Put two of the images into a folder of their own: all that is given is looked at before a refusal."""
    folder = tmp_path_factory.mktemp("pair")
    for path in sorted((standards.folder / "stars").iterdir())[:2]:
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spectra": "psfs"}, "there must be spectra named after stars in"),
        ({"throughputs": "spectra"}, "there must be files named after filters in"),
        ({"throughputs": "nowhere"}, "there is no folder .*nowhere"),
        ({"directory": "psfs"}, r"there must be files \*_i2d.fits or \*_cal.fits in"),
        ({"output": "stars"}, "exists and is not an empty folder"),
        ({"--ee": "0.85"}, "ee must be one of 0.2, 0.3, .*, got 0.85"),
        ({"--bright": "mu Col"}, "bright stars must be targets of the images, but mu Col is not of"),
        ({"--losses": "nowhere.ecsv"}, "there is no file nowhere.ecsv"),
    ],
)
def test_what_is_missing_is_named(standards, pair, change, words):
    night = standards.folder
    given = {"directory": pair, "output": "fresh"}
    given |= {"spectra": "spectra", "throughputs": "throughputs"}
    given |= {name: value for name, value in change.items() if name in given}
    folders = {name: str(night / folder) for name, folder in given.items()}
    arguments = ["fluxcal", "all", folders["directory"], "-o", folders["output"], f"--psfs={night / 'psfs'}"]
    arguments += [f"--{name}={folders[name]}" for name in ("spectra", "throughputs")]
    arguments += [f"{name}={value}" for name, value in change.items() if name.startswith("--")]
    with pytest.raises(SystemExit, match=words):
        cli.main(arguments)
    assert not (night / "fresh").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["factors", "photom.foo", "fluxes.ecsv", "-o", "new"], "the table must be an .ecsv file, got .*foo"),
        (["factors", "nowhere.ecsv", "fluxes.ecsv", "-o", "new"], "there is no file .*nowhere.ecsv"),
        (
            ["factors", "photometry.ecsv", "fluxes.ecsv", "--losses=fluxes.ecsv", "-o", "new"],
            "fluxes.ecsv must have the columns filter, loss, amplitude, tau, but not filter, loss",
        ),
        (["subarrays", "photometry.ecsv", "-o", "new.csv"], "must end in .ecsv or .tex, got .*new.csv"),
        (["subarrays", "photometry.ecsv", "-o", "fluxes.ecsv"], "fluxes.ecsv exists"),
        (["subarrays", "photometry.ecsv", "-o", "nowhere/x.ecsv"], "there is no folder .*nowhere"),
    ],
)
def test_tables_that_cannot_be_used_are_named(tables, monkeypatch, given, words):
    monkeypatch.chdir(tables[0].parent)
    fits.PrimaryHDU().writeto("photom.foo")
    with pytest.raises(SystemExit, match=words):
        cli.main(["fluxcal", *given])
    assert not (tables[0].parent / "new").exists()
