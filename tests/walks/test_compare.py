"""Decompositions compared, through the command line: of a language model and of a forecaster, as small as can be."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from innerspace.cli import main, recipes
from innerspace.decompose.subspaces import Subspaces
from innerspace.jobs.compare import Compare
from innerspace.jobs.comparison.entrants import RandomRotation, Saved
from innerspace.jobs.control import WordsInMotion
from innerspace.jobs.inputs.scenes import SceneData
from innerspace.jobs.job import Job, execute
from innerspace.jobs.partitions.suites import Asking
from innerspace.report.compare import MEASURES
from innerspace.value import read_json

QUICK = {
    "seeds": 2,
    "rows": 800,
    "measuring": {
        "class": "Measuring",
        "held_out": 500,
        "judged": 16,
        "ablated": 2,
        "exchanged": 1,
        "steps": 3,
        "replicates": 40,
        "reading": {"class": "Reading", "splits": 2, "most": 400},
    },
}


def smaller(name: str, **changes: Any) -> dict[str, Any]:
    """A recipe as JSON, with its slowest settings made small."""
    record: Any = recipes()[name].to_json()
    record |= QUICK | changes
    for entrant in record["entrants"]:
        if entrant["class"] == "Sparse":
            entrant["latents"] = 48
        if entrant["class"] == "Ndm":
            finding = entrant["finding"]
            finding["steps"] = 8
            if finding["custom"] is not None:
                finding["custom"]["fit"]["steps"] = 8
                finding["custom"]["queries"] = 64
    return record


def run(record: dict[str, Any], folder: Path) -> Any:
    path = folder / "small.json"
    path.write_text(json.dumps(record))
    assert main(["run", str(path), "--runs", str(folder), "--name", "run"]) == 0
    return read_json(folder / "run" / "report.json")


def check(report: Any, names: set[str]) -> None:
    """What holds of every comparison."""
    section = report["comparison"]
    entrants = {one["name"]: one for one in section["entrants"]}
    assert set(entrants) == names
    for one in entrants.values():
        measures = one["measures"]
        absent = set(MEASURES) - set(measures)
        if one["isolated"]:
            assert absent <= {"angle"}
            assert 0 <= measures["cause"]["mean"] <= 1
            assert 0 <= measures["isolate"]["mean"] <= 1
            both = (measures["cause"]["mean"] + measures["isolate"]["mean"]) / 2
            assert measures["disentangle"]["mean"] == pytest.approx(both, abs=1e-5)
        else:
            # a network that uses fewer than two of the variables has no scores of them
            assert absent >= {"cause", "isolate", "disentangle", "slope"}
        bits = [point["bits"]["mean"] for point in one["curve"]]
        assert bits == sorted(bits)
        assert bits[0] == 0
        # a dense code costs 8 bits for every coordinate
        if one["on"] == one["coordinates"]:
            assert bits[-1] == 8 * one["coordinates"]
    # whatever is orthogonal and complete loses only what rounding to 8 bits takes
    width = section["width"]
    for one in entrants.values():
        if one["coordinates"] == one["on"] == width:
            assert one["curve"][-1]["divergence"]["mean"] < 0.05 * one["curve"][0]["divergence"]["mean"]
    assert len(report["headlines"]) == (4 if section["entrants"][0]["isolated"] else 2)
    assert any("Bits are counted" in words for words in report["remarks"])


def test_a_language_model(assets: Path, tmp_path: Path) -> None:
    record = smaller("compare-stories", seeds=1, suites=[{"class": "Asking", "suite": "stories", "prompts": 24}])
    # the others take part in the walk of the forecaster
    names = {"control vectors", "e2e+ds dictionary", "random rotation × 8"}
    kept = [one.name in names for one in recipes()["compare-stories"].entrants]  # pyright: ignore[reportAttributeAccessIssue]
    record["entrants"] = [one for one, wanted in zip(record["entrants"], kept, strict=True) if wanted]
    record["data"]["model"] = str(assets / "lm/stories260K")
    record["data"]["corpus"]["source"]["paths"] = [str(assets / "lm/tinystories_1000.json")]
    record["data"]["corpus"] |= {"context": 64, "tokens": 20_000}
    record["course"] |= {"tokens": 3000}
    report = run(record, tmp_path)
    check(report, names)
    first = report["comparison"]["entrants"][0]
    assert {one["name"] for one in first["labels"]} == {"capitalized", "sentence start", "pronoun", "quotation"}
    assert {one["name"] for one in first["steered"]} == {"stories.pronoun", "stories.opening", "stories.quotation"}
    assert {one["name"] for one in first["isolated"]} >= {"stories.name", "stories.object"}
    # a state tells whether its own token is capitalized
    whole = {one["name"]: one["whole"]["mean"] for one in first["labels"]}
    assert whole["capitalized"] > 0.7
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Decompositions compared" in page
    assert "Rate and distortion" in page


def test_a_forecaster(tiny: WordsInMotion, finished: Path, tmp_path: Path) -> None:
    record = smaller("compare-motion", exchanges=6)
    record["data"] |= {"forecaster": str(finished), "batch": 8, "data": tiny.data.to_json()}
    record["course"] |= {"tokens": 1500}
    for entrant in record["entrants"]:
        if "unit" in entrant and entrant["unit"] > 1:
            entrant["unit"] = 4
        if entrant["class"] == "Ndm":
            entrant["finding"]["unit"] = 4
        if entrant["class"] == "Sparse":
            entrant["nonlinearity"]["k"] = 4
    # too few states for independent components, which is said
    names = {entrant.name for entrant in Compare.from_json(record).entrants} - {"ICA"}
    report = run(record, tmp_path)
    assert any(words.startswith("No ICA: ") for words in report["remarks"])
    check(report, names)
    section = report["comparison"]
    found = {one["name"]: one for one in section["entrants"]}
    assert found["PCA"]["measures"]["angle"]["mean"] < found["PCA"]["chance_angle"]
    assert found["random rotation × 4"]["measures"]["angle"]["mean"] > 0.7 * found["PCA × 4"]["chance_angle"]
    asked = [one["name"] for one in section["variables"]]
    told = asked + report["remarks"]
    for feature in ("speed", "acceleration", "direction"):
        assert any(words.startswith(feature) for words in told)


def test_files_take_part_and_strangers_are_refused(tiny: WordsInMotion, finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "halves.safetensors"
    Subspaces.random(16, [8, 8], torch.Generator().manual_seed(3)).save(path)
    small: Any = Compare.from_json(smaller("compare-motion", exchanges=6, entrants=[])).measuring
    data = SceneData(finished, tiny.data, batch=8)
    saved = Saved((path, path), "halves")
    job = Compare(data, "agent.2", (saved, RandomRotation()), 2, 400, exchanges=6, measuring=small)
    execute(job, tmp_path / "run", Console(file=StringIO()))
    report: Any = read_json(tmp_path / "run" / "report.json")
    halves = report["comparison"]["entrants"][0]
    assert (halves["name"], halves["parts"], halves["largest"]) == ("halves", 2, 8)
    # one file next to itself is the same, and nobody knows how long it took
    assert halves["measures"]["angle"]["mean"] == pytest.approx(0.0, abs=0.1)
    assert "seconds" not in halves["measures"]

    other = tmp_path / "narrow.safetensors"
    Subspaces.identity(4, [2, 2]).save(other)
    alone = Compare(data, "agent.2", (Saved((other,)),), 1, 400, exchanges=6, measuring=small)
    with pytest.raises(ValueError, match=r"no entrant could be made: .* reads width 4, .* have 16"):
        execute(alone, tmp_path / "alone", Console(file=StringIO()))


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="no file at nowhere"):
        Saved((Path("nowhere"),)).check()
    with pytest.raises(ValueError, match="a saved entrant needs a file"):
        Saved().check()
    job: Any = recipes()["compare-stories"]
    base = {"data": job.data, "site": job.site}
    with pytest.raises(ValueError, match="two entrants are called 'random rotation'"):
        Compare(**base, entrants=(RandomRotation(), RandomRotation())).check()
    with pytest.raises(ValueError, match="nothing to compare"):
        Compare(**base, entrants=()).check()
    with pytest.raises(ValueError, match="100 rows and 2 exchanges are needed at least, given 3, 5, 100"):
        Compare(**base, rows=5).check()
    assert Job.from_json(job.to_json()) == job


def test_what_a_forecaster_cannot_give_is_refused(tmp_path: Path) -> None:
    job = Compare(SceneData(tmp_path), "agent.2", suites=(Asking("stories"),))
    with pytest.raises(ValueError, match="prompt suites are for language models"):
        job.check()
    with pytest.raises(ValueError, match="holds no forecaster; give the folder of a words-in-motion run"):
        execute(Compare(SceneData(tmp_path), "agent.2"), tmp_path / "run", Console(file=StringIO()))
