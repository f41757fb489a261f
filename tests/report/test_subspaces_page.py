"""The page of subspaces: its sections are whole, exact and safe."""

import html
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from innerspace.report.numerals import number
from innerspace.report.page import render
from innerspace.report.plots import Scale
from innerspace.report.preimages import drawing
from innerspace.report.subspaces import partition_bars
from report.mock import mock_page
from report.mock_dictionaries import mock_dictionary_page
from report.mock_subspaces import METHODS, SIZES, mock_forecaster_subspaces, mock_subspace_page, mock_subspaces

pytest.importorskip("jinja2", reason="the page needs the extra 'report'")

SECTIONS = {
    "patching": "patching",
    "part_labels": "part-labels",
    "preimages": "preimages",
    "dependence": "dependence",
    "weight_paths": "weight-paths",
    "subspace_training": "subspace-training",
}
FRAMED = r'<td class="[^"]*framed[^"]*heat'
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
def report() -> dict[str, Any]:
    return mock_subspaces(4, 60)


def data(page: str) -> dict[str, Any]:
    (found,) = re.findall(r'id="preimage-data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found)


@pytest.mark.parametrize(("key", "name"), SECTIONS.items())
def test_each_section_stands_alone(key: str, name: str, report: dict[str, Any]) -> None:
    page = render({"title": "t", key: report[key]})
    assert page.count("<section ") == 1
    assert f'<section id="{name}"' in page


def test_page_is_whole_small_and_asks_for_nothing(report: dict[str, Any]) -> None:
    page = render(mock_subspaces(24, 1500))
    assert len(page.encode()) < 1_500_000
    addresses = re.findall(r"""(?:src|href|action)\s*=\s*["']([^"']*)""", page)
    assert [address for address in addresses if not address.startswith(("#", "data:,"))] == []
    assert "http://" not in page
    assert "https://" not in page
    assert 'id="others"' not in page
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(names) == len(set(names))


def test_same_numbers_give_the_same_bytes() -> None:
    assert render(json.loads(json.dumps(mock_subspaces()).replace("NaN", "null"))) == mock_subspace_page()


def test_other_pages_carry_nothing_of_it() -> None:
    for page in (mock_page(), mock_dictionary_page()):
        assert "preimage" not in page
        assert ".partitions" not in page


def test_words_of_others_stay_text(report: dict[str, Any]) -> None:
    report["preimages"]["states"][0]["tokens"][0] = EVIL
    report["dependence"][0]["parts"][0]["words"] = EVIL
    report["patching"]["suites"][0]["name"] = EVIL
    report["subspace_training"][0]["events"][0]["words"] = EVIL
    page = render(report)
    assert EVIL not in page
    assert "<img src=x" not in page
    assert EVIL in data(page)["words"]


def test_what_patching_found_stands_in_the_chart_and_the_tables(report: dict[str, Any]) -> None:
    page = render({"title": "t", "patching": report["patching"]})
    charts = re.findall(r'<svg[^>]*aria-label="Effects of parts in.*?</svg>', page, re.DOTALL)
    assert len(charts) == 3
    for suite, chart in zip(report["patching"]["suites"], charts, strict=True):
        assert chart.count('class="dot') == sum(len(one["parts"]) for one in suite["methods"])
        assert chart.count("mark hollow") == sum(len(one["parts"]) - 1 for one in suite["methods"])
        best = max(suite["methods"][0]["parts"], key=lambda part: part["effect"]["mean"])
        assert f"share {number(best['effect']['mean'] / suite['whole']['mean'])}" in chart
        assert f"effect {number(best['effect']['mean'])}" in chart
    for method in METHODS:
        assert f"<span>{method}</span>" in page
    # what was published stands beside what was measured
    row = re.search(r"<th[^>]*><span>NDM</span></th>.*?</tr>", page, re.DOTALL)
    assert row
    assert row[0].count("<span>0.710</span>") == 3


def test_a_share_that_was_measured_is_not_derived_again(report: dict[str, Any]) -> None:
    suite = report["patching"]["suites"][0]
    suite["methods"][0]["parts"][4]["sufficiency"] = {"mean": 0.777, "low": 0.7, "high": 0.85}
    assert "share 0.777 (0.700 to 0.850)" in render({"title": "t", "patching": report["patching"]})


def test_shares_of_a_negative_effect_keep_their_ends_in_order(report: dict[str, Any]) -> None:
    suite = report["patching"]["suites"][0]
    suite["whole"] = {"mean": -2.0, "low": -2.2, "high": -1.8}
    suite["methods"][0]["parts"][0]["effect"] = {"mean": -1.0, "low": -1.2, "high": -0.8}
    page = render({"title": "t", "patching": report["patching"]})
    assert "share 0.500 (0.400 to 0.600)" in page


def test_a_variable_that_is_not_used_is_named(report: dict[str, Any]) -> None:
    report["patching"]["suites"][1]["uses"] = False
    page = render({"title": "t", "patching": report["patching"]})
    assert "was not found to use the variable of He or she" in page


def test_what_parts_tell_is_framed_where_it_beats_the_random_part(report: dict[str, Any]) -> None:
    given = report["part_labels"][0]
    page = render({"title": "t", "part_labels": [given]})
    measures = given["measures"].values()
    beaten = sum(
        value["low"] > chance["high"]
        for measure in measures
        for own, random in zip(measure["parts"], measure["random"], strict=True)
        for value, chance in zip(own, random, strict=True)
    )
    assert len(re.findall(FRAMED, page)) == beaten > 0


def test_the_matrix_frames_what_is_significant_and_the_tree_joins_everything(report: dict[str, Any]) -> None:
    given = report["dependence"][0]
    page = render({"title": "t", "dependence": [given]})
    framed = sum(value is not None and value <= 0.05 for row in given["p"] for value in row)
    assert len(re.findall(FRAMED, page)) == framed > 0
    (tree,) = re.findall(r'<svg[^>]*aria-label="Dendrogram.*?</svg>', page, re.DOTALL)
    assert tree.count('class="line branch"') == len(SIZES["resid.1"]) - 1
    # every part has its label once, and the last join names all of them
    labels = re.findall(r'<text class="y"[^>]*>(\d) \((\d+)\)', tree)
    assert sorted(labels) == [(str(i), str(size)) for i, size in enumerate(SIZES["resid.1"])]
    assert 'data-tip="1 + 2\n0.130 nats per dimension"' in tree


def test_the_strongest_paths_are_drawn_and_listed_in_order(report: dict[str, Any]) -> None:
    given = report["weight_paths"]
    page = render({"title": "t", "weight_paths": given})
    flows = re.findall(r'class="flow [^"]*"[^>]*data-tip="[^"]*\n([\d.]+) × chance"', page)
    scores = sorted(
        (x for one in given["paths"] if one["kind"] != "qk" for row in one["score"] for x in row), reverse=True
    )
    assert len(flows) == 60
    assert sorted(map(float, flows), reverse=True) == pytest.approx(scores[:60], rel=6e-3)
    source = html.escape("resid.1 part 2 → resid.3 part 0\nthrough head 2.")
    assert source in page


def test_training_marks_every_change_of_the_parts(report: dict[str, Any]) -> None:
    page = render({"title": "t", "subspace_training": report["subspace_training"]})
    assert page.count('class="dot mark') == sum(len(run["events"]) for run in report["subspace_training"])
    assert "merged at step 2\u202f000\nparts 3 and 7, 0.061 nats per dimension\nnow 8 parts: 8\u00a0×\u00a08" in page
    assert "<span>16, 12 × 2, 8 × 2, 4 × 2</span>".replace(" × ", "\u00a0×\u00a0") in page


def test_bars_are_as_wide_as_parts_have_dimensions() -> None:
    svg = partition_bars([("a", (48, 16))])
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height', svg)]
    assert widths == pytest.approx([640 * 0.75 - 1.5, 640 * 0.25 - 1.5])


def test_an_axis_may_run_backwards() -> None:
    axis = Scale(1.0, 0.0)
    assert [axis.at(value) for value in (1.0, 0.25, 0.0)] == [0.0, 0.75, 1.0]
    assert [value for value, _ in axis.ticks(4)] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_preimages_travel_whole(report: dict[str, Any]) -> None:
    given, found = report["preimages"], data(render({"title": "t", "preimages": report["preimages"]}))
    tokens, at = found["states"][7]
    assert [found["words"][i] for i in tokens] == given["states"][7]["tokens"]
    assert at == given["states"][7]["at"]
    part, packed = given["partitions"][1]["queries"][2]["parts"][3], found["partitions"][1]["queries"][2]["p"][3]
    assert packed["s"][::3] == part["sample"]["state"]
    assert packed["s"][1::3] == pytest.approx(part["sample"]["cosine"], abs=5e-4)
    assert packed["n"] == [part["counts"]["cosine"], part["counts"]["distance"]]
    assert packed["h"] == part["histogram"]
    assert found["levels"][0][found["default"][0]] == 0.85


def test_the_first_query_stands_on_paper(report: dict[str, Any]) -> None:
    page = render({"title": "t", "preimages": report["preimages"]})
    static = page[page.index('<div class="static">') :]
    assert static.count("<figure") == 4
    assert "part 0 · 16 dimensions · current token" in static
    (scenes,) = re.findall(r'<div class="static">.*?</section>', render(mock_forecaster_subspaces()), re.DOTALL)
    assert scenes.count('<svg class="trip"') > 4
    assert "a &lt;vehicle&gt;" in scenes


def test_a_path_is_drawn_with_the_agent_looking_up() -> None:
    assert drawing("", "", 40) == ""
    assert 'viewBox="-20 -30 40 40"' in drawing("0.0 5.0", "0.0 -5.0", 40)


Damage = Callable[[dict[str, Any]], object]
BROKEN: dict[str, tuple[Damage, str]] = {
    "curve": (lambda r: r["subspace_training"][0]["distance"].pop(), "'distance' of resid.1 · fast · seed 0"),
    "event": (lambda r: r["subspace_training"][0]["events"][0].update(what="fusion"), "should be one of merge, split"),
    "width": (lambda r: r["subspace_training"][0].update(sizes=[3]), "different widths"),
    "matrix": (
        lambda r: r["dependence"][0]["information"].pop(),
        "'information' at resid.1 should be a matrix of 7 × 7",
    ),
    "join": (lambda r: r["dependence"][0]["tree"][0].update(left=9), "join 0 of the tree at resid.1"),
    "labels": (lambda r: r["part_labels"][0]["measures"]["linear"]["random"].pop(), "a row for each of 7 parts"),
    "site": (lambda r: r["weight_paths"]["paths"][0].update(target="resid.9"), "names the site 'resid.9'"),
    "kind": (lambda r: r["weight_paths"]["paths"][0].update(kind="wire"), "a path is one of stream, ov, qk, mlp"),
    "scores": (
        lambda r: r["weight_paths"]["paths"][1]["score"].pop(),
        "the scores of MLP 2 should be a matrix of 7 × 7",
    ),
    "touch": (lambda r: r["weight_paths"]["touches"][0]["score"].pop(), "head 2.0, value"),
    "hit": (lambda r: r["preimages"]["partitions"][0]["queries"][0]["whole"]["state"].pop(), "query 0 at resid.1"),
    "state": (lambda r: r["preimages"]["states"][5].update(at=99), "state 5 is of token 99"),
    "level": (lambda r: r["preimages"]["default"].update(cosine=0.123), "the default cosine 0.123"),
    "query": (lambda r: r["preimages"]["partitions"][1]["queries"].pop(), "each of 4 queries"),
    "method": (lambda r: r["patching"]["suites"][0]["methods"][0].pop("parts"), "'patching' lacks 'parts'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_section_that_contradicts_itself_is_refused(name: str, report: dict[str, Any]) -> None:
    damage, words = BROKEN[name]
    damage(report)
    with pytest.raises(ValueError, match=re.escape(words)):
        render(report)
