"""What changes the partition while it is learned: parts that belong together are merged, wrong merges are undone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.decompose.subspaces import Subspaces
from innerspace.learn.fit import Callback, FitConfig, Loop, Record, Student, fit
from innerspace.learn.merge_rules import MergeRule
from innerspace.learn.neighbor_distance import NeighborDistance, neighborhoods
from innerspace.learn.neighbors import Neighborhood
from innerspace.value import Value

_FINAL = "partition_final"


@dataclass(frozen=True)
class Sampling(Value):
    """How many rows judge a partition: ``queries`` among ``keys``, drawn anew each time from those of the trial.

    The published rule takes 12,800 among 98,304 others. If the trial has fewer keys, all of them serve.
    """

    queries: int = 12_800
    keys: int = 98_305
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.queries, self.keys) < 1:
            raise ValueError(f"a sample needs queries and keys: {self}")

    def draw(self, student: Student, step: int) -> Neighborhood:
        """Rows of a student's current trial; which ones depends on the seed and the step alone.

        Raises:
            ValueError: if the trial has no neighborhood.
        """
        if (near := student.trial.neighborhood) is None:
            raise ValueError("a partition is judged by neighbors, the trials have none (use neighborhoods)")
        generator = torch.Generator().manual_seed(self.seed + (step << 32))
        chosen = torch.randperm(len(near.keys), generator=generator)[: self.keys].to(near.keys.device)
        return self.among(near.keys[chosen], None if near.key_document is None else near.key_document[chosen])

    def among(self, keys: Float[Tensor, "n d"], documents: Int[Tensor, "n"] | None = None) -> Neighborhood:
        """The first of some rows among all of them."""
        count = min(self.queries, len(keys))
        own = torch.arange(count, device=keys.device)
        return Neighborhood(keys[:count], keys, own, None if documents is None else documents[:count], documents)


@final
class Merging(Callback):
    """From step ``start`` on, every ``every`` steps, merges the parts that a rule finds to be one.

    Afterwards the optimizer begins anew, as published, or with ``transport`` its moments follow their coordinates. Not
    in the last ``spare`` steps, so that what was merged is still learned. When no pair is left the partition is final,
    and with ``stop`` the fit ends once that of all students is. Logs which parts were ``merged``, the ``sizes`` that
    came of it, and the largest dependence, in nats and in the rule's own measure.

    Raises:
        ValueError: for a schedule that is not positive, students that are no subspaces, or moments that are to be
            transported in the exponential chart, where they belong to coordinates that end with a merge.
    """

    def __init__(
        self,
        rule: MergeRule,
        start: int,
        every: int,
        *,
        transport: bool = True,
        stop: bool = True,
        spare: int = 100,
        sampling: Sampling = Sampling(),
    ) -> None:
        if every < 1 or min(start, spare) < 0:
            raise ValueError(f"Merging: every should be positive, start and spare not negative: {every, start, spare}")
        self.rule, self.start, self.every, self.spare = rule, start, every, spare
        self.transport, self.stop, self.sampling = transport, stop, sampling

    def resume(self, loop: Loop) -> None:
        """Refuse what cannot be merged."""
        for student in loop.students:
            if subspaces(student).chart == "exponential" and self.transport:
                raise ValueError("moments can be transported in the moving chart only; set transport=False")

    def after_step(self, loop: Loop, student: Student) -> Record:
        """Merge, if it is time."""
        what, late = subspaces(student), loop.step - self.start
        if late < 0 or late % self.every or loop.step > loop.config.steps - self.spare or _FINAL in student.gain:
            return {}
        pairs, record = list[tuple[int, int]](), Record()
        if len(what.sizes) > 1:
            found = self.rule.measure(what, self.sampling.draw(student, loop.step), self.sampling.seed + loop.step)
            strength = self.rule.strength(found, what.sizes)
            pairs = self.rule.pairs(found, what.sizes)
            record = {
                "dependence": float(found.information.nan_to_num(nan=-torch.inf).max()),
                "dependence_strength": float(strength.nan_to_num(nan=0).max()),
            }
        if pairs:
            order = what.merge(*pairs)
            follow(loop, student, order, transport=self.transport)
        else:
            student.gain[_FINAL] = 1.0
            loop.finished |= self.stop and all(_FINAL in one.gain for one in loop.students)
        merged = ", ".join(f"{i}+{j}" for i, j in pairs)
        return {"merged": merged, "sizes": "+".join(map(str, what.sizes)), **record}


@dataclass(frozen=True)
class Search(Value):
    """How the least dependent cut of a part is sought: by neighbor distance, inside the part alone.

    One side has each of the ``shares`` of the dimensions in turn, as published, but none fewer than ``least``; each is
    sought from several random ``starts``, ``steps`` steps long.
    """

    shares: tuple[float, ...] = (0.25, 0.5)
    least: int = 2
    starts: int = 4
    steps: int = 300
    rate: float = 0.05
    queries: int = 128
    keys: int = 4096

    def __post_init__(self) -> None:
        counts = (self.least, self.starts, self.steps, self.queries, self.keys, len(self.shares))
        if min(*counts, self.rate) <= 0 or not all(0 < share < 1 for share in self.shares):
            raise ValueError(f"the search needs shares between 0 and 1, starts, steps and rows: {self}")

    def sizes(self, size: int) -> list[tuple[int, int]]:
        """The sizes of both sides, for a part of a size; none if it is too small to be cut."""
        sides = {max(self.least, round(share * size)) for share in self.shares}
        return sorted({(max(a, size - a), min(a, size - a)) for a in sides if size - a >= self.least})


@dataclass(frozen=True, eq=False)
class Split:
    """A cut of a part: its coordinates are turned by ``rotation``, then divided into two ``sizes``.

    ``strength`` is how much a rule would have the two merged; the ``trials`` are the strengths of all cuts found.
    """

    rotation: Float[Tensor, "n n"]
    sizes: tuple[int, int]
    strength: float
    trials: tuple[float, ...]


def best_split(
    what: Subspaces, part: int, near: Neighborhood, rule: MergeRule, search: Search = Search(), seed: int = 0
) -> Split | None:
    """The cut of a part whose sides ask least to be merged again; None for a part too small to be cut.

    The part's coordinates are a hidden space of their own, in which partitions into two are learned like any other
    (split-based search, after Huang and Hahn). They are learned on the keys, and judged by the rule.

    Raises:
        ValueError: for a part that is not there, or rows of another width.
    """
    own = inside(near, what.basis(part).detach())
    found = [(rule.one(cut, own, seed), cut) for cut in cuts(own, search.sizes(own.keys.shape[1]), search, seed)]
    if not found:
        return None
    strength, best = min(found, key=lambda one: one[0])
    sizes = cast(tuple[int, int], best.sizes)
    return Split(best.rotation.detach(), sizes, strength, tuple(each for each, _ in found))


def cuts(near: Neighborhood, sizes: Sequence[tuple[int, int]], search: Search, seed: int) -> Iterator[Subspaces]:
    """Cuts of a space into two parts by neighbor distance, from random starts: local minima, the best among them."""
    rows, documents = near.keys, near.key_document
    count, among = min(search.queries, len(rows)), min(search.keys, len(rows))
    for each in sizes:
        for start in range(seed, seed + search.starts):
            cut = Subspaces.random(rows.shape[1], each, torch.Generator().manual_seed(start)).to(rows)
            trials = neighborhoods(rows, count, among, start, documents=documents)
            config = FitConfig(search.steps, search.rate, seed=start, log_every=search.steps)
            # logarithms, since otherwise the scale of one side would rule
            fit(cut, trials, (NeighborDistance("log-dim"),), config)
            yield cut


@final
class Splitting(Callback):
    """At the given steps, undoes merges that were wrong: a part is cut where its sides are not one by the rule.

    Of every part the best cut is sought; it stands if the rule would not merge its sides. The optimizer begins anew,
    and the partition is no longer final. Logs which parts were ``split``, the ``sizes`` that came of it, and the
    largest ``split_strength``, which is how near a cut that stands came to not standing.

    Raises:
        ValueError: for students that are no subspaces.
    """

    def __init__(
        self, rule: MergeRule, at: Sequence[int], *, search: Search = Search(), sampling: Sampling = Sampling()
    ) -> None:
        self.rule, self.at, self.search, self.sampling = rule, frozenset(at), search, sampling

    def resume(self, loop: Loop) -> None:
        """Refuse what cannot be split."""
        for student in loop.students:
            subspaces(student)

    def after_step(self, loop: Loop, student: Student) -> Record:
        """Split, if it is time."""
        what = subspaces(student)
        if loop.step not in self.at:
            return {}
        near, cuts = self.sampling.draw(student, loop.step), dict[int, Split]()
        for part in range(len(what.sizes)):
            cut = best_split(what, part, near, self.rule, self.search, self.sampling.seed + loop.step)
            if cut is not None and cut.strength <= self.rule.bound:
                cuts[part] = cut
        record: Record = {"split": ", ".join(map(str, cuts))}
        if cuts:
            split(what, cuts)
            loop.reset_optimizer(student)
            student.gain.pop(_FINAL, None)
            record["split_strength"] = max(cut.strength for cut in cuts.values())
        return {**record, "sizes": "+".join(map(str, what.sizes))}


def inside(near: Neighborhood, basis: Float[Tensor, "n d"]) -> Neighborhood:
    """The same rows in the coordinates of a part alone."""
    return replace(near, queries=near.queries @ basis.T, keys=near.keys @ basis.T, matches=None, rotation=None)


def split(what: Subspaces, cuts: Mapping[int, Split]) -> Int[Tensor, "d"]:
    """Cut some parts, in place; gives the order of ``Subspaces.arrange``."""
    pieces = list[list[int]]()
    for part, place in enumerate(what.parts):
        coordinates = list(range(place.start, place.stop))
        if (cut := cuts.get(part)) is None:
            pieces.append(coordinates)
        else:
            what.turn_together([part], cut.rotation)
            pieces += [coordinates[: cut.sizes[0]], coordinates[cut.sizes[0] :]]
    return what.arrange(pieces)


@torch.no_grad()
def follow(loop: Loop, student: Student, order: Int[Tensor, "d"], *, transport: bool) -> None:
    """After coordinates got a new order, let the optimizer's moments follow, or let it begin anew.

    Entry (i, j) below the diagonal turns coordinate i towards j. Where the new order swaps the two, the mean of the
    gradient changes its sign and the mean of its square does not. Turns within a part change nothing and are dropped.
    """
    turn = subspaces(student).turn
    state = student.optimizer.state.get(turn)
    if not transport or not state:
        loop.reset_optimizer(student)
        return
    member = subspaces(student).member
    for name, sign in (("exp_avg", -1), ("exp_avg_sq", 1)):
        lower = state[name].tril(-1)
        moved = (lower + sign * lower.T)[order][:, order].tril(-1)
        state[name].copy_(moved.masked_fill(member[:, None] == member, 0))


def subspaces(student: Student) -> Subspaces:
    """What a student learns.

    Raises:
        ValueError: if that is something else.
    """
    if not isinstance(student.what, Subspaces):
        raise ValueError(f"this callback is for the training of Subspaces, not of a {type(student.what).__name__}")
    return student.what
