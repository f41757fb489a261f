"""Requests with known answers: linear, saturating, bent and broken responses, alone and together, and a network's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from families import CASES
from innerspace.interventions import Steer
from innerspace.measure.control_loop import Controlled, Goal, Loop, control
from innerspace.measure.solving import OUTCOMES, Solved, solve_one, solve_several
from innerspace.measure.steering import Output
from innerspace.network.site import Where
from innerspace.steering_modes import Limit, Rotate


def one(respond: Callable[[Tensor], Tensor], target: Tensor, *, limit: float = 4.0, calls: int = 20) -> Solved:
    """Solve for targets of a response that is 0 without any amount."""
    full = torch.ones_like(target)

    def function(amount: Tensor) -> Tensor:
        assert (amount.abs() <= limit * (1 + 1e-12)).all()
        return respond(amount[:, 0])[:, None]

    return solve_one(function, 0 * full, target, 1e-3 * full, limit * full, 0.1 * full, calls)


def ends(found: Solved | Controlled) -> list[str]:
    return [OUTCOMES[i] for i in found.outcome.tolist()]


def test_a_line_takes_one_step_and_one_more() -> None:
    target = torch.tensor([3.0, -2.0, 0.7, 0.0]).double()
    slope = torch.tensor([2.0, 2.0, -0.5, 1.0]).double()
    found = one(lambda a: slope * a, target)
    assert ends(found) == ["reached"] * 4
    torch.testing.assert_close(slope * found.amount[:, 0], target, rtol=0, atol=1e-3)
    # the slope from the first step, then the answer; steps grow fivefold at most, and overshoot a little
    assert found.calls <= 6
    assert float(found.amount[3]) == 0


def test_what_is_reached_already_costs_nothing() -> None:
    assert one(lambda a: a, torch.zeros(3)).calls == 0


def test_why_a_request_is_not_reached() -> None:
    steep = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0]).double()

    def respond(a: Tensor) -> Tensor:
        line = a
        saturating = a.tanh()
        jumping = torch.where(a > 0.613, 2.0, 0.5 * a)
        bump = 0.6 * torch.exp(-((a - 0.5) ** 2) / 0.02) - 0.6 * torch.exp(torch.tensor(-12.5).double())
        flat = 0 * a
        return steep * torch.stack([line[0], saturating[1], jumping[2], bump[3], flat[4]])

    found = one(respond, torch.tensor([5.0, 1.5, 1.0, 1.0, 1.0]).double(), limit=4.0, calls=40)
    assert ends(found) == ["limited", "saturated", "jumps", "not monotone", "saturated"]
    assert float(found.amount[0]) == pytest.approx(4)
    assert float(found.value[1]) == pytest.approx(1, abs=1e-3)
    assert float(found.amount[2]) == pytest.approx(0.613, abs=0.01)
    assert float(found.amount[4]) == 0


def test_a_bend_is_looked_beyond() -> None:
    # falls first in either direction and rises far out: the request lies at +2
    found = one(lambda a: a.abs() * (a - 1.5), torch.ones(1).double(), calls=30)
    assert ends(found) == ["reached"]
    wave = one(lambda a: torch.sin(3 * a) + a, torch.tensor([2.0, -2.0, 2.8]).double(), calls=30)
    assert ends(wave) == ["reached"] * 3


def test_kinks_and_powers_are_closed_in_on() -> None:
    target = torch.tensor([0.5, 0.5, 30.0, -0.2]).double()

    def respond(a: Tensor) -> Tensor:
        kink = torch.where(a[0] < 1, 0.01 * a[0], 0.01 + 10 * (a[0] - 1))
        return torch.stack([kink, a[1] ** 5, a[2].exp() - 1, a[3].sign() * a[3].abs().sqrt()])

    found = one(respond, target)
    assert ends(found) == ["reached"] * 4


def test_undefined_rows_are_left_alone() -> None:
    found = one(lambda a: a, torch.tensor([torch.nan, 1.0]))
    assert ends(found) == ["undefined", "reached"]
    assert float(found.amount[0]) == 0
    # a response that is undefined on the way counts as no answer
    found = one(lambda a: torch.where(a > 0.5, torch.nan, a), torch.tensor([1.0, 0.4]))
    assert ends(found)[1] == "reached"
    assert ends(found)[0] != "reached"
    assert found.value.isfinite().all()


def test_rows_do_not_know_of_each_other() -> None:
    slope = torch.linspace(0.3, 3, 8).double()
    target = torch.linspace(-2, 2, 8).double()
    together = one(lambda a: torch.sinh(slope * a), target)
    for i in range(8):
        alone = one(lambda a, i=i: torch.sinh(slope[i] * a), target[i : i + 1])
        assert torch.equal(alone.amount[0], together.amount[i])


def ball(tau: Tensor) -> Tensor:
    return tau.norm(dim=1) / 5


def several(function: Callable[[Tensor], Tensor], target: Tensor, *, calls: int = 30) -> Solved:
    start = function(torch.zeros(len(target), 2).double())
    full = torch.ones_like(target)
    return solve_several(function, start, target, 1e-3 * full, ball, 0.1 * torch.ones(len(target), 2).double(), calls)


def test_two_interacting_amounts_are_solved_jointly() -> None:
    # the second vector moves the first readout more than the first one does
    mixing = torch.tensor([[1.0, 2.0], [-0.5, 1.0]]).double()
    target = torch.tensor([[1.0, 1.0], [0.5, -0.4], [0.0, 0.0]]).double()
    found = several(lambda a: a @ mixing.T, target)
    assert ends(found) == ["reached"] * 3
    assert found.calls <= 4  # two for the Jacobian, one step, perhaps another as damping is small, not zero
    torch.testing.assert_close(found.amount, target @ torch.linalg.inv(mixing).T, rtol=0, atol=2e-3)
    curved = several(lambda a: torch.stack([a[:, 0] + a[:, 1] ** 2, a[:, 0] * a[:, 1] + a[:, 1]], 1), target)
    assert ends(curved) == ["reached"] * 3


def test_a_joint_request_beyond_the_budget_comes_as_near_as_it_may() -> None:
    target = torch.tensor([[30.0, 40.0], [3.0, 0.0]]).double()
    found = several(lambda a: a, target)
    assert ends(found) == ["limited", "reached"]
    torch.testing.assert_close(found.amount[0], torch.tensor([3.0, 4.0]).double(), rtol=1e-3, atol=0)
    stuck = several(lambda a: torch.stack([a.sum(1), a.sum(1)], 1), torch.tensor([[1.0, -1.0], [1.0, 1.0]]).double())
    assert ends(stuck) == ["saturated", "reached"]
    assert several(lambda a: a, target, calls=2).calls == 2


def readout(steered: Output, clean: Output, batch: Any) -> dict[str, Tensor]:
    y = steered["y"]
    return {
        "first": y[:, 0, 0],
        "second": y[:, 0, 1],
        "sum": y.sum((1, 2)),
        "width": (y - clean["y"]).abs().sum((1, 2)),
    }


def test_a_linear_network_is_steered_where_it_is_asked() -> None:
    case = CASES["blocks"]()
    along = torch.stack([torch.ones(8), torch.linspace(-1, 1, 8)])
    wanted = torch.tensor([0.5, -0.5, 0.2, 0.0])
    loop = Loop(share=30.0)
    for via in (Steer, lambda along, by: Limit(Steer(along, by), 100.0)):
        found = control(
            case.model,
            case.batch,
            "second",
            along[:1],
            [Goal("sum", wanted, "difference", 1e-3)],
            readout,
            loop,
            via=via,
        )
        assert ends(found) == ["reached"] * 4
        torch.testing.assert_close(found.after[:, 0] - found.before[:, 0], wanted, rtol=0, atol=1.1e-3)
        torch.testing.assert_close(found.output["y"].sum((1, 2)), found.after[:, 0])
        assert found.change[3] == 0
        assert found.passes <= 8
    both = [Goal("first", 0.3, "difference", 1e-3), Goal("second", -0.2, "difference", 1e-3)]
    joint = control(case.model, case.batch, "second", along, both, readout, loop, where=Where("all"))
    assert ends(joint) == ["reached"] * 4
    torch.testing.assert_close(joint.after - joint.before, torch.tensor([0.3, -0.2]).expand(4, 2), rtol=0, atol=1.1e-3)
    assert joint.shares()["reached"] == 1


def test_the_budget_holds_and_nothing_gets_worse() -> None:
    case = CASES["redmotion"]()

    def ends_at(steered: Output, clean: Output, batch: Any) -> dict[str, Tensor]:
        return {"x": steered["trajectory"][:, 0, -1, 0], "y": steered["trajectory"][:, 0, -1, 1]}

    along = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    far = [Goal("x", 1e3, "difference", 1.0), Goal("y", 1e3, "difference", 1.0)]
    for goals in (far[:1], far):
        for via in (Steer, Rotate):
            loop = Loop(passes=12, share=0.4)
            found = control(case.model, case.batch, "agent.2", along[: len(goals)], goals, ends_at, loop, via=via)
            assert set(ends(found)) <= {"limited", "saturated", "not monotone", "unfinished"}
            assert (found.change <= 0.4 + 1e-5).all()
            assert found.change.amax() > 0.2
            before, after = ((found.target - x).square().sum(1) for x in (found.before, found.after))
            assert (after <= before).all()
            assert found.passes <= 12
    # rows without a request are passed as they came
    some = Goal("x", 5.0, "relative", 1.0, minimum=float(found.before[:, 0].median()))
    part = control(case.model, case.batch, "agent.2", along[:1], [some], ends_at, Loop(share=0.4))
    skipped = part.outcome == OUTCOMES.index("undefined")
    assert 0 < int(skipped.sum()) < len(skipped)
    assert (part.tau[skipped] == 0).all()
    torch.testing.assert_close(part.after[skipped], part.before[skipped], rtol=1e-5, atol=1e-6)
    assert torch.equal(part.target.isnan()[:, 0], skipped)


def test_a_token_of_a_language_model_can_be_asked_for() -> None:
    case = CASES["gpt2"]()

    def logit(steered: Output, clean: Output, batch: Any) -> dict[str, Tensor]:
        return {"logit": steered["logits"][:, -1, 7]}

    along = torch.randn(1, 32, generator=torch.Generator().manual_seed(4))
    goal = Goal("logit", 0.05, "difference", 1e-3)
    found = control(case.model, case.batch, "resid.0", along, [goal], logit, where=Where("valid"))
    reached = found.outcome == 0
    assert reached.sum() >= 2
    torch.testing.assert_close(
        (found.after - found.before)[reached], torch.full((int(reached.sum()), 1), 0.05), rtol=0, atol=1.1e-3
    )


def test_what_cannot_be_asked_is_refused() -> None:
    case, along = CASES["blocks"](), torch.ones(1, 8)
    goal = Goal("sum", 1.0, "difference", 0.1)
    with pytest.raises(ValueError, match=r"vectors \[k, 8\] are needed at 'second', given \[1, 3\]"):
        control(case.model, case.batch, "second", torch.ones(1, 3), [goal], readout)
    with pytest.raises(ValueError, match="at least one goal"):
        control(case.model, case.batch, "second", along, [], readout)
    with pytest.raises(ValueError, match="no readout is called 'speed'; there are first, second, sum, width"):
        control(case.model, case.batch, "second", along, [Goal("speed", 1.0, "value", 0.1)], readout)
    with pytest.raises(ValueError, match=r"4 rows need 4 amounts of sum or one for all, given \[3\]"):
        control(case.model, case.batch, "second", along, [Goal("sum", torch.ones(3), "value", 0.1)], readout)
    with pytest.raises(ValueError, match="tolerance of sum should be positive, it is 0"):
        Goal("sum", 1.0, "difference", 0)
    with pytest.raises(ValueError, match="sum cannot fall by more than 100 %"):
        Goal("sum", -120.0, "relative", 1.0)
    with pytest.raises(ValueError, match="at least one pass"):
        Loop(passes=0)
    with pytest.raises(ValueError, match="the share of the norm should be positive"):
        Loop(share=0)
