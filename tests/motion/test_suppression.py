import math

import pytest
import torch
from torch import Tensor

from innerspace.motion.forecast_metrics import Forecast
from innerspace.motion.suppression import few, pick, sharpened, suppress


def crowded(modes: int = 20, rows: int = 12) -> tuple[Forecast, Tensor]:
    """Modes that begin alike and end at random within a few meters of each other."""
    ends = torch.randn(rows, modes, 1, 2, dtype=torch.float64) * 3
    way = torch.linspace(0.2, 1, 5, dtype=torch.float64)[:, None]
    bent = torch.randn(rows, modes, 5, 2, dtype=torch.float64) * 0.3
    logits = torch.randn(rows, modes, dtype=torch.float64)
    return Forecast(ends * way + bent, logits.softmax(1)), torch.randint(3, (rows,))


def apart(one: Tensor, other: Tensor, distance: str) -> float:
    steps = [math.dist(a, b) for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    return sum(steps) / len(steps) if distance == "average" else steps[-1]


def threshold(kind: int) -> float:
    return {0: 2.5, 1: 1.0, 2: 2.0}[kind]


def test_suppression_is_what_plain_loops_give() -> None:
    forecast, kind = crowded()
    found, beaten = suppress(forecast, kind), 0
    for row in range(len(kind)):
        paths, chances = forecast.trajectory[row], forecast.probability[row].tolist()
        scores = list(chances)
        for i in range(len(scores)):
            for j in range(len(scores)):
                if chances[j] > chances[i] and apart(paths[i], paths[j], "average") < threshold(int(kind[row])):
                    scores[i] = 1e-3
        beaten += scores.count(1e-3)
        expected = torch.tensor(scores, dtype=torch.float64)
        torch.testing.assert_close(found.probability[row], expected / expected.sum())
    assert 20 < beaten < 200
    assert found.trajectory is forecast.trajectory


@pytest.mark.parametrize("distance", ["average", "final"])
def test_picking_is_what_plain_loops_give(distance) -> None:
    forecast, kind = crowded()
    found = pick(forecast, kind, 6, distance)
    for row in range(len(kind)):
        paths, scores = forecast.trajectory[row], forecast.probability[row].tolist()
        left, picked = set(range(len(scores))), list[int]()
        for _ in range(6):
            best = max(left, key=lambda i: scores[i])
            left.remove(best)
            picked.append(best)
            for i in left:
                if apart(paths[i], paths[best], distance) < threshold(int(kind[row])):
                    scores[i] *= 0.01
        chances = forecast.probability[row, picked]
        assert torch.equal(found.trajectory[row], paths[picked])
        torch.testing.assert_close(found.probability[row], chances / chances.sum())


def test_a_mode_far_from_all_is_picked_before_one_that_repeats_the_best() -> None:
    ends = torch.tensor([0.0, 0.5, 1.0, 9.0])
    trajectory = torch.stack((ends, 0 * ends), -1)[None, :, None].expand(1, 4, 3, 2)
    forecast = Forecast(trajectory, torch.tensor([[0.4, 0.3, 0.25, 0.05]]))
    vehicle, pedestrian = torch.tensor([0]), torch.tensor([1])
    assert pick(forecast, vehicle, 2).trajectory[0, :, 0, 0].tolist() == [0, 9]
    torch.testing.assert_close(pick(forecast, vehicle, 2).probability, torch.tensor([[0.4, 0.05]]) / 0.45)
    # 1 m is not nearer than 1 m
    assert pick(forecast, pedestrian, 2).trajectory[0, :, 0, 0].tolist() == [0, 1]
    total = 0.4 + 0.05 + 2e-3
    torch.testing.assert_close(suppress(forecast, vehicle).probability * total, torch.tensor([[0.4, 1e-3, 1e-3, 0.05]]))


def test_of_equal_modes_the_first_stays() -> None:
    forecast = Forecast(torch.zeros(2, 4, 3, 2), torch.full((2, 4), 0.25))
    found = suppress(forecast, torch.tensor([0, 1])).probability
    torch.testing.assert_close(found * 0.253, torch.tensor([[0.25, 1e-3, 1e-3, 1e-3]]).expand(2, -1))


def test_up_to_six_modes_are_judged_as_they_are() -> None:
    forecast, kind = crowded(6)
    assert few(forecast, kind) is forecast
    forecast, kind = crowded(7)
    assert few(forecast, kind).probability.shape == (12, 6)
    torch.testing.assert_close(few(forecast, kind).probability.sum(1), torch.ones(12, dtype=torch.float64))


def test_a_temperature_of_a_half_squares_probabilities() -> None:
    forecast = Forecast(torch.zeros(1, 3, 2, 2), torch.tensor([[0.5, 0.5, 0.0]]))
    torch.testing.assert_close(sharpened(forecast).probability, forecast.probability)
    forecast = Forecast(torch.zeros(1, 2, 2, 2), torch.tensor([[0.8, 0.2]]))
    torch.testing.assert_close(sharpened(forecast).probability, torch.tensor([[0.64, 0.04]]) / 0.68)
    torch.testing.assert_close(sharpened(forecast, 1.0).probability, forecast.probability)


def test_what_cannot_be_done_is_refused() -> None:
    forecast, kind = crowded(5)
    with pytest.raises(ValueError, match=r"of 5 modes, 1 … 5 can be picked, not 6"):
        pick(forecast, kind)
    with pytest.raises(ValueError, match="temperature should be positive, it is 0"):
        sharpened(forecast, 0)
