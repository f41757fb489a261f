"""What forecasts do over time, beside the map: speed and heading, calibration curves, and what cannot be driven."""

from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from innerspace.app.forecasts import Steered, Vector
from innerspace.app.scene_map import HUES
from innerspace.jobs.motion.steering import MEASURES
from innerspace.motion.responses import (
    Limits,
    max_curvature,
    max_lateral_acceleration,
    max_longitudinal_acceleration,
)
from innerspace.motion.scenes import KINDS
from innerspace.report.plots import Chart, Scale

_CHORD = 1.0
"""The direction of less than this (m) is noise."""

Path = Float[np.ndarray, "waypoints 2"]


def over_time(found: Steered) -> str:
    """Two charts: speed and heading of every chosen agent's most likely forecast, steered, unsteered and as it came."""
    interval, batch = found.stage.batch.interval, found.stage.batch
    clean, steered = found.clean.most_likely().numpy(), found.steered.most_likely().numpy()
    time = [round((i + 0.5) * interval, 3) for i in range(clean.shape[1])]
    rows = found.chosen.nonzero().flatten().tolist()
    truths = [batch.future[row][batch.future_valid[row]].numpy() for row in rows]
    charts = list[str]()
    for name, unit, measure, ground in (
        ("speed", "m/s", _speed, 0.0),
        ("heading", "°, left is positive", _heading, None),
    ):
        lines = list[tuple[list[float | None], str]]()
        for row, truth in zip(rows, truths, strict=True):
            # a truth with gaps has no speed across them
            whole = len(truth) == len(time)
            lines += [(measure(truth, interval), "truth")] if whole else []
            lines += [(measure(clean[row], interval), "ghost"), (measure(steered[row], interval), f"thick {_hue(row)}")]
        known = [value for values, _ in lines for value in values if value is not None]
        scale = Scale.over(known, include=ground)
        if ground is None:
            # a straight road should look straight
            low, high = min([-10.0, *known]), max([10.0, *known])
            scale = Scale(low - 0.05 * (high - low), high + 0.05 * (high - low))
        ahead = Scale(0, time[-1] + interval / 2)
        chart = Chart(ahead, scale, x_label="seconds ahead", y_label=f"{name} [{unit}]", width=290, height=180)
        for values, style in lines:
            chart.line(time, values, style)
        charts.append(chart.svg(f"{name.capitalize()} over time, steered and unsteered"))
    return f'<div class="charts">{"".join(charts)}</div>'


def calibrations(found: Steered, offered: dict[str, Vector]) -> str:
    """The calibration curve of every vector that has one, the present temperature on it, and the agents' responses."""
    charts = list[str]()
    for feature, vector in offered.items():
        curve, measure = vector.calibration, MEASURES.get(feature)
        if curve is None or measure is None:
            continue
        tau, means = curve["tau"], [point["mean"] for point in curve["response"]]
        lows, highs = ([point[end] for point in curve["response"]] for end in ("low", "high"))
        now = found.tau.get(feature, 0.0)
        own = {
            row: _response(found, measure.readout, measure.relative, row)
            for row in found.chosen.nonzero().flatten().tolist()
        }
        known = [response for response in own.values() if response is not None]
        known += [value for value in (*means, *lows, *highs) if value is not None]
        low, high = min(known), max(known)
        room = 0.12 * (high - low) or 1.0
        scale = Scale(low - room, high + room)
        name = f"{feature} [{measure.unit}]"
        chart = Chart(Scale.over([*tau, now]), scale, x_label="τ", y_label=name, width=390, height=190)
        chart.band(tau, lows, highs, "curve")
        chart.line(tau, means, "curve")
        chart.rule(now, "now")
        if min(tau) <= now <= max(tau):
            expected = float(np.interp(now, tau, means))
            tip = f"τ = {now:+g}: {expected:+.1f} {measure.unit} on average over held-out agents"
            chart.dots([now], [expected], [tip], "mark curve")
        for row, response in own.items():
            if response is not None:
                tip = f"agent {row + 1}: {response:+.1f} {measure.unit}"
                chart.dots([now], [response], [tip], f"mark hollow {_hue(row)}")
        charts.append(chart.svg(f"Calibration of {feature}: response by temperature, the present one marked"))
    if not charts:
        return '<p class="quiet">This run holds no calibration of these vectors.</p>'
    return f'<div class="charts three">{"".join(charts)}</div>'


def readings(found: Steered) -> str:
    """A table: what each chosen agent's most likely forecast does, before and after."""
    rows = list[str]()
    for row in found.chosen.nonzero().flatten().tolist():
        cells = list[str]()
        for measure in MEASURES.values():
            before, after = (float(side[measure.readout][row]) for side in (found.before, found.after))
            unit = "m/s" if measure.readout == "speed" else measure.unit
            cells.append(f"<td>{_told(before)} → <b>{_told(after)}</b> {unit}</td>")
        cells.append(f"<td>{_told(float(found.after['shift'][row]))} m</td>")
        rows.append(f'<tr><th scope="row" class="{_hue(row)}"><span>agent {row + 1}</span></th>{"".join(cells)}</tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in ("", "mean speed", "acceleration", "heading", "moved by"))
    table = f'<table class="readings"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def warnings(found: Steered, limits: Limits) -> list[tuple[str, Literal["warning", "note"]]]:
    """Which steered forecasts a road vehicle could not drive, and why: a note where it could not the unsteered one."""
    said, interval = list[tuple[str, Literal["warning", "note"]]](), found.stage.batch.interval
    for row in found.chosen.nonzero().flatten().tolist():
        before, after = (_beyond(side.most_likely()[row], interval, limits) for side in (found.clean, found.steered))
        if after:
            state = "is infeasible, steered or not" if before else "becomes infeasible"
            kind = KINDS[int(found.stage.batch.target.kind[row])]
            line = f"Agent {row + 1}, a {kind}, {state}: {'; '.join(after)}."
            said.append((line, "note" if before else "warning"))
    return said


def _beyond(path: Float[Tensor, "waypoints 2"], interval: float, limits: Limits) -> list[str]:
    """The limits that a path breaks, with what it would take."""
    measured = (
        (
            "longitudinal acceleration",
            float(max_longitudinal_acceleration(path, interval)),
            limits.longitudinal,
            "m/s²",
        ),
        (
            "lateral acceleration",
            float(max_lateral_acceleration(path, interval, limits.moving)),
            limits.lateral,
            "m/s²",
        ),
        ("curvature", float(max_curvature(path, interval, limits.moving)), limits.curvature, "1/m"),
    )
    # what is not finite is beyond every limit
    return [
        f"{name} {value:.2g} {unit}, the limit is {limit:g}"
        for name, value, limit, unit in measured
        if not value <= limit
    ]


def _response(found: Steered, name: str, relative: bool, row: int) -> float | None:
    before, after = float(found.before[name][row]), float(found.after[name][row])
    change = after - before
    if relative:
        change = 100 * change / before if before >= 1.0 else float("nan")
    return change if np.isfinite(change) else None


def _speed(path: Path, interval: float) -> list[float | None]:
    steps = np.diff(np.concatenate([np.zeros((1, 2)), path]), axis=0)
    return (np.linalg.norm(steps, axis=1) / interval).tolist()


def _heading(path: Path, interval: float) -> list[float | None]:  # noqa: ARG001
    """The direction (°) from the last point at least a meter away; None where the path is too short to have one."""
    points, angles = np.concatenate([np.zeros((1, 2)), path]), list[float]()
    for i in range(1, len(points)):
        far = np.flatnonzero(np.linalg.norm(points[i] - points[:i], axis=1) >= _CHORD)
        x, y = points[i] - points[far[-1]] if len(far) else (np.nan, np.nan)
        angles.append(float(np.arctan2(y, x)))
    known = np.isfinite(angles)
    turned = np.full(len(angles), np.nan)
    turned[known] = np.rad2deg(np.unwrap(np.array(angles)[known]))
    return [float(angle) if ok else None for angle, ok in zip(turned, known, strict=True)]


def _hue(row: int) -> str:
    return f"hue-{row % HUES}"


def _told(value: float) -> str:
    return "–" if not np.isfinite(value) else f"{value:.1f}".replace("-", "−")
