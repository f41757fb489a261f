"""Write scenes to disk: many workers read records, each a few that follow each other, and write a shard of them.

A shard counts when its last file is in place, whoever wrote it, so that an interruption costs at most one shard for
each worker, and the scenes stand in the order of the records however many workers there were.
"""

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from ctypes import c_bool, c_int64
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.sharedctypes import RawArray, RawValue
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from innerspace.harvest.shards import save_manifest
from innerspace.motion.scene_shards import Shard, ShardWriter
from innerspace.motion.scene_store import Origin, SceneManifest, SceneStore
from innerspace.motion.scenes import Scene
from innerspace.motion.sources import SceneSource, Skipped
from innerspace.value import Value

_MOST, _PARTS = 512, 256
"""A shard has at most so many records; of so many records or fewer, each makes a shard of its own."""

_WORTH = 64
"""How many records a worker should have to read, for it takes seconds to start."""


@dataclass(frozen=True)
class _Part(Value):
    """What became of some records: their shard, unless it would be empty, and what was left out of them.

    ``first`` is the scene that the sampling rate ``hz`` is known from.
    """

    shard: Shard | None
    hz: float
    first: str
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class _Task:
    """Records that follow each other, to become shard ``number`` of the store in ``folder``."""

    source: SceneSource
    folder: Path
    number: int
    records: Sequence[str]

    @property
    def name(self) -> str:
        return f"{self.number:05d}"

    @property
    def result(self) -> Path:
        return self.folder / f"{self.name}.json"


def write_store(
    source: SceneSource, folder: Path, *, workers: int | None = None, console: Console | None = None
) -> SceneStore:
    """Read all records of a source and keep their scenes in a folder; what is left out goes to ``skipped.jsonl``.

    ``workers`` processes read, by default one for each core, or fewer if there is little to read; with one or none it
    is done here. In a script it takes the guard ``if __name__ == "__main__"`` of modules that start processes. The
    ``console`` shows progress. Given the same source again, an interrupted store goes on where it stood, but for the
    shards that were not finished, and a complete one is opened; the bytes of the scenes are the same in any case.

    Raises:
        ValueError: if there is nothing to read, no scene at all or scenes of several sampling rates, the folder holds
            anything else or is being written by another process, or a worker was killed.
    """
    if workers is not None and workers < 0:
        raise ValueError(f"the number of workers should not be negative, it is {workers}")
    records = source.records()
    names = hashlib.blake2b("\n".join(records).encode(), digest_size=8).hexdigest()
    together = max(1, min(_MOST, len(records) // _PARTS))
    origin = Origin(json.dumps(source.to_json()), len(records), names, together)
    _check_folder(folder, origin)
    if (folder / "manifest.json").is_file():
        return SceneStore(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _save(origin, folder / "origin.json")
        starts = range(0, len(records), together)
        tasks = [_Task(source, folder, i, records[at : at + together]) for i, at in enumerate(starts)]
        if workers is None:
            workers = min(os.cpu_count() or 1, len(records) // _WORTH)
        _finish(_read_all(tasks, workers, console), origin, folder)
    return SceneStore(folder)


def _check_folder(folder: Path, origin: Origin) -> None:
    """Refuse a folder that holds anything but a store of the same origin."""
    if (folder / "origin.json").is_file():
        found = Origin.load(folder / "origin.json")
        if found.source != origin.source:
            raise ValueError(
                f"{folder} holds scenes of another source, {found.source}, not of {origin.source}; "
                f"remove it or give another folder"
            )
        if found != origin:
            raise ValueError(
                f"{folder} holds scenes of {found.records} records, the source now has {origin.records}, or others; "
                f"remove it or give another folder"
            )
    elif folder.exists() and (
        not folder.is_dir() or {path.name for path in folder.iterdir()} - {"lock", "origin.partial"}
    ):
        raise ValueError(f"{folder} holds other files; a store needs a folder of its own")


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Keep others from writing here; the lock of a process that ended, however, is gone with it."""
    import fcntl  # not every system has it, and what is stored can be read without

    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is writing the store at {folder}; wait until it has finished") from None
        yield


def _read_all(tasks: Sequence[_Task], workers: int, console: Console | None) -> list[_Part]:
    """What became of every task, of some before the last interruption."""
    parts, total = dict[int, _Part](), sum(len(task.records) for task in tasks)
    shown = console is not None and console.is_terminal
    columns = (TextColumn("  reading records"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        bar = progress.add_task("", total=total)

        def collect(task: _Task, part: _Part) -> None:
            parts[task.number] = part
            known = [other for other in parts.values() if other.shard]
            if part.shard:
                _same_rate(known[0].first, known[0].hz, part.first, part.hz)

        for task in tasks:
            if task.result.is_file():
                collect(task, _Part.load(task.result))
        done = sum(len(task.records) for task in tasks if task.number in parts)
        progress.update(bar, completed=done)
        left = [task for task in tasks if task.number not in parts]
        if min(workers, len(left)) < 2:
            for task in left:
                collect(task, _write(task, lambda _: progress.advance(bar)))
        else:
            _share_out(left, min(workers, len(left)), collect, lambda read: progress.update(bar, completed=done + read))
    return [parts[task.number] for task in tasks]


def _share_out(
    tasks: Sequence[_Task], workers: int, collect: Callable[[_Task, _Part], None], tell: Callable[[int], None]
) -> None:
    """Let processes do the tasks; ``tell`` hears how many records are read."""
    # without locks, for a process that is killed would keep them
    counts, stop = RawArray(c_int64, tasks[-1].number + 1), RawValue(c_bool, False)
    context = get_context("forkserver")
    # the server imports what all workers need, once
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, context, _begin_worker, (counts, stop))
    try:
        with _one_thread():
            waiting = {pool.submit(_work, task): task for task in tasks}
        while waiting:
            for future in wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED).done:
                collect(waiting.pop(future), future.result())
            tell(sum(counts))
    except BrokenProcessPool:
        raise ValueError(
            f"one of {workers} processes that read records was killed, perhaps for want of memory, or could not start, "
            f"as in a script without the guard 'if __name__ == \"__main__\"'; the same call goes on where it stood"
        ) from None
    finally:
        stop.value = True
        pool.shutdown(cancel_futures=True)


_signals: tuple[Any, Any] | None = None  # of a worker: how many records of every task are read, and whether to stop


def _begin_worker(counts: Any, stop: Any) -> None:
    global _signals
    _signals = counts, stop
    torch.set_num_threads(1)
    # the process that started this one hears of an interruption, and says what is to be done
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this a worker whose parent is killed would wait for tasks for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(task: _Task) -> _Part:
    assert _signals is not None
    counts, stop = _signals

    def tell(read: int) -> None:
        counts[task.number] = read
        if stop.value:
            raise InterruptedError("nobody waits for the rest of this task")

    return _write(task, tell)


def _write(task: _Task, tell: Callable[[int], None]) -> _Part:
    """Read a task's records and write their shard; ``tell`` hears of every record."""
    writer, skipped = ShardWriter(task.folder, task.name), list[Skipped]()
    first: Scene | None = None
    for read, record in enumerate(task.records, start=1):
        for item in task.source.read(record):
            if isinstance(item, Skipped):
                skipped.append(item)
                continue
            first = first or item
            _same_rate(first.name, first.hz, item.name, item.hz)
            writer.append(item)
        tell(read)
    shard = writer.close()
    part = _Part(shard, first.hz, first.name, tuple(skipped)) if first else _Part(shard, 0.0, "", tuple(skipped))
    _save(part, task.result)
    return part


def _finish(parts: Sequence[_Part], origin: Origin, folder: Path) -> None:
    """Write what is known of all shards, and remove what was known of each."""
    skipped = [skip for part in parts for skip in part.skipped]
    filled = [(part.shard, part.hz) for part in parts if part.shard]
    if not filled:
        raise ValueError(
            f"none of the {origin.records} records holds a scene that can be read"
            + "".join(f"; {skip.name}: {skip.reason}" for skip in skipped[:3])
        )
    lines = [json.dumps({"name": skip.name, "reason": skip.reason}) + "\n" for skip in skipped]
    (folder / "skipped.jsonl").write_text("".join(lines))
    shards = tuple(shard for shard, _ in filled)
    save_manifest(SceneManifest(origin, filled[0][1], shards, len(skipped)), folder)
    for number in range(len(parts)):
        (folder / f"{number:05d}.json").unlink()


def _same_rate(one: str, hz: float, other: str, other_hz: float) -> None:
    if hz != other_hz:
        raise ValueError(
            f"scenes of one sampling rate are needed: {one!r} has {hz:g} Hz and {other!r} has {other_hz:g} Hz"
        )


def _save(value: Value, path: Path) -> None:
    """Write a value, or replace it, in one step."""
    partial = path.with_suffix(".partial")
    value.save(partial)
    partial.replace(path)


@contextmanager
def _one_thread() -> Generator[None]:
    """Processes that are started here compute with one thread each."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
