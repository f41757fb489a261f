import dataclasses
import json
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from jaxtyping import config
from rich.console import Console

from innerspace.harvest.stream import TokenRule
from innerspace.jobs.control import WordsInMotion
from innerspace.jobs.inputs.data import Data
from innerspace.jobs.job import Job, Run, execute
from innerspace.jobs.motion.steering import Steering
from innerspace.jobs.motion.vectors import Dictionaries
from innerspace.motion.forecasters.redmotion import RedMotionSettings
from innerspace.motion.forecasters.wayformer import WayformerSettings
from innerspace.motion.framing import Framing
from innerspace.motion.losses import Loss
from innerspace.motion.training import Training
from innerspace.network.site import Where
from innerspace.report.record import Provenance
from innerspace.value import read_json


@dataclass(frozen=True)
class Note(Job):
    """Writes a line into its folder, if it is allowed to."""

    line: str = "one"
    data: Data = dataclasses.field(default_factory=Data)
    fails: bool = False

    def check(self) -> None:
        self.data.check()

    def run(self, run: Run) -> Path:
        if self.fails:
            raise ValueError("nothing to write")
        run.say(f"writing {self.line}")
        with (run.folder / "lines").open("a") as file:
            file.write(self.line + "\n")
        return run.folder / "lines"


def quiet() -> Console:
    return Console(file=StringIO())


def test_a_job_comes_back_from_its_folder(tmp_path: Path) -> None:
    job = WordsInMotion(
        data=Data(kind="av2", path=tmp_path / "logs", held_out="3b", fit=0.3),
        forecaster=RedMotionSettings(framing=Framing(history=7), width=32),
        sites=("agent.1",),
        tokens=TokenRule(Where(-2), "mean"),
        methods=("mean_difference",),
        dictionaries=Dictionaries(kinds=("relu",), k=3),
        steering=Steering(points=5, reach=30.0),
    )
    job.save(tmp_path / "job.json")
    assert Job.from_json(read_json(tmp_path / "job.json")) == job
    assert Job.from_json(WordsInMotion().to_json()) == WordsInMotion()
    assert job != WordsInMotion()


def test_the_job_of_another_forecaster_comes_back_and_so_does_one_of_old(tmp_path: Path) -> None:
    job = WordsInMotion(
        forecaster=WayformerSettings(latents=7, map_tokens="node", covariance="correlation"),
        training=Training(loss=Loss("l2", (1.0, 2.0, 0.0))),
    )
    job.save(tmp_path / "job.json")
    assert Job.from_json(read_json(tmp_path / "job.json")) == job
    job.check()
    with pytest.raises(ValueError, match=r"no site is called 'agent\.2'; this model has agent\.0, latents\.0"):
        dataclasses.replace(job, forecaster=WayformerSettings(trajectory_layers=1), sites=("agent.0",)).check()

    old = WordsInMotion(seeds=2).to_json()
    forecaster, training = old["forecaster"], old["training"]
    assert isinstance(forecaster, dict)
    assert isinstance(training, dict)
    del forecaster["covariance"], training["loss"]
    assert Job.from_json(old) == WordsInMotion(seeds=2)


def test_the_same_job_goes_on_in_its_folder(tmp_path: Path) -> None:
    for times in (1, 2):
        page = execute(Note(), tmp_path / "a" / "b", quiet())
        assert page.read_text() == "one\n" * times
    assert Job.from_json(read_json(tmp_path / "a" / "b" / "job.json")) == Note()


def test_a_run_goes_on_though_jobs_have_got_further_settings(tmp_path: Path) -> None:
    execute(Note(), tmp_path, quiet())
    written = read_json(tmp_path / "job.json")
    for added in ("source", "cache"):
        del written["data"][added]
    (tmp_path / "job.json").write_text(json.dumps(written))
    assert Job.from_json(written) == Note()
    assert execute(Note(), tmp_path, quiet()).read_text() == "one\none\n"
    # a setting that was added and is not at its default is another one
    (tmp_path / "logs").mkdir()
    written["data"] |= {"kind": "av2", "path": str(tmp_path / "logs")}
    (tmp_path / "job.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"data\.cache is None there and 'store' here"):
        execute(Note(data=Data(kind="av2", path=tmp_path / "logs", cache=Path("store"))), tmp_path, quiet())


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (Note("two"), "line is 'one' there and 'two' here"),
        (Note(data=Data(scenes=7, seed=3)), "data.scenes is 5000 there and 7 here"),
        (WordsInMotion(), "class is 'Note' there and 'WordsInMotion' here"),
    ],
)
def test_the_folder_of_another_run_is_refused(tmp_path: Path, other: Job, difference: str) -> None:
    execute(Note(), tmp_path, quiet())
    with pytest.raises(ValueError, match=f"holds a run with other settings .{difference}"):
        execute(other, tmp_path, quiet())
    assert Job.from_json(read_json(tmp_path / "job.json")) == Note()
    assert (tmp_path / "lines").read_text() == "one\n"


def test_afresh_means_without_the_former_run(tmp_path: Path) -> None:
    execute(Note(), tmp_path / "run", quiet())
    page = execute(Note("two"), tmp_path / "run", quiet(), fresh=True)
    assert page.read_text() == "two\n"


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(ValueError, match="is not empty and holds no run; choose another name"):
            execute(Note(), tmp_path, quiet(), fresh=fresh)
        with pytest.raises(ValueError, match=r"thesis\.tex is a file; choose another name"):
            execute(Note(), tmp_path / "thesis.tex", quiet(), fresh=fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_that_never_began_stands_in_no_ones_way(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to write"):
        execute(Note(fails=True), tmp_path, quiet())
    assert execute(Note(), tmp_path, quiet()).read_text() == "one\n"
    assert Job.from_json(read_json(tmp_path / "job.json")) == Note()


def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    execute(Note(), tmp_path / "run", quiet())
    with pytest.raises(ValueError, match="no folder at"):
        execute(Note(data=Data(kind="av2", path=tmp_path / "nowhere")), tmp_path / "run", quiet(), fresh=True)
    assert (tmp_path / "run" / "lines").read_text() == "one\n"


def test_a_damaged_job_is_refused(tmp_path: Path) -> None:
    execute(Note(), tmp_path, quiet())
    (tmp_path / "job.json").write_text(json.dumps(Note().to_json())[:-9])
    with pytest.raises(ValueError, match=r"job\.json is not valid JSON"):
        execute(Note(), tmp_path, quiet())


def test_lines_are_not_broken_where_the_console_ends() -> None:
    out = StringIO()
    Run(Path(), Console(file=out, width=20)).say("[bold]1[/] a path /that/is/longer/than/the/console")
    assert out.getvalue() == "1 a path /that/is/longer/than/the/console\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sites": ("agent.0", "agent.9")}, "no site is called 'agent.9'; this model has agent.0, agent.1, agent.2"),
        ({"site": "agents.2"}, "no site is called 'agents.2'; .* did you mean 'agent.2'"),
        ({"methods": ("mean_difference", "magic")}, "methods: unknown 'magic'; possible are mean_difference, .*lda"),
        ({"methods": ("mean_difference", "through")}, "methods: unknown 'through'"),
        ({"methods": ("lda",)}, "methods should begin with mean_difference"),
        ({"methods": ()}, "methods should begin with mean_difference"),
        ({"tokens": TokenRule(Where("valid"))}, "tokens: every agent needs one hidden state; valid tokens may be none"),
        (
            {"tokens": TokenRule(Where(-2), "mean")},
            "tokens: every agent needs one hidden state; -2 tokens, averaged may",
        ),
        ({"dictionaries": Dictionaries(latents=8, k=9)}, "dictionaries: k 9 should not exceed the 8 latents"),
        ({"seeds": 0}, "seeds should be at least 1, it is 0"),
        ({"data": Data(kind="av2")}, "data.kind av2 needs data.path"),
    ],
)
def test_words_in_motion_refuses_what_it_cannot_do(
    settings: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what the tests check at run time, a job checks by itself
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    WordsInMotion().check()
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(WordsInMotion(), **settings).check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points": 6}, "steering: points should be odd and at least 5, it is 6"),
        ({"points": 3}, "steering: points should be odd and at least 5, it is 3"),
        ({"randoms": 1}, "at least 2 randoms and 10 samples are needed, given 1, "),
        ({"samples": 9}, "at least 2 randoms and 10 samples are needed, given .*, 9"),
    ],
)
def test_steering_refuses_what_cannot_be_judged(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Steering(**settings)


def test_what_came_of_a_job_names_where_it_came_from(tmp_path: Path) -> None:
    run, job = Run(tmp_path, quiet()), Note("two")
    page = run.conclude(job, {"title": "Notes", "question": "What was noted?"}, seeds=(2, 0, 2), data="none")
    provenance = Provenance.load(tmp_path / "provenance.json")
    assert (provenance.seeds, provenance.data, provenance.device) == ((0, 2), "none", "cpu")
    report = read_json(tmp_path / "report.json")
    assert report["provenance"] == provenance.to_json()
    assert report["job"] == job.to_json()
    assert "What was noted?" in page.read_text()
