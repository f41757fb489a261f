"""The section on position 0 and principal directions: which of them dictionaries follow, which the network reads."""

from collections.abc import Mapping, Sequence
from typing import Any

from innerspace.report.blocks import Block, Cell, Figure, Palette, Panel, Section, Table
from innerspace.report.numerals import average, estimate, number, phrase
from innerspace.report.plots import NARROW, Chart, Scale

_SETS = {"all": "with position 0", "beyond": "without position 0"}


def first_position(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """Norms, principal directions, what resampling along them costs, and who follows them.

    ``first_position`` has an entry for every site: ``site``, ``norm_at_first``, ``norm_beyond``, ``kinds``, ``seeds``
    (by kind), and under ``all``, ``beyond`` and ``random`` directions: ``variance``, ``outlier``, ``divergence`` (an
    estimate) and ``followed``, by ``kind·seed``: ``beyond``, ``at_first`` (or null), ``gain_at_first``, ``aligned`` and
    ``nearest``.
    """
    given: Sequence[Mapping[str, Any]] = report["first_position"]
    blocks: list[Block] = [_costs(given, note), _follows(given, palette), _table(given, palette)]
    lead = "Is the direction of the outlier at position 0 read elsewhere, and what do dictionaries spend on it?"
    return Section("first-position", "Position 0", lead, tuple(blocks))


def over(axis: Mapping[str, Any], kind: str, key: str) -> float | None:
    """The mean over a kind's seeds of what is told of a direction."""
    return average([one[key] for name, one in axis["followed"].items() if name.rpartition("·")[0] == kind])


def _costs(given: Sequence[Mapping[str, Any]], note: str) -> Figure:
    panels = list[Panel]()
    for one in given:
        for key, words in _SETS.items():
            axes = one[key]
            found = [estimate(axis["divergence"]) for axis in axes]
            chance = average([estimate(axis["divergence"]).mean for axis in one["random"]])
            x = Scale(0.5, len(axes) + 0.5)
            y = Scale.over([*(value for item in found for value in item), chance], log=True)
            chart = Chart(x, y, x_label="principal direction", y_label="divergence (nats)", width=NARROW)
            if chance is not None and chance > 0:
                chart.rule(chance, "null base", upright=False)
            xs = [float(i + 1) for i in range(len(axes))]
            chart.band(xs, [item.low for item in found], [item.high for item in found], "hue-0")
            chart.line(xs, [item.mean for item in found], "hue-0")
            tips = [
                f"direction {i + 1}, {words}\n{phrase(item, 'nats')}\n{axis['variance']:.0%} of the variance beyond "
                f"position 0\n|cosine| with the outlier {number(axis['outlier'], 2)}"
                for i, (axis, item) in enumerate(zip(axes, found, strict=True))
            ]
            chart.dots(xs, [item.mean for item in found], tips, "hue-0")
            norms = (
                f"{one['norm_at_first'] / one['norm_beyond']:.1f} times the norm at position 0" if key == "all" else ""
            )
            panels.append(Panel(f"{one['site']}, {words}", chart.svg(f"Divergence by direction: {one['site']}"), norms))
    caption = (
        "KL(clean ‖ ablated) at positions beyond 0 when there the component along a principal direction is exchanged "
        "for that of another position. The directions are those of all states, or of those beyond position 0. Dashed: "
        f"random directions. 95 % intervals over documents. {note}"
    )
    return Figure(caption, tuple(panels), "What the network reads")


def _follows(given: Sequence[Mapping[str, Any]], palette: Palette) -> Figure:
    panels = list[Panel]()
    for one in given:
        axes = one["all"]
        xs = [float(i + 1) for i in range(len(axes))]
        values = {kind: [over(axis, kind, "beyond") for axis in axes] for kind in one["kinds"]}
        scale = Scale.over([v for own in values.values() for v in own], include=1.0)
        chart = Chart(
            Scale(0.5, len(axes) + 0.5), scale, x_label="principal direction", y_label="Pearson's r", width=NARROW
        )
        for kind, own in values.items():
            chart.line(xs, own, palette[kind])
            tips = [f"{kind}, direction {i + 1}\nr {number(v, 3)}" for i, v in enumerate(own)]
            chart.dots(xs, own, tips, palette[kind])
        panels.append(Panel(one["site"], chart.svg(f"How dictionaries follow principal directions: {one['site']}")))
    kinds = list(dict.fromkeys(kind for one in given for kind in one["kinds"]))
    key = tuple((f"line {palette[kind]}", kind) for kind in kinds)
    caption = (
        "How far reconstructions follow hidden states along each principal direction (position 0 among them), at "
        "positions beyond 0: Pearson's r of x · d and x̂ · d, the mean over seeds."
    )
    return Figure(caption, tuple(panels), "What dictionaries follow", key=key)


def _table(given: Sequence[Mapping[str, Any]], palette: Palette) -> Table:
    rows = list[tuple[Cell, ...]]()
    for one in given:
        first, random = one["all"][0], one["random"]
        chance = average([over(axis, kind, "aligned") for axis in random for kind in one["kinds"]])
        for kind in one["kinds"]:
            at_first = over(first, kind, "at_first")
            rows.append(
                (
                    Cell(one["site"]),
                    Cell(kind, hue=palette[kind]),
                    Cell("same token" if at_first is None else number(at_first, 3)),
                    Cell(number(over(first, kind, "gain_at_first"), 3)),
                    Cell(number(over(first, kind, "beyond"), 3)),
                    Cell(f"{over(first, kind, 'aligned') or 0:.1%}", f"chance {chance or 0:.1%}"),
                    Cell(number(over(first, kind, "nearest"), 2)),
                )
            )
    head = ("site", "kind", "r at position 0", "gain there", "r beyond", "latents along it", "nearest |cosine|")
    caption = (
        "The first principal direction of all states. Gain: the mean of x̂ · d over that of x · d at position 0. "
        "Latents along it: |cosine| of ½ at least; chance is that of random directions. Where every sequence begins "
        "with the same token, nothing varies at position 0 that could be followed."
    )
    return Table(caption, tuple(map(Cell, head)), tuple(rows))
