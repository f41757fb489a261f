import dataclasses
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from innerspace.motion import arrays as arrays_module
from innerspace.motion.arrays import Arrays
from innerspace.motion.scenario_arrays import ScenarioArrays, flatten
from innerspace.motion.scenes import LINE_KINDS, Scene
from innerspace.motion.sources import SceneSource, Skipped
from motion.recorded import EGO, plain, scenario_net, traffic, write_arrays

Flat = dict[str, np.ndarray]


def everything(source: SceneSource) -> tuple[list[Scene], list[Skipped]]:
    found = [item for name in source.records() for item in source.read(name)]
    return [item for item in found if isinstance(item, Scene)], [item for item in found if isinstance(item, Skipped)]


def read_changed(path: Path, change: Callable[[Flat], object], **settings: Any) -> tuple[list[Scene], list[Skipped]]:
    write_arrays(path / "a.npz", traffic(1, dropout=0)[0], None, change)
    return everything(ScenarioArrays(path, **settings))


def test_pickles_are_refused_and_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "opened",))

    trap = tmp_path / "sd_waymo.pkl"
    trap.write_bytes(pickle.dumps(Trap()))
    for place in (tmp_path, trap):
        with pytest.raises(ValueError, match=r"sd_waymo\.pkl is a pickle: to open it is to run what it says.*flatten"):
            ScenarioArrays(place).records()
    (tmp_path / "b.npz").write_bytes(trap.read_bytes())
    np.savez(tmp_path / "c.npz", metadata=np.array([Trap()], dtype=object))
    assert ScenarioArrays(tmp_path).records() == ["b.npz", "c.npz"]
    scenes, skipped = everything(ScenarioArrays(tmp_path))
    assert scenes == []
    assert skipped[0].reason == "b.npz: BadZipFile: File is not a zip file"
    assert "nothing is unpickled" in skipped[1].reason
    assert not (tmp_path / "opened").exists()


def test_the_conversion_that_is_recommended_gives_the_scene(tmp_path: Path) -> None:
    given = traffic(1, dropout=0)[0]
    path = tmp_path / "sd_waymo.pkl"
    path.write_bytes(pickle.dumps(scenario_net(plain(given))))
    np.savez_compressed(path.with_suffix(".npz"), **flatten(pickle.loads(path.read_bytes())))
    (scene,), skipped = everything(ScenarioArrays(tmp_path))
    assert skipped == []
    np.testing.assert_allclose(scene.position, given.position, atol=1e-4)
    assert scene.target.tolist() == [0, 1, EGO]


def retype(change: Callable[[dict[str, Any]], object]) -> Callable[[Flat], None]:
    def spoil(arrays: Flat) -> None:
        data = json.loads(str(arrays["metadata"]))
        change(data)
        arrays["metadata"] = np.array(json.dumps(data))

    return spoil


def put(name: str, value: Any) -> Callable[[Flat], None]:
    return lambda arrays: arrays.update({name: np.asarray(value)})


DAMAGE: dict[str, tuple[Callable[[Flat], object], str]] = {
    "metadata": (lambda arrays: arrays.pop("metadata"), "metadata: ValueError: metadata is missing"),
    "json": (put("metadata", "{"), "metadata: JSONDecodeError"),
    "list": (put("metadata", "[]"), "metadata: ValueError: scenario_id is missing"),
    "bytes": (put("metadata", [1, 2]), "metadata: ValueError: text should be there, not an array of shape (2,)"),
    "now": (retype(lambda data: data.pop("current_time_index")), "metadata: ValueError: current_time_index is missing"),
    "ego": (retype(lambda data: data.pop("sdc_id")), "metadata: ValueError: sdc_id is missing"),
    "word": (retype(lambda data: data.update(current_time_index="x")), "metadata: ValueError: invalid literal"),
    "none": (retype(lambda data: data.update(tracks_to_predict=None)), "metadata: TypeError"),
    "times": (retype(lambda data: data.update(ts=7)), "metadata: TypeError"),
    "nested": (retype(lambda data: data.update(ts=[[0.1]])), "the rate of 1 times cannot be told"),
    "infinite": (retype(lambda data: data.update(current_time_index=1e999)), "metadata: OverflowError"),
    "tracks": (
        lambda arrays: [arrays.pop(name) for name in list(arrays) if name.startswith("tracks/")],
        "tracks/<id>/type is missing: there are no tracks",
    ),
    "short": (
        retype(lambda data: data.update(ts=data["ts"][:-1])),
        "no track has 90 values of every state; first wrong is position",
    ),
    "type": (put("tracks/100/type", ["a", "b"]), "text should be there, not an array of shape (2,) of <U1"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_scenario_is_skipped(damage: str, tmp_path: Path) -> None:
    change, reason = DAMAGE[damage]
    scenes, (skip,) = read_changed(tmp_path, change)
    assert scenes == []
    assert skip.name == "a.npz"
    assert skip.reason.startswith(reason)


@pytest.mark.parametrize("state", ["position", "heading", "velocity", "valid", "length", "width", "height"])
@pytest.mark.parametrize("fault", ["missing", "short", "text", "wide", "scalar"])
def test_a_track_without_a_state_is_left_out(state: str, fault: str, tmp_path: Path) -> None:
    name = f"tracks/103/state/{state}"

    def change(arrays: Flat) -> None:
        was = arrays.pop(name)
        if fault != "missing":
            new = {"short": was[1:], "text": was.astype(str), "wide": np.zeros((91, 5)), "scalar": np.float32(1)}
            arrays[name] = np.asarray(new[fault])

    (scene,), (skip,) = read_changed(tmp_path, change)
    assert skip == Skipped(scene.name, f"{state} is missing, or not 91 numbers, in 1 tracks: left out")
    assert len(scene.kind) == len(traffic(1, dropout=0)[0].kind) - 1


def test_scalars_may_have_an_axis_and_positions_no_height(tmp_path: Path) -> None:
    def change(arrays: Flat) -> None:
        for name in list(arrays):
            if name.endswith(("heading", "length", "valid")):
                arrays[name] = arrays[name][:, None]
            if name.endswith("position"):
                arrays[name] = np.asfortranarray(arrays[name][:, :2].astype(">f8"))

    (scene,), skipped = read_changed(tmp_path, change)
    assert skipped == []
    np.testing.assert_allclose(scene.position, traffic(1, dropout=0)[0].position, atol=1e-4)


def test_targets_that_are_no_tracks_are_counted(tmp_path: Path) -> None:
    change = retype(lambda data: data["tracks_to_predict"].extend(["nobody", 103]))
    (scene,), (skip,) = read_changed(tmp_path, change)
    assert scene.target.tolist() == [0, 1, EGO, 3]
    assert skip.reason == f"1 tracks to forecast are none of the {len(scene.kind)}, as 'nobody'"


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("LANE_FREEWAY", "polyline", "lane"),
        ("LANE_SURFACE_UNSTRUCTURE", "polyline", "lane"),
        ("LANE_SURFACE_UNSTRUCTURE", "polygon", None),
        ("LANE_BIKE_LANE", "polyline", "bike_lane"),
        ("ROAD_LINE_BROKEN_SINGLE_WHITE", "polyline", "dashed_mark"),
        ("ROAD_LINE_SOLID_DOUBLE_YELLOW", "polyline", "solid_mark"),
        ("ROAD_LINE_PASSING_DOUBLE_YELLOW", "polyline", "other_mark"),
        ("UNKNOWN_LINE", "polyline", "other_mark"),
        ("UNKNOWN", "polyline", "road_edge"),
        ("ROAD_EDGE_MEDIAN", "polyline", "road_edge"),
        ("ROAD_EDGE_SIDEWALK", "polygon", None),
        ("CROSSWALK", "polygon", "crossing"),
        ("SPEED_BUMP", "polygon", "other_mark"),
        ("DRIVEWAY", "polygon", None),
    ],
)
def test_map_features_become_lines(name: str, shape: str, kind: str | None, tmp_path: Path) -> None:
    near = traffic(1, dropout=0)[0].position[0, 10]

    def change(arrays: Flat) -> None:
        for key in [key for key in arrays if key.startswith("map_features/")]:
            arrays.pop(key)
        arrays["map_features/a/b/type"] = np.array(name)
        arrays[f"map_features/a/b/{shape}"] = near + np.array([[0.0, 0.0], [8.0, 0.0], [8.0, 3.0]])
        arrays["map_features/stop/type"] = np.array("STOP_SIGN")

    (scene,), skipped = read_changed(tmp_path, change)
    assert skipped == []
    assert {LINE_KINDS[i] for i in scene.line_kind} == ({kind} if kind else set())
    if kind:
        end = scene.line[scene.line_valid][-1] - near
        np.testing.assert_allclose(end, [0, 0] if shape == "polygon" else [8, 3], atol=1e-6)


def test_unknown_map_features_are_counted(tmp_path: Path) -> None:
    def change(arrays: Flat) -> None:
        names = [key for key in arrays if key.startswith("map_features/") and key.endswith("/type")]
        arrays[names[0]] = arrays[names[1]] = np.array("TELEPORTER")
        arrays[names[2].replace("type", "polyline")] = np.zeros(3)

    (_,), skipped = read_changed(tmp_path, change)
    assert sorted(skip.reason for skip in skipped) == [
        "unknown map feature 'LANE_SURFACE_STREET without points': 1 left out",
        "unknown map feature 'TELEPORTER': 2 left out",
    ]


def test_another_rate_may_be_asked_for(tmp_path: Path) -> None:
    given = traffic(1, dropout=0)[0]
    write_arrays(tmp_path / "a.npz", dataclasses.replace(given, hz=2.0))
    (scene,), skipped = everything(ScenarioArrays(tmp_path, hz=2.0))
    assert skipped == []
    assert scene.hz == 2.0


# Archives


def header(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


HOSTILE: dict[str, tuple[bytes, str]] = {
    "huge": (header((10**12,)) + b"x" * 80, "an array of shape (1000000000000,) in 208 bytes"),
    "wide": (header((10**6, 10**6, 10**6)), "an array of shape (1000000, 1000000, 1000000) in 128 bytes"),
    "beyond": (header((2**70,)), "an array of shape (1180591620717411303424,) in 128 bytes"),
    "negative": (header((-4,)) + b"x" * 80, "an array of shape (-4,) in 208 bytes"),
    "nothing": (header((10**15,), "<U0"), "cannot reshape"),
    "objects": (header((3,), "|O") + b"x" * 80, "nothing is unpickled"),
    "void": (header((3,), "|V8") + b"x" * 80, "numbers and text are read"),
    "letters": (header((1,), "<U1") + b"\xff" * 4, "it holds numbers that are no letters"),
    "surrogate": (header((1,), "<U1") + b"\x00\xd8\x00\x00", "it holds numbers that are no letters"),
    "magic": (b"not numpy at all", "magic string is not correct"),
    "version": (b"\x93NUMPY\x07\x00" + header((3,))[8:], "array of version 7.0"),
    "header": (header((3,), "bad"), "descr is not a valid dtype descriptor"),
    "keys": (header((3,)).replace(b"'shape'", b"b'shap'"), "its header is damaged: TypeError"),
    "empty": (b"", "EOF"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_array_is_refused_before_memory_is_taken(name: str, tmp_path: Path) -> None:
    content, reason = HOSTILE[name]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("victim.npy", content)
    with Arrays(tmp_path / "a.npz") as arrays, pytest.raises(ValueError, match="victim: ") as caught:
        arrays["victim"]
    assert reason in str(caught.value)


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays_module, "LARGEST", 10_000)
    np.savez_compressed(tmp_path / "a.npz", zeros=np.zeros(2000))
    with Arrays(tmp_path / "a.npz") as arrays, pytest.raises(ValueError, match="zeros has 16128 bytes; at most 10000"):
        arrays["zeros"]


def test_other_packings_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", buffer.getvalue())
    with Arrays(tmp_path / "a.npz") as arrays, pytest.raises(ValueError, match="x is packed in an unknown way"):
        arrays["x"]


def test_arrays_come_as_numpy_gives_them(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    given = {
        "plain": random.normal(size=(3, 4)),
        "big/endian": random.normal(size=5).astype(">f4"),
        "fortran": np.asfortranarray(random.normal(size=(3, 4, 2))),
        "text": np.array(["a", "ünïcode", ""]),
        "scalar": np.array(7),
        "none": np.zeros((0, 3)),
        "flags": np.array([True, False]),
    }
    np.savez(tmp_path / "a.npz", **given)  # type: ignore[arg-type]
    with Arrays(tmp_path / "a.npz") as arrays:
        assert arrays.names() == list(given)
        for name, array in given.items():
            np.testing.assert_array_equal(arrays[name], array)
            assert arrays[name].dtype == array.dtype
        with pytest.raises(ValueError, match="absent is missing"):
            arrays["absent"]
