import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch

from innerspace.decompose.subspaces import random_rotation
from innerspace.interventions import Read
from innerspace.network.model import Model
from innerspace.planted.compiled import Compiled, CompiledFamily, rows
from innerspace.planted.programs import (
    PROGRAMS,
    Aggregate,
    Given,
    Map,
    Mean,
    Program,
    Select,
    Width,
    balance,
    fraction,
    histogram,
    induction,
    reverse,
    sort,
)

SMALL = {
    "reverse": lambda: reverse(3, 4),
    "histogram": lambda: histogram(3, 4),
    "fraction": lambda: fraction(3, 4),
    "sort": lambda: sort(5, 3),
    "induction": lambda: induction(5, 6),
    "balance": lambda: balance(4, 4),
}


def share_before(x: Sequence[str]) -> list[float]:
    return [x[:i].count("a") / max(i, 1) for i in range(len(x))]


def followed(x: Sequence[str]) -> list[str | None]:
    """What came behind the earlier occurrence."""
    return [x[x.index(item) + 1] if x.index(item) < i else None for i, item in enumerate(x)]


def depth(x: Sequence[str]) -> list[int]:
    return [x[: i + 1].count("(") - x[: i + 1].count(")") for i in range(len(x))]


REFERENCE: dict[str, Callable[[Sequence[str]], list]] = {
    "reverse": lambda x: list(x)[::-1],
    "histogram": lambda x: [Counter(x)[item] for item in x],
    "fraction": share_before,
    "sort": sorted,
    "induction": followed,
    "balance": depth,
}


def every_input(program: Program) -> list[list[str]]:
    letters = program.tokens.values
    match program.name:
        case "sort":
            return [list(row) for row in itertools.permutations(letters, program.length)]
        case "induction":
            return [list(row) * 2 for row in itertools.permutations(letters, program.length // 2)]
        case _:
            return [list(row) for row in itertools.product(letters, repeat=program.length)]


def said(network: Compiled, inputs: Sequence[Sequence[str]]) -> list[list]:
    return [list(row) for row in network.decode(network(network.encode(inputs))[0])]


def turned(network: Compiled, seed: int = 0) -> Compiled:
    return network.hidden(random_rotation(network.width, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("hidden", [False, True])
def test_small_networks_agree_with_plain_python_on_every_input(name: str, hidden: bool) -> None:
    program = SMALL[name]()
    network = turned(Compiled(program)) if hidden else Compiled(program)
    inputs = every_input(program)
    assert len(inputs) >= 60
    found, wanted = said(network, inputs), [REFERENCE[name](row) for row in inputs]
    if program.output.values:
        assert found == wanted
    else:
        torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), atol=1e-5, rtol=0)
    assert [list(program.run(row)[program.output.name]) for row in inputs] == wanted


@pytest.mark.parametrize("name", PROGRAMS)
def test_large_networks_agree_with_plain_python_also_when_rotated(name: str) -> None:
    program = PROGRAMS[name]()
    network, inputs = turned(Compiled(program)), program.inputs(100, seed=3)
    found, wanted = said(network, inputs), [REFERENCE[name](row) for row in inputs]
    if program.output.values:
        assert found == wanted
    else:
        torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SMALL)
def test_rotated_coordinates_hide_the_variables_and_change_nothing_else(name: str) -> None:
    network = Compiled(SMALL[name]()).double()
    rotation = random_rotation(network.width, torch.Generator().manual_seed(1)).double()
    other = network.hidden(rotation)
    ids = network.encode(network.program.inputs(20, seed=1))
    (output, streams), (same, moved) = network(ids), other(ids)
    torch.testing.assert_close(same, output, atol=1e-10, rtol=0)
    torch.testing.assert_close(torch.stack(moved), torch.stack(streams) @ rotation.T, atol=1e-6, rtol=0)
    assert (moved[0][:, 1:] == 0).sum() == 0


@pytest.mark.parametrize("name", PROGRAMS)
def test_states_are_the_sum_of_the_images_and_the_partition_tells_them_apart(name: str) -> None:
    network = turned(Compiled(PROGRAMS[name]()))
    site = f"resid.{network.plan.depth - 1}"
    states, labels = rows(network, site, 500, seed=0)
    truth = network.truth(site)
    torch.testing.assert_close(sum(truth.added(name, labels[name]) for name in truth.images), states, atol=1e-4, rtol=0)
    subspaces, names = truth.partition(labels)
    assert names == (*labels, "constant")
    assert sum(subspaces.sizes) == network.width
    z = subspaces.encode(states).z
    assert z[:, subspaces.parts[-1]].std(0).max() < 1e-4
    for name, part in zip(labels, subspaces.parts, strict=False):
        # nothing but its variable moves a part, and it moves all of it
        own = subspaces.encode(truth.added(name, labels[name])).z
        torch.testing.assert_close(z[:, part] - z[0, part], own[:, part] - own[0, part], atol=1e-4, rtol=0)
        assert z[:, part].std(0).min() > 0.01


def test_a_variable_that_always_has_a_value_moves_one_dimension_less() -> None:
    network = Compiled(induction(6, 6))
    _, labels = rows(network, "resid.1", 150, seed=0)
    subspaces, names = network.truth("resid.1").partition(labels)
    # the token before is missing at the first position, and what followed in all of the first round
    assert dict(zip(names, subspaces.sizes, strict=True)) == {
        "token": 5,
        "position": 5,
        "previous": 6,
        "following": 6,
        "constant": 3,
    }


@pytest.mark.parametrize(
    ("name", "site", "variable"),
    [
        ("reverse", "embed", "token"),
        ("histogram", "embed", "token"),
        ("fraction", "embed", "token"),
        ("sort", "resid.0", "rank"),
        ("induction", "resid.0", "previous"),
        ("balance", "resid.0", "opened"),
    ],
)
def test_exchanging_a_subspace_exchanges_the_variable(name: str, site: str, variable: str) -> None:
    network = turned(Compiled(SMALL[name]()))
    program, model = network.program, Model(network, CompiledFamily())
    inputs, others = program.inputs(40, seed=1), program.inputs(40, seed=2)
    _, labels = rows(network, site, 6, seed=0)
    spans = network.truth(site).spans({name: column.flatten() for name, column in network.labels(inputs, site).items()})
    assert len(labels[variable]) == 6
    span = spans[variable]
    clean, other = (model.run(network.encode(x), {site: Read()}).hidden[site] for x in (inputs, others))
    patched = model.resume(network.encode(inputs), site, clean + (other - clean) @ span.T @ span)
    runs = [(program.run(x), program.run(y)) for x, y in zip(inputs, others, strict=True)]
    living = network.truth(site).images
    wanted = [
        program.run(x, {v: (theirs if v == variable else own)[v] for v in living})[program.output.name]
        for x, (own, theirs) in zip(inputs, runs, strict=True)
    ]
    found = network.decode(patched.output["output"])
    assert wanted != [own[program.output.name] for own, _ in runs]
    if program.output.values:
        assert [list(row) for row in found] == [list(row) for row in wanted]
    else:
        torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), atol=1e-4, rtol=0)


def test_what_follows_from_other_variables_is_said_and_true() -> None:
    network = Compiled(balance())
    truth = network.truth("resid.1")
    assert truth.functions_of == {"depth": ("opened", "closed")}
    _, labels = rows(network, "resid.1", 400, seed=0)
    depths = torch.tensor([network.program.output.values[i] for i in labels["depth"]])
    assert torch.equal(depths, labels["opened"] - labels["closed"])
    assert Compiled(reverse()).truth("resid.0").functions_of == {}


def test_rows_differ_and_say_when_there_are_no_more() -> None:
    network = Compiled(reverse(3, 4))
    states, labels = rows(network, "resid.0", 30, seed=1)
    assert len(torch.unique(states, dim=0)) == len(states) == 30
    assert set(labels) == {"token", "position", "reversed"}
    assert torch.equal(states, rows(network, "resid.0", 30, seed=1)[0])
    with pytest.raises(ValueError, match=r"some 36 different states at 'resid.0', not 37"):
        rows(network, "resid.0", 37, seed=1)
    with pytest.raises(ValueError, match=r"embed, resid\.0"):
        rows(network, "resid.3", 5, seed=1)


def test_even_reversal_leaves_its_variables_independent() -> None:
    _, labels = rows(Compiled(reverse(3, 4)), "resid.0", 36, seed=1)
    assert {tuple(row) for row in torch.stack(list(labels.values()), -1).tolist()} == set(
        itertools.product(range(3), range(4), range(3))
    )


def test_a_pass_goes_on_from_every_site() -> None:
    network = turned(Compiled(sort(5, 3)))
    model = Model(network, CompiledFamily())
    ids = network.encode(network.program.inputs(8, seed=0))
    clean = model.run(ids, {site: Read() for site in model.sites})
    for site in model.sites:
        assert model.cut(site) == model.site(site)
        resumed = model.resume(ids, site, clean.hidden[site])
        torch.testing.assert_close(resumed.output["output"], clean.output["output"])
    assert not CompiledFamily().mask(ids, model.site("embed"))[:, 0].any()


def test_what_varies_is_kept_by_a_lossless_compression_and_not_by_a_narrower_one() -> None:
    program = reverse(4, 4)
    network, inputs = Compiled(program), every_input(program)
    wanted = [REFERENCE["reverse"](row) for row in inputs]
    labels = {name: column.flatten() for name, column in network.labels(inputs, "resid.0").items()}
    # three variables with three dimensions each, what is common to all positions, and the beginning
    lossless = network.compressed(11, steps=20)
    assert said(lossless, inputs) == wanted
    assert (lossless.truth("resid.0").overlaps(labels) - torch.eye(3)).abs().max() < 0.02
    narrow = network.compressed(9, steps=60)
    right = sum(a == b for x, y in zip(said(narrow, inputs), wanted, strict=True) for a, b in zip(x, y, strict=True))
    assert right < 0.99 * 4 * len(inputs)
    with pytest.raises(ValueError, match="not orthogonal"):
        narrow.truth("resid.0").partition(labels)
    with pytest.raises(ValueError, match="1 … 12, not 13"):
        network.compressed(13)


def test_training_makes_a_compression_better() -> None:
    program = induction(6, 6)
    network, inputs = Compiled(program), program.inputs(100, seed=9)
    wanted = network(network.encode(inputs))[0]

    def error(other: Compiled) -> float:
        return float((other(network.encode(inputs))[0] - wanted).square().sum(-1).mean())

    assert error(network.compressed(22, steps=150)) < 0.5 * error(network.compressed(22, steps=0))


def made(rule: Callable[[Given, Given], Aggregate | Map | Mean | Width]) -> Program:
    tokens, positions = Given("token", ("a", "b", "c")), Given("position", (0, 1, 2))
    return Program("made", tokens, positions, rule(tokens, positions), lambda s: s.choices("abc", k=3))


def test_maps_of_one_and_two_variables_with_missing_values() -> None:
    def twice(tokens: Given, positions: Given) -> Map:
        before = Aggregate("before", Select(positions, positions, lambda k, q: k == q - 1), tokens)
        vowel = Map("vowel", (before,), lambda item: item == "a")
        return Map("both", (vowel, tokens), lambda yes, item: f"{yes:d}{item}")

    program = made(twice)
    inputs = every_input(program)
    assert program.run("abc")["both"] == [None, "1b", "0c"]
    assert said(Compiled(program), inputs) == [list(program.run(row)["both"]) for row in inputs]
    assert Compiled(program).plan.depth == 2
    assert Compiled(program).truth("resid.1").functions_of == {"vowel": ("before",), "both": ("vowel", "token")}


def test_what_cannot_be_a_program_is_refused() -> None:
    def number_read(tokens: Given, positions: Given) -> Map:
        every = Select(tokens, tokens, lambda k, q: True)
        return Map("odd", (Mean("share", every, tokens, lambda item: item == "a"),), bool)

    with pytest.raises(ValueError, match="'odd' reads 'share', a number"):
        made(number_read)
    with pytest.raises(ValueError, match="names of their own; they are token, position, token"):
        made(lambda tokens, _: Map("token", (tokens,), str.upper))
    with pytest.raises(ValueError, match="one or two variables, 'none' reads 0"):
        Map("none", (), lambda x: x)
    several = made(lambda tokens, _: Aggregate("any", Select(tokens, tokens, lambda k, q: True), tokens))
    with pytest.raises(ValueError, match="'any' at position 0 would be several values"):
        several.run("abc")
    with pytest.raises(ValueError, match="counts up to 2, 3"):
        made(lambda tokens, _: Width("all", Select(tokens, tokens, lambda k, q: True), 2)).run("abc")
    with pytest.raises(ValueError, match="3 tokens out of"):
        several.run("abca")
    with pytest.raises(ValueError, match="1 … 26 letters"):
        reverse(27)
    with pytest.raises(ValueError, match="not orthogonal"):
        Compiled(reverse(3, 4)).hidden(torch.ones(12, 12))
