"""Which contexts are shown and which are judged: from all parts of the activations, and as many where nothing fires.

Documents (scenes) are parted in two, anew for every seed: contexts to show come from one side, contexts to judge from
the other. Of a coordinate's activations there, five bands of equal size are made, and every band gives as many
contexts. The band is that of the position that was drawn; its context may hold fainter and stronger ones. Contexts
where the coordinate is off are drawn from all positions that count.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool
from torch import Tensor

from innerspace.explain.contexts import Context
from innerspace.explain.reading import Firing, Material
from innerspace.value import Value

BANDS = ("0–20 %", "20–40 %", "40–60 %", "60–80 %", "80–100 %")
"""Quantiles of the activations, from the faint to the strong."""

RANDOM, NEAR = -1, -2
"""What stands in a band's place where the coordinate is off: any context, or one where a neighbor is on."""

_TRIES = 24
"""So many places are looked at for every context without a firing that is wanted."""

Task = Literal["detection", "fuzzing"]
TASKS: tuple[Task, ...] = ("detection", "fuzzing")


@dataclass(frozen=True)
class Sampling(Value):
    """How many contexts are drawn of each coordinate, for each seed.

    ``shown`` from every band are shown with their activations, next to ``others`` where it is off; ``judged`` from
    every band are judged, and as many as all these where it is off. ``near`` adds as many where it is off and one of
    the ``near`` coordinates is on whose directions are most like its own. ``documents`` is in how many documents
    (scenes) a coordinate must be on to be eligible. A context has its position in question at random behind its first
    ``before`` to twice as many positions.

    Raises:
        ValueError: for nothing to show or to judge, or fewer documents than two.
    """

    shown: int = 8
    others: int = 60
    judged: int = 4
    near: int = 0
    documents: int = 20
    before: int = 7

    def __post_init__(self) -> None:
        if min(self.shown, self.others, self.judged) < 1 or self.near < 0 or self.documents < 2 or self.before < 0:
            raise ValueError(f"sampling needs contexts to show and to judge, of two documents at least: {self}")


@dataclass(frozen=True)
class Shown(Value):
    """What an explainer sees: contexts where a coordinate is on, with its activations, and others where it is off."""

    on: tuple[Context, ...]
    off: tuple[Context, ...]


@dataclass(frozen=True)
class Question(Value):
    """Is it on in this context, or, where a position is ``marked``, is it on there?"""

    context: Context
    marked: int | None = None

    @property
    def shown(self) -> str:
        """As it is read."""
        return self.context.shown(() if self.marked is None else (self.marked,))


@final
@dataclass(frozen=True, eq=False)
class Item:
    """A question with its answer, its band (``RANDOM`` or ``NEAR`` where it is off), and the activations that it hides.

    The band of a mark is that of its context.
    """

    question: Question
    truth: bool
    band: int
    task: Task
    seen: Context


@final
@dataclass(frozen=True, eq=False)
class Drawn:
    """What is shown of a coordinate, what is shown in its place at random, and what is judged."""

    shown: Shown
    chance: Shown
    items: list[Item]


@final
class Sides:
    """The two sides of a seed, and everything that is drawn from them."""

    def __init__(self, material: Material, sampling: Sampling, seed: int) -> None:
        self._material, self._sampling = material, sampling
        self._drawing = torch.Generator().manual_seed(seed)
        groups = material.group.unique()
        if len(groups) < 4:
            raise ValueError(f"{len(groups)} documents cannot be parted into some to show and some to judge")
        half = groups[torch.randperm(len(groups), generator=self._drawing)[: len(groups) // 2]]
        self.to_show: Bool[Tensor, "m"] = torch.isin(material.group, half)
        self._half = half

    def draw(self, firing: Firing, neighbors: Sequence[Firing] = ()) -> Drawn | str:
        """What is drawn of a coordinate, or in words why that cannot be."""
        sampling = self._sampling
        mine = torch.isin(firing.group, self._half)
        on = [context for _, context in self._banded(firing, mine, sampling.shown)]
        judged = list(self._banded(firing, ~mine, sampling.judged))
        if not on or not judged:
            return "it is on in too few documents"
        off = self._off(firing, self.to_show, sampling.others)
        others = self._off(firing, ~self.to_show, len(judged))
        if len(off) < min(4, sampling.others) or len(others) < len(judged) / 2:
            return "hardly any context is without a firing"
        near = self._near(firing, neighbors, len(judged)) if sampling.near else []
        items = [_asked(context, band) for band, context in judged]
        items += [_asked(context, RANDOM) for context in others] + [_asked(context, NEAR) for context in near]
        items += [item for band, context in judged for item in self._marks(context, band)]
        return Drawn(Shown(tuple(on), tuple(off)), self._chance(firing, len(on), len(off)), items)

    def _banded(self, firing: Firing, side: Bool[Tensor, "n"], each: int) -> Iterator[tuple[int, Context]]:
        """So many contexts of every band, of different documents where there are enough."""
        places, values, groups = firing.place[side], firing.value[side], firing.group[side]
        # equal activations in any order, or a band would hold the first ones of the stream
        shuffled = torch.randperm(len(values), generator=self._drawing)
        ranked = shuffled[values[shuffled].argsort(stable=True)]
        used = set[int]()
        for band in range(len(BANDS)):
            own = ranked[len(ranked) * band // len(BANDS) : len(ranked) * (band + 1) // len(BANDS)]
            mixed = own[torch.randperm(len(own), generator=self._drawing)]
            again = torch.isin(groups[mixed], torch.tensor(sorted(used), dtype=torch.int64))
            # those of documents that were not yet drawn from come first
            for i in mixed[again.long().argsort(stable=True)][:each].tolist():
                used.add(int(groups[i]))
                yield band, self._context(int(places[i]), firing)

    def _off(self, firing: Firing, side: Bool[Tensor, "m"], count: int) -> list[Context]:
        """Contexts without a firing, of places drawn from all that count."""
        places = self._material.place[side]
        tried = places[torch.randint(len(places), (_TRIES * count,), generator=self._drawing)].tolist()
        return self._without(firing, tried, count)

    def _without(self, firing: Firing, places: Iterable[int], count: int) -> list[Context]:
        kept = list[Context]()
        for place in places:
            if len(kept) == count:
                break
            if not (context := self._context(place, firing)).on:
                kept.append(context)
        return kept

    def _near(self, firing: Firing, neighbors: Sequence[Firing], count: int) -> list[Context]:
        """Contexts where a neighbor is on, and this one is not."""
        if not neighbors:
            return []
        places, groups = (torch.cat([getattr(one, name) for one in neighbors]) for name in ("place", "group"))
        places = places[~torch.isin(groups, self._half)]
        order = torch.randperm(len(places), generator=self._drawing)[: _TRIES * count]
        return self._without(firing, places[order].tolist(), count)

    def _chance(self, firing: Firing, on: int, off: int) -> Shown:
        """Contexts anywhere, on at one position that was drawn, or off: what an explanation of nothing is made from.

        Those that are off are drawn anywhere as well: contexts without a firing would tell by what they lack.
        """
        places = self._material.place[self.to_show]
        drawn = places[torch.randint(len(places), (on + off,), generator=self._drawing)].tolist()
        contexts = [self._context(place, firing) for place in drawn]
        lit = [one.valued(tuple(float(i == one.at) for i in range(len(one.values)))) for one in contexts[:on]]
        return Shown(tuple(lit), tuple(one.valued((0.0,) * len(one.values)) for one in contexts[on:]))

    def _marks(self, context: Context, band: int) -> list[Item]:
        """The right mark and a wrong one; none where there is no wrong one."""
        wrong = [i for i in range(len(context.values)) if context.values[i] == 0]
        if not wrong:
            return []
        other = wrong[int(torch.randint(len(wrong), (), generator=self._drawing))]
        return [
            Item(Question(context.blind(), mark), truth, band, "fuzzing", context)
            for mark, truth in ((context.at, True), (other, False))
        ]

    def _context(self, place: int, firing: Firing) -> Context:
        least = self._sampling.before
        before = least + int(torch.randint(least + 1, (), generator=self._drawing))
        return self._material.context(place, firing, before)


def _asked(context: Context, band: int) -> Item:
    return Item(Question(context.blind()), context.on, band, "detection", context)
