"""repeng's ``ControlVector`` in memory, from and to directions; on disk it is GGUF (``interop/gguf.py``)."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from innerspace.decompose.directions import Directions, Origin
from innerspace.interop.layers import UNKNOWN, by_layer, from_layers


@runtime_checkable
class ControlVector(Protocol):
    """What theirs has: the network's kind, and for each block, counted from 0, a vector that is added behind it."""

    model_type: str
    directions: Mapping[int, Any]


def from_repeng(vector: ControlVector, origin: Origin = UNKNOWN) -> Directions:
    """Theirs as directions at ``resid.i``; ``origin`` says what theirs does not: feature and classes.

    Raises:
        ValueError: for no vector, a layer below 0, widths that differ, or a vector that is zero or not finite.
    """
    rows = {int(i): torch.from_numpy(np.asarray(row, dtype=np.float32).copy()) for i, row in vector.directions.items()}
    return from_layers(rows, origin)


def to_repeng(directions: Directions, model_type: str) -> Any:
    """One feature's directions at sites ``resid.i`` as a ``repeng.ControlVector``, at the step of τ = 1.

    Raises:
        ValueError: for several features or other sites, or if repeng is not installed.
    """
    vectors = {i: vector.numpy() for i, vector in by_layer(directions).items()}
    try:
        package: Any = import_module("repeng")
    except ImportError as error:
        raise ValueError(f"repeng cannot be imported ({error}); GGUF files need it not: interop.gguf") from None
    return package.ControlVector(model_type=model_type, directions=vectors)
