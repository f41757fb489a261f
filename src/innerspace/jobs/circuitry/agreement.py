"""Agreement of subject and verb as a job asks for it: does the network do it, and passages in which it does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from innerspace.decompose.base import Decomposition
from innerspace.jobs.inputs.subject import Subject
from innerspace.language.suites.agreement import ENGLISH, STORIES, STRUCTURES, Structure, Template, agreement
from innerspace.measure.documents import Draws, Ledger
from innerspace.measure.estimate import Estimate
from innerspace.measure.nodes import Asked, Passage, Values, mean_values
from innerspace.value import Value

BATCH = 64
"""Prompts of a pass."""


@dataclass(frozen=True)
class AskingNumber(Value):
    """Templates of agreement, at most ``pairs`` pairs of prompts on each side; the sides have no noun in common."""

    words: Literal["stories", "english"] = "english"
    structures: tuple[Structure, ...] = STRUCTURES
    pairs: int = 60
    bos: bool = True

    def __post_init__(self) -> None:
        if self.pairs < 4 or not self.structures:
            raise ValueError(f"at least 4 pairs of one template are needed: {self}")

    def questions(self, subject: Subject) -> list["Question"]:
        """The templates in the words of the network's tokenizer.

        Raises:
            ValueError: if it cannot express them.
        """
        words = {"stories": STORIES, "english": ENGLISH}[self.words]
        sides = [
            agreement(subject.tokenizer, side, words, count=self.pairs, structures=self.structures, bos=self.bos)
            for side in ("train", "test")
        ]
        return [Question(subject, *both) for both in zip(*sides, strict=True)]


@dataclass(frozen=True)
class Behavior(Value):
    """How a network agrees, on ``prompts`` prompts of ``subjects`` nouns; intervals over nouns.

    ``margin`` is the mean of log p(right) − log p(wrong) in nats, ``accuracy`` the share of prompts with a positive
    one, ``pairs`` the share of pairs of which the sum is positive, where it cancels how frequent either verb is; chance
    is 0.5 for both. The other margins are those of prompts with a singular or a plural subject, and with another noun
    of the subject's number (``alike``) or of the other one.
    """

    prompts: int
    subjects: int
    margin: Estimate
    accuracy: Estimate
    pairs: Estimate
    singular: Estimate
    plural: Estimate
    alike: Estimate
    unlike: Estimate | None

    @property
    def does(self) -> bool:
        """Whether it is above chance for sure, also where the other noun has the other number.

        One that follows the nearer noun is right as often as wrong, and a trace of the subject is no agreement.
        """
        sure = (self.margin.low or 0.0) > 0 and (self.pairs.low or 0.0) > 0.5
        return sure and (self.unlike is None or (self.unlike.low or 0.0) > 0)


@final
@dataclass(frozen=True, eq=False)
class Question:
    """One template on both sides: what is chosen by the prompts of one is judged on those of the other."""

    subject: Subject
    train: Template
    test: Template

    @property
    def name(self) -> str:
        """What the page calls it."""
        return NAMES[self.train.structure]

    @property
    def places(self) -> tuple[str, ...]:
        """The places.

        Raises:
            ValueError: for one that only the prompts to judge by have, of which no mean is known.
        """
        if unknown := [place for place in self.test.places if place not in self.train.places]:
            raise ValueError(f"{self.name}: no prompt to choose by has the place {unknown[0]!r}; ask for more pairs")
        return self.train.places

    @property
    def missing(self) -> tuple[str, ...]:
        """What could not be written, and why."""
        return (*self.train.missing, *self.test.missing)

    def asked(self, side: Literal["train", "test"], most: int | None = None) -> list[Asked[Any]]:
        """The prompts in batches, by their nouns; the first batches only, with ``most`` prompts or a few more."""
        template = self.train if side == "train" else self.test
        number = torch.tensor([self.places.index(name) for name in template.places] + [-1])
        batches = template.batches(BATCH, self.subject.device)
        batches = batches if most is None else batches[: -(-most // BATCH)]
        return [Asked(b.clean, b.metric, number.to(b.place.device)[b.place], group=b.group) for b in batches]

    def means(self, vias: Mapping[str, Decomposition]) -> dict[str, Values]:
        """The means of the prompts to choose by."""
        found = mean_values(self.subject.model, self.asked("train"), vias, len(self.places))
        return {self.subject.model.site(site).name: values for site, values in found.items()}

    def passages(
        self, side: Literal["train", "test"], vias: Mapping[str, Decomposition], most: int | None = None
    ) -> list[Passage[Any]]:
        """The prompts of a side, against the means of those to choose by."""
        means, places = self.means(vias), len(self.places)
        return [Passage(self.subject.model, one, vias, places, means) for one in self.asked(side, most)]

    @torch.no_grad()
    def behavior(self, replicates: int = 1000) -> Behavior:
        """How the network does on the prompts to judge by."""
        model, found = self.subject.model, list[tuple[Tensor, ...]]()
        for batch in self.test.batches(BATCH, self.subject.device):
            margin = batch.metric(model.run(batch.clean)).double().cpu()
            found.append((margin, batch.group, batch.plural, batch.alike))
        margin, group, plural, alike = (torch.cat(column) for column in zip(*found, strict=True))
        # each prompt's margin and its partner's: how frequent the two verbs are cancels
        both = margin + margin.view(-1, 2).flip(1).flatten()
        ledger = Ledger()
        ledger.add("all", group, {"margin": margin, "right": margin > 0, "pair": both > 0})
        for name, chosen in {"singular": ~plural, "plural": plural, "alike": alike, "unlike": ~alike}.items():
            if chosen.any():
                ledger.add(name, group[chosen], {"margin": margin[chosen]})
        draws = Draws(ledger, replicates, 0)
        return Behavior(
            prompts=len(margin),
            subjects=len(group.unique()),
            margin=draws.mean("all.margin"),
            accuracy=draws.mean("all.right"),
            pairs=draws.mean("all.pair"),
            singular=draws.mean("singular.margin"),
            plural=draws.mean("plural.margin"),
            alike=draws.mean("alike.margin"),
            unlike=draws.mean("unlike.margin") if draws.count("unlike") else None,
        )


NAMES: Mapping[str, str] = {
    "simple": "simple",
    "prepositional": "across a phrase",
    "across": "across a clause",
    "within": "within a clause",
}
"""What the page calls the templates."""
