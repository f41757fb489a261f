"""The section on unseen data: shifts met by calibrated control, next to none, the best temperature, and rivals."""

from collections.abc import Mapping, Sequence
from typing import Any

from innerspace.report.blocks import Block, Cell, Figure, Palette, Panel, Section, Table
from innerspace.report.numerals import Estimate, estimate, interval, number, phrase, spoken
from innerspace.report.plots import NARROW, WIDTH, Chart, Scale

_METRICS = {
    "min_fde": "minFDE [m]",
    "min_ade": "minADE [m]",
    "brier_min_fde": "Brier-minFDE [m]",
    "miss_rate": "miss rate",
    "waymo_miss_rate": "miss rate, Waymo",
    "map": "mAP",
}
_RIVALS = {"controlled": "", "rescaled": "hollow", "random": "ghost"}

Row = Mapping[str, Any]


def unseen(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """How much of the gap each way of meeting a shift closes, the errors behind it, and every number.

    ``unseen`` holds

    * ``rows``: for every shift its ``shift`` in words, ``seen`` (whether what the network reads changes), ``wanted``
      (change of speed that makes up for it, %), ``tau`` that calibration gives and whether that is ``reached``,
      ``oracle_tau``, ``rows`` judged, the share of them that are ``complete``, and estimates: ``methods`` (by method
      and metric), ``against`` (differences to no control), ``against_rescaled`` (control's difference to rescaling),
      and ``closed`` (by method: the share of the gap between no control and oracle, None where there is none);
    * ``vector`` (``feature``, ``method``, ``site``), ``horizon`` (s), ``randoms`` and ``replicates``.

    The first row is that of no shift.
    """
    given = report["unseen"]
    rows, hue = given["rows"], palette[given["vector"]["feature"]]
    open_rows = [row for row in rows if row["closed"]["controlled"] is not None]
    blocks: list[Block] = []
    if open_rows:
        blocks += [_shares(open_rows, hue, note), _errors(rows[0], open_rows, given, hue)]
    blocks += [_overview(rows, given, hue), _every(rows), _differences(rows)]
    lead = "Does a vector make up for traffic that moves otherwise, by a temperature that was calibrated elsewhere?"
    return Section("unseen", "Unseen data", lead, tuple(blocks))


def _shares(rows: Sequence[Row], hue: str, note: str) -> Figure:
    shares = {method: [estimate(row["closed"][method]) for row in rows] for method in _RIVALS}
    ends = [end for items in shares.values() for item in items for end in item]
    chart = Chart(
        Scale.over([*ends, 1.0], include=0.0),
        Scale.of([row["shift"] for row in rows]),
        x_label="share of the gap closed",
        left=132,
        width=WIDTH + 100,
        height=70 + 26 * len(rows),
    )
    chart.rule(0.5, "negated")
    chart.rule(1.0, "ghost")
    for offset, (method, style) in zip((0.0, 0.22, -0.22), _RIVALS.items(), strict=True):
        shade = "ghost" if style == "ghost" else hue
        for y, (row, item) in enumerate(zip(rows, shares[method], strict=True)):
            chart.whisker(item.low, item.high, y + offset, f"thin {shade}")
            tip = f"{row['shift']}\n{_name(method)}: {phrase(_percent(item), '%')}"
            chart.dots([item.mean or 0.0], [y + offset], [tip], f"mark {style} {shade}")
    key = (
        (f"mark {hue}", "control, calibrated"),
        (f"mark hollow {hue}", "forecasts rescaled"),
        ("mark ghost", "random vectors"),
        ("line negated", "half of the gap"),
        ("line ghost", "the best temperature"),
    )
    caption = (
        "Share of the gap in minFDE between no control and the best temperature (oracle, found on the very data) that "
        f"is closed, with 95 % intervals from paired resamples of scenes; beyond 1 is better than any τ. {note}"
    )
    return Figure(caption, (Panel("", chart.svg("Share of the gap closed, by shift and method")),), key=key)


def _errors(plain: Row, rows: Sequence[Row], given: Mapping[str, Any], hue: str) -> Figure:
    reference = estimate(plain["methods"]["uncontrolled"]["min_fde"]).mean
    assert reference is not None

    def panel(row: Row) -> Panel:
        values = {method: estimate(scores["min_fde"]) for method, scores in row["methods"].items()}
        chart = Chart(
            Scale.over([end for item in values.values() for end in item], include=0.0),
            Scale.of([_name(method) for method in values]),
            x_label="minFDE [m]",
            left=92,
            width=NARROW,
            height=160,
        )
        chart.rule(reference, "null")
        for y, (method, item) in enumerate(values.items()):
            shade = hue if method == "controlled" else "ghost"
            chart.whisker(item.low, item.high, y, shade)
            tip = f"{row['shift']}\n{_name(method)}: {phrase(item, 'm')}"
            chart.dots([item.mean or 0.0], [float(y)], [tip], f"mark {'hollow ' if method == 'oracle' else ''}{shade}")
        words = f"wanted {number(row['wanted'], 2, sign=True)} %, τ {number(row['tau'], 2, sign=True)}"
        return Panel(row["shift"], chart.svg(f"minFDE by method, {row['shift']}"), words)

    caption = (
        f"Error at the last waypoint ({given['horizon']:g} s, or where the recorded path ends) of the best "
        f"forecast, by shift and method, with 95 % intervals; random: {given['randoms']} vectors of equal norm at the "
        "same τ; dotted: the error without a shift."
    )
    key = ((f"mark {hue}", "control, calibrated"), ("mark ghost", "others"), ("line null", "without a shift"))
    return Figure(caption, tuple(map(panel, rows)), key=key)


def _overview(rows: Sequence[Row], given: Mapping[str, Any], hue: str) -> Table:
    methods = list(rows[0]["methods"])
    head = (
        *map(Cell, ("shift", "wanted", "τ", "best τ")),
        *(Cell(_name(method), "minFDE [m]", hue=hue if method == "controlled" else "") for method in methods),
        Cell("closed by control"),
        Cell("closed by rescaling"),
    )

    def closed(row: Row, method: str) -> Cell:
        item = estimate(row["closed"][method])
        return Cell(
            f"{number(_percent(item).mean, 2)} %" if item.mean is not None else "–", interval(_percent(item), 2)
        )

    lines = tuple(
        (
            Cell(row["shift"], "history changed" if row["seen"] else ""),
            Cell(f"{number(row['wanted'], 2, sign=True)} %"),
            Cell(number(row["tau"], 2, sign=True), "" if row["reached"] else "end of the range"),
            Cell(number(row["oracle_tau"], 2, sign=True)),
            *(_cell(row["methods"][method]["min_fde"]) for method in methods),
            closed(row, "controlled"),
            closed(row, "rescaled"),
        )
        for row in rows
    )
    vector = given["vector"]
    caption = (
        f"Every shift: the change of speed that makes up for it, the τ of the {vector['feature']} vector "
        f"({spoken(vector['method'])}, {vector['site']}) that the calibration curve gives for it, and the best τ on "
        "the very data. Where the history tells the shift, nothing is wanted. A dash: the best τ may be no "
        "noticeable gain."
    )
    return Table(caption, head, lines)


def _every(rows: Sequence[Row]) -> Table:
    head = tuple(map(Cell, ("shift", "method", *_METRICS.values(), "agents", "judged to the end")))
    lines = tuple(
        (
            Cell(row["shift"]),
            Cell(_name(method)),
            *(_cell(scores[name]) for name in _METRICS),
            Cell(number(row["rows"])),
            Cell(f"{100 * row['complete']:.0f} %"),
        )
        for row in rows
        for method, scores in row["methods"].items()
    )
    caption = (
        "Every metric, with 95 % intervals over scenes; Waymo's miss rate and mAP are means over its horizons, the mAP "
        "over the shapes of trajectories that occur (resamples that lose a rare shape shift its interval)."
    )
    return Table(caption, head, lines, fold="Every metric of every method")


def _differences(rows: Sequence[Row]) -> Table:
    head = tuple(map(Cell, ("shift", "difference", *_METRICS.values())))

    def line(row: Row, words: str, values: Mapping[str, Any]) -> tuple[Cell, ...]:
        return (Cell(row["shift"]), Cell(words), *(_cell(values[name], sign=True) for name in _METRICS))

    lines = tuple(
        entry
        for row in rows
        for entry in (
            *(line(row, f"{_name(method)} − uncontrolled", values) for method, values in row["against"].items()),
            line(row, "controlled − rescaled", row["against_rescaled"]),
        )
    )
    caption = "Differences on the same resamples of scenes, with 95 % intervals."
    return Table(caption, head, lines, fold="Every difference")


def _cell(item: object, *, sign: bool = False) -> Cell:
    value = estimate(item)
    return Cell(number(value.mean, sign=sign), interval(value, sign=sign))


def _percent(item: Estimate) -> Estimate:
    return Estimate(*(None if end is None else 100 * end for end in item))


def _name(method: str) -> str:
    return {"random": "random vector", "oracle": "oracle τ"}.get(method, spoken(method))
