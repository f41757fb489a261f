"""The run that a workbench shows: its folder and its job, and whether both are still there."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from innerspace.jobs.job import Job
from innerspace.motion.sources import SceneSource
from innerspace.value import read_json


@final
@dataclass(frozen=True, eq=False)
class Held:
    """A run's folder, the job that made it, and where further scenes for its forecaster come from, if anywhere."""

    folder: Path
    job: Job
    scenes: SceneSource | None = None

    @staticmethod
    def open(folder: Path, scenes: SceneSource | None = None) -> "Held":
        """Look at a run's folder; nothing but its settings is read.

        Raises:
            ValueError: for what is no run's folder, saying what is missing.
        """
        if not folder.is_dir():
            raise ValueError(f"no folder at {folder}; a run's folder is needed, such as runs/demo")
        if not (folder / "job.json").is_file():
            raise ValueError(f"{folder} holds no run: there is no job.json")
        return Held(folder.resolve(), Job.from_json(read_json(folder / "job.json")), scenes)

    def require(self) -> None:
        """Refuse to go on from memory when what is in it can no longer be looked up.

        Raises:
            ValueError: if the run's folder was moved or deleted.
        """
        if not (self.folder / "job.json").is_file():
            raise ValueError(
                f"the run's folder {self.folder} is gone; put it back, or stop this server and serve another run"
            )

    def lacks(self, *names: str) -> list[str]:
        """Which of some files or folders the run does not hold."""
        return [name for name in names if not (self.folder / name).exists()]
