"""Which scenes a job sees, and how they are split so that nothing is judged on what it was fitted to."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from innerspace.motion.argoverse import Argoverse2, Windows
from innerspace.motion.framing import Framing
from innerspace.motion.scenes import Scene
from innerspace.motion.simulate import Simulation, simulate
from innerspace.motion.sources import Skipped, load
from innerspace.value import Value


@dataclass(frozen=True, eq=False)
class Splits:
    """Scenes for four purposes; ``test`` shares no scene (no log) with any other.

    ``train`` teaches the forecaster, ``validate`` picks its best weights, ``fit`` serves probes, vectors and
    dictionaries, ``test`` judges.
    """

    train: list[Scene]
    validate: list[Scene]
    fit: list[Scene]
    test: list[Scene]
    description: str
    skipped: list[Skipped] = field(default_factory=list[Skipped])


@dataclass(frozen=True)
class Data(Value):
    """Simulated scenes, or Argoverse 2 files below ``path``.

    Simulated scenes are split at random by scene (they are independent of each other): ``test`` and ``fit`` are shares
    of all. Sensor logs are split by log: ``held_out`` names the log that is judged (by default the last by name), every
    sixth track of the others is kept from training to pick the best weights, and forecasting scenarios are only ever
    judged. A window starts every ``stride`` steps. ``confounded`` scenes have speeds that depend on the agent's type.
    """

    kind: Literal["simulated", "av2"] = "simulated"
    path: Path | None = None
    held_out: str | None = None
    stride: int = 5
    scenes: int = 5000
    confounded: bool = False
    seed: int = 0
    fit: float = 0.25
    test: float = 0.1

    def check(self) -> None:
        """Refuse contradictory settings and missing files.

        Raises:
            ValueError: naming what was given and what is possible.
        """
        if self.kind == "av2" and self.path is None:
            raise ValueError("data.kind av2 needs data.path, a folder with Argoverse 2 scenarios or sensor logs")
        if self.kind == "simulated" and self.path is not None:
            raise ValueError(f"data.path {self.path} is given, but data.kind is simulated; did you mean av2?")
        if self.kind == "simulated" and self.held_out is not None:
            raise ValueError(f"data.held_out {self.held_out!r} names a log, but data.kind is simulated")
        foreign = ("stride",) if self.kind == "simulated" else ("confounded", "scenes", "seed", "fit", "test")
        default = Data()
        if ignored := [name for name in foreign if getattr(self, name) != getattr(default, name)]:
            whose = "recorded" if self.kind == "simulated" else "simulated"
            raise ValueError(f"data.{ignored[0]} is a setting of {whose} scenes, but data.kind is {self.kind}")
        if self.path is not None and not self.path.is_dir():
            raise ValueError(f"data.path: no folder at {self.path}")
        if not (0 < self.fit and 0 < self.test and self.fit + self.test < 0.9):
            raise ValueError(
                f"data.fit and data.test are shares that leave room to train on; given {self.fit}, {self.test}"
            )

    def read(self, framing: Framing) -> Splits:
        """The scenes, split.

        Raises:
            ValueError: if there are too few scenes or logs to split, or an unknown log is named.
        """
        return self._simulated(framing) if self.kind == "simulated" else self._recorded(framing)

    def _simulated(self, framing: Framing) -> Splits:
        settings = Simulation(
            scenes=self.scenes,
            seed=self.seed,
            confounded=self.confounded,
            history=framing.history,
            future=framing.future,
        )
        scenes = simulate(settings).scenes
        test, fit = int(self.test * len(scenes)), int(self.fit * len(scenes))
        if min(test, fit) < 10:
            least = math.ceil(10 / min(self.test, self.fit))
            raise ValueError(f"{self.scenes} scenes are too few to split; at least {least} are needed")
        kind = "speed depends on type" if self.confounded else "speed independent of type"
        return Splits(
            train=scenes[test + fit :],
            validate=scenes[test : test + fit],
            fit=scenes[test : test + fit],
            test=scenes[:test],
            description=f"{len(scenes)} simulated scenes ({kind}), split by scene",
        )

    def _recorded(self, framing: Framing) -> Splits:
        assert self.path is not None
        loaded = load(Argoverse2(self.path, Windows(framing.history, framing.future, self.stride)))
        logs = sorted({scene.group for scene in loaded.scenes if not _is_scenario(scene)})
        if len(logs) < 2:
            raise ValueError(
                f"at least two usable sensor logs are needed, one to be held out; {self.path} has {len(logs)}"
                + "".join(f"; {skip.name}: {skip.reason}" for skip in loaded.skipped[:3])
            )
        matching = [log for log in logs if self.held_out is None or log.startswith(self.held_out)]
        if not matching or (self.held_out is not None and len(matching) > 1):
            count = "more than one" if matching else "no"
            raise ValueError(f"{count} log begins with {self.held_out!r}; there are {', '.join(logs)}")
        held_out = matching[-1]
        fit = [scene for scene in loaded.scenes if not _is_scenario(scene) and scene.group != held_out]
        judged = [scene for scene in loaded.scenes if scene.group == held_out]
        scenarios = [scene for scene in loaded.scenes if _is_scenario(scene)]
        return Splits(
            train=_of_tracks(fit, lambda track: track % 6 != 0),
            validate=_of_tracks(fit, lambda track: track % 6 == 0),
            fit=fit,
            test=[*judged, *scenarios],
            description=(
                f"Argoverse 2, split by log: windows of {len(logs) - 1} sensor log(s) to train and fit, "
                f"log {held_out[:8]} and {len(scenarios)} forecasting scenario(s) to judge"
            ),
            skipped=loaded.skipped,
        )


def _of_tracks(scenes: list[Scene], wanted: Callable[[int], bool]) -> list[Scene]:
    """The scenes with only some of their tracks as targets; windows of one log number its tracks alike."""
    return [replace(scene, target=scene.target[[wanted(int(track)) for track in scene.target]]) for scene in scenes]


def _is_scenario(scene: Scene) -> bool:
    return scene.group == scene.name
