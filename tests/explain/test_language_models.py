"""Explainers and judges that ask language models: a server that speaks the protocol, faults included; a local model."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from explain.planted import SPAN, WORDS, TextFamily, latents, model, texts, token
from innerspace.explain.contexts import SceneContext, TextContext
from innerspace.explain.endpoint import Endpoint
from innerspace.explain.examples import Question, Shown
from innerspace.explain.explainer import Explanation, NoAnswer, RuleJudge
from innerspace.explain.interpret import interpret
from innerspace.explain.local_model import GeneratingExplainer, LocalModel, YesNoJudge
from innerspace.explain.prompts import explanation_in, numbers_in, to_explain, to_judge, to_judge_one
from innerspace.explain.reading import TextReader
from innerspace.language.causal_lm import CausalLM, LoadedLM
from innerspace.language.text import Text
from innerspace.network.model import Model
from language.tiny import decoder
from language.words import tokenizer

pytest.importorskip("openai", reason="endpoints need the extra 'explain'")

SAID = Explanation("the word w4", "somebody")
Reply = tuple[int, Any]


def chat(content: str | None, reason: str = "stop") -> Reply:
    message = {"role": "assistant", "content": content}
    return 200, {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
    }


class Server:
    """Answers requests by a function of the request and of how many came before it; keeps what was asked."""

    def __init__(self) -> None:
        self.answer: Callable[[str, int], Reply] = lambda prompt, count: chat("nothing")
        self.asked, self.keys, self.lock = list[dict[str, Any]](), Counter[str](), threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    count = len(outer.asked)
                    outer.asked.append(body)
                    outer.keys[self.headers["Authorization"]] += 1
                status, reply = outer.answer(body["messages"][0]["content"], count)
                data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture
def endpoint(server: Server, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    monkeypatch.setenv("OUR_KEY", "a-secret")
    return Endpoint(server.address, "m", "OUR_KEY", retries=2, at_once=4, together=3)


def questions(count: int, marked: bool = False) -> list[Question]:
    return [Question(TextContext(i, 0, (), (f" w{i}", " w4")), 1 if marked else None) for i in range(count)]


def shown() -> Shown:
    on = tuple(TextContext(i, 1, (0.0, 1.0 + i), (" w1", " w4")) for i in range(3))
    return Shown(on, (TextContext(9, 0, (0.0, 0.0), (" w1", " w2\n")),))


def test_latents_are_explained_and_judged_through_the_protocol(server: Server, endpoint: Endpoint) -> None:
    def answer(prompt: str, count: int) -> Reply:
        if "JSON list" not in prompt:
            return chat("Explanation: w4")
        lines = [line.split(". ", 1)[1] for line in prompt.splitlines() if line[:1].isdigit()]
        word = prompt.split("active for this: ", 1)[1].split("\n", 1)[0]
        marked = [line[line.find("«") + 1 : line.find("»")] if "«" in line else line for line in lines]
        return chat("Surely: " + json.dumps([0.9 if word in text.split() else 0.2 for text in marked]))

    server.answer = answer
    explainer, judge = replace(endpoint, together=8).open()
    what = latents(2 * SPAN + 1, [({token(4): 1.0}, 0.5), ({token(7): 1.0}, 0.5)])
    reader = TextReader(tokenizer(WORDS))
    found = interpret(
        model(TextFamily()), texts(), what, "hidden", [0, 1], reader, explainer=explainer, judge=judge, seeds=1,
        replicates=50,
    )  # fmt: skip
    assert [one.explanation for one in found.explained] == [Explanation("w4", "m")] * 2
    assert found.explained[0].detection.mean == found.explained[0].fuzzing.mean == 1.0
    assert abs(found.explained[1].detection.mean - 0.5) < 0.3
    assert found.scores.unanswered() == 0
    assert set(server.keys) == {"Bearer a-secret"}
    assert all(body["temperature"] == 0 and body["model"] == "m" for body in server.asked)


def test_a_full_queue_and_faults_are_waited_for(server: Server, endpoint: Endpoint) -> None:
    server.answer = lambda _, count: (429, {"error": {"message": "slow down"}}) if count == 0 else (
        (500, b"oops") if count == 1 else chat("it is this"))  # fmt: skip
    explainer, _ = endpoint.open()
    assert explainer.explain(shown()) == Explanation("it is this", "m")
    assert len(server.asked) == 3


def test_what_fails_for_good_is_no_answer(server: Server, endpoint: Endpoint) -> None:
    server.answer = lambda *_: (500, {"error": {"message": "broken"}})
    explainer, judge = endpoint.open()
    assert explainer.explain(shown()) == NoAnswer("the request failed: InternalServerError")
    assert len(server.asked) == 3
    assert judge.judge(SAID, questions(2)) == [NoAnswer("the request failed: InternalServerError")] * 2
    server.answer = lambda *_: (429, {"error": {"message": "never"}})
    assert explainer.explain(shown()) == NoAnswer("the request failed: RateLimitError")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("I think so.", "the answer holds no list"),
        ("[0.1, 0.2", "the answer holds no list"),
        ("[yes, no, yes]", "the answer is no JSON"),
        ("[0.1, 0.2]", "the answer has another number of entries"),
        ("[0.1, 1.7, 0.2]", "the answer holds what is no probability"),
        ("[true, false, true]", "the answer holds what is no probability"),
        ("[0.1, NaN, 0.2]", "the answer holds what is no probability"),
        ("", "the answer holds no list"),
    ],
)
def test_bad_answers_are_none_and_not_guessed(server: Server, endpoint: Endpoint, content: str, reason: str) -> None:
    server.answer = lambda *_: chat(content)
    _, judge = endpoint.open()
    assert judge.judge(SAID, questions(3)) == [NoAnswer(reason)] * 3


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ((200, b"<html>"), "the reply"),
        ((200, {"choices": []}), "the reply has no choice"),
        (chat(None), "the reply has no text"),
        (chat("half an ans", "length"), "the answer was cut off"),
    ],
)
def test_replies_that_are_none(server: Server, endpoint: Endpoint, reply: Reply, reason: str) -> None:
    server.answer = lambda *_: reply
    explainer, judge = endpoint.open()
    found = explainer.explain(shown())
    assert isinstance(found, NoAnswer)
    assert found.reason.startswith(reason)
    assert {type(one) for one in judge.judge(SAID, questions(3))} == {NoAnswer}


def test_one_bad_answer_leaves_the_others(server: Server, endpoint: Endpoint) -> None:
    server.answer = lambda prompt, _: chat(
        "what?" if " w0" in prompt else "[0.25, 0.5, 0.75]"[: None if prompt.count("\n3.") else 10] + ""
    )
    _, judge = endpoint.open()
    found = judge.judge(SAID, questions(6))
    # two requests of three questions, the even and the odd ones
    assert [isinstance(one, NoAnswer) for one in found] == [True, False] * 3
    assert found[1::2] == [0.25, 0.5, 0.75]


def test_what_no_retry_mends_is_an_error(server: Server, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer = lambda *_: (401, {"error": {"message": "wrong key"}})
    explainer, _ = endpoint.open()
    with pytest.raises(ValueError, match=r"refuses requests for 'm': .*wrong key"):
        explainer.explain(shown())
    assert len(server.asked) == 1
    monkeypatch.delenv("OUR_KEY")
    explainer, _ = endpoint.open()
    with pytest.raises(ValueError, match="refuses"):
        explainer.explain(shown())
    assert server.keys["Bearer none"] == 1
    nobody, _ = replace(endpoint, base_url="http://127.0.0.1:9/v1", retries=0).open()
    with pytest.raises(ValueError, match="nobody answers at http://127"):
        nobody.explain(shown())
    with pytest.raises(ValueError, match="model is not given"):
        Endpoint(server.address).open()
    with pytest.raises(ValueError, match="begins with http"):
        Endpoint("localhost")
    # the key is nowhere among the settings
    assert "secret" not in json.dumps(endpoint.to_json())


def test_what_is_asked_holds_what_is_to_be_seen_and_no_more() -> None:
    asked = to_explain(shown())
    assert "10/10:  w1« w4»" in asked
    assert "0/10:  w1 w2↵" in asked
    judged = to_judge(SAID, questions(2, marked=True))
    assert "1.  w0« w4»" in judged
    assert "the word w4" in judged
    scene = SceneContext(0, 0, (), "a vehicle moving left at high speed", (), (3,), 11)
    one = to_judge_one(SAID, Question(scene))
    assert "a vehicle moving left at high speed, at step 3 of 11" in one
    assert one.endswith("Answer:")
    assert explanation_in("  \n", "x") == NoAnswer("the explanation is empty")
    assert numbers_in("so: [0, 1]", 2) == [0.0, 1.0]
    with pytest.raises(ValueError, match="somebody gave none with 'the word w4'"):
        RuleJudge().judge(SAID, questions(1))


@pytest.fixture(scope="module")
def loaded() -> LoadedLM:
    return LoadedLM(Model(decoder("llama", torch.float64), CausalLM()), tokenizer(60, yes=70, no=71))


def test_a_local_model_explains_by_its_most_likely_words(loaded: LoadedLM) -> None:
    said = GeneratingExplainer(loaded, tokens=5, name="tiny").explain(short())
    assert isinstance(said, Explanation)
    assert said.author == "tiny"
    assert said == GeneratingExplainer(loaded, tokens=5, name="tiny").explain(short())
    # what it says is what it gives the largest logit, token by token
    ids = list(loaded.tokenizer.encode(to_explain(short()) + "\nExplanation:"))
    for _ in range(5):
        ids.append(int(loaded.model.run(Text(torch.tensor([ids]))).output["logits"][0, -1].argmax()))
    assert said.text == loaded.tokenizer.decode(ids[-5:], skip_special_tokens=True).strip()


def short() -> Shown:
    return Shown((TextContext(0, 0, (1.0,), (" w4",)),), ())


def test_a_local_model_judges_by_calibrated_odds(loaded: LoadedLM) -> None:
    asked = [*questions(5), *questions(4, marked=True)]
    said = YesNoJudge(loaded, batch=2).judge(SAID, asked)
    assert said == pytest.approx(YesNoJudge(loaded, batch=9).judge(SAID, asked), abs=1e-9)

    def odds(prompt: str) -> float:
        ids = loaded.tokenizer.encode(prompt)
        logits = loaded.model.run(Text(torch.tensor([ids]))).output["logits"][0, -1]
        return float(logits[70] - logits[71])

    for question, probability in zip(asked, said, strict=True):
        expected = odds(to_judge_one(SAID, question)) - odds(to_judge_one(SAID, question, "N/A"))
        assert probability == pytest.approx(1 / (1 + torch.tensor(-expected).exp().item()), abs=1e-6)


def test_a_preference_for_a_word_is_no_opinion(loaded: LoadedLM) -> None:
    """Where a context says nothing that N/A would not say, the answer is one half, whatever the model prefers."""
    nothing = Question(TextContext(0, 0, (), ("N/A",)))
    (said,) = YesNoJudge(loaded).judge(SAID, [nothing])
    assert said == pytest.approx(0.5)


def test_what_a_local_model_lacks_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="yes and no begin with the same tokens"):
        YesNoJudge(LoadedLM(Model(decoder("llama"), CausalLM()), tokenizer(60)))
    with pytest.raises(ValueError, match="the local model is not given"):
        LocalModel().open()
    with pytest.raises(ValueError, match="no language model at"):
        LocalModel(str(tmp_path)).open()
