"""One step of alignment by the frame itself next to the usual way, the exponential of a d × d matrix: CPU time.

A step is all that comes after the gradient with respect to the k rows is known: backward through the parametrization,
projection, Adam, retraction, and the rows anew. The usual implementations of distributed alignment search keep a whole
rotation, ``torch.nn.utils.parametrizations.orthogonal`` of a d × d weight with ``matrix_exp``, of which k rows are
used; one with k columns as products of Householder reflections is shown as well. All take turns, several times.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median

import torch
import tyro
from recording import machine, save
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from innerspace.learn.alignment import Frame

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """Milliseconds of a step: the least, and the median; ``times`` how much longer than ours by the least."""

    size: int
    way: str
    least: float
    median: float
    times: float
    departure: float


def framed(width: int, size: int) -> Step:
    """The frame: tangent, Adam, Gram-Schmidt."""
    frame = Frame.random(width, size, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(frame.parameters(), lr=1e-3, fused=True)

    def step(gradient: Tensor) -> Tensor:
        optimizer.zero_grad()
        frame.directions.backward(gradient)
        frame.project_gradient()
        optimizer.step()
        frame.retract()
        return frame.directions

    return step


def exponential(width: int, size: int) -> Step:
    """A whole rotation by the exponential of a skew matrix; the first rows are used."""
    module = orthogonal(nn.Linear(width, width, bias=False), orthogonal_map="matrix_exp")
    return _parametrized(module, lambda: module.weight[:size])


def householder(width: int, size: int) -> Step:
    """As many columns by Householder reflections."""
    module = orthogonal(nn.Linear(size, width, bias=False), orthogonal_map="householder")
    return _parametrized(module, lambda: module.weight.T)


def _parametrized(module: nn.Module, rows: Callable[[], Tensor]) -> Step:
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)
    # the rows of a step are those that the one before has made, as a pass uses them
    held = [rows()]

    def step(gradient: Tensor) -> Tensor:
        optimizer.zero_grad()
        held[0].backward(gradient)
        optimizer.step()
        held[0] = rows()
        return held[0]

    return step


WAYS: dict[str, Callable[[int, int], Step]] = {
    "innerspace": framed,
    "matrix_exp": exponential,
    "householder": householder,
}


def measure(step: Step, gradients: list[Tensor], seconds: float) -> list[float]:
    """CPU-milliseconds of single steps, for some seconds and twice at least."""
    found, until = list[float](), time.perf_counter() + seconds
    while len(found) < 2 or time.perf_counter() < until:
        gradient = gradients[len(found) % len(gradients)]
        began = time.process_time()
        step(gradient)
        found.append(1e3 * (time.process_time() - began))
    return found


def main(
    width: int = 768,
    sizes: tuple[int, ...] = (1, 16, 64),
    rounds: int = 3,
    seconds: float = 1.0,
    threads: int = 1,
    record: bool = True,
) -> None:
    """Compare at every size, each way in turn for ``seconds`` in each of ``rounds``."""
    torch.set_num_threads(threads)
    rows = list[Row]()
    for size in sizes:
        generator = torch.Generator().manual_seed(size)
        gradients = [torch.randn(size, width, generator=generator) for _ in range(8)]
        steps = {name: make(width, size) for name, make in WAYS.items()}
        taken: dict[str, list[float]] = {name: [] for name in steps}
        for step in steps.values():
            step(gradients[0])
        for _ in range(rounds):
            for name, step in steps.items():
                taken[name] += measure(step, gradients, seconds)
        ours = min(taken["innerspace"])
        for name, step in steps.items():
            after = step(gradients[0]).detach().double()
            departure = float((after @ after.T - torch.eye(size)).abs().max())
            least = min(taken[name])
            rows.append(Row(size, name, least, median(taken[name]), least / ours, departure))
    lines = [
        "| k | way | CPU ms, least | median | times ours | departure of B Bᵀ from 1 |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        times = f"{row.least:.3f} | {row.median:.3f} | {row.times:.0f}"
        lines.append(f"| {row.size} | {row.way} | {times} | {row.departure:.0e} |")
    if record:
        header = machine(threads) | {"d": width}
        save("alignment_step", "One step of alignment", header, [asdict(row) for row in rows], lines)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    tyro.cli(main)
