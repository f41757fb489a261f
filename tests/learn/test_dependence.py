"""Mutual information of all pairs of parts: against the plain formula, closed forms, chance, and what is known."""

import math

import pytest
import torch
from torch import Tensor

from innerspace.decompose.subspaces import Subspaces
from innerspace.learn.dendrogram import Dendrogram, dendrogram
from innerspace.learn.dependence import Scale, dependence, mixtures
from innerspace.learn.neighbors import Neighborhood
from learn.exclusive import exclusive_rows, inside_groups


def _plain(what: Subspaces, near: Neighborhood, k: int, scale: Scale) -> Tensor:
    """KSG as it is written down, all distances at once."""
    queries, keys = (what.encode(rows).z.detach().double() for rows in (near.queries, near.keys))
    barred = torch.zeros(len(queries), len(keys), dtype=torch.bool)
    if near.own is not None:
        barred |= near.own[:, None] == torch.arange(len(keys))
    if near.query_document is not None and near.key_document is not None:
        barred |= near.query_document[:, None] == near.key_document
    distances = list[Tensor]()
    for part in what.parts:
        far = (queries[:, None, part] - keys[None, :, part]).norm(dim=-1).masked_fill(barred, math.inf)
        unit = keys[:, part].var(0, correction=0).sum().sqrt() if scale == "variance" else far.amin(1).median()
        distances.append(far / unit)
    psi = torch.special.digamma
    others = psi((~barred).sum(1).double() + 1)
    out = torch.full((len(distances),) * 2, math.nan, dtype=torch.float64)
    for i, first in enumerate(distances):
        for j, second in enumerate(distances):
            if i != j:
                radius = torch.maximum(first, second).sort(1).values[:, k - 1 : k]
                inside = [(one < radius).sum(1).double() + 1 for one in (first, second)]
                out[i, j] = (
                    psi(torch.tensor(k, dtype=torch.float64)) + others - psi(inside[0]) - psi(inside[1])
                ).mean()
    return out


def _pair(x: Tensor, y: Tensor) -> tuple[Subspaces, Tensor]:
    return Subspaces.identity(x.shape[1] + y.shape[1], [x.shape[1], y.shape[1]]).to(x), torch.cat([x, y], 1)


def _between(x: Tensor, y: Tensor, queries: int, **settings: object) -> float:
    what, rows = _pair(x, y)
    near = Neighborhood(rows[:queries], rows, torch.arange(queries))
    return float(dependence(what, near, **settings).information[0, 1])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("k", "scale", "barred"),
    [(1, "variance", "none"), (1, "median", "own"), (3, "variance", "own"), (3, "median", "documents")],
)
def test_as_the_plain_formula(k: int, scale: Scale, barred: str) -> None:
    """More keys than a chunk, queries that fill no tile, parts on both sides of where products begin."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(11, 11, generator=generator, dtype=torch.float64)
    rows = torch.randn(1300, 11, generator=generator, dtype=torch.float64) @ mix
    what = Subspaces.random(11, [5, 3, 2, 1], generator).double()
    near = Neighborhood(rows[:70], rows[70:])
    if barred == "own":
        near = Neighborhood(rows[:70], rows, torch.where(torch.arange(70) % 3 > 0, torch.arange(70), -1))
    if barred == "documents":
        number = torch.arange(1300) // 40
        near = Neighborhood(rows[:70], rows, None, number[:70], number)
    expected = _plain(what, near, k, scale)
    torch.testing.assert_close(dependence(what, near, k=k, scale=scale).information, expected, equal_nan=True)
    single = Neighborhood(near.queries.float(), near.keys.float(), near.own, near.query_document, near.key_document)
    found = dependence(what.float(), single, k=k, scale=scale, ties="strict").information
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0, equal_nan=True)


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_correlated_gaussians(d: int) -> None:
    """−½ log det(1 − C Cᵀ), from which the estimator falls short the more, the wider the parts and the stronger C."""
    generator = torch.Generator().manual_seed(d)
    for correlation in (0.0, 0.5, 0.8):
        x, noise = torch.randn(2, 3000, d, generator=generator)
        y = correlation * x + (1 - correlation**2) ** 0.5 * noise
        true = -d / 2 * math.log(1 - correlation**2)
        # three standard errors, and beyond two dimensions the known bias
        assert -0.1 - 0.04 * (d - 1) * true < _between(x, y, 1200) - true < 0.1


def test_biased_low_in_wide_parts() -> None:
    """Measured with 4,000 rows: of 7.1 nats in 32 dimensions some 1.9 are seen, of 26.6 some 5.3."""
    x, noise = torch.randn(2, 4000, 32, generator=torch.Generator().manual_seed(0))
    for true, seen in ((7.1, 1.9), (26.6, 5.3)):
        square = 1 - math.exp(-2 * true / 32)
        y = square**0.5 * x + (1 - square) ** 0.5 * noise
        assert _between(x, y, 1000) == pytest.approx(seen, rel=0.15)


def test_never_above_the_ceiling() -> None:
    """A part and its own copy: nobody is nearer in one than in both, which is ψ(N) − ψ(1) and no more."""
    x = torch.randn(700, 2, generator=torch.Generator().manual_seed(0))
    what, rows = _pair(x, x)
    found = dependence(what, Neighborhood(rows[:50], rows[50:]))
    assert found.ceiling == pytest.approx(float(torch.special.digamma(torch.tensor(651.0))) + 0.5772157)
    assert float(found.information[0, 1]) == pytest.approx(found.ceiling)
    assert found.saturated[0, 1] == 1
    assert found.tied[0, 1] == 0


def test_equal_states_do_not_look_dependent() -> None:
    """Counting what coincides: ln 4 for four values twice, zero for independent parts that are often empty."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 5, generator=generator)[torch.randint(4, (2000,), generator=generator)]
    assert _between(values, values, 500) == pytest.approx(math.log(4), abs=0.02)
    rows = exclusive_rows([20, 20], [4, 4], 3000, generator)
    what, rows = _pair(rows[:, :4], rows[:, 4:])
    found = dependence(what, Neighborhood(rows[:1000], rows[1000:]), shuffles=2)
    assert found.excess[0, 1] == pytest.approx(0, abs=0.12)
    assert found.tied[0, 1] == pytest.approx(1 / 16, abs=0.02)
    # as published, the 1 in 16 that are empty on both sides count as fully dependent
    assert _between(rows[:, :4], rows[:, 4:], 1000, ties="strict") > 0.4


def test_chance() -> None:
    """Between independent parts z is standard normal and nothing is significant; a weak dependence is."""
    generator = torch.Generator().manual_seed(3)
    what = Subspaces.identity(16, [2] * 8)
    z, false = list[Tensor](), 0
    for seed in range(3):
        rows = torch.randn(500, 16, generator=generator)
        found = dependence(what, Neighborhood(rows[:200], rows[200:]), shuffles=2, seed=seed)
        z.append(found.z[torch.ones(8, 8, dtype=torch.bool).triu(1)])
        false += int(found.significant(0.05).sum())
    every = torch.cat(z)
    assert abs(float(every.mean())) < 0.4
    assert 0.75 < float(every.std()) < 1.3
    assert false <= 2
    rows = torch.randn(500, 16, generator=generator)
    rows[:, 2:4] += rows[:, :2]
    found = dependence(what, Neighborhood(rows, rows, torch.arange(500)), shuffles=2)
    assert found.significant(0.05)[0, 1]
    assert found.excess[0, 1] == found.information[0, 1] - found.null[:, 0, 1].mean()


def test_a_cut_between_variables_is_unlike_random_ones() -> None:
    """Inside a variable one cut is as good as another."""
    generator = torch.Generator().manual_seed(0)
    rows = exclusive_rows([12, 12], [4, 4], 2500, generator)
    what = inside_groups([4, 4], [2] * 4, generator)
    near = Neighborhood(rows[:500], rows[500:])
    found, mixed = dependence(what, near), mixtures(what, near, [(0, 1), (1, 2)], draws=2)
    ratio = found.information / mixed
    assert float(ratio[0, 1]) == pytest.approx(1, abs=0.1)
    assert float(ratio[1, 2]) == pytest.approx(0, abs=0.1)
    assert mixed.isnan().sum() == 12


def test_the_whole_tree() -> None:
    """Groups come together before anything else does; what is independent comes last, at no height."""
    generator = torch.Generator().manual_seed(0)
    rows = exclusive_rows([12, 12], [6, 4], 2000, generator)
    tree = dendrogram(inside_groups([6, 4], [2] * 5, generator), Neighborhood(rows[:400], rows[400:]))
    assert tree.partition(2) == [(0, 1, 2), (3, 4)]
    assert tree.partition(5) == [(i,) for i in range(5)]
    assert tree.partition(1) == [tuple(range(5))]
    assert sorted(tree.order) == list(range(5))
    assert [joint.height for joint in tree.joints] == sorted((joint.height for joint in tree.joints), reverse=True)
    assert tree.joints[-1].height < 0.02 < 0.2 < tree.joints[-2].height
    assert Dendrogram.from_json(tree.to_json()) == tree
    with pytest.raises(ValueError, match="1 … 5 groups"):
        tree.partition(6)


def test_bad_input() -> None:
    """Named before any distance is computed."""
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    what = Subspaces.identity(6, [4, 2])
    near = Neighborhood(rows[:10], rows, torch.arange(10))
    with pytest.raises(ValueError, match="not finite"):
        dependence(what, Neighborhood(rows[:10], rows.clone().index_fill_(0, torch.tensor([3]), math.nan)))
    with pytest.raises(ValueError, match="do not vary in part 1"):
        dependence(what, Neighborhood(rows[:10], rows.clone().index_fill_(1, torch.tensor([4, 5]), 2.0)))
    with pytest.raises(ValueError, match="k = 50 neighbors are sought among 49 keys"):
        dependence(what, near, k=50)
    with pytest.raises(ValueError, match="width 6, the subspaces divide width 5"):
        dependence(Subspaces.identity(5, [3, 2]), near)
    with pytest.raises(ValueError, match="at least two parts"):
        dependence(Subspaces.identity(6, [6]), near)
    with pytest.raises(ValueError, match="coincide with others in part 0"):
        dependence(what, Neighborhood(rows[:10], rows), scale="median")
    with pytest.raises(ValueError, match="at least two shuffles"):
        _ = dependence(what, near).z
