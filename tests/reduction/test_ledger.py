"""What counts as finished, and what is never overwritten."""

import json
import os

import numpy as np
import pytest
from astropy.io import fits

from miri_steps.reduction import settings
from miri_steps.reduction.jobs import Job
from miri_steps.reduction.ledger import Ledger
from miri_steps.reduction.settings import Hook


@pytest.fixture
def ledger(tmp_cwd):
    return Ledger(tmp_cwd / "out")


@pytest.fixture
def job(tmp_cwd):
    rate = tmp_cwd / "jw1_rate.fits"
    rate.write_text("rate")
    return Job("jw1", "F770W", settings.read()["image2"], rate, (rate,))


def make(ledger, job, **files):
    """Do what a job does: write to its own folder."""
    work = ledger.work_of(job)
    work.mkdir(parents=True)
    for name, text in (files or {"jw1_cal": "cal"}).items():
        (work / f"{name}.fits").write_text(text)


def finish(ledger, job, **files):
    with ledger.opened():
        make(ledger, job, **files)
        return ledger.publish(job)


def test_what_is_published_is_finished(ledger, job):
    assert not ledger.is_finished(job)

    assert finish(ledger, job) == [ledger.folder / "stage2" / "jw1_cal.fits"]

    assert ledger.is_finished(job)
    assert ledger.product_of(job).read_text() == "cal"


def test_other_parameters_and_other_content_are_other_work(ledger, job):
    finish(ledger, job)

    assert not ledger.is_finished(Job("jw2", "F770W", job.stage, job.given, job.inputs))
    changed = Job("jw1", "F770W", job.stage.changed("photom", skip=True), job.given, job.inputs)
    assert not ledger.is_finished(changed)
    job.given.write_text("RATE")
    os.utime(job.given, (1, 1))
    assert not ledger.is_finished(job)


def test_a_new_date_or_folder_alone_changes_nothing(ledger, job, tmp_cwd):
    finish(ledger, job)
    moved = tmp_cwd / "elsewhere" / job.given.name
    moved.parent.mkdir()
    job.given.rename(moved)
    os.utime(moved, (1, 1))
    os.utime(ledger.product_of(job), (2, 2))

    assert ledger.is_finished(Job("jw1", "F770W", job.stage, moved, (moved,)))


def test_the_content_of_files_that_parameters_name_counts(ledger, job, tmp_cwd):
    flat = tmp_cwd / "flat.fits"
    flat.write_text("flat")
    told = Job(
        "jw1", "F770W", job.stage.changed("flat_field", override_flat=str(flat)), job.given, job.inputs
    )
    finish(ledger, told)
    assert ledger.is_finished(told)

    flat.write_text("FLAT")
    os.utime(flat, (1, 1))

    assert not ledger.is_finished(told)


def test_files_named_without_their_end_or_alike_are_watched_too(ledger, job, tmp_cwd):
    (tmp_cwd / "gaia.ecsv").write_text("stars")
    for name in "ab":
        (tmp_cwd / name).mkdir()
        (tmp_cwd / name / "sky_cal.fits").write_text(name)
    # A parameter's value that happens to be a file's name.
    (tmp_cwd / "visit").write_text("no input")
    changes = {
        "tile_astrometry.reference_catalog": "gaia",
        "super_background.background_files": ["a/sky_cal.fits", "b/sky_cal.fits"],
        "pixel_skymatch.grouping": "visit",
    }
    stage = settings.read(changes=changes)["image3"]
    told = Job("jw1", "F770W", stage, job.given, job.inputs)
    with ledger.opened():
        make(ledger, told, jw1_i2d="i2d")
        ledger.publish(told)

    for path, watched in (
        ("visit", False),
        ("gaia.ecsv", True),
        ("a/sky_cal.fits", True),
        ("b/sky_cal.fits", True),
    ):
        before = (tmp_cwd / path).read_text()
        (tmp_cwd / path).write_text("changed")
        os.utime(tmp_cwd / path, (1, 1))
        assert ledger.is_finished(told) != watched
        (tmp_cwd / path).write_text(before)
        assert ledger.is_finished(told)


def test_a_note_that_cannot_be_read_protects_what_is_there(ledger, job):
    finish(ledger, job)
    for text in ("{}", "no json"):
        (ledger.folder / ".reduction" / "image2_jw1.json").write_text(text)
        with pytest.raises(FileExistsError, match="is in the way"):
            ledger.is_finished(job)


def test_what_cannot_be_published_is_kept(ledger, job):
    with ledger.opened():
        make(ledger, job)
        kept = ledger.keep(job)

    assert (kept / "jw1_cal.fits").read_text() == "cal"


def test_processes_and_memory_do_not_count(ledger, job):
    stages = [
        settings.read(changes=changes)["image3"]
        for changes in (
            {},
            {"pixel_skymatch.maximum_cores": "2", "image3.in_memory": "false"},
            {"pixel_skymatch.detector_order": "3"},
            {"pixel_skymatch.detector_order": 3},
        )
    ]
    told = [Job("jw1", "F770W", stage, job.given, job.inputs).settings() for stage in stages]

    assert told[0] == told[1] != told[2] == told[3]
    stage = stages[0]
    alone = Job("jw1", "F770W", stage, job.given, job.inputs, Hook("rate_from_rateints", {"combine": "mean"}))
    assert "mean" in json.dumps(alone.settings())


def test_what_was_not_published_to_its_end_is_not_finished(ledger, job, monkeypatch):
    """A run that is killed between two files: the first is there, the second is not."""
    moved = []

    def killed(source, target):
        if str(source).endswith(".fits"):
            moved.append(target)
            if len(moved) == 2:
                raise KeyboardInterrupt
        os.rename(source, target)

    monkeypatch.setattr("miri_steps.reduction.ledger.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        finish(ledger, job, jw1_cal="half", jw1_more="half")
    monkeypatch.undo()
    assert ledger.product_of(job).exists()
    assert not ledger.is_finished(job)

    finish(ledger, job, jw1_cal="whole", jw1_more="whole")

    assert ledger.is_finished(job)
    assert ledger.product_of(job).read_text() == "whole"


def test_a_file_of_somebody_else_is_not_overwritten(ledger, job):
    ledger.product_of(job).parent.mkdir(parents=True)
    ledger.product_of(job).write_text("precious")

    with pytest.raises(FileExistsError, match="jw1_cal.fits is in the way: this reduction has not made it"):
        ledger.is_finished(job)
    with pytest.raises(FileExistsError, match="jw1_cal.fits is in the way"):
        finish(ledger, job, jw1_cal="cal", jw1_a="a")

    assert ledger.product_of(job).read_text() == "precious"
    assert [path.name for path in ledger.product_of(job).parent.iterdir()] == ["jw1_cal.fits"]


def test_a_product_that_was_changed_is_used_and_not_overwritten(ledger, job):
    """Somebody has masked a star by hand."""
    finish(ledger, job)
    product = ledger.product_of(job)
    fits.PrimaryHDU(np.zeros((30, 30))).writeto(product, overwrite=True)

    assert ledger.is_finished(job)
    assert ledger.edited(job) == [product]

    job.given.write_text("RATE")
    os.utime(job.given, (1, 1))
    with pytest.raises(
        ValueError, match="jw1_cal.fits was changed since it was made, and is not overwritten"
    ):
        ledger.is_finished(job)


def test_a_product_that_is_not_whole_any_more_is_not_used(ledger, job):
    finish(ledger, job)
    product = ledger.product_of(job)
    fits.PrimaryHDU(np.zeros((90, 90))).writeto(product, overwrite=True)
    product.write_bytes(product.read_bytes()[:-2880])

    with pytest.raises(ValueError, match="jw1_cal.fits is truncated"):
        ledger.is_finished(job)


def test_a_product_that_was_deleted_is_made_again(ledger, job):
    finish(ledger, job)
    ledger.product_of(job).unlink()

    assert not ledger.is_finished(job)


def test_what_a_later_run_does_not_make_any_more_goes(ledger, job):
    finish(ledger, job, jw1_cal="cal", jw1_extra="extra")
    (ledger.folder / "stage2" / "mine.txt").write_text("precious")

    finish(ledger, job, jw1_cal="new")

    assert sorted(path.name for path in (ledger.folder / "stage2").iterdir()) == ["jw1_cal.fits", "mine.txt"]
    assert ledger.is_finished(job)


def test_one_reduction_at_a_time_and_nothing_of_a_killed_one_is_left(ledger, job):
    with ledger.opened():
        make(ledger, job)
        with pytest.raises(RuntimeError, match="another reduction is at work in .*out"), ledger.opened():
            pass
        assert ledger.work_of(job).exists()

    assert not ledger.work_of(job).exists()
    make(ledger, job)
    with ledger.opened():
        assert not ledger.work_of(job).exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_cwd):
    (tmp_cwd / "out").write_text("precious")

    with pytest.raises(NotADirectoryError), Ledger(tmp_cwd / "out").opened():
        pass

    assert (tmp_cwd / "out").read_text() == "precious"
