"""Tiny valid files in the two layouts of Argoverse 2; ``change`` may spoil the columns before they are written."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as parquet

Columns = dict[str, list]
POSES = "city_SE3_egovehicle.feather"


def xyz(*points: tuple[float, float]) -> list[dict[str, float]]:
    return [{"x": x, "y": y, "z": 0.0} for x, y in points]


def lane(
    left: list, right: list, marks: tuple[str, str] = ("NONE", "NONE"), kind: str = "VEHICLE", **more: list
) -> dict:
    names = {"left_lane_boundary": left, "right_lane_boundary": right, "lane_type": kind}
    return names | {"left_lane_mark_type": marks[0], "right_lane_mark_type": marks[1]} | more


def road() -> dict:
    upper, middle, lower = (xyz((0, y), (40, y)) for y in (4, 0, -4))
    return {
        "lane_segments": {
            "1": lane(upper, middle, ("SOLID_WHITE", "DASHED_YELLOW")),
            "2": lane(lower[::-1], middle[::-1], ("NONE", "DASHED_YELLOW"), "BUS", centerline=xyz((40, -2), (0, -2))),
        },
        "pedestrian_crossings": {"3": {"edge1": xyz((10, -4), (10, 4)), "edge2": xyz((13, -4), (13, 4))}},
        "drivable_areas": {"4": {"area_boundary": xyz((0, 5), (0, -5), (41, -5), (42, 5))}},
    }


def write_map(folder: Path, name: str) -> Path:
    path = folder / f"log_map_archive_{name}.json"
    path.write_text(json.dumps(road()))
    return path


def write_scenario(folder: Path, name: str, change: Callable[[Columns], object] = lambda columns: None) -> Path:
    """A vehicle at 4 m/s along x, a bus that stands, a pedestrian seen too late, a rider, a cone."""
    folder.mkdir(parents=True, exist_ok=True)
    columns: Columns = {}
    agents = (
        ("vehicle", 0, 4.0),
        ("bus", 0, 0.0),
        ("pedestrian", 45, 1.0),
        ("motorcyclist", 39, 9.0),
        ("static", 0, 0.0),
    )
    for number, (kind, first, speed) in enumerate(agents):
        for step in range(first, 110):
            row = {"track_id": f"t{number}", "object_type": kind, "timestep": step, "num_timestamps": 110}
            row |= {"position_x": speed * step / 10, "position_y": 3.0 * number, "heading": 0.0}
            for key, value in (row | {"velocity_x": speed, "velocity_y": 0.0}).items():
                columns.setdefault(key, []).append(value)
    change(columns)
    path = folder / f"scenario_{name}.parquet"
    parquet.write_table(pa.table(columns), path)
    write_map(folder, name)
    return path


def yaw_quaternion(yaw: float) -> dict[str, float]:
    return {"qw": np.cos(yaw / 2), "qx": 0.0, "qy": 0.0, "qz": np.sin(yaw / 2)}


def ego_at(seconds: float) -> tuple[float, float, float]:
    """The ego vehicle drives a circle of radius 20 m at 4 m/s."""
    yaw = 0.2 * seconds
    return 20 * np.sin(yaw), 20 - 20 * np.cos(yaw), yaw


def frame_times(count: int) -> np.ndarray:
    """About 10 Hz, with the jitter of real logs."""
    return 1_000_000_000 + np.round(1e8 * (np.arange(count) + 0.03 * np.sin(np.arange(count)))).astype(int)


def write_log(
    folder: Path, frames: int = 83, change: Callable[[Columns, Columns], object] = lambda cuboids, poses: None
) -> Path:
    """A parked car at (7, 3) with heading 0.5, a pedestrian who walks up at 2 m/s, an empty bicycle."""
    folder.mkdir(parents=True, exist_ok=True)
    cuboids, poses = Columns(), Columns()
    for number, time in enumerate(frame_times(frames)):
        seconds = (int(time) - 1_000_000_000) / 1e9
        x, y, yaw = ego_at(seconds)
        pose = {"timestamp_ns": int(time), **yaw_quaternion(yaw), "tx_m": x, "ty_m": y, "tz_m": 1.0}
        city = {
            "REGULAR_VEHICLE": (7.0, 3.0, 0.5),
            "PEDESTRIAN": (-5.0, 2 * seconds, np.pi / 2),
            "BICYCLE": (0.0, 9.0, 0.0),
        }
        for category, (at_x, at_y, heading) in city.items():
            ahead, left = at_x - x, at_y - y
            row = {"timestamp_ns": int(time), "track_uuid": category[:3], "category": category}
            row |= {"length_m": 4.0, "width_m": 2.0, "height_m": 1.5, **yaw_quaternion(heading - yaw), "tz_m": 0.0}
            row |= {"tx_m": np.cos(yaw) * ahead + np.sin(yaw) * left, "ty_m": -np.sin(yaw) * ahead + np.cos(yaw) * left}
            if not (category == "PEDESTRIAN" and number in (0, 76)):
                for key, value in row.items():
                    cuboids.setdefault(key, []).append(value)
        for key, value in pose.items():
            poses.setdefault(key, []).append(value)
    change(cuboids, poses)
    feather.write_feather(pa.table(cuboids), folder / "annotations.feather")
    feather.write_feather(pa.table(poses), folder / POSES)
    write_map(folder, f"{folder.name}____PIT_city_1")
    return folder / "annotations.feather"
