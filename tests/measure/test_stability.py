"""Two fits next to each other: the same found again has no angle, whatever its order and signs; chance has one."""

import pytest
import torch

from innerspace.decompose.directions import Directions, Origin
from innerspace.decompose.subspaces import Subspaces, random_rotation
from innerspace.measure.coding_cost import coding_cost
from innerspace.measure.stability import cosine_angles, stability, subspace_angles


def turned(angle: float) -> torch.Tensor:
    """The identity, with the plane of coordinates 0 and 2 turned."""
    rotation = torch.eye(4)
    c, s = torch.tensor(angle).deg2rad().cos(), torch.tensor(angle).deg2rad().sin()
    rotation[0, 0], rotation[0, 2], rotation[2, 0], rotation[2, 2] = c, s, -s, c
    return rotation


@pytest.mark.parametrize("angle", [0.01, 30.0, 60.0])
def test_principal_angles_between_partners(angle: float) -> None:
    one, other = Subspaces.identity(4, [2, 2]), Subspaces(turned(angle), [2, 2])
    # both parts hold one coordinate that stayed and one that turned
    assert subspace_angles(one, other).sort().values.tolist() == pytest.approx([0, 0, angle, angle], abs=2e-2)


def test_order_turns_within_and_signs_do_not_matter() -> None:
    rotation = random_rotation(6, torch.Generator().manual_seed(0))
    one = Subspaces(rotation, [2, 2, 2])
    inner = random_rotation(2, torch.Generator().manual_seed(1))
    rows = torch.cat([-rotation[4:], inner @ rotation[:2], rotation[2:4].flip(0)])
    found = stability(one, Subspaces(rows, [2, 2, 2]))
    assert found.angle.mean == pytest.approx(0.0, abs=0.05)
    # also beside a partition that was itself drawn by a small seed
    assert found.chance > 30


def test_latents_are_matched_by_cosine_one_to_one() -> None:
    rows = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    order = torch.tensor([3, 1, 4, 0, 2])
    assert cosine_angles(rows, 3.0 * rows[order]).abs().max() < 0.1
    # what points the other way is not the same latent
    assert cosine_angles(rows[:1], -rows[:1])[0] == pytest.approx(180.0, abs=0.1)
    mask = torch.tensor([True, True, False, False, False])
    assert len(cosine_angles(rows, rows, mask, mask)) == 2
    origins = [Origin(f"f{i}", "a", "b") for i in range(5)]
    vectors = Directions(rows, torch.ones(5), origins)
    found = stability(vectors, Directions(rows[order] + 0.01, torch.ones(5), origins))
    assert found.angle.mean < 2
    assert found.angle.high is not None
    assert found.angle.high < found.chance


def test_what_has_no_common_measure_is_refused() -> None:
    vectors = Directions(torch.eye(4)[:1], torch.ones(1), [Origin("f", "a", "b")])
    with pytest.raises(ValueError, match="a Subspaces and a Directions have no parts that could be the same"):
        stability(Subspaces.identity(4, [2, 2]), vectors)
    with pytest.raises(ValueError, match="they divide 4 and 6"):
        stability(Subspaces.identity(4, [2, 2]), Subspaces.identity(6, [3, 3]))


def test_operations_of_a_rotation_are_counted() -> None:
    found = coding_cost(Subspaces.identity(16, [8, 8]), torch.randn(32, 16), rounds=3)
    # one product there and one back, two operations for every entry
    assert found.flops == 2 * (2 * 16 * 16)
    assert found.milliseconds.mean > 0
    with pytest.raises(ValueError, match="at least 3 rounds, given 0 and 3"):
        coding_cost(Subspaces.identity(4, [4]), torch.zeros(0, 4), rounds=3)
