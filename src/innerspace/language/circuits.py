"""Suites of prompts with a known variable, each beside a counterfactual: the ground on which subspaces are patched.

A *case* is a clean prompt, another one of the same length in which the variable differs, the tokens at which the
hidden state is exchanged, and the answers that tell the two apart. A *suite* is many cases of one variable. The prompts
themselves are written in ``language/suites/``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.interventions import Read
from innerspace.language.text import Text
from innerspace.network.model import Model
from innerspace.network.trace import Trace

Question = Literal["preference", "mass", "choice"]
"""How answers are judged, see ``Answers``."""


@final
@dataclass(frozen=True, eq=False)
class Answers:
    """What a network says at the last token of every prompt: one number per row from the logits of a pass.

    ``preference``: log p(right) − log p(wrong), for single tokens the difference of their logits; ``mass``: p(right),
    summed over tokens; ``choice``: 1 where the likeliest token of all is right, else 0. ``right`` and ``wrong`` hold
    token ids, padded with −1; ``wrong`` counts for a preference only.

    Raises:
        ValueError: for a pass that was stopped before its logits.
    """

    question: Question
    last: Int[Tensor, "batch"]
    right: Int[Tensor, "batch right"]
    wrong: Int[Tensor, "batch wrong"]

    def __call__(self, trace: Trace) -> Float[Tensor, "batch"]:
        """The number of every row."""
        if "logits" not in trace.output:
            raise ValueError("the pass has no logits: it was stopped before its end")
        logits = trace.output["logits"]
        rows = logits[torch.arange(len(self.last), device=logits.device), self.last.to(logits.device)].float()
        match self.question:
            case "preference":
                return _log_sum(rows, self.right) - _log_sum(rows, self.wrong)
            case "mass":
                return _log_sum(rows.log_softmax(-1), self.right).exp()
            case "choice":
                return (rows.argmax(-1, keepdim=True) == self.right.to(rows.device)).any(-1).float()


@final
@dataclass(frozen=True, eq=False)
class Pairs:
    """A batch of cases: two texts of the same lengths row by row, where the state is exchanged, and what is measured.

    Rows that are shorter than the longest are padded at the right, alike in both texts. ``group`` numbers the groups
    of the suite; ``prompt`` is the place of every row in it.
    """

    clean: Text
    other: Text
    positions: Bool[Tensor, "batch token"]
    metric: Answers
    group: Int[Tensor, "batch"]
    prompt: Int[Tensor, "batch"]

    def __len__(self) -> int:
        return len(self.clean)

    def to(self, device: torch.device | str) -> "Pairs":
        """The same batch on a device; the metric follows its trace by itself."""
        return replace(
            self, clean=self.clean.to(device), other=self.other.to(device), positions=self.positions.to(device)
        )


@final
@dataclass(frozen=True)
class Case:
    """One prompt and its counterfactual, as token ids; BOS, where there is one, is among them.

    ``positions`` are tokens of either. ``right`` are the answers to the clean prompt, ``wrong`` what they are held
    against, for both prompts alike. Cases of one ``group`` share what should not be on both sides of a split.

    Raises:
        ValueError: for prompts of different lengths, positions outside of them, or no right answer.
    """

    clean: tuple[int, ...]
    other: tuple[int, ...]
    positions: tuple[int, ...]
    right: tuple[int, ...]
    wrong: tuple[int, ...]
    group: str

    def __post_init__(self) -> None:
        if len(self.clean) != len(self.other):
            raise ValueError(f"a prompt has {len(self.clean)} tokens, its counterfactual {len(self.other)}")
        if not self.positions or not all(0 <= place < len(self.clean) for place in self.positions):
            raise ValueError(f"positions should be among the {len(self.clean)} tokens, they are {self.positions}")
        if not self.right:
            raise ValueError("a case needs an answer that is right")


@final
@dataclass(frozen=True)
class Suite:
    """Cases of one variable.

    ``site`` is where the variable was published to be (in the network of the publication), or found to be. ``missing``
    says what could not be written in the tokenizer's words, and why; whatever is there is not among the cases.

    Raises:
        ValueError: for no cases, or a preference without wrong answers.
    """

    name: str
    variable: str
    site: str
    question: Question
    cases: tuple[Case, ...]
    missing: tuple[str, ...] = ()
    padding: int = 0

    def __post_init__(self) -> None:
        if not self.cases:
            raise ValueError(f"the suite {self.name!r} has no cases")
        if self.question == "preference" and not all(case.wrong for case in self.cases):
            raise ValueError(f"a preference needs wrong answers too; in {self.name!r} a case has none")

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of the cases, each once, in order."""
        return tuple(dict.fromkeys(case.group for case in self.cases))

    def pairs(self, size: int = 64) -> list[Pairs]:
        """The cases in batches, in order; the last may be smaller.

        Raises:
            ValueError: for batches without a case.
        """
        if size < 1:
            raise ValueError(f"a batch has at least one case, not {size}")
        return [self._pairs(range(len(self))[i : i + size]) for i in range(0, len(self), size)]

    def at_end(self, site: str) -> "Suite":
        """The same cases with the state exchanged at their last token, where the network must have its answer."""
        cases = tuple(replace(case, positions=(len(case.clean) - 1,)) for case in self.cases)
        return replace(self, name=f"{self.name}.end", site=site, cases=cases)

    def split(self, share: float, seed: int = 0) -> tuple["Suite", "Suite"]:
        """Two suites that have no group in common: the rest, and about a ``share`` of the groups, held out.

        Raises:
            ValueError: if either would be empty.
        """
        groups = self.groups
        held = round(share * len(groups))
        if not 0 < held < len(groups):
            raise ValueError(f"a share of {share} of {len(groups)} groups leaves one side empty")
        order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
        out = {groups[i] for i in order[:held]}
        rest = tuple(case for case in self.cases if case.group not in out)
        return replace(self, cases=rest), replace(self, cases=tuple(c for c in self.cases if c.group in out))

    def _pairs(self, rows: Sequence[int]) -> Pairs:
        cases = [self.cases[row] for row in rows]
        lengths = torch.tensor([len(case.clean) for case in cases])
        place = torch.arange(int(lengths.max()))
        valid = place < lengths[:, None]
        clean, other = (
            Text(_table(ids, self.padding), None if valid.all() else valid)
            for ids in ([case.clean for case in cases], [case.other for case in cases])
        )
        positions = torch.stack([torch.isin(place, torch.tensor(case.positions)) for case in cases])
        right, wrong = _table([case.right for case in cases], -1), _table([case.wrong for case in cases], -1)
        metric = Answers(self.question, lengths - 1, right, wrong)
        number = {group: i for i, group in enumerate(self.groups)}
        group = torch.tensor([number[case.group] for case in cases])
        return Pairs(clean, other, positions, metric, group, torch.tensor(rows))


@final
@dataclass(frozen=True, eq=False)
class Verification:
    """Whether a network uses a variable at a site: the metric of every prompt, clean, counterfactual, and patched.

    Patched is the clean pass with the whole hidden state of the counterfactual at the positions of the case: the most
    that a patch of any subspace can show there. ``group`` numbers the groups of the suite.
    """

    site: str
    clean: Float[Tensor, "prompts"]
    other: Float[Tensor, "prompts"]
    patched: Float[Tensor, "prompts"]
    group: Int[Tensor, "prompts"]

    @property
    def effect(self) -> float:
        """Δ, the mean of clean − patched."""
        return float((self.clean - self.patched).mean())

    @property
    def gap(self) -> float:
        """The mean of clean − counterfactual."""
        return float((self.clean - self.other).mean())

    @property
    def share(self) -> float:
        """The effect in units of the gap: 1 where the patch does what the other prompt does.

        It means little where both prompts have the same answer, so that there is no gap, as in ``ioi.position``.
        """
        return float((self.clean - self.patched).sum() / (self.clean - self.other).sum())

    @property
    def interval(self) -> tuple[float, float]:
        """The share's 95 % interval, by linearization of the ratio; groups vary, so one group alone says nothing."""
        residual = (self.clean - self.patched) - self.share * (self.clean - self.other)
        sums = residual.new_zeros(int(self.group.max()) + 1).index_add_(0, self.group, residual)
        if len(sums) < 2:
            return -math.inf, math.inf
        spread = (sums.square().sum() * len(sums) / (len(sums) - 1)).sqrt()
        half = 1.96 * float(spread / (self.clean - self.other).sum().abs())
        return self.share - half, self.share + half


@torch.no_grad()
def verify(model: Model, suite: Suite, site: str, *, size: int = 64) -> Verification:
    """Exchange the whole hidden state at a site, at the positions of every case, and measure.

    Raises:
        ValueError: for an unknown site.
    """
    name, measured = model.site(site).name, list[tuple[Tensor, ...]]()
    device = next(model.module.parameters()).device
    for pairs in (batch.to(device) for batch in suite.pairs(size)):
        clean, other = (model.run(text, {name: Read()}) for text in (pairs.clean, pairs.other))
        hidden = torch.where(pairs.positions[..., None], other.hidden[name], clean.hidden[name])
        patched = model.resume(pairs.clean, name, hidden)
        measured.append((pairs.metric(clean), pairs.metric(other), pairs.metric(patched), pairs.group))
    return Verification(name, *(torch.cat(column).cpu() for column in zip(*measured, strict=True)))


def _log_sum(scores: Tensor, tokens: Tensor) -> Tensor:
    """The log Σ exp of the scores of some tokens per row; padding is left out."""
    tokens = tokens.to(scores.device)
    return scores.gather(-1, tokens.clamp(min=0)).masked_fill(tokens < 0, -torch.inf).logsumexp(-1)


def _table(rows: Sequence[Sequence[int]], padding: int) -> Int[Tensor, "batch width"]:
    table = torch.full((len(rows), max(map(len, rows))), padding)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = torch.tensor(row, dtype=torch.int64)
    return table
