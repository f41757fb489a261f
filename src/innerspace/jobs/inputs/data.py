"""Which scenes a job sees, and how they are split so that nothing is judged on what it was fitted to."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Int
from rich.console import Console
from tyro.constructors import PrimitiveConstructorSpec

from innerspace.motion.argoverse import Argoverse2, Windows
from innerspace.motion.framing import Batch, Framing, frame
from innerspace.motion.hptr_files import HptrH5
from innerspace.motion.scenario_arrays import ScenarioArrays
from innerspace.motion.scene_store import SceneStore, StoredAgents
from innerspace.motion.scene_writing import write_store
from innerspace.motion.scenes import Scene
from innerspace.motion.simulate import Simulation, simulate
from innerspace.motion.sources import SceneSource, Skipped, load
from innerspace.motion.waymo import WaymoScenarios
from innerspace.motion.waymo_json import WaymoJson
from innerspace.parallel import wait_for_first
from innerspace.value import Value


@dataclass(frozen=True, eq=False)
class Splits:
    """Scenes for four purposes; ``test`` shares no scene (no log) with any other.

    ``train`` teaches the forecaster, ``validate`` picks its best weights, ``fit`` serves probes, vectors and
    dictionaries, ``test`` judges. Where ``stored`` is given, the scenes of those numbers in a store teach the
    forecaster in place of ``train``, and are never all in memory.
    """

    train: list[Scene]
    validate: list[Scene]
    fit: list[Scene]
    test: list[Scene]
    description: str
    skipped: list[Skipped] = field(default_factory=list[Skipped])
    stored: tuple[SceneStore, Int[np.ndarray, "scenes"]] | None = None

    def to_train_on(self, framing: Framing) -> Batch | StoredAgents:
        """The agents that teach the forecaster, as it reads them."""
        return (
            frame(self.train, framing) if self.stored is None else StoredAgents(self.stored[0], framing, self.stored[1])
        )

    @property
    def training_scenes(self) -> int:
        """How many scenes teach the forecaster."""
        return len(self.train) if self.stored is None else len(self.stored[1])


Source = Annotated[
    SceneSource | None,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="CLASS:PATH|JSON",
        instance_from_str=lambda words: read_source(words[0]),
        is_instance=lambda item: item is None or isinstance(item, SceneSource),
        str_from_instance=lambda source: ["None" if source is None else json.dumps(source.to_json())],
    ),
]
"""On the command line a source is its class and path, ``Argoverse2:/data/av2``, or all of its settings as JSON."""


@dataclass(frozen=True)
class Data(Value):
    """Simulated scenes, Argoverse 2 files below ``path``, or recorded scenes of any ``source``.

    Simulated scenes are split at random by scene (they are independent of each other): ``test`` and ``fit`` are shares
    of all. Sensor logs are split by log: ``held_out`` names the log that is judged (by default the last by name), every
    sixth track of the others is kept from training to pick the best weights, and forecasting scenarios are only ever
    judged. A window starts every ``stride`` steps. ``confounded`` scenes have speeds that depend on the agent's type.

    Recorded scenes are split at random by group (a log, a drive): groups are drawn until ``scenes`` scenes are reached,
    and ``test`` and ``fit`` are shares of the groups. With a ``cache``, a folder, files are read once, by all cores,
    and kept there as a ``SceneStore``; recorded scenes without a source are those of the cache as it is. With
    ``stream`` the forecaster learns from all groups that do not fit or test, read from the cache batch by batch;
    ``scenes`` then bounds those that fit and test only.
    """

    kind: Literal["simulated", "av2", "recorded"] = "simulated"
    path: Path | None = None
    held_out: str | None = None
    stride: int = 5
    scenes: int = 5000
    confounded: bool = False
    seed: int = 0
    fit: float = 0.25
    test: float = 0.1
    source: Source = None
    cache: Path | None = None
    stream: bool = False

    def check(self) -> None:
        """Refuse contradictory settings and missing files.

        Raises:
            ValueError: naming what was given and what is possible.
        """
        if self.kind == "av2" and self.path is None:
            raise ValueError("data.kind av2 needs data.path, a folder with Argoverse 2 scenarios or sensor logs")
        if self.kind == "recorded" and self.source is None and self.cache is None:
            raise ValueError("data.kind recorded needs data.source, like Argoverse2:/data/av2, or data.cache, a store")
        if self.kind == "simulated" and self.path is not None:
            raise ValueError(f"data.path {self.path} is given, but data.kind is simulated; did you mean av2?")
        if self.kind == "simulated" and self.held_out is not None:
            raise ValueError(f"data.held_out {self.held_out!r} names a log, but data.kind is simulated")
        if self.stream and self.cache is None:
            raise ValueError("data.stream reads from a store: give data.cache, the folder to keep it in")
        default = Data()
        for name, kinds in _SETTINGS.items():
            if self.kind not in kinds and getattr(self, name) != getattr(default, name):
                raise ValueError(
                    f"data.{name} is a setting of {' and '.join(kinds)} scenes, but data.kind is {self.kind}"
                )
        if self.path is not None and not self.path.is_dir():
            raise ValueError(f"data.path: no folder at {self.path}")
        if not (0 < self.fit and 0 < self.test and self.fit + self.test < 0.9):
            raise ValueError(
                f"data.fit and data.test are shares that leave room to train on; given {self.fit}, {self.test}"
            )

    @property
    def unit(self) -> str:
        """What no split tears apart."""
        return {"simulated": "scene", "av2": "log", "recorded": "group"}[self.kind]

    def read(self, framing: Framing) -> Splits:
        """The scenes, split.

        Raises:
            ValueError: if there are too few scenes, logs or groups to split, an unknown log is named, or the cache
                holds scenes of other settings.
        """
        match self.kind:
            case "simulated":
                return self._simulated(framing)
            case "av2":
                return self._argoverse(framing)
            case "recorded":
                return self._recorded()

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

    def _argoverse(self, framing: Framing) -> Splits:
        assert self.path is not None
        source = Argoverse2(self.path, Windows(framing.history, framing.future, self.stride))
        loaded = load(source) if self.cache is None else _stored(source, self.cache).load()
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

    def _recorded(self) -> Splits:
        if self.cache is not None:
            store = SceneStore(self.cache) if self.source is None else _stored(self.source, self.cache)
            scenes, groups, skipped = store, store.groups, store.skipped()
            name = str(json.loads(store.manifest.origin.source)["class"])
        else:
            assert self.source is not None
            loaded = load(self.source)
            scenes, groups, skipped = loaded.scenes, [scene.group for scene in loaded.scenes], loaded.skipped
            name = type(self.source).__name__
        drawn = _draw(groups, self.scenes, self.seed)
        test, fit = int(self.test * len(drawn)), int(self.fit * len(drawn))
        if min(test, fit) < 1:
            least = math.ceil(1 / min(self.test, self.fit))
            raise ValueError(
                f"{len(drawn)} groups are too few to split, at least {least} are needed; {name} gave {len(scenes)} "
                f"scenes in {len(set(groups))} groups, of which data.scenes {self.scenes} keeps {sum(map(len, drawn))}"
                + "".join(f"; {skip.name}: {skip.reason}" for skip in skipped[:3])
            )

        def of(groups: Sequence[Sequence[int]]) -> list[Scene]:
            return [scenes[i] for i in sorted(i for group in groups for i in group)]

        stored, rest = None, ""
        if self.stream:
            assert isinstance(scenes, SceneStore)
            held = {i for group in drawn[: test + fit] for i in group}
            numbers = np.array([i for i in range(len(scenes)) if i not in held])
            stored, rest = (scenes, numbers), f"; {len(numbers):,} others are streamed to train on"
        return Splits(
            train=[] if self.stream else of(drawn[test + fit :]),
            validate=of(drawn[test : test + fit]),
            fit=of(drawn[test : test + fit]),
            test=of(drawn[:test]),
            description=(
                f"{sum(map(len, drawn)):,} of {len(scenes):,} scenes of {name}, split by group, of which there are "
                f"{len(drawn):,}{rest}"
            ),
            skipped=skipped,
            stored=stored,
        )


_SETTINGS = {
    "held_out": ("av2",),
    "path": ("av2",),
    "stride": ("av2",),
    "confounded": ("simulated",),
    "scenes": ("simulated", "recorded"),
    "seed": ("simulated", "recorded"),
    "fit": ("simulated", "recorded"),
    "test": ("simulated", "recorded"),
    "source": ("recorded",),
    "cache": ("av2", "recorded"),
    "stream": ("recorded",),
}
"""The kinds of data that a setting belongs to."""


SOURCES = (Argoverse2, HptrH5, ScenarioArrays, WaymoJson, WaymoScenarios)
"""The sources that the command line and a job's settings may name."""


def read_source(words: str) -> SceneSource | None:
    """A source from what the command line says of it: ``CLASS:PATH``, JSON, or ``None``.

    Raises:
        ValueError: for an unknown class, naming those that there are, settings that it has not, or other words.
    """
    if words == "None":
        return None
    if words.lstrip().startswith("{"):
        return SceneSource.from_json(json.loads(words))
    name, _, path = words.partition(":")
    if not path:
        known = ", ".join(source.__name__ for source in SOURCES)
        raise ValueError(
            f"a source is CLASS:PATH, like Argoverse2:/data/av2, or a JSON object, not {words!r}; classes are {known}"
        )
    return SceneSource.from_json({"class": name, "path": path})


def _stored(source: SceneSource, folder: Path) -> SceneStore:
    """The store of a source, written first where it is not complete."""
    with wait_for_first():
        return write_store(source, folder, console=Console(stderr=True))


def _draw(groups: Sequence[str], most: int, seed: int) -> list[list[int]]:
    """The scenes of each group, in a random order of groups, as long as they are at most so many."""
    of = dict[str, list[int]]()
    for number, group in enumerate(groups):
        of.setdefault(group, []).append(number)
    names = sorted(of)
    order = [of[names[i]] for i in np.random.default_rng(seed).permutation(len(names))]
    return order[: int(np.searchsorted(np.cumsum([len(group) for group in order]), most, side="right"))]


def _of_tracks(scenes: list[Scene], wanted: Callable[[int], bool]) -> list[Scene]:
    """The scenes with only some of their tracks as targets; windows of one log number its tracks alike."""
    return [replace(scene, target=scene.target[[wanted(int(track)) for track in scene.target]]) for scene in scenes]


def _is_scenario(scene: Scene) -> bool:
    return scene.group == scene.name
