"""Feature circuits: the few nodes, and the edges between them, by which a network gives an answer.

A circuit C is judged by what is left of the metric m where every node outside of it takes its mean at its place:

    faithfulness = (m(C) − m(∅)) / (m(M) − m(∅)),   completeness = (m(M∖C) − m(∅)) / (m(M) − m(∅)),

M the network as it is, ∅ with all nodes at their means, M∖C without the circuit's nodes. Nodes inside are computed from
what the pass then holds. An error outside of C is at its mean as well, so that latents alone have to do it. Marks et
al. 2024, arXiv 2403.19647; Braun et al. 2024, arXiv 2405.12241, appendix I, with M̃ in the place of C, the network with
its hidden states replaced by reconstructions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.decompose.base import Decomposition
from innerspace.interventions import At, Splice
from innerspace.measure.attribution import Effects, edges
from innerspace.measure.documents import Draws, Ledger
from innerspace.measure.estimate import Estimate
from innerspace.measure.nodes import Node, Passage, Values
from innerspace.measure.patching import note_rows
from innerspace.network.trace import Visit
from innerspace.value import Value

Kept = Mapping[str, Bool[Tensor, "places nodes"]]
"""Of every site which nodes are in a circuit, place by place; the last node is the error."""


@dataclass(frozen=True)
class Scored(Value):
    """A node and by how much the metric falls without it."""

    node: Node
    effect: Estimate


@dataclass(frozen=True)
class Edge(Value):
    """What of the effect of ``source`` passes through ``target``."""

    source: Node
    target: Node
    effect: Estimate


@dataclass(frozen=True)
class Circuit(Value):
    """Nodes by decreasing strength and the edges between them; ``places`` are what the template calls its places.

    Raises:
        ValueError: for an edge whose ends are not among the nodes.
    """

    places: tuple[str, ...]
    nodes: tuple[Scored, ...]
    edges: tuple[Edge, ...] = ()

    def __post_init__(self) -> None:
        there = {scored.node for scored in self.nodes}
        for edge in self.edges:
            if not {edge.source, edge.target} <= there:
                raise ValueError(f"an edge leads from {edge.source} to {edge.target}, which are not both nodes")

    def kept(self, vias: Mapping[str, Decomposition]) -> dict[str, Bool[Tensor, "places nodes"]]:
        """The circuit as masks over all nodes of some sites.

        Raises:
            ValueError: for a node of another site, or a part or place that is not there.
        """
        found = {
            site: torch.zeros(len(self.places), len(via.parts) + 1, dtype=torch.bool) for site, via in vias.items()
        }
        for node in (scored.node for scored in self.nodes):
            if node.site not in found:
                raise ValueError(f"a node is of {node.site!r}; there are decompositions of {', '.join(found)}")
            mask = found[node.site]
            column = mask.shape[1] - 1 if node.part is None else node.part
            if not 0 <= column < mask.shape[1] or not 0 <= (node.place or 0) < len(mask):
                raise ValueError(f"{node} is not among {mask.shape[1] - 1} parts at {len(mask)} places")
            mask[slice(None) if node.place is None else node.place, column] = True
        return found

    def pruned_edges(self, *, threshold: float | None = None, top: int | None = None) -> "Circuit":
        """The circuit with its strongest edges only; nodes stay.

        Raises:
            ValueError: unless either is given.
        """
        strong = _strongest([abs(edge.effect.mean) for edge in self.edges], threshold, top)
        return replace(self, edges=tuple(self.edges[i] for i in strong))


@dataclass(frozen=True)
class Faithfulness(Value):
    """How much of the metric a circuit of ``nodes`` nodes has: see above.

    ``clean`` is m(M), ``spliced`` m(M̃), ``empty`` m(∅), ``inside`` m(C), ``outside`` m(M∖C); ``spliced_share`` is
    (m(M̃) − m(∅)) / (m(M) − m(∅)).
    """

    nodes: int
    clean: Estimate
    spliced: Estimate
    empty: Estimate
    inside: Estimate
    outside: Estimate
    faithfulness: Estimate
    completeness: Estimate
    spliced_share: Estimate


@final
@dataclass(frozen=True, eq=False)
class Keep:
    """Some nodes as the pass has them, all others at values that stand instead. Where all are kept, x stays exactly.

    ``kept`` is the mask of every position; ``chosen`` are the positions that have nodes, all others pass as they came.
    """

    via: Decomposition
    instead: Values
    kept: Bool[Tensor, "batch *positions nodes"]
    chosen: Bool[Tensor, "batch *positions"]

    def __call__(self, x: Tensor, visit: Visit) -> Tensor:  # noqa: ARG002
        """The state to go on with."""
        own, out = Values.of(self.via, x), ~self.kept & self.chosen[..., None]
        sizes = torch.tensor([part.stop - part.start for part in self.via.parts], device=x.device)
        off = out[..., :-1].repeat_interleave(sizes, dim=-1)
        change = (self.instead.code - own.code).where(off, 0) @ self.via.directions
        change = change + (self.instead.error - own.error).where(out[..., -1:], 0)
        return torch.where(change == 0, x, x + change.to(x))


def circuit_of(
    effects: Effects,
    places: Sequence[str],
    *,
    threshold: float | None = None,
    top: int | None = None,
    groups: Int[Tensor, "rows"] | None = None,
    replicates: int = 500,
) -> Circuit:
    """The nodes at single places whose mean effect is the strongest: above a threshold, or the first so many.

    Effects that are exactly zero make no node. Intervals are over rows, or groups of them.

    Raises:
        ValueError: unless either a threshold or a number is given.
    """
    means = {site: found.double().mean(0) for site, found in effects.items()}
    flat = [
        (Node(site, part if part < found.shape[1] - 1 else None, place), float(found[place, part]))
        for site, found in means.items()
        for place, part in found.nonzero().tolist()
    ]
    strong = [flat[i][0] for i in _strongest([abs(value) for _, value in flat], threshold, top)]
    columns = [_column(effects[node.site], node) for node in strong]
    return Circuit(tuple(places), tuple(map(Scored, strong, _estimates(columns, groups, replicates))))


def with_edges(circuit: Circuit, passages: Sequence[Passage[Any]], *, steps: int = 0, replicates: int = 500) -> Circuit:
    """The circuit with all edges between its nodes at sites that follow each other.

    Raises:
        ValueError: as ``edges``.
    """
    order = list(passages[0].vias)
    groups, found = _groups(passages), list[Edge]()
    for source, target in pairwise(order):
        ends = [[one.node for one in circuit.nodes if one.node.site == site] for site in (source, target)]
        if not all(ends):
            continue
        reached = edges(passages, source, ends[1], steps=steps)
        pairs = [(one, other, i) for one in ends[0] for i, other in enumerate(ends[1])]
        columns = [_column(reached[:, i], one) for one, _, i in pairs]
        told = _estimates(columns, groups, replicates)
        found += [Edge(one, other, effect) for (one, other, _), effect in zip(pairs, told, strict=True)]
    ranked = sorted((edge for edge in found if edge.effect.mean != 0), key=lambda edge: -abs(edge.effect.mean))
    return replace(circuit, edges=tuple(ranked))


@torch.no_grad()
def answers(passage: Passage[Any], kept: Kept) -> Float[Tensor, "batch"]:
    """The metric where only some nodes are as the pass has them."""
    place = passage.place.clamp(min=0)
    return passage.under(
        {
            site: Keep(via, passage.instead[site], kept[site].to(place.device)[place], passage.chosen)
            for site, via in passage.vias.items()
        }
    )


@torch.no_grad()
def spliced(passage: Passage[Any]) -> Float[Tensor, "batch"]:
    """The metric where reconstructions stand in for the hidden states at the positions that have nodes."""
    return passage.under({site: At(passage.chosen, Splice(via)) for site, via in passage.vias.items()})


def faithfulness(
    passages: Iterable[Passage[Any]], circuit: Circuit, *, replicates: int = 1000, seed: int = 0
) -> Faithfulness:
    """What a circuit has of the metric, and what the network has without it; intervals over rows or their groups.

    Raises:
        ValueError: for no inputs, or where the metric is the same with all nodes as with none.
    """
    ledger, count = Ledger(), 0
    for passage in passages:
        kept = circuit.kept(passage.vias)
        masks = {"inside": kept, "outside": {site: ~mask for site, mask in kept.items()}}
        masks["empty"] = {site: torch.zeros_like(mask) for site, mask in kept.items()}
        columns = {name: answers(passage, mask) for name, mask in masks.items()}
        columns |= {"clean": passage.clean, "spliced": spliced(passage)}
        count = note_rows(ledger, count, passage.asked.group, columns)
    if not count:
        raise ValueError("a circuit is judged by inputs, and there are none")
    draws = Draws(ledger, replicates, seed)

    def share(name: str) -> Estimate:
        return draws.of(lambda s: (s[f"row.{name}"] - s["row.empty"]) / (s["row.clean"] - s["row.empty"]))

    told = {name: draws.mean(f"row.{name}") for name in ("clean", "spliced", "empty", "inside", "outside")}
    if told["clean"].mean == told["empty"].mean:
        raise ValueError("the metric is the same with all nodes at their means: there is nothing to be faithful to")
    return Faithfulness(len(circuit.nodes), **told, faithfulness=share("inside"), completeness=share("outside"),
                        spliced_share=share("spliced"))  # fmt: skip


@dataclass(frozen=True)
class Needed(Value):
    """The fewest parts tried that have a ``level`` of faithfulness, on a line between those tried.

    None where they never reach it. A draw that never does counts for all parts that were tried; ``reached`` is the
    share of the others.
    """

    level: float
    parts: Estimate | None
    reached: float


@dataclass(frozen=True)
class SmallCircuits(Value):
    """The faithfulness of the first ``counts`` parts of an order at a site, at all places; all else is ablated."""

    site: str
    counts: tuple[int, ...]
    faithfulness: tuple[Estimate, ...]
    needed: tuple[Needed, ...]


def small_circuits(
    passages: Sequence[Passage[Any]],
    site: str,
    order: Sequence[int],
    counts: Sequence[int],
    *,
    levels: Sequence[float] = (0.5, 0.8),
    replicates: int = 1000,
    seed: int = 0,
) -> SmallCircuits:
    """How many parts of a site are needed for how much faithfulness; the error is always ablated.

    Of passages with several sites the others stay as they are.

    Raises:
        ValueError: for counts that do not grow, or go beyond the order.
    """
    if list(counts) != sorted({*counts}) or not counts or not 0 <= counts[0] <= counts[-1] <= len(order):
        raise ValueError(f"counts should grow from 0 to at most {len(order)}; they are {list(counts)}")
    ledger, rows = Ledger(), 0
    for passage in passages:
        whole = {s: torch.ones(passage.places, len(v.parts) + 1, dtype=torch.bool) for s, v in passage.vias.items()}

        def first(n: int, whole: Kept = whole) -> Kept:
            mask = torch.zeros_like(whole[site])
            mask[:, list(order[:n])] = True
            return {**whole, site: mask}

        columns = {"clean": passage.clean, "empty": answers(passage, first(0))}
        columns |= {f"first{n}": answers(passage, first(n)) for n in counts}
        rows = note_rows(ledger, rows, passage.asked.group, columns)
    draws = Draws(ledger, replicates, seed)

    def share(sums: Mapping[str, Tensor], n: int) -> Tensor:
        return (sums[f"row.first{n}"] - sums["row.empty"]) / (sums["row.clean"] - sums["row.empty"])

    def needed(level: float) -> Needed:
        found = list[Tensor]()

        def fewest(sums: Mapping[str, Tensor]) -> Tensor:
            curve = torch.stack([share(sums, n) for n in counts], -1)
            found.append(crossing(torch.tensor(counts, dtype=torch.float64), curve, level))
            return found[-1].nan_to_num(nan=float(counts[-1]))

        told = draws.of(fewest)
        if bool(found[0].isnan()):
            return Needed(level, None, float((~found[-1].isnan()).double().mean()))
        return Needed(level, told, float((~found[-1].isnan()).double().mean()))

    curve = tuple(draws.of(lambda s, n=n: share(s, n)) for n in counts)
    return SmallCircuits(site, tuple(counts), curve, tuple(needed(level) for level in levels))


def crossing(x: Float[Tensor, "points"], y: Float[Tensor, "*copies points"], level: float) -> Float[Tensor, "*copies"]:
    """Where lines through points first reach a level; not a number where they never do."""
    over = y >= level
    last = over.to(torch.int64).argmax(-1, keepdim=True)
    before = (last - 1).clamp(min=0)
    low, high = y.gather(-1, before), y.gather(-1, last)
    share = ((level - low) / (high - low)).where(last > 0, torch.ones_like(low))
    found = x[before] + share * (x[last] - x[before])
    return found[..., 0].where(over.any(-1), torch.full_like(found[..., 0], torch.nan))


def _strongest(strengths: Sequence[float], threshold: float | None, top: int | None) -> list[int]:
    if (threshold is None) == (top is None):
        raise ValueError(f"either a threshold or a number prunes; got threshold {threshold}, top {top}")
    ranked = sorted(range(len(strengths)), key=lambda i: -strengths[i])
    return ranked[:top] if threshold is None else [i for i in ranked if strengths[i] >= threshold]


def _column(found: Float[Tensor, "rows places nodes"], node: Node) -> Float[Tensor, "rows"]:
    column = found[..., -1 if node.part is None else node.part]
    return column.sum(-1) if node.place is None else column[:, node.place]


def _groups(passages: Sequence[Passage[Any]]) -> Tensor | None:
    own = [passage.asked.group for passage in passages]
    known = [group for group in own if group is not None]
    return torch.cat(known) if len(known) == len(own) else None


def _estimates(columns: Sequence[Tensor], groups: Tensor | None, replicates: int) -> list[Estimate]:
    if not columns:
        return []
    ledger = Ledger()
    note_rows(ledger, 0, groups, {str(i): column for i, column in enumerate(columns)})
    draws = Draws(ledger, replicates, 0)
    return [draws.mean(f"row.{i}") for i in range(len(columns))]
