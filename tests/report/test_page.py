"""The page and the files beside it."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from astropy import units as u
from astropy.table import QTable, Table

from miri_steps import report

PARTS = [
    *("Mosaic", "Overlaps", "Sky levels", "Detector background", "Super-background", "Hot pixels"),
    *("Astrometry", "Steps", "Provenance"),
]


def test_the_page_has_all_parts_in_their_order(written):
    places = [written.text.index(f"<h3>{title}</h3>") for title in PARTS]

    assert places == sorted(places)
    # Before, after, product, depth; two maps of differences; levels, pairs; backgrounds; pixels; tiles.
    assert written.text.count("<figure") == 4 + 2 + 2 + 1 + 2 + 1 + 2
    # All files were there: nothing is missed.
    assert "save_" not in "".join(re.findall(r'<p class="note">(.*?)</p>', written.text))


def test_the_page_needs_nothing_but_itself(written):
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in written.text
    for word in ("<script", "<link", "<iframe", 'src="', "@import", "url(http", 'href="http'):
        assert word not in written.text
    assert len(written.text) < 3e6


def test_the_page_is_beside_the_mosaics_with_its_numbers(written, reduction):
    assert written.path == reduction.folder / "report.html"
    found = sorted(path.name for path in reduction.folder.iterdir() if path.is_file())
    assert found == ["report.html", "report.json", "report_exposures.ecsv"]


def test_the_summary_is_true(written, reduction):
    numbers = written.mosaic["summary"]

    assert (numbers["filter"], numbers["exposures"], numbers["visits"], numbers["tiles"]) == (
        "F770W",
        6,
        2,
        2,
    )
    # Skies of 3.0 and 3.5 MJy/sr: that is the step between the tiles, and it is gone.
    assert numbers["difference_clipped_before"] == pytest.approx(0.5, abs=0.02)
    assert numbers["difference_clipped_after"] < 0.03
    assert numbers["hot_pixels_in_map"] == reduction.hot > 100
    assert numbers["pixels_repaired"] > 6 * reduction.hot
    assert numbers["tile_scatter_largest_mas"] == pytest.approx(5, abs=4)
    assert numbers["exposures_not_done"] == 0
    # Two tiles of 28 arcsec, 18 arcsec apart, with dithers of 4.
    assert 0.3 < numbers["area_arcmin2"] < 0.5
    assert numbers["pieces"] == 1 and numbers["pairs"] == 15


def test_a_reduction_that_worked_is_called_so(written):
    assert all(verdict["good"] for verdict in written.mosaic["verdicts"])
    assert "nothing out of its limits" in written.text and "Look at this" not in written.text


def test_tables_of_the_steps_are_in_the_numbers(written):
    tiles = written.mosaic["tiles"]
    shifts = np.array([[row["shift_east"], row["shift_north"]] for row in tiles])
    np.testing.assert_allclose(shifts, [[0.2, -0.1], [-0.9, 0.8]], atol=0.015)
    assert [row["used"] for row in written.mosaic["tile_exposures"]] == [True] * 6
    assert len(written.mosaic["sky_levels"]) == 6 and len(written.mosaic["sky_pairs"]) == 15
    assert [row["exposures"] for row in written.mosaic["visits"]] == [3, 3]


def test_parameters_are_those_of_the_steps(written):
    entries = [entry.split()[2] for entry in written.mosaic["history"]]

    assert sorted(entries) == [
        *("MedianHotPixelStep:", "PixelSkyMatchStep:", "SuperBackgroundStep:", "TileAstrometryStep:")
    ]
    (skymatch,) = (entry for entry in written.mosaic["history"] if "PixelSkyMatchStep" in entry)
    # Lines of FITS are joined again, and levels of single exposures are left out.
    assert skymatch.endswith("detector_order=4 subtract_detector_background=False")
    assert {"jwst", "numpy", "miri_steps"} <= set(written.content["software"])


def test_exposures_are_listed_with_units(written):
    table = QTable.read(written.path.with_name("report_exposures.ecsv"))

    assert len(table) == 6 and set(table["visit_id"]) == {"01234001001", "01234001002"}
    assert table["seconds"].unit == u.s and table["level"].unit == u.MJy / u.sr
    assert (table["level_error"] > 0).all()
    np.testing.assert_allclose(table["shift_east"].to_value(u.arcsec), [0.2] * 3 + [-0.9] * 3, atol=0.03)
    assert (table["repaired"] > 100).all()
    for step in ("median_hot_pixel", "tile_astrometry", "super_background", "pixel_skymatch"):
        assert set(table[step]) == {"COMPLETE"}
    assert all(name.endswith("_crf.fits") for name in table["file"])


def test_a_mosaic_alone_gets_a_page_that_says_what_would_be_there(reduction, tmp_path):
    shutil.copy(reduction.mosaic, tmp_path)

    path = report.write(tmp_path / "field_i2d.fits")

    assert path == tmp_path / "field_report.html"
    text = path.read_text()
    for word in (
        "save_levels",
        "save_detector_background",
        "save_background",
        "save_mask",
        "save_corrections",
    ):
        assert word in text
    assert "crf.fits" in text and "their association" in text
    assert text.count("<figure") == 1
    numbers = json.loads(path.with_suffix(".json").read_text())["mosaics"][0]["summary"]
    assert numbers["exposures"] == 6 and numbers["difference_clipped_after"] is None


def test_several_mosaics_share_a_page_shortest_filter_first(fake_mosaic, tmp_path):
    fake_mosaic(tmp_path / "b" / "long_i2d.fits", "F1800W", TARGNAME="<b>&")
    fake_mosaic(tmp_path / "short_i2d.fits", "F770W")
    table = Table(
        {"stage": ["3"], "name": ["long"], "status": ["failed"], "reason": ["<none>"], "seconds": [1.5]}
    )
    table.write(tmp_path / "reduction.ecsv")

    text = report.write(tmp_path).read_text(encoding="utf-8")

    assert text.index("<h2>Reduction") < text.index("<h2>short") < text.index("<h2>long")
    assert '✗<span class="status"> failed</span>' in text and "&lt;none&gt;" in text
    assert "&lt;b&gt;&amp;" in text and "<b>&<" not in text
    content = json.loads((tmp_path / "report.json").read_text())
    assert [each["summary"]["filter"] for each in content["mosaics"]] == ["F770W", "F1800W"]
    assert content["reduction"][0]["seconds"] == 1.5


def test_broken_files_beside_a_mosaic_are_no_reason_to_fail(fake_mosaic, tmp_path, caplog):
    path = fake_mosaic(tmp_path / "field_i2d.fits")
    (tmp_path / "field_asn.json").write_text("{")
    (tmp_path / "field_sky_levels.ecsv").write_text("none")
    (tmp_path / "field_detector_background.fits").write_text("none")

    text = report.write(path).read_text()

    assert "save_levels" in text
    for name in ("field_asn.json", "field_sky_levels.ecsv", "field_detector_background.fits"):
        assert f"{name} cannot be read" in caplog.text


def test_a_report_is_replaced_and_nothing_else(fake_mosaic, tmp_path):
    source = fake_mosaic(tmp_path / "field_i2d.fits")
    target = tmp_path / "out.html"
    report.write(source, target)
    target.write_text(target.read_text().replace("<h1>", "<h1>old "))
    report.write(source, target)
    assert "<h1>old" not in target.read_text()

    (tmp_path / "other.html").write_text("mine")
    with pytest.raises(FileExistsError, match="other.html is no report"):
        report.write(source, tmp_path / "other.html")
    (tmp_path / "more.json").write_text("{}")
    with pytest.raises(FileExistsError, match="more.json is no report"):
        report.write(source, tmp_path / "more.html")
    assert (tmp_path / "other.html").read_text() == "mine" and not (tmp_path / "more.html").exists()


def test_an_output_that_cannot_be_is_refused(fake_mosaic, tmp_path):
    source = fake_mosaic(tmp_path / "field_i2d.fits")

    with pytest.raises(ValueError, match="must be the name of a page and end in .html, got .*out.json"):
        report.write(source, tmp_path / "out.json")
    with pytest.raises(FileNotFoundError, match="the folder of .*no.out.html must exist"):
        report.write(source, tmp_path / "no" / "out.html")
    assert [path.name for path in tmp_path.iterdir()] == ["field_i2d.fits"]


def test_a_page_that_cannot_be_written_leaves_the_old_one(fake_mosaic, tmp_path, monkeypatch):
    source = fake_mosaic(tmp_path / "field_i2d.fits")
    before = report.write(source).read_bytes()
    found = sorted(tmp_path.iterdir())

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        report.write(source)

    assert (tmp_path / "field_report.html").read_bytes() == before
    assert sorted(tmp_path.iterdir()) == found


def test_the_report_is_imported_only_when_it_is_made():
    code = "import miri_steps.report, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert not {"numpy", "matplotlib", "jinja2", "astropy"} & set(run.stdout.split())


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "find_spec", lambda name: None)

    with pytest.raises(
        ModuleNotFoundError, match=r"needs jinja2 and matplotlib: pip install miri-steps\[report\]"
    ):
        report.write(tmp_path)
