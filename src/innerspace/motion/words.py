"""Words for motion: every agent gets a speed, an acceleration, a direction and a type, each from a few classes.

One vocabulary holds all thresholds with their units. Only valid steps count, and an agent seen too briefly is
*undefined* rather than guessed. Beside each class stands the continuous quantity that it was cut from.

The classes are those of Tas and Wagner, "Words in Motion" (ICLR 2025, arXiv 2406.11624); the rules are not: speeds,
accelerations and turns are measured in physical units, so that windows of different length and rate agree.
``compat="reference"`` applies the published rules instead, faults included (see ``reference_words``).
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.motion.framing import Tracks
from innerspace.motion.reference_words import reference_labels
from innerspace.motion.scenes import KINDS
from innerspace.value import Value

UNDEFINED = -1
"""The class of an agent about which too little is known."""


@dataclass(frozen=True)
class Feature(Value):
    """A property of motion, its classes by id, the unit of what they were cut from, and the two opposing ones."""

    name: str
    classes: tuple[str, ...]
    unit: str
    negative: str
    positive: str

    def index(self, word: str) -> int:
        """The class id of a word.

        Raises:
            ValueError: for a word that names no class, listing those that do.
        """
        if word not in self.classes:
            raise ValueError(f"unknown {self.name} {word!r}; possible are {', '.join(self.classes)}")
        return self.classes.index(word)


SPEED = Feature("speed", ("low", "moderate", "high", "backwards"), "m/s", negative="low", positive="high")
ACCELERATION = Feature(
    "acceleration",
    ("decelerating", "constant", "accelerating"),
    "m/s²",
    negative="decelerating",
    positive="accelerating",
)
DIRECTION = Feature("direction", ("stationary", "straight", "right", "left"), "rad", negative="right", positive="left")
AGENT = Feature("agent", KINDS, "", negative="pedestrian", positive="vehicle")


@dataclass(frozen=True)
class Vocabulary(Value):
    """Where one word ends and the next begins.

    Speed: above ``slow_speed`` (m/s) moderate, from ``fast_speed`` (m/s) on high, below −``stationary`` backwards.
    Acceleration: constant within ± ``dead_band`` (m/s²). Direction: stationary if neither the mean signed speed nor the
    mean velocity is larger than ``stationary`` (m/s), straight within ± ``turn`` (degrees over the window). Below
    ``minimum_steps`` valid steps everything but the agent's type is undefined.

    Raises:
        ValueError: for thresholds that contradict each other or, with ``compat="reference"``, differ from the
            defaults: the published rules have fixed ones.
    """

    slow_speed: float = 25 / 3.6
    fast_speed: float = 50 / 3.6
    stationary: float = 0.25
    turn: float = 15.0
    dead_band: float = 0.5
    minimum_steps: int = 5
    compat: Literal["none", "reference"] = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.stationary < self.slow_speed < self.fast_speed:
            raise ValueError(
                "0 ≤ stationary < slow_speed < fast_speed is needed (m/s), "
                f"got {self.stationary}, {self.slow_speed}, {self.fast_speed}"
            )
        if not (self.turn >= 0 and self.dead_band >= 0):
            raise ValueError(f"turn and dead_band should not be negative, they are {self.turn}°, {self.dead_band} m/s²")
        if self.minimum_steps < 2:
            raise ValueError(f"a slope needs at least 2 valid steps, minimum_steps is {self.minimum_steps}")
        defaults = {field.name: field.default for field in dataclasses.fields(self) if field.name != "compat"}
        moved = [name for name, default in defaults.items() if getattr(self, name) != default]
        if self.compat == "reference" and moved:
            raise ValueError(f"compat='reference' applies the published thresholds; leave out {', '.join(moved)}")

    @property
    def features(self) -> tuple[Feature, ...]:
        """Speed, acceleration, direction and agent."""
        return (SPEED, ACCELERATION, DIRECTION, AGENT)

    def encode(self, classes: Mapping[str, Int[Tensor, "n"]]) -> Int[Tensor, "n"]:
        """One id for each combination of classes: mixed radix, the last feature runs fastest; −1 if one is undefined.

        Raises:
            ValueError: for a missing feature or a class id that the feature does not have.
        """
        if missing := [feature.name for feature in self.features if feature.name not in classes]:
            raise ValueError(f"an id needs a class of every feature; missing: {', '.join(missing)}")
        agents = classes[AGENT.name]
        ids, known = torch.zeros_like(agents), torch.ones_like(agents, dtype=torch.bool)
        for feature in self.features:
            entry, count = classes[feature.name], len(feature.classes)
            _require_range(entry, count, f"class ids of {feature.name}")
            ids, known = ids * count + entry, known & (entry != UNDEFINED)
        return ids.where(known, UNDEFINED)

    def decode(self, ids: Int[Tensor, "n"]) -> dict[str, Int[Tensor, "n"]]:
        """The inverse of ``encode``; −1 gives −1 for every feature.

        Raises:
            ValueError: for ids that no combination has.
        """
        _require_range(ids, math.prod(len(feature.classes) for feature in self.features), "ids")
        classes, rest = dict[str, Tensor](), ids
        for feature in reversed(self.features):
            classes[feature.name] = (rest % len(feature.classes)).where(ids != UNDEFINED, UNDEFINED)
            rest = rest // len(feature.classes)
        return {feature.name: classes[feature.name] for feature in self.features}


@dataclass(frozen=True, eq=False)
class Labels:
    """Class ids by feature (−1 is undefined), and the quantities behind them (NaN where undefined).

    ``targets`` holds ``speed`` (m/s, the mean, negative backwards), ``acceleration`` (m/s², positive when the agent
    gets faster in the direction in which it moves) and ``direction`` (rad, the net heading change, positive to the
    left). An agent's type has no quantity behind it.
    """

    classes: dict[str, Int[Tensor, "n"]]
    targets: dict[str, Float[Tensor, "n"]]
    vocabulary: Vocabulary

    def words(self) -> list[dict[str, str]]:
        """The words of each agent, undefined ones left out."""
        columns = {feature: self.classes[feature.name].tolist() for feature in self.vocabulary.features}
        count = len(self.classes[AGENT.name])
        return [
            {feature.name: feature.classes[ids[row]] for feature, ids in columns.items() if ids[row] != UNDEFINED}
            for row in range(count)
        ]

    def counts(self) -> dict[str, dict[str, int]]:
        """How many agents each word of each feature has; the last entry counts the undefined."""
        tables = dict[str, dict[str, int]]()
        for feature in self.vocabulary.features:
            table = torch.bincount(self.classes[feature.name] + 1, minlength=len(feature.classes) + 1).tolist()
            tables[feature.name] = dict(zip((*feature.classes, "undefined"), table[1:] + table[:1], strict=True))
        return tables


def label(tracks: Tracks, dt: float, vocabulary: Vocabulary) -> Labels:
    """Words for every track; steps are ``dt`` seconds apart, invalid ones never count.

    Speed is the mean of the signed speed ‖v‖·sign(v·heading), acceleration the slope of its least-squares line, turned
    around for agents that move backwards, and direction the sum of the wrapped heading changes between successive
    valid steps. With ``compat="reference"`` the classes follow the published rules on the zero-filled tracks; the
    targets stay the same.

    Raises:
        ValueError: if dt is not positive or the tracks have more than one axis before the steps.
    """
    if not dt > 0:
        raise ValueError(f"dt should be a positive number of seconds, it is {dt}")
    if tracks.valid.ndim != 2:
        raise ValueError(f"tracks should have the axes (agents, steps), their mask has {tracks.valid.ndim} axes")
    signed, turns = _signed_speed(tracks), _turns(tracks)
    steps = tracks.valid.sum(-1)
    speed = signed.sum(-1) / steps.clamp(min=1)
    backwards = speed < -vocabulary.stationary
    slope = _slope(signed, tracks.valid, dt)
    acceleration = slope.where(~backwards, -slope)
    direction = turns.sum(-1)

    known = steps >= vocabulary.minimum_steps
    targets = {SPEED.name: speed, ACCELERATION.name: acceleration, DIRECTION.name: direction}
    targets = {name: target.where(known, torch.nan) for name, target in targets.items()}
    if vocabulary.compat == "reference":
        return Labels(reference_labels(signed, turns / dt, tracks.kind), targets, vocabulary)

    # not from positions: the boxes of parked cars jump by meters while their tracked velocity is zero
    total = tracks.velocity.where(tracks.valid[..., None], 0).sum(-2)
    drift = total.norm(dim=-1) / steps.clamp(min=1)
    still = torch.maximum(speed.abs(), drift) <= vocabulary.stationary
    left, right = direction > math.radians(vocabulary.turn), direction < -math.radians(vocabulary.turn)
    faster, slower = acceleration > vocabulary.dead_band, acceleration < -vocabulary.dead_band
    fast, moderate = speed >= vocabulary.fast_speed, speed > vocabulary.slow_speed
    classes = {
        SPEED.name: _choose(SPEED, "low", {"moderate": moderate, "high": fast, "backwards": backwards}),
        ACCELERATION.name: _choose(ACCELERATION, "constant", {"accelerating": faster, "decelerating": slower}),
        DIRECTION.name: _choose(DIRECTION, "straight", {"left": left, "right": right, "stationary": still}),
    }
    classes = {name: ids.where(known, UNDEFINED) for name, ids in classes.items()}
    return Labels({**classes, AGENT.name: tracks.kind}, targets, vocabulary)


def sensitivity(
    tracks: Tracks, dt: float, vocabulary: Vocabulary, change: float = 0.1
) -> dict[str, tuple[float, float]]:
    """The share of agents of which a word changes when one threshold is lowered, and raised, by the share ``change``.

    Raises:
        ValueError: if there is no track, ``change`` is not in (0, 1), or the moved thresholds contradict each other.
    """
    if not 0 < change < 1:
        raise ValueError(f"change should be a share between 0 and 1, it is {change}")
    if not len(tracks.valid):
        raise ValueError("there is no track to label")
    base = label(tracks, dt, vocabulary).classes

    def moved(name: str, factor: float) -> float:
        other = dataclasses.replace(vocabulary, **{name: getattr(vocabulary, name) * factor})
        classes = label(tracks, dt, other).classes
        return torch.stack([classes[key] != base[key] for key in base]).any(0).double().mean().item()

    thresholds = ("slow_speed", "fast_speed", "stationary", "turn", "dead_band")
    return {name: (moved(name, 1 - change), moved(name, 1 + change)) for name in thresholds}


def _choose(feature: Feature, otherwise: str, where: Mapping[str, Bool[Tensor, "n"]]) -> Int[Tensor, "n"]:
    """Class ids: the last word whose condition holds, else ``otherwise``."""
    ids = torch.full_like(next(iter(where.values())), feature.index(otherwise), dtype=torch.int64)
    for word, condition in where.items():
        ids = ids.masked_fill(condition, feature.index(word))
    return ids


def _signed_speed(tracks: Tracks) -> Float[Tensor, "n steps"]:
    """‖v‖·sign(v·heading) in m/s, zero where not valid."""
    x, y = tracks.velocity.unbind(-1)
    forward = x * tracks.heading.cos() + y * tracks.heading.sin()
    return (torch.hypot(x, y) * forward.sign()).where(tracks.valid, 0)


def _slope(values: Float[Tensor, "n steps"], valid: Bool[Tensor, "n steps"], dt: float) -> Float[Tensor, "n"]:
    """The least-squares slope over the valid steps, per second; NaN for less than two."""
    time = torch.arange(valid.shape[-1], device=valid.device, dtype=values.dtype) * dt
    mean = (time * valid).sum(-1, keepdim=True) / valid.sum(-1, keepdim=True)
    weight = (time - mean) * valid
    return (weight * values).sum(-1) / weight.square().sum(-1)


def _turns(tracks: Tracks) -> Float[Tensor, "n steps"]:
    """The wrapped heading change since the last valid step, in rad; zero where there is none."""
    valid = tracks.valid
    steps = torch.arange(valid.shape[-1], device=valid.device).expand(valid.shape)
    last = steps.where(valid, -1).cummax(-1).values
    before = torch.cat((torch.full_like(last[:, :1], -1), last[:, :-1]), -1)
    change = tracks.heading - tracks.heading.gather(-1, before.clamp(min=0))
    wrapped = torch.remainder(change + torch.pi, 2 * torch.pi) - torch.pi
    return wrapped.where(valid & (before >= 0), 0)


def _require_range(ids: Int[Tensor, "n"], count: int, what: str) -> None:
    if bad := ids[(ids < UNDEFINED) | (ids >= count)].tolist():
        raise ValueError(f"{what} are in 0…{count - 1}, or {UNDEFINED} for undefined; got {bad[0]}")
