"""Agreement: pairs that differ in the subject's number, places that cover the tokens, sides without a common noun."""

from pathlib import Path
from typing import Any

import pytest
import torch

from innerspace.language.causal_lm import load
from innerspace.language.suites.agreement import ENGLISH, STORIES, STRUCTURES, Template, Words, agreement
from language.words import BOS
from language.words import tokenizer as plain

WORDS = Words(
    (("cat", "cats"), ("dog", "dogs"), ("bird", "birds"), ("cow", "cows")),
    (("is", "are"), ("has", "have")),
    (("sees", "see"),),
    ("near",),
)


def whole_words() -> Any:
    """A tokenizer to which every word is a token."""
    pairs = [word for pair in (*WORDS.nouns, *WORDS.verbs, *WORDS.embedded) for word in pair]
    return plain(0, **{word: i + 10 for i, word in enumerate(["The", "the", "that", "near", *pairs])})


def words_of(tokenizer: Any, ids: tuple[int, ...]) -> list[str]:
    return tokenizer.convert_ids_to_tokens(list(ids))


@pytest.mark.parametrize("side", ["train", "test"])
def test_templates_word_by_word(side: Any) -> None:
    tokenizer = whole_words()
    found = {one.structure: one for one in agreement(tokenizer, side, WORDS, count=8)}
    assert list(found) == list(STRUCTURES)
    nouns = {noun: number for pair in WORDS.nouns for number, noun in enumerate(pair)}
    verbs = {verb: number for pair in WORDS.verbs for number, verb in enumerate(pair)}
    for name, template in found.items():
        assert not template.missing
        for one, two in zip(template.prompts[::2], template.prompts[1::2], strict=True):
            differ = [i for i, (a, b) in enumerate(zip(one.ids, two.ids, strict=True)) if a != b]
            assert len(differ) == 1
            assert (one.plural, two.plural) == (False, True)
            assert (one.right, one.wrong) == (two.wrong, two.right)
            for prompt in (one, two):
                said = words_of(tokenizer, prompt.ids)
                assert prompt.ids[0] == BOS
                assert prompt.place == (-1, *range(len(template.places)))
                subject = said[differ[0]]
                assert nouns[subject] == prompt.plural
                right, wrong = words_of(tokenizer, (prompt.right, prompt.wrong))
                assert verbs[right] == nouns[subject] == 1 - verbs[wrong]
                assert template.places[differ[0] - 1] == "subject"
                numbers = [nouns[word] for word in said if word in nouns]
                assert prompt.alike == (len(set(numbers)) == 1)
                if name == "across":
                    # the verb inside of the clause agrees with the other noun
                    assert (said[-1] == "see") == bool(nouns[said[-2]])
    shapes = {name: " ".join(template.places) for name, template in found.items()}
    assert shapes == {
        "simple": "article subject",
        "prepositional": "article subject preposition other article other",
        "across": "article subject that other article other embedded",
        "within": "other article other that article subject",
    }
    others = [words_of(tokenizer, prompt.ids)[-1] for prompt in found["prepositional"].prompts[::2]]
    assert sum(nouns[word] for word in others) == len(others) / 2


def test_the_two_sides_have_no_noun_in_common() -> None:
    tokenizer, nouns = whole_words(), {noun for pair in WORDS.nouns for noun in pair}
    sides = [
        {
            word
            for one in agreement(tokenizer, side, WORDS, count=20)
            for prompt in one.prompts
            for word in words_of(tokenizer, prompt.ids)
        }
        & nouns
        for side in ("train", "test")
    ]
    assert len(sides[0]) == len(sides[1]) == 4
    assert not sides[0] & sides[1]


def test_batches_hold_pairs_and_their_partners() -> None:
    template = agreement(whole_words(), "train", WORDS, count=7, structures=["across"])[0]
    rows = template.batches(4)
    assert [len(batch.plural) for batch in rows] == [4, 4, 4, 2]
    for batch in rows:
        assert torch.equal(batch.clean.ids[::2], batch.other.ids[1::2])
        assert torch.equal(batch.place[::2], batch.other_place[1::2])
        assert torch.equal(batch.pair[::2], batch.pair[1::2])
        assert batch.plural.tolist() == [False, True] * (len(batch.plural) // 2)
    with pytest.raises(ValueError, match="one pair of prompts at least, not 1"):
        template.batches(1)


@pytest.fixture(scope="module")
def small(assets: Path) -> Any:
    return load(assets / "lm/stories260K")


def test_words_of_several_tokens(small: Any) -> None:
    templates = agreement(small.tokenizer, "test", STORIES, count=20)
    for template in templates:
        assert "subject …" in template.places
        lengths = [len(prompt.ids) for prompt in template.prompts]
        for batch in template.batches(16):
            assert batch.place.shape == batch.clean.ids.shape
            valid = torch.ones_like(batch.place) if batch.clean.valid is None else batch.clean.valid
            # every token but BOS and padding has a place
            assert torch.equal(batch.place >= 0, valid.bool() & (torch.arange(batch.place.shape[1]) > 0))
        assert min(lengths) < max(lengths)
        # the last token of the word has a place of its own
        for prompt in template.prompts:
            assert prompt.place.count(template.places.index("subject")) == 1
    assert isinstance(templates[0], Template)


def test_what_cannot_be_written_is_said(small: Any) -> None:
    with pytest.raises(ValueError, match="can express 0 pairs of prompts of 'simple'"):
        agreement(whole_words(), "train", ENGLISH, count=3)
    with pytest.raises(ValueError, match="one pair of prompts or more, not 0"):
        agreement(small.tokenizer, "train", count=0)
    with pytest.raises(ValueError, match="two sides of two nouns each"):
        Words((("a", "b"),), (("is", "are"),), (("is", "are"),), ("by",))
    with pytest.raises(ValueError, match="should each name one at least"):
        Words(WORDS.nouns, (), WORDS.embedded, WORDS.prepositions)
