"""Where the parts of a decoder are, found by watching one short pass rather than by the names of an architecture.

What enters and leaves every module is recorded. What a block adds to the stream ends a chain: attention, or the norm
behind it. A site is offered only where the numbers of that pass bear out what it claims: x + attn + mlp is the block's
output, the last projection's output is the attention's, what the MLP's norm sees is x + attn.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from itertools import pairwise
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from innerspace.network.site import Site


@dataclass(frozen=True)
class Layout:
    """The sites of a decoder in the order of the pass, and what else must be known of it.

    ``blocks`` and ``unembedding`` are module paths. The logits are softcap(scale · (W h + b)), where softcap(y) is
    c · tanh(y / c), or y without c. ``embedded`` tells that the first block sees the bare token embeddings, ``placed``
    that the network takes ``position_ids``; ``longest`` is how many positions it has learned, None where it computes
    them.
    """

    sites: tuple[Site, ...]
    blocks: tuple[str, ...]
    unembedding: str
    scale: float
    softcap: float | None
    embedded: bool
    placed: bool
    longest: int | None


def layout(module: nn.Module) -> Layout:
    """The layout of a decoder of ``transformers``; it is found once for each network.

    Raises:
        ValueError: if the module is no such decoder, saying what it lacks.
    """
    if module not in _FOUND:
        _FOUND[module] = _find(module)
    return _FOUND[module]


_FOUND = WeakKeyDictionary[nn.Module, Layout]()


@dataclass(frozen=True, eq=False)
class _Call:
    """A module that ran: the first tensor that entered and the first that left."""

    path: str
    part: nn.Module
    entered: Tensor
    left: Tensor


def _find(module: nn.Module) -> Layout:
    kind, network = type(module).__name__, cast(Any, module)
    text = _text_config(module)
    head = cast(nn.Module | None, network.get_output_embeddings())
    if head is None:
        raise ValueError(f"{kind} has no unembedding; load the model with its head, as AutoModelForCausalLM does")
    blocks = _stack(module, text.num_hidden_layers)
    calls, logits = _watch(module, text)
    by_part = {call.part: call for call in calls}
    parts = [module.get_submodule(path) for path in blocks]
    if missing := [type(part).__name__ for part in (*parts, head) if part not in by_part]:
        raise ValueError(f"{kind} is no decoder: its {missing[0]} does not run in a pass over text")
    stream, head = [by_part[part] for part in parts], by_part[head]
    _check_stream(kind, stream, text.hidden_size)
    scale, softcap = _scaling(text)
    if not _close(logits, _capped(scale * head.left, softcap), (logits, head.left)):
        raise ValueError(f"the logits of {kind} are no scaled and capped W h + b, so its unembedding is not supported")
    entry = by_part.get(network.get_input_embeddings())
    learned = [call for call in calls if isinstance(call.part, nn.Embedding) and call is not entry]
    sites = [Site("embed", blocks[0], text.hidden_size, io="input")]
    for i, block in enumerate(stream):
        sites += [*_inside(i, block, calls), Site(f"resid.{i}", block.path, text.hidden_size)]
    return Layout(
        sites=(*sites, Site("final", head.path, head.entered.shape[-1], io="input")),
        blocks=blocks,
        unembedding=head.path,
        scale=scale,
        softcap=softcap,
        embedded=entry is not None and torch.equal(entry.left, stream[0].entered),
        placed="position_ids" in signature(module.forward).parameters,
        longest=text.max_position_embeddings if learned else None,
    )


def _text_config(module: nn.Module) -> Any:
    try:
        from transformers import PreTrainedModel
    except ImportError:
        PreTrainedModel = None
    if PreTrainedModel is None or not isinstance(module, PreTrainedModel):
        raise ValueError(f"{type(module).__name__} is no model of transformers, so it has no decoder blocks to find")
    return module.config.get_text_config(decoder=True)


def _stack(module: nn.Module, depth: int) -> tuple[str, ...]:
    """The paths of the decoder blocks: of the lists of equal modules as long as the config says, the largest."""
    lists = [
        (path, part)
        for path, part in module.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) == depth and len({type(block) for block in part}) == 1
    ]
    if not lists:
        raise ValueError(f"{type(module).__name__} has no decoder blocks: no list of {depth} modules of one type")
    sizes: dict[str, int] = {path: sum(weight.numel() for weight in part.parameters()) for path, part in lists}
    path = max(sizes, key=lambda item: sizes[item])
    return tuple(f"{path}.{i}" for i in range(depth))


@torch.no_grad()
def _watch(module: nn.Module, text: Any) -> tuple[list[_Call], Tensor]:
    """The calls in a pass over two texts that differ in the last token only, inner ones before outer; the logits."""
    calls, paths = list[_Call](), {part: path for path, part in module.named_modules()}

    def note(part: nn.Module, given: tuple[object, ...], named: dict[str, object], output: object) -> None:
        entered = next((item for item in (*given, *named.values()) if isinstance(item, Tensor)), None)
        left = cast(tuple[object, ...], output)[0] if isinstance(output, tuple) else output
        if entered is not None and isinstance(left, Tensor):
            calls.append(_Call(paths[part], part, entered, left))

    a, b, c = [token for token in range(4) if token != getattr(text, "pad_token_id", None)][:3]
    ids = torch.tensor([[a, b, a], [a, b, c]], device=next(module.parameters()).device)
    handles = [part.register_forward_hook(note, with_kwargs=True) for part in paths]
    try:
        with _evaluating(module):
            logits = module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    if not logits.isfinite().all():
        raise ValueError(f"the logits of {type(module).__name__} are not finite, its weights seem to be damaged")
    return calls, logits


def _check_stream(kind: str, stream: Sequence[_Call], width: int) -> None:
    for call in stream:
        if call.entered.shape != (2, 3, width) or call.left.shape != (2, 3, width):
            raise ValueError(f"{kind} is no decoder with one stream: {call.path} gives {list(call.left.shape[2:])}")
    if any(not torch.equal(call.left, then.entered) for call, then in pairwise(stream)):
        raise ValueError(f"{kind} is no decoder with one stream: its blocks do not follow each other directly")
    one, other = stream[0].left[:, :-1]
    if not _close(one, other, (stream[0].left.abs().amax(),)):
        raise ValueError(f"{kind} is no decoder: its blocks let a token see those that follow")


def _scaling(text: Any) -> tuple[float, float | None]:
    """Factor and soft cap of the logits; configs name the factor, or its inverse, in several ways."""
    scale = float(getattr(text, "logit_scale", None) or 1) * float(getattr(text, "lm_head_multiplier", None) or 1)
    return scale / float(getattr(text, "logits_scaling", None) or 1), getattr(text, "final_logit_softcapping", None)


def _inside(i: int, block: _Call, calls: Sequence[_Call]) -> list[Site]:
    """The sites within a block."""
    calls = [call for call in calls if not isinstance(call.part, nn.Dropout)]
    children = [call for call in calls if call.path.rpartition(".")[0] == block.path]
    attention = next((call for call in children if "Attention" in type(call.part).__name__), None)
    if attention is None:
        return []
    x, out, sites = block.entered, block.left, list[Site]()
    leaves = [call for call in calls if call.path.startswith(f"{attention.path}.") and not [*call.part.children()]]
    heads = leaves[-1]
    if heads.entered.shape[:-1] == out.shape[:-1] and torch.equal(heads.left, attention.left):
        sites.append(Site(f"heads.{i}", heads.path, heads.entered.shape[-1], io="input"))
    attn, mlp = attention, children[-1]
    for call in children:
        attn = call if call.entered is attn.left else attn
    if attn is mlp or attn.left.shape != out.shape or mlp.left.numel() != out.numel():
        return sites
    written = mlp.left.view_as(out)
    if not _close(out, x + attn.left + written, (x, attn.left, written)):
        return sites
    sites.append(Site(f"attn.{i}", attn.path, out.shape[-1]))
    if mlp.left.shape != out.shape:
        return sites
    for call in children[children.index(attn) + 1 :]:
        if call.entered is not x and call.entered.shape == out.shape and _close(call.entered, x + attn.left, (x,)):
            sites.append(Site(f"resid_mid.{i}", call.path, out.shape[-1], io="input", around=mlp.path))
            break
    return [*sites, Site(f"mlp.{i}", mlp.path, out.shape[-1])]


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _close(one: Tensor, other: Tensor, terms: Sequence[Tensor]) -> bool:
    """Equal up to the rounding of a sum of these terms."""
    size = sum((term.abs() for term in terms), start=one.abs())
    return bool(((one - other).abs() <= 8 * torch.finfo(one.dtype).eps * size).all())


@contextmanager
def _evaluating(module: nn.Module) -> Generator[None]:
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
