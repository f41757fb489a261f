"""The page in a browser: it fits, it asks for nothing, the slider steers, the dark and the printed page are whole."""

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from report.mock import mock_page, mock_report

pytest.importorskip("jinja2", reason="the page needs the extra 'report'")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(mock_page(), encoding="utf-8")
    return Path(file).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "sync_api.Browser", address: str) -> Iterator["sync_api.Page"]:
    with browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce") as context:
        page = context.new_page()
        page.goto(address)
        yield page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_fits_and_asks_for_nothing(browser: "sync_api.Browser", address: str, width: int, scheme: str) -> None:
    with browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme) as context:
        page = context.new_page()
        asked, said = list[str](), list[str]()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert [url for url in asked if not url.startswith("data:")] == [address]
        assert said == []
        bright = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert bright == (scheme == "light")


def test_keys_on_the_slider_move_the_forecast(page: "sync_api.Page") -> None:
    slider, steered = page.locator("#tau"), page.locator("#steered-path")
    slider.focus()
    page.keyboard.press("Home")
    low, text = steered.get_attribute("d"), page.locator("#tau-text").inner_text()
    assert text == "τ = −1"
    unsteered = page.locator("#unsteered-path").get_attribute("d")
    page.keyboard.press("ArrowRight")
    assert page.locator("#tau-text").inner_text() == "τ = −0.8"
    assert slider.get_attribute("aria-valuetext") == "τ = −0.8"
    assert steered.get_attribute("d") not in (low, unsteered)
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert page.locator("#tau-text").inner_text() == "τ = 0"
    assert steered.get_attribute("d") == unsteered
    assert page.locator("#unsteered-path").get_attribute("d") == unsteered
    assert page.locator("#readings tr").first.locator("td").last.inner_text() == "0 %"


def test_readings_follow_from_the_waypoints(page: "sync_api.Page") -> None:
    page.locator("#tau").focus()
    page.keyboard.press("End")
    entry = mock_report()["scenes"][0]["steered"][0]
    best = max(range(6), key=entry["probability"][-1].__getitem__)
    points = [[0.0, 0.0], *entry["forecasts"][-1][best]]
    length = sum(((x - u) ** 2 + (y - v) ** 2) ** 0.5 for (u, v), (x, y) in pairwise(points))
    shown = float(page.locator("#readings tr").first.locator("td").nth(1).inner_text())
    assert shown == pytest.approx(length / 6.0, abs=0.06)


def test_choosers_change_vector_method_and_scene(page: "sync_api.Page") -> None:
    page.locator("#tau").focus()
    page.keyboard.press("Home")
    seen = {page.locator("#steered-path").get_attribute("d")}
    page.get_by_label("direction", exact=True).check(force=True)
    assert "hue-2" in (page.locator("#stage").get_attribute("class") or "")
    assert page.locator("#tau-text").inner_text() == "τ = −1"
    seen.add(page.locator("#steered-path").get_attribute("d"))
    page.get_by_label("SAE-refined", exact=True).check(force=True)
    seen.add(page.locator("#steered-path").get_attribute("d"))
    page.locator("#scene").select_option("1")
    seen.add(page.locator("#steered-path").get_attribute("d"))
    assert len(seen) == 4
    assert page.locator("#map-steered use").get_attribute("href") == "#map-1"


def test_pointing_tells_the_number(page: "sync_api.Page") -> None:
    cell = page.locator("#probes td.heat").first
    cell.scroll_into_view_if_needed()
    # scrolling hides what was told, and its last event comes with the next frame
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    cell.hover()
    page.locator("#tip").wait_for(state="visible")
    assert "balanced accuracy" in page.locator("#tip").inner_text()


def test_paper_shows_what_the_slider_would(page: "sync_api.Page") -> None:
    assert not page.locator(".static").is_visible()
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator(".static svg.mini").first.is_visible()
    assert page.locator(".static svg.mini").count() == 2 * (1 + 2 * 4)
    assert not page.locator("#stage").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("details table").first.is_visible()


def test_without_script_everything_is_there(browser: "sync_api.Browser", address: str) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(address)
        assert page.locator(".static svg.mini").first.is_visible()
        assert not page.locator("#stage").is_visible()


def test_every_figure_has_words(page: "sync_api.Page") -> None:
    names = page.locator("[id]").evaluate_all("all => all.map(one => one.id)")
    assert len(names) == len(set(names))
    assert page.locator("svg[role=img]:not([aria-label])").count() == 0
    assert page.locator("figure:not(:has(figcaption)):not(.static figure)").count() == 0
    assert page.locator("table:not(:has(caption))").count() == 0
    assert page.locator("select:not([id]), input[type=range]:not([id])").count() == 0
