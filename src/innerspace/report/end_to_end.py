"""The section on dictionaries trained on by what they change in forecasts, next to others trained on alike."""

from collections.abc import Mapping
from typing import Any

from innerspace.report.blocks import Block, Cell, Palette, Remarks, Section, Table
from innerspace.report.calibration import seeds_phrase
from innerspace.report.numerals import estimate, number, phrase
from innerspace.report.runs import by_setting, counted, entry, mean, run_words

_COLUMNS = {
    "divergence": "divergence [nats]",
    "recovered": "loss recovered",
    "min_ade": "minADE [m]",
    "explained_variance": "explained variance",
    "l0": "L0",
    "alive": "alive",
}


def end_to_end(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """What forecasts lose through dictionaries of each kind: in words, by kind, and for every dictionary.

    ``end_to_end`` holds

    * ``runs`` (see ``runs.py``), each with ``divergence`` (of the forecasts from the clean ones, nats), ``recovered``
      (1: the loss is that of the clean network, 0: that with the mean in the state's place), ``min_ade`` (m),
      ``explained_variance``, ``l0``, ``alive`` (share of the latents);
    * ``tokens``: on how many more each was trained than the dictionaries it began as;
    * ``clean`` and ``ablated``: ``divergence`` and ``min_ade`` without a dictionary, and with the mean;
    * ``reference``: a kind, and ``ratios``: of the other kinds, ``kind`` and ``ratio`` (of its divergence to the
      reference's, paired by seed; an estimate);
    * ``kinds``: by kind, on what it was trained.
    """
    given = report["end_to_end"]
    groups, reference = by_setting(given["runs"]), given["reference"]
    sentences = tuple(_sentence(row["kind"], reference, row["ratio"]) for row in given["ratios"])
    rows = tuple(
        (
            Cell(key.words, given["kinds"][key.kind], hue=palette[key.kind]),
            *(entry(mean(run[name] for run in own)) for name in _COLUMNS),
        )
        for key, own in groups.items()
    )
    clean, ablated = given["clean"], given["ablated"]
    caption = (
        f"What forecasts lose through TopK dictionaries that were trained on by another {number(given['tokens'])} "
        f"tokens, the same for each kind; {seeds_phrase(given['runs'])}, with 95 % intervals. Without a dictionary the "
        f"minADE is {number(clean['min_ade'])} m; with the mean in the place of the hidden states it is "
        f"{number(ablated['min_ade'])} m, and the divergence {number(ablated['divergence'])} nats. {note}"
    )
    head = (Cell("trained on"), *map(Cell, _COLUMNS.values()))
    table = Table(caption, head, rows)
    blocks: list[Block] = [Remarks(sentences), table] if sentences else [table]
    if len(given["runs"]) > len(groups):
        every = tuple(
            (Cell(run_words(run), hue=palette[run["kind"]]), *(entry(run[name]) for name in _COLUMNS))
            for own in groups.values()
            for run in own
        )
        blocks.append(Table("Every dictionary.", head, every, fold=counted(len(given["runs"]), "run")))
    lead = "Does a dictionary that learns from the forecasts themselves keep more of what they need?"
    return Section("end-to-end", "Trained end to end", lead, tuple(blocks))


def _sentence(kind: str, reference: str, given: object) -> str:
    ratio = estimate(given)
    opening = (
        f"Through {kind} dictionaries the forecasts depart from the clean ones {phrase(ratio)} times as far as through "
        f"{reference} ones"
    )
    if ratio.low is None or ratio.high is None:
        return f"{opening}, in one seed."
    if ratio.high < 1:
        return f"{opening}: they stay closer."
    return f"{opening}: they stray farther." if ratio.low > 1 else f"{opening}: no clear difference."
