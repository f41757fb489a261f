"""Batches in which something is missing or damaged where nothing should look."""

import dataclasses

import torch
from torch import Tensor

from innerspace.motion.framing import Batch, Tracks


def without_road(batch: Batch) -> Batch:
    """No other agents and no lines."""
    others = dataclasses.replace(batch.others, valid=torch.zeros_like(batch.others.valid))
    return dataclasses.replace(batch, others=others, line_valid=torch.zeros_like(batch.line_valid))


def with_damaged_padding(batch: Batch) -> Batch:
    """Not a number wherever nothing is valid."""

    def damaged(item: Tensor, valid: Tensor) -> Tensor:
        return torch.where(valid.view(*valid.shape, *(1,) * (item.ndim - valid.ndim)), item, torch.nan)

    def tracks(item: Tracks) -> Tracks:
        moving = {name: damaged(getattr(item, name), item.valid) for name in ("position", "heading", "velocity")}
        return dataclasses.replace(item, size=damaged(item.size, item.valid.any(-1)), **moving)

    return dataclasses.replace(
        batch, target=tracks(batch.target), others=tracks(batch.others), line=damaged(batch.line, batch.line_valid)
    )
