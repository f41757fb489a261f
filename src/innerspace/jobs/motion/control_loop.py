"""Requests put to held-out forecasts: met by the loop, by the mean curve, along random directions, in other ways."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.decompose.directions import Directions
from innerspace.interventions import At, Steer
from innerspace.jobs.inputs.parts import chunks
from innerspace.jobs.motion.requests import Answered, Mode, answer, goals, way
from innerspace.jobs.motion.steering import MEASURES, Steering
from innerspace.measure.control_loop import Goal, Loop
from innerspace.measure.estimate import Estimate, from_copies
from innerspace.measure.forecasts import readout
from innerspace.measure.solving import REACHED, UNDEFINED
from innerspace.measure.steering import Curve, calibrate, respond
from innerspace.motion.framing import Batch
from innerspace.motion.instructions import Instruction, Unit
from innerspace.network.model import Fork, Model
from innerspace.network.site import Where
from innerspace.value import Value

_UNITS: dict[str, Unit] = {"speed": "%", "direction": "°"}


@dataclass(frozen=True)
class Looping(Value):
    """How the control loop is judged.

    ``speeds`` (percent) and ``headings`` (degrees) are requested of ``samples`` agents each; every request is also put
    to ``randoms`` random directions of the vector's length, and in the other ``modes``. The mean curve comes from
    ``pilot`` agents that the vectors were fitted to.
    """

    speeds: tuple[float, ...] = (-50.0, -30.0, 30.0, 50.0)
    headings: tuple[float, ...] = (-20.0, 20.0)
    samples: int = 64
    pilot: int = 100
    randoms: int = 1
    modes: tuple[Mode, ...] = ("angular",)
    loop: Loop = field(default_factory=lambda: Loop(passes=12))

    def __post_init__(self) -> None:
        if self.samples < 10 or self.pilot < 10:
            raise ValueError(
                f"the loop is judged on at least 10 samples and a pilot of 10, given {self.samples}, {self.pilot}"
            )
        if self.randoms < 0:
            raise ValueError(f"the random directions should not be fewer than none, they are {self.randoms}")
        if "additive" in self.modes:
            others = ", ".join(get_args(Mode)[1:])
            raise ValueError(f"additive is always among the modes; beside it {others} are possible")
        if 0 in (*self.speeds, *self.headings):
            raise ValueError("a request for no change is met by doing nothing; leave 0 out of speeds and headings")


@dataclass(frozen=True, eq=False)
class LoopBench:
    """The model, the agents to judge on and those of the pilot, with the settings of both kinds of steering."""

    model: Model
    site: str
    test: Batch
    pilot: Batch
    steering: Steering
    settings: Looping

    def judge(self, vectors: Mapping[str, Directions]) -> dict[str, Any]:
        """All requests of the features that have a vector, as the report holds them."""
        forks = self._forks(self.test)
        requests, paired, modes = list[dict[str, Any]](), list[dict[str, Any]](), list[dict[str, Any]]()
        for feature, amounts in (("speed", self.settings.speeds), ("direction", self.settings.headings)):
            if feature not in vectors or not amounts:
                continue
            curve = self._curve(feature, vectors[feature])
            for i, amount in enumerate(amounts):
                rows, pairs = self._request(feature, vectors[feature], amount, curve, forks, seed=i)
                requests += rows
                paired += pairs
            if feature == "speed":
                modes = [self._mode(mode, vectors[feature], forks) for mode in get_args(Mode)]
        return {
            "samples": len(self.test),
            "share": self.settings.loop.share,
            "passes": self.settings.loop.passes,
            "requests": requests,
            "paired": [pair for pair in paired if pair["rows"]],
            "modes": modes,
        }

    def _forks(self, batch: Batch) -> list[Fork]:
        with torch.no_grad():
            return [self.model.fork(part, self.site) for part in chunks(batch)]

    def _curve(self, feature: str, vector: Directions) -> Curve:
        """The mean calibration curve on the pilot, within the loop's budget."""
        forks = self._forks(self.pilot)
        end = self.settings.loop.share * _mean_length(forks, self.pilot, self.site) / float(vector.gap[0])
        tau = torch.linspace(-1, 1, self.steering.points) * end
        tau[len(tau) // 2] = 0
        along, measure = vector.directions[0], MEASURES[feature]
        found = respond(self.model, chunks(self.pilot), self.site, along, tau, readout, self.pilot.scene, forks=forks)
        return calibrate(
            found[measure.readout],
            kind="relative" if measure.relative else "difference",
            minimum=self.steering.moving if measure.relative else 0.0,
        )

    def _request(
        self, feature: str, vector: Directions, amount: float, curve: Curve, forks: list[Fork], seed: int
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """One request, put to the loop, to the curve, to random directions and to the other ways of steering."""
        (goal,) = asked = goals([Instruction(feature, amount, _UNITS[feature])], self.steering.moving)
        generator = torch.Generator().manual_seed(seed)

        def put(along: Tensor, mode: Mode = "additive") -> Answered:
            return answer(self.model, self.site, chunks(self.test), forks, along, asked, mode, self.settings.loop)

        closed = put(vector.directions)
        head = {"feature": feature, "unit": _UNITS[feature], "request": amount}
        rows = [head | {"way": "loop", "mode": "additive"} | self._row(closed, goal)]
        rows += [
            head | {"way": "loop", "mode": mode} | self._row(put(vector.directions, mode), goal)
            for mode in self.settings.modes
        ]
        tau = curve.inverse(amount)
        # what the mean never reaches is asked of the temperature that comes closest
        closest = min(range(len(curve.tau)), key=lambda i: abs(curve.response[i].mean - amount))
        opened = self._opened(vector.directions[0], curve.tau[closest] if tau is None else tau, goal, closed, forks)
        rows.append(head | {"way": "curve", "mode": "additive"} | opened)
        pairs = list[dict[str, Any]]()
        for _ in range(self.settings.randoms):
            noise = put(vector.random_like(generator).directions)
            rows.append(head | {"way": "random", "mode": "additive"} | self._row(noise, goal))
            pairs.append(head | _paired(closed, noise))
        return rows, pairs

    def _row(self, found: Answered, goal: Goal) -> dict[str, Any]:
        """What came of a request."""
        done = found.controlled
        asked, reached = done.outcome != UNDEFINED, done.outcome == REACHED
        return {
            "reached": _share(reached, asked, self.test.scene).to_json(),
            "outcomes": done.shares(),
            "tau": _quartiles(done.tau[asked, 0]),
            "change": _quartiles(done.change[asked]),
            "passes": done.passes / len(chunks(self.test)),
            **self._effects(goal, asked, found.before, found.after, done.target[:, 0]),
        }

    def _opened(
        self, along: Float[Tensor, "d"], tau: float, goal: Goal, closed: Answered, forks: Sequence[Fork]
    ) -> dict[str, Any]:
        """The same temperature for all rows, as the mean curve says."""
        steer = {self.site: At(Where("valid"), Steer(along, tau))}
        with torch.no_grad():
            parts = [
                readout(fork.run(steer).output, fork.clean.output, batch)
                for fork, batch in zip(forks, chunks(self.test), strict=True)
            ]
        after = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        done = closed.controlled
        asked, target = done.outcome != UNDEFINED, done.target[:, 0]
        reached = asked & ((after[goal.readout] - target).abs() <= goal.allowance(done.before[:, 0]))
        length = abs(tau) * float(along.norm()) / _mean_length(forks, self.test, self.site)
        return {
            "reached": _share(reached, asked, self.test.scene).to_json(),
            "outcomes": {},
            "tau": [tau] * 3,
            "change": [length] * 3,
            "passes": 1,
            **self._effects(goal, asked, closed.before, after, target),
        }

    def _effects(
        self,
        goal: Goal,
        asked: Bool[Tensor, "rows"],
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        target: Float[Tensor, "rows"],
    ) -> dict[str, Any]:
        """Error in the unit of the request, what else moved, and whether it can be driven, over the rows asked."""
        off = (after[goal.readout] - target).abs()
        off = off / before[goal.readout] * 100 if goal.kind == "relative" else off
        others = dict[str, float]()
        for name in (measure.readout for measure in MEASURES.values() if measure.readout != goal.readout):
            moved = (after[name] - before[name])[asked].abs()
            # a path may be too short to have a heading
            if moved.isfinite().any():
                others[name] = _average(moved)
        return {
            "error": _quartiles(off[asked]),
            "others": others,
            "feasible": _average(after["feasible"][asked]),
            "feasible_before": _average(before["feasible"][asked]),
            "shift": _average(after["shift"][asked]),
        }

    def _mode(self, mode: Mode, vector: Directions, forks: list[Fork]) -> dict[str, Any]:
        """How linearly a way of steering acts within the budget, and what stays feasible."""
        end = self.settings.loop.share * _mean_length(forks, self.test, self.site) / float(vector.gap[0])
        tau = torch.linspace(-1, 1, self.steering.points) * end
        tau[len(tau) // 2] = 0

        def via(along: Tensor, by: float) -> Any:
            return way(mode)(along[None], torch.tensor([by]))

        found = respond(
            self.model,
            chunks(self.test),
            self.site,
            vector.directions[0],
            tau,
            readout,
            self.test.scene,
            forks=forks,
            via=via,
        )
        curve = calibrate(found["speed"], kind="relative", minimum=self.steering.moving, window=self.steering.window)
        return {
            "mode": mode,
            "tau": list(curve.tau),
            "response": [point.to_json() for point in curve.response],
            "feasible": found["feasible"].value.mean(1).tolist(),
            "pearson": curve.pearson.to_json(),
            "r2": curve.r2.to_json(),
            "span": list(curve.span),
        }


def _paired(closed: Answered, noise: Answered) -> dict[str, Any]:
    """A vector against a random direction on the rows that both brought to the target: at what price did they?"""
    both = (closed.controlled.outcome == REACHED) & (noise.controlled.outcome == REACHED)

    def price(found: Answered) -> dict[str, Any]:
        return {"change": _average(found.controlled.change[both]), "shift": _average(found.after["shift"][both])}

    return {"rows": int(both.sum()), "vector": price(closed), "random": price(noise)}


def _share(
    reached: Bool[Tensor, "rows"], asked: Bool[Tensor, "rows"], groups: Int[Tensor, "rows"], copies: int = 200
) -> Estimate:
    """The share of the rows asked that reached, with an interval by bootstrap over scenes."""
    if not asked.any():
        return Estimate(float("nan"))
    _, group = groups.unique(return_inverse=True)
    count = int(group.amax()) + 1
    above = torch.zeros(count, dtype=torch.float64).index_add_(0, group, (reached & asked).double())
    below = torch.zeros(count, dtype=torch.float64).index_add_(0, group, asked.double())
    draws = torch.randint(count, (copies, count), generator=torch.Generator().manual_seed(0))
    return from_copies(float(above.sum() / below.sum()), above[draws].sum(1) / below[draws].sum(1))


def _mean_length(forks: Sequence[Fork], batch: Batch, site: str) -> float:
    """The mean length of the hidden states at valid steps."""
    states = torch.cat([fork.clean.hidden[site] for fork in forks])
    return float(states.norm(dim=-1)[batch.target.valid].mean())


def _average(values: Float[Tensor, "rows"]) -> float:
    return float(values.double().nanmean())


def _quartiles(values: Float[Tensor, "rows"]) -> list[float]:
    known = values[values.isfinite()].double()
    if not len(known):
        return [float("nan")] * 3
    return torch.quantile(known, torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
