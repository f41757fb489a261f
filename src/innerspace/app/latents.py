"""Latents of a run's dictionaries: found by what they are on for, how often, who is alike, or words; and compared."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.app.state import View
from innerspace.app.studied import Saved, Studied
from innerspace.decompose.sequence import SequenceAutoencoder
from innerspace.interventions import Read
from innerspace.jobs.dictionaries.features import Member, features_section
from innerspace.jobs.motion.vectors import SEQUENTIAL
from innerspace.language.causal_lm import CausalLM
from innerspace.measure.activations import Selection, frequencies
from innerspace.measure.direct_path import DirectPath
from innerspace.measure.neighbors import nearest
from innerspace.value import read_json

By = Literal["text", "density", "similarity", "explanation"]

FOUND = 24
"""How many latents a search lists."""

_KEPT = 64
_SHOWN = Selection(before=12, after=5, top=5, each=2)


@dataclass(frozen=True)
class LatentsView(View):
    """A dictionary, a search in it, and one of its latents.

    ``by`` says what is sought: latents that are on for a ``text`` (of a forecaster: on agents whose caption has these
    words), that are on at about ``density`` percent of positions, that are like ``latent``, or whose explanation holds
    the text. A ``latent`` below zero is the first that the search finds.
    """

    dictionary: str = ""
    by: str = "density"
    text: str = ""
    density: float = 1.0
    latent: int = -1


@dataclass(frozen=True)
class Listed:
    """A latent that a search found, the number by which it was found, and a few words on it."""

    latent: int
    value: float
    words: str


@dataclass(frozen=True, eq=False)
class Compared:
    """A latent of one dictionary beside its nearest in others, by the cosine of the directions.

    ``entries`` are as in ``report.features``, the latent itself first; ``cosines`` those of the others, ``missing``
    the dictionaries without any latent that is ever on.
    """

    members: tuple[Saved, ...]
    entries: tuple[Mapping[str, Any], ...]
    cosines: tuple[float, ...]
    explanations: tuple[str, ...]
    counted: str
    missing: tuple[str, ...]


@final
class Latents:
    """The dictionaries of a run that read every hidden state by itself; whoever asks gets the same."""

    def __init__(self, studied: Studied) -> None:
        self.studied = studied
        self._density, self._paths = dict[str, Tensor](), list[DirectPath]()
        self._shown, self._lock = OrderedDict[tuple[str, int], Compared](), threading.RLock()
        self._explained = explanations(studied)

    @property
    def dictionaries(self) -> Sequence[Saved]:
        """Those that there are."""
        return self.studied.dictionaries

    @property
    def ways(self) -> list[str]:
        """What can be sought by; explanations are for runs that hold some."""
        return [way for way in get_args(By) if way != "explanation" or self._explained]

    def opening(self, view: LatentsView) -> LatentsView:
        """A view with what it leaves open: the first dictionary, the first latent that is found.

        Raises:
            ValueError: for a search that finds nothing.
        """
        # what reads several tokens together has no latents of single ones
        able = [one.name for one in self.dictionaries if one.kind not in SEQUENTIAL] or [self.dictionaries[0].name]
        view = replace(view, dictionary=view.dictionary or able[0])
        if view.latent >= 0 or view.by == "similarity":
            return replace(view, latent=max(view.latent, 0))
        return replace(view, latent=self.search(view)[0].latent)

    def saved(self, name: str) -> Saved:
        """A dictionary by its name.

        Raises:
            ValueError: for one that there is not.
        """
        found = {one.name: one for one in self.dictionaries}
        if name not in found:
            raise ValueError(f"there is no dictionary {name[:80]!r}; there are {', '.join(found)}")
        return found[name]

    def count(self, name: str) -> int:
        """How many latents a dictionary has."""
        return self.studied.rowwise(name).latents

    def density(self, name: str) -> Float[Tensor, "k"]:
        """At which share of what was held out each latent is on; found once for all dictionaries of a site.

        Raises:
            ValueError: for a dictionary that there is not, or that reads several tokens together.
        """
        self.studied.rowwise(name)
        with self._lock:
            if name not in self._density:
                site = self.saved(name).site
                alike = self._beside(self.saved(name))
                readers = [(self.studied.rowwise(one.name), site) for one in alike]
                with self.studied.alone:
                    rates = frequencies(self.studied.model, self.studied.held_out(), readers, where=self.studied.where)
                self._density |= {one.name: rate.cpu() for one, rate in zip(alike, rates, strict=True)}
            return self._density[name]

    def search(self, view: LatentsView) -> list[Listed]:
        """The latents that are sought, the best first.

        Raises:
            ValueError: for what there is not, a text that cannot be read, or a search that finds nothing.
        """
        self.studied.run.require()
        self.saved(view.dictionary)
        match view.by:
            case "text":
                scores, unit = self._on(view), "at most {:.3g}" if self.studied.is_text else "{:+.3g} where it fits"
            case "density":
                if not 0 < view.density <= 100:
                    raise ValueError(f"a density lies above 0 and up to 100 %, not at {view.density:g}")
                rate = self.density(view.dictionary)
                near = -(rate.clamp_min(1e-9).log() - torch.tensor(view.density / 100).log()).abs()
                return self._listed(view, near.where(rate > 0, -torch.inf), 100 * rate, "on at {:.3g} %")
            case "similarity":
                scores, unit = self._like(view), "cosine {:.2f}"
            case "explanation" if self._explained:
                return self._worded(view)
            case _:
                raise ValueError(f"latents can be sought by {', '.join(self.ways)}, not by {view.by[:80]!r}")
        return self._listed(view, scores, scores, unit)

    def show(self, view: LatentsView) -> Compared:
        """A latent with its nearest in the other dictionaries of its site and seed.

        Raises:
            ValueError: for a latent that there is not, or held-out data that can no longer be read.
        """
        self.studied.run.require()
        key = (view.dictionary, view.latent)
        with self._lock:
            if key not in self._shown:
                self._check(view)
                self._shown[key] = self._compared(*key)
                if len(self._shown) > _KEPT:
                    self._shown.popitem(last=False)
            self._shown.move_to_end(key)
            return self._shown[key]

    def _check(self, view: LatentsView) -> None:
        if not 0 <= view.latent < (count := self.count(view.dictionary)):
            raise ValueError(f"there is no latent {view.latent}; {view.dictionary} has 0 to {count - 1}")

    def _compared(self, name: str, latent: int) -> Compared:
        own, row = self.saved(name), self.studied.rowwise(name).directions[latent : latent + 1].detach()
        members, latents, cosines, missing = [own], [latent], [1.0], list[str]()
        for one in self._beside(own):
            if one.name == name:
                continue
            alive = self.density(one.name) > 0
            if not alive.any():
                missing.append(f"no latent of {one.kind} is ever on")
                continue
            near = nearest(row, self.studied.rowwise(one.name).directions.detach(), k=1, alive_b=alive)
            members.append(one)
            latents.append(int(near.index[0, 0]))
            cosines.append(float(near.similarity[0, 0]))
        shown = [
            Member(
                one.name, one.kind, None, one.seed, one.site, self.studied.rowwise(one.name), self.density(one.name) > 0
            )
            for one in members
        ]
        with self.studied.alone:
            section = features_section(
                self.studied.model,
                self.studied.held_out(),
                shown,
                count=1,
                latents=[torch.tensor([number]) for number in latents],
                tokenizer=self.studied.tokenizer,
                where=self.studied.where,
                selection=_SHOWN,
                caption=self.studied.caption,
                unit=self.studied.unit,
            )
        entries = sorted(section["entries"], key=lambda entry: int(entry["dictionary"]))
        words = tuple(self._explained.get((one.name, number), "") for one, number in zip(members, latents, strict=True))
        return Compared(tuple(members), tuple(entries), tuple(cosines), words, section["counted"], tuple(missing))

    def _beside(self, own: Saved) -> list[Saved]:
        """The dictionaries of the same site and seed, the dictionary itself among them."""
        alike = [one for one in self.dictionaries if (one.site, one.seed) == (own.site, own.seed)]
        return [one for one in alike if not isinstance(self.studied.decomposition(one.name), SequenceAutoencoder)]

    @torch.no_grad()
    def _on(self, view: LatentsView) -> Float[Tensor, "k"]:
        """The largest activation of every latent on a text; of a forecaster how much more it is on where words fit."""
        if not (words := view.text.strip()):
            raise ValueError("the text is empty: type some words")
        if self.studied.is_text:
            return self._codes(view.dictionary, self.studied.typed(words)).amax(0)
        caption, found = self.studied.caption, {True: list[Tensor](), False: list[Tensor]()}
        assert caption is not None
        for batch in self.studied.held_out():
            fits = torch.tensor([words.lower() in caption(batch, row).lower() for row in range(len(batch))])
            for side in (True, False):
                if (fits == side).any():
                    found[side].append(self._codes(view.dictionary, batch[fits == side]))
        if not (found[True] and found[False]):
            seen = caption(self.studied.held_out()[0], 0)
            which = "every" if found[True] else "no"
            raise ValueError(f"{which} held-out agent is described with {words[:80]!r}; one of them is {seen!r}")
        return torch.cat(found[True]).mean(0) - torch.cat(found[False]).mean(0)

    def _codes(self, name: str, batch: Any) -> Float[Tensor, "n k"]:
        """The codes at the positions of a batch that count."""
        what, place = self.studied.rowwise(name), self.studied.model.site(self.saved(name).site)
        with self.studied.alone:
            hidden = self.studied.model.run(batch, {place.name: Read()}, stop=True).hidden[place.name]
        chosen = self.studied.model.positions(batch, place.name, hidden, self.studied.where)
        # a text of one token has no other
        return what.encode(hidden[chosen if chosen.any() else torch.ones_like(chosen)].to(what.directions)).z

    def _like(self, view: LatentsView) -> Float[Tensor, "k"]:
        self._check(view)
        rows = self.studied.rowwise(view.dictionary).directions.detach()
        alive = self.density(view.dictionary) > 0
        cosine = torch.nn.functional.cosine_similarity(rows, rows[view.latent : view.latent + 1])
        cosine[view.latent] = -torch.inf
        return cosine.where(alive, -torch.inf)

    def _worded(self, view: LatentsView) -> list[Listed]:
        words = view.text.strip().lower()
        own = {latent: text for (name, latent), text in self._explained.items() if name == view.dictionary}
        found = [Listed(latent, float(latent), text) for latent, text in own.items() if words in text.lower()]
        if not found:
            raise ValueError(f"of {len(own)} explanations of {view.dictionary} none holds {view.text[:80]!r}")
        return found[:FOUND]

    def _listed(self, view: LatentsView, scores: Tensor, values: Tensor, unit: str) -> list[Listed]:
        """The latents of the largest scores, those at zero and below left out where the score is an activation."""
        best = scores.topk(min(FOUND, len(scores)))
        least = 0.0 if view.by == "text" else -torch.inf
        latents = [int(i) for i, score in zip(best.indices, best.values, strict=True) if score > least]
        if not latents:
            raise ValueError(f"no latent of {view.dictionary} is on there")
        words = self._words(view.dictionary, latents)
        return [
            Listed(latent, float(values[latent]), " · ".join(filter(None, (unit.format(float(values[latent])), own))))
            for latent, own in zip(latents, words, strict=True)
        ]

    def _words(self, name: str, latents: Sequence[int]) -> list[str]:
        """What latents are said to be, or the tokens that they push up most; nothing for a forecaster's."""
        said = [self._explained.get((name, latent), "") for latent in latents]
        if not isinstance(self.studied.model.family, CausalLM):
            return said
        with self._lock, self.studied.alone:
            if not self._paths:
                batch = self.studied.texts(8)[0]
                self._paths.append(DirectPath(self.studied.model, batch, self.studied.where, self.studied.pieces))
            rows = self.studied.rowwise(name).directions.detach()[list(latents)]
            pushed = self._paths[0].pushed(self.saved(name).site, rows, 4)
        tokens = [", ".join(repr(row["token"])[1:-1].strip() for row in one["up"]) for one in pushed]
        return [own or (f"pushes {text}" if text else "") for own, text in zip(said, tokens, strict=True)]


def explanations(studied: Studied) -> dict[tuple[str, int], str]:
    """By dictionary and latent what the run's report says of it; empty where it says nothing."""
    if studied.run.lacks("report.json"):
        return {}
    report: Any = read_json(studied.run.folder / "report.json")
    rows: Any = report.get("explanations", {}).get("latents", [])
    return {(str(row["dictionary"]), int(row["latent"])): str(row["text"]) for row in rows}
