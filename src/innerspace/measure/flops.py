"""Counted floating-point operations: two for every multiplication with addition, in products, attention and bags."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

_aten = torch.ops.aten


def flops(call: Callable[[], object]) -> int:
    """The operations of a call, forward and backward, as its operators' shapes tell; elementwise ones do not count."""
    with FlopCounterMode(display=False, custom_mapping=_BAGS) as counter:
        call()
    return counter.get_total_flops()


def _bag(table: Any, indices: Any, *_: Any, **__: Any) -> int:
    return 2 * indices[0] * table[1]


def _dots(grad: Any, table: Any, indices: Any, *_: Any, **__: Any) -> int:  # noqa: ARG001
    return 2 * indices[0] * table[1]


_BAGS = {
    _aten._embedding_bag: _bag,
    _aten._embedding_bag_forward_only: _bag,
    _aten._embedding_bag_per_sample_weights_backward: _dots,
}
