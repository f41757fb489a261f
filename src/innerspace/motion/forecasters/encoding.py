"""What forecasters read of a framed scene: bounded numbers for every agent, step and polyline; zero where invalid."""

import dataclasses
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from innerspace.motion.framing import Tracks
from innerspace.motion.scenes import KINDS, LINE_KINDS

AGENT_FEATURES = 11 + len(KINDS)
"""Features of an agent at a step."""

LINE_FEATURES = 7 + len(LINE_KINDS)
"""Features of a polyline, besides three of each node."""

NODE_FEATURES = 7 + len(LINE_KINDS)
"""Features of a polyline's node."""

# units that bring the numbers of traffic to the order of one
_METERS, _SPEED, _YAW_RATE, _ACCELERATION, _SIZE = 10.0, 10.0, 0.5, 3.0, 5.0
_FAR = 50.0


def agent_features(tracks: Tracks, dt: float) -> Float[Tensor, "*agents steps features"]:
    """Position, heading, velocity, signed speed, yaw rate, acceleration, length, width and type at every step.

    Speed is ‖v‖ sign(v · heading). Yaw rate and acceleration are differences to the step before, and zero where that
    is not valid. ``dt`` is in seconds.
    """
    valid = tracks.valid
    position, velocity = (torch.where(valid[..., None], item, 0) for item in (tracks.position, tracks.velocity))
    heading = torch.where(valid, tracks.heading, 0)
    facing = torch.stack((heading.cos(), heading.sin()), -1)
    speed = torch.copysign(velocity.norm(dim=-1), (velocity * facing).sum(-1))
    paired = functional.pad(valid[..., 1:] & valid[..., :-1], (1, 0))
    turn = functional.pad(heading.diff(dim=-1), (1, 0))
    turn = torch.remainder(turn + torch.pi, 2 * torch.pi) - torch.pi
    yaw_rate = turn * paired / dt
    acceleration = functional.pad(speed.diff(dim=-1), (1, 0)) * paired / dt
    scalars = (speed / _SPEED, yaw_rate / _YAW_RATE, acceleration / _ACCELERATION)
    body = torch.cat((tracks.size[..., :2] / _SIZE, functional.one_hot(tracks.kind.long(), len(KINDS))), -1)
    body = body[..., None, :].expand(*valid.shape, -1)
    motion = (position / _METERS, facing, velocity / _SPEED, torch.stack(scalars, -1))
    return torch.where(valid[..., None], torch.cat((*motion, body), -1), 0)


def line_features(
    line: Float[Tensor, "*lines nodes 2"], valid: Bool[Tensor, "*lines nodes"], kind: Int[Tensor, "*lines"]
) -> tuple[Float[Tensor, "*lines features"], Float[Tensor, "*lines"]]:
    """A polyline by its point nearest to the target, its direction there, its shape around it and its type.

    With q the nearest point and s the segment on which it lies: ‖q‖, q, q/‖q‖, s/‖s‖, (nodes − q), which nodes exist,
    and the type. Also gives ‖q‖ in meters (∞ for an absent line).
    """
    line, segment, nearest, distance = _seen(line, valid)
    reach, place = distance.min(-1)
    pick = place[..., None, None].expand(*place.shape, 1, 2)
    q = nearest.gather(-2, pick).squeeze(-2)
    direction = functional.normalize(segment.gather(-2, pick).squeeze(-2), dim=-1)
    present = reach.isfinite()
    shape = torch.where(valid[..., None], (line - q[..., None, :]) / _METERS, 0)
    features = (
        torch.where(present, reach, 0)[..., None] / _FAR,
        q / _FAR,
        functional.normalize(q, dim=-1),
        direction,
        shape.flatten(-2),
        valid.to(line.dtype),
        functional.one_hot(kind.long(), len(LINE_KINDS)),
    )
    return torch.where(present[..., None], torch.cat(features, -1), 0), reach


def node_features(
    line: Float[Tensor, "*lines nodes 2"], valid: Bool[Tensor, "*lines nodes"], kind: Int[Tensor, "*lines"]
) -> Float[Tensor, "*lines nodes features"]:
    """Every node p of a polyline by the segment s that begins there (zero at the last one) and by the line's type.

    With q the point of the segment that is nearest to the target: ‖q‖, q/‖q‖, s/‖s‖, ‖s‖ and ‖p + s − q‖.
    """
    line, segment, nearest, distance = _seen(line, valid)
    features = (
        distance[..., None] / _FAR,
        functional.normalize(nearest, dim=-1),
        functional.normalize(segment, dim=-1),
        segment.norm(dim=-1, keepdim=True) / _METERS,
        (line + segment - nearest).norm(dim=-1, keepdim=True) / _METERS,
        functional.one_hot(kind.long(), len(LINE_KINDS))[..., None, :].expand(*valid.shape, -1),
    )
    return torch.where(valid[..., None], torch.cat(features, -1), 0)


def lately(tracks: Tracks) -> Tracks:
    """The last two steps: enough for the current yaw rate and acceleration."""
    return dataclasses.replace(
        tracks,
        position=tracks.position[..., -2:, :],
        heading=tracks.heading[..., -2:],
        velocity=tracks.velocity[..., -2:, :],
        valid=tracks.valid[..., -2:],
    )


class _Seen(NamedTuple):
    """Nodes, the segments that begin there, the points of those that are nearest to the target, and how near (m)."""

    line: Float[Tensor, "*lines nodes 2"]
    segment: Float[Tensor, "*lines nodes 2"]
    nearest: Float[Tensor, "*lines nodes 2"]
    distance: Float[Tensor, "*lines nodes"]


def _seen(line: Float[Tensor, "*lines nodes 2"], valid: Bool[Tensor, "*lines nodes"]) -> _Seen:
    """A polyline as the target sees it; zero, and infinitely far, where a node is not valid."""
    line = torch.where(valid[..., None], line, 0)
    segment = functional.pad(line.diff(dim=-2), (0, 0, 0, 1))
    segment = torch.where(functional.pad(valid[..., 1:], (0, 1))[..., None], segment, 0)
    along = -(line * segment).sum(-1) / segment.square().sum(-1).clamp_min(1e-6)
    nearest = line + along.clamp(0, 1)[..., None] * segment
    return _Seen(line, segment, nearest, nearest.norm(dim=-1).masked_fill(~valid, torch.inf))
