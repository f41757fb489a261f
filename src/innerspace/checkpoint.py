"""Snapshots from which training continues bit for bit: tensors as safetensors, everything else as JSON, never a pickle.

A snapshot is a nested mapping of tensors, numbers, strings, lists and None. ``save_state`` writes it to one file and
replaces the former one only when the new one is complete, so an interruption loses at most the steps since the last.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

State = Mapping[str, Any]


def save_state(path: Path, state: State) -> None:
    """Write a snapshot atomically.

    Raises:
        ValueError: for an entry that is neither tensor nor JSON, naming it.
    """
    tensors = dict[str, Tensor]()
    skeleton = _flatten(state, "", tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={"state": json.dumps(skeleton)})
    partial.replace(path)


def load_state(path: Path) -> dict[str, Any]:
    """Read a snapshot.

    Raises:
        ValueError: if the file is missing or damaged, naming it.
    """
    if not path.is_file():
        raise ValueError(f"no snapshot at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = cast(dict[str, str] | None, file.metadata())
            tensors = {name: cast(Tensor, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file: {error}") from None
    if metadata is None or "state" not in metadata:
        raise ValueError(f"{path} is a safetensors file, but no snapshot written by innerspace")
    return cast(dict[str, Any], _restore(json.loads(metadata["state"]), tensors))


def random_state() -> dict[str, Tensor]:
    """The state of torch's random generators."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"cuda:{i}": item for i, item in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Put back what ``random_state`` gave."""
    torch.set_rng_state(state["cpu"])
    for name, item in state.items():
        if name.startswith("cuda:") and torch.cuda.is_available():
            torch.cuda.set_rng_state(item, name)


def _flatten(item: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(item, Tensor):
        tensors[where] = item.detach().contiguous().clone()
        return {"tensor": where}
    if isinstance(item, Mapping):
        entries = cast(Mapping[Any, Any], item)
        # JSON knows only string keys, an optimizer's state has integers
        return {"map": [[key, _flatten(entry, f"{where}/{key}", tensors)] for key, entry in entries.items()]}
    if isinstance(item, list | tuple):
        kind = "list" if isinstance(item, list) else "tuple"
        return {kind: [_flatten(entry, f"{where}/{i}", tensors) for i, entry in enumerate(cast(list[Any], item))]}
    if item is None or isinstance(item, bool | int | float | str):
        return {"plain": item}
    raise ValueError(f"{where or 'the snapshot'} is a {type(item).__name__}; a snapshot holds tensors and JSON only")


def _restore(item: Any, tensors: Mapping[str, Tensor]) -> Any:
    ((kind, content),) = item.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "map":
            return {key: _restore(entry, tensors) for key, entry in content}
        case "list":
            return [_restore(entry, tensors) for entry in content]
        case "tuple":
            return tuple(_restore(entry, tensors) for entry in content)
        case _:
            return content
