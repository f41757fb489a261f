"""Scenarios of Waymo's and exported ones, written with a change, and what is read of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from innerspace.motion.scenes import Scene
from innerspace.motion.sources import SceneSource, Skipped
from innerspace.motion.waymo import WaymoScenarios
from innerspace.motion.waymo_json import WaymoJson
from motion.recorded import Plain, write_json, write_waymo, xy

BOX = np.array([[0.0, 0.0], [8.0, 0.0], [8.0, 3.0], [0.0, 3.0]])
LINE = np.array([[0.0, 5.0], [30.0, 5.0]])


def everything(source: SceneSource) -> tuple[list[Scene], list[Skipped]]:
    found = [item for name in source.records() for item in source.read(name)]
    return [item for item in found if isinstance(item, Scene)], [item for item in found if isinstance(item, Skipped)]


def road(kind: str, element: int, points: np.ndarray) -> Plain:
    return {"id": 1, "type": kind, "map_element_id": element, "geometry": xy(points)}


def only(*roads: Plain) -> Callable[[Plain], None]:
    return lambda data: data.update(roads=list(roads))


def write(path: Path, form: str, scene: Scene, change: Callable[[Plain], Any]) -> SceneSource:
    if form == "json":
        write_json(path / "a.json", scene, change)
        return WaymoJson(path)
    write_waymo(path / "a.tfrecord", [scene], change)
    return WaymoScenarios(path)


def empty(*names: str) -> Callable[[Plain], None]:
    def change(data: Plain) -> None:
        for name in names:
            data[name] = [] if isinstance(data[name], list) else None

    return change
