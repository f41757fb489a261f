"""Tiny valid files of recorded traffic, written from simulated scenes; ``change`` may spoil what is written."""

import json
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from innerspace.motion.scenario_arrays import flatten
from innerspace.motion.scenes import KINDS, LINE_KINDS, Scene
from innerspace.motion.simulate import Simulation, simulate

Plain = dict[str, Any]
"""A scenario as nested lists, in GPUDrive's layout, with ``seconds`` and ``now`` besides."""

Change = Callable[[Plain], object]
EGO = 2
_ROADS = {"lane": ("lane", 2), "road_edge": ("road_edge", 15), "crossing": ("crosswalk", 18)}


def traffic(count: int, *, history: int = 11, future: int = 80, seed: int = 0, dropout: float = 0.02) -> list[Scene]:
    """Scenes of ten steps a second with at least four agents, of which the first two are to be forecast."""
    settings = Simulation(scenes=8 * count, seed=seed, history=history, future=future, dropout=dropout)
    scenes = [scene for scene in simulate(settings).scenes if len(scene.kind) >= 4]
    assert len(scenes) >= count
    return scenes[:count]


def xy(points: np.ndarray) -> list[dict[str, float]]:
    return [{"x": float(x), "y": float(y), "z": 1.5} for x, y in points]


def plain(scene: Scene) -> Plain:
    objects = [
        {
            "id": 100 + i,
            "type": KINDS[scene.kind[i]],
            "position": xy(scene.position[i]),
            "velocity": xy(scene.velocity[i]),
            "heading": scene.heading[i].tolist(),
            "valid": scene.valid[i].tolist(),
            "length": scene.size[i, 0],
            "width": scene.size[i, 1],
            "height": scene.size[i, 2],
            "goalPosition": {"x": 0.0, "y": 0.0, "z": 0.0},
        }
        for i in range(len(scene.kind))
    ]
    roads = list[Plain]()
    for i, (line, kind, valid) in enumerate(zip(scene.line, scene.line_kind, scene.line_valid, strict=True)):
        name, element = _ROADS[LINE_KINDS[kind]]
        roads.append({"id": i, "type": name, "map_element_id": element, "geometry": xy(line[valid])})
    return {
        "name": f"{scene.name}.json",
        "scenario_id": scene.name,
        "objects": objects,
        "roads": roads,
        "tl_states": {},
        "metadata": {
            "sdc_track_index": EGO,
            "objects_of_interest": [100],
            "tracks_to_predict": [{"track_index": int(i), "difficulty": 1} for i in scene.target],
        },
        "seconds": (np.arange(scene.valid.shape[1]) / scene.hz).tolist(),
        "now": scene.now,
    }


def changed(scene: Scene, change: Change | None) -> Plain:
    data = plain(scene)
    if change is not None:
        change(data)
    return data


# TFRecord: checksums by the table of the reflected polynomial 0x82F63B78


def _table() -> list[int]:
    table = list[int]()
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


TABLE = _table()


def crc32c(data: bytes) -> int:
    rest = 0xFFFFFFFF
    for byte in data:
        rest = rest >> 8 ^ TABLE[(rest ^ byte) & 0xFF]
    return rest ^ 0xFFFFFFFF


def stored_checksum(data: bytes) -> bytes:
    whole = crc32c(data)
    rotated = (whole >> 15 | whole << 17) & 0xFFFFFFFF
    return ((rotated + 0xA282EAD8) % 2**32).to_bytes(4, "little")


def record(payload: bytes) -> bytes:
    length = len(payload).to_bytes(8, "little")
    return length + stored_checksum(length) + payload + stored_checksum(payload)


def write_shard(path: Path, payloads: Iterable[bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(record(payload) for payload in payloads))
    return path


# Protobuf's wire format by hand, so that the numbers of the reader's messages are checked by other means


def varint(value: int) -> bytes:
    value, out = value % 2**64, bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def whole(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def double(number: int, value: float) -> bytes:
    return varint(number << 3 | 1) + struct.pack("<d", value)


def single(number: int, value: float) -> bytes:
    return varint(number << 3 | 5) + struct.pack("<f", value)


def nested(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


_CATEGORIES = {"unset": 0, "vehicle": 1, "pedestrian": 2, "cyclist": 3, "other": 4}
_STATE = ((8, "heading"), (5, "length"), (6, "width"), (7, "height"))


def message(data: Plain) -> bytes:
    """A scenario of Waymo's proto; what has the value None is not written."""
    out = nested(5, data["scenario_id"].encode()) if data["scenario_id"] is not None else b""
    out += b"".join(double(1, second) for second in data["seconds"])
    out += b"".join(nested(2, _track(entry, len(data["seconds"]))) for entry in data["objects"])
    # a traffic light and objects of interest, which the reader does not know
    out += nested(7, nested(1, whole(1, 3) + whole(2, 4))) + nested(4, varint(100))
    out += b"".join(nested(8, _feature(road)) for road in data["roads"])
    meta = data["metadata"]
    out += whole(6, meta["sdc_track_index"]) if meta["sdc_track_index"] is not None else b""
    out += whole(10, data["now"]) if data["now"] is not None else b""
    return out + b"".join(
        nested(11, whole(1, entry["track_index"]) + whole(2, 1)) for entry in meta["tracks_to_predict"]
    )


def _track(entry: Plain, steps: int) -> bytes:
    out = whole(1, entry["id"])
    out += whole(2, _CATEGORIES.get(entry["type"], 9)) if entry["type"] is not None else b""
    for step in range(min(steps, len(entry["valid"]))):
        state = whole(11, entry["valid"][step])
        fixed = {**entry, "heading": entry["heading"][step]}
        state += b"".join(single(number, fixed[name]) for number, name in _STATE if fixed[name] is not None)
        for first, name, form in ((2, "position", double), (9, "velocity", single)):
            place = entry[name][step]
            state += b"".join(form(first + i, place[k]) for i, k in enumerate("xy") if place[k] is not None)
        out += nested(3, state + double(4, 1.5))
    return out


def _feature(road: Plain) -> bytes:
    points = [
        b"".join(double(i, point[k]) for i, k in ((1, "x"), (2, "y"), (3, "z")) if point[k] is not None)
        for point in road["geometry"]
    ]
    element, name = road["map_element_id"], road["type"]
    number, field, kind = {
        "lane": (3, 8, whole(2, element)),
        "road_line": (4, 2, whole(1, element - 5)),
        "road_edge": (5, 2, whole(1, element - 14)),
        "stop_sign": (7, 2, whole(1, 17)),
        "crosswalk": (8, 1, b""),
        "speed_bump": (9, 1, b""),
        "driveway": (10, 1, b""),
    }[name]
    return whole(1, road["id"]) + nested(number, kind + b"".join(nested(field, point) for point in points))


def write_waymo(path: Path, scenes: Sequence[Scene], change: Change | None = None) -> Path:
    return write_shard(path, [message(changed(scene, change)) for scene in scenes])


def write_json(path: Path, scene: Scene, change: Change | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(changed(scene, change)))
    return path


def scenario_net(data: Plain) -> Plain:
    """The dictionary that ScenarioNet pickles."""
    tracks = Plain()
    for entry in data["objects"]:
        steps = len(entry["valid"])
        state = {
            "position": np.array([[p["x"], p["y"], p["z"]] for p in entry["position"]], np.float32),
            "velocity": np.array([[p["x"], p["y"]] for p in entry["velocity"]], np.float32),
            "heading": np.array(entry["heading"], np.float32),
            "valid": np.array(entry["valid"]),
        }
        state |= {name: np.full(steps, entry[name], np.float32) for name in ("length", "width", "height")}
        tracks[str(entry["id"])] = {"type": entry["type"].upper(), "state": state, "metadata": {"dataset": "x"}}
    names = {"lane": "LANE_SURFACE_STREET", "road_edge": "ROAD_EDGE_BOUNDARY", "crosswalk": "CROSSWALK"}
    features = {
        str(road["id"]): {
            "type": names[road["type"]],
            "polygon" if road["type"] == "crosswalk" else "polyline": np.array(
                [[p["x"], p["y"], p["z"]] for p in road["geometry"]], np.float32
            ),
        }
        for road in data["roads"]
    }
    ids = list(tracks)
    return {
        "id": data["scenario_id"],
        "version": "x",
        "length": len(data["seconds"]),
        "tracks": tracks,
        "map_features": features,
        "dynamic_map_states": {},
        "metadata": {
            "scenario_id": data["scenario_id"],
            "ts": np.array(data["seconds"], np.float32),
            "current_time_index": data["now"],
            "sdc_id": ids[data["metadata"]["sdc_track_index"]],
            "tracks_to_predict": {
                ids[entry["track_index"]]: {"track_index": entry["track_index"]}
                for entry in data["metadata"]["tracks_to_predict"]
            },
        },
    }


def write_arrays(
    path: Path,
    scene: Scene,
    change: Change | None = None,
    after: Callable[[dict[str, np.ndarray]], object] | None = None,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = flatten(scenario_net(changed(scene, change)))
    if after is not None:
        after(arrays)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def episode(scene: Scene, center: np.ndarray, yaw: float, prefix: str, steps: int, agents: int = 16) -> Plain:
    """The arrays of an agent group in the frame of an episode."""
    n, turn = len(scene.kind), np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
    shapes = {"valid": (), "pos": (2,), "vel": (2,), "yaw_bbox": (1,)}
    arrays = {name: np.zeros((steps, agents, *tail), np.float32) for name, tail in shapes.items()}
    there = scene.valid[:, :steps].T
    arrays["valid"] = np.zeros((steps, agents), dtype=bool)
    arrays["valid"][:, :n] = there
    arrays["pos"][:, :n] = np.where(there[..., None], (scene.position[:, :steps].swapaxes(0, 1) - center) @ turn, 0)
    arrays["vel"][:, :n] = scene.velocity[:, :steps].swapaxes(0, 1) @ turn
    arrays["yaw_bbox"][:, :n, 0] = np.where(there, scene.heading[:, :steps].T - yaw, 0)
    kind, role, size = np.zeros((agents, 3), dtype=bool), np.zeros((agents, 3), dtype=bool), np.zeros((agents, 3))
    kind[np.arange(n), scene.kind], role[EGO, 0], role[scene.target, 2], size[:n] = True, True, True, scene.size
    arrays |= {"type": kind, "role": role, "size": size.astype(np.float32)}
    return {f"{prefix}agent/{name}": array for name, array in arrays.items()}


def write_hptr(
    path: Path,
    scenes: Sequence[Scene],
    split: str = "training",
    change: Callable[[Plain], object] | None = None,
    kinds: Sequence[str] = ("", "lane", "", "", "road_edge", "", "", "", "", "", "crossing"),
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["data_len"] = len(scenes)
        for i, scene in enumerate(scenes):
            center, yaw = np.array([30.0 - i, -12.5]), 0.7 + i
            steps, past = scene.valid.shape[1], scene.now + 1
            arrays = Plain()
            if split != "testing":
                arrays |= episode(scene, center, yaw, "", steps)
            if split != "training":
                arrays |= episode(scene, center, yaw, "history/", past)
            turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
            line = (scene.line - center) @ turn
            count, nodes = len(line), line.shape[1] - 1
            arrays["map/valid"] = np.zeros((count + 2, 20), dtype=bool)
            arrays["map/valid"][:count, :nodes] = True
            arrays["map/type"] = np.zeros((count + 2, 11), dtype=bool)
            for row, kind in enumerate(scene.line_kind):
                arrays["map/type"][row, kinds.index(LINE_KINDS[kind])] = True
            for name, values in (("pos", line[:, :-1]), ("dir", np.diff(line, axis=1))):
                arrays[f"map/{name}"] = np.zeros((count + 2, 20, 2), np.float32)
                arrays[f"map/{name}"][:count, :nodes] = values
            if change is not None:
                change(arrays)
            group = file.create_group(str(i))
            group.attrs["scenario_id"], group.attrs["with_map"] = scene.name, True
            group.attrs["scenario_center"], group.attrs["scenario_yaw"] = center, yaw
            for name, array in arrays.items():
                group.create_dataset(name, data=array, compression="gzip", shuffle=True)
    return path
