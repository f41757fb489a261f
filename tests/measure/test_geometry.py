"""How alike directions are: closed forms, an oracle in float64, planted matches, chance by simulation, coverage."""

import itertools
import math
import sys

import pytest
import torch
from sklearn.manifold import trustworthiness

from innerspace.measure.estimate import Estimate
from innerspace.measure.feature_map import FeatureMap, feature_map
from innerspace.measure.geometry import (
    CHANCES,
    Judged,
    Overlap,
    between,
    difference,
    faithfulness_along,
    mean,
    pairs,
    principal_directions,
    principal_faithfulness,
    similarity,
    stand_in,
    within,
)
from innerspace.measure.neighbors import assign, mutual, nearest, nearest_both, units


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def directions(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """Directions of many lengths."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=source) * torch.logspace(-20, 15, n)[:, None]


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = a.double(), b.double()
    return (a / a.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).T


# --- nearest


@pytest.mark.parametrize("chunk", [3, 7, 32, 1000])
@pytest.mark.parametrize("k", [1, 5])
def test_nearest_is_the_top_of_the_whole_matrix_for_any_chunk(chunk: int, k: int) -> None:
    a, b = directions(23, 6), directions(37, 6, seed=1)
    for found, full in (
        (nearest(a, b, k=k, chunk=chunk), cosines(a, b)),
        (nearest_both(a, b, k=k, chunk=chunk)[0], cosines(a, b)),
        (nearest_both(a, b, k=k, chunk=chunk)[1], cosines(b, a)),
        (nearest(a, k=k, chunk=chunk), cosines(a, a).fill_diagonal_(-2)),
    ):
        expected = full.topk(k)
        torch.testing.assert_close(found.similarity.double(), expected.values, atol=5e-7, rtol=0)
        assert torch.equal(found.index, expected.indices)


def test_nearest_of_an_orthonormal_set_antipodes_and_duplicates() -> None:
    axes = torch.eye(5)
    assert torch.equal(nearest(axes).similarity, torch.zeros(5, 1))
    assert torch.equal(nearest(torch.cat((axes, 3 * axes))).index[:, 0], torch.arange(10).roll(5))
    poles = torch.tensor([[2.0, 0], [-1, 0]])
    assert nearest(poles).similarity.tolist() == [[-1], [-1]]
    assert nearest(-poles, poles).index.tolist() == [[1], [0]]
    twins = directions(1, 4).expand(6, 4)
    found = nearest(twins, k=5, chunk=2)
    torch.testing.assert_close(found.similarity, torch.ones(6, 5))
    # each names all the others and never itself
    assert torch.equal(
        found.index.sort().values, torch.arange(6).expand(6, 6)[~torch.eye(6, dtype=torch.bool)].view(6, 5)
    )


def test_rows_left_out_are_neither_asked_for_nor_found() -> None:
    a, b = directions(40, 3), directions(30, 3, seed=1)
    alive_a, alive_b = torch.arange(40) % 3 > 0, torch.arange(30) % 2 > 0
    a[0], b[0] = 0, torch.nan
    here, there = alive_a.nonzero()[:, 0], alive_b.nonzero()[:, 0]
    one, other = nearest_both(a, b, alive_a=alive_a, alive_b=alive_b)
    within_a = nearest(a, alive_a=alive_a)
    for found, full, columns, asked in (
        (one, cosines(a[here], b[there]), there, alive_a),
        (other, cosines(b[there], a[here]), here, alive_b),
        (within_a, cosines(a[here], a[here]).fill_diagonal_(-2), here, alive_a),
    ):
        assert torch.equal(found.index[asked, 0], columns[full.argmax(1)])
        assert found.similarity[~asked].isnan().all()
        assert (found.index[~asked] == -1).all()
    matching = mutual(one, other)
    assert len(matching.a)
    assert alive_a[matching.a].all()
    assert alive_b[matching.b].all()
    assert torch.equal(other.index[matching.b, 0], matching.a)


def test_what_cannot_be_measured_is_named() -> None:
    a = torch.eye(4)
    with pytest.raises(ValueError, match=r"rows 1, 3 of a are zero or not finite \(2 of 4\)"):
        nearest(torch.tensor([[1.0], [0], [1], [torch.inf]]))
    with pytest.raises(ValueError, match="4 nearest were asked for, and there are 3"):
        nearest(a, k=4)
    with pytest.raises(ValueError, match="rows of b have width 3, not 4"):
        nearest(a, torch.eye(3))
    with pytest.raises(ValueError, match="a has 4 rows, its mask has 2"):
        nearest(a, alive_a=torch.tensor([True, True]))
    with pytest.raises(ValueError, match="no b was given"):
        nearest(a, alive_b=torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least one row, got 0"):
        nearest(a, chunk=0)


# --- one-to-one matching


def test_the_assignment_is_the_best_of_all_permutations() -> None:
    a, b = directions(5, 3), directions(6, 3, seed=3)
    found = assign(a, b)
    full = cosines(a, b)
    best = max(sum(full[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(6), 5))
    assert float(found.similarity.sum()) == pytest.approx(float(best), abs=1e-6)
    assert found.a.tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(found.similarity.double(), full[found.a, found.b])


def test_a_planted_permutation_is_recovered_under_noise(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    a = torch.randn(300, 32, generator=generator)
    order = torch.randperm(300, generator=generator)
    b = 4 * (a + 0.5 * torch.randn(300, 32, generator=generator))[order]
    assert torch.equal(order[assign(a, b).b], torch.arange(300))
    overlap = between(a, b, chances=["isotropic"])
    assert (overlap.matching, overlap.share) == ("assignment", 1)
    assert overlap.matched.observed.mean.mean == pytest.approx(1 / math.sqrt(1.25), abs=0.01)
    monkeypatch.setattr("innerspace.measure.geometry.ASSIGNABLE", 299)
    monkeypatch.setattr("innerspace.measure.neighbors.ASSIGNABLE", 299)
    larger = between(a, b, chances=["isotropic"])
    assert larger.matching == "mutual nearest neighbors"
    assert larger.share > 0.99
    assert larger.matched.observed.mean.mean == pytest.approx(overlap.matched.observed.mean.mean, abs=0.01)
    with pytest.raises(ValueError, match="at most 299 rows on either side, got 300 and 300"):
        assign(a, b)


def test_a_dictionary_covers_its_parts_but_not_the_other_way(generator: torch.Generator) -> None:
    whole = torch.randn(200, 16, generator=generator)
    alive = torch.ones(60, dtype=torch.bool)
    alive[-10:] = False
    overlap = between(whole[:60], whole, alive_a=alive)
    assert overlap.of_a.observed.count == 50
    assert overlap.of_a.observed.mean.mean == pytest.approx(1, abs=1e-6)
    rest = cosines(whole[50:], whole[:50]).amax(1).sum()
    assert overlap.of_b.observed.mean.mean == pytest.approx(float(50 + rest) / 200, abs=1e-6)
    assert bounds(overlap.of_b.observed.mean)[1] < 0.75
    assert overlap.share == 1
    assert overlap.matched.observed.quantiles[0] == pytest.approx(1, abs=1e-6)
    assert set(overlap.matched.chance) == set(CHANCES)
    assert Overlap.from_json(overlap.to_json()) == overlap


# --- chance


def test_isotropic_chance_agrees_with_the_law_of_the_largest_cosine() -> None:
    # P(max of m cosines ≤ t) = P(cos ≤ t)^m, and in three dimensions a cosine is even on [−1, 1]
    judged = within(directions(3000, 3), chances=["isotropic"])
    m = 2999
    expected = 1 - 2 / (m + 1)
    for found in (judged.observed, judged.chance["isotropic"]):
        assert 1 - found.mean.mean == pytest.approx(1 - expected, rel=0.06)
        assert 1 - found.quantiles[3] == pytest.approx(2 * (1 - 0.5 ** (1 / m)), rel=0.08)


def test_chance_keeps_what_its_name_says_and_nothing_else(generator: torch.Generator) -> None:
    rows = torch.randn(4000, 6, generator=generator) * torch.tensor([9.0, 3, 1, 1, 1, 0]) + 2
    shuffled, alike, even = (stand_in(kind, rows, generator) for kind in ("shuffled", "covariance", "isotropic"))
    torch.testing.assert_close(shuffled.sort(1).values, rows.sort(1).values)
    moment = units(rows).T @ units(rows) / 4000
    torch.testing.assert_close(alike.T @ alike / 4000, moment, atol=0.03, rtol=0)
    for flat in (shuffled, even):
        own = flat.T @ flat / flat.square().sum() * 6
        assert own.diagonal().sub(1).abs().max() < 0.1
    with pytest.raises(ValueError, match="'permuted'; possible are isotropic, covariance, shuffled"):
        within(rows, chances=["permuted"])


def test_directions_in_a_plane_look_alike_only_beside_isotropic_ones(generator: torch.Generator) -> None:
    flat = torch.randn(400, 2, generator=generator) @ torch.randn(2, 20, generator=generator)
    judged = within(flat)
    assert bounds(judged.observed.mean)[0] > 0.99
    assert judged.chance["covariance"].mean.mean == pytest.approx(judged.observed.mean.mean, abs=1e-3)
    # an independent simulation
    simulated = torch.randn(400, 20, generator=generator)
    expected = cosines(simulated, simulated).fill_diagonal_(-1).amax(1).mean()
    assert judged.chance["isotropic"].mean.mean == pytest.approx(float(expected), abs=0.02)
    assert bounds(judged.chance["shuffled"].mean)[1] < 0.9
    assert within(flat) == judged
    assert within(flat, seed=1) != judged
    assert Judged.from_json(judged.to_json()) == judged


# --- intervals


def test_the_distribution_of_known_values(generator: torch.Generator) -> None:
    values = torch.tensor([0.995, -0.995, 0.005, torch.nan, 0.015])
    found = similarity(values, generator)
    assert found.count == sum(found.histogram) == 4
    assert (found.histogram[0], found.histogram[50], found.histogram[-1]) == (1, 2, 1)
    assert found.quantiles[0] == pytest.approx(-0.995)
    assert found.quantiles[3] == pytest.approx(0.01)
    assert found.mean.mean == pytest.approx(0.005)
    with pytest.raises(ValueError, match="all 2 are left out"):
        similarity(torch.full((2,), torch.nan), generator)


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def width(estimate: Estimate) -> float:
    low, high = bounds(estimate)
    return high - low


def covers(estimate: Estimate, truth: float) -> bool:
    low, high = bounds(estimate)
    return low <= truth <= high


def test_intervals_cover_as_often_as_they_say(generator: torch.Generator) -> None:
    hits = torch.zeros(4)
    for _ in range(200):
        latent, noise, other = torch.randn(3, 60, generator=generator).double()
        first, second = latent + 0.1 * noise + 0.3, latent
        paired = difference(first, second, generator, paired=True, replicates=300)
        apart = difference(first, 2 * other + 1, generator, paired=False, replicates=300)
        twice = mean(latent.repeat(2), generator, groups=torch.arange(60).repeat(2), replicates=300)
        hits += torch.tensor(
            [
                covers(mean(first, generator, replicates=300), 0.3),
                covers(paired, 0.3),
                covers(apart, -0.7),
                covers(twice, 0),
            ]
        )
        # what two dictionaries share is no part of the difference
        assert width(paired) < 0.3 * width(apart)
    assert (hits / 200 - 0.95).abs().max() < 0.045, hits / 200


def test_mutual_neighbors_are_drawn_together(generator: torch.Generator) -> None:
    # the spread of the mean over dictionaries drawn anew is what the interval of one of them should say
    means, with_pairs, alone = list[float](), list[float](), list[float]()
    for _ in range(60):
        found = nearest(torch.randn(200, 12, generator=generator))
        values = found.similarity[:, 0]
        group = pairs(found)
        assert torch.equal(group[found.index[:, 0]] == group, group.bincount(minlength=200)[group] == 2)
        means.append(float(values.mean()))
        for groups, widths in ((group, with_pairs), (None, alone)):
            interval = mean(values, generator, groups=groups, replicates=200)
            widths.append(width(interval) / 3.92)
    truth = float(torch.tensor(means).std())
    assert sum(with_pairs) / 60 == pytest.approx(truth, rel=0.2)
    assert sum(alone) / sum(with_pairs) == pytest.approx(1 / math.sqrt(1.55), rel=0.07)


def test_pairs_have_one_length(generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="got 3 and 2 values"):
        difference(torch.ones(3), torch.ones(2), generator, paired=True)
    left_out = torch.tensor([1.0, torch.nan, 3.0])
    assert difference(left_out, torch.tensor([0.0, 7, 1]), generator, paired=True).mean == 1.5


# --- along principal directions


def test_principal_directions_of_a_known_covariance(generator: torch.Generator) -> None:
    axes = torch.linalg.qr(torch.randn(5, 5, generator=generator).double()).Q
    z = torch.linalg.qr(torch.randn(400, 5, generator=generator).double()).Q
    z = torch.linalg.qr(z - z.mean(0)).Q * torch.tensor([7.0, 5, 3, 1, 0])
    x = z @ axes.T + 100
    torch.testing.assert_close((principal_directions(x, 4) @ axes[:, :4]).abs(), torch.eye(4).double())
    with pytest.raises(ValueError, match="5 principal directions were asked for, these 400 rows have 4"):
        principal_directions(x, 5)
    with pytest.raises(ValueError, match="finite"):
        principal_directions(x / 0, 1)


def test_faithfulness_is_that_of_each_direction_and_of_the_rows_in_question(generator: torch.Generator) -> None:
    x = torch.randn(500, 4, generator=generator) * torch.tensor([1.0, 4, 2, 0.5])
    x[:50, 1] += 300
    x_hat = 0.2 * x + 3
    x_hat[:, 2] = -x[:, 2]
    x_hat[50:, 1] = torch.randn(450, generator=generator)
    x_hat[:, 3] = 1
    torch.testing.assert_close(
        faithfulness_along(x, x_hat, 9 * torch.eye(4)[[0, 2]]), torch.tensor([1.0, -1], dtype=torch.float64)
    )
    assert faithfulness_along(x, x_hat, torch.eye(4))[3].isnan()
    everywhere = principal_faithfulness(x, x_hat, 3)
    later = principal_faithfulness(x, x_hat, 3, among=torch.arange(500) >= 50)
    assert everywhere[0] > 0.99
    # the direction is still that of the outliers
    expected = torch.corrcoef(torch.stack((x[50:, 1], x_hat[50:, 1])))[0, 1]
    assert float(later[0]) == pytest.approx(float(expected), abs=0.02)
    assert abs(float(later[0])) < 0.15
    torch.testing.assert_close(later[1:].round(decimals=1), torch.tensor([-1.0, 1], dtype=torch.float64))


# --- the map


def test_the_map_keeps_neighbors_and_separates_planted_clusters(generator: torch.Generator) -> None:
    centers = 3 * torch.randn(2, 24, generator=generator)
    points = {
        name: center + torch.randn(80, 24, generator=generator) for name, center in zip("ab", centers, strict=True)
    }
    points["b"] *= 50
    points["b"][3] = 0
    alive = {"b": torch.arange(80) != 3}
    found = feature_map(points, 4, alive=alive, most=150)
    assert (found.of, len(found.x), len(found.latent)) == (159, 150, 150)
    assert feature_map(points, 4, alive=alive, most=150) == found
    assert FeatureMap.from_json(found.to_json()) == found

    group, latent = torch.tensor(found.group), torch.tensor(found.latent)
    plane = torch.tensor([found.x, found.y]).T
    assert not ((group == 1) & (latent == 3)).any()
    assert len(set(zip(found.group, found.latent, strict=True))) == 150
    rows = units(torch.stack([points["ab"[g]][i] for g, i in zip(found.group, found.latent, strict=True)]))
    kept = trustworthiness(rows.numpy(), plane.numpy())
    shuffled = trustworthiness(rows.numpy(), plane[torch.randperm(150, generator=generator)].numpy())
    assert kept > 0.75 > 0.6 > shuffled
    nearer = torch.cdist(plane, plane).fill_diagonal_(torch.inf).argmin(1)
    assert (group[nearer] == group).all()


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ValueError, match=r"umap-learn: pip install 'innerspace\[language\]'"):
        feature_map({"a": torch.eye(20)}, 0)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ValueError, match="an assignment needs scipy"):
        assign(torch.eye(2), torch.eye(2))


def test_a_map_needs_directions() -> None:
    with pytest.raises(ValueError, match="by 15 neighbors needs more directions than that, got 15"):
        feature_map({"a": torch.randn(9, 4), "b": torch.randn(6, 4)}, 0)
    with pytest.raises(ValueError, match="got 0"):
        feature_map({}, 0)
    with pytest.raises(ValueError, match="rows 2 of b are zero"):
        feature_map({"a": torch.randn(30, 3), "b": torch.eye(4)[:, :3].roll(3, 0)}, 0)
    with pytest.raises(ValueError, match="a mask for 'c' was given; the groups are a"):
        feature_map({"a": torch.randn(30, 3)}, 0, alive={"c": torch.ones(30, dtype=torch.bool)})
