"""Work by several processes, each with its share of every batch: who takes which rows, and how results come together.

Started by ``torchrun``, processes draw the same batches, take every ``world``-th row, and add up their losses and
gradients, so that the sum is that of one process with the whole batch.
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
    """Join the processes that ``torchrun`` started; does nothing in a process that is alone.

    The processes of a machine share its cores out, unless ``OMP_NUM_THREADS`` gives each of them several.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or distributed.is_initialized():
        return
    # torchrun sets it to 1 where nothing is said, which would leave most cores idle
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
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


def from_first(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by those of the first process."""
    if running():
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


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


def go_on_alone() -> bool:
    """End the work in common: the first process goes on as one that is alone, and the others are told that they end."""
    first = Share.mine().rank == 0
    if running():
        distributed.barrier()
        distributed.destroy_process_group()
    return first
