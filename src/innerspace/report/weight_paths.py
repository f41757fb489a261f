"""The section on weight paths: which parts of one layer the weights carry into which parts of a later one."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from innerspace.report.blocks import Block, Cell, Figure, Palette, Panel, Section, Table, Tables
from innerspace.report.numerals import number
from innerspace.report.subspaces import part_cell, part_hue, part_name, part_tip

_KINDS = {
    "stream": "the stream itself",
    "ov": "values of a head",
    "qk": "queries and keys of a head",
    "mlp": "an MLP",
}

_HUES = {"stream": "hue-6", "ov": "hue-0", "qk": "hue-3", "mlp": "hue-1"}

_DRAWN, _LISTED = 60, 24
"""Paths in the drawing, and in the table of the strongest."""

WIDE, TALL, NODE, EDGE = 640, 420, 14, 96


class _Edge(NamedTuple):
    """One entry of a path's matrix."""

    score: float
    path: Mapping[str, Any]
    source: int
    target: int


def weight_paths(report: Mapping[str, Any], palette: Palette, note: str) -> Section:  # noqa: ARG001
    """The strongest paths between parts as a drawing and a table, and every matrix.

    ``weight_paths`` holds

    * ``sites``, in order of depth: ``site`` and ``parts`` (see ``subspaces.py``) of each;
    * ``paths``: one entry for each matrix of scores, 1 being what random subspaces of the same sizes give:

      * ``kind``: ``stream`` (what stays in the residual stream), ``ov`` (what a head moves from one position to
        another), ``mlp`` (what passes through the neurons) or ``qk`` (what a head compares: of one site only);
      * ``source`` and ``target``, names of sites; for ``qk`` both are the site that the head reads, ``source`` being
        the key's side and ``target`` the query's; ``block`` and ``head``, numbers, where there are such;
      * ``score``: a matrix, a row for each part of the target, a column for each part of the source.

    * ``touches``, optional: one entry for each way in which a head or an MLP reads or writes a site by itself: ``what``
      (``query``, ``key``, ``value``, ``write`` of a head, ``read``, ``write`` of an MLP), ``site``, ``block``, ``head``
      (``null`` for an MLP), ``score`` (a list, an entry for each part; 1 as above).
    """
    given = report["weight_paths"]
    sites = {one["site"]: one["parts"] for one in given["sites"]}
    for path in given["paths"]:
        _check(path, sites)
    edges = sorted(_edges(given["paths"]), key=lambda edge: -edge.score)
    flows = [edge for edge in edges if edge.path["kind"] != "qk"][:_DRAWN]
    key = tuple((f"line {_HUES[kind]}", _KINDS[kind]) for kind in ("stream", "ov", "mlp"))
    caption = (
        f"The {len(flows)} strongest paths, from the first site at the left to the last: the thicker, the stronger. "
    )
    caption += "Pointing at a part or a path tells what it is. Scores are the energy that the weights alone carry from "
    caption += f"part to part, over what random subspaces of the same sizes give. {note}"
    blocks: list[Block] = [Figure(caption, (Panel("", _drawing(flows, sites)),), key=key)]
    blocks.append(_strongest(edges[:_LISTED], sites))
    blocks.append(_matrices(given["paths"], sites))
    if given.get("touches"):
        blocks.append(_touches(given["touches"], sites))
    lead = "Which parts feed which? Read from the weights, without any data."
    return Section("weight-paths", "Paths through the weights", lead, tuple(blocks))


def _check(path: Mapping[str, Any], sites: Mapping[str, Sequence[Any]]) -> None:
    if path["kind"] not in _KINDS:
        raise ValueError(f"a path is one of {', '.join(_KINDS)}, not {path['kind']!r}")
    if strangers := [path[end] for end in ("source", "target") if path[end] not in sites]:
        raise ValueError(f"a path names the site {strangers[0]!r}; there are {', '.join(sites)}")
    rows, columns = len(sites[path["target"]]), len(sites[path["source"]])
    if [len(row) for row in path["score"]] != [columns] * rows:
        raise ValueError(f"the scores of {_through(path)} should be a matrix of {rows} × {columns}, as there are parts")


def _through(path: Mapping[str, Any]) -> str:
    """What a path goes through: ``head 2.5``, ``MLP 3``, ``stream``."""
    block, head = path.get("block"), path.get("head")
    match path["kind"]:
        case "stream":
            return "stream"
        case "mlp":
            return f"MLP {block}"
        case kind:
            return f"head {block}.{head}" + (", attention" if kind == "qk" else "")


def _edges(paths: Sequence[Mapping[str, Any]]) -> Iterator[_Edge]:
    for path in paths:
        for target, row in enumerate(path["score"]):
            yield from (_Edge(score, path, source, target) for source, score in enumerate(row) if score is not None)


def _ends(edge: _Edge, sites: Mapping[str, Sequence[Any]]) -> tuple[str, str]:
    pairs = ((edge.path["source"], edge.source), (edge.path["target"], edge.target))
    source, target = (f"{site} part {part_name(sites[site], part)}" for site, part in pairs)
    return source, target


def _drawing(edges: Sequence[_Edge], sites: Mapping[str, Sequence[Any]]) -> str:
    place = dict[tuple[str, int], tuple[float, float, float]]()
    marks = list[str]()
    step = (WIDE - 2 * EDGE) / max(len(sites) - 1, 1)
    for column, (site, parts) in enumerate(sites.items()):
        gap, total, top = 7.0, sum(part["size"] for part in parts), 28.0
        room = TALL - top - gap * (len(parts) - 1) - 4
        x = EDGE + column * step
        marks.append(f'<text class="x" x="{x:.1f}" y="14">{escape(site)}</text>')
        for i, part in enumerate(parts):
            extent = room * part["size"] / total
            place[site, i] = (x, top + extent / 2, extent)
            box = f'x="{x - NODE / 2:.1f}" y="{top:.1f}" width="{NODE}" height="{extent:.1f}" rx="2"'
            name = f"{column}-{i}"
            tip = escape(f"{site} · {part_tip(parts, i)}")
            marks.append(f'<rect class="{part_hue(i)}" data-node="{name}" {box} data-tip="{tip}"/>')
            first = column == 0
            at = f'x="{x - NODE if first else x + NODE:.1f}" y="{top + extent / 2:.1f}" dy=".32em"'
            marks.append(f'<text class="{"y" if first else "z"}" {at}>{escape(part_name(parts, i))}</text>')
            top += extent + gap
    columns = {site: i for i, site in enumerate(sites)}
    largest = max((edge.score for edge in edges), default=1.0)
    lines = list[str]()
    for edge in reversed(edges):
        (a, u, _), (b, v, _) = place[edge.path["source"], edge.source], place[edge.path["target"], edge.target]
        a, b = a + NODE / 2, b - NODE / 2
        source, target = _ends(edge, sites)
        tip = escape(f"{source} → {target}\nthrough {_through(edge.path)}\n{number(edge.score)} × chance")
        nodes = f"{columns[edge.path['source']]}-{edge.source} {columns[edge.path['target']]}-{edge.target}"
        middle = (a + b) / 2
        path = f"M{a:.1f} {u:.1f}C{middle:.1f} {u:.1f} {middle:.1f} {v:.1f} {b:.1f} {v:.1f}"
        width = 1 + 6 * edge.score / largest
        style = f'style="stroke-width:{width:.1f}"'
        hue = _HUES[edge.path["kind"]]
        lines.append(f'<path class="flow {hue}" d="{path}" {style} data-nodes="{nodes}" data-tip="{tip}"/>')
    head = f'<svg class="chart flows" viewBox="0 0 {WIDE} {TALL}" role="img" aria-label="Paths between parts">'
    return f"{head}{''.join(lines)}{''.join(marks)}</svg>"


def _strongest(edges: Sequence[_Edge], sites: Mapping[str, Sequence[Any]]) -> Table:
    largest = max((edge.score for edge in edges), default=1.0)
    rows = tuple(
        (
            Cell(source, hue=_HUES[edge.path["kind"]]),
            Cell(_through(edge.path)),
            Cell(target),
            Cell(number(edge.score), hue=_HUES[edge.path["kind"]], heat=edge.score / largest),
        )
        for edge in edges
        for source, target in (_ends(edge, sites),)
    )
    caption = "The strongest paths; for attention, from the key's side to the query's."
    return Table(caption, tuple(map(Cell, ("from", "through", "to", "× chance"))), rows)


def _matrices(paths: Sequence[Mapping[str, Any]], sites: Mapping[str, Sequence[Any]]) -> Tables:
    """One matrix for every kind of path between two sites: the largest score over heads and blocks."""
    groups = dict[tuple[str, str, str], list[Mapping[str, Any]]]()
    for path in paths:
        groups.setdefault((path["source"], path["target"], path["kind"]), []).append(path)

    def cell(own: Sequence[Mapping[str, Any]], target: int, source: int, most: float) -> Cell:
        known = [(path["score"][target][source], path) for path in own if path["score"][target][source] is not None]
        if not known:
            return Cell("")
        score, path = max(known, key=lambda item: item[0])
        origin, aim = _ends(_Edge(score, path, source, target), sites)
        tip = f"{origin} → {aim}\nthrough {_through(path)}\n{number(score)} × chance"
        return Cell(number(score, 2), tip=tip, hue=_HUES[path["kind"]], heat=score / most)

    tables = list[Table]()
    for (source, target, kind), own in groups.items():
        most = max((score for path in own for row in path["score"] for score in row if score is not None), default=1.0)
        head = (Cell("to \\ from"), *(part_cell(sites[source], i) for i in range(len(sites[source]))))
        rows = tuple(
            (part_cell(sites[target], i), *(cell(own, i, j, most) for j in range(len(sites[source]))))
            for i in range(len(sites[target]))
        )
        where = f"{source} → {target}" if kind != "qk" else f"{source}, keys → queries"
        tables.append(Table(f"{where}: {_KINDS[kind]}.", head, rows, "matrix", fold=f"{where}: {_KINDS[kind]}"))
    return Tables(
        "Scores of every pair of parts; where several heads or blocks lie between, the largest.", tuple(tables)
    )


def _touches(touches: Sequence[Mapping[str, Any]], sites: Mapping[str, Sequence[Any]]) -> Table:
    count = max(len(parts) for parts in sites.values())

    def words(one: Mapping[str, Any]) -> str:
        return f"MLP {one['block']}" if one.get("head") is None else f"head {one['block']}.{one['head']}"

    def cell(one: Mapping[str, Any], i: int) -> Cell:
        if i >= len(one["score"]):
            return Cell("")
        most = max(one["score"])
        tip = f"{words(one)}, {one['what']}\n{one['site']} part {part_name(sites[one['site']], i)}"
        return Cell(number(one["score"][i], 2), tip=tip, hue=part_hue(i), heat=one["score"][i] / most if most else 0.0)

    for one in touches:
        if one["site"] not in sites or len(one["score"]) != len(sites[one["site"]]):
            raise ValueError(f"{words(one)}, {one['what']}: there should be a score for each part of a known site")
    rows = tuple(
        (Cell(f"{words(one)} · {one['what']}", one["site"]), *(cell(one, i) for i in range(count))) for one in touches
    )
    head = (Cell("reads or writes"), *(Cell(str(i), hue=f"{part_hue(i)} upright") for i in range(count)))
    caption = "What every head and every MLP reads and writes by itself, over what random subspaces give."
    return Table(caption, head, rows, "matrix", fold=f"Reads and writes of {len(touches)} kinds")
