"""What forecasts cost in training: hard winner takes all, by likelihood or by distance, and a choice of the winner.

Of the K forecasts only the one nearest to what happened is pulled towards it; a cross entropy teaches the confidences
which one that will be.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from innerspace.motion.framing import Batch
from innerspace.value import Value


@dataclass(frozen=True)
class Loss(Value):
    """What the winner's way costs, and how much each type of agent counts.

    ``path`` is the cost of a waypoint: the negative log "likelihood" of a normal distribution around it, the "huber"
    distance in x plus that in y, or the "l2" distance, in meters. The distances leave the forecast's spread untrained.
    ``weights`` multiply the losses of vehicles, pedestrians and cyclists.
    """

    path: Literal["likelihood", "huber", "l2"] = "likelihood"
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if min(self.weights) < 0 or not max(self.weights) > 0:
            raise ValueError(f"loss: weights should not be negative, and one should be positive: {self.weights}")


class Losses(NamedTuple):
    """The parts of the loss, each row's own; zero for rows without a valid waypoint.

    ``path`` is the cost of the winner's way summed over its valid waypoints, ``choice`` the cross entropy of the
    confidences, ``distance`` the winner's displacement (m) summed over its valid waypoints.
    """

    path: Float[Tensor, "batch"]
    choice: Float[Tensor, "batch"]
    distance: Float[Tensor, "batch"]
    winner: Int[Tensor, "batch"]
    waypoints: Int[Tensor, "batch"]

    def mean(self, whole: Bool[Tensor, "rows waypoints"] | None = None) -> Float[Tensor, ""]:
        """Cost per valid waypoint plus cross entropy per row that has one.

        ``whole`` are the valid waypoints of the batch of which these rows are a part: parts add up to its mean.
        """
        counts = self.waypoints if whole is None else whole.sum(1)
        rows = (counts > 0).sum().clamp_min(1)
        return self.path.sum() / counts.sum().clamp_min(1) + self.choice.sum() / rows


_LIKELIHOOD = Loss()


def losses(output: Mapping[str, Tensor], batch: Batch, loss: Loss = _LIKELIHOOD) -> Losses:
    """What the forecasts cost; only the one nearest to the truth is judged (hard winner takes all).

    With L = [[eᵃ, 0], [c, eᵇ]] and z = L⁻¹ (y − ŷ), the likelihood of a waypoint costs a + b + ‖z‖²/2 + log 2π.
    """
    valid = batch.future_valid
    offset = batch.future[:, None] - output["trajectory"]
    distance = (offset.detach().norm(dim=-1) * valid[:, None]).sum(-1)
    nearest, winner = distance.min(1)
    row = torch.arange(len(winner), device=winner.device)
    cost = torch.where(valid, _cost(offset[row, winner], output["scale"][row, winner], loss), 0).sum(1)
    counts = valid.sum(1)
    choice = functional.cross_entropy(output["logits"], winner, reduction="none") * (counts > 0)
    if len(set(loss.weights)) > 1 or loss.weights[0] != 1:
        weight = cost.new_tensor(loss.weights)[batch.target.kind.long()]
        cost, choice = cost * weight, choice * weight
    return Losses(cost, choice, nearest, winner, counts)


def _cost(
    offset: Float[Tensor, "batch waypoints 2"], scale: Float[Tensor, "batch waypoints 3"], loss: Loss
) -> Float[Tensor, "batch waypoints"]:
    """The cost of each waypoint of the winner."""
    match loss.path:
        case "likelihood":
            x, y = offset.unbind(-1)
            a, b, c = scale.unbind(-1)
            u = x * (-a).exp()
            v = (y - c * u) * (-b).exp()
            return a + b + (u.square() + v.square()) / 2 + math.log(2 * math.pi)
        case "huber":
            return functional.huber_loss(offset, torch.zeros_like(offset), reduction="none").sum(-1)
        case "l2":
            return offset.norm(dim=-1)
