"""What steering does to a forecast, in the units of motion: the readouts of the most likely future."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.motion.forecast_metrics import Forecast, errors
from innerspace.motion.framing import Batch
from innerspace.motion.responses import Limits, feasible, final_heading, mean_acceleration, mean_speed


def forecast(output: Mapping[str, Tensor]) -> Forecast:
    """The forecast in a forecaster's output, whose ``logits`` become probabilities."""
    return Forecast(output["trajectory"], output["logits"].softmax(-1))


def readout(
    steered: Mapping[str, Tensor], clean: Mapping[str, Tensor], batch: Batch, limits: Limits | None = None
) -> dict[str, Float[Tensor, "batch"]]:
    """Numbers of the most likely future, one per sample.

    ``speed`` (m/s) and ``acceleration`` (m/s²) are means over the forecast, ``heading`` is the net change of direction
    in degrees, positive to the left (NaN for paths too short to have one); it differs from the unsteered one's by the
    shorter way around, so that a change is never taken for a full turn less. ``feasible`` is 1 where the motion stays
    within the limits. ``shift`` (m) is the minADE of all modes against the unsteered most likely future, ``min_ade``
    (m) that against what really happened.
    """
    forecasts, unsteered = forecast(steered), forecast(clean).most_likely()
    path = forecasts.most_likely()
    everywhere = torch.ones_like(batch.future_valid)
    return {
        "speed": mean_speed(path, batch.interval),
        "acceleration": mean_acceleration(path, batch.interval),
        "heading": _near(final_heading(path), final_heading(unsteered)).rad2deg(),
        "feasible": feasible(path, batch.interval, limits or Limits()).to(path),
        "shift": errors(forecasts, unsteered, everywhere).min_ade,
        "min_ade": errors(forecasts, batch.future, batch.future_valid).min_ade,
    }


def expected(output: Mapping[str, Tensor], batch: Batch) -> dict[str, Float[Tensor, "batch"]]:
    """Speed (m/s), acceleration (m/s²) and heading (°) as means over the modes by their probabilities.

    Unlike those of the most likely future they follow the confidences without a jump, so that gradients tell how to
    change them. The mean heading is that of the mean unit vector; NaN where a mode is too short to have one.
    """
    paths = forecast(output)
    share, angle = paths.probability, final_heading(paths.trajectory)
    sure = angle.isfinite().all(1)
    # what is undefined must not reach the gradient either
    angle = torch.where(sure[:, None], angle, 0)
    heading = torch.atan2((share * angle.sin()).sum(1), (share * angle.cos()).sum(1))
    return {
        "speed": (share * mean_speed(paths.trajectory, batch.interval)).sum(1),
        "acceleration": (share * mean_acceleration(paths.trajectory, batch.interval)).sum(1),
        "heading": torch.where(sure, heading.rad2deg(), torch.nan),
    }


def _near(angle: Float[Tensor, "batch"], other: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """The same angle (rad), at most half a turn from another one; as it is where there is no other."""
    difference = angle - other
    return torch.where(other.isfinite(), other + torch.atan2(difference.sin(), difference.cos()), angle)
