"""Subspaces of a language model and of a forecaster, from hidden states to the page."""

import dataclasses
from io import StringIO
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from rich.console import Console

from innerspace.decompose.subspaces import Subspaces
from innerspace.jobs.control import WordsInMotion
from innerspace.jobs.inputs.scenes import SceneData
from innerspace.jobs.inputs.text import TextData
from innerspace.jobs.job import execute
from innerspace.jobs.partitions.learned import LEARNED, Finding
from innerspace.jobs.partitions.suites import PUBLISHED, Asking
from innerspace.jobs.subspaces import SubspacesJob, Verifying
from innerspace.language.corpora import Corpus
from innerspace.language.sources import Files
from innerspace.learn.assembling import Assembling
from innerspace.learn.descent import Descent
from innerspace.learn.merge_rules import PublishedThreshold
from innerspace.learn.merging import Sampling
from innerspace.learn.partitioning import Merges, Partitioning
from innerspace.measure.part_labels import Reading
from innerspace.value import Value, read_json

QUICK = Verifying(judged=200, among=800, queries=3, reading=Reading(splits=2, rotations=1, most=400))


def text(assets: Path) -> TextData:
    corpus = Corpus(
        Files((assets / "lm/tinystories_1000.json",)),
        64,
        "sequence",
        eos=False,
        tokens=12_000,
        replace=(("\n\n", "\n"),),
    )
    return TextData(str(assets / "lm/stories260K"), corpus=corpus, batch=16)


def merging(steps: int) -> Partitioning:
    fast = Partitioning.fast(64, 16, steps)
    # as much as two of four parts are merged, whatever they are
    merges = Merges(
        PublishedThreshold(1e-4), steps // 2, steps, 1, stop=False, transport=True, sampling=Sampling(100, 400)
    )
    return dataclasses.replace(fast, queries=64, merges=merges)


@pytest.fixture(scope="module")
def run(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SubspacesJob, Path]:
    torch.set_num_threads(1)
    job = SubspacesJob(
        text(assets),
        ("resid.1", "blocks.3.hook_resid_post"),
        Finding(custom=merging(24), seeds=2, rows=4000, held_out=1500, randoms=2),
        dataclasses.replace(QUICK, suites=(Asking("stories", prompts=40),), supervised=3, supervised_size=2),
    )
    folder = tmp_path_factory.mktemp("subspaces") / "stories"
    execute(job, folder, Console(file=StringIO()))
    return job, folder


def test_every_site_and_seed_leaves_a_partition(run: tuple[SubspacesJob, Path]) -> None:
    _, folder = run
    for name in ("resid.1-0", "resid.1-1", "resid.3-0", "resid.3-1"):
        what = Subspaces.load(folder / "subspaces" / f"{name}.safetensors")
        assert sum(what.sizes) == 64
        assert what.sizes == (32, 16, 16)
        double = what.rotation.detach().double()
        assert (double @ double.T - torch.eye(64, dtype=torch.float64)).abs().max() < 1e-6
        assert what.home is not None
        assert what.home.site == name.split("-")[0]
    assert not list((folder / "subspaces").glob("*.snapshot"))


def test_the_report_tells_what_was_found(run: tuple[SubspacesJob, Path]) -> None:
    report: Any = read_json(run[1] / "report.json")
    assert [row["sizes"] for row in report["subspace_training"]] == [[32, 16, 16]] * 4
    assert all([event["what"] for event in row["events"]] == ["merge"] for row in report["subspace_training"])
    suites = {suite["name"]: suite for suite in report["patching"]["suites"]}
    assert set(suites) == {f"stories.{name}" for name in ("name", "pronoun", "object", "opening", "quotation")}
    for suite in suites.values():
        assert suite["uses"]
        methods = [method["method"] for method in suite["methods"]]
        assert methods[:3] == [LEARNED, "identity", "random"]
        assert methods[-1] == "DAS"
        # the parts together are the whole, as far as the network is linear: none has all for nothing
        assert sum(part["effect"]["mean"] for part in suite["methods"][0]["parts"]) > 0.3 * suite["whole"]["mean"]
    labels = {label["name"] for label in report["part_labels"][0]["labels"]}
    assert labels >= {"token", "token before", "position"}
    whole = dict(
        zip(
            [label["name"] for label in report["part_labels"][0]["labels"]],
            report["part_labels"][0]["measures"]["linear"]["whole"],
            strict=True,
        )
    )
    assert whole["token"]["mean"] > 0.8
    query = report["preimages"]["queries"][0]
    state = report["preimages"]["states"][query["state"]]
    assert query["words"].endswith(state["tokens"][state["at"]].strip())
    assert {path["kind"] for path in report["weight_paths"]["paths"]} >= {"stream", "ov", "qk", "mlp"}
    page = (run[1] / "report.html").read_text()
    for words in ("Patching of parts", "Dependence of parts", "Preimages", "What parts tell"):
        assert words in page


def test_a_run_goes_on_with_what_is_there(run: tuple[SubspacesJob, Path]) -> None:
    job, folder = run
    path = folder / "subspaces" / "resid.3-1.safetensors"
    before = Subspaces.load(path).rotation
    path.unlink()
    others = {one: one.stat().st_mtime_ns for one in path.parent.glob("*.safetensors")}
    execute(job, folder, Console(file=StringIO()))
    assert torch.equal(Subspaces.load(path).rotation, before)
    assert {one: one.stat().st_mtime_ns for one in others} == others


def test_a_forecaster_in_the_same_words(tiny: WordsInMotion, finished: Path, tmp_path: Path) -> None:
    report: Any = read_json(finished / "report.json")
    told = [suite["name"] for suite in report["patching"]["suites"]] + report["remarks"]
    for feature in ("speed", "acceleration", "direction"):
        assert any(words.startswith(feature) for words in told)
    data = SceneData(finished, tiny.data, batch=8)
    job = SubspacesJob(
        data,
        ("agent.1",),
        Finding("paper", unit=4, steps=12, seeds=1, rows=300, held_out=150, randoms=1),
        dataclasses.replace(QUICK, exchanges=8),
    )
    execute(job, tmp_path / "run", Console(file=StringIO()))
    own: Any = read_json(tmp_path / "run" / "report.json")
    assert own["subspace_training"][0]["kind"] == "paper"
    assert own["subspace_training"][0]["sizes"] == [4, 4, 4, 4]
    assert {"caption", "past", "future"} <= set(own["preimages"]["states"][0])
    search = Descent(steps=20, company=20, rows=60)
    assembled = Finding(custom=Assembling(unit=4, starts=2, tries=1, search=search), seeds=1, rows=300, held_out=150)
    execute(dataclasses.replace(job, finding=assembled), tmp_path / "assembled", Console(file=StringIO()))
    (row,) = cast(Any, read_json(tmp_path / "assembled" / "report.json"))["subspace_training"]
    assert (row["steps"], sum(row["sizes"]), row["stopped"]) == ([], 16, "no pair asks to be merged")
    asked = dataclasses.replace(job, verifying=dataclasses.replace(QUICK, suites=(Asking("stories"),)))
    with pytest.raises(ValueError, match="agents of a forecaster are exchanged by words"):
        execute(asked, tmp_path / "other", Console(file=StringIO()))


def test_what_cannot_work_is_refused(assets: Path, tmp_path: Path) -> None:
    console, small = Console(file=StringIO()), Finding(unit=16, steps=4, seeds=1, rows=500, held_out=200)
    asked = SubspacesJob(text(assets), ("resid.0",), small, dataclasses.replace(QUICK, suites=(Asking("stories"),)))
    with pytest.raises(ValueError, match=r"'stories.name' is of the site 'resid.3'; the job has resid.0"):
        execute(asked, tmp_path / "a", console)
    with pytest.raises(ValueError, match="each once"):
        execute(dataclasses.replace(asked, sites=("resid.0", "resid.0")), tmp_path / "b", console)
    with pytest.raises(ValueError, match="this tokenizer can express 0 names as one token"):
        execute(
            dataclasses.replace(asked, verifying=dataclasses.replace(QUICK, suites=(Asking("ioi"),))),
            tmp_path / "c",
            console,
        )


def test_published_numbers_average_as_published() -> None:
    tests = [published for (width, _), published in PUBLISHED.items() if width == 768]
    for method, mean in {"learned": 0.710, "identity": 0.210, "random": 0.205, "PCA, small first": 0.375}.items():
        assert sum(one.methods[method]["mean"] for one in tests) / 5 == pytest.approx(mean, abs=1.1e-3)


def test_settings_come_back_from_json() -> None:
    job = SubspacesJob(finding=Finding(custom=merging(10)), verifying=Verifying(suites=(Asking("ioi"),)))
    assert Value.from_json(job.to_json()) == job
