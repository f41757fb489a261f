"""The section on calibration: how much of a feature a temperature buys, for each method, seed and control."""

from collections.abc import Mapping, Sequence
from typing import Any

from innerspace.report.blocks import Cell, Figure, Palette, Panel, Section, Table
from innerspace.report.numerals import MISSING, Estimate, average, estimate, number, phrase, spoken
from innerspace.report.plots import NARROW, WIDTH, Chart, Scale

Curve = Mapping[str, Any]

_QUALITIES = (("pearson", "r"), ("r2", "R²"), ("straightness", "straightness"))


def seeds_phrase(rows: Sequence[Mapping[str, Any]]) -> str:
    """``1 seed``, ``3 seeds``."""
    count = len({row["seed"] for row in rows})
    return f"{count} seed{'s' if count != 1 else ''}"


def calibration(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """One row of charts for each feature and measure, one chart for each method, and every curve's numbers."""
    curves = report["calibration"]
    subjects = list(dict.fromkeys((curve["feature"], curve["measure"]) for curve in curves))
    figures = [
        _figure([curve for curve in curves if (curve["feature"], curve["measure"]) == subject], palette, note)
        for subject in subjects
    ]
    lead = "How much change does a temperature τ buy, is it linear, and over which range?"
    return Section("calibration", "Calibration", lead, (*figures, _table(curves, palette)))


def _figure(curves: Sequence[Curve], palette: Palette, note: str) -> Figure:
    feature, measure = curves[0]["feature"], curves[0]["measure"]
    controls = [curve for curve in curves if curve["control"]]
    steered = [curve for curve in curves if not curve["control"]] or controls
    panels = list(dict.fromkeys(map(_panel_of, steered)))
    sites = list(dict.fromkeys(site for _, site in panels))
    width = WIDTH if len(panels) < 4 else NARROW
    x = Scale.over([tau for curve in curves for tau in curve["tau"]])
    y = Scale.over([end for curve in curves for item in curve["response"] for end in estimate(item)], include=0.0)

    def panel(name: tuple[str, str]) -> Panel:
        own = [curve for curve in steered if _panel_of(curve) == name]
        # a control that belongs to no method is shown with all of them
        beside = [curve for curve in controls if _panel_of(curve) == name or _panel_of(curve) not in panels]
        means = {key: average([curve[key] for curve in own]) for key, _ in _QUALITIES}
        qualities = " · ".join(f"{title} {number(means[key])}" for key, title in _QUALITIES)
        drawing = _chart(own, beside, x, y, palette[feature], width)
        return Panel(" · ".join(name) if len(sites) > 1 else name[0], drawing, qualities, palette[feature])

    shown = {curve["control"] for curve in controls}
    key = [("line thick " + palette[feature], "mean of seeds"), ("line thin " + palette[feature], "seed and interval")]
    key += [("line random", "random vectors")] if "random" in shown else []
    key += [("line negated", "negated vector")] if "negated" in shown else []
    caption = (
        f"Response of {_without_unit(measure)} to the temperature τ of the {feature} vector at {', '.join(sites)}: "
        f"{seeds_phrase(steered)} with 95 % intervals; r is Pearson's; tinted is the usable range of all seeds. {note}"
    )
    return Figure(
        caption, tuple(map(panel, panels)), f"{feature}: {_without_unit(measure)}", palette[feature], (*key, _RANGE)
    )


_RANGE = ("mark range", "usable range")


def _chart(own: Sequence[Curve], beside: Sequence[Curve], x: Scale, y: Scale, hue: str, width: int) -> str:
    first = own[0]
    unit = f" [{first['unit']}]" if first["unit"] else ""
    chart = Chart(x, y, x_label="temperature τ", y_label=_without_unit(first["measure"]) + unit, width=width)
    low = [curve["range"][0] for curve in own if curve["range"] and None not in curve["range"]]
    high = [curve["range"][1] for curve in own if curve["range"] and None not in curve["range"]]
    if low and max(low) < min(high):
        chart.shade(max(low), min(high))
    for curve in beside:
        _draw(chart, curve, str(curve["control"]))
    for curve in own:
        _draw(chart, curve, f"thin {hue}")
    if all(curve["tau"] == first["tau"] for curve in own):
        responses = zip(*(curve["response"] for curve in own), strict=True)
        means = [average([estimate(item).mean for item in items]) for items in responses]
        chart.line(first["tau"], means, f"thick {hue}")
        tips = [
            f"τ {number(tau, sign=True)}\n{_response(Estimate(mean), first)}, mean of {seeds_phrase(own)}"
            for tau, mean in zip(first["tau"], means, strict=True)
        ]
        chart.dots(first["tau"], means, tips, hue)
    title = f"{first['measure']} against temperature for the {first['feature']} vector, {first['method']}"
    return chart.svg(title)


def _draw(chart: Chart, curve: Curve, style: str) -> None:
    items, tau = [estimate(item) for item in curve["response"]], curve["tau"]
    chart.band(tau, [item.low for item in items], [item.high for item in items], style)
    chart.line(tau, [item.mean for item in items], style)
    who = f"{curve['control']} vector" if curve["control"] else spoken(curve["method"])
    tips = [
        f"τ {number(t, sign=True)}\n{_response(item, curve)}\n{who}, seed {curve['seed']}"
        for t, item in zip(tau, items, strict=True)
    ]
    chart.dots(tau, [item.mean for item in items], tips, f"small {style}")


def _table(curves: Sequence[Curve], palette: Palette) -> Table:
    head = (
        *("feature", "method", "site", "seed", "Pearson", "R²", "straightness", "slope per τ"),
        *("usable τ", "response there", "τ for a response"),
    )
    rows = tuple(
        (
            Cell(curve["feature"], curve["measure"], hue=palette[curve["feature"]]),
            Cell(spoken(curve["method"]), f"{curve['control']} control" if curve["control"] else ""),
            Cell(curve["site"]),
            Cell(number(curve["seed"])),
            *(Cell(number(curve[key])) for key, _ in _QUALITIES),
            Cell(_with_unit(curve["slope"], curve)),
            Cell(_ends(curve["range"])),
            Cell(_ends(curve["span"], curve["unit"])),
            Cell("; ".join(_inverse(entry, curve) for entry in curve["inverse"])),
        )
        for curve in curves
    )
    return Table("Every calibration curve.", tuple(map(Cell, head)), rows, fold="Every curve's numbers")


def _panel_of(curve: Curve) -> tuple[str, str]:
    return spoken(curve["method"]), curve["site"]


def _response(item: Estimate, curve: Curve) -> str:
    return phrase(item, curve["unit"], sign=True)


def _with_unit(value: float | None, curve: Curve) -> str:
    return f"{number(value, sign=True)} {curve['unit']}".rstrip()


def _inverse(entry: Mapping[str, Any], curve: Curve) -> str:
    return f"{_with_unit(entry['response'], curve)}: {number(entry['tau'], sign=True)}"


def _ends(pair: Sequence[float | None] | None, unit: str = "") -> str:
    if not pair:
        return MISSING
    return f"{number(pair[0], 2, sign=True)} to {number(pair[1], 2, sign=True)} {unit}".rstrip()


def _without_unit(measure: str) -> str:
    return measure.split(" [")[0]
