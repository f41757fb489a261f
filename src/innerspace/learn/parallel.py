"""Dictionaries trained by several processes, each with its share of every batch: what they must agree on.

Losses and gradients are weighted by a process's share of the rows. Only the rows of a ``BatchTopK`` compete within
their process.
"""

import torch
from torch import Tensor, distributed

from innerspace.decompose.autoencoder import SparseAutoencoder
from innerspace.decompose.base import Decomposition
from innerspace.parallel import running


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
