import math

import pytest
import torch
from torch import Tensor

from innerspace.motion.responses import (
    Limits,
    feasible,
    final_heading,
    lateral_displacement,
    max_curvature,
    max_lateral_acceleration,
    max_longitudinal_acceleration,
    mean_acceleration,
    mean_speed,
    path_length,
)

INTERVAL, WAYPOINTS = 0.2, 30
TIME = INTERVAL * torch.arange(1, WAYPOINTS + 1, dtype=torch.float64)


def straight(speed: float, acceleration: float, heading: float = 0.0) -> Tensor:
    path = speed * TIME + acceleration * TIME**2 / 2
    return path[:, None] * torch.tensor([math.cos(heading), math.sin(heading)], dtype=torch.float64)


def arc(speed: float, radius: float) -> Tensor:
    """A turn at constant speed, to the left for a positive radius."""
    angle = speed * TIME / radius
    return radius * torch.stack((angle.sin(), 1 - angle.cos()), -1)


@pytest.mark.parametrize("heading", [0.0, 0.7, -2.5])
@pytest.mark.parametrize(("speed", "acceleration"), [(10.0, 0.0), (5.0, 2.0), (12.0, -1.5)])
def test_uniform_acceleration_is_measured_exactly(speed: float, acceleration: float, heading: float) -> None:
    trajectory = straight(speed, acceleration, heading)
    length = speed * 6 + acceleration * 18
    assert path_length(trajectory).item() == pytest.approx(length)
    assert mean_speed(trajectory, INTERVAL).item() == pytest.approx(length / 6)
    assert mean_acceleration(trajectory, INTERVAL).item() == pytest.approx(acceleration)
    assert max_longitudinal_acceleration(trajectory, INTERVAL).item() == pytest.approx(abs(acceleration))
    assert final_heading(trajectory).item() == pytest.approx(heading)
    assert lateral_displacement(trajectory).item() == pytest.approx(length * math.sin(heading))
    assert max_curvature(trajectory, INTERVAL).item() == pytest.approx(0, abs=1e-9)
    assert max_lateral_acceleration(trajectory, INTERVAL).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("radius", [20.0, -20.0, 50.0])
def test_an_arc_has_its_curvature_and_heading(radius: float) -> None:
    speed = 8.0
    trajectory = arc(speed, radius)
    step = speed * INTERVAL / radius
    chord = 2 * radius * math.sin(step / 2)
    assert max_curvature(trajectory, INTERVAL).item() == pytest.approx(1 / abs(radius))
    assert max_lateral_acceleration(trajectory, INTERVAL).item() == pytest.approx((chord / INTERVAL) ** 2 / abs(radius))
    assert max_longitudinal_acceleration(trajectory, INTERVAL).item() == pytest.approx(0, abs=1e-9)
    assert path_length(trajectory).item() == pytest.approx(abs(chord) * WAYPOINTS)
    assert mean_acceleration(trajectory, INTERVAL).item() == pytest.approx(0, abs=1e-9)
    # a segment is 1.6 m long: the last one is the chord, its heading that of its middle
    expected = math.remainder((WAYPOINTS - 0.5) * step, 2 * math.pi)
    assert final_heading(trajectory).item() == pytest.approx(expected)
    expected = math.remainder((WAYPOINTS - 1) * step, 2 * math.pi)
    assert final_heading(trajectory, chord=2.0).item() == pytest.approx(expected)


def test_standing_agents_have_no_heading_and_do_not_accelerate() -> None:
    jitter = 0.02 * torch.randn(100, WAYPOINTS, 2, dtype=torch.float64)
    assert final_heading(jitter).isnan().all()
    assert mean_acceleration(jitter, INTERVAL).abs().max() < 0.05
    assert (max_curvature(jitter, INTERVAL) == 0).all()
    assert (max_lateral_acceleration(jitter, INTERVAL) == 0).all()


def test_noise_does_not_turn_a_moving_agent() -> None:
    noisy = straight(3.0, 0.0, 0.4) + 0.02 * torch.randn(100, WAYPOINTS, 2, dtype=torch.float64)
    assert (final_heading(noisy, chord=2.0) - 0.4).abs().max() < 0.06


def test_what_a_car_cannot_drive_is_infeasible() -> None:
    rows = torch.stack(
        [
            straight(10, 1),
            arc(8, 20),
            straight(10, 0) * 0,
            arc(8, 10),  # 6.4 m/s² to the side
            arc(3, 2.5),  # 1.2 m/s² to the side, but a radius that no car turns
            torch.cat((straight(10, 0)[:5], straight(10, 0)[4:5].expand(25, 2))),  # stops within a waypoint
            torch.cat((straight(5, 0)[:16], straight(5, 0)[1:15].flip(0))),  # turns on the spot at full speed
            straight(10, 1) * math.nan,
        ]
    )
    expected = [True, True, True, False, False, False, False, False]
    assert feasible(rows, INTERVAL, Limits()).tolist() == expected
    assert feasible(rows.reshape(2, 4, WAYPOINTS, 2), INTERVAL, Limits()).reshape(-1).tolist() == expected
    assert feasible(rows, INTERVAL, Limits(lateral=7)).tolist()[3]
    assert feasible(rows, INTERVAL, Limits(curvature=0.5)).tolist()[4]


def test_gradients_exist_everywhere() -> None:
    trajectory = torch.stack((straight(5, 1, 0.3), arc(8, 20), straight(0, 0))).requires_grad_()
    total = sum(
        measure.nan_to_num().sum()
        for measure in (
            path_length(trajectory),
            mean_speed(trajectory, INTERVAL),
            mean_acceleration(trajectory, INTERVAL),
            final_heading(trajectory),
            lateral_displacement(trajectory),
            max_longitudinal_acceleration(trajectory, INTERVAL),
            max_lateral_acceleration(trajectory, INTERVAL),
            max_curvature(trajectory, INTERVAL),
        )
    )
    (gradient,) = torch.autograd.grad(total, trajectory)
    assert gradient.isfinite().all()
    moved = trajectory[:2].detach().requires_grad_()
    torch.autograd.gradcheck(lambda x: mean_acceleration(x, INTERVAL), moved)
    torch.autograd.gradcheck(final_heading, moved)


def test_limits_and_arguments_are_checked() -> None:
    assert Limits.from_json(Limits(lateral=4).to_json()) == Limits(lateral=4)
    with pytest.raises(ValueError, match="curvature should be positive"):
        Limits(curvature=0)
    with pytest.raises(ValueError, match="at least 2 waypoints"):
        path_length(torch.zeros(3, 1, 2))
    with pytest.raises(ValueError, match="interval"):
        mean_speed(torch.zeros(3, 4, 2), 0.0)
    with pytest.raises(ValueError, match="chord"):
        final_heading(torch.zeros(3, 4, 2), chord=0.0)
