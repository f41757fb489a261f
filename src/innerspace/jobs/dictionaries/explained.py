"""What explanations come to: the numbers of the section, figures to begin with, plain remarks, contexts, an export."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from innerspace.decompose.base import Decomposition
from innerspace.explain.contexts import SceneContext, TextContext
from innerspace.explain.examples import BANDS, NEAR, TASKS, Item, Sampling
from innerspace.explain.interpret import Explained, Interpretation
from innerspace.explain.scores import MEASURES, Difference, Scores, against_controls, between
from innerspace.interop.neuronpedia import Explanation, write_explanations
from innerspace.interop.places import Source as Place
from innerspace.jobs.dictionaries.features import Member, features_section
from innerspace.jobs.inputs.subject import Subject
from innerspace.language.causal_lm import CausalLM
from innerspace.report.numerals import estimate, number, phrase

SIGNIFICANT = 0.05


@final
@dataclass(frozen=True, eq=False)
class Source:
    """A dictionary with the names that the page knows it by."""

    name: str
    kind: str
    seed: int
    what: Decomposition


@final
@dataclass(frozen=True, eq=False)
class Of:
    """What came of a kind: of ``latents`` in all its dictionaries ``eligible`` could be drawn, and ``drawn`` were."""

    kind: str
    came: Interpretation
    drawn: int
    eligible: int
    latents: int


def section(found: Sequence[Of], sources: Sequence[Source], sampling: Sampling, seeds: int) -> dict[str, Any]:
    """The section on explanations (``report.explanations``)."""
    scores = {of.kind: of.came.judged for of in found}
    known = {kind: one for kind, one in scores.items() if one is not None}
    return {
        "bands": list(BANDS),
        "seeds": seeds,
        "judged": sampling.judged,
        "kinds": [_kind(of) for of in found],
        "comparisons": [_difference(one) for one in between(known)],
        "controls": [_difference(one) for one in against_controls(known)],
        "latents": [_latent(of, i, one, sources) for of in found for i, one in enumerate(of.came.explained)],
        "missing": _missing(found),
    }


def headlines(part: Mapping[str, Any]) -> list[dict[str, str]]:
    """The detection score of every kind."""
    lines = list[dict[str, str]]()
    for one in part["kinds"][:4]:
        if "scores" in one:
            own, other = (one["scores"]["detection"]["auroc"][way] for way in ("explanation", "shuffled"))
            note = f"AUROC, {_ends(own)}; {number(other.mean, 2)} by another latent's explanation"
            label = f"{one['kind']}: where latents are on, told by words"
            lines.append({"label": label, "value": f"{own.mean:.2f}", "note": note})
    return lines


def remarks(part: Mapping[str, Any], documents: str, explainer: str, judge: str) -> list[str]:
    """What the numbers allow to say, and what they do not."""
    lines = [
        f"Explained by {explainer}, judged by {judge}. Detection: in which contexts a latent is on, of as many where "
        "it is and where it is not, from all parts of its activations. Fuzzing: whether it is on at the marked "
        "position. One half is what guessing gives."
    ]
    lines += [
        f"{one['kind']}: {one['eligible']:,} of {one['latents']:,} latents were on in enough {documents}, "
        f"{one['drawn']} of these were drawn, {one['explained']} explained and judged."
        for one in part["kinds"]
    ]
    lines += [f"{one['kind']}: {_answered(one)}" for one in part["kinds"] if one.get("unanswered")]
    tests = part["comparisons"]
    clear = [one for one in tests if one["holm"] is not None and one["holm"] < SIGNIFICANT]
    if tests:
        lines += [_said(one) for one in clear]
        if not clear:
            least = min((one["holm"] for one in tests if one["holm"] is not None), default=None)
            lines.append(
                f"No difference between kinds is clear among {len(tests)} tests (Holm, {SIGNIFICANT}): the smallest "
                f"corrected p is {number(least, 2)}."
            )
    if part["controls"]:
        won = ", ".join(_won(part["controls"], task) for task in TASKS)
        lines.append(f"Explanations are clearly better than their controls (Holm, {SIGNIFICANT}) in {won}.")
    lines += [
        f"{one['kind']}: {one['unmarked']} of {one['explained']} latents have no score of fuzzing, since none of their "
        "judged contexts has a position where they are on and one where they are off."
        for one in part["kinds"]
        if one.get("unmarked")
    ]
    if dense := sum(one["threshold"] != 0 for one in part["latents"]):
        lines.append(
            f"{dense} of the {len(part['latents'])} latents are on at more than half of the positions; of these the "
            "uppermost tenth is what is explained, and counts as on."
        )
    lines += part["missing"]
    return lines


def page_features(
    subject: Subject, site: str, sources: Sequence[Source], found: Sequence[Of], held: Sequence[Any], count: int
) -> dict[str, Any]:
    """The section on single features for the first explained latents of each kind, with what was judged of them."""
    shown = {(one.dictionary, one.latent): (of, i) for of in found for i, one in _some(of, count)}
    numbers = sorted({number for number, _ in shown})
    latents = [torch.tensor([latent for own, latent in shown if own == number]) for number in numbers]
    members = [
        Member(one.name, one.kind, None, one.seed, site, one.what, one.what.directions.detach().norm(dim=1) > 0)
        for one in (sources[number] for number in numbers)
    ]
    part = features_section(
        subject.model, held, members, count=1, latents=latents, tokenizer=subject.tokenizer, where=subject.where,
        caption=subject.caption, unit="tokens" if isinstance(subject.model.family, CausalLM) else "steps",
    )  # fmt: skip
    for entry in part["entries"]:
        of, i = shown[numbers[entry["dictionary"]], entry["latent"]]
        one = of.came.explained[i]
        entry["explanation"] = one.explanation.text
        entry["judged"] = (
            f"detection {phrase(_plain(one.detection), digits=2)} · fuzzing {phrase(_plain(one.fuzzing), digits=2)}"
        )
        if one.threshold:
            entry["judged"] += f" · counted as on above {number(one.threshold, 2)}, its uppermost tenth"
        entry["bands"] += list(_judgements(of.came.seen(i)))
    part["counted"] += " Latents were drawn from the eligible ones; the last rows are contexts that were judged."
    return part


def export(folder: Path, found: Sequence[Of], sources: Sequence[Source], place: Place) -> None:
    """Write the explanations of each dictionary in Neuronpedia's form, one a line."""
    (folder / "explanations").mkdir(exist_ok=True)
    for place_of, source in enumerate(sources):
        own = [one for of in found for one in of.came.explained if one.dictionary == place_of]
        if own and place.site.rpartition(".")[2].isdecimal():
            rows = [Explanation(one.latent, one.explanation.text, one.explanation.author) for one in own]
            write_explanations(folder / "explanations" / f"{source.name}.jsonl", place, rows, name=source.name)


def _kind(of: Of) -> dict[str, Any]:
    counts = {
        "kind": of.kind,
        "latents": of.latents,
        "eligible": of.eligible,
        "drawn": of.drawn,
        "explained": len(of.came.explained),
    }
    scores = of.came.judged
    if scores is None:
        return counts
    return {
        **counts,
        "asked": scores.asked,
        "unmarked": int(scores.copies("fuzzing")[:, 0, 0].isnan().sum()),
        "unanswered": scores.unanswered(),
        "scores": {
            task: {measure: {way: scores.mean(task, measure, way) for way in scores.ways} for measure in MEASURES}
            for task in TASKS
        },
        "by_band": {
            task: {way: [scores.mean(task, "auroc", way, band) for band in range(len(BANDS))] for way in scores.ways}
            for task in TASKS
        },
        "near": {way: scores.mean("detection", "auroc", way, NEAR) for way in scores.ways} if scores.has_near else None,
        "values": _length(of.came.explained),
    }


def _length(explained: Sequence[Explained]) -> float | None:
    """How many values the rules name, on average; None where explanations are no rules."""
    rules = [one.explanation.rule for one in explained if one.explanation.rule is not None]
    if not rules:
        return None
    return sum(len(test.values) for rule in rules for clause in rule.clauses for test in clause.tests) / len(rules)


def _difference(one: Difference) -> dict[str, Any]:
    names = ("one", "other", "task", "difference", "p", "holm", "benjamini_hochberg")
    return {name: getattr(one, name) for name in names}


def _latent(of: Of, i: int, one: Explained, sources: Sequence[Source]) -> dict[str, Any]:
    scores = of.came.scores
    return {
        "kind": of.kind,
        "dictionary": sources[one.dictionary].name,
        "latent": one.latent,
        "text": one.explanation.text,
        "texts": list(one.texts),
        "threshold": one.threshold,
        "detection": one.detection,
        "fuzzing": one.fuzzing,
        "controls": {way: _first(scores, i, way) for way in scores.ways[1:]},
    }


def _first(scores: Scores, i: int, way: str) -> float | None:
    """What detection by a control gives for one latent; None where there was no control."""
    value = float(scores.copies("detection")[i, scores.ways.index(way), 0])
    return value if math.isfinite(value) else None


def _missing(found: Sequence[Of]) -> list[str]:
    """Why latents that were drawn have no explanation, counted by reason."""
    lines = list[str]()
    for of in found:
        reasons = list(of.came.missing.values())
        lines += [
            f"{of.kind}: {reasons.count(reason)} of those drawn could not be judged: {reason}."
            for reason in dict.fromkeys(reasons)
        ]
    return lines


def _some(of: Of, count: int) -> list[tuple[int, Explained]]:
    """Some of the explained latents, of all dictionaries alike."""
    explained = list(enumerate(of.came.explained))
    step = max(1, len(explained) // max(count, 1))
    return explained[::step][:count]


def _judgements(seen: Sequence[tuple[Item, float]]) -> Iterator[dict[str, Any]]:
    """Contexts that were judged, as bands of the page: found, missed, and taken for what they are not."""
    asked = [(item, said) for item, said in seen if item.task == "detection" and math.isfinite(said)]
    for name, truth, yes in (
        ("judged: found", True, True),
        ("judged: missed", True, False),
        ("judged: wrongly said", False, True),
    ):
        examples = [_example(item) for item, said in asked if item.truth == truth and (said > 0.5) == yes][:3]
        if examples:
            values = [one["value"] if "value" in one else max(one["values"]) for one in examples]
            yield {"name": name, "low": min(values), "high": max(values), "examples": examples}


def _example(item: Item) -> dict[str, Any]:
    context = item.seen
    match context:
        case TextContext():
            return {"tokens": list(context.pieces), "values": list(context.values)}
        case SceneContext():
            return {"caption": context.shown(), "value": context.values[context.at]}
        case _:
            return {"caption": context.shown(), "value": max(context.values)}


def _said(one: Mapping[str, Any]) -> str:
    more = "better" if one["difference"].mean > 0 else "worse"
    return (
        f"In {one['task']} latents of {one['one']} are explained {more} than those of {one['other']}: by "
        f"{phrase(_plain(one['difference']), digits=2, sign=True)} of AUROC, corrected p {number(one['holm'], 2)}."
    )


def _won(tests: Sequence[Mapping[str, Any]], task: str) -> str:
    own = [one for one in tests if one["task"] == task]
    clear = [one for one in own if one["holm"] is not None and one["holm"] < SIGNIFICANT and one["difference"].mean > 0]
    return f"{len(clear)} of {len(own)} tests of {task}"


def _answered(one: Mapping[str, Any]) -> str:
    return f"{one['unanswered']:,} of {one['asked']:,} questions got no answer that counts, and were left out."


def _ends(item: Any) -> str:
    return f"{item.low:.2f} to {item.high:.2f}" if item.low is not None and item.high is not None else "no interval"


def _plain(item: Any) -> Any:
    return estimate(item.to_json())
