import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro

from argoverse_files import write_log, write_scenario
from innerspace.jobs.control import WordsInMotion
from innerspace.jobs.inputs.data import Data, Splits, read_source
from innerspace.jobs.inputs.parts import Parts, chunks
from innerspace.jobs.job import Job
from innerspace.motion.argoverse import Argoverse2
from innerspace.motion.framing import Framing
from innerspace.motion.scene_store import SceneStore, StoredAgents
from innerspace.motion.scenes import Scene
from innerspace.motion.sources import SceneSource, load
from innerspace.motion.words import Vocabulary
from scene_sources import RandomScenes

FRAMING = Framing(history=11, future=20, stride=5, agents=3, lines=4)


def names(scenes: list[Scene]) -> list[str]:
    return [scene.name for scene in scenes]


def logs(scenes: list[Scene]) -> set[str]:
    return {scene.group for scene in scenes}


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    for log in ("a-log", "b-log", "c-log"):
        write_log(tmp_path / log)
    write_scenario(tmp_path / "scenario", "s")
    return tmp_path


def av2(path: Path, **settings: Any) -> Splits:
    data = Data(kind="av2", path=path, **settings)
    data.check()
    return data.read(FRAMING)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "av2"}, "data.kind av2 needs data.path, a folder with Argoverse 2 scenarios or sensor logs"),
        ({"path": Path("x")}, "data.path x is given, but data.kind is simulated; did you mean av2"),
        ({"kind": "av2", "path": Path("no/where")}, "data.path: no folder at no/where"),
        ({"kind": "av2", "path": Path(), "confounded": True}, "data.confounded is a setting of simulated scenes"),
        ({"kind": "av2", "path": Path(), "scenes": 7}, "data.scenes is a setting of simulated and recorded scenes"),
        ({"stride": 7}, "data.stride is a setting of av2 scenes, but data.kind is simulated"),
        (
            {"kind": "recorded"},
            "data.kind recorded needs data.source, like Argoverse2:/data/av2, or data.cache, a store",
        ),
        ({"source": RandomScenes()}, "data.source is a setting of recorded scenes, but data.kind is simulated"),
        ({"cache": Path("x")}, "data.cache is a setting of av2 and recorded scenes, but data.kind is simulated"),
        (
            {"kind": "recorded", "cache": Path(), "path": Path()},
            "data.path is a setting of av2 scenes, but data.kind is r",
        ),
        ({"kind": "recorded", "cache": Path(), "stride": 2}, "data.stride is a setting of av2 scenes"),
        ({"kind": "av2", "path": Path(), "source": RandomScenes()}, "data.source is a setting of recorded scenes"),
        ({"held_out": "3b"}, "data.held_out '3b' names a log, but data.kind is simulated"),
        ({"fit": 0.0}, "data.fit and data.test are shares that leave room to train on; given 0.0, 0.1"),
        ({"test": -0.1}, "data.fit and data.test are shares .* given 0.25, -0.1"),
        ({"fit": 0.5, "test": 0.4}, "data.fit and data.test are shares .* given 0.5, 0.4"),
        ({"fit": float("nan")}, "data.fit and data.test are shares .* given nan, 0.1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    Data().check()
    with pytest.raises(ValueError, match=message):
        Data(**settings).check()


def test_simulated_scenes_are_split_by_scene() -> None:
    splits = Data(scenes=110, fit=0.3, test=0.1).read(FRAMING)
    assert [len(part) for part in (splits.train, splits.validate, splits.fit, splits.test)] == [66, 33, 33, 11]
    assert splits.validate == splits.fit
    assert len({*names(splits.train), *names(splits.fit), *names(splits.test)}) == 110
    assert splits.description == "110 simulated scenes (speed independent of type), split by scene"
    assert Data(scenes=110, confounded=True).read(FRAMING).description.startswith("110 simulated scenes (speed depends")
    again = Data(scenes=110, fit=0.3, test=0.1).read(FRAMING)
    assert (again.test[0].position == splits.test[0].position).all()
    other = Data(scenes=110, fit=0.3, test=0.1, seed=1).read(FRAMING)
    assert (
        other.test[0].position.shape != splits.test[0].position.shape
        or not (other.test[0].position == splits.test[0].position).all()
    )


def test_too_few_scenes_are_refused_with_the_number_that_is_enough() -> None:
    with pytest.raises(ValueError, match="99 scenes are too few to split; at least 100 are needed"):
        Data(scenes=99).read(FRAMING)
    assert len(Data(scenes=100).read(FRAMING).test) == 10


def tracks(scenes: list[Scene]) -> set[tuple[str, int]]:
    """The targets, by log and number."""
    return {(scene.group, int(track)) for scene in scenes for track in scene.target}


def test_logs_are_never_on_both_sides(recorded: Path) -> None:
    splits = av2(recorded)
    # 83 frames hold windows of 31 steps at 0, 5, … 50
    assert names(splits.fit) == [f"{log}-log@{start}" for log in "ab" for start in range(0, 55, 5)]
    assert names(splits.test) == [*(f"c-log@{start}" for start in range(0, 55, 5)), "s"]
    assert logs(splits.train) | logs(splits.validate) == {"a-log", "b-log"}
    assert splits.skipped == []
    assert splits.description == (
        "Argoverse 2, split by log: windows of 2 sensor log(s) to train and fit, "
        "log c-log and 1 forecasting scenario(s) to judge"
    )


def test_no_track_is_both_trained_on_and_validated(recorded: Path) -> None:
    splits = av2(recorded)
    trained, validated = tracks(splits.train), tracks(splits.validate)
    assert trained
    assert validated
    assert not trained & validated
    assert trained | validated == tracks(splits.fit)
    # a number means the same track in every window of its log: its size and type are the same, its steps go on
    for log in ("a-log", "b-log"):
        windows = [scene for scene in splits.fit if scene.group == log]
        for before, after in pairwise(windows):
            assert (before.size == after.size).all()
            assert (before.position[:, 5:] == after.position[:, :-5]).all()


@pytest.mark.parametrize(("held_out", "others"), [("a", {"b-log", "c-log"}), ("b-log", {"a-log", "c-log"})])
def test_the_log_to_judge_can_be_named(recorded: Path, held_out: str, others: set[str]) -> None:
    splits = av2(recorded, held_out=held_out)
    assert logs(splits.fit) == logs(splits.train) == others
    assert not logs(splits.test) & others
    assert {scene.group for scene in splits.test if scene.group.startswith(held_out)}


def test_an_unknown_or_ambiguous_log_is_refused(recorded: Path) -> None:
    with pytest.raises(ValueError, match="no log begins with 'x'; there are a-log, b-log, c-log"):
        av2(recorded, held_out="x")
    with pytest.raises(ValueError, match="more than one log begins with ''; there are a-log"):
        av2(recorded, held_out="")


def test_two_logs_are_enough(tmp_path: Path) -> None:
    write_log(tmp_path / "a-log")
    write_log(tmp_path / "b-log", frames=60)
    splits = av2(tmp_path)
    assert logs(splits.train) == logs(splits.validate) == {"a-log"}
    assert not tracks(splits.train) & tracks(splits.validate)
    assert logs(splits.test) == {"b-log"}


def test_less_than_two_logs_are_refused_and_the_skipped_ones_named(tmp_path: Path) -> None:
    write_log(tmp_path / "a-log")
    write_scenario(tmp_path / "scenario", "s")
    cuboids = write_log(tmp_path / "b-log")
    cuboids.write_bytes(cuboids.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"at least two usable .* has 1; b-log: annotations.feather is no complete"):
        av2(tmp_path)


def equal(one: list[Scene], other: list[Scene]) -> bool:
    """Whether scenes are the same, one by one, array by array."""
    return names(one) == names(other) and all(
        np.array_equal(getattr(a, field.name), getattr(b, field.name), equal_nan=field.name == "position")
        for a, b in zip(one, other, strict=True)
        for field in dataclasses.fields(Scene)
        if field.name not in ("name", "group")
    )


def test_a_cache_changes_nothing(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (recorded / "a-log" / "city_SE3_egovehicle.feather").unlink()
    cache = tmp_path_factory.mktemp("cache") / "store"
    direct, stored = av2(recorded), av2(recorded, cache=cache)
    for part in ("train", "validate", "fit", "test"):
        assert equal(getattr(direct, part), getattr(stored, part)), part
    assert (direct.description, direct.skipped) == (stored.description, stored.skipped)
    assert len(stored.skipped) == 1
    before = SceneStore(cache).manifest
    assert equal(av2(recorded, cache=cache).test, direct.test)
    assert SceneStore(cache).manifest == before
    with pytest.raises(ValueError, match="holds scenes of another source"):
        av2(recorded, cache=cache, stride=3)


def recording(**settings: Any) -> Splits:
    data = Data(kind="recorded", **settings)
    data.check()
    assert Data.from_json(data.to_json()) == data
    return data.read(FRAMING)


def test_recorded_scenes_are_split_by_group(tmp_path: Path) -> None:
    source = RandomScenes(60)
    direct = recording(source=source, fit=0.3, test=0.2)
    # every third of the records holds no scene
    assert [len(logs(part)) for part in (direct.train, direct.validate, direct.fit, direct.test)] == [20, 12, 12, 8]
    assert not logs(direct.train) & logs(direct.fit) | logs(direct.train) & logs(direct.test)
    assert not logs(direct.fit) & logs(direct.test)
    assert sorted(names([*direct.train, *direct.fit, *direct.test])) == sorted(names(load(source).scenes))
    assert direct.description == "60 of 60 scenes of RandomScenes, split by group, of which there are 40"
    assert direct.skipped == load(source).skipped
    # through the cache, and from the cache alone
    for settings in ({"source": source, "cache": tmp_path}, {"cache": tmp_path}):
        stored = recording(**settings, fit=0.3, test=0.2)
        for part in ("train", "validate", "fit", "test"):
            assert equal(getattr(direct, part), getattr(stored, part)), part
        assert (stored.description, stored.skipped) == (direct.description, direct.skipped)
    other = recording(source=source, fit=0.3, test=0.2, seed=1)
    assert names(other.test) != names(direct.test)


def test_of_many_recorded_scenes_some_groups_are_drawn() -> None:
    splits = recording(source=RandomScenes(300), scenes=50)
    kept = [*splits.train, *splits.fit, *splits.test]
    assert 48 < len(kept) <= 50
    count = {group: sum(scene.group == group for scene in kept) for group in logs(kept)}
    assert all(count[group] == int(group.removeprefix("drive-")) % 3 for group in count)
    assert (
        splits.description
        == f"{len(kept)} of 300 scenes of RandomScenes, split by group, of which there are {len(count)}"
    )


def test_too_few_groups_are_refused_with_the_number_that_is_enough(tmp_path: Path) -> None:
    message = (
        "8 groups are too few to split, at least 10 are needed; RandomScenes gave 12 scenes in 8 groups, of which "
        "data.scenes 5000 keeps 12; drive-0: damage 0"
    )
    with pytest.raises(ValueError, match=message):
        recording(source=RandomScenes(12))
    with pytest.raises(ValueError, match=r"0 groups are too few to split, .* of which data.scenes 0 keeps 0"):
        recording(source=RandomScenes(60), scenes=0)
    with pytest.raises(ValueError, match="holds no store of scenes"):
        recording(cache=tmp_path)


def test_parts_of_recorded_scenes_keep_their_groups() -> None:
    framing = Framing(history=5, future=8, stride=2, agents=3, lines=4)
    splits = Data(kind="recorded", source=RandomScenes(60)).read(framing)
    parts = Parts.of(splits, framing, Vocabulary())
    assert len(parts.both_groups.unique()) == len(logs([*splits.fit, *splits.test])) == 14
    assert len(parts.train) == sum(len(scene.target) for scene in splits.train)


@pytest.mark.parametrize(
    ("words", "source"),
    [
        ("Argoverse2:/data/av2", Argoverse2(Path("/data/av2"))),
        ("Argoverse2:a:b", Argoverse2(Path("a:b"))),
        (json.dumps(RandomScenes(3).to_json()), RandomScenes(3)),
        ("None", None),
    ],
)
def test_the_command_line_names_a_source(words: str, source: SceneSource | None) -> None:
    assert read_source(words) == source
    job = tyro.cli(WordsInMotion, args=["--data.kind", "recorded", "--data.source", words])
    assert job.data == Data(kind="recorded", source=source)
    assert Job.from_json(job.to_json()) == job


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("Nowhere:x", "unknown class 'Nowhere'; possible are .*Argoverse2"),
        ("Argoverse2", "a source is CLASS:PATH, like Argoverse2:/data/av2, or a JSON object, not 'Argoverse2'"),
        ('{"class": "Argoverse2", "place": "x"}', "unknown field 'place' of Argoverse2; it has path, windows"),
        ("{", "Expecting property name"),
    ],
)
def test_words_that_name_no_source_are_refused(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_source(words)


def test_what_is_skipped_is_told(recorded: Path) -> None:
    (recorded / "a-log" / "city_SE3_egovehicle.feather").unlink()
    write_log(recorded / "d-log")
    splits = av2(recorded)
    assert logs(splits.fit) == {"b-log", "c-log"}
    assert [(skip.name, skip.reason) for skip in splits.skipped] == [
        ("a-log", "no city_SE3_egovehicle.feather beside it")
    ]


def test_parts_keep_rows_words_and_groups_together(recorded: Path) -> None:
    splits = av2(recorded)
    parts = Parts.of(splits, FRAMING, Vocabulary())
    assert len(parts.both) == len(parts.fit) + len(parts.test)
    assert torch.equal(parts.both.future, torch.cat((parts.fit.future, parts.test.future)))
    for feature in ("speed", "direction"):
        both = parts.both_labels.classes[feature]
        assert torch.equal(both, torch.cat((parts.fit_labels.classes[feature], parts.test_labels.classes[feature])))
    scenes = [*splits.fit, *splits.test]
    of_group = dict[int, set[str]]()
    for row, group in enumerate(parts.both_groups.tolist()):
        of_group.setdefault(group, set()).add(scenes[int(parts.both.scene[row])].group)
    assert sorted(map(sorted, of_group.values())) == [["a-log"], ["b-log"], ["c-log"], ["s"]]
    assert len(parts.fit.scene.unique()) == len(splits.fit)
    assert len(parts.test_labels.words()) == len(parts.test)
    simulated = Parts.of(Data(scenes=100).read(FRAMING), FRAMING, Vocabulary())
    assert len(simulated.both_groups.unique()) == 35


def test_chunks_make_up_the_batch() -> None:
    splits = Data(scenes=100).read(FRAMING)
    batch = Parts.of(dataclasses.replace(splits, train=splits.test), FRAMING, Vocabulary()).both
    pieces = chunks(batch, 30)
    assert [len(piece) for piece in pieces] == [30, 30, 10]
    assert torch.equal(torch.cat([piece.future for piece in pieces]), batch.future)


def test_a_stream_trains_on_all_that_is_not_judged(tmp_path: Path) -> None:
    source = RandomScenes(300)
    direct = recording(source=source, cache=tmp_path, scenes=50)
    streamed = recording(source=source, cache=tmp_path, scenes=50, stream=True)
    for part in ("validate", "fit", "test"):
        assert names(getattr(streamed, part)) == names(getattr(direct, part))
    assert streamed.train == []
    assert streamed.stored is not None
    store, numbers = streamed.stored
    taught = {store.names[i] for i in numbers}
    judged = {*names(streamed.fit), *names(streamed.test)}
    assert taught | judged == set(store.names)
    assert not taught & judged
    assert streamed.training_scenes == len(numbers) > direct.training_scenes
    assert streamed.description.endswith(f"; {len(numbers):,} others are streamed to train on")
    rows = streamed.to_train_on(FRAMING)
    assert isinstance(rows, StoredAgents)
    with pytest.raises(ValueError, match=r"give data\.cache"):
        recording(source=source, stream=True)
