"""What is stored is what the network gave, after any interruption; what is drawn is every row once, well mixed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from families import CASES, Blocks, BlocksFamily
from innerspace.decompose.dictionary import moments
from innerspace.harvest.shuffled import Shuffled
from innerspace.harvest.store import Store, write_store
from innerspace.harvest.stream import TokenRule, gather
from innerspace.network.model import Model
from innerspace.network.site import Where

VALID = Where("valid")


def model(seed: int = 2) -> Model:
    torch.manual_seed(seed)
    return Model(Blocks(), BlocksFamily())


def batches(count: int = 7, *, seed: int = 5) -> list[dict[str, Tensor]]:
    """Padded batches of unequal size, each row of its own document number."""
    generator = torch.Generator().manual_seed(seed)
    found = list[dict[str, Tensor]]()
    for i in range(count):
        size = (3, 5 + i % 3)
        valid = torch.rand(size, generator=generator) > 0.3
        document = 100 + 10 * i + torch.arange(size[1]).expand(size) // 2
        found.append({"x": torch.randn(*size, 3, generator=generator), "valid": valid, "document": document})
    return found


def write(folder: Path, stream: Any = None, sites: Any = ("first", "second"), **options: Any) -> Store:
    given = batches() if stream is None else stream
    settings: dict[str, Any] = {"where": VALID, "shard_rows": 16, "documents": lambda batch: batch["document"]}
    return write_store(model(), given, sites, folder=folder, **(settings | options))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("shard_rows", [4, 16, 10_000])
def test_several_sites_in_one_pass_are_the_rows_of_gather(tmp_path: Path, shard_rows: int) -> None:
    seen = list[int]()
    store = write(tmp_path / "store", shard_rows=shard_rows, progress=seen.append)
    expected = gather(model(), batches(), ["first", "second"], TokenRule(VALID))
    rows = torch.arange(len(store))
    for site in ("first", "second"):
        assert torch.equal(store.rows(site, rows), expected.states[site])
        assert torch.equal(torch.cat(list(store.chunks(site, 9))), expected.states[site])
        mixed = torch.randperm(len(store))
        assert torch.equal(store.rows(site, mixed), expected.states[site][mixed])
        for found, exact in zip(store.moments(site), moments(expected.states[site].double()), strict=True):
            torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)
    places = store.places(rows)
    assert torch.equal(places.sample, expected.sample["first"])
    assert torch.equal(places.position, torch.cat([b["valid"].nonzero()[:, 1] for b in batches()]))
    assert torch.equal(places.document, torch.cat([b["document"][b["valid"]] for b in batches()]))
    assert seen == np.cumsum([int(b["valid"].sum()) for b in batches()]).tolist()


def test_without_documents_every_sample_is_one(tmp_path: Path) -> None:
    places = write(tmp_path / "store", documents=None).places(torch.arange(20))
    assert torch.equal(places.document, places.sample)
    by_sample = write(tmp_path / "other", documents=lambda b: b["document"][:, 0])
    assert by_sample.places(torch.tensor([0, len(by_sample) - 1])).document.tolist() == [100, 160]
    with pytest.raises(ValueError, match=r"the documents of a batch have shape \[4\], its positions \[3, 5\]"):
        write(tmp_path / "third", documents=lambda b: torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_kept_bit_for_bit(tmp_path: Path, dtype: Any) -> None:
    store = write(tmp_path / "store", dtype=dtype)
    expected = gather(model(), batches(), ["second"], TokenRule(VALID)).states["second"].to(getattr(torch, dtype))
    found = store.rows("second", torch.arange(len(store)))
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    assert store.shuffled("second", 4, 0).next().dtype == expected.dtype
    # the moments are those of what can be read, not of what was rounded away
    torch.testing.assert_close(store.moments("second"), moments(expected.double()), rtol=1e-12, atol=1e-12)
    assert sum(len(data) for name, data in contents(tmp_path / "store").items() if "states" in name) == 2 * 2 * 8 * len(
        store
    )


def test_a_forecaster_fits_as_well(tmp_path: Path) -> None:
    case = CASES["redmotion"]()
    store = write_store(case.model, [case.batch] * 2, case.sites, VALID, tmp_path / "store", shard_rows=7)
    expected = gather(case.model, [case.batch] * 2, case.sites, TokenRule(VALID))
    for site in case.sites:
        assert torch.equal(store.rows(site, torch.arange(len(store))), expected.states[site])
    with pytest.raises(ValueError, match=r"'agent.0' and 'context.0' have other positions; give each a store"):
        write_store(case.model, [case.batch], ["agent.0", "context.0"], VALID, tmp_path / "other")


def interrupted(after: int) -> Iterator[dict[str, Tensor]]:
    yield from batches()[:after]
    raise KeyboardInterrupt


@pytest.mark.parametrize("shard_rows", [5, 16, 23])
def test_an_interrupted_store_goes_on_bit_for_bit(tmp_path: Path, shard_rows: int) -> None:
    write(tmp_path / "whole", shard_rows=shard_rows)
    folder = tmp_path / "store"
    for after in (1, 3, 3, 6):
        with pytest.raises(KeyboardInterrupt):
            write(folder, interrupted(after), shard_rows=shard_rows)
        with pytest.raises(ValueError, match="was interrupted; write_store with the same settings completes it"):
            Store.open(folder)
    complete = json.loads((folder / "manifest.json").read_text())["shards"]
    kept = {name: data for name, data in contents(folder).items() if any(name[:5] == f"{i:05d}" for i in range(9))}
    assert len(complete) == sum(int(b["valid"].sum()) for b in batches(6)) // shard_rows
    later = write(folder, shard_rows=shard_rows)
    assert contents(folder) == contents(tmp_path / "whole")
    assert all(contents(folder)[name] == data for name, data in kept.items() if "partial" not in name)
    assert len(later) == sum(int(b["valid"].sum()) for b in batches())


def test_complete_shards_are_not_computed_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "store", interrupted(5))
    start = json.loads((tmp_path / "store" / "manifest.json").read_text())["cursor"]["batch"]
    network, runs = model(), list[int]()
    network.module.register_forward_pre_hook(lambda *_: runs.append(1))
    documents = lambda batch: batch["document"]  # noqa: E731
    store = write_store(
        network, batches(), ["first", "second"], VALID, tmp_path / "store", shard_rows=16, documents=documents
    )
    assert start > 1
    assert len(runs) == 7 - start
    again = write_store(network, interrupted(0), ["first", "second"], VALID, tmp_path / "store", shard_rows=16)
    assert len(runs) == 7 - start
    assert len(again) == len(store)


def test_a_store_of_something_else_is_refused(tmp_path: Path) -> None:
    store = write(tmp_path / "store")
    store.check(model())
    with pytest.raises(ValueError, match="holds states of the network"):
        store.check(model(seed=3))
    with pytest.raises(ValueError, match="holds a store with dtype float32, not bfloat16"):
        write(tmp_path / "store", dtype="bfloat16")
    with pytest.raises(ValueError, match="holds a store with sites"):
        write(tmp_path / "store", sites=["first"])
    with pytest.raises(ValueError, match="holds a store with model"):
        write_store(model(3), batches(), ["first", "second"], VALID, tmp_path / "store", shard_rows=16)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ValueError, match="other holds other files"):
        write(tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "torn", interrupted(5))
    with pytest.raises(ValueError, match="the stream has 2 batches, the interrupted store had come to batch"):
        write(tmp_path / "torn", batches(2))
    empty = [{key: item[:0] for key, item in batch.items()} for batch in batches()]
    with pytest.raises(ValueError, match="rows or more before the interruption, it has 0"):
        write(tmp_path / "torn", empty)


def test_bad_requests_name_what_is_possible(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no site was asked for; this model has first"):
        write(tmp_path / "a", sites=[])
    with pytest.raises(ValueError, match=r"no site is called 'frist'.*did you mean 'first'"):
        write(tmp_path / "a", sites=["frist"])
    with pytest.raises(ValueError, match="a shard should have at least one row"):
        write(tmp_path / "a", shard_rows=0)
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="the stream has 0 batches"):
        write(tmp_path / "a", [])
    padding = [{**batch, "valid": torch.zeros_like(batch["valid"])} for batch in batches()]
    with pytest.raises(ValueError, match="the stream has no valid position to keep"):
        write(tmp_path / "a", padding)
    store = write(tmp_path / "store")
    with pytest.raises(ValueError, match="has no site 'third'; it has first, second"):
        store.rows("third", torch.arange(2))
    with pytest.raises(ValueError, match="there are rows 0 …"):
        store.rows("first", torch.tensor([-1]))
    for wrong in ({"batch": 0}, {"batch": len(store) + 1}):
        with pytest.raises(ValueError, match=f"a batch should have 1 … {len(store)} rows"):
            store.shuffled("first", seed=0, **wrong)
    with pytest.raises(ValueError, match="cannot be shared out to process 0 of 2"):
        store.shuffled("first", 5, 0, world=2)
    with pytest.raises(ValueError, match="1 ≤ block ≤ buffer"):
        store.shuffled("first", 5, 0, block=10, buffer=9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_located(tmp_path: Path, bad: float) -> None:
    stream = batches()
    stream[4]["valid"][:] = True
    stream[4]["x"][1, 3] = bad
    stream[2]["valid"][0, 0] = False
    stream[2]["x"][0, 0] = bad  # padding may be anything
    with pytest.raises(ValueError, match="at 'first' in batch 4, sample 1 of it, position 3, is not finite; 1 of the"):
        write(tmp_path / "store", stream)
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert not manifest["complete"]
    assert len(manifest["shards"]) == sum(int(b["valid"].sum()) for b in stream[:4]) // 16
    large = [{**batch, "x": 1e6 * batch["x"]} for batch in batches()]
    with pytest.raises(ValueError, match=r"position \d, is beyond what float16 holds"):
        write(tmp_path / "half", large, dtype="float16")
    write(tmp_path / "brain", large, dtype="bfloat16")


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path / "store")
    victim = tmp_path / "store" / "00001.1.states"
    whole = victim.read_bytes()
    victim.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(ValueError, match=r"00001.1.states is damaged: its checksum"):
        Store.open(tmp_path / "store")
    Store.open(tmp_path / "store", verify=False)
    victim.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"00001.1.states is damaged: it has 511 bytes and should have 512"):
        Store.open(tmp_path / "store", verify=False)
    with pytest.raises(ValueError, match="no file at"):
        Store.open(tmp_path)


class Numbered:
    """Rows that say their own number, and what was asked of them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked = list[Tensor]()

    def __call__(self, index: Tensor) -> Tensor:
        self.asked.append(index)
        return index.double()[:, None].repeat(1, 2)

    def shuffled(self, batch: int, seed: int = 3, **options: Any) -> Shuffled:
        settings: dict[str, Any] = {"rank": 0, "world": 1, "block": 4, "buffer": 64}
        return Shuffled(self, self.count, "numbers", batch, seed, **(settings | options))


def numbers(stream: Shuffled, count: int) -> list[list[int]]:
    return [stream.next()[:, 0].long().tolist() for _ in range(count)]


@pytest.mark.parametrize("count", [1, 3, 50, 64, 65, 999, 1024])
@pytest.mark.parametrize(("block", "buffer"), [(1, 5), (4, 64), (7, 30), (64, 64)])
def test_every_row_comes_once_per_epoch(count: int, block: int, buffer: int) -> None:
    batch = min(count, 12)
    stream = Numbered(count).shuffled(batch, block=block, buffer=buffer)
    drawn = torch.tensor(numbers(stream, -(-3 * count // batch))).flatten()
    epochs = drawn[: 3 * count].view(3, count)
    assert torch.equal(epochs.sort().values, torch.arange(count).expand(3, -1))
    if count > 40:
        assert (epochs[0] != epochs[1]).any()
        assert (epochs[0] != torch.arange(count)).any()


@pytest.mark.parametrize("world", [2, 3, 6])
def test_processes_share_out_the_batches_of_one(world: int) -> None:
    rows = Numbered(999)
    whole = numbers(rows.shuffled(12), 250)
    shares = [numbers(rows.shuffled(12, rank=rank, world=world), 250) for rank in range(world)]
    assert [[share[i][j] for j in range(12 // world) for share in shares] for i in range(250)] == whole


def test_a_stream_goes_on_where_it_was_left() -> None:
    rows = Numbered(999)
    expected = numbers(rows.shuffled(12), 260)
    for start in (0, 1, 5, 6, 83, 84, 200):
        former = rows.shuffled(12)
        numbers(former, start)
        state = json.loads(json.dumps(former.state()))
        later = rows.shuffled(12, rank=1, world=3)
        numbers(later, 9)
        later.restore(state)
        assert numbers(later, 50) == [batch[1::3] for batch in expected[start : start + 50]]
    with pytest.raises(ValueError, match="the stream has block 8, the one to continue had block 4"):
        rows.shuffled(12, block=8).restore(state)


def test_a_draw_reads_what_it_gives_and_whole_blocks_of_it() -> None:
    rows = Numbered(10_000)
    stream = rows.shuffled(16, block=8, buffer=256)
    rows.asked.clear()
    for _ in range(600):
        stream.next()
        assert sum(map(len, rows.asked)) <= 16 + 8
        rows.asked.clear()
    held = sum(x.nbytes for x in vars(stream).values() if isinstance(x, Tensor))
    assert held == 256 * 2 * 8
    order = list[Tensor]()
    for _ in range(100):
        stream.next()
        order += rows.asked
        rows.asked.clear()
    steps = torch.cat(order).diff()
    # rows follow each other within a block, and blocks ascend within a group
    assert (steps == 1).double().mean() > 7 / 8 - 0.01
    assert (steps < 0).sum() <= -(-1600 // 256)


def test_neighbors_are_of_other_documents(tmp_path: Path) -> None:
    """200 documents of 100 rows: neighbors in a batch share one as rarely as at random, up to what blocks add."""
    count, document, block, buffer = 20_000, 100, 8, 4096
    stream = Numbered(count).shuffled(500, block=block, buffer=buffer)
    of = torch.tensor(numbers(stream, 80)) // document
    same = (of[:, 1:] == of[:, :-1]).double().mean()
    ideal, written = (document - 1) / (count - 1), (document - 1) / document
    assert written > 0.9
    assert abs(same - ideal) < 2 * block / buffer
    distinct = torch.tensor([len(row.unique()) for row in of]).double().mean()
    # 200 · (1 − 0.995⁵⁰⁰) documents at random
    assert distinct > 0.9 * 200 * (1 - 0.995**500)


def test_shuffled_rows_are_those_of_the_store(tmp_path: Path) -> None:
    store = write(tmp_path / "store")
    stream = store.shuffled("second", 5, 1, block=3, buffer=12)
    drawn = torch.cat([stream.next() for _ in range(-(-len(store) // 5))])[: len(store)]
    whole = store.rows("second", torch.arange(len(store)))
    assert torch.equal(drawn[drawn[:, 0].argsort()], whole[whole[:, 0].argsort()])
    state = stream.state()
    with pytest.raises(ValueError, match="the stream has source first of"):
        store.shuffled("first", 5, 1, block=3, buffer=12).restore(state)
    expected = stream.next()
    reopened = Store.open(tmp_path / "store").shuffled("second", 5, 1, block=3, buffer=12)
    reopened.restore(state)
    assert torch.equal(reopened.next(), expected)
