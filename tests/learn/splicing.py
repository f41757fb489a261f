"""Streams of spliced trials on tiny networks, and dictionaries that learn from them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from innerspace.checkpoint import State
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import Nonlinearity
from innerspace.language.causal_lm import CausalLM
from innerspace.learn.spliced import Precision, spliced
from innerspace.learn.trials import Trials
from innerspace.network.model import Model
from innerspace.network.site import Where
from language.tiny import decoder


class Cycle:
    """Batches again and again."""

    def __init__(self, *batches: Any) -> None:
        self._batches, self._at = batches, 0

    def next(self) -> Any:
        self._at += 1
        return self._batches[(self._at - 1) % len(self._batches)]

    def state(self) -> State:
        return {"at": self._at}

    def restore(self, state: State) -> None:
        self._at = state["at"]


def language(name: str, ignore: tuple[int, ...] = (), dtype: torch.dtype = torch.float64) -> Model:
    return Model(decoder(name, dtype), CausalLM(ignore))


VARIANCE = {
    "embed": 3.0,
    "resid.0": 1.7,
    "resid_mid.1": 2.0,
    "mlp.0": 0.4,
    "mlp.1": 0.5,
    "attn.1": 0.3,
    "resid.1": 4.1,
    "resid.2": 7.3,
}


def stream(
    model: Model,
    sites: Sequence[str],
    *batches: Any,
    where: Where = Where("valid"),
    precision: Precision = "float32",
) -> Trials:
    return spliced(model, Cycle(*batches), sites, VARIANCE, where=where, precision=precision)


def learner(nonlinearity: Nonlinearity, width: int = 32, latents: int = 48, seed: int = 1) -> Dictionary:
    """In float64, no parameter at a special value."""
    what = Dictionary(width, latents, nonlinearity, scale=4.0, seed=seed).double()
    with torch.no_grad():
        for parameter in what.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
        what.retract()
    return what


def gradients(what: Dictionary, loss: Tensor) -> dict[str, Tensor]:
    named = dict(what.named_parameters())
    return dict(
        zip(
            named,
            torch.autograd.grad(loss, list(named.values()), retain_graph=True, materialize_grads=True),
            strict=True,
        )
    )
