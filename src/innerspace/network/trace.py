"""What a pass through a network leaves behind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Bool
from torch import Tensor

from innerspace.network.site import Site


@dataclass(eq=False, repr=False)
class Trace:
    """The outputs of one pass and the hidden states that were read on the way.

    ``output`` is empty when the pass was stopped before the end. ``memo`` keeps what is worth computing only once from
    a trace that is compared with several others.
    """

    output: Mapping[str, Tensor] = field(default_factory=dict)
    hidden: dict[str, Tensor] = field(default_factory=dict)
    memo: dict[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        parts = {"output": self.output, "hidden": self.hidden}
        told = [f"{name}: {_shapes(tensors)}" for name, tensors in parts.items() if tensors]
        return f"Trace({'; '.join(told) or 'empty'})"


class Visit(NamedTuple):
    """The occasion on which an intervention sees a hidden state: where, in which batch, and what is padding there.

    ``valid()`` gives the positions that are no padding, or None where nothing is padded. ``start`` counts the tokens
    that came by in earlier calls of the same generation.
    """

    site: Site
    batch: Any
    trace: Trace
    valid: Callable[[], Bool[Tensor, "..."] | None]
    start: int = 0


Intervention = Callable[[Tensor, Visit], Tensor]
"""A function of a hidden state that gives the hidden state to go on with; it never changes its argument."""


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
