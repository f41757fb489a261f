"""Rate and distortion: bits by hand, rounding to levels, and the curve of a linear network in closed form."""

import math

import pytest
import torch
from torch import Tensor

from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import TopK
from innerspace.decompose.subspaces import Subspaces
from innerspace.measure.rate import (
    Passes,
    Told,
    counts_up_to,
    description_bits,
    interpolated,
    order_parts,
    rate_distortion,
)
from innerspace.network.model import Model
from innerspace.network.site import Site, Where
from innerspace.network.trace import Trace, Visit
from linear import WIDTH, network, right, states

VISIT = Visit(Site("x", "hidden", WIDTH), None, Trace(), lambda: None)


@pytest.fixture(name="planted")
def _planted() -> tuple[Model, Tensor, Passes]:
    model, rotation = network()
    batches = list(states(rotation, 40, seed=1).split(16))
    return model, rotation, Passes(model, batches, "x", Where("all"))


def test_bits_are_those_of_the_coefficients_and_of_naming_them() -> None:
    found = description_bits(torch.tensor([0, 1, 3, 10]), 10, 8)
    expected = [0.0, 8 + math.log2(10), 24 + math.log2(math.comb(10, 3)), 80.0]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64))
    # naming 32 of 4096 costs nearly as much as telling them
    assert float(description_bits(torch.tensor(32), 4096, 8)) == pytest.approx(256 + math.log2(math.comb(4096, 32)))
    assert float(description_bits(torch.tensor(0), 0, 8)) == 0


def test_a_coordinate_is_told_at_its_nearest_level() -> None:
    via = Subspaces.identity(2, [1, 1])
    every = torch.arange(2)
    told = Told(via, every, torch.zeros(2), torch.zeros(2), torch.tensor([-1.0, 0.0]), torch.tensor([2.0, 7.0]), 2)
    z = torch.tensor([[-0.6, 3.0], [0.4, 3.6], [0.0, 0.0], [9.0, -9.0]])
    # four levels each: −1, 0, 1, 2 and 0, 7/3, 14/3, 7; zero is never rounded, what lies beyond the ends is cut
    expected = torch.tensor([[-1.0, 7 / 3], [0.0, 14 / 3], [0.0, 0.0], [2.0, 0.0]])
    assert torch.allclose(told.rounded(z), expected)


def test_nothing_told_is_the_mean_and_all_told_is_the_state() -> None:
    _, rotation = network()
    x = states(rotation, 50, seed=2)[:, 0]
    via = right(rotation)
    z = via.encode(x).z.detach()
    parts = x.mean(0), z.mean(0), z.amin(0), z.amax(0), 24
    assert torch.equal(Told(via, torch.arange(0), *parts)(x, VISIT), x.mean(0).expand_as(x))
    whole = Told(via, torch.arange(WIDTH), *parts)(x, VISIT)
    assert torch.allclose(whole, x, atol=1e-5)
    # between them, what is not told is its mean in every state
    some = Told(via, torch.tensor([0, 2]), *parts)(x, VISIT)
    expected = torch.where(torch.isin(torch.arange(WIDTH), torch.tensor([0, 2])), z, z.mean(0)) @ rotation
    assert torch.allclose(some, expected, atol=1e-5)


def test_the_curve_of_a_linear_network_is_the_variance_that_is_left(planted: tuple[Model, Tensor, Passes]) -> None:
    _, rotation, passes = planted
    # what lies beyond the ends of the levels would be cut
    fitted = torch.cat([passes.rows, states(rotation, 400, seed=3)[:, 0]])
    found = rate_distortion(right(rotation), range(WIDTH), fitted, passes, bits=20, budget=50.0, steps=20)
    own, mean = passes.rows @ rotation.T, (fitted @ rotation.T).mean(0)
    left = (own - mean).square().mean(0) / 2
    assert [point.parts for point in found.points] == list(range(WIDTH + 1))
    for point in found.points:
        assert point.divergence.mean == pytest.approx(float(left[point.parts :].sum()), abs=1e-4)
        assert point.bits.mean == 20 * point.parts
    assert found.points[0].divergence.low is not None
    # 50 bits are halfway between two parts and three
    middle = (found.points[2].divergence.mean + found.points[3].divergence.mean) / 2
    assert found.at_budget.mean == pytest.approx(middle)


def test_fewer_bits_cost_what_rounding_costs(planted: tuple[Model, Tensor, Passes]) -> None:
    _, rotation, passes = planted
    fitted = torch.cat([passes.rows, states(rotation, 400, seed=3)[:, 0]])
    via = right(rotation)
    found = rate_distortion(via, range(WIDTH), fitted, passes, bits=3, budget=10.0).points[-1]
    z = fitted @ rotation.T
    step = (z.amax(0) - z.amin(0)) / 7
    # the error of rounding is even over a step
    assert found.divergence.mean == pytest.approx(float(step.square().sum() / 12 / 2), rel=0.3)


def test_parts_are_ordered_by_what_the_output_loses(planted: tuple[Model, Tensor, Passes]) -> None:
    model, rotation, passes = planted
    shuffled = [3, 0, 5, 1, 4, 2]
    via = Subspaces(rotation[shuffled], [1] * WIDTH).double()
    center = (states(rotation, 400, seed=3)[:, 0] @ rotation[shuffled].T).mean(0)
    # the variables' sizes are those of these very states
    mean = states(rotation, 400, seed=3)[:, 0].mean(0)
    sizes = ((passes.rows - mean) @ rotation.T).square().mean(0)
    expected = [shuffled.index(variable) for variable in sizes.argsort(descending=True).tolist()]
    assert expected[0] == shuffled.index(0)
    assert order_parts(via, passes, center) == expected
    # a network that ignores the largest variable does not need it, which variance alone cannot tell
    with torch.no_grad():
        model.module.get_parameter("weight")[0] = 0
    deaf = Passes(model, [states(rotation, 40, seed=1)], "x", Where("all"))
    assert order_parts(via, deaf, center) == [*expected[1:], expected[0]]
    assert order_parts(via, deaf, center, ablated=1)[0] == expected[0]


def test_a_sparse_code_pays_for_what_is_on(planted: tuple[Model, Tensor, Passes]) -> None:
    _, rotation, passes = planted
    fitted = states(rotation, 400, seed=3)[:, 0].float()
    what = Dictionary.normalized_for(fitted, 20, TopK(3)).eval()
    found = rate_distortion(what.double(), range(20), fitted.double(), passes, bits=8, budget=30.0)
    on = what.encode(passes.rows).z.count_nonzero(1)
    assert found.points[-1].bits.mean == pytest.approx(float(description_bits(on, 20, 8).mean()))
    assert found.points[-1].bits.mean <= 24 + math.log2(math.comb(20, 3)) + 1e-9


def test_lines_between_points() -> None:
    rate = torch.tensor([[0.0, 10.0, 30.0], [0.0, 20.0, 20.0]])
    value = torch.tensor([[9.0, 5.0, 1.0], [8.0, 4.0, 3.0]])
    assert interpolated(rate, value, 20.0).tolist() == [3.0, 4.0]
    assert interpolated(rate, value, 5.0).tolist() == [7.0, 7.0]
    assert interpolated(rate, value, 99.0).tolist() == [1.0, 3.0]
    assert interpolated(rate[:, :1], value[:, :1], 99.0).tolist() == [9.0, 8.0]
    assert counts_up_to(6, 20) == [0, 1, 2, 3, 4, 5, 6]
    assert counts_up_to(1000, 4) == [0, 1, 10, 100, 1000]
    assert counts_up_to(1) == [0, 1]


def test_what_cannot_be_told_is_refused(planted: tuple[Model, Tensor, Passes]) -> None:
    model, rotation, passes = planted
    via, fitted = right(rotation), states(rotation, 20, seed=3)[:, 0]
    with pytest.raises(ValueError, match="name each of 6 parts once"):
        rate_distortion(via, [0, 1], fitted, passes)
    with pytest.raises(ValueError, match="bits and budget should be positive, they are 0"):
        rate_distortion(via, range(6), fitted, passes, bits=0)
    with pytest.raises(ValueError, match="no position at 'x' counts"):
        Passes(model, [], "x", Where("all"))
