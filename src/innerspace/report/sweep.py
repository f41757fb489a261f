"""The sections on a sweep: every way of fitting vectors at every place, and what sparse refinement changes."""

from collections.abc import Mapping, Sequence
from typing import Any

from innerspace.report.blocks import Cell, Figure, Palette, Panel, Section, Table
from innerspace.report.numerals import estimate, interval, number, phrase, spoken
from innerspace.report.plots import HEIGHT, Chart, Scale

_PLACE = ("forecaster", "site", "tokens")


def best(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """What the best way of every forecaster does on agents that did not choose it."""
    rows = report["best"]
    caption = (
        "Chosen among the ways whose reach is half of what was asked or more on both sides and whose R² is 0.95 or "
        "more, by the least side effects. " + note
    )
    lead = "What do the best vectors do on agents that had no part in choosing them?"
    return Section("best", "The best vectors", lead, (Table(caption, _head(), _lines(rows, palette)),))


def sweep(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """Linearity and side effects of every way, by place; the whole table below."""
    rows = report["sweep"]
    features = list(dict.fromkeys(row["feature"] for row in rows))
    figures = tuple(
        _figure(feature, [row for row in rows if row["feature"] == feature], palette, note) for feature in features
    )
    lead = "Which way of fitting acts linearly and moves nothing else, in which forecaster, and where?"
    return Section("sweep", "All vectors", lead, (*figures, _table(rows, palette)))


def sparsity(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """Whether enforcing sparsity makes the response more linear."""
    rows = report["sparsity"]
    chart_rows = [(f"{row['feature']}, {_way(row['method'], 0)}", row) for row in rows]
    gains = [estimate(row["r2"]) for row in rows]
    chart = Chart(
        Scale.over((end for gain in gains for end in gain), include=0.0),
        Scale.of([name for name, _ in chart_rows]),
        x_label="change of R² by refining",
        left=150,
        height=max(HEIGHT, 70 + 15 * len(rows)),
    )
    chart.rule(0.0, "axis")
    for y, ((name, row), gain) in enumerate(zip(chart_rows, gains, strict=True)):
        hue = palette[row["feature"]]
        chart.whisker(gain.low, gain.high, y, hue)
        if gain.mean is not None:
            tip = f"{name}\nchange of R² {phrase(gain, sign=True)}\n{row['verdict']}"
            chart.dots([gain.mean], [float(y)], [tip], f"mark {'' if row['sparse'] else 'hollow '}{hue}")
    figure = Figure(
        "Gain in linearity of refined vectors over the plain ones of the same place and seed, averaged over places, "
        "with 95 % intervals over seeds. Hollow: an autoencoder with a dense code, whose gain is not owed to sparsity. "
        + note,
        (Panel("R²", chart.svg("Change of R² by kind of autoencoder and feature")),),
        key=(("mark", "sparse code"), ("mark hollow", "dense code")),
    )
    head = (
        "feature",
        "autoencoder",
        "L0",
        "Pearson",
        "R²",
        "straightness",
        "side effects",
        "wins",
        "vectors",
        "verdict",
    )
    lines = tuple(
        (
            Cell(row["feature"], hue=palette[row["feature"]]),
            Cell(_way(row["method"], 0)),
            Cell(number(row["l0"])),
            *(
                Cell(number(estimate(row[key]).mean, 3, sign=True), interval(estimate(row[key]), 3, sign=True))
                for key in ("pearson", "r2", "straightness", "side")
            ),
            Cell(f"{100 * row['wins']:.0f} %"),
            Cell(str(row["vectors"])),
            Cell(row["verdict"]),
        )
        for row in rows
    )
    table = Table("Changes by refining, and the share of vectors whose R² is higher.", tuple(map(Cell, head)), lines)
    lead = "Does enforcing sparsity make the response to a vector more linear?"
    return Section("sparsity", "Sparsity and linearity", lead, (figure, table))


def _figure(feature: str, rows: Sequence[Mapping[str, Any]], palette: Palette, note: str) -> Figure:
    """A panel for every forecaster: the best R² of each way over places, and where it is."""
    panels = tuple(
        _panel(name, [row for row in rows if row["forecaster"] == name], palette[feature])
        for name in dict.fromkeys(row["forecaster"] for row in rows)
    )
    caption = (
        f"Linearity (R² of an affine fit) of {feature} vectors by way of fitting: filled at the place where it is "
        "highest, with its 95 % interval over seeds, small dots at all other places. " + note
    )
    return Figure(caption, panels, title=feature.capitalize(), hue=palette[feature])


def _panel(name: str, rows: Sequence[Mapping[str, Any]], hue: str) -> Panel:
    ways = dict[str, list[Mapping[str, Any]]]()
    for row in rows:
        ways.setdefault(_way(row["method"], row["latents"]), []).append(row)
    lowest = min(row["r2"]["mean"] for row in rows)
    chart = Chart(
        Scale(min(lowest - 0.02, 0.9), 1.005),
        Scale.of(list(ways)),
        x_label="R²",
        left=150,
        height=max(HEIGHT, 70 + 15 * len(ways)),
    )
    for y, (way, own) in enumerate(ways.items()):
        best = max(own, key=lambda row: row["r2"]["mean"])
        others = [row for row in own if row is not best]
        chart.dots(
            [row["r2"]["mean"] for row in others],
            [float(y)] * len(others),
            [_tip(way, row) for row in others],
            f"faint {hue}",
        )
        found = estimate(best["r2"])
        low = None if found.low is None else max(found.low, chart.x.low)
        high = None if found.high is None else min(found.high, chart.x.high)
        chart.whisker(low, high, y, hue)
        chart.dots([best["r2"]["mean"]], [float(y)], [_tip(way, best)], f"mark {hue}")
    return Panel(name, chart.svg(f"R² of vectors of {name} by way of fitting"), hue=hue)


def _tip(way: str, row: Mapping[str, Any]) -> str:
    return (
        f"{way}\n{row['site']}, {row['tokens']}\nR² {phrase(estimate(row['r2']))}\n"
        f"side effects {phrase(estimate(row['side']))}"
    )


def _table(rows: Sequence[Mapping[str, Any]], palette: Palette) -> Table:
    caption = (
        "Every way at every place. Reach: the response at the ends of the range on which it is monotone. Side effects: "
        "the largest change of another measure over that of its own, in spreads of unsteered agents. Feasible: how the "
        "share of forecasts that can be driven changes at the stronger end."
    )
    return Table(caption, _head(), _lines(rows, palette), fold=f"All {len(rows)} ways and places")


def _head() -> tuple[Cell, ...]:
    figures = ("Pearson", "R²", "straightness", "reach", "side effects", "feasible", "L0", "explained")
    return tuple(map(Cell, (*_PLACE, "feature", "way", *figures)))


def _lines(rows: Sequence[Mapping[str, Any]], palette: Palette) -> tuple[tuple[Cell, ...], ...]:
    return tuple(
        (
            *(Cell(row[key]) for key in _PLACE),
            Cell(row["feature"], hue=palette[row["feature"]]),
            Cell(_way(row["method"], row["latents"])),
            *(
                Cell(number(estimate(row[key]).mean), interval(estimate(row[key])))
                for key in ("pearson", "r2", "straightness")
            ),
            Cell(f"{number(row['span'][0], 2, sign=True)} … {number(row['span'][1], 2, sign=True)} {row['unit']}"),
            Cell(number(estimate(row["side"]).mean), interval(estimate(row["side"]))),
            Cell(number(estimate(row["feasible"]).mean, 2, sign=True)),
            Cell(number(row["l0"])),
            Cell(number(row["explained"])),
        )
        for row in rows
    )


def _way(method: str, latents: int) -> str:
    return f"{spoken(method)}, {latents}" if latents else spoken(method)
