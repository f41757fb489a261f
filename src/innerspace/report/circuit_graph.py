"""A circuit as a drawing: sites from left to right, places of the prompt from top to bottom, edges by their effect."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from innerspace.report.blocks import Panel
from innerspace.report.numerals import Estimate, estimate, number, phrase

Key = tuple[str, int | None, int]

WIDE, SIDE, ROW, GAP, TOP, BOX = 760, 112, 17, 9, 34, 11
"""In units of the drawing: its width, the margins, a node's row, the gap between places, the head, a node's box."""

_ANSWER = "answer"


def drawing(graph: Mapping[str, Any], label: str) -> Panel:
    """A graph: ``sites`` and ``places`` in order, ``nodes`` and ``edges`` (see ``report.circuits.circuits``).

    ``label`` says what it shows to those who do not see it.
    """
    sites, places = graph["sites"], graph["places"]
    boxes, bands, tall = _layout(graph["nodes"], sites, places)
    marks = list[str]()
    step = (WIDE - 2 * SIDE) / len(sites)
    for i, (top, bottom) in enumerate(bands.values()):
        if i % 2 == 0:
            marks.append(
                f'<rect class="band-of-place" x="0" y="{top:.1f}" width="{WIDE}" height="{bottom - top:.1f}"/>'
            )
    for place, (top, bottom) in bands.items():
        at = f'x="6" y="{(top + bottom) / 2:.1f}" dy=".32em"'
        marks.append(f'<text class="z" {at}>{escape(places[place])}</text>')
    for column, site in enumerate(sites):
        marks.append(f'<text class="x" x="{SIDE + column * step:.1f}" y="16">{escape(site)}</text>')
    ends = dict(boxes)
    aim = (SIDE + len(sites) * step, TOP + (tall - TOP) / 2)
    lines = _edges(graph, ends, aim)
    for node in graph["nodes"]:
        marks.append(_node(node, boxes[_key(node)], places, sites))
    box = f'x="{aim[0] - BOX / 2:.1f}" y="{aim[1] - 22:.1f}" width="{BOX}" height="44" rx="2"'
    marks.append(f'<text class="x" x="{aim[0]:.1f}" y="{aim[1] + 38:.1f}">the verb</text>')
    marks.append(f'<rect class="hue-6" data-node="{_ANSWER}" {box} data-tip="log p(right) − log p(wrong)"/>')
    head = f'<svg class="chart flows" viewBox="0 0 {WIDE} {tall:.0f}" role="img" aria-label="{escape(label)}">'
    backs = [mark for mark in marks if "band-of-place" in mark]
    fronts = [mark for mark in marks if "band-of-place" not in mark]
    return Panel("", f"{head}{''.join(backs)}{''.join(lines)}{''.join(fronts)}</svg>")


def called(node: Mapping[str, Any]) -> str:
    """A node's name within its site: the number of its latent, or the error."""
    return "error" if node["part"] is None else f"{node['part']}"


def _key(node: Mapping[str, Any]) -> Key:
    return node["site"], node["part"], node["place"]


def _layout(
    nodes: Sequence[Mapping[str, Any]], sites: Sequence[str], places: Sequence[str]
) -> tuple[dict[Key, tuple[float, float]], dict[int, tuple[float, float]], float]:
    """Where nodes are, the stretch of every place that has any, and how tall the drawing is."""
    step = (WIDE - 2 * SIDE) / len(sites)
    boxes, bands, top = dict[Key, tuple[float, float]](), dict[int, tuple[float, float]](), float(TOP)
    for place in range(len(places)):
        own = [[node for node in nodes if node["place"] == place and node["site"] == site] for site in sites]
        most = max(map(len, own))
        if not most:
            continue
        bottom = top + GAP + most * ROW
        for column, stack in enumerate(own):
            first = top + (bottom - top - len(stack) * ROW) / 2
            for i, node in enumerate(stack):
                boxes[_key(node)] = (SIDE + column * step, first + (i + 0.5) * ROW)
        bands[place] = (top, bottom)
        top = bottom
    return boxes, bands, max(top, TOP + 90.0)


def _edges(graph: Mapping[str, Any], boxes: Mapping[Key, tuple[float, float]], aim: tuple[float, float]) -> list[str]:
    """The edges, the strongest last; those of nodes at the last site lead to the answer."""
    last = graph["sites"][-1]
    drawn = list[tuple[Mapping[str, Any], Mapping[str, Any] | None, Estimate]]()
    drawn += [(edge["source"], edge["target"], estimate(edge["effect"])) for edge in graph["edges"]]
    drawn += [(node, None, estimate(node["effect"])) for node in graph["nodes"] if node["site"] == last]
    # within the circuit and to the answer effects are of one unit, and so are the widths
    most = max((abs(effect.mean or 0.0) for _, _, effect in drawn), default=0.0) or 1.0
    lines = list[str]()
    for source, target, effect in sorted(drawn, key=lambda item: abs(item[2].mean or 0.0)):
        (a, u), (b, v) = boxes[_key(source)], aim if target is None else boxes[_key(target)]
        a, b, middle = a + BOX / 2, b - BOX / 2, (a + b) / 2
        value = effect.mean or 0.0
        to = "the verb" if target is None else f"{target['site']} {called(target)} at {_named(graph, target)}"
        words = (
            f"{source['site']} {called(source)} at {_named(graph, source)} → {to}\n{phrase(effect, 'nats', sign=True)}"
        )
        own = f"{_name(graph, source)} {_ANSWER if target is None else _name(graph, target)}"
        path = f"M{a:.1f} {u:.1f}C{middle:.1f} {u:.1f} {middle:.1f} {v:.1f} {b:.1f} {v:.1f}"
        style = f'style="stroke-width:{0.6 + 7 * abs(value) / most:.2f}"'
        hue = "positive" if value >= 0 else "negative"
        lines.append(f'<path class="flow {hue}" d="{path}" {style} data-nodes="{own}" data-tip="{escape(words)}"/>')
    return lines


def _named(graph: Mapping[str, Any], node: Mapping[str, Any]) -> str:
    return str(graph["places"][node["place"]])


def _name(graph: Mapping[str, Any], node: Mapping[str, Any]) -> str:
    """What the script knows a node by."""
    return f"{graph['sites'].index(node['site'])}-{called(node)}-{node['place']}"


def _node(node: Mapping[str, Any], at: tuple[float, float], places: Sequence[str], sites: Sequence[str]) -> str:
    effect, (x, y) = estimate(node["effect"]), at
    hue = "positive" if (effect.mean or 0.0) >= 0 else "negative"
    about = f"\nfires on {node['about']}" if node.get("about") else ""
    words = f"{node['site']} {called(node)} at {places[node['place']]}\n{phrase(effect, 'nats', sign=True)}{about}"
    box = f'x="{x - BOX / 2:.1f}" y="{y - BOX / 2:.1f}" width="{BOX}" height="{BOX}" rx="2"'
    name = f"{sites.index(node['site'])}-{called(node)}-{node['place']}"
    label = f"{called(node)} {node['about'].split(' ')[0]}" if node.get("about") else called(node)
    text = f'<text class="y" x="{x - BOX:.1f}" y="{y:.1f}" dy=".32em">{escape(label)}</text>'
    return f'<rect class="{hue}" data-node="{name}" {box} data-tip="{escape(words)}"/>{text}'


def strongest(graph: Mapping[str, Any], count: int = 8) -> str:
    """The strongest nodes in words, for those who do not see the drawing."""
    nodes = sorted(graph["nodes"], key=lambda node: -abs(estimate(node["effect"]).mean or 0.0))[:count]
    return "; ".join(
        f"{node['site']} {called(node)} at {graph['places'][node['place']]} {number(estimate(node['effect']).mean, 2)}"
        for node in nodes
    )
