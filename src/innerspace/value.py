"""Frozen settings that go to JSON and come back.

A *value* is a frozen dataclass whose fields are numbers, strings, paths, tuples, literals and other values.
It is its own configuration: ``to_json`` writes it with its class name, ``from_json`` reads it back and refuses what it
does not know. Only classes that the annotation admits can be named in a file, so a file never decides what is imported.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

Json = None | bool | int | float | str | list[Any] | dict[str, Any]


V = TypeVar("V", bound="Value")


@dataclasses.dataclass(frozen=True)
class Value:
    """A frozen dataclass that can be written as JSON and read back; compare values with ``==``."""

    def to_json(self) -> dict[str, Json]:
        """The value as JSON, each nested value tagged with its class name under ``class``."""
        fields = {field.name: _encode(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"class": type(self).__name__, **fields}

    @classmethod
    def from_json(cls: type[V], data: Mapping[str, Json]) -> V:
        """The inverse of ``to_json``.

        Raises:
            ValueError: for an unknown class or field, naming what is possible.
        """
        return cast(V, _decode_value(cls, data, where=cls.__name__))

    def save(self, path: Path) -> None:
        """Write the value as readable JSON."""
        path.write_text(json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def load(cls: type[V], path: Path) -> V:
        """Read what ``save`` wrote."""
        return cls.from_json(read_json(path))


def read_json(path: Path) -> dict[str, Json]:
    """A JSON object from a file.

    Raises:
        ValueError: if the file is missing or holds anything but a JSON object, naming the file.
    """
    if not path.is_file():
        raise ValueError(f"no file at {path}")
    try:
        data = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} should hold a JSON object, it holds a {type(data).__name__}")
    return cast(dict[str, Json], data)


def _encode(item: object) -> Json:
    match item:
        case Value():
            return item.to_json()
        case None | bool() | int() | float() | str():
            return item
        case Path():
            return str(item)
        case Mapping():
            return {str(key): _encode(entry) for key, entry in item.items()}
        case tuple() | list():
            return [_encode(entry) for entry in item]
        case _:
            raise ValueError(f"a {type(item).__name__} cannot be written as JSON: {item!r}")


def _concrete(cls: type[Value]) -> dict[str, type[Value]]:
    """Every class that may stand where ``cls`` is annotated, by name."""
    found = {cls.__name__: cls}
    for child in cls.__subclasses__():
        found |= _concrete(child)
    return found


def _decode_value(cls: type[Value], data: object, where: str) -> Value:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} should be an object, not {data!r}")
    choices = _concrete(cls)
    name = data.get("class", cls.__name__)
    if name not in choices:
        raise ValueError(f"{where}: unknown class {name!r}; possible are {', '.join(sorted(choices))}")
    chosen = choices[name]
    hints = typing.get_type_hints(chosen)
    names = [field.name for field in dataclasses.fields(chosen)]
    given = {key: entry for key, entry in data.items() if key != "class"}
    if unknown := sorted(set(given) - set(names)):
        raise ValueError(f"{where}: unknown field {unknown[0]!r} of {name}; it has {', '.join(names)}")
    fields = {key: _decode(hints[key], entry, f"{where}.{key}") for key, entry in given.items()}
    try:
        return chosen(**fields)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None


def _decode(hint: Any, data: object, where: str) -> object:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _decode(arguments[0], data, where)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, data, where)
    if origin is typing.Literal:
        if data not in arguments:
            raise ValueError(f"{where} should be one of {', '.join(map(repr, arguments))}, not {data!r}")
        return data
    if isinstance(hint, type) and issubclass(hint, Value):
        return _decode_value(hint, data, where)
    if origin in (tuple, list, Sequence) and isinstance(data, list):
        element = arguments[0] if len(arguments) == 1 or arguments[-1] is ... else None
        hints = [element] * len(data) if element is not None else arguments
        if len(hints) != len(data):
            raise ValueError(f"{where} should have {len(hints)} entries, it has {len(data)}")
        entries = [_decode(h, entry, f"{where}[{i}]") for i, (h, entry) in enumerate(zip(hints, data, strict=True))]
        return entries if origin is list else tuple(entries)
    if origin in (dict, Mapping) and isinstance(data, Mapping):
        return {key: _decode(arguments[1], entry, f"{where}.{key}") for key, entry in data.items()}
    if hint is Path and isinstance(data, str):
        return Path(data)
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if isinstance(hint, type) and isinstance(data, hint) and (hint is bool or not isinstance(data, bool)):
        return data
    raise ValueError(f"{where} should be {getattr(hint, '__name__', hint)}, not {data!r}")


def _decode_union(options: tuple[Any, ...], data: object, where: str) -> object:
    if data is None and type(None) in options:
        return None
    values = [option for option in options if isinstance(option, type) and issubclass(option, Value)]
    if isinstance(data, Mapping) and values:
        choices = {name: cls for option in values for name, cls in _concrete(option).items()}
        name = data.get("class")
        if name not in choices:
            raise ValueError(f"{where}: unknown class {name!r}; possible are {', '.join(sorted(choices))}")
        return _decode_value(choices[str(name)], data, where)
    for option in options:
        try:
            return _decode(option, data, where)
        except ValueError:
            continue
    names = ", ".join(getattr(option, "__name__", str(option)) for option in options)
    raise ValueError(f"{where} should be one of {names}, not {data!r}")
