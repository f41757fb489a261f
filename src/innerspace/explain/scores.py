"""Scores of explanations with intervals, and differences between them with p values corrected for their number.

Two things are left to chance: which documents were read and which coordinates were drawn. Every bootstrap copy draws
both anew. The draw of documents is one for all explanations, tasks and dictionaries, that of coordinates one for all
explanations of a dictionary; so differences between explanations of the same coordinates are paired, and those between
dictionaries share what makes documents hard. Where a kind has several dictionaries, they are drawn as well. Copies in
which a coordinate has no context left on one side leave it out. Seeds of examples are averaged within a coordinate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.explain.examples import BANDS, NEAR, RANDOM, TASKS, Item, Task
from innerspace.measure.estimate import Estimate, from_copies
from innerspace.measure.multiplicity import benjamini_hochberg, holm, two_sided
from innerspace.measure.paired import Resamples
from innerspace.value import Value

Measure = Literal["auroc", "balanced_accuracy"]
MEASURES: tuple[Measure, ...] = ("auroc", "balanced_accuracy")

OWN = "explanation"
"""What is judged; all other ways to come to an explanation are there to compare."""


@final
@dataclass(frozen=True, eq=False)
class Answers:
    """What was said to the items of one coordinate and one seed, by way of explanation; NaN where nothing was said."""

    coordinate: int
    items: Sequence[Item]
    probability: Float[Tensor, "ways items"]


@dataclass(frozen=True)
class Difference(Value):
    """By how much ``one`` scores higher than the ``other``, with a two-sided p value, and the same among all tests."""

    one: str
    other: str
    task: Task
    difference: Estimate
    p: float | None
    holm: float | None = None
    benjamini_hochberg: float | None = None


@final
class Resampling:
    """Draws of documents that all scores share; the first copy is the documents as they are."""

    def __init__(self, groups: Int[Tensor, "documents"], replicates: int = 1000, seed: int = 0) -> None:
        self._groups = groups.unique()
        self.replicates, self.seed = replicates, seed
        self._times = Resamples(torch.arange(len(self._groups)), replicates, seed).times

    def times(self, groups: Sequence[int]) -> Float[Tensor, "copies items"]:
        """How often items of these documents count in each copy."""
        return self._times[:, torch.searchsorted(self._groups, torch.tensor(groups, dtype=torch.int64))]


@final
class Scores:
    """The scores of the explanations of ``count`` coordinates; ``dictionary`` says of which each is, one by default.

    ``ways`` are the names of the explanations that were judged, the first of them ``OWN``.

    Raises:
        ValueError: if there is no answer.
    """

    def __init__(
        self,
        answers: Sequence[Answers],
        ways: Sequence[str],
        count: int,
        resampling: Resampling,
        *,
        dictionary: Int[Tensor, "count"] | None = None,
        seed: int = 0,
    ) -> None:
        if not answers:
            raise ValueError("no explanation was judged: no coordinate was eligible, or none could be explained")
        self.ways, self.count, self._answers = tuple(ways), count, answers
        self._times = [resampling.times([item.seen.group for item in one.items]) for one in answers]
        self._draws = _draws(
            torch.zeros(count, dtype=torch.int64) if dictionary is None else dictionary,
            resampling.replicates,
            torch.Generator().manual_seed(1 + resampling.seed + 7919 * seed),
        )
        self._known = dict[tuple[Task, Measure, int | None], Tensor]()

    def copies(
        self, task: Task, measure: Measure = "auroc", band: int | None = None
    ) -> Float[Tensor, "count ways copies"]:
        """Every coordinate's score in every copy of the documents; NaN where it has none.

        ``band`` is that of the contexts in which it is on, or ``NEAR`` for those in which it is off.
        """
        if (key := (task, measure, band)) not in self._known:
            total = torch.zeros(self.count, len(self.ways), self._times[0].shape[0], dtype=torch.float64)
            seeds = torch.zeros_like(total)
            for one, times in zip(self._answers, self._times, strict=True):
                found = _score(one, times, task, measure, band)
                known = found.isfinite()
                total[one.coordinate] += found.where(known, 0)
                seeds[one.coordinate] += known
            self._known[key] = total / seeds
        return self._known[key]

    def each(self, task: Task, measure: Measure = "auroc", way: str = OWN) -> list[Estimate]:
        """Every coordinate's score, with the interval over documents."""
        own = self.copies(task, measure)[:, self.ways.index(way)]
        return [from_copies(float(copies[0]), copies[1:]) for copies in own]

    def mean_copies(
        self, task: Task, measure: Measure = "auroc", way: str = OWN, band: int | None = None
    ) -> Float[Tensor, "copies"]:
        """The mean over coordinates, in every copy of documents and coordinates."""
        own = self.copies(task, measure, band)[:, self.ways.index(way)]
        drawn = torch.cat((torch.arange(self.count)[:, None], self._draws), 1)
        return own.gather(0, drawn).nanmean(0)

    def mean(self, task: Task, measure: Measure = "auroc", way: str = OWN, band: int | None = None) -> Estimate:
        """The mean over coordinates, with the interval over documents and coordinates."""
        copies = self.mean_copies(task, measure, way, band)
        return from_copies(float(copies[0]), copies[1:])

    def unanswered(self, way: str = OWN) -> int:
        """How many questions got no answer."""
        row = self.ways.index(way)
        return sum(int(one.probability[row].isnan().sum()) for one in self._answers)

    @property
    def asked(self) -> int:
        """How many questions were asked, for each way."""
        return sum(len(one.items) for one in self._answers)

    @property
    def has_near(self) -> bool:
        """Whether contexts of neighbors were judged."""
        return any(item.band == NEAR for one in self._answers for item in one.items)


def between(scores: Mapping[str, Scores]) -> list[Difference]:
    """All pairs of dictionaries (kinds), by both tasks; one family of tests."""
    found = [
        _difference(b, a, task, scores[b].mean_copies(task) - scores[a].mean_copies(task))
        for a, b in combinations(scores, 2)
        for task in TASKS
    ]
    return corrected(found)


def against_controls(scores: Mapping[str, Scores]) -> list[Difference]:
    """The explanations of every dictionary next to every control, by both tasks; one family of tests.

    ``other`` is ``name: control``.
    """
    found = [
        _difference(name, f"{name}: {way}", task, own.mean_copies(task) - own.mean_copies(task, way=way))
        for name, own in scores.items()
        for way in own.ways[1:]
        for task in TASKS
    ]
    return corrected(found)


def corrected(tests: Sequence[Difference]) -> list[Difference]:
    """The tests with p values that take their number into account; those without a p value are no tests."""
    known = [i for i, test in enumerate(tests) if test.p is not None]
    p = [tests[i].p or 0.0 for i in known]
    family, rate = dict(zip(known, holm(p), strict=True)), dict(zip(known, benjamini_hochberg(p), strict=True))
    return [
        Difference(test.one, test.other, test.task, test.difference, test.p, family.get(i), rate.get(i))
        for i, test in enumerate(tests)
    ]


def _difference(one: str, other: str, task: Task, copies: Float[Tensor, "copies"]) -> Difference:
    return Difference(one, other, task, from_copies(float(copies[0]), copies[1:]), two_sided(copies[1:]))


def _score(
    answers: Answers, times: Float[Tensor, "copies items"], task: Task, measure: Measure, band: int | None
) -> Float[Tensor, "ways copies"]:
    on, off = _sides(answers.items, task, band)
    rows = list[Tensor]()
    for probability in answers.probability.double():
        said = probability.isfinite()
        (p, a), (n, b) = (
            (probability[said & side], times[:, said & side]) for side in (on, off)
        )  # probabilities and how often each counts, where it is on and where it is off
        if measure == "auroc":
            higher = (p[:, None] > n).double() + (p[:, None] == n).double() / 2
            rows.append(((a @ higher) * b).sum(1) / (a.sum(1) * b.sum(1)))
        else:
            hits, spared = a @ (p > 0.5).double(), b @ (n <= 0.5).double()
            rows.append((hits / a.sum(1) + spared / b.sum(1)) / 2)
    return torch.stack(rows)


def _sides(items: Sequence[Item], task: Task, band: int | None) -> tuple[Bool[Tensor, "items"], Bool[Tensor, "items"]]:
    """The items where the coordinate is on, and those where it is off, that are held against each other."""
    own = torch.tensor([item.task == task for item in items])
    truth, bands = torch.tensor([item.truth for item in items]), torch.tensor([item.band for item in items])
    those = bands == band if band in range(len(BANDS)) else torch.ones_like(own)
    if task == "fuzzing":
        return own & truth & those, own & ~truth & those
    return own & truth & those, own & ~truth & (bands == (NEAR if band == NEAR else RANDOM))


def _draws(dictionary: Int[Tensor, "count"], replicates: int, drawing: torch.Generator) -> Int[Tensor, "count copies"]:
    """Coordinates drawn with replacement, within dictionaries that are drawn with replacement, in every copy."""
    own = [(dictionary == k).nonzero().flatten() for k in dictionary.unique()]
    chosen = torch.randint(len(own), (replicates, len(own)), generator=drawing).tolist()
    count = len(dictionary)
    copies = list[Tensor]()
    for row in chosen:
        drawn = [own[k][torch.randint(len(own[k]), (len(own[k]),), generator=drawing)] for k in row]
        # dictionaries of unequal size make unequal copies; each is brought to the same length
        joined = torch.cat(drawn)
        copies.append(joined[torch.arange(count) % len(joined)])
    return torch.stack(copies, 1)
