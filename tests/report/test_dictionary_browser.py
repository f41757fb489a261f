"""The page of dictionaries in a browser: it fits, the map selects, features are found and linked, legends switch."""

import shutil
from collections.abc import Iterator

import pytest

from innerspace.report.page import render
from report.mock_dictionaries import mock_dictionaries

pytest.importorskip("jinja2", reason="the page needs the extra 'report'")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    report = mock_dictionaries()
    report["features"]["entries"][0]["bands"][0]["examples"][0]["tokens"][3] = EVIL
    report["features"]["entries"][3] |= {"explanation": f"token “zebra” {EVIL}", "judged": "detection 0.91"}
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render(report), encoding="utf-8")
    return file.as_uri()


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
        said = list[str]()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.goto(address)
        yield page
        assert said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_fits(browser: "sync_api.Browser", address: str, width: int, scheme: str) -> None:
    with browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme) as context:
        page = context.new_page()
        asked = list[str]()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert [url for url in asked if not url.startswith("data:")] == [address]


def test_a_rectangle_on_the_map_selects_what_lies_in_it(page: "sync_api.Page") -> None:
    every = page.locator("#atlas .cloud").evaluate_all(
        "all => all.flatMap(one => one.getAttribute('d').match(/[\\d.]+ [\\d.]+/g).map(p => p.split(' ').map(Number)))"
    )
    assert len(every) == 150
    chart = page.locator("#atlas-map")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box
    scale = box["width"] / 640
    page.mouse.move(box["x"] + 100.3 * scale, box["y"] + 100.3 * scale)
    page.mouse.down()
    page.mouse.move(box["x"] + 500.3 * scale, box["y"] + 400.3 * scale, steps=3)
    page.mouse.up()
    inside = sum(100.3 <= x <= 500.3 and 100.3 <= y <= 400.3 for x, y in every)
    assert abs(page.locator("#atlas svg circle").count() - inside) <= 1
    assert page.locator("#atlas-list li").count() == 40
    page.get_by_label("local λ 1 seed 0").uncheck(force=True)
    assert page.locator("#atlas svg circle.hue-0").count() == 0
    page.keyboard.press("Escape")
    chart.press("Escape")
    assert page.locator("#atlas svg circle").count() == 0


def test_the_map_leads_to_a_feature_by_keys_and_by_a_click(page: "sync_api.Page") -> None:
    chart = page.locator("#atlas-map")
    chart.press("ArrowRight")
    assert page.locator("#atlas svg circle").count() == 1
    before = page.locator("#atlas-list li").inner_text()
    chart.press("ArrowUp")
    assert page.locator("#atlas-list li").inner_text() != before
    chart.press("Shift+ArrowDown")
    assert page.locator("#atlas svg circle").count() == 2
    # the first feature of the first dictionary has a page of its own
    x, y = page.locator("#atlas .cloud-0").evaluate("one => one.getAttribute('d').match(/[\\d.]+/g).map(Number)")[:2]
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box
    page.mouse.click(box["x"] + x * box["width"] / 640, box["y"] + y * box["width"] / 640)
    entry = page.locator("#atlas-list li")
    assert entry.count() == 1
    assert entry.locator(".strip .on").count() > 0 or entry.locator("p").inner_text()
    page.evaluate("location.hash = '#feature-1-14'")
    page.locator("#browser-leaf h3").filter(has_text="e2e λ 0.4 seed 0 · feature 14").wait_for()
    assert page.evaluate("document.activeElement.tagName") == "H3"


def test_features_are_found_by_number_and_token_and_leafed_through(page: "sync_api.Page", address: str) -> None:
    rows, title = page.locator("#browser-list [role=option]"), page.locator("#browser-leaf h3")
    assert rows.count() == 30
    densities = [float(text.split()[0]) for text in rows.locator("span").all_inner_texts()]
    assert densities == sorted(densities, reverse=True)
    first = title.inner_text()
    page.get_by_role("button", name="Next").click()
    assert title.inner_text() != first
    assert page.locator("#browser-count").inner_text() == "2 of 30"
    page.get_by_role("button", name="Previous").click()
    assert title.inner_text() == first
    assert page.locator("#browser-previous").is_disabled()
    page.locator("#browser-list").press("ArrowDown")
    assert page.evaluate("location.hash").startswith("#feature-")
    page.locator("#browser-search").fill("63")
    assert set(rows.locator("b").all_inner_texts()) == {"63"}
    assert rows.count() == 3
    page.locator("#browser-search").fill("garden")
    assert 0 < rows.count() < 30
    page.locator("#browser-search").fill("no such token")
    assert page.locator("#browser-count").inner_text() == "none found"
    page.locator("#browser-search").fill("")
    page.locator("#browser-dictionary").select_option("2")
    assert rows.count() == 10
    page.locator("#browser-order").select_option("by number")
    assert rows.locator("b").all_inner_texts() == [str(7 * i) for i in range(10)]
    # a link from elsewhere lifts what was chosen
    page.evaluate("location.hash = '#feature-0-21'")
    page.locator("#browser-leaf h3").filter(has_text="local λ 1 seed 0 · feature 21").wait_for()


def test_a_deep_link_opens_its_feature_with_every_number(page: "sync_api.Page", address: str) -> None:
    page.goto("about:blank")
    page.goto(f"{address}#feature-0-0")
    leaf, one = page.locator("#browser-leaf"), mock_dictionaries()["features"]["entries"][0]
    assert leaf.locator("h3").inner_text() == "local λ 1 seed 0 · feature 0"
    assert leaf.locator(".quantile h4").count() == 6
    assert leaf.locator(".strip").count() == 5 + 5 * 4
    strip, values = leaf.locator(".strip").first, one["bands"][0]["examples"][0]["values"]
    assert [float(x) for x in strip.locator(".on").evaluate_all("all => all.map(one => one.dataset.tip)")] == (
        pytest.approx([value for value in values if value], rel=6e-3)
    )
    # what was put among the tokens is text, and a space is seen
    assert EVIL.replace(" ", "·") in (strip.text_content() or "")
    assert leaf.locator("img").count() == 0
    token = strip.locator(".on[tabindex='0']")
    token.focus()
    assert page.locator("#tip").is_visible()
    assert float(page.locator("#tip").inner_text()) == pytest.approx(max(values), rel=6e-3)
    links = leaf.locator(".pairs a")
    assert links.count() == len(one["neighbors"]) + len(one["similar"])
    links.first.click()
    page.locator("#browser-leaf h3").filter(has_text="feature 7").wait_for()


def test_an_explanation_stands_with_its_feature_and_is_found(page: "sync_api.Page") -> None:
    page.locator("#browser-search").fill("zebra")
    assert page.locator("#browser-list [role=option]").count() == 1
    assert page.locator("#browser-list em").inner_text().startswith("token “zebra”")
    leaf = page.locator("#browser-leaf")
    assert leaf.locator(".said").inner_text() == f"token “zebra” {EVIL}"
    assert leaf.locator(".numbers").first.inner_text() == "detection 0.91"
    assert leaf.locator("img").count() == 0


def test_the_legend_hides_runs_and_pointing_lights_one(page: "sync_api.Page") -> None:
    shown = page.locator("#training [data-run]:not(.off)")
    everything = shown.count()
    page.locator("#training").get_by_label("λ 0.3").uncheck(force=True)
    assert everything - shown.count() == 3 * 7
    page.locator("#training").get_by_role("button", name="seeds").click()
    assert shown.count() == 0
    page.locator("#training").get_by_role("button", name="seeds").click()
    page.locator("#training").get_by_role("button", name="local").click()
    assert shown.count() == everything
    chart = page.locator("#training svg[data-axes]").nth(4)
    chart.scroll_into_view_if_needed()
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    box = chart.bounding_box()
    assert box
    x, y = chart.locator("[data-run]").first.evaluate(
        "one => one.getAttribute('d').match(/[\\d.]+/g).slice(-2).map(Number)"
    )
    page.mouse.move(box["x"] + x * box["width"] / 260, box["y"] + y * box["width"] / 260)
    page.locator("#tip").wait_for(state="visible")
    run, value = page.locator("#tip").inner_text().split("\n")
    assert page.locator("#training .lit").count() == 7
    last = {
        f"{one['kind']} · λ {one['coefficient']:g} · seed {one['seed']}": one["curves"]["l0"][-1]
        for one in mock_dictionaries()["training"]
    }
    assert float(value.split(" at ")[0]) == pytest.approx(last[run], rel=0.02)
    assert value.endswith("at tokens [M] 4.92")


def test_paper_and_pages_without_script_show_the_first_features(browser: "sync_api.Browser", address: str) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(address)
        assert page.locator(".static .strip .on").first.is_visible()
        assert not page.locator("#browser").is_visible()
        assert page.locator("svg.atlas").is_visible()
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        assert not page.locator(".static").is_visible()
        page.emulate_media(media="print")
        assert page.locator(".static .strip .on").first.is_visible()
        assert not page.locator("#browser").is_visible()


def test_every_figure_has_words(page: "sync_api.Page") -> None:
    names = page.locator("[id]").evaluate_all("all => all.map(one => one.id)")
    assert len(names) == len(set(names))
    assert page.locator("svg[role=img]:not([aria-label])").count() == 0
    assert page.locator("figure:not(:has(figcaption)):not(.static figure)").count() == 0
    assert page.locator("table:not(:has(caption))").count() == 0
    unnamed = "all => all.filter(one => !one.labels.length).length"
    assert page.locator("select, input").evaluate_all(unnamed) == 0
