"""The page in a real browser: headless Chromium, where it is installed."""

import base64
import io
import json
import shutil

import pytest
from matplotlib.image import imread

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
waiting = pytest.importorskip("selenium.webdriver.support.wait", reason="needs selenium")

OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
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

    def show(width=1200, scheme="light"):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"media": "", "features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        # A page that is there already may be taken for loaded.
        browser.get("about:blank")
        browser.get_log("browser"), browser.get_log("performance")
        browser.get(written.path.as_uri())
        wait = waiting.WebDriverWait(browser, 30)
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
