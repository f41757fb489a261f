"""Attention of tokens with poses to the nearest of a memory, whose entries come with where they lie as seen from there.

A token has a pose and knows nothing of where that is: only relative poses enter, so the same scene looks the same from
everywhere. Keys and values are those of the memory plus projections of the relative pose r (KNARPE): a query q scores
an entry by q · (k + W_k r) and gathers v + W_v r.

Zhang et al., "Real-Time Motion Prediction via Heterogeneous Polyline Transformer with Relative Pose Encoding",
NeurIPS 2023, arXiv 2310.12970.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

_FARTHEST = 1e3


@dataclass(frozen=True, eq=False)
class Poses:
    """Where tokens are (m) and whither they look (rad), in a common frame; finite even where nothing is ``present``."""

    position: Float[Tensor, "batch n 2"]
    heading: Float[Tensor, "batch n"]
    present: Bool[Tensor, "batch n"]

    def and_then(self, others: "Poses") -> "Poses":
        """These, then the others."""
        return Poses(
            torch.cat((self.position, others.position), 1),
            torch.cat((self.heading, others.heading), 1),
            torch.cat((self.present, others.present), 1),
        )

    def first(self, count: int) -> "Poses":
        """The first ones."""
        return Poses(self.position[:, :count], self.heading[:, :count], self.present[:, :count])


@dataclass(frozen=True)
class PoseEncoding:
    """A relative pose as bounded numbers: sines and cosines of x, of y and of multiples of the yaw.

    The wavelengths of ``frequencies`` waves grow geometrically from 2π m to 2π km (θ = 10³); the yaw is taken 1 …
    ``turns`` times.
    """

    frequencies: int
    turns: int

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return 4 * self.frequencies + 2 * self.turns

    def __call__(
        self, offset: Float[Tensor, "*pairs 2"], turn: Float[Tensor, "*pairs"]
    ) -> Float[Tensor, "*pairs size"]:
        """Encode offsets (m, in the query's frame) and turns (rad)."""
        exponents = torch.arange(self.frequencies, device=turn.device) / max(self.frequencies - 1, 1)
        phases = (offset[..., None] * (_FARTHEST**-exponents).to(offset.dtype)).flatten(-2)
        phases = torch.cat((phases, turn[..., None] * torch.arange(1, self.turns + 1, device=turn.device)), -1)
        return torch.cat((phases.sin(), phases.cos()), -1)


@dataclass(frozen=True, eq=False)
class Neighbors:
    """For every query the places in memory that it sees, nearest first, and how they lie there.

    ``mask`` is added to the logits: −∞ where fewer than k can be seen.
    """

    index: Int[Tensor, "batch n k"]
    relative: Float[Tensor, "batch n k size"]
    mask: Float[Tensor, "batch n 1 k"]


def neighbors(queries: Poses, memory: Poses, count: int, reach: float, encoding: PoseEncoding) -> Neighbors:
    """The ``count`` nearest present entries within ``reach`` (m) of each query, all of them if there are no more.

    Query i lies where memory entry i does, and sees that in any case, so that there is always something to see.
    """
    offset = memory.position[:, None] - queries.position[:, :, None]
    distance = offset.norm(dim=-1)
    distance = distance.masked_fill(~memory.present[:, None] | (distance > reach), torch.inf)
    distance.diagonal(dim1=1, dim2=2).fill_(-1)
    kept, index = distance.topk(min(count, distance.shape[-1]), largest=False)
    offset = offset.take_along_dim(index[..., None], 2)
    cos, sin = queries.heading.cos()[..., None], queries.heading.sin()[..., None]
    x, y = offset.unbind(-1)
    turn = memory.heading[:, None].expand_as(distance).take_along_dim(index, 2) - queries.heading[..., None]
    relative = encoding(torch.stack((cos * x + sin * y, cos * y - sin * x), -1), turn)
    mask = torch.zeros_like(kept).masked_fill_(kept.isinf(), -torch.inf)
    return Neighbors(index, relative, mask[:, :, None])


@final
class RelativeAttention(nn.Module):
    """Multi-head attention to neighbors, whose keys and values are linear in what they hold and how they lie."""

    def __init__(self, width: int, heads: int, encoding: PoseEncoding) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"the width should be a multiple of the heads, got {width} and {heads}")
        self.width, self.heads = width, heads
        self.query = nn.Linear(width, width)
        # a bias of the keys would add the same to all logits of a query
        self.key = nn.Linear(width + encoding.size, width, bias=False)
        self.value = nn.Linear(width + encoding.size, width)
        self.out = nn.Linear(width, width)

    def forward(
        self, query: Float[Tensor, "batch queries width"], memory: Float[Tensor, "batch m width"], near: Neighbors
    ) -> Float[Tensor, "batch queries width"]:
        """What the queries gather; where there are more of them than neighborhoods, they share these evenly.

        With W applied to x and r at once, queries are brought to the neighbors, (Wᵀ q) · (x, r), and values are taken
        of what is gathered, W Σ p (x, r): nothing is projected once for each pair, and the largest tensor is that of
        the neighbors themselves, [batch, n, k, width].
        """
        n, each = near.index.shape[1], self.width // self.heads
        batch = torch.arange(len(memory), device=memory.device)[:, None, None]
        rows = functional.embedding(near.index + batch * memory.shape[1], memory.flatten(0, 1))
        q = self.query(query).unflatten(-1, (self.heads, each)) * each**-0.5
        q = torch.einsum("bnhe,hec->bnhc", q, self.key.weight.unflatten(0, (self.heads, each)))
        q, to_pose = q.unflatten(1, (n, -1)).flatten(2, 3).split((self.width, near.relative.shape[-1]), -1)
        logits = q @ rows.transpose(-1, -2) + to_pose @ near.relative.transpose(-1, -2)
        weights = (logits + near.mask).softmax(-1)
        gathered = torch.cat((weights @ rows, weights @ near.relative), -1)
        gathered = gathered.unflatten(2, (-1, self.heads)).flatten(1, 2)
        values = self.value.weight.unflatten(0, (self.heads, each))
        return self.out(torch.einsum("bnhc,hec->bnhe", gathered, values).flatten(-2) + self.value.bias)


@final
class RelativeBlock(nn.Module):
    """x + attention(x → neighbors), then x + MLP(x); both on normalized input; padded rows come out as zero.

    The memory is expected to be normalized.
    """

    def __init__(self, width: int, heads: int, expansion: int, dropout: float, encoding: PoseEncoding) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.attention = RelativeAttention(width, heads, encoding)
        self.before_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, expansion * width), nn.ReLU(), nn.Linear(expansion * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch n width"],
        near: Neighbors,
        memory: Float[Tensor, "batch _ width"] | None = None,
        valid: Bool[Tensor, "batch n"] | None = None,
        *,
        itself: bool = True,
    ) -> Float[Tensor, "batch n width"]:
        """The tokens after the block; what they see is themselves (if ``itself``), then the memory."""
        normed = self.before_attention(x)
        parts = ([normed] if itself else []) + ([] if memory is None else [memory])
        x = x + self.dropout(self.attention(normed, torch.cat(parts, 1), near))
        x = x + self.dropout(self.mlp(self.before_mlp(x)))
        return x if valid is None else x * valid[..., None]
