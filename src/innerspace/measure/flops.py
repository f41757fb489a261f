"""Counted floating-point operations: two for every multiplication with addition, in products, attention and bags."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

_aten = torch.ops.aten

PEAKS = {
    "A100": (19.5e12, 312e12),
    "H100": (67e12, 989e12),
    "H200": (67e12, 989e12),
    "B200": (80e12, 2250e12),
    "L40S": (91.6e12, 362e12),
    "RTX 4090": (82.6e12, 165e12),
    "RTX 3090": (35.6e12, 71e12),
}
"""Dense products a second by the makers' data sheets, in float32 and bfloat16."""


def peak(device: str, precision: str) -> float | None:
    """The peak of a graphics card, by its name, in operations a second; None for what is not in the table."""
    found = next((peaks for name, peaks in PEAKS.items() if name in device), None)
    return None if found is None else found[precision == "bfloat16"]


def flops(call: Callable[[], object]) -> int:
    """The operations of a call, forward and backward, as its operators' shapes tell; elementwise ones do not count."""
    with FlopCounterMode(display=False, custom_mapping=_OPERATIONS) as counter:
        call()
    return counter.get_total_flops()


def _bag(table: Any, indices: Any, *_: Any, **__: Any) -> int:
    return 2 * indices[0] * table[1]


def _dots(grad: Any, table: Any, indices: Any, *_: Any, **__: Any) -> int:  # noqa: ARG001
    return 2 * indices[0] * table[1]


def _linear(rows: Any, matrix: Any, *_: Any, **__: Any) -> int:
    return 2 * rows[0] * rows[1] * matrix[0]


_OPERATIONS: dict[Any, Callable[..., int]] = {
    _aten._embedding_bag: _bag,
    _aten._embedding_bag_forward_only: _bag,
    _aten._embedding_bag_per_sample_weights_backward: _dots,
}
if torch.backends.mkldnn.is_available():
    _OPERATIONS[torch.ops.mkldnn._linear_pointwise] = _linear
