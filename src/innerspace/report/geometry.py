"""The section on geometry: how alike features are within and across dictionaries, and a map on which to select them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from innerspace.report.blocks import HUE_COUNT, Atlas, Block, Cell, Figure, Palette, Panel, Section, Table, Toggles
from innerspace.report.numerals import estimate, number, phrase
from innerspace.report.plots import Chart, Scale
from innerspace.report.runs import entry

WIDE, TALL, MARGIN = 640, 520, 12

_RELATIONS = {"within": "Within a dictionary", "seeds": "Across seeds", "kinds": "Across kinds"}


def geometry(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """Histograms of nearest-neighbor similarity beside their baselines, and the map.

    ``geometry`` holds one of these keys, or both:

    * ``similarity``: entries with ``relation`` (``within`` one dictionary, to another of the same kind and ``seeds``
      apart, or to one of other ``kinds``), ``kind`` (whose features look for a neighbor), ``other`` (the kind where
      they look; the same for the first two), optionally ``site``; ``mean`` (an estimate of the mean cosine with the
      nearest neighbor), ``histogram`` (``edges`` of the cosine, ``counts`` of features); the same mean for ``random``
      directions and for directions of the same ``covariance`` (estimates).
    * ``map``: ``dictionaries`` (a list of ``name``, as in ``features``, and ``kind``) and, of equal lengths, one entry
      for each point: ``dictionary`` (its place in that list), ``latent``, ``x``, ``y`` (any unit, both the same) and
      optionally ``words`` (the feature in a few words, such as its top tokens); ``method``: a sentence on how the map
      was made.
    """
    given = report["geometry"]
    blocks: list[Block] = []
    if rows := given.get("similarity"):
        blocks += _similarity(rows, palette, note)
    if atlas := given.get("map"):
        blocks.append(_atlas(atlas, palette))
    lead = "Do dictionaries find the same directions again, and where do they differ?"
    return Section("geometry", "Geometry", lead, tuple(blocks))


def _similarity(rows: Sequence[Mapping[str, Any]], palette: Palette, note: str) -> list[Block]:
    if strangers := [row["relation"] for row in rows if row["relation"] not in _RELATIONS]:
        raise ValueError(f"a relation is one of {', '.join(_RELATIONS)}, not {strangers[0]!r}")
    within = dict[tuple[str, ...], list[Mapping[str, Any]]]()
    across = dict[tuple[str, ...], list[Mapping[str, Any]]]()
    for row in rows:
        site = row.get("site", "")
        if row["relation"] == "kinds":
            across.setdefault((site, " and ".join(sorted((row["kind"], row["other"])))), []).append(row)
        else:
            within.setdefault((site, _RELATIONS[row["relation"]]), []).append(row)
    edges = Scale.over([edge for row in rows for edge in row["histogram"]["edges"]])
    key = tuple((f"line {palette[kind]}", kind) for kind in dict.fromkeys(row["kind"] for row in rows))
    key += (("line null", "mean of random directions"), ("line negated", "of directions with the same covariance"))
    words = (
        "Cosine of each feature with its nearest neighbor in the same dictionary, and in one of the same kind from "
        "another seed.",
        "Cosine of each feature with its nearest neighbor in a dictionary of another kind, in both directions: colored "
        "by the kind whose features look.",
    )
    figures = [
        Figure(f"{text} {note}", tuple(_panel(name, own, edges, palette) for name, own in panels.items()), key=key)
        for text, panels in zip(words, (within, across), strict=True)
        if panels
    ]
    head = ("features of", "nearest in", "mean cosine", "random", "same covariance")
    lines = tuple(
        (
            Cell(" · ".join(filter(None, (row.get("site", ""), row["kind"]))), hue=palette[row["kind"]]),
            Cell(row["other"], _RELATIONS[row["relation"]].lower()),
            *(entry(row.get(field)) for field in ("mean", "random", "covariance")),
        )
        for row in rows
    )
    caption = "Mean cosine with the nearest neighbor, beside what random directions give; 95 % intervals."
    return [*figures, Table(caption, tuple(map(Cell, head)), lines)]


def _panel(name: tuple[str, ...], rows: Sequence[Mapping[str, Any]], x: Scale, palette: Palette) -> Panel:
    shares = [[count / max(sum(row["histogram"]["counts"]), 1) for count in row["histogram"]["counts"]] for row in rows]
    y = Scale(0.0, 1.06 * max((value for row in shares for value in row), default=1.0) or 1.0)
    chart = Chart(x, y, x_label="cosine with the nearest neighbor", y_label="share", height=190)
    for row, heights in zip(rows, shares, strict=True):
        tip = f"{row['kind']} in {row['other']}\nmean {phrase(estimate(row['mean']))}"
        tip += f"\nrandom {phrase(estimate(row.get('random')))}"
        chart.steps(row["histogram"]["edges"], heights, palette[row["kind"]], tip)
    for field, style in (("random", "null"), ("covariance", "negated")):
        known = [at for row in rows if (at := estimate(row.get(field)).mean) is not None]
        # the baselines depend on size and width only, which the dictionaries share
        for at in {round(value, 2): value for value in known}.values():
            chart.rule(at, f"{style} base")
    numbers = " · ".join(f"{row['kind']} {number(estimate(row['mean']).mean, 2)}" for row in rows)
    title = " · ".join(filter(None, name))
    return Panel(title, chart.svg(f"Similarity with the nearest neighbor: {title}"), numbers)


def _atlas(given: Mapping[str, Any], palette: Palette) -> Atlas:
    columns = ("dictionary", "latent", "x", "y", *(["words"] if given.get("words") else []))
    sizes = {name: len(given[name]) for name in columns}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"the columns of a map should be equally long, they are {sizes}")
    if not given["x"] or any(value is None for name in ("x", "y") for value in given[name]):
        raise ValueError("every point of a map should have a place, and there should be one")
    names = given["dictionaries"]
    kinds = [one["kind"] for one in names]
    hues = [palette[kind] if len(set(kinds)) == len(kinds) else f"hue-{i % HUE_COUNT}" for i, kind in enumerate(kinds)]
    left, top, low, high = min(given["x"]), max(given["y"]), min(given["y"]), max(given["x"])
    # one scale for both axes, for a map shows distances
    scale = min((WIDE - 2 * MARGIN) / ((high - left) or 1.0), (TALL - 2 * MARGIN) / ((top - low) or 1.0))
    inset_x, inset_y = ((size - scale * extent) / 2 for size, extent in ((WIDE, high - left), (TALL, top - low)))
    clouds = list[str]()
    packed = list[dict[str, Any]]()
    for i, one in enumerate(names):
        own = [j for j, place in enumerate(given["dictionary"]) if place == i]
        path = "".join(
            f"M{inset_x + scale * (given['x'][j] - left):.1f} {inset_y + scale * (top - given['y'][j]):.1f}h0"
            for j in own
        )
        clouds.append(f'<path class="cloud {hues[i]} cloud-{i}" d="{path}"/>')
        words = [given["words"][j] for j in own] if given.get("words") else []
        packed.append(
            {"name": one["name"], "hue": hues[i], "latents": [given["latent"][j] for j in own], "words": words}
        )
    data = json.dumps(packed, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    label = f"Map of {len(given['x'])} features of {len(names)} dictionaries"
    svg = (
        f'<svg class="atlas" viewBox="0 0 {WIDE} {TALL}" role="img" aria-label="{label}">{"".join(clouds)}<g></g></svg>'
    )
    legend = Toggles("Dictionaries", tuple((f"cloud-{i}", hues[i], one["name"]) for i, one in enumerate(names)))
    return Atlas(f"A map of the features, neighbors lying close. {given['method']}", svg, data, legend)
