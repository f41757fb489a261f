"""Read sequences once and keep where chosen coordinates are on; contexts are cut from that as they are needed.

A coordinate that is zero at most positions, a latent, is *on* where it is not zero. One that is hardly ever zero, such
as that of a control vector or of a part, is on in its uppermost (or lowermost) tenth, by as much as it lies beyond.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.decompose.base import Decomposition
from innerspace.explain.contexts import Context, SceneContext, TextContext
from innerspace.language.pieces import Pieces
from innerspace.language.text import Text
from innerspace.measure.activations import Watched, codes, nonzero, slots
from innerspace.motion.framing import Batch
from innerspace.motion.sentences import describe
from innerspace.motion.words import Vocabulary, label
from innerspace.network.model import Model
from innerspace.network.site import Where

DENSE = 0.5
"""A coordinate that is not zero at more than this share of the positions is dense."""

UPPERMOST = 0.1
"""The share of the positions at which a dense coordinate counts as on."""

_SHIFT = 24
"""A place is one number: that of its line, and in the last bits that of its position there."""

End = Literal["upper", "lower"]


class Line(ABC):
    """A sequence as it was read: which of its positions count, and to which document or scene each belongs."""

    counted: Sequence[bool]
    groups: Sequence[int]

    @abstractmethod
    def span(self, position: int, before: int) -> range:
        """The positions around one that make its context, at most ``before`` of them in front of it."""

    @abstractmethod
    def context(self, span: range, position: int, values: tuple[float, ...]) -> Context:
        """The context of a span of positions, with their activations."""


class Reader(ABC):
    """What makes lines of batches; one for every medium."""

    @abstractmethod
    def lines(self, batch: Any, counted: Bool[Tensor, "batch positions"], first: int) -> list[Line]:
        """The lines of a batch, of which ``counted`` positions count; ``first`` is the number of the first line.

        Raises:
            ValueError: for batches of another medium.
        """


@final
class TextReader(Reader):
    """Text, in contexts of at most ``width`` tokens of one document; without a tokenizer tokens are numbers.

    Where a batch does not say what its documents are, every sequence is one.

    Raises:
        ValueError: for contexts of fewer than two tokens.
    """

    def __init__(self, tokenizer: Any = None, width: int = 16) -> None:
        if width < 2:
            raise ValueError(f"a context needs two tokens, not {width}")
        self._pieces, self._width = Pieces(tokenizer), width

    def lines(self, batch: Any, counted: Bool[Tensor, "batch positions"], first: int) -> list[Line]:
        """One for each sequence."""
        if not isinstance(batch, Text):
            raise ValueError(f"a TextReader reads batches of text, not of {type(batch).__name__}")
        ids, valid = batch.ids.cpu(), None if batch.valid is None else batch.valid.cpu()
        rows = list[Line]()
        for i, row in enumerate(ids):
            there = torch.ones(len(row), dtype=torch.bool) if valid is None else valid[i]
            pieces = [""] * len(row)
            places = there.nonzero().flatten().tolist()
            for place, piece in zip(places, self._pieces.of(row[there].tolist()), strict=True):
                pieces[place] = piece
            groups = [first + i] * len(row) if batch.document is None else batch.document[i].tolist()
            rows.append(_TextLine(pieces, counted[i].tolist(), groups, self._width))
        return rows


@final
class SceneReader(Reader):
    """Agents of traffic scenes, in the words of a vocabulary, at their steps."""

    def __init__(self, vocabulary: Vocabulary = Vocabulary()) -> None:
        self._vocabulary = vocabulary

    def lines(self, batch: Any, counted: Bool[Tensor, "batch positions"], first: int) -> list[Line]:  # noqa: ARG002
        """One for each agent."""
        if not isinstance(batch, Batch):
            raise ValueError(f"a SceneReader reads batches of scenes, not of {type(batch).__name__}")
        if counted.shape != batch.target.valid.shape:
            raise ValueError(
                f"words of agents go with sites that have a state for each of their {batch.target.valid.shape[1]} "
                f"steps; this one has {counted.shape[1]}"
            )
        words = label(batch.target, batch.dt, self._vocabulary).words()
        numbers = zip(words, counted.tolist(), batch.scene.tolist(), strict=True)
        return [_SceneLine(own, row, [scene] * len(row)) for own, row, scene in numbers]


@final
class _TextLine(Line):
    def __init__(self, pieces: Sequence[str], counted: Sequence[bool], groups: Sequence[int], width: int) -> None:
        self.pieces, self.counted, self.groups, self._width = pieces, counted, groups, width

    def span(self, position: int, before: int) -> range:
        """Up to ``width`` positions that follow each other, all counted and of one document."""
        start, stop = position, position + 1
        while start > max(0, position - before) and self._joins(start - 1, position):
            start -= 1
        while stop < min(len(self.pieces), start + self._width) and self._joins(stop, position):
            stop += 1
        return range(start, stop)

    def context(self, span: range, position: int, values: tuple[float, ...]) -> TextContext:
        """The text there."""
        return TextContext(self.groups[position], position - span.start, values, tuple(self.pieces[i] for i in span))

    def _joins(self, i: int, position: int) -> bool:
        return self.counted[i] and self.groups[i] == self.groups[position]


@final
class _SceneLine(Line):
    def __init__(self, words: dict[str, str], counted: Sequence[bool], groups: Sequence[int]) -> None:
        self.words, self.counted, self.groups = words, counted, groups

    def span(self, position: int, before: int) -> range:  # noqa: ARG002
        """The whole history."""
        return range(len(self.counted))

    def context(self, span: range, position: int, values: tuple[float, ...]) -> SceneContext:
        """The agent at that step."""
        kept = [i for i in span if self.counted[i]]
        return SceneContext(
            self.groups[position],
            kept.index(position),
            tuple(values[i] for i in kept),
            describe(self.words),
            tuple(self.words.items()),
            tuple(i + 1 for i in kept),
            len(span),
        )


@final
@dataclass(frozen=True, eq=False)
class Firing:
    """Where one coordinate is on: places, rising, and the activation at each; ``groups`` are those of the places.

    ``threshold`` is what the activation is counted from: 0 for latents.
    """

    place: Int[Tensor, "n"]
    value: Float[Tensor, "n"]
    group: Int[Tensor, "n"]
    threshold: float = 0.0


@final
@dataclass(frozen=True, eq=False)
class Material:
    """All that was read: lines, the places that count and their groups, firings by decomposition and coordinate."""

    lines: list[Line]
    place: Int[Tensor, "m"]
    group: Int[Tensor, "m"]
    firings: list[list[Firing]]

    def context(self, place: int, firing: Firing, before: int) -> Context:
        """The context of a place, with the activations of a coordinate."""
        line, position = self.lines[place >> _SHIFT], place & (1 << _SHIFT) - 1
        span = line.span(position, before)
        begin = place - position + span.start
        near = slice(*torch.searchsorted(firing.place, torch.tensor([begin, begin + len(span)])).tolist())
        values = torch.zeros(len(span)).index_copy(0, firing.place[near] - begin, firing.value[near])
        return line.context(span, position, tuple(values.tolist()))


@torch.no_grad()
def read(
    model: Model,
    batches: Iterable[Any],
    watched: Sequence[Watched],
    reader: Reader,
    *,
    where: Where = Where("valid"),
    end: End = "upper",
) -> Material:
    """Run batches up to the sites and keep where chosen coordinates are on, in 16 bytes for each place.

    All sites should have the same positions. ``end`` is that of dense coordinates.

    Raises:
        ValueError: as ``measure.activations.observe`` does, or for sites that differ in their positions.
    """
    sizes = [len(one.latents) for one in watched]
    numbered = [slots(one, sum(sizes[:i])) for i, one in enumerate(watched)]
    lines, places, groups = list[Line](), list[Tensor](), list[Tensor]()
    parts, first, mask = list[tuple[Tensor, Tensor, Tensor]](), 0, torch.zeros(0)
    for batch, i, chosen, z in codes(model, batches, [(one.what, one.site) for one in watched], where):
        counted = chosen.reshape(len(chosen), -1).cpu()
        if i == 0:
            first, mask = len(lines), counted
            lines += reader.lines(batch, counted, first)
            row, position = counted.nonzero().unbind(1)
            places.append((first + row << _SHIFT) + position)
            groups.append(_groups(lines[first:], counted))
        _check_same(counted, mask, watched[i].site, watched[0].site)
        feature, row, value = nonzero(z, watched[i].latents, numbered[i])
        parts.append((feature, places[-1][row], value))
    place, group = torch.cat(places), torch.cat(groups)
    feature, at, value = map(torch.cat, zip(*parts, strict=True))
    order = feature.argsort(stable=True)
    counts = torch.bincount(feature, minlength=sum(sizes)).tolist()
    found = [
        _firing(own, values, place, group, end)
        for own, values in zip(at[order].split(counts), value[order].split(counts), strict=True)
    ]
    return Material(lines, place, group, [found[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))])


@torch.no_grad()
def spread(
    model: Model,
    batches: Iterable[Any],
    readers: Sequence[tuple[Decomposition, str]],
    reader: Reader,
    *,
    where: Where = Where("valid"),
) -> list[Int[Tensor, "_"]]:
    """In how many documents (scenes) the coordinates of each decomposition, at its site, are not zero.

    Raises:
        ValueError: as ``read``.
    """
    pairs, sizes, count = [list[Tensor]() for _ in readers], [0] * len(readers), 0
    group, mask = torch.zeros(0), torch.zeros(0)
    for batch, i, chosen, z in codes(model, batches, readers, where):
        counted = chosen.reshape(len(chosen), -1).cpu()
        if i == 0:
            lines, mask = reader.lines(batch, counted, count), counted
            count += len(lines)
            group = _groups(lines, counted)
        _check_same(counted, mask, readers[i][1], readers[0][1])
        sizes[i] = z.shape[-1]
        latent, row, _ = nonzero(z, every := torch.arange(sizes[i]), every)
        pairs[i].append((group[row] * sizes[i] + latent).unique())
    return [
        torch.bincount(torch.cat(own).unique() % size, minlength=size) for own, size in zip(pairs, sizes, strict=True)
    ]


def _groups(lines: Sequence[Line], counted: Bool[Tensor, "batch positions"]) -> Int[Tensor, "n"]:
    """The document or scene of every position that counts."""
    found = [lines[row].groups[position] for row, position in counted.nonzero().tolist()]
    return torch.tensor(found, dtype=torch.int64)


def _check_same(counted: Bool[Tensor, "..."], mask: Bool[Tensor, "..."], site: str, first: str) -> None:
    if not torch.equal(counted, mask):
        raise ValueError(f"{site!r} has other positions than {first!r}: explain them apart")


def _firing(
    at: Int[Tensor, "n"], value: Float[Tensor, "n"], place: Int[Tensor, "m"], group: Int[Tensor, "m"], end: End
) -> Firing:
    threshold = 0.0
    if len(at) > DENSE * len(place):
        if end == "lower":
            value = -value
        threshold = float(value.kthvalue(max(1, len(value) - round(UPPERMOST * len(place)))).values)
        kept = value > threshold
        at, value = at[kept], value[kept] - threshold
    return Firing(at, value, group[torch.searchsorted(place, at)], threshold)
