"""How far two next-token distributions are apart, from hidden states in chunks, with the gradient written by hand.

A vocabulary is far wider than a hidden state, so the logits of a few rows are made at a time, used while they are in
the cache, and overwritten. With z = scale · (h Wᵀ + b), bent to softcap · tanh(z / softcap) where there is a softcap,
p = softmax(z_clean), q = softmax(z_other), and N rows,

    KL = 1/N Σ p · (log p − log q),   ∂KL/∂z = (q − p) / N,   ∂KL/∂h = scale · ((1 − tanh²) ∂KL/∂z) W,

both in one sweep, so that the backward pass only scales. Products run in the dtype of the hidden states, or autocast's;
exponentials and sums in float32 at least.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from innerspace.decompose.sparse import linear, row_products

_CHUNK, _CUDA_CHUNK = 2**21, 2**26
"""The bytes of logits that are in memory at a time."""
_LEAST_ROWS = 256
"""Fewer rows than these take longer to fetch the weights than to use them."""
_MEMO = 2**28
"""The bytes up to which a teacher's probabilities are kept."""


@dataclass(frozen=True, eq=False)
class Unembedding:
    """What turns final hidden states into logits: z = scale · (h Wᵀ + b), then softcap · tanh(z / softcap) if any.

    Raises:
        ValueError: for a softcap that is not positive.
    """

    weight: Float[Tensor, "V d"]
    bias: Float[Tensor, "V"] | None = None
    softcap: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"the softcap should be positive, it is {self.softcap}")

    def logits(self, hidden: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows V"]:
        """The logits of all rows at once, for a few."""
        z = self.scale * F.linear(hidden, self.weight, self.bias)
        return z if self.softcap is None else self.softcap * (z / self.softcap).tanh()


def kl_divergence(
    clean: Float[Tensor, "n d"],
    other: Float[Tensor, "n d"],
    unembedding: Unembedding,
    memo: dict[str, Tensor] | None = None,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """The mean over rows of KL(softmax(clean) ‖ softmax(other)) in nats: the teacher comes first.

    Differentiable in ``other``; the clean states and the unembedding count as constants. ``memo`` keeps the teacher's
    probabilities, where they take at most 256 MiB, and so spares its product for further students of the same rows.
    ``chunk`` is how many rows have logits at a time, None for as many as suit the device.

    Raises:
        ValueError: for no rows, shapes that do not fit, or a chunk of no row.
    """
    _check(unembedding, chunk, clean, other)
    if torch.is_grad_enabled() and other.requires_grad:
        return cast(Tensor, _Divergence.apply(other, clean, unembedding, memo, chunk))
    return _sweep(other, clean, unembedding, memo, chunk, None)


@dataclass(frozen=True, eq=False)
class NextToken:
    """What every row tells of the token that follows it, clean and otherwise.

    Cross-entropies and KL(clean ‖ other) in nats; ``agree`` where both find the same token the likeliest; ``distance``
    is the total variation ½ Σ |p − q|, between 0 and 1.
    """

    clean: Float[Tensor, "n"]
    other: Float[Tensor, "n"]
    kl: Float[Tensor, "n"]
    agree: Bool[Tensor, "n"]
    distance: Float[Tensor, "n"]


@torch.no_grad()
def next_token(
    clean: Float[Tensor, "n d"],
    other: Float[Tensor, "n d"],
    targets: Int[Tensor, "n"],
    unembedding: Unembedding,
    chunk: int | None = None,
) -> NextToken:
    """Compare two states of each row with each other and with what followed: ``targets[i]`` is the token after row i.

    Raises:
        ValueError: for no rows, shapes that do not fit, or a chunk of no row.
    """
    _check(unembedding, chunk, clean, other, targets)
    desk = _Desk(unembedding, clean, chunk)
    p_sheet, q_sheet = desk.sheet(), desk.sheet()
    losses, others, kl, distance = (desk.column() for _ in range(4))
    agree = torch.empty_like(kl, dtype=torch.bool)
    for rows in desk.chunks:
        p, q, target = p_sheet[: len(clean[rows])], q_sheet[: len(clean[rows])], targets[rows, None]
        z, normalizer = desk.distribution(clean[rows], p)
        losses[rows] = normalizer - z.gather(1, target)[:, 0]
        kl[rows] = row_products(p, z) - normalizer
        z, normalizer = desk.distribution(other[rows], q)
        others[rows] = normalizer - z.gather(1, target)[:, 0]
        kl[rows] += normalizer - row_products(p, z)
        agree[rows] = p.argmax(-1) == q.argmax(-1)
        distance[rows] = q.sub_(p).abs_().sum(-1) / 2
    return NextToken(losses, others, kl, agree, distance)


@torch.no_grad()
def cross_entropy(
    hidden: Float[Tensor, "n d"], targets: Int[Tensor, "n"], unembedding: Unembedding, chunk: int | None = None
) -> Float[Tensor, "n"]:
    """−log softmax(hidden)[target] of each row in nats: ``targets[i]`` is the token after row i.

    Raises:
        ValueError: for no rows, shapes that do not fit, or a chunk of no row.
    """
    _check(unembedding, chunk, hidden, targets=targets)
    desk = _Desk(unembedding, hidden, chunk)
    loss = desk.column()
    for rows in desk.chunks:
        z = desk.logits(hidden[rows])
        loss[rows] = z.logsumexp(-1) - z.gather(1, targets[rows, None])[:, 0]
    return loss


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        other: Tensor,
        clean: Tensor,
        unembedding: Unembedding,
        memo: dict[str, Tensor] | None,
        chunk: int | None,
    ) -> Tensor:
        grad = torch.empty_like(other, memory_format=torch.contiguous_format)
        ctx.save_for_backward(grad)
        return _sweep(other, clean, unembedding, memo, chunk, grad)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grads[0].to(grad) * grad, None, None, None, None


@torch.no_grad()
def _sweep(
    other: Tensor,
    clean: Tensor,
    unembedding: Unembedding,
    memo: dict[str, Tensor] | None,
    chunk: int | None,
    grad: Tensor | None,
) -> Tensor:
    """The divergence, and its gradient into ``grad`` where one is given."""
    desk = _Desk(unembedding, other, chunk)
    known = memo is not None and "teacher" in memo and torch.equal(memo["teacher"], clean)
    if memo is not None and known:
        kept, negentropy = memo["probabilities"], memo["negentropy"]
    else:
        keep = memo is not None and len(clean) * desk.row_bytes <= _MEMO
        kept, negentropy = desk.sheet(len(clean)) if keep else None, desk.column()
    p_sheet, q_sheet = desk.sheet() if kept is None else kept, desk.sheet()
    bend = desk.sheet() if grad is not None and unembedding.softcap is not None else None
    loss = desk.column()
    for rows in desk.chunks:
        p = p_sheet[: len(loss[rows])] if kept is None else kept[rows]
        if not known:
            z, normalizer = desk.distribution(clean[rows], p)
            negentropy[rows] = row_products(p, z) - normalizer
        q = q_sheet[: len(p)]
        z, normalizer = desk.distribution(other[rows], q, bend)
        loss[rows] = negentropy[rows] - (row_products(p, z) - normalizer)
        if grad is not None:
            q.sub_(p)
            if bend is not None:
                q.mul_(bend[: len(q)])
            grad[rows] = desk.pull_back(q)
    if memo is not None and kept is not None:
        memo |= {"teacher": clean, "probabilities": kept, "negentropy": negentropy}
    if grad is not None:
        grad.mul_(unembedding.scale / len(loss))
    return loss.mean()


@final
class _Desk:
    """Where the logits of a chunk of rows are laid out, and what goes into them and comes out."""

    def __init__(self, unembedding: Unembedding, like: Tensor, chunk: int | None) -> None:
        device = like.device.type
        lowered = torch.is_autocast_enabled(device) and like.dtype != torch.float64
        self._dtype = torch.get_autocast_dtype(device) if lowered else like.dtype
        self._exact = torch.promote_types(self._dtype, torch.float32)
        self._unembedding, self._weight = unembedding, unembedding.weight.detach().to(self._dtype)
        self.row_bytes = len(self._weight) * self._exact.itemsize
        if chunk is None:
            chunk = max(_LEAST_ROWS, (_CUDA_CHUNK if device == "cuda" else _CHUNK) // self.row_bytes)
        self._count = len(like)
        self._rows = -(-self._count // -(-self._count // chunk))

    @property
    def chunks(self) -> Iterator[slice]:
        """The rows of each chunk."""
        return (slice(i, min(i + self._rows, self._count)) for i in range(0, self._count, self._rows))

    def sheet(self, rows: int | None = None) -> Float[Tensor, "rows V"]:
        """Room for a number per token for each row, by default for the rows of one chunk."""
        return self._weight.new_empty(rows or self._rows, len(self._weight), dtype=self._exact)

    def column(self) -> Float[Tensor, "n"]:
        """Room for a number per row."""
        return self._weight.new_empty(self._count, dtype=self._exact)

    def logits(self, hidden: Float[Tensor, "rows d"], bend: Tensor | None = None) -> Float[Tensor, "rows V"]:
        """The logits; the softcap's slope goes into ``bend``."""
        scale, bias, cap = self._unembedding.scale, self._unembedding.bias, self._unembedding.softcap
        z = linear(hidden.to(self._dtype), self._weight, None if bias is None else bias.to(self._dtype)).to(self._exact)
        if scale != 1:
            z.mul_(scale)
        if cap is not None:
            z.div_(cap).tanh_()
            if bend is not None:
                torch.mul(z, z, out=bend[: len(z)]).neg_().add_(1)
            z.mul_(cap)
        return z

    def distribution(
        self, hidden: Float[Tensor, "rows d"], out: Float[Tensor, "rows V"], bend: Tensor | None = None
    ) -> tuple[Float[Tensor, "rows V"], Float[Tensor, "rows"]]:
        """The probabilities into ``out``; gives the logits, until the next take their place, and log Σ exp of each row.

        What the logits lack to be logarithms of the probabilities is the same for a whole row, so it is never
        subtracted from them.
        """
        z = self.logits(hidden, bend)
        torch.softmax(z, -1, out=out)
        # the largest logit and its probability tell the normalizer without a second pass of exponentials
        return z, z.amax(-1) - out.amax(-1).log_()

    def pull_back(self, dz: Float[Tensor, "rows V"]) -> Float[Tensor, "rows d"]:
        """The gradient of the hidden states, dz W, from that of the logits."""
        return linear(dz.to(self._dtype), self._weight.T)


def _check(
    unembedding: Unembedding,
    chunk: int | None,
    clean: Tensor,
    other: Tensor | None = None,
    targets: Tensor | None = None,
) -> None:
    if not len(clean):
        raise ValueError("there is no row to judge")
    if clean.shape[1] != unembedding.weight.shape[1]:
        raise ValueError(
            f"the hidden states have width {clean.shape[1]}, the unembedding reads width {unembedding.weight.shape[1]}"
        )
    if other is not None and other.shape != clean.shape:
        raise ValueError(f"the states to compare have shapes {tuple(clean.shape)} and {tuple(other.shape)}")
    if targets is not None and len(targets) != len(clean):
        raise ValueError(f"there are {len(clean)} rows and {len(targets)} targets")
    if chunk is not None and chunk < 1:
        raise ValueError(f"a chunk should have at least one row, not {chunk}")
