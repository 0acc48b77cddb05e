"""Which files belong to a mosaic."""

import pytest

from miri_steps.report import collect


@pytest.mark.parametrize(
    "name, key",
    [
        ("jw01234001001_02101_00001_mirimage_cal.fits", "jw01234001001_02101_00001_mirimage"),
        ("out/jw01234001001_02101_00001_mirimage_a3001_crf.fits", "jw01234001001_02101_00001_mirimage"),
        ("jw01234001001_02101_00001-seg002_mirimage_rate.fits", "jw01234001001_02101_00001-seg002_mirimage"),
        ("my_exposure_1_cal.fits", "my_exposure_1"),
        ("my_exposure_1_a3001_crf.fits", "my_exposure_1"),
        ("my_exposure_1_c1001_crf.fits", "my_exposure_1"),
    ],
)
def test_all_files_of_an_exposure_have_one_key(name, key):
    assert collect.exposure_key(name) == key


def test_mosaics_are_found_shortest_filter_first(fake_mosaic, tmp_path):
    for name, band in (("b", "F1800W"), ("a", "F2550W"), ("deep/c", "F770W")):
        fake_mosaic(tmp_path / f"{name}_i2d.fits", band)
    fake_mosaic(tmp_path / ".hidden" / "d_i2d.fits")
    fake_mosaic(tmp_path / "stage2" / "jw01234001001_02101_00001_mirimage_i2d.fits")
    fake_mosaic(tmp_path / "jw01234001001_02101_00001_mirimage_a3001_outlier_i2d.fits")

    found = collect.find_mosaics(tmp_path)

    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        *("deep/c_i2d.fits", "b_i2d.fits", "a_i2d.fits")
    ]


def test_a_mosaic_given_by_name_is_taken_whatever_its_name(fake_mosaic, tmp_path):
    path = fake_mosaic(tmp_path / "jw01234001001_02101_00001_mirimage_i2d.fits")

    assert collect.find_mosaics(path) == [path]


def test_what_is_no_mosaic_is_refused_by_name(fake_mosaic, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no_i2d.fits must be a mosaic .* no such file"):
        collect.find_mosaics(tmp_path / "no_i2d.fits")
    with pytest.raises(FileNotFoundError, match="must hold at least 1 mosaic"):
        collect.find_mosaics(tmp_path)
    (tmp_path / "text_i2d.fits").write_text("no FITS")
    with pytest.raises(ValueError, match="text_i2d.fits must be a mosaic of calwebb_image3"):
        collect.find_mosaics(tmp_path / "text_i2d.fits")
    cal = fake_mosaic(tmp_path / "a_cal.fits", S_RESAMP="SKIPPED")
    with pytest.raises(ValueError, match="a_cal.fits .* has not been through resample"):
        collect.find_mosaics(cal)
    nircam = fake_mosaic(tmp_path / "n_i2d.fits", INSTRUME="NIRCAM")
    with pytest.raises(ValueError, match="n_i2d.fits must be a mosaic of MIRI, got INSTRUME NIRCAM"):
        collect.find_mosaics(nircam)


def test_files_of_a_product_with_a_longer_name_are_left_alone(fake_mosaic, tmp_path):
    short = fake_mosaic(tmp_path / "Field_i2d.fits")
    fake_mosaic(tmp_path / "Field_deep_i2d.fits")
    fake_mosaic(tmp_path / "Field_deep_group_background.fits")
    # Steps write some names in lower case.
    own = [fake_mosaic(tmp_path / f"{name}_background.fits") for name in ("Field_group", "field_f770w")]
    fake_mosaic(tmp_path / "Field_detector_background.fits")
    fake_mosaic(tmp_path / "another_group_background.fits")

    assert collect._beside(short, "Field", "background") == own
