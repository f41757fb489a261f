"""Arrays from ``.npz`` files of strangers: nothing is unpickled, and no header decides how much memory is taken."""

import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import final

import numpy as np

LARGEST = 1 << 26
"""An array of more bytes than this is not read."""

_DAMAGE = (
    *(OSError, EOFError, KeyError, RuntimeError, OverflowError, Warning),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


@final
class Arrays:
    """The arrays of an ``.npz`` file by name, each read when it is asked for; use it in a ``with``.

    Raises:
        ValueError: if the file, or the array that is asked for, is damaged, pickled, or larger than its bytes.
    """

    def __init__(self, path: Path) -> None:
        with _named(path.name):
            self._archive = zipfile.ZipFile(path)
        self._entries = {
            entry.filename.removesuffix(".npy"): entry
            for entry in self._archive.infolist()
            if entry.filename.endswith(".npy")
        }

    def __enter__(self) -> "Arrays":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._archive.close()

    def names(self) -> list[str]:
        """The names of all arrays, in the order of the file."""
        return list(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._entries:
            raise ValueError(f"{name} is missing")
        entry = self._entries[name]
        if entry.file_size > LARGEST:
            raise ValueError(f"{name} has {entry.file_size} bytes; at most {LARGEST} are read")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} is packed in an unknown way")
        with _named(name):
            return _array(self._archive.read(entry))


def _array(content: bytes) -> np.ndarray:
    file = BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array of version {version[0]}.{version[1]}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(file)
    except (SyntaxError, tokenize.TokenError, TypeError, AttributeError, IndexError, RecursionError) as error:
        # numpy evaluates the header as Python's literals, and fails in as many ways
        raise ValueError(f"its header is damaged: {type(error).__name__}") from None
    if dtype.kind not in "biufU":
        raise ValueError(f"it holds {dtype}; numbers and text are read, and nothing is unpickled")
    wanted, count = math.prod(shape) * dtype.itemsize, math.prod(shape)
    if min(shape, default=0) < 0 or wanted > len(content) - file.tell():
        raise ValueError(f"an array of shape {shape} in {len(content)} bytes")
    # items without bytes, as empty texts, cannot be viewed in a buffer: one stands for all, and fits one alone
    flat = np.frombuffer(content, dtype, count, file.tell()) if wanted else np.zeros(min(count, 1), dtype)
    if dtype.kind == "U" and not _is_text(flat.view(dtype.str[0] + "u4")):
        raise ValueError("it holds numbers that are no letters")
    return flat.reshape(shape, order="F" if fortran else "C")


def _is_text(codes: np.ndarray) -> bool:
    """Whether these are characters; numpy takes any number for one, and Python fails where it meets it."""
    return bool(((codes < 0xD800) | ((codes > 0xDFFF) & (codes < 0x110000))).all())


@contextmanager
def _named(what: str) -> Generator[None]:
    """Damage of any kind as one error that says where."""
    try:
        with warnings.catch_warnings():
            # a header that old versions wrote is as good as damaged
            warnings.simplefilter("error")
            yield
    except _DAMAGE as error:
        raise ValueError(f"{what}: {type(error).__name__}: {str(error)[:200]}") from None
    except ValueError as error:
        raise ValueError(f"{what}: {str(error)[:200]}") from None
