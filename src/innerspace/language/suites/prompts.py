"""Prompts from templates, as tokens, with the place of every word that was filled in."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

_SLOT = re.compile(r"\{(\w+)\}")

Item = TypeVar("Item")
Made = TypeVar("Made")


@final
class Inexpressible(ValueError):  # noqa: N818
    """A prompt that a tokenizer cannot write as it is meant."""


@final
@dataclass(frozen=True)
class Written:
    """A prompt as text and as tokens; ``places`` are the tokens of every slot, with the space before it."""

    text: str
    ids: tuple[int, ...]
    places: Mapping[str, range]


@final
@dataclass(frozen=True)
class Fork:
    """A prompt with two continuations, up to where they part: all tokens before, and the first token of each."""

    ids: tuple[int, ...]
    one: int
    two: int


@final
class Writer:
    """Writes prompts with a tokenizer, and says when it cannot.

    With ``bos`` every prompt begins with the tokenizer's BOS, or with its EOS if it has no BOS; without, with its text.

    Raises:
        ValueError: if ``bos`` is asked of a tokenizer that has neither.
    """

    def __init__(self, tokenizer: Any, *, bos: bool = True) -> None:
        begin = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None)
        if bos and begin is None:
            raise ValueError("the tokenizer has neither BOS nor EOS to begin with; bos=False is possible")
        self._tokenizer = tokenizer
        self._begin = (begin,) if bos and begin is not None else ()
        self._memo = dict[str, tuple[int, ...]]()
        self.padding: int = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)

    def write(self, template: str, words: Mapping[str, str]) -> Written:
        """A template with its ``{slots}`` filled; a slot that comes twice keeps its last place.

        Raises:
            Inexpressible: if a token reaches over the edge of a slot.
        """
        text, edges = "", dict[str, tuple[str, str]]()
        for i, piece in enumerate(_SLOT.split(template)):
            before = text.rstrip(" ")
            text += words[piece] if i % 2 else piece
            if i % 2:
                edges[piece] = (before, text)
        ids = self._encode(text)
        places = {slot: range(self._count(ids, a), self._count(ids, b)) for slot, (a, b) in edges.items()}
        return Written(text, ids, places)

    def twins(self, template: str, clean: Mapping[str, str], other: Mapping[str, str]) -> tuple[Written, Written]:
        """A template filled twice, with words that take equally many tokens in every slot.

        Raises:
            Inexpressible: if they do not.
        """
        one, two = self.write(template, clean), self.write(template, other)
        if one.places != two.places or len(one.ids) != len(two.ids):
            raise Inexpressible(f"{one.text!r} and {two.text!r} have tokens at different places")
        return one, two

    def fork(self, prompt: str, one: str, two: str) -> Fork:
        """Where two continuations of a prompt part.

        Raises:
            Inexpressible: if a continuation changes the tokens of the prompt, or begins the other one.
        """
        before, a, b = self._encode(prompt), self._encode(prompt + one), self._encode(prompt + two)
        shorter = min(len(a), len(b))
        common = next((i for i in range(shorter) if a[i] != b[i]), shorter)
        if common == shorter:
            raise Inexpressible(f"{one!r} and {two!r} do not part after {prompt!r}")
        if common < len(before) or a[: len(before)] != before:
            raise Inexpressible(f"{one!r} or {two!r} changes the tokens of {prompt!r}")
        return Fork(a[:common], a[common], b[common])

    def tokens(self, word: str, *, after: str) -> tuple[int, ...]:
        """The tokens of a word, with the space before it, where it follows another word.

        Raises:
            Inexpressible: if it is not apart from the other word.
        """
        ids = self._encode(f"{after} {word}")
        return ids[self._count(ids, after) :]

    def single(self, word: str, *, after: str) -> int:
        """The token of a word that has only one.

        Raises:
            Inexpressible: if it has several.
        """
        ids = self.tokens(word, after=after)
        if len(ids) != 1:
            raise Inexpressible(f"{word!r} is not one token but {len(ids)}")
        return ids[0]

    def _encode(self, text: str) -> tuple[int, ...]:
        if text not in self._memo:
            ids = self._tokenizer.encode(text, add_special_tokens=False)
            if self._tokenizer.unk_token_id in ids:
                raise Inexpressible(f"the tokenizer does not know all of {text!r}")
            self._memo[text] = (*self._begin, *ids)
        return self._memo[text]

    def _count(self, ids: tuple[int, ...], beginning: str) -> int:
        """How many tokens a beginning of the text has."""
        part = self._encode(beginning) if beginning else self._begin
        if ids[: len(part)] != part:
            raise Inexpressible(f"a token reaches over the end of {beginning!r}")
        return len(part)


def attempted(items: Iterable[Item], make: Callable[[Item], Made]) -> tuple[list[Made], list[str]]:
    """What can be made of items, and why it cannot be made of the others."""
    made, missing = list[Made](), list[str]()
    for item in items:
        try:
            made.append(make(item))
        except Inexpressible as reason:
            missing.append(str(reason))
    return made, missing


def enough(made: Sequence[object], fewest: int, what: str, missing: Sequence[str]) -> None:
    """Refuse a suite of which a tokenizer leaves too little.

    Raises:
        ValueError: naming what is missing.
    """
    if len(made) < fewest:
        reasons = "; ".join(missing[:5])
        raise ValueError(
            f"this tokenizer can express {len(made)} {what}, {fewest} are needed; {len(missing)} are missing: {reasons}"
        )
