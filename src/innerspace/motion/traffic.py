"""How simulated agents move: drawn at the current step, followed back in closed form, rolled out ahead.

Up to the current step acceleration is constant. After it the speed relaxes, v̇ = (v_cruise − v)/τ with
v_cruise = v₀ + τ a₀, so that acceleration starts at a₀ and decays; whoever stops keeps braking at v²/(2 d), d being the
way that is left; whoever follows does not exceed the intelligent driver model (Treiber, Hennecke & Helbing 2000,
arXiv cond-mat/0002177). A small multiplicative jitter keeps the future honest.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from innerspace.motion.lanes import Route


@dataclass(frozen=True, eq=False)
class Limits:
    """What agents can do: m/s, m/s², m/s², m/s², rad/s, 1/m."""

    speed: Float[np.ndarray, "*agents"]
    acceleration: Float[np.ndarray, "*agents"]
    braking: Float[np.ndarray, "*agents"]
    lateral: Float[np.ndarray, "*agents"]
    yaw_rate: Float[np.ndarray, "*agents"]
    curvature: Float[np.ndarray, "*agents"]

    def of(self, kind: Int[np.ndarray, "*agents"]) -> "Limits":
        """The limits of each agent, from limits that are listed by type."""
        return Limits(*(getattr(self, field.name)[kind] for field in dataclasses.fields(self)))


LIMITS = Limits(
    speed=np.array([25.0, 3.5, 10.0]),
    acceleration=np.array([3.5, 2.0, 2.0]),
    braking=np.array([6.0, 3.0, 4.0]),
    lateral=np.array([5.0, 3.0, 4.0]),
    yaw_rate=np.array([1.0, 2.0, 1.5]),
    curvature=np.array([0.3, 2.0, 0.6]),
)
"""The limits by type: vehicle, pedestrian, cyclist."""

# standing, backwards, slow, moderate, fast: the range of the mean speed, and how often each type moves so
_BANDS = np.array([[0.0, 0.0], [-4.0, -0.8], [0.5, 6.94], [6.94, 13.89], [13.89, 22.0]])
_BAND_CHANCE = np.array([[0.10, 0.06, 0.28, 0.32, 0.24], [0.15, 0.0, 0.85, 0.0, 0.0], [0.10, 0.0, 0.65, 0.25, 0.0]])
_WORD_CHANCE = np.array([0.32, 0.36, 0.32])
_TURN_CHANCE = 0.62
_TURN = np.radians([18.0, 45.0])


@dataclass(frozen=True, eq=False)
class Motion:
    """The motion at the current step: signed speed and acceleration, and the heading change over the history (rad).

    ``fastest`` is the greatest speed up to now, ``traveled`` the signed way. With ``cruise`` and ``relax`` (s) the
    future follows; ``stops`` says that the agent brakes to a stand instead. ``turn`` is what the agent does where it
    may turn, 0 for going straight; ``radius`` (m) suits its speed in either case.
    """

    speed: Float[np.ndarray, "scenes agents"]
    acceleration: Float[np.ndarray, "scenes agents"]
    fastest: Float[np.ndarray, "scenes agents"]
    traveled: Float[np.ndarray, "scenes agents"]
    cruise: Float[np.ndarray, "scenes agents"]
    relax: Float[np.ndarray, "scenes agents"]
    stops: Bool[np.ndarray, "scenes agents"]
    turn: Float[np.ndarray, "scenes agents"]
    radius: Float[np.ndarray, "scenes agents"]

    @property
    def stopping_distance(self) -> Float[np.ndarray, "scenes agents"]:
        """The way to a stand at the current deceleration; meaningful for those who stop."""
        return self.speed**2 / (2 * np.maximum(-self.acceleration, 1e-9))

    def shared(self, source: Int[np.ndarray, "scenes agents"], pace: Float[np.ndarray, "scenes agents"]) -> "Motion":
        """Everyone moves as the agent ``source`` does, ``pace`` times as fast."""

        def of(values: np.ndarray) -> np.ndarray:
            return np.take_along_axis(values, source, 1)

        kinematics = (self.speed, self.acceleration, self.fastest, self.traveled, self.cruise)
        return Motion(*(pace * of(k) for k in kinematics), *map(of, (self.relax, self.stops, self.turn, self.radius)))


def draw_motion(rng: np.random.Generator, manner: Int[np.ndarray, "scenes agents"], duration: float) -> Motion:
    """Draw independent motions, each in the manner of a type, whose history lasts ``duration`` seconds."""
    shape, limits = manner.shape, LIMITS.of(manner)
    low, high = np.moveaxis(_BANDS[categorical(rng, _BAND_CHANCE[manner])], -1, 0)
    mean = rng.uniform(low, np.maximum(low, np.minimum(high, 0.85 * limits.speed)))

    # no change of direction and no speed above the limit within the history
    reach = 1.9 * np.minimum(np.abs(mean), 0.95 * limits.speed - np.abs(mean)) / duration
    word = categorical(rng, np.broadcast_to(_WORD_CHANCE, (*shape, 3))) - 1
    strongest = np.minimum(
        np.where(word > 0, 0.85 * limits.acceleration, np.minimum(0.85 * limits.braking, 3.5)), reach
    )
    changes = (word != 0) & (strongest > 0.9) & (mean > 0)
    faint = rng.uniform(-1, 1, shape) * np.minimum(0.25, reach)
    acceleration = np.where(changes, word * rng.uniform(0.9, np.maximum(strongest, 0.9)), faint)
    gain = acceleration * duration / 2
    speed, fastest, traveled = mean + gain, np.abs(mean) + np.abs(gain), mean * duration

    relax = rng.uniform(1.5, 3.0, shape)
    room = (limits.speed - np.abs(speed)) / np.maximum(acceleration, 1e-9)
    relax = np.where(acceleration > 0, np.minimum(relax, room), relax)
    cruise = speed + relax * acceleration
    willing = (acceleration < -0.9) & (rng.random(shape) < 0.5)
    stops = (speed > 0) & ((cruise <= 0) | willing)

    largest = np.minimum(limits.curvature * traveled, limits.yaw_rate * traveled / np.maximum(fastest, 1e-9))
    largest = np.minimum(largest, 0.95 * limits.lateral * traveled / np.maximum(fastest, 1e-9) ** 2)
    largest = np.minimum(largest, _TURN[1])
    side = rng.choice([-1.0, 1.0], shape)
    turn = rng.uniform(_TURN[0], np.maximum(largest, _TURN[0]))
    radius = np.where(mean > 0.4, np.maximum(traveled, 0.4) / turn, rng.uniform(6.0, 15.0, shape))
    turns = (largest > _TURN[0]) & (rng.random(shape) < _TURN_CHANCE)
    turn = np.where(turns, side * turn, 0.0)
    return Motion(speed, acceleration, fastest, traveled, cruise, relax, stops, turn, radius)


def categorical(rng: np.random.Generator, chance: Float[np.ndarray, "*any k"]) -> Int[np.ndarray, "*any"]:
    """One index for each row of chances."""
    draw = rng.random(chance.shape[:-1])
    return (draw[..., None] > chance.cumsum(-1)[..., :-1]).sum(-1)


def headway(
    limits: Limits, speed: np.ndarray, acceleration: np.ndarray, leading: np.ndarray
) -> Float[np.ndarray, "*agents"]:
    """The gap (m) at which the driver model asks for the given acceleration behind a leader of speed ``leading``."""
    return _desired_gap(limits, speed, leading) / np.sqrt(1 - acceleration / limits.acceleration)


def roll_out(
    rng: np.random.Generator,
    motion: Motion,
    limits: Limits,
    route: Route,
    place: Float[np.ndarray, "scenes agents"],
    leader: Int[np.ndarray, "scenes agents"],
    length: Float[np.ndarray, "scenes agents"],
    history: int,
    future: int,
    dt: float,
) -> tuple[Float[np.ndarray, "scenes agents steps"], Float[np.ndarray, "scenes agents steps"]]:
    """Arc length and signed speed at every step, for agents that are at ``place`` on their routes now.

    ``leader`` is the index of the agent ahead on the same route, −1 for none.
    """
    shape = (*place.shape, history + future)
    s, v = np.empty(shape), np.empty(shape)
    t = np.arange(1 - history, 1) * dt
    s[..., :history] = place[..., None] + motion.speed[..., None] * t + motion.acceleration[..., None] * t**2 / 2
    v[..., :history] = motion.speed[..., None] + motion.acceleration[..., None] * t

    follows, ahead = leader >= 0, np.maximum(leader, 0)
    between = (length + np.take_along_axis(length, ahead, 1)) / 2
    stop = place + motion.stopping_distance
    backwards = motion.speed < 0
    curvature = np.maximum(np.abs(route.curvature), 1e-9)
    bend_speed = 0.97 * np.minimum(np.sqrt(limits.lateral / curvature), limits.yaw_rate / curvature)
    jitter, keep = np.zeros(place.shape), np.exp(-dt / 1.5)
    for step in range(history, history + future):
        here, now = s[..., step - 1], v[..., step - 1]
        jitter = keep * jitter + 0.03 * np.sqrt(1 - keep**2) * rng.standard_normal(place.shape)
        relaxing = (motion.cruise - now) / motion.relax + jitter * np.abs(now)
        braking = -(now**2) / (2 * np.maximum(stop - here, 1e-3))
        a = np.where(motion.stops, braking, relaxing)
        slower = ((0.9 * bend_speed) ** 2 - now**2) / (2 * np.maximum(-here, 0.1))
        a = np.where((here < 0) & (now > 0) & (slower < -1.5), np.minimum(a, slower), a)
        in_bend = (here >= 0) & (here <= route.length)
        a = np.where(in_bend, np.minimum(a, (bend_speed - now) / 0.5), a)
        gap = np.take_along_axis(here, ahead, 1) - here - between
        desired = _desired_gap(limits, now, np.take_along_axis(now, ahead, 1))
        following = limits.acceleration * (1 - (desired / np.maximum(gap, 0.1)) ** 2)
        a = np.where(follows, np.minimum(a, following), a)
        a = np.clip(a, -limits.braking, limits.acceleration)
        reached = np.minimum(now + a * dt, limits.speed)
        v[..., step] = np.where(backwards, np.minimum(reached, 0), np.maximum(reached, 0))
        s[..., step] = here + (now + v[..., step]) / 2 * dt
    return s, v


def _desired_gap(limits: Limits, speed: np.ndarray, leading: np.ndarray) -> np.ndarray:
    """The driver model's gap: a standstill distance, a second of way, and what it takes to slow down in comfort."""
    approach = speed * (speed - leading) / (2 * np.sqrt(limits.acceleration * limits.braking / 2))
    return 2.0 + np.maximum(speed + approach, 0)
