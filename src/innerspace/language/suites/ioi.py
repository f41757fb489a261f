"""Indirect object identification: who was given something, and which of two names came twice.

"Then, Mary and John went to the park. John gave a ball to" asks for Mary: IO, the name that came once, not S, the one
that came at S1 and again at S2. The circuit that GPT-2 small uses is known (Wang et al. 2022, arXiv 2211.00593): heads
that note the previous token, heads that find at S2 that the name came before, and heads that bring S's position and
name to the end. Each is a variable at a place, and so a test of subspaces (Huang and Hahn, arXiv 2508.01916).
"""

import random
from dataclasses import dataclass
from functools import partial
from typing import Any

from innerspace.language.circuits import Case, Suite
from innerspace.language.suites.prompts import Inexpressible, Writer, attempted, enough

_NAMES = (
    "James John Robert Michael David Richard Charles Joseph Thomas Daniel Paul Mark George Kenneth Steven Edward "
    "Brian Kevin Jason Jeffrey Ryan Gary Jacob Eric Stephen Jonathan Larry Justin Scott Frank Brandon Benjamin Samuel "
    "Patrick Dennis Peter Henry Adam Simon Alex Ian Luke Martin Max Tom Sam Ben Mary Patricia Linda Elizabeth Susan "
    "Jessica Sarah Karen Nancy Lisa Margaret Betty Sandra Ashley Emily Kimberly Donna Michelle Carol Amanda Melissa "
    "Laura Amy Angela Anna Ruth Helen Rachel Maria Diane Julie Joyce Victoria Kelly Christina Emma Alice Julia Jane "
    "Jack Grace Rose Kate Claire Lucy"
)
NAMES: tuple[str, ...] = tuple(_NAMES.split())
PLACES = ("park", "market", "beach", "library", "station", "office", "garden", "museum", "restaurant", "hospital")
OBJECTS = ("book", "ring", "drink", "ball", "camera", "letter", "basket", "ticket", "watch", "picture", "map", "key")
TEMPLATES = (
    "Then, {first} and {second} walked to the {place}, and {again} handed a {object} to",
    "After a long week, {first} and {second} met at the {place}. {again} brought a {object} for",
    "While {first} and {second} were waiting at the {place}, {again} offered the {object} to",
    "Yesterday {first} and {second} spent an hour at the {place}. Later {again} gave a {object} to",
    "When {first} and {second} came back from the {place}, {again} showed the {object} to",
    "Last summer {first} and {second} worked at the {place}, where {again} sold a {object} to",
    "Since {first} and {second} both liked the {place}, {again} sent a {object} to",
    "One morning {first} and {second} found a {object} near the {place}, and {again} passed it to",
    "Once {first} and {second} had left the {place}, {again} returned the {object} to",
    "There was a party at the {place} when {first} and {second} arrived, so {again} gave the {object} to",
    "Before {first} and {second} closed the {place}, {again} lent a {object} to",
    "Friends said that {first} and {second} argued at the {place}, and that {again} threw a {object} to",
)


@dataclass(frozen=True)
class _Scene:
    """One prompt to be; ABBA where IO comes first, BABA where S does."""

    template: int
    io: str
    s: str
    io_first: bool
    place: str
    object: str

    def words(self, io: str, s1: str, s2: str) -> dict[str, str]:
        first, second = (io, s1) if self.io_first else (s1, io)
        return {"first": first, "second": second, "again": s2, "place": self.place, "object": self.object}


def ioi(tokenizer: Any, *, count: int = 1000, seed: int = 0, bos: bool = True) -> list[Suite]:
    """The four tests of IOI on the same prompts, half of them ABBA and half BABA, with their sites in GPT-2 small.

    ``ioi.previous-token``: the state behind IO and S1; ``ioi.induction``: at S2; ``ioi.position``: at the end. In the
    counterfactual of these three IO and S1 change places while S2 stays. ``ioi.name``: at the end, and both names are
    exchanged everywhere. The metric is logit(IO) − logit(S), of the clean prompt's names in either prompt. Names that
    are not one token are left out and named. Cases of one template are one group.

    Raises:
        ValueError: if fewer than 10 names are left, or there is nothing to count.
    """
    if count < 1:
        raise ValueError(f"there should be one prompt or more, not {count}")
    writer = Writer(tokenizer, bos=bos)
    names, unknown = attempted(NAMES, lambda name: (name, writer.single(name, after="and")))
    enough(names, 10, "names as one token", unknown)
    scenes = _scenes([name for name, _ in names], count, random.Random(seed))
    tests = {
        "previous-token": ("that a name is the token before", "resid.4"),
        "induction": ("where the name at S2 came before", "resid.6"),
        "position": ("where S came, for the end", "resid.8"),
        "name": ("what S is called, for the end", "resid.8"),
    }
    suites = list[Suite]()
    for test, (variable, site) in tests.items():
        cases, missing = attempted(scenes, partial(_case, writer, test))
        enough(cases, 1, "prompts", missing)
        missed = (*unknown, *missing)
        suites.append(Suite(f"ioi.{test}", variable, site, "preference", tuple(cases), missed, writer.padding))
    return suites


def _scenes(names: list[str], count: int, draw: random.Random) -> list[_Scene]:
    scenes = list[_Scene]()
    for i in range(count):
        io, s = draw.sample(names, 2)
        template = draw.randrange(len(TEMPLATES))
        scenes.append(_Scene(template, io, s, i % 2 == 0, draw.choice(PLACES), draw.choice(OBJECTS)))
    return scenes


def _case(writer: Writer, test: str, scene: _Scene) -> Case:
    io, s = scene.io, scene.s
    otherwise = scene.words(s, io, io) if test == "name" else scene.words(s, io, s)
    clean, other = writer.twins(TEMPLATES[scene.template], scene.words(io, s, s), otherwise)
    fork = writer.fork(clean.text, f" {io}", f" {s}")
    if fork.ids != clean.ids:
        raise Inexpressible(f"{io!r} and {s!r} begin alike")
    match test:
        case "previous-token":
            positions = (clean.places["first"].stop, clean.places["second"].stop)
        case "induction":
            positions = (clean.places["again"].stop - 1,)
        case _:
            positions = (len(clean.ids) - 1,)
    return Case(clean.ids, other.ids, positions, (fork.one,), (fork.two,), f"template {scene.template}")
