"""Where documents come from: texts in hand, local files, data sets of ``datasets``; read as a stream."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

from innerspace.value import Value

_KINDS = (".txt", ".jsonl", ".json", ".parquet")
_BLOCK = 2**20  # characters


class Source(Value, ABC):
    """Where documents come from."""

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """All documents in order, never more than a few in memory.

        Raises:
            ValueError: if there are none to be found or one is no text, naming the place.
        """

    @abstractmethod
    def stamp(self) -> str:
        """A hash of what can be told of the text without reading it: names, sizes and times of files."""


@final
@dataclass(frozen=True)
class Texts(Source):
    """Documents in hand."""

    texts: tuple[str, ...]

    def documents(self) -> Iterator[str]:
        """The texts."""
        return iter(self.texts)

    def stamp(self) -> str:
        """Nothing: the texts are themselves part of the settings."""
        return ""


@final
@dataclass(frozen=True)
class Files(Source):
    """Local files, or folders of them in the order of their names.

    ``.txt``: a document, or several between ``separator``; ``.jsonl``: the field ``column`` of every line; ``.json``: a
    list of strings, loaded whole; ``.parquet``: the column ``column``, by row groups.

    Raises:
        ValueError: for an empty separator, or no file at all.
    """

    paths: tuple[Path, ...]
    column: str = "text"
    separator: str | None = None

    def __post_init__(self) -> None:
        if not self.paths or self.separator == "":
            raise ValueError("a corpus of files needs at least one path, and a separator that is not empty")

    def documents(self) -> Iterator[str]:
        """The documents of all files."""
        for path in self._files():
            try:
                yield from self._read(path)
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8: {error}") from None

    def stamp(self) -> str:
        """Names, sizes and times of change."""
        return _stamp(self._files())

    def _files(self) -> list[Path]:
        found = list[Path]()
        for path in self.paths:
            files = sorted(p for p in path.rglob("*") if p.suffix in _KINDS) if path.is_dir() else [path]
            if not files or not all(p.is_file() and p.suffix in _KINDS for p in files):
                raise ValueError(f"{path} is no text to read: files {', '.join(_KINDS)} or a folder of them are")
            found += files
        if self.separator is not None and not any(path.suffix == ".txt" for path in found):
            raise ValueError(f"a separator is for .txt files, there are none among {', '.join(map(str, self.paths))}")
        return found

    def _read(self, path: Path) -> Iterator[str]:
        match path.suffix:
            case ".txt":
                return _between(path, self.separator)
            case ".jsonl":
                return _lines(path, self.column)
            case ".json":
                return _listed(path)
            case _:
                return _column(path, self.column)


@final
@dataclass(frozen=True)
class Hub(Source):
    """A data set of ``datasets``: a name on the hub, a folder that it can load, or one written by ``save_to_disk``."""

    name: str
    config: str | None = None
    split: str = "train"
    streaming: bool = True
    column: str = "text"

    def documents(self) -> Iterator[str]:
        """The column's entries.

        Raises:
            ValueError: if the data set, its split or its column does not exist, or ``datasets`` is not installed.
        """
        data, place = self._load(), f"the data set {self.name!r}"
        if data.column_names is not None:
            if self.column not in data.column_names:
                raise ValueError(f"{place} has no column {self.column!r}; it has {', '.join(data.column_names)}")
            data = data.select_columns([self.column])
        return _strings(data, self.column, place)

    def stamp(self) -> str:
        """Names, sizes and times of change of a folder; what a name on the hub stands for is not looked up."""
        folder = Path(self.name)
        return _stamp(sorted(p for p in folder.rglob("*") if p.is_file())) if folder.is_dir() else ""

    def _load(self) -> Any:
        try:
            from datasets import DatasetDict, load_dataset, load_from_disk
        except ImportError:
            raise ValueError("data sets are read with datasets: pip install 'innerspace[language]'") from None
        try:
            if not any((Path(self.name) / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
                return load_dataset(self.name, self.config, split=self.split, streaming=self.streaming)
            data = load_from_disk(self.name)
        except OSError as error:
            raise ValueError(f"the data set {self.name!r} cannot be loaded: {error}") from None
        if not isinstance(data, DatasetDict):
            return data
        if self.split not in data:
            there = ", ".join(map(str, data))
            raise ValueError(f"the data set {self.name!r} has no split {self.split!r}; it has {there}")
        return data[self.split]


def _between(path: Path, separator: str | None) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        if separator is None:
            yield file.read()
            return
        rest = ""
        while block := file.read(_BLOCK):
            *whole, rest = (rest + block).split(separator)
            yield from whole
        yield rest


def _lines(path: Path, column: str) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        entries = (_parsed(line, f"{path}, line {number}") for number, line in enumerate(file, 1) if line.strip())
        yield from _strings(entries, column, str(path))


def _listed(path: Path) -> Iterator[str]:
    entries = _parsed(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(entries, list):
        raise ValueError(f"{path} should hold a list of strings, it holds a {type(entries).__name__}")
    return _strings(({"": entry} for entry in cast(list[object], entries)), "", str(path))


def _column(path: Path, column: str) -> Iterator[str]:
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError("parquet files are read with pyarrow: pip install 'innerspace[language]'") from None
    try:
        with ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise ValueError(f"{path} has no column {column!r}; it has {', '.join(file.schema_arrow.names)}")
            entries = (row for batch in file.iter_batches(1024, columns=[column]) for row in batch.to_pylist())
            yield from _strings(entries, column, str(path))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no complete parquet file: {error}") from None


def _parsed(text: str, place: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not valid JSON: {error}") from None


def _strings(entries: Iterable[object], column: str, place: str) -> Iterator[str]:
    for number, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or column not in entry:
            raise ValueError(f"{place}: document {number} has no field {column!r}")
        text = cast(Mapping[str, object], entry)[column]
        if not isinstance(text, str):
            raise ValueError(f"{place}: document {number} should be a string, it is a {type(text).__name__}")
        yield text


def _stamp(files: Iterable[Path]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
