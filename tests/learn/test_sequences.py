"""Trials of sequences, what is trained on them, and control vectors through what reads them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from families import CASES
from innerspace.checkpoint import State
from innerspace.decompose.base import Decomposition
from innerspace.decompose.convolutional import Convolutional, Kernels
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.directions import Origin
from innerspace.decompose.mixer import Mixer, Mixing
from innerspace.decompose.nonlinearities import BatchTopK, Gated, JumpReLU, ReLU, TopK
from innerspace.decompose.sequence import Sequencewise
from innerspace.harvest.sequences import Sequences, gather_sequences
from innerspace.harvest.store import write_store
from innerspace.harvest.stream import TokenRule, gather
from innerspace.interventions import At, Read, Splice
from innerspace.learn.callbacks import Checkpoint, EarlyStopping, HeldOut
from innerspace.learn.fit import Callback, FitConfig, Loop, Record, fit
from innerspace.learn.objectives import AuxK, Downstream, GateReconstruction, Objective, Reconstruction, Sparsity
from innerspace.learn.solve import contrast
from innerspace.learn.spliced import spliced
from innerspace.learn.trials import local, sequences
from innerspace.measure.fidelity import explained_variance, row_fidelity
from innerspace.network.site import Where

TOKENS, WIDTH = 5, 8
MIXING = Mixing(1, 8, 16)
ORIGIN = Origin("speed", "high", "low")


def padded(count: int, seed: int = 0) -> Sequences:
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(count, TOKENS, generator=generator) > 0.3
    valid[:, 2] = True
    x = 2 * torch.randn(count, TOKENS, WIDTH, generator=generator) + 1
    return Sequences.of(x.masked_fill(~valid[..., None], torch.nan), valid)


def test_a_trial_holds_the_valid_tokens_in_order_and_every_epoch_all_sequences() -> None:
    own = padded(7)
    trials = sequences(own, 3, seed=1)
    what = Dictionary(WIDTH, 12, ReLU())
    seen = list[Tensor]()
    for _ in range(2):
        trial = trials.draw().trial(what)
        assert trial.valid is not None
        assert len(trial.clean) == len(trial.reconstruction) == len(trial.code.cost) == int(trial.valid.sum())
        torch.testing.assert_close(trial.reconstruction, what.decode(what.encode(trial.clean).z))
        seen += list(trial.clean.split(trial.valid.sum(-1).tolist()))
    rows = [own.states[i][own.valid[i]] for i in range(7)]
    found = [[i for i, item in enumerate(rows) if torch.equal(item, one)] for one in seen]
    assert sorted(len(item) for item in found) == [1] * 6
    assert len({item[0] for item in found}) == 6
    expected = own.states[own.valid].var(0, correction=0).sum()
    torch.testing.assert_close(trials.draw().trial(what).variance, expected)
    with pytest.raises(ValueError, match="1 … 7 sequences, as many as there are; it has 8"):
        sequences(own, 8, 0)
    with pytest.raises(ValueError, match="the one to continue had sequences None"):
        trials.restore(local(own.rows, 3, 1).state())


KINDS: dict[str, Decomposition] = {
    "relu": Dictionary(WIDTH, 12, ReLU(), seed=3),
    "conv": Convolutional(WIDTH, 12, JumpReLU(0.5, 0.3), Kernels(3, 2), seed=3),
    "mixer": Mixer(TOKENS, WIDTH, 12, Gated(), MIXING, seed=3),
    "sequence": Sequencewise(TOKENS, WIDTH, 12, Gated(), seed=3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_do_not_change_when_sequences_are_repeated(kind: str) -> None:
    own = padded(6)
    objective: Objective = (Reconstruction(), Sparsity(0.1))
    if kind in ("mixer", "sequence"):
        objective += (GateReconstruction(),)
    found = list[list[Tensor | None]]()
    for times in (1, 3):
        many = Sequences.of(own.states.repeat(times, 1, 1), own.valid.repeat(times, 1))
        what = KINDS[kind].double()
        what.zero_grad()
        trial = sequences(many, len(many), 0).draw().trial(what)
        terms = [term(trial) for term in objective]
        assert all(term.item() > 0 for term in terms)
        torch.stack(terms).sum().backward()
        found.append([*terms, *(item.grad for item in what.parameters())])
    torch.testing.assert_close(found[0], found[1])


def test_the_gate_of_a_sequence_is_judged_on_its_valid_tokens() -> None:
    own, what = padded(6), KINDS["sequence"].double()
    assert isinstance(what, Sequencewise)
    trial = sequences(own, 6, 0).draw().trial(what)
    assert trial.valid is not None
    flat = what.scale * (trial.code.pre.relu() @ what.decoder + what.decoder_bias) + what.mean
    error = (trial.clean - flat.view(6, TOKENS, WIDTH)[trial.valid]).square().sum(-1).mean()
    torch.testing.assert_close(GateReconstruction(unit="sum")(trial), error)
    with pytest.raises(ValueError, match="auxk judges a Dictionary, not a Sequencewise"):
        AuxK(2)(trial)


def test_a_fit_on_sequences_continues_bit_for_bit(tmp_path: Path) -> None:
    own = padded(40)

    def trained(path: Path, last: int) -> dict[str, Tensor]:
        what = Mixer(TOKENS, WIDTH, 12, BatchTopK(2), MIXING)
        callbacks = [Checkpoint(path, 3), HeldOut(own, 3), _Interrupt(last)]
        fit(what, sequences(own, 9, 0), (Reconstruction(),), FitConfig(6, 1e-2, log_every=3), callbacks)
        return what.state_dict()

    with pytest.raises(InterruptedError):
        trained(tmp_path / "one", 3)
    for one, other in zip(trained(tmp_path / "one", 6).values(), trained(tmp_path / "other", 6).values(), strict=True):
        assert torch.equal(one, other)


@final
class _Interrupt(Callback):
    def __init__(self, last: int) -> None:
        self.last = last

    def close_step(self, loop: Loop, records: Sequence[Record]) -> None:
        if loop.step == self.last < loop.config.steps:
            raise InterruptedError


def patterns(count: int, *, features: int = 20, on: int = 2, seed: int = 0) -> Sequences:
    """Sparse positive sums of patterns that each reach over all tokens."""
    generator = torch.Generator().manual_seed(9)
    true = F.normalize(torch.randn(features, TOKENS * WIDTH, generator=generator), dim=-1)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(count, features, generator=generator).topk(on).indices
    z = torch.zeros(count, features).scatter_(1, chosen, torch.rand(count, on, generator=generator) + 0.5)
    return Sequences.of((z @ true).view(count, TOKENS, WIDTH))


def test_one_code_finds_patterns_across_tokens_that_lines_and_single_tokens_do_not() -> None:
    train, test = patterns(3000), patterns(500, seed=1)
    what = Sequencewise.normalized_for(train.states, train.valid, 20, TopK(2), seed=1)
    fit(what, sequences(train, 200, 0), (Reconstruction(),), FitConfig(500, 1e-2, log_every=500))
    found = row_fidelity(what, test)
    assert found.l0 == pytest.approx(2, abs=0.01)
    # two numbers for each of five tokens, where the code above has two for all
    alone = Dictionary.normalized_for(train.states.flatten(0, 1), 20, TopK(1), seed=1)
    fit(alone, sequences(train, 200, 0), (Reconstruction(),), FitConfig(500, 1e-2, log_every=500))
    flat, other = train.states.flatten(1), test.states.flatten(1)
    mean = flat.mean(0)
    basis = torch.linalg.svd(flat - mean, full_matrices=False)[2][:2]
    linear = explained_variance(
        test.states.flatten(0, 1), ((other - mean) @ basis.T @ basis + mean).view(-1, TOKENS, WIDTH).flatten(0, 1)
    )
    assert found.explained_variance > 0.8
    assert linear < 0.35
    assert row_fidelity(alone, test).explained_variance < found.explained_variance - 0.2


def told_by_the_first(count: int, seed: int) -> Sequences:
    """Three directions out of eight are on in each token but the first, which says out of which eight."""
    generator = torch.Generator().manual_seed(4)
    bases = torch.stack([torch.linalg.qr(torch.randn(8, 8, generator=generator))[0] for _ in range(2)])
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(2, (count,), generator=generator)
    chosen = torch.rand(count, TOKENS, 8, generator=generator).topk(3).indices
    z = torch.zeros(count, TOKENS, 8).scatter_(2, chosen, torch.rand(count, TOKENS, 3, generator=generator) + 0.5)
    x = F.pad(z @ bases[which], (0, 1))
    x[:, 0] = 0
    x[:, 0, -1] = 2.0 * which - 1
    return Sequences.of(x)


def test_a_mixer_reads_from_other_tokens_what_none_tells_alone() -> None:
    train, test = told_by_the_first(2000, 1), told_by_the_first(500, 2)
    unexplained = list[float]()
    for what in (
        Mixer.normalized_for(train.states, train.valid, 18, TopK(3), Mixing(1, 16, 32), seed=1),
        Dictionary.normalized_for(train.states.flatten(0, 1), 18, TopK(3), seed=1),
    ):
        fit(what, sequences(train, 64, 0), (Reconstruction(),), FitConfig(900, 4e-3, log_every=900))
        unexplained.append(1 - row_fidelity(what, test).explained_variance)
    assert unexplained[0] < 0.8 * unexplained[1], unexplained


def test_a_control_vector_through_one_code_is_the_mean_of_those_of_the_tokens_that_stand() -> None:
    own = patterns(4000)
    what = Sequencewise.normalized_for(own.states, own.valid, 20, TopK(2), seed=1)
    with torch.no_grad():
        what.decoder_bias.add_(0.1)
    labels = torch.zeros(4000, dtype=torch.long)
    labels[torch.randperm(4000)[:2000]] = 1
    step = torch.randn(TOKENS, WIDTH)
    own = Sequences.of(own.states + labels[:, None, None] * step, own.valid)
    last = torch.zeros_like(own.valid)
    last[:, -1] = True
    for chosen in (own.valid, last):
        within = dataclasses.replace(own, chosen=chosen)
        found = contrast(
            within.rows, labels, ("low", "high"), ORIGIN, "through", dictionary=what, within=within
        ).directions[0]
        z = what.encode(own.states).z.double()
        difference = (z[labels == 1].mean(0) - z[labels == 0].mean(0)).float()
        by_token = what.lift(difference)
        raw = by_token[-1] if chosen is last else by_token.mean(0)
        gap = within.rows[labels == 1].mean(0) - within.rows[labels == 0].mean(0)
        along = F.normalize(raw * (raw @ gap).sign(), dim=0).detach()
        torch.testing.assert_close(F.normalize(found, dim=0), along, rtol=1e-4, atol=1e-4)
        assert found.norm().item() == pytest.approx((gap @ along).item(), rel=1e-3)


def test_tokens_weigh_as_they_stand_for_their_samples() -> None:
    own = padded(300)
    labels = torch.arange(300) % 2
    for what in (
        Mixer.normalized_for(own.states, own.valid, 12, ReLU(), MIXING),
        Sequencewise.normalized_for(own.states, own.valid, 12, ReLU()),
    ):
        total = torch.zeros(2, WIDTH, dtype=torch.float64)
        shares = torch.zeros(2, TOKENS, dtype=torch.float64)
        mean_codes = torch.zeros(2, 12, dtype=torch.float64)
        for i in range(300):
            count = int(own.valid[i].sum())
            z = what.encode(own.states[i], own.valid[i]).z.detach().double()
            mean_codes[labels[i]] += (z[own.valid[i]].sum(0) / count if z.ndim == 2 else z) / 150
            shares[labels[i]] += own.valid[i] / count / 150
            total[labels[i]] += own.states[i][own.valid[i]].double().mean(0) / 150
        lifted = what.lift((mean_codes[1] - mean_codes[0]).float()).detach().double()
        raw = lifted if lifted.ndim == 1 else shares.mean(0) @ lifted
        found = contrast(own.rows, labels, ("low", "high"), ORIGIN, "through", dictionary=what, within=own)
        sign = (raw @ (total[1] - total[0])).sign()
        torch.testing.assert_close(found.raw[0].double(), raw * sign, rtol=1e-3, atol=1e-5)


def test_what_reads_sequences_and_what_does_not_are_told_apart() -> None:
    own, labels = padded(20), torch.arange(20) % 2
    mixer, plain = Mixer(TOKENS, WIDTH, 12, ReLU(), MIXING), Dictionary(WIDTH, 12, ReLU())
    classes = ("low", "high")
    with pytest.raises(ValueError, match="a Mixer reads sequences: give those in which the rows stand"):
        contrast(own.rows, labels, classes, ORIGIN, "through", dictionary=mixer)
    with pytest.raises(ValueError, match="a Dictionary does not read sequences"):
        contrast(own.rows, labels, classes, ORIGIN, "through", dictionary=plain, within=own)
    with pytest.raises(ValueError, match="this method does not read sequences"):
        contrast(own.rows, labels, classes, ORIGIN, within=own)
    with pytest.raises(ValueError, match="the rows do not stand in the sequences"):
        contrast(own.rows + 1, labels, classes, ORIGIN, "through", dictionary=mixer, within=own)
    with pytest.raises(ValueError, match="the reference has no such dictionary"):
        contrast(own.rows, labels, classes, ORIGIN, "reference_through", dictionary=mixer, within=own)


def test_sequences_of_a_network_are_its_states_and_those_of_a_store_the_same(tmp_path: Path) -> None:
    case = CASES["blocks"]()
    hidden = case.model.run(case.batch, {"first": Read()}).hidden["first"]
    own = gather_sequences(case.model, [case.batch, case.batch], "first", TokenRule(Where("last")))
    torch.testing.assert_close(own.states, hidden.detach().repeat(2, 1, 1))
    assert torch.equal(own.valid, case.batch["valid"].repeat(2, 1))
    expected = gather(case.model, [case.batch, case.batch], ["first"], TokenRule(Where("last"))).states["first"]
    torch.testing.assert_close(own.rows, expected)
    mean = gather_sequences(case.model, [case.batch], "first", TokenRule(Where("valid"), "mean"))
    expected = gather(case.model, [case.batch], ["first"], TokenRule(Where("valid"), "mean")).states["first"]
    torch.testing.assert_close(mean.rows, expected)
    store = write_store(case.model, [case.batch], ["first"], Where("valid"), tmp_path / "store")
    stored = Sequences.stored(store, "first")
    assert torch.equal(stored.valid, case.batch["valid"])
    torch.testing.assert_close(stored.states[stored.valid], hidden[case.batch["valid"]].detach())
    with pytest.raises(ValueError, match="one number of tokens, these have no batch"):
        gather_sequences(case.model, [], "first", TokenRule())
    with pytest.raises(ValueError, match="stands for it; sample 1 has none"):
        Sequences.of(torch.zeros(2, 3, 4), torch.tensor([[1, 1, 0], [0, 0, 0]], dtype=torch.bool))
    with pytest.raises(ValueError, match="should be finite"):
        Sequences.of(torch.full((2, 3, 4), torch.inf))


def test_a_fit_ends_where_held_out_sequences_are_explained_no_better(tmp_path: Path) -> None:
    train, held_out = padded(12), padded(60, seed=1)

    def trained(path: Path, last: int = 1000) -> tuple[Sequencewise, list[Record]]:
        what = Sequencewise.normalized_for(train.states, train.valid, 30, ReLU(), seed=1)
        # more latents than there are sequences to learn from
        callbacks = [EarlyStopping(held_out, 5, patience=2), Checkpoint(path, 5), _Interrupt(last)]
        config = FitConfig(400, 1e-3, log_every=400)
        return what, fit(what, sequences(train, 12, 0), (Reconstruction(),), config, callbacks).history

    what, history = trained(tmp_path / "one")
    scores = [float(record["held_out_explained_variance"]) for record in history]
    assert len(scores) < 80
    assert scores[-3] == max(scores) > scores[0]
    assert row_fidelity(what, held_out).explained_variance == pytest.approx(max(scores))
    with pytest.raises(InterruptedError):
        trained(tmp_path / "other", 5 * (len(scores) - 1))
    again, log = trained(tmp_path / "other")
    assert log == history
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), what.parameters(), strict=True))
    with pytest.raises(ValueError, match="every and patience should be at least 1, they are 0 and 3"):
        EarlyStopping(train, 0)


@final
class _Same:
    """The same batch again and again."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def next(self) -> Any:
        return self.batch

    def state(self) -> State:
        return {}

    def restore(self, state: State) -> None: ...


@pytest.mark.parametrize("kind", ["mixer", "sequence"])
def test_a_running_network_gives_trials_of_its_sequences(kind: str) -> None:
    case = CASES["blocks"]()
    valid = case.batch["valid"]
    what = Mixer(5, 8, 12, ReLU(), MIXING) if kind == "mixer" else Sequencewise(5, 8, 12, ReLU())
    with torch.no_grad():
        for parameter in what.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    hidden = case.model.run(case.batch, {"first": Read()}).hidden["first"]
    trials = spliced(case.model, _Same(case.batch), ["first"], {"first": 2.0})
    trial = trials.draw(frozenset({"second"})).trial(what, needs=frozenset({"second"}))
    torch.testing.assert_close(trial.clean, hidden[valid])
    expected = what.decode(what.encode(hidden, valid).z)[valid]
    torch.testing.assert_close(trial.reconstruction, expected)
    assert len(trial.code.cost) == (int(valid.sum()) if kind == "mixer" else len(valid))
    splice = At(Where("valid"), Splice(what))
    after = case.model.run(case.batch, {"first": splice, "second": Read()}).hidden["second"]
    assert trial.passes is not None
    torch.testing.assert_close(trial.passes.rows("second")[1], after[valid])
    Downstream(("second",))(trial).backward()
    assert all(parameter.grad is not None for parameter in what.parameters())
