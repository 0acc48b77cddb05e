"""`StarPhotometryStep` on simulated stars: from pixels to a calibration, and back through the pipeline."""

import gzip
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import asdf
import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import QTable, Table
from jwst.datamodels import ModelContainer, ModelLibrary
from jwst.photom import PhotomStep
from jwst.resample import ResampleStep
from jwst.source_catalog import SourceCatalogStep
from photutils.aperture import CircularAnnulus, CircularAperture
from stdatamodels.jwst import datamodels

from miri_steps import StarPhotometryStep, simulate
from miri_steps.fluxcal import encircled, factors, reference_files
from miri_steps.fluxcal.encircled import Resampling
from miri_steps.fluxcal.reference_files import About
from miri_steps.fluxcal.time_loss import TimeLoss
from miri_steps.simulate import Scene, grid, observe
from miri_steps.simulate.metadata import CONVERSION
from miri_steps.steps import star_images

RA, DEC = 269.0, 67.0
BAND, SUBARRAY = "F1000W", "SUB128"
# Of the star [mJy].
FLUX = 40.0
ABOUT = About("A. Stronomer", "2022-05-25", "2026-01-01")


def psf_of(band):
    return simulate.psf(band, half_size=64)


def make_apertures(folder, band=BAND, resampling=None, about=ABOUT):
    """Make the aperture correction file of a simulated PSF."""
    psf = psf_of(band)
    curve = encircled.psf_curve(psf.data, 0.11 / psf.oversample, resampling)
    model = reference_files.apcorr({band: encircled.corrections(curve)}, about)
    return str(reference_files.save(model, folder / "apcorr.fits"))


@pytest.fixture(scope="module")
def apertures(tmp_path_factory):
    return make_apertures(tmp_path_factory.mktemp("apcorr"))


@pytest.fixture(scope="module")
def star():
    """Look four times at a star, a fainter one 4.5 arcsec beside it."""
    near = DEC - 4.5 / 3600
    scene = Scene(RA, DEC).with_catalog(
        Table({"ra": [RA, RA], "dec": [DEC, near], "flux_mjy": [FLUX, FLUX / 10]})
    )
    plan = grid(RA, DEC, n=(2, 2), step=1.35, per_visit=4, pa=20.0)
    observation = observe(scene, plan, BAND, sky=5.0, noise=0.05, subarray=SUBARRAY, psf=psf_of(BAND), seed=3)
    models = list(observation)
    for model in models:
        model.meta.target.catalog_name = "J1757132"
    return models


def resample(star, **given):
    models = ModelContainer([model.copy() for model in star])
    return ResampleStep.call(models, configure_log=False, **given)


@pytest.fixture(scope="module")
def mosaic(star):
    return resample(star)


def measure(images, apertures, **given):
    return StarPhotometryStep.call(images, override_apcorr=apertures, configure_log=False, **given)


def factor_of(table):
    rate = table["rate"].to_value(u.DN / u.s)
    return factors.factor(FLUX / 1e3, rate, table["apcorr"], table["pixel_area"].to_value(u.sr))


def off_by(table, ra, dec):
    """Tell how far the stars are from where they should be [native pixel]."""
    east, north = (table["ra"].value - ra) * np.cos(np.radians(dec)), table["dec"].value - dec
    return np.hypot(east, north) * 3600 / 0.11


def test_exposures_give_the_calibration_they_were_made_with(star, apertures):
    table = measure(star, apertures)

    assert len(table) == 4
    # Light of one exposure depends on the place on a pixel by some 0.1 %.
    np.testing.assert_allclose(factor_of(table), CONVERSION, rtol=3e-3)
    assert np.mean(factor_of(table)) == pytest.approx(CONVERSION, rel=1e-3)
    assert off_by(table, RA, DEC).max() < 0.02
    assert all(table["area_corrected"])


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_so_do_mosaics_of_any_pixels(star, mosaic, tmp_path, ratio):
    model = mosaic if ratio == 1 else resample(star, pixel_scale_ratio=ratio)
    resampling = star_images.resampling(model)
    table = measure(model, make_apertures(tmp_path, resampling=resampling))

    assert resampling == Resampling(pixfrac=1.0, pixel_scale_ratio=ratio)
    assert table["pixel_area"][0].value == pytest.approx(ratio**2 * 2.86e-13, rel=0.01)
    assert factor_of(table)[0] == pytest.approx(CONVERSION, rel=3e-3)
    assert off_by(table, RA, DEC)[0] < 0.02
    assert table["area_corrected"][0]


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
        5.0 / CONVERSION + 0.05 * light / ring, rel=0.01
    )
    ramp = star[0].meta.exposure.ngroups * star[0].meta.exposure.group_time
    assert row["well_depth"].to_value(u.DN) == pytest.approx(row["peak"].value * ramp)
    assert 0 < row["rate_error"] < 0.01 * row["rate"]
    assert abs(row["x_offset"].value) < 0.02


def test_whatever_holds_the_images_they_are_measured(star, apertures):
    rates = measure(star[:2], apertures)["rate"].value.tolist()
    for kind in (ModelContainer, ModelLibrary):
        found = measure(kind([model.copy() for model in star[:2]]), apertures)
        assert found["rate"].value.tolist() == rates


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


def blind(model):
    model.data[:] = np.nan


def drop(name):
    def change(model):
        setattr(model.meta.instrument if name == "filter" else model.meta.subarray, name, None)

    return change


def rename(model):
    model.meta.instrument.filter = "F2550W"


def lose(model):
    model.meta.target.ra = None


def forget(model):
    model.meta.photometry.conversion_megajanskys = None


def without_size(model):
    model.meta.photometry.pixelarea_steradians = None


def spectrum(model):
    model.meta.exposure.type = "MIR_LRS-FIXEDSLIT"


REASONS = {
    blind: r"there is no usable pixel within 18\.1 pixels of \(.*; the image has 136 x 128",
    drop("filter"): "must have FILTER and SUBARRAY, got None and SUB128",
    drop("name"): "must have FILTER and SUBARRAY, got F1000W and None",
    rename: r"apcorr\.fits has no apertures for F2550W in SUB128",
    lose: "does not say where its target is: give ra and dec",
    forget: r"is in MJy/sr, but does not say by which factor \(PHOTMJSR\)",
    without_size: r"does not say how large its pixels are \(PIXAR_SR\)",
    spectrum: "EXP_TYPE of .* must be MIRI imaging .*, got MIR_LRS-FIXEDSLIT",
}


def test_what_cannot_be_measured_says_why(star, apertures):
    models = [star[0].copy() for _ in REASONS]
    for model, change in zip(models, REASONS, strict=True):
        change(model)
    table = measure([star[0], *models], apertures)

    assert table["problem"][0] == ""
    for problem, words in zip(table["problem"][1:], REASONS.values(), strict=True):
        assert re.match(f"{star[0].meta.filename}: .*{words}", problem)
    with pytest.raises(
        ValueError, match=r"no star could be measured: .*no usable pixel.*FILTER and SUBARRAY"
    ):
        measure(models[:2], apertures)


def test_a_star_at_the_edge_is_refused(star, apertures):
    """Two pixels from it, the aperture leaves the image; beyond it, nothing is there."""
    ra, dec = star[0].meta.wcs(134, 60)
    with pytest.raises(ValueError, match=r"star at \(134.0, 60.0\) .*: its aperture of 3.4 pixels leaves"):
        measure(star[0], apertures, ra=ra, dec=dec, forced=True)


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize(("ra", "dec"), [(RA, DEC + 60 / 3600), (10.0, -30.0)])
def test_a_target_elsewhere_is_named(star, apertures, ra, dec, forced):
    with pytest.raises(
        ValueError,
        match=rf"{star[0].meta.filename}: the target is not in the image: it is at ra={ra:.6f}, dec=",
    ):
        measure(star[0], apertures, ra=ra, dec=dec, forced=forced)


def test_a_star_exactly_at_its_place_needs_no_circle(star, apertures):
    found = measure(star[0], apertures, within=0.0)
    assert found["rate"][0] == measure(star[0], apertures)["rate"][0]


def test_without_areas_of_pixels_that_is_said(star, apertures, caplog):
    whole, bare, cropped = star[0], star[0].copy(), star[0].copy()
    bare.area = None
    cropped.area = cropped.area[:100]
    table = measure([whole, bare, cropped], apertures)

    assert table["area_corrected"].tolist() == [True, False, False]
    assert (
        r"AREA of jw01234001001_02101_00001_mirimage_cal.fits must have the shape (128, 136), got"
        in caplog.text
    )
    assert "got none: light is off by the relative area" in caplog.text
    assert "got (100, 136)" in caplog.text
    rate = table["rate"].value
    x, y = (int(round(table[axis][0].value)) for axis in "xy")
    assert rate[0] / rate[1] == pytest.approx(whole.area[y, x], rel=1e-4)
    assert abs(whole.area[y, x] - 1) > 1e-3 and rate[1] == rate[2]


def test_a_bright_sky_is_flat_whatever_the_areas_of_the_pixels(star, apertures):
    """In counts it would follow the areas, and be taken for light of the star."""
    bright = star[0].copy()
    bright.data += 2000.0
    faint, found = measure([star[0], bright], apertures)

    for name in ("x", "y", "rate"):
        assert found[name].value == pytest.approx(faint[name].value, rel=2e-5)


def test_a_mosaic_of_many_dates_is_named(mosaic, apertures, caplog):
    long = mosaic.copy()
    long.meta.exposure.end_time = long.meta.exposure.start_time + 31
    measure(mosaic, apertures)
    assert "spans" not in caplog.text
    measure(long, apertures)
    assert "spans 31 days: its rates are put back with PHOTMJSR of the first exposure" in caplog.text


def test_pixels_are_those_of_the_detector_or_as_the_mosaic_says(star, mosaic):
    exposure, silent = star[0], mosaic.copy()
    area = exposure.meta.photometry.pixelarea_steradians
    silent.meta.resample.pixel_scale_ratio = silent.meta.resample.pixfrac = None
    silent.meta.photometry.pixelarea_steradians = area / 4

    pixels = [
        star_images.native_pixel(model, star_images.read(model)) for model in (exposure, mosaic, silent)
    ]
    side = np.degrees(np.sqrt(area)) * 3600 / 0.11
    assert pixels == [1.0, 1.0, pytest.approx(side / 2)]
    assert side == pytest.approx(1.003, abs=1e-3)
    assert star_images.resampling(exposure) is None
    found = star_images.resampling(silent)
    assert (found.pixfrac, found.pixel_scale_ratio) == (1.0, pytest.approx(side / 2))
    silent.meta.photometry.pixelarea_steradians = None
    with pytest.raises(ValueError, match=r"does not say how large its pixels are \(PIXAR_SR\)"):
        star_images.resampling(silent)


@pytest.fixture(scope="module")
def saved_files(star, tmp_path_factory):
    """Save two exposures, the second compressed."""
    folder = tmp_path_factory.mktemp("files")
    plain, packed = (folder / model.meta.filename for model in star[:2])
    for path, model in zip((plain, packed), star, strict=False):
        model.copy().save(path)
    packed_too = packed.with_name(f"{packed.name}.gz")
    packed_too.write_bytes(gzip.compress(packed.read_bytes(), compresslevel=1))
    return plain, packed_too


@pytest.fixture
def files(saved_files, tmp_cwd):
    """Put them here."""
    return [shutil.copy(path, tmp_cwd / path.name).name for path in saved_files]


@pytest.fixture
def unmeasured(monkeypatch):
    """Leave the measurement out, where names of files are what matters."""

    def row(step, model, problem, figure, read_apertures):
        return QTable({"file": [model.meta.filename], "problem": [""], "figure": [figure]})

    monkeypatch.setattr(StarPhotometryStep, "_measure", row)


def test_apertures_are_read_once_for_all_images(files, apertures, monkeypatch):
    read, asked = star_images.read_apertures, []
    monkeypatch.setattr(star_images, "read_apertures", lambda path: asked.append(path) or read(path))
    table = measure(files, apertures)
    assert len(table) == len(files) > 1
    assert asked == [str(apertures)]


def test_tables_are_saved_where_they_are_asked_for(files, star, apertures, tmp_cwd):
    measure(files[1], apertures)
    assert not list(tmp_cwd.glob("*.ecsv"))
    table = measure(files[1], apertures, save_results=True, save_figure=True)
    assert table["rate"][0] == measure(star[1], apertures)["rate"][0]
    (path,) = tmp_cwd.glob("*.ecsv")
    saved = QTable.read(path)
    assert (saved["rate"][0], saved["file"][0]) == (table["rate"][0], files[1])
    assert (tmp_cwd / "jw01234001001_02101_00002_mirimage_star.png").stat().st_size > 10_000


def test_tables_are_named_after_what_was_given(files, star, apertures, tmp_cwd, unmeasured):
    def saved(given, **more):
        before = set(tmp_cwd.iterdir())
        table = measure(given, apertures, save_results=True, **more)
        (path,) = set(tmp_cwd.iterdir()) - before
        assert QTable.read(path)["file"].tolist() == table["file"].tolist()
        return path.name.replace("_star_photometry", ":").replace("jw01234001001_02101_", "")

    members = [{"expname": name, "exptype": "science"} for name in files]
    members.append({"expname": "missing.fits", "exptype": "background"})
    Path("asn.json").write_text(json.dumps({"products": [{"name": "stars", "members": members}]}))
    assert saved(files[0]) == "00001_mirimage:.ecsv"
    assert saved(files[::-1]) == "00002_mirimage:.ecsv"
    assert saved("asn.json") == "stars:.ecsv"
    assert saved(star[2]) == "00003_mirimage:.ecsv"
    assert saved(files, output_file="mine.ecsv") == "mine:.ecsv"


def test_a_table_of_other_images_is_not_overwritten(files, star, apertures, tmp_cwd, unmeasured, monkeypatch):
    measure(files[0], apertures, save_results=True)
    (path,) = tmp_cwd.glob("*.ecsv")
    path.write_text(path.read_text() + "\n")
    measure(star[0], apertures, save_results=True)
    assert not path.read_text().endswith("\n\n")

    monkeypatch.setattr(StarPhotometryStep, "_measure", None)
    for text in (path.read_text(), "mine"):
        path.write_text(text)
        with pytest.raises(
            FileExistsError, match=rf"{path.name} exists and is not of these images: give output_"
        ):
            measure(files, apertures, save_results=True)
    assert path.read_text() == "mine"
    with pytest.raises(FileNotFoundError, match=r"lost_cal\.fits must be the file of an exposure"):
        measure([files[0], "lost_cal.fits"], apertures)


def test_figures_of_one_name_are_numbered(files, star, apertures, tmp_cwd, unmeasured):
    folder = tmp_cwd / "again"
    folder.mkdir()
    shutil.copy(files[0], folder)
    figures = measure([files[0], star[2], folder / files[0]], apertures)["figure"].tolist()
    assert figures == [
        "jw01234001001_02101_00001_mirimage_1_star.png",
        "jw01234001001_02101_00003_mirimage_star.png",
        "jw01234001001_02101_00001_mirimage_3_star.png",
    ]


def break_inside(path):
    """Leave headers and sizes as they are."""
    with fits.open(path) as hdus:
        start = hdus["ASDF"].fileinfo()["datLoc"]
    content = bytearray(Path(path).read_bytes())
    content[start + 200 : start + 400] = bytes(200)
    Path(path).write_bytes(content)


def test_a_broken_file_does_not_cost_the_others(files, star, apertures, tmp_cwd):
    """What headers tell is refused before any work; what is broken inside has a row."""
    good = files[0]
    shutil.copy(good, "broken_cal.fits")
    break_inside("broken_cal.fits")
    Path("empty_cal.asdf").touch()
    table = measure([good, "broken_cal.fits", "empty_cal.asdf", star[1]], apertures, save_results=True)

    assert [problem[:35] for problem in table["problem"]] == [
        "", "broken_cal.fits: it cannot be opene", "empty_cal.asdf: it cannot be opened", ""
    ]  # fmt: skip
    assert np.isfinite(table["rate"].value).tolist() == [True, False, False, True]
    (path,) = tmp_cwd.glob("*.ecsv")
    assert QTable.read(path)["rate"][3] == table["rate"][3]
    Path("cut_cal.fits").write_bytes(Path(good).read_bytes()[:150_000])
    Path("text_cal.fits").write_text("hello")
    for name, words in (("cut", "is truncated: it must have"), ("text", "must be a FITS file")):
        with pytest.raises(ValueError, match=rf"{name}_cal\.fits {words}"):
            measure([good, f"{name}_cal.fits"], apertures)


@pytest.mark.parametrize(
    ("made", "image", "words"),
    [
        ("For exposures, as they are.", "exposure", None),
        ("For exposures, as they are.", "mosaic", "for exposures, as .* but .* is Resampling"),
        (f"For {Resampling(1.0, 1.0002)}.", "mosaic", None),
        (f"For {Resampling(1.0, 0.5)}.", "mosaic", r"ratio=0\.5\), but .* is Resampling.*ratio=1\.0\):"),
        (f"For {Resampling()}.", "exposure", "for Resampling.* but .* is an exposure:"),
        ("For the telescope.", "mosaic", None),
    ],
)  # fmt: skip
def test_apertures_for_another_kind_of_image_are_named(star, mosaic, tmp_path, caplog, made, image, words):
    about = replace(ABOUT, history=("From 3 images.", made, "Growth curves: none."))
    table = measure({"exposure": star[0], "mosaic": mosaic}[image], make_apertures(tmp_path, about=about))
    assert table["problem"][0] == ""
    found = re.search("apcorr.fits was made .*light may be off by some percent", caplog.text)
    assert bool(found) == bool(words)
    assert not words or re.search(words, found[0])


def test_in_pixel_mode_has_the_apertures_of_its_subarray(star, apertures):
    model = star[0].copy()
    model.meta.subarray.name = "SUB128_IP"
    (found,), (expected,) = measure(model, apertures), measure(star[0], apertures)
    assert found["subarray"] == "SUB128_IP"
    assert found["rate"] == expected["rate"]


def test_a_star_seen_through_a_coronagraph(tmp_path):
    """Away from the axis it is a star like any other, and there is no subarray but the coronagraph's."""
    band, subarray = "F1065C", "MASK1065"
    ra, dec = RA + 3 / 3600 / np.cos(np.radians(DEC)), DEC + 3 / 3600
    scene = Scene(RA, DEC).with_catalog(Table({"ra": [ra], "dec": [dec], "flux_mjy": [FLUX]}))
    plan = grid(RA, DEC, n=(1, 1), step=1.0, per_visit=1)
    settings = {"sky": 5.0, "noise": 0.05, "bad_pixels": 0.0, "psf": psf_of(band)}
    (model,) = observe(scene, plan, band, subarray=subarray, exptype="MIR_4QPM", **settings)
    table = measure(model, make_apertures(tmp_path, band), ra=ra, dec=dec)
    assert (table["filter"][0], table["subarray"][0]) == (band, subarray)
    assert factor_of(table)[0] == pytest.approx(CONVERSION, rel=3e-3)
    assert off_by(table, ra, dec)[0] < 0.02


# A star in F1130W, and places without any in the others [pixel].
@pytest.mark.parametrize(
    ("name", "x", "y", "forced"),
    [
        ("jw01288015001_04101_00001", 48.0, 24.0, False),
        ("jw01288015001_26101_00003", 100.3, 40.8, True),
        ("jw01288016001_34101_00002", 60.0, 60.0, True),
    ],
)
def test_real_mosaics_of_a_nebula(shared_data, name, x, y, forced):
    """The table agrees with sums of the file's surface brightness."""
    path = shared_data / "orion_bar_i2d" / f"{name}_mirimage_i2d.fits"
    reference = shared_data / "reference" / "jwst_miri_apcorr_0014.fits"
    with datamodels.open(path) as model:
        image, factor = model.data.astype(float), model.meta.photometry.conversion_megajanskys
        ra, dec = model.meta.wcs(x, y)
    (row,) = measure(str(path), str(reference), ra=float(ra), dec=float(dec), forced=forced, within=0.5)

    center = row["x"].value, row["y"].value
    assert np.hypot(*(np.array(center) - (x, y))) < (1e-6 if forced else 0.5)
    disk, ring = (
        CircularAperture(center, row["radius"].value),
        CircularAnnulus(center, row["skyin"].value, row["skyout"].value),
    )
    total = disk.do_photometry(image)[0][0] / factor
    assert row["aperture_sum"].value == pytest.approx(total, rel=1e-6)
    # Nothing in the rings is a star: clipping changes little.
    mean = ring.do_photometry(image)[0][0] / factor / ring.area
    assert row["background"].value == pytest.approx(mean, rel=0.01)
    assert row["rate"].value == pytest.approx(total - row["background"].value * disk.area, abs=1e-6 * total)
    if not forced:
        assert row["rate"] > 10 * row["rate_error"]


def test_another_reference_file_is_named(star, tmp_path):
    path = reference_files.save(
        reference_files.photom(
            {BAND: SimpleNamespace(factor=0.5, error=0.002, loss=TimeLoss(0, 0, 200, np.zeros((3, 3))))},
            2.8e-13,
            ABOUT,
        ),
        tmp_path / "photom.fits",
    )
    no_exposure = star[0].copy()
    no_exposure.meta.exposure.type = None
    with pytest.raises(ValueError, match=r"^.*photom\.fits must be an aperture correction reference file"):
        measure([no_exposure, star[0], star[1]], str(path))
    path.write_bytes(b"nothing")
    with pytest.raises(
        ValueError, match=r"^the apertures cannot be read: .*photom\.fits must be a FITS file"
    ):
        measure(star[:2], str(path))


def test_parameters_that_make_no_sense_are_named(star, apertures):
    with pytest.raises(ValueError, match="ra and dec must be given together, got ra=3.0 and dec=None"):
        measure(star[0], apertures, ra=3.0)
    with pytest.raises(
        ValueError, match=r"^ee must be one of 0.20, 0.30, .*, 0.80 in .*apcorr.fits, got 0.65"
    ):
        measure(star[:2], apertures, ee=0.65)
    with pytest.raises(ValueError, match="the input must hold at least 1 image, got 0"):
        measure([], apertures)
    with pytest.raises(TypeError, match="the input must be a file name, .* got int"):
        measure([star[0], 5], apertures)


@pytest.mark.parametrize("mjd", [59750.0, 61000.0])
def test_the_pipeline_applies_our_calibration(star, tmp_path, monkeypatch, mjd):
    """The factor, the subarray's transmission and the loss of sensitivity, in one number."""
    for name, value in simulate.offline_crds(tmp_path / "crds").items():
        monkeypatch.setenv(name, value)
    loss = TimeLoss(0.03, 0.2, 200.0, np.zeros((3, 3)))
    path = reference_files.save(
        reference_files.photom({BAND: SimpleNamespace(factor=0.5, error=0.002, loss=loss)}, 2.84e-13, ABOUT),
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
