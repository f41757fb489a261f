"""Vector maps in any frame: polylines with nodes at equal distances, cut into pieces, and what of them lies near."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from jaxtyping import Bool, Float, Int

from innerspace.motion.scenes import LINE_KINDS, pack_lines

FARTHEST = 1e7
"""What is farther out than this, in meters, is damage."""

RADIUS = 100.0
"""How far from its targets a scene keeps the map, in meters."""

MOST_NODES = 1_000_000
"""A map with more nodes than this is damage: one line across the world would fill the memory."""


@dataclass(frozen=True, eq=False)
class RoadMap:
    """Packed polylines in one frame, in meters; the valid nodes of a line come first."""

    line: Float[np.ndarray, "lines nodes 2"]
    kind: Int[np.ndarray, "lines"]
    valid: Bool[np.ndarray, "lines nodes"]

    @classmethod
    def of(cls, lines: Sequence[tuple[str, np.ndarray]], spacing: float, *, nodes: int = 10) -> "RoadMap":
        """Lines with their types, with a node every ``spacing`` meters, in pieces of at most ``nodes``.

        Raises:
            ValueError: if that makes more than ``MOST_NODES`` nodes.
        """
        total = sum(node_count(arc_length(line), spacing) for _, line in lines)
        if total > MOST_NODES:
            raise ValueError(f"the map has {total} nodes {spacing:g} m apart; at most {MOST_NODES} are read")
        kinds = [LINE_KINDS.index(kind) for kind, _ in lines]
        return cls(*pack_lines([evenly(line, spacing) for _, line in lines], kinds, nodes=nodes))

    def near(self, points: Float[np.ndarray, "points 2"], radius: float) -> "RoadMap":
        """The lines whose middle node lies within ``radius`` meters of any of the points."""
        middle = self.line[np.arange(len(self.line)), self.valid.sum(1) // 2]
        kept = np.zeros(len(middle), dtype=bool)
        # one point after the other: all at once would take lines × points of memory
        for point in points:
            kept |= ((middle - point) ** 2).sum(-1) <= radius**2
        return RoadMap(self.line[kept], self.kind[kept], self.valid[kept])


def evenly(line: Float[np.ndarray, "points 2"], spacing: float) -> Float[np.ndarray, "nodes 2"]:
    """The line with nodes at equal distances of at most ``spacing``, its ends included; a single point stays one."""
    if len(line) == 1:
        return line
    arc = arc_length(line)
    return resample(line, arc, node_count(arc, spacing))


def node_count(arc: Float[np.ndarray, "points"], spacing: float) -> int:
    """How many nodes at distances of at most ``spacing`` a line needs, up to rounding in single precision."""
    return max(2, ceil(arc[-1] / spacing - 1e-4) + 1)


def resample(
    line: Float[np.ndarray, "points 2"], arc: Float[np.ndarray, "points"], count: int
) -> Float[np.ndarray, "{count} 2"]:
    """Nodes at equal distances along the line, its ends included."""
    at = np.linspace(0, arc[-1], count)
    return np.stack([np.interp(at, arc, line[:, axis]) for axis in (0, 1)], axis=-1)


def arc_length(line: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, "points"]:
    """The distance of every point from the first, along the line."""
    return np.concatenate(([0.0], np.linalg.norm(np.diff(line, axis=0), axis=-1).cumsum()))
