import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from argoverse_files import write_log, write_scenario
from innerspace.motion import scene_writing
from innerspace.motion.argoverse import Argoverse2
from innerspace.motion.scene_store import SceneStore
from innerspace.motion.scene_writing import write_store
from innerspace.motion.scenes import Scene
from innerspace.motion.sources import Skipped, load
from scene_sources import RandomScenes

SOURCE = RandomScenes()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but those that name the source, whose settings may differ in when it fails."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".scenes", ".table", ".names")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store that was written in one go by one process."""
    return write_store(SOURCE, tmp_path_factory.mktemp("store") / "whole", workers=0).folder


def test_two_workers_write_what_one_process_writes(tmp_path: Path, whole: Path) -> None:
    store = write_store(SOURCE, tmp_path, workers=2)
    assert contents(tmp_path) == contents(whole)
    assert (tmp_path / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()
    expected = load(SOURCE)
    assert store.names == [scene.name for scene in expected.scenes]
    assert store.skipped() == expected.skipped
    assert {path.suffix for path in tmp_path.iterdir()} == {".scenes", ".table", ".names", ".json", ".jsonl", ""}


def test_records_are_shared_out_in_runs(tmp_path: Path) -> None:
    # 515 records make shards of 2, of which the last has what is left
    store = write_store(RandomScenes(515), tmp_path, workers=0)
    assert store.manifest.origin.together == 2
    # of six records that follow each other two hold nothing, of different shards
    assert len(store.manifest.shards) == 258
    assert store.names[-3:] == ["drive-512@0", "drive-512@1", "drive-514@0"]


def test_what_is_skipped_is_counted_and_listed(whole: Path) -> None:
    store = SceneStore(whole)
    assert store.manifest.skipped == 3
    lines = [json.loads(line) for line in (whole / "skipped.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["drive-0", "drive-4", "drive-8"]
    assert [skip.reason for skip in store.skipped()] == [f"damage {i} – beyond repair" for i in (0, 4, 8)]


def test_a_killed_run_goes_on_behind_its_last_shard(tmp_path: Path, whole: Path) -> None:
    # the child is killed while it reads record 7, without a chance to tidy up
    folder, source = tmp_path / "store", RandomScenes(fuse=tmp_path / "fuse")
    (tmp_path / "fuse").touch()
    code = writing(source, folder, workers=0)
    assert subprocess.run([sys.executable, "-c", code], env=environment(), check=False).returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="was interrupted; write_store with the same source completes it"):
        SceneStore(folder)
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.scenes")}
    assert [path.name for path in sorted(finished)] == [f"{i:05d}.scenes" for i in (1, 2, 4, 5)]
    write_store(source, folder, workers=0)
    assert contents(folder) == contents(whole)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    folder, source = tmp_path / "store", RandomScenes(count=200, brake=tmp_path / "brake")
    (tmp_path / "brake").touch()
    # all that it starts is in a group of its own
    code = writing(source, folder, workers=2)
    child = subprocess.Popen([sys.executable, "-c", code], env=environment(), start_new_session=True)
    until(lambda: len(list(folder.glob("*.json"))) > 3)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    until(lambda: not alive(child.pid))
    (tmp_path / "brake").unlink()
    with pytest.raises(ValueError, match="was interrupted"):
        SceneStore(folder)
    assert write_store(source, folder, workers=0).names == [scene.name for scene in load(source).scenes]


def test_an_interruption_stops_the_workers_and_costs_what_they_had_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store"
    patient = scene_writing.wait

    def interrupted(*arguments: Any, **settings: Any) -> Any:
        if len(list(folder.glob("*.json"))) > 3:
            raise KeyboardInterrupt
        return patient(*arguments, **settings)

    monkeypatch.setattr(scene_writing, "wait", interrupted)
    source = RandomScenes(count=200, brake=tmp_path / "brake")
    (tmp_path / "brake").touch()
    with pytest.raises(KeyboardInterrupt):
        write_store(source, folder, workers=2)
    monkeypatch.undo()
    (tmp_path / "brake").unlink()
    finished = len(list(folder.glob("0*.json")))
    assert 3 <= finished < 100
    assert len(write_store(source, folder, workers=0)) == len(load(source).scenes)


def test_a_killed_worker_is_told_and_the_same_call_goes_on(tmp_path: Path, whole: Path) -> None:
    source = RandomScenes(fuse=tmp_path / "fuse")
    (tmp_path / "fuse").touch()
    with pytest.raises(ValueError, match="one of 2 processes that read records was killed, perhaps for want of memory"):
        write_store(source, tmp_path / "store", workers=2)
    write_store(source, tmp_path / "store", workers=2)
    assert contents(tmp_path / "store") == contents(whole)


def test_a_complete_store_is_opened_and_not_written(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    assert len(write_store(SOURCE, whole)) == 12
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before


def test_another_source_is_refused(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(ValueError, match=r'holds scenes of another source, .*"count": 12.*, not of .*"count": 13'):
        write_store(RandomScenes(13), whole)
    for log in ("a", "b"):
        write_log(tmp_path / "logs" / log)
    source = Argoverse2(tmp_path / "logs")
    assert write_store(source, tmp_path / "store").groups == ["a"] * 3 + ["b"] * 3
    write_scenario(tmp_path / "logs" / "c", "c")
    with pytest.raises(
        ValueError, match="holds scenes of 2 records, the source now has 3, or others; remove it or give"
    ):
        write_store(source, tmp_path / "store")


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for folder in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ValueError, match="holds other files; a store needs a folder of its own"):
            write_store(SOURCE, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="holds no store of scenes"):
        SceneStore(tmp_path)


@dataclass(frozen=True)
class Meddling(RandomScenes):
    """While it is read into a folder, another call wants to write there."""

    folder: Path = Path()

    def read(self, record: str) -> Iterator[Scene | Skipped]:
        with pytest.raises(ValueError, match="another process is writing the store at"):
            write_store(self, self.folder)
        return super().read(record)


def test_two_do_not_write_at_once(tmp_path: Path) -> None:
    assert len(write_store(Meddling(3, folder=tmp_path), tmp_path, workers=0)) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_mixed_sampling_rates_are_refused_and_both_are_named(tmp_path: Path, workers: int) -> None:
    with pytest.raises(
        ValueError, match=r"of one sampling rate are needed: 'drive-\d+@\d' has \d+ Hz and 'drive"
    ) as error:
        write_store(RandomScenes(faster=7), tmp_path, workers=workers)
    assert "has 10 Hz" in str(error.value)
    assert "has 25 Hz" in str(error.value)


def test_what_holds_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no scenario_\*\.parquet and no annotations\.feather in .*empty or below"):
        write_store(Argoverse2(tmp_path / "empty"), tmp_path / "store")
    assert not (tmp_path / "store").exists()
    reason = "none of the 1 records holds a scene that can be read; drive-0: damage 0 – beyond repair"
    for _ in range(2):
        with pytest.raises(ValueError, match=reason):
            write_store(RandomScenes(1), tmp_path / "store")
    with pytest.raises(ValueError, match="the number of workers should not be negative, it is -1"):
        write_store(SOURCE, tmp_path / "other", workers=-1)


def writing(source: RandomScenes, folder: Path, workers: int) -> str:
    """A program that writes a store."""
    return (
        "import json; from pathlib import Path; from scene_sources import RandomScenes; "
        "from innerspace.motion.scene_writing import write_store; "
        f"source = RandomScenes.from_json(json.loads({json.dumps(source.to_json())!r})); "
        f"write_store(source, Path({str(folder)!r}), workers={workers})"
    )


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(group: int) -> bool:
    """Whether any process of a group has not ended; those that nobody waits for have."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, own = path.read_text().rsplit(")", 1)[1].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(own) == group and state != "Z":
            return True
    return False
