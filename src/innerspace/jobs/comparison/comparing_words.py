"""What a comparison comes to, in words that follow from the numbers: figures to begin with, and plain remarks."""

from collections.abc import Mapping, Sequence
from typing import Any

from innerspace.jobs.comparison.entrants import BY_LABELS
from innerspace.report.compare import MEASURES, best_of, level_with
from innerspace.report.numerals import estimate, number, phrase

_SHOWN = ("divergence", "best_part", "slope", "disentangle")
_BASELINE = "random"


def headlines(section: Mapping[str, Any]) -> list[dict[str, str]]:
    """Who is best by four of the measures, and how sure that is."""
    lines = list[dict[str, str]]()
    for key in _SHOWN:
        best = best_of(section["entrants"], key)
        if best is None:
            continue
        value, measure = estimate(best["measures"][key]), MEASURES[key]
        others = level_with(section["entrants"], key)
        note = f"{measure.title}: {phrase(value, measure.unit)}"
        if not others:
            note += "; clearly apart from all others"
        elif len(others) < 4:
            note += f"; not clearly apart from {_listed(others)}"
        else:
            note += f"; not clearly apart from {len(others)} of {len(section['entrants']) - 1} others"
        lines.append({"label": measure.asks, "value": best["name"], "note": note})
    return lines


def remarks(section: Mapping[str, Any]) -> list[str]:
    """What the numbers allow to say, what they do not, and what was counted how."""
    entrants: Sequence[Mapping[str, Any]] = section["entrants"]
    lines = [
        f"Bits are counted as L · {section['bits']} + log₂ C(n, L): {section['bits']} bits for each of the L told "
        "coordinates that are not zero, and which ones of the n they are; coordinates are really rounded to so many "
        "levels before the output is looked at. Means and directions are not counted.",
    ]
    lines += [line for key in ("divergence", "disentangle", "slope") for line in _against_random(entrants, key)]
    idle = [one["name"] for one in entrants if _at_half(one)]
    if idle:
        lines.append(
            "In isolating variables no better than exchanging nothing or everything, which scores ½ (the interval "
            f"reaches down to it): {_listed(idle)}."
        )
    short = [one["name"] for one in entrants if one["curve"][-1]["bits"]["mean"] < section["budget"]]
    if short:
        lines.append(
            f"With all parts these spend less than the budget of {number(section['budget'])} bits, and what is "
            f"compared there is all that they have: {_listed(short)}."
        )
    wide = [one["name"] for one in entrants if one["largest"] > 1]
    if wide and len(wide) < len(entrants):
        lines.append(
            f"Parts of {_listed(wide)} have several coordinates, those of the others one: by best part and parts "
            "needed they are not compared on equal terms, by bits they are."
        )
    told = [one["name"] for one in entrants if one["kind"] == BY_LABELS]
    if told and len(told) < len(entrants):
        lines.append(
            f"Labels were seen by {_listed(told)} alone: those that readability asks for, and, where inputs are "
            "exchanged by their words, those by which they differ."
        )
    weak = [
        one["name"]
        for one in entrants
        if one["kind"] != _BASELINE
        and "angle" in one["measures"]
        and one["chance_angle"] is not None
        and estimate(one["measures"]["angle"]).mean is not None
        and float(estimate(one["measures"]["angle"]).mean or 0.0) > 0.9 * one["chance_angle"]
    ]
    if weak:
        lines.append(f"Another seed of {_listed(weak)} finds hardly more of the same parts than chance does.")
    if section["tokens"] is not None:
        lines.append(
            f"Dictionaries were trained on {section['tokens']:,} tokens of the stream; what more training would make "
            "of them is not known here."
        )
    if section["seeds"] < 3:
        lines.append("Fewer than three seeds cannot tell how fits differ; ask for three or more.")
    return lines


def _against_random(entrants: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """Who is not clearly better than the best random entrant."""
    measure = MEASURES[key]
    random = [one for one in entrants if one["kind"] == _BASELINE]
    best = best_of(random, key)
    if best is None:
        return []
    behind = [
        one["name"]
        for one in entrants
        if one["kind"] != _BASELINE and key in one["measures"] and not _better(one, best, key)
    ]
    value = phrase(estimate(best["measures"][key]), measure.unit)
    if not behind:
        return [f"By {measure.title} all are clearly better than {best['name']} ({value})."]
    return [f"By {measure.title} not clearly better than {best['name']} ({value}): {_listed(behind)}."]


def _better(one: Mapping[str, Any], other: Mapping[str, Any], key: str) -> bool:
    a, b = (estimate(each["measures"][key]) for each in (one, other))
    if a.mean is None or b.mean is None:
        return False
    if MEASURES[key].better == "less":
        return (a.high if a.high is not None else a.mean) < (b.low if b.low is not None else b.mean)
    return (a.low if a.low is not None else a.mean) > (b.high if b.high is not None else b.mean)


def _at_half(one: Mapping[str, Any]) -> bool:
    value = estimate(one["measures"].get("disentangle"))
    low = value.mean if value.low is None else value.low
    return low is not None and low <= 0.5


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
