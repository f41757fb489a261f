"""Routes that are straight, bend once and are straight again, and the maps that are made of them.

A straight, an arc and a straight have poses in closed form, stay of that shape when shifted sideways, reversed or moved
rigidly, and suffice for straight roads, curved roads and the turns of a crossing. Agents and map lines use the same
routes, so that whoever follows a lane follows it exactly.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from innerspace.motion.scenes import LINE_KINDS

LANE_WIDTH = 3.5
STOP_LINE = -LANE_WIDTH - 2.5
"""Where on its lane an agent stops before a crossing, in meters from the crossing's center."""

_NODES, _SPACING = 10, 4.0
_LANE, _CROSSWALK, _EDGE = (LINE_KINDS.index(name) for name in ("lane", "crossing", "road_edge"))


@dataclass(frozen=True, eq=False)
class Route:
    """An array of routes; each bends for ``length`` (m) with ``curvature`` (1/m, to the left), from the pose given.

    A place on a route is its signed arc length s from where the bend begins.
    """

    x: Float[np.ndarray, "*routes"]
    y: Float[np.ndarray, "*routes"]
    heading: Float[np.ndarray, "*routes"]
    curvature: Float[np.ndarray, "*routes"]
    length: Float[np.ndarray, "*routes"]

    def __getitem__(self, index: Any) -> "Route":
        return Route(*(column[index] for column in _columns(self)))

    def poses(self, s: Float[np.ndarray, "*s"]) -> tuple[Float[np.ndarray, "*places 2"], Float[np.ndarray, "*places"]]:
        """Position and heading (not wrapped) at arc length ``s``; shapes broadcast."""
        bent = np.clip(s, 0, self.length)
        straight, turn = s - bent, self.curvature * bent
        # sinc keeps sin(κu)/κ and (1 − cos(κu))/κ exact where the curvature vanishes
        ahead = bent * np.sinc(turn / np.pi) + straight * np.cos(turn)
        left = bent * np.sinc(turn / (2 * np.pi)) * np.sin(turn / 2) + straight * np.sin(turn)
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        position = np.stack((self.x + cos * ahead - sin * left, self.y + sin * ahead + cos * left), -1)
        return position, self.heading + turn

    def bends(self, s: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*places"]:
        """The curvature at arc length ``s``."""
        return np.where((s >= 0) & (s <= self.length), self.curvature, 0.0)

    def shifted(self, left: Float[np.ndarray, "*left"]) -> "Route":
        """The parallel route ``left`` meters to the left."""
        scale = 1 - left * self.curvature
        x, y = self.x - left * np.sin(self.heading), self.y + left * np.cos(self.heading)
        return _broadcast(x, y, self.heading, self.curvature / scale, self.length * scale)

    def reversed(self) -> "Route":
        """The same curve traveled the other way."""
        end, heading = self.poses(self.length)
        return Route(end[..., 0], end[..., 1], heading + np.pi, -self.curvature, self.length)

    def placed(
        self, x: Float[np.ndarray, "*poses"], y: Float[np.ndarray, "*poses"], yaw: Float[np.ndarray, "*yaws"]
    ) -> "Route":
        """The route turned by ``yaw`` about the origin, then moved by (x, y); shapes broadcast."""
        cos, sin = np.cos(yaw), np.sin(yaw)
        moved = (x + cos * self.x - sin * self.y, y + sin * self.x + cos * self.y)
        return _broadcast(*moved, self.heading + yaw, self.curvature, self.length)


def choose(condition: np.ndarray, first: Route, second: Route) -> Route:
    """``first`` where the condition holds, ``second`` elsewhere."""
    return Route(*(np.where(condition, *pair) for pair in zip(_columns(first), _columns(second), strict=True)))


def road_lanes(road: Route) -> Route:
    """The four lanes of a road with right-hand traffic, two each way, each in its own direction: [scenes, 4]."""
    right = -LANE_WIDTH * np.array([0.5, 1.5])
    return _join(road[:, None].shifted(right), road.reversed()[:, None].shifted(right))


def crossing_lane(arm: np.ndarray, side: np.ndarray, radius: np.ndarray) -> Route:
    """The way into a crossing at the origin from ``arm`` (0…3), leaving it to the left (side 1), ahead (0), right (−1).

    Turns start and end on the lanes of the roads, whatever their ``radius`` (m); ahead, s is counted from the center.
    """
    quarter = np.pi / 2
    x, y = side * LANE_WIDTH / 2 - np.abs(side) * radius, np.full(np.shape(side), -LANE_WIDTH / 2)
    route = _broadcast(x, y, np.zeros(()), side / radius, np.abs(side) * quarter * radius)
    return route.placed(np.zeros(()), np.zeros(()), arm * quarter)


def road_lines(road: Route) -> tuple[Float[np.ndarray, "scenes lines nodes 2"], Int[np.ndarray, "lines"]]:
    """Packed lanes and road edges of roads."""
    edges = road[:, None].shifted(2 * LANE_WIDTH * np.array([-1.0, 1.0]))
    lanes = _pieces(road_lanes(road), -76.0, _SPACING, 6)
    borders = _pieces(edges, -76.0, _SPACING, 6)
    return np.concatenate((lanes, borders), 1), np.repeat([_LANE, _EDGE], [lanes.shape[1], borders.shape[1]])


def crossing_lines(
    radius: Float[np.ndarray, "scenes 4"], x: np.ndarray, y: np.ndarray, yaw: np.ndarray
) -> tuple[Float[np.ndarray, "scenes lines nodes 2"], Int[np.ndarray, "lines"]]:
    """Packed lanes, turns (whose radius each arm has), crosswalks and road edges of crossings at the poses given."""
    arms, pose = np.arange(4.0), (x[:, None], y[:, None], yaw[:, None])
    straight = crossing_lane(arms, np.zeros(4), np.ones(4))
    turns = [crossing_lane(arms, np.full(4, side), radius).placed(*pose) for side in (-1.0, 1.0)]
    edges = [straight.shifted(np.asarray(left)).placed(*pose) for left in (-LANE_WIDTH / 2, 1.5 * LANE_WIDTH)]
    across = Route(
        np.full(4, STOP_LINE + 1.5), np.full(4, -LANE_WIDTH), np.full(4, np.pi / 2), np.zeros(4), np.zeros(4)
    )
    crosswalks = across.placed(np.zeros(4), np.zeros(4), arms * np.pi / 2).placed(*pose)
    lanes = [
        _pieces(straight.placed(*pose), -90.0, _SPACING, 5),
        *(_pieces(turn, 0.0, turn.length / (_NODES - 1), 1) for turn in turns),
    ]
    borders = [_pieces(edge, STOP_LINE - (_NODES - 1) * _SPACING, _SPACING, 1) for edge in edges]
    zebra = _pieces(crosswalks, 0.0, 2 * LANE_WIDTH / (_NODES - 1), 1)
    kinds = np.repeat([_LANE, _EDGE, _CROSSWALK], [sum(p.shape[1] for p in part) for part in (lanes, borders, [zebra])])
    return np.concatenate((*lanes, *borders, zebra), 1), kinds


def _pieces(
    route: Route, start: float, spacing: float | np.ndarray, count: int
) -> Float[np.ndarray, "scenes lines nodes 2"]:
    """Each route from ``start`` on, cut into ``count`` lines that share their end nodes."""
    node = np.arange(count)[:, None] * (_NODES - 1) + np.arange(_NODES)
    s = start + np.asarray(spacing)[..., None, None] * node
    position, _ = route[..., None, None].poses(s)
    scenes, routes = position.shape[:2]
    return position.reshape(scenes, routes * count, _NODES, 2)


def _columns(route: Route) -> list[np.ndarray]:
    return [getattr(route, field.name) for field in dataclasses.fields(route)]


def _broadcast(*columns: np.ndarray) -> Route:
    return Route(*np.broadcast_arrays(*columns))


def _join(first: Route, second: Route) -> Route:
    pairs = zip(_columns(first), _columns(second), strict=True)
    return Route(*(np.concatenate(pair, axis=1) for pair in pairs))
