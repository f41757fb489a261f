"""Nearest neighbors of many queries in many subspaces at once, exact, without all distances ever being held.

The keys are rotated once for all parts. In a part, ½‖k‖² − q·k orders the keys k of a query q as their distances do, so
one matrix product scores a chunk of keys that stays in the cache. Of the scores only the smallest of every few keys is
kept, which is far cheaper than to track places; the winners' few keys are then compared by their true distances.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

Metric = Literal["euclidean", "cosine"]

_GROUP = 16
"""Keys of which only the smallest score is kept."""
_SPAN = 32
"""Groups of which only the smallest score is looked at first."""
_LARGEST = 1.5e4
"""Half the largest squared norm in half precision; no score then exceeds three times as much."""


@dataclass(frozen=True, eq=False)
class Matches:
    """The places among the keys of the neighbors in every part, nearest first, and how far away they are."""

    index: Int[Tensor, "parts b k"]
    distance: Float[Tensor, "parts b k"]


@dataclass(frozen=True, eq=False)
class Neighborhood:
    """Queries and the keys among which their neighbors are sought.

    ``own`` is the place of each query among the keys, −1 where it is not among them. ``query_document`` and
    ``key_document`` number the documents; where they are given, neighbors of one's own document do not count.
    ``matches`` are neighbors that are to serve without another search, and ``rotation`` is that of the decomposition
    under trial, with its graph, so that no one computes it twice.
    """

    queries: Float[Tensor, "b d"]
    keys: Float[Tensor, "n width"]
    own: Int[Tensor, "b"] | None = None
    query_document: Int[Tensor, "b"] | None = None
    key_document: Int[Tensor, "n"] | None = None
    matches: Matches | None = None
    rotation: Float[Tensor, "d d"] | None = None

    def __post_init__(self) -> None:
        if self.queries.shape[1] != self.keys.shape[1]:
            raise ValueError(f"queries have width {self.queries.shape[1]}, keys have {self.keys.shape[1]}")
        if (self.query_document is None) != (self.key_document is None):
            raise ValueError("documents should be given for queries and keys, or for neither")

    def to(self, like: Tensor) -> "Neighborhood":
        """The same rows in the number format and on the device of a tensor."""
        places = {name: getattr(self, name) for name in ("own", "query_document", "key_document")}
        moved = {name: None if place is None else place.to(like.device) for name, place in places.items()}
        return replace(self, queries=self.queries.to(like), keys=self.keys.to(like), **moved)

    def only(self, queries: slice) -> "Neighborhood":
        """Some of the queries, among the same keys."""
        own, document = (None if place is None else place[queries] for place in (self.own, self.query_document))
        return replace(self, queries=self.queries[queries], own=own, query_document=document)


def nearest(
    near: Neighborhood,
    rotation: Float[Tensor, "d d"],
    parts: Sequence[slice],
    k: int = 1,
    metric: Metric = "euclidean",
) -> Matches:
    """The k nearest keys of every query in every part of a rotated space.

    A distance is ‖R_s (q − k)‖, computed from the difference, so that a duplicate is at exactly zero; or 1 − cos of
    R_s q and R_s k, in which a state that vanishes in a part is at right angles to all. On a graphics card scores are
    in half precision, and more candidates are compared in full.

    Raises:
        ValueError: for widths that differ, parts that are not there, states that are not finite, or a query with fewer
            than k keys that count.
    """
    return _nearest(near, rotation.detach(), parts, k, metric, half=rotation.is_cuda)


@torch.no_grad()
def _nearest(
    near: Neighborhood, rotation: Tensor, parts: Sequence[slice], k: int, metric: Metric, *, half: bool
) -> Matches:
    _check(near, rotation, parts, k)
    near = near.to(rotation)
    # distances do not depend on the origin, but their rounding does
    center = _mean(near) if metric == "euclidean" else torch.zeros_like(_mean(near))
    keys, queries = (_rotated(rows, center, rotation) for rows in (near.keys, near.queries))
    excluded = _excluded(near)
    index = near.keys.new_empty(len(parts), len(queries), k, dtype=torch.int64)
    for alike in _alike(parts, together=half):
        table = _table(keys, [parts[i] for i in alike], metric, padded=True)
        asked = _table(queries, [parts[i] for i in alike], metric, padded=False)
        tile = 4096 if half else 1024
        for start in range(0, len(queries), tile):
            these = slice(start, start + tile)
            groups = _groups(table, asked[:, these], excluded.of(these), k + 3 if half else k, half=half)
            index[alike, these] = _among(table, asked[:, these], groups, near, these, k, metric)
    pairs = zip(parts, index, strict=True)
    return Matches(index, torch.stack([_distance(near, rotation[part], places, metric) for part, places in pairs]))


def _mean(near: Neighborhood) -> Tensor:
    """The mean of the keys, which is finite if they are.

    Raises:
        ValueError: naming the first row that is not.
    """
    mean = near.keys.mean(0)
    if not (mean.isfinite().all() and near.queries.isfinite().all()):
        for name, rows in (("keys", near.keys), ("queries", near.queries)):
            if len(bad := (~rows.isfinite()).any(1).nonzero().flatten()):
                raise ValueError(f"{name} should be finite: row {int(bad[0])} is the first of {len(bad)} that are not")
        raise ValueError("the mean of the keys overflows")
    return mean


class _Excluded(NamedTuple):
    """Pairs of a key and a query that are no neighbors, in the order of the keys."""

    key: Tensor
    query: Tensor

    def of(self, queries: slice) -> "_Excluded":
        """Those of some queries, which are counted from the first of them."""
        if not len(self.key):
            return self
        kept = (self.query >= queries.start) & (self.query < queries.stop)
        return _Excluded(self.key[kept], self.query[kept] - queries.start)


def _excluded(near: Neighborhood) -> _Excluded:
    pairs = list[Tensor]()
    if near.own is not None:
        asking = (near.own >= 0).nonzero().flatten()
        pairs.append(torch.stack((near.own[asking], asking)))
    if near.key_document is not None and near.query_document is not None:
        for start in range(0, len(near.keys), 4096):
            same = near.key_document[start : start + 4096, None] == near.query_document
            key, query = same.nonzero().unbind(1)
            pairs.append(torch.stack((key + start, query)))
    if not pairs:
        return _Excluded(*near.keys.new_empty(2, 0, dtype=torch.int64))
    key, query = torch.cat(pairs, dim=1)
    order = key.argsort()
    return _Excluded(key[order], query[order])


def _alike(parts: Sequence[slice], *, together: bool) -> Iterator[list[int]]:
    """Parts that are searched in one product: those of one size on a graphics card, single ones elsewhere."""
    sizes = [part.stop - part.start for part in parts]
    if together:
        yield from ([i for i, size in enumerate(sizes) if size == each] for each in sorted(set(sizes)))
    else:
        yield from ([i] for i in range(len(parts)))


def _rotated(rows: Tensor, center: Tensor, rotation: Tensor) -> Tensor:
    out = rows.new_empty(rows.shape)
    for start in range(0, len(rows), 4096):
        these = slice(start, start + 4096)
        torch.mm(rows[these] - center, rotation.T, out=out[these])
    return out


def _table(z: Tensor, parts: Sequence[slice], metric: Metric, *, padded: bool) -> Float[Tensor, "parts rows size"]:
    """Coordinates in parts of one size, and behind those of keys their ½‖k‖², infinite for rows that only fill up.

    Queries get −1 times their coordinates and a one, so that the product of both is the score.
    """
    rows, size = len(z), parts[0].stop - parts[0].start
    filled = -(-rows // (_GROUP * _SPAN)) * _GROUP * _SPAN if padded else rows
    table = z.new_zeros(len(parts), filled, size + 1)
    for own, part in zip(table, parts, strict=True):
        own[:rows, :size] = z[:, part]
    head = table[:, :rows, :size]
    squared = head.square().sum(-1)
    if metric == "cosine":
        head.div_(squared.sqrt().clamp(min=torch.finfo(z.dtype).tiny)[..., None])
        squared.fill_(1)
    if padded:
        table[:, :rows, size], table[:, rows:, size] = squared / 2, torch.inf
    else:
        head.neg_()
        table[..., size] = 1
    return table


def _groups(
    table: Tensor, asked: Tensor, excluded: _Excluded, wanted: int, *, half: bool
) -> Int[Tensor, "parts b groups"]:
    """For every query the groups of keys that have the smallest scores."""
    parts, rows, _ = table.shape
    queries = asked.shape[1]
    if half:
        largest = max(float(rows[..., :-1].square().sum(-1).max()) / 2 for rows in (table, asked))
        shrink = min(1.0, math.sqrt(_LARGEST / max(largest, 1.0)))
        table, asked = table * shrink, asked * shrink
        table[..., -1] *= shrink
        asked[..., -1] = 1
        table, asked = table.half(), asked.half()
    asked = asked.mT.contiguous()
    unit = _GROUP * _SPAN
    chunk = max(unit, (2**29 if table.is_cuda else 2**19) // (parts * queries) // unit * unit)
    starts = list(range(0, rows, chunk))
    bounds = torch.searchsorted(excluded.key, torch.tensor([*starts, rows], device=table.device)).tolist()
    least = table.new_empty(parts, rows // _GROUP, queries)
    scores = table.new_empty(parts, min(chunk, rows), queries)
    for i, start in enumerate(starts):
        stop = min(start + chunk, rows)
        piece = scores[:, : stop - start]
        torch.bmm(table[:, start:stop], asked, out=piece)
        if bounds[i] < bounds[i + 1]:
            pairs = slice(bounds[i], bounds[i + 1])
            piece[:, excluded.key[pairs] - start, excluded.query[pairs]] = torch.inf
        into = least[:, start // _GROUP : stop // _GROUP]
        torch.amin(piece.view(parts, -1, _GROUP, queries), 2, out=into)
    # the m smallest are found in the m spans whose own smallest are least
    spans = least.view(parts, -1, _SPAN, queries)
    first = spans.amin(2)
    chosen = first.topk(min(wanted, first.shape[1]), dim=1, largest=False).indices
    within = spans.gather(1, chosen[:, :, None].expand(-1, -1, _SPAN, -1)).flatten(1, 2)
    best = within.topk(min(wanted, within.shape[1]), dim=1, largest=False).indices
    return (chosen.gather(1, best // _SPAN) * _SPAN + best % _SPAN).mT


def _among(
    table: Tensor, asked: Tensor, groups: Tensor, near: Neighborhood, these: slice, k: int, metric: Metric
) -> Int[Tensor, "parts b k"]:
    """The nearest keys in some groups, by differences."""
    parts, rows, width = table.shape
    count, within = groups.shape[2], torch.arange(_GROUP, device=table.device)
    offset = torch.arange(parts, device=table.device)[:, None, None] * (rows // _GROUP)
    picked = table.view(-1, _GROUP * width).index_select(0, (groups + offset).flatten())
    picked = picked.view(parts, -1, count * _GROUP, width)
    away = picked[..., :-1].add(asked[:, :, None, :-1]).square_().sum(-1)
    if metric == "cosine":
        # a key that vanishes has no direction: it is at right angles, not at half the distance
        away.masked_fill_((picked[..., :-1] == 0).all(-1), 2)
    place = (groups[..., None] * _GROUP + within).flatten(2)
    barred = place >= len(near.keys)
    if near.own is not None:
        barred |= place == near.own[these, None]
    if near.key_document is not None and near.query_document is not None:
        barred |= near.key_document[place.clamp(max=len(near.keys) - 1)] == near.query_document[these, None]
    nearest_ones = away.masked_fill_(barred, torch.inf).topk(k, largest=False)
    if (short := nearest_ones.values[..., -1].isinf().any(0)).any():
        query = int(short.nonzero()[0])
        count = int(nearest_ones.values[0, query].isfinite().sum())
        raise ValueError(f"query {query + these.start} has {count} keys that count as neighbors, {k} are wanted")
    return place.gather(2, nearest_ones.indices)


def _distance(near: Neighborhood, basis: Tensor, index: Int[Tensor, "b k"], metric: Metric) -> Float[Tensor, "b k"]:
    away = (near.queries[:, None] - near.keys[index]) @ basis.T
    if metric == "euclidean":
        return away.norm(dim=-1)
    here = (near.queries @ basis.T)[:, None].expand_as(away)
    return cosine_distance(here, here - away)


def cosine_distance(x: Float[Tensor, "*n d"], y: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
    """1 − cos, as half the squared distance of the unit vectors; 1 where a vector vanishes."""
    tiny = torch.finfo(x.dtype).tiny
    lengths = [v.norm(dim=-1, keepdim=True) for v in (x, y)]
    halved = (x / lengths[0].clamp(min=tiny) - y / lengths[1].clamp(min=tiny)).square().sum(-1) / 2
    return torch.where((lengths[0] > 0) & (lengths[1] > 0), halved.unsqueeze(-1), 1.0).squeeze(-1)


def _check(near: Neighborhood, rotation: Tensor, parts: Sequence[slice], k: int) -> None:
    width = len(rotation)
    if near.keys.shape[1] != width:
        raise ValueError(f"the hidden states have width {near.keys.shape[1]}, the rotation turns width {width}")
    if not parts or not all(0 <= part.start < part.stop <= width for part in parts):
        raise ValueError(f"parts should be ranges of the {width} coordinates, they are {list(parts)}")
    if not 1 <= k <= len(near.keys):
        raise ValueError(f"{k} neighbors are sought among {len(near.keys)} keys")
