"""Several interventions as one saved value: by site what is done there, with everything that it needs, for one model.

A saved plan is a folder: ``plan.json`` says what is done, ``tensors.safetensors`` holds directions, temperatures,
constants, masks and sources, and every decomposition lies in a file of its own, as its ``save`` writes it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from inspect import isfunction
from pathlib import Path
from typing import Any, TypeVar, cast, final

from torch import Tensor

from innerspace.checkpoint import load_state, save_state
from innerspace.decompose.autoencoder import Autoencoder
from innerspace.decompose.base import Decomposition
from innerspace.decompose.directions import Directions
from innerspace.decompose.saved import load
from innerspace.decompose.subspaces import Subspaces
from innerspace.interventions import At, Constant, Elsewhere, Fix, Splice, Steer, Write
from innerspace.network.model import Model
from innerspace.network.site import Where
from innerspace.network.trace import Intervention
from innerspace.steering_modes import Clamp, KeepNorm, Limit, Rotate, RotateIn
from innerspace.value import read_json

_FORMAT = "innerspace plan 2"

_SAVED: Mapping[str, type[Any]] = {
    own.__name__: own
    for own in (
        *(At, Steer, Splice, Fix, Write, Constant, Elsewhere),
        *(KeepNorm, Limit, Rotate, RotateIn, Clamp),
    )
}
"""What can be saved, by name: all interventions and rules but reads, which change nothing."""

T = TypeVar("T")

Plan = Mapping[str, Sequence[Intervention]]
"""By site the interventions there, which compose in order; what ``Model.run`` takes."""


def save_plan(folder: Path, plan: Plan, model: Model) -> None:
    """Write a plan of this library's interventions, ``patch``, ``ablate`` and ``hold`` among them, in any nesting.

    Raises:
        ValueError: for an unknown site, an intervention or a rule that is a function, or a decomposition that has no
            file form.
    """
    writer = _Writer()
    sites = {model.site(site).name: [writer.written(one) for one in do] for site, do in plan.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, what in writer.decompositions.items():
        what.save(folder / f"{name}.safetensors")
    save_state(folder / "tensors.safetensors", {"tensors": writer.tensors})
    record = {"format": _FORMAT, "model": model.fingerprint(), "sites": sites}
    (folder / "plan.json").write_text(json.dumps(record, indent=2) + "\n")


def load_plan(folder: Path, model: Model) -> dict[str, list[Intervention]]:
    """Read what ``save_plan`` wrote: the same interventions, for the model that they were saved for.

    Raises:
        ValueError: for files that are missing or damaged, or another model, naming both.
    """
    record: Any = read_json(folder / "plan.json")
    if record.get("format") != _FORMAT:
        raise ValueError(f"{folder / 'plan.json'} holds {record.get('format', 'something else')!r}, not {_FORMAT!r}")
    if record["model"] != (own := model.fingerprint()):
        raise ValueError(f"the plan in {folder} was saved for model {record['model']}, this is {own}")
    reader = _Reader(folder)
    return {model.site(site).name: [reader.read(one) for one in do] for site, do in record["sites"].items()}


@final
class _Writer:
    """Interventions as JSON, field by field; tensors and decompositions are kept aside, each once."""

    def __init__(self) -> None:
        self.tensors = dict[str, Tensor]()
        self.decompositions = dict[str, Autoencoder | Directions | Subspaces]()

    def written(self, given: object) -> Any:
        """An intervention, a rule, or what one of them holds."""
        match given:
            case None | bool() | int() | float():
                return given
            case Tensor():
                return {"tensor": self._kept(self.tensors, "tensor", given)}
            case Where():
                return {"where": given.to_json()}
            case Decomposition():
                if not isinstance(given, Autoencoder | Directions | Subspaces):
                    raise ValueError(
                        f"a {type(given).__name__} has no file form, so that a plan with it cannot be saved"
                    )
                return {"decomposition": self._kept(self.decompositions, "decomposition", given)}
            case Sequence():
                return [self.written(one) for one in cast(Sequence[object], given)]
            case _ if type(given) in _SAVED.values():
                own = cast(Any, given)
                return {"class": type(given).__name__} | {
                    field.name: self.written(getattr(own, field.name)) for field in fields(own)
                }
            case _:
                what = "a rule that is a function" if isfunction(given) else f"a {type(given).__name__}"
                raise ValueError(f"{what} cannot be saved; possible are {', '.join(_SAVED)}")

    @staticmethod
    def _kept(among: dict[str, T], kind: str, what: T) -> str:
        name = next((name for name, other in among.items() if other is what), f"{kind}.{len(among)}")
        among[name] = what
        return name


@final
class _Reader:
    """The inverse."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._known = folder, dict[str, Decomposition]()
        self._tensors = cast(dict[str, Tensor], load_state(folder / "tensors.safetensors")["tensors"])

    def read(self, saved: Any) -> Any:
        """An intervention, a rule, or what one of them holds."""
        match saved:
            case None | bool() | int() | float():
                return saved
            case {"class": str(name), **given} if name in _SAVED:
                own = _SAVED[name]
                if {field.name for field in fields(own)} != set(given):
                    raise ValueError(f"the plan in {self._folder} has other fields of {name} than it has: {[*given]}")
                held = {field: self.read(value) for field, value in given.items()}
                try:
                    return own(**held)
                except (TypeError, AttributeError) as error:
                    raise ValueError(f"the plan in {self._folder} describes no {name}: {error}") from error
            case {"class": name}:
                raise ValueError(f"the plan in {self._folder} holds an unknown intervention {name!r}")
            case {"tensor": str(name)}:
                if name not in self._tensors:
                    raise ValueError(f"the plan in {self._folder} lacks {name!r}")
                return self._tensors[name]
            case {"where": where}:
                return Where.from_json(where)
            case {"decomposition": str(name)}:
                return self._decomposition(name)
            case list():
                return tuple(self.read(one) for one in cast(list[Any], saved))
            case _:
                raise ValueError(f"the plan in {self._folder} holds {saved!r} where an intervention is described")

    def _decomposition(self, name: str) -> Decomposition:
        if Path(name).name != name:
            raise ValueError(f"the plan in {self._folder} names {name!r}, which is no file of its own")
        if name not in self._known:
            self._known[name] = load(self._folder / f"{name}.safetensors")
        return self._known[name]
