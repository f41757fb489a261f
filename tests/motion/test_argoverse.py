import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.feather as feather
import pyarrow.parquet as parquet
import pytest

from argoverse_files import POSES, Columns, ego_at, frame_times, lane, write_log, write_map, write_scenario, xyz
from innerspace.motion.argoverse import Argoverse2, Windows
from innerspace.motion.argoverse_map import SPACING, read_map
from innerspace.motion.argoverse_tracks import past_velocity
from innerspace.motion.framing import Framing, frame
from innerspace.motion.roads import RoadMap
from innerspace.motion.scenes import KINDS, LINE_KINDS, Scene
from innerspace.motion.sources import Loaded, Skipped, load

WINDOWS = Windows(history=11, future=60, stride=5)


def kinds(scene: Scene) -> list[str]:
    return [KINDS[kind] for kind in scene.kind]


# Scenarios


def test_a_scenario_keeps_agents_and_targets_those_seen_all_along(tmp_path: Path) -> None:
    write_scenario(tmp_path / "deep" / "one", "one")
    loaded = load(Argoverse2(tmp_path, WINDOWS))
    (scene,) = loaded.scenes
    assert loaded.skipped == []
    assert (scene.name, scene.group, scene.hz, scene.now, scene.valid.shape) == ("one", "one", 10.0, 49, (4, 110))
    assert kinds(scene) == ["vehicle", "vehicle", "pedestrian", "cyclist"]
    assert scene.target.tolist() == [0, 1, 3]
    assert scene.valid[2].tolist() == [step >= 45 for step in range(110)]
    np.testing.assert_allclose(scene.position[0, :, 0], 0.4 * np.arange(110))
    np.testing.assert_allclose(scene.velocity[3, 39:], [[9.0, 0.0]] * 71)
    assert scene.size[:, 0].tolist() == [4.3, 11.6, 0.7, 2.1]


def test_a_longer_history_needs_longer_tracks(tmp_path: Path) -> None:
    write_scenario(tmp_path, "one")
    (scene,) = load(Argoverse2(tmp_path, Windows(history=12, future=60))).scenes
    assert scene.target.tolist() == [0, 1]


def test_unknown_types_are_left_out_and_reported(tmp_path: Path) -> None:
    def rename(columns: Columns) -> None:
        columns["object_type"] = ["hovercraft" if kind == "bus" else kind for kind in columns["object_type"]]

    write_scenario(tmp_path, "one", rename)
    loaded = load(Argoverse2(tmp_path, WINDOWS))
    assert kinds(loaded.scenes[0]) == ["vehicle", "pedestrian", "cyclist"]
    assert loaded.skipped == [Skipped("one", "unknown object type 'hovercraft': 1 tracks left out")]


# Sensor logs


def test_a_log_stands_in_the_city_frame(tmp_path: Path) -> None:
    write_log(tmp_path / "log")
    loaded = load(Argoverse2(tmp_path, WINDOWS))
    assert loaded.skipped == []
    assert [scene.name for scene in loaded.scenes] == ["log@0", "log@5", "log@10"]
    scene = loaded.scenes[1]
    assert (scene.group, scene.now, scene.valid.shape) == ("log", 10, (3, 71))
    assert kinds(scene) == ["vehicle", "pedestrian", "vehicle"]
    ego, walker, parked = range(3)
    seconds = (frame_times(83)[5:76] - 1_000_000_000) / 1e9
    np.testing.assert_allclose(scene.position[parked], np.tile([7.0, 3.0], (71, 1)), atol=1e-9)
    np.testing.assert_allclose(scene.heading[parked], 0.5, atol=1e-9)
    np.testing.assert_allclose(scene.velocity[parked], 0.0, atol=1e-9)
    # frames come at uneven times, the speed is even
    np.testing.assert_allclose(scene.velocity[walker], np.tile([0.0, 2.0], (71, 1)), atol=1e-6)
    np.testing.assert_allclose(scene.position[ego], np.transpose(ego_at(seconds)[:2]), atol=1e-9)
    np.testing.assert_allclose(scene.heading[ego], ego_at(seconds)[2], atol=1e-9)
    assert scene.size.tolist() == [[4.877, 2.0, 1.473], [4.0, 2.0, 1.5], [4.0, 2.0, 1.5]]


def test_windows_share_their_arrays_and_know_who_is_seen_throughout(tmp_path: Path) -> None:
    write_log(tmp_path / "log")
    first, second, third = load(Argoverse2(tmp_path, WINDOWS)).scenes
    assert np.shares_memory(first.position, third.position)
    np.testing.assert_array_equal(first.position[:, 5:], second.position[:, :-5])
    # the pedestrian is not seen in frames 0 and 76
    assert [scene.target.tolist() for scene in (first, second, third)] == [[0, 2], [0, 1, 2], [0, 2]]


def test_a_dropped_frame_is_a_gap(tmp_path: Path) -> None:
    def drop(cuboids: Columns, _: Columns) -> None:
        lost = int(frame_times(83)[40])
        keep = [time != lost for time in cuboids["timestamp_ns"]]
        for name, column in cuboids.items():
            cuboids[name] = [entry for entry, kept in zip(column, keep, strict=True) if kept]

    write_log(tmp_path / "log", change=drop)
    loaded = load(Argoverse2(tmp_path, Windows(history=10, future=30, stride=1)))
    assert [scene.name for scene in loaded.scenes] == ["log@0", "log@41", "log@42", "log@43"]
    assert loaded.skipped == [Skipped("log", "no track is valid throughout 40 of the 44 windows")]


def test_a_pose_rotates_in_space(tmp_path: Path) -> None:
    def tilt(_: Columns, poses: Columns) -> None:
        count, half = len(poses["qw"]), np.sqrt(0.5)
        poses |= {"qw": [half] * count, "qx": [half] * count, "qy": [0.0] * count, "qz": [0.0] * count}
        poses |= {"tx_m": [1.0] * count, "ty_m": [2.0] * count}

    def place(cuboids: Columns, poses: Columns) -> None:
        tilt(cuboids, poses)
        cuboids |= {name: [value] * len(cuboids["qw"]) for name, value in (("tx_m", 3.0), ("ty_m", 4.0), ("tz_m", 5.0))}

    # a quarter turn about x takes (3, 4, 5) to (3, −5, 4)
    write_log(tmp_path / "log", change=place)
    scene = load(Argoverse2(tmp_path, WINDOWS)).scenes[0]
    np.testing.assert_allclose(scene.position[2], np.tile([4.0, -3.0], (71, 1)), atol=1e-9)


def test_velocity_tells_nothing_of_the_future() -> None:
    position = np.random.default_rng(0).normal(size=(1, 9, 2))
    valid = np.array([[True, True, True, False, True, False, True, True, True]])
    seconds = np.arange(9) / 10
    velocity, known = past_velocity(position, valid, seconds)
    assert known.tolist() == [[True, True, True, False, False, False, True, True, True]]
    np.testing.assert_allclose(velocity[0, 7], (position[0, 7] - position[0, 6]) * 10)
    np.testing.assert_array_equal(velocity[0, 0], velocity[0, 1])
    np.testing.assert_array_equal(velocity[0, 6], velocity[0, 7])
    moved = position.copy()
    moved[:, 8] += 1
    np.testing.assert_array_equal(past_velocity(moved, valid, seconds)[0][:, :8], velocity[:, :8])


def test_logs_may_hold_the_ego_vehicle_and_their_map_in_a_folder(tmp_path: Path) -> None:
    def add_ego(cuboids: Columns, _: Columns) -> None:
        swap = {"BICYCLE": "EGO_VEHICLE"}
        cuboids["category"] = [swap.get(name, name) for name in cuboids["category"]]

    path = write_log(tmp_path / "log", change=add_ego)
    (place,) = path.parent.glob("log_map*")
    (path.parent / "map").mkdir()
    place.rename(path.parent / "map" / place.name)
    scene = load(Argoverse2(tmp_path, WINDOWS)).scenes[0]
    assert kinds(scene) == ["vehicle", "pedestrian", "vehicle"]
    np.testing.assert_allclose(scene.position[0, 0], [0.0, 9.0], atol=1e-9)


# The map


def by_kind(road_map: RoadMap) -> dict[str, list[np.ndarray]]:
    found = dict[str, list[np.ndarray]]()
    for line, kind, valid in zip(road_map.line, road_map.kind, road_map.valid, strict=True):
        found.setdefault(LINE_KINDS[kind], []).append(line[valid])
    return found


def test_the_map_becomes_lines_of_every_kind(tmp_path: Path) -> None:
    lines = by_kind(read_map(write_map(tmp_path, "x")))
    count = {kind: len(pieces) for kind, pieces in lines.items()}
    # 40 m are 17 nodes, two pieces; the dashed boundary is shared, drawn the other way round; x = 0 is a tile's border
    assert count == {"lane": 2, "bus_lane": 2, "solid_mark": 2, "dashed_mark": 2, "crossing": 2, "road_edge": 5}
    np.testing.assert_allclose(lines["lane"][0][[0, -1]], [[0, 2], [22.5, 2]])
    np.testing.assert_allclose(lines["bus_lane"][1][-1], [0, -2])
    np.testing.assert_allclose(lines["road_edge"][0][0], [0, -5])
    np.testing.assert_allclose(lines["road_edge"][-1][-1], [0, 5])
    gaps = [np.linalg.norm(np.diff(line, axis=0), axis=-1).max() for pieces in lines.values() for line in pieces]
    assert 0.5 * SPACING < max(gaps) <= SPACING + 1e-9


@pytest.mark.parametrize(
    ("mark", "kind"),
    [
        ("SOLID_BLUE", "solid_mark"),
        ("DOUBLE_SOLID_YELLOW", "solid_mark"),
        ("DASHED_WHITE", "dashed_mark"),
        ("DOUBLE_DASH_WHITE", "dashed_mark"),
        ("SOLID_DASH_YELLOW", "other_mark"),
        ("DASH_SOLID_WHITE", "other_mark"),
        ("UNKNOWN", "other_mark"),
        ("NONE", None),
    ],
)
def test_paint_has_a_kind(tmp_path: Path, mark: str, kind: str | None) -> None:
    segment = lane(xyz((0, 2), (9, 2)), xyz((0, 0), (9, 0)), (mark, "NONE"))
    place = tmp_path / "map.json"
    place.write_text(json.dumps({"lane_segments": {"1": segment}, "pedestrian_crossings": {}, "drivable_areas": {}}))
    assert set(by_kind(read_map(place))) == {"lane"} | ({kind} if kind else set())


def test_a_scene_keeps_the_map_near_its_targets(tmp_path: Path) -> None:
    road_map = read_map(write_map(tmp_path, "x"))
    assert len(road_map.near(np.array([[0.0, 0.0], [40.0, 0.0]]), 100.0).line) == len(road_map.line)
    assert len(road_map.near(np.array([[500.0, 0.0]]), 100.0).line) == 0
    near = road_map.near(np.array([[11.5, 0.0]]), 3.0)
    assert set(by_kind(near)) == {"lane", "dashed_mark", "crossing"}


# Real data


@pytest.fixture(scope="module")
def real(assets: Path) -> tuple[Path, Loaded]:
    place = assets / "motion" / "av2"
    if not place.is_dir():
        pytest.skip(f"no Argoverse 2 data at {place}")
    return place, load(Argoverse2(place, WINDOWS))


def test_the_real_scenario(real: tuple[Path, Loaded]) -> None:
    place, loaded = real
    scene = loaded.scenes[0]
    (path,) = place.rglob("*.parquet")
    table = parquet.read_table(path, columns=["track_id", "object_type"]).to_pydict()
    types = dict(zip(table["track_id"], table["object_type"], strict=True))
    assert len(types) == 58
    agents = sorted(track for track, kind in types.items() if kind in ("vehicle", "bus", "pedestrian"))
    assert len(agents) == len(scene.kind) == 44
    focal = agents.index("138951")
    assert focal in scene.target
    assert scene.valid[scene.target, 39:].all()
    speed = np.linalg.norm(scene.velocity[focal], axis=-1)
    assert (round(speed.mean(), 1), round(speed.max(), 1)) == (3.3, 10.3)
    (place_of_map,) = path.parent.glob("*.json")
    lines = by_kind(read_map(place_of_map))
    assert len(lines["crossing"]) == 2 * 6
    starts = {kind: len({piece[0].tobytes() for piece in lines[kind]}) for kind in ("lane", "bike_lane")}
    assert starts["lane"] >= 34
    assert starts["bike_lane"] >= 37


def test_the_real_logs(real: tuple[Path, Loaded]) -> None:
    loaded = real[1]
    assert [(skipped.name[:8], skipped.reason) for skipped in loaded.skipped] == [("b87683ae", f"no {POSES} beside it")]
    windows = Counter(scene.group[:8] for scene in loaded.scenes[1:])
    assert windows == {"3b3570b4": 18, "3bffdcff": 18, "7fab2350": 18, "adcf7d18": 18}
    spread = list[float]()
    for scene in loaded.scenes[1:]:
        speed = np.linalg.norm(scene.velocity[scene.valid], axis=-1)
        assert speed.max() < 20
        position, heading = scene.position[scene.target], scene.heading[scene.target]
        parked = np.linalg.norm(position[:, -1] - position[:, 0], axis=-1) < 0.1
        spread += np.ptp(position[parked], axis=1).max(-1).tolist()
        # who drives, drives where it points
        velocity = scene.velocity[scene.target]
        course = np.arctan2(velocity[..., 1], velocity[..., 0])
        off = np.angle(np.exp(1j * (course - heading)))[np.linalg.norm(velocity, axis=-1) > 3]
        assert off.size == 0 or np.median(abs(off)) < 0.1
    # though the ego vehicle drives on, what is parked stays where it is
    assert len(spread) > 400
    assert np.median(spread) < 0.2


def test_the_ego_vehicle_is_at_its_pose(real: tuple[Path, Loaded]) -> None:
    place, loaded = real
    for folder in {path.parent for path in place.rglob(POSES)}:
        scene = next(scene for scene in loaded.scenes if scene.name == f"{folder.name}@0")
        poses = feather.read_table(folder / POSES, memory_map=False).to_pydict()
        first = min(feather.read_table(folder / "annotations.feather", memory_map=False)["timestamp_ns"].to_pylist())
        row = poses["timestamp_ns"].index(first)
        gap = np.linalg.norm(scene.position[:, 0] - [poses["tx_m"][row], poses["ty_m"][row]], axis=-1)
        assert gap[scene.valid[:, 0]].min() < 1e-9


def test_real_scenes_can_be_framed(real: tuple[Path, Loaded]) -> None:
    scenes = real[1].scenes[::20]
    batch = frame(scenes, Framing(history=11, future=60))
    assert len(batch) == sum(len(scene.target) for scene in scenes)
    assert batch.future_valid.all()
    assert batch.target.valid.all()
    assert batch.future.isfinite().all()
    assert batch.line_valid.any(-1).all()
