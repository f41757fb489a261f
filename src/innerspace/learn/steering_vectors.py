"""Control vectors by what they do: directions that change chosen readouts of the output linearly, and others not.

Estimators of ``learn/solve.py`` ask where a feature is written; this one asks where writing changes the output as it
should. For directions v₁ … v_k, readouts r_m with spreads σ_m, and temperatures τ drawn evenly from [−1, 1]ᵏ by row,

    minimize  E Σ_m h((r_m(x + Σᵢ τᵢ vᵢ) − r_m(x) − Σᵢ τᵢ g_im) / σ_m),    h(e) = √(1 + e²) − 1,

where g_im is what τᵢ = 1 should change in readout m: the gain of the direction's own readout, and 0 for all others. The
network stays as it is; gradients reach the directions only. Every second draw moves one direction alone.

Steering vectors by gradient: Subramani, Suresh and Peters, "Extracting Latent Steering Vectors from Pretrained Language
Models", ACL Findings 2022; here without a target text, and with what should stay written into the loss.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Adam

from innerspace.interventions import At, Steer
from innerspace.network.model import Fork, Model
from innerspace.network.site import Where
from innerspace.value import Value

Measured = Callable[[Mapping[str, Tensor], Any], Mapping[str, Float[Tensor, "rows"]]]
"""From an output and its batch to numbers per row, differentiable in the output; NaN where undefined."""


@dataclass(frozen=True)
class Wanted(Value):
    """What one unit of a direction should do: change ``readout`` by ``gain``, relative to its value if ``relative``.

    Relative gains are shares: 0.5 is half as much again. Rows whose readout is below ``least`` are not asked.
    """

    readout: str
    gain: float
    relative: bool = False
    least: float = 0.0

    def __post_init__(self) -> None:
        if not self.gain:
            raise ValueError(f"a direction should change {self.readout!r} by some gain, not by 0")


@dataclass(frozen=True)
class SteeringFit(Value):
    """How directions are optimized: Adam for some steps, each on one batch, at a rate that falls to zero linearly.

    ``rate`` is relative to the norm of the directions that it begins with.
    """

    steps: int = 300
    rate: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.rate > 0:
            raise ValueError(f"steps and rate should be positive: {self}")


def optimize_vectors(
    model: Model,
    batches: Sequence[Any],
    site: str,
    measured: Measured,
    wanted: Sequence[Wanted],
    begin: Float[Tensor, "k d"],
    settings: SteeringFit = SteeringFit(),
    where: Where = Where("valid"),
    periods: Mapping[str, float] | None = None,
) -> Float[Tensor, "k d"]:
    """Directions that do what is wanted, from those that the search begins with.

    Args:
        model: the network, as it is.
        batches: what it reads; the directions are to be judged on others.
        site: where they will be added.
        measured: the readouts of an output.
        wanted: for every direction what it should do.
        begin: directions to begin with, such as differences of class means.
        settings: how to optimize.
        where: the positions that are steered.
        periods: of readouts that are angles, a full turn; they change by the shorter way around.

    Raises:
        ValueError: for no batch, directions that do not fit the wishes or the site, or a readout that does not exist or
            is undefined or the same for all rows.
    """
    if not batches:
        raise ValueError("directions are optimized on batches; none was given")
    width = model.site(site).width
    if begin.shape != (len(wanted), width):
        raise ValueError(f"{len(wanted)} directions of width {width} are wanted, to begin with has {list(begin.shape)}")
    with torch.no_grad():
        forks = [model.fork(batch, site) for batch in batches]
        bases = [dict(measured(fork.clean.output, batch)) for fork, batch in zip(forks, batches, strict=True)]
    spreads = _spreads(bases, wanted)
    norms = begin.norm(dim=1, keepdim=True)
    if (norms == 0).any():
        raise ValueError("a search cannot begin with the zero vector: it has no length to measure steps by")
    # every direction in units of its own norm, so that one rate serves all
    scaled = (begin / norms).clone().requires_grad_(True)
    optimizer = Adam([scaled], lr=settings.rate / width**0.5)
    generator = torch.Generator().manual_seed(settings.seed)
    order = _endless(len(batches), generator)
    for step in range(settings.steps):
        place = next(order)
        tau = _temperatures(len(next(iter(bases[place].values()))), len(wanted), generator, alone=step % 2 == 0).to(
            begin
        )
        steered = _steered(forks[place], site, scaled * norms, tau, where)
        loss = _loss(measured(steered, batches[place]), bases[place], spreads, wanted, tau, periods or {})
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = settings.rate / width**0.5 * (1 - step / settings.steps)
        optimizer.step()
    return (scaled * norms).detach()


def _steered(
    fork: Fork, site: str, along: Float[Tensor, "k d"], tau: Float[Tensor, "rows k"], where: Where
) -> Mapping[str, Tensor]:
    return fork.run({site: At(where, Steer(along, tau))}).output


def _loss(
    after: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    spreads: Mapping[str, float],
    wanted: Sequence[Wanted],
    tau: Float[Tensor, "rows k"],
    periods: Mapping[str, float],
) -> Float[Tensor, ""]:
    total = tau.new_zeros(())
    for name, spread in spreads.items():
        base, goal = before[name], torch.zeros_like(before[name])
        change = after[name] - base
        if (period := periods.get(name)) is not None:
            change = change - period * ((change.detach() + period / 2) / period).floor()
        asked = change.isfinite()
        for i, wish in enumerate(wanted):
            if wish.readout == name:
                goal = goal + tau[:, i] * wish.gain * (base if wish.relative else 1)
                asked = asked & (base >= wish.least)
        # what is undefined must not reach the gradient either
        miss = torch.where(asked, (change - goal) / spread, 0)
        total = total + ((1 + miss.square()).sqrt() - 1).sum() / asked.sum().clamp_min(1)
    return total


def _spreads(bases: Sequence[Mapping[str, Tensor]], wanted: Sequence[Wanted]) -> dict[str, float]:
    names = list(bases[0])
    if unknown := [wish.readout for wish in wanted if wish.readout not in names]:
        raise ValueError(f"there is no readout {unknown[0]!r}; there are {', '.join(names)}")
    spreads = dict[str, float]()
    for name in names:
        values = torch.cat([base[name] for base in bases])
        spreads[name] = float(values[values.isfinite()].std())
        if not spreads[name] > 0:
            raise ValueError(f"the readout {name!r} is undefined or the same for all {len(values)} rows")
    return spreads


def _temperatures(rows: int, count: int, generator: torch.Generator, *, alone: bool) -> Float[Tensor, "rows count"]:
    tau = 2 * torch.rand(rows, count, generator=generator) - 1
    if alone:
        chosen = torch.randint(count, (rows,), generator=generator)
        tau = tau * torch.nn.functional.one_hot(chosen, count)
    return tau


def _endless(count: int, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
