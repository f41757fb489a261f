"""Circuits: whole and empty ones exactly, closed forms where effects add up, a planted circuit found and judged."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from families import CASES
from innerspace.interventions import Read
from innerspace.language.text import Text
from innerspace.measure.attribution import attributed
from innerspace.measure.circuits import (
    Circuit,
    Edge,
    Keep,
    Scored,
    answers,
    circuit_of,
    crossing,
    faithfulness,
    small_circuits,
    with_edges,
)
from innerspace.measure.estimate import Estimate
from innerspace.measure.nodes import Asked, Node, Passage, mean_values
from innerspace.network.trace import Trace
from measure.layers import D, inputs, network, parted, planted
from measure.test_attribution import dictionary, last

NAMES = ("a", "b", "c", "d")


def passages(tokens: int = 4, rows: int = 6) -> list[Passage[Tensor]]:
    """Two batches against the planted circuit, ablated by means."""
    model, vias, _ = planted()
    place = torch.arange(tokens).expand(rows, tokens)
    questions = [Asked(inputs(rows, tokens, seed) + 1, last, place, group=torch.arange(rows)) for seed in (1, 2)]
    # about their own means, what is linear has no effect on average
    means = mean_values(model, [Asked(inputs(rows, tokens, 3), last, place)], vias, tokens)
    return [Passage(model, one, vias, tokens, means) for one in questions]


def everything(passage: Passage[Tensor]) -> Circuit:
    nodes = [Node(site, part) for site, via in passage.vias.items() for part in [*range(len(via.parts)), None]]
    return Circuit(NAMES, tuple(Scored(node, Estimate(0.0)) for node in nodes))


def test_the_whole_circuit_has_everything_and_the_empty_one_nothing_exactly() -> None:
    own = passages()
    whole = faithfulness(own, everything(own[0]), replicates=50)
    assert (whole.faithfulness.mean, whole.completeness.mean) == (1, 0)
    assert (whole.faithfulness.low, whole.faithfulness.high) == (1, 1)
    assert whole.inside == whole.clean
    empty = faithfulness(own, Circuit(NAMES, ()), replicates=50)
    assert (empty.faithfulness.mean, empty.completeness.mean) == (0, 1)
    # a partition has no error, so that reconstructions change nothing
    assert math.isclose(empty.spliced_share.mean, 1, rel_tol=1e-9)


def test_a_planted_circuit_is_pruned_to_judged_and_kept(tmp_path: Path) -> None:
    own, (_, _, truth) = passages(), planted()
    groups = torch.arange(6).repeat(2)
    found = circuit_of(attributed(own, steps=10), NAMES, top=5, groups=groups)
    assert {(one.node.site, one.node.part, one.node.place) for one in found.nodes} == truth.nodes
    assert [abs(one.effect.mean) for one in found.nodes] == sorted(
        (abs(o.effect.mean) for o in found.nodes), reverse=True
    )
    wired = with_edges(found, own, steps=10).pruned_edges(threshold=1e-6)
    ends = {tuple((n.site, n.part, n.place) for n in (edge.source, edge.target)) for edge in wired.edges}
    assert ends == truth.edges
    judged = faithfulness(own, wired, replicates=50)
    assert math.isclose(judged.faithfulness.mean, 1, rel_tol=1e-9)
    assert math.isclose(judged.completeness.mean, 0, abs_tol=1e-9)
    # without one of its nodes it is not faithful, and the network without that one is not complete
    less = Circuit(NAMES, found.nodes[1:])
    assert abs(faithfulness(own, less, replicates=5).faithfulness.mean - 1) > 0.05
    wired.save(tmp_path / "circuit.json")
    assert Circuit.load(tmp_path / "circuit.json") == wired
    threshold = abs(found.nodes[1].effect.mean)
    assert len(circuit_of(attributed(own, steps=10), NAMES, threshold=threshold).nodes) == 2


def test_means_at_places_are_what_stands_instead() -> None:
    own = passages()[0]
    model, vias = own.model, own.vias
    nothing = {site: torch.zeros(4, 7, dtype=torch.bool) for site in vias}
    keep = {site: Keep(via, own.instead[site], nothing[site][own.place], own.chosen) for site, via in vias.items()}
    ran = model.run(own.asked.batch, {site: (one, Read()) for site, one in keep.items()})
    states = model.run(inputs(6, 4, 3), {"first": Read(), "second": Read()}).hidden
    for site, found in ran.hidden.items():
        torch.testing.assert_close(found, states[site].mean(0).expand(6, 4, -1))
    torch.testing.assert_close(last(ran), answers(own, nothing))
    # what the second layer would make of the first is overruled by its own mean
    made = model.run(states["first"].mean(0)[None], {"second": Read()}).hidden["second"]
    assert not torch.allclose(ran.hidden["second"][:1], made)


def test_small_circuits_where_effects_add_up() -> None:
    model, via = network(torch.nn.Identity()), parted()
    place = torch.arange(3).expand(8, 3)
    questions = [Asked(inputs(8, seed=1) + 2, last, place)]
    means = {"first": mean_values(model, [Asked(inputs(8, seed=7), last, place)], {"first": via}, 3)["first"]}
    own = [Passage(model, questions[0], {"first": via}, 3, means)]
    effect = attributed(own)["first"].sum(1).mean(0)[:-1]
    order = effect.argsort(descending=True).tolist()
    shares = effect[order].cumsum(0) / effect.sum()
    found = small_circuits(own, "first", order, range(7), levels=(0.5, 0.8, 40.0), replicates=20)
    torch.testing.assert_close(
        torch.tensor([0, *shares], dtype=D), torch.tensor([o.mean for o in found.faithfulness], dtype=D)
    )
    line = [0.0, *shares.tolist()]
    reached = next(i for i, value in enumerate(line) if value >= 0.5)
    expected = reached - 1 + (0.5 - line[reached - 1]) / (line[reached] - line[reached - 1])
    assert found.needed[0].parts is not None
    assert math.isclose(found.needed[0].parts.mean, expected, rel_tol=1e-9)
    assert found.needed[2].parts is None
    assert found.needed[2].reached == 0


def test_where_a_level_is_first_reached() -> None:
    x = torch.tensor([0.0, 1, 2, 4], dtype=D)
    y = torch.tensor([[0.0, 0.5, 0.2, 1.0], [0.9, 0, 0, 0], [0, 0, 0, 0.1]], dtype=D)
    found = crossing(x, y, 0.6)
    assert found[0] == pytest.approx(2 + 2 * 0.4 / 0.8)
    assert found[1] == 0
    assert found[2].isnan()
    assert float(crossing(x, y[0], 0.25)) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["gpt2", "redmotion"])
def test_all_kept_is_the_pass_as_it_is(name: str) -> None:
    case = CASES[name]()
    sites = [case.model.site(site).name for site in case.sites[:3]]
    width = {site: case.model.site(site).width for site in sites}
    hidden = case.model.run(case.batch, {site: Read() for site in sites}).hidden
    shape = hidden[sites[0]].shape[:-1]
    sites = [site for site in sites if hidden[site].shape[:-1] == shape]
    vias = {site: parted_for(width[site]) for site in sites}
    valid = case.model.family.mask(case.batch, case.model.site(sites[0]))
    place = torch.zeros(shape, dtype=torch.int64)
    place = place if valid is None else place.masked_fill(~valid, -1)

    def metric(trace: Trace) -> Tensor:
        return trace.output[case.output].flatten(1)[:, -3:].sum(1)

    other = Text(case.batch.ids.flip(0), case.batch.valid) if isinstance(case.batch, Text) else case.batch
    passage = Passage(case.model, Asked(case.batch, metric, place, other), vias, 1)
    kept = {site: torch.ones(1, len(via.parts) + 1, dtype=torch.bool) for site, via in vias.items()}
    assert torch.equal(answers(passage, kept), metric(case.model.run(case.batch, dict.fromkeys(sites, Read()))))


def parted_for(width: int) -> torch.nn.Module:
    from innerspace.decompose.subspaces import Subspaces

    return Subspaces.random(width, [2, width - 2], torch.Generator().manual_seed(1))


def test_errors_are_nodes() -> None:
    model, vias = network(torch.nn.Tanh()), {"first": dictionary(), "second": dictionary(4)}
    place = torch.arange(3).expand(6, 3)
    question = Asked(inputs(6), last, place)
    own = [Passage(model, question, vias, 3, mean_values(model, [question], vias, 3))]
    circuit = circuit_of(attributed(own, steps=10), NAMES[:3], threshold=0.0)
    assert any(one.node.part is None for one in circuit.nodes)
    latents = Circuit(NAMES[:3], tuple(one for one in circuit.nodes if one.node.part is not None))
    assert faithfulness(own, latents, replicates=5).faithfulness.mean != pytest.approx(1, abs=1e-3)
    every = Circuit(
        NAMES[:3], tuple(Scored(Node(site, part), Estimate(1.0)) for site in vias for part in [*range(20), None])
    )
    assert faithfulness(own, every, replicates=5).faithfulness.mean == 1


def test_what_cannot_be_is_refused() -> None:
    own = passages()
    effects = attributed(own)
    with pytest.raises(ValueError, match="either a threshold or a number prunes; got threshold None, top None"):
        circuit_of(effects, NAMES)
    a, b = Node("first", 0, 0), Node("second", 9, 0)
    with pytest.raises(ValueError, match="which are not both nodes"):
        Circuit(NAMES, (Scored(a, Estimate(1.0)),), (Edge(a, b, Estimate(1.0)),))
    with pytest.raises(ValueError, match="is not among 6 parts at 4 places"):
        faithfulness(own, Circuit(NAMES, (Scored(b, Estimate(1.0)),)))
    with pytest.raises(ValueError, match="a node is of 'third'; there are decompositions of first, second"):
        faithfulness(own, Circuit(NAMES, (Scored(Node("third", 0), Estimate(1.0)),)))
    with pytest.raises(ValueError, match="judged by inputs, and there are none"):
        faithfulness([], Circuit(NAMES, ()))
    with pytest.raises(ValueError, match=r"counts should grow from 0 to at most 6; they are \[3, 2\]"):
        small_circuits(own, "first", range(6), [3, 2])
    flat = Passage(
        own[0].model,
        Asked(own[0].asked.batch, lambda trace: last(trace) * 0, own[0].place, own[0].asked.batch),
        own[0].vias,
        4,
    )
    with pytest.raises(ValueError, match="there is nothing to be faithful to"):
        faithfulness([flat], Circuit(NAMES, ()))
