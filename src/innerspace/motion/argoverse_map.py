"""The Argoverse 2 vector map as polylines: lanes, painted marks, crossings and road edges.

Forecasting maps give each lane its centerline, sensor-log maps only the two boundaries; their mean stands in for it.
A boundary that two lanes share is kept once, one without paint is left out. Drivable areas are stored in tiles of
30 m: their boundary is a road edge except along a tile's border, where the road goes on.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from innerspace.motion.scenes import LINE_KINDS, pack_lines

SPACING = 2.5
"""The distance between the nodes of a polyline, in meters."""

TILE = 30.0
"""Drivable areas are cut at the multiples of this, in meters."""

FARTHEST = 1e7
"""What is farther out than this, in meters, is damage."""

_LANES = {"VEHICLE": "lane", "BUS": "bus_lane", "BIKE": "bike_lane"}


@dataclass(frozen=True, eq=False)
class RoadMap:
    """Packed polylines in the city frame, in meters; the valid nodes of a line come first."""

    line: Float[np.ndarray, "lines nodes 2"]
    kind: Int[np.ndarray, "lines"]
    valid: Bool[np.ndarray, "lines nodes"]

    def near(self, points: Float[np.ndarray, "points 2"], radius: float) -> "RoadMap":
        """The lines whose middle node lies within ``radius`` meters of any of the points."""
        middle = self.line[np.arange(len(self.line)), self.valid.sum(1) // 2]
        squared = ((middle[:, None] - points) ** 2).sum(-1)
        kept = (squared <= radius**2).any(1)
        return RoadMap(self.line[kept], self.kind[kept], self.valid[kept])


def read_map(path: Path, *, nodes: int = 10) -> RoadMap:
    """Read a ``log_map_archive_*.json``.

    Raises:
        ValueError: if the file is missing, damaged, or no Argoverse 2 map, naming it.
    """
    try:
        data = json.loads(path.read_bytes())
        lines = [(kind, line) for kind, line in _lines(data) if np.ptp(line, axis=0).any()]
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path.name} is no Argoverse 2 map: {type(error).__name__}: {error}") from None
    kinds = [LINE_KINDS.index(kind) for kind, _ in lines]
    return RoadMap(*pack_lines([_evenly(line) for _, line in lines], kinds, nodes=nodes))


def _lines(data: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Every line of the map with its type, as it is drawn there."""
    painted = set[tuple[str, bytes]]()
    for lane in data["lane_segments"].values():
        left, right = _points(lane["left_lane_boundary"]), _points(lane["right_lane_boundary"])
        if lane["lane_type"] not in _LANES:
            raise ValueError(f"unknown lane type {lane['lane_type']!r}; known are {', '.join(_LANES)}")
        yield _LANES[lane["lane_type"]], _points(lane["centerline"]) if "centerline" in lane else _between(left, right)
        for side, mark in ((left, lane["left_lane_mark_type"]), (right, lane["right_lane_mark_type"])):
            kind = _mark_kind(mark)
            if kind and (kind, side.tobytes()) not in painted:
                # the neighbor may draw the shared boundary the other way round
                painted |= {(kind, side.tobytes()), (kind, side[::-1].tobytes())}
                yield kind, side
    for crossing in data["pedestrian_crossings"].values():
        for edge in ("edge1", "edge2"):
            yield "crossing", _points(crossing[edge])
    for area in data["drivable_areas"].values():
        for edge in _road_edges(_points(area["area_boundary"])):
            yield "road_edge", edge


def _points(given: Sequence[Mapping[str, float]]) -> Float[np.ndarray, "points 2"]:
    points = np.array([(point["x"], point["y"]) for point in given], dtype=float)
    if len(points) < 2:
        raise ValueError(f"a line needs two points, one has {len(points)}")
    if not (abs(points) < FARTHEST).all():
        raise ValueError(f"a line holds coordinates that are not finite or beyond {FARTHEST:g} m")
    return points


def _mark_kind(mark: str) -> str | None:
    match mark.removeprefix("DOUBLE_").split("_")[:2]:
        case ["NONE"]:
            return None
        case ["SOLID", "DASH"] | ["DASH", "SOLID"]:
            return "other_mark"
        case ["SOLID", _]:
            return "solid_mark"
        case ["DASHED" | "DASH", _]:
            return "dashed_mark"
        case _:
            return "other_mark"


def _road_edges(ring: Float[np.ndarray, "points 2"]) -> list[np.ndarray]:
    """The closed boundary of a drivable area, cut open where it runs along the border of a tile."""
    following = np.roll(ring, -1, axis=0)
    seam = ((ring == following) & (ring % TILE == 0)).any(-1)
    if not seam.any():
        return [np.concatenate((ring, ring[:1]))]
    turn = -int(np.argmax(seam)) - 1
    cuts = np.flatnonzero(np.roll(seam, turn)) + 1
    return [piece for piece in np.split(np.roll(ring, turn, axis=0), cuts) if len(piece) > 1]


def _between(left: Float[np.ndarray, "_ 2"], right: Float[np.ndarray, "_ 2"]) -> Float[np.ndarray, "nodes 2"]:
    one, other = _arc(left), _arc(right)
    count = max(_count(one), _count(other))
    return (_resample(left, one, count) + _resample(right, other, count)) / 2


def _evenly(line: Float[np.ndarray, "_ 2"]) -> Float[np.ndarray, "nodes 2"]:
    arc = _arc(line)
    return _resample(line, arc, _count(arc))


def _count(arc: Float[np.ndarray, "points"]) -> int:
    return max(2, ceil(arc[-1] / SPACING) + 1)


def _resample(
    line: Float[np.ndarray, "points 2"], arc: Float[np.ndarray, "points"], count: int
) -> Float[np.ndarray, "{count} 2"]:
    """Nodes at equal distances along the line, its ends included."""
    at = np.linspace(0, arc[-1], count)
    return np.stack([np.interp(at, arc, line[:, axis]) for axis in (0, 1)], axis=-1)


def _arc(line: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, "points"]:
    """The distance of every point from the first, along the line."""
    return np.concatenate(([0.0], np.linalg.norm(np.diff(line, axis=0), axis=-1).cumsum()))
