"""steering-vectors' ``SteeringVector`` in memory, from and to directions; it has no file format of its own."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from innerspace.decompose.directions import Directions, Origin
from innerspace.interop.layers import UNKNOWN, by_layer, from_layers

_KINDS = {"decoder_block": "resid", "self_attn": "attn", "mlp": "mlp"}


@runtime_checkable
class SteeringVector(Protocol):
    """What theirs has: for each layer, counted from 0, a vector, and at which part of a block they are added."""

    layer_activations: Mapping[int, Tensor]
    layer_type: Any


def from_steering_vectors(vector: SteeringVector, origin: Origin = UNKNOWN) -> Directions:
    """Theirs as directions at ``resid.i``, ``attn.i`` or ``mlp.i``; ``origin`` says feature and classes.

    Raises:
        ValueError: for another part of a block (a norm's output), or as ``layers.from_layers``.
    """
    if (part := vector.layer_type) not in _KINDS:
        raise ValueError(f"layer_type = {part!r} is no site here; {', '.join(_KINDS)} are")
    return from_layers({int(i): row.flatten() for i, row in vector.layer_activations.items()}, origin, _KINDS[part])


def to_steering_vectors(directions: Directions) -> Any:
    """One feature's directions at sites of one kind as a ``steering_vectors.SteeringVector``, at the step of τ = 1.

    Raises:
        ValueError: for several features, sites that are none of theirs, or if steering-vectors is not installed.
    """
    kind = directions.origins[0].site.partition(".")[0]
    if kind not in _KINDS.values():
        raise ValueError(f"steering-vectors adds at {', '.join(_KINDS.values())}, not at {kind or 'nowhere'!r}")
    vectors = by_layer(directions, kind)
    try:
        package: Any = import_module("steering_vectors")
    except ImportError as error:
        raise ValueError(f"steering_vectors cannot be imported: {error}") from None
    part = next(name for name, own in _KINDS.items() if own == kind)
    return package.SteeringVector(layer_activations=vectors, layer_type=part)
