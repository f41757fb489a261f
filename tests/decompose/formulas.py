"""Dictionaries by their formulas, in plain autograd: what both forms of a code are compared with."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from innerspace.decompose.base import AnyCode
from innerspace.decompose.dictionary import Dictionary, Form
from innerspace.decompose.nonlinearities import BatchTopK, Gated, GroupMax, JumpReLU, Nonlinearity, ReLU, TopK
from innerspace.decompose.sparse import Sparse
from innerspace.learn.trials import Trial

WIDTH, LATENTS, SCALE = 6, 20, 2.5
# the kernel of JumpReLU is so wide that it reaches below zero
NONLINEARITIES = [ReLU(), JumpReLU(bandwidth=0.6, threshold=0.2), Gated(), TopK(3), GroupMax(4), BatchTopK(2)]
FORMS = [
    dataclasses.replace(beginning, decoder=decoder, pre_bias=pre_bias)
    for decoder, pre_bias, beginning in itertools.product(
        ("unit", "normalized", "free"), (True, False), (Form(), Form(first="linear"), Form(tied=True))
    )
]
every = pytest.mark.parametrize("nonlinearity", NONLINEARITIES, ids=lambda item: type(item).__name__)

Encode = Callable[[Dictionary, Tensor], AnyCode]
WAYS: dict[str, Encode] = {"dense": Dictionary.encode, "sparse": Dictionary.encode_sparse}
both = pytest.mark.parametrize("way", WAYS)


PLAIN = Form()


def dictionary(nonlinearity: Nonlinearity, form: Form = PLAIN, seed: int = 3) -> Dictionary:
    """In float64, no parameter at a special value; latents 0 … 2 never fire."""
    mean = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
    what = Dictionary(WIDTH, LATENTS, nonlinearity, mean=mean, scale=SCALE, seed=seed, form=form).double()
    with torch.no_grad():
        for parameter in what.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        what.retract()
        what.encoder_bias.copy_(-what.encoder_bias.abs() - 0.02)
        what.encoder_bias[:3] = -30
    return what


def states(what: Dictionary, count: int = 40) -> Tensor:
    """Hidden states, of which rows 5 … 7 leave nothing but the biases, which are negative, so they turn nothing on."""
    x = 3 * torch.randn(count, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        x[5:8] = what.mean + (what.scale * what.decoder_bias if what.form.pre_bias else 0)
    return x


class Plain(NamedTuple):
    """A code by the formulas, in plain autograd."""

    z: Tensor
    pre: Tensor
    cost: Tensor
    reconstruction: Tensor
    gate: Tensor
    parameters: Mapping[str, Tensor]


def plain(what: Dictionary, x: Tensor) -> Plain:
    """The stated formulas, with copies of the parameters; the straight-through slopes are added as zeros."""
    p = {name: item.detach().clone().requires_grad_() for name, item in what.named_parameters()}
    decoder, encoder = p["decoder"], p["decoder"] if what.form.tied else p["encoder"]
    rows = decoder / decoder.norm(dim=-1, keepdim=True) if what.form.decoder == "normalized" else decoder
    normalized = (x - what.mean) / what.scale
    centered = normalized - p["decoder_bias"] if what.form.pre_bias else normalized
    pre = centered @ encoder.T + p["encoder_bias"]
    match what.nonlinearity:
        case ReLU():
            z = pre.clamp(min=0)
            entries = z
        case JumpReLU(bandwidth):
            threshold = p["thresholds.log_threshold"].exp()
            on = (pre > threshold).double()
            kernel = ((pre - threshold).abs() < bandwidth / 2).double() / bandwidth
            moved = (threshold - threshold.detach()) * kernel.detach()
            z = pre * on - threshold.detach() * moved
            entries = on - moved
        case Gated():
            scale, bias = p["thresholds.log_magnitude"].exp(), p["thresholds.magnitude_bias"]
            z = (pre > 0) * (scale * pre + bias).clamp(min=0)
            entries = pre.clamp(min=0)
        case TopK(k):
            bound = pre.detach().sort(-1, descending=True).values[:, k - 1 : k]
            z = pre.clamp(min=0) * (pre >= bound)
            entries = 0 * pre
        case GroupMax(k):
            groups = pre.detach().chunk(k, -1)
            bound = torch.cat([group.amax(-1, keepdim=True).expand_as(group) for group in groups], -1)
            z = pre.clamp(min=0) * (pre >= bound)
            entries = 0 * pre
        case BatchTopK(k):
            bound = pre.detach().flatten().sort(descending=True).values[k * len(pre) - 1]
            z = pre.clamp(min=0) * (pre >= bound)
            entries = 0 * pre
        case _:
            raise AssertionError(what.nonlinearity)
    cost = (entries * decoder.norm(dim=-1)).sum(-1) if what.form.decoder == "free" else entries.sum(-1)

    def decode(z: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
        return what.scale * (z @ rows + bias) + what.mean

    gate = decode(pre.clamp(min=0), rows.detach(), p["decoder_bias"].detach())
    return Plain(z, pre, cost, decode(z, rows, p["decoder_bias"]), gate, p)


def dense(z: Tensor | Sparse) -> Tensor:
    return z.dense() if isinstance(z, Sparse) else z


def variance_one(what: Dictionary, x: Tensor, code: AnyCode) -> Trial:
    return Trial(x, what.decode(code.z), code, what, torch.tensor(1.0, dtype=x.dtype))
