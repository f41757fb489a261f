"""The page of dictionaries: fronts, curves, the map and the features are whole, exact and safe."""

import html
import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from innerspace.report.blocks import Palette
from innerspace.report.features import ALPHABET, features, visible
from innerspace.report.numerals import Estimate
from innerspace.report.page import render
from innerspace.report.plots import Chart, Scale
from innerspace.report.runs import Setting, by_setting, level, mean, prefix, shade
from report.mock import mock_page
from report.mock_dictionaries import (
    KINDS,
    SEEDS,
    mock_dictionaries,
    mock_dictionary_page,
    mock_forecaster_dictionaries,
)

pytest.importorskip("jinja2", reason="the page needs the extra 'report'")

SECTIONS = {
    "pareto": "pareto",
    "fidelity": "fidelity",
    "geometry": "geometry",
    "features": "features",
    "training": "training",
    "training_cost": "training-cost",
}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return mock_dictionaries()


def fresh(*keys: str) -> dict[str, Any]:
    whole = mock_dictionaries(6, 12)
    return {"title": "A part"} | {key: whole[key] for key in keys}


@pytest.mark.parametrize(("key", "name"), SECTIONS.items())
def test_each_section_stands_alone(key: str, name: str, report: dict[str, Any]) -> None:
    page = render({"title": "t", key: report[key]})
    assert page.count("<section ") == 1
    assert f'<section id="{name}"' in page


def test_page_is_whole_small_and_asks_for_nothing() -> None:
    page = render(mock_dictionaries(300, 3000))
    assert len(page.encode()) < 3_000_000
    addresses = re.findall(r"""(?:src|href|action)\s*=\s*["']([^"']*)""", page)
    assert [address for address in addresses if not address.startswith(("#", "data:,"))] == []
    assert "http://" not in page
    assert "https://" not in page
    assert 'id="others"' not in page


def test_same_numbers_give_the_same_bytes(report: dict[str, Any]) -> None:
    assert render(json.loads(json.dumps(report))) == mock_dictionary_page()


def test_other_pages_carry_nothing_of_it() -> None:
    assert "browser-list" not in mock_page()
    assert ".shade-0" not in mock_page()


def test_kinds_keep_one_color_on_the_whole_page(report: dict[str, Any]) -> None:
    colors = {kind: f"hue-{i}" for i, kind in enumerate(KINDS)}
    page = mock_dictionary_page()
    for kind, hue in colors.items():
        assert f'<path class="line thin {hue}"' in page
        assert re.search(
            rf'class="line {hue} shade-\d setting-\d+ seed-0" d="[^"]*" data-run="{re.escape(kind)} ·', page
        )


def test_fronts_hold_one_mark_for_each_coefficient_and_one_line_for_each_seed(report: dict[str, Any]) -> None:
    page = render({"title": "t", "pareto": report["pareto"]})
    (chart,) = re.findall(r'<svg[^>]*aria-label="CE increase against L0.*?</svg>', page, re.DOTALL)
    assert chart.count('class="dot mark') == sum(map(len, KINDS.values()))
    assert chart.count('class="line thin') == len(KINDS) * len(SEEDS)
    # two bars, one in each direction
    assert chart.count('class="line bar') == 2 * sum(map(len, KINDS.values()))
    own = [run for run in report["pareto"]["runs"] if (run["kind"], run["coefficient"]) == ("e2e", 0.4)]
    l0 = sum(run["l0"] for run in own) / 3
    assert f"e2e · λ 0.4\nL0 {l0:.1f} (" in chart


def test_explained_variance_far_below_zero_is_shown_as_what_is_left(report: dict[str, Any]) -> None:
    assert "Unexplained variance against L0" in render({"title": "t", "pareto": report["pareto"]})
    runs = [run for run in report["pareto"]["runs"] if run["kind"] == "local"]
    page = render({"title": "t", "pareto": {"runs": runs, "reference": "local"}})
    assert "Explained variance against L0" in page


def test_verdicts_are_in_words(report: dict[str, Any]) -> None:
    page = render({"title": "t", "pareto": report["pareto"]})
    assert re.findall(r'<li class="(\w+)"><strong>(\w+)</strong>', page) == [("holds", "holds"), ("open", "open")]
    assert "0.490 (0.440 to 0.540); claimed at most 0.6." in page


def test_several_sites_have_fronts_of_their_own(report: dict[str, Any]) -> None:
    given = mock_dictionaries(0, 3)["pareto"]
    given["runs"] = [{**run, "site": site} for site in ("resid.2", "resid.6") for run in given["runs"]]
    page = render({"title": "t", "pareto": given})
    assert page.count("<h3") == 2
    assert page.count('aria-label="CE increase against L0') == 2
    assert "resid.6 · e2e · λ 0.4 · seed 2" in page


def test_coefficients_are_ordered_shaded_and_named() -> None:
    runs = [{"kind": "e2e", "coefficient": c, "seed": seed} for c in (10, 0.5, 3.0) for seed in (0, 1)]
    groups = by_setting(runs)
    assert [key.strength for key in groups] == ["λ 0.5", "λ 3", "λ 10"]
    assert [shade(key, list(groups)) for key in groups] == ["shade-0", "shade-2", "shade-4"]
    assert all(len(own) == 2 for own in groups.values())
    assert Setting("", "local", "k 32").words == "local · k 32"
    assert Setting("resid.6", "local", None).words == "resid.6 · local"
    assert [level(value) for value in (100, 0.001, 2.50)] == ["100", "0.001", "2.5"]


def test_means_over_seeds_carry_students_interval() -> None:
    found = mean([1.0, 2.0, 3.0])
    assert found.mean == pytest.approx(2.0)
    assert found.high == pytest.approx(2.0 + 4.303 / math.sqrt(3), rel=1e-3)
    single = {"mean": 1.0, "low": 0.5, "high": 1.5}
    assert mean([single, None]) == Estimate(1.0, 0.5, 1.5)
    assert mean([1.6, 1.6, 1.6]) == Estimate(1.6)
    assert mean([]) == Estimate(None)
    assert prefix([4.1e8, None]) == (1e6, "M")
    assert prefix([]) == (1.0, "")


def test_marks_of_charts_lie_where_their_numbers_are() -> None:
    chart = Chart(Scale(0, 3), Scale(0, 1), x_label="x")
    chart.steps([0, 1, 3], [0.5, 1.0], "a", "<tip>")
    chart.rule(0.5, "b", upright=False)
    chart.cross(Estimate(1.5, -1.0, 9.0), Estimate(0.5, 0.25, 0.75), "c")
    drawn = chart.svg("label", readable=True)
    # the box is 44 to 326 across and 184 to 26 upward
    assert 'class="steps a" d="M44 184L44 105L138 105L138 26L326 26L326 184" data-tip="&lt;tip&gt;"' in drawn
    assert 'class="line b" d="M44 105H326"' in drawn
    assert 'class="line c" d="M44 105L326 105"' in drawn
    assert 'class="line c" d="M185 144.5L185 65.5"' in drawn
    (axes,) = re.findall(r'data-axes="([^"]*)"', drawn)
    assert json.loads(html.unescape(axes)) == {"x": [0, 3, False], "y": [0, 1, False], "box": [44, 26, 326, 184]}


def test_packed_contexts_read_back(report: dict[str, Any]) -> None:
    (block,) = features(report, Palette.of(KINDS), "").blocks
    packed = json.loads(block.data)  # pyright: ignore
    for given, one in zip(report["features"]["entries"], packed["features"], strict=True):
        for band, (_, _, _, examples) in zip(given["bands"], one["b"], strict=True):
            for example, (text, on) in zip(band["examples"], examples, strict=True):
                digits = [ALPHABET.index(letter) for letter in text]
                triples = zip(digits[::3], digits[1::3], digits[2::3], strict=True)
                assert [packed["words"][4096 * a + 64 * b + c] for a, b, c in triples] == example["tokens"]
                values = dict(zip(on[::2], on[1::2], strict=True))
                assert [values.get(i, 0.0) for i in range(24)] == pytest.approx(example["values"], rel=5e-3)


def test_what_is_not_seen_is_made_visible() -> None:
    assert visible(" upon") == [("·", True), ("upon", False)]
    assert visible("\n\t") == [("↵", True), ("⇥", True)]
    assert visible("a\u202eb\x00") == [("a", False), ("U+202E", True), ("b", False), ("U+0000", True)]
    assert visible("") == [("∅", True)]


def test_text_cannot_break_out_of_the_page() -> None:
    given = fresh("features", "geometry", "training", "pareto")
    one = given["features"]["entries"][0]
    one["bands"][0]["examples"][0]["tokens"][3] = EVIL
    one["up"][0]["token"] = EVIL
    one["bands"][0]["name"] = given["features"]["dictionaries"][0]["name"] = EVIL
    given["geometry"]["map"]["words"][0] = given["geometry"]["map"]["dictionaries"][0]["name"] = EVIL
    given["training"][0]["kind"] = given["pareto"]["runs"][0]["kind"] = EVIL
    page = render(given)
    assert "<script>alert" not in page
    assert "<img" not in page


def test_forecasters_have_the_same_sections() -> None:
    page = render(mock_forecaster_dictionaries())
    assert 'aria-label="Divergence against L0' in page
    assert ">CE " not in page.split("<main")[1].split("<script")[0]
    assert "a pedestrian &lt;crossing&gt;" in page
    assert "% of agents" in page


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("pareto", lambda r: [run.pop("ce_increase") and run.pop("kl") for run in r["runs"]], "should hold one of"),
        ("pareto", lambda r: r.pop("reference"), "'pareto' lacks 'reference'"),
        ("training", lambda r: r[0]["curves"]["l0"].pop(), "curve 'l0' of local · λ 0.3 · seed 0 should have 30"),
        ("geometry", lambda r: r["map"]["x"].pop(), "equally long"),
        ("geometry", lambda r: r["map"]["x"].__setitem__(0, math.nan), "should have a place"),
        ("geometry", lambda r: r["similarity"][0].update(relation="near"), "one of within, seeds, kinds"),
        ("features", lambda r: r["entries"][0].update(dictionary=7), "there are 3 dictionaries"),
        ("features", lambda r: r["entries"][0]["bands"][0]["examples"][0]["values"].pop(), "24 tokens with 23 values"),
        ("features", lambda r: r["entries"][0]["histogram"]["counts"].pop(), "one edge more"),
        ("training_cost", lambda r: r[0].update(tokens_per_second=torch.zeros(2)), "is a Tensor"),
    ],
)
def test_contradictions_are_named(key: str, change: Callable[[Any], object], message: str) -> None:
    given = fresh(key)
    change(given[key])
    with pytest.raises(ValueError, match=message):
        render(given)
