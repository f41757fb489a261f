"""The sections on circuits: whether a network agrees, how few latents suffice, and the circuits themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

from innerspace.report.blocks import Block, Cell, Figure, Palette, Panel, Section, Table
from innerspace.report.circuit_graph import drawing, strongest
from innerspace.report.numerals import estimate, number, phrase
from innerspace.report.plots import NARROW, Chart, Scale
from innerspace.report.runs import entry


def agreement(report: Mapping[str, Any], palette: Palette, note: str) -> Section:  # noqa: ARG001
    """Does the network do what it is asked, before anything is read into how.

    ``agreement`` has an entry for every template: ``template``, ``example``, ``does``, ``prompts``, ``subjects`` and
    the estimates ``margin``, ``accuracy``, ``pairs``, ``singular``, ``plural``, ``alike``, ``unlike`` (or null).
    """
    rows = report["agreement"]
    fields = {"margin": "margin", "pairs": "pairs right", "accuracy": "prompts right"}
    more = {"singular": "singular", "plural": "plural", "alike": "noun alike", "unlike": "noun unlike"}

    def line(row: Mapping[str, Any]) -> tuple[Cell, ...]:
        told = (entry(row[key], 2) for key in (*fields, *more))
        return Cell(row["template"], row["example"]), Cell("yes" if row["does"] else "no"), *told

    head = (Cell("template"), Cell("agrees"), *map(Cell, (*fields.values(), *more.values())))
    prompts = ", ".join(f"{row['prompts']} of {row['subjects']} nouns" for row in rows)
    caption = (
        f"Margin: log p(right verb) − log p(wrong verb) in nats, the mean over prompts, of the first token in which "
        f"the two differ, which other words may begin with as well; then that of prompts with a singular or a plural "
        f"subject, and with another noun of the same number or of the other one. Pairs right: "
        f"prompts that differ in the subject's number only, whose margins have a positive sum, so that it does not "
        f"matter which verb is more frequent; chance is ½. A network agrees where the intervals of both lie above "
        f"chance, and the margin above 0 also where the other noun has the other number. Prompts: {prompts}; 95 % "
        f"intervals over nouns. {note}"
    )
    lead = "Does the network put the verb into the number of its subject? Only then is there a circuit to look for."
    return Section("agreement", "Agreement", lead, (Table(caption, head, tuple(map(line, rows))),))


def small_circuits(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """How many latents of one site are needed.

    ``small_circuits`` has an entry for every template, site and kind: ``template``, ``site``, ``kind``, ``trivial``,
    ``seeds``, ``counts``, ``faithfulness`` and ``random`` (estimates for each count), ``spliced`` (an estimate), and
    ``needed``: ``level``, ``parts`` and ``random`` (estimates, or null), ``reached`` and ``random_reached`` (seeds).
    """
    rows: Sequence[Mapping[str, Any]] = report["small_circuits"]
    tasks = list(dict.fromkeys((row["template"], row["site"]) for row in rows))
    panels = tuple(_curve(template, site, [r for r in rows if (r["template"], r["site"]) == (template, site)], palette)
                   for template, site in tasks)  # fmt: skip
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    key = tuple((f"line {palette[kind]}", kind) for kind in kinds)
    key = (*key, ("line base", "random order, each kind"))
    caption = (
        "Faithfulness when only so many latents of one site are as the pass has them, and all others and what the "
        "dictionary does not explain are at their mean for the place in the template; 0 is all at their means, 1 the "
        "network as it is. Latents are ordered by integrated gradients on prompts of other nouns. PCA has one "
        f"component for each axis. Intervals are over seeds, of PCA over nouns. {note}"
    )
    blocks: list[Block] = [Figure(caption, panels, key=key), _needed(rows, palette)]
    lead = "How few latents are enough? The rest is ablated, on prompts that took no part in choosing."
    return Section("small-circuits", "Small circuits", lead, tuple(blocks))


def _curve(template: str, site: str, rows: Sequence[Mapping[str, Any]], palette: Palette) -> Panel:
    known = [estimate(point) for row in rows for point in row["faithfulness"]]
    # counts are spaced by their logarithm, and none stands to the left of one
    most = max(count for row in rows for count in row["counts"])
    x = Scale(0.5, most * 1.3, log=True)
    y = Scale.over([value for item in known for value in item if value is not None and -0.5 < value < 1.5], include=1.0)
    chart = Chart(x, y, x_label="latents kept", y_label="faithfulness", width=NARROW)
    for level in (0.0, 1.0):
        chart.rule(level, "null base", upright=False)
    for row in rows:
        xs = [max(count, 0.6) for count in row["counts"]]
        chart.line(xs, [_within(estimate(p).mean, y) for p in row["random"]], "base thin")
    for row in rows:
        xs, hue = [max(count, 0.6) for count in row["counts"]], palette[row["kind"]]
        found = [estimate(point) for point in row["faithfulness"]]
        ends = [(_within(item.low, y), _within(item.high, y)) for item in found]
        chart.band(xs, [low for low, _ in ends], [high for _, high in ends], hue)
        chart.line(xs, [_within(item.mean, y) for item in found], hue)
        tips = [
            f"{row['kind']}: {count} latents\nfaithfulness {phrase(item, digits=2)}"
            for count, item in zip(row["counts"], found, strict=True)
        ]
        chart.dots(xs, [_within(item.mean, y) for item in found], tips, hue)
    return Panel(f"{template}, {site}", chart.svg(f"Faithfulness by latents kept, {template}, {site}"))


def _within(value: float | None, scale: Scale) -> float | None:
    """A value drawn at the edge where it lies outside."""
    return None if value is None else min(max(value, scale.low), scale.high)


def _needed(rows: Sequence[Mapping[str, Any]], palette: Palette) -> Table:
    levels = [one["level"] for one in rows[0]["needed"]]

    def cell(one: Mapping[str, Any], key: str, reached: str, seeds: int) -> Cell:
        if one[key] is None:
            return Cell("–", f"{one[reached]} of {seeds} seeds")
        return entry(one[key], 2)

    def line(row: Mapping[str, Any]) -> tuple[Cell, ...]:
        cells = (
            cell(one, key, reached, row["seeds"])
            for one in row["needed"]
            for key, reached in (("parts", "reached"), ("random", "random_reached"))
        )
        first = Cell(row["template"], row["site"])
        return first, Cell(row["kind"], hue=palette[row["kind"]]), *cells, entry(row["spliced"], 2)

    titles = [words for level in levels for words in (f"for {level:.0%}", "random order")]
    caption = (
        "Latents needed for a share of the margin, on lines between the counts that were tried; a dash where not all "
        "seeds reach it. Spliced: the share that is left when reconstructions stand in for all hidden states "
        "(m(M̃) − m(∅)) / (m(M) − m(∅)), as published. In GPT-2 small end-to-end dictionaries were found to need the "
        "fewest, in a comparison that its authors call inconclusive (Braun et al. 2024)."
    )
    head = (Cell("template"), Cell("kind"), *map(Cell, titles), Cell("spliced"))
    return Table(caption, head, tuple(map(line, rows)))


def circuits(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """The circuits across sites, how faithful they are, what they are made of, and how far gradients tell it.

    ``circuits`` holds ``nodes`` (of a circuit), ``steps``, and

    * ``rows``: ``template``, ``kind``, ``seeds``, and the estimates ``faithfulness``, ``completeness``, ``random``,
      ``spliced`` and ``errors``;
    * ``gradients``: ``template``, ``site``, ``kind``, ``latents`` of ``active``, rank correlations ``patching`` and
      ``integrated``, and ``points``: ``exact``, ``patching`` and ``integrated`` of each latent;
    * ``graphs``: ``template``, ``kind``, ``seed``, ``sites``, ``places``, ``nodes`` (``site``, ``part`` or null for the
      error, ``place``, ``effect``, ``about``) and ``edges`` (``source``, ``target``, ``effect``);
    * ``dictionaries``: ``site``, ``kind``, ``latents``, and estimates ``l0``, ``ce_increase``, ``explained_variance``
      and ``alive``.
    """
    given = report["circuits"]
    blocks: list[Block] = [_judged(given, palette, note)]
    blocks += [_graph(one, explained=one is given["graphs"][0]) for one in given["graphs"]]
    blocks += [_gradients(given, palette), _gradient_table(given, palette), _dictionaries(given, palette)]
    lead = "Which latents, at which words, and through which later ones? Circuits across sites, with their edges."
    return Section("circuits", "Circuits", lead, tuple(blocks))


def _judged(given: Mapping[str, Any], palette: Palette, note: str) -> Table:
    fields = {
        "faithfulness": "faithfulness",
        "completeness": "completeness",
        "random": "random nodes",
        "spliced": "spliced",
        "errors": "errors in it",
    }
    rows = tuple(
        (Cell(row["template"]), Cell(row["kind"], hue=palette[row["kind"]]), *(entry(row[key], 2) for key in fields))
        for row in given["rows"]
    )
    caption = (
        f"Circuits of the {given['nodes']} strongest nodes, a node being a latent, or a site's error, at one place. "
        f"Faithfulness: the share of the margin that is left when all other nodes are at their means; completeness: "
        f"the share that is left without the circuit, 0 if nothing beside it does the task; random nodes: as many "
        f"drawn from all that have an effect. Chosen on prompts of other nouns. Means over seeds. {note}"
    )
    return Table(caption, (Cell("template"), Cell("kind"), *map(Cell, fields.values())), rows)


def _graph(graph: Mapping[str, Any], *, explained: bool) -> Figure:
    """A circuit; the first one says how it is read."""
    name = f"{graph['template']}, {graph['kind']}, seed {graph['seed']}"
    words = (
        "From left to right the sites, from top to bottom the words of the prompt that have nodes. A node is a latent "
        "(its number, and the token on which it fires most) or the error; an edge is what of a node's effect passes "
        "through a later one, in nats: the wider, the more. Pointing at a node lights its edges. "
    )
    caption = f"{words if explained else ''}The strongest nodes: {strongest(graph)}."
    key = (("line positive", "towards the right verb"), ("line negative", "towards the wrong one"))
    return Figure(caption, (drawing(graph, name),), f"Circuit: {name}", key=key)


def _gradients(given: Mapping[str, Any], palette: Palette) -> Figure:
    """Effects by gradients against effects found one by one, all templates of a kind and site in one chart."""
    panels = list[Panel]()
    rows: Sequence[Mapping[str, Any]] = given["gradients"]
    for site, kind in dict.fromkeys((row["site"], row["kind"]) for row in rows):
        own = [row for row in rows if (row["site"], row["kind"]) == (site, kind)]
        xs = [x for row in own for x in row["points"]["exact"]]
        ys = [y for row in own for key in ("patching", "integrated") for y in row["points"][key]]
        chart = Chart(
            Scale.over(xs), Scale.over(ys), x_label="found one by one (nats)", y_label="by gradients", width=NARROW
        )
        both = max(min(*xs), min(*ys)), min(max(*xs), max(*ys))
        chart.line(both, both, "null base")
        for row in own:
            for key, style in (("patching", "hue-6"), ("integrated", palette[kind])):
                name = {"patching": "attribution patching", "integrated": "integrated gradients"}[key]
                tips = [f"{row['template']}\n{name} {number(y, 2)}, exactly {number(x, 2)}" for x, y in
                        zip(row["points"]["exact"], row["points"][key], strict=True)]  # fmt: skip
                chart.dots(row["points"]["exact"], row["points"][key], tips, style)
        panels.append(Panel(f"{kind}, {site}", chart.svg(f"Effects by gradients and one by one: {kind}, {site}")))
    caption = (
        f"What ablating a latent at all places does to the margin, found one by one and told by gradients: colored by "
        f"integrated gradients of {given['steps']} points, gray by attribution patching. On the dotted line they agree."
    )
    return Figure(caption, tuple(panels), "How far gradients tell the effects")


def _gradient_table(given: Mapping[str, Any], palette: Palette) -> Table:
    rows = tuple(
        (
            Cell(row["template"], row["site"]),
            Cell(row["kind"], hue=palette[row["kind"]]),
            Cell(number(row["patching"], 2)),
            Cell(number(row["integrated"], 2)),
            Cell(number(row["latents"])),
            Cell(number(row["active"])),
        )
        for row in given["gradients"]
    )
    head = ("template", "kind", "attribution patching", "integrated gradients", "latents compared", "active")
    caption = "Spearman's rank correlation with the effects that were found one by one; first seed."
    return Table(caption, tuple(map(Cell, head)), rows, fold="Rank correlations")


def _dictionaries(given: Mapping[str, Any], palette: Palette) -> Table:
    fields = {"l0": "L0", "ce_increase": "CE increase", "explained_variance": "explained variance", "alive": "alive"}
    rows = tuple(
        (Cell(row["site"]), Cell(row["kind"], hue=palette[row["kind"]]), *(entry(row[key], 3) for key in fields))
        for row in given["dictionaries"]
    )
    caption = "The dictionaries on held-out text; circuits of kinds compare only where these do."
    return Table(caption, (Cell("site"), Cell("kind"), *map(Cell, fields.values())), rows)
