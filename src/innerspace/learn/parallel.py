"""Training by several processes, each with its share of every batch: what they must agree on.

Started by ``torchrun``, processes draw the same batches, take every ``world``-th row, and add up their losses and
gradients, each weighted by its share of the rows, so that the sum is that of one process with the whole batch. Only the
rows of a ``BatchTopK`` compete within their process.
"""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from jaxtyping import Float
from torch import Tensor, distributed
from torch.nn import functional as F

from innerspace.decompose.autoencoder import SparseAutoencoder
from innerspace.decompose.base import Decomposition
from innerspace.value import Value


@dataclass(frozen=True)
class Share(Value):
    """Which rows of a batch belong to this process: every ``world``-th, from ``rank`` on."""

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"the rank should be 0 … {self.world - 1}, it is {self.rank}")

    @staticmethod
    def mine() -> "Share":
        """This process's share, by what ``torch.distributed`` says; the whole where that is not running."""
        if not running():
            return Share()
        return Share(distributed.get_rank(), distributed.get_world_size())

    def of(self, batch: Tensor) -> Tensor:
        """The rows that belong to this process."""
        return batch[self.rank :: self.world]


def begin() -> None:
    """Join the processes that ``torchrun`` started; does nothing in a process that is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(hours=12))


def running() -> bool:
    """Whether this process is one of several."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their sums over all processes, in one message."""
    if not running() or not tensors:
        return
    message = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(message)
    for tensor, part in zip(tensors, message.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def mean_of_all(values: Float[Tensor, "n"]) -> float:
    """The mean over the values of all processes."""
    message = torch.stack((values.sum(), values.new_tensor(len(values))))
    add_up([message])
    return float(message[0] / message[1])


def all_rows(rows: Float[Tensor, "own d"]) -> Float[Tensor, "all d"]:
    """The rows of all processes, in the order of the whole batch where each has every ``world``-th."""
    if not running():
        return rows
    mine = Share.mine()
    counts = torch.zeros(mine.world, dtype=torch.int64, device=rows.device)
    counts[mine.rank] = len(rows)
    distributed.all_reduce(counts)
    longest = int(counts.max())
    padded = F.pad(rows, (0, 0, 0, longest - len(rows)))
    parts = [torch.empty_like(padded) for _ in range(mine.world)]
    distributed.all_gather(parts, padded)
    there = torch.arange(longest, device=rows.device)[:, None] < counts
    return torch.stack(parts, dim=1)[there]


def silence(what: Decomposition) -> Tensor | None:
    """How long latents were silent before a trial that several processes share."""
    return what.silent.clone() if running() and isinstance(what, SparseAutoencoder) else None


def agree(what: Decomposition, before: Tensor | None, rows: int) -> Tensor | float:
    """Count for all processes together how long latents have been silent, and follow one threshold.

    ``before`` is what ``silence`` gave, equal in all processes. Gives the share of all rows that are this process's.
    """
    if not running():
        return 1.0
    count = torch.tensor(rows, device=next(what.parameters()).device)
    total = count.clone()
    distributed.all_reduce(total)
    if isinstance(what, SparseAutoencoder) and before is not None:
        distributed.all_reduce(what.silent, op=distributed.ReduceOp.MIN)
        # what fired anywhere has been silent for no row
        what.silent.copy_(torch.where(what.silent > 0, before + total, 0))
        for buffer in what.running:
            distributed.all_reduce(buffer)
            buffer.div_(distributed.get_world_size())
    return count / total


@contextmanager
def wait_for_first() -> Generator[None]:
    """What is inside runs in the first process, then in the others, which find what it left."""
    first = Share.mine().rank == 0
    if running() and not first:
        distributed.barrier()
    try:
        yield
    finally:
        if running() and first:
            distributed.barrier()


def meet() -> None:
    """Wait until all processes are here."""
    if running():
        distributed.barrier()
