"""A file is there whole, or as it was before."""

import pytest

from miri_steps import whole_files


def test_a_file_takes_the_place_of_an_older_one(tmp_cwd):
    path = tmp_cwd / "table.ecsv"
    for text in ("first", "second"):
        whole_files.replace(path, lambda temporary, text=text: temporary.write_text(text))
        assert path.read_text() == text

    assert [each.name for each in tmp_cwd.iterdir()] == ["table.ecsv"]


def test_what_cannot_be_written_leaves_the_older_one(tmp_cwd):
    path = tmp_cwd / "table.ecsv"
    path.write_text("precious")

    def fill(temporary):
        temporary.write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        whole_files.replace(path, fill)

    assert path.read_text() == "precious"
    assert [each.name for each in tmp_cwd.iterdir()] == ["table.ecsv"]
