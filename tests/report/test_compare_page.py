"""The section on decompositions compared: who is best and how surely, what is said of it, and what is missing."""

import copy
from typing import Any

import pytest

from innerspace.jobs.comparison.comparing_words import headlines, remarks
from innerspace.report.blocks import Figure, Palette, Table
from innerspace.report.compare import best_of, comparison, level_with
from innerspace.report.page import render


def value(mean: float, half: float = 0.1) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def entrant(name: str, kind: str, divergence: float, disentangle: float, **more: Any) -> dict[str, Any]:
    points = [
        {"parts": parts, "coordinates": parts, "bits": value(8.0 * parts, 0), "divergence": value(5.0 - parts)}
        for parts in (0, 1, 4)
    ]
    measures = {"divergence": value(divergence), "disentangle": value(disentangle, 0.05), "slope": value(0.5)}
    score = {"name": "speed", "cause": value(0.9), "isolate": value(0.8), "disentangle": value(0.85)}
    return {
        "name": name,
        "kind": kind,
        "seeds": 3,
        "parts": 4,
        "coordinates": 4,
        "largest": 1,
        "on": 4.0,
        "measures": measures,
        "curve": points,
        "labels": [],
        "steered": [],
        "isolated": [{**score, "parts": 1.5, "coordinates": 1.5}],
        "chance_angle": 80.0,
    } | more


def section(**more: Any) -> dict[str, Any]:
    entrants = [
        entrant("one", "by labels", 1.0, 0.9),
        entrant("two", "components", 1.15, 0.52),
        entrant("three", "components", 3.0, 0.7, largest=2),
        entrant("chance", "random", 3.05, 0.55),
    ]
    return {
        "site": "resid.1",
        "output": "next token",
        "documents": "documents",
        "judged": 9,
        "bits": 8,
        "budget": 128.0,
        "seeds": 3,
        "tokens": 5000,
        "width": 4,
        "variables": [],
        "entrants": entrants,
    } | more


def test_the_best_and_who_is_level_with_it() -> None:
    entrants = section()["entrants"]
    best = best_of(entrants, "divergence")
    assert best is not None
    assert best["name"] == "one"
    # 1.05 … 1.25 reaches into 0.9 … 1.1
    assert level_with(entrants, "divergence") == ["two"]
    assert level_with(entrants, "disentangle") == []
    assert best_of(entrants, "angle") is None


def test_headlines_and_remarks_follow_from_the_numbers() -> None:
    lines = {line["label"]: line for line in headlines(section())}
    assert lines["best told in the same bits"]["value"] == "one"
    assert lines["best told in the same bits"]["note"].endswith("not clearly apart from two")
    assert lines["best isolated"]["note"].endswith("clearly apart from all others")
    words = remarks(section())
    assert any(
        line.startswith("By divergence not clearly better than chance") and line.endswith(": three.") for line in words
    )
    assert any(
        "slope not clearly better than chance" in line and line.endswith("one, two and three.") for line in words
    )
    # chance itself is among those at a half
    assert any("exchanging nothing" in line and line.endswith("two and chance.") for line in words)
    assert any(line.startswith("Parts of three have several coordinates") for line in words)
    assert any("5,000 tokens" in line for line in words)
    assert not any("Fewer than three seeds" in line for line in words)
    assert any("Fewer than three seeds" in line for line in remarks(section(seeds=2)))


def test_who_saw_labels_is_told() -> None:
    given = section()
    assert any(line.startswith("Labels were seen by one alone") for line in remarks(given))
    given["entrants"][0]["kind"] = "components"
    assert not any(line.startswith("Labels were seen") for line in remarks(given))


def test_a_seed_that_finds_something_else_is_told() -> None:
    given = section()
    given["entrants"][0]["measures"]["angle"] = value(79.0)
    given["entrants"][1]["measures"]["angle"] = value(20.0)
    given["entrants"][3]["measures"]["angle"] = value(80.0)
    assert "Another seed of one finds hardly more of the same parts than chance does." in remarks(given)


def test_the_best_is_framed_and_the_level_marked() -> None:
    palette = Palette.of(["by labels", "components", "random"])
    blocks = comparison({"comparison": section()}, palette, "").blocks
    table = next(block for block in blocks if isinstance(block, Table))
    divergence = [cell.text for cell in table.head].index("divergence")
    column = [row[divergence] for row in table.rows]
    assert [cell.marked for cell in column] == [True, False, False, False]
    assert [cell.note.startswith("≈") for cell in column] == [False, True, False, False]
    figures = [block for block in blocks if isinstance(block, Figure)]
    assert [panel.title for panel in figures[0].panels] == ["by labels", "components", "random"]
    # what nobody was measured by has no panel
    assert [panel.title for panel in figures[1].panels] == ["slope", "disentangle"]


def test_the_page_is_drawn_and_a_missing_field_is_named() -> None:
    report = {"title": "t", "question": "q", "headlines": [], "remarks": [], "comparison": section()}
    page = render(report)
    assert "Decompositions compared" in page
    assert page == render(report)
    broken = copy.deepcopy(report)
    del broken["comparison"]["budget"]
    with pytest.raises(ValueError, match="section 'comparison' lacks 'budget'"):
        render(broken)
