"""Batches as tests of forecasters need them: short lines, targets that move otherwise, double precision."""

import dataclasses

import torch

from innerspace.motion.framing import Batch, Tracks


def with_short_lines(batch: Batch) -> Batch:
    """Lines of which only the first nodes are there, or none."""
    nodes = batch.line_valid.shape[-1]
    count = torch.randint(nodes + 1, batch.line_kind.shape, generator=torch.Generator().manual_seed(8))
    there = batch.line_valid & (torch.arange(nodes) < count[..., None])
    line = batch.line * there[..., None]
    return dataclasses.replace(batch, line=line, line_valid=there, line_kind=batch.line_kind * there.any(-1))


def with_other_targets(batch: Batch) -> Batch:
    target = dataclasses.replace(
        batch.target,
        position=batch.target.position * 3 + 1,
        heading=batch.target.heading + 0.3,
        velocity=-2 * batch.target.velocity,
        size=batch.target.size + 1,
        kind=(batch.target.kind + 1) % 3,
    )
    return dataclasses.replace(batch, target=target)


def as_doubles(batch: Batch) -> Batch:
    def tracks(item: Tracks) -> Tracks:
        return dataclasses.replace(
            item,
            position=item.position.double(),
            heading=item.heading.double(),
            velocity=item.velocity.double(),
            size=item.size.double(),
        )

    return dataclasses.replace(
        batch,
        target=tracks(batch.target),
        others=tracks(batch.others),
        line=batch.line.double(),
        future=batch.future.double(),
    )
