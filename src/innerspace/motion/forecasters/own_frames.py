"""Agents and lines, each as points in a frame of its own, and where those frames lie.

The frame of an agent is its current pose; that of a line is its middle node, turned from its first node to its last.
What a token holds of its points is then the same wherever it is.
"""

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from innerspace.motion.forecasters.encoding import agent_features
from innerspace.motion.forecasters.relative_attention import Poses
from innerspace.motion.framing import Batch, Tracks
from innerspace.motion.scenes import LINE_KINDS

NODE_FEATURES = 4 + len(LINE_KINDS)
"""Features of a node of a line."""

_METERS = 10.0


@dataclass(frozen=True, eq=False)
class Points:
    """Tokens as points: bounded numbers, zero where not valid; and the tokens' poses in the frame of the batch."""

    features: Float[Tensor, "batch n points features"]
    valid: Bool[Tensor, "batch n points"]
    poses: Poses


def agent_points(batch: Batch) -> Points:
    """The history of the target, then those of the others, as ``agent_features`` has them, each from its own pose.

    The target's frame is that of the batch. An agent that is not there at the current step is not present.
    """
    others, target = batch.others, batch.target
    present = others.valid[..., -1]
    position = torch.where(present[..., None], others.position[..., -1, :], 0)
    heading = torch.where(present, others.heading[..., -1], 0)
    own = dataclasses.replace(
        others,
        position=_turned(others.position - position[..., None, :], -heading[..., None]),
        heading=others.heading - heading[..., None],
        velocity=_turned(others.velocity, -heading[..., None]),
        valid=others.valid & present[..., None],
    )
    poses = Poses(
        functional.pad(position, (0, 0, 1, 0)),
        functional.pad(heading, (1, 0)),
        agents_present(batch),
    )
    tracks: tuple[Tracks, Tracks] = (_row(target), own)
    features = torch.cat([agent_features(item, batch.dt) for item in tracks], 1)
    return Points(features, torch.cat([item.valid for item in tracks], 1), poses)


def line_points(batch: Batch) -> Points:
    """The nodes of every line: position, segment to the next node (both in 10 m), and the line's type."""
    valid, present = batch.line_valid, batch.line_valid.any(-1)
    line = torch.where(valid[..., None], batch.line, 0)
    place, count = valid.cumsum(-1), valid.sum(-1, keepdim=True)

    def node(which: Int[Tensor, "batch n 1"]) -> Float[Tensor, "batch n 2"]:
        index = ((place == which) & valid).long().argmax(-1)
        return line.take_along_dim(index[..., None, None], -2).squeeze(-2)

    position = node((count + 1) // 2)
    x, y = (node(count) - node(torch.ones_like(count))).unbind(-1)
    heading = torch.atan2(y, x)
    own = _turned(line - position[..., None, :], -heading[..., None]) / _METERS
    paired = functional.pad(valid[..., 1:] & valid[..., :-1], (0, 1))
    segment = functional.pad(own.diff(dim=-2), (0, 0, 0, 1)) * paired[..., None]
    kind = functional.one_hot(batch.line_kind.long(), len(LINE_KINDS))[..., None, :].expand(*valid.shape, -1)
    features = torch.where(valid[..., None], torch.cat((own, segment, kind), -1), 0)
    return Points(features, valid, Poses(position, heading, present))


def agents_present(batch: Batch) -> Bool[Tensor, "batch agents"]:
    """Which agents there are, the target first."""
    return functional.pad(batch.others.valid[..., -1], (1, 0), value=True)


def _row(tracks: Tracks) -> Tracks:
    """One agent for each row as a row of one agent."""
    return Tracks(
        tracks.position[:, None],
        tracks.heading[:, None],
        tracks.velocity[:, None],
        tracks.valid[:, None],
        tracks.kind[:, None],
        tracks.size[:, None],
    )


def _turned(points: Float[Tensor, "*any 2"], angle: Float[Tensor, "*angles"]) -> Float[Tensor, "*any 2"]:
    cos, sin = angle.cos(), angle.sin()
    x, y = points.unbind(-1)
    return torch.stack((cos * x - sin * y, sin * x + cos * y), -1)
