"""A sweep over two tiny forecasters, its cells, its continuation, and what it concludes from made-up ones."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from innerspace.harvest.stream import TokenRule
from innerspace.jobs.data import Data
from innerspace.jobs.job import execute
from innerspace.jobs.optimized import Optimized
from innerspace.jobs.steering import Steering
from innerspace.jobs.sweep import Sweep
from innerspace.jobs.sweep_rows import Cell, conclusions, linearity_by_sparsity, overview
from innerspace.jobs.vectors import Dictionaries
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
    steering=Steering(points=5, samples=16, randoms=2),
    seeds=2,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    execute(TINY, folder, Console(file=StringIO()))
    return folder


def test_every_way_is_judged_at_every_place(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "cells.jsonl").read_text().splitlines()]
    cells = [Cell.from_json(line) for line in lines]
    assert len({cell.key for cell in cells}) == len(cells)
    features = {cell.feature for cell in cells}
    # two methods and two autoencoders, two seeds each, by rule; the optimized vectors do not depend on the rule
    expected = 2 * len(features) * (2 * (2 + 2) * 2 + 1)
    assert len(cells) == expected
    assert {(cell.explained is None, cell.l0 is None) for cell in cells if not cell.latents} == {(True, True)}
    assert all(cell.l0 is not None and cell.explained is not None for cell in cells if cell.latents)
    sparse = [cell.l0 for cell in cells if cell.method == "topk"]
    assert all(count is not None and 0 < count <= 4 for count in sparse)
    report: dict[str, Any] = read_json(finished / "report.json")
    assert {row["forecaster"] for row in report["sweep"]} == {"RedMotion", "Hptr"}
    page = (finished / "report.html").read_text()
    assert "Does enforcing sparsity make the response" in page
    assert "Other numbers" not in page


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
        ({"seeds": 0}, "at least 1"),
        ({"latents": (2,)}, "k 4 should not exceed the fewest latents, 2"),
        ({"forecasters": ()}, "needs a forecaster"),
        ({"forecasters": (RedMotionSettings(), RedMotionSettings(framing=FRAMING))}, "one framing"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(TINY, **change).check()


def test_the_settings_come_back_from_json() -> None:
    assert Sweep.from_json(json.loads(json.dumps(TINY.to_json()))) == TINY
    assert replace(TINY, forecasters=(RedMotionSettings(), RedMotionSettings())).names == ["RedMotion-0", "RedMotion-1"]


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


def test_rows_average_over_seeds_and_conclusions_prefer_clean_vectors() -> None:
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
    own, baseline = (ForecastScores(error, error, 0.5, error, 100) for error in (1.0, 6.0))
    scores = {"F": {"F": own, "constant velocity": baseline}}
    reach = {"speed": 60.0}
    found = conclusions(cells, scores, 3, reach)
    assert "the most linear vector is mean difference at a" in found["remarks"][0]
    assert found["headlines"][0]["value"] == "1.00 m"
    found = conclusions([one for one in cells if one.method == "lda"], scores, 3, reach)
    assert "none at this forecaster stays below a fifth" in found["remarks"][0]
    # what hardly moves anything is no candidate, however linear
    small = [replace(cell("lda", seed, 0.9999), span=(-1.0, 1.0)) for seed in range(3)]
    found = conclusions([*cells, *small], scores, 3, {"speed": 60.0})
    assert "the most linear vector is mean difference" in found["remarks"][0]
    assert conclusions(small, scores, 3, reach)["remarks"][0] == "F, speed: no vector reaches ±30 %."
