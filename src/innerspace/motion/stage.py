"""Where simulated agents are: the layout of a scene, the route of every agent and its company on the lane."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from innerspace.motion.lanes import (
    LANE_WIDTH,
    STOP_LINE,
    Route,
    choose,
    crossing_lane,
    crossing_lines,
    road_lanes,
    road_lines,
)
from innerspace.motion.traffic import Limits, Motion, categorical, headway

# straight road, gentle curve, bend ahead, crossing
_STRAIGHT, _GENTLE, _BEND, _CROSSING = range(4)
_LAYOUT_CHANCE = np.array([0.12, 0.09, 0.09, 0.70])
_FREE_CHANCE = np.array([0.06, 0.75, 0.10])
_WIDEST = 40.0


@dataclass(frozen=True, eq=False)
class Cast:
    """Who is there, and who keeps company: ``source`` is the agent whose motion an agent shares, mostly itself."""

    present: Bool[np.ndarray, "scenes agents"]
    source: Int[np.ndarray, "scenes agents"]
    leads: Bool[np.ndarray, "scenes agents"]
    follows: Bool[np.ndarray, "scenes agents"]


def draw_cast(rng: np.random.Generator, shape: tuple[int, int], targets: int) -> Cast:
    """Draw who leads, follows or stands by; the first agents are the targets."""
    agent, chance = np.arange(shape[1]), rng.random(shape)
    turn = np.where(agent < targets, -1, (agent - targets) // targets)
    leads, follows = (turn == 0) & (chance < 0.5), (turn == 1) & (chance < 0.5)
    source = np.where(leads | follows, (agent - targets) % targets, agent)
    return Cast((turn < 0) | (chance < 0.85), source, leads, follows)


@dataclass(frozen=True, eq=False)
class Stage:
    """Scenes without companions: routes in the world, places on them at the current step, and what maps are made of.

    ``turns`` holds the radii of the turns that the arms of a crossing offer; ``pose`` is the scene's x, y and yaw.
    """

    layout: Int[np.ndarray, "scenes"]
    route: Route
    place: Float[np.ndarray, "scenes agents"]
    road: Route
    turns: Float[np.ndarray, "scenes 4"]
    pose: Float[np.ndarray, "3 scenes"]

    def maps(self) -> list[tuple[Float[np.ndarray, "_ nodes 2"], Int[np.ndarray, "_"]]]:
        """The packed lines of each scene and their types."""
        crossing = self.layout == _CROSSING
        roads, road_kind = road_lines(self.road[~crossing].placed(*self.pose[:, ~crossing]))
        crossings, crossing_kind = crossing_lines(self.turns[crossing], *self.pose[:, crossing])
        row = np.where(crossing, crossing.cumsum(), (~crossing).cumsum()) - 1
        return [
            (crossings[i], crossing_kind) if cross else (roads[i], road_kind)
            for i, cross in zip(row, crossing, strict=True)
        ]


def draw_stage(
    rng: np.random.Generator, motion: Motion, limits: Limits, manner: Int[np.ndarray, "scenes agents"], targets: int
) -> Stage:
    """Draw layouts and put everyone on a route that suits its motion; who is no target moves freely."""
    scenes, agents = manner.shape
    layout = categorical(rng, np.broadcast_to(_LAYOUT_CHANCE, (scenes, len(_LAYOUT_CHANCE))))
    crossing = (layout == _CROSSING)[:, None]
    bystander = np.arange(agents) >= targets
    free = bystander | (rng.random(manner.shape) < _FREE_CHANCE[manner])
    arm = rng.permuted(np.tile(np.arange(4), (scenes, 1)), axis=1)[:, np.arange(agents) % 4]

    # the radius that can be taken at any speed the agent may reach; wider ones would not fit a crossing
    safe = (1.2 * np.maximum(motion.fastest, np.abs(motion.cruise))) ** 2 / (0.8 * limits.lateral)
    road = _draw_road(rng, layout, motion.traveled[:, :targets], safe[:, :targets])
    lane = road_lanes(road)[np.arange(scenes)[:, None], arm]
    lane_place = _place_on_road(rng, layout[:, None], lane, motion)

    turning = (free | crossing) & (motion.turn != 0)
    radius = np.where(turning, motion.radius, np.clip(motion.radius, 4.0, _WIDEST))
    later = ~turning & ~free & (motion.speed > 0.5) & ~motion.stops & (safe < _WIDEST)
    later &= rng.random(later.shape) < 0.2
    radius = np.where(later, np.maximum(radius, safe), radius)
    side = np.where(turning, np.sign(motion.turn), np.where(later, rng.choice([-1.0, 1.0], later.shape), 0.0))
    turns = rng.uniform(6.0, 15.0, (scenes, 4))
    for target in range(targets):
        on_lane = ~free[:, target]
        turns[on_lane, arm[on_lane, target]] = radius[on_lane, target]
    approach = _place_at_crossing(rng, motion, later)

    off = _draw_free(rng, np.where(turning, side, 0.0), radius)
    route = choose(free, off, choose(crossing, crossing_lane(arm, side, radius), lane))
    place = np.where(free, 0.0, np.where(crossing, approach, lane_place))
    within = motion.traveled + rng.uniform(0, 0.9, free.shape) * (route.length - motion.traveled)
    place = np.where(turning, within, place)

    aside = rng.normal(0, 0.2, (2, *manner.shape))
    pose = np.stack((*rng.uniform(-500, 500, (2, scenes)), rng.uniform(-np.pi, np.pi, scenes)))
    route = route.placed(aside[0], aside[1], np.zeros(())).placed(*pose[..., None])
    return Stage(layout, route, place, road, turns, pose)


def join_companions(
    rng: np.random.Generator,
    cast: Cast,
    motion: Motion,
    stage: Stage,
    limits: Limits,
    length: Float[np.ndarray, "scenes agents"],
) -> tuple[
    Motion,
    Route,
    Float[np.ndarray, "scenes agents"],
    Int[np.ndarray, "scenes agents"],
    Bool[np.ndarray, "scenes agents"],
]:
    """Put companions before and behind their targets: motion, route, place, leader (−1 for none) and who is there.

    A companion moves as its target does, only slower by a factor, at a distance that suits the driver model.
    """
    source, leads, follows = cast.source, cast.leads, cast.follows

    def of(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, source, 1)

    brakes = of(motion.acceleration) < -0.9
    pace = np.where(leads, rng.uniform(0.5, 1.0, leads.shape), 1.0)
    pace = np.where(leads & brakes & (rng.random(leads.shape) < 0.3), 0.0, pace)
    pace = np.where(follows, rng.uniform(0.85, 1.0, leads.shape), pace)
    joined = motion.shared(source, pace)

    # nobody stands between an agent and the line where it stops, and nobody is in the way of one that backs up
    backwards = of(motion.speed < 0)
    present = cast.present & ~(leads & (of(motion.stops) | backwards)) & ~(follows & backwards)
    before = headway(limits, of(motion.speed), of(motion.acceleration), joined.speed)
    behind = headway(limits, joined.speed, joined.acceleration, of(motion.speed))
    between = (length + of(length)) / 2
    spare = rng.uniform(1.0, 1.5, leads.shape)
    place = of(stage.place) + leads * (spare * before + between) - follows * (spare * behind + between)

    leader = np.where(follows, source, -1)
    scene, agent = np.nonzero(leads & present)
    leader[scene, source[scene, agent]] = agent
    route = stage.route[np.arange(len(source))[:, None], source]
    return joined, route, place, leader, present


def _draw_road(
    rng: np.random.Generator,
    layout: Int[np.ndarray, "scenes"],
    traveled: Float[np.ndarray, "scenes targets"],
    safe: Float[np.ndarray, "scenes targets"],
) -> Route:
    """The center line of each scene's road, its bend at the origin: too gentle to be called a turn, or ahead."""
    scenes, farthest = len(layout), np.abs(traveled).max(1)
    gentle = np.maximum(18 * farthest, 60.0) * rng.uniform(1, 2, scenes)
    radius = np.where(layout == _GENTLE, gentle, np.maximum(safe.max(1), 15.0) + 2 * LANE_WIDTH)
    angle = np.radians(rng.uniform(30, 90, scenes))
    length = np.where(layout == _GENTLE, rng.uniform(60, 120, scenes) + 2 * farthest, angle * radius)
    bent, zeros = layout != _STRAIGHT, np.zeros(scenes)
    return Route(zeros, zeros, zeros, bent * rng.choice([-1.0, 1.0], scenes) / radius, bent * length)


def _place_on_road(
    rng: np.random.Generator, layout: Int[np.ndarray, "scenes 1"], lane: Route, motion: Motion
) -> Float[np.ndarray, "scenes agents"]:
    """Places such that the whole history is in a gentle curve, or before a bend."""
    behind, ahead = np.maximum(motion.traveled, 0), lane.length - np.maximum(-motion.traveled, 0)
    within = behind + rng.random(behind.shape) * (ahead - behind)
    before = rng.uniform(-35, -3, behind.shape) + np.minimum(motion.traveled, 0)
    anywhere = rng.uniform(-40, 20, behind.shape)
    return np.where(layout == _GENTLE, within, np.where(layout == _BEND, before, anywhere))


def _place_at_crossing(
    rng: np.random.Generator, motion: Motion, later: Bool[np.ndarray, "scenes agents"]
) -> Float[np.ndarray, "scenes agents"]:
    """Places before a crossing; those who stop do so at the line."""
    straight = rng.uniform(-50, -8, later.shape)
    way = motion.stopping_distance
    straight = np.where(motion.stops & (way < 60), STOP_LINE - way - rng.uniform(0.5, 3, later.shape), straight)
    return np.where(later, rng.uniform(-30, -2, later.shape), straight)


def _draw_free(
    rng: np.random.Generator, side: Float[np.ndarray, "scenes agents"], radius: Float[np.ndarray, "scenes agents"]
) -> Route:
    """Routes anywhere near the middle of the scene, straight or with one bend."""
    distance, bearing, heading = (
        rng.uniform(low, high, side.shape) for low, high in ((8, 35), (0, 2 * np.pi), (0, 2 * np.pi))
    )
    length = np.abs(side) * radius * np.radians(rng.uniform(60, 120, side.shape))
    return Route(distance * np.cos(bearing), distance * np.sin(bearing), heading, side / radius, length)
