import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from argoverse_files import write_log, write_scenario
from innerspace.jobs.data import Data, Splits
from innerspace.jobs.parts import Parts, chunks
from innerspace.motion.framing import Framing
from innerspace.motion.scenes import Scene
from innerspace.motion.words import Vocabulary

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
        ({"kind": "av2", "path": Path(), "scenes": 7}, "data.scenes is a setting of simulated scenes"),
        ({"stride": 7}, "data.stride is a setting of recorded scenes, but data.kind is simulated"),
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
