"""Rows on disk in random order, mixed in a buffer, so that reading stays sequential.

Neighbors in a text are alike, so rows in the order of writing make poor batches; single rows in random order make slow
reading. Here short blocks of rows are permuted and dealt into groups; a group is read in ascending order into a buffer,
and its rows are drawn in random order, while rows of the next group take the slots that become free. What is drawn
when depends on the seed alone, so a place in the stream is one number, for any number of processes.
"""

from collections.abc import Callable, Iterator
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.checkpoint import State
from innerspace.harvest.epochs import check_batch, check_even, check_same


@final
class Shuffled:
    """An endless, resumable stream of batches in which every row comes once per epoch.

    ``read`` gives rows by their numbers 0 … ``count`` − 1. ``block`` neighboring rows are read together, and about
    ``buffer`` rows, shared out among the processes, are mixed at a time. A draw reads as many rows as it gives. Process
    ``rank`` of ``world`` takes the rows rank, rank + world, … of every batch. ``source`` names the rows in the state.

    Raises:
        ValueError: for numbers that do not fit the rows or each other.
    """

    def __init__(
        self,
        read: Callable[[Int[Tensor, "rows"]], Float[Tensor, "rows d"]],
        count: int,
        source: str,
        batch: int,
        seed: int,
        *,
        rank: int,
        world: int,
        block: int,
        buffer: int,
    ) -> None:
        check_batch(count, batch)
        check_even(batch, rank, world)
        if not (1 <= block <= buffer and seed >= 0):
            raise ValueError(f"1 ≤ block ≤ buffer and seed ≥ 0 are needed; they are {block}, {buffer} and {seed}")
        self._read, self._count, self._rank, self._world = read, count, rank, world
        self._identity = {"source": source, "seed": seed, "batch": batch, "block": block, "buffer": buffer}
        self._batch, self._seed, self._block = batch, seed, block
        self._blocks = -(-count // block)
        self._per_epoch = -(-self._blocks // (buffer // block))
        self._begin(drawn=0)

    def next(self) -> Float[Tensor, "rows d"]:
        """The next batch, or this process's share of it."""
        parts, needed = list[Tensor](), self._batch // self._world
        while needed:
            if self._current.done:
                self._advance()
            slots = self._current.draw(needed)
            parts.append(self._buffer[slots])
            needed -= len(slots)
            self._free = np.concatenate((self._free, slots))
            self._load()
        self._drawn += self._batch
        return torch.cat(parts)

    def state(self) -> State:
        """Where the stream stands."""
        return {**self._identity, "drawn": self._drawn}

    def restore(self, state: State) -> None:
        """Continue where ``state`` was taken.

        Raises:
            ValueError: if it was taken from another stream.
        """
        check_same(self._identity, state)
        self._begin(state["drawn"])

    def _begin(self, drawn: int) -> None:
        self._drawn, self._groups = drawn, self._plan(drawn)
        largest = -(-self._blocks // self._per_epoch) * self._block
        self._buffer = self._read(torch.arange(1))[0].expand(-(-largest // self._world), -1).clone()
        self._free = np.arange(len(self._buffer))
        self._upcoming = next(self._groups)
        self._load()
        self._advance()

    def _advance(self) -> None:
        assert self._upcoming.loaded == len(self._upcoming.rows)
        self._current, self._upcoming = self._upcoming, next(self._groups)
        self._load()

    def _load(self) -> None:
        """Read as much of the upcoming group as there are free slots."""
        rows, slots = self._upcoming.load(self._free)
        self._free = self._free[len(slots) :]
        if len(rows):
            self._buffer[slots] = self._read(torch.from_numpy(rows))

    def _plan(self, drawn: int) -> Iterator["_Group"]:
        """The groups from a place of the stream on, this process's rows of each in their order of drawing."""
        epoch, _ = divmod(drawn, self._count)
        while True:
            start = epoch * self._count
            order = np.random.default_rng([self._seed, epoch]).permutation(self._blocks)
            for number, blocks in enumerate(np.array_split(order, self._per_epoch), start=1):
                rows = (blocks[:, None] * self._block + np.arange(self._block)).ravel()
                rows = rows[rows < self._count]
                if start + len(rows) > drawn:
                    # numbers count from one: a seed that ends with zero is the same as one without it
                    rows = np.random.default_rng([self._seed, epoch, number]).permutation(rows)
                    done = max(0, drawn - start)
                    yield _Group(rows[done + (self._rank - start - done) % self._world :: self._world])
                start += len(rows)
            epoch += 1


@final
class _Group:
    """Rows that are mixed with each other: read in ascending order, drawn in another, each from its slot."""

    def __init__(self, order: Int[np.ndarray, "rows"]) -> None:
        self.rows, self.loaded, self._given = np.sort(order), 0, 0
        self._turns = np.searchsorted(self.rows, order)
        self._slots = np.empty_like(order)

    @property
    def done(self) -> bool:
        return self._given == len(self.rows)

    def load(self, free: Int[np.ndarray, "slots"]) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
        """The next rows to read, and the slots for them."""
        rows = self.rows[self.loaded : self.loaded + len(free)]
        slots = free[: len(rows)]
        self._slots[self.loaded : self.loaded + len(rows)] = slots
        self.loaded += len(rows)
        return rows, slots

    def draw(self, count: int) -> Int[np.ndarray, "n"]:
        """The slots of at most so many next rows."""
        turns = self._turns[self._given : self._given + count]
        self._given += len(turns)
        return self._slots[turns]
