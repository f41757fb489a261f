"""One training step of a sparse autoencoder, as this library and others do it; a process of its own for each.

Started by ``dictionary_step.py`` in whichever interpreter has the library in question, with a contender's name and a
task in JSON. Every line that comes in asks for so many steps; the line that goes out tells what each has cost. All
contenders train on the same rows in the same order, by the step code that their library gives its users.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

Kind = Literal["topk", "batch_topk", "relu", "relu_sparse"]
_RATE = 1e-5
"""So small that what is measured does not change while it is measured."""
_FOREVER = 10**6
"""Steps that no measurement reaches."""


@dataclass(frozen=True)
class Task:
    """What is trained; ``rows`` is a file of hidden states, ``share`` that of latents on in ``relu_sparse``."""

    kind: Kind
    rows: str
    latents: int
    k: int
    batch: int
    share: float
    threads: int


def ours(task: Task, rows: Tensor, feed: Iterator[Tensor], *, lowered: bool = False) -> None:
    """The library's own loop, products in bfloat16 where ``lowered``; parameters and their gradients in float32."""
    from innerspace.decompose.base import Decomposition
    from innerspace.decompose.dictionary import Dictionary, moments
    from innerspace.decompose.nonlinearities import BatchTopK, ReLU, TopK
    from innerspace.learn.fit import FitConfig, fit
    from innerspace.learn.objectives import Reconstruction, Sparsity
    from innerspace.learn.trials import Occasion, Trial, Trials

    variance = moments(rows)[1]

    class Drawn(Occasion):
        def __init__(self, rows: Tensor) -> None:
            self.rows = rows

        def trial(self, what: Decomposition, site: str = "", needs: Any = frozenset()) -> Trial:
            with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
                code = what.code(self.rows)
                reconstruction = what.decode(code.z)
            return Trial(self.rows, reconstruction, code, what, variance)

    class Fed(Trials):
        def draw(self, needs: Any = frozenset()) -> Occasion:
            return Drawn(next(feed))

        def state(self) -> Any:
            raise NotImplementedError

        def restore(self, state: Any) -> None:
            raise NotImplementedError

    relu = task.kind.startswith("relu")
    nonlinearity = ReLU() if relu else TopK(task.k) if task.kind == "topk" else BatchTopK(task.k)
    what = Dictionary.normalized_for(rows, task.latents, nonlinearity)
    if task.kind == "relu_sparse":
        _rarely_on(task, (rows - what.mean) / what.scale, what.encoder, what.encoder_bias)
    objective = (Reconstruction(), Sparsity(1e-3)) if relu else (Reconstruction(),)
    fit(what, Fed(), objective, FitConfig(steps=_FOREVER, rate=_RATE, warmup=0, log_every=_FOREVER))


def ours_lowered(task: Task, rows: Tensor, feed: Iterator[Tensor]) -> None:
    """The library's own loop with products in bfloat16."""
    ours(task, rows, feed, lowered=True)


def plain(task: Task, rows: Tensor, feed: Iterator[Tensor]) -> None:
    """What one writes first: a dense code, autograd, Adam as it comes."""
    torch.manual_seed(0)
    decoder = nn.Parameter(nn.functional.normalize(torch.randn(task.latents, rows.shape[1]), dim=-1))
    encoder, before = nn.Parameter(decoder.detach().clone()), nn.Parameter(torch.zeros(task.latents))
    after = nn.Parameter(torch.zeros(rows.shape[1]))
    if task.kind == "relu_sparse":
        _rarely_on(task, rows, encoder, before)
    optimizer = torch.optim.Adam([encoder, before, decoder, after], lr=_RATE)
    silent = torch.zeros(task.latents, dtype=torch.int64)
    for x in feed:
        pre = (x - after) @ encoder.T + before
        z, penalty = pre.relu(), 0.0
        match task.kind:
            case "topk":
                best = z.topk(task.k, dim=-1)
                z = torch.zeros_like(z).scatter(-1, best.indices, best.values)
            case "batch_topk":
                best = z.flatten().topk(task.k * len(x))
                z = torch.zeros_like(z).flatten().scatter(0, best.indices, best.values).view_as(z)
            case _:
                penalty = 1e-3 * z.sum(-1).mean()
        loss = (x - (z @ decoder + after)).square().sum(-1).mean() + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=-1, keepdim=True)
            silent += len(x)
            silent[(z > 0).any(0)] = 0


def sae_lens(task: Task, rows: Tensor, feed: Iterator[Tensor], *, autocast: bool = False) -> None:
    """``SAETrainer.step``, nothing logged."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes import batchtopk_sae, standard_sae, topk_sae
    from sae_lens.training.sae_trainer import SAETrainer

    size = {"d_in": rows.shape[1], "d_sae": task.latents}
    match task.kind:
        case "topk":
            what = topk_sae.TopKTrainingSAE(topk_sae.TopKTrainingSAEConfig(k=task.k, **size))
        case "batch_topk":
            what = batchtopk_sae.BatchTopKTrainingSAE(batchtopk_sae.BatchTopKTrainingSAEConfig(k=task.k, **size))
        case _:
            what = standard_sae.StandardTrainingSAE(standard_sae.StandardTrainingSAEConfig(l1_coefficient=1e-3, **size))
    if task.kind == "relu_sparse":
        _rarely_on(task, rows, what.W_enc.T, what.b_enc)
    config = SAETrainerConfig(_FOREVER * task.batch, task.batch, lr=_RATE, lr_end=_RATE, autocast=autocast)
    trainer = SAETrainer(config, what, iter(()))
    for x in feed:
        trainer.step(x)
        trainer.n_training_steps += 1


def sae_lens_autocast(task: Task, rows: Tensor, feed: Iterator[Tensor]) -> None:
    """The same with its own ``autocast`` to bfloat16."""
    sae_lens(task, rows, feed, autocast=True)


def sparsify(task: Task, rows: Tensor, feed: Iterator[Tensor]) -> None:
    """``Trainer.fit`` with Adam, at a network that hands the rows out."""
    from sparsify import SparseCoderConfig, TrainConfig, Trainer

    sequences = 8
    shape = (sequences, task.batch // sequences, rows.shape[1])

    class Source(nn.Module):
        device, config = torch.device("cpu"), SimpleNamespace(num_hidden_layers=1)

        def __init__(self) -> None:
            super().__init__()
            self.site = nn.Identity()
            self.dummy_inputs = {"ids": None}

        @property
        def base_model(self) -> nn.Module:
            return self

        def forward(self, ids: Tensor | None) -> Tensor:
            return self.site(torch.zeros(1, 1, shape[2]) if ids is None else next(feed).view(shape))

    class Tokens:
        def __len__(self) -> int:
            return sequences * _FOREVER

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            return {"input_ids": torch.zeros(shape[1], dtype=torch.int64)}

    coder = SparseCoderConfig(num_latents=task.latents, k=task.k)
    options = {"hookpoints": ["site"], "optimizer": "adam", "lr": _RATE, "log_to_wandb": False, "save_every": _FOREVER}
    os.chdir(tempfile.gettempdir())
    Trainer(TrainConfig(coder, batch_size=sequences, **options), Tokens(), Source()).fit()


def dictionary_learning(task: Task, rows: Tensor, feed: Iterator[Tensor]) -> None:
    """``trainer.update`` of the trainer of this kind."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    common = {"steps": _FOREVER, "activation_dim": rows.shape[1], "dict_size": task.latents, "lr": _RATE}
    common |= {"layer": 0, "lm_name": "", "seed": 0, "device": "cpu", "warmup_steps": 1}
    match task.kind:
        case "topk":
            trainer = TopKTrainer(k=task.k, **common)
        case "batch_topk":
            trainer = BatchTopKTrainer(k=task.k, **common)
        case _:
            trainer = StandardTrainer(
                l1_penalty=1e-3, resample_steps=_FOREVER - 1, sparsity_warmup_steps=None, **common
            )
    if task.kind == "relu_sparse":
        _rarely_on(task, rows, trainer.ae.encoder.weight, trainer.ae.encoder.bias)
    # from step 1 on, for the first alone begins with a geometric median
    for step, x in enumerate(feed, 1):
        trainer.update(step, x)


def overcomplete(task: Task, rows: Tensor, feed: Iterator[Tensor]) -> None:
    """``train_sae`` without its optional statistics."""
    from overcomplete.sae import SAE, TopKSAE
    from overcomplete.sae.losses import mse_l1
    from overcomplete.sae.train import train_sae

    relu = task.kind.startswith("relu")
    what = SAE(rows.shape[1], task.latents) if relu else TopKSAE(rows.shape[1], task.latents, top_k=task.k)
    if task.kind == "relu_sparse":
        linear = what.encoder.final_block[0]
        _rarely_on(task, rows, linear.weight, linear.bias)

    def squared(x: Tensor, x_hat: Tensor, pre: Tensor, z: Tensor, dictionary: Tensor) -> Tensor:
        return (x - x_hat).square().mean()

    optimizer = torch.optim.Adam(what.parameters(), lr=_RATE)
    train_sae(what, feed, mse_l1 if relu else squared, optimizer, nb_epochs=1, monitoring=0)


@dataclass(frozen=True)
class Contender:
    """What trains, the distribution and the modules that it takes, and the kinds that it knows."""

    train: Callable[[Task, Tensor, Iterator[Tensor]], None]
    package: str
    modules: tuple[str, ...]
    kinds: tuple[Kind, ...]


_ALL: tuple[Kind, ...] = ("topk", "batch_topk", "relu", "relu_sparse")
_OURS, _LENS = ("innerspace.learn.fit", "innerspace.learn.objectives"), ("sae_lens.training.sae_trainer",)
CONTENDERS = {
    "innerspace": Contender(ours, "innerspace", _OURS, _ALL),
    "innerspace bfloat16": Contender(ours_lowered, "innerspace", _OURS, ("topk", "batch_topk")),
    "plain PyTorch": Contender(plain, "torch", (), _ALL),
    "sae-lens": Contender(sae_lens, "sae-lens", _LENS, _ALL),
    "sae-lens autocast": Contender(sae_lens_autocast, "sae-lens", _LENS, ("topk",)),
    "eai-sparsify": Contender(sparsify, "eai-sparsify", ("sparsify",), ("topk",)),
    "dictionary-learning": Contender(
        dictionary_learning, "dictionary-learning", ("dictionary_learning.trainers.standard",), _ALL
    ),
    "overcomplete": Contender(
        overcomplete, "overcomplete", ("overcomplete.sae.train",), ("topk", "relu", "relu_sparse")
    ),
}


def _rarely_on(task: Task, rows: Tensor, encoder: Tensor, bias: Tensor) -> None:
    """Lower the biases of all latents alike until ``task.share`` of the entries are on."""
    with torch.no_grad():
        pre = rows[:: max(1, len(rows) // 512)] @ encoder.T + bias
        bias -= pre.flatten().kthvalue(int(pre.numel() * (1 - task.share))).values


def _memory(field: str) -> int:
    """Bytes that the process holds (``VmRSS``), or held at most (``VmHWM``)."""
    return 1024 * next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith(field))


def _busy() -> float:
    """Seconds that all processes of the machine have computed for."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def _feed(task: Task, rows: Tensor, before: int, answer: Callable[[dict[str, Any]], None]) -> Iterator[Tensor]:
    """Batches, as many as are asked for; from one to the next is a step."""
    turn = 0
    while request := sys.stdin.readline():
        busy, clock = _busy(), [(time.process_time(), time.perf_counter())]
        for _ in range(int(request)):
            yield rows[turn * task.batch % len(rows) :][: task.batch]
            turn += 1
            clock.append((time.process_time(), time.perf_counter()))
        cpu, wall = (torch.tensor(clock, dtype=torch.float64).diff(dim=0)).T.tolist()
        others = max(0.0, _busy() - busy - sum(cpu)) / sum(wall) / (os.cpu_count() or 1)
        peak = _memory("VmHWM")
        answer({"cpu": cpu, "wall": wall, "others": others, "peak": peak, "beyond": peak - before})
    raise SystemExit


def main() -> None:
    """Take part: argv is a contender's name and its task."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    contender, task = CONTENDERS[sys.argv[1]], Task(**json.loads(sys.argv[2]))
    torch.set_num_threads(task.threads)

    def answer(what: dict[str, Any]) -> None:
        channel.write(json.dumps(what) + "\n")
        channel.flush()

    for module in contender.modules:
        import_module(module)
    torch.optim.Adam([torch.zeros(1)])  # imports as well
    rows = torch.from_numpy(np.load(task.rows))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = _memory("VmRSS")
    answer({"version": version(contender.package), "torch": torch.__version__})
    contender.train(task, rows, _feed(task, rows, before, answer))


if __name__ == "__main__":
    main()
