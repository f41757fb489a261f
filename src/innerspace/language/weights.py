"""A decoder's weights as they act on the stream: per head and per neuron, with the gains of the norms around them.

A norm divides by the size of the state, which no weight tells; the rest of it, the gains and the centering, is linear
and belongs to the matrix behind it, or before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from innerspace.language.text import Text
from innerspace.network.model import Model

_QUERIES = ("q_proj", "k_proj", "v_proj")
_OUTPUTS = ("o_proj", "out_proj", "dense")
_FUSED = ("c_attn", "c_proj")
_NEURONS = ((("gate_proj", "up_proj"), "down_proj"), (("c_fc",), "c_proj"), (("fc1",), "fc2"))


@dataclass(frozen=True, eq=False)
class Attention:
    """What each of H heads of width w reads of the stream, as query, key and value, and what it writes.

    Heads that share keys and values have copies of them.
    """

    query: Float[Tensor, "heads w d"]
    key: Float[Tensor, "heads w d"]
    value: Float[Tensor, "heads w d"]
    write: Float[Tensor, "heads d w"]


@dataclass(frozen=True, eq=False)
class Mlp:
    """What each of m neurons reads, through one matrix or several (a gate and what passes it), and what it writes."""

    read: Float[Tensor, "ways m d"]
    write: Float[Tensor, "d m"]


@dataclass(frozen=True, eq=False)
class Block:
    """The weights of one decoder block."""

    attention: Attention
    mlp: Mlp


@torch.no_grad()
def weights(model: Model) -> list[Block]:
    """The weights of every block of a decoder, in float64.

    Known are attention with separate queries, keys and values (Llama and its kin, with or without grouped keys and
    values, GPT-Neo, OPT) or with one matrix for the three (GPT-2), and MLPs with and without a gate.

    Raises:
        ValueError: for a model that is no decoder of ``transformers``, and for blocks of another make, naming what they
            have.
    """
    from innerspace.language.layout import layout

    found = layout(model.module)
    calls = _watch(model, found.blocks)
    text = cast(Any, model.module).config.get_text_config(decoder=True)
    written = {site.name: site.module for site in found.sites}
    blocks = list[Block]()
    for i, path in enumerate(found.blocks):
        block = model.module.get_submodule(path)
        behind = [_behind(model.module, written.get(f"{kind}.{i}")) for kind in ("attn", "mlp")]
        blocks.append(
            Block(_attention(block, calls, text.num_attention_heads, behind[0]), _mlp(block, calls, behind[1]))
        )
    return blocks


_Calls = list[tuple[nn.Module, Tensor, Tensor]]


def _watch(model: Model, blocks: Sequence[str]) -> _Calls:
    """What enters and leaves the modules of the blocks in a pass over two tokens."""
    calls: _Calls = []

    def note(part: nn.Module, given: tuple[object, ...], named: dict[str, object], output: object) -> None:
        entered = next((item for item in (*given, *named.values()) if isinstance(item, Tensor)), None)
        left = cast(tuple[object, ...], output)[0] if isinstance(output, tuple) else output
        if entered is not None and isinstance(left, Tensor):
            calls.append((part, entered, left))

    parts = [part for path in blocks for part in model.module.get_submodule(path).modules()]
    handles = [part.register_forward_hook(note, with_kwargs=True) for part in parts]
    training = [part for part in model.module.modules() if part.training]
    try:
        model.module.eval()
        device = next(model.module.parameters()).device
        model.family.forward(model.module, Text(torch.tensor([[1, 2]], device=device)))
    finally:
        for part in training:
            part.training = True
        for handle in handles:
            handle.remove()
    return calls


def _attention(block: nn.Module, calls: _Calls, heads: int, behind: nn.Module | None) -> Attention:
    for part in block.modules():
        children = dict(part.named_children())
        out = next((children[name] for name in _OUTPUTS if name in children), None)
        if out is not None and all(name in children for name in _QUERIES):
            read = [_matrix(children[name]) for name in _QUERIES]
            first = children["q_proj"]
        elif all(name in children for name in _FUSED) and "c_fc" not in children:
            read, first, out = [*_matrix(children["c_attn"]).chunk(3)], children["c_attn"], children["c_proj"]
        else:
            continue
        write = _matrix(out)
        width, uneven = divmod(write.shape[1], heads)
        if uneven or any(len(matrix) % width for matrix in read) or len(read[0]) != heads * width:
            shapes = [list(matrix.shape) for matrix in (*read, write)]
            raise ValueError(f"the attention of {type(block).__name__} is not one of {heads} equal heads: {shapes}")
        for i, name in enumerate(("q_norm", "k_norm")):
            if isinstance(norm := children.get(name), nn.Module):
                size = width if _takes(norm, calls, width) else len(read[i])
                read[i] = (_gain(norm, size) @ read[i].unflatten(0, (-1, size))).flatten(0, 1)
        entered = _entering(block, first, calls, write.shape[0])
        query, key, value = (
            one.repeat_interleave(heads // len(one), 0)
            for one in ((matrix @ entered).unflatten(0, (-1, width)) for matrix in read)
        )
        leaving = write if behind is None else _gain(behind, len(write)) @ write
        return Attention(query, key, value, leaving.unflatten(1, (heads, width)).transpose(0, 1))
    raise ValueError(_unknown(block, "attention"))


def _mlp(block: nn.Module, calls: _Calls, behind: nn.Module | None) -> Mlp:
    for part in block.modules():
        children = dict(part.named_children())
        for reading, writing in _NEURONS:
            if all(name in children for name in (*reading, writing)):
                write = _matrix(children[writing])
                entered = _entering(block, children[reading[0]], calls, len(write))
                read = torch.stack([_matrix(children[name]) @ entered for name in reading])
                return Mlp(read, write if behind is None else _gain(behind, len(write)) @ write)
    raise ValueError(_unknown(block, "MLP"))


def _matrix(part: nn.Module) -> Float[Tensor, "out in"]:
    """The matrix by which a projection multiplies columns: GPT-2 keeps the transpose."""
    weight = cast(Tensor, part.weight).detach().double()
    return weight.T if type(part).__name__ == "Conv1D" else weight


def _behind(module: nn.Module, path: str | None) -> nn.Module | None:
    """The norm through which a block's part is written; None where it is written as it is."""
    part = None if path is None else module.get_submodule(path)
    return part if part is not None and not [*part.children()] and "Norm" in type(part).__name__ else None


def _entering(block: nn.Module, first: nn.Module, calls: _Calls, width: int) -> Float[Tensor, "d d"]:
    """What the norm before a projection does to the stream, but for its division; one where there is none."""
    own = set(block.modules())
    entered = next(x for part, x, _ in calls if part is first)
    for part, _, left in calls:
        if part in own and left.numel() == entered.numel() and torch.equal(left.view_as(entered), entered):
            if "Norm" in type(part).__name__:
                return _gain(part, width)
            # a dropout, or a module within which the projection lies, passes on what came
            continue
    return torch.eye(width, dtype=torch.float64, device=entered.device)


def _takes(norm: nn.Module, calls: _Calls, width: int) -> bool:
    return any(part is norm and entered.shape[-1] == width for part, entered, _ in calls)


def _gain(norm: nn.Module, width: int) -> Float[Tensor, "{width} {width}"]:
    """The matrix of a norm, but for its division, found by trying it on a few states.

    Raises:
        ValueError: if it is neither a gain nor centering and a gain.
    """
    parameter = next(norm.parameters(), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, width, generator=generator, dtype=torch.float64)
    x -= x.mean(-1, keepdim=True)

    def odd(states: Tensor) -> Tensor:
        given = states.to(parameter)
        return (norm(given) - norm(-given)).double().to(states.device) / 2

    def size(states: Tensor) -> Tensor:
        return states.square().mean(-1, keepdim=True).sqrt()

    gains = odd(x) * size(x) / x
    shifted = x + 1
    centers = torch.allclose(odd(shifted), odd(x), rtol=1e-2, atol=1e-3)
    centering = torch.eye(width, dtype=torch.float64) - (1 / width if centers else 0.0)
    gain = gains.median(0).values
    expected = gain * (shifted @ centering.T) / size(shifted @ centering.T)
    if not torch.allclose(odd(shifted), expected, rtol=1e-2, atol=1e-3):
        raise ValueError(f"{type(norm).__name__} is no norm with gains, so what it does to single parts is unknown")
    return (gain[:, None] * centering).to(parameter.device)


def _unknown(block: nn.Module, what: str) -> str:
    names = [path for path, part in block.named_modules() if path and not [*part.children()]]
    known = "q_proj, k_proj and v_proj, or c_attn" if what == "attention" else "gate_proj and up_proj, c_fc, or fc1"
    return f"the {what} of {type(block).__name__} is of no known make ({known}); its parts are {', '.join(names)}"
