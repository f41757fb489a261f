"""The section on what sparsity costs: fronts of damage against L0, by kind of training, and the kinds compared."""

from collections.abc import Mapping, Sequence
from typing import Any

from innerspace.report.blocks import Block, Cell, Figure, Palette, Panel, Section, Table, Verdict, Verdicts
from innerspace.report.numerals import average, estimate, number, phrase
from innerspace.report.plots import Chart, Scale
from innerspace.report.runs import Run, Setting, by_setting, counted, entry, level, mean, present, run_words

_DAMAGE = {"ce_increase": "CE increase", "kl": "KL", "divergence": "Divergence"}
_MEASURES = {
    "l0": "L0",
    **_DAMAGE,
    "explained_variance": "Explained variance",
    "alive": "Alive latents",
    "latents": "Latents",
    "tokens": "Tokens trained on",
}
_UNITS = {"ce_increase": "nats per token", "kl": "nats per token", "divergence": "nats"}


def pareto(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """Fronts, claims, ratios and every run.

    ``pareto`` holds

    * ``runs``: a list of runs (see ``runs.py``), each with ``l0`` (mean number of latents on), ``explained_variance``
      (1 − Σ‖x − x̂‖² / Σ‖x − x̄‖²) and ``alive`` (latents that fire on the held-out tokens); ``ce_increase`` and
      ``kl`` (nats per token), or ``divergence`` (nats) where there are no tokens; optionally ``latents`` (the size of
      the dictionary) and ``tokens`` (trained on).
    * ``reference``: the kind to which the others are compared, such as ``local``.
    * ``ratios``, optional: one entry for each ``kind`` and level that was compared (and ``site``):
      ``of`` is the measure compared and ``at`` the measure held equal, both by their names in ``runs``, ``level`` its
      value; ``own`` and ``reference`` are the interpolated values, ``ratio`` their quotient, all three estimates.
    * ``claims``, optional: ``claim`` (a sentence), ``kind``, ``of``, ``at`` (as above), ``bound`` (what the ratio
      should not exceed), ``ratio`` (the estimate that was tested), ``verdict`` (a sentence), ``holds`` (true, false, or
      null where the interval leaves it open).
    """
    given = report["pareto"]
    runs, reference = given["runs"], given["reference"]
    blocks: list[Block] = []
    if claims := given.get("claims"):
        blocks.append(Verdicts(tuple(_verdict(claim, reference, palette) for claim in claims)))
    sites = list(dict.fromkeys(run.get("site", "") for run in runs))
    for site in sites:
        blocks += _fronts(site, [run for run in runs if run.get("site", "") == site], palette, note)
    if ratios := given.get("ratios"):
        blocks += _comparison(ratios, given.get("claims", ()), reference, palette)
    blocks.append(_table(runs, palette))
    lead = "What does sparsity cost, and which way of training pays least for it?"
    return Section("pareto", "Pareto fronts", lead, tuple(blocks))


def _verdict(claim: Mapping[str, Any], reference: str, palette: Palette) -> Verdict:
    found = (
        f"{_MEASURES[claim['of']]} of {claim['kind']} over that of {reference} at equal {_MEASURES[claim['at']]}: "
        f"{phrase(estimate(claim['ratio']))}; claimed at most {level(claim['bound'])}."
    )
    holds = claim["holds"]
    answer = "open" if holds is None else "holds" if holds else "fails"
    return Verdict(answer, claim["claim"], found, claim["verdict"], palette[claim["kind"]])


def _fronts(site: str, runs: Sequence[Run], palette: Palette, note: str) -> list[Block]:
    """Damage against L0 in one figure; what is explained, and what is alive, in another."""
    damage = present(_DAMAGE, runs)
    if not damage:
        raise ValueError(f"a run of 'pareto' should hold one of {', '.join(_DAMAGE)}")
    worst = next(iter(damage))
    against = [("l0", key) for key in damage], [("l0", "explained_variance"), (worst, "alive")]
    kinds = list(dict.fromkeys(run["kind"] for run in runs))
    key = tuple((f"line thick {palette[kind]}", kind) for kind in kinds)
    key += (("mark", "mean of seeds, one mark for each coefficient"), ("line thin", "one seed; bars: 95 % interval"))
    seeds = len({run["seed"] for run in runs})
    words = f"{seeds} seed{'s' if seeds != 1 else ''}, held-out. {note}"
    captions = (
        f"Damage to the network's output against the mean number of latents on (L0); lower left is better. {words}",
        f"What the dictionaries explain of the hidden states, and how many of their latents are in use. {words}",
    )
    titles = (site, "")
    return [
        Figure(caption, tuple(_front(*axes, runs, palette) for axes in pairs), title, key=key)
        for pairs, caption, title in zip(against, captions, titles, strict=True)
    ]


def _front(across: str, up: str, runs: Sequence[Run], palette: Palette) -> Panel:
    # end-to-end dictionaries may explain minus many times the variance: then what is left unexplained is the scale
    unexplained = up == "explained_variance" and min(estimate(run[up]).mean or 0.0 for run in runs) < -1
    title = "Unexplained variance" if unexplained else _MEASURES[up]

    def value(run: Run, key: str) -> float | None:
        known = estimate(run.get(key)).mean
        return 1 - known if unexplained and key == up and known is not None else known

    def scale(key: str, *, log: bool) -> Scale:
        values = [value(run, key) for run in runs]
        return Scale.over(values, log=log and all(x is None or x > 0 for x in values))

    logarithmic = up in _DAMAGE or unexplained
    chart = Chart(
        scale(across, log=True),
        scale(up, log=logarithmic),
        x_label=_labelled(across),
        y_label=_UNITS.get(up, "share, 1 − explained" if unexplained else ""),
    )
    groups = by_setting(runs)
    for kind in dict.fromkeys(key.kind for key in groups):
        hue, own = palette[kind], {key: rows for key, rows in groups.items() if key.kind == kind}
        for seed in dict.fromkeys(run["seed"] for rows in own.values() for run in rows):
            line = [
                (value(run, across), value(run, up)) for rows in own.values() for run in rows if run["seed"] == seed
            ]
            known = [(x, y) for x, y in line if x is not None and y is not None]
            chart.line([x for x, _ in known], [y for _, y in known], f"thin {hue}")
        means = {
            key: (mean(value(run, across) for run in rows), mean(value(run, up) for run in rows))
            for key, rows in own.items()
        }
        for x, y in means.values():
            chart.cross(x, y, f"bar {hue}")
        for key, (x, y) in means.items():
            if x.mean is not None and y.mean is not None:
                tip = f"{key.words}\n{_MEASURES[across]} {phrase(x)}\n{title} {phrase(y, _UNITS.get(up, ''))}"
                chart.dots([x.mean], [y.mean], [f"{tip}\n{len(own[key])} seeds"], f"mark {hue}")
    return Panel(title, chart.svg(f"{title} against {_MEASURES[across]} for {', '.join({k.kind: 0 for k in groups})}"))


def _comparison(
    ratios: Sequence[Mapping[str, Any]], claims: Sequence[Mapping[str, Any]], reference: str, palette: Palette
) -> list[Block]:
    head = ("kind", "compared", reference, "own value", f"ratio to {reference}")
    rows = tuple(
        (
            Cell(Setting.of(row).words, hue=palette[row["kind"]]),
            Cell(_MEASURES[row["of"]], f"at {_MEASURES[row['at']]} {level(row['level'])}"),
            entry(row["reference"]),
            entry(row["own"]),
            entry(row["ratio"]),
        )
        for row in ratios
    )
    caption = (
        f"Each kind next to {reference}, interpolated along the fronts to equal L0 and to equal damage, "
        "with 95 % intervals over seeds; below 1 is better."
    )
    pairs = list(dict.fromkeys((row.get("site", ""), row["of"], row["at"]) for row in ratios))
    panels = tuple(
        _ratio_panel(
            pair,
            [row for row in ratios if (row.get("site", ""), row["of"], row["at"]) == pair],
            {claim["bound"] for claim in claims if (claim["of"], claim["at"]) == pair[1:]},
            palette,
        )
        for pair in pairs
    )
    kinds = list(dict.fromkeys(row["kind"] for row in ratios))
    key = tuple((f"line {palette[kind]}", f"{kind} over {reference}") for kind in kinds)
    key += (("line null", "claimed at most"),) if claims else ()
    words = f"What a kind needs or spoils as a share of {reference}, the other being equal; bands are 95 % intervals."
    table = Table(caption, tuple(map(Cell, head)), rows, fold=f"All {len(rows)} comparisons")
    return [Figure(words, panels, key=key), table]


def _ratio_panel(
    pair: tuple[str, str, str], rows: Sequence[Mapping[str, Any]], bounds: set[float], palette: Palette
) -> Panel:
    site, of, at = pair
    items = [estimate(row["ratio"]) for row in rows]
    levels = [float(row["level"]) for row in rows]
    limits = [end for item in items for end in item] + [1.0, *bounds]
    chart = Chart(Scale.over(levels, log=min(levels) > 0), Scale.over(limits), x_label=_labelled(at))
    for bound in bounds:
        chart.rule(bound, "null", upright=False)
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    for kind in kinds:
        own = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["level"])
        x, y = [float(row["level"]) for row in own], [estimate(row["ratio"]) for row in own]
        chart.band(x, [item.low for item in y], [item.high for item in y], palette[kind])
        chart.line(x, [item.mean for item in y], palette[kind])
        tips = [f"{kind} at {_MEASURES[at]} {level(a)}\nratio {phrase(b)}" for a, b in zip(x, y, strict=True)]
        chart.dots(x, [item.mean for item in y], tips, palette[kind])
    title = f"{_MEASURES[of]} at equal {_MEASURES[at]}"
    means = {kind: average([estimate(row["ratio"]).mean for row in rows if row["kind"] == kind]) for kind in kinds}
    numbers = " · ".join(f"{kind} {number(value, 2)}" for kind, value in means.items())
    drawing = chart.svg(f"Ratio of {title}, by kind")
    return Panel(f"{site} · {title}" if site else title, drawing, f"on average {numbers}")


def _table(runs: Sequence[Run], palette: Palette) -> Table:
    columns = present(_MEASURES, runs)
    rows = tuple(
        (Cell(run_words(run), hue=palette[run["kind"]]), *(entry(run.get(key)) for key in columns))
        for own in by_setting(runs).values()
        for run in own
    )
    head = (Cell("run"), *(Cell(title, _UNITS.get(key, "")) for key, title in columns.items()))
    return Table("Every run, on held-out data.", head, rows, fold=counted(len(runs), "run"))


def _labelled(key: str) -> str:
    return f"{_MEASURES[key]} [{_UNITS[key]}]" if key in _UNITS else _MEASURES[key]
