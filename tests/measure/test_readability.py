"""Reading from parts: the best part is found, parts that are needed are counted, and noise tells nothing."""

import pytest
import torch
from torch import Tensor

from innerspace.decompose.directions import Directions, Origin
from innerspace.decompose.subspaces import Subspaces
from innerspace.measure.part_labels import Reading
from innerspace.measure.readability import ranked, readability

READING = Reading(splits=3, most=2000)


def planted(rows: int = 1200) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """One label lies along coordinate 2, one is spread over coordinates 3 to 6, one is nowhere."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 8, generator=generator)
    one, spread, none = (torch.randint(2, (rows,), generator=generator) for _ in range(3))
    x[:, 2] += 6.0 * one
    x[:, 3:7] += 1.5 * spread[:, None]
    return x, {"one": one, "spread": spread, "none": none}, torch.arange(rows) // 4


def test_a_label_of_one_coordinate_needs_one_part() -> None:
    x, labels, groups = planted()
    one, spread, none = readability(Subspaces.identity(8, [1] * 8), x, labels, groups, reading=READING)
    assert one.best.mean > 0.99
    assert (one.needed, one.reached, one.chance) == (1.0, 1.0, 0.5)
    # one of four equal shares: d′ = 1.5 alone and 3 together
    assert spread.best.mean == pytest.approx(0.773, abs=0.03)
    assert spread.together.mean == pytest.approx(0.933, abs=0.02)
    assert spread.whole.mean == pytest.approx(spread.together.mean, abs=0.01)
    assert 2 < spread.needed <= 4
    assert abs(none.best.mean - 0.5) < 0.06


def test_a_part_of_several_coordinates_is_read_whole() -> None:
    x, labels, groups = planted()
    order = [3, 4, 5, 6, 0, 1, 2, 7]
    via = Subspaces(torch.eye(8)[order], [4, 4])
    _, spread, _ = readability(via, x, labels, groups, reading=READING)
    assert spread.needed == 1.0
    assert spread.best.mean == pytest.approx(0.933, abs=0.02)


def test_parts_are_ranked_by_how_far_classes_are_apart() -> None:
    x, labels, _ = planted()
    singles = [slice(i, i + 1) for i in range(8)]
    assert ranked(x, singles, labels["one"])[0] == 2
    assert set(ranked(x, singles, labels["spread"])[:4]) == {3, 4, 5, 6}
    # a coordinate that never varies comes last
    dead = torch.cat([x, torch.zeros(len(x), 1)], 1)
    assert ranked(dead, [*singles, slice(8, 9)], labels["one"])[-1] == 8
    assert ranked(x, [slice(0, 2), slice(2, 4), slice(4, 8)], labels["spread"])[0] == 2


def test_a_split_in_which_parts_never_tell_enough_counts_twice_the_parts() -> None:
    x, labels, groups = planted()
    # the label can be read from the state, but these directions do not have it
    rows = torch.eye(8)[:2]
    via = Directions(rows, torch.ones(2), [Origin("a", "x", "y"), Origin("b", "x", "y")])
    (one,) = readability(via, x, {"one": labels["one"]}, groups, reading=READING)
    assert one.reached == 0.0
    assert one.needed == 4.0
    assert one.whole.mean > 0.99


def test_a_label_of_one_class_is_refused() -> None:
    x, _, groups = planted()
    with pytest.raises(ValueError, match="'same' has fewer than two classes"):
        readability(Subspaces.identity(8, [1] * 8), x, {"same": torch.zeros(len(x)).long()}, groups, reading=READING)
