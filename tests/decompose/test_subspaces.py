"""The laws of subspaces: nothing is lost, gradients are those of the exponential, parts move as they should."""

import json
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from innerspace.decompose.base import Home
from innerspace.decompose.subspaces import Chart, Subspaces, even_sizes, nearest_rotation, random_rotation

SIZES = (5, 4, 4, 1)


def _subspaces(chart: Chart = "moving", seed: int = 0) -> Subspaces:
    what = Subspaces.random(14, SIZES, torch.Generator().manual_seed(seed), chart=chart).double()
    what.settle()
    return what


def _normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _span(basis: Tensor) -> Tensor:
    return basis.T @ basis


@pytest.mark.parametrize("chart", ["moving", "exponential"])
def test_nothing_is_lost_and_a_direction_has_no_bias(chart: Chart) -> None:
    what, x, dz = _subspaces(chart), _normal(3, 7, 14), _normal(3, 7, 14, seed=2)
    if chart == "exponential":
        with torch.no_grad():
            what.turn.copy_(_normal(14, 14, seed=3))
    code = what.encode(x)
    torch.testing.assert_close(what.decode(code.z), x, atol=1e-13, rtol=0)
    torch.testing.assert_close(code.z.norm(dim=-1), x.norm(dim=-1), atol=1e-13, rtol=0)
    torch.testing.assert_close(what.decode(code.z + dz) - x, what.lift(dz), atol=1e-13, rtol=0)
    torch.testing.assert_close(what.lift(dz), dz @ what.directions)
    assert code.cost.eq(0).all()
    together = torch.zeros_like(x)
    for part, place in enumerate(what.parts):
        torch.testing.assert_close(x @ what.basis(part).T, code.z[..., place])
        together += x @ _span(what.basis(part))
    torch.testing.assert_close(together, x, atol=1e-13, rtol=0)
    assert [place.stop - place.start for place in what.parts] == list(what.sizes) == list(SIZES)


def test_both_charts_have_the_gradient_of_the_exponential() -> None:
    weight = _normal(14, 14)
    turn = torch.zeros(14, 14, dtype=torch.float64, requires_grad=True)
    base = _subspaces().base
    rotation = torch.linalg.matrix_exp(turn.tril(-1) - turn.tril(-1).T) @ base
    (weight * rotation.sin()).sum().backward()
    for chart in ("moving", "exponential"):
        what = _subspaces(chart)
        (weight * what.rotation.sin()).sum().backward()
        torch.testing.assert_close(what.turn.grad, turn.grad, atol=1e-12, rtol=1e-12)
    # away from zero the exponential chart has it still, here by differences
    what, step, away = _subspaces("exponential"), 1e-6, _normal(14, 14, seed=3).tril(-1)
    with torch.no_grad():
        what.turn.copy_(_normal(14, 14, seed=4))
    (weight * what.rotation).sum().backward()
    with torch.no_grad():
        ends = list[Tensor]()
        for sign in (1, -1):
            what.turn.add_(away, alpha=sign * step)
            ends.append((weight * what.rotation).sum())
            what.turn.add_(away, alpha=-sign * step)
    found = (cast(Tensor, what.turn.grad) * away).sum()
    torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * step), atol=1e-6, rtol=1e-7)


def test_a_step_follows_the_exponential_and_turns_no_part_within_itself() -> None:
    what, turn = _subspaces(), 1e-3 * _normal(14, 14)
    exact = torch.linalg.matrix_exp(turn.tril(-1) - turn.tril(-1).T) @ what.base
    with torch.no_grad():
        what.turn.copy_(turn)
    what.retract()
    assert what.turn.eq(0).all()
    # the two agree up to A³ / 12
    torch.testing.assert_close(what.rotation, exact, atol=1e-7, rtol=0)
    assert (what.base - exact).abs().max() < 1e-4 * (what.base - _subspaces().base).abs().max()
    what.turn.grad = _normal(14, 14)
    what.project_gradient()
    same = what.member[:, None] == what.member
    assert what.turn.grad[same].eq(0).all()
    assert torch.equal(what.turn.grad[~same], _normal(14, 14)[~same])
    held = _subspaces("exponential")
    with torch.no_grad():
        held.turn.copy_(turn)
    held.retract()
    assert torch.equal(held.turn, turn)
    held.settle()
    assert held.turn.eq(0).all()
    torch.testing.assert_close(held.base, exact, atol=1e-13, rtol=0)


def test_a_long_run_stays_orthogonal() -> None:
    what, generator = Subspaces.identity(32, even_sizes(32, 8)), torch.Generator().manual_seed(0)
    for step in range(2000):
        with torch.no_grad():
            what.turn.normal_(0, 0.1 if step % 50 == 0 else 0.01, generator=generator)
        what.retract()
    double = what.rotation.detach().double()
    assert (double @ double.T - torch.eye(32).double()).abs().max() <= 1e-6
    assert double.diagonal().abs().max() < 0.9


@pytest.mark.parametrize("chart", ["moving", "exponential"])
def test_parts_are_merged_and_split_without_moving(chart: Chart) -> None:
    what = _subspaces(chart)
    with torch.no_grad():
        what.turn.copy_(_normal(14, 14) * (chart == "exponential"))
    rotation, bases = what.rotation.detach(), [what.basis(part).detach() for part in range(4)]
    order = what.merge([1, 3])
    assert what.sizes == (5, 5, 4)
    torch.testing.assert_close(what.rotation, rotation[order], atol=1e-13, rtol=0)
    spans = [_span(what.basis(part)) for part in range(3)]
    for found, expected in zip(
        spans, (_span(bases[1]) + _span(bases[3]), _span(bases[0]), _span(bases[2])), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-13, rtol=0)
    what.split(0, [4, 1])
    assert what.sizes == (5, 4, 4, 1)
    for part, expected in enumerate((bases[0], bases[2], bases[1], bases[3])):
        torch.testing.assert_close(_span(what.basis(part)), _span(expected), atol=1e-13, rtol=0)
    place = what.arrange([[13, 0], [*range(1, 13)]])
    assert what.sizes == (12, 2)
    assert place.tolist() == [*range(1, 13), 13, 0]


def test_parts_turn_together() -> None:
    what, turned = _subspaces(), torch.linalg.qr(_normal(5, 5)).Q
    before = what.rotation.detach().clone()
    what.turn_together([1, 3], turned)
    rows = [5, 6, 7, 8, 13]
    torch.testing.assert_close(what.rotation[rows], turned @ before[rows], atol=1e-13, rtol=0)
    others = [i for i in range(14) if i not in rows]
    torch.testing.assert_close(what.rotation[others], before[others], atol=1e-13, rtol=0)


def test_a_file_holds_everything(tmp_path: Path) -> None:
    home = Home("abc", "resid.2")
    what = Subspaces(random_rotation(14, torch.Generator().manual_seed(0)), SIZES, home=home, chart="exponential")
    with torch.no_grad():
        what.turn.normal_()
    what.save(tmp_path / "parts.safetensors")
    found = Subspaces.load(tmp_path / "parts.safetensors")
    torch.testing.assert_close(found.rotation, what.rotation, atol=1e-6, rtol=0)
    assert (found.sizes, found.home, found.chart, found.training) == (SIZES, home, "exponential", False)
    told = json.loads((tmp_path / "parts.json").read_text())
    assert told["sizes"] == list(SIZES)
    assert told["home"]["site"] == "resid.2"
    found.save(tmp_path / "again.safetensors")
    again = Subspaces.load(tmp_path / "again.safetensors")
    torch.testing.assert_close(again.rotation, found.rotation, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="no snapshot at"):
        Subspaces.load(tmp_path / "nothing.safetensors")


def test_random_rotations_are_even() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([random_rotation(3, generator) for _ in range(2000)])
    # the trace of a Haar orthogonal matrix has mean zero and variance one
    trace = drawn.diagonal(dim1=1, dim2=2).sum(1)
    assert trace.mean().abs() < 0.1
    assert (trace.var() - 1).abs() < 0.1
    matrix = _normal(6, 6)
    polar = nearest_rotation(matrix)
    symmetric = polar.T @ matrix
    torch.testing.assert_close(symmetric, symmetric.T)
    assert torch.linalg.eigvalsh(symmetric).min() > 0


def test_what_makes_no_partition_is_refused() -> None:
    what = _subspaces()
    with pytest.raises(ValueError, match=r"add up to 14; they are \[7, 6\]"):
        Subspaces.identity(14, [7, 6])
    with pytest.raises(ValueError, match=r"add up to 14; they are \[14, 0\]"):
        Subspaces.identity(14, [14, 0])
    with pytest.raises(ValueError, match="not orthogonal: R Rᵀ differs from 1 by up to 3"):
        Subspaces(2 * torch.eye(4), [4])
    with pytest.raises(ValueError, match="not orthogonal: R Rᵀ differs from 1 by up to nan"):
        Subspaces(torch.full((4, 4), torch.nan), [4])
    with pytest.raises(ValueError, match="have 1 … 8 dimensions, not 9"):
        even_sizes(8, 9)
    with pytest.raises(ValueError, match="width 5, the subspaces divide width 14"):
        what.encode(torch.zeros(2, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="there is no part 4; the 4 parts are 0 … 3"):
        what.basis(4)
    with pytest.raises(ValueError, match="no part -1"):
        what.split(-1, [1])
    with pytest.raises(ValueError, match=r"add up to 5; they are \[2, 2\]"):
        what.split(0, [2, 2])
    for groups in ([[0, 1], [1, 2]], [[0, 4]]):
        with pytest.raises(ValueError, match="should name parts 0 … 3, each once"):
            what.merge(*groups)
    with pytest.raises(ValueError, match="every coordinate 0 … 13 once"):
        what.arrange([[0, 1], [2]])
    with pytest.raises(ValueError, match=r"reads width 14, the hidden states at 'resid\.0' have 12"):
        what.check("abc", "resid.0", 12)
    what.home = Home("abc", "resid.1")
    with pytest.raises(ValueError, match=r"fitted at 'resid\.1' of the network abc"):
        what.check("abc", "resid.0", 14)
    assert what.sizes == SIZES
    assert even_sizes(10, 4) == [4, 4, 2]
