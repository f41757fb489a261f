"""A linear network whose variables lie along known directions: what is right can be said in closed form."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from innerspace.decompose.subspaces import Subspaces, random_rotation
from innerspace.measure.patching import Contrast
from innerspace.network.model import Family, Model
from innerspace.network.site import Site, Where
from innerspace.network.trace import Trace

WIDTH = 6


class Linear(nn.Module):
    """y = R x: coordinate i of the output is variable i."""

    def __init__(self, rotation: Tensor) -> None:
        super().__init__()
        self.hidden = nn.Identity()
        self.weight = nn.Parameter(rotation)

    def forward(self, x: Tensor) -> Tensor:
        return (self.hidden(x) @ self.weight.T).sum(1)


class LinearFamily(Family):
    """Its one site is the input; outputs are apart by half their squared distance."""

    def sites(self, module: nn.Module) -> list[Site]:
        return [Site("x", "hidden", WIDTH)]

    def forward(self, module: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        return {"y": module(batch)}

    def divergence(self, module: nn.Module, clean: Trace, other: Trace, chosen: Tensor | None) -> Tensor:
        rows = (clean.output["y"] - other.output["y"]).square().sum(-1) / 2
        return (rows if chosen is None else rows[chosen]).mean()


def network(seed: int = 0) -> tuple[Model, Tensor]:
    rotation = random_rotation(WIDTH, torch.Generator().manual_seed(seed)).double()
    return Model(Linear(rotation.clone()), LinearFamily()), rotation


def right(rotation: Tensor) -> Subspaces:
    """The partition that has a part of its own for every variable."""
    return Subspaces(rotation, [1] * WIDTH).double()


def states(rotation: Tensor, rows: int, seed: int) -> Tensor:
    """Inputs of one token; variable i has the standard deviation WIDTH − i, and a mean that is not zero."""
    noise = torch.randn(rows, 1, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise * torch.arange(WIDTH, 0, -1) + 3.0) @ rotation


def contrast(rotation: Tensor, variable: int, rows: int, seed: int, step: float = 2.0) -> Contrast[Tensor]:
    """The counterfactual has less of one variable, and the same of all others."""
    clean = states(rotation, rows, seed)

    def metric(trace: Trace) -> Tensor:
        return trace.output["y"][:, variable]

    return Contrast(clean, clean - step * rotation[variable], Where("all"), metric)
