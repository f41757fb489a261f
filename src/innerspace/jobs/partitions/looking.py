"""What parts hold, as the page shows it: which labels can be told from each, and which states look alike in each."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

from innerspace.decompose.subspaces import Subspaces
from innerspace.jobs.inputs.subject import Subject
from innerspace.jobs.partitions.exchanges import shared_by
from innerspace.jobs.partitions.learned import Held
from innerspace.language.pieces import Pieces
from innerspace.measure.part_labels import PartLabels, Reading, Told, equally_many, most_frequent, part_labels
from innerspace.measure.preimages import Closeness, Hits, Queries, preimages
from innerspace.motion.words import Labels

BEFORE, BEHIND = 14, 5
"""Tokens of the context that are shown before a state's own, and behind it."""


class Album(ABC):
    """What there is to know of held-out states: their labels, and how each is shown."""

    @property
    @abstractmethod
    def labels(self) -> Mapping[str, Int[Tensor, "n"]]:
        """By name the class of every state, −1 where it has none."""

    @abstractmethod
    def state(self, row: int) -> dict[str, Any]:
        """A state, as ``report.preimages`` shows it."""

    @abstractmethod
    def words(self, row: int) -> str:
        """What a query is found by."""


@final
class TextAlbum(Album):
    """States of text: each is of a token in its context.

    Labels are the token itself and the one before it (the most frequent ones), the position in its sequence, and
    whether it stands inside of a quotation, if there are any.
    """

    def __init__(self, held: Held, tokenizer: Any) -> None:
        self._ids = torch.cat([batch.ids for batch in held.batches])
        self._sample, self._position, self._pieces = held.places.sample, held.places.position, Pieces(tokenizer)
        own = self._ids[self._sample, self._position]
        former = self._ids[self._sample, (self._position - 1).clamp(min=0)]
        self._labels = {
            "token": most_frequent(own, 12),
            "token before": most_frequent(former, 12),
            "position": equally_many(self._position, 4),
        }
        quoted = self._quoted()[self._sample, self._position]
        if 0.02 < float(quoted.float().mean()) < 0.98:
            self._labels["quotation"] = quoted

    @property
    def labels(self) -> Mapping[str, Int[Tensor, "n"]]:
        """Of every token."""
        return self._labels

    def state(self, row: int) -> dict[str, Any]:
        """The token among its neighbors."""
        line, place = self._ids[self._sample[row]].tolist(), int(self._position[row])
        first = max(0, place - BEFORE)
        tokens = self._pieces.of(line[: place + 1 + BEHIND])[first:]
        return {"tokens": tokens, "at": place - first}

    def words(self, row: int) -> str:
        """The token with the words before it."""
        shown = self.state(row)
        return "".join(shown["tokens"][: shown["at"] + 1][-6:]).strip()

    def _quoted(self) -> Int[Tensor, "batch token"]:
        marks = torch.tensor([[piece.count('"') for piece in self._pieces.of(line)] for line in self._ids.tolist()])
        return marks.cumsum(1) % 2


@final
class SceneAlbum(Album):
    """States of agents: each is of a step of an agent's history, which is shown with what follows."""

    def __init__(self, held: Held, subject: Subject, labels: Sequence[Labels]) -> None:
        self._held, self._caption = held, subject.caption
        self._start = torch.tensor([0, *(len(batch) for batch in held.batches)]).cumsum(0)
        each = [shared_by(one, batch.target.valid) for one, batch in zip(labels, held.batches, strict=True)]
        self._labels = {name: torch.cat([one[name] for one in each]) for name in each[0]}

    @property
    def labels(self) -> Mapping[str, Int[Tensor, "n"]]:
        """The words of the agent."""
        return self._labels

    def state(self, row: int) -> dict[str, Any]:
        """The agent's path up to now, and what it did."""
        batch, place = self._agent(row)
        target = batch.target
        past = target.position[place][target.valid[place]]
        return {
            "caption": self.words(row),
            "past": past.tolist(),
            "future": batch.future[place][batch.future_valid[place]].tolist(),
        }

    def words(self, row: int) -> str:
        """The agent in words."""
        assert self._caption is not None
        return self._caption(*self._agent(row))

    def _agent(self, row: int) -> tuple[Any, int]:
        sample = int(self._held.places.sample[row])
        number = int(torch.searchsorted(self._start, sample, right=True)) - 1
        return self._held.batches[number], sample - int(self._start[number])


def labels_row(
    site: str, what: Subspaces, held: Held, album: Album, reading: Reading
) -> tuple[dict[str, Any], list[str]]:
    """The section on labels (``report.part_effects.part_labels``) of one partition, and what is not read, and why."""
    found, left_out = list[PartLabels](), list[str]()
    for name, label in album.labels.items():
        try:
            found.append(part_labels(what, held.states[site], {name: label}, held.places.document, reading=reading))
        except ValueError as error:
            left_out.append(f"at {site}: {error}")

    def told(read: Callable[[PartLabels], Told]) -> dict[str, Any]:
        each = [read(one) for one in found]
        return {
            "parts": [[one.parts[part][0].to_json() for one in each] for part in range(len(what.sizes))],
            "random": [[one.random[part][0].to_json() for one in each] for part in range(len(what.sizes))],
            "whole": [one.whole[0].to_json() for one in each],
        }

    row = {
        "site": site,
        "parts": [{"size": size} for size in what.sizes],
        "labels": [
            {"name": one.labels[0], "classes": one.classes[0], "rows": one.rows[0], "majority": one.majority[0]}
            for one in found
        ],
        "measures": {"linear": told(lambda one: one.linear), "neighbors": told(lambda one: one.neighbors)},
    }
    return row, left_out


def preimages_section(
    partitions: Mapping[str, Subspaces], held: Held, album: Album, queries: int, closeness: Closeness = Closeness()
) -> dict[str, Any]:
    """The section on preimages (``report.preimages``) of a partition for each site, for random queries."""
    count = len(held.places.sample)
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:queries].sort().values
    documents = held.places.document
    found = {
        site: preimages(
            what,
            held.states[site].split(8192),
            Queries(held.states[site][chosen], chosen, documents[chosen]),
            documents=documents,
            closeness=closeness,
        )
        for site, what in partitions.items()
    }
    rows = sorted({*chosen.tolist(), *(row for one in found.values() for row in one.rows())})
    place = {row: number for number, row in enumerate(rows)}

    def hits(one: Hits) -> dict[str, Any]:
        columns = one.to_json()
        return {"state": [place[row] for row in columns.pop("row")], **columns}

    default = {"cosine": 0.85, "distance": 0.25}
    first = next(iter(found.values()))
    return {
        "states": [album.state(row) for row in rows],
        "queries": [{"state": place[row], "words": album.words(row)} for row in chosen.tolist()],
        "levels": {"cosine": list(closeness.cosine), "distance": list(closeness.distance)},
        "default": default,
        "edges": first.edges,
        "show": closeness.show,
        "partitions": [
            {
                "site": site,
                "parts": [{"size": size} for size in partitions[site].sizes],
                "shares": [
                    {measure: one.share(part, measure, level).to_json() for measure, level in default.items()}
                    for part in range(len(partitions[site].sizes))
                ],
                "queries": [
                    {
                        "considered": one.considered[query],
                        "whole": hits(one.whole[query]),
                        "parts": [
                            {
                                "sample": hits(item.sample),
                                "counts": item.within,
                                "histogram": item.histogram,
                                "complement": hits(item.complement),
                            }
                            for item in one.parts[query]
                        ],
                    }
                    for query in range(len(chosen))
                ],
            }
            for site, one in found.items()
        ],
    }


def told_best(row: Mapping[str, Any]) -> list[str]:
    """Of every part the label that it tells best, against random parts of its size; nothing where none stands out."""
    names, measure = [label["name"] for label in row["labels"]], row["measures"]["linear"]
    best = list[str]()
    for own, random in zip(measure["parts"], measure["random"], strict=True):
        gains = [_low(a) - _mean(b) for a, b in zip(own, random, strict=True)]
        top = max(range(len(gains)), key=gains.__getitem__, default=0)
        best.append(names[top] if gains and gains[top] > 0 else "")
    return best


def _mean(item: Mapping[str, Any]) -> float:
    return float(item["mean"])


def _low(item: Mapping[str, Any]) -> float:
    return _mean(item) if item["low"] is None else float(item["low"])


def names_of(parts: Sequence[Mapping[str, Any]], words: Sequence[str]) -> list[dict[str, Any]]:
    """Parts with what they were found to tell."""
    return [{**part, **({"words": word} if word else {})} for part, word in zip(parts, words, strict=True)]
