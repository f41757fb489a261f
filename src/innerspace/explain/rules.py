"""Rules: explanations that a machine can check, as alternatives of a few tests each, and how they are said in words."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from innerspace.explain.contexts import Fact
from innerspace.value import Value

_SAID = {"token": "token", "previous": "right after", "earlier": "soon after", "form": ""}
"""How facts on text are said; others, as they are called."""


@dataclass(frozen=True)
class OneOf(Value):
    """A fact about something is one of these."""

    about: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        if self.about == "form":
            return _listed(self.values)
        if self.about == "step":
            return f"step {_listed(_runs(self.values))}"
        if self.about in _SAID:
            return f"{_SAID[self.about]} {_listed([f'“{_visible(value)}”' for value in self.values])}"
        return f"{self.about} {_listed(self.values)}"


@dataclass(frozen=True)
class Clause(Value):
    """Tests that hold together; a share ``precision`` of what they hold for is on, where as much is on as off."""

    tests: tuple[OneOf, ...]
    precision: float

    def __str__(self) -> str:
        return ", ".join(map(str, self.tests))


@dataclass(frozen=True)
class Rule(Value):
    """Clauses of which one should hold; ``otherwise`` is how much of the rest is on. Without a clause it says nothing.

    Called with the facts of positions, it gives the probability that the coordinate is on at one of them, at even odds.
    """

    clauses: tuple[Clause, ...]
    otherwise: float = 0.5

    def __call__(self, positions: Sequence[Collection[Fact]]) -> float:
        """The precision of the best clause that holds somewhere."""
        wanted = [
            (one.precision, [{Fact(test.about, v) for v in test.values} for test in one.tests]) for one in self.clauses
        ]
        best = 0.0
        for facts in positions:
            for precision, tests in wanted:
                if precision > best and not any(test.isdisjoint(facts) for test in tests):
                    best = precision
        return best or self.otherwise

    def __str__(self) -> str:
        return "; or ".join(map(str, self.clauses)) or "nothing that these facts tell"


def _visible(piece: str) -> str:
    """A token with what would not be seen as a sign; one without a character of its own as that of nothing."""
    return piece.replace("\n", "↵").replace("\t", "⇥") or "∅"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _runs(values: Sequence[str]) -> list[str]:
    """Numbers, those that follow each other as one."""
    numbers = sorted(map(int, values))
    breaks = [i + 1 for i, (a, b) in enumerate(pairwise(numbers)) if b > a + 1]
    runs = [numbers[i:j] for i, j in pairwise([0, *breaks, len(numbers)])]
    return [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
