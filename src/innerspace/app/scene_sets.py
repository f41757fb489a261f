"""Scenes that a forecaster can be shown: those that its run judged on, simulated ones, and any that are given."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from innerspace.jobs.control import WordsInMotion
from innerspace.jobs.motion.pictures import choose
from innerspace.motion.framing import frame
from innerspace.motion.scenes import Scene
from innerspace.motion.sentences import describe
from innerspace.motion.simulate import Simulation, simulate
from innerspace.motion.sources import SceneSource, load
from innerspace.motion.words import label

LOOKED_AT, OFFERED, AGENTS = 200, 40, 6
"""How many scenes of a set are looked at, how many of them are offered, and how many agents of each are forecast."""


@dataclass(frozen=True, eq=False)
class SceneSet:
    """Scenes to choose from, each with a sentence on its first agent.

    ``code`` is a line of Python after which ``scenes`` holds the set, with what it ``imports``; a scene's ``target``
    there may hold more agents.
    """

    title: str
    scenes: Sequence[Scene]
    captions: Sequence[str]
    imports: str
    code: str


def scene_sets(job: WordsInMotion, source: SceneSource | None) -> tuple[list[SceneSet], str]:
    """The sets that a run's forecaster can be shown, and what is missing, in a sentence.

    Raises:
        ValueError: if the given source holds no scene, or scenes at another rate than the run's.
    """
    framing, found, missing = job.forecaster.framing, list[SceneSet](), ""
    settings = Simulation(scenes=LOOKED_AT, seed=1, history=framing.history, future=framing.future)
    try:
        job.data.check()
        own = job.data.read(framing).test
        code = "scenes = job.data.read(job.forecaster.framing).test"
        found.append(_offered("held out", own, job, "", code))
    except (ValueError, OSError) as error:
        missing = f"the scenes that the run judged on cannot be read: {error}"
    if job.data.kind != "simulated" or missing:
        imports = "from innerspace.motion.simulate import Simulation, simulate\n"
        code = f"scenes = simulate(Simulation.from_json({settings.to_json()!r})).scenes"
        found.append(_offered("simulated", simulate(settings).scenes, job, imports, code))
    if source is not None:
        imports = "from innerspace.motion.sources import SceneSource, load\n"
        code = f"scenes = load(SceneSource.from_json({source.to_json()!r})).scenes"
        given = load(source).scenes
        if not given:
            raise ValueError(f"{source} holds no scene that can be read")
        if given[0].hz != (rate := found[0].scenes[0].hz):
            raise ValueError(f"{source} holds scenes at {given[0].hz:g} Hz, the forecaster reads {rate:g} Hz")
        found.append(_offered(type(source).__name__, given, job, imports, code))
    return found, missing


def _offered(title: str, scenes: Sequence[Scene], job: WordsInMotion, imports: str, code: str) -> SceneSet:
    """Of many scenes those whose agents differ most in words."""
    even = np.unique(np.linspace(0, len(scenes) - 1, min(LOOKED_AT, len(scenes))).astype(int))
    kept = [replace(scene, target=_liveliest(scene)) for scene in (scenes[i] for i in even) if scene.target.size]
    if not kept:
        raise ValueError(f"none of the {len(scenes)} scenes has an agent to forecast")
    batch = frame(kept, job.forecaster.framing)
    labels = label(batch.target, batch.dt, job.vocabulary)
    words, first = labels.words(), {int(scene): row for row, scene in reversed(list(enumerate(batch.scene.tolist())))}
    order = dict.fromkeys(int(batch.scene[row]) for row in choose(labels, 2 * OFFERED).tolist())
    # where no agent is known long enough to be described, any will do
    shown = list(order or range(len(kept)))[:OFFERED]
    # the page opens with the first scene, which should be one with something to see
    shown.sort(key=lambda i: (words[first[i]].get("agent") != "vehicle", words[first[i]].get("speed") == "low"))
    return SceneSet(title, [kept[i] for i in shown], [describe(words[first[i]]) for i in shown], imports, code)


def _liveliest(scene: Scene) -> Int[np.ndarray, "targets"]:
    """The agents to forecast, or of more than a few the fastest ones."""
    if len(scene.target) <= AGENTS:
        return scene.target
    speed = np.linalg.norm(scene.velocity[scene.target, scene.now], axis=-1)
    return scene.target[np.sort(np.argsort(-speed, kind="stable")[:AGENTS])]
