"""Which parts belong together: rules that turn the dependence of pairs into pairs to merge."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.decompose.subspaces import Subspaces
from innerspace.learn.dependence import Dependence, Scale, dependence, mixtures
from innerspace.learn.neighbors import Neighborhood
from innerspace.value import Value


@dataclass(frozen=True)
class MergeRule(Value, ABC):
    """Says what to measure of a partition, and which of its parts are one."""

    @property
    @abstractmethod
    def bound(self) -> float:
        """Parts of which the ``strength`` exceeds this are one."""

    @abstractmethod
    def measure(self, what: Subspaces, near: Neighborhood, seed: int) -> Dependence:
        """The dependence of all pairs, with everything that the rule looks at."""

    @abstractmethod
    def strength(self, found: Dependence, sizes: Sequence[int]) -> Float[Tensor, "s s"]:
        """How much every pair asks to be merged; NaN where it does not at all."""

    def pairs(self, found: Dependence, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """Disjoint pairs to merge, the strongest first; of S parts at most max(1, ⌊S / 8⌋) pairs, as published."""
        strength = self.strength(found, sizes)
        candidates = torch.where(strength > self.bound, strength, -torch.inf).triu(1)
        order = candidates.flatten().argsort(descending=True, stable=True).tolist()
        chosen, taken = list[tuple[int, int]](), set[int]()
        for i, j in (divmod(place, len(sizes)) for place in order):
            if len(chosen) == max(1, len(sizes) // 8) or not (i < j and candidates[i, j] > self.bound):
                break
            if not {i, j} & taken:
                chosen.append((i, j))
                taken |= {i, j}
        return chosen

    def one(self, what: Subspaces, near: Neighborhood, seed: int) -> float:
        """The strength between the two parts of a partition into two; not above the bound if they are not one."""
        strength = float(self.strength(self.measure(what, near, seed), what.sizes)[0, 1])
        return 0.0 if math.isnan(strength) else strength


@final
@dataclass(frozen=True)
class PublishedThreshold(MergeRule):
    """The published rule: merge where Î / (dᵢ + dⱼ) exceeds ``threshold`` nats per dimension.

    As Î cannot exceed the estimator's ceiling (12.07 nats with 98,304 keys), no part ever has more than
    ceiling / threshold dimensions, 302 at 0.04. The papers' thresholds: 0.04 at width 768, 0.02 at 1536, 0.01 at 2304.
    """

    threshold: float = 0.04

    @property
    def bound(self) -> float:
        """The threshold."""
        return self.threshold

    def measure(self, what: Subspaces, near: Neighborhood, seed: int) -> Dependence:  # noqa: ARG002
        """KSG with one neighbor and strict counts."""
        return dependence(what, near, ties="strict")

    def strength(self, found: Dependence, sizes: Sequence[int]) -> Float[Tensor, "s s"]:
        """Nats per dimension."""
        d = found.information.new_tensor(sizes)
        return found.information / (d[:, None] + d)


@final
@dataclass(frozen=True)
class Calibrated(MergeRule):
    """Merge where two parts are dependent, and the cut between them is no more natural than a random one.

    A pair must be dependent beyond shuffled rows, with a share of at most ``level`` of false ones among all pairs. With
    many rows almost every pair is, so this only says where there is nothing. The strength of the others is

        (Î − Î of shuffled rows) / (mean Î of random cuts of the joint space into the same two sizes),

    which is near one inside a variable, where one cut is as good as another, and zero between variables, whatever the
    width, the number of rows and the estimator's bias and saturation, which fall on both alike. ``naturalness`` is how
    far below one a cut must be to stand; the half of a random cut's dependence is as far from the one as from the
    other.

    In planted groups of exclusive features (ten draws each of [20, 20] in 12 dimensions from parts of 2, exactly inside
    the groups or 3° or 8° off) every merge within a group had a strength of 0.93 or more, and what was left between
    groups 0.48 or less. Lines that were learned cut a variable more naturally than random ones: on two trained toys
    of [20, 20] the weakest merge within a group had 0.55, and 0.10 was left between groups. Dividing by the information
    between halves of the parts themselves, the other way without a threshold, does not part the two: 1.5 … 3.7 within,
    up to 2.0 between (three draws).

    ``reference`` bounds the queries for the random cuts, of which ``draws`` are made for a pair.
    """

    level: float = 0.01
    naturalness: float = 0.5
    k: int = 1
    scale: Scale = "variance"
    shuffles: int = 4
    draws: int = 3
    reference: int = 1024

    def __post_init__(self) -> None:
        if not (0 < self.level < 1 and 0 < self.naturalness < 1):
            raise ValueError(f"level and naturalness should lie between 0 and 1: {self}")
        if self.shuffles < 2 or min(self.k, self.draws, self.reference) < 1:
            raise ValueError(f"there should be two shuffles or more, and one neighbor, draw and query: {self}")

    @property
    def bound(self) -> float:
        """One less the naturalness."""
        return 1 - self.naturalness

    def measure(self, what: Subspaces, near: Neighborhood, seed: int) -> Dependence:
        """KSG with its null, and random cuts of all pairs that are dependent."""
        found = dependence(what, near, k=self.k, scale=self.scale, shuffles=self.shuffles, seed=seed)
        dependent = [(int(i), int(j)) for i, j in found.significant(self.level).nonzero().tolist() if i < j]
        few = near.only(slice(0, self.reference))
        return replace(
            found, mixed=mixtures(what, few, dependent, k=self.k, scale=self.scale, draws=self.draws, seed=seed)
        )

    def strength(self, found: Dependence, sizes: Sequence[int]) -> Float[Tensor, "s s"]:  # noqa: ARG002
        """The excess of the pair over that of random cuts; NaN where the pair is not dependent."""
        return found.excess / found.mixed.clamp(min=torch.finfo(found.mixed.dtype).tiny)
