"""Directions that are optimized on what they do, on networks where the best ones are known."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from innerspace.learn.steering_vectors import SteeringFit, Wanted, optimize_vectors
from innerspace.network.model import Family, Model
from innerspace.network.site import Site

WIDTH = 6


class Reader(nn.Module):
    """Two readouts of the last token: one linear, and an angle in degrees that turns with another direction."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        last = self.embed(x)[:, -1]
        turn = (200 * last[:, 2] + 180) % 360 - 180
        return {"size": 2 * last[:, 0] + last[:, 1], "turn": turn, "slow": last[:, 3]}


class ReaderFamily(Family):
    def sites(self, module: nn.Module) -> list[Site]:
        return [Site("hidden", "embed", WIDTH)]

    def forward(self, module: nn.Module, batch: Any) -> dict[str, Tensor]:
        return module(batch)


def measured(output: Any, batch: Tensor) -> dict[str, Tensor]:
    return {name: output[name] for name in ("size", "turn")}


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model(Reader(), ReaderFamily())


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 3, 4, generator=generator) for _ in range(4)]


WANTED = (Wanted("size", 3.0), Wanted("turn", 100.0))


def optimized(model: Model, batches: list[Tensor], **extra: Any) -> Tensor:
    begin = 0.1 * torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(2))
    settings = SteeringFit(steps=600, rate=0.3)
    return optimize_vectors(model, batches, "hidden", measured, WANTED, begin, settings, **extra)


def test_a_linear_readout_changes_by_its_gain_and_the_other_one_does_not(model: Model, batches: list[Tensor]) -> None:
    found = optimized(model, batches, periods={"turn": 360.0})
    effect = torch.stack([2 * found[:, 0] + found[:, 1], 200 * found[:, 2]], 1)
    torch.testing.assert_close(effect, torch.tensor([[3.0, 0.0], [0.0, 100.0]]), atol=0.6, rtol=0)
    # no readout looks at the other coordinates, so they stay as they were
    begin = 0.1 * torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(found[:, 3:], begin[:, 3:])


def test_without_its_period_a_turn_is_taken_for_a_jump(model: Model, batches: list[Tensor]) -> None:
    far = (200 * optimized(model, batches)[1, 2] - 100).abs()
    assert far > 2 * (200 * optimized(model, batches, periods={"turn": 360.0})[1, 2] - 100).abs()


def test_the_network_and_the_random_state_stay_as_they_were(model: Model, batches: list[Tensor]) -> None:
    before, state = model.fingerprint(), torch.get_rng_state()
    first, second = (optimized(model, batches) for _ in range(2))
    assert torch.equal(first, second)
    assert model.fingerprint() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_relative_gains_and_rows_that_are_not_asked(model: Model, batches: list[Tensor]) -> None:
    """A gain relative to a constant readout is a difference; rows below the least value do not count."""

    # the readout does not vary through the hidden state here, so only what steering adds tells
    def measure(output: Any, batch: Tensor) -> dict[str, Tensor]:
        sign = torch.where(torch.arange(len(batch)) % 2 == 0, 4.0, -100.0)
        clean = model.run(batch).output["size"].detach()
        return {"size": sign + output["size"] - clean}

    begin = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(3))
    wanted = (Wanted("size", 0.5, relative=True, least=0.0),)
    found = optimize_vectors(model, batches, "hidden", measure, wanted, begin, SteeringFit(steps=400, rate=0.5))
    assert abs(float(2 * found[0, 0] + found[0, 1]) - 2.0) < 0.1


def test_bad_input_is_refused_with_what_is_possible(model: Model, batches: list[Tensor]) -> None:
    begin = torch.ones(1, WIDTH)
    with pytest.raises(ValueError, match="no readout 'speed'; there are size, turn"):
        optimize_vectors(model, batches, "hidden", measured, (Wanted("speed", 1.0),), begin)
    with pytest.raises(ValueError, match=r"1 directions of width 6 are wanted, to begin with has \[1, 5\]"):
        optimize_vectors(model, batches, "hidden", measured, WANTED[:1], begin[:, 1:])
    with pytest.raises(ValueError, match="none was given"):
        optimize_vectors(model, [], "hidden", measured, WANTED[:1], begin)
    with pytest.raises(ValueError, match="zero vector"):
        optimize_vectors(model, batches, "hidden", measured, WANTED[:1], 0 * begin)
    with pytest.raises(ValueError, match="the same for all 128 rows"):
        optimize_vectors(model, batches, "hidden", lambda o, b: {"size": 0 * o["size"]}, WANTED[:1], begin)
    with pytest.raises(ValueError, match="by some gain, not by 0"):
        Wanted("size", 0.0)
    with pytest.raises(ValueError, match="should be positive"):
        SteeringFit(steps=0)
