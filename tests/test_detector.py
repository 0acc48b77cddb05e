"""The detector: fields where they should be, in any frame."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miri_steps import detector

ALL = ["imager", "lyot", "4qpm"]
QUADRANTS = ["4qpm_1065", "4qpm_1140", "4qpm_1550"]


def test_tables_name_the_same_filters():
    assert set(detector.FWHM) == set(detector.BANDS)
    assert all(band.width < band.wavelength for band in detector.BANDS.values())


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("imager", 700, 500),
        ("lyot", 200, 900),
        ("4qpm_1065", 160, 180),
        ("4qpm_1140", 160, 400),
        ("4qpm_1550", 160, 620),
    ],
)
def test_a_pixel_lies_in_one_region(name, x, y):
    inside = [region for region in [*ALL[:2], *QUADRANTS] if detector.region_mask(region)[y, x]]
    assert inside == [name]


def test_frame_between_the_fields_is_outside():
    mask = detector.region_mask(ALL)
    assert not mask[:, 300:357].any()
    assert not mask[700:725, :357].any()
    assert 0.70 < mask.mean() < 0.85


def test_occulters_are_outside():
    lyot, phase_mask = detector.region_mask("lyot"), detector.region_mask("4qpm_1140")
    assert not lyot[865 - 15 : 865 + 15, 144 - 10 : 144 + 10].any()
    assert not lyot[:, 144].any()
    assert not phase_mask[356].any()
    assert not phase_mask[:, 119].any()
    spot = np.pi * (2.16 / detector.PIXEL_SCALE) ** 2
    field = (30 / detector.PIXEL_SCALE) ** 2
    assert lyot.sum() < field - spot


def test_quadrant_masks_add_up():
    together = detector.region_mask("4qpm")
    np.testing.assert_array_equal(together, detector.region_mask(QUADRANTS))
    assert together.sum() == sum(detector.region_mask(name).sum() for name in QUADRANTS)


def test_reference_pixels_are_in_no_region():
    reference = detector.reference_pixel_mask()
    assert reference.sum() == 8 * 1024
    assert not (detector.region_mask(ALL) & reference).any()


@given(x=st.integers(1, 1032), y=st.integers(1, 1024), nx=st.integers(1, 300), ny=st.integers(1, 300))
def test_a_cropped_frame_is_a_piece_of_the_full_one(x, y, nx, ny):
    full = detector.region_mask(ALL)
    piece = full[y - 1 : y - 1 + ny, x - 1 : x - 1 + nx]
    cropped = detector.region_mask(ALL, shape=piece.shape, xstart=x, ystart=y)
    np.testing.assert_array_equal(cropped, piece)


@pytest.mark.parametrize(
    ("subarray", "region"),
    [
        ("BRIGHTSKY", "imager"),
        ("SUB256", "imager"),
        ("MASKLYOT", "lyot"),
        ("MASK1065", "4qpm_1065"),
        ("MASK1140", "4qpm_1140"),
        ("MASK1550", "4qpm_1550"),
    ],
)
def test_subarrays_show_their_field(subarray, region):
    window = detector.SUBARRAYS[subarray]
    mask = detector.region_mask(region, shape=window.shape, xstart=window.xstart, ystart=window.ystart)
    assert mask.sum() > 0.6 * mask.size
    full = detector.region_mask(region)
    assert mask.sum() == full.sum() or region == "imager"


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match=r"regions must be among .*lyot.*, got \['moon'\]"):
        detector.region_mask(["imager", "moon"])


def test_filters_are_ordered_by_wavelength_and_unknown_ones_come_last():
    assert sorted(["F2550W", "CLEAR", "FND", "F1000W"], key=detector.wavelength) == [
        *("F1000W", "FND", "F2550W", "CLEAR"),
    ]
