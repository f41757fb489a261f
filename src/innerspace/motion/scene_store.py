"""Scenes on disk, mapped into memory: read by number, framed on the fly, drawn in random order.

A store is a folder that ``write_store`` fills. ``manifest.json``, written last, says what the scenes were made from and
lists the shards, in the order of the source's records. What is known of all scenes (their sizes, names, groups) is read
without reading them.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from innerspace.checkpoint import State
from innerspace.harvest.epochs import Epochs, check_even
from innerspace.harvest.shards import fingerprint
from innerspace.motion.framing import Batch, Framing, frame
from innerspace.motion.scene_shards import COLUMNS, Shard, read_names, read_table, view
from innerspace.motion.scenes import Scene
from innerspace.motion.sources import Loaded, Skipped
from innerspace.parallel import Share
from innerspace.value import Value


@dataclass(frozen=True)
class Origin(Value):
    """What a store is made from: a source as JSON, and how many records it has, with a hash of their names.

    ``together`` records make a shard.
    """

    source: str
    records: int
    names: str
    together: int


@dataclass(frozen=True)
class SceneManifest(Value):
    """What is in a store: its shards, the sampling rate of all scenes, and how much was left out."""

    origin: Origin
    hz: float
    shards: tuple[Shard, ...]
    skipped: int


@final
class SceneStore:
    """The scenes in a folder; only those asked for are read.

    Raises:
        ValueError: if there is no complete store, or a file is missing, cut off, or, but for scenes, damaged.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "manifest.json").is_file():
            begun = (folder / "origin.json").is_file()
            raise ValueError(
                f"the store at {folder} was interrupted; write_store with the same source completes it"
                if begun
                else f"{folder} holds no store of scenes"
            )
        self.folder, self.manifest = folder, SceneManifest.load(folder / "manifest.json")
        shards = self.manifest.shards
        self._data = [np.asarray(shard.scenes.open(folder, verify=False)) for shard in shards]
        tables = [read_table(folder, shard) for shard in shards]
        self._table = np.concatenate(tables)
        self._shard = np.repeat(np.arange(len(shards)), [len(table) for table in tables])
        self._first = np.cumsum([0, *self._table[:, COLUMNS.index("targets")]])

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: int) -> Scene:
        """A scene, whose arrays are views of the file.

        Raises:
            IndexError: for a scene that does not exist.
        """
        return self._view(range(len(self))[number], None)

    def __iter__(self) -> Iterator[Scene]:
        return (self[number] for number in range(len(self)))

    @property
    def agents(self) -> int:
        """How many agents there are to forecast, in all scenes together; those of a scene follow each other."""
        return int(self._first[-1])

    def agents_of(self, scenes: Int[np.ndarray, "some"]) -> Int[np.ndarray, "agents"]:
        """The numbers of these scenes' agents to forecast."""
        return np.concatenate([np.arange(0), *(np.arange(*self._first[i : i + 2]) for i in scenes)])

    @cached_property
    def names(self) -> list[str]:
        """The name of every scene."""
        return [name for name, _ in self._named]

    @cached_property
    def groups(self) -> list[str]:
        """The group of every scene."""
        return [group for _, group in self._named]

    def skipped(self) -> list[Skipped]:
        """What was left out, and why, in the order of the records."""
        lines = (self.folder / "skipped.jsonl").read_text().splitlines()
        return [Skipped.from_json(json.loads(line)) for line in lines]

    def load(self) -> Loaded:
        """All scenes as a list, which takes little memory until their arrays are read."""
        return Loaded(list(self), self.skipped())

    def verify(self) -> None:
        """Read every byte once to compare the checksums.

        Raises:
            ValueError: if a file is missing or damaged, naming it.
        """
        for shard in self.manifest.shards:
            for file in shard.files:
                file.open(self.folder, verify=True)

    def frame(self, agents: Int[np.ndarray, "rows"], framing: Framing) -> Batch:
        """Look at scenes from some of their agents to forecast, given by their numbers in the whole store.

        ``scene`` of the batch counts the scenes of the store.

        Raises:
            ValueError: for an agent that does not exist, or lines that have too many nodes.
        """
        if len(agents) and not 0 <= agents.min() <= agents.max() < self.agents:
            raise ValueError(f"there are agents 0 … {self.agents - 1}, not {agents.min()} … {agents.max()}")
        order = np.argsort(agents, kind="stable")
        sorted_ = agents[order]
        scene = np.searchsorted(self._first, sorted_, side="right") - 1
        numbers, first = np.unique(scene, return_index=True)
        parts = np.split(sorted_ - self._first[scene], first[1:])
        scenes = [self._view(int(number), part) for number, part in zip(numbers, parts, strict=True)]
        rows = replace(frame(scenes, framing), scene=torch.from_numpy(scene))
        return rows[torch.from_numpy(np.argsort(order))]

    def batches(
        self,
        framing: Framing,
        size: int,
        seed: int,
        *,
        scenes: Int[np.ndarray, "some"] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> "SceneBatches":
        """An endless stream of batches of agents, of all scenes or of some; see ``SceneBatches``."""
        return SceneBatches(self, framing, size, seed, scenes=scenes, rank=rank, world=world)

    @cached_property
    def _named(self) -> list[tuple[str, str]]:
        return [pair for shard in self.manifest.shards for pair in read_names(self.folder, shard)]

    def _view(self, number: int, chosen: Int[np.ndarray, "some"] | None) -> Scene:
        """A scene with all of its agents to forecast, or with some, given by their places among them."""
        data, row = self._data[self._shard[number]], self._table[number]
        return view(data, row, self.manifest.hz, self.names[number], self.groups[number], chosen)


@final
class StoredAgents:
    """The agents to forecast of some scenes of a store, as rows that are framed when they are asked for.

    Indexed as a ``Batch`` is, but never all in memory.

    Raises:
        ValueError: if none of the scenes has an agent to forecast.
    """

    def __init__(self, store: SceneStore, framing: Framing, scenes: Int[np.ndarray, "some"]) -> None:
        self.store, self.framing, self.scenes = store, framing, len(scenes)
        self._agents = store.agents_of(scenes)
        if not len(self._agents):
            raise ValueError(f"none of these scenes of the store at {store.folder} has an agent to forecast")

    def __len__(self) -> int:
        return len(self._agents)

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        """Some of the rows, on the processor."""
        return self.store.frame(self._agents[rows if isinstance(rows, slice) else rows.cpu().numpy()], self.framing)


@final
class SceneBatches:
    """An endless, resumable stream of batches: every epoch is a permutation of the agents, by (seed, epoch).

    Scenes are framed when they are drawn. All processes together get the same batches as one alone: process ``rank`` of
    ``world`` takes the rows rank, rank + world, … of each. Agents at the end of an epoch that fill no batch are left
    out; the next epoch leaves out others.

    Raises:
        ValueError: for a batch that is larger than what there is, or cannot be shared out evenly, or a negative seed.
    """

    def __init__(
        self,
        store: SceneStore,
        framing: Framing,
        size: int,
        seed: int,
        *,
        scenes: Int[np.ndarray, "some"] | None,
        rank: int,
        world: int,
    ) -> None:
        self._agents = store.agents_of(np.arange(len(store)) if scenes is None else scenes)
        if not len(self._agents):
            raise ValueError(f"none of these scenes of the store at {store.folder} has an agent to forecast")
        check_even(size, rank, world)
        self._store, self._framing = store, framing
        identity = {
            "store": fingerprint(store.manifest),
            "framing": json.dumps(framing.to_json()),
            "agents": hashlib.blake2b(self._agents.tobytes(), digest_size=8).hexdigest(),
        }
        self._epochs = Epochs(len(self._agents), size, seed, identity, Share(rank, world), "agents")

    def next(self) -> Batch:
        """The next batch, or this process's share of it."""
        return self._store.frame(self._agents[self._epochs.next().numpy()], self._framing)

    def state(self) -> State:
        """Where the stream stands, the same for every process."""
        return self._epochs.state()

    def restore(self, state: State) -> None:
        """Continue where ``state`` was taken, by any number of processes.

        Raises:
            ValueError: if it was taken from another stream.
        """
        self._epochs.restore(state)
