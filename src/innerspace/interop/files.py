"""Files from outside are data: what is read of them is held against bounds, and nothing in them runs.

A reader names what it wants (``Weights.take``, ``Settings.whole``, …) with its shape or kind, and gets that or a
``ValueError`` that names the file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, cast, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_LONGEST = 2**22
"""Settings of more bytes are none."""


def member(folder: Path, name: str) -> Path:
    """The path of a file that lies in a folder itself.

    Raises:
        ValueError: if the name leads elsewhere, or no such file is there but a link, a folder or nothing.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder at {folder}")
    if Path(name).name != name:
        raise ValueError(f"{name!r} is no name of a file in {folder}, but a path")
    path = folder / name
    if path.resolve().parent != folder.resolve():
        raise ValueError(f"{path} is a link out of its folder; put a copy of the file there")
    if not path.is_file():
        raise ValueError(f"no file {name} in {folder}")
    return path


def text(path: Path, longest: int = _LONGEST) -> str:
    """A short text.

    Raises:
        ValueError: if it is missing, long, or no UTF-8.
    """
    if not path.is_file():
        raise ValueError(f"no file at {path}")
    if (size := path.stat().st_size) > longest:
        raise ValueError(f"{path} has {size} bytes; more than {longest} are no settings")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}") from None


def parse_json(path: Path, content: str) -> Any:
    """What JSON says, but for numbers that are none.

    Raises:
        ValueError: if it is damaged, or nested without end.
    """

    def refuse(word: str) -> None:
        raise ValueError(f"{path} holds {word}, which is no JSON")

    try:
        return json.loads(content, parse_constant=refuse)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from None


@final
class Settings:
    """A mapping from a file whose entries are asked for by kind; ``where`` names it in messages."""

    def __init__(self, where: str, data: object) -> None:
        if not isinstance(data, dict):
            raise ValueError(f"{where} should be a mapping, it is a {type(data).__name__}")
        self.where, self._data = where, cast(dict[str, Any], data)

    @staticmethod
    def of(path: Path) -> "Settings":
        """Those of a JSON file.

        Raises:
            ValueError: if it is missing, damaged, or anything but an object.
        """
        return Settings(str(path), parse_json(path, text(path)))

    def __contains__(self, key: str) -> bool:
        return self._data.get(key) is not None

    def section(self, key: str) -> "Settings":
        """A mapping in the mapping; an empty one where there is none."""
        return Settings(f"{self.where}, {key}", self._data.get(key) or {})

    def whole(self, key: str) -> int:
        """A number of things, at least 0."""
        found = self._data.get(key)
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < 2**31:
            raise ValueError(f"{self.where}: {key} should be a whole number, it is {found!r}")
        return found

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        return self._kind(key, bool, default)

    def word(self, key: str, default: str = "") -> str:
        """A string."""
        return self._kind(key, str, default)

    def raw(self, key: str) -> object:
        """Whatever stands there."""
        return self._data.get(key)

    def refuse(self, key: str, why: str) -> NoReturn:
        """Refuse a setting, and say why.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.where}: {key} = {self._data.get(key)!r} cannot be read here: {why}")

    def _kind(self, key: str, kind: type, default: Any) -> Any:
        found = self._data.get(key)
        found = default if found is None else found
        if not isinstance(found, kind):
            raise ValueError(f"{self.where}: {key} should be of kind {kind.__name__}, it is {found!r}")
        return found


@final
class Weights:
    """Tensors from a file, asked for by name and shape; numbers of half precision come in single precision."""

    def __init__(self, where: str, tensors: Mapping[str, Tensor]) -> None:
        self.where, self._left = where, dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    @property
    def names(self) -> list[str]:
        """What has not been taken yet."""
        return sorted(self._left)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that stays.

        Raises:
            ValueError: for a name that is not there.
        """
        return tuple(self._named(name).shape)

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor of a shape, which has to be finite.

        Raises:
            ValueError: for a name that is not there, another shape, or an entry that is not finite.
        """
        found = self._named(name)
        if tuple(found.shape) != shape:
            raise ValueError(f"{self.where}: {name} should have the shape {list(shape)}, it has {list(found.shape)}")
        wide = found.dtype if found.dtype in (torch.float32, torch.float64) else torch.float32
        found = found.to(wide).contiguous()
        if not found.isfinite().all():
            raise ValueError(f"{self.where}: {name} has {int((~found.isfinite()).sum())} entries that are not finite")
        del self._left[name]
        return found

    def drop(self, name: str) -> None:
        """Leave out what is not needed, if it is there."""
        self._left.pop(name, None)

    def done(self) -> None:
        """Refuse tensors that nobody has asked for: they would have had an effect.

        Raises:
            ValueError: naming them.
        """
        if self._left:
            raise ValueError(f"{self.where} holds tensors that are not known here: {', '.join(self.names)}")

    def within(self, prefix: str) -> "Weights":
        """Those whose names begin with a prefix, without it."""
        cut = {name[len(prefix) :]: item for name, item in self._left.items() if name.startswith(prefix)}
        return Weights(f"{self.where}, {prefix}", cut)

    def _named(self, name: str) -> Tensor:
        if name not in self._left:
            raise ValueError(f"{self.where} holds no tensor {name!r} but {', '.join(self.names) or 'nothing else'}")
        return self._left[name]


def read_safetensors(path: Path) -> Weights:
    """All tensors of a safetensors file.

    Raises:
        ValueError: if it is missing or damaged; a header that claims more than the file holds is damage.
    """
    if not path.is_file():
        raise ValueError(f"no file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: cast(Tensor, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is no complete safetensors file: {error}") from None
    return Weights(str(path), tensors)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors; the former file stays until the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file({name: item.contiguous().clone() for name, item in tensors.items()}, partial, metadata={"format": "pt"})
    partial.replace(path)


def write_json(path: Path, content: object) -> None:
    """Write readable JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
