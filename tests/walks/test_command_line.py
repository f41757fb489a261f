"""What the command line does with a finished run."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from innerspace.cli import main
from innerspace.decompose.directions import Directions
from innerspace.jobs.control import WordsInMotion
from innerspace.value import read_json

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The finished run, to be spoiled."""
    return shutil.copytree(finished, tmp_path / "copy")


def refused(arguments: list[str], capsys: Capture) -> str:
    """The one line on stderr with which a command ends."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_show_prints_headlines_and_remarks(finished: Path, capsys: Capture) -> None:
    assert main(["show", str(finished)]) == 0
    out = capsys.readouterr().out
    report = read_json(finished / "report.json")
    for line in report["headlines"]:
        assert line["value"] in out
    for remark in report["remarks"]:
        assert f"• {remark}\n" in out
    assert out.endswith(f"{finished / 'report.html'}\n")


def test_sites_lists_where_states_are(finished: Path, capsys: Capture) -> None:
    assert main(["sites", str(finished)]) == 0
    out = capsys.readouterr().out
    for site, module in (("agent.0", "trajectory.0"), ("agent.2", "trajectory.2"), ("modes.0", "modes.0")):
        (row,) = (line for line in out.splitlines() if site in line and module in line)
        assert " 16 " in row


def test_eval_judges_on_other_data(finished: Path, capsys: Capture) -> None:
    assert main(["eval", str(finished), "--data.scenes", "150", "--data.seed", "5"]) == 0
    out = capsys.readouterr().out
    for part in ("RedMotion", "constant velocity", "minADE, m", "speed vector", "span, %", "span, m/s²", "span, °"):
        assert part in out
    assert out.count("Pearson") == 3  # speed, acceleration, direction, each once


def test_report_writes_the_same_page_anew(copy: Path, capsys: Capture) -> None:
    before = (copy / "report.html").read_bytes(), (copy / "report.json").read_bytes()
    (copy / "report.html").unlink()
    assert main(["report", str(copy)]) == 0
    assert ((copy / "report.html").read_bytes(), (copy / "report.json").read_bytes()) == before
    assert capsys.readouterr().out == f"report: {copy / 'report.html'}\n"


def test_another_job_does_not_go_into_its_folder(copy: Path, capsys: Capture) -> None:
    other = ["run", str(copy / "job.json"), "--runs", str(copy.parent), "--name", "copy", "--seeds", "3"]
    assert "copy holds a run with other settings (seeds is 2 there and 3 here)" in refused(other, capsys)
    site = [*other[:-2], "--site", "agent.7"]
    assert "no site is called 'agent.7'; this model has agent.0" in refused(site, capsys)


@pytest.mark.parametrize("command", ["show", "report"])
def test_a_damaged_report_is_named(copy: Path, capsys: Capture, command: str) -> None:
    place = copy / "report.json"
    whole = place.read_text()
    place.write_text(whole[: len(whole) // 2])
    assert f"{place} is not valid JSON" in refused([command, str(copy)], capsys)
    place.write_text(json.dumps({"title": "t", "remarks": []}))
    assert f"{place} is no report of a complete run: it has no 'headlines'" in refused([command, str(copy)], capsys)
    place.write_text("[]")
    assert "should hold a JSON object, it holds a list" in refused([command, str(copy)], capsys)


def test_damaged_weights_are_named(copy: Path, capsys: Capture) -> None:
    place = copy / "weights.safetensors"
    place.write_bytes(place.read_bytes()[:-100])
    assert f"{place} is no complete safetensors file" in refused(["sites", str(copy)], capsys)
    assert f"{place} is no complete safetensors file" in refused(["eval", str(copy)], capsys)


def test_vectors_of_another_network_are_refused(copy: Path, capsys: Capture) -> None:
    place = copy / "directions.safetensors"
    mine = Directions.load(place)
    wide = Directions(torch.ones(len(mine), 24), mine.gap, mine.origins)
    wide.save(place)
    assert "width 24, the hidden state" in refused(["eval", str(copy), "--data.scenes", "100"], capsys)
    place.write_bytes(place.read_bytes()[:-10])
    assert f"{place} is no complete safetensors file" in refused(["eval", str(copy)], capsys)
    place.unlink()
    assert "holds no complete run: there is no directions.safetensors" in refused(["eval", str(copy)], capsys)


def test_vectors_fitted_to_other_weights_are_refused(copy: Path, capsys: Capture, tiny: WordsInMotion) -> None:
    from innerspace.motion.forecasters.forecaster import save
    from innerspace.motion.forecasters.redmotion import RedMotion

    torch.manual_seed(1)
    save(RedMotion(tiny.forecaster), copy)
    assert "the vectors in" in refused(["eval", str(copy)], capsys)


def test_eval_refuses_data_that_is_not_there(finished: Path, tmp_path: Path, capsys: Capture) -> None:
    def evaluated(*flags: str) -> str:
        return refused(["eval", str(finished), *flags], capsys)

    assert "data.kind av2 needs data.path" in evaluated("--data.kind", "av2")
    assert f"no folder at {tmp_path / 'x'}" in evaluated("--data.kind", "av2", "--data.path", str(tmp_path / "x"))
    assert f"in {tmp_path} or below" in evaluated("--data.kind", "av2", "--data.path", str(tmp_path))
    assert "3 scenes are too few to split; at least 100 are needed" in evaluated("--data.scenes", "3")
