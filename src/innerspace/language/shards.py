"""Token sequences on disk, in two splits, and deterministic, resumable batches of them.

Every token lies beside the number of its document; padding has document −1. The order of an epoch is a permutation of
all sequences: at four bytes each it costs 0.2 % of the tokens themselves for sequences of 1,024, and no shuffle by
blocks mixes as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from innerspace.checkpoint import State
from innerspace.harvest.epochs import Epochs, check_even
from innerspace.harvest.shards import ArrayFile, ArrayWriter, Column, fingerprint
from innerspace.language.text import Text
from innerspace.parallel import Share
from innerspace.value import Value

Part = Literal["train", "held_out"]
SHARD_TOKENS = 2**24


@dataclass(frozen=True)
class Split(Value):
    """The sequences of one split: arrays [sequences, context] of tokens and of their documents.

    ``tokens`` counts what is no padding, ``left_over`` the tokens at the end that filled no sequence.
    """

    ids: tuple[ArrayFile, ...]
    of: tuple[ArrayFile, ...]
    documents: int
    tokens: int
    left_over: int


@dataclass(frozen=True)
class TokenManifest(Value):
    """What is in a folder of tokens: sequences of ``context`` tokens, all ids below ``vocabulary``.

    ``tokenizer`` is a hash of the tokenizer, ``source`` one of what can be told of the text's files unread.
    """

    context: int
    vocabulary: int
    packed: bool
    tokenizer: str
    source: str
    train: Split
    held_out: Split


@final
class TokenShards:
    """Sequences on disk; only those asked for are read."""

    def __init__(self, folder: Path, manifest: TokenManifest, *, verify: bool) -> None:
        self.folder, self.manifest = folder, manifest
        self._columns = {
            name: (Column(folder, split.ids, verify=verify), Column(folder, split.of, verify=verify))
            for name, split in (("train", manifest.train), ("held_out", manifest.held_out))
        }

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> "TokenShards":
        """The sequences in a folder; ``verify`` reads every byte once to compare the checksums.

        Raises:
            ValueError: if there are none, or a shard is damaged, naming it.
        """
        return cls(folder, TokenManifest.load(folder / "manifest.json"), verify=verify)

    def sequences(self, split: Part) -> int:
        """How many sequences a split has."""
        return len(self._columns[split][0])

    def rows(self, split: Part, index: Int[Tensor, "batch"]) -> Text:
        """Sequences by number.

        Raises:
            ValueError: for a sequence that does not exist.
        """
        ids, of = (torch.from_numpy(column.take(index.numpy()).astype(np.int64)) for column in self._columns[split])
        return Text(ids, None if self.manifest.packed else of >= 0, of)

    def batches(self, batch: int, seed: int, *, split: Part = "train", rank: int = 0, world: int = 1) -> "Batches":
        """Endless batches in an order that depends on the seed alone; see ``Batches``."""
        return Batches(self, batch, seed, split=split, rank=rank, world=world)

    def each(self, batch: int, *, split: Part = "held_out") -> Iterator[Text]:
        """Every sequence of a split once, in the order of the corpus; the last batch may be smaller.

        Raises:
            ValueError: if the split is empty, saying how many tokens there are.
        """
        self.check(split, 1)
        count = self.sequences(split)
        return (self.rows(split, torch.arange(start, min(start + batch, count))) for start in range(0, count, batch))

    def check(self, split: Part, batch: int) -> None:
        """Refuse a batch that a split cannot fill.

        Raises:
            ValueError: saying how many tokens there are.
        """
        if not 1 <= batch <= (count := self.sequences(split)):
            found = self.manifest.train if split == "train" else self.manifest.held_out
            raise ValueError(
                f"a batch should have 1 … {count} sequences, not {batch}: the {split} split at {self.folder} has "
                f"{found.tokens:,} tokens of {found.documents:,} documents, {self.manifest.context} in a sequence"
            )


@final
class Batches:
    """An endless, resumable stream of batches: every epoch is a permutation of the split, by (seed, epoch).

    All processes together get the same batches as one alone: process ``rank`` of ``world`` takes the rows rank,
    rank + world, … of each. Sequences at the end of an epoch that fill no batch are left out; the next epoch leaves
    out others.

    Raises:
        ValueError: if the split has too few tokens for a batch, or the batch cannot be shared out evenly.
    """

    def __init__(self, shards: TokenShards, batch: int, seed: int, *, split: Part, rank: int, world: int) -> None:
        shards.check(split, batch)
        check_even(batch, rank, world)
        self._shards = shards
        self._split: Part = split
        tokens = fingerprint(shards.manifest.train if split == "train" else shards.manifest.held_out)
        identity = {"tokens": tokens, "split": split}
        self._epochs = Epochs(shards.sequences(split), batch, seed, identity, Share(rank, world), "sequences")

    def next(self) -> Text:
        """The next batch, or this process's share of it."""
        return self._shards.rows(self._split, self._epochs.next())

    def state(self) -> State:
        """Where the stream stands, the same for every process."""
        return self._epochs.state()

    def restore(self, state: State) -> None:
        """Continue where ``state`` was taken, by any number of processes.

        Raises:
            ValueError: if it was taken from another stream.
        """
        self._epochs.restore(state)


@final
class SequenceWriter:
    """Cuts a stream of tokens into sequences of ``context``, each behind a BOS where one is given, in shards."""

    def __init__(self, folder: Path, split: Part, context: int, vocabulary: int, bos: int | None) -> None:
        self._folder, self._split, self._context, self._bos = folder, split, context, bos
        self._dtype = "<u2" if vocabulary <= 2**16 else "<i4"
        self._body = context - (bos is not None)
        self._waiting, self._count = list[Int[np.ndarray, "2 n"]](), 0
        self._ids, self._of = list[ArrayFile](), list[ArrayFile]()
        self._documents, self._padding, self._rows = 0, 0, 0
        self._open()

    @property
    def tokens(self) -> int:
        """How many tokens the complete sequences hold, padding not counted."""
        return (self._rows + self._count // self._body) * self._context - self._padding

    def add(self, document: int, ids: list[int], padding: int) -> None:
        """Append a document, and so much padding behind it."""
        row = np.zeros((2, len(ids) + padding), np.int32)
        row[0, : len(ids)], row[1] = ids, -1
        row[1, : len(ids)] = document
        self._waiting.append(row)
        self._count += row.shape[1]
        self._documents, self._padding = self._documents + 1, self._padding + padding
        if self._count >= SHARD_TOKENS // 16:
            self._cut()

    def close(self) -> Split:
        """Write what fills a sequence, and close the last shard."""
        self._cut()
        if self._writers[0].rows:
            self._close()
        return Split(tuple(self._ids), tuple(self._of), self._documents, self.tokens, self._count)

    def _cut(self) -> None:
        stream = np.concatenate([np.zeros((2, 0), np.int32), *self._waiting], axis=1)
        rows = stream.shape[1] // self._body
        whole = stream[:, : rows * self._body].reshape(2, rows, self._body)
        if self._bos is not None:
            whole = np.concatenate((whole[..., :1], whole), -1)
            whole[0, :, 0] = self._bos
        self._waiting, self._count = [stream[:, rows * self._body :]], stream.shape[1] - rows * self._body
        self._rows += rows
        most = max(1, SHARD_TOKENS // self._context)
        while rows:
            taken = min(rows, most - self._writers[0].rows)
            for writer, part in zip(self._writers, whole, strict=True):
                writer.append(part[:taken])
            whole, rows = whole[:, taken:], rows - taken
            if self._writers[0].rows == most:
                self._close()
                self._open()

    def _open(self) -> None:
        name = f"{self._split}-{len(self._ids):05d}"
        self._writers = [
            ArrayWriter(self._folder, f"{name}.{kind}", dtype, (self._context,))
            for kind, dtype in (("ids", self._dtype), ("documents", "<i4"))
        ]

    def _close(self) -> None:
        for files, writer in zip((self._ids, self._of), self._writers, strict=True):
            files.append(writer.close())
