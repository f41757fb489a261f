"""A network of two layers with a site at each, in float64: linear, bent, or with a circuit that is known."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from innerspace.decompose.subspaces import Subspaces, nearest_rotation, random_rotation
from innerspace.network.model import Family, Model
from innerspace.network.site import Site

D, WIDTH = torch.float64, 6


class Layers(nn.Module):
    """h₁ = x, h₂ = f(mix over tokens of W h₁), y = R Σ over tokens of h₂; without a mix each token is by itself."""

    def __init__(self, bend: nn.Module, weight: Tensor, readout: Tensor, mix: Tensor | None) -> None:
        super().__init__()
        self.first, self.second, self.bend = nn.Identity(), nn.Identity(), bend
        self.weight, self.rows, self.mix = nn.Parameter(weight), nn.Parameter(readout), mix

    def readout(self, h: Tensor) -> Tensor:
        return h @ self.rows.T

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) @ self.weight.T
        if self.mix is not None:
            h = torch.einsum("st,btd->bsd", self.mix, h)
        return self.readout(self.second(self.bend(h)).sum(1))


class LayersFamily(Family):
    def sites(self, module: nn.Module) -> list[Site]:
        return [Site("first", "first", WIDTH), Site("second", "second", WIDTH)]

    def forward(self, module: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        return {"y": module(batch)}


def inputs(rows: int, tokens: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(rows, tokens, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=D)


def parted(sizes: list[int] | None = None, seed: int = 2) -> Subspaces:
    """A rotation, its coordinates in parts."""
    return Subspaces(rotation(seed), sizes or [1] * WIDTH).double()


def rotation(seed: int) -> Tensor:
    """Orthogonal to the last digit of float64."""
    return nearest_rotation(random_rotation(WIDTH, torch.Generator().manual_seed(seed)).double())


def network(bend: nn.Module, tokens: int = 3) -> Model:
    """Random weights."""
    generator = torch.Generator().manual_seed(4)
    weight, readout, mix = (
        torch.randn(*shape, generator=generator, dtype=D) for shape in ((WIDTH, WIDTH), (2, WIDTH), (tokens, tokens))
    )
    return Model(Layers(bend, weight / 2, readout, mix), LayersFamily())


Named = tuple[str, int, int]


@dataclass(frozen=True)
class Truth:
    """Nodes as (site, part, place), and the edges between them."""

    nodes: set[Named]
    edges: set[tuple[Named, Named]]


class Planted(nn.Module):
    """In hidden coordinates u of h₁ and v of h₂, at the last token: v₀ = u₀ of token 0 + u₁ of token 1, v₁ = u₂² of
    token 2; v₂ … at every token are functions of u₃ … that nothing reads. y = v₀ − 2 v₁ of the last token.
    """

    def __init__(self, one: Tensor, two: Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Identity()
        self.one, self.two = nn.Parameter(one), nn.Parameter(two)

    def forward(self, x: Tensor) -> Tensor:
        u = self.first(x) @ self.one.T
        said = torch.stack((u[:, 0, 0] + u[:, 1, 1], u[:, 2, 2].square()), -1)
        idle = torch.cat((torch.zeros_like(u[..., :2]), u[..., 2:].tanh()), -1)
        last = torch.cat((said, torch.zeros_like(idle[:, -1, 2:])), -1)[:, None]
        v = idle + torch.cat((torch.zeros_like(idle[:, :-1]), last), 1)
        v = self.second(v @ self.two) @ self.two.T
        return (v[:, -1, 0] - 2 * v[:, -1, 1])[:, None]


def planted() -> tuple[Model, dict[str, Subspaces], Truth]:
    """The network, the decompositions in which its circuit is seen, and the circuit; inputs have four tokens."""
    one, two = rotation(5), rotation(6)
    model = Model(Planted(one, two), LayersFamily())
    vias = {"first": Subspaces(one, [1] * WIDTH), "second": Subspaces(two, [1] * WIDTH)}
    a, b, c = ("first", 0, 0), ("first", 1, 1), ("first", 2, 2)
    p, q = ("second", 0, 3), ("second", 1, 3)
    return model, vias, Truth({a, b, c, p, q}, {(a, p), (b, p), (c, q)})
