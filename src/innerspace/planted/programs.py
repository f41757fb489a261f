"""Programs of a few lines over sequences, after RASP: what a transformer can be set to compute, and what it then holds.

A program is made of *variables*, each with one value at every position of the input. Tokens and positions are
``Given``. ``Select`` compares the values of two variables at all pairs of positions; ``Aggregate`` and ``Mean`` take
what the selected positions hold, ``Width`` counts them; ``Map`` combines values at the same position. Weiss, Goldberg
and Yahav, "Thinking like transformers", ICML 2021; Lindner et al., "Tracr", NeurIPS 2023.

Here programs are run as they are written, in plain Python; ``planted/compiled.py`` sets a network to do the same.
"""

import itertools
import random
import string
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast, final

Item = str | int | bool
"""A value that a variable can have; two are the same if they are equal."""

Column = Sequence[Item | float | None]
"""The values of a variable at all positions; None where it has none."""

Known = Mapping[str, Column]
"""The variables that were computed so far, by name."""


class Variable(ABC):
    """One value at every position; a categorical variable has finitely many, a numerical one is a number."""

    name: str

    @property
    def values(self) -> tuple[Item, ...]:
        """What a categorical variable can be; empty for a numerical one."""
        return ()

    @property
    def inputs(self) -> tuple["Variable", ...]:
        """The variables from which it is computed; none for what is given."""
        return ()

    @abstractmethod
    def compute(self, known: Known) -> Column:
        """Its values, from those of its inputs."""

    def labels(self, column: Column) -> list[int] | list[float]:
        """Values as numbers: the index of each, −1 where there is none; a numerical variable is its own label."""
        if not self.values:
            return [float(cast(float, item)) for item in column]
        index = {item: i for i, item in enumerate(self.values)}
        return [-1 if item is None else index[cast(Item, item)] for item in column]


@final
@dataclass(frozen=True, eq=False)
class Given(Variable):
    """What is not computed: the tokens of the input, the positions."""

    name: str
    choices: tuple[Item, ...]

    @property
    def values(self) -> tuple[Item, ...]:
        """The vocabulary, or the places."""
        return self.choices

    def compute(self, known: Known) -> Column:
        """What was given."""
        return known[self.name]


@final
@dataclass(frozen=True, eq=False)
class Select:
    """Which positions every position looks at: key i and query j with ``predicate(key value, query value)``.

    With ``causal`` a position sees itself and those before. A value that is missing is never selected and selects none.
    """

    keys: Variable
    queries: Variable
    predicate: Callable[[Any, Any], bool]
    causal: bool = False

    def chosen(self, known: Known) -> list[list[int]]:
        """For every position, those that it selects."""
        keys, queries = known[self.keys.name], known[self.queries.name]
        return [
            [
                i
                for i, key in enumerate(keys[: j + 1] if self.causal else keys)
                if key is not None and query is not None and self.predicate(key, query)
            ]
            for j, query in enumerate(queries)
        ]


@final
@dataclass(frozen=True, eq=False)
class Aggregate(Variable):
    """The value of ``of`` at the selected positions, all of which should agree; None where none is selected."""

    name: str
    selector: Select
    of: Variable

    @property
    def values(self) -> tuple[Item, ...]:
        """Those of the variable it is taken from."""
        return self.of.values

    @property
    def inputs(self) -> tuple[Variable, ...]:
        """Keys, queries and what is taken."""
        return (self.selector.keys, self.selector.queries, self.of)

    def compute(self, known: Known) -> Column:
        """The one value that is selected.

        Raises:
            ValueError: where selected positions disagree: what a network holds then is no value.
        """
        column = known[self.of.name]
        found = [{column[i] for i in chosen} for chosen in self.selector.chosen(known)]
        for j, values in enumerate(found):
            if len(values) > 1:
                raise ValueError(f"{self.name!r} at position {j} would be several values at once: {values}")
        return [next(iter(values), None) for values in found]


@final
@dataclass(frozen=True, eq=False)
class Mean(Variable):
    """The mean of ``rule(value)`` over the selected positions, a number; 0 where none is selected."""

    name: str
    selector: Select
    of: Variable
    rule: Callable[[Any], float]

    @property
    def inputs(self) -> tuple[Variable, ...]:
        """Keys, queries and what is averaged."""
        return (self.selector.keys, self.selector.queries, self.of)

    def compute(self, known: Known) -> Column:
        """The means; a missing value counts as 0."""
        numbers = [0.0 if item is None else self.rule(item) for item in known[self.of.name]]
        return [sum(numbers[i] for i in chosen) / max(len(chosen), 1) for chosen in self.selector.chosen(known)]


@final
@dataclass(frozen=True, eq=False)
class Width(Variable):
    """How many positions are selected, at most ``largest``."""

    name: str
    selector: Select
    largest: int

    @property
    def values(self) -> tuple[Item, ...]:
        """0, 1, …, the largest."""
        return tuple(range(self.largest + 1))

    @property
    def inputs(self) -> tuple[Variable, ...]:
        """Keys and queries."""
        return (self.selector.keys, self.selector.queries)

    def compute(self, known: Known) -> Column:
        """The counts.

        Raises:
            ValueError: for more than the largest.
        """
        counts = [len(chosen) for chosen in self.selector.chosen(known)]
        if max(counts) > self.largest:
            raise ValueError(f"{self.name!r} counts up to {self.largest}, {max(counts)} positions were selected")
        return counts


@final
@dataclass(frozen=True, eq=False)
class Map(Variable):
    """``rule(value, …)`` of one or two variables at the same position; None where one of them is missing.

    Raises:
        ValueError: for none, or more than two.
    """

    name: str
    of: tuple[Variable, ...]
    rule: Callable[[Any], Item] | Callable[[Any, Any], Item]

    def __post_init__(self) -> None:
        if not 1 <= len(self.of) <= 2:
            raise ValueError(f"a map reads one or two variables, {self.name!r} reads {len(self.of)}")

    @cached_property
    def table(self) -> dict[tuple[Item, ...], Item]:
        """The outcome for every combination of values."""
        return {items: self.rule(*items) for items in itertools.product(*(variable.values for variable in self.of))}

    @property
    def values(self) -> tuple[Item, ...]:
        """The outcomes, in the order in which they come up."""
        return tuple(dict.fromkeys(self.table.values()))

    @property
    def inputs(self) -> tuple[Variable, ...]:
        """What is mapped."""
        return self.of

    def compute(self, known: Known) -> Column:
        """The outcomes."""
        rows = zip(*(known[variable.name] for variable in self.of), strict=True)
        return [None if None in row else self.table[cast(tuple[Item, ...], row)] for row in rows]


@final
@dataclass(frozen=True, eq=False)
class Program:
    """Variables over inputs of one length, one of them the output.

    ``draw`` makes an input from a source of chance: the distribution on which the variables should be found again.

    Raises:
        ValueError: for two variables of one name, or one that reads a number.
    """

    name: str
    tokens: Given
    positions: Given
    output: Variable
    draw: Callable[[random.Random], Sequence[Item]]
    variables: tuple[Variable, ...] = field(init=False)
    """All of them, each behind its inputs; tokens and positions come first, whether the output needs them or not."""

    def __post_init__(self) -> None:
        ordered = dict[Variable, None]()

        def visit(variable: Variable) -> None:
            for source in variable.inputs:
                visit(source)
                if not source.values:
                    raise ValueError(f"{variable.name!r} reads {source.name!r}, a number; only categories can be read")
            ordered[variable] = None

        for variable in (self.tokens, self.positions, self.output):
            visit(variable)
        names = [variable.name for variable in ordered]
        if len(set(names)) < len(names):
            raise ValueError(f"the variables of {self.name!r} need names of their own; they are {', '.join(names)}")
        object.__setattr__(self, "variables", tuple(ordered))

    @property
    def length(self) -> int:
        """The number of positions."""
        return len(self.positions.values)

    def run(self, tokens: Sequence[Item], given: Known | None = None) -> dict[str, Column]:
        """The values of all variables; those that are ``given`` are taken as they are, whatever their inputs say.

        Raises:
            ValueError: for an input of another length, or a token outside the vocabulary.
        """
        if len(tokens) != self.length or not set(tokens) <= set(self.tokens.values):
            raise ValueError(
                f"{self.name!r} reads {self.length} tokens out of {self.tokens.values}, not {list(tokens)}"
            )
        known: dict[str, Column] = {self.tokens.name: tokens, self.positions.name: self.positions.values}
        for variable in self.variables:
            overruled = (given or {}).get(variable.name)
            known[variable.name] = variable.compute(known) if overruled is None else overruled
        return known

    def inputs(self, count: int, seed: int) -> list[Sequence[Item]]:
        """Inputs from the program's own distribution."""
        source = random.Random(seed)
        return [self.draw(source) for _ in range(count)]


def reverse(symbols: int = 17, length: int = 16) -> Program:
    """The input from its end to its beginning; tokens are drawn evenly.

    At even lengths token, position and output are independent.
    """
    tokens, positions = _given(letters(symbols), length)
    mirror = Select(positions, positions, lambda key, query: key + query == length - 1)
    output = Aggregate("reversed", mirror, tokens)
    return Program("reverse", tokens, positions, output, lambda source: source.choices(tokens.values, k=length))


def histogram(symbols: int = 17, length: int = 16) -> Program:
    """How often every token occurs in the input; few or many different ones are drawn, so that all counts occur."""
    tokens, positions = _given(letters(symbols), length)
    same = Select(tokens, tokens, lambda key, query: key == query)

    def draw(source: random.Random) -> list[Item]:
        few = source.sample(tokens.values, source.randint(1, min(symbols, length)))
        return source.choices(few, k=length)

    return Program("histogram", tokens, positions, Width("count", same, length), draw)


def fraction(symbols: int = 17, length: int = 16) -> Program:
    """Which share of the tokens before is the first symbol, a number: at position i some k / i, so it tells of i."""
    tokens, positions = _given(letters(symbols), length)
    before = Select(positions, positions, lambda key, query: key < query)
    sought, *others = tokens.values
    output = Mean("fraction", before, tokens, lambda item: float(item == sought))

    def draw(source: random.Random) -> list[Item]:
        rate = source.random()
        return [sought if source.random() < rate else source.choice(others) for _ in range(length)]

    return Program("fraction", tokens, positions, output, draw)


def sort(symbols: int = 17, length: int = 8) -> Program:
    """Different tokens in alphabetical order, by their rank; low and high stretches of the alphabet are drawn.

    Rank tells of the token, and place of what is sorted there, whatever the distribution: the first letter comes first.
    """
    tokens, positions = _given(letters(symbols), length)
    lower = Select(tokens, tokens, lambda key, query: key < query)
    rank = Width("rank", lower, length - 1)
    output = Aggregate("sorted", Select(rank, positions, lambda key, query: key == query), tokens)

    def draw(source: random.Random) -> list[Item]:
        stretch = source.randint(length, symbols)
        first = source.randint(0, symbols - stretch)
        return source.sample(tokens.values[first : first + stretch], length)

    return Program("sort", tokens, positions, output, draw)


def induction(symbols: int = 17, length: int = 16) -> Program:
    """What followed the last time that this token was there; different tokens are drawn, and said twice.

    The token before, at hand from the first layer on, is the key in the second. Neighbors in the input differ.
    """
    tokens, positions = _given(letters(symbols), length)
    last = Select(positions, positions, lambda key, query: key == query - 1)
    previous = Aggregate("previous", last, tokens)
    met = Select(previous, tokens, lambda key, query: key == query, causal=True)

    def draw(source: random.Random) -> list[Item]:
        return source.sample(tokens.values, length // 2) * 2

    return Program("induction", tokens, positions, Aggregate("following", met, tokens), draw)


def balance(symbols: int = 6, length: int = 16) -> Program:
    """How deep in brackets every place is; the depth follows from what was opened and what was closed."""
    tokens, positions = _given(("(", ")", *letters(symbols - 2)), length)
    opened = Width("opened", Select(tokens, positions, lambda key, _: key == "(", causal=True), length)
    closed = Width("closed", Select(tokens, positions, lambda key, _: key == ")", causal=True), length)
    depth = Map("depth", (opened, closed), lambda up, down: up - down)

    def draw(source: random.Random) -> list[Item]:
        weights = [source.random(), source.random(), *[source.random() / symbols] * (symbols - 2)]
        return source.choices(tokens.values, weights, k=length)

    return Program("balance", tokens, positions, depth, draw)


PROGRAMS: Mapping[str, Callable[[], Program]] = {
    "reverse": reverse,
    "histogram": histogram,
    "fraction": fraction,
    "sort": sort,
    "induction": induction,
    "balance": balance,
}
"""The programs by name, each of its usual size."""


def letters(count: int) -> tuple[Item, ...]:
    """The first letters of the alphabet.

    Raises:
        ValueError: for none, or more than there are.
    """
    alphabet = string.ascii_lowercase
    if not 1 <= count <= len(alphabet):
        raise ValueError(f"there are 1 … {len(alphabet)} letters, not {count}")
    return tuple(alphabet[:count])


def _given(vocabulary: tuple[Item, ...], length: int) -> tuple[Given, Given]:
    return Given("token", vocabulary), Given("position", tuple(range(length)))
