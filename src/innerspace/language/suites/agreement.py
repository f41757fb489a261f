"""Agreement of subject and verb: a verb must have the number of its subject, whatever noun stands nearer.

Four templates, after Finlayson et al. 2021 (arXiv 2106.06087), each up to the verb: ``simple`` (the dogs),
``prepositional`` (the dogs near the tree), ``across`` a relative clause (the dogs that the boy saw), and ``within`` one
(the tree that the dogs). Prompts come in pairs that differ in the subject's number; the other noun is singular in one
half of the pairs and plural in the other, so that it tells nothing.

Words may be several tokens, and a noun as many as it takes in either number. A template's *places* are its words: of
each the last token, and where any word of that place is longer, all tokens before it together. What is measured is
log p − log p of the first token in which the two verbs differ; tokens that they share before it belong to the prompt.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from innerspace.language.circuits import Answers
from innerspace.language.suites.prompts import Inexpressible, Writer, attempted, enough
from innerspace.language.text import Text
from innerspace.value import Value

Structure = Literal["simple", "prepositional", "across", "within"]
STRUCTURES: tuple[Structure, ...] = ("simple", "prepositional", "across", "within")
Pair = tuple[str, str]
"""A word in the singular and in the plural."""


@dataclass(frozen=True)
class Words(Value):
    """The words of prompts.

    ``openings`` stand before the sentence, where one is empty the sentence stands alone; ``embedded`` are the verbs
    inside of a relative clause that the answer comes behind, each with both numbers, which may be alike.

    Raises:
        ValueError: for too few nouns to be shared between two sides, or an empty list of others.
    """

    nouns: tuple[Pair, ...]
    verbs: tuple[Pair, ...]
    embedded: tuple[Pair, ...]
    prepositions: tuple[str, ...]
    openings: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        if len(self.nouns) < 4:
            raise ValueError(f"two sides of two nouns each are needed at least, there are {len(self.nouns)} nouns")
        if not (self.verbs and self.embedded and self.prepositions and self.openings):
            raise ValueError("verbs, embedded verbs, prepositions and openings should each name one at least")


def _regular(words: str, ending: str = "s") -> tuple[Pair, ...]:
    return tuple((word, f"{word}{ending}") for word in words.split())


STORIES = Words(
    nouns=(
        *_regular("dog cat bird girl boy friend bear duck cow pig bug star toy doll ball car kid bee tree flower"),
        *_regular("frog rabbit lion monkey kitten horse boat truck train cake"),
        ("man", "men"),
        ("woman", "women"),
        ("bunny", "bunnies"),
        ("puppy", "puppies"),
    ),
    verbs=(("was", "were"),),
    embedded=(("saw", "saw"), ("liked", "liked"), ("found", "found")),
    prepositions=("near", "with", "by"),
    openings=("One day,", "Then,", "In the park,"),
)
"""Words that stories for small children know, in their tense, the past; of its verbs only "be" has a number."""

ENGLISH = Words(
    nouns=(
        *_regular(
            "author pilot surgeon farmer manager customer officer teacher senator consultant guard dancer singer"
        ),
        *_regular("skater banker driver actor doctor lawyer student friend mother father sister brother parent worker"),
        *_regular("minister chef soldier clerk nurse judge engineer writer painter"),
    ),
    verbs=(("is", "are"), ("has", "have"), ("does", "do"), ("was", "were")),
    embedded=(("likes", "like"), ("admires", "admire"), ("knows", "know"), ("sees", "see")),
    prepositions=("near", "behind", "beside"),
)
"""Words of adult English, in the present."""

_SLOTS: dict[Structure, str] = {
    "simple": "{article} {subject}",
    "prepositional": "{article} {subject} {preposition} {other_article} {other}",
    "across": "{article} {subject} {that} {other_article} {other} {embedded}",
    "within": "{other_article} {other} {that} {article} {subject}",
}


_BEGUN = "verb begun"
"""The place of the tokens that both verbs begin with."""


@final
@dataclass(frozen=True)
class Prompt:
    """A prompt as tokens, the place of each (−1 for BOS), the two verbs' first tokens that differ, and its subject.

    ``alike`` says whether the other noun, if there is one, has the subject's number.
    """

    ids: tuple[int, ...]
    place: tuple[int, ...]
    right: int
    wrong: int
    subject: str
    plural: bool
    alike: bool


@final
@dataclass(frozen=True, eq=False)
class Numbers:
    """A batch of prompts and, row by row, the same with the subject's other number.

    ``place`` and ``other_place`` number the places, −1 where there is none; ``pair`` numbers the pairs of the template,
    ``group`` the subjects.
    """

    clean: Text
    other: Text
    place: Int[Tensor, "batch token"]
    other_place: Int[Tensor, "batch others"]
    metric: Answers
    pair: Int[Tensor, "batch"]
    group: Int[Tensor, "batch"]
    plural: Bool[Tensor, "batch"]
    alike: Bool[Tensor, "batch"]


@final
@dataclass(frozen=True)
class Template:
    """Prompts of one structure; 2i and 2i + 1 are a pair, first the singular one.

    ``example`` shows it, ``places`` names the places, ``missing`` says what could not be written, and why.
    """

    structure: Structure
    example: str
    places: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    missing: tuple[str, ...]
    padding: int

    def batches(self, size: int = 64, device: str = "cpu") -> list[Numbers]:
        """The prompts in batches, pairs together; shorter ones are padded at the right.

        Raises:
            ValueError: for batches without a pair.
        """
        if size < 2:
            raise ValueError(f"a batch has one pair of prompts at least, not {size} prompts")
        step = size - size % 2
        return [
            self._batch(range(i, min(i + step, len(self.prompts))), device) for i in range(0, len(self.prompts), step)
        ]

    def _batch(self, rows: Sequence[int], device: str) -> Numbers:
        own, others = ([self.prompts[row ^ flip] for row in rows] for flip in (0, 1))
        subjects = list(dict.fromkeys(prompt.subject for prompt in self.prompts))
        last = torch.tensor([len(prompt.ids) - 1 for prompt in own])
        right, wrong = (
            torch.tensor([[token] for token in tokens])
            for tokens in zip(*[(p.right, p.wrong) for p in own], strict=True)
        )
        (clean, place), (other, other_place) = (self._text(prompts, device) for prompts in (own, others))
        return Numbers(
            clean,
            other,
            place,
            other_place,
            Answers("preference", last, right, wrong),
            torch.tensor([row // 2 for row in rows]),
            torch.tensor([subjects.index(prompt.subject) for prompt in own]),
            torch.tensor([prompt.plural for prompt in own]),
            torch.tensor([prompt.alike for prompt in own]),
        )

    def _text(self, prompts: Sequence[Prompt], device: str) -> tuple[Text, Tensor]:
        lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
        size = (len(prompts), int(lengths.max()))
        ids, place = torch.full(size, self.padding), torch.full(size, -1)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt.ids)], place[row, : len(prompt.ids)] = map(torch.tensor, (prompt.ids, prompt.place))
        valid = torch.arange(size[1]) < lengths[:, None]
        return Text(ids, None if valid.all() else valid).to(device), place.to(device)


@dataclass(frozen=True)
class _Scene:
    """The words of a pair of prompts; ``other_number`` is 1 where the noun that is not the subject is plural."""

    opening: str
    subject: Pair
    other: Pair
    other_number: int
    preposition: str
    embedded: Pair
    verb: Pair

    def slots(self, structure: Structure, number: int) -> tuple[str, dict[str, str]]:
        """The template with its slots, and what fills them."""
        words = {
            "subject": self.subject[number],
            "other": self.other[self.other_number],
            "preposition": self.preposition,
            "that": "that",
            # the verb inside of the clause belongs to the other noun
            "embedded": self.embedded[self.other_number],
            "article": "the",
            "other_article": "the",
        }
        template = _SLOTS[structure]
        first = template[1 : template.index("}")]
        if not self.opening:
            words[first] = "The"
            return template, words
        return f"{{opening}} {template}", {**words, "opening": self.opening}


def agreement(
    tokenizer: Any,
    side: Literal["train", "test"],
    words: Words = ENGLISH,
    *,
    count: int = 200,
    structures: Sequence[Structure] = STRUCTURES,
    seed: int = 0,
    bos: bool = True,
) -> list[Template]:
    """The templates, each with ``count`` pairs of prompts at most; the two sides have no noun in common.

    Words are drawn evenly. Prompts that cannot be written are left out and named.

    Raises:
        ValueError: for a count below one, or if fewer than half of the pairs of a template can be written.
    """
    if count < 1:
        raise ValueError(f"there should be one pair of prompts or more, not {count}")
    nouns = list(words.nouns)
    random.Random(seed).shuffle(nouns)
    own = nouns[::2] if side == "train" else nouns[1::2]
    writer = Writer(tokenizer, bos=bos)
    return [
        _template(writer, structure, own, words, count, random.Random(f"{seed} {side}")) for structure in structures
    ]


def _template(
    writer: Writer, structure: Structure, nouns: Sequence[Pair], words: Words, count: int, draw: random.Random
) -> Template:
    scenes = dict[_Scene, None]()
    # a simple template has few sentences, so that the same may be drawn again
    for i in range(20 * count):
        subject, other = draw.sample(nouns, 2)
        drawn = (draw.choice(words.prepositions), draw.choice(words.embedded), draw.choice(words.verbs))
        opening = draw.choice(words.openings)
        if structure == "simple":
            other, drawn = subject, (words.prepositions[0], words.embedded[0], drawn[2])
        scenes[_Scene(opening, subject, other, i % 2 if structure != "simple" else 0, *drawn)] = None
        if len(scenes) == count:
            break
    pairs, missing = attempted(
        scenes, lambda scene: (_written(writer, structure, scene, 0), _written(writer, structure, scene, 1))
    )
    enough(pairs, -(-len(scenes) // 2), f"pairs of prompts of {structure!r}", missing)
    longer = {slot for pair in pairs for one in pair for slot, tokens in one.slots if len(tokens) > 1}
    slots = [slot for slot, _ in pairs[0][0].slots if slot != _BEGUN]
    slots += [_BEGUN] * any(slot == _BEGUN for pair in pairs for slot, _ in pair[0].slots)
    names = [name for slot in slots for name in ((f"{slot} …", slot) if slot in longer else (slot,))]
    prompts = tuple(one.prompt(names) for pair in pairs for one in pair)
    return Template(structure, pairs[0][1].text, tuple(names), prompts, tuple(missing), writer.padding)


@dataclass(frozen=True)
class _Written:
    """A prompt in tokens, with those of every slot in order; the last slot is what both verbs share, if anything."""

    text: str
    ids: tuple[int, ...]
    slots: tuple[tuple[str, range], ...]
    right: int
    wrong: int
    subject: str
    plural: bool
    alike: bool

    def prompt(self, names: Sequence[str]) -> Prompt:
        place = [-1] * len(self.ids)
        for slot, tokens in self.slots:
            for token in tokens:
                place[token] = names.index(slot if token == tokens[-1] else f"{slot} …")
        return Prompt(self.ids, tuple(place), self.right, self.wrong, self.subject, self.plural, self.alike)


def _written(writer: Writer, structure: Structure, scene: _Scene, number: int) -> _Written:
    template, words = scene.slots(structure, number)
    done = writer.write(template, words)
    verbs = scene.verb[number], scene.verb[1 - number]
    fork = writer.fork(done.text, *(f" {verb}" for verb in verbs))
    slots = [(slot.replace("_", " "), tokens) for slot, tokens in done.places.items()]
    if shared := range(len(done.ids), len(fork.ids)):
        slots.append((_BEGUN, shared))
    covered = sum(len(tokens) for _, tokens in slots)
    if any(not tokens for _, tokens in slots) or covered + slots[0][1].start != len(fork.ids):
        raise Inexpressible(f"the tokens of {done.text!r} are not those of its words")
    alike = structure == "simple" or number == scene.other_number
    subject = scene.subject[0]
    return _Written(f"{done.text} | {verbs[0]}", fork.ids, tuple(slots), fork.one, fork.two, subject, number > 0, alike)
