"""The image of a star."""

import numpy as np
import pytest

from miri_steps import detector
from miri_steps.simulate import Psf, psf

# Its core is the same however far it reaches.
CORE = 16


@pytest.mark.parametrize("name", ["F560W", "F1000W", "F2550W"])
def test_width_is_the_published_one(name):
    assert psf(name, half_size=CORE).fwhm == pytest.approx(detector.FWHM[name], rel=0.1)


@pytest.mark.parametrize("name", ["F770W", "F1500W"])
def test_looks_like_the_observatory_model(name, shared_data):
    ours = psf(name, half_size=CORE)
    model = Psf.from_file(shared_data / "psf" / f"miri_{name.lower()}_os4.fits")
    assert ours.fwhm == pytest.approx(model.fwhm, rel=0.03)
    pair = [p.stamp(0, 0, 12) / p.stamp(0, 0, 12).sum() for p in (ours, model)]
    assert np.abs(pair[0] - pair[1]).max() < 0.1 * pair[1].max()


def test_light_is_conserved_wherever_the_star_is():
    stamps = [psf("F770W").stamp(dx, dy, 100) for dx, dy in [(0, 0), (0.5, 0.1), (-0.37, 0.21)]]
    total = [stamp.sum() for stamp in stamps]
    assert np.ptp(total) < 1e-4
    assert 0.98 < total[0] < 1


def test_centroid_follows_the_star():
    y, x = np.indices((41, 41)) - 20
    for dx, dy in [(0.0, 0.0), (0.4, -0.3)]:
        round_psf = Psf(_gaussian(5), 5)
        stamp = round_psf.stamp(dx, dy, 20)
        assert (stamp * x).sum() / stamp.sum() == pytest.approx(dx, abs=1e-3)
        assert (stamp * y).sum() / stamp.sum() == pytest.approx(dy, abs=1e-3)


@pytest.mark.parametrize("oversample", [4, 5])
def test_a_given_psf_is_used_as_it_is(oversample):
    stamp = Psf(_gaussian(oversample), oversample).stamp(0, 0, 15)
    np.testing.assert_allclose(stamp, stamp[::-1, ::-1], atol=1e-12)
    assert stamp.sum() == pytest.approx(1, abs=1e-6)


def test_wrong_psfs_are_refused():
    with pytest.raises(ValueError, match="filter must be one of"):
        psf("F200W")
    with pytest.raises(ValueError, match="2-D array"):
        Psf(np.ones(5), 4)


def _gaussian(oversample: int) -> np.ndarray:
    axis = (np.arange(61 * oversample) - (61 * oversample - 1) / 2) / oversample
    line = np.exp(-(axis**2) / (2 * 1.2**2))
    return np.outer(line, line) / line.sum() ** 2
