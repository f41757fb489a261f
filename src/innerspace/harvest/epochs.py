"""What is numbered, in random order, batch by batch: endless, resumable, shared out among processes."""

from collections.abc import Mapping
from typing import final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from innerspace.checkpoint import State
from innerspace.parallel import Share


@final
class Epochs:
    """The numbers 0 … ``count`` − 1, a ``batch`` at a time: every epoch is a permutation of them, by (seed, epoch).

    All processes together get the same batches as one alone. What fills no batch at the end of an epoch is left out;
    the next epoch leaves out others. ``identity`` says in the state what is numbered, ``noun`` in an error.

    Raises:
        ValueError: for a batch that is larger than what there is, or a negative seed.
    """

    def __init__(
        self,
        count: int,
        batch: int,
        seed: int,
        identity: Mapping[str, int | str],
        share: Share = Share(),
        noun: str = "rows",
    ) -> None:
        check_batch(count, batch, noun)
        if seed < 0:
            raise ValueError(f"the seed should not be negative, it is {seed}")
        self._count, self._batch, self._seed, self._share = count, batch, seed, share
        self._identity = {**identity, "seed": seed, "batch": batch}
        self._begin(epoch=0, position=0)

    def next(self) -> Int[Tensor, "batch"]:
        """The numbers of the next batch, or this process's share of them."""
        if self._position + self._batch > self._count:
            self._begin(self._epoch + 1, position=0)
        numbers = self._order[self._position : self._position + self._batch]
        self._position += self._batch
        return self._share.of(torch.from_numpy(numbers).long())

    def state(self) -> State:
        """Where the stream stands, the same for every process."""
        return {**self._identity, "epoch": self._epoch, "position": self._position}

    def restore(self, state: State) -> None:
        """Continue where ``state`` was taken, by any number of processes.

        Raises:
            ValueError: if it was taken from another stream.
        """
        check_same(self._identity, state)
        self._begin(state["epoch"], state["position"])

    def _begin(self, epoch: int, position: int) -> None:
        # a permutation per (seed, epoch) needs no generator state to be kept; four bytes for each number are enough
        self._order = np.arange(self._count, dtype=np.int32)
        np.random.default_rng([self._seed, epoch]).shuffle(self._order)
        self._epoch, self._position = epoch, position


def check_batch(count: int, batch: int, noun: str = "rows") -> None:
    """Refuse batches that are larger than what there is.

    Raises:
        ValueError: saying what is possible.
    """
    if not 1 <= batch <= count:
        raise ValueError(f"a batch should have 1 … {count} {noun}, as many as there are; it has {batch}")


def check_even(batch: int, rank: int, world: int) -> None:
    """Refuse batches that cannot be shared out evenly.

    Raises:
        ValueError: saying what is possible.
    """
    if not 0 <= rank < world or batch % world:
        raise ValueError(
            f"a batch of {batch} cannot be shared out to process {rank} of {world}: "
            f"the number of processes should divide it, and ranks are 0 … {world - 1}"
        )


def check_same(own: Mapping[str, int | str], state: State) -> None:
    """Refuse the state of another stream.

    Raises:
        ValueError: naming what differs.
    """
    for name, value in own.items():
        if state.get(name) != value:
            raise ValueError(f"the stream has {name} {value}, the one to continue had {name} {state.get(name)}")
