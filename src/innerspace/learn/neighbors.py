"""Nearest neighbors of many queries in many subspaces at once."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Neighborhood:
    """Queries and the keys among which their neighbors are sought.

    ``own`` is the place of each query among the keys, −1 where it is not among them. ``query_document`` and
    ``key_document`` number the documents; where they are given, neighbors of one's own document do not count.
    """

    queries: Float[Tensor, "b d"]
    keys: Float[Tensor, "n d"]
    own: Int[Tensor, "b"] | None = None
    query_document: Int[Tensor, "b"] | None = None
    key_document: Int[Tensor, "n"] | None = None
