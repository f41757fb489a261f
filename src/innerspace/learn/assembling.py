"""A partition put together from small pieces: learned from several starts, merged, and cut anew where that is better.

Parts of a few dimensions get past most local minima of neighbor distances, those of one dimension past nearly all:
there is no room in them for whole values of two variables. So pieces are sought first. A rule says which of them are
one; a part of which a cut shares little is divided again; the joint space of two dependent parts is cut anew in the
same way, and the cut stands if distances fall; and so on until nothing changes.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from innerspace.decompose.subspaces import Subspaces, even_sizes, random_rotation
from innerspace.learn.descent import Descent, company_distance, descend
from innerspace.learn.merge_rules import Calibrated, MergeRule
from innerspace.learn.neighbors import Neighborhood
from innerspace.value import Value


@dataclass(frozen=True)
class Assembling(Value):
    """How a partition is assembled from pieces of at most ``unit`` dimensions, the best of several ``starts``.

    Inside parts and pairs of parts, whose spaces are smaller, there are ``tries`` starts. ``rule`` judges on
    ``queries`` among ``keys`` more rows which parts are one. With ``sweeps``, what was merged is learned on by
    ``polish``, wrong merges are undone, and pairs with a strength of more than ``least`` are cut anew up to so many
    times; a cut may also move up to ``shift`` dimensions from one side to the other.
    """

    unit: int = 1
    starts: int = 4
    tries: int = 4
    rule: MergeRule = Calibrated()
    search: Descent = Descent()
    polish: Descent = Descent(steps=200, rate=0.03)
    sweeps: int = 0
    shift: int = 1
    least: float = 0.02
    queries: int = 512
    keys: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.unit, self.starts, self.tries, self.queries, self.keys) < 1 or min(self.sweeps, self.shift) < 0:
            raise ValueError(f"assembling takes pieces, starts and rows, and no negative sweeps or shift: {self}")

    def pieces(self, size: int) -> list[int]:
        """As few pieces as make up so many dimensions, alike in size."""
        count = -(-size // self.unit)
        return [size // count + (i < size % count) for i in range(count)]


def assemble(x: Float[Tensor, "n d"], how: Assembling, seed: int = 0) -> Subspaces:
    """Parts of sizes that are found.

    Raises:
        ValueError: for fewer rows than the searches draw together, or a unit above the width.
    """
    even_sizes(x.shape[1], how.unit)
    what = _pieces(x, how.pieces(x.shape[1]), how, seed)
    _merge(what, x, how, seed)
    for turn in range(_ROUNDS if how.sweeps else 0):
        what = _polished(x, what, how, seed)
        divided = _divide(what, x, how, seed + 100 * (turn + 1))
        what = recut(x, _polished(x, what, how, seed) if divided else what, how, seed + turn)
        if not _merge(what, x, how, seed) and not divided:
            break
    return what


def assemble_into(x: Float[Tensor, "n d"], sizes: Sequence[int], how: Assembling, seed: int = 0) -> Subspaces:
    """Parts of given sizes: pieces that can make them up, put together so that most dependence is inside.

    Raises:
        ValueError: for sizes that do not add up to the width.
    """
    slots = sorted(((piece, part) for part, size in enumerate(sizes) for piece in how.pieces(size)), reverse=True)
    pieces = _pieces(x, [piece for piece, _ in slots], how, seed)
    strength = _strengths(pieces, x, how, seed)
    part = _most_inside(strength, slots, torch.Generator().manual_seed(seed))
    order = [i for own in range(len(sizes)) for i in range(len(slots)) if part[i] == own]
    rotation = torch.cat([pieces.basis(i).detach() for i in order])
    return _polished(x, Subspaces(rotation, sizes), how, seed)


def recut(x: Float[Tensor, "n d"], what: Subspaces, how: Assembling, seed: int = 0) -> Subspaces:
    """Every dependent pair's joint space cut anew, the most dependent first, until none gets better.

    No other part is touched. A cut into the same sizes stands if the distance in the joint space falls; one into others
    if the two sides share less, since distances of different sizes do not compare: a dimension of many values would
    rather be where values are few.
    """
    parts, numbers = [what.basis(i).detach() for i in range(len(what.sizes))], itertools.count(1000 * (seed + 1))
    inside = replace(how, starts=how.tries)
    for _ in range(how.sweeps if len(parts) > 1 else 0):
        now = Subspaces(torch.cat(parts), [len(part) for part in parts])
        strength, moved = _strengths(now, x, how, seed), False
        for i, j in sorted(itertools.combinations(range(len(parts)), 2), key=lambda pair: -float(strength[pair])):
            joint = torch.cat([parts[i], parts[j]])
            if strength[i, j] <= how.least or len(joint) == 2:
                continue
            own, sizes = x @ joint.T, (len(parts[i]), len(parts[j]))
            now = Subspaces(torch.eye(len(joint)), sizes)
            cuts = [assemble_into(own, pair, inside, next(numbers)) for pair in _shifted(sizes, how.shift)]
            if (cut := _better(now, cuts, own, how, seed)) is not None:
                parts[i], parts[j] = (cut.base @ joint).split(list(cut.sizes))
                moved = True
        if not moved:
            break
    parts.sort(key=len, reverse=True)
    return Subspaces(torch.cat(parts), [len(part) for part in parts])


_ROUNDS = 8
"""How often a partition is divided, cut anew and merged at most."""
_STANDS = 0.9
"""What is measured scatters: only a fall to this share of what a cut has to stay below counts."""
_GAIN = 1e-3
"""By what share of the spread the distance must fall for a cut to stand."""


def _better(now: Subspaces, cuts: Sequence[Subspaces], x: Tensor, how: Assembling, seed: int) -> Subspaces | None:
    """The cut that should take the place of what is there now, if there is one."""
    near = _sample(x, how, seed)
    shared = [float(how.rule.measure(cut, near, seed).information[0, 1]) for cut in (now, *cuts)]
    place = min(range(len(cuts)), key=lambda one: shared[one + 1])
    if cuts[place].sizes != now.sizes:
        if shared[place + 1] < _STANDS * shared[0]:
            return cuts[place]
        place = next(one for one, cut in enumerate(cuts) if cut.sizes == now.sizes)
    before, after = (company_distance(x, cut.base, cut.sizes, how.polish) for cut in (now, cuts[place]))
    return cuts[place] if after < before - _GAIN * float(x.var(0).sum().sqrt()) else None


def _pieces(x: Tensor, sizes: Sequence[int], how: Assembling, seed: int) -> Subspaces:
    generators = [torch.Generator().manual_seed(seed + start) for start in range(how.starts)]
    begins = torch.stack([random_rotation(x.shape[1], generator) for generator in generators])
    found = descend(x, sizes, begins, how.search, seed)
    return Subspaces(min(found, key=lambda turn: company_distance(x, turn, sizes, how.search)), sizes)


def _polished(x: Tensor, what: Subspaces, how: Assembling, seed: int) -> Subspaces:
    return Subspaces(descend(x, what.sizes, what.base[None], how.polish, seed)[0], what.sizes)


def _merge(what: Subspaces, x: Tensor, how: Assembling, seed: int) -> bool:
    """Merge in place until the rule finds no pair, measured anew every time; whether there was one."""
    near, before = _sample(x, how, seed), len(what.sizes)
    while len(what.sizes) > 1:
        pairs = how.rule.pairs(how.rule.measure(what, near, seed), what.sizes)
        if not pairs:
            break
        what.merge(*pairs)
    return len(what.sizes) < before


def _divide(what: Subspaces, x: Tensor, how: Assembling, seed: int) -> bool:
    """Undo wrong merges, in place: cut every part in two where a cut shares little; whether there was one.

    Sizes differ by two from cut to cut, as a dimension can move later. The sides ask to be merged by less than the
    rule's bound, so the rule will not merge them again.
    """
    pieces, fell, inside = list[list[int]](), False, replace(how, starts=how.tries)
    for i, place in enumerate(what.parts):
        coordinates = list(range(place.start, place.stop))
        own, size = x @ what.basis(i).detach().T, len(coordinates)
        pairs = [(size - less, less) for less in range(1, size // 2 + 1, 2)]
        cuts = [assemble_into(own, pair, inside, seed + less) for less, pair in enumerate(pairs)]
        asks = [float(_strengths(cut, own, how, seed)[0, 1]) for cut in cuts]
        if not asks or min(asks) > _STANDS * how.rule.bound:
            pieces.append(coordinates)
            continue
        cut = cuts[asks.index(min(asks))]
        what.turn_together([i], cut.base)
        pieces += [coordinates[part] for part in cut.parts]
        fell = True
    what.arrange(pieces)
    return fell


def _strengths(what: Subspaces, x: Tensor, how: Assembling, seed: int) -> Float[Tensor, "s s"]:
    """How much every pair asks to be merged, zero where it does not at all."""
    found = how.rule.measure(what, _sample(x, how, seed), seed)
    return how.rule.strength(found, what.sizes).nan_to_num(nan=0)


def _sample(x: Tensor, how: Assembling, seed: int) -> Neighborhood:
    """Queries among other rows, or, where rows are few, among all."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    keys = x[order[: how.queries + how.keys]]
    count = min(how.queries, len(keys))
    return Neighborhood(keys[:count], keys, torch.arange(count, device=x.device))


def _shifted(sizes: tuple[int, int], shift: int) -> Iterator[tuple[int, int]]:
    """The sizes as they are, and with some dimensions moved from one side to the other."""
    for move in range(-shift, shift + 1):
        if min(sizes[0] + move, sizes[1] - move) > 0:
            yield sizes[0] + move, sizes[1] - move


def _most_inside(strength: Tensor, slots: Sequence[tuple[int, int]], draw: torch.Generator) -> list[int]:
    """For every piece a part with room for it; the best of 50 ends of swaps between pieces of one size."""
    size = torch.tensor([one for one, _ in slots])
    best, most = [part for _, part in slots], -torch.inf
    for _ in range(50):
        group = torch.tensor([part for _, part in slots])
        for one in size.unique():
            places = (size == one).nonzero().flatten()
            group[places] = group[places[torch.randperm(len(places), generator=draw)]]
        while True:
            to = (strength @ one_hot(group).to(strength))[:, group]
            gain = to + to.T - to.diagonal()[:, None] - to.diagonal() - 2 * strength
            gain[(size[:, None] != size) | (group[:, None] == group)] = 0
            i, j = divmod(int(gain.argmax()), len(gain))
            if gain[i, j] <= 1e-9:
                break
            group[[i, j]] = group[[j, i]]
        if (total := float(to.diagonal().sum())) > most:
            best, most = group.tolist(), total
    return best
