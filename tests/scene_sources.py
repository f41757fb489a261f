"""Random scenes that need no files, whose reading may fail on purpose; worker processes import them from here."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from innerspace.motion.scenes import KINDS, LINE_KINDS, Scene
from innerspace.motion.sources import SceneSource, Skipped


def random_scene(name: str, group: str, seed: int, *, hz: float = 10.0, targets: int | None = None) -> Scene:
    """Agents and lines of random number and kind; what is not valid is no number."""
    random = np.random.default_rng(seed)
    agents, lines = random.integers(1, 6), random.integers(0, 7)
    valid = random.random((agents, 14)) < 0.8
    valid[:, 4] = True
    position = random.normal(scale=1e3, size=(agents, 14, 2))
    position[~valid] = np.nan
    line_valid = np.arange(5) < random.integers(1, 6, size=(lines, 1))
    chosen = random.permutation(agents)[: random.integers(1, agents + 1) if targets is None else targets]
    return Scene(
        name=name,
        position=position,
        heading=random.normal(size=(agents, 14)),
        velocity=random.normal(size=(agents, 14, 2)),
        size=random.random((agents, 3)),
        kind=random.integers(len(KINDS), size=agents),
        valid=valid,
        target=np.sort(chosen),
        line=random.normal(size=(lines, 5, 2)),
        line_kind=random.integers(len(LINE_KINDS), size=lines),
        line_valid=line_valid,
        hz=hz,
        now=4,
        group=group,
    )


@dataclass(frozen=True)
class RandomScenes(SceneSource):
    """Record ``drive-i`` holds i mod 3 scenes; every fourth record is damaged as well.

    While the file ``brake`` is there, a record takes 0.1 s. Who reads record ``fatal`` while the file ``fuse`` is there
    removes it, and is killed. From record ``faster`` on scenes have 25 Hz. With ``targets`` every scene
    has so many, at most.
    """

    count: int = 12
    brake: Path | None = None
    fuse: Path | None = None
    fatal: int = 7
    faster: int = 10**9
    targets: int | None = None

    def records(self) -> list[str]:
        return [f"drive-{i}" for i in range(self.count)]

    def read(self, record: str) -> Iterator[Scene | Skipped]:
        number = int(record.removeprefix("drive-"))
        if self.brake is not None and self.brake.exists():
            time.sleep(0.1)
        if self.fuse is not None and number == self.fatal and self.fuse.exists():
            self.fuse.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        for i in range(number % 3):
            hz = 25.0 if number >= self.faster else 10.0
            yield random_scene(f"{record}@{i}", record, 100 * number + i, hz=hz, targets=self.targets)
        if number % 4 == 0:
            yield Skipped(record, f"damage {number} – beyond repair")
