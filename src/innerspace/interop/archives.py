"""What ``torch.save`` made of a mapping of tensors: read as tensors, with nothing in it run, and written.

Torch takes the size of a storage from the pickle, whatever the archive holds, and would read on behind the end. So what
the pickle claims is held against the archive first, by going through it with stand-ins for all that it names.
"""

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import Tensor

from innerspace.interop.files import Weights

_BYTES = {
    "Double": 8,
    "Long": 8,
    "Float": 4,
    "Int": 4,
    "Half": 2,
    "BFloat16": 2,
    "Short": 2,
    "Char": 1,
    "Byte": 1,
    "Bool": 1,
    "Untyped": 1,
}
"""The bytes of an entry, by the names of storages."""


def read_torch(path: Path) -> Weights:
    """The tensors of what ``torch.save`` made of a mapping of tensors; code in it is refused, never run.

    Raises:
        ValueError: if the file is missing, damaged, compressed, or holds anything but a mapping of dense tensors.
    """
    if not path.is_file():
        raise ValueError(f"no file at {path}")
    records = _records(path)
    _check_claims(path, records)
    try:
        found = torch.load(_rewritten(records), map_location="cpu", weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} holds more than tensors, and code in files is not run: {reason}") from None
    except Exception as error:
        # a damaged pickle may fail in any of the ways in which its few instructions can
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} should hold a mapping of tensors, it holds a {type(found).__name__}")
    tensors = dict[str, Tensor]()
    for name, item in cast(dict[Any, Any], found).items():
        if not isinstance(name, str) or not isinstance(item, Tensor):
            raise ValueError(f"{path}: {name!r} is a {type(item).__name__}; only tensors are read")
        tensor = item.detach()
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError(f"{path}: {name} is no dense tensor in memory")
        # an expanded tensor claims more entries than it stores
        if tensor.numel() * tensor.element_size() > (size := tensor.untyped_storage().nbytes()):
            raise ValueError(f"{path}: {name} claims {tensor.numel()} entries, its storage has {size} bytes")
        tensors[name] = tensor
    return Weights(str(path), tensors)


def write_torch(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as ``torch.save`` does, for tools that read nothing else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    torch.save({name: item.detach().contiguous().clone() for name, item in tensors.items()}, partial)
    partial.replace(path)


def _records(path: Path) -> dict[str, bytes]:
    """The records of an archive, by their names below its root; they are stored, and their checksums are right."""
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
            for record in listed:
                if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
                    raise ValueError(f"{record.filename} is compressed, which torch.save does not do")
            if (total := sum(record.file_size for record in listed)) > path.stat().st_size:
                raise ValueError(f"it claims to hold {total} bytes in {path.stat().st_size}")
            found = {record.filename.partition("/")[2]: archive.read(record) for record in listed}
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{path} is no archive as torch.save writes it: {error}") from None
    if len(found) < len(listed) or "data.pkl" not in found:
        raise ValueError(f"{path} is no archive as torch.save writes it: {', '.join(sorted(found))}")
    return found


def _rewritten(records: Mapping[str, bytes]) -> io.BytesIO:
    """An archive of the same records: torch's reader and this one may take a damaged list of them differently."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            if name in ("data.pkl", "byteorder", "version") or name.startswith("data/"):
                archive.writestr(f"archive/{name}", content)
    stream.seek(0)
    return stream


def _check_claims(path: Path, records: Mapping[str, bytes]) -> None:
    """Refuse a pickle that claims storages of other sizes than the archive holds."""
    claims = _Claims(records["data.pkl"])
    try:
        claims.load()
    except Exception as error:
        # as above: the ways in which a damaged pickle fails have no end
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    for key, size in claims.storages:
        if f"data/{key}" not in records or len(records[f"data/{key}"]) != size:
            raise ValueError(f"{path}: its pickle claims storages of other sizes than the archive holds")


@final
class _StandIn:
    """Stands for whatever a pickle names: nothing is imported, and to call it or to put something in does nothing."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *_: object) -> "_StandIn":
        return self

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass


@final
class _Claims(pickle.Unpickler):
    """Goes through a pickle and notes which storages it asks for, with their bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.storages = list[tuple[str, int]]()

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """A stand-in for every name."""
        return _StandIn(f"{module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> Any:
        """A stand-in for every storage, whose claim is noted."""
        word, kind, key, _, entries = pid
        name = cast(_StandIn, kind).name.rpartition(".")[2].removesuffix("Storage")
        if word != "storage" or not isinstance(key, str) or type(entries) is not int or entries < 0:
            raise ValueError(f"{pid!r} is no storage")
        self.storages.append((key, entries * _BYTES[name]))
        return _StandIn("storage")
