"""Many partitions of one space learned at once, in one batch, on rows that seek their neighbors in small companies.

A company is a few rows drawn together, and neighbors are sought in it alone. How many there are is the resolution: a
variable is seen in a part if a company is likely to hold two rows with the same value of it, and not yet two that agree
in two variables. With many keys every state finds its like in a mixture of variables as well, and all cuts look good.

This is no second training loop: there are no terms, no callbacks and no snapshots, only the descent that a search for
starts and cuts repeats by the hundred, in spaces so small that the loop of ``learn/fit.py`` would mostly wait for
itself. What it finds is where a fit begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.decompose.subspaces import nearest_rotation
from innerspace.value import Value

_JUDGED = 64
"""How many times the rows of a step judge what was learned."""
_LEAST = 1e-6
"""Rows that are nearer are at one place, and pull at nothing."""


@dataclass(frozen=True)
class Descent(Value):
    """How long and how fast: ``rows`` a step in companies of ``company``, Adam at ``rate``, which falls at the end."""

    company: int = 32
    rows: int = 128
    steps: int = 400
    rate: float = 0.15

    def __post_init__(self) -> None:
        if self.company < 2 or self.rows < self.company or self.steps < 1 or self.rate <= 0:
            raise ValueError(f"a company has two rows or more, and a step a company: {self}")


def descend(
    x: Float[Tensor, "n d"], sizes: Sequence[int], begins: Float[Tensor, "starts d d"], how: Descent, seed: int
) -> Float[Tensor, "starts d d"]:
    """Rotations with a small mean distance Σ (d_s / d) ρ̄_s to the nearest of the company; one for every start.

    Every start sees the same rows. A step is that of the moving chart of ``Subspaces``: Adam on the skew part of the
    gradient between parts, a Cayley transform.

    Raises:
        ValueError: for sizes that do not add up to the width, or fewer rows than a company.
    """
    _check(x, sizes, how.company)
    member = _members(sizes, x.device)
    weight, apart = x.new_tensor(sizes) / x.shape[1], (member[:, None] != member).to(x)
    turns, draw = begins.to(x).clone(), torch.Generator().manual_seed(seed)
    first, second, one = torch.zeros_like(turns), torch.zeros_like(turns), torch.eye(len(member)).to(x)
    for step in range(how.steps):
        gradient = _gradient(_companies(x, how.company, how.rows, draw), turns, member, weight)
        skew = (gradient - gradient.mT) * apart
        first, second = first.lerp(skew, 0.1), second.lerp(skew.square(), 0.01)
        speed = how.rate * min(1, (step + 1) / 20, 2 * (how.steps - step) / how.steps)
        size = (second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8
        half = first / (1 - 0.9 ** (step + 1)) / size * (-speed / 2)
        turns = torch.linalg.solve(one - half, turns + half @ turns)
    return torch.stack([nearest_rotation(turn) for turn in turns])


def company_distance(
    x: Float[Tensor, "n d"], rotation: Float[Tensor, "d d"], sizes: Sequence[int], how: Descent, seed: int = 0
) -> float:
    """Σ (d_s / d) ρ̄_s on rows that depend on the seed alone, so that partitions of one space compare.

    Raises:
        ValueError: as ``descend``.
    """
    _check(x, sizes, how.company)
    draw = torch.Generator().manual_seed(seed)
    z = _companies(x, how.company, _JUDGED * how.rows, draw) @ rotation.to(x).T
    total = 0.0
    for part in z.split(list(sizes), -1):
        total += part.shape[-1] / x.shape[1] * float(_apart(_distances(part)).amin(2).mean())
    return total


def _gradient(
    x: Float[Tensor, "companies c d"], turns: Float[Tensor, "starts d d"], member: Int[Tensor, "d"], weight: Tensor
) -> Float[Tensor, "starts d d"]:
    """∂/∂A of the distance at R = exp(A) R₀, A = 0, before its skew part is taken."""
    z = x @ turns[:, None].mT
    gradient, rows = torch.empty_like(turns), x.shape[0] * x.shape[1]
    for s, share in enumerate(weight):
        own = z[..., member == s]
        least, place = _apart(_distances(own)).min(-1)
        away = (z - z.gather(2, place[..., None].expand_as(z))).flatten(1, 2)
        pulled = away[..., member == s] / least.clamp(min=_LEAST).flatten(1)[..., None] * share
        gradient[:, member == s] = pulled.mT @ away / rows
    return gradient


def _distances(z: Float[Tensor, "... c size"]) -> Float[Tensor, "... c c"]:
    return torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")


def _companies(x: Tensor, company: int, rows: int, draw: torch.Generator) -> Float[Tensor, "companies c d"]:
    """Rows drawn together, of which none is twice in a company."""
    count = rows // company
    if len(x) <= 8 * company:
        index = torch.rand(count, len(x), generator=draw).topk(company).indices
    else:
        # a window of a random order: as good, and it does not take all rows for each
        order = torch.randperm(len(x), generator=draw)
        index = (torch.arange(count)[:, None] * company + torch.arange(company)) % len(x)
        index = order[index]
    return x[index.to(x.device)]


def _apart(distance: Tensor) -> Tensor:
    """No row is its own neighbor."""
    return distance.masked_fill(torch.eye(distance.shape[-1], device=distance.device).bool(), torch.inf)


def _members(sizes: Sequence[int], device: torch.device) -> Int[Tensor, "d"]:
    return torch.arange(len(sizes), device=device).repeat_interleave(torch.tensor(sizes, device=device))


def _check(x: Tensor, sizes: Sequence[int], company: int) -> None:
    if min(sizes, default=0) < 1 or sum(sizes) != x.shape[1]:
        raise ValueError(f"parts of sizes {list(sizes)} do not divide a space of width {x.shape[1]}")
    if len(x) < company:
        raise ValueError(f"a company of {company} is more than the {len(x)} rows")
