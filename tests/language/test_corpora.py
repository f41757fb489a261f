"""Documents from every source become sequences as a hand-written oracle says, and are held out by what they say."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from transformers import AutoTokenizer

from innerspace.language import shards as shards_module
from innerspace.language.corpora import Corpus, prepare
from innerspace.language.shards import Part
from innerspace.language.sources import Files, Hub, Source, Texts
from language.words import BOS, EOS, FIRST, LENGTHS, TEXTS, corpus, document, everything, tokenizer


def oracle(what: Corpus, part: Part) -> list[list[tuple[int, int]]]:
    """The sequences of a split as lists of (token, document), one token after the other."""
    rows, row = list[list[tuple[int, int]]](), list[tuple[int, int]]()

    def put(token: int, number: int) -> None:
        nonlocal row
        if not row and what.bos == "sequence":
            row.append((BOS, number))
        row.append((token, number))
        if len(row) == what.context:
            rows.append(row)
            row = []

    for number, text in enumerate(what.source.documents()):
        if not text.strip() or what.split(text) != part:
            continue
        if what.bos == "document":
            put(BOS, number)
        for word in text.split():
            put(int(word[1:]) + FIRST, number)
        if what.eos:
            put(EOS, number)
        if not what.packed and row:
            rows.append(row + [(0, -1)] * (what.context - len(row)))
            row = []
    return rows


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("bos", ["document", "sequence", "none"])
@pytest.mark.parametrize("shard", [2**24, 18])
def test_sequences_are_the_oracles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bos: str, eos: bool, packed: bool, shard: int
) -> None:
    monkeypatch.setattr(shards_module, "SHARD_TOKENS", shard)
    what = corpus(Texts((*TEXTS, "  \n", document(3, 7))), bos=bos, eos=eos, packed=packed)
    shards = prepare(what, tokenizer(), tmp_path / "tokens")
    for part, split in (("train", shards.manifest.train), ("held_out", shards.manifest.held_out)):
        expected = oracle(what, part)
        assert len(expected) > 3
        assert everything(shards, part) == expected
        assert split.tokens == sum(number >= 0 for row in expected for _, number in row)
        assert (len(split.ids) > 1) == (shard == 18)
        valid = next(shards.each(100, split=part)).valid
        assert packed if valid is None else valid.tolist() == [[n >= 0 for _, n in row] for row in expected]


def test_nothing_is_dropped_but_the_last_incomplete_sequence(tmp_path: Path) -> None:
    shards = prepare(corpus(held_out=0.0), tokenizer(), tmp_path / "tokens")
    train = shards.manifest.train
    assert train.tokens + train.left_over == sum(LENGTHS)
    assert train.left_over == sum(LENGTHS) % 6
    assert train.documents == len(LENGTHS)


def test_copies_of_a_document_are_held_out_together(tmp_path: Path) -> None:
    texts = tuple(document(i, 9) for i in range(200))
    first = corpus(Texts(texts + texts[::-1] + texts), context=3, seed=4)
    shards = prepare(first, tokenizer(), tmp_path / "tokens")
    held = {number for row in everything(shards, "held_out") for _, number in row}
    train = {number for row in everything(shards, "train") for _, number in row}
    assert held.isdisjoint(train)
    assert held | train == set(range(600))
    copies = [{i, 399 - i, 400 + i} for i in range(200)]
    assert all(group <= held or group <= train for group in copies)
    # Binomial(200, 0.4) is in 80 ± 28 but for one seed in 20,000
    assert 52 <= len(held) / 3 <= 108
    assert {text for text in texts if first.split(text) == "train"} != {
        text for text in texts if dataclasses.replace(first, seed=5).split(text) == "train"
    }


def test_a_larger_share_holds_out_more_of_the_same(tmp_path: Path) -> None:
    small, large = corpus(held_out=0.1), corpus(held_out=0.6)
    texts = [document(i, 9) for i in range(100)]
    assert {t for t in texts if small.split(t) == "held_out"} < {t for t in texts if large.split(t) == "held_out"}


def test_replacing_comes_before_splitting(tmp_path: Path) -> None:
    what = corpus(Texts(("w1 w2\n\nw3 w4 x w5 x",) * 2), replace=(("\n\n", "\n"), ("x", "w9")), context=7, held_out=0.0)
    shards = prepare(what, tokenizer(), tmp_path / "tokens")
    assert [token - FIRST for token, _ in everything(shards, "train")[0]] == [1, 2, 3, 4, 9, 5, 9]
    assert what.split("a") == dataclasses.replace(what, replace=()).split("a")


def sources(folder: Path) -> dict[str, Source]:
    (folder / "one").mkdir()
    for i, text in enumerate(TEXTS):
        (folder / "one" / f"{i:03d}.txt").write_text(text)
    (folder / "many.txt").write_text("<end>".join(TEXTS))
    (folder / "lines.jsonl").write_text("\n".join(json.dumps({"id": i, "story": t}) for i, t in enumerate(TEXTS)))
    (folder / "list.json").write_text(json.dumps(TEXTS))
    table = pa.table({"id": list(range(len(TEXTS))), "story": list(TEXTS)})
    parquet.write_table(table, folder / "table.parquet", row_group_size=4)
    datasets.Dataset(table).save_to_disk(str(folder / "saved"))
    datasets.DatasetDict({"validation": datasets.Dataset(table)}).save_to_disk(str(folder / "named"))
    (folder / "loadable").mkdir()
    parquet.write_table(table, folder / "loadable" / "train.parquet")
    return {
        "txt": Files((folder / "one",)),
        "separated": Files((folder / "many.txt",), separator="<end>"),
        "jsonl": Files((folder / "lines.jsonl",), column="story"),
        "json": Files((folder / "list.json",)),
        "parquet": Files((folder / "table.parquet",), column="story"),
        "saved": Hub(str(folder / "saved"), column="story"),
        "named": Hub(str(folder / "named"), split="validation", column="story"),
        "streamed": Hub(str(folder / "loadable"), column="story"),
        "loaded": Hub(str(folder / "loadable"), column="story", streaming=False),
    }


def test_every_source_gives_the_same_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, source in sources(tmp_path).items():
        assert tuple(source.documents()) == TEXTS, name
        assert type(source).from_json(source.to_json()) == source
    parts = Files((tmp_path / "list.json", tmp_path / "many.txt"), separator="<end>")
    assert tuple(parts.documents()) == TEXTS + TEXTS


def test_text_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("innerspace.language.sources._BLOCK", 4)
    (tmp_path / "many.txt").write_text("<end>".join(TEXTS), encoding="utf-8")
    assert tuple(Files((tmp_path / "many.txt",), separator="<end>").documents()) == TEXTS


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    def refused(source: Source, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            list(source.documents())

    sources(tmp_path)
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "bad.jsonl").write_text('{"story": "a"}\n{"story":')
    (tmp_path / "numbers.json").write_text('["a", 3]')
    (tmp_path / "object.json").write_text('{"a": 3}')
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "table.parquet").read_bytes()[:-9])
    (tmp_path / "empty").mkdir()
    refused(Files((tmp_path / "latin.txt",)), "latin.txt is not UTF-8")
    refused(Files((tmp_path / "bad.jsonl",), column="story"), "bad.jsonl, line 2 is not valid JSON")
    refused(Files((tmp_path / "lines.jsonl",)), "lines.jsonl: document 0 has no field 'text'")
    refused(Files((tmp_path / "numbers.json",)), "numbers.json: document 1 should be a string, it is a int")
    refused(Files((tmp_path / "object.json",)), "object.json should hold a list of strings, it holds a dict")
    refused(Files((tmp_path / "table.parquet",)), "table.parquet has no column 'text'; it has id, story")
    refused(Files((tmp_path / "torn.parquet",)), "torn.parquet is no complete parquet file")
    refused(Files((tmp_path / "empty",)), "empty is no text to read: files .txt, .jsonl, .json, .parquet or a folder")
    refused(Files((tmp_path / "list.json",), separator="|"), "a separator is for .txt files")
    refused(Hub(str(tmp_path / "saved")), "has no column 'text'; it has id, story")
    refused(Hub(str(tmp_path / "named"), column="story"), "has no split 'train'; it has validation")
    refused(Hub(str(tmp_path / "nowhere"), column="story"), "nowhere' cannot be loaded")
    with pytest.raises(ValueError, match="separator that is not empty"):
        Files((tmp_path / "many.txt",), separator="")


def test_a_budget_ends_the_reading(tmp_path: Path) -> None:
    shards = prepare(corpus(tokens=24, held_out=0.2), tokenizer(), tmp_path / "tokens")
    assert 24 <= shards.manifest.train.tokens < 24 + max(LENGTHS)
    assert shards.manifest.train.documents < len(LENGTHS)
    with pytest.raises(ValueError, match=r"has 102 training tokens in whole .* of 15 documents; 200 were asked for"):
        prepare(corpus(tokens=200, held_out=0.0), tokenizer(), tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    with pytest.raises(ValueError, match="gives ids 0 … 602, the model knows 0 … 601 only"):
        prepare(corpus(), tokenizer(), folder, vocabulary=602)
    prepare(corpus(), tokenizer(), folder, vocabulary=603)
    with pytest.raises(ValueError, match="no BOS token for bos='sequence'; bos='none' is possible"):
        prepare(corpus(bos="sequence"), tokenizer(specials=False), tmp_path / "other")
    with pytest.raises(ValueError, match="no EOS token"):
        prepare(corpus(eos=True), tokenizer(specials=False), tmp_path / "other")
    shards = prepare(corpus(held_out=0.0), tokenizer(), tmp_path / "all")
    with pytest.raises(ValueError, match=r"1 … 17 sequences, not 18: the train split at .* has 102 tokens of 15 doc"):
        shards.batches(18, 0)
    with pytest.raises(ValueError, match=r"1 … 0 sequences, not 1: the held_out split at .* has 0 tokens"):
        shards.each(2)
    with pytest.raises(ValueError, match="a batch of 4 cannot be shared out to process 0 of 3"):
        shards.batches(4, 0, world=3)
    with pytest.raises(ValueError, match="rows 0 … 16, not 3 … 17"):
        shards.rows("train", torch.tensor([3, 17]))
    for changes in ({"context": 1}, {"held_out": 1.0}, {"tokens": 0}, {"replace": (("", "a"),)}):
        with pytest.raises(ValueError, match="should"):
            corpus(**changes)


def test_large_vocabularies_are_kept_whole(tmp_path: Path) -> None:
    shards = prepare(corpus(held_out=0.0), tokenizer(words=5, w400=70_000), tmp_path / "tokens")
    assert shards.manifest.train.ids[0].dtype == "<i4"
    texts = Texts(("w400 w1 w2",) * 4)
    shards = prepare(corpus(texts, held_out=0.0), tokenizer(words=5, w400=70_000), tmp_path / "large")
    assert [token for token, _ in everything(shards, "train")[0]] == [70_000, 4, 5] * 2


def sums(texts: Sequence[str], tokens: Any) -> int:
    return sum(map(len, tokens(list(texts), add_special_tokens=False)["input_ids"]))


def test_real_stories(assets: Path, tmp_path: Path) -> None:
    real = AutoTokenizer.from_pretrained(assets / "lm" / "stories260K")
    source = Files((assets / "lm" / "tinystories_1000.json",))
    what = Corpus(source, 256, "document", eos=False, replace=(("\n\n", "\n"),), held_out=0.1)
    shards = prepare(what, real, tmp_path / "tokens", vocabulary=512)
    train, held_out = shards.manifest.train, shards.manifest.held_out
    assert train.documents + held_out.documents == 1000
    # 473,598 tokens of text and a BOS for each of 1,000 stories
    assert train.tokens + train.left_over + held_out.tokens + held_out.left_over == 474_598
    assert train.ids[0].dtype == "<u2"
    text = next(shards.each(2))
    assert text.document is not None
    number = int(text.document[0, 0])
    story = list(what.documents())[number]
    assert what.split(story) == "held_out"
    assert text.ids[0, 0] == real.bos_token_id
    own = text.ids[text.document == number]
    assert story.startswith(real.decode(own[1:]))
    assert (text.ids == real.bos_token_id).sum() == len(text.document.unique())
