"""A job is a frozen value that knows how to run; a run is a folder that holds all that came of it."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, final

from rich.console import Console
from rich.progress import track

from innerspace.parallel import Share, wait_for_first
from innerspace.report.record import Provenance, write
from innerspace.value import Value, read_json

T = TypeVar("T")


@final
@dataclass(frozen=True, eq=False)
class Run:
    """A run's folder and the console it reports to."""

    folder: Path
    console: Console
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def track(self, items: Sequence[T], what: str) -> Iterable[T]:
        """The items, with a progress bar."""
        return track(items, description=f"  {what}", console=self.console, transient=True)

    def say(self, what: str) -> None:
        """One line about where the run stands."""
        self.console.print(what, highlight=False, soft_wrap=True)

    def conclude(
        self, job: "Job", report: Mapping[str, Any], *, seeds: Iterable[int], data: str, device: str = "cpu"
    ) -> Path:
        """Write what came of a job, with its settings and where the numbers come from; gives the path of the page."""
        seconds = (datetime.now(UTC) - self.started).total_seconds()
        provenance = Provenance.collect(
            seeds=sorted({*seeds}), data=data, started=self.started, seconds=seconds, device=device
        )
        provenance.save(self.folder / "provenance.json")
        write(self.folder, {**report, "job": job, "provenance": provenance})
        return self.folder / "report.html"


@dataclass(frozen=True)
class Job(Value, ABC):
    """Settings that can be run: ``run`` does the work and gives the report as numbers."""

    @abstractmethod
    def check(self) -> None:
        """Refuse what cannot work, before long work starts.

        Raises:
            ValueError: naming what was given and what is possible.
        """

    @abstractmethod
    def run(self, run: Run) -> Path:
        """Do the work inside the run's folder; gives the path of the page that it wrote."""


def execute(job: Job, folder: Path, console: Console, *, fresh: bool = False) -> Path:
    """Run a job in a folder; a run of the same job that was interrupted there goes on where it stood.

    Raises:
        ValueError: if the folder holds a run of another job, or anything that is no run.
    """
    job.check()
    first = Share.mine().rank == 0
    with wait_for_first():
        if fresh and first and (folder / "job.json").is_file():
            shutil.rmtree(folder)
        refuse_other(job, folder)
        folder.mkdir(parents=True, exist_ok=True)
        if first:
            job.save(folder / "job.json")
    return job.run(Run(folder, console))


def refuse_other(job: Job, folder: Path) -> None:
    """Keep a run from writing into the folder of another, unless that ended before it left anything but its settings.

    Raises:
        ValueError: naming the first setting that differs.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another name")
    held = {path.name for path in folder.iterdir()} if folder.exists() else set[str]()
    if not held - {"job.json"}:
        return
    if "job.json" not in held:
        raise ValueError(f"{folder} is not empty and holds no run; choose another name")
    written = _complete(read_json(folder / "job.json"))
    if written != job.to_json():
        raise ValueError(
            f"{folder} holds a run with other settings ({_difference(written, job.to_json())}); "
            f"choose another name, or run it afresh"
        )


def _complete(written: dict[str, Any]) -> dict[str, Any]:
    """A job's settings with those that were added since it was written, at their defaults."""
    try:
        return Job.from_json(written).to_json()
    except ValueError:
        return written


def _difference(one: Mapping[str, Any], other: Mapping[str, Any], where: str = "") -> str:
    for key in [*one, *(key for key in other if key not in one)]:
        a, b = one.get(key), other.get(key)
        if a != b:
            if isinstance(a, Mapping) and isinstance(b, Mapping):
                return _difference(a, b, f"{where}{key}.")
            return f"{where}{key} is {a!r} there and {b!r} here"
    raise AssertionError("the settings are equal")
