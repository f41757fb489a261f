"""Scenarios that HPTR packed, of Waymo Open Motion or Argoverse 2, as scenes: ``.h5`` files of many episodes each.

A file has a group for each episode, named by its number, with arrays ``agent/…`` [steps, agents, ·] and ``map/…``
[lines, 20, ·] in a frame of the episode's own; the attributes ``scenario_center`` and ``scenario_yaw`` lead back. Those
to validate on have ``history/agent/…`` besides, up to the current step; those to test on have nothing else.

* HPTR fills the gaps of a track between its first and its last step. Where there is ``history/…`` it stands for the
  steps up to the current one, for there no gap was filled with what came later. The files to train on lack it: an agent
  that was hidden at the current step and seen again is interpolated there.
* Which of the two data sets it was is told from the number of steps: 91 (11 to test on), or 110 (50).
* Paint is told less finely: Waymo's double lines are solid marks here, those to be passed from one side included.
  Argoverse boundaries without paint share a type with unknown ones and are left out.

Zhejun Zhang et al., Real-Time Motion Prediction via Heterogeneous Polyline Transformer with Relative Pose Encoding,
NeurIPS 2023.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from jaxtyping import Float

from innerspace.motion.recordings import QUIET, Recorded, Recording, drawn
from innerspace.motion.scenes import KINDS
from innerspace.motion.sources import Skipped

HZ = 10.0
"""The sampling rate of both data sets."""

MOST = 20_000_000
"""An array with more entries than this is damage."""

_WAYMO = ("lane", "lane", "lane", "bike_lane", *("road_edge",) * 2, "dashed_mark", *("solid_mark",) * 2, "other_mark")
_ARGOVERSE = ("lane", "bus_lane", "bike_lane", None, *("dashed_mark",) * 2, *("solid_mark",) * 2, *("other_mark",) * 2)
_LAYOUTS: Mapping[int, tuple[int, tuple[str | None, ...]]] = {
    91: (10, (*_WAYMO, "crossing")),
    11: (10, (*_WAYMO, "crossing")),
    110: (49, (*_ARGOVERSE, "crossing")),
    50: (49, (*_ARGOVERSE, "crossing")),
}
# what of an agent changes, and what does not, with the length of the last axis; 0 where there is none
_MOVING, _FIXED = {"valid": 0, "pos": 2, "vel": 2, "yaw_bbox": 1}, {"type": 3, "role": 3, "size": 3}


@final
@dataclass(frozen=True)
class HptrH5(Recorded):
    """Files ``*.h5`` as HPTR packs them; see ``Recorded`` for the settings.

    Files to test on have no future, and are skipped unless ``future`` is 0.
    """

    patterns: ClassVar[tuple[str, ...]] = ("*.h5", "*.hdf5")
    packages: ClassVar[tuple[str, ...]] = ("h5py",)

    def _recordings(self, place: Path, record: str) -> Iterator[Recording | Skipped]:
        import h5py

        try:
            file = h5py.File(place, "r")
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            yield Skipped(record, f"no h5 file: {_line(error)}")
            return
        with file:
            try:
                claimed, held = int(file.attrs.get("data_len", -1)), len(file)
            except (OSError, ValueError, RuntimeError, KeyError, TypeError, OverflowError) as error:
                yield Skipped(record, f"data_len: {_line(error)}")
                return
            if claimed != held:
                yield Skipped(record, f"data_len says {claimed} episodes, there are {held}")
            # what a damaged number claims must not be counted through
            for i in range(held):
                name = f"{record}/{i}"
                try:
                    yield _recording(_member(file, str(i), h5py.Group), name)
                except (OSError, ValueError, RuntimeError, KeyError, TypeError, OverflowError) as error:
                    yield Skipped(name, _line(error))


@QUIET
def _recording(episode: Any, name: str) -> Recording:
    """The scenario of an episode.

    Raises:
        ValueError: if an array is missing or has an unexpected shape, or no data set has as many steps.
    """
    parts = [prefix for prefix in ("history/agent", "agent") if f"{prefix}/valid" in episode]
    if not parts:
        raise ValueError("agent/valid is missing, and so is history/agent/valid")
    shapes = [_dataset(episode, f"{part}/valid").shape for part in parts]
    if any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
        raise ValueError(f"valid should be of steps × agents, it is {' and '.join(map(str, shapes))}")
    (steps, agents), past = shapes[-1], shapes[0][0]
    if steps not in _LAYOUTS or (len(parts) == 2 and past != _LAYOUTS[steps][0] + 1):
        known = ", ".join(map(str, _LAYOUTS))
        raise ValueError(f"there are {steps} steps, of which {past} are history; known are episodes of {known} steps")
    now, line_kinds = _LAYOUTS[steps]
    fixed = {key: _read(episode, f"{parts[-1]}/{key}", (agents, width)) for key, width in _FIXED.items()}
    moving = dict[str, np.ndarray]()
    for key, width in _MOVING.items():
        tail = (width,) if width else ()
        moving[key] = _read(episode, f"{parts[-1]}/{key}", (steps, agents, *tail))
        if len(parts) == 2:
            moving[key][:past] = _read(episode, f"{parts[0]}/{key}", (past, agents, *tail))
    center, yaw = np.asarray(episode.attrs["scenario_center"], dtype=float), float(episode.attrs["scenario_yaw"])
    if center.shape != (2,):
        raise ValueError(f"scenario_center should be two numbers, it has shape {center.shape}")
    cos, sin = np.cos(yaw), np.sin(yaw)
    # points and vectors are rows: x Rᵀ
    turn = np.array([[cos, sin], [-sin, cos]])
    kind = fixed["type"].astype(bool)
    named = np.where(kind.sum(1) == 1, kind.argmax(1), len(KINDS))
    valid = moving["valid"].astype(bool).T
    return Recording(
        name=_text(episode.attrs.get("scenario_id", name)),
        # rows without an agent have no type, and are valid nowhere
        category=[(*KINDS, "none" if valid[i].any() else "other")[k] for i, k in enumerate(named)],
        position=_finite(moving["pos"]).swapaxes(0, 1) @ turn + center,
        heading=moving["yaw_bbox"][..., 0].T.astype(float) + yaw,
        velocity=_finite(moving["vel"]).swapaxes(0, 1) @ turn,
        size=np.repeat(fixed["size"].astype(float)[:, None], steps, axis=1),
        valid=valid,
        asked=(fixed["role"][:, [0, 2]] != 0).any(axis=1),
        lines=[(which, line @ turn + center) for which, line in _lines(episode, line_kinds)],
        now=now,
        hz=HZ,
    )


def _lines(episode: Any, kinds: tuple[str | None, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """The polylines in the episode's frame: runs of valid nodes, up to where the last one leads."""
    shape = _dataset(episode, "map/valid").shape
    if len(shape) != 2:
        raise ValueError(f"map/valid should be of lines × nodes, it has shape {shape}")
    valid = _read(episode, "map/valid", shape).astype(bool)
    node, step = (_finite(_read(episode, f"map/{key}", (*shape, 2))) for key in ("pos", "dir"))
    kind = _read(episode, "map/type", (shape[0], len(kinds))).astype(bool)
    for i in np.flatnonzero(valid.any(1) & (kind.sum(1) == 1)):
        # a line that leaves the map and comes back has gaps
        for run in np.split(np.flatnonzero(valid[i]), np.flatnonzero(np.diff(np.flatnonzero(valid[i])) > 1) + 1):
            points = np.concatenate((node[i, run], node[i, run[-1:]] + step[i, run[-1:]]))
            yield from drawn(kinds[int(kind[i].argmax())], points)


def _finite(array: np.ndarray) -> Float[np.ndarray, "*any"]:
    """As float64; ±∞ becomes NaN, so that turning it makes no warning and it is found all the same."""
    wide = array.astype(np.float64)
    return np.where(np.isfinite(wide), wide, np.nan)


def _member(group: Any, name: str, kind: type) -> Any:
    """What lies in a group under a name, in this very file.

    Raises:
        ValueError: if it is missing, something else, or a link to somewhere else.
    """
    import h5py

    if name not in group:
        raise ValueError(f"{name} is missing")
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link to another place")
    found = group[name]
    if not isinstance(found, kind):
        raise ValueError(f"{name} should be a {kind.__name__.lower()}, it is a {type(found).__name__.lower()}")
    return found


def _dataset(episode: Any, name: str) -> Any:
    """An array that has not been read yet; what lies outside of the file is refused."""
    import h5py

    *groups, last = name.split("/")
    place = episode
    for group in groups:
        place = _member(place, group, h5py.Group)
    found = _member(place, last, h5py.Dataset)
    if found.is_virtual or found.external:
        raise ValueError(f"{name} lies outside of the file")
    if found.size is None or found.size > MOST or found.dtype.kind not in "biuf":
        raise ValueError(f"{name} has shape {found.shape} of {found.dtype}; at most {MOST} numbers are read")
    return found


def _read(episode: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    found = _dataset(episode, name)
    if found.shape != shape:
        raise ValueError(f"{name} should have shape {shape}, it has {found.shape}")
    return np.asarray(found[()])


def _text(given: Any) -> str:
    return given.decode() if isinstance(given, bytes) else str(given)


def _line(error: Exception) -> str:
    return str(error).split("\n", maxsplit=1)[0][:200]
