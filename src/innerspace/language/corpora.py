"""Corpora: where text comes from, how it becomes tokens, and what is held out.

A document belongs to the training or to the held-out split by a hash of its text and the seed, so copies of it fall on
the same side, and every sequence is cut from documents of one split: nothing that is held out is ever trained on.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from innerspace.language.shards import Part, SequenceWriter, TokenManifest, TokenShards
from innerspace.language.sources import Source
from innerspace.value import Value

_BLOCK = 2**20  # characters that are tokenized at a time


@runtime_checkable
class Tokenizer(Protocol):
    """What is asked of a tokenizer of ``transformers``, besides its ``bos_token_id`` and ``eos_token_id``."""

    def __call__(self, text: list[str], *, add_special_tokens: bool, return_attention_mask: bool, verbose: bool) -> Any:
        """Token ids of texts, under ``input_ids``."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """All tokens and their ids."""
        ...


@dataclass(frozen=True)
class Corpus(Value):
    """Text as sequences of ``context`` tokens.

    ``replace`` pairs are applied to every document first. ``bos`` opens every document, every sequence, or nothing;
    ``eos`` closes every document. The tokenizer adds no special token of its own; one that a text spells out is read as
    the tokenizer reads it. Packed, the documents of a split follow each other and are cut every ``context`` tokens;
    otherwise a sequence holds one document, padded, and a longer document takes several. A share ``held_out`` of the
    documents is held out. Reading stops when there are ``tokens`` training tokens; None reads everything.

    Raises:
        ValueError: for a context without room for a token, a share outside [0, 1), or a budget below one.
    """

    source: Source
    context: int
    bos: Literal["document", "sequence", "none"]
    eos: bool
    replace: tuple[tuple[str, str], ...] = ()
    packed: bool = True
    held_out: float = 0.1
    seed: int = 0
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.context < 2:
            raise ValueError(f"a sequence should have at least 2 tokens, not {self.context}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"the held-out share should be in [0, 1), it is {self.held_out}")
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"at least one training token should be asked for, not {self.tokens}")
        if any(not old for old, _ in self.replace):
            raise ValueError("what is replaced should not be empty")

    def documents(self) -> Iterator[str]:
        """The documents after replacement; blank ones are kept, so that a document's number is its place."""
        for text in self.source.documents():
            for old, new in self.replace:
                text = text.replace(old, new)
            yield text

    def split(self, text: str) -> Part:
        """The split of a document."""
        digest = hashlib.blake2b(text.encode(), digest_size=8, key=str(self.seed).encode()).digest()
        return "held_out" if int.from_bytes(digest) < self.held_out * 2**64 else "train"


def prepare(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    vocabulary: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> TokenShards:
    """Tokenize a corpus into a folder, or open what an equal call has left there.

    The folder appears when it is complete; an interrupted call leaves none and begins again. ``vocabulary`` is the
    number of tokens that the model knows; ``progress`` is told the training tokens so far.

    Raises:
        ValueError: if the tokenizer does not fit the model or lacks a token that is asked for, the corpus has too few
            tokens, or the folder holds something else.
    """
    size, bos, eos = _fitting(corpus, tokenizer, vocabulary)
    stamp, tokens_of = corpus.source.stamp(), _tokenizer_stamp(tokenizer)
    if folder.exists() and any(folder.iterdir()):
        return _reopened(folder, corpus, tokens_of, stamp)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        train, held_out = (
            SequenceWriter(partial, part, corpus.context, size, bos if corpus.bos == "sequence" else None)
            for part in ("train", "held_out")
        )
        _write(corpus, tokenizer, {"train": train, "held_out": held_out}, bos, eos, progress)
        found = train.close()
        if found.tokens < (corpus.tokens or 1):
            raise ValueError(
                f"the corpus has {found.tokens:,} training tokens in whole sequences of {corpus.context}, of "
                f"{found.documents:,} documents; {corpus.tokens or 1:,} were asked for (None takes all there are)"
            )
        manifest = TokenManifest(corpus.context, size, corpus.packed, tokens_of, stamp, found, held_out.close())
        corpus.save(partial / "corpus.json")
        manifest.save(partial / "manifest.json")
        try:
            partial.replace(folder)
        except OSError:
            # another process was faster
            return _reopened(folder, corpus, tokens_of, stamp)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return TokenShards.open(folder, verify=False)


def _write(
    corpus: Corpus,
    tokenizer: Tokenizer,
    writers: Mapping[Part, SequenceWriter],
    bos: int | None,
    eos: int | None,
    progress: Callable[[int], None] | None,
) -> None:
    opening = [bos] if corpus.bos == "document" and bos is not None else []
    closing = [eos] if corpus.eos and eos is not None else []
    room = corpus.context - (corpus.bos == "sequence")
    for block in _blocks(corpus.documents()):
        texts = list(block.values())
        ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        for (number, text), tokens in zip(block.items(), ids, strict=True):
            document = [*opening, *tokens, *closing]
            writers[corpus.split(text)].add(number, document, 0 if corpus.packed else -len(document) % room)
            if corpus.tokens is not None and writers["train"].tokens >= corpus.tokens:
                return
        if progress:
            progress(writers["train"].tokens)


def _blocks(documents: Iterator[str]) -> Iterator[dict[int, str]]:
    """The documents that are not blank, by number, as many at a time as make good use of a fast tokenizer."""
    block, size = dict[int, str](), 0
    for number, text in enumerate(documents):
        if text.strip():
            block[number] = text
            size += len(text)
        if size >= _BLOCK:
            yield block
            block, size = dict[int, str](), 0
    if block:
        yield block


def _fitting(corpus: Corpus, tokenizer: Tokenizer, vocabulary: int | None) -> tuple[int, int | None, int | None]:
    """The number of ids, BOS and EOS of a tokenizer that has what is asked for."""
    size, (bos, eos) = max(tokenizer.get_vocab().values()) + 1, _special(tokenizer)
    if vocabulary is not None and size > vocabulary:
        raise ValueError(f"the tokenizer gives ids 0 … {size - 1}, the model knows 0 … {vocabulary - 1} only")
    if corpus.bos != "none" and bos is None:
        raise ValueError(f"the tokenizer has no BOS token for bos={corpus.bos!r}; bos='none' is possible")
    if corpus.eos and eos is None:
        raise ValueError("the tokenizer has no EOS token for eos=True; eos=False is possible")
    return size, bos, eos


def _special(tokenizer: Tokenizer) -> tuple[int | None, int | None]:
    return getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None)


def _tokenizer_stamp(tokenizer: Tokenizer) -> str:
    """A hash of all that decides which ids a text becomes."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    rules: Any = json.loads(backend.to_str()) if backend is not None else sorted(tokenizer.get_vocab().items())
    if isinstance(rules, dict):
        # left behind by the last call, and overruled by the next
        rules |= {"truncation": None, "padding": None}
    identity = [type(tokenizer).__name__, rules, *_special(tokenizer)]
    return hashlib.blake2b(json.dumps(identity).encode(), digest_size=8).hexdigest()


def _reopened(folder: Path, corpus: Corpus, tokenizer: str, source: str) -> TokenShards:
    """What is in the folder, if it was made from the same corpus by the same tokenizer."""
    if not (folder / "corpus.json").is_file():
        raise ValueError(f"{folder} holds other files; tokens need a folder of their own")
    former, shards = Corpus.load(folder / "corpus.json"), TokenShards.open(folder)
    differing = [f.name for f in fields(Corpus) if getattr(former, f.name) != getattr(corpus, f.name)]
    differing += ["tokenizer"] if shards.manifest.tokenizer != tokenizer else []
    differing += ["files"] if shards.manifest.source != source else []
    if differing:
        raise ValueError(
            f"{folder} holds tokens of another corpus, it differs in {', '.join(differing)}; "
            f"remove it or give another folder"
        )
    return shards
