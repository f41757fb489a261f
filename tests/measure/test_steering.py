"""Curves with known answers."""

import pytest
import torch
from torch import Tensor

from families import CASES
from innerspace.interventions import Read, Steer
from innerspace.measure.cost import SitesCost, cost, cost_by_site, hook_microseconds
from innerspace.measure.estimate import Estimate, from_copies, over_seeds
from innerspace.measure.steering import Curve, Output, Response, calibrate, respond, straightness
from innerspace.steering_modes import Limit

TAU = torch.linspace(-2, 2, 9)


def response(value: Tensor) -> Response:
    return Response(TAU, value, torch.arange(value.shape[1]))


def test_a_linear_response_is_linear() -> None:
    base = torch.tensor([2.0, 4.0, 6.0])
    curve = calibrate(response(base * (1 + 0.1 * TAU[:, None])), kind="relative")
    assert [round(point.mean, 5) for point in curve.response] == [-20, -15, -10, -5, 0, 5, 10, 15, 20]
    for number in (curve.pearson, curve.r2, curve.straightness):
        assert number.mean == pytest.approx(1)
        assert number.low == pytest.approx(1)
    assert curve.slope.mean == pytest.approx(10)
    assert curve.range == (-2, 2)
    assert curve.span == pytest.approx((-20, 20))
    assert curve.inverse(-7.5) == pytest.approx(-0.75)
    assert curve.inverse(25) is None


def test_the_ratio_of_sums_is_not_ruled_by_those_that_hardly_move() -> None:
    moving, parked = torch.full((60,), 10.0), torch.full((40,), 0.01)
    value = torch.cat([moving * 1.1, parked + 0.05])
    both = torch.stack([torch.cat([moving, parked]), value])
    curve = calibrate(Response(torch.tensor([0.0, 1.0]), both, torch.arange(100)), kind="relative", minimum=0.5)
    assert curve.response[1].mean == pytest.approx(10)
    assert float((100 * (value / both[0] - 1)).mean()) > 50


def test_the_window_keeps_what_is_connected_with_zero() -> None:
    # beyond τ = 1 the response saturates at 100 %, beyond ±50 % it is out of the window
    shape = (100 * TAU).clamp(-100, 100)
    curve = calibrate(response(10 * (1 + shape[:, None] / 100)), kind="relative", window=50)
    assert curve.pearson.mean == pytest.approx(1)
    assert curve.slope.mean == pytest.approx(100)
    assert curve.range == (-1, 1)
    wide = calibrate(response(10 * (1 + shape[:, None] / 100)), kind="relative")
    assert wide.r2.mean < 0.95


def test_the_interval_comes_from_groups() -> None:
    gain = torch.tensor([1.0, 3.0]).repeat_interleave(50)
    value = 10 + gain * TAU[:, None]
    by_row = calibrate(Response(TAU, value, torch.arange(100)), kind="difference").response[-1]
    by_scene = calibrate(Response(TAU, value, torch.arange(100) // 50), kind="difference").response[-1]
    assert by_row.mean == by_scene.mean == pytest.approx(4)
    assert by_scene.high is not None
    assert by_row.high is not None
    assert by_scene.high - by_scene.mean > 3 * (by_row.high - by_row.mean)


def test_undefined_readouts_do_not_count() -> None:
    value = 1 + TAU[:, None] * torch.ones(1, 3)
    value[4, 1] = torch.nan
    assert calibrate(response(value), kind="difference").response[0].mean == pytest.approx(-2)
    with pytest.raises(ValueError, match="no sample has a defined readout"):
        calibrate(response(value * torch.nan), kind="difference")


def test_published_straightness() -> None:
    # the calibration curve of the published plain PCA vector, read off its figure
    tau = torch.arange(-20, 15, 2).double()
    relative = torch.tensor(
        [-1.6, -2.0, -2.3, -2.5, -2.6, -2.5, -2.4, -2.2, -1.8, -1.1, 0, 6.5, 9.3, 13.4, 19, 27, 37.7, 51]
    ).double()
    assert straightness(tau, relative, unit_free=False) == pytest.approx(0.848, abs=2e-3)
    assert float(torch.corrcoef(torch.stack([tau, relative]))[0, 1]) == pytest.approx(0.823, abs=2e-3)
    for factor in (0.1, 10):
        assert straightness(tau * factor, relative) == pytest.approx(straightness(tau, relative))
    line = torch.linspace(0, 1, 5)
    assert straightness(line, 3 * line) == pytest.approx(1)


def test_curves_are_values() -> None:
    curve = calibrate(response(10 + TAU[:, None] * torch.ones(1, 3)), kind="difference")
    assert Curve.from_json(curve.to_json()) == curve


def test_respond_runs_every_temperature() -> None:
    case = CASES["blocks"]()
    along, groups = torch.ones(8), torch.arange(8) // 2

    def readout(steered: Output, clean: Output, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        y = steered["y"]
        return {"first": y[:, 0, 0], "sum": y.sum((1, 2)), "change": (y - clean["y"]).sum((1, 2))}

    found = respond(case.model, [case.batch, case.batch], "second", along, TAU, readout, groups)
    assert found["sum"].value.shape == (9, 8)
    torch.testing.assert_close(found["sum"].value[:, :4], found["sum"].value[:, 4:])
    torch.testing.assert_close(found["change"].value, found["sum"].value - found["sum"].value[4])
    known = [case.model.fork(case.batch, "second")] * 2
    again = respond(case.model, [case.batch] * 2, "second", along, TAU, readout, groups, forks=known)
    assert torch.equal(again["change"].value, found["change"].value)
    curve = calibrate(found["sum"], kind="difference")
    assert curve.pearson.mean == pytest.approx(1, abs=1e-5)  # what follows the site is linear
    with pytest.raises(ValueError, match="τ = 0 is the baseline"):
        respond(case.model, [case.batch], "second", along, TAU[:3], readout, groups[:4])
    with pytest.raises(ValueError, match="width 3, the hidden states at 'second' have 8"):
        respond(case.model, [case.batch], "second", along[:3], TAU, readout, groups[:4])
    with pytest.raises(ValueError, match="8 groups were given for 4 samples"):
        respond(case.model, [case.batch], "second", along, TAU, readout, groups)


def test_intervals() -> None:
    assert over_seeds([2.0]) == Estimate(2.0)
    three = over_seeds([1.0, 2.0, 3.0])
    assert three.low == pytest.approx(2 - 4.303 / 3**0.5)
    many = over_seeds([float(i % 2) for i in range(40)])
    assert many.high == pytest.approx(0.5 + 2.0227 * 0.50637 / 40**0.5, abs=1e-3)
    assert from_copies(1.0, torch.linspace(0, 1, 1001)).high == pytest.approx(0.975)
    with pytest.raises(ValueError, match="at least one"):
        over_seeds([])


def test_cost_is_measured() -> None:
    case = CASES["blocks"]()
    found = cost(case.model, case.batch, {"first": Steer(torch.ones(8), 1.0)}, rounds=5)
    assert found.plain_ms.mean > 0
    assert found.ratio.mean > 0
    assert found.extra_bytes >= 4 * 5 * 8 * 4  # at least the steered hidden states of 4 rows of 5 tokens
    assert hook_microseconds(case.model, rounds=5) > 0


def test_cost_is_measured_at_every_site() -> None:
    case = CASES["redmotion"]()
    found = cost_by_site(case.model, case.batch, len(case.batch), rounds=3)
    assert [one.site for one in found.sites] == list(case.model.sites)
    assert found.device == "cpu"
    assert found.plain_ms.mean > 0
    for one in found.sites:
        assert one.ratio.mean > 0
        assert one.ratio.low is not None
        assert one.ratio.low <= one.ratio.mean
        assert one.peak_bytes is None
        # at least the sum, and what is steered of it
        site = case.model.site(one.site)
        states = case.model.run(case.batch, {site.name: Read()}).hidden[site.name]
        assert one.extra_bytes >= 2 * states.numel() * 4
    assert SitesCost.from_json(found.to_json()) == found
    with pytest.raises(ValueError, match="at least 3 rounds, given 2"):
        cost_by_site(case.model, case.batch, len(case.batch), rounds=2)


def test_other_ways_of_steering_have_curves_too() -> None:
    case, along = CASES["blocks"](), torch.ones(8)

    def moved(steered: Output, clean: Output, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sum": (steered["y"] - clean["y"]).sum((1, 2))}

    ways = (Steer, lambda along, by: Limit(Steer(along, by), 1e9), lambda along, by: Limit(Steer(along, by), 0.0))
    free, wide, none = (
        respond(case.model, [case.batch], "second", along, TAU, moved, torch.arange(4), via=way)["sum"].value
        for way in ways
    )
    torch.testing.assert_close(wide, free)
    assert free[0].abs().min() > 0
    assert none.abs().max() < 1e-6
