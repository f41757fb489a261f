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
    in degrees, positive to the left (NaN for paths too short to have one). ``feasible`` is 1 where the motion stays
    within the limits. ``shift`` (m) is the minADE of all modes against the unsteered most likely future, ``min_ade``
    (m) that against what really happened.
    """
    forecasts, unsteered = forecast(steered), forecast(clean).most_likely()
    path = forecasts.most_likely()
    everywhere = torch.ones_like(batch.future_valid)
    return {
        "speed": mean_speed(path, batch.interval),
        "acceleration": mean_acceleration(path, batch.interval),
        "heading": final_heading(path).rad2deg(),
        "feasible": feasible(path, batch.interval, limits or Limits()).to(path),
        "shift": errors(forecasts, unsteered, everywhere).min_ade,
        "min_ade": errors(forecasts, batch.future, batch.future_valid).min_ade,
    }
