"""Short rules learned from examples: greedy search over alternatives of few tests, where every word has a price.

What is sought is the rule with the largest

    J = (D + F) / 2 − price · (values that it names),

D the balanced accuracy of telling contexts in which a coordinate is on from those in which it is off, F that of telling
its positions from the others of the same contexts; where there are no others, J = D − price · values. A step adds a
value to a test, a test of a few values to a clause, or a clause; then values are taken away again as long as J does
not fall.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Float

from innerspace.explain.contexts import Context, Fact
from innerspace.explain.examples import Shown
from innerspace.explain.rules import Clause, OneOf, Rule
from innerspace.value import Value

_Clause = tuple[int, ...]
"""Numbers of facts; those about the same are alternatives."""

_SURE = 0.01
"""As far a rule's probabilities stay from one half."""

_SET = 5
"""At most so many values of a new test are tried at once."""


@dataclass(frozen=True)
class Search(Value):
    """``price`` of every value in a rule, ``support``: contexts in which a fact holds to be named, at most ``values``.

    Raises:
        ValueError: for a negative price, or no room for a value.
    """

    price: float = 0.01
    support: int = 2
    values: int = 16

    def __post_init__(self) -> None:
        if self.price < 0 or self.support < 1 or self.values < 1:
            raise ValueError(f"a search needs a price that is not negative, support and values of one at least: {self}")


def learn(shown: Shown, search: Search = Search()) -> Rule:
    """The rule that the search ends with; one without a clause where nothing is worth its price.

    Nothing depends on what facts are called: equal gains go to the fact that was seen first.
    """
    table = _Table(shown, search)
    rule, score = list[_Clause](), table.empty
    while sum(map(len, rule)) < search.values:
        best = table.best(rule)
        if best is None or best[1] <= score + 1e-9:
            break
        rule, score = best
    rule = table.pruned(rule, score)
    # where a rule holds it says yes, elsewhere no, even if contexts by themselves would have it otherwise
    clauses = tuple(Clause(table.tests(clause), max(table.share([clause]), 0.5 + _SURE)) for clause in rule)
    otherwise = min(table.share(rule, holds=False), 0.5 - _SURE) if clauses else 0.5
    return Rule(tuple(sorted(clauses, key=lambda one: -one.precision)), otherwise)


def most_frequent(shown: Shown) -> Rule:
    """The trivial explanation: the token, or the word, that most of the positions have at which it is on."""
    counts = dict[Fact, int]()
    for context in shown.on:
        for position in context.firing:
            for fact in context.names(position):
                counts[fact] = counts.get(fact, 0) + 1
    most = max(counts, key=lambda fact: counts[fact])
    # what is said so plainly is meant, whatever the shown contexts say of it
    return Rule((Clause((OneOf(most.about, (most.value,)),), 0.9),), 0.1)


@final
class _Table:
    """Which facts hold where, and what a rule of them is worth."""

    def __init__(self, shown: Shown, search: Search) -> None:
        contexts = [*shown.on, *shown.off]
        self._price, self._on = search.price, len(shown.on)
        facts = _named(shown.on, search.support)
        self._facts = list(facts)
        sizes = [len(context.values) for context in contexts]
        self._starts = np.cumsum([0, *sizes[:-1]])
        self._holds = np.zeros((len(facts), sum(sizes)), bool)
        self._asked = np.zeros(sum(sizes), bool)
        lit = np.zeros(sum(sizes), bool)
        for start, context in zip(self._starts.tolist(), contexts, strict=True):
            self._asked[start + context.asked.start : start + context.asked.stop] = True
            lit[start : start + len(context.values)] = [value != 0 for value in context.values]
            for position in range(len(context.values)):
                for fact in context.facts(position):
                    if (number := facts.get(fact)) is not None:
                        self._holds[number, start + position] = True
        inside = np.arange(sum(sizes)) < sum(sizes[: self._on])
        self._right, self._wrong = lit & inside, ~lit & inside
        self.empty = 0.5

    def best(self, rule: list[_Clause]) -> tuple[list[_Clause], float] | None:
        """The rule of one more value that is worth most, and its worth."""
        found: tuple[list[_Clause], float] | None = None
        for i in range(len(rule) + 1):
            others, own = [*rule[:i], *rule[i + 1 :]], rule[i] if i < len(rule) else ()
            scores = self._worths(others, own, 1 + sum(map(len, rule)))
            scores[list(own)] = -np.inf
            moves = [((int(scores.argmax()),), float(scores.max()))] if len(scores) else []
            moves += [(more, self._worth([*others, (*own, *more)])) for more in self._sets(own)]
            for more, score in moves:
                if found is None or score > found[1] + 1e-9:
                    found = [*rule[:i], (*own, *more), *rule[i + 1 :]], score
        return found

    def pruned(self, rule: list[_Clause], score: float) -> list[_Clause]:
        """The rule without values that it is worth as much without."""
        for i, clause in enumerate(rule):
            for fact in clause:
                less = tuple(other for other in clause if other != fact)
                shorter = [*rule[:i], *([less] if less else []), *rule[i + 1 :]]
                worth = self._worth(shorter)
                if worth >= score - 1e-9:
                    return self.pruned(shorter, worth)
        return rule

    def tests(self, clause: _Clause) -> tuple[OneOf, ...]:
        """The tests of a clause, each with its values in the order in which they were found."""
        by_about = dict[str, list[str]]()
        for number in clause:
            fact = self._facts[number]
            by_about.setdefault(fact.about, []).append(fact.value)
        return tuple(OneOf(about, tuple(values)) for about, values in by_about.items())

    def share(self, rule: Sequence[_Clause], *, holds: bool = True) -> float:
        """How much is on of the contexts, and of the positions, where a rule holds (or does not): the mean of both."""
        matches = self._matches(rule)
        contexts = self._any(matches[None])[0] == holds
        shares = [_share(contexts[: self._on], contexts[self._on :])]
        if self._wrong.any():
            shares.append(_share(matches[self._right] == holds, matches[self._wrong] == holds))
        return sum(shares) / len(shares)

    def _worths(self, others: list[_Clause], own: _Clause, values: int) -> Float[np.ndarray, "facts"]:
        """What the rule is worth when a clause gets one more value, for every fact."""
        rest = self._matches(others)
        by_about = self._by_about(own)
        whole = self._matches([own]) if own else np.ones_like(rest)
        moved = np.empty_like(self._holds)
        abouts = np.array([fact.about for fact in self._facts])
        for about in dict.fromkeys(abouts.tolist()):
            rows = abouts == about
            if about in by_about:
                without = tuple(number for number in own if self._facts[number].about != about)
                base = self._matches([without]) if without else np.ones_like(rest)
                moved[rows] = base & (self._holds[rows] | self._holds[by_about[about]].any(0))
            else:
                moved[rows] = whole & self._holds[rows]
        return self._judged(moved | rest) - self._price * values

    def _sets(self, own: _Clause) -> Iterator[_Clause]:
        """Several values of one new test at once: each by itself may leave too little of what a clause holds for."""
        if not own:
            return
        held, known = self._matches([own]), self._by_about(own)
        right, wrong = (self._holds[:, held & side].sum(1) for side in (self._right, ~self._right))
        for about in dict.fromkeys(fact.about for fact in self._facts):
            gains = [
                (int(wrong[i] - right[i]), i)
                for i, fact in enumerate(self._facts)
                if fact.about == about and right[i] > wrong[i]
            ]
            if about not in known:
                numbers = [i for _, i in sorted(gains)[:_SET]]
                yield from (tuple(numbers[:size]) for size in range(2, len(numbers) + 1))

    def _worth(self, rule: list[_Clause]) -> float:
        return float(self._judged(self._matches(rule)[None])[0]) - self._price * sum(map(len, rule))

    def _judged(self, matches: Bool[np.ndarray, "rules positions"]) -> Float[np.ndarray, "rules"]:
        held = self._any(matches)
        on, off = held[:, : self._on], held[:, self._on :]
        detection = (on.mean(1) + 1 - (off.mean(1) if off.shape[1] else 0.5)) / 2
        if not self._wrong.any():
            return detection
        marks = (matches[:, self._right].mean(1) + 1 - matches[:, self._wrong].mean(1)) / 2
        return (detection + marks) / 2

    def _any(self, matches: Bool[np.ndarray, "rules positions"]) -> Bool[np.ndarray, "rules contexts"]:
        return np.logical_or.reduceat(matches & self._asked, self._starts, axis=1)

    def _matches(self, rule: Sequence[_Clause]) -> Bool[np.ndarray, "positions"]:
        found = np.zeros(self._holds.shape[1], bool)
        for clause in rule:
            held = np.ones_like(found)
            for numbers in self._by_about(clause).values():
                held &= self._holds[numbers].any(0)
            found |= held
        return found

    def _by_about(self, clause: _Clause) -> dict[str, list[int]]:
        found = dict[str, list[int]]()
        for number in clause:
            found.setdefault(self._facts[number].about, []).append(number)
        return found


def _share(on: Bool[np.ndarray, "n"], off: Bool[np.ndarray, "m"]) -> float:
    """How much of what is chosen is on, where there is as much on as off; smoothed by half a case on either side."""
    a, b = ((side.sum() + 0.5) / (len(side) + 1) for side in (on, off))
    return float(a / (a + b))


def _named(contexts: Sequence[Context], support: int) -> dict[Fact, int]:
    """The facts that hold at a firing position of enough contexts, numbered as they come."""
    counts = dict[Fact, int]()
    for context in contexts:
        for fact in dict.fromkeys(_firing_facts(context)):
            counts[fact] = counts.get(fact, 0) + 1
    return {fact: i for i, fact in enumerate(fact for fact, count in counts.items() if count >= support)}


def _firing_facts(context: Context) -> Iterator[Fact]:
    for position in context.firing:
        yield from context.facts(position)
