"""Functions of a hidden state, applied at a site while the model runs.

All are values: they return a new hidden state and change nothing. ``Read`` is the write of the identity; ``Splice``
replaces a state by its reconstruction, ``Fix`` by a constant; ``Steer`` adds directions; ``At`` restricts another one
to some positions.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.decompose.base import Decomposition
from innerspace.network.site import Where
from innerspace.network.trace import Intervention, Visit


@dataclass(frozen=True, eq=False)
class Read:
    """Keep the hidden state in the trace, under the site's name or another one."""

    name: str | None = None

    def __call__(self, x: Tensor, visit: Visit) -> Tensor:
        visit.trace.hidden[self.name or visit.site.name] = x
        return x


@dataclass(frozen=True, eq=False)
class Steer:
    """x + Σᵢ τᵢ · directionᵢ, at every position (Turner et al. 2023; temperature τ as in Tas & Wagner 2025).

    ``along`` is one direction [d], several [k, d], or the directions of a decomposition. ``by`` is τ: one number, one
    per direction [k], or one per row of the batch and direction [batch, k]. τ = 0 is exactly the identity.

    Raises:
        ValueError: for directions of another width than the site's, or a shape of τ that does not fit.
    """

    along: Float[Tensor, "*k d"] | Decomposition
    by: float | Float[Tensor, "..."]

    def __call__(self, x: Tensor, visit: Visit) -> Tensor:
        if isinstance(self.by, int | float) and self.by == 0:
            return x
        along = self.along.directions if isinstance(self.along, Decomposition) else self.along
        if along.shape[-1] != x.shape[-1]:
            raise ValueError(
                f"the direction has width {along.shape[-1]}, the hidden state at {visit.site.name!r} {x.shape[-1]}: "
                f"a direction belongs to the site that it was fitted at"
            )
        if isinstance(self.by, int | float):
            total = along if along.ndim == 1 else along.sum(0)
            return torch.add(x, total.to(x), alpha=self.by)
        along = along.reshape(-1, along.shape[-1]).to(x)
        by = torch.as_tensor(self.by, dtype=x.dtype, device=x.device)
        shape = tuple(by.shape)
        if shape not in ((), along.shape[:1], (x.shape[0], len(along))):
            raise ValueError(
                f"the temperatures have shape {list(shape)}; a number, [{len(along)}] (one per direction) or "
                f"[{x.shape[0]}, {len(along)}] (one per row and direction) is possible"
            )
        change = by.expand(len(along)) @ along if by.ndim < 2 else by @ along
        if by.ndim == 2:
            change = change.view(x.shape[0], *(1,) * (x.ndim - 2), -1)
        if by.ndim < 2 or by.requires_grad:
            return x + change
        # rows with τ = 0 stay as they are, also in the sign of their zeros
        return torch.where(change == 0, x, x + change)


@dataclass(frozen=True, eq=False)
class Splice:
    """Replace the hidden state by what a decomposition makes of it: decode(encode(x)); the error is discarded."""

    via: Decomposition

    def __call__(self, x: Tensor, visit: Visit) -> Tensor:  # noqa: ARG002
        return self.via.decode(self.via.code(x).z)


@dataclass(frozen=True, eq=False)
class Fix:
    """Replace the hidden state by a constant, such as the mean over the data (mean ablation).

    Raises:
        ValueError: for a constant of another width than the site's.
    """

    to: Float[Tensor, "d"]

    def __call__(self, x: Tensor, visit: Visit) -> Tensor:
        if len(self.to) != x.shape[-1]:
            raise ValueError(
                f"the constant has width {len(self.to)}, the hidden state at {visit.site.name!r} {x.shape[-1]}"
            )
        return self.to.to(x).expand_as(x)


@dataclass(frozen=True, eq=False)
class At:
    """Another intervention, at some positions only; everything else passes as it came, bit for bit.

    Without it an intervention touches padding as well.
    """

    where: Where
    do: Intervention

    def __call__(self, x: Tensor, visit: Visit) -> Tensor:
        chosen = self.where.select(tuple(x.shape[:-1]), visit.valid(), x.device, visit.start)
        return torch.where(chosen[..., None], self.do(x, visit), x)
