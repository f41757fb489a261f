"""Other ways to steer than by addition: with the norm kept, within a share of it, along an arc, in a plane, to a value.

All are values as those of ``interventions`` are, and change no bit where nothing is asked. Two of them go around any
other intervention: ``KeepNorm`` and ``Limit``. ``Rotate`` and ``RotateIn`` turn a state, ``Clamp`` sets or bounds how
far it lies along directions.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.decompose.base import Decomposition
from innerspace.interventions import directions_for, shift
from innerspace.network.trace import Intervention, Visit


@dataclass(frozen=True, eq=False)
class KeepNorm:
    """y · ‖x‖ / ‖y‖, where y is what another intervention makes of x: the state turns and keeps its length.

    With ``Steer`` inside, x′ = (x + Σᵢ τᵢ dᵢ) · ‖x‖ / ‖x + Σᵢ τᵢ dᵢ‖. A state that becomes zero stays zero.
    """

    do: Intervention

    def __call__(self, x: Tensor, visit: Visit) -> Tensor:
        y = self.do(x, visit)
        # the ratio is exactly one where nothing was changed
        return y * (_length(x) / _length(y).clamp(min=torch.finfo(y.dtype).tiny))


@dataclass(frozen=True, eq=False)
class Limit:
    """x + (y − x) · min(1, share · ‖x‖ / ‖y − x‖), where y is what another intervention makes of x.

    So a state moves by at most ``share`` of its own length, in the direction in which it would have moved.

    Raises:
        ValueError: for a share below zero.
    """

    do: Intervention
    share: float

    def __post_init__(self) -> None:
        if not self.share >= 0:
            raise ValueError(f"the share of the norm should not be negative, it is {self.share}")

    def __call__(self, x: Tensor, visit: Visit) -> Tensor:
        y = self.do(x, visit)
        change, bound = y - x, self.share * _length(x)
        length = _length(change)
        over = length > bound
        # division by one where nothing is cut keeps the gradient finite
        return torch.where(over, x + change * (bound / length.where(over, 1)), y)


@dataclass(frozen=True, eq=False)
class Rotate:
    """Turn every state towards c = Σᵢ τᵢ dᵢ in the plane of both, by the arc that is as long as c is across x.

    x′ = x cos α + c⊥ sin α / α with c⊥ = c − (c · x̂) x̂ and α = ‖c⊥‖ / ‖x‖ radians: the exponential map of the sphere
    on which the state lies. The norm is kept, and for small τ it is ``Steer`` without what that adds along x, so that
    temperatures compare. ``along`` and ``by`` are as those of ``Steer``. A state of zero has no direction and stays.

    Raises:
        ValueError: as ``Steer``.
    """

    along: Float[Tensor, "*k d"] | Decomposition
    by: float | Float[Tensor, "..."]

    def __call__(self, x: Tensor, visit: Visit) -> Tensor:
        change, length = shift(directions_for(self.along, x, visit), self.by, x), _length(x)
        unit = x / length.where(length > 0, 1)
        across = (change - (change * unit).sum(-1, keepdim=True) * unit).where(length > 0, 0)
        angle = _length(across) / length.where(length > 0, 1)
        # torch.sinc takes another angle than the cosine does, by the rounding of π, and the norm would suffer
        sinc = torch.where(angle > 0, angle.sin() / angle.where(angle > 0, 1), 1)
        turned = x * angle.cos() + across * sinc
        return turned if change.requires_grad else torch.where(angle == 0, x, turned)


@dataclass(frozen=True, eq=False)
class RotateIn:
    """Turn what a state holds of a fixed plane, by an angle θ in radians; all else stays, and so does the norm.

    x′ = x + B (R(θ) − 1) Bᵀ x with R(θ) the rotation by θ, and B an orthonormal basis of the ``plane`` whose first
    axis lies along the first of its two vectors; a positive angle turns from the first to the second. With
    ``absolute`` the angle is not added but set: x′ = x + B (‖Bᵀx‖ (cos θ, sin θ)ᵀ − Bᵀ x), so that θ = 0 points all
    of it along the first vector. ``by`` is one angle or one per row of the batch [batch].

    Vu and Nguyen, "Angular Steering", NeurIPS 2025, arXiv 2510.26243; there the first vector is a feature's
    difference of means, the second the first principal component of such differences over layers.

    Raises:
        ValueError: for anything but two vectors that are not parallel, another width than the site's, or a shape of
            the angles that does not fit.
    """

    plane: Float[Tensor, "two d"]
    by: float | Float[Tensor, "..."]
    absolute: bool = False

    def __post_init__(self) -> None:
        if self.plane.ndim != 2 or len(self.plane) != 2:
            raise ValueError(f"a plane is given by two vectors [2, d], not by {list(self.plane.shape)}")
        first, second = (self.plane.detach() / _length(self.plane.detach())).double()
        if not float((second - (second @ first) * first).norm()) > 1e-6:
            raise ValueError("a plane is given by two vectors that are not parallel; these are, or one of them is zero")

    def __call__(self, x: Tensor, visit: Visit) -> Tensor:
        first, second = directions_for(self.plane, x, visit).to(x)
        first = first / _length(first)
        second = second - (second @ first) * first
        second = second / _length(second)
        angle = torch.as_tensor(self.by, dtype=x.dtype, device=x.device)
        if tuple(angle.shape) not in ((), (x.shape[0],)):
            raise ValueError(
                f"the angles have shape {list(angle.shape)}; a number or [{x.shape[0]}] (one per row) is possible"
            )
        angle = angle.view(*angle.shape, *(1,) * (x.ndim - 2)) if angle.ndim else angle
        cos, sin = angle.cos(), angle.sin()
        p, q = x @ first, x @ second
        if self.absolute:
            radius = torch.hypot(p, q)
            a, b = radius * cos, radius * sin
        else:
            a, b = p * cos - q * sin, p * sin + q * cos
        change = (a - p)[..., None] * first + (b - q)[..., None] * second
        return x + change if change.requires_grad else torch.where(change == 0, x, x + change)


@dataclass(frozen=True, eq=False)
class Clamp:
    """Bound how far a state lies along directions: its coordinates there come to lie in [low, high].

    x′ = x + Σᵢ (clamp(zᵢ) − zᵢ) dᵢ, where z are the least-squares coordinates of x in the directions as they are given
    (for ``Directions`` one unit is one class-mean gap). Equal bounds set the coordinates, as feature clamping does
    (Templeton et al. 2024); what lies within the bounds stays, bit for bit. Each bound is a number, one per direction
    [k], or one per row of the batch and direction [batch, k]; None is no bound.

    Raises:
        ValueError: without any bound, for directions of another width than the site's or that depend on each other,
            or a shape of the bounds that does not fit.
    """

    along: Float[Tensor, "*k d"] | Decomposition
    low: float | Float[Tensor, "..."] | None = None
    high: float | Float[Tensor, "..."] | None = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError("a clamp needs a lower bound, an upper one, or both; equal ones set a value")

    def __call__(self, x: Tensor, visit: Visit) -> Tensor:
        along = directions_for(self.along, x, visit)
        along = along.reshape(-1, along.shape[-1]).to(x)
        unit = along / _length(along)
        # the Gram matrix of unit vectors is singular where they depend on each other, whatever their lengths
        gram = unit @ unit.T
        if not float(torch.linalg.eigvalsh(gram.detach().double())[0]) > 1e-6:
            raise ValueError(f"the {len(along)} directions depend on each other: their coordinates cannot be set apart")
        z = torch.linalg.solve(gram, unit @ x.reshape(-1, x.shape[-1]).T).T / _length(along).T
        z = z.view(*x.shape[:-1], len(along))
        low, high = (self._bound(bound, x, len(along)) for bound in (self.low, self.high))
        change = (z.clamp(low, high) - z) @ along
        return x + change if change.requires_grad else torch.where(change == 0, x, x + change)

    def _bound(self, bound: float | Tensor | None, x: Tensor, count: int) -> Tensor | None:
        if bound is None:
            return None
        bound = torch.as_tensor(bound, dtype=x.dtype, device=x.device)
        if tuple(bound.shape) not in ((), (count,), (x.shape[0], count)):
            raise ValueError(
                f"the bounds have shape {list(bound.shape)}; a number, [{count}] (one per direction) or "
                f"[{x.shape[0]}, {count}] (one per row and direction) is possible"
            )
        return bound.view(x.shape[0], *(1,) * (x.ndim - 2), count) if bound.ndim == 2 else bound


def _length(x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows one"]:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)
