"""The section on fidelity: what dictionaries keep of the hidden states, and what the network loses through them."""

from collections.abc import Mapping, Sequence
from typing import Any

from innerspace.report.blocks import Block, Cell, Figure, Palette, Panel, Section, Table
from innerspace.report.numerals import number, phrase
from innerspace.report.plots import NARROW, WIDTH, Chart, Scale
from innerspace.report.runs import Run, Setting, by_setting, entry, families, mean, present, run_words, shade

_OUTPUT = {
    "ce_clean": "CE clean",
    "ce_spliced": "CE spliced",
    "ce_increase": "CE increase",
    "recovered_zero": "recovered, zero",
    "recovered_mean": "recovered, mean",
    "kl": "KL",
    "divergence": "divergence",
    "top1": "top-1 agreement",
}
_HIDDEN = {
    "explained_variance": "explained variance",
    "explained_variance_per_token": "the same, per token",
    "norm_ratio": "norm ratio",
    "cosine": "cosine",
    "l0": "L0",
    "alive": "alive",
    "tokens": "tokens",
}


def fidelity(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """Two tables by setting, the distributions of L0 and of firing, the error by layer, and every run.

    ``fidelity`` is a list of runs (see ``runs.py``). Numbers are estimates, and every field may be missing:

    * ``ce_clean``, ``ce_spliced``, ``ce_increase``, ``kl``: nats per token; ``top1``: share of tokens whose most likely
      next token stays the same; ``divergence``: nats, where there are no tokens; ``recovered_zero``,
      ``recovered_mean``: 1 − (increase through the dictionary) / (increase when the site is set to zero, to its mean).
    * ``explained_variance`` (ratio of sums), ``explained_variance_per_token`` (mean of the tokens' own ratios),
      ``norm_ratio`` (mean ‖x̂‖ / ‖x‖), ``cosine`` (mean), ``l0`` (mean), ``alive`` (latents), ``tokens`` (judged on).
    * ``l0_histogram``: ``edges`` (rising, one more than counts; latents on) and ``counts`` (tokens).
    * ``frequency_histogram``: ``edges`` (log10 of the share of tokens on which a latent fires), ``counts`` (latents)
      and ``never`` (latents that did not fire).
    * ``downstream``, optional: by depth, ``site`` and ``error``, E‖a − â‖² over the variance of a there (an estimate).
    """
    runs: list[Run] = report["fidelity"]
    groups = by_setting(runs)
    blocks: list[Block] = [*_means(groups, palette, note)]
    for title, field, words in (
        ("Latents on at once", "l0_histogram", "L0 of single tokens; shares of all tokens"),
        ("How often latents fire", "frequency_histogram", "share of tokens on which a latent fires; shares of latents"),
    ):
        if any(field in run for run in runs):
            blocks.append(_distributions(title, field, words, groups, palette))
    if any(run.get("downstream") for run in runs):
        blocks.append(_downstream(groups, palette))
    if len(runs) > len(groups):
        columns = present(_OUTPUT | _HIDDEN, runs)
        rows = tuple(
            (Cell(run_words(run), hue=palette[run["kind"]]), *(entry(run.get(key)) for key in columns))
            for own in groups.values()
            for run in own
        )
        head = (Cell("run"), *map(Cell, columns.values()))
        blocks.append(Table("Every dictionary.", head, rows, fold=f"All {len(runs)} dictionaries"))
    lead = "What do the dictionaries keep of the hidden states, and what does the network lose when it runs on them?"
    return Section("fidelity", "Fidelity", lead, tuple(blocks))


def _means(groups: Mapping[Setting, Sequence[Run]], palette: Palette, note: str) -> list[Table]:
    runs = [run for own in groups.values() for run in own]

    def table(caption: str, fields: Mapping[str, str]) -> Table:
        columns = present(fields, runs)
        rows = tuple(
            (
                Cell(key.words, hue=palette[key.kind]),
                *(entry(mean(run.get(field) for run in own)) for field in columns),
            )
            for key, own in groups.items()
        )
        return Table(caption, (Cell("dictionary"), *map(Cell, columns.values())), rows)

    seeds = max(map(len, groups.values()), default=0)
    seeded = f" Means over {seeds} seeds with 95 % intervals." if seeds > 1 else ""
    loss = (
        "What the network loses, in nats; of the loss recovered, 1 means no harm, 0 that of a site set to zero, or to "
        f"its mean.{seeded} {note}"
    )
    tables = (table(loss, _OUTPUT), table(f"What is kept of the hidden states.{seeded} {note}", _HIDDEN))
    return [one for one in tables if len(one.head) > 1]


def _distributions(
    title: str, field: str, words: str, groups: Mapping[Setting, Sequence[Run]], palette: Palette
) -> Figure:
    shown = {key: own[0] for key, own in groups.items() if field in own[0]}
    shares = {key: _shares(run[field]["counts"], run[field].get("never", 0)) for key, run in shown.items()}
    x = Scale.over([edge for run in shown.values() for edge in run[field]["edges"]])
    y = Scale(0.0, 1.06 * max((value for row in shares.values() for value in row), default=1.0) or 1.0)
    width = NARROW if len(families(shown)) > 3 else WIDTH
    label = "log10 of the firing frequency" if field == "frequency_histogram" else "latents on"

    def panel(name: tuple[str, str], own: Sequence[Setting]) -> Panel:
        chart = Chart(x, y, x_label=label, y_label="share", width=width, height=190)
        for key in own:
            run = shown[key]
            tip = f"{run_words(run)}\n{_middle(run[field])}"
            chart.steps(run[field]["edges"], shares[key], f"{palette[key.kind]} {shade(key, own)}", tip)
        never = [
            run[field]["never"] / _total(run[field]) for run in (shown[key] for key in own) if "never" in run[field]
        ]
        dead = f"{100 * min(never):.1f} to {100 * max(never):.1f} % never fire" if never else ""
        drawing = chart.svg(f"{title}: {' '.join(name)}")
        return Panel(" · ".join(filter(None, name)), drawing, dead, palette[name[1]])

    seed = next(iter(shown.values()))["seed"]
    caption = f"{words[0].upper()}{words[1:]}. The stronger color is the larger coefficient; seed {seed}."
    return Figure(caption, tuple(panel(name, own) for name, own in families(shown).items()), title)


def _total(histogram: Mapping[str, Any]) -> float:
    return max(sum(histogram["counts"]) + histogram.get("never", 0), 1)


def _shares(counts: Sequence[float], never: float) -> list[float]:
    total = max(sum(counts) + never, 1)
    return [count / total for count in counts]


def _middle(histogram: Mapping[str, Any]) -> str:
    """In which bin the median lies."""
    half, seen = sum(histogram["counts"]) / 2, 0.0
    for low, high, count in zip(histogram["edges"], histogram["edges"][1:], histogram["counts"], strict=False):
        seen += count
        if seen >= half:
            return f"median between {number(low)} and {number(high)}"
    return "no counts"


def _downstream(groups: Mapping[Setting, Sequence[Run]], palette: Palette) -> Figure:
    runs = [run for own in groups.values() for run in own]
    sites = list(dict.fromkeys(row["site"] for run in runs for row in run.get("downstream") or ()))
    errors = {
        key: [
            mean(row["error"] for run in own for row in run.get("downstream") or () if row["site"] == site)
            for site in sites
        ]
        for key, own in groups.items()
    }
    own = families(key for key in groups if any(item.mean is not None for item in errors[key]))
    width = NARROW if len(own) > 3 else WIDTH
    y = Scale.over([item.mean for row in errors.values() for item in row], log=True)

    def panel(name: tuple[str, str], own: Sequence[Setting]) -> Panel:
        chart = Chart(Scale.of(sites), y, x_label="site", y_label="error / variance", width=width)
        places = [float(i) for i in range(len(sites))]
        for key in own:
            style, row = f"{palette[key.kind]} {shade(key, own)}", errors[key]
            chart.line(places, [item.mean for item in row], style)
            tips = [f"{key.words} at {site}\n{phrase(item)}" for site, item in zip(sites, row, strict=True)]
            chart.dots(places, [item.mean for item in row], tips, style)
        drawing = chart.svg(f"Downstream error by site: {' '.join(name)}")
        return Panel(" · ".join(filter(None, name)), drawing, hue=palette[name[1]])

    caption = (
        "Squared error of the hidden states at and after the dictionary, over their variance there; mean over seeds. "
        "The stronger color is the larger coefficient."
    )
    return Figure(caption, tuple(panel(name, keys) for name, keys in own.items()), "Error by depth")
