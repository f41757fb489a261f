"""What a text says against what a network remembers: a fact that it knows, contradicted in the prompt.

" Niels Bohr won the Nobel Prize in Literature. A. Michael Spence won the Nobel Prize in Economics. Niels Bohr won the
Nobel Prize in" can go on with what stands there (context) or with what is true (memory). With a made-up name at both
places nothing can be remembered; with one at the first place only, the context speaks of somebody else. After RAVEL
(Huang et al. 2024, arXiv 2402.17700), in the form of Huang and Hahn (arXiv 2508.01916).
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch

from innerspace.language.causal_lm import LoadedLM
from innerspace.language.circuits import Case, Suite
from innerspace.language.suites.prompts import Inexpressible, Writer, attempted, enough
from innerspace.value import Value


@dataclass(frozen=True)
class Relation(Value):
    """How a fact is stated, with the slots ``{entity}`` and ``{value}`` at its end, and an example that shows it.

    Raises:
        ValueError: for a statement without the slots, or that does not end with the value.
    """

    statement: str
    example: tuple[str, str]

    def __post_init__(self) -> None:
        if "{entity}" not in self.statement or not self.statement.endswith(" {value}"):
            raise ValueError(f"a statement has '{{entity}}' and ends with ' {{value}}', not {self.statement!r}")

    @property
    def verb(self) -> str:
        """The word before the value."""
        return self.statement.split(" ")[-2]

    def prompt(self) -> str:
        """The example, and the statement up to its value."""
        entity, value = self.example
        shown = self.statement.format(entity=entity, value=value)
        return f"{shown}. {self.statement.removesuffix(' {value}')}"

    def conflict(self) -> str:
        """A statement with a ``{wrong}`` value, then the prompt; ``{first}`` and ``{last}`` are the two mentions."""
        said = self.statement.replace("{entity}", "{first}").replace("{value}", "{wrong}")
        return f" {said}. {self.prompt().replace('{entity}', '{last}')}"


NOBEL = Relation("{entity} won the Nobel Prize in {value}", ("A. Michael Spence", "Economics"))

_LAUREATES = {
    "Physics": "Albert Einstein, Niels Bohr, Max Planck, Werner Heisenberg, Erwin Schrödinger, Paul Dirac, "
    "Enrico Fermi, Richard Feynman, Wolfgang Pauli, Max Born, Peter Higgs, Roger Penrose, Guglielmo Marconi, "
    "Wilhelm Röntgen, Louis de Broglie, Murray Gell-Mann, Hans Bethe, Steven Weinberg, Abdus Salam, William Shockley, "
    "Lev Landau",
    "Chemistry": "Ernest Rutherford, Otto Hahn, Frederick Sanger, Dorothy Hodgkin, Fritz Haber, Svante Arrhenius, "
    "Irving Langmuir, Jennifer Doudna, Emmanuelle Charpentier, Ahmed Zewail, Roald Hoffmann, Walther Nernst, "
    "Glenn Seaborg, Melvin Calvin, Harold Urey, Frances Arnold, Max Perutz, John Kendrew, Venki Ramakrishnan",
    "Medicine": "Alexander Fleming, Robert Koch, Ivan Pavlov, Francis Crick, James Watson, Maurice Wilkins, "
    "Barbara McClintock, Paul Ehrlich, Konrad Lorenz, Tu Youyou, Shinya Yamanaka, Barry Marshall, Howard Florey, "
    "Frederick Banting, Hans Krebs, Karl Landsteiner, Eric Kandel, Max Delbrück, Sydney Brenner, Ronald Ross",
    "Literature": "Ernest Hemingway, Albert Camus, Thomas Mann, William Faulkner, Toni Morrison, Pablo Neruda, "
    "Hermann Hesse, Rudyard Kipling, Samuel Beckett, Rabindranath Tagore, John Steinbeck, Gabriel García Márquez, "
    "Orhan Pamuk, Kazuo Ishiguro, Alice Munro, Doris Lessing, Bob Dylan, William Golding, Knut Hamsun, Günter Grass",
    "Peace": "Nelson Mandela, Martin Luther King Jr., Mother Teresa, Malala Yousafzai, Desmond Tutu, Barack Obama, "
    "Jimmy Carter, Yasser Arafat, Aung San Suu Kyi, Lech Wałęsa, Mikhail Gorbachev, Kofi Annan, Albert Schweitzer, "
    "Henry Kissinger, Elie Wiesel, Willy Brandt, Rigoberta Menchú, Shirin Ebadi, Theodore Roosevelt, Al Gore",
    "Economics": "Milton Friedman, Paul Krugman, Amartya Sen, Joseph Stiglitz, Daniel Kahneman, Friedrich Hayek, "
    "Paul Samuelson, Kenneth Arrow, Robert Solow, Elinor Ostrom, Esther Duflo, Abhijit Banerjee, Gary Becker, "
    "James Tobin, Robert Lucas, Jean Tirole, Angus Deaton, Ronald Coase, Gunnar Myrdal, Richard Thaler",
}
LAUREATES: dict[str, str] = {name: field for field, names in _LAUREATES.items() for name in names.split(", ")}
"""People of common knowledge and the field of their prize."""

_GIVEN = "Alden Bevin Corla Darrin Elvan Fenna Gorvin Halda Irvan Jorin Kessa Lorvin Merrin Nolda Orvin Pella Rovan"
_MIDDLE = ("V.", "de", "Tor", "van der", "de la", "Orvin Tor")
_FAMILY = "Ash Bel Dun Ilva Tarn Farrow Corvane Dunmoor Eskdale Glenmark Hartvale Kestrow Larkmoor Ashgroveton"
_PLAIN = ("Martin", "Laura", "Simon", "Julia", "Oliver", "Helen"), ("Window", "Garden", "River", "Winter", "Bridge")
MADE_UP: tuple[str, ...] = tuple(
    " ".join(filter(None, parts))
    for parts in (*product(*_PLAIN), *product(_GIVEN.split(), ("", *_MIDDLE), _FAMILY.split()))
)
"""Names of nobody, of many lengths."""


def recalled(
    lm: LoadedLM,
    facts: Mapping[str, str] = LAUREATES,
    relation: Relation = NOBEL,
    *,
    bos: bool = True,
) -> dict[str, str]:
    """The facts that a network knows: the value is one token, and the likeliest one of all after example and entity.

    Raises:
        ValueError: if no fact can be asked in the tokenizer's words.
    """
    writer = Writer(lm.tokenizer, bos=bos)

    def asked(entity: str) -> tuple[str, Case]:
        ids = writer.write(relation.prompt(), {"entity": entity}).ids
        return entity, Case(ids, ids, (len(ids) - 1,), (writer.single(facts[entity], after=relation.verb),), (), entity)

    questions, missing = attempted(facts, asked)
    enough(questions, 1, "facts", missing)
    cases = tuple(case for _, case in questions)
    suite = Suite("recalled", "the fact", "", "choice", cases, tuple(missing), writer.padding)
    device = next(lm.model.module.parameters()).device
    with torch.no_grad():
        right = torch.cat([pairs.metric(lm.model.run(pairs.to(device).clean)) for pairs in suite.pairs()]).tolist()
    return {entity: facts[entity] for (entity, _), known in zip(questions, right, strict=True) if known}


def conflict(
    tokenizer: Any,
    site: str,
    facts: Mapping[str, str] = LAUREATES,
    relation: Relation = NOBEL,
    made_up: Sequence[str] = MADE_UP,
    *,
    seed: int = 0,
    bos: bool = True,
) -> list[Suite]:
    """Context against memory, for facts that the network knows (``recalled``): four suites, patched at every token.

    The counterfactual has a made-up name at both mentions (``memory-corrupted``) or at the first
    (``context-corrupted``); the metric is whether the likeliest token is what the text says (``.context``) or what is
    true (``.memory``), so that its mean is a rate. Made-up names take as many tokens as those that they replace. The
    published ``site`` is ``resid_mid.11`` in Qwen2.5-1.5B and ``resid_mid.9`` in Gemma-2-2B. Every entity is a group.

    Raises:
        ValueError: for facts with fewer than two values of one token each, or of which none can be written.
    """
    writer, draw = Writer(tokenizer, bos=bos), random.Random(seed)
    values, unknown = attempted(
        sorted(set(facts.values())), lambda value: (value, writer.single(value, after=relation.verb))
    )
    enough(values, 2, "values as one token", unknown)
    tokens, by_length = dict(values), dict[int, list[str]]()
    for name, length in attempted(made_up, lambda name: (name, len(writer.tokens(name, after="."))))[0]:
        by_length.setdefault(length, []).append(name)

    def clash(fact: tuple[str, str]) -> _Clash:
        entity, true = fact
        if true not in tokens:
            raise Inexpressible(f"{true!r}, the value of {entity!r}, is not one token")
        length = len(writer.tokens(entity, after="."))
        if length not in by_length:
            raise Inexpressible(f"no made-up name has {length} tokens like {entity!r}")
        wrong = draw.choice([value for value in tokens if value != true])
        return _Clash(entity, draw.choice(by_length[length]), wrong, tokens[true], tokens[wrong])

    clashes, unmatched = attempted(facts.items(), clash)
    suites = list[Suite]()
    for corrupted in ("memory", "context"):
        cases, unwritten = attempted(clashes, partial(_case, writer, relation, corrupted))
        enough(cases, 1, "conflicts", missing := (*unmatched, *unwritten))
        # the value in the text is at first held to be right
        turned = [replace(case, right=case.wrong, wrong=case.right) for case in cases]
        for answer, judged in (("context", cases), ("memory", turned)):
            name, variable = f"conflict.{corrupted}-corrupted.{answer}", f"what the {corrupted} says"
            suites.append(Suite(name, variable, site, "choice", tuple(judged), missing, writer.padding))
    return suites


@dataclass(frozen=True)
class _Clash:
    """A known fact, the value that the context claims instead, and a name of nobody; values also as tokens."""

    entity: str
    nobody: str
    wrong: str
    memory: int
    context: int


def _case(writer: Writer, relation: Relation, corrupted: str, clash: _Clash) -> Case:
    clean = {"first": clash.entity, "last": clash.entity, "wrong": clash.wrong}
    other = clean | {"first": clash.nobody} | ({"last": clash.nobody} if corrupted == "memory" else {})
    one, two = writer.twins(relation.conflict(), clean, other)
    return Case(one.ids, two.ids, tuple(range(len(one.ids))), (clash.context,), (clash.memory,), clash.entity)
