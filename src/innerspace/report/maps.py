"""The section on forecasts: scenes as maps that the reader steers, packed for the script and drawn for paper.

Scenes come in the frame of their target, which stands at the origin and looks along +x. On the page +x points up, so
that left stays left: (x, y) is drawn at (−y, −x), in meters.
"""

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from innerspace.report.blocks import Palette, Section, Stage, StaticScene
from innerspace.report.numerals import spoken

ASPECT = 0.75
"""Width over height of a map."""

Points = Float[np.ndarray, "points 2"]


class View(NamedTuple):
    """The rectangle of a scene that is shown, in meters on the page."""

    left: float
    top: float
    width: float
    height: float

    @property
    def box(self) -> str:
        """The ``viewBox`` of the drawing."""
        return " ".join(f"{value:.1f}" for value in self)

    @property
    def bar(self) -> int:
        """A round length that is at most a third of the width."""
        return max(length for length in (1, 2, 5, 10, 20, 50, 100, 200, 500) if length <= max(self.width / 3, 1))


class Steered(NamedTuple):
    """The forecasts of one scene under one vector: by temperature, mode and waypoint."""

    vector: str
    method: str
    tau: list[float]
    paths: Float[np.ndarray, "temperatures modes points 2"]
    probability: Float[np.ndarray, "temperatures modes"]

    @property
    def zero(self) -> int:
        """Where the temperature is 0: the unsteered forecast."""
        return self.tau.index(0)


def forecasts(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """The stage on which forecasts are steered, live on screen and as small multiples on paper."""
    scenes = [(scene, [_steered(scene, entry) for entry in scene["steered"]]) for scene in report["scenes"]]
    views = [_view(scene, steered) for scene, steered in scenes]
    drawn = enumerate(zip(scenes, views, strict=True))
    maps = "".join(f'<g class="base" id="map-{i}">{_base(scene, view)}</g>' for i, ((scene, _), view) in drawn)
    packed = {
        "interval": report.get("interval", 0.2),
        "scenes": [_pack(scene, steered, view, palette) for (scene, steered), view in zip(scenes, views, strict=True)],
    }
    data = json.dumps(packed, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    static = tuple(
        _static(i, scene, steered, view, palette)
        for i, ((scene, steered), view) in enumerate(zip(scenes, views, strict=True))
    )
    caption = (
        "Forecasts of the target agent on the map, unsteered and steered by a vector at temperature τ; every mode is "
        "drawn as strong as it is likely. " + note
    )
    lead = "What does the forecaster foresee when a vector is added to its hidden states?"
    return Section("forecasts", "Steered forecasts", lead, (Stage(caption, maps, data, static),))


def _steered(scene: Mapping[str, Any], entry: Mapping[str, Any]) -> Steered:
    where = f"scene {scene['name']!r}, vector {entry['vector']!r}"
    if 0 not in entry["tau"]:
        raise ValueError(f"{where}: tau should hold 0, the unsteered forecast; it holds {entry['tau']}")
    try:
        paths = np.asarray(entry["forecasts"], dtype=float)
        probability = np.asarray(entry["probability"], dtype=float)
    except ValueError:
        raise ValueError(f"{where}: every temperature should have as many modes, every mode as many points") from None
    if paths.ndim != 4 or paths.shape[0] != len(entry["tau"]) or paths.shape[-1] != 2:
        raise ValueError(f"{where}: forecasts should be ({len(entry['tau'])}, modes, points, 2), not {paths.shape}")
    if probability.shape != paths.shape[:2]:
        raise ValueError(f"{where}: probability should be {paths.shape[:2]}, it is {probability.shape}")
    if not np.isfinite(paths).all():
        raise ValueError(f"{where}: a forecast is not finite")
    return Steered(entry["vector"], spoken(entry["method"]), list(entry["tau"]), paths, probability)


def _view(scene: Mapping[str, Any], steered: Iterable[Steered]) -> View:
    """All that happened and all that is likely at any temperature, with room around it, in the aspect of a map."""
    own = [np.asarray(scene[key], dtype=float).reshape(-1, 2) for key in ("history", "truth")]
    # an unlikely mode may leave the map, it should not shrink what is likely
    likely = [entry.paths[entry.probability >= entry.probability.max(1, keepdims=True)] for entry in steered]
    points = np.concatenate([*own, *(paths.reshape(-1, 2) for paths in likely), np.zeros((1, 2))])
    low, high = (-points).min(0), (-points).max(0)
    (top, left), (height, width) = low, high - low
    tall = max(1.12 * height + 4, (1.12 * width + 4) / ASPECT, 36.0)
    wide = ASPECT * tall
    return View(left + width / 2 - wide / 2, top + height / 2 - tall / 2, wide, tall)


def _base(scene: Mapping[str, Any], view: View) -> str:
    """What does not change with the temperature: the road, the others, the target, its past and its true future."""
    lines = ((line["kind"], np.asarray(line["points"], dtype=float).reshape(-1, 2)) for line in scene["lines"])
    parts = [roads(lines, view)]
    for other in scene["others"]:
        corners = outline(other["position"], other["heading"], other["size"])
        if visible(corners, view):
            parts.append(f'<path class="other" d="{path(corners)}Z"/>')
    parts.append(f'<path class="history" d="{path(np.asarray(scene["history"], dtype=float).reshape(-1, 2))}"/>')
    truth = np.asarray(scene["truth"], dtype=float).reshape(-1, 2)
    parts.append(f'<path class="truth" d="{path(np.concatenate([np.zeros((1, 2)), truth]))}"/>')
    parts.append(f'<path class="target" d="{path(outline((0.0, 0.0), 0.0, scene["size"]))}Z"/>')
    x, y = view.left + 0.04 * view.width, view.top + 0.975 * view.height
    parts.append(f'<path class="bar" d="M{x:.2f} {y:.2f}h{view.bar}"/>')
    return "".join(parts)


def roads(lines: Iterable[tuple[str, Points]], view: View) -> str:
    """The lines of a map that can be seen, by their kind: drivable ground first, paint upon it."""
    kinds = dict[str, str]()
    for kind, points in lines:
        if visible(points, view):
            kinds[kind] = kinds.get(kind, "") + path(points)
    order = sorted(kinds, key=lambda kind: (kind != "lane", kind))
    return "".join(f'<path class="road {kind.replace("_", "-")}" d="{kinds[kind]}"/>' for kind in order)


def path(points: Points) -> str:
    """The ``d`` of a path through points of the target's frame."""
    return "M" + "L".join(f"{_trim(-y)} {_trim(-x)}" for x, y in points) if len(points) else ""


def outline(position: Sequence[float], heading: float, size: Sequence[float]) -> Points:
    """The corners of an agent: its length lies along its heading."""
    # what is smaller than half a meter would vanish
    length, width = (max(extent, 0.6) / 2 for extent in size[:2])
    corners = np.array([(length, width), (length, -width), (-length, -width), (-length, width)])
    cos, sin = math.cos(heading), math.sin(heading)
    return corners @ np.array([[cos, sin], [-sin, cos]]) + np.asarray(position, dtype=float)


def visible(points: Points, view: View) -> bool:
    """Whether the box around points of the target's frame meets what is shown."""
    if not len(points):
        return False
    (top, left), (bottom, right) = (-points).min(0), (-points).max(0)
    return bool(
        right >= view.left and left <= view.left + view.width and bottom >= view.top and top <= view.top + view.height
    )


def _trim(value: float) -> str:
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _pack(scene: Mapping[str, Any], steered: Iterable[Steered], view: View, palette: Palette) -> dict[str, Any]:
    """A scene as the script reads it."""
    return {
        "name": scene["name"],
        "words": scene["words"],
        "view": view.box,
        "bar": view.bar,
        "truth": np.asarray(scene["truth"], dtype=float).round(2).tolist(),
        "steered": [_pack_steered(entry, palette) for entry in steered],
    }


def _pack_steered(entry: Steered, palette: Palette) -> dict[str, Any]:
    modes, points = entry.paths.shape[1:3]
    # the finest steps with which 16 bits reach everything
    step = max(float(np.abs(entry.paths).max()), 1.0) / 32000
    steps: Int[np.ndarray, "temperatures modes points 2"] = np.rint(entry.paths / step).astype("<i2")
    return {
        "vector": entry.vector,
        "method": entry.method,
        "hue": palette[entry.vector],
        "tau": entry.tau,
        "zero": entry.zero,
        "modes": modes,
        "points": points,
        "step": step,
        "paths": base64.b64encode(steps.tobytes()).decode(),
        "probability": entry.probability.round(3).tolist(),
    }


def _static(
    index: int, scene: Mapping[str, Any], steered: Sequence[Steered], view: View, palette: Palette
) -> StaticScene:
    """The unsteered forecast and, by vector, both ends of the slider; the first method of each vector."""
    first = {entry.vector: entry for entry in reversed(steered)}
    shown = [first[name] for name in dict.fromkeys(entry.vector for entry in steered)]
    columns = list[tuple[str, str, tuple[tuple[str, str], ...]]]()
    if shown:
        columns.append(("unsteered", "", (("τ = 0", _mini(index, shown[0], shown[0].zero, view, "")),)))
    for entry in shown:
        drawings = tuple(
            (f"τ = {_signed(entry.tau[end])}", _mini(index, entry, end, view, palette[entry.vector]))
            for end in (int(np.argmin(entry.tau)), int(np.argmax(entry.tau)))
        )
        columns.append((f"{entry.vector} ({entry.method})", palette[entry.vector], drawings))
    return StaticScene(scene["words"], tuple(columns))


def _signed(tau: float) -> str:
    return f"{tau:+g}".replace("-", "−")


def _mini(index: int, entry: Steered, temperature: int, view: View, hue: str) -> str:
    probability = entry.probability[temperature]
    best, strongest = int(probability.argmax()), max(float(probability.max()), 1e-9)
    parts = [f'<use href="#map-{index}"/>']
    if temperature != entry.zero:
        parts.append(f'<path class="ghost" d="{_from_origin(entry, entry.zero)}"/>')
    for mode in np.argsort(probability, kind="stable"):
        style = "mode best" if mode == best else "mode"
        opacity = 1.0 if mode == best else 0.2 + 0.6 * float(probability[mode]) / strongest
        parts.append(
            f'<path class="{style}" opacity="{opacity:.2f}" d="{_from_origin(entry, temperature, int(mode))}"/>'
        )
    label = f"{'Unsteered' if not hue else entry.vector} forecast, temperature {_signed(entry.tau[temperature])}"
    return f'<svg class="map mini {hue}" viewBox="{view.box}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _from_origin(entry: Steered, temperature: int, mode: int | None = None) -> str:
    chosen = int(entry.probability[temperature].argmax()) if mode is None else mode
    return path(np.concatenate([np.zeros((1, 2)), entry.paths[temperature, chosen]]))
