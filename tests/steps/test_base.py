"""What all Steps share: files that are looked at before any work."""

import gzip

import numpy as np
import pytest
from astropy.io import fits

from miri_steps.steps.base import check_file, is_exposure_file, remove_suffix


@pytest.fixture
def whole(tmp_path):
    """Write a file, and one with the same name that is compressed."""
    path = tmp_path / "plain.fits"
    noise = np.random.default_rng(1).normal(size=(50, 60))
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(noise)]).writeto(path)
    packed = tmp_path / "packed.fits"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return path, packed


def test_compressed_files_need_no_other_name(whole):
    for path in whole:
        check_file(path)


@pytest.mark.filterwarnings("ignore:File may have been truncated", "ignore:Error validating header")
@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_files_that_are_not_whole_are_refused(whole, part):
    for path in whole:
        content = path.read_bytes()
        path.write_bytes(content[: int(part * len(content))])
        words = "(is truncated|must be a FITS file, but cannot be read)"
        with pytest.raises(ValueError, match=f"{path.name} {words}"):
            check_file(path)


def test_names_of_compressed_files_lose_both_ends():
    assert remove_suffix("jw01_cal.fits") == ("jw01", "_")
    assert [is_exposure_file(name) for name in ("a.fits.gz", "A.FITS", "a.asdf", "a.json", "a.gz")] == [
        True, True, True, False, False,
    ]  # fmt: skip
