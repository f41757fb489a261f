"""One exact training step of a sparse autoencoder next to other libraries' own: CPU-seconds, wall time and memory.

A step is forward, backward, optimizer and the bookkeeping of latents that do not fire, at d = 768, n = 6,144, k = 32
and 2,048 rows. Each contender is a process of its own; all that know a kind wait until they are asked for a few steps,
in turn, several times, so that a change of the machine's speed falls on all. Repeats during which other processes took
more than 5 % of the machine are left out, unless all are. CPU-seconds are those of all threads together.

Peers are looked for in another interpreter's packages, and plain PyTorch is always there:

    pip install sae-lens eai-sparsify dictionary-learning overcomplete      # in an environment of their own
    python benchmarks/dictionary_step.py --peers PEERS/bin/python           # or INNERSPACE_PEERS=PEERS/bin/python
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro
from contenders import CONTENDERS, Kind, Task
from recording import machine, save
from torch.nn import functional as F

_TITLES: dict[Kind, str] = {
    "topk": "TopK",
    "batch_topk": "BatchTopK",
    "relu": "ReLU and L1 at the start of training",
    "relu_sparse": "ReLU and L1 when few latents are on",
}


@dataclass(frozen=True)
class Target:
    """The least ratio of a peer's CPU-seconds to ours; ``peer`` None stands for every peer."""

    kind: Kind
    ours: str
    peer: str | None
    least: float


_TARGETS = (
    Target("topk", "innerspace", "sae-lens", 6.0),
    Target("topk", "innerspace", "eai-sparsify", 1.8),
    Target("topk", "innerspace bfloat16", "sae-lens", 12.0),
    Target("topk", "innerspace bfloat16", "eai-sparsify", 4.0),
    Target("batch_topk", "innerspace", "sae-lens", 6.0),
    Target("relu", "innerspace", None, 1.2),
    Target("relu_sparse", "innerspace", None, 2.0),
)


@dataclass(frozen=True)
class Row:
    """What a contender's step cost: milliseconds, their ratio to the first row's, and bytes."""

    contender: str
    version: str
    cpu: float
    cpu_median: float
    wall: float
    wall_median: float
    clean: int
    repeats: int
    beyond: int
    peak: int


class Entrant:
    """A contender's process, ready to take steps."""

    def __init__(self, name: str, python: str, task: Task) -> None:
        command = [python, str(Path(__file__).with_name("contenders.py")), name, json.dumps(asdict(task))]
        environment = os.environ | {"OMP_NUM_THREADS": str(task.threads), "WANDB_MODE": "disabled"}
        self.name, self.answers = name, list[dict[str, Any]]()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
        self._process = subprocess.Popen(command, **pipes, text=True, env=environment)

    def hear(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            RuntimeError: with the end of the log, if the process is gone.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"{self.name} stopped: {self._log.read()[-2000:]}")
        return json.loads(line)

    def take(self, steps: int) -> dict[str, Any]:
        """Let it take steps, and hear what they cost."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self.hear()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
        self._log.close()


def hidden_states(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """Sixteen of 8 · width directions per row, some far more frequent than others, a mean, noise; E‖x‖² = width."""
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(8 * width, width, generator=generator), dim=-1)
    frequency = 1 / torch.arange(1.0, 8 * width + 1)
    chosen = torch.multinomial(frequency.expand(count, -1), 16, generator=generator)
    weights = 0.5 + torch.rand(count, 16, generator=generator)
    x = F.embedding_bag(chosen, directions, per_sample_weights=weights, mode="sum")
    x += 0.5 * directions[-1] + 0.02 * torch.randn(count, width, generator=generator)
    return x * (width / x.square().sum(-1).mean()).sqrt()


def installed(python: str | None) -> set[str]:
    """The distributions of contenders that an interpreter finds."""
    if python is None:
        return set()
    packages = sorted({contender.package for contender in CONTENDERS.values()})
    look = (
        "import importlib.metadata as m, json, sys; print(json.dumps([d.metadata['Name'] for d in m.distributions()]))"
    )
    found = json.loads(subprocess.run([python, "-c", look], capture_output=True, text=True, check=True).stdout)
    names = {name.lower().replace("_", "-") for name in found if name}
    return {package for package in packages if package in names}


def compete(kind: Kind, task: Task, pythons: dict[str, str], rounds: int, seconds: float) -> list[Row]:
    """All contenders of a kind, in turn."""
    entrants = [Entrant(name, python, task) for name, python in pythons.items() if kind in CONTENDERS[name].kinds]
    versions, steps = dict[str, str](), dict[str, int]()
    for entrant in tuple(entrants):
        try:
            versions[entrant.name] = entrant.hear()["version"]
            # the first steps allocate what stays, the next tell how many make a repeat
            entrant.take(2)
            steps[entrant.name] = max(2, math.ceil(seconds / min(entrant.take(1)["wall"])))
        except RuntimeError as error:
            print(f"left out: {error}")
            entrants.remove(entrant)
    for _ in range(rounds):
        for entrant in entrants:
            entrant.answers.append(entrant.take(steps[entrant.name]))
    for entrant in entrants:
        entrant.close()
    return [_row(entrant, versions[entrant.name]) for entrant in entrants]


def _row(entrant: Entrant, found: str) -> Row:
    quiet = [answer for answer in entrant.answers if answer["others"] < 0.05]
    used = quiet or entrant.answers
    cpu, wall = ([1e3 * t for answer in used for t in answer[what]] for what in ("cpu", "wall"))
    peak, beyond = (max(answer[what] for answer in entrant.answers) for what in ("peak", "beyond"))
    times = (min(cpu), median(cpu), min(wall), median(wall))
    return Row(entrant.name, found, *times, len(quiet), len(entrant.answers), beyond, peak)


def table(kind: Kind, rows: Sequence[Row]) -> list[str]:
    """A table in markdown; ratios are CPU-seconds next to those of the first row."""
    lines = [f"### {_TITLES[kind]}", ""]
    lines.append(
        "| | CPU ms, least | median | wall ms, least | median | CPU / ours | MB beyond data | MB peak | clean |"
    )
    lines.append("|---|" + 8 * "--:|")
    for row in rows:
        times = f"{row.cpu:.0f} | {row.cpu_median:.0f} | {row.wall:.0f} | {row.wall_median:.0f}"
        memory = f"{row.beyond / 1e6:.0f} | {row.peak / 1e6:.0f}"
        ratio = row.cpu / rows[0].cpu
        name = f"{row.contender} ({row.version})"
        lines.append(f"| {name} | {times} | {ratio:.2f} | {memory} | {row.clean} of {row.repeats} |")
    return [*lines, ""]


def verdicts(results: dict[Kind, list[Row]]) -> list[str]:
    """What the figures to reach ask for, and what came out."""
    lines = ["| figure to reach | least | found |", "|---|--:|--:|"]
    for target in _TARGETS:
        rows = {row.contender: row for row in results.get(target.kind, [])}
        peers = {name: row for name, row in rows.items() if not name.startswith(("innerspace", "plain"))}
        compared = peers if target.peer is None else {name: peers[name] for name in peers if name == target.peer}
        if target.ours not in rows or not compared:
            continue
        name, ratio = min(
            ((name, row.cpu / rows[target.ours].cpu) for name, row in compared.items()), key=lambda x: x[1]
        )
        lines.append(f"| {_TITLES[target.kind]}, {target.ours} before {name} | {target.least:g} | {ratio:.2f} |")
    top = {row.contender: row for row in results.get("topk", [])}
    for name in ("sae-lens", "eai-sparsify"):
        if name in top:
            ratio = top[name].beyond / top["innerspace"].beyond
            lines.append(f"| TopK, memory of {name} next to ours | 2 | {ratio:.2f} |")
    return [*lines, ""]


def main(
    peers: str | None = os.environ.get("INNERSPACE_PEERS"),
    kinds: tuple[Kind, ...] = ("topk", "batch_topk", "relu", "relu_sparse"),
    only: tuple[str, ...] = (),
    width: int = 768,
    latents: int = 6144,
    k: int = 32,
    batch: int = 2048,
    share: float = 0.025,
    threads: int = 2,
    rounds: int = 5,
    seconds: float = 0.5,
    record: bool = True,
) -> None:
    """Compare; ``only`` some contenders, and each repeat at least ``seconds`` long."""
    there = installed(peers)
    pythons = dict[str, str]()
    for name, contender in CONTENDERS.items():
        if only and name not in only:
            continue
        if contender.package in ("innerspace", "torch"):
            pythons[name] = sys.executable
        elif peers is not None and contender.package in there:
            pythons[name] = peers
        else:
            print(f"{name} is missing: {contender.package} is not among the packages of --peers {peers}")
    results = dict[Kind, list[Row]]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        np.save(path, hidden_states(8 * batch, width).numpy())
        for kind in kinds:
            task = Task(kind, str(path), latents, k, batch, share, threads)
            results[kind] = compete(kind, task, pythons, rounds, seconds)
            print("\n".join([*table(kind, results[kind]), *verdicts({kind: results[kind]})]), flush=True)
    if record:
        header = machine(threads) | {"d": width, "n": latents, "k": k, "rows": batch}
        found = {kind: [asdict(row) for row in rows] for kind, rows in results.items()}
        tables = [line for kind, rows in results.items() for line in table(kind, rows)]
        title = "One training step of a sparse autoencoder"
        save("dictionary_step", title, header, found, [*tables, *verdicts(results)])


if __name__ == "__main__":
    tyro.cli(main)
