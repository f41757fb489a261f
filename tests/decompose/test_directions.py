"""Directions: the laws of a decomposition, lengths kept apart, algebra on steps, files that come back."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.checkpoint import save_state
from innerspace.decompose.directions import Directions, Origin

SPEED = Origin("speed", "high", "low", "mean_difference", "agent.2", "last", "train", "sha256:ab")
AGENT = Origin("agent", "vehicle", "pedestrian", "lda", "agent.2", "last", "train", "sha256:ab")


@pytest.fixture
def two() -> Directions:
    return Directions(torch.randn(2, 8).double(), torch.tensor([3.0, 0.5]).double(), [SPEED, AGENT])


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def rows(*shape: int) -> Float[Tensor, "..."]:
    return torch.randn(*shape).double()


def test_is_a_decomposition(two: Directions) -> None:
    z, dz, a = rows(5, 3, 2), rows(5, 3, 2), 1.7
    close(two.decode(z + dz) - two.decode(z), two.lift(dz))
    close(two.lift(a * z + dz), a * two.lift(z) + two.lift(dz))
    close(two.lift(dz), dz @ two.directions)
    assert [i for part in two.parts for i in range(2)[part]] == [0, 1]
    close(two.encode(two.decode(z)).z, z)
    assert two.encode(rows(5, 3, 8)).cost.shape == (5, 3)


def test_encodes_by_least_squares_in_gap_units(two: Directions) -> None:
    x = rows(20, 8)
    expected = torch.linalg.lstsq(two.directions.T, x.T).solution.T
    close(two.encode(x).z, expected)
    close(two.directions.norm(dim=1), two.gap)
    one = two.select("speed")
    close(one.encode(x).z[:, 0], x @ one.unit[0] / 3)


def test_keeps_three_lengths_apart(two: Directions) -> None:
    raw = rows(1, 8)
    one = Directions(raw, torch.tensor([2.5]).double(), [SPEED])
    close(one.raw, raw)
    close(one.unit.norm(dim=1), torch.ones(1).double())
    close(one.to_unit_temperature(1.0), torch.tensor([2.5]).double())
    tau = rows(4, 2)
    close(two.from_unit_temperature(two.to_unit_temperature(tau)), tau)
    close(two.to_unit_temperature(tau) @ two.unit, tau @ two.directions)


def test_sign_and_gap_follow_the_class_means() -> None:
    difference = rows(2, 8)
    raw = rows(2, 8)
    a = Directions.oriented(raw, difference, [SPEED, AGENT])
    b = Directions.oriented(-raw, difference, [SPEED, AGENT])
    close(a.directions, b.directions)
    close(a.gap, (a.unit * difference).sum(1))
    assert (a.gap > 0).all()


def test_algebra_acts_on_the_steps(two: Directions) -> None:
    other = two.random_like(torch.Generator().manual_seed(1))
    close((two + other).directions, two.directions + other.directions)
    close((two * 0.5).directions, 0.5 * two.directions)
    close((-2.0 * two).directions, -2 * two.directions)
    close(two.negated().directions, -two.directions)
    assert two.negated().origins[0].positive == "low"
    assert (two.gap > 0).all()
    total = two.select("speed") + two.select("agent")
    assert (total.origins[0].feature, total.origins[0].site) == ("speed + agent", "agent.2")
    assert total.origins[0].method == "sum(mean_difference, lda)"


def test_orthogonalizes_and_projects_out(two: Directions) -> None:
    speed, agent = two.select("speed"), two.select("agent")
    free = speed.orthogonalized(agent)
    close(free.angles(agent), torch.full((1, 1), 90.0).double())
    # a mean difference keeps its exact gap along what is left
    close(free.gap, (speed.directions * free.unit).sum(1))
    x = rows(6, 8)
    left = two.projected_out(x)
    close(two.encode(left).z, torch.zeros(6, 2).double())
    close(two.projected_out(left), left)


def test_angles_in_degrees() -> None:
    raw = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]).double()
    fan = Directions(raw, torch.ones(3).double(), [SPEED, AGENT, SPEED])
    close(fan.angles(), torch.tensor([[0.0, 45, 180], [45, 0, 135], [180, 135, 0]]).double())
    assert fan.angles(fan.select("agent")).shape == (3, 1)
    near = Directions(torch.tensor([[1.0, 1e-9]]).double(), torch.ones(1).double(), [SPEED])
    assert fan.angles(near)[0, 0].item() == pytest.approx(torch.rad2deg(torch.tensor(1e-9)).item(), rel=1e-6)


def test_random_controls_take_equal_steps(two: Directions) -> None:
    control = two.random_like(torch.Generator().manual_seed(3))
    again = two.random_like(torch.Generator().manual_seed(3))
    close(control.directions.norm(dim=1), two.directions.norm(dim=1))
    close(control.raw.norm(dim=1), two.norm)
    assert torch.equal(control.unit, again.unit)
    assert control.angles(two).diagonal().min() > 10
    assert {origin.method for origin in control.origins} == {"random"}


def test_selects_and_concatenates(two: Directions) -> None:
    back = Directions.concatenate([two.select("speed"), two.select("agent")])
    close(back.raw, two.raw)
    assert back.origins == two.origins
    assert two.select("agent", "speed").origins == (AGENT, SPEED)
    with pytest.raises(ValueError, match="no direction of 'heading'; present are speed, agent"):
        two.select("heading")


def test_comes_back_from_a_file(two: Directions, tmp_path: Path) -> None:
    path = tmp_path / "vectors.safetensors"
    two.save(path)
    back = Directions.load(path, expect_width=8)
    close(back.directions, two.directions)
    close(back.norm, two.norm)
    assert back.origins == two.origins
    twin = json.loads((tmp_path / "vectors.json").read_text())
    assert twin["width"] == 8
    assert twin["directions"][0]["model"] == "sha256:ab"
    assert twin["directions"][1]["gap"] == 0.5
    with pytest.raises(ValueError, match="directions of width 8, the hidden state has 128"):
        Directions.load(path, expect_width=128)


def test_refuses_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_state(path, {"raw": torch.ones(1, 8)})
    with pytest.raises(ValueError, match="not 'innerspace directions 1'"):
        Directions.load(path)
    with pytest.raises(ValueError, match="no snapshot at"):
        Directions.load(tmp_path / "missing.safetensors")


def test_refuses_what_has_no_direction(two: Directions) -> None:
    one = torch.ones(1).double()
    with pytest.raises(ValueError, match=r"'speed' \(low → high\) has the norm 0.0"):
        Directions(torch.zeros(1, 8).double(), one, [SPEED])
    with pytest.raises(ValueError, match=r"has the gap 0\.0"):
        Directions(rows(1, 8), 0 * one, [SPEED])
    with pytest.raises(ValueError, match="has the norm nan"):
        Directions(rows(1, 8) * torch.nan, one, [SPEED])
    with pytest.raises(ValueError, match=r"has the norm 0\.0"):
        two * 0
    with pytest.raises(ValueError, match=r"has the norm 0\.0"):
        two + two.negated()
    with pytest.raises(ValueError, match="lies in the span of speed, agent; nothing is left"):
        two.orthogonalized(two)
    flat = torch.zeros(1, 8).double()
    flat[0, 0] = 1
    with pytest.raises(ValueError, match="do not differ along the direction"):
        Directions.oriented(flat, flat.roll(1), [dataclasses.replace(SPEED)])
    with pytest.raises(ValueError, match=r"got \[8, 4\]"):
        Directions.concatenate([two, Directions(rows(1, 4), one, [SPEED])])
    with pytest.raises(ValueError, match="one vector, gap and origin per direction"):
        Directions(rows(1, 4), one, [SPEED, AGENT])
