"""The workbench in a browser: sliders move forecasts, the address follows, files are saved, troubles are told."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from innerspace.app.forecast_drawings import Drawings
from innerspace.app.forecasts import Forecasts, ForecastView
from innerspace.app.held import Held

WARM = {"width": 1280, "height": 900}


@pytest.fixture
def page(browser: Any, workbench: tuple[Any, str]) -> Iterator[Any]:
    with browser.new_context(viewport=WARM, reduced_motion="reduce") as context:
        page = context.new_page()
        failed = list[str]()
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.on("dialog", lambda dialog: failed.append(dialog.message))
        yield page
        assert failed == []


def opened(page: Any, address: str, query: str = "") -> None:
    page.goto(f"{address}?{query}")
    page.locator("svg.map").wait_for()


def slider(page: Any, feature: str) -> Any:
    return page.locator(f"#tau-{feature} input[type=range]")


def moved(page: Any, before: str) -> str:
    """The steered forecast, as soon as it is another one."""
    page.wait_for_function(
        "before => document.querySelector('path.mode.best')?.getAttribute('d') !== before", arg=before
    )
    return str(page.locator("path.mode.best").first.get_attribute("d"))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_tab_opens_and_nothing_leaves(browser: Any, workbench: tuple[Any, str], width: int, scheme: str) -> None:
    bench, address = workbench
    with browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme) as context:
        page = context.new_page()
        asked, failed = list[str](), list[str]()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.on("console", lambda said: failed.append(said.text) if said.type == "error" else None)
        opened(page, address)
        for tab in bench.tabs:
            page.get_by_role("tab", name=tab.title).click()
            page.locator(f"#tab-{tab.key}").wait_for()
            page.wait_for_function("tab => window.location.search.includes(`tab=${tab}`)", arg=tab.key)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.reload()
        page.locator(f"#tab-{bench.tabs[-1].key}").wait_for()
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 19, 23)"}[scheme]
        assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
        assert failed == []


def test_keys_on_a_slider_move_the_forecast_and_the_address(page: Any, workbench: tuple[Any, str]) -> None:
    _, address = workbench
    opened(page, address)
    still = page.locator("path.mode.best").first.get_attribute("d")
    ghosts = page.locator("#map path.ghost").evaluate_all("all => all.map(one => one.getAttribute('d'))")
    slider(page, "speed").focus()
    page.keyboard.press("End")
    fast = moved(page, still)
    page.wait_for_url("**forecasts.tau=speed:**")
    page.keyboard.press("Home")
    moved(page, fast)
    # what is unsteered stays where it was
    assert page.locator("#map path.ghost").evaluate_all("all => all.map(one => one.getAttribute('d'))") == ghosts
    page.get_by_role("button", name="All to zero").click()
    page.wait_for_function("before => document.querySelector('path.mode.best').getAttribute('d') === before", arg=still)
    page.wait_for_function("!window.location.search.includes('tau')")


def test_a_reload_and_a_link_restore_everything(page: Any, workbench: tuple[Any, str], folder: Path) -> None:
    _, address = workbench
    view = ForecastView(
        scene=3,
        agents=(0, 1),
        site="agent.0",
        method="mean_difference",
        mode="angular",
        tau=(("speed", -0.3), ("direction", 0.2)),
        ask="slower & <b>left</b>",
    )
    opened(page, address, view.query("forecasts"))

    def shown() -> dict[str, Any]:
        return {
            "map": page.locator("svg.map").evaluate("map => map.outerHTML"),
            "speed": slider(page, "speed").input_value(),
            "direction": slider(page, "direction").input_value(),
            "ask": page.locator("#ask textarea").input_value(),
            "checked": page.locator("#agents input:checked").count(),
        }

    first = shown()
    assert first["speed"] == "-0.3"
    assert first["direction"] == "0.2"
    assert first["ask"] == view.ask
    assert first["checked"] == 2
    assert page.locator("path.mode.best").count() == 2
    page.wait_for_function("window.location.search.includes('angular')")
    assert ForecastView.of(unquote(page.url.partition("?")[2]).replace("& ", "%26 "), "forecasts") == view
    page.reload()
    page.locator("svg.map").wait_for()
    assert shown() == first
    # what is drawn is what the same view gives without a server
    drawn = Drawings(Forecasts(Held.open(folder))).draw(view)
    best = page.locator("path.mode.best").first.get_attribute("d")
    assert f'd="{best}"' in drawn.map


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("forecasts.scene=9999", "there is no scene 9999"),
        ("forecasts.tau=speed:<img src=x onerror=alert(1)>", "should be a finite number, not '<img src=x"),
        ("tab=nothing", "there is no tab 'nothing' here"),
        ("forecasts.site=</p><script>alert(1)</script>", "not at '</p><script>alert(1)</script>'"),
    ],
)
def test_an_address_that_cannot_be_is_told(page: Any, workbench: tuple[Any, str], query: str, said: str) -> None:
    opened(page, workbench[1], query)
    told = page.locator(".message.error")
    told.wait_for()
    assert said in told.inner_text()


def test_a_sentence_moves_the_sliders_or_says_why_not(page: Any, workbench: tuple[Any, str]) -> None:
    opened(page, workbench[1])
    still = page.locator("path.mode.best").first.get_attribute("d")
    page.locator("#ask textarea").fill("turn left by 5°")
    page.get_by_role("button", name="Steer").click()
    moved(page, still)
    page.wait_for_function("document.querySelector('#tau-direction input[type=range]').value !== '0'")
    assert "heading:" in page.locator("#notes").inner_text()
    page.locator("#ask textarea").fill("fly")
    page.keyboard.press("Enter")
    page.locator("#notes .error").wait_for()
    assert "'fly' is not understood; possible are" in page.locator("#notes").inner_text()


def test_files_are_saved(page: Any, workbench: tuple[Any, str], tmp_path: Path) -> None:
    opened(page, workbench[1], "forecasts.tau=speed:0.3")
    starts = {"SVG": b"<svg", "PNG": b"\x89PNG", "Code": b'"""'}
    for name in ("SVG", "PNG", "Vectors", "Code"):
        with page.expect_download() as waiting:
            page.locator("#under").get_by_text(name, exact=True).click()
        waiting.value.save_as(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        assert content.startswith(starts.get(name, b""))
        assert len(content) > 500
    width, height = (int.from_bytes((tmp_path / "PNG").read_bytes()[i : i + 4], "big") for i in (16, 20))
    assert (width, height) == (2000, 2128)


def test_everything_is_reached_by_keys_and_has_a_name(page: Any, workbench: tuple[Any, str]) -> None:
    opened(page, workbench[1])
    page.get_by_role("tab", name="Forecasts").focus()
    reached = set[str]()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(one => `${one.tagName} ${one.textContent || one.getAttribute('aria-label')}`)(document.activeElement)"
            )
        )
    words = " ".join(reached)
    for wanted in (
        "range slider for speed",
        "range slider for agent",
        "TEXTAREA",
        "Steer",
        "All to zero",
        "PNG",
        "Code",
    ):
        assert wanted in words
    nameless = "svg[role=img]:not([aria-label]), input[type=range]:not([aria-label])"
    assert page.locator(nameless).count() == 0


def test_a_run_that_is_deleted_and_a_server_that_ends_are_told(
    browser: Any, workbench: Any, folder: Path, tmp_path: Path
) -> None:
    own = tmp_path / "run"
    shutil.copytree(folder, own)
    bench = type(workbench[0])(Held.open(own))
    address = bench.start(port=0)
    try:
        with browser.new_context(viewport=WARM) as context:
            page = context.new_page()
            opened(page, address)
            before = page.locator("#map").inner_html()
            shutil.rmtree(own)
            slider(page, "speed").focus()
            page.keyboard.press("End")
            page.locator("#notes .error").wait_for()
            assert "is gone; put it back" in page.locator("#notes").inner_text()
            # the picture stays
            assert page.locator("#map").inner_html() == before
            bench.stop()
            page.keyboard.press("Home")
            page.locator("#lost").wait_for()
            assert "The server does not answer" in page.locator("#lost").inner_text()
    finally:
        bench.stop()


def test_a_model_that_fails_is_told(page: Any, workbench: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    bench, address = workbench
    opened(page, address)
    forecasts = bench.tabs[0].forecasts

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the device has stopped")

    monkeypatch.setattr(forecasts.model, "resume", broken)
    slider(page, "speed").focus()
    page.keyboard.press("End")
    page.locator("#notes .error").wait_for()
    assert "the device has stopped" in page.locator("#notes").inner_text()
    monkeypatch.undo()
    still = page.locator("path.mode.best").first.get_attribute("d")
    page.keyboard.press("Home")
    moved(page, still)
    assert page.locator("#notes").inner_text() == ""
