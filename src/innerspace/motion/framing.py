"""A scene as forecasters read it: agent-centric tensors with masks everywhere.

``frame`` looks at a scene from each of its targets: the target's current pose is the origin, its heading the x axis;
the nearest other agents and polylines come along, and masks say what is there. Masked entries are zero.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.motion.scenes import Scene
from innerspace.value import Value


@dataclass(frozen=True)
class Framing(Value):
    """How much of a scene becomes tensors.

    ``history`` counts the steps up to and including the current one, ``future`` the steps after it, of which every
    ``stride``-th is a waypoint to forecast. ``agents`` and ``lines`` are the nearest that are kept.
    """

    history: int = 11
    future: int = 60
    stride: int = 2
    agents: int = 12
    lines: int = 48
    nodes: int = 10

    def __post_init__(self) -> None:
        for name in ("history", "future", "stride", "agents", "lines", "nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"framing: {name} should be at least 1, it is {getattr(self, name)}")
        if self.future % self.stride:
            raise ValueError(f"framing: stride {self.stride} should divide future {self.future}")

    @property
    def waypoints(self) -> int:
        """How many points of the future are forecast."""
        return self.future // self.stride


@dataclass(frozen=True, eq=False)
class Tracks:
    """Moving agents: metres, radians, metres per second; zero where not valid."""

    position: Float[Tensor, "*agents steps 2"]
    heading: Float[Tensor, "*agents steps"]
    velocity: Float[Tensor, "*agents steps 2"]
    valid: Bool[Tensor, "*agents steps"]
    kind: Int[Tensor, "*agents"]
    size: Float[Tensor, "*agents 3"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Scenes as forecasters read them: one row per target, in the frame of the target's current pose.

    ``future`` holds the waypoints to forecast, ``future_heading`` the agent's heading there (0 is the current one).
    ``origin`` (m) and ``yaw`` (rad) lead back to the world: x_world = R(yaw) x + origin. ``scene`` and ``agent`` are
    indices into the list that was framed. ``dt`` is the time between two history steps, ``interval`` between two
    waypoints, in seconds.
    """

    target: Tracks
    others: Tracks
    line: Float[Tensor, "batch lines nodes 2"]
    line_valid: Bool[Tensor, "batch lines nodes"]
    line_kind: Int[Tensor, "batch lines"]
    future: Float[Tensor, "batch waypoints 2"]
    future_heading: Float[Tensor, "batch waypoints"]
    future_valid: Bool[Tensor, "batch waypoints"]
    origin: Float[Tensor, "batch 2"]
    yaw: Float[Tensor, "batch"]
    scene: Int[Tensor, "batch"]
    agent: Int[Tensor, "batch"]
    dt: float
    interval: float

    def __len__(self) -> int:
        return len(self.scene)

    def __getitem__(self, rows: slice | Tensor) -> "Batch":
        """Some of the rows."""
        return _map(self, lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return _map(self, lambda tensor: tensor.to(device))

    def to_world(self, points: Float[Tensor, "batch *points 2"]) -> Float[Tensor, "batch *points 2"]:
        """Points of the targets' frames in the world's."""
        ones = (1,) * (points.ndim - 2)
        return _rotate(points.double(), self.yaw.view(-1, *ones)) + self.origin.view(-1, *ones, 2)


def frame(scenes: Sequence[Scene], framing: Framing) -> Batch:
    """Look at every scene from each of its targets.

    Waypoints that a scene is too short to hold are marked invalid, and so are history steps before its first.

    Raises:
        ValueError: if there is no scene, none has a target, sampling rates differ, or lines have too many nodes.
    """
    rates = {scene.hz for scene in scenes}
    if len(rates) != 1:
        raise ValueError(f"scenes of one sampling rate are needed, got {sorted(rates) or 'no scene at all'}")
    if not any(scene.target.size for scene in scenes):
        raise ValueError(f"none of the {len(scenes)} scenes has an agent to forecast")
    parts, start, rows = list[Batch](), 0, 0
    for end, scene in enumerate(scenes, start=1):
        rows += scene.target.size
        # a chunk holds agents × steps and lines of its scenes once per target
        if rows >= 256 or (end == len(scenes) and rows):
            parts.append(_frame_chunk(scenes[start:end], start, framing))
            start, rows = end, 0
    return _concatenate(parts)


def _frame_chunk(scenes: Sequence[Scene], offset: int, framing: Framing) -> Batch:
    now = framing.history - 1
    world = _stack(scenes, framing)
    pairs = [(i, int(agent)) for i, scene in enumerate(scenes) for agent in scene.target]
    scene, agent = torch.tensor(pairs).unbind(1)
    origin, yaw = world.position[scene, agent, now], world.heading[scene, agent, now]

    def tracks(row: Int[Tensor, "rows *some"], who: Int[Tensor, "rows *some"], steps: slice) -> Tracks:
        """The tracks of some agents as each target sees them."""
        ones = (1,) * (who.ndim - 1)
        valid = world.valid[row, who][..., steps]
        turn = yaw.view(-1, *ones, 1)
        position = _rotate(world.position[row, who][..., steps, :] - origin.view(-1, *ones, 1, 2), -turn)
        return Tracks(
            (position * valid[..., None]).float(),
            (_wrap(world.heading[row, who][..., steps] - turn) * valid).float(),
            (_rotate(world.velocity[row, who][..., steps, :], -turn) * valid[..., None]).float(),
            valid,
            world.kind[row, who],
            world.size[row, who].float(),
        )

    distance = (world.position[scene, :, now] - origin[:, None]).norm(dim=-1)
    present = world.valid[scene, :, now].clone()
    present[torch.arange(len(pairs)), agent] = False
    near, near_present = _nearest(distance, present, framing.agents)
    others = tracks(scene[:, None].expand_as(near), near, slice(0, framing.history))
    ahead = tracks(scene, agent, slice(now + framing.stride, None, framing.stride))

    spread = (world.line[scene] - origin[:, None, None]).square_().sum(-1)
    spread = spread.masked_fill_(~world.line_valid[scene], torch.inf).amin(-1)
    lines, line_present = _nearest(spread, spread.isfinite(), framing.lines)
    row = scene[:, None].expand_as(lines)
    line_valid = world.line_valid[row, lines] & line_present[..., None]
    line = _rotate(world.line[row, lines] - origin[:, None, None], -yaw[:, None, None]) * line_valid[..., None]

    dt = 1 / scenes[0].hz
    return Batch(
        target=tracks(scene, agent, slice(0, framing.history)),
        others=_map(others, lambda tensor: tensor * near_present.view(*near.shape, *(1,) * (tensor.ndim - 2))),
        line=line.float(),
        line_valid=line_valid,
        line_kind=world.line_kind[row, lines] * line_present,
        future=ahead.position,
        future_heading=ahead.heading,
        future_valid=ahead.valid,
        origin=origin,
        yaw=yaw,
        scene=scene + offset,
        agent=agent,
        dt=dt,
        interval=dt * framing.stride,
    )


@dataclass(frozen=True, eq=False)
class _World:
    """Scenes stacked and padded, in their world frames, cut to the window around the current step."""

    position: Float[Tensor, "scenes agents steps 2"]
    heading: Float[Tensor, "scenes agents steps"]
    velocity: Float[Tensor, "scenes agents steps 2"]
    valid: Bool[Tensor, "scenes agents steps"]
    kind: Int[Tensor, "scenes agents"]
    size: Float[Tensor, "scenes agents 3"]
    line: Float[Tensor, "scenes lines nodes 2"]
    line_valid: Bool[Tensor, "scenes lines nodes"]
    line_kind: Int[Tensor, "scenes lines"]


def _stack(scenes: Sequence[Scene], framing: Framing) -> _World:
    steps = framing.history + framing.future
    count, agents = len(scenes), max(scene.valid.shape[0] for scene in scenes)
    lines = max([1, *(scene.line.shape[0] for scene in scenes)])
    position, velocity = np.zeros((count, agents, steps, 2)), np.zeros((count, agents, steps, 2))
    heading, valid = np.zeros((count, agents, steps)), np.zeros((count, agents, steps), dtype=bool)
    kind, size = np.zeros((count, agents), dtype=np.int64), np.zeros((count, agents, 3))
    line, line_kind = np.zeros((count, lines, framing.nodes, 2)), np.zeros((count, lines), dtype=np.int64)
    line_valid = np.zeros((count, lines, framing.nodes), dtype=bool)
    for i, scene in enumerate(scenes):
        first = scene.now - framing.history + 1
        source = slice(max(first, 0), min(first + steps, scene.valid.shape[1]))
        to = slice(source.start - first, source.stop - first)
        n, m, nodes = len(scene.kind), *scene.line_valid.shape
        if nodes > framing.nodes:
            raise ValueError(f"scene {scene.name!r}: lines have {nodes} nodes, the framing allows {framing.nodes}")
        here = scene.valid[:, source]
        position[i, :n, to] = np.where(here[..., None], scene.position[:, source], 0)
        velocity[i, :n, to] = np.where(here[..., None], scene.velocity[:, source], 0)
        heading[i, :n, to] = np.where(here, scene.heading[:, source], 0)
        valid[i, :n, to] = here
        kind[i, :n], size[i, :n] = scene.kind, scene.size
        line[i, :m, :nodes] = np.where(scene.line_valid[..., None], scene.line, 0)
        line_kind[i, :m], line_valid[i, :m, :nodes] = scene.line_kind, scene.line_valid
    arrays = (position, heading, velocity, valid, kind, size, line, line_valid, line_kind)
    return _World(*(torch.from_numpy(array) for array in arrays))


def _nearest(
    distance: Float[Tensor, "rows n"], present: Bool[Tensor, "rows n"], count: int
) -> tuple[Int[Tensor, "rows {count}"], Bool[Tensor, "rows {count}"]]:
    """Indices of the nearest present entries, nearest first, and whether each place is filled."""
    distance = distance.masked_fill(~present, torch.inf)
    if distance.shape[1] < count:
        distance = torch.nn.functional.pad(distance, (0, count - distance.shape[1]), value=torch.inf)
    # stable: pieces of a line share their end nodes, and of equally near ones the first should come first
    kept, index = (entry[:, :count] for entry in distance.sort(dim=1, stable=True))
    return index.masked_fill(kept.isinf(), 0), kept.isfinite()


def _rotate(points: Float[Tensor, "*any 2"], angle: Float[Tensor, "*angles"]) -> Float[Tensor, "*any 2"]:
    cos, sin = angle.cos(), angle.sin()
    x, y = points.unbind(-1)
    return torch.stack((cos * x - sin * y, sin * x + cos * y), -1)


def _wrap(angle: Tensor) -> Tensor:
    return torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi


_Record = TypeVar("_Record", Batch, Tracks)


def _map(record: _Record, change: Callable[[Tensor], Tensor]) -> _Record:
    def mapped(item: Any) -> Any:
        if isinstance(item, Tracks):
            return _map(item, change)
        return change(item) if isinstance(item, Tensor) else item

    return type(record)(**{field.name: mapped(getattr(record, field.name)) for field in dataclasses.fields(record)})


def _concatenate(batches: Sequence[Batch]) -> Batch:
    def join(records: Sequence[Any]) -> Any:
        first = records[0]
        if isinstance(first, Tensor):
            return torch.cat(list(records))
        if isinstance(first, float):
            return first
        names = [field.name for field in dataclasses.fields(first)]
        return type(first)(**{name: join([getattr(record, name) for record in records]) for name in names})

    return join(batches)
