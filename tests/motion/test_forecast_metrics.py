import dataclasses
import math

import pytest
import torch
from torch import Tensor

from innerspace.motion.forecast_metrics import Forecast, ForecastScores, constant_velocity, errors, score
from innerspace.motion.framing import Batch, Tracks

TRUTH = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]])
SEEN = torch.ones(1, 3, dtype=torch.bool)


def two_modes() -> Forecast:
    """One mode is near on average and ends 3 m off, the other is 4 m off on the way and ends 1 m off."""
    first = TRUTH + torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 3.0]])
    second = TRUTH + torch.tensor([[0.0, 4.0], [0.0, -4.0], [1.0, 0.0]])
    return Forecast(torch.stack((first, second), 1), torch.tensor([[0.75, 0.25]]))


def test_the_best_mode_ends_nearest() -> None:
    found = errors(two_modes(), TRUTH, SEEN)
    assert found.min_fde.item() == 1
    assert found.min_ade.item() == 3
    assert found.brier_min_fde.item() == 1 + 0.75**2
    assert not found.missed.item()
    assert torch.equal(two_modes().most_likely(), two_modes().trajectory[:, 0])


def test_only_valid_waypoints_count() -> None:
    seen = torch.tensor([[True, False, False]])
    found = errors(two_modes(), TRUTH, seen)
    assert (found.min_ade.item(), found.min_fde.item(), found.brier_min_fde.item()) == (0, 0, 0.0625)
    garbage = TRUTH.masked_fill(~seen[..., None], torch.inf)
    assert torch.equal(errors(two_modes(), garbage, seen).min_ade, found.min_ade)


@pytest.mark.parametrize(("end", "missed"), [(2.0, False), (2.001, True)])
def test_a_miss_ends_more_than_two_meters_off(end: float, missed: bool) -> None:
    forecast = Forecast((TRUTH + torch.tensor([0.0, end]))[:, None], torch.ones(1, 1))
    assert errors(forecast, TRUTH, SEEN).missed.item() == missed


def random_case() -> tuple[Forecast, Tensor, Tensor]:
    valid = torch.rand(40, 7) < 0.7
    valid[3] = False
    future = torch.randn(40, 7, 2, dtype=torch.float64) * 2
    return (
        Forecast(
            future[:, None] + torch.randn(40, 6, 7, 2, dtype=torch.float64) * 2,
            torch.randn(40, 6, dtype=torch.float64).softmax(1),
        ),
        future,
        valid,
    )


def test_scores_agree_with_plain_loops() -> None:
    forecast, future, valid = random_case()
    rows = list[tuple[float, float, bool, float]]()
    for modes, weights, truth, seen in zip(forecast.trajectory, forecast.probability, future, valid, strict=True):
        if not seen.any():
            continue
        paths = [[math.dist(p, q) for p, q, s in zip(mode, truth, seen, strict=True) if s] for mode in modes]
        k = min(range(6), key=lambda i: paths[i][-1])
        final = paths[k][-1]
        rows.append((sum(paths[k]) / len(paths[k]), final, final > 2, final + (1 - weights[k].item()) ** 2))
    found = score(forecast, future, valid)
    expected = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    assert [found.min_ade, found.min_fde, found.miss_rate, found.brier_min_fde] == pytest.approx(expected)
    assert found.rows == len(rows) == 39
    assert ForecastScores.from_json(found.to_json()) == found


def test_rows_without_a_future_are_left_out() -> None:
    forecast, future, valid = random_case()
    found = errors(forecast, future, valid)
    assert (~found.judged).nonzero().tolist() == [[3]]
    for field in (found.min_ade, found.min_fde, found.brier_min_fde):
        assert torch.equal(field.isnan(), ~found.judged)
    assert not found.missed[3]
    with pytest.raises(ValueError, match="none of the 40 rows"):
        score(forecast, future, torch.zeros_like(valid))


def test_errors_refuse_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        errors(Forecast(two_modes().trajectory, torch.tensor([[0.75, 0.75]])), TRUTH, SEEN)
    with pytest.raises(ValueError, match="3 waypoints, future of 2"):
        errors(two_modes(), TRUTH[:, :2], SEEN[:, :2])


def moving_batch(velocity: Tensor, waypoints: int, interval: float) -> Batch:
    """Targets alone on an empty map, at constant velocity from the origin."""
    rows, steps = len(velocity), 5
    zeros = torch.zeros(rows)
    tracks = Tracks(
        torch.zeros(rows, steps, 2),
        torch.zeros(rows, steps),
        # only the current step may count
        torch.cat((torch.full((rows, steps - 1, 2), 99.0), velocity[:, None]), 1),
        torch.ones(rows, steps, dtype=torch.bool),
        zeros.long(),
        torch.ones(rows, 3),
    )
    others = Tracks(*(getattr(tracks, field.name)[:, None] for field in dataclasses.fields(Tracks)))
    time = interval * torch.arange(1, waypoints + 1)
    return Batch(
        target=tracks,
        others=others,
        line=torch.zeros(rows, 1, 2, 2),
        line_valid=torch.zeros(rows, 1, 2, dtype=torch.bool),
        line_kind=torch.zeros(rows, 1, dtype=torch.int64),
        future=velocity[:, None] * time[:, None],
        future_heading=torch.zeros(rows, waypoints),
        future_valid=torch.ones(rows, waypoints, dtype=torch.bool),
        origin=torch.zeros(rows, 2, dtype=torch.float64),
        yaw=zeros.double(),
        scene=zeros.long(),
        agent=zeros.long(),
        dt=0.1,
        interval=interval,
    )


def test_constant_velocity_is_right_about_uniform_motion() -> None:
    batch = moving_batch(torch.tensor([[10.0, 0.0], [3.0, -1.0], [0.0, 0.0]]), waypoints=30, interval=0.2)
    found = score(constant_velocity(batch), batch.future, batch.future_valid)
    assert [found.min_ade, found.min_fde, found.brier_min_fde] == pytest.approx([0, 0, 0], abs=1e-5)
    assert (found.miss_rate, found.rows) == (0, 3)
