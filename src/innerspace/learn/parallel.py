"""Training by several processes, each with its share of every batch: what they must agree on.

Started by ``torchrun``, processes draw the same batches, take every ``world``-th row, and average their gradients, each
weighted by its rows, so that the sum is that of one process with the whole batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, distributed, nn

from innerspace.decompose.base import Decomposition
from innerspace.decompose.dictionary import Dictionary
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


def running() -> bool:
    """Whether this process is one of several."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def average_gradients(parameters: Sequence[nn.Parameter], rows: int) -> None:
    """Replace gradients by their mean over all processes, each weighted by its rows; one message for all of them."""
    if not running():
        return
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [cast(Tensor, parameter.grad) for parameter in with_gradient]
    message = torch.cat([gradient.reshape(-1) * rows for gradient in gradients])
    message = torch.cat((message, message.new_tensor([rows])))
    distributed.all_reduce(message)
    message = message[:-1] / message[-1]
    for gradient, part in zip(gradients, message.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def from_first(*tensors: Tensor) -> None:
    """Replace tensors by those of the first process."""
    if running():
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def agree(what: Decomposition, before: Tensor) -> None:
    """Count for all processes together how long latents have been silent, and follow one threshold.

    ``before`` is the count before the step, equal in all processes.
    """
    if not isinstance(what, Dictionary):
        return
    world = distributed.get_world_size()
    silent = what.silent
    waited = silent >= before
    silent.copy_(torch.where(waited, before + (silent - before) * world, silent * world))
    distributed.all_reduce(silent, op=distributed.ReduceOp.MIN)
    for buffer in what.running:
        distributed.all_reduce(buffer)
        buffer.div_(world)
