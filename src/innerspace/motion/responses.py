"""What a forecast trajectory does: its speed, acceleration and heading, and whether a vehicle could drive it.

A trajectory starts at the origin at time 0, heading along x, and has two or more waypoints, one every ``interval``
seconds. All measures are differentiable in it. Speeds are those of its straight segments, at the segments' middle
times.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from innerspace.value import Value

Trajectory = Float[Tensor, "*rows waypoints 2"]
PerRow = Float[Tensor, "*rows"]


@dataclass(frozen=True)
class Limits(Value):
    """What a road vehicle can do: accelerations in m/s², curvature in 1/m.

    Defaults: ``longitudinal`` is full braking on dry asphalt (0.8 g); ``lateral`` lies just above the 4.89 m/s² that
    nuPlan allows a comfortable ride; ``curvature`` is the bound of Waymax's bicycle model, a radius of 3.3 m. Slower
    than ``moving`` (m/s) the direction of a segment is mostly noise, and curvature is not judged.

    Raises:
        ValueError: for limits that are not positive.
    """

    longitudinal: float = 8.0
    lateral: float = 5.0
    curvature: float = 0.3
    moving: float = 2.0

    def __post_init__(self) -> None:
        for name in ("longitudinal", "lateral", "curvature", "moving"):
            if not getattr(self, name) > 0:
                raise ValueError(f"limits: {name} should be positive, it is {getattr(self, name)}")


def path_length(trajectory: Trajectory) -> PerRow:
    """The length of the path from the origin through all waypoints, in m."""
    return _segments(trajectory).norm(dim=-1).sum(-1)


def mean_speed(trajectory: Trajectory, interval: float) -> PerRow:
    """The path's length over its duration, in m/s."""
    return _speeds(trajectory, interval).mean(-1)


def mean_acceleration(trajectory: Trajectory, interval: float) -> PerRow:
    """The least-squares slope of speed over time, in m/s²; jitter around a standing agent averages out."""
    speed = _speeds(trajectory, interval)
    time = torch.arange(speed.shape[-1], device=speed.device, dtype=speed.dtype) * interval
    weight = time - time.mean()
    return (speed * weight).sum(-1) / weight.square().sum()


def final_heading(trajectory: Trajectory, chord: float = 1.0) -> PerRow:
    """The net heading change in rad, in (−π, π], positive to the left; NaN for paths that stay too short to have one.

    It is the direction from the last point at least ``chord`` meters away from the end to the end, which centimeters of
    noise do not turn. On an arc this is the heading in the middle of that chord.

    Raises:
        ValueError: if chord is not positive.
    """
    if not chord > 0:
        raise ValueError(f"chord should be a positive length in m, it is {chord}")
    points = _points(trajectory)
    back = points[..., -1:, :] - points[..., :-1, :]
    step = torch.arange(back.shape[-2], device=back.device)
    index = step.where(back.norm(dim=-1) >= chord, -1).amax(-1)
    long = index >= 0
    x, y = back.take_along_dim(index.clamp(min=0)[..., None, None], -2).squeeze(-2).unbind(-1)
    # atan2 has no gradient at the origin: short rows look along x before they become NaN
    return torch.atan2(y.where(long, 0), x.where(long, 1)).where(long, torch.nan)


def lateral_displacement(trajectory: Trajectory) -> PerRow:
    """How far to the left (m) of the current heading's line the trajectory ends."""
    return trajectory[..., -1, 1]


def max_longitudinal_acceleration(trajectory: Trajectory, interval: float) -> PerRow:
    """The largest change of speed between successive segments, braking or not, in m/s²."""
    return (_speeds(trajectory, interval).diff(dim=-1) / interval).abs().amax(-1)


def max_lateral_acceleration(trajectory: Trajectory, interval: float, moving: float = Limits.moving) -> PerRow:
    """The largest v²·κ (m/s²) over the waypoints that are passed at ``moving`` m/s or faster; 0 if none is."""
    speed = _speeds(trajectory, interval)
    middle = (speed[..., 1:] + speed[..., :-1]) / 2
    return (middle.square() * _curvatures(trajectory, interval, moving)).amax(-1)


def max_curvature(trajectory: Trajectory, interval: float, moving: float = Limits.moving) -> PerRow:
    """The largest curvature (1/m) over the waypoints that are passed at ``moving`` m/s or faster; 0 if none is."""
    return _curvatures(trajectory, interval, moving).amax(-1)


def feasible(trajectory: Trajectory, interval: float, limits: Limits) -> Bool[Tensor, "*rows"]:
    """Whether the trajectory stays within the limits; one that is not finite does not."""
    return (
        (max_longitudinal_acceleration(trajectory, interval) <= limits.longitudinal)
        & (max_lateral_acceleration(trajectory, interval, limits.moving) <= limits.lateral)
        & (max_curvature(trajectory, interval, limits.moving) <= limits.curvature)
    )


def _points(trajectory: Trajectory) -> Float[Tensor, "*rows points 2"]:
    if trajectory.shape[-2] < 2:
        raise ValueError(f"a trajectory needs at least 2 waypoints, this one has {trajectory.shape[-2]}")
    return torch.cat((torch.zeros_like(trajectory[..., :1, :]), trajectory), -2)


def _segments(trajectory: Trajectory) -> Float[Tensor, "*rows waypoints 2"]:
    return _points(trajectory).diff(dim=-2)


def _speeds(trajectory: Trajectory, interval: float) -> Float[Tensor, "*rows waypoints"]:
    if not interval > 0:
        raise ValueError(f"interval should be a positive number of seconds, it is {interval}")
    return _segments(trajectory).norm(dim=-1) / interval


def _curvatures(trajectory: Trajectory, interval: float, moving: float) -> Float[Tensor, "*rows inner"]:
    """κ = 2 sin(θ/2) over the mean length of the two segments that meet at angle θ; exact on an evenly sampled arc.

    Unlike the circle through three points, it does not vanish where a path turns back on itself.
    """
    segments = _segments(trajectory)
    length = segments.norm(dim=-1)
    tangent = segments / length.clamp(min=1e-6)[..., None]
    mean = (length[..., 1:] + length[..., :-1]) / 2
    curvature = tangent.diff(dim=-2).norm(dim=-1) / mean.clamp(min=1e-6)
    slowest = torch.minimum(length[..., 1:], length[..., :-1]) / interval
    return curvature.where(slowest >= moving, 0)
