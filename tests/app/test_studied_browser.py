"""The tabs on language, latents and subspaces in a browser: steered, searched, queried, and wrong inputs told."""

import importlib.util
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.studied_runs import E2E, LOCAL, PARTS, SAID
from innerspace.app.held import Held
from innerspace.app.language import LanguageView
from innerspace.app.latents import LatentsView
from innerspace.app.serve import prepare
from innerspace.app.subspaces import SubspacesView

KEYS = ("language", "latents", "subspaces")
STEERED = LanguageView("w3 w10 w31 w34 w42", LOCAL, 9, amount=2.0, new=6).query("language")


@pytest.fixture(scope="module")
def served(language_run: Path) -> Iterator[tuple[Any, str]]:
    """The workbench on a language model's run."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("the workbench needs the extra 'app'")
    prepare("127.0.0.1", 0)
    from innerspace.app.page import Workbench

    bench = Workbench(Held.open(language_run))
    yield bench, bench.start(port=0)
    bench.stop()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    with browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce") as context:
        page = context.new_page()
        failed = list[str]()
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.on("dialog", lambda dialog: failed.append(dialog.message))
        yield page
        assert failed == []


def opened(page: Any, served: tuple[Any, str], key: str, query: str = "") -> None:
    page.goto(f"{served[1]}?tab={key}&{query}")
    page.locator(f"#{key}-shown [data-png]").wait_for()


def told(page: Any, key: str) -> str:
    page.locator(f"#{key}-notes .error").wait_for()
    return str(page.locator(f"#{key}-notes").inner_text())


def fill(page: Any, box: str, text: str) -> None:
    page.locator(f"{box} :is(textarea, input)").first.fill(text)
    page.keyboard.press("Enter")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_tabs_open_and_nothing_leaves(browser: Any, served: tuple[Any, str], width: int, scheme: str) -> None:
    bench, address = served
    assert [tab.key for tab in bench.tabs] == list(KEYS)
    with browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme) as context:
        page, asked, failed = context.new_page(), list[str](), list[str]()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.on("console", lambda said: failed.append(said.text) if said.type == "error" else None)
        page.goto(address)
        for tab in bench.tabs:
            page.get_by_role("tab", name=tab.title).click()
            page.locator(f"#{tab.key}-shown [data-png]").wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.locator("svg[role=img]:not([aria-label])").count() == 0
        assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
        assert failed == []


def test_a_prompt_is_steered_and_goes_on_otherwise(page: Any, served: tuple[Any, str]) -> None:
    opened(page, served, "language", LanguageView("w3 w10 w31 w34 w42", LOCAL, 9, new=6).query("language"))
    panes = page.locator(".panes .strip")
    assert panes.nth(0).inner_text() == panes.nth(1).inner_text()
    page.locator("#amount input[type=range]").focus()
    page.keyboard.press("End")
    page.wait_for_function(
        "() => { const [a, b] = document.querySelectorAll('.panes .strip'); return a.textContent !== b.textContent }"
    )
    page.wait_for_function("window.location.search.includes('language.amount=')")
    assert page.locator("#language-shown .changes tbody tr").count() > 3
    steered = panes.nth(1).inner_text()
    page.reload()
    page.locator("#language-shown [data-png]").wait_for()
    assert page.locator(".panes .strip").nth(1).inner_text() == steered
    page.get_by_label("clamp").check()
    page.wait_for_function("window.location.search.includes('language.way=clamp')")
    assert "Clamped at" in page.locator(".panes").inner_text()


def test_a_latent_is_found_by_a_text_and_by_its_explanation(page: Any, served: tuple[Any, str]) -> None:
    opened(page, served, "latents")
    page.get_by_label("on for a text").check()
    fill(page, "#latents-text", "w3 w10 w31")
    page.wait_for_function("window.location.search.includes('latents.text=')")
    found = served[0].tabs[1].latents.search(LatentsView(LOCAL, "text", "w3 w10 w31"))
    assert f"local · latent {found[0].latent}" in page.locator("#latents-shown h3").first.inner_text()
    assert page.locator("#latents-found label").count() == len(found)
    # the next one is chosen by keys
    page.locator("#latents-found input").first.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.wait_for_function("latent => window.location.search.includes(`latents.latent=${latent}`)", arg=found[1].latent)
    page.get_by_label("explained by words").check()
    fill(page, "#latents-text", "seven")
    page.get_by_text(SAID).first.wait_for()
    assert "Nearest in the other dictionaries" in page.locator("#latents-shown").inner_text()


def test_a_subspace_is_queried_and_exchanged(page: Any, served: tuple[Any, str]) -> None:
    opened(page, served, "subspaces")
    before = page.locator("#subspaces-shown").inner_text()
    fill(page, "#subspaces-text", "w3 w10 w31")
    page.wait_for_function("window.location.search.includes('subspaces.text=')")
    assert page.locator("#subspaces-shown").inner_text() != before
    page.locator("#cosine input[type=range]").focus()
    counts = page.locator("#subspaces-shown .feature .quiet").first.inner_text()
    page.keyboard.press("Home")
    page.wait_for_function(
        "before => document.querySelector('#subspaces-shown .feature .quiet').innerText !== before", arg=counts
    )
    assert "a cosine of -0.95 or more" in page.locator("#subspaces-shown").inner_text()
    fill(page, "#subspaces-other", "w7 w40")
    page.get_by_text("The whole state exchanged, for contrast").wait_for()
    assert page.locator("#subspaces-shown .changes").count() == 2


@pytest.mark.parametrize(
    ("key", "box", "text", "said"),
    [
        ("language", "#prompt", "w1 hello", "knows no token for 'hello'"),
        ("language", "#prompt", " ", "the text is empty"),
        ("language", "#language-part", "4000", "there is no latent 4000; resid.1-local-0 has 0 to 47"),
        ("latents", "#latent", "48", "there is no latent 48"),
        ("subspaces", "#subspaces-text", "w1 " * 150, "the text has 449 letters"),
        ("subspaces", "#subspaces-other", "hello", "knows no token for 'hello'"),
    ],
)
def test_a_wrong_input_is_told(page: Any, served: tuple[Any, str], key: str, box: str, text: str, said: str) -> None:
    opened(page, served, key)
    before = page.locator(f"#{key}-shown").inner_text()
    fill(page, box, text)
    assert said in told(page, key)
    # what was shown stays
    assert page.locator(f"#{key}-shown").inner_text() == before


@pytest.mark.parametrize(
    ("key", "query", "said"),
    [
        ("language", "language.site=nowhere", "no site is called 'nowhere'"),
        ("language", "language.way=<img src=x onerror=alert(1)>", "there is no way '<img src=x onerror=alert(1)>'"),
        ("latents", "latents.latent=9999", "there is no latent 9999"),
        ("subspaces", "subspaces.partition=</p><script>alert(1)</script>", "'</p><script>alert(1)</script>'"),
        ("subspaces", "subspaces.cosine=2", "the cosine lies between"),
    ],
)
def test_an_address_that_cannot_be_is_told(page: Any, served: tuple[Any, str], key: str, query: str, said: str) -> None:
    opened(page, served, key, query)
    assert said in told(page, key)


def test_files_are_given_for_a_view_alone(served: tuple[Any, str]) -> None:
    views = {
        "language": STEERED,
        "latents": LatentsView(E2E, latent=5).query("latents"),
        "subspaces": SubspacesView(PARTS, state=7).query("subspaces"),
    }
    for key, query in views.items():
        for name, start in (("picture.svg", b"<svg"), (f"{key}.py", b'"""')):
            with urllib.request.urlopen(f"{served[1]}export/{key}/{name}?{query}", timeout=60) as answer:
                body = answer.read()
            assert body.startswith(start)
            assert len(body) > 500
    with pytest.raises(urllib.error.HTTPError) as failed:
        urllib.request.urlopen(f"{served[1]}export/latents/picture.svg?latents.latent=9999", timeout=60)
    assert failed.value.code == 400


def test_a_run_that_is_deleted_is_told(browser: Any, language_run: Path, tmp_path: Path, served: Any) -> None:
    own = tmp_path / "run"
    shutil.copytree(language_run, own)
    bench = type(served[0])(Held.open(own))
    address = bench.start(port=0)
    try:
        with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
            page = context.new_page()
            opened(page, (bench, address), "language")
            shutil.rmtree(own)
            fill(page, "#prompt", "w1 w2")
            assert "is gone; put it back" in told(page, "language")
    finally:
        bench.stop()


def test_a_run_without_them_says_which_command_makes_them(folder: Path) -> None:
    from innerspace.app.page import Workbench

    absent = Workbench(Held.open(folder)).absent
    assert "innerspace run stories-pareto" in absent["Language"]
    assert "innerspace run stories-pareto or words-in-motion" in absent["Latents"]
    assert "innerspace run subspaces-stories or innerspace demo" in absent["Subspaces"]
