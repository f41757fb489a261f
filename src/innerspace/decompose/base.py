"""Coordinates for hidden states, and to every coordinate a direction."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn


class Code(NamedTuple):
    """What ``encode`` returns: entries ``z``, pre-activations ``pre``, and the sparsity cost of each row.

    ``pre`` is what the nonlinearity saw. ``cost`` is the nonlinearity's own differentiable measure of how many
    entries are on (the L1 norm for ReLU, a straight-through L0 for JumpReLU, zero for TopK).
    """

    z: Float[Tensor, "*rows k"]
    pre: Float[Tensor, "*rows k"]
    cost: Float[Tensor, "*rows"]


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

    @abstractmethod
    def decode(self, z: Float[Tensor, "*rows k"]) -> Float[Tensor, "*rows d"]:
        """Hidden states from coordinates; affine."""

    def lift(self, dz: Float[Tensor, "*rows k"]) -> Float[Tensor, "*rows d"]:
        """The change of the hidden state that a change of coordinates makes; linear, never a bias."""
        return dz @ self.directions
