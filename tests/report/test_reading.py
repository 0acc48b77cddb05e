"""What the border reads of files for a report."""

import pytest
from stdatamodels.jwst.datamodels import ImageModel

from miri_steps import exposures


@pytest.mark.parametrize("length", range(60, 80))
def test_history_is_the_same_again_whatever_its_length(length, tmp_path):
    words = " ".join(f"p{k}={k}" for k in range(40))
    with ImageModel((4, 4)) as model:
        model.add_history_entry("made by another hand")
        exposures.add_history(model, f"AStep: {'x' * length} {words}")
        exposures.add_history(model, "BStep: b=1")
        model.add_history_entry("made by another hand")
        written = [entry["description"] for entry in model.instance["history"]["entries"]]
        model.save(str(tmp_path / "a.fits"))

    with exposures.open_file(tmp_path / "a.fits") as model:
        found = exposures.read_history(model)

    assert found == written[1:3]


def test_logs_are_read_where_there_are_any(tmp_path):
    with ImageModel((4, 4)) as model:
        assert exposures.read_logs(model) == {}
        model.cal_logs = {"calwebb_image3": ["a line", "another"]}
        model.save(str(tmp_path / "a.fits"))

    with exposures.open_file(tmp_path / "a.fits") as model:
        assert exposures.read_logs(model) == {"calwebb_image3": ["a line", "another"]}
