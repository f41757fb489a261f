"""Writes of parts: identities change no bit, only the named coordinates move, and what cannot be is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from families import CASES, Case
from innerspace.decompose.base import Decomposition
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.directions import Directions, Origin
from innerspace.decompose.nonlinearities import TopK
from innerspace.decompose.subspaces import Subspaces
from innerspace.interventions import At, Fix, Read, Write, ablate, coordinates_of, patch, read_parts, relocate
from innerspace.network.site import Site, Where
from innerspace.network.trace import Trace, Visit

WIDTH = 8
GENERATOR = torch.Generator().manual_seed(3)
VISIT = Visit(Site("here", "here", WIDTH), None, Trace(), lambda: None)


def subspaces(width: int = WIDTH) -> Subspaces:
    return Subspaces.random(width, [width - 3, 2, 1], torch.Generator().manual_seed(1))


def dictionary(latents: int) -> Dictionary:
    return Dictionary(WIDTH, latents, TopK(3), mean=torch.randn(WIDTH), scale=1.7, seed=2).eval()


def directions() -> Directions:
    origins = [Origin(f"feature{i}", "high", "low") for i in range(3)]
    return Directions(torch.randn(3, WIDTH), torch.tensor([3.0, 0.5, 1.0]), origins)


KINDS: dict[str, Callable[[], Decomposition]] = {
    "subspaces": subspaces,
    "dictionary": lambda: dictionary(20),
    "sparse dictionary": lambda: dictionary(400),
    "directions": directions,
}


@pytest.fixture(params=KINDS, name="via")
def _via(request: pytest.FixtureRequest) -> Decomposition:
    return KINDS[request.param]()


@pytest.fixture(params=CASES, name="case")
def _case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int32)


def same(z: Tensor, visit: Visit) -> Tensor:
    return z


def states(*shape: int) -> Tensor:
    x = torch.randn(*shape, WIDTH, generator=GENERATOR)
    x[0] = -0.0
    return x


def edited(case: Case, site: str, *do: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The state before and after, and the output; reads everywhere, since kernels may differ with and without."""
    plan = {name: Read() for name in case.sites} | {site: [Read("before"), *do, Read("after")]}
    trace = case.model.run(case.batch, plan)
    return trace.hidden["before"], trace.hidden["after"], trace.output[case.output]


@torch.no_grad()
def test_the_identity_changes_no_bit(via: Decomposition) -> None:
    x = states(4, 5)
    for parts in (0, [1], [2, 0]):
        assert torch.equal(bits(Write(via, parts, same)(x, VISIT)), bits(x))
        assert torch.equal(bits(patch(via, parts, x)(x, VISIT)), bits(x))


@torch.no_grad()
def test_only_the_named_coordinates_move(via: Decomposition) -> None:
    x, parts = states(4, 5), [2, 0]
    index = coordinates_of(via, parts)
    z = via.encode(x).z
    torch.testing.assert_close(read_parts(via, parts, x), z[..., index], rtol=1e-5, atol=1e-5)
    moved = z.index_fill(-1, index, 0) + torch.zeros_like(z).index_fill(-1, index, 0.3)
    written = Write(via, parts, lambda own, visit: torch.full_like(own, 0.3))(x, VISIT)
    torch.testing.assert_close(written, x + via.lift(moved - z), rtol=1e-5, atol=1e-5)
    if not isinstance(via, Dictionary):
        torch.testing.assert_close(via.encode(written).z, moved, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_parts_add_up_to_the_whole() -> None:
    via, x, source = subspaces(), states(4, 5), states(4, 5)
    torch.testing.assert_close(patch(via, [0, 1, 2], source)(x, VISIT), source)
    # to exchange a part is to put the clean rest into the source
    part, rest = patch(via, 1, source)(x, VISIT), patch(via, [0, 2], x)(source, VISIT)
    torch.testing.assert_close(part, rest)
    torch.testing.assert_close(patch(via, [0, 2], source)(patch(via, 1, source)(x, VISIT), VISIT), source)


@torch.no_grad()
def test_ablation_leaves_a_constant(via: Decomposition) -> None:
    x, index = states(6), coordinates_of(via, [1, 2])
    z = via.encode(x).z
    torch.testing.assert_close(ablate(via, [1, 2])(x, VISIT), x - z[..., index] @ via.directions[index])
    if isinstance(via, Subspaces):
        means = read_parts(via, [1, 2], x).mean(0)
        done = ablate(via, [1, 2], means)(x, VISIT)
        torch.testing.assert_close(read_parts(via, [1, 2], done), means.expand(6, -1))
        torch.testing.assert_close(read_parts(via, 0, done), read_parts(via, 0, x))


def test_gradients_reach_the_source_and_the_rotation() -> None:
    via, x, source = subspaces(), states(4), states(4).requires_grad_()
    patch(via, 0, source)(x, VISIT)[:, 0].sum().backward()
    assert source.grad is not None
    torch.testing.assert_close(source.grad[1], via.basis(0).detach().T @ via.basis(0).detach()[:, 0])
    assert via.turn.grad is not None
    assert via.turn.grad.abs().max() > 0
    # turning a part within itself changes no patch
    assert via.turn.grad[:5, :5].abs().max() < 1e-5


@torch.no_grad()
def test_a_law_of_all_families(case: Case) -> None:
    for site in case.sites:
        via = subspaces(case.model.site(site).width)
        before, after, output = edited(case, site, Write(via, [0, 2], same))
        _, _, reference = edited(case, site)
        assert torch.equal(bits(after), bits(before))
        assert torch.equal(bits(output), bits(reference))
        source = torch.randn_like(before)
        whole = edited(case, site, lambda x, visit, source=source: source)[2]
        patched = edited(case, site, patch(via, [1, 0, 2], source))[2]
        torch.testing.assert_close(patched, whole, rtol=1e-3, atol=1e-4)
        apart = edited(case, site, patch(via, 0, source), patch(via, [1, 2], source))[2]
        torch.testing.assert_close(apart, whole, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_mask_chooses_other_positions_in_every_row(case: Case) -> None:
    site = case.sites[0]
    before, _, _ = edited(case, site)
    mask = torch.zeros(before.shape[:-1], dtype=torch.bool)
    mask[0, 1] = mask[0, 3] = mask[1, 2] = True
    _, after, _ = edited(case, site, At(mask, Fix(torch.full((before.shape[-1],), 7.0))))
    assert torch.equal((after != before).any(-1), mask)
    with pytest.raises(ValueError, match=r"the mask has positions \[2, 2\], the hidden state at"):
        edited(case, site, At(mask[:2, :2], Read()))


def test_states_are_brought_to_other_positions() -> None:
    x = states(2, 4)
    origin, target = torch.zeros(2, 4, dtype=torch.bool), torch.zeros(2, 6, dtype=torch.bool)
    origin[0, [1, 3]] = origin[1, 0] = True
    target[0, [0, 5]] = target[1, 4] = True
    moved = relocate(x, origin, target)
    assert moved.shape == (2, 6, WIDTH)
    for (row, place), (_, former) in zip([(0, 0), (0, 5), (1, 4)], [(0, 1), (0, 3), (1, 0)], strict=True):
        assert torch.equal(moved[row, place], x[row, former])
    assert relocate(x, origin, origin) is x
    target[1, 5] = True
    with pytest.raises(ValueError, match="row 1 has 1 positions to take states from and 2 to bring them to"):
        relocate(x, origin, target)


def test_what_cannot_be_is_refused() -> None:
    via, x = subspaces(), states(2, 3)
    with pytest.raises(ValueError, match="there is no part 3; the 3 parts are 0 … 2"):
        patch(via, 3, x)
    for parts in ([], [1, 1]):
        with pytest.raises(ValueError, match="parts should be named, each once"):
            Write(via, parts, same)
    with pytest.raises(
        ValueError, match="the decomposition has width 8, the hidden state at 'here' 5: a decomposition"
    ):
        ablate(via, 0)(torch.randn(2, 5), VISIT)
    with pytest.raises(
        ValueError, match=r"the source of part 1 has positions \[2\], the hidden state at 'here' \[2, 3\]"
    ):
        patch(via, 1, x[:, 0])(x, VISIT)
    with pytest.raises(ValueError, match="part 1 has 2 coordinates, the constant 3"):
        ablate(via, 1, torch.zeros(3))
    with pytest.raises(ValueError, match=r"the rule for part 1 should give coordinates of shape \[2, 3, 2\], it gives"):
        Write(via, 1, lambda z, visit: z[..., :1])(x, VISIT)


@torch.no_grad()
def test_padding_is_left_alone_where_a_rule_says_so() -> None:
    case = CASES["gpt2"]()
    via = subspaces(32)
    before, after, _ = edited(case, "resid.0", At(Where("valid"), ablate(via, 0)))
    assert torch.equal((before != after).any(-1), case.batch.valid)
