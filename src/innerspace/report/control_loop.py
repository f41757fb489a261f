"""The section on the control loop: requests met agent by agent, beside one temperature for all and random vectors."""

from collections.abc import Mapping, Sequence
from typing import Any

from innerspace.report.blocks import Block, Cell, Figure, Palette, Panel, Section, Table
from innerspace.report.numerals import estimate, interval, number, phrase, spoken
from innerspace.report.plots import Chart, Scale

Request = Mapping[str, Any]

_WAYS = {
    "loop": "the loop",
    "curve": "one temperature for all, from the mean curve",
    "random": "the loop, random vectors",
}
_UNITS = {"speed": "m/s", "acceleration": "m/s²", "heading": "°"}
_STYLES = {"loop": "thick {}", "curve": "thin {}", "random": "random"}


def control_loop(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """How many agents are brought to what is asked of them, how far off the others are, and at what price."""
    given = report["control_loop"]
    requests: Sequence[Request] = given["requests"]
    features = list(dict.fromkeys(row["feature"] for row in requests))
    blocks: list[Block] = [
        _figure(feature, [row for row in requests if row["feature"] == feature], palette, given, note)
        for feature in features
    ]
    if modes := given["modes"]:
        blocks.append(_modes(modes, palette))
    blocks.append(_table(requests, palette))
    if paired := given["paired"]:
        blocks.append(_prices(paired, palette))
    lead = "Can every agent be given the temperature that it needs, so that its forecast does what is asked?"
    return Section("control-loop", "Control loop", lead, tuple(blocks))


def _figure(feature: str, rows: Sequence[Request], palette: Palette, given: Mapping[str, Any], note: str) -> Figure:
    hue, unit = palette[feature], rows[0]["unit"]
    plain = [row for row in rows if row["mode"] == "additive"]
    x = Scale.over([row["request"] for row in plain])
    panels = (
        _panel("Reached", "share", "of the agents with a request", plain, hue, x),
        _panel("Missed by", "error", f"median, in {'percentage points' if unit == '%' else unit}", plain, hue, x),
        _panel("Change of the hidden states", "change", "median, as a share of their norm", plain, hue, x),
    )
    shown = dict.fromkeys(row["way"] for row in plain)
    key = tuple((f"line {_STYLES[way].format(hue)}", _WAYS[way]) for way in shown)
    caption = (
        f"Requested {feature} [{unit}] and what came of it: {given['samples']} held-out agents, at most "
        f"{given['passes']} passes, and a change of at most {number(given['share'], 2)} times the states' norm; "
        f"tinted are 95 % intervals. {note}"
    )
    return Figure(caption, panels, f"{feature}: requests", hue, key)


def _panel(title: str, what: str, note: str, rows: Sequence[Request], hue: str, x: Scale) -> Panel:
    unit = rows[0]["unit"]
    values = [end for row in rows for end in (estimate(row["reached"]) if what == "share" else [row[what][1]])]
    chart = Chart(x, Scale.over(values, include=0.0), x_label=f"requested [{unit}]")
    for way in dict.fromkeys(row["way"] for row in rows):
        for own in _repetitions([row for row in rows if row["way"] == way]):
            asked, style = [row["request"] for row in own], _STYLES[way].format(hue)
            if what == "share":
                shares = [estimate(row["reached"]) for row in own]
                chart.band(asked, [share.low for share in shares], [share.high for share in shares], style)
                heights = [share.mean for share in shares]
                said = [phrase(share) for share in shares]
            else:
                heights = [row[what][1] for row in own]
                said = [number(height) for height in heights]
            chart.line(asked, heights, style)
            tips = [
                f"{number(request, 2, sign=True)} {unit}\n{title.lower()} {words}\n{_WAYS[way]}"
                for request, words in zip(asked, said, strict=True)
            ]
            chart.dots(asked, heights, tips, "random" if way == "random" else hue)
    return Panel(title, chart.svg(f"{title} by request, {note}"), note)


def _repetitions(rows: Sequence[Request]) -> list[list[Request]]:
    """Rows of one way as lines over the requests: several random vectors give several lines."""
    lines = list[list[Request]]()
    for row in sorted(rows, key=lambda row: row["request"]):
        free = next((line for line in lines if line[-1]["request"] != row["request"]), None)
        if free is None:
            lines.append([row])
        else:
            free.append(row)
    return lines


def _modes(modes: Sequence[Mapping[str, Any]], palette: Palette) -> Table:
    """How linearly the ways of steering act on speed, and what can still be driven."""
    head = (
        "way of steering",
        "Pearson",
        "R²",
        "response within the budget",
        "feasible at τ = 0",
        "feasible at both ends",
    )
    rows = tuple(
        (
            Cell(row["mode"], hue=palette["speed"]),
            *(Cell(number(estimate(row[key]).mean), interval(estimate(row[key]))) for key in ("pearson", "r2")),
            Cell(" to ".join(f"{number(end, 2, sign=True)} %" for end in row["span"])),
            Cell(f"{100 * row['feasible'][len(row['feasible']) // 2]:.0f} %"),
            Cell(" and ".join(f"{100 * row['feasible'][end]:.0f} %" for end in (0, -1))),
        )
        for row in modes
    )
    caption = (
        "Ways of steering speed over the temperatures that the budget allows: additive, the same with the norm kept, "
        "and turned along an arc. Behind a layer norm the first two are the same."
    )
    return Table(caption, tuple(map(Cell, head)), rows)


def _table(rows: Sequence[Request], palette: Palette) -> Table:
    head = (
        *("request", "by", "reached", "missed by", "τ", "change", "passes"),
        *("shift of minADE [m]", "else moved, mean", "feasible (unsteered)", "not reached because"),
    )
    lines = tuple(
        (
            Cell(f"{row['feature']} {number(row['request'], 2, sign=True)} {row['unit']}", hue=palette[row["feature"]]),
            Cell(_WAYS[row["way"]], row["mode"] if row["way"] == "loop" else ""),
            Cell(number(estimate(row["reached"]).mean), interval(estimate(row["reached"]))),
            *(Cell(number(row[name][1]), _ends(row[name])) for name in ("error", "tau", "change")),
            Cell(number(row["passes"])),
            Cell(number(row["shift"])),
            Cell(", ".join(f"{name} {number(value, 2)} {_UNITS[name]}" for name, value in row["others"].items())),
            Cell(f"{_percent(row['feasible'])} ({_percent(row['feasible_before'])})"),
            Cell(_reasons(row["outcomes"])),
        )
        for row in rows
    )
    return Table(
        "Every request: medians, and quartiles below them.", tuple(map(Cell, head)), lines, fold="Every request"
    )


def _prices(rows: Sequence[Mapping[str, Any]], palette: Palette) -> Table:
    """The vector against random ones at equal success."""
    head = ("request", "agents", "change", "by a random vector", "shift of minADE [m]", "by a random vector")
    lines = tuple(
        (
            Cell(f"{row['feature']} {number(row['request'], 2, sign=True)} {row['unit']}", hue=palette[row["feature"]]),
            Cell(number(row["rows"])),
            *(Cell(number(row[who][what])) for what in ("change", "shift") for who in ("vector", "random")),
        )
        for row in rows
    )
    caption = (
        "At equal success: agents that the vector and a random direction both brought to the target, and how far each "
        "had to move the hidden states (as a share of their norm) and the forecast."
    )
    return Table(caption, tuple(map(Cell, head)), lines)


def _reasons(outcomes: Mapping[str, float]) -> str:
    others = {name: share for name, share in outcomes.items() if share and name != "reached"}
    return ", ".join(f"{spoken(name)} {_percent(share)}" for name, share in others.items())


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _ends(quartiles: Sequence[float | None]) -> str:
    low, _, high = quartiles
    return "" if low == high else f"{number(low)} to {number(high)}"
