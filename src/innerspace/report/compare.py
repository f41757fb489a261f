"""The section on decompositions compared: one table, what is told in how many bits, and every other measure as dots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from innerspace.report.blocks import Block, Cell, Figure, Palette, Panel, Section, Table
from innerspace.report.numerals import Estimate, average, estimate, interval, number, phrase
from innerspace.report.plots import NARROW, Chart, Scale
from innerspace.report.runs import SHADES, entry

Entrant = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A column: its title, its unit, which end is better, the question that it answers, and a line to compare with."""

    title: str
    unit: str
    better: Literal["less", "more"]
    asks: str
    null: float | None = None
    log: bool = False


MEASURES: Mapping[str, Measure] = {
    "divergence": Measure("divergence", "nats", "less", "best told in the same bits", log=True),
    "best_part": Measure("best part", "", "more", "best read from one part"),
    "needed": Measure("parts needed", "", "less", "read from few parts", log=True),
    "slope": Measure("slope", "", "more", "best steered by one part", null=0.0),
    "linearity": Measure("R²", "", "more", "steered linearly"),
    "side": Measure("side effects", "", "less", "steered alone", null=0.5),
    "cause": Measure("cause", "", "more", "carries the variable", null=0.0),
    "isolate": Measure("isolate", "", "more", "carries no other", null=1.0),
    "disentangle": Measure("disentangle", "", "more", "best isolated", null=0.5),
    "angle": Measure("angle", "°", "less", "found again by another seed"),
    "seconds": Measure("seconds", "s", "less", "quick to fit", log=True),
    "microseconds": Measure("µs a token", "µs", "less", "quick to use", log=True),
    "flops": Measure("operations", "", "less", "cheap to use", log=True),
}
"""What is measured, in the order of the table."""

_SHARES = ("best_part", "cause", "isolate", "disentangle")
_COSTS = ("seconds", "microseconds", "flops")

_DOTS = ("best_part", "needed", "slope", "linearity", "side", "cause", "isolate", "disentangle", "angle", "seconds")


def comparison(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """All entrants by all measures, the curves of rate and distortion, and the details by label and variable.

    ``comparison`` holds ``site``, ``output`` (what the divergence is of), ``bits`` (of a coordinate), ``budget`` (bits
    of a token), ``width`` of the site, ``variables`` (``name``, ``rows``, ``whole``: the effect of the whole state) and
    ``entrants``, each of

    * ``name``, ``kind`` (what shares a color), ``seeds``, ``parts``, ``coordinates``, ``largest`` (of a part), ``on``
      (coordinates that are not zero, on average);
    * ``measures``: estimates by the keys of ``MEASURES``, any of which may be missing;
    * ``curve``: points of ``parts``, ``coordinates``, ``bits`` and ``divergence`` (estimates), from nothing told on;
    * ``labels``: ``name``, ``chance``, ``best``, ``together``, ``whole``, ``needed`` and ``reached``;
    * ``steered``: ``name``, ``slope``, ``r2``, ``side`` and ``random``;
    * ``isolated``: ``name``, ``parts``, ``coordinates``, ``cause``, ``isolate`` and ``disentangle``;
    * ``chance_angle``: the angle that chance gives, or null.
    """
    given = report["comparison"]
    entrants: Sequence[Entrant] = given["entrants"]
    hues = _hues(entrants, palette)
    blocks: list[Block] = [*_overview(given, hues, note), _rates(given, hues, note), _dots(entrants, hues)]
    for field, caption, fold, columns in _DETAILS:
        if any(one[field] for one in entrants):
            blocks.append(_details(entrants, hues, field, caption, fold, columns))
    lead = (
        f"Which decomposition of the hidden states at {given['site']} serves which purpose? All by the same measures."
    )
    return Section("comparison", "Decompositions compared", lead, tuple(blocks))


def best_of(entrants: Sequence[Entrant], key: str) -> Entrant | None:
    """The entrant that is best by a measure; None where none has it."""
    known = [one for one in entrants if _value(one, key).mean is not None]
    sign = 1 if MEASURES[key].better == "less" else -1
    return min(known, key=lambda one: sign * (_value(one, key).mean or 0.0), default=None)


def level_with(entrants: Sequence[Entrant], key: str) -> list[str]:
    """The others whose interval overlaps that of the best."""
    best = best_of(entrants, key)
    if best is None:
        return []
    return [one["name"] for one in entrants if one is not best and _overlap(_value(one, key), _value(best, key))]


def _overlap(a: Estimate, b: Estimate) -> bool:
    if a.mean is None or b.mean is None:
        return False
    (low, high), (other_low, other_high) = (
        (item.mean if item.low is None else item.low, item.mean if item.high is None else item.high) for item in (a, b)
    )
    assert low is not None
    assert high is not None
    assert other_low is not None
    assert other_high is not None
    return low <= other_high and other_low <= high


def _value(one: Entrant, key: str) -> Estimate:
    return estimate(one["measures"].get(key))


def _hues(entrants: Sequence[Entrant], palette: Palette) -> dict[str, str]:
    """The style class of every entrant: the color of its kind, shaded within it."""
    hues = dict[str, str]()
    for one in entrants:
        own = [other["name"] for other in entrants if other["kind"] == one["kind"]]
        place = own.index(one["name"])
        shade = SHADES - 1 if len(own) == 1 else round((SHADES - 1) * (place + 1) / len(own))
        hues[one["name"]] = f"{palette[one['kind']]} shade-{shade}"
    return hues


def _overview(given: Mapping[str, Any], hues: Mapping[str, str], note: str) -> list[Table]:
    """What it is worth, and, lest the table be wider than a page, by itself what it costs."""
    entrants: Sequence[Entrant] = given["entrants"]
    keys = [key for key in MEASURES if any(key in one["measures"] for one in entrants)]
    sides = [[key for key in keys if (key in _COSTS) == cost] for cost in (False, True)]
    best = {key: best_of(entrants, key) for key in keys}
    level = {key: level_with(entrants, key) for key in keys}

    def cell(one: Entrant, key: str) -> Cell:
        value, measure = _value(one, key), MEASURES[key]
        if value.mean is None:
            return Cell("")
        near = one["name"] in level[key]
        tiny = key in _SHARES and abs(value.mean) < 0.005
        ends = "" if tiny else interval(value, 2).replace(" to ", "…")
        ends = f"≈ {ends}".strip() if near and ends else ends
        words = f"{one['name']}\n{measure.title} {phrase(value, measure.unit)}"
        words += "\nbest" if one is best[key] else "\nnot clearly apart from the best" if near else ""
        return Cell("0.00" if tiny else number(value.mean, 2), ends, words, marked=one is best[key])

    def table(caption: str, own: Sequence[str]) -> Table:
        rows = tuple(
            (Cell(one["name"], _shape(one), hue=hues[one["name"]]), *(cell(one, key) for key in own))
            for one in entrants
        )
        head = (Cell("decomposition"), *(Cell(MEASURES[key].title, _arrow(key)[:4]) for key in own))
        return Table(caption, head, rows)

    caption = (
        f"Every decomposition by every measure; means over labels and variables. Framed: the best; ≈: its interval "
        f"overlaps that of the best; below each title, which end is better. Divergence: of the {given['output']}, in "
        f"nats, where {number(given['budget'])} bits are spent on a token, a geometric mean over seeds. Best part: "
        f"balanced accuracy of reading a label from it. Slope: what a step of one class-mean gap along one part does, "
        f"as a share of what exchanging the whole state does; R²: how straight. Disentangle: the mean of cause and "
        f"isolate; ½ is no finding. Angle: between matched parts of two seeds, in degrees. {note}"
    )
    costs = "What it costs: seconds to fit, and for each token microseconds and operations to encode and decode."
    return [table(words, own) for words, own in ((caption, sides[0]), (costs, sides[1])) if own]


def _shape(one: Entrant) -> str:
    """How many parts there are, and how many coordinates are on at once where not all are."""
    sizes = f"{one['parts']} parts" + (f" of {one['largest']}" if one["largest"] > 1 else "")
    return sizes if one["on"] > 0.99 * one["coordinates"] else f"{sizes}, {number(one['on'])} on"


def _arrow(key: str) -> str:
    return "less is better" if MEASURES[key].better == "less" else "more is better"


def _rates(given: Mapping[str, Any], hues: Mapping[str, str], note: str) -> Figure:
    entrants: Sequence[Entrant] = given["entrants"]
    told = [[point for point in one["curve"] if point["bits"]["mean"] > 0] for one in entrants]
    bits = [point["bits"]["mean"] for own in told for point in own]
    values = [point["divergence"]["mean"] for own in told for point in own]
    nothing = average([estimate(one["curve"][0]["divergence"]).mean for one in entrants])
    low = [point["divergence"]["low"] for own in told for point in own]
    x, y = Scale.over(bits, log=True), Scale.over([*values, *low, nothing], log=True)
    panels = list[Panel]()
    for kind in dict.fromkeys(one["kind"] for one in entrants):
        chart = Chart(x, y, x_label="bits a token", y_label="divergence (nats)", width=NARROW)
        chart.rule(given["budget"], "null base")
        if nothing is not None and nothing > 0:
            chart.rule(nothing, "null base", upright=False)
        for one, own in zip(entrants, told, strict=True):
            # the others stand behind, to compare with
            if one["kind"] != kind:
                chart.line([p["bits"]["mean"] for p in own], [p["divergence"]["mean"] for p in own], "base thin")
        for one, own in zip(entrants, told, strict=True):
            if one["kind"] == kind:
                xs, style = [point["bits"]["mean"] for point in own], hues[one["name"]]
                found = [estimate(point["divergence"]) for point in own]
                chart.band(xs, [item.low for item in found], [item.high for item in found], style)
                chart.line(xs, [item.mean for item in found], style)
                tips = [_tip(one, point) for point in own]
                chart.dots(xs, [item.mean for item in found], tips, style)
        own = [one["name"] for one in entrants if one["kind"] == kind]
        panels.append(Panel(kind, chart.svg(f"Divergence by bits a token: {', '.join(own)}"), ", ".join(own)))
    key = tuple((f"mark swatch {hues[one['name']]}", one["name"]) for one in entrants)
    caption = (
        f"How far the {given['output']} moves when only the first parts of a hidden state are told, each coordinate "
        f"in {given['bits']} bits, and all else is its mean. The first parts are those whose loss the output feels "
        f"most, on data to fit to. First seed, 95 % intervals; all other decompositions stand behind. Dashed: the "
        f"budget, and the divergence if nothing is told. {note}"
    )
    return Figure(caption, tuple(panels), "Rate and distortion", key=key)


def _tip(one: Entrant, point: Mapping[str, Any]) -> str:
    return (
        f"{one['name']}: {point['parts']} parts, {point['coordinates']} coordinates\n"
        f"{number(point['bits']['mean'])} bits\ndivergence {phrase(estimate(point['divergence']), 'nats')}"
    )


def _dots(entrants: Sequence[Entrant], hues: Mapping[str, str]) -> Figure:
    names = [one["name"] for one in entrants]
    panels = list[Panel]()
    for key in _DOTS:
        found = [_value(one, key) for one in entrants]
        known = [value for item in found for value in item if value is not None]
        if not known:
            continue
        measure = MEASURES[key]
        log = measure.log and min(item.mean for item in found if item.mean is not None) > 0
        scale = Scale.over([item.mean for item in found], log=True) if log else Scale.over(known, include=measure.null)
        chart = Chart(scale, Scale.of(names), x_label=_arrow(key), left=118, width=300, height=70 + 17 * len(names))
        if measure.null is not None and not log:
            chart.rule(measure.null, "null base")
        for row, (one, item) in enumerate(zip(entrants, found, strict=True)):
            if item.mean is None:
                continue
            style = hues[one["name"]]
            if item.low is not None and item.high is not None:
                chart.whisker(max(item.low, scale.low), min(item.high, scale.high), row, style)
            tip = f"{one['name']}\n{measure.title} {phrase(item, measure.unit)}"
            chart.dots([item.mean], [float(row)], [tip], f"mark {style}")
        panels.append(Panel(measure.title, chart.svg(f"{measure.title} by decomposition"), measure.asks))
    caption = (
        "Every measure, with 95 % intervals. Dashed: no finding (a slope of 0, side effects as large as the effect, "
        "the scores of exchanging nothing)."
    )
    return Figure(caption, tuple(panels), "Reading, steering, isolating, finding again")


_DETAILS: tuple[tuple[str, str, str, Mapping[str, str]], ...] = (
    (
        "labels",
        "Balanced accuracy of reading every label from the best part, from all parts that are read together, and from "
        "the hidden state itself; parts needed for 95 % of what that tells beyond chance (twice those that were tried, "
        "where they never do), and the share of splits in which they do.",
        "Every label",
        {"best": "best part", "together": "together", "whole": "whole state", "needed": "needed", "reached": "reached"},
    ),
    (
        "steered",
        "Steering every variable of two values along its best part, in steps as long as the plain mean difference.",
        "Every variable, steered",
        {"slope": "slope", "r2": "R²", "side": "side effects", "random": "slope, random direction"},
    ),
    (
        "isolated",
        "Cause and isolate scores of every variable, and how many parts were chosen for it, mean over seeds.",
        "Every variable, exchanged",
        {
            "cause": "cause",
            "isolate": "isolate",
            "disentangle": "disentangle",
            "parts": "parts",
            "coordinates": "coordinates",
        },
    ),
)


def _details(
    entrants: Sequence[Entrant],
    hues: Mapping[str, str],
    field: str,
    caption: str,
    fold: str,
    columns: Mapping[str, str],
) -> Table:
    names = list(dict.fromkeys(item["name"] for one in entrants for item in one[field]))
    rows = tuple(
        (Cell(name), Cell(one["name"], hue=hues[one["name"]]), *(entry(item[key], 2) for key in columns))
        for name in names
        for one in entrants
        for item in one[field]
        if item["name"] == name
    )
    head = (Cell("label" if field == "labels" else "variable"), Cell("decomposition"), *map(Cell, columns.values()))
    return Table(caption, head, rows, fold=fold)
