"""The sections on what everything stands on: the data, the forecaster, the cost, the provenance."""

from collections.abc import Mapping
from typing import Any, cast

from innerspace.report.blocks import Block, Cell, Facts, Figure, Palette, Panel, Remarks, Section, Table
from innerspace.report.numerals import estimate, number, phrase, spoken
from innerspace.report.plots import HEIGHT, Chart, Scale

_METRICS = (
    ("min_ade", "minADE [m]"),
    ("min_fde", "minFDE [m]"),
    ("miss_rate", "miss rate"),
    ("brier_min_fde", "Brier-minFDE [m]"),
    ("rows", "rows"),
)


def forecaster(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """How well the forecaster forecasts, beside its trivial baselines, and how it learned."""
    del palette
    data = report["forecaster"]
    head = ("model", "split", *(title for _, title in _METRICS))
    rows = tuple(
        (Cell(row["model"]), Cell(row["split"]), *(_metric(row[key]) for key, _ in _METRICS)) for row in data["metrics"]
    )
    words = f"{data['name']}, {number(data['parameters'])} parameters, beside its baselines; smaller is better. {note}"
    blocks: list[Block] = [Table(words, tuple(map(Cell, head)), rows)]
    if loss := data.get("loss"):
        names = [name for name in ("train", "held_out") if loss.get(name)]
        scale = Scale.over([value for name in names for value in loss[name]])
        chart = Chart(Scale.over(loss["step"]), scale, x_label="optimizer step", y_label="loss")
        for name in names:
            # the held-out loss is known at some of the steps only
            known = [(step, x) for step, x in zip(loss["step"], loss[name], strict=True) if x is not None]
            steps, values = [step for step, _ in known], [x for _, x in known]
            chart.line(steps, values, f"loss-{name}")
            tips = [f"step {number(step)}\n{spoken(name)} {number(x)}" for step, x in known]
            chart.dots(steps, values, tips, f"small loss-{name}")
        key = tuple((f"line loss-{name}", spoken(name)) for name in names)
        panel = Panel("", chart.svg("Training and held-out loss by optimizer step"))
        blocks.append(Figure("The forecaster's loss while it learned.", (panel,), key=key))
    return Section("forecaster", "Forecaster", "How good is the network that is looked into?", tuple(blocks))


def data(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """Splits, classes and the rules that make them."""
    given = report["data"]
    blocks: list[Block] = [Remarks((given["description"], *([note] if note else [])))]
    if splits := given.get("splits"):
        rows = tuple((Cell(row["name"]), Cell(number(row["scenes"])), Cell(number(row["targets"]))) for row in splits)
        blocks.append(Table("Splits.", (Cell("split"), Cell("scenes"), Cell("targets")), rows))
    if classes := given.get("classes"):
        rules = {(row["feature"], row["class"]): row["rule"] for row in given.get("thresholds", ())}
        rows = tuple(
            (
                Cell(feature, hue=palette[feature]),
                Cell(name),
                Cell(number(count)),
                _share(count / max(sum(counts.values()), 1), palette[feature]),
                Cell(rules.pop((feature, name), "")),
            )
            for feature, counts in classes.items()
            for name, count in counts.items()
        )
        rows += tuple(
            (Cell(feature, hue=palette[feature]), Cell(name), Cell(""), Cell(""), Cell(rule))
            for (feature, name), rule in rules.items()
        )
        head = tuple(map(Cell, ("feature", "class", "targets", "share", "rule")))
        blocks.append(Table("Classes of every feature, their sizes, and the rule that assigns them.", head, rows))
    if skipped := given.get("skipped"):
        blocks.append(Remarks(tuple(f"{row['name']}: {row['reason']}" for row in skipped), "Left out"))
    return Section("data", "Data", "What the numbers were counted on.", tuple(blocks))


def cost(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """What steering costs at run time."""
    del palette
    given = report["cost"]
    entries = (
        ("Plain pass", phrase(estimate(given["plain_ms"]), "ms")),
        ("Steered pass", phrase(estimate(given["steered_ms"]), "ms")),
        ("Ratio", phrase(estimate(given["ratio"]))),
        ("One hook", f"{number(given['hook_us'])} µs"),
        ("Memory allocated in a plain pass", f"{number(given['plain_bytes'] / 1e6)} MB"),
        ("Additional memory", f"{number(given['extra_bytes'] / 1e6)} MB"),
    )
    blocks: list[Block] = [Facts(entries)]
    if sites := given.get("by_site"):
        blocks.append(_sites(sites))
    blocks += [Remarks((note,))] if note else []
    return Section("cost", "Cost", "What does steering cost when the network runs? 95 % intervals.", tuple(blocks))


def _sites(given: Mapping[str, Any]) -> Figure:
    """Steering at every site: time and memory of a steered pass against a plain one."""
    rows = given["sites"]
    names, height = [row["site"] for row in rows], max(HEIGHT, 70 + 15 * len(rows))
    times = [estimate(row["ratio"]) for row in rows]
    scale = Scale.over([end for value in times for end in value], include=1.0)
    time = Chart(scale, Scale.of(names), x_label="steered pass / plain pass", left=80, height=height)
    time.rule(1.0, "thin")
    memory = [row["extra_bytes"] / 1e6 for row in rows]
    bytes_scale = Scale.over(memory, include=0.0)
    space = Chart(bytes_scale, Scale.of(names), x_label="additional memory [MB]", left=80, height=height)
    for y, (row, value, more) in enumerate(zip(rows, times, memory, strict=True)):
        time.whisker(value.low, value.high, y, "")
        tip = f"{row['site']}\nratio {phrase(value)}\n{phrase(estimate(row['added_ms']), 'ms', sign=True)}"
        peak = row.get("peak_bytes")
        held = "" if peak is None else f"\npeak {number(peak / 1e6, sign=True)} MB"
        for chart, x, words in ((time, value.mean, tip), (space, more, f"{row['site']}\n{number(more)} MB{held}")):
            if x is not None:
                chart.dots([x], [float(y)], [words], "mark")
    caption = (
        f"Steering every valid position at each site in turn, on {given['device']}: {number(given['rows'])} agents, a "
        f"plain pass takes {phrase(estimate(given['plain_ms']), 'ms')}. Memory is what a steered one allocates more."
    )
    panels = (
        Panel("Time", time.svg("Time of a steered pass over a plain one, by site"), "median and interval"),
        Panel("Memory", space.svg("Memory that a steered pass allocates beyond a plain one, by site"), "allocated"),
    )
    return Figure(caption, panels, "Steering at every site")


def provenance(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """Where the numbers come from, and every setting of the run."""
    del palette
    blocks: list[Block] = [Remarks((note,))] if note else []
    if given := report.get("provenance"):
        blocks.append(facts({key: item for key, item in given.items() if key != "class"}))
    if job := report.get("job"):
        blocks.append(facts(job, "Every setting of the job"))
    lead = "With what, where and when the numbers were made."
    return Section("provenance", "Provenance", lead, tuple(blocks))


def facts(tree: Mapping[str, Any], fold: str = "") -> Facts:
    """Any JSON object as nested names and values."""
    return Facts(tuple((spoken(key), _fact(item)) for key, item in tree.items()), fold)


def _fact(item: Any) -> str | Facts:
    match item:
        case dict() if item:
            return facts(cast(dict[str, Any], item))
        case list() if any(isinstance(entry, dict | list) for entry in cast(list[Any], item)):
            return facts({str(i): entry for i, entry in enumerate(cast(list[Any], item))})
        case list():
            return ", ".join(cast(str, _fact(entry)) for entry in cast(list[Any], item)) or "none"
        case None | dict():
            return "none"
        case bool():
            return "yes" if item else "no"
        case str():
            return item
        case float():
            return number(item, 6).rstrip("0").rstrip(".")
        case _:
            return number(item)


def _metric(item: object) -> Cell:
    value = estimate(item)
    ends = f"{number(value.low)} to {number(value.high)}" if value.low is not None else ""
    # counts stay whole
    return Cell(number(item if isinstance(item, int) else value.mean), ends)


def _share(share: float, hue: str) -> Cell:
    return Cell(f"{100 * share:.0f} %", hue=hue, heat=share)
