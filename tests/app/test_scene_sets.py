"""Scenes to choose from: a run's own, simulated ones in their place, recorded ones beside them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from innerspace.app.forecasts import Forecasts, ForecastView
from innerspace.app.held import Held
from innerspace.app.scene_sets import AGENTS, OFFERED, scene_sets
from innerspace.jobs.control import WordsInMotion
from innerspace.jobs.inputs.data import Data
from innerspace.motion.argoverse import Argoverse2
from innerspace.motion.scenes import Scene
from innerspace.motion.simulate import Simulation, simulate
from innerspace.motion.sources import SceneSource, Skipped


class Crowded(SceneSource):
    """Simulated scenes at another rate, or with more agents to forecast than are offered."""

    def records(self) -> list[str]:
        return ["all"]

    def read(self, record: str) -> Iterator[Scene | Skipped]:
        for scene in simulate(Simulation(scenes=12, seed=3, agents=6, history=11, future=30)).scenes:
            # the last agents are the fast ones
            agents = len(scene.kind)
            copies = 9
            order = np.arange(copies) % agents
            velocity = scene.velocity[order] * (1 + np.arange(copies))[:, None, None]
            yield replace(
                scene,
                position=scene.position[order],
                heading=scene.heading[order],
                velocity=velocity,
                size=scene.size[order],
                kind=scene.kind[order],
                valid=np.ones_like(scene.valid[order]),
                target=np.arange(copies),
            )


@pytest.fixture(scope="module")
def job(folder: Path) -> WordsInMotion:
    return WordsInMotion.load(folder / "job.json")


def test_a_runs_own_scenes_are_those_that_it_judged_on(job: WordsInMotion) -> None:
    (own,), missing = scene_sets(job, None)
    judged = {scene.name for scene in job.data.read(job.forecaster.framing).test}
    assert missing == ""
    assert own.title == "held out"
    assert {scene.name for scene in own.scenes} <= judged
    assert 5 < len(own.scenes) == len(own.captions) <= OFFERED
    assert all(caption.startswith("a ") for caption in own.captions)


def test_simulated_scenes_stand_in_for_those_that_are_gone(job: WordsInMotion, tmp_path: Path) -> None:
    (stand_in,), missing = scene_sets(replace(job, data=Data(kind="av2", path=tmp_path / "none")), None)
    assert stand_in.title == "simulated"
    assert f"the scenes that the run judged on cannot be read: data.path: no folder at {tmp_path / 'none'}" in missing


def test_of_many_agents_the_fastest_are_forecast(job: WordsInMotion) -> None:
    _, given = scene_sets(job, Crowded())[0]
    assert given.title == "Crowded"
    for scene in given.scenes:
        speed = np.linalg.norm(scene.velocity[:, scene.now], axis=1)
        assert len(scene.target) == AGENTS
        assert speed[scene.target].min() >= np.delete(speed, scene.target).max()


def test_recorded_scenes_stand_beside(folder: Path, assets: Path) -> None:
    pytest.importorskip("pyarrow", reason="Argoverse 2 needs the extra 'motion'")
    if not (assets / "motion" / "av2").is_dir():
        pytest.skip(f"no Argoverse 2 files below {assets / 'motion' / 'av2'}")
    forecasts = Forecasts(Held.open(folder, Argoverse2(assets / "motion" / "av2")))
    assert [item.title for item in forecasts.sets] == ["held out", "Argoverse2"]
    found = forecasts.steer(ForecastView(scenes="Argoverse2", tau=(("speed", 0.2),)))
    assert found.steered.trajectory.isfinite().all()
    assert not (found.steered.trajectory[0] == found.clean.trajectory[0]).all()
