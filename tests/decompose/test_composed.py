"""Vectors within parts, dictionaries inside a part, latents by part: closed forms, the laws, and a fit as usual."""

import pytest
import torch
from torch import Tensor

from innerspace.decompose.composed import Inside, latents_by_part, restricted, shares_by_part
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.directions import Directions, Origin
from innerspace.decompose.nonlinearities import ReLU, TopK
from innerspace.decompose.subspaces import Subspaces
from innerspace.interventions import Write, hold
from innerspace.learn.fit import FitConfig, fit
from innerspace.learn.objectives import Reconstruction
from innerspace.learn.trials import local
from innerspace.measure.fidelity import explained_variance
from innerspace.network.site import Site
from innerspace.network.trace import Trace, Visit

WIDTH, SIZES = 9, (4, 3, 2)
VISIT = Visit(Site("here", "here", WIDTH), None, Trace(), lambda: None)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(name="via")
def _via() -> Subspaces:
    return Subspaces.random(WIDTH, SIZES, torch.Generator().manual_seed(1)).double()


def inside(via: Subspaces, part: int) -> Inside:
    size = via.sizes[part]
    what = Dictionary(size, 7, TopK(2), mean=randn(size, seed=5), scale=1.7, seed=2).double().eval()
    return Inside(what, via, part)


def vectors(rows: Tensor) -> Directions:
    origins = [Origin(f"feature{i}", "high", "low", "mean_difference") for i in range(len(rows))]
    return Directions(rows, rows.norm(dim=1), origins)


def test_restricted_mean_differences_are_those_of_the_restricted_states(via: Subspaces) -> None:
    high, low = randn(50, WIDTH, seed=1) + 2, randn(40, WIDTH, seed=2)
    difference = (high.mean(0) - low.mean(0))[None]
    projector = torch.cat([via.basis(0), via.basis(2)]).detach()
    inner = (high @ projector.T).mean(0) - (low @ projector.T).mean(0)
    for given in (None, difference):
        found = restricted(vectors(difference), via, (0, 2), given)
        assert torch.allclose(found.directions, (inner @ projector)[None], atol=1e-10)
        assert torch.allclose(found.gap, inner.norm()[None])
    assert restricted(vectors(difference), via, 1).origins[0].method == "mean_difference in part 1"


def test_a_gap_of_another_vector_is_that_of_the_class_means(via: Subspaces) -> None:
    raw, difference = randn(1, WIDTH, seed=3), randn(1, WIDTH, seed=4)
    found = restricted(Directions(raw, torch.ones(1).double(), [Origin("f", "a", "b")]), via, 0, difference)
    assert torch.allclose(found.gap, (found.unit * difference).sum(1))
    # the sign follows from the class means too
    turned = restricted(Directions(-raw, torch.ones(1).double(), [Origin("f", "a", "b")]), via, 0, difference)
    assert torch.allclose(found.directions, turned.directions)


def test_the_parts_of_a_vector_are_the_whole(via: Subspaces) -> None:
    rows = randn(3, WIDTH, seed=6)
    pieces = [restricted(vectors(rows), via, part).directions for part in range(3)]
    assert torch.allclose(torch.stack(pieces).sum(0), rows, atol=1e-6)


def test_what_has_nothing_in_a_part_is_refused(via: Subspaces) -> None:
    with pytest.raises(ValueError, match="has nothing in part 1"):
        restricted(vectors(via.basis(0)[:1].detach()), via, 1)
    with pytest.raises(ValueError, match="no part was named"):
        restricted(vectors(randn(1, WIDTH)), via, ())
    with pytest.raises(ValueError, match="divide width 9, the vectors have width 5"):
        restricted(vectors(randn(1, 5)), via, 0)


@pytest.mark.parametrize("part", range(3))
def test_a_dictionary_inside_a_part_obeys_the_laws(via: Subspaces, part: int) -> None:
    what = inside(via, part)
    x, dz = randn(12, WIDTH, seed=7), randn(12, 7, seed=8)
    z = what.encode(x).z
    assert torch.allclose(what.decode(z + dz) - what.decode(z), what.lift(dz))
    assert torch.allclose(what.lift(dz), dz @ what.directions)
    assert [i for own in what.parts for i in range(own.start, own.stop)] == list(range(7))
    # it reads nothing and writes nothing outside of its part
    others = torch.cat([via.basis(i) for i in range(3) if i != part]).detach()
    assert torch.allclose(what.encode(x + randn(12, len(others)) @ others).z, z, atol=1e-6)
    assert (what.decode(z) @ others.T).abs().max() < 1e-6
    # coordinates in the part are those of the dictionary itself
    assert torch.allclose(what.read(what.decode(z)), what.what.decode(z), atol=1e-6)


def test_a_dictionary_inside_a_part_is_trained_as_usual(via: Subspaces) -> None:
    part = via.basis(0).float().detach()
    x = (torch.rand(600, 2, generator=torch.Generator().manual_seed(0)) @ randn(2, 4).float()) @ part
    rows = x + randn(600, 5, seed=9).float() @ torch.cat([via.basis(1), via.basis(2)]).float().detach()
    via = via.float()
    what = Dictionary.normalized_for(rows @ part.T, 12, ReLU())
    composed = Inside(what, via, 0)
    before = explained_variance(rows @ part.T, composed.read(composed.decode(composed.encode(rows).z)))
    fit(what, local(composed.read(rows), 100, seed=0), (Reconstruction(),), FitConfig(steps=150, rate=1e-2))
    after = explained_variance(rows @ part.T, composed.read(composed.decode(composed.encode(rows).z)))
    assert before < 0.9
    assert after > 0.98


def test_a_write_through_it_keeps_what_it_does_not_explain(via: Subspaces) -> None:
    what = inside(via, 1)
    x = randn(5, WIDTH, seed=10)
    error = x - what.decode(what.encode(x).z)
    written = hold(what, {3: 2.5})(x, VISIT)
    z = what.encode(x).z.clone()
    z[:, 3] = 2.5
    assert torch.allclose(written, what.decode(z) + error)
    others = torch.cat([via.basis(0), via.basis(2)]).detach()
    assert torch.allclose(written @ others.T, x @ others.T, atol=1e-6)


def test_a_dictionary_of_another_width_is_refused(via: Subspaces) -> None:
    with pytest.raises(ValueError, match="part 0 has 4 dimensions, the dictionary reads width 3"):
        Inside(Dictionary(3, 5, ReLU()), via, 0)


def test_latents_go_to_the_part_that_they_write_to(via: Subspaces) -> None:
    mixed = via.basis(0)[0] * 0.6 + via.basis(2)[1] * 0.8
    rows = torch.stack([via.basis(2)[0] * 3, via.basis(0)[1] * 0.1, mixed, torch.zeros(WIDTH)]).detach()
    what = Dictionary(WIDTH, 4, ReLU()).double()
    with torch.no_grad():
        what.decoder.copy_(rows)
    shares = shares_by_part(what, via)
    expected = torch.tensor([[0, 0, 1], [1, 0, 0], [0.36, 0, 0.64], [0, 0, 0]]).double()
    assert torch.allclose(shares, expected, atol=1e-6)
    assert latents_by_part(what, via) == [[1], [], [0, 2]]
    with pytest.raises(ValueError, match="divide width 9"):
        shares_by_part(Dictionary(3, 5, ReLU()), via)


def test_holding_takes_the_place_of_a_rule() -> None:
    what = Dictionary(WIDTH, 6, ReLU(), seed=1).double().eval()
    x = randn(4, WIDTH, seed=11)
    by_rule = Write(what, [4, 1], lambda z, _: torch.tensor([2.0, 0.0]).to(z).expand_as(z))
    assert torch.equal(hold(what, {4: 2.0, 1: 0.0})(x, VISIT), by_rule(x, VISIT))
    with pytest.raises(ValueError, match="one value holds one coordinate"):
        hold(Subspaces.identity(4, [2, 2]), {0: 1.0})
    with pytest.raises(ValueError, match="there is no part 6"):
        hold(what, {6: 1.0})
