"""Prompt suites by name, with what was published of them, as tests of a job's partitions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from innerspace.jobs.partitions.patches import Test
from innerspace.language.causal_lm import LoadedLM
from innerspace.language.circuits import Pairs, Suite
from innerspace.language.suites.conflict import conflict, recalled
from innerspace.language.suites.greater_than import greater_than
from innerspace.language.suites.ioi import ioi
from innerspace.language.suites.stories import stories
from innerspace.measure.patching import Contrast
from innerspace.value import Value

Name = Literal["ioi", "greater-than", "conflict", "stories"]

_MEASURES = {
    "preference": "drop of log p(right) − log p(wrong)",
    "mass": "drop of p(right)",
    "choice": "drop of the rate of right answers",
}


@dataclass(frozen=True)
class Asking(Value):
    """Suites to ask of a language model, with at most ``prompts`` prompts each.

    ``site`` is where all are asked; by default each at the site that it names itself, that of its publication. The last
    ``held_out`` share of the groups of prompts judges what is learned from the others.
    """

    suite: Name
    prompts: int = 1000
    site: str = ""
    bos: bool = True
    held_out: float = 0.3

    def __post_init__(self) -> None:
        if self.prompts < 1 or not 0 < self.held_out < 1:
            raise ValueError(f"a suite needs prompts, and a share of them to hold out: {self}")

    def suites(self, loaded: LoadedLM) -> list[Suite]:
        """The suites, in the words of a tokenizer.

        Raises:
            ValueError: if it cannot express them.
        """
        return _BUILDERS[self.suite](loaded, self)

    def tests(self, loaded: LoadedLM, sites: Sequence[str], device: str, batch: int = 64) -> list[Test]:
        """The suites as tests at sites of a job.

        Raises:
            ValueError: if a suite is of a site that is not among them.
        """
        found = list[Test]()
        for suite in self.suites(loaded):
            step = -(-len(suite) // self.prompts)
            suite = replace(suite, cases=suite.cases[::step])
            site = loaded.model.site(self.site or suite.site).name
            if site not in sites:
                raise ValueError(
                    f"the suite {suite.name!r} is of the site {site!r}; the job has {', '.join(sites)}: "
                    f"add the site, or say where to ask by the suite's own setting"
                )
            learned, held = suite.split(self.held_out) if len(suite.groups) > 2 else (suite, None)
            answer = suite.question == "preference"
            published = PUBLISHED.get((loaded.model.site(site).width, suite.name), _NOTHING)
            found.append(
                Test(
                    suite.name,
                    suite.variable,
                    site,
                    f"{len(suite.cases[0].positions)} tokens of a prompt",
                    _MEASURES[suite.question],
                    contrasts_of(suite, batch, device),
                    [] if held is None else contrasts_of(learned, batch, device),
                    [] if held is None else contrasts_of(held, batch, device),
                    "answer" if answer else "whole",
                    published.methods,
                    published.whole,
                    suite.missing,
                )
            )
        return found


def contrasts_of(suite: Suite, batch: int, device: str) -> list[Contrast[Any]]:
    """The cases of a suite in batches, with the groups that an interval draws together."""
    number = {group: i for i, group in enumerate(suite.groups)}
    groups = torch.tensor([number[case.group] for case in suite.cases])

    def contrast(pairs: Pairs) -> Contrast[Any]:
        moved = pairs.to(device)
        return Contrast(moved.clean, moved.other, moved.positions, moved.metric, group=groups[pairs.prompt])

    return [contrast(pairs) for pairs in suite.pairs(batch)]


@dataclass(frozen=True)
class Published:
    """The effect of the whole state in a paper, and by method the Gini coefficients and the best part's share."""

    whole: float | None
    methods: Mapping[str, Mapping[str, float]]


_NOTHING = Published(None, {})


def _gpt2(whole: float, share: float, *ginis: tuple[float, float, float]) -> Published:
    methods = ("learned", "identity", "random", "PCA, small first", "PCA, large first")
    rows = {
        method: {"effect": a, "per_dimension": b, "per_variance": c, "mean": (a + b + c) / 3}
        for method, (a, b, c) in zip(methods, ginis, strict=True)
    }
    return Published(whole, rows | {"learned": rows["learned"] | {"share": share}})


PUBLISHED: Mapping[tuple[int, str], Published] = {
    (768, "ioi.previous-token"): _gpt2(
        3.81, 0.95, (0.889, 0.889, 0.896), (0.325, 0.055, 0.234), (0.360, 0.104, 0.109), (0.434, 0.424, 0.374),
        (0.657, 0.559, 0.389),
    ),
    (768, "ioi.induction"): _gpt2(
        4.81, 0.61, (0.713, 0.720, 0.829), (0.319, 0.111, 0.253), (0.359, 0.158, 0.162), (0.457, 0.219, 0.517),
        (0.260, 0.187, 0.245),
    ),
    (768, "ioi.position"): _gpt2(
        4.59, 0.50, (0.629, 0.704, 0.384), (0.397, 0.123, 0.194), (0.322, 0.112, 0.117), (0.498, 0.303, 0.512),
        (0.278, 0.194, 0.291),
    ),
    (768, "ioi.name"): _gpt2(
        1.97, 0.39, (0.498, 0.550, 0.790), (0.310, 0.042, 0.151), (0.331, 0.096, 0.121), (0.380, 0.216, 0.355),
        (0.403, 0.198, 0.190),
    ),
    (768, "greater-than"): _gpt2(
        0.686, 0.43, (0.718, 0.665, 0.779), (0.319, 0.123, 0.194), (0.386, 0.164, 0.180), (0.345, 0.236, 0.357),
        (0.401, 0.262, 0.268),
    ),
    (1536, "conflict.memory-corrupted.memory"): Published(0.420, {"learned": {"share": 0.98}}),
    (1536, "conflict.context-corrupted.context"): Published(0.549, {"learned": {"share": 0.85}}),
    (2304, "conflict.memory-corrupted.memory"): Published(0.644, {"learned": {"share": 0.79}}),
    (2304, "conflict.context-corrupted.context"): Published(0.289, {"learned": {"share": 0.66}}),
}  # fmt: skip
"""What Huang and Hahn found, by the width of the hidden state and the suite: GPT-2 small, Qwen2.5-1.5B, Gemma-2-2B.

Of context against memory they published rates; the effects here are the rates' changes.
"""

_BUILDERS: Mapping[Name, Callable[[LoadedLM, Asking], list[Suite]]] = {
    "ioi": lambda loaded, asking: ioi(loaded.tokenizer, count=asking.prompts, bos=asking.bos),
    "greater-than": lambda loaded, asking: [greater_than(loaded.tokenizer, count=asking.prompts, bos=asking.bos)],
    "conflict": lambda loaded, asking: conflict(
        loaded.tokenizer, asking.site, recalled(loaded, bos=asking.bos), bos=asking.bos
    ),
    "stories": lambda loaded, asking: stories(loaded.tokenizer, bos=asking.bos),
}
