"""Codes of which only the entries that are on are kept, and the products of a dictionary with them.

A code of n entries costs n products of the hidden state's width to decode, and as many for each gradient; the dense
form costs one for every latent of every row. Both weight gradients are sums over the entries of one latent, so the
entries are sorted by latent once, and every product is one ``embedding_bag``: no atomic additions, no rows × latents
tensor, the same bits at every run.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

_TILE, _CUDA_TILE = 12 * 2**20, 2**29
"""The bytes of pre-activations that are in memory at a time, if they are in single precision."""

_STRIPE = 256
"""Products of a multiple of so many rows are the fastest."""


@final
class Layout:
    """Where the entries of a sparse code stand: row by row, ``offsets[r] … offsets[r + 1]`` are those of row r."""

    def __init__(self, latent: Int[Tensor, "n"], offsets: Int[Tensor, "bounds"], latents: int) -> None:
        self.latent, self.offsets, self.latents = latent, offsets, latents
        self._row: Tensor | None = None
        self._by_latent: tuple[Tensor, Tensor] | None = None
        self._sorted_row: Tensor | None = None

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.offsets) - 1

    @property
    def row(self) -> Int[Tensor, "n"]:
        """The row of every entry."""
        if self._row is None:
            rows = torch.arange(self.rows, device=self.offsets.device)
            self._row = rows.repeat_interleave(self.offsets.diff(), output_size=len(self.latent))
        return self._row

    @property
    def by_latent(self) -> tuple[Int[Tensor, "n"], Int[Tensor, "bounds"]]:
        """The order that sorts the entries by latent, and where those of each latent begin."""
        if self._by_latent is None:
            # half the bytes, twice as fast
            order = self.latent.int().argsort(stable=True)
            ends = torch.bincount(self.latent, minlength=self.latents).cumsum(0)
            self._by_latent = order, F.pad(ends, (1, 0))
        return self._by_latent

    @property
    def sorted_row(self) -> Int[Tensor, "n"]:
        """The row of every entry, in the order of ``by_latent``."""
        if self._sorted_row is None:
            self._sorted_row = self.row[self.by_latent[0]]
        return self._sorted_row


@final
class Sparse:
    """A code that keeps its entries only: ``values`` at the places of ``layout``; ``shape`` is the dense form's."""

    def __init__(self, values: Float[Tensor, "n"], layout: Layout, shape: tuple[int, ...]) -> None:
        self.values, self.layout, self.shape = values, layout, shape

    def __repr__(self) -> str:
        return f"Sparse({' × '.join(map(str, self.shape))}, {len(self.values)} entries)"

    def dense(self) -> Float[Tensor, "*rows k"]:
        """The same code with its zeros."""
        flat = self.values.new_zeros(self.layout.rows, self.layout.latents)
        return flat.index_put((self.layout.row, self.layout.latent), self.values).reshape(self.shape)

    def replace(self, values: Float[Tensor, "n"]) -> "Sparse":
        """Other values at the same places."""
        return Sparse(values, self.layout, self.shape)

    def row_sums(self) -> Float[Tensor, "*rows"]:
        """The sum of the entries of every row."""
        sums = self.values.new_zeros(self.layout.rows).index_add(0, self.layout.row, self.values)
        return sums.reshape(self.shape[:-1])

    def count(self) -> Int[Tensor, "*rows"]:
        """How many entries of every row are on."""
        return self.replace((self.values != 0).float()).row_sums().long()

    def frequency(self) -> Int[Tensor, "k"]:
        """How many rows every latent is on in."""
        return torch.bincount(self.layout.latent[self.values != 0], minlength=self.layout.latents)

    def fired(self) -> Bool[Tensor, "k"]:
        """Which latents are on in at least one row."""
        return self.frequency() > 0


def on_per_row(z: Float[Tensor, "*rows k"] | Sparse) -> Int[Tensor, "*rows"]:
    """How many entries of every row are on, in either form of a code."""
    return z.count() if isinstance(z, Sparse) else z.count_nonzero(-1)


class Support(NamedTuple):
    """The entries that a nonlinearity lets through, and their pre-activations."""

    pre: Float[Tensor, "n"]
    latent: Int[Tensor, "n"]
    offsets: Int[Tensor, "bounds"]


def tiles(
    rows: Float[Tensor, "rows d"], encoder: Float[Tensor, "k d"], bias: Float[Tensor, "k"]
) -> Callable[[], Iterator[Tensor]]:
    """Pre-activations block by block, each of which fits into the cache; in autocast's precision, if it is on."""
    rows, encoder, bias = _lowered(rows, encoder, bias)
    room = (_TILE if rows.device.type == "cpu" else _CUDA_TILE) // (len(encoder) * max(4, rows.element_size()))
    size = -(-len(rows) // max(1, -(-len(rows) // max(1, room))))
    size += -size % _STRIPE if size > _STRIPE else 0
    return lambda: (linear(block, encoder, bias) for block in rows.split(size))


def linear(
    rows: Float[Tensor, "rows d"], matrix: Float[Tensor, "k d"], bias: Float[Tensor, "k"] | None = None
) -> Float[Tensor, "rows k"]:
    """The product rows · matrixᵀ + bias, without a gradient.

    In single precision PyTorch leaves products on processors to BLAS, though oneDNN, which takes those in half
    precision, is up to a fifth faster on some and nowhere slower.
    """
    if (
        rows.device.type == "cpu"
        and rows.dtype == matrix.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
    ):
        return torch.ops.mkldnn._linear_pointwise(rows, matrix, bias, "none", [], "")
    return F.linear(rows, matrix, bias)


def project(
    rows: Float[Tensor, "rows d"],
    center: Float[Tensor, "d"] | None,
    encoder: Float[Tensor, "k d"],
    bias: Float[Tensor, "k"],
) -> Float[Tensor, "rows k"]:
    """(rows − center) encoderᵀ + bias; the center's gradient is one product with the dictionary, not with the rows."""
    return cast(Tensor, _Project.apply(rows, center, encoder, bias))


def entries(
    rows: Float[Tensor, "rows d"],
    center: Float[Tensor, "d"] | None,
    encoder: Float[Tensor, "k d"],
    bias: Float[Tensor, "k"],
    found: Callable[[Callable[[], Iterator[Tensor]]], "Support"],
) -> tuple[Float[Tensor, "n"], Layout]:
    """The entries of ``project`` that ``found`` picks from its tiles, with gradients to all that they came from."""
    with torch.no_grad():
        (centered,) = _lowered(rows if center is None else rows - center)
        support = found(tiles(centered, encoder, bias))
    layout = Layout(support.latent, support.offsets, len(encoder))
    return cast(Tensor, _Entries.apply(rows, center, encoder, bias, centered, support.pre, layout)), layout


def weighted_sum(z: Sparse, decoder: Float[Tensor, "k d"]) -> Float[Tensor, "*rows d"]:
    """The sum of the decoder's rows, weighted by the entries: z @ decoder."""
    flat = cast(Tensor, _WeightedSum.apply(z.values, decoder, z.layout))
    return flat.reshape(*z.shape[:-1], decoder.shape[1])


def row_products(one: Float[Tensor, "rows d"], other: Float[Tensor, "rows d"]) -> Float[Tensor, "rows"]:
    """The inner product of each row of one with that of the other, in one pass over both; no gradient."""
    each = torch.arange(len(one), device=one.device)
    return _inner(one, other, each, each)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, center: Tensor | None, encoder: Tensor, bias: Tensor) -> Tensor:
        centered = rows if center is None else rows - center
        ctx.save_for_backward(centered, encoder)
        # autocast may keep its own copy of the encoder, without a gradient, for whatever uses it next
        lowered, matrix, offset = _lowered(centered, encoder, bias)
        return linear(lowered, matrix, offset)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        centered, encoder = ctx.saved_tensors
        # under autocast the gradient comes in half precision
        to_bias = grad.sum(0, dtype=encoder.dtype)
        to_rows = (grad @ encoder.to(grad)).to(centered) if ctx.needs_input_grad[0] else None
        to_center = -(to_bias @ encoder) if ctx.needs_input_grad[1] else None
        to_encoder = (grad.T @ centered.to(grad)).to(encoder) if ctx.needs_input_grad[2] else None
        return to_rows, to_center, to_encoder, to_bias


class _Entries(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,  # noqa: ARG004
        center: Tensor | None,  # noqa: ARG004
        encoder: Tensor,
        bias: Tensor,
        centered: Tensor,
        pre: Tensor,
        layout: Layout,
    ) -> Tensor:
        ctx.save_for_backward(centered, encoder)
        ctx.layout = layout
        return pre.to(bias.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        centered, encoder = ctx.saved_tensors
        layout: Layout = ctx.layout
        order, offsets = layout.by_latent
        to_bias = F.embedding_bag(order, grad[:, None], offsets, mode="sum", include_last_offset=True)[:, 0]
        to_rows = _bags(layout.latent, encoder.to(centered), layout.offsets, grad) if ctx.needs_input_grad[0] else None
        to_center = -(to_bias @ encoder) if ctx.needs_input_grad[1] else None
        to_encoder = _by_latent(layout, centered, grad) if ctx.needs_input_grad[2] else None
        return to_rows, to_center, to_encoder, to_bias, None, None, None


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, decoder: Tensor, layout: Layout) -> Tensor:
        (table,) = _lowered(decoder)
        ctx.save_for_backward(values, table)
        ctx.layout = layout
        return _bags(layout.latent, table, layout.offsets, values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        values, table = ctx.saved_tensors
        layout: Layout = ctx.layout
        grad = grad.to(table.dtype).contiguous()
        to_values = _dots(grad, table, layout).to(values.dtype) if ctx.needs_input_grad[0] else None
        to_decoder = _by_latent(layout, grad, values) if ctx.needs_input_grad[1] else None
        return to_values, to_decoder, None


def _lowered(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors in autocast's precision, if it is on."""
    device = tensors[0].device.type
    kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return tensors if kind is None else tuple(tensor.to(kind) for tensor in tensors)


def _bags(index: Tensor, table: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Row b is the sum of weights[e] · table[index[e]] over the entries e of bag b, as precise as the weights.

    From a table in half precision the products are those of halves, and a sum is rounded only once, at its end.
    """
    halves = weights.to(table)
    bags = F.embedding_bag(index, table, offsets, mode="sum", per_sample_weights=halves, include_last_offset=True)
    return bags.to(weights.dtype)


def _by_latent(layout: Layout, table: Tensor, weights: Tensor) -> Tensor:
    """Row l is the sum of weights[e] · table[row of e] over the entries e of latent l."""
    order, offsets = layout.by_latent
    return _bags(layout.sorted_row, table, offsets, weights[order])


def _dots(grad: Tensor, decoder: Tensor, layout: Layout) -> Tensor:
    """grad[row of e] · decoder[latent of e] for every entry e, latent by latent: so every decoder row is read once."""
    order, _ = layout.by_latent
    found = _inner(grad, decoder, layout.sorted_row, layout.latent[order])
    return torch.empty_like(found).index_copy_(0, order, found)


def _inner(one: Tensor, other: Tensor, row: Tensor, index: Tensor) -> Tensor:
    """one[row[e]] · other[index[e]] for every e, without copies of the rows."""
    found: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(one, other, index, row[:0], row, 0)
    return found
