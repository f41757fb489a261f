"""Toys of superposition: what is drawn, how they are trained, and when groups count as orthogonal."""

import pytest
import torch

from innerspace.harvest.stream import TokenRule, gather
from innerspace.interventions import patch
from innerspace.planted.superposition import (
    Course,
    Superposition,
    Toy,
    check_blocks,
    toy_model,
    train_toys,
    true_subspaces,
)

SHORT = Course(steps=60, batch=32)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthogonal(toy: Toy, split: tuple[int, ...], tilt: float = 0.0) -> Superposition:
    """A network whose groups span consecutive coordinates, the first one turned out of its own by a small angle."""
    ends = torch.tensor([0, *split]).cumsum(0).tolist()
    weight = torch.zeros(toy.width, toy.features)
    for i, span in enumerate(toy.spans):
        weight[ends[i] : ends[i + 1], span] = torch.randn(split[i], toy.groups[i], generator=generator(i))
    turn = torch.tensor(tilt)
    first, last = weight[0].clone(), weight[-1].clone()
    weight[0, toy.spans[0]] = turn.cos() * first[toy.spans[0]]
    weight[-1, toy.spans[0]] = last[toy.spans[0]] + turn.sin() * first[toy.spans[0]]
    return Superposition(toy, weight, torch.zeros(toy.features))


def test_at_most_one_feature_of_a_group_is_on_as_often_as_asked() -> None:
    toy = Toy((3, 5), 4, empty=0.25)
    drawn = toy.draw(20_000, generator(), least=0.5)
    for g, span in enumerate(toy.spans):
        block = drawn.x[:, span]
        on = drawn.active[:, g] >= 0
        assert torch.equal((block > 0).sum(1), on.long())
        assert torch.equal(block.amax(1), drawn.strength[:, g])
        assert torch.equal(block[on].argmax(1), drawn.active[on, g])
        assert float(on.float().mean()) == pytest.approx(0.75, abs=0.01)
        share = drawn.active[on, g].bincount() / on.sum()
        torch.testing.assert_close(share, torch.full_like(share, 1 / toy.groups[g]), atol=0.015, rtol=0)
        assert 0.5 <= float(drawn.strength[on, g].min())
        assert float(drawn.strength[on, g].mean()) == pytest.approx(0.75, abs=0.01)
    # groups are independent
    both = ((drawn.active[:, 0] == 1) & (drawn.active[:, 1] == 2)).float().mean()
    assert float(both) == pytest.approx(0.25 * 0.15, abs=0.005)
    assert torch.equal(toy.read_out(drawn.x), drawn.active)


def test_the_network_is_the_formula_and_its_site_the_bottleneck() -> None:
    toy = Toy((4, 4), 3)
    network = train_toys(toy, [5], SHORT)[0]
    batch = toy.draw(7, generator())
    model, w = toy_model(network), network.hidden.weight
    h = batch.x @ w.T
    torch.testing.assert_close(model.run(batch).output["x"], (h @ w + network.bias).clamp(min=0))
    rows = gather(model, [batch, batch], ["hidden"], TokenRule()).states["hidden"]
    torch.testing.assert_close(rows, torch.cat([h, h]))


def test_swapping_the_subspace_of_a_group_swaps_that_group_only() -> None:
    toy = Toy((4, 3), 6)
    network = orthogonal(toy, (4, 2))
    model, truth = toy_model(network), true_subspaces(network)
    base, source = toy.draw(50, generator(1)), toy.draw(50, generator(2))
    hidden = network.hidden(source.x[:, None])
    got = model.run(base, {"hidden": patch(truth, [0], hidden)}).output["x"]
    a, b = toy.spans
    torch.testing.assert_close(got[:, a], model.run(source).output["x"][:, a])
    torch.testing.assert_close(got[:, b], model.run(base).output["x"][:, b])


def test_seeds_learn_together_what_they_learn_alone() -> None:
    toy = Toy((6, 6), 4)
    together = train_toys(toy, [0, 3, 7], SHORT)
    for network, seed in zip(together, [0, 3, 7], strict=True):
        alone = train_toys(toy, [seed], SHORT)[0]
        torch.testing.assert_close(network.hidden.weight, alone.hidden.weight, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(network.bias, alone.bias, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[0].hidden.weight, together[1].hidden.weight, atol=0.01)


def test_training_is_adam_on_the_squared_error_at_a_falling_rate() -> None:
    toy, course = Toy((5, 4), 3), Course(steps=6, batch=16)
    source = generator(11)
    start = 2 * torch.rand(3, 9, generator=source) - 1
    network = Superposition(toy, start / 3, torch.zeros(9))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    x = toy.draw(course.steps * course.batch, source).x.split(course.batch)
    for step in range(course.steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - 0.9 * step / 6)
        optimizer.zero_grad()
        (network(x[step]) - x[step]).square().sum(1).mean().backward()
        optimizer.step()
    torch.testing.assert_close(train_toys(toy, [11], course)[0].hidden.weight, network.hidden.weight)


def test_the_published_toy_gives_each_of_two_groups_six_dimensions() -> None:
    # a shorter course than the published one, which ends at across / within = 0.008
    network = train_toys(Toy(), [0], Course(steps=3000))[0]
    found = check_blocks(network)
    assert found.ranks == (6, 6)
    assert found.orthogonal()
    assert found.across < 0.03 * found.within
    assert 0.02 < found.unexplained < 0.04
    truth = true_subspaces(network)
    assert truth.sizes == (6, 6)
    inside = network.hidden.weight.detach()[:, :20]
    assert float((truth.basis(0).detach() @ inside).square().sum() / inside.square().sum()) > 0.999


def test_blocks_are_measured() -> None:
    toy = Toy((5, 4), 5)
    found = check_blocks(orthogonal(toy, (3, 2)))
    assert (found.ranks, found.across, found.orthogonal()) == ((3, 2), 0.0, True)
    assert found.cosine == pytest.approx(0, abs=1e-6)
    tilted = check_blocks(orthogonal(toy, (3, 2), tilt=0.1))
    assert tilted.cosine == pytest.approx(torch.tensor(0.1).sin().item(), abs=1e-6)
    assert not tilted.orthogonal()
    assert tilted.orthogonal(0.11)


def test_a_group_that_leaves_room_is_not_taken_for_a_block_structure() -> None:
    toy = Toy((5, 4), 6)
    network = orthogonal(toy, (3, 2))
    assert not check_blocks(network).orthogonal()
    truth = true_subspaces(network)
    assert truth.sizes == (3, 2, 1)
    torch.testing.assert_close(truth.basis(2).detach().abs(), torch.eye(6)[5:])


def test_groups_that_share_dimensions_have_no_true_subspaces() -> None:
    toy = Toy((5, 5), 4)
    network = Superposition(toy, torch.randn(4, 10, generator=generator()), torch.zeros(10))
    assert check_blocks(network).ranks == (4, 4)
    with pytest.raises(ValueError, match=r"groups of dimensions \[4, 4\] are not orthogonal in a space of width 4"):
        true_subspaces(network)


def test_what_makes_no_toy_is_refused() -> None:
    with pytest.raises(ValueError, match="groups of features"):
        Toy((20, 0))
    with pytest.raises(ValueError, match="a chance below one"):
        Toy(empty=1.0)
    with pytest.raises(ValueError, match="a course needs steps"):
        Course(steps=0)
    with pytest.raises(ValueError, match="at least one seed"):
        train_toys(Toy(), [])
    with pytest.raises(ValueError, match=r"the weight has shape \(4, 3\)"):
        Superposition(Toy((2, 2), 4), torch.zeros(4, 3), torch.zeros(3))
