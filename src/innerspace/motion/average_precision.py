"""Mean average precision of forecasts as the Waymo Open Motion Dataset defines it, and its rate of misses.

A forecast is a detector: each of its modes claims that the agent will be near its waypoint at a horizon, with its
probability as confidence. Precision and recall are counted over the modes of all agents of one *shape* of trajectory,
so that the many who drive straight do not outvote the few who turn.

Written from the description in Ettinger et al., "Large Scale Interactive Motion Forecasting for Autonomous Driving: the
Waymo Open Motion Dataset" (ICCV 2021). Two things differ: an agent's speed at the end, which tells whether it stands,
is that of its last segment, since futures carry no velocities; and all types of agents are counted together.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.motion.forecast_metrics import Forecast
from innerspace.motion.framing import Batch

SHAPES = (
    "stationary",
    "straight",
    "straight_left",
    "straight_right",
    "left_turn",
    "right_turn",
    "left_u_turn",
    "right_u_turn",
)
"""The shapes of trajectories, by id."""

HORIZONS = (3.0, 5.0, 8.0)
"""Where forecasts are judged, in seconds."""

_LATERAL, _LONGITUDINAL = (1.0, 1.8, 3.0), (2.0, 3.6, 6.0)
_SLOW, _FAST = 1.4, 11.0
_STANDING_SPEED, _STANDING_WAY = 2.0, 5.0
_STRAIGHT_TURN, _STRAIGHT_OFFSET, _U_TURN_BACK = math.radians(30), 5.0, -5.0


def horizons(batch: Batch) -> tuple[float, ...]:
    """Those of ``HORIZONS`` that the forecasts reach, and their end if it lies between two of these, in seconds."""
    end = batch.interval * batch.future.shape[1]
    reached = [time for time in HORIZONS if time <= end + 1e-6]
    between = HORIZONS[0] < end < HORIZONS[-1] and not math.isclose(end, reached[-1], abs_tol=1e-6)
    return (*reached, end) if between else tuple(reached)


def shapes(batch: Batch) -> Int[Tensor, "batch"]:
    """The shape of what really happened, between the current pose and that at the last valid waypoint; −1 without one.

    Stationary: slower than 2 m/s at both ends, and less than 5 m apart. Else, if the heading changes by less than 30°,
    straight: to the left or right if the end lies 5 m or more off the current heading's line. Else a turn to the side
    to which both heading and end lie, or to the left; a U-turn if the end lies more than 5 m behind.
    """
    row, steps = torch.arange(len(batch)), torch.arange(batch.future.shape[1])
    valid = batch.future_valid
    last = steps.where(valid, -1).amax(1)
    before = steps.where(valid & (steps < last[:, None]), -1).amax(1)
    end, heading = batch.future[row, last], batch.future_heading[row, last]
    x, y = end.unbind(-1)
    origin = torch.zeros_like(end)
    previous = torch.where(before[:, None] >= 0, batch.future[row, before], origin)
    final_speed = (end - previous).norm(dim=-1) / ((last - before).clamp(min=1) * batch.interval)
    speed = torch.maximum(batch.target.velocity[:, -1].norm(dim=-1), final_speed)

    right = (heading < 0) & (y < 0)
    back = x < _U_TURN_BACK
    found = torch.where(right, _id("right_turn") + back * _U, _id("left_turn") + back * _U)
    aside = y.abs() >= _STRAIGHT_OFFSET
    straight = torch.where(aside, torch.where(y > 0, _id("straight_left"), _id("straight_right")), _id("straight"))
    found = torch.where(heading.abs() < _STRAIGHT_TURN, straight, found)
    standing = (speed < _STANDING_SPEED) & (end.norm(dim=-1) < _STANDING_WAY)
    return torch.where(standing, _id("stationary"), found).where(last >= 0, -1)


def thresholds(time: float, speed: Float[Tensor, "batch"]) -> Float[Tensor, "batch 2"]:
    """How far off a match may be along and across the true heading (m), by horizon (s) and current speed (m/s).

    Across 1 m at 3 s, 1.8 m at 5 s, 3 m at 8 s, linear in between, along twice that; all times a half for agents up to
    1.4 m/s, growing linearly to one at 11 m/s.

    Raises:
        ValueError: for a horizon outside of 3…8 s, where none are defined.
    """
    if not HORIZONS[0] - 1e-6 <= time <= HORIZONS[-1] + 1e-6:
        raise ValueError(f"miss thresholds are defined from {HORIZONS[0]:g} to {HORIZONS[-1]:g} s, not at {time:g} s")
    along, across = (float(np.interp(time, HORIZONS, meters)) for meters in (_LONGITUDINAL, _LATERAL))
    scale = 0.5 + 0.5 * ((speed - _SLOW) / (_FAST - _SLOW)).clamp(0, 1)
    return scale[:, None] * torch.tensor([along, across], dtype=speed.dtype, device=speed.device)


def matched(forecast: Forecast, batch: Batch, time: float) -> tuple[Bool[Tensor, "batch modes"], Bool[Tensor, "batch"]]:
    """Which modes match what happened at a horizon (s), and which rows can be judged: their waypoint there is valid.

    Raises:
        ValueError: as ``thresholds`` does, and for a horizon at which there is no waypoint.
    """
    step = round(time / batch.interval) - 1
    if step >= batch.future.shape[1] or not math.isclose((step + 1) * batch.interval, time, abs_tol=1e-3):
        raise ValueError(f"no waypoint at {time:g} s; there are {batch.future.shape[1]} every {batch.interval:g} s")
    x, y = (forecast.trajectory[:, :, step] - batch.future[:, None, step]).unbind(-1)
    heading = batch.future_heading[:, None, step]
    cos, sin = heading.cos(), heading.sin()
    off = torch.stack((cos * x + sin * y, cos * y - sin * x), -1).abs()
    near = thresholds(time, batch.target.velocity[:, -1].norm(dim=-1))
    return (off <= near[:, None]).all(-1), batch.future_valid[:, step]


def average_precision(
    hits: Bool[Tensor, "batch modes"],
    probability: Float[Tensor, "batch modes"],
    weights: Float[Tensor, "copies batch"],
) -> Float[Tensor, "copies"]:
    """The area under precision by recall, in several copies of the data in which a row counts ``weights`` times.

    Of an agent's matching modes the most likely one is a true positive, all others are false ones, as all modes that
    do not match. Over all confidences c, with modes of at least c: precision is the share of true positives, made
    monotone by the largest precision at any recall that is not smaller; recall is their number over that of agents.
    NaN for copies without an agent.
    """
    best = torch.where(hits, probability, -1).argmax(1)
    true = torch.nn.functional.one_hot(best, hits.shape[1]).bool() & hits
    confidence, order = probability.flatten().sort(descending=True, stable=True)
    rows = order // hits.shape[1]
    weight = weights.double()[:, rows]
    positives = (weight * true.flatten()[order]).cumsum(1)
    claims = weight.cumsum(1)
    # modes of one confidence are claimed together
    last = torch.ones_like(confidence, dtype=torch.bool)
    last[:-1] = confidence[1:] != confidence[:-1]
    positives, claims = positives[:, last], claims[:, last]
    precision = (positives / claims.clamp(min=1e-12)).flip(1).cummax(1).values.flip(1)
    steps = positives.diff(dim=1, prepend=torch.zeros_like(positives[:, :1]))
    return (precision * steps).sum(1) / weights.double().sum(1)


def mean_average_precision(
    forecast: Forecast, batch: Batch, weights: Float[Tensor, "copies batch"] | None = None
) -> Float[Tensor, "copies"]:
    """The mean of ``average_precision`` over the shapes that occur, and over the horizons that the forecasts reach.

    Rows whose waypoint at a horizon is not valid do not count there. NaN if no row counts anywhere, or the forecasts
    are shorter than the first horizon. Without weights, one copy: the data as they are.

    Raises:
        ValueError: for horizons at which there is no waypoint.
    """
    weights = torch.ones(1, len(batch)) if weights is None else weights
    shape, areas = shapes(batch), list[Tensor]()
    for time in horizons(batch):
        hits, judged = matched(forecast, batch, time)
        by_shape = list[Tensor]()
        for kind in range(len(SHAPES)):
            own = judged & (shape == kind)
            if own.any():
                by_shape.append(average_precision(hits[own], forecast.probability[own], weights[:, own]))
        if by_shape:
            areas.append(torch.stack(by_shape).nanmean(0))
    return torch.stack(areas).nanmean(0) if areas else weights.new_full((len(weights),), torch.nan).double()


def missed(forecast: Forecast, batch: Batch) -> Float[Tensor, "batch"]:
    """At how many of the horizons, as a share, no mode matches: Waymo's miss rate by row; NaN where none is judged."""
    shares = [torch.full((len(batch),), torch.nan)]
    for time in horizons(batch):
        hits, judged = matched(forecast, batch, time)
        shares.append((~hits.any(1)).float().where(judged, torch.nan))
    return torch.stack(shares).nanmean(0)


def _id(shape: str) -> int:
    return SHAPES.index(shape)


_U = SHAPES.index("left_u_turn") - SHAPES.index("left_turn")
