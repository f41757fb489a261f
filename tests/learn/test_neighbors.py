"""Neighbors found in all parts at once are those that all distances in double precision show."""

import pytest
import torch
from torch import Tensor

from innerspace.decompose.subspaces import Subspaces
from innerspace.learn import neighbors
from innerspace.learn.neighbors import Matches, Metric, Neighborhood, nearest


def _rows(count: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) ** 3 + 0.1 * torch.randn(width, generator=generator)


def _subspaces(*sizes: int) -> Subspaces:
    return Subspaces.random(sum(sizes), sizes, torch.Generator().manual_seed(1))


def _all(near: Neighborhood, what: Subspaces, metric: Metric) -> Tensor:
    """Every distance in every part, in double precision; infinite for what does not count."""
    rotation = what.rotation.detach().double()
    q, k = near.queries.double() @ rotation.T, near.keys.double() @ rotation.T
    found = list[Tensor]()
    for part in what.parts:
        x, y = q[:, None, part], k[None, :, part]
        found.append((x - y).norm(dim=-1) if metric == "euclidean" else 1 - torch.cosine_similarity(x, y, dim=-1))
    distance = torch.stack(found)
    if near.own is not None:
        distance[:, torch.arange(len(q)), near.own] = torch.inf
    if near.query_document is not None and near.key_document is not None:
        distance[:, near.query_document[:, None] == near.key_document] = torch.inf
    return distance


def _agree(found: Matches, distance: Tensor, tolerance: float = 1e-5) -> None:
    k = found.index.shape[2]
    torch.testing.assert_close(found.distance.double(), distance.gather(2, found.index), atol=tolerance, rtol=1e-5)
    best = distance.topk(k, largest=False).values
    torch.testing.assert_close(found.distance.double(), best, atol=tolerance, rtol=1e-5)
    assert found.index.sort(-1).values.diff(dim=-1).ne(0).all()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize(("keys", "k"), [(7, 7), (100, 1), (1500, 3), (1500, 40)])
@pytest.mark.parametrize("half", [False, True])
def test_neighbors_are_the_nearest(metric: Metric, keys: int, k: int, half: bool) -> None:
    what = _subspaces(8, 5, 5, 1)
    near = Neighborhood(_rows(33, 19, 2), _rows(keys, 19))
    found = neighbors._nearest(near, what.rotation, what.parts, k, metric, half=half)
    distance = _all(near, what, metric)
    if half and keys > 1000:
        # candidates come from scores in half precision: what is missed is hardly nearer than what is found
        best = distance.topk(k, largest=False).values
        assert found.distance.double().sum() <= 1.001 * best.sum()
    else:
        _agree(found, distance)


def test_half_precision_survives_massive_states() -> None:
    what, rows = _subspaces(8, 8), _rows(1200, 16)
    rows[::100] *= 1e4
    near = Neighborhood(rows[:200], rows, torch.arange(200))
    found = neighbors._nearest(near, what.rotation, what.parts, 1, "euclidean", half=True)
    best = _all(near, what, "euclidean").amin(2, keepdim=True)
    # what is small next to the largest is lost in the scores, not in the distances
    assert found.distance.isfinite().all()
    assert torch.allclose(found.distance[:, ::100].double(), best[:, ::100], rtol=1e-2)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_neither_the_query_nor_its_document_counts(metric: Metric) -> None:
    what, keys = _subspaces(6, 4, 2), _rows(1400, 12)
    own = torch.randperm(1400, generator=torch.Generator().manual_seed(5))[:50]
    document = torch.arange(1400) // 40
    for near in (
        Neighborhood(keys[own], keys, own),
        Neighborhood(keys[own], keys, None, document[own], document),
        # the nearest by far, and whole groups of keys, are of one's own document
        Neighborhood(keys[:600] * 1.0001, keys, torch.arange(600), torch.zeros(600).long(), (document > 29).long()),
    ):
        _agree(nearest(near, what.rotation, what.parts, 2, metric), _all(near, what, metric))


def test_tiles_of_queries_are_searched_as_one() -> None:
    what, keys = _subspaces(3, 3), _rows(2100, 6)
    near = Neighborhood(keys, keys, torch.arange(2100))
    _agree(nearest(near, what.rotation, what.parts), _all(near, what, "euclidean"))


def test_a_far_origin_does_not_blur_and_duplicates_are_at_zero() -> None:
    what, rows = _subspaces(8, 8), _rows(1000, 16)
    far = rows + 300.0
    near = Neighborhood(far[:50], far, torch.arange(50))
    _agree(nearest(near, what.rotation, what.parts), _all(near, what, "euclidean"), tolerance=1e-4)
    twice = Neighborhood(far[:50], torch.cat((far, far[:50])), torch.arange(50))
    for metric in ("euclidean", "cosine"):
        found = nearest(twice, what.rotation, what.parts, 1, metric)
        assert found.distance.eq(0).all()
        assert found.index.squeeze(-1).eq(torch.arange(1000, 1050)).all()


def test_a_state_that_vanishes_in_a_part_is_at_right_angles() -> None:
    keys = torch.tensor([[0.0, 1.0], [-1.0, 1.0]])
    near = Neighborhood(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), keys)
    found = nearest(near, torch.eye(2), [slice(0, 1), slice(1, 2)], 2, "cosine")
    assert found.index[0, 0].tolist() == [0, 1]
    assert found.distance.tolist() == [[[1.0, 2.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]


def test_what_cannot_be_searched_is_refused() -> None:
    what, rows = _subspaces(4, 4), _rows(20, 8)
    with pytest.raises(ValueError, match="5 neighbors are sought among 4 keys"):
        nearest(Neighborhood(rows, rows[:4]), what.rotation, what.parts, 5)
    document = torch.tensor([0] * 18 + [1] * 2)
    with pytest.raises(ValueError, match="query 0 has 2 keys that count as neighbors, 3 are wanted"):
        nearest(Neighborhood(rows, rows, None, document, document), what.rotation, what.parts, 3)
    with pytest.raises(ValueError, match="queries have width 8, keys have 7"):
        Neighborhood(rows, rows[:, :7])
    with pytest.raises(ValueError, match="the hidden states have width 7, the rotation turns width 8"):
        nearest(Neighborhood(rows[:, :7], rows[:, :7]), what.rotation, what.parts)
    with pytest.raises(ValueError, match="ranges of the 8 coordinates"):
        nearest(Neighborhood(rows, rows), what.rotation, [slice(0, 9)])
    with pytest.raises(ValueError, match="for queries and keys, or for neither"):
        Neighborhood(rows, rows, key_document=document)
    damaged = rows.clone()
    damaged[3, 2] = torch.nan
    with pytest.raises(ValueError, match="keys should be finite: row 3 is the first of 1"):
        nearest(Neighborhood(rows, damaged), what.rotation, what.parts)
    with pytest.raises(ValueError, match="queries should be finite: row 3"):
        nearest(Neighborhood(damaged, rows), what.rotation, what.parts)
