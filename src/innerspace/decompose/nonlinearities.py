"""What makes a code sparse, and what its sparsity costs: ReLU, JumpReLU, TopK.

A nonlinearity is one frozen class: its settings are its fields; its learned numbers, if any, live in the dictionary
that uses it and are handed back at every call. A new one is a new class here, and nothing else changes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.value import Value


class Activated(NamedTuple):
    """What a nonlinearity returns: sparse entries, and what each row costs (see ``Code``)."""

    z: Float[Tensor, "*rows k"]
    cost: Float[Tensor, "*rows"]


@dataclass(frozen=True)
class Nonlinearity(Value, ABC):
    """From pre-activations to a sparse code that is never negative."""

    def parameters(self, latents: int) -> dict[str, Float[Tensor, "{latents}"]]:  # noqa: ARG002
        """Initial values of the learned numbers, one per latent; none by default.

        Raises:
            ValueError: if the settings do not fit this number of latents.
        """
        return {}

    @abstractmethod
    def __call__(self, pre: Float[Tensor, "*rows k"], parameters: Mapping[str, Tensor]) -> Activated:
        """The code and its cost."""


@dataclass(frozen=True)
class ReLU(Nonlinearity):
    """z = max(pre, 0), at the cost of its L1 norm."""

    def __call__(self, pre: Float[Tensor, "*rows k"], parameters: Mapping[str, Tensor]) -> Activated:  # noqa: ARG002
        """The code and its L1 norm."""
        z = pre.relu()
        return Activated(z, z.sum(-1))


@dataclass(frozen=True)
class JumpReLU(Nonlinearity):
    """z = pre · H(pre − θ) with a learned threshold θ > 0 per latent, at the cost of its L0 norm.

    The jump has no gradient; both z and L0 take the straight-through one of a rectangle kernel K of width ε
    (``bandwidth``), in units of the normalized rows: ∂z/∂θ = −(θ/ε) K((pre − θ)/ε), ∂L0/∂θ = −(1/ε) K((pre − θ)/ε).
    The parameter is log θ; ``threshold`` is its first value. Rajamanoharan et al. 2024, arXiv 2407.14435, who use
    0.001 for both on batches of thousands of wide states; a wider kernel suits smaller batches.
    """

    bandwidth: float = 0.02
    threshold: float = 0.05

    def __post_init__(self) -> None:
        for name in ("bandwidth", "threshold"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"JumpReLU: {name} should be positive, it is {getattr(self, name)}")

    def parameters(self, latents: int) -> dict[str, Float[Tensor, "{latents}"]]:
        """The logarithms of the thresholds."""
        return {"log_threshold": torch.full((latents,), math.log(self.threshold))}

    def __call__(self, pre: Float[Tensor, "*rows k"], parameters: Mapping[str, Tensor]) -> Activated:
        """The code and its number of entries above threshold."""
        return Activated(*cast(tuple[Tensor, Tensor], _Jump.apply(pre, parameters["log_threshold"], self.bandwidth)))


@dataclass(frozen=True)
class TopK(Nonlinearity):
    """z keeps the ``k`` largest positive pre-activations of each row, at no cost. Gao et al. 2024, arXiv 2406.04093."""

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"TopK: k should be at least 1, it is {self.k}")

    def parameters(self, latents: int) -> dict[str, Float[Tensor, "{latents}"]]:
        """None; checks that there are enough latents to choose from."""
        if self.k > latents:
            raise ValueError(f"TopK: k should be at most the number of latents, {latents}; it is {self.k}")
        return {}

    def __call__(self, pre: Float[Tensor, "*rows k"], parameters: Mapping[str, Tensor]) -> Activated:  # noqa: ARG002
        """The code, and zeros."""
        values, index = pre.topk(self.k, dim=-1, sorted=False)
        z = torch.zeros_like(pre).scatter_(-1, index, values.relu())
        return Activated(z, pre.new_zeros(pre.shape[:-1]))


class _Jump(torch.autograd.Function):
    """(pre, log θ) → (z, L0) in one pass forward and one back."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, log_threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        threshold = log_threshold.exp()
        # zeros and ones in floating point: products with them are several times faster than selections by booleans
        on = pre - threshold
        near = on.abs().lt_(bandwidth / 2)
        on.gt_(0)
        ctx.save_for_backward(threshold, on, near)
        ctx.bandwidth = bandwidth
        return pre * on, on.sum(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        to_z, to_cost = grads
        threshold, on, near = ctx.saved_tensors
        slope = torch.addcmul(to_cost.unsqueeze(-1), threshold, to_z).mul_(near).reshape(-1, len(threshold)).sum(0)
        # the factor θ turns the derivative by θ into the one by log θ
        return to_z * on, -threshold / ctx.bandwidth * slope, None
