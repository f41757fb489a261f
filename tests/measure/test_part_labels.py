"""What parts tell: a label that lies in one part is read there and nowhere else, linearly or not, and fairly."""

import math

import pytest
import torch
from torch import Tensor

from innerspace.decompose.subspaces import Subspaces
from innerspace.measure.part_labels import PartLabels, Reading, equally_many, most_frequent, part_labels

SIZES, ROWS = (6, 3, 3), 1200


def planted() -> tuple[Subspaces, Tensor, dict[str, Tensor], Tensor]:
    """A line of three classes in part 1, a ring around a disk in part 2, noise elsewhere; documents of ten rows."""
    generator = torch.Generator().manual_seed(0)
    hidden = Subspaces.random(12, SIZES, generator)
    z = torch.randn(ROWS, 12, generator=generator)
    line = torch.randint(0, 3, (ROWS,), generator=generator)
    z[:, 6] = 4.0 * line + 0.5 * z[:, 6]
    ring = torch.randint(0, 2, (ROWS,), generator=generator)
    angle = 2 * math.pi * torch.rand(ROWS, generator=generator)
    z[:, 9:11] = (0.3 + 3 * ring)[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    labels = {"line": line, "ring": ring, "chance": torch.randint(0, 4, (ROWS,), generator=generator)}
    return hidden, z @ hidden.rotation.detach(), labels, torch.arange(ROWS) // 10


@pytest.fixture(scope="module")
def told() -> PartLabels:
    return part_labels(*planted(), reading=Reading(splits=4, rotations=2))


def test_a_label_is_read_from_its_part_and_from_no_other(told: PartLabels) -> None:
    line = [told.linear.parts[part][0].mean for part in range(3)]
    assert line[1] > 0.99
    assert max(line[0], line[2]) < 0.42
    assert told.linear.whole[0].mean > 0.99
    assert told.neighbors.parts[1][0].mean > 0.99
    # a random part of the same size holds some of it
    assert 0.42 < told.linear.random[1][0].mean < 0.98


def test_what_is_not_linear_is_read_by_neighbors_alone(told: PartLabels) -> None:
    assert told.neighbors.parts[2][1].mean > 0.99
    assert told.linear.parts[2][1].mean < 0.62
    assert told.neighbors.parts[0][1].mean < 0.6


def test_what_is_nowhere_is_read_at_chance_within_the_interval(told: PartLabels) -> None:
    for reader in (told.linear, told.neighbors):
        for part in range(3):
            estimate = reader.parts[part][2]
            assert estimate.low is not None
            assert estimate.high is not None
            assert estimate.low - 0.02 < 0.25 < estimate.high + 0.02
            assert estimate.high - estimate.low < 0.2


def test_the_record_says_what_was_read(told: PartLabels) -> None:
    assert told.labels == ("line", "ring", "chance")
    assert told.classes == (3, 2, 4)
    assert told.rows == (ROWS, ROWS, ROWS)
    assert 1 / 3 <= told.majority[0] < 0.4
    assert PartLabels.from_json(told.to_json()) == told


def test_the_linear_reader_is_fishers(told: PartLabels) -> None:
    """All coordinates at once, against scikit-learn on the same split."""
    discriminant = pytest.importorskip("sklearn.discriminant_analysis")
    hidden, rows, labels, groups = planted()
    reading = Reading(splits=1, rotations=1, ridge=0.0, most=ROWS)
    found = part_labels(hidden, rows, {"line": labels["line"]}, groups, reading=reading, seed=3)
    generator = torch.Generator().manual_seed(3)
    Subspaces.random(12, SIZES, generator)
    order = torch.randperm(ROWS, generator=generator)
    judged = torch.rand(120, generator=generator).argsort() < 36
    side = judged[groups[order]]
    x, y = rows[order].double().numpy(), labels["line"][order].numpy()
    fitted = discriminant.LinearDiscriminantAnalysis(solver="lsqr", priors=[1 / 3] * 3).fit(x[~side], y[~side])
    right = fitted.predict(x[side]) == y[side]
    balanced = sum(right[y[side] == c].mean() for c in range(3)) / 3
    assert found.linear.whole[0].mean == pytest.approx(balanced, abs=2e-3)


def test_groups_are_on_one_side_only() -> None:
    """A label that is the document itself cannot be learned, though neighbors in a document are all but equal."""
    generator = torch.Generator().manual_seed(1)
    center = torch.randn(60, 8, generator=generator).repeat_interleave(10, 0)
    rows = center + 0.01 * torch.randn(600, 8, generator=generator)
    label = torch.randint(0, 2, (60,), generator=generator).repeat_interleave(10)
    subspaces, together = Subspaces.identity(8, (4, 4)), torch.arange(60).repeat_interleave(10)
    few = Reading(neighbors=3)
    alone = part_labels(subspaces, rows, {"document": label}, torch.arange(600), reading=few)
    apart = part_labels(subspaces, rows, {"document": label}, together, reading=few)
    assert alone.neighbors.parts[0][0].mean > 0.99
    assert apart.neighbors.parts[0][0].mean < 0.7


def test_rare_classes_count_as_much_and_rows_without_label_not_at_all() -> None:
    generator = torch.Generator().manual_seed(2)
    label = (torch.arange(2000) % 20 == 0).long()
    rows = torch.randn(2000, 4, generator=generator)
    rows[:, 0] += 1.5 * label
    label[::7] = -1
    found = part_labels(Subspaces.identity(4, (2, 2)), rows, {"rare": label}, torch.arange(2000))
    assert found.rows == (int((label >= 0).sum()),)
    assert found.majority[0] > 0.94
    # always naming the large class would be right in half of the cases, the best that can be done in Φ(0.75)
    assert found.linear.parts[0][0].mean == pytest.approx(0.773, abs=0.05)
    assert 0.6 < found.neighbors.parts[0][0].mean < 0.8


def test_classes_of_values() -> None:
    values = torch.tensor([7, 7, 7, 3, 3, 9, 1])
    assert most_frequent(values, 2).tolist() == [0, 0, 0, 1, 1, -1, -1]
    assert equally_many(torch.arange(12), 3).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert equally_many(torch.tensor([0.0, 0.0, 0.0, 1.0]), 2).tolist() == [0, 0, 0, 1]


def test_what_cannot_be_read_is_refused() -> None:
    subspaces, rows, groups = Subspaces.identity(4, (2, 2)), torch.randn(20, 4), torch.arange(20)
    label = {"one": torch.zeros(20, dtype=torch.long)}
    with pytest.raises(ValueError, match="'one' has fewer than two classes"):
        part_labels(subspaces, rows, label, groups)
    with pytest.raises(ValueError, match="1 of 20 rows"):
        part_labels(subspaces, rows.index_fill(0, torch.tensor([2]), math.nan), label, groups)
    with pytest.raises(ValueError, match="width 3"):
        part_labels(subspaces, rows[:, :3], label, groups)
    with pytest.raises(ValueError, match="two classes, not 1"):
        most_frequent(groups, 1)
    with pytest.raises(ValueError, match="two classes, not 0"):
        equally_many(groups, 0)
    with pytest.raises(ValueError, match="splits should be at least 1"):
        Reading(splits=0)
    with pytest.raises(ValueError, match="should be shares"):
        Reading(held_out=1.0)
