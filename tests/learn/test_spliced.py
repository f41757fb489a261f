"""Spliced trials against two full passes with full logits."""

import copy
import itertools
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from families import Blocks, BlocksFamily, blocks
from innerspace.decompose import dictionary as dictionaries
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import Gated, JumpReLU, ReLU, TopK
from innerspace.interventions import At, Read, Splice
from innerspace.learn.fit import FitConfig, fit
from innerspace.learn.objectives import (
    AuxK,
    Balanced,
    Downstream,
    Objective,
    OutputKL,
    Reconstruction,
    Sparsity,
)
from innerspace.learn.spliced import spliced, survey
from innerspace.learn.trials import local
from innerspace.network.model import Model
from innerspace.network.site import Where
from innerspace.network.trace import Trace
from language.tiny import text
from learn.splicing import VARIANCE, Cycle, gradients, language, learner, stream


class Told(BlocksFamily):
    """Blocks without a cut or a head, whose output is a distribution over two things."""

    def divergence(
        self, module: nn.Module, clean: Trace, other: Trace, chosen: Bool[Tensor, "..."] | None
    ) -> Float[Tensor, ""]:
        assert chosen is None
        one, two = (F.log_softmax(trace.output["y"], -1).flatten(0, -2) for trace in (clean, other))
        return F.kl_div(two, one, log_target=True, reduction="batchmean")


def plain_terms(
    model: Model, batch: Any, what: Dictionary, site: str, where: Where, downstream: Mapping[str, float]
) -> dict[str, Tensor]:
    """By two full passes: the local error, the divergence of all logits, and squared errors behind the site."""
    reads = {name: Read() for name in {site, *downstream}}
    clean = model.run(batch, reads)
    other = model.run(batch, {name: Read() for name in downstream if name != site} | {site: At(where, Splice(what))})
    mask = model.family.mask(batch, model.site(site))
    chosen = where.select(tuple(clean.hidden[site].shape[:-1]), mask)
    rows = clean.hidden[site][chosen]
    code = what.encode(rows)
    error = rows - what.decode(code.z)
    logs = [trace.output["logits"][chosen].log_softmax(-1) for trace in (clean, other)]
    found = {
        "local": error.square().sum() / len(rows),
        "cost": code.cost.mean(),
        "kl": F.kl_div(logs[1], logs[0], log_target=True, reduction="batchmean"),
    }
    for name in downstream:
        found[name] = (clean.hidden[name] - other.hidden[name])[chosen].square().mean()
    return found


@pytest.fixture(params=["dense", "sparse"])
def _form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "sparse":
        monkeypatch.setattr(dictionaries, "_SMALL", 0)


@pytest.mark.usefixtures("_form")
@pytest.mark.parametrize("site", ["embed", "resid.0", "resid_mid.1", "mlp.1", "attn.1"])
@pytest.mark.parametrize(
    ("name", "padding", "where", "ignore"),
    [
        ("gpt2", None, Where("valid"), ()),
        ("gpt2", "left", Where("valid", skip=1), ()),
        ("llama", "right", Where("valid"), ()),
        ("llama", None, Where("valid", skip=2), tuple(range(3, 30))),
    ],
)
def test_terms_and_gradients_are_those_of_two_full_passes(
    name: str, padding: str | None, where: Where, ignore: tuple[int, ...], site: str
) -> None:
    model, batch = language(name, ignore), text(padding)
    what = learner(TopK(4))
    sites, weights = ("resid.1", "resid.2"), (0.3, 2.0)
    objective: Objective = (
        Reconstruction(0.7),
        OutputKL(0.5),
        Downstream(sites, 2.5, weights=weights),
        Sparsity(0.1, measure="lp"),
    )
    needs = frozenset[str]().union(*(term.needs for term in objective))
    trial = stream(model, [site], batch, where=where).draw(needs).trial(what, site, needs)
    by_variance = Downstream(sites, 1.3, unit="variance", weights=weights)(trial)
    found = [term(trial) for term in objective]

    one = copy.deepcopy(what)
    plain = plain_terms(model, batch, one, site, where, dict.fromkeys(sites, 1.0))
    errors = [plain[other] for other in sites]
    expected = [
        0.7 * plain["local"] / VARIANCE[site],
        0.5 * plain["kl"],
        2.5 / 2 * (0.3 * errors[0] + 2.0 * errors[1]),
    ]
    in_variance = [32 * error / VARIANCE[other] for error, other in zip(errors, sites, strict=True)]
    last = 1.3 / 2 * (0.3 * in_variance[0] + 2.0 * in_variance[1])
    for one_term, other in zip((*found[:3], by_variance), (*expected, last), strict=True):
        assert other > 1e-6
        torch.testing.assert_close(one_term, other, rtol=1e-10, atol=0)
        there = gradients(one, other)
        for parameter, gradient in gradients(what, one_term).items():
            torch.testing.assert_close(gradient, there[parameter], rtol=1e-9, atol=1e-10, msg=f"{other} {parameter}")


@pytest.mark.parametrize("site", ["first", "second", "second.in"])
def test_a_family_without_a_cut_runs_the_second_pass_from_the_start(site: str) -> None:
    torch.manual_seed(2)
    model = Model(Blocks().double(), Told())
    batch = blocks().batch
    batch = {**batch, "x": batch["x"].double()}
    what, needs = learner(ReLU(), width=8), frozenset({"output", "second"})
    trials = spliced(model, Cycle(batch), [site], {site: 2.0})
    trial = trials.draw(needs).trial(what, needs=needs)
    found = [OutputKL()(trial), Downstream(("second",), 1.5)(trial), Reconstruction()(trial)]

    one, valid = copy.deepcopy(what), batch["valid"]
    clean = model.run(batch, {name: Read() for name in {site, "second"}})
    other = model.run(
        batch, {site: [At(Where("valid"), Splice(one)), Read()]} | ({} if site == "second" else {"second": Read()})
    )
    logs = [trace.output["y"].flatten(0, -2).log_softmax(-1) for trace in (clean, other)]
    rows = clean.hidden[site][valid]
    expected = [
        (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean(),
        1.5 * (clean.hidden["second"] - other.hidden["second"])[valid].square().mean(),
        (rows - one.decode(one.encode(rows).z)).square().sum(-1).mean() / 2,
    ]
    for one_term, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(one_term, plain, rtol=1e-10, atol=0)
        torch.testing.assert_close(gradients(what, one_term), gradients(one, plain), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("site", ["resid.0", "mlp.1"])
def test_what_is_left_out_passes_unchanged(site: str) -> None:
    model, batch = language("gpt2"), text("left")
    needs = frozenset({site, "resid.2"})
    trial = stream(model, [site], batch, where=Where("valid", skip=2)).draw(needs).trial(learner(TopK(4)), site, needs)
    assert trial.passes is not None
    assert batch.valid is not None
    kept = batch.valid & (batch.valid.cumsum(-1) > 2)
    clean, other = trial.passes.clean.hidden, trial.passes.other.hidden
    assert torch.equal(other[site][~kept], clean[site][~kept])
    assert torch.equal(other[site][kept], trial.reconstruction)
    assert torch.equal(trial.clean, clean[site][kept])
    assert not torch.isclose(other["resid.2"], clean["resid.2"])[kept].any(-1).all()
    # what comes before the first edited token cannot feel it
    before = batch.valid & (batch.valid.cumsum(-1) <= 2)
    torch.testing.assert_close(other["resid.2"][before], clean["resid.2"][before], rtol=0, atol=1e-12)


@contextmanager
def counted(model: Model) -> Generator[dict[str, int]]:
    """How often every block, and the unembedding, has run."""
    calls: dict[str, int] = dict.fromkeys(("0", "1", "2", "head"), 0)

    def count(name: str) -> Any:
        def hook(*_: object) -> None:
            calls[name] += 1

        return hook

    network: Any = model.module
    parts = {**{str(i): block.mlp for i, block in enumerate(network.transformer.h)}, "head": network.lm_head}
    handles = [part.register_forward_hook(count(name)) for name, part in parts.items()]
    yield calls
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("site", "objective", "students", "expected"),
    [
        ("resid.0", (Reconstruction(), Sparsity(0.1), AuxK(2)), 3, (1, 0, 0)),
        ("mlp.1", (Reconstruction(),), 2, (1, 1, 0)),
        ("resid.0", (Downstream(("resid.1",)),), 1, (1, 2, 0)),
        ("mlp.0", (Downstream(("resid.1",)),), 1, (2, 2, 0)),
        ("resid.0", (OutputKL(),), 1, (1, 2, 2)),
        ("resid.0", (OutputKL(0.5), Downstream(("resid.1", "resid.2"))), 2, (1, 3, 3)),
        ("mlp.1", (Balanced(),), 2, (1, 3, 3)),
    ],
)
def test_nothing_is_computed_that_is_not_asked_for(
    site: str, objective: Objective, students: int, expected: tuple[int, ...]
) -> None:
    model = language("gpt2", dtype=torch.float32)
    trials = stream(model, [site], text())
    needs = frozenset[str]().union(*(term.needs for term in objective))
    what = learner(ReLU()).float()
    # the first pass that goes on from a state learns in which form the library gives it
    trials.draw(needs).trial(what, site, needs)
    with counted(model) as calls:
        occasion = trials.draw(needs)
        for _ in range(students):
            trial = occasion.trial(what, site, needs)
            assert all(term(trial).isfinite() for term in objective)
            assert (trial.passes is None) == (not needs)
    assert calls == dict(zip("012", expected, strict=True)) | {"head": 0}


@pytest.mark.parametrize("where", [Where("valid"), Where("valid", skip=1)])
def test_survey_is_the_mean_and_the_variance(where: Where) -> None:
    model = language("llama", dtype=torch.float32)
    with torch.no_grad():
        # a mean a million times as large as the spread
        model.module.get_parameter("model.embed_tokens.weight").mul_(0.1).add_(3e4)
    batches = [text("right"), text("left", rows=5), text()]
    found = survey(model, batches, ["embed", "resid.1", "model.layers.1.mlp"], where)
    for site, moments in found.items():
        rows = list[np.ndarray]()
        for batch in batches:
            name = model.site(site).name
            hidden = model.run(batch, {name: Read()}).hidden[name]
            rows.append(hidden[where.select(tuple(hidden.shape[:-1]), batch.valid)].numpy().astype(np.float64))
        every = np.concatenate(rows)
        assert moments.rows == len(every)
        np.testing.assert_allclose(moments.mean, every.mean(0), rtol=1e-6)
        assert moments.variance == pytest.approx(every.var(0).sum(), rel=1e-9)
    assert found["embed"].mean.mean() ** 2 > 1e8 * found["embed"].variance


def test_bad_streams_are_refused() -> None:
    model = language("gpt2", dtype=torch.float32)
    what = learner(ReLU()).float()
    with pytest.raises(ValueError, match=r"no site is called 'resid\.9'; this model has"):
        stream(model, ["resid.9"], text())
    with pytest.raises(ValueError, match=r"variance at 'resid\.2' is not given; it is known at resid\.1"):
        spliced(model, Cycle(text()), ["resid.2"], {"resid.1": 1.0})
    with pytest.raises(ValueError, match=r"no trials at 'resid\.1'; it has them at resid\.0"):
        stream(model, ["resid.0"], text()).draw().trial(what, "resid.1")
    with pytest.raises(ValueError, match=r"no site is called ''"):
        stream(model, ["resid.0", "resid.1"], text()).draw().trial(what)
    before, after = frozenset({"resid.0"}), frozenset({"resid.1"})
    occasion = stream(model, ["resid.1"], text()).draw(before)
    with pytest.raises(ValueError, match=r"nothing is computed at 'resid\.0' when a pass goes on from 'resid\.1'"):
        occasion.trial(what, "resid.1", before)
    trial = spliced(model, Cycle(text()), ["resid.0"], {"resid.0": 1.0}).draw(after).trial(what, needs=after)
    with pytest.raises(ValueError, match=r"need that variance; known are resid\.0"):
        Downstream(("resid.1",), unit="variance")(trial)
    with pytest.raises(ValueError, match="compares two passes of a network"):
        OutputKL()(local(torch.randn(9, 32), 3, 0).draw().trial(what))
    with pytest.raises(ValueError, match="rows alone do not tell output"):
        fit(what, local(torch.randn(9, 32), 3, 0), (OutputKL(),), FitConfig(steps=1))
    first, other = stream(model, ["resid.0"], text()), stream(model, ["resid.1"], text())
    with pytest.raises(ValueError, match=r"has the sites \['resid\.1'\], the one to continue \['resid\.0'\]"):
        other.restore(first.state())
    with pytest.raises(ValueError, match=r"no hidden state at 'resid\.0' counts"):
        survey(model, [text()], ["resid.0"], Where("valid", skip=50))
    model.module.get_parameter("transformer.h.1.mlp.c_proj.bias").data[3] = torch.nan
    with pytest.raises(ValueError, match=r"hidden states at 'resid\.1' are not finite in batch 0"):
        survey(model, [text()], ["resid.0", "resid.1"], Where("valid"))


def test_other_names_of_a_site_are_as_good() -> None:
    model = language("gpt2")
    results = list[Tensor]()
    for site, later in (("resid.0", "resid.2"), ("blocks.1.hook_resid_pre", "transformer.h.2")):
        variance = {site: 2.0, later: 3.0}
        objective = (OutputKL(), Downstream((later,), unit="variance"))
        needs = frozenset({"output", later})
        trial = spliced(model, Cycle(text()), [site], variance).draw(needs).trial(learner(ReLU()), site, needs)
        results.append(torch.stack([term(trial) for term in objective]))
    assert torch.equal(*results)


def test_the_only_site_need_not_be_named() -> None:
    model, what = language("gpt2", dtype=torch.float32), learner(ReLU()).float()
    found = fit(what, stream(model, ["resid.1"], text()), (OutputKL(), Sparsity(0.1)), FitConfig(steps=2))
    assert float(found.history[-1]["outputkl"]) > 0


def test_balanced_is_the_formula_and_the_divergence_weighs_as_much_as_the_error() -> None:
    what, model = learner(TopK(4)), language("gpt2")
    needs = frozenset({"output"})
    trial = stream(model, ["resid.0"], text()).draw(needs).trial(what, "resid.0", needs)
    error, divergence = Reconstruction()(trial), OutputKL()(trial)
    value = Balanced()(trial)
    torch.testing.assert_close(value, error, rtol=1e-6, atol=0)
    ratio = float(error.detach()) / (float(divergence.detach()) + 1e-8)
    by_error, by_divergence = gradients(what, error), gradients(what, divergence)
    for name, gradient in gradients(what, value).items():
        torch.testing.assert_close(
            gradient, 0.5 * (by_error[name] + ratio * by_divergence[name]), rtol=1e-10, atol=1e-12
        )


def test_in_half_precision_the_terms_are_nearly_those_of_single() -> None:
    model, batch = language("gpt2", dtype=torch.float32), text("right", rows=8)
    objective: Objective = (OutputKL(), Downstream(("resid.2",)), Reconstruction(), Sparsity(0.1), AuxK(2))
    needs = frozenset({"output", "resid.2"})
    for site, nonlinearity in itertools.product(("resid.0", "mlp.1"), (ReLU(), TopK(4), JumpReLU(), Gated())):
        found = list[tuple[Tensor, dict[str, Tensor]]]()
        for precision in ("float32", "bfloat16"):
            occasion = stream(model, [site], batch, precision=precision).draw(needs)
            what = learner(nonlinearity).float()
            with occasion.precision():
                trial = occasion.trial(what, site, needs)
                terms = torch.stack([term(trial) for term in objective])
            assert terms.dtype == trial.reconstruction.dtype == torch.float32
            found.append((terms.detach(), gradients(what, terms.sum())))
        torch.testing.assert_close(found[1][0], found[0][0], rtol=0.05, atol=1e-4)
        for name in ("encoder", "decoder"):
            single, half = (gradient[name] for _, gradient in found)
            assert half.dtype == torch.float32
            assert F.cosine_similarity(single.flatten(), half.flatten(), dim=0) > 0.97, (site, nonlinearity, name)


def test_auxk_moves_dead_encoder_rows_under_the_divergence_alone() -> None:
    model, needs = language("gpt2"), frozenset({"output"})
    what = learner(TopK(4))
    what.silent[:5] = 10_000
    with torch.no_grad():
        what.encoder_bias[:5] = 2
        what.encoder_bias[5:] += 30
    trial = stream(model, ["resid.0"], text()).draw(needs).trial(what, needs=needs)
    moved = gradients(what, OutputKL()(trial))["encoder"].abs().amax(-1) > 0
    assert not moved[:5].any()
    moved = gradients(what, OutputKL()(trial) + AuxK(5, after=10_000)(trial))["encoder"].abs().amax(-1) > 0
    assert moved[:5].all()
