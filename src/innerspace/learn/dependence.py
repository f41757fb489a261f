"""How dependent the parts of a partition are: mutual information of all pairs, and what chance would make of it.

The estimator is the first of Kraskov, Stögbauer and Grassberger (Phys. Rev. E 69, 066138, 2004), KSG: for a query, ε is
the distance to its k-th neighbor in the joint space of two parts, under the larger of the two distances, and nᵢ, nⱼ
count the keys that are strictly nearer than ε in each part alone. With N − 1 keys that count,

    Î = ψ(k) + ψ(N) − ⟨ψ(nᵢ + 1) + ψ(nⱼ + 1)⟩  nats.

Two faults are inherited, and reported. It cannot exceed ``ceiling`` = ψ(N) − ψ(k), so a threshold on Î / (dᵢ + dⱼ)
bounds how large parts become. And states that coincide make ε zero and every count zero, which reads as full
dependence even between independent parts; ``ties="counted"`` counts the coincident keys instead (after Gao et al.,
"Estimating Mutual Information for Discrete-Continuous Mixtures", 2017) and changes nothing where no states coincide.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.decompose.subspaces import Subspaces, random_rotation
from innerspace.learn.neighbors import Neighborhood

Scale = Literal["variance", "median"]
Ties = Literal["strict", "counted"]

_DIRECT = 2
"""Up to this width distances are summed from differences; beyond, products are faster and precise enough."""


@dataclass(frozen=True, eq=False)
class Dependence:
    """Mutual information of all pairs of parts, in nats, and what is needed to judge it.

    Matrices are symmetric; what was not estimated, the diagonal first of all, is NaN. ``error`` is the standard error
    over queries. ``saturated`` is the share of queries at the estimator's ``ceiling``, ``tied`` that of queries that
    coincide with a key in both parts. ``null`` and ``null_error`` are the same estimates after the rows of every part
    were shuffled independently, once for each of several shuffles. ``mixed`` is the information of
    random cuts of the joint space of a pair, see ``mixtures``.
    """

    information: Float[Tensor, "s s"]
    error: Float[Tensor, "s s"]
    saturated: Float[Tensor, "s s"]
    tied: Float[Tensor, "s s"]
    ceiling: float
    null: Float[Tensor, "shuffles s s"]
    null_error: Float[Tensor, "shuffles s s"]
    mixed: Float[Tensor, "s s"]

    @property
    def excess(self) -> Float[Tensor, "s s"]:
        """The information less what shuffled rows give: the estimator's bias is the same in both."""
        return self.information - (self.null.mean(0) if len(self.null) else 0)

    @property
    def z(self) -> Float[Tensor, "s s"]:
        """How many standard deviations of the null the information exceeds its mean.

        The standard error over queries says how the deviations of pairs relate; how large they are, the scatter of all
        pairs over the shuffles tells. (Queries share their keys, so their own error is too small.)

        Raises:
            ValueError: if there were fewer than two shuffles.
        """
        count = len(self.null)
        if count < 2:
            raise ValueError(f"the scatter of the null takes at least two shuffles, there were {count}")
        mean, error = self.null.mean(0), self.null_error.mean(0)
        above = torch.ones_like(mean, dtype=torch.bool).triu(1)
        inflation = ((self.null - mean) / error).square().sum(0)[above].nanmean() / (count - 1)
        return (self.information - mean) / (error * (inflation * (1 + 1 / count)).sqrt())

    @property
    def p(self) -> Float[Tensor, "s s"]:
        """The chance of so much information, or more, between independent parts; one-sided, of a normal law."""
        return torch.special.ndtr(-self.z)

    def significant(self, level: float) -> Bool[Tensor, "s s"]:
        """Pairs that are dependent, with a share of at most ``level`` of false ones (Benjamini and Hochberg)."""
        above = torch.ones_like(self.p, dtype=torch.bool).triu(1)
        p = self.p[above]
        ranked = p.sort().values
        passing = ranked[ranked <= level * torch.arange(1, len(p) + 1, device=p.device) / len(p)]
        return self.p <= (passing[-1] if len(passing) else -1.0)


@torch.no_grad()
def dependence(
    what: Subspaces,
    near: Neighborhood,
    *,
    k: int = 1,
    scale: Scale = "variance",
    ties: Ties = "counted",
    shuffles: int = 0,
    seed: int = 0,
) -> Dependence:
    """Mutual information of all pairs of parts, by KSG, in one pass over queries and keys.

    Distances in a part are divided by the square root of its variance, or by the ``median`` distance to the nearest
    neighbor, which outliers leave alone. Keys that are the query itself, or of its document, do not count. The rows are
    never held for all pairs: the memory is twice the keys and about 0.3 GB.

    Raises:
        ValueError: for rows that are not finite or of another width, fewer keys than neighbors, or a constant part.
    """
    sample = _sample(what, near, k, scale, ties)
    found = _estimate(sample, len(sample.sizes) - 1)
    generator = torch.Generator().manual_seed(seed)
    null = [_estimate(_shuffled(sample, generator), len(sample.sizes) - 1) for _ in range(shuffles)]
    empty = found.information[None][:0]
    return replace(
        found,
        null=torch.stack([one.information for one in null]) if null else empty,
        null_error=torch.stack([one.error for one in null]) if null else empty,
    )


@torch.no_grad()
def mixtures(
    what: Subspaces,
    near: Neighborhood,
    pairs: Sequence[tuple[int, int]],
    *,
    k: int = 1,
    scale: Scale = "variance",
    ties: Ties = "counted",
    draws: int = 3,
    seed: int = 0,
) -> Float[Tensor, "s s"]:
    """For some pairs, how dependent random cuts of their joint space are: the unit of how natural their own cut is.

    The joint space is turned evenly at random and cut into the same two sizes; the mean over ``draws`` of the
    information of the two sides. Sizes, rows and saturation are those of the pair itself, so the estimator's faults
    fall on both alike. Other pairs are NaN.
    """
    mixed = torch.full((len(what.sizes),) * 2, torch.nan, dtype=torch.float64, device=near.keys.device)
    generator = torch.Generator().manual_seed(seed)
    for i, j in pairs:
        sizes = [what.sizes[i], what.sizes[j]]
        joint = torch.cat([what.basis(i), what.basis(j)])
        found = list[float]()
        for _ in range(draws):
            turned = random_rotation(sum(sizes), generator).to(joint) @ joint
            cut = _scaled(near, turned, sizes, k, scale, ties)
            found.append(float(_estimate(cut, 1).information[0, 1]))
        mixed[i, j] = mixed[j, i] = sum(found) / draws
    return mixed


@torch.no_grad()
def dependence_on_first(
    near: Neighborhood, rows: Float[Tensor, "n d"], sizes: Sequence[int], *, k: int, scale: Scale, ties: Ties
) -> Float[Tensor, "others"]:
    """Mutual information of the first of some parts with each of the others; ``rows`` span the parts in turn."""
    return _estimate(_scaled(near, rows, sizes, k, scale, ties), 1).information[0, 1:]


@dataclass(frozen=True, eq=False)
class _Sample:
    """Coordinates of queries and keys, scaled by part, and what counts as a neighbor."""

    queries: Tensor
    keys: Tensor
    sizes: tuple[int, ...]
    near: Neighborhood
    k: int
    counted: bool


def _sample(what: Subspaces, near: Neighborhood, k: int, scale: Scale, ties: Ties) -> _Sample:
    width = near.keys.shape[-1]
    if width != what.width:
        raise ValueError(f"the hidden states have width {width}, the subspaces divide width {what.width}")
    if len(what.sizes) < 2:
        raise ValueError("dependence takes at least two parts, there is one")
    return _scaled(near, what.rotation, what.sizes, k, scale, ties)


def _scaled(near: Neighborhood, rows: Tensor, sizes: Sequence[int], k: int, scale: Scale, ties: Ties) -> _Sample:
    near = near.to(rows)
    if not (near.queries.isfinite().all() and near.keys.isfinite().all()):
        raise ValueError("some hidden states are not finite")
    mean = near.keys.mean(0)
    queries, keys = (near.queries - mean) @ rows.T, (near.keys - mean) @ rows.T
    variance = torch.stack([part.sum() for part in keys.var(0, correction=0).split(list(sizes))])
    least = torch.finfo(keys.dtype).eps ** 2 * variance.sum()
    if constant := (variance <= least).nonzero().flatten().tolist():
        raise ValueError(f"the hidden states do not vary in part {constant[0]}; leave its directions out, or merge it")
    sample = _Sample(queries, keys, tuple(sizes), near, k, ties == "counted")
    most = int(_barred_count(sample).max()) if _bars(near) else 0
    if not 1 <= k <= len(keys) - most:
        raise ValueError(f"k = {k} neighbors are sought among {len(keys) - most} keys that count for some query")
    units = variance.sqrt()
    sample = _in_units(sample, units)
    return sample if scale == "variance" else _in_units(sample, _median_distance(sample))


def _in_units(sample: _Sample, units: Tensor) -> _Sample:
    by = units.repeat_interleave(torch.tensor(sample.sizes, device=units.device))
    return replace(sample, queries=sample.queries / by, keys=sample.keys / by)


def _median_distance(sample: _Sample, most: int = 1024) -> Tensor:
    """By part, the median distance of some queries to their nearest key."""
    least = list[Tensor]()
    for at, tile in _tiles(sample):
        if at.start < most:
            least.append(tile.amin((0, 3)))
    median = torch.cat(least, 1).median(1).values.sqrt()
    if tied := (median == 0).nonzero().flatten().tolist():
        raise ValueError(f"half of the states coincide with others in part {tied[0]}: take scale='variance'")
    return median


def _shuffled(sample: _Sample, generator: torch.Generator) -> _Sample:
    """Every part in an order of its own; a query that is among the keys stays there."""
    keys, queries = torch.empty_like(sample.keys), torch.empty_like(sample.queries)
    begin = 0
    for size in sample.sizes:
        part = slice(begin, begin + size)
        for new, old in ((keys, sample.keys), (queries, sample.queries)):
            order = torch.randperm(len(old), generator=generator).to(old.device)
            new[:, part] = old[order, part]
        begin += size
    if (own := sample.near.own) is not None:
        queries = torch.where((own >= 0)[:, None], keys[own.clamp(min=0)], queries)
    return replace(sample, queries=queries, keys=keys)


def _estimate(sample: _Sample, leading: int) -> Dependence:
    """KSG between each of the ``leading`` parts and all parts behind it."""
    parts, b, k = len(sample.sizes), len(sample.queries), sample.k
    device = sample.keys.device
    psi = torch.special.digamma(torch.arange(1, len(sample.keys) + 2, dtype=torch.float64, device=device))
    others = len(sample.keys) - (_barred_count(sample) if _bars(sample.near) else 0)
    total = psi[others] if isinstance(others, Tensor) else psi[others].expand(b)
    shape = (parts, parts)
    sums, squares, saturated, tied = (torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(4))
    for at, tile in _tiles(sample):
        radius = _radii(tile, k, leading)
        counts = _counts(tile, radius, leading)
        local = psi[k - 1] - psi[counts] - psi[counts.mT]
        ties = radius.permute(2, 0, 1) == 0
        if sample.counted and (rows := ties.flatten(1).any(1)).any():
            local[rows] = torch.where(ties[rows], _coincident(tile[:, :, rows], psi), local[rows])
        local += total[at, None, None]
        sums += local.sum(0)
        squares += local.square().sum(0)
        saturated += (counts + counts.mT <= 2 * (k - 1)).sum(0)
        tied += ties.sum(0)
    unknown = torch.ones(shape, dtype=torch.bool, device=device)
    for i in range(leading):
        unknown[i, i + 1 :] = unknown[i + 1 :, i] = False
    mean = sums / b
    error = (squares / b - mean.square()).clamp(min=0).sqrt() / b**0.5
    mean, error, saturated, tied = (m.masked_fill(unknown, torch.nan) for m in (mean, error, saturated / b, tied / b))
    ceiling = float(total.mean() - psi[k - 1])
    return Dependence(mean, error, saturated, tied, ceiling, mean[None][:0], mean[None][:0], mean * torch.nan)


def _tiles(sample: _Sample) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of some queries after others to all keys: [chunk, part, query, key], padded by infinity.

    A chunk is what the pairs are compared in; small enough to stay in a processor's cache, large enough for a device.
    """
    keys, near, sizes = sample.keys, sample.near, list(sample.sizes)
    rows, width = (32, 1024) if keys.device.type == "cpu" else (128, 8192)
    width = min(width, len(keys))
    spans = [slice(start, min(start + width, len(keys))) for start in range(0, len(keys), width)]
    tile = keys.new_full((len(spans), len(sizes), rows, width), torch.inf)
    answering = [_factors(part, asking=False) for part in keys.split(sizes, -1)]
    for start in range(0, len(sample.queries), rows):
        at = slice(start, min(start + rows, len(sample.queries)))
        asking = [_factors(part, asking=True) for part in sample.queries[at].split(sizes, -1)]
        filled = tile[:, :, : at.stop - start]
        for chunk, span in zip(filled, spans, strict=True):
            target = chunk[..., : span.stop - span.start]
            for part, (queries, among) in enumerate(zip(asking, answering, strict=True)):
                _square_distances(queries, among[span], out=target[part])
            if _bars(near):
                target.masked_fill_(_barred(near, at, span), torch.inf)
        yield at, filled


def _factors(z: Tensor, *, asking: bool) -> Tensor:
    """Coordinates with what makes ‖q − k‖² the product (−2 q, ‖q‖², 1) · (k, 1, ‖k‖²); as they are in narrow parts."""
    if z.shape[-1] <= _DIRECT:
        return z.contiguous()
    norm = z.square().sum(-1, keepdim=True) * (1 - _blur(z))
    one = torch.ones_like(norm)
    return torch.cat([-2 * z, norm, one] if asking else [z, one, norm], -1)


def _square_distances(queries: Tensor, keys: Tensor, out: Tensor) -> None:
    """Those that the arithmetic cannot tell from zero are zero, so that equal states have distance zero."""
    if keys.shape[-1] > _DIRECT:
        torch.mm(queries, keys.T, out=out)
    else:
        least = _blur(keys) ** 2
        torch.add(queries.square().sum(-1)[:, None] * -least, keys.square().sum(-1), alpha=-least, out=out)
        for q, key in zip(queries.T, keys.T, strict=True):
            gap = q[:, None] - key
            out.addcmul_(gap, gap)
    out.clamp_(min=0)


def _blur(z: Tensor) -> float:
    """The share of a squared length below which a squared difference is rounding."""
    return 16 * torch.finfo(z.dtype).eps


def _radii(tile: Tensor, k: int, leading: int) -> Tensor:
    """Squared ε by pair and query; infinite where a pair is not asked for."""
    chunks, parts, b, width = tile.shape
    buffer = tile.new_empty(parts, b, width)
    radius = tile.new_full((parts, parts, b), torch.inf)
    for i in range(leading):
        least = tile.new_full((parts - 1 - i, b, k), torch.inf)
        for chunk in range(chunks):
            joint = torch.maximum(tile[chunk, i], tile[chunk, i + 1 :], out=buffer[i + 1 :])
            if k == 1:
                least = torch.minimum(least, joint.amin(-1, keepdim=True))
            else:
                nearest = joint.topk(min(k, width), -1, largest=False, sorted=False).values
                least = torch.cat([least, nearest], -1).topk(k, -1, largest=False).values
        radius[i, i + 1 :] = radius[i + 1 :, i] = least.amax(-1)
    return radius


def _counts(tile: Tensor, radius: Tensor, leading: int) -> Int[Tensor, "b s s"]:
    """How many keys are nearer than ε in the first part of a pair alone."""
    _, parts, b, width = tile.shape
    buffer = tile.new_empty(parts, b, width)
    counts = tile.new_zeros(parts, parts, b)
    for distances in tile:
        for i in range(parts):
            # pairs that are not asked for would cost as much as the others
            wanted = slice(None) if i < leading else slice(0, leading)
            # comparing into numbers is several times faster than comparing into truth values and counting those
            inside = torch.lt(distances[i], radius[i, wanted, :, None], out=buffer[wanted])
            counts[i, wanted] += inside.sum(-1)
    return counts.permute(2, 0, 1).long()


def _coincident(tile: Tensor, psi: Tensor) -> Tensor:
    """ψ(m) − ψ(mᵢ) − ψ(mⱼ), where m keys coincide with the query in both parts, and mᵢ, mⱼ in each."""
    zero = (tile == 0).permute(2, 1, 0, 3).flatten(2).to(tile.dtype)
    joint = (zero @ zero.mT).long()
    alone = psi[joint.diagonal(dim1=1, dim2=2) - 1]
    return psi[joint - 1] - alone[:, :, None] - alone[:, None, :]


def _bars(near: Neighborhood) -> bool:
    return near.own is not None or near.query_document is not None


def _barred(near: Neighborhood, at: slice, span: slice) -> Bool[Tensor, "b n"]:
    """Which keys do not count for which query."""
    places = torch.arange(span.start, span.stop, device=near.keys.device)
    barred = torch.zeros(at.stop - at.start, len(places), dtype=torch.bool, device=places.device)
    if near.own is not None:
        barred |= near.own[at, None] == places
    if near.query_document is not None and near.key_document is not None:
        barred |= near.query_document[at, None] == near.key_document[span]
    return barred


def _barred_count(sample: _Sample) -> Int[Tensor, "b"]:
    near, b, n = sample.near, len(sample.queries), len(sample.keys)
    tiles = [slice(start, min(start + 256, b)) for start in range(0, b, 256)]
    return torch.cat([_barred(near, at, slice(0, n)).sum(1) for at in tiles])
