"""One frozen schema of a traffic scene: agents × steps and a map, in a world frame."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

KINDS = ("vehicle", "pedestrian", "cyclist")
"""The agent types, by id."""

LINE_KINDS = (
    "lane",
    "bus_lane",
    "bike_lane",
    "solid_mark",
    "dashed_mark",
    "other_mark",
    "crossing",
    "road_edge",
)
"""The polyline types, by id."""


@dataclass(frozen=True, eq=False)
class Scene:
    """Agents that move over a map, in SI units and a right-handed world frame.

    ``target`` lists the agents to forecast. ``group`` names what must not be torn apart by a split (a log, a drive).
    Polylines are padded to a common number of nodes; the valid nodes of a line come first.

    Raises:
        ValueError: where the arrays contradict each other or hold values that are not finite, naming the scene.
    """

    name: str
    position: Float[np.ndarray, "agents steps 2"]
    heading: Float[np.ndarray, "agents steps"]
    velocity: Float[np.ndarray, "agents steps 2"]
    size: Float[np.ndarray, "agents 3"]
    kind: Int[np.ndarray, "agents"]
    valid: Bool[np.ndarray, "agents steps"]
    target: Int[np.ndarray, "targets"]
    line: Float[np.ndarray, "lines nodes 2"]
    line_kind: Int[np.ndarray, "lines"]
    line_valid: Bool[np.ndarray, "lines nodes"]
    hz: float
    now: int
    group: str

    def __post_init__(self) -> None:
        agents, steps = self.valid.shape
        shapes = {
            "position": (agents, steps, 2),
            "heading": (agents, steps),
            "velocity": (agents, steps, 2),
            "size": (agents, 3),
            "kind": (agents,),
            "line": (*self.line_valid.shape, 2),
            "line_kind": self.line_valid.shape[:1],
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise self._error(f"{name} should have shape {shape}, it has {getattr(self, name).shape}")
        if not (self.hz > 0 and np.isfinite(self.hz)):
            raise self._error(f"the sampling rate should be positive, it is {self.hz} Hz")
        if not 0 <= self.now < steps:
            raise self._error(f"the current step should be in 0…{steps - 1}, it is {self.now}")
        for name in ("position", "heading", "velocity"):
            bad = ~np.isfinite(getattr(self, name)).reshape(agents, steps, -1).all(-1) & self.valid
            if bad.any():
                agent, step = np.argwhere(bad)[0]
                raise self._error(f"{name} of agent {agent} at step {step} is not finite though marked valid")
        if not np.isfinite(self.line[self.line_valid]).all():
            raise self._error("the map holds coordinates that are not finite")
        if not (np.isfinite(self.size).all() and (self.size >= 0).all()):
            raise self._error("sizes should be finite and not negative")
        for name, ids, names in (("agent", self.kind, KINDS), ("line", self.line_kind, LINE_KINDS)):
            if (unknown := ids[(ids < 0) | (ids >= len(names))]).size:
                raise self._error(f"unknown {name} type {unknown[0]}; known are {', '.join(names)}")
        if (unknown := self.target[(self.target < 0) | (self.target >= agents)]).size:
            raise self._error(f"target {unknown[0]} is no agent; there are {agents}")
        if absent := [int(agent) for agent in self.target if not self.valid[agent, self.now]]:
            raise self._error(f"target {absent[0]} is not valid at the current step {self.now}")

    def _error(self, what: str) -> ValueError:
        return ValueError(f"scene {self.name!r}: {what}")


def pack_lines(
    lines: Sequence[Float[np.ndarray, "_ 2"]], kinds: Sequence[int], *, nodes: int = 10
) -> tuple[Float[np.ndarray, "lines {nodes} 2"], Int[np.ndarray, "lines"], Bool[np.ndarray, "lines {nodes}"]]:
    """Cut polylines into pieces of at most ``nodes`` nodes that share their end nodes, and pad the last piece."""
    pieces, piece_kinds = list[np.ndarray](), list[int]()
    for line, kind in zip(lines, kinds, strict=True):
        for start in range(0, max(len(line) - 1, 1), nodes - 1):
            pieces.append(line[start : start + nodes])
            piece_kinds.append(kind)
    packed, valid = np.zeros((len(pieces), nodes, 2)), np.zeros((len(pieces), nodes), dtype=bool)
    for i, piece in enumerate(pieces):
        packed[i, : len(piece)], valid[i, : len(piece)] = piece, True
    return packed, np.asarray(piece_kinds, dtype=np.int64), valid
