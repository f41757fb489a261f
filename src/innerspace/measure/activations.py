"""What single latents fire on: how often, how strongly, and in which contexts, from the faint ones to the strongest.

One sweep serves the chosen latents of all dictionaries. Their codes are sparse, so every nonzero entry is kept with its
place: quantiles are exact, every context of a band has the same chance, and the activations around it are known without
a second sweep. Where there are too many, whole sequences are left out at random; of the others all of that holds.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.decompose.base import Decomposition
from innerspace.decompose.sparse import Sparse
from innerspace.interventions import Read
from innerspace.language.text import Text
from innerspace.measure.fidelity import frequency
from innerspace.network.model import Model
from innerspace.network.site import Where
from innerspace.value import Value

_BANDS = 5
"""Into so many equally large parts the nonzero activations of a latent are divided."""

_SHIFT = 24
"""A place is one number: that of its sequence, and in the last bits that of its position there."""

Caption = Callable[[Any, int], str]
"""What is seen in a row of a batch, in a few words."""


@final
@dataclass(frozen=True, eq=False)
class Watched:
    """Some latents, each once, of a decomposition of the hidden states at a site."""

    what: Decomposition
    site: str
    latents: Int[Tensor, "n"]


@dataclass(frozen=True)
class Selection(Value):
    """How much is shown of a latent: contexts of ``before`` tokens, the one at which it is on, and ``after`` tokens.

    ``top`` are the strongest, of as many sequences, and ``each`` are drawn from every band. ``most`` nonzero entries,
    of 16 bytes each, are kept in memory.

    Raises:
        ValueError: for negative numbers, or a histogram or a memory without room.
    """

    before: int = 12
    after: int = 6
    top: int = 6
    each: int = 4
    bins: int = 30
    most: int = 2**24

    def __post_init__(self) -> None:
        for name, least in (("before", 0), ("after", 0), ("top", 0), ("each", 0), ("bins", 1), ("most", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} should be at least {least}, it is {getattr(self, name)}")


@dataclass(frozen=True)
class Excerpt(Value):
    """Tokens around a place, and the activation at each: 0 where the latent is off, or the position does not count."""

    ids: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Captioned(Value):
    """Something that is no text, and the activation there."""

    caption: str
    value: float


@dataclass(frozen=True)
class Band(Value):
    """Examples of the activations from ``low`` to ``high``, the strongest first."""

    name: str
    low: float
    high: float
    examples: tuple[Excerpt | Captioned, ...]


@dataclass(frozen=True)
class Activations(Value):
    """Of one latent: the share of positions at which it is on, its largest activation, and what it is on for.

    ``counts`` of its nonzero activations are between one of ``edges`` and the next. The bands are the strongest first,
    ``top`` and then those of equally many activations, from 80–100 % to 0–20 %; one without any activation is missing.
    """

    latent: int
    density: float
    max: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    bands: tuple[Band, ...]


@final
@dataclass(frozen=True, eq=False)
class Observed:
    """What was found of each of the watched, latent by latent, at how many ``positions`` that count.

    Densities and largest activations are those of all positions; histograms and bands those of a random ``share`` of
    the sequences: of all, unless there were more entries than fit.
    """

    latents: list[list[Activations]]
    positions: list[int]
    share: float


@torch.no_grad()
def observe(
    model: Model,
    batches: Iterable[Any],
    watched: Sequence[Watched],
    *,
    where: Where = Where("valid"),
    selection: Selection = Selection(),
    seed: int = 0,
    caption: Caption | None = None,
) -> Observed:
    """Run batches up to the sites and keep what chosen latents do where ``where`` and the family's mask say.

    ``caption`` describes the rows of batches that are no ``Text``. The seed draws the examples.

    Raises:
        ValueError: for nothing to watch, a latent that does not exist or is named twice, an unknown site, batches of no
            position that counts or without a caption, hidden states that are not finite, naming the batch, or a memory
            that has no room for a single sequence.
    """
    sizes = [len(one.latents) for one in watched]
    numbered = [slots(one, sum(sizes[:i])) for i, one in enumerate(watched)]
    drawing, total, first = torch.Generator().manual_seed(seed), sum(sizes), 0
    entries = _Entries(selection.most, drawing)
    on, largest = torch.zeros(total, dtype=torch.int64), torch.zeros(total)
    readers, positions = [(one.what, one.site) for one in watched], [0] * len(watched)
    for batch, i, chosen, z in codes(model, batches, readers, where):
        if i == 0:
            first = entries.open(_lines(batch, len(chosen), where, caption))
        feature, row, value = nonzero(z, watched[i].latents, numbered[i])
        row_of, position = chosen.reshape(len(chosen), -1).nonzero().cpu().unbind(1)
        on += torch.bincount(feature, minlength=total)
        largest.scatter_reduce_(0, feature, value, "amax")
        entries.add(feature, (((first + row_of) << _SHIFT) + position)[row], value)
        positions[i] += len(row_of)
    if on.any() and not entries.count:
        raise ValueError(f"there is no room for the nonzero entries of one sequence; {selection.most} are to be kept")
    shown = [_describe(place, value, entries.lines, selection, drawing) for place, value in entries.by_feature(total)]
    latents = torch.cat([one.latents for one in watched]).tolist()
    density = torch.cat([part / count for part, count in zip(on.split(sizes), positions, strict=True)]).tolist()
    numbers = zip(latents, density, largest.tolist(), shown, strict=True)
    each = (Activations(latent, share, most, *what) for latent, share, most, what in numbers)
    return Observed([list(islice(each, size)) for size in sizes], positions, entries.share)


@torch.no_grad()
def frequencies(
    model: Model,
    batches: Iterable[Any],
    readers: Sequence[tuple[Decomposition, str]],
    *,
    where: Where = Where("valid"),
) -> list[Float[Tensor, "_"]]:
    """At which share of the positions that count the latents of each decomposition, at its site, are on.

    Raises:
        ValueError: as ``observe``.
    """
    counts, positions = [torch.zeros(0)] * len(readers), [0] * len(readers)
    for _, i, chosen, z in codes(model, batches, readers, where):
        on = frequency(z).cpu()
        counts[i] = counts[i] + on if len(counts[i]) else on
        positions[i] += int(chosen.sum())
    return [on / count for on, count in zip(counts, positions, strict=True)]


_Line = tuple[int, Tensor] | str
"""A sequence: where its text begins, and its tokens; or its caption."""


@final
class _Entries:
    """The nonzero entries of the sequences that are kept, by feature: a watched latent."""

    def __init__(self, most: int, drawing: torch.Generator) -> None:
        self.share, self.count, self.lines = 1.0, 0, dict[int, _Line]()
        self._most, self._drawing = most, drawing
        self._keys, self._parts = torch.zeros(0), list[tuple[Tensor, Tensor, Tensor]]()

    def open(self, lines: Sequence[_Line]) -> int:
        """Take up the sequences of a batch; gives the number of the first."""
        first, keys = len(self._keys), torch.rand(len(lines), generator=self._drawing)
        self._keys = torch.cat((self._keys, keys))
        self.lines |= {first + i: lines[i] for i in (keys < self.share).nonzero().flatten().tolist()}
        return first

    def add(self, feature: Int[Tensor, "n"], place: Int[Tensor, "n"], value: Float[Tensor, "n"]) -> None:
        """Keep entries; where they become too many, halve the share of the sequences."""
        self._parts.append(self._kept(feature.int(), place, value))
        self.count += len(self._parts[-1][0])
        while self.count > self._most:
            self.share /= 2
            self._parts = [self._kept(*part) for part in self._parts]
            self.count = sum(len(part[0]) for part in self._parts)
            self.lines = {i: line for i, line in self.lines.items() if self._keys[i] < self.share}

    def by_feature(self, features: int) -> Iterator[tuple[Int[Tensor, "n"], Float[Tensor, "n"]]]:
        """The places, rising, and the values of each feature."""
        feature, place, value = map(torch.cat, zip(*self._parts, strict=True))
        order = feature.argsort(stable=True)
        sizes = torch.bincount(feature, minlength=features).tolist()
        return zip(place[order].split(sizes), value[order].split(sizes), strict=True)

    def _kept(self, feature: Tensor, place: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept = self._keys[place >> _SHIFT] < self.share
        return feature[kept], place[kept], value[kept]


def codes(
    model: Model, batches: Iterable[Any], readers: Sequence[tuple[Decomposition, str]], where: Where
) -> Iterator[tuple[Any, int, Bool[Tensor, "batch *positions"], Tensor | Sparse]]:
    """Of each batch and reader: the batch, the reader's number, the positions that count, and the code there."""
    if not readers:
        raise ValueError("there is no decomposition to watch")
    sites = [model.site(site) for _, site in readers]
    training, counts = [what for what, _ in readers if what.training], {site.name: 0 for site in sites}
    try:
        for what in training:
            what.eval()
        for number, batch in enumerate(batches):
            hidden = model.run(batch, {site.name: Read() for site in sites}, stop=True).hidden
            rows = dict[str, tuple[Tensor, Tensor]]()
            for site in set(sites):
                x = hidden[site.name]
                chosen = where.select(tuple(x.shape[:-1]), model.family.mask(batch, site), x.device)
                chosen, x = rows[site.name] = chosen, x[chosen]
                counts[site.name] += len(x)
                if not x.isfinite().all():
                    raise ValueError(f"the hidden states at {site.name!r} are not finite in batch {number}")
            for i, ((what, _), site) in enumerate(zip(readers, sites, strict=True)):
                chosen, x = rows[site.name]
                yield batch, i, chosen, what.code(x.to(next(what.parameters(), x))).z
    finally:
        for what in training:
            what.train()
    if empty := [name for name, count in counts.items() if not count]:
        raise ValueError(f"no position at {empty[0]!r} counts: there is no batch, or all positions are left out")


def slots(one: Watched, start: int) -> Int[Tensor, "k"]:
    """The number of the feature that each latent is, counted from ``start``; −1 for those that are not watched."""
    # parts of subspaces have several coordinates
    latents, count = one.latents.cpu(), max(part.stop for part in one.what.parts)
    if len(latents.unique()) < len(latents) or ((latents < 0) | (latents >= count)).any():
        raise ValueError(f"latents at {one.site!r} should be some of 0 … {count - 1}, each once: {latents.tolist()}")
    numbers = torch.full((count,), -1)
    numbers[latents] = torch.arange(start, start + len(latents))
    return numbers


def nonzero(
    z: Tensor | Sparse, latents: Int[Tensor, "n"], slots: Int[Tensor, "k"]
) -> tuple[Int[Tensor, "on"], Int[Tensor, "on"], Float[Tensor, "on"]]:
    """The feature, the row and the value of the nonzero entries of watched latents."""
    if isinstance(z, Sparse):
        feature = slots.to(z.values.device)[z.layout.latent]
        on = (feature >= 0) & (z.values != 0)
        feature, row, value = feature[on], z.layout.row[on], z.values[on]
    else:
        columns = latents.to(z.device)
        row, column = (few := z[:, columns]).nonzero(as_tuple=True)
        feature, value = slots.to(z.device)[columns[column]], few[row, column]
    return feature.cpu(), row.cpu(), value.float().cpu()


def _lines(batch: Any, rows: int, where: Where, caption: Caption | None) -> list[_Line]:
    if caption is not None:
        return [caption(batch, row) for row in range(rows)]
    if not isinstance(batch, Text):
        raise ValueError(f"a {type(batch).__name__} is no text, so its rows need a caption to be shown")
    ids = batch.ids.cpu().int()
    if batch.valid is None or where.tokens == "all":
        return [(0, row) for row in ids]
    return [(int(mask.int().argmax()), row[mask]) for row, mask in zip(ids, batch.valid.cpu(), strict=True)]


def _describe(
    place: Int[Tensor, "n"],
    value: Float[Tensor, "n"],
    lines: Mapping[int, _Line],
    selection: Selection,
    drawing: torch.Generator,
) -> tuple[tuple[float, ...], tuple[int, ...], tuple[Band, ...]]:
    """The histogram of a latent, and its bands."""
    low, high = (float(end) for end in torch.nn.functional.pad(value, (0, 1)).aminmax())
    edges = torch.linspace(low, high or 1.0, selection.bins + 1).tolist()
    counts = [int(count) for count in torch.histc(value, selection.bins, low, high or 1.0)]
    # equal activations in any order, or a band would hold the first ones of the stream
    shuffled = torch.randperm(len(value), generator=drawing)
    ranked = shuffled[value[shuffled].argsort()]
    chosen = [("top", ranked, _strongest(place, ranked, selection.top))]
    for i in reversed(range(_BANDS)):
        own = ranked[len(ranked) * i // _BANDS : len(ranked) * (i + 1) // _BANDS]
        drawn = own[torch.randperm(len(own), generator=drawing)[: selection.each].sort().values].flip(0)
        chosen.append((f"{100 * i // _BANDS}–{100 * (i + 1) // _BANDS} %", own, drawn))
    bands = list[Band]()
    for name, own, drawn in chosen:
        ends = value[drawn] if name == "top" else value[own]
        if len(ends):
            examples = tuple(_example(int(i), place, value, lines, selection) for i in drawn)
            bands.append(Band(name, float(ends.min()), float(ends.max()), examples))
    return tuple(edges), tuple(counts), tuple(bands)


def _strongest(place: Int[Tensor, "n"], ranked: Int[Tensor, "n"], count: int) -> Int[Tensor, "few"]:
    """The largest entries, one of each sequence, whose contexts would else be the same."""
    best = dict[int, int]()
    for i in reversed(ranked.tolist()):
        if len(best) == count:
            break
        best.setdefault(int(place[i]) >> _SHIFT, i)
    return torch.tensor(list(best.values()), dtype=torch.int64)


def _example(
    i: int, place: Int[Tensor, "n"], value: Float[Tensor, "n"], lines: Mapping[int, _Line], selection: Selection
) -> Excerpt | Captioned:
    line, position = lines[int(place[i]) >> _SHIFT], int(place[i]) & (1 << _SHIFT) - 1
    if isinstance(line, str):
        return Captioned(line, float(value[i]))
    start, ids = line
    first = max(start, position - selection.before)
    shown = ids[first - start : position + selection.after + 1 - start]
    begin = int(place[i]) - position + first
    near = slice(*torch.searchsorted(place, torch.tensor([begin, begin + len(shown)])).tolist())
    values = torch.zeros(len(shown)).index_copy(0, place[near] - begin, value[near])
    return Excerpt(tuple(shown.tolist()), tuple(values.tolist()))
