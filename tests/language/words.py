"""Documents of numbered words, a tokenizer that knows them, and sequences as lists of (token, document)."""

from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from innerspace.language.corpora import Corpus
from innerspace.language.shards import Part, TokenShards
from innerspace.language.sources import Source, Texts
from innerspace.language.text import Text

BOS, EOS, FIRST = 0, 1, 3


def tokenizer(words: int = 600, *, specials: bool = True, **other: int) -> Any:
    """Word w<i> has id i + 3."""
    vocabulary = {"<s>": BOS, "</s>": EOS, "<unk>": 2} | {f"w{i}": i + FIRST for i in range(words)} | other
    backend = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"} if specials else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **tokens)


def document(i: int, length: int) -> str:
    return " ".join(f"w{(7 * i + j) % 600}" for j in range(length))


LENGTHS = [5, 1, 12, 3, 3, 8, 2, 30, 4, 4, 9, 1, 6, 17, 2]
TEXTS = tuple(document(i, length) for i, length in enumerate(LENGTHS))


def corpus(source: Source | None = None, **changes: Any) -> Corpus:
    settings: dict[str, Any] = {"context": 6, "bos": "none", "eos": False, "held_out": 0.4}
    return Corpus(source or Texts(TEXTS), **(settings | changes))


def pairs(text: Text) -> list[list[tuple[int, int]]]:
    assert text.document is not None
    return [list(zip(*row, strict=True)) for row in zip(text.ids.tolist(), text.document.tolist(), strict=True)]


def everything(shards: TokenShards, part: Part) -> list[list[tuple[int, int]]]:
    return [row for text in shards.each(3, split=part) for row in pairs(text)]
