"""What parts of a hidden state carry: they take their value from another input, and the output tells what changed.

A *contrast* is a batch of inputs and their counterfactuals, the positions at which states are exchanged, and a number
that the output gives for every row. The effect of a part is by how much that number falls, mean(m_clean − m_patched).
A part is *sufficient* as far as it alone has the effect of the whole state, and *necessary* as far as the whole state
has none without it. Geiger et al. 2021, arXiv 2106.02997; subspaces: Huang and Hahn, arXiv 2508.01916.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.decompose.base import Decomposition
from innerspace.interventions import At, Read, coordinates_of, patch, read_parts, relocate
from innerspace.measure.documents import Draws, Ledger
from innerspace.measure.estimate import Estimate
from innerspace.measure.recovery import match
from innerspace.network.model import Model
from innerspace.network.site import Where
from innerspace.network.trace import Intervention, Trace, Visit
from innerspace.value import Value

B = TypeVar("B")
Parts = int | Sequence[int]
Metric = Callable[[Trace], Float[Tensor, "batch"]]
"""From a pass to a number per row, such as the logit of the clean input's answer less that of the other's."""


@dataclass(frozen=True, eq=False)
class Contrast(Generic[B]):
    """Inputs next to counterfactual ones: row i of ``clean`` differs from row i of ``other`` in the variable meant.

    At ``positions`` of the clean pass hidden states are exchanged for those of the other pass: at the same positions,
    or at ``origin`` where the inputs differ in length, as many in every row. Rows of one ``group``, such as those of
    one template or scene, are drawn together when an interval is found; by default each is drawn for itself. A batch
    has as many rows as one pass should have.
    """

    clean: B
    other: B
    positions: Bool[Tensor, "batch *positions"] | Where
    metric: Metric
    origin: Bool[Tensor, "batch *others"] | Where | None = None
    group: Int[Tensor, "batch"] | None = None


@final
class Exchange(Generic[B]):
    """A contrast at a site: both states, read once, and passes that go on from there.

    ``state`` [batch, …, d] is the clean one, ``whole`` the same with the other's states at the positions ``chosen``.

    Raises:
        ValueError: for an unknown site, positions that do not fit the states, a row without any, or groups that are not
            one per row.
    """

    @torch.no_grad()
    def __init__(self, model: Model, contrast: Contrast[B], site: str) -> None:
        self._model, self.contrast, self._site = model, contrast, model.site(site).name
        self._fork = model.fork(contrast.clean, site)
        self.state = self._fork.clean.hidden[self._site]
        other = model.run(contrast.other, {self._site: Read()}, stop=True).hidden[self._site]
        self.chosen = self._positions(contrast.positions, contrast.clean, self.state)
        spec = contrast.positions if contrast.origin is None else contrast.origin
        origin = self._positions(spec, contrast.other, other)
        if empty := (~self.chosen.flatten(1).any(1)).nonzero().flatten().tolist():
            raise ValueError(f"row {empty[0]} has no position at which the states at {site!r} are exchanged")
        if contrast.group is not None and len(contrast.group) != len(self.state):
            raise ValueError(f"{len(contrast.group)} groups were given for {len(self.state)} rows")
        self.whole = torch.where(self.chosen[..., None], relocate(other, origin, self.chosen), self.state)

    def metric(self, state: Float[Tensor, "batch *positions d"], *do: Intervention) -> Float[Tensor, "batch"]:
        """The metric of a pass that goes on from a state, with interventions on it.

        Raises:
            ValueError: if the metric does not give a finite number for every row.
        """
        return self._checked(self.contrast.metric(self.trace(state, *do)), len(state))

    def trace(self, state: Float[Tensor, "batch *positions d"], *do: Intervention) -> Trace:
        """The pass that goes on from a state, with interventions on it."""

        def give(x: Tensor, visit: Visit) -> Tensor:  # noqa: ARG001
            return state

        return self._fork.run({self._site: [give, *do]})

    def part(self, via: Decomposition, parts: Parts) -> Float[Tensor, "batch"]:
        """The metric where parts take their value from the other input, and all else stays clean."""
        return self.metric(self.state, At(self.chosen, patch(via, parts, self.whole)))

    def rest(self, via: Decomposition, parts: Parts) -> Float[Tensor, "batch"]:
        """The metric where parts stay clean, and all else is the other input's."""
        return self.metric(self.whole, At(self.chosen, patch(via, parts, self.state)))

    def _checked(self, found: Tensor, rows: int) -> Tensor:
        if found.shape != (rows,):
            raise ValueError(f"the metric should give {rows} numbers, one per row; it gives {list(found.shape)}")
        if not found.isfinite().all():
            row = int((~found.isfinite()).nonzero()[0])
            raise ValueError(f"the metric is not finite in row {row}: {float(found[row])}")
        return found

    def _positions(self, positions: Tensor | Where, batch: B, state: Tensor) -> Tensor:
        if isinstance(positions, Where):
            valid = self._model.family.mask(batch, self._model.site(self._site))
            return positions.select(tuple(state.shape[:-1]), valid, state.device)
        if positions.shape != state.shape[:-1]:
            raise ValueError(
                f"the positions have shape {list(positions.shape)}, the states at {self._site!r} "
                f"{list(state.shape[:-1])}; inputs of another length than their counterfactuals need an origin"
            )
        return positions.to(state.device)


@dataclass(frozen=True)
class PartEffect(Value):
    """What one part does, or several that are exchanged together; ``size`` counts their coordinates.

    ``effect`` Δ is in units of the metric, ``sufficiency`` Δ / Δ_whole, ``necessity`` 1 − Δ_rest / Δ_whole, where
    Δ_rest is the effect of exchanging all but the part.
    """

    parts: tuple[int, ...]
    size: int
    effect: Estimate
    sufficiency: Estimate
    necessity: Estimate


@dataclass(frozen=True)
class Gini(Value):
    """How unequal the parts are: 0 if all are alike, (S − 1) / S if one of S has all; ``normalized`` is its share."""

    raw: Estimate
    normalized: Estimate


@dataclass(frozen=True)
class Concentration(Value):
    """Whether few parts have the effect: the Gini coefficient of |Δ|, of |Δ| per dimension and per variance.

    ``top`` is the largest |Δ| as a share of Σ|Δ|. Numbers of partitions with other counts of parts compare only where
    they are normalized. ``per_variance`` is None where variances are not given.
    """

    effect: Gini
    per_dimension: Gini
    per_variance: Gini | None
    top: Estimate


@dataclass(frozen=True)
class Patching(Value):
    """The effects of parts at a site.

    ``rows`` inputs were exchanged; ``clean`` is their metric as they are, ``whole`` the effect of the whole state.
    ``concentration`` is None for a single part.
    """

    site: str
    rows: int
    clean: Estimate
    whole: Estimate
    parts: tuple[PartEffect, ...]
    concentration: Concentration | None


@torch.no_grad()
def patching(
    model: Model,
    contrasts: Iterable[Contrast[B]],
    site: str,
    via: Decomposition,
    parts: Sequence[Parts] | None = None,
    *,
    variance: Float[Tensor, "parts"] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> Patching:
    """Exchange each part alone, and all but each part, between inputs and their counterfactuals.

    What lies before the site runs once per input, what lies behind it twice per part. ``parts`` are those to exchange,
    or groups of them; by default every part. ``variance`` of the parts, on whatever text or scenes, is a weight of the
    Gini coefficient (``part_variance``). Intervals are those of ``replicates`` draws of as many rows, or groups.

    Raises:
        ValueError: for no contrast, parts that are not there, variances that are not positive or not one per part, or
            a whole state whose exchange changes nothing.
    """
    units = named_parts(via, parts)
    sizes = torch.tensor([len(coordinates_of(via, unit)) for unit in units], dtype=torch.float64)
    if variance is not None and (len(variance) != len(units) or not (variance > 0).all()):
        raise ValueError(f"{len(units)} positive variances are needed, one per part; they are {variance.tolist()}")
    ledger, count = Ledger(), 0
    for contrast in contrasts:
        exchange = Exchange(model, contrast, site)
        clean = exchange.metric(exchange.state)
        columns = {"clean": clean, "whole": clean - exchange.metric(exchange.whole)}
        for i, unit in enumerate(units):
            columns |= {f"part{i}": clean - exchange.part(via, unit), f"rest{i}": clean - exchange.rest(via, unit)}
        count = note_rows(ledger, count, contrast.group, columns)
    if not count:
        raise ValueError("there is no contrast: nothing can be exchanged")
    draws = Draws(ledger, replicates, seed)
    whole = draws.mean("row.whole")
    if whole.mean == 0:
        raise ValueError(f"exchanging the whole state at {site!r} has no effect at these positions: no part can")

    def effect(i: int, unit: tuple[int, ...]) -> PartEffect:
        sufficiency = draws.of(lambda s: s[f"row.part{i}"] / s["row.whole"])
        necessity = draws.of(lambda s: 1 - s[f"row.rest{i}"] / s["row.whole"])
        return PartEffect(unit, int(sizes[i]), draws.mean(f"row.part{i}"), sufficiency, necessity)

    effects = tuple(effect(i, unit) for i, unit in enumerate(units))
    concentration = _concentration(draws, sizes, variance) if len(units) > 1 else None
    return Patching(model.site(site).name, count, draws.mean("row.clean"), whole, effects, concentration)


def gini(effects: Float[Tensor, "*copies parts"], weights: Float[Tensor, "parts"]) -> Float[Tensor, "*copies"]:
    """Σ_st |x_s − x_t| / (2 S Σ_s x_s) with x_s = |Δ_s| / w_s; zero where there is no effect at all."""
    x, count = (effects.abs() / weights).sort(-1).values, effects.shape[-1]
    # in order, the s-th is the larger one of s − 1 pairs and the smaller one of S − s
    rank = 2 * torch.arange(1, count + 1, device=x.device) - count - 1
    return (rank * x).sum(-1) / (count * x.sum(-1)).clamp(min=torch.finfo(x.dtype).tiny)


def separation(shares: Float[Tensor, "parts variables"]) -> float:
    """How far variables are apart, from the sufficiency of every part for each: 1 if each has a part of its own.

    Every variable is matched to a part of its own; of that, the share for the variable less the mean share for all
    others; the mean over variables, for the best matching. One part that has everything gives 0, unlike with Gini.

    Raises:
        ValueError: for fewer than two variables, or if scipy is missing.
    """
    variables = shares.shape[1]
    if variables < 2:
        raise ValueError(f"at least two variables can be apart, not {variables}")
    others = (shares.sum(1, keepdim=True) - shares) / (variables - 1)
    gain = shares - others
    # a variable that finds no part of its own is not apart
    return sum(float(gain[part, i]) for i, part in enumerate(match(gain)) if part >= 0) / variables


@torch.no_grad()
def part_variance(
    via: Decomposition, rows: Float[Tensor, "rows d"], parts: Sequence[Parts] | None = None
) -> Float[Tensor, "parts"]:
    """The variance of hidden states in each part, summed over its coordinates."""
    found = [read_parts(via, unit, rows).double().var(0, correction=0).sum() for unit in named_parts(via, parts)]
    return torch.stack(found)


def named_parts(via: Decomposition, parts: Sequence[Parts] | None) -> list[tuple[int, ...]]:
    """Parts to exchange, each as those that are exchanged together; None stands for every one by itself."""
    named = range(len(via.parts)) if parts is None else parts
    return [(part,) if isinstance(part, int) else tuple(part) for part in named]


def note_rows(ledger: Ledger, first: int, group: Tensor | None, columns: Mapping[str, Tensor]) -> int:
    """Keep numbers of rows, by what is drawn together; gives how many rows there are now."""
    rows = len(next(iter(columns.values())))
    # rows of no group are counted below zero, where no group is
    own = -1 - torch.arange(first, first + rows) if group is None else group.cpu()
    ledger.add("row", own, {name: column.cpu() for name, column in columns.items()})
    return first + rows


def _concentration(draws: Draws, sizes: Tensor, variance: Tensor | None) -> Concentration:
    count = len(sizes)

    def effects(sums: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([sums[f"row.part{i}"] / sums["row.count"] for i in range(count)], -1)

    def weighted(weights: Tensor) -> Gini:
        raw = draws.of(lambda s: gini(effects(s), weights))
        return Gini(raw, draws.of(lambda s: gini(effects(s), weights) * count / (count - 1)))

    def top(sums: Mapping[str, Tensor]) -> Tensor:
        found = effects(sums).abs()
        return found.amax(-1) / found.sum(-1).clamp(min=torch.finfo(found.dtype).tiny)

    per_variance = None if variance is None else weighted(variance.cpu().double())
    return Concentration(weighted(torch.ones_like(sizes)), weighted(sizes), per_variance, draws.of(top))
