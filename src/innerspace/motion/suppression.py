"""Non-maximum suppression: of modes that say the same, only the most likely one keeps its probability.

Two modes say the same if they are nearer to each other than a threshold, which is 2.5 m for vehicles, 1 m for
pedestrians and 2 m for cyclists.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.motion.forecast_metrics import Forecast

THRESHOLDS = (2.5, 1.0, 2.0)
"""How near modes that say the same are (m), by agent type."""

MODES = 6
"""How many modes of a forecast are judged, in the benchmarks of Argoverse and Waymo alike."""

_SUPPRESSED, _FADED = 1e-3, 0.01

Distance = Literal["average", "final"]


def suppress(forecast: Forecast, kind: Int[Tensor, "batch"]) -> Forecast:
    """Modes near a more likely one get probability 1e-3, then all are normalized: MPA-NMS.

    Two modes are as far apart as their waypoints on average. What is suppressed itself suppresses too; of modes that
    are equally likely the first counts as the more likely one. ``kind`` is the type of each row's agent.
    """
    near = _near(forecast.trajectory, kind, "average")
    place = forecast.probability.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    beaten = (near & (place[:, None] < place[:, :, None])).any(-1)
    probability = forecast.probability.masked_fill(beaten, _SUPPRESSED)
    return Forecast(forecast.trajectory, probability / probability.sum(1, keepdim=True))


def pick(
    forecast: Forecast, kind: Int[Tensor, "batch"], modes: int = MODES, distance: Distance = "average"
) -> Forecast:
    """The most likely mode, and again the most likely of the others, those near a picked one faded to 0.01: MTR-NMS.

    The picked keep their probabilities, normalized, in the order in which they were picked. ``distance`` is that of
    waypoints on "average", or of the "final" ones as in MTR (Shi et al., NeurIPS 2022).

    Raises:
        ValueError: if there are fewer modes than are to be picked.
    """
    if not 1 <= modes <= (count := forecast.probability.shape[1]):
        raise ValueError(f"of {count} modes, 1 … {count} can be picked, not {modes}")
    near = _near(forecast.trajectory, kind, distance)
    row, score = torch.arange(len(near), device=near.device), forecast.probability.clone()
    picked = list[Tensor]()
    for _ in range(modes):
        best = score.argmax(1)
        picked.append(best)
        score = torch.where(near[row, best], score * _FADED, score)
        score[row, best] = -torch.inf
    chosen = torch.stack(picked, 1)
    probability = forecast.probability.gather(1, chosen)
    trajectory = forecast.trajectory[row[:, None], chosen]
    return Forecast(trajectory, probability / probability.sum(1, keepdim=True))


def few(forecast: Forecast, kind: Int[Tensor, "batch"]) -> Forecast:
    """The forecast as it is judged: of more than six modes the six that ``pick`` gives."""
    return forecast if forecast.probability.shape[1] <= MODES else pick(forecast, kind)


def sharpened(forecast: Forecast, temperature: float = 0.5) -> Forecast:
    """The forecast with probabilities in proportion to p^(1/temperature); 0.5 is published for Argoverse 2.

    Raises:
        ValueError: for a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature should be positive, it is {temperature}")
    return Forecast(forecast.trajectory, (forecast.probability.log() / temperature).softmax(1))


def _near(
    trajectory: Float[Tensor, "batch modes waypoints 2"], kind: Int[Tensor, "batch"], distance: Distance
) -> Tensor:
    """Which modes of a row say the same [batch, modes, modes]."""
    paths = trajectory if distance == "average" else trajectory[:, :, -1:]
    apart = trajectory.new_zeros(len(paths), paths.shape[1], paths.shape[1])
    # all waypoints at once would be modes² × waypoints of memory for each row
    for points in paths.unbind(2):
        apart += torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return apart / paths.shape[2] < apart.new_tensor(THRESHOLDS)[kind.long()][:, None, None]
