"""Explain coordinates, ask a judge by these explanations and by worse ones, and keep what came of it.

Beside the explanation of a coordinate stand, for the same questions: *shuffled*, that of another one; *random*, what
the same explainer makes of random examples; *frequent*, the token or word alone that it is on at most often.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.decompose.base import Decomposition
from innerspace.explain.examples import Drawn, Item, Sampling, Sides
from innerspace.explain.explainer import Explainer, Explanation, Judge, NoAnswer, RuleExplainer, RuleJudge, ruled
from innerspace.explain.learner import most_frequent
from innerspace.explain.reading import End, Firing, Material, Reader, TextReader, read
from innerspace.explain.scores import OWN, Answers, Resampling, Scores
from innerspace.measure.activations import Watched
from innerspace.measure.estimate import Estimate
from innerspace.measure.neighbors import nearest
from innerspace.network.model import Model
from innerspace.network.site import Where
from innerspace.value import Value

Control = Literal["shuffled", "random", "frequent"]
CONTROLS: tuple[Control, ...] = ("shuffled", "random", "frequent")


@dataclass(frozen=True)
class Explained(Value):
    """A coordinate of the ``dictionary``-th decomposition, explained by the first seed's examples.

    ``texts`` are the explanations of all seeds, ``detection`` and ``fuzzing`` the mean AUROC of theirs. It counts as on
    above the ``threshold``: 0, or for one that is hardly ever zero that of its uppermost tenth.
    """

    dictionary: int
    latent: int
    explanation: Explanation
    detection: Estimate
    fuzzing: Estimate
    texts: tuple[str, ...]
    threshold: float = 0.0


@final
@dataclass(frozen=True, eq=False)
class Interpretation:
    """What came of it: explanations, their scores in the same order, and in words why others have none.

    ``missing`` is by dictionary and latent. ``answers`` are those of all seeds, the first seed's first.

    Raises:
        ValueError: when ``scores`` are asked for, and nothing was explained.
    """

    explained: list[Explained]
    missing: dict[tuple[int, int], str]
    answers: list[Answers]
    judged: Scores | None

    @property
    def scores(self) -> Scores:
        """The scores of all that was explained."""
        if self.judged is None:
            reasons = "; ".join(f"{latent}: {reason}" for (_, latent), reason in list(self.missing.items())[:3])
            raise ValueError(f"no coordinate could be explained, such as {reasons}")
        return self.judged

    def seen(self, i: int) -> list[tuple[Item, float]]:
        """What was asked of the i-th explained coordinate in its first seed, and what was said (NaN: nothing)."""
        first = next(one for one in self.answers if one.coordinate == i)
        return list(zip(first.items, first.probability[0].tolist(), strict=True))


@final
@dataclass(frozen=True, eq=False)
class Subjects:
    """Coordinates to explain: of which dictionary, where each is on, and where its neighbors are."""

    dictionary: list[int]
    latents: list[int]
    firings: list[Firing]
    near: list[list[Firing]]

    @staticmethod
    def of(material: Material, watched: Sequence[Watched], chosen: Sequence[Sequence[int]], near: int) -> "Subjects":
        """The ``chosen`` ones of every decomposition that was read (``watch`` says what to read for that)."""
        subjects = Subjects([], [], [], [])
        for number, (one, own) in enumerate(zip(watched, chosen, strict=True)):
            if not own:
                continue
            place = {latent: material.firings[number][i] for i, latent in enumerate(one.latents.tolist())}
            around = neighbors(one.what, torch.tensor(list(own), dtype=torch.int64), near)
            subjects.dictionary.extend([number] * len(own))
            subjects.latents.extend(own)
            subjects.firings.extend(place[latent] for latent in own)
            subjects.near.extend([place[k] for k in row] for row in around.tolist())
        return subjects


def interpret(
    model: Model,
    batches: Iterable[Any],
    what: Decomposition,
    site: str,
    latents: Sequence[int],
    reader: Reader | None = None,
    *,
    explainer: Explainer | None = None,
    judge: Judge | None = None,
    sampling: Sampling = Sampling(),
    seeds: int = 3,
    where: Where = Where("valid"),
    end: End = "upper",
    replicates: int = 1000,
) -> Interpretation:
    """Explain some coordinates of a decomposition and judge what is said of them.

    Without an explainer and a judge, rules are learned and checked; without a reader, batches are text whose tokens
    are numbers. ``end`` is that of dense coordinates.

    Raises:
        ValueError: for no seed, coordinates that do not exist, batches of another medium than the reader's, or as the
            explainer and the judge do.
    """
    watched = [watch(what, site, latents, sampling.near)]
    material = read(model, batches, watched, reader or TextReader(), where=where, end=end)
    subjects = Subjects.of(material, watched, [latents], sampling.near)
    pair = explainer or RuleExplainer(), judge or RuleJudge()
    return explain(material, subjects, pair, sampling, seeds, Resampling(material.group, replicates))


def watch(what: Decomposition, site: str, latents: Sequence[int], near: int = 0) -> Watched:
    """What to read of a decomposition to explain some of its coordinates: these, and ``near`` neighbors of each."""
    chosen = torch.tensor(list(latents), dtype=torch.int64)
    others = neighbors(what, chosen, near).unique()
    return Watched(what, site, torch.cat((chosen, others[~torch.isin(others, chosen)])))


def neighbors(what: Decomposition, latents: Int[Tensor, "n"], count: int) -> Int[Tensor, "n _"]:
    """The ``count`` coordinates whose directions are most like those of some."""
    directions = what.directions.detach()
    if not count:
        return torch.zeros(len(latents), 0, dtype=torch.int64)
    found = nearest(directions[latents], directions, k=min(count + 1, len(directions))).index
    rows = [[k for k in row if k != own][:count] for row, own in zip(found.tolist(), latents.tolist(), strict=True)]
    return torch.tensor(rows, dtype=torch.int64)


def explain(
    material: Material,
    subjects: Subjects,
    pair: tuple[Explainer, Judge],
    sampling: Sampling,
    seeds: int,
    resampling: Resampling,
    *,
    number: int = 0,
) -> Interpretation:
    """Explain and judge coordinates of what was read; ``number`` keeps draws of several calls apart.

    Raises:
        ValueError: as ``interpret``.
    """
    if seeds < 1:
        raise ValueError(f"examples are drawn with one seed at least, not {seeds}")
    reasons = {i: reason for i, one in enumerate(subjects.firings) if (reason := _rare(one, sampling))}
    able = [i for i in range(len(subjects.latents)) if i not in reasons]
    texts, found = dict[int, list[Explanation]](), list[tuple[int, Drawn, Tensor]]()
    for seed in range(seeds):
        sides, drawn = Sides(material, sampling, seed), dict[int, Drawn]()
        for i in able:
            one = sides.draw(subjects.firings[i], subjects.near[i])
            if isinstance(one, Drawn):
                drawn[i] = one
            else:
                reasons[i] = one
        own = _kept(drawn, pair[0].explain_all([one.shown for one in drawn.values()]), reasons)
        chance = _kept(drawn, pair[0].explain_all([one.chance for one in drawn.values()]), {})
        said = _judged(pair[1], drawn, own, chance, subjects.dictionary)
        found += [(i, drawn[i], said[i]) for i in own]
        for i, explanation in own.items():
            texts.setdefault(i, []).append(explanation)
    order = {i: place for place, i in enumerate(sorted(texts))}
    answers = [Answers(order[i], one.items, probability) for i, one, probability in found]
    dictionary = torch.tensor([subjects.dictionary[i] for i in order], dtype=torch.int64)
    ways, scores = (OWN, *CONTROLS), None
    if answers:
        scores = Scores(answers, ways, len(order), resampling, dictionary=dictionary, seed=number)
    explained = list[Explained]()
    if scores is not None:
        both = zip(order, scores.each("detection"), scores.each("fuzzing"), strict=True)
        explained = [_told(subjects, i, texts[i], *estimates) for i, *estimates in both]
    missing = {(subjects.dictionary[i], subjects.latents[i]): why for i, why in reasons.items() if i not in texts}
    return Interpretation(explained, missing, answers, scores)


def _told(
    subjects: Subjects, i: int, texts: Sequence[Explanation], detection: Estimate, fuzzing: Estimate
) -> Explained:
    return Explained(
        subjects.dictionary[i],
        subjects.latents[i],
        texts[0],
        detection,
        fuzzing,
        tuple(one.text for one in texts),
        subjects.firings[i].threshold,
    )


def _rare(firing: Firing, sampling: Sampling) -> str:
    documents = len(firing.group.unique())
    return "" if documents >= sampling.documents else f"on in {documents} documents of the {sampling.documents} needed"


def _kept(
    drawn: Mapping[int, Drawn], found: Sequence[Explanation | NoAnswer], reasons: dict[int, str]
) -> dict[int, Explanation]:
    """The explanations that came, by coordinate; of the others the reason."""
    kept = dict[int, Explanation]()
    for i, one in zip(drawn, found, strict=True):
        if isinstance(one, Explanation):
            kept[i] = one
        else:
            reasons[i] = f"not explained: {one.reason}"
    return kept


def _judged(
    judge: Judge,
    drawn: Mapping[int, Drawn],
    own: Mapping[int, Explanation],
    chance: Mapping[int, Explanation],
    dictionary: Sequence[int],
) -> dict[int, Float[Tensor, "ways items"]]:
    """What is said to the questions of every coordinate by each way to an explanation; NaN where there is none."""
    tasks = list[tuple[int, int, Explanation]]()
    for i, explanation in own.items():
        # the next one of the same dictionary, so that each is another's exactly once
        alike = [k for k in own if dictionary[k] == dictionary[i]]
        other = alike[(alike.index(i) + 1) % len(alike)]
        candidates = (
            explanation,
            own[other] if other != i else None,
            chance.get(i),
            ruled(most_frequent(drawn[i].shown)),
        )
        tasks += [(i, way, one) for way, one in enumerate(candidates) if one is not None]
    answers = judge.judge_all([(one, [item.question for item in drawn[i].items]) for i, _, one in tasks])
    said = {i: torch.full((1 + len(CONTROLS), len(drawn[i].items)), torch.nan) for i in own}
    for (i, way, _), given in zip(tasks, answers, strict=True):
        said[i][way] = torch.tensor([torch.nan if isinstance(one, NoAnswer) else one for one in given])
    return said
