"""The border between data models and arrays."""

import gzip

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RectBivariateSpline
from stdatamodels import asdf_in_fits
from stdatamodels.jwst import datamodels
from stdatamodels.jwst.datamodels.dqflags import pixel

from miri_steps import __version__, detector, exposures
from miri_steps.simulate import Scene, grid, observe

TOUR = [(83.6, -69.1, 20.0), (0.001, 1.0, 200.0), (120.0, 89.99, 75.0)]


def exposure(ra, dec, pa, subarray="SUB256"):
    return observe(Scene(ra, dec), grid(ra, dec, n=(1, 1), pa=pa), "F770W", sky=1.0, subarray=subarray)[0]


@pytest.fixture(scope="module")
def model():
    with exposure(*TOUR[0]) as made:
        yield made


@pytest.fixture
def small():
    """A frame of three by four pixels with nothing wrong, at the corner of the detector."""
    with datamodels.ImageModel((3, 4)) as made:
        made.data = np.full((3, 4), 5, np.float32)
        made.dq = np.zeros((3, 4), np.uint32)
        yield made


# check_imaging


@pytest.mark.parametrize("exp_type", exposures.IMAGING_TYPES)
def test_imaging_is_accepted(exp_type):
    exposures.check_imaging("a_cal.fits", exp_type)


@pytest.mark.parametrize("exp_type", ["MIR_MRS", "MIR_LRS-SLITLESS", "NRC_IMAGE", "mir_image", "", None])
def test_other_modes_are_refused(exp_type):
    with pytest.raises(ValueError, match=f"EXP_TYPE of a_cal.fits must be MIRI imaging .*got {exp_type}"):
        exposures.check_imaging("a_cal.fits", exp_type)


def test_coronagraph_fields_are_imaging():
    assert {"MIR_IMAGE", "MIR_4QPM", "MIR_LYOT"} <= set(exposures.IMAGING_TYPES)


# excluded_pixels


def excluded(model, **settings):
    mask = exposures.excluded_pixels(model, **({"dqbits": "~DO_NOT_USE+NON_SCIENCE"} | settings))
    assert mask.dtype == bool
    assert mask.shape == model.data.shape
    return {(int(y), int(x)) for y, x in np.argwhere(mask)}


def test_nothing_is_excluded_from_good_data(small):
    assert excluded(small) == set()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_is_excluded(small, value):
    small.data[1, 2] = value

    assert excluded(small) == {(1, 2)}
    assert excluded(small, dqbits=None) == {(1, 2)}


def test_flags_exclude_as_in_the_stock_step(small):
    small.dq[0, 0] = pixel["DO_NOT_USE"]
    small.dq[0, 1] = pixel["NON_SCIENCE"]
    small.dq[0, 2] = pixel["JUMP_DET"]
    small.dq[0, 3] = pixel["JUMP_DET"] | pixel["DO_NOT_USE"]

    assert excluded(small) == {(0, 0), (0, 1), (0, 3)}
    assert excluded(small, dqbits=None) == set()
    assert excluded(small, dqbits="JUMP_DET") == {(0, 0), (0, 1), (0, 3)}
    assert excluded(small, dqbits="DO_NOT_USE") == {(0, 1), (0, 2), (0, 3)}
    assert excluded(small, dqbits="0") == {(0, 0), (0, 1), (0, 2), (0, 3)}
    assert excluded(small, dqbits="1, 4") == {(0, 1)}


def test_limits_exclude_beyond_and_keep_the_limit_itself(small):
    small.data[0] = 1, 2, 3, 4

    assert excluded(small, lower=2.0) == {(0, 0)}
    assert excluded(small, upper=3.0) == {(0, 3)} | {(y, x) for y in (1, 2) for x in range(4)}
    assert excluded(small, lower=2.0, upper=5.0) == {(0, 0)}
    small.data[0] = 0.0
    assert excluded(small, lower=0.0) == set()
    assert excluded(small, upper=0.0) == {(y, x) for y in (1, 2) for x in range(4)}


def test_regions_are_where_the_frame_lies_on_the_detector():
    full, window = detector.region_mask("imager"), detector.SUBARRAYS["SUB256"]
    with datamodels.ImageModel(window.shape) as part:
        part.meta.subarray.xstart, part.meta.subarray.ystart = 230, window.ystart
        mask = exposures.excluded_pixels(part, dqbits=None, regions=["imager"])
        place = slice(window.ystart - 1, window.ystart + 255), slice(229, 485)
        assert 0.2 < mask.mean() < 0.8
        np.testing.assert_array_equal(mask, full[place])
        part.meta.subarray.xstart = window.xstart
        assert exposures.excluded_pixels(part, dqbits=None, regions=["imager"]).all()
        assert not exposures.excluded_pixels(part, dqbits=None, regions=["lyot", "4qpm"]).any()


def test_the_exposure_stays_as_it_was(model):
    data, dq = model.data.copy(), model.dq.copy()

    exposures.excluded_pixels(model, dqbits="0", lower=0.9, upper=1.1, regions=["imager"])

    np.testing.assert_array_equal(model.data, data)
    np.testing.assert_array_equal(model.dq, dq)


# parse_s_region


def test_corners_are_read():
    corners = exposures.parse_s_region("POLYGON ICRS  83.633 -69.25 83.7 -69.25 83.7 -69.2 1e-3 -69.2")

    np.testing.assert_array_equal(corners, [[83.633, -69.25], [83.7, -69.25], [83.7, -69.2], [0.001, -69.2]])


@pytest.mark.parametrize(
    "text", ["polygon icrs 1 2 3 4 5 6", "POLYGON 1 2 3 4 5 6", " POLYGON ICRS\t1 2\n3 4 5 6 "]
)
def test_case_and_spaces_do_not_matter(text):
    np.testing.assert_array_equal(exposures.parse_s_region(text), [[1, 2], [3, 4], [5, 6]])


@given(st.lists(st.tuples(st.floats(0, 360, exclude_max=True), st.floats(-90, 90)), min_size=3, max_size=12))
@settings(max_examples=50, deadline=None)
def test_what_was_written_is_read(corners):
    text = "POLYGON ICRS  " + " ".join(f"{value:.9f}" for corner in corners for value in corner)

    np.testing.assert_allclose(exposures.parse_s_region(text), corners, atol=1e-9)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "POLYGON ICRS",
        "POLYGON ICRS 1 2 3 4",
        "POLYGON ICRS 1 2 3 4 5",
        "POLYGON ICRS 1 2 3 4 5 6 7",
        "POLYGON ICRS 1 2 3 4 5 nan",
        "POLYGON ICRS 1 2 3 4 5 inf",
        "POLYGON ICRS 1 2 3 4 5 six",
        "CIRCLE ICRS 1 2 3",
        "CIRCLE ICRS 1 2 3 4 5 6",
    ],
)
def test_what_is_no_polygon_is_refused_and_shown(text):
    with pytest.raises(ValueError, match="S_REGION must be a POLYGON of at least 3 corners") as error:
        exposures.parse_s_region(text)

    assert repr(text) in str(error.value)


# sky_grid


@pytest.mark.parametrize(
    ("corners", "middle"),
    [
        ([[10, 20], [10.1, 20], [10.1, 20.1], [10, 20.1]], (10.05, 20.05)),
        ([[359.9, 1], [0.1, 1], [0.1, 1.2], [359.9, 1.2]], (0.0, 1.1)),
        ([[0.2, -1], [359.9, -1], [359.9, -1.2], [0.2, -1.2]], (0.05, -1.1)),
        ([[0, 89.9], [90, 89.9], [180, 89.9], [270, 89.9]], (None, 90.0)),
        ([[30, -89.9], [210, -89.98]], (30, -89.96)),
    ],
)
def test_the_grid_lies_in_the_middle_of_the_field(corners, middle):
    plane = exposures.sky_grid(np.array(corners, float), 0.88)

    ra, dec = plane.wcs.crval
    assert dec == pytest.approx(middle[1], abs=1e-3)
    if middle[0] is not None:
        assert (ra - middle[0] + 180) % 360 - 180 == pytest.approx(0, abs=1e-3)
    assert 0 <= ra <= 360


@pytest.mark.parametrize(("ra", "dec"), [(0.0, 0.0), (83.6, -69.1), (359.9999, 45.0), (200.0, 89.99)])
@pytest.mark.parametrize("scale", [0.11, 0.88, 3.0])
def test_a_cell_has_the_size_asked_for_and_north_is_up(ra, dec, scale):
    center = SkyCoord(ra, dec, unit="deg")
    ring = center.directional_offset_by([10, 100, 190, 280] * u.deg, 1 * u.arcmin)
    plane = exposures.sky_grid(np.stack([ring.ra.deg, ring.dec.deg], axis=1), scale)

    cells = [(0, 0), (1, 0), (0, 1)]
    here, left, up = (SkyCoord(*plane.wcs_pix2world(x, y, 0), unit="deg") for x, y in cells)
    assert here.separation(left).arcsec == pytest.approx(scale, rel=1e-6)
    assert here.separation(up).arcsec == pytest.approx(scale, rel=1e-6)
    # at the tangent point itself, North is up and East to the left
    east, north = here.spherical_offsets_to(left)[0].arcsec, here.spherical_offsets_to(up)[1].arcsec
    assert east == pytest.approx(-scale, rel=1e-3)
    assert north == pytest.approx(scale, rel=1e-3)


@given(st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_the_order_of_corners_moves_the_grid_by_nothing_that_counts(random):
    corners = [[359.9, 1.0], [0.1, 1.0], [0.1, 1.2], [359.9, 1.2], [0.3, 1.3]]
    shuffled = random.sample(corners, len(corners))

    first, second = (exposures.sky_grid(np.array(c), 0.88) for c in (corners, shuffled))

    x, y = second.wcs_world2pix(*first.wcs_pix2world(100.0, 50.0, 0), 0)
    assert (float(x), float(y)) == pytest.approx((100.0, 50.0), abs=1e-4)


# frame_origin, pixel_mesh


def test_the_frame_origin_counts_from_zero(model, small):
    window = detector.SUBARRAYS["SUB256"]

    assert exposures.frame_origin(model) == (window.xstart - 1, window.ystart - 1)
    assert exposures.frame_origin(small) == (0, 0)


@pytest.mark.parametrize(("ra", "dec", "pa"), TOUR)
def test_the_mesh_is_where_the_gwcs_says(ra, dec, pa):
    with exposure(ra, dec, pa) as model:
        plane = exposures.sky_grid(exposures.parse_s_region(model.meta.wcsinfo.s_region), 0.88)
        x, y, column, row = exposures.pixel_mesh(model, plane)

        assert x[0] == y[0] == 0
        assert (x[-1], y[-1]) == (255, 255)
        assert np.diff(x).max() <= 17
        assert column.shape == row.shape == (len(y), len(x))
        found = SkyCoord(*plane.wcs_pix2world(column, row, 0), unit="deg")
        true = SkyCoord(*model.meta.wcs(*np.meshgrid(x, y)), unit="deg")
        assert found.separation(true).arcsec.max() < 1e-5
        # the whole exposure lies around the tangent point: 28 arcsec
        assert np.abs(column).max() < 28 / 0.88
        assert np.abs(row).max() < 28 / 0.88


def test_the_mesh_reaches_the_corners_of_a_full_frame(shared_data, tmp_path):
    """A real file: its bounding box must not turn the corners into NaN."""
    packed = next((shared_data / "fullframe_cal").glob("*.fits.gz"))
    path = tmp_path / "real_cal.fits"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    with datamodels.open(path) as model:
        plane = exposures.sky_grid(exposures.parse_s_region(model.meta.wcsinfo.s_region), 0.88)
        x, y, column, row = exposures.pixel_mesh(model, plane)

        assert (len(y), len(x)) == (1024 // 16 + 1, 1032 // 16 + 1)
        assert np.isfinite(column).all()
        assert np.isfinite(row).all()
        inside = model.meta.wcs(500.0, 700.0)
        ix, iy = plane.wcs_world2pix(*inside, 0)
        assert RectBivariateSpline(y, x, column)(700.0, 500.0)[0, 0] == pytest.approx(float(ix), abs=0.005)
        assert RectBivariateSpline(y, x, row)(700.0, 500.0)[0, 0] == pytest.approx(float(iy), abs=0.005)


def test_the_mesh_is_fine_enough(model):
    """Between the points of the mesh a spline is as good as the gWCS."""
    plane = exposures.sky_grid(exposures.parse_s_region(model.meta.wcsinfo.s_region), 0.88)
    x, y, column, row = exposures.pixel_mesh(model, plane)
    rng = np.random.default_rng(1)
    px, py = rng.uniform(0, 255, (2, 200))

    true = plane.wcs_world2pix(*model.meta.wcs(px, py), 0)

    for mesh, expected in zip((column, row), true, strict=True):
        np.testing.assert_allclose(RectBivariateSpline(y, x, mesh)(py, px, grid=False), expected, atol=1e-3)


def test_a_tiny_frame_has_a_mesh_of_its_own(model):
    with datamodels.ImageModel((20, 30)) as part:
        part.meta.wcs = model.meta.wcs
        plane = exposures.sky_grid(np.array([[83.6, -69.1]] * 3), 0.88)
        x, y, column, row = exposures.pixel_mesh(part, plane)

    assert (x[-1], y[-1]) == (29, 19)
    assert min(len(x), len(y)) >= 6
    assert np.isfinite(column).all()


# add_history


def test_history_names_package_and_version(model, tmp_path):
    with model.copy() as other:
        exposures.add_history(other, "levelled with care")
        other.save(tmp_path / "a.fits")

    with asdf_in_fits.open(tmp_path / "a.fits") as file:
        entry = file.get_history_entries()[-1]
    assert entry["description"] == f"miri_steps {__version__} levelled with care"
    assert entry["software"] == {"name": "miri_steps", "version": __version__}
