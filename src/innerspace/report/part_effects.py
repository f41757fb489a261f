"""The sections on what parts of a partition carry: what patching each of them does, and what can be told from each."""

from collections.abc import Mapping, Sequence
from typing import Any

from innerspace.report.blocks import Block, Cell, Figure, Palette, Panel, Remarks, Section, Table, Tables
from innerspace.report.numerals import Estimate, estimate, interval, number, phrase
from innerspace.report.plots import Chart, Scale
from innerspace.report.runs import entry, present
from innerspace.report.subspaces import entitled, part_cell, part_hue, part_name

_GINI = {
    "effect": "by effect",
    "per_dimension": "per dimension",
    "per_variance": "per variance",
    "mean": "mean of the three",
    "normalized": "mean, over its maximum",
    "separation": "separation of variables",
}

_BEST = {
    "necessity": "lost without it",
    "dormant": "through dormant directions",
}


def patching(report: Mapping[str, Any], palette: Palette, note: str) -> Section:  # noqa: ARG001
    """What patching each part does beside the whole space, and how concentrated that is, method by method.

    ``patching`` holds

    * ``suites``: one entry for each test, of

      * ``name``; ``variable`` (what differs between a prompt and its counterfactual); ``site``; ``positions`` (a few
        words); ``measure`` (what an effect is, such as ``drop of logit(IO) − logit(S)``); ``prompts`` (their number);
      * ``whole``: the effect of patching the whole space (an estimate); ``published_whole``, optional: a number;
      * ``uses``, optional: whether the network was found to use the variable (a boolean); if not, effects of parts say
        nothing, and the page says so;
      * ``methods``: one entry for each partition, of ``method`` (the same name everywhere on the page: the learned one
        first, then ``identity``, ``random``, ``PCA, small first``, ``PCA, large first``, ``ICA``,
        ``dictionary clusters``, ``DAS``), ``parts`` and optionally ``gini`` and ``published``;

        * a part is ``size``, ``effect`` (an estimate, signed, in the units of ``whole``) and optionally ``name``,
          ``words``, ``sufficiency`` (the effect as a share of that of the whole space; where it is missing, it follows
          from the means), ``necessity`` (the share of the whole-space effect that is lost if all but this part is
          patched), ``dormant`` (the share of its effect through directions that the network does not use by itself);
        * ``gini`` and ``published``: the Gini index of the effects of the parts by ``effect``, ``per_dimension``,
          ``per_variance``, ``mean`` (of the three), ``normalized`` (that over the largest that so many parts allow);
          estimates, any may be missing; ``published`` may also hold ``share`` (of the best part in the whole).

    * ``overall``, optional: rows of ``method``, ``gini`` and ``published`` as above, means over all suites; ``gini``
      may also hold ``separation`` (``measure.patching.separation``).
    """
    given = report["patching"]
    suites = given["suites"]
    panels = tuple(_effects(suite) for suite in suites)
    key = (("mark swatch", "the part with the largest effect"), ("mark hollow", "the other parts"))
    caption = "Effect of patching one part from the counterfactual prompt, as a share of what patching the whole space "
    caption += "does (the line at 1); each mark is a part, each row a partition. Bars are 95 % intervals over prompts, "
    caption += f"of the largest. {note}"
    blocks: list[Block] = [Figure(caption, panels, key=key)]
    if given.get("overall"):
        blocks.append(_overall(given["overall"]))
    blocks.append(_best(suites))
    blocks.append(_every(suites))
    if idle := [suite["name"] for suite in suites if suite.get("uses") is False]:
        words = "The network was not found to use the variable of " + ", ".join(idle)
        blocks.append(Remarks((f"{words}: effects of parts say nothing there.",)))
    lead = "Does one part carry the variable? Each is moved from a counterfactual prompt into a clean one, by itself."
    return Section("patching", "Patching of parts", lead, tuple(blocks))


def part_labels(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """How well every label is told from each part alone, beside random parts of the same size and the whole space.

    ``part_labels`` is a list, one entry for each partition, of

    * ``site``; optionally ``name``; ``parts`` (see ``subspaces.py``);
    * ``labels``: one entry for each, of ``name`` (those of motion keep their color), ``classes`` (their number),
      ``rows`` (labeled ones), ``majority`` (the accuracy of always naming the largest class);
    * ``measures``: by name, ``linear`` (a closed-form linear probe) and ``neighbors`` (a vote of the nearest rows), or
      one of them. A measure holds, in balanced accuracy (0 to 1, estimates over splits),

      * ``parts``: for each part a list, one entry for each label;
      * ``random``: the same for parts of the same sizes under random rotations, the mean over rotations;
      * ``whole``: for each label, from all coordinates at once.
    """
    blocks = list[Block]()
    for given in report["part_labels"]:
        title, count, labels = entitled(given), len(given["parts"]), given["labels"]
        maps = list[Table]()
        for name, measure in given["measures"].items():
            for field in ("parts", "random"):
                if [len(row) for row in measure[field]] != [len(labels)] * count:
                    raise ValueError(f"{name!r} at {title}: {field!r} should have a row for each of {count} parts")
            maps.append(_told(given, name, measure, palette))
        words = (
            f"Balanced accuracy of reading a label from one part at {title}, tinted from chance to 1; in the second "
        )
        words += "line what a random part of the same size gives. Framed: the interval lies above that of the random "
        blocks.append(Tables(f"{words}part. {note}".strip(), tuple(maps)))
    lead = "What do parts tell? Every label is read from each part alone, from a random one, and from the whole space."
    return Section("part-labels", "What parts tell", lead, tuple(blocks))


def _hue(one: Mapping[str, Any], methods: Sequence[Mapping[str, Any]]) -> str:
    """The learned partition stands out from what it is compared with."""
    return "hue-0" if one is methods[0] else ""


def _effect(part: Mapping[str, Any]) -> Estimate:
    return estimate(part["effect"])


def _strongest(parts: Sequence[Mapping[str, Any]]) -> int:
    return max(range(len(parts)), key=lambda i: abs(_effect(parts[i]).mean or 0.0))


def _share(part: Mapping[str, Any], suite: Mapping[str, Any]) -> Estimate:
    """The effect of a part as a share of that of the whole space; ends in order, whatever the sign of that."""
    if part.get("sufficiency") is not None:
        return estimate(part["sufficiency"])
    item, whole = _effect(part), estimate(suite["whole"]).mean
    if not whole or item.mean is None:
        return Estimate(None)
    ends = sorted(end / whole for end in item[1:] if end is not None)
    return Estimate(item.mean / whole, *(ends if len(ends) == 2 else (None, None)))


def _effects(suite: Mapping[str, Any]) -> Panel:
    methods, whole = suite["methods"], estimate(suite["whole"])
    shares = [[_share(part, suite) for part in one["parts"]] for one in methods]
    known = [value for row in shares for item in row for value in item if value is not None]
    chart = Chart(
        Scale.over(known, include=1.0),
        Scale.of([one["method"] for one in methods]),
        x_label="share of the whole-space effect",
        left=116,
        width=380,
        height=62 + 24 * len(methods),
    )
    chart.rule(1.0, "null")
    for row, (one, own) in enumerate(zip(methods, shares, strict=True)):
        best = _strongest(one["parts"])
        for i, (part, share) in enumerate(zip(one["parts"], own, strict=True)):
            if share.mean is None:
                continue
            tip = f"{one['method']} · part {part_name(one['parts'], i)} · {part['size']} dimensions\n"
            tip += f"effect {phrase(_effect(part))}\nshare {phrase(share)}"
            tip += f"\n{part['words']}" if part.get("words") else ""
            style = f"{'learned' if row == 0 else 'baseline'} {'mark' if i == best else 'mark hollow'}"
            if i == best:
                chart.whisker(share.low, share.high, row, style)
            chart.dots([share.mean], [float(row)], [tip], style)
    published = suite.get("published_whole")
    numbers = f"{suite['variable']} · {suite['site']}, {suite['positions']} · whole space {phrase(whole)}"
    numbers += f", published {number(published)}" if published is not None else ""
    numbers += f" · {suite['measure']} · {number(suite['prompts'])} prompts"
    return Panel(suite["name"], chart.svg(f"Effects of parts in {suite['name']}, method by method"), numbers)


def _overall(rows: Sequence[Mapping[str, Any]]) -> Table:
    fields = present(_GINI, [row["gini"] for row in rows])
    head = [Cell("method")]
    for words in fields.values():
        head += [Cell(words), *([Cell("published")] if _published(rows, fields, words) else [])]

    def line(row: Mapping[str, Any]) -> tuple[Cell, ...]:
        cells = [Cell(row["method"], hue=_hue(row, rows))]
        for name, words in fields.items():
            cells.append(entry(row["gini"].get(name)))
            if _published(rows, fields, words):
                cells.append(entry(row.get("published", {}).get(name)))
        return tuple(cells)

    caption = "Gini index of the effects over the parts, mean over the suites: 0 if all carry the same, near 1 if one "
    caption += "carries all."
    if "separation" in fields:
        caption += (
            " Separation: with a part of its own for every variable, how much more of the effect that part has than"
        )
        caption += " of the other variables' effects; 0 if one part carries everything."
    return Table(caption, tuple(head), tuple(map(line, rows)))


def _published(rows: Sequence[Mapping[str, Any]], fields: Mapping[str, str], words: str) -> bool:
    """Whether any method has a published number under these words."""
    return any(
        row.get("published", {}).get(name) is not None for row in rows for name in fields if fields[name] == words
    )


def _best(suites: Sequence[Mapping[str, Any]]) -> Table:
    every = [(suite, one, one["parts"][_strongest(one["parts"])]) for suite in suites for one in suite["methods"]]
    fields = present(_BEST, [part for *_, part in every])
    ginis = present(_GINI, [one.get("gini", {}) for _, one, _ in every])
    compared = any("published" in one for _, one, _ in every)

    def line(suite: Mapping[str, Any], one: Mapping[str, Any], part: Mapping[str, Any]) -> tuple[Cell, ...]:
        published = one.get("published", {})
        cells = [
            Cell(f"{suite['name']} · {one['method']}", hue=_hue(one, suite["methods"])),
            Cell(part_name(one["parts"], _strongest(one["parts"]))),
            Cell(number(part["size"])),
            entry(part["effect"]),
            entry(_share(part, suite)),
            *([entry(published.get("share"))] if compared else []),
            *(entry(part.get(name)) for name in fields),
        ]
        for name in ginis:
            cells += [entry(one.get("gini", {}).get(name)), *([entry(published.get(name))] if compared else [])]
        return tuple(cells)

    head = ["test and method", "best part", "dimensions", "effect", "share", *(["published"] if compared else [])]
    head += fields.values()
    for words in ginis.values():
        head += [f"Gini {words}", *(["published"] if compared else [])]
    caption = "The part with the largest effect in every test, and the Gini index of the effects."
    fold = "Every test and method"
    return Table(caption, tuple(map(Cell, head)), tuple(line(*item) for item in every), fold=fold)


def _every(suites: Sequence[Mapping[str, Any]]) -> Table:
    """The effect of every part of the learned partition, which is the first method."""
    learned = [suite["methods"][0] for suite in suites]
    count = max(len(one["parts"]) for one in learned)
    largest = [max((abs(_effect(part).mean or 0.0) for part in one["parts"]), default=0.0) or 1.0 for one in learned]

    def cell(suite: Mapping[str, Any], one: Mapping[str, Any], i: int, most: float) -> Cell:
        if i >= len(one["parts"]):
            return Cell("")
        effect, part = _effect(one["parts"][i]), one["parts"][i]
        tip = f"{suite['name']}\npart {part_name(one['parts'], i)} · {part['size']} dimensions\neffect {phrase(effect)}"
        return Cell(number(effect.mean, 2), tip=tip, hue=part_hue(i), heat=abs(effect.mean or 0.0) / most)

    rows = tuple(
        (Cell(suite["name"], suite["site"]), *(cell(suite, one, i, most) for i in range(count)))
        for suite, one, most in zip(suites, learned, largest, strict=True)
    )
    longest = max((one["parts"] for one in learned), key=len)
    head = (Cell("test"), *(part_cell(longest, i) for i in range(count)))
    caption = f"Effect of every part of {learned[0]['method']}, tinted up to the largest of its test."
    return Table(caption, head, rows, "matrix")


def _told(given: Mapping[str, Any], name: str, measure: Mapping[str, Any], palette: Palette) -> Table:
    titles = {"linear": "Linear probe", "neighbors": "Vote of the nearest neighbors"}
    parts, labels = given["parts"], given["labels"]

    def cell(i: int, j: int) -> Cell:
        value, chance = estimate(measure["parts"][i][j]), estimate(measure["random"][i][j])
        if value.mean is None:
            return Cell("")
        floor = 1 / labels[j]["classes"]
        tip = f"{labels[j]['name']} from part {part_name(parts, i)}\n{phrase(value)}\nrandom part {phrase(chance)}"
        most = chance.mean if chance.high is None else chance.high
        above = None not in (value.low, most) and (value.low or 0.0) > (most or 0.0)
        heat = (value.mean - floor) / (1 - floor)
        hue = palette[labels[j]["name"]]
        return Cell(number(value.mean, 2), number(chance.mean, 2), tip, f"{hue} framed" if above else hue, heat)

    def whole(j: int) -> Cell:
        value, floor = estimate(measure["whole"][j]), 1 / labels[j]["classes"]
        heat = None if value.mean is None else (value.mean - floor) / (1 - floor)
        return Cell(number(value.mean, 2), interval(value, 2), hue=palette[labels[j]["name"]], heat=heat)

    def label(j: int) -> Cell:
        one = labels[j]
        tip = f"{one['classes']} classes, {number(one['rows'])} rows\nlargest class {number(one['majority'], 2)}"
        return Cell(one["name"], f"chance {number(1 / one['classes'], 2)}", tip, palette[one["name"]])

    columns = range(len(labels))
    rows = [(part_cell(parts, i), *(cell(i, j) for j in columns)) for i in range(len(parts))]
    rows.append((Cell("whole space"), *(whole(j) for j in columns)))
    return Table(f"{titles.get(name, name)}.", (Cell("part"), *(label(j) for j in columns)), tuple(rows), "heat")
