"""Explanations and judgements by a chat model behind an endpoint that speaks OpenAI's protocol, local or remote.

The key is read from an environment variable and is nowhere kept. What fails for a while (a full queue, a fault of the
server) is asked again; what is no answer even then is counted as none.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, final

from innerspace.explain.examples import Question, Shown
from innerspace.explain.explainer import Author, Explainer, Explanation, Judge, NoAnswer
from innerspace.explain.prompts import explanation_in, numbers_in, to_explain, to_judge

T = TypeVar("T")
R = TypeVar("R")

_NO_KEY = "none"
"""What is sent where the variable is not set; servers of one's own ask for no key."""


@final
@dataclass(frozen=True)
class Endpoint(Author):
    """A chat model at an address such as ``http://localhost:8000/v1``; the key is that of the variable ``key``.

    A request that fails is repeated ``retries`` times, at growing intervals or when the server says; it may take
    ``seconds``. ``at_once`` requests are under way together, and one asks ``together`` questions about an explanation.

    Raises:
        ValueError: for an address or a model that is not given, or numbers below what is possible.
    """

    base_url: str = "https://api.openai.com/v1"
    model: str = ""
    key: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    seconds: float = 60.0
    retries: int = 4
    at_once: int = 8
    together: int = 8
    longest_answer: int = 400

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"an endpoint's address begins with http:// or https://, this is {self.base_url!r}")
        if self.retries < 0 or min(self.at_once, self.together, self.longest_answer) < 1 or not self.seconds > 0:
            raise ValueError(f"an endpoint needs time, and at_once, together and longest_answer of at least 1: {self}")

    def open(self) -> tuple[Explainer, Judge]:
        """A client for both.

        Raises:
            ValueError: without the package openai, or a model.
        """
        if not self.model:
            raise ValueError("the endpoint's model is not given; set its name, such as --explainer.model NAME")
        client = _Client(self)
        return EndpointExplainer(client), EndpointJudge(client)


@final
class _Client:
    """Requests to an endpoint, some of them at once."""

    def __init__(self, settings: Endpoint) -> None:
        try:
            import openai
        except ImportError:
            raise ValueError("endpoints need the package openai: pip install 'innerspace[explain]'") from None
        self.settings, self._openai = settings, openai
        self._client = openai.OpenAI(
            base_url=settings.base_url,
            api_key=os.environ.get(settings.key) or _NO_KEY,
            timeout=settings.seconds,
            max_retries=settings.retries,
        )

    def ask(self, prompt: str) -> str | NoAnswer:
        """What the model says; no answer where requests fail in spite of all retries, or it was cut off.

        Raises:
            ValueError: for what no retry mends: a wrong key, address or model, or a request that is refused.
        """
        openai, own = self._openai, self.settings
        try:
            reply: Any = self._client.chat.completions.create(
                model=own.model,
                messages=[{"role": "user", "content": prompt}],
                temperature=own.temperature,
                max_tokens=own.longest_answer,
            )
        except (openai.RateLimitError, openai.InternalServerError, openai.APITimeoutError) as error:
            return NoAnswer(f"the request failed: {type(error).__name__}")
        except openai.APIStatusError as error:
            raise ValueError(f"{own.base_url} refuses requests for {own.model!r}: {error.message}") from None
        except openai.APIConnectionError as error:
            raise ValueError(f"nobody answers at {own.base_url}: {error.__cause__ or error}") from None
        except (openai.OpenAIError, ValueError) as error:
            return NoAnswer(f"the reply is not in the protocol: {type(error).__name__}")
        return _text(reply)

    def all(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Work on all items, some at once, in their order."""
        with ThreadPoolExecutor(self.settings.at_once) as pool:
            return list(pool.map(work, items))


@final
class EndpointExplainer(Explainer):
    """Explanations by the model at an endpoint."""

    def __init__(self, client: _Client) -> None:
        self._client = client

    def explain(self, shown: Shown) -> Explanation | NoAnswer:
        """What the model says of the contexts."""
        answer = self._client.ask(to_explain(shown))
        return answer if isinstance(answer, NoAnswer) else explanation_in(answer, self._client.settings.model)

    def explain_all(self, many: Sequence[Shown]) -> list[Explanation | NoAnswer]:
        """Several at once."""
        return self._client.all(self.explain, many)


@final
class EndpointJudge(Judge):
    """Judgements by the model at an endpoint."""

    def __init__(self, client: _Client) -> None:
        self._client = client

    def judge(self, explanation: Explanation, questions: Sequence[Question]) -> list[float | NoAnswer]:
        """As many questions in a request as the settings say."""
        return self.judge_all([(explanation, questions)])[0]

    def judge_all(self, many: Sequence[tuple[Explanation, Sequence[Question]]]) -> list[list[float | NoAnswer]]:
        """Several requests at once."""
        answers = [list[float | NoAnswer]([_UNASKED] * len(questions)) for _, questions in many]
        requests = [
            (task, part)
            for task, (_, questions) in enumerate(many)
            for part in _parts(questions, self._client.settings.together)
        ]

        def ask(request: tuple[int, list[int]]) -> Sequence[float | NoAnswer]:
            task, part = request
            explanation, questions = many[task]
            reply = self._client.ask(to_judge(explanation, [questions[i] for i in part]))
            numbers = reply if isinstance(reply, NoAnswer) else numbers_in(reply, len(part))
            return [numbers] * len(part) if isinstance(numbers, NoAnswer) else numbers

        for (task, part), found in zip(requests, self._client.all(ask, requests), strict=True):
            for i, one in zip(part, found, strict=True):
                answers[task][i] = one
        return answers


_UNASKED = NoAnswer("it was not asked")


def _parts(questions: Sequence[Question], size: int) -> list[list[int]]:
    """Questions of one kind that go into one request, by number; spread, so that no request holds one answer only."""
    parts = list[list[int]]()
    for marked in (False, True):
        own = [i for i, question in enumerate(questions) if (question.marked is not None) == marked]
        count = -(-len(own) // size)
        parts += [own[k::count] for k in range(count)]
    return parts


def _text(reply: Any) -> str | NoAnswer:
    choices: Any = getattr(reply, "choices", None)
    if not choices:
        return NoAnswer("the reply has no choice")
    if choices[0].finish_reason == "length":
        return NoAnswer("the answer was cut off")
    content: Any = getattr(choices[0].message, "content", None)
    return content if isinstance(content, str) else NoAnswer("the reply has no text")
