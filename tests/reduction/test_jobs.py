"""What a pipeline is told when a job runs."""

import numpy as np
from jwst.pipeline import Image3Pipeline
from stdatamodels.jwst import datamodels
from stpipe import config_parser

from miri_steps.reduction import jobs, settings
from miri_steps.reduction.jobs import Job

FROM_CRDS = {"kernel_fwhm": 2.187, "fitgeometry": "general", "snr_threshold": 7.0}


def job_of(folder, **changes):
    cal = folder / "jw1_cal.fits"
    datamodels.ImageModel(np.zeros((4, 4), np.float32)).save(cal)
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    stage = settings.read(changes=changes | {"source_catalog.skip": True})["image3"]
    association = {
        "products": [{"name": "field", "members": [{"expname": "jw1_cal.fits", "exptype": "science"}]}]
    }
    return Job("field", "F770W", stage, association, (cal,))


def run(job, work, monkeypatch):
    """Run it as far as the pipeline's own work, and give back the pipeline."""
    caught = []

    def from_reference(cls, *_, **__):
        return config_parser.ConfigObj({"steps": {"tweakreg": dict(FROM_CRDS)}})

    monkeypatch.setattr(Image3Pipeline, "get_config_from_reference", classmethod(from_reference))
    monkeypatch.setattr(Image3Pipeline, "_get_crds_parameters", classmethod(lambda cls, *_: ({}, "jwst")))
    monkeypatch.setattr(Image3Pipeline, "process", lambda self, given: caught.append(self))
    work.mkdir()
    jobs._run(job, work, "2")
    return caught[0]


def test_what_crds_says_holds_where_the_files_are_silent(tmp_cwd, monkeypatch):
    pipeline = run(job_of(tmp_cwd, tweakreg__snr_threshold=12), tmp_cwd / "work", monkeypatch)

    assert pipeline.tweakreg.kernel_fwhm == FROM_CRDS["kernel_fwhm"]
    assert pipeline.tweakreg.fitgeometry == "shift"
    assert pipeline.tweakreg.snr_threshold == 12.0


def test_hooks_get_their_parameters_their_cores_and_a_place_to_write(tmp_cwd, monkeypatch):
    changes = {"pixel_skymatch__detector_order": "2", "super_background__maximum_cores": "1"}
    pipeline = run(job_of(tmp_cwd, **changes), tmp_cwd / "work", monkeypatch)

    (background,), (match,) = pipeline.skymatch.pre_hooks, pipeline.skymatch.post_hooks
    assert (match.detector_order, match.maximum_cores) == (2, "2")
    assert background.maximum_cores == "1"
    assert background.output_dir == match.output_dir == str(tmp_cwd / "work")
    assert pipeline.skymatch.skip is True


def test_memory_is_used_where_there_is_enough(tmp_cwd, monkeypatch):
    assert run(job_of(tmp_cwd), tmp_cwd / "a", monkeypatch).in_memory is True

    monkeypatch.setattr(jobs, "_MOST_MEMORY", 0.0)

    assert run(job_of(tmp_cwd), tmp_cwd / "b", monkeypatch).in_memory is False
    asked = job_of(tmp_cwd, image3__in_memory="true")
    assert run(asked, tmp_cwd / "c", monkeypatch).in_memory is True
