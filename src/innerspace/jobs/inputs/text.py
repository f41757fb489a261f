"""A language model and the text that it reads, as settings of a job."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, final

import torch

from innerspace.jobs.job import Run
from innerspace.language.causal_lm import load
from innerspace.language.corpora import Corpus, prepare
from innerspace.language.shards import TokenShards
from innerspace.language.sources import Files
from innerspace.language.text import Text
from innerspace.network.model import Model
from innerspace.network.site import Where
from innerspace.parallel import Share, wait_for_first
from innerspace.value import Value


@dataclass(frozen=True)
class TextData(Value):
    """A network from the hub or a folder, its text, and which positions count.

    A batch has ``batch`` sequences. The first ``skip`` tokens of a sequence pass dictionaries unchanged and are judged
    by nothing (position 0 of most networks is an outlier); with ``ignore_special`` so are BOS, EOS and their like.
    """

    model: str = "gpt2"
    revision: str | None = None
    corpus: Corpus = field(default_factory=lambda: Corpus(Files((Path("corpus.jsonl"),)), 128, "sequence", eos=False))
    batch: int = 16
    skip: int = 1
    ignore_special: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.batch < 1 or not 0 <= self.skip < self.corpus.context - 1:
            raise ValueError(
                f"a batch needs a sequence, and a sequence two tokens that count: batch {self.batch}, skip {self.skip} "
                f"of {self.corpus.context}"
            )

    @property
    def where(self) -> Where:
        """The positions that count."""
        return Where("valid", skip=self.skip)

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch, counted or not."""
        return self.batch * self.corpus.context

    def check(self) -> None:
        """Refuse a device that is not there; network and text are looked for when they are opened, first of all.

        Raises:
            ValueError: naming the device.
        """
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device {self.device!r} was asked for, and no CUDA device is there; 'cpu' is possible")

    def open(self, run: Run) -> "Reading":
        """Load the network, and tokenize the text where that was not done yet.

        Raises:
            ValueError: for a network or text that is not there or does not fit, or too few tokens for a batch.
        """
        self.corpus.source.stamp()
        loaded = load(self.model, revision=self.revision, ignore_special=self.ignore_special)
        loaded.model.module.to(self.device)
        folder = run.folder / "tokens"
        with wait_for_first():
            shards = prepare(self.corpus, loaded.tokenizer, folder, vocabulary=_vocabulary(loaded.model))
        for split in ("train", "held_out"):
            shards.check(split, self.batch)
        return Reading(self, loaded.model, loaded.tokenizer, shards)


@final
@dataclass(frozen=True, eq=False)
class Reading:
    """The network, its tokenizer, and the tokens."""

    data: TextData
    model: Model
    tokenizer: Any
    shards: TokenShards

    @property
    def where(self) -> Where:
        """The positions that count."""
        return self.data.where

    @property
    def device(self) -> str:
        """Where the network is, and its batches."""
        return self.data.device

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch, counted or not."""
        return self.data.batch_tokens

    @property
    def network(self) -> str:
        """A language model."""
        return "a language model"

    @property
    def description(self) -> str:
        """The network's name, and the number of tokens."""
        tokens = self.shards.manifest
        return f"{self.data.model}; {tokens.train.tokens:,} tokens to train on, {tokens.held_out.tokens:,} held out"

    @property
    def documents(self) -> str:
        """Documents."""
        return "documents"

    @property
    def caption(self) -> None:
        """Text speaks for itself."""
        return

    def stream(self, seed: int, *, held_out: bool = False) -> "Stream":
        """Endless batches in an order of their own for each seed; of those to train on this process's share."""
        if held_out:
            return Stream(self.shards.batches(self.data.batch, seed, split="held_out"), self.data.device)
        share = Share.mine()
        batches = self.shards.batches(self.data.batch, seed, rank=share.rank, world=share.world)
        return Stream(batches, self.data.device)

    def held_out(self, count: int | None = None) -> Iterator[Text]:
        """The held-out sequences in order, up to a number of them."""
        whole = self.shards.each(self.data.batch, split="held_out")
        return self._moved(whole if count is None else islice(whole, -(-count // self.data.batch)))

    def sample(self, batches: int) -> Iterator[Text]:
        """Some training batches, for what is known of hidden states before training."""
        stream = self.shards.batches(self.data.batch, seed=0)
        return self._moved(stream.next() for _ in range(batches))

    def _moved(self, batches: Iterable[Text]) -> Iterator[Text]:
        return (batch.to(self.data.device) for batch in batches)


@final
class Stream:
    """Batches on a device."""

    def __init__(self, batches: Any, device: str) -> None:
        self._batches, self._device = batches, device

    def next(self) -> Text:
        """The next batch."""
        return self._batches.next().to(self._device)

    def state(self) -> Any:
        """Where the stream stands."""
        return self._batches.state()

    def restore(self, state: Any) -> None:
        """Continue where ``state`` was taken."""
        self._batches.restore(state)


def _vocabulary(model: Model) -> int:
    return model.module.get_input_embeddings().num_embeddings  # pyright: ignore[reportCallIssue]
