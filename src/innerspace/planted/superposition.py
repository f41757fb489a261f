"""Toys of superposition: small networks that keep more features than dimensions, in groups that exclude each other.

Of the features in a group at most one is on, features of different groups are on independently. The network is to
give back what it was given, through a bottleneck of d dimensions:

    h = W x,   x' = ReLU(Wᵀ h + b)

Features that are never on together may share dimensions, features of different groups may not: a trained network
tends to give each group a subspace of its own, orthogonal to the others. It need not, so ``check_blocks`` comes before
anything is judged on a toy. Elhage et al., "Toy Models of Superposition", 2022; Huang and Hahn, arXiv 2508.01916.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from innerspace.decompose.subspaces import Subspaces, nearest_rotation
from innerspace.network.model import Family, Model
from innerspace.network.site import Site
from innerspace.value import Value

_FLAT = 0.1
"""A group spans the directions whose singular value is more than this share of its largest."""


@dataclass(frozen=True, eq=False)
class Features:
    """Inputs of a toy with what is known of them.

    ``active`` is which feature of each group is on, counted within the group, −1 for none; ``strength`` its value,
    0 for none. Entry i of ``x`` is the strength of feature i, counted over all groups.
    """

    x: Float[Tensor, "n features"]
    active: Int[Tensor, "n groups"]
    strength: Float[Tensor, "n groups"]


@dataclass(frozen=True)
class Toy(Value):
    """What there is to represent: groups of features, a width to do it in, and the chance that a group is empty."""

    groups: tuple[int, ...] = (20, 20)
    width: int = 12
    empty: float = 0.25

    def __post_init__(self) -> None:
        if min(self.groups, default=0) < 1 or self.width < 1 or not 0 <= self.empty < 1:
            raise ValueError(f"a toy needs groups of features, a width and a chance below one to be empty: {self}")

    @property
    def features(self) -> int:
        """How many features there are in all groups."""
        return sum(self.groups)

    @property
    def spans(self) -> list[slice]:
        """The features of each group."""
        ends = itertools.accumulate(self.groups)
        return [slice(end - size, end) for end, size in zip(ends, self.groups, strict=True)]

    def draw(self, count: int, generator: torch.Generator, *, least: float = 0.0) -> Features:
        """Inputs: independently in each group nothing, or one feature, evenly chosen, of a strength in [least, 1)."""
        chance, choice, strength = torch.rand(3, count, len(self.groups), generator=generator)
        sizes = torch.tensor(self.groups)
        active = (choice * sizes).long().clamp(max=sizes - 1)
        strength = torch.where(chance < self.empty, 0.0, least + (1 - least) * strength)
        place = active + torch.tensor([span.start for span in self.spans])
        x = torch.zeros(count, self.features).scatter_(1, place, strength)
        return Features(x, torch.where(chance < self.empty, -1, active), strength)

    def read_out(self, x: Float[Tensor, "n features"], *, off: float = 0.1) -> Int[Tensor, "n groups"]:
        """Which feature of each group an output says is on: its largest, −1 where that is at most ``off``."""
        largest = [x[:, span].max(1) for span in self.spans]
        return torch.stack([torch.where(best.values > off, best.indices, -1) for best in largest], 1)


@dataclass(frozen=True)
class Course(Value):
    """How a toy is trained: Adam, at a rate that falls linearly to the share ``floor``, on fresh inputs every step."""

    steps: int = 10_000
    batch: int = 128
    rate: float = 3e-3
    floor: float = 0.1

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or self.rate <= 0 or not 0 <= self.floor <= 1:
            raise ValueError(f"a course needs steps, a batch, a rate, and a floor between 0 and 1: {self}")


@final
class Superposition(nn.Module):
    """A toy's network; the hidden state is a sequence of one token, so rules about tokens hold as everywhere."""

    def __init__(self, toy: Toy, weight: Float[Tensor, "d features"], bias: Float[Tensor, "features"]) -> None:
        super().__init__()
        if tuple(weight.shape) != (toy.width, toy.features):
            raise ValueError(f"the weight has shape {tuple(weight.shape)}, {toy} needs {(toy.width, toy.features)}")
        self.toy = toy
        self.hidden = nn.Linear(toy.features, toy.width, bias=False)
        self.hidden.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(bias.clone())

    def forward(self, x: Float[Tensor, "n features"]) -> Float[Tensor, "n features"]:
        """What the network gives back."""
        return F.relu(self.hidden(x[:, None])[:, 0] @ self.hidden.weight + self.bias)


@final
class SuperpositionFamily(Family):
    """Toys: one site, ``hidden``; batches are ``Features``; the output is ``x``."""

    def sites(self, module: nn.Module) -> list[Site]:
        """The bottleneck."""
        assert isinstance(module, Superposition)
        return [Site("hidden", "hidden", module.toy.width)]

    def forward(self, module: nn.Module, batch: Features) -> Mapping[str, Tensor]:
        """Give back the features."""
        return {"x": module(batch.x)}


@dataclass(frozen=True)
class Blocks(Value):
    """How far the groups of a toy lie in orthogonal subspaces.

    ``within`` and ``across`` are the root mean squares of the entries of WᵀW between features of one group and of two.
    ``ranks`` are the dimensions of the groups, ``spectra`` their singular values. ``cosine`` is that of the smallest
    angle between the subspaces of two groups. ``unexplained`` is the share of the inputs' variance that is lost.
    """

    within: float
    across: float
    ranks: tuple[int, ...]
    spectra: tuple[tuple[float, ...], ...]
    cosine: float
    unexplained: float

    def orthogonal(self, tolerance: float = 0.03) -> bool:
        """Whether the groups fill the space together and no two come closer than that cosine.

        At the default a subspace turned into another one would keep 0.999 of its energy.
        """
        return sum(self.ranks) == len(self.spectra[0]) and self.cosine <= tolerance


def train_toys(toy: Toy, seeds: Sequence[int], course: Course | None = None) -> list[Superposition]:
    """Train one network for every seed, all at once; each sees the inputs that it would see alone.

    Raises:
        ValueError: if there is no seed.
    """
    if not seeds:
        raise ValueError("training toys needs at least one seed")
    course = course or Course()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = (toy.width, toy.features)
    starts = [2 * torch.rand(shape, generator=generator) - 1 for generator in generators]
    weight = nn.Parameter(torch.stack(starts) / toy.features**0.5)
    bias = nn.Parameter(torch.zeros(len(seeds), 1, toy.features))
    optimizer = torch.optim.Adam([weight, bias], lr=course.rate, fused=True)
    for x in _stream(toy, course, generators):
        step = int(optimizer.state[weight]["step"]) if optimizer.state else 0
        optimizer.param_groups[0]["lr"] = course.rate * (1 - (1 - course.floor) * step / course.steps)
        optimizer.zero_grad()
        given = F.relu(torch.baddbmm(bias, x @ weight.mT, weight))
        (x - given).square().sum().div(course.batch).backward()
        optimizer.step()
    return [Superposition(toy, w, b[0]) for w, b in zip(weight.detach(), bias.detach(), strict=True)]


def toy_model(network: Superposition) -> Model:
    """The network with its site."""
    return Model(network, SuperpositionFamily())


@torch.no_grad()
def check_blocks(network: Superposition, *, rows: int = 4096, seed: int = 0) -> Blocks:
    """Whether a toy has the structure that a partition is to find; ask before judging one by it."""
    toy, weight = network.toy, network.hidden.weight.double()
    group = torch.arange(len(toy.groups)).repeat_interleave(torch.tensor(toy.groups))
    same, gram = group[:, None] == group, (weight.T @ weight).square()
    bases, spectra = zip(*(_span(weight[:, span]) for span in toy.spans), strict=True)
    cosines = [torch.linalg.matrix_norm(a @ b.T, 2) for a, b in itertools.combinations(bases, 2)]
    x = toy.draw(rows, torch.Generator().manual_seed(seed)).x
    return Blocks(
        within=float(gram[same].mean().sqrt()),
        across=float(gram[~same].mean().sqrt()) if len(bases) > 1 else 0.0,
        ranks=tuple(len(basis) for basis in bases),
        spectra=tuple(tuple(spectrum.tolist()) for spectrum in spectra),
        cosine=float(max(cosines, default=0.0)),
        unexplained=float((x - network(x)).square().sum() / (x - x.mean(0)).square().sum()),
    )


@torch.no_grad()
def true_subspaces(network: Superposition) -> Subspaces:
    """The subspaces of the groups, in their order; what is left of the space, if anything, is one more part.

    Each is spanned by the left singular vectors of the group's columns of W; where those of different groups are not
    quite orthogonal, the nearest orthogonal matrix is taken.

    Raises:
        ValueError: if the groups have more dimensions together than the space.
    """
    toy, weight = network.toy, network.hidden.weight.double()
    bases = [_span(weight[:, span])[0] for span in toy.spans]
    ranks = [len(basis) for basis in bases]
    if sum(ranks) > toy.width:
        raise ValueError(f"groups of dimensions {ranks} are not orthogonal in a space of width {toy.width}")
    rest = torch.linalg.svd(torch.cat(bases)).Vh[sum(ranks) :]
    rotation = nearest_rotation(torch.cat([*bases, rest])).float()
    return Subspaces(rotation, [*ranks, len(rest)] if len(rest) else ranks)


def _stream(toy: Toy, course: Course, generators: Sequence[torch.Generator]) -> "itertools.chain[Tensor]":
    """The inputs of every step [seeds, batch, features]; those of many steps are drawn at once."""
    chunks = torch.empty(course.steps).split(200)
    return itertools.chain.from_iterable(
        torch.stack(
            [toy.draw(len(chunk) * course.batch, g).x.view(len(chunk), course.batch, -1) for g in generators], 1
        )
        for chunk in chunks
    )


def _span(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal rows that span the columns but for what is flat, and all d singular values."""
    u, s, _ = torch.linalg.svd(columns)
    values = F.pad(s, (0, len(columns) - len(s)))
    return u.T[: int((s > _FLAT * s[0]).sum())], values
