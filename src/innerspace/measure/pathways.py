"""Whether inputs can have the effect of an exchange: the check against illusions of patching.

A part may mix a direction n that differs between inputs but that nothing reads with a direction d that is read but
does not differ. Exchanging the part carries the difference along n over to d, and the output changes by a pathway that
no input takes. Makelov et al. 2023, arXiv 2311.17030.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from innerspace.decompose.base import Decomposition
from innerspace.interventions import coordinates_of, read_parts
from innerspace.measure.documents import Draws, Ledger
from innerspace.measure.estimate import Estimate
from innerspace.measure.patching import Contrast, Exchange, Parts, named_parts, note_rows
from innerspace.network.model import Model
from innerspace.value import Value

B = TypeVar("B")


@dataclass(frozen=True)
class Pathway(Value):
    """What is left of a part's effect without what reaches dormant directions from states that nothing reads.

    ``kept`` is its share of ``effect``; ``illusory`` says that surely less than half is left.
    """

    parts: tuple[int, ...]
    effect: Estimate
    kept: Estimate
    illusory: bool


@dataclass(frozen=True)
class Pathways(Value):
    """Which effects are illusory at a site.

    Of the ``width`` of the hidden state the network reads ``visible`` directions, ``dormant`` of which hardly differ
    between inputs and counterfactuals. ``seen`` is the share of the whole state's effect that differences in visible
    directions have: where it is far from one, the visible directions are not all, and the check says nothing.
    """

    site: str
    width: int
    visible: int
    dormant: int
    seen: Estimate
    parts: tuple[Pathway, ...]


def dormant_pathways(
    model: Model,
    contrasts: Sequence[Contrast[B]],
    site: str,
    via: Decomposition,
    parts: Sequence[Parts] | None = None,
    *,
    share: float = 0.99,
    probes: int = 4,
    replicates: int = 1000,
    seed: int = 0,
) -> Pathways:
    """What is left of the effects of parts without what reaches dormant directions from differences nothing reads.

    The visible directions V hold ``share`` of the gradients of the metric and of ``probes`` random functions of the
    outputs, at the clean and at the exchanged states. The dormant ones D are those of V that are left when the fewest
    are taken away that hold ``share`` of the differences δ within V. With the change c(δ) that exchanging a part makes,

        c(δ) − Π_D (c(δ) − c(Π_V δ))

    lacks just what came to D from outside V. A part that carries what it seems to lacks nothing; an illusion loses its
    effect. Where the outputs have one dimension only, all of V differs, and nothing can be called illusory.

    Raises:
        ValueError: for no contrast, a share outside (0, 1], parts that are not there, or outputs that the state at
            these positions does not reach.
    """
    if not contrasts or not 0 < share <= 1:
        raise ValueError(f"contrasts and a share in (0, 1] are needed; got {len(contrasts)} contrasts, share {share}")
    units, width = named_parts(via, parts), model.site(site).width
    read = differ = torch.zeros(width, width, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for contrast in contrasts:
        exchange = Exchange(model, contrast, site)
        delta = (exchange.whole - exchange.state)[exchange.chosen].double()
        differ = differ.to(delta) + delta.T @ delta
        for state in (exchange.state, exchange.whole):
            gradients = _gradients(exchange, state, probes, generator)
            read = read.to(delta) + gradients.T @ gradients
    visible, _ = _principal(read, share)
    _, dormant = _principal(visible @ differ @ visible.T, share)
    dormant = dormant @ visible
    ledger, count = Ledger(), 0
    for contrast in contrasts:
        columns = _pathways(Exchange(model, contrast, site), via, units, visible, dormant)
        count = note_rows(ledger, count, contrast.group, columns)
    draws = Draws(ledger, replicates, seed)

    def pathway(i: int, unit: tuple[int, ...]) -> Pathway:
        kept = draws.of(lambda s: s[f"row.kept{i}"] / s[f"row.part{i}"])
        illusory = (kept.mean if kept.high is None else kept.high) < 0.5
        return Pathway(unit, draws.mean(f"row.part{i}"), kept, illusory)

    seen = draws.of(lambda s: s["row.seen"] / s["row.whole"])
    found = tuple(pathway(i, unit) for i, unit in enumerate(units))
    return Pathways(model.site(site).name, width, len(visible), len(dormant), seen, found)


@torch.no_grad()
def _pathways(
    exchange: Exchange[B], via: Decomposition, units: Sequence[tuple[int, ...]], visible: Tensor, dormant: Tensor
) -> dict[str, Tensor]:
    """The effects of a contrast: of the whole, of what is visible of it, and of each part with and without illusion."""
    rows, delta = exchange.state[exchange.chosen], (exchange.whole - exchange.state)[exchange.chosen]
    seen = rows + _projected(delta, visible)
    clean = exchange.metric(exchange.state)

    def effect(change: Tensor) -> Tensor:
        return clean - exchange.metric(exchange.state.index_put((exchange.chosen,), rows + change))

    columns = {"whole": effect(delta), "seen": effect(seen - rows)}
    for i, unit in enumerate(units):
        directions = via.directions[coordinates_of(via, unit)]
        own = read_parts(via, unit, rows)
        change = ((read_parts(via, unit, rows + delta) - own) @ directions).to(rows)
        carried = change - ((read_parts(via, unit, seen) - own) @ directions).to(rows)
        columns |= {f"part{i}": effect(change), f"kept{i}": effect(change - _projected(carried, dormant))}
    return columns


def _gradients(exchange: Exchange[B], state: Tensor, probes: int, generator: torch.Generator) -> Tensor:
    """Gradients at the exchanged positions, of the metric and of random functions of the outputs, each of norm one."""
    state = state.detach().requires_grad_()
    with torch.enable_grad():
        trace = exchange.trace(state)
        metric = exchange.contrast.metric(trace)
        outputs = [output for output in trace.output.values() if output.requires_grad]
        noise = [
            [torch.randn(output.shape, generator=generator).to(output) for output in outputs] for _ in range(probes)
        ]
        targets = [
            torch.stack([(a * b).sum() for a, b in zip(outputs, one, strict=True)]).sum() for one in noise if one
        ]
        targets += [metric.sum()] if metric.requires_grad else []
    found = [torch.autograd.grad(target, state, retain_graph=True)[0][exchange.chosen].double() for target in targets]
    norms = [float(gradient.norm()) for gradient in found]
    if not any(norms):
        raise ValueError("the outputs do not depend on the states that are exchanged, so nothing reads them")
    return torch.cat([gradient / norm for gradient, norm in zip(found, norms, strict=True) if norm])


def _principal(moment: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The fewest orthonormal rows that hold a share of a second moment, and those that are left."""
    values, vectors = torch.linalg.eigh(moment)
    held = values.clamp(min=0).cumsum(0)
    # the least directions together hold no more than the rest of the share
    left = int((held <= (1 - share + 1e-12) * held[-1]).sum()) if len(held) else 0
    return vectors.T[left:].flip(0), vectors.T[:left].flip(0)


def _projected(rows: Tensor, onto: Tensor) -> Tensor:
    return (rows.double() @ onto.T @ onto).to(rows)
