"""A forecaster's dictionaries trained on by what they change in its forecasts, next to others trained on alike.

All begin as the TopK dictionaries of the same run and see the same hidden states in the same order. ``local`` ones are
judged by their reconstruction error, ``e2e`` ones by the divergence of the forecasts alone, ``balanced`` ones by both,
the divergence at the scale of the error (Karvonen 2025, arXiv 2503.17272).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from innerspace.harvest.stream import TokenRule, gather
from innerspace.interventions import At, Fix, Splice
from innerspace.jobs.dictionaries.lessons import Course, Lesson, Trained, train_lessons
from innerspace.jobs.inputs.scenes import SceneReading
from innerspace.jobs.job import Run
from innerspace.learn.fit import FitConfig
from innerspace.learn.objectives import Balanced, Objective, OutputKL, Reconstruction
from innerspace.measure.estimate import over_seeds
from innerspace.measure.fidelity import row_fidelity
from innerspace.measure.forecasts import forecast
from innerspace.motion.divergence import forecast_divergence
from innerspace.motion.forecast_metrics import errors
from innerspace.motion.losses import losses
from innerspace.motion.suppression import few
from innerspace.network.model import Interventions, Model
from innerspace.value import Value

LOCAL = "local"
KINDS: dict[str, tuple[str, Objective]] = {
    LOCAL: ("reconstruction error", (Reconstruction(),)),
    "e2e": ("divergence of forecasts", (OutputKL(),)),
    "balanced": ("half of each", (Balanced(),)),
}
"""By name, on what a kind is trained, in words and as terms."""


@dataclass(frozen=True)
class EndToEnd(Value):
    """How long dictionaries are trained on: ``steps`` of ``batch`` agents each; none leaves the comparison out.

    The rate falls over nearly all of the steps, since divergences differ so much between agents.
    """

    steps: int = 75
    batch: int = 16
    rate: float = 1.5e-3

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch < 1 or self.rate <= 0:
            raise ValueError(f"end_to_end: steps should not be negative, batch and rate positive: {self}")

    def train(self, run: Run, reading: SceneReading, site: str, beginnings: Sequence[Path]) -> list[Trained]:
        """One dictionary of each kind for each of the beginnings, whose places in the list are the seeds."""
        lessons = [
            Lesson(site, kind, seed=seed, objective=objective, begins=str(path))
            for seed, path in enumerate(beginnings)
            for kind, (_, objective) in KINDS.items()
        ]
        fit = FitConfig(rate=self.rate, cooldown=0.9)
        tokens = self.steps * reading.batch_tokens
        course = Course(tokens, fit, together=len(KINDS), snapshots=1, surveyed=8)
        return train_lessons(run, reading, lessons, course)


@torch.no_grad()
def compared(reading: SceneReading, trained: Sequence[Trained]) -> dict[str, Any]:
    """The section on end-to-end training (``report.end_to_end``): all judged on one agent of each held-out scene."""
    site = trained[0].lesson.site
    rule = TokenRule(reading.where)
    rows = gather(reading.model, reading.held_out(), [site], rule).states[site]
    mean = gather(reading.model, reading.sample(8), [site], rule).states[site].mean(0)
    agents = _Agents(reading)
    clean, ablated = agents.measure({}), agents.measure({site: At(reading.where, Fix(mean))})
    runs = list[dict[str, Any]]()
    for item in trained:
        found = row_fidelity(item.dictionary, rows)
        spliced = agents.measure({site: At(reading.where, Splice(item.dictionary))})
        runs.append(
            {
                "kind": item.lesson.kind,
                "seed": item.lesson.seed,
                "divergence": spliced["divergence"],
                "recovered": (ablated["loss"] - spliced["loss"]) / (ablated["loss"] - clean["loss"]),
                "min_ade": spliced["min_ade"],
                "explained_variance": found.explained_variance,
                "l0": found.l0,
                "alive": found.alive,
            }
        )
    return {
        "runs": runs,
        "tokens": trained[0].cost["tokens"],
        "clean": clean,
        "ablated": ablated,
        "reference": LOCAL,
        "ratios": _ratios(runs),
        "kinds": {kind: words for kind, (words, _) in KINDS.items()},
    }


@final
class _Agents:
    """Held-out agents with their clean forecasts."""

    def __init__(self, reading: SceneReading) -> None:
        self._model: Model = reading.model
        self._batches = list(reading.held_out())
        self._clean = [self._model.run(batch).output for batch in self._batches]

    def measure(self, interventions: Interventions) -> dict[str, float]:
        """The divergence from the clean forecasts, the forecaster's own loss, and minADE, under interventions."""
        divergence, loss, error = list[Tensor](), list[Tensor](), list[Tensor]()
        for batch, clean in zip(self._batches, self._clean, strict=True):
            output = self._model.run(batch, interventions).output
            divergence.append(forecast_divergence(clean, output) * len(batch))
            loss.append(losses(output, batch).mean() * len(batch))
            error.append(errors(few(forecast(output), batch.target.kind), batch.future, batch.future_valid).min_ade)
        count = sum(map(len, self._batches))
        return {
            "divergence": float(torch.stack(divergence).sum()) / count,
            "loss": float(torch.stack(loss).sum()) / count,
            "min_ade": float(torch.cat(error).nanmean()),
        }


def _ratios(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The divergence of each kind over that of local ones, seed by seed; none if those change nothing."""
    own = {kind: [float(run["divergence"]) for run in runs if run["kind"] == kind] for kind in KINDS}
    reference = own.pop(LOCAL)
    if min(reference) <= 0:
        return []
    return [
        {"kind": kind, "ratio": over_seeds([a / b for a, b in zip(each, reference, strict=True)])}
        for kind, each in own.items()
    ]
