"""The sections on how dictionaries were trained: curves over tokens, run by run, and what training costs."""

from collections.abc import Mapping, Sequence
from typing import Any

from innerspace.report.blocks import Block, Cell, Curves, Figure, Palette, Panel, Section, Table, Toggles
from innerspace.report.numerals import estimate, number, spoken
from innerspace.report.plots import NARROW, Chart, Scale
from innerspace.report.runs import (
    Run,
    Setting,
    by_setting,
    counted,
    entry,
    families,
    mean,
    prefix,
    present,
    run_words,
    shade,
)

_CURVES = {
    "loss": "Loss",
    "reconstruction": "Reconstruction",
    "sparsity": "Sparsity",
    "output_kl": "Output KL",
    "downstream": "Downstream reconstruction",
    "l0": "L0",
    "dead": "Dead latents",
    "held_out_kl": "Held-out KL",
    "held_out_ce": "Held-out CE increase",
    "held_out_divergence": "Held-out divergence",
}

_COSTS = {
    "tokens_per_second": "tokens/s",
    "seconds": "wall seconds",
    "cpu_seconds": "CPU seconds",
    "peak_share": "share of peak",
}

_POINTS = 120
"""Values of one curve that are drawn; more cannot be told apart."""


def training(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """One chart for each curve, one line for each run, and a legend that shows and hides them.

    ``training`` is a list of runs (see ``runs.py``), each with ``tokens`` (trained on when a value was taken, rising;
    scenes or rows where there are no tokens) and ``curves``: by name, one value for each entry of ``tokens``, ``null``
    where it was not taken. Known names, drawn in this order: ``loss`` (the whole), ``reconstruction``, ``sparsity``,
    ``output_kl``, ``downstream`` (terms of the loss, as weighted in it), ``l0``, ``dead`` (share of latents, 0 to 1),
    ``held_out_kl``, ``held_out_ce`` (increase; both nats per token), ``held_out_divergence`` (nats). Others follow.
    """
    groups = by_setting(report["training"])
    runs = [run for own in groups.values() for run in own]
    for run in runs:
        if bad := [name for name, values in run["curves"].items() if len(values) != len(run["tokens"])]:
            raise ValueError(f"curve {bad[0]!r} of {run_words(run)} should have {len(run['tokens'])} values, as tokens")
    taken = [name for run in runs for name, values in run["curves"].items() if any(x is not None for x in values)]
    names = [name for name in (*_CURVES, *dict.fromkeys(taken)) if name in taken]
    shades = {key: shade(key, own) for own in families(groups).values() for key in own}
    order = {key: i for i, key in enumerate(groups)}
    panels = tuple(_curve(name, runs, shades, order, palette) for name in dict.fromkeys(names))
    caption = (
        "Each line is one run; within a kind, the stronger color is the larger coefficient. Pointing at a line tells "
        f"its run and value; the legend shows and hides. {note}"
    )
    legend = [
        Toggles(
            " · ".join(filter(None, name)),
            tuple(
                (f"setting-{order[key]}", f"{palette[key.kind]} {shades[key]}", key.strength or "all") for key in own
            ),
        )
        for name, own in families(groups).items()
    ]
    seeds = sorted({run["seed"] for run in runs})
    if len(seeds) > 1:
        legend.append(Toggles("seeds", tuple((f"seed-{seed}", "", str(seed)) for seed in seeds)))
    blocks: tuple[Block, ...] = (Curves(Figure(caption, panels), tuple(legend)), _last(runs, names, palette))
    lead = "How did the dictionaries learn: the terms of their losses, their sparsity, and what held-out data say?"
    return Section("training", "Training", lead, blocks)


def training_cost(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """What a kind of training costs, what its operations are spent on, and every run.

    ``training_cost`` is a list of runs (see ``runs.py``), each with ``tokens`` (trained on), ``tokens_per_second``
    (an estimate), ``flops_per_token`` (counted, an addition and a multiplication being two), ``flops_parts`` (by the
    name of a part, such as ``prefix``, ``teacher``, ``student``, ``encoder``, ``decoder``, ``backward``: its share
    of ``flops_per_token``, in operations), ``cpu_seconds``, ``seconds`` (by the clock), ``peak_bytes`` (of memory);
    optionally ``peak_share`` (of the device's peak operations per second, 0 to 1; ``null`` where that is not known)
    and ``device`` (its name).
    """
    runs: list[Run] = report["training_cost"]
    kinds = dict[str, list[Run]]()
    for run in runs:
        kinds.setdefault(" · ".join(filter(None, (run.get("site", ""), run["kind"]))), []).append(run)
    factor, letter = prefix(run["flops_per_token"] for run in runs)
    memory, unit = prefix(run["peak_bytes"] for run in runs)
    costs = present(_COSTS, runs)
    head = ("", *costs.values(), f"{letter}FLOP/token", f"peak memory [{unit}B]")

    def line(name: str, own: Sequence[Run]) -> tuple[Cell, ...]:
        cells = [_entry(own, key) for key in costs]
        flops, peak = (mean(run[key] for run in own) for key in ("flops_per_token", "peak_bytes"))
        scaled = (number((item.mean or 0.0) / by) for item, by in ((flops, factor), (peak, memory)))
        return (Cell(name, hue=palette[own[0]["kind"]]), *cells, *map(Cell, scaled))

    devices = ", ".join(dict.fromkeys(run["device"] for run in runs if run.get("device")))
    words = f"Cost of one run, mean over the runs of a kind with 95 % intervals{f'; on {devices}' if devices else ''}. "
    blocks: list[Block] = [
        Table(words + note, tuple(map(Cell, head)), tuple(line(name, own) for name, own in kinds.items())),
        _parts(kinds, factor, letter, palette),
    ]
    if len(runs) > len(kinds):
        rows = tuple(line(run_words(run), [run]) for run in runs)
        blocks.append(Table("Cost of every run.", tuple(map(Cell, head)), rows, fold=counted(len(runs), "run")))
    lead = "What does training cost, and on what is it spent?"
    return Section("training-cost", "Cost of training", lead, tuple(blocks))


def _entry(runs: Sequence[Run], key: str) -> Cell:
    """The mean of a field over runs."""
    found = mean(run.get(key) for run in runs)
    if key == "peak_share" and found.mean is not None:
        return Cell(f"{100 * found.mean:.0f} %")
    return entry(found)


def _parts(kinds: Mapping[str, Sequence[Run]], factor: float, letter: str, palette: Palette) -> Table:
    parts = list(dict.fromkeys(part for own in kinds.values() for run in own for part in run["flops_parts"]))
    spent = {
        (part, name): mean(run["flops_parts"].get(part, 0.0) for run in own).mean or 0.0
        for part in parts
        for name, own in kinds.items()
    }
    largest = max(spent.values(), default=0.0) or 1.0

    def cell(part: str, name: str) -> Cell:
        value, hue = spent[part, name], palette[kinds[name][0]["kind"]]
        return Cell(number(value / factor), hue=hue, heat=value / largest)

    rows = tuple((Cell(spoken(part)), *(cell(part, name) for name in kinds)) for part in parts)
    head = (Cell("part"), *(Cell(name) for name in kinds))
    return Table(f"Where the operations go: {letter}FLOP per token, counted.", head, rows)


def _curve(
    name: str, runs: Sequence[Run], shades: Mapping[Setting, str], order: Mapping[Setting, int], palette: Palette
) -> Panel:
    factor, letter = prefix(run["tokens"][-1] for run in runs if run["tokens"])
    lines = list[tuple[Run, list[tuple[float, float]]]]()
    for run in runs:
        pairs = zip(run["tokens"], run["curves"].get(name, [None] * len(run["tokens"])), strict=True)
        known = [(tokens / factor, float(value)) for tokens, value in pairs if value is not None]
        # the last value is always kept
        lines.append((run, (known[:: -max(1, -(-len(known) // _POINTS))])[::-1]))
    values = [y for _, known in lines for _, y in known]
    # a share is read from zero
    log = name != "dead" and bool(values) and min(values) > 0 and max(values) > 12 * min(values)
    x = Scale.over([tokens for _, known in lines for tokens, _ in known], include=0.0)
    label = f"tokens{f' [{letter}]' if letter else ''}"
    chart = Chart(x, Scale.over(values, log=log), x_label=label, width=NARROW, height=190)
    for run, known in lines:
        key = Setting.of(run)
        if known:
            style = f"{palette[key.kind]} {shades[key]} setting-{order[key]} seed-{run['seed']}"
            chart.line([tokens for tokens, _ in known], [y for _, y in known], style, run_words(run))
    title = _CURVES.get(name, spoken(name))
    return Panel(title, chart.svg(f"{title} by tokens, one line for each run", readable=True))


def _last(runs: Sequence[Run], names: Sequence[str], palette: Palette) -> Table:
    def last(run: Run, name: str) -> Cell:
        values = [value for value in run["curves"].get(name, ()) if value is not None]
        return Cell(number(estimate(float(values[-1])).mean if values else None))

    rows = tuple((Cell(run_words(run), hue=palette[run["kind"]]), *(last(run, name) for name in names)) for run in runs)
    head = (Cell("run"), *(Cell(_CURVES.get(name, spoken(name))) for name in names))
    return Table("The last value of every curve.", head, rows, fold="Last values")
