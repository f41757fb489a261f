"""Suites of prompts: who stands where, what the counterfactual changes, what is measured, what cannot be written."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from innerspace.language.causal_lm import LoadedLM, load
from innerspace.language.circuits import Answers, Case, Suite, verify
from innerspace.language.suites.conflict import LAUREATES, MADE_UP, Relation, conflict, recalled
from innerspace.language.suites.greater_than import NOUNS, greater_than
from innerspace.language.suites.ioi import NAMES, OBJECTS, PLACES, TEMPLATES, ioi
from innerspace.language.suites.prompts import Inexpressible, Writer
from innerspace.language.suites.stories import BOYS, GIRLS, stories
from innerspace.network.trace import Trace
from language.tiny import model


def tokenizer(words: str, *, begin: bool = True) -> Any:
    """One token for every word, and for every ending that is given with ##; everything else is unknown."""
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(["[PAD]", "[BOS]", "[UNK]", *words.split()]))}
    base = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"} | ({"bos_token": "[BOS]"} if begin else {})
    return transformers.PreTrainedTokenizerFast(tokenizer_object=base, **special)


def words_of(templates: tuple[str, ...], *others: tuple[str, ...]) -> str:
    bare = " ".join(templates)
    for mark in (",", ".", "{first}", "{second}", "{again}", "{place}", "{object}"):
        bare = bare.replace(mark, " ")
    return " ".join([bare, ", .", *(" ".join(some) for some in others)])


@pytest.fixture(scope="module")
def giving() -> tuple[Any, list[Suite]]:
    """Indirect objects in a vocabulary that writes Mary as two tokens, and has no Tom."""
    known = tuple(name for name in NAMES if name not in ("Mary", "Tom"))
    tiny = tokenizer(words_of(TEMPLATES, known, PLACES, OBJECTS) + " Ma ##ry To ##m")
    return tiny, ioi(tiny, count=40)


def test_names_that_are_no_token_are_named_and_not_used(giving: tuple[Any, list[Suite]]) -> None:
    tiny, suites = giving
    assert suites[0].missing == ("'Tom' is not one token but 2", "'Mary' is not one token but 2")
    used = {tiny.convert_ids_to_tokens(case.right[0]) for case in suites[0].cases}
    assert used <= set(NAMES) - {"Mary", "Tom"}
    with pytest.raises(ValueError, match="0 names as one token, 10 are needed"):
        ioi(tokenizer("and Ma ##ry"))


def test_positions_and_counterfactuals_of_indirect_objects(giving: tuple[Any, list[Suite]]) -> None:
    tiny, suites = giving
    orders = list[bool]()
    assert [(s.name, s.site) for s in suites] == [
        ("ioi.previous-token", "resid.4"),
        ("ioi.induction", "resid.6"),
        ("ioi.position", "resid.8"),
        ("ioi.name", "resid.8"),
    ]
    for previous, induction, position, name in zip(*(suite.cases for suite in suites), strict=True):
        ids, (io,), (s,) = previous.clean, previous.right, previous.wrong
        assert ids[0] == tiny.bos_token_id
        assert all((case.clean, case.right) == (ids, (io,)) for case in (induction, position, name))
        (place_io,) = [i for i, token in enumerate(ids) if token == io]
        s1, s2 = [i for i, token in enumerate(ids) if token == s]
        orders.append(place_io < s1)
        assert sorted(previous.positions) == sorted((place_io + 1, s1 + 1))
        assert (induction.positions, position.positions, name.positions) == ((s2,), (len(ids) - 1,), (len(ids) - 1,))
        swapped = list(ids)
        swapped[place_io], swapped[s1] = s, io
        assert previous.other == induction.other == position.other == tuple(swapped)
        swapped[s2] = io
        assert name.other == tuple(swapped)
    assert sum(orders) == 20
    assert suites[0].cases == ioi(tiny, count=40)[0].cases != ioi(tiny, count=40, seed=1)[0].cases


def test_years_that_split_and_what_is_above() -> None:
    tiny = tokenizer("The the lasted from year to 17 16 ##01 ##02 ##10 ##30 ##50 15 1520 " + " ".join(NOUNS))
    suite = greater_than(tiny, count=30)
    number = tiny.convert_tokens_to_ids
    above = {2: (10, 30, 50), 10: (30, 50), 30: (50,)}
    seen = set[int]()
    for case in suite.cases:
        century, yy = (tiny.convert_ids_to_tokens(case.clean[i]) for i in (-4, -3))
        assert case.clean[-1] == case.clean[-4]
        assert case.positions == (len(case.clean) - 1,)
        assert century in ("15", "16", "17")
        assert case.clean[-2] == number("to")
        assert case.right == tuple(number(f"##{later}") for later in above[int(yy[2:])])
        assert case.other == (*case.clean[:-3], number("##01"), *case.clean[-2:])
        seen.add(int(yy[2:]))
    assert seen == set(above)
    assert "the year 1520 is not the two tokens 15 and 20" in suite.missing
    assert len(suite.missing) == 4 * 100 + 3 * 95
    with pytest.raises(ValueError, match="this tokenizer can express 0 centuries"):
        greater_than(tokenizer("The year to 17"))


SPOKEN = Relation("{entity} lives in {value}", ("Ann", "Bern"))
FACTS = {"Old Bo": "Rome", "Cy": "Oslo", "Dee": "Nice Town", "Big Old Bo": "Rome"}


def test_context_and_memory_are_set_against_each_other() -> None:
    tiny = tokenizer("Ann lives in Bern . Old Bo Cy Dee Rome Oslo Nice Town Big Fay Gus Hal")
    suites = {s.name: s for s in conflict(tiny, "resid_mid.1", FACTS, SPOKEN, ("Fay", "Gus Hal"), bos=False)}
    said = tiny.decode(suites["conflict.memory-corrupted.context"].cases[0].clean)
    assert said == "Old Bo lives in Oslo . Ann lives in Bern . Old Bo lives in"
    both, first = (suites[f"conflict.{what}-corrupted.memory"] for what in ("memory", "context"))
    assert [tiny.decode(case.other) for case in both.cases] == [
        "Gus Hal lives in Oslo . Ann lives in Bern . Gus Hal lives in",
        "Fay lives in Rome . Ann lives in Bern . Fay lives in",
    ]
    assert tiny.decode(first.cases[0].other) == "Gus Hal lives in Oslo . Ann lives in Bern . Old Bo lives in"
    assert both.missing == (
        "'Nice Town', the value of 'Dee', is not one token",
        "no made-up name has 3 tokens like 'Big Old Bo'",
    )
    for suite, answers in ((both, "Rome Oslo"), (suites["conflict.context-corrupted.context"], "Oslo Rome")):
        assert tiny.decode([case.right[0] for case in suite.cases]) == answers
        assert all(case.positions == tuple(range(len(case.clean))) for case in suite.cases)
    assert len(LAUREATES) == 120
    assert not set(LAUREATES) & set(MADE_UP)
    with pytest.raises(ValueError, match="ends with"):
        Relation("{value} is where {entity} lives", ("Ann", "Bern"))


def test_only_what_is_likeliest_is_recalled() -> None:
    tiny = tokenizer("Ann lives in Bern . Old Bo Cy Dee Rome " + " ".join(f"w{i}" for i in range(87)))
    lm = LoadedLM(model("llama"), tiny)
    facts = dict[str, str]()
    for entity in ("Old Bo", "Cy", "Dee"):
        text = Writer(tiny).write(SPOKEN.prompt(), {"entity": entity}).ids
        batch = Suite("", "", "", "choice", (Case(text, text, (0,), (0,), (), ""),)).pairs()[0].clean
        facts[entity] = tiny.convert_ids_to_tokens(int(lm.model.run(batch).output["logits"][0, -1].argmax()))
    wrong = next(word for word in ("Rome", "Bern") if word != facts["Cy"])
    assert recalled(lm, facts | {"Cy": wrong}, SPOKEN) == {e: v for e, v in facts.items() if e != "Cy"}


def test_metrics_by_hand() -> None:
    logits = torch.tensor([[[9.0, 9, 9], [1.0, 2, 0]], [[0.0, math.log(2), math.log(5)], [9.0, 9, 9]]])
    last, right, wrong = torch.tensor([1, 0]), torch.tensor([[1, -1], [1, 2]]), torch.tensor([[0], [0]])
    trace = Trace({"logits": logits})
    assert Answers("preference", last, right, wrong)(trace).tolist() == pytest.approx([1.0, math.log(7)])
    e = math.e
    assert Answers("mass", last, right, wrong[:, :0])(trace).tolist() == pytest.approx([e**2 / (1 + e + e**2), 7 / 8])
    assert Answers("choice", last, torch.tensor([[1], [1]]), wrong)(trace).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="stopped before its end"):
        Answers("choice", last, right, wrong)(Trace())


def drawn(lengths: list[int], positions: tuple[int, ...] | None = None) -> Suite:
    """Random prompts of the tiny models' vocabulary."""
    generator = torch.Generator().manual_seed(3)
    cases = list[Case]()
    for i, length in enumerate(lengths):
        one, two = torch.randint(3, 101, (2, length), generator=generator).tolist()
        places = tuple(range(length)) if positions is None else positions
        cases.append(Case(tuple(one), tuple(two), places, (5,), (6, 7), f"g{i // 2}"))
    return Suite("drawn", "noise", "resid.1", "preference", tuple(cases))


def test_batches_are_padded_and_measured_as_prompts_alone() -> None:
    suite, lm = drawn([4, 7, 5, 6, 7], (1, 3)), model("llama")
    first, second = suite.pairs(3)
    assert first.clean.valid is not None
    assert first.clean.valid.sum(1).tolist() == [4, 7, 5]
    assert first.positions.nonzero().tolist() == [[0, 1], [0, 3], [1, 1], [1, 3], [2, 1], [2, 3]]
    assert (first.metric.last.tolist(), second.prompt.tolist()) == ([3, 6, 4], [3, 4])
    assert torch.cat([first.group, second.group]).tolist() == [0, 0, 1, 1, 2]
    alone, together = verify(lm, suite, "resid.1", size=1), verify(lm, suite, "resid.1", size=5)
    for one, other in zip((alone.clean, alone.patched), (together.clean, together.patched), strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(alone.patched, alone.clean)


def test_the_whole_state_is_the_whole_effect() -> None:
    lm, suite = model("gpt2"), drawn([4, 7, 5, 6])
    every = verify(lm, suite, "resid_mid.1")
    assert every.share == pytest.approx(1)
    torch.testing.assert_close(every.patched, every.other)
    ended = suite.at_end("resid.2")
    assert (ended.name, ended.site) == ("drawn.end", "resid.2")
    torch.testing.assert_close(verify(lm, ended, "resid.2").patched, every.other)
    # behind the last block no token is read by another, so one before the end changes nothing
    torch.testing.assert_close(verify(lm, drawn([4, 7], (1,)), "resid.2").patched, every.clean[:2])


def test_the_interval_follows_groups() -> None:
    lm = model("gpt2")
    found = verify(lm, drawn([6] * 8, (2,)), "resid.0")
    gap, fall = (found.clean - found.other).view(-1, 2), (found.clean - found.patched).view(-1, 2)
    share = float(fall.sum() / gap.sum())
    residual = (fall - share * gap).sum(1)
    half = 1.96 * math.sqrt(4 * float(residual.var())) / abs(float(gap.sum()))
    assert found.interval == pytest.approx((share - half, share + half), rel=1e-4)
    assert verify(lm, drawn([6, 6], (2,)), "resid.0").interval == (-math.inf, math.inf)


def test_splits_share_no_group() -> None:
    suite = drawn([5] * 20)
    rest, held = suite.split(0.3)
    assert (len(rest), len(held)) == (14, 6)
    assert not set(rest.groups) & set(held.groups)
    assert set(rest.cases) | set(held.cases) == set(suite.cases)
    with pytest.raises(ValueError, match="leaves one side empty"):
        suite.split(0.01)


def test_cases_and_suites_that_make_no_sense() -> None:
    good = Case((3, 4), (3, 5), (1,), (6,), (7,), "g")
    with pytest.raises(ValueError, match="has 2 tokens, its counterfactual 1"):
        replace(good, other=(3,))
    with pytest.raises(ValueError, match="among the 2 tokens"):
        replace(good, positions=(2,))
    with pytest.raises(ValueError, match="an answer that is right"):
        replace(good, right=())
    suite = Suite("s", "v", "resid.1", "preference", (good,))
    for change, message in (({"cases": ()}, "no cases"), ({"cases": (replace(good, wrong=()),)}, "wrong answers too")):
        with pytest.raises(ValueError, match=message):
            replace(suite, **change)
    with pytest.raises(ValueError, match="at least one case"):
        suite.pairs(0)


def test_continuations_are_followed_to_where_they_part() -> None:
    writer = Writer(tokenizer("a b Lu Luo ##cy ##la Jo"))
    fork = writer.fork("a", " Lucy", " Lula")
    assert (len(fork.ids), writer.fork("a", " Jo", " Lula").ids) == (3, fork.ids[:2])
    assert writer.write("a {x} b {y}", {"x": "Lucy", "y": "Jo"}).places == {"x": range(2, 4), "y": range(5, 6)}
    with pytest.raises(Inexpressible, match="do not part"):
        writer.fork("a", " Lu", " Lucy")
    with pytest.raises(Inexpressible, match="changes the tokens"):
        writer.fork("a Lu", "o", " b")
    with pytest.raises(Inexpressible, match="does not know all of 'a Max'"):
        writer.single("Max", after="a")
    with pytest.raises(Inexpressible, match="reaches over the end"):
        writer.write("a {x}o b", {"x": "Lu"})
    with pytest.raises(Inexpressible, match="different places"):
        writer.twins("a {x} b", {"x": "Lucy"}, {"x": "Jo"})
    with pytest.raises(ValueError, match="neither BOS nor EOS"):
        Writer(tokenizer("a", begin=False))


@pytest.fixture(scope="module")
def small(assets: Path) -> tuple[LoadedLM, dict[str, Suite]]:
    lm = load(assets / "lm" / "stories260K")
    return lm, {suite.name.removeprefix("stories."): suite for suite in stories(lm.tokenizer)}


def test_stories_differ_in_one_word_of_equal_length(small: tuple[LoadedLM, dict[str, Suite]]) -> None:
    lm, suites = small
    assert {name: len(suite) for name, suite in suites.items()} == {
        "name": 270,
        "pronoun": 240,
        "object": 140,
        "opening": 480,
        "quotation": 480,
    }
    for name in ("name", "pronoun", "object", "opening"):
        for case in suites[name].cases:
            differ = {i for i, (a, b) in enumerate(zip(case.clean, case.other, strict=True)) if a != b}
            assert set() < differ <= set(case.positions) < set(range(1, len(case.clean)))
            assert case.clean[0] == case.other[0] == lm.tokenizer.bos_token_id
    case = suites["name"].cases[0]
    assert lm.tokenizer.decode(case.clean[1:]) == "Once upon a time, there was a little girl named Mia. One day,"
    assert "'Lily' finds no partner of 1 tokens" in suites["name"].missing
    assert not set(GIRLS) & set(BOYS)


@pytest.mark.parametrize(
    ("name", "least"), [("name", 0.9), ("pronoun", 0.8), ("object", 0.95), ("opening", 0.8), ("quotation", 0.8)]
)
def test_stories_are_used_by_the_network(small: tuple[LoadedLM, dict[str, Suite]], name: str, least: float) -> None:
    lm, suites = small
    few = replace(suites[name], cases=suites[name].cases[::11])
    found = verify(lm.model, few, few.site)
    assert (found.clean > 0).float().mean() > 0.85
    assert found.gap > 4
    assert found.interval[0] > least
    if name != "quotation":
        # behind the last block nobody reads the mention any more
        assert verify(lm.model, few, "resid.4").effect == pytest.approx(0, abs=1e-5)
    else:
        assert abs(verify(lm.model, few, "resid.0").share) < 0.1
