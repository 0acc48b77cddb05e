"""Which exposures are found, and what they start from."""

import re

import numpy as np
import pytest
from astropy.io import fits

from miri_steps.reduction.sources import find

HEADER = {"EXP_TYPE": "MIR_IMAGE", "FILTER": "F770W", "VISIT_ID": "01234001001", "GDSTARID": "S1HP676235"}


def write(path, **header):
    path.parent.mkdir(parents=True, exist_ok=True)
    hdu = fits.PrimaryHDU(np.zeros((50, 50)))
    hdu.header.update({key: value for key, value in (HEADER | header).items() if value is not None})
    hdu.writeto(path)
    return path


@pytest.mark.parametrize(("start", "kind"), [(None, "uncal"), ("rate", "rate"), ("cal", "cal")])
def test_an_exposure_starts_from_the_rawest_file_or_as_it_is_told(start, kind, tmp_cwd):
    for suffix in ("uncal", "rate", "rateints", "cal", "i2d", "crf"):
        write(tmp_cwd / f"jw1_mirimage_{suffix}.fits")

    (source,) = find(tmp_cwd, start)

    assert (source.name, source.kind) == ("jw1_mirimage", kind)
    assert source.path == tmp_cwd / f"jw1_mirimage_{kind}.fits"
    assert source.rateints == (tmp_cwd / "jw1_mirimage_rateints.fits" if kind == "rate" else None)
    assert (source.band, source.visit_id, source.gs_id) == ("F770W", "01234001001", "S1HP676235")
    assert not source.problem


def test_filters_come_shortest_first_and_folders_are_searched_but_the_results(tmp_cwd):
    write(tmp_cwd / "b" / "jw2_cal.fits", FILTER="F2100W")
    write(tmp_cwd / "a" / "deep" / "jw3_cal.fits", FILTER="F1000W")
    write(tmp_cwd / "jw1_cal.fits", FILTER="F2100W")
    write(tmp_cwd / "out" / "stage2" / "jw1_cal.fits")
    write(tmp_cwd / ".hidden" / "jw1_cal.fits")

    found = find(tmp_cwd, leave_out=[tmp_cwd / "out" / "stage2"])

    assert [source.name for source in found] == ["jw3", "jw1", "jw2"]


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"EXP_TYPE": "MIR_TACQ"}, "EXP_TYPE must be MIR_IMAGE, got MIR_TACQ"),
        ({"EXP_TYPE": "NRC_IMAGE"}, "EXP_TYPE must be MIR_IMAGE, got NRC_IMAGE"),
        ({"FILTER": "OPAQUE"}, "FILTER must be one of .*F770W.*, got OPAQUE"),
        ({"FILTER": None}, "FILTER must be one of .*F770W.*, got None"),
        ({"BKGDTARG": True}, "background exposure: name it in super_background.background_files"),
    ],
)
def test_what_takes_no_part_is_named_with_the_reason(header, problem, tmp_cwd):
    write(tmp_cwd / "jw1_cal.fits")
    write(tmp_cwd / "jw2_cal.fits", **header)

    found = {source.name: source for source in find(tmp_cwd)}

    assert not found["jw1"].problem
    assert re.search(problem, found["jw2"].problem)
    assert not found["jw2"].is_broken


def test_a_file_that_is_not_whole_is_broken(tmp_cwd):
    path = write(tmp_cwd / "jw1_rate.fits")
    write(tmp_cwd / "jw1_rateints.fits")
    path.with_name("jw1_rateints.fits").write_bytes(path.read_bytes()[:-100])

    (source,) = find(tmp_cwd)

    assert source.is_broken
    assert "jw1_rateints.fits is truncated" in source.problem


def test_nothing_to_do_is_refused(tmp_cwd):
    write(tmp_cwd / "jw1_cal.fits")

    with pytest.raises(NotADirectoryError, match="gone must be a folder"):
        find(tmp_cwd / "gone")
    with pytest.raises(ValueError, match="no file in it ends with _rate.fits"):
        find(tmp_cwd, "rate")
    with pytest.raises(ValueError, match="must be one of uncal, rate, cal, got 'i2d'"):
        find(tmp_cwd, "i2d")


def test_an_exposure_that_is_there_twice_is_refused(tmp_cwd):
    write(tmp_cwd / "a" / "jw1_cal.fits")
    write(tmp_cwd / "b" / "jw1_cal.fits")

    with pytest.raises(
        ValueError, match="each exposure must be there once, but jw1_cal.fits is there 2 times: .*a.*b"
    ):
        find(tmp_cwd)

    write(tmp_cwd / "b" / "jw1_uncal.fits")
    (source,) = find(tmp_cwd)
    assert source.kind == "uncal"


def test_links_are_followed_once_and_other_reductions_left_out(tmp_cwd):
    write(tmp_cwd / "elsewhere" / "jw1_cal.fits")
    write(tmp_cwd / "field" / "first" / "stage2" / "jw1_cal.fits")
    (tmp_cwd / "field" / "first" / ".reduction").mkdir()
    (tmp_cwd / "field" / "link").symlink_to(tmp_cwd / "elsewhere")
    (tmp_cwd / "elsewhere" / "back").symlink_to(tmp_cwd / "field")

    (source,) = find(tmp_cwd / "field")

    assert source.path == tmp_cwd / "field" / "link" / "jw1_cal.fits"
