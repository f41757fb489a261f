"""Dose and response: what an intervention of growing strength does to what the network puts out.

A *response* holds one readout of the output for every temperature τ and every sample. Everything else follows from it:
the calibration curve with its bootstrap interval, how linear it is, where it can be used, and which τ reaches a given
response.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.interventions import At, Steer
from innerspace.measure.estimate import Estimate, from_copies
from innerspace.network.model import Fork, Model
from innerspace.network.site import Where
from innerspace.network.trace import Intervention
from innerspace.value import Value

Output = Mapping[str, Tensor]
Readout = Callable[[Output, Output, Any], Mapping[str, Float[Tensor, "batch"]]]
"""From the output of a steered pass, that of the clean one, and the batch, to numbers per sample; NaN if undefined."""


@dataclass(frozen=True, eq=False, repr=False)
class Response:
    """One readout by temperature and sample; ``group`` is the unit of the bootstrap (the scene)."""

    tau: Float[Tensor, "t"]
    value: Float[Tensor, "t n"]
    group: Int[Tensor, "n"]

    def __repr__(self) -> str:
        low, high = float(self.tau.min()), float(self.tau.max())
        groups = len(self.group.unique())
        return f"Response({len(self.tau)} τ from {low:g} to {high:g}, {len(self.group)} samples in {groups} groups)"


@torch.no_grad()
def respond(
    model: Model,
    batches: Iterable[Any],
    site: str,
    along: Float[Tensor, "d"],
    tau: Float[Tensor, "t"],
    readout: Readout,
    groups: Int[Tensor, "n"],
    where: Where | None = None,
    forks: Iterable[Fork] | None = None,
    via: Callable[[Tensor, float], Intervention] = Steer,
) -> dict[str, Response]:
    """Run every batch under every temperature and read the output.

    Args:
        model: the network.
        batches: the samples, none of which was used to fit ``along``.
        site: where to steer.
        along: the direction, x + τ · along.
        tau: the temperatures; 0 must be among them, it is the baseline.
        readout: what is measured.
        groups: for every sample of the stream the scene that it belongs to.
        where: the positions that are steered, by default every valid one.
        forks: the unsteered passes, batch by batch, where they were made already (``Model.fork`` at the site).
        via: what is done with direction and temperature.

    Raises:
        ValueError: if τ = 0 is missing, the direction is of another width, or groups do not fit the samples.
    """
    if not (tau == 0).any():
        raise ValueError(f"τ = 0 is the baseline and must be among the temperatures, given {tau.tolist()}")
    if len(along) != (width := model.site(site).width):
        raise ValueError(f"the direction has width {len(along)}, the hidden states at {site!r} have {width}")
    parts = dict[str, list[Tensor]]()
    known = iter(forks) if forks is not None else None
    for batch in batches:
        rows = dict[str, list[Tensor]]()
        fork = model.fork(batch, site) if known is None else next(known)
        unsteered = fork.clean.output
        for amount in tau.tolist():
            steer = At(where or Where("valid"), via(along, amount))
            steered = fork.run({site: steer}).output if amount else unsteered
            for name, number in readout(steered, unsteered, batch).items():
                rows.setdefault(name, []).append(number)
        for name, numbers in rows.items():
            parts.setdefault(name, []).append(torch.stack(numbers))
    values = {name: torch.cat(items, dim=1) for name, items in parts.items()}
    for name, value in values.items():
        if value.shape[1] != len(groups):
            raise ValueError(f"{len(groups)} groups were given for {value.shape[1]} samples of {name!r}")
    return {name: Response(tau, value, groups) for name, value in values.items()}


@dataclass(frozen=True)
class Curve(Value):
    """A calibration curve τ ↦ response and what can be said of its linearity.

    ``pearson`` is the correlation of τ and response, ``r2`` the share of variance an affine fit explains,
    ``straightness`` the ratio of chord to length of the polyline with both axes scaled to [0, 1] (1 is straight; units
    do not matter), ``slope`` that of the affine fit, all over the points whose response lies within ``window`` and
    that are connected with τ = 0. ``range`` is the interval of τ around 0 on which the curve is strictly monotone,
    ``span`` the responses at its ends.
    """

    tau: tuple[float, ...]
    response: tuple[Estimate, ...]
    window: float | None
    pearson: Estimate
    r2: Estimate
    straightness: Estimate
    slope: Estimate
    range: tuple[float, float]
    span: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.range
        return (
            f"Curve({len(self.tau)} τ from {min(self.tau):g} to {max(self.tau):g}, slope {self.slope}, "
            f"r² {self.r2}, straightness {self.straightness}, monotone from {low:g} to {high:g})"
        )

    def inverse(self, response: float) -> float | None:
        """The τ that reaches a response, by linear interpolation inside ``range``; None where it is out of reach."""
        inside = [i for i, t in enumerate(self.tau) if self.range[0] <= t <= self.range[1]]
        for i, j in pairwise(inside):
            a, b = self.response[i].mean, self.response[j].mean
            if min(a, b) <= response <= max(a, b) and a != b:
                return self.tau[i] + (response - a) / (b - a) * (self.tau[j] - self.tau[i])
        return None


def calibrate(
    response: Response,
    *,
    kind: Literal["relative", "difference"],
    minimum: float = 0.0,
    window: float | None = None,
    replicates: int = 200,
    seed: int = 0,
) -> Curve:
    """The calibration curve of a response, with 95 % intervals from a bootstrap over groups.

    ``"relative"`` is the ratio of sums in percent, 100 · Σᵢ (Lᵢ(τ) − Lᵢ(0)) / Σᵢ Lᵢ(0), over samples whose baseline is
    at least ``minimum`` (a mean of ratios would be ruled by those that hardly move). ``"difference"`` is the mean
    change of the samples for which the readout is defined at every τ.

    Raises:
        ValueError: if no sample qualifies.
    """
    base = response.value[response.tau == 0][0]
    usable = response.value.isfinite().all(0) & (base >= minimum if kind == "relative" else True)
    if not usable.any():
        raise ValueError(f"no sample has a defined readout and a baseline of at least {minimum}")
    change = (response.value - base)[:, usable].double()
    weight = base[usable].double() / 100 if kind == "relative" else torch.ones_like(change[0])
    _, group = response.group[usable].unique(return_inverse=True)
    count = int(group.amax()) + 1
    above = torch.zeros(len(change), count, dtype=torch.float64).index_add_(1, group, change)
    below = torch.zeros(count, dtype=torch.float64).index_add_(0, group, weight)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(count, (replicates, count), generator=generator)
    times = torch.zeros(replicates, count, dtype=torch.float64).scatter_add_(
        1, draws, torch.ones(draws.shape, dtype=torch.float64)
    )
    curve = above.sum(1) / below.sum()
    copies = (times @ above.T) / (times @ below)[:, None]

    tau = response.tau.double()
    inside = _connected(tau, curve.abs() <= window if window is not None else torch.ones_like(tau, dtype=torch.bool))
    if inside.sum() < 3:
        inside = torch.ones_like(inside)
    lines = torch.cat([curve[None], copies])[:, inside]
    pearson, r2, slope = _affine(tau[inside], lines)
    straight = _straightness(tau[inside], lines)
    low, high = _monotone(tau, curve)
    return Curve(
        tau=tuple(tau.tolist()),
        response=tuple(_estimate(column) for column in torch.cat([curve[None], copies]).unbind(1)),
        window=window,
        pearson=_estimate(pearson),
        r2=_estimate(r2),
        straightness=_estimate(straight),
        slope=_estimate(slope),
        range=(float(tau[low]), float(tau[high])),
        span=(float(curve[low]), float(curve[high])),
    )


def straightness(tau: Float[Tensor, "t"], response: Float[Tensor, "t"], *, unit_free: bool = True) -> float:
    """Chord over length of the polyline (τ, response); ``unit_free=False`` is the raw index of Tas & Wagner (2025)."""
    if unit_free:
        return float(_straightness(tau.double(), response.double()[None])[0])
    steps = torch.stack([tau, response], -1).double().diff(dim=0)
    return float(steps.sum(0).norm() / steps.norm(dim=1).sum())


def _connected(tau: Tensor, wanted: Tensor) -> Tensor:
    """The run of wanted points that contains τ = 0."""
    zero = int((tau == 0).nonzero()[0])
    low = high = zero
    while low > 0 and wanted[low - 1]:
        low -= 1
    while high < len(tau) - 1 and wanted[high + 1]:
        high += 1
    inside = torch.zeros_like(wanted)
    inside[low : high + 1] = True
    return inside


def _affine(tau: Tensor, lines: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, y = tau - tau.mean(), lines - lines.mean(1, keepdim=True)
    slope = (y @ x) / x.square().sum()
    spread = y.square().sum(1)
    pearson = torch.where(spread > 0, slope * x.norm() / spread.sqrt(), torch.zeros_like(slope))
    return pearson, pearson.square(), slope


def _straightness(tau: Tensor, lines: Tensor) -> Tensor:
    x = ((tau - tau[0]) / (tau[-1] - tau[0])).expand_as(lines)
    low, high = lines.amin(1, keepdim=True), lines.amax(1, keepdim=True)
    y = (lines - low) / (high - low).clamp(min=1e-300)
    steps = torch.stack([x, y], -1).diff(dim=1)
    return steps.sum(1).norm(dim=-1) / steps.norm(dim=-1).sum(-1)


def _monotone(tau: Tensor, curve: Tensor) -> tuple[int, int]:
    zero = int((tau == 0).nonzero()[0])
    steps = curve.diff()
    around = steps[max(zero - 1, 0) : zero + 1].sum()
    rising = steps * around.sign() > 0
    low = high = zero
    while low > 0 and rising[low - 1]:
        low -= 1
    while high < len(tau) - 1 and rising[high]:
        high += 1
    return low, high


def _estimate(values: Tensor) -> Estimate:
    """The first entry is the estimate, the others are its bootstrap copies."""
    return from_copies(float(values[0]), values[1:])
