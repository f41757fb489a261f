"""Latents of known meaning, through everything: named exactly and told apart, and chance found to be chance."""

import pytest
import torch
from torch import Tensor

import innerspace.explain
from explain.planted import SPAN, WORDS, TextFamily, latents, model, previous, texts, token
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.directions import Directions, Origin
from innerspace.decompose.subspaces import Subspaces
from innerspace.explain.examples import NEAR, RANDOM, Drawn, Sampling, Sides
from innerspace.explain.interpret import Interpretation, Subjects, interpret, watch
from innerspace.explain.reading import TextReader, read
from innerspace.explain.rules import OneOf
from innerspace.language.text import Text
from innerspace.measure.estimate import Estimate
from language.words import tokenizer

SETS = {0: (4,), 1: (7, 11, 23), 3: (30, 31)}
"""By latent the words that it is on for; latent 2 wants 5 or 6 behind 9, latent 4 is on at random."""


def planted(order: Tensor | None = None) -> Dictionary:
    place = list(range(WORDS)) if order is None else order.tolist()
    sets = {i: {token(place[word]): 1.0 for word in words} for i, words in SETS.items()}
    both = {token(place[5]): 1.0, token(place[6]): 1.0, previous(place[9]): 1.0}
    noise = {2 * SPAN: 1.0}
    return latents(2 * SPAN + 1, [(sets[0], 0.5), (sets[1], 0.5), (both, 1.5), (sets[3], 0.5), (noise, 0.95)])


def frequent(rows: int = 300) -> list[Text]:
    """Texts in which 5 or 6 often stands behind 9, so that the pair is not too rare to be seen."""
    (batch,) = texts(rows, 30)
    ids = batch.ids.clone()
    behind = (ids[:, :-1] == token(9)) & (
        torch.rand(ids[:, 1:].shape, generator=torch.Generator().manual_seed(1)) < 0.4
    )
    ids[:, 1:] = ids[:, 1:].where(~behind, token(5) + ids[:, 1:] % 2)
    return [Text(ids[: rows // 2]), Text(ids[rows // 2 :])]


@pytest.fixture(scope="module")
def found() -> Interpretation:
    reader = TextReader(tokenizer(WORDS))
    return interpret(model(TextFamily()), frequent(), planted(), "hidden", range(5), reader, replicates=200)


def rule(found: Interpretation, i: int) -> list[dict[str, set[str]]]:
    known = found.explained[i].explanation.rule
    assert known is not None
    return [{test.about: set(test.values) for test in clause.tests} for clause in known.clauses]


def test_token_sets_are_named_exactly(found: Interpretation) -> None:
    for i, words in SETS.items():
        assert rule(found, i) == [{"token": {f" w{word}" for word in words}}]
        one = found.explained[i]
        assert one.detection.mean >= 0.99
        assert one.fuzzing.mean >= 0.99
    assert found.explained[0].explanation.text == "token “ w4”"


def test_a_token_behind_another_is_named_with_it(found: Interpretation) -> None:
    assert rule(found, 2) == [{"token": {" w5", " w6"}, "previous": {" w9"}}]
    # where a context begins with the token, nobody can see what stands before it
    assert found.explained[2].detection.mean >= 0.99
    assert found.explained[2].fuzzing.mean >= 0.99


def test_what_is_on_at_random_is_not_explained(found: Interpretation) -> None:
    one = found.explained[4]
    for score in (one.detection, one.fuzzing):
        assert score.low is not None
        assert score.high is not None
        assert score.low <= 0.5 <= score.high
        assert abs(score.mean - 0.5) < 0.12


def test_controls_are_worse(found: Interpretation) -> None:
    scores = found.scores
    detection = scores.copies("detection")[..., 0]
    ways = dict(zip(scores.ways, detection.T.tolist(), strict=True))
    assert ways["frequent"][0] == pytest.approx(1.0)
    assert 0.55 < ways["frequent"][1] < 0.9
    for way in ("shuffled", "random"):
        assert all(abs(value - 0.5) < 0.2 for value in ways[way])
    assert scores.unanswered() == 0
    assert not found.missing


def test_names_of_tokens_do_not_matter(found: Interpretation) -> None:
    order = torch.randperm(WORDS, generator=torch.Generator().manual_seed(9))
    renamed = [Text(batch.ids.where(batch.ids < 3, 3 + order[(batch.ids - 3).clamp(min=0)])) for batch in frequent()]
    # noise follows from the tokens, so the latent of noise is another one
    again = interpret(
        model(TextFamily()), renamed, planted(order), "hidden", range(4), TextReader(None), replicates=200
    )
    for one, other in zip(again.explained, found.explained[:4], strict=True):
        assert (one.detection.mean, one.fuzzing.mean) == (other.detection.mean, other.fuzzing.mean)


def test_shown_and_judged_have_no_document_in_common() -> None:
    what, sampling = planted(), Sampling(near=2)
    watched = [watch(what, "hidden", [0, 1], sampling.near)]
    material = read(model(TextFamily()), frequent(), watched, TextReader())
    subjects = Subjects.of(material, watched, [[0, 1]], sampling.near)
    for seed in range(3):
        drawn = Sides(material, sampling, seed).draw(subjects.firings[1], subjects.near[1])
        assert isinstance(drawn, Drawn)
        shown = {context.group for context in (*drawn.shown.on, *drawn.shown.off, *drawn.chance.on)}
        judged = {item.seen.group for item in drawn.items}
        assert not shown & judged
        detection = [item for item in drawn.items if item.task == "detection"]
        bands = [item.band for item in detection]
        assert {band: bands.count(band) for band in range(5)} == dict.fromkeys(range(5), sampling.judged)
        assert bands.count(RANDOM) == bands.count(NEAR) == 5 * sampling.judged
        for item in drawn.items:
            assert item.question.context.values == ()
            if item.task == "detection":
                assert item.truth == item.seen.on == (item.band >= 0)
                assert item.question.context.at == 0
            else:
                assert item.question.marked is not None
                assert item.truth == (item.seen.values[item.question.marked] != 0)
        assert all(any(context.values) for context in drawn.shown.on)
        assert not any(any(context.values) for context in drawn.shown.off)


def test_values_and_documents_are_those_of_the_codes() -> None:
    batches, what = frequent(20), planted()
    batches = [Text(one.ids, None, torch.arange(30).div(11, rounding_mode="floor") + 10 * torch.arange(10)[:, None])
               for one in batches]  # fmt: skip
    watched = [watch(what, "hidden", [1], 0)]
    material = read(model(TextFamily()), batches, watched, TextReader(None, width=8))
    ids = torch.cat([one.ids for one in batches])
    firing = material.firings[0][0]
    on = torch.isin(ids, torch.tensor([token(word) for word in SETS[1]]))
    assert [(int(place) >> 24, int(place) & (1 << 24) - 1) for place in firing.place] == [
        *map(tuple, on.nonzero().tolist())
    ]
    for place in firing.place.tolist():
        context = material.context(place, firing, 5)
        row, at = place >> 24, place & (1 << 24) - 1
        start = at - context.at
        width = len(context.values)
        assert width <= 8
        assert [value != 0 for value in context.values] == on[row, start : start + width].tolist()
        assert len({*torch.cat([one.document for one in batches])[row, start : start + width].tolist()}) == 1  # pyright: ignore
        assert context.shown((context.at,)).count("«") == 1


def test_coordinates_that_are_never_zero_have_ends() -> None:
    width = 2 * SPAN + 1
    raw = torch.zeros(1, width)
    raw[0, token(8)], raw[0, token(9)], raw[0, token(12)], raw[0, 2 * SPAN] = 3.0, 3.0, -3.0, 0.001
    vector = Directions(raw, torch.ones(1), [Origin("w8", "w8", "w12")])
    reader = TextReader(tokenizer(WORDS))
    batches = texts(300)
    for end, words in (("upper", {" w8", " w9"}), ("lower", {" w12"})):
        one = interpret(model(TextFamily()), batches, vector, "hidden", [0], reader, end=end, replicates=50)  # pyright: ignore
        (clause,) = one.explained[0].explanation.rule.clauses  # pyright: ignore
        assert words <= set(clause.tests[0].values)
        assert one.explained[0].detection.mean > 0.6
        assert one.explained[0].threshold != 0


def test_parts_of_subspaces_have_coordinates() -> None:
    width = 2 * SPAN + 1
    what = Subspaces.identity(width, [SPAN, SPAN, 1])
    one = interpret(
        model(TextFamily()), texts(), what, "hidden", [token(21)], TextReader(tokenizer(WORDS)), replicates=50
    )
    assert one.explained[0].explanation.rule.clauses[0].tests == (OneOf("token", (" w21",)),)  # pyright: ignore


def test_what_is_too_rare_or_too_dense_is_told() -> None:
    what = latents(2 * SPAN + 1, [({2 * SPAN: 1.0}, 0.9999), ({2 * SPAN: 1.0}, 0.55)])
    found = interpret(model(TextFamily()), texts(), what, "hidden", [0, 1], replicates=20)
    assert found.missing[0, 0].startswith("on in ")
    assert found.missing[0, 1] == "hardly any context is without a firing"
    with pytest.raises(ValueError, match="no coordinate could be explained, such as 0: on in"):
        _ = found.scores
    with pytest.raises(ValueError, match=r"should be some of 0 … 1, each once: \[5\]"):
        interpret(model(TextFamily()), texts(), what, "hidden", [5])
    with pytest.raises(ValueError, match="one seed at least, not 0"):
        interpret(model(TextFamily()), texts(), what, "hidden", [0], seeds=0)


def test_the_notebook_of_the_package_runs() -> None:
    """The docstring's lines, as they stand there, with a model, batches and a tokenizer in hand."""
    assert innerspace.explain.__doc__
    block = innerspace.explain.__doc__.split("::\n\n", 1)[1].split("\n\nA forecaster", 1)[0]
    lines = [
        line.strip() if not line.startswith("        ") else line[4:] for line in block.splitlines() if line.strip()
    ]
    assert len(lines) < 10
    said = list[tuple[object, ...]]()
    code = "\n".join(lines).replace('"resid.2"', '"hidden"').replace("[3, 17, 42]", "[0, 1, 3]")
    names = {
        "model": model(TextFamily()),
        "batches": frequent(),
        "dictionary": planted(),
        "tokenizer": tokenizer(WORDS),
        "print": lambda *words: said.append(words),
    }
    exec(code, names)
    assert [words[0] for words in said] == [0, 1, 3]
    assert said[0][1] == "token “ w4”"
    assert isinstance(said[0][2], Estimate)
