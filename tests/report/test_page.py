"""A reduction, the page about it, the files beside that, and the page in a real browser."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from astropy import units as u
from astropy.table import QTable, Table
from matplotlib.image import imread

from miri_steps import report
from miri_steps.report import collect

PARTS = [
    *("Mosaic", "Overlaps", "Sky levels", "Detector background", "Super-background", "Hot pixels"),
    *("Astrometry", "Steps", "Provenance"),
]
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)


def test_a_reduction_is_read_with_all_that_lies_beside_it(reduction):
    found = collect.read_mosaic(reduction.mosaic)

    assert found.product == "field" and found.band == "F770W" and found.unit == "MJy/sr"
    assert found.association == reduction.folder / "cal" / "field_asn.json"
    assert len(found.exposures) == 4
    assert all(each.before.is_file() and each.after.is_file() for each in found.exposures)
    assert [each.visit for each in found.exposures] == ["01234001001"] * 2 + ["01234001002"] * 2
    assert len({each.tile for each in found.exposures}) == 2
    assert all(each.frame == (412, 50, 256, 256) for each in found.exposures)
    assert set(found.tables) == {"sky_levels", "sky_pairs", "tiles", "tile_exposures"}
    assert found.detector_background and len(found.super_backgrounds) == len(found.hot_pixels) == 1
    assert collect.pixel_side(found) == pytest.approx(0.11, abs=0.002)


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
        4,
        2,
        2,
    )
    # Skies of 3.0 and 3.5 MJy/sr: that is the step between the tiles, and it is gone.
    assert numbers["difference_clipped_before"] == pytest.approx(0.5, abs=0.02)
    assert numbers["difference_clipped_after"] < 0.03
    assert numbers["hot_pixels_in_map"] == reduction.hot > 100
    assert numbers["pixels_repaired"] > 4 * reduction.hot
    assert numbers["tile_scatter_largest_mas"] == pytest.approx(5, abs=4)
    assert numbers["exposures_not_done"] == 0
    # Two tiles of 28 arcsec, 18 arcsec apart, with dithers of 4.
    assert 0.3 < numbers["area_arcmin2"] < 0.5
    assert numbers["pieces"] == 1 and numbers["pairs"] == 6


def test_a_reduction_that_worked_is_called_so(written):
    assert all(verdict["good"] for verdict in written.mosaic["verdicts"])
    assert "nothing out of its limits" in written.text and "Look at this" not in written.text


def test_tables_of_the_steps_are_in_the_numbers(written):
    tiles = written.mosaic["tiles"]
    shifts = np.array([[row["shift_east"], row["shift_north"]] for row in tiles])
    np.testing.assert_allclose(shifts, [[0.2, -0.1], [-0.9, 0.8]], atol=0.015)
    assert [row["used"] for row in written.mosaic["tile_exposures"]] == [True] * 4
    assert len(written.mosaic["sky_levels"]) == 4 and len(written.mosaic["sky_pairs"]) == 6
    assert [row["exposures"] for row in written.mosaic["visits"]] == [2, 2]


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

    assert len(table) == 4 and set(table["visit_id"]) == {"01234001001", "01234001002"}
    assert table["seconds"].unit == u.s and table["level"].unit == u.MJy / u.sr
    assert (table["level_error"] > 0).all()
    np.testing.assert_allclose(table["shift_east"].to_value(u.arcsec), [0.2] * 2 + [-0.9] * 2, atol=0.03)
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
    assert numbers["exposures"] == 4 and numbers["difference_clipped_after"] is None


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


# --- in a browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Start headless Chromium, where it is installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture
def opened(browser, written):
    """Open the page, as on a large screen by day."""
    from selenium.webdriver.support.wait import WebDriverWait

    def show(width=1200, scheme="light"):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"media": "", "features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        # A page that is there already may be taken for loaded.
        browser.get("about:blank")
        browser.get_log("browser"), browser.get_log("performance")
        browser.get(written.path.as_uri())
        wait = WebDriverWait(browser, 30)
        wait.until(lambda each: each.execute_script("return document.readyState") == "complete")
        return browser

    show.browser = browser
    return show


def test_every_figure_is_drawn(opened, written):
    sizes = opened().execute_script(
        "return [...document.querySelectorAll('figure svg')].map(each => {"
        "  const box = each.getBoundingClientRect(), drawn = each.getBBox();"
        "  return [box.width, box.height, drawn.width, drawn.height]; })"
    )
    assert len(sizes) == written.text.count("<figure")
    assert all(min(size) > 50 for size in sizes)


def test_every_image_is_loaded(opened):
    browser = opened()
    browser.set_script_timeout(20)
    sizes = browser.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "Promise.all([...document.querySelectorAll('svg image')].map(each => new Promise(resolve => {"
        "  const image = new Image(); image.onload = () => resolve(image.naturalWidth);"
        "  image.onerror = () => resolve(0); image.src = each.href.baseVal; }))).then(done)"
    )
    # Nine images of sky and detector, each with a colour bar.
    assert len(sizes) >= 9 and min(sizes) > 0


def test_nothing_is_asked_for_and_nothing_is_complained_of(opened, written):
    browser = opened()

    assert browser.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        each["params"]["request"]["url"] for each in sent if each["method"] == "Network.requestWillBeSent"
    ]
    assert written.path.as_uri() in asked
    assert [url for url in asked if not url.startswith("data:") and url != written.path.as_uri()] == []


def test_every_link_leads_somewhere(opened):
    lost = opened().execute_script(
        "return [...document.querySelectorAll('a')].filter("
        "  each => !document.querySelector(each.getAttribute('href'))).length"
    )
    assert lost == 0


def test_no_id_is_used_twice(opened):
    names = opened().execute_script("return [...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(names) == len(set(names)) > 100


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_the_page_does_not_scroll_sideways(opened, width):
    browser = opened(width)

    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # Text of charts can be read.
    heights = browser.execute_script(
        "return [...document.querySelectorAll('figure:not(.wide) svg text')].map("
        "  each => each.getBoundingClientRect().height)"
    )
    assert min(heights) > 8


def test_the_page_is_dark_at_night(opened):
    def brightness(scheme):
        browser = opened(scheme=scheme)
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
        colour = browser.execute_script("return getComputedStyle(document.querySelector('figure svg')).color")
        return imread(io.BytesIO(base64.b64decode(shot)))[..., :3].mean(), colour

    (day, ink), (night, chalk) = brightness("light"), brightness("dark")
    assert day > 0.8 and night < 0.3
    assert ink != chalk


def test_the_page_can_be_printed(opened):
    opened().execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    cut, empty = opened.browser.execute_script(
        "return [[...document.querySelectorAll('.table')].filter("
        "  each => each.scrollHeight > each.clientHeight + 2).length,"
        " [...document.querySelectorAll('td')].filter("
        "  each => each.textContent && getComputedStyle(each).fontSize === '0px').length]"
    )
    # Tables are whole, and nothing in them is lost.
    assert (cut, empty) == (0, 0)
    data = opened().execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"]

    content = base64.b64decode(data)
    assert content.startswith(b"%PDF") and len(content) > 1e5
