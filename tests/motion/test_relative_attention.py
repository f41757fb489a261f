import math

import pytest
import torch
from torch import Tensor

from innerspace.motion.forecasters.relative_attention import (
    PoseEncoding,
    Poses,
    RelativeAttention,
    RelativeBlock,
    neighbors,
)

ENCODING = PoseEncoding(frequencies=3, turns=2)


def poses(batch: int, n: int, *, missing: float = 0.3) -> Poses:
    position = 20 * torch.randn(batch, n, 2).double()
    return Poses(position, 3 * torch.randn(batch, n).double(), torch.rand(batch, n) > missing)


def moved(given: Poses, angle: float, shift: Tensor) -> Poses:
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)
    return Poses(given.position @ turn + shift, given.heading + angle, given.present)


def textbook(
    attention: RelativeAttention, query: Tensor, memory: Tensor, where: Poses, seen: Tensor
) -> tuple[Tensor, Tensor]:
    """KNARPE as it is written, of every query to all it sees, pair by pair; and the weights of the first head."""
    width, heads = attention.width, attention.heads
    each, size = width // heads, ENCODING.size
    (key, key_of_pose), (value, value_of_pose) = (
        linear.weight.split((width, size), 1) for linear in (attention.key, attention.value)
    )
    answers, weights = torch.zeros_like(query), torch.zeros(*seen.shape).double()
    for b in range(query.shape[0]):
        for i in range(query.shape[1]):
            logits, gathered = list[Tensor](), list[Tensor]()
            for j in range(memory.shape[1]):
                away = where.position[b, j] - where.position[b, i]
                c, s = where.heading[b, i].cos(), where.heading[b, i].sin()
                offset = torch.stack((c * away[0] + s * away[1], c * away[1] - s * away[0]))
                r = ENCODING(offset, where.heading[b, j] - where.heading[b, i])
                k, v = key @ memory[b, j] + key_of_pose @ r, value @ memory[b, j] + value_of_pose @ r
                q = attention.query(query[b, i])
                logits.append((q * k).view(heads, each).sum(-1) / math.sqrt(each))
                gathered.append((v + attention.value.bias).view(heads, each))
            p = torch.stack(logits).masked_fill(~seen[b, i, :, None], -torch.inf).softmax(0)
            answers[b, i] = attention.out((p[..., None] * torch.stack(gathered)).sum(0).flatten())
            weights[b, i] = p[:, 0]
    return answers, weights


@pytest.mark.parametrize("count", [3, 7, 50])
def test_it_is_full_attention_of_which_all_but_the_nearest_are_hidden(count: int) -> None:
    attention, where = RelativeAttention(8, 2, ENCODING).double(), poses(3, 7)
    x = torch.randn(3, 7, 8).double()
    distance = torch.cdist(where.position, where.position)
    distance = distance.masked_fill(~where.present[:, None], torch.inf)
    itself = torch.eye(7, dtype=torch.bool)
    rank = distance.masked_fill(itself, -1).argsort(-1).argsort(-1)
    seen = ((rank < count) & where.present[:, None]) | itself
    expected, weights = textbook(attention, x, x, where, seen)
    assert ((weights > 0) == seen).all()
    near = neighbors(where, where, count, 1e6, ENCODING)
    assert near.index.shape[-1] == min(count, 7)
    torch.testing.assert_close(attention(x, x, near), expected, atol=1e-12, rtol=0)


def test_queries_at_one_place_share_its_neighbors() -> None:
    attention, where = RelativeAttention(8, 2, ENCODING).double(), poses(2, 6)
    query, memory = torch.randn(2, 3, 8).double(), torch.randn(2, 6, 8).double()
    near = neighbors(where.first(1), where, 4, 1e6, ENCODING)
    single = [attention(query[:, i : i + 1], memory, near) for i in range(3)]
    torch.testing.assert_close(attention(query, memory, near), torch.cat(single, 1), atol=1e-12, rtol=0)


def test_a_relative_pose_is_that_seen_from_the_query() -> None:
    position = torch.tensor([[[1.0, 2.0], [1.0, 5.0]]])
    heading = torch.tensor([[math.pi / 2, math.pi]])
    where = Poses(position, heading, torch.ones(1, 2, dtype=torch.bool))
    near = neighbors(where, where, 2, 100, ENCODING)
    assert near.index[0, 0].tolist() == [0, 1]
    ahead, turn = 3.0, math.pi / 2
    phases = [ahead, ahead * 1e3**-0.5, ahead * 1e-3, 0, 0, 0, turn, 2 * turn]
    expected = [math.sin(phase) for phase in phases] + [math.cos(phase) for phase in phases]
    torch.testing.assert_close(near.relative[0, 0, 1], torch.tensor(expected), atol=1e-6, rtol=0)
    assert near.relative.shape[-1] == ENCODING.size


def test_a_rigid_motion_of_all_changes_nothing() -> None:
    where = poses(2, 9)
    block = RelativeBlock(8, 2, 2, 0.0, ENCODING).double()
    x = torch.randn(2, 9, 8).double()

    def after(item: Poses) -> Tensor:
        return block(x, neighbors(item, item, 4, 40, ENCODING), valid=item.present)

    there = moved(where, 2.1, torch.tensor([300.0, -120.0]).double())
    torch.testing.assert_close(after(there), after(where), atol=1e-10, rtol=0)
    turned = Poses(where.position, where.heading + 0.1 * torch.arange(9), where.present)
    assert not torch.allclose(after(turned), after(where), atol=1e-3)


def test_beyond_its_reach_a_token_sees_itself_alone() -> None:
    where = poses(2, 5, missing=0)
    near = neighbors(where, where, 3, 1e-3, ENCODING)
    assert (near.mask[..., 0] == 0).all()
    assert near.mask[..., 1:].isinf().all()
    assert torch.equal(near.index[..., 0], torch.arange(5).expand(2, 5))


def test_what_is_missing_is_seen_by_nobody_and_sees_itself() -> None:
    where = poses(4, 6, missing=0.5)
    near = neighbors(where, where, 6, 1e6, ENCODING)
    visible = near.mask[:, :, 0] == 0
    present = where.present[torch.arange(4)[:, None, None], near.index]
    itself = near.index == torch.arange(6)[:, None]
    assert torch.equal(visible, present | itself)


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of the heads, got 8 and 3"):
        RelativeAttention(8, 3, ENCODING)
