"""How alike the directions of dictionaries are: within one, between two, and along the data's principal directions.

The measure is the cosine of every direction with its most similar one, ``nearest``; its distribution over directions
means little without what chance gives in the same width and number, so it stands beside that of stand-ins of three
kinds. Intervals are those of a bootstrap over directions: they say how sure a mean over latents is for these
dictionaries, not how it would differ in others trained anew (repeat with other seeds, ``over_seeds``), and they are no
test.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.measure.estimate import Estimate, from_copies
from innerspace.measure.neighbors import (
    ASSIGNABLE,
    CHUNK,
    Matching,
    Nearest,
    assign,
    mutual,
    nearest,
    nearest_both,
    units,
)
from innerspace.value import Value

LEVELS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""The levels of ``Similarity.quantiles``."""

CHANCES = ("isotropic", "covariance", "shuffled")
"""What may stand in for a dictionary.

``isotropic``: directions drawn evenly from the sphere. ``covariance``: Gaussian ones with the second moment of the
dictionary's unit rows, so alike where it only prefers some part of the space (the moment of few rows is less even than
that of many: with five rows per coordinate, stand-ins for isotropic rows are a tenth more alike than these).
``shuffled``: its own rows, the coordinates of each in an order of its own, so alike where it is only few coordinates
that are large.
"""


@dataclass(frozen=True)
class Similarity(Value):
    """The distribution of a cosine similarity over ``count`` directions or pairs.

    ``quantiles`` are those at ``LEVELS``; ``histogram`` counts in equal bins from −1 to 1.
    """

    count: int
    mean: Estimate
    quantiles: tuple[float, ...]
    histogram: tuple[int, ...]


@dataclass(frozen=True)
class Judged(Value):
    """Similarities beside those that stand-ins give, by the names of ``CHANCES``."""

    observed: Similarity
    chance: dict[str, Similarity]


@dataclass(frozen=True)
class Overlap(Value):
    """How far two dictionaries hold the same directions.

    ``of_a`` is the similarity of every direction of a with its nearest in b: how well b covers a; ``of_b`` the other
    way. A dictionary covers each of its parts, but not the other way, so neither is enough. ``matched`` are the pairs
    of a one-to-one matching, an assignment or, for dictionaries too large for one, the mutual nearest neighbors:
    ``share`` of as many pairs as there could be. In ``chance`` b is replaced for ``of_a`` and ``matched``, and a for
    ``of_b``.
    """

    of_a: Judged
    of_b: Judged
    matched: Judged
    matching: Literal["assignment", "mutual nearest neighbors"]
    share: float


def within(
    directions: Float[Tensor, "n d"],
    *,
    alive: Bool[Tensor, "n"] | None = None,
    chances: Sequence[str] = CHANCES,
    seed: int = 0,
    chunk: int = CHUNK,
) -> Judged:
    """How close the directions of one dictionary lie to each other: the cosine with the nearest other one.

    Raises:
        ValueError: as ``nearest``, and for an unknown stand-in.
    """
    _known(chances)
    generator = torch.Generator().manual_seed(seed)

    def summary(rows: Float[Tensor, "n d"], alive: Bool[Tensor, "n"] | None) -> Similarity:
        found = nearest(rows, alive_a=alive, chunk=chunk)
        return similarity(found.similarity[:, 0], generator, groups=pairs(found))

    observed = summary(directions, alive)
    rows = directions if alive is None else directions[alive]
    return Judged(observed, {kind: summary(stand_in(kind, rows, generator), None) for kind in chances})


def between(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "m d"],
    *,
    alive_a: Bool[Tensor, "n"] | None = None,
    alive_b: Bool[Tensor, "m"] | None = None,
    chances: Sequence[str] = CHANCES,
    seed: int = 0,
    chunk: int = CHUNK,
) -> Overlap:
    """How well two dictionaries (of two seeds, two kinds) cover each other, and how well their directions pair up.

    Raises:
        ValueError: as ``nearest``, and for an unknown stand-in.
    """
    _known(chances)
    of_a, of_b = nearest_both(a, b, alive_a=alive_a, alive_b=alive_b, chunk=chunk)
    a, b = (rows if alive is None else rows[alive] for rows, alive in ((a, alive_a), (b, alive_b)))
    small = max(len(a), len(b)) <= ASSIGNABLE
    generator = torch.Generator().manual_seed(seed)

    def match(b: Float[Tensor, "m d"], of_a: Nearest, of_b: Nearest) -> Matching:
        return assign(a, b) if small else mutual(of_a, of_b)

    matching = match(b, of_a, of_b)
    cover_a, cover_b, matched = (dict[str, Similarity]() for _ in range(3))
    for kind in chances:
        for_a, for_b = stand_in(kind, a, generator), stand_in(kind, b, generator)
        there, back = nearest_both(a, for_b, chunk=chunk)
        cover_a[kind] = similarity(there.similarity[:, 0], generator)
        cover_b[kind] = similarity(nearest(b, for_a, chunk=chunk).similarity[:, 0], generator)
        matched[kind] = similarity(match(for_b, there, back).similarity, generator)
    return Overlap(
        of_a=Judged(similarity(of_a.similarity[:, 0], generator), cover_a),
        of_b=Judged(similarity(of_b.similarity[:, 0], generator), cover_b),
        matched=Judged(similarity(matching.similarity, generator), matched),
        matching="assignment" if small else "mutual nearest neighbors",
        share=len(matching.similarity) / min(len(a), len(b)),
    )


@torch.no_grad()
def stand_in(kind: str, rows: Float[Tensor, "n d"], generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Directions of chance, as many as the rows; see ``CHANCES``.

    Raises:
        ValueError: for another kind.
    """
    _known([kind])
    noise = torch.randn(rows.shape, generator=generator).to(rows.device)
    if kind == "isotropic":
        return noise
    if kind == "shuffled":
        return rows.gather(1, noise.argsort(1))
    unit = units(rows)
    power, axes = torch.linalg.eigh((unit.T @ unit).double() / len(unit))
    return noise @ (axes * power.clamp_min(0).sqrt()).float().T


def pairs(found: Nearest) -> Int[Tensor, "n"]:
    """For rows whose neighbors were sought among themselves, a number that mutual nearest neighbors share.

    They share their similarity too. About half of random directions lie in such a pair, so an interval that took them
    for independent would be a quarter too narrow.
    """
    number = torch.arange(len(found.index), device=found.index.device)
    matching = mutual(found, found)
    number[matching.a] = torch.minimum(matching.a, matching.b)
    return number


def similarity(
    values: Float[Tensor, "n"],
    generator: torch.Generator,
    *,
    groups: Int[Tensor, "n"] | None = None,
    bins: int = 100,
) -> Similarity:
    """The distribution of cosine similarities, with the interval of ``mean``; NaN (rows left out) does not count."""
    kept = values[~values.isnan()].detach().double().cpu()
    return Similarity(
        count=len(kept),
        mean=mean(values, generator, groups=groups),
        quantiles=tuple(kept.quantile(torch.tensor(LEVELS, dtype=torch.float64)).tolist()),
        histogram=tuple(int(count) for count in torch.histc(kept, bins, -1, 1).tolist()),
    )


def mean(
    values: Float[Tensor, "n"],
    generator: torch.Generator,
    *,
    groups: Int[Tensor, "n"] | None = None,
    replicates: int = 1000,
) -> Estimate:
    """A mean with its 95 % percentile interval by bootstrap; values of one group are drawn together.

    NaN (rows left out) does not count.

    Raises:
        ValueError: if nothing counts.
    """
    estimate, copies = _resampled(values, groups, generator, replicates)
    return from_copies(estimate, copies)


def difference(
    first: Float[Tensor, "n"],
    second: Float[Tensor, "m"],
    generator: torch.Generator,
    *,
    paired: bool,
    groups: Int[Tensor, "n"] | None = None,
    second_groups: Int[Tensor, "m"] | None = None,
    replicates: int = 1000,
) -> Estimate:
    """The difference of two means, first minus second, with its 95 % percentile interval by bootstrap.

    ``paired``: entry i of both belongs to the same latent (similarities of one dictionary with two others), the latents
    are drawn, and those that either leaves out do not count. Otherwise both are drawn independently, each with its own
    groups.

    Raises:
        ValueError: if nothing counts, or pairs are asked for of different lengths or with two groupings.
    """
    if paired:
        if len(first) != len(second) or second_groups is not None:
            raise ValueError(f"pairs have one length and one grouping, got {len(first)} and {len(second)} values")
        return mean(first.double() - second.double(), generator, groups=groups, replicates=replicates)
    one, copies = _resampled(first, groups, generator, replicates)
    other, other_copies = _resampled(second, second_groups, generator, replicates)
    return from_copies(one - other, copies - other_copies)


@torch.no_grad()
def principal_directions(x: Float[Tensor, "rows d"], k: int) -> Float[Tensor, "k d"]:
    """The k orthonormal directions along which hidden states vary most, the most first, in float64.

    Raises:
        ValueError: for rows that are not finite, or for more directions than the rows span about their mean.
    """
    if not bool(x.isfinite().all()):
        raise ValueError("principal directions need finite rows")
    centered = x.double() - x.double().mean(0)
    variance, axes = torch.linalg.eigh(centered.T @ centered)
    spanned = int((variance > variance[-1].clamp_min(0) * 1e-12 * len(variance)).sum())
    if not 1 <= k <= spanned:
        raise ValueError(f"{k} principal directions were asked for, these {len(x)} rows have {spanned}")
    return axes.T.flip(0)[:k]


@torch.no_grad()
def faithfulness_along(
    x: Float[Tensor, "rows d"], x_hat: Float[Tensor, "rows d"], directions: Float[Tensor, "k d"]
) -> Float[Tensor, "k"]:
    """How far reconstructions follow hidden states along each direction: Pearson's r of the two projections.

    NaN where either does not vary. What is lost where r is low need not matter to the network: resample it and see.
    """
    here, there = (rows.double() @ directions.double().T for rows in (x, x_hat))
    here, there = here - here.mean(0), there - there.mean(0)
    return (here * there).sum(0) / (here.norm(dim=0) * there.norm(dim=0))


def principal_faithfulness(
    x: Float[Tensor, "rows d"],
    x_hat: Float[Tensor, "rows d"],
    k: int,
    *,
    among: Bool[Tensor, "rows"] | None = None,
) -> Float[Tensor, "k"]:
    """``faithfulness_along`` the first k principal directions of all hidden states, over the rows ``among``.

    In a language model the first is often that of position 0, whose outliers would make any reconstruction look
    faithful: look at the other positions apart (Braun et al. 2024, arXiv 2405.12241, appendix).

    Raises:
        ValueError: as ``principal_directions``.
    """
    kept = slice(None) if among is None else among
    return faithfulness_along(x[kept], x_hat[kept], principal_directions(x, k))


def _known(chances: Sequence[str]) -> None:
    if unknown := [kind for kind in chances if kind not in CHANCES]:
        raise ValueError(f"no stand-in is called {unknown[0]!r}; possible are {', '.join(CHANCES)}")


def _resampled(
    values: Float[Tensor, "n"], groups: Int[Tensor, "n"] | None, generator: torch.Generator, replicates: int
) -> tuple[float, Float[Tensor, "replicates"]]:
    """The mean, and its bootstrap copies over groups (of one value each where none are given)."""
    counts = ~values.isnan()
    kept = values[counts].detach().double().cpu()
    if not len(kept):
        raise ValueError(f"a mean needs at least one value, all {len(values)} are left out")
    total, size = kept, torch.ones_like(kept)
    if groups is not None:
        of = groups[counts].cpu().unique(return_inverse=True)[1]
        size = of.bincount().double()
        total = torch.zeros_like(size).index_add_(0, of, kept)
    copies = list[Tensor]()
    # some replicates at once, as many as take tens of megabytes
    for part in torch.empty(replicates).split(max(1, 2_000_000 // len(total))):
        drawn = torch.randint(len(total), (len(part), len(total)), generator=generator)
        copies.append(total[drawn].sum(1) / size[drawn].sum(1))
    return float(kept.mean()), torch.cat(copies)
