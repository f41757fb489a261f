"""Find the directions, dictionaries and subspaces inside hidden states, read them, write them, judge them."""

from innerspace.decompose.base import Decomposition
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.directions import Directions, Origin
from innerspace.decompose.subspaces import Subspaces
from innerspace.harvest.stream import TokenRule, gather
from innerspace.interventions import At, Fix, Read, Splice, Steer, Write, ablate, patch
from innerspace.learn.fit import fit
from innerspace.learn.solve import contrast
from innerspace.network.model import Family, Model
from innerspace.network.site import Site, Where
from innerspace.network.trace import Trace

__all__ = [
    "At",
    "Decomposition",
    "Dictionary",
    "Directions",
    "Family",
    "Fix",
    "Model",
    "Origin",
    "Read",
    "Site",
    "Splice",
    "Steer",
    "Subspaces",
    "TokenRule",
    "Trace",
    "Where",
    "Write",
    "ablate",
    "contrast",
    "fit",
    "gather",
    "patch",
]
