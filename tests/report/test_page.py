"""The page is a pure function of the numbers: whole, self-contained, and honest about what it does not know."""

import html
import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from innerspace.report.blocks import Cell, Palette, Table
from innerspace.report.maps import path
from innerspace.report.numerals import Estimate, bound, estimate, interval, number, phrase, plain
from innerspace.report.page import render
from innerspace.report.plots import Chart, Scale
from innerspace.report.record import Provenance, write
from report.mock import FEATURES, mock_page, mock_report

pytest.importorskip("jinja2", reason="the page needs the extra 'report'")

SECTIONS = {
    "scenes": "forecasts",
    "probes": "probes",
    "collapse": "collapse",
    "calibration": "calibration",
    "refinement": "refinement",
    "vectors": "vectors",
    "control_loop": "control-loop",
    "offtarget": "offtarget",
    "feasibility": "feasibility",
    "dictionaries": "dictionaries",
    "forecaster": "forecaster",
    "data": "data",
    "cost": "cost",
    "provenance": "provenance",
}


def part(*keys: str) -> dict[str, Any]:
    """Some of the sections of the mock report, with their notes."""
    report = mock_report()
    notes = {key: report["notes"][key] for key in keys if key in report["notes"]}
    return {"title": "A part", "notes": notes} | {key: report[key] for key in keys}


@pytest.fixture(scope="module")
def page() -> str:
    return mock_page()


def test_same_numbers_give_the_same_bytes(page: str) -> None:
    assert render(json.loads(json.dumps(mock_report()))) == page


def test_page_needs_nothing_from_outside(page: str) -> None:
    addresses = re.findall(r"""(?:src|href|action|data)\s*=\s*["']([^"']*)""", page) + re.findall(r"url\(([^)]*)", page)
    assert addresses
    assert [address for address in addresses if not address.startswith(("#", "data:,"))] == []
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert len(page.encode()) < 2_000_000


def test_every_section_is_there_once_and_in_the_contents(page: str) -> None:
    for name in SECTIONS.values():
        assert page.count(f'<section id="{name}"') == 1
        assert page.count(f'href="#{name}"') == 1
    assert 'id="others"' not in page


@pytest.mark.parametrize(("key", "name"), SECTIONS.items())
def test_each_section_stands_alone(key: str, name: str) -> None:
    page = render(part(key))
    assert page.count("<section ") == 1
    assert f'<section id="{name}"' in page
    note = mock_report()["notes"].get(key, "")
    assert html.escape(bound(note)) in page


def test_report_may_hold_nothing_but_a_title() -> None:
    page = render({"title": "Nothing <found>"})
    assert "<h1>Nothing &lt;found&gt;</h1>" in page
    assert "<section" not in page


def test_unknown_numbers_are_listed_and_not_dropped() -> None:
    page = render({"title": "t", "curvature": {"mean_of": 0.125, "deep": [{"x": 7}]}})
    assert 'id="others"' in page
    assert "curvature" in page
    assert "0.125" in page


def test_text_cannot_break_out_of_the_page() -> None:
    report = part("scenes", "probes")
    del report["scenes"][1:], report["scenes"][0]["steered"][1:]
    report["scenes"][0]["words"] = "</script><script>alert(1)</script>"
    report["probes"]["sites"][0] = report["probes"]["cells"][0]["site"] = '"><img src=x>'
    for cell in report["probes"]["cells"][1:4]:
        cell["site"] = '"><img src=x>'
    page = render(report)
    assert "<script>alert" not in page
    assert "<img" not in page


def test_numbers_that_are_not_finite_become_dashes() -> None:
    report = {"title": "t", "forecaster": mock_report()["forecaster"]}
    report["forecaster"]["metrics"][0]["min_ade"] = math.nan
    report["forecaster"]["loss"]["held_out"][1::2] = [math.inf] * len(report["forecaster"]["loss"]["held_out"][1::2])
    page = render(report)
    assert ">–<" in page
    assert "nan" not in page.split("<main")[1].split("</main>")[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["scenes"][0]["steered"][0].update(tau=[t + 5 for t in range(11)]), "should hold 0"),
        (lambda r: r["scenes"][0]["steered"][0]["forecasts"][0].pop(), "as many modes"),
        (lambda r: r["scenes"][0]["steered"][0]["probability"].pop(), "probability should be"),
        (lambda r: r["probes"]["cells"][0].pop("auroc"), "'probes' lacks 'auroc'"),
        (lambda r: r["probes"]["cells"][0].update(site="elsewhere"), "outside of sites"),
        (lambda r: r["notes"].update(probing="x"), "no section 'probing'"),
        (lambda r: r.update(cost={"plain_ms": 1.0}), "'cost' lacks"),
        (lambda r: r.update(cost={**r["cost"], "ratio": "fast"}), "an estimate is"),
        (lambda r: r.update(model=torch.nn.Identity()), "report.model is a Identity"),
    ],
)
def test_contradictions_are_named(change: Callable[[dict[str, Any]], object], message: str) -> None:
    report = part("scenes", "probes", "cost")
    del report["scenes"][1:], report["scenes"][0]["steered"][1:]
    change(report)
    with pytest.raises(ValueError, match=message):
        render(report)


def test_without_jinja_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(ValueError, match=r"innerspace\[report\]"):
        render({"title": "t"})


def test_written_numbers_are_the_given_ones(tmp_path: Path) -> None:
    given = {"title": "t", "numbers": {"x": np.float32(0.1), "y": [1.0, math.nan], "z": np.arange(3)}}
    write(tmp_path / "run", given)
    text = (tmp_path / "run" / "report.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"title": "t", "numbers": {"x": 0.1, "y": [1.0, None], "z": [0, 1, 2]}}
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8") == render(given)


def test_written_json_reads_back_at_any_depth(tmp_path: Path) -> None:
    report = part("probes", "calibration", "vectors", "job")
    write(tmp_path, report)
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert json.loads(text) == plain(report)
    assert 300 < text.count("\n") < 5000


def test_provenance_survives_json() -> None:
    started = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    found = Provenance.collect(seeds=(0, 1), data="simulated", started=started, seconds=1.26)
    assert Provenance.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert (found.started, found.seconds, found.threads) == ("2026-01-02T03:04:05+00:00", 1.3, torch.get_num_threads())
    assert found.commit == "unknown" or re.fullmatch(r"[0-9a-f]{40}( with changes)?", found.commit)
    assert found.torch == torch.__version__


@pytest.mark.parametrize(
    ("value", "digits", "written"),
    [
        (0.8734, 3, "0.873"),
        (-12.345, 3, "−12.3"),
        (1234567, 3, "1\u202f234\u202f567"),
        (4210.4, 3, "4\u202f210"),
        (3.0, 2, "3.0"),
        (0.0, 3, "0"),
        (-0.0, 3, "0"),
        (0.00342, 2, "0.0034"),
        (1.5e-7, 3, "1.5e−07"),
        (None, 3, "–"),
    ],
)
def test_numbers_in_words(value: float | None, digits: int, written: str) -> None:
    assert number(value, digits) == written


def test_intervals_in_words() -> None:
    assert phrase(Estimate(0.87342, 0.85, 0.892)) == "0.873 (0.850 to 0.892)"
    assert phrase(Estimate(12.0, -3.0, 27.0), "%", sign=True) == "+12.0 % (−3.0 to +27.0)"
    assert interval(Estimate(1.0)) == ""
    assert estimate({"class": "Estimate", "mean": 1, "low": None, "high": math.inf}) == Estimate(1.0, None, None)
    assert bound("95 % of 1 200 targets") == "95\u00a0% of 1\u00a0200 targets"


def test_features_keep_their_colors_and_share_none() -> None:
    palette = Palette.of(["gender", "direction", *FEATURES, "number"])
    assert [palette[name] for name in FEATURES] == ["hue-0", "hue-1", "hue-2", "hue-3"]
    assert len({palette[name] for name in ("gender", "number", *FEATURES)}) == 6
    assert palette["no feature"] == ""
    assert Palette.of(["gender"])["gender"] == "hue-0"


def test_columns_of_numbers_are_known() -> None:
    table = Table("", (Cell("a"),), ((Cell("x"), Cell("−3.2"), Cell("2 m")), (Cell("y"), Cell("–"), Cell("3"))))
    assert [table.numeric(i) for i in range(3)] == [False, True, False]


@pytest.mark.parametrize("scale", [Scale.over([0.0, 1.0]), Scale.over([-3e4, 2.0]), Scale.over([0.02, 300], log=True)])
def test_ticks_lie_on_the_axis_and_are_few(scale: Scale) -> None:
    ticks = [value for value, _ in scale.ticks(4)]
    assert 2 <= len(ticks) <= 9
    assert all(scale.low <= value <= scale.high for value in ticks)
    assert scale.at(scale.low) == pytest.approx(0)
    assert scale.at(scale.high) == pytest.approx(1)


@pytest.mark.parametrize("values", [[], [None], [2.0], [0.0, 0.0]])
def test_axes_of_too_few_values_still_are_axes(values: list[float | None]) -> None:
    for log in (False, True):
        scale = Scale.over(values, log=log)
        assert scale.low < scale.high
        assert scale.ticks(4) or log


def test_lines_break_where_a_value_is_missing() -> None:
    chart = Chart(Scale(0, 3), Scale(0, 1), x_label="x")
    chart.line([0, 1, 2, 3], [0.0, 1.0, None, 1.0], "hue-0")
    (d,) = re.findall(r'class="line hue-0" d="([^"]*)"', chart.svg("a line"))
    assert d.count("M") == 2
    assert d.startswith("M44 184L138 26")


def test_forward_is_up_and_left_is_left() -> None:
    assert path(np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 1.5]])) == "M0 0L0 -2L-1.5 -2"
