"""Scenes as bytes: the arrays of one after those of another, so that a scene is one read, and views of it no copies.

A shard is three files: the bytes of its scenes, a table of where each begins and how large its arrays are, and its
names. Within a scene numbers of eight bytes come first and truth values last, so that all are aligned. Floating-point
numbers are kept in double precision: what is made of a stored scene is, bit for bit, what is made of the scene.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Int, UInt8

from innerspace.harvest.shards import ArrayFile, ArrayWriter
from innerspace.motion.scenes import Scene
from innerspace.value import Value

COLUMNS = ("start", "agents", "steps", "targets", "lines", "nodes", "now")
"""What the table says of a scene: its first byte in the shard, the sizes of its arrays, and its current step."""


@dataclass(frozen=True)
class Shard(Value):
    """The files of scenes that were written together."""

    scenes: ArrayFile
    table: ArrayFile
    names: ArrayFile

    @property
    def files(self) -> tuple[ArrayFile, ArrayFile, ArrayFile]:
        """All three."""
        return self.scenes, self.table, self.names


@final
class ShardWriter:
    """Appends scenes to a shard, whose files get their names when it is closed; only the table is kept in memory."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._bytes = ArrayWriter(folder, f"{name}.scenes", "|u1", ())
        self._table = list[tuple[int, ...]]()
        self._names = list[tuple[str, str]]()

    def append(self, scene: Scene) -> None:
        """Write a scene."""
        agents, steps = scene.valid.shape
        sizes = (agents, steps, len(scene.target), *scene.line_valid.shape)
        self._table.append((self._bytes.rows, *sizes, scene.now))
        self._names.append((scene.name, scene.group))
        parts = [
            np.ascontiguousarray(getattr(scene, field), dtype).reshape(-1).view(np.uint8)
            for field, dtype, _ in _layout(*sizes)
        ]
        filled = sum(map(len, parts))
        self._bytes.append(np.concatenate([*parts, np.zeros(-filled % 8, np.uint8)]))

    def close(self) -> Shard | None:
        """The complete shard, or none if it has no scene."""
        if not self._table:
            return None
        table = ArrayWriter(self._folder, f"{self._name}.table", "<i8", (len(COLUMNS),))
        table.append(np.array(self._table))
        names = ArrayWriter(self._folder, f"{self._name}.names", "|u1", ())
        names.append(np.frombuffer(json.dumps(self._names).encode(), np.uint8))
        return Shard(self._bytes.close(), table.close(), names.close())


def read_table(folder: Path, shard: Shard) -> Int[np.ndarray, "scenes columns"]:
    """Where the scenes of a shard are.

    Raises:
        ValueError: if the file is missing or damaged, naming it.
    """
    return np.array(shard.table.open(folder, verify=True))


def read_names(folder: Path, shard: Shard) -> list[tuple[str, str]]:
    """Name and group of every scene of a shard.

    Raises:
        ValueError: if the file is missing or damaged, naming it.
    """
    return [(name, group) for name, group in json.loads(shard.names.open(folder, verify=True).tobytes())]


def view(
    data: UInt8[np.ndarray, "bytes"],
    row: Int[np.ndarray, "columns"],
    hz: float,
    name: str,
    group: str,
    chosen: Int[np.ndarray, "some"] | None = None,
) -> Scene:
    """A scene of a shard without a copy, and unchecked: it was checked before it was written.

    ``row`` is its row of the table. ``chosen`` keeps some of the agents to forecast, given by their places among them.
    """
    start, *sizes, now = row.tolist()
    arrays = dict[str, np.ndarray]()
    for field, dtype, shape in _layout(*sizes):
        end = start + prod(shape) * np.dtype(dtype).itemsize
        arrays[field] = data[start:end].view(dtype).reshape(shape)
        start = end
    if chosen is not None:
        arrays["target"] = arrays["target"][chosen]
    # checking costs as much as a tenth of framing
    scene = object.__new__(Scene)
    scene.__dict__.update(arrays, name=name, group=group, hz=hz, now=now)
    return scene


def _layout(
    agents: int, steps: int, targets: int, lines: int, nodes: int
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Every array of a scene in the order of its bytes, with its type and shape."""
    yield "position", "<f8", (agents, steps, 2)
    yield "heading", "<f8", (agents, steps)
    yield "velocity", "<f8", (agents, steps, 2)
    yield "size", "<f8", (agents, 3)
    yield "line", "<f8", (lines, nodes, 2)
    yield "kind", "<i8", (agents,)
    yield "target", "<i8", (targets,)
    yield "line_kind", "<i8", (lines,)
    yield "valid", "|b1", (agents, steps)
    yield "line_valid", "|b1", (lines, nodes)
