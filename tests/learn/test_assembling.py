"""Partitions assembled from pieces: descent against autograd, counting against scikit-learn, planted parts found."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import Tensor
from torch.nn.functional import one_hot

from innerspace.decompose.base import Home
from innerspace.decompose.subspaces import Subspaces, random_rotation
from innerspace.learn.assembling import Assembling, assemble, assemble_into, recut
from innerspace.learn.counting import CountedPoints, nearest_points
from innerspace.learn.dependence import dependence
from innerspace.learn.descent import Descent, company_distance, descend
from innerspace.learn.merge_rules import Calibrated, MergeRule
from innerspace.learn.neighbors import Neighborhood
from innerspace.learn.partitioning import find_subspaces
from learn.exclusive import exclusive_rows, inside_groups, purity

_LINES = Assembling(
    starts=2,
    rule=Calibrated(draws=1, reference=200, shuffles=2),
    search=Descent(company=4, rows=256, steps=250, rate=0.1),
    queries=200,
    keys=1000,
)
_POINTS = Assembling(
    unit=2,
    starts=6,
    rule=CountedPoints(),
    search=Descent(company=6, rows=60, steps=150),
    polish=Descent(company=6, rows=60, steps=80, rate=0.03),
    sweeps=2,
    queries=1000,
    keys=1,
)


def _points(values: tuple[int, ...], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Independent variables of so many values: points in one dimension less each; and the values."""
    draw, states = torch.Generator().manual_seed(seed), list[Tensor]()
    chosen = torch.stack([torch.randint(many, (count,), generator=draw) for many in values], 1)
    for column, many in zip(chosen.T, values, strict=True):
        corners = torch.eye(many) - 1 / many
        states.append((corners @ torch.linalg.svd(corners).Vh[: many - 1].T)[column])
    return torch.cat(states, 1), chosen


def test_one_step_follows_the_gradient() -> None:
    """The first step of Adam goes against the sign of what autograd says, between parts alone."""
    x = torch.randn(24, 5, generator=torch.Generator().manual_seed(0)).double()
    sizes, begin = [2, 2, 1], random_rotation(5, torch.Generator().manual_seed(1)).double()
    how = Descent(company=24, rows=24, steps=1, rate=1e-3)
    after = descend(x, sizes, begin[None], how, 0)[0]
    turn = torch.zeros(5, 5, dtype=torch.float64, requires_grad=True)
    z = x @ (torch.linalg.matrix_exp(turn - turn.T) @ begin).T
    total = torch.zeros((), dtype=torch.float64)
    for part in z.split(sizes, 1):
        distance = (part[:, None] - part).square().sum(-1) + torch.diag(torch.full((24,), torch.inf).double())
        total = total + part.shape[1] / 5 * distance.min(1).values.sqrt().mean()
    total.backward()
    assert turn.grad is not None
    member = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    between = member[:, None] != member
    moved = after @ begin.T
    assert (moved - moved.T)[~between].abs().max() < 1e-7
    slope = (turn.grad - turn.grad.T)[between]
    step = (moved - moved.T)[between]
    assert slope.abs().min() > 1e-3
    assert torch.equal(step.sign(), -slope.sign())


def test_starts_descend_alike_and_stay_orthogonal() -> None:
    """A start in company of others ends where it would end alone, lower than it began."""
    x, sizes = exclusive_rows([6, 6], [2, 2], 800, torch.Generator().manual_seed(0)), [2, 2]
    begins = torch.stack([random_rotation(4, torch.Generator().manual_seed(seed)) for seed in (3, 4)])
    how = Descent(company=4, rows=128, steps=60, rate=0.05)
    together = descend(x, sizes, begins, how, 5)
    torch.testing.assert_close(descend(x, sizes, begins[1:], how, 5)[0], together[1], atol=1e-4, rtol=0)
    assert (together @ together.mT - torch.eye(4)).abs().max() < 1e-5
    for before, after in zip(begins, together, strict=True):
        assert company_distance(x, after, sizes, how) < company_distance(x, before, sizes, how)


def test_counting_against_scikit_learn() -> None:
    """Information of points, less the bias of counting; and the same if the parts are a little off."""
    x, values = _points((4, 3), 600, 0)
    values[:, 1] = torch.where(torch.arange(600) % 2 == 0, values[:, 0] % 3, values[:, 1])
    x = torch.cat([x[:, :3], _points((4, 3), 600, 0)[0][:, 3:]], 1)
    x[:, 3:] = (one_hot(values[:, 1], 3).float() - 1 / 3) @ torch.linalg.svd(torch.eye(3) - 1 / 3).Vh[:2].T
    rule, what = CountedPoints(), Subspaces.identity(5, [3, 2])
    near = Neighborhood(x[:10], x)
    expected = mutual_info_score(*values.T.tolist()) - 3 * 2 / 1200
    found = rule.measure(what, near, 0)
    assert float(found.information[0, 1]) == pytest.approx(expected, abs=1e-9)
    assert float(rule.strength(found, [3, 2])[0, 1]) == pytest.approx(
        expected / min(mutual_info_score(column, column) for column in values.T.tolist())
    )
    noise = 0.03 * torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    off = Subspaces(torch.linalg.matrix_exp(noise - noise.T), [3, 2])
    assert torch.equal(rule.measure(off, near, 0).information[0, 1], found.information[0, 1])
    # an estimator without a scale sees in the small clouds all that there is to know
    whole = Neighborhood(x[:200], x, torch.arange(200))
    assert float(dependence(off, whole).information[0, 1]) > 3 * expected
    assert MergeRule.from_json(rule.to_json()) == rule


def test_points_are_as_many_as_there_are() -> None:
    x, values = _points((5,), 100, 0)
    points = nearest_points(x, 0.4, 60)
    assert len(set(zip(points.tolist(), values[:, 0].tolist(), strict=True))) == 5
    assert len(nearest_points(x, 0.4, 3).unique()) == 3


@pytest.mark.parametrize("dims", [(3, 3), (3, 2, 2)])
def test_groups_are_found_from_lines(dims: tuple[int, ...]) -> None:
    """Sizes and subspaces of exclusive features, hidden by a rotation, by the library's one entrance."""
    generator = torch.Generator().manual_seed(1)
    rows = exclusive_rows([4 * width for width in dims], dims, 3000, generator)
    hidden = random_rotation(sum(dims), generator)
    found = find_subspaces(rows @ hidden, _LINES, home=Home("abc", "resid.0"))
    assert found.what.sizes == dims
    assert purity(Subspaces(found.what.base @ hidden.T, found.what.sizes), dims) > 0.99
    assert found.what.home == Home("abc", "resid.0")
    assert found.history == []


def test_variables_are_found_from_pieces_that_must_straddle_them() -> None:
    """Pieces of two dimensions cannot tile a space of 3 and 3; dimensions move, and sizes are found."""
    x, _ = _points((4, 4), 1500, 0)
    hidden = random_rotation(6, torch.Generator().manual_seed(2))
    what = assemble(x @ hidden, _POINTS)
    assert what.sizes == (3, 3)
    assert purity(Subspaces(what.base @ hidden.T, what.sizes), [3, 3]) > 0.99
    given = assemble_into(x @ hidden, [3, 3], _POINTS)
    assert given.sizes == (3, 3)


def test_a_pair_is_cut_anew() -> None:
    """Parts that straddle two variables come to hold one each; where nothing can be gained nothing moves."""
    x, _ = _points((3, 3), 800, 0)
    how = replace(_POINTS, rule=CountedPoints(0.2), shift=0)
    wrong = Subspaces(torch.eye(4)[[0, 2, 1, 3]], [2, 2])
    right = recut(x, wrong, how)
    assert purity(wrong, [2, 2]) == pytest.approx(0.5)
    assert purity(right, [2, 2]) > 0.99
    again = recut(x, right, replace(how, least=-1.0))
    torch.testing.assert_close(again.base, right.base, atol=1e-5, rtol=0)
    assert recut(x, wrong, replace(how, sweeps=0)).base.equal(wrong.base)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Descent(company=1), "two rows or more"),
        (lambda: Assembling(unit=0), "takes pieces"),
        (lambda: CountedPoints(share=1.0), "share between 0 and 1"),
        (lambda: descend(torch.randn(9, 4), [2, 1], torch.eye(4)[None], Descent(4, 8), 0), "do not divide"),
        (lambda: descend(torch.randn(3, 4), [2, 2], torch.eye(4)[None], Descent(4, 8), 0), "more than the 3 rows"),
        (lambda: assemble(torch.randn(99, 4), Assembling(unit=5)), "have 1 … 4 dimensions, not 5"),
        (lambda: find_subspaces(torch.randn(99, 4), _LINES, begins=Subspaces.identity(4, [4])), "from rows in memory"),
    ],
)
def test_what_cannot_be_assembled_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_settings_are_json() -> None:
    assert Assembling.from_json(_POINTS.to_json()) == _POINTS


def test_inside_groups_nothing_falls_apart() -> None:
    """A partition that is right is left as it is."""
    generator = torch.Generator().manual_seed(0)
    x, _ = _points((4, 3), 900, 1)
    what = inside_groups([3, 2], [3, 2], generator)
    after = recut(x, what, _POINTS)
    assert purity(after, [3, 2]) > 0.999
