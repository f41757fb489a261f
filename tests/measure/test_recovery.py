"""Scores of recovery against closed forms: angles that are set, energies that are counted, known information."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from innerspace.decompose.subspaces import Subspaces, random_rotation
from innerspace.measure.recovery import (
    bases,
    information,
    interchange,
    match,
    principal_angles,
    recovery,
    shared_energy,
)
from innerspace.network.model import Family, Model
from innerspace.network.site import Site


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_principal_angles_are_the_angles_that_were_set_small_ones_too() -> None:
    turn = random_rotation(7, generator()).double()
    turn = torch.linalg.qr(turn).Q
    angles = torch.tensor([1e-9, 0.3, 1.2, math.pi / 2], dtype=torch.float64)
    a = torch.eye(7, dtype=torch.float64)[:3]
    b = torch.eye(7, dtype=torch.float64)[[0, 1, 2, 6]].clone()
    for i in range(3):
        b[i] = angles[i].cos() * torch.eye(7)[i] + angles[i].sin() * torch.eye(7)[3 + i]
    within = torch.linalg.qr(torch.randn(3, 3, generator=generator(), dtype=torch.float64)).Q
    for one, other in ((a, b), (b, a), (within @ a, b)):
        torch.testing.assert_close(principal_angles(one @ turn, other @ turn), angles[:3], rtol=1e-5, atol=1e-12)


def test_shared_energy_is_the_sum_of_squared_cosines_and_all_of_a_part_over_a_whole_partition() -> None:
    a = Subspaces.random(9, [4, 3, 2], generator(1))
    b = Subspaces.random(9, [5, 4], generator(2))
    energy = shared_energy(bases(a), bases(b))
    cosines = principal_angles(a.basis(1).detach(), b.basis(0).detach()).cos()
    assert float(energy[1, 0]) == pytest.approx(float(cosines.square().sum()))
    torch.testing.assert_close(energy.sum(1), torch.tensor([4.0, 3.0, 2.0]).double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(energy.sum(0), torch.tensor([5.0, 4.0]).double(), rtol=1e-5, atol=0)


def test_the_truth_itself_in_any_order_and_turned_within_parts_is_recovered() -> None:
    rotation = random_rotation(8, generator())
    truth = [rotation[:2], rotation[2:5], rotation[5:]]
    inside = random_rotation(3, generator(1))
    found = recovery(Subspaces(torch.cat([inside @ truth[2], truth[1], truth[0]]), [3, 3, 2]), truth)
    assert found.partners == (2, 1, 0)
    assert found.purities == pytest.approx((1, 1, 1), abs=1e-5)
    assert (found.purity, found.least_purity, found.overlap) == pytest.approx((1, 1, 1), abs=1e-5)
    assert max(max(angles) for angles in found.angles) < 0.1


def test_a_known_angle_costs_what_it_should() -> None:
    # part 0 holds coordinate 0 and a direction between coordinates 1 and 2
    c, s = math.cos(0.4), math.sin(0.4)
    rotation = torch.tensor([[1, 0, 0, 0], [0, c, s, 0], [0, -s, c, 0], [0, 0, 0, 1.0]])
    found = recovery(Subspaces(rotation, [2, 2]), [torch.eye(4)[:2], torch.eye(4)[2:]])
    share = (1 + c**2) / 2
    assert found.purities == pytest.approx((share, share), abs=1e-6)
    assert found.overlaps == pytest.approx((share, share), abs=1e-6)
    assert found.angles[0] == pytest.approx((0, math.degrees(0.4)), abs=1e-4)


def test_parts_that_are_too_small_are_pure_but_no_match_and_too_large_ones_neither() -> None:
    truth = [torch.eye(6)[:4], torch.eye(6)[4:]]
    small = recovery(Subspaces.identity(6, [2, 2, 2]), truth)
    assert small.purity == 1
    assert small.overlaps == (0.5, 1.0)
    assert small.overlap == pytest.approx((4 * 0.5 + 2 * 1) / 6)
    whole = recovery(Subspaces.identity(6, [6]), truth)
    assert whole.purity == pytest.approx(4 / 6)
    assert (whole.partners, whole.overlaps) == ((0, -1), (pytest.approx(4 / 6), 0.0))
    assert len(whole.angles) == 1


def test_a_matching_is_the_best_one_not_the_greedy_one() -> None:
    score = torch.tensor([[0.9, 0.8], [0.7, 0.1]])
    assert match(score) == [1, 0]
    assert match(score[:1]) == [0, -1]


def test_information_is_all_of_a_variable_in_its_part_and_none_in_others() -> None:
    draw = generator()
    values = torch.stack([torch.randint(4, (1500,), generator=draw), torch.randint(3, (1500,), generator=draw)], 1)
    noise = 0.02 * torch.randn(1500, 5, generator=draw)
    centers = torch.randn(4, 2, generator=draw), torch.randn(3, 2, generator=draw)
    x = torch.cat([centers[0][values[:, 0]], centers[1][values[:, 1]], torch.zeros(1500, 1)], 1) + noise
    rotation = random_rotation(5, draw)
    found = information(x @ rotation, Subspaces(rotation, [2, 2, 1]), values)
    assert found.entropy == pytest.approx((math.log(4), math.log(3)), abs=0.01)
    shares = torch.tensor([[one.mean for one in row] for row in found.share])
    torch.testing.assert_close(shares, torch.tensor([[1.0, 0], [0, 1], [0, 0]]), atol=0.04, rtol=0)
    assert found.within == pytest.approx(1, abs=0.02)
    assert abs(found.across) < 0.03
    assert all((one.low or 0) <= one.mean <= (one.high or 0) for row in found.share for one in row)


def test_information_of_overlapping_classes_is_that_of_the_integral() -> None:
    # one bit behind Gaussian noise: I = ln 2 − E ln(1 + exp(−2 (1 + σ n) / σ²))
    draw, sigma = generator(3), 0.8
    values = torch.randint(2, (3000, 1), generator=draw)
    x = (2.0 * values - 1) + sigma * torch.randn(3000, 1, generator=draw)
    n = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    weight = (-n.square() / 2).exp() / math.sqrt(2 * math.pi) * (n[1] - n[0])
    truth = math.log(2) - float((weight * torch.log1p((-2 * (1 + sigma * n) / sigma**2).exp())).sum())
    found = information(torch.cat([x, torch.zeros(3000, 1)], 1), Subspaces.identity(2, [1, 1]), values)
    assert found.share[0][0].mean * found.entropy[0] == pytest.approx(truth, abs=0.03)
    # a part in which all rows coincide tells nothing
    assert found.share[1][0].mean == pytest.approx(0, abs=0.01)


class _Sum(nn.Module):
    """Two variables of three values each, in two dimensions each; the second is read only where the first is not 2."""

    def __init__(self, rotation: Tensor) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 4, bias=False)
        self.hidden.weight = nn.Parameter(rotation.T)
        self.back = rotation

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(x) @ self.back.T


class _SumFamily(Family):
    def sites(self, module: nn.Module) -> list[Site]:
        return [Site("hidden", "hidden", 4, axes="batch d")]

    def forward(self, module: nn.Module, batch: Tensor) -> Mapping[str, Tensor]:
        return {"y": module(batch)}


_CORNERS = torch.tensor([[1.0, 0], [0, 1], [-1, -1]])


def decode(output: Mapping[str, Tensor]) -> Tensor:
    y = output["y"].view(-1, 2, 1, 2)
    return (y - _CORNERS).square().sum(-1).argmin(-1)


def batch(count: int, seed: int) -> Tensor:
    values = torch.randint(3, (count, 2), generator=generator(seed))
    return _CORNERS[values].flatten(1)


def test_interchange_succeeds_with_the_true_parts_and_fails_with_others() -> None:
    rotation = random_rotation(4, generator(1))
    model = Model(_Sum(rotation), _SumFamily())
    pairs = [(batch(200, 2 * i), batch(200, 2 * i + 1)) for i in range(2)]
    # the hidden state is x @ rotation, so row i of it is what entry i of x writes
    right = Subspaces(rotation, [2, 2])
    first, second = interchange(model, "hidden", right, [[0], [1]], pairs, decode)
    differing = sum(int((decode({"y": a}) != decode({"y": b}))[:, 0].sum()) for a, b in pairs)
    assert (first.variable, first.parts, first.count) == (0, (0,), differing)
    for one in (first, second):
        assert (one.accuracy.mean, one.moved.mean, one.kept.mean, one.untouched.mean) == (1, 1, 1, 0)
    swapped, _ = interchange(model, "hidden", right, [[1], [0]], pairs, decode)
    assert (swapped.accuracy.mean, swapped.moved.mean, swapped.untouched.mean) == (0, 0, 1)
    assert swapped.kept.mean == pytest.approx(1 / 3, abs=0.1)
    whole, _ = interchange(model, "hidden", right, [[0, 1], [0, 1]], pairs, decode)
    assert whole.moved.mean == 1
    assert whole.accuracy.mean == whole.kept.mean < 0.5
    mixed = Subspaces.random(4, [2, 2], generator(5))
    wrong, _ = interchange(model, "hidden", mixed, [[0], [1]], pairs, decode)
    assert wrong.accuracy.mean < 0.6
    assert wrong.accuracy.low is not None
    assert wrong.accuracy.low < wrong.accuracy.mean


def test_what_cannot_be_judged_is_refused() -> None:
    found = Subspaces.identity(4, [2, 2])
    with pytest.raises(ValueError, match="no true subspace"):
        recovery(found, [])
    with pytest.raises(ValueError, match="rows should have width 4"):
        recovery(found, [torch.eye(5)[:2]])
    with pytest.raises(ValueError, match="not orthonormal, by up to 3"):
        recovery(found, [2 * torch.eye(4)[:2]])
    x = torch.randn(20, 4, generator=generator())
    with pytest.raises(ValueError, match="variable 0 has 1 values among 20 rows"):
        information(x, found, torch.zeros(20, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="not k = 0"):
        information(x, found, torch.zeros(20, 1, dtype=torch.int64), k=0)
    model = Model(_Sum(torch.eye(4)), _SumFamily())
    same = batch(5, 0)
    with pytest.raises(ValueError, match="variable 0 has the same value in both inputs"):
        interchange(model, "hidden", found, [[0], [1]], [(same, same)], decode)
    with pytest.raises(ValueError, match="2 variables are decoded, parts are given for 1"):
        interchange(model, "hidden", found, [[0]], [(same, batch(5, 1))], decode)
