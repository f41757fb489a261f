"""Causal isolation: do a few parts carry one variable and no other? Cause and isolate scores of interchanges.

Inputs stand next to counterfactuals in which one variable differs. Parts that should carry a variable are taken from
the counterfactual. In the contrasts of that variable the output should follow, as far as it follows the whole state:

    cause = Δ_parts / Δ_whole;

in those of every other variable it should stay: isolate is the mean over these of 1 − |Δ_parts / Δ_whole|. Shares are
held within 0 and 1, and *disentangle* is the mean of both scores. Exchanging nothing has 0 and 1, exchanging all 1 and
0, so ½ is what no finding at all gives. After RAVEL, Huang et al. 2024, arXiv 2402.17700, with shares of an effect in
the place of rates of right answers.

Which parts: they are ranked by attribution patching, −∇m · lift(z′ − z), the first-order effect of taking each from the
counterfactual; of the first, the first two, the first four and so on, those count that disentangle most. Both is
decided on contrasts that judge nothing. Nanda 2023; Syed et al. 2023, arXiv 2310.10348.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.decompose.base import Decomposition
from innerspace.decompose.subspaces import Subspaces
from innerspace.interventions import At, Steer
from innerspace.measure.estimate import Estimate
from innerspace.measure.paired import Resamples, summary
from innerspace.measure.patching import Contrast, Exchange
from innerspace.measure.readability import codes
from innerspace.measure.steering import Curve, Response, calibrate
from innerspace.network.model import Model
from innerspace.value import Value

_APART = 7_919_000
"""Where the seeds of random directions begin."""


@final
class Variable:
    """A variable's contrasts at a site, ready to be exchanged: effects of the whole state, and groups to draw.

    ``sign`` tells of a row whether its clean input has the variable's first value (+1) or the second (−1); None where
    there are more than two, so that no one direction leads from one to the other.

    Raises:
        ValueError: for no contrast, or a whole state whose exchange changes nothing.
    """

    @torch.no_grad()
    def __init__(
        self,
        name: str,
        model: Model,
        site: str,
        contrasts: Sequence[Contrast[Any]],
        sign: Float[Tensor, "rows"] | None = None,
        replicates: int = 500,
    ) -> None:
        if not contrasts:
            raise ValueError(f"there is no contrast of {name!r}")
        self.name, self.sign = name, sign
        self.exchanges = [Exchange(model, contrast, site) for contrast in contrasts]
        self.clean = torch.cat([one.metric(one.state) for one in self.exchanges])
        self.whole = self.clean - torch.cat([one.metric(one.whole) for one in self.exchanges])
        if self.whole.mean() == 0:
            raise ValueError(f"exchanging the whole state has no effect on {name!r}: no part can")
        groups, first = list[Tensor](), 0
        for contrast, one in zip(contrasts, self.exchanges, strict=True):
            own = torch.arange(len(one.state)) + first if contrast.group is None else contrast.group.cpu()
            groups.append(own)
            first += len(own)
        self.groups = torch.cat(groups)
        self.resamples = Resamples(self.groups, replicates)

    @property
    def whole_effect(self) -> Estimate:
        """The mean effect of exchanging the whole state."""
        return summary(self.resamples.mean(self.whole))

    @torch.no_grad()
    def effect(self, via: Decomposition, parts: Sequence[int]) -> Float[Tensor, "rows"]:
        """By how much the metric of every row falls when parts are exchanged."""
        return self.clean - torch.cat([one.part(via, parts) for one in self.exchanges])

    def share(self, via: Decomposition, parts: Sequence[int]) -> Float[Tensor, "copies"]:
        """The effect of parts as a share of that of the whole state, in every resample of the groups."""
        return self.resamples.mean(self.effect(via, parts)) / self.resamples.mean(self.whole)

    def attribution(self, via: Decomposition) -> Float[Tensor, "parts"]:
        """To first order the effect of exchanging each part, the mean over rows."""
        total, rows = torch.zeros(len(via.directions), dtype=torch.float64), 0
        for one in self.exchanges:
            state = one.state.detach().clone().requires_grad_(True)
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(one.metric(state).sum(), state)
            change = codes(via, one.whole[one.chosen]) - codes(via, one.state[one.chosen])
            felt = slope[one.chosen].to(change) @ via.directions.detach().T
            total -= (change * felt).sum(0).double().cpu()
            rows += len(state)
        return torch.stack([total[part].sum() for part in via.parts]) / rows

    def difference(self, via: Decomposition, part: int) -> Float[Tensor, "d"]:
        """What one part writes more where the variable has its first value than where it has the second, on average.

        The mean of ± lift(z − z′) over the exchanged positions of all rows.

        Raises:
            ValueError: for a variable of more than two values.
        """
        if self.sign is None:
            raise ValueError(f"{self.name!r} has more than two values: no direction leads from one to the other")
        own, total, count = via.parts[part], torch.zeros(via.parts[part].stop - via.parts[part].start), 0
        for one, sign in zip(self.exchanges, self.sign.split([len(e.state) for e in self.exchanges]), strict=True):
            change = (codes(via, one.state[one.chosen]) - codes(via, one.whole[one.chosen]))[:, own]
            row = one.chosen.nonzero()[:, 0]
            total = total + (change * sign[row, None].to(change)).sum(0).cpu()
            count += len(row)
        return (total / count).to(via.directions) @ via.directions.detach()[own]

    @torch.no_grad()
    def response(self, along: Float[Tensor, "d"], tau: Float[Tensor, "t"]) -> Response:
        """The signed metric of every row when it is steered at the exchanged positions, for temperatures with zero."""
        sign = torch.ones_like(self.clean) if self.sign is None else self.sign.to(self.clean)
        steered = [
            torch.cat([one.metric(one.state, At(one.chosen, Steer(along, amount))) for one in self.exchanges])
            for amount in tau.tolist()
        ]
        return Response(tau, torch.stack(steered) * sign, self.groups)


@dataclass(frozen=True)
class Isolation(Value):
    """The scores of one variable, and the parts that were chosen for it, of so many ``coordinates``."""

    variable: str
    parts: tuple[int, ...]
    coordinates: int
    cause: Estimate
    isolate: Estimate
    disentangle: Estimate


def isolation(
    via: Decomposition, choosing: Sequence[Variable], judging: Sequence[Variable], most: int = 32
) -> list[Isolation]:
    """Parts for every variable, chosen by some contrasts and judged by others, of the same variables in their order.

    Raises:
        ValueError: for fewer than two variables, or others to judge by than to choose by.
    """
    if len(choosing) < 2 or [one.name for one in choosing] != [one.name for one in judging]:
        raise ValueError(f"two variables or more are told apart; they are {[one.name for one in choosing]}")
    found = list[Isolation]()
    for own, variable in enumerate(judging):
        ranks = choosing[own].attribution(via).argsort(descending=True, stable=True).tolist()
        counts = [count for count in (2**i for i in range(most.bit_length())) if count <= min(most, len(ranks))]
        tried = [_scores(via, ranks[:count], own, choosing) for count in counts]
        best = max(range(len(tried)), key=lambda i: float(tried[i][2][0]))
        parts = tuple(ranks[: counts[best]])
        cause, isolate, both = _scores(via, parts, own, judging)
        width = sum(via.parts[part].stop - via.parts[part].start for part in parts)
        found.append(Isolation(variable.name, parts, width, summary(cause), summary(isolate), summary(both)))
    return found


@dataclass(frozen=True)
class Steerable(Value):
    """Steering along one part, in steps as long as the plain mean difference of the hidden states.

    ``slope`` is the change of the metric for each step over what exchanging the whole state changes, so 1 is a step
    that does as much; ``r2`` how much of the response an affine fit explains. ``side`` is s / (s + o) for the largest
    change s of another variable's metric and that of the own one o, at one step up against one down, both in units of
    their spread over inputs: 0 if nothing else moves, ½ if another moves as much. ``random`` is the slope along a
    random direction of equal length.
    """

    variable: str
    part: int
    slope: Estimate
    r2: Estimate
    side: Estimate
    random: Estimate


def steerability(
    via: Decomposition,
    choosing: Sequence[Variable],
    judging: Sequence[Variable],
    tau: Sequence[float] = (-1.0, -0.5, 0.0, 0.5, 1.0),
    seed: int = 0,
) -> list[Steerable]:
    """Steer along the best part for every variable of two values: the first by attribution, with its mean difference.

    A part that never differs between the values is no way to steer, and has the slope 0.
    """
    found, times = list[Steerable](), torch.tensor(tau)
    for own, variable in enumerate(judging):
        if variable.sign is None:
            continue
        part = int(choosing[own].attribution(via).argmax())
        along = choosing[own].difference(via, part)
        length = _plain(choosing[own]).norm()
        if not along.norm() > 0:
            zero = Estimate(0.0)
            found.append(Steerable(variable.name, part, zero, zero, zero, zero))
            continue
        # far from the small seeds by which what is judged may have been drawn itself
        noise = torch.randn(along.shape, generator=torch.Generator().manual_seed(_APART + seed)).to(along)
        curves = [_curve(variable, way * (length / way.norm()), times) for way in (along, noise)]
        whole = float(variable.whole.mean())
        others = [one for one in judging if one is not variable]
        side = _side(variable, others, along * (length / along.norm()))
        slopes = [_scaled(curve.slope, 1 / whole) for curve in curves]
        found.append(Steerable(variable.name, part, slopes[0], curves[0].r2, side, slopes[1]))
    return found


def _plain(variable: Variable) -> Tensor:
    """The mean difference of the hidden states themselves between the two values."""
    width = variable.exchanges[0].state.shape[-1]
    return variable.difference(Subspaces.identity(width, [width]), 0)


def _curve(variable: Variable, along: Tensor, tau: Tensor) -> Curve:
    return calibrate(variable.response(along, tau), kind="difference")


def _scaled(item: Estimate, factor: float) -> Estimate:
    ends = [end * factor for end in (item.low, item.high) if end is not None]
    return Estimate(item.mean * factor, *(sorted(ends) if ends else (None, None)))


def _side(variable: Variable, others: Sequence[Variable], along: Tensor) -> Estimate:
    def moved(one: Variable) -> Tensor:
        ends = one.response(along, torch.tensor([-1.0, 1.0])).value
        change = one.resamples.mean((ends[1] - ends[0]) / 2)
        return change.abs() / one.clean.double().std().clamp_min(1e-12)

    own, other = moved(variable), torch.stack([moved(one) for one in others]).amax(0)
    return summary(other / (own + other).clamp_min(1e-12))


def _scores(via: Decomposition, parts: Sequence[int], own: int, variables: Sequence[Variable]) -> tuple[Tensor, ...]:
    shares = [one.share(via, parts) for one in variables]
    cause = shares[own].clamp(0, 1)
    kept = [1 - share.abs().clamp(max=1) for i, share in enumerate(shares) if i != own]
    isolate = torch.stack(kept).mean(0)
    return cause, isolate, (cause + isolate) / 2
