import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from argoverse_files import POSES, Columns, road, write_log, write_scenario
from innerspace.motion.argoverse import Argoverse2, Windows
from innerspace.motion.framing import Framing, frame
from innerspace.motion.sources import Loaded, load

WINDOWS = Windows(history=11, future=60, stride=5)


def scenario_damage() -> dict[str, tuple[Callable[[Columns], object], str]]:
    def put(name: str, row: int, value: object) -> Callable[[Columns], object]:
        return lambda columns: columns[name].__setitem__(row, value)

    def only(kind: str) -> Callable[[Columns], object]:
        return lambda columns: columns.update(object_type=[kind] * len(columns["object_type"]))

    def cut(columns: Columns) -> None:
        keep = [index for index, step in enumerate(columns["timestep"]) if not 45 <= step < 48]
        columns.update({name: [column[index] for index in keep] for name, column in columns.items()})

    return {
        "nan": (
            put("position_x", 3, float("nan")),
            "position_x is not finite or beyond 1e+07 in 1 of 466 rows",
        ),
        "infinite": (
            put("heading", 5, float("inf")),
            "heading is not finite or beyond 1e+07 in 1 of 466 rows",
        ),
        "absurd": (put("position_y", 0, -1e200), "position_y is not finite or beyond 1e+07 in 1 of 466 rows"),
        "null": (put("track_id", 7, None), "track_id is missing in 1 of 466 rows"),
        "text": (lambda columns: columns.update(velocity_x=["fast"] * 466), "velocity_x should hold float"),
        "column": (lambda columns: columns.pop("heading"), "needs one column heading; it has track_id"),
        "late": (put("timestep", 109, 110), "should have the steps 0 to 109, it has 0 to 110"),
        "early": (put("timestep", 0, -1), "should have the steps 0 to 109, it has -1 to 109"),
        "short": (lambda columns: columns.update(num_timestamps=[91] * 466, timestep=[0] * 466), "it has 0 to 90"),
        "double": (put("timestep", 1, 0), "track t0 has 2 rows for step 0"),
        "types": (put("object_type", 1, "bus"), "track t0 is both vehicle and bus"),
        "static": (only("static"), "holds no agent, only static"),
        "brief": (cut, "no track is valid at all steps from 39 to 109"),
        "empty": (lambda columns: [column.clear() for column in columns.values()], "has no rows"),
    }


def only_reason(loaded: Loaded, name: str) -> str:
    assert loaded.scenes == []
    assert [skipped.name for skipped in loaded.skipped] == [name]
    return loaded.skipped[0].reason


@pytest.mark.parametrize("damage", scenario_damage())
def test_a_damaged_scenario_is_skipped_with_a_reason(tmp_path: Path, damage: str) -> None:
    change, reason = scenario_damage()[damage]
    write_scenario(tmp_path, "one", change)
    assert reason in only_reason(load(Argoverse2(tmp_path, WINDOWS)), "one")


def test_one_damaged_file_does_not_stop_the_others(tmp_path: Path) -> None:
    broken = write_scenario(tmp_path / "a", "a")
    broken.write_bytes(broken.read_bytes()[:2000])
    write_scenario(tmp_path / "b", "b")
    write_log(tmp_path / "c")
    cuboids = write_log(tmp_path / "d")
    cuboids.write_bytes(cuboids.read_bytes()[:3000])
    loaded = load(Argoverse2(tmp_path, WINDOWS))
    assert [scene.name for scene in loaded.scenes] == ["b", "c@0", "c@5", "c@10"]
    assert [skipped.name for skipped in loaded.skipped] == ["a", "d"]
    assert loaded.skipped[0].reason.startswith("scenario_a.parquet is no complete parquet file: ")
    assert loaded.skipped[1].reason.startswith("annotations.feather is no complete feather file: ")
    batch = frame(loaded.scenes, Framing(history=11, future=60))
    assert len(batch) == 3 + 2 + 3 + 2


def log_damage() -> dict[str, tuple[Callable[[Columns, Columns], object], str]]:
    def lose(_: Columns, poses: Columns) -> None:
        poses.update({name: column[:-4] for name, column in poses.items()})

    def late(cuboids: Columns, _: Columns) -> None:
        cuboids["timestamp_ns"][-1] += 10**12

    def double(cuboids: Columns, _: Columns) -> None:
        cuboids["track_uuid"][1] = cuboids["track_uuid"][0]
        cuboids["category"][1] = cuboids["category"][0]

    return {
        "nan": (
            lambda cuboids, _: cuboids["tx_m"].__setitem__(2, float("nan")),
            "annotations.feather: tx_m is not finite",
        ),
        "pose": (
            lambda _, poses: poses["qz"].__setitem__(2, float("nan")),
            f"{POSES}: qz is not finite",
        ),
        "turn": (
            lambda _, poses: poses["qw"].__setitem__(2, 7.0),
            f"{POSES}: 1 rotations are no quaternions of length 1",
        ),
        "lost": (lose, f"{POSES} has no pose for 4 of the 83 annotated frames"),
        "gap": (late, "frames should follow every 0.1 s, they do after"),
        "double": (double, "track REG has 2 rows for step 0"),
    }


@pytest.mark.parametrize("damage", log_damage())
def test_a_damaged_log_is_skipped_with_a_reason(tmp_path: Path, damage: str) -> None:
    change, reason = log_damage()[damage]
    write_log(tmp_path / "log", change=change)
    assert reason in only_reason(load(Argoverse2(tmp_path, WINDOWS)), "log")


def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    source = {path: path.read_bytes() for path in (write_scenario(tmp_path, "one"), write_log(tmp_path / "log"))}
    random = np.random.default_rng(0)
    for _ in range(40):
        for path, content in source.items():
            spoiled = np.frombuffer(content, np.uint8).copy()
            spoiled[random.integers(len(spoiled), size=20)] = random.integers(256, size=20)
            path.write_bytes(spoiled.tobytes())
        loaded = load(Argoverse2(tmp_path, WINDOWS))
        assert {scene.group for scene in loaded.scenes} | {skipped.name for skipped in loaded.skipped} == {"one", "log"}


def test_what_lies_beside_must_be_there(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log")
    (place,) = path.parent.glob("log_map*")
    place.rename(path.parent / "other.json")
    assert only_reason(load(Argoverse2(tmp_path, WINDOWS)), "log") == "no log_map_archive_*.json beside it"
    path.with_name(POSES).unlink()
    assert only_reason(load(Argoverse2(tmp_path, WINDOWS)), "log") == f"no {POSES} beside it"
    path.unlink()
    write_scenario(tmp_path, "one").with_name("log_map_archive_one.json").unlink()
    assert only_reason(load(Argoverse2(tmp_path, WINDOWS)), "one") == "no log_map_archive_one.json beside it"


def test_a_short_log_says_what_a_window_needs(tmp_path: Path) -> None:
    write_log(tmp_path / "log", frames=70)
    assert only_reason(load(Argoverse2(tmp_path, WINDOWS)), "log") == "the log has 70 steps, a window needs 71"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"lane_segments": {', "is no Argoverse 2 map: JSONDecodeError"),
        ("{}", "is no Argoverse 2 map: KeyError: 'lane_segments'"),
        ('{"lane_segments": []}', "is no Argoverse 2 map: AttributeError"),
        (json.dumps(road()).replace('"x": 13', '"x": NaN'), "a line holds coordinates that are not finite"),
        (json.dumps(road()).replace('"x": 13', '"x": 1e300'), "a line holds coordinates that are not finite or beyond"),
        (json.dumps(road()).replace("BUS", "TRAM"), "unknown lane type 'TRAM'; known are VEHICLE, BUS, BIKE"),
    ],
)
def test_a_damaged_map_skips_its_scene(tmp_path: Path, text: str, reason: str) -> None:
    write_scenario(tmp_path, "one").with_name("log_map_archive_one.json").write_text(text)
    found = only_reason(load(Argoverse2(tmp_path, WINDOWS)), "one")
    assert reason in found
    assert "log_map_archive_one.json" in found


def test_wrong_requests_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no folder at"):
        load(Argoverse2(tmp_path / "absent", WINDOWS))
    with pytest.raises(ValueError, match=r"no scenario_\*\.parquet and no annotations\.feather in .* or below"):
        load(Argoverse2(tmp_path, WINDOWS))
    with pytest.raises(ValueError, match="stride should be at least 1, it is 0"):
        Windows(stride=0)
    write_scenario(tmp_path, "one")
    with pytest.raises(ValueError, match="50 steps of history and 60 of future; asked for are 11 and 80"):
        load(Argoverse2(tmp_path, Windows(history=11, future=80)))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'innerspace\[motion\]'"):
        load(Argoverse2(tmp_path, WINDOWS))
