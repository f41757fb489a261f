"""What the parts of partitions carry, test by test and method by method, as the page shows it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.decompose.subspaces import Subspaces
from innerspace.learn.alignment import Goal, align
from innerspace.measure.estimate import Estimate, over_seeds
from innerspace.measure.patching import Concentration, Contrast, Patching, part_variance, patching, separation
from innerspace.measure.pathways import dormant_pathways
from innerspace.network.model import Model

Progress = Callable[[Sequence[Any], str], Any]
Partitions = Mapping[str, Sequence[Subspaces]]
"""Partitions of one site by method, the learned one first; of each method as many as there are seeds or draws."""


@dataclass(frozen=True, eq=False)
class Test:
    """Inputs next to counterfactuals in which one variable differs.

    ``positions`` and ``measure`` are words for the page. From ``learned`` a supervised subspace would be found, towards
    the ``goal``, and judged on ``held_out``. ``published`` are the numbers of a paper by method, ``published_whole`` is
    its effect of the whole state. ``missing`` says what could not be asked, and why.
    """

    name: str
    variable: str
    site: str
    positions: str
    measure: str
    contrasts: Sequence[Contrast[Any]]
    learned: Sequence[Contrast[Any]] = ()
    held_out: Sequence[Contrast[Any]] = ()
    goal: Goal = "whole"
    published: Mapping[str, Any] = field(default_factory=dict[str, Any])
    published_whole: float | None = None
    missing: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Found:
    """The effects in one test: of every method's every partition."""

    test: Test
    effects: Mapping[str, Sequence[Patching]]


def exchanged(
    model: Model, test: Test, partitions: Partitions, rows: Float[Tensor, "rows d"], replicates: int = 500
) -> Found:
    """Exchange every part of every partition.

    Raises:
        ValueError: if exchanging the whole state has no effect.
    """
    effects = {
        method: [
            patching(model, test.contrasts, test.site, one, variance=part_variance(one, rows), replicates=replicates)
            for one in several
        ]
        for method, several in partitions.items()
    }
    return Found(test, effects)


def patching_section(model: Model, found: Sequence[Found], partitions: Mapping[str, Partitions]) -> dict[str, Any]:
    """The section on patching (``report.part_effects.patching``); ``partitions`` are those of every site."""
    suites = [_suite(model, one, partitions[one.test.site]) for one in found]
    methods = list(dict.fromkeys(method for one in found for method in one.effects))
    overall = [
        {
            "method": method,
            "gini": _gini([item for one in found for item in one.effects.get(method, ())]) | _apart(found, method),
        }
        for method in methods
    ]
    return {"suites": suites, "overall": overall}


def strongest(found: Found, method: str) -> int:
    """The part of a method's first partition that has the largest effect."""
    parts = found.effects[method][0].parts
    return max(range(len(parts)), key=lambda i: abs(parts[i].effect.mean))


def supervised(model: Model, test: Test, size: int, steps: int) -> dict[str, Any] | None:
    """The row of a subspace of ``size`` dimensions found by supervision (DAS): an upper bound, on held-out inputs."""
    if not test.held_out or not steps:
        return None
    found = align(model, test.learned, test.held_out, test.site, size, goal=test.goal, steps=steps)
    whole = patching(model, test.held_out, test.site, found.frame, replicates=200)
    return {"method": "DAS", "parts": [{"size": size, "effect": whole.parts[0].effect.to_json()}]}


def _suite(model: Model, found: Found, partitions: Partitions) -> dict[str, Any]:
    test = found.test
    learned = next(iter(found.effects))
    first = found.effects[learned][0]
    best = strongest(found, learned)
    pathways = dormant_pathways(model, test.contrasts, test.site, partitions[learned][0], [best])
    dormant = 1 - pathways.parts[0].kept.mean
    return {
        "name": test.name,
        "variable": test.variable,
        "site": test.site,
        "positions": test.positions,
        "measure": test.measure,
        "prompts": first.rows,
        "whole": first.whole.to_json(),
        **({} if test.published_whole is None else {"published_whole": test.published_whole}),
        "uses": _differs(first.whole),
        "methods": [
            {
                "method": method,
                "parts": _parts(several[0], {best: dormant} if method == learned else {}),
                "gini": _gini(several),
                **({"published": test.published[method]} if method in test.published else {}),
            }
            for method, several in found.effects.items()
        ],
    }


def _parts(patched: Patching, dormant: Mapping[int, float]) -> list[dict[str, Any]]:
    return [
        {
            "size": part.size,
            "effect": part.effect.to_json(),
            "sufficiency": part.sufficiency.to_json(),
            "necessity": part.necessity.to_json(),
            **({"dormant": dormant[i]} if i in dormant else {}),
        }
        for i, part in enumerate(patched.parts)
    ]


def _gini(several: Sequence[Patching]) -> dict[str, Any]:
    """Gini coefficients: over prompts for a single partition, over partitions for several."""
    known = [one.concentration for one in several if one.concentration is not None]
    if not known:
        return {}

    def of(read: Callable[[Concentration], Estimate]) -> dict[str, Any]:
        own = [read(one) for one in known]
        return (own[0] if len(own) == 1 else over_seeds([one.mean for one in own])).to_json()

    def three(normalized: bool) -> Callable[[Concentration], Estimate]:
        def mean(one: Concentration) -> Estimate:
            ginis = [gini for gini in (one.effect, one.per_dimension, one.per_variance) if gini is not None]
            return Estimate(sum((g.normalized if normalized else g.raw).mean for g in ginis) / len(ginis))

        return mean

    return {
        "effect": of(lambda one: one.effect.raw),
        "per_dimension": of(lambda one: one.per_dimension.raw),
        "per_variance": of(lambda one: (one.per_variance or one.effect).raw),
        "mean": of(three(normalized=False)),
        "normalized": of(three(normalized=True)),
    }


def _apart(found: Sequence[Found], method: str) -> dict[str, Any]:
    """How far the variables of each site are apart in a method's partitions, the mean over sites and partitions."""
    values = list[float]()
    for site in dict.fromkeys(one.test.site for one in found):
        own = [one.effects[method] for one in found if one.test.site == site and method in one.effects]
        for several in zip(*own, strict=True):
            if len(several) > 1:
                shares = [[part.sufficiency.mean for part in one.parts] for one in several]
                values.append(separation(torch.tensor(shares, dtype=torch.float64).T))
    return {"separation": over_seeds(values).to_json()} if values else {}


def _differs(whole: Estimate) -> bool:
    """Whether the whole state has an effect for sure."""
    return whole.low is None or whole.high is None or not whole.low <= 0 <= whole.high
