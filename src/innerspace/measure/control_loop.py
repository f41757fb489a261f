"""A control loop around steering: the temperatures at which every row reaches what is asked of it.

A temperature of the mean calibration curve reaches a response on average; here every row gets its own. The passes
branch off at the site, so what does not depend on it is computed once, and each pass serves all rows. Any model and
any readout will do: a forecast's mean speed, or a token's logit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.interventions import At, Read, Steer
from innerspace.measure.solving import OUTCOMES, Solved, extent_of_each, solve_one, solve_several
from innerspace.measure.steering import Output, Readout
from innerspace.network.model import Fork, Model
from innerspace.network.site import Where
from innerspace.network.trace import Intervention
from innerspace.value import Value

Via = Callable[[Float[Tensor, "k d"], Float[Tensor, "rows k"]], Intervention]
"""From directions and temperatures to what is done with them: ``Steer``, ``Rotate``, or another one around them."""


@dataclass(frozen=True, eq=False)
class Goal:
    """What is asked of one readout, of every row or row by row.

    ``"relative"`` asks for a change by ``amount`` percent of the unsteered value, ``"difference"`` for a change by
    ``amount`` in the readout's unit, ``"value"`` for that value itself. ``tolerance`` is how far off still counts as
    reached, in the unit of ``amount``. Rows whose unsteered readout is below ``minimum`` have no request: a share of
    almost nothing says nothing.

    Raises:
        ValueError: for a tolerance that is not positive, or a relative change below −100 %.
    """

    readout: str
    amount: float | Float[Tensor, "rows"]
    kind: Literal["relative", "difference", "value"]
    tolerance: float
    minimum: float = -float("inf")

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"the tolerance of {self.readout} should be positive, it is {self.tolerance}")
        if self.kind == "relative" and bool((torch.as_tensor(self.amount) < -100).any()):
            raise ValueError(f"{self.readout} cannot fall by more than 100 %; {self.amount} % are asked")

    def target(self, before: Float[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        """The values to reach; NaN where there is no request."""
        amount = torch.as_tensor(self.amount).to(before)
        match self.kind:
            case "relative":
                target = before * (1 + amount / 100)
            case "difference":
                target = before + amount
            case "value":
                # an undefined readout stays one
                target = before * 0 + amount
        return target.where(before >= self.minimum, torch.nan)

    def allowance(self, before: Float[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        """The tolerance in the readout's unit."""
        if self.kind == "relative":
            return (before.abs() * self.tolerance / 100).clamp(min=1e-12)
        return torch.full_like(before, self.tolerance)


@dataclass(frozen=True)
class Loop(Value):
    """How far the loop may go.

    ``passes`` through the network at most, beside the unsteered one. ‖Σᵢ τᵢ dᵢ‖ is at most ``share`` of the row's
    mean ‖x‖ over the positions that are steered. The first step takes ``first`` of that budget.

    Raises:
        ValueError: for no pass, a share that is not positive, or a first step outside of it.
    """

    passes: int = 16
    share: float = 1.0
    first: float = 0.1

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise ValueError(f"the loop needs at least one pass, given {self.passes}")
        if not (0 < self.share < float("inf") and 0 < self.first <= 1):
            raise ValueError(
                f"the share of the norm should be positive and the first step a part of it in (0, 1], "
                f"given {self.share} and {self.first}"
            )


@dataclass(frozen=True, eq=False)
class Controlled:
    """What the loop found, row by row.

    ``tau`` are the temperatures, 0 where nothing comes closer than doing nothing. ``before``, ``target`` and ``after``
    are the goals' readouts; ``target`` is NaN where nothing is asked. ``outcome`` indexes ``OUTCOMES``, ``change`` is
    the mean length by which a row's states were moved, as a share of their mean length. ``passes`` counts the passes
    beside the unsteered one, of which ``clean`` is the output; ``output`` is the steered one.
    """

    tau: Float[Tensor, "rows k"]
    before: Float[Tensor, "rows goals"]
    target: Float[Tensor, "rows goals"]
    after: Float[Tensor, "rows goals"]
    outcome: Int[Tensor, "rows"]
    change: Float[Tensor, "rows"]
    passes: int
    clean: Output
    output: Output

    def shares(self) -> dict[str, float]:
        """How many of the rows with a request ended in which way."""
        asked = self.outcome[self.outcome != OUTCOMES.index("undefined")]
        return {name: float((asked == i).double().mean()) for i, name in enumerate(OUTCOMES[:-1])}


def joined(parts: Sequence[Controlled]) -> Controlled:
    """The rows of several batches, one after the other; their passes add up."""

    def rows(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    def outputs(given: Sequence[Output]) -> Output:
        return {name: torch.cat([one[name] for one in given]) for name in given[0]}

    return Controlled(
        tau=rows("tau"),
        before=rows("before"),
        target=rows("target"),
        after=rows("after"),
        outcome=rows("outcome"),
        change=rows("change"),
        passes=sum(part.passes for part in parts),
        clean=outputs([part.clean for part in parts]),
        output=outputs([part.output for part in parts]),
    )


@torch.no_grad()
def control(
    model: Model,
    batch: Any,
    site: str,
    along: Float[Tensor, "k d"],
    goals: Sequence[Goal],
    readout: Readout,
    loop: Loop = Loop(),
    *,
    via: Via = Steer,
    where: Where | None = None,
    fork: Fork | None = None,
) -> Controlled:
    """Find for every row the temperatures that reach its goals, within the budget and never worse than at τ = 0.

    One vector and one goal are solved by secants in a bracket, several vectors or goals jointly by a safeguarded
    Gauss-Newton method, whose Jacobian costs one pass per vector. Nearness is counted in tolerances.

    Args:
        model: the network.
        batch: the rows, to none of which the vectors were fitted.
        site: where to steer.
        along: the vectors; a positive temperature of a single one should raise its readout, and a row where it does
            not turns round.
        goals: what is asked; fewer than there are vectors leaves a choice, more make a compromise.
        readout: what is measured.
        loop: how many passes and how much change are allowed.
        via: what is done with vectors and temperatures.
        where: the positions that are steered, by default every valid one.
        fork: the unsteered pass, where it was made already (``Model.fork`` at the site).

    Raises:
        ValueError: for no goal, a readout that there is not, vectors of another width than the site's, or an amount
            for another number of rows.
    """
    place = model.site(site)
    if along.ndim != 2 or along.shape[1] != place.width:
        raise ValueError(f"vectors [k, {place.width}] are needed at {site!r}, given {list(along.shape)}")
    if not goals:
        raise ValueError("the loop needs at least one goal")
    fork = fork or model.fork(batch, site)
    clean, states = fork.clean.output, fork.clean.hidden[place.name]
    rows, where = states.shape[0], where or Where("valid")

    def read(output: Output) -> Tensor:
        found = readout(output, clean, batch)
        if missing := [goal.readout for goal in goals if goal.readout not in found]:
            raise ValueError(f"no readout is called {missing[0]!r}; there are {', '.join(found)}")
        return torch.stack([found[goal.readout] for goal in goals], 1)

    def steered(tau: Tensor) -> Mapping[str, Tensor]:
        return fork.run({site: At(where, via(along, tau))}).output

    before = read(clean)
    for goal in goals:
        if isinstance(goal.amount, Tensor) and goal.amount.shape not in ((), (rows,)):
            raise ValueError(
                f"{rows} rows need {rows} amounts of {goal.readout} or one for all, given {list(goal.amount.shape)}"
            )
    target = torch.stack([goal.target(one) for goal, one in zip(goals, before.unbind(1), strict=True)], 1)
    target = torch.where(target.isfinite().all(1, keepdim=True), target, torch.nan)
    allowance = torch.stack([goal.allowance(one) for goal, one in zip(goals, before.unbind(1), strict=True)], 1)
    chosen = model.positions(batch, site, states, where).reshape(rows, -1)
    length = _mean(states.norm(dim=-1).reshape(rows, -1), chosen)

    def extent(tau: Tensor) -> Tensor:
        return (tau.to(along) @ along).norm(dim=1) / (loop.share * length).clamp(min=1e-12)

    budget = 1 / extent_of_each(extent, torch.zeros(rows, len(along)).to(states))
    solved = _solve(lambda tau: read(steered(tau)), before, target, allowance, extent, budget, loop)
    plan = {site: [At(where, via(along, solved.amount)), Read("steered")]}
    last = fork.run(plan)
    moved = (last.hidden["steered"] - states).norm(dim=-1).reshape(rows, -1)
    return Controlled(
        tau=solved.amount,
        before=before,
        target=target,
        after=read(last.output),
        outcome=solved.outcome,
        change=_mean(moved, chosen) / length.clamp(min=1e-12),
        passes=solved.calls + 1,
        clean=clean,
        output=last.output,
    )


def _solve(
    function: Callable[[Tensor], Tensor],
    before: Tensor,
    target: Tensor,
    allowance: Tensor,
    extent: Callable[[Tensor], Tensor],
    budget: Float[Tensor, "rows k"],
    loop: Loop,
) -> Solved:
    # the last pass gives the outputs at what was found
    calls = loop.passes - 1
    first = loop.first * budget
    if budget.shape[1] == before.shape[1] == 1:
        return solve_one(function, before[:, 0], target[:, 0], allowance[:, 0], budget[:, 0], first[:, 0], calls)
    return solve_several(function, before, target, allowance, extent, first, calls)


def _mean(values: Float[Tensor, "rows n"], chosen: Tensor) -> Float[Tensor, "rows"]:
    return (values * chosen).sum(1) / chosen.sum(1).clamp(min=1)
