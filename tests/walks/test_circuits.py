"""Feature circuits, through the command line, as small as can be: what the page holds, and what is refused."""

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from innerspace.cli import main, recipes
from innerspace.jobs.circuitry.wired import Makings
from innerspace.jobs.circuits import Circuits, Tracing
from innerspace.jobs.job import Run
from innerspace.measure.circuits import Circuit
from innerspace.value import read_json


@pytest.fixture(scope="module")
def ran(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Circuits]:
    """The recipe with its slowest settings made small, run."""
    folder = tmp_path_factory.mktemp("circuits")
    record: Any = recipes()["circuits-stories"].to_json()
    record["data"]["model"] = str(assets / "lm/stories260K")
    record["data"]["corpus"]["source"]["paths"] = [str(assets / "lm/tinystories_1000.json")]
    record["data"]["corpus"] |= {"context": 32, "tokens": 3000}
    record["making"] |= {"latents": 24, "seeds": 1, "e2e": None}
    record["making"]["course"] |= {"tokens": 600, "surveyed": 4}
    record["asking"] |= {"pairs": 12, "structures": ["simple", "across"]}
    record["tracing"] |= {"steps": 3, "nodes": 10, "edges": 12, "counts": [0, 2, 24], "compared": 4}
    record["tracing"] |= {"directions": 1, "sequences": 8, "replicates": 20, "rows": 500}
    path = folder / "small.json"
    path.write_text(json.dumps(record))
    assert main(["run", str(path), "--runs", str(folder), "--name", "run"]) == 0
    job = Circuits.from_json(record)
    return folder / "run", job


def test_a_run_from_behavior_to_page(ran: tuple[Path, Circuits]) -> None:
    report: Any = read_json(ran[0] / "report.json")
    does = {row["template"]: row["does"] for row in report["agreement"]}
    # the network puts verbs into the number of whichever noun stands nearer
    assert does == {"simple": True, "across a clause": False}
    assert any("Across a clause: the network does not do the task" in words for words in report["remarks"])
    rows = report["small_circuits"]
    assert {(row["template"], row["site"], row["kind"]) for row in rows} == {
        ("simple", site, kind) for site in ("resid.1", "resid.3") for kind in ("local", "e2e+ds", "PCA")
    }
    for row in rows:
        points = [point["mean"] for point in row["faithfulness"]]
        assert points[0] == 0
        if row["kind"] == "PCA":
            # all axes of a basis are the state itself, whatever stands instead of the others
            assert row["counts"] == [0, 2, 24]
            assert row["spliced"]["mean"] == pytest.approx(1, abs=1e-3)
        else:
            # the last count holds all latents, in any order
            assert points[-1] == pytest.approx(row["random"][-1]["mean"], rel=1e-4)
    for row in report["circuits"]["gradients"]:
        assert -1 <= row["integrated"] <= 1
        assert row["latents"] <= row["active"]
    (one, other) = report["circuits"]["graphs"]
    assert (one["kind"], other["kind"]) == ("local", "e2e+ds")
    assert len(one["nodes"]) == 10
    assert 0 < len(one["edges"]) <= 12
    assert [axis["site"] for axis in report["first_position"]] == ["resid.1", "resid.3"]
    saved = Circuit.load(ran[0] / "circuits" / "simple-local-0.json")
    assert saved.places == tuple(one["places"])
    assert [scored.node.part for scored in saved.nodes] == [node["part"] for node in one["nodes"]]


def test_the_drawing_names_what_it_shows(ran: tuple[Path, Circuits]) -> None:
    page = (ran[0] / "report.html").read_text()
    for title in ("Agreement", "Small circuits", "Circuits", "Position 0"):
        assert f">{title}</h2>" in page
    drawings = re.findall(r'<svg class="chart flows".*?</svg>', page, re.DOTALL)
    assert len(drawings) == 2
    for svg in drawings:
        nodes = set(re.findall(r'data-node="([^"]+)"', svg))
        ends = [end for pair in re.findall(r'data-nodes="([^"]+)"', svg) for end in pair.split(" ")]
        assert len(nodes) == 11
        assert set(ends) <= nodes
        assert "answer" in ends


def test_dictionaries_of_a_finished_run_are_taken(ran: tuple[Path, Circuits], tmp_path: Path) -> None:
    folder, job = ran
    run = Run(tmp_path, Console(file=StringIO()))
    subject = job.data.open(run)
    found = Makings(run=folder).make(run, subject, ["resid.1", "resid.3"])
    assert [(one.kind, one.seed) for one in found] == [("e2e+ds", 0), ("local", 0)]
    assert list(found[0].vias) == ["resid.1", "resid.3"]
    with pytest.raises(ValueError, match=r"no kind and seed has dictionaries at all of resid\.1, resid\.2"):
        Makings(run=folder).make(run, subject, ["resid.1", "resid.2"])
    with pytest.raises(ValueError, match=r"holds no dictionary at resid\.0"):
        Makings(run=folder).make(run, subject, ["resid.0"])
    with pytest.raises(ValueError, match="no dictionaries at"):
        Makings(run=tmp_path).check()


def test_what_cannot_be_is_refused_before_long_work() -> None:
    with pytest.raises(ValueError, match="sites should be named, each once"):
        Circuits(sites=("resid.1", "resid.1")).check()
    with pytest.raises(ValueError, match="a kind of dictionary are needed at least"):
        Makings(local=None, e2e=None, e2e_ds=None).check()
    with pytest.raises(ValueError, match=r"growing numbers of latents, they are \[4, 2\]"):
        Tracing(counts=(4, 2))
