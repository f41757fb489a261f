from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from innerspace.motion.scenes import LINE_KINDS
from innerspace.motion.waymo import WaymoScenarios
from innerspace.motion.waymo_json import WaymoJson
from motion.recorded import (
    EGO,
    Plain,
    changed,
    message,
    traffic,
    write_json,
    write_shard,
)
from motion.scenarios import LINE, empty, everything, only, road

JSON_DAMAGE: dict[str, tuple[Callable[[Plain], object], str]] = {
    "objects": (lambda data: data.pop("objects"), "objects is missing"),
    "none": (empty("objects"), "no exported scenario: ValueError: there are no objects"),
    "roads": (lambda data: data.pop("roads"), "roads is missing"),
    "metadata": (lambda data: data.pop("metadata"), "metadata is missing"),
    "ego": (lambda data: data["metadata"].pop("sdc_track_index"), "sdc_track_index is missing"),
    "state": (lambda data: data["objects"][1].pop("velocity"), "velocity is missing"),
    "axis": (lambda data: data["objects"][1]["position"][3].pop("y"), "y is missing"),
    "type": (lambda data: data["objects"][1].pop("type"), "type is missing"),
    "valid": (
        lambda data: [entry.update(valid=[1] * 91) for entry in data["objects"]],
        "no exported scenario: ValueError: valid should hold true and false",
    ),
    "text": (
        lambda data: data["objects"][1].update(length="long"),
        "no exported scenario: ValueError: could not convert",
    ),
    "number": (lambda data: data["objects"][1].update(length=10**400), "no exported scenario: OverflowError"),
    "degrees": (
        lambda data: data["objects"][3]["heading"].__setitem__(5, 179.0),
        "no exported scenario: ValueError: headings beyond 2π are no radians; older exports have degrees",
    ),
    "list": (lambda data: data.update(objects={"a": 1}), "no exported scenario: TypeError"),
}


@pytest.mark.parametrize("damage", JSON_DAMAGE)
def test_a_damaged_export_is_skipped(damage: str, tmp_path: Path) -> None:
    change, reason = JSON_DAMAGE[damage]
    write_json(tmp_path / "a.json", traffic(1, dropout=0)[0], change)
    scenes, (skip,) = everything(WaymoJson(tmp_path))
    assert scenes == []
    assert skip.name == "a.json"
    assert skip.reason.startswith(reason)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe", b"[" * 200_000, b'{"objects": [' + b"9" * 9000])
def test_what_is_no_export_is_skipped(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    scenes, (skip,) = everything(WaymoJson(tmp_path))
    assert scenes == []
    assert skip.reason.startswith("no exported scenario: ")


def test_objects_of_another_length_and_unknown_targets_are_counted(tmp_path: Path) -> None:
    def change(data: Plain) -> None:
        for name in ("valid", "position", "velocity", "heading"):
            data["objects"][1][name] = data["objects"][1][name][:-1]
        data["metadata"]["tracks_to_predict"].append({"track_index": 500})
        data["objects"][3]["heading"] = data["objects"][3]["heading"][:-1]

    given = traffic(1, dropout=0)[0]
    write_json(tmp_path / "a.json", given, change)
    (scene,), skipped = everything(WaymoJson(tmp_path))
    np.testing.assert_allclose(scene.position[scene.target], given.position[[0, EGO]])
    assert [skip.reason for skip in skipped] == [
        "2 objects have not 91 states, as the first has: left out",
        f"1 objects to forecast are none of the {len(given.kind)}, as 500",
    ]


def test_an_export_needs_no_metadata_where_all_are_targets(tmp_path: Path) -> None:
    given = traffic(1, dropout=0)[0]
    write_json(tmp_path / "a.json", given, lambda data: data.pop("metadata"))
    (scene,), skipped = everything(WaymoJson(tmp_path, targets="all"))
    assert skipped == []
    assert len(scene.target) == len(given.kind)


def test_an_export_without_numbers_of_elements_knows_less(tmp_path: Path) -> None:
    given = traffic(1, dropout=0)[0]
    roads = [road("road_line", 7, LINE + given.position[0, 10]), road("lane", 3, LINE + given.position[0, 10])]
    for entry in roads:
        entry.pop("map_element_id")
    write_json(tmp_path / "a.json", given, only(*roads))
    (scene,), _ = everything(WaymoJson(tmp_path))
    assert {LINE_KINDS[i] for i in scene.line_kind} == {"other_mark", "lane"}


def test_an_export_has_eleven_steps_of_history(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a scenario has 11 steps of history; asked for are 12"):
        WaymoJson(tmp_path, history=12)


def test_both_forms_give_the_same_scene(tmp_path: Path) -> None:
    scene = traffic(1, seed=3)[0]
    data = changed(scene, None)
    write_shard(tmp_path / "a.tfrecord", [message(data)])
    write_json(tmp_path / "a.json", scene)
    (one,), _ = everything(WaymoScenarios(tmp_path, seen=0.5))
    (other,), _ = everything(WaymoJson(tmp_path, seen=0.5))
    for name in ("position", "velocity", "valid", "kind", "target", "line", "line_kind", "line_valid"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-5)
