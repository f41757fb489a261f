"""Argoverse 2 as scenes: motion-forecasting scenarios, and windows cut from sensor logs.

A scenario is ``scenario_<id>.parquet`` with ``log_map_archive_<id>.json`` beside it: 110 steps at 10 Hz in the city
frame, the current one is 49. A sensor log is ``annotations.feather`` (cuboids in the frame of the ego vehicle) with
``city_SE3_egovehicle.feather`` (the ego vehicle's poses) beside it and ``log_map_archive_*.json`` there or in ``map``;
it becomes a scene every few steps. Targets are the agents that are valid at every step of history and future.

* What has no rider is no cyclist: in the logs bicycles, motorcycles and wheeled devices stand still, or double the
  rider who sits on them. They are left out like cones and signs, and so is ``riderless_bicycle``, which the code of
  Words in Motion counts among the cyclists.
* Velocities of a log are differences to the step before, so that the current one does not tell where the agent will be
  next. Where the annotations leave the ego vehicle out, its poses put it in.
* Scenarios have no sizes; typical ones of each type stand in.

Benjamin Wilson et al., Argoverse 2: Next Generation Datasets for Self-Driving Perception and Forecasting, NeurIPS 2021.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from innerspace.motion.argoverse_map import read_map
from innerspace.motion.argoverse_tracks import (
    HZ,
    LOG_KINDS,
    SCENARIO_KINDS,
    Grid,
    Table,
    Tracks,
    only_agents,
    past_velocity,
    read_table,
    stack,
)
from innerspace.motion.scenes import Scene
from innerspace.motion.sources import SceneSource, Skipped
from innerspace.value import Value

STEPS, NOW = 110, 49
"""The length of a scenario, and its current step."""

SIZES = {
    "vehicle": (4.3, 1.9, 1.6),
    "bus": (11.6, 2.9, 3.0),
    "pedestrian": (0.7, 0.7, 1.8),
    "cyclist": (1.7, 0.7, 1.8),
    "motorcyclist": (2.1, 0.8, 1.6),
}
"""Length, width and height of the agents of scenarios, in meters: about those of the logs' cuboids."""

_STATE = ("position_x", "position_y", "heading", "velocity_x", "velocity_y")
_ROTATION, _TRANSLATION = ("qw", "qx", "qy", "qz"), ("tx_m", "ty_m", "tz_m")
_EXTENT = ("length_m", "width_m", "height_m")
_CUBOIDS, _POSES = "annotations.feather", "city_SE3_egovehicle.feather"
_EGO = {"qw": 1.0} | dict(zip(_EXTENT, (4.877, 2.0, 1.473), strict=True))
_SHORTEST_GAP, _LONGEST_GAP = 0.05, 5.0


@dataclass(frozen=True)
class Windows(Value):
    """How a sensor log is cut, and how long a track must be to be a target, in steps of 10 Hz.

    ``history`` counts the steps up to and including the current one, ``future`` those after it; a window starts every
    ``stride`` steps.
    """

    history: int = 11
    future: int = 60
    stride: int = 5

    def __post_init__(self) -> None:
        for name in ("history", "future", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"windows: {name} should be at least 1, it is {getattr(self, name)}")

    def around(self, now: int) -> slice:
        """The steps of history and future around a current step."""
        return slice(now - self.history + 1, now + self.future + 1)


@dataclass(frozen=True)
class Argoverse2(SceneSource):
    """Every motion-forecasting scenario and every sensor log below a folder.

    A record is the path of a scenario's tracks or of a log's cuboids, from the folder on; below a log's folder nothing
    is looked for. Scenarios come first, each kind sorted by path. What ``windows`` says of strides is of logs alone.
    """

    path: Path
    windows: Windows = Windows()

    def records(self) -> list[str]:
        """The paths of all scenarios and logs.

        Raises:
            ValueError: if there is neither, the windows exceed a scenario, or pyarrow is not installed.
        """
        if not self.path.is_dir():
            raise ValueError(f"no folder at {self.path}")
        if find_spec("pyarrow") is None:
            raise ValueError("Argoverse 2 files are read with pyarrow: pip install 'innerspace[motion]'")
        found = sorted(_files(self.path), key=lambda parts: (_is_log(parts[-1]), parts))
        if not found:
            raise ValueError(f"no scenario_*.parquet and no {_CUBOIDS} in {self.path} or below")
        windows, span = self.windows, self.windows.around(NOW)
        if (span.start < 0 or span.stop > STEPS) and not _is_log(found[0][-1]):
            raise ValueError(
                f"a scenario has {NOW + 1} steps of history and {STEPS - NOW - 1} of future; "
                f"asked for are {windows.history} and {windows.future}"
            )
        return ["/".join(parts) for parts in found]

    def read(self, record: str) -> Iterator[Scene | Skipped]:
        """The scene of a scenario or the windows of a log, and remarks on what was left out."""
        path = self.path / record
        log = _is_log(path.name)
        name = path.absolute().parent.name if log else path.stem.removeprefix("scenario_")
        try:
            scenes, remarks = (_log if log else _scenario)(path, name, self.windows)
        except ValueError as error:
            scenes, remarks = [], [str(error)]
        yield from scenes
        yield from (Skipped(name, remark) for remark in remarks)


def _files(folder: Path) -> Iterator[tuple[str, ...]]:
    """The files to read below a folder, as parts of their paths; each folder is listed once."""
    ahead: list[tuple[str, tuple[str, ...]]] = [(str(folder), ())]
    while ahead:
        place, parts = ahead.pop()
        with os.scandir(place) as entries:
            below = list(entries)
        if any(_is_log(entry.name) for entry in below):
            yield (*parts, _CUBOIDS)
            continue
        for entry in below:
            if entry.name.startswith("scenario_") and entry.name.endswith(".parquet"):
                yield (*parts, entry.name)
            elif entry.is_dir(follow_symlinks=False):
                ahead.append((entry.path, (*parts, entry.name)))


def _is_log(name: str) -> bool:
    return name == _CUBOIDS


def _scenario(path: Path, name: str, windows: Windows) -> tuple[list[Scene], list[str]]:
    place = path.with_name(f"log_map_archive_{name}.json")
    if not place.is_file():
        raise ValueError(f"no {place.name} beside it")
    columns = {"track_id": str, "object_type": str, "timestep": int, "num_timestamps": int}
    table = read_table(path, columns | dict.fromkeys(_STATE, float))
    steps = np.unique(np.concatenate((table["timestep"], table["num_timestamps"] - 1)))
    if steps[0] < 0 or steps[-1] != STEPS - 1:
        raise ValueError(f"{path.name} should have the steps 0 to {STEPS - 1}, it has {steps[0]} to {steps[-1]}")
    table, remarks = only_agents(table, SCENARIO_KINDS, track="track_id", category="object_type")
    grid = Grid.of(table["track_id"], table["object_type"], table["timestep"], STEPS)
    tracks = Tracks(
        kind=grid.kind(SCENARIO_KINDS),
        size=np.array([SIZES[category] for category in grid.category]),
        position=grid.spread(stack(table, "position_x", "position_y")),
        heading=grid.spread(table["heading"]),
        velocity=grid.spread(stack(table, "velocity_x", "velocity_y")),
        valid=grid.valid,
    )
    scene = tracks.scene(name, name, slice(0, STEPS), NOW, windows.around(NOW), read_map(place))
    if scene is None:
        span = windows.around(NOW)
        raise ValueError(f"no track is valid at all steps from {span.start} to {span.stop - 1}")
    return [scene], remarks


def _log(path: Path, name: str, windows: Windows) -> tuple[list[Scene], list[str]]:
    if not path.with_name(_POSES).is_file():
        raise ValueError(f"no {_POSES} beside it")
    places = [place for folder in (path.parent, path.parent / "map") for place in folder.glob("log_map_archive_*.json")]
    if len(places) != 1:
        raise ValueError(f"{'more than one' if places else 'no'} log_map_archive_*.json beside it")
    columns = {"timestamp_ns": int, "track_uuid": str, "category": str}
    table = read_table(path, columns | dict.fromkeys((*_EXTENT, *_ROTATION, *_TRANSLATION), float))
    frames = np.unique(table["timestamp_ns"])
    step = _steps(frames)
    steps, length = int(step[-1]) + 1, windows.history + windows.future
    if steps < length:
        raise ValueError(f"the log has {steps} steps, a window needs {length}")

    if "EGO_VEHICLE" not in table["category"]:
        table = _with_ego(table, frames)
    table, remarks = only_agents(table, LOG_KINDS, track="track_uuid", category="category")
    row = np.searchsorted(frames, table["timestamp_ns"])
    grid = Grid.of(table["track_uuid"], table["category"], step[row], steps)
    rotation, translation = _poses(path.with_name(_POSES), frames)
    center = _rotated(rotation[row], stack(table, *_TRANSLATION)) + translation[row]
    ahead = _rotated(rotation[row], _rotated(_unit(table, path), np.array([1.0, 0.0, 0.0])))
    position = grid.spread(center[:, :2])
    seconds = np.interp(np.arange(steps), step, (frames - frames[0]) / 1e9)
    velocity, valid = past_velocity(position, grid.valid, seconds)
    tracks = Tracks(
        kind=grid.kind(LOG_KINDS),
        size=stack(table, *_EXTENT)[grid.first],
        position=position,
        heading=grid.spread(np.arctan2(ahead[:, 1], ahead[:, 0])),
        velocity=velocity,
        valid=valid,
    )

    road, now = read_map(places[0]), windows.history - 1
    starts = range(0, steps - length + 1, windows.stride)
    parts = {f"{name}@{start}": slice(start, start + length) for start in starts}
    cut = [tracks.scene(window, name, part, now, windows.around(now), road) for window, part in parts.items()]
    scenes = [scene for scene in cut if scene is not None]
    if len(scenes) < len(cut):
        remarks.append(f"no track is valid throughout {len(cut) - len(scenes)} of the {len(cut)} windows")
    return scenes, remarks


def _steps(frames: Int[np.ndarray, "frames"]) -> Int[np.ndarray, "frames"]:
    """The step of every frame, so that a dropped frame leaves a gap."""
    gaps = np.diff(frames) / 1e9
    if (gaps < _SHORTEST_GAP).any() or (gaps > _LONGEST_GAP).any():
        raise ValueError(f"frames should follow every {1 / HZ} s, they do after {gaps.min():.3g} to {gaps.max():.3g} s")
    return np.concatenate(([0], np.rint(gaps * HZ).astype(np.int64).cumsum()))


def _with_ego(table: Table, frames: Int[np.ndarray, "frames"]) -> Table:
    """The table with rows for the ego vehicle, which is the origin of its own frame."""
    ego = {name: np.full(len(frames), _EGO.get(name, 0.0)) for name in (*_EXTENT, *_ROTATION, *_TRANSLATION)}
    ego |= {"timestamp_ns": frames} | {name: np.full(len(frames), "EGO_VEHICLE") for name in ("track_uuid", "category")}
    return {name: np.concatenate((column, ego[name])) for name, column in table.items()}


def _poses(
    path: Path, frames: Int[np.ndarray, "frames"]
) -> tuple[Float[np.ndarray, "frames 4"], Float[np.ndarray, "frames 3"]]:
    """Rotations and translations from the ego vehicle's frame into the city's, at the frames' very times."""
    table = read_table(path, {"timestamp_ns": int} | dict.fromkeys((*_ROTATION, *_TRANSLATION), float))
    times, first = np.unique(table["timestamp_ns"], return_index=True)
    if missing := np.setdiff1d(frames, times).size:
        raise ValueError(f"{path.name} has no pose for {missing} of the {len(frames)} annotated frames")
    row = first[np.searchsorted(times, frames)]
    return _unit(table, path)[row], stack(table, *_TRANSLATION)[row]


def _unit(table: Table, path: Path) -> Float[np.ndarray, "rows 4"]:
    """The rotations, as quaternions of length one."""
    rotation = stack(table, *_ROTATION)
    length = np.linalg.norm(rotation, axis=-1, keepdims=True)
    if bad := (abs(length - 1) > 1e-3).sum():
        raise ValueError(f"{path.name}: {bad} rotations are no quaternions of length 1")
    return rotation / length


def _rotated(rotation: Float[np.ndarray, "rows 4"], vector: Float[np.ndarray, "*any 3"]) -> Float[np.ndarray, "rows 3"]:
    """The vectors turned by unit quaternions (w, u): v + 2 u × (u × v + w v)."""
    w, u = rotation[:, :1], rotation[:, 1:]
    return vector + 2 * np.cross(u, np.cross(u, vector) + w * vector)
