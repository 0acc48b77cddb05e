"""The spline through a mesh of background values, beside that of photutils."""

import numpy as np
import pytest
from photutils.background import Background2D

from miri_steps.algorithms import background_mesh


@pytest.mark.parametrize("boxes", [(3, 3), (3, 6), (4, 5), (6, 4), (9, 12)])
@pytest.mark.parametrize("level", [0.0, 5.0, 1e4])
def test_it_is_that_of_photutils(boxes, level):
    # Many boxes and few, whole ones and cut ones: short axes are where filters end in other digits.
    side = (16, 12)
    shape = boxes[0] * side[0] - 3, boxes[1] * side[1]
    image = level + np.random.default_rng(sum(boxes)).normal(0, 1, shape)
    expected = Background2D(image, side, exclude_percentile=50)
    found = background_mesh.interpolate(expected.background_mesh, side, shape)
    np.testing.assert_allclose(found, expected.background, rtol=1e-12, atol=1e-12)
