"""Training by two processes against one, and training that is killed over and over against an uninterrupted one.

The processes are forks of this very file, run as a script, so that torch is imported once for all of them.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from jaxtyping import Bool, Float
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from innerspace.checkpoint import State, load_state, save_state
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import BatchTopK, Gated, JumpReLU, Nonlinearity, ReLU, TopK
from innerspace.decompose.subspaces import Subspaces
from innerspace.learn.callbacks import Callback, Checkpoint, DeadLatents, TargetL0
from innerspace.learn.fit import FitConfig, Loop, Phase, Record, Student, fit_together
from innerspace.learn.merge_rules import PublishedThreshold
from innerspace.learn.merging import Merging, Sampling
from innerspace.learn.neighbor_distance import NeighborDistance, neighborhoods
from innerspace.learn.objectives import AuxK, Downstream, GateReconstruction, OutputKL, Reconstruction, Sparsity
from innerspace.learn.spliced import spliced
from innerspace.learn.trials import Trials, local
from innerspace.network.model import Family, Model
from innerspace.network.site import Site
from innerspace.network.trace import Trace
from innerspace.parallel import Share, all_rows, mean_of_all, wait_for_first
from processes import fork, script


class Reader(nn.Module):
    """A language model of a kind: tokens, a sum over what came before, the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 12)
        self.mix = nn.Linear(12, 12)
        self.final = nn.Linear(12, 12)
        self.unembed = nn.Linear(12, 30, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.unembed(self.final(x + self.mix(x.cumsum(1)).tanh()))


@dataclass(frozen=True, eq=False)
class Padded:
    ids: Tensor
    valid: Tensor


class ReaderFamily(Family):
    def sites(self, module: nn.Module) -> list[Site]:
        return [Site("embed", "embed", 12), Site("mix", "mix", 12), Site("final", "final", 12)]

    def forward(self, module: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        return {"logits": module(batch.ids)}

    def mask(self, batch: Any, site: Site) -> Bool[Tensor, "..."] | None:
        return batch.valid

    def head(self, module: nn.Module) -> Site | None:
        return self.sites(module)[-1]

    def divergence(
        self, module: nn.Module, clean: Trace, other: Trace, chosen: Bool[Tensor, "..."] | None
    ) -> Float[Tensor, ""]:
        unembed = cast(Reader, module).unembed
        one, two = (unembed(trace.hidden["final"][chosen]).log_softmax(-1) for trace in (clean, other))
        return F.kl_div(two, one, log_target=True, reduction="batchmean")


class Sentences:
    """Batches of seven sentences of very different lengths; this process's share of each."""

    def __init__(self, share: Share) -> None:
        self._share, self._at = share, 0

    def next(self) -> Padded:
        generator = torch.Generator().manual_seed(self._at)
        self._at += 1
        ids = torch.randint(30, (7, 11), generator=generator)
        lengths = torch.tensor([11, 2, 9, 1, 10, 3, 8])
        return Padded(self._share.of(ids), self._share.of(torch.arange(11) < lengths[:, None]))

    def state(self) -> State:
        return {"at": self._at}

    def restore(self, state: State) -> None:
        self._at = state["at"]


def rows(width: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    true = torch.randn(3 * width, width, generator=generator, dtype=torch.float64)
    on = torch.rand(700, 3 * width, generator=generator) < 0.1
    return (torch.rand(700, 3 * width, generator=generator) * on).double() @ true


def learner(nonlinearity: Nonlinearity, latents: int = 40, seed: int = 1, dead: int = 10) -> Dictionary:
    what = Dictionary(12, latents, nonlinearity, scale=3.0, seed=seed).double()
    with torch.no_grad():
        what.encoder_bias[:dead] = -9
    return what


def reader(share: Share) -> Trials:
    torch.manual_seed(9)
    model = Model(Reader().double(), ReaderFamily())
    return spliced(model, Sentences(share), ["embed", "mix"], {"embed": 12.0, "mix": 3.0, "final": 9.0})


def rows_of(batch: int) -> Callable[[Share], Trials]:
    return lambda share: local(rows(12), batch, 5, share)


def partitioned(share: Share) -> Trials:
    """An odd number of queries, whose neighbors serve for two draws."""
    return neighborhoods(rows(12), 33, 200, 5, reuse=2, share=share)


Case = tuple[Callable[[Share], Trials], list[Student], FitConfig, tuple[Callback, ...]]


def cases() -> dict[str, Case]:
    config = FitConfig(steps=20, rate=1e-2, log_every=5)
    twice = FitConfig(steps=20, rate=1e-2, log_every=5, accumulate=2, clip=0.5)
    aux, sparsity = AuxK(4, 0.5, after=150), Sparsity(0.05)
    reborn = DeadLatents(every=6, after=300)

    def several() -> list[Student]:
        return [
            Student(learner(TopK(4), 300), (OutputKL(), aux), "embed", "kl"),
            Student(learner(ReLU()), (OutputKL(0.5), Downstream(("final",)), sparsity), "mix", "ds"),
            Student(learner(JumpReLU(0.3, 0.2)), (Reconstruction(), sparsity), "embed", "local"),
        ]

    later = (Phase(0.5, (Reconstruction(), GateReconstruction(2.0), sparsity), rate=0.5),)
    gated = Student(learner(Gated()), (Reconstruction(), GateReconstruction(), sparsity), later=later)
    partition = Student(
        Subspaces.random(12, [4, 4, 4], torch.Generator().manual_seed(3)).double(), (NeighborDistance(),)
    )
    few = Sampling(50, 150)
    return {
        "topk": (rows_of(64), [Student(learner(TopK(4), 300, dead=250), (Reconstruction(), aux))], config, ()),
        "relu": (rows_of(65), [Student(learner(ReLU()), (Reconstruction(), sparsity))], config, (reborn, TargetL0(3))),
        "gated": (rows_of(33), [gated], twice, (reborn,)),
        "neighbors": (partitioned, [partition], twice, (Merging(PublishedThreshold(0.0), 5, 5, sampling=few),)),
        "spliced": (reader, several(), config, ()),
        "spliced twice": (reader, several(), twice, ()),
    }


def learned(case: Case, share: Share) -> dict[str, Any]:
    trials, students, config, callbacks = case
    loop, _ = fit_together(students, trials(share), config, callbacks)
    return {
        "history": loop.history,
        "students": {student.name or "one": student.what.state_dict() for student in students},
    }


def work(folder: Path, rank: int) -> None:
    """What each of the two processes does."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    share = Share.mine()
    assert share == Share(rank, 2)
    found: dict[str, Any] = {name: learned(case, share) for name, case in cases().items()}
    batch_topk = Student(learner(BatchTopK(3), 300), (Reconstruction(), AuxK(4, 0.5, after=150)))
    found["batch_topk"] = learned((rows_of(65), [batch_topk], FitConfig(steps=10), ()), share)
    found["all_rows"] = all_rows(share.of(torch.arange(14.0).reshape(7, 2)))
    found["mean"] = mean_of_all(share.of(torch.arange(7.0)))
    mark = folder / "mark"
    with wait_for_first():
        found["first"] = not mark.exists()
        mark.touch()
    save_state(folder / f"rank{rank}.safetensors", found)
    distributed.destroy_process_group()


def endure(folder: Path, callbacks: tuple[Callback, ...] = ()) -> Loop:
    """A fit of a second or so with a snapshot at every other step."""
    students = [
        Student(learner(ReLU(), dead=20), (OutputKL(), Sparsity(0.05)), "embed", "kl"),
        Student(learner(TopK(3), seed=2), (Reconstruction(), AuxK(4, 0.5, after=150)), "mix", "local"),
    ]
    snapshot = Checkpoint(folder / "snapshot.safetensors", every=2)
    calls = (DeadLatents(every=20, after=300), snapshot, *callbacks)
    loop, _ = fit_together(students, reader(Share()), FitConfig(steps=120, rate=1e-2, log_every=10), calls)
    return loop


def outcome(loop: Loop) -> State:
    return {"history": loop.history, "students": [student.what.state_dict() for student in loop.students]}


def suffer(folder: Path) -> None:
    """Kill the fit at random moments, four times, then let it end; tells at which steps it was found."""
    snapshot, steps, chance = folder / "snapshot.safetensors", list[int](), random.Random(3)
    while True:
        child = fork(lambda: save_state(folder / "end.safetensors", outcome(endure(folder))))
        if len(steps) == 4:
            os.waitpid(child, 0)
            break
        for _ in range(chance.randint(1, 12)):
            wait_for_another(snapshot)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        steps.append(load_state(snapshot)["step"])
    save_state(folder / "steps.safetensors", {"steps": steps})


def wait_for_another(snapshot: Path) -> None:
    """Until the file is a new one."""

    def which() -> tuple[int, ...]:
        return (snapshot.stat().st_mtime_ns, snapshot.stat().st_ino) if snapshot.exists() else ()

    before = which()
    while which() == before:
        time.sleep(0.001)


def numbers(record: Record) -> dict[str, float]:
    return {name: float(value) for name, value in record.items() if not isinstance(value, str)}


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    script(__file__, "together", str(tmp_path))
    both = [load_state(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1)]
    for name, case in cases().items():
        expected = learned(case, Share())
        for found in both:
            for student, state in expected["students"].items():
                for key, item in state.items():
                    here = found[name]["students"][student][key]
                    if key == "silent":
                        assert torch.equal(here, item), (name, student)
                    elif key != "density":
                        torch.testing.assert_close(here, item, rtol=1e-5, atol=1e-6, msg=f"{name} {student} {key}")
            for here, record in zip(found[name]["history"], expected["history"], strict=True):
                assert here.get("student") == record.get("student")
                assert numbers(here) == pytest.approx(numbers(record), rel=1e-5), name
    one, two = (found["batch_topk"]["students"]["one"] for found in both)
    assert all(torch.equal(item, two[key]) for key, item in one.items())
    for found in both:
        assert torch.equal(found["all_rows"], torch.arange(14.0).reshape(7, 2))
        assert found["mean"] == 3.0
    assert [found["first"] for found in both] == [True, False]


def test_a_killed_fit_continues_bit_for_bit(tmp_path: Path) -> None:
    script(__file__, "killed", str(tmp_path))
    whole = endure(tmp_path / "whole")
    steps = load_state(tmp_path / "steps.safetensors")["steps"]
    assert len(steps) == 4
    assert 0 < steps[0] < steps[-1] < 120
    parts, expected = load_state(tmp_path / "end.safetensors"), outcome(whole)
    assert parts["history"] == expected["history"]
    for one, other in zip(parts["students"], expected["students"], strict=True):
        for name, item in other.items():
            assert torch.equal(one[name], item), name


if __name__ == "__main__":
    torch.set_num_threads(1)
    # the first optimizer makes torch import much more of itself, which all forks would do again
    torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "together":
        children = [fork(lambda rank=rank: work(folder, rank)) for rank in (0, 1)]
        sys.exit(max(os.waitpid(child, 0)[1] for child in children) != 0)
    suffer(folder)
