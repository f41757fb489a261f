import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from innerspace.motion.forecasters.redmotion import RedMotion, RedMotionSettings
from innerspace.motion.framing import Batch, Framing, frame
from innerspace.motion.losses import losses
from innerspace.motion.scene_store import StoredAgents
from innerspace.motion.scene_writing import write_store
from innerspace.motion.simulate import Simulation, simulate
from innerspace.motion.training import Trained, Training, evaluate, forecast, train
from scene_sources import RandomScenes

FRAMING = Framing(history=6, future=20, stride=4, agents=3, lines=8)
SETTINGS = RedMotionSettings(framing=FRAMING, width=16, window=4, red_tokens=4, dropout=0.1)
SHORT = Training(steps=12, batch_size=8, warm_up=3, evaluate_every=4, checkpoint_every=5)


def simulated(scenes: int, seed: int) -> Batch:
    return frame(simulate(Simulation(scenes=scenes, seed=seed, history=6, future=20)).scenes, FRAMING)


@pytest.fixture(scope="module")
def rows() -> Batch:
    return simulated(20, 1)


@pytest.fixture(scope="module")
def held_out() -> Batch:
    return simulated(6, 2)


def fresh() -> RedMotion:
    torch.manual_seed(5)
    return RedMotion(SETTINGS)


class Witness(nn.Module):
    """Forecasts the same for every row, and remembers what it was shown in training."""

    def __init__(self) -> None:
        super().__init__()
        self.way = nn.Parameter(torch.zeros(6, 5, 2))
        self.shown = list[Batch]()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        if self.training:
            self.shown.append(batch)
        n = len(batch)
        return {
            "trajectory": self.way.expand(n, -1, -1, -1),
            "scale": torch.ones(n, 6, 5, 3),
            "logits": self.way.new_zeros(n, 6),
        }


def test_the_loss_is_the_winners_likelihood_and_the_entropy_of_the_choice(rows: Batch) -> None:
    batch = dataclasses.replace(rows, future_valid=torch.rand(rows.future_valid.shape) < 0.7)
    batch.future_valid[0] = False
    n = len(batch)
    output = {
        "trajectory": batch.future[:, None] + torch.randn(n, 6, 5, 2) * torch.rand(n, 6, 1, 1) * 4,
        "scale": torch.randn(n, 6, 5, 3),
        "logits": torch.randn(n, 6),
    }
    total, waypoints, choice = torch.zeros(()), 0, torch.zeros(())
    for i in range(1, n):
        valid = batch.future_valid[i]
        distance = (output["trajectory"][i] - batch.future[i]).norm(dim=-1)[:, valid].sum(-1)
        k = int(distance.argmin()) if valid.any() else 0
        a, b, c = output["scale"][i, k].unbind(-1)
        tril = torch.stack((torch.stack((a.exp(), 0 * a), -1), torch.stack((c, b.exp()), -1)), -2)
        likelihood = MultivariateNormal(output["trajectory"][i, k], scale_tril=tril).log_prob(batch.future[i])
        total, waypoints = total - likelihood[valid].sum(), waypoints + int(valid.sum())
        choice = choice - output["logits"][i].log_softmax(-1)[k] * valid.any()
    found = losses(output, batch)
    expected = total / waypoints + choice / int(batch.future_valid.any(1).sum())
    torch.testing.assert_close(found.mean(), expected, rtol=1e-4, atol=1e-4)
    assert found.path[0] == found.choice[0] == found.distance[0] == 0


def test_rows_without_a_waypoint_give_no_gradient(rows: Batch) -> None:
    batch = dataclasses.replace(rows, future_valid=torch.zeros_like(rows.future_valid))
    network = fresh()
    loss = losses(network(batch), batch).mean()
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in network.parameters() if p.grad is not None)


def test_an_interrupted_run_ends_with_the_same_bits(rows: Batch, held_out: Batch, tmp_path: Path) -> None:
    whole, torn = fresh(), fresh()
    expected = train(whole, rows, held_out, SHORT, tmp_path / "whole")

    count = 0

    def interrupt(*_: object) -> None:
        nonlocal count
        count += torn.training
        if count == 8:
            raise KeyboardInterrupt

    handle = torn.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(torn, rows, held_out, SHORT, tmp_path / "torn")
    handle.remove()
    resumed = RedMotion(SETTINGS)  # other weights: everything has to come from the snapshot
    found = train(resumed, rows, held_out, SHORT, tmp_path / "torn")

    assert found.curve == expected.curve
    assert found.scores == expected.scores
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "torn")]
    assert logs[0] == logs[1]
    assert [json.loads(line)["step"] for line in logs[0].splitlines()] == [4, 8, 12]
    finished = train(RedMotion(SETTINGS), rows, held_out, SHORT, tmp_path / "whole")
    assert finished.scores == expected.scores


def test_the_weights_are_those_of_the_lowest_held_out_loss(rows: Batch, held_out: Batch) -> None:
    wild = dataclasses.replace(SHORT, learning_rate=0.3, warm_up=9, evaluate_every=1)
    network = fresh()
    trained = train(network, rows, held_out, wild)
    lowest = min(point.held_out for point in trained.curve)
    assert lowest < trained.curve[-1].held_out
    loss, scores = evaluate(network, held_out)
    assert loss == lowest
    assert scores == trained.scores
    assert not network.training


def test_every_epoch_shows_every_row_once_and_always_the_current_step(rows: Batch, held_out: Batch) -> None:
    witness, size = Witness(), 8
    epoch = len(rows) // size
    assert epoch * size == len(rows)
    train(witness, rows, held_out, dataclasses.replace(SHORT, steps=2 * epoch, drop_history=0.5))
    orders = [[(int(s), int(a)) for b in part for s, a in zip(b.scene, b.agent, strict=True)]
              for part in (witness.shown[:epoch], witness.shown[epoch:])]  # fmt: skip
    assert len(set(orders[0])) == len(rows)
    assert set(orders[0]) == set(orders[1])
    assert orders[0] != orders[1]
    seen = torch.cat([b.target.valid for b in witness.shown]).double().mean(0)
    assert seen[-1] == 1
    assert 0.3 < seen[:-1].mean() < 0.65


def test_training_leaves_the_random_generator_alone(rows: Batch, held_out: Batch) -> None:
    before = torch.get_rng_state()
    train(Witness(), rows, held_out, dataclasses.replace(SHORT, steps=1))
    assert torch.equal(before, torch.get_rng_state())


def test_a_short_training_beats_constant_velocity() -> None:
    framing = Framing(history=6, future=60, stride=12, agents=2, lines=4)
    rows = frame(simulate(Simulation(scenes=250, seed=7, history=6)).scenes, framing)
    torch.manual_seed(0)
    network = RedMotion(dataclasses.replace(SETTINGS, framing=framing, dropout=0.0))
    settings = Training(steps=60, batch_size=64, learning_rate=1e-2, warm_up=10, evaluate_every=30)
    trained = train(network, rows[slice(0, 400)], rows[slice(400, 500)], settings)
    assert trained.scores.min_ade < 0.8 * trained.baseline.min_ade
    assert trained.curve[-1].loss < trained.curve[0].loss


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    settings = Training(steps=110, warm_up=10, learning_rate=1.0)
    rates = [settings.rate(step) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0)


def test_a_loss_that_is_not_finite_names_the_step(rows: Batch, held_out: Batch) -> None:
    witness = Witness()

    def poison(*_: object) -> None:
        if len(witness.shown) == 3:
            witness.way.data.fill_(torch.nan)

    witness.register_forward_pre_hook(poison)
    with pytest.raises(ValueError, match="the loss is nan at step 3"):
        train(witness, rows, held_out, SHORT)


def test_what_cannot_go_on_is_refused(rows: Batch, held_out: Batch, tmp_path: Path) -> None:
    train(Witness(), rows, held_out, dataclasses.replace(SHORT, steps=2), tmp_path)
    with pytest.raises(ValueError, match="give another folder"):
        train(Witness(), rows, held_out, dataclasses.replace(SHORT, steps=3), tmp_path)
    blind = dataclasses.replace(held_out, future_valid=torch.zeros_like(held_out.future_valid))
    with pytest.raises(ValueError, match="held-out batch of 12 rows has no valid waypoint"):
        train(Witness(), rows, blind, SHORT)
    with pytest.raises(ValueError, match="batch_size should be at least 1"):
        Training(batch_size=0)


def test_forecasts_do_not_depend_on_the_chunk(rows: Batch) -> None:
    network = fresh()
    whole, parts = forecast(network, rows), forecast(network, rows, chunk=7)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-4)
    assert network.training


def test_agents_of_a_store_teach_as_those_in_memory_do(tmp_path: Path) -> None:
    framing = Framing(history=5, future=8, stride=4, agents=3, lines=4, nodes=5)
    store = write_store(RandomScenes(30), tmp_path / "store", workers=0)
    held_out, stored = frame(list(store)[:6], framing), StoredAgents(store, framing, np.arange(6, len(store)))
    in_memory = frame(list(store)[6:], framing)
    assert (len(stored), stored.scenes) == (len(in_memory), len(store) - 6)
    settings = dataclasses.replace(SETTINGS, framing=framing)
    found = list[Trained]()
    for rows in (in_memory, stored):
        torch.manual_seed(5)
        found.append(train(RedMotion(settings), rows, held_out, SHORT))
    assert found[0].curve == found[1].curve
    other = found[1].model.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in found[0].model.state_dict().items())
