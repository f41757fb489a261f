"""Agents next to others who move otherwise, to exchange what hidden states hold of it, and what their states tell."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.jobs.motion.steering import MEASURES
from innerspace.measure.forecasts import forecast
from innerspace.measure.patching import Contrast
from innerspace.motion.framing import Batch
from innerspace.motion.responses import final_heading, mean_acceleration, mean_speed
from innerspace.motion.words import Feature, Labels
from innerspace.network.model import Model
from innerspace.network.site import Where
from innerspace.network.trace import Trace

_READOUTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "speed": mean_speed,
    "acceleration": mean_acceleration,
    # a path too short to have a direction has not turned
    "heading": lambda path, interval: final_heading(path).rad2deg().nan_to_num(0.0),  # noqa: ARG005
}


def exchanges(
    model: Model, site: str, agents: Batch, labels: Labels, feature: Feature, count: int, seed: int
) -> list[Contrast[Batch]]:
    """Agents of a feature's positive word next to random ones of its negative word, at all steps that both have.

    The metric is the feature's own measure of the most likely forecast, so an effect is by how much it falls towards
    that of the other agent.

    Raises:
        ValueError: if the feature shows in no number of a forecast, or one of its words has no agent.
    """
    if feature.name not in MEASURES:
        raise ValueError(f"{feature.name} shows in no single number of a forecast; possible are {', '.join(MEASURES)}")
    ids = labels.classes[feature.name]
    sides = [(ids == feature.index(word)).nonzero().flatten() for word in (feature.positive, feature.negative)]
    if empty := [word for word, side in zip((feature.positive, feature.negative), sides, strict=True) if not len(side)]:
        raise ValueError(f"no agent is {empty[0]!r}: there is nobody to exchange {feature.name} with")
    generator = torch.Generator().manual_seed(seed)
    count = min(count, *map(len, sides))
    clean, other = (side[torch.randperm(len(side), generator=generator)[:count]] for side in sides)
    metric = measured(MEASURES[feature.name].readout, agents.interval)
    valid = [model.family.mask(agents[side], model.site(site)) for side in (clean, other)]
    where = Where("all") if valid[0] is None or valid[1] is None else valid[0] & valid[1]
    return [Contrast(agents[clean], agents[other], where, metric, where, agents.scene[clean])]


def measured(readout: str, interval: float) -> Callable[[Trace], Float[Tensor, "batch"]]:
    """A number of the most likely future of every row: ``speed``, ``acceleration`` or ``heading`` (degrees)."""
    read = _READOUTS[readout]

    def metric(trace: Trace) -> Tensor:
        return read(forecast(trace.output).most_likely(), interval)

    return metric


def shared_by(labels: Labels, valid: Tensor) -> dict[str, Int[Tensor, "rows"]]:
    """Every feature's class for each valid step, which is that of its agent."""
    agent = torch.arange(len(valid), device=valid.device)[:, None].expand_as(valid)[valid]
    return {name: ids[agent] for name, ids in labels.classes.items()}
