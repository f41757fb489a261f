"""Ways to meet a shift, judged on the same scenes: no control, calibrated control, its bound, its trivial rivals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.interventions import At, Steer
from innerspace.jobs.inputs.parts import chunks
from innerspace.measure.estimate import Estimate
from innerspace.measure.forecasts import forecast
from innerspace.measure.paired import Resamples, summary
from innerspace.measure.steering import Curve
from innerspace.motion.average_precision import mean_average_precision, missed
from innerspace.motion.forecast_metrics import Forecast, errors
from innerspace.motion.framing import Batch
from innerspace.motion.responses import path_length
from innerspace.motion.shifts import Shift
from innerspace.network.model import Model
from innerspace.network.site import Where

UNCONTROLLED, CONTROLLED, RESCALED, RANDOM, ORACLE = METHODS = (
    "uncontrolled",
    "controlled",
    "rescaled",
    "random",
    "oracle",
)
"""How a shift is met, in the order of the page."""

METRICS = ("min_fde", "min_ade", "brier_min_fde", "miss_rate", "waymo_miss_rate", "map")
"""What is measured; the oracle and the shares of the gap go by the first."""

LEAST_GAP = 0.05
"""Shares are given of gaps that are larger than this part of the error without control, at the 95 % interval's end."""

Copies = Float[Tensor, "copies"]


@final
class Steered:
    """The forecasts for one batch, under any direction and temperature; the pass up to the site is made once."""

    def __init__(self, model: Model, site: str, batch: Batch) -> None:
        self.batch, self._site = batch, site
        with torch.no_grad():
            self._forks = [model.fork(part, site) for part in chunks(batch)]
        self._known = dict[tuple[int, float], tuple[Tensor, Forecast]]()

    @torch.no_grad()
    def under(self, along: Float[Tensor, "d"], tau: float) -> Forecast:
        """The forecasts with x + τ · along at every valid position."""
        key = (0, 0.0) if tau == 0 else (id(along), tau)
        if key not in self._known:
            parts = list[Forecast]()
            for fork in self._forks:
                steer = At(Where("valid"), Steer(along, tau))
                parts.append(forecast(fork.run({self._site: steer}).output if tau else fork.clean.output))
            whole = Forecast(torch.cat([f.trajectory for f in parts]), torch.cat([f.probability for f in parts]))
            # the direction is kept, lest another one takes its place in memory
            self._known[key] = along, whole
        return self._known[key][1]


@dataclass(frozen=True, eq=False)
class Control:
    """A control vector, random ones of equal norm, what temperatures buy, and those that the oracle tries."""

    along: Float[Tensor, "d"]
    randoms: Sequence[Float[Tensor, "d"]]
    curve: Curve

    def temperature(self, change: float) -> tuple[float, bool]:
        """The τ that changes speeds by so many percent, and whether it is within reach; if not, the nearest in use."""
        if change == 0:
            return 0.0, True
        found = self.curve.inverse(change)
        if found is not None:
            return found, True
        ends = zip(self.curve.range, self.curve.span, strict=True)
        return min(ends, key=lambda end: abs(end[1] - change))[0], False


def judge(
    shift: Shift, factor: float, steered: Steered, truth: Batch, control: Control, resamples: Resamples
) -> dict[str, Any]:
    """One shift, met in every way: the errors of each, their differences, and how much of the gap each closes.

    The gap is what lies between no control and the oracle, the temperature that is best on the very data; in each
    resample it is the best there. A way that closes it all is as good as any temperature. Rescaling multiplies the
    forecasts' points by ``factor``.
    """
    wanted = 100 * (factor - 1)
    tau, reached = control.temperature(wanted)
    tried = [*control.curve.tau, tau]
    by_tau = torch.stack([_min_fde(steered.under(control.along, t), truth, resamples) for t in tried])
    best = tried[int(by_tau[:, 0].argmin())]
    clean = steered.under(control.along, 0.0)
    forecasts = {
        UNCONTROLLED: [clean],
        CONTROLLED: [steered.under(control.along, tau)],
        RESCALED: [Forecast(clean.trajectory * factor, clean.probability)],
        RANDOM: [steered.under(random, tau) for random in control.randoms],
        ORACLE: [steered.under(control.along, best)],
    }
    copies = {method: _scores(items, truth, resamples) for method, items in forecasts.items()}
    copies[ORACLE]["min_fde"] = by_tau.amin(0)
    base = copies[UNCONTROLLED]
    judged = truth.future_valid.any(1)
    return {
        "shift": shift.label,
        "seen": shift.seen,
        "factor": factor,
        "wanted": wanted,
        "tau": tau,
        "reached": reached,
        "oracle_tau": best,
        "rows": int(judged.sum()),
        "complete": float(truth.future_valid[judged, -1].float().mean()),
        "methods": {method: {name: summary(of[name]) for name in METRICS} for method, of in copies.items()},
        "against": {
            method: {name: summary(of[name] - base[name]) for name in METRICS}
            for method, of in copies.items()
            if method != UNCONTROLLED
        },
        "against_rescaled": {name: summary(copies[CONTROLLED][name] - copies[RESCALED][name]) for name in METRICS},
        "closed": {method: _closed(copies, method) for method in (CONTROLLED, RESCALED, RANDOM)},
    }


def measured_factor(plain: Batch, shifted: Batch) -> float:
    """How much longer the true paths become by a shift: the ratio of sums, over waypoints that are valid in both.

    Raises:
        ValueError: if none of the paths has a length.
    """
    both = plain.future_valid & shifted.future_valid
    before, after = (float(path_length(_filled(batch.future, both)).double().sum()) for batch in (plain, shifted))
    if not before > 0:
        raise ValueError(f"none of the {len(plain)} agents moves; the speed that a shift asks for is not defined")
    return after / before


def _filled(points: Float[Tensor, "batch waypoints 2"], valid: Tensor) -> Float[Tensor, "batch waypoints 2"]:
    """Waypoints that are not valid take the place of the last that is, or of the origin, so that no way leads there."""
    steps = torch.arange(points.shape[1])
    last = steps.where(valid, -1).cummax(1).values
    return points.take_along_dim(last.clamp(min=0)[..., None], 1).where(last[..., None] >= 0, 0)


def _min_fde(found: Forecast, truth: Batch, resamples: Resamples) -> Copies:
    return resamples.mean(errors(found, truth.future, truth.future_valid).min_fde)


def _scores(forecasts: Sequence[Forecast], truth: Batch, resamples: Resamples) -> dict[str, Copies]:
    """Every metric in every copy of the data, averaged over the forecasts."""
    each = [_score(item, truth, resamples) for item in forecasts]
    return {name: torch.stack([scores[name] for scores in each]).mean(0) for name in METRICS}


def _score(found: Forecast, truth: Batch, resamples: Resamples) -> dict[str, Copies]:
    off = errors(found, truth.future, truth.future_valid)
    return {
        "min_fde": resamples.mean(off.min_fde),
        "min_ade": resamples.mean(off.min_ade),
        "brier_min_fde": resamples.mean(off.brier_min_fde),
        "miss_rate": resamples.mean(off.missed.float().where(off.judged, torch.nan)),
        "waymo_miss_rate": resamples.mean(missed(found, truth)),
        "map": mean_average_precision(found, truth, resamples.times),
    }


def _closed(copies: Mapping[str, Mapping[str, Copies]], method: str) -> Estimate | None:
    """(uncontrolled − method) / (uncontrolled − oracle); None where the gap may be too small to speak of its shares."""
    base, best, own = (copies[name]["min_fde"] for name in (UNCONTROLLED, ORACLE, method))
    gap = summary((base - best) / base)
    if gap.low is None or gap.low < LEAST_GAP:
        return None
    return summary((base - own) / (base - best))
