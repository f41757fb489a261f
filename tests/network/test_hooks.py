"""Traps of the mechanism: fused kernels, repeated modules, compiled graphs."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from families import CASES, EncoderFamily
from innerspace.interventions import Read, Steer
from innerspace.network.hooks import Revisited, Unvisited
from innerspace.network.model import Family, Model
from innerspace.network.site import Site, Where


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.layer(x).tanh()
        return x


class SharedFamily(Family):
    def sites(self, module: nn.Module) -> list[Site]:
        return [Site("layer", "layer", 4), *(Site(f"layer.{i}", "layer", 4, call=i) for i in range(4))]

    def forward(self, module: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        return {"y": module(batch)}


@torch.no_grad()
def test_the_fused_encoder_layer_does_not_skip_hooks_unnoticed() -> None:
    case = CASES["encoder"]()
    trace = case.model.run(case.batch, {"ffn.0": Steer(torch.ones(16), 50.0)})
    changed = (trace.output["y"] - case.model.run(case.batch, {"ffn.0": Read()}).output["y"]).abs()
    assert changed.amax() > 1e-3


@torch.no_grad()
def test_a_module_that_is_used_but_never_called_is_unvisited() -> None:
    class Inside(EncoderFamily):
        def sites(self, module: nn.Module) -> list[Site]:
            # attention uses the weights of out_proj without calling it
            return [Site("out", "layers.0.self_attn.out_proj", 8)]

    case = CASES["encoder"]()
    with pytest.raises(Unvisited, match="out_proj"):
        Model(case.model.module, Inside()).run(case.batch, {"out": Read()})


@torch.no_grad()
def test_a_shared_module_needs_a_call() -> None:
    model, batch = Model(Shared(), SharedFamily()), torch.randn(2, 4)
    with pytest.raises(Revisited, match="call="):
        model.run(batch, {"layer": Read()})
    hidden = model.run(batch, {f"layer.{i}": Read() for i in range(3)}).hidden
    assert torch.equal(hidden["layer.1"], model.module.layer(hidden["layer.0"].tanh()))
    with pytest.raises(Unvisited, match="call=3"):
        model.run(batch, {"layer.3": Read()})
    edited = model.run(batch, {"layer.1": Steer(torch.ones(4), 1.0), "layer.2": Read()}).hidden["layer.2"]
    assert torch.equal(edited, model.module.layer((hidden["layer.1"] + 1).tanh()))


@torch.no_grad()
def test_under_edits_every_call() -> None:
    model, batch = Model(Shared(), SharedFamily()), torch.randn(2, 4)
    with model.under({"layer": Steer(torch.ones(4), 1.0)}):
        y, again = model.module(batch), model.module(batch)
    x = batch
    for _ in range(3):
        x = (model.module.layer(x) + 1).tanh()
    assert torch.equal(y, x)
    assert torch.equal(again, x)


@torch.no_grad()
def test_under_says_that_padding_needs_the_batch() -> None:
    case = CASES["blocks"]()
    from innerspace.interventions import At

    steer = At(Where("valid"), Steer(torch.ones(8), 1.0))
    with pytest.raises(ValueError, match="batch="), case.model.under({"first": steer}):
        case.model.family.forward(case.model.module, case.batch)


def test_token_outside_the_axis() -> None:
    with pytest.raises(ValueError, match="token 7 does not exist; there are 5"):
        Where(7).select((2, 5), None)
    assert Where(-1).select((2, 5), None).nonzero().tolist() == [[0, 4], [1, 4]]
    # later in a generation a token of before is none of those from the end
    assert not Where(6).select((2, 1), None, start=7).any()
    assert Where(7).select((2, 1), None, start=7).all()


@torch.no_grad()
def test_temperatures_of_a_wrong_shape() -> None:
    case = CASES["blocks"]()
    with pytest.raises(ValueError, match=r"shape \[3\]; a number, \[2\]"):
        case.model.run(case.batch, {"first": Steer(torch.ones(2, 8), torch.ones(3))})


def test_what_is_skipped_is_skipped_among_all_tokens_too() -> None:
    valid = torch.tensor([[True, True, True], [False, True, True]])
    chosen = Where("all", skip=1).select((2, 3), valid)
    # the first valid token of a row, wherever it stands; padding stays among all
    assert chosen.tolist() == [[False, True, True], [True, False, True]]
    assert Where("all").select((2, 3), valid).all()
