"""Partitions found by other means, to stand beside those that were trained: principal and independent components,
clusters of a dictionary's directions.

Each is an orthogonal partition into parts of given sizes. Beside it stand the coordinates as they are and random
rotations, ``Subspaces.identity`` and ``Subspaces.random``. Directions along which rows do not vary, or that no cluster
spans, cannot be placed by anything: they are counted, and which parts they go to is said with each.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, cast, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.decompose.base import Decomposition
from innerspace.decompose.subspaces import Subspaces, nearest_rotation
from innerspace.measure.neighbors import nearest, units
from innerspace.value import Value

_FLAT = 1e-6
"""Rows do not vary along a direction if their standard deviation along it is at most this share of the largest."""

_SKLEARN = "scikit-learn: pip install 'innerspace[language]'"


@dataclass(frozen=True, eq=False)
class Partition:
    """A partition, and how many of its directions are only where they are because they must be somewhere."""

    subspaces: Subspaces
    unplaced: int


@torch.no_grad()
def principal_partition(
    x: Float[Tensor, "n d"], sizes: Sequence[int], *, largest: Literal["first", "last"] = "first"
) -> Partition:
    """Principal components in their order: those along which the rows vary most make the first part, or the last.

    Directions along which they do not vary are at the other end.

    Raises:
        ValueError: for rows that are not finite or do not vary, or sizes that do not add up to their width.
    """
    _, deviation, axes = _principal(x)
    rows = axes if largest == "first" else axes.flip(0)
    return Partition(_subspaces(rows, sizes), _unplaced(deviation))


@torch.no_grad()
def independent_partition(
    x: Float[Tensor, "n d"], sizes: Sequence[int], *, seed: int = 0, starts: int = 20, iterations: int = 500
) -> Partition:
    """Independent components, grouped by the dependence that is left: independent subspace analysis in two steps.

    FastICA (Hyvärinen 1999, log cosh) makes the components; what remains between two of them is taken to be the
    correlation of their energies, |corr(sᵢ², sⱼ²)|; the components fall into groups of the given sizes with the largest
    sum of it inside, found by swaps from random ``starts``. A group stands for the span of its columns in the mixing
    matrix, in the raw space, not the whitened one; together the columns, at unit length, are replaced by the nearest
    orthogonal matrix. Directions along which rows do not vary fill the last parts.

    Raises:
        ValueError: as ``principal_partition``, for components that do not converge, or if scikit-learn is missing.
    """
    try:
        from sklearn.decomposition import FastICA
        from sklearn.exceptions import ConvergenceWarning
    except ModuleNotFoundError:
        raise ValueError(f"independent components need {_SKLEARN}") from None

    centered, deviation, axes = _principal(x)
    _check_sizes(sizes, x.shape[1])
    unplaced = _unplaced(deviation)
    kept = len(axes) - unplaced
    white = (centered @ axes[:kept].T / deviation[:kept]).cpu().numpy()
    model = FastICA(whiten=False, random_state=seed, max_iter=iterations)  # pyright: ignore[reportArgumentType]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            sources = torch.from_numpy(cast("np.ndarray", model.fit_transform(white)))
        except ConvergenceWarning:
            raise ValueError(f"the independent components did not converge in {iterations} iterations") from None
    mixing = torch.from_numpy(cast("np.ndarray", model.mixing_)).to(axes)
    columns = (mixing.T * deviation[:kept]) @ axes[:kept]
    rows = torch.cat([columns / columns.norm(dim=1, keepdim=True), axes[kept:]])
    # a source of two values of equal size has a constant energy, alike to none
    likeness = torch.corrcoef(sources.square().T).abs().nan_to_num(0).view(kept, kept)
    ends = torch.tensor([0, *sizes]).cumsum(0).clamp(max=kept).diff()
    group = grouped(likeness, ends[ends > 0].tolist(), torch.Generator().manual_seed(seed), starts)
    order = torch.cat([group.argsort(stable=True), torch.arange(kept, len(rows))])
    return Partition(_subspaces(rows[order.to(rows.device)], sizes), unplaced)


def grouped(
    likeness: Float[Tensor, "k k"], sizes: Sequence[int], generator: torch.Generator, starts: int = 20
) -> Int[Tensor, "k"]:
    """A group for each of k things, of given sizes, so that likeness inside groups is large.

    From each of several random starts, the best swap of two things is made until none helps; the best end counts.

    Raises:
        ValueError: for sizes that do not add up to k.
    """
    _check_sizes(sizes, len(likeness))
    likeness = likeness.double().cpu().clone().fill_diagonal_(0)
    begin = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    best, best_sum = begin, -math.inf
    for _ in range(starts):
        group = begin[torch.randperm(len(begin), generator=generator)]
        while True:
            # to[i, j]: how alike thing i is to the group of thing j
            to = (likeness @ torch.nn.functional.one_hot(group, len(sizes)).double())[:, group]
            own = to.diagonal()
            gain = to + to.T - own[:, None] - own - 2 * likeness
            gain[group[:, None] == group] = 0
            i, j = divmod(int(gain.argmax()), len(gain))
            if gain[i, j] <= 1e-9:
                break
            group[[i, j]] = group[[j, i]]
        if (total := float(own.sum())) > best_sum:
            best, best_sum = group, total
    return best


@dataclass(frozen=True)
class Clustering(Value, ABC):
    """How the directions of a dictionary are put into clusters."""

    @abstractmethod
    def label(self, directions: Float[Tensor, "k d"]) -> Int[Tensor, "k"]:
        """A cluster for every direction, numbered from 0."""


@final
@dataclass(frozen=True)
class NeighborGraph(Clustering):
    """Connected components of the graph in which each direction is tied to its nearest ``neighbors``.

    Only ties of at least that ``cosine`` count.
    """

    neighbors: int = 4
    cosine: float = 0.5

    def label(self, directions: Float[Tensor, "k d"]) -> Int[Tensor, "k"]:
        """A cluster for every direction; those without a tie are alone in theirs."""
        found = nearest(directions, k=self.neighbors)
        label = torch.arange(len(directions), device=directions.device)
        tied = found.similarity >= self.cosine
        a = label[:, None].expand_as(tied)[tied]
        b = found.index[tied]
        while True:
            # the smallest number among the ends of every tie spreads until nothing changes
            least = torch.minimum(label[a], label[b])
            spread = label.scatter_reduce(0, a, least, "amin").scatter_reduce(0, b, least, "amin")
            if torch.equal(spread, label):
                return label.unique(return_inverse=True)[1]
            label = spread


@final
@dataclass(frozen=True)
class SpectralClusters(Clustering):
    """Spectral clustering into ``count`` by the affinity 1 − arccos(cosine)/π (Engels et al., arXiv 2405.14860)."""

    count: int
    seed: int = 0

    def label(self, directions: Float[Tensor, "k d"]) -> Int[Tensor, "k"]:
        """A cluster for every direction.

        Raises:
            ValueError: if scikit-learn is missing, or for more clusters than directions.
        """
        if not 1 <= self.count <= len(directions):
            raise ValueError(f"{len(directions)} directions make 1 … {len(directions)} clusters, not {self.count}")
        try:
            from sklearn.cluster import SpectralClustering
        except ModuleNotFoundError:
            raise ValueError(f"spectral clusters need {_SKLEARN}") from None
        unit = units(directions).double()
        affinity = 1 - (unit @ unit.T).clamp(-1, 1).acos() / math.pi
        model = SpectralClustering(self.count, affinity="precomputed", random_state=self.seed)
        return torch.from_numpy(model.fit_predict(affinity.cpu().numpy())).long().to(directions.device)


@dataclass(frozen=True)
class ClusterRule(Value):
    """How clusters become parts.

    Those of fewer than ``smallest`` directions do not count. The others come by mean cosine inside or by size, the
    largest first. Of each, the reconstructions that it makes alone, in up to ``rows`` rows in which it is on, are
    centered and freed of what earlier parts span; directions with singular values above ``tolerance`` times the largest
    of all its reconstructions make its part.
    """

    order: Literal["cosine", "size"] = "cosine"
    smallest: int = 4
    tolerance: float = 0.03
    rows: int = 20_000

    def __post_init__(self) -> None:
        if min(self.smallest, self.rows) < 1 or not 0 < self.tolerance < 1:
            raise ValueError(f"clusters need members, rows, and a tolerance between 0 and 1: {self}")


@torch.no_grad()
def cluster_partition(
    x: Float[Tensor, "n d"],
    dictionary: Decomposition,
    clustering: Clustering,
    rule: ClusterRule | None = None,
    *,
    sizes: Sequence[int] | None = None,
) -> Partition:
    """The parts that clusters of a dictionary's directions span, and what is left of the space as the last one.

    With ``sizes`` the first clusters give as many leading directions, whatever their singular values, and what is left
    of the space fills up the parts in their order. Latents whose direction is zero belong to no cluster. The baseline
    of sparse autoencoders in the discussion of Huang and Hahn, arXiv 2508.01916.

    Raises:
        ValueError: for rows that are not finite or a dictionary of another width, sizes that do not add up to it, or if
            no cluster is large enough and on in any row.
    """
    rule = rule or ClusterRule()
    directions, d = dictionary.directions, x.shape[1]
    if directions.shape[1] != d or not bool(x.isfinite().all()):
        raise ValueError(f"{d} finite columns are needed of a dictionary that writes width {directions.shape[1]}")
    if sizes is not None:
        _check_sizes(sizes, d)
    z = dictionary.encode(x).z
    alive = directions.abs().amax(1).nonzero()[:, 0]
    label = clustering.label(directions[alive])
    clusters = [alive[label == c] for c in range(int(label.max()) + 1)]
    clusters = [members for members in clusters if len(members) >= rule.smallest]
    taken, counts = x.new_zeros(0, d, dtype=torch.float64), list[int]()
    for members in sorted(clusters, key=lambda m: -_rank(directions[m], rule.order)):
        on = z[:, members].abs().amax(1) > 0
        made = z[on][: rule.rows, members].double() @ directions[members].double()
        fresh = _leading(made, taken, rule.tolerance if sizes is None else _FLAT)
        fresh = fresh[: d - len(taken) if sizes is None else sizes[len(counts)]]
        if len(fresh):
            taken, counts = torch.cat([taken, fresh]), [*counts, len(fresh)]
        if len(taken) == d or len(counts) == len(sizes or range(d)):
            break
    if not counts:
        raise ValueError(
            f"none of {int(label.max()) + 1} clusters has {rule.smallest} directions and is ever on; "
            "cluster more coarsely, or let smaller ones count"
        )
    rest = torch.linalg.svd(taken).Vh[len(taken) :]
    if sizes is None:
        return Partition(_subspaces(torch.cat([taken, rest]), [*counts, len(rest)] if len(rest) else counts), len(rest))
    lacking = [size - count for size, count in zip_longest(sizes, counts, fillvalue=0)]
    own = [*taken.split(counts), *[taken[:0]] * (len(sizes) - len(counts))]
    pieces = [piece for both in zip(own, rest.split(lacking), strict=True) for piece in both]
    return Partition(_subspaces(torch.cat(pieces), sizes), len(rest))


def _principal(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centered rows, the standard deviations along the principal axes and these as rows, the largest first; float64."""
    if not bool(x.isfinite().all()):
        raise ValueError("a partition needs finite rows")
    centered = x.double() - x.double().mean(0)
    variance, axes = torch.linalg.eigh(centered.T @ centered / len(x))
    if not variance[-1] > 0:
        raise ValueError(f"the {len(x)} rows are all alike, there is nothing to divide them by")
    return centered, variance.clamp_min(0).sqrt().flip(0), axes.T.flip(0)


def _unplaced(deviation: Tensor) -> int:
    return int((deviation <= _FLAT * deviation[0]).sum())


def _rank(directions: Tensor, order: Literal["cosine", "size"]) -> float:
    """What clusters are ordered by: the mean cosine of two of their directions, or how many there are."""
    n = len(directions)
    if order == "size" or n == 1:
        return float(n)
    return (float(units(directions).double().sum(0).square().sum()) - n) / (n * (n - 1))


def _leading(made: Tensor, taken: Tensor, tolerance: float) -> Tensor:
    """Orthonormal directions along which rows vary, without what is taken; little is measured by all they vary.

    What is left of a cluster that earlier parts span already is no part of its own.
    """
    if not len(made):
        return taken[:0]
    centered = made - made.mean(0)
    left = centered - centered @ taken.T @ taken
    most = torch.linalg.matrix_norm(centered, 2)
    _, s, vh = torch.linalg.svd(left, full_matrices=False)
    return vh[(s > tolerance * most) & (s > 0)]


def _subspaces(rows: Tensor, sizes: Sequence[int]) -> Subspaces:
    return Subspaces(nearest_rotation(rows).float(), sizes)


def _check_sizes(sizes: Sequence[int], total: int) -> None:
    if min(sizes, default=0) < 1 or sum(sizes) != total:
        raise ValueError(f"the sizes of parts should be positive and add up to {total}; they are {list(sizes)}")
