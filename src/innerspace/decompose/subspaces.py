"""Subspaces: a rotation and a partition, so that every hidden state has one coordinate vector in each of several parts.

The rows of an orthogonal R are directions, z = R x, and the coordinates of z fall into consecutive parts of sizes
d₁ ≥ d₂ ≥ …. Nothing is lost: decode(encode(x)) = x. Huang and Hahn, "Decomposing Representation Space into
Interpretable Subspaces with Unsupervised Learning", arXiv 2508.01916.

R is learned through a *turn* T, of which only the entries below the diagonal count: A = T_lower − T_lowerᵀ is skew, and
R = exp(A) · base is orthogonal. In the *moving* chart a step is folded into the base at once (``retract``, by a Cayley
transform), so the turn is zero whenever a gradient is taken and the gradient needs no exponential. In the *exponential*
chart, that of the paper, the turn stays until the parts change, and the gradient passes through the exponential.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from innerspace.checkpoint import load_state, save_state
from innerspace.decompose.base import Code, Decomposition, Home, check_place
from innerspace.decompose.sparse import Sparse, weighted_sum

_FORMAT = "innerspace subspaces 1"
_TOLERANCE = 1e-3
"""How far from orthogonal a matrix may be that is taken for a rotation and mended."""

Chart = Literal["moving", "exponential"]


@final
class Subspaces(Decomposition):
    """An orthogonal partition of a hidden space of width d into parts.

    Args:
        rotation: R, orthogonal; row i is the direction of coordinate i.
        sizes: how many consecutive rows belong to each part.
        home: the network and the site that it was fitted to, if any.
        chart: how R is learned, see above.

    Raises:
        ValueError: for a matrix that is not square, finite and orthogonal to 1e-3, or sizes that do not add up to d.
    """

    base: Tensor
    member: Tensor

    def __init__(
        self,
        rotation: Float[Tensor, "d d"],
        sizes: Sequence[int],
        *,
        home: Home | None = None,
        chart: Chart = "moving",
    ) -> None:
        super().__init__()
        _check_sizes(sizes, len(rotation))
        error = _departure(rotation)
        if not error <= _TOLERANCE:
            raise ValueError(f"the matrix is not orthogonal: R Rᵀ differs from 1 by up to {error:.2g}")
        self.home, self.chart = home, chart
        self.register_buffer("base", nearest_rotation(rotation.detach()))
        self.register_buffer("member", _members(sizes, rotation.device))
        self.turn = nn.Parameter(torch.zeros_like(self.base))

    @staticmethod
    def identity(width: int, sizes: Sequence[int], *, chart: Chart = "moving") -> "Subspaces":
        """The coordinates as they are, in their order."""
        return Subspaces(torch.eye(width), sizes, chart=chart)

    @staticmethod
    def random(width: int, sizes: Sequence[int], generator: torch.Generator, *, chart: Chart = "moving") -> "Subspaces":
        """A rotation drawn evenly from all (Haar): the control of every experiment."""
        return Subspaces(random_rotation(width, generator), sizes, chart=chart)

    @property
    def width(self) -> int:
        """d, the width of the hidden space."""
        return len(self.base)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The dimensions of the parts, the largest first wherever they were merged or split."""
        return tuple(torch.bincount(self.member).tolist())

    @property
    def parts(self) -> list[slice]:
        """The coordinates of each part."""
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        return [slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]

    @property
    def rotation(self) -> Float[Tensor, "d d"]:
        """R, differentiable in the turn."""
        if self.chart == "moving":
            return cast(Tensor, _Turned.apply(self.turn, self.base))
        return torch.linalg.matrix_exp(_skew(self.turn)) @ self.base

    @property
    def directions(self) -> Float[Tensor, "d d"]:
        """The rows of R, of unit norm."""
        return self.rotation

    def encode(self, x: Float[Tensor, "*rows d"]) -> Code:
        """Z = R x; dense, and it costs nothing.

        Raises:
            ValueError: for hidden states of another width.
        """
        if x.shape[-1] != self.width:
            raise ValueError(f"the hidden states have width {x.shape[-1]}, the subspaces divide width {self.width}")
        z = x @ self.rotation.T
        return Code(z, z, z.new_zeros(z.shape[:-1]))

    def decode(self, z: Float[Tensor, "*rows d"] | Sparse) -> Float[Tensor, "*rows d"]:
        """X = Rᵀ z."""
        return weighted_sum(z, self.rotation) if isinstance(z, Sparse) else z @ self.rotation

    def basis(self, part: int) -> Float[Tensor, "size d"]:
        """Orthonormal rows that span a part.

        Raises:
            ValueError: for a part that is not there.
        """
        if not 0 <= part < len(self.parts):
            raise ValueError(f"there is no part {part}; the {len(self.parts)} parts are 0 … {len(self.parts) - 1}")
        return self.rotation[self.parts[part]]

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Remove what turns a part within itself: it changes no subspace, and is zero but for rounding."""
        if (gradient := self.turn.grad) is not None:
            gradient.masked_fill_(self.member[:, None] == self.member, 0)

    @torch.no_grad()
    def retract(self) -> None:
        """In the moving chart, fold the turn into the base: R ← Cay(A) R, and one step towards orthogonality."""
        if self.chart == "moving":
            half = _skew(self.turn) / 2
            one = torch.eye(self.width, dtype=half.dtype, device=half.device)
            turned = torch.linalg.solve(one - half, self.base + half @ self.base)
            self._begin_from(torch.addmm(turned, turned @ turned.T, turned, beta=1.5, alpha=-0.5))

    @torch.no_grad()
    def settle(self) -> None:
        """Fold the turn into the base, whatever the chart, and make that orthogonal to rounding."""
        self._begin_from(nearest_rotation(self.rotation))

    @torch.no_grad()
    def arrange(self, parts: Sequence[Sequence[int]]) -> Int[Tensor, "d"]:
        """New parts, in place: the coordinates of each, which become consecutive; larger parts come first.

        Gives the former place of every coordinate, by which an optimizer's moments can follow.

        Raises:
            ValueError: if the parts are empty, or do not name every coordinate once.
        """
        named = sorted(coordinate for part in parts for coordinate in part)
        if named != list(range(self.width)) or not all(len(part) for part in parts):
            raise ValueError(f"parts should name every coordinate 0 … {self.width - 1} once, and none be empty")
        ranked = sorted(parts, key=len, reverse=True)
        order = torch.tensor([c for part in ranked for c in part], device=self.base.device)
        self.settle()
        self.base.copy_(self.base[order])
        self.member.copy_(_members([len(part) for part in ranked], self.member.device))
        return order

    def merge(self, *groups: Sequence[int]) -> Int[Tensor, "d"]:
        """Make one part of the parts of each group, in place; gives the order of ``arrange``.

        Raises:
            ValueError: for parts that are not there, or that are named twice.
        """
        named = [part for group in groups for part in group]
        places = [list(range(part.start, part.stop)) for part in self.parts]
        if len(set(named)) < len(named) or not all(0 <= part < len(places) for part in named):
            raise ValueError(f"groups should name parts 0 … {len(places) - 1}, each once; they are {list(groups)}")
        merged = [[coordinate for part in group for coordinate in places[part]] for group in groups if group]
        kept = [place for part, place in enumerate(places) if part not in named]
        return self.arrange([*merged, *kept])

    def split(self, part: int, sizes: Sequence[int]) -> Int[Tensor, "d"]:
        """Divide a part into consecutive ones, in place; gives the order of ``arrange``.

        Raises:
            ValueError: for a part that is not there, or sizes that do not add up to its own.
        """
        own = self.parts
        _check_sizes(sizes, len(self.basis(part)))
        bounds = torch.tensor([0, *sizes]).cumsum(0).add(own[part].start).tolist()
        pieces = [list(range(a, b)) for a, b in pairwise(bounds)]
        others = [list(range(one.start, one.stop)) for i, one in enumerate(own) if i != part]
        return self.arrange([*others, *pieces])

    @torch.no_grad()
    def turn_together(self, parts: Sequence[int], rotation: Float[Tensor, "n n"]) -> None:
        """Turn the joint space of some parts by a rotation, in place: the way out of a local minimum."""
        rows = torch.cat([torch.arange(self.width)[self.parts[part]] for part in parts]).to(self.base.device)
        self.settle()
        self.base[rows] = rotation.to(self.base) @ self.base[rows]

    def check(self, model: str, site: str, width: int) -> None:
        """Refuse a place to which the subspaces do not belong: another width, or another network or site.

        Raises:
            ValueError: naming what differs.
        """
        check_place(self.width, self.home, Home(model, site), width)

    def extra_repr(self) -> str:
        """The width and the sizes of the parts."""
        return f"{self.width} = {' + '.join(map(str, self.sizes))}"

    def save(self, path: Path | str) -> None:
        """Write a safetensors file that holds everything, and beside it the partition as JSON to read."""
        path = Path(path)
        settled = nearest_rotation(self.rotation.detach())
        home = None if self.home is None else self.home.to_json()
        about = {"format": _FORMAT, "width": self.width, "sizes": list(self.sizes), "home": home}
        save_state(path, {**about, "rotation": settled, "chart": self.chart})
        path.with_suffix(".json").write_text(json.dumps({**about, "tensors": path.name}, indent=2) + "\n")

    @staticmethod
    def load(path: Path | str) -> "Subspaces":
        """Read what ``save`` wrote, ready for use (in evaluation mode).

        Raises:
            ValueError: for a file that is missing, damaged or not ours.
        """
        state = load_state(Path(path))
        if state.get("format") != _FORMAT:
            raise ValueError(f"{path} holds {state.get('format', 'another snapshot')!r}, not {_FORMAT!r}")
        home = None if state["home"] is None else Home.from_json(state["home"])
        return Subspaces(state["rotation"], state["sizes"], home=home, chart=state["chart"]).eval()

    def _begin_from(self, rotation: Tensor) -> None:
        self.base.copy_(rotation)
        self.turn.zero_()


def even_sizes(width: int, unit: int) -> list[int]:
    """Parts of ``unit`` dimensions each; if that does not divide the width, the last one is smaller.

    Raises:
        ValueError: for a unit below one or above the width.
    """
    if not 1 <= unit <= width:
        raise ValueError(f"parts of a space of width {width} have 1 … {width} dimensions, not {unit}")
    whole, rest = divmod(width, unit)
    return [unit] * whole + [rest] * (rest > 0)


def random_rotation(width: int, generator: torch.Generator) -> Float[Tensor, "{width} {width}"]:
    """An orthogonal matrix drawn evenly from all (Haar)."""
    noise = torch.randn(width, width, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(noise)
    return (q * r.diagonal().sign()).float()


def nearest_rotation(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The orthogonal matrix that is nearest to one: its polar factor, computed in double precision."""
    u, _, v = torch.linalg.svd(matrix.double())
    return (u @ v).to(matrix.dtype)


class _Turned(torch.autograd.Function):
    """exp(A) · base at A = 0: the base itself, with the gradient of the turn."""

    @staticmethod
    def forward(ctx: Any, turn: Tensor, base: Tensor) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(base)
        return base.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (base,) = ctx.saved_tensors
        outer = grads[0] @ base.T
        return (outer - outer.T).tril(-1), None


def _skew(turn: Tensor) -> Tensor:
    lower = turn.tril(-1)
    return lower - lower.T


def _departure(matrix: Tensor) -> float:
    """The largest entry of |R Rᵀ − 1|; not a number if R is not finite."""
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a rotation is square, the matrix has shape {tuple(matrix.shape)}")
    double = matrix.detach().double()
    product = double @ double.T
    product.diagonal().sub_(1)
    return float(product.abs().max())


def _check_sizes(sizes: Sequence[int], total: int) -> None:
    if min(sizes, default=0) < 1 or sum(sizes) != total:
        raise ValueError(f"the sizes of parts should be positive and add up to {total}; they are {list(sizes)}")


def _members(sizes: Sequence[int], device: torch.device) -> Tensor:
    return torch.arange(len(sizes), device=device).repeat_interleave(torch.tensor(sizes, device=device))
