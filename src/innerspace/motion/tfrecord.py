"""Files of TFRecord shards, record by record: lengths and payloads, each with its checksum.

A record is the length of its payload (8 bytes, little endian), the masked CRC32C of these bytes (4), the payload, and
the masked CRC32C of the payload (4). The mask is a rotation by 15 bits and the addition of a constant.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LARGEST = 1 << 26
"""A payload of more bytes than this is not read; a scenario has about one million."""

_LENGTH, _CHECKSUM = struct.Struct("<QI"), struct.Struct("<I")
_DELTA = 0xA282EAD8


@dataclass(frozen=True)
class Payload:
    """What a record holds, and the byte at which the record begins."""

    offset: int
    content: bytes


@dataclass(frozen=True)
class Damage:
    """Why the record that begins at a byte could not be read."""

    offset: int
    reason: str


def read_shard(path: Path) -> Iterator[Payload | Damage]:
    """The records of a file, one after the other; never more than one of them is in memory.

    After a payload with a wrong checksum reading goes on. A length that is wrong ends the shard, for nothing tells
    where the next record begins.
    """
    from google_crc32c import value

    try:
        with path.open("rb") as file:
            size, offset = os.fstat(file.fileno()).st_size, 0
            while offset < size:
                head = file.read(_LENGTH.size)
                if len(head) < _LENGTH.size:
                    yield Damage(offset, f"the file ends within a record's length, at byte {size}")
                    return
                length, check = _LENGTH.unpack(head)
                if masked(value(head[:8])) != check:
                    yield Damage(offset, "the checksum of a record's length is wrong: the rest of the file is left out")
                    return
                following = offset + _LENGTH.size + length + _CHECKSUM.size
                if following > size:
                    yield Damage(offset, f"a record should end at byte {following}, but the file does at {size}")
                    return
                if length > LARGEST:
                    yield Damage(offset, f"a record has {length} bytes; at most {LARGEST} are read")
                else:
                    content = file.read(length)
                    (check,) = _CHECKSUM.unpack(file.read(_CHECKSUM.size))
                    if masked(value(content)) == check:
                        yield Payload(offset, content)
                    else:
                        yield Damage(offset, "the checksum of a record is wrong")
                offset = following
                file.seek(offset)
    except (OSError, struct.error) as error:
        # the file may shrink or vanish while it is read
        yield Damage(0, f"{type(error).__name__}: {error}")


def masked(checksum: int) -> int:
    """The form in which a CRC32C is stored: rotated to the right by 15 bits, plus a constant, in 32 bits."""
    return (((checksum >> 15) | (checksum << 17)) + _DELTA) & 0xFFFFFFFF
