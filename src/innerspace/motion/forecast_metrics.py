"""How far forecasts are from what happened: minADE, minFDE, miss rate and Brier-minFDE as Argoverse 2 defines them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from innerspace.motion.framing import Batch
from innerspace.value import Value


@dataclass(frozen=True, eq=False)
class Forecast:
    """A few possible futures in the target's frame (m), and their probabilities."""

    trajectory: Float[Tensor, "batch modes waypoints 2"]
    probability: Float[Tensor, "batch modes"]

    def most_likely(self) -> Float[Tensor, "batch waypoints 2"]:
        """The future of the highest probability."""
        return self.trajectory[torch.arange(len(self.trajectory)), self.probability.argmax(1)]


@dataclass(frozen=True, eq=False)
class Errors:
    """The errors of each forecast (m); NaN, and not missed, where no valid waypoint could be ``judged``."""

    min_ade: Float[Tensor, "batch"]
    min_fde: Float[Tensor, "batch"]
    brier_min_fde: Float[Tensor, "batch"]
    missed: Bool[Tensor, "batch"]
    judged: Bool[Tensor, "batch"]


@dataclass(frozen=True)
class ForecastScores(Value):
    """Errors averaged over ``rows`` forecasts: meters, and the share of misses."""

    min_ade: float
    min_fde: float
    miss_rate: float
    brier_min_fde: float
    rows: int


def errors(
    forecast: Forecast,
    future: Float[Tensor, "batch waypoints 2"],
    future_valid: Bool[Tensor, "batch waypoints"],
    miss_threshold: float = 2.0,
) -> Errors:
    """The errors of the best mode k*, the one that ends nearest to the truth.

    Over the valid waypoints t, of which T is the last: minADE = mean_t ‖ŷ_k*,t − y_t‖, minFDE = ‖ŷ_k*,T − y_T‖,
    missed if minFDE > ``miss_threshold`` (m), Brier-minFDE = minFDE + (1 − p_k*)². Wilson et al., "Argoverse 2"
    (NeurIPS 2021).

    Raises:
        ValueError: if forecast and future differ in length, or probabilities are not a distribution.
    """
    if forecast.trajectory.shape[2] != future.shape[1]:
        raise ValueError(f"forecast of {forecast.trajectory.shape[2]} waypoints, future of {future.shape[1]}")
    total = forecast.probability.sum(1)
    if (forecast.probability < 0).any() or not torch.allclose(total, torch.ones_like(total), atol=1e-3):
        raise ValueError(f"the probabilities of a row should sum to 1, they sum to {total.min():g} … {total.max():g}")

    distance = (forecast.trajectory - future[:, None]).norm(dim=-1)
    steps = torch.arange(future.shape[1], device=future.device)
    last = steps.where(future_valid, 0).amax(-1)
    row = torch.arange(len(last), device=last.device)
    final, best = distance[row, :, last].min(1)
    along = distance[row, best].where(future_valid, 0)
    judged = future_valid.any(1)
    min_fde = final.where(judged, torch.nan)
    return Errors(
        min_ade=along.sum(1) / future_valid.sum(1),
        min_fde=min_fde,
        brier_min_fde=min_fde + (1 - forecast.probability[row, best]).square(),
        missed=min_fde > miss_threshold,
        judged=judged,
    )


def score(
    forecast: Forecast,
    future: Float[Tensor, "batch waypoints 2"],
    future_valid: Bool[Tensor, "batch waypoints"],
    miss_threshold: float = 2.0,
) -> ForecastScores:
    """The mean errors of the rows that have a valid waypoint.

    Raises:
        ValueError: if no row has one, or as ``errors`` does.
    """
    found = errors(forecast, future, future_valid, miss_threshold)
    kept = found.judged
    if not kept.any():
        raise ValueError(f"none of the {len(kept)} rows has a valid waypoint")
    return ForecastScores(
        min_ade=found.min_ade[kept].double().mean().item(),
        min_fde=found.min_fde[kept].double().mean().item(),
        miss_rate=found.missed[kept].double().mean().item(),
        brier_min_fde=found.brier_min_fde[kept].double().mean().item(),
        rows=int(kept.sum()),
    )


def constant_velocity(batch: Batch) -> Forecast:
    """The baseline: every target keeps its current velocity; one mode of probability 1."""
    velocity = batch.target.velocity[:, -1]
    time = torch.arange(1, batch.future.shape[1] + 1, device=velocity.device, dtype=velocity.dtype) * batch.interval
    trajectory = velocity[:, None, None] * time[:, None]
    return Forecast(trajectory, torch.ones_like(velocity[:, :1]))
