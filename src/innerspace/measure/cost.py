"""What an intervention costs: latency and memory of an intervened pass against a plain one."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from innerspace.interventions import Steer
from innerspace.measure.estimate import Estimate, from_copies
from innerspace.network.model import Interventions, Model
from innerspace.value import Value


@dataclass(frozen=True)
class Cost(Value):
    """Milliseconds per pass (median, interval by bootstrap), their ratio, and microseconds to attach and detach hooks.

    ``extra_bytes`` is what the intervention holds in memory beyond the network, for one direction its numbers.
    """

    plain_ms: Estimate
    steered_ms: Estimate
    ratio: Estimate
    hook_us: float
    extra_bytes: int


@torch.no_grad()
def cost(model: Model, batch: Any, interventions: Interventions, *, extra_bytes: int, rounds: int = 30) -> Cost:
    """Time plain and intervened passes in turn, so that a change of the machine's speed falls on both.

    The ratio is the median over the pairs of neighboring passes.
    """

    def plain() -> None:
        model.family.forward(model.module, batch)

    def steered() -> None:
        model.run(batch, interventions)

    for warm in (plain, steered):
        warm()
    pairs = torch.tensor([[_seconds(plain), _seconds(steered)] for _ in range(rounds)], dtype=torch.float64) * 1e3
    ratios = pairs[:, 1] / pairs[:, 0]
    draws = torch.randint(rounds, (500, rounds), generator=torch.Generator().manual_seed(0))

    def median(values: torch.Tensor) -> Estimate:
        return from_copies(float(values.median()), values[draws].median(1).values)

    return Cost(median(pairs[:, 0]), median(pairs[:, 1]), median(ratios), hook_microseconds(model), extra_bytes)


@torch.no_grad()
def hook_microseconds(model: Model, rounds: int = 200) -> float:
    """Median time to attach and detach one intervention at the model's first site, in microseconds."""
    site = next(iter(model.sites.values()))
    steer = Steer(torch.zeros(site.width), 0.0)
    times = list[float]()
    for _ in range(rounds):
        start = time.perf_counter()
        try:
            with model.under({site.name: steer}):
                pass
        except RuntimeError:
            # nothing ran inside, so the site rightly counts as unvisited
            times.append(time.perf_counter() - start)
    return float(torch.tensor(times).median()) * 1e6


def _seconds(call: Callable[[], None]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
