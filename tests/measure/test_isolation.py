"""Cause, isolate and steering on a linear network, where the right answers are known in closed form."""

import pytest
import torch
from torch import Tensor

from innerspace.decompose.subspaces import Subspaces, random_rotation
from innerspace.measure.isolation import Variable, isolation, steerability
from innerspace.network.model import Model
from linear import WIDTH, contrast, network, right, states

NAMES = {0: "first", 1: "second", 4: "fifth"}


def variables(model: Model, rotation: Tensor, seed: int, *, signed: bool = True) -> list[Variable]:
    sign = torch.ones(12) if signed else None
    return [
        Variable(name, model, "x", [contrast(rotation, i, 12, seed + i)], sign, replicates=50)
        for i, name in NAMES.items()
    ]


def test_the_right_parts_carry_one_variable_each() -> None:
    model, rotation = network()
    found = isolation(right(rotation), variables(model, rotation, 1), variables(model, rotation, 9))
    assert [one.variable for one in found] == list(NAMES.values())
    assert [one.parts for one in found] == [(i,) for i in NAMES]
    for one in found:
        for score in (one.cause, one.isolate, one.disentangle):
            assert score.mean == pytest.approx(1.0, abs=1e-6)


def test_shares_of_coordinates_are_the_squares_of_the_directions() -> None:
    model, rotation = network()
    identity = Subspaces.identity(WIDTH, [1] * WIDTH).double()
    one, two, three = variables(model, rotation, 1)
    for parts in ([2], [0, 3], [5, 1, 4]):
        for variable, i in zip((one, two, three), NAMES, strict=True):
            share = variable.share(identity, parts)
            assert torch.allclose(share, rotation[i, parts].square().sum().expand_as(share))
    # to first order is exactly, in a linear network
    attribution = one.attribution(identity)
    assert torch.allclose(attribution, 2.0 * rotation[0].square())


def test_scores_of_wrong_parts_are_those_of_their_shares() -> None:
    model, rotation = network()
    identity = Subspaces.identity(WIDTH, [1] * WIDTH).double()
    found = isolation(identity, variables(model, rotation, 1), variables(model, rotation, 9))
    squares = rotation.square()
    for own, one in zip(NAMES, found, strict=True):
        parts = list(one.parts)
        cause = float(squares[own, parts].sum())
        kept = [1 - float(squares[i, parts].sum()) for i in NAMES if i != own]
        assert one.cause.mean == pytest.approx(cause)
        assert one.isolate.mean == pytest.approx(sum(kept) / len(kept))
        assert one.disentangle.mean == pytest.approx((cause + sum(kept) / len(kept)) / 2)
        assert one.coordinates == len(parts)
        # the first parts are those with the most of the variable, and no other number of them does better
        order = squares[own].argsort(descending=True)
        assert parts == order[: len(parts)].tolist()
        for count in (1, 2, 4):
            chosen = order[:count]
            other = squares[[i for i in NAMES if i != own]][:, chosen].sum(1).mean()
            assert one.disentangle.mean >= float((squares[own, chosen].sum() + 1 - other) / 2) - 1e-6


def test_the_whole_space_as_one_part_is_no_finding() -> None:
    model, rotation = network()
    whole = Subspaces(random_rotation(WIDTH, torch.Generator().manual_seed(5)), [WIDTH]).double()
    for one in isolation(whole, variables(model, rotation, 1), variables(model, rotation, 9)):
        assert (one.cause.mean, one.isolate.mean, one.disentangle.mean) == pytest.approx((1.0, 0.0, 0.5), abs=1e-6)


def test_a_step_along_the_right_part_does_what_the_exchange_does() -> None:
    model, rotation = network()
    found = steerability(right(rotation), variables(model, rotation, 1), variables(model, rotation, 9))
    assert [one.part for one in found] == list(NAMES)
    for one in found:
        assert one.slope.mean == pytest.approx(1.0, abs=1e-5)
        assert one.r2.mean == pytest.approx(1.0, abs=1e-6)
        assert one.side.mean == pytest.approx(0.0, abs=1e-5)
        assert abs(one.random.mean) < 0.99


def test_a_step_along_a_coordinate_does_as_much_as_the_variable_lies_along_it() -> None:
    model, rotation = network()
    identity = Subspaces.identity(WIDTH, [1] * WIDTH).double()
    found = steerability(identity, variables(model, rotation, 1), variables(model, rotation, 9))
    for own, one in zip(NAMES, found, strict=True):
        assert one.part == int(rotation[own].square().argmax())
        assert one.slope.mean == pytest.approx(float(rotation[own].abs().max()), abs=1e-5)


def test_a_variable_of_two_values_counts_in_both_directions() -> None:
    model, rotation = network()
    up, down = contrast(rotation, 0, 12, 1), contrast(rotation, 0, 12, 2, step=-2.0)
    sign = torch.cat([torch.ones(12), -torch.ones(12)])
    both = Variable("first", model, "x", [up, down], sign)
    assert torch.allclose(both.difference(right(rotation), 0), 2 * rotation[0])
    response = both.response(rotation[0], torch.tensor([0.0, 1.0]))
    assert torch.allclose(response.value[1] - response.value[0], sign.double())
    alone = Variable("first", model, "x", [up], None)
    with pytest.raises(ValueError, match="'first' has more than two values"):
        alone.difference(right(rotation), 0)


def test_variables_of_many_values_are_isolated_but_not_steered() -> None:
    model, rotation = network()
    many = variables(model, rotation, 1, signed=False)
    assert steerability(right(rotation), many, many) == []
    assert len(isolation(right(rotation), many, many)) == len(NAMES)


def test_what_cannot_be_judged_is_refused() -> None:
    model, rotation = network()
    with pytest.raises(ValueError, match="no contrast of 'none'"):
        Variable("none", model, "x", [])
    with pytest.raises(ValueError, match="exchanging the whole state has no effect on 'same'"):
        Variable("same", model, "x", [contrast(rotation, 0, 4, 1, step=0.0)])
    one, two, three = variables(model, rotation, 1)
    with pytest.raises(ValueError, match="two variables or more"):
        isolation(right(rotation), [one], [one])
    with pytest.raises(ValueError, match="two variables or more"):
        isolation(right(rotation), [one, two], [two, three])


def test_states_differ_as_they_should() -> None:
    _, rotation = network()
    own = (states(rotation, 4000, seed=1)[:, 0] @ rotation.T).std(0)
    assert torch.allclose(own, torch.arange(WIDTH, 0, -1).double(), rtol=0.05)
