"""The section on explanations: scores beside controls, corrected p values, nothing chosen by its score."""

import copy
from typing import Any

import pytest

from innerspace.jobs.dictionaries.explained import headlines, remarks
from innerspace.measure.estimate import Estimate
from innerspace.report.blocks import Figure, Palette, Table
from innerspace.report.explanations import FIRST, explanations
from innerspace.report.numerals import plain
from innerspace.report.page import render

pytest.importorskip("jinja2", reason="the page needs the extra 'report'")
WAYS = ("explanation", "shuffled", "random", "frequent")


def value(mean: float, half: float = 0.05) -> Estimate:
    return Estimate(mean, mean - half, mean + half)


def kind(name: str, score: float) -> dict[str, Any]:
    by_way = {way: value(score if way == "explanation" else 0.5) for way in WAYS}
    measures = {"auroc": by_way, "balanced_accuracy": by_way}
    return {
        "kind": name,
        "latents": 100,
        "eligible": 60,
        "drawn": 20,
        "explained": 18,
        "asked": 400,
        "unanswered": 3,
        "unmarked": 4,
        "scores": {"detection": measures, "fuzzing": measures},
        "by_band": {task: {way: [one] * 5 for way, one in by_way.items()} for task in ("detection", "fuzzing")},
        "near": by_way,
        "values": 2.5,
    }


def row(one: str, other: str, holm: float | None) -> dict[str, Any]:
    found = {"one": one, "other": other, "task": "detection", "difference": value(0.1), "p": holm}
    return found | {"holm": holm, "benjamini_hochberg": holm}


def section() -> dict[str, Any]:
    scores = {"detection": value(0.8), "fuzzing": value(0.7), "controls": dict.fromkeys(WAYS[1:], 0.5)}
    latents = [
        {
            "kind": "local",
            "dictionary": "d",
            "latent": i,
            "text": f"token “ w{i}”",
            "threshold": 0.5 * (i == 1),
            "texts": ["a", "b", "a"],
            **scores,
        }
        for i in range(FIRST + 3)
    ]
    return {
        "bands": ["0–20 %", "20–40 %", "40–60 %", "60–80 %", "80–100 %"],
        "seeds": 3,
        "judged": 4,
        "kinds": [kind("local", 0.8), kind("e2e", 0.6)],
        "comparisons": [row("e2e", "local", 0.01), row("e2e", "local", 0.4)],
        "controls": [row("local", "local: shuffled", 0.02), row("local", "local: random", None)],
        "latents": latents,
        "missing": ["e2e: 2 of those drawn could not be judged: it is on in too few documents."],
    }


def test_scores_stand_beside_their_controls() -> None:
    palette = Palette.of(["local", "e2e"])
    blocks = explanations(plain({"explanations": section()}), palette, "").blocks
    tables, (figure,) = (
        [one for one in blocks if isinstance(one, Table)],
        [one for one in blocks if isinstance(one, Figure)],
    )
    scores, tests, controls, first, every = tables
    assert len(scores.rows) == 8
    assert [rows[0].text for rows in scores.rows] == ["local", "", "", "", "e2e", "", "", ""]
    assert scores.rows[0][2].text == "0.80"
    assert "local 2.5" in scores.caption
    assert [panel.title for panel in figure.panels] == [
        "local: detection",
        "local: fuzzing",
        "e2e: detection",
        "e2e: fuzzing",
    ]
    # what is clear after Holm is framed, and nothing else
    assert [[cell.marked for cell in rows] for rows in tests.rows] == [[False] * 4 + [True, False], [False] * 6]
    assert controls.fold == "All 2 tests next to controls"
    # the first that were drawn, and all of them behind a fold
    assert len(first.rows) == FIRST
    assert first.rows[0][1].note == "2 wordings from 3 seeds"
    assert first.rows[1][1].note == "its uppermost tenth, above 0.50; 2 wordings from 3 seeds"
    assert len(every.rows) == FIRST + 3
    assert every.fold


def test_words_follow_from_the_numbers() -> None:
    part = section()
    assert [line["value"] for line in headlines(part)] == ["0.80", "0.60"]
    words = remarks(part, "documents", "Rules", "Rules")
    assert (
        "local: 60 of 100 latents were on in enough documents, 20 of these were drawn, 18 explained and judged."
        in words
    )
    assert "local: 3 of 400 questions got no answer that counts, and were left out." in words
    assert any("latents of e2e are explained better than those of local: by +0.10" in line for line in words)
    won = "better than their controls (Holm, 0.05) in 1 of 2 tests of detection, 0 of 0 tests of fuzzing."
    assert any(line.endswith(won) for line in words)
    assert any(line.startswith("e2e: 4 of 18 latents have no score of fuzzing") for line in words)
    assert words[-1].startswith("e2e: 2 of those drawn")
    assert words[-2].startswith(f"1 of the {FIRST + 3} latents are on at more than half of the positions")
    for one in part["comparisons"]:
        one["holm"] = 0.3
    assert any("No difference between kinds is clear among 2 tests" in line for line in remarks(part, "d", "R", "R"))


def test_the_page_is_drawn_and_a_missing_field_is_named() -> None:
    report = {"title": "t", "question": "q", "headlines": [], "remarks": [], "explanations": section()}
    page = render(report)
    assert page == render(report)
    assert "Explanations" in page
    nothing = copy.deepcopy(report)
    for one in nothing["explanations"]["kinds"]:
        del one["scores"]
    nothing["explanations"] |= {"comparisons": [], "controls": [], "latents": []}
    assert 'id="explanations"' in render(nothing)
    broken = copy.deepcopy(report)
    del broken["explanations"]["bands"]
    with pytest.raises(ValueError, match="section 'explanations' lacks 'bands'"):
        render(broken)
