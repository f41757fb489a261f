"""Rows of features in groups of which at most one is on, each group in dimensions of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from innerspace.decompose.subspaces import Subspaces, random_rotation


def exclusive_rows(features: Sequence[int], dims: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
    """A fourth of the time a group is empty, else one feature has a strength between 0 and 1."""
    groups = list[Tensor]()
    for number, width in zip(features, dims, strict=True):
        direction = torch.nn.functional.normalize(torch.randn(number, width, generator=generator), dim=1)
        strength = torch.rand(count, 1, generator=generator) * (torch.rand(count, 1, generator=generator) > 0.25)
        groups.append(direction[torch.randint(number, (count,), generator=generator)] * strength)
    return torch.cat(groups, 1)


def inside_groups(dims: Sequence[int], sizes: Sequence[int], generator: torch.Generator) -> Subspaces:
    """Parts that each lie in one group, but anyhow within it."""
    return Subspaces(torch.block_diag(*(random_rotation(width, generator) for width in dims)), sizes)


def purity(what: Subspaces, dims: Sequence[int]) -> float:
    """The least share that any part has in the one group of which it has most."""
    energy = [
        torch.stack([one.square().sum() for one in what.basis(i).detach().split(list(dims), 1)])
        for i in range(len(what.sizes))
    ]
    return min(float(one.max() / one.sum()) for one in energy)
