"""Find the directions, dictionaries and subspaces inside hidden states, read them, write them, judge them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from innerspace.decompose.base import Decomposition
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.directions import Directions, Origin
from innerspace.decompose.subspaces import Subspaces
from innerspace.interventions import At, Fix, Read, Splice, Steer, Write, ablate, patch
from innerspace.network.model import Family, Model
from innerspace.network.modules import Modules
from innerspace.network.site import Site, Where
from innerspace.network.trace import Trace

if TYPE_CHECKING:
    from innerspace.decompose.saved import load
    from innerspace.harvest.stream import TokenRule, gather
    from innerspace.language.causal_lm import CausalLM
    from innerspace.language.text import Text
    from innerspace.learn.fit import FitConfig, fit
    from innerspace.learn.solve import contrast
    from innerspace.report.views import view

_LATER = {
    "CausalLM": "language.causal_lm",
    "FitConfig": "learn.fit",
    "Text": "language.text",
    "TokenRule": "harvest.stream",
    "contrast": "learn.solve",
    "fit": "learn.fit",
    "gather": "harvest.stream",
    "load": "decompose.saved",
    "view": "report.views",
}

__all__ = [
    "At",
    "CausalLM",
    "Decomposition",
    "Dictionary",
    "Directions",
    "Family",
    "FitConfig",
    "Fix",
    "Model",
    "Modules",
    "Origin",
    "Read",
    "Site",
    "Splice",
    "Steer",
    "Subspaces",
    "Text",
    "TokenRule",
    "Trace",
    "Where",
    "Write",
    "ablate",
    "contrast",
    "fit",
    "gather",
    "load",
    "patch",
    "view",
]


def __getattr__(name: str) -> Any:
    """What most sessions do not need is imported when it is asked for."""
    if name not in _LATER:
        raise AttributeError(f"module 'innerspace' has no attribute {name!r}")
    return getattr(import_module(f"innerspace.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
