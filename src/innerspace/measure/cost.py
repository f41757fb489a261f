"""What an intervention costs: latency and memory of an intervened pass against a plain one."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from innerspace.interventions import At, Steer
from innerspace.measure.estimate import Estimate, from_copies
from innerspace.network.model import Interventions, Model
from innerspace.network.site import Where
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


@dataclass(frozen=True)
class SiteCost(Value):
    """What steering at one site costs: the time of a steered pass over that of a plain one, and bytes beyond it.

    ``ratio`` is the median over pairs of neighboring passes with an interval by bootstrap, ``added_ms`` the median of
    their differences. ``extra_bytes`` is what the steered pass allocates beyond the plain one, ``peak_bytes`` by how
    much its peak of memory is higher, which only a GPU tells.
    """

    site: str
    ratio: Estimate
    added_ms: Estimate
    extra_bytes: int
    peak_bytes: int | None


@dataclass(frozen=True)
class SitesCost(Value):
    """The cost of steering at every site of a network, on the device where it is."""

    device: str
    rows: int
    plain_ms: Estimate
    sites: tuple[SiteCost, ...]


@torch.no_grad()
def cost_by_site(model: Model, batch: Any, rows: int, rounds: int = 5) -> SitesCost:
    """Steer every valid position by one vector of ones at each site in turn, on the device of the network.

    Every round runs a plain pass before each steered one, so that a change of the machine's speed falls on both. The
    batch of ``rows`` rows should lie on the network's device.

    Raises:
        ValueError: for fewer than three rounds.
    """
    if rounds < 3:
        raise ValueError(f"a median needs at least 3 rounds, given {rounds}")
    device = next(model.module.parameters()).device

    def plain() -> None:
        model.family.forward(model.module, batch)

    def steered(site: str) -> Callable[[], None]:
        plan = {site: At(Where("valid"), Steer(torch.ones(model.site(site).width, device=device), 0.1))}

        def run() -> None:
            model.run(batch, plan)

        return run

    calls = {site: steered(site) for site in model.sites}
    # the first pass of each measures memory, and warms it up
    memory, peak = _allocated(plain), _peak(plain, device)
    extra = {site: _allocated(call) - memory for site, call in calls.items()}
    peaks = {site: None if peak is None else (_peak(call, device) or 0) - peak for site, call in calls.items()}
    times = [[(_seconds(plain), _seconds(call)) for call in calls.values()] for _ in range(rounds)]
    pairs = torch.tensor(times, dtype=torch.float64) * 1e3
    draws = torch.randint(rounds, (500, rounds), generator=torch.Generator().manual_seed(0))

    def median(values: Tensor) -> Estimate:
        return from_copies(float(values.median()), values[draws].median(1).values)

    return SitesCost(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        rows=rows,
        plain_ms=median(pairs[:, :, 0].median(1).values),
        sites=tuple(
            SiteCost(site, median(after / before), median(after - before), extra[site], peaks[site])
            for site, before, after in zip(calls, pairs[:, :, 0].T, pairs[:, :, 1].T, strict=True)
        ),
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


def _peak(call: Callable[[], None], device: torch.device) -> int | None:
    """The most memory that is held at once during a call, beyond what is held before; None but on a GPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


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
