"""What a spliced decomposition costs, against the plain formulation of every number and on a trained network."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import pytest
import torch
from torch import Tensor, nn

from families import CASES
from innerspace.decompose.base import Code, Decomposition
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import TopK
from innerspace.decompose.sparse import Sparse
from innerspace.interventions import At, Fix, Read, Splice
from innerspace.language.causal_lm import CausalLM, tokenize
from innerspace.language.causal_lm import load as load_lm
from innerspace.language.text import Text
from innerspace.measure.estimate import Estimate
from innerspace.measure.splicing import OutputLoss, SpliceFidelity, TokenLoss, mean_state, splice_fidelity
from innerspace.network.model import Family, Model
from innerspace.network.site import Site, Where
from innerspace.network.trace import Trace
from language.tiny import decoder

WIDTH, SITE = 32, "resid.1"


@final
class Towards(Decomposition):
    """x̂ = target + share · (x − target): a copy, a constant, or something between."""

    def __init__(self, target: Tensor, share: float) -> None:
        super().__init__()
        self.target, self.share = nn.Parameter(target.clone()), share

    @property
    def parts(self) -> list[slice]:
        return [slice(0, len(self.target))]

    @property
    def directions(self) -> Tensor:
        return self.share * torch.eye(len(self.target)).to(self.target)

    def encode(self, x: Tensor) -> Code:
        z = x - self.target
        return Code(z, z, z.abs().sum(-1))

    def decode(self, z: Tensor | Sparse) -> Tensor:
        assert isinstance(z, Tensor)
        return self.target + self.share * z


def lm(ignore: tuple[int, ...] = (1,)) -> Model:
    return Model(decoder("llama", torch.float64), CausalLM(ignore))


def texts() -> list[Text]:
    """Packed and padded rows; token 1 begins a document, and documents go on from row to row."""
    generator = torch.Generator().manual_seed(5)
    found = list[Text]()
    for first, rows in ((0, 3), (3, 2)):
        ids = torch.randint(3, 101, (rows, 10), generator=generator)
        valid = torch.ones(rows, 10, dtype=torch.bool)
        document = (first + torch.arange(rows))[:, None] + (torch.arange(10) >= 6).long()
        ids[:, 6] = 1
        ids[0, 0] = 1
        valid[1, :2] = False
        found.append(Text(ids, valid, document))
    return found


def dictionary(latents: int = 400) -> Dictionary:
    return Dictionary(WIDTH, latents, TopK(4), mean=0.1 * torch.ones(WIDTH), scale=0.5, seed=1).double()


def numbers(item: Any) -> Iterator[float]:
    """All estimates and counts of a value, in order."""
    if isinstance(item, Estimate):
        yield item.mean
    elif dataclasses.is_dataclass(item):
        for field in dataclasses.fields(item):
            yield from numbers(getattr(item, field.name))
    elif isinstance(item, tuple):
        for entry in item:
            yield from numbers(entry)
    elif isinstance(item, int | float):
        yield item


def close(found: Estimate, expected: Tensor | float) -> None:
    assert found.mean == pytest.approx(float(expected), abs=1e-9, rel=1e-9)


@torch.no_grad()
@pytest.mark.parametrize(("site", "where"), [(SITE, Where("valid")), ("mlp.1", Where("valid", skip=1))])
def test_every_number_is_that_of_the_plain_form(site: str, where: Where) -> None:
    model, what, batches = lm(), dictionary(), texts()
    found = splice_fidelity(model, batches, site, what, where=where)
    assert isinstance(what.code(torch.randn(300, WIDTH).double()).z, Sparse)

    mean = mean_state(model, batches, site, where)
    edits = {"clean": [], "spliced": [At(where, Splice(what.eval()))]}
    edits |= {"zero": [At(where, Fix(torch.zeros(WIDTH)))], "mean": [At(where, Fix(mean))]}
    states, logits, hidden = list[Tensor](), dict[str, list[Tensor]](), dict[str, list[Tensor]]()
    predictions = list[tuple[int, int, int]]()
    rows = 0
    for batch in batches:
        counts = where.select(tuple(batch.ids.shape), batch.valid & (batch.ids != 1))
        for name, edit in edits.items():
            trace = model.run(batch, {site: [Read("x"), *edit], "resid.2": [Read()]})
            logits.setdefault(name, []).append(trace.output["logits"][counts])
            hidden.setdefault(name, []).append(trace.hidden["resid.2"][counts])
        states.append(trace.hidden["x"][counts])
        for place, (row, token) in enumerate(counts.nonzero().tolist()):
            if (
                token < 9
                and batch.ids[row, token + 1] != 1
                and batch.document[row, token] == batch.document[row, token + 1]
            ):
                predictions.append((rows + place, 0, int(batch.ids[row, token + 1])))
        rows += int(counts.sum())

    x = torch.cat(states)
    code = what.encode(x)
    x_hat, away = what.decode(code.z), (x - x.mean(0)).square().sum(-1)
    error = (x - x_hat).square().sum(-1)
    assert found.tokens == len(x) == rows
    close(found.explained_variance, 1 - error.sum() / away.sum())
    close(found.explained_variance_per_token, (1 - error / away).mean())
    assert abs(found.explained_variance.mean - found.explained_variance_per_token.mean) > 1e-4
    close(found.norm_ratio, (x_hat.norm(dim=1) / x.norm(dim=1)).mean())
    close(found.cosine, torch.cosine_similarity(x, x_hat).mean())
    on = code.z != 0
    close(found.l0, on.double().sum(1).mean())
    assert found.latents == 400
    assert found.alive == int(on.any(0).sum())
    assert found.frequency_histogram.never == 400 - found.alive
    assert sum(found.l0_histogram.counts) == rows

    logs = {name: torch.cat(parts).log_softmax(-1) for name, parts in logits.items()}
    index, _, target = map(list, zip(*predictions, strict=True))
    ce = {name: -log[index, target].mean() for name, log in logs.items()}
    loss = found.loss
    assert isinstance(loss, TokenLoss)
    assert loss.predictions == len(predictions) < rows
    for name in edits:
        close(getattr(loss, f"ce_{name}"), ce[name])
    close(loss.ce_increase, ce["spliced"] - ce["clean"])
    close(loss.recovered_zero, 1 - (ce["spliced"] - ce["clean"]) / (ce["zero"] - ce["clean"]))
    close(loss.recovered_mean, 1 - (ce["spliced"] - ce["clean"]) / (ce["mean"] - ce["clean"]))
    p, q = logs["clean"].exp(), logs["spliced"].exp()
    close(loss.kl, (p * (logs["clean"] - logs["spliced"])).sum(-1).mean())
    close(loss.total_variation, (p - q).abs().sum(-1).mean() / 2)
    close(loss.top1, (p.argmax(-1) == q.argmax(-1)).double().mean())

    assert [item.site for item in found.downstream] == [site, *(["resid.1"] if site == "mlp.1" else []), "resid.2"]
    close(found.downstream[0].error, 1 - found.explained_variance.mean)
    clean, other = torch.cat(hidden["clean"]), torch.cat(hidden["spliced"])
    close(found.downstream[-1].mse, (clean - other).square().mean())
    variance = (clean - clean.mean(0)).square().sum()
    close(found.downstream[-1].error, (clean - other).square().sum() / variance)


@torch.no_grad()
def test_a_copy_costs_nothing_and_a_constant_what_it_should() -> None:
    model, batches = lm(), texts()
    mean = mean_state(model, batches, SITE)
    copy = splice_fidelity(model, batches, SITE, Towards(mean, 1.0))
    assert isinstance(copy.loss, TokenLoss)
    for item in (copy.loss.ce_increase, copy.loss.kl, copy.loss.total_variation):
        close(item, 0)
    for item in (copy.explained_variance, copy.cosine, copy.norm_ratio, copy.loss.top1, copy.loss.recovered_zero):
        close(item, 1)
    assert all(item.error.mean < 1e-20 for item in copy.downstream)
    constant = splice_fidelity(model, batches, SITE, Towards(mean, 0.0))
    assert isinstance(constant.loss, TokenLoss)
    close(constant.explained_variance, 0)
    close(constant.loss.recovered_mean, 0)
    close(constant.downstream[0].error, 1)
    nothing = splice_fidelity(model, batches, SITE, Towards(torch.zeros(WIDTH).double(), 0.0))
    assert isinstance(nothing.loss, TokenLoss)
    close(nothing.loss.recovered_zero, 0)
    close(nothing.norm_ratio, 0)


def whole(batches: list[Text]) -> Text:
    """The batches as one."""
    columns = ([getattr(batch, name) for batch in batches] for name in ("ids", "valid", "document"))
    return Text(*map(torch.cat, columns))


def test_how_documents_are_put_into_batches_changes_nothing() -> None:
    model, what = lm(), dictionary(300)
    found = splice_fidelity(model, texts(), SITE, what)
    together = splice_fidelity(model, iter([whole(texts())]), SITE, what)
    assert list(numbers(together)) == pytest.approx(list(numbers(found)), abs=1e-9)
    assert together.explained_variance.low == pytest.approx(found.explained_variance.low, abs=1e-9)


def test_padding_and_tokens_left_out_have_no_say() -> None:
    model, what, batch = lm(), dictionary(300), whole(texts())
    ids = torch.where(batch.valid, batch.ids, 77)
    found, expected = (
        splice_fidelity(model, [Text(item, batch.valid, batch.document)], SITE, what) for item in (batch.ids, ids)
    )
    assert list(numbers(found)) == pytest.approx(list(numbers(expected)), abs=1e-9)
    everything = splice_fidelity(lm(ignore=()), [batch], SITE, what)
    assert everything.tokens == found.tokens + 7


def test_rows_are_documents_where_none_are_told() -> None:
    model, what, batch = lm(), dictionary(300), whole(texts())
    found = splice_fidelity(model, [Text(batch.ids, batch.valid), Text(batch.ids, batch.valid)], SITE, what)
    assert found.documents == 10
    alone = splice_fidelity(model, [Text(batch.ids[:1])], SITE, what)
    assert alone.documents == 1
    assert alone.explained_variance.low is None
    assert alone.loss.recovered_zero.high is None


def test_the_prefix_runs_once_and_passes_end_at_the_head() -> None:
    model, what, batches = lm(), dictionary(300), texts()
    mean = mean_state(model, batches, SITE)
    calls = list[str]()
    module: Any = model.module
    for name, part in (("0", module.model.layers[0].mlp), ("2", module.model.layers[2].mlp), ("head", module.lm_head)):
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    model.resume(batches[0], SITE, model.run(batches[0], {SITE: Read()}, stop=True).hidden[SITE])
    calls.clear()
    splice_fidelity(model, iter(batches), SITE, what, mean=mean)
    assert (calls.count("0"), calls.count("2"), calls.count("head")) == (2, 8, 0)


def test_the_result_goes_to_json_and_back() -> None:
    what = dictionary(300).train()
    found = splice_fidelity(lm(), texts(), SITE, what)
    assert what.training
    assert not what.silent.any()
    assert SpliceFidelity.from_json(json.loads(json.dumps(found.to_json()))) == found
    for item in (found.loss.recovered_zero, found.explained_variance, found.downstream[1].error):
        assert item.low < item.mean < item.high
    assert splice_fidelity(lm(), texts(), SITE, what) == found
    assert splice_fidelity(lm(), texts(), SITE, what, seed=1).l0_histogram == found.l0_histogram


@torch.no_grad()
def test_a_forecaster_is_judged_by_its_forecasts() -> None:
    case = CASES["redmotion"]()
    model, site, where = case.model, "agent.1", Where("last")
    what = Dictionary(8, 12, TopK(2), seed=1)
    found = splice_fidelity(model, [case.batch], site, what, where=where)
    loss = found.loss
    assert isinstance(loss, OutputLoss)
    assert found.documents == found.tokens == len(case.batch)
    assert [item.site for item in found.downstream] == [
        "agent.1",
        "agent.2",
        "context.0",
        "red.0",
        "modes.0",
        "modes.1",
    ]
    assert found.downstream[2].error.mean == 0 < found.downstream[1].error.mean

    clean = model.run(case.batch, {site: Read()})
    edits = {"divergence": Splice(what.eval()), "divergence_zero": Fix(torch.zeros(8))}
    edits["divergence_mean"] = Fix(mean_state(model, [case.batch], site, where).float())
    for name, edit in edits.items():
        other = model.run(case.batch, {site: At(where, edit)})
        expected = model.family.divergence(model.module, clean, other, None)
        assert getattr(loss, name).mean == pytest.approx(expected.item(), rel=1e-4)
    assert loss.recovered_zero.mean == pytest.approx(1 - loss.divergence.mean / loss.divergence_zero.mean)
    assert loss.recovered_mean.mean == pytest.approx(1 - loss.divergence.mean / loss.divergence_mean.mean)
    assert SpliceFidelity.from_json(found.to_json()) == found


@final
class Anonymous(Family):
    """A language model that does not tell that it is one; it has no cut, so every pass runs whole."""

    def __init__(self) -> None:
        self.inner = CausalLM((1,))

    def sites(self, module: nn.Module) -> list[Site]:
        return self.inner.sites(module)

    def forward(self, module: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        return self.inner.forward(module, batch)

    def mask(self, batch: Any, site: Site) -> Tensor | None:
        return self.inner.mask(batch, site)

    def head(self, module: nn.Module) -> Site:
        return self.inner.head(module)

    def divergence(self, module: nn.Module, clean: Trace, other: Trace, chosen: Tensor | None) -> Tensor:
        return self.inner.divergence(module, clean, other, chosen)


def test_any_family_with_a_divergence_can_be_judged() -> None:
    model, what = lm(), dictionary(300)
    batch = Text(whole(texts()).ids[:, 7:])
    known = splice_fidelity(model, [batch], SITE, what)
    found = splice_fidelity(Model(model.module, Anonymous()), [batch], SITE, what)
    assert isinstance(found.loss, OutputLoss)
    assert isinstance(known.loss, TokenLoss)
    close(found.loss.divergence, known.loss.kl.mean)
    close(found.explained_variance, known.explained_variance.mean)


def test_what_cannot_be_judged_is_refused() -> None:
    model, what, batches = lm(), dictionary(300), texts()
    with pytest.raises(ValueError, match=r"no site is called 'resid\.7'"):
        splice_fidelity(model, batches, "resid.7", what)
    with pytest.raises(ValueError, match=r"the mean has width 5, the hidden state at 'resid\.1' 32"):
        splice_fidelity(model, batches, SITE, what, mean=torch.zeros(5))
    with pytest.raises(ValueError, match=r"no position at 'resid\.1' counts"):
        splice_fidelity(model, [], SITE, what)
    with pytest.raises(ValueError, match=r"no position at 'resid\.1' counts"):
        splice_fidelity(model, batches, SITE, what, where=Where(skip=10), mean=torch.zeros(WIDTH))
    with pytest.raises(ValueError, match="nothing to predict"):
        splice_fidelity(model, batches, SITE, what, where=Where("last"))
    with pytest.raises(ValueError, match=r"computed at 'resid\.0'"):
        splice_fidelity(model, batches, SITE, what, downstream=("resid.0",))
    with torch.no_grad():
        next(model.module.parameters())[2] = torch.nan
    batches[1].ids[0, 4] = 2
    with pytest.raises(ValueError, match=r"not finite in batch 1"):
        splice_fidelity(model, batches, SITE, what, mean=torch.zeros(WIDTH))


@torch.no_grad()
def test_a_trained_network(assets: Path) -> None:
    loaded = load_lm(assets / "lm" / "stories260K")
    stories = [item.replace("\n\n", "\n") for item in json.loads((assets / "lm" / "tinystories_1000.json").read_text())]
    batches, plain = list[Text](), list[Tensor]()
    for first in range(0, 48, 24):
        batch = tokenize(loaded.tokenizer, stories[first : first + 24])
        assert batch.valid is not None
        ids, valid = batch.ids[:, :128], batch.valid[:, :128]
        batches.append(Text(ids, valid))
        logits = loaded.model.run(batches[-1]).output["logits"][:, :-1]
        plain.append(nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")[valid[:, 1:]])
    mean = mean_state(loaded.model, batches, "resid.2")
    found = splice_fidelity(loaded.model, batches, "resid.2", Towards(mean.float(), 0.5), mean=mean)
    assert isinstance(found.loss, TokenLoss)
    assert found.documents == 48
    # the first words of these stories; all of the first hundred to the end have 1.61
    assert found.loss.ce_clean.mean == pytest.approx(torch.cat(plain).mean().item(), abs=1e-5)
    assert found.loss.ce_clean.mean == pytest.approx(1.157, abs=0.01)
    assert found.loss.ce_mean.mean > 4
    assert found.loss.ce_zero.mean > 4
    assert found.explained_variance.mean == pytest.approx(0.75, abs=1e-4)
    assert found.downstream[0].error.mean == pytest.approx(0.25, abs=1e-4)
    assert [item.site for item in found.downstream] == ["resid.2", "resid.3", "resid.4"]
    assert 0.05 < found.loss.ce_increase.low < found.loss.ce_increase.high
    assert 0.2 < found.loss.recovered_mean.mean < 1
    copy = splice_fidelity(loaded.model, batches[:1], "resid.2", Towards(mean.float(), 1.0), mean=mean)
    assert isinstance(copy.loss, TokenLoss)
    assert copy.loss.ce_increase.mean == pytest.approx(0, abs=1e-5)
    assert copy.loss.kl.mean == pytest.approx(0, abs=1e-6)
    assert copy.loss.recovered_mean.mean == pytest.approx(1, abs=1e-5)
