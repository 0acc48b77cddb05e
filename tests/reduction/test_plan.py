"""What is run, kept and left alone; the pipelines themselves are played by a stand-in that writes files."""

import os
import shutil

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from miri_steps.reduction import chain, reduce
from miri_steps.reduction.jobs import Outcome

VISITS = {"1": "01234001001", "2": "01234001002"}


def write_exposure(folder, name, band, kind="cal"):
    folder.mkdir(exist_ok=True)
    hdu = fits.PrimaryHDU(np.zeros((30, 30)))
    visit = VISITS[name[-1]]
    hdu.header.update(
        {"EXP_TYPE": "MIR_IMAGE", "FILTER": band, "VISIT_ID": visit, "GDSTARID": "S1", "PROGRAM": "01234"}
    )
    hdu.writeto(folder / f"{name}_{kind}.fits", overwrite=True)


class Pipelines:
    """Plays the pipelines: writes what they would, and remembers what they were told."""

    def __init__(self):
        self.ran, self.failing = {}, set()

    def run(self, jobs, ledger, cores, tell):
        for job in jobs:
            self.ran[job.name] = job
            if job.name in self.failing:
                yield job, Outcome(1.0, "it was told to fail")
                continue
            work = ledger.work_of(job)
            work.mkdir()
            fits.PrimaryHDU(np.full((30, 30), len(job.inputs))).writeto(work / job.product)
            hook = job.stage.hooks().get("tile_astrometry")
            if hook and "corrections" not in hook.parameters:
                table = Table(
                    {"tile": [f"{visit} S1" for visit in VISITS.values()], "shift_east": [0.1, 0.2]}
                )
                table.write(work / f"{job.name}_tiles.ecsv")
            yield job, Outcome(1.0, inputs=job.fingerprints())


@pytest.fixture
def pipelines(monkeypatch):
    played = Pipelines()
    monkeypatch.setattr(chain.running, "run", played.run)
    return played


@pytest.fixture
def again(pipelines, tmp_cwd):
    """Reduce the same folder again and again; give back what was run and how it ended."""
    for band in ("F770W", "F1800W"):
        for visit in VISITS:
            write_exposure(tmp_cwd / "ngc1", f"jw_{band.lower()}_{visit}", band)

    def run(**given):
        pipelines.ran.clear()
        table = reduce(tmp_cwd / "ngc1", tmp_cwd / "out", save_report=False, **given)
        return set(pipelines.ran), {row["name"]: (row["status"], row["reason"]) for row in table}

    return run


def members_of(path):
    return int(fits.getdata(path)[0, 0])


def touch(path):
    os.utime(path, (1, 1))


def test_corrections_go_from_the_shortest_filter_to_the_others(again, pipelines):
    ran, ends = again()

    assert ran == {"ngc1_f770w", "ngc1_f1800w"}
    first, second = (pipelines.ran[f"ngc1_{band}"].stage for band in ("f770w", "f1800w"))
    assert first.hooks()["tile_astrometry"].parameters == {"save_corrections": True}
    assert "skip" not in first.steps["tweakreg"]
    assert second.hooks()["tile_astrometry"].parameters["corrections"].endswith("ngc1_f770w_tiles.ecsv")
    assert second.steps["tweakreg"]["skip"] is True
    assert ends["ngc1_f1800w"] == ("done", "tile corrections of ngc1_f770w_tiles.ecsv")
    assert again()[0] == set()


def test_a_filter_with_other_tiles_is_measured_by_itself(again, pipelines, tmp_cwd, monkeypatch):
    monkeypatch.setitem(VISITS, "3", "01234001003")
    write_exposure(tmp_cwd / "ngc1", "jw_f1800w_3", "F1800W")
    monkeypatch.delitem(VISITS, "3")

    again()

    assert "corrections" not in pipelines.ran["ngc1_f1800w"].stage.hooks()["tile_astrometry"].parameters


def test_an_edited_table_serves_the_other_filters(again, tmp_cwd):
    again()
    table = tmp_cwd / "out" / "stage3" / "ngc1_f770w_tiles.ecsv"
    table.write_text(table.read_text().replace("0.1", "0.15"))

    ran, ends = again()

    assert ran == {"ngc1_f1800w"}
    assert ends["ngc1_f770w"] == (
        "up to date",
        "used as it is now: ngc1_f770w_tiles.ecsv was changed by hand",
    )
    assert ends["ngc1_f1800w"][1] == "tile corrections of ngc1_f770w_tiles.ecsv"
    assert "0.15" in table.read_text()


def test_an_edited_exposure_goes_into_the_mosaic(again, tmp_cwd):
    for visit in VISITS:
        (tmp_cwd / "ngc1" / f"jw_f770w_{visit}_cal.fits").unlink()
        write_exposure(tmp_cwd / "ngc1", f"jw_f770w_{visit}", "F770W", "rate")
    again()
    fits.setval(tmp_cwd / "out" / "stage2" / "jw_f770w_1_cal.fits", "MASKED", value="by hand")

    ran, ends = again()

    assert ran == {"ngc1_f770w"} or ran == {"ngc1_f770w", "ngc1_f1800w"}
    assert ends["jw_f770w_1"] == ("up to date", "used as it is now: jw_f770w_1_cal.fits was changed by hand")
    assert members_of(tmp_cwd / "out" / "stage3" / "ngc1_f770w_i2d.fits") == 2


def test_a_mosaic_is_not_replaced_by_one_of_fewer_exposures(again, tmp_cwd):
    again()
    mosaic = tmp_cwd / "out" / "stage3" / "ngc1_f770w_i2d.fits"
    broken = tmp_cwd / "ngc1" / "jw_f770w_2_cal.fits"
    broken.write_bytes(broken.read_bytes()[:-2880])

    ran, ends = again()

    assert ran == set()
    assert ends["ngc1_f770w"][0] == "failed"
    assert ends["ngc1_f770w"][1].startswith("1 of the 2 files its mosaic was made of have failed: it is kept")
    assert members_of(mosaic) == 2
    assert ends["ngc1_f1800w"][0] == "up to date"
    shutil.rmtree(tmp_cwd / "out")
    ran, ends = again()
    assert ends["ngc1_f770w"] == ("done", "1 of its 2 exposures have failed")
    assert members_of(mosaic) == 1
    assert "ngc1_f770w" in again(changes={"resample.pixfrac": 0.9})[0]


def test_without_its_corrections_a_mosaic_is_not_made_anew(again, pipelines, tmp_cwd):
    again()
    for path in (tmp_cwd / "ngc1").iterdir():
        with fits.open(path, mode="update") as hdus:
            hdus[0].data[0] = 1
        touch(path)
    for name in ("ngc1_f770w_i2d.fits", "ngc1_f770w_tiles.ecsv"):
        (tmp_cwd / "out" / "stage3" / name).unlink()
    pipelines.failing = {"ngc1_f770w"}

    ran, ends = again()

    assert ran == {"ngc1_f770w"}
    assert "it was told to fail" in ends["ngc1_f770w"][1]
    why = "ngc1_f770w has failed, whose tile corrections it had: it is kept as it was"
    assert ends["ngc1_f1800w"] == ("failed", why)
    pipelines.failing = set()
    assert again()[0] == {"ngc1_f770w", "ngc1_f1800w"}


def test_a_file_in_the_way_is_found_before_any_work(again, tmp_cwd):
    (tmp_cwd / "out" / "stage3").mkdir(parents=True)
    (tmp_cwd / "out" / "stage3" / "ngc1_f770w_i2d.fits").write_text("precious")

    ran, ends = again()

    assert "ngc1_f770w" not in ran
    assert ends["ngc1_f770w"][0] == "failed"
    assert "is in the way" in ends["ngc1_f770w"][1]
    assert (tmp_cwd / "out" / "stage3" / "ngc1_f770w_i2d.fits").read_text() == "precious"


def test_what_cannot_be_moved_to_its_place_is_kept(again, tmp_cwd):
    (tmp_cwd / "out" / "stage3").mkdir(parents=True)
    (tmp_cwd / "out" / "stage3" / "ngc1_f770w_tiles.ecsv").write_text("precious")

    _, ends = again()

    kept = tmp_cwd / "out" / "kept" / "image3_ngc1_f770w" / "ngc1_f770w_i2d.fits"
    assert ends["ngc1_f770w"][0] == "failed"
    assert str(kept.parent) in ends["ngc1_f770w"][1]
    assert kept.exists()


@pytest.mark.parametrize(
    ("name", "stem"),
    [("ngc1.2", "ngc1-2"), ("my ünï field", "my-uni-field"), ("Σ", "field"), ("a+b_c", "a+b-c")],
)
def test_mosaics_are_named_after_the_folder_as_far_as_that_goes(name, stem, tmp_cwd):
    (tmp_cwd / name).mkdir()

    assert chain._product_name(tmp_cwd / name / ".." / name) == stem


def test_the_table_is_shown_where_it_cannot_be_written(again, tmp_cwd, capsys):
    (tmp_cwd / "out" / "reduction.ecsv").mkdir(parents=True)

    _, ends = again()

    assert "stage3     2 done" in capsys.readouterr().out
    assert ends["reduction.ecsv"][0] == "failed"
    assert "out/reduction.ecsv" in ends["reduction.ecsv"][1]


def test_a_report_is_made_again_when_there_is_something_new(again, pipelines, tmp_cwd, monkeypatch):
    from miri_steps import report

    made = []

    def write(folder):
        made.append(folder)
        (folder / "report.html").write_text("page")
        return folder / "report.html"

    monkeypatch.setattr(report, "write", write)
    for changes in ({}, {}, {"resample.pixfrac": 0.9}, {"resample.pixfrac": 0.9}):
        reduce(tmp_cwd / "ngc1", tmp_cwd / "out", changes=changes)
    assert len(made) == 2
    again(changes={"resample.pixfrac": 0.8})
    reduce(tmp_cwd / "ngc1", tmp_cwd / "out", changes={"resample.pixfrac": 0.8})
    assert len(made) == 3


def test_a_filter_that_is_all_broken_is_waited_for_too(again, tmp_cwd):
    again()
    for visit in VISITS:
        broken = tmp_cwd / "ngc1" / f"jw_f770w_{visit}_cal.fits"
        broken.write_bytes(broken.read_bytes()[:-2880])
    (tmp_cwd / "out" / "stage3" / "ngc1_f770w_tiles.ecsv").unlink()

    ran, ends = again(changes={"resample.pixfrac": 0.9})

    assert ran == set()
    assert ends["ngc1_f770w"][0] == "failed"
    assert "whose tile corrections it had" in ends["ngc1_f1800w"][1]


def test_a_file_without_a_header_keeps_the_mosaic_it_was_in(again, tmp_cwd):
    again()
    (tmp_cwd / "ngc1" / "jw_f1800w_2_cal.fits").write_bytes(b"")

    ran, ends = again()

    assert ran == set()
    assert ends["ngc1_f1800w"][1].startswith("1 of the ")


def test_corrections_that_were_given_wait_for_nobody(again, pipelines, tmp_cwd):
    Table({"tile": ["a"], "shift_east": [0.1]}).write(tmp_cwd / "mine.ecsv")
    given = {"tile_astrometry.corrections": str(tmp_cwd / "mine.ecsv")}
    again(changes=given)
    pipelines.failing = {"ngc1_f770w"}

    ran, ends = again(changes=given | {"resample.pixfrac": 0.9})

    assert ran == {"ngc1_f770w", "ngc1_f1800w"}
    assert ends["ngc1_f1800w"][0] == "done"


def test_what_changes_while_a_mosaic_is_made_is_seen_next_time(again, pipelines, tmp_cwd, monkeypatch):
    playing = pipelines.run

    def run(jobs, *rest):
        for job, outcome in playing(jobs, *rest):
            if job.name == "ngc1_f1800w":
                fits.setval(tmp_cwd / "ngc1" / "jw_f1800w_1_cal.fits", "MASKED", value="meanwhile")
            yield job, outcome

    monkeypatch.setattr(chain.running, "run", run)
    again()
    monkeypatch.setattr(chain.running, "run", playing)

    assert again()[0] == {"ngc1_f1800w"}
