"""Collapse metrics: closed forms, the definitions spelled out, and nulls that know chance."""

import itertools

import pytest
import torch
from torch import Tensor

from innerspace.measure.collapse import (
    Collapse,
    cdnv,
    collapse,
    directional_cdnv,
    effective_rank,
    nc1,
    std_of_normalized,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def square(x: float, y: float = 0.0) -> Tensor:
    """Four points with mean (x, y) and variance 1 along each axis."""
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2))) + torch.tensor([x, y])


def three(n: int = 90, d: int = 6) -> tuple[Tensor, Tensor]:
    """Three classes of unequal size, spread and distance."""
    rows = torch.randn(n, d, generator=seeded(0)).double()
    labels = (torch.arange(n) % 6).clamp_max(2)
    rows *= 1 + labels[:, None]
    rows[:, 0] += torch.tensor([0.0, 2.0, 9.0]).double()[labels]
    rows[:, 1] += torch.tensor([0.0, 3.0, 1.0]).double()[labels]
    return rows, labels


def measured(rows: Tensor, labels: Tensor, groups: Tensor | None = None, permutations: int = 100) -> Collapse:
    names = ("low", "moderate", "high")[: int(labels.max()) + 1]
    return collapse(
        rows, labels, names, seeded(1), feature="speed", site="agent.2", groups=groups, permutations=permutations
    )


def test_two_squares() -> None:
    rows, labels = torch.cat((square(0), square(2))), torch.arange(8) // 4
    assert cdnv(rows, labels) == pytest.approx(0.5)
    assert cdnv(rows, labels, ratio_of_means=True) == pytest.approx(0.5)
    # half of the variance lies across the axis between the means
    assert directional_cdnv(rows, labels) == pytest.approx(0.25)
    # Σ_W = I, Σ_B = diag(1, 0), two classes
    assert nc1(rows, labels) == pytest.approx(0.5)


def test_ratio_of_means_looks_more_collapsed() -> None:
    rows, labels = torch.cat((square(0), square(2), square(10))), torch.arange(12) // 4
    assert cdnv(rows, labels) == pytest.approx((2 / 4 + 2 / 64 + 2 / 100) / 3)
    assert cdnv(rows, labels, ratio_of_means=True) == pytest.approx(2 / ((4 + 64 + 100) / 3))


def test_metrics_are_their_definitions() -> None:
    rows, labels = three()
    parts = [rows[labels == c] for c in range(3)]
    means = [part.mean(0) for part in parts]
    covariances = [torch.cov(part.T, correction=0) for part in parts]
    shares = [len(part) / len(rows) for part in parts]
    within = sum(s * c for s, c in zip(shares, covariances, strict=True))
    between = sum(s * (m - rows.mean(0)).outer(m - rows.mean(0)) for s, m in zip(shares, means, strict=True))
    assert isinstance(within, Tensor)
    assert isinstance(between, Tensor)
    expected = torch.trace(within @ torch.linalg.pinv(between, rtol=1e-9)).item() / 3
    assert nc1(rows, labels) == pytest.approx(expected, rel=1e-9)

    plain, directional = [], []
    for i, j in itertools.combinations(range(3), 2):
        axis = means[i] - means[j]
        both = covariances[i] + covariances[j]
        plain.append(both.trace() / (2 * axis @ axis))
        directional.append(axis @ both @ axis / (axis @ axis) / (2 * axis @ axis))
    assert cdnv(rows, labels) == pytest.approx(torch.stack(plain).mean().item(), rel=1e-9)
    assert directional_cdnv(rows, labels) == pytest.approx(torch.stack(directional).mean().item(), rel=1e-9)


def test_metrics_do_not_depend_on_place_scale_or_rotation() -> None:
    rows, labels = three()
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=seeded(2)).double())[0]
    moved = 7 * rows @ rotation + 100
    for metric in (nc1, cdnv, directional_cdnv):
        assert metric(moved, labels) == pytest.approx(metric(rows, labels), rel=1e-7)


def test_std_of_normalized_states() -> None:
    rows = torch.randn(4000, 128, generator=seeded(3))
    assert std_of_normalized(rows) == pytest.approx(0.0884, abs=0.001)
    assert std_of_normalized(torch.ones(50, 128)) == pytest.approx(0, abs=1e-12)


def test_effective_rank_counts_equal_axes() -> None:
    axes = torch.eye(8)[:3]
    assert effective_rank(torch.cat((axes, -axes))) == pytest.approx(3)
    assert effective_rank(torch.ones(5, 8)) == 0


def test_a_simplex_is_equinorm_and_equiangular() -> None:
    corners = torch.eye(3).double() * 4
    rows = corners.repeat_interleave(10, 0) + 0.01 * torch.randn(30, 3, generator=seeded(4)).double()
    labels = torch.arange(3).repeat_interleave(10)
    found = measured(rows, labels)
    assert found.equinorm.value == pytest.approx(0, abs=0.01)
    assert found.equiangularity.value == pytest.approx(0, abs=0.01)
    assert found.angles[0][1] == pytest.approx(120, abs=0.5)
    assert found.distances[0][2] == pytest.approx(32**0.5, abs=0.05)
    assert found.norms[1] == pytest.approx((32 / 3) ** 0.5, abs=0.05)
    bent = measured(rows + 6 * (labels == 2)[:, None] * torch.eye(3).double()[0], labels)
    assert bent.equinorm.value > 0.05
    assert bent.equiangularity.value > 0.1


def test_null_knows_chance() -> None:
    rows = torch.randn(600, 16, generator=seeded(5)).double()
    labels = torch.arange(600) % 3
    chance = measured(rows, labels)
    for found in (chance.nc1, chance.cdnv, chance.cdnv_ratio_of_means, chance.directional_cdnv):
        assert found.z is not None
        assert abs(found.z) < 3
        assert found.null_low < found.null_mean < found.null_high
    rows[:, 0] += labels
    planted = measured(rows, labels)
    for found in (planted.nc1, planted.cdnv, planted.cdnv_ratio_of_means, planted.directional_cdnv):
        assert found.z is not None
        assert found.z < -3
        assert found.value < found.null_low


def test_null_is_the_metric_of_permuted_labels() -> None:
    rows, labels = three(n=30)
    found = measured(rows, labels, permutations=400)
    shuffles = [labels[torch.randperm(30, generator=seeded(seed))] for seed in range(400)]
    for name, metric in (("nc1", nc1), ("directional_cdnv", directional_cdnv)):
        values = torch.tensor([metric(rows, shuffled) for shuffled in shuffles])
        null = getattr(found, name)
        # medians of both, for the tails are heavy
        assert null.null_low < values.median() < null.null_high
        assert null.null_low == pytest.approx(values.quantile(0.025).item(), rel=0.25)


def test_rows_of_a_scene_move_together() -> None:
    scenes = torch.arange(600) // 10
    rows = torch.randn(60, 8, generator=seeded(6)).double()[scenes]
    rows += 0.1 * torch.randn(600, 8, generator=seeded(7)).double()
    labels = torch.randint(2, (60,), generator=seeded(8))[scenes]
    alone, together = measured(rows, labels).cdnv, measured(rows, labels, scenes).cdnv
    assert alone.z is not None
    assert together.z is not None
    # sixty scenes look like six hundred witnesses if their rows are torn apart
    assert alone.z < -4
    assert abs(together.z) < 2.5
    mixed = torch.randperm(600, generator=seeded(9))
    again = measured(rows[mixed], labels[mixed], scenes[mixed]).cdnv
    assert again.value == pytest.approx(together.value)
    assert again.null_mean == pytest.approx(together.null_mean, rel=1e-6)


def test_record_goes_to_json_and_back() -> None:
    rows, labels = three()
    labels[labels == 1] = -1
    labels[0] = 1
    found = measured(rows, labels)
    assert (found.classes, found.left_out) == (("low", "high"), ("moderate",))
    assert found.counts == (14, 60)
    assert found.equinorm.z is None
    assert Collapse.from_json(found.to_json()) == found
    assert found == measured(rows, labels)


def test_says_what_is_wrong() -> None:
    rows, labels = three()
    with pytest.raises(ValueError, match="two classes with two rows each are needed, got '0': 15"):
        cdnv(rows, torch.where(labels == 0, 0, -1))
    with pytest.raises(ValueError, match="label 5 has no name; the classes are a, b"):
        collapse(rows, labels + 3, ("a", "b"), seeded(0), feature="speed", site="agent.2")
    with pytest.raises(ValueError, match="1 of 90 rows are not finite"):
        nc1(rows.index_fill(0, torch.tensor([4]), torch.nan), labels)
    with pytest.raises(ValueError, match="classes '0' and '1' have the same mean"):
        cdnv(torch.cat((square(0), square(0), square(3))), torch.arange(12) // 4)
    with pytest.raises(ValueError, match="at least two permutations, got 1"):
        measured(rows, labels, permutations=1)
