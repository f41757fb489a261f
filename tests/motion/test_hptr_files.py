import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from innerspace.motion import hptr_files
from innerspace.motion.hptr_files import HptrH5
from innerspace.motion.scenes import LINE_KINDS, Scene
from innerspace.motion.sources import SceneSource, Skipped
from motion.recorded import EGO, Plain, traffic, write_hptr

ARGOVERSE = ("lane", "", "", "road_edge", "", "", "", "", "", "", "crossing")


def everything(source: SceneSource) -> tuple[list[Scene], list[Skipped]]:
    found = [item for name in source.records() for item in source.read(name)]
    return [item for item in found if isinstance(item, Scene)], [item for item in found if isinstance(item, Skipped)]


def test_episodes_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    given = traffic(12, dropout=0)
    write_hptr(tmp_path / "training.h5", given)
    scenes, skipped = everything(HptrH5(tmp_path))
    assert skipped == []
    assert [scene.name for scene in scenes] == [scene.name for scene in given]


def test_what_is_known_at_the_current_step_comes_from_the_history(tmp_path: Path) -> None:
    given = traffic(1, dropout=0)[0]

    def interpolate(arrays: Plain) -> None:
        # the whole track knows where agent 1 came from, and puts all else elsewhere
        arrays["history/agent/valid"][:7, 1] = False
        for name in ("pos", "vel", "yaw_bbox"):
            arrays[f"agent/{name}"][:11] += 50

    write_hptr(tmp_path / "validation.h5", [given], "validation", interpolate)
    (scene,), skipped = everything(HptrH5(tmp_path))
    assert skipped == []
    assert scene.valid[1].tolist() == [step >= 7 for step in range(91)]
    np.testing.assert_allclose(scene.position[scene.valid], given.position[scene.valid], atol=1e-4)
    np.testing.assert_allclose(scene.velocity[scene.valid], given.velocity[scene.valid], atol=1e-4)


def test_files_to_test_on_have_no_future(tmp_path: Path) -> None:
    given = traffic(1, dropout=0)[0]
    write_hptr(tmp_path / "testing.h5", [given], "testing")
    scenes, (skip,) = everything(HptrH5(tmp_path))
    assert scenes == []
    assert skip == Skipped(given.name, "there are 11 steps of history and 0 of future; asked for are 11 and 60")
    (scene,), skipped = everything(HptrH5(tmp_path, future=0))
    assert skipped == []
    assert scene.valid.shape[1] == 11
    assert scene.target.tolist() == [0, 1, EGO]
    np.testing.assert_allclose(scene.position, given.position[:, :11], atol=1e-4)


@pytest.mark.parametrize("split", ["training", "validation"])
def test_argoverse_episodes_are_longer(split: str, tmp_path: Path) -> None:
    given = traffic(1, history=50, future=60, dropout=0)[0]
    write_hptr(tmp_path / "a.h5", [given], split, None, ARGOVERSE)
    (scene,), _ = everything(HptrH5(tmp_path, history=50))
    assert (scene.now, scene.valid.shape[1]) == (49, 110)
    # boundaries without paint are left out
    assert {LINE_KINDS[i] for i in scene.line_kind} <= {"lane", "crossing"}


def test_every_type_of_line_is_what_it_was(tmp_path: Path) -> None:
    given = traffic(1, dropout=0)[0]
    near = given.position[0, 10]
    line = near + np.stack([np.linspace(0, 9, 10), np.zeros(10)], -1)
    scene = dataclasses.replace(
        given,
        line=np.repeat(line[None], 11, axis=0) + np.arange(11)[:, None, None],
        line_kind=np.zeros(11, dtype=int),
        line_valid=np.ones((11, 10), dtype=bool),
    )

    def number(arrays: Plain) -> None:
        arrays["map/type"][:11] = np.eye(11, dtype=bool)

    expected = {
        "waymo": ["lane"] * 3
        + ["bike_lane"]
        + ["road_edge"] * 2
        + ["dashed_mark"]
        + ["solid_mark"] * 2
        + ["other_mark"],
        "argoverse": ["lane", "bus_lane", "bike_lane"] + ["dashed_mark"] * 2 + ["solid_mark"] * 2 + ["other_mark"] * 2,
    }
    write_hptr(tmp_path / "waymo.h5", [scene], "training", number)
    (read,), _ = everything(HptrH5(tmp_path))
    assert [LINE_KINDS[i] for i in read.line_kind] == [*expected["waymo"], "crossing"]
    # a node each meter, and up to where the last one leads
    np.testing.assert_allclose(read.line[0], line, atol=1e-4)
    steps = np.concatenate([given.valid, np.ones((len(given.kind), 19), dtype=bool)], axis=1)
    longer = {
        name: np.concatenate([getattr(scene, name), getattr(scene, name)[:, -19:]], axis=1)
        for name in ("position", "velocity", "heading")
    }
    write_hptr(tmp_path / "waymo.h5", [dataclasses.replace(scene, valid=steps, **longer)], "training", number)
    (read,), _ = everything(HptrH5(tmp_path))
    assert [LINE_KINDS[i] for i in read.line_kind] == [*expected["argoverse"], "crossing"]


def test_a_line_with_a_gap_is_two(tmp_path: Path) -> None:
    given = traffic(1, dropout=0)[0]
    line = given.position[0, 10] + np.stack([np.linspace(0, 9, 10), np.zeros(10)], -1)
    scene = dataclasses.replace(
        given, line=line[None], line_kind=np.zeros(1, dtype=int), line_valid=np.ones((1, 10), dtype=bool)
    )
    write_hptr(
        tmp_path / "a.h5", [scene], "training", lambda arrays: arrays["map/valid"].__setitem__((0, [3, 4]), False)
    )
    (read,), _ = everything(HptrH5(tmp_path))
    assert read.line_valid.sum(1).tolist() == [4, 5]
    np.testing.assert_allclose(read.line[1, 0], line[5], atol=1e-4)


def put(name: str, value: np.ndarray) -> Callable[[Plain], None]:
    return lambda arrays: arrays.update({name: value})


FAULTS: dict[str, tuple[Callable[[Plain], object], str]] = {
    "valid": (lambda arrays: arrays.pop("agent/valid"), "agent/valid is missing, and so is history/agent/valid"),
    "pos": (lambda arrays: arrays.pop("agent/pos"), "pos is missing"),
    "role": (lambda arrays: arrays.pop("agent/role"), "role is missing"),
    "map": (lambda arrays: arrays.pop("map/dir"), "dir is missing"),
    "steps": (put("agent/valid", np.ones((90, 16), bool)), "there are 90 steps, of which 90 are history; known are"),
    "axes": (put("agent/valid", np.ones(91, bool)), "valid should be of steps × agents, it is (91,)"),
    "agents": (put("agent/pos", np.zeros((91, 15, 2))), "agent/pos should have shape (91, 16, 2), it has (91, 15, 2)"),
    "type": (put("agent/type", np.zeros((16, 4))), "agent/type should have shape (16, 3), it has (16, 4)"),
    "text": (put("agent/size", np.full((16, 3), b"large")), "agent/size has shape (16, 3) of |S5"),
    "nodes": (put("map/valid", np.zeros(5, bool)), "map/valid should be of lines × nodes, it has shape (5,)"),
    "kinds": (lambda arrays: arrays.update({"map/type": arrays["map/type"][:, :9]}), "map/type should have shape"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_episode_does_not_stop_the_others(fault: str, tmp_path: Path) -> None:
    change, reason = FAULTS[fault]
    given, number = traffic(3, dropout=0), iter(range(3))
    write_hptr(tmp_path / "a.h5", given, "training", lambda arrays: change(arrays) if next(number) == 1 else None)
    scenes, (skip,) = everything(HptrH5(tmp_path))
    assert [scene.name for scene in scenes] == [given[0].name, given[2].name]
    assert skip.name == "a.h5/1"
    assert reason in skip.reason


def test_history_must_fit_its_episode(tmp_path: Path) -> None:
    def change(arrays: Plain) -> None:
        arrays["history/agent/valid"] = arrays["history/agent/valid"][:-1]

    write_hptr(tmp_path / "a.h5", traffic(1), "validation", change)
    _, (skip,) = everything(HptrH5(tmp_path))
    assert skip.reason.startswith("there are 91 steps, of which 10 are history; known are episodes of")


def test_values_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    def change(arrays: Plain) -> None:
        arrays["agent/pos"][20, 3, 0] = np.inf
        arrays["agent/yaw_bbox"][21, 3] = np.nan
        arrays["agent/size"][2, 0] = np.nan
        arrays["agent/type"][1] = False

    given = traffic(1, dropout=0)[0]
    write_hptr(tmp_path / "a.h5", [given], "training", change)
    (scene,), skipped = everything(HptrH5(tmp_path))
    assert [skip.reason for skip in skipped] == [
        "unknown object type 'none': 1 tracks left out",
        "position is not finite or beyond 1e+07 though marked valid at 1 steps of 1 tracks: left out",
        "heading is not finite or beyond 1e+07 though marked valid at 1 steps of 1 tracks: left out",
        "the size of 1 tracks is negative, not finite or beyond 100 m: left out",
    ]
    assert scene.target.tolist() == [0]
    assert scene.valid[1].tolist() == [step not in (20, 21) for step in range(91)]


def spoil(path: Path, change: Callable[[h5py.File], object]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def virtual(file: h5py.File) -> None:
    other = Path(file.filename).with_name("other.bin")
    other.write_bytes(bytes(16 * 3 * 4))
    del file["0/agent/size"]
    file["0/agent"].create_dataset("size", (16, 3), np.float32, external=[(str(other), 0, h5py.h5f.UNLIMITED)])


def linked(file: h5py.File) -> None:
    del file["0/agent/size"]
    file["0/agent/size"] = h5py.ExternalLink("elsewhere.h5", "/size")


def huge(file: h5py.File) -> None:
    # nothing of it is stored, and all of it would be in memory
    del file["0/map/valid"]
    file["0/map"].create_dataset("valid", (10**9, 10**6), bool, chunks=(1000, 1000))


HOSTILE: dict[str, tuple[Callable[[h5py.File], object], str, str]] = {
    "external": (virtual, "a.h5/0", "agent/size lies outside of the file"),
    "linked": (linked, "a.h5/0", "size is a link to another place"),
    "huge": (huge, "a.h5/0", "map/valid has shape (1000000000, 1000000) of bool; at most 20000000 numbers are read"),
    "group": (
        lambda file: (file["0/agent"].pop("pos"), file.create_group("0/agent/pos")),
        "a.h5/0",
        "pos should be a dataset, it is a group",
    ),
    "center": (
        lambda file: file["0"].attrs.__setitem__("scenario_center", np.zeros(3)),
        "a.h5/0",
        "scenario_center should be two numbers, it has shape (3,)",
    ),
    "yaw": (lambda file: file["0"].attrs.pop("scenario_yaw"), "a.h5/0", "scenario_yaw"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_episode_is_skipped(name: str, tmp_path: Path) -> None:
    change, where, reason = HOSTILE[name]
    spoil(write_hptr(tmp_path / "a.h5", traffic(2, dropout=0)), change)
    scenes, (skip,) = everything(HptrH5(tmp_path))
    assert len(scenes) == 1
    assert skip.name == where
    assert reason in skip.reason


@pytest.mark.parametrize("claim", [2**62, 0, -5])
def test_a_number_of_episodes_is_not_believed(claim: int, tmp_path: Path) -> None:
    spoil(write_hptr(tmp_path / "a.h5", traffic(2, dropout=0)), lambda file: file.attrs.__setitem__("data_len", claim))
    scenes, (skip,) = everything(HptrH5(tmp_path))
    assert len(scenes) == 2
    assert skip == Skipped("a.h5", f"data_len says {claim} episodes, there are 2")


@pytest.mark.parametrize("claim", ["many", [1, 2]])
def test_a_number_of_episodes_must_be_one(claim: Any, tmp_path: Path) -> None:
    spoil(write_hptr(tmp_path / "a.h5", traffic(1)), lambda file: file.attrs.__setitem__("data_len", claim))
    scenes, (skip,) = everything(HptrH5(tmp_path))
    assert scenes == []
    assert skip.reason.startswith("data_len: ")


def test_an_episode_that_is_missing_is_named(tmp_path: Path) -> None:
    spoil(write_hptr(tmp_path / "a.h5", traffic(3, dropout=0)), lambda file: file.move("1", "one"))
    scenes, (skip,) = everything(HptrH5(tmp_path))
    assert len(scenes) == 2
    assert skip == Skipped("a.h5/1", "1 is missing")


def test_what_is_no_h5_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.h5").write_bytes(b"no hdf5")
    _, (skip,) = everything(HptrH5(tmp_path))
    assert skip.reason.startswith("no h5 file: ")
    monkeypatch.setattr(hptr_files, "MOST", 100)
    write_hptr(tmp_path / "a.h5", traffic(1))
    _, (skip,) = everything(HptrH5(tmp_path))
    assert "at most 100 numbers are read" in skip.reason
