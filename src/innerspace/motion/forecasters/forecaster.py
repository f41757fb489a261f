"""What every forecaster has: settings that build it, a family that knows its sites, and the files that it is kept in.

A forecaster is a module that maps a ``Batch`` to ``trajectory`` [batch, modes, waypoints, 2] in meters in the target's
frame, ``scale`` [batch, modes, waypoints, 3] = (a, b, c), the lower-triangular scale [[eᵃ, 0], [c, eᵇ]] of a normal
distribution around each waypoint, and ``logits`` [batch, modes]. Training, metrics, gathering, vectors and steering
take whatever does this.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from innerspace.motion.framing import Batch, Framing
from innerspace.network.model import Family
from innerspace.value import Value

# the head's outputs are paces: meters per second of the horizon, for the way and for the uncertainty of it
_PACE, _SPREAD = 10.0, 2.0


Covariance = Literal["triangular", "correlation"]


@dataclass(frozen=True)
class ForecasterSettings(Value, ABC):
    """The sizes of a forecaster; ``framing`` says what it reads and forecasts.

    ``covariance`` is the form in which the network gives the normal distribution around a waypoint: by its
    "triangular" scale, or by two standard deviations and their "correlation".
    """

    framing: Framing = field(default_factory=Framing)
    covariance: Covariance = "triangular"

    @abstractmethod
    def build(self) -> "Forecaster[Any]":
        """A network of these sizes, untrained."""

    @property
    @abstractmethod
    def family(self) -> Family:
        """What knows its sites."""


S = TypeVar("S", bound=ForecasterSettings)


class Forecaster(nn.Module, ABC, Generic[S]):
    """K forecasts of a target with their probabilities, from its history, its neighbors and the map."""

    def __init__(self, settings: S) -> None:
        super().__init__()
        self.settings = settings

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Forecast every row: ``trajectory``, ``scale`` and ``logits``."""

    def check(self, batch: Batch) -> None:
        """Refuse a batch of another framing.

        Raises:
            ValueError: naming both framings.
        """
        framing = self.settings.framing
        given = (batch.target.valid.shape[1], batch.line.shape[2], batch.future.shape[1])
        made_for = (framing.history, framing.nodes, framing.waypoints)
        if given != made_for:
            raise ValueError(
                f"the batch has (history, nodes, waypoints) = {given}, this network was made for {made_for}; "
                f"frame the scenes with the network's settings.framing"
            )


def forecasts(
    points: Float[Tensor, "batch modes numbers"], interval: float, covariance: Covariance = "triangular"
) -> dict[str, Tensor]:
    """``trajectory`` and ``scale`` from the five numbers that a head gives for every waypoint.

    The first two are the way in units of 10 m/s of the elapsed time, the others the log scales, relative to a spread of
    2 m/s of it and clamped to [−1.609, 5], and c, clamped to [−5, 5]. By "correlation" the log scales are those of
    standard deviations σ, τ and the last is the correlation ρ = tanh c, as in MTR (Shi et al., NeurIPS 2022); the
    scale is then a = log σ, b = log τ + log(1 − ρ²)/2, c = ρ τ.
    """
    points = points.unflatten(-1, (-1, 5))
    elapsed = interval * torch.arange(1, points.shape[-2] + 1, device=points.device)[:, None]
    log_scale = (points[..., 2:4] + (_SPREAD * elapsed).log()).clamp(-1.609, 5)
    last = points[..., 4:].clamp(-5, 5)
    if covariance == "correlation":
        deviation, correlation = log_scale[..., 1:], last.tanh()
        # log(1 − tanh²) = −2 log cosh, which loses no digits
        narrower = deviation - (last.exp() + (-last).exp()).log() + math.log(2)
        log_scale = torch.cat((log_scale[..., :1], narrower), -1)
        last = correlation * deviation.exp()
    return {"trajectory": points[..., :2] * (_PACE * elapsed), "scale": torch.cat((log_scale, last), -1)}


def save(model: Forecaster[Any], folder: Path) -> None:
    """Write settings (``settings.json``) and weights (``weights.safetensors``)."""
    folder.mkdir(parents=True, exist_ok=True)
    model.settings.save(folder / "settings.json")
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "weights.safetensors"
    )


def load_weights(settings: ForecasterSettings, folder: Path) -> Forecaster[Any]:
    """The forecaster of these settings with the weights that ``save`` wrote, in evaluation mode.

    Raises:
        ValueError: if the file is missing or damaged, or the weights do not fit the settings, naming what differs.
    """
    model, path = settings.build(), folder / "weights.safetensors"
    if not path.is_file():
        raise ValueError(f"no weights at {path}")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file: {error}") from None
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if differing := [name for name in sorted(expected | found) if expected.get(name) != found.get(name)]:
        name = differing[0]
        raise ValueError(
            f"{path} does not fit {folder / 'settings.json'}: {len(differing)} tensors differ, such as {name!r}, "
            f"{found.get(name, 'absent')} in the file, {expected.get(name, 'absent')} by the settings"
        )
    model.load_state_dict(weights)
    return model.eval()
