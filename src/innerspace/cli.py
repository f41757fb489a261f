"""The command line: run a recipe, look at what came out, evaluate it elsewhere, steer by a sentence or on a page."""

import importlib
import pkgutil
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from innerspace import recipes as recipe_package
from innerspace.app.serve import serve
from innerspace.jobs.control import WordsInMotion
from innerspace.jobs.dictionary import DictionaryJob
from innerspace.jobs.evaluation import evaluate
from innerspace.jobs.finished import Finished
from innerspace.jobs.inputs.data import Data, Source
from innerspace.jobs.inputs.scenes import SceneData
from innerspace.jobs.inputs.text import TextData
from innerspace.jobs.job import Job, execute
from innerspace.jobs.motion.requests import Mode
from innerspace.jobs.motion.vectors import FOR_CONTROL
from innerspace.jobs.pareto import Pareto
from innerspace.jobs.steer import steer
from innerspace.language.causal_lm import load as load_language_model
from innerspace.measure.control_loop import Loop
from innerspace.motion.forecasters.known import load_model
from innerspace.motion.instructions import understand
from innerspace.parallel import Share, begin
from innerspace.report.record import write
from innerspace.value import read_json

Name = Annotated[str | None, tyro.conf.arg(metavar="NAME")]


@dataclass(frozen=True)
class Run:
    """Run a recipe, a job.json of a former run, or a Python file that defines `job`; flags change single settings.

    The run's folder is runs/NAME. A run that was interrupted goes on where it stood when it is started again.
    """

    job: Annotated[Job, tyro.conf.arg(name="")]
    """What to run."""
    name: Name = None
    """The run's name; by default the recipe's."""
    runs: Path = Path("runs")
    """The folder of all runs."""
    fresh: bool = False
    """Begin anew, dropping what the folder holds of a former run."""


@dataclass(frozen=True)
class Show:
    """Print what a run found."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""


@dataclass(frozen=True)
class Sites:
    """List the sites of a model: where hidden states can be read and written."""

    model: Annotated[str, tyro.conf.Positional]
    """A run's folder, or a language model's folder or name on the hub."""


@dataclass(frozen=True)
class Recipes:
    """List the recipes."""


@dataclass(frozen=True)
class Eval:
    """Judge a run's forecaster and control vectors on other data, without fitting anything."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    data: Data = field(default_factory=Data)
    """The data to judge on; its test split is used."""


@dataclass(frozen=True)
class Steer:
    """Steer forecasts by a sentence, such as "slower and turn left", and print what came of it.

    Every agent gets temperatures of its own, found by a control loop.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    text: Annotated[str, tyro.conf.Positional]
    """What should change: "30 % slower", "turn left by 20°", "keep the speed but turn right"."""
    data: Data = field(default_factory=Data)
    """The data to steer on; its test split is used."""
    scenes: int = 100
    """How many scenes are steered at most."""
    mode: Mode = "additive"
    """How vectors act on the hidden states."""
    loop: Loop = field(default_factory=lambda: Loop(passes=24))
    """How many passes and how much change are allowed."""


@dataclass(frozen=True)
class Serve:
    """Open the workbench on a run: a live page to steer, browse and compare, for this machine's browsers alone."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    scenes: Source = None
    """Recorded scenes to show to the run's forecaster beside its own."""
    port: int = 7860
    """The port; 0 takes a free one."""
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 lets other machines in."""
    share: bool = False
    """Make a public link through gradio's servers."""


@dataclass(frozen=True)
class Report:
    """Write a run's page anew from its report.json."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""


@dataclass(frozen=True)
class Demo:
    """Run words-in-motion on simulated traffic in runs/demo, offline, in minutes."""

    runs: Path = Path("runs")
    """The folder of all runs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status. Errors of the user's are one line, without a traceback."""
    begin()
    # of several processes the first one speaks
    console, errors = Console(quiet=Share.mine().rank > 0), Console(stderr=True)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        jobs = recipes()
        if (place := _file_among(given)) is not None:
            jobs = {"saved": read_job(Path(given[place])), **jobs}
            given[place] = "saved"
        # a run's own flags may stand before or behind the recipe's name; data keep the kind that the recipe gives them
        marks = (tyro.conf.CascadeSubcommandArgs, tyro.conf.AvoidSubcommands)
        command = tyro.cli(_grammar(jobs), args=given, prog="innerspace", description=__doc__, config=marks)
        _dispatch(command, jobs, next((word for word in given[1:] if word in jobs), ""), console)
    except (ValueError, OSError) as error:
        line = " ".join(str(error).split())
        errors.print(f"[bold red]error[/] {escape(line)}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        errors.print("interrupted; the same command goes on where it stood")
        return 130
    return 0


def _file_among(given: Sequence[str]) -> int | None:
    """Where ``run`` is given a file in place of a recipe's name."""
    if given[:1] != ["run"]:
        return None
    files = (i for i, word in enumerate(given) if Path(word).suffix in (".json", ".py"))
    return next((i for i in files if not given[i - 1].startswith("--")), None)


def recipes() -> dict[str, Job]:
    """The recipes by name: every file of `recipes` defines a `job`."""
    found = dict[str, Job]()
    for module in pkgutil.iter_modules(recipe_package.__path__):
        job = importlib.import_module(f"{recipe_package.__name__}.{module.name}").job
        found[module.name.replace("_", "-")] = job
    return found


def read_job(path: Path) -> Job:
    """The job of a job.json, or of a Python file that defines `job`.

    Raises:
        ValueError: if the file is missing or defines no job.
    """
    if path.suffix == ".json":
        return Job.from_json(read_json(path))
    if not path.is_file():
        raise ValueError(f"no file at {path}")
    job = runpy.run_path(str(path)).get("job")
    if not isinstance(job, Job):
        raise ValueError(f"{path} should define `job`, a Job; it defines {type(job).__name__}")
    return job


def _grammar(jobs: dict[str, Job]) -> Any:
    """All commands; below `run` each recipe is a command of its own, with its settings as flags."""
    chosen = tyro.extras.subcommand_type_from_defaults(
        jobs, {name: (type(job).__doc__ or "").split("\n")[0] for name, job in jobs.items()}
    )
    run = Run
    run.__annotations__["job"] = Annotated[chosen, tyro.conf.arg(name="")]
    return run | Show | Sites | Recipes | Eval | Steer | Serve | Report | Demo


def _dispatch(command: object, jobs: dict[str, Job], recipe: str, console: Console) -> None:
    match command:
        case Run(job=job, name=name, runs=runs, fresh=fresh):
            folder = runs / (name or _name_of(job, recipe, jobs))
            _name_page(execute(job, folder, console, fresh=fresh), console)
        case Demo(runs=runs):
            _name_page(execute(jobs["words-in-motion"], runs / "demo", console), console)
        case Show(run=run):
            show(run, console)
        case Sites(model=model):
            console.print(sites_table(model))
        case Recipes():
            for name, job in jobs.items():
                line = (type(job).__doc__ or "").split("\n")[0]
                console.print(f"[bold]{name}[/]  {line}", highlight=False, soft_wrap=True)
        case Eval(run=run, data=data):
            console.print(evaluate(run, data))
        case Steer(run=run, text=text, data=data, scenes=scenes, mode=mode, loop=loop):
            console.print(steered_table(run, text, data, scenes, mode, loop))
        case Serve(run=run, scenes=scenes, port=port, host=host, share=share):
            serve(run, scenes, lambda line: _say(line, console), port=port, host=host, share=share)
        case Report(run=run):
            write(run, _read_report(run))
            _name_page(run / "report.html", console)
        case _:
            raise AssertionError(command)


def _name_of(job: Job, recipe: str, jobs: dict[str, Job]) -> str:
    """The recipe's name; for a job from a file that of the first recipe of its kind."""
    if recipe != "saved":
        return recipe
    return next((name for name, own in jobs.items() if type(own) is type(job) and name != "saved"), type(job).__name__)


def show(folder: Path, console: Console) -> None:
    """The headlines and remarks of a run's report."""
    report = _read_report(folder)
    table = Table(title=report["title"], show_header=False)
    for line in report["headlines"]:
        table.add_row(line["label"], f"[bold]{escape(line['value'])}[/]", line["note"])
    console.print(table)
    for remark in report["remarks"]:
        console.print(f"• {remark}", highlight=False, markup=False, soft_wrap=True)
    _name_page(folder / "report.html", console)


def steered_table(folder: Path, text: str, data: Data, count: int, mode: Mode, loop: Loop) -> Table:
    """The forecasts of a run's network, steered by a text on the test split of ``data``."""
    if count < 1:
        raise ValueError(f"at least one scene is needed to steer, given {count}")
    understand(text)
    data.check()
    finished = Finished.load(folder, FOR_CONTROL)
    scenes = data.read(finished.job.forecaster.framing).test[:count]
    return steer(finished, scenes, text, mode=mode, loop=loop).table()


def _read_report(folder: Path) -> dict[str, Any]:
    report = cast(dict[str, Any], read_json(folder / "report.json"))
    if missing := [key for key in ("title", "headlines", "remarks") if key not in report]:
        raise ValueError(f"{folder / 'report.json'} is no report of a complete run: it has no {missing[0]!r}")
    return report


def _name_page(page: Path, console: Console) -> None:
    _say(f"report: {page}", console)


def _say(line: str, console: Console) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def sites_table(source: str) -> Table:
    """The sites of a run's network, or of a language model."""
    folder = Path(source)
    job = Job.from_json(read_json(folder / "job.json")) if (folder / "job.json").is_file() else None
    match job:
        case WordsInMotion():
            model = load_model(folder)
        case DictionaryJob(data=SceneData(forecaster=forecaster)):
            model = load_model(forecaster)
        case DictionaryJob(data=TextData() as text) | Pareto(data=text):
            model = load_language_model(text.model, revision=text.revision).model
        case None if folder.is_dir() and not (folder / "config.json").is_file():
            raise ValueError(f"{folder} holds neither a run (job.json) nor a language model (config.json)")
        case _:
            model = load_language_model(source).model
    table = Table("site", "module", "width", "axes", title=f"{type(model.module).__name__} in {source}")
    for site in model.sites.values():
        table.add_row(site.name, site.module, str(site.width), site.axes)
    return table


if __name__ == "__main__":
    sys.exit(main())
