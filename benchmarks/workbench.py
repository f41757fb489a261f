"""What a move of a slider costs on the workbench: the pass, the drawing, the way to a browser and back, and a crowd.

python benchmarks/workbench.py --run runs/demo
"""

import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from recording import machine, save

from innerspace.app.forecast_drawings import Drawings
from innerspace.app.forecasts import Forecasts, ForecastView
from innerspace.app.held import Held
from innerspace.app.serve import prepare
from innerspace.interventions import At, Steer
from innerspace.network.site import Where

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_MOVES = """async (values) => {
  const range = document.querySelector("#tau-speed input[type=range]"), map = document.querySelector("#map");
  const found = [];
  const path = () => map.querySelector("path.mode.best").getAttribute("d");
  for (const value of values) {
    const before = path(), start = performance.now();
    range.value = value;
    range.dispatchEvent(new Event("input", { bubbles: true }));
    await new Promise((done) => {
      const seen = new MutationObserver(() => { if (path() !== before) { seen.disconnect(); done(); } });
      seen.observe(map, { childList: true, subtree: true, attributes: true });
    });
    found.push((performance.now() - start) / 1000);
    await new Promise((rest) => setTimeout(rest, 50));
  }
  return found;
}"""
"""Moves the slider and waits until another forecast stands in the page, each time."""


def timed(call: Callable[[float], Any], values: Sequence[float]) -> list[float]:
    """Seconds of each call."""
    found = list[float]()
    for value in values:
        start = time.perf_counter()
        call(value)
        found.append(time.perf_counter() - start)
    return found


def asked(address: str, features: Sequence[str], view: ForecastView, site: str) -> float:
    """Seconds of one request by which a browser would ask for a view."""
    amounts = dict(view.tau)
    sliders = [amounts.get(feature, 0.0) for feature in features]
    data = ["held out", view.scene, list(view.agents), site, view.method, view.mode, view.ask, *sliders]
    body = json.dumps({"data": data}).encode()
    request = urllib.request.Request(f"{address}gradio_api/run/forecasts", body, {"Content-Type": "application/json"})
    start = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as answer:
        *_, trouble = json.load(answer)["data"]
    assert not trouble, trouble
    return time.perf_counter() - start


def browsed(address: str, values: Sequence[float]) -> list[float]:
    """Seconds from the event of a slider to the new forecast in the page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        page.locator("svg.map").wait_for()
        page.wait_for_timeout(1000)
        found = list(page.evaluate(_MOVES, list(values)))
        browser.close()
    return found


def main(run: Path = Path("runs/demo"), moves: int = 60, users: int = 20) -> None:
    """Medians and 95th percentiles of each step, in milliseconds."""
    if not (run / "directions.safetensors").is_file() or find_spec("gradio") is None:
        print(f"the workbench needs gradio and a run with vectors; there is none at {run}, make demo makes one")
        return
    torch.set_num_threads(1)
    prepare("127.0.0.1", 0)
    from innerspace.app.page import Workbench

    bench, forecasts = Workbench(Held.open(run)), Forecasts(Held.open(run))
    drawings, view = Drawings(forecasts), ForecastView()
    reach = forecasts.offered("")["speed"].end
    values = [round(float(tau), 3) for tau in np.linspace(-reach, reach, moves) if abs(tau) > 1e-3]

    def at(tau: float) -> ForecastView:
        return replace(view, tau=(("speed", tau),))

    def from_the_start(tau: float) -> None:
        stage = forecasts.stage(view)
        edit = At(Where("valid"), Steer(forecasts.offered("")["speed"].along, tau))
        with torch.no_grad():
            forecasts.model.run(stage.batch, {forecasts.site: edit})

    drawings.draw(at(values[0]))
    rows = {
        "a pass from the start, without a page": timed(from_the_start, values),
        "forecasts and readouts, from the site on": timed(lambda tau: forecasts.steer(at(tau)), values),
        "the same, drawn": timed(lambda tau: drawings.draw(at(tau)), values),
    }
    address = bench.start(port=0)
    features = forecasts.features

    def user(number: int) -> list[float]:
        return timed(
            lambda tau: asked(address, features, replace(at(tau), scene=number % 10), forecasts.site), values[:20]
        )

    user(0)
    rows["asked over HTTP by one"] = user(0)
    with ThreadPoolExecutor(users) as pool:
        rows[f"asked over HTTP by {users} at once"] = [one for own in pool.map(user, range(users)) for one in own]
    if CHROMIUM is not None and find_spec("playwright"):
        rows["from the slider to the map, in a browser"] = browsed(address, values)
    bench.stop()
    found = {name: {"median": np.median(own) * 1e3, "p95": np.quantile(own, 0.95) * 1e3} for name, own in rows.items()}
    lines = ["| step | median [ms] | 95th percentile [ms] |", "|---|---|---|"]
    lines += [f"| {name} | {one['median']:.1f} | {one['p95']:.1f} |" for name, one in found.items()]
    save("workbench", "A move of a slider on the workbench", {**machine(1), "moves": len(values)}, found, lines)


if __name__ == "__main__":
    tyro.cli(main)
