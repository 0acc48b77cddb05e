"""Masks drawn on the sky, against the pixels that the WCS of the exposures puts below them."""

import logging
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from stdatamodels.jwst.datamodels import ImageModel

from miri_steps import detector
from miri_steps.simulate import Pointing, wcs
from miri_steps.steps.sky_masks import read_mask_image, read_regions

RA, DEC = 83.6, -69.1
# The way to the sky and back is good to this [arcsec], a hundredth of a pixel.
TOLERANCE = 0.0011


def exposure(ra=RA, dec=DEC, roll=37.0, subarray="SUB256", band="F770W"):
    model = ImageModel(detector.SUBARRAYS[subarray].shape)
    model.meta.wcs = wcs.build(Pointing(ra, dec, pa_v3=roll), band, subarray)
    model.meta.filename = "jw01234001001_02101_00001_mirimage_cal.fits"
    return model


@pytest.fixture(scope="module")
def model():
    with exposure() as made:
        yield made


def places(model):
    """Where on the sky every pixel is."""
    y, x = np.indices(model.data.shape)
    return SkyCoord(*model.meta.wcs(x, y, with_bounding_box=False), unit="deg")


def place(model, x, y):
    return SkyCoord(*model.meta.wcs(x, y, with_bounding_box=False), unit="deg")


def write(text, name="sources.reg"):
    Path(name).write_text("# Region file format: DS9 version 4.1\nglobal color=green width=1\n" + text)
    return name


def around(center, rest, *, shape="circle", frame="fk5", sign=""):
    """Write a region around a place."""
    position = center.transform_to(frame)
    lon, lat = (angle.deg for angle in (position.spherical.lon, position.spherical.lat))
    return f"{frame}\n{sign}{shape}({lon:.9f},{lat:.9f},{rest})\n"


def assert_within(covered, distance, limit):
    """Compare with the pixels less than a limit away, but for those right on it [arcsec]."""
    clear = np.abs(distance - limit) > TOLERANCE
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(covered[clear], (distance < limit)[clear])


def offsets(model, center):
    """How far East and North of a place every pixel is [arcsec]."""
    east, north = center.spherical_offsets_to(places(model))
    return east.arcsec, north.arcsec


# Regions


@pytest.mark.parametrize("frame", ["fk5", "icrs", "galactic"])
@pytest.mark.parametrize("roll", [0.0, 37.0, 200.0])
def test_a_circle_masks_the_pixels_inside_its_radius(frame, roll, tmp_cwd):
    with exposure(roll=roll) as model:
        center = place(model, 90.3, 170.6)
        covered = read_regions(write(around(center, '3.5"', frame=frame))).covers(model)

        assert covered.dtype == bool
        assert_within(covered, places(model).separation(center).arcsec, 3.5)
    assert covered.sum() == pytest.approx(np.pi * (3.5 / detector.PIXEL_SCALE) ** 2, rel=0.03)


@pytest.mark.parametrize(
    ("ra", "dec"),
    [(0.0003, 0.0), (359.9999, 40.5), (83.5, -69.5), (10.0, 89.9999), (200.0, -89.5), (120.7, 0.5)],
)
def test_regions_are_right_anywhere_on_the_sky(ra, dec, tmp_cwd):
    with exposure(ra, dec) as model:
        center = place(model, 200.0, 30.0)
        covered = read_regions(write(around(center, '9"', frame="icrs"))).covers(model)

        assert_within(covered, places(model).separation(center).arcsec, 9.0)


@pytest.mark.parametrize("angle", [0.0, 25.0, 110.0])
@pytest.mark.parametrize("shape", ["box", "ellipse"])
def test_boxes_and_ellipses_are_turned_against_the_sky(shape, angle, model, tmp_cwd):
    """DS9 gives whole sides of boxes and half axes of ellipses, West of the middle turned to the North."""
    center = place(model, 100.0, 140.0)
    size = '8",3"' if shape == "box" else '4",1.5"'
    covered = read_regions(write(around(center, f"{size},{angle}", shape=shape))).covers(model)

    east, north = offsets(model, center)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    along, across = (-east * cos + north * sin) / 4, (east * sin + north * cos) / 1.5
    reach = np.maximum(np.abs(along), np.abs(across)) if shape == "box" else np.hypot(along, across)
    assert_within(covered, 1.5 * reach, 1.5)
    assert 300 < covered.sum() < 2100


def test_a_ring_is_empty_inside(model, tmp_cwd):
    center = place(model, 100.0, 140.0)
    covered = read_regions(write(around(center, '2",5"', shape="annulus"))).covers(model)

    distance = places(model).separation(center).arcsec
    assert_within(covered, np.abs(distance - 3.5), 1.5)


def test_a_polygon_masks_the_pixels_that_its_corners_enclose(model, tmp_cwd):
    corners = place(model, np.array([40.5, 180.5, 180.5, 40.5]), np.array([20.5, 20.5, 90.5, 90.5]))
    text = ",".join(f"{corner.ra.deg:.9f},{corner.dec.deg:.9f}" for corner in corners)
    covered = read_regions(write(f"fk5\npolygon({text})\n")).covers(model)

    y, x = np.indices(model.data.shape)
    true = (x > 40) & (x <= 180) & (y > 20) & (y <= 90)
    # Its sides are straight on the sky, the rows of the detector are not quite.
    edge = np.minimum(np.abs(x - 40.5), np.abs(x - 180.5)) < 1
    edge |= np.minimum(np.abs(y - 20.5), np.abs(y - 90.5)) < 1
    np.testing.assert_array_equal(covered[~edge], true[~edge])
    assert (covered != true).mean() < 0.001


def test_regions_reach_in_over_the_edge(model, tmp_cwd):
    center = place(model, -30.0, 100.0)
    covered = read_regions(write(around(center, '5"'))).covers(model)

    assert_within(covered, places(model).separation(center).arcsec, 5.0)
    assert covered[100, 0]
    assert covered.sum() > 100


def test_a_region_may_be_larger_than_the_exposure(model, tmp_cwd):
    assert read_regions(write(around(place(model, 128, 128), "5'"))).covers(model).all()


def test_hundreds_of_regions_add_up(tmp_cwd):
    rng = np.random.default_rng(5)
    with exposure(subarray="SUB128") as model:
        x, y = rng.uniform(-10, 140, (2, 150))
        radius = rng.uniform(0.05, 0.6, 150)
        centers = place(model, x, y)
        text = "".join(around(c, f'{r:.6f}"') for c, r in zip(centers, radius, strict=True))
        covered = read_regions(write(text)).covers(model)

        sky, beyond = places(model), np.full(model.data.shape, np.inf)
        for center, r in zip(centers, radius, strict=True):
            beyond = np.minimum(beyond, sky.separation(center).arcsec - r)
        assert_within(covered, beyond, 0.0)
    assert 0.1 < covered.mean() < 0.9


@pytest.mark.parametrize("first", ["", "-"])
def test_excluded_regions_are_cut_out_of_the_others_in_any_order(first, model, tmp_cwd):
    center, other = place(model, 100, 100), place(model, 125, 100)
    texts = {"": around(center, '4"'), "-": around(other, '2"', sign="-")}
    text = texts[first] + texts["-" if first == "" else ""]
    covered = read_regions(write(text)).covers(model)

    sky = places(model)
    inside, hole = (sky.separation(c).arcsec - r for c, r in ((center, 4.0), (other, 2.0)))
    assert_within(covered, np.maximum(inside, -hole), 0.0)
    assert not covered[100, 125]
    assert covered[100, 90]


def test_regions_elsewhere_on_the_sky_mask_nothing(model, tmp_cwd):
    here = place(model, 100, 100)
    far = [
        here.directional_offset_by(0, d) for d in (0.1 * here.ra.unit, 30 * here.ra.unit, 180 * here.ra.unit)
    ]
    far += [SkyCoord(RA + 90, 0, unit="deg"), SkyCoord(0, 90, unit="deg")]
    text = "".join(around(c, '10"') + around(c, '10",5",20', shape="box", sign="-") for c in far)
    triangle = "polygon(263.6,69.1,263.7,69.1,263.6,69.2)\n"

    assert not read_regions(write(text + triangle)).covers(model).any()
    both = read_regions(write(text + triangle + around(here, '2"'))).covers(model)
    assert_within(both, places(model).separation(here).arcsec, 2.0)


def test_a_text_and_a_point_are_ignored_and_said(model, tmp_cwd, caplog):
    center = place(model, 100, 100)
    at = f"{center.ra.deg},{center.dec.deg}"
    text = f"# text({at}) text={{the bright one; here}}\npoint({at}) # point=x\nline({at},83.5,-69.1)\n"
    name = write(around(center, '2"') + text)
    with caplog.at_level(logging.INFO, logger="stpipe"):
        covered = read_regions(name).covers(model)

    assert_within(covered, places(model).separation(center).arcsec, 2.0)
    assert "regions sources.reg: 3 of 4 regions are lines, points or texts and cover nothing" in caplog.text


def test_how_a_region_is_drawn_does_not_matter(model, tmp_cwd):
    center = place(model, 100, 100)
    region = around(center, '2"').strip() + " # color=red color=blue dash=7 line=1 1 text={a, b} tag={c}\n"
    covered = read_regions(write("physical\n" + region)).covers(model)

    assert_within(covered, places(model).separation(center).arcsec, 2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "image\ncircle(100,100,20)\n",
            r"sources.reg must be in sky coord.*fk5 or icrs\), got .*Circle.*x=99",
        ),
        ("physical\ncircle(100,100,20)\n", r"sources.reg must be in sky coord.* got circle\(100,100,20\)"),
        ("detector\nbox(1,2,3,4,0)\n", r"must be in sky coord.* got box\(1,2,3,4,0\)"),
        ("wcsa\nbox(1,2,3,4,0)\n", r"must be in sky coord.* got box\(1,2,3,4,0\)"),
        ("circle(100,100,20)\n", r"must be in sky coord.* got circle\(100,100,20\)"),
        ('fk5\ncircle(83.6,-69.1,2")\nimage\npolygon(1,1,9,1,9,9)\n', "must be in sky coord.* got .*Polygon"),
        ("fk5\ncircle(83.6,-69.1,20i)\n", r"cannot be used: .*circle\(83.6,-69.1,20i\)"),
        ('fk5\npanda(83.6,-69.1,0,90,1,1",2",1)\n', 'cannot be used: "panda" .* not supported'),
        ("fk5\nblob(83.6,-69.1,3)\n", r'cannot be used: .*"blob\(83.6,-69.1,3\)"'),
        ('fk5\ncircle(83.6,-69.1,0")\n', "sources.reg cannot be read as a DS9 region file: .*radius"),
        ("fk5\ncircle(83.6)\n", "sources.reg cannot be read as a DS9 region file"),
        ("<html>no such page</html>\n", "sources.reg cannot be read as a DS9 region file"),
        ("", "sources.reg must hold at least 1 region with an area that is not excluded, got 0 of 0"),
        ("fk5\npoint(83.6,-69.1)\n", "at least 1 region with an area that is not excluded, got 0 of 1"),
        ('fk5\n-circle(83.6,-69.1,2")\n', "at least 1 region with an area that is not excluded, got 0 of 1"),
    ],
)
def test_regions_that_cannot_be_used_are_refused(text, message, tmp_cwd):
    name = write(text)

    with pytest.raises(ValueError, match=message):
        read_regions(name)


def test_a_file_that_is_no_text_is_refused(tmp_cwd):
    Path("sources.reg").write_bytes(bytes(range(256)))

    with pytest.raises(ValueError, match="sources.reg cannot be read as a DS9 region file"):
        read_regions("sources.reg")


def test_a_missing_region_file_is_named(tmp_cwd):
    with pytest.raises(FileNotFoundError, match=r"regions nowhere.reg does not exist"):
        read_regions("nowhere.reg")


def test_regions_need_the_wcs_of_the_exposure(tmp_cwd):
    regions = read_regions(write('fk5\ncircle(83.6,-69.1,2")\n'))
    with ImageModel((20, 20)) as blank:
        blank.meta.filename = "blank_cal.fits"
        with pytest.raises(
            ValueError, match="regions sources.reg is on the sky, but blank_cal.fits has no WCS"
        ):
            regions.covers(blank)


# Mask images


def mosaic_header(shape, *, scale=0.11, angle=0.0, center=(RA, DEC), **more):
    """Describe a tangent plane with a scale [arcsec] and an orientation [deg]."""
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"})
    header.update({"CRVAL1": center[0], "CRVAL2": center[1]})
    header.update({"CRPIX1": (shape[1] + 1) / 2, "CRPIX2": (shape[0] + 1) / 2})
    header.update({"CDELT1": -scale / 3600, "CDELT2": scale / 3600, "RADESYS": "ICRS"})
    header.update({"PC1_1": cos, "PC1_2": -sin, "PC2_1": sin, "PC2_2": cos})
    # As in the pipeline's files, something that astropy puts right with a warning.
    header.update({"DATE-OBS": "31/12/99", **more})
    return header


def write_image(data, header, name="mask.fits", *, band=None, **planes):
    primary = fits.PrimaryHDU()
    if band is not None:
        primary.header["FILTER"] = band
    more = [fits.ImageHDU(plane, name=key.upper()) for key, plane in planes.items()]
    fits.HDUList([primary, fits.ImageHDU(data, header, name="SCI"), *more]).writeto(name, overwrite=True)
    return name


def read(name, sigma=3.0, least_area=5):
    return read_mask_image(name, sigma=sigma, least_area=least_area)


@pytest.mark.parametrize(("scale", "angle"), [(0.11, 0.0), (0.06, 65.0), (0.25, -120.0)])
def test_a_segmentation_map_of_another_scale_and_orientation(scale, angle, model, tmp_cwd):
    """Two discs of light with a margin of a pixel, and nothing else."""
    shape = (round(60 / scale), round(60 / scale))
    header = mosaic_header(shape, scale=scale, angle=angle)
    y, x = np.indices(shape)
    sky = SkyCoord.from_pixel(x, y, WCS(fits.Header({k: v for k, v in header.items() if k != "DATE-OBS"})))
    centers, radius = [place(model, 60, 180), place(model, 200, 90)], 2.0
    labels = np.zeros(shape, np.uint32)
    for number, center in enumerate(centers, start=1):
        labels[sky.separation(center).arcsec < radius] = number
    covered, known = read(write_image(labels, header)).project(model)

    distance = np.min([places(model).separation(center).arcsec for center in centers], axis=0)
    assert known.all()
    assert covered[distance < radius - max(0, 0.75 * scale - 0.05)].all()
    assert not covered[distance > radius + 1.5 * detector.PIXEL_SCALE + 1.5 * scale].any()
    assert covered.sum() < 2 * np.pi * ((radius + 0.3 + scale) / detector.PIXEL_SCALE) ** 2


def test_no_source_falls_between_the_pixels_of_the_detector(model, tmp_cwd):
    """Sources of one pixel of a mask that is four times as fine."""
    rng = np.random.default_rng(3)
    shape = (1000, 1000)
    header = mosaic_header(shape, scale=0.0275, angle=20.0)
    x, y = rng.uniform(10, 246, (2, 60))
    grid = WCS(fits.Header({k: v for k, v in header.items() if k != "DATE-OBS"}))
    column, row = (np.rint(v).astype(int) for v in place(model, x, y).to_pixel(grid))
    inside = (column >= 0) & (column < 1000) & (row >= 0) & (row < 1000)
    labels = np.zeros(shape, np.int16)
    labels[row[inside], column[inside]] = 1
    covered, _ = read(write_image(labels, header)).project(model)

    assert inside.sum() > 40
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    assert covered[row[inside], column[inside]].all()
    assert covered.sum() < 20 * inside.sum()


def test_what_a_map_says_nothing_about_is_not_known(model, tmp_cwd):
    """A map of 12 arcsec beside the middle of the exposure."""
    shape = (200, 150)
    center = place(model, 170, 128)
    header = mosaic_header(shape, scale=0.07, angle=30.0, center=(center.ra.deg, center.dec.deg))
    covered, known = read(write_image(np.zeros(shape, np.int32), header)).project(model)

    east, north = offsets(model, center)
    cos, sin = np.cos(np.radians(30.0)), np.sin(np.radians(30.0))
    along, across = -east * cos + north * sin, east * sin + north * cos
    beyond = np.maximum(np.abs(along) - 75 * 0.07, np.abs(across) - 100 * 0.07)
    assert not covered.any()
    assert_within(known, beyond, 0.0)
    assert 0.1 < known.mean() < 0.3


@pytest.mark.parametrize("center", [(RA, DEC + 1), (RA + 120, DEC), (RA + 180, -DEC)])
def test_a_map_of_another_field_knows_nothing(center, model, tmp_cwd):
    header = mosaic_header((50, 50), center=center)
    covered, known = read(write_image(np.ones((50, 50), np.int32), header)).project(model)

    assert not covered.any()
    assert not known.any()


def stars_on_a_mosaic(model, scale, *, noise=0.05, seed=1):
    """Make a mosaic with five stars as wide as in F770W; without data in a corner and on a hole."""
    n = round(36 / scale)
    header = mosaic_header((n, n), scale=scale, angle=15.0)
    grid = WCS(fits.Header({k: v for k, v in header.items() if k != "DATE-OBS"}))
    y, x = np.indices((n, n))
    image = 20 + np.random.default_rng(seed).normal(0, noise, (n, n))
    centers = place(model, np.array([50, 90, 128, 170, 210]), np.array([60, 200, 120, 40, 160]))
    width = detector.FWHM["F770W"] * detector.PIXEL_SCALE / scale / 2.3548
    for column, row in zip(*centers.to_pixel(grid), strict=True):
        image += 3 * np.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * width**2))
    weight = np.ones((n, n), np.float32)
    weight[: n // 2, : n // 2] = 0
    image[: n // 8] = np.nan
    err = np.full((n, n), noise, np.float32)
    return image.astype(np.float32), header, err, weight, centers, grid


@pytest.mark.parametrize("scale", [0.11, 0.055])
@pytest.mark.parametrize("with_err", [True, False])
def test_the_stars_of_a_mosaic_are_masked(scale, with_err, model, tmp_cwd):
    image, header, err, weight, centers, grid = stars_on_a_mosaic(model, scale)
    planes = {"wht": weight} | ({"err": err} if with_err else {})
    name = write_image(image, header, "m_i2d.fits", band="F770W", **planes)
    covered, known = read(name, sigma=5.0).project(model)

    column, row = (np.rint(v).astype(int) for v in places(model).to_pixel(grid))
    inside = (column >= 0) & (column < len(image)) & (row >= 0) & (row < len(image))
    np.testing.assert_array_equal(known[~inside], False)
    seen = (weight > 0) & np.isfinite(image)
    agree = known[inside] == seen[row[inside], column[inside]]
    assert agree.mean() > 0.999
    assert 0.3 < known.mean() < 0.95
    distance = np.min([places(model).separation(center).arcsec for center in centers], axis=0)
    assert covered[known & (distance < 0.2)].all()
    assert covered[distance > 1.5].mean() < 0.02


def test_both_scales_of_a_mosaic_give_about_the_same_mask(model, tmp_cwd):
    # Far above the noise, whose peaks differ.
    masks = []
    for scale in (0.11, 0.055):
        # The noise of a mean over as many pixels.
        image, header, err, weight, _, _ = stars_on_a_mosaic(model, scale, noise=0.05 * 0.11 / scale)
        name = write_image(image, header, "m_i2d.fits", band="F770W", err=err, wht=weight)
        masks.append(read(name, sigma=5.0).project(model)[0])
    assert (masks[0] & masks[1]).sum() > 0.6 * (masks[0] | masks[1]).sum()


def test_a_real_mosaic_can_be_read(shared_data, tmp_cwd):
    path = sorted((shared_data / "orion_bar_i2d").glob("*_i2d.fits"))[0]
    with fits.open(path) as hdus:
        weight = hdus["WHT"].data
    mask = read(path)

    np.testing.assert_array_equal(mask.known, weight > 0)
    assert mask.mask.shape == weight.shape


def test_a_mask_needs_the_wcs_of_the_exposure(tmp_cwd):
    mask = read(write_image(np.ones((50, 50), np.int32), mosaic_header((50, 50))))
    with ImageModel((20, 20)) as blank:
        blank.meta.filename = "blank_cal.fits"
        with pytest.raises(
            ValueError, match="mask_image mask.fits is on the sky, but blank_cal.fits has no WCS"
        ):
            mask.project(blank)


def image_file(data, band=None, **header):
    return lambda: write_image(data, mosaic_header((50, 50), **header), band=band)


FLAT, LABELS = np.ones((50, 50), np.float32), np.ones((50, 50), np.int32)
SIP = {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-5}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Path("mask.fits").write_text("RA DEC\n1 2\n"), "mask_image mask.fits must be a FITS file"),
        (lambda: Path("mask.fits").write_bytes(b""), "mask_image mask.fits must be a FITS file"),
        (lambda: fits.PrimaryHDU().writeto("mask.fits"), "mask.fits must hold a two-dimensional image"),
        (
            lambda: fits.PrimaryHDU(np.ones((2, 9, 9))).writeto("mask.fits"),
            "mask.fits must hold a two-dimensional image, but has none",
        ),
        (lambda: fits.PrimaryHDU(LABELS).writeto("mask.fits"), "mask_image mask.fits must be on the sky"),
        (
            image_file(LABELS, CTYPE1="GLON-TAN", CTYPE2="GLAT-TAN"),
            "in RA and Dec .*got CTYPE GLON-TAN GLAT-TAN",
        ),
        (
            image_file(LABELS, CTYPE1="DEC--TAN", CTYPE2="RA---TAN"),
            "in RA and Dec .*got CTYPE DEC--TAN RA---TAN",
        ),
        (image_file(FLAT, **SIP), "without distortion, got CTYPE RA---TAN-SIP"),
        (image_file(FLAT), "FILTER of mask_image mask.fits must be one of F560W.* in integers, got None"),
        (image_file(FLAT, band="F444W"), "FILTER of mask_image mask.fits must be .* got F444W and float32"),
        (
            image_file(np.nan * FLAT, band="F770W"),
            "mask.fits must show something, but has no pixel with data",
        ),
    ],
)
def test_mask_images_that_cannot_be_used_are_refused(make, message, tmp_cwd):
    make()

    with pytest.raises(ValueError, match=message):
        read("mask.fits")


def test_a_missing_mask_image_is_named(tmp_cwd):
    with pytest.raises(FileNotFoundError, match="mask_image nowhere_i2d.fits does not exist"):
        read("nowhere_i2d.fits")
