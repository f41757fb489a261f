"""A scene as a map with the forecasts of all its agents, unsteered and steered, in the frame of the first of them.

The first agent stands at the origin and looks up the page; (x, y) is drawn at (−y, −x), in meters, as in the report.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from innerspace.app.forecasts import Stage, Steered
from innerspace.motion.forecast_metrics import Forecast
from innerspace.motion.scenes import KINDS, LINE_KINDS
from innerspace.report.maps import View, outline, path, roads, visible

HUES = 8
"""How many colors there are for agents; more agents begin anew."""

ROOM, LEAST = 0.1, 60.0
"""The share of the extent that stays free at every side, and the shortest side of a map (m)."""

Points = Float[np.ndarray, "points 2"]
Coordinates = Float[np.ndarray, "*any 2"]


@dataclass(frozen=True, eq=False)
class SceneMap:
    """What does not change with the temperature: the rectangle that is shown, and the drawing below the forecasts."""

    stage: Stage
    view: View
    base: str

    @staticmethod
    def of(stage: Stage, chosen: Bool[Tensor, "agents"], likely: Sequence[Forecast]) -> "SceneMap":
        """A map that holds of the chosen agents what was, what came, and the most likely one of some forecasts."""
        rows = chosen.nonzero().flatten().tolist()
        points = [_paths(stage, forecast.most_likely())[rows].reshape(-1, 2) for forecast in likely]
        points += [_positions(stage)[rows], *(part(stage, row) for row in rows for part in (_history, _truth))]
        view = _around(np.concatenate(points))
        return SceneMap(stage, view, _base(stage, view))

    def draw(self, found: Steered) -> str:
        """The map as an SVG: unsteered forecasts as ghosts, steered ones in the color of their agent."""
        parts = list[str]()
        clean, steered = (_paths(self.stage, forecast.trajectory) for forecast in (found.clean, found.steered))
        ends = _positions(self.stage)
        for row in range(len(self.stage.batch)):
            best = int(found.clean.probability[row].argmax())
            ghost = path(np.concatenate([ends[row : row + 1], clean[row, best]]))
            parts.append(f'<path class="ghost" d="{ghost}"/>{_end(clean[row, best, -1], "ghost")}')
        for row in found.chosen.nonzero().flatten().tolist():
            share = found.steered.probability[row]
            best, strongest = int(share.argmax()), max(float(share.max()), 1e-9)
            for mode in share.argsort(stable=True).tolist():
                strong = 1.0 if mode == best else 0.15 + 0.5 * float(share[mode]) / strongest
                style = "mode best" if mode == best else "mode"
                line = path(np.concatenate([ends[row : row + 1], steered[row, mode]]))
                title = f"<title>agent {row + 1}, probability {float(share[mode]):.2f}</title>"
                hue = f"hue-{row % HUES}"
                parts.append(f'<path class="{style} {hue}" opacity="{strong:.2f}" d="{line}">{title}</path>')
            parts.append(_end(steered[row, best, -1], f"hue-{row % HUES}"))
        label = f"Map of {len(self.stage.batch)} agents with their forecasts, unsteered and steered"
        head = f'<svg class="map" viewBox="{self.view.box}" role="img" aria-label="{label}">'
        return f"{head}{self.base}{''.join(parts)}{_numbers(self.stage, self.view)}</svg>"


def _around(points: Points) -> View:
    (top, left), (bottom, right) = (-points).min(0), (-points).max(0)
    side = max((1 + 2 * ROOM) * max(bottom - top, right - left), LEAST)
    return View((left + right - side) / 2, (top + bottom - side) / 2, side, side)


def _base(stage: Stage, view: View) -> str:
    scene, turn = stage.scene, _turn(stage)
    lines = (
        (LINE_KINDS[int(kind)], turn(line[valid]))
        for line, kind, valid in zip(scene.line, scene.line_kind, scene.line_valid, strict=True)
    )
    parts, targets = [roads(lines, view)], stage.batch.agent.tolist()
    yaw = float(stage.batch.yaw[0])
    for agent in np.flatnonzero(scene.valid[:, scene.now]).tolist():
        heading = float(scene.heading[agent, scene.now]) - yaw
        corners = outline(turn(scene.position[agent, scene.now][None])[0].tolist(), heading, scene.size[agent].tolist())
        if not visible(corners, view):
            continue
        style = f"target hue-{targets.index(agent) % HUES}" if agent in targets else "other"
        name = f"agent {targets.index(agent) + 1}, a " if agent in targets else "a "
        title = f"<title>{name}{KINDS[int(scene.kind[agent])]}</title>"
        parts.append(f'<path class="{style}" d="{path(corners)}Z">{title}</path>')
    ends = _positions(stage)
    for row in range(len(stage.batch)):
        parts.append(f'<path class="history" d="{path(_history(stage, row))}"/>')
        truth = np.concatenate([ends[row : row + 1], _truth(stage, row)])
        parts.append(f'<path class="truth" d="{path(truth)}"/>')
    x, y = view.left + 0.03 * view.width, view.top + 0.965 * view.height
    size = view.width / 46
    parts.append(f'<path class="bar" d="M{x:.2f} {y:.2f}h{view.bar}"/>')
    parts.append(f'<text class="scale" font-size="{size:.2f}" x="{x:.2f}" y="{y - 0.6 * size:.2f}">{view.bar} m</text>')
    return "".join(parts)


def _numbers(stage: Stage, view: View) -> str:
    """The agents' numbers beside them, where there is more than one."""
    if len(stage.batch) < 2:
        return ""
    size, ends = view.width / 38, _positions(stage)
    places = ((-y + 0.75 * size, -x + 1.3 * size) for x, y in ends)
    return "".join(
        f'<text class="who hue-{row % HUES}" font-size="{size:.2f}" x="{x:.2f}" y="{y:.2f}">{row + 1}</text>'
        for row, (x, y) in enumerate(places)
    )


def _end(point: Float[np.ndarray, "2"], style: str) -> str:
    # a line of no length with round ends is a dot whose size does not depend on the map's
    return f'<path class="end {style}" d="{path(point[None])}h.001"/>'


def _turn(stage: Stage) -> Callable[[Coordinates], Coordinates]:
    """From the world to the frame of the first agent."""
    origin, yaw = stage.batch.origin[0].numpy(), float(stage.batch.yaw[0])
    back = np.array([[math.cos(yaw), math.sin(yaw)], [-math.sin(yaw), math.cos(yaw)]])

    def turned(points: Coordinates) -> Coordinates:
        return (points - origin) @ back.T

    return turned


def _paths(stage: Stage, points: Float[Tensor, "agents *some 2"]) -> Float[np.ndarray, "agents *some 2"]:
    """Points of each agent's own frame in that of the first."""
    return _turn(stage)(stage.batch.to_world(points).numpy())


def _positions(stage: Stage) -> Float[np.ndarray, "agents 2"]:
    return _turn(stage)(stage.batch.origin.numpy())


def _history(stage: Stage, row: int) -> Points:
    target = stage.batch.target
    return _paths(stage, target.position)[row][target.valid[row].numpy()]


def _truth(stage: Stage, row: int) -> Points:
    return _paths(stage, stage.batch.future)[row][stage.batch.future_valid[row].numpy()]
