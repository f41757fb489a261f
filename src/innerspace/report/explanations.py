"""The section on explanations: how well words tell where latents are on, next to worse words, and kinds compared."""

from collections.abc import Mapping, Sequence
from typing import Any

from innerspace.report.blocks import Block, Cell, Figure, Palette, Panel, Section, Table
from innerspace.report.numerals import estimate, interval, number, phrase
from innerspace.report.plots import NARROW, Chart, Scale
from innerspace.report.runs import counted, entry

_WAYS = {
    "explanation": "its explanation",
    "shuffled": "that of another latent",
    "random": "one made from random examples",
    "frequent": "the most frequent token or word",
}
_STYLES = {"explanation": "thick {}", "shuffled": "random", "random": "null base", "frequent": "thin {}"}
_TASKS = {"detection": "detection", "fuzzing": "fuzzing"}
_MEASURES = {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}

FIRST = 12
"""Explanations that are not folded away, of each kind."""

SIGNIFICANT = 0.05


def explanations(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """Scores of every kind beside their controls, by band, with the tests between kinds, and all explanations.

    ``explanations`` holds

    * ``bands``: names of the quantiles, from faint to strong; ``seeds`` and ``judged`` (contexts of every band);
    * ``kinds``, each with ``kind``, ``latents``, ``eligible``, ``drawn``, ``explained`` and, where anything was
      explained, ``asked``, ``unanswered``, ``unmarked`` (latents without a score of fuzzing), ``values`` (of a rule, or
      null), ``scores`` (estimates by task, measure and way), ``by_band`` (lists of estimates by task and way) and
      ``near`` (estimates by way, or null);
    * ``comparisons`` between kinds and ``controls``: ``one``, ``other``, ``task``, ``difference`` (an estimate), ``p``,
      ``holm`` and ``benjamini_hochberg``;
    * ``latents``: ``kind``, ``dictionary``, ``latent``, ``text``, ``texts`` (of all seeds), ``threshold`` (above which
      it counts as on), ``detection`` and ``fuzzing`` (estimates), ``controls`` (detection by way);
    * ``missing``: sentences on those that were drawn and are not explained.
    """
    given = report["explanations"]
    judged = [one for one in given["kinds"] if "scores" in one]
    blocks: list[Block] = []
    if judged:
        blocks += [_scores(judged, palette, note), _bands(given["bands"], judged, palette, note)]
    if given["comparisons"]:
        blocks.append(_tests(given["comparisons"], "Kinds of training compared", "", palette))
    if given["controls"]:
        fold = counted(len(given["controls"]), "test") + " next to controls"
        blocks.append(_tests(given["controls"], "Explanations next to their controls", fold, palette))
    if latents := given["latents"]:
        first = _first(latents)
        blocks.append(_latents(first, palette, "", "Explanations"))
        if len(first) < len(latents):
            blocks.append(_latents(latents, palette, counted(len(latents), "explanation"), "Every explanation"))
    lead = "Can it be said in words what latents are on for, so well that the words tell where they are on elsewhere?"
    return Section("explanations", "Explanations", lead, tuple(blocks))


def _scores(kinds: Sequence[Mapping[str, Any]], palette: Palette, note: str) -> Table:
    head = [Cell("latents of"), Cell("told by")]
    head += [Cell(task, title) for task in _TASKS.values() for title in _MEASURES.values()]
    near = any(one["near"] for one in kinds)
    head += [Cell("near misses", "AUROC")] if near else []
    rows = list[tuple[Cell, ...]]()
    for one in kinds:
        for way in one["scores"]["detection"]["auroc"]:
            own = way == "explanation"
            first = Cell(one["kind"], f"{one['explained']} of {one['eligible']} eligible", hue=palette[one["kind"]])
            values = [entry(one["scores"][task][measure][way], 2) for task in _TASKS for measure in _MEASURES]
            values += [entry(one["near"][way] if one["near"] else None, 2)] if near else []
            rows.append((first if own else Cell(""), Cell(_WAYS[way]), *values))
    lengths = [f"{one['kind']} {number(one['values'], 2)}" for one in kinds if one["values"] is not None]
    words = f" Values that a rule names, on average: {', '.join(lengths)}." if lengths else ""
    caption = (
        "How well explanations tell where latents are on, on contexts that they were not made from; below each number "
        "its 95 % interval over documents and latents. Detection: contexts in which a latent is on, from five "
        "quantiles of its activations, next to as many in which it is off. Fuzzing: marks at the right position next "
        f"to marks at a wrong one. Guessing gives 0.5 everywhere.{words} {note}"
    )
    return Table(caption, tuple(head), tuple(rows))


def _bands(bands: Sequence[str], kinds: Sequence[Mapping[str, Any]], palette: Palette, note: str) -> Figure:
    x = Scale.over([0, 100])
    middles = [(i + 0.5) * 100 / len(bands) for i in range(len(bands))]
    every = [value for one in kinds for task in _TASKS for own in one["by_band"][task].values() for item in own
             for value in estimate(item)]  # fmt: skip
    y = Scale.over(every, include=0.5)
    panels = list[Panel]()
    for one in kinds:
        hue = palette[one["kind"]]
        for task in _TASKS:
            chart = Chart(x, y, x_label="quantile of the activation [%]", y_label="AUROC", width=NARROW)
            chart.rule(0.5, "null base", upright=False)
            for way, own in one["by_band"][task].items():
                values, style = [estimate(item) for item in own], _STYLES[way].format(hue)
                if way == "explanation":
                    chart.band(middles, [item.low for item in values], [item.high for item in values], hue)
                chart.line(middles, [item.mean for item in values], style)
                tips = [
                    f"{one['kind']}, {name}\n{_WAYS[way]}: {phrase(item, digits=2)}"
                    for name, item in zip(bands, values, strict=True)
                ]
                chart.dots(middles, [item.mean for item in values], tips, hue if "{}" in _STYLES[way] else "random")
            panels.append(Panel(f"{one['kind']}: {task}", chart.svg(f"AUROC of {task} by quantile, {one['kind']}")))
    key = tuple((f"line {style.format('hue-0')}", _WAYS[way]) for way, style in _STYLES.items())
    caption = (
        "By the strength of the activation, from faint to strong: what an explanation of the strongest examples alone "
        f"would hide. Tinted: 95 % intervals of the explanations. {note}"
    )
    return Figure(caption, tuple(panels), "From faint to strong", key=key)


def _tests(tests: Sequence[Mapping[str, Any]], title: str, fold: str, palette: Palette) -> Table:
    head = (title, "task", "difference of AUROC", "p", "p, Holm", "p, Benjamini–Hochberg")
    rows = tuple(
        (
            Cell(f"{one['one']} − {one['other']}", hue=palette[one["one"]]),
            Cell(one["task"]),
            Cell(
                number(estimate(one["difference"]).mean, 2, sign=True),
                interval(estimate(one["difference"]), 2, sign=True),
            ),
            Cell(number(one["p"], 2)),
            Cell(number(one["holm"], 2), marked=one["holm"] is not None and one["holm"] < SIGNIFICANT),
            Cell(number(one["benjamini_hochberg"], 2)),
        )
        for one in tests
    )
    caption = (
        f"{title}: two-sided bootstrap p values, as they are and corrected for the {len(tests)} tests of this table. "
        "Holm bounds the chance of a single false finding, Benjamini–Hochberg the share of false ones. Framed: below "
        "0.05 after Holm."
    )
    return Table(caption, tuple(map(Cell, head)), rows, fold=fold)


def _first(latents: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of each kind that came first; nobody chose them by their scores."""
    shown = list[Mapping[str, Any]]()
    for kind in dict.fromkeys(one["kind"] for one in latents):
        shown += [one for one in latents if one["kind"] == kind][:FIRST]
    return shown


def _latents(latents: Sequence[Mapping[str, Any]], palette: Palette, fold: str, title: str) -> Table:
    head = ("latent", "is on for", "detection", "fuzzing", "another's", "random", "frequent")
    rows = tuple(
        (
            Cell(f"{one['dictionary']} · {one['latent']}", hue=palette[one["kind"]]),
            Cell(one["text"], _others(one), wrap=True),
            entry(one["detection"], 2),
            entry(one["fuzzing"], 2),
            *(Cell(number(one["controls"].get(way), 2)) for way in ("shuffled", "random", "frequent")),
        )
        for one in latents
    )
    caption = (
        f"{title}, in the words of the first seed's examples; AUROC over all seeds, 95 % intervals over documents. "
        "To the right, detection by the controls. Not sorted by score: these are the first that were drawn."
        if not fold
        else f"{title}, with AUROC over all seeds and 95 % intervals over documents."
    )
    return Table(caption, tuple(map(Cell, head)), rows, fold=fold)


def _others(one: Mapping[str, Any]) -> str:
    """From where on it counts as on, where that is not zero, and whether other examples led to other words."""
    different, threshold = len({*one["texts"]}), one["threshold"]
    said = [f"its uppermost tenth, above {number(threshold, 2)}"] if threshold else []
    said += [f"{different} wordings from {len(one['texts'])} seeds"] if different > 1 else []
    return "; ".join(said)
