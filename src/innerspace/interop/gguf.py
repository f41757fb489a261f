"""Control vectors of llama.cpp: GGUF files of the architecture ``controlvector``, one tensor ``direction.N`` a layer.

``direction.N`` is added behind block N, counted from 0, which is the site ``resid.N``; llama.cpp takes none for N = 0.
repeng and llama.cpp's own generator write the same files.
"""

import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from innerspace.decompose.directions import Directions, Origin
from innerspace.interop.layers import UNKNOWN, by_layer, from_layers

_KIND = "controlvector"
_LARGEST = 2**30
"""A control vector of more bytes is none."""

_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""The bytes of GGUF's scalar kinds."""

_STRING, _ARRAY, _F32 = 8, 9, 0


def read(path: Path, origin: Origin = UNKNOWN) -> Directions:
    """The vectors of a file as directions at ``resid.N``; ``origin`` says what the file does not: feature and classes.

    Raises:
        ValueError: for a file that is missing, damaged or no control vector, or the package gguf that is missing.
    """
    return from_layers(_vectors(_open(path), path), origin)


def model_hint(path: Path) -> str:
    """The kind of network that a file says it is for, such as ``llama``; empty if it says nothing.

    Raises:
        ValueError: as ``read``.
    """
    return _string(_open(path), f"{_KIND}.model_hint")


def write(directions: Directions, path: Path, model_hint: str = "") -> None:
    """Write one feature's directions at sites ``resid.1``, ``resid.2``, … as a control vector, at the step of τ = 1.

    Raises:
        ValueError: for several features, other sites, block 0, or the package gguf that is missing.
    """
    vectors, package = by_layer(directions), _package()
    if 0 in vectors:
        raise ValueError("llama.cpp takes no vector behind block 0 (resid.0); leave it out")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    writer = package.GGUFWriter(partial, _KIND)
    writer.add_string(f"{_KIND}.model_hint", model_hint)
    writer.add_uint32(f"{_KIND}.layer_count", len(vectors))
    for i, vector in vectors.items():
        writer.add_tensor(f"direction.{i}", vector.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise ValueError("control vectors are kept by gguf: pip install 'innerspace[exchange]'") from None
    return gguf


def _open(path: Path) -> Any:
    package = _package()
    if not path.is_file():
        raise ValueError(f"no file at {path}")
    if (size := path.stat().st_size) > _LARGEST:
        raise ValueError(f"{path} has {size} bytes; more than {_LARGEST} are no control vector")
    # the package believes the counts of a header, and runs through them whatever the file holds
    try:
        _walk(path.read_bytes())
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} is no GGUF file of a control vector: {error}") from None
    try:
        reader = package.GGUFReader(path)
    except Exception as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    if (kind := _string(reader, "general.architecture")) != _KIND:
        raise ValueError(f"{path} has the architecture {kind!r}, a control vector has {_KIND!r}")
    return reader


def _vectors(reader: Any, path: Path) -> dict[int, Tensor]:
    found = dict[int, Tensor]()
    for tensor in reader.tensors:
        kind, _, number = str(tensor.name).partition(".")
        if kind != "direction":
            raise ValueError(
                f"{path} holds the tensor {tensor.name}, a control vector holds direction.1, direction.2, …"
            )
        if not (number.isascii() and number.isdecimal() and str(int(number[:9])) == number and int(number) > 0):
            raise ValueError(f"{path}: {tensor.name} names no layer; layers count from 1")
        if int(tensor.tensor_type) != _F32:
            raise ValueError(f"{path}: {tensor.name} should be of float32, it is {tensor.tensor_type.name}")
        found[int(number)] = torch.from_numpy(tensor.data.copy())
    return found


def _string(reader: Any, key: str) -> str:
    field = reader.get_field(key)
    if field is None:
        return ""
    if int(field.types[0]) != _STRING:
        raise ValueError(f"{key} should be a string")
    return bytes(field.parts[-1]).decode("utf-8", errors="replace")


def _walk(data: bytes) -> None:
    """Hold every count and length of a header against the file."""
    magic, version, tensors, pairs = struct.unpack_from("<4sIQQ", data)
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(f"it begins with {magic!r}, version {version}; little-endian GGUF of version 2 or 3 is read")
    place = 24
    for _ in range(_bounded(pairs, 13, place, data)):
        place = _past_string(data, place)
        (kind,) = struct.unpack_from("<I", data, place)
        place = _past_value(data, place + 4, kind)
    for _ in range(_bounded(tensors, 24, place, data)):
        place = _past_string(data, place)
        (dimensions,) = struct.unpack_from("<I", data, place)
        if dimensions != 1:
            raise ValueError(f"a tensor has {dimensions} dimensions, a direction has one")
        (length,) = struct.unpack_from("<Q", data, place + 4)
        _bounded(length, 4, place, data)
        place += 24
    if place > len(data):
        raise ValueError("it ends within its header")


def _past_string(data: bytes, place: int) -> int:
    (length,) = struct.unpack_from("<Q", data, place)
    place += 8
    end = place + _bounded(length, 1, place, data)
    data[place:end].decode("utf-8")
    return end


def _past_value(data: bytes, place: int, kind: int) -> int:
    if kind == _STRING:
        return _past_string(data, place)
    if kind in _SCALARS:
        return place + _SCALARS[kind]
    if kind != _ARRAY:
        raise ValueError(f"a value is of the unknown kind {kind}")
    inner, count = struct.unpack_from("<IQ", data, place)
    place += 12
    if inner not in _SCALARS and inner != _STRING:
        raise ValueError(f"an array holds values of kind {inner}")
    size = _SCALARS.get(inner, 8)
    for _ in range(_bounded(count, size, place, data) if inner == _STRING else 0):
        place = _past_string(data, place)
    return place if inner == _STRING else place + size * _bounded(count, size, place, data)


def _bounded(count: int, size: int, place: int, data: bytes) -> int:
    if count * size > len(data) - place:
        raise ValueError(f"its header claims {count} entries where {max(len(data) - place, 0)} bytes are left")
    return count
