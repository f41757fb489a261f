"""Rate and distortion: how far the output moves when only the first parts of a hidden state are told, in so many bits.

With the mean state x̄ and the mean code z̄ known to both sides, of a state x only the coordinates K are told, each
rounded to one of 2ᵇ levels, and it becomes

    x̂ = x̄ + Σ_{i ∈ K} (zᵢ − z̄ᵢ) · directionᵢ.

All kinds of decompositions are treated alike: a coordinate that is not told takes its mean. A state costs

    bits = L · b + log₂ C(n, L)

where n = |K| coordinates might be told, and L of them are not exactly zero: b bits for each of these, and which ones
they are. A dense code has L = n, so that naming them is free. How many they are is not counted, nor are x̄, z̄ and
directions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.decompose.base import Decomposition
from innerspace.interventions import At, Read, Write, ablate
from innerspace.language.causal_lm import CausalLM
from innerspace.language.divergence import next_token
from innerspace.language.text import Text
from innerspace.measure.documents import Draws, Ledger
from innerspace.measure.estimate import Estimate
from innerspace.measure.readability import codes
from innerspace.network.model import Model
from innerspace.network.site import Where
from innerspace.network.trace import Intervention, Visit
from innerspace.value import Value


@dataclass(frozen=True)
class Point(Value):
    """The first ``parts`` told, ``coordinates`` in all: bits for each token, and the output's divergence in nats."""

    parts: int
    coordinates: int
    bits: Estimate
    divergence: Estimate


@dataclass(frozen=True)
class Curve(Value):
    """Points from nothing told, which is the mean state everywhere, to all parts; ``at_budget`` lies on a line between.

    Between two points their codes can be used in turns, so the line between them is within reach. A budget beyond the
    last point buys what that buys.
    """

    points: tuple[Point, ...]
    budget: float
    at_budget: Estimate


def description_bits(active: Int[Tensor, "*rows"], among: int, bits: int) -> Float[Tensor, "*rows"]:
    """L · b + log₂ C(n, L) for codes with L of n coordinates that are not zero, b bits each; float64."""
    n, on = torch.tensor(float(among), dtype=torch.float64), active.double()
    choices = torch.lgamma(n + 1) - torch.lgamma(on + 1) - torch.lgamma(n - on + 1)
    return on * bits + choices / math.log(2)


@final
@dataclass(frozen=True, eq=False)
class Told:
    """Tell coordinates of a hidden state, rounded; all else takes its mean. See above.

    ``low`` and ``high`` [k] are the ends of every coordinate's 2ᵇ evenly spaced levels; zero stays exactly zero.
    """

    via: Decomposition
    chosen: Int[Tensor, "n"]
    center: Float[Tensor, "d"]
    mean: Float[Tensor, "k"]
    low: Float[Tensor, "k"]
    high: Float[Tensor, "k"]
    bits: int

    def __call__(self, x: Tensor, visit: Visit) -> Tensor:  # noqa: ARG002
        """The state that is told."""
        directions = self.via.directions
        if not len(self.chosen):
            return self.center.to(x).expand_as(x)
        z = self.rounded(self.via.encode(x.to(directions)).z[..., self.chosen])
        return (self.center + (z - self.mean[self.chosen]) @ directions[self.chosen]).to(x)

    def rounded(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        """The chosen coordinates at the nearest of their levels."""
        low, high = self.low[self.chosen], self.high[self.chosen]
        step = ((high - low) / (2**self.bits - 1)).clamp_min(torch.finfo(z.dtype).tiny)
        level = low + step * ((z.clamp(low, high) - low) / step).round()
        return torch.where(z == 0, z, level)


@final
class Passes:
    """Batches that run once as they are; from there passes branch off whose output is compared.

    Raises:
        ValueError: for an unknown site, or if no position counts.
    """

    @torch.no_grad()
    def __init__(self, model: Model, batches: Sequence[Any], site: str, where: Where) -> None:
        self._model, self._site = model, model.site(site).name
        head = model.family.head(model.module)
        self._head = None if head is None else head.name
        self._batches = list(batches)
        self._forks = [model.fork(batch, site) for batch in self._batches]
        self._clean = [self._ended(number, []) for number in range(len(self._batches))]
        states = [fork.clean.hidden[self._site] for fork in self._forks]
        self.chosen = [model.positions(batch, site, x, where) for batch, x in zip(self._batches, states, strict=True)]
        if not any(bool(chosen.any()) for chosen in self.chosen):
            raise ValueError(f"no position at {site!r} counts: there is no batch, or all positions are left out")
        self.rows = torch.cat([x[chosen] for x, chosen in zip(states, self.chosen, strict=True)])
        first, documents = 0, list[Tensor]()
        for batch, x, chosen in zip(self._batches, states, self.chosen, strict=True):
            documents.append(_documents(batch, x, first)[chosen])
            first += len(x)
        self.documents = torch.cat(documents)

    @torch.no_grad()
    def divergence(self, do: Intervention) -> tuple[Int[Tensor, "n"], Float[Tensor, "n"]]:
        """KL(clean ‖ other) in nats of an intervention at all positions that count, with the document of each.

        Of a language model one number for each position, of other networks one for each row.
        """
        found = [self._compared(number, do) for number in range(len(self._batches))]
        documents, numbers = zip(*found, strict=True)
        return torch.cat(documents), torch.cat(numbers)

    def _ended(self, number: int, do: Sequence[Intervention]) -> Any:
        plan: dict[str, Any] = {self._site: list(do)} if do else {}
        if self._head is None:
            return self._forks[number].run(plan)
        plan[self._head] = [*plan.get(self._head, ()), Read()]
        return self._forks[number].run(plan, stop=True)

    def _compared(self, number: int, do: Intervention) -> tuple[Tensor, Tensor]:
        family, module, chosen = self._model.family, self._model.module, self.chosen[number]
        clean, other = self._clean[number], self._ended(number, [At(chosen, do)])
        rows = sum(len(one) for one in self.chosen[:number])
        documents = _documents(self._batches[number], self._forks[number].clean.hidden[self._site], rows)
        if isinstance(family, CausalLM):
            assert self._head is not None
            one, two = (trace.hidden[self._head][chosen] for trace in (clean, other))
            target = torch.zeros(len(one), dtype=torch.int64, device=one.device)
            return documents[chosen], next_token(one, two, target, family.unembedding(module)).kl
        counts = chosen.flatten(1).any(1)
        place = torch.arange(len(counts), device=counts.device)
        own = counts.nonzero().flatten()
        numbers = [family.divergence(module, clean, other, place == row) for row in own]
        return documents.flatten(1)[own, 0], torch.stack(numbers)


@torch.no_grad()
def order_parts(via: Decomposition, passes: Passes, center: Float[Tensor, "k"], ablated: int = 64) -> list[int]:
    """The parts by what they are worth: first those with much variance, of them first those that the output needs most.

    A part's variance is Σᵢ Var(zᵢ) ‖directionᵢ‖². Of the ``ablated`` parts with the most, each is set to its mean while
    all else stays, and the output's divergence orders them; the others follow by variance.
    """
    z = codes(via, passes.rows)
    worth = z.double().var(0, correction=0) * via.directions.double().square().sum(1)
    variance = [float(worth[part].sum()) for part in via.parts]
    order = sorted(range(len(variance)), key=lambda i: -variance[i])
    first, rest = order[:ablated], order[ablated:]
    cost = {i: float(passes.divergence(_without(via, i, center))[1].double().mean()) for i in first}
    return [*sorted(first, key=lambda i: -cost[i]), *rest]


def counts_up_to(parts: int, steps: int = 9) -> list[int]:
    """Numbers of parts from none to all, about evenly spaced on a logarithmic scale."""
    spaced = torch.logspace(0, math.log10(parts), steps, dtype=torch.float64).round().long().tolist() if parts else []
    return sorted({0, *spaced, parts})


@torch.no_grad()
def rate_distortion(
    via: Decomposition,
    order: Sequence[int],
    fitted: Float[Tensor, "n d"],
    passes: Passes,
    *,
    bits: int = 8,
    budget: float = 128.0,
    steps: int = 9,
    replicates: int = 500,
    seed: int = 0,
) -> Curve:
    """The curve of parts in an order; means and levels are those of ``fitted`` rows, passes are of others.

    Raises:
        ValueError: for parts that are named twice or not there, no bits, or a budget that is not positive.
    """
    if sorted(order) != list(range(len(via.parts))):
        raise ValueError(f"the order should name each of {len(via.parts)} parts once")
    if bits < 1 or not budget > 0:
        raise ValueError(f"bits and budget should be positive, they are {bits} and {budget}")
    z = codes(via, fitted)
    like = via.directions
    told = Told(
        via,
        torch.arange(0),
        fitted.double().mean(0).to(like),
        z.double().mean(0).to(like),
        z.amin(0),
        z.amax(0),
        bits,
    )
    own, ledger, sizes = codes(via, passes.rows), Ledger(), list[tuple[int, int]]()
    counts = counts_up_to(len(order), steps)
    for number, count in enumerate(counts):
        spans = [via.parts[part] for part in order[:count]]
        chosen = torch.cat([torch.arange(0), *(torch.arange(span.start, span.stop) for span in spans)])
        sizes.append((count, len(chosen)))
        edit = Told(via, chosen, told.center, told.mean, told.low, told.high, bits)
        documents, divergence = passes.divergence(edit)
        ledger.add(f"d{number}", documents, {"kl": divergence})
        spent = description_bits(own[:, chosen].count_nonzero(1), len(chosen), bits)
        ledger.add(f"r{number}", passes.documents, {"bits": spent})
    draws = Draws(ledger, replicates, seed)

    def at_budget(sums: Any) -> Tensor:
        places = range(len(counts))
        rate = torch.stack([sums[f"r{i}.bits"] / sums[f"r{i}.count"] for i in places], -1)
        value = torch.stack([sums[f"d{i}.kl"] / sums[f"d{i}.count"] for i in places], -1)
        return interpolated(rate, value, budget)

    points = tuple(Point(*sizes[i], draws.mean(f"r{i}.bits"), draws.mean(f"d{i}.kl")) for i in range(len(counts)))
    return Curve(points, budget, draws.of(at_budget))


def interpolated(
    rate: Float[Tensor, "*copies points"], value: Float[Tensor, "*copies points"], at: float
) -> Float[Tensor, "*copies"]:
    """The values at a rate on the line through the points, whose rates rise; beyond the last point its value."""
    last = rate.shape[-1] - 1
    after = (rate < at).sum(-1, keepdim=True).clamp(1, last) if last else torch.zeros_like(rate[..., :1]).long()
    if not last:
        return value[..., 0]
    low, high = rate.gather(-1, after - 1), rate.gather(-1, after)
    share = ((at - low) / (high - low).clamp_min(torch.finfo(rate.dtype).tiny)).clamp(0, 1)
    return (value.gather(-1, after - 1) * (1 - share) + value.gather(-1, after) * share)[..., 0]


def _without(via: Decomposition, part: int, center: Tensor) -> Write:
    return ablate(via, part, center[via.parts[part]])


def _documents(batch: Any, hidden: Tensor, first: int) -> Int[Tensor, "..."]:
    """To which document each position belongs: of text as it tells, else its row's scene or the row itself."""
    if isinstance(batch, Text) and batch.document is not None:
        return batch.document
    rows = torch.arange(first, first + len(hidden), device=hidden.device)
    return rows.view(-1, *(1,) * (hidden.ndim - 2)).expand(hidden.shape[:-1])
