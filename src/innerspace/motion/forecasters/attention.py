"""Pre-norm attention blocks that are the same with and without hooks, and know what is padding."""

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional


@final
class Attention(nn.Module):
    """Multi-head attention of queries to a memory, by the fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"the width should be a multiple of the heads, got {width} and {heads}")
        self.width, self.heads = width, heads
        self.query = nn.Linear(width, width)
        self.memory = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        query: Float[Tensor, "batch n width"],
        memory: Float[Tensor, "batch m width"],
        mask: Float[Tensor, "batch 1 #n m"] | None,
    ) -> Float[Tensor, "batch n width"]:
        """What the queries gather; ``mask`` is added to the logits (−∞ hides a memory entry)."""
        n, m, each = query.shape[1], memory.shape[1], self.width // self.heads
        q = self.query(query).unflatten(-1, (self.heads, each)).transpose(1, 2)
        shared = mask is None or mask.shape[-2] == 1
        # few queries: cheaper to bring them to the memory than to project the memory, in multiplications
        if shared and n * self.heads * (each + m) < m * (self.width + n):
            return self.out(self._unprojected(q, memory, mask))
        k, v = self.memory(memory).unflatten(-1, (2, self.heads, each)).permute(2, 0, 3, 1, 4)
        gathered = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(gathered.transpose(1, 2).flatten(-2))

    def _unprojected(
        self,
        q: Float[Tensor, "batch heads n each"],
        memory: Float[Tensor, "batch m width"],
        mask: Float[Tensor, "batch 1 1 m"] | None,
    ) -> Float[Tensor, "batch n width"]:
        """The same attention in another order: q · (K x) = (Kᵀ q) · x and Σ p V x = V Σ p x.

        The bias of the keys adds the same to all logits of a query and drops out of the softmax.
        """
        keys, values = self.memory.weight.unflatten(0, (2, self.heads, -1))
        q = (q @ keys).flatten(1, 2)[:, None]
        shared = memory[:, None]
        gathered = functional.scaled_dot_product_attention(
            q, shared, shared, attn_mask=mask, scale=(self.width // self.heads) ** -0.5
        )
        gathered = gathered.unflatten(2, (self.heads, -1)).squeeze(1) @ values.transpose(1, 2)
        return gathered.transpose(1, 2).flatten(-2) + self.memory.bias[self.width :]


@final
class Block(nn.Module):
    """x + attention(x → x and a memory), then x + MLP(x); both on normalized input; padded rows come out as zero.

    Tokens see themselves and the memory (if there is one) in a single attention, so there is always something to see.
    The memory is expected to be normalized.
    """

    def __init__(self, width: int, heads: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.before_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, expansion * width), nn.ReLU(), nn.Linear(expansion * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch n width"],
        mask: Float[Tensor, "batch 1 #n m"] | None,
        memory: Float[Tensor, "batch _ width"] | None = None,
        valid: Bool[Tensor, "batch n"] | None = None,
    ) -> Float[Tensor, "batch n width"]:
        """The tokens after the block; ``mask`` (added to the logits) covers the tokens, then the memory."""
        normed = self.before_attention(x)
        seen = normed if memory is None else torch.cat((normed, memory), 1)
        x = x + self.dropout(self.attention(normed, seen, mask))
        x = x + self.dropout(self.mlp(self.before_mlp(x)))
        return x if valid is None else x * valid[..., None]


@final
class CrossBlock(nn.Module):
    """x + attention(x → x) if they are to talk ``among`` themselves, x + attention(x → memory), then x + MLP(x).

    All on normalized input; the memory is expected to be normalized, and to hold something for every row to see.
    """

    def __init__(self, width: int, heads: int, expansion: int, dropout: float, *, among: bool) -> None:
        super().__init__()
        self.before_among = nn.LayerNorm(width) if among else None
        self.among = Attention(width, heads) if among else None
        self.before_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.before_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, expansion * width), nn.ReLU(), nn.Linear(expansion * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch n width"],
        memory: Float[Tensor, "batch m width"],
        mask: Float[Tensor, "batch 1 #n m"] | None = None,
    ) -> Float[Tensor, "batch n width"]:
        """The tokens after the block; ``mask`` (added to the logits) covers the memory."""
        if self.before_among is not None and self.among is not None:
            normed = self.before_among(x)
            x = x + self.dropout(self.among(normed, normed, None))
        x = x + self.dropout(self.attention(self.before_attention(x), memory, mask))
        return x + self.dropout(self.mlp(self.before_mlp(x)))


def hiding(seen: Bool[Tensor, "batch *queries m"]) -> Float[Tensor, "batch 1 n m"]:
    """The mask to add to attention logits, one for all queries or for each: 0 where a memory entry is seen, else −∞."""
    mask = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -torch.inf)
    return mask[:, None, None] if mask.ndim == 2 else mask[:, None]


def seeing_themselves(valid: Bool[Tensor, "batch n"]) -> Bool[Tensor, "batch n n"]:
    """Who sees whom in self-attention: everyone the valid tokens, and itself so that padding sees something."""
    return valid[:, None] | torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)


def after(count: int, present: Bool[Tensor, "batch m"]) -> Bool[Tensor, "batch _"]:
    """The mask of so many learned tokens followed by others."""
    return functional.pad(present, (count, 0), value=True)
