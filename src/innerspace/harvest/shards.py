"""Arrays on disk in shards: raw bytes with a checksum, complete or absent, mapped into memory."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Int

from innerspace.value import Value


@dataclass(frozen=True)
class ArrayFile(Value):
    """A complete array in a file: its raw bytes, little-endian, and their BLAKE2 digest."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: str

    def open(self, folder: Path, *, verify: bool) -> np.ndarray:
        """The array, mapped into memory, not loaded.

        Raises:
            ValueError: if the file is missing, has another size or, with ``verify``, other bytes, naming it.
        """
        path, expected = folder / self.name, int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize
        if not path.is_file():
            raise ValueError(f"the shard {path} is missing")
        if (found := path.stat().st_size) != expected:
            raise ValueError(f"the shard {path} is damaged: it has {found} bytes and should have {expected}")
        if verify:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "blake2b").hexdigest() != self.digest:
                    raise ValueError(f"the shard {path} is damaged: its checksum is not the one in the manifest")
        return np.memmap(path, self.dtype, mode="r", shape=self.shape)


@final
class ArrayWriter:
    """Appends rows to an array, whose file gets its name when it is closed; no row is kept in memory."""

    def __init__(self, folder: Path, name: str, dtype: str, row: tuple[int, ...]) -> None:
        self._path, self._dtype, self._row = folder / name, dtype, row
        self._partial = folder / f"{name}.partial"
        self._partial.unlink(missing_ok=True)
        self._digest, self.rows = hashlib.blake2b(), 0

    def append(self, rows: np.ndarray) -> None:
        """Write further rows."""
        assert rows.shape[1:] == self._row, (rows.shape, self._row)
        data = rows.astype(self._dtype, copy=False).tobytes()
        with self._partial.open("ab") as file:
            file.write(data)
        self._digest.update(data)
        self.rows += len(rows)

    def close(self) -> ArrayFile:
        """Give the file its name."""
        self._partial.replace(self._path)
        return ArrayFile(self._path.name, self._dtype, (self.rows, *self._row), self._digest.hexdigest())


@final
class Column:
    """Arrays on disk that follow each other, read by the number of the row in all of them."""

    def __init__(self, folder: Path, files: Sequence[ArrayFile], *, verify: bool) -> None:
        self._parts = [file.open(folder, verify=verify) for file in files]
        self._starts = np.cumsum([0, *map(len, self._parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, index: Int[np.ndarray, "rows"]) -> np.ndarray:
        """Copies of these rows; nothing else is read.

        Raises:
            ValueError: for a row that does not exist.
        """
        if len(index) and not 0 <= index.min() <= index.max() < len(self):
            raise ValueError(f"there are rows 0 … {len(self) - 1}, not {index.min()} … {index.max()}")
        owner = np.searchsorted(self._starts, index, side="right") - 1
        rows = np.empty((len(index), *self._parts[0].shape[1:]), self._parts[0].dtype)
        for part in np.unique(owner):
            chosen = owner == part
            rows[chosen] = self._parts[part][index[chosen] - self._starts[part]]
        return rows


def save_manifest(manifest: Value, folder: Path) -> None:
    """Write ``manifest.json``, or replace it, in one step."""
    partial = folder / "manifest.json.partial"
    manifest.save(partial)
    partial.replace(folder / "manifest.json")


def fingerprint(manifest: Value) -> str:
    """A hash of what a manifest says, and so of the bytes that it names."""
    return hashlib.blake2b(json.dumps(manifest.to_json()).encode(), digest_size=8).hexdigest()
