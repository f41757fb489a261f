"""Prompts in the style of TinyStories, with variables that even a very small network of stories uses.

``stories.name``: what the character is called, ``stories.pronoun``: she or he, ``stories.object``: the thing just
mentioned; all three exchanged where they are mentioned, from where a later token must fetch them. ``stories.opening``:
whether a quotation was opened, at its opening; ``stories.quotation``: whether the sentence's end is inside of it, which
neither its last word nor the period shows. Words may be several tokens; what is measured is
log p − log p of the first token in which the answers to both prompts differ.

Words come in disjoint pairs, of which each member is once clean and once counterfactual: a pair is a group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from innerspace.language.circuits import Case, Suite
from innerspace.language.suites.prompts import Inexpressible, Writer, attempted, enough

_GIRLS = (
    "Lily Mia Lucy Sara Sally Molly Amy Anna Sue Mary Jane Daisy Emma Lola Ella Jill Kim Sarah Rose Annie Kate Emily "
    "Jenny Nora Lila Susie Rita Cindy Grace Alice"
)
_BOYS = (
    "Timmy Tim Tom Ben Max Sam Jack Bob Billy John Joe Fred Peter Mark Leo Dan Nick Jimmy Bobby Andy Benny Frank James "
    "Gary Oliver Bill Danny Todd Charlie Thomas"
)
_THINGS = (
    "ball car book doll box cat dog bird hat cake tree toy bear boat fish kite flower frog duck apple bike train truck "
    "shoe cup key stick rock leaf star"
)
GIRLS: tuple[str, ...] = tuple(_GIRLS.split())
BOYS: tuple[str, ...] = tuple(_BOYS.split())
THINGS: tuple[str, ...] = tuple(_THINGS.split())

_INTRODUCTIONS = (
    "Once upon a time, there was a little {kind} named {name}. One day,",
    "Once upon a time, there was a {kind} named {name}. Then",
    "One day, a {kind} named {name} went to the park and saw a big dog.",
    "One day, a little {kind} named {name} was sad because",
    "There was a little {kind} named {name}. The sun was hot. One day,",
)
"""Every one mentions the character once, so that nothing but the introduction tells its name and what it is."""

_MENTIONS = (
    "Once upon a time, there was a little girl named Lily. She had a big {thing}. She liked to play with the",
    "One day, Tim saw a {thing}. He wanted to touch the",
    'Lily and Tim were in the park. They saw a big {thing}. Lily said, "Look at the',
    "Once upon a time, there was a little girl named Lily. She had a red {thing}. One day, she lost her",
    "Tim went to the park with his mom. His mom gave him a {thing}. Tim was happy. He liked the",
)
_SPEECHES = (
    "Lily and Tim were in the park. {opening} can play with the {thing}",
    "One day, Lily saw a big dog. {opening} saw a {thing}",
    "Tim was at home with his mom. {opening} will go to the park with the {thing}",
    "Once upon a time, there was a little girl named Lily. {opening} had a {thing}",
)
_OPENINGS = (
    ('"We', "Then we"),
    ('"They', "Soon they"),
    ('"She', "Then she"),
    ('"He', "Then he"),
    ('"I', "and I"),
    ('"You', "Then you"),
)
"""A sentence that is said, and one that is told, with as many tokens in TinyStories' small vocabulary."""


def stories(tokenizer: Any, *, bos: bool = True) -> list[Suite]:
    """The five suites; their sites are where the variable is found in stories260K.

    A site is the last at which the variable is still where it is patched; for ``stories.quotation``, the last of all
    before the block that answers. ``Suite.at_end`` asks for the answer's own state, in the last block.

    Words that find no partner of as many tokens, and prompts that cannot be written, are left out and named.

    Raises:
        ValueError: if fewer than 100 prompts of a suite can be written.
    """
    writer = Writer(tokenizer, bos=bos)
    names, alone = _partners(writer, [(GIRLS, GIRLS), (BOYS, BOYS)])
    mixed, unmatched = _partners(writer, [(GIRLS, BOYS)])
    things, left = _partners(writer, [(THINGS, THINGS)])
    kind = dict.fromkeys(GIRLS, "girl") | dict.fromkeys(BOYS, "boy")
    who = [
        _Exchange(text, _Way({"name": a, "kind": kind[a]}, f" {a}"), _Way({"name": b, "kind": kind[b]}, f" {b}"), a)
        for (a, b), text in product(names, _INTRODUCTIONS)
    ]
    she_he = [
        _Exchange(text, _Way({"name": a, "kind": "girl"}, she), _Way({"name": b, "kind": "boy"}, he), a)
        for (a, b), text in product(mixed, _INTRODUCTIONS)
        for she, he in [(" She", " He") if text.endswith(".") else (" she", " he")]
    ]
    what = [
        _Exchange(text, _Way({"thing": a}, f" {a}"), _Way({"thing": b}, f" {b}"), a)
        for (a, b), text in product(things, _MENTIONS)
    ]
    inside = [
        _Exchange(
            text, _Way({"opening": said, "thing": thing}, '."'), _Way({"opening": told, "thing": thing}, ". She"), thing
        )
        for thing, text, (said, told) in product(THINGS[:10], _SPEECHES, _OPENINGS)
    ]
    return [
        _suite(writer, "name", "what the character is called", "resid.3", who, ("name",), alone),
        _suite(writer, "pronoun", "whether the character is she or he", "resid.3", she_he, ("kind", "name"), unmatched),
        _suite(writer, "object", "the thing just mentioned", "resid.3", what, ("thing",), left),
        _suite(writer, "opening", "whether a quotation was opened", "resid.1", inside, ("opening",), []),
        _suite(writer, "quotation", "inside or outside a quotation", "resid.3", inside, (), []),
    ]


@dataclass(frozen=True)
class _Way:
    """One of two ways to fill a template, and how the prompt then goes on."""

    words: Mapping[str, str]
    answer: str


@dataclass(frozen=True)
class _Exchange:
    """A template and two ways to fill it."""

    template: str
    one: _Way
    two: _Way
    group: str


def _partners(
    writer: Writer, sides: Sequence[tuple[Sequence[str], Sequence[str]]]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Words of one side with words of the other that take as many tokens, each word once; and who is left alone."""
    pairs, alone = list[tuple[str, str]](), list[str]()
    for ours, theirs in sides:
        words = dict.fromkeys((*ours, *theirs))
        known, unknown = attempted(words, lambda word: (word, len(writer.tokens(word, after="named"))))
        alone += unknown
        length, taken = dict(known), set[str]()
        for word in (word for word in ours if word in length):
            if word in taken:
                continue
            free = (o for o in theirs if o not in taken and o != word and length.get(o) == length[word])
            partner = next(free, None)
            if partner is None:
                alone.append(f"{word!r} finds no partner of {length[word]} tokens")
            else:
                pairs.append((word, partner))
                taken |= {word, partner}
    return pairs, alone


def _suite(
    writer: Writer,
    name: str,
    variable: str,
    site: str,
    exchanges: Sequence[_Exchange],
    slots: Sequence[str],
    alone: Sequence[str],
) -> Suite:
    """The exchanges in both directions, patched at some slots, or at the last token if none is named."""
    both, unwritten = attempted(exchanges, lambda exchange: _cases(writer, exchange, slots))
    cases, missing = tuple(case for two in both for case in two), (*alone, *unwritten)
    enough(cases, 100, f"prompts of stories.{name}", missing)
    return Suite(f"stories.{name}", variable, site, "preference", cases, missing, writer.padding)


def _cases(writer: Writer, exchange: _Exchange, slots: Sequence[str]) -> tuple[Case, Case]:
    one, two = exchange.one, exchange.two
    first, second = writer.twins(exchange.template, one.words, two.words)
    here, there = (writer.fork(prompt.text, one.answer, two.answer) for prompt in (first, second))
    if (len(here.ids), here.one, here.two) != (len(there.ids), there.one, there.two):
        raise Inexpressible(f"{one.answer!r} and {two.answer!r} part differently after {first.text!r}, {second.text!r}")
    positions = tuple(token for slot in slots for token in first.places[slot]) or (len(here.ids) - 1,)
    return (
        Case(here.ids, there.ids, positions, (here.one,), (here.two,), exchange.group),
        Case(there.ids, here.ids, positions, (here.two,), (here.one,), exchange.group),
    )
