"""PixelSkyMatchStep where exposures are many: what stays in memory, what travels, and what is left behind."""

import logging
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from astropy.table import QTable
from jwst.datamodels import ModelLibrary

from miri_steps import PixelSkyMatchStep, exposures
from miri_steps.algorithms import matching
from miri_steps.steps import sky_reading
from miri_steps.steps.base import list_exposures
from miri_steps.steps.sky_members import Member, corners
from miri_steps.steps.sky_reading import Rules


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where scratch files of this process go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def on_disk(tmp_path):
    """Libraries on disk, with their own files in the test's folder."""

    def library(field, files=None):
        folder = Path(tempfile.mkdtemp(prefix="library_", dir=tmp_path))
        return ModelLibrary(field.dictionary(files), on_disk=True, temp_directory=folder)

    return library


def rules(members, folder, **changed):
    given = {"dqbits": "~DO_NOT_USE+NON_SCIENCE", "lower": None, "upper": None, "regions": ()}
    center = exposures.sky_middle(corners(members))
    return Rules(center=center, scale=0.88, keep=sky_reading.keeper(folder), **(given | changed))


def readings(library, folder, **changed):
    members = list_exposures(library, Member)
    with library:
        return list(sky_reading.readings(library, members, rules(members, folder, **changed)))


# The same answer, to the bit


@pytest.fixture(scope="module")
def in_memory(row, planes_of, tmp_path_factory):
    """Images and tables of a run that keeps all in memory."""
    folder = tmp_path_factory.mktemp("tables")
    result = PixelSkyMatchStep.call(ModelLibrary(row.dictionary()), save_levels=True, output_dir=str(folder))
    return planes_of(result), tables(folder)


def tables(folder):
    return {path.name: path.read_text() for path in folder.glob("*.ecsv")}


@pytest.mark.parametrize("cores", ["1", "2"])
def test_exposures_on_disk_have_the_levels_of_those_in_memory(
    cores, row, on_disk, in_memory, planes_of, scratch, tmp_cwd
):
    result = PixelSkyMatchStep.call(
        on_disk(row), maximum_cores=cores, save_levels=True, in_memory=False, output_dir=str(tmp_cwd)
    )

    planes, expected = in_memory
    assert tables(tmp_cwd) == expected
    assert len(QTable.read(tmp_cwd / "field_sky_pairs.ecsv")) == 3
    for name, found in planes_of(result).items():
        np.testing.assert_array_equal(found["data"], planes[name]["data"])
    assert not list(scratch.glob(".pixel_skymatch*"))


def test_cells_read_from_a_file_are_those_of_the_exposure_in_memory(row, on_disk, tmp_path):
    statistic = {"statistic": ("mode", None, None, 5, 4.0, 4.0, 0.1)}
    seen = [
        [sky_reading.read(task) for task in readings(library, folder, **statistic)]
        for library, folder in ((on_disk(row), tmp_path), (ModelLibrary(row.dictionary()), None))
    ]

    for filed, held in zip(*seen, strict=True):
        assert filed.sky == held.sky
        np.testing.assert_array_equal(filed.cells.load().data, held.cells.load().data)
        np.testing.assert_array_equal(filed.cells.bits, held.cells.bits)
        assert filed.cells.reach == held.cells.reach
        assert filed.cells.corner == held.cells.corner


def test_what_a_step_before_has_changed_is_read(row, on_disk, tmp_path):
    """An exposure that was written anew is read from the file that the library wrote."""
    library = on_disk(row)
    with library:
        model = library.borrow(1)
        model.data = model.data + np.float32(7)
        library.shelve(model, 1)

    before, after = (
        [sky_reading.read(task).cells.load().data for task in readings(given, tmp_path)]
        for given in (on_disk(row), library)
    )

    raised = after[1] - before[1]
    assert np.isfinite(raised).sum() > 40
    np.testing.assert_allclose(raised[np.isfinite(raised)], 7, atol=1e-5)
    np.testing.assert_array_equal(after[2], before[2])


# Memory, and what travels


def test_paths_travel_instead_of_exposures(row, on_disk, tmp_path):
    tasks = readings(on_disk(row), tmp_path)

    assert [task.name for task in tasks] == row.names
    assert max(len(pickle.dumps(task)) for task in tasks) < 10_000
    found = [pickle.dumps(sky_reading.read(task)) for task in tasks]
    assert max(map(len, found)) < 5_000
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == [f"{k}_cells.npy" for k in range(3)]


def test_blocks_of_pairs_travel_without_cells(row, on_disk, tmp_path):
    """With cells in files a block is as large as its list of pairs, however many cells there are."""
    sizes = []

    def run(function, tasks):
        for task in tasks:
            sizes.append(len(pickle.dumps(task)) / len(task.cells))
            yield function(pickle.loads(pickle.dumps(task)))

    for library, folder in ((on_disk(row), tmp_path), (ModelLibrary(row.dictionary()), None)):
        cells = [sky_reading.read(task).cells for task in readings(library, folder)]
        step = PixelSkyMatchStep()
        members = [Member(k, tmp_path / name, "", {}) for k, name in enumerate(row.names)]
        for member, cut_out in zip(members, cells, strict=True):
            member.cells = cut_out
        _, found = step._solve(members, sky_reading.keeper(folder), run)
        sizes.append(found.levels.level)

    *small, filed = sizes[: len(sizes) // 2]
    *large, held = sizes[len(sizes) // 2 :]
    np.testing.assert_array_equal(filed, held)
    assert max(small) < 2000
    # Cells of the smallest subarray are few: 8 x 8 and their counts.
    assert all(one < other for one, other in zip(small, large, strict=True))


# What is left behind


@pytest.mark.parametrize(("end", "cores"), [(ValueError("out of luck"), "1"), (KeyboardInterrupt(), "2")])
def test_scratch_files_are_gone_after_an_error(end, cores, row, on_disk, scratch, monkeypatch):
    found = []

    def fails(cells, **how):
        found.extend(path.name for path in scratch.glob(".pixel_skymatch*/*"))
        raise end

    monkeypatch.setattr(matching, "match", fails)
    with pytest.raises(type(end)):
        PixelSkyMatchStep.call(on_disk(row), in_memory=False, maximum_cores=cores)

    assert sorted(found) == [f"{k}_cells.npy" for k in range(3)]
    assert not list(scratch.glob(".pixel_skymatch*"))


def test_in_memory_nothing_is_written(row, scratch, monkeypatch):
    monkeypatch.setattr(np, "save", None)

    PixelSkyMatchStep.call(ModelLibrary(row.dictionary()))

    assert not list(scratch.glob(".pixel_skymatch*"))


@pytest.mark.parametrize("in_memory", [True, False])
def test_an_error_while_reading_names_the_exposure(in_memory, row, on_disk, opened, monkeypatch):
    sound = exposures.pixel_mesh

    def fails(model, grid):
        if model.meta.filename == row.names[1]:
            raise ArithmeticError("the mesh is torn")
        return sound(model, grid)

    monkeypatch.setattr(exposures, "pixel_mesh", fails)
    library = ModelLibrary(opened(row.files)) if in_memory else on_disk(row)
    with pytest.raises(ArithmeticError, match="torn") as caught:
        PixelSkyMatchStep.call(library, in_memory=in_memory)
    if not in_memory:
        assert row.names[1] in "".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


def test_problems_found_in_files_are_told(row, on_disk, status_of, caplog):
    """Exposures on disk without a WCS, or without a good pixel, are named and left as they are."""
    library = on_disk(row)
    with library:
        for index in (0, 2):
            model = library.borrow(index)
            if index:
                model.data[:] = np.nan
            else:
                model.meta.wcs = None
            library.shelve(model, index)
    caplog.set_level(logging.WARNING)

    result = PixelSkyMatchStep.call(library, in_memory=False)

    assert set(status_of(result).values()) == {("SKIPPED", "SKIPPED")}
    assert f"{row.names[0]} has no WCS" in caplog.text
    assert f"{row.names[1]} overlaps no other exposure" in caplog.text
    assert f"{row.names[2]} has no usable pixel" in caplog.text
