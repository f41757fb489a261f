"""End-to-end dictionaries as in Braun et al. 2024, by the equations alone, against the preset of that name.

Every equation is written out in plain autograd on all positions of two full passes of a tiny network, in float64: the
losses of the three kinds, their gradients, and steps of Adam with the paper's schedule and clipping.
"""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from innerspace.checkpoint import State
from innerspace.decompose.dictionary import Dictionary
from innerspace.interventions import Read
from innerspace.language.causal_lm import CausalLM
from innerspace.language.text import Text
from innerspace.learn.fit import Callback, Loop, Record, Student, fit_together
from innerspace.learn.presets import Braun2024, Kind
from innerspace.learn.spliced import Moments, spliced
from innerspace.network.model import Model
from innerspace.network.site import Where
from language.tiny import decoder, text

WIDTH, LATENTS, SPARSITY, TOTAL = 32, 80, 0.7, 2.5
SITE, DOWNSTREAM = "blocks.1.hook_resid_pre", ("blocks.2.hook_resid_pre", "blocks.2.hook_resid_post")
KINDS: list[Kind] = ["local", "e2e", "e2e+ds"]


class Texts:
    """Batches of text, one after another."""

    def __init__(self) -> None:
        self.at = 0

    def next(self) -> Text:
        generator = torch.Generator().manual_seed(self.at)
        self.at += 1
        return Text(torch.randint(3, 101, (4, 9), generator=generator))

    def state(self) -> State:
        return {"at": self.at}

    def restore(self, state: State) -> None:
        self.at = state["at"]


def preset(kind: Kind) -> Braun2024:
    return Braun2024(kind, SPARSITY, DOWNSTREAM if kind == "e2e+ds" else (), TOTAL)


def network() -> Model:
    return Model(decoder("gpt2", torch.float64), CausalLM())


def fresh(kind: Kind, seed: int = 0) -> Dictionary:
    moments = Moments(100, torch.randn(WIDTH), 3.0)
    return preset(kind).dictionary(moments, LATENTS, seed=seed).double()


def equations(model: Model, batch: Text, p: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    """The terms of the loss, as they are added: all positions, the first included."""
    network: Any = model.module
    sites = {name: model.site(name).name for name in (SITE, *DOWNSTREAM)}
    clean = model.run(batch, {name: Read() for name in sites})
    x = clean.hidden[sites[SITE]]
    c = (x @ p["encoder"].T + p["encoder_bias"]).relu()
    rows = p["decoder"] / p["decoder"].norm(dim=1, keepdim=True)
    x_hat = c @ rows + p["decoder_bias"]
    positions = x.shape[0] * x.shape[1]
    sparsity = SPARSITY * c.abs().sum() / positions / WIDTH
    if kind == "local":
        return {"reconstruction": (x - x_hat).square().mean(), "sparsity": sparsity}

    hidden, later = x_hat, list[Tensor]()
    for block in network.transformer.h[1:]:
        found = block(hidden)
        hidden = found if isinstance(found, Tensor) else found[0]
        later.append(hidden)
    new = network.lm_head(network.transformer.ln_f(hidden)).log_softmax(-1)
    old = clean.output["logits"].log_softmax(-1)
    divergence = (old.exp() * (old - new)).sum() / positions
    if kind == "e2e":
        return {"outputkl": divergence, "sparsity": sparsity}
    squared = [
        (a_hat - clean.hidden[sites[name]]).square().mean() for a_hat, name in zip(later, DOWNSTREAM, strict=True)
    ]
    each = TOTAL / len(DOWNSTREAM)
    return {"outputkl": 0.5 * divergence, "downstream": each * sum(squared, x.new_zeros(())), "sparsity": sparsity}


def copies(what: Dictionary) -> dict[str, Tensor]:
    return {name: item.detach().clone().requires_grad_() for name, item in what.named_parameters()}


class Once(Texts):
    """One batch, every time."""

    def __init__(self, batch: Text) -> None:
        super().__init__()
        self.batch = batch

    def next(self) -> Text:
        return self.batch


@pytest.mark.parametrize("kind", KINDS)
def test_terms_and_gradients_are_those_of_the_equations(kind: Kind) -> None:
    model, batch, what, chosen = network(), text(), fresh(kind), preset(kind)
    needs = frozenset[str]().union(*(term.needs for term in chosen.objective))
    stream = spliced(model, Once(batch), [SITE], {SITE: 3.0}, where=Where("all"))
    trial = stream.draw(needs).trial(what, SITE, needs)
    assert trial.clean.shape == (batch.ids.numel(), WIDTH)
    p = copies(what)
    expected = equations(model, batch, p, kind)
    assert [term.name for term in chosen.objective] == list(expected)
    for term in chosen.objective:
        value, plain = term(trial), expected[term.name]
        assert plain > 1e-3
        assert abs(value - plain) < 1e-10
        there = torch.autograd.grad(plain, list(p.values()), retain_graph=True, materialize_grads=True)
        here = torch.autograd.grad(value, list(what.parameters()), retain_graph=True, materialize_grads=True)
        for name, one, other in zip(p, here, there, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10, msg=f"{term.name} {name}")


def test_the_teacher_comes_first() -> None:
    model, batch, what = network(), text(), fresh("e2e")
    needs = frozenset({"output"})
    trial = spliced(model, Once(batch), [SITE], {SITE: 3.0}).draw(needs).trial(what, SITE, needs)
    value = preset("e2e").objective[0](trial)
    assert trial.passes is not None
    head: Any = model.module.get_submodule("lm_head")
    old, new = (
        head(one.hidden["final"]).log_softmax(-1).flatten(0, 1) for one in (trial.passes.clean, trial.passes.other)
    )
    forward = F.kl_div(new, old, log_target=True, reduction="batchmean")
    backward = F.kl_div(old, new, log_target=True, reduction="batchmean")
    assert abs(value - forward) < 1e-10
    assert abs(value - backward) > 1e-2


class Stop(Callback):
    """Ends the fit after five steps."""

    def after_step(self, loop: Loop, student: Student) -> Record:
        if loop.step == 5:
            raise KeyboardInterrupt
        return {}


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_the_paper(kind: Kind) -> None:
    model, what, chosen = network(), fresh(kind), preset(kind)
    with torch.no_grad():
        # errors so large that clipping takes hold, where they count
        what.decoder_bias.add_(300)
    p, batches, norms = copies(what), Texts(), list[float]()
    # five steps of forty, of which the first two make up the rise
    adam = torch.optim.Adam(p.values(), lr=5e-4)
    for k in range(5):
        rate = k / 2 if k < 2 else max(0.1, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (k - 2) / 38)))
        adam.param_groups[0]["lr"] = 5e-4 * rate
        adam.zero_grad()
        sum(equations(model, batches.next(), p, kind).values(), torch.zeros(())).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(p.values(), 10.0)))
        adam.step()
        if k == 0:
            assert all(torch.equal(what.get_parameter(name), item) for name, item in p.items())
    assert (min(norms) > 10) == (kind != "e2e")

    stream = spliced(model, Texts(), [SITE], {SITE: 3.0}, where=Where("all"))
    with pytest.raises(KeyboardInterrupt):
        fit_together([Student(what, chosen.objective)], stream, chosen.config(40), (Stop(),))
    for name, item in what.named_parameters():
        torch.testing.assert_close(item, p[name], rtol=0, atol=1e-10, msg=name)


def test_the_dictionary_begins_as_in_the_reference() -> None:
    what = fresh("local")
    assert what.mean.count_nonzero() == 0
    assert what.scale == 1
    torch.testing.assert_close(what.decoder.T @ what.decoder, torch.eye(WIDTH).double(), rtol=0, atol=1e-5)
    for parameter, bound in (
        (what.encoder, WIDTH**-0.5),
        (what.encoder_bias, WIDTH**-0.5),
        (what.decoder_bias, LATENTS**-0.5),
    ):
        assert 0.85 * bound < parameter.abs().max() <= bound
        assert abs(parameter.mean()) < 0.25 * bound
    assert not torch.equal(what.encoder, fresh("local", seed=1).encoder)
