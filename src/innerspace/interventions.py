"""Functions of a hidden state, applied at a site while the model runs.

All are values: they return a new hidden state and change nothing. ``Read`` is the write of the identity; ``Splice``
replaces a state by its reconstruction, ``Fix`` by a constant; ``Steer`` adds directions; ``Write`` gives some parts of
a decomposition other coordinates, which ``patch`` takes from another pass, ``ablate`` from a constant and ``hold``
from a value for each latent; ``At`` restricts another one to some positions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.decompose.base import AnyCode, Decomposition
from innerspace.decompose.sequence import SequenceAutoencoder
from innerspace.decompose.sparse import Sparse
from innerspace.decompose.subspaces import Subspaces
from innerspace.network.site import Where
from innerspace.network.trace import Intervention, Visit


@dataclass(frozen=True, eq=False)
class Read:
    """Keep the hidden state in the trace, under the site's name or another one."""

    name: str | None = None

    def __call__(self, x: Tensor, visit: Visit) -> Tensor:
        visit.trace.hidden[self.name or visit.site.name] = x
        return x


@dataclass(frozen=True, eq=False)
class Steer:
    """x + Σᵢ τᵢ · directionᵢ, at every position (Turner et al. 2023; temperature τ as in Tas & Wagner 2025).

    ``along`` is one direction [d], several [k, d], or the directions of a decomposition. ``by`` is τ: one number, one
    per direction [k], or one per row of the batch and direction [batch, k]. τ = 0 is exactly the identity.

    Raises:
        ValueError: for directions of another width than the site's, or a shape of τ that does not fit.
    """

    along: Float[Tensor, "*k d"] | Decomposition
    by: float | Float[Tensor, "..."]

    def __call__(self, x: Tensor, visit: Visit) -> Tensor:
        by = self.by
        if isinstance(by, (int, float)):
            if by == 0:
                return x
            along = directions_for(self.along, x, visit)
            total = along if along.ndim == 1 else along.sum(0)
            return torch.add(x, total.to(x), alpha=by)
        along = directions_for(self.along, x, visit)
        by = torch.as_tensor(by, dtype=x.dtype, device=x.device)
        change = shift(along, by, x)
        if by.ndim < 2 or by.requires_grad:
            return x + change
        # rows with τ = 0 stay as they are, also in the sign of their zeros
        return torch.where(change == 0, x, x + change)


@dataclass(frozen=True, eq=False)
class Splice:
    """Replace the hidden state by what a decomposition makes of it: decode(encode(x)); the error is discarded.

    One that reads several tokens together is told which of them are padding, and does not read those. All tokens are
    replaced, padding as well, unless ``At`` says otherwise.
    """

    via: Decomposition

    def __call__(self, x: Tensor, visit: Visit) -> Tensor:
        return self.via.decode(_coded(self.via, x, visit).z)


@dataclass(frozen=True, eq=False)
class Fix:
    """Replace the hidden state by a constant, such as the mean over the data (mean ablation).

    Raises:
        ValueError: for a constant of another width than the site's.
    """

    to: Float[Tensor, "d"]

    def __call__(self, x: Tensor, visit: Visit) -> Tensor:
        if len(self.to) != x.shape[-1]:
            raise ValueError(
                f"the constant has width {len(self.to)}, the hidden state at {visit.site.name!r} {x.shape[-1]}"
            )
        return self.to.to(x).expand_as(x)


Rule = Callable[[Float[Tensor, "*positions n"], Visit], Float[Tensor, "*positions n"]]
"""From the coordinates of some parts to those that take their place."""


@dataclass(frozen=True, eq=False)
class Constant:
    """The rule by which coordinates are a constant, whatever they were."""

    to: Float[Tensor, "n"]

    def __call__(self, z: Float[Tensor, "*positions n"], visit: Visit) -> Float[Tensor, "*positions n"]:  # noqa: ARG002
        return self.to.to(z).expand_as(z)


@dataclass(frozen=True, eq=False)
class Elsewhere:
    """The rule by which coordinates are those of other hidden states, position by position; see ``patch``."""

    via: Decomposition
    parts: int | Sequence[int]
    source: Float[Tensor, "*positions d"]

    def __call__(self, z: Float[Tensor, "*positions n"], visit: Visit) -> Float[Tensor, "*positions n"]:
        if self.source.shape[:-1] != z.shape[:-1]:
            raise ValueError(
                f"the source of {_named(self.parts)} has positions {list(self.source.shape[:-1])}, the hidden state at "
                f"{visit.site.name!r} {list(z.shape[:-1])}; relocate() brings states to other positions"
            )
        return read_parts(self.via, self.parts, self.source, visit)


@dataclass(frozen=True, eq=False)
class Write:
    """x + lift(z′ − z), where z′ differs from z in some parts only: there it is ``rule`` of their coordinates.

    ``parts`` are one or several parts of the decomposition; ``rule`` sees their coordinates in the order in which they
    are named. All other coordinates stay, and so does what the decomposition does not explain. Where the rule changes
    nothing, neither does the write, exactly.

    Raises:
        ValueError: for no part or one that is not there, hidden states of another width than the decomposition's, or a
            rule that gives another number of coordinates.
    """

    via: Decomposition
    parts: int | Sequence[int]
    rule: Rule

    def __post_init__(self) -> None:
        coordinates_of(self.via, self.parts)

    def __call__(self, x: Tensor, visit: Visit) -> Tensor:
        rows = self.via.directions[coordinates_of(self.via, self.parts)]
        if rows.shape[-1] != x.shape[-1]:
            raise ValueError(
                f"the decomposition has width {rows.shape[-1]}, the hidden state at {visit.site.name!r} {x.shape[-1]}: "
                f"a decomposition belongs to the site that it was fitted at"
            )
        z = read_parts(self.via, self.parts, x, visit)
        new = self.rule(z, visit)
        if new.shape != z.shape:
            raise ValueError(
                f"the rule for {_named(self.parts)} should give coordinates of shape {list(z.shape)}, "
                f"it gives {list(new.shape)}"
            )
        change = ((new - z) @ rows).to(x)
        if change.requires_grad:
            return x + change
        # states that are not written stay as they are, also in the sign of their zeros
        return torch.where(change == 0, x, x + change)


def patch(via: Decomposition, parts: int | Sequence[int], source: Float[Tensor, "*positions d"]) -> Write:
    """Give parts the coordinates that they have in another pass, position by position (interchange intervention).

    ``source`` are hidden states of the same site, of the shape of those that are written; ``relocate`` brings them to
    other positions. Gradients reach the source and the decomposition. Geiger et al. 2021, arXiv 2106.02997.

    Raises:
        ValueError: as ``Write``, and in the pass for a source of another shape.
    """
    return Write(via, parts, Elsewhere(via, parts, source))


def ablate(via: Decomposition, parts: int | Sequence[int], to: Float[Tensor, "n"] | None = None) -> Write:
    """Set the coordinates of parts to a constant, such as their mean, or to zero where none is given.

    ``to`` holds the coordinates of the parts in the order in which they are named.

    Raises:
        ValueError: as ``Write``, and for a constant of another number of coordinates.
    """
    count = len(coordinates_of(via, parts))
    if to is not None and len(to) != count:
        raise ValueError(
            f"{_named(parts)} {'has' if isinstance(parts, int) else 'have'} {count} coordinates, the constant {len(to)}"
        )
    return Write(via, parts, Constant(torch.zeros(count) if to is None else to))


def hold(via: Decomposition, to: Mapping[int, float]) -> Write:
    """Hold latents at values, in units of the code, whatever they were: ``hold(dictionary, {7: 3.0})``.

    All other latents stay, and so does what the dictionary does not explain. Templeton et al. 2024.

    Raises:
        ValueError: as ``Write``, and for a part of several coordinates.
    """
    parts = list(to)
    if len(coordinates_of(via, parts)) != len(parts):
        raise ValueError("one value holds one coordinate; for parts of several there is ablate(via, parts, to)")
    return Write(via, parts, Constant(torch.tensor([float(value) for value in to.values()])))


@dataclass(frozen=True, eq=False)
class At:
    """Another intervention, at some positions only; everything else passes as it came, bit for bit.

    ``where`` is a rule, or a mask of the positions themselves, which may be others and of another number in every row.
    Without ``At`` an intervention touches padding as well.

    Raises:
        ValueError: for a mask of another shape than the hidden state's without its last axis.
    """

    where: Where | Bool[Tensor, "*positions"]
    do: Intervention

    def __call__(self, x: Tensor, visit: Visit) -> Tensor:
        if isinstance(self.where, Where):
            chosen = self.where.select(tuple(x.shape[:-1]), visit.valid(), x.device, visit.start)
        else:
            chosen = self.where.to(x.device)
            if chosen.shape != x.shape[:-1]:
                raise ValueError(
                    f"the mask has positions {list(chosen.shape)}, the hidden state at {visit.site.name!r} "
                    f"{list(x.shape[:-1])}"
                )
        return torch.where(chosen[..., None], self.do(x, visit), x)


def directions_for(along: Float[Tensor, "*k d"] | Decomposition, x: Tensor, visit: Visit) -> Float[Tensor, "*k d"]:
    """The directions themselves, of one width with the hidden state.

    Raises:
        ValueError: for directions of another width.
    """
    rows = along if isinstance(along, Tensor) else along.directions
    if rows.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"the direction has width {rows.shape[-1]}, the hidden state at {visit.site.name!r} {x.shape[-1]}: "
            f"a direction belongs to the site that it was fitted at"
        )
    return rows


def shift(along: Float[Tensor, "*k d"], by: float | Float[Tensor, "..."], x: Tensor) -> Tensor:
    """Σᵢ τᵢ · directionᵢ in a shape that can be added to the hidden state x; τ as in ``Steer``.

    Raises:
        ValueError: for a shape of τ that does not fit.
    """
    along = along.reshape(-1, along.shape[-1]).to(x)
    by = torch.as_tensor(by, dtype=x.dtype, device=x.device)
    shape = tuple(by.shape)
    if shape not in ((), along.shape[:1], (x.shape[0], len(along))):
        raise ValueError(
            f"the temperatures have shape {list(shape)}; a number, [{len(along)}] (one per direction) or "
            f"[{x.shape[0]}, {len(along)}] (one per row and direction) is possible"
        )
    change = by.expand(len(along)) @ along if by.ndim < 2 else by @ along
    return change.view(x.shape[0], *(1,) * (x.ndim - 2), -1) if by.ndim == 2 else change


def relocate(
    states: Float[Tensor, "batch *positions d"],
    origin: Bool[Tensor, "batch *positions"],
    target: Bool[Tensor, "batch *others"],
) -> Float[Tensor, "batch *others d"]:
    """Hidden states at the positions ``origin`` brought to those of ``target``, row by row and in order.

    What stands at other positions does not count.

    Raises:
        ValueError: if a row has not as many positions in both.
    """
    counts = origin.flatten(1).sum(1), target.flatten(1).sum(1)
    if differing := (counts[0] != counts[1]).nonzero().flatten().tolist():
        row = differing[0]
        raise ValueError(
            f"row {row} has {int(counts[0][row])} positions to take states from and {int(counts[1][row])} to bring "
            f"them to; as many are needed"
        )
    if origin.shape == target.shape and torch.equal(origin, target):
        return states
    return states.new_zeros(*target.shape, states.shape[-1]).index_put((target,), states[origin])


def coordinates_of(via: Decomposition, parts: int | Sequence[int]) -> Int[Tensor, "n"]:
    """The places of the coordinates of some parts.

    Raises:
        ValueError: for no part, one that is named twice, or one that is not there.
    """
    named = [parts] if isinstance(parts, int) else list(parts)
    there = via.parts
    if not named or len(set(named)) < len(named):
        raise ValueError(f"parts should be named, each once; they are {named}")
    for part in named:
        if not 0 <= part < len(there):
            raise ValueError(f"there is no part {part}; the {len(there)} parts are 0 … {len(there) - 1}")
    places = [torch.arange(there[part].start, there[part].stop) for part in named]
    return torch.cat(places)


def read_parts(
    via: Decomposition, parts: int | Sequence[int], x: Float[Tensor, "*positions d"], visit: Visit | None = None
) -> Float[Tensor, "*positions n"]:
    """The coordinates of some parts only, in the order in which they are named.

    ``visit`` tells a decomposition that reads several tokens together which of them are padding.

    Raises:
        ValueError: for parts that are not there, or hidden states of another width.
    """
    index, directions = coordinates_of(via, parts), via.directions
    x = x.to(directions)
    if isinstance(via, Subspaces):
        # the rows of a rotation read what they write, so those of the other parts are not needed
        return x @ directions[index].T
    z = _coded(via, x, visit).z
    return _columns(z, index) if isinstance(z, Sparse) else z[..., index]


def _coded(via: Decomposition, x: Tensor, visit: Visit | None) -> AnyCode:
    if isinstance(via, SequenceAutoencoder):
        return via.code(x, None if visit is None else visit.valid())
    return via.code(x)


def _columns(z: Sparse, index: Tensor) -> Tensor:
    """Some columns of a code, without the dense form of the others."""
    index = index.to(z.values.device)
    place = index.new_full((z.layout.latents,), -1).index_copy(0, index, torch.arange(len(index), device=index.device))
    column = place[z.layout.latent]
    kept = column >= 0
    found = z.values.new_zeros(z.layout.rows, len(index))
    return found.index_put((z.layout.row[kept], column[kept]), z.values[kept]).reshape(*z.shape[:-1], len(index))


def _named(parts: int | Sequence[int]) -> str:
    return f"part {parts}" if isinstance(parts, int) else f"parts {', '.join(map(str, parts))}"
