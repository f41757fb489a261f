"""Recorded scenarios as scenes: the settings that all sources of them share, what is damage, and who is a target.

A source turns a file into recordings, each the whole of a scenario in one frame. What becomes of them is the same
everywhere:

* Tracks that are no agents, and values that are not finite though marked valid, are left out and counted.
* The first step of a run of valid steps has the velocity of the second, in the Waymo data and in what is made of it:
  an agent that is first seen at the current step would tell where it will be next. At that step it is left out.
* Sizes are those of the last step up to the current one; an agent that comes later has its first.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal, final

import numpy as np
from jaxtyping import Bool, Float, Int

from innerspace.motion.roads import FARTHEST, RADIUS, RoadMap
from innerspace.motion.scenes import KINDS, Scene
from innerspace.motion.sources import SceneSource, Skipped

NO_AGENTS = ("other", "traffic_cone", "traffic_barrier", "traffic_object")
"""The types that are left out as known not to be agents."""

QUIET = np.errstate(invalid="ignore", over="ignore")
"""For what computes with values of files before they are known to be finite: they are found by what comes out."""

LONGEST = 100.0
"""An agent that is larger than this, in meters, is damage."""

_UNEVEN, _OFF = 0.25, 0.05


@dataclass(frozen=True, eq=False)
class Recording:
    """A scenario as its file has it, before anything is judged.

    ``category`` is the type of every track in lower case, ``asked`` marks those that the file asks to forecast and the
    ego vehicle. Lines come with their types, single points among them. ``remarks`` say what was left out so far.
    """

    name: str
    category: Sequence[str]
    position: Float[np.ndarray, "tracks steps 2"]
    heading: Float[np.ndarray, "tracks steps"]
    velocity: Float[np.ndarray, "tracks steps 2"]
    size: Float[np.ndarray, "tracks steps 3"]
    valid: Bool[np.ndarray, "tracks steps"]
    asked: Bool[np.ndarray, "tracks"]
    lines: Sequence[tuple[str, np.ndarray]]
    now: int
    hz: float
    remarks: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Recorded(SceneSource, ABC):
    """Recorded scenarios below a folder, or in one file; a record is a file, by its path from the folder on.

    ``history`` counts the steps up to and including the current one, ``future`` those after it; a scenario that has
    fewer is skipped. Targets are the tracks that the file asks to ``predict`` and the ego vehicle, or ``all``, as far
    as they are valid now, at the step before, and at a share ``seen`` of the future steps. Polylines have a node every
    ``spacing`` meters.

    Raises:
        ValueError: for a setting out of its range, naming it.
    """

    path: Path
    history: int = 11
    future: int = 60
    targets: Literal["predict", "all"] = "predict"
    seen: float = 1.0
    spacing: float = 1.0

    patterns: ClassVar[tuple[str, ...]]
    packages: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, least in (("history", 1), ("future", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"recorded: {name} should be at least {least}, it is {getattr(self, name)}")
        if not 0 <= self.seen <= 1:
            raise ValueError(f"recorded: seen is a share, from 0 to 1; it is {self.seen}")
        if not 0.1 <= self.spacing <= 100:
            raise ValueError(f"recorded: spacing should be from 0.1 to 100 m, it is {self.spacing}")

    @final
    def records(self) -> list[str]:
        """The files, sorted by path.

        Raises:
            ValueError: if there is none, or a package is missing that reads them.
        """
        if missing := [name for name in self.packages if not _installed(name)]:
            raise ValueError(
                f"files {self.patterns[0]} are read with {' and '.join(self.packages)}, and {missing[0]} is not "
                "installed: pip install 'innerspace[motion]'"
            )
        if self.path.is_file():
            self._check(self.path)
            return [self.path.name]
        if not self.path.is_dir():
            raise ValueError(f"nothing at {self.path}")
        found = {path for pattern in self.patterns for path in self.path.rglob(pattern) if path.is_file()}
        if not found:
            self._check(self.path)
            raise ValueError(f"no {' and no '.join(self.patterns)} in {self.path} or below")
        return sorted(path.relative_to(self.path).as_posix() for path in found)

    @final
    def read(self, record: str) -> Iterator[Scene | Skipped]:
        """The scenes of a file, each followed by remarks on what of it was left out."""
        place = self.path if self.path.is_file() else self.path / record
        if not place.is_file():
            yield Skipped(record, f"no file at {place}")
            return
        for item in self._recordings(place, record):
            if isinstance(item, Skipped):
                yield _skipped(item.name, item.reason)
                continue
            name, remarks = _writable(item.name, 100), list(item.remarks)
            try:
                yield self._scene(replace(item, name=name), remarks)
            except ValueError as error:
                remarks.append(str(error))
            yield from (_skipped(name, remark) for remark in remarks)

    @abstractmethod
    def _recordings(self, place: Path, record: str) -> Iterator[Recording | Skipped]:
        """What the file at ``place`` holds; what cannot be read is skipped, never an error."""

    def _check(self, place: Path) -> None:
        """Refuse a file of a known kind that cannot be read, or a folder in which there is nothing else."""

    @QUIET
    def _scene(self, found: Recording, remarks: list[str]) -> Scene:
        now, steps = found.now, found.valid.shape[1]
        if not 0 <= now < steps:
            raise ValueError(f"the current step should be in 0…{steps - 1}, it is {now}")
        if now + 1 < self.history or steps - now - 1 < self.future:
            raise ValueError(
                f"there are {now + 1} steps of history and {steps - now - 1} of future; "
                f"asked for are {self.history} and {self.future}"
            )
        agent = _agents(found.category, remarks)
        valid = _sound(found, agent, remarks)
        if now:
            valid[:, now] &= valid[:, now - 1]
        size, whole = _sizes(found.size, valid, now)
        present = agent & valid.any(1)
        if lost := int((present & ~whole).sum()):
            remarks.append(f"the size of {lost} tracks is negative, not finite or beyond {LONGEST:g} m: left out")
        kept = present & whole
        enough = valid[:, now + 1 : now + 1 + self.future].sum(1) >= self.seen * self.future
        wanted = kept & (found.asked if self.targets == "predict" else True)
        target = np.flatnonzero((wanted & valid[:, now] & enough)[kept])
        if not target.size:
            raise ValueError(
                f"none of {int(wanted.sum())} agents to forecast is valid at steps {max(now - 1, 0)} and {now} "
                f"and at {self.seen:.0%} of the {self.future} after"
            )
        valid = valid[kept]
        position = np.where(valid[..., None], found.position[kept], 0.0)
        road = RoadMap.of(_sound_lines(found.lines, remarks), self.spacing).near(position[target, now], RADIUS)
        heading = (found.heading[kept] + np.pi) % (2 * np.pi) - np.pi
        return Scene(
            name=found.name,
            position=position,
            heading=np.where(valid, heading, 0.0),
            velocity=np.where(valid[..., None], found.velocity[kept], 0.0),
            size=size[kept],
            kind=np.array([KINDS.index(found.category[i]) for i in np.flatnonzero(kept).tolist()], dtype=np.int64),
            valid=valid,
            target=target,
            line=road.line,
            line_kind=road.kind,
            line_valid=road.valid,
            hz=found.hz,
            now=now,
            group=found.name,
        )


def drawn(kind: str | None, points: np.ndarray, *, closed: bool = False) -> list[tuple[str, np.ndarray]]:
    """A polyline or a polygon as a line of a scene; none if its type is none, or it has not two different points."""
    if kind is None or points.ndim != 2 or len(points) < 2 or not (points != points[:1]).any():
        return []
    return [(kind, np.concatenate((points, points[:1])) if closed else points)]


def check_rate(seconds: Float[np.ndarray, "steps"], hz: float) -> None:
    """Refuse times that do not follow each other at ``hz``.

    Raises:
        ValueError: if they are irregular or follow at another rate, naming the gaps.
    """
    gaps = np.diff(seconds)
    if not gaps.size or not np.isfinite(gaps).all():
        raise ValueError(f"the rate of {len(seconds)} times cannot be told: two or more finite ones are needed")
    usual = float(np.median(gaps))
    if (abs(gaps - usual) > _UNEVEN * abs(usual)).any():
        raise ValueError(f"steps follow after {gaps.min():.3g} to {gaps.max():.3g} s; a scene has one rate")
    if not abs(usual * hz - 1) <= _OFF:
        raise ValueError(f"steps follow every {usual:.3g} s; history and future count steps of {1 / hz:.3g} s")


def _skipped(name: str, reason: str) -> Skipped:
    return Skipped(_writable(name, 200), _writable(reason, 300))


def _writable(text: str, most: int) -> str:
    """The beginning of a text from a file, without what cannot be written to another."""
    return text[:most].encode("utf-8", "replace").decode()


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _agents(category: Sequence[str], remarks: list[str]) -> Bool[np.ndarray, "tracks"]:
    """Which tracks are agents; a remark for each type that is not known."""
    unknown = Counter(name for name in category if name not in KINDS and name not in NO_AGENTS)
    # a damaged file may hold a new type in every track
    remarks += [f"unknown object type {name[:40]!r}: {n} tracks left out" for name, n in unknown.most_common(5)]
    if len(unknown) > 5:
        remarks.append(f"{len(unknown) - 5} more unknown object types: their tracks left out")
    return np.array([name in KINDS for name in category], dtype=bool)


def _sound(found: Recording, agent: Bool[np.ndarray, "tracks"], remarks: list[str]) -> Bool[np.ndarray, "tracks steps"]:
    """Where agents are valid and their state is finite; a remark for each state that is not."""
    valid = found.valid & agent[:, None]
    for name in ("position", "heading", "velocity"):
        state = getattr(found, name)
        good = (abs(state) < FARTHEST).reshape(*valid.shape, -1).all(-1)
        if (bad := valid & ~good).any():
            remarks.append(
                f"{name} is not finite or beyond {FARTHEST:g} though marked valid at {int(bad.sum())} steps "
                f"of {int(bad.any(1).sum())} tracks: left out"
            )
            valid &= good
    return valid


def _sizes(
    size: Float[np.ndarray, "tracks steps 3"], valid: Bool[np.ndarray, "tracks steps"], now: int
) -> tuple[Float[np.ndarray, "tracks 3"], Bool[np.ndarray, "tracks"]]:
    """The size at the last valid step up to ``now``, or at the first after it, and whether it can be one."""
    past = valid[:, now::-1]
    at: Int[np.ndarray, "tracks"] = np.where(past.any(1), now - past.argmax(1), valid.argmax(1))
    chosen = size[np.arange(len(size)), at]
    return chosen, np.all((chosen >= 0) & (chosen <= LONGEST), axis=1)


def _sound_lines(lines: Iterable[tuple[str, np.ndarray]], remarks: list[str]) -> list[tuple[str, np.ndarray]]:
    given = list(lines)
    good = [(kind, line) for kind, line in given if (abs(line) < FARTHEST).all()]
    if lost := len(given) - len(good):
        remarks.append(f"{lost} lines of the map are not finite or beyond {FARTHEST:g} m: left out")
    return good
