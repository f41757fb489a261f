import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from innerspace.motion import waymo
from innerspace.motion.scenes import LINE_KINDS
from innerspace.motion.sources import Skipped
from innerspace.motion.waymo import WaymoScenarios
from innerspace.motion.waymo_json import WaymoJson
from innerspace.motion.waymo_messages import message_class
from motion.recorded import (
    EGO,
    Plain,
    message,
    nested,
    plain,
    record,
    single,
    traffic,
    varint,
    whole,
    write_json,
    write_shard,
    write_waymo,
)
from motion.scenarios import BOX, LINE, empty, everything, only, road, write

# The map; the numbers are those of all map elements, from which those of lanes and lines follow


@pytest.mark.parametrize("form", ["waymo", "json"])
@pytest.mark.parametrize(
    ("name", "element", "kind"),
    [
        *(("lane", element, kind) for element, kind in enumerate(("lane", "lane", "lane", "bike_lane"))),
        ("road_line", 5, "other_mark"),
        *(("road_line", element, "dashed_mark") for element in (6, 9, 10)),
        *(("road_line", element, "solid_mark") for element in (7, 8, 11, 12)),
        ("road_line", 13, "other_mark"),
        *(("road_edge", element, "road_edge") for element in (14, 15, 16)),
        ("crosswalk", 18, "crossing"),
        ("speed_bump", 19, "other_mark"),
        ("stop_sign", 17, "other_mark"),
        ("driveway", 20, None),
    ],
)
def test_map_features_become_lines(form: str, name: str, element: int, kind: str | None, tmp_path: Path) -> None:
    scene, near = traffic(1, dropout=0)[0], 0.0
    near = scene.position[0, scene.now]
    closed = name in ("crosswalk", "speed_bump")
    shape = {"crosswalk": BOX, "speed_bump": BOX, "driveway": BOX, "stop_sign": BOX[:1]}.get(name, LINE) + near
    (read,), skipped = everything(write(tmp_path, form, scene, only(road(name, element, shape))))
    assert skipped == []
    assert {LINE_KINDS[i] for i in read.line_kind} == ({kind} if kind else set())
    nodes = read.line[read.line_valid] - near
    if name == "stop_sign":
        np.testing.assert_allclose(nodes, [[0, 0]], atol=1e-9)
    elif kind:
        # 30 m in steps of 1 m are 31 nodes, and pieces of ten share their ends; 22 m around the box are 23
        assert len(nodes) == (23 + 2 if closed else 31 + 3)
        np.testing.assert_allclose(nodes[-1], BOX[0] if closed else LINE[1], atol=1e-9)


@pytest.mark.parametrize("form", ["waymo", "json"])
def test_a_point_is_no_line(form: str, tmp_path: Path) -> None:
    scene = traffic(1, dropout=0)[0]
    place = scene.position[:1, scene.now]
    pair = np.repeat(place, 2, axis=0)
    roads = only(
        road("lane", 2, place), road("road_edge", 15, pair), road("crosswalk", 18, pair), road("lane", 2, BOX[:0])
    )
    (read,), skipped = everything(write(tmp_path, form, scene, roads))
    assert skipped == []
    assert len(read.line) == 0


def test_nodes_stand_as_close_as_asked(tmp_path: Path) -> None:
    scene = traffic(1, dropout=0)[0]
    write_waymo(tmp_path / "a.tfrecord", [scene], only(road("lane", 2, LINE + scene.position[0, 10])))
    (read,), _ = everything(WaymoScenarios(tmp_path, spacing=2.5))
    assert read.line_valid.sum() == 13 + 1


# Scenarios


def test_shards_are_records_and_keep_their_order(tmp_path: Path) -> None:
    scenes = traffic(4)
    names = ["b/training.tfrecord-00000-of-00002", "b/training.tfrecord-00001-of-00002", "a.tfrecord"]
    for name, part in zip(names, (scenes[:2], scenes[2:3], scenes[3:]), strict=True):
        write_waymo(tmp_path / name, part)
    source = WaymoScenarios(tmp_path, seen=0.5)
    assert source.records() == [names[2], *names[:2]]
    assert [scene.name for scene in everything(source)[0]] == [scenes[i].name for i in (3, 0, 1, 2)]


def test_a_damaged_record_does_not_stop_the_others(tmp_path: Path) -> None:
    scenes = traffic(4)
    good = [message(plain(scene)) for scene in scenes]
    garbage = b"\xff" * 50
    write_shard(tmp_path / "a.tfrecord", [good[0], garbage, good[1]])
    path = write_shard(tmp_path / "b.tfrecord", [good[2], good[3]])
    path.write_bytes(path.read_bytes()[:-7])
    found, skipped = everything(WaymoScenarios(tmp_path, seen=0.5))
    assert [scene.name for scene in found] == [scene.name for scene in scenes[:3]]
    place = len(record(good[0]))
    assert skipped[0].name == f"a.tfrecord at byte {place}"
    assert skipped[0].reason.startswith("no scenario: ")
    end = len(record(good[2])) + len(record(good[3]))
    assert skipped[1] == Skipped(
        "b.tfrecord", f"byte {len(record(good[2]))}: a record should end at byte {end}, but the file does at {end - 7}"
    )


def test_scenarios_of_the_test_set_have_no_future(tmp_path: Path) -> None:
    scene = traffic(1, dropout=0)[0]

    def cut(data: Plain) -> None:
        data["seconds"] = data["seconds"][:11]

    write_waymo(tmp_path / "a.tfrecord", [scene], cut)
    assert everything(WaymoScenarios(tmp_path))[0] == []
    (read,), skipped = everything(WaymoScenarios(tmp_path, future=0))
    assert skipped == []
    assert read.valid.shape[1] == 11
    assert read.target.tolist() == [0, 1, EGO]


def lose(agent: int, name: str, axis: str | None = None) -> Callable[[Plain], None]:
    def change(data: Plain) -> None:
        entry = data["objects"][agent]
        if axis:
            entry[name][20][axis] = None
        elif isinstance(entry[name], list):
            entry[name][20] = None
        else:
            entry[name] = None

    return change


MISSING: dict[str, tuple[Callable[[Plain], None], str]] = {
    "id": (empty("scenario_id"), "scenario_id is missing"),
    "now": (empty("now"), "current_time_index is missing"),
    "times": (empty("seconds"), "timestamps_seconds is missing"),
    "tracks": (empty("objects"), "tracks is missing"),
    "late": (lambda data: data.update(now=91), "the current step should be in 0…90, it is 91"),
    "early": (lambda data: data.update(now=-1), "the current step should be in 0…90, it is -1"),
}


@pytest.mark.parametrize("what", MISSING)
def test_a_scenario_without_a_field_is_skipped(what: str, tmp_path: Path) -> None:
    change, reason = MISSING[what]
    write_waymo(tmp_path / "a.tfrecord", traffic(1, dropout=0), change)
    scenes, (skip,) = everything(WaymoScenarios(tmp_path))
    assert scenes == []
    assert skip.reason == reason


PARTS: dict[str, tuple[Callable[[Plain], None], str, bool]] = {
    "center_x": (lose(3, "position", "x"), "center_x is missing 1 times: what needs it is left out", True),
    "center_y": (lose(3, "position", "y"), "center_y is missing 1 times: what needs it is left out", True),
    "velocity_y": (lose(3, "velocity", "y"), "velocity_y is missing 1 times: what needs it is left out", True),
    "heading": (lose(3, "heading"), "heading is missing 1 times: what needs it is left out", True),
    "width": (lose(3, "width"), "width is missing 91 times: what needs it is left out", False),
    "type": (lose(3, "type"), "object_type is missing 1 times: what needs it is left out", False),
    "states": (
        lambda data: data["objects"][3].update(valid=data["objects"][3]["valid"][:-1]),
        "1 tracks have not 91 states, one for each time: left out",
        False,
    ),
}


@pytest.mark.parametrize("what", PARTS)
def test_a_track_or_state_without_a_field_is_left_out(what: str, tmp_path: Path) -> None:
    change, reason, kept = PARTS[what]
    given = traffic(1, dropout=0)[0]
    write_waymo(tmp_path / "a.tfrecord", [given], change)
    (scene,), (skip,) = everything(WaymoScenarios(tmp_path))
    assert (skip.name, skip.reason) == (scene.name, reason)
    assert len(scene.kind) == len(given.kind) - (not kept)
    if kept:
        assert scene.valid[3].tolist() == [step != 20 for step in range(91)]


def test_zero_is_no_missing_field(tmp_path: Path) -> None:
    def rest(data: Plain) -> None:
        entry = data["objects"][3]
        entry["heading"] = [0.0] * 91
        entry["velocity"] = [{"x": 0.0, "y": 0.0}] * 91
        entry["position"] = [{"x": 0.0, "y": 0.0}] * 91

    write_waymo(tmp_path / "a.tfrecord", traffic(1, dropout=0), rest)
    (scene,), skipped = everything(WaymoScenarios(tmp_path))
    assert skipped == []
    assert scene.valid[3].all()


def test_a_point_without_a_coordinate_takes_its_line_along(tmp_path: Path) -> None:
    def change(data: Plain) -> None:
        data["roads"][0]["geometry"][1]["y"] = None

    given = traffic(1, dropout=0)[0]
    write_waymo(tmp_path / "a.tfrecord", [given], change)
    (_,), (skip,) = everything(WaymoScenarios(tmp_path))
    assert skip.reason == "lane.y is missing 1 times: what needs it is left out"


def test_tracks_that_are_left_out_do_not_shift_the_targets(tmp_path: Path) -> None:
    given = traffic(1, dropout=0)[0]

    def change(data: Plain) -> None:
        data["objects"][0]["type"] = "other"
        data["objects"][1]["valid"] = data["objects"][1]["valid"][:-1]
        data["metadata"]["tracks_to_predict"] = [{"track_index": i} for i in (0, 1, 3, 77, -2)]

    write_waymo(tmp_path / "a.tfrecord", [given], change)
    (scene,), skipped = everything(WaymoScenarios(tmp_path))
    np.testing.assert_allclose(scene.position[scene.target], given.position[[2, 3]], atol=1e-9)
    reasons = [skip.reason for skip in skipped]
    # types that are known not to be agents are left out without a word
    assert reasons[0] == "1 tracks have not 91 states, one for each time: left out"
    assert reasons[1].startswith(f"2 tracks to forecast are none of the {len(given.kind)}, as ")


def test_without_an_ego_vehicle_the_others_remain(tmp_path: Path) -> None:
    write_waymo(
        tmp_path / "a.tfrecord", traffic(1, dropout=0), lambda data: data["metadata"].update(sdc_track_index=None)
    )
    (scene,), (skip,) = everything(WaymoScenarios(tmp_path))
    assert scene.target.tolist() == [0, 1]
    assert skip.reason == "sdc_track_index is missing: the ego vehicle is no target"
    (_,), skipped = everything(WaymoScenarios(tmp_path, targets="all"))
    assert skipped == []


def test_fields_that_are_not_known_are_ignored(tmp_path: Path) -> None:
    scene = traffic(1, dropout=0)[0]
    more = nested(12, b"laser") + varint(900 << 3) + varint(5) + single(901, 2.0)
    write_shard(tmp_path / "a.tfrecord", [more + message(plain(scene)) + more])
    (read,), skipped = everything(WaymoScenarios(tmp_path))
    assert skipped == []
    np.testing.assert_allclose(read.position, scene.position)


@pytest.mark.parametrize("part", ["tracks", "points"])
def test_many_empty_messages_take_no_memory(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = plain(traffic(1, dropout=0)[0])
    payload = message(data)
    if part == "tracks":
        monkeypatch.setattr(waymo, "MOST_STATES", 91 * 20)
        payload += nested(2, whole(2, 1) + nested(3, b"") * 91) * 20
        reason = f"there are {91 * (20 + len(data['objects']))} states; at most {91 * 20} are read"
    else:
        monkeypatch.setattr(waymo, "MOST_NODES", 5000)
        payload += nested(8, nested(3, nested(8, b"") * 6000))
        reason = "the map has more than 5000 points"
    write_shard(tmp_path / "a.tfrecord", [payload])
    scenes, (skip,) = everything(WaymoScenarios(tmp_path))
    assert scenes == []
    assert skip.reason == reason


def test_text_that_is_none_is_refused(tmp_path: Path) -> None:
    data = plain(traffic(1)[0])
    write_shard(tmp_path / "a.tfrecord", [message(data | {"scenario_id": None}) + nested(5, b"\xff\xfe")])
    assert [skip.reason for skip in everything(WaymoScenarios(tmp_path))[1]] == ["scenario_id is no text"]


def test_names_from_files_can_be_written(tmp_path: Path) -> None:
    write_json(
        tmp_path / "a.json", traffic(1, dropout=0)[0], lambda data: data.update(scenario_id="\ud800" + "x" * 5000)
    )
    (scene,), _ = everything(WaymoJson(tmp_path))
    assert scene.name == "?" + "x" * 99
    assert scene.group == scene.name


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_waymo(tmp_path / "a.tfrecord", traffic(1))
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(ValueError, match=r"google_crc32c is not installed: pip install 'innerspace\[motion\]'"):
        WaymoScenarios(tmp_path).records()


def test_messages_can_be_written_and_read() -> None:
    scenario = message_class("Scenario")(scenario_id="a", current_time_index=3)
    scenario.map_features.add(id=4).lane.polyline.add(x=1.0, y=2.0)
    again = message_class("Scenario").FromString(scenario.SerializeToString())
    assert again == scenario
    assert again.map_features[0].WhichOneof("feature_data") == "lane"
