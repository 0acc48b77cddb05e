"""Directions on the sphere, against astropy."""

import numpy as np
import pytest
from astropy.coordinates import SkyCoord

from miri_steps.algorithms import directions


@pytest.mark.parametrize("ra, dec", [(0.0, 0.0), (83.6, -69.1), (359.9, 34.0), (200.0, 89.9)])
def test_a_small_step_along_an_axis_goes_where_its_name_says(ra, dec):
    east, north, outward = directions.local_axes(np.array([ra, dec]))
    step = np.radians(1 / 3600)

    here = SkyCoord(ra, dec, unit="deg")
    np.testing.assert_allclose(outward, here.cartesian.xyz.value, atol=1e-15)
    for axis, expected in ((east, (1.0, 0.0)), (north, (0.0, 1.0))):
        there = SkyCoord(*(outward + step * axis), representation_type="cartesian")
        moved = here.spherical_offsets_to(SkyCoord(there.spherical.lon, there.spherical.lat))
        np.testing.assert_allclose([each.arcsec for each in moved], expected, atol=1e-6)


def test_many_places_give_as_many_axes():
    places = np.random.default_rng(1).uniform([0, -80], [360, 80], (4, 5, 2))

    axes = np.stack(directions.local_axes(places))

    assert axes.shape == (3, 4, 5, 3)
    np.testing.assert_allclose(np.einsum("i...k,j...k->ij...", axes, axes)[0, 1], 0, atol=1e-15)
    np.testing.assert_array_equal(axes[:, 2, 3], np.stack(directions.local_axes(places[2, 3])))
