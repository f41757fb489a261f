"""The workbench in a browser: nothing is asked of anyone else, every tab opens, the address follows."""

from typing import Any

import pytest


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_tab_opens_and_nothing_leaves(browser: Any, workbench: tuple[Any, str], width: int, scheme: str) -> None:
    bench, address = workbench
    with browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme) as context:
        page = context.new_page()
        asked, failed = list[str](), list[str]()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(address)
        page.locator("svg.map").wait_for(state="visible")
        for tab in bench.tabs:
            page.get_by_role("tab", name=tab.title).click()
            page.locator(f"#tab-{tab.key}").wait_for(state="visible")
            assert f"tab={tab.key}" in page.url
        page.reload()
        page.locator(f"#tab-{bench.tabs[-1].key}").wait_for(state="visible")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
        assert elsewhere == []
        assert failed == []
