"""Neighbor distance minimization: in the right parts of a space, every state has a close neighbor in every part.

Each part holds values of one variable if neighbors in it are near, so the mean distance to the nearest neighbor judges
a partition without labels (Huang and Hahn, arXiv 2508.01916). With the matched pairs held fixed, the mean distance is
an upper bound of the one with the true neighbors that touches it where the pairs were found; so pairs may serve for
several steps, as the assignments of k-means would.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.checkpoint import State
from innerspace.decompose.base import Code, Decomposition
from innerspace.decompose.dictionary import moments
from innerspace.decompose.subspaces import Subspaces
from innerspace.harvest.epochs import check_same
from innerspace.harvest.shards import fingerprint
from innerspace.harvest.shuffled import Shuffled
from innerspace.harvest.store import Store
from innerspace.learn.neighbors import Matches, Metric, Neighborhood, nearest
from innerspace.learn.objectives import Term
from innerspace.learn.trials import Occasion, Trial, Trials
from innerspace.parallel import Share, running

Weighting = Literal["linear-equal", "linear-dim", "log-dim"]


@dataclass(frozen=True)
class NeighborDistance(Term):
    """How far the nearest neighbors are, where ρ̄_s is the mean distance in part s of d_s of the d dimensions.

    ``linear-equal`` is Σ ρ̄_s / S, every part alike, as published; ``linear-dim`` is Σ (d_s / d) ρ̄_s; ``log-dim`` is
    Σ (d_s / d) log ρ̄_s, up to a constant a bound of the total correlation between the parts.
    """

    objective: Weighting = "linear-equal"
    neighbors: int = 1
    metric: Metric = "euclidean"

    def __post_init__(self) -> None:
        if self.neighbors < 1:
            raise ValueError(f"NeighborDistance: there should be at least one neighbor, not {self.neighbors}")

    def __call__(self, trial: Trial) -> Float[Tensor, ""]:
        """The weighted sum of ρ̄_s, or of their logarithms.

        Raises:
            ValueError: if the decomposition has no subspaces, or the trial no neighborhood that fits.
        """
        what, near = trial.decomposition, trial.neighborhood
        if not isinstance(what, Subspaces):
            raise ValueError(f"{self.name} judges Subspaces, not a {type(what).__name__}")
        if near is None:
            raise ValueError(f"{self.name} needs rows among which to seek neighbors (use neighborhoods)")
        if self.objective == "log-dim" and running():
            raise ValueError(
                "the logarithm of a mean is not the sum of the processes'; take linear-dim, or one process"
            )
        mean = mean_distance(what, near, self.neighbors, self.metric)
        if self.objective == "linear-equal":
            return mean.mean()
        share = mean.new_tensor(what.sizes) / what.width
        # a part in which all have a duplicate has nothing to gain any more
        return share @ (mean if self.objective == "linear-dim" else mean.clamp(min=torch.finfo(mean.dtype).tiny).log())


def mean_distance(
    what: Subspaces, near: Neighborhood, neighbors: int = 1, metric: Metric = "euclidean"
) -> Float[Tensor, "parts"]:
    """ρ̄_s, the mean distance of the queries to their nearest neighbors in every part, differentiable in the turn.

    Raises:
        ValueError: as ``nearest``; or for matches that are not of these parts or not so many.
    """
    rotation = what.rotation if near.rotation is None else near.rotation
    near = near.to(rotation)
    matches = near.matches or nearest(near, rotation, what.parts, neighbors, metric)
    expected = (len(what.parts), len(near.queries), neighbors)
    if matches.index.shape != expected:
        raise ValueError(f"the matches are of shape {tuple(matches.index.shape)}, not parts, queries, k = {expected}")
    return cast(Tensor, _MeanDistance.apply(rotation, near, matches.index, what.parts, metric))


class _MeanDistance(torch.autograd.Function):
    """The mean distance of matched pairs in every part, with its gradient made in the same pass, part by part."""

    @staticmethod
    def forward(
        ctx: Any, rotation: Tensor, near: Neighborhood, index: Tensor, parts: Sequence[slice], metric: Metric
    ) -> Tensor:
        pull = _euclidean if metric == "euclidean" else _cosine
        means, gradient = rotation.new_empty(len(parts)), torch.empty_like(rotation)
        repeated = near.queries.repeat_interleave(index.shape[2], 0) if index.shape[2] > 1 else near.queries
        for s, part in enumerate(parts):
            away = repeated - near.keys.index_select(0, index[s].flatten())
            means[s], gradient[part] = pull(rotation[part], repeated, away)
        ctx.save_for_backward(gradient)
        ctx.sizes = [part.stop - part.start for part in parts]
        return means

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        sizes = torch.tensor(ctx.sizes, device=gradient.device)
        return gradient * grads[0].repeat_interleave(sizes)[:, None], None, None, None, None


def _euclidean(basis: Tensor, queries: Tensor, away: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """E ρ with ρ = ‖R_s Δ‖, and E[(R_s Δ / ρ) Δᵀ]; zero where ρ is."""
    inside = away @ basis.T
    distance = inside.norm(dim=1)
    pulled = inside / distance.masked_fill(distance == 0, torch.inf)[:, None]
    return distance.mean(), pulled.T @ away / len(away)


def _cosine(basis: Tensor, queries: Tensor, away: Tensor) -> tuple[Tensor, Tensor]:
    """E[1 − cos(x, y)] with x = R_s q and y = R_s k, and its gradient through both; zero where one vanishes."""
    x = queries @ basis.T
    y = x - away @ basis.T
    lengths = [v.norm(dim=1, keepdim=True) for v in (x, y)]
    both = (lengths[0] > 0) & (lengths[1] > 0)
    x, y = (v / length.masked_fill(~both, torch.inf) for v, length in zip((x, y), lengths, strict=True))
    distance = torch.where(both, (x - y).square().sum(1, keepdim=True) / 2, 1.0)
    cosine = 1 - distance
    by_x = (cosine * x - y) / lengths[0].masked_fill(~both, torch.inf)
    by_y = (cosine * y - x) / lengths[1].masked_fill(~both, torch.inf)
    # k = q − Δ
    return distance.mean(), ((by_x + by_y).T @ queries - by_y.T @ away) / len(away)


def neighborhoods(
    rows: Float[Tensor, "rows d"],
    queries: int,
    keys: int,
    seed: int,
    *,
    reuse: int = 1,
    neighbors: int = 1,
    metric: Metric = "euclidean",
    documents: Int[Tensor, "n"] | None = None,
    share: Share = Share(),
) -> Trials:
    """Trials of ``queries`` rows among ``keys`` others, every epoch in another order that depends on the seed alone.

    Queries are taken from a block of rows, keys from those that follow it in the order, and the last are followed by
    the first: with as many keys as rows, each query is judged against all others. Queries and their matches serve for
    ``reuse`` consecutive draws, or until a direction has turned by 60° since the search, as by a merge. ``documents``
    numbers the rows' documents, if neighbors of the same one should not count. Of several processes, each judges its
    ``share`` of the queries among all keys; continued after an interruption, they seek neighbors anew.

    Raises:
        ValueError: for numbers that the rows cannot fill, or rows that are not finite or all alike.
    """
    block = _block(queries, keys, reuse, seed, share)
    if queries > len(rows) or keys > len(rows):
        raise ValueError(f"{queries} queries and {keys} keys are more than the {len(rows)} rows")
    if documents is not None and len(documents) != len(rows):
        raise ValueError(f"there are {len(documents)} documents for {len(rows)} rows")
    source = _Memory(rows, min(block, len(rows) // queries * queries), keys, seed, documents)
    return _Neighborhoods(source, queries, moments(rows)[1], reuse, neighbors, metric, share)


def stored_neighborhoods(
    store: Store,
    site: str,
    queries: int,
    keys: int,
    seed: int,
    *,
    reuse: int = 1,
    neighbors: int = 1,
    metric: Metric = "euclidean",
    apart: bool = False,
    share: Share = Share(),
) -> Trials:
    """Trials of hidden states on disk, of which only the current block of queries and its keys are in memory.

    Well mixed rows come in blocks, as in the paper; queries are taken from one, keys are the blocks that follow it.
    With ``apart``, neighbors of the same document do not count. See ``neighborhoods``.

    Raises:
        ValueError: for an unknown site, numbers that the store cannot fill, or states that are all alike.
    """
    block = _block(queries, keys, reuse, seed, share)
    if block + keys > len(store):
        raise ValueError(f"{block} queries and {keys} keys are more than the {len(store)} rows of the store")
    if not (variance := float(store.moments(site)[1])):
        raise ValueError(f"the hidden states at {site!r} are all alike")
    source = _Disk(store, site, block, keys, seed, apart=apart)
    return _Neighborhoods(source, queries, torch.tensor(variance), reuse, neighbors, metric, share)


def _block(queries: int, keys: int, reuse: int, seed: int, share: Share) -> int:
    """How many rows are queries before the keys change: a 25th of the keys, as published, or one draw."""
    if min(queries, keys, reuse) < 1 or seed < 0:
        raise ValueError(
            f"queries, keys and reuse should be positive and the seed not negative: {queries}, {keys}, {reuse}, {seed}"
        )
    if queries < share.world:
        raise ValueError(f"{queries} queries are too few for {share.world} processes")
    return queries * max(1, keys // (25 * queries))


class _Source(ABC):
    """Blocks of queries, each with the keys that they share; which they are depends on the number alone."""

    def __init__(self, size: int, identity: State) -> None:
        self.size, self.identity = size, identity

    @abstractmethod
    def block(self, number: int) -> Neighborhood:
        """All queries of a block, and their keys."""


@final
class _Memory(_Source):
    def __init__(self, rows: Tensor, size: int, keys: int, seed: int, documents: Tensor | None) -> None:
        super().__init__(size, {"rows": len(rows), "block": size, "keys": keys, "seed": seed})
        self._rows, self._keys, self._seed, self._documents = rows, keys, seed, documents

    def block(self, number: int) -> Neighborhood:
        total = len(self._rows)
        epoch, place = divmod(number, total // self.size)
        order = torch.from_numpy(np.random.default_rng([self._seed, epoch]).permutation(total)).to(self._rows.device)
        order = order.roll(-place * self.size)
        asking, keys = order[: self.size], order.roll(-self.size)[: self._keys]
        own = torch.arange(total - self.size, total, device=order.device)
        documents = self._documents
        return Neighborhood(
            self._rows[asking],
            self._rows[keys],
            own.masked_fill(own >= self._keys, -1),
            None if documents is None else documents[asking],
            None if documents is None else documents[keys],
        )


@final
class _Disk(_Source):
    """A window that moves over a shuffled store, block by block."""

    def __init__(self, store: Store, site: str, size: int, keys: int, seed: int, *, apart: bool) -> None:
        self._store, self._site, self._keys, self._apart = store, site, keys, apart
        source = f"{site} of {fingerprint(store.manifest)}"
        buffer = max(size + keys, 65536)
        self._stream = Shuffled(
            self._read, len(store), source, size, seed, rank=0, world=1, block=min(32, buffer), buffer=buffer
        )
        super().__init__(size, {"source": source, "block": size, "keys": keys, "seed": seed})
        self._window, self._number = deque[Tensor](maxlen=1 - (-keys // size)), -1

    def block(self, number: int) -> Neighborhood:
        if number != self._number + 1 or not self._window:
            self._window.clear()
            self._stream.restore({**self._stream.state(), "drawn": number * self.size})
            while len(self._window) < (self._window.maxlen or 0):
                self._window.append(self._stream.next())
        else:
            self._window.append(self._stream.next())
        self._number = number
        asking, others = self._window[0], torch.cat([*self._window][1:])[: self._keys]
        mine, numbers = _numbers(asking), _numbers(others)
        # where two epochs meet a row may come twice; it counts once, and never as its own neighbor
        once = np.zeros(len(numbers), dtype=bool)
        once[np.unique(numbers.numpy(), return_index=True)[1]] = True
        keys = others[torch.from_numpy(once) & ~torch.isin(numbers, mine)]
        if not self._apart:
            return Neighborhood(asking[:, :-2], keys[:, :-2])
        mine, theirs = (self._store.places(_numbers(rows)).document for rows in (asking, keys))
        return Neighborhood(asking[:, :-2], keys[:, :-2], query_document=mine, key_document=theirs)

    def _read(self, index: Tensor) -> Tensor:
        """Rows, and behind each its number in two parts, which floating point holds exactly."""
        number = torch.stack((index // _EXACT, index % _EXACT), dim=1)
        return torch.cat((self._store.rows(self._site, index).float(), number.float()), dim=1)


_EXACT = 2**20


def _numbers(rows: Tensor) -> Tensor:
    return rows[:, -2].long() * _EXACT + rows[:, -1].long()


class _Held(NamedTuple):
    """Matches, and the rotation with which they were found."""

    matches: Matches
    rotation: Tensor
    sizes: tuple[int, ...]

    def serve(self, what: Subspaces, rotation: Tensor) -> bool:
        return self.sizes == what.sizes and bool((self.rotation * rotation).sum(1).min() > 0.5)


@final
class _Neighborhoods(Trials):
    def __init__(
        self,
        source: _Source,
        queries: int,
        variance: Tensor,
        reuse: int,
        neighbors: int,
        metric: Metric,
        share: Share,
    ) -> None:
        self._source, self._variance, self._identity = source, variance, dict(source.identity)
        self._identity |= {"queries": queries, "reuse": reuse, "neighbors": neighbors, "metric": metric}
        self._queries, self._reuse, self._neighbors = queries, reuse, neighbors
        self._metric: Metric = metric
        self._share = share
        self._block: tuple[int, Neighborhood] | None = None
        self._drawn, self._held = 0, list[_Held]()

    def draw(self, needs: Set[str] = frozenset()) -> Occasion:
        if needs:
            raise ValueError(f"rows alone do not tell {', '.join(sorted(needs))}; that takes spliced trials")
        if self._drawn % self._reuse == 0:
            self._held.clear()
        number, turn = divmod(self._drawn // self._reuse, self._source.size // self._queries)
        if self._block is None or self._block[0] != number:
            self._block = number, self._source.block(number)
        self._drawn += 1
        first = turn * self._queries
        return _Among(self, slice(first + self._share.rank, first + self._queries, self._share.world))

    def state(self) -> State:
        held = [
            {"index": one.matches.index, "distance": one.matches.distance, "rotation": one.rotation, "sizes": one.sizes}
            for one in self._held
            # those of one process are no use to another
            if self._share.world == 1
        ]
        return {**self._identity, "drawn": self._drawn, "held": held}

    def restore(self, state: State) -> None:
        check_same(self._identity, state)
        self._drawn = state["drawn"]
        self._held = [
            _Held(Matches(one["index"], one["distance"]), one["rotation"], tuple(one["sizes"])) for one in state["held"]
        ]

    def try_on(self, what: Subspaces, turn: int, queries: slice) -> Trial:
        """The trial of the ``turn``-th decomposition on some queries of the current block."""
        assert self._block is not None
        like, rotation = what.base, what.rotation
        # what is moved or converted once serves all trials on the block
        self._block = self._block[0], self._block[1].to(like)
        near = self._block[1].only(queries)
        if turn >= len(self._held) or not self._held[turn].serve(what, rotation):
            matches = nearest(near, rotation, what.parts, self._neighbors, self._metric)
            self._held[turn : turn + 1] = [_Held(matches, rotation.detach(), what.sizes)]
        near = replace(near, matches=self._held[turn].matches, rotation=rotation)
        z = near.queries @ rotation.T
        code = Code(z, z, z.new_zeros(len(z)))
        return Trial(near.queries, near.queries, code, what, self._variance.to(like), neighborhood=near)


@final
class _Among(Occasion):
    def __init__(self, stream: _Neighborhoods, queries: slice) -> None:
        self._stream, self._queries, self._turn = stream, queries, -1

    def trial(self, what: Decomposition, site: str = "", needs: Set[str] = frozenset()) -> Trial:  # noqa: ARG002
        if not isinstance(what, Subspaces):
            raise ValueError(f"neighbors are sought in the parts of Subspaces, not of a {type(what).__name__}")
        self._turn += 1
        return self._stream.try_on(what, self._turn, self._queries)
