"""From scenes to the page, on a very small scale: everything is there, finite, goes on, and comes out the same."""

import json
import math
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from innerspace.cli import main
from innerspace.decompose.directions import Directions
from innerspace.jobs.control import WordsInMotion
from innerspace.jobs.job import Job, execute
from innerspace.motion import training
from innerspace.motion.forecasters.known import load
from innerspace.motion.forecasters.redmotion import RedMotionFamily
from innerspace.network.model import Model
from innerspace.report.record import Provenance
from innerspace.value import read_json

SECTIONS = [
    "title",
    "question",
    "interval",
    "data",
    "forecaster",
    "scenes",
    "probes",
    "collapse",
    "vectors",
    "calibration",
    "control_loop",
    "offtarget",
    "feasibility",
    "dictionaries",
    "end_to_end",
    "refinement",
    "cost",
    "job",
    "headlines",
    "remarks",
    "provenance",
]
MEASURED_ANEW = ("cost", "provenance")


def numbers(item: Any, where: str = "") -> dict[str, Any]:
    """Every leaf of a report by its place."""
    if isinstance(item, dict | list):
        entries = item.items() if isinstance(item, dict) else enumerate(item)
        return {place: leaf for key, part in entries for place, leaf in numbers(part, f"{where}/{key}").items()}
    return {where: item}


def results(folder: Path) -> dict[str, Any]:
    report = read_json(folder / "report.json")
    for row in report["subspace_training"]:
        del row["seconds"], row["cpu_seconds"]
    return {key: part for key, part in report.items() if key not in MEASURED_ANEW}


def test_the_folder_holds_everything(finished: Path, tiny: WordsInMotion) -> None:
    for name in ("weights.safetensors", "settings.json", "training.safetensors", "directions.safetensors"):
        assert (finished / name).stat().st_size > 100
    assert Job.from_json(read_json(finished / "job.json")) == tiny
    assert read_json(finished / "report.json")["job"]["steering"] == tiny.steering.to_json()
    steps = [json.loads(line)["step"] for line in (finished / "log.jsonl").read_text().splitlines()]
    assert steps == [15, 30]
    provenance = Provenance.load(finished / "provenance.json")
    assert provenance.seeds == (0, 1)
    assert provenance.data == "120 simulated scenes (speed independent of type), split by scene"
    assert provenance.seconds > 0
    page = (finished / "report.html").read_text()
    assert page.lstrip().startswith("<!doctype html>")
    assert "Words in motion" in page
    assert "Trained end to end" in page
    assert sorted(path.stem for path in (finished / "dictionaries").glob("*.safetensors")) == [
        *(f"agent.2-{kind}-{seed}" for kind in ("balanced", "e2e", "local") for seed in (0, 1)),
        "topk-0",
        "topk-1",
    ]


def test_the_report_is_whole_and_finite(finished: Path) -> None:
    report = read_json(finished / "report.json")
    assert [key for key in SECTIONS if key not in report] == []
    assert [key for key in report if not report[key]] == []
    leaves = numbers({key: part for key, part in report.items() if key != "job"})
    # a response may be out of reach of every temperature, and has no temperature then
    # only a GPU tells its peak of memory
    # a part does not depend on itself, and what one partition gives has no interval
    known = ("/inverse/", "/information/", "/p/", "/peak_bytes", "/separation/")
    unknown = [place for place, leaf in leaves.items() if leaf is None and not any(part in place for part in known)]
    assert unknown == []
    assert all(math.isfinite(leaf) for leaf in leaves.values() if isinstance(leaf, float))


def test_the_report_says_what_was_done(finished: Path, tiny: WordsInMotion) -> None:
    report: dict[str, Any] = read_json(finished / "report.json")
    assert [(row["name"], row["scenes"]) for row in report["data"]["splits"]] == [
        ("train", 78),
        ("validate", 30),
        ("fit", 30),
        ("test", 12),
    ]
    assert report["forecaster"]["loss"]["step"] == [15, 30]
    assert {row["rows"] for row in report["forecaster"]["metrics"]} == {24}
    assert report["probes"]["sites"] == ["agent.2"]
    assert len(report["probes"]["cells"]) == len(report["collapse"]) == len(report["probes"]["features"])
    controls = [row["control"] for row in report["calibration"] if row["feature"] == "speed"]
    assert controls.count("random") == 2
    assert controls.count("negated") == 1
    # mean difference and dictionary for both seeds, regression and optimization once
    assert controls.count(False) == 6
    # an agent's type shows in no number of a forecast
    features = {row["feature"] for row in report["calibration"]}
    assert report["offtarget"]["methods"] == ["mean_difference"] * (len(features) + 1) + ["optimized"] * len(features)
    for row in report["calibration"]:
        # random controls are run at the two outermost temperatures only
        points = 3 if row["control"] == "random" else 5
        assert len(row["tau"]) == len(row["response"]) == points
        assert row["tau"][points // 2] == 0
        assert row["response"][points // 2]["mean"] == 0
    assert len(report["scenes"]) == tiny.scenes_shown
    assert [(row["kind"], row["seed"]) for row in report["dictionaries"]] == [("topk", 0), ("topk", 1)]
    assert {row["dictionary"] for row in report["refinement"]} == {"topk"}
    compared = report["end_to_end"]
    assert [(row["kind"], row["seed"]) for row in compared["runs"]] == [
        (kind, seed) for seed in (0, 1) for kind in ("local", "e2e", "balanced")
    ]
    assert compared["tokens"] == 6 * 8 * 11
    assert compared["clean"]["divergence"] == 0
    assert all(0 < row["divergence"] < compared["ablated"]["divergence"] for row in compared["runs"])
    assert all(row["l0"] <= 4 for row in compared["runs"])


def test_vectors_know_where_they_come_from_and_steer(finished: Path) -> None:
    directions = Directions.load(finished / "directions.safetensors", expect_width=16)
    model = Model(load(finished), RedMotionFamily())
    assert {origin.model for origin in directions.origins} == {model.fingerprint()}
    assert {origin.site for origin in directions.origins} == {"agent.2"}
    methods = [origin.method for origin in directions.origins if origin.feature == "speed"]
    assert methods == ["mean_difference", "regression", "through", "mean_difference", "through", "optimized"]
    # the second seed saw other scenes
    plain = directions.select("speed").raw[[0, 3]]
    assert not torch.allclose(plain[0], plain[1])
    assert torch.cosine_similarity(plain[0], plain[1], dim=0) > 0.5


def test_the_same_job_goes_on_where_it_stood(
    finished: Path, tiny: WordsInMotion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was learned is taken as it is: the forecaster from its snapshot, one dictionary from its file."""
    (tmp_path / "dictionaries").mkdir()
    for name in ("job.json", "training.safetensors", "log.jsonl", "dictionaries/topk-1.safetensors"):
        shutil.copy(finished / name, tmp_path / name)

    def refuse(run: object) -> None:
        raise AssertionError("the training was complete")

    monkeypatch.setattr(training._Run, "_advance", refuse)
    page = execute(tiny, tmp_path, Console(file=StringIO()))
    assert page == tmp_path / "report.html"
    for name in ("weights", "dictionaries/topk-0", "dictionaries/topk-1"):
        before, after = (load_file(folder / f"{name}.safetensors") for folder in (finished, tmp_path))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert (tmp_path / "log.jsonl").read_text() == (finished / "log.jsonl").read_text()
    assert results(tmp_path) == results(finished)


def test_its_own_settings_give_the_same_numbers(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(7)
    assert main(["run", str(finished / "job.json"), "--runs", str(tmp_path), "--name", "again"]) == 0
    again = tmp_path / "again"
    assert capsys.readouterr().out.endswith(f"report: {again / 'report.html'}\n")
    assert results(again) == results(finished)
    before, after = (load_file(folder / "weights.safetensors") for folder in (finished, again))
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_recorded_traffic_from_the_command_line(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "data.kind": "av2",
        "data.path": str(assets / "motion" / "av2"),
        "data.stride": "60",
        "forecaster.framing.future": "30",
        "forecaster.framing.stride": "5",
        "forecaster.framing.agents": "4",
        "forecaster.framing.lines": "8",
        "forecaster.width": "16",
        "forecaster.red-tokens": "4",
        "training.steps": "20",
        "training.warm-up": "5",
        "training.batch-size": "32",
        "sites": "agent.2",
        "probing.seeds": "1",
        "probing.parts": "2",
        "methods": "mean_difference",
        "dictionaries.kinds": "topk",
        "dictionaries.latents": "16",
        "dictionaries.k": "4",
        "dictionaries.fit.steps": "10",
        "end-to-end.steps": "5",
        "optimized.fit.steps": "2",
        "steering.points": "5",
        "steering.randoms": "2",
        "steering.samples": "20",
        "seeds": "2",
        "scenes-shown": "1",
    }
    flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
    assert main(["run", "--runs", str(tmp_path), "--name", "av2", "words-in-motion", *flags]) == 0
    assert "skipped b87683ae-14c5-321f-8af3-623e7bafc3a7: no city_SE3_egovehicle" in capsys.readouterr().out
    report: dict[str, Any] = read_json(tmp_path / "av2" / "report.json")
    assert report["data"]["description"].endswith("log adcf7d18 and 1 forecasting scenario(s) to judge")
    assert [skip["name"] for skip in report["data"]["skipped"]] == ["b87683ae-14c5-321f-8af3-623e7bafc3a7"]
    assert any("agent 'cyclist' is not probed for" in remark for remark in report["remarks"])
    assert "b87683ae" in (tmp_path / "av2" / "report.html").read_text()
    assert report["calibration"]
    methods = {row["method"] for row in report["calibration"]}
    assert methods == {"mean_difference", "topk", "optimized", "negated", "random"}
