"""Other ways to steer: nothing asked changes no bit, norms hold, padding stays, gradients flow, misfits are refused."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from families import CASES, Case
from innerspace.decompose.directions import Directions, Origin
from innerspace.interventions import At, Read, Steer
from innerspace.network.site import Site, Where
from innerspace.network.trace import Intervention, Trace, Visit
from innerspace.steering_modes import Clamp, KeepNorm, Limit, Rotate, RotateIn

WIDTH = 6
VISIT = Visit(Site("here", "here", WIDTH), None, Trace(), lambda: None)

STEERED: dict[str, Callable[[Tensor, Any], Intervention]] = {
    "keep norm": lambda along, by: KeepNorm(Steer(along, by)),
    "limit": lambda along, by: Limit(Steer(along, by), 0.3),
    "rotate": Rotate,
}
KEPT = {name: STEERED[name] for name in ("keep norm", "rotate")}


@pytest.fixture(params=CASES, name="case")
def _case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def states(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(*shape, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(2))
    x[0, ..., 0] = -0.0
    return x


def vectors(count: int = 2) -> Tensor:
    return torch.randn(count, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def same_bits(a: Tensor, b: Tensor) -> bool:
    kind = torch.int64 if a.dtype == torch.float64 else torch.int32
    return torch.equal(a.view(kind), b.view(kind))


def lengths(x: Tensor) -> Tensor:
    return x.norm(dim=-1)


@pytest.mark.parametrize("way", STEERED)
def test_zero_is_the_identity_in_every_shape(way: str) -> None:
    x = states(4, 3)
    for zero in (0.0, torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.float64)):
        assert same_bits(STEERED[way](vectors(), zero)(x, VISIT), x)
    assert torch.equal(STEERED[way](vectors(), torch.zeros(2))(x, VISIT), x)


def test_a_bound_that_holds_and_an_angle_of_zero_change_no_bit() -> None:
    x = states(4, 3)
    assert same_bits(Clamp(vectors(), -1e3, 1e3)(x, VISIT), x)
    assert same_bits(RotateIn(vectors(), 0.0)(x, VISIT), x)
    assert same_bits(RotateIn(vectors(), torch.zeros(4))(x, VISIT), x)


@torch.no_grad()
@pytest.mark.parametrize("way", STEERED)
def test_laws_of_all_families(case: Case, way: str) -> None:
    plain = {name: Read() for name in case.sites}
    reference = case.model.run(case.batch, plain)
    rows = len(reference.output[case.output])
    for site in case.sites:
        valid = case.model.family.mask(case.batch, case.model.site(site))
        assert valid is not None
        along = torch.randn(2, case.model.site(site).width)
        still = case.model.run(case.batch, plain | {site: [STEERED[way](along, torch.zeros(rows, 2)), Read()]})
        assert same_bits(still.output[case.output], reference.output[case.output])
        plan = {site: [Read("before"), At(Where("valid"), STEERED[way](along, torch.ones(rows, 2))), Read("after")]}
        trace = case.model.run(case.batch, plan)
        before, after = trace.hidden["before"], trace.hidden["after"]
        assert torch.equal((before == after).all(-1), ~valid)
        if way in KEPT:
            torch.testing.assert_close(lengths(after), lengths(before), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("way", KEPT)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_norm_is_kept(way: str, size: float) -> None:
    for dtype in (torch.float64, torch.float32):
        x = states(4, 3, dtype=dtype)
        by = size * torch.randn(4, 2)
        after = STEERED[way](vectors(), by)(x, VISIT)
        torch.testing.assert_close(lengths(after), lengths(x), rtol=1e-6, atol=0)
        assert not torch.equal(after, x)


def test_an_arc_is_a_rotation_in_the_plane_of_state_and_direction() -> None:
    x, d = torch.zeros(1, WIDTH, dtype=torch.float64), torch.zeros(WIDTH, dtype=torch.float64)
    x[0, 0], d[1], d[0] = 2.0, 3.0, 7.0
    # what the direction holds along the state does not turn it: the arc is 3 τ long on a circle of radius 2
    for tau in (0.2, -0.4, 1.0):
        angle = 3 * tau / 2
        expected = 2 * torch.tensor([math.cos(angle), math.sin(angle), 0, 0, 0, 0], dtype=torch.float64)
        torch.testing.assert_close(Rotate(d, tau)(x, VISIT)[0], expected)


def test_for_small_amounts_all_ways_agree_across_the_state() -> None:
    x, d, small = states(5), vectors(2), 1e-5
    steered = Steer(d, torch.tensor([small, -2 * small]))(x, VISIT) - x
    unit = x / lengths(x)[:, None]
    across = steered - (steered * unit).sum(-1, keepdim=True) * unit
    for way in KEPT.values():
        moved = way(d, torch.tensor([small, -2 * small]))(x, VISIT) - x
        torch.testing.assert_close(moved, across, rtol=1e-4, atol=1e-9)


def test_a_limit_cuts_the_length_and_keeps_the_way() -> None:
    x, d = states(40), vectors(1)
    by = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]
    free, cut = Steer(d, by)(x, VISIT) - x, Limit(Steer(d, by), 0.25)(x, VISIT) - x
    over = lengths(free) > 0.25 * lengths(x)
    assert over.any()
    assert not over.all()
    torch.testing.assert_close(lengths(cut)[over], 0.25 * lengths(x)[over])
    assert same_bits(Limit(Steer(d, by), 0.25)(x, VISIT)[~over], Steer(d, by)(x, VISIT)[~over])
    torch.testing.assert_close(torch.cosine_similarity(cut[over], free[over]), torch.ones(int(over.sum())).double())
    assert same_bits(Limit(Steer(d, by), 0.0)(x, VISIT), x)


def test_angles_in_a_fixed_plane() -> None:
    x, plane = states(5, 2), torch.zeros(2, WIDTH, dtype=torch.float64)
    plane[0, 1], plane[1, 3], plane[1, 1] = 2.0, -0.5, 4.0  # axes: +1, then −3
    turned = RotateIn(plane, math.pi / 2)(x, VISIT)
    torch.testing.assert_close(turned[..., 3], -x[..., 1])
    torch.testing.assert_close(turned[..., 1], x[..., 3])
    others = [0, 2, 4, 5]
    assert same_bits(turned[..., others].contiguous(), x[..., others].contiguous())
    twice = RotateIn(plane, 0.3)(RotateIn(plane, 0.5)(x, VISIT), VISIT)
    torch.testing.assert_close(twice, RotateIn(plane, 0.8)(x, VISIT))
    by_row = RotateIn(plane, torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]).double())(x, VISIT)
    torch.testing.assert_close(by_row[3], RotateIn(plane, 0.3)(x, VISIT)[3])
    # the published form sets the angle: all states agree in the plane up to their length there
    for angle in (0.0, 2.0):
        there = RotateIn(plane, angle, absolute=True)(x, VISIT)
        radius = torch.hypot(x[..., 1], x[..., 3])
        torch.testing.assert_close(there[..., 1], radius * math.cos(angle))
        torch.testing.assert_close(there[..., 3], -radius * math.sin(angle))
        torch.testing.assert_close(lengths(there), lengths(x))


def test_a_clamp_sets_and_bounds_coordinates() -> None:
    x = states(6, 2)
    origins = [Origin(name, "high", "low") for name in ("a", "b")]
    directions = Directions(vectors(2), torch.tensor([3.0, 0.5]), origins)
    both = Clamp(directions, 0.4, 0.4)(x, VISIT)
    torch.testing.assert_close(directions.encode(both).z, torch.full((6, 2, 2), 0.4).double())
    torch.testing.assert_close(directions.projected_out(both), directions.projected_out(x))
    z = directions.encode(x).z
    low = torch.tensor([-0.1, -torch.inf])
    bounded = Clamp(directions, low=low, high=0.2)(x, VISIT)
    torch.testing.assert_close(directions.encode(bounded).z, z.clamp(low.double(), 0.2 * torch.ones(2).double()))
    by_row = torch.arange(12.0).view(6, 2)
    torch.testing.assert_close(
        directions.encode(Clamp(directions, by_row, by_row)(x, VISIT)).z, by_row[:, None].expand(6, 2, 2).double()
    )


@pytest.mark.parametrize("way", STEERED)
def test_gradients_reach_amounts_and_vectors_also_at_zero(way: str) -> None:
    x = states(3)
    x[2] = 0.0  # padding is zero, and has no direction
    d = vectors().requires_grad_(True)
    by = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    STEERED[way](d, by)(x, VISIT)[:2].sum().backward()
    assert by.grad is not None
    assert (by.grad[:2].abs() > 1e-9).all()
    with torch.no_grad():
        by.copy_(torch.full((3, 2), 0.01))
    assert torch.autograd.gradcheck(lambda d, by: STEERED[way](d, by)(x[:2], VISIT), (d, by[:2]))
    (gradient,) = torch.autograd.grad(STEERED[way](d, by)(x, VISIT).square().sum(), d)
    assert gradient.isfinite().all()


def test_what_does_not_fit_is_refused() -> None:
    x = states(4, 3)
    for way in (*STEERED.values(), lambda along, by: Clamp(along, by, by)):
        with pytest.raises(ValueError, match="width 3, the hidden state at 'here' 6: a direction belongs to the site"):
            way(torch.ones(1, 3), 1.0)(x, VISIT)
        with pytest.raises(ValueError, match=r"have shape \[3\]; a number, \[2\] \(one per direction\) or \[4, 2\]"):
            way(vectors(), torch.ones(3))(x, VISIT)
    with pytest.raises(ValueError, match=r"the angles have shape \[3\]; a number or \[4\]"):
        RotateIn(vectors(), torch.ones(3))(x, VISIT)
    with pytest.raises(ValueError, match=r"two vectors \[2, d\], not by \[3, 6\]"):
        RotateIn(vectors(3), 1.0)
    with pytest.raises(ValueError, match="not parallel"):
        RotateIn(torch.ones(2, 6), 1.0)
    with pytest.raises(ValueError, match=r"should not be negative, it is -0\.1"):
        Limit(Read(), -0.1)
    with pytest.raises(ValueError, match="a lower bound, an upper one, or both"):
        Clamp(vectors())
    with pytest.raises(ValueError, match="the 2 directions depend on each other"):
        Clamp(torch.ones(2, 6), 0.0)(x, VISIT)
