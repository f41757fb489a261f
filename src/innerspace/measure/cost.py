"""What an intervention costs: latency and memory of an intervened pass against a plain one."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from innerspace.interventions import Steer
from innerspace.measure.estimate import Estimate, from_copies
from innerspace.network.model import Interventions, Model
from innerspace.value import Value


@dataclass(frozen=True)
class Cost(Value):
    """Milliseconds per pass (median, interval by bootstrap), their ratio, and microseconds to attach and detach hooks.

    ``plain_bytes`` is what a plain pass allocates on its way, ``extra_bytes`` what an intervened one allocates beyond.
    """

    plain_ms: Estimate
    steered_ms: Estimate
    ratio: Estimate
    hook_us: float
    plain_bytes: int
    extra_bytes: int


@torch.no_grad()
def cost(model: Model, batch: Any, interventions: Interventions, rounds: int = 30) -> Cost:
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

    def median(values: Tensor) -> Estimate:
        return from_copies(float(values.median()), values[draws].median(1).values)

    memory = _allocated(plain)
    return Cost(
        plain_ms=median(pairs[:, 0]),
        steered_ms=median(pairs[:, 1]),
        ratio=median(ratios),
        hook_us=hook_microseconds(model),
        plain_bytes=memory,
        extra_bytes=_allocated(steered) - memory,
    )


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


def _allocated(call: Callable[[], None]) -> int:
    """The bytes that all operators of a call allocate, whether or not they are freed before its end."""
    with _Allocations() as allocations:
        call()
    return allocations.total


class _Allocations(TorchDispatchMode):
    """Adds up the storage of every operator's results that no argument brought along."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        new = {
            leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes()
            for leaf in tree_leaves(result)
            if isinstance(leaf, Tensor)
        }
        self.total += sum(size for place, size in new.items() if place not in given)
        return result


def _seconds(call: Callable[[], None]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
