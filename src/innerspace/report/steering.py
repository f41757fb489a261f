"""The sections on writing: how the forecast follows a vector, through which vectors, and what else moves."""

from collections.abc import Mapping, Sequence
from typing import Any

from innerspace.report.blocks import Cell, Figure, Palette, Panel, Section, Table
from innerspace.report.calibration import seeds_phrase
from innerspace.report.numerals import estimate, interval, number, phrase, spoken
from innerspace.report.plots import HEIGHT, Chart, Scale

_MEASURES = {"pearson": "Pearson", "r2": "R²", "straightness": "Straightness"}


def refinement(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """Plain vectors next to those refined by a dictionary, with a verdict."""
    rows = report["refinement"]
    panels = tuple(
        _dumbbells(measure, [row for row in rows if row["measure"] == measure], palette)
        for measure in dict.fromkeys(row["measure"] for row in rows)
    )
    caption = (
        "Linearity of the response for plain vectors (hollow) and for the same vectors refined by a sparse autoencoder "
        "(filled), with 95 % intervals. " + note
    )
    lines = tuple(
        (
            Cell(row["feature"], hue=palette[row["feature"]]),
            Cell(_title(row["measure"])),
            Cell(number(estimate(row["plain"]).mean), interval(estimate(row["plain"]))),
            Cell(number(estimate(row["refined"]).mean), interval(estimate(row["refined"]))),
            Cell(spoken(row["dictionary"])),
            Cell(row["verdict"]),
        )
        for row in rows
    )
    head = tuple(map(Cell, ("feature", "measure", "plain", "refined", "dictionary", "verdict")))
    key = (("mark hollow", "plain"), ("mark", "refined by a dictionary"))
    table = Table("Plain and refined vectors.", head, lines, fold="Every comparison" if len(lines) > 12 else "")
    lead = "Does a sparse autoencoder (SAE) make the response to a vector more linear?"
    return Section("refinement", "Refinement", lead, (Figure(caption, panels, key=key), table))


def vectors(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """The angles between vectors, and what each of them is."""
    names, rows = report["vectors"]["names"], report["vectors"]["rows"]
    hues = {row["name"]: palette[row["feature"]] for row in rows}

    def angle(i: int, j: int, degrees: float | None) -> Cell:
        tip = f"{names[i]}\n{names[j]}\n{number(degrees)}°"
        heat = None if degrees is None else abs(90 - degrees) / 90
        hue = "" if degrees is None else "positive" if degrees <= 90 else "negative"
        return Cell(number(round(degrees)) if degrees is not None else "", "", tip, hue, heat, marked=i == j)

    matrix = Table(
        "Angles between vectors in degrees; 90 is orthogonal, tinted violet below and ochre above. " + note,
        (Cell(""), *(Cell(name, hue=hues.get(name, "")) for name in names)),
        tuple(
            (
                Cell(name, hue=hues.get(name, "")),
                *(angle(i, j, x) for j, x in enumerate(report["vectors"]["angles"][i])),
            )
            for i, name in enumerate(names)
        ),
        "matrix",
    )
    head = ("vector", "feature", "method", "site", "norm", "gap")
    lines = tuple(
        (
            Cell(row["name"], hue=palette[row["feature"]]),
            *(Cell(spoken(row[key])) for key in ("feature", "method", "site")),
            *(Cell(number(row[key])) for key in ("norm", "gap")),
        )
        for row in rows
    )
    words = "The vectors, their norms, and the gap between the means of the two classes along them."
    table = Table(words, tuple(map(Cell, head)), lines, fold="Every vector" if len(lines) > 12 else "")
    lead = "Do vectors of different features point in different directions, and those of one feature in the same?"
    return Section("vectors", "Vectors", lead, (matrix, table))


def offtarget(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """What is measured to change, by what is steered."""
    data = report["offtarget"]
    steered, measured, units = data["steered"], data["measured"], data["units"]
    names = [f"{name} · {spoken(method)}" for name, method in zip(steered, data["methods"], strict=True)]

    def change(i: int, j: int) -> Cell:
        value, share = estimate(data["change"][i][j]), data["normalized"][i][j]
        tip = f"steering {names[i]}\n{measured[j]} {phrase(value, units[j], sign=True)}\nnormalized {number(share)}"
        hue = "positive" if (share or 0) >= 0 else "negative"
        marked = measured[j] == steered[i]
        return Cell(
            number(value.mean, 2, sign=True), interval(value, 2, sign=True), tip, hue, abs(share or 0), marked=marked
        )

    rows = tuple(
        (Cell(names[i], hue=palette[name]), *(change(i, j) for j in range(len(measured))))
        for i, name in enumerate(steered)
    )
    head = (
        Cell("steered"),
        *(Cell(name, unit, hue=palette[name]) for name, unit in zip(measured, units, strict=True)),
    )
    caption = (
        "Change of each measured quantity (columns) by the steered feature (rows) with 95 % intervals, tinted by the "
        "normalized change; frames mark what was meant. " + note
    )
    lead = "What else moves when one feature is steered?"
    return Section("offtarget", "Off-target", lead, (Table(caption, head, rows, "heat"),))


def feasibility(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """Where steered forecasts stop being possible motions."""
    rows = report["feasibility"]
    temperatures = Scale.over([tau for row in rows for tau in row["tau"]])
    shares = [[estimate(item) for item in row["share"]] for row in rows]
    share = Chart(
        temperatures, Scale.over([x for row in shares for item in row for x in item], include=1.0), x_label="τ"
    )
    shift = Chart(temperatures, Scale.over([x for row in rows for x in row["min_ade_shift"]], include=0.0), x_label="τ")
    for row, items in zip(rows, shares, strict=True):
        tau, hue = row["tau"], palette[row["feature"]]
        share.band(tau, [item.low for item in items], [item.high for item in items], hue)
        share.line(tau, [item.mean for item in items], hue)
        tips = [
            f"{row['feature']} · τ {number(t, sign=True)}\nfeasible {phrase(x)}"
            for t, x in zip(tau, items, strict=True)
        ]
        share.dots(tau, [item.mean for item in items], tips, hue)
        shift.line(tau, row["min_ade_shift"], hue)
        pairs = zip(tau, row["min_ade_shift"], strict=True)
        tips = [f"{row['feature']} · τ {number(t, sign=True)}\nminADE {number(x, sign=True)} m" for t, x in pairs]
        shift.dots(tau, row["min_ade_shift"], tips, hue)
    panels = (
        Panel("Feasible share", share.svg("Share of feasible forecasts by temperature"), "of the steered forecasts"),
        Panel("Shift of minADE", shift.svg("Shift of minADE by temperature"), "in meters, against the unsteered"),
    )
    key = tuple((f"line {palette[row['feature']]}", row["feature"]) for row in rows)
    caption = "Kinematic feasibility and error of steered forecasts by temperature τ, with 95 % intervals. " + note
    lead = "How far can a vector be pushed before the forecast stops being a possible motion?"
    return Section("feasibility", "Feasibility", lead, (Figure(caption, panels, key=key),))


def dictionaries(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """What every dictionary explains and what it costs the network."""
    del palette
    rows = report["dictionaries"]
    head = (
        *("dictionary", "latents", "seed", "explained variance", "L0", "alive", "loss recovered"),
        *("loss, clean", "loss, spliced", "loss, mean-ablated"),
    )
    keys = (
        "latents",
        "seed",
        "explained",
        "l0",
        "alive",
        "recovered",
        "loss_clean",
        "loss_spliced",
        "loss_mean_ablated",
    )
    lines = tuple((Cell(spoken(row["kind"])), *(Cell(number(row[key])) for key in keys)) for row in rows)
    caption = (
        f"Sparse dictionaries, {seeds_phrase(rows)}; a recovered loss of 1 means no harm, 0 that of the mean. {note}"
    )
    lead = "How much of the hidden states do the dictionaries hold, and what does the forecast lose through them?"
    return Section("dictionaries", "Dictionaries", lead, (Table(caption, tuple(map(Cell, head)), lines),))


def _title(measure: str) -> str:
    return _MEASURES.get(measure, measure)


def _dumbbells(measure: str, rows: Sequence[Mapping[str, Any]], palette: Palette) -> Panel:
    """One line for each plain vector, and below it one for each dictionary that refines it."""
    lines, verdicts = dict[tuple[str, str], Mapping[str, Any]](), dict[tuple[str, str], str]()
    for feature in dict.fromkeys(row["feature"] for row in rows):
        own = [row for row in rows if row["feature"] == feature]
        lines[feature, f"{feature}, plain"] = own[0]["plain"]
        lines |= {(feature, spoken(row["dictionary"])): row["refined"] for row in own}
        verdicts |= {(feature, spoken(row["dictionary"])): f"\n{row['verdict']}" for row in own}
    estimates = [estimate(item) for item in lines.values()]
    chart = Chart(
        Scale.over(end for value in estimates for end in value),
        Scale.of([name for _, name in lines]),
        x_label=_title(measure),
        left=122,
        height=max(HEIGHT, 70 + 15 * len(lines)),
    )
    for y, ((feature, name), value) in enumerate(zip(lines, estimates, strict=True)):
        hue, plain = palette[feature], name.endswith(", plain")
        chart.whisker(value.low, value.high, y, hue)
        if value.mean is not None:
            tip = f"{name if plain else f'{feature}, {name}'}\n{_title(measure)} {phrase(value)}"
            tip += verdicts.get((feature, name), "")
            chart.dots([value.mean], [float(y)], [tip], f"mark {'hollow ' if plain else ''}{hue}")
    return Panel(_title(measure), chart.svg(f"{_title(measure)} of plain and refined vectors for each feature"))
