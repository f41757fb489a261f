"""Explanations and judgements by a language model of ``transformers`` on this machine.

It explains by generating, without sampling. It judges by comparing *yes* and *no* as the next token,

    log-odds = log p(yes | question) − log p(no | question) − bias,

where the bias is the same difference for a question without content, so that a model that prefers one of the words has
no opinion by that alone (Zhao et al., "Calibrate Before Use", ICML 2021, arXiv 2102.09690).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.explain.examples import Question, Shown
from innerspace.explain.explainer import Author, Explainer, Explanation, Judge, NoAnswer
from innerspace.explain.prompts import explanation_in, to_explain, to_judge_one
from innerspace.language.causal_lm import LoadedLM, load, tokenize
from innerspace.language.text import Text

_EMPTY = "N/A"
"""What stands for a context in a question without content."""

_WORDS = (("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No"))


@final
@dataclass(frozen=True)
class LocalModel(Author):
    """A language model from a folder or the hub; ``batch`` questions at once, explanations of ``tokens`` tokens.

    Raises:
        ValueError: for no question at once, or explanations without a token.
    """

    model: str = ""
    device: str = "cpu"
    batch: int = 8
    tokens: int = 40

    def __post_init__(self) -> None:
        if min(self.batch, self.tokens) < 1:
            raise ValueError(f"a local model needs a batch and tokens of at least 1: {self}")

    def open(self) -> tuple[Explainer, Judge]:
        """The model, loaded once for both.

        Raises:
            ValueError: for a model that is not given or cannot be loaded, or whose tokens cannot say yes and no.
        """
        if not self.model:
            raise ValueError("the local model is not given; set a folder or a name on the hub")
        loaded = load(self.model)
        loaded.model.module.to(self.device)
        return GeneratingExplainer(loaded, self.tokens, self.model), YesNoJudge(loaded, self.batch)


@final
class GeneratingExplainer(Explainer):
    """Lets a model go on behind the contexts, and takes the first line."""

    def __init__(self, loaded: LoadedLM, tokens: int = 40, name: str = "a local model") -> None:
        self._loaded, self._tokens, self._name = loaded, tokens, name

    @torch.no_grad()
    def explain(self, shown: Shown) -> Explanation | NoAnswer:
        """What the model generates, the most likely token each time."""
        tokenizer, module = self._loaded.tokenizer, cast(Any, self._loaded.model.module)
        batch = _asked(tokenizer, [to_explain(shown) + "\nExplanation:"]).to(module.device)
        made: Tensor = module.generate(
            input_ids=batch.ids,
            attention_mask=torch.ones_like(batch.ids),
            max_new_tokens=self._tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
        said: str = tokenizer.decode(made[0, batch.ids.shape[1] :], skip_special_tokens=True)
        return explanation_in(next((line for line in said.splitlines() if line.strip()), ""), self._name)


@final
class YesNoJudge(Judge):
    """Compares yes and no as the next token, calibrated on a question without content.

    Raises:
        ValueError: for a tokenizer in which neither word, or both, begin with a token of their own.
    """

    def __init__(self, loaded: LoadedLM, batch: int = 8) -> None:
        self._loaded, self._batch = loaded, batch
        self._yes, self._no = _first_tokens(loaded.tokenizer)

    def judge(self, explanation: Explanation, questions: Sequence[Question]) -> list[float | NoAnswer]:
        """The calibrated probabilities of yes."""
        prompts = [to_judge_one(explanation, question) for question in questions]
        kinds = [question.marked is not None for question in questions]
        empty = {kind: questions[kinds.index(kind)] for kind in dict.fromkeys(kinds)}
        bias = self._odds([to_judge_one(explanation, question, _EMPTY) for question in empty.values()])
        known = dict(zip(empty, bias.tolist(), strict=True))
        odds = self._odds(prompts) - torch.tensor([known[kind] for kind in kinds], dtype=torch.float64)
        return list(odds.sigmoid().tolist())

    @torch.no_grad()
    def _odds(self, prompts: Sequence[str]) -> Float[Tensor, "n"]:
        """Log p(yes) − log p(no), each over the forms of the word."""
        loaded, found = self._loaded, list[Tensor]()
        for start in range(0, len(prompts), self._batch):
            batch = _asked(loaded.tokenizer, prompts[start : start + self._batch])
            batch = batch.to(cast(Any, loaded.model.module).device)
            logits = loaded.model.run(batch).output["logits"][:, -1].double()
            found.append((logits[:, self._yes].logsumexp(1) - logits[:, self._no].logsumexp(1)).cpu())
        return torch.cat(found)


def _asked(tokenizer: Any, prompts: Sequence[str]) -> Text:
    """Prompts as a batch, as messages where the tokenizer knows how its model is spoken to."""
    if tokenizer.chat_template is None:
        return tokenize(tokenizer, prompts, side="left")
    messages = [
        tokenizer.apply_chat_template([{"role": "user", "content": one}], tokenize=False, add_generation_prompt=True)
        for one in prompts
    ]
    # the template has written BOS already
    return tokenize(tokenizer, messages, side="left", bos="never")


def _first_tokens(tokenizer: Any) -> tuple[Int[Tensor, "yes"], Int[Tensor, "no"]]:
    """The tokens with which yes and no may begin, without those that both share."""
    sides = [
        {ids[0] for word in words if (ids := tokenizer.encode(word, add_special_tokens=False))} for words in _WORDS
    ]
    yes, no = sides[0] - sides[1], sides[1] - sides[0]
    if not yes or not no:
        raise ValueError("yes and no begin with the same tokens for this tokenizer, so that they cannot be compared")
    return torch.tensor(sorted(yes)), torch.tensor(sorted(no))
