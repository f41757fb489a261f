"""What decompositions are compared on: hidden states with labels, and variables in which inputs differ.

A label belongs to a state, such as whether its token stands inside of a quotation, or how fast its agent moves. A
variable belongs to inputs that stand next to counterfactuals, and shows in the output.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.interventions import Read
from innerspace.jobs.inputs.scenes import SceneReading
from innerspace.jobs.inputs.subject import Subject
from innerspace.jobs.motion.steering import MEASURES
from innerspace.jobs.partitions.exchanges import exchanges, shared_by
from innerspace.jobs.partitions.suites import Asking, contrasts_of
from innerspace.language.causal_lm import LoadedLM
from innerspace.language.circuits import Suite
from innerspace.language.pieces import Pieces
from innerspace.language.text import Text
from innerspace.language.token_labels import token_labels
from innerspace.measure.isolation import Variable
from innerspace.motion.words import label

TWO_VALUED = ("stories.pronoun", "stories.opening", "stories.quotation")
"""Suites whose variable has two values, so that a direction leads from one to the other."""


@dataclass(frozen=True)
class Opposed:
    """The classes of a label, and the two of them that a control vector leads between."""

    classes: tuple[str, ...]
    negative: str
    positive: str


@dataclass(frozen=True, eq=False)
class Sample:
    """Hidden states of a site, the document of each, and by label its class (−1 where it has none)."""

    states: Float[Tensor, "n d"]
    documents: Int[Tensor, "n"]
    labels: Mapping[str, Int[Tensor, "n"]]


class Ground(ABC):
    """A network's site, and what there is to judge by."""

    def __init__(self, subject: Subject, site: str) -> None:
        self.subject, self.site = subject, subject.model.site(site).name

    @property
    @abstractmethod
    def opposed(self) -> Mapping[str, Opposed]:
        """By label its classes."""

    @property
    @abstractmethod
    def output(self) -> str:
        """What the divergence is of."""

    @abstractmethod
    def labels(self, batch: Any) -> Mapping[str, Int[Tensor, "batch *positions"]]:
        """By label the class of every position of a batch."""

    @abstractmethod
    def documents(self, batch: Any) -> Int[Tensor, "batch *positions"]:
        """The document, or the scene, of every position of a batch."""

    @abstractmethod
    def variables(self) -> tuple[list[Variable], list[Variable], list[str]]:
        """The variables to choose parts by, the same ones to judge by, and what is missing, and why."""

    @torch.no_grad()
    def sample(self, batches: Iterable[Any], count: int) -> Sample:
        """The states of batches, at most so many."""
        model, where = self.subject.model, self.subject.where
        states, documents, labels = list[Tensor](), list[Tensor](), list[Mapping[str, Tensor]]()
        for batch in batches:
            hidden = model.run(batch, {self.site: Read()}, stop=True).hidden[self.site]
            chosen = model.positions(batch, self.site, hidden, where)
            states.append(hidden[chosen].float().cpu())
            documents.append(self.documents(batch).to(chosen.device)[chosen].cpu())
            labels.append({name: ids.to(chosen.device)[chosen].cpu() for name, ids in self.labels(batch).items()})
            if sum(map(len, states)) >= count:
                break
        joined = {name: torch.cat([one[name] for one in labels])[:count] for name in labels[0]}
        return Sample(torch.cat(states)[:count], torch.cat(documents)[:count], joined)


@final
class TextGround(Ground):
    """A language model: labels of tokens that need no annotation, and prompt suites."""

    def __init__(self, subject: Subject, site: str, suites: Sequence[Asking], replicates: int = 500) -> None:
        super().__init__(subject, site)
        self._suites, self._replicates = suites, replicates
        self._pieces = Pieces(subject.tokenizer)

    @property
    def opposed(self) -> Mapping[str, Opposed]:
        """No and yes, for each."""
        return dict.fromkeys(
            ("capitalized", "sentence start", "pronoun", "quotation"), Opposed(("no", "yes"), "no", "yes")
        )

    @property
    def output(self) -> str:
        """The next token."""
        return "next token"

    def labels(self, batch: Text) -> Mapping[str, Int[Tensor, "batch token"]]:
        """By label the class of every token."""
        return token_labels(batch.ids, self._pieces)

    def documents(self, batch: Text) -> Int[Tensor, "batch token"]:
        """As the text tells."""
        assert batch.document is not None
        return batch.document

    def variables(self) -> tuple[list[Variable], list[Variable], list[str]]:
        """Every suite, its groups of prompts parted in two."""
        loaded, device = LoadedLM(self.subject.model, self.subject.tokenizer), self.subject.device
        choosing, judging, missing = list[Variable](), list[Variable](), list[str]()
        for asking in self._suites:
            for suite in asking.suites(loaded):
                if suite.missing:
                    missing.append(f"{suite.name}: {len(suite.missing)} could not be written, as {suite.missing[0]}.")
                halves = _fewer(suite, asking.prompts).split(0.5)
                try:
                    pair = [self._variable(half, suite, device) for half in halves]
                except ValueError as error:
                    missing.append(f"{suite.name}: {error}")
                    continue
                choosing.append(pair[0])
                judging.append(pair[1])
        return choosing, judging, missing

    def _variable(self, half: Suite, whole: Suite, device: str) -> Variable:
        # cases come in twos, of which the second goes the other way
        first = set(whole.cases[::2])
        sign = None
        if half.name in TWO_VALUED:
            sign = torch.tensor([1.0 if case in first else -1.0 for case in half.cases])
        contrasts = contrasts_of(half, 64, device)
        return Variable(half.name, self.subject.model, self.site, contrasts, sign, self._replicates)


@final
class SceneGround(Ground):
    """A forecaster: the words of agents, and agents next to others who move otherwise."""

    def __init__(self, reading: SceneReading, site: str, count: int, replicates: int = 500) -> None:
        super().__init__(reading, site)
        self._reading, self._count, self._replicates = reading, count, replicates

    @property
    def opposed(self) -> Mapping[str, Opposed]:
        """The words of every feature."""
        features = self._reading.vocabulary.features
        return {one.name: Opposed(one.classes, one.negative, one.positive) for one in features}

    @property
    def output(self) -> str:
        """The forecast."""
        return "forecast"

    def labels(self, batch: Any) -> Mapping[str, Int[Tensor, "batch step"]]:
        """The words of the agent, at each of its steps."""
        found = label(batch.target, batch.dt, self._reading.vocabulary)
        every = shared_by(found, torch.ones_like(batch.target.valid))
        return {name: ids.view(batch.target.valid.shape) for name, ids in every.items()}

    def documents(self, batch: Any) -> Int[Tensor, "batch step"]:
        """The agent's scene."""
        return batch.scene[:, None].expand(batch.target.valid.shape)

    def variables(self) -> tuple[list[Variable], list[Variable], list[str]]:
        """Every feature that shows in a number of a forecast; agents to fit to choose, held-out ones judge."""
        reading, choosing, judging, missing = self._reading, list[Variable](), list[Variable](), list[str]()
        words = [label(one.target, one.dt, reading.vocabulary) for one in (reading.fit, reading.test)]
        for feature in reading.vocabulary.features:
            if feature.name not in MEASURES:
                continue
            pair = list[Variable]()
            try:
                for agents, labels in zip((reading.fit, reading.test), words, strict=True):
                    found = exchanges(reading.model, self.site, agents, labels, feature, self._count, seed=0)
                    sign = torch.ones(sum(len(one.clean) for one in found))
                    one = Variable(feature.name, reading.model, self.site, found, sign, self._replicates)
                    pair.append(one)
            except ValueError as error:
                missing.append(f"{feature.name}: {error}")
                continue
            choosing.append(pair[0])
            judging.append(pair[1])
        return choosing, judging, missing


def _fewer(suite: Suite, prompts: int) -> Suite:
    """At most so many of the cases, always both of two that go opposite ways."""
    step = -(-len(suite) // prompts)
    return replace(suite, cases=tuple(case for i, case in enumerate(suite.cases) if (i // 2) % step == 0))
