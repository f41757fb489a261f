"""The training loop: terms that are means over rows, planted truth found again, bit-exact continuation, callbacks."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from innerspace.decompose.base import Code, Decomposition
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import JumpReLU, Nonlinearity, ReLU, TopK
from innerspace.learn.callbacks import Bar, Checkpoint, DeadLatents, HeldOut, Log
from innerspace.learn.fit import Callback, Fit, FitConfig, Loop, Record, Student, fit
from innerspace.learn.objectives import AuxK, Objective, Reconstruction, Sparsity, Term
from innerspace.learn.trials import Trial, local
from innerspace.measure.fidelity import explained_variance


def planted(count: int, *, width: int = 24, features: int = 48, on: int = 3) -> tuple[Tensor, Tensor]:
    """True directions, and rows that are sparse positive sums of them about a mean."""
    generator = torch.Generator().manual_seed(5)
    true = F.normalize(torch.randn(features, width, generator=generator), dim=-1)
    chosen = torch.rand(count, features, generator=generator).topk(on).indices
    z = torch.zeros(count, features).scatter_(1, chosen, torch.rand(count, on, generator=generator) + 0.5)
    return true, 4 * (z @ true) + 10 + 0.02 * torch.randn(count, width, generator=generator)


def trial_of(what: Dictionary, clean: Tensor, variance: float = 3.0) -> Trial:
    code = what.encode(clean)
    return Trial(clean, what.decode(code.z), code, what, torch.tensor(variance).to(clean))


def dead_dictionary(nonlinearity: Nonlinearity) -> Dictionary:
    """Latents 0 … 3 never fire."""
    what = Dictionary(5, 12, nonlinearity)
    what.silent[:4] = 10_000
    with torch.no_grad():
        if isinstance(nonlinearity, TopK):
            what.encoder_bias[4:] = 9
        else:
            what.encoder_bias[:4] = -9
    return what


@pytest.mark.parametrize("nonlinearity", [ReLU(), JumpReLU(0.5, 0.3), TopK(3)], ids=lambda item: type(item).__name__)
def test_losses_and_gradients_do_not_change_when_rows_are_repeated(nonlinearity: Nonlinearity) -> None:
    clean = torch.randn(30, 5, dtype=torch.float64)
    objective: Objective = (Reconstruction(), Sparsity(0.1), AuxK(2, 0.5, after=5000))
    found = list[tuple[Tensor, list[Tensor | None]]]()
    for repeats in (1, 3):
        what = dead_dictionary(nonlinearity).double()
        terms = torch.stack([term(trial_of(what, clean.repeat(repeats, 1))) for term in objective])
        terms.sum().backward()
        found.append((terms, [parameter.grad for parameter in what.parameters()]))
    torch.testing.assert_close(found[0], found[1])
    assert found[0][0][0] > 0


def test_reconstruction_is_the_unexplained_variance_of_the_stream() -> None:
    clean = torch.randn(200, 5) * 3 + 7
    what = Dictionary.normalized_for(clean, 12, TopK(2))
    trial = local(clean, 200, seed=0).draw().trial(what)
    expected = 1 - explained_variance(trial.clean, trial.reconstruction.detach())
    assert Reconstruction()(trial).item() == pytest.approx(expected, abs=1e-5)


def test_a_batch_loss_is_the_mean_of_its_halves() -> None:
    what, clean = Dictionary(5, 12, ReLU()), torch.randn(40, 5)
    for term in (Reconstruction(), Sparsity(0.2)):
        halves = [term(trial_of(what, half)) for half in clean.split(20)]
        torch.testing.assert_close(term(trial_of(what, clean)), torch.stack(halves).mean())
    cost = what.encode(clean).z.abs().sum(-1).mean()
    torch.testing.assert_close(Sparsity(0.25)(trial_of(what, clean)), 0.25 * cost)


def test_auxk_is_the_formula_and_moves_dead_latents_only() -> None:
    what, clean = dead_dictionary(TopK(3)), torch.randn(60, 5)
    trial = trial_of(what, clean)
    value = AuxK(2, 0.5, after=5000)(trial)

    pre = trial.code.pre.detach().clone()
    pre[:, 4:] = -torch.inf
    kept = pre.relu() * (pre >= pre.topk(2).values[:, 1:])
    left = trial.clean - trial.reconstruction - kept @ what.directions
    assert value.item() == pytest.approx(0.5 * left.square().sum(-1).mean().item() / 3)
    value.backward()
    for parameter in (what.encoder, what.decoder, what.encoder_bias):
        assert parameter.grad is not None
        moved = parameter.grad.reshape(12, -1).abs().amax(-1) > 0
        assert moved.tolist() == [True] * 4 + [False] * 8


def test_auxk_without_dead_latents_is_the_error_and_has_no_gradient() -> None:
    what, clean = Dictionary(5, 12, TopK(3)), torch.randn(60, 5)
    trial = trial_of(what, clean)
    value = AuxK(2, 1.0)(trial)
    assert value.item() == pytest.approx(Reconstruction()(trial).item())
    assert not value.requires_grad


def drawn(stream_rows: Tensor, seed: int, count: int) -> list[list[float]]:
    what, stream = Dictionary(1, 2, ReLU()), local(stream_rows, 4, seed)
    return [stream.draw().trial(what).clean.flatten().tolist() for _ in range(count)]


def test_every_epoch_visits_rows_once_in_an_order_of_its_own() -> None:
    rows = torch.arange(10.0)[:, None]
    batches = drawn(rows, seed=1, count=6)
    epochs = [batches[i] + batches[i + 1] for i in (0, 2, 4)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert batches == drawn(rows, seed=1, count=6)
    assert batches != drawn(rows, seed=2, count=6)


def test_a_stream_continues_where_it_stood() -> None:
    rows, what = torch.arange(10.0)[:, None], Dictionary(1, 2, ReLU())
    stream = local(rows, 4, seed=1)
    for _ in range(3):
        stream.draw()
    other = local(rows, 4, seed=1)
    other.restore(stream.state())
    for _ in range(4):
        assert torch.equal(other.draw().trial(what).clean, stream.draw().trial(what).clean)
    with pytest.raises(ValueError, match="the stream has batch 5, the one to continue had batch 4"):
        local(rows, 5, seed=1).restore(stream.state())


def test_bad_streams_are_refused() -> None:
    rows = torch.randn(10, 3)
    with pytest.raises(ValueError, match="1 … 10 rows, as many as there are; it has 11"):
        local(rows, 11, seed=0)
    with pytest.raises(ValueError, match="not be negative"):
        local(rows, 2, seed=-1)
    rows[6, 1] = torch.nan
    with pytest.raises(ValueError, match="row 6 is the first of 1"):
        local(rows, 2, seed=0)


def recovery(true: Tensor, what: Dictionary) -> float:
    return (true @ F.normalize(what.directions.detach(), dim=-1).T).amax(1).mean().item()


@pytest.mark.parametrize(
    ("nonlinearity", "objective", "least"),
    [
        (TopK(3), (Reconstruction(),), 0.95),
        (JumpReLU(), (Reconstruction(), Sparsity(0.03)), 0.9),
        (ReLU(), (Reconstruction(), Sparsity(0.15)), 0.9),
    ],
    ids=["TopK", "JumpReLU", "ReLU"],
)
def test_planted_directions_are_found(nonlinearity: Nonlinearity, objective: Objective, least: float) -> None:
    true, rows = planted(11_000)
    what = Dictionary.normalized_for(rows[:10_000], 64, nonlinearity)
    before = recovery(true, what)
    config = FitConfig(steps=400, rate=1e-2)
    found = fit(what, local(rows[:10_000], 128, 0), objective, config, (HeldOut(rows[10_000:], 400),))
    assert before < 0.6
    assert recovery(true, what) > least
    assert found.history[-1]["held_out_explained_variance"] > 0.8
    assert found.history[-1]["held_out_l0"] < 15
    torch.testing.assert_close(what.decoder.norm(dim=-1), torch.ones(64))


class Interrupt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, loop: Loop, student: Student) -> Record:
        if loop.step == self.step:
            raise KeyboardInterrupt
        return {}


class Jitter(Callback):
    """Uses the random generator at every step."""

    def after_step(self, loop: Loop, student: Student) -> Record:
        with torch.no_grad():
            for parameter in student.what.parameters():
                parameter.add_(1e-5 * torch.randn_like(parameter))
        return {}


class Keep(Callback):
    """Keeps the loop for the test to look at."""

    def resume(self, loop: Loop) -> None:
        self.loop = loop


def run(
    folder: Path, *extra: Callback, nonlinearity: Nonlinearity, config: FitConfig | None = None
) -> tuple[Fit, Loop]:
    _, rows = planted(600)
    what = Dictionary.normalized_for(rows, 64, nonlinearity)
    with torch.no_grad():
        what.encoder_bias[:20] = -9
    keep = Keep()
    callbacks: Sequence[Callback] = (
        keep,
        Jitter(),
        DeadLatents(every=12, after=200),
        HeldOut(rows[:100], every=20),
        Checkpoint(folder / "snapshot.safetensors", every=10),
        Log(folder / "log.jsonl"),
        *extra,
    )
    objective = (Reconstruction(), Sparsity(0.003), AuxK(4, after=100))
    config = config or FitConfig(steps=60, log_every=15)
    return fit(what, local(rows, 64, seed=3), objective, config, callbacks), keep.loop


@pytest.mark.parametrize("nonlinearity", [ReLU(), JumpReLU(), TopK(3)], ids=lambda item: type(item).__name__)
def test_an_interrupted_fit_continues_bit_for_bit(nonlinearity: Nonlinearity, tmp_path: Path) -> None:
    whole, whole_loop = run(tmp_path / "whole", nonlinearity=nonlinearity)
    for step in (17, 43):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", Interrupt(step), nonlinearity=nonlinearity)
        torch.randn(step)
    parts, parts_loop = run(tmp_path / "parts", nonlinearity=nonlinearity)

    assert {record["step"] for record in parts.history} >= {12, 15, 20, 60}
    assert any(record.get("dead", 0) > 0 for record in parts.history)
    assert parts.history == whole.history
    for name, item in whole.what.state_dict().items():
        assert torch.equal(parts.what.state_dict()[name], item), name
    moments, expected = parts_loop.students[0].optimizer.state_dict(), whole_loop.students[0].optimizer.state_dict()
    assert moments["param_groups"] == expected["param_groups"]
    for index, state in expected["state"].items():
        assert all(torch.equal(moments["state"][index][name], item) for name, item in state.items())
    assert (tmp_path / "parts/log.jsonl").read_text() == (tmp_path / "whole/log.jsonl").read_text()
    lines = (tmp_path / "whole/log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == whole.history


def test_a_finished_fit_is_not_run_again_nor_taken_for_another(tmp_path: Path) -> None:
    whole, _ = run(tmp_path, nonlinearity=TopK(3))
    again, _ = run(tmp_path, Interrupt(0), nonlinearity=TopK(3))
    assert again.history == whole.history
    assert torch.equal(again.what.directions, whole.what.directions)
    with pytest.raises(ValueError, match=r"snapshot.* has another config"):
        run(tmp_path, nonlinearity=TopK(3), config=FitConfig(steps=61))


def test_a_fit_leaves_the_random_state_and_the_mode_in_order() -> None:
    _, rows = planted(300)
    before = torch.get_rng_state()
    what = Dictionary.normalized_for(rows, 32, TopK(3))
    fit(what, local(rows, 64, 0), (Reconstruction(),), FitConfig(steps=3))
    assert torch.equal(torch.get_rng_state(), before)
    assert not what.training


def test_dead_latents_come_back_to_life() -> None:
    _, rows = planted(4000)
    shares = list[float]()
    for callbacks in ((), (DeadLatents(every=25, after=1500),)):
        what = Dictionary.normalized_for(rows, 64, TopK(3))
        with torch.no_grad():
            what.encoder_bias[:44] = -9
        held_out = HeldOut(rows, 150)
        found = fit(what, local(rows, 128, 0), (Reconstruction(),), FitConfig(steps=150), (*callbacks, held_out))
        shares.append(found.history[-1]["held_out_alive"])
    assert shares[0] < 0.4 < 0.9 < shares[1]


def test_reborn_latents_have_no_momentum() -> None:
    _, rows = planted(200)
    what, keep = Dictionary.normalized_for(rows, 64, ReLU()), Keep()
    with torch.no_grad():
        what.encoder_bias[:40] = -9
    callbacks = (keep, Jitter(), DeadLatents(every=5, after=200), Interrupt(5))
    with pytest.raises(KeyboardInterrupt):
        fit(what, local(rows, 50, 0), (Reconstruction(),), FitConfig(steps=10), callbacks)
    for parameter in (what.encoder, what.decoder):
        momentum = keep.loop.students[0].optimizer.state[parameter]["exp_avg"].norm(dim=-1)
        assert (momentum == 0).tolist() == [True] * 40 + [False] * 24


def test_auxk_brings_dead_latents_back_to_life() -> None:
    _, rows = planted(4000)
    shares = list[float]()
    for objective in ((Reconstruction(),), (Reconstruction(), AuxK(16, after=1500))):
        what = Dictionary.normalized_for(rows, 64, TopK(3))
        with torch.no_grad():
            what.encoder_bias[:44] = -0.6
        config = FitConfig(steps=150, rate=1e-2)
        found = fit(what, local(rows, 128, 0), objective, config, (HeldOut(rows, 150),))
        shares.append(found.history[-1]["held_out_alive"])
    assert shares[0] < 0.5 < 0.7 < shares[1]


def test_the_rate_rises_and_falls() -> None:
    config = FitConfig(steps=10, rate=2.0, warmup=0.3, cooldown=0.4)
    expected = [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 1.6, 1.2, 0.8, 0.4]
    assert [config.rate_at(step) for step in range(10)] == pytest.approx(expected)
    assert FitConfig.from_json(config.to_json()) == config


def test_the_first_step_is_adams() -> None:
    _, rows = planted(64)
    what = Dictionary.normalized_for(rows, 32, ReLU())
    stream = local(rows, 64, 0)
    trial = stream.draw().trial(what)
    (Reconstruction()(trial)).backward()
    before, gradient = what.encoder.detach().clone(), what.encoder.grad
    assert gradient is not None
    gradient = gradient.clone()
    fit(what, stream, (Reconstruction(),), FitConfig(steps=1, rate=0.01, warmup=0.0, cooldown=0.0, clip=None))
    torch.testing.assert_close(what.encoder, before - 0.01 * gradient / (gradient.abs() + 1e-8), atol=1e-6, rtol=1e-3)


def test_the_optimizer_can_begin_anew() -> None:
    class Renew(Callback):
        def after_step(self, loop: Loop, student: Student) -> Record:
            student.what.register_parameter("encoder_bias", torch.nn.Parameter(torch.full((32,), 0.5)))
            loop.reset_optimizer(student)
            return {}

    _, rows = planted(64)
    what = Dictionary.normalized_for(rows, 32, ReLU())
    fit(what, local(rows, 64, 0), (Reconstruction(),), FitConfig(steps=2), (Renew(),))
    assert torch.equal(what.encoder_bias, torch.full((32,), 0.5))


def test_the_bar_shows_the_loss_and_goes_also_after_an_error() -> None:
    _, rows = planted(64)
    bar = Bar(Console(file=(output := io.StringIO()), force_terminal=True, width=80))
    what = Dictionary.normalized_for(rows, 32, TopK(2))
    fit(what, local(rows, 64, 0), (Reconstruction(),), FitConfig(steps=4, log_every=2), (bar,))
    assert "loss 0." in output.getvalue()
    assert "100%" in output.getvalue()
    with pytest.raises(KeyboardInterrupt):
        fit(what, local(rows, 64, 0), (Reconstruction(),), FitConfig(steps=4), (bar, Interrupt(1)))
    assert output.getvalue().rstrip().endswith("\x1b[?25h")


class Identity(Decomposition):
    def __init__(self) -> None:
        super().__init__()
        self.turn = torch.nn.Parameter(torch.eye(3))

    @property
    def parts(self) -> list[slice]:
        return [slice(0, 3)]

    @property
    def directions(self) -> Float[Tensor, "k d"]:
        return self.turn

    def encode(self, x: Float[Tensor, "*rows d"]) -> Code:
        z = x @ self.turn.T
        return Code(z, z, z.new_zeros(z.shape[:-1]))

    def decode(self, z: Float[Tensor, "*rows k"]) -> Float[Tensor, "*rows d"]:
        return z @ self.turn


class Broken(Term):
    def __call__(self, trial: Trial) -> Float[Tensor, ""]:
        return (trial.reconstruction - trial.reconstruction).sum() / 0


def test_bad_fits_are_refused() -> None:
    rows, short = torch.randn(40, 3), FitConfig(steps=2)
    what, stream = Dictionary(3, 8, ReLU()), local(rows, 8, 0)
    with pytest.raises(ValueError, match="different names, it has none"):
        fit(what, stream, (), short)
    with pytest.raises(ValueError, match="different names, it has sparsity, sparsity"):
        fit(what, stream, (Sparsity(0.1), Sparsity(0.2)), short)
    with pytest.raises(ValueError, match=r"not finite at step 2: \{'broken': nan\}"):
        fit(what, stream, (Broken(),), short)
    with pytest.raises(ValueError, match="have width 3, the dictionary reads width 4"):
        fit(Dictionary(4, 8, ReLU()), stream, (Reconstruction(),), short)
    with pytest.raises(ValueError, match="judges a Dictionary, not a Identity"):
        fit(Identity(), stream, (AuxK(2),), short)
    with pytest.raises(ValueError, match="of a Dictionary, not of a Identity"):
        fit(Identity(), stream, (Reconstruction(),), short, (DeadLatents(1, 1),))
    with pytest.raises(ValueError, match="shares of the steps"):
        FitConfig(warmup=0.6, cooldown=0.6)
    with pytest.raises(ValueError, match="should be positive"):
        FitConfig(steps=0)


def test_any_decomposition_is_fitted_by_the_same_loop() -> None:
    rows, what = torch.randn(200, 3), Identity()
    with torch.no_grad():
        what.turn.add_(0.3 * torch.randn(3, 3))
    found = fit(what, local(rows, 50, 0), (Reconstruction(),), FitConfig(steps=300, rate=0.02), (HeldOut(rows, 300),))
    assert found.history[-1]["held_out_explained_variance"] > 0.999
