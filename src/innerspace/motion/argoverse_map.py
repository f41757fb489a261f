"""The Argoverse 2 vector map as polylines: lanes, painted marks, crossings and road edges.

Forecasting maps give each lane its centerline, sensor-log maps only the two boundaries; their mean stands in for it.
A boundary that two lanes share is kept once, one without paint is left out. Drivable areas are stored in tiles of
30 m: their boundary is a road edge except along a tile's border, where the road goes on.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from innerspace.motion.roads import FARTHEST, RoadMap, arc_length, node_count, resample

SPACING = 2.5
"""The distance between the nodes of a polyline, in meters."""

TILE = 30.0
"""Drivable areas are cut at the multiples of this, in meters."""

_LANES = {"VEHICLE": "lane", "BUS": "bus_lane", "BIKE": "bike_lane"}


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
    return RoadMap.of(lines, SPACING, nodes=nodes)


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
    one, other = arc_length(left), arc_length(right)
    count = max(node_count(one, SPACING), node_count(other, SPACING))
    return (resample(left, one, count) + resample(right, other, count)) / 2
