"""Plans: where the exposures look and what they are called."""

import numpy as np
import pytest
from astropy.table import Table

from miri_steps.simulate import Pointing, from_footprints, grid, mosaic, sphere, wcs


def test_names_are_those_of_the_archive():
    pointing = Pointing(0, 0, visit_id="02729002001", visit_group="02", activity="03", exposure=7)
    assert pointing.name == "jw02729002001_02103_00007_mirimage"


def test_every_tile_is_a_visit_with_its_own_guide_star():
    plan = mosaic(10, 60, tiles=(2, 3), dithers=4)
    assert len(plan) == 24
    assert len({p.visit_id for p in plan}) == len({p.gs_id for p in plan}) == 6
    assert len({p.name for p in plan}) == 24
    assert [p.dither for p in plan[:4]] == [1, 2, 3, 4]
    times = [p.start_time for p in plan]
    assert times == sorted(times)
    assert sphere.lon_lat(sum(sphere.unit_vectors(p.ra, p.dec) for p in plan)) == pytest.approx((10, 60))


def test_grid_has_its_step():
    plan = grid(10, 60, n=(3, 2), step=(5.0, 7.0), per_visit=4)
    assert [p.visit for p in plan] == ["001"] * 4 + ["002"] * 2
    vectors = [sphere.unit_vectors(p.ra, p.dec) for p in plan]
    along_x, along_y = (np.linalg.norm(vectors[i] - vectors[0]) / sphere.ARCSEC for i in (1, 3))
    assert along_x == pytest.approx(5.0, abs=1e-3)
    assert along_y == pytest.approx(7.0, abs=1e-3)


def test_steps_follow_the_detector_axes():
    plan = grid(10, 60, n=(2, 1), step=20.0, pa=77.0)
    sky = sphere.unit_vectors(plan[1].ra, plan[1].dec)
    x, y = wcs.sky_to_pixels(sky[None], plan[0], "F770W", "FULL")
    # The second exposure looks 20 arcsec further along x.
    assert x[0] - 692.5 == pytest.approx(20 / 0.11, rel=0.02)
    assert y[0] - 511.5 == pytest.approx(0, abs=2)


def test_rotation_and_back():
    turn = sphere.attitude(123.4, -56.7, 210.0, -453.0, -373.0)
    assert sphere.decompose(turn, -453.0, -373.0) == pytest.approx((123.4, -56.7, 210.0))


def test_real_footprints_are_reproduced(shared_data):
    table = Table.read(shared_data / "exposure_footprints.ecsv")
    plan = from_footprints(table)
    assert [p.name for p in plan] == [f"{name}_mirimage" for name in table["exposure"]]
    for row, pointing in list(zip(table, plan, strict=True))[::12]:
        region = wcs.s_region(wcs.build(pointing, str(row["filter"])))
        corners = np.array(region.split()[2:], float).reshape(4, 2)
        real = np.array([[row[f"ra{i}"], row[f"dec{i}"]] for i in range(1, 5)])
        off = sphere.unit_vectors(*corners.T) - sphere.unit_vectors(*real.T)
        assert np.linalg.norm(off, axis=1).max() / sphere.ARCSEC < 0.1


def test_made_up_footprints_are_reproduced_or_refused():
    pointing = Pointing(150.0, 2.0, 33.0)
    region = wcs.s_region(wcs.build(pointing, "F560W")).split()[2:]
    row = dict(zip((f"{c}{i}" for i in range(1, 5) for c in ("ra", "dec")), map(float, region), strict=True))
    names = {"filter": "F560W", "visit_id": "01234001001", "exposure": "jw01234001001_02101_00001"}
    found = from_footprints(Table([names | row]))[0]
    assert (found.ra, found.dec, found.pa_v3) == pytest.approx((150, 2, 33), abs=1e-6)
    with pytest.raises(ValueError, match="corners must be those of a full frame"):
        from_footprints(Table([names | row | {"ra1": row["ra1"] + 0.01}]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Pointing(0, 0, visit_id="12"), "visit_id must have 11 digits, got '12'"),
        (lambda: Pointing(0, 91), "dec must be between -90 and 90 deg, got 91"),
        (lambda: mosaic(0, 0, dithers=0), "dithers must be at least 1, got 0"),
        (lambda: grid(0, 0, n=(0, 2)), "at least 1 x 1 positions, got 0 x 2"),
        (lambda: grid(0, 0, per_visit=0), "per_visit must be at least 1, got 0"),
    ],
)
def test_wrong_plans_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
