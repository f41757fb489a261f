"""From a finished run to its vector on unseen data, by the command line."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from innerspace.cli import main
from innerspace.decompose.directions import Directions
from innerspace.jobs.control import WordsInMotion
from innerspace.jobs.job import Job
from innerspace.jobs.unseen import Unseen
from innerspace.motion.forecasters.forecaster import save
from innerspace.motion.forecasters.redmotion import RedMotion
from innerspace.report.record import Provenance
from innerspace.value import read_json

Capture = pytest.CaptureFixture[str]

SMALL = {
    "data.scenes": "120",
    "scenes": "12",
    "calibrating": "24",
    "randoms": "2",
    "replicates": "30",
    "shifts.speeds": "0.5 1.25",
    "shifts.everywhere": "0.5",
    "shifts.rates": "5",
    "temperatures": "0.25 0.5 1.0",
}


def command(run: Path, runs: Path, **changes: str) -> list[str]:
    settings = {"trained": str(run)} | SMALL | {name.replace("__", "."): value for name, value in changes.items()}
    flags = [word for name, value in settings.items() for word in (f"--{name}", *value.split())]
    return ["run", "unseen", "--runs", str(runs), *flags]


def refused(arguments: list[str], capsys: Capture) -> str:
    """The one line on stderr with which a command ends."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.fixture(scope="module")
def folder(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run on unseen data."""
    runs = tmp_path_factory.mktemp("unseen")
    assert main(command(finished, runs)) == 0
    return runs / "unseen"


def test_the_folder_holds_what_a_run_leaves(folder: Path, finished: Path) -> None:
    job = Job.from_json(read_json(folder / "job.json"))
    assert isinstance(job, Unseen)
    assert job.trained == finished
    assert job.shifts.speeds == (0.5, 1.25)
    provenance = Provenance.load(folder / "provenance.json")
    assert provenance.data.startswith("120 simulated scenes")
    assert provenance.seeds == (0,)
    page = (folder / "report.html").read_text()
    assert '<section id="unseen"' in page
    assert '<section id="calibration"' in page


def test_the_report_holds_every_shift_and_method(folder: Path) -> None:
    report: dict[str, Any] = read_json(folder / "report.json")
    rows = {row["shift"]: row for row in report["unseen"]["rows"]}
    assert list(rows) == [
        "no shift",
        "speed × 0.5",
        "speed × 1.25",
        "lateral ≤ 1 m/s²",
        "speed × 0.5, history too",
        "5 Hz, resampled",
        "5 Hz, not told",
    ]
    wanted = [rows[name]["wanted"] for name in ("no shift", "speed × 0.5", "speed × 1.25", "5 Hz, not told")]
    assert wanted == [0, -50, 25, -50]
    assert -40 < rows["lateral ≤ 1 m/s²"]["wanted"] < 0
    for row in rows.values():
        assert row["rows"] == 24
        errors = {method: scores["min_fde"]["mean"] for method, scores in row["methods"].items()}
        assert list(errors) == ["uncontrolled", "controlled", "rescaled", "random", "oracle"]
        # nothing beats the oracle that is a temperature of the vector, and not to control is one
        assert errors["oracle"] <= min(errors["uncontrolled"], errors["controlled"])
        for method, changes in row["against"].items():
            assert changes["min_fde"]["mean"] == pytest.approx(errors[method] - errors["uncontrolled"], abs=1e-5)
    # what was unsteered is the same network on the same scenes
    plain = rows["no shift"]["methods"]
    assert plain["uncontrolled"] == plain["controlled"] == plain["rescaled"]
    (curve,) = report["calibration"]
    assert curve["tau"] == [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]
    assert [(part["name"], part["scenes"]) for part in report["data"]["splits"]] == [("fit", 30), ("judged", 12)]
    assert report["headlines"]
    assert report["remarks"]


def test_the_same_settings_give_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    assert main(["run", str(folder / "job.json"), "--runs", str(tmp_path), "--name", "again"]) == 0
    one, other = (read_json(place / "report.json") for place in (folder, tmp_path / "again"))
    del one["provenance"], other["provenance"]
    assert one == other


def test_scenes_of_another_data_set_are_judged(
    finished: Path, folder: Path, tmp_path: Path, assets: Path, capsys: Capture
) -> None:
    few = {"shifts.speeds": "0.5", "shifts.rates": "20"}
    changes = {"other.kind": "av2", "other.path": str(assets / "motion" / "av2"), "other.stride": "20"}
    flags = [*command(finished, tmp_path, **few), "--transfer"]
    assert main([*flags, *(word for item in changes.items() for word in (f"--{item[0]}", item[1]))]) == 0
    assert "skipped b87683ae-14c5-321f-8af3-623e7bafc3a7: no city_SE3_egovehicle" in capsys.readouterr().out
    report: dict[str, Any] = read_json(tmp_path / "unseen" / "report.json")
    assert report["data"]["description"].startswith("Calibrated on 120 simulated scenes")
    assert "Judged on Argoverse 2" in report["data"]["description"]
    assert any("Windows of a log overlap" in remark for remark in report["remarks"])
    # the calibration is that of the run's own scenes
    assert report["calibration"] == read_json(folder / "report.json")["calibration"]
    assert report["unseen"]["rows"][0]["rows"] == report["data"]["splits"][1]["targets"]


def test_vectors_that_do_not_belong_there_are_refused(
    finished: Path, tmp_path: Path, capsys: Capture, tiny: WordsInMotion
) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    place = copy / "directions.safetensors"
    mine = Directions.load(place)
    asked = command(copy, tmp_path)
    assert f"{copy} holds no speed vector by 'lda'; there are: mean_difference, regression, through" in refused(
        command(copy, tmp_path, method="lda"), capsys
    )
    elsewhere = [origin.from_json({**origin.to_json(), "site": "agent.7"}) for origin in mine.origins]
    Directions(mine.raw, mine.gap, elsewhere).save(place)
    assert "no site is called 'agent.7'; this model has agent.0" in refused(asked, capsys)
    Directions(torch.ones(len(mine), 24), mine.gap, mine.origins).save(place)
    assert "directions of width 24, the hidden state at 'agent.2' has 16" in refused(asked, capsys)
    mine.save(place)
    torch.manual_seed(1)
    save(RedMotion(tiny.forecaster), copy)
    assert f"the vectors in {copy} were fitted to model" in refused(asked, capsys)
    place.unlink()
    assert f"{copy} holds no complete run: there is no directions.safetensors" in refused(asked, capsys)
    assert f"{tmp_path / 'none'} holds no forecaster" in refused(command(tmp_path / "none", tmp_path), capsys)
