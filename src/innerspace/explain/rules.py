"""Rules: explanations that a machine can check, as alternatives of a few tests each, and how they are said in words."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from innerspace.explain.contexts import Fact
from innerspace.value import Value

_SAID = {"token": "token", "previous": "after", "earlier": "shortly behind", "form": ""}
"""How facts on text are said; others, as they are called."""


@dataclass(frozen=True)
class OneOf(Value):
    """A fact about something is one of these."""

    about: str
    values: tuple[str, ...]

    def holds(self, facts: Collection[Fact]) -> bool:
        """Whether it does among the facts of a position."""
        return any(Fact(self.about, value) in facts for value in self.values)

    def __str__(self) -> str:
        if self.about == "form":
            return _listed(self.values)
        if self.about == "step":
            return f"step {_listed(_runs(self.values))}"
        if self.about in _SAID:
            return f"{_SAID[self.about]} {_listed([f'“{value}”' for value in self.values])}"
        return f"{self.about} {_listed(self.values)}"


@dataclass(frozen=True)
class Clause(Value):
    """Tests that hold together; ``precision`` of what it holds for is on, where as much is on as off."""

    tests: tuple[OneOf, ...]
    precision: float

    def holds(self, facts: Collection[Fact]) -> bool:
        """Whether all tests hold."""
        return all(test.holds(facts) for test in self.tests)

    def __str__(self) -> str:
        return ", ".join(map(str, self.tests))


@dataclass(frozen=True)
class Rule(Value):
    """Clauses of which one should hold; ``otherwise`` is how much of the rest is on. Without a clause it says nothing.

    Called with the facts of a position, it gives the probability that the coordinate is on there, at even odds.
    """

    clauses: tuple[Clause, ...]
    otherwise: float = 0.5

    def __call__(self, facts: Collection[Fact]) -> float:
        """The precision of the best clause that holds."""
        known = frozenset(facts)
        return max((clause.precision for clause in self.clauses if clause.holds(known)), default=self.otherwise)

    def __str__(self) -> str:
        return "; or ".join(map(str, self.clauses)) or "nothing that these facts tell"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _runs(values: Sequence[str]) -> list[str]:
    """Numbers, those that follow each other as one."""
    numbers = sorted(map(int, values))
    breaks = [i + 1 for i, (a, b) in enumerate(pairwise(numbers)) if b > a + 1]
    runs = [numbers[i:j] for i, j in pairwise([0, *breaks, len(numbers)])]
    return [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
