"""Scenarios of the Waymo Open Motion data set as GPUDrive exports them: one JSON file each.

A file holds ``objects`` (states step by step, with one size and type), ``roads`` (points with the type of their map
feature) and ``metadata``. It says neither the rate nor the current step: the data set has 10 Hz and step 10. The size
is that of an object's last step, and ``goalPosition``, where it ends up, is not read.

Saman Kazemkhani et al., GPUDrive: Data-Driven, Multi-Agent Driving Simulation at 1 Million FPS, ICLR 2025.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from jaxtyping import Float

from innerspace.motion.recordings import QUIET, Recorded, Recording, drawn
from innerspace.motion.sources import Skipped
from innerspace.motion.waymo import HZ, LANES, ROAD_LINES

NOW = 10
"""The current step of a scenario."""

LARGEST = 1 << 28
"""A file of more bytes than this is not read; one scenario has some millions."""

# where the numbers of painted lines begin among those of all map elements
_FIRST_ROAD_LINE = 5
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError, OSError)


@final
@dataclass(frozen=True)
class WaymoJson(Recorded):
    """Files ``*.json`` in the layout of GPUDrive, a scenario each; see ``Recorded`` for the settings."""

    patterns: ClassVar[tuple[str, ...]] = ("*.json",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.history > NOW + 1:
            raise ValueError(f"a scenario has {NOW + 1} steps of history; asked for are {self.history}")

    def _recordings(self, place: Path, record: str) -> Iterator[Recording | Skipped]:
        try:
            if (size := place.stat().st_size) > LARGEST:
                raise ValueError(f"it has {size} bytes; at most {LARGEST} are read")
            yield self._recording(json.loads(place.read_bytes()), record)
        except KeyError as error:
            yield Skipped(record, f"{error.args[0]} is missing")
        except _DAMAGE as error:
            yield Skipped(record, f"no exported scenario: {type(error).__name__}: {str(error)[:200]}")

    @QUIET
    def _recording(self, data: dict[str, Any], record: str) -> Recording:
        objects, remarks, whole = list[Any](data["objects"]), list[str](), list[int]()
        if not objects:
            raise ValueError("there are no objects")
        steps = len(objects[0]["valid"])
        for i, entry in enumerate(objects):
            lengths = {len(entry[name]) for name in ("position", "heading", "velocity", "valid")}
            if lengths == {steps}:
                whole.append(i)
        if lost := len(objects) - len(whole):
            remarks.append(f"{lost} objects have not {steps} states, as the first has: left out")
        kept = [objects[i] for i in whole]
        valid = np.array([entry["valid"] for entry in kept])
        heading = np.array([entry["heading"] for entry in kept], dtype=float)
        if valid.dtype != bool or valid.shape != (len(kept), steps) or heading.shape != valid.shape:
            raise ValueError("valid should hold true and false, and heading numbers, one for each step")
        if (abs(heading[valid & np.isfinite(heading)]) > 2 * np.pi).any():
            raise ValueError("headings beyond 2π are no radians; older exports have degrees")
        size = np.array([[entry[name] for name in ("length", "width", "height")] for entry in kept], dtype=float)
        asked = self._asked(data, len(objects), remarks)
        return Recording(
            name=str(data["scenario_id"] if data.get("scenario_id") else data.get("name", record)),
            category=[str(entry["type"]).lower() for entry in kept],
            position=np.stack([_points(entry["position"]) for entry in kept]),
            heading=heading,
            velocity=np.stack([_points(entry["velocity"]) for entry in kept]),
            size=np.repeat(size[:, None], steps, axis=1),
            valid=valid,
            asked=np.array([i in asked for i in whole], dtype=bool),
            lines=[line for road in data["roads"] for line in _line(road)],
            now=NOW,
            hz=HZ,
            remarks=remarks,
        )

    def _asked(self, data: dict[str, Any], count: int, remarks: list[str]) -> set[int]:
        """Which objects are to be forecast, and the ego vehicle; not needed where all are."""
        if self.targets == "all":
            return set()
        metadata = data["metadata"]
        named = {int(entry["track_index"]) for entry in metadata["tracks_to_predict"]}
        named.add(int(metadata["sdc_track_index"]))
        if absent := [i for i in named if not 0 <= i < count]:
            remarks.append(f"{len(absent)} objects to forecast are none of the {count}, as {absent[0]}")
        return named


def _points(given: list[dict[str, float]]) -> Float[np.ndarray, "points 2"]:
    return np.array([(point["x"], point["y"]) for point in given], dtype=float).reshape(-1, 2)


def _line(road: dict[str, Any]) -> list[tuple[str, np.ndarray]]:
    """A map feature as a line; driveways and what is not known are none."""
    element, points = road.get("map_element_id"), _points(road["geometry"])
    match road["type"]:
        case "lane":
            return drawn(LANES.get(element, "lane") if isinstance(element, int) else "lane", points)
        case "road_line":
            number = element - _FIRST_ROAD_LINE if isinstance(element, int) else 0
            return drawn(ROAD_LINES.get(number, "other_mark"), points)
        case "road_edge":
            return drawn("road_edge", points)
        case "crosswalk":
            return drawn("crossing", points, closed=True)
        case "speed_bump":
            return drawn("other_mark", points, closed=True)
        case "stop_sign":
            return [("other_mark", points[:1])] if len(points) else []
        case _:
            return []
