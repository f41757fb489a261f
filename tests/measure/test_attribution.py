"""Effects of nodes: exact in linear networks, complete on the line, and those of a planted circuit."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from families import CASES
from innerspace.decompose.base import Decomposition
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import ReLU
from innerspace.decompose.sequence import Sequencewise
from innerspace.decompose.subspaces import Subspaces
from innerspace.interventions import Read
from innerspace.language.text import Text
from innerspace.measure.attribution import attributed, edges, exact, rank_correlation
from innerspace.measure.nodes import Asked, Node, Passage, Values, mean_values
from innerspace.network.model import Model
from innerspace.planted.compiled import Compiled, CompiledFamily
from innerspace.planted.programs import reverse
from measure.layers import WIDTH, D, Layers, LayersFamily, inputs, network, parted, planted


def dictionary(seed: int = 3) -> Dictionary:
    """More latents than coordinates, and an error."""
    return Dictionary(WIDTH, 20, ReLU(), seed=seed).double().eval()


def asked(rows: int = 5, tokens: int = 3, **changes: Any) -> Asked[Tensor]:
    place = torch.arange(tokens).expand(rows, tokens)
    given = {"batch": inputs(rows), "metric": last, "place": place, "other": inputs(rows, seed=9)}
    return Asked(**(given | changes))


def last(trace: Any) -> Tensor:
    return trace.output["y"][:, 0]


@pytest.mark.parametrize("via", [parted(), parted([3, 2, 1]), dictionary()], ids=["axes", "subspaces", "dictionary"])
def test_in_a_linear_network_all_ways_are_exact(via: Decomposition) -> None:
    passage = Passage(network(torch.nn.Identity()), asked(), {"first": via}, 3)
    count = len(via.parts)
    truth = exact([passage], [Node("first", part, place) for place in range(3) for part in [*range(count), None]])
    for steps in (0, 3):
        found = attributed([passage], steps=steps)["first"]
        torch.testing.assert_close(found.flatten(1), truth, rtol=0, atol=1e-10)
    whole = passage.clean - passage.given("first", passage.states["first"] - passage.change("first"))
    torch.testing.assert_close(truth.sum(1), whole, rtol=0, atol=1e-10)
    # a node at all places is that at each of them
    every = exact([passage], [Node("first", part) for part in range(count)])
    torch.testing.assert_close(every, truth.view(5, 3, -1).sum(1)[:, :-1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("errors", [True, False])
def test_integrated_gradients_add_up_to_the_whole_and_patching_does_not(errors: bool) -> None:
    passage = Passage(network(torch.nn.Tanh()), asked(), {"first": dictionary()}, 3)
    whole = passage.clean - passage.given("first", passage.states["first"] - passage.change("first", errors=errors))
    off = [
        float((attributed([passage], steps=steps, errors=errors)["first"].sum((1, 2)) - whole).abs().max())
        for steps in (0, 16, 32, 64)
    ]
    assert off[0] > 0.05
    assert off[3] < 1e-3
    # the midpoint rule's error is quadratic
    assert off[1] / off[2] == pytest.approx(4, rel=0.1)
    assert off[2] / off[3] == pytest.approx(4, rel=0.1)
    if not errors:
        assert not attributed([passage], steps=16, errors=False)["first"][..., -1].any()


@pytest.mark.parametrize("name", ["llama", "redmotion"])
def test_any_model_is_attributed_completely(name: str) -> None:
    case = CASES[name]()
    batch: Any = case.batch
    other = Text(batch.ids.flip(0), batch.valid) if isinstance(batch, Text) else batch
    site = case.sites[len(case.sites) // 2]
    x = case.model.run(batch, {site: Read()}).hidden[case.model.site(site).name]
    valid = case.model.family.mask(batch, case.model.site(site))
    place = torch.zeros(x.shape[:-1], dtype=torch.int64)
    place = place if valid is None else place.masked_fill(~valid, -1)

    def metric(trace: Any) -> Tensor:
        return trace.output[case.output].flatten(1)[:, -3:].sum(1)

    width = case.model.site(site).width
    via = Subspaces.random(width, [2, width - 2], torch.Generator().manual_seed(1)).to(x.dtype)
    question = Asked(batch, metric, place, other)
    means = mean_values(case.model, [question], {site: via}, 1)
    for passage in (Passage(case.model, question, {site: via}, 1, kind) for kind in (None, means)):
        own = case.model.site(site).name
        whole = passage.clean - passage.given(own, passage.states[own] - passage.change(own))
        found = attributed([passage], steps=16)[own].sum((1, 2))
        torch.testing.assert_close(found, whole, rtol=0.05, atol=0.02 * float(passage.clean.abs().max()) + 1e-4)


def test_a_planted_circuit_is_found_and_nothing_else() -> None:
    model, vias, truth = planted()
    question = asked(rows=6, tokens=4, batch=inputs(6, 4) + 3, other=inputs(6, 4, seed=9) + 3)
    passage = Passage(model, question, vias, 4)
    for steps in (0, 10):
        found = {site: effects.abs().mean(0) for site, effects in attributed([passage], steps=steps).items()}
        seen = {
            (site, int(part), int(place))
            for site, effects in found.items()
            for place, part in (effects > 1e-9).nonzero()
        }
        assert seen == truth.nodes
        ends = sorted(node for node in truth.nodes if node[0] == "second")
        through = edges([passage], "first", [Node(*node) for node in ends], steps=steps).abs().mean(0)
        led = {(("first", int(part), int(place)), ends[int(i)]) for i, place, part in (through > 1e-9).nonzero()}
        assert led == truth.edges


def test_a_compiled_program_reads_the_token_at_the_mirrored_place_and_no_other() -> None:
    network = Compiled(reverse(5, 4)).double()
    model = Model(network, CompiledFamily())
    one, two = network.program.inputs(12, 1), network.program.inputs(12, 2)
    labels = network.labels([*one, *two], "embed")
    flat = {name: values.flatten() for name, values in labels.items()}
    via, names = network.truth("embed").partition(flat)
    place = torch.tensor([-1, 0, 1, 2, 3]).expand(12, 5)
    right = torch.tensor([network.program.tokens.values.index(row[3]) for row in one])

    def metric(trace: Any) -> Tensor:
        # what is said at the first position
        return trace.output["output"][torch.arange(12), 1, right]

    passage = Passage(model, Asked(network.encode(one), metric, place, network.encode(two)), {"embed": via.double()}, 4)
    found = attributed([passage])["embed"]
    differs = torch.tensor([a[3] != b[3] for a, b in zip(one, two, strict=True)])
    token = names.index("token")
    assert differs.any()
    assert bool((found[differs][:, 3, token] > 0.9).all())
    found[:, 3, token] = 0
    assert float(found.abs().max()) < 1e-6


def test_edges_of_a_node_add_up_to_its_effect() -> None:
    vias: Mapping[str, Decomposition] = {"first": dictionary(), "second": dictionary(4)}
    passage = Passage(network(torch.nn.Tanh()), asked(), vias, 3)
    targets = [Node("second", part, place) for place in range(3) for part in [*range(20), None]]
    found = edges([passage], "first", targets).sum(1)
    torch.testing.assert_close(found, attributed([passage])["first"], rtol=0, atol=1e-10)
    # a node at all places is its sum over them
    every = edges([passage], "first", [Node("second", part) for part in [*range(20), None]]).sum(1)
    torch.testing.assert_close(every, found, rtol=0, atol=1e-10)


def test_an_edge_that_goes_around_what_lies_between_is_none_there() -> None:
    class Three(Layers):
        def forward(self, x: Tensor) -> Tensor:
            return self.readout(self.third(self.second(self.first(x)).tanh()).sum(1))

    class ThreeFamily(LayersFamily):
        def sites(self, module: torch.nn.Module) -> list[Any]:
            found = super().sites(module)
            return [*found, type(found[0])("third", "third", WIDTH)]

    module = Three(torch.nn.Tanh(), torch.eye(WIDTH, dtype=D), torch.ones(1, WIDTH, dtype=D), None)
    module.third = torch.nn.Identity()
    passage = Passage(Model(module, ThreeFamily()), asked(), dict.fromkeys(("first", "second", "third"), parted()), 3)
    assert not edges([passage], "first", [Node("third", 0)]).any()
    assert edges([passage], "second", [Node("third", 0)]).any()


def test_means_are_those_of_places() -> None:
    model, via = network(torch.nn.Tanh()), dictionary()
    place = torch.tensor([[0, 1, 1], [1, -1, 0]])
    questions = [asked(2, place=place, batch=inputs(2, seed=seed)) for seed in (1, 2)]
    found = mean_values(model, questions, {"second": via}, 2)["second"]
    for number in range(2):
        rows = list[Tensor]()
        for question in questions:
            x = model.run(question.batch, {"second": Read()}).hidden["second"]
            rows += [x[i, j] for i in range(2) for j in range(3) if place[i, j] == number]
        codes = via.encode(torch.stack(rows)).z
        torch.testing.assert_close(found.code[number], codes.mean(0))
        torch.testing.assert_close(found.error[number], (torch.stack(rows) - via.decode(codes)).mean(0))


def test_a_counterfactual_of_another_length_is_taken_place_by_place() -> None:
    model, via = network(torch.nn.Tanh()), parted()
    there = torch.tensor([[0, 1, 1, 2], [2, 0, -1, 1]])
    here = torch.tensor([[0, 1, 2], [2, 1, 0]])
    question = asked(2, place=here, other=inputs(2, 4, seed=5), other_place=there)
    passage = Passage(model, question, {"first": via}, 3)
    x = model.run(question.other, {"first": Read()}, stop=True).hidden["first"]
    mean = (x[0, 1] + x[0, 2]) / 2
    expected = torch.stack((torch.stack((x[0, 0], mean, x[0, 3])), torch.stack((x[1, 0], x[1, 3], x[1, 1]))))
    torch.testing.assert_close(passage.states["first"] - passage.change("first"), expected, rtol=0, atol=1e-12)


def test_positions_without_a_place_have_no_part_in_anything() -> None:
    place = torch.tensor([0, -1, 1]).expand(5, 3)
    passage = Passage(network(torch.nn.Tanh()), asked(place=place), {"first": dictionary()}, 2)
    assert not passage.change("first")[:, 1].any()
    whole = passage.clean - passage.given("first", passage.states["first"] - passage.change("first"))
    found = attributed([passage], steps=64)["first"]
    assert found.shape == (5, 2, 21)
    torch.testing.assert_close(found.sum((1, 2)), whole, rtol=0, atol=1e-3)


def test_rank_correlation_is_scipys() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randint(0, 6, (40,), generator=generator).double(), torch.randn(40, generator=generator).double()
    assert math.isclose(rank_correlation(a, a + b), float(spearmanr(a, a + b).statistic), rel_tol=1e-12)
    assert math.isnan(rank_correlation(torch.ones(3), b[:3]))


def test_what_cannot_be_is_refused() -> None:
    model, via = network(torch.nn.Tanh()), parted()

    def passage(places: int = 3, means: Any = None, **changes: Any) -> Passage[Tensor]:
        return Passage(model, asked(**changes), {"first": via}, places, means)

    with pytest.raises(ValueError, match=r"places have shape \[5, 2\], the states at 'first' \[5, 3\]"):
        passage(place=torch.zeros(5, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="there is none at any site"):
        Passage(model, asked(), {}, 3)
    with pytest.raises(ValueError, match="stands at place 2; there are 2 places"):
        passage(2)
    with pytest.raises(ValueError, match="means by place, or counterfactual inputs"):
        passage(other=None)
    with pytest.raises(ValueError, match="3 means are needed at 'first', one per place; there are 2"):
        passage(means={"first": Values(torch.zeros(2, 6), torch.zeros(2, 6))})
    with pytest.raises(ValueError, match="the counterfactual of row 1 lacks a place that the row has"):
        passage(other_place=torch.tensor([[0, 1, 2], [0, 1, 1]]).repeat(3, 1)[:5])
    with pytest.raises(ValueError, match="should give 5 finite numbers"):
        passage(metric=lambda trace: last(trace) / 0)
    with pytest.raises(ValueError, match="no input has a position at place 3 of 4"):
        mean_values(model, [asked()], {"first": via}, 4)
    with pytest.raises(ValueError, match="reads several together"):
        Values.of(Sequencewise(3, WIDTH, 8, ReLU()), torch.zeros(2, 3, WIDTH))
    with pytest.raises(ValueError, match="edges lead from 'first' to one site behind it, not to first"):
        edges([passage()], "first", [Node("first", 0)])
    with pytest.raises(ValueError, match="steps should be a positive number, or 0"):
        attributed([passage()], steps=-1)
    with pytest.raises(ValueError, match="nothing was asked"):
        attributed([])
    with pytest.raises(ValueError, match="there is no part 6"):
        exact([passage()], [Node("first", 6)])
