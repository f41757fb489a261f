"""What judges codes, in both of their forms, against the formulas: dead latents, prefixes, costs, half precision."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from decompose.formulas import (
    LATENTS,
    NONLINEARITIES,
    SCALE,
    WAYS,
    WIDTH,
    both,
    dense,
    dictionary,
    every,
    plain,
    states,
    variance_one,
)
from innerspace.decompose.dictionary import Dictionary, Form
from innerspace.decompose.nonlinearities import BatchTopK, Gated, JumpReLU, Nonlinearity, ReLU
from innerspace.learn.objectives import AuxK, GateReconstruction, NestedReconstruction, Reconstruction, Sparsity
from innerspace.learn.trials import Trial


def with_dead_latents(nonlinearity: Nonlinearity) -> Dictionary:
    """Latents 0 … 2 have positive pre-activations, which lose against the others or stay below their threshold."""
    what = dictionary(nonlinearity)
    what.silent[:3] = 10_000
    with torch.no_grad():
        what.encoder_bias[:3] = 0.1
        if isinstance(nonlinearity, JumpReLU):
            what.thresholds["log_threshold"][:3] = 5
        else:
            what.encoder_bias[3:].add_(9)
    return what


@both
@pytest.mark.parametrize("nonlinearity", [NONLINEARITIES[i] for i in (1, 3, 4)], ids=lambda item: type(item).__name__)
def test_auxk_moves_dead_encoder_rows(nonlinearity: Nonlinearity, way: str) -> None:
    what = with_dead_latents(nonlinearity)
    x = states(what)
    code = WAYS[way](what, x)
    trial = Trial(x, what.decode(code.z), code, what, torch.tensor(2.0, dtype=x.dtype))
    assert dense(code.z)[:, :3].count_nonzero() == 0
    value = AuxK(2, 0.25, after=10_000)(trial)

    p = {name: item.detach().clone().requires_grad_() for name, item in what.named_parameters()}
    pre = ((x - what.mean) / SCALE - p["decoder_bias"]) @ p["encoder"][:3].T + p["encoder_bias"][:3]
    kept = pre.clamp(min=0) * (pre >= pre.detach().sort(-1).values[:, 1:2])
    left = (x - trial.reconstruction).detach()
    expected = 0.25 * (left - SCALE * kept @ p["decoder"][:3]).square().sum(-1).mean() / 2
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    for name in ("encoder", "encoder_bias", "decoder", "decoder_bias"):
        found = what.get_parameter(name).grad
        assert found is not None
        torch.testing.assert_close(found, p[name].grad)
        moved = found.reshape(len(found), -1).abs().amax(-1) > 0
        assert name == "decoder_bias" or moved.tolist() == [True] * 3 + [False] * (LATENTS - 3)


@pytest.mark.parametrize("nonlinearity", [ReLU(), Gated()], ids=lambda item: type(item).__name__)
def test_auxk_has_nothing_to_move_where_all_that_is_positive_is_on(nonlinearity: Nonlinearity) -> None:
    what = dictionary(nonlinearity)
    what.silent[:3] = 10_000
    code = what.encode(x := states(what))
    AuxK(2, after=10_000)(variance_one(what, x, code)).backward()
    assert what.encoder.grad is not None
    assert what.encoder.grad.count_nonzero() == 0


@both
@pytest.mark.parametrize("nonlinearity", [ReLU(), BatchTopK(3)], ids=lambda item: type(item).__name__)
def test_nested_reconstruction_is_a_loop_over_the_prefixes(nonlinearity: Nonlinearity, way: str) -> None:
    what = dictionary(nonlinearity, Form(prefixes=(2, 5, 11, LATENTS)))
    x = states(what)
    code = WAYS[way](what, x)
    value = NestedReconstruction(0.7, unit="mean")(variance_one(what, x, code))
    expected = plain(what, x)
    errors = list[Tensor]()
    for prefix in (2, 5, 11, LATENTS):
        z, rows = expected.z[:, :prefix], expected.parameters["decoder"][:prefix]
        written = SCALE * (z @ rows + expected.parameters["decoder_bias"]) + what.mean
        errors.append((x - written).square().mean())
    total = 0.7 * sum(errors, torch.zeros(())) / 4
    torch.testing.assert_close(value, total)
    value.backward()
    total.backward()
    for name, parameter in what.named_parameters():
        torch.testing.assert_close(parameter.grad, expected.parameters[name].grad, msg=name)


@pytest.mark.parametrize(
    "term",
    [
        Sparsity(0.3),
        Sparsity(0.3, "lp", 0.5),
        Sparsity(0.3, "norm", 0.6, per_width=True),
        Sparsity(0.3, "norm", 2.0),
        Sparsity(0.3, "tanh", 0.4),
    ],
    ids=lambda term: f"{term.measure} {term.p}",
)
def test_what_a_code_costs_is_the_formula_in_both_forms(term: Sparsity) -> None:
    what = dictionary(ReLU())
    x = states(what)
    expected = plain(what, x)
    z = expected.z[:, 3:]
    powers = torch.where(z > 0, z.clamp(min=1e-300) ** term.p, 0)
    match term.measure:
        case "tanh":
            cost = (z / term.p).tanh().sum(-1)
        case "norm":
            sums = powers.sum(-1)
            cost = torch.where(sums > 0, sums.clamp(min=1e-300) ** (1 / term.p), 0)
        case _:
            cost = powers.sum(-1)
    total = 0.3 * cost.mean() / (WIDTH if term.per_width else 1)
    total.backward()
    for encode in WAYS.values():
        one = copy.deepcopy(what)
        value = term(variance_one(one, x, encode(one, x)))
        value.backward()
        torch.testing.assert_close(value, total)
        for name in ("encoder", "encoder_bias", "decoder_bias"):
            found = dict(one.named_parameters())[name].grad
            torch.testing.assert_close(found, expected.parameters[name].grad, msg=name)


@both
@every
def test_in_half_precision_the_choice_and_the_gradients_are_nearly_those_of_single(
    nonlinearity: Nonlinearity, way: str
) -> None:
    torch.manual_seed(2)
    form = Form(prefixes=(50, 200))
    what = Dictionary(64, 200, nonlinearity, form=form)
    with torch.no_grad():
        what.encoder_bias.fill_(-0.1)
    what.silent[:20] = 1000
    x = F.normalize(torch.randn(256, 64), dim=-1)
    terms = [Reconstruction(), NestedReconstruction(), Sparsity(0.01), AuxK(8, 0.5, after=1000)]
    terms += [GateReconstruction()] if isinstance(nonlinearity, Gated) else []
    results = list[tuple[Tensor, Tensor, dict[str, Tensor]]]()
    for half, inside in ((False, False), (True, False), (True, True)):
        one = copy.deepcopy(what)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            code = WAYS[way](one, x)
            reconstruction = one.decode(code.z)
        trial = Trial(x, reconstruction, code, one, torch.tensor(1.0))
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            loss = torch.stack([term(trial).float() for term in terms]).sum()
        loss.backward()
        gradients = {name: p.grad for name, p in one.named_parameters() if p.grad is not None}
        assert all(item.dtype == torch.float32 for item in (*one.parameters(), *gradients.values(), reconstruction))
        results.append((dense(code.z).detach().float(), loss.detach(), gradients))
    (z, loss, gradients), *halves = results
    for other, value, others in halves:
        same = ((other > 0) == (z > 0)).sum() - (z == 0).logical_and(other == 0).sum()
        assert same / ((z > 0) | (other > 0)).sum() > 0.95
        torch.testing.assert_close(value, loss, rtol=0.02, atol=0)
        for name, gradient in gradients.items():
            error = (others[name] - gradient).norm() / gradient.norm()
            # a straight-through kernel sees entries that cross its edges
            assert error < (0.3 if name.startswith("thresholds") else 0.15), (name, error)
