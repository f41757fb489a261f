"""Which parts feed which, read from a decoder's weights alone: no data, no attention patterns.

With R_s the rows of a part, a head's values carry R_s W_O W_V R_tᵀ from part t of an earlier site into part s of a
later one; its scores compare R_s W_Qᵀ W_K R_tᵀ at one site; neuron j of an MLP is moved by part t as far as its weights
w_j reach there, and writes u_j. A score is the energy of that, ‖·‖²_F, or Σ_j ‖R_s u_j‖² ‖R_t w_j‖² for an MLP, over
its mean for subspaces of the same sizes m and n that are drawn evenly: m n / d² of the energy of the whole matrix. So 1
is chance, and d² / (m n) says that one part is all that is read, and one all that is written. The gains of the norms
belong to the weights, and where a norm centers, so does that; biases, how long a state is, and the turning of queries
and keys by their distance (rotary positions: taken at distance zero) do not.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.decompose.subspaces import Subspaces
from innerspace.language.weights import Attention, Mlp, weights
from innerspace.network.model import Model

Kind = Literal["stream", "ov", "qk", "mlp"]
Way = Literal["query", "key", "value", "write", "read"]


@dataclass(frozen=True, eq=False)
class Path:
    """How strongly the parts of one site feed those of another, over chance: rows are the target's parts.

    ``stream`` is what stays where it is, ``ov`` what a head moves, ``mlp`` what passes through the neurons. ``qk`` is
    what a head compares at one site: columns are the parts of the keys, rows those of the queries.
    """

    kind: Kind
    source: str
    target: str
    block: int | None
    head: int | None
    score: Float[Tensor, "targets sources"]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**vars(self), "score": self.score.tolist()}


@dataclass(frozen=True, eq=False)
class Touch:
    """How strongly a head, or an MLP where that is None, reads or writes the parts of a site, over chance."""

    what: Way
    site: str
    block: int
    head: int | None
    score: Float[Tensor, "parts"]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**vars(self), "score": self.score.tolist()}


@dataclass(frozen=True, eq=False)
class WeightPaths:
    """Paths between each site and the next, and how each head and MLP between them touches the two."""

    paths: list[Path]
    touches: list[Touch]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"paths": [one.to_json() for one in self.paths], "touches": [one.to_json() for one in self.touches]}


@torch.no_grad()
def weight_paths(model: Model, partitions: Mapping[str, Subspaces]) -> WeightPaths:
    """Scores between the parts of each site and those of the next, by depth, through all heads and MLPs between them.

    ``partitions`` are by site of the stream: ``embed``, ``resid.i``, ``resid_mid.i``. A head reads the site before it,
    also the last one; paths over more than one of the given sites are left to a call with these two.

    Raises:
        ValueError: for a site that is not in the stream, a partition of another width or home, or a decoder whose
            weights are of no known make.
    """
    given = {model.site(name).name: what for name, what in partitions.items()}
    depth = {name: _depth(name) for name in given}
    if not given:
        raise ValueError("there should be a partition of at least one site")
    fingerprint = model.fingerprint()
    for name, what in given.items():
        what.check(fingerprint, name, model.site(name).width)
    blocks = weights(model)
    sites = sorted(depth, key=lambda name: depth[name])
    found = list[Path | Touch]()
    for source, target in (*pairwise(sites), (sites[-1], None)):
        first, last = depth[source], 2 * len(blocks) if target is None else depth[target]
        read = _End.of(source, given[source])
        write = None if target is None else _End.of(target, given[target])
        if write is not None:
            score = _over_chance(read, write, write.rows @ read.rows.T)
            found.append(Path("stream", source, write.site, None, None, score))
        for i, block in enumerate(blocks):
            if first <= 2 * i < last:
                found += _through_heads(block.attention, i, read, write)
            if first <= 2 * i + 1 < last:
                found += _through_neurons(block.mlp, i, read, write)
    paths = [one for one in found if isinstance(one, Path)]
    return WeightPaths(paths, [one for one in found if isinstance(one, Touch)])


@dataclass(frozen=True, eq=False)
class _End:
    """A site with the directions of its partition, and to which part each of them belongs."""

    site: str
    rows: Float[Tensor, "d d"]
    member: Float[Tensor, "d parts"]

    @staticmethod
    def of(site: str, what: Subspaces) -> "_End":
        rows = what.rotation.double()
        return _End(site, rows, torch.nn.functional.one_hot(what.member).to(rows))

    @property
    def share(self) -> Float[Tensor, "parts"]:
        """How much of the space each part is."""
        return self.member.mean(0)


def _through_heads(attention: Attention, block: int, read: _End, write: _End | None) -> Iterator[Path | Touch]:
    columns = (attention.query, attention.key, attention.value, attention.write)
    for head, matrices in enumerate(zip(*columns, strict=True)):
        query, key, value = (matrix.to(read.rows) @ read.rows.T for matrix in matrices[:3])
        yield Path("qk", read.site, read.site, block, head, _over_chance(read, read, query.T @ key))
        ways: tuple[tuple[Way, Tensor], ...] = (("query", query), ("key", key), ("value", value))
        for way, matrix in ways:
            yield Touch(way, read.site, block, head, _touched(read, matrix.square()))
        if write is not None:
            out = write.rows @ matrices[3].to(write.rows)
            yield Path("ov", read.site, write.site, block, head, _over_chance(read, write, out @ value))
            yield Touch("write", write.site, block, head, _touched(write, out.T.square()))


def _through_neurons(mlp: Mlp, block: int, read: _End, write: _End | None) -> Iterator[Path | Touch]:
    reading = (mlp.read.to(read.rows) @ read.rows.T).square().sum(0)
    yield Touch("read", read.site, block, None, _touched(read, reading))
    if write is not None:
        writing = (write.rows @ mlp.write.to(write.rows)).square()
        # energies, neuron by neuron: what passes one of them does not cancel what passes another
        through = (writing @ reading).sqrt()
        yield Path("mlp", read.site, write.site, block, None, _over_chance(read, write, through))
        yield Touch("write", write.site, block, None, _touched(write, writing.T))


def _over_chance(source: _End, target: _End, matrix: Float[Tensor, "d d"]) -> Float[Tensor, "targets sources"]:
    """The energy of each block of a matrix, in coordinates of both ends, over its share of the whole by size."""
    energy = target.member.T @ matrix.square() @ source.member
    return energy / (target.share[:, None] * source.share * energy.sum()).clamp_min(torch.finfo(energy.dtype).tiny)


def _touched(end: _End, squares: Float[Tensor, "n d"]) -> Float[Tensor, "parts"]:
    """The energy of the columns of each part, over its share of the whole by size."""
    energy = squares.sum(0) @ end.member
    return energy / (end.share * energy.sum()).clamp_min(torch.finfo(energy.dtype).tiny)


def _depth(site: str) -> int:
    """How many halves of blocks, attention and MLP each counting as one, lie before a site of the stream."""
    kind, _, i = site.partition(".")
    match kind:
        case "embed":
            return 0
        case "resid_mid":
            return 2 * int(i) + 1
        case "resid":
            return 2 * int(i) + 2
        case _:
            raise ValueError(f"{site!r} is not in the stream; paths lead between embed, resid.i and resid_mid.i")
