"""The sections on partitions into subspaces: how they were learned, and how much their parts depend on each other.

A part of a partition is given, wherever a section lists ``parts``, as ``size`` (its dimensions) and optionally ``name``
(its number if not given) and ``words`` (what it was found to tell, for the tip). Its color goes by its number, the same
in all sections. Whatever is called an estimate is a number or ``{mean, low, high}``, as everywhere on the page.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from innerspace.report.blocks import HUE_COUNT, Block, Cell, Figure, Palette, Panel, Section, Table, Tables
from innerspace.report.numerals import average, estimate, number, phrase
from innerspace.report.plots import Chart, Scale
from innerspace.report.runs import entry, present

Part = Mapping[str, Any]

_EVENTS = {"merge": "merged", "split": "split", "perturbation": "perturbed", "restart": "restarted"}

_RUN = {
    "distance_per_dimension": "distance, weighted by dimensions",
    "identity": "distance without rotation",
    "random": "distance, random rotation",
    "departure": "‖R Rᵀ − 1‖",
    "cpu_seconds": "CPU seconds",
    "seconds": "wall seconds",
}

_POINTS = 200
"""Values of one curve that are drawn."""


def subspace_training(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """The neighbor distance over steps with everything that changed the parts, and what partitions came of it.

    ``subspace_training`` is a list of runs, each with

    * ``site``; ``kind`` (such as ``fast`` or ``paper``; each has one color); ``seed``;
    * ``steps`` (rising) and ``distance`` (of equal length: the mean distance to the nearest neighbor within the parts,
      the loss; ``null`` where it was not taken); optionally ``held_out``, the same on rows not trained on;
    * ``events``, in their order: ``step``, ``what`` (``merge``, ``split``, ``perturbation`` or ``restart``), ``sizes``
      (of the parts afterwards) and optionally ``words`` (such as ``parts 3 and 7, 0.061 nats per dimension``);
    * ``sizes``: of the parts at the end, the largest first; ``stopped``: why it ended, in a few words;
    * optionally ``distance_per_dimension``, ``identity``, ``random`` (final mean distances as in ``distance``, but
      weighted by dimensions; in the same sizes without rotation; in the same sizes under a random one; estimates),
      ``departure`` (the largest entry of |R Rᵀ − 1|), ``cpu_seconds``, ``seconds``.
    """
    runs = report["subspace_training"]
    for run in runs:
        _check_run(run)
    sites = dict[str, list[Mapping[str, Any]]]()
    for run in runs:
        sites.setdefault(run["site"], []).append(run)
    kinds = list(dict.fromkeys(run["kind"] for run in runs))
    caption = (
        "Mean distance to the nearest neighbor within the parts by training step; one line for each run. Dots are "
    )
    caption += f"what changed the parts: pointing at one tells what. {note}"
    key = tuple((f"line {palette[kind]}", kind) for kind in kinds)
    if any(run.get("held_out") for run in runs):
        key += (("line null", "held-out rows"),)
    # what is assembled has no steps
    curves = tuple(_curve(site, own, palette) for site, own in sites.items() if any(run["steps"] for run in own))
    figure = Figure(caption, curves, key=key)
    bars = partition_bars([(_words(run), run["sizes"]) for run in runs])
    partitions = Figure("The parts at the end, as wide as they have dimensions.", (Panel("", bars),))
    lead = "How did the partitions come about, and when did learning find that parts belong together?"
    blocks = (figure, partitions, _run_table(runs, palette)) if curves else (partitions, _run_table(runs, palette))
    return Section("subspace-training", "Training of subspaces", lead, blocks)


def dependence(report: Mapping[str, Any], palette: Palette, note: str) -> Section:  # noqa: ARG001
    """How much the parts of a partition tell of each other: a matrix, and the tree by which they would merge.

    ``dependence`` is a list, one entry for each partition, of

    * ``site``; optionally ``name``, if a site has several partitions; ``parts`` (see above);
    * ``information``: a square matrix of estimates, the mutual information of two parts; ``null`` on the diagonal;
      optionally ``unit``, ``nats`` if not given;
    * optionally ``p``: a square matrix, the share of permutations that give as much or more; pairs at or below
      ``level`` (0.05 if not given) are framed; ``null`` on the diagonal;
    * optionally ``baselines``: by name (``identity``, ``random rotation``), the mean over pairs of the mutual
      information in a partition of the same sizes (estimates);
    * optionally ``tree``: one entry for each of the joins, the first first: ``left`` and ``right`` (numbers of what is
      joined: below S a part, S + i what join i made) and ``height`` (their dependence when they are joined);
      ``tree_unit`` (such as ``nats per dimension``), ``threshold`` (above which training would merge).
    """
    partitions = report["dependence"]
    matrices = tuple(_matrix(given) for given in partitions)
    caption = "Mutual information of every two parts, tinted up to the largest."
    if any(given.get("p") for given in partitions):
        caption += " Framed are pairs that permuted rows would hardly ever give."
    blocks: list[Block] = [Tables(f"{caption} {note}".strip(), matrices)]
    if trees := tuple(_tree(given) for given in partitions if given.get("tree")):
        words = "In which order parts would merge, those that depend most on each other first; dimensions in brackets."
        dotted = any(given.get("threshold") is not None for given in partitions)
        blocks.append(Figure(words + (" Dotted: the threshold of training." if dotted else ""), trees))
    lead = "Are the parts independent? Mutual information of every pair, and in which order they would merge."
    return Section("dependence", "Dependence of parts", lead, tuple(blocks))


def part_name(parts: Sequence[Part], i: int) -> str:
    """A part's name, its number where it has none."""
    return str(parts[i].get("name", i))


def part_hue(i: int) -> str:
    """The style class of a part's color."""
    return f"hue-{i % HUE_COUNT}"


def part_tip(parts: Sequence[Part], i: int) -> str:
    """What pointing at a part tells."""
    words = parts[i].get("words", "")
    return f"part {part_name(parts, i)} · {parts[i]['size']} dimensions" + (f"\n{words}" if words else "")


def part_cell(parts: Sequence[Part], i: int) -> Cell:
    """A part at the head of a row or a column."""
    return Cell(part_name(parts, i), tip=part_tip(parts, i), hue=f"{part_hue(i)} upright")


def entitled(given: Mapping[str, Any]) -> str:
    """The site of a partition, with its name where it has one."""
    return " · ".join(filter(None, (given["site"], given.get("name", ""))))


def partition_bars(rows: Sequence[tuple[str, Sequence[int]]]) -> str:
    """Partitions as bars of their parts, one below the other under their words."""
    width, height, gap = 640, 22, 20
    marks = list[str]()
    for row, (words, sizes) in enumerate(rows):
        total, place, top = sum(sizes), 0, row * (height + gap) + 16
        marks.append(f'<text x="0" y="{top - 5}">{escape(words)}</text>')
        for i, size in enumerate(sizes):
            x, extent = width * place / total, width * size / total
            tip = f"part {i} · {size} of {total} dimensions"
            box = f'x="{x:.1f}" y="{top}" width="{max(extent - 1.5, 0.5):.1f}" height="{height}"'
            marks.append(f'<rect class="{part_hue(i)}" {box} data-tip="{escape(tip)}"/>')
            if extent > 9 * len(str(size)):
                marks.append(f'<text class="x" x="{x + (extent - 1.5) / 2:.1f}" y="{top + 15}">{size}</text>')
            place += size
    size = f'viewBox="0 0 {width} {len(rows) * (height + gap)}"'
    return f'<svg class="chart partitions" {size} role="img" aria-label="Sizes of the parts">{"".join(marks)}</svg>'


def _check_run(run: Mapping[str, Any]) -> None:
    for name in ("distance", "held_out"):
        if run.get(name) is not None and len(run[name]) != len(run["steps"]):
            raise ValueError(f"{name!r} of {_words(run)} should have {len(run['steps'])} values, as steps")
    if strangers := [event["what"] for event in run["events"] if event["what"] not in _EVENTS]:
        raise ValueError(f"an event of {_words(run)} is {strangers[0]!r}; it should be one of {', '.join(_EVENTS)}")
    widths = {sum(run["sizes"]), *(sum(event["sizes"]) for event in run["events"])}
    if len(widths) != 1:
        raise ValueError(f"the partitions of {_words(run)} have different widths: {sorted(widths)}")


def _words(run: Mapping[str, Any]) -> str:
    return f"{run['site']} · {run['kind']} · seed {run['seed']}"


def _known(run: Mapping[str, Any], name: str) -> list[tuple[float, float]]:
    pairs = zip(run["steps"], run.get(name) or [None] * len(run["steps"]), strict=True)
    return [(float(step), float(value)) for step, value in pairs if value is not None]


def _curve(site: str, runs: Sequence[Mapping[str, Any]], palette: Palette) -> Panel:
    lines = [(run, _known(run, "distance"), _known(run, "held_out")) for run in runs]
    values = [y for _, known, held in lines for _, y in (*known, *held)]
    log = bool(values) and min(values) > 0 and max(values) > 4 * min(values)
    steps = [float(step) for run in runs for step in run["steps"]]
    x = Scale.over(steps, include=0.0)
    chart = Chart(x, Scale.over(values, log=log), x_label="step", y_label="mean distance", height=240)
    for run, known, held in lines:
        for drawn, style in ((known, "thin"), (held, "null")):
            thin = drawn[:: -max(1, -(-len(drawn) // _POINTS))][::-1]
            chart.line([a for a, _ in thin], [b for _, b in thin], f"{style} {palette[run['kind']]}")
        if known:
            changes = [_change(run, event, known) for event in run["events"]]
            places, heights, tips = zip(*changes, strict=True) if changes else ((), (), ())
            chart.dots(places, heights, tips, f"mark {palette[run['kind']]}")
    finals = " · ".join(f"{run['kind']} {number(known[-1][1])}" for run, known, _ in lines if known)
    return Panel(site, chart.svg(f"Neighbor distance at {site} by step"), finals)


def _change(run: Mapping[str, Any], event: Mapping[str, Any], known: Sequence[tuple[float, float]]) -> Any:
    before = [y for step, y in known if step <= event["step"]]
    about = f"\n{event['words']}" if event.get("words") else ""
    now = f"now {len(event['sizes'])} parts: {_listed(event['sizes'])}"
    tip = f"{_words(run)}\n{_EVENTS[event['what']]} at step {number(int(event['step']))}{about}\n{now}"
    return float(event["step"]), before[-1] if before else known[0][1], tip


def _listed(sizes: Sequence[int]) -> str:
    """Sizes with their multiplicities: ``128 × 3, 96, 32 × 2``."""
    counts = {size: list(sizes).count(size) for size in sorted(set(sizes), reverse=True)}
    # no-break spaces keep a size with its count
    return ", ".join(f"{size}\u00a0×\u00a0{count}" if count > 1 else str(size) for size, count in counts.items())


def _run_table(runs: Sequence[Mapping[str, Any]], palette: Palette) -> Table:
    fields = present(_RUN, runs)

    def line(run: Mapping[str, Any]) -> tuple[Cell, ...]:
        happened = [event["what"] for event in run["events"]]
        counts = [number(happened.count(what)) for what in ("merge", "split")]
        known = _known(run, "distance")
        return (
            Cell(_words(run), hue=palette[run["kind"]]),
            Cell(number(len(run["sizes"]))),
            *map(Cell, counts),
            Cell(number(known[-1][1] if known else None)),
            *(entry(run.get(name)) for name in fields),
            Cell(_listed(run["sizes"]), run.get("stopped", "")),
        )

    head = ("run", "parts", "merges", "splits", "distance", *fields.values(), "sizes, and why it ended")
    caption = "What came of every run: mean distances to the nearest neighbor at the end, and what it took."
    return Table(caption, tuple(map(Cell, head)), tuple(map(line, runs)))


def _matrix(given: Mapping[str, Any]) -> Table:
    parts, matrix, title = given["parts"], given["information"], entitled(given)
    count, unit = len(parts), given.get("unit", "nats")
    for name in ("information", "p"):
        if given.get(name) is not None and [len(row) for row in given[name]] != [count] * count:
            raise ValueError(f"{name!r} at {title} should be a matrix of {count} × {count}, as there are parts")
    values = [[estimate(item) for item in row] for row in matrix]
    largest = max((item.mean or 0.0 for row in values for item in row), default=0.0) or 1.0
    level = given.get("level", 0.05)

    def cell(i: int, j: int) -> Cell:
        value = values[i][j]
        if i == j or value.mean is None:
            return Cell("")
        tip = f"parts {part_name(parts, i)} and {part_name(parts, j)}\n{phrase(value, unit)}"
        chance = given["p"][i][j] if given.get("p") else None
        tip += "" if chance is None else f"\np = {number(chance, 2)}"
        framed = chance is not None and chance <= level
        return Cell(
            number(value.mean, 2), tip=tip, hue="hue-0 framed" if framed else "hue-0", heat=value.mean / largest
        )

    means = {"these parts": average([values[i][j].mean for i in range(count) for j in range(i)])}
    means |= {name: estimate(item).mean for name, item in given.get("baselines", {}).items()}
    compared = "; ".join(f"{name} {number(value)}" for name, value in means.items())
    words = f"{title}, in {unit}. Mean over pairs: {compared}."
    words += f" Framed: p ≤ {level:g}." if given.get("p") else ""
    head = (Cell("part"), *(part_cell(parts, i) for i in range(count)))
    rows = tuple((part_cell(parts, i), *(cell(i, j) for j in range(count))) for i in range(count))
    return Table(words, head, rows, "matrix")


def _tree(given: Mapping[str, Any]) -> Panel:
    """The dendrogram: leaves at the left, joins where their dependence lies, the strongest nearest to the leaves."""
    parts, joins, unit, title = given["parts"], given["tree"], given.get("tree_unit", "nats"), entitled(given)
    members: list[list[int]] = [[i] for i in range(len(parts))]
    for i, join in enumerate(joins):
        sides = (join["left"], join["right"])
        if not all(0 <= side < len(members) for side in sides) or sides[0] == sides[1]:
            raise ValueError(f"join {i} of the tree at {title} should name two of 0 … {len(members) - 1}, not {sides}")
        members.append([*members[sides[0]], *members[sides[1]]])
    joined = {side for join in joins for side in (join["left"], join["right"])}
    order = [part for node in range(len(members)) if node not in joined for part in members[node]]
    heights = [estimate(join["height"]).mean or 0.0 for join in joins]
    threshold = given.get("threshold")
    known = [0.0, *heights, *([] if threshold is None else [threshold])]
    room = 0.06 * (max(known) - min(known)) or 1.0
    # the axis runs from the largest dependence to the smallest
    x = Scale(max(known) + 2 * room, min(known) - room)
    y = Scale.of([f"{part_name(parts, part)} ({parts[part]['size']})" for part in order])
    chart = Chart(x, y, x_label=f"dependence [{unit}]", left=64, width=440, height=64 + 17 * len(parts))
    if threshold is not None:
        chart.rule(threshold, "null")
    at = {part: (x.low, float(order.index(part))) for part in range(len(parts))}
    for i, (join, height) in enumerate(zip(joins, heights, strict=True)):
        (a, u), (b, v) = at[join["left"]], at[join["right"]]
        chart.line([a, height, height, b], [u, u, v, v], "branch")
        named = " + ".join(part_name(parts, part) for part in members[len(parts) + i])
        chart.dots([height], [(u + v) / 2], [f"{named}\n{phrase(estimate(join['height']), unit)}"], "small branch")
        at[len(parts) + i] = (height, (u + v) / 2)
    return Panel(title, chart.svg(f"Dendrogram of the parts at {title}"))
