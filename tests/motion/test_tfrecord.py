from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from innerspace.motion import tfrecord
from innerspace.motion.tfrecord import Damage, Payload, masked, read_shard
from motion.recorded import crc32c, record, stored_checksum, write_shard

PAYLOADS = [b"", b"one", bytes(range(256)) * 40, b"last"]


def offsets() -> list[int]:
    return np.cumsum([0, *(len(record(payload)) for payload in PAYLOADS[:-1])]).tolist()


def test_checksums_are_those_of_the_table() -> None:
    random = np.random.default_rng(0)
    # the check value of CRC-32C's definition
    assert crc32c(b"123456789") == 0xE3069283
    for length in (0, 1, 7, 8, 9, 1000):
        data = random.integers(256, size=length, dtype=np.uint8).tobytes()
        assert google_crc32c.value(data) == crc32c(data)
        assert masked(google_crc32c.value(data)).to_bytes(4, "little") == stored_checksum(data)


def test_payloads_come_in_order_with_their_places(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a", PAYLOADS)
    assert list(read_shard(path)) == [Payload(*pair) for pair in zip(offsets(), PAYLOADS, strict=True)]
    path.write_bytes(b"")
    assert list(read_shard(path)) == []


def test_a_spoiled_payload_is_left_out_alone(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a", PAYLOADS)
    content = bytearray(path.read_bytes())
    content[offsets()[2] + 500] ^= 1
    path.write_bytes(content)
    found = list(read_shard(path))
    assert found[2] == Damage(offsets()[2], "the checksum of a record is wrong")
    assert [item.content for item in found if isinstance(item, Payload)] == [*PAYLOADS[:2], PAYLOADS[3]]


@pytest.mark.parametrize("place", range(12))
def test_a_spoiled_length_ends_the_shard(tmp_path: Path, place: int) -> None:
    path = write_shard(tmp_path / "a", PAYLOADS)
    content = bytearray(path.read_bytes())
    content[offsets()[1] + place] ^= 1
    path.write_bytes(content)
    reason = "the checksum of a record's length is wrong: the rest of the file is left out"
    assert list(read_shard(path)) == [Payload(0, b""), Damage(offsets()[1], reason)]


@pytest.mark.parametrize("lost", [1, 4, 5, 8, 9, 15, 20])
def test_a_file_that_is_cut_short_says_where(tmp_path: Path, lost: int) -> None:
    path = write_shard(tmp_path / "a", PAYLOADS)
    content = path.read_bytes()[:-lost]
    path.write_bytes(content)
    *whole, last = read_shard(path)
    if lost == 20:
        # the last record is 20 bytes long: nothing tells that it was there
        assert [item.content for item in (*whole, last) if isinstance(item, Payload)] == PAYLOADS[:3]
        return
    assert [item.content for item in whole if isinstance(item, Payload)] == PAYLOADS[:3]
    assert isinstance(last, Damage)
    assert last.offset == offsets()[3]
    end = f"a record should end at byte {len(content) + lost}, but the file does at {len(content)}"
    within = f"the file ends within a record's length, at byte {len(content)}"
    assert last.reason == (end if lost <= 8 else within)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40, 100])
def test_an_absurd_length_with_a_right_checksum_takes_no_memory(tmp_path: Path, length: int) -> None:
    head = length.to_bytes(8, "little")
    path = tmp_path / "a"
    path.write_bytes(record(b"one") + head + stored_checksum(head) + b"x" * 50)
    first, last = read_shard(path)
    assert first == Payload(0, b"one")
    assert isinstance(last, Damage)
    assert last.reason == f"a record should end at byte {19 + 16 + length}, but the file does at {19 + 62}"


def test_a_large_record_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfrecord, "LARGEST", 1000)
    path = write_shard(tmp_path / "a", PAYLOADS)
    found = list(read_shard(path))
    assert found[2] == Damage(offsets()[2], "a record has 10240 bytes; at most 1000 are read")
    assert found[3] == Payload(offsets()[3], b"last")


def test_one_record_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(tmp_path / "a", [b"x" * 1000] * 50)
    taken = list[int]()

    class Counted:
        def __init__(self, file: object) -> None:
            self.file = file

        def __enter__(self) -> "Counted":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()  # type: ignore[attr-defined]

        def read(self, count: int) -> bytes:
            taken.append(count)
            return self.file.read(count)  # type: ignore[attr-defined]

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: Counted(opened(path, mode)))
    shard = read_shard(tmp_path / "a")
    for read in (1, 2, 3):
        next(shard)
        assert sum(taken) == read * 1016
    assert max(taken) == 1000
