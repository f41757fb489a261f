"""Forecasts of a scene under control vectors, as a page asks for them: many askers, one network."""

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from innerspace.app.held import Held
from innerspace.app.scene_sets import SceneSet, scene_sets
from innerspace.app.state import Amounts, View
from innerspace.decompose.directions import Directions
from innerspace.interventions import At
from innerspace.jobs.control import WordsInMotion
from innerspace.jobs.motion.requests import goals, way
from innerspace.jobs.motion.vectors import FOR_CONTROL, vectors_of
from innerspace.measure.control_loop import Controlled, Goal, Loop, control
from innerspace.measure.forecasts import forecast, readout
from innerspace.measure.solving import OUTCOMES
from innerspace.motion.forecast_metrics import Forecast
from innerspace.motion.forecasters.known import load_model
from innerspace.motion.framing import Batch, frame
from innerspace.motion.instructions import Instruction, require, understand
from innerspace.motion.scenes import Scene
from innerspace.motion.suppression import few
from innerspace.network.model import Fork, Model
from innerspace.network.site import Where
from innerspace.value import read_json

STEP = 0.01
"""The least change of a temperature."""

LONGEST_TEXT = 200
"""How many characters of a text are read."""

_WHY = {
    "limited": "the vectors would have to be longer than the hidden state is",
    "saturated": "the forecast hardly moves any more",
    "jumps": "the forecast jumps over what is asked",
    "not monotone": "the forecast turns away before it gets there",
    "unfinished": "the passes that are allowed did not suffice",
}

_KEPT = 32
"""How many scenes stay framed, each with its unsteered pass."""


@dataclass(frozen=True)
class ForecastView(View):
    """A scene of a set, the agents that are steered, where, by which vectors, and how far.

    ``scenes`` and ``site`` are the first and the run's own where they are empty. ``method`` says how vectors were
    fitted; without one each feature has the best for control. ``ask`` is what the text box holds.
    """

    scenes: str = ""
    scene: int = 0
    agents: tuple[int, ...] = (0,)
    site: str = ""
    method: str = ""
    mode: str = "additive"
    tau: Amounts = ()
    ask: str = ""


@dataclass(frozen=True, eq=False)
class Vector:
    """A control vector: its row in the run's file, and its calibration, if it has one, with how far that goes."""

    feature: str
    method: str
    row: int
    along: Float[Tensor, "d"]
    end: float
    calibration: Mapping[str, Any] | None

    @property
    def reach(self) -> float:
        """How far the slider goes: beyond what is calibrated, for single agents need more than the mean of many."""
        return 2 * self.end


@dataclass(frozen=True, eq=False)
class Stage:
    """A scene as the forecaster reads it, a row for every agent, with the unsteered pass from which others branch."""

    scene: Scene
    batch: Batch
    fork: Fork


@dataclass(frozen=True, eq=False)
class Steered:
    """The forecasts of a scene's agents without and with vectors, and the readouts of both.

    ``steered`` equals ``clean`` for agents that are not ``chosen``. ``tau`` holds the amounts by feature.
    """

    stage: Stage
    chosen: Bool[Tensor, "agents"]
    tau: dict[str, float]
    clean: Forecast
    steered: Forecast
    before: dict[str, Float[Tensor, "agents"]]
    after: dict[str, Float[Tensor, "agents"]]


@final
class Forecasts:
    """A run's forecaster, its vectors and scenes; answers depend on what is asked alone, whoever asks at once.

    Raises:
        ValueError: for files that are damaged or belong to another network, or scenes that do not fit.
    """

    def __init__(self, run: Held) -> None:
        assert isinstance(run.job, WordsInMotion)
        self.run, self.job = run, run.job
        self.model: Model = load_model(run.folder)
        self.directions: Directions = vectors_of(run.folder, self.model)
        self.site = self.directions.origins[0].site
        self.vectors = _vectors(self.directions, _calibrations(run))
        self.sets, self.missing = scene_sets(self.job, run.scenes)
        self._stages = OrderedDict[tuple[str, int, str], Stage]()
        # hooks stand on the network while it runs, and a second pass would meet those of the first
        self._alone = threading.RLock()

    @property
    def features(self) -> list[str]:
        """What there are vectors of."""
        return list(dict.fromkeys(vector.feature for vector in self.vectors))

    @property
    def methods(self) -> list[str]:
        """How vectors were fitted."""
        return list(dict.fromkeys(vector.method for vector in self.vectors))

    @property
    def sites(self) -> list[str]:
        """Where vectors can be added: at their own site, and at others that were read and are as wide."""
        width = self.model.site(self.site).width
        return [name for name in dict.fromkeys((*self.job.sites, self.site)) if self.model.site(name).width == width]

    def set_of(self, view: ForecastView) -> SceneSet:
        """The set of scenes that a view names.

        Raises:
            ValueError: for a set that there is not, or a number that none of its scenes has.
        """
        found = {item.title: item for item in self.sets}
        chosen = found.get(view.scenes or self.sets[0].title)
        if chosen is None:
            raise ValueError(f"there are no scenes called {view.scenes[:80]!r}; there are {', '.join(found)}")
        if not 0 <= view.scene < len(chosen.scenes):
            raise ValueError(f"there is no scene {view.scene}; {chosen.title} has scenes 0 to {len(chosen.scenes) - 1}")
        return chosen

    def offered(self, method: str) -> dict[str, Vector]:
        """By feature the vector of a method, or without one the best for control.

        Raises:
            ValueError: for a method by which no vector was fitted.
        """
        if method and method not in self.methods:
            raise ValueError(f"no vector was fitted by {method[:80]!r}; there are {', '.join(self.methods)}")
        order = (method,) if method else (*FOR_CONTROL, *self.methods)
        found = dict[str, Vector]()
        for name in order:
            for vector in self.vectors:
                if vector.method == name:
                    found.setdefault(vector.feature, vector)
        return {feature: found[feature] for feature in self.features if feature in found}

    def amounts(self, view: ForecastView) -> dict[str, tuple[Vector, float]]:
        """By feature the vectors that are added, and how much of each.

        Raises:
            ValueError: for a feature without a vector, or an amount beyond the slider's reach.
        """
        offered, found = self.offered(view.method), dict[str, tuple[Vector, float]]()
        for feature, amount in view.tau:
            if feature not in offered:
                by = f" by {view.method}" if view.method else ""
                raise ValueError(f"no vector steers {feature[:80]!r}{by}; there are vectors of {', '.join(offered)}")
            if not abs(amount) <= (reach := offered[feature].reach) + 1e-9:
                raise ValueError(f"τ of {feature} should lie within ± {reach:g}, it is {amount:g}")
            if amount:
                found[feature] = (offered[feature], amount)
        return found

    def stage(self, view: ForecastView) -> Stage:
        """The scene that a view names, framed, with its unsteered pass.

        Raises:
            ValueError: for a scene, a set or a site that there is not, or where the vectors do not fit.
        """
        chosen, site = self.set_of(view), self._site(view)
        key = (chosen.title, view.scene, site)
        with self._alone, torch.no_grad():
            if key not in self._stages:
                scene = chosen.scenes[view.scene]
                batch = frame([scene], self.job.forecaster.framing)
                self._stages[key] = Stage(scene, batch, self.model.fork(batch, site))
                if len(self._stages) > _KEPT:
                    self._stages.popitem(last=False)
            self._stages.move_to_end(key)
            return self._stages[key]

    def steer(self, view: ForecastView) -> Steered:
        """The forecasts that a view asks for.

        Raises:
            ValueError: for what there is not, naming what there is.
        """
        self.run.require()
        via, added, stage = way(view.mode), self.amounts(view), self.stage(view)
        chosen = self._chosen(view, len(stage.batch))
        output = clean = stage.fork.clean.output
        if added:
            along = torch.stack([vector.along for vector, _ in added.values()])
            tau = chosen[:, None] * torch.tensor([amount for _, amount in added.values()])
            with self._alone, torch.no_grad():
                output = stage.fork.run({self._site(view): At(Where("valid"), via(along, tau))}).output
        kinds = stage.batch.target.kind
        return Steered(
            stage,
            chosen,
            {feature: amount for feature, (_, amount) in added.items()},
            few(forecast(clean), kinds),
            few(forecast(output), kinds),
            readout(clean, clean, stage.batch),
            readout(output, clean, stage.batch),
        )

    def obey(self, view: ForecastView, text: str) -> tuple[ForecastView, list[str]]:
        """The amounts by which the chosen agents come to do what a text says, and what is to be said of them.

        Every agent is brought to its own request by a control loop; the amounts are the means over agents.

        Raises:
            ValueError: for a text that is not understood, or is too long, or a feature that no vector steers.
        """
        self.run.require()
        if len(text) > LONGEST_TEXT:
            raise ValueError(f"the text has {len(text):,} characters; at most {LONGEST_TEXT} are read")
        instructions, offered = understand(text), self.offered(view.method)
        require(instructions, offered)
        stage, site = self.stage(view), self._site(view)
        rows = self._chosen(view, len(stage.batch)).nonzero().flatten()
        along = torch.stack([offered[one.feature].along for one in instructions])
        asked = goals(instructions, self.job.steering.moving)
        with self._alone:
            found = control(
                self.model,
                stage.batch,
                site,
                along,
                asked,
                readout,
                Loop(passes=24),
                via=way(view.mode),
                fork=stage.fork,
            )
        known = [int(row) for row in rows if OUTCOMES[int(found.outcome[row])] != "undefined"]
        if not known:
            return replace(view, tau=(), ask=text), ["no chosen agent moves fast enough to be asked for this"]
        notes, tau = list[str](), dict[str, float]()
        for column, one in enumerate(instructions):
            reach = offered[one.feature].reach
            mean = float(found.tau[known, column].mean())
            # towards zero: the loop stops short of jumps, and so should the slider
            tau[one.feature] = min(max(math.trunc(mean / STEP) * STEP, -reach), reach)
            if abs(mean) > reach + STEP:
                notes.append(f"{one.feature}: τ = {mean:+.2f} is beyond the slider, which ends at ± {reach:g}")
        amounts = tuple((feature, round(amount, 4)) for feature, amount in tau.items() if amount)
        done = replace(view, tau=amounts, ask=text)
        return done, notes + self._told(done, instructions, asked, found, known)

    def _told(
        self,
        view: ForecastView,
        instructions: Sequence[Instruction],
        asked: Sequence[Goal],
        found: Controlled,
        rows: Sequence[int],
    ) -> list[str]:
        """What became of requests: the readouts of what is drawn, and why a row did not get what it was asked for."""
        after, said = self.steer(view).after, list[str]()
        for row in rows:
            for column, (one, goal) in enumerate(zip(instructions, asked, strict=True)):
                unit = {"speed": "m/s", "acceleration": "m/s²", "direction": "°"}[one.feature]
                before, want = (float(side[row, column]) for side in (found.before, found.target))
                got = float(after[goal.readout][row])
                said.append(f"agent {row + 1}, {goal.readout}: {before:.1f} → {got:.1f} {unit}, asked for {want:.1f}")
            if (outcome := OUTCOMES[int(found.outcome[row])]) != "reached":
                said.append(f"agent {row + 1}: {_WHY[outcome]}")
        return said

    def _site(self, view: ForecastView) -> str:
        name = view.site or self.site
        if name not in self.sites:
            raise ValueError(f"vectors of this run are added at {', '.join(self.sites)}, not at {name[:80]!r}")
        return name

    def _chosen(self, view: ForecastView, count: int) -> Bool[Tensor, "agents"]:
        if not view.agents:
            raise ValueError("choose at least one agent to steer")
        if strangers := [agent for agent in view.agents if not 0 <= agent < count]:
            raise ValueError(f"there is no agent {strangers[0]}; the scene has agents 0 to {count - 1}")
        chosen = torch.zeros(count, dtype=torch.bool)
        chosen[list(view.agents)] = True
        return chosen


def _vectors(directions: Directions, calibrations: Sequence[Mapping[str, Any]]) -> list[Vector]:
    """Of each feature and method the first, which was fitted to all scenes; what dictionaries refined is left out."""
    found = dict[tuple[str, str], Vector]()
    for row, origin in enumerate(directions.origins):
        key = (origin.feature, origin.method)
        if key in found or "through" in origin.method:
            continue
        curve = next((one for one in calibrations if (one["feature"], one["method"]) == key), None)
        end = 1.0 if curve is None else float(max(map(abs, curve["tau"])))
        found[key] = Vector(*key, row, directions.directions[row], end, curve)
    return list(found.values())


def _calibrations(run: Held) -> list[Mapping[str, Any]]:
    """The calibration curves of the run's report, of vectors that were fitted to all scenes."""
    if run.lacks("report.json"):
        return []
    rows: Any = read_json(run.folder / "report.json").get("calibration", [])
    return [row for row in rows if not row["control"] and row["seed"] == 0]
