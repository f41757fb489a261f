"""A small motion encoder whose hidden states carry two continuous factors: speed and heading.

Tracks have one speed and one heading, drawn independently, and are seen with noise. The encoder learns to tell both,
the heading as a unit vector; weight decay leaves little else in its last hidden state. There is no hand that planted
the factors, so what counts as truth is estimated from the variables that made the tracks: the hidden states' mean given
a factor moves along a curve, and the span of that curve is the factor's subspace. ``FactorSpans`` says how good that
description is: how much of the variance the two curves explain together, and how far from orthogonal they are.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from innerspace.checkpoint import load_state, save_state
from innerspace.network.model import Family
from innerspace.network.site import Site
from innerspace.value import Value

_FORMAT = "innerspace factors 1"


@final
@dataclass(frozen=True)
class FactorSettings(Value):
    """Tracks (m, s, m/s), the encoder's size, and its training (AdamW, a linear decay).

    Raises:
        ValueError: for speeds that are no range, or fewer than one of anything.
    """

    track_steps: int = 12
    duration: float = 1.0
    slowest: float = 0.5
    fastest: float = 2.5
    noise: float = 0.02
    width: int = 24
    inner: int = 96
    layers: int = 2
    steps: int = 1500
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.slowest < self.fastest:
            raise ValueError(f"speeds should go up from above 0, they go from {self.slowest} to {self.fastest}")
        for name in ("track_steps", "width", "inner", "layers", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} should be at least 1, it is {getattr(self, name)}")


@final
@dataclass(frozen=True, eq=False)
class Tracks:
    """Positions (m) at even times, seen with noise, and what made them: speed (m/s) and heading (rad)."""

    positions: Float[Tensor, "batch step 2"]
    speed: Float[Tensor, "batch"]
    heading: Float[Tensor, "batch"]

    def labels(self) -> dict[str, Float[Tensor, "batch"]]:
        """The factors by name."""
        return {"speed": self.speed, "heading": self.heading}


@final
@dataclass(frozen=True, eq=False)
class FactorSpans:
    """The subspaces of factors at a site, as their conditional means show them.

    ``spans[name]`` are orthonormal rows; ``explained`` is the share of the states' variance that the sum of the
    conditional means explains, and ``cosine`` the largest one between directions of two factors.
    """

    spans: Mapping[str, Float[Tensor, "size d"]]
    explained: float
    cosine: float


@final
class MotionEncoder(nn.Module):
    """Layers from a track to a hidden state each, without a way around them, and a linear readout."""

    def __init__(self, settings: FactorSettings) -> None:
        super().__init__()
        self.settings = settings
        sizes = [2 * settings.track_steps, *[settings.width] * settings.layers]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(before, settings.inner), nn.GELU(), nn.Linear(settings.inner, after))
            for before, after in itertools.pairwise(sizes)
        )
        self.readout = nn.Linear(settings.width, 3)

    def forward(self, positions: Float[Tensor, "batch step 2"]) -> Float[Tensor, "batch 3"]:
        """The speed, from −√3 to √3 over its range, and √2 times cosine and sine of the heading: all of variance 1."""
        x = positions.flatten(1)
        for layer in self.layers:
            x = layer(x)
        return self.readout(x)

    def save(self, path: Path) -> None:
        """Write settings and weights to one safetensors file."""
        save_state(path, {"format": _FORMAT, "settings": self.settings.to_json(), "weights": self.state_dict()})

    @staticmethod
    def load(path: Path) -> "MotionEncoder":
        """Read what ``save`` wrote.

        Raises:
            ValueError: for a file that is missing, damaged or not ours.
        """
        state = load_state(path)
        if state.get("format") != _FORMAT:
            raise ValueError(f"{path} holds {state.get('format', 'another snapshot')!r}, not {_FORMAT!r}")
        network = MotionEncoder(FactorSettings.from_json(state["settings"]))
        network.load_state_dict(state["weights"])
        return network.eval()


@final
class MotionEncoderFamily(Family):
    """Motion encoders: batches are ``Tracks``, sites ``hidden.i`` with one state for each track."""

    def sites(self, module: nn.Module) -> list[Site]:
        """What every layer gives."""
        settings = cast(MotionEncoder, module).settings
        return [Site(f"hidden.{i}", f"layers.{i}", settings.width, axes="batch d") for i in range(settings.layers)]

    def forward(self, module: nn.Module, batch: Tracks) -> Mapping[str, Tensor]:
        """The ``speed`` (m/s) and the ``heading`` (rad)."""
        settings, (scaled, along, across) = cast(MotionEncoder, module).settings, module(batch.positions).unbind(-1)
        middle, spread = _scale(settings)
        return {"speed": middle + spread * scaled, "heading": torch.atan2(across, along)}

    def cut(self, module: nn.Module, site: Site) -> Site:  # noqa: ARG002
        """Every site is one."""
        return site

    def spared(self, module: nn.Module, cut: Site) -> Sequence[str]:
        """What lies before."""
        modules = [site.module for site in self.sites(module)]
        return modules[: modules.index(cut.module) + 1]


def draw_tracks(settings: FactorSettings, count: int, generator: torch.Generator) -> Tracks:
    """Tracks from the origin, with even speeds and headings, each position displaced by the noise (m)."""
    speed = settings.slowest + (settings.fastest - settings.slowest) * torch.rand(count, generator=generator)
    heading = math.pi * (2 * torch.rand(count, generator=generator) - 1)
    times = torch.linspace(0, settings.duration, settings.track_steps + 1)[1:]
    way = (speed[:, None] * times)[..., None] * torch.stack([heading.cos(), heading.sin()], -1)[:, None]
    return Tracks(way + settings.noise * torch.randn(way.shape, generator=generator), speed, heading)


def train_encoder(settings: FactorSettings) -> MotionEncoder:
    """Train from scratch on fresh tracks at every step; the same settings give the same weights."""
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = MotionEncoder(settings)
    middle, spread = _scale(settings)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 - step / settings.steps)
        tracks = draw_tracks(settings, settings.batch_size, generator)
        heading = math.sqrt(2) * torch.stack([tracks.heading.cos(), tracks.heading.sin()])
        target = torch.stack([(tracks.speed - middle) / spread, *heading], -1)
        loss = functional.mse_loss(network(tracks.positions), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def factor_spans(
    states: Float[Tensor, "rows d"],
    labels: Mapping[str, Float[Tensor, "rows"]],
    *,
    bins: int = 24,
    share: float = 0.99,
) -> FactorSpans:
    """Estimate where factors live, from states and the variables that made them.

    For each factor the rows are divided into bins of equal size, and the means of the bins into principal directions;
    as many are kept as carry a share of the variance of the means. The factors should have been drawn independently.

    Raises:
        ValueError: for fewer than 10 rows for each bin: the means would be mostly chance.
    """
    if len(states) < 10 * bins:
        raise ValueError(f"{bins} bins need at least {10 * bins} rows, there are {len(states)}")
    centered = states.double() - states.double().mean(0)
    spans, explained = dict[str, Tensor](), torch.zeros_like(centered)
    for name, values in labels.items():
        place = values.argsort().argsort() * bins // len(values)
        means = torch.stack([centered[place == i].mean(0) for i in range(bins)])
        explained += means[place]
        _, sizes, directions = torch.linalg.svd(means, full_matrices=False)
        carried = sizes.square().cumsum(0) / sizes.square().sum()
        spans[name] = directions[: int((carried < share).sum()) + 1]
    cosines = [torch.linalg.matrix_norm(one @ two.T, 2) for one, two in itertools.combinations(spans.values(), 2)]
    return FactorSpans(
        {name: span.to(states) for name, span in spans.items()},
        explained=1 - float((centered - explained).square().sum() / centered.square().sum()),
        cosine=max(map(float, cosines), default=0.0),
    )


def _scale(settings: FactorSettings) -> tuple[float, float]:
    """Mean and standard deviation of the speed."""
    return (settings.slowest + settings.fastest) / 2, (settings.fastest - settings.slowest) / math.sqrt(12)
