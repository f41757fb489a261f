"""What a part of a partition holds: states alike in it, beside those alike in all, and what an exchange changes."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from innerspace.app.language import most_changed
from innerspace.app.state import View
from innerspace.app.strips import Change
from innerspace.app.studied import Saved, Studied
from innerspace.harvest.store import Store
from innerspace.interventions import At, Read, patch
from innerspace.jobs.inputs.text import TextData
from innerspace.jobs.partitions.learned import Held as HeldStates
from innerspace.jobs.partitions.looking import Album, SceneAlbum, TextAlbum
from innerspace.language.text import Text
from innerspace.measure.forecasts import forecast
from innerspace.measure.patching import Contrast, Exchange
from innerspace.measure.preimages import Closeness, Preimages, Queries, preimages
from innerspace.motion.words import label
from innerspace.network.site import Where
from innerspace.network.trace import Trace
from innerspace.value import read_json

SHOWN, OFFERED, CHANGES = 12, 24, 6
"""How many states, queries and changes of probability (either way) are listed."""

_KEPT = 128


@dataclass(frozen=True)
class SubspacesView(View):
    """A partition, one of its parts, a query, how close a state must be, and another input to exchange the part with.

    ``state`` is the number of the held-out state that is the query; of a language model ``text`` takes its place, by
    the state of its last token. ``cosine`` is the least cosine within the part. ``other`` is a text, or the number of a
    held-out state.
    """

    partition: str = ""
    part: int = 0
    state: int = -1
    text: str = ""
    cosine: float = 0.85
    other: str = ""


@dataclass(frozen=True, eq=False)
class Found:
    """The states that look like the query in a part, and the nearest in the whole space; ``states`` shows any row."""

    preimages: Preimages
    part: int
    album: Album
    query: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Exchanged:
    """What becomes of the query's output where a part of its state, or all of it, is the other input's.

    Of a language model the largest changes of the next token's probability, of a forecaster the likeliest paths
    [waypoints, 2]: as it is, with the part exchanged, with the whole state exchanged, and the other's own.
    """

    part: tuple[Change, ...] = ()
    whole: tuple[Change, ...] = ()
    paths: tuple[Float[Tensor, "waypoints 2"], ...] = ()
    words: tuple[str, str] = ("", "")


@final
class Partitions:
    """A run's partitions with the states that it held out; answers depend on what is asked alone."""

    def __init__(self, studied: Studied) -> None:
        self.studied, self._lock = studied, threading.RLock()
        self._held, self._album = list[HeldStates](), list[Album]()
        self._searched = OrderedDict[Any, Found]()

    @property
    def partitions(self) -> Sequence[Saved]:
        """Those that there are."""
        return self.studied.partitions

    def opening(self, view: SubspacesView) -> SubspacesView:
        """A view with what it leaves open: the first partition, the first of some random queries."""
        view = replace(view, partition=view.partition or self.partitions[0].name)
        return view if view.state >= 0 or view.text else replace(view, state=self.queries()[0][1])

    def saved(self, name: str) -> Saved:
        """A partition by its name.

        Raises:
            ValueError: for one that there is not.
        """
        found = {one.name: one for one in self.partitions}
        if name not in found:
            raise ValueError(f"there is no partition {name[:80]!r}; there are {', '.join(found)}")
        return found[name]

    def sizes(self, name: str) -> tuple[int, ...]:
        """The dimensions of a partition's parts."""
        return self.studied.partition(name).sizes

    def queries(self) -> list[tuple[str, int]]:
        """Some held-out states, drawn at random, each with its words."""
        count = len(self.held().places.sample)
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:OFFERED].sort().values
        return [(self.words(row), row) for row in chosen.tolist()]

    def words(self, row: int) -> str:
        """What a held-out state is chosen by: the token behind its context, or the agent in words."""
        state = self.album().state(row)
        return "".join(state["tokens"][: state["at"] + 1]).strip() if "tokens" in state else state["caption"]

    def parts(self, name: str) -> list[str]:
        """The parts of a partition in words: dimensions, and what the report found that they tell or carry."""
        saved, said = self.saved(name), list[str]()
        # the report names those of the first seed
        if not saved.seed and not self.studied.run.lacks("report.json"):
            report: Any = read_json(self.studied.run.folder / "report.json")
            rows: Any = report.get("preimages", {}).get("partitions", [])
            said = [str(part.get("words", "")) for row in rows if row["site"] == saved.site for part in row["parts"]]
        sizes = self.sizes(name)
        said = said if len(said) == len(sizes) else [""] * len(sizes)
        return [
            " · ".join(filter(None, (str(i), f"{size} dimensions", words)))
            for i, (size, words) in enumerate(zip(sizes, said, strict=True))
        ]

    def find(self, view: SubspacesView) -> Found:
        """The states like the query in a part, and in the whole space.

        Raises:
            ValueError: for what there is not, or a text that cannot be read.
        """
        self.studied.run.require()
        what, site = self.studied.partition(view.partition), self.saved(view.partition).site
        self._check(view)
        held, album = self.held(), self.album()
        if site not in held.states:
            raise ValueError(f"the run held out no states at {site!r}; there are some at {', '.join(held.states)}")
        key = (view.partition, view.state, view.text, view.cosine)
        with self._lock:
            if key not in self._searched:
                queries = self._queries(view, held, site)
                states = held.states[site].split(8192)
                closeness = Closeness((view.cosine,), (0.25,), SHOWN)
                found = preimages(what, states, queries, documents=held.places.document, closeness=closeness)
                shown = self._typed(view.text) if view.text else album.state(view.state)
                self._searched[key] = Found(found, view.part, album, shown)
                if len(self._searched) > _KEPT:
                    self._searched.popitem(last=False)
            return replace(self._searched[key], part=view.part)

    @torch.no_grad()
    def exchange(self, view: SubspacesView) -> Exchanged | None:
        """What changes where the part is the other input's; None without another input.

        Raises:
            ValueError: for an input that cannot be read, or agents of whom no step is known in both.
        """
        if not view.other.strip():
            return None
        self._check(view)
        what, site = self.studied.partition(view.partition), self.saved(view.partition).site
        if isinstance(self.studied.data, TextData):
            clean, other = self._context(view), self.studied.typed(view.other)
            contrast = Contrast(clean, other, Where("last"), _nothing, Where("last"))
        else:
            clean, other = self._agent(view.state), self._agent(_row(view.other))
            shared = self._valid(clean, site) & self._valid(other, site)
            if not shared.any():
                raise ValueError("there is no step at which both agents are known: nothing can be exchanged")
            contrast = Contrast(clean, other, shared, _nothing, shared)
        with self.studied.alone:
            exchange = Exchange(self.studied.model, contrast, site)
            traces = [
                exchange.trace(exchange.state),
                exchange.trace(exchange.state, At(exchange.chosen, patch(what, view.part, exchange.whole))),
                exchange.trace(exchange.whole),
                self.studied.model.run(other),
            ]
        if not self.studied.is_text:
            paths = tuple(forecast(one.output).most_likely()[0] for one in traces)
            return Exchanged(paths=paths, words=(self.words(view.state), self.words(_row(view.other))))
        clean_, part, whole, _ = (one.output["logits"][0, -1].float().softmax(-1) for one in traces)
        return Exchanged(self._changes(clean_, part), self._changes(clean_, whole))

    def held(self) -> HeldStates:
        """The states that the run held out, with the batches that they come from.

        Raises:
            ValueError: where they are missing, damaged, or of another network.
        """
        with self._lock:
            if not self._held:
                store = Store.open(self.studied.run.folder / "states_held_out")
                store.check(self.studied.model)
                every = torch.arange(len(store))
                places, sites = store.places(every), [site.name for site in store.manifest.sites]
                count = int(places.sample.max()) + 1
                if self.studied.is_text:
                    batches: list[Any] = list(self.studied.texts(count))
                else:
                    batches = list(self.studied.scenes().held_out())
                if sum(map(len, batches)) < count:
                    raise ValueError(f"the held-out states are of {count} inputs, {sum(map(len, batches))} are there")
                states = {site: store.rows(site, every).float() for site in sites}
                self._held.append(HeldStates(states, places, batches))
            return self._held[0]

    def album(self) -> Album:
        """How held-out states are shown."""
        with self._lock:
            if not self._album:
                held, data = self.held(), self.studied.data
                if isinstance(data, TextData):
                    self._album.append(TextAlbum(held, self.studied.tokenizer))
                else:
                    labels = [label(one.target, one.dt, data.vocabulary) for one in held.batches]
                    self._album.append(SceneAlbum(held, self.studied.scenes(), labels))
            return self._album[0]

    def context(self, row: int) -> list[int]:
        """The tokens up to a held-out state of text, from the beginning of its sequence."""
        held = self.held()
        ids = torch.cat([batch.ids for batch in held.batches])
        return ids[held.places.sample[row], : int(held.places.position[row]) + 1].tolist()

    def text_ids(self, text: str) -> list[int]:
        """The tokens of a typed text.

        Raises:
            ValueError: for an empty one, one that is too long, or one with a word that is no token.
        """
        return self.studied.typed(text).ids[0].tolist()

    def agent_row(self, row: int) -> int:
        """The number of the agent whose step a held-out state is."""
        self._in_range(row)
        return int(self.held().places.sample[row])

    def _check(self, view: SubspacesView) -> None:
        parts = len(self.sizes(view.partition))
        if not 0 <= view.part < parts:
            raise ValueError(f"there is no part {view.part}; {view.partition} has 0 to {parts - 1}")
        if not -1 < view.cosine < 1:
            raise ValueError(f"the cosine lies between −1 and 1, not at {view.cosine:g}")
        if not view.text:
            self._in_range(view.state)
        elif not self.studied.is_text:
            raise ValueError("a forecaster reads no text: choose a held-out agent")

    def _in_range(self, row: int) -> None:
        count = len(self.held().places.sample)
        if not 0 <= row < count:
            raise ValueError(f"there is no held-out state {row}; there are 0 to {count - 1}")

    def _queries(self, view: SubspacesView, held: HeldStates, site: str) -> Queries:
        if not view.text:
            row = torch.tensor([view.state])
            return Queries(held.states[site][row], row, held.places.document[row])
        batch = self.studied.typed(view.text)
        with self.studied.alone, torch.no_grad():
            state = self.studied.model.run(batch, {site: Read()}, stop=True).hidden[site][0, -1:]
        return Queries(state.float(), torch.tensor([-1]))

    def _context(self, view: SubspacesView) -> Text:
        return self.studied.typed(view.text) if view.text else Text(torch.tensor([self.context(view.state)]))

    def _typed(self, text: str) -> dict[str, Any]:
        pieces = self.studied.pieces.of(self.text_ids(text))
        return {"tokens": pieces[-18:], "at": min(len(pieces), 18) - 1}

    def _agent(self, row: int) -> Any:
        number = self.agent_row(row)
        for batch in self.held().batches:
            if number < len(batch):
                return batch[slice(number, number + 1)]
            number -= len(batch)
        raise AssertionError("every state is of a batch")

    def _valid(self, batch: Any, site: str) -> Bool[Tensor, "batch *positions"]:
        with self.studied.alone:
            hidden = self.studied.model.run(batch, {site: Read()}, stop=True).hidden[site]
        return self.studied.model.positions(batch, site, hidden, Where("valid"))

    def _changes(self, before: Tensor, after: Tensor) -> tuple[Change, ...]:
        name = self.studied.pieces.name
        return tuple(
            Change(name(token), float(before[token]), float(after[token]))
            for token in most_changed(before, after, CHANGES)
        )


def _nothing(trace: Trace) -> Float[Tensor, "batch"]:
    """No number is asked of the output: it is shown itself."""
    raise AssertionError(trace)


def _row(text: str) -> int:
    """The number of a state as an address has it.

    Raises:
        ValueError: for anything else.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"the other input should be the number of a held-out state, not {text[:80]!r}")
    return int(text)
