"""Control under shifts, on a planted forecaster whose hidden state holds the speed and nothing else steers it."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from innerspace.jobs.motion.shifted import METHODS, METRICS, Control, Steered, judge, measured_factor
from innerspace.jobs.motion.unseen_words import opening
from innerspace.measure.estimate import Estimate
from innerspace.measure.forecasts import readout
from innerspace.measure.paired import Resamples
from innerspace.measure.steering import Curve, calibrate, respond
from innerspace.motion.framing import Batch, Framing, frame
from innerspace.motion.scenes import Scene
from innerspace.motion.shifts import SamplingRate, Shift, Speed
from innerspace.motion.simulate import Simulation, simulate
from innerspace.network.model import Family, Model
from innerspace.network.site import Site

FRAMING = Framing(future=30, stride=5)
ALONG = torch.tensor([1.0, 0.0, 0.0])


class Keeping(nn.Module):
    """Every agent keeps its velocity times 1 + the first entry of its state, which is zero; the others do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.state = nn.Linear(2, 3, bias=False)
        nn.init.zeros_(self.state.weight)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        hidden = self.state(batch.target.velocity)
        pace = 1 + hidden[:, -1, :1]
        time = torch.arange(1, batch.future.shape[1] + 1) * batch.interval
        way = (pace * batch.target.velocity[:, -1])[:, None, None] * time[:, None]
        # the second mode is far off and unlikely
        both = torch.cat((way, way + 500.0), 1)
        return {"trajectory": both, "logits": torch.tensor([2.0, -2.0]).expand(len(batch), 2)}


class KeepingFamily(Family):
    def sites(self, module: nn.Module) -> list[Site]:
        return [Site("agent", "state", 3)]

    def forward(self, module: nn.Module, batch: Any) -> dict[str, Tensor]:
        return module(batch)

    def mask(self, batch: Batch, site: Site) -> Tensor:
        return batch.target.valid


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Agents that keep their velocity: their simulated futures are replaced by it."""
    kept = list[Scene]()
    for scene in simulate(Simulation(scenes=40, dropout=0.0, future=60, targets=1)).scenes:
        position, velocity, heading = scene.position.copy(), scene.velocity.copy(), scene.heading.copy()
        time = torch.arange(1, scene.valid.shape[1] - scene.now).numpy() / scene.hz
        now = scene.now
        position[:, now + 1 :] = position[:, now, None] + velocity[:, now, None] * time[:, None]
        velocity[:, now + 1 :], heading[:, now + 1 :] = velocity[:, now, None], heading[:, now, None]
        kept.append(dataclasses.replace(scene, position=position, velocity=velocity, heading=heading))
    return kept


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(Keeping(), KeepingFamily())


@pytest.fixture(scope="module")
def curve(scenes: list[Scene], model: Model) -> Curve:
    batch = frame(scenes, FRAMING)
    tau = torch.linspace(-0.8, 0.8, 9)
    found = respond(model, [batch], "agent", ALONG, tau, readout, batch.scene)["speed"]
    return calibrate(found, kind="relative", minimum=1.0)


def met(shift: Shift, factor: float, scenes: list[Scene], model: Model, curve: Curve) -> dict[str, Any]:
    truth = frame([shift.apply(scene) for scene in scenes], FRAMING)
    control = Control(ALONG, [torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, -1.0])], curve)
    steered = Steered(model, "agent", truth if shift.seen else frame(scenes, FRAMING))
    return judge(shift, factor, steered, truth, control, Resamples(truth.scene, 100))


@pytest.mark.parametrize("factor", [0.5, 1.35])
def test_where_the_vector_is_speed_control_closes_the_gap(
    factor: float, scenes: list[Scene], model: Model, curve: Curve
) -> None:
    row = met(Speed(factor), factor, scenes, model, curve)
    assert row["reached"]
    assert row["tau"] == pytest.approx(factor - 1, abs=1e-4)
    assert row["oracle_tau"] == row["tau"]
    assert row["complete"] == 1
    assert list(row["methods"]) == list(METHODS)
    fde = {method: scores["min_fde"].mean for method, scores in row["methods"].items()}
    assert fde["controlled"] < 1e-3 < 1 < fde["uncontrolled"]
    assert row["methods"]["controlled"]["map"].mean == pytest.approx(1)
    assert row["methods"]["controlled"]["waymo_miss_rate"].mean == 0
    assert row["closed"]["controlled"].mean == pytest.approx(1)
    # rescaling does the very same here, and vectors that hold nothing do nothing
    assert row["closed"]["rescaled"].low == pytest.approx(1, abs=1e-3)
    assert fde["random"] == fde["uncontrolled"]
    assert row["closed"]["random"] == Estimate(0.0, 0.0, 0.0)
    change = row["against"]["controlled"]["min_fde"]
    assert change.mean == pytest.approx(fde["controlled"] - fde["uncontrolled"])
    assert change.high < 0


def test_a_history_that_is_not_told_is_made_up_for(scenes: list[Scene], model: Model, curve: Curve) -> None:
    row = met(SamplingRate(5.0, told=False), 0.5, scenes, model, curve)
    fde = {method: scores["min_fde"].mean for method, scores in row["methods"].items()}
    assert fde["controlled"] < 1e-3 < fde["uncontrolled"]


def test_without_a_gap_there_is_no_share(scenes: list[Scene], model: Model, curve: Curve) -> None:
    row = met(Speed(1.0), 1.0, scenes, model, curve)
    assert row["tau"] == row["oracle_tau"] == 0
    assert set(row["closed"].values()) == {None}
    assert all(row["against"][method][name].mean == 0 for method in METHODS[1:] for name in METRICS)


def test_out_of_reach_the_nearest_end_is_used_and_said(scenes: list[Scene], model: Model, curve: Curve) -> None:
    row = met(Speed(0.1), 0.1, scenes, model, curve)
    assert not row["reached"]
    assert row["tau"] == pytest.approx(-0.8)
    plain = met(Speed(1.0), 1.0, scenes, model, curve)
    said = opening([plain, row], curve, recorded=False)
    (line,) = (remark for remark in said["remarks"] if "out of reach" in remark)
    assert line.startswith("speed × 0.1: the wanted change of -90 % is out of reach of the calibration curve (-80 % to")
    assert said["headlines"][0]["value"] == "100 %"
    assert "at least half, as hoped" in said["headlines"][0]["note"]
    alone = opening([plain], curve, recorded=True)["remarks"]
    assert alone[0] == "No shift of futures alone opens a gap that the speed vector could close."
    assert any("Windows of a log overlap" in remark for remark in alone)


def test_the_words_do_not_praise_what_fails(scenes: list[Scene], model: Model, curve: Curve) -> None:
    # what is wanted is the opposite of what would help
    plain, row = met(Speed(1.0), 1.0, scenes, model, curve), met(Speed(0.5), 1.5, scenes, model, curve)
    assert row["closed"]["controlled"].mean < -0.5
    said = opening([plain, row], curve, recorded=False)
    assert "less than the half that was hoped for" in said["headlines"][0]["note"]
    assert f"The best temperature would be τ = {row['oracle_tau']:+.2f}." in said["remarks"][0]
    assert -0.7 < row["oracle_tau"] < -0.3


def test_what_a_shift_wants_is_measured_on_true_paths(scenes: list[Scene]) -> None:
    plain = frame(scenes, FRAMING)
    for factor in (0.5, 1.25):
        shifted = frame([Speed(factor).apply(scene) for scene in scenes], FRAMING)
        assert measured_factor(plain, shifted) == pytest.approx(factor, rel=1e-4)
    # waypoints that only one of the two has do not count
    cut = dataclasses.replace(shifted, future_valid=shifted.future_valid & (torch.arange(6) < 3))
    assert measured_factor(plain, cut) == pytest.approx(1.25, rel=1e-4)
    with pytest.raises(ValueError, match="none of the 40 agents moves"):
        measured_factor(plain, dataclasses.replace(plain, future_valid=torch.zeros_like(plain.future_valid)))


def test_temperatures_come_from_the_curve(curve: Curve) -> None:
    control = Control(ALONG, [], curve)
    assert control.temperature(0.0) == (0.0, True)
    tau, reached = control.temperature(30.0)
    assert tau == pytest.approx(0.3, abs=1e-4)
    assert reached
    assert control.temperature(500.0) == (pytest.approx(0.8), False)
