"""Coordinates for hidden states, and to every coordinate a direction."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from innerspace.decompose.sparse import Sparse
from innerspace.value import Value


@dataclass(frozen=True)
class Home(Value):
    """Where a decomposition belongs: the hash of the network that it was fitted to, and the site."""

    model: str
    site: str


class Code(NamedTuple):
    """What ``encode`` returns: entries ``z``, pre-activations ``pre``, and the sparsity cost of each row.

    ``pre`` is what the nonlinearity saw. ``cost`` is the nonlinearity's own differentiable measure of how many
    entries are on (the L1 norm for ReLU, a straight-through L0 for JumpReLU, zero for TopK).
    """

    z: Float[Tensor, "*rows k"]
    pre: Float[Tensor, "*rows k"]
    cost: Float[Tensor, "*rows"]


class SparseCode(NamedTuple):
    """A code of which only the entries that are on are kept; ``pre`` is known at the same places only."""

    z: Sparse
    pre: Sparse
    cost: Float[Tensor, "*rows"]


AnyCode = Code | SparseCode


class Decomposition(nn.Module, ABC):
    """Coordinates of a hidden space: x ≈ decode(encode(x)), and lift is the linear part of decode.

    Laws: decode is affine, ``decode(z + dz) - decode(z) == lift(dz)``; lift is linear, ``lift(dz) == dz @ directions``,
    and never adds a bias; the parts cover the coordinates without overlap.
    """

    @property
    @abstractmethod
    def parts(self) -> list[slice]:
        """The coordinates that belong together: one each (dictionary), blocks (subspaces), one (direction)."""

    @property
    @abstractmethod
    def directions(self) -> Float[Tensor, "k d"]:
        """Row i is what one unit of coordinate i writes into the hidden space."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "*rows d"]) -> Code:
        """The coordinates of hidden states."""

    def code(self, x: Float[Tensor, "*rows d"]) -> AnyCode:
        """The coordinates in whichever form is cheaper: dense, or only the entries that are on."""
        return self.encode(x)

    @abstractmethod
    def decode(self, z: Float[Tensor, "*rows k"] | Sparse) -> Float[Tensor, "*rows d"]:
        """Hidden states from coordinates; affine."""

    def lift(self, dz: Float[Tensor, "*rows k"]) -> Float[Tensor, "*rows d"]:
        """The change of the hidden state that a change of coordinates makes; linear, never a bias."""
        return dz @ self.directions

    def project_gradient(self) -> None:
        """Remove from the gradients what would leave the set on which the parameters live; runs before each step."""

    def retract(self) -> None:
        """Bring the parameters back onto the set on which they live; runs after each step."""


def check_place(width: int, home: Home | None, place: Home, there: int) -> None:
    """Refuse a place to which a decomposition of a ``width`` and a ``home`` does not belong; ``there`` is its width.

    Raises:
        ValueError: naming what differs.
    """
    if there != width:
        raise ValueError(f"the decomposition reads width {width}, the hidden states at {place.site!r} have {there}")
    if home is not None and home != place:
        raise ValueError(
            f"the decomposition was fitted at {home.site!r} of the network {home.model}, "
            f"this is {place.site!r} of {place.model}"
        )
