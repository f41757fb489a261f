import dataclasses
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from innerspace.motion.forecasters.encoding import line_features
from innerspace.motion.framing import Framing, frame
from innerspace.motion.hptr_files import HptrH5
from innerspace.motion.recordings import Recorded, check_rate
from innerspace.motion.scenario_arrays import ScenarioArrays
from innerspace.motion.scenes import LINE_KINDS, Scene
from innerspace.motion.sources import SceneSource, Skipped
from innerspace.motion.waymo import WaymoScenarios
from innerspace.motion.waymo_json import WaymoJson
from motion.recorded import (
    EGO,
    Plain,
    message,
    plain,
    traffic,
    write_arrays,
    write_hptr,
    write_json,
    write_shard,
    write_waymo,
)

Source = Callable[..., Recorded]
SOURCES: dict[str, tuple[Source, Callable[..., Path], str]] = {
    "waymo": (
        WaymoScenarios,
        lambda path, scene, *more: write_waymo(path, [scene], *more),
        "a.tfrecord-00000-of-00001",
    ),
    "json": (WaymoJson, write_json, "tfrecord-00000-of-01000_4.json"),
    "arrays": (ScenarioArrays, write_arrays, "sd_waymo.npz"),
    "hptr": (HptrH5, lambda path, scene, *more: write_hptr(path, [scene], "training", *more), "training.h5"),
}

TRIALS = 120


def everything(source: SceneSource) -> tuple[list[Scene], list[Skipped]]:
    found = [item for record in source.records() for item in source.read(record)]
    return [item for item in found if isinstance(item, Scene)], [item for item in found if isinstance(item, Skipped)]


def expected_valid(scene: Scene) -> np.ndarray:
    """Whoever is first seen at the current step has a velocity that knows the next."""
    valid = scene.valid.copy()
    valid[:, scene.now] &= valid[:, scene.now - 1]
    return valid


def expected_target(scene: Scene, seen: float, future: int) -> list[int]:
    valid, now = expected_valid(scene), scene.now
    after = valid[:, now + 1 : now + 1 + future].sum(1)
    return [i for i in (0, 1, EGO) if valid[i, now] and after[i] >= seen * future]


def off_the_lines(point: np.ndarray, scene: Scene, kind: int) -> float:
    """How far a point is from the lines of a kind, by plain loops."""
    least = np.inf
    for line in scene.line[scene.line_kind == kind]:
        for a, b in pairwise(line):
            share = np.clip((point - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
            least = min(least, float(np.linalg.norm(a + share * (b - a) - point)))
    return least


@pytest.mark.parametrize("name", SOURCES)
def test_what_was_written_is_read(name: str, tmp_path: Path) -> None:
    source, write, file = SOURCES[name]
    given = traffic(3, seed=1)
    for i, scene in enumerate(given):
        write(tmp_path / f"part{i}" / file, scene)
    reader = source(tmp_path, future=80, seen=0.9)
    assert reader.records() == [f"part{i}/{file}" for i in range(3)]
    scenes, skipped = everything(reader)
    assert skipped == []
    assert len(scenes) == 3
    for scene, was in zip(scenes, given, strict=True):
        assert (scene.name, scene.group, scene.hz, scene.now) == (was.name, was.name, 10.0, 10)
        valid = expected_valid(was)
        np.testing.assert_array_equal(scene.valid, valid)
        np.testing.assert_array_equal(scene.kind, was.kind)
        np.testing.assert_allclose(scene.position[valid], was.position[valid], atol=1e-4)
        np.testing.assert_allclose(scene.velocity[valid], was.velocity[valid], atol=1e-4)
        turned = np.exp(1j * scene.heading[valid]) - np.exp(1j * was.heading[valid])
        assert abs(turned).max() < 1e-4
        assert abs(scene.heading).max() <= np.pi + 1e-6
        np.testing.assert_allclose(scene.size, was.size, atol=1e-4)
        assert not scene.position[~valid].any()
        assert scene.target.tolist() == expected_target(was, 0.9, 80)
        kinds = set(scene.line_kind.tolist())
        assert LINE_KINDS.index("lane") in kinds
        assert LINE_KINDS.index("road_edge") in kinds
        for i in range(0, len(scene.line), 7):
            nodes = scene.line[i, scene.line_valid[i]]
            gaps = np.linalg.norm(np.diff(nodes, axis=0), axis=-1)
            # a crossing without width goes there and back
            assert LINE_KINDS[scene.line_kind[i]] == "crossing" or (0.4 < gaps.min() and gaps.max() < 1 + 1e-3)
            assert off_the_lines(nodes[len(nodes) // 2], was, scene.line_kind[i]) < 1e-3
    batch = frame(scenes, Framing(history=11, future=80))
    assert batch.future.isfinite().all()
    assert line_features(batch.line, batch.line_valid, batch.line_kind)[0].isfinite().all()


@pytest.mark.parametrize("name", SOURCES)
def test_one_file_is_a_folder_of_one(name: str, tmp_path: Path) -> None:
    source, write, file = SOURCES[name]
    write(tmp_path / file, traffic(1, dropout=0)[0])
    (tmp_path / "other.txt").write_text("no scene")
    reader = source(tmp_path / file)
    assert reader.records() == [file]
    scenes, skipped = everything(reader)
    assert (len(scenes), skipped) == (1, [])
    assert scenes[0].target.tolist() == [0, 1, EGO]
    (everyone,), _ = everything(source(tmp_path / file, targets="all"))
    assert everyone.target.tolist() == list(range(len(everyone.kind)))


@pytest.mark.parametrize("name", SOURCES)
def test_settings_are_values_with_defaults_but_the_path(name: str, tmp_path: Path) -> None:
    source = SOURCES[name][0](tmp_path, history=8)
    assert type(source).from_json(source.to_json()) == source
    assert SceneSource.from_json(source.to_json()) == source
    required = [field.name for field in dataclasses.fields(source) if field.default is dataclasses.MISSING]
    assert required == ["path"]


@pytest.mark.parametrize("name", SOURCES)
def test_wrong_requests_are_refused_at_once(name: str, tmp_path: Path) -> None:
    source, _, file = SOURCES[name]
    with pytest.raises(ValueError, match="nothing at"):
        source(tmp_path / "absent").records()
    with pytest.raises(ValueError, match=r"no \*\..* in .* or below"):
        source(tmp_path).records()
    with pytest.raises(ValueError, match="history should be at least 1, it is 0"):
        source(tmp_path, history=0)
    with pytest.raises(ValueError, match="future should be at least 0, it is -1"):
        source(tmp_path, future=-1)
    with pytest.raises(ValueError, match="seen is a share, from 0 to 1; it is nan"):
        source(tmp_path, seen=float("nan"))
    with pytest.raises(ValueError, match=r"spacing should be from 0\.1 to 100 m, it is 0\.0"):
        source(tmp_path, spacing=0.0)
    assert list(source(tmp_path).read(file)) == [Skipped(file, f"no file at {tmp_path / file}")]


@pytest.mark.parametrize("name", SOURCES)
def test_a_scenario_shorter_than_asked_is_skipped(name: str, tmp_path: Path) -> None:
    source, write, file = SOURCES[name]
    scene = traffic(1, dropout=0)[0]
    write(tmp_path / file, scene)
    scenes, skipped = everything(source(tmp_path, future=81))
    assert scenes == []
    assert [skip.reason for skip in skipped] == [
        "there are 11 steps of history and 80 of future; asked for are 11 and 81"
    ]


@pytest.mark.parametrize("name", SOURCES)
def test_nobody_to_forecast_is_a_reason(name: str, tmp_path: Path) -> None:
    source, write, file = SOURCES[name]
    scene = traffic(1, dropout=0)[0]
    valid = scene.valid.copy()
    valid[:3, 40] = False
    write(tmp_path / file, dataclasses.replace(scene, valid=valid))
    scenes, skipped = everything(source(tmp_path, future=60))
    assert scenes == []
    assert "none of 3 agents to forecast is valid at steps 9 and 10 and at 100% of the 60 after" in skipped[0].reason
    (scene,), _ = everything(source(tmp_path, future=60, seen=59 / 60))
    assert scene.target.tolist() == [0, 1, EGO]
    (scene,), _ = everything(source(tmp_path, future=29))
    assert scene.target.tolist() == [0, 1, EGO]


def test_the_current_velocity_does_not_tell_the_next_position(tmp_path: Path) -> None:
    scene = traffic(1, dropout=0)[0]
    valid = scene.valid.copy()
    valid[1, :10] = False
    write_waymo(tmp_path / "a.tfrecord", [dataclasses.replace(scene, valid=valid)])
    (read,), _ = everything(WaymoScenarios(tmp_path))
    # agent 1 is there at the current step in the file, with the velocity of the step after
    assert read.valid[1].tolist() == [step > 10 for step in range(91)]
    assert read.target.tolist() == [0, EGO]


def test_sizes_are_of_the_past(tmp_path: Path) -> None:
    scene = traffic(1, dropout=0)[0]

    def grow(arrays: dict[str, np.ndarray]) -> None:
        arrays["tracks/100/state/length"] = np.arange(91.0) / 10 + 1
        arrays["tracks/101/state/length"] = np.arange(91.0) / 10 + 1
        arrays["tracks/101/state/valid"][:30] = False

    write_arrays(tmp_path / "a.npz", scene, None, grow)
    (read,), _ = everything(ScenarioArrays(tmp_path))
    assert read.size[:2, 0].tolist() == [2.0, 4.0]


def spoil(agent: int, name: str, value: Any) -> Callable[[Plain], None]:
    def change(data: Plain) -> None:
        entry = data["objects"][agent]
        if isinstance(entry[name], list):
            entry[name][20] = {"x": value, "y": 0.0, "z": 0.0} if name in ("position", "velocity") else value
        else:
            entry[name] = value

    return change


DAMAGE: dict[str, tuple[Callable[[Plain], None], str, int]] = {
    "position": (
        spoil(3, "position", float("nan")),
        "position is not finite or beyond 1e+07 though marked valid at 1",
        0,
    ),
    "velocity": (
        spoil(3, "velocity", float("inf")),
        "velocity is not finite or beyond 1e+07 though marked valid at 1",
        0,
    ),
    "heading": (spoil(3, "heading", float("nan")), "heading is not finite or beyond 1e+07 though marked valid at 1", 0),
    "turned": (
        spoil(3, "heading", float("inf")),
        "heading is not finite or beyond 1e+07 though marked valid at 1",
        0,
    ),
    "far": (
        spoil(3, "position", 1e30),
        "position is not finite or beyond 1e+07 though marked valid at 1 steps of 1",
        0,
    ),
    "size": (spoil(3, "length", -1.0), "the size of 1 tracks is negative, not finite or beyond 100 m: left out", 1),
    "large": (spoil(3, "height", 1e9), "the size of 1 tracks is negative, not finite or beyond 100 m: left out", 1),
    "kind": (spoil(3, "type", "unset"), "unknown object type 'unset': 1 tracks left out", 1),
}


@pytest.mark.parametrize("name", ["waymo", "json", "arrays"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_left_out_and_counted(name: str, damage: str, tmp_path: Path) -> None:
    source, write, file = SOURCES[name]
    change, reason, lost = DAMAGE[damage]
    given = traffic(1, dropout=0)[0]
    write(tmp_path / file, given, change)
    (scene,), skipped = everything(source(tmp_path))
    assert len(skipped) == 1
    assert reason in skipped[0].reason
    assert skipped[0].name == scene.name
    assert len(scene.kind) == len(given.kind) - lost
    if not lost:
        assert scene.valid[3].tolist() == [step != 20 for step in range(91)]


@pytest.mark.parametrize("name", ["waymo", "json", "arrays"])
def test_a_line_that_is_not_finite_is_left_out(name: str, tmp_path: Path) -> None:
    source, write, file = SOURCES[name]

    def change(data: Plain) -> None:
        data["roads"][0]["geometry"][0]["x"] = float("nan")
        data["roads"][1]["geometry"][0]["y"] = 1e9

    write(tmp_path / file, traffic(1, dropout=0)[0], change)
    (_,), skipped = everything(source(tmp_path))
    assert [skip.reason for skip in skipped] == ["2 lines of the map are not finite or beyond 1e+07 m: left out"]


@pytest.mark.parametrize("name", ["waymo", "json", "arrays"])
def test_a_map_across_the_world_takes_no_memory(name: str, tmp_path: Path) -> None:
    source, write, file = SOURCES[name]

    def change(data: Plain) -> None:
        data["roads"][0]["geometry"][0]["x"] = 9e6

    write(tmp_path / file, traffic(1, dropout=0)[0], change)
    scenes, (skip,) = everything(source(tmp_path))
    assert scenes == []
    assert "nodes 1 m apart; at most 1000000 are read" in skip.reason


@pytest.mark.parametrize("name", ["waymo", "arrays"])
@pytest.mark.parametrize(
    ("seconds", "reason"),
    [
        (np.arange(91) / 5, "steps follow every 0.2 s; history and future count steps of 0.1 s"),
        (np.r_[np.arange(50) / 10, 5.1 + np.arange(41) / 10], "steps follow after 0.1 to 0.2 s; a scene has one rate"),
        (np.r_[np.arange(50) / 10, 4.9 - np.arange(41) / 10], "a scene has one rate"),
        (np.zeros(91), "steps follow every 0 s"),
        (np.full(91, np.nan), "the rate of 91 times cannot be told"),
    ],
)
def test_times_must_follow_at_the_rate(name: str, seconds: np.ndarray, reason: str, tmp_path: Path) -> None:
    source, write, file = SOURCES[name]
    write(tmp_path / file, traffic(1)[0], lambda data: data.update(seconds=seconds.tolist()))
    scenes, (skip,) = everything(source(tmp_path))
    assert scenes == []
    assert reason in skip.reason


def test_jitter_is_no_irregularity() -> None:
    check_rate(1.6e9 + np.arange(91) / 10 + np.random.default_rng(0).uniform(-2e-3, 2e-3, 91), 10.0)
    check_rate(np.arange(41) / 2, 2.0)


def tiny() -> Scene:
    """Few agents and lines make small files, of which every part is met."""
    given, kept = traffic(1, dropout=0)[0], slice(0, 3)
    tracks = {key: getattr(given, key)[kept] for key in ("position", "heading", "velocity", "size", "kind", "valid")}
    road = {key: getattr(given, key)[kept] for key in ("line", "line_kind", "line_valid")}
    return dataclasses.replace(given, **tracks, **road)


def spoiled(content: bytes, random: np.random.Generator) -> bytes:
    """The content with a few bytes changed, or cut short; more often at its ends, where headers are."""
    array = np.frombuffer(content, np.uint8).copy()
    reach = random.choice((len(array), min(400, len(array))))
    place = random.integers(reach, size=random.choice((1, 3, 20))) * random.choice((1, -1))
    array[place] = random.integers(256, size=place.shape)
    return array[: random.integers(len(array)) if random.random() < 0.1 else None].tobytes()


def survived(reader: SceneSource, file: str) -> set[type]:
    kinds = set[type]()
    for item in reader.read(file):
        kinds.add(type(item))
        # a shape that the checks of the tests caught would be damage that the reader overlooked
        assert isinstance(item, Scene) or (0 < len(item.reason) < 400 and "Type-check" not in item.reason)
    return kinds


@pytest.mark.parametrize("name", SOURCES)
def test_flipped_bytes_never_crash(name: str, tmp_path: Path) -> None:
    source, write, file = SOURCES[name]
    path, random, seen = write(tmp_path / file, tiny()), np.random.default_rng(0), set[type]()
    content = path.read_bytes()
    for _ in range(TRIALS):
        path.write_bytes(spoiled(content, random))
        seen |= survived(source(tmp_path), file)
    assert Skipped in seen


def test_flipped_bytes_behind_right_checksums_never_crash(tmp_path: Path) -> None:
    content, random, seen = message(plain(tiny())), np.random.default_rng(0), set[type]()
    for _ in range(TRIALS):
        write_shard(tmp_path / "a.tfrecord", [spoiled(content, random)])
        seen |= survived(WaymoScenarios(tmp_path), "a.tfrecord")
    assert seen == {Scene, Skipped}


def test_flipped_bytes_in_arrays_never_crash(tmp_path: Path) -> None:
    path, random, seen = write_arrays(tmp_path / "a.npz", tiny()), np.random.default_rng(0), set[type]()
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for _ in range(TRIALS):
        victim = random.choice(list(members))
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, spoiled(content, random) if name == victim else content)
        seen |= survived(ScenarioArrays(tmp_path), "a.npz")
    assert seen == {Scene, Skipped}
