"""Decompositions made of others: vectors within parts, dictionaries inside a part, latents by the part they write."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.decompose.autoencoder import Autoencoder
from innerspace.decompose.base import AnyCode, Code, Decomposition
from innerspace.decompose.directions import Directions
from innerspace.decompose.sparse import Sparse
from innerspace.decompose.subspaces import Subspaces


def restricted(
    vectors: Directions,
    via: Subspaces,
    parts: int | Sequence[int],
    difference: Float[Tensor, "k d"] | None = None,
) -> Directions:
    """What of control vectors lies in some parts, BᵀB v with the orthonormal rows B of the parts; gaps are recomputed.

    From the ``difference`` of the class means of each vector, μ⁺ − μ⁻, follows the gap (μ⁺ − μ⁻) · unit. Without it a
    step is what of the old step lies in the parts, which for mean differences is the same.

    Raises:
        ValueError: for no part or one that is not there, another width, or a vector that has nothing in the parts.
    """
    named = [parts] if isinstance(parts, int) else list(parts)
    if not named:
        raise ValueError("no part was named to restrict vectors to")
    if via.width != vectors.width:
        raise ValueError(f"the subspaces divide width {via.width}, the vectors have width {vectors.width}")
    basis = torch.cat([via.basis(part) for part in named]).detach().double()
    inside = vectors.directions.double() @ basis.T @ basis
    words = ", ".join(map(str, named))
    for origin, share in zip(vectors.origins, (inside.norm(dim=1) / vectors.gap).tolist(), strict=True):
        if share < 1e-6:
            raise ValueError(f"the direction of {origin.feature!r} has nothing in part {words}")
    origins = [replace(origin, method=f"{origin.method} in part {words}") for origin in vectors.origins]
    rows = inside.to(vectors.directions)
    if difference is None:
        return Directions(rows, rows.norm(dim=1), origins)
    return Directions.oriented(rows, difference.to(rows), origins)


@final
class Inside(Decomposition):
    """A dictionary inside one part: z = encode(B x), x̂ = Bᵀ decode(z), with the orthonormal rows B of the part.

    What lies outside of the part is no matter of it: ``Write`` keeps it, ``Splice`` drops it. The dictionary is trained
    on ``read(x)`` like any other. The part's basis is copied, and stays as it is when the subspaces change.

    Raises:
        ValueError: for a part that is not there, or a dictionary of another width than the part has dimensions.
    """

    basis: Tensor

    def __init__(self, what: Autoencoder, via: Subspaces, part: int) -> None:
        super().__init__()
        basis = via.basis(part).detach().clone()
        if what.width != len(basis):
            raise ValueError(f"part {part} has {len(basis)} dimensions, the dictionary reads width {what.width}")
        self.what = what
        self.register_buffer("basis", basis)

    @property
    def parts(self) -> list[slice]:
        """Those of the dictionary."""
        return self.what.parts

    @property
    def directions(self) -> Float[Tensor, "k d"]:
        """The dictionary's, lifted out of the part."""
        return self.what.directions @ self.basis

    def read(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows n"]:
        """The coordinates in the part, B x."""
        return x @ self.basis.T

    def encode(self, x: Float[Tensor, "*rows d"]) -> Code:
        """The dictionary's code of the coordinates in the part."""
        return self.what.encode(self.read(x))

    def code(self, x: Float[Tensor, "*rows d"]) -> AnyCode:
        """The same in whichever form the dictionary prefers."""
        return self.what.code(self.read(x))

    def decode(self, z: Float[Tensor, "*rows k"] | Sparse) -> Float[Tensor, "*rows d"]:
        """Hidden states within the part."""
        return self.what.decode(z) @ self.basis

    def project_gradient(self) -> None:
        """The dictionary's."""
        self.what.project_gradient()

    def retract(self) -> None:
        """The dictionary's."""
        self.what.retract()


@torch.no_grad()
def shares_by_part(what: Decomposition, via: Subspaces) -> Float[Tensor, "k parts"]:
    """Of the squared norm of every direction the share in each part; they add up to one, or to zero for a zero row.

    Raises:
        ValueError: for another width.
    """
    directions = what.directions
    if directions.shape[1] != via.width:
        raise ValueError(f"the directions have width {directions.shape[1]}, the subspaces divide width {via.width}")
    squares = (directions @ via.rotation.T).square()
    inside = torch.stack([squares[:, part].sum(1) for part in via.parts], 1)
    return inside / squares.sum(1, keepdim=True).clamp_min(torch.finfo(squares.dtype).tiny)


def latents_by_part(what: Decomposition, via: Subspaces) -> list[list[int]]:
    """For every part the latents that write there most, the largest share first; latents of zero rows are in none.

    Raises:
        ValueError: for another width.
    """
    share, part = shares_by_part(what, via).max(1)
    order = share.argsort(descending=True, stable=True).tolist()
    return [[i for i in order if part[i] == own and share[i] > 0] for own in range(len(via.parts))]
