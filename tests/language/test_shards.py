"""Shards on disk are whole or absent, and give batches in an order that can be taken up."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from innerspace.language import shards as shards_module
from innerspace.language.corpora import Corpus, prepare
from innerspace.language.shards import TokenShards
from innerspace.language.sources import Files, Source, Texts
from innerspace.language.text import Text
from language.words import TEXTS, corpus, document, everything, pairs, tokenizer


def test_a_second_call_reuses_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.json").write_text(json.dumps(TEXTS))
    what, seen = corpus(Files((tmp_path / "list.json",))), list[int]()
    first = prepare(what, tokenizer(), tmp_path / "tokens", progress=seen.append)
    assert seen[-1] >= first.manifest.train.tokens
    assert Corpus.load(tmp_path / "tokens" / "corpus.json") == what
    used = tokenizer()
    used(["w1", "w2 w3"], padding=True, truncation=True, max_length=3)
    with monkeypatch.context() as patch:
        patch.setattr(Files, "documents", lambda self: pytest.fail("read again"))
        assert everything(prepare(what, used, tmp_path / "tokens"), "train") == everything(first, "train")
        with pytest.raises(ValueError, match="another corpus, it differs in context, eos;"):
            prepare(dataclasses.replace(what, context=5, eos=True), tokenizer(), tmp_path / "tokens")
        with pytest.raises(ValueError, match="it differs in tokenizer;"):
            prepare(what, tokenizer(601), tmp_path / "tokens")
        (tmp_path / "list.json").write_text(json.dumps([*TEXTS, "w1"]))
        with pytest.raises(ValueError, match="it differs in files;"):
            prepare(what, tokenizer(), tmp_path / "tokens")
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "file").touch()
        with pytest.raises(ValueError, match="other holds other files"):
            prepare(what, tokenizer(), tmp_path / "other")


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    prepare(corpus(), tokenizer(), tmp_path / "tokens")
    victim = tmp_path / "tokens" / "held_out-00000.ids"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:7] + bytes([whole[7] ^ 1]) + whole[8:])
    with pytest.raises(ValueError, match=r"held_out-00000.ids is damaged: its checksum"):
        TokenShards.open(tmp_path / "tokens")
    with pytest.raises(ValueError, match="checksum"):
        prepare(corpus(), tokenizer(), tmp_path / "tokens")
    TokenShards.open(tmp_path / "tokens", verify=False)
    victim.write_bytes(whole[:-2])
    with pytest.raises(ValueError, match=f"held_out-00000.ids is damaged: it has {len(whole) - 2} bytes and should"):
        TokenShards.open(tmp_path / "tokens", verify=False)
    victim.unlink()
    with pytest.raises(ValueError, match=r"held_out-00000.ids is missing"):
        TokenShards.open(tmp_path / "tokens")


@dataclasses.dataclass(frozen=True)
class Interrupted(Source):
    def documents(self) -> Any:
        yield from TEXTS
        raise KeyboardInterrupt

    def stamp(self) -> str:
        return ""


def test_an_interrupted_call_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("innerspace.language.corpora._BLOCK", 20)
    monkeypatch.setattr(shards_module, "SHARD_TOKENS", 6)
    with pytest.raises(KeyboardInterrupt):
        prepare(corpus(Interrupted()), tokenizer(), tmp_path / "tokens")
    assert not list(tmp_path.iterdir())
    prepare(corpus(), tokenizer(), tmp_path / "tokens")


def test_two_that_prepare_at_once_get_the_same(tmp_path: Path) -> None:
    inner = list[TokenShards]()

    def other(tokens: int) -> None:
        if not inner:
            inner.append(prepare(corpus(), tokenizer(), tmp_path / "tokens"))

    number = os.getpid()
    with pytest.MonkeyPatch.context() as patch:
        numbers = iter([number, number + 1])
        patch.setattr(os, "getpid", lambda: next(numbers))
        outer = prepare(corpus(), tokenizer(), tmp_path / "tokens", progress=other)
    assert everything(outer, "train") == everything(inner[0], "train")
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


def drawn(shards: TokenShards, count: int, **options: Any) -> list[Text]:
    stream = shards.batches(4, 3, **options)
    return [stream.next() for _ in range(count)]


@pytest.fixture
def stories(tmp_path: Path) -> TokenShards:
    texts = tuple(document(i, 5 + i % 9) for i in range(60))
    return prepare(corpus(Texts(texts), held_out=0.2), tokenizer(), tmp_path / "stories")


def test_an_epoch_is_a_permutation_and_the_next_another(stories: TokenShards) -> None:
    count = stories.sequences("train") // 4
    rows = [tuple(row) for text in drawn(stories, 2 * count) for row in pairs(text)]
    first, second = rows[: 4 * count], rows[4 * count :]
    every = [tuple(row) for row in everything(stories, "train")]
    assert len(set(first)) == len(set(second)) == 4 * count
    assert set(first) <= set(every)
    assert len(every) - 4 * count < 4
    assert first != second
    assert first != every[: 4 * count]
    order = np.random.default_rng([3, 0]).permutation(len(every))
    assert first == [every[i] for i in order[: 4 * count]]


def test_processes_share_out_the_batches_of_one(stories: TokenShards) -> None:
    whole = drawn(stories, 40)
    for world in (2, 4):
        shares = [drawn(stories, 40, rank=rank, world=world) for rank in range(world)]
        for text, *parts in zip(whole, *shares, strict=True):
            assert torch.equal(torch.stack([part.ids for part in parts], 1).flatten(0, 1), text.ids)


def test_a_stream_goes_on_where_it_was_left(stories: TokenShards) -> None:
    expected = [text.ids for text in drawn(stories, 60)]
    for start in range(0, 50, 7):
        former = stories.batches(4, 3)
        for _ in range(start):
            former.next()
        state = json.loads(json.dumps(former.state()))
        later = TokenShards.open(stories.folder).batches(4, 3, rank=1, world=2)
        later.restore(state)
        assert all(torch.equal(later.next().ids, ids[1::2]) for ids in expected[start : start + 8])
    with pytest.raises(ValueError, match="the stream has seed 4, the one to continue had seed 3"):
        stories.batches(4, 4).restore(state)
    with pytest.raises(ValueError, match="the stream has tokens"):
        prepare(corpus(held_out=0.0), tokenizer(), stories.folder.with_name("others")).batches(4, 3).restore(state)


def test_only_the_sequences_asked_for_are_read(stories: TokenShards, monkeypatch: pytest.MonkeyPatch) -> None:
    read = list[int]()

    class Counting(np.memmap):
        def __getitem__(self, index: Any) -> Any:
            found = super().__getitem__(index)
            read.append(len(found))
            return found

    monkeypatch.setattr(np, "memmap", Counting)
    stream = TokenShards.open(stories.folder).batches(4, 3)
    for _ in range(5):
        stream.next()
    assert read == [4] * 10
