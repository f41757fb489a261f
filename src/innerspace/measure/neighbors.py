"""Which directions are most alike: nearest neighbors and one-to-one matching by cosine similarity.

All products are taken in blocks of unit rows, in float32, and a block is searched row by row only where its maximum
beats what the row has found before, which after a few blocks is rare; so the time is that of the matrix product,
2 n m d operations between n and m rows, and half of it within one set, whose similarities are symmetric. Memory beside
the rows: two float32 copies of them and one block of ``chunk`` × ``chunk``, never an n × m matrix.

Rows may have any length but zero. Rows left out by a mask are neither asked for nor found; indices always count all
rows, so they are latents.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

ASSIGNABLE = 4096
"""Up to how many rows on either side ``assign`` works: its matrix then takes 200 MB, and it some seconds."""

CHUNK = 2048


@final
@dataclass(frozen=True, eq=False)
class Nearest:
    """The k most similar rows of each of n rows, best first; NaN and −1 for rows that a mask left out."""

    similarity: Float[Tensor, "n k"]
    index: Int[Tensor, "n k"]


@final
@dataclass(frozen=True, eq=False)
class Matching:
    """Pairs of rows of two sets, none of which occurs twice, and their cosine similarity."""

    a: Int[Tensor, "m"]
    b: Int[Tensor, "m"]
    similarity: Float[Tensor, "m"]


@torch.no_grad()
def nearest(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "m _"] | None = None,
    *,
    k: int = 1,
    alive_a: Bool[Tensor, "_"] | None = None,
    alive_b: Bool[Tensor, "_"] | None = None,
    chunk: int = CHUNK,
) -> Nearest:
    """The rows of ``b`` that are most similar to every row of ``a``; without ``b``, the other rows of ``a``.

    Of rows that are equally similar any may be named. The most opposed rows are ``nearest(-a, b)``, similarities
    negated.

    Raises:
        ValueError: for rows without a direction (zero or not finite), naming them, fewer than k rows to choose from,
            widths that differ, or a mask of another length.
    """
    rows, place = directed(a, alive_a, "a")
    if b is None:
        if alive_b is not None:
            raise ValueError("alive_b says which rows of b take part, but no b was given; give alive_a")
        best = _Best(rows, k, len(rows) - 1)
        for i, j, block in _blocks(rows, rows, chunk, upper=True):
            if i == j:
                block.fill_diagonal_(-torch.inf)
            else:
                best.offer(j, block.T, i)
            best.offer(i, block, j)
        return best.among(len(a), place, place)
    others, other_place = directed(b, alive_b, "b", a.shape[1])
    best = _Best(rows, k, len(others))
    for i, j, block in _blocks(rows, others, chunk):
        best.offer(i, block, j)
    return best.among(len(a), place, other_place)


@torch.no_grad()
def nearest_both(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "m _"],
    *,
    k: int = 1,
    alive_a: Bool[Tensor, "_"] | None = None,
    alive_b: Bool[Tensor, "_"] | None = None,
    chunk: int = CHUNK,
) -> tuple[Nearest, Nearest]:
    """``nearest(a, b)`` and ``nearest(b, a)`` from one product.

    Raises:
        ValueError: as ``nearest``.
    """
    (rows, place), (others, other_place) = directed(a, alive_a, "a"), directed(b, alive_b, "b", a.shape[1])
    of_a, of_b = _Best(rows, k, len(others)), _Best(others, k, len(rows))
    for i, j, block in _blocks(rows, others, chunk):
        of_a.offer(i, block, j)
        of_b.offer(j, block.T, i)
    return of_a.among(len(a), place, other_place), of_b.among(len(b), other_place, place)


@torch.no_grad()
def assign(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "m _"],
    *,
    alive_a: Bool[Tensor, "_"] | None = None,
    alive_b: Bool[Tensor, "_"] | None = None,
) -> Matching:
    """The one-to-one matching of min(n, m) pairs with the largest sum of similarities (the Hungarian method's).

    Raises:
        ValueError: as ``nearest``, and for more rows than ``ASSIGNABLE``, for which there is ``mutual``.
    """
    (rows, place), (others, other_place) = directed(a, alive_a, "a"), directed(b, alive_b, "b", a.shape[1])
    if max(len(rows), len(others)) > ASSIGNABLE:
        raise ValueError(
            f"an assignment takes at most {ASSIGNABLE} rows on either side, got {len(rows)} and {len(others)}; "
            "match mutual nearest neighbors instead"
        )
    try:
        from scipy.optimize import linear_sum_assignment
    except ModuleNotFoundError:
        raise ValueError("an assignment needs scipy: pip install 'innerspace[language]'") from None
    similarity = (rows @ others.T).clamp_(-1, 1)
    i, j = (torch.from_numpy(side).to(a.device) for side in linear_sum_assignment(similarity.cpu(), maximize=True))
    return Matching(place[i], other_place[j], similarity[i, j])


def mutual(of_a: Nearest, of_b: Nearest) -> Matching:
    """The pairs each of which is the other's nearest; unlike an assignment it leaves out whom nobody prefers."""
    there = of_a.index[:, 0]
    back = torch.where(there < 0, -1, of_b.index[there.clamp_min(0), 0])
    a = (back == torch.arange(len(there), device=there.device)).nonzero()[:, 0]
    return Matching(a, there[a], of_a.similarity[a, 0])


def units(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The rows at length one, in float32, however small or large they are."""
    # by their largest entry first, or the squares of small rows would vanish
    return F.normalize((rows / rows.abs().amax(1, keepdim=True)).float(), dim=1)


def directed(
    rows: Float[Tensor, "n d"], alive: Bool[Tensor, "_"] | None, name: str, width: int | None = None
) -> tuple[Float[Tensor, "kept d"], Int[Tensor, "kept"]]:
    """The unit rows that take part, and their places among all; ``name`` is what errors call them.

    Raises:
        ValueError: as ``nearest``.
    """
    if width is not None and rows.shape[1] != width:
        raise ValueError(f"the rows of {name} have width {rows.shape[1]}, not {width} like the others")
    place = torch.arange(len(rows), device=rows.device)
    if alive is not None:
        if len(alive) != len(rows):
            raise ValueError(f"{name} has {len(rows)} rows, its mask has {len(alive)} entries")
        place, rows = place[alive], rows[alive]
    largest = rows.abs().amax(1)
    if len(bad := place[~(largest.isfinite() & (largest > 0))]):
        shown = ", ".join(map(str, bad[:5].tolist())) + (", …" if len(bad) > 5 else "")
        raise ValueError(f"rows {shown} of {name} are zero or not finite ({len(bad)} of {len(rows)}); mask them out")
    return units(rows), place


def _blocks(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], chunk: int, *, upper: bool = False
) -> Iterator[tuple[int, int, Float[Tensor, "r c"]]]:
    """Products of the rows from i on with those from j on; with ``upper`` only those where j is not below i."""
    if chunk < 1:
        raise ValueError(f"a chunk should hold at least one row, got {chunk}")
    for i in range(0, len(a), chunk):
        for j in range(i if upper else 0, len(b), chunk):
            yield i, j, a[i : i + chunk] @ b[j : j + chunk].T


@final
class _Best:
    """The k best that every row has been offered so far, of ``others`` in all."""

    def __init__(self, rows: Float[Tensor, "n d"], k: int, others: int) -> None:
        if not 1 <= k <= others:
            raise ValueError(f"the {k} nearest were asked for, and there are {others} rows to choose from")
        self.similarity = rows.new_full((len(rows), k), -torch.inf)
        self.index = torch.full((len(rows), k), -1, device=rows.device)

    def offer(self, first: int, block: Float[Tensor, "r c"], start: int) -> None:
        """The similarities of the rows from ``first`` on with those numbered from ``start`` on."""
        similarity, index = (best[first : first + len(block)] for best in (self.similarity, self.index))
        better = (block.amax(1) > similarity[:, -1]).nonzero()[:, 0]
        number = torch.arange(start, start + block.shape[1], device=block.device).expand(len(better), -1)
        joined = torch.cat((similarity[better], block[better]), 1)
        similarity[better], chosen = joined.topk(similarity.shape[1])
        index[better] = torch.cat((index[better], number), 1).gather(1, chosen)

    def among(self, count: int, place: Int[Tensor, "n"], other_place: Int[Tensor, "m"]) -> Nearest:
        """What was found, told of all ``count`` rows in their own numbers."""
        k = self.similarity.shape[1]
        similarity = self.similarity.new_full((count, k), torch.nan)
        index = self.index.new_full((count, k), -1)
        # rounding may lift the product of two unit rows above one
        similarity[place], index[place] = self.similarity.clamp(-1, 1), other_place[self.index]
        return Nearest(similarity, index)
