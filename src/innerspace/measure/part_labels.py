"""What of labels can be told from each part of a partition alone, beside random parts of the same sizes.

Two readers need no training loop. The linear one is Fisher's: with class means μ_c and the covariance Σ within classes,
the class of x is argmax_c x·Σ⁻¹μ_c − μ_c·Σ⁻¹μ_c / 2, every class as likely as any other; a part has its own block of
Σ, so the moments of the whole space are taken once. The other lets the nearest training rows vote, each by the inverse
size of its class, and needs no linearity. Both are judged by balanced accuracy on documents or scenes that they did not
see.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.decompose.subspaces import Subspaces
from innerspace.measure.estimate import Estimate
from innerspace.measure.probing import balanced_accuracy, majority, over_splits
from innerspace.value import Value


@dataclass(frozen=True)
class Reading(Value):
    """How labels are read: over how many splits and random rotations, with how many rows and neighbors.

    ``held_out`` is the share of the groups on which a reader is judged; ``ridge`` is added to the covariance within
    classes, as a share of its mean variance.

    Raises:
        ValueError: for numbers that are not positive, or shares outside of 0 to 1.
    """

    splits: int = 5
    rotations: int = 3
    held_out: float = 0.3
    neighbors: int = 15
    most: int = 4000
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("splits", "rotations", "neighbors", "most"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} should be at least 1, it is {getattr(self, name)}")
        if not 0 < self.held_out < 1 or not 0 <= self.ridge < 1:
            raise ValueError(f"held_out and ridge should be shares, they are {self.held_out} and {self.ridge}")


@dataclass(frozen=True)
class Told(Value):
    """The balanced accuracy of a reader: by part and label, that of random parts, and that of the whole space."""

    parts: tuple[tuple[Estimate, ...], ...]
    random: tuple[tuple[Estimate, ...], ...]
    whole: tuple[Estimate, ...]


@dataclass(frozen=True)
class PartLabels(Value):
    """What parts tell of labels; of each its name, its classes, the rows that have one, the largest class's share."""

    labels: tuple[str, ...]
    classes: tuple[int, ...]
    rows: tuple[int, ...]
    majority: tuple[float, ...]
    linear: Told
    neighbors: Told


def part_labels(
    subspaces: Subspaces,
    rows: Float[Tensor, "n d"],
    labels: Mapping[str, Int[Tensor, "n"]],
    groups: Int[Tensor, "n"],
    *,
    reading: Reading = Reading(),
    seed: int = 0,
) -> PartLabels:
    """Read every label from every part, from parts of the same sizes under random rotations, and from all coordinates.

    Args:
        subspaces: the partition.
        rows: hidden states.
        labels: by name, the class of each row; rows with −1 have none. Of more rows than ``most`` some are drawn.
        groups: what belongs together (documents, scenes) and is never on both sides of a split.
        reading: how.
        seed: draws rows, splits and rotations.

    Raises:
        ValueError: for rows that are not finite or of another width, or a label with fewer than two classes that lie on
            both sides of a split.
    """
    if rows.shape[1] != subspaces.width:
        raise ValueError(f"the rows have width {rows.shape[1]}, the subspaces divide width {subspaces.width}")
    if not rows.isfinite().all():
        raise ValueError(f"{int((~rows.isfinite().all(1)).sum())} of {len(rows)} rows are not finite")
    generator = torch.Generator().manual_seed(seed)
    # the rotations come first, so that they do not depend on the data
    others = [Subspaces.random(subspaces.width, subspaces.sizes, generator) for _ in range(reading.rotations)]
    rotations = [one.rotation.detach().to(rows).double() for one in (subspaces, *others)]
    found = [
        _read(name, rows, label, groups, rotations, subspaces.parts, reading, generator)
        for name, label in labels.items()
    ]

    def told(reader: int) -> Told:
        own = [one.told[reader] for one in found]
        by_part, by_random = (tuple(zip(*(one[i] for one in own), strict=True)) for i in (0, 1))
        return Told(by_part, by_random, tuple(one[2] for one in own))

    return PartLabels(
        labels=tuple(labels),
        classes=tuple(one.classes for one in found),
        rows=tuple(one.rows for one in found),
        majority=tuple(one.majority for one in found),
        linear=told(0),
        neighbors=told(1),
    )


def most_frequent(values: Int[Tensor, "n"], count: int) -> Int[Tensor, "n"]:
    """Classes of the most frequent values, such as token ids: 0 for the most frequent; −1 for what is rarer.

    Raises:
        ValueError: for fewer than two classes.
    """
    if count < 2:
        raise ValueError(f"a label has at least two classes, not {count}")
    own, place, size = values.unique(return_inverse=True, return_counts=True)
    rank = torch.full((len(own),), -1)
    chosen = size.argsort(descending=True, stable=True)[:count]
    rank[chosen] = torch.arange(len(chosen))
    return rank[place]


def equally_many(values: Float[Tensor, "n"] | Int[Tensor, "n"], count: int) -> Int[Tensor, "n"]:
    """Classes of a quantity, such as a position, with about equally many members each; equal values stay together.

    Raises:
        ValueError: for fewer than two classes.
    """
    if count < 2:
        raise ValueError(f"a label has at least two classes, not {count}")
    below = torch.searchsorted(values.sort().values, values.contiguous())
    return (below * count).div(len(values), rounding_mode="floor").unique(return_inverse=True)[1]


class _Found(NamedTuple):
    """One label; ``told`` are by reader the estimates by part, those of random parts, and that of the whole."""

    classes: int
    rows: int
    majority: float
    told: list[tuple[list[Estimate], list[Estimate], Estimate]]


def _read(
    name: str,
    rows: Float[Tensor, "n d"],
    label: Int[Tensor, "n"],
    groups: Int[Tensor, "n"],
    rotations: Sequence[Float[Tensor, "d d"]],
    parts: Sequence[slice],
    reading: Reading,
    generator: torch.Generator,
) -> _Found:
    known = (label >= 0).nonzero()[:, 0]
    known = known[torch.randperm(len(known), generator=generator)[: reading.most].to(known.device)]
    x, group = rows[known].double(), groups[known]
    y = label[known].unique(return_inverse=True)[1]
    spaces = [*parts, slice(0, rows.shape[1])]
    scores = torch.zeros(2, len(rotations), len(spaces), reading.splits, dtype=torch.float64)
    for split in range(reading.splits):
        train, test = split_groups(name, y, group, reading.held_out, generator)
        for turn, rotation in enumerate(rotations):
            z = x @ rotation.T
            sides = Sides(z[train], y[train], z[test], y[test])
            for reader, read in enumerate((linear_reader(sides, reading.ridge), _voted(sides, reading.neighbors))):
                scores[reader, turn, :, split] = torch.tensor([read(space) for space in spaces])
    overlap = reading.held_out / (1 - reading.held_out)

    def over(samples: Float[Tensor, "splits"]) -> Estimate:
        return over_splits(samples.tolist(), overlap)

    told = [
        ([over(one) for one in own[0, :-1]], [over(one) for one in own[1:, :-1].mean(0)], over(own[0, -1]))
        for own in scores
    ]
    return _Found(int(y.max()) + 1, len(y), majority(y), told)


class Sides(NamedTuple):
    """Rows and classes to learn from, and to be judged on."""

    train: Float[Tensor, "n d"]
    classes: Int[Tensor, "n"]
    test: Float[Tensor, "m d"]
    truth: Int[Tensor, "m"]


def split_groups(
    name: str, y: Int[Tensor, "n"], group: Int[Tensor, "n"], held_out: float, generator: torch.Generator
) -> tuple[Int[Tensor, "train"], Int[Tensor, "test"]]:
    """Rows of other groups on either side, of the classes that are on both."""
    own, place = group.unique(return_inverse=True)
    judged = torch.rand(len(own), generator=generator).argsort() < round(held_out * len(own))
    side = judged.to(y.device)[place]
    counts = torch.stack([torch.bincount(y[chosen], minlength=int(y.max()) + 1) for chosen in (~side, side)])
    usable = (counts > 0).all(0)
    if usable.sum() < 2:
        raise ValueError(f"{name!r} has fewer than two classes on both sides of a split of {len(own)} groups")
    train, test = ((usable[y] & chosen).nonzero()[:, 0] for chosen in (~side, side))
    return train, test


def linear_reader(sides: Sides, ridge: float) -> Callable[[slice], float]:
    """Fisher's discriminant in a part: the moments are those of the whole space, taken once."""
    member = torch.nn.functional.one_hot(sides.classes).to(sides.train)
    there = member.sum(0) > 0
    means = (member.T @ sides.train) / member.sum(0).clamp_min(1)[:, None]
    within = sides.train - means[sides.classes]
    covariance = within.T @ within / len(within)

    def read(part: slice) -> float:
        own, mean = covariance[part, part], means[:, part]
        # states that are constant in a part leave nothing to tell the classes by, but may still be divided by
        floor = (ridge * own.diagonal().mean()).clamp_min(torch.finfo(own.dtype).tiny)
        weight = torch.linalg.solve(own + floor * torch.eye(len(own)).to(own), mean.T)
        score = sides.test[:, part] @ weight - (mean.T * weight).sum(0) / 2
        return balanced_accuracy(score.masked_fill(~there, -math.inf).argmax(1), sides.truth)

    return read


def _voted(sides: Sides, neighbors: int) -> Callable[[slice], float]:
    """The classes of the nearest training rows in a part, each vote weighted by the inverse size of its class."""
    vote = torch.nn.functional.one_hot(sides.classes).float()
    vote = vote / vote.sum(0).clamp_min(1)
    train, test = sides.train.float(), sides.test.float()

    def read(part: slice) -> float:
        nearest = torch.cdist(test[:, part], train[:, part]).topk(min(neighbors, len(train)), largest=False).indices
        return balanced_accuracy(vote[nearest].sum(1).argmax(1), sides.truth)

    return read
