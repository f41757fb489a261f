"""Preimages: which stored states look like a query in one part of the hidden space, whatever they are in the others.

The preimage of a query in part s is all states whose coordinates z_s lie close to its own: by the cosine, or by the
distance over the query's length, ‖z_s − q_s‖ / ‖q_s‖. What its members have in common is what the part holds; the
nearest states in the whole space and in all other parts together are the contrast. Huang and Hahn, arXiv 2508.01916,
after Huang et al., "InversionView", arXiv 2405.17653.

One sweep over the states serves all queries, parts and levels. Each state draws a lot once; of the states within a
level those with the lowest lots are kept. They are a random sample of all within that level, and so are, of those kept
for any level, the lowest lots among the states within a stricter one.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.decompose.subspaces import Subspaces
from innerspace.measure.documents import Draws, Ledger
from innerspace.measure.estimate import Estimate
from innerspace.value import Value


@dataclass(frozen=True)
class Closeness(Value):
    """What counts as close, from loose to strict: cosines of at least, distances of at most so much.

    ``show`` states are drawn of those within each level, and as many of the nearest are kept for contrast; ``bins``
    are those of the histogram of cosines.

    Raises:
        ValueError: for levels that do not become stricter, and numbers that are not positive.
    """

    cosine: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
    distance: tuple[float, ...] = (0.9, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1)
    show: int = 10
    bins: int = 50

    def __post_init__(self) -> None:
        if not self.cosine or any(a >= b for a, b in zip(self.cosine, self.cosine[1:], strict=False)):
            raise ValueError(f"the levels of the cosine should rise, they are {list(self.cosine)}")
        if not self.distance or any(a <= b for a, b in zip(self.distance, self.distance[1:], strict=False)):
            raise ValueError(f"the levels of the distance should fall, they are {list(self.distance)}")
        if min(self.show, self.bins) < 1:
            raise ValueError(f"show and bins should be at least 1, they are {self.show} and {self.bins}")


@dataclass(frozen=True, eq=False)
class Queries:
    """States whose preimages are sought.

    ``own`` is the row of each among those that are searched, which does not count; −1 where it is not among them. With
    ``document``, no row of the query's document counts.
    """

    states: Float[Tensor, "b d"]
    own: Int[Tensor, "b"]
    document: Int[Tensor, "b"] | None = None


@dataclass(frozen=True, eq=False)
class Hits:
    """States near a query: their rows, and how near they are."""

    row: Int[Tensor, "k"]
    cosine: Float[Tensor, "k"]
    distance: Float[Tensor, "k"]

    def to_json(self) -> dict[str, Any]:
        """The columns as lists; the rows under ``row``."""
        return {"row": self.row.tolist(), "cosine": self.cosine.tolist(), "distance": self.distance.tolist()}


@dataclass(frozen=True, eq=False)
class Preimage:
    """What looks like a query in one part, and what in all other parts together.

    ``sample`` is in the order of the lots: the first of its states within a level are a random sample of all that are.
    ``within`` counts all states within each level, by measure.
    """

    sample: Hits
    within: dict[str, list[int]]
    histogram: list[int]
    complement: Hits


@final
@dataclass(frozen=True, eq=False)
class Preimages:
    """Preimages by query and part; ``considered`` states were compared with each query, ``whole`` are its nearest."""

    closeness: Closeness
    edges: list[float]
    considered: list[int]
    whole: list[Hits]
    parts: list[list[Preimage]]
    group: Int[Tensor, "b"]

    def share(self, part: int, measure: str, level: float, replicates: int = 1000, seed: int = 0) -> Estimate:
        """The share of queries whose preimage in a part is not empty; the interval draws documents anew.

        Raises:
            ValueError: for a measure or a level that was not asked for.
        """
        levels: dict[str, Sequence[float]] = {"cosine": self.closeness.cosine, "distance": self.closeness.distance}
        if measure not in levels or level not in levels[measure]:
            raise ValueError(f"there is no level {measure} {level}; there are {levels}")
        place, ledger = levels[measure].index(level), Ledger()
        full = [own[part].within[measure][place] > 0 for own in self.parts]
        ledger.add("queries", self.group, {"full": torch.tensor(full)})
        return Draws(ledger, replicates, seed).mean("queries.full")

    def rows(self) -> list[int]:
        """Every row that is named anywhere, once, in rising order."""
        hits = [*self.whole, *(item for own in self.parts for one in own for item in (one.sample, one.complement))]
        return sorted({row for item in hits for row in item.row.tolist()})


@torch.no_grad()
def preimages(
    subspaces: Subspaces,
    chunks: Iterable[Float[Tensor, "_ d"]],
    queries: Queries,
    *,
    documents: Int[Tensor, "n"] | None = None,
    closeness: Closeness = Closeness(),
    seed: int = 0,
) -> Preimages:
    """Search states that come in chunks, such as ``Store.chunks``, for those that look like the queries.

    ``documents`` are those of all the states, in their order; a query with a document leaves its own out. The memory is
    that of parts × queries × rows of a chunk. The seed draws the lots.

    Raises:
        ValueError: without queries or states, for states that are not finite or of another width, for documents of the
            queries without those of the states, and for a query that is zero in a part.
    """
    if not len(queries.states):
        raise ValueError("there should be at least one query")
    if queries.document is not None and documents is None:
        raise ValueError("queries have documents, so the states that are searched should have theirs")
    device = subspaces.base.device
    search = _Search(_rotated(queries.states.to(device), subspaces, "queries"), subspaces.parts, closeness)
    generator, first = torch.Generator().manual_seed(seed), 0
    for chunk in chunks:
        row = torch.arange(first, first + len(chunk))
        allowed = row != queries.own.cpu()[:, None]
        if queries.document is not None and documents is not None:
            allowed &= documents.cpu()[row] != queries.document.cpu()[:, None]
        lot = torch.rand(len(chunk), generator=generator)
        states = _rotated(chunk.to(device), subspaces, "states")
        search.add(states, row.to(device), lot.to(device), allowed.to(device))
        first += len(chunk)
    if not first:
        raise ValueError("there should be at least one state to search")
    group = torch.arange(len(queries.states)) if queries.document is None else queries.document
    return search.result(group)


@final
class _Kept:
    """The best of a stream of states for each of many searches: those with the lowest score."""

    def __init__(self, shape: Sequence[int], most: int, device: torch.device) -> None:
        self._score = torch.full((*shape, most), math.inf, device=device)
        self._row = torch.zeros((*shape, most), dtype=torch.long, device=device)
        self._near = torch.zeros((2, *shape, most), device=device)

    def offer(
        self,
        score: Float[Tensor, "*search n"],
        row: Int[Tensor, "n"],
        cosine: Float[Tensor, "*search n"],
        distance: Float[Tensor, "*search n"],
    ) -> None:
        """Offer states with a score for each search; an infinite one is no offer."""
        most = self._score.shape[-1]
        best, place = score.topk(min(most, score.shape[-1]), largest=False)
        self._score, order = torch.cat([self._score, best], -1).topk(most, largest=False)
        self._row = torch.cat([self._row, row[place]], -1).gather(-1, order)
        near = torch.stack([cosine.gather(-1, place), distance.gather(-1, place)])
        self._near = torch.cat([self._near, near], -1).gather(-1, order.expand(2, *order.shape))

    def found(self, *search: int) -> dict[int, tuple[float, float, float]]:
        """What one search kept, by row: score, cosine, distance."""
        score, near = self._score[search], self._near[:, *search]
        columns = (self._row[search], score, *near)
        return {row: (a, b, c) for row, a, b, c in zip(*(x.tolist() for x in columns), strict=True) if a < math.inf}


@final
class _Search:
    """What is known so far of all queries in all parts."""

    def __init__(self, query: Float[Tensor, "b d"], parts: Sequence[slice], closeness: Closeness) -> None:
        self._query, self._parts, self._closeness = query, parts, closeness
        self._norm = _by_part(query.square(), parts)
        if not (self._norm > 0).all():
            part, row = (self._norm == 0).nonzero()[0].tolist()
            raise ValueError(f"query {row} is zero in part {part}, so nothing can look like it there")
        self._levels = [("cosine", level) for level in closeness.cosine]
        self._levels += [("distance", level) for level in closeness.distance]
        shape, device = self._norm.shape, query.device
        self._within = torch.zeros((len(self._levels), *shape), dtype=torch.long, device=device)
        self._histogram = torch.zeros((*shape, closeness.bins), dtype=torch.long, device=device)
        self._considered = torch.zeros(len(query), dtype=torch.long, device=device)
        self._samples = [_Kept(shape, closeness.show, device) for _ in self._levels]
        self._rest, self._whole = (_Kept(own, closeness.show, device) for own in (shape, shape[1:]))

    def add(
        self, z: Float[Tensor, "n d"], row: Int[Tensor, "n"], lot: Float[Tensor, "n"], allowed: Bool[Tensor, "b n"]
    ) -> None:
        """Compare some states with all queries."""
        dot = torch.stack([self._query[:, part] @ z[:, part].T for part in self._parts])
        norm, bins = _by_part(z.square(), self._parts), self._closeness.bins
        cosine, distance = _compared(dot, self._norm, norm)
        for i, (measure, level) in enumerate(self._levels):
            within = (cosine >= level if measure == "cosine" else distance <= level) & allowed
            self._within[i] += within.sum(-1)
            self._samples[i].offer(torch.where(within, lot, math.inf), row, cosine, distance)
        place = ((cosine + 1) * (bins / 2)).long().clamp(0, bins - 1)
        self._histogram.scatter_add_(-1, place, allowed.long().expand_as(place))
        self._considered += allowed.sum(-1)
        whole = _compared(dot.sum(0), self._norm.sum(0), norm.sum(0))
        self._whole.offer(torch.where(allowed, -whole[0], math.inf), row, *whole)
        if len(self._parts) > 1:
            rest = _compared(*(_others(item) for item in (dot, self._norm, norm)))
            self._rest.offer(torch.where(allowed, -rest[0], math.inf), row, *rest)

    def result(self, group: Int[Tensor, "b"]) -> Preimages:
        """What was found."""

        def one(part: int, query: int) -> Preimage:
            sample = _hits([kept.found(part, query) for kept in self._samples])
            within: dict[str, list[int]] = {"cosine": [], "distance": []}
            for (measure, _), count in zip(self._levels, self._within[:, part, query].tolist(), strict=True):
                within[measure].append(count)
            rest = _hits([self._rest.found(part, query)])
            return Preimage(sample, within, self._histogram[part, query].tolist(), rest)

        queries, parts = range(len(self._query)), range(len(self._parts))
        return Preimages(
            closeness=self._closeness,
            edges=torch.linspace(-1, 1, self._closeness.bins + 1).tolist(),
            considered=self._considered.tolist(),
            whole=[_hits([self._whole.found(query)]) for query in queries],
            parts=[[one(part, query) for part in parts] for query in queries],
            group=group,
        )


def _hits(searches: Sequence[dict[int, tuple[float, float, float]]]) -> Hits:
    """Each state that any of the searches kept once, by its score, which is the same in all of them."""
    joined = {row: values for found in searches for row, values in found.items()}
    rows = sorted(joined, key=lambda row: (joined[row][0], row))
    cosine, distance = ([joined[row][i] for row in rows] for i in (1, 2))
    return Hits(torch.tensor(rows, dtype=torch.long), torch.tensor(cosine), torch.tensor(distance))


def _rotated(x: Float[Tensor, "n d"], subspaces: Subspaces, what: str) -> Float[Tensor, "n d"]:
    if bad := int((~x.isfinite().all(1)).sum()):
        raise ValueError(f"{bad} of {len(x)} {what} are not finite")
    return subspaces.encode(x.to(subspaces.base)).z


def _by_part(squares: Float[Tensor, "n d"], parts: Sequence[slice]) -> Float[Tensor, "parts n"]:
    return torch.stack([squares[:, part].sum(1) for part in parts])


def _others(values: Float[Tensor, "parts *n"]) -> Float[Tensor, "parts *n"]:
    """The sum over all other parts: added up, not subtracted, for one part may hold nearly all of a state."""
    none = torch.zeros_like(values[:1])
    before, after = values[:-1].cumsum(0), values[1:].flip(0).cumsum(0).flip(0)
    return torch.cat([none, before]) + torch.cat([after, none])


def _compared(
    dot: Float[Tensor, "*part b n"], query: Float[Tensor, "*part b"], norm: Float[Tensor, "*part n"]
) -> tuple[Float[Tensor, "*part b n"], Float[Tensor, "*part b n"]]:
    """Cosines, and distances over the query's length, from products and squared lengths."""
    query, norm = query[..., None], norm[..., None, :]
    smallest = torch.finfo(dot.dtype).tiny
    cosine = dot / (query.sqrt() * norm.sqrt()).clamp_min(smallest)
    squared = (query + norm - 2 * dot).clamp_min(0)
    return cosine.clamp(-1, 1), (squared / query.clamp_min(smallest)).sqrt()
