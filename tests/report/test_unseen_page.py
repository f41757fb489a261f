"""The section on unseen data: what is drawn, what is left out, and that numbers are the given ones."""

import re
from typing import Any

import pytest

from innerspace.report.page import render
from report.mock import around

pytest.importorskip("jinja2", reason="the page needs the extra 'report'")

METRICS = ("min_fde", "min_ade", "brier_min_fde", "miss_rate", "waymo_miss_rate", "map")


def row(shift: str, errors: dict[str, float], closed: float | None, **changes: Any) -> dict[str, Any]:
    """A shift under which the methods end up with these errors."""
    methods = {method: {name: around(error, 0.125) for name in METRICS} for method, error in errors.items()}
    base = errors["uncontrolled"]
    share = None if closed is None else around(closed, 0.0625)
    return {
        "shift": shift,
        "seen": False,
        "factor": 0.5,
        "wanted": -50.0,
        "tau": -0.48,
        "reached": True,
        "oracle_tau": -0.5,
        "rows": 600,
        "complete": 0.97,
        "methods": methods,
        "against": {
            method: {name: around(error - base, 0.25) for name in METRICS}
            for method, error in errors.items()
            if method != "uncontrolled"
        },
        "against_rescaled": {name: around(errors["controlled"] - errors["rescaled"], 0.25) for name in METRICS},
        "closed": {"controlled": share, "rescaled": share, "random": share},
    } | changes


def report() -> dict[str, Any]:
    same = dict.fromkeys(("uncontrolled", "controlled", "rescaled", "random", "oracle"), 1.5)
    half = {"uncontrolled": 12.5, "controlled": 2.25, "rescaled": 1.125, "random": 11.75, "oracle": 2.0}
    return {
        "title": "Unseen",
        "unseen": {
            "rows": [
                row("no shift", same, None, wanted=0.0, tau=0.0, oracle_tau=0.0),
                row("speed × 0.5", half, 0.875),
                row("20 Hz, not told", half, -1.5, seen=True, reached=False),
            ],
            "vector": {"feature": "speed", "method": "mean_difference", "site": "agent.2"},
            "horizon": 6.0,
            "randoms": 5,
            "replicates": 300,
        },
        "notes": {"unseen": "A note of the split."},
    }


@pytest.fixture(scope="module")
def page() -> str:
    return render(report())


def test_every_shift_and_method_is_there(page: str) -> None:
    assert page.count('<section id="unseen"') == 1
    assert 'id="others"' not in page
    assert "A note of the split." in page
    # 3 shifts × (5 methods; 4 differences to no control and one to rescaling)
    assert page.count('<th scope="row"') >= 3 + 15 + 15
    assert "controlled − rescaled" in page
    assert "end of the range" in page
    assert "history changed" in page


def test_only_shifts_with_a_gap_are_drawn(page: str) -> None:
    charts = re.findall(r'<svg class="chart".*?</svg>', page, re.DOTALL)
    assert len(charts) == 3
    shares, *errors = charts
    assert "no shift" not in shares
    assert shares.count("<circle") == 6
    assert "control" not in shares.split("aria-label")[0]
    assert "speed × 0.5\ncontrolled: 87.5 % (81.2 to 93.8)" in shares
    assert "20 Hz, not told\ncontrolled: −150 % (−156 to −144)" in shares
    assert all(chart.count("<circle") == 5 for chart in errors)


def test_numbers_are_the_given_ones(page: str) -> None:
    assert "−150 %" in page
    assert "12.5" in page
    assert "−10.2" in page  # 2.25 − 12.5
    assert "mean difference, agent.2" in page


def test_without_any_gap_there_is_a_table_only() -> None:
    given = report()
    del given["unseen"]["rows"][1:]
    page = render(given)
    assert 'class="chart"' not in page.split("<main")[1].split("</main>")[0]
    assert "no shift" in page


def test_a_missing_field_is_named() -> None:
    given = report()
    del given["unseen"]["rows"][0]["wanted"]
    with pytest.raises(ValueError, match="'unseen' lacks 'wanted'"):
        render(given)
