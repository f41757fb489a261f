"""A sweep over two tiny forecasters, its cells, its continuation, and what it concludes from made-up ones."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from innerspace.harvest.stream import TokenRule
from innerspace.jobs.inputs.data import Data
from innerspace.jobs.inputs.parts import Parts
from innerspace.jobs.job import execute
from innerspace.jobs.motion.optimized import Optimized
from innerspace.jobs.motion.steering import Steering
from innerspace.jobs.motion.sweep_rows import Cell, best_ways, conclusions, linearity_by_sparsity, overview
from innerspace.jobs.motion.vectors import Dictionaries
from innerspace.jobs.sweep import Sweep
from innerspace.learn.fit import FitConfig
from innerspace.learn.steering_vectors import SteeringFit
from innerspace.motion.forecast_metrics import ForecastScores
from innerspace.motion.forecasters.hptr import HptrSettings
from innerspace.motion.forecasters.redmotion import RedMotionSettings
from innerspace.motion.framing import Framing
from innerspace.motion.training import Training
from innerspace.network.site import Where
from innerspace.value import read_json

FRAMING = Framing(history=11, future=30, stride=5, agents=4, lines=8)
TINY = Sweep(
    data=Data(scenes=120),
    forecasters=(
        RedMotionSettings(framing=FRAMING, width=16, red_tokens=4, decoder_layers=1, modes=3),
        HptrSettings(framing=FRAMING, width=16, node_width=8, mode_layers=1, modes=3, neighbors=2),
    ),
    training=Training(steps=12, batch_size=32, warm_up=2, evaluate_every=6, checkpoint_every=6),
    sites=("agent.2",),
    tokens=(TokenRule(), TokenRule(Where("valid"), "mean")),
    methods=("mean_difference", "lda"),
    dictionaries=Dictionaries(kinds=("topk", "koopman"), k=4, batch=64, fit=FitConfig(steps=8, log_every=8)),
    latents=(8,),
    optimized=Optimized(batch=16, batches=1, fit=SteeringFit(steps=2)),
    # so little is asked that some way is always good enough to be chosen
    steering=Steering(points=5, samples=16, randoms=2, reach=1e-4, push=1e-6, turn=1e-6),
    seeds=2,
    held_out=12,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    execute(TINY, folder, Console(file=StringIO()))
    return folder


def cells_of(folder: Path) -> list[Cell]:
    return [Cell.from_json(json.loads(line)) for line in (folder / "cells.jsonl").read_text().splitlines()]


def test_every_way_is_judged_at_every_place(finished: Path) -> None:
    cells = cells_of(finished)
    assert len({cell.key for cell in cells}) == len(cells)
    choosing = [cell for cell in cells if not cell.held_out]
    features = {cell.feature for cell in cells}
    # two methods and two autoencoders, two seeds each, by rule; the optimized vectors do not depend on the rule
    expected = 2 * len(features) * (2 * (2 + 2) * 2 + 1)
    assert len(choosing) == expected
    assert {(cell.explained is None, cell.l0 is None) for cell in cells if not cell.latents} == {(True, True)}
    assert all(cell.l0 is not None and cell.explained is not None for cell in cells if cell.latents)
    sparse = [cell.l0 for cell in cells if cell.method == "topk"]
    assert all(count is not None and 0 < count <= 4 for count in sparse)
    report: dict[str, Any] = read_json(finished / "report.json")
    assert {row["forecaster"] for row in report["sweep"]} == {"RedMotion", "Hptr"}
    page = (finished / "report.html").read_text()
    assert "Does enforcing sparsity make the response" in page
    assert "had no part in choosing them" in page
    assert "Other numbers" not in page


def test_what_is_best_is_chosen_on_some_agents_and_reported_on_others(finished: Path) -> None:
    cells = cells_of(finished)
    report: dict[str, Any] = read_json(finished / "report.json")
    assert report["best"]
    for name in ("RedMotion", "Hptr"):
        own = [cell for cell in cells if cell.forecaster == name and not cell.held_out]
        ways = best_ways(own, TINY.steering.reaches)
        chosen = {cell.key: cell for cell in own if ways.get(cell.feature) == cell.way}
        reported = [cell for cell in cells if cell.forecaster == name and cell.held_out]
        assert {replace(cell, held_out=False).key for cell in reported} == set(chosen)
        # other agents, other figures
        assert all(cell.side != chosen[replace(cell, held_out=False).key].side for cell in reported)
    held_out = sum(cell.held_out for cell in cells)
    assert sum(row["seeds"] for row in report["best"]) == held_out
    assert "12 agents of the test split, of other scenes than the 12 that chose" in report["notes"]["best"]


def test_the_halves_of_the_test_split_share_no_group() -> None:
    parts = Parts.of(TINY.data.read(FRAMING), FRAMING, TINY.vocabulary)
    choosing, held_out = parts.halves()
    assert set(choosing.scene.tolist()).isdisjoint(held_out.scene.tolist())
    assert sorted([*choosing.scene.tolist(), *held_out.scene.tolist()]) == parts.test.scene.tolist()
    assert abs(len(choosing) - len(held_out)) <= 2
    assert parts.halves()[0].scene.equal(choosing.scene)
    assert not parts.halves(seed=1)[0].scene.equal(choosing.scene)
    # windows of one log are never torn apart
    logs = [replace(scene, group="a" if i % 3 else "b") for i, scene in enumerate(parts.splits.test)]
    two = replace(parts, splits=replace(parts.splits, test=logs))
    for half in two.halves():
        assert len({logs[i].group for i in half.scene.tolist()}) == 1
    one = replace(parts, splits=replace(parts.splits, test=[replace(scene, group="a") for scene in logs]))
    with pytest.raises(ValueError, match="one group only, 'a'"):
        one.halves()


def test_several_trainings_of_a_forecaster_are_swept_each(tmp_path: Path) -> None:
    job = replace(
        TINY,
        forecasters=TINY.forecasters[:1],
        forecaster_seeds=2,
        methods=("mean_difference",),
        tokens=(TokenRule(),),
        dictionaries=replace(TINY.dictionaries, kinds=()),
        optimized=replace(TINY.optimized, seeds=0),
        seeds=1,
    )
    execute(job, tmp_path / "sweep", Console(file=StringIO()))
    cells = cells_of(tmp_path / "sweep")
    assert {cell.trained for cell in cells} == {0, 1}
    one, other = ([c for c in cells if c.trained == seed and not c.held_out] for seed in (0, 1))
    assert [cell.feature for cell in one] == [cell.feature for cell in other]
    assert all(a.side != b.side for a, b in zip(one, other, strict=True))
    report: dict[str, Any] = read_json(tmp_path / "sweep" / "report.json")
    assert all(row["seeds"] == 2 and row["side"]["low"] is not None for row in report["sweep"])
    assert "2 trainings" in report["notes"]["sweep"]


def test_an_interrupted_sweep_judges_only_what_is_missing(finished: Path, tmp_path: Path) -> None:
    whole = (finished / "cells.jsonl").read_text()
    folder = tmp_path / "sweep"
    folder.mkdir()
    for name in ("job.json",):
        (folder / name).write_bytes((finished / name).read_bytes())
    (folder / "forecasters").symlink_to(finished / "forecasters")
    # cut in the middle of a line
    (folder / "cells.jsonl").write_text(whole[: len(whole) // 2])
    execute(TINY, folder, Console(file=StringIO()))
    assert (folder / "cells.jsonl").read_text() == whole


def test_settings_that_cannot_work_are_refused() -> None:
    for change, message in (
        ({"sites": ("agent.9",)}, "no site is called 'agent.9'"),
        ({"methods": ("lda",)}, "begin with mean_difference"),
        ({"methods": ("mean_difference", "through")}, "unknown 'through'"),
        ({"seeds": 0}, "seeds should be at least 1"),
        ({"forecaster_seeds": 0}, "forecaster_seeds should be at least 1"),
        ({"held_out": 9}, "held_out should be at least 10"),
        ({"learning_rates": (1e-3,)}, "as many as the forecasters, 2, or none; given 1"),
        ({"learning_rates": (1e-3, 0.0)}, "learning_rate should be positive"),
        ({"latents": (2,)}, "k 4 should not exceed the fewest latents, 2"),
        ({"forecasters": ()}, "needs a forecaster"),
        ({"forecasters": (RedMotionSettings(), RedMotionSettings(framing=FRAMING))}, "one framing"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(TINY, **change).check()


def test_the_settings_come_back_from_json() -> None:
    assert Sweep.from_json(json.loads(json.dumps(TINY.to_json()))) == TINY
    assert replace(TINY, forecasters=(RedMotionSettings(), RedMotionSettings())).names == ["RedMotion-0", "RedMotion-1"]


def test_each_forecaster_is_trained_at_its_own_rate() -> None:
    rates = (1e-3, 4e-3)
    assert [one.learning_rate for one in replace(TINY, learning_rates=rates).trainings()] == list(rates)
    assert TINY.trainings() == [TINY.training] * 2


def cell(method: str, seed: int, r2: float, latents: int = 0, site: str = "a", side: float = 0.1) -> Cell:
    return Cell("F", site, "last", "speed", method, latents, seed, r2, r2, r2, (-50.0, 50.0), side, 0.0, None, 4.0)


def test_gains_are_paired_by_place_and_seed() -> None:
    cells = [cell("mean_difference", seed, 0.5 + 0.1 * seed, site=site) for seed in range(3) for site in ("a", "b")] + [
        cell("topk", seed, 0.6 + 0.1 * seed, 8, site) for seed in range(3) for site in ("a", "b")
    ]
    (row,) = linearity_by_sparsity(cells)
    # the levels differ by seed, the gains do not: so there is no spread
    assert row["r2"]["mean"] == pytest.approx(0.1)
    assert row["r2"]["low"] == pytest.approx(0.1)
    assert (row["wins"], row["vectors"], row["verdict"]) == (1.0, 6, "more linear")
    worse = [*cells[:6], *(cell("topk", seed, 0.4 + 0.1 * seed, 8, site) for seed in range(3) for site in ("a", "b"))]
    assert linearity_by_sparsity(worse)[0]["verdict"] == "less linear"
    mixed = [*cells[:6], *(cell("topk", seed, 0.5 + 0.1 * seed + (seed - 1) * 0.2, 8) for seed in range(3))]
    assert linearity_by_sparsity(mixed)[0]["verdict"] == "no clear difference"


def test_rows_average_over_seeds() -> None:
    cells = [cell("mean_difference", seed, 0.9) for seed in range(3)]
    cells += [cell("lda", seed, 0.99, side=0.8) for seed in range(3)]
    rows = overview(cells)
    assert [(row["method"], row["seeds"]) for row in rows] == [("mean_difference", 3), ("lda", 3)]
    assert rows[0]["r2"] == {
        "class": "Estimate",
        "mean": pytest.approx(0.9),
        "low": pytest.approx(0.9),
        "high": pytest.approx(0.9),
    }


def test_vectors_of_one_training_are_no_repetitions_of_a_forecaster() -> None:
    """Over several trainings the spread is that of their means; vectors of one of them vary for another reason."""
    cells = [
        replace(cell("topk", seed, 0.5 + 0.1 * seed), trained=trained) for trained in range(2) for seed in range(3)
    ]
    (row,) = overview(cells)
    assert (row["seeds"], row["r2"]["mean"]) == (6, pytest.approx(0.6))
    assert row["r2"]["low"] == pytest.approx(0.6)
    assert overview(cells[:3])[0]["r2"]["low"] < 0.5


def test_the_best_way_is_the_cleanest_of_those_that_are_linear_and_reach_far() -> None:
    reach = {"speed": 60.0}
    clean, linear = ([cell(name, seed, r2, side=side) for seed in range(3)] for name, r2, side in RIVALS)
    assert best_ways([*clean, *linear], reach) == {"speed": ("a", "last", "mean_difference", 0)}
    # what hardly moves anything is no candidate, however linear and clean
    small = [replace(one, method="regression", span=(-29.0, 40.0), side=0.0) for one in clean]
    assert best_ways([*clean, *linear, *small], reach) == {"speed": ("a", "last", "mean_difference", 0)}
    assert best_ways(small, reach) == {}
    # where none is linear, the most linear one
    bent = [replace(one, r2=one.r2 - 0.1) for one in [*clean, *linear]]
    assert best_ways(bent, reach) == {"speed": ("a", "last", "lda", 0)}


RIVALS = (("mean_difference", 0.96, 0.1), ("lda", 0.99, 0.8))


def test_what_is_said_of_the_best_was_measured_on_agents_that_did_not_choose_it() -> None:
    chosen = [cell("mean_difference", seed, 0.96, side=0.1) for seed in range(3)]
    told = [replace(one, held_out=True, r2=0.93, side=0.15) for one in chosen]
    own, baseline = (ForecastScores(error, error, 0.5, error, 100) for error in (1.0, 6.0))
    scores = {"F": [{"F": own, "constant velocity": baseline}]}
    reach = {"speed": 60.0}
    found = conclusions(chosen, told, scores, reach)
    assert "the best vector is mean difference at a" in found["remarks"][0]
    assert "R² 0.930" in found["remarks"][0]
    assert "side effects 0.15 of its own effect." in found["remarks"][0]
    assert found["headlines"][0] == {"label": "F, minADE", "value": "1.00 m", "note": "constant velocity 6.00 m"}
    worse = [replace(one, side=0.3) for one in told]
    assert "above a fifth" in conclusions(chosen, worse, scores, reach)["remarks"][0]
    assert conclusions(chosen, [], scores, reach)["remarks"][0] == "F, speed: no vector reaches ±30 %."
    twice = {"F": [{"F": replace(own, min_ade=error), "constant velocity": baseline} for error in (1.0, 1.2)]}
    headline = conclusions(chosen, [], twice, reach)["headlines"][0]
    assert headline["value"] == "1.10 m"
    assert " to " in headline["note"]
