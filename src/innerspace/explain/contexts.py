"""What explainers and judges see: a few positions that are read together, and what holds at each of them as facts.

``TextContext`` is a piece of text, ``SceneContext`` an agent at one of its steps. Another medium is one more subclass
of ``Context``, and a ``Reader`` that makes such contexts of batches.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, final

from innerspace.value import Value

EARLIER = 4
"""So many tokens back reaches what a fact on the text before tells."""


class Fact(NamedTuple):
    """Something that holds at a position: about what, and which; ``Fact("token", " she")``."""

    about: str
    value: str


@dataclass(frozen=True)
class Context(Value, ABC):
    """Positions that are read together: the activation at each, and at which one it was drawn.

    ``group`` is the document or the scene, of which no part is both shown and judged.
    """

    group: int
    at: int
    values: tuple[float, ...]

    medium: ClassVar[str]
    """What it is, to somebody who has never seen one."""
    fires: ClassVar[str]
    """What it means, in such words, that a unit is on there."""

    @property
    @abstractmethod
    def asked(self) -> range:
        """The positions at any of which the coordinate may be on, for the context to be one of those where it is."""

    @abstractmethod
    def facts(self, position: int) -> tuple[Fact, ...]:
        """All that holds at a position, without its activation."""

    @abstractmethod
    def names(self, position: int) -> tuple[Fact, ...]:
        """What a position is called by itself, without what lies around it."""

    @abstractmethod
    def shown(self, marked: Collection[int] = ()) -> str:
        """As it is read, with marks around some positions."""

    @property
    def on(self) -> bool:
        """Whether the coordinate is on at a position that is asked about."""
        return any(self.values[i] != 0 for i in self.asked)

    @property
    def firing(self) -> list[int]:
        """The positions at which the coordinate is on."""
        return [i for i, value in enumerate(self.values) if value != 0]

    def valued(self, values: tuple[float, ...]) -> "Context":
        """The same context with other activations."""
        return replace(self, values=values)

    def blind(self) -> "Context":
        """The same without activations: all that a judge may see."""
        return replace(self, values=())


@final
@dataclass(frozen=True)
class TextContext(Context):
    """A piece of text as the pieces of its tokens, which side by side are the text."""

    pieces: tuple[str, ...]

    medium: ClassVar[str] = "an excerpt of text"
    fires: ClassVar[str] = "the unit is active on some token of the excerpt"

    @property
    def asked(self) -> range:
        """All of it."""
        return range(len(self.pieces))

    def facts(self, position: int) -> tuple[Fact, ...]:
        """The token, its form, and the tokens before it; none behind it, which the network has not read yet."""
        piece, before = self.pieces[position], self.pieces[max(0, position - EARLIER) : position]
        found = [Fact("token", piece), *(Fact("form", form) for form in _forms(piece, before[-1] if before else ""))]
        if before:
            found.append(Fact("previous", before[-1]))
        found += [Fact("earlier", other) for other in dict.fromkeys(reversed(before[:-1]))]
        return tuple(found)

    def names(self, position: int) -> tuple[Fact, ...]:
        """The token."""
        return (Fact("token", self.pieces[position]),)

    def shown(self, marked: Collection[int] = ()) -> str:
        """The text, marked tokens between « and »."""
        return "".join(f"«{piece}»" if i in marked else piece for i, piece in enumerate(self.pieces))

    def blind(self) -> "TextContext":
        """Without activations, and without the place that was drawn."""
        return replace(self, values=(), at=0)


@final
@dataclass(frozen=True)
class SceneContext(Context):
    """An agent of a traffic scene: what it does in a sentence and in words, and its steps, of which one is meant.

    ``steps`` are the numbers of the positions among ``of`` steps of the history, from 1 on.
    """

    sentence: str
    words: tuple[tuple[str, str], ...]
    steps: tuple[int, ...]
    of: int

    medium: ClassVar[str] = "an agent in traffic, described in words, at one step of its history"
    fires: ClassVar[str] = "the unit is active for this agent at this step"

    @property
    def asked(self) -> range:
        """The one step: the words hold at all of them."""
        return range(self.at, self.at + 1)

    def facts(self, position: int) -> tuple[Fact, ...]:
        """The agent's words, and the number of the step."""
        return (*self.names(position), Fact("step", str(self.steps[position])))

    def names(self, position: int) -> tuple[Fact, ...]:  # noqa: ARG002
        """The agent's words."""
        return tuple(Fact(*word) for word in self.words)

    def shown(self, marked: Collection[int] = ()) -> str:
        """The sentence, and which step is meant: the marked ones, else the one in question."""
        numbers = ", ".join(str(self.steps[i]) for i in sorted(marked or (self.at,)))
        return f"{self.sentence}, at step {numbers} of {self.of}"


def _forms(piece: str, before: str) -> list[str]:
    bare = piece.strip()
    checks = {
        "capitalized": bare[:1].isupper(),
        "a number": bare[:1].isdigit(),
        "punctuation": bool(bare) and not any(letter.isalnum() for letter in bare),
        "blank": not bare,
        "within a word": piece[:1].isalpha() and before[-1:].isalpha(),
    }
    return [form for form, holds in checks.items() if holds]
