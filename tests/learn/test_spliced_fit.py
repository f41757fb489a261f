"""Training on spliced trials: several students, phases, schedules, targets, accumulation, interruptions."""

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from innerspace.decompose import dictionary as dictionaries
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import Gated, JumpReLU, Nonlinearity, ReLU, TopK
from innerspace.language.text import Text
from innerspace.learn.callbacks import Checkpoint, DeadLatents, TargetL0
from innerspace.learn.fit import Callback, FitConfig, Loop, Phase, Record, Student, fit, fit_together
from innerspace.learn.objectives import (
    AuxK,
    Balanced,
    Downstream,
    GateReconstruction,
    OutputKL,
    Reconstruction,
    Sparsity,
)
from innerspace.learn.trials import local
from language.tiny import text
from learn.splicing import language, learner, stream


def four() -> list[Student]:
    later = (Phase(0.5, (Balanced(), Sparsity(0.01)), rate=0.5),)
    return [
        Student(learner(ReLU(), seed=1).float(), (Reconstruction(), Sparsity(0.01)), "resid.0", "local", later),
        Student(learner(TopK(4), seed=2).float(), (OutputKL(), AuxK(4, after=100)), "resid.0", "e2e", rate=2.0),
        Student(learner(JumpReLU(), seed=3).float(), (OutputKL(0.5), Downstream(("resid.2",))), "resid.1", "ds"),
        Student(learner(Gated(), seed=4).float(), (GateReconstruction(), Reconstruction()), "mlp.1", "gated"),
    ]


def test_students_learn_together_exactly_what_they_learn_alone() -> None:
    model = language("gpt2", dtype=torch.float32)
    sites, config = ["resid.0", "resid.1", "mlp.1"], FitConfig(steps=6, accumulate=2, log_every=4)

    def learn(students: list[Student]) -> Loop:
        for student in students:
            with torch.no_grad():
                student.what.get_parameter("encoder_bias")[:6] = -9
        batches = text("right"), text("left", rows=4)
        return fit_together(students, stream(model, sites, *batches), config, (DeadLatents(every=2, after=100),))[0]

    together = learn(four())
    for i, student in enumerate(together.students):
        alone = learn([four()[i]])
        for name, item in alone.students[0].what.state_dict().items():
            assert torch.equal(item, student.what.state_dict()[name]), (student.name, name)
        assert alone.history == [record for record in together.history if record.get("student") == student.name]
    assert any(record.get("dead", 0) for record in together.history)
    assert {record["step"] for record in together.history} == {2, 4, 6}


class Watch(Callback):
    """Notes the rate, the gradient's norm and the terms of every step."""

    def __init__(self) -> None:
        self.rates, self.norms = list[float](), list[float]()

    def after_step(self, loop: Loop, student: Student) -> Record:
        gradients = [p.grad.norm() for p in student.what.parameters() if p.grad is not None]
        self.norms.append(float(torch.stack(gradients).norm()))
        self.rates.append(student.optimizer.param_groups[0]["lr"])
        return {}


def test_a_phase_brings_other_terms_and_another_rate() -> None:
    model, watch = language("gpt2", dtype=torch.float32), Watch()
    later = (Phase(0.25, (OutputKL(), Sparsity(0.1)), rate=0.5), Phase(0.75, (Balanced(),), rate=0.1))
    student = Student(learner(ReLU()).float(), (Reconstruction(), Sparsity(0.1)), later=later, rate=2.0)
    config = FitConfig(steps=8, rate=1e-3, warmup=0, cooldown=0, log_every=1, clip=None)
    loop, _ = fit_together([student], stream(model, ["resid.0"], text()), config, (watch,))
    names = [sorted({*record} - {"step", "loss"}) for record in loop.history]
    assert names == [["reconstruction", "sparsity"]] * 2 + [["outputkl", "sparsity"]] * 4 + [["balanced"]] * 2
    assert watch.rates == pytest.approx([2e-3] * 2 + [1e-3] * 4 + [2e-4] * 2)


def test_phases_are_checked() -> None:
    what, terms = learner(ReLU()), (Reconstruction(),)
    with pytest.raises(ValueError, match="begins inside the fit"):
        Phase(1.0, terms)
    with pytest.raises(ValueError, match="in the order in which they begin"):
        Student(what, terms, later=(Phase(0.6, terms), Phase(0.3, terms)))
    with pytest.raises(ValueError, match="different names, it has none"):
        Student(what, terms, later=(Phase(0.6, ()),))
    with pytest.raises(ValueError, match="names of their own"):
        Loop([Student(what, terms), Student(what, terms)], local(torch.randn(9, 32), 3, 0), FitConfig())
    students = [Student(Dictionary(3, 8, ReLU()), (Reconstruction(), Sparsity(1.0)), later=(Phase(0.9, terms),))]
    with pytest.raises(ValueError, match="the objective has none"):
        fit_together(students, local(torch.randn(9, 3), 3, 0), FitConfig(steps=10), (TargetL0(3),))


def test_the_cosine_is_that_of_the_paper() -> None:
    config = FitConfig(steps=25_000, rate=5e-4, warmup=0.05, schedule="cosine", floor=0.1)
    assert config.rate_at(0) == 0
    assert config.rate_at(1) == pytest.approx(5e-4 / 1250, rel=1e-12)
    assert config.rate_at(1249) == pytest.approx(5e-4 * 1249 / 1250, rel=1e-12)
    assert config.rate_at(1250) == 5e-4
    assert config.rate_at(13_125) == pytest.approx(2.75e-4, rel=1e-12)
    assert config.rate_at(25_000) == pytest.approx(5e-5, rel=1e-12)
    assert all(a > b for a, b in itertools.pairwise(config.rate_at(k) for k in range(1250, 25_001, 50)))


def test_a_step_at_the_rate_zero_changes_nothing() -> None:
    model, what = language("gpt2", dtype=torch.float32), learner(ReLU()).float()
    before = copy.deepcopy(dict(what.named_parameters()))
    config = FitConfig(steps=10, schedule="cosine", warmup=0.5)

    class Stop(Callback):
        def after_step(self, loop: Loop, student: Student) -> Record:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(what, stream(model, ["resid.0"], text()), (OutputKL(),), config, (Stop(),))
    for name, parameter in what.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=1e-7)


def test_the_gradient_is_clipped_as_a_whole_for_every_student() -> None:
    model = language("gpt2", dtype=torch.float32)
    norms = list[list[float]]()
    for clip in (None, 0.01):
        watch = Watch()
        config = FitConfig(steps=2, clip=clip, rate=1e-9)
        fit(learner(ReLU()).float(), stream(model, ["resid.0"], text()), (OutputKL(),), config, (watch,))
        norms.append(watch.norms)
    assert min(norms[0]) > 0.1
    assert norms[1] == pytest.approx([0.01] * 2, rel=1e-3)


@pytest.mark.parametrize("nonlinearity", [ReLU(), TopK(4), JumpReLU(0.5, 0.3)], ids=lambda item: type(item).__name__)
def test_two_half_batches_are_one_batch(nonlinearity: Nonlinearity) -> None:
    model, whole = language("gpt2"), text(rows=8)
    halves = [Text(whole.ids[:4]), Text(whole.ids[4:])]
    objective = (OutputKL(), Reconstruction(0.3), Sparsity(0.01), Downstream(("resid.2",)))
    found = list[Dictionary]()
    for batches, accumulate in (([whole], 1), (halves, 2)):
        what = learner(nonlinearity)
        config = FitConfig(steps=5, rate=1e-2, accumulate=accumulate, log_every=1)
        fit(what, stream(model, ["resid.0"], *batches), objective, config)
        found.append(what)
    for name, item in found[0].state_dict().items():
        # a latent that fired in the first half only is silent since, or not at all
        if name not in ("density", "silent"):
            torch.testing.assert_close(found[1].state_dict()[name], item, rtol=1e-6, atol=1e-8, msg=name)
    assert not torch.allclose(found[0].encoder, learner(nonlinearity).encoder, atol=1e-3)


@pytest.mark.parametrize(
    ("nonlinearity", "coefficient", "target"),
    [(ReLU(), 0.1, 6.0), (JumpReLU(0.1, 0.05), 3e-3, 6.0)],
)
def test_a_target_for_l0_is_reached(nonlinearity: Nonlinearity, coefficient: float, target: float) -> None:
    generator = torch.Generator().manual_seed(3)
    true = F.normalize(torch.randn(40, 16, generator=generator), dim=-1)
    rows = (torch.rand(4000, 40, generator=generator) * (torch.rand(4000, 40, generator=generator) < 0.1)) @ true
    reached = list[float]()
    for callbacks in ((), (TargetL0(target),)):
        what = Dictionary.normalized_for(rows, 48, nonlinearity)
        config = FitConfig(steps=500, rate=5e-3, cooldown=0)
        fit(what, local(rows, 128, 0), (Reconstruction(), Sparsity(coefficient)), config, callbacks)
        reached.append(float(what.encode(rows).z.count_nonzero(-1).float().mean()) / target)
    assert abs(reached[0] - 1) > 0.3
    assert reached[1] == pytest.approx(1, abs=0.2)


class Interrupt(Callback):
    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def close_step(self, loop: Loop, records: Sequence[Record]) -> None:
        if loop.step in self.steps:
            raise KeyboardInterrupt


class Forms(Callback):
    """Notes in which form every student's codes came."""

    def __init__(self) -> None:
        self.sparse = list[bool]()

    def after_step(self, loop: Loop, student: Student) -> Record:
        self.sparse.append(not isinstance(student.trial.code.z, Tensor))
        return {}


def test_an_interrupted_fit_continues_bit_for_bit_through_a_change_of_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dictionaries, "_SMALL", 0)
    monkeypatch.setattr(dictionaries, "_FEW", 0.3)
    model = language("gpt2", dtype=torch.float32)
    config = FitConfig(steps=24, rate=2e-2, warmup=0, log_every=5, accumulate=2)

    def run(folder: Path, *callbacks: Callback) -> tuple[Loop, list[bool]]:
        later = (Phase(0.4, (Balanced(), Sparsity(3.0)), rate=0.5),)
        students = [
            Student(learner(ReLU(), seed=5).float(), (OutputKL(), Sparsity(3.0)), "resid.0", "one", later),
            Student(learner(JumpReLU(), seed=6).float(), (Reconstruction(), Sparsity(1.0)), "resid.1", "two"),
        ]
        batches = [text("left", rows=4), text(), text("right", rows=2)]
        forms = Forms()
        snapshot = Checkpoint(folder / "snapshot.safetensors", every=3)
        calls = (forms, TargetL0(2, gain=0.03), DeadLatents(9, 300), snapshot, *callbacks)
        loop, _ = fit_together(students, stream(model, ["resid.0", "resid.1"], *batches), config, calls)
        return loop, forms.sparse

    whole, forms = run(tmp_path / "whole")
    changes = [step for step in range(1, 24) if forms[2 * step] != forms[2 * step - 2]]
    assert changes
    for step in sorted({changes[0], changes[0] + 1, 17}):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", Interrupt(step))
        torch.randn(step)
    parts, _ = run(tmp_path / "parts")
    assert parts.history == whole.history
    for one, other in zip(parts.students, whole.students, strict=True):
        for name, item in other.what.state_dict().items():
            assert torch.equal(one.what.state_dict()[name], item), (other.name, name)
        assert one.gain == other.gain


def test_a_snapshot_of_another_dictionary_is_refused(tmp_path: Path) -> None:
    rows, config, snapshot = torch.randn(9, 3), FitConfig(steps=2), Checkpoint(tmp_path / "snapshot.safetensors", 1)
    fit(Dictionary(3, 8, JumpReLU(0.1)), local(rows, 3, 0), (Reconstruction(),), config, (snapshot,))
    for other in (Dictionary(3, 8, JumpReLU(0.2)), Dictionary(3, 8, ReLU()), Dictionary(3, 9, JumpReLU(0.1))):
        with pytest.raises(ValueError, match=r"snapshot\.safetensors has another objectives: .*bandwidth"):
            fit(other, local(rows, 3, 0), (Reconstruction(),), config, (snapshot,))


def test_half_precision_trains_what_single_does() -> None:
    model = language("gpt2", dtype=torch.float32)
    losses = list[float]()
    for precision in ("float32", "bfloat16"):
        what = learner(TopK(4)).float()
        trials = stream(model, ["resid.0"], text(rows=8), precision=precision)
        found = fit(what, trials, (OutputKL(), AuxK(4, after=100)), FitConfig(steps=20, rate=1e-2, log_every=20))
        assert {parameter.dtype for parameter in what.parameters()} == {torch.float32}
        losses.append(float(found.history[-1]["outputkl"]))
    assert losses[1] == pytest.approx(losses[0], rel=0.15)
