"""Partitions by other means: each finds what it is made to find, and says what it cannot place."""

import itertools

import pytest
import torch
from torch import Tensor

from innerspace.decompose.dictionary import Dictionary, Form
from innerspace.decompose.nonlinearities import ReLU
from innerspace.decompose.subspaces import random_rotation
from innerspace.learn.partitions import (
    Clustering,
    ClusterRule,
    NeighborGraph,
    SpectralClusters,
    cluster_partition,
    grouped,
    independent_partition,
    principal_partition,
)
from innerspace.measure.recovery import recovery

# the latents of a cluster resemble each other, so their sum varies little but along the cluster's axis
TOLERANCE = 0.003


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spectrum(deviations: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gaussian rows with exactly these deviations along known axes."""
    axes = random_rotation(len(deviations), generator(seed))
    white = torch.linalg.qr(torch.randn(500, len(deviations), generator=generator(seed), dtype=torch.float64))[0]
    white = torch.linalg.qr(white - white.mean(0))[0] * 500**0.5
    return (white * deviations).float() @ axes + 3.0, axes


def shells(sizes: tuple[int, ...], rows: int, seed: int) -> Tensor:
    """In each block evenly distributed directions with a length of its own: uncorrelated inside, yet dependent."""
    draw = generator(seed)
    blocks = [torch.randn(rows, size, generator=draw) for size in sizes]
    lengths = [torch.rand(rows, 1, generator=draw) ** 2 for _ in sizes]
    return torch.cat([length * block for block, length in zip(blocks, lengths, strict=True)], 1)


@pytest.mark.parametrize("largest", ["first", "last"])
def test_principal_parts_hold_the_axes_in_order_of_their_variance(largest: str) -> None:
    deviations = torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0])
    x, axes = spectrum(deviations)
    found = principal_partition(x, [3, 2], largest="first" if largest == "first" else "last")
    top, low = ([0, 4, 2], [3, 1]) if largest == "first" else ([1, 3, 2], [4, 0])
    assert recovery(found.subspaces, [axes[top], axes[low]]).least_purity > 1 - 1e-5
    variances = ((x - x.mean(0)) @ found.subspaces.rotation.detach().T).square().mean(0)
    assert variances.tolist() == pytest.approx(sorted([25, 1, 9, 4, 16], reverse=largest == "first"), rel=1e-4)
    assert found.unplaced == 0


def test_directions_without_variance_are_counted_and_at_the_far_end() -> None:
    x, axes = spectrum(torch.tensor([2.0, 0.0, 1.0, 0.0]))
    for largest, part in (("first", 1), ("last", 0)):
        found = principal_partition(x, [2, 2], largest=largest)
        assert found.unplaced == 2
        assert float((found.subspaces.basis(part).detach() @ axes[[1, 3]].T).square().sum()) == pytest.approx(
            2, abs=1e-4
        )
    with pytest.raises(ValueError, match="the 5 rows are all alike"):
        principal_partition(torch.ones(5, 3), [2, 1])
    with pytest.raises(ValueError, match="finite rows"):
        principal_partition(torch.full((5, 3), torch.nan), [2, 1])
    with pytest.raises(ValueError, match="add up to 3"):
        principal_partition(torch.randn(5, 3, generator=generator()), [2, 2])


def test_independent_subspaces_are_found_in_any_rotation_and_scale() -> None:
    sizes = (3, 2, 2)
    rotation = random_rotation(7, generator(1))
    x = (shells(sizes, 1500, seed=2) * torch.tensor([1, 1, 1, 4, 4, 0.5, 0.5])) @ rotation
    found = independent_partition(x, sizes)
    truth = list(rotation.split(list(sizes)))
    score = recovery(found.subspaces, truth)
    assert score.least_purity > 0.98
    assert score.overlap > 0.98
    assert found.unplaced == 0


def test_independent_components_leave_what_does_not_vary_to_the_last_part() -> None:
    rotation = random_rotation(6, generator(3))
    x = shells((2, 2), 1500, seed=4) @ rotation[:4]
    found = independent_partition(x, [2, 2, 2])
    assert found.unplaced == 2
    assert recovery(found.subspaces, [rotation[:2], rotation[2:4], rotation[4:]]).least_purity > 0.98
    again = independent_partition(x, [2, 2, 2])
    assert torch.equal(found.subspaces.rotation, again.subspaces.rotation)


def test_components_that_do_not_converge_are_refused() -> None:
    x = torch.randn(300, 6, generator=generator())
    with pytest.raises(ValueError, match="did not converge in 2 iterations"):
        independent_partition(x, [3, 3], iterations=2)


def test_groups_of_given_sizes_are_the_best_of_all() -> None:
    noise = torch.rand(6, 6, generator=generator(5))
    likeness = noise + noise.T
    sizes = [3, 2, 1]

    def inside(group: Tensor) -> float:
        same = (group[:, None] == group) & ~torch.eye(6, dtype=torch.bool)
        return float(likeness[same].sum())

    begin = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    best = max(inside(begin[list(order)]) for order in itertools.permutations(range(6)))
    found = grouped(likeness, sizes, generator())
    assert found.bincount().tolist() == sizes
    assert inside(found) == pytest.approx(best)
    with pytest.raises(ValueError, match="add up to 6"):
        grouped(likeness, [3, 2], generator())


def planted_dictionary() -> tuple[Dictionary, Tensor, Tensor]:
    """Six latents around an axis of a space of 3 dimensions, five in a plane orthogonal to it, one dead; and rows."""
    draw = generator()
    rotation = random_rotation(6, draw)
    first = 0.35 * torch.randn(6, 3, generator=draw) + torch.tensor([1.0, 0, 0])
    second = 0.3 * torch.randn(5, 2, generator=draw) + torch.tensor([1.0, 0])
    directions = torch.zeros(12, 6)
    directions[:6], directions[6:11] = first @ rotation[:3], second @ rotation[3:5]
    dictionary = Dictionary(6, 12, ReLU(), form=Form(decoder="free", pre_bias=False, tied=True))
    dictionary.load_state_dict({**dictionary.state_dict(), "decoder": directions, "encoder": directions})
    strength = torch.rand(2, 400, 1, generator=draw)
    which = torch.randint(6, (400,), generator=draw), torch.randint(5, (400,), generator=draw)
    x = strength[0] * directions[which[0]] + strength[1] * directions[6:][which[1]]
    return dictionary, x, rotation


@pytest.mark.parametrize("clustering", [NeighborGraph(3, 0.5), SpectralClusters(2)])
def test_clusters_of_a_dictionary_become_the_parts_that_they_span(clustering: Clustering) -> None:
    dictionary, x, rotation = planted_dictionary()
    truth = [rotation[:3], rotation[3:5], rotation[5:]]
    for order, first in (("cosine", None), ("size", 3)):
        found = cluster_partition(
            x, dictionary, clustering, ClusterRule("size" if first else "cosine", tolerance=TOLERANCE)
        )
        assert sorted(found.subspaces.sizes) == [1, 2, 3], order
        assert first in (None, found.subspaces.sizes[0])
        assert found.subspaces.sizes[-1] == found.unplaced == 1
        score = recovery(found.subspaces, truth)
        assert score.least_purity > 1 - 1e-5
        assert score.overlap > 1 - 1e-5


def test_clusters_can_be_cut_to_given_sizes() -> None:
    dictionary, x, rotation = planted_dictionary()
    rule = ClusterRule("size")
    found = cluster_partition(x, dictionary, NeighborGraph(3, 0.5), rule, sizes=[2, 2, 2])
    assert found.subspaces.sizes == (2, 2, 2)
    # the two leading directions of the first cluster, the whole second one, and what is left of both
    assert found.unplaced == 2
    inside = [float((found.subspaces.basis(i).detach() @ rotation[:3].T).square().sum()) for i in range(3)]
    assert inside == pytest.approx([2, 0, 1], abs=1e-4)
    large = cluster_partition(x, dictionary, NeighborGraph(3, 0.5), rule, sizes=[4, 2])
    assert large.unplaced == 1
    inside = [float((large.subspaces.basis(i).detach() @ rotation[:3].T).square().sum()) for i in range(2)]
    assert inside == pytest.approx([3, 0], abs=1e-4)


def test_what_an_earlier_cluster_spans_is_not_given_again() -> None:
    dictionary, x, rotation = planted_dictionary()
    one = cluster_partition(x, dictionary, SpectralClusters(1), ClusterRule(tolerance=TOLERANCE))
    assert one.subspaces.sizes == (5, 1)
    many = cluster_partition(x, dictionary, SpectralClusters(5), ClusterRule(smallest=1, tolerance=TOLERANCE))
    assert sum(many.subspaces.sizes[:-1]) == 5
    assert float((many.subspaces.basis(len(many.subspaces.sizes) - 1).detach() @ rotation[5]).abs()) > 0.999


def test_clusters_that_cannot_be_parts_are_refused() -> None:
    dictionary, x, _ = planted_dictionary()
    with pytest.raises(ValueError, match="none of 2 clusters has 7 directions"):
        cluster_partition(x, dictionary, SpectralClusters(2), ClusterRule(smallest=7))
    with pytest.raises(ValueError, match="7 finite columns are needed of a dictionary that writes width 6"):
        cluster_partition(torch.ones(4, 7), dictionary, SpectralClusters(2))
    with pytest.raises(ValueError, match="add up to 6"):
        cluster_partition(x, dictionary, SpectralClusters(2), sizes=[3, 2])
    with pytest.raises(ValueError, match="a tolerance between 0 and 1"):
        ClusterRule(tolerance=0)


def test_components_of_the_neighbor_graph() -> None:
    angle = torch.tensor([0, 0.1, 0.2, 1.5, 1.6, 3.1])
    directions = torch.stack([angle.cos(), angle.sin()], 1)
    assert NeighborGraph(neighbors=2, cosine=0.9).label(directions).tolist() == [0, 0, 0, 1, 1, 2]
    # a chain holds together although its ends are far apart
    chain = torch.linspace(0, 3, 40)
    assert NeighborGraph(2, 0.99).label(torch.stack([chain.cos(), chain.sin()], 1)).max() == 0
    with pytest.raises(ValueError, match="the 6 nearest"):
        NeighborGraph(6).label(directions)


def test_spectral_clusters() -> None:
    draw = generator(7)
    around = torch.eye(8)[[0, 0, 0, 0, 3, 3, 3, 5, 5, 5, 5]]
    directions = around + 0.1 * torch.randn(11, 8, generator=draw)
    label = SpectralClusters(3).label(directions)
    same = label[:, None] == label
    assert torch.equal(same, around @ around.T > 0)
    with pytest.raises(ValueError, match="1 … 11 clusters, not 12"):
        SpectralClusters(12).label(directions)
