"""A few directions with names: control vectors, probe normals, principal axes, and their algebra.

A direction has three lengths, kept apart. Its *raw norm* is what the estimator happened to return. Its *gap* is
(μ⁺ − μ⁻) · unit, how far apart the class means lie along it, and is the step that τ = 1 takes. Its *unit* vector has
length one, which is the step of the paper's unit-norm temperature. So temperatures of different methods compare.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.checkpoint import load_state, save_state
from innerspace.decompose.base import Code, Decomposition
from innerspace.decompose.sparse import Sparse, weighted_sum
from innerspace.value import Value

_FORMAT = "innerspace directions 1"


@dataclass(frozen=True)
class Origin(Value):
    """Where a direction comes from: it points from the ``negative`` class of a feature to the ``positive`` one.

    ``tokens`` is the rule that chose the positions, ``split`` the part of the data that the fit has seen, ``model`` the
    hash of the network; an empty string says that it is not known.
    """

    feature: str
    positive: str
    negative: str
    method: str = ""
    site: str = ""
    tokens: str = ""
    split: str = ""
    model: str = ""


@final
class Directions(Decomposition):
    """k directions in a hidden space of width d; one unit of a coordinate is one gap between class means.

    Every operation returns a new object and acts on ``directions``, the rows ``unit · gap``. After a sum or an
    orthogonalization the gap is the length of the new row; for mean differences made orthogonal to others that is
    still the exact gap of the class means along what is left.

    Args:
        raw: the vectors as estimated, pointing from the negative to the positive class.
        gap: the class-mean gap along each, in the hidden space's units.
        origins: one record per direction.

    Raises:
        ValueError: for a vector or a gap that is zero or not finite, a gap below zero, or counts that differ.
    """

    unit: Tensor
    norm: Tensor
    gap: Tensor
    _inverse: Tensor

    def __init__(self, raw: Float[Tensor, "k d"], gap: Float[Tensor, "k"], origins: Sequence[Origin]) -> None:
        super().__init__()
        if not len(raw) == len(gap) == len(origins) > 0:
            raise ValueError(
                f"one vector, gap and origin per direction are needed, got {len(raw)}, {len(gap)}, {len(origins)}"
            )
        raw = raw.detach()
        norm = raw.norm(dim=1)
        for name, lengths in (("norm", norm), ("gap", gap)):
            for length, origin in zip(lengths.tolist(), origins, strict=True):
                if not 0 < length < float("inf"):
                    raise ValueError(
                        f"the direction of {_name(origin)} has the {name} {length}; a positive one is needed"
                    )
        self.origins = tuple(origins)
        self.register_buffer("unit", raw / norm[:, None])
        self.register_buffer("norm", norm)
        self.register_buffer("gap", gap.detach().to(raw))
        self.register_buffer("_inverse", torch.linalg.pinv(self.directions.double()).to(raw.dtype))

    @staticmethod
    def oriented(
        raw: Float[Tensor, "k d"], difference: Float[Tensor, "k d"], origins: Sequence[Origin]
    ) -> "Directions":
        """Directions whose sign and gap follow from the differences of the class means, μ⁺ − μ⁻.

        Raises:
            ValueError: for a zero vector, or one along which the class means do not differ.
        """
        projection = (raw * difference).sum(1)
        bound = torch.finfo(raw.dtype).eps * raw.norm(dim=1) * difference.norm(dim=1)
        for origin, flat in zip(origins, (projection.abs() <= bound).tolist(), strict=True):
            if flat:
                raise ValueError(f"the class means of {_name(origin)} do not differ along the direction, or it is zero")
        return Directions(raw * projection.sign()[:, None], projection.abs() / raw.norm(dim=1), origins)

    @staticmethod
    def concatenate(items: "Sequence[Directions]") -> "Directions":
        """The rows of several objects in one.

        Raises:
            ValueError: if there is none, or the widths differ.
        """
        if len({item.width for item in items}) != 1:
            raise ValueError(f"directions of one width are needed, got {[item.width for item in items]}")
        origins = [origin for item in items for origin in item.origins]
        return Directions(torch.cat([item.raw for item in items]), torch.cat([item.gap for item in items]), origins)

    @property
    def parts(self) -> list[slice]:
        """One each."""
        return [slice(i, i + 1) for i in range(len(self))]

    @property
    def directions(self) -> Float[Tensor, "k d"]:
        """The unit vectors times their gaps: what τ = 1 adds."""
        return self.unit * self.gap[:, None]

    @property
    def raw(self) -> Float[Tensor, "k d"]:
        """The vectors at the length that the estimator gave them."""
        return self.unit * self.norm[:, None]

    @property
    def width(self) -> int:
        """d, the width of the hidden space."""
        return self.unit.shape[1]

    def encode(self, x: Float[Tensor, "*rows d"]) -> Code:
        """The least-squares coordinates in gap units: the z of least norm that minimizes ‖x − z · directions‖."""
        z = x @ self._inverse
        return Code(z, z, x.new_zeros(x.shape[:-1]))

    def decode(self, z: Float[Tensor, "*rows k"] | Sparse) -> Float[Tensor, "*rows d"]:
        """The sum of the steps, z · directions; linear, for directions know no origin."""
        return weighted_sum(z, self.directions) if isinstance(z, Sparse) else self.lift(z)

    def projected_out(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """Hidden states without what lies in the span of these directions."""
        return x - self.decode(self.encode(x).z)

    def select(self, *features: str) -> "Directions":
        """The directions of some features, in the order asked.

        Raises:
            ValueError: for a feature that is not here, naming those that are.
        """
        present = [origin.feature for origin in self.origins]
        for feature in features:
            if feature not in present:
                raise ValueError(f"no direction of {feature!r}; present are {', '.join(present)}")
        rows = [i for feature in features for i, name in enumerate(present) if name == feature]
        return Directions(self.raw[rows], self.gap[rows], [self.origins[i] for i in rows])

    def angles(self, other: "Directions | None" = None) -> Float[Tensor, "k m"]:
        """Angles in degrees between every two directions, of this object or of this and another one."""
        a, b = self.unit.double()[:, None], (self if other is None else other).unit.double()[None]
        # exact for small angles, where the arc cosine of a product is not
        return torch.rad2deg(2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))).to(self.unit.dtype)

    def negated(self) -> "Directions":
        """The opposite directions, with the classes' names swapped."""
        swapped = [dataclasses.replace(o, positive=o.negative, negative=o.positive) for o in self.origins]
        return Directions(-self.raw, self.gap, swapped)

    def orthogonalized(self, against: "Directions") -> "Directions":
        """Every direction without its part in the span of others: speed, say, at fixed agent type.

        Raises:
            ValueError: if a direction lies in that span.
        """
        rows, others = self.directions.double(), against.unit.double()
        rest = rows - rows @ torch.linalg.pinv(others) @ others
        names = ", ".join(dict.fromkeys(origin.feature for origin in against.origins))
        for origin, share in zip(self.origins, (rest.norm(dim=1) / self.gap).tolist(), strict=True):
            if share < 1e-6:
                raise ValueError(f"the direction of {_name(origin)} lies in the span of {names}; nothing is left")
        origins = [dataclasses.replace(origin, method=f"{origin.method} ⟂ {names}") for origin in self.origins]
        return _stepping(rest.to(self.unit.dtype), origins)

    def random_like(self, generator: torch.Generator) -> "Directions":
        """Isotropic random directions that take equally long steps: the control of every steering experiment."""
        noise = torch.randn(self.unit.shape, generator=generator, dtype=self.unit.dtype).to(self.unit.device)
        origins = [dataclasses.replace(origin, method="random") for origin in self.origins]
        return Directions(noise * (self.norm / noise.norm(dim=1))[:, None], self.gap, origins)

    def to_unit_temperature(self, tau: int | float | Float[Tensor, "*rows k"]) -> Float[Tensor, "*rows k"]:
        """The temperatures along the unit vectors that take the same steps: τ · gap."""
        return tau * self.gap

    def from_unit_temperature(self, tau: int | float | Float[Tensor, "*rows k"]) -> Float[Tensor, "*rows k"]:
        """The inverse of ``to_unit_temperature``: τ / gap."""
        return tau / self.gap

    def extra_repr(self) -> str:
        """One line per direction: feature, classes, method and gap."""
        rows = zip(self.origins, self.gap.tolist(), strict=True)
        return "\n".join(f"{_name(origin)} by {origin.method or 'hand'}, gap {gap:.4g}" for origin, gap in rows)

    def __len__(self) -> int:
        return len(self.origins)

    def __add__(self, other: "Directions") -> "Directions":
        """The sums of the gap-scaled rows, one by one; steering along a sum is steering along both."""
        if self.unit.shape != other.unit.shape:
            raise ValueError(f"directions of one shape can be added, got {list(self.unit.shape)}, {other.unit.shape}")
        origins = [_joined(a, b) for a, b in zip(self.origins, other.origins, strict=True)]
        return _stepping(self.directions + other.directions, origins)

    def __mul__(self, factor: int | float) -> "Directions":
        """Longer or shorter steps; a factor below zero turns the directions round."""
        if factor < 0:
            return self.negated() * -factor
        origins = [dataclasses.replace(origin, method=f"{factor:g} · {origin.method}") for origin in self.origins]
        return Directions(self.raw * factor, self.gap * factor, origins)

    __rmul__ = __mul__

    def save(self, path: Path | str) -> None:
        """Write a safetensors file that holds everything, and beside it its origins and lengths as JSON to read."""
        path = Path(path)
        origins = [origin.to_json() for origin in self.origins]
        save_state(path, {"format": _FORMAT, "raw": self.raw, "gap": self.gap, "origins": origins})
        lengths = zip(origins, self.norm.tolist(), self.gap.tolist(), strict=True)
        rows = [{**origin, "norm": norm, "gap": gap} for origin, norm, gap in lengths]
        twin = {"format": _FORMAT, "tensors": path.name, "width": self.width, "directions": rows}
        path.with_suffix(".json").write_text(json.dumps(twin, indent=2) + "\n")

    @staticmethod
    def load(path: Path | str, expect_width: int | None = None) -> "Directions":
        """Read what ``save`` wrote, ready for use (in evaluation mode).

        Raises:
            ValueError: for a file that is missing, damaged, not ours, or made for another width.
        """
        state = load_state(Path(path))
        if state.get("format") != _FORMAT:
            raise ValueError(f"{path} holds {state.get('format', 'another snapshot')!r}, not {_FORMAT!r}")
        raw = cast(Tensor, state["raw"])
        if expect_width not in (None, raw.shape[1]):
            raise ValueError(f"{path} holds directions of width {raw.shape[1]}, the hidden state has {expect_width}")
        origins = [Origin.from_json(item) for item in cast(list[Any], state["origins"])]
        return Directions(raw, state["gap"], origins).eval()


def _stepping(rows: Float[Tensor, "k d"], origins: Sequence[Origin]) -> Directions:
    """Directions whose step is the row itself."""
    return Directions(rows, rows.norm(dim=1), origins)


def _name(origin: Origin) -> str:
    return f"{origin.feature!r} ({origin.negative} → {origin.positive})"


def _joined(a: Origin, b: Origin) -> Origin:
    fields = {field.name: (getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(Origin)}
    joined = {name: x if x == y else f"{x} + {y}" for name, (x, y) in fields.items()}
    return Origin(**joined | {"method": f"sum({a.method}, {b.method})"})
