"""Scenes of a mock report: six targets before a crossing, with forecasts that follow four vectors."""

import math
from typing import Any

import numpy as np

METHODS = ("mean difference", "SAE-refined")
TAU = [round(-1 + 0.2 * i, 1) for i in range(11)]
INTERVAL, WAYPOINTS = 0.2, 30

Report = dict[str, Any]


def mock_scenes(count: int) -> list[Report]:
    """At most six scenes, as a report holds them."""
    kinds = (
        ("a vehicle moving straight at high speed, decelerating", "vehicle", 15.0, -0.8, 0.0, [4.8, 1.9]),
        ("a vehicle moving left at moderate speed, accelerating", "vehicle", 7.5, 0.4, 0.03, [4.6, 1.9]),
        ("a vehicle moving right at low speed", "vehicle", 4.5, 0.1, -0.06, [4.4, 1.8]),
        ("a pedestrian moving straight at low speed", "pedestrian", 1.4, 0.0, 0.0, [0.6, 0.6]),
        ("a cyclist moving straight at low speed, accelerating", "cyclist", 4.2, 0.3, 0.004, [1.8, 0.6]),
        ("a stationary vehicle", "vehicle", 0.0, 0.0, 0.0, [4.7, 1.9]),
    )
    return [_scene(i, *kind) for i, kind in enumerate(kinds[:count])]


def _roll(speed: float, acceleration: float, curvature: float) -> list[list[float]]:
    """Positions at the waypoints of a motion of steady acceleration and curvature, which never drives backward."""
    x = y = heading = 0.0
    points: list[list[float]] = []
    for _ in range(WAYPOINTS):
        speed = max(0.0, speed + acceleration * INTERVAL)
        heading += curvature * speed * INTERVAL
        x, y = x + speed * INTERVAL * math.cos(heading), y + speed * INTERVAL * math.sin(heading)
        points.append([round(x, 3), round(y, 3)])
    return points


def _scene(
    i: int, words: str, kind: str, speed: float, acceleration: float, curvature: float, size: list[float]
) -> Report:
    effects = {
        "speed": (0.5, 0.0, 0.0),
        "acceleration": (0.1, 0.9, 0.0),
        "direction": (0.0, 0.0, 0.012),
        "agent": (-0.3, 0.0, 0.0),
    }
    spreads = (
        (1.0, 0.0, 0.0),
        (0.8, -0.3, 0.004),
        (1.15, 0.3, -0.004),
        (0.9, 0.0, 0.02),
        (1.0, 0.1, -0.02),
        (0.5, -1.0, 0.0),
    )
    steered: list[Report] = []
    for vector, (gain, push, turn) in effects.items():
        for m, method in enumerate(METHODS):
            forecasts = [
                [
                    _roll(
                        (speed + 0.4 * max(tau, 0)) * s * (1 + gain * tau * (1 + 0.1 * m)),
                        acceleration + a + push * tau,
                        curvature + c + turn * tau * (1 + 0.1 * m),
                    )
                    for s, a, c in spreads
                ]
                for tau in TAU
            ]
            weights = [np.exp([1.6 - 0.4 * j - 0.3 * abs(tau) * (j == 0) for j in range(6)]) for tau in TAU]
            probability = [(w / w.sum()).tolist() for w in weights]
            entry = {"vector": vector, "method": method, "tau": TAU, "forecasts": forecasts, "probability": probability}
            steered.append(entry)
    history = [[round(-0.1 * k * speed, 2), 0.0] for k in range(10, -1, -1)]
    return {
        "name": f"test/{i:04d}",
        "words": words,
        "kind": kind,
        "history": history,
        "truth": _roll(speed * 0.97, acceleration * 0.8, curvature * 1.1),
        "lines": _lines(),
        "others": [
            {"kind": "vehicle", "position": [18.0, 3.6], "heading": math.pi, "size": [4.6, 1.9]},
            {"kind": "vehicle", "position": [-9.0, 0.2], "heading": 0.02, "size": [4.9, 2.0]},
            {"kind": "vehicle", "position": [33.0, -14.0], "heading": math.pi / 2, "size": [4.5, 1.8]},
            {"kind": "pedestrian", "position": [23.5, -6.2], "heading": 1.2, "size": [0.5, 0.5]},
            {"kind": "cyclist", "position": [9.0, -3.1], "heading": 0.0, "size": [1.8, 0.6]},
        ],
        "size": size,
        "steered": steered,
    }


def _lines() -> list[Report]:
    """A crossing of two roads, 30 m ahead."""
    lines: list[Report] = []

    def add(kind: str, points: list[tuple[float, float]]) -> None:
        lines.append({"kind": kind, "points": [list(point) for point in points]})

    for y in (0.0, 3.6):
        add("lane", [(x, y) for x in range(-40, 141, 10)])
    for x in (30.0, 33.6):
        add("lane", [(x, y) for y in range(-70, 71, 10)])
    for side in (-1.9, 5.5):
        for a, b in ((-40, 26), (37.5, 140)):
            add("road_edge", [(a, side), (b, side)])
    for side in (28.1, 35.5):
        for a, b in ((-70, -3.9), (7.5, 70)):
            add("road_edge", [(side, a), (side, b)])
    add("dashed_mark", [(-40, 1.8), (26, 1.8)])
    add("solid_mark", [(37.5, 1.8), (140, 1.8)])
    for x in (23.0, 26.0):
        add("crossing", [(x, -1.9), (x, 5.5)])
    add("lane", [(float(22 + 8 * math.sin(a)), float(8 - 8 * math.cos(a))) for a in np.linspace(0, math.pi / 2, 9)])
    return lines
