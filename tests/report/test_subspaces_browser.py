"""The page of subspaces in a browser: it fits, preimages follow query, part and slider, and paths light up."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from innerspace.report.page import render
from report.mock_subspaces import SHOW, mock_forecaster_subspaces, mock_subspaces

pytest.importorskip("jinja2", reason="the page needs the extra 'report'")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    report = mock_subspaces()
    report["preimages"]["states"][0]["tokens"][3] = EVIL
    return report


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory, report: dict[str, Any]) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("page")
    for name, given in (("text", report), ("scenes", mock_forecaster_subspaces())):
        (folder / f"{name}.html").write_text(render(given), encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in ("text", "scenes")}


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "sync_api.Browser", addresses: dict[str, str]) -> Iterator["sync_api.Page"]:
    with browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce") as context:
        page = context.new_page()
        said = list[str]()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.goto(addresses["text"])
        yield page
        assert said == []


@pytest.mark.parametrize("name", ["text", "scenes"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_page_fits(browser: "sync_api.Browser", addresses: dict[str, str], width: int, scheme: str, name: str) -> None:
    with browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme) as context:
        page = context.new_page()
        asked = list[str]()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(addresses[name])
        page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert [url for url in asked if not url.startswith("data:")] == [addresses[name]]


def expected(report: dict[str, Any], part: int, query: int, measure: str, level: float) -> list[int]:
    """The states of the first so many draws that are close, the closest first."""
    own = report["preimages"]["partitions"][0]["queries"][query]["parts"][part]["sample"]
    close = (lambda value: value >= level) if measure == "cosine" else (lambda value: value <= level)
    drawn = [i for i, value in enumerate(own[measure]) if close(round(value, 3))][:SHOW]
    return sorted(drawn, key=lambda i: -own[measure][i] if measure == "cosine" else own[measure][i])


def shown(page: "sync_api.Page", place: str) -> list[str]:
    return page.locator(f"#preimage-{place} .strip > small").all_inner_texts()


def test_the_slider_draws_from_those_that_are_close(page: "sync_api.Page", report: dict[str, Any]) -> None:
    own = report["preimages"]["partitions"][0]["queries"][0]
    levels, sample = report["preimages"]["levels"], own["parts"][0]["sample"]
    slider = page.locator("#preimage-level")
    assert page.locator("#preimage-level-text").inner_text() == "0.85"
    for place, level in enumerate(levels["cosine"]):
        slider.fill(str(place))
        assert page.locator("#preimage-level-text").inner_text() == str(level)
        values = [sample["cosine"][i] for i in expected(report, 0, 0, "cosine", level)]
        assert [float(x) for x in shown(page, "sample")] == pytest.approx(values, abs=0.006)
        said = page.locator("#preimage-said").inner_text()
        assert said.startswith(f"{own['parts'][0]['counts']['cosine'][place]} of 20000 states")
    page.locator("#preimage-measures label").nth(1).click()
    assert page.locator("#preimage-level-text").inner_text() == "0.25"
    slider.fill("1")
    values = [sample["distance"][i] for i in expected(report, 0, 0, "distance", 0.7)]
    assert [float(x) for x in shown(page, "sample")] == pytest.approx(values, abs=0.006)
    assert [float(x) for x in shown(page, "whole")] == pytest.approx(own["whole"]["distance"], abs=0.006)


def test_parts_and_sites_are_chosen_and_linked(page: "sync_api.Page", addresses: dict[str, str]) -> None:
    title = page.locator("#preimage-title")
    assert title.inner_text() == "resid.1 · part 0 · 16 dimensions · current token · query 0"
    page.locator("#preimage-parts label").nth(6).click()
    assert page.locator("#preimage-sample").inner_text() == "No other state is that close: the preimage is empty."
    assert page.evaluate("location.hash") == "#preimage-0-6-0"
    page.locator("#preimage-partition").select_option("1")
    assert title.inner_text() == "resid.3 · part 6 · 4 dimensions · query 0"
    page.evaluate("location.hash = '#preimage-0-2-5'")
    title.get_by_text("resid.1 · part 2 · 12 dimensions · previous token · query 5").wait_for()
    assert page.evaluate("document.activeElement.id") == "preimage-title"
    assert page.locator("#preimage-parts input:checked").get_attribute("value") == "2"


def test_queries_are_found_by_word_and_number_and_leafed_through(page: "sync_api.Page") -> None:
    rows, count = page.locator("#preimage-list [role=option]"), page.locator("#preimage-count")
    assert rows.count() == 12
    page.get_by_role("button", name="Next").click()
    assert count.inner_text() == "2 of 12"
    page.get_by_role("button", name="Previous").click()
    assert page.locator("#preimage-previous").is_disabled()
    page.locator("#preimage-list").press("ArrowDown")
    assert page.locator("#preimage-list [aria-selected=true] > b").inner_text() == "1"
    search = page.locator("#preimage-search")
    search.fill("7")
    assert rows.locator("> b").all_inner_texts() == ["7"]
    assert page.locator("#preimage-title").inner_text().endswith("query 7")
    search.fill("a name")
    assert rows.locator("> b").all_inner_texts() == ["1", "3", "5", "7", "9", "11"]
    search.fill("no such word")
    assert count.inner_text() == "none found"
    search.fill("")
    assert rows.count() == 12


def test_what_stands_among_the_tokens_is_text(page: "sync_api.Page") -> None:
    query = page.locator("#preimage-query .strip")
    assert EVIL.replace(" ", "·") in (query.text_content() or "")
    assert page.locator("#preimages img").count() == 0
    token = page.locator("#preimage-whole .on").first
    token.hover()
    assert page.locator("#tip").inner_text().startswith("cosine ")
    assert page.locator("#preimage-histogram .column").count() > 20
    assert 0 < page.locator("#preimage-histogram .column:not(.far)").count() < 10


def test_a_part_lights_its_paths(page: "sync_api.Page") -> None:
    chart = page.locator(".flows")
    chart.scroll_into_view_if_needed()
    node = chart.locator("[data-node='1-0']")
    node.hover()
    own = chart.locator(".flow").evaluate_all(
        "all => all.filter(one => one.dataset.nodes.split(' ').includes('1-0')).length"
    )
    assert chart.locator(".flow.lit").count() == own > 0
    page.mouse.move(5, 5)
    assert chart.locator(".flow.lit").count() == 0


def test_scenes_are_shown_as_paths(browser: "sync_api.Browser", addresses: dict[str, str]) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(addresses["scenes"])
        assert page.locator("#preimage-query .trip").count() == 1
        assert page.locator("#preimage-whole .trip").count() == SHOW
        assert page.locator("#preimage-whole figure span").first.inner_text().startswith("a <vehicle>")
        page.locator("#preimage-search").fill("turning left")
        found = page.locator("#preimage-list em").all_inner_texts()
        assert found
        assert all("turning left" in words for words in found)


def test_paper_and_pages_without_script_show_the_first_query(
    browser: "sync_api.Browser", addresses: dict[str, str]
) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(addresses["text"])
        assert page.locator(".static .strip .on").first.is_visible()
        assert not page.locator("#preimage-live").is_visible()
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(addresses["text"])
        assert not page.locator(".static").is_visible()
        page.emulate_media(media="print")
        assert page.locator(".static .strip .on").first.is_visible()
        assert not page.locator("#preimage-live").is_visible()


def test_every_figure_has_words(page: "sync_api.Page") -> None:
    names = page.locator("[id]").evaluate_all("all => all.map(one => one.id)")
    assert len(names) == len(set(names))
    assert page.locator("svg[role=img]:not([aria-label])").count() == 0
    assert page.locator("figure:not(:has(figcaption)):not(.static figure)").count() == 0
    assert page.locator("table:not(:has(caption))").count() == 0
    unnamed = "all => all.filter(one => !one.labels.length).length"
    assert page.locator("select, input").evaluate_all(unnamed) == 0
