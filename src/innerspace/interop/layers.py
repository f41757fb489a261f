"""Control vectors as other tools keep them: one vector for each layer, which strength 1 adds to the hidden state.

Of ours that is the row of ``Directions.directions``: what τ = 1 adds, the unit vector times the gap of the class means.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.decompose.directions import Directions, Origin
from innerspace.interop.places import layer

UNKNOWN = Origin("control", "positive", "negative")
"""What a file of vectors alone tells of where they come from."""

_LAYERS = 4096
"""No network has more."""


def by_layer(directions: Directions, kind: str = "resid") -> dict[int, Float[Tensor, "d"]]:
    """The vectors of one feature by layer, in single precision; each comes from the site ``kind.i`` of a layer i.

    Raises:
        ValueError: for several features or methods, another kind of site, or two vectors of one layer.
    """
    first, found = directions.origins[0], dict[int, Tensor]()
    for origin, row in zip(directions.origins, directions.directions, strict=True):
        if (origin.feature, origin.method) != (first.feature, first.method):
            raise ValueError(
                f"one file holds one control vector, these are of {first.feature!r} by {first.method or 'hand'} and of "
                f"{origin.feature!r} by {origin.method or 'hand'}; select one"
            )
        if origin.site.partition(".")[0] != kind:
            raise ValueError(f"vectors for layers come from sites {kind}.i, this one from {origin.site or 'nowhere'!r}")
        if (i := layer(origin.site)) in found:
            raise ValueError(f"there are two vectors for layer {i}")
        found[i] = row.detach().cpu().float().contiguous()
    return dict(sorted(found.items()))


def from_layers(vectors: Mapping[int, Float[Tensor, "_"]], origin: Origin, kind: str = "resid") -> Directions:
    """One direction for each layer, at the site ``kind.i``, whose step is the vector itself.

    Raises:
        ValueError: for no vector, numbers that are no layers, widths that differ, or a vector that is zero or infinite.
    """
    if not vectors:
        raise ValueError("a control vector has at least one layer, this one has none")
    for i, vector in vectors.items():
        if isinstance(cast(object, i), bool) or not isinstance(cast(object, i), int) or not 0 <= i < _LAYERS:
            raise ValueError(f"layers are numbers from 0, not {i!r}")
        if vector.ndim != 1:
            raise ValueError(f"layer {i} should have one vector, it has the shape {list(vector.shape)}")
    if len(widths := {len(vector) for vector in vectors.values()}) > 1:
        raise ValueError(f"the vectors of all layers should have one width, they have {sorted(widths)}")
    rows = torch.stack([vector.detach().cpu().float() for _, vector in sorted(vectors.items())])
    origins = [replace(origin, site=f"{kind}.{i}") for i in sorted(vectors)]
    return Directions(rows, rows.norm(dim=1), origins)
