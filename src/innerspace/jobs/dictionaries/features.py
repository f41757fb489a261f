"""What fills the sections on single features and on geometry: which are shown, what they do, and who is like them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product, zip_longest
from statistics import fmean
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.decompose.base import Decomposition
from innerspace.language.causal_lm import CausalLM
from innerspace.language.pieces import Pieces
from innerspace.measure.activations import (
    Activations,
    Caption,
    Excerpt,
    Selection,
    Watched,
    frequencies,
    observe,
)
from innerspace.measure.direct_path import DirectPath
from innerspace.measure.estimate import Estimate, over_seeds
from innerspace.measure.feature_map import feature_map
from innerspace.measure.geometry import mean, pairs, stand_in
from innerspace.measure.neighbors import Nearest, nearest
from innerspace.network.model import Model
from innerspace.network.site import Where
from innerspace.report.features import visible
from innerspace.report.numerals import number

_BINS = 50
"""Of the cosine, from 0 to 1."""
_WORDS = 3
"""So many tokens stand for a feature on the map."""
_Rows = dict[str, list[dict[str, Any]]]
_UNMOVED: _Rows = {"up": [], "down": []}


@final
@dataclass(frozen=True, eq=False)
class Member:
    """A trained dictionary as the page names it; ``alive`` are the latents that are in use.

    Raises:
        ValueError: for a mask of another length than the dictionary.
    """

    name: str
    kind: str
    coefficient: float | str | None
    seed: int
    site: str
    dictionary: Decomposition
    alive: Bool[Tensor, "_"]

    def __post_init__(self) -> None:
        if len(self.alive) != (latents := len(self.dictionary.parts)):
            raise ValueError(f"{self.name!r} has {latents} latents, its mask of those alive {len(self.alive)} entries")

    @property
    def directions(self) -> Float[Tensor, "k d"]:
        """What one unit of each latent writes."""
        return self.dictionary.directions.detach()

    @property
    def live(self) -> Float[Tensor, "n d"]:
        """The directions of the latents that are alive."""
        return self.directions[self.alive.to(self.directions.device)]


def features_section(
    model: Model,
    batches: Iterable[Any],
    members: Sequence[Member],
    *,
    count: int,
    latents: Sequence[Int[Tensor, "_"]] | None = None,
    tokenizer: Any = None,
    where: Where = Where("valid"),
    seed: int = 0,
    selection: Selection | None = None,
    caption: Caption | None = None,
    unit: str = "tokens",
    neighbors: int = 6,
    similar: int = 2,
    pushed: int = 8,
) -> dict[str, Any]:
    """The section on features (``report.features``): of each dictionary ``count`` latents, drawn and not chosen.

    The latents that are alive and on somewhere in the batches are ordered by how often they are on, divided into
    ``count`` equal classes, and one of each is drawn; where ``latents`` of each are given, it is those that are shown,
    and the caption should say how they were found. ``neighbors`` in the same dictionary and ``similar`` ones in
    each other dictionary of the site are those alive of largest cosine; ``pushed`` tokens either way are those of
    ``DirectPath``, for a language model only. Without a tokenizer tokens stand as their numbers. Batches that are no
    text need a ``caption`` of their rows, and a ``unit``: what it is that has a hidden state, in the plural.

    Raises:
        ValueError: for no member, two of one name, no latent asked for, or as ``observe``.
    """
    _check(members)
    if count < 1:
        raise ValueError(f"at least one feature of each dictionary should be shown, not {count}")
    batches, drawing = list(batches), torch.Generator().manual_seed(seed)
    drawn = latents
    if drawn is None:
        rates = frequencies(model, batches, [(one.dictionary, one.site) for one in members], where=where)
        drawn = [_drawn(rate, one.alive.cpu(), count, drawing) for rate, one in zip(rates, members, strict=True)]
    those = [Watched(one.dictionary, one.site, own) for one, own in zip(members, drawn, strict=True)]
    found = observe(model, batches, those, where=where, selection=selection or Selection(), seed=seed, caption=caption)
    pieces = Pieces(tokenizer)
    path = DirectPath(model, batches[0], where, pieces) if isinstance(model.family, CausalLM) else None
    relatives = _relatives(members, drawn, neighbors, similar)
    entries = list[list[dict[str, Any]]]()
    for i, (one, own) in enumerate(zip(members, drawn, strict=True)):
        moved = path.pushed(one.site, one.directions[own], pushed) if path else [_UNMOVED] * len(own)
        told = zip(found.latents[i], moved, strict=True)
        entries.append(
            [{"dictionary": i, **_told(what, pieces), **relatives[i, what.latent], **up} for what, up in told]
        )
    counted = f"Activations at {number(max(found.positions))} {unit}."
    if latents is None:
        counted += (
            f" The features were not chosen: the latents of a dictionary that are on at all were put into {count} "
            "equal classes by how often they are, and one of each class was drawn at random."
        )
    if found.share < 1:
        counted += f" Histograms and examples are of a random {number(100 * found.share, 2)} % of the sequences."
    if path is not None:
        counted += " Logits are pushed by the direct path, which leaves out all later blocks, to first order."
    return {
        "dictionaries": [{"name": one.name, "kind": one.kind} for one in members],
        "counted": counted,
        "unit": unit,
        # in turn, so that those on paper are of several dictionaries
        "entries": [entry for turn in zip_longest(*entries) for entry in turn if entry is not None],
    }


def geometry_section(
    model: Model,
    batches: Iterable[Any],
    members: Sequence[Member],
    *,
    tokenizer: Any = None,
    where: Where = Where("valid"),
    seed: int = 0,
    points: int = 3000,
    features: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """The section on geometry (``report.geometry``), and remarks on what it leaves out.

    Cosines of the directions of living latents with their nearest neighbor: within a dictionary, in those of the same
    kind and other seeds, and in those of other kinds, of other seeds too where there are any, since dictionaries of
    one seed begin alike. A mean over pairs of at least three seeds has the interval of the jackknife over seeds, for
    pairs share them; a single pair has that of a bootstrap over latents, two seeds have none. What chance gives,
    directions that are isotropic or have the covariance of those among which the neighbor is sought, is that of one
    pair.

    The map is of the first site and of the first seed of each kind there: some ``points`` latents, those of
    ``features`` (a section on features) before others drawn at random, with the tokens whose logits each pushes up
    most. It is left out, with a remark, where umap-learn is missing or there are too few latents.

    Raises:
        ValueError: for no member, two of one name, or several of one site, kind and seed or of several coefficients.
    """
    _check(members)
    remarks = [f"{one.name} has too few latents alive to be compared." for one in members if one.alive.sum() < 2]
    groups = _by_kind([one for one in members if one.alive.sum() > 1])
    drawing, sites = torch.Generator().manual_seed(seed), list(dict.fromkeys(site for site, _ in groups))
    section: dict[str, Any] = {"similarity": [_row(*one, drawing, len(sites) > 1) for one in _comparisons(groups)]}
    shown = [own[0] for (site, _), own in groups.items() if site == sites[0]]
    if len(sites) > 1:
        remarks.append(f"The map of the features is that of {sites[0]}.")
    try:
        section["map"] = chart = _map(shown, points, seed, features, drawing)
    except ValueError as reason:
        return section, [*remarks, f"The map of the features is left out: {reason}."]
    if isinstance(model.family, CausalLM):
        if (batch := next(iter(batches), None)) is None:
            raise ValueError("the words on a map need a batch of text, and there is none")
        path = DirectPath(model, batch, where, Pieces(tokenizer))
        places = list(zip(chart["dictionary"], chart["latent"], strict=True))
        rows = (one.directions[[k for of, k in places if of == i]] for i, one in enumerate(shown))
        moved = (path.pushed(one.site, own, _WORDS) for one, own in zip(shown, rows, strict=True))
        chart["words"] = [", ".join(_word(row["token"]) for row in ends["up"]) for each in moved for ends in each]
        chart["method"] += " Words are the tokens whose logits a direction pushes up most by the direct path."
    return section, remarks


def _check(members: Sequence[Member]) -> None:
    names = [one.name for one in members]
    if not names:
        raise ValueError("there is no dictionary to show")
    if double := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"dictionaries should have names of their own, two are called {double[0]!r}")


def _drawn(
    rate: Float[Tensor, "k"], alive: Bool[Tensor, "k"], count: int, drawing: torch.Generator
) -> Int[Tensor, "n"]:
    """One latent of each of ``count`` equal classes by frequency, in any order."""
    able = (alive & (rate > 0)).nonzero().flatten()
    classes = able[rate[able].argsort(stable=True)].tensor_split(max(1, min(count, len(able))))
    drawn = [int(own[torch.randint(len(own), (), generator=drawing)]) for own in classes if len(own)]
    return torch.tensor(drawn, dtype=torch.int64)[torch.randperm(len(drawn), generator=drawing)]


def _told(what: Activations, pieces: Pieces) -> dict[str, Any]:
    """What is told of a latent's activations."""
    bands = list[dict[str, Any]]()
    for band in what.bands:
        examples = [
            {"tokens": pieces.of(item.ids), "values": list(item.values)}
            if isinstance(item, Excerpt)
            else {"caption": item.caption, "value": item.value}
            for item in band.examples
        ]
        bands.append({"name": band.name, "low": band.low, "high": band.high, "examples": examples})
    histogram = {"edges": list(what.edges), "counts": list(what.counts)}
    return {"latent": what.latent, "density": what.density, "max": what.max, "histogram": histogram, "bands": bands}


def _relatives(
    members: Sequence[Member], drawn: Sequence[Int[Tensor, "_"]], neighbors: int, similar: int
) -> dict[tuple[int, int], _Rows]:
    """By member and latent: those most like it in the same dictionary, and in the others at its site."""
    found = dict[tuple[int, int], _Rows]()
    for site in dict.fromkeys(one.site for one in members):
        here = [i for i, one in enumerate(members) if one.site == site]
        keys = [(i, k) for i in here for k in drawn[i].tolist()]
        found |= {key: {"neighbors": [], "similar": []} for key in keys}
        rows = torch.cat([members[i].directions[drawn[i]] for i in here])
        for j in (j for j in here if members[j].alive.any()):
            alive = members[j].alive.to(rows.device)
            k = min(max(neighbors + 1, similar), int(alive.sum()))
            near = nearest(rows, members[j].directions, k=k, alive_b=alive)
            for (i, own), cosines, index in zip(keys, near.similarity.tolist(), near.index.tolist(), strict=True):
                both = zip(index, cosines, strict=True)
                listed = [{"latent": k, "cosine": cosine} for k, cosine in both if (i, own) != (j, k)]
                if i == j:
                    found[i, own]["neighbors"] += listed[:neighbors]
                else:
                    found[i, own]["similar"] += [{"dictionary": j, **row} for row in listed[:similar]]
    for relatives in found.values():
        relatives["similar"].sort(key=lambda row: -row["cosine"])
    return found


_Kinds = Mapping[tuple[str, str], Sequence[Member]]
"""Members by site and kind, in the order of their seeds."""


def _by_kind(members: Sequence[Member]) -> _Kinds:
    groups = {(one.site, one.kind): list[Member]() for one in members}
    for one in sorted(members, key=lambda one: one.seed):
        groups[one.site, one.kind].append(one)
    for (site, kind), own in groups.items():
        if len({one.coefficient for one in own}) > 1 or len({one.seed for one in own}) < len(own):
            names = ", ".join(one.name for one in own)
            raise ValueError(f"geometry is of one coefficient of {kind} at {site}, once for each seed, not of {names}")
    return groups


def _comparisons(groups: _Kinds) -> Iterator[tuple[str, Sequence[tuple[Member, Member]]]]:
    """Which dictionaries each entry compares: the latents of the first seek their neighbors in the second."""
    yield from (("within", [(one, one) for one in own]) for own in groups.values())
    yield from (("seeds", list(permutations(own, 2))) for own in groups.values() if len(own) > 1)
    for ((site, _), own), ((other_site, _), others) in permutations(groups.items(), 2):
        if site == other_site:
            every = list(product(own, others))
            yield "kinds", [(a, b) for a, b in every if a.seed != b.seed] or every


def _row(
    relation: str, compared: Sequence[tuple[Member, Member]], drawing: torch.Generator, sited: bool
) -> dict[str, Any]:
    """An entry on similarity; a cosine below zero, which a nearest neighbor hardly has, is counted as zero."""
    (a, b), means, cosines = compared[0], dict[tuple[int, int], Estimate](), list[Tensor]()
    for one, other in compared:
        found = nearest(one.live, None if one is other else other.live)
        means[one.seed, other.seed] = _mean(found, drawing, within=a is b)
        cosines.append(found.similarity[:, 0].cpu())
    estimates = {"mean": _over_seeds(means)}
    for name, kind in (("random", "isotropic"), ("covariance", "covariance")):
        stranger = stand_in(kind, b.live, drawing)
        found = nearest(stranger) if a is b else nearest(a.live, stranger)
        estimates[name] = _mean(found, drawing, within=a is b)
    counts = torch.histc(torch.cat(cosines).clamp(min=0), _BINS, 0, 1)
    return {
        "relation": relation,
        "kind": a.kind,
        "other": b.kind,
        **({"site": a.site} if sited else {}),
        **{name: {"mean": item.mean, "low": item.low, "high": item.high} for name, item in estimates.items()},
        "histogram": {"edges": torch.linspace(0, 1, _BINS + 1).tolist(), "counts": [int(each) for each in counts]},
    }


def _mean(found: Nearest, drawing: torch.Generator, *, within: bool) -> Estimate:
    return mean(found.similarity[:, 0], drawing, groups=pairs(found) if within else None)


def _over_seeds(means: Mapping[tuple[int, int], Estimate]) -> Estimate:
    """The mean over pairs of seeds; from three seeds on with the interval of the jackknife over seeds."""
    (first, *more), seeds = means.values(), {seed for pair in means for seed in pair}
    if not more:
        return first
    whole = fmean(each.mean for each in means.values())
    without = [[each.mean for pair, each in means.items() if seed not in pair] for seed in seeds]
    if len(seeds) < 3 or not all(without):
        return Estimate(whole)
    return over_seeds([len(seeds) * whole - (len(seeds) - 1) * fmean(part) for part in without])


def _map(
    shown: Sequence[Member], points: int, seed: int, features: Mapping[str, Any] | None, drawing: torch.Generator
) -> dict[str, Any]:
    """The map of some dictionaries, without words."""
    given = features or {"dictionaries": [], "entries": []}
    names, masks = [one["name"] for one in given["dictionaries"]], dict[str, Tensor]()
    for one in shown:
        late = torch.rand(len(one.alive), generator=drawing)
        late[[entry["latent"] for entry in given["entries"] if names[entry["dictionary"]] == one.name]] = -1
        late[~one.alive.cpu()] = 2
        masks[one.name] = torch.zeros(len(late), dtype=torch.bool)
        masks[one.name][late.argsort()[: min(points // len(shown), int(one.alive.sum()))]] = True
    found = feature_map({one.name: one.directions.cpu() for one in shown}, seed, alive=masks, most=max(points, 1))
    alive = sum(int(one.alive.sum()) for one in shown)
    return {
        "dictionaries": [{"name": one.name, "kind": one.kind} for one in shown],
        "dictionary": list(found.group),
        "latent": list(found.latent),
        "x": list(found.x),
        "y": list(found.y),
        "method": f"UMAP of the directions at the distance ‖u − v‖ of unit vectors, {found.neighbors} neighbors, seed "
        f"{found.seed}; {number(len(found.x))} of {number(alive)} latents alive, of one seed of each kind.",
    }


def _word(token: str) -> str:
    """A token as it is written on the map."""
    return "".join(part for part, _ in visible(token.strip() or token))
