"""Zero-shot control: a run's speed vector on data that moves otherwise, by a temperature that was calibrated elsewhere.

Tas and Wagner, "Words in Motion" (ICLR 2025, arXiv 2406.11624), compensate for a shift of the data by a control vector
alone. Here nothing is fitted to shifted data either: τ follows from how much speeds are to change and from a
calibration curve on other, unshifted scenes. The best that any τ could do, random vectors, and the trivial rescaling of
what the forecaster says stand beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape

from innerspace.decompose.directions import Directions
from innerspace.jobs.inputs.data import Data, Splits
from innerspace.jobs.job import Job, Run
from innerspace.jobs.motion.shifted import Control, Steered, judge, measured_factor
from innerspace.jobs.motion.steering import Bench, Judged, Steering, calibration_rows
from innerspace.jobs.motion.unseen_words import opening
from innerspace.jobs.motion.vectors import Fitted, vectors_of
from innerspace.measure.paired import Resamples
from innerspace.motion.forecasters.known import load
from innerspace.motion.framing import Batch, Framing, frame
from innerspace.motion.scenes import Scene
from innerspace.motion.shifts import LateralAcceleration, SamplingRate, Shift, Speed
from innerspace.motion.words import SPEED
from innerspace.network.model import Model
from innerspace.value import Value


@dataclass(frozen=True)
class Shifts(Value):
    """How the judged scenes move otherwise.

    ``speeds`` multiply the speed of futures alone, ``everywhere`` that of histories too; ``lateral`` bounds the lateral
    acceleration of futures (m/s²); ``rates`` (Hz) are those at which histories were recorded, once resampled to the
    rate that the forecaster expects, and once read as they are.
    """

    speeds: tuple[float, ...] = (0.5, 0.75, 1.25, 1.5)
    everywhere: tuple[float, ...] = (0.5, 1.5)
    lateral: tuple[float, ...] = (1.0,)
    rates: tuple[float, ...] = (5.0, 20.0)

    def each(self) -> tuple[Shift, ...]:
        """No shift, and then every one.

        Raises:
            ValueError: for one that is not possible.
        """
        return (
            Speed(1.0),
            *(Speed(factor) for factor in self.speeds),
            *(LateralAcceleration(limit) for limit in self.lateral),
            *(Speed(factor, history=True) for factor in self.everywhere),
            *(SamplingRate(hz, told) for told in (True, False) for hz in self.rates),
        )


@dataclass(frozen=True)
class Unseen(Job):
    """Meet unseen characteristics of data by a run's speed vector, calibrated on scenes that have none of them.

    ``trained`` is the folder of a words-in-motion run, whose first speed vector by ``method`` is used. The ``fit``
    split of ``data``, which should be that of the run, calibrates, the ``test`` split is shifted and judged; with
    ``transfer``, the test split of ``other`` data instead. ``temperatures`` are tried with both signs. ``calibrating``
    agents calibrate; ``scenes`` scenes are judged, with at most ``agents`` agents each. ``randoms`` random vectors of
    equal norm are the control; intervals come from ``replicates`` resamples of the scenes.
    """

    trained: Path = Path("runs/demo")
    data: Data = field(default_factory=Data)
    transfer: bool = False
    other: Data = field(default_factory=Data)
    shifts: Shifts = field(default_factory=Shifts)
    method: str = "mean_difference"
    temperatures: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.1, 1.5)
    calibrating: int = 400
    scenes: int = 300
    agents: int = 2
    randoms: int = 5
    replicates: int = 300
    seed: int = 0

    def check(self) -> None:
        """Refuse settings that contradict each other; the run is looked for first of all when the job begins."""
        self.data.check()
        self.other.check()
        if self.other != Data() and not self.transfer:
            raise ValueError("other data are given, but transfer is off; add --transfer to judge on them")
        self.shifts.each()
        if not (self.temperatures and all(0 < t < np.inf for t in self.temperatures)):
            raise ValueError(f"temperatures should be positive (both signs are tried), they are {self.temperatures}")
        if tuple(sorted(set(self.temperatures))) != self.temperatures:
            raise ValueError(f"temperatures should rise, they are {self.temperatures}")
        for name, least in {"calibrating": 10, "scenes": 10, "agents": 1, "randoms": 1, "replicates": 20}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} should be at least {least}, it is {getattr(self, name)}")

    def run(self, run: Run) -> Path:
        """Calibrate, shift, judge, and write the page."""
        model, vector, framing = self.open()
        site = vector.direction.origins[0].site

        run.say("[bold]1[/] scenes")
        splits = self.data.read(framing)
        judged_splits = self.longer(self.other if self.transfer else self.data, framing)
        for skip in judged_splits.skipped:
            run.say(escape(f"  skipped {skip.name}: {skip.reason}"))
        fit = frame(splits.fit, framing)
        scenes = self.draw(judged_splits.test)
        plain = frame(scenes, framing)
        run.say(f"  {judged_splits.description}: {len(scenes)} scenes, {len(plain)} agents")

        run.say("[bold]2[/] what a temperature buys, on unshifted scenes")
        judged = self.calibrate(model, site, vector, fit)
        assert judged.curve is not None
        generator = torch.Generator().manual_seed(self.seed)
        randoms = [vector.direction.random_like(generator).directions[0] for _ in range(self.randoms)]
        control = Control(vector.along, randoms, judged.curve)
        low, high = judged.curve.span
        run.say(f"  {low:+.0f} % … {high:+.0f} % within reach")

        run.say("[bold]3[/] shifts, met in every way")
        resamples = Resamples(plain.scene, self.replicates, self.seed)
        unread = Steered(model, site, plain)
        rows = list[dict[str, Any]]()
        for shift in run.track(self.shifts.each(), "shifts"):
            truth = frame([shift.apply(scene) for scene in scenes], framing)
            factor = self.factor(shift, splits.fit, framing)
            steered = Steered(model, site, truth) if shift.seen else unread
            rows.append(judge(shift, factor, steered, truth, control, resamples))

        report: dict[str, Any] = {
            "title": "Words in motion on unseen data",
            "question": (
                "If traffic moves otherwise than the forecaster has learned, does a control vector make up for it, by "
                "a temperature that was calibrated on other scenes, and does it do so better than rescaling forecasts?"
            ),
            "unseen": {
                "rows": rows,
                "vector": {"feature": SPEED.name, "method": self.method, "site": site},
                "horizon": plain.interval * framing.waypoints,
                "randoms": self.randoms,
                "replicates": self.replicates,
            },
            "calibration": calibration_rows([judged], site),
            "data": self.data_section(splits, judged_splits, fit, plain),
            "notes": {
                "unseen": f"{len(scenes)} scenes of the test split, {len(plain)} agents.",
                "calibration": f"{self.calibrating} agents of the fit split, unshifted; intervals over scenes.",
            },
        }
        report |= opening(rows, judged.curve, recorded=(self.other if self.transfer else self.data).kind != "simulated")
        return run.conclude(self, report, seeds=(self.seed,), data=judged_splits.description)

    def open(self) -> tuple[Model, Fitted, Framing]:
        """The run's forecaster, its vector, and how it reads scenes.

        Raises:
            ValueError: if the run is not complete, its vectors belong to another network or to a site that this one
                does not have, or none is of speed and of the method that was asked for.
        """
        if not (self.trained / "settings.json").is_file():
            raise ValueError(f"{self.trained} holds no forecaster; give the folder of a words-in-motion run")
        network = load(self.trained)
        model = Model(network, network.settings.family)
        directions = vectors_of(self.trained, model)
        methods = [origin.method for origin in directions.origins if origin.feature == SPEED.name]
        if self.method not in methods:
            known = ", ".join(dict.fromkeys(methods)) or "none"
            raise ValueError(f"{self.trained} holds no speed vector by {self.method!r}; there are: {known}")
        speed = directions.select(SPEED.name)
        # the first of each method was fitted to all scenes
        i = methods.index(self.method)
        one = Directions(speed.raw[i : i + 1], speed.gap[i : i + 1], speed.origins[i : i + 1])
        return model, Fitted(one, SPEED, self.method, 0), network.settings.framing

    def longer(self, data: Data, framing: Framing) -> Splits:
        """Scenes to judge on, simulated ones for as long as the fastest shift needs; recorded ones end where they end.

        Longer simulated scenes hold the same motion under other noise.
        """
        if data.kind == "simulated":
            # squared, for agents that slow down need longer than others
            longest = max(1.0, *self.shifts.speeds, *self.shifts.everywhere) ** 2
            framing = replace(framing, future=framing.stride * math.ceil(framing.waypoints * longest))
        return data.read(framing)

    def draw(self, scenes: Sequence[Scene]) -> list[Scene]:
        """Some of the scenes at random, in their order, each with some of its agents to forecast."""
        rng = np.random.default_rng(self.seed)
        chosen = [scene for scene in scenes if scene.target.size]
        places = np.sort(rng.permutation(len(chosen))[: self.scenes])

        def fewer(scene: Scene) -> Scene:
            return replace(scene, target=np.sort(rng.permutation(scene.target)[: self.agents]))

        return [fewer(chosen[i]) for i in places]

    def calibrate(self, model: Model, site: str, vector: Fitted, fit: Batch) -> Judged:
        """The calibration curve on unshifted agents of the fit split."""
        rows = torch.randperm(len(fit), generator=torch.Generator().manual_seed(self.seed))[: self.calibrating]
        part = fit[rows.sort().values]
        bench = Bench.of(model, site, part, Steering())
        steps = torch.tensor(self.temperatures)
        return bench.judge(vector, vector.along, torch.cat((-steps.flip(0), torch.zeros(1), steps)))

    def factor(self, shift: Shift, fit: Sequence[Scene], framing: Framing) -> float:
        """What speeds must be multiplied by: known of the shift, or measured on the true paths of fit scenes."""
        known = shift.compensation(fit[0].hz)
        if known is not None:
            return known
        some = fit[: self.calibrating]
        return measured_factor(frame(some, framing), frame([shift.apply(scene) for scene in some], framing))

    def data_section(self, splits: Splits, other: Splits, fit: Batch, test: Batch) -> dict[str, Any]:
        """What was calibrated on, and what was judged on."""
        description = splits.description
        if self.transfer:
            description = f"Calibrated on {description}. Judged on {other.description}."
        return {
            "description": description,
            "splits": [
                {"name": name, "scenes": len(batch.scene.unique()), "targets": len(batch)}
                for name, batch in (("fit", fit), ("judged", test))
            ],
            "skipped": [{"name": skip.name, "reason": skip.reason} for skip in other.skipped],
        }
