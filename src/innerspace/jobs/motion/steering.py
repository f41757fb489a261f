"""Steering, judged: calibration curves, random and negated controls, what moves along, and what stays feasible."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.jobs.inputs.parts import chunks
from innerspace.jobs.motion.vectors import OPTIMIZED, Fitted
from innerspace.measure.estimate import Estimate, over_seeds
from innerspace.measure.forecasts import readout
from innerspace.measure.steering import Curve, Response, calibrate, respond
from innerspace.motion.framing import Batch
from innerspace.network.model import Fork, Model
from innerspace.value import Value


@dataclass(frozen=True)
class Measure(Value):
    """How a feature shows in a forecast: a readout, in which unit, relative to the baseline or as a difference."""

    readout: str
    label: str
    unit: str
    relative: bool


MEASURES = {
    "speed": Measure("speed", "mean speed of the forecast, relative", "%", True),
    "acceleration": Measure("acceleration", "mean acceleration of the forecast", "m/s²", False),
    "direction": Measure("heading", "final heading of the forecast", "°", False),
}
"""By feature; an agent's type shows in no single number of a forecast."""


@dataclass(frozen=True)
class Steering(Value):
    """How steering is judged.

    ``points`` temperatures (odd, so that 0 is among them), as far as the forecasts of other agents need to change by
    ``reach`` percent of relative speed, ``push`` m/s² or ``turn`` degrees on either side, and at most 2. Speed is
    judged on agents whose unsteered forecast moves at ``moving`` m/s or more, linearity within ± ``window`` percent.
    ``randoms`` random directions are the control.
    """

    points: int = 11
    reach: float = 60.0
    push: float = 0.6
    turn: float = 12.0
    moving: float = 1.0
    window: float = 55.0
    randoms: int = 48
    samples: int = 250

    def __post_init__(self) -> None:
        if self.points < 5 or self.points % 2 == 0:
            raise ValueError(f"steering: points should be odd and at least 5, it is {self.points}")
        if self.randoms < 2 or self.samples < 10:
            raise ValueError(
                f"steering: at least 2 randoms and 10 samples are needed, given {self.randoms}, {self.samples}"
            )

    @property
    def reaches(self) -> dict[str, float]:
        """How far the forecasts should change, by feature, in the unit of its measure."""
        return {"speed": self.reach, "acceleration": self.push, "direction": self.turn}


@dataclass(frozen=True, eq=False)
class Judged:
    """A vector with its response in every readout and the calibration curve of its own feature, if that has one."""

    name: str
    fitted: Fitted
    responses: dict[str, Response]
    curve: Curve | None


@dataclass(frozen=True, eq=False)
class Bench:
    """The model, the site and the test samples on which vectors are judged."""

    model: Model
    site: str
    batches: Sequence[Batch]
    groups: Int[Tensor, "n"]
    settings: Steering

    @staticmethod
    def of(model: Model, site: str, batch: Batch, settings: Steering) -> "Bench":
        """A bench of all rows of a batch, whose unit is the scene."""
        return Bench(model, site, chunks(batch), batch.scene, settings)

    @cached_property
    def forks(self) -> list[Fork]:
        """The unsteered passes, batch by batch."""
        with torch.no_grad():
            return [self.model.fork(batch, self.site) for batch in self.batches]

    def judge(self, fitted: Fitted, along: Float[Tensor, "d"], tau: Float[Tensor, "t"], name: str = "") -> Judged:
        """Run a vector (or a control of equal norm in its place) through all temperatures."""
        responses = respond(self.model, self.batches, self.site, along, tau, readout, self.groups, forks=self.forks)
        return Judged(name or fitted.method, fitted, responses, self.curve(responses, fitted.feature.name))

    def curve(self, responses: dict[str, Response], feature: str) -> Curve | None:
        """The calibration curve of a feature's own measure."""
        measure = MEASURES.get(feature)
        if measure is None:
            return None
        return calibrate(
            responses[measure.readout],
            kind="relative" if measure.relative else "difference",
            minimum=self.settings.moving if measure.relative else 0.0,
            window=self.settings.window if measure.relative else None,
        )

    def temperatures(self, fitted: Fitted, pilot: "Bench") -> Float[Tensor, "t"]:
        """Evenly spaced temperatures around 0, as far as the pilot's samples need to change as the settings ask."""
        reach, half = self.settings.reaches, self.settings.points // 2
        coarse = torch.tensor([0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0])
        end = 1.0
        if fitted.feature.name in reach:
            tau = torch.cat([-coarse.flip(0), torch.zeros(1), coarse])
            found = pilot.judge(fitted, fitted.along, tau).curve
            assert found is not None
            means = torch.tensor([point.mean for point in found.response])
            up, down = means[-len(coarse) :], means[: len(coarse)].flip(0)
            wanted = reach[fitted.feature.name]
            reached = (up >= wanted) & (down <= -wanted)
            end = float(coarse[reached][0]) if reached.any() else float(coarse[-1])
        return torch.arange(-half, half + 1) * (end / half)


def calibration_rows(judged: Sequence[Judged], site: str, control: str | None = None) -> list[dict[str, Any]]:
    """The curves, as the report holds them."""
    rows = list[dict[str, Any]]()
    for item in judged:
        if item.curve is None:
            continue
        measure, curve = MEASURES[item.fitted.feature.name], item.curve
        targets = (-50.0, -30.0, 30.0, 50.0) if measure.relative else tuple(f * curve.span[1] for f in (-0.5, 0.5))
        rows.append(
            {
                "feature": item.fitted.feature.name,
                "measure": measure.label,
                "unit": measure.unit,
                "method": item.name,
                "site": site,
                "seed": item.fitted.seed,
                "tau": list(curve.tau),
                "response": [point.to_json() for point in curve.response],
                "pearson": curve.pearson.mean,
                "r2": curve.r2.mean,
                "straightness": curve.straightness.mean,
                "slope": curve.slope.mean,
                "range": list(curve.range),
                "span": list(curve.span),
                "inverse": [{"response": target, "tau": curve.inverse(target)} for target in targets],
                "control": control or False,
            }
        )
    return rows


def off_target(judged: Sequence[Judged]) -> dict[str, Any]:
    """What each vector changes at the strongest common dose: rows are steered features, columns measured ones.

    The dose is the largest |τ| of each vector; the change is half the difference between + and −, so that what both
    signs do alike (damage) does not count. ``normalized`` divides by the spread of the measure over unsteered samples.
    """
    change, normalized = list[list[Any]](), list[list[float]]()
    for item in judged:
        row, scaled = list[Any](), list[float]()
        for measure in MEASURES.values():
            response = item.responses[measure.readout]
            half = Response(
                torch.tensor([0.0, 1.0]),
                torch.stack([torch.zeros_like(response.value[0]), (response.value[-1] - response.value[0]) / 2]),
                response.group,
            )
            found = calibrate(half, kind="difference").response[1]
            base = response.value[response.tau == 0][0]
            row.append(found.to_json())
            scaled.append(found.mean / float(base[base.isfinite()].std()))
        change.append(row)
        normalized.append(scaled)
    return {
        "steered": [item.fitted.feature.name for item in judged],
        "methods": [item.fitted.method for item in judged],
        "measured": list(MEASURES),
        "units": ["m/s", "m/s²", "°"],
        "change": change,
        "normalized": normalized,
    }


def feasibility_rows(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """By temperature: the share of steered forecasts that can be driven, and how far they leave the unsteered ones."""
    rows = list[dict[str, Any]]()
    for item in judged:
        share = item.responses["feasible"]
        unsteered = Response(share.tau, share.value - share.value[share.tau == 0], share.group)
        base = float(share.value[share.tau == 0].mean())
        moved = calibrate(unsteered, kind="difference").response
        rows.append(
            {
                "feature": item.fitted.feature.name,
                "tau": share.tau.tolist(),
                "share": [
                    Estimate(
                        base + point.mean,
                        None if point.low is None else base + point.low,
                        None if point.high is None else base + point.high,
                    ).to_json()
                    for point in moved
                ],
                "min_ade_shift": item.responses["shift"].value.nanmean(1).tolist(),
            }
        )
    return rows


def refinement_rows(judged: Sequence[Judged], plain: str) -> list[dict[str, Any]]:
    """Plain against refined vectors, paired by seed: linearity with intervals over seeds, and a verdict for each."""
    rows = list[dict[str, Any]]()
    for feature in MEASURES:
        curves = dict[str, list[Curve]]()
        for item in judged:
            if item.fitted.feature.name == feature and item.curve is not None:
                curves.setdefault(item.fitted.method, []).append(item.curve)
        for kind, refined in curves.items():
            # methods that were fitted once only are no repetitions to compare
            if kind in (plain, OPTIMIZED) or len(refined) != len(curves[plain]):
                continue
            for measure in ("pearson", "r2", "straightness"):
                before, after = ([_linearity(curve, measure) for curve in group] for group in (curves[plain], refined))
                gain = over_seeds([b - a for a, b in zip(before, after, strict=True)])
                rows.append(
                    {
                        "feature": feature,
                        "measure": measure,
                        "plain": over_seeds(before).to_json(),
                        "refined": over_seeds(after).to_json(),
                        "dictionary": kind,
                        "verdict": _verdict(gain),
                    }
                )
    return rows


def _linearity(curve: Curve, measure: str) -> float:
    estimates = {"pearson": curve.pearson, "r2": curve.r2, "straightness": curve.straightness}
    return estimates[measure].mean


def _verdict(gain: Estimate) -> str:
    if gain.low is None or gain.high is None:
        return f"one seed only: {gain.mean:+.2g}"
    if gain.low > 0:
        return f"helps ({gain.mean:+.2g})"
    if gain.high < 0:
        return f"harms ({gain.mean:+.2g})"
    return f"no clear difference ({gain.mean:+.2g})"
