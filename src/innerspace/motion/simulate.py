"""Simulated traffic: scenes whose speed, acceleration, yaw rate and type are known exactly.

Vehicles, pedestrians and cyclists move on straight roads, curved roads and crossings, some off the lanes; they follow,
stop, turn and reverse. The map of a crossing offers every turn, and only the history tells which one is taken.

In the *confounded* split each type moves as it does in traffic: a pedestrian is slow. In the *de-confounded* split
every agent moves in the manner of a vehicle and is bound by its limits, so type is independent of everything but size,
noise and its own channel. That is unphysical on purpose: a probe that reads type from speed fails there.
Crossing traffic does not yield; only followers heed another agent.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from innerspace.motion.scenes import KINDS, Scene
from innerspace.motion.stage import draw_cast, draw_stage, join_companions
from innerspace.motion.traffic import LIMITS, categorical, draw_motion, roll_out
from innerspace.value import Value


@dataclass(frozen=True)
class Simulation(Value):
    """What to simulate: ``history`` steps up to and including the current one, ``future`` steps after it, at ``hz``.

    ``agents`` is the most a scene holds, of which the first ``targets`` are to be forecast. Noise is the standard
    deviation for a vehicle, in m, m/s and rad, white in time. ``dropout`` is the probability that an agent is missing
    at a step; nobody is missing at the current one.

    Raises:
        ValueError: for a setting out of its range, naming it.
    """

    scenes: int = 4000
    seed: int = 0
    confounded: bool = False
    history: int = 11
    future: int = 60
    hz: float = 10.0
    agents: int = 6
    targets: int = 2
    position_noise: float = 0.03
    velocity_noise: float = 0.05
    heading_noise: float = 0.005
    dropout: float = 0.02

    def __post_init__(self) -> None:
        least = {"scenes": 1, "seed": 0, "history": 3, "future": 1, "targets": 1, "agents": self.targets}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"simulation: {name} should be at least {bound}, it is {getattr(self, name)}")
        if self.targets > 4:
            raise ValueError(f"simulation: a scene has room for 4 targets, {self.targets} were asked for")
        if not 1 <= self.hz < np.inf:
            raise ValueError(f"simulation: hz should be at least 1 and finite, it is {self.hz}")
        for name in ("position_noise", "velocity_noise", "heading_noise"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"simulation: {name} should be finite and not negative, it is {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"simulation: dropout should be in [0, 1), it is {self.dropout}")


@dataclass(frozen=True, eq=False)
class Factors:
    """The latent factors of the noise-free motion at the current step, one row per target in the order of ``frame``.

    ``speed`` (m/s) is negative backwards; ``acceleration`` (m/s²), its derivative, is constant over the history;
    ``yaw_rate`` (rad/s, to the left) is speed times the curvature of the route. ``kind`` is the type's id.
    """

    speed: Float[np.ndarray, "targets"]
    acceleration: Float[np.ndarray, "targets"]
    yaw_rate: Float[np.ndarray, "targets"]
    kind: Int[np.ndarray, "targets"]


@dataclass(frozen=True, eq=False)
class Simulated:
    """Scenes and the factors of their targets."""

    scenes: list[Scene]
    factors: Factors


# by type: vehicle, pedestrian, cyclist; what the noise of position, velocity and heading is multiplied by
_KIND_CHANCE = np.array([0.4, 0.3, 0.3])
_SIZE = np.array([[4.6, 1.9, 1.6], [0.6, 0.6, 1.75], [1.8, 0.7, 1.7]])
_NOISE_STYLE = np.array([[1.0, 1.0, 1.0], [0.6, 1.0, 4.0], [0.8, 1.0, 2.0]])


def simulate(settings: Simulation) -> Simulated:
    """Draw scenes; the same settings give the same scenes."""
    rng = np.random.default_rng(settings.seed)
    shape, targets = (settings.scenes, settings.agents), settings.targets
    cast = draw_cast(rng, shape, targets)
    kind = categorical(rng, np.broadcast_to(_KIND_CHANCE, (*shape, len(KINDS))))
    if settings.confounded:
        kind = np.take_along_axis(kind, cast.source, 1)
    manner = kind if settings.confounded else np.full(shape, KINDS.index("vehicle"))
    limits = LIMITS.of(manner)
    size = _SIZE[kind] * rng.uniform(0.9, 1.1, (*shape, 3))

    motion = draw_motion(rng, manner, (settings.history - 1) / settings.hz)
    stage = draw_stage(rng, motion, limits, manner, targets)
    motion, route, place, leader, present = join_companions(rng, cast, motion, stage, limits, size[..., 0])
    times = (settings.history, settings.future, 1 / settings.hz)
    s, speed = roll_out(rng, motion, limits, route, place, leader, size[..., 0], *times)
    position, heading = route[..., None].poses(s)

    own = np.s_[:, :targets]
    yaw_rate = motion.speed * route.bends(place)
    factors = Factors(*(factor[own].ravel() for factor in (motion.speed, motion.acceleration, yaw_rate, kind)))
    tracks = _observe(rng, settings, kind, position, heading, speed)
    valid = present[..., None] & (rng.random(speed.shape) >= settings.dropout)
    valid[..., settings.history - 1] = present
    return Simulated(_scenes(settings, kind, size, tracks, valid, stage.maps()), factors)


_Tracks = tuple[
    Float[np.ndarray, "scenes agents steps 2"],
    Float[np.ndarray, "scenes agents steps"],
    Float[np.ndarray, "scenes agents steps 2"],
]


def _observe(
    rng: np.random.Generator,
    settings: Simulation,
    kind: Int[np.ndarray, "scenes agents"],
    position: Float[np.ndarray, "scenes agents steps 2"],
    heading: Float[np.ndarray, "scenes agents steps"],
    speed: Float[np.ndarray, "scenes agents steps"],
) -> _Tracks:
    """Position, wrapped heading and velocity with noise in the style of each type."""
    scale = _NOISE_STYLE * (settings.position_noise, settings.velocity_noise, settings.heading_noise)
    per_agent = np.moveaxis(scale[kind], -1, 0)[..., None]
    velocity = speed[..., None] * np.stack((np.cos(heading), np.sin(heading)), -1)
    position = position + per_agent[0][..., None] * rng.standard_normal(position.shape)
    velocity = velocity + per_agent[1][..., None] * rng.standard_normal(velocity.shape)
    heading = heading + per_agent[2] * rng.standard_normal(heading.shape)
    return position, (heading + np.pi) % (2 * np.pi) - np.pi, velocity


def _scenes(
    settings: Simulation,
    kind: Int[np.ndarray, "scenes agents"],
    size: Float[np.ndarray, "scenes agents 3"],
    tracks: _Tracks,
    valid: Bool[np.ndarray, "scenes agents steps"],
    maps: list[tuple[Float[np.ndarray, "_ nodes 2"], Int[np.ndarray, "_"]]],
) -> list[Scene]:
    position, heading, velocity = tracks
    position, velocity = np.where(valid[..., None], position, 0), np.where(valid[..., None], velocity, 0)
    heading = np.where(valid, heading, 0)
    now, scenes = settings.history - 1, list[Scene]()
    for i, (line, line_kind) in enumerate(maps):
        there, name = valid[i, :, now], f"simulated-{settings.seed}-{i:06d}"
        scene = Scene(
            name=name,
            position=position[i, there],
            heading=heading[i, there],
            velocity=velocity[i, there],
            size=size[i, there],
            kind=kind[i, there],
            valid=valid[i, there],
            target=np.arange(settings.targets),
            line=line,
            line_kind=line_kind,
            line_valid=np.ones(line.shape[:2], dtype=bool),
            hz=settings.hz,
            now=now,
            group=name,
        )
        scenes.append(scene)
    return scenes
