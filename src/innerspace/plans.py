"""Several interventions as one saved value: by site what is done there, with everything that it needs, for one model.

A saved plan is a folder: ``plan.json`` says what is done, ``tensors.safetensors`` holds directions, temperatures,
constants and masks, and every decomposition lies in a file of its own, as its ``save`` writes it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, final

from torch import Tensor

from innerspace.checkpoint import load_state, save_state
from innerspace.decompose.autoencoder import Autoencoder
from innerspace.decompose.base import Decomposition
from innerspace.decompose.directions import Directions
from innerspace.decompose.saved import load
from innerspace.decompose.subspaces import Subspaces
from innerspace.interventions import At, Constant, Fix, Splice, Steer, Write
from innerspace.network.model import Model
from innerspace.network.site import Where
from innerspace.network.trace import Intervention
from innerspace.value import read_json

_FORMAT = "innerspace plan 1"

Plan = Mapping[str, Sequence[Intervention]]
"""By site the interventions there, which compose in order; what ``Model.run`` takes."""


def save_plan(folder: Path, plan: Plan, model: Model) -> None:
    """Write a plan of ``Steer``, ``Splice``, ``Fix`` and ``Write`` by constants, each within ``At`` or by itself.

    Raises:
        ValueError: for an unknown site, another intervention, a rule that is a function, or a decomposition that has no
            file form.
    """
    writer = _Writer()
    sites = {model.site(site).name: [writer.intervention(one) for one in do] for site, do in plan.items()}
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
    return {model.site(site).name: [reader.intervention(one) for one in do] for site, do in record["sites"].items()}


@final
class _Writer:
    """Interventions as JSON; tensors and decompositions are kept aside, each once."""

    def __init__(self) -> None:
        self.tensors = dict[str, Tensor]()
        self.decompositions = dict[str, Autoencoder | Directions | Subspaces]()

    def intervention(self, do: object) -> dict[str, Any]:
        """One of them, with what lies within."""
        match do:
            case At(where=where, do=inner):
                place = where.to_json() if isinstance(where, Where) else self._tensor(where)
                return {"class": "At", "where": place, "do": self.intervention(inner)}
            case Steer(along=along, by=by):
                what = self._decomposition(along) if isinstance(along, Decomposition) else self._tensor(along)
                return {"class": "Steer", "along": what, "by": self._tensor(by) if isinstance(by, Tensor) else by}
            case Splice(via=via):
                return {"class": "Splice", "via": self._decomposition(via)}
            case Fix(to=to):
                return {"class": "Fix", "to": self._tensor(to)}
            case Write(via=via, parts=parts, rule=rule):
                if not isinstance(rule, Constant):
                    raise ValueError("a rule that is a function, as that of patch, cannot be saved; a Constant can")
                named = [parts] if isinstance(parts, int) else list(parts)
                return {"class": "Write", "via": self._decomposition(via), "parts": named, "to": self._tensor(rule.to)}
            case _:
                raise ValueError(
                    f"a {type(do).__name__} cannot be saved; possible are At, Steer, Splice, Fix and Write"
                )

    def _tensor(self, tensor: Tensor) -> dict[str, str]:
        name = f"tensor.{len(self.tensors)}"
        self.tensors[name] = tensor
        return {"tensor": name}

    def _decomposition(self, what: Decomposition) -> dict[str, str]:
        if not isinstance(what, Autoencoder | Directions | Subspaces):
            raise ValueError(f"a {type(what).__name__} has no file form, so that a plan with it cannot be saved")
        known = (name for name, other in self.decompositions.items() if other is what)
        name = next(known, f"decomposition.{len(self.decompositions)}")
        self.decompositions[name] = what
        return {"decomposition": name}


@final
class _Reader:
    """The inverse."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._known = folder, dict[str, Decomposition]()
        self._tensors = cast(dict[str, Tensor], load_state(folder / "tensors.safetensors")["tensors"])

    def intervention(self, saved: Mapping[str, Any]) -> Intervention:
        """One of them, with what lies within."""
        match saved["class"]:
            case "At":
                where = saved["where"]
                place = self._tensor(where) if "tensor" in where else Where.from_json(where)
                return At(place, self.intervention(saved["do"]))
            case "Steer":
                along = saved["along"]
                what = self._tensor(along) if "tensor" in along else self._decomposition(along)
                return Steer(what, self._tensor(saved["by"]) if isinstance(saved["by"], dict) else saved["by"])
            case "Splice":
                return Splice(self._decomposition(saved["via"]))
            case "Fix":
                return Fix(self._tensor(saved["to"]))
            case "Write":
                via = self._decomposition(saved["via"])
                return Write(via, tuple(saved["parts"]), Constant(self._tensor(saved["to"])))
            case other:
                raise ValueError(f"the plan in {self._folder} holds an unknown intervention {other!r}")

    def _tensor(self, saved: Mapping[str, str]) -> Tensor:
        if saved["tensor"] not in self._tensors:
            raise ValueError(f"the plan in {self._folder} lacks {saved['tensor']!r}")
        return self._tensors[saved["tensor"]]

    def _decomposition(self, saved: Mapping[str, str]) -> Decomposition:
        name = saved["decomposition"]
        if Path(name).name != name:
            raise ValueError(f"the plan in {self._folder} names {name!r}, which is no file of its own")
        if name not in self._known:
            self._known[name] = load(self._folder / f"{name}.safetensors")
        return self._known[name]
