"""Tiles are measured against a catalogue, from exposures with known errors of the pointing."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.table import Table

from miri_steps import detector, simulate
from miri_steps.simulate import sphere
from miri_steps.steps import reference_stars, tile_direct
from miri_steps.steps.reference_stars import ReferenceStars
from miri_steps.steps.tile_direct import ExposureStars

RA, DEC = 339.0, 33.96
DATE = 59762.0


def catalogue(ra, dec):
    n = len(ra)
    return ReferenceStars("x", np.array(ra), np.array(dec), np.zeros(n), np.zeros(n), np.full(n, np.nan))


def take(scene, band, error, *, dithers, seed=0, **kwargs):
    plan = simulate.mosaic(scene.ra, scene.dec, tiles=(1, 1), dithers=dithers, start_time=DATE, **kwargs)
    return simulate.observe(
        scene,
        plan,
        band,
        sky=4.0,
        pointing_error=np.tile(error, (dithers, 1)),
        cosmic_rays=5e-4,
        hot_pixels=1e-3,
        # Stamps of the full size take most of the time.
        psf=simulate.psf(band, oversample=3, half_size=40),
        seed=seed,
    )


# ---- whole exposures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("band", "error"), [("F560W", (1.2, -0.9)), ("F770W", (-0.1, 0.05))])
def test_the_error_of_the_pointing_is_found_to_a_few_milliarcseconds(band, error):
    scene = simulate.Scene(RA, DEC).with_stars(25, flux=(0.01, 0.5), radius=70, seed=3)
    stars = scene.stars
    if band == "F770W":
        scene = scene.with_emission(2.0, radius=60)
    # The catalogue has others as well, and not all of them.
    others = simulate.Scene(RA, DEC).with_stars(20, radius=90, seed=8).stars
    ra, dec = (np.concatenate([stars[name][5:], others[name]]) for name in ("ra", "dec"))

    detections = [tile_direct.detect(model) for model in take(scene, band, error, dithers=2, pa=130.0)]
    measured = tile_direct.measure(detections, catalogue(ra, dec), date=DATE)

    assert measured.fit.found, measured.fit.reason
    assert np.abs(measured.fit.shift - error).max() < 0.003
    assert measured.fit.rms < 0.01
    assert measured.fit.n_stars >= 6
    assert measured.n_detected <= 20
    assert measured.ra == pytest.approx(RA, abs=0.01)
    # Exposures agree by themselves, and no hot pixel and no cosmic ray is among their stars.
    for each in detections:
        apart = tile_direct.measure([each], catalogue(ra, dec), date=DATE)
        assert np.abs(apart.fit.shift - error).max() < 0.006


def test_real_stars_are_matched_where_they_are_at_the_date(shared_data):
    reference = reference_stars.read(shared_data / "gaia" / "Gaia_DR3_NGC7320.fits", max_magnitude=19)
    ra, dec = reference.at(DATE)
    table = Table([ra, dec, np.full(len(ra), 0.05)], names=("ra", "dec", "flux_mjy"))
    scene = simulate.Scene(RA, DEC).with_catalog(table)
    error = (0.8, 1.1)

    detections = [tile_direct.detect(model) for model in take(scene, "F560W", error, dithers=2)]
    measured = tile_direct.measure(detections, reference, date=DATE)

    assert measured.fit.n_stars >= 5
    np.testing.assert_allclose(measured.fit.shift, error, atol=0.002)


def test_positions_are_those_of_the_wcs_that_is_given():
    scene = simulate.Scene(RA, DEC).with_stars(20, flux=(0.1, 0.5), radius=50, seed=1)
    model = take(scene, "F770W", (0, 0), dithers=1)[0]
    before = model.data.copy()

    own = tile_direct.detect(model)
    other = tile_direct.detect(
        model, wcs=lambda x, y, **_: tuple(v + 0.001 for v in model.meta.wcs(x, y, with_bounding_box=False))
    )

    np.testing.assert_allclose(other.ra - own.ra, 0.001)
    np.testing.assert_allclose(other.corners - own.corners, 0.001)
    np.testing.assert_array_equal(model.data, before)
    assert own.fwhm == pytest.approx(0.24, abs=0.01)
    # Only the field of the imager is searched, and its corners are told.
    assert (own.x > 357).all()
    (left, bottom), (right, top) = detector.bounding_box("imager")
    corner = model.meta.wcs(float(right), float(top), with_bounding_box=False)
    np.testing.assert_allclose(own.corners[2], corner)


def test_what_is_needed_of_an_exposure_is_told():
    model = take(simulate.Scene(RA, DEC), "F770W", (0, 0), dithers=1)[0]
    model.meta.instrument.filter = "OPAQUE"
    with pytest.raises(ValueError, match="filter of .* must be one of .*'F560W'.*, got OPAQUE"):
        tile_direct.detect(model)
    assert len(tile_direct.detect(model, fwhm=2.2)) == 0
    model.meta.wcs = None
    with pytest.raises(ValueError, match="must have a WCS"):
        tile_direct.detect(model, fwhm=2.2)


# ---- lists of stars ---------------------------------------------------------------------------------------


def lists(seed=0, *, n=12, error=(0.5, -0.3), exposures=4, dec=DEC, sigma=0.01):
    """Make lists of stars of dithered exposures, and the catalogue."""
    rng = np.random.default_rng(seed)
    east, north = rng.uniform(-35, 35, n), rng.uniform(-50, 50, n)
    ra, dec_ = sphere.lon_lat(sphere.from_tangent(east, north, RA, dec))
    detections = []
    for number in range(exposures):
        dx, dy = rng.uniform(-4, 4, 2)
        noise = sigma * rng.standard_normal((2, n))
        seen = sphere.from_tangent(east - error[0] + noise[0], north - error[1] + noise[1], RA, dec)
        corners = np.array([[-45, -60], [45, -60], [45, 60], [-45, 60]], float)
        edges = sphere.from_tangent(corners[:, 0] + dx, corners[:, 1] + dy, RA, dec)
        detections.append(
            ExposureStars(
                name=f"exposure_{number}",
                **dict(zip(("ra", "dec"), sphere.lon_lat(seen), strict=True)),
                sigma=np.full(n, sigma),
                x=(east - dx) / 0.11 + 600,
                y=(north - dy) / 0.11 + 512,
                corners=np.stack(sphere.lon_lat(edges), axis=-1),
                fwhm=0.2,
            )
        )
    return detections, catalogue(ra, dec_)


@pytest.mark.parametrize("dec", [0.0, 34.0, -69.5, 89.9])
def test_shifts_are_on_the_sky_whatever_the_declination(dec):
    detections, reference = lists(dec=dec, sigma=1e-4)

    measured = tile_direct.measure(detections, reference, date=DATE)

    assert measured.n_detected == measured.fit.n_stars == measured.n_reference == 12
    # Near a pole East turns from the middle of the stars to that of the tile.
    expected = turned([0.5, -0.3], np.radians(measured.ra - RA) * np.sin(np.radians(dec)))
    np.testing.assert_allclose(measured.fit.shift, expected, atol=5e-4)


def turned(vector, angle):
    """Give the components of a vector along axes that are turned counter-clockwise."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s], [-s, c]]) @ vector


def test_the_order_of_exposures_changes_no_bit():
    detections, reference = lists()

    one = tile_direct.measure(detections, reference, date=DATE)
    other = tile_direct.measure(detections[::-1], reference, date=DATE)

    np.testing.assert_array_equal(one.fit.shift, other.fit.shift)
    np.testing.assert_array_equal(one.fit.shift_error, other.fit.shift_error)


def test_the_more_exposures_the_better():
    few, many = (
        [tile_direct.measure(*lists(seed, exposures=n), date=DATE).fit for seed in range(20)] for n in (1, 10)
    )

    few_error, many_error = (
        np.sqrt(np.mean([(fit.shift - (0.5, -0.3)) ** 2 for fit in fits])) for fits in (few, many)
    )
    assert few_error == pytest.approx(0.01 / np.sqrt(12), rel=0.3)
    assert many_error == pytest.approx(0.01 / np.sqrt(120), rel=0.3)


def test_a_hot_blob_on_the_detector_is_no_star():
    detections, reference = lists(exposures=4)
    # A thirteenth source, on the same pixels in all exposures.
    spoilt = []
    for each in detections:
        ra, dec = each.corners.mean(axis=0)
        more = {"ra": ra, "dec": dec, "sigma": 0.01, "x": 700.0, "y": 300.0}
        spoilt.append(replace(each, **{key: np.append(getattr(each, key), v) for key, v in more.items()}))

    assert tile_direct.measure(spoilt, reference, date=DATE).n_detected == 12


def test_single_detections_count_only_where_few_exposures_look():
    detections, reference = lists(exposures=3)
    one = {key: getattr(detections[0], key)[:5] for key in ("ra", "dec", "sigma", "x", "y")}
    nothing = {key: value[:0] for key, value in one.items()}
    alone = [replace(detections[0], **one), *(replace(each, **nothing) for each in detections[1:])]
    away = [alone[0], *(replace(each, corners=each.corners + [0.0, 0.2]) for each in alone[1:])]

    assert tile_direct.measure(alone, reference, date=DATE).n_detected == 0
    assert tile_direct.measure(away, reference, date=DATE).n_detected == 5
    assert tile_direct.measure(alone[:2], reference, date=DATE).n_detected == 5


def test_a_catalogue_of_the_whole_sky_is_cut_to_the_tile():
    detections, reference = lists()
    rng = np.random.default_rng(0)
    ra = np.concatenate([reference.ra, rng.uniform(0, 360, 5000)])
    dec = np.concatenate([reference.dec, np.degrees(np.arcsin(rng.uniform(-1, 1, 5000)))])

    measured = tile_direct.measure(detections, catalogue(ra, dec), date=DATE)

    assert measured.n_reference == 12
    assert measured.fit.n_stars == 12


def test_why_there_is_no_fit():
    detections, reference = lists(n=6)
    far = replace(reference, dec=reference.dec - 20)
    empty = {key: np.zeros(0) for key in ("ra", "dec", "sigma", "x", "y")}
    blind = [replace(each, **empty) for each in detections]

    assert "0 reference stars are fewer" in tile_direct.measure(detections, far, date=DATE).fit.reason
    assert "0 stars are fewer than min_stars=3" in tile_direct.measure(blind, reference, date=DATE).fit.reason
    with pytest.raises(ValueError, match="a tile must have at least 1 exposure, got 0"):
        tile_direct.measure([], reference, date=DATE)
