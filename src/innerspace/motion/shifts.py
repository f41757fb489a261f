"""Scenes with other characteristics than those trained on: other speeds, calmer curves, another sampling rate.

A shift moves every agent to other places of its own recorded path, so that curvature is kept, and never to a place that
was not recorded: steps that would lie beyond the ends of a path, or between two of its steps of which one is missing,
become invalid, and steps at which an agent was not seen stay so. The pose at the current step stays as it is.

Tas and Wagner, "Words in Motion" (ICLR 2025, arXiv 2406.11624), compensate for one such shift by a control vector.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from jaxtyping import Bool, Float

from innerspace.motion.scenes import Scene
from innerspace.value import Value

_WINDOW = 0.5
"""Seconds before and after a place over which the lateral acceleration there is measured: single headings are noisy."""


@dataclass(frozen=True)
class Shift(Value, ABC):
    """A change of all agents' motion."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The shift in a few words."""

    @property
    @abstractmethod
    def seen(self) -> bool:
        """Whether it changes what a forecaster reads, not only what happens next."""

    @abstractmethod
    def compensation(self, hz: float) -> float | None:
        """What the speed of a forecast must be multiplied by to make up for the shift, in scenes of that sampling rate.

        1 where the history tells it already, None where it depends on the paths.
        """

    @abstractmethod
    def apply(self, scene: Scene) -> Scene:
        """The scene as it is under the shift; the scene itself where nothing changes."""


@final
@dataclass(frozen=True)
class Speed(Shift):
    """All speeds times ``factor``: at every time t an agent has gone factor · s(t) along its path instead of s(t).

    The path's length s is that of the chords between valid steps, from the current step on. Without ``history`` only
    the future changes, which is another style of driving; with it, everything does. Agents that are not there at the
    current step have no s and stay as they are.

    Raises:
        ValueError: for a factor that is not positive.
    """

    factor: float
    history: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.factor < np.inf:
            raise ValueError(f"speed: the factor should be positive and finite, it is {self.factor}")

    @property
    def label(self) -> str:
        """The factor, unless it is 1."""
        if self.factor == 1:
            return "no shift"
        return f"speed × {self.factor:g}" + ", history too" * self.history

    @property
    def seen(self) -> bool:
        """With the history."""
        return self.history

    def compensation(self, hz: float) -> float | None:  # noqa: ARG002
        """The factor, if nothing but the future tells of it."""
        return 1.0 if self.history else self.factor

    def apply(self, scene: Scene) -> Scene:
        """All agents farther or less far along their paths."""
        if self.factor == 1:
            return scene

        def slower(track: _Track) -> _Track:
            place = track.lengths()
            place -= place[track.now]
            values, found = track.at(place, place * self.factor)
            # the body's own motion, turned to where the path leads at the new place
            turn = values[:, 2] - track.values[:, 2]
            velocity = self.factor * _turned(track.values[:, 3:], turn)
            return _Track(np.column_stack((values[:, :3], velocity)), found & track.valid, track.now)

        return _retimed(scene, slower, self.history)


@final
@dataclass(frozen=True)
class LateralAcceleration(Shift):
    """No agent takes a curve faster than at a lateral acceleration of ``limit`` (m/s²); the path stays the same.

    Where a = v · |yaw rate|, measured over a second around each place, exceeds the limit, the speed falls to
    v · √(limit / a), and all that follows comes later. ``history`` as in ``Speed``.

    Raises:
        ValueError: for a limit that is not positive.
    """

    limit: float
    history: bool = False

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"lateral acceleration: the limit should be positive, it is {self.limit} m/s²")

    @property
    def label(self) -> str:
        """The limit."""
        return f"lateral ≤ {self.limit:g} m/s²" + ", history too" * self.history

    @property
    def seen(self) -> bool:
        """With the history."""
        return self.history

    def compensation(self, hz: float) -> float | None:  # noqa: ARG002
        """It depends on how many curves there are."""
        return 1.0 if self.history else None

    def apply(self, scene: Scene) -> Scene:
        """Agents slow in curves, and late behind them."""

        def calmer(track: _Track) -> _Track:
            known = np.flatnonzero(track.valid)
            stretch = np.sqrt(np.maximum(1, track.lateral_acceleration(scene.hz) / self.limit))
            if (stretch == 1).all():
                return track
            late = np.zeros(len(track.valid))
            late[known] = np.concatenate(([0.0], np.cumsum(np.diff(known) * stretch)))
            late -= late[track.now] - track.now
            ends = np.concatenate((stretch[:1], stretch, stretch[-1:]))
            slowed = track.values.copy()
            slowed[known, 3:] /= ((ends[1:] + ends[:-1]) / 2)[:, None]
            steps = np.arange(len(late), dtype=float)
            values, found = _Track(slowed, track.valid, track.now).at(late, steps)
            return _Track(values, found & track.valid, track.now)

        return _retimed(scene, calmer, self.history)


@final
@dataclass(frozen=True)
class SamplingRate(Shift):
    """Histories recorded at ``hz`` and read by a forecaster that expects the scene's own rate; futures stay.

    If it is ``told``, the samples are interpolated linearly in time to the steps that it expects. If not, it takes them
    for these steps: seconds seem shorter or longer than they are, and velocities, which come from differences, wrong by
    the same factor. At a higher rate than the scene's, the recording itself is interpolated.

    Raises:
        ValueError: for a rate that is not positive.
    """

    hz: float
    told: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.hz < np.inf:
            raise ValueError(f"sampling rate: hz should be positive and finite, it is {self.hz}")

    @property
    def label(self) -> str:
        """The rate, and whether it is known."""
        return f"{self.hz:g} Hz, {'resampled' if self.told else 'not told'}"

    @property
    def seen(self) -> bool:
        """Nothing else is changed."""
        return True

    def compensation(self, hz: float) -> float | None:
        """The inverse of how much faster everything seems."""
        return 1.0 if self.told else self.hz / hz

    def apply(self, scene: Scene) -> Scene:
        """The same futures after other histories."""
        ratio = scene.hz / self.hz
        if ratio == 1:
            return scene
        now = scene.now
        steps = np.arange(now + 1, dtype=float)
        samples = now - ratio * (np.arange(int(now / ratio), -1, -1.0) if self.told else now - steps)

        def reread(track: _Track) -> _Track:
            values, found = track.at(steps, samples)
            if self.told:
                return _Track(*_Track(values, found, len(found) - 1).at(samples, steps), now)
            values[:, 3:] *= ratio
            return _Track(values, found, now)

        return _changed(scene, slice(0, now + 1), np.ones(len(scene.kind), dtype=bool), reread)


@dataclass(frozen=True, eq=False)
class _Track:
    """One agent's x, y, unwrapped heading and velocity; ``now`` is the current step among these."""

    values: Float[np.ndarray, "steps 5"]
    valid: Bool[np.ndarray, "steps"]
    now: int

    def lengths(self) -> Float[np.ndarray, "steps"]:
        """How long the path through the valid steps is at each of them; 0 at the others."""
        place, known = np.zeros(len(self.valid)), np.flatnonzero(self.valid)
        chords = np.linalg.norm(np.diff(self.values[known, :2], axis=0), axis=1)
        place[known] = np.concatenate(([0.0], np.cumsum(chords)))
        return place

    def lateral_acceleration(self, hz: float) -> Float[np.ndarray, "segments"]:
        """Speed times |yaw rate| (m/s²) around the middle of each segment between successive valid steps."""
        known, place = np.flatnonzero(self.valid), self.lengths()
        middle, half = (known[1:] + known[:-1]) / 2, _WINDOW * hz
        first = np.searchsorted(known, middle - half)
        last = np.searchsorted(known, middle + half, side="right") - 1
        first, last = known[first], known[last]
        seconds = np.maximum(last - first, 1) / hz
        turn = np.abs(self.values[last, 2] - self.values[first, 2])
        return (place[last] - place[first]) * turn / seconds**2

    def at(
        self, clock: Float[np.ndarray, "steps"], wanted: Float[np.ndarray, "places"]
    ) -> tuple[Float[np.ndarray, "places 5"], Bool[np.ndarray, "places"]]:
        """Where a clock that never runs backwards shows the wanted values, by linear interpolation, and whether it is.

        Only readings at valid steps count. Beyond them, and between two that are not neighbors, nothing is found.
        """
        known = np.flatnonzero(self.valid)
        if not len(known):
            return np.zeros((len(wanted), self.values.shape[1])), np.zeros(len(wanted), dtype=bool)
        times = clock[known]
        i = np.clip(np.searchsorted(times, wanted, side="right") - 1, 0, max(len(known) - 2, 0))
        j = np.minimum(i + 1, len(known) - 1)
        width = times[j] - times[i]
        share = np.divide(wanted - times[i], width, out=np.zeros(len(wanted)), where=width > 0)
        # a reading at a step's own time is that step's, whatever the rounding
        share = np.where(np.abs(share - share.round()) < 1e-9, share.round(), share)
        inside = (wanted >= times[0] - 1e-9) & (wanted <= times[-1] + 1e-9)
        found = inside & ((share == 0) | (share == 1) | (known[j] - known[i] == 1))
        a, b = self.values[known[i]], self.values[known[j]]
        return np.where(share[:, None] == 1, b, a + share[:, None] * (b - a)), found


_Change = Callable[[_Track], _Track]


def _retimed(scene: Scene, change: _Change, history: bool) -> Scene:
    """The agents that are there now, each changed along its path; the pose at the current step stays.

    Where only the future changes, so does nothing of the current step.
    """
    now = scene.now
    moved = _changed(scene, slice(0 if history else now, scene.valid.shape[1]), scene.valid[:, now], change)
    moved.position[:, now], moved.heading[:, now] = scene.position[:, now], scene.heading[:, now]
    moved.valid[:, now] = scene.valid[:, now]
    if not history:
        moved.velocity[:, now] = scene.velocity[:, now]
    return moved


def _changed(scene: Scene, steps: slice, agents: Bool[np.ndarray, "agents"], change: _Change) -> Scene:
    """A copy of the scene in which the tracks of some agents are changed over some steps."""
    position, heading, velocity = scene.position.copy(), scene.heading.copy(), scene.velocity.copy()
    valid = scene.valid.copy()
    for agent in np.flatnonzero(agents):
        own = np.s_[agent, steps]
        seen = scene.valid[own]
        unwrapped = np.zeros(len(seen))
        unwrapped[seen] = np.unwrap(scene.heading[own][seen])
        values = np.column_stack((scene.position[own], unwrapped, scene.velocity[own]))
        # what stands where nothing is valid may be anything
        before = _Track(np.where(seen[:, None], values, 0), seen, scene.now - steps.start)
        after = change(before)
        if after is before:
            continue
        shown = np.where(after.valid[:, None], after.values, 0)
        position[own], velocity[own], valid[own] = shown[:, :2], shown[:, 3:], after.valid
        heading[own] = _wrapped(shown[:, 2])
    return replace(scene, position=position, heading=heading, velocity=velocity, valid=valid)


def _turned(vectors: Float[np.ndarray, "steps 2"], angle: Float[np.ndarray, "steps"]) -> Float[np.ndarray, "steps 2"]:
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = vectors.T
    return np.column_stack((cos * x - sin * y, sin * x + cos * y))


def _wrapped(angle: Float[np.ndarray, "steps"]) -> Float[np.ndarray, "steps"]:
    # what is wrapped already keeps its bits
    return np.where(np.abs(angle) <= np.pi, angle, (angle + np.pi) % (2 * np.pi) - np.pi)
