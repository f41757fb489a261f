"""The neighbor distance, its gradient and its streams: against autograd in double precision, and bit for bit."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast, final

import pytest
import torch
from torch import Tensor

from families import CASES
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import TopK
from innerspace.decompose.subspaces import Chart, Subspaces
from innerspace.harvest.store import Store, write_store
from innerspace.learn.callbacks import Checkpoint
from innerspace.learn.fit import Callback, FitConfig, Loop, Record, Student, fit, fit_together
from innerspace.learn.neighbor_distance import (
    NeighborDistance,
    Weighting,
    mean_distance,
    neighborhoods,
    stored_neighborhoods,
)
from innerspace.learn.neighbors import Metric, Neighborhood, nearest
from innerspace.learn.trials import Trial, Trials, local
from innerspace.network.site import Where

SIZES = (4, 3, 3, 2)


def _rows(count: int, width: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) ** 3


def _subspaces(chart: Chart = "moving", seed: int = 1) -> Subspaces:
    what = Subspaces.random(12, SIZES, torch.Generator().manual_seed(seed), chart=chart).double()
    what.settle()
    return what


def _trial(what: Subspaces, near: Neighborhood) -> Trial:
    code = what.encode(near.queries)
    return Trial(near.queries, near.queries, code, what, torch.ones(()), neighborhood=near)


def _plain(rotation: Tensor, near: Neighborhood, k: int, metric: Metric, objective: Weighting) -> Tensor:
    """What one writes first: all distances, differentiated through the places of the least."""
    q, keys, start, means = near.queries @ rotation.T, near.keys @ rotation.T, 0, list[Tensor]()
    for size in SIZES:
        x, y = (z[:, start : start + size] for z in (q, keys))
        if metric == "euclidean":
            distance = (x[:, None] - y).square().sum(-1).sqrt()
        else:
            distance = 1 - torch.cosine_similarity(x[:, None], y, dim=-1)
        means.append(distance.topk(k, largest=False).values.mean())
        start += size
    mean, share = torch.stack(means), torch.tensor(SIZES).double() / 12
    if objective == "linear-equal":
        return mean.mean()
    return (share * (mean if objective == "linear-dim" else mean.log())).sum()


@pytest.mark.parametrize("chart", ["moving", "exponential"])
@pytest.mark.parametrize("objective", ["linear-equal", "linear-dim", "log-dim"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 3])
def test_the_gradient_is_that_of_autograd(chart: Chart, objective: Weighting, metric: Metric, k: int) -> None:
    what, near = _subspaces(chart), Neighborhood(_rows(40), _rows(300, seed=1))
    if chart == "exponential":
        with torch.no_grad():
            what.turn.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
    loss = NeighborDistance(objective, k, metric)(_trial(what, near))
    loss.backward()
    turn = what.turn.detach().clone().requires_grad_()
    lower = turn.tril(-1)
    plain = _plain(torch.linalg.matrix_exp(lower - lower.T) @ what.base, near, k, metric, objective)
    plain.backward()
    torch.testing.assert_close(loss, plain, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(what.turn.grad, turn.grad, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_turning_a_part_within_itself_changes_nothing(metric: Metric) -> None:
    what, near = _subspaces(), Neighborhood(_rows(40), _rows(300, seed=1))
    term = NeighborDistance(metric=metric)
    before = term(_trial(what, near))
    before.backward()
    gradient = cast(Tensor, what.turn.grad)
    same = what.member[:, None] == what.member
    assert gradient[same].abs().max() < 1e-14 < 1e-3 < gradient[~same].abs().max()
    for part, size in enumerate(SIZES):
        turned = torch.linalg.qr(_rows(size, size, seed=part)).Q
        what.turn_together([part], turned)
    torch.testing.assert_close(term(_trial(what, near)), before, atol=1e-12, rtol=0)


def test_duplicates_pull_nowhere() -> None:
    what, rows = _subspaces(), _rows(20)
    trial = _trial(what, Neighborhood(rows, rows))
    for objective in ("linear-equal", "linear-dim", "log-dim"):
        NeighborDistance(objective)(trial).backward()
        assert cast(Tensor, what.turn.grad).eq(0).all()


def test_matches_bound_the_loss_from_above_and_touch_it() -> None:
    what, near = _subspaces(), Neighborhood(_rows(40), _rows(300, seed=1))
    matches = nearest(near, what.rotation, what.parts)
    held = Neighborhood(near.queries, near.keys, matches=matches)
    torch.testing.assert_close(mean_distance(what, held), mean_distance(what, near))
    torch.testing.assert_close(matches.distance.mean((1, 2)), mean_distance(what, near).detach())
    other = _subspaces(seed=2)
    assert (mean_distance(other, held) > mean_distance(other, near)).all()
    with pytest.raises(ValueError, match=r"shape \(4, 40, 1\), not parts, queries, k = \(4, 40, 2\)"):
        mean_distance(what, held, 2)


def _drawn(trials: Trials, what: Subspaces) -> Neighborhood:
    near = trials.draw().trial(what).neighborhood
    assert near is not None
    assert near.matches is not None
    return near


def test_every_row_is_asked_once_an_epoch_and_never_finds_itself() -> None:
    rows, what = _rows(130), _subspaces()
    for keys in (60, 130):
        trials, asked = neighborhoods(rows, 10, keys, seed=3), list[Tensor]()
        for _ in range(13):
            near = _drawn(trials, what)
            asked.append(near.queries)
            assert len(near.keys.unique(dim=0)) == keys
            assert (cast(Tensor, near.matches.distance) > 0).all()
        assert torch.equal(torch.cat(asked).unique(dim=0), rows.unique(dim=0))
    exact = nearest(Neighborhood(near.queries, near.keys, near.own), what.rotation, what.parts)
    assert torch.equal(near.matches.index, exact.index)


def test_neighbors_come_from_other_documents() -> None:
    rows, what = _rows(120), _subspaces()
    document = torch.arange(120) // 30
    of_row = {tuple(row.tolist()): int(number) for row, number in zip(rows, document, strict=True)}
    near = _drawn(neighborhoods(rows, 10, 120, seed=3, documents=document), what)
    for query, found in zip(near.queries, near.matches.index[:, :, 0].T, strict=True):
        mine = of_row[tuple(query.tolist())]
        assert all(of_row[tuple(near.keys[i].tolist())] != mine for i in found)


def test_matches_serve_until_the_parts_change() -> None:
    what = _subspaces()
    trials = neighborhoods(_rows(130), 10, 100, seed=3, reuse=5)
    first = _drawn(trials, what)
    again = _drawn(trials, what)
    assert again.matches is first.matches
    assert torch.equal(first.queries, again.queries)
    what.merge([0, 1])
    merged = _drawn(trials, what)
    assert merged.matches.index.shape == (3, 10, 1)
    what.turn_together([0, 1], torch.linalg.qr(_rows(10, 10)).Q)
    turned = _drawn(trials, what)
    assert turned.matches is not merged.matches
    assert torch.equal(first.queries, turned.queries)
    assert _drawn(trials, what).matches is turned.matches
    assert not torch.equal(first.queries, _drawn(trials, what).queries)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """200 rows of width 8."""
    case, generator = CASES["blocks"](), torch.Generator().manual_seed(4)
    batches = [{"x": torch.randn(10, 5, 3, generator=generator), "valid": torch.ones(10, 5).bool()} for _ in range(4)]
    documents = torch.arange(10)[:, None].expand(10, 5) // 2
    return write_store(
        case.model, batches, ["first"], Where("valid"), tmp_path / "store", documents=lambda batch: documents
    )


def test_a_store_gives_what_shuffled_rows_in_blocks_give(store: Store) -> None:
    what = Subspaces.random(8, [4, 4], torch.Generator().manual_seed(1))
    everything = store.rows("first", torch.arange(200))
    document = store.places(torch.arange(200)).document
    # two queries a draw, three draws a block, a window of 156 rows: epochs meet in it
    trials = stored_neighborhoods(store, "first", 2, 150, seed=5, apart=True)
    drawn, asked = [_drawn(trials, what) for _ in range(110)], list[int]()
    for near in drawn:
        mine, others = ((everything[:, None] == rows).all(2).int().argmax(0) for rows in (near.queries, near.keys))
        asked += mine.tolist()
        assert len(others.unique()) == len(others) > 100
        assert not set(mine.tolist()) & set(others.tolist())
        found = others[near.matches.index]
        assert (document[found] != document[mine][:, None]).all()
    assert sorted(asked[:200]) == list(range(200))
    again = stored_neighborhoods(store, "first", 2, 150, seed=5, apart=True)
    for _ in range(50):
        again.draw()
    later = stored_neighborhoods(store, "first", 2, 150, seed=5, apart=True)
    later.restore(again.state())
    near = _drawn(later, what)
    assert torch.equal(near.queries, drawn[50].queries)
    assert torch.equal(near.keys, drawn[50].keys)


@final
class _Interrupt(Callback):
    def close_step(self, loop: Loop, records: Sequence[Record]) -> None:
        if loop.step == 6:
            raise KeyboardInterrupt


@pytest.mark.parametrize("chart", ["moving", "exponential"])
@pytest.mark.parametrize("stored", [False, True])
def test_a_fit_goes_on_in_the_middle_of_a_reuse(chart: Chart, stored: bool, store: Store, tmp_path: Path) -> None:
    rows = store.rows("first", torch.arange(200))

    def run(*callbacks: Callback) -> Subspaces:
        what = Subspaces.identity(8, [3, 3, 2], chart=chart)
        trials = (
            stored_neighborhoods(store, "first", 20, 100, 0, reuse=4)
            if stored
            else neighborhoods(rows, 20, 180, 0, reuse=4)
        )
        fit(what, trials, (NeighborDistance(),), FitConfig(steps=10, rate=1e-2, log_every=5), callbacks)
        return what

    whole, checkpoint = run(), Checkpoint(tmp_path / "snapshot", 6)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, _Interrupt())
    assert torch.equal(run(checkpoint).rotation, whole.rotation)
    assert not torch.equal(whole.rotation, torch.eye(8))


def test_students_learn_together_what_they_learn_alone() -> None:
    rows, config = _rows(200).float(), FitConfig(steps=7, rate=1e-2)

    def learn(*sizes: Sequence[int]) -> list[Tensor]:
        students = [Student(Subspaces.identity(12, size), (NeighborDistance(),), name=str(size)) for size in sizes]
        fit_together(students, neighborhoods(rows, 20, 180, 0, reuse=3), config)
        return [student.what.directions for student in students]

    together = learn([6, 6], [4, 4, 4])
    assert torch.equal(together[0], learn([6, 6])[0])
    assert torch.equal(together[1], learn([4, 4, 4])[0])


def test_what_does_not_fit_is_refused(store: Store) -> None:
    rows, what = _rows(30), _subspaces()
    with pytest.raises(ValueError, match="10 queries and 31 keys are more than the 30 rows"):
        neighborhoods(rows, 10, 31, 0)
    with pytest.raises(ValueError, match="should be positive and the seed not negative: 10, 20, 0, 0"):
        neighborhoods(rows, 10, 20, 0, reuse=0)
    with pytest.raises(ValueError, match="there are 29 documents for 30 rows"):
        neighborhoods(rows, 10, 20, 0, documents=torch.arange(29))
    with pytest.raises(ValueError, match="rows should differ"):
        neighborhoods(torch.ones(30, 4), 10, 20, 0)
    with pytest.raises(ValueError, match="10 queries and 191 keys are more than the 200 rows of the store"):
        stored_neighborhoods(store, "first", 10, 191, 0)
    with pytest.raises(ValueError, match="no site 'second'; it has first"):
        stored_neighborhoods(store, "second", 10, 100, 0)
    trials = neighborhoods(rows, 10, 20, 0)
    with pytest.raises(ValueError, match="the stream has keys 20, the one to continue had keys 25"):
        trials.restore(neighborhoods(rows, 10, 25, 0).state())
    with pytest.raises(ValueError, match="rows alone do not tell output"):
        trials.draw({"output"})
    with pytest.raises(ValueError, match="parts of Subspaces, not of a Dictionary"):
        trials.draw().trial(Dictionary(12, 24, TopK(2)))
    with pytest.raises(ValueError, match="neighbordistance needs rows among which to seek"):
        NeighborDistance()(Trial(rows, rows, what.encode(rows), what, torch.ones(())))
    with pytest.raises(ValueError, match="neighbordistance judges Subspaces, not a Dictionary"):
        NeighborDistance()(local(rows.float(), 10, 0).draw().trial(Dictionary(12, 24, TopK(2))))
    with pytest.raises(ValueError, match="at least one neighbor, not 0"):
        NeighborDistance(neighbors=0)
