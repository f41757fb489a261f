"""Explanations through the command line: of a language model and of a forecaster, as small as can be; read back."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from innerspace.cli import main, recipes
from innerspace.decompose.base import Home
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import TopK
from innerspace.explain.endpoint import Endpoint
from innerspace.explain.examples import Sampling
from innerspace.interop.neuronpedia import read_explanations
from innerspace.jobs.explain import Explain
from innerspace.jobs.inputs.scenes import SceneData
from innerspace.jobs.job import Job, Run
from innerspace.motion.forecasters.forecaster import save
from innerspace.motion.forecasters.redmotion import RedMotion, RedMotionSettings
from innerspace.motion.framing import Framing
from innerspace.network.model import Model
from innerspace.value import read_json

QUICK = {"class": "Sampling", "shown": 2, "others": 8, "judged": 1, "near": 1, "documents": 6}


def run(name: str, place: Path, **changes: Any) -> Any:
    record: Any = recipes()[name].to_json()
    record |= {"latents": 3, "seeds": 2, "replicates": 40, "shown": 2, "sampling": QUICK} | changes
    path = place / "small.json"
    path.write_text(json.dumps(record))
    assert main(["run", str(path), "--runs", str(place), "--name", "run"]) == 0
    return read_json(place / "run" / "report.json")


def check(report: Any, kinds: list[str]) -> None:
    """What holds of every run."""
    part = report["explanations"]
    assert [one["kind"] for one in part["kinds"]] == kinds
    pairs = len(kinds) * (len(kinds) - 1) // 2
    assert len(part["comparisons"]) == 2 * pairs
    assert len(part["controls"]) == 6 * len(kinds)
    for one in (*part["comparisons"], *part["controls"]):
        if one["p"] is not None:
            assert 0 < one["p"] <= one["benjamini_hochberg"] <= one["holm"] <= 1
    for one in part["kinds"]:
        assert one["drawn"] <= one["eligible"] <= one["latents"]
        assert one["explained"] <= one["drawn"]
        assert one["unanswered"] == 0
        assert len(one["by_band"]["detection"]["explanation"]) == 5
        scores = one["scores"]["detection"]["auroc"]
        assert set(scores) == {"explanation", "shuffled", "random", "frequent"}
        assert scores["explanation"]["low"] <= scores["explanation"]["mean"] <= scores["explanation"]["high"]
    assert len(part["latents"]) == sum(one["explained"] for one in part["kinds"])
    assert all(len(one["texts"]) <= 2 and one["text"] == one["texts"][0] for one in part["latents"])
    told = {entry["latent"]: entry for entry in report["features"]["entries"]}
    assert all("explanation" in entry and "detection" in entry["judged"] for entry in told.values())
    assert any(band["name"].startswith("judged") for entry in told.values() for band in entry["bands"])
    assert any("Guessing" in words or "guessing" in words for words in report["remarks"])


def test_a_language_model(assets: Path, tmp_path: Path) -> None:
    record: Any = recipes()["explain-stories"].to_json()
    data = record["data"] | {"model": str(assets / "lm/stories260K")}
    data["corpus"]["source"]["paths"] = [str(assets / "lm/tinystories_1000.json")]
    data["corpus"] |= {"context": 64, "tokens": 12_000, "held_out": 0.3}
    lessons = [one | {"latents": 64} for one in record["lessons"]]
    course = record["course"] | {"tokens": 3000}
    report = run("explain-stories", tmp_path, data=data, lessons=lessons, course=course, sequences=160)
    check(report, ["local", "e2e", "e2e+ds"])
    # explained in tokens of the text
    assert any("“" in one["text"] for one in report["explanations"]["latents"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert 'id="explanations"' in page
    assert "Benjamini–Hochberg" in page
    # written in Neuronpedia's form, and read as such
    path = tmp_path / "run" / "explanations" / "resid.2-local-0.jsonl"
    own = {(one["latent"], one["text"]) for one in report["explanations"]["latents"] if one["kind"] == "local"}
    assert {(one.latent, one.text) for one in read_explanations(path)} == own
    assert {one.author for one in read_explanations(path)} == {"innerspace rules"}

    # the same dictionaries, taken from the folder
    job: Any = Explain.from_json(read_json(tmp_path / "run" / "job.json"))
    place = Run(tmp_path / "run", Console(file=StringIO()))
    subject = job.data.open(place)
    taken = replace(job, folder=tmp_path / "run", kinds=("e2e+ds", "local")).dictionaries(place, subject)
    assert [(one.name, one.kind, one.seed) for one in taken] == [
        ("resid.2-e2e+ds-0", "e2e+ds", 0),
        ("resid.2-local-0", "local", 0),
    ]
    trained = {one.name: one.what for one in job.dictionaries(place, subject)}
    for one in taken:
        assert all(
            torch.equal(a, b)
            for a, b in zip(one.what.state_dict().values(), trained[one.name].state_dict().values(), strict=True)
        )


@pytest.fixture
def forecaster(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    framing = Framing(history=6, future=20, stride=5, agents=3, lines=6)
    network = RedMotion(RedMotionSettings(framing=framing, width=16, red_tokens=3, decoder_layers=1, modes=2, window=8))
    save(network, tmp_path / "made")
    home = Home(Model(network.eval(), network.settings.family).fingerprint(), "agent.2")
    (tmp_path / "made" / "dictionaries").mkdir()
    for kind in ("local", "e2e"):
        for seed in range(2):
            made = Dictionary(16, 24, TopK(3), seed=seed, home=home).eval()
            made.save(tmp_path / "made" / "dictionaries" / f"agent.2-{kind}-{seed}.safetensors")
    return tmp_path / "made"


def test_a_forecaster(forecaster: Path, tmp_path: Path) -> None:
    record: Any = recipes()["explain-motion"].to_json()
    data = record["data"] | {"forecaster": str(forecaster), "batch": 16}
    data["data"] |= {"scenes": 160, "fit": 0.3, "test": 0.5}
    report = run("explain-motion", tmp_path, data=data, folder=str(forecaster), kinds=["local", "e2e"])
    check(report, ["local", "e2e"])
    known = {"speed", "acceleration", "direction", "agent", "step", "nothing"}
    for one in report["explanations"]["latents"]:
        assert set(one["text"].replace(";", ",").split()) & known
    # of both dictionaries of a kind
    names = {one["dictionary"] for one in report["explanations"]["latents"] if one["kind"] == "local"}
    assert names <= {"agent.2-local-0", "agent.2-local-1"}
    # Neuronpedia shows text
    assert not (tmp_path / "run" / "explanations").exists()


def test_what_cannot_be_explained_is_refused(forecaster: Path, tmp_path: Path) -> None:
    job: Any = recipes()["explain-stories"]
    with pytest.raises(ValueError, match="no dictionary was asked for"):
        Explain(job.data, job.site).check()
    with pytest.raises(ValueError, match=r"resid\.2-local-0 is at another site than 'resid\.1'"):
        Explain(job.data, "resid.1", job.lessons).check()
    with pytest.raises(ValueError, match="cannot judge what Endpoint says"):
        Explain(job.data, job.site, job.lessons, explainer=Endpoint(model="m")).check()
    with pytest.raises(ValueError, match="contexts to show and to judge"):
        Sampling(shown=0)
    motion: Any = recipes()["explain-motion"]
    data = SceneData(forecaster, motion.data.data, batch=8)
    place = Run(tmp_path, Console(file=StringIO()))
    lost = Explain(data, "agent.2", folder=forecaster, kinds=("balanced",))
    with pytest.raises(ValueError, match=r"no dictionaries at 'agent\.2' of balanced; there are agent\.2-e2e-0, "):
        lost.dictionaries(place, data.open(place))
    assert Job.from_json(job.to_json()) == job
