"""What language models are asked: to explain, and to say by an explanation where a unit is active; and what they said.

An answer counts if it has the form that was asked for. Anything else is no answer.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, cast

from innerspace.explain.contexts import Context
from innerspace.explain.examples import Question, Shown
from innerspace.explain.explainer import Explanation, NoAnswer

LONGEST = 400
"""An explanation of more letters is cut."""

_LEVELS = 10


def to_explain(shown: Shown) -> str:
    """The task of explaining, with activations from 1 to 10 and what is marked between « and »."""
    medium = type(shown.on[0])
    most = max(value for context in shown.on for value in context.values)
    strongest = sorted(shown.on, key=lambda one: -max(one.values))
    lines = [f"{_level(max(one.values), most)}/10: {one.shown(one.firing)}" for one in strongest]
    others = [f"0/10: {one.shown()}" for one in shown.off[: len(lines) // 2]]
    return (
        f"A unit inside a neural network is active for some inputs and not for others. Each line below is "
        f"{medium.medium}, behind its activation. What the unit is active at stands between « and », where there is "
        "more than one place.\n\n"
        + "\n".join(map(_line, [*lines, *others]))
        + "\n\nWhat do the active ones have in common that the others lack? Answer with one short, specific phrase "
        "that would let somebody else tell them apart. No examples, no reasoning, nothing but the phrase."
    )


def explanation_in(answer: str | None, author: str) -> Explanation | NoAnswer:
    """The explanation in an answer."""
    words = " ".join((answer or "").split()).removeprefix("Explanation:").strip(" \"'")
    return Explanation(words[:LONGEST], author) if words else NoAnswer("the explanation is empty")


def to_judge(explanation: Explanation, questions: Sequence[Question]) -> str:
    """The task of judging several questions of one kind, to be answered with as many numbers as JSON."""
    lines = (f"{i + 1}. {_line(question.shown)}" for i, question in enumerate(questions))
    return (
        f"{_setting(explanation, questions[0])}\n\n"
        + "\n".join(lines)
        + f"\n\nFor each of the {len(questions)}, how likely is it, from 0 to 1? About half of them are. Answer with a "
        f"JSON list of {len(questions)} numbers in that order, and nothing else."
    )


def to_judge_one(explanation: Explanation, question: Question, shown: str | None = None) -> str:
    """One question, to be answered with yes or no; ``shown`` takes the place of its context."""
    read = question.shown if shown is None else shown
    return f"{_setting(explanation, question)}\n\n{_line(read)}\n\nAnswer with yes or no.\nAnswer:"


def numbers_in(answer: str | None, count: int) -> list[float] | NoAnswer:
    """The probabilities in an answer: a list of so many numbers from 0 to 1."""
    found = re.search(r"\[[^\[\]]*\]", answer or "")
    if found is None:
        return NoAnswer("the answer holds no list")
    try:
        given: Any = json.loads(found[0])
    except (json.JSONDecodeError, RecursionError):
        return NoAnswer("the answer is no JSON")
    values = cast(list[Any], given)
    if len(values) != count:
        return NoAnswer("the answer has another number of entries")
    if any(isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1 for value in values):
        return NoAnswer("the answer holds what is no probability")
    return [float(value) for value in values]


def _setting(explanation: Explanation, question: Question) -> str:
    kind: type[Context] = type(question.context)
    asked = (
        f"Is it so that {kind.fires}?"
        if question.marked is None
        else "Is the unit active exactly at what is marked (between « and », or the step that is named)?"
    )
    return (
        f"A unit inside a neural network is active for this: {explanation.text}\n"
        f"Below is, in each line, {kind.medium}. {asked}"
    )


def _line(text: str) -> str:
    return text.replace("\n", "↵")


def _level(value: float, most: float) -> int:
    return max(1, round(_LEVELS * value / most)) if value > 0 else 0
