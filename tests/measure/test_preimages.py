"""Preimages: exactly the states that are close in a part, a fair sample of them, and the contrast."""

import pytest
import torch
from torch import Tensor

from innerspace.decompose.subspaces import Subspaces
from innerspace.measure.preimages import Closeness, Hits, Preimages, Queries, preimages

WIDTH, SIZES, ROWS = 12, (5, 4, 3), 700
CLOSE = Closeness(cosine=(0.2, 0.5, 0.8), distance=(1.2, 0.9, 0.6), show=6, bins=10)


@pytest.fixture(scope="module")
def subspaces() -> Subspaces:
    return Subspaces.random(WIDTH, SIZES, torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def rows() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(2))


def search(subspaces: Subspaces, rows: Tensor, chunk: int = 128, seed: int = 0, by_document: bool = False) -> Preimages:
    documents, own = torch.arange(len(rows)) // 10, torch.tensor([0, 17, 399])
    queries = Queries(rows[own], own, documents[own] if by_document else None)
    chunks = rows.split(chunk)
    return preimages(subspaces, chunks, queries, documents=documents, closeness=CLOSE, seed=seed)


def oracle(subspaces: Subspaces, rows: Tensor, query: int, part: int, rest: bool = False) -> tuple[Tensor, Tensor]:
    """Cosines and relative distances in float64, from projections in the hidden space itself."""
    basis = subspaces.basis(part).double()
    projected = rows.double() @ basis.T @ basis
    x = rows.double() - projected if rest else projected
    cosine = torch.nn.functional.cosine_similarity(x, x[query][None])
    return cosine, (x - x[query]).norm(dim=1) / x[query].norm()


def check(hits: Hits, cosine: Tensor, distance: Tensor) -> None:
    assert hits.cosine.double() == pytest.approx(cosine[hits.row], abs=2e-5)
    assert hits.distance.double() == pytest.approx(distance[hits.row], abs=2e-3)


@torch.no_grad()
@pytest.mark.parametrize("by_document", [False, True])
def test_counts_histograms_and_hits_are_exact(subspaces: Subspaces, rows: Tensor, by_document: bool) -> None:
    found = search(subspaces, rows, by_document=by_document)
    for i, query in enumerate((0, 17, 399)):
        allowed = torch.arange(ROWS) // 10 != query // 10 if by_document else torch.arange(ROWS) != query
        assert found.considered[i] == int(allowed.sum())
        for part, one in enumerate(found.parts[i]):
            cosine, distance = oracle(subspaces, rows, query, part)
            assert one.within["cosine"] == [int(((cosine >= level) & allowed).sum()) for level in CLOSE.cosine]
            assert one.within["distance"] == [int(((distance <= level) & allowed).sum()) for level in CLOSE.distance]
            assert one.histogram == torch.histc(cosine[allowed], 10, -1, 1).long().tolist()
            check(one.sample, cosine, distance)
            assert allowed[one.sample.row].all()
            rest = oracle(subspaces, rows, query, part, rest=True)
            check(one.complement, *rest)
            nearest = rest[0].where(allowed, torch.tensor(-2.0).double()).topk(CLOSE.show).indices
            assert one.complement.row.tolist() == nearest.tolist()
        whole = torch.nn.functional.cosine_similarity(rows, rows[query][None]).where(allowed, torch.tensor(-2.0))
        assert found.whole[i].row.tolist() == whole.topk(CLOSE.show).indices.tolist()


@torch.no_grad()
def test_the_first_within_each_level_are_the_lowest_lots_of_all(subspaces: Subspaces, rows: Tensor) -> None:
    found = search(subspaces, rows, chunk=100, seed=5)
    generator = torch.Generator().manual_seed(5)
    lots = torch.cat([torch.rand(100, generator=generator) for _ in range(7)])
    cosine, distance = oracle(subspaces, rows, 17, 1)
    sample = found.parts[1][1].sample
    for level in CLOSE.cosine:
        close = [row for row in lots.argsort().tolist() if cosine[row] >= level and row != 17]
        assert sample.row[sample.cosine >= level][: CLOSE.show].tolist() == close[: CLOSE.show]
    for level in CLOSE.distance:
        close = [row for row in lots.argsort().tolist() if distance[row] <= level and row != 17]
        assert sample.row[sample.distance <= level][: CLOSE.show].tolist() == close[: CLOSE.show]


@torch.no_grad()
def test_every_close_state_is_drawn_equally_often(subspaces: Subspaces, rows: Tensor) -> None:
    rows, draws = rows[:150], 80
    cosine, _ = oracle(subspaces, rows, 0, 0)
    close, drawn = (cosine[1:] >= 0.5).nonzero()[:, 0] + 1, torch.zeros(len(rows))
    query = Queries(rows[:1], torch.tensor([0]))
    for seed in range(draws):
        sample = preimages(subspaces, [rows], query, closeness=CLOSE, seed=seed).parts[0][0].sample
        drawn[sample.row[sample.cosine >= 0.5][: CLOSE.show]] += 1
    share = CLOSE.show / len(close)
    assert drawn.sum() == draws * CLOSE.show
    z = (drawn[close] - draws * share) / (draws * share * (1 - share)) ** 0.5
    assert z.abs().max() < 4
    assert abs(float(z.square().mean()) - 1) < 0.5


@torch.no_grad()
def test_a_part_that_holds_nearly_all_of_a_state_does_not_drown_the_others() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(200, 8, generator=generator)
    rows[:, :4] *= 1e4
    plain = Subspaces.identity(8, (4, 4))
    found = preimages(plain, [rows], Queries(rows[:1], torch.tensor([0])), closeness=CLOSE)
    rest = torch.nn.functional.cosine_similarity(rows[:, 4:].double(), rows[:1, 4:].double())
    rest[0] = -2
    complement = found.parts[0][0].complement
    assert complement.row.tolist() == rest.topk(CLOSE.show).indices.tolist()
    assert complement.cosine.double() == pytest.approx(rest[complement.row], abs=1e-5)


@torch.no_grad()
def test_a_variable_is_shared_by_the_preimage_and_not_by_what_is_near_elsewhere() -> None:
    """Rows with a variable of four values in a hidden part: states close there share it, the nearest outside do not."""
    generator = torch.Generator().manual_seed(4)
    hidden = Subspaces.random(16, (12, 4), generator)
    value = torch.randint(0, 4, (2000,), generator=generator)
    z = torch.randn(2000, 16, generator=generator)
    z[:, 12:] = torch.eye(4)[value] + 0.1 * z[:, 12:]
    rows, own = z @ hidden.rotation, torch.arange(20)
    found = preimages(hidden, rows.split(512), Queries(rows[own], own))
    for query in range(20):
        one = found.parts[query][1]
        assert (value[one.sample.row[one.sample.cosine >= 0.85]] == value[query]).all()
    outside = torch.cat([value[found.parts[q][1].complement.row] == value[q] for q in range(20)])
    assert 0.1 < float(outside.float().mean()) < 0.45
    assert found.share(1, "cosine", 0.85).mean == 1
    assert found.share(0, "cosine", 0.98).mean < 0.2
    assert set(found.rows()) >= set(found.whole[3].row.tolist())


@torch.no_grad()
def test_an_empty_preimage_is_empty(subspaces: Subspaces) -> None:
    z = torch.ones(2, WIDTH)
    z[1] = -1
    states = z @ subspaces.rotation
    found = preimages(subspaces, [states], Queries(states[:1], torch.tensor([0])), closeness=CLOSE)
    assert found.parts[0][0].within == {"cosine": [0, 0, 0], "distance": [0, 0, 0]}
    assert len(found.parts[0][0].sample.row) == 0
    assert found.share(0, "cosine", 0.8).mean == 0


@torch.no_grad()
def test_what_cannot_be_searched_is_refused(subspaces: Subspaces, rows: Tensor) -> None:
    none, first = torch.tensor([-1]), rows[:1]
    with pytest.raises(ValueError, match="at least one query"):
        preimages(subspaces, [rows], Queries(rows[:0], none[:0]))
    with pytest.raises(ValueError, match="at least one state"):
        preimages(subspaces, [], Queries(first, none))
    with pytest.raises(ValueError, match="documents"):
        preimages(subspaces, [rows], Queries(first, none, torch.tensor([0])))
    with pytest.raises(ValueError, match="1 of 700 states are not finite"):
        preimages(subspaces, [rows.index_fill(0, torch.tensor([3]), float("nan"))], Queries(first, none))
    with pytest.raises(ValueError, match="zero in part 0"):
        preimages(subspaces, [rows], Queries(0 * first, none))
    with pytest.raises(ValueError, match="width 5"):
        preimages(subspaces, [rows], Queries(first[:, :5], none))
    with pytest.raises(ValueError, match="should rise"):
        Closeness(cosine=(0.9, 0.5))
    with pytest.raises(ValueError, match=r"no level cosine 0\.1"):
        search(subspaces, rows).share(0, "cosine", 0.1)
