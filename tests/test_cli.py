from pathlib import Path

import pytest

from argoverse_files import write_log, write_scenario
from innerspace.cli import main, read_job, recipes
from innerspace.jobs.control import WordsInMotion
from innerspace.motion.forecasters.wayformer import WayformerSettings

Capture = pytest.CaptureFixture[str]

SCRIPT = '''
"""Counts."""
from dataclasses import dataclass
from pathlib import Path
from innerspace.jobs.job import Job, Run

@dataclass(frozen=True)
class Count(Job):
    """Count to a number."""
    to: int = 3
    word: str = "[step]"
    def check(self) -> None:
        if self.to < 1:
            raise ValueError(f"to should be at least 1, it is {self.to} [of /any/ kind]")
    def run(self, run: Run) -> Path:
        (run.folder / "page").write_text(self.word * self.to)
        return run.folder / "page"

job = Count(to=2)
'''


@pytest.fixture
def script(tmp_path: Path) -> Path:
    place = tmp_path / "count.py"
    place.write_text(SCRIPT)
    return place


def refused(arguments: list[str], capsys: Capture) -> str:
    """The one line on stderr with which a command ends."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" or "1 scenes and their words" in captured.out
    assert captured.err.startswith("error ")
    assert captured.err.count("\n") == 1
    return captured.err


def left(arguments: list[str]) -> int:
    """The status with which the parser of the command line ends a program."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_recipes_are_listed_each_with_a_sentence(capsys: Capture) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == list(recipes())
    assert lines[-1].startswith("words-in-motion  Read a motion forecaster's hidden states in words, and steer")


def test_every_recipe_is_ready_and_comes_back_from_json() -> None:
    for job in recipes().values():
        job.check()
        assert type(job).from_json(job.to_json()) == job


def test_help_names_the_recipes_and_every_setting(capsys: Capture) -> None:
    assert left(["run", "--help"]) == 0
    assert "words-in-motion" in capsys.readouterr().out
    assert left(["run", "words-in-motion", "--help"]) == 0
    out = capsys.readouterr().out
    for flag in (
        "--data.kind",
        "--forecaster.framing.history",
        "--probing.parts",
        "--dictionaries.fit.steps",
        "--name",
    ):
        assert flag in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "words-in-notion"], "words-in-notion"),
        (["run", "words-in-motion", "--data.kind", "waymo"], "waymo"),
        (["run", "words-in-motion", "--data.sceness", "3"], "--data.sceness"),
        (["walk"], "walk"),
        ([], "run"),
    ],
)
def test_what_is_no_command_is_refused_by_name(arguments: list[str], said: str, capsys: Capture) -> None:
    assert left(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err


def test_a_file_that_defines_a_job_is_run(script: Path, tmp_path: Path, capsys: Capture) -> None:
    runs = tmp_path / "runs"
    page = runs / "Count" / "page"
    assert main(["run", str(script), "--runs", str(runs)]) == 0
    assert page.read_text() == "[step][step]"
    assert capsys.readouterr().out == f"report: {page}\n"
    assert (runs / "Count" / "job.json").is_file()
    assert "other settings (to is 2 there and 3 here)" in refused(
        ["run", "--runs", str(runs), str(script), "--to", "3"], capsys
    )
    assert main(["run", "--fresh", "--runs", str(runs), str(script), "--to", "3"]) == 0
    assert page.read_text() == "[step][step][step]"
    assert main(["run", "--runs", str(runs), "--name", "other.py", str(script)]) == 0
    assert (runs / "other.py" / "page").is_file()


def test_errors_are_told_to_the_letter(script: Path, tmp_path: Path, capsys: Capture) -> None:
    line = refused(["run", str(script), "--to", "0", "--runs", str(tmp_path)], capsys)
    assert line == "error to should be at least 1, it is 0 [of /any/ kind]\n"


def test_a_file_without_a_job_is_refused(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty.py").write_text("job = 3\n")
    assert "should define `job`, a Job; it defines int" in refused(["run", str(tmp_path / "empty.py")], capsys)
    assert f"no file at {tmp_path / 'none.py'}" in refused(["run", str(tmp_path / "none.py")], capsys)
    assert f"no file at {tmp_path / 'none.json'}" in refused(["run", str(tmp_path / "none.json")], capsys)
    (tmp_path / "job.json").write_text('{"class": "Nonsense"}')
    assert "unknown class 'Nonsense'; possible are" in refused(["run", str(tmp_path / "job.json")], capsys)
    (tmp_path / "job.json").write_text('{"class": "WordsInMotion"')
    assert "job.json is not valid JSON" in refused(["run", str(tmp_path / "job.json")], capsys)


def test_a_saved_job_may_be_changed_by_flags(tmp_path: Path, capsys: Capture) -> None:
    WordsInMotion(seeds=2).save(tmp_path / "job.json")
    assert read_job(tmp_path / "job.json") == WordsInMotion(seeds=2)
    line = refused(["run", str(tmp_path / "job.json"), "--seeds", "0", "--runs", str(tmp_path)], capsys)
    assert line == "error seeds should be at least 1, it is 0\n"


def test_a_recipe_chooses_the_forecaster_and_flags_set_its_sizes(tmp_path: Path, capsys: Capture) -> None:
    place = tmp_path / "other.py"
    place.write_text(
        "from innerspace.jobs.control import WordsInMotion\n"
        "from innerspace.motion.forecasters.wayformer import WayformerSettings\n"
        "job = WordsInMotion(forecaster=WayformerSettings(latents=9))\n"
    )
    assert read_job(place) == WordsInMotion(forecaster=WayformerSettings(latents=9))
    assert left(["run", str(place), "--help"]) == 0
    said = capsys.readouterr().out
    assert "--forecaster.latents" in said
    assert "--forecaster.red-tokens" not in said
    run = ["run", str(place), "--runs", str(tmp_path / "runs")]
    assert left([*run, "--forecaster.heads", "5"]) == 2
    assert "Wayformer: heads 5 should" in capsys.readouterr().err
    sites = refused([*run, "--forecaster.latent-layers", "1", "--site", "red.0"], capsys)
    assert "this model has agent.0, agent.1, agent.2, latents.0, latents.1, modes.0" in sites
    assert left(["run", "words-in-motion", "--help"]) == 0
    assert "--forecaster.red-tokens" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["show", "sites", "eval", "report"])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, command: str, capsys: Capture) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        assert str(folder) in refused([command, str(folder)], capsys)


def test_unknown_sites_are_refused_before_a_folder_is_made(tmp_path: Path, capsys: Capture) -> None:
    runs = ["run", "--runs", str(tmp_path / "runs"), "words-in-motion"]
    assert "no site is called 'agent.8'; this model has agent.0" in refused([*runs, "--sites", "agent.8"], capsys)
    assert "did you mean 'agent.2'" in refused([*runs, "--site", "agents.2"], capsys)
    assert not (tmp_path / "runs").exists()


def test_data_that_cannot_be_used_is_named(tmp_path: Path, capsys: Capture) -> None:
    data = tmp_path / "data"
    runs = ["run", "--runs", str(tmp_path / "runs"), "words-in-motion", "--data.kind", "av2"]
    assert "data.kind av2 needs data.path" in refused(runs, capsys)
    runs += ["--data.path", str(data)]
    assert f"data.path: no folder at {data}" in refused(runs, capsys)
    data.mkdir()
    assert f"annotations.feather in {data} or below" in refused(runs, capsys)
    scenario = write_scenario(data / "one", "one")
    scenario.write_bytes(scenario.read_bytes()[:2000])
    write_log(data / "log")
    line = refused(runs, capsys)
    assert f"at least two usable sensor logs are needed, one to be held out; {data} has 1; one: scenario_one" in line
    assert "is no complete parquet file" in line


def test_a_runs_folder_that_cannot_be_made_is_named(tmp_path: Path, script: Path, capsys: Capture) -> None:
    assert f"{script}" in refused(["run", "--runs", str(script), str(script)], capsys)
