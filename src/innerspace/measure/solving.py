"""Find, row by row, the amounts at which a function takes given values: few calls, with all rows in each of them.

The function is seen from outside only: it maps amounts to values, may be flat, bent or broken, and every row has a
budget. The rows know nothing of each other; they only share the calls.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

OUTCOMES = ("reached", "limited", "saturated", "jumps", "not monotone", "unfinished", "undefined")
"""How a row ends.

``reached``: the value lies within the tolerance. ``limited``: the budget is used up, and the value still moves towards
the target. ``saturated``: it hardly moves any more. ``jumps``: the value jumps over the target. ``not monotone``: it
turned away from the target before it got there. ``unfinished``: no calls were left. ``undefined``: there is no target,
or no value without any amount.
"""
REACHED, LIMITED, SATURATED, JUMPS, NOT_MONOTONE, UNFINISHED, UNDEFINED = range(len(OUTCOMES))

Function = Callable[[Float[Tensor, "rows k"]], Float[Tensor, "rows m"]]

# a request that would need so many budgets, at the rate of the last step, is out of reach for another reason
_FAR = 4.0
# brackets narrower than this share of the budget hold a jump
_NARROW = 1e-6
# where a row looks, in shares of its budget, once its value has turned away from the target
_LOOKS = (0.35, -0.35, 0.7, -0.7, 1.0, -1.0)


@dataclass(frozen=True, eq=False)
class Solved:
    """The best amounts that were tried (none, where all others were worse), the values there, and how each row ended.

    ``calls`` counts the calls of the function.
    """

    amount: Float[Tensor, "rows k"]
    value: Float[Tensor, "rows m"]
    outcome: Int[Tensor, "rows"]
    calls: int


def solve_one(
    function: Function,
    start: Float[Tensor, "rows"],
    target: Float[Tensor, "rows"],
    tolerance: Float[Tensor, "rows"],
    limit: Float[Tensor, "rows"],
    first: Float[Tensor, "rows"],
    calls: int,
) -> Solved:
    """One amount per row, of which one value depends: expand by secants, then close in on the bracket.

    Args:
        function: from amounts [rows, 1] to values [rows, 1].
        start: the values without any amount.
        target: the values to reach; NaN where none is asked.
        tolerance: how far from the target is near enough, above zero.
        limit: the largest |amount|.
        first: the first step, above zero: upwards, if the value should grow, or else downwards. A row that finds
            itself farther off turns round.
        calls: how often the function may be called.
    """
    search = _Bracket(start, target, tolerance, limit, first)
    used = 0
    while used < calls and not search.done.all():
        amount = search.propose()
        search.learn(amount, function(amount[:, None])[:, 0])
        used += 1
    return Solved(search.best[:, None], search.value[:, None], search.outcome(), used)


class _Bracket:
    """What is known of every row: ``gap`` is the remaining way in tolerances, positive short of the target."""

    def __init__(self, start: Tensor, target: Tensor, tolerance: Tensor, limit: Tensor, first: Tensor) -> None:
        self.target, self.tolerance, self.limit = target, tolerance, limit
        self.sign = torch.where(target >= start, 1.0, -1.0).to(start)
        self.defined = (target - start).isfinite()
        zero = torch.zeros_like(start)
        self.best, self.value = zero, start
        self.short, self.short_gap = zero, self._gap(start)
        self.least = self.short_gap.abs()
        self.before, self.before_gap = zero, self.short_gap
        self.cross, self.cross_gap = zero + torch.nan, zero + torch.nan
        self.way, self.first = self.sign.clone(), torch.minimum(first, limit)
        self.turned = torch.zeros_like(self.defined)
        self.bent, self.ended = self.turned.clone(), self.turned.clone()
        self.looks = torch.zeros_like(start, dtype=torch.int64)
        # weights of the ends of a bracket (Illinois), and how often in a row the same end was moved
        self.weight_short, self.weight_cross = torch.ones_like(start), torch.ones_like(start)
        self.moved = torch.zeros_like(start)
        self.steps = torch.zeros_like(start)

    def _gap(self, value: Tensor) -> Tensor:
        return self.sign * (self.target - value) / self.tolerance

    @property
    def reached(self) -> Bool[Tensor, "rows"]:
        return self.least <= 1

    @property
    def done(self) -> Bool[Tensor, "rows"]:
        return self.reached | self.ended | ~self.defined

    def propose(self) -> Float[Tensor, "rows"]:
        """The next amount of every row; of those that are done the best."""
        outward = torch.minimum(torch.maximum(self._expanded(), -self.limit), self.limit)
        looks = torch.tensor([*_LOOKS, 0.0]).to(self.limit)
        outward = torch.where(self.bent, looks[self.looks] * self.way * self.limit, outward)
        a, b = self.weight_short * self.short_gap, self.weight_cross * self.cross_gap
        share = (a / (a - b)).nan_to_num(0.5).clamp(0.02, 0.98)
        # a response that is flat up to a cliff defeats secants
        share = torch.where(self.steps % 4 == 3, 0.5, share)
        inward = self.short + share * (self.cross - self.short)
        return torch.where(self.done, self.best, torch.where(self.cross.isfinite(), inward, outward))

    def _expanded(self) -> Tensor:
        """The first step, or a little more than the last two values let expect, at most five times the last step."""
        step, gain = self.short - self.before, self.before_gap - self.short_gap
        factor = torch.where(gain > 0, 1.05 * self.short_gap / gain, 5.0).clamp(0.1, 5.0)
        return torch.where(step == 0, self.short + self.way * self.first, self.short + factor * step)

    def learn(self, amount: Tensor, value: Tensor) -> None:
        """Take in what the function gave."""
        live, gap = ~self.done, self._gap(value).nan_to_num(torch.inf, torch.inf, torch.inf)
        better = live & (gap.abs() < self.least)
        self.best, self.value = amount.where(better, self.best), value.where(better, self.value)
        self.least = gap.abs().where(better, self.least)

        bracketed, over = self.cross.isfinite(), gap < 0
        at_limit = amount.abs() >= self.limit * (1 - 1e-6)
        crossed = live & over
        inside = live & ~over & bracketed
        progress = live & ~over & ~bracketed & (gap <= self.short_gap)
        worse = live & ~over & ~bracketed & (gap > self.short_gap)

        # Illinois: an end that stays while the other one moves twice loses half its weight
        self.weight_short = torch.where(crossed & (self.moved > 0), self.weight_short / 2, self.weight_short)
        self.weight_cross = torch.where(inside & (self.moved < 0), self.weight_cross / 2, self.weight_cross)
        self.weight_cross = torch.where(crossed, 1.0, self.weight_cross)
        self.weight_short = torch.where(inside, 1.0, self.weight_short)
        self.moved = torch.where(crossed & bracketed, 1.0, torch.where(inside, -1.0, self.moved))
        self.steps = self.steps + bracketed.to(self.steps)

        self.cross, self.cross_gap = amount.where(crossed, self.cross), gap.where(crossed, self.cross_gap)
        self.before = self.short.where(progress, self.before)
        self.before_gap = self.short_gap.where(progress, self.before_gap)
        closer = progress | inside
        self.short, self.short_gap = amount.where(closer, self.short), gap.where(closer, self.short_gap)

        # away from the target: at first perhaps the wrong way, later a bend, beyond which a row looks around
        fresh = worse & (self.short == 0) & ~self.turned & ~self.bent
        self.way = torch.where(fresh, -self.way, self.way)
        self.turned = self.turned | fresh
        looking = live & self.bent & ~crossed & ~bracketed
        self.looks = self.looks + looking.to(self.looks)
        self.bent = self.bent | (worse & ~fresh)

        narrow = (self.cross - self.short).abs() <= _NARROW * self.limit
        at_end = progress & at_limit & ~self.bent
        self.ended = self.ended | (live & (at_end | narrow | (self.looks >= len(_LOOKS))))

    def outcome(self) -> Int[Tensor, "rows"]:
        """How each row ended; see ``OUTCOMES``."""
        gain = self.before_gap - self.short_gap
        # how many budgets more it would take, at the rate of the last step
        more = (self.short - self.before).abs() * self.short_gap / gain.clamp(min=1e-12) / self.limit
        outcome = torch.where(more > _FAR - 1, SATURATED, LIMITED)
        at_limit = self.short.abs() >= self.limit * (1 - 1e-6)
        bracket = (self.cross - self.short).abs()
        jump = bracket <= 0.02 * self.limit
        outcome = torch.where(at_limit & ~bracket.isfinite(), outcome, UNFINISHED)
        outcome = torch.where(self.bent, NOT_MONOTONE, outcome)
        outcome = torch.where(jump, JUMPS, outcome)
        outcome = torch.where(self.reached, REACHED, outcome)
        return torch.where(self.defined, outcome, UNDEFINED)


def solve_several(
    function: Function,
    start: Float[Tensor, "rows m"],
    target: Float[Tensor, "rows m"],
    tolerance: Float[Tensor, "rows m"],
    extent: Callable[[Float[Tensor, "rows k"]], Float[Tensor, "rows"]],
    first: Float[Tensor, "rows k"],
    calls: int,
) -> Solved:
    """Several amounts per row at once, of which several values depend: Levenberg-Marquardt with Broyden's updates.

    The Jacobian comes from one step ``first`` along each amount, is updated with every step that is tried, and is
    measured anew where two steps in a row brought nothing. Only steps that come closer are taken; near is measured in
    tolerances, ‖(target − value) / tolerance‖. ``extent`` is a norm of the amounts, at most 1 within the budget. Other
    arguments are as those of ``solve_one``. A row whose every value is within its tolerance is done. One that is not
    has used up its budget (``limited``), cannot come closer (``saturated``), or ran out of calls (``unfinished``).
    """
    rows, count = first.shape
    defined = (target - start).isfinite().all(1)
    scale = 1 / extent_of_each(extent, first)
    residual = torch.where(defined[:, None], (target - start) / tolerance, 0)
    at, value, used = torch.zeros_like(first), start, 0

    def near(gap: Tensor) -> Tensor:
        return gap.abs().amax(1) <= 1

    def measured(amount: Tensor) -> Tensor:
        """The gaps in tolerances; far away where the function gives no number."""
        gap = (target - amount) / tolerance
        return torch.where(defined[:, None], gap, 0).nan_to_num(1e6, 1e6, -1e6)

    def differences(step: Tensor, wanted: Tensor, jacobian: Tensor) -> Tensor:
        """∂gap/∂u by one call for each amount, in units of the budget along it; others keep what they have."""
        columns = list[Tensor]()
        for i in range(count):
            moved = at.clone()
            moved[:, i] += step[:, i]
            change = measured(function(torch.where(wanted[:, None], moved, at))) - residual
            columns.append(change / (step[:, i] / scale[:, i])[:, None])
        return torch.where(wanted[:, None, None], torch.stack(columns, 2), jacobian)

    done = near(residual) | ~defined
    jacobian = differences(first, ~done, torch.zeros(rows, residual.shape[1], count).to(first))
    used += count
    damping = torch.full_like(start[:, 0], 1e-3)
    refused = torch.zeros_like(damping)
    stuck = torch.zeros_like(done)
    while used < calls and not (done | stuck).all():
        normal = jacobian.mT @ jacobian
        level = normal.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
        ridge = torch.diag_embed((damping * level)[:, None].expand(-1, count))
        step = torch.linalg.solve(normal + ridge, -(jacobian.mT @ residual[..., None]))[..., 0] * scale
        tried = at + step
        tried = tried / extent(tried).clamp(min=1)[:, None]
        step = torch.where((done | stuck)[:, None], 0, tried - at)
        given = function(at + step)
        gap, used = measured(given), used + 1
        change, u = gap - residual, step / scale
        miss = change - (jacobian @ u[..., None])[..., 0]
        length = u.square().sum(1).clamp(min=1e-24)
        jacobian = jacobian + miss[..., None] * u[:, None] / length[:, None, None]

        better = ~done & ~stuck & (gap.square().sum(1) < residual.square().sum(1))
        at, value = torch.where(better[:, None], at + step, at), torch.where(better[:, None], given, value)
        residual = torch.where(better[:, None], gap, residual)
        damping = torch.where(better, damping / 4, damping * 6).clamp(1e-8, 1e6)
        refused = torch.where(better, 0, refused + 1)
        done = done | near(residual)
        # the least change that the tolerance could notice
        stuck = stuck | (~better & (refused >= 2) & (u.norm(dim=1) < 1e-4)) | (refused >= 6)
        anew = ~done & ~stuck & (refused >= 2) & (refused % 2 == 0)
        if anew.any() and used + count < calls:
            jacobian = differences(first / 4, anew, jacobian)
            used, damping = used + count, torch.where(anew, 1e-3, damping)

    outcome = torch.where(stuck, SATURATED, UNFINISHED)
    outcome = torch.where(extent(at) >= 1 - 1e-3, LIMITED, outcome)
    outcome = torch.where(near(residual), REACHED, outcome)
    return Solved(at, value, torch.where(defined, outcome, UNDEFINED), used)


def extent_of_each(
    extent: Callable[[Float[Tensor, "rows k"]], Float[Tensor, "rows"]], like: Float[Tensor, "rows k"]
) -> Float[Tensor, "rows k"]:
    """The extent of one unit of each amount alone, by row."""
    units = torch.eye(like.shape[1]).to(like)
    return torch.stack([extent(unit.expand(like.shape[0], -1)) for unit in units], 1)
