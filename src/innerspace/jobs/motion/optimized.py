"""Control vectors that are optimized on what they do to forecasts, beside those that are estimated from words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from innerspace.decompose.directions import Directions, Origin
from innerspace.jobs.inputs.parts import Parts, chunks
from innerspace.jobs.motion.steering import MEASURES
from innerspace.jobs.motion.vectors import OPTIMIZED, Fitted
from innerspace.learn.steering_vectors import SteeringFit, Wanted, optimize_vectors
from innerspace.measure.forecasts import expected
from innerspace.motion.words import Feature
from innerspace.network.model import Model
from innerspace.value import Value


@dataclass(frozen=True)
class Optimized(Value):
    """What τ = 1 of an optimized vector should do, and how it is sought on agents of the fit split.

    ``speed`` is relative (0.6: 60 % faster), asked of agents whose forecast moves at ``moving`` m/s or more;
    ``acceleration`` is in m/s², ``direction`` in degrees to the left. ``begin`` times the class-mean gap is where the
    search begins. Batches have ``batch`` agents, ``batches`` of them are drawn from. 0 ``seeds`` leaves it out.
    """

    speed: float = 0.8
    acceleration: float = 1.0
    direction: float = 25.0
    moving: float = 1.0
    begin: float = 0.4
    batch: int = 64
    batches: int = 40
    seeds: int = 1
    fit: SteeringFit = field(default_factory=SteeringFit)

    def __post_init__(self) -> None:
        if min(self.batch, self.batches) < 1 or self.seeds < 0 or not self.begin > 0:
            raise ValueError(f"optimized vectors: batch, batches and begin should be positive: {self}")

    def wanted(self, feature: Feature) -> Wanted:
        """What the vector of a feature should do."""
        readout = MEASURES[feature.name].readout
        if feature.name == "speed":
            return Wanted(readout, self.speed, relative=True, least=self.moving)
        return Wanted(readout, self.acceleration if feature.name == "acceleration" else self.direction)


def optimized_vectors(
    model: Model, site: str, parts: Parts, plain: Sequence[Fitted], origin: Origin, settings: Optimized
) -> Iterator[Fitted]:
    """Vectors of all features that show in a forecast, optimized together, once per seed.

    They begin at the ``plain`` ones of seed 0. A vector's step is its own length: what τ = 1 adds is what was asked to
    do what is wanted, not a gap between class means.
    """
    first = {item.feature.name: item for item in reversed(plain) if item.seed == 0 and item.feature.name in MEASURES}
    if not first:
        return
    chosen = list(first.values())
    begin = settings.begin * torch.stack([item.along for item in chosen])
    for seed in range(settings.seeds):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(parts.fit), generator=generator)[: settings.batch * settings.batches].sort().values
        found = optimize_vectors(
            model,
            chunks(parts.fit[rows], settings.batch),
            site,
            expected,
            [settings.wanted(item.feature) for item in chosen],
            begin,
            replace(settings.fit, seed=seed),
            periods={"heading": 360.0},
        )
        for item, along in zip(chosen, found, strict=True):
            feature = item.feature
            named = replace(
                origin, feature=feature.name, positive=feature.positive, negative=feature.negative, method=OPTIMIZED
            )
            yield Fitted(Directions(along[None], along.norm()[None], [named]), feature, OPTIMIZED, seed)
