"""Forecasts under vectors: as computed plainly, alike for all who ask at once, and drawn where they lie."""

import re
import runpy
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from innerspace.app.forecast_charts import warnings
from innerspace.app.forecast_drawings import KEY, Drawings
from innerspace.app.forecast_files import code, picture, vectors
from innerspace.app.forecasts import Forecasts, ForecastView
from innerspace.app.held import Held
from innerspace.app.scene_map import SceneMap
from innerspace.decompose.directions import Directions
from innerspace.interventions import At, Steer
from innerspace.measure.forecasts import forecast
from innerspace.motion.forecast_metrics import Forecast
from innerspace.motion.framing import frame
from innerspace.motion.responses import Limits
from innerspace.network.site import Where

STEERED = ForecastView(scene=2, agents=(1,), tau=(("speed", 0.3), ("direction", -0.2)), method="mean_difference")


@pytest.fixture(scope="module")
def forecasts(folder: Path) -> Forecasts:
    return Forecasts(Held.open(folder))


@pytest.fixture(scope="module")
def drawings(forecasts: Forecasts) -> Drawings:
    return Drawings(forecasts)


def plainly(forecasts: Forecasts, view: ForecastView) -> Forecast:
    """The same by one pass from the start, all agents by themselves."""
    scene = forecasts.sets[0].scenes[view.scene]
    batch = frame([scene], forecasts.job.forecaster.framing)
    stored = Directions.load(forecasts.run.folder / "directions.safetensors")
    parts = list[Forecast]()
    for row in range(len(batch)):
        edits = list[At]()
        for feature, amount in view.tau if row in view.agents else ():
            first = next(
                i for i, o in enumerate(stored.origins) if (o.feature, o.method) == (feature, "mean_difference")
            )
            edits.append(At(Where("valid"), Steer(stored.directions[first], amount)))
        site = view.site or "agent.2"
        with torch.no_grad():
            parts.append(forecast(forecasts.model.run(batch[slice(row, row + 1)], {site: edits}).output))
    return Forecast(torch.cat([p.trajectory for p in parts]), torch.cat([p.probability for p in parts]))


@pytest.mark.parametrize("site", ["", "agent.0"])
def test_forecasts_are_those_of_a_plain_pass(forecasts: Forecasts, site: str) -> None:
    view = replace(STEERED, site=site)
    found, expected = forecasts.steer(view), plainly(forecasts, view)
    torch.testing.assert_close(found.steered.trajectory, expected.trajectory, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.steered.probability, expected.probability, atol=1e-4, rtol=1e-4)
    # who is not chosen stays as it is, bit for bit
    assert torch.equal(found.steered.trajectory[0], found.clean.trajectory[0])
    assert (found.steered.trajectory[1] - found.clean.trajectory[1]).abs().max() > 1e-3


def test_nothing_changes_at_zero(forecasts: Forecasts) -> None:
    found = forecasts.steer(replace(STEERED, tau=(("speed", 0.0),)))
    assert torch.equal(found.steered.trajectory, found.clean.trajectory)
    assert found.tau == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scenes": "nowhere"}, "there are no scenes called 'nowhere'; there are held out"),
        ({"scene": 4000}, "there is no scene 4000; held out has scenes 0 to"),
        ({"scene": -1}, "there is no scene -1"),
        ({"agents": ()}, "choose at least one agent"),
        ({"agents": (0, 9)}, "there is no agent 9; the scene has agents 0 to 1"),
        ({"site": "red.0"}, "added at agent.0, agent.2, not at 'red.0'"),
        ({"method": "magic"}, "no vector was fitted by 'magic'; there are mean_difference"),
        ({"mode": "sideways"}, "unknown mode 'sideways'; possible are additive"),
        ({"tau": (("size", 1.0),)}, "no vector steers 'size' by mean_difference; there are vectors of speed"),
        ({"tau": (("speed", 99.0),)}, "τ of speed should lie within ±"),
    ],
)
def test_what_there_is_not_is_refused(forecasts: Forecasts, change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        forecasts.steer(replace(STEERED, **change))


def test_many_at_once_get_what_each_would_alone(folder: Path, forecasts: Forecasts) -> None:
    views = [
        replace(
            STEERED, scene=i % 5, agents=(i % 2,), site=("", "agent.0")[i % 3 == 0], tau=(("speed", 0.02 * (i - 10)),)
        )
        for i in range(30)
    ]
    alone = [forecasts.steer(view).steered.trajectory for view in views]
    # nothing is kept from before
    fresh = Forecasts(Held.open(folder))
    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(lambda view: fresh.steer(view).steered.trajectory, views))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


def test_a_sentence_moves_the_sliders(forecasts: Forecasts) -> None:
    view, notes = forecasts.obey(replace(STEERED, agents=(0,), tau=()), "turn right by 4°")
    ((feature, amount),) = view.tau
    assert (feature, view.ask, amount) == ("direction", "turn right by 4°", round(amount, 2))
    found = forecasts.steer(view)
    # the tolerance of the loop, and what the slider's steps leave
    assert float(found.after["heading"][0]) == pytest.approx(float(found.before["heading"][0]) - 4, abs=2.1)
    # what is said is what is drawn
    told = re.fullmatch(r"agent 1, heading: (-?[\d.]+) → (-?[\d.]+) °, asked for (-?[\d.]+)", notes[0])
    assert told is not None
    assert float(told[2]) == pytest.approx(float(found.after["heading"][0]), abs=0.051)


def test_what_a_sentence_cannot_have_is_said(forecasts: Forecasts) -> None:
    view, notes = forecasts.obey(replace(STEERED, agents=(0,), tau=()), "90 % slower")
    assert abs(dict(view.tau)["speed"]) == forecasts.offered("mean_difference")["speed"].reach
    assert "is beyond the slider, which ends at ±" in notes[0]
    assert notes[-1].startswith("agent 1: the ")
    with pytest.raises(ValueError, match="'fly' is not understood; possible are 'faster'"):
        forecasts.obey(STEERED, "fly")


def test_a_run_that_is_gone_is_told(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    forecasts = Forecasts(Held.open(copy))
    forecasts.steer(STEERED)
    shutil.rmtree(copy)
    with pytest.raises(ValueError, match="is gone; put it back"):
        forecasts.steer(STEERED)


def points(svg: str, style: str) -> Iterator[np.ndarray]:
    """What the paths of a style run through, in the frame of the first agent."""
    for d in re.findall(rf'<path class="{style}"[^>]* d="M([^"]+)"', svg):
        drawn = np.array([[float(n) for n in pair.split()] for pair in d.split("L")])
        yield -drawn[:, ::-1]


def test_the_map_draws_forecasts_where_they_lie(forecasts: Forecasts, drawings: Drawings) -> None:
    found = forecasts.steer(STEERED)
    svg = drawings.map_of(STEERED, found).draw(found)
    batch = found.stage.batch
    yaw, origin = float(batch.yaw[0]), batch.origin[0].numpy()

    def seen(world: np.ndarray) -> np.ndarray:
        x, y = (world - origin).T
        return np.stack([np.cos(yaw) * x + np.sin(yaw) * y, -np.sin(yaw) * x + np.cos(yaw) * y], 1)

    (drawn,) = points(svg, "mode best hue-1")
    own = found.steered.most_likely()[1].double().numpy()
    angle = float(batch.yaw[1])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    np.testing.assert_allclose(drawn[1:], seen(own @ turn.T + batch.origin[1].numpy()), atol=0.006)
    np.testing.assert_allclose(drawn[0], seen(batch.origin[1:2].numpy())[0], atol=0.006)
    ghosts = list(points(svg, "ghost"))
    assert len(ghosts) == 2
    np.testing.assert_allclose(ghosts[0][1:], found.clean.most_likely()[0].numpy(), atol=0.006)
    # all that is likely at any temperature is on the map
    view = drawings.map_of(STEERED, found).view
    assert (view.width, view.height) == (view.width, view.width)
    for path in (drawn, ghosts[1]):
        assert ((-path[:, 1] >= view.left) & (-path[:, 1] <= view.left + view.width)).all()
        assert ((-path[:, 0] >= view.top) & (-path[:, 0] <= view.top + view.height)).all()
    assert isinstance(drawings.map_of(STEERED, found), SceneMap)


def test_what_cannot_be_driven_is_said(forecasts: Forecasts) -> None:
    found = forecasts.steer(STEERED)
    time = torch.arange(1, found.clean.trajectory.shape[2] + 1) * found.stage.batch.interval
    straight = torch.stack([10 * time, torch.zeros_like(time)], -1).expand_as(found.clean.trajectory)
    circle = torch.stack([8 * torch.sin(10 * time / 8), 8 - 8 * torch.cos(10 * time / 8)], -1).expand_as(straight)
    calm = replace(
        found, clean=Forecast(straight, found.clean.probability), steered=Forecast(straight, found.clean.probability)
    )
    assert warnings(calm, Limits()) == []
    wild = replace(calm, steered=Forecast(circle, found.clean.probability))
    ((line, kind),) = warnings(wild, Limits())
    assert kind == "warning"
    # v² / r = 100 / 8
    assert line.startswith("Agent 2, a ")
    assert "becomes infeasible: lateral acceleration 1" in line
    assert "the limit is 5." in line
    ((line, kind),) = warnings(replace(wild, clean=wild.steered), Limits())
    assert kind == "note"
    assert "is infeasible, steered or not" in line


def test_drawings_hold_words_and_hostile_ones_stay_words(drawings: Drawings) -> None:
    drawn = drawings.draw(replace(STEERED, ask="<script>alert(1)</script>"))
    for html in (drawn.map, drawn.under, drawn.beside, drawn.below):
        assert "<script>" not in html
        assert all("aria-label=" in head for head in re.findall(r"<svg[^>]*>", html))
    assert "agent 2, steered" in drawn.map
    assert "fitted at" not in drawn.under
    moved = drawings.draw(replace(STEERED, site="agent.0"))
    assert "The vectors were fitted at agent.2, and are added at agent.0." in moved.under
    assert 'data-address="forecasts.scene=2&amp;forecasts.agents=1' in drawn.under


def test_the_vector_file_holds_what_is_added(forecasts: Forecasts, tmp_path: Path) -> None:
    (tmp_path / "vectors.safetensors").write_bytes(vectors(forecasts, STEERED))
    found = Directions.load(tmp_path / "vectors.safetensors")
    assert [origin.feature for origin in found.origins] == ["speed", "direction"]
    offered = forecasts.offered("mean_difference")
    expected = torch.stack([offered["speed"].along, offered["direction"].along])
    torch.testing.assert_close(found.directions, expected)


def test_the_code_gives_the_same_forecasts(
    forecasts: Forecasts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "forecasts.py").write_text(code(forecasts, STEERED))
    monkeypatch.chdir(tmp_path)
    runpy.run_path("forecasts.py")
    written, found = load_file("forecasts.safetensors"), forecasts.steer(STEERED).steered
    torch.testing.assert_close(written["trajectory"], found.trajectory, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(written["probability"], found.probability, atol=1e-4, rtol=1e-4)
    assert capsys.readouterr().out.count("ends at") == 2


def test_the_picture_stands_alone(drawings: Drawings) -> None:
    from xml.etree import ElementTree

    svg = picture(drawings, STEERED)
    root = ElementTree.fromstring(svg)
    assert root.get("width") == "1000"
    assert "var(" not in svg
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    assert "speed τ = +0.3, direction τ = -0.2 at agent.2" in svg
    assert ForecastView.of(STEERED.query(KEY), KEY) == STEERED
