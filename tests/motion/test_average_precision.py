"""Waymo's mean average precision on cases made by hand, and against plain loops."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from innerspace.motion.average_precision import (
    SHAPES,
    average_precision,
    horizons,
    matched,
    mean_average_precision,
    missed,
    shapes,
    thresholds,
)
from innerspace.motion.forecast_metrics import Forecast
from innerspace.motion.framing import Batch, Framing, Tracks, frame
from innerspace.motion.simulate import Simulation, simulate


def batch(future: Tensor, heading: Tensor, speed: float | Tensor = 10.0, interval: float = 0.5) -> Batch:
    """Agents whose future is given; nothing else of them matters."""
    rows, waypoints = future.shape[:2]
    velocity = torch.zeros(rows, 2, 2)
    velocity[:, :, 0] = torch.as_tensor(speed).view(-1, 1)

    def tracks(*agents: int) -> Tracks:
        return Tracks(
            position=torch.zeros(*agents, 2, 2),
            heading=torch.zeros(*agents, 2),
            velocity=velocity if agents == (rows,) else torch.zeros(*agents, 2, 2),
            valid=torch.ones(*agents, 2, dtype=torch.bool),
            kind=torch.zeros(agents, dtype=torch.int64),
            size=torch.ones(*agents, 3),
        )

    return Batch(
        target=tracks(rows),
        others=tracks(rows, 0),
        line=torch.zeros(rows, 0, 2, 2),
        line_valid=torch.zeros(rows, 0, 2, dtype=torch.bool),
        line_kind=torch.zeros(rows, 0, dtype=torch.int64),
        future=future,
        future_heading=heading,
        future_valid=torch.ones(rows, waypoints, dtype=torch.bool),
        origin=torch.zeros(rows, 2),
        yaw=torch.zeros(rows),
        scene=torch.arange(rows),
        agent=torch.zeros(rows).long(),
        dt=0.1,
        interval=interval,
    )


def ending(x: float, y: float, degrees: float, speed: float = 10.0) -> str:
    """The shape of a straight way to a place."""
    way = torch.linspace(1 / 16, 1, 16)[None, :, None] * torch.tensor([x, y])
    return SHAPES[int(shapes(batch(way, torch.full((1, 16), math.radians(degrees)), speed)))]


@pytest.mark.parametrize(
    ("x", "y", "degrees", "speed", "shape"),
    [
        (1, 0, 0, 1.9, "stationary"),
        (4.9, 0, 90, 0, "stationary"),
        (5.1, 0, 0, 0, "straight"),
        (1, 0, 0, 2.1, "straight"),
        (60, 4.9, 29, 10, "straight"),
        (60, 5.1, 29, 10, "straight_left"),
        (60, -5.1, -29, 10, "straight_right"),
        (60, -5.1, 29, 10, "straight_right"),
        (20, 15, 31, 10, "left_turn"),
        (20, -15, -31, 10, "right_turn"),
        (-4.9, 15, 170, 10, "left_turn"),
        (-5.1, 15, 170, 10, "left_u_turn"),
        (-5.1, -15, -170, 10, "right_u_turn"),
        (-5.1, 15, -170, 10, "left_u_turn"),
    ],
)
def test_shapes_of_trajectories(x: float, y: float, degrees: float, speed: float, shape: str) -> None:
    assert ending(x, y, degrees, speed) == shape


def test_a_shape_goes_by_the_last_valid_waypoint() -> None:
    given = batch(torch.linspace(5, 80, 16)[None, :, None] * torch.tensor([1.0, 0.3]), torch.zeros(1, 16))
    assert SHAPES[int(shapes(given))] == "straight_left"
    valid = torch.arange(16)[None] < 3
    short = dataclasses.replace(given, future_valid=valid, future=given.future.where(valid[..., None], 0))
    assert SHAPES[int(shapes(short))] == "straight"
    assert int(shapes(dataclasses.replace(given, future_valid=torch.zeros_like(valid)))) == -1
    # the last segment's speed counts the steps that are missing in between
    standing = batch(
        torch.tensor([0.9, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 0.0])[None, :, None].expand(1, 8, 2), torch.zeros(1, 8), 0
    )
    only = torch.tensor([[True, *[False] * 6, True]])
    assert SHAPES[int(shapes(dataclasses.replace(standing, future_valid=only)))] == "stationary"


@pytest.mark.parametrize(
    ("time", "speed", "along", "across"),
    [
        (3, 11, 2, 1),
        (5, 20, 3.6, 1.8),
        (8, 11, 6, 3),
        (6, 11, 4.4, 2.2),
        (3, 1.4, 1, 0.5),
        (8, 0, 3, 1.5),
        (5, 6.2, 2.7, 1.35),
    ],
)
def test_thresholds_grow_with_horizon_and_speed(time: float, speed: float, along: float, across: float) -> None:
    assert thresholds(time, torch.tensor([float(speed)]))[0].tolist() == pytest.approx([along, across])


def test_horizons_end_with_the_forecast() -> None:
    def reached(waypoints: int, interval: float = 0.5) -> tuple[float, ...]:
        return horizons(batch(torch.zeros(1, waypoints, 2), torch.zeros(1, waypoints), interval=interval))

    assert reached(16) == (3, 5, 8)
    assert reached(20) == (3, 5, 8)
    assert reached(12) == (3, 5, 6)
    assert reached(10) == (3, 5)
    assert reached(30, 0.2) == pytest.approx((3, 5, 6))
    assert reached(5) == ()
    with pytest.raises(ValueError, match="from 3 to 8 s, not at 2"):
        thresholds(2.0, torch.ones(1))


def one(x: float, y: float, degrees: float) -> tuple[Forecast, Batch]:
    """A forecast that ends at x, y, of an agent that stands at the origin with some heading; 3 s, 10 m/s or faster."""
    truth = batch(torch.zeros(1, 6, 2), torch.full((1, 6), math.radians(degrees)), 11.0)
    return Forecast(torch.tensor([float(x), float(y)]).expand(1, 1, 6, 2), torch.ones(1, 1)), truth


@pytest.mark.parametrize(
    ("x", "y", "degrees", "hit"),
    [
        (1.9, 0.9, 0, True),
        (2.1, 0, 0, False),
        (0, 1.1, 0, False),
        (0, 1.9, 90, True),
        (1.1, 0, 90, False),
        (-1.9, -0.9, 0, True),
    ],
)
def test_a_match_is_near_along_and_across_the_true_heading(x: float, y: float, degrees: float, hit: bool) -> None:
    hits, judged = matched(*one(x, y, degrees), 3.0)
    assert hits.tolist() == [[hit]]
    assert judged.tolist() == [True]
    assert missed(*one(x, y, degrees)).tolist() == [float(not hit)]


def test_there_is_no_match_where_there_is_no_waypoint() -> None:
    forecast, truth = one(0, 0, 0)
    with pytest.raises(ValueError, match=r"no waypoint at 3\.2 s; there are 6 every 0\.5 s"):
        matched(forecast, truth, 3.2)
    with pytest.raises(ValueError, match="no waypoint at 5 s"):
        matched(forecast, truth, 5.0)


def test_precision_by_hand() -> None:
    # in the order of confidence: a hit, a miss, the second hit of the same agent (false), a hit of the other agent
    hits = torch.tensor([[True, True, False], [False, True, False]])
    probability = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.25, 0.1]])
    # recall 1/2 at precision 1, recall 1 at precision 2/4
    assert float(average_precision(hits, probability, torch.ones(1, 2))) == pytest.approx(0.5 * 1 + 0.5 * 0.5)
    # precision is raised to what a larger recall still has: 1/2 here, where the first claim is false
    hits = torch.tensor([[False, True]])
    assert float(average_precision(hits, torch.tensor([[0.6, 0.4]]), torch.ones(1, 1))) == pytest.approx(0.5)
    assert float(average_precision(torch.zeros(1, 2, dtype=torch.bool), torch.ones(1, 2) / 2, torch.ones(1, 1))) == 0
    # claims of one confidence are made together, in whatever order they stand
    for order in ([0, 1], [1, 0]):
        hits = torch.tensor([[True, False]])[:, order]
        assert float(average_precision(hits, torch.full((1, 2), 0.5), torch.ones(1, 1))) == pytest.approx(0.5)


def plain(hits: Tensor, probability: Tensor) -> float:
    """Average precision by plain loops over every confidence as a threshold."""
    agents = len(hits)
    points = list[tuple[float, float]]()
    for threshold in sorted(set(probability.flatten().tolist())):
        true = false = 0
        for row in range(agents):
            matching = [float(p) for p, hit in zip(probability[row], hits[row], strict=True) if hit]
            claims = sum(float(p) >= threshold for p in probability[row])
            own = int(bool(matching) and max(matching) >= threshold)
            true, false = true + own, false + claims - own
        points.append((true / agents, true / (true + false)))
    area, last = 0.0, 0.0
    for recall, _ in sorted(points):
        best = max(precision for other, precision in points if other >= recall)
        area, last = area + (recall - last) * best, recall
    return area


@pytest.mark.parametrize("seed", range(5))
def test_precision_agrees_with_plain_loops_and_weights_with_copies(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hits = torch.rand(12, 6, generator=generator) < 0.3
    probability = torch.randn(12, 6, generator=generator).softmax(1)
    if seed == 0:
        probability = (10 * probability).round()
    times = torch.randint(0, 3, (2, 12), generator=generator)
    times[0] = 1
    found = average_precision(hits, probability, times.float())
    for copy, count in zip(found.tolist(), times, strict=True):
        rows = torch.arange(12).repeat_interleave(count)
        assert copy == pytest.approx(plain(hits[rows], probability[rows]))


def test_the_mean_is_over_shapes_and_horizons() -> None:
    scenes = simulate(Simulation(scenes=60, future=60)).scenes
    truth = frame(scenes, Framing(future=60, stride=5))
    perfect = Forecast(truth.future[:, None].expand(-1, 2, -1, -1), torch.tensor([[0.9, 0.1]]).expand(len(truth), -1))
    # the other mode of an agent that is matched already is a false claim, but comes last
    assert float(mean_average_precision(perfect, truth)) == pytest.approx(1)
    assert float(missed(perfect, truth).nanmean()) == 0
    shape = shapes(truth)
    assert len(shape.unique()) >= 5
    straight = shape == SHAPES.index("straight")
    off = perfect.trajectory + 100.0 * straight[:, None, None, None]
    found = float(mean_average_precision(Forecast(off, perfect.probability), truth))
    # one of the shapes that occur has no hit, however many agents it has
    kinds = [len(shape[truth.future_valid[:, round(t / 0.5) - 1]].unique()) for t in horizons(truth)]
    assert found == pytest.approx(sum((n - 1) / n for n in kinds) / len(kinds))


def test_rows_without_a_waypoint_at_the_horizon_do_not_count() -> None:
    truth = batch(torch.zeros(2, 6, 2), torch.zeros(2, 6), torch.tensor([11.0, 11.0]))
    forecast = Forecast(torch.zeros(2, 1, 6, 2), torch.ones(2, 1))
    forecast.trajectory[1] += 50
    # both claims are made with the same confidence: half of them are true, for half of the agents
    assert float(mean_average_precision(forecast, truth)) == pytest.approx(0.25)
    valid = truth.future_valid.clone()
    valid[1, -1] = False
    part = dataclasses.replace(truth, future_valid=valid)
    assert float(mean_average_precision(forecast, part)) == 1
    assert missed(forecast, part).isnan().tolist() == [False, True]
    assert missed(forecast, truth).tolist() == [0, 1]
    short = batch(torch.zeros(1, 2, 2), torch.zeros(1, 2))
    nothing = Forecast(torch.zeros(1, 1, 2, 2), torch.ones(1, 1))
    assert mean_average_precision(nothing, short).isnan().all()
    assert missed(nothing, short).isnan().all()
