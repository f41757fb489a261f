"""Whether two fits find the same: parts matched one to one, and the angles that are left between the partners.

Parts of one coordinate with a direction that matters, such as latents, are matched by cosine; parts of subspaces by the
principal angles between them, where a direction and its opposite are the same.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from innerspace.decompose.base import Decomposition
from innerspace.decompose.subspaces import Subspaces
from innerspace.measure.estimate import Estimate
from innerspace.measure.geometry import mean
from innerspace.measure.neighbors import assign
from innerspace.measure.recovery import match
from innerspace.value import Value

_APART = 7_919_000
"""Where the seeds of chance begin."""


@dataclass(frozen=True)
class Stability(Value):
    """The mean angle in degrees between matched parts, and what chance gives: another random fit of the same sizes."""

    angle: Estimate
    chance: float


@torch.no_grad()
def stability(
    a: Decomposition,
    b: Decomposition,
    alive_a: Bool[Tensor, "k"] | None = None,
    alive_b: Bool[Tensor, "m"] | None = None,
    seed: int = 0,
) -> Stability:
    """How far two decompositions of one kind agree; latents that are not alive do not count.

    The interval is that of a bootstrap over the angles.

    Raises:
        ValueError: for subspaces beside another kind, or widths that differ.
    """
    # far from the small seeds by which what is judged may have been drawn itself
    generator = torch.Generator().manual_seed(_APART + seed)
    if isinstance(a, Subspaces) != isinstance(b, Subspaces):
        raise ValueError(f"a {type(a).__name__} and a {type(b).__name__} have no parts that could be the same")
    if isinstance(a, Subspaces) and isinstance(b, Subspaces):
        if a.width != b.width:
            raise ValueError(f"subspaces of one width can be matched, they divide {a.width} and {b.width}")
        found = subspace_angles(a, b)
        chance = subspace_angles(a, Subspaces.random(b.width, b.sizes, generator))
    else:
        one, other = a.directions, b.directions
        found = cosine_angles(one, other, alive_a, alive_b)
        noise = torch.randn(other.shape, generator=generator).to(other)
        chance = cosine_angles(one, noise, alive_a, alive_b)
    return Stability(mean(found, generator), float(chance.double().mean()))


@torch.no_grad()
def cosine_angles(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "m d"],
    alive_a: Bool[Tensor, "n"] | None = None,
    alive_b: Bool[Tensor, "m"] | None = None,
) -> Float[Tensor, "pairs"]:
    """Degrees between the directions of a one-to-one matching with the largest sum of cosines."""
    found = assign(a, b, alive_a=alive_a, alive_b=alive_b)
    one, other = (F.normalize(rows.double(), dim=1) for rows in (a[found.a], b[found.b]))
    # exact for small angles, where the arc cosine of a product is not
    return torch.rad2deg(2 * torch.atan2((one - other).norm(dim=1), (one + other).norm(dim=1)))


@torch.no_grad()
def subspace_angles(a: Subspaces, b: Subspaces) -> Float[Tensor, "angles"]:
    """Degrees: all principal angles between the partners of a matching with the largest sum of squared cosines."""
    one, other = ([what.basis(i).double() for i in range(len(what.parts))] for what in (a, b))
    score = torch.tensor([[float((x @ y.T).square().sum()) for y in other] for x in one], dtype=torch.float64)
    pairs = [(i, j) for j, i in enumerate(match(score)) if i >= 0]
    return torch.cat([_principal(one[i], other[j]) for i, j in pairs])


def _principal(x: Tensor, y: Tensor) -> Tensor:
    """From cosines and, where the angle is small, from sines (Björck and Golub 1973)."""
    small, large = (x, y) if len(x) <= len(y) else (y, x)
    cosine = torch.linalg.svdvals(small @ large.T).clamp(max=1)
    sine = torch.linalg.svdvals(small - small @ large.T @ large).clamp(max=1).flip(0)
    return torch.rad2deg(torch.where(cosine > 0.7, sine.asin(), cosine.acos()))
