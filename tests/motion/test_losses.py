import dataclasses

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from innerspace.motion.forecast_metrics import Forecast, score
from innerspace.motion.forecasters.forecaster import forecasts
from innerspace.motion.forecasters.wayformer import Wayformer, WayformerSettings
from innerspace.motion.framing import Batch, Framing, frame
from innerspace.motion.losses import Loss, losses
from innerspace.motion.simulate import Simulation, simulate
from innerspace.motion.suppression import pick
from innerspace.motion.training import Training, evaluate, forecast, train
from innerspace.value import Value

FRAMING = Framing(history=6, future=20, stride=4, agents=3, lines=8)


@pytest.fixture(scope="module")
def rows() -> Batch:
    batch = frame(simulate(Simulation(scenes=20, seed=1, history=6, future=20)).scenes, FRAMING)
    valid = torch.rand(batch.future_valid.shape, generator=torch.Generator().manual_seed(2)) < 0.7
    valid[0] = False
    return dataclasses.replace(batch, future_valid=valid)


def output_for(batch: Batch) -> dict[str, Tensor]:
    n = len(batch)
    return {
        "trajectory": batch.future[:, None] + torch.randn(n, 6, 5, 2) * torch.rand(n, 6, 1, 1) * 4,
        "scale": torch.randn(n, 6, 5, 3),
        "logits": torch.randn(n, 6),
    }


@pytest.mark.parametrize("path", ["huber", "l2"])
def test_the_distances_are_what_plain_loops_give(rows: Batch, path) -> None:
    output, weights = output_for(rows), (1.0, 3.0, 0.5)
    found, total, waypoints = losses(output, rows, Loss(path, weights)), 0.0, 0
    likely = losses(output, rows)
    for i, winner in enumerate(likely.winner.tolist()):
        for t in rows.future_valid[i].nonzero().flatten().tolist():
            off = (output["trajectory"][i, winner, t] - rows.future[i, t]).abs()
            huber = sum(x * x / 2 if x < 1 else x - 0.5 for x in off.tolist())
            total += weights[int(rows.target.kind[i])] * (huber if path == "huber" else float(off.norm()))
            waypoints += 1
    assert len(rows.target.kind.unique()) > 1
    assert float(found.path.sum()) == pytest.approx(total, rel=1e-4)
    assert torch.equal(found.winner, likely.winner)
    choice = (likely.choice * torch.tensor(weights)[rows.target.kind]).sum() / int(rows.future_valid.any(1).sum())
    assert float(found.mean()) == pytest.approx(total / waypoints + float(choice), rel=1e-4)


def test_a_weight_counts_a_type_as_often(rows: Batch) -> None:
    output, kind = output_for(rows), rows.target.kind
    plain, heavy = losses(output, rows), losses(output, rows, Loss(weights=(2.0, 1.0, 0.0)))
    for part, weighted in ((plain.path, heavy.path), (plain.choice, heavy.choice)):
        torch.testing.assert_close(weighted, part * torch.tensor([2.0, 1, 0])[kind])
    assert torch.equal(losses(output, rows, Loss(weights=(1.0, 1.0, 1.0))).path, plain.path)


def test_parts_add_up_to_the_whole(rows: Batch) -> None:
    output, whole = output_for(rows), losses
    parts = [
        whole({k: item[i::3] for k, item in output.items()}, rows[slice(i, None, 3)]).mean(rows.future_valid)
        for i in range(3)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), losses(output, rows).mean())


def test_distances_leave_the_spread_alone_and_have_a_gradient_everywhere(rows: Batch) -> None:
    output = {name: item.requires_grad_() for name, item in output_for(rows).items()}
    exact = {**output, "trajectory": rows.future[:, None].repeat(1, 6, 1, 1).requires_grad_()}
    for given in (output, exact):
        for path in ("huber", "l2"):
            losses(given, rows, Loss(path)).mean().backward()
            gradient = given["trajectory"].grad
            assert gradient is not None
            assert gradient.isfinite().all()
            assert output["scale"].grad is None


def test_a_correlation_and_two_deviations_are_a_scale() -> None:
    torch.manual_seed(1)
    points = torch.randn(4, 3, 5 * 6, dtype=torch.float64) * 2
    plain = forecasts(points, 0.5)
    deviations, correlation = plain["scale"][..., :2].exp(), plain["scale"][..., 2].tanh()
    scale = forecasts(points, 0.5, "correlation")["scale"]
    lower = torch.diag_embed(scale[..., :2].exp())
    lower[..., 1, 0] = scale[..., 2]
    covariance = torch.diag_embed(deviations**2)
    covariance[..., 0, 1] = covariance[..., 1, 0] = correlation * deviations.prod(-1)
    torch.testing.assert_close(lower @ lower.mT, covariance)

    # the cost of MTR, by the formula that it is published with
    offset = torch.randn(4, 3, 6, 2, dtype=torch.float64)
    x, y = (offset / deviations).unbind(-1)
    rest = 1 - correlation.square()
    published = deviations.log().sum(-1) + rest.log() / 2 + (x**2 + y**2 - 2 * correlation * x * y) / (2 * rest)
    exact = -MultivariateNormal(torch.zeros(2).double(), scale_tril=lower).log_prob(offset)
    torch.testing.assert_close(published + torch.tensor(2 * torch.pi).log(), exact)


def test_many_modes_are_judged_as_six(rows: Batch) -> None:
    torch.manual_seed(0)
    network = Wayformer(WayformerSettings(framing=FRAMING, width=16, latents=4, modes=64))
    output = forecast(network, rows)
    modes = Forecast(output["trajectory"], output["logits"].softmax(-1))
    _, scores = evaluate(network, rows)
    assert scores == score(pick(modes, rows.target.kind, 6), rows.future, rows.future_valid)
    assert scores.min_ade > score(modes, rows.future, rows.future_valid).min_ade


@pytest.mark.parametrize("path", ["likelihood", "huber", "l2"])
def test_a_forecaster_learns_by_every_loss(rows: Batch, path) -> None:
    torch.manual_seed(0)
    network = Wayformer(WayformerSettings(framing=FRAMING, width=16, latents=4, covariance="correlation"))
    settings = Training(steps=20, batch_size=16, learning_rate=1e-2, warm_up=2, evaluate_every=10, loss=Loss(path))
    trained = train(network, rows, rows, settings)
    assert trained.curve[-1].held_out < trained.curve[0].held_out
    assert evaluate(network, rows, settings.loss)[0] == min(point.held_out for point in trained.curve)


def test_settings_of_old_come_back_with_the_loss_that_was(rows: Batch) -> None:
    old = Training(steps=7).to_json()
    del old["loss"]
    assert Training.from_json(old) == Training(steps=7)
    heavy = Training(loss=Loss("huber", (1.0, 2.0, 3.0)))
    assert Value.from_json(heavy.to_json()) == heavy
    with pytest.raises(ValueError, match="'likelihood', 'huber', 'l2', not 'l1'"):
        Loss.from_json({"class": "Loss", "path": "l1"})
    with pytest.raises(ValueError, match="should not be negative"):
        Loss(weights=(1.0, -1.0, 1.0))
