"""Partitions that change while they are learned: merges, splits, ways out of local minima, and continuing all of it."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

import pytest
import torch
from torch import Tensor

from innerspace.decompose.subspaces import Subspaces, random_rotation
from innerspace.learn.callbacks import Checkpoint
from innerspace.learn.dependence import Dependence
from innerspace.learn.fit import Callback, Fit, FitConfig, Loop, Record, Student, fit
from innerspace.learn.merge_rules import Calibrated, MergeRule, PublishedThreshold
from innerspace.learn.merging import Merging, Sampling, Search, Splitting, best_split, follow, split
from innerspace.learn.neighbor_distance import NeighborDistance, neighborhoods
from innerspace.learn.neighbors import Neighborhood
from innerspace.learn.perturbing import Perturbing
from innerspace.learn.trials import local
from learn.exclusive import exclusive_rows, inside_groups, purity

_FEW = Sampling(300, 1500)
_QUICK = Search(shares=(0.5,), starts=3, steps=100, rate=0.05, queries=64, keys=400)


def _found(information: Sequence[Sequence[float]]) -> Dependence:
    matrix = torch.tensor(information, dtype=torch.float64)
    matrix = (matrix + matrix.T).fill_diagonal_(math.nan)
    none = matrix[None][:0]
    return Dependence(matrix, matrix, matrix, matrix, 9.0, none, none, matrix)


def _fit(what: Subspaces, rows: Tensor, steps: int, *callbacks: Callback, log_every: int = 5) -> Fit:
    config = FitConfig(steps, rate=0.01, warmup=0, cooldown=0, clip=None, log_every=log_every)
    return fit(what, neighborhoods(rows, 64, 256, seed=1), (NeighborDistance(),), config, callbacks)


def test_published_threshold() -> None:
    """Nats per dimension, the largest first, no part twice, of S parts at most max(1, S // 8) pairs."""
    rule = PublishedThreshold(0.04)
    found = _found([[0, 0.9, 0.5, 0], [0, 0, 0.8, 0], [0, 0, 0, 0.4], [0, 0, 0, 0]])
    assert rule.pairs(found, [8, 8, 2, 2]) == [(2, 3)]
    assert rule.pairs(found, [20, 20, 20, 20]) == []
    many = torch.zeros(16, 16)
    many[0, 1], many[1, 2], many[2, 3], many[4, 5] = 0.5, 0.6, 0.4, 0.3
    assert rule.pairs(_found(many.tolist()), [2] * 16) == [(1, 2), (4, 5)]
    # 9 nats are all that can be seen: 225 dimensions are the most that come together at this threshold
    full = _found([[0, 9.0], [0, 0]])
    assert rule.pairs(full, [112, 112]) == [(0, 1)]
    assert rule.pairs(full, [113, 113]) == []


@pytest.mark.parametrize(("features", "dims"), [((20, 20), (6, 6)), ((15, 15, 5, 5), (4, 4, 2, 2))])
def test_calibrated_finds_the_groups(features: tuple[int, ...], dims: tuple[int, ...]) -> None:
    """Merging on until the rule stops ends with the planted groups, also with parts a little off."""
    rule = Calibrated(draws=1, reference=200, shuffles=2)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        rows = exclusive_rows(features, dims, 1500, generator)
        what = inside_groups(dims, [2] * (sum(dims) // 2), generator)
        noise = 0.01 * torch.randn(what.width, what.width, generator=generator)
        what = Subspaces(what.base @ torch.linalg.matrix_exp(noise - noise.T), what.sizes)
        near = Neighborhood(rows[:250], rows[250:])
        while len(what.sizes) > 1 and (pairs := rule.pairs(rule.measure(what, near, seed), what.sizes)):
            what.merge(*pairs)
        assert what.sizes == dims
        assert purity(what, dims) > 0.99


def test_calibrated_leaves_alone_what_is_independent() -> None:
    """Gaussian parts without dependence, of which random cuts are independent as well."""
    rows = torch.randn(1000, 6, generator=torch.Generator().manual_seed(0))
    rule = Calibrated(draws=1, shuffles=3)
    found = rule.measure(Subspaces.identity(6, [2, 2, 2]), Neighborhood(rows[:200], rows[200:]), 0)
    assert rule.pairs(found, [2, 2, 2]) == []
    assert found.mixed.isnan().all()
    assert MergeRule.from_json(rule.to_json()) == rule
    with pytest.raises(ValueError, match="two shuffles or more"):
        Calibrated(shuffles=1)


@final
class _Reorder(Callback):
    """Parts of equal sizes in another order, at one step."""

    def __init__(self, at: int, parts: Sequence[Sequence[int]], *, transport: bool) -> None:
        self.at, self.parts, self.transport = at, parts, transport

    def after_step(self, loop: Loop, student: Student) -> Record:
        assert isinstance(student.what, Subspaces)
        if loop.step == self.at:
            follow(loop, student, student.what.arrange(self.parts), transport=self.transport)
        return {}


def test_moments_follow_their_coordinates() -> None:
    """After a mere change of order the fit goes on as if nothing had happened; with a new optimizer it does not."""
    rows = exclusive_rows([6, 6, 6], [2, 2, 2], 600, torch.Generator().manual_seed(0)).double()
    order = [4, 5, 0, 1, 2, 3]
    ends = list[Tensor]()
    for callback in (
        Callback(),
        _Reorder(11, [[4, 5], [0, 1], [2, 3]], transport=True),
        _Reorder(11, [[4, 5], [0, 1], [2, 3]], transport=False),
    ):
        what = Subspaces.random(6, [2, 2, 2], torch.Generator().manual_seed(2)).double()
        _fit(what, rows, 30, callback)
        ends.append(what.rotation.detach())
    torch.testing.assert_close(ends[1], ends[0][order], atol=1e-10, rtol=0)
    assert (ends[2] - ends[0][order]).abs().max() > 1e-4


def test_merging_in_a_fit() -> None:
    """It merges on schedule, not in the last steps, ends the fit when nothing is left to merge, and says so."""
    generator = torch.Generator().manual_seed(0)
    rows = exclusive_rows([10, 10], [4, 2], 2000, generator)
    what = inside_groups([4, 2], [2, 2, 2], generator)
    rule = Calibrated(draws=1, reference=100, shuffles=2)
    merging = Merging(rule, start=10, every=10, spare=20, sampling=_FEW)
    done = _fit(what, rows, 100, merging, log_every=50)
    merges = [record for record in done.history if "merged" in record]
    assert [(one["step"], one["merged"], one["sizes"]) for one in merges] == [(10, "0+1", "4+2"), (20, "", "4+2")]
    assert float(merges[0]["dependence"]) > 1
    assert done.history[-1]["step"] == 20
    assert (what.rotation @ what.rotation.T - torch.eye(6)).abs().max() < 1e-6
    late = inside_groups([4, 2], [2, 2, 2], generator)
    assert not any("merged" in record for record in _fit(late, rows, 25, merging).history)


def _everything() -> list[Callback]:
    rule = Calibrated(draws=1, reference=60, shuffles=2)
    few = Sampling(60, 400)
    return [
        Perturbing(5, 15, sampling=few),
        Merging(rule, 20, 6, stop=False, spare=2, sampling=few),
        Splitting(rule, [29], search=Search(steps=3, starts=1, queries=16, keys=50), sampling=few),
    ]


@final
class _Interrupt(Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def close_step(self, loop: Loop, records: Sequence[Record]) -> None:
        if loop.step == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [13, 23])
def test_an_interrupted_fit_continues_bit_for_bit(tmp_path: Path, at: int) -> None:
    """While partitions are perturbed, with the best of them at stake, and after a merge."""
    rows = exclusive_rows([8, 8], [4, 4], 500, torch.Generator().manual_seed(0))

    def begin() -> Subspaces:
        return Subspaces.random(8, [2] * 4, torch.Generator().manual_seed(3))

    whole = _fit(begin(), rows, 32, *_everything())
    with pytest.raises(KeyboardInterrupt):
        _fit(begin(), rows, 32, Checkpoint(tmp_path / "fit", 4), *_everything(), _Interrupt(at))
    rest = _fit(begin(), rows, 32, Checkpoint(tmp_path / "fit", 4), *_everything())
    assert isinstance(whole.what, Subspaces)
    assert isinstance(rest.what, Subspaces)
    assert rest.what.sizes == whole.what.sizes
    assert torch.equal(rest.what.rotation, whole.what.rotation)
    assert rest.history == whole.history


def test_a_wrong_merge_is_undone() -> None:
    """The best cut of two variables lies between them, and stands; the best cut of one does not."""
    generator = torch.Generator().manual_seed(0)
    hidden = random_rotation(6, generator)
    rows = exclusive_rows([8, 8], [3, 3], 1200, generator) @ hidden
    rule = Calibrated(draws=2, reference=200, shuffles=2)
    what = Subspaces.random(6, [6], generator)
    near = Neighborhood(rows[:300], rows[300:])
    cut = best_split(what, 0, near, rule, _QUICK)
    assert cut is not None
    assert cut.sizes == (3, 3)
    assert cut.strength <= rule.bound
    split(what, {0: cut})
    assert what.sizes == (3, 3)
    assert purity(Subspaces(what.rotation.detach() @ hidden.T, what.sizes), [3, 3]) > 0.98
    assert best_split(what, 0, near, rule, Search(least=2)) is None
    one = best_split(what, 0, near, rule, Search(shares=(0.4,), least=1, starts=1, steps=100, queries=64, keys=400))
    assert one is not None
    assert one.strength > rule.bound


def test_perturbing_ends_with_the_best() -> None:
    """A good partition is perturbed in vain, and stands at the end."""
    generator = torch.Generator().manual_seed(0)
    rows = exclusive_rows([8, 8], [2, 2], 1500, generator)
    what = inside_groups([2, 2], [2, 2], generator)
    done = _fit(what, rows, 12, Perturbing(4, 12, sampling=_FEW))
    seen = [
        (record["step"], float(record["objective"]), float(record["best"]))
        for record in done.history
        if "best" in record
    ]
    assert [step for step, _, _ in seen] == [4, 8, 12]
    assert seen[1][1] > 1.5 * seen[0][1]
    assert seen[2][2] == seen[0][1]
    assert purity(what, [2, 2]) > 0.98


def test_perturbed_partitions_are_compared_on_the_same_rows() -> None:
    """A partition that no step changes has the same value every time, though every trial has other rows."""
    rows = exclusive_rows([8], [2], 1500, torch.Generator().manual_seed(0))
    what, perturbing = Subspaces.identity(2, [2]), Perturbing(2, 8, sampling=_FEW)
    keys = list[Tensor]()

    @final
    class Watch(Callback):
        def after_step(self, loop: Loop, student: Student) -> Record:
            assert student.trial.neighborhood is not None
            keys.append(student.trial.neighborhood.keys)
            return {}

    done = _fit(what, rows, 8, perturbing, Watch())
    assert not torch.equal(keys[1].sort(0).values, keys[3].sort(0).values)
    assert len({record["objective"] for record in done.history if "best" in record}) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Merging(PublishedThreshold(), 0, 0), "every should be positive"),
        (lambda: Perturbing(10, 5), "until no less"),
        (lambda: Search(shares=(1.5,)), "shares between 0 and 1"),
        (lambda: Sampling(0, 5), "queries and keys"),
    ],
)
def test_bad_settings(make: Callable[[], object], message: str) -> None:
    """Refused where they are written."""
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_company() -> None:
    """Rows without neighborhoods, and moments that end with their chart."""
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    what = Subspaces.identity(4, [2, 2], chart="exponential")
    with pytest.raises(ValueError, match="moving chart only"):
        _fit(what, rows.repeat(10, 1), 2, Merging(PublishedThreshold(), 0, 1))
    student = Student(what, (NeighborDistance(),))
    student.trial = local(rows, 5, 0).draw().trial(what)
    with pytest.raises(ValueError, match="use neighborhoods"):
        Sampling().draw(student, 0)
