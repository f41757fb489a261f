"""Who explains and who judges: two small interfaces, and the pair that needs neither a network nor the internet.

An explainer of one's own is a class with one method, and so is a judge::

    class Shortest(Explainer):
        def explain(self, shown):
            return Explanation(min((one.shown(one.firing) for one in shown.on), key=len), "shortest")
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from innerspace.explain.contexts import Fact
from innerspace.explain.examples import Question, Shown
from innerspace.explain.learner import Search, learn
from innerspace.explain.rules import Rule
from innerspace.value import Value


@dataclass(frozen=True)
class Explanation(Value):
    """What somebody says that a coordinate is on for; with a ``rule`` where a machine can check it."""

    text: str
    author: str
    rule: Rule | None = None


@dataclass(frozen=True)
class NoAnswer(Value):
    """An answer that did not come, or that was none, and why; it is counted and never guessed."""

    reason: str


class Explainer(ABC):
    """What makes an explanation of examples."""

    @abstractmethod
    def explain(self, shown: Shown) -> Explanation | NoAnswer:
        """What all contexts in which the coordinate is on have in common."""

    def explain_all(self, many: Sequence[Shown]) -> list[Explanation | NoAnswer]:
        """Explanations of many coordinates; one after the other, unless it is done better."""
        return [self.explain(shown) for shown in many]


class Judge(ABC):
    """What says, by an explanation alone, where a coordinate is on."""

    @abstractmethod
    def judge(self, explanation: Explanation, questions: Sequence[Question]) -> list[float | NoAnswer]:
        """For every question the probability that it is on, at even odds."""

    def judge_all(self, many: Sequence[tuple[Explanation, Sequence[Question]]]) -> list[list[float | NoAnswer]]:
        """Answers to the questions of many explanations; one after the other, unless it is done better."""
        return [self.judge(explanation, questions) for explanation, questions in many]


@dataclass(frozen=True)
class Author(Value, ABC):
    """The settings of somebody who explains and judges, as a job keeps them."""

    @abstractmethod
    def open(self) -> tuple[Explainer, Judge]:
        """Both, ready for work.

        Raises:
            ValueError: for what is not there: a package, a model.
        """


@final
@dataclass(frozen=True)
class Rules(Author):
    """Rules over tokens and their surroundings, or over motion words: offline, in milliseconds, with few words."""

    search: Search = Search()

    def open(self) -> tuple[Explainer, Judge]:
        """The learner of rules, and what checks them."""
        return RuleExplainer(self.search), RuleJudge()


@final
class RuleExplainer(Explainer):
    """Says the rule that ``learn`` finds."""

    def __init__(self, search: Search = Search()) -> None:
        self._search = search

    def explain(self, shown: Shown) -> Explanation:
        """The rule, and the same in words."""
        return ruled(learn(shown, self._search))


@final
class RuleJudge(Judge):
    """Checks the rule of an explanation: at a marked position, or at all that a context asks about."""

    def judge(self, explanation: Explanation, questions: Sequence[Question]) -> list[float | NoAnswer]:
        """The rule's probabilities, of several positions the largest.

        Raises:
            ValueError: for an explanation without a rule.
        """
        return self.judge_all([(explanation, questions)])[0]

    def judge_all(self, many: Sequence[tuple[Explanation, Sequence[Question]]]) -> list[list[float | NoAnswer]]:
        """The same, the facts of questions that are asked of several explanations looked up once.

        Raises:
            ValueError: as ``judge``.
        """
        facts = dict[int, list[tuple[Fact, ...]]]()
        answers = list[list[float | NoAnswer]]()
        for explanation, questions in many:
            if (rule := explanation.rule) is None:
                raise ValueError(
                    f"a RuleJudge checks rules, and {explanation.author or 'nobody'} gave none with "
                    f"{explanation.text!r}; take a judge that reads"
                )
            for question in questions:
                if id(question) not in facts:
                    facts[id(question)] = _facts(question)
            answers.append([rule(facts[id(question)]) for question in questions])
        return answers


def ruled(rule: Rule, author: str = "innerspace rules") -> Explanation:
    """A rule as an explanation."""
    return Explanation(str(rule), author, rule)


def _facts(question: Question) -> list[tuple[Fact, ...]]:
    """What holds at the marked position, or at each that the context asks about."""
    context = question.context
    return [context.facts(i) for i in (context.asked if question.marked is None else (question.marked,))]
